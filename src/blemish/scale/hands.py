"""Who does the work of a fit in parts: this process alone, or workers of Ray.

Jobs are functions of a module, called with what all of them share and what is theirs. They give the
same whoever does them, and keep nothing.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Protocol
from uuid import uuid4

from blemish.compute import use_threads
from blemish.errors import ClusterError, ConfigError
from blemish.machine import cores
from blemish.scale.cluster import Cluster, explained, joined

RETRIES = 5  # of a job whose worker, or node, has ended under it

Job = Callable[..., Any]


class Hands(Protocol):
    """Who does jobs.

    Attributes:
        room: how many they take at once.
        here: whether it is this process, with the very objects that it is given.
        device: what they compute on, as of `blemish.load`; "" = as the fit says.
        threads: of each; None = as this process.
    """

    room: int
    here: bool
    device: str
    threads: int | None

    def hold(self, shared: Any) -> None:
        """What the jobs share from now on."""

    def start(self, key: Any, job: Job, *given: Any) -> None:
        """Begin a job; not more of them than there is `room`."""

    def next(self) -> tuple[Any, Any]:
        """Wait for one that was begun: its key, and what it gives. Raises: what the job raises;
        ClusterError."""


class Alone:
    """This process, one job after the other."""

    room: int = 1
    here: bool = True
    device: str = ""
    threads: int | None = None

    def __init__(self) -> None:
        self._shared: Any = None
        self._waiting: deque[tuple[Any, Job, tuple[Any, ...]]] = deque()

    def hold(self, shared: Any) -> None:
        self._shared = shared

    def start(self, key: Any, job: Job, *given: Any) -> None:
        self._waiting.append((key, job, given))

    def next(self) -> tuple[Any, Any]:
        key, job, given = self._waiting.popleft()
        return key, job(self._shared, *given)


class OnRay:
    """Workers of a Ray that this process has joined. What they give comes here and is kept here, so
    that a worker, or a whole node, may end: its job is done again by another.

    Args:
        workers: at once, at most. threads: of each. gpus: of each; a fraction where several share
            one.
    """

    here: bool = False

    def __init__(self, workers: int, *, threads: int, gpus: float) -> None:
        import ray

        self.room: int = workers
        self.device: str = "cuda" if gpus else "cpu"
        self.threads: int | None = threads
        # Tasks that use a GPU would each get a process of their own, were it not for `max_calls`.
        self._remote = ray.remote(
            num_cpus=threads, num_gpus=gpus, max_retries=RETRIES, max_calls=0
        )(_done_there)
        self._held: tuple[str, Any] = ("", None)
        self._running: dict[Any, Any] = {}

    def hold(self, shared: Any) -> None:
        import ray

        with explained():
            self._held = uuid4().hex, ray.put(shared)

    def start(self, key: Any, job: Job, *given: Any) -> None:
        name, held = self._held
        with explained():  # in a list a reference stays one
            begun = self._remote.remote(name, [held], self.threads or 1, job, *given)
        self._running[begun] = key

    def next(self) -> tuple[Any, Any]:
        import ray

        with explained():
            (done,), _ = ray.wait([*self._running], num_returns=1)
            return self._running.pop(done), ray.get(done)


# What jobs share, by its name: a worker does many with the same.
_HELD: dict[str, Any] = {}


def _done_there(name: str, held: list[Any], threads: int, job: Job, *given: Any) -> Any:
    """A job, in a worker."""
    import ray

    use_threads(threads)
    if name not in _HELD:
        _HELD.clear()
        _HELD[name] = ray.get(held[0])
    return job(_HELD[name], *given)


@contextmanager
def on_ray(
    address: str | None = None,
    *,
    num_workers: int | None = None,
    gpus_per_worker: float = 0.0,
    threads: int = 1,
) -> Iterator[OnRay]:
    """Workers of a cluster, while open.

    Args:
        address: as of `cluster.joined`.
        num_workers: at once; None = as many as the cluster has room for.
        gpus_per_worker: 0 = they compute on CPUs. threads: of each worker, which Ray counts as
            CPUs.
    Raises: ConfigError for less than one, and for what no node of the cluster has; what
        `cluster.joined` raises.
    """
    if num_workers is not None and num_workers < 1:
        raise ConfigError(f"num_workers: at least 1 is needed, got {num_workers}")
    if threads < 1 or gpus_per_worker < 0:
        raise ConfigError("threads, gpus_per_worker: at least 1, and 0, are needed")
    wanted = num_workers or max(1, cores() // threads)
    with joined(address, cpus=max(wanted * threads, cores())) as found:
        yield OnRay(
            num_workers or _room(found, threads, gpus_per_worker),
            threads=threads,
            gpus=gpus_per_worker,
        )


def _room(found: Cluster, threads: int, gpus: float) -> int:
    """How many workers a cluster has room for. Raises: ClusterError where it is none."""
    room = int(found.cpus // threads)
    if gpus:
        room = min(room, int(found.gpus / gpus + 1e-9))
    if room < 1:
        raise ClusterError(
            f"no worker has room: each is to have {threads} CPUs and {gpus:g} GPUs, and the "
            f"cluster has {found.cpus:g} and {found.gpus:g}; give each less, or add nodes"
        )
    return room

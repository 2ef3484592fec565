"""Ray: a cluster that somebody names is joined, else one is started for this process alone.

What is started here listens on this machine alone, reports to nobody, shows no dashboard, and ends
with the process, its files with it. Errors of Ray are told in the words of blemish.
"""

from __future__ import annotations

import logging
import os
import re
import shutil
import signal
import socket
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from blemish.errors import BlemishError, ClusterError, ConfigError
from blemish.extras import missing, require
from blemish.machine import cores

LOOPBACK = "127.0.0.1"
REACHED_WITHIN = 10.0  # seconds in which a cluster has to answer
_FOLDER = "blemish-ray-"
_MOST_PER_CORE = 16  # CPUs that Ray is told of here: it starts a process for each
_STORE_BYTES = 2 * 2**30  # of the memory in which a local Ray hands blocks on, at most
_DESPITE = "blemish must be installed there in the same version, with the extras that it needs"


@dataclass(frozen=True, kw_only=True)
class Cluster:
    """What Ray has to compute with.

    Attributes: address: "" where it was started here. nodes: alive. cpus, gpus: of all nodes
        together, as Ray counts them.
    """

    address: str
    nodes: int
    cpus: float
    gpus: float


def cpus_here() -> int:
    """How many CPUs a Ray counts that is started here, where nobody says it: twice the cores, so
    that whoever decodes finds a place beside those who compute."""
    return 2 * cores()


@contextmanager
def joined(address: str | None = None, *, cpus: int | None = None) -> Iterator[Cluster]:
    """Ray, while open; one that this process had joined before stays as it is.

    Args:
        address: of a cluster's head, "host:6379", or "auto" on one of its nodes; None = a Ray of
            this process alone, whatever RAY_ADDRESS says.
        cpus: how many Ray is to count here; None = `cpus_here`. Only of a Ray that is started.
    Raises: MissingExtraError without Ray; ClusterError where none can be reached or started;
        ConfigError for what is no address.
    """
    require("ray", "pyarrow", purpose="work on a cluster")
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # it would report to its makers
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")  # it would write to standard error
    import ray

    if ray.is_initialized():
        own = ray.get_runtime_context().gcs_address
        if address not in (None, "auto", own):
            raise ConfigError(
                f"--address {address}: this process has joined {own}; leave the address out"
            )
        with _quiet():
            yield _found(own)
        return
    if address is None:
        if cpus is not None and cpus > _MOST_PER_CORE * cores():
            raise ConfigError(
                f"{cpus:,} CPUs are asked for (workers, times the threads of each), and this "
                f"machine has {cores()}; ask for fewer, or name a cluster with --address"
            )
        with _started(cpus or cpus_here()), _quiet():
            yield _found("")
        return
    _check(address)
    with _explained(f"{address}: "), _signals_kept(), _unheard():
        ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR)
    try:
        with _quiet():
            yield _found(address)
    finally:
        ray.shutdown()


def _found(address: str) -> Cluster:
    import ray

    alive = [node for node in ray.nodes() if node["Alive"]]
    total = ray.cluster_resources()
    cpus, gpus = total.get("CPU", 0.0), total.get("GPU", 0.0)
    return Cluster(address=address, nodes=len(alive), cpus=cpus, gpus=gpus)


def _check(address: str) -> None:
    """Raises: ConfigError for what is no address; ClusterError where nobody answers there."""
    if address == "auto":
        return
    if address.startswith("ray://"):
        raise ConfigError(
            f"--address {address}: the address of the cluster itself is needed, HOST:6379 as a "
            "rule; Ray Client (ray://) does not carry Ray Data"
        )
    host, _, port = address.rpartition(":")
    if not host or not port.isdecimal() or not 0 < int(port) < 65536:
        raise ConfigError(f"--address {address}: HOST:PORT is needed, as in 10.0.0.5:6379, or auto")
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=REACHED_WITHIN).close()
    except OSError as error:
        raise ClusterError(
            f"--address {address}: no cluster answers there ({error.strerror or error}); start one "
            "with `ray start --head`, or leave the address out to use this machine alone"
        ) from error


@contextmanager
def _started(cpus: int) -> Iterator[None]:
    """A Ray of this process, on the loopback address alone."""
    import ray
    from ray._private import ray_constants

    # Where Ray has no clusters, as on Windows, it takes the loopback address for its own and all
    # of its processes listen there alone; elsewhere they listen on every address of the machine.
    # There is no other way to say it. tests/scale/test_cluster.py looks who listens.
    had = ray_constants.ENABLE_RAY_CLUSTER
    ray_constants.ENABLE_RAY_CLUSTER = False
    _sweep()
    folder = tempfile.mkdtemp(prefix=f"{_FOLDER}{os.getpid()}-")
    memory = min(_STORE_BYTES, _free_shared_memory() // 2)
    how: dict[str, Any] = {"_node_ip_address": LOOPBACK, "_temp_dir": folder}
    how |= {"include_dashboard": False, "log_to_driver": False, "logging_level": logging.ERROR}
    how |= {"object_store_memory": memory} if memory else {}
    try:
        with _explained("Ray cannot be started here: "), _signals_kept(), _unheard():
            ray.init(address="local", num_cpus=cpus, **how)
        try:
            yield
        finally:
            ray.shutdown()
    finally:
        ray_constants.ENABLE_RAY_CLUSTER = had
        shutil.rmtree(folder, ignore_errors=True)


def _sweep() -> None:
    """Remove the folders of processes that were killed."""
    for folder in Path(tempfile.gettempdir()).glob(f"{_FOLDER}*-*"):
        number = folder.name.removeprefix(_FOLDER).partition("-")[0]
        with suppress(OSError, AttributeError):  # of users Windows knows nothing
            if number.isdigit() and folder.stat().st_uid == os.getuid() and not _runs(int(number)):
                shutil.rmtree(folder, ignore_errors=True)


def _runs(process: int) -> bool:
    try:
        os.kill(process, 0)
    except OSError:
        return False
    return True


@contextmanager
def _signals_kept() -> Iterator[None]:
    """Ray takes SIGTERM for itself, and would end the process in the middle of a file."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.getsignal(signal.SIGTERM)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


@contextmanager
def _unheard() -> Iterator[None]:
    """While open, nothing comes to standard error: in its C++, Ray says there which level of log it
    was told, and there is no level for that. What fails is raised."""
    try:
        kept = os.dup(2)
    except OSError:  # it is closed
        yield
        return
    nowhere = os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(nowhere, 2)
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nowhere)


def _free_shared_memory() -> int:
    """Bytes; 0 where there is none."""
    with suppress(OSError):
        return shutil.disk_usage("/dev/shm").free
    return 0


@contextmanager
def _quiet() -> Iterator[None]:
    """Ray Data's own bars and messages stay in its log file."""
    from ray._private import worker
    from ray.data import DataContext

    context = DataContext.get_current().copy()
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    context.raise_original_map_exception = True  # else of what a worker raised the text alone comes
    loggers = [logging.getLogger(name) for name in ("ray", "ray.data")]
    handlers = [one for each in loggers for one in each.handlers]
    shown = [one for one in handlers if isinstance(one, logging.StreamHandler)]
    levels = [one.level for one in shown]
    for one in shown:
        one.setLevel(logging.CRITICAL)
    # What Ray says of processes that died is printed, whatever it was told of its log.
    printed = worker.print_to_stdstream
    worker.print_to_stdstream = lambda *given, **named: None
    try:
        with DataContext.current(context):
            yield
    finally:
        worker.print_to_stdstream = printed
        for one, level in zip(shown, levels, strict=True):
            one.setLevel(level)


@contextmanager
def _explained(before: str) -> Iterator[None]:
    try:
        yield
    except BlemishError:
        raise
    except Exception as error:
        raise ClusterError(f"{before}{_in_short(error)}") from error


@contextmanager
def explained() -> Iterator[None]:
    """While open, what Ray raises is told in the words of blemish: an error of blemish that a
    worker raised as it was, what happened to the cluster as a ClusterError. A mistake in a program
    stays what it is.
    """
    try:
        yield
    except Exception as error:
        told = _told(error)
        if told is error:
            raise
        raise told from error


def _told(error: Exception) -> Exception:
    import ray.exceptions as of_ray

    memory, lost = of_ray.OutOfMemoryError, (of_ray.RayError, ConnectionError)
    # Ray makes its errors instances of what was raised in the worker, too.
    causes = [one for one in _chain(error) if of_ray.RayError not in type(one).__mro__]
    for cause in reversed(causes):
        if isinstance(cause, BlemishError):
            return cause
    for cause in causes:
        if isinstance(cause, ImportError):
            said = missing(cause, "score there")
            return ClusterError(f"a worker of the cluster: {said or cause}; {_DESPITE}")
    if isinstance(error, memory):
        return ClusterError(
            "a worker was ended as its machine ran out of memory; start fewer workers "
            "(--num-workers), or smaller batches (--batch-size)"
        )
    if isinstance(error, of_ray.WorkerCrashedError):
        return ClusterError(
            "a process ended again and again at the same pictures: one of them may bring a decoder "
            "down; `blemish data check` finds it, or the machines have too little memory"
        )
    of_program = isinstance(error, of_ray.RayTaskError)
    if of_program and isinstance(error, of_ray.RaySystemError):
        lacks = re.search(r"No module named '[\w.]+'", str(error))
        return ClusterError(f"a worker of the cluster: {lacks[0] if lacks else error}; {_DESPITE}")
    if isinstance(error, lost) and not of_program:
        return ClusterError(
            f"the cluster lost what it computed ({_in_short(error)}); what was written is whole: "
            "the same command goes on from it"
        )
    return error


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    """An error and what caused it, as Ray and as Python tell it."""
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        yield error
        inner = getattr(error, "cause", None)
        error = inner if isinstance(inner, BaseException) else error.__cause__


def _in_short(error: BaseException) -> str:
    """The first line of what an error says, without its full stop."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return (lines[0] if lines else type(error).__name__).rstrip(".")

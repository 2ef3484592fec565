"""The memory that all decoders share: who waits, who goes on, who is refused; no real gigabytes."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from blemish.errors import ConfigError
from blemish.images import Limits
from blemish.images.limits import Budget, Unusable, free_memory, ran_out

GIB = 2**30


class Thread(threading.Thread):
    """Holds `size` from when it may until it is told to let go."""

    def __init__(self, budget: Budget, *sizes: int, limit: int | None, log: list[int]) -> None:
        super().__init__(daemon=True)
        self.budget, self.sizes, self.limit, self.log = budget, sizes, limit, log
        self.first, self.done, self.go = threading.Event(), threading.Event(), threading.Event()
        self.refusal = ""
        self.start()

    def run(self) -> None:
        try:
            with self.budget.held():
                for size in self.sizes:
                    self.budget.reserve(size, self.limit)
                    self.first.set()
                self.log.append(self.sizes[-1])
                self.done.set()
                self.go.wait(10)
        except Unusable as error:
            self.refusal = str(error)
            self.done.set()

    def end(self) -> None:
        self.go.set()
        self.join(10)
        assert not self.is_alive()


@pytest.fixture
def holder() -> Callable[..., Thread]:
    log: list[int] = []

    def start(budget: Budget, *sizes: int, limit: int | None = None) -> Thread:
        thread = Thread(budget, *sizes, limit=limit, log=log)
        thread.done.wait(0.1)
        return thread

    start.log = log  # type: ignore[attr-defined]
    return start


def test_half_of_free_memory_is_shared_and_the_next_waits(holder: Callable[..., Thread]) -> None:
    budget = Budget(lambda: 8 * GIB)
    one, two = holder(budget, 2 * GIB), holder(budget, 2 * GIB)
    three = holder(budget, 4 * GIB)
    assert one.done.is_set()
    assert two.done.is_set()
    assert not three.done.is_set()
    assert budget.used == 4 * GIB
    one.end()
    assert not three.done.wait(0.05)  # 2 + 4 of (8 + 2) / 2
    two.end()
    assert three.done.wait(5)
    three.end()
    assert budget.used == 0


def test_what_they_hold_together_never_exceeds_what_was_free(holder: Callable[..., Thread]) -> None:
    """The system says that all is free as long as nothing that was reserved is allocated."""
    budget = Budget(lambda: 8 * GIB)
    threads = [holder(budget, GIB) for _ in range(12)]
    assert budget.used <= 8 * GIB
    for thread in threads:
        thread.go.set()
    assert all(thread.done.wait(5) for thread in threads)
    for thread in threads:
        thread.end()
    assert budget.used == 0


def test_one_larger_than_the_share_goes_alone_and_one_larger_than_memory_is_refused(
    holder: Callable[..., Thread],
) -> None:
    budget = Budget(lambda: 8 * GIB)
    alone = holder(budget, 7 * GIB)
    assert alone.done.is_set()
    assert not alone.refusal
    behind = holder(budget, 9 * GIB)
    assert not behind.done.is_set()  # memory may come free until its turn
    alone.end()
    assert behind.done.wait(5)
    assert behind.refusal.startswith("needs about 9.0 GiB to decode; 8.0 GiB are free: make room")
    behind.end()
    assert budget.used == 0


def test_a_large_one_is_not_overtaken_by_small_ones(holder: Callable[..., Thread]) -> None:
    budget = Budget(lambda: 8 * GIB)
    first = holder(budget, 2 * GIB)
    large = holder(budget, 7 * GIB)
    small = holder(budget, 1)
    assert not large.done.is_set()
    assert not small.done.is_set()
    first.end()
    assert large.done.wait(5)
    large.end()
    small.done.wait(5)
    small.end()
    assert holder.log == [2 * GIB, 7 * GIB, 1]  # type: ignore[attr-defined]


def test_those_that_hold_a_file_while_they_wait_do_not_wait_for_each_other(
    holder: Callable[..., Thread],
) -> None:
    budget = Budget(lambda: 8 * GIB)
    threads = [holder(budget, GIB // 2, 6 * GIB) for _ in range(6)]
    for thread in threads:
        thread.go.set()
    assert all(thread.done.wait(5) for thread in threads)
    for thread in threads:
        thread.end()
    assert budget.used == 0


def test_an_explicit_limit_is_kept_even_alone(holder: Callable[..., Thread]) -> None:
    budget = Budget(lambda: None)
    refused = holder(budget, 2 * GIB, limit=GIB)
    assert "needs about 2.0 GiB to decode; the limit is 1.0 GiB (Limits.memory)" in refused.refusal
    first, second = holder(budget, GIB // 2, limit=GIB), holder(budget, GIB, limit=GIB)
    assert first.done.is_set()
    assert not second.done.is_set()
    first.end()
    assert second.done.wait(5)
    second.end()
    with pytest.raises(ConfigError, match="memory 0"):
        Limits(memory=0)


def test_a_block_gives_back_all_but_what_it_hands_out() -> None:
    budget = Budget(lambda: 8 * GIB)
    with budget.held():
        with budget.held() as inner:
            budget.reserve(3 * GIB)
            inner.kept = GIB
        assert budget.used == GIB
        with contextlib.suppress(ZeroDivisionError), budget.held():
            budget.reserve(GIB)
            raise ZeroDivisionError
        assert budget.used == GIB
    assert budget.used == 0


def test_many_threads_come_to_an_end_within_the_limit() -> None:
    budget, most = Budget(lambda: None), [0]

    def work(number: int) -> None:
        for turn in range(20):
            with budget.held() as own:
                budget.reserve(1 + (number * 7 + turn * 3) % 5)  # a file
                budget.reserve(1 + (number * 11 + turn * 5) % 40, 60)
                most[0] = max(most[0], budget.used)
                time.sleep(0)
                own.kept = 1

    threads = [threading.Thread(target=work, args=(number,), daemon=True) for number in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    assert not any(thread.is_alive() for thread in threads)
    assert budget.used == 0
    assert 45 < most[0] <= 60 + 12 * 5


def write(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return root


MACHINE = {"proc/meminfo": f"MemTotal: 99 kB\nMemAvailable:   {16 * 2**20} kB\n"}


def test_free_memory_of_the_machine(tmp_path: Path) -> None:
    assert free_memory(tmp_path) is None
    assert free_memory(write(tmp_path, MACHINE)) == 16 * GIB


def test_free_memory_in_a_container_and_under_slurm(tmp_path: Path) -> None:
    """cgroup v2: the tightest of the own group and those above it; a file cache that is idle counts
    as free.
    """
    files = {
        **MACHINE,
        "proc/self/cgroup": "0::/slurm/job_7/step_0\n",
        "sys/fs/cgroup/slurm/job_7/step_0/memory.max": "max\n",
        "sys/fs/cgroup/slurm/job_7/step_0/memory.current": "1\n",
        "sys/fs/cgroup/slurm/job_7/memory.max": f"{4 * GIB}\n",
        "sys/fs/cgroup/slurm/job_7/memory.current": f"{3 * GIB}\n",
        "sys/fs/cgroup/slurm/job_7/memory.stat": f"anon 5\ninactive_file {GIB // 2}\n",
    }
    assert free_memory(write(tmp_path, files)) == GIB + GIB // 2
    write(tmp_path, {"sys/fs/cgroup/slurm/job_7/memory.high": f"{3 * GIB}\n"})
    assert free_memory(tmp_path) == GIB // 2
    top = {"memory.max": f"{2 * GIB}", "memory.current": f"{5 * GIB}"}
    write(tmp_path, {f"sys/fs/cgroup/{name}": told for name, told in top.items()})
    assert free_memory(tmp_path) == 0


def test_free_memory_by_cgroup_v1(tmp_path: Path) -> None:
    """A container sees its own group as the root, under a path that only the host knows."""
    files = {
        **MACHINE,
        "proc/self/cgroup": "7:cpu,cpuacct:/docker/abc\n3:memory:/docker/abc\n",
        "sys/fs/cgroup/memory/memory.limit_in_bytes": f"{2 * GIB}\n",
        "sys/fs/cgroup/memory/memory.usage_in_bytes": f"{GIB}\n",
        "sys/fs/cgroup/memory/memory.stat": f"total_inactive_file {GIB // 4}\n",
    }
    assert free_memory(write(tmp_path, files)) == GIB + GIB // 4
    write(tmp_path, {"sys/fs/cgroup/memory/memory.limit_in_bytes": "9223372036854771712\n"})
    assert free_memory(tmp_path) == 16 * GIB


def test_free_memory_here_is_a_number() -> None:
    free = free_memory()
    assert free is None or free > 0


def test_what_says_that_memory_ran_out() -> None:
    import cv2

    assert ran_out(MemoryError())
    assert ran_out(OSError(12, "Cannot allocate memory"))
    assert ran_out(cv2.error("OpenCV: (-4:Insufficient memory) Failed to allocate 9 bytes"))
    assert ran_out(RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried"))
    assert ran_out(RuntimeError("CUDA out of memory. Tried to allocate"))
    assert ran_out(RuntimeError("[CPU] Check 'ptr' failed: Failed to allocate 9 bytes of memory"))
    assert ran_out(RuntimeError("Exception during initialization: std::bad_alloc"))
    assert not ran_out(OSError(2, "out of memory.png"))
    assert not ran_out(ConfigError("out of memory"))

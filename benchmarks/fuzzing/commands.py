"""Whole commands: killed, interrupted, out of room, without leave to write, two on one output.

Each runs in a fork (`forks`), on pictures and settings so small that it takes about a second.
"""

from __future__ import annotations

import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from fuzzing import forks
from fuzzing.artifacts import Random, parts
from fuzzing.forks import End
from fuzzing.texts import APMASK, FIT

DEVICE = ("--device", "cpu", "--precision", "fp32")
SMALL = ("--set", "width=32", "--set", "heads=4", "--set", "depth=1")  # of agpnet
STEPS = ("--set", "min_steps=6", "--set", "epochs=1", "--set", "train_batch_size=4")
TEMPORARY = ".blemish-*"


def run(*arguments: str | Path) -> int:
    """A command line in this process, with its exit status."""
    from blemish import cli

    return cli.main([str(each) for each in arguments])


@dataclass(frozen=True)
class Job:
    """A command that writes.

    Attributes:
        name: of the command. line: its arguments, for an output folder. more: what resumes it.
        ready: puts into the folder what the command needs there.
        results: what is to be the same in the end, by name, read from the folder.
        whole: the files that have to be whole after a kill, if they are there.
    """

    name: str
    line: Callable[[Path], Sequence[str | Path]]
    more: Sequence[str]
    ready: Callable[[Path], None]
    results: Callable[[Path], Mapping[str, Any]]
    whole: Sequence[str] = field(default=())


def write_inputs(folder: Path) -> None:
    """Pictures and artifacts for the jobs. Computes: in a fork."""
    from PIL import Image

    for name, count, seed in (("good", 12, 0), ("new", 10, 1), ("bad", 3, 2)):
        (folder / name).mkdir(parents=True, exist_ok=True)
        for index, pixels in enumerate(parts(count, seed=seed)):
            Image.fromarray(pixels).save(folder / name / f"{index:02d}.png")
    fit = ("--false-alarm-rate", "0.2")
    assert run("fit", "knn", folder / "good", "-o", folder / "knn.blemish", *FIT, *fit) == 0
    taught = ("--anomalies", folder / "bad", "--anomaly-count", "2")
    lda = ("fit", "lda", folder / "good", "-o", folder / "lda.blemish", *FIT, *fit)
    assert run(*lda, *taught) == 0
    assert run("export", folder / "knn.blemish", "-o", folder / "knn.onnx") == 0


def jobs(inputs: Path) -> list[Job]:
    """fit, predict, refine, pretrain, watch, export and calibrate, on what `write_inputs` has
    written."""
    return [*_of_artifacts(inputs), *_of_graphs(inputs)]


def _nothing(_: Path) -> None:
    return


def _of_artifacts(inputs: Path) -> list[Job]:
    good, new = inputs / "good", inputs / "new"

    def old_artifact(folder: Path) -> None:
        shutil.copy(inputs / "lda.blemish", folder / "part.blemish")

    return [
        Job(
            "fit",
            lambda folder: (
                *("fit", "agpnet", good, "-o", folder / "part.blemish", *FIT, *SMALL, *STEPS),
            ),
            ("--resume",),
            _nothing,
            lambda folder: {"tensors": _tensors(folder / "part.blemish")},
            ("part.blemish", "part.blemish.training"),
        ),
        Job(
            "predict",
            lambda folder: (
                *("predict", inputs / "knn.blemish", new, "--output", folder / "out"),
                *("--report", folder / "report.html", *DEVICE, "--batch-size", "3"),
            ),
            ("--resume",),
            _nothing,
            lambda folder: {"rows": _rows(folder / "out" / "predictions.jsonl")},
        ),
        Job(
            "refine",
            lambda folder: ("refine", folder / "part.blemish", "--good", new, *DEVICE),
            (),
            old_artifact,
            lambda folder: {"tensors": _tensors(folder / "part.blemish")},
            ("part.blemish",),
        ),
        Job(
            "pretrain",
            lambda folder: (
                *("pretrain", good, "-o", folder / "encoder.safetensors", *APMASK, *STEPS),
            ),
            ("--resume",),
            _nothing,
            lambda folder: {"tensors": _tensors(folder / "encoder.safetensors")},
            ("encoder.safetensors", "encoder.safetensors.training"),
        ),
        Job(
            "watch",
            lambda folder: (
                *("watch", new, inputs / "knn.blemish", "--output", folder / "out", "--once"),
                *("--sort", "copy", *DEVICE, "--batch-size", "3"),
            ),
            (),
            _nothing,
            lambda folder: {"rows": _rows(folder / "out" / "predictions.jsonl")},
        ),
    ]


def _of_graphs(inputs: Path) -> list[Job]:
    def old_export(folder: Path) -> None:
        shutil.copy(inputs / "knn.onnx", folder / "part.onnx")

    return [
        Job(
            "export",
            lambda folder: ("export", inputs / "knn.blemish", "-o", folder / "part.onnx"),
            (),
            old_export,
            lambda folder: {"graph": _graph(folder / "part.onnx")},
            ("part.onnx",),
        ),
        Job(
            "export, .xml",
            lambda folder: ("export", inputs / "knn.blemish", "-o", folder / "part.xml"),
            (),
            _nothing,
            lambda folder: {"graph": _graph(folder / "part.xml")},
            ("part.xml",),
        ),
        Job(
            "calibrate",
            lambda folder: (
                *("calibrate", folder / "part.onnx", inputs / "new", "-o", folder / "part.onnx"),
                *("--false-alarm-rate", "0.2", "--threads", "1"),
            ),
            (),
            old_export,
            lambda folder: {"graph": _graph(folder / "part.onnx")},
            ("part.onnx",),
        ),
    ]


def _graph(path: Path) -> dict[str, Any]:
    """A fingerprint of an exported graph, and the threshold beside it."""
    import hashlib

    from blemish.engines import files

    file = files.read(path)
    weights = file.weights or b""
    return {
        "graph": hashlib.sha256(file.model + weights).hexdigest(),
        "threshold": file.manifest["threshold"]["value"],
    }


def _tensors(path: Path) -> dict[str, str]:
    """A fingerprint of every tensor of an artifact, by name."""
    import hashlib

    from blemish import artifact

    tensors, _ = artifact.read(path)
    return {
        name: hashlib.sha256(each.contiguous().numpy().tobytes()).hexdigest()
        for name, each in tensors.items()
    }


def _rows(path: Path) -> dict[str, Any]:
    """By path (the last part), what was said of each picture; a second row of it is an error."""
    found: dict[str, Any] = {}
    for line in path.read_text().splitlines():
        row = json.loads(line)
        name = Path(row["path"]).name
        if name in found:
            raise ValueError(f"two rows of {name}")
        found[name] = row.get("score", row.get("error"))
    return found


def finish(job: Job, folder: Path) -> End:
    """The same command once more, to its end."""
    more = () if job.name != "predict" and not _has_checkpoint(job, folder) else job.more
    return forks.attempt(lambda: run(*job.line(folder), *more), limit=60)


def _has_checkpoint(job: Job, folder: Path) -> bool:
    return any((folder / name).exists() for name in job.whole if name.endswith(".training"))


def results_of(job: Job, folder: Path) -> Mapping[str, Any]:
    """Of a finished job."""
    return job.results(folder)


def faults(job: Job, folder: Path, before: Mapping[str, bytes]) -> list[str]:
    """What is not whole in the folder of a job that was ended before its time.

    `before`: files that were there at the start, by name: the old content is whole, too.
    """
    from blemish import artifact
    from blemish.engines import files
    from blemish.errors import BlemishError

    found = []
    for name in job.whole:
        path = folder / name
        if not path.exists():
            if name in before:
                found.append(f"{name} is gone")
            continue
        if before.get(name) == path.read_bytes():
            continue
        try:
            (files if files.is_exported(path) else artifact).read(path)
        except BlemishError as error:
            found.append(f"not whole: {error}")
    rows = folder / "out" / "predictions.jsonl"
    if rows.exists():
        lines = rows.read_bytes().split(b"\n")
        for line in lines[:-1]:
            with suppress(ValueError):
                json.loads(line)
                continue
            found.append(f"a damaged row: {line[:80]!r}")
    return found


def remains(folder: Path) -> list[str]:
    """Temporary files that were left."""
    return sorted(
        path.name for path in folder.rglob("*") if path.match(TEMPORARY) and path.is_file()
    )


def difference(found: Mapping[str, Any], wanted: Mapping[str, Any]) -> tuple[str, float]:
    """What is lost or other in results, "" for nothing; and by how much scores differ at most."""
    apart = 0.0
    for what, each in wanted.items():
        here = found.get(what, {})
        lost = sorted(set(each) - set(here))
        more = sorted(set(here) - set(each))
        if lost or more:
            return f"{what}: {len(lost)} lost ({', '.join(lost[:3])}), {len(more)} too many", apart
        for name, value in each.items():
            if value == here[name]:
                continue
            if isinstance(value, float) and isinstance(here[name], float):
                apart = max(apart, abs(value - here[name]) / max(abs(value), 1e-12))
            else:
                return f"{what}: {name} differs", apart
    return ("" if apart <= 1e-6 else f"scores differ by {apart:.2g}"), apart


# --- Ways to end a process ------------------------------------------------------------------------

WRITING = ("os.rename", "os.remove", "os.truncate", "os.mkdir", "os.link", "os.symlink")


def counted_writes(folder: Path, act: Callable[[int], None]) -> None:
    """Calls `act` with 1, 2, … before each step by which this process changes a file in a folder:

    opening it to write, bringing it to the disk, renaming, cutting, removing it.
    """
    count = 0
    place = str(folder.resolve())

    def step() -> None:
        nonlocal count
        count += 1
        act(count)

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        if event == "open" and isinstance(arguments[0], str) and arguments[0].startswith(place):
            mode, flags = arguments[1] or "", arguments[2] or 0
            if any(sign in mode for sign in "wax+") or flags & (os.O_WRONLY | os.O_RDWR):
                step()
        elif event in WRITING and str(arguments[0]).startswith(place):
            step()

    sync = os.fsync

    def synced(descriptor: int) -> None:
        step()
        sync(descriptor)

    os.fsync = synced
    sys.addaudithook(hook)


def killed_at(folder: Path, number: int) -> Callable[[], None]:
    """For `forks.attempt`: the process is killed before the so-manieth step of writing."""

    def act(count: int) -> None:
        if count == number:
            os.kill(os.getpid(), signal.SIGKILL)

    return lambda: counted_writes(folder, act)


def killed_within(size: int) -> Callable[[], None]:
    """For `forks.attempt`: the process is killed while it writes this byte of any file."""

    def prepare() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_DFL)
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))

    return prepare


def signalled(
    number: int, after: float, *, again: float | None = None
) -> Callable[[int, float], None]:
    """For `forks.attempt`: sends a signal after so many seconds, perhaps again so much later."""
    due = [after, *([] if again is None else [after + again])]

    def watch(pid: int, age: float) -> None:
        while due and age >= due[0]:
            due.pop(0)
            with suppress(ProcessLookupError):
                os.kill(pid, number)

    return watch


def often() -> None:
    """A checkpoint after every step, so that an attempt of a second has some."""
    from blemish.training import loop

    loop.BETWEEN_CHECKPOINTS = 0.0


@contextmanager
def disk(kib: int) -> Iterator[Path | None]:
    """A folder on a file system of so many KiB; None where this user may not mount one."""
    with tempfile.TemporaryDirectory() as folder:
        if not _mount("-t", "tmpfs", "-o", f"size={kib}k", "none", folder):
            yield None
            return
        try:
            yield Path(folder)
        finally:
            subprocess.run(["umount", "-l", folder], check=False, capture_output=True)


def remounted(folder: Path, options: str) -> bool:
    return _mount("-o", f"remount,{options}", str(folder))


def _mount(*arguments: str) -> bool:
    try:
        return (
            subprocess.run(["mount", *arguments], check=False, capture_output=True).returncode == 0
        )
    except OSError:
        return False


def at_once(lines: Sequence[Sequence[str | Path]]) -> list[End]:
    """Commands that run at the same time, each in a fork."""
    readers = []
    for line in lines:
        reader, writer = os.pipe()
        sys.stdout.flush()
        sys.stderr.flush()
        pid = os.fork()
        if pid == 0:
            try:
                end = forks.attempt(lambda line=line: run(*line), limit=60)  # type: ignore[misc]
                told = {
                    "status": end.status,
                    "signal": end.signal,
                    "hung": end.hung,
                    "out": end.out,
                    "err": end.err,
                }
                os.write(writer, json.dumps(told).encode()[:60_000])
            finally:
                os._exit(0)
        os.close(writer)
        readers.append((pid, reader))
    ends = []
    for pid, reader in readers:
        with os.fdopen(reader, "rb") as file:
            told = json.loads(file.read() or b"{}")
        os.waitpid(pid, 0)
        ends.append(End(**told) if told else End(status=None, signal=9))
    return ends


def moment(random: Random, longest: float) -> float:
    """Seconds after which to end a process that takes so long by itself."""
    return float(random.uniform(0.02, max(longest, 0.05)))


def sizes(random: Random, largest: int) -> int:
    """Bytes of a file at which to end a process."""
    return int(np.exp(random.uniform(np.log(64), np.log(max(largest, 128)))))

"""The parts that end, starve or mislead whole commands."""

from __future__ import annotations

import os
import shutil
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fuzzing import artifacts, commands, forks, places
from fuzzing.commands import Job
from fuzzing.forks import End
from fuzzing.tallies import Tally
from fuzzing.texts import FIT

if TYPE_CHECKING:
    from fuzzing.parts import Plan

KILLS = 50  # of each command
MISLEADING = ("--batch-size", "bug in blemish", "Traceback")
CONTROL = ("\x1b", "\x07", "\r")


def _inputs(plan: Plan) -> Path:
    folder = plan.folder / "inputs"

    def make() -> int:
        commands.write_inputs(folder)
        return 0

    end = forks.attempt(make, limit=120)
    if end.status != 0:
        raise SystemExit(f"the inputs could not be made: {end.err[-2000:]}")
    return folder


def judged(tally: Tally, end: End, *, expected: Sequence[int] = (2,), what: str = "") -> bool:
    """Counts an end; whether it was as it should be: a status that is expected, with its words."""
    said = f"{what}: {end.told}"
    tally.slowest = max(tally.slowest, end.seconds)
    tally.peak_mib = max(tally.peak_mib, end.peak_mib)
    for request in end.requests:
        tally.note("code" if request.startswith("code") else "request", f"{what}: {request}")
    if end.hung:
        tally.add("hang", said)
    elif end.status is None:
        tally.add("crash", said)
    elif "bug in blemish" in end.err + end.out or "Traceback" in end.err + end.out:
        tally.add("bug", said)
    elif end.status not in expected:
        tally.add("unclear", f"{what}: status {end.status}: {end.told}")
    elif end.status == 2 and any(words in end.err for words in MISLEADING):
        tally.add("unclear", said)
    else:
        tally.add("refused" if end.status == 2 else "accepted")
        return True
    return False


# --- What is no file, and hostile names --------------------------------------------------------


def of_places(plan: Plan) -> Iterator[Tally]:
    """Pipes, devices, holes and the like, as each file that a command reads or writes."""
    inputs, out = _inputs(plan), plan.folder / "out"
    special = places.special_files(plan.folder / "places")
    reads, writes = Tally("places", "read"), Tally("places", "written to")
    out.mkdir()
    for what, path in special.items():
        for name, line in places.reading_lines(inputs, path, out).items():
            if time.monotonic() > plan.deadline:
                break
            # A folder or a device may be empty of pictures, or each of its pictures broken: 1 or 2.
            end = forks.attempt(lambda line=line: commands.run(*line))  # type: ignore[misc]
            judged(reads, end, expected=(0, 1, 2), what=f"{name} = {what}")
    yield reads
    yield from _written(plan, inputs, writes)


def _written(plan: Plan, inputs: Path, tally: Tally) -> Iterator[Tally]:
    """Outputs that are a device, a pipe or a link: what they are must stay."""
    folder = plan.folder / "targets"
    for name in places.writing_lines(inputs, folder):
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        (folder / "real").write_bytes(b"before")
        (folder / "link").symlink_to(folder / "real")
        os.mkfifo(folder / "fifo")
        targets = ["link", "fifo"]
        if os.geteuid() == 0:
            os.mknod(folder / "null", 0o666 | 0o020000, os.makedev(1, 3))  # as /dev/null, but ours
            targets.append("null")
        for target in targets:
            path = folder / target
            before = os.lstat(path)
            line = places.writing_lines(inputs, path)[name]
            end = forks.attempt(lambda line=line: commands.run(*line))  # type: ignore[misc]
            if not judged(tally, end, expected=(0, 1, 2), what=f"{name} {target}"):
                continue
            after = os.lstat(path) if os.path.lexists(path) else None
            if after is None or after.st_mode != before.st_mode or after.st_rdev != before.st_rdev:
                tally.note("lost", f"{name} {target}: is another kind of thing now")
    yield tally


def of_names(plan: Plan) -> Iterator[Tally]:
    """Pictures with hostile names, through `predict`, `fit` and `data check`."""
    from PIL import Image

    inputs, folder = _inputs(plan), plan.folder / "names"
    folder.mkdir()
    picture = plan.folder / "one.png"
    Image.fromarray(artifacts.parts(1)[0]).save(picture)
    count = 0
    for name in places.NAMES:
        try:
            shutil.copy(picture, os.fsencode(folder) + b"/" + os.fsencode(name))
            count += 1
        except OSError:
            continue  # a file system that has no such names
    (folder / "=torn\n.png").write_bytes(b"no picture")
    out = plan.folder / "out"
    tally = Tally("names", f"{count + 1} hostile names")
    lines = {
        "predict": ("predict", inputs / "knn.blemish", folder, "--output", out, *commands.DEVICE),
        "predict --report": (
            "predict",
            inputs / "knn.blemish",
            folder,
            "--report",
            plan.folder / "r.html",
            *commands.DEVICE,
        ),
        "data check": ("data", "check", folder),
        "fit": ("fit", "knn", folder, "-o", plan.folder / "x.blemish", *FIT),
    }
    for what, line in lines.items():
        end = forks.attempt(lambda line=line: commands.run(*line))  # type: ignore[misc]
        good = judged(tally, end, expected=(0, 1), what=what)
        for sign in CONTROL:
            if sign in end.out.replace("\r\n", "\n") or (sign != "\r" and sign in end.err):
                tally.note("unclear", f"{what}: prints {sign!r} of a file's name as it is")
        if good and what == "predict":
            for fault in places.table_faults(out, count + 1):
                tally.note("lost", fault)
    yield tally


# --- Killed, interrupted, out of room, two at once ---------------------------------------------


def _reference(job: Job, folder: Path) -> tuple[Any, End, int, int]:
    """Of an uninterrupted run: its results, its end, how many steps of writing, the largest
    file."""
    folder.mkdir(parents=True)
    job.ready(folder)
    steps = folder.parent / "steps"

    def counting() -> None:
        commands.often()
        commands.counted_writes(folder, lambda number: steps.write_text(str(number)) and None)

    end = forks.attempt(lambda: commands.run(*job.line(folder)), prepare=counting, limit=60)
    if end.status not in (0, 1):
        raise SystemExit(f"{job.name} by itself: {end.err[-2000:]}")
    largest = max(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    return commands.results_of(job, folder), end, int(steps.read_text()), largest


def _ended(
    plan: Plan,
    job: Job,
    tally: Tally,
    wanted: Any,
    what: str,
    *,
    prepare: Callable[[], None] | None = None,
    watch: Callable[[int, float], None] | None = None,
    statuses: Sequence[int] = (),
) -> None:
    """Ends a job in a way, looks at what it left, goes on with it, and compares the results."""
    folder = plan.folder / "kill"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    job.ready(folder)
    before = {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}

    def ready() -> None:
        commands.often()
        if prepare is not None:
            prepare()

    end = forks.attempt(
        lambda: commands.run(*job.line(folder)), prepare=ready, watch=watch, limit=60
    )
    tally.peak_mib = max(tally.peak_mib, end.peak_mib)
    found = commands.faults(job, folder, before)
    if end.hung or "bug in blemish" in end.err or "Traceback" in end.err:
        tally.add("hang" if end.hung else "bug", f"{what}: {end.told}")
        return
    if statuses and end.status is not None and end.status not in (0, 1, *statuses):
        tally.note("unclear", f"{what}: status {end.status}: {end.told}")
    if statuses and end.status is None:
        tally.note("unclear", f"{what}: ended by signal {end.signal} without a word")
    changed = {name for name, content in before.items() if (folder / name).read_bytes() != content}
    if job.more or not changed:  # a refinement that is in place is done
        again = commands.finish(job, folder)
        if again.status not in (0, 1):
            found.append(f"cannot go on: {again.told}")
    if not found:
        try:
            lost, apart = commands.difference(commands.results_of(job, folder), wanted)
        except Exception as error:
            lost, apart = f"{type(error).__name__}: {error}", 0.0
        tally.apart = max(tally.apart, apart)
        found += [lost] if lost else []
    tally.remains += len(commands.remains(folder))
    tally.add("lost" if found else "right", f"{what}: {'; '.join(found)}")


def of_kills(plan: Plan) -> Iterator[Tally]:
    """Each command killed 50 times: at random moments, before each step of writing, within it."""
    inputs = _inputs(plan)
    jobs = commands.jobs(inputs)
    for number, job in enumerate(jobs):
        until = plan.before(1 / (len(jobs) - number))
        wanted, whole, steps, largest = _reference(job, plan.folder / "reference" / job.name)
        random = plan.random(5, number)
        place = plan.folder / "kill"
        ways = ("at a random moment", "before a step of writing", "within a write")
        tallies = [Tally("kills", job.name, way) for way in ways]
        for kill in range(KILLS):
            if time.monotonic() > until and kill >= 3:
                break
            tally = tallies[kill % 3]
            if kill % 3 == 0:
                after = commands.moment(random, whole.seconds)
                watch = commands.signalled(signal.SIGKILL, after)
                _ended(plan, job, tally, wanted, f"after {after:.3f} s", watch=watch)
            elif kill % 3 == 1:
                step = 1 + int(random.integers(steps))
                _ended(
                    plan,
                    job,
                    tally,
                    wanted,
                    f"step {step} of {steps}",
                    prepare=commands.killed_at(place, step),
                )
            else:
                size = commands.sizes(random, largest)
                _ended(
                    plan, job, tally, wanted, f"byte {size}", prepare=commands.killed_within(size)
                )
        yield from tallies


def of_signals(plan: Plan) -> Iterator[Tally]:
    """Ctrl-C once and twice, and SIGTERM, at random moments: a status, words, nothing lost."""
    inputs = _inputs(plan)
    ways = {"SIGINT": (signal.SIGINT, None, 130), "SIGINT twice": (signal.SIGINT, 0.05, 130)}
    ways["SIGTERM"] = (signal.SIGTERM, None, 143)
    jobs = commands.jobs(inputs)
    for number, job in enumerate(jobs):
        until = plan.before(1 / (len(jobs) - number))
        wanted, whole, _, _ = _reference(job, plan.folder / "reference" / job.name)
        tallies = {way: Tally("signals", job.name, way) for way in ways}
        random = plan.random(6, number)
        for attempt in range(30):
            if time.monotonic() > until and attempt >= 3:
                break
            way = list(ways)[attempt % 3]
            sign, again, status = ways[way]
            after = commands.moment(random, whole.seconds)
            watch = commands.signalled(sign, after, again=again)
            _ended(
                plan,
                job,
                tallies[way],
                wanted,
                f"{way} after {after:.3f} s",
                watch=watch,
                statuses=(status,),
            )
        yield from tallies.values()


def of_disks(plan: Plan) -> Iterator[Tally]:
    """Disks that are full at some size, or read-only; and standard output that takes nothing."""
    inputs = _inputs(plan)
    jobs = commands.jobs(inputs)
    for number, job in enumerate(jobs):
        until = plan.before(1 / (len(jobs) - number))
        wanted, _, _, largest = _reference(job, plan.folder / "reference" / job.name)
        tally, random = Tally("disks", job.name, "full"), plan.random(7, number)
        for attempt in range(12):
            if time.monotonic() > until and attempt >= 3:
                break
            there = sum(
                path.stat().st_size for path in plan.folder.glob("reference/refine/*.blemish")
            )
            room = (there if job.name == "refine" else 0) + commands.sizes(random, 3 * largest)
            _on_a_full_disk(job, tally, wanted, 32 + room // 1024)
        yield tally
        tally = Tally("disks", job.name, "read-only")
        _on_a_read_only_disk(job, tally)
        yield tally
    yield _told_to_nobody(inputs)


def _on_a_full_disk(job: Job, tally: Tally, wanted: Any, kib: int) -> None:
    what = f"{kib} KiB"
    with commands.disk(kib) as folder:
        if folder is None:
            tally.add("skipped")
            return
        try:
            job.ready(folder)
        except OSError:
            tally.add("skipped")  # not even room for what the command starts from
            return
        before = {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}
        end = forks.attempt(
            lambda: commands.run(*job.line(folder)), prepare=commands.often, limit=60
        )
        if not judged(tally, end, expected=(0, 1, 2), what=what):
            return
        found = commands.faults(job, folder, before)
        if commands.remains(folder):
            found.append(f"temporary files: {commands.remains(folder)}")
        if end.status == 2 and commands.remounted(folder, "size=64m"):
            again = commands.finish(job, folder)
            if again.status not in (0, 1):
                found.append(f"cannot go on: {again.told}")
            else:
                lost, apart = commands.difference(commands.results_of(job, folder), wanted)
                tally.apart = max(tally.apart, apart)
                found += [lost] if lost else []
        if found:
            tally.note("lost", f"{what}: {'; '.join(found)}")


def _on_a_read_only_disk(job: Job, tally: Tally) -> None:
    with commands.disk(8192) as folder:
        if folder is None:
            tally.add("skipped")
            return
        job.ready(folder)
        commands.remounted(folder, "ro")
        end = forks.attempt(lambda: commands.run(*job.line(folder)), limit=60)
        judged(tally, end, expected=(2,), what="read-only")
        commands.remounted(folder, "rw")


def _told_to_nobody(inputs: Path) -> Tally:
    """Commands whose standard output is full: a status and a line, no traceback."""
    tally = Tally("disks", "standard output", "full")
    lines = {
        "predict --json": (
            "predict",
            inputs / "knn.blemish",
            inputs / "new",
            "--json",
            *commands.DEVICE,
        ),
        "inspect": ("inspect", inputs / "knn.blemish"),
        "inspect --json": ("inspect", inputs / "knn.blemish", "--json"),
        "data check": ("data", "check", inputs / "new"),
        "methods": ("methods",),
        "--help": ("--help",),
        "an error as JSON": ("inspect", inputs / "nowhere", "--json"),
    }

    def full() -> None:
        os.dup2(os.open("/dev/full", os.O_WRONLY), 1)

    for what, line in lines.items():
        end = forks.attempt(lambda line=line: commands.run(*line), prepare=full)  # type: ignore[misc]
        judged(tally, end, expected=(2,), what=what)
    return tally


def of_together(plan: Plan) -> Iterator[Tally]:
    """Two processes with one output, begun at the same time: one is refused, or both are right."""
    inputs = _inputs(plan)
    jobs = commands.jobs(inputs)
    for number, job in enumerate(jobs):
        until = plan.before(1 / (len(jobs) - number))
        wanted, _, _, _ = _reference(job, plan.folder / "reference" / job.name)
        for way in ("begun anew", *(["gone on with"] if job.more else [])):
            tally = Tally("together", job.name, way)
            for attempt in range(8):
                if time.monotonic() > until and attempt >= 1:
                    break
                _two(plan, job, tally, wanted, job.more if way == "gone on with" else ())
            yield tally


def _two(plan: Plan, job: Job, tally: Tally, wanted: Any, more: Sequence[str]) -> None:
    folder = plan.folder / "two"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    job.ready(folder)
    if more and job.name == "predict":  # rows of some of the pictures
        watch = commands.signalled(signal.SIGKILL, 0.4)
        forks.attempt(lambda: commands.run(*job.line(folder)), watch=watch, limit=60)
    ends = commands.at_once([(*job.line(folder), *more)] * 2)
    for end in ends:
        if end.hung or end.status is None or "bug in blemish" in end.err or "Traceback" in end.err:
            tally.add("bug", end.told)
            return
    found = [] if any(end.status in (0, 1) for end in ends) else [f"both refused: {ends[0].told}"]
    found += commands.faults(job, folder, {})
    if not found:
        try:
            lost, apart = commands.difference(commands.results_of(job, folder), wanted)
        except Exception as error:
            lost, apart = str(error), 0.0
        tally.apart = max(tally.apart, apart)
        found += [lost] if lost else []
    tally.add("lost" if found else "right", "; ".join(found))

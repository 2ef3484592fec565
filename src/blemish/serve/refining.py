"""Learning from what was reviewed: the work of a job, in a process of its own.

    python -m blemish.serve.refining TASK.json

A detector of `lda` on a memory bank takes the good pictures and the defects in, and has a new
threshold (`blemish.detector.refine`); the thresholds of its regions come from good pictures that
were drawn at random, each left out or held out. Any other keeps what it has learned, and only its
thresholds are set anew, from good pictures that were drawn at random: those that the queue chose
because they score near the threshold would raise it (`blemish.detector.calibrate`). Pictures that
are held out are scored by both, and are never learned from, by this job or a later one: `is_held`
goes by their content.

A line of JSON for each step goes to standard output: {"stage", "done", "total"}, and in the end
{"result": …} or {"error": {"kind", "message"}}.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, Self

from blemish import interrupts
from blemish.detector.loading import load
from blemish.detector.predict import Detector
from blemish.errors import ArtifactError, BlemishError, ConfigError
from blemish.files import DOCUMENT_BYTES, read_whole
from blemish.types import ANOMALOUS, NORMAL, Failure, Prediction, Progress, Sample

How = Literal["refine", "calibrate"]
HELD = 4  # of so many reviewed pictures one is held out
_PAUSE = 0.2  # seconds between two lines of progress


@dataclass(frozen=True, kw_only=True)
class Item:
    """A reviewed picture.

    Attributes:
        digest: of its decoded pixels. path: its file. defective: what its reviewers say.
        defect: its type, and mask: a file that marks it; "" without.
        drawn: whether it came to be reviewed at random, or by itself, and not for its score.
    """

    digest: str
    path: str
    defective: bool
    defect: str = ""
    mask: str = ""
    drawn: bool = False

    @property
    def sample(self) -> Sample:
        """As a picture to learn from."""
        return Sample(
            path=Path(self.path),
            label=ANOMALOUS if self.defective else NORMAL,
            mask=Path(self.mask) if self.mask else None,
            defect=self.defect if self.defective else "good",
        )


@dataclass(frozen=True, kw_only=True)
class Task:
    """What a job is to do.

    Attributes:
        artifact: the file of the version that it begins with. draft: where the new one is written.
        how: "refine" or "calibrate".
        learn, held: the pictures that it learns from, and those that it is judged by.
        rate: false-alarm rate of the new threshold; None = as it was.
        engine, device, precision, threads: as of `blemish.load`.
    """

    artifact: str
    draft: str
    how: How
    learn: tuple[Item, ...]
    held: tuple[Item, ...]
    rate: float | None = None
    engine: str = "auto"
    device: str = "auto"
    precision: str = "auto"
    threads: int | None = None

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """Of what `to_dict` gave."""
        items = {name: tuple(Item(**one) for one in values[name]) for name in ("learn", "held")}
        return cls(**{**values, **items})


def is_held(digest: str) -> bool:
    """Whether a reviewed picture is held out: one in four, the same for ever.

    Example:
        >>> sum(is_held(f"{n:032x}") for n in range(100))
        25
    """
    return int(digest[-8:], 16) % HELD == 0


def way_of(detector: Detector) -> tuple[How, str]:
    """How a detector can take in what was reviewed, and why not by learning; "" where it can."""
    if getattr(detector.engine, "method", None) is None:
        return "calibrate", "an exported graph cannot learn; serve the artifact that it is of"
    from blemish.detector.refine import check_refinable

    try:
        check_refinable(detector)
    except ConfigError as error:
        return "calibrate", str(error)
    return "refine", ""


def work(task: Task, tell: Progress) -> dict[str, Any]:
    """Do a job: the new version lies at `task.draft` then.

    Returns: what came of it, JSON-ready: `how`, `learned` (good, defects, known, failures),
        `thresholds` and `regions` (before, after), and `held`: of each version how many good
        pictures raised an alarm and how many defects were found, and a row for each picture.
    Raises: BlemishError as `refine`, `recalibrate` and `load`.
    """
    before = load(
        task.artifact,
        engine=task.engine,
        device=task.device,
        precision=task.precision,
        threads=task.threads,
    )
    after, learned = (_refined if task.how == "refine" else _calibrated)(before, task, tell)
    known = before.learned
    held = [one for one in task.held if one.digest not in known]
    rows = _compared(before, after, held, tell)
    after.save(task.draft)
    return {
        "how": task.how,
        "learned": learned,
        "thresholds": {
            name: None if one.threshold is None else one.threshold.value
            for name, one in (("before", before), ("after", after))
        },
        "regions": {"before": _regions(before), "after": _regions(after)},
        "held": {"known": len(task.held) - len(held), **_counted(rows), "rows": rows},
    }


def _refined(before: Detector, task: Task, tell: Progress) -> tuple[Detector, dict[str, Any]]:
    from blemish.detector.refine import refine

    good = [one.sample for one in task.learn if not one.defective]
    defects = [one.sample for one in task.learn if one.defective]
    held = [one.sample for one in task.held if one.drawn and not one.defective]
    found = refine(
        before,
        good=good or None,
        anomalies=defects or None,
        held=held or None,
        drawn={one.path for one in task.learn if one.drawn},
        false_alarm_rate=task.rate,
        progress=tell,
    )
    told, digests = found.to_dict(), _digests(task)
    told["contradictions"] = [digests.get(path, "") for path in found.contradictions]
    return found.detector, {**told, "failures": _shown(found.failures, task)}


def _calibrated(before: Detector, task: Task, tell: Progress) -> tuple[Detector, dict[str, Any]]:
    from blemish.detector.calibrate import recalibrate

    good = [one.sample for one in task.learn if not one.defective and one.drawn]
    rate = task.rate
    if rate is None and before.threshold is not None:
        rate = before.threshold.rate
    after, failures, known = recalibrate(before, good, false_alarm_rate=rate, progress=tell)
    read = len(good) - known - len(failures)
    told = {"good": read, "defects": 0, "known": known, "failures": _shown(failures, task)}
    return after, told


def _regions(detector: Detector) -> dict[str, Any] | None:
    """The threshold of the regions of defects, of how many pictures, and why there is none."""
    regions = detector.record.regions
    if regions is None or regions.threshold is None:
        return None
    told = regions.threshold
    return {"threshold": told.value, "pictures": told.n, "reason": told.reason}


def _shown(failures: Sequence[Failure], task: Task) -> list[dict[str, str]]:
    """Pictures that could not be read, by their digests: where they lie is nobody's business."""
    digests = _digests(task)
    return [{"picture": digests.get(one.source, ""), "error": one.reason} for one in failures]


def _digests(task: Task) -> dict[str, str]:
    """Those of the pictures, by their paths."""
    return {one.path: one.digest for one in (*task.learn, *task.held)}


def _compared(
    before: Detector, after: Detector, held: Sequence[Item], tell: Progress
) -> list[dict[str, Any]]:
    """A row for each picture that is held out, with what both say of it."""
    rows: list[dict[str, Any]] = []
    paths = [one.sample for one in held]
    pairs = zip(before.predict_many(paths), after.predict_many(paths), strict=True)
    for done, (item, results) in enumerate(zip(held, pairs, strict=True), start=1):
        tell("comparing", done, len(held))
        row: dict[str, Any] = {"picture": item.digest, "defective": item.defective}
        row |= {"defect": item.defect}
        for name, result in zip(("before", "after"), results, strict=True):
            if isinstance(result, Prediction):
                row[name] = {
                    "score": result.score,
                    "threshold": result.threshold,
                    "label": result.label,
                }
        if "before" in row and "after" in row:
            rows.append(row)
    return rows


def _counted(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """How many good pictures and defects were compared, and how many of them raised an alarm."""
    good = [row for row in rows if not row["defective"]]
    bad = [row for row in rows if row["defective"]]

    def alarms(of: Sequence[Mapping[str, Any]], when: str) -> int:
        return sum(row[when]["label"] == ANOMALOUS for row in of)

    return {
        "good": len(good),
        "defects": len(bad),
        **{
            when: {"false_alarms": alarms(good, when), "found": alarms(bad, when)}
            for when in ("before", "after")
        },
    }


class Tell:
    """Progress as lines, few of them."""

    def __init__(self) -> None:
        self._last = -_PAUSE

    def __call__(self, stage: str, done: int, total: int) -> None:
        now = time.monotonic()
        if done >= total or now - self._last >= _PAUSE:
            self._last = now
            say({"stage": stage, "done": done, "total": total})


def say(row: Mapping[str, Any]) -> None:
    """A line for who started the job."""
    print(json.dumps(row), flush=True)


def main(arguments: Sequence[str]) -> int:
    """Do the task in a file. Returns: the exit status; what went wrong stands in the last line."""
    if hasattr(os, "nice"):
        os.nice(10)  # what the service scores goes first
    try:
        with interrupts.heard():
            content = read_whole(Path(arguments[0]), limit=DOCUMENT_BYTES, error=ArtifactError)
            say({"result": work(Task.from_dict(json.loads(content)), Tell())})
        return 0
    except BlemishError as error:
        say({"error": {"kind": type(error).__name__, "message": str(error)}})
    except MemoryError:
        say({"error": {"kind": "MemoryError", "message": "there was not enough memory for it"}})
    return 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

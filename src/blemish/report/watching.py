"""Scoring of what arrives: a row for each picture, once, and the picture to its place."""

from __future__ import annotations

import time
from collections import Counter, deque
from collections.abc import Collection, Generator, Iterable, Iterator
from contextlib import closing
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, cast

from blemish.data.arrivals import Arrivals, Stamp
from blemish.data.frames import pause_after, rest
from blemish.detector.predict import Detector
from blemish.errors import BlemishError, InputError
from blemish.images import decode
from blemish.interrupts import Waiting
from blemish.report.journal import Row, row_of
from blemish.report.ledger import Ledger, stamp_of
from blemish.report.predictions import OVERLAY_SIDE, save
from blemish.report.sorting import DEFECT, GOOD, UNSURE, Sorter
from blemish.text import pluralize
from blemish.types import ANOMALOUS, Failure, Frame, Prediction, Progress

Result = Prediction | Failure
_OF_A_FRAME = Stamp(0, 0)


@dataclass
class Tally:
    """What came of a watch. Attributes: verdicts: how many of each, failed ones among "unsure"."""

    scored: int = 0
    alarms: int = 0
    failed: int = 0
    verdicts: Counter[str] = field(default_factory=Counter)

    def __str__(self) -> str:
        unread = f", {self.failed} not readable" if self.failed else ""
        return f"{self.scored} scored, {pluralize(self.alarms, 'alarm')}{unread}"


def verdict_of(result: Result, margin: float) -> str:
    """Where a picture belongs: good, defect, or unsure where its score lies within `margin` of the
    threshold, there is none, or it could not be read."""
    if isinstance(result, Failure) or result.label is None or result.threshold is None:
        return UNSURE
    if margin and abs(result.score - result.threshold) <= margin:
        return UNSURE
    return DEFECT if result.label == ANOMALOUS else GOOD


class Watch:
    """Scores pictures as they come, until they end or an interrupt is noted in `came`.

    Args:
        detector, how: what scores them, and what `Detector.predict_many` is to be told.
        ledger: where the rows go, and which pictures have one.
        came: interrupts that wait, see `interrupts.waiting`: a row is written whole.
        sorter: what puts the pictures into folders; None = they stay.
        margin: see `verdict_of`.
        saved, side: what is written of each picture, as of `predictions.record`; nothing else is
            drawn.
    Attributes:
        tally: what has come so far, without the rows of earlier runs.
    """

    def __init__(
        self,
        detector: Detector,
        ledger: Ledger,
        came: Waiting,
        *,
        sorter: Sorter | None,
        margin: float,
        progress: Progress,
        saved: Collection[str] = (),
        side: int | None = OVERLAY_SIDE,
        **how: Any,
    ) -> None:
        self.tally = Tally()
        self._detector, self._ledger, self._came, self._how = detector, ledger, came, how
        self._sorter, self._margin, self._progress = sorter, margin, progress
        self._saved, self._side = saved, side

    def stop(self) -> bool:
        """Whether an interrupt has come."""
        return bool(self._came.number)

    def folder(self, arrivals: Arrivals, *, once: bool, interval: float) -> None:
        """What lies in a folder, and then what comes.

        Args: once: end when nothing is left. interval: seconds between two looks.
        """
        self._end_last_move()
        while not self.stop():
            # Of the time that a look takes, scoring is no part.
            clock = _Clock(arrivals.look())
            for frame, result in self._scored(clock):
                assert isinstance(frame, Frame)
                if not arrivals.postpone(frame, broken=isinstance(result, Failure)):
                    self._record(frame, result, arrivals.stamp_of(frame))
                    arrivals.finish(frame)
            if once and not arrivals.waiting:
                return
            rest(pause_after(clock.took, interval), self.stop)

    def stream(self, frames: Iterable[Frame | Failure], *, live: bool) -> None:
        """The frames of a camera (`live`) or a video; those that have a row are left out."""
        new = (one for one in frames if (_name(one), _OF_A_FRAME) not in self._ledger.taken)
        for one, result in self._scored(new):
            self._record(one, result, None, dated=live)

    def _scored(
        self, coming: Iterable[Frame | Failure]
    ) -> Iterator[tuple[Frame | Failure, Result]]:
        """Each picture with what was found in it."""
        under_way: deque[Frame | Failure] = deque()

        def noted() -> Iterator[Frame | Failure]:
            for one in coming:
                if self.stop():
                    return
                under_way.append(one)
                yield one

        results = cast(Generator[Result], self._detector.predict_many(noted(), **self._how))
        with closing(results):
            for result in results:
                yield under_way.popleft(), result
                if self.stop():
                    return

    def _record(
        self, one: Frame | Failure, result: Result, stamp: Stamp | None, *, dated: bool = True
    ) -> None:
        """What is kept of a picture, the picture to its place and its row to the disk; in this
        order, for whoever is killed in between."""
        verdict = verdict_of(result, self._margin)
        with self._came.whole():
            kept = self._kept(one, result, stamp)
            placed = self._put(one, verdict)
            row: Row = {**row_of(result), "verdict": verdict, "sorted": placed, "time": None}
            row |= kept
            row["scored_at"] = _moment(time.time())
            if isinstance(one, Frame):
                row["time"] = _moment(one.time) if dated else one.time
            if stamp is not None:
                row |= {"bytes": stamp.size, "written_ns": stamp.written}
            self._ledger.add(row)
            if self._sorter is not None and stamp is not None:
                self._sorter.leave(Path(row["path"]), placed)
        tally = self.tally
        tally.scored += isinstance(result, Prediction)
        tally.failed += isinstance(result, Failure)
        tally.alarms += isinstance(result, Prediction) and result.label == ANOMALOUS
        tally.verdicts[verdict] += 1
        self._progress(f"watching · {tally}", tally.scored + tally.failed, 0)

    def _kept(self, one: Frame | Failure, result: Result, stamp: Stamp | None) -> dict[str, Any]:
        """The files of a picture, written under a name that is the same if it is scored again; and
        its notes with a reason, where it is gone or broken by now."""
        if isinstance(result, Failure) or not self._saved:
            return {}
        # A file that is written anew under the same name is another picture.
        version = "" if stamp is None else f" {stamp.size} {stamp.written}"
        told: dict[str, Any] = {"picture": one, "version": version}
        folder = self._ledger.folder
        assert folder is not None  # a ledger has one
        try:
            return save(result, self._detector, folder, self._saved, self._side, **told)
        except InputError as error:
            return {"notes": [*result.notes, f"not drawn: {error}"]}

    def _put(self, one: Frame | Failure, verdict: str) -> str:
        if self._sorter is None or isinstance(one, Failure):
            return ""
        if isinstance(one.source, Path):
            return self._sorter.put(one.source, verdict)
        try:
            pixels = decode(one, window=self._detector.preprocessing.decode_window()).as_uint8()
        except BlemishError:  # it is no picture, which its row says
            return ""
        return self._sorter.put_pixels(one.name, pixels, verdict)

    def _end_last_move(self) -> None:
        """Of a process that was killed between a row and the last step of its move."""
        row = self._ledger.last
        if self._sorter is None or row is None:
            return
        path = Path(row["path"])
        try:
            same = Stamp.of(path) == stamp_of(row)
        except OSError:
            return
        if same:
            self._sorter.leave(path, row.get("sorted", ""))


class _Clock:
    """What an iterator gives, and the seconds that it took to."""

    def __init__(self, coming: Iterator[Frame]) -> None:
        self._coming, self.took = coming, 0.0

    def __iter__(self) -> Iterator[Frame]:
        return self

    def __next__(self) -> Frame:
        began = time.monotonic()
        try:
            return next(self._coming)
        finally:
            self.took += time.monotonic() - began


def _name(one: Frame | Failure) -> str:
    return one.name if isinstance(one, Frame) else one.source


def _moment(seconds: float) -> str:
    """A time since 1970 in ISO 8601; "" where a file claims one that there is not.

    Example:
        >>> _moment(0.25)
        '1970-01-01T00:00:00.250000Z'
    """
    try:
        moment = datetime.fromtimestamp(seconds, UTC).isoformat(timespec="microseconds")
    except (ValueError, OverflowError, OSError):
        return ""
    return moment.replace("+00:00", "Z")

"""What `blemish predict` and `blemish evaluate` leave behind: rows, tables, overlays, figures, report entries.

A folder of predictions holds

    run.json             what the rows were made with
    predictions.jsonl    a row per picture, in the order in which they were scored; one that is broken has an "error"
    predictions.csv      the same rows as a table, written at the end
    overlays/            every picture with its heatmap, and the crop that was looked at again as a rectangle; where
                         the method tells where it looked, beside it a file `.saliency.png` that shows that. The longer
                         side is at most 1,600 pixels, unless another size is asked for

A row is written when its overlay is, so that whatever a killed run leaves behind can be gone on from.
"""

from __future__ import annotations

import csv
import hashlib
import heapq
import io
import json
import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import cv2
import numpy as np
import numpy.typing as npt

from blemish.compute import precision_name
from blemish.config import parse_json
from blemish.data.folder import is_file, place_of
from blemish.data.stream import map_ahead
from blemish.detector.predict import Detector
from blemish.detector.sources import batch_begun
from blemish.errors import ArtifactError, BlemishError, OutputError
from blemish.files import (
    ARTIFACT_BYTES,
    DOCUMENT_BYTES,
    ROWS_BYTES,
    cannot_write,
    check_writable,
    locked,
    open_regular,
    read_whole,
    write_whole,
)
from blemish.images import decode, within_memory
from blemish.metrics.ranking import precision_recall_curve, roc_curve
from blemish.report import figures
from blemish.report.heatmap import (
    SALIENCY_SCALE,
    encode_jpeg,
    outline,
    overlay,
    save_png,
    thumbnail,
)
from blemish.report.html import Entry
from blemish.report.rows import read_row
from blemish.types import ANOMALOUS, NORMAL, Evaluation, Failure, Prediction, Sample

EMBEDDED = 200  # pictures shown in a report: more would make the file unusable
OVERLAY_SIDE = 1600  # pixels of the longer side of an overlay: drawn at 5,000² they take longer than the scores
_THUMBNAIL = 384  # pixels of the longer side of a picture in a report
_AHEAD = 4  # overlays that may be under way at once
_WORST = 20  # of each kind of mistake, as files of their own
_ROWS, _RUN, _TABLE, _OVERLAYS = "predictions.jsonl", "run.json", "predictions.csv", "overlays"
_BREAKS = frozenset("\x7f\x85\u2028\u2029")  # what else some programs take for the end of a line
_BOX = (
    "box_x",
    "box_y",
    "box_width",
    "box_height",
)  # of the crop, as fractions of the picture's width and height
_COLUMNS = (
    "path",
    "score",
    "label",
    "threshold",
    "votes",
    *_BOX,
    "adapted",
    "category",
    "category_assigned",
    "height",
    "width",
    "digest",
    "notes",
    "overlay",
    "saliency",
    "error",
)

Row = dict[str, Any]
Pixels = npt.NDArray[np.uint8]


class Journal:
    """The rows of one `blemish predict`, in memory and, if there is a folder, on disk as they come.

    Args:
        folder: where the rows go; None = nowhere.
        artifact: the artifact's file; rows of another one are never added to.
        precision: that the scores are computed in.
        ways: how the pictures are judged, by name: rows made in another way are never added to.
        resume: go on in a folder that has rows already.
    Attributes:
        rows: those of an earlier run first. A row has "path", and "score" or "error".
    Raises: OutputError when the folder cannot be written, or has rows and these are not to be or cannot be gone on
        from.
    """

    def __init__(
        self,
        folder: Path | None,
        *,
        artifact: Path,
        precision: str,
        ways: Mapping[str, str],
        resume: bool,
    ) -> None:
        self.folder = folder
        self.rows: list[Row] = []
        self._file: io.BufferedWriter | None = None
        self._open = ExitStack()
        if folder is None:
            return
        run = {
            "artifact": _sha256(artifact),
            "precision": precision,
            **ways,
            "folder": str(Path.cwd()),
        }
        place = folder / _ROWS
        check_writable(place)
        self._open.enter_context(locked(place))
        with self._open as started:
            self._begin(place, run, resume=resume)
            self._open = started.pop_all()

    def _begin(self, place: Path, run: Mapping[str, str], *, resume: bool) -> None:
        folder = place.parent
        if place.exists():
            if not resume:
                raise OutputError(
                    f"{folder}: holds predictions already; go on from them with --resume, or name another folder"
                )
            _check_same(folder, run)
            self.rows, end = _earlier(place)
            os.truncate(place, end)
        else:
            write_whole(folder / _RUN, json.dumps(run, indent=2).encode())
        try:
            self._file = self._open.enter_context(place.open("ab"))
        except OSError as error:
            raise cannot_write(place, error) from error

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._open.close()

    @property
    def done(self) -> set[str]:
        """The paths of the pictures that have a row."""
        return {row["path"] for row in self.rows}

    def remaining(self, pictures: Sequence[Path], batch_size: int) -> tuple[list[Path], int]:
        """The pictures to go on with, and how many of the first of them have a row already.

        These make up the batch that was interrupted, so that the scores of the others are to the bit what they would
        have been. Where the pictures are not those of the earlier run in its order, they are those without a row.
        """
        earlier = {place_of(Path(row["path"])): "error" not in row for row in self.rows}
        places = [place_of(picture) for picture in pictures]
        todo = [
            picture for picture, place in zip(pictures, places, strict=True) if place not in earlier
        ]
        done = len(pictures) - len(todo)
        if not todo or list(earlier) != places[:done]:
            return todo, 0
        again = batch_begun(earlier.values(), batch_size)
        return [*pictures[done - again : done], *todo], again

    @property
    def failures(self) -> list[Failure]:
        """The pictures that could not be scored."""
        return [
            Failure(source=row["path"], reason=row["error"]) for row in self.rows if "error" in row
        ]

    @property
    def scored(self) -> list[Row]:
        """The rows with a score, the highest first."""
        return sorted(
            (row for row in self.rows if "error" not in row), key=lambda row: -row["score"]
        )

    def add(self, row: Row) -> None:
        """Keep a row, and have it on its way to the disk when this returns. Raises: OutputError."""
        if self._file is not None and self.folder is not None:
            try:
                self._file.write(json.dumps(row, allow_nan=False).encode() + b"\n")
                self._file.flush()
            except OSError as error:
                raise cannot_write(self.folder / _ROWS, error) from error
        self.rows.append(row)

    def write_table(self) -> None:
        """All rows as predictions.csv, if there is a folder. Raises: OutputError."""
        if self.folder is None:
            return
        text = io.StringIO()
        table = csv.DictWriter(text, _COLUMNS, extrasaction="ignore", lineterminator="\n")
        table.writeheader()
        for row in self.rows:
            box = dict(zip(_BOX, row.get("box") or (), strict=False))
            cells = {**row, **box, "notes": "; ".join(row.get("notes", ()))}
            table.writerow({name: _cell(cells[name]) for name in _COLUMNS if name in cells})
        write_whole(self.folder / _TABLE, text.getvalue().encode("utf-8", "backslashreplace"))


def _cell(value: Any) -> Any:
    """A value as a cell that is one line, and that no spreadsheet takes for a formula: predictions.jsonl has it as is.

    Example:
        >>> _cell("=1+1"), _cell("a\\rb"), _cell(-0.5)
        ("'=1+1", 'a\\\\rb', -0.5)
    """
    if not isinstance(value, str):
        return value
    guarded = f"'{value}" if value.startswith(("=", "+", "-", "@", "\t", "\r", "\n")) else value
    return "".join(
        sign if sign not in _BREAKS and ord(sign) >= 32 else sign.encode("unicode_escape").decode()
        for sign in guarded
    )


def _sha256(path: Path) -> str:
    with open_regular(path, limit=ARTIFACT_BYTES, error=ArtifactError) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _check_same(folder: Path, run: Mapping[str, str]) -> None:
    try:
        earlier = {
            "category": "",
            "adapt": "",
            "scales": "",
            "threshold": "",
            **parse_json(read_whole(folder / _RUN, limit=DOCUMENT_BYTES, error=OutputError)),
        }
        other = [key for key, value in run.items() if earlier[key] != value]
    except (OutputError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise OutputError(
            f"{folder / _RUN}: does not say what the rows were made with; name another folder"
        ) from error
    if other:
        differs = {
            "artifact": "another artifact",
            "precision": "another precision",
            "category": "another category",
            "adapt": "another --adapt",
            "scales": "other --scales",
            "threshold": "another --threshold",
            "folder": "another working folder",
        }
        raise OutputError(
            f"{folder}: the predictions there were made with {' and '.join(differs[key] for key in other)}; "
            "resume as they were made, or name another folder"
        )


def _earlier(place: Path) -> tuple[list[Row], int]:
    """The rows of an earlier run, and where the last whole one ends: a killed run may leave half a line."""
    rows: list[Row] = []
    end = 0
    lines = read_whole(place, limit=ROWS_BYTES, error=OutputError).splitlines(keepends=True)
    for number, line in enumerate(lines, start=1):
        try:
            if not line.endswith(b"\n"):
                raise ValueError("it is cut short")
            rows.append(read_row(line))
        except ValueError as error:
            if number < len(lines):
                reason = f"{place}: line {number} is damaged ({error}); name another folder"
                raise OutputError(reason) from error
            break
        end += len(line)
    return rows, end


def record(
    journal: Journal,
    detector: Detector,
    results: Iterable[Prediction | Failure],
    gallery: Gallery,
    *,
    side: int | None = OVERLAY_SIDE,
) -> Iterator[Row]:
    """Draws, writes down and gives back what comes, row by row and in order.

    Args: side: pixels of the longer side of the overlays; None = as large as the pictures, 0 = no overlays.
    """
    folder = None if side == 0 else journal.folder

    def drawn(result: Prediction | Failure) -> tuple[Prediction | Failure, dict[str, str]]:
        if folder is None or isinstance(result, Failure):
            return result, {}
        view = View.of(result, detector, side)
        stem = f"{_OVERLAYS}/{file_name(result.source)}"
        files = {"overlay": f"{stem}.png"}
        save_png(folder / files["overlay"], view.heatmap)
        if view.saliency is not None:
            files["saliency"] = f"{stem}.saliency.png"
            save_png(folder / files["saliency"], view.saliency)
        return result, files

    for result, files in map_ahead(drawn, results, ahead=_AHEAD):
        row = {**result.to_dict(), **files}
        journal.add(row)
        if isinstance(result, Prediction):
            gallery.add(result, rank=result.score)
        yield row


class Gallery:
    """The predictions of the highest rank, at most `limit`: what a report can show of any number of pictures."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._heap: list[tuple[float, int, Prediction]] = []
        self._count = 0

    def add(self, prediction: Prediction, *, rank: float) -> None:
        self._count += (
            1  # of two with the same rank the earlier one stays, and predictions are never compared
        )
        if len(self._heap) == self._limit and rank <= self._heap[0][0]:
            return
        # The maps are slices of their batch's, which must not be kept alive; nor must a full-size heatmap.
        saliency = None if prediction.saliency is None else prediction.saliency.copy()
        kept = replace(prediction, anomaly_map=prediction.anomaly_map.copy(), saliency=saliency)
        heapq.heappush(self._heap, (rank, -self._count, kept))
        if len(self._heap) > self._limit:
            heapq.heappop(self._heap)

    def __iter__(self) -> Iterator[Prediction]:
        """The highest rank first."""
        return (
            prediction
            for _, _, prediction in sorted(self._heap, key=lambda item: item[:2], reverse=True)
        )


@dataclass(frozen=True, slots=True)
class View:
    """A picture as a person sees it, each uint8 H W 3.

    Attributes:
        picture: as it is. heatmap: tinted by what was found in it, with the crop's rectangle where there is one.
        saliency: the same for where the method looked; None for methods that do not tell.
    """

    picture: Pixels
    heatmap: Pixels
    saliency: Pixels | None

    @classmethod
    def of(cls, prediction: Prediction, detector: Detector, max_side: int | None = None) -> Self:
        """At the original size, or reduced to a longer side of `max_side` pixels.

        Raises: ImageError if the picture is gone or broken by now.
        """
        with within_memory(prediction.source):
            picture: Pixels = decode(
                prediction.source, window=detector.preprocessing.decode_window()
            ).as_uint8()
            if max_side is not None:
                picture = thumbnail(picture, max_side)
            height, width = picture.shape[:2]

            def tinted(values: np.ndarray, scale: tuple[float, float]) -> Pixels:
                tint = overlay(
                    picture,
                    cv2.resize(values, (width, height), interpolation=cv2.INTER_LINEAR),
                    scale,
                )
                return tint if prediction.box is None else outline(tint, prediction.box)

            return cls(
                picture,
                tinted(prediction.anomaly_map, detector.map_scale),
                None
                if prediction.saliency is None
                else tinted(prediction.saliency, SALIENCY_SCALE),
            )


def file_name(source: str) -> str:
    """A file name (without suffix) that is safe everywhere and different for every source.

    Example:
        >>> file_name("a/b/part no. 3.png")
        'part_no._3-1fa41ab7440a'
    """
    return f"{safe_stem(source)}-{hashlib.sha256(os.fsencode(source)).hexdigest()[:12]}"


def safe_stem(source: str) -> str:
    """The source's own name without folder and suffix, as far as it is safe everywhere; others may have the same."""
    return re.sub(r"[^A-Za-z0-9._-]+", "_", Path(source).stem)[:60].lstrip(".") or "picture"


def prediction_entries(journal: Journal, detector: Detector, gallery: Gallery) -> list[Entry]:
    """Every scored picture for the report, the highest scores with their pictures.

    Those of an earlier run are scored once more for that: their maps were not kept.
    """
    shown = {prediction.source: prediction for prediction in gallery}
    highest = [row["path"] for row in journal.scored[:EMBEDDED]]
    again = [path for path in highest if path not in shown and is_file(Path(path))]
    if again:
        more = detector.predict_many(again)
        shown |= {result.source: result for result in more if isinstance(result, Prediction)}
    thumbnails = _thumbnails([shown[path] for path in highest if path in shown], detector)
    return [
        Entry(
            source=row["path"],
            score=row["score"],
            verdict=row["label"],
            category=row["category"],
            notes=tuple(row["notes"]),
            **thumbnails.get(row["path"], {}),
        )
        for row in journal.scored
    ]


def _thumbnails(predictions: Iterable[Prediction], detector: Detector) -> dict[str, dict[str, Any]]:
    """By source, the `picture` and `overlay` of its entry, small JPEG files, and the `box` drawn there; nothing for a
    picture that is gone by now."""

    def drawn(prediction: Prediction) -> tuple[str, dict[str, Any]]:
        try:
            view = View.of(prediction, detector, _THUMBNAIL)
        except BlemishError:
            return prediction.source, {}
        shown = {
            "picture": encode_jpeg(view.picture),
            "overlay": encode_jpeg(view.heatmap),
            "box": prediction.box,
        }
        return prediction.source, shown

    return dict(map_ahead(drawn, predictions, ahead=_AHEAD))


class Mistakes:
    """The pictures of an evaluation that a person should look at: low defects, high good ones.

    `add` goes to `blemish.evaluate` as `on_prediction`.
    """

    def __init__(self) -> None:
        self._defects, self._good = Gallery(EMBEDDED // 2), Gallery(EMBEDDED // 2)
        self._notes: dict[str, tuple[str, ...]] = {}

    def add(self, sample: Sample, prediction: Prediction) -> None:
        if prediction.notes:
            self._notes[prediction.source] = prediction.notes
        if sample.label == ANOMALOUS:
            self._defects.add(prediction, rank=-prediction.score)
        else:
            self._good.add(prediction, rank=prediction.score)

    def entries(self, evaluation: Evaluation, detector: Detector) -> list[Entry]:
        """Every scored picture for the report, the worst of both kinds with their pictures."""
        thumbnails = _thumbnails([*self._defects, *self._good], detector)
        return [
            Entry(
                source=row["path"],
                score=row["score"],
                verdict=row["label"],
                truth=row["truth"],
                defect=row["defect"],
                category=row["category"],
                notes=self._notes.get(row["path"], ()),
                **thumbnails.get(row["path"], {}),
            )
            for row in evaluation.rows
        ]

    def write(self, folder: Path, detector: Detector, *, side: int | None = OVERLAY_SIDE) -> None:
        """Overlays of the defects with the lowest and the good pictures with the highest scores, worst first."""
        for name, gallery in (("defective", self._defects), ("good", self._good)):
            for place, prediction in zip(range(1, _WORST + 1), gallery, strict=False):
                path = folder / f"{name}-{place:02d}-{file_name(prediction.source)}.png"
                save_png(path, View.of(prediction, detector, side).heatmap)


def write_evaluation(
    folder: Path,
    evaluation: Evaluation,
    mistakes: Mistakes,
    detector: Detector,
    *,
    side: int | None = OVERLAY_SIDE,
) -> None:
    """evaluation.json, the figures as SVG, and overlays in worst/ (`side`: as of `record`). Raises: OutputError."""
    write_whole(
        folder / "evaluation.json",
        json.dumps(evaluation.to_dict(), indent=2, allow_nan=False).encode(),
    )
    scores = [row["score"] for row in evaluation.rows]
    truth = [row["truth"] for row in evaluation.rows]
    good, defective = (_of(label, scores, truth) for label in (NORMAL, ANOMALOUS))
    histogram = figures.score_histogram(good, defective, threshold=evaluation.threshold)
    write_whole(folder / "histogram.svg", histogram)
    if (curve := roc_curve(scores, truth)) is not None:
        write_whole(folder / "roc.svg", figures.roc(*curve, evaluation.image_auroc))
    if (curve := precision_recall_curve(scores, truth)) is not None:
        write_whole(folder / "pr.svg", figures.precision_recall(*curve, evaluation.image_ap))
    if side != 0:
        mistakes.write(folder / "worst", detector, side=side)


def _of(label: int, scores: Sequence[float], truth: Sequence[int]) -> list[float]:
    return [score for score, known in zip(scores, truth, strict=True) if known == label]


def precision_of(detector: Detector) -> str:
    """The name of the precision that a detector computes in."""
    return precision_name(detector.method.precision)

"""What a person sees of predictions: overlays, the pictures in a report, the worst mistakes.

A folder of predictions holds, beside its rows (`journal`), what is asked for of `SAVED`:

    overlays/NAME.png    the picture with its heatmap, its regions outlined, and the crop that was
                         looked at again as a rectangle; where the method tells where it looked,
                         beside it NAME.saliency.png. The longer side is at most 1,600 pixels,
                         unless another size is asked for
    masks/NAME.png       its regions: 8-bit grey, 255 in any, 0 elsewhere, at the original size
    maps/NAME.npy        its anomaly map: float32 h w in the unit of the score, at the resolution
                         that the method works in
    maps/NAME.tiff       the same as a TIFF picture of one float32 channel ("tiff")
"""

from __future__ import annotations

import hashlib
import heapq
import io
import json
import os
import re
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Self

import cv2
import numpy as np
import numpy.typing as npt

from blemish.data.ahead import map_ahead
from blemish.data.folder import is_file
from blemish.detector.predict import Detector
from blemish.errors import BlemishError, ImageError
from blemish.files import write_whole
from blemish.images import Picture, decode, open_windows, within_memory
from blemish.report import charts
from blemish.report.heatmap import (
    SALIENCY_SCALE,
    contours,
    encode_jpeg,
    encode_map,
    encode_mask,
    faded,
    outline,
    overlay,
    reduced,
    save_png,
    thumbnail,
)
from blemish.report.html import Entry
from blemish.report.journal import Journal, Row, row_of
from blemish.types import ANOMALOUS, Evaluation, Failure, Prediction, Sample

SAVED = ("masks", "maps", "tiff", "overlays")
EMBEDDED = 200  # pictures shown in a report: more would make the file unusable
OVERLAY_SIDE = (
    1600  # pixels of an overlay's longer side: at 5,000² drawing takes longer than scoring
)
_THUMBNAIL = 384  # pixels of the longer side of a picture in a report
_AHEAD = 4  # overlays that may be under way at once
_WORST = 20  # of each kind of mistake, as files of their own

Pixels = npt.NDArray[np.uint8]


def record(
    journal: Journal,
    detector: Detector,
    results: Iterable[Prediction | Failure],
    gallery: Gallery,
    *,
    saved: Collection[str] = ("overlays",),
    side: int | None = OVERLAY_SIDE,
) -> Iterator[Row]:
    """Draws, writes down and gives back what comes, row by row and in order.

    Args:
        saved: of `SAVED`, what is written of each picture; nothing else is drawn. A picture without
            a region threshold has no mask.
        side: pixels of the longer side of the overlays; None = as large as the pictures, 0 = no
            overlays.
    """
    wanted = set(saved) - ({"overlays"} if side == 0 else set())

    def kept(result: Prediction | Failure) -> tuple[Prediction | Failure, Row]:
        files = {}
        if isinstance(result, Prediction) and journal.folder is not None:
            files = save(result, detector, journal.folder, wanted, side)
        return result, {**row_of(result), **files}

    for result, row in map_ahead(kept, results, ahead=_AHEAD):
        journal.add(row)
        if isinstance(result, Prediction):
            gallery.add(result, rank=result.score)
        yield row


def save(
    prediction: Prediction,
    detector: Detector,
    folder: Path,
    wanted: Collection[str],
    side: int | None,
    *,
    picture: Any = None,
    version: str = "",
) -> dict[str, str]:
    """Writes what is wanted of one picture; gives the names of the files as its row has them.

    Args:
        picture: what it was decoded from, where that is no file of the name `prediction.source`.
        version: of the picture, where others may come under the same name.
    Raises: OutputError; ImageError if the picture is gone or broken by now, or memory runs out.
    """
    name, files = file_name(prediction.source, version), {}
    if "masks" in wanted and prediction.regions is not None:
        files["mask"] = f"masks/{name}.png"
        with within_memory(prediction.source):
            mask = prediction.mask
            assert mask is not None  # as there are regions
            write_whole(folder / files["mask"], encode_mask(mask), picture=True)
    if "maps" in wanted:
        files["map"] = f"maps/{name}.npy"
        content = io.BytesIO()
        np.save(content, prediction.anomaly_map.astype(np.float32, copy=False))
        write_whole(folder / files["map"], content.getvalue())
    if "tiff" in wanted:
        files["tiff"] = f"maps/{name}.tiff"
        write_whole(folder / files["tiff"], encode_map(prediction.anomaly_map), picture=True)
    if "overlays" in wanted:
        view = View.of(prediction, detector, side, picture)
        files["overlay"] = f"overlays/{name}.png"
        save_png(folder / files["overlay"], view.heatmap)
        if view.saliency is not None:
            files["saliency"] = f"overlays/{name}.saliency.png"
            save_png(folder / files["saliency"], view.saliency)
    return files


class Gallery:
    """The predictions of the highest rank, at most `limit`: what a report can show of any number of
    pictures."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._heap: list[tuple[float, int, Prediction]] = []
        self._count = 0

    def add(self, prediction: Prediction, *, rank: float) -> None:
        # Of two with the same rank the earlier one stays, and predictions are never compared.
        self._count += 1
        if len(self._heap) == self._limit and rank <= self._heap[0][0]:
            return
        # The maps are slices of their batch's, which must not be kept alive; nor must a full-size
        # heatmap.
        saliency, foreground = (
            None if one is None else one.copy()
            for one in (prediction.saliency, prediction.foreground)
        )
        kept = replace(
            prediction,
            anomaly_map=prediction.anomaly_map.copy(),
            saliency=saliency,
            foreground=foreground,
        )
        heapq.heappush(self._heap, (rank, -self._count, kept))
        if len(self._heap) > self._limit:
            heapq.heappop(self._heap)

    def __iter__(self) -> Iterator[Prediction]:
        """The highest rank first."""
        ranked = sorted(self._heap, key=lambda item: item[:2], reverse=True)
        return (prediction for _, _, prediction in ranked)


@dataclass(frozen=True, slots=True)
class View:
    """A picture as a person sees it, each uint8 H W 3.

    Attributes:
        picture: as it is.
        heatmap: tinted by what was found in it, with its regions outlined, the crop's rectangle and
            the background faded, where there are any.
        saliency: the same for where the method looked; None for methods that do not tell.
    """

    picture: Pixels
    heatmap: Pixels
    saliency: Pixels | None

    @classmethod
    def of(
        cls,
        prediction: Prediction,
        detector: Detector,
        max_side: int | None = None,
        source: Any = None,
    ) -> Self:
        """At the original size, or reduced to a longer side of `max_side` pixels. `source`: as
        `picture` of `save`.

        Raises: ImageError if the picture is gone or broken by now.
        """
        with within_memory(prediction.source):
            window = detector.preprocessing.decode_window()
            given = prediction.source if source is None else source
            if max_side is None:
                picture = decode(given, window=window).as_uint8()
            else:
                picture = small(given, window, max_side)
            height, width = picture.shape[:2]

            def tinted(values: np.ndarray, scale: tuple[float, float]) -> Pixels:
                resized = cv2.resize(values, (width, height), interpolation=cv2.INTER_LINEAR)
                return overlay(picture, resized, scale)

            def boxed(tint: Pixels) -> Pixels:
                return tint if prediction.box is None else outline(tint, prediction.box)

            values, scale, part = prediction.anomaly_map, detector.map_scale, prediction.foreground
            if part is None:
                heatmap = tinted(values, scale)
            else:
                heatmap = faded(tinted(np.where(part, values, scale[0]), scale), part)
            regions = replace(prediction, size=(height, width)).mask
            heatmap = boxed(heatmap if regions is None else contours(heatmap, regions))
            looked = prediction.saliency
            saliency = None if looked is None else boxed(tinted(looked, SALIENCY_SCALE))
            return cls(picture, heatmap, saliency)


def small(source: Any, window: tuple[float, float] | None, max_side: int) -> Pixels:
    """A picture reduced to a longer side of `max_side` pixels, uint8 H W 3; a large one is never
    held whole where its format allows. Raises: ImageError."""
    with open_windows(source, window=window) as windows:
        if not windows.whole:
            return reduced(windows, max_side)
        whole = Picture(windows.read(slice(None), slice(None)), windows.source)
        return thumbnail(whole.as_uint8(), max_side)


def file_name(source: str, version: str = "") -> str:
    """A file name (without suffix) that is safe everywhere and different for every source, and
    version of it.

    Example:
        >>> file_name("a/b/part no. 3.png")
        'part_no._3-1fa41ab7440a'
    """
    return f"{safe_stem(source)}-{hashlib.sha256(os.fsencode(source + version)).hexdigest()[:12]}"


def safe_stem(source: str) -> str:
    """The source's own name without folder and suffix, as far as it is safe everywhere; others may
    have the same."""
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
            regions=_counted(row.get("regions")),
            **thumbnails.get(row["path"], {}),
        )
        for row in journal.scored
    ]


def _counted(regions: Sequence[Mapping[str, Any]] | None) -> tuple[int, float] | None:
    """The number of the regions of a row and the share of the largest, as `Entry.regions`."""
    if regions is None:
        return None
    return len(regions), max((region["share"] for region in regions), default=0.0)


def _thumbnails(predictions: Iterable[Prediction], detector: Detector) -> dict[str, dict[str, Any]]:
    """By source, the `picture` and `overlay` of its entry, small JPEG files, and the `box` drawn
    there; nothing for a picture that is gone by now."""

    def drawn(prediction: Prediction) -> tuple[str, dict[str, Any]]:
        try:
            view = View.of(prediction, detector, _THUMBNAIL)
        except BlemishError:
            return prediction.source, {}
        shown = {
            "picture": encode_jpeg(view.picture),
            "overlay": encode_jpeg(view.heatmap),
            "box": prediction.box,
            "foreground": prediction.foreground is not None,
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
        shown = [*self._defects, *self._good]
        thumbnails = _thumbnails(shown, detector)
        regions = {one.source: _counted(one.to_dict()["regions"]) for one in shown}
        return [
            Entry(
                source=row["path"],
                score=row["score"],
                verdict=row["label"],
                truth=row["truth"],
                defect=row["defect"],
                category=row["category"],
                notes=self._notes.get(row["path"], ()),
                regions=regions.get(row["path"]),
                **thumbnails.get(row["path"], {}),
            )
            for row in evaluation.rows
        ]

    def write(self, folder: Path, detector: Detector, *, side: int | None = OVERLAY_SIDE) -> None:
        """Overlays of the defects with the lowest and the good pictures with the highest scores,
        worst first."""
        for name, gallery in (("defective", self._defects), ("good", self._good)):
            for place, prediction in zip(range(1, _WORST + 1), gallery, strict=False):
                path = folder / f"{name}-{place:02d}-{file_name(prediction.source)}.png"
                try:
                    view = View.of(prediction, detector, side)
                except ImageError:  # gone or broken by now: its figures are known
                    continue
                save_png(path, view.heatmap)


def write_evaluation(
    folder: Path,
    evaluation: Evaluation,
    mistakes: Mistakes,
    detector: Detector,
    *,
    side: int | None = OVERLAY_SIDE,
) -> None:
    """The figures as SVG, overlays in worst/ (`side`: as of `record`), and at last evaluation.json:
    where that is, the folder is whole.

    Raises: OutputError.
    """
    pairs = [(row["truth"], row["score"]) for row in evaluation.rows]
    drawn = charts.of_scores(pairs, evaluation.threshold, evaluation)
    for name, content in drawn.items():
        write_whole(folder / f"{name}.svg", content)
    if side != 0:
        mistakes.write(folder / "worst", detector, side=side)
    document = json.dumps(evaluation.to_dict(), indent=2, allow_nan=False)
    write_whole(folder / "evaluation.json", document.encode())

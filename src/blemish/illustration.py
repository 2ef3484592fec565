"""Figures of how a detector sees a labelled data set, for a paper or a talk.

A folder of them holds

    histogram.png    how the scores of good and of defective pictures are spread
    embedding.png    their features in the plane (t-SNE), the kinds of defects told apart
    gallery.png      the defects with the highest and with the lowest scores, and the good pictures with the highest:
                     picture, mask, heatmap, and where the method looked, as far as there is one
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from blemish.data.layouts import Dataset
from blemish.data.marks import marked
from blemish.errors import BlemishError, DataError, OutputError
from blemish.evaluation import known_pictures, labelled
from blemish.files import write_whole
from blemish.methods.adaptation import Adapter
from blemish.outputs import Gallery, View, check_writable
from blemish.predictor import Detector
from blemish.report import figures
from blemish.types import ANOMALOUS, NORMAL, Failure, Prediction, Progress, Sample, silent

_NAMES = ("histogram.png", "embedding.png", "gallery.png")
_FEWEST = 3  # pictures; t-SNE needs as many
_TILE = 384  # pixels of the longer side of a picture in the gallery
_CROP = "The rectangle is the crop that was looked at again, enlarged."

Tiles = dict[str, npt.NDArray[np.uint8]]


@dataclass(frozen=True, kw_only=True)
class Illustration:
    """What was drawn.

    Attributes:
        files: the three figures.
        normal, anomalous: how many pictures of each they show.
        left_out: pictures that the artifact was fitted or calibrated on, in no figure.
        failures: pictures that could not be scored, and pictures and masks that could not be drawn.
    """

    files: tuple[Path, ...]
    normal: int
    anomalous: int
    left_out: tuple[str, ...]
    failures: tuple[Failure, ...]

    def to_dict(self) -> dict[str, Any]:
        """A JSON-ready document."""
        return {
            "files": [str(file) for file in self.files],
            "normal": self.normal,
            "anomalous": self.anomalous,
            "left_out": list(self.left_out),
            "failures": [failure.to_dict() for failure in self.failures],
        }


def illustrate(
    detector: Detector,
    data: str | Path | Dataset,
    folder: str | Path,
    *,
    count: int = 4,
    progress: Progress = silent,
) -> Illustration:
    """Score the labelled test pictures of a data set once, and draw what came of it.

    Args:
        data: as of `blemish.evaluate`. Pictures that the detector was fitted or calibrated on are left out.
        folder: made where it is not there.
        count: pictures of each kind in the gallery, fewer where there are not as many; no defect is shown twice.
    Raises: DataError when there are no labelled pictures, or too few that are new to the detector and can be read;
        OutputError for a folder that holds such figures already, or cannot be written.
    """
    files = tuple(Path(folder) / name for name in _NAMES)
    if any(file.exists() for file in files):
        raise OutputError(f"{folder}: holds figures already; name another folder")
    dataset, samples = labelled(data)
    check_writable(files[0])
    known = known_pictures(detector)
    embedding = _Embedding(detector)
    kept: list[tuple[Sample, float, npt.NDArray[np.float32]]] = []
    cases = _Cases(count)
    failures: list[Failure] = []
    left_out: list[str] = []
    results = embedding.predict_many(samples)
    for done, (sample, result) in enumerate(zip(samples, results, strict=True), start=1):
        progress("scoring", done, len(samples))
        if isinstance(result, Failure):
            failures.append(result)
            continue
        feature = embedding.features.popleft()
        if result.digest in known:
            left_out.append(result.source)
            continue
        kept.append((sample, result.score, feature))
        cases.add(sample, result)
    if len(kept) < _FEWEST:
        raise DataError(
            f"{dataset.root}: {len(kept)} pictures are left, the others known to the detector or unreadable; "
            f"figures need {_FEWEST}"
        )
    progress("drawing", 0, 0)
    several = len({sample.category for sample, _, _ in kept}) > 1
    of = {label: [score for sample, score, _ in kept if sample.label == label] for label in (NORMAL, ANOMALOUS)}
    limit = None if detector.threshold is None else detector.threshold.value
    drawn = (
        figures.score_histogram(of[NORMAL], of[ANOMALOUS], threshold=limit, format="png"),
        figures.embedding(
            np.stack([feature for _, _, feature in kept]),
            [int(sample.label == ANOMALOUS) for sample, _, _ in kept],
            [_kind(sample, several) for sample, _, _ in kept],
            format="png",
        ),
        cases.drawn(detector, several, failures),
    )
    for file, content in zip(files, drawn, strict=True):
        write_whole(file, content)
    return Illustration(
        files=files,
        normal=len(of[NORMAL]),
        anomalous=len(of[ANOMALOUS]),
        left_out=tuple(left_out),
        failures=tuple(failures),
    )


class _Embedding(Detector):
    """The same detector; it keeps the features of every picture that it scores: D each, in the order of predictions."""

    def __init__(self, detector: Detector) -> None:
        super().__init__(detector.method, detector.preprocessing, detector.threshold, detector.manifest)
        self.features: deque[npt.NDArray[np.float32]] = deque()

    def _score(self, chunk: Sequence[Any], adapter: Adapter | None) -> Iterator[Prediction | Failure]:
        tensors = [one.tensor for one in chunk if not isinstance(one, Failure)]
        if tensors:
            with torch.inference_mode():
                features = self.method.embedding(torch.stack(tensors).to(self.device))
            self.features.extend(features.float().cpu().numpy())
        return super()._score(chunk, adapter)


class _Cases:
    """What the gallery shows: of each kind at most `count` pictures."""

    def __init__(self, count: int) -> None:
        self._count = count
        self._found, self._missed, self._good = Gallery(count), Gallery(count), Gallery(count)
        self._samples: dict[str, Sample] = {}

    def add(self, sample: Sample, prediction: Prediction) -> None:
        self._samples[prediction.source] = sample
        if sample.label == ANOMALOUS:
            self._found.add(prediction, rank=prediction.score)
            self._missed.add(prediction, rank=-prediction.score)
        else:
            self._good.add(prediction, rank=prediction.score)

    def drawn(self, detector: Detector, several: bool, failures: list[Failure]) -> bytes:
        """The gallery as a PNG file. Pictures that are gone by now, and masks that cannot be read, join `failures`.

        Raises: DataError when no picture is left.
        """
        rows: list[tuple[str, Mapping[str, npt.NDArray[np.uint8]]]] = []
        boxed = False
        for title, prediction in self._ordered():
            sample = self._samples[prediction.source]
            try:
                tiles = _tiles(sample, prediction, detector, failures)
            except BlemishError as error:
                failures.append(_failure(prediction.source, error))
                continue
            lines = (title, _kind(sample, several), sample.path.name, f"score {prediction.score:.4g}")
            rows.append(("\n".join(line for line in lines if line), tiles))
            boxed |= prediction.box is not None
        if not rows:
            raise DataError("none of the pictures for the gallery can be read any more")
        return figures.gallery(rows, note=_CROP if boxed else "")

    def _ordered(self) -> Iterator[tuple[str, Prediction]]:
        found = {prediction.source: prediction for prediction in self._found}
        missed = (prediction for prediction in self._missed if prediction.source not in found)
        return chain(
            (("defect, high score", prediction) for prediction in found.values()),
            (("defect, low score", prediction) for prediction in missed),
            (("good, high score", prediction) for prediction in self._good),
        )


def _tiles(sample: Sample, prediction: Prediction, detector: Detector, failures: list[Failure]) -> Tiles:
    view = View.of(prediction, detector, _TILE)
    tiles: Tiles = {"picture": view.picture}
    try:
        mask = marked(sample, *view.picture.shape[:2])
    except BlemishError as error:
        failures.append(_failure(str(sample.mask), error))
        mask = None
    if mask is not None:
        tiles["mask"] = np.repeat(mask[..., None], 3, axis=2).astype(np.uint8) * 255
    tiles["heatmap"] = view.heatmap
    if view.saliency is not None:
        tiles["saliency"] = view.saliency
    return tiles


def _kind(sample: Sample, several: bool) -> str:
    """The kind of defect, with its category where there are several; "" for a normal picture."""
    if sample.label == NORMAL:
        return ""
    return "/".join(name for name in (sample.category if several else "", sample.defect) if name)


def _failure(source: str, error: BlemishError) -> Failure:
    return Failure(source=source, reason=getattr(error, "reason", str(error)))

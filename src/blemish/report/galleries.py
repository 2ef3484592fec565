"""Figures of how detectors see a labelled data set, for a paper or a talk.

A folder of one detector's holds

    histogram.png    how the scores of good and of defective pictures are spread
    embedding.png    their features in the plane (t-SNE), the kinds of defects told apart
    gallery.png      the defects with the highest and with the lowest scores, and the good pictures with the highest:
                     picture, mask, heatmap, and where the method looked, as far as there is one

and one of several detectors', which are compared on the same pictures,

    histograms.png   the same as histogram.png, side by side
    embeddings.png   the same as embedding.png, side by side
    comparison.png   of each kind of defect the pictures with the highest and with the lowest score by the first
                     detector, and good ones with the highest: picture, mask, and the heatmap and score of each detector

Of data with several categories there is an embedding of each category beside that of all, as embedding-bolt.png, and a
comparison of each in place of one of all.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from torch import Tensor

from blemish.data.layouts.recognition import Dataset
from blemish.data.marks import marked
from blemish.detector.evaluate import known_pictures, labelled
from blemish.detector.predict import Detector
from blemish.errors import BlemishError, ConfigError, DataError, OutputError
from blemish.files import check_writable, write_whole
from blemish.methods import Method
from blemish.report import figures
from blemish.report.predictions import Gallery, View, file_name, safe_stem
from blemish.types import ANOMALOUS, NORMAL, Failure, Prediction, Progress, Sample, Scores, silent

_FEWEST = 3  # pictures; t-SNE needs as many
_TILE = 384  # pixels of the longer side of a picture in the gallery
_MOST_ROWS = 250  # of a comparison: 61,000 pixels; matplotlib draws up to 65,536
_CROP = "The rectangle is the crop that was looked at again, enlarged."

Tiles = dict[str, npt.NDArray[np.uint8]]
Feature = npt.NDArray[np.float32]  # D, of a picture


@dataclass(frozen=True, kw_only=True)
class Illustration:
    """What was drawn.

    Attributes:
        files: the figures.
        normal, anomalous: how many pictures of each they show.
        left_out: pictures that an artifact was fitted or calibrated on, in no figure.
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
    dataset, samples = labelled(data)
    categories = _categories(samples)
    several = len(categories) > 1
    _check(folder, ["histogram", "embedding", *_names("embedding", categories), "gallery"])
    cases = _Cases(count)
    seen = _see(detector, samples, known_pictures(detector), cases.add, progress, "scoring")
    shown = _enough(dataset, seen.scores)
    progress("drawing", 0, 0)
    good, defective = _by_label(samples, shown, seen.scores)
    drawn = {
        "histogram": figures.score_histogram(
            good, defective, threshold=_limit(detector), format="png"
        )
    }
    for name, part in _parts("embedding", samples, shown, categories):
        points = np.stack([seen.features[index] for index in part])
        drawn[name] = figures.embedding(points, *_truth(samples, part), format="png")
    drawn["gallery"] = cases.drawn(detector, several, seen.failures)
    return _written(folder, drawn, samples, shown, [seen])


def compare(
    detectors: Mapping[str, Detector],
    data: str | Path | Dataset,
    folder: str | Path,
    *,
    count: int = 1,
    progress: Progress = silent,
) -> Illustration:
    """Score the labelled test pictures of a data set once with each detector, and draw them side by side.

    All of them are judged by the same pictures: those that no detector was fitted or calibrated on, and that all could
    score. Which ones stand in the comparison follows from the scores of the first.

    Args:
        detectors: by the names that the figures call them, at least two; fitted for the same data.
        data, folder: as of `illustrate`.
        count: of each kind of defect so many pictures with the highest scores and so many with the lowest, and of each
            category so many good ones with the highest; fewer where there are not as many.
    Raises: ConfigError for fewer than two detectors, or a count that gives more rows than fit into a picture;
        otherwise as `illustrate`.
    """
    if len(detectors) < 2:
        raise ConfigError(f"a comparison needs two detectors or more, got {len(detectors)}")
    dataset, samples = labelled(data)
    categories = _categories(samples)
    _check_rows(samples, count)
    compared = _names("comparison", categories) or ["comparison"]
    _check(folder, ["histograms", "embeddings", *_names("embeddings", categories), *compared])
    known = set[str]().union(*(known_pictures(detector) for detector in detectors.values()))
    cases = _SharedCases(count)
    seen: dict[str, _Seen] = {}
    for name, detector in detectors.items():
        keep = cases.kept_by(name) if seen else cases.add
        seen[name] = _see(detector, samples, known, keep, progress, f"scoring with {name}")
    everyone = list(seen.values())
    shown = _enough(dataset, set.intersection(*(set(each.scores) for each in everyone)))
    progress("drawing", 0, 0)
    panels = {
        name: (*_by_label(samples, shown, seen[name].scores), _limit(detector))
        for name, detector in detectors.items()
    }
    drawn = {"histograms": figures.score_histograms(panels, format="png")}
    for name, part in _parts("embeddings", samples, shown, categories):
        points = {
            title: np.stack([each.features[index] for index in part])
            for title, each in seen.items()
        }
        drawn[name] = figures.embeddings(points, *_truth(samples, part), format="png")
    for name, category in zip(compared, categories, strict=True):
        if rows := cases.drawn(category, detectors, everyone[0].failures):
            drawn[name] = rows
    return _written(folder, drawn, samples, shown, everyone)


@dataclass(frozen=True, slots=True)
class _Seen:
    """What a detector made of the pictures that are new to it, by their place among the samples."""

    scores: dict[int, float] = field(default_factory=dict)
    features: dict[int, Feature] = field(default_factory=dict)
    left_out: list[str] = field(default_factory=list)
    failures: list[Failure] = field(default_factory=list)


def _see(
    detector: Detector,
    samples: Sequence[Sample],
    known: Collection[str],
    keep: Callable[[Sample, Prediction], None],
    progress: Progress,
    stage: str,
) -> _Seen:
    """Score every sample once; `keep` is called with those whose digest is not `known`."""
    seen, embedding = _Seen(), _Embedding(detector.method)
    results = detector.predict_many(samples, score=embedding)
    for index, (sample, result) in enumerate(zip(samples, results, strict=True)):
        progress(stage, index + 1, len(samples))
        if isinstance(result, Failure):
            seen.failures.append(result)
            continue
        feature = embedding.features.popleft()
        if result.digest in known:
            seen.left_out.append(result.source)
            continue
        seen.scores[index], seen.features[index] = result.score, feature
        keep(sample, result)
    return seen


class _Embedding:
    """Scores as the method does, and keeps the features of every picture: D each, in order.

    They come from the pass that scores the pictures where they can, and otherwise from another one.
    """

    def __init__(self, method: Method) -> None:
        self.features: deque[Feature] = deque()
        self._method = method

    def __call__(self, images: Tensor) -> Scores:
        method, backbone = self._method, self._method.backbone
        with backbone.overheard(backbone.check_layers(method.config.layers)[-1:]) as heard:
            scores = method.score(images)
        found = [
            features.tokens[-1].float().mean(1) for seen, features in heard if seen == images.shape
        ]
        if not found or type(method).embedding is not Method.embedding:
            found = [method.embedding(images)]
        self.features.extend(found[0].float().cpu().numpy())
        return scores


class _Cases:
    """What the gallery shows: of each kind at most `count` pictures."""

    def __init__(self, count: int) -> None:
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
        for title, prediction in _ordered(self._found, self._missed, self._good):
            sample = self._samples[prediction.source]
            try:
                view = View.of(prediction, detector, _TILE)
            except BlemishError as error:
                failures.append(_failure(prediction.source, error))
                continue
            tiles = {
                "picture": view.picture,
                **_mask(sample, view, failures),
                "heatmap": view.heatmap,
            }
            if view.saliency is not None:
                tiles["saliency"] = view.saliency
            lines = (
                title,
                _kind(sample, several),
                sample.path.name,
                f"score {prediction.score:.4g}",
            )
            rows.append(("\n".join(line for line in lines if line), tiles))
            boxed |= prediction.box is not None
        if not rows:
            raise DataError("none of the pictures for the gallery can be read any more")
        return figures.gallery(rows, note=_CROP if boxed else "")


class _SharedCases:
    """What the comparison shows: of each kind of defect and of each category at most `count` pictures, by the scores of
    one detector, and what the others make of these."""

    def __init__(self, count: int) -> None:
        self._count = count
        self._defects: dict[
            tuple[str, str], tuple[Gallery, Gallery]
        ] = {}  # found and missed, by category and defect
        self._good: dict[str, Gallery] = {}
        self._samples: dict[str, Sample] = {}
        self._others: dict[str, dict[str, Prediction]] = {}  # by detector and source

    def add(self, sample: Sample, prediction: Prediction) -> None:
        """Take in what the first detector makes of a picture."""
        self._samples[prediction.source] = sample
        if sample.label == NORMAL:
            good = self._good.setdefault(sample.category, Gallery(self._count))
            good.add(prediction, rank=prediction.score)
            return
        pair = Gallery(self._count), Gallery(self._count)
        found, missed = self._defects.setdefault((sample.category, sample.defect), pair)
        found.add(prediction, rank=prediction.score)
        missed.add(prediction, rank=-prediction.score)

    def kept_by(self, name: str) -> Callable[[Sample, Prediction], None]:
        """What takes in the predictions of another detector, once the first is done: it keeps those that are shown."""
        shown = {prediction.source for gallery in self._galleries() for prediction in gallery}
        kept = self._others.setdefault(name, {})

        def keep(_: Sample, prediction: Prediction) -> None:
            if (
                prediction.source in shown
            ):  # its map is a slice of its batch's, which must not be kept alive
                kept[prediction.source] = replace(
                    prediction, anomaly_map=prediction.anomaly_map.copy(), saliency=None
                )

        return keep

    def drawn(
        self, category: str, detectors: Mapping[str, Detector], failures: list[Failure]
    ) -> bytes | None:
        """The comparison of a category as a PNG file, or None where no picture of it is left.

        `failures`: as of `_Cases`.
        """
        first, *others = detectors
        rows: list[tuple[str, Mapping[str, npt.NDArray[np.uint8]]]] = []
        labels: list[dict[str, str]] = []
        boxed = False
        for title, prediction in self._of(category):
            sample = self._samples[prediction.source]
            predictions = {first: prediction}
            for name in others:
                if (other := self._others[name].get(prediction.source)) is not None:
                    predictions[name] = other
            try:
                views = {
                    name: View.of(each, detectors[name], _TILE)
                    for name, each in predictions.items()
                }
            except BlemishError as error:
                failures.append(_failure(prediction.source, error))
                continue
            tiles = {"picture": views[first].picture, **_mask(sample, views[first], failures)}
            rows.append(
                (
                    "\n".join(
                        line
                        for line in (title, _kind(sample, several=False), sample.path.name)
                        if line
                    ),
                    {**tiles, **{_column(name): view.heatmap for name, view in views.items()}},
                )
            )
            labels.append({_column(name): _verdict(each) for name, each in predictions.items()})
            boxed |= any(each.box is not None for each in predictions.values())
        if not rows:
            return None
        masks = ["mask"] if any("mask" in tiles for _, tiles in rows) else []
        note = f"High and low are the scores by {first}." + (f" {_CROP}" if boxed else "")
        columns = ["picture", *masks, *map(_column, detectors)]
        return figures.gallery(rows, columns=columns, labels=labels, note=note)

    def _of(self, category: str) -> Iterator[tuple[str, Prediction]]:
        nothing = Gallery(0)
        for name, defect in sorted(self._defects):
            if name == category:
                yield from _ordered(*self._defects[name, defect], nothing)
        yield from _ordered(nothing, nothing, self._good.get(category, nothing))

    def _galleries(self) -> Iterator[Gallery]:
        return chain(*self._defects.values(), self._good.values())


def _ordered(found: Gallery, missed: Gallery, good: Gallery) -> Iterator[tuple[str, Prediction]]:
    """Their predictions, each with what it is an example of; no defect twice."""
    first = {prediction.source: prediction for prediction in found}
    return chain(
        (("defect, high score", prediction) for prediction in first.values()),
        (
            ("defect, low score", prediction)
            for prediction in missed
            if prediction.source not in first
        ),
        (("good, high score", prediction) for prediction in good),
    )


def _column(detector: str) -> str:
    """The title of its heatmaps; one that no other column has, whatever it is called."""
    return f"by {detector}"


def _verdict(prediction: Prediction) -> str:
    return f"{prediction.score:.4g}" + (", alarm" if prediction.label == ANOMALOUS else "")


def _mask(sample: Sample, view: View, failures: list[Failure]) -> Tiles:
    """A tile of where the defects are, where that is known."""
    try:
        mask = marked(sample, *view.picture.shape[:2])
    except BlemishError as error:
        failures.append(_failure(str(sample.mask), error))
        return {}
    return (
        {}
        if mask is None
        else {"mask": np.repeat(mask[..., None], 3, axis=2).astype(np.uint8) * 255}
    )


def _kind(sample: Sample, several: bool) -> str:
    """The kind of defect, with its category where there are several; "" for a normal picture."""
    if sample.label == NORMAL:
        return ""
    return "/".join(name for name in (sample.category if several else "", sample.defect) if name)


def _failure(source: str, error: BlemishError) -> Failure:
    return Failure(source=source, reason=getattr(error, "reason", str(error)))


def _limit(detector: Detector) -> float | None:
    return None if detector.threshold is None else detector.threshold.value


def _categories(samples: Sequence[Sample]) -> list[str]:
    return sorted({sample.category for sample in samples})


def _by_label(
    samples: Sequence[Sample], shown: Sequence[int], scores: Mapping[int, float]
) -> tuple[list[float], list[float]]:
    """The scores of the good pictures, and those of the defective ones."""
    good = [scores[index] for index in shown if samples[index].label == NORMAL]
    return good, [scores[index] for index in shown if samples[index].label == ANOMALOUS]


def _truth(samples: Sequence[Sample], part: Sequence[int]) -> tuple[list[int], list[str]]:
    """Label and kind of each picture."""
    own = [samples[index] for index in part]
    several = len({sample.category for sample in own}) > 1
    return [int(sample.label == ANOMALOUS) for sample in own], [
        _kind(sample, several) for sample in own
    ]


def _parts(
    name: str, samples: Sequence[Sample], shown: Sequence[int], categories: Sequence[str]
) -> Iterator[tuple[str, list[int]]]:
    """All pictures and, of several categories, those of each that has enough: with the names of their figures."""
    yield name, list(shown)
    for own, category in zip(_names(name, categories), categories, strict=False):
        part = [index for index in shown if samples[index].category == category]
        if len(part) >= _FEWEST:
            yield own, part


def _names(name: str, categories: Sequence[str]) -> list[str]:
    """What the figures of each category are called; none where there is one category only."""
    if len(categories) < 2:
        return []
    safe = (each if safe_stem(each) == each else file_name(each) for each in categories)
    return [f"{name}-{each}" for each in safe]


def _check_rows(samples: Sequence[Sample], count: int) -> None:
    """Raises: ConfigError for a comparison of a category that would be too long."""
    rows: Counter[str] = Counter()
    kinds = Counter(
        (sample.category, sample.label, _kind(sample, several=False)) for sample in samples
    )
    for (category, label, _), there in kinds.items():
        rows[category] += min(there, count if label == NORMAL else 2 * count)
    if rows and max(rows.values()) > _MOST_ROWS:
        raise ConfigError(
            f"count: {count} of each kind give a comparison of {max(rows.values())} rows, and {_MOST_ROWS} fit into a "
            "picture; choose fewer"
        )


def _check(folder: str | Path, names: Sequence[str]) -> None:
    """Raises: OutputError for a folder that has a figure of these, or cannot be written."""
    files = [_file(folder, name) for name in names]
    if any(file.exists() for file in files):
        raise OutputError(f"{folder}: holds figures already; name another folder")
    check_writable(files[0])


def _enough(dataset: Dataset, found: Collection[int]) -> list[int]:
    """In their order. Raises: DataError for too few."""
    if len(found) < _FEWEST:
        raise DataError(
            f"{dataset.root}: {len(found)} pictures are left, the others known to the detector or unreadable; "
            f"figures need {_FEWEST}"
        )
    return sorted(found)


def _written(
    folder: str | Path,
    drawn: Mapping[str, bytes],
    samples: Sequence[Sample],
    shown: Sequence[int],
    seen: Sequence[_Seen],
) -> Illustration:
    """Once all is drawn. Raises: OutputError."""
    for name, content in drawn.items():
        write_whole(_file(folder, name), content)
    anomalous = sum(samples[index].label == ANOMALOUS for index in shown)
    return Illustration(
        files=tuple(_file(folder, name) for name in drawn),
        normal=len(shown) - anomalous,
        anomalous=anomalous,
        left_out=tuple(dict.fromkeys(source for each in seen for source in each.left_out)),
        failures=tuple(dict.fromkeys(failure for each in seen for failure in each.failures)),
    )


def _file(folder: str | Path, name: str) -> Path:
    return Path(folder) / f"{name}.png"

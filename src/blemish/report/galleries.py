"""Figures of how detectors see a labelled data set, for a paper or a talk.

A folder of one detector's holds

    histogram.png    how the scores of good and of defective pictures are spread
    embedding.png    their features in the plane (t-SNE), the kinds of defects told apart
    gallery.png      the defects with the highest and with the lowest scores, and the good pictures
                     with the highest: picture, mask, heatmap with the regions of defects
                     outlined, and where the method looked, as far as there is one

and one of several detectors', which are compared on the same pictures,

    histograms.png   the same as histogram.png, side by side
    embeddings.png   the same as embedding.png, side by side
    comparison.png   of each kind of defect the pictures with the highest and with the lowest score
                     by the first detector, and good ones with the highest: picture, mask, and the
                     heatmap and score of each detector

Of data with several categories there is an embedding of each category beside that of all, as
embedding-bolt.png, and a comparison of each in place of one of all.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from torch import Tensor

from blemish.backbones import Features
from blemish.data.layouts import Dataset
from blemish.data.marks import marked
from blemish.detector.evaluate import known_pictures, labelled
from blemish.detector.predict import Detector
from blemish.engines.pytorch import TorchEngine
from blemish.errors import BlemishError, ConfigError, DataError, OutputError
from blemish.files import check_writable, or_elsewhere, write_whole
from blemish.report import figures
from blemish.report.charts import Spread
from blemish.report.predictions import Gallery, View, file_name, safe_stem
from blemish.text import pluralize
from blemish.types import ANOMALOUS, NORMAL, Failure, Prediction, Progress, Sample, Scores, silent

_FEWEST = 3  # pictures; t-SNE needs as many
_TILE = 384  # pixels of the longer side of a picture in the gallery
_MOST_ROWS = 250  # of a comparison: 61,000 pixels; matplotlib draws up to 65,536
_OUTLINE = "The outlines are the regions of defects that were found."
_CROP = "The rectangle is the crop that was looked at again, enlarged."
_HIGH, _LOW, _GOOD = "defect, high score", "defect, low score", "good, high score"

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
            **vars(self),
            "files": [str(file) for file in self.files],
            "left_out": list(self.left_out),
            "failures": [failure.to_dict() for failure in self.failures],
        }


def illustrate(
    detectors: Mapping[str, Detector],
    data: str | Path | Dataset,
    folder: str | Path,
    *,
    count: int | None = None,
    progress: Progress = silent,
) -> Illustration:
    """Score the labelled test pictures of a data set once with each detector, and draw what came of
    it.

    All detectors are judged by the same pictures: those that none was fitted or calibrated on, and
    that all could score. Which of them stand in a comparison follows from the scores of the first.

    Args:
        detectors: by the names that the figures call them, at least one; fitted for the same data.
        data: as of `blemish.evaluate`.
        folder: made where it is not there.
        count: pictures of each kind: so many defects with the highest scores and with the lowest,
            and so many good ones with the highest; in a comparison of each kind of defect and each
            category. Fewer where there are not as many; no defect is shown twice. None = 4, in a
            comparison 1.
    Raises: DataError for too few pictures that are new and can be read; OutputError; ConfigError.
    """
    for each in detectors.values():
        each.method  # noqa: B018 — an exported graph has none, and says so
    dataset, samples = labelled(data)
    categories = sorted({sample.category for sample in samples})
    one = len(detectors) == 1
    count = count or (4 if one else 1)
    histogram, embedding = ("histogram", "embedding") if one else ("histograms", "embeddings")
    galleries = _galleries(samples, categories, None if one else count)
    _check(folder, [histogram, embedding, *_names(embedding, categories), *galleries])
    cases = _Cases(detectors, count)
    seen = _see(detectors, samples, cases, progress)
    shown = _enough(dataset, set.intersection(*(set(each.scores) for each in seen.values())))
    progress("drawing", 0, 0)
    named = {"" if one else name: each for name, each in seen.items()}
    drawn = {histogram: _histograms(named, detectors.values(), samples, shown)}
    for file, part in _parts(embedding, samples, shown, categories):
        points = {
            name: np.stack([each.features[index] for index in part]) for name, each in named.items()
        }
        drawn[file] = figures.embeddings(points, *_truth(samples, part), format="png")
    failures = [failure for each in seen.values() for failure in each.failures]
    for file, category in galleries.items():
        several = one and len(categories) > 1
        if (gallery := cases.drawn(category, failures, several=several)) is not None:
            drawn[file] = gallery
    move = f"move what is there to {folder}"
    or_elsewhere(Path(folder), partial(_write, drawn=drawn), move)
    labels = Counter(samples[index].label for index in shown)
    left_out = dict.fromkeys(source for each in seen.values() for source in each.left_out)
    return Illustration(
        files=tuple(_file(folder, file) for file in drawn),
        normal=labels[NORMAL],
        anomalous=labels[ANOMALOUS],
        left_out=tuple(left_out),
        failures=tuple(dict.fromkeys(failures)),
    )


@dataclass(frozen=True, slots=True)
class _Seen:
    """What a detector made of the pictures that are new to it, by their place among the samples."""

    scores: dict[int, float] = field(default_factory=dict)
    features: dict[int, Feature] = field(default_factory=dict)
    left_out: list[str] = field(default_factory=list)
    failures: list[Failure] = field(default_factory=list)


def _see(
    detectors: Mapping[str, Detector], samples: Sequence[Sample], cases: _Cases, progress: Progress
) -> dict[str, _Seen]:
    """Score every sample once with each detector; the cases are told of the pictures that are new
    to all of them."""
    known = set[str]().union(*(known_pictures(detector) for detector in detectors.values()))
    everything: dict[str, _Seen] = {}
    for name, detector in detectors.items():
        stage = "scoring" if len(detectors) == 1 else f"scoring with {name}"
        keep = cases.kept_by(name)
        seen, embedding = _Seen(), _Embedding(detector)
        results = detector.predict_many(samples, engine=embedding)
        for index, (sample, result) in enumerate(zip(samples, results, strict=True)):
            progress(stage, index + 1, len(samples))
            feature = embedding.taken(result)
            if isinstance(result, Failure):
                seen.failures.append(result)
                continue
            assert feature is not None  # of a picture that was scored
            if result.digest in known:
                seen.left_out.append(result.source)
                continue
            seen.scores[index], seen.features[index] = result.score, feature
            keep(sample, result)
        everything[name] = seen
    return everything


class _Embedding(TorchEngine):
    """Scores as the method does, and keeps the features of every picture or tile: D each, in order.

    They come from the pass that scores the pictures.
    """

    def __init__(self, detector: Detector) -> None:
        super().__init__(detector.method, detector.foreground)
        self._features: deque[Feature] = deque()
        self._in_tiles = detector.preprocessing.tiling is not None

    def _scores(self, images: Tensor) -> tuple[Scores, Features]:
        seen = self.method.see(images)
        scores = self.method.judge(seen, images)  # first: where memory runs out, nothing is kept
        self._features.extend(self.method.describe(seen, images).float().cpu().numpy())
        return scores, seen

    def taken(self, result: Prediction | Failure) -> Feature | None:
        """The features of the picture that is next, the mean of those of its tiles; None where it
        could not be scored. No batch has tiles of two pictures."""
        if not self._in_tiles:
            return None if isinstance(result, Failure) else self._features.popleft()
        own = [*self._features]
        self._features.clear()
        return None if isinstance(result, Failure) else np.mean(own, axis=0)


class _Cases:
    """The pictures in a gallery: of each kind at most `count`, by the scores of the first detector,
    and what the other detectors make of these.

    Of one detector the kinds are good and defective; of several each kind of defect, and each
    category, has its own.
    """

    def __init__(self, detectors: Mapping[str, Detector], count: int) -> None:
        self._detectors = detectors
        self._first, *self._others = detectors
        self._count = count
        self._ranked: dict[tuple[str | None, str, str], Gallery] = {}  # category, defect, title
        self._samples: dict[str, Sample] = {}
        self._predictions: dict[str, dict[str, Prediction]] = {}  # of the others, by source

    def kept_by(self, name: str) -> Callable[[Sample, Prediction], None]:
        """What takes in the predictions of a detector, the first one's before those of others."""
        if name == self._first:
            return self._rank
        shown = {one.source for gallery in self._ranked.values() for one in gallery}
        kept = self._predictions.setdefault(name, {})

        def keep(_: Sample, prediction: Prediction) -> None:
            if prediction.source in shown:
                # Its map is a slice of its batch's, which must not be kept alive.
                anomaly_map = prediction.anomaly_map.copy()
                kept[prediction.source] = replace(
                    prediction, anomaly_map=anomaly_map, saliency=None
                )

        return keep

    def _rank(self, sample: Sample, prediction: Prediction) -> None:
        self._samples[prediction.source] = sample
        ranks = {_GOOD: prediction.score}
        if sample.label == ANOMALOUS:
            ranks = {_HIGH: prediction.score, _LOW: -prediction.score}
        category, defect = (sample.category, _kind(sample)) if self._others else (None, "")
        for title, rank in ranks.items():
            gallery = self._ranked.setdefault((category, defect, title), Gallery(self._count))
            gallery.add(prediction, rank=rank)

    def _of(self, category: str | None) -> Iterator[tuple[str, Prediction]]:
        """The pictures of a category, each with what it is an example of: defects by their kind,
        none of them twice, and then good ones."""
        ranked = {key[1:]: gallery for key, gallery in self._ranked.items() if key[0] == category}
        shown = set[str]()
        for _, title in sorted(ranked, key=lambda key: (key[1] == _GOOD, key)):
            for prediction in ranked[_, title]:
                if prediction.source not in shown:
                    shown.add(prediction.source)
                    yield title, prediction

    def drawn(
        self, category: str | None, failures: list[Failure], *, several: bool
    ) -> bytes | None:
        """The gallery of a category as a PNG file; None where no picture of it is left.

        Pictures that are gone by now, and masks that cannot be read, join `failures`. `several`:
        whether the captions name categories.
        Raises: DataError when no picture is left for the gallery of one detector.
        """
        rows: list[figures.Row] = []
        boxed = outlined = False
        for title, prediction in self._of(category):
            sample, source = self._samples[prediction.source], prediction.source
            told = {self._first: prediction} | {
                name: self._predictions[name][source]
                for name in self._others
                if source in self._predictions[name]
            }
            try:
                views = {
                    name: View.of(each, self._detectors[name], _TILE) for name, each in told.items()
                }
            except BlemishError as error:
                failures.append(_failure(source, error))
                continue
            lines = [title, _kind(sample, several=several), sample.path.name]
            tiles = {
                "picture": views[self._first].picture,
                **_mask(sample, views[self._first], failures),
            }
            labels = {}
            if self._others:
                tiles |= {_column(name): view.heatmap for name, view in views.items()}
                labels = {_column(name): _verdict(each) for name, each in told.items()}
            else:
                view = views[self._first]
                lines.append(f"score {prediction.score:.4g}")
                tiles["heatmap"] = view.heatmap
                tiles |= {} if view.saliency is None else {"saliency": view.saliency}
            caption = "\n".join(line for line in lines if line)
            rows.append(figures.Row(caption=caption, tiles=tiles, labels=labels))
            boxed |= any(each.box is not None for each in told.values())
            outlined |= any(each.regions for each in told.values())
        if not rows:
            if self._others:
                return None
            raise DataError("none of the pictures for the gallery can be read any more")
        notes, columns = [_OUTLINE] * outlined + [_CROP] * boxed, []
        if self._others:
            notes.insert(0, f"High and low are the scores by {self._first}.")
            masks = ["mask"] if any("mask" in row.tiles for row in rows) else []
            columns = ["picture", *masks, *map(_column, self._detectors)]
        return figures.gallery(rows, columns=columns, note="\n".join(notes))


def _column(detector: str) -> str:
    """The title of its heatmaps; one that no other column has, whatever it is called."""
    return f"by {detector}"


def _verdict(prediction: Prediction) -> str:
    return f"{prediction.score:.4g}" + (", alarm" if prediction.label == ANOMALOUS else "")


def _mask(sample: Sample, view: View, failures: list[Failure]) -> dict[str, figures.Picture]:
    """A tile of where the defects are, where that is known."""
    try:
        mask = marked(sample, *view.picture.shape[:2])
    except BlemishError as error:
        failures.append(_failure(str(sample.mask), error))
        return {}
    if mask is None:
        return {}
    return {"mask": np.repeat(mask[..., None], 3, axis=2).astype(np.uint8) * 255}


def _kind(sample: Sample, *, several: bool = False) -> str:
    """The kind of defect, with its category where there are several; "" for a normal picture."""
    if sample.label == NORMAL:
        return ""
    return "/".join(name for name in (sample.category if several else "", sample.defect) if name)


def _failure(source: str, error: BlemishError) -> Failure:
    return Failure(source=source, reason=getattr(error, "reason", str(error)))


def _histograms(
    seen: Mapping[str, _Seen],
    detectors: Iterable[Detector],
    samples: Sequence[Sample],
    shown: Sequence[int],
) -> bytes:
    spreads = {}
    for (name, each), detector in zip(seen.items(), detectors, strict=True):
        good, defective = (
            [each.scores[index] for index in shown if samples[index].label == label]
            for label in (NORMAL, ANOMALOUS)
        )
        limit = None if detector.threshold is None else detector.threshold.value
        spreads[name] = Spread(good=good, defective=defective, threshold=limit)
    return figures.score_histograms(spreads, format="png")


def _truth(samples: Sequence[Sample], part: Sequence[int]) -> tuple[list[int], list[str]]:
    """Label and kind of each picture."""
    own = [samples[index] for index in part]
    several = len({sample.category for sample in own}) > 1
    labels = [int(sample.label == ANOMALOUS) for sample in own]
    return labels, [_kind(sample, several=several) for sample in own]


def _parts(
    name: str, samples: Sequence[Sample], shown: Sequence[int], categories: Sequence[str]
) -> Iterator[tuple[str, list[int]]]:
    """All pictures and, of several categories, those of each that has enough: with the names of
    their figures."""
    yield name, list(shown)
    for own, category in zip(_names(name, categories), categories, strict=False):
        part = [index for index in shown if samples[index].category == category]
        if len(part) >= _FEWEST:
            yield own, part


def _write(folder: Path, drawn: Mapping[str, bytes]) -> None:
    """All of them or none, as a folder with some is refused. Raises: OutputError."""
    written: list[Path] = []
    try:
        for name, content in drawn.items():
            written.append(write_whole(_file(folder, name), content, picture=True))
    except BaseException:
        for file in written:
            file.unlink(missing_ok=True)
        raise


def _names(name: str, categories: Sequence[str]) -> list[str]:
    """What the figures of each category are called; none where there is one category only."""
    if len(categories) < 2:
        return []
    safe = (each if safe_stem(each) == each else file_name(each) for each in categories)
    return [f"{name}-{each}" for each in safe]


def _galleries(
    samples: Sequence[Sample], categories: Sequence[str], count: int | None
) -> dict[str, str | None]:
    """The categories of the galleries, by the names of their files; None for one of all.

    Args: count: of each kind in a comparison; None for the gallery of one detector.
    Raises: ConfigError for a comparison of a category that would be too long.
    """
    if count is None:
        return {"gallery": None}
    rows: Counter[str] = Counter()
    kinds = Counter((sample.category, sample.label, _kind(sample)) for sample in samples)
    for (category, label, _), there in kinds.items():
        rows[category] += min(there, count if label == NORMAL else 2 * count)
    if rows and max(rows.values()) > _MOST_ROWS:
        raise ConfigError(
            f"count: {count} of each kind give a comparison of {max(rows.values())} rows, "
            f"and {_MOST_ROWS} fit into a picture; choose fewer"
        )
    names = _names("comparison", categories) or ["comparison"]
    return dict(zip(names, categories, strict=True))


def _check(folder: str | Path, names: Sequence[str]) -> None:
    """Raises: OutputError for a folder that has a figure of these, or cannot be written."""
    files = [_file(folder, name) for name in names]
    if any(file.exists() for file in files):
        raise OutputError(f"{folder}: holds figures already; name another folder")
    check_writable(files[0], picture=True)


def _enough(dataset: Dataset, found: Collection[int]) -> list[int]:
    """In their order. Raises: DataError for too few."""
    if len(found) < _FEWEST:
        raise DataError(
            f"{dataset.root}: {pluralize(len(found), 'picture is', 'pictures are')} left, the "
            f"others known to the detector or unreadable; figures need {_FEWEST}"
        )
    return sorted(found)


def _file(folder: str | Path, name: str) -> Path:
    return Path(folder) / f"{name}.png"

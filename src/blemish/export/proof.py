"""Whether an exported graph says what its detector says: pictures go through both.

The differences are counted in deviations of the stored scores of good pictures, the unit in which
they could move a verdict. Where no scores are stored (a fit without a threshold) the spread of the
compared pictures' own scores takes their place.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from blemish.data.ahead import load_picture
from blemish.data.transforms import as_pixels, prepare
from blemish.detector.predict import Detector
from blemish.engines.base import Engine, Outputs
from blemish.engines.record import OUTPUTS
from blemish.errors import DataError, ExportError
from blemish.images import Picture
from blemish.types import Failure, Progress, silent

# Of the differences, in deviations. Quantised graphs, and bf16, move every score a little, and get
# a threshold of their own: what counts of them is the order of pictures, too.
LIMITS = {"fp32": 1e-3, "fp16": 1e-2, "bf16": 0.1, "int8": 0.1}
LEAST_CORRELATION = 0.99
ROUNDED = ("bf16", "int8")
_AS_MUCH = 1.5  # times what PyTorch's own rounding moves: the largest of few differences varies
GENERATED = 12  # pictures
MOST = 64  # of given ones, evenly from all
_BATCH = 3  # not what it was traced with, and a last one that is smaller


@dataclass(frozen=True, kw_only=True)
class Proof:
    """What a comparison found.

    Attributes:
        pictures: how many were compared; of: "given" or "generated" ones.
        score, map: the largest difference of any, in deviations. limit, map_limit: of either.
        mean_score: the mean difference of scores, in deviations.
        deviation: that of the stored scores, in their unit; unit_of: "calibration scores", or
            "compared pictures" where none are stored.
        other: the largest difference of saliency, boxes, descriptors, and of what tells parts and
            categories, in their own units; at most `LIMITS` in fp32 and fp16.
        rank_correlation: Spearman's, of the compared pictures' scores; None for fewer than three.
        least_correlation: that bf16 and int8 need.
        engine: what ran the graph, with its version.
    """

    pictures: int
    of: str
    score: float
    map: float
    limit: float
    map_limit: float
    mean_score: float
    deviation: float
    unit_of: str
    other: float
    rank_correlation: float | None
    least_correlation: float
    engine: str

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        return asdict(self)

    def check(self, path: object, precision: str) -> None:
        """Raises: ExportError where the graph is not to be written to `path`."""
        if fault := self.fault(precision):
            raise ExportError(f"{path}: not written: {fault}")

    def fault(self, precision: str) -> str:
        """Why the graph is not to be written; "" where it may be."""
        for what, value, limit in (
            ("scores", self.score, self.limit),
            ("anomaly maps", self.map, self.map_limit),
        ):
            if not value <= limit:  # NaN, too
                return (
                    f"its {what} differ from the detector's by up to {value:.3g} deviations of "
                    f"good scores, and at most {limit:.3g} are allowed in {precision}"
                )
        if precision not in ROUNDED and not self.other <= LIMITS[precision]:
            return (
                "its saliency, boxes, descriptors, or what tells parts and categories differ from "
                f"the detector's by up to {self.other:.3g}, and at most {LIMITS[precision]:g} is "
                f"allowed in {precision}"
            )
        least, found = self.least_correlation, self.rank_correlation
        if precision in ROUNDED and (found is None or not found >= least):
            told = "unknown" if found is None else f"{found:.4f}"
            return (
                "it ranks pictures otherwise than the detector (correlation "
                f"{told}, {least:.4g} is needed)"
            )
        return ""


def compare(
    detector: Detector,
    engine: Engine,
    pictures: Sequence[Any] | None,
    *,
    precision: str,
    version: str,
    rounded: Engine | None = None,
    progress: Progress = silent,
) -> Proof:
    """Both asked of the same prepared pictures.

    Args:
        detector: of the artifact, run by PyTorch in fp32. engine: with the graph.
        pictures: paths or arrays, of which those that it has learned from do not count; None =
            generated ones, the same every time.
        rounded: of the artifact, run by PyTorch in the graph's precision: where it differs by more
            than the limit, or ranks pictures otherwise, the graph may by half as much again.
    Raises: DataError where none of the pictures can be read and is new to it; ExportError for a
        graph that gives other outputs than the detector.
    """
    given = _generated() if pictures is None else _evenly(pictures)
    graph, own = _Apart(), _Apart()
    for done, batch in _batches(detector, given):
        expected = _said(detector.engine, batch, detector)
        graph.add(expected, _said(engine, batch, detector))
        if rounded is not None:
            own.add(expected, _said(rounded, batch, detector))
        progress("comparing with the detector", done, len(given))
    if not graph.scores:
        raise DataError(
            "none of the pictures to compare by can be read, or it has learned from all"
        )
    ours, theirs = (np.concatenate(each) for each in zip(*graph.scores, strict=True))
    stored = np.asarray(detector.record.calibration_scores, dtype=np.float64)
    of_stored = stored.size > 1 and float(stored.std()) > 0
    deviation = max(float((stored if of_stored else ours).std()), 1e-12)
    limit = LIMITS[precision]
    return Proof(
        pictures=len(ours),
        of="generated" if pictures is None else "given",
        score=graph.score / deviation,
        map=graph.map / deviation,
        limit=max(limit, _AS_MUCH * own.score / deviation),
        map_limit=max(limit, _AS_MUCH * own.map / deviation),
        mean_score=float(np.abs(theirs - ours).mean()) / deviation,
        deviation=deviation,
        unit_of="calibration scores" if of_stored else "compared pictures",
        other=graph.other,
        rank_correlation=_correlation(ours, theirs),
        least_correlation=min(LEAST_CORRELATION, own.least_correlation()),
        engine=version,
    )


@dataclass
class _Apart:
    """How far two engines were apart: the scores of either, batch by batch, and the largest
    differences, NaN where anything was not finite."""

    scores: list[tuple[NDArray[np.float64], NDArray[np.float64]]] = field(default_factory=list)
    score: float = 0.0
    map: float = 0.0
    other: float = 0.0

    def add(self, expected: Outputs, found: Outputs) -> None:
        _check_alike(expected, found)
        self.scores.append((expected.score.astype(np.float64), found.score.astype(np.float64)))
        self.score = float(np.maximum(self.score, _largest(expected.score, found.score)))
        self.map = float(np.maximum(self.map, _largest(expected.map, found.map)))
        for name in ("saliency", "box", "part", "category", "descriptor"):
            one, other = getattr(expected, name), getattr(found, name)
            if one is not None:
                self.other = float(np.maximum(self.other, _largest(one, other)))

    def least_correlation(self) -> float:
        """Half as far again from 1 as these are, where any are."""
        if not self.scores:
            return 1.0
        ours, theirs = (np.concatenate(each) for each in zip(*self.scores, strict=True))
        found = _correlation(ours, theirs)
        return 1.0 if found is None else 1 - _AS_MUCH * (1 - found)


def _said(engine: Engine, batch: Sequence[Picture], detector: Detector) -> Outputs:
    """What an engine says of pictures, of their categories too where the detector tells these."""
    images: Any = np.stack([_input(each, detector, engine) for each in batch])
    return engine.run(images, category=detector.record.category_features is not None)


def _check_alike(expected: Outputs, found: Outputs) -> None:
    for name in OUTPUTS:
        one, other = (getattr(each, name) for each in (expected, found))
        if (one is None) != (other is None) or (one is not None and one.shape != other.shape):
            raise ExportError(f"the graph's {name} is not of the form of the detector's")


def _largest(one: NDArray[Any], other: NDArray[Any]) -> float:
    """The largest difference; NaN where any value of either is not finite."""
    return float(np.abs(one.astype(np.float64) - other).max())


def _correlation(one: NDArray[np.float64], other: NDArray[np.float64]) -> float | None:
    """Spearman's."""
    if len(one) < 3 or not (np.isfinite(one).all() and np.isfinite(other).all()):
        return None
    first, second = _ranks(one), _ranks(other)
    if first.std() == 0 or second.std() == 0:
        return None
    return float(np.corrcoef(first, second)[0, 1])


def _ranks(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """From 1; equal values share the mean of theirs."""
    _, which, counts = np.unique(values, return_inverse=True, return_counts=True)
    ranks: NDArray[np.float64] = (np.cumsum(counts) - (counts - 1) / 2)[which]
    return ranks


def _input(picture: Picture, detector: Detector, engine: Engine) -> NDArray[Any]:
    take = as_pixels if engine.input == "pixels" else prepare
    found: NDArray[Any] = take(picture, detector.preprocessing)
    return found


def _batches(detector: Detector, given: Sequence[Any]) -> Iterator[tuple[int, list[Picture]]]:
    window, batch = detector.preprocessing.decode_window(), list[Picture]()
    learned = detector.learned  # at a distance of nothing, which rounding alone makes something
    for index, source in enumerate(given):
        picture = load_picture(source, index, window)
        if not isinstance(picture, Failure) and picture.digest not in learned:
            batch.append(picture)
        if batch and (len(batch) == _BATCH or index == len(given) - 1):
            yield index + 1, batch
            batch = []


def _evenly(pictures: Sequence[Any]) -> Sequence[Any]:
    return pictures[:: -(-len(pictures) // MOST)]


def _generated() -> list[NDArray[np.uint8]]:
    """Pictures of shapes on grained ground, of several sizes: the same every time."""
    made = []
    for number in range(GENERATED):
        random = np.random.default_rng(number)
        height, width = random.integers(96, 512, size=2)
        y, x = np.mgrid[:height, :width].astype(np.float32)
        ground = random.uniform(40, 200, 3) + random.normal(0, 3 + number, (height, width, 1))
        wave = 20 * np.sin(x[..., None] / random.uniform(4, 40) + y[..., None] / 17)
        picture = ground + wave
        for _ in range(number % 4 + 1):
            across, down, size = random.uniform(0, 1, 3)
            far = np.hypot(y - down * height, x - across * width)
            picture[far < (0.05 + 0.2 * size) * min(height, width)] = random.uniform(0, 255, 3)
        made.append(np.clip(picture, 0, 255).astype(np.uint8))
    return made

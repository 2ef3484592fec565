"""Pixel AUROC and AUPRO, exact (`PixelMetrics`) or in constant memory with an error bound
(`StreamingPixelMetrics`).

AUPRO (Bergmann et al. 2021, "The MVTec Anomaly Detection Dataset", IJCV) is the area under the
per-region overlap: the share of a defect region whose pixels score at least a threshold, averaged
over all regions of all pictures, drawn against the false-positive rate of the normal pixels,
integrated from 0 to a limit and divided by it. A region is an 8-connected component of a mask. The
curve has one point per distinct score, and straight lines between: tied pixels move it in one
diagonal step.

Both metrics need only the defect pixels in order, and, for each distinct score among them, how many
normal pixels lie above it and how many are tied with it. A pixel of a region of r pixels out of R
raises the overlap by 1 / (r R), and adds that much area for all of the false-positive axis between
its own place and the limit; between two defect scores the curve is flat. So the area is a sum over
defect scores and no curve is ever stored.
"""

from __future__ import annotations

import math
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, TypeVar

import cv2
import numpy as np
from numpy.typing import ArrayLike, NDArray

from blemish.errors import ConfigError, NonFiniteError

FPR_LIMIT = 0.3
_HISTOGRAMS = ("_pixels", "_positives", "_weights")  # of `StreamingPixelMetrics`
T = TypeVar("T", bound=np.generic)


@dataclass(frozen=True)
class PixelResult:
    """Pixel metrics, fractions between 0 and 1.

    Attributes:
        pixel_auroc, aupro: None unless there are defect pixels and normal pixels.
        auroc_error, aupro_error: how far the exact value can lie from the one given, at most; 0 for
            exact metrics. Sums are rounded besides, by about 1e-12.
    """

    pixel_auroc: float | None
    aupro: float | None
    auroc_error: float = 0.0
    aupro_error: float = 0.0


class PixelMetrics:
    """Exact pixel AUROC and AUPRO of the maps added so far.

    One sort over all pixels, in place and without their labels: defect pixels are few, so they are
    kept apart, sorted with their weights and looked up among all the pixels. Memory: 4 bytes a
    pixel (room to grow: an eighth more) and 12 a defect pixel; while computing about 100 more a
    defect pixel.

    Example:
        >>> metrics = PixelMetrics()
        >>> metrics.add([[0.1, 0.2], [0.3, 0.9]], np.array([[False, False], [False, True]]))
        >>> metrics.add([[0.0, 0.1], [0.2, 0.2]], None)
        >>> metrics.compute()
        PixelResult(pixel_auroc=1.0, aupro=1.0, auroc_error=0.0, aupro_error=0.0)
    """

    def __init__(self) -> None:
        self._pixels = np.empty(0, dtype=np.float32)
        self._count = 0
        self._scores: list[NDArray[np.float32]] = []
        self._weights: list[NDArray[np.float64]] = []
        self._regions = 0

    def add(
        self,
        anomaly_map: ArrayLike,
        mask: NDArray[np.bool_] | None,
        inside: NDArray[np.bool_] | None = None,
    ) -> None:
        """Adds one picture.

        Args:
            anomaly_map: H×W scores, any unit, compared as float32; it is copied.
            mask: bool H×W, True on defects; None for a picture without any.
            inside: bool H×W, False on pixels that do not count; None = all do.
        Raises: ConfigError when the map is not H×W or the mask does not fit it; NonFiniteError for
            NaN or infinite scores.
        """
        scores = _checked(anomaly_map, mask)
        mask, counted = _counted(scores, mask, inside)
        end = self._count + counted.size
        if end > self._pixels.size:
            # Grown in place: there are never two copies. No view outlives a method.
            self._pixels.resize(max(end, self._pixels.size * 9 // 8), refcheck=False)
        self._pixels[self._count : end] = counted
        self._count = end
        if mask is not None and mask.any():
            weights, regions = _region_weights(mask)
            self._scores.append(scores[mask])
            self._weights.append(weights)
            self._regions += regions

    def merge(self, other: PixelMetrics) -> None:
        """Adds all that `other` has, after what is here: as if its pictures had been added."""
        end = self._count + other._count
        if end > self._pixels.size:
            self._pixels.resize(end, refcheck=False)
        self._pixels[self._count : end] = other._pixels[: other._count]
        self._count = end
        self._scores += other._scores
        self._weights += other._weights
        self._regions += other._regions

    def compute(self, fpr_limit: float = FPR_LIMIT) -> PixelResult:
        """The metrics of everything added; more may be added afterwards.

        Args: fpr_limit: in (0, 1], where the integral of AUPRO ends.
        Raises: ConfigError for another limit.
        """
        _check_limit(fpr_limit)
        curve, _ = self._curve()
        if curve is None:
            return PixelResult(None, None)
        return PixelResult(curve.auroc(), curve.aupro(fpr_limit))

    def overlaps(self, fpr_limit: float = FPR_LIMIT) -> list[tuple[int, float]]:
        """AUPRO by pictures, whose mean, each weighted by its regions, it is.

        The false-positive axis is that of all pictures: the value of a region is the area under its
        own overlap against the rate at which normal pixels of any picture score as high, up to the
        limit, and divided by it.

        Args: fpr_limit: as of `compute`.
        Returns: of each picture with a defect, in the order added, how many regions it has, and the
            mean of their values, in [0, 1]; nothing without defect pixels and normal pixels.
        Raises: as `compute`.
        """
        _check_limit(fpr_limit)
        curve, distinct = self._curve()
        if curve is None:
            return []
        gains, found = curve.gains(fpr_limit), []
        for scores, weights in zip(self._scores, self._weights, strict=True):
            regions = round(float(weights.sum()))  # of each all pixels together weigh 1
            area = float((weights * gains[np.searchsorted(distinct, scores)]).sum())
            found.append((regions, min(area / regions, 1.0)))
        return found

    def _curve(self) -> tuple[_Curve | None, NDArray[np.float32]]:
        """The curve, and the distinct defect scores that it has its points by; None without defect
        pixels and normal pixels."""
        if not self._scores or sum(map(len, self._scores)) == self._count:
            return None, np.empty(0, dtype=np.float32)
        scores = np.concatenate(self._scores)
        order = np.argsort(scores)
        scores = scores[order]
        starts = np.flatnonzero(np.append(True, scores[1:] != scores[:-1]))
        distinct = scores[starts]
        weights = np.add.reduceat(np.concatenate(self._weights)[order], starts)
        pixels, half = self._pixels[: self._count], self._count // 2
        # numpy lets go of the interpreter lock in sort and searchsorted.
        with ThreadPoolExecutor(2) as pool:
            pixels.partition(half)
            list(pool.map(np.ndarray.sort, (pixels[:half], pixels[half:])))
            sides = ("left", "right")
            below, upto = pool.map(lambda side: np.searchsorted(pixels, distinct, side), sides)
        positives = np.diff(starts, append=len(scores))
        return _curve(self._count, below, upto, positives, weights / self._regions), distinct


class StreamingPixelMetrics:
    """Pixel AUROC and AUPRO in constant memory: histograms over `bins` equal bins of [low, high],
    24 bytes a bin.

    The metrics are those of the binned scores: pixels of one bin count as tied. Their true order
    inside a bin is unknown, and the errors given are the most that any order could change. Scores
    outside the range fall in the end bins; the bound stays valid, only wider. With a range that
    fits the scores, 65,536 bins leave errors of about 1e-5.

    Args: low, high: finite, low < high, in the unit of the scores. bins: >= 1.
    Raises: ConfigError for another range or number.
    """

    def __init__(self, low: float, high: float, *, bins: int = 1 << 16) -> None:
        if bins < 1:
            raise ConfigError(f"bins: {bins} is not a number of bins; at least 1 is needed")
        if not (low < high and math.isfinite(high - low) and math.isfinite(bins / (high - low))):
            raise ConfigError(
                f"{low} to {high} is not a range of scores; low < high, both finite, is needed"
            )
        self._low, self._high = low, high
        self._scale = bins / (high - low)
        self._bins = bins
        self._pixels = np.zeros(bins, dtype=np.int64)
        self._positives = np.zeros(bins, dtype=np.int64)
        self._weights = np.zeros(bins, dtype=np.float64)
        self._regions = 0

    def add(
        self,
        anomaly_map: ArrayLike,
        mask: NDArray[np.bool_] | None,
        inside: NDArray[np.bool_] | None = None,
    ) -> None:
        """Adds one picture; arguments and errors as in `PixelMetrics.add`."""
        scores = _checked(anomaly_map, mask)
        # Whatever a step rounds, it keeps the order of the scores, and so that of the bins.
        within = np.clip(scores.astype(np.float64), self._low, self._high)
        position = (within - self._low) * self._scale
        bins = np.minimum(position.astype(np.intp), self._bins - 1)
        mask, counted = _counted(bins, mask, inside)
        self._pixels += np.bincount(counted, minlength=self._bins)
        if mask is not None and mask.any():
            weights, regions = _region_weights(mask)
            self._positives += np.bincount(bins[mask], minlength=self._bins)
            self._weights += np.bincount(bins[mask], weights, minlength=self._bins)
            self._regions += regions

    def merge(self, other: StreamingPixelMetrics) -> None:
        """Adds all that `other` has: counts exactly, weights up to rounding; the bound is that of
        all of it. Raises: ConfigError where its bins are others."""
        mine, others = ((each._low, each._high, each._bins) for each in (self, other))
        if mine != others:
            raise ConfigError(
                f"bins: {others[2]} from {others[0]} to {others[1]} do not merge with {mine[2]} "
                f"from {mine[0]} to {mine[1]}"
            )
        self._pixels += other._pixels
        self._positives += other._positives
        self._weights += other._weights
        self._regions += other._regions

    def __getstate__(self) -> dict[str, Any]:
        """Most bins are empty, so what is handed to another process are the others."""
        state = dict(self.__dict__)
        for name in _HISTOGRAMS:
            used = np.flatnonzero(state[name])
            state[name] = used, state[name][used]
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        for name in _HISTOGRAMS:
            used, values = state[name]
            whole = np.zeros(self._bins, dtype=values.dtype)
            whole[used] = values
            setattr(self, name, whole)

    def compute(self, fpr_limit: float = FPR_LIMIT) -> PixelResult:
        """The metrics and error bounds of everything added; as `PixelMetrics.compute`."""
        _check_limit(fpr_limit)
        upto = np.cumsum(self._pixels)
        total = int(upto[-1])
        if self._regions == 0 or int(self._positives.sum()) == total:
            return PixelResult(None, None)
        used = np.flatnonzero(self._positives)
        below = (upto - self._pixels)[used]
        weights = self._weights[used] / self._regions
        curve = _curve(total, below, upto[used], self._positives[used], weights)
        errors = curve.auroc_error(), curve.aupro_error(fpr_limit)
        return PixelResult(curve.auroc(), curve.aupro(fpr_limit), *errors)


@dataclass(frozen=True)
class _Curve:
    """The ROC and PRO curves, by distinct defect score (exact) or bin (streaming).

    positives: defect pixels there. weights: what they add to the mean overlap, 1 in all. above,
    tied: normal pixels with a higher score and with the same one. normals: all normal pixels.
    """

    positives: NDArray[np.int64]
    weights: NDArray[np.float64]
    above: NDArray[np.int64]
    tied: NDArray[np.int64]
    normals: int

    def auroc(self) -> float:
        """Mann-Whitney, exact in integers: a defect pixel beats those below, half of those tied."""
        doubled = self.positives * (2 * (self.normals - self.above) - self.tied)
        return int(doubled.sum()) / self._pairs()

    def auroc_error(self) -> float:
        """The order among the tied could make each of them win or lose, instead of half."""
        return int((self.positives * self.tied).sum()) / self._pairs()

    def aupro(self, limit: float) -> float:
        """What all steps give."""
        return min(float(np.sum(self.weights * self.gains(limit))), 1.0)

    def gains(self, limit: float) -> NDArray[np.float64]:
        """What each step gives, of weight 1: the area to its right, up to the limit; of a diagonal
        across the limit, its part on this side. As a share of the largest there is.
        """
        reach = self._reach(limit)
        inside = np.minimum(reach, self.tied)  # the run of the diagonal on this side of the limit
        share = np.divide(inside, self.tied, out=np.ones_like(reach), where=self.tied > 0)
        area: NDArray[np.float64] = share * (reach - inside / 2) / (limit * self.normals)
        return area

    def aupro_error(self, limit: float) -> float:
        """Inside a bin the curve may rise at once, or at its end only. To rise at once changes the
        area more.

        A step all before the limit gains by the one what it loses by the other; of a step across
        it, the diagonal has at most half of the area of rising at once, and rising at its end has
        none.
        """
        highest = np.sum(self.weights * self._reach(limit)) / (limit * self.normals)
        return max(float(highest) - self.aupro(limit), 0.0)

    def _reach(self, limit: float) -> NDArray[np.float64]:
        """How far it is from each step to the limit, in normal pixels."""
        reach: NDArray[np.float64] = np.maximum(limit * self.normals - self.above, 0.0)
        return reach

    def _pairs(self) -> int:
        return 2 * int(self.positives.sum()) * self.normals


def _curve(
    total: int,
    below: NDArray[np.int64],
    upto: NDArray[np.int64],
    positives: NDArray[np.int64],
    weights: NDArray[np.float64],
) -> _Curve:
    """The curve from counts over *all* pixels, below and not above each defect score; defects are
    taken out here.
    """
    defects = int(positives.sum())
    above = (total - upto) - (defects - np.cumsum(positives))
    return _Curve(positives, weights, above, upto - below - positives, total - defects)


def _checked(anomaly_map: ArrayLike, mask: NDArray[np.bool_] | None) -> NDArray[np.float32]:
    with np.errstate(over="ignore"):  # beyond float32: infinite, and an error below
        scores = np.asarray(anomaly_map).astype(np.float32, copy=False)
    if scores.ndim != 2:
        raise ConfigError(f"an anomaly map has shape {scores.shape}; H×W is needed")
    if mask is not None and mask.shape != scores.shape:
        raise ConfigError(
            f"a mask of {mask.shape} does not fit its anomaly map of {scores.shape}; resize one of "
            "them"
        )
    if mask is not None and mask.dtype != np.bool_:
        raise ConfigError(
            f"a mask has dtype {mask.dtype}; bool is needed (for a picture: mask > half of full "
            "scale)"
        )
    if not np.isfinite(scores).all():
        raise NonFiniteError("an anomaly map holds NaN or infinite scores (as float32)")
    return scores


def _counted(
    values: NDArray[T], mask: NDArray[np.bool_] | None, inside: NDArray[np.bool_] | None
) -> tuple[NDArray[np.bool_] | None, NDArray[T]]:
    """The defect pixels that count, and the values of all pixels that do, in one row."""
    if inside is None:
        return mask, values.ravel()
    return None if mask is None else mask & inside, values[inside]


def _region_weights(mask: NDArray[np.bool_]) -> tuple[NDArray[np.float64], int]:
    """(1 / size of its region for each defect pixel in row order, number of regions) of a mask with
    any.
    """
    count, labels = cv2.connectedComponents(mask.view(np.uint8), connectivity=8)
    owners = labels[mask]
    return (1.0 / np.maximum(np.bincount(owners), 1))[owners], count - 1


def _check_limit(fpr_limit: float) -> None:
    if not 0 < fpr_limit <= 1:
        raise ConfigError(f"fpr_limit: {fpr_limit} is not in (0, 1]")

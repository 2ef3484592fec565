"""Patches of a second normal picture, blended in: FPI by colours, PII and NSA by gradients."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import cv2
import numpy as np

from blemish.anomalies import poisson
from blemish.anomalies.base import Simulator, Synthetic, blank
from blemish.anomalies.patch import (
    Patch,
    check_number,
    check_range,
    free_place,
    pixels_of,
    put,
    window,
)
from blemish.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class FPI(Simulator):
    """Convex interpolation with the same place of another picture; the label is the other's share.

    Tan, Hou, Batten, Qiu, Kainz 2020, "Detecting Outliers with Foreign Patch Interpolation"; the
    defaults are the published ones. The centre lies evenly within the middle 80 % of each side;
    what leaves the picture is clipped.

    Attributes:
        sides: share of the picture's height, and the same of its width (a square of a square
            picture), drawn evenly between the two; in (0, 1].
        factor: share of the other picture, drawn evenly between the two; in [0, 1].
    Raises: ConfigError for a value out of range.
    """

    name: ClassVar[str] = "fpi"
    summary: ClassVar[str] = "interpolate a patch with that of another picture"
    source: ClassVar[str] = "Tan et al. 2020, Detecting Outliers with Foreign Patch Interpolation"
    needs_other: ClassVar[bool] = True

    sides: tuple[float, float] = (0.1, 0.4)
    factor: tuple[float, float] = (0.05, 0.95)

    def __post_init__(self) -> None:
        check_range("sides", self.sides, 1e-6, 1)
        check_range("factor", self.factor, 0, 1)

    def _attempt(
        self, target: np.ndarray, rng: np.random.Generator, other: np.ndarray, attention: np.ndarray
    ) -> Synthetic:
        share, factor = rng.uniform(*self.sides), np.float32(rng.uniform(*self.factor))
        spans = []
        for side in target.shape[:2]:
            extent = pixels_of(share, side)
            start = int(rng.uniform(0.1, 0.9) * side) - extent // 2
            spans.append(slice(max(start, 0), min(start + extent, side)))
        canvas, mask, _ = blank(target)
        foreign = other[spans[0], spans[1]]
        whole = np.ones(foreign.shape[:2], dtype=bool)
        self._blend(canvas, mask, Patch(spans[0], spans[1], foreign, whole), factor)
        return Synthetic(canvas, mask, mask * factor)

    def _blend(
        self, canvas: np.ndarray, mask: np.ndarray, patch: Patch, factor: np.float32
    ) -> None:
        place = (patch.rows, patch.columns)
        canvas[place] += factor * (patch.pixels - canvas[place])
        mask[place] = True


@dataclass(frozen=True, kw_only=True)
class PII(FPI):
    """Poisson interpolation with the same place of another picture; the label is the other's share
    α.

    Tan, Hou, Day, Simpson, Rueckert, Kainz 2021, "Detecting Outliers with Poisson Image
    Interpolation": inside the patch each gradient is (1 − α)·∇image where that is larger in size
    than α·∇other, else α·∇other. Place, size and α as in `FPI`. Solved on the rectangle around the
    patch (see `poisson`).
    """

    name: ClassVar[str] = "pii"
    summary: ClassVar[str] = "interpolate the gradients of a patch with those of another picture"
    source: ClassVar[str] = "Tan et al. 2021, Detecting Outliers with Poisson Image Interpolation"

    def _blend(
        self, canvas: np.ndarray, mask: np.ndarray, patch: Patch, factor: np.float32
    ) -> None:
        def guidance(target: np.ndarray, source: np.ndarray) -> np.ndarray:
            return poisson.mixed((1 - factor) * target, factor * source)

        poisson.melt(canvas, mask, patch, guidance)


@dataclass(frozen=True, kw_only=True)
class NSA(Simulator):
    """Several patches of another picture, shifted, resized and blended by Poisson editing; labelled
    by what changed.

    Schlüter, Tan, Hou, Kainz 2022, "Natural Synthetic Anomalies for Self-Supervised Anomaly
    Detection and Localization". A pixel is anomalous where the mean absolute change over the
    channels exceeds one grey level of 8 bits (after a 5×5 median filter of that mask); its label is
    the logistic function of the median-filtered change.

    Size, resizing and blending are as published. The paper chooses for each category of MVTec AD an
    upper bound of the size, the number of patches, the logistic function and where the object is;
    without such knowledge here: the bound, patches and logistic function that most of its textures
    have, patches anywhere, and the median of 5×5 pixels for a disc of radius 5. (For textures the
    paper resizes by 0.5-2.)

    Attributes:
        bounds: of a patch's height and width, as a share of the picture's, before and after
            resizing; in (0, 1].
        gamma: shape, scale and offset of the Gamma distribution of that share: offset + Γ(shape,
            scale), brought into the bounds.
        resize: bounds of the resizing factor, drawn from a normal distribution of mean 1 and
            deviation 0.5; > 0.
        patches: the most; one, and each further one with probability ½; >= 1.
        logistic: steepness k (per grey level) and middle x0 (grey levels of 8 bits) of 1 / (1 +
            exp(−k (change − x0))).
        mixed: whether the larger gradient wins, instead of the patch's own.
    Raises: ConfigError for a value out of range.
    """

    name: ClassVar[str] = "nsa"
    summary: ClassVar[str] = "blend patches of another picture in, labelled by how much changed"
    source: ClassVar[str] = "Schlüter et al. 2022, Natural Synthetic Anomalies"
    needs_other: ClassVar[bool] = True

    bounds: tuple[float, float] = (0.06, 0.8)
    gamma: tuple[float, float, float] = (2.0, 0.1, 0.06)
    resize: tuple[float, float] = (0.7, 1.3)
    patches: int = 4
    logistic: tuple[float, float] = (1 / 3, 7.0)
    mixed: bool = False

    def __post_init__(self) -> None:
        check_range("bounds", self.bounds, 1e-6, 1)
        if len(self.gamma) != 3 or self.gamma[0] <= 0 or self.gamma[1] <= 0:
            raise ConfigError("gamma: shape > 0, scale > 0 and an offset are needed")
        check_range("resize", self.resize, 1e-2, 1e2)
        check_number("patches", self.patches, 1, 100)
        if len(self.logistic) != 2 or self.logistic[0] <= 0:
            raise ConfigError("logistic: a steepness > 0 and a middle are needed")

    def _attempt(
        self, target: np.ndarray, rng: np.random.Generator, other: np.ndarray, attention: np.ndarray
    ) -> Synthetic:
        canvas, mask, size = blank(target)
        for _ in range(1 + int(rng.binomial(self.patches - 1, 0.5))):
            extent = (self._side(rng, size[0]), self._side(rng, size[1]))
            piece = other[window(free_place(rng, extent, size), extent, size)]
            height, width = self._resized(rng, extent, size)
            resized = cv2.resize(np.ascontiguousarray(piece), (width, height))
            piece = resized.reshape(height, width, -1)
            patch = put(piece, free_place(rng, (height, width), size), size)
            poisson.melt(canvas, mask, patch, poisson.mixed if self.mixed else poisson.imported)
        from scipy.special import expit  # here, as the base install has no SciPy

        grey_levels = np.float32(255 / target.shape[2])
        change = np.einsum("hwc->hw", np.abs(canvas - target)) * grey_levels
        anomalous = mask & (cv2.medianBlur((change > 1).astype(np.uint8), 5) > 0)
        steepness, middle = self.logistic
        label = expit(steepness * (cv2.medianBlur(change, 5) - middle))
        return Synthetic(canvas, anomalous, (label * anomalous).astype(np.float32))

    def _side(self, rng: np.random.Generator, whole: int) -> int:
        shape, scale, offset = self.gamma
        return pixels_of(float(np.clip(offset + rng.gamma(shape, scale), *self.bounds)), whole)

    def _resized(
        self, rng: np.random.Generator, extent: tuple[int, int], size: tuple[int, int]
    ) -> tuple[int, int]:
        """Height and width after resizing: the same factor for both, so that both stay within the
        bounds.
        """
        shares = [e / s for e, s in zip(extent, size, strict=True)]
        low = max(self.resize[0], self.bounds[0] / min(shares))
        high = min(self.resize[1], self.bounds[1] / max(shares))
        factor = float(np.clip(rng.normal(1, 0.5), min(low, high), high))
        return pixels_of(factor * shares[0], size[0]), pixels_of(factor * shares[1], size[1])

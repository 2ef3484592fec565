"""What every simulator of anomalies takes and gives."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, replace
from typing import ClassVar, final

import cv2
import numpy as np

from blemish.anomalies.patch import pixels_of, window
from blemish.errors import ConfigError

TRIES = 8
SMALLEST = 8  # pixels a side
VISIBLE = 1 / 255  # a change of less than one grey level of 8 bits is none


@dataclass(frozen=True, slots=True)
class Synthetic:
    """A picture with a synthetic anomaly.

    Attributes:
        image: float32 H W C in [0, 1].
        mask: bool H W: the pixels that count as anomalous; never empty.
        label: float32 H W in [0, 1]: how anomalous; 0 outside the mask.
        kind: class of the anomaly, from 1 to the simulator's `kinds`.
    """

    image: np.ndarray
    mask: np.ndarray
    label: np.ndarray
    kind: int = 1


class Simulator(ABC):
    """Makes synthetic anomalies from normal pictures.

    Attributes:
        name, summary, source: what it is called, what it does, and the paper it comes from.
        needs_other: whether it takes from a second normal picture.
        needs_attention: whether attention says where it cuts and pastes.
        kinds: how many classes of anomaly it makes.
    """

    name: ClassVar[str]
    summary: ClassVar[str]
    source: ClassVar[str]
    needs_other: ClassVar[bool] = False
    needs_attention: ClassVar[bool] = False
    kinds: ClassVar[int] = 1

    @final
    def __call__(
        self,
        image: np.ndarray,
        rng: np.random.Generator,
        *,
        other: np.ndarray | None = None,
        attention: np.ndarray | None = None,
        area: np.ndarray | None = None,
    ) -> Synthetic:
        """`image` with an anomaly; outside of what was pasted, `image` clipped to [0, 1].

        What cannot be seen (nowhere in the mask a change of more than one grey level of 8 bits, as
        where black is pasted on black) is drawn again, up to 8 times in all. Then (a constant
        picture, say) the brightness of a rectangle of 0.1-0.4 of each side goes 0.2-0.5 of the way
        to the farther end of [0, 1], so that training never stalls; the rectangle lies where
        attention draws it if the simulator needs attention, else anywhere.

        Args:
            image: float H W C in [0, 1], H, W >= 8, C >= 1; it is not changed.
            rng: all that is random comes from here.
            other: another normal picture, of the same size; ignored by those that need none.
            attention: h w on any grid, non-negative, with a positive sum; ignored by those that
                need none.
            area: bool H W, some of it True: nothing changes elsewhere, and attention looks nowhere
                else; None = everywhere.
        Raises: ConfigError for arrays of the wrong shape or type, or a needed `other` or
        `attention` that is missing.
        """
        target = _picture("image", image)
        second, guide = target, np.ones((1, 1))
        if self.needs_other:
            if other is None:
                raise ConfigError(f"{self.name} needs a second normal picture: pass other=")
            second = _picture("other", other)
            if second.shape != target.shape:
                raise ConfigError(
                    f"other: shape {second.shape} given; that of the image, {target.shape}, is "
                    "needed"
                )
        if self.needs_attention:
            if attention is None:
                raise ConfigError(
                    f"{self.name} needs to know where to look: pass attention=, or choose cutpaste"
                )
            guide = attention
        if area is not None:
            guide = _limited(guide, area, (target.shape[0], target.shape[1]))
        for _ in range(TRIES):
            made = _within(self._attempt(target, rng, second, guide), target, area)
            if ((np.abs(made.image - target) > VISIBLE) & made.mask[..., None]).any():
                return made
        return _within(_brightened(target, rng, guide), target, area)

    @abstractmethod
    def _attempt(
        self, target: np.ndarray, rng: np.random.Generator, other: np.ndarray, attention: np.ndarray
    ) -> Synthetic:
        """One try, which may turn out invisible, on float32 H W C in [0, 1] that stay as they are.

        Where no other picture is needed it is the same; attention h w is flat where none is needed.
        """


def blank(target: np.ndarray) -> tuple[np.ndarray, np.ndarray, tuple[int, int]]:
    """What an anomaly is made on: a copy of the picture, an empty mask, and its size (H, W)."""
    size = (target.shape[0], target.shape[1])
    return target.copy(), np.zeros(size, dtype=bool), size


def plain(image: np.ndarray, mask: np.ndarray, kind: int = 1) -> Synthetic:
    """An anomaly whose label is its mask."""
    return Synthetic(image, mask, mask.astype(np.float32), kind)


def place_probability(attention: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """The probability of every pixel to be the centre of a cut or a paste: float64 H W, sum 1.

    Attention h w, brought to `size` (H, W) bilinearly (averaged over areas first along a side that
    shrinks, which would otherwise lose peaks) and normalised.

    Raises: ConfigError unless attention is two-dimensional, finite, non-negative and somewhere
    positive.
    """
    given = np.asarray(attention)
    if given.ndim != 2 or given.size == 0:
        raise ConfigError(f"attention: shape {given.shape} given; (h, w) is needed")
    weights = given.astype(np.float64)
    if not (np.isfinite(weights).all() and weights.min() >= 0 and weights.max() > 0):
        raise ConfigError("attention: finite numbers are needed, none negative and not all zero")
    weights /= weights.max()
    height, width = size
    smaller = (min(height, weights.shape[0]), min(width, weights.shape[1]))
    if smaller != weights.shape:
        weights = cv2.resize(weights, smaller[::-1], interpolation=cv2.INTER_AREA)
    if size != weights.shape:
        weights = cv2.resize(weights, (width, height), interpolation=cv2.INTER_LINEAR)
    return np.asarray(weights / weights.sum())


def draw_places(
    attention: np.ndarray, size: tuple[int, int], rng: np.random.Generator, count: int
) -> list[tuple[int, int]]:
    """`count` pixels (row, column) of a picture of `size` (H, W), independently from
    `place_probability`.
    """
    cumulative = place_probability(attention, size).ravel().cumsum()
    # Right of equal values: where the probability is zero nothing is drawn.
    drawn = np.searchsorted(cumulative, rng.random(count) * cumulative[-1], side="right")
    return [divmod(int(place), size[1]) for place in drawn]


def _picture(name: str, image: np.ndarray) -> np.ndarray:
    """float32 H W C clipped to [0, 1], a copy."""
    if image.ndim != 3 or min(image.shape[:2]) < SMALLEST or image.shape[2] < 1:
        raise ConfigError(
            f"{name}: shape {image.shape} given; H W C with H and W from {SMALLEST} up is needed"
        )
    if not np.issubdtype(image.dtype, np.floating):
        raise ConfigError(f"{name}: {image.dtype} given; floating point in [0, 1] is needed")
    return np.asarray(np.clip(image, 0, 1), dtype=np.float32, order="C")


def _limited(attention: np.ndarray, area: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Where attention looks in an area, H W; evenly where it looks nowhere in it.

    Raises: ConfigError for an area that does not fit.
    """
    if area.shape != size or area.dtype != bool or not area.any():
        raise ConfigError(
            f"area: {area.dtype} of shape {area.shape} with {np.count_nonzero(area)} places given; "
            f"bool {size} with one at least is needed"
        )
    inside = np.asarray(place_probability(attention, size) * area)
    return inside if inside.any() else area.astype(np.float64)


def _within(made: Synthetic, target: np.ndarray, area: np.ndarray | None) -> Synthetic:
    """What of an anomaly lies in the area, which may be nothing."""
    if area is None:
        return made
    return replace(
        made,
        image=np.where(area[..., None], made.image, target),
        mask=made.mask & area,
        label=np.where(area, made.label, np.float32(0)),
    )


def _brightened(target: np.ndarray, rng: np.random.Generator, attention: np.ndarray) -> Synthetic:
    image, mask, size = blank(target)
    (centre,) = draw_places(attention, size, rng, 1)
    extent = (pixels_of(rng.uniform(0.1, 0.4), size[0]), pixels_of(rng.uniform(0.1, 0.4), size[1]))
    place = window(centre, extent, size)
    end = 0.0 if target[place].mean() > 0.5 else 1.0
    image[place] += np.float32(rng.uniform(0.2, 0.5)) * (np.float32(end) - image[place])
    mask[place] = True
    return plain(image, mask)

"""From decoded pixels to the array that a backbone sees."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated

import cv2
import numpy as np
from numpy.typing import NDArray

from blemish.area import Area
from blemish.config import LARGEST, NEW, Finite, Length, Range, Side, check
from blemish.data.geometry import CUT, Placement, Resize, check_resize, check_shown
from blemish.data.tiling import Tiling, Window
from blemish.errors import ConfigError
from blemish.images import Picture

Colours = Annotated[tuple[Annotated[float, Range(0, 1)], ...], Length(3, 3)]
_NOT_ZERO = 1e-6  # of a normalised pixel: see `prepare`
Spreads = Annotated[tuple[Annotated[float, Range(1e-3, 1)], ...], Length(3, 3)]


@dataclass(frozen=True, kw_only=True)
class Preprocessing:
    """How every picture is brought to the backbone, at fit and at prediction alike; stored in the
    artifact.

    Attributes:
        height, width: of the input that it comes into, in pixels.
        resize: how it does; see `blemish.data.geometry`.
        mean, std: of the normalisation, per channel, for pixels in [0, 1].
        window: (lo, hi) mapped linearly to 0…1 when decoding; None = 8-bit as it is, 16-bit over
            its full range.
        area: where it is looked at: pixels outside become `mean` before anything else is done;
            None = everywhere.
        tiling: how a picture is cut into tiles, each of which is brought to the backbone as if it
            were a picture; None = it is looked at whole.
    """

    height: Side
    width: Side
    mean: Colours
    std: Spreads
    window: Annotated[tuple[Finite, ...], Length(2, 2)] | None = None
    area: Area | None = field(default=None, metadata={NEW: True})
    tiling: Tiling | None = field(default=None, metadata={NEW: True})
    resize: Resize = field(default="stretch", metadata={NEW: True})

    def __post_init__(self) -> None:
        check(self)
        check_resize(self.resize)
        if self.height * self.width > LARGEST:
            raise ConfigError(
                f"height, width: at most {LARGEST:,} pixels are possible, "
                f"got {self.height}×{self.width}"
            )
        if self.window is not None and not self.window[0] < self.window[1]:
            raise ConfigError(
                f"window: two numbers (lo, hi) with lo < hi are needed, got {list(self.window)}"
            )

    @property
    def is_framed(self) -> bool:
        """Whether the tensors of pictures say themselves what of them is looked at: see `prepare`.
        Otherwise it is the area, in all of them alike."""
        return self.resize != "stretch"

    def placement(self, size: tuple[int, int]) -> Placement:
        """Where a picture of this size, (H, W), lies in the input."""
        return Placement.of(size, (self.height, self.width), self.resize)

    def notes(self, picture: Picture) -> tuple[str, ...]:
        """What a person should know of how a picture was read, and of what is not looked at."""
        is_cut = self.placement(picture.size).is_cut
        return (*picture.notes, CUT) if is_cut else picture.notes

    @property
    def area_of_input(self) -> Area | None:
        """The part of the backbone's input that is looked at; None where it is another one in each
        tile."""
        return self.area if self.tiling is None else None

    def decode_window(self) -> tuple[float, float] | None:
        return None if self.window is None else (self.window[0], self.window[1])


def prepare(
    picture: Picture,
    preprocessing: Preprocessing,
    *,
    angle: float = 0.0,
    flip: bool = False,
    window: Window | None = None,
) -> NDArray[np.float32]:
    """float32 3 H W, without what lies outside the area, resized (area averaging when shrinking,
    bilinear when growing), rotated, mirrored, normalised, put into its place in the input.

    Where a picture may be padded (`Preprocessing.is_framed`), what is not to be looked at, the
    padding and what lies outside the area, is 0 in all channels, which no other pixel is: so the
    array says itself what counts (`blemish.methods.frames`), whatever is made of it on the way.

    Args:
        angle: degrees counter-clockwise about the centre; corners that come into view are filled by
            mirroring.
        flip: whether what was rotated is then mirrored left to right.
        window: which part of a picture it is; None = the whole.
    Raises: ImageError where nothing of the area is in what the input shows.
    """
    place, pixels = _resized(picture, preprocessing, window)
    if angle % 360 != 0:
        pixels = rotate(pixels, angle)
    if flip:
        pixels = pixels[:, ::-1]
    scale = 255.0 if pixels.dtype == np.uint8 else 1.0
    mean = np.asarray(preprocessing.mean, dtype=np.float32) * scale
    factor = 1.0 / (np.asarray(preprocessing.std, dtype=np.float32) * scale)
    normalised = (pixels.astype(np.float32) - mean) * factor
    if preprocessing.is_framed:
        normalised = _framed(normalised, place, _shown(picture, place, preprocessing, angle, flip))
    return np.ascontiguousarray(normalised.transpose(2, 0, 1))


def as_pixels(
    picture: Picture, preprocessing: Preprocessing, *, window: Window | None = None
) -> NDArray[np.uint8]:
    """uint8 H W 3: as `prepare`, but not normalised, for a graph that does so itself. Not where
    pictures may be padded, which nothing but normalised pixels can say."""
    _, pixels = _resized(picture, preprocessing, window)
    if pixels.dtype != np.uint8:
        pixels = np.rint(pixels * 255).astype(np.uint8)
    return np.ascontiguousarray(pixels)


def _resized(
    picture: Picture, preprocessing: Preprocessing, window: Window | None
) -> tuple[Placement, np.ndarray]:
    """Where a picture lies in the input, and what of it is shown there, at that size: h w 3."""
    pixels = _within(picture.pixels, preprocessing, window)
    place = preprocessing.placement((pixels.shape[0], pixels.shape[1]))
    pixels = pixels[place.shown]
    height, width = pixels.shape[:2]
    target = (place.across.filled, place.down.filled)
    if (width, height) != target:
        shrinks = width >= target[0] and height >= target[1]
        pixels = cv2.resize(
            pixels, target, interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR
        )
    return place, pixels


def _shown(
    picture: Picture, place: Placement, preprocessing: Preprocessing, angle: float, flip: bool
) -> np.ndarray | None:
    """bool h w of the part of the input that a picture fills: where the area lies, rotated and
    mirrored as the picture is; None where there is none."""
    if preprocessing.area is None:
        return None
    inside = check_shown(picture.source, place, preprocessing.area)[place.filled]
    if angle % 360 != 0:
        inside = rotate(inside.astype(np.uint8) * 255, angle) > 127
    return inside[:, ::-1] if flip else inside


def _framed(pixels: np.ndarray, place: Placement, inside: np.ndarray | None) -> np.ndarray:
    """Normalised pixels h w 3 in their place in the input, H W 3: 0 outside, and nowhere else."""
    made = np.zeros((place.down.input, place.across.input, 3), np.float32)
    part = made[place.filled]
    part[...] = pixels
    part[~part.any(-1), 0] = _NOT_ZERO
    if inside is not None:
        part[~inside] = 0
    return made


def _within(pixels: np.ndarray, preprocessing: Preprocessing, window: Window | None) -> np.ndarray:
    """H W 3 with the mean colour outside the area; a copy, unless all of it is inside.

    Before resizing: a pixel of the smaller picture would mix what is inside with what is not.
    """
    if preprocessing.area is None:
        return pixels
    if window is None:
        outside = ~preprocessing.area.mask(*pixels.shape[:2])
    else:
        outside = ~preprocessing.area.mask(*window.size, window.rows, window.columns)
    if not outside.any():
        return pixels
    mean = np.asarray(preprocessing.mean, dtype=np.float32)
    kept = pixels.copy()
    kept[outside] = np.rint(mean * 255) if pixels.dtype == np.uint8 else mean
    return kept


def rotate(pixels: np.ndarray, angle: float) -> np.ndarray:
    """H W C rotated by `angle` degrees counter-clockwise, bilinear, borders mirrored."""
    if pixels.shape[0] == pixels.shape[1] and angle % 90 == 0:
        return np.ascontiguousarray(np.rot90(pixels, round(angle / 90) % 4))
    height, width = pixels.shape[:2]
    turn = cv2.getRotationMatrix2D(((width - 1) / 2, (height - 1) / 2), angle, 1.0)
    flags, border = cv2.INTER_LINEAR, cv2.BORDER_REFLECT_101
    return np.asarray(cv2.warpAffine(pixels, turn, (width, height), flags=flags, borderMode=border))

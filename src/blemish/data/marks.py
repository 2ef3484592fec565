"""Where the defects of a picture are marked: by its mask, or by boxes."""

from __future__ import annotations

import math
from collections.abc import Iterable

import cv2
import numpy as np

from blemish.errors import ImageError
from blemish.images import decode_mask
from blemish.types import ANOMALOUS, NORMAL, Sample

COARSEST = 32  # pixels of a picture, across or down, to one of its mask: a patch of a coarse ViT


def marked(
    sample: Sample, height: int, width: int, *, mask: np.ndarray | None = None
) -> np.ndarray | None:
    """Where its defects are: bool H×W by its mask or else its boxes; None where neither is known.

    A pixel is what lies under its centre, as everywhere maps are resized: plain nearest sampling
    takes what lies under its upper left corner, which puts a mask half a pixel down and right of
    its map.

    Args:
        mask: as of `read_mask`, where it has been read already.
    Raises: ImageError for a mask that cannot be read.
    """
    if sample.mask is None:
        return _filled(sample.boxes, height, width) if sample.boxes else None
    mask = (read_mask(sample) if mask is None else mask).view(np.uint8)
    return np.asarray(
        cv2.resize(mask, (width, height), interpolation=cv2.INTER_NEAREST_EXACT), dtype=bool
    )


def read_mask(sample: Sample) -> np.ndarray:
    """What any of its masks marks: bool H×W, at the masks' own size.

    Raises: ImageError for one that cannot be read, or has another size than the others.
    """
    first, *others = sample.masks
    whole = decode_mask(first)
    for path in others:
        mask = decode_mask(path)
        if mask.shape != whole.shape:
            (height, width), (high, wide) = mask.shape, whole.shape
            same = f"{first.name} of the same picture {high}×{wide}"
            raise ImageError(path, f"is {height}×{width} pixels, and {same}")
        whole |= mask
    return whole


def fault_of(mask: np.ndarray, label: int | None, size: tuple[int, int]) -> str:
    """What is wrong with a mask (bool H×W) that can be read; "" where nothing is.

    Args:
        label, size: of its picture, (H, W).
    """
    height, width = mask.shape
    if (height, width) != size:
        # Other than by the rounding of a side to whole pixels.
        stretched = abs(height * size[1] - width * size[0]) > max(*size, height, width)
        how = "; in another shape, it is stretched over it" if stretched else ""
        how = "; too few to say where a defect is" if is_too_coarse(mask, size) else how
        return f"is {height}×{width} pixels, its picture {size[0]}×{size[1]}{how}"
    if label == ANOMALOUS and not mask.any():
        return "is empty, but its picture is anomalous"
    if label == NORMAL and mask.any():
        return "marks something, but its picture is normal"
    return ""


def is_too_coarse(mask: np.ndarray, size: tuple[int, int]) -> bool:
    """Whether a pixel of a mask covers more than `COARSEST` of its picture (H, W), either way."""
    return any(COARSEST * side < there for side, there in zip(mask.shape, size, strict=True))


def is_placed(sample: Sample) -> bool:
    """Whether it is known where in the picture its defects are."""
    return sample.mask is not None or bool(sample.boxes)


def _filled(
    boxes: Iterable[tuple[float, float, float, float]], height: int, width: int
) -> np.ndarray:
    """A bool mask H×W, True in any of the boxes."""
    mask = np.zeros((height, width), dtype=bool)
    for x, y, across, down in boxes:
        mask[_span(y, down, height), _span(x, across, width)] = True
    return mask


def _span(start: float, length: float, pixels: int) -> slice:
    """The pixels whose centres lie in [start, start + length), fractions of a side of so many
    pixels; one at least.

    Which is to say that either end goes to the nearest edge of a pixel, and from a centre to the
    edge before it.
    """
    first = min(max(math.ceil(start * pixels - 0.5), 0), pixels - 1)
    return slice(first, max(math.ceil((start + length) * pixels - 0.5), first + 1))

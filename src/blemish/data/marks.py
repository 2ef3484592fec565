"""Where the defects of a picture are marked: by its mask, or by boxes."""

from __future__ import annotations

import math
from collections.abc import Iterable

import cv2
import numpy as np

from blemish.images import decode_mask
from blemish.types import Sample


def marked(sample: Sample, height: int, width: int) -> np.ndarray | None:
    """Where its defects are: bool H×W by its mask or else its boxes; None where neither is known.

    A pixel is what lies under its centre, as everywhere maps are resized: plain nearest sampling takes what lies under
    its upper left corner, which puts a mask half a pixel down and right of its map.

    Raises: ImageError for a mask that cannot be read.
    """
    if sample.mask is None:
        return _filled(sample.boxes, height, width) if sample.boxes else None
    mask = decode_mask(sample.mask).astype(np.uint8)
    return np.asarray(cv2.resize(mask, (width, height), interpolation=cv2.INTER_NEAREST_EXACT), dtype=bool)


def is_placed(sample: Sample) -> bool:
    """Whether it is known where in the picture its defects are."""
    return sample.mask is not None or bool(sample.boxes)


def _filled(boxes: Iterable[tuple[float, float, float, float]], height: int, width: int) -> np.ndarray:
    """A bool mask H×W, True in any of the boxes."""
    mask = np.zeros((height, width), dtype=bool)
    for x, y, across, down in boxes:
        mask[_span(y, down, height), _span(x, across, width)] = True
    return mask


def _span(start: float, length: float, pixels: int) -> slice:
    """The pixels whose centres lie in [start, start + length), fractions of a side of so many pixels; one at least.

    Which is to say that either end goes to the nearest edge of a pixel, and from a centre to the edge before it.
    """
    first = min(max(math.ceil(start * pixels - 0.5), 0), pixels - 1)
    return slice(first, max(math.ceil((start + length) * pixels - 0.5), first + 1))

"""Pictures that are nearly the same: stored again in another form, or taken again."""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np

SIDE = 32
# Of 255. Stored again as JPEG (quality 50) or with noise of 2 grey levels, a thumbnail differs by
# 0.5 to 0.9, in half the size by 0.3 to 2; two bottles, screws, tiles, cells by 1.9 at least
# (docs/log.md).
NEAR = 1.5
_FAINT = 0.1  # of a thumbnail's own contrast: two pictures of an even surface are not the same one
_BLOCK = 1024


def thumbnail(pixels: np.ndarray) -> np.ndarray:
    """Grey levels 0 to 255, float32 32 32, of H W 3 (uint8, or floating in [0, 1]), by area."""
    small = cv2.resize(pixels, (SIDE, SIDE), interpolation=cv2.INTER_AREA)
    grey: np.ndarray = small.mean(2, dtype=np.float32)
    return grey if pixels.dtype == np.uint8 else 255 * grey


def nearly_same(thumbnails: Sequence[np.ndarray]) -> int:
    """How many of the pictures are nearly the same as an earlier one: their thumbnails differ by
    less than 1.5 grey levels (root mean square), and by less than a tenth of their contrast.

    Example:
        >>> part = np.add.outer(np.arange(32.0), np.arange(32.0)).astype(np.float32)
        >>> nearly_same([part, part.T, part[::-1], part + 1])
        2
    """
    if not len(thumbnails):
        return 0
    rows = np.stack([each.ravel() for each in thumbnails])
    limits = np.minimum(NEAR, _FAINT * rows.std(1)) ** 2 * rows.shape[1]
    rows = rows - rows.mean(0)
    squares = np.square(rows).sum(1)
    count = 0
    for start in range(0, len(rows), _BLOCK):
        block = slice(start, start + _BLOCK)
        earlier = rows[: start + _BLOCK]
        apart = squares[block, None] + squares[None, : len(earlier)] - 2 * rows[block] @ earlier.T
        apart[np.arange(len(earlier)) >= np.arange(start, start + len(apart))[:, None]] = np.inf
        count += int((apart.min(1) < limits[block]).sum())
    return count

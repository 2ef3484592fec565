"""Regions of interest and areas to ignore: mask pictures and polygons as an `Area`."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from blemish.area import SIDE, Area
from blemish.config import parse_json, short
from blemish.errors import ConfigError
from blemish.files import DOCUMENT_BYTES, read_whole
from blemish.images import decode

MOST_POLYGONS, MOST_POINTS = 1000, 1000
_FORM = "[[[x, y], …], …] with x and y in [0, 1]"
Grid = NDArray[np.bool_]


def read_area(roi: Any, ignore: Any = None) -> Area | None:
    """Where to look: in `roi` (None = everywhere), and not in `ignore` (None = nothing).

    Args:
        roi, ignore: the path of a mask picture (white = the area) of any size, which is laid over
            the whole picture, or of a JSON file with polygons [[[x, y], …], …], x and y as
            fractions of the picture's width and height from its upper left corner; or such a mask
            as an array, bool H W; or such polygons as lists.
    Returns: the area; None where both are None.
    Raises: ConfigError that names the file for polygons that have fewer than three points, leave
        the picture or cross themselves, what is no polygons, a mask that is not black and white,
        and where nothing is left to look at; ImageError for a picture that cannot be decoded.

    Example:
        >>> upper_half = [[[0, 0], [1, 0], [1, 0.5], [0, 0.5]]]
        >>> read_area(upper_half).share, read_area(None, upper_half).mask(2, 1).tolist()
        (0.5, [[False], [True]])
    """
    if roi is None and ignore is None:
        return None
    looked_at = np.ones((SIDE, SIDE), dtype=np.bool_) if roi is None else _read(roi, "roi")
    if not looked_at.any():
        raise ConfigError(f"{_name(roi, 'roi')}: is empty: nothing is left to look at")
    if ignore is not None:
        looked_at = looked_at & ~_read(ignore, "ignore")
        if not looked_at.any():
            whole = "the whole picture" if roi is None else f"all of {_name(roi, 'roi')}"
            name = _name(ignore, "ignore")
            raise ConfigError(f"{name}: covers {whole}: nothing is left to look at")
    try:
        return Area.of(looked_at)
    except ConfigError as error:
        name = _name(ignore if roi is None else roi, "ignore" if roi is None else "roi")
        raise ConfigError(f"{name}: {error}; draw it with smooth borders") from error


def _name(given: Any, option: str) -> str:
    """How messages call it."""
    return os.fspath(given) if isinstance(given, (str, os.PathLike)) else option


def _read(given: Any, option: str) -> Grid:
    name = _name(given, option)
    if isinstance(given, np.ndarray):
        if given.dtype != np.bool_ or given.ndim != 2 or given.size == 0:
            raise ConfigError(
                f"{name}: a mask is bool H W, got {given.dtype} of shape {given.shape}"
            )
        return _on_grid(given)
    if not isinstance(given, (str, os.PathLike)):
        return _drawn(given, name)
    path = Path(given)
    content = read_whole(path, limit=2 * DOCUMENT_BYTES, error=ConfigError)
    if path.suffix.lower() != ".json" and content.lstrip()[:1] not in (b"[", b"{"):
        return _marked(path)
    try:
        polygons = parse_json(content)
    except ValueError as error:
        raise ConfigError(f"{name}: is not valid JSON ({error})") from error
    return _drawn(polygons, name)


def _marked(path: Path) -> Grid:
    """The white pixels of a mask picture."""
    picture = decode(path, name=str(path))
    if picture.notes:
        raise ConfigError(f"{path}: is no plain mask ({picture.notes[0]}); save it without that")
    pixels, white = picture.pixels, 255 if picture.pixels.dtype == np.uint8 else 1
    inside = pixels[..., 0] == white
    if not (np.where(inside[..., None], white, 0) == pixels).all():
        raise ConfigError(
            f"{path}: is not black and white; save the area in white (255) on black (0), as PNG"
        )
    return _on_grid(inside)


def _on_grid(mask: Grid) -> Grid:
    """A mask of any size, laid over the grid; a place is inside where more than half of it is."""
    shrinks = max(mask.shape) > SIDE
    how = cv2.INTER_AREA if shrinks else cv2.INTER_NEAREST
    values = np.ascontiguousarray(mask, dtype=np.uint8) * np.uint8(255)
    return np.asarray(cv2.resize(values, (SIDE, SIDE), interpolation=how) > 127)


def _drawn(polygons: Any, name: str) -> Grid:
    """The places whose centres lie in any of the polygons."""
    if not isinstance(polygons, (list, tuple)):
        raise ConfigError(f"{name}: {short(polygons)} is no list of polygons: {_FORM}")
    if len(polygons) > MOST_POLYGONS:
        raise ConfigError(f"{name}: at most {MOST_POLYGONS} polygons, got {len(polygons)}")
    inside = np.zeros((SIDE, SIDE), dtype=np.bool_)
    for number, polygon in enumerate(polygons, start=1):
        inside |= _filled(_corners(polygon, f"{name}: polygon {number}"))
    return inside


def _corners(polygon: Any, name: str) -> NDArray[np.float64]:
    """x, y of the corners, N 2. Raises: ConfigError for what is no simple polygon."""
    if not isinstance(polygon, (list, tuple)):
        raise ConfigError(f"{name}: {short(polygon)} is no list of points: {_FORM}")
    points = [_point(each, name) for each in polygon]
    if len(points) > 1 and points[0] == points[-1]:
        points.pop()  # closed by hand
    if len(points) < 3:
        raise ConfigError(f"{name}: at least 3 points are needed, got {len(points)}")
    if len(points) > MOST_POINTS:
        raise ConfigError(f"{name}: at most {MOST_POINTS} points are possible, got {len(points)}")
    corners = np.array(points, dtype=np.float64)
    if (crossing := _crossing(corners)) is not None:
        one, two = (f"{x:g}, {y:g}" for x, y in corners[list(crossing)])
        raise ConfigError(
            f"{name}: crosses itself: the side that starts at ({one}) meets the one that starts "
            f"at ({two}); draw two polygons"
        )
    return corners


def _point(given: Any, name: str) -> tuple[float, float]:
    pair = isinstance(given, (list, tuple)) and len(given) == 2
    if not pair or not all(
        isinstance(each, (int, float)) and not isinstance(each, bool) for each in given
    ):
        raise ConfigError(f"{name}: {short(given)} is no point: {_FORM}")
    x, y = given
    if not all(math.isfinite(each) and 0 <= each <= 1 for each in (x, y)):
        raise ConfigError(
            f"{name}: the point {short(given)} is not in the picture; x and y are fractions of its "
            "width and height, in [0, 1]"
        )
    return float(x), float(y)


def _crossing(corners: NDArray[np.float64]) -> tuple[int, int] | None:
    """Two sides, by their first corners, that are no neighbours and meet; None where none do."""
    count, after = len(corners), np.roll(corners, -1, axis=0)
    low, high = np.minimum(corners, after), np.maximum(corners, after)
    for one in range(count - 2):
        two = np.arange(one + 2, count - (one == 0))
        a, b, c, d = corners[one], after[one], corners[two], after[two]
        apart = (_turn(a, b, c) * _turn(a, b, d) > 0) | (_turn(c, d, a) * _turn(c, d, b) > 0)
        boxes = ((low[two] <= high[one]) & (low[one] <= high[two])).all(axis=1)
        if (meets := np.flatnonzero(~apart & boxes)).size:
            return one, int(two[meets[0]])
    return None


def _turn(
    a: NDArray[np.float64], b: NDArray[np.float64], c: NDArray[np.float64]
) -> NDArray[np.float64]:
    """On which side of the line from a to b the point c lies: the sign."""
    along, aside = b - a, c - a
    turned: NDArray[np.float64] = np.sign(
        along[..., 0] * aside[..., 1] - along[..., 1] * aside[..., 0]
    )
    return turned


def _filled(corners: NDArray[np.float64]) -> Grid:
    """The places whose centres lie in a polygon: a line from the left edge crosses its sides an
    odd number of times."""
    crossed = np.zeros((SIDE, SIDE + 1), dtype=np.int32)
    scaled = corners * SIDE - 0.5  # the middle of the first place is 0, 0
    sides: Sequence[Any] = list(zip(scaled, np.roll(scaled, -1, axis=0), strict=True))
    for one, two in sides:
        (x0, y0), (x1, y1) = sorted((tuple(one), tuple(two)), key=lambda corner: corner[1])
        rows = np.arange(math.ceil(y0), math.ceil(y1))  # from y0 on, and before y1
        if len(rows):
            at = np.ceil(x0 + (rows - y0) * ((x1 - x0) / (y1 - y0))).astype(np.intp)
            crossed[rows, np.clip(at, 0, SIDE)] += 1
    return np.asarray(crossed.cumsum(axis=1)[:, :SIDE] % 2 == 1)

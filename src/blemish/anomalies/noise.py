"""Smooth random fields, and how a field or a picture is turned."""

from __future__ import annotations

import cv2
import numpy as np


def perlin_noise(
    size: tuple[int, int], cells: tuple[int, int], rng: np.random.Generator
) -> np.ndarray:
    """Perlin's gradient noise (1985, with the fade of 2002), times √2: float64 H W, about 0, within
    ±1.

    On a lattice of `cells` (rows, columns) every corner has a unit gradient of any direction. The
    value of a pixel is the mean of the four corners' gradients times the way from there, weighted
    by 6t⁵ − 15t⁴ + 10t³ of the way along each side.

    Args: size: (H, W). cells: at least one each.

    Example:
        >>> noise = perlin_noise((32, 48), (2, 3), np.random.default_rng(0))
        >>> noise.shape, bool(noise[::16, ::16].any())  # 0 at the corners
        ((32, 48), False)
    """
    angles = rng.uniform(0, 2 * np.pi, (cells[0] + 1, cells[1] + 1))
    places = [np.arange(side) * count / side for side, count in zip(size, cells, strict=True)]
    row, column = (place.astype(int) for place in places)
    down, across = (places[0] - row)[:, None], (places[1] - column)[None]

    def corner(below: int, right: int) -> np.ndarray:
        angle = angles[np.ix_(row + below, column + right)]
        return np.asarray(np.sin(angle) * (down - below) + np.cos(angle) * (across - right))

    fade_down, fade_across = (t**3 * (t * (6 * t - 15) + 10) for t in (down, across))
    top, bottom = (
        corner(below, 0) + fade_across * (corner(below, 1) - corner(below, 0)) for below in (0, 1)
    )
    return np.asarray(np.sqrt(2) * (top + fade_down * (bottom - top)))


def turned(field: np.ndarray, angle: float, *, outside: float | None = None) -> np.ndarray:
    """A field H W, or pixels H W C, turned about its middle, bilinear.

    Args: angle: degrees counter-clockwise. outside: what the corners become; None = mirrored.
    """
    height, width = field.shape[:2]
    turn = cv2.getRotationMatrix2D(((width - 1) / 2, (height - 1) / 2), angle, 1.0)
    border = cv2.BORDER_REFLECT_101 if outside is None else cv2.BORDER_CONSTANT
    planes = [field] if field.ndim == 2 else np.moveaxis(field, 2, 0)
    made = [
        cv2.warpAffine(
            np.ascontiguousarray(plane),
            turn,
            (width, height),
            borderMode=border,
            borderValue=outside or 0.0,
        )
        for plane in planes
    ]
    return made[0] if field.ndim == 2 else np.stack(made, axis=2)

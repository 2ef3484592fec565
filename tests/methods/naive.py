"""What the naive oracles of several methods share."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from torch import Tensor


def f64(tensor: Tensor) -> np.ndarray:
    return tensor.detach().double().numpy()


def layer_normed(
    row: np.ndarray, weight: Any = 1.0, bias: Any = 0.0, epsilon: float = 1e-5
) -> np.ndarray:
    mean = sum(row) / len(row)
    variance = sum((value - mean) ** 2 for value in row) / len(row)
    return np.asarray((row - mean) / math.sqrt(variance + epsilon) * weight + bias)


def gelu(values: np.ndarray) -> np.ndarray:
    return np.array([0.5 * value * (1 + math.erf(value / math.sqrt(2))) for value in values])


def upsampled(
    values: np.ndarray, height: int, width: int, offset: float = 0.0, onto: float = 0.0
) -> np.ndarray:
    """Bilinear, pixels being areas: h w … -> height width ….

    The values lie `offset` of their cells right of and below the middle of these, the result `onto`
    of its own.
    """

    def neighbours(place: int, new: int, old: int) -> tuple[int, int, float]:
        centre = min(max((place + 0.5 + onto) * old / new - 0.5 - offset, 0), old - 1)
        return int(centre), min(int(centre) + 1, old - 1), centre - int(centre)

    result = np.empty((height, width, *values.shape[2:]))
    for y, x in np.ndindex(height, width):
        top, bottom, down = neighbours(y, height, values.shape[0])
        left, right, across = neighbours(x, width, values.shape[1])
        above = values[top, left] * (1 - across) + values[top, right] * across
        below = values[bottom, left] * (1 - across) + values[bottom, right] * across
        result[y, x] = above * (1 - down) + below * down
    return result


def box_of(saliency: np.ndarray, active: float, padding: float, offset: float = 0.0) -> list[float]:
    """x, y, width, height of the crop in one picture, cell by cell."""
    height, width = saliency.shape
    cells = [(y, x) for y in range(height) for x in range(width) if saliency[y, x] > active]
    if not cells:
        return [0.0, 0.0, 1.0, 1.0]
    sides = []
    for axis, count in ((1, width), (0, height)):
        first, last = min(cell[axis] for cell in cells), max(cell[axis] for cell in cells)
        start = 0.0 if first == 0 else (first + offset) / count
        end = 1.0 if last == count - 1 else (last + 1 + offset) / count
        margin = padding * (end - start)
        start, end = max(0.0, start - margin), min(1.0, end + margin)
        sides.append((start, end - start))
    return [sides[0][0], sides[1][0], sides[0][1], sides[1][1]]

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

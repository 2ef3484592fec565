"""The Beta distribution for any real shapes, many at once.

(`detector.beta` has it to the last digit, for whole shapes, one at a time.) The regularised
incomplete beta function by its continued fraction (DLMF 8.17.22, evaluated by Lentz's method), its
inverse by Newton's method between bounds.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import ArrayLike, NDArray

Floats = NDArray[np.float64]
_TINY = 1e-300
_TERMS = 4000  # of the fraction; about the root of the larger shape are needed


def below(a: ArrayLike, b: ArrayLike, x: ArrayLike) -> Floats:
    """The share of Beta(a, b) below x, to about 1e-12.

    Args: a, b: from 0.5 to 1e7. x: in [0, 1]; all of shapes that go together.
    """
    a, b, x = np.broadcast_arrays(*(np.asarray(one, np.float64) for one in (a, b, x)))
    return _below(a, b, x, _log_front(a, b))


def _below(a: Floats, b: Floats, x: Floats, log_front: Floats) -> Floats:
    turned = x > (a + 1) / (a + b + 2)  # there the fraction of the other side converges fast
    p, q, y = np.where(turned, b, a), np.where(turned, a, b), np.where(turned, 1 - x, x)
    inside = (y > 0) & (y < 1)
    y = np.where(inside, y, 0.5)
    front = np.exp(log_front + p * np.log(y) + q * np.log1p(-y)) / p
    found = np.where(inside, front * _fraction(p, q, y), 0.0)
    return np.asarray(np.clip(np.where(turned, 1 - found, found), 0, 1))


def quantile(a: ArrayLike, b: ArrayLike, p: ArrayLike) -> Floats:
    """The x below which lies a share p of Beta(a, b), to about 1e-10.

    Example:
        >>> [round(float(quantile(*case)), 9) for case in ((1, 1, 0.25), (1, 19, 0.95))]
        [0.25, 0.145868503]
    """
    every = np.broadcast_arrays(*(np.asarray(one, np.float64) for one in (a, b, p)))
    return _quantile(*(one.ravel() for one in every)).reshape(every[0].shape)


def _quantile(a: Floats, b: Floats, p: Floats) -> Floats:
    low, high, x = np.zeros(a.shape), np.ones(a.shape), a / (a + b)
    spread = np.sqrt(x * (1 - x) / (a + b + 1))
    sideways = 4.91 * (p**0.14 - (1 - p) ** 0.14)  # of a normal distribution, Tukey's form
    x = np.clip(x + sideways * spread, x / 50, 1 - (1 - x) / 50)
    front = _log_front(a, b)
    left, found = np.arange(a.size), np.empty(a.size)
    for _ in range(100):
        share = _below(a, b, x, front)
        low, high = np.where(share < p, x, low), np.where(share < p, high, x)
        with np.errstate(divide="ignore", over="ignore", invalid="ignore"):
            density = np.exp(front + (a - 1) * np.log(x) + (b - 1) * np.log1p(-x))
            following = x - (share - p) / density
            close = np.abs(following - x) <= 1e-6 * x  # each step doubles the digits
        following = np.where(close, np.clip(following, low, high), following)
        outside = ~((following >= low) & (following <= high) & (following > 0) & (following < 1))
        x = np.where(outside, (low + high) / 2, following)
        close = (close & ~outside) | (high - low <= 1e-15 * x)
        found[left] = x
        go = ~close
        if not go.any():
            break
        left = left[go]
        a, b, p, x, low, high, front = (one[go] for one in (a, b, p, x, low, high, front))
    return found


def _log_front(a: Floats, b: Floats) -> Floats:
    values = [
        math.lgamma(p + q) - math.lgamma(p) - math.lgamma(q)
        for p, q in zip(a.ravel().tolist(), b.ravel().tolist(), strict=True)
    ]
    return np.asarray(values, np.float64).reshape(a.shape)


def _fraction(a: Floats, b: Floats, x: Floats) -> Floats:
    c = np.ones(x.shape)
    d = 1 / _safe(1 - (a + b) * x / (a + 1))
    found = d
    for m in range(1, _TERMS):
        even = m * (b - m) * x / ((a + 2 * m - 1) * (a + 2 * m))
        odd = -(a + m) * (a + b + m) * x / ((a + 2 * m) * (a + 2 * m + 1))
        for term in (even, odd):
            d = 1 / _safe(1 + term * d)
            c = _safe(1 + term / c)
            found = found * (step := c * d)
        if np.all(np.abs(step - 1) < 1e-13):
            break
    return np.asarray(found)


def _safe(value: Floats) -> Floats:
    return np.where(np.abs(value) < _TINY, _TINY, value)

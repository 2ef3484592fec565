"""Seeded draws: held-out normals, few shots, weak supervision.

Every draw sorts by path first and shuffles with NumPy's PCG64, so that the same seed gives the
same pictures on every machine and in whatever order the file system listed them. Results come in
path order, and a smaller draw is a part of a larger one of the same seed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from operator import attrgetter
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from blemish.errors import ConfigError, DataError
from blemish.text import pluralize

T = TypeVar("T")
_PATH: Callable[[Any], Path] = attrgetter("path")  # of a Sample


def hold_out(
    items: Iterable[T], fraction: float, seed: int, *, path: Callable[[T], Path] = _PATH
) -> tuple[list[T], list[T]]:
    """(kept, held): `round(fraction * n)` of the n held out, for calibration or as a test set.

    Args: path: by which to sort; default: that of a `Sample`.
    Raises: ConfigError unless 0 <= fraction < 1; DataError when nothing would be kept.
    """
    if not 0 <= fraction < 1:
        raise ConfigError(
            f"the fraction to hold out is {fraction}; it must be at least 0 and less than 1"
        )
    items = list(items)
    count = round(fraction * len(items))
    if items and count == len(items):
        raise DataError(
            f"holding out {fraction} of {pluralize(len(items), 'picture')} leaves none; "
            "add pictures or hold out less"
        )
    held, kept = _draw(items, count, seed, path)
    return kept, held


def few_shot(
    items: Iterable[T], k: int, seed: int, *, path: Callable[[T], Path] = _PATH
) -> list[T]:
    """k of them. Raises: ConfigError if k < 1; DataError when there are fewer than k."""
    items = list(items)
    if k < 1:
        raise ConfigError(f"{k} shots were asked for; at least 1 is needed")
    if k > len(items):
        raise DataError(f"{k} shots were asked for, but there are only {len(items)} pictures")
    return _draw(items, k, seed, path)[0]


def draw_anomalies(
    items: Iterable[T], m: int, seed: int, *, path: Callable[[T], Path] = _PATH
) -> tuple[list[T], list[T]]:
    """(drawn, rest): m anomalies to train on in weak supervision; the rest is for the test.

    Raises: ConfigError if m < 0; DataError when there are fewer than m.
    """
    items = list(items)
    if m < 0:
        raise ConfigError(f"{m} anomalies were asked for; the number cannot be negative")
    if m > len(items):
        raise DataError(f"{m} anomalies were asked for, but there are only {len(items)}")
    return _draw(items, m, seed, path)


def shuffled(items: Iterable[T], seed: int, *, path: Callable[[T], Path] = _PATH) -> list[T]:
    """In the order in which the seed draws them, so that every beginning is a draw."""
    ordered, order = _ordered(items, seed, path)
    return [ordered[index] for index in order]


def _ordered(items: Iterable[T], seed: int, path: Callable[[T], Path]) -> tuple[list[T], list[int]]:
    """The items by their paths, and the positions as the seed draws them."""
    if seed < 0:
        raise ConfigError(f"the seed is {seed}; it cannot be negative")
    ordered = sorted(items, key=lambda item: path(item).as_posix())
    order = np.random.Generator(np.random.PCG64(seed)).permutation(len(ordered))
    return ordered, order.tolist()


def _draw(
    items: list[T], count: int, seed: int, path: Callable[[T], Path]
) -> tuple[list[T], list[T]]:
    """The first `count` of the shuffled ones, and the others."""
    ordered, order = _ordered(items, seed, path)
    first = set(order[:count])
    drawn = [item for index, item in enumerate(ordered) if index in first]
    return drawn, [item for index, item in enumerate(ordered) if index not in first]

"""Seeded draws from a list of samples: held-out normals, few shots, weak supervision.

Every draw sorts by path first and shuffles with NumPy's PCG64, so that the same seed gives the same pictures on every
machine and in whatever order the file system listed them. Results come in path order.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from blemish.errors import ConfigError, DataError
from blemish.types import ANOMALOUS, Sample


def hold_out(
    samples: Iterable[Sample], fraction: float, seed: int
) -> tuple[list[Sample], list[Sample]]:
    """(kept, held): `round(fraction * n)` of the n samples held out, for calibration or as a test set.

    Raises: ConfigError unless 0 <= fraction < 1; DataError when nothing would be kept.
    """
    if not 0 <= fraction < 1:
        raise ConfigError(
            f"the fraction to hold out is {fraction}; it must be at least 0 and less than 1"
        )
    samples = list(samples)
    count = round(fraction * len(samples))
    if samples and count == len(samples):
        raise DataError(
            f"holding out {fraction} of {len(samples)} pictures leaves none; add pictures or hold out less"
        )
    held, kept = _draw(samples, count, seed)
    return kept, held


def few_shot(samples: Iterable[Sample], k: int, seed: int) -> list[Sample]:
    """k of the samples. With the same seed a smaller k draws a part of what a larger one draws.

    Raises: ConfigError if k < 1; DataError when there are fewer than k.
    """
    samples = list(samples)
    if k < 1:
        raise ConfigError(f"{k} shots were asked for; at least 1 is needed")
    if k > len(samples):
        raise DataError(f"{k} shots were asked for, but there are only {len(samples)} pictures")
    return _draw(samples, k, seed)[0]


def draw_anomalies(
    samples: Iterable[Sample], m: int, seed: int
) -> tuple[list[Sample], list[Sample]]:
    """(drawn, rest): m anomalies to train on in weak supervision; the rest is for the test.

    With the same seed a smaller m draws a part of what a larger one draws.

    Raises: ConfigError if m < 0; DataError when there are fewer than m or a sample is not labelled anomalous.
    """
    samples = list(samples)
    if m < 0:
        raise ConfigError(f"{m} anomalies were asked for; the number cannot be negative")
    for sample in samples:
        if sample.label != ANOMALOUS:
            raise DataError(
                f"{sample.path}: is not labelled anomalous; draw anomalies from labelled anomalies only"
            )
    if m > len(samples):
        raise DataError(f"{m} anomalies were asked for, but there are only {len(samples)}")
    return _draw(samples, m, seed)


def _draw(samples: Iterable[Sample], count: int, seed: int) -> tuple[list[Sample], list[Sample]]:
    """The first `count` of the shuffled samples, and the others."""
    if seed < 0:
        raise ConfigError(f"the seed is {seed}; it cannot be negative")
    ordered = sorted(samples, key=lambda sample: sample.path.as_posix())
    order = np.random.Generator(np.random.PCG64(seed)).permutation(len(ordered))
    first = {int(index) for index in order[:count]}
    drawn = [sample for index, sample in enumerate(ordered) if index in first]
    rest = [sample for index, sample in enumerate(ordered) if index not in first]
    return drawn, rest

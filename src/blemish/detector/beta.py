"""Quantiles of the Beta distribution: how a false-alarm rate is spread over draws of pictures.

For whole a and b the share of Beta(a, b) below x is that of a binomial distribution of a + b - 1
trials from a on (DLMF 8.17.5): a sum of positive terms, from the one that Loader's saddle-point
form gives (2000, "Fast and accurate computation of binomial probabilities"), so that no digits are
lost even where there are millions of trials. Its inverse is found by Newton's method between
bounds.
"""

from __future__ import annotations

import math

_STEPS = 200  # of Newton or halving: fewer pin down a double
# Of Stirling's series for log n!, and from where on it is exact to the last digit.
_SERIES, _LARGE = (1 / 12, 1 / 360, 1 / 1260, 1 / 1680, 1 / 1188), 16


def quantile(a: int, b: int, p: float) -> float:
    """The x in (0, 1) below which lies a share p of Beta(a, b), exact to a relative 1e-13.

    Args: a, b: 1 to 1e7. p: 0.001 to 0.999.

    Example:
        >>> [round(quantile(*case), 9) for case in ((1, 1, 0.25), (2, 1, 0.25), (1, 19, 0.95))]
        [0.25, 0.5, 0.145868503]
    """
    low, high, x = 0.0, 1.0, a / (a + b)
    for _ in range(_STEPS):
        below, density = _below(a, b, x)
        low, high = (low, x) if below > p else (x, high)
        following = x - (below - p) / density if density else 0.0
        if not low < following < high:
            following = (low + high) / 2
        if abs(following - x) <= 2e-16 * following:
            break
        x = following
    return x


def _below(a: int, b: int, x: float) -> tuple[float, float]:
    """The share of Beta(a, b) below x, and its density there."""
    trials, odds = a + b - 1, x / (1 - x)
    density = a * b / (a + b) * _binomial(a, b, x) / (x * (1 - x))
    term = density * x / a  # (trials over a) x^a (1 - x)^(trials - a)
    found, at = 0.0, a
    if x * (a + b) < a:
        while found + term != found:
            found, at = found + term, at + 1
            term *= (trials - at + 1) / at * odds
        return found, density
    while at and found + term != found:
        term *= at / (trials - at + 1) / odds
        found, at = found + term, at - 1
    return 1 - found, density


def _binomial(a: int, b: int, x: float) -> float:
    """(a + b over a) x^a (1 - x)^b."""
    n = a + b
    exponent = _stirling(n) - _stirling(a) - _stirling(b)
    exponent -= _deviance(a, n * x) + _deviance(b, n * (1 - x))
    return math.sqrt(n / (2 * math.pi * a * b)) * math.exp(exponent)


def _stirling(n: int) -> float:
    """log n! less Stirling's formula for it."""
    if n < _LARGE:
        return math.lgamma(n + 1) - (n + 0.5) * math.log(n) + n - 0.5 * math.log(2 * math.pi)
    found = 0.0
    for each in reversed(_SERIES):
        found = each - found / (n * n)
    return found / n


def _deviance(k: int, mean: float) -> float:
    """k log(k / mean) + mean - k, where its parts would cancel by a series."""
    apart, both = k - mean, k + mean
    if abs(apart) >= 0.1 * both:
        return k * math.log(k / mean) + mean - k
    v = apart / both
    found, power, odd = apart * v, 2 * k * v**3, 3
    while found + power / odd != found:
        found, power, odd = found + power / odd, power * v * v, odd + 2
    return found

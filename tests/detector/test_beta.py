from __future__ import annotations

import math
from decimal import Decimal, localcontext

import numpy as np
import pytest
from scipy.special import betaincinv

from blemish.detector.beta import quantile


def share_below(a: int, b: int, x: Decimal) -> Decimal:
    """Of Beta(a, b), a and b whole: that of a binomial distribution, from its definition."""
    trials = a + b - 1
    return 1 - sum(math.comb(trials, j) * x**j * (1 - x) ** (trials - j) for j in range(a))


@pytest.mark.parametrize("p", [0.001, 0.05, 0.5, 0.95, 0.999])
def test_quantiles_are_those_of_scipy(p: float) -> None:
    rng = np.random.default_rng(0)
    small = [(a, b) for a in range(1, 40, 2) for b in range(1, 40, 3)]
    large = [(int(a), int(b)) for a, b in 10 ** rng.uniform(0, 4, (40, 2))]
    for a, b in [*small, *large, (50_001, 950_000), (10**6, 10**6)]:
        assert quantile(a, b, p) == pytest.approx(betaincinv(a, b, p), rel=1e-12, abs=0), (a, b)


def test_quantiles_of_every_threshold_are_those_of_scipy() -> None:
    # A threshold's are Beta(n + 1 - k, k), with k of n pictures and the rate.
    for rate in (0.001, 0.01, 0.05, 0.1, 0.3, 0.5, 0.9, 0.999):
        for n in (1, 2, 9, 19, 20, 59, 99, 100, 999, 1000, 4321, 100_000):
            k = math.ceil((n + 1) * (1 - rate))
            for p in (0.05, 0.95) if k <= n else ():
                known = betaincinv(n + 1 - k, k, p)
                assert quantile(n + 1 - k, k, p) == pytest.approx(known, rel=1e-12, abs=0)


@pytest.mark.parametrize(("a", "b"), [(3, 132_931), (9, 778_904), (1, 10**7)])
def test_where_scipy_loses_digits_they_are_exact(a: int, b: int) -> None:
    # SciPy 1.17 is off by 2.7e-12 of (9, 778904), and by 1e-12 of (3, 132931).
    for p in (0.05, 0.95, 0.999):
        with localcontext() as context:
            context.prec = 40
            found = Decimal(quantile(a, b, p))
            few = Decimal("1e-14")
            assert share_below(a, b, found * (1 - few)) < Decimal(p)
            assert share_below(a, b, found * (1 + few)) > Decimal(p)


@pytest.mark.parametrize("n", [1, 2, 7, 1000, 10**7])
def test_what_can_be_written_down(n: int) -> None:
    assert quantile(n, 1, 0.05) == pytest.approx(0.05 ** (1 / n), rel=1e-14)  # of the highest of n
    assert quantile(1, n, 0.05) == pytest.approx(-math.expm1(math.log(0.95) / n), rel=1e-14)
    assert quantile(n, n, 0.5) == pytest.approx(0.5, rel=1e-14)

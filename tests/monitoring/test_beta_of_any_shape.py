"""The Beta distribution against SciPy's."""

from __future__ import annotations

import numpy as np
from scipy.stats import beta as reference

from blemish.detector.beta import quantile as whole
from blemish.monitoring import beta


def test_against_scipy() -> None:
    random = np.random.default_rng(0)
    a, b = 10 ** random.uniform(-0.3, 3.5, 200), 10 ** random.uniform(-0.3, 3.5, 200)
    p = random.uniform(0.001, 0.999, 200)
    x = beta.quantile(a, b, p)
    assert np.allclose(x, reference.ppf(p, a, b), rtol=1e-8)
    assert np.allclose(beta.below(a, b, x), reference.cdf(x, a, b), atol=1e-10)


def test_ends_and_the_other_implementation() -> None:
    assert beta.below([2.0, 2.0], 3.0, [0.0, 1.0]).tolist() == [0, 1]
    assert np.isclose(beta.quantile(1, 19, 0.95), whole(1, 19, 0.95), rtol=1e-10)

from __future__ import annotations

import itertools
import json
import math
from dataclasses import replace
from fractions import Fraction

import numpy as np
import pytest
from scipy import stats

from blemish.detector.thresholds import Threshold, by_hand, calibrate, pictures_needed, verdict
from blemish.errors import CalibrationError, ConfigError, NonFiniteError

RATES = [hundredths / 100 for hundredths in range(1, 51)]


def split(scores: object, rate: float, *, required: bool = True) -> Threshold:
    return calibrate(scores, rate, method="split conformal", required=required)  # type: ignore[arg-type]


def alarm(score: float, threshold: Threshold) -> bool:
    return verdict(score, threshold.value) == 1


def test_the_rank_is_exact_for_every_small_n_and_rate() -> None:
    # In integers: k = ceil((n + 1)(100 - hundredths) / 100). Scores 1 … n, so that the value is the
    # rank itself.
    every = np.arange(1.0, 2001.0)
    for hundredths, rate in enumerate(RATES, start=1):
        needed = math.ceil(Fraction(100, hundredths)) - 1
        assert pictures_needed(rate) == needed
        for n in [*range(needed, 2001, 97), *range(needed, min(needed + 120, 2001)), 1999, 2000]:
            k = -(-(n + 1) * (100 - hundredths) // 100)
            assert k <= n
            assert split(every[:n], rate).value == k
        assert split(every[: needed - 1], rate, required=False).value is None


@pytest.mark.parametrize(("n", "k"), [(19, 19), (20, 20), (39, 38), (99, 95), (199, 190)])
def test_the_rank_at_five_per_cent(n: int, k: int) -> None:
    assert split(range(1, n + 1), 0.05).value == k


def test_the_naive_rank_would_be_wrong() -> None:
    wrong = [
        (n, rate)
        for rate in RATES
        for n in range(pictures_needed(rate), 301)
        if math.ceil((n + 1) * (1 - rate)) != math.ceil((n + 1) * (1 - Fraction(str(rate))))
    ]
    assert wrong  # so that the test of every n and rate above can fail
    for n, rate in wrong:
        assert split(range(1, n + 1), rate).value == math.ceil((n + 1) * (1 - Fraction(str(rate))))


@pytest.mark.parametrize("rate", [0.2, 0.25, 0.3, 0.5])
@pytest.mark.parametrize(
    "values", [(1, 2, 3, 4, 5, 6), (1, 1, 2, 2, 2, 3), (4, 4, 4, 4, 4, 4), (0, 0, 0, 0, 0, 9)]
)
def test_the_guarantee_by_enumeration(values: tuple[int, ...], rate: float) -> None:
    # Exchangeable: each order of the six scores is equally likely; the last is the new picture.
    alarms = [alarm(order[-1], split(order[:-1], rate)) for order in itertools.permutations(values)]
    assert Fraction(sum(alarms), len(alarms)) <= Fraction(str(rate))
    if len(set(values)) == len(
        values
    ):  # and no tighter than it must be: the next lower rank breaks it
        assert Fraction(sum(alarms), len(alarms)) + Fraction(1, len(values)) > Fraction(str(rate))


def test_the_guarantee_by_simulation() -> None:
    rng = np.random.default_rng(0)
    n, rate, draws = 59, 0.05, 20_000
    scores = rng.normal(size=(draws, n + 1))
    alarms = np.mean([alarm(row[-1], split(row[:-1], rate)) for row in scores[:4000]])
    assert abs(alarms - 0.05) < 4 * math.sqrt(0.05 * 0.95 / 4000)
    # For one calibration set: the long-run rate is Beta(n + 1 - k, k) = Beta(3, 57), as the
    # sentence says.
    long_run = stats.norm.sf([split(row[:-1], rate).value for row in scores[:4000]])
    assert stats.kstest(long_run, stats.beta(3, 57).cdf).pvalue > 0.001


def test_the_sentence_of_split_conformal() -> None:
    sentence = split(range(59), 0.05).guarantee
    low, high = stats.beta.ppf([0.05, 0.95], 3, 57)
    assert "at most 5 %" in sentence
    assert "59 held-out" in sentence
    assert "Beta(3, 57)" in sentence
    assert f"between {100 * low:.3g} % and {100 * high:.3g} %" in sentence
    assert "exchangeable" in sentence


def test_the_sentence_of_leave_one_out_claims_no_bound() -> None:
    threshold = calibrate(range(59), 0.05, method="leave-one-out", required=True)
    assert threshold.value == split(range(59), 0.05).value
    assert threshold.method == "leave-one-out"
    for part in [
        "About 5 %",
        "59 training pictures",
        "jackknife",
        "approximate",
        "no distribution-free bound",
    ]:
        assert part in threshold.guarantee
    assert "at most" not in threshold.guarantee


def test_scores_in_any_order_and_tied() -> None:
    assert split([3.0, 1.0, 2.0], 0.25).value == 3.0
    assert split([3.0, 1.0, 2.0], 0.5).value == 2.0
    tied = split([1.0, 1.0, 1.0, 1.0], 0.3)
    assert tied.value == 1.0
    assert not alarm(1.0, tied)


def test_float32_scores_are_not_rounded() -> None:
    scores = np.random.default_rng(0).random(19, dtype=np.float32)
    threshold = split(scores, 0.05)
    assert threshold.value == float(scores.max())
    assert not any(alarm(float(score), threshold) for score in scores)


@pytest.mark.parametrize("n", [0, 1, 18])
def test_too_few_for_the_default_rate_leave_no_threshold(n: int) -> None:
    threshold = split(np.arange(n), 0.05, required=False)
    assert threshold.value is None
    assert threshold.guarantee == ""
    assert threshold.n == n
    assert "5 %" in threshold.reason
    assert "at least 19 " in threshold.reason
    assert ("there is 1" if n == 1 else f"there are {n}") in threshold.reason


def test_too_few_for_a_rate_asked_for_are_an_error() -> None:
    with pytest.raises(
        CalibrationError, match=r"5 % needs at least 19 .* there are 18; .* a rate of 5.3 % or more"
    ):
        split(range(18), 0.05)
    with pytest.raises(CalibrationError, match=r"at least 19 .* there are 0; add pictures$"):
        split([], 0.05)


@pytest.mark.parametrize("n", [*range(1, 60), 666, 998, 999, 5000])
def test_the_rate_that_the_error_proposes_is_enough(n: int) -> None:
    with pytest.raises(CalibrationError) as caught:
        split(range(n), 1e-5)
    proposed = float(str(caught.value).split("a rate of ")[1].split(" %")[0]) / 100
    assert split(range(n), proposed).value is not None
    assert n + 1 < 1000 / 3 or proposed <= 0.003


@pytest.mark.parametrize("rate", [0.0, 1.0, -0.1, 5.0, float("nan")])
def test_a_rate_out_of_range_is_an_error(rate: float) -> None:
    for ask in [lambda: split(range(99), rate), lambda: pictures_needed(rate)]:
        with pytest.raises(ConfigError, match="not between 0 and 1"):
            ask()


def test_other_bad_arguments_are_errors() -> None:
    with pytest.raises(ConfigError, match="did you mean 'split conformal'"):
        calibrate(range(99), 0.05, method="split-conformal", required=True)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="one score a picture"):
        split([[1.0, 2.0]], 0.5)
    with pytest.raises(NonFiniteError, match="2 of 3"):
        split([1.0, math.nan, math.inf], 0.5)


@pytest.mark.parametrize("n", [3, 99])
def test_survives_json(n: int) -> None:
    threshold = split(np.random.default_rng(1).normal(size=n), 0.05, required=False)
    assert Threshold.from_dict(json.loads(json.dumps(threshold.to_dict()))) == threshold


def test_a_damaged_record_is_an_error() -> None:
    record = split(range(99), 0.05).to_dict()
    with pytest.raises(ConfigError, match=r"threshold\.rate: is missing"):
        Threshold.from_dict({key: value for key, value in record.items() if key != "rate"})
    with pytest.raises(ConfigError, match="method"):
        Threshold.from_dict({**record, "method": "guess"})
    with pytest.raises(ConfigError, match="not between"):
        Threshold.from_dict({**record, "rate": 2.0})
    with pytest.raises(ConfigError, match="did you mean 'value'"):
        Threshold.from_dict({**record, "valu": 1.0})
    with pytest.raises(ConfigError, match="nan"):
        Threshold.from_dict({**record, "value": math.nan})


def test_a_verdict_is_strictly_above() -> None:
    assert verdict(math.nextafter(1.5, 2), 1.5) == 1
    assert verdict(1.5, 1.5) == 0
    assert verdict(-7.0, 1.5) == 0
    assert verdict(99.0, None) is None


@pytest.mark.parametrize("score", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("threshold", [1.0, None])
def test_no_verdict_on_a_score_that_is_not_finite(score: float, threshold: float | None) -> None:
    with pytest.raises(NonFiniteError, match="no verdict"):
        verdict(score, threshold)


def test_no_verdict_with_a_threshold_that_is_not_finite() -> None:
    with pytest.raises(NonFiniteError, match="no verdict"):
        verdict(1.0, math.nan)


def test_a_threshold_by_hand() -> None:
    own = by_hand(30)
    assert (own.value, own.rate, own.n, own.method, own.reason) == (30.0, None, 0, "by hand", "")
    assert "Set by hand" in own.guarantee
    assert Threshold.from_dict(json.loads(json.dumps(own.to_dict()))) == own
    assert by_hand(np.float32(0.5)).value == 0.5
    for value in (math.nan, math.inf):
        with pytest.raises(NonFiniteError, match="finite"):
            by_hand(value)
    for value in (True, "high", None, [1.0]):
        with pytest.raises(ConfigError, match="a number is needed"):
            by_hand(value)  # type: ignore[arg-type]


def test_only_a_threshold_by_hand_has_no_rate() -> None:
    with pytest.raises(ConfigError):
        replace(by_hand(1.0), rate=0.05)
    with pytest.raises(ConfigError):
        replace(calibrate(range(100), 0.05, method="leave-one-out", required=True), rate=None)
    with pytest.raises(ConfigError, match="calibration method"):
        calibrate(range(100), 0.05, method="by hand", required=True)

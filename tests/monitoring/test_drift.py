"""The drift monitor: false alarms as seldom as stated, and what it notices."""

from __future__ import annotations

import json

import numpy as np
import pytest
from scipy.stats import beta
from streams import NEVER, first_alarms

from blemish.detector.thresholds import p_value
from blemish.errors import ConfigError, NonFiniteError
from blemish.monitoring import betting
from blemish.monitoring.drift import ADVICE, Monitor, Reference


def above(times: int, rate: float) -> float:
    """A share of false alarms above which a true rate would come once in a thousand trials."""
    return rate + 3.1 * np.sqrt(rate * (1 - rate) / times)


def test_bets_are_fair() -> None:
    """Each pays 1 on average for uniform p-values, and nothing is won by those within the
    tolerance of them."""
    p = (np.arange(200000) + 0.5) / 200000
    payments = betting.stakes(p)
    assert payments.min() > 0
    assert np.allclose(payments.mean(0), 1, atol=1e-4)
    for tolerance in (0.01, 0.2):
        best = betting.stakes(p, tolerance)
        # The worst distribution: moves this share from where a bet pays least to where most.
        worst = best.mean(0) + tolerance * (best.max(0) - best.min(0))
        assert (worst <= 1 + 1e-4).all()
        assert (worst[1:] >= 0.98).all()
    for most in (0.05, 0.7):
        pays = betting.share_stakes(np.array([True, False]), most)
        assert np.allclose(most * pays[0] + (1 - most) * pays[1], 1)
        assert pays.min() > 0


@pytest.mark.parametrize("against", ["usual", "steady"])
def test_p_values_of_the_urn_are_independent_and_uniform(against: str) -> None:
    """Over calibration sets and streams together, and for few distinct scores too."""
    random = np.random.default_rng(0)
    found = []
    for trial in range(300):
        digits = 6 if trial % 2 else 0  # half of the streams have a handful of distinct scores
        known = Reference.of(random.normal(size=12).round(digits), None, seed=str(trial))
        counts = np.array(known.gaps, float) * (against == "usual")
        row = []
        for step, score in enumerate(random.normal(size=20).round(digits).tolist()):
            cell = known.cell(score, str(step))
            u = float(random.random())
            row.append(float(betting.urn(counts, np.asarray(cell), u, against == "steady")))
            counts[cell] += 1
        found.append(row)
    p = np.array(found)
    for half in (p[::2], p[1::2]):
        ordered = np.sort(half.ravel())
        apart = np.abs(ordered - (np.arange(ordered.size) + 0.5) / ordered.size).max()
        assert apart < 1.95 / np.sqrt(ordered.size)  # Kolmogorov-Smirnov at 0.1 %
        related = np.corrcoef(half.T)[np.triu_indices(20, 1)]
        assert abs(related.mean()) < 3.3 / np.sqrt(150 * related.size)


def test_false_alarms() -> None:
    for n in (40, 200):
        alarms, _ = first_alarms(n, 1000, 150, seed=n)
        assert (alarms != NEVER).mean() <= above(150, 0.05)


def test_p_values_against_the_calibration_set_alone_would_not_do() -> None:
    alarms, _ = first_alarms(40, 2000, 100, seed=1, against="the calibration set alone")
    assert (alarms != NEVER).mean() > 0.3


@pytest.mark.slow
@pytest.mark.parametrize("n", [40, 200, 1000])
@pytest.mark.parametrize("against", ["usual", "steady"])
def test_false_alarms_in_1e5_predictions(n: int, against: str) -> None:
    run = 1e5
    alarms, notices = first_alarms(
        n,
        100_000,
        200,
        seed=n,
        run=run,
        against=against,  # type: ignore[arg-type]
    )
    print(n, against, (alarms != NEVER).mean(), (notices != NEVER).mean())
    assert (alarms != NEVER).mean() <= above(200, 0.05)
    # The first notice comes after `run` steps or more on average: of those cut off at `run`, we
    # know at least that; and by `t` a share of at most t / run has seen one (Markov).
    assert (notices < run / 10).mean() <= above(200, 0.1)
    assert (notices < run / 2).mean() <= above(200, 0.5)


def test_a_share_within_the_tolerance_makes_no_alarm() -> None:
    def missed(random: np.random.Generator, step: int, trials: int) -> np.ndarray:
        return random.normal(size=trials) + 2.0 * (random.random(trials) < 0.02)

    alarms, _ = first_alarms(200, 2500, 60, seed=2, tolerance=0.03, draw=missed)
    assert (alarms != NEVER).mean() <= above(60, 0.05)


def test_a_shift_is_noticed() -> None:
    def shifted(random: np.random.Generator, step: int, trials: int) -> np.ndarray:
        return random.normal(size=trials) + (0.5 if step >= 500 else 0.0)

    alarms, notices = first_alarms(
        200, 1500, 40, seed=3, alpha=0.01 / 3, run=3e6, tolerance=0.01, draw=shifted
    )
    late = alarms[alarms >= 500] - 500
    assert (alarms < 500).mean() <= 0.1
    assert np.median(late) < 300
    assert np.median(notices - 500) < 300


def reference(n: int = 200, seed: int = 0) -> Reference:
    scores = np.sort(np.random.default_rng(seed).normal(size=n))
    return Reference.of(scores, float(scores[int(0.95 * n)]), seed="s")


def fed(monitor: Monitor, scores: np.ndarray, name: str) -> list[str]:
    said = []
    for at, score in enumerate(scores.tolist()):
        key = f"{name}{at}"
        said += [
            f"{one.test} {one.kind} {one.final}"
            for one in monitor.add(monitor.reference.cell(score, key), key)
        ]
    return said


def test_one_monitor_does_what_many_do() -> None:
    """The single-picture path against the arithmetic for many."""
    known = reference()
    monitor = Monitor(known, seed="s", tolerance=0.02)
    scores = np.random.default_rng(1).normal(size=300)
    counts, state = np.zeros(len(known.gaps)), betting.opening()
    for at, score in enumerate(scores.tolist()):
        cell = known.cell(score, str(at))
        monitor.add(cell, str(at))
        u = betting_u(str(at))
        p = betting.urn(counts, np.asarray(cell), u, itself=True)
        counts[cell] += 1
        state = betting.bet(*state, betting.stakes(p, 0.02))
    assert monitor.evidence()["steady"] == pytest.approx(float(betting.capital(state[1])))
    assert np.allclose(monitor._sums[2], state[2])


def betting_u(key: str) -> float:
    from blemish.monitoring.draws import uniform

    return uniform("s", "within", key)


@pytest.mark.parametrize(
    ("change", "kind"),
    [
        (lambda x: x + 0.7, "higher"),
        (lambda x: x - 0.7, "lower"),
        (lambda x: x * 2.2, "wider"),
        (lambda x: x * 0.4, "narrower"),
    ],
)
def test_what_changed_and_what_to_do(change: object, kind: str) -> None:
    random = np.random.default_rng(4)
    monitor = Monitor(reference(), seed="s")
    assert not fed(monitor, random.normal(size=800), "before")
    assert "No change was noticed in 800 pictures" in monitor.words()
    said = fed(monitor, change(random.normal(size=800)), "after")  # type: ignore[operator]
    assert f"steady {kind} True" in said
    assert f"steady {kind} False" in said
    assert ADVICE[next(one for one in monitor.alarms() if one.test == "steady").kind]
    assert "A change was noticed with picture" in monitor.words()


def test_defects_are_no_drift_but_many_alarms_are() -> None:
    random = np.random.default_rng(5)
    monitor = Monitor(reference(), seed="s", defects=0.1)
    scores = random.normal(size=2500)
    assert not fed(monitor, scores + 9 * (random.random(2500) < 0.05), "few")
    many = Monitor(reference(), seed="s", defects=0.1)
    said = fed(many, random.normal(size=300) + 9 * (random.random(300) < 0.6), "many")
    assert "alarms alarms True" in said
    assert "usual" not in {one.test for one in many.alarms()}
    assert "More pictures raise an alarm" in many.words()
    for threshold in (None, 0.0, 1.5, 9.0):  # also below and above all calibration scores
        known = Reference.of([1.0, 2.0], threshold, seed="s")
        lone = Monitor(known, seed="s")
        assert not [said for at in range(3) for said in lone.add(known.cell(at, str(at)), str(at))]
        assert all(np.isfinite(list(lone.evidence().values())))


def test_alarms_come_at_the_stated_levels() -> None:
    """Each with the first picture at which its capital is at the level, and never again; notices
    with the sums, which then begin anew."""
    random = np.random.default_rng(8)
    known = reference()
    monitor = Monitor(known, seed="s", alpha=0.03, run=500)
    levels = {"usual": 100.0, "alarms": 100 / 0.9, "steady": 100.0}
    stands: set[str] = set()
    notices = 0
    for at, score in enumerate((random.normal(size=900) + np.arange(900) / 300).tolist()):
        before = monitor._sums.copy()
        said = monitor.add(known.cell(score, str(at)), str(at))
        over = {name for name, each in monitor.evidence().items() if each >= levels[name]}
        assert {one.test for one in said if one.final} == over - stands
        stands |= over
        for row, name in enumerate(levels):
            noticed = any(one.test == name and not one.final for one in said)
            assert noticed == (monitor._sums[row].sum() == 0)
            if not noticed:
                assert monitor._sums[row].mean() < 3 * 500
            elif name != "alarms":
                assert before[row].mean() > 3 * 500 / 5  # no bet pays more than about five
                notices += 1
    assert stands == set(levels)
    assert notices > 1
    assert {one.at for one in monitor.alarms()} == set(monitor._since)


def test_how_many_alarms_are_too_many() -> None:
    """The rate that the threshold has with all but a thirtieth of alpha, besides the defects."""
    monitor = Monitor(reference(), seed="s", alpha=0.03, defects=0.1)
    rate = float(beta.ppf(1 - 0.001, 10, 191))  # 9 of 200 scores are above the threshold
    assert monitor._most == pytest.approx(0.1 + 0.9 * rate)


def test_state_survives_and_depends_on_keys_alone() -> None:
    scores = np.random.default_rng(6).normal(size=120)
    known = reference()
    whole, kept = Monitor(known, seed="s"), Monitor(known, seed="s")
    for at, score in enumerate(scores.tolist()):
        assert whole.add(known.cell(score, str(at)), str(at)) == kept.add(
            known.cell(score, str(at)), str(at)
        )
        kept = Monitor.from_dict(json.loads(json.dumps(kept.to_dict())), known)
    assert kept.to_dict() == whole.to_dict()
    assert len(json.dumps(whole.to_dict())) < 30_000
    with pytest.raises(ConfigError, match="another calibration"):
        Monitor.from_dict(whole.to_dict(), reference(100))
    for change in ({"sums": [[1.0]]}, {"logs": [[float("nan")] * 4] * 3}):
        with pytest.raises(ConfigError, match="impossible"):
            Monitor.from_dict({**whole.to_dict(), **change}, known)
    with pytest.raises(ConfigError, match="not the state"):
        Monitor.from_dict({}, known)


def test_cells_by_scores_and_by_p_values() -> None:
    """Where no scores are tied, the p-value of a prediction says the same as its score."""
    for n, rate in ((7, 0.2), (40, 0.05), (500, 0.05)):
        scores = np.sort(np.random.default_rng(n).normal(size=n))
        k = int(np.ceil((n + 1) * (1 - rate)))
        known = Reference.of(scores, float(scores[k - 1]), seed="s")
        plain = Reference.untied(n, rate, seed="s")
        assert known.gaps == plain.gaps
        assert known.top == plain.top
        assert sum(known.gaps) == n + 1
        for score in np.random.default_rng(1).normal(size=200).tolist():
            given = p_value(score, scores)
            assert given is not None
            cell = known.cell(score, "a")
            assert cell == plain.cell_of(given)
            assert (cell < known.top) == (score > scores[k - 1])


def test_what_cannot_be() -> None:
    with pytest.raises(ConfigError, match="no calibration scores"):
        Reference.of([], None, seed="s")
    with pytest.raises(NonFiniteError):
        Reference.of([1.0, np.nan], None, seed="s")
    with pytest.raises(ConfigError, match="nothing to tell by"):
        Reference.untied(0, None, seed="s")
    with pytest.raises(ConfigError, match="is none of 7 calibration pictures"):
        Reference.untied(7, 0.2, seed="s").cell_of(0.3)
    with pytest.raises(NonFiniteError, match="prediction a"):
        reference().cell(np.inf, "a")
    with pytest.raises(ConfigError, match="cell 99"):
        Monitor(reference(), seed="s").add(99, "a")
    for wrong in ({"alpha": 0.0}, {"run": 5.0}, {"tolerance": 0.5}, {"defects": 1.0}):
        with pytest.raises(ConfigError, match="alpha in"):
            Monitor(reference(), seed="s", **wrong)  # type: ignore[arg-type]

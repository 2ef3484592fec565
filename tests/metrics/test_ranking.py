"""Ranking metrics against scikit-learn, loops over pairs, and values by hand."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from sklearn import metrics as sklearn_metrics

from blemish.detector.thresholds import verdict
from blemish.errors import ConfigError, NonFiniteError
from blemish.metrics.ranking import (
    auroc,
    average_precision,
    best_f1,
    confusion,
    precision_recall_curve,
    roc_curve,
)

Array = NDArray[Any]


def case(seed: int, levels: int) -> tuple[Array, Array]:
    """Random scores, from nearly all tied to all distinct, and labels."""
    rng = np.random.default_rng(seed)
    labels = np.append([0, 1], rng.integers(0, 2, 38))
    return rng.integers(0, levels, 40) / levels + 0.1 * labels * rng.integers(0, 2, 40), labels


random_cases = pytest.mark.parametrize(
    ("scores", "labels"), [case(seed, levels) for seed, levels in enumerate([2, 3, 10, 1000])]
)
RANKINGS = [auroc, average_precision, best_f1, roc_curve, precision_recall_curve]


@random_cases
def test_auroc_counts_the_pairs_won(scores: Array, labels: Array) -> None:
    pairs = list(itertools.product(scores[labels == 1], scores[labels == 0]))
    won = sum(1.0 if bad > good else 0.5 if bad == good else 0.0 for bad, good in pairs)
    assert auroc(scores, labels) == won / len(pairs)


@random_cases
def test_average_precision_steps_over_the_distinct_scores(scores: Array, labels: Array) -> None:
    expected = sklearn_metrics.average_precision_score(labels, scores)
    assert average_precision(scores, labels) == pytest.approx(expected, abs=1e-14)


@random_cases
def test_best_f1_is_the_best_of_all_thresholds_and_is_reached(scores: Array, labels: Array) -> None:
    found = best_f1(scores, labels)
    assert found is not None
    f1, threshold = found
    thresholds = np.append(scores, scores.min() - 1)
    every = [sklearn_metrics.f1_score(labels, scores > each) for each in thresholds]
    assert f1 == pytest.approx(max(every), abs=1e-14)
    said = [verdict(score, threshold) for score in scores.tolist()]
    assert sklearn_metrics.f1_score(labels, said) == pytest.approx(f1, abs=1e-14)


def test_best_f1_by_hand() -> None:
    assert best_f1([1.0, 2.0, 4.0, 4.0], [0, 0, 1, 1]) == (1.0, 3.0)  # between neighbours
    # Where all must be called, just below the lowest.
    assert best_f1([5.0, 5.0, 9.0], [1, 1, 0]) == (pytest.approx(0.8), np.nextafter(5.0, 0.0))
    # Above 3: precision 1, recall 1/2; above everything but 0: precision 1/2, recall 1. Both F1
    # 2/3; the higher threshold counts.
    assert best_f1([4.0, 2.0, 2.0, 2.0, 0.0], [1, 1, 0, 0, 0]) == (pytest.approx(2 / 3), 3.0)


@pytest.mark.parametrize(
    "pair",
    [
        (1.0, np.nextafter(1.0, 2.0)),
        (1e-323, 1.5e-323),
        (0.0, 5e-324),
        (-1.7e308, 1.7e308),
        (1.6e308, 1.7e308),
    ],
)
def test_best_f1_separates_the_closest_and_the_largest_scores(pair: tuple[float, float]) -> None:
    found = best_f1(list(pair), [0, 1])
    assert found is not None
    assert found[0] == 1.0
    assert [verdict(score, found[1]) for score in pair] == [0, 1]


@random_cases
def test_roc_curve_has_a_point_per_distinct_score(scores: Array, labels: Array) -> None:
    expected = sklearn_metrics.roc_curve(labels, scores, drop_intermediate=False)
    np.testing.assert_allclose(roc_curve(scores, labels), expected[:2], atol=1e-15)


@random_cases
def test_precision_recall_curve_is_that_of_scikit_learn_reversed(
    scores: Array, labels: Array
) -> None:
    precision, recall, _ = sklearn_metrics.precision_recall_curve(labels, scores)
    expected = precision[::-1], recall[::-1]
    np.testing.assert_allclose(precision_recall_curve(scores, labels), expected, atol=1e-15)


def test_confusion_counts_each_cell() -> None:
    assert confusion([1] * 5 + [0] * 5, [1, 1, 1, 0, 0, 0, 0, 0, 0, 1]) == {
        "true_positive": 3,
        "false_positive": 2,
        "true_negative": 4,
        "false_negative": 1,
    }
    assert sum(confusion([], []).values()) == 0


@pytest.mark.parametrize("metric", RANKINGS)
@pytest.mark.parametrize("labels", [[0, 0, 0], [1, 1, 1]])
def test_a_missing_class_leaves_it_undefined(metric, labels) -> None:
    assert metric([1.0, 2.0, 3.0], labels) is None
    assert metric([], []) is None


@pytest.mark.parametrize("metric", RANKINGS)
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_a_score_that_is_not_finite_is_an_error(metric, bad) -> None:
    with pytest.raises(NonFiniteError, match="1 of 3 scores"):
        metric([1.0, bad, 3.0], [0, 1, 1])


@pytest.mark.parametrize("metric", [*RANKINGS, confusion])
def test_shapes_and_labels_that_do_not_fit_are_errors(metric) -> None:
    with pytest.raises(ConfigError, match=r"\(2,\).*\(3,\)"):
        metric([1, 0], [0, 1, 1])
    with pytest.raises(ConfigError, match=r"\(1, 2\)"):
        metric([[1, 0]], [[0, 1]])
    with pytest.raises(ConfigError, match="label is neither"):
        metric([1, 0], [0, 2])
    with pytest.raises(ConfigError, match="verdict is neither"):
        confusion([0.7, 0], [0, 1])


@settings(max_examples=50, deadline=None, derandomize=True)
@given(st.lists(st.tuples(st.integers(-30, 30), st.booleans()), min_size=2, max_size=30))
def test_only_the_order_of_the_scores_counts(rows: list[tuple[int, bool]]) -> None:
    scores = np.array([row[0] for row in rows], dtype=np.float32)
    labels = [row[1] for row in rows]
    stretched = np.exp(scores.astype(np.float64) / 3)
    assert auroc(scores, labels) == auroc(stretched, labels)
    assert average_precision(scores, labels) == average_precision(stretched, labels)
    area = auroc(scores, labels)
    if area is not None:
        assert auroc(-scores, labels) == pytest.approx(1 - area, abs=1e-15)

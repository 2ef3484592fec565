from __future__ import annotations

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


def cases() -> list[tuple[NDArray[np.float64], NDArray[np.int64]]]:
    """Random scores, from all distinct to nearly all tied."""
    made = []
    for seed, levels in enumerate([2, 3, 10, 1000]):
        rng = np.random.default_rng(seed)
        labels = np.append([0, 1], rng.integers(0, 2, 38))
        made.append(
            (rng.integers(0, levels, 40) / levels + 0.1 * labels * rng.integers(0, 2, 40), labels)
        )
    return made


CASES = cases()


@pytest.mark.parametrize(("scores", "labels"), CASES)
def test_auroc_counts_the_pairs_won(scores: NDArray[np.float64], labels: NDArray[np.int64]) -> None:
    won, pairs = 0.0, 0
    for anomalous in scores[labels == 1]:
        for normal in scores[labels == 0]:
            won += 1.0 if anomalous > normal else 0.5 if anomalous == normal else 0.0
            pairs += 1
    assert auroc(scores, labels) == won / pairs
    assert auroc(scores, labels) == pytest.approx(
        sklearn_metrics.roc_auc_score(labels, scores), abs=1e-14
    )


@pytest.mark.parametrize(("scores", "labels"), CASES)
def test_average_precision_steps_over_the_distinct_scores(
    scores: NDArray[np.float64], labels: NDArray[np.int64]
) -> None:
    area, recall = 0.0, 0.0
    for threshold in sorted(set(scores.tolist()), reverse=True):
        called = scores >= threshold
        true = int(np.sum(labels[called]))
        area += (true / labels.sum() - recall) * true / int(called.sum())
        recall = true / labels.sum()
    assert average_precision(scores, labels) == pytest.approx(area, abs=1e-14)
    expected = sklearn_metrics.average_precision_score(labels, scores)
    assert average_precision(scores, labels) == pytest.approx(expected, abs=1e-14)


@pytest.mark.parametrize(("scores", "labels"), CASES)
def test_best_f1_is_the_best_of_all_thresholds_and_is_reached(
    scores: NDArray[np.float64], labels: NDArray[np.int64]
) -> None:
    found = best_f1(scores, labels)
    assert found is not None
    f1, threshold = found
    every = [
        sklearn_metrics.f1_score(labels, scores > t) for t in np.append(scores, scores.min() - 1)
    ]
    assert f1 == pytest.approx(max(every), abs=1e-14)
    said = [verdict(score, threshold) for score in scores.tolist()]
    assert sklearn_metrics.f1_score(labels, said) == pytest.approx(f1, abs=1e-14)


def test_best_f1_places_the_threshold_between_neighbours() -> None:
    assert best_f1([1.0, 2.0, 4.0, 4.0], [0, 0, 1, 1]) == (1.0, 3.0)


def test_best_f1_below_the_minimum_when_all_must_be_called() -> None:
    found = best_f1([5.0, 5.0, 9.0], [1, 1, 0])
    assert found is not None
    assert found[0] == pytest.approx(0.8)
    assert found[1] < 5.0
    assert found[1] == pytest.approx(5.0)


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


def test_best_f1_takes_the_highest_of_equally_good_thresholds() -> None:
    # Above 3: precision 1, recall 1/2; above everything but 0: precision 1/2, recall 1. Both F1
    # 2/3.
    assert best_f1([4.0, 2.0, 2.0, 2.0, 0.0], [1, 1, 0, 0, 0]) == (pytest.approx(2 / 3), 3.0)


@pytest.mark.parametrize(("scores", "labels"), CASES)
def test_roc_curve_has_a_point_per_distinct_score(
    scores: NDArray[np.float64], labels: NDArray[np.int64]
) -> None:
    curve = roc_curve(scores, labels)
    assert curve is not None
    expected = sklearn_metrics.roc_curve(labels, scores, drop_intermediate=False)
    np.testing.assert_allclose(curve[0], expected[0], atol=1e-15)
    np.testing.assert_allclose(curve[1], expected[1], atol=1e-15)
    assert np.trapezoid(curve[1], curve[0]) == pytest.approx(auroc(scores, labels), abs=1e-14)


@pytest.mark.parametrize(("scores", "labels"), CASES)
def test_precision_recall_curve_is_that_of_scikit_learn_reversed(
    scores: NDArray[np.float64], labels: NDArray[np.int64]
) -> None:
    curve = precision_recall_curve(scores, labels)
    assert curve is not None
    precision, recall, _ = sklearn_metrics.precision_recall_curve(labels, scores)
    np.testing.assert_allclose(curve[0], precision[::-1], atol=1e-15)
    np.testing.assert_allclose(curve[1], recall[::-1], atol=1e-15)


def test_confusion_counts_each_cell() -> None:
    assert confusion([1, 1, 1, 0, 0, 1], [1, 0, 0, 0, 1, 1]) == {
        "true_positive": 2,
        "false_positive": 2,
        "true_negative": 1,
        "false_negative": 1,
    }
    assert sum(confusion([], []).values()) == 0


@pytest.mark.parametrize(
    "metric", [auroc, average_precision, best_f1, roc_curve, precision_recall_curve]
)
@pytest.mark.parametrize("labels", [[0, 0, 0], [1, 1, 1]])
def test_a_missing_class_leaves_it_undefined(metric, labels) -> None:
    assert metric([1.0, 2.0, 3.0], labels) is None
    assert metric([], []) is None


@pytest.mark.parametrize(
    "metric", [auroc, average_precision, best_f1, roc_curve, precision_recall_curve]
)
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_a_score_that_is_not_finite_is_an_error(metric, bad) -> None:
    with pytest.raises(NonFiniteError, match="1 of 3 scores"):
        metric([1.0, bad, 3.0], [0, 1, 1])


@pytest.mark.parametrize(
    "metric", [auroc, average_precision, best_f1, roc_curve, precision_recall_curve, confusion]
)
def test_shapes_and_labels_that_do_not_fit_are_errors(metric) -> None:
    with pytest.raises(ConfigError, match=r"\(2,\).*\(3,\)"):
        metric([1, 0], [0, 1, 1])
    with pytest.raises(ConfigError, match=r"\(1, 2\)"):
        metric([[1, 0]], [[0, 1]])
    with pytest.raises(ConfigError, match="label is neither"):
        metric([1, 0], [0, 2])


def test_confusion_refuses_a_score_for_a_verdict() -> None:
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

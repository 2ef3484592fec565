"""Ranking metrics of picture scores: AUROC, average precision, best F1, curves, confusion.

Every one is read off the same two integer counts: true and false positives at each distinct score,
tied scores merged. Scores are raw, higher = more anomalous; labels are 0 normal, 1 anomalous. What
ranks one class against the other is None when a class is missing. Raises everywhere: ConfigError
when shapes or labels do not fit, NonFiniteError for a score that is NaN or infinite.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from blemish.errors import ConfigError, NonFiniteError
from blemish.types import ANOMALOUS, NORMAL

Curve = tuple[NDArray[np.float64], NDArray[np.float64]]


def auroc(scores: ArrayLike, labels: ArrayLike) -> float | None:
    """Probability that an anomalous picture scores above a normal one, ties counted as half
    (Mann-Whitney U); exact.

    Example:
        >>> auroc([0.1, 0.4, 0.4, 0.9], [0, 0, 1, 1])
        0.875
    """
    if (counts := _counts(scores, labels)) is None:
        return None
    true, false, _ = counts
    doubled = np.diff(false, prepend=0) * (true + np.append(0, true[:-1]))
    return int(doubled.sum()) / (2 * int(true[-1]) * int(false[-1]))


def average_precision(scores: ArrayLike, labels: ArrayLike) -> float | None:
    """Area under the precision-recall steps: precision × gain in recall, summed over distinct
    scores.

    As scikit-learn defines it: no interpolation between the steps.

    Example:
        >>> average_precision([0.1, 0.4, 0.6, 0.9], [0, 1, 0, 1])
        0.8333333333333333
    """
    if (counts := _counts(scores, labels)) is None:
        return None
    true, false, _ = counts
    return float(np.sum(np.diff(true, prepend=0) * (true / (true + false))) / true[-1])


def best_f1(scores: ArrayLike, labels: ArrayLike) -> tuple[float, float] | None:
    """The highest F1 that any threshold reaches, and that threshold (score > threshold is an
    alarm).

    An oracle: it looks at the labels. The threshold lies midway between neighbouring distinct
    scores, or just below the lowest score when everything must be called anomalous; of equally good
    ones it is the highest.

    Example:
        >>> best_f1([1.0, 2.0, 3.0, 4.0], [0, 0, 1, 1])
        (1.0, 2.5)
    """
    if (counts := _counts(scores, labels)) is None:
        return None
    true, false, distinct = counts
    f1 = 2 * true / (true + false + true[-1])
    best = int(np.argmax(f1))
    upper = distinct[best]
    if best + 1 == len(distinct):
        return float(f1[best]), float(np.nextafter(upper, -np.inf))
    lower = distinct[best + 1]
    middle = lower / 2 + upper / 2  # halved first: the sum of two huge scores overflows
    # Adjacent floats have no middle.
    return float(f1[best]), float(middle if middle < upper else lower)


def roc_curve(scores: ArrayLike, labels: ArrayLike) -> Curve | None:
    """(false-positive, true-positive rate), one point per distinct score, from (0, 0) to (1, 1)."""
    if (counts := _counts(scores, labels)) is None:
        return None
    true, false, _ = counts
    return np.append(0.0, false / false[-1]), np.append(0.0, true / true[-1])


def precision_recall_curve(scores: ArrayLike, labels: ArrayLike) -> Curve | None:
    """(precision, recall), one point per distinct score, by rising recall; the first is (1, 0) by
    convention.
    """
    if (counts := _counts(scores, labels)) is None:
        return None
    true, false, _ = counts
    return np.append(1.0, true / (true + false)), np.append(0.0, true / true[-1])


def confusion(verdicts: ArrayLike, labels: ArrayLike) -> dict[str, int]:
    """How often verdicts (0 normal, 1 anomalous; from `blemish.detector.thresholds.verdict`) agree
    with the labels.

    Example:
        >>> confusion([0, 1, 1], [0, 0, 1])
        {'true_positive': 1, 'false_positive': 1, 'true_negative': 1, 'false_negative': 0}
    """
    said, truth = _classes(verdicts, "verdict"), _classes(labels, "label")
    _same_length(said, truth, "verdicts")
    return {
        "true_positive": int(np.sum(said & truth)),
        "false_positive": int(np.sum(said & ~truth)),
        "true_negative": int(np.sum(~said & ~truth)),
        "false_negative": int(np.sum(~said & truth)),
    }


def _counts(
    scores: ArrayLike, labels: ArrayLike
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float64]] | None:
    """(true positives, false positives, distinct scores): how many score at least as much, by
    falling score.
    """
    values, anomalous = np.asarray(scores, dtype=np.float64), _classes(labels, "label")
    _same_length(values, anomalous, "scores")
    if not np.isfinite(values).all():
        raise NonFiniteError(
            f"{np.count_nonzero(~np.isfinite(values))} of {values.size} scores are NaN or infinite"
        )
    if anomalous.all() or not anomalous.any():
        return None
    order = np.argsort(-values)
    values, anomalous = values[order], anomalous[order]
    last = np.flatnonzero(np.append(values[1:] != values[:-1], True))  # of each run of tied scores
    true = np.cumsum(anomalous, dtype=np.int64)[last]
    return true, last + 1 - true, values[last]


def _classes(values: ArrayLike, name: str) -> NDArray[np.bool_]:
    array = np.asarray(values)
    anomalous: NDArray[np.bool_] = array == ANOMALOUS
    if not np.all(anomalous | (array == NORMAL)):
        raise ConfigError(f"a {name} is neither 0 (normal) nor 1 (anomalous)")
    return anomalous


def _same_length(values: NDArray[np.generic], labels: NDArray[np.bool_], name: str) -> None:
    if values.ndim != 1 or values.shape != labels.shape:
        raise ConfigError(
            f"{name} of shape {values.shape} do not go with labels of shape {labels.shape}; one "
            "each is needed"
        )

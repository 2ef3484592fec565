"""Maps cut at one level: against a search over every score, and a flood fill."""

from __future__ import annotations

import numpy as np
import pytest

from blemish.errors import ConfigError, NonFiniteError
from blemish.metrics.cuts import BestCut, parts_above


def f1_of(pairs: list[tuple[np.ndarray, np.ndarray | None]], level: float) -> float:
    """From the definition."""
    both = marked = true = 0
    for heatmap, mask in pairs:
        for at in np.ndindex(heatmap.shape):
            above, defect = heatmap[at] > level, mask is not None and bool(mask[at])
            both, marked, true = both + (above and defect), marked + above, true + defect
    return 2 * both / (marked + true)


def test_the_best_cut_is_the_best_of_all_levels() -> None:
    rng = np.random.default_rng(3)
    pairs: list[tuple[np.ndarray, np.ndarray | None]] = []
    for index in range(4):
        mask = rng.random((6, 7)) < 0.2
        scores = rng.integers(0, 12, (6, 7)) + 5 * mask  # ties, and classes that overlap
        pairs.append((scores.astype(np.float32), mask if index else None))
    best = BestCut(-0.5, 19.5, bins=20)
    for heatmap, mask in pairs:
        best.add(heatmap, mask)
    found = best.compute()
    assert found is not None
    tried = {level + 0.5: f1_of(pairs, level + 0.5) for level in range(-1, 18)}
    assert found[0] == pytest.approx(max(tried.values()))
    assert f1_of(pairs, found[1]) == pytest.approx(found[0])
    assert found[1] == pytest.approx(max(one for one, f1 in tried.items() if f1 == found[0]))


def test_scores_beyond_the_range_count_at_its_ends() -> None:
    best = BestCut(0, 1, bins=4)
    best.add(np.array([[-9.0, 99.0]], dtype=np.float32), np.array([[False, True]]))
    assert best.compute() == (1.0, pytest.approx(0.75))


def test_without_defects_there_is_no_best_cut_and_bad_input_is_named() -> None:
    best = BestCut(0, 1)
    best.add(np.zeros((2, 2), dtype=np.float32), None)
    best.add(np.zeros((2, 2), dtype=np.float32), np.zeros((2, 2), dtype=bool))
    assert best.compute() is None
    with pytest.raises(NonFiniteError, match="NaN"):
        best.add(np.full((2, 2), np.nan, dtype=np.float32), None)
    for low, high, bins in [(1, 1, 4), (0, np.inf, 4), (0, 1, 0)]:
        with pytest.raises(ConfigError, match="range"):
            BestCut(low, high, bins=bins)


def test_parts_touch_at_corners_and_lie_strictly_above() -> None:
    heatmap = np.array([[2, 0, 0, 1], [0, 2, 0, 0], [0, 0, 0, 3]], dtype=np.float32)
    parts = parts_above(heatmap, 1.0)
    assert [int(part.sum()) for part in parts] == [2, 1]
    assert (np.logical_or.reduce(parts) == (heatmap > 1)).all()
    assert parts_above(heatmap, 3.0) == []

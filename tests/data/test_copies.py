from __future__ import annotations

import numpy as np
import pytest

from blemish.data import copies


@pytest.mark.parametrize("block", [1, 4, 100])
def test_nearly_same_is_counted_as_pair_by_pair(
    block: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(copies, "_BLOCK", block)
    random = np.random.default_rng(0)
    shown = random.uniform(0, 255, (5, 32, 32))
    noisy = [shown[at] + random.normal(0, noise, (32, 32)) for at in range(5) for noise in (1, 3)]
    faint = [np.full((32, 32), 100.0), np.full((32, 32), 100.5)]  # an even surface is nobody's copy
    pictures = [each.astype(np.float32) for each in (*shown, *noisy, *faint)]
    count = 0
    for at, picture in enumerate(pictures):
        limit = min(1.5, 0.1 * picture.std())
        count += any(np.sqrt(np.mean((picture - other) ** 2)) < limit for other in pictures[:at])
    assert copies.nearly_same(pictures) == count == 5
    assert copies.nearly_same([]) == 0

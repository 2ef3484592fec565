"""The regions of a detector that has learned from defects: its maps are others, and so are the
levels that normal pictures reach.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from parts import Part, Write

import blemish
from blemish.detector.refine import refine
from blemish.regions import region_level

RATE = 0.1  # takes 9 pictures
Fit = Callable[..., blemish.Detector]


@pytest.fixture
def fit(small: dict[str, Any]) -> Fit:
    def fitted(good: Any, defects: Any = None, **more: Any) -> blemish.Detector:
        given = {**small, "normality": "knn", "false_alarm_rate": RATE, **more}
        return blemish.fit("lda", good, anomalies=defects, **given)

    return fitted


def levels(detector: blemish.Detector) -> list[float]:
    regions = detector.record.regions
    assert regions is not None
    return list(regions.levels)


def value(detector: blemish.Detector) -> float | None:
    regions = detector.record.regions
    assert regions is not None
    assert regions.threshold is not None
    return regions.threshold.value


def test_they_are_those_of_pictures_left_out(fit: Fit, picture: Part) -> None:
    good = [picture(seed) for seed in range(24)]
    bad = [picture(200 + seed, defect=True) for seed in range(6)]
    at_once = fit(good, bad)
    before = fit(good[:12])
    refined = refine(before, good=good[12:], anomalies=bad).detector
    # As if all had been learned at once, but that the discriminant goes by what old pictures
    # scored when the bank was smaller, which moves it by some per cent.
    np.testing.assert_allclose(levels(refined), levels(at_once)[12:], rtol=0.06)
    learned = refine(before, good=good[12:]).detector  # without the defects
    assert np.mean(np.abs(1 - np.divide(levels(learned), levels(before)))) == 0
    smallest = refined.record.regions.smallest
    known = [region_level(one.anomaly_map, smallest) for one in refined.predict_many(good[12:])]
    assert not np.allclose(levels(refined), known, rtol=0.15)  # which know themselves
    own = sorted(levels(refined))
    assert value(refined) == own[math.ceil(13 * (1 - RATE)) - 1]
    told = refined.record.regions.threshold
    assert (told.n, told.method, told.rate) == (12, "leave-one-out", RATE)
    (found,) = refined.predict_many([picture(999, defect=True)])
    assert found.regions
    assert found.p_value is not None


def test_and_of_pictures_held_out(fit: Fit, picture: Part, write: Write, tmp_path: Path) -> None:
    before = fit([picture(seed) for seed in range(12)])
    bad = [picture(200 + seed, defect=True) for seed in range(6)]
    held = [picture(seed) for seed in range(300, 310)]
    refined = refine(before, anomalies=bad, held=[*held, held[0], picture(0)]).detector
    smallest = refined.record.regions.smallest
    said = [region_level(refined.predict(one).anomaly_map, smallest) for one in held]
    np.testing.assert_allclose(levels(refined), said, rtol=1e-6)  # a copy, and a known one: not
    assert refined.record.regions.threshold.method == "split conformal"
    assert value(refined) is not None
    assert not set(refined.learned) & {blemish.images.decode(one).digest for one in held}
    # Of new pictures those count that were not chosen for their scores.
    new = [write(tmp_path / f"{seed}.png", picture(seed)) for seed in range(400, 406)]
    drawn = {str(path) for path in new[:4]}
    both = refine(before, good=new, anomalies=bad, held=held, drawn=drawn).detector
    assert len(levels(both)) == 4 + len(held)
    assert both.record.regions.threshold.method == "leave-one-out"


def test_where_they_are_too_few_it_is_said(fit: Fit, picture: Part) -> None:
    before = fit([picture(seed) for seed in range(12)])
    assert value(before) is not None
    bad = [picture(200 + seed, defect=True) for seed in range(6)]
    none = refine(before, anomalies=bad[:3]).detector
    few = refine(before, good=[picture(50)], anomalies=bad[:3]).detector
    for detector, count in ((none, "are 0"), (few, "is 1")):
        assert value(detector) is None
        reason = detector.record.regions.threshold.reason
        assert f"needs at least 9 normal pictures to calibrate on, and there {count}" in reason
        assert "hold more good pictures out" in reason
        (found,) = detector.predict_many([picture(999, defect=True)])
        assert found.regions is None
    # What it lacks it gets with the next pictures, also without new defects.
    more = refine(none, good=[picture(seed) for seed in range(60, 70)]).detector
    assert len(levels(more)) == 10
    assert value(more) is not None
    # Without new defects, ever, the maps only sink: what was measured stays.
    grown = refine(before, good=[picture(50)]).detector
    assert levels(grown) == levels(before)
    assert value(grown) == value(before)

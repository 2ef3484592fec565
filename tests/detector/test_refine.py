"""Refining: what was learned later is what would have been learned at once, and the report is
recounted by hand.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from parts import Fitted, Part, Write
from torch import Tensor

import blemish
from blemish.data import layouts
from blemish.detector.predict import Detector
from blemish.detector.thresholds import verdict
from blemish.errors import CalibrationError, ConfigError, DataError
from blemish.images import decode
from blemish.methods.lda import Lda
from blemish.methods.memory import MemoryBank

CLOSE: dict[str, Any] = {"rtol": 1e-4, "atol": 1e-5}
PATCHES = 16  # of a picture


def taught(detector: Detector) -> Lda:
    assert isinstance(detector.method, Lda)
    return detector.method


def bank_of(detector: Detector) -> MemoryBank:
    normality = taught(detector).normality
    assert isinstance(normality, MemoryBank)
    return normality


def digests_of(sources: Iterable[Any]) -> list[str]:
    return [decode(source).digest for source in sources]


def scores_of(detector: Detector, pictures: Iterable[Any]) -> list[float]:
    return [detector.predict(picture).score for picture in pictures]


def threshold_by_hand(scores: list[float], rate: float) -> float:
    return sorted(scores)[math.ceil(round((len(scores) + 1) * (1 - rate), 9)) - 1]


def state_of(detector: Detector) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in detector.method.fitted_state().items()}


def assert_same_state(one: dict[str, Tensor], other: dict[str, Tensor]) -> None:
    assert one.keys() == other.keys()
    assert [name for name in one if not torch.equal(one[name], other[name])] == []


def assert_same_patches(one: Detector, other: Detector) -> None:
    """Their banks hold the same patches of the same pictures, in whatever order."""
    found, expected = bank_of(one), bank_of(other)
    closest = torch.cdist(found.bank.double(), expected.bank.double()).min(1)
    assert closest.values.max() < 1e-5
    assert sorted(closest.indices.tolist()) == list(range(len(expected.bank)))
    assert torch.equal(found.owners, expected.owners[closest.indices])


# Defects


@pytest.mark.parametrize("normality", ["knn", "patchcore"])
def test_defects_learned_later_are_defects_learned_at_once(
    normality: str, fit: Fitted, good: Any, bad: Any, mvtec: Path, picture: Part
) -> None:
    """Masks, which the data set has, count for both."""
    defects = [*layouts.read(mvtec).samples, *bad(1, first=10)]
    defects = [
        one for one in defects if isinstance(one, np.ndarray) or one.defect in ("square", "dark")
    ]
    whole = fit(good(24), defects, normality=normality)
    refined = blemish.refine(fit(good(24), normality=normality), anomalies=defects)
    assert (refined.good, refined.defects, refined.known, refined.failures) == (0, 8, 0, ())
    later = refined.detector
    assert_same_state(later.method.fitted_state(), whole.method.fitted_state())
    assert later.threshold == whole.threshold
    assert later.manifest["calibration_scores"] == whole.manifest["calibration_scores"]
    for key in ("count", "fingerprint", "fitted", "calibrated", "defects"):
        assert later.manifest["data"][key] == whole.manifest["data"][key]
    shown = [*good(3, 60), *bad(3, 60), picture(0)]
    assert scores_of(later, shown) == scores_of(whole, shown)


def test_more_defects_join_those_that_it_knew(fit: Fitted, good: Any, bad: Any) -> None:
    first, whole = fit(good(20), bad(2)), fit(good(20), bad(5))
    refined = blemish.refine(first, anomalies=bad(3, 2)).detector
    torch.testing.assert_close(taught(refined).defects, taught(whole).defects, **CLOSE)
    assert refined.manifest["data"]["defects"] == whole.manifest["data"]["defects"]
    shown = bad(2, 60)
    np.testing.assert_allclose(scores_of(refined, shown), scores_of(whole, shown), **CLOSE)
    assert scores_of(refined, shown) != scores_of(first, shown)


# Good pictures


@pytest.mark.parametrize("neighbours", [1, 7])
@pytest.mark.parametrize("normality", ["knn", "patchcore"])
def test_good_pictures_learned_later_are_remembered_as_if_learned_at_once(
    normality: str, neighbours: int, fit: Fitted, good: Any, bad: Any
) -> None:
    how = {"normality": normality, "normality_settings": [f"neighbours={neighbours}"]}
    first = fit(good(13), **how)
    known = first.manifest["calibration_scores"]
    refined = blemish.refine(first, good=good(11, 13))
    later, whole = refined.detector, fit(good(24), **how)
    assert (refined.good, refined.defects, refined.known) == (11, 0, 0)
    assert_same_patches(later, whole)
    shown = [*good(2, 60), *bad(2, 60), *good(2, 12)]
    np.testing.assert_allclose(scores_of(later, shown), scores_of(whole, shown), **CLOSE)
    scores, expected = later.manifest["calibration_scores"], whole.manifest["calibration_scores"]
    np.testing.assert_allclose(
        scores[13:], expected[13:], **CLOSE
    )  # each beside all the others, old and new
    assert scores[:13] == known  # as it was measured: too high, of one neighbour never too low
    fallen = np.array(known) - expected[:13]
    assert fallen.mean() > 1e-3
    assert neighbours > 1 or (fallen >= -1e-5).all()
    for key in ("count", "fingerprint", "fitted"):
        assert later.manifest["data"][key] == whole.manifest["data"][key]


def test_what_the_defects_taught_is_seen_beside_all_good_pictures(
    fit: Fitted, good: Any, bad: Any
) -> None:
    later = blemish.refine(fit(good(13), bad(2)), good=good(11, 13)).detector
    whole = fit(good(24), bad(2))
    torch.testing.assert_close(
        taught(later).descriptors[13:], taught(whole).descriptors[13:], **CLOSE
    )
    assert taught(later).owners.tolist() == list(range(24))
    old, new = (taught(detector).discriminant for detector in (fit(good(13), bad(2)), later))
    assert new.unit != old.unit
    given = taught(later).descriptors
    assert not torch.allclose(new.likeness(given), old.likeness(given), **CLOSE)


def test_the_bank_keeps_to_its_size(fit: Fitted, good: Any) -> None:
    settings = ("bank_size=40",)
    for normality in ("knn", "patchcore"):
        detector = fit(good(20), normality=normality, normality_settings=settings)
        normal = bank_of(blemish.refine(detector, good=good(4, 20)).detector)
        assert len(normal.bank) == len(normal.owners) == 40
        assert {owner >= 20 for owner in normal.owners.tolist()} == {False, True}


def test_a_single_good_picture_is_too_few_to_go_on_from(fit: Fitted, good: Any, bad: Any) -> None:
    with pytest.raises(DataError, match="beside two good pictures at least, got one"):
        blemish.refine(fit(good(1)), anomalies=bad(1))
    with pytest.raises(ConfigError, match="fitted on a single picture"):
        blemish.refine(fit(good(1)), good=good(23, 1), anomalies=bad(1))


def test_the_detector_given_stays_as_it_was(fit: Fitted, good: Any, bad: Any) -> None:
    detector = fit(good(6), bad(1))
    before, scores = state_of(detector), detector.method.good_scores()
    refined = blemish.refine(detector, good=good(2, 6), anomalies=bad(3)).detector
    assert_same_state(before, detector.method.fitted_state())
    assert detector.method.good_scores() == scores
    assert len(taught(refined).owners) == 8
    assert refined.method.backbone is detector.method.backbone


@pytest.mark.parametrize("normality", ["knn", "patchcore"])
def test_turned_and_mirrored_copies_share_their_picture(
    normality: str, fit: Fitted, good: Any, bad: Any
) -> None:
    turned: dict[str, Any] = {"normality": normality, "rotations": 2, "flips": True}
    first, whole = fit(good(7), bad(2), **turned), fit(good(12), bad(2), **turned)
    known = first.manifest["calibration_scores"]
    refined = blemish.refine(first, good=good(5, 7))
    later, method = refined.detector, taught(refined.detector)
    assert method.owners.tolist() == [owner for owner in range(12) for _ in range(4)]
    assert_same_patches(later, whole)
    assert torch.bincount(bank_of(later).owners).tolist() == [4 * PATCHES] * 12
    found, expected = method.normality_scores[28:], taught(whole).normality_scores[28:]
    torch.testing.assert_close(found, expected, **CLOSE)
    assert (refined.good, refined.calibrated, later.threshold.n) == (5, 7, 12)  # type: ignore[union-attr]
    # Of each picture the copy that is neither turned nor mirrored.
    likeness = method.discriminant.likeness_left_out(method.descriptors[::4], list(range(12)))
    plain = method.normality_scores[::4] + method.discriminant.unit * likeness
    np.testing.assert_allclose(later.manifest["calibration_scores"], plain.tolist(), **CLOSE)
    assert refined.mean_change == pytest.approx(plain[:7].mean().item() - np.mean(known), abs=1e-5)


# Which pictures


def test_what_was_added_is_recognised_afterwards(fit: Fitted, good: Any, mvtec: Path) -> None:
    detector = fit(good(20))
    added = [mvtec / "test" / "good" / "002.png", mvtec / "test" / "square" / "001.png"]
    refined = blemish.refine(detector, good=added[:1], anomalies=added[1:]).detector
    result = blemish.evaluate(refined, mvtec)
    assert sorted(result.left_out) == sorted(map(str, added))
    state, broken = state_of(refined), mvtec.parent / "odd.png"
    broken.write_text("not a picture")
    for again in ({"good": [added[0], broken]}, {"anomalies": added[1:]}, {"anomalies": broken}):
        with pytest.raises(DataError, match=r"nothing is new: .* or cannot be read"):
            blemish.refine(refined, **again)
    assert_same_state(refined.method.fitted_state(), state)


def test_what_is_known_is_left_out_and_counted(
    fit: Fitted, good: Any, bad: Any, write: Write, tmp_path: Path
) -> None:
    """By content: a learned picture, a copy under another name, a learned defect, a new one given
    twice.
    """
    again = write(tmp_path / "again.png", good(1)[0])
    new, defect = good(1, 60)[0], bad(1, 60)[0]
    refined = blemish.refine(
        fit(good(20), bad(2)),
        good=[*good(1, 3), new, again, new.copy()],
        anomalies=[defect, *bad(1), defect.copy()],
    )
    assert (refined.good, refined.defects, refined.known, refined.failures) == (1, 1, 5, ())
    data = refined.detector.manifest["data"]
    assert data["fitted"] == digests_of([*good(20), new])
    assert data["defects"] == digests_of([*bad(2), defect])
    assert taught(refined.detector).owners.tolist() == list(range(21))
    assert (data["count"], len(taught(refined.detector).defects)) == (21, 3)


def test_what_is_named_as_the_opposite_stays_and_is_told(fit: Fitted, good: Any, bad: Any) -> None:
    detector = fit(good(20), bad(2))
    new = good(1, 60)[0]
    given = [bad(1)[0], new, good(1)[0]], [good(1, 5)[0], new, bad(2)[1]]
    refined = blemish.refine(detector, good=given[0], anomalies=given[1])
    # A learned defect as good; a learned good one as a defect; a new one as both. The third of
    # each is known as what it is called.
    assert refined.contradictions == ("array 0", "array 0", "array 1")
    assert (refined.good, refined.defects, refined.known) == (1, 0, 5)
    data = refined.detector.manifest["data"]
    assert data["fitted"] == digests_of([*good(20), new])
    assert data["defects"] == digests_of(bad(2))
    with pytest.raises(DataError, match=r"nothing is new: .*; 1 picture named as the opposite"):
        blemish.refine(detector, anomalies=good(1))
    assert blemish.refine(detector, good=[new]).contradictions == ()


def test_broken_ones_are_listed_and_the_others_learned_from(
    fit: Fitted, good: Any, mvtec: Path, tmp_path: Path
) -> None:
    for name in ("train/good/022.png", "test/square/001.png", "ground_truth/square/002_mask.png"):
        (mvtec / name).write_text("not a picture")
    (tmp_path / "broken.png").write_text("not a picture")
    detector = fit([*good(20), tmp_path / "broken.png"])
    refined = blemish.refine(detector, good=mvtec, anomalies=mvtec)
    data = refined.detector.manifest["data"]
    assert (refined.good, refined.known, refined.defects) == (3, 20, 5)
    assert len(taught(refined.detector).defects) == len(data["defects"]) == 5
    listed = [failure.to_dict() for failure in refined.failures]
    found = sorted(Path(failure["path"]).name[:3] for failure in listed)
    assert found == ["001", "002", "022"]
    assert data["failures"] == [*detector.manifest["data"]["failures"], *listed]
    assert len(data["failures"]) == 4
    told = refined.to_dict()
    assert "detector" not in told
    assert (told["failures"], told["known"], told["before"]) == (listed, 20, refined.before)


# The threshold


@pytest.mark.parametrize(("first", "asked"), [(None, None), (0.05, 0.2), (0.25, None)])
def test_the_threshold_is_of_all_good_pictures_left_out(
    first: float | None, asked: float | None, fit: Fitted, good: Any, bad: Any
) -> None:
    """At the rate asked for, or that which it had."""
    detector = fit(good(20), bad(1), false_alarm_rate=first)
    given = {"good": good(7, 20), "anomalies": bad(1, 1), "false_alarm_rate": asked}
    refined = blemish.refine(detector, **given)
    threshold, rate = refined.detector.threshold, asked or first or 0.05
    assert threshold is not None
    assert (threshold.method, threshold.n, threshold.rate) == ("leave-one-out", 27, rate)
    by_hand = threshold_by_hand(refined.detector.manifest["calibration_scores"], rate)
    assert threshold.value == refined.after == by_hand


def test_without_a_threshold_it_stays_without_one_unless_asked(
    fit: Fitted, good: Any, bad: Any
) -> None:
    detector, given = (
        fit(good(20), calibration_fraction=0),
        {"good": good(4, 20), "anomalies": bad(2)},
    )
    refined = blemish.refine(detector, **given)
    assert refined.detector.threshold is None
    told = (refined.before, refined.after, refined.alarms_before, refined.alarms_after)
    assert (*told, refined.found_before, refined.found_after) == (None,) * 6
    assert np.isfinite(refined.mean_change)
    refined = blemish.refine(detector, **given, false_alarm_rate=0.1)
    assert (refined.before, refined.alarms_before, refined.found_before) == (None, None, None)
    scores = refined.detector.manifest["calibration_scores"]
    assert refined.after == threshold_by_hand(scores, 0.1)
    alarms = sum(score > refined.after for score in scores[:20])
    assert (refined.alarms_after, refined.found_after) == (alarms, 2)


def test_enough_good_pictures_bring_the_threshold_that_too_few_did_not(
    fit: Fitted, good: Any
) -> None:
    refined = blemish.refine(fit(good(10)), good=good(8, 10))
    assert (refined.before, refined.after) == (None, None)
    assert "at least 19 normal pictures" in refined.detector.threshold.reason  # type: ignore[union-attr]
    refined = blemish.refine(refined.detector, good=good(1, 18))
    assert refined.after == max(refined.detector.manifest["calibration_scores"])


def test_a_threshold_from_pictures_held_out_or_by_hand_gives_way(
    fit: Fitted, good: Any, bad: Any
) -> None:
    """Pictures that are not at hand any more cannot be judged anew; those that were learned from
    can.
    """
    detector = fit(good(30), calibration_fraction=0.2, false_alarm_rate=0.2)
    for before, rate in ((detector, 0.2), (detector.with_threshold(0.3), 0.05)):
        refined = blemish.refine(before, anomalies=bad(2))
        threshold = refined.detector.threshold
        assert threshold is not None
        assert (threshold.method, threshold.n, threshold.rate) == ("leave-one-out", 24, rate)
        assert refined.calibrated == 24
        data = refined.detector.manifest["data"]
        assert data["calibrated"] == detector.manifest["data"]["calibrated"]
        assert data["count"] == 30


def test_a_rate_that_cannot_be_kept(
    fit: Fitted, good: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    detector = fit(good(20))
    with pytest.raises(CalibrationError, match=r"needs at least 99 normal .* and there are 22"):
        blemish.refine(detector, good=good(2, 20), false_alarm_rate=0.01)
    monkeypatch.setattr("blemish.detector.refine._added", None)  # said before any work
    for rate in (0.0, 1.0, -0.1):
        with pytest.raises(ConfigError, match=r"false-alarm rate: .* is not between 0 and 1"):
            blemish.refine(detector, good=good(2, 20), false_alarm_rate=rate)


# The report


def test_the_report_of_new_defects_is_recounted(fit: Fitted, good: Any, bad: Any) -> None:
    """By a fit without and one with the defects. One of them, a good picture, is not found by the
    first.
    """
    defects = [*bad(2), *good(1, 90)]
    plain, whole = fit(good(24), false_alarm_rate=0.3), fit(good(24), defects, false_alarm_rate=0.1)
    refined = blemish.refine(plain, anomalies=defects, false_alarm_rate=0.1)
    before, after = (detector.manifest["calibration_scores"] for detector in (plain, whole))
    limits = (threshold_by_hand(before, 0.3), threshold_by_hand(after, 0.1))
    assert (refined.before, refined.after) == limits
    alarms = [
        sum(score > limit for score in scores)
        for scores, limit in zip((before, after), limits, strict=True)
    ]
    assert [refined.alarms_before, refined.alarms_after] == alarms == [6, 1]
    assert refined.calibrated == 24
    assert refined.mean_change == pytest.approx(sum(after) / 24 - sum(before) / 24, rel=1e-6)
    assert refined.mean_change != 0
    found = [
        sum(verdict(score, limit) or 0 for score in scores_of(detector, defects))
        for detector, limit in zip((plain, whole), limits, strict=True)
    ]
    assert [refined.found_before, refined.found_after] == found
    assert found[0] == 2


def test_the_report_of_new_good_pictures_is_recounted(fit: Fitted, good: Any) -> None:
    """The new ones are brighter: they score high, and the threshold rises above the old ones."""
    detector = fit(good(20), false_alarm_rate=0.2)
    scores, before = (
        detector.manifest["calibration_scores"],
        detector.manifest["threshold"]["value"],
    )
    brighter = [
        np.minimum(part + np.uint8(20 + 9 * number), 250) for number, part in enumerate(good(6, 20))
    ]
    refined = blemish.refine(detector, good=brighter)
    both = refined.detector.manifest["calibration_scores"]
    after = threshold_by_hand(both, 0.2)
    assert (refined.before, refined.after) == (before, after)
    assert after > before
    assert both[:20] == scores
    alarms = [sum(score > limit for score in scores) for limit in (before, after)]
    assert [refined.alarms_before, refined.alarms_after] == alarms
    assert alarms[0] == 3 > alarms[1]
    assert (refined.calibrated, refined.mean_change) == (20, 0.0)
    assert (refined.found_before, refined.found_after) == (0, 0)


# A life


def test_several_refinements_in_a_row(fit: Fitted, good: Any, bad: Any, tmp_path: Path) -> None:
    """Saved and loaded between them, as in a life."""
    detector = fit(good(20))
    steps: list[dict[str, Any]] = [
        {"anomalies": bad(2)},
        {"good": good(3, 20)},
        {"good": good(2, 23), "anomalies": bad(1, 2)},
    ]
    shown = [*good(2, 60), *bad(2, 60)]
    known, defects = 20, 0
    for number, step in enumerate(steps, start=1):
        refined = blemish.refine(detector, **step)
        known, defects = known + refined.good, defects + refined.defects
        path = refined.detector.save(tmp_path / f"{number}.blemish")
        detector = blemish.load(path, device="cpu", precision="fp32")
        assert scores_of(detector, shown) == scores_of(refined.detector, shown)
        assert detector.threshold == refined.detector.threshold
        assert detector.threshold is not None
        assert detector.threshold.n == known
        method = taught(detector)
        assert method.owners.tolist() == list(range(known))
        assert torch.bincount(bank_of(detector).owners).tolist() == [PATCHES] * known
        assert (len(method.defects), len(detector.manifest["data"]["defects"])) == (
            defects,
            defects,
        )
        events = [(event["good"], event["defects"]) for event in detector.manifest["refined"]]
        assert events == [(0, 2), (3, 0), (2, 1)][:number]
    assert detector.manifest["data"]["fitted"] == digests_of(good(25))
    assert detector.manifest["created"] <= detector.manifest["refined"][0]["date"]
    whole = fit(good(25))
    assert_same_patches(detector, whole)
    assert detector.manifest["data"]["fingerprint"] == whole.manifest["data"]["fingerprint"]


def test_it_can_be_calibrated_and_refined_again(fit: Fitted, good: Any, bad: Any) -> None:
    refined = blemish.refine(fit(good(20)), good=good(2, 20), anomalies=bad(2)).detector
    anew, _, left_out = blemish.recalibrate(refined, [*good(24, 60), *good(3, 19)])
    assert left_out == 3  # two of them were added
    again = blemish.refine(anew, anomalies=bad(1, 2))
    assert again.before == anew.manifest["threshold"]["value"]
    assert len(again.detector.manifest["refined"]) == 2

"""Parts of several views: which pictures are of one, and what a verdict on it promises."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from parts import Fitted, Part, Write

import blemish
from blemish.detector.grouping import grouped, grouping_of
from blemish.detector.manifest import read_manifest
from blemish.detector.parts import judge, part_thresholds
from blemish.detector.predict import Detector
from blemish.detector.thresholds import PartThresholds, Threshold, calibrate
from blemish.errors import ArtifactError, CalibrationError, ConfigError, DataError
from blemish.types import Failure

BY = r"part(\d+)_"
SPLIT: Any = "split conformal"


def row(path: str, score: float, category: str = "", adapted: bool = False) -> dict[str, Any]:
    return {"path": path, "score": score, "category": category, "adapted": adapted}


def rows_of(scores: Iterable[float], part: int = 1) -> list[dict[str, Any]]:
    return [row(f"part{part}_{at}.png", score) for at, score in enumerate(scores)]


def naive_threshold(scores: Iterable[float], rate: Fraction) -> float | None:
    """The lowest of the scores that at least ceil((n + 1)(1 - rate)) of them do not exceed."""
    ordered = sorted(scores)
    for value in ordered:
        if sum(one <= value for one in ordered) >= math.ceil((len(ordered) + 1) * (1 - rate)):
            return value
    return None


def knowing(detector: Detector, scores: Iterable[float], rate: float, **more: Any) -> Detector:
    """The detector as if it were calibrated on pictures of these scores."""
    scores = tuple(scores)
    threshold = calibrate(scores, rate, method=SPLIT, required=False)
    record = replace(detector.record, threshold=threshold, calibration_scores=scores, **more)
    return detector.with_record(record)


# --- Which pictures are of one part


def test_parts_are_told_by_paths() -> None:
    paths = ["a/part2_x.png", "a/part1_x.png", "b/part2_y.png", "b/lid.png", "part_z.png"]
    assert grouped(paths, grouping_of(BY)) == ({"2": [0, 2], "1": [1]}, [3, 4])
    whole = grouped(paths, grouping_of(r"part\d"))[0]
    assert list(whole) == ["part2", "part1"]
    either = grouped(["part7", "x9", "x"], grouping_of(r"part(\d)|x\d?"))
    assert either == ({"7": [0]}, [1, 2])  # a group that took no part names nothing
    assert grouped(paths, grouping_of(r"^(?P<folder>\w+)/"))[0] == {"a": [0, 1], "b": [2, 3]}
    assert grouped([], grouping_of(BY)) == ({}, [])


@pytest.mark.parametrize(
    ("pattern", "said"),
    [
        ("part(", "is no regular expression"),
        ("a{99999999999}", "is no regular expression"),
        (r"(part)(\d)", r"has 2 groups.*write the others as \(\?:…\)"),
        ("nut", r"finds no part in the path of any picture, as in part1_0\.png"),
        ("x*", "finds no part"),
    ],
)
def test_patterns_that_cannot_be_used(pattern: str, said: str, fitted: Fitted) -> None:
    with pytest.raises(ConfigError, match=said):
        judge(fitted("knn"), rows_of([1.0]), pattern)


# --- From the scores of pictures


def test_bonferroni_is_the_definition(fitted: Fitted) -> None:
    random = np.random.default_rng(0)
    cases = 0
    for n, rate, views in ((19, 0.05, 1), (40, 0.1, 2), (200, 0.1, 4), (30, 0.1, 4), (99, 0.2, 5)):
        scores = random.normal(size=n)
        detector = knowing(fitted("knn"), scores, rate)
        limit = naive_threshold(scores, Fraction(str(rate)) / views)
        for _ in range(20):
            given = random.normal(size=views) + random.normal()
            (one,) = judge(detector, rows_of(given), BY).parts
            assert one.score == max(given)
            assert one.worst == f"part1_{int(np.argmax(given))}.png"
            assert one.threshold == limit
            assert one.label == (None if limit is None else int(max(given) > limit))
            cases += one.label == 1
    assert cases > 10


def test_bonferroni_keeps_the_rate_of_parts(fitted: Fitted) -> None:
    """Good parts of three views: whether these score independently or all alike, at most the rate
    of them is an alarm, where judging each view at the rate itself would nearly triple it."""
    random, rate, views, runs = np.random.default_rng(1), 0.1, 3, 40
    for shared in (0.0, 0.7, 1.0):
        alarms = plain = parts = 0
        for _ in range(runs):
            detector = knowing(fitted("knn"), random.normal(size=59), rate)
            own, common = random.normal(size=(50, views)), random.normal(size=(50, 1))
            scores = math.sqrt(1 - shared) * own + math.sqrt(shared) * common
            given = [one for part, of in enumerate(scores) for one in rows_of(of, part)]
            found = judge(detector, given, BY).parts
            assert len(found) == 50
            alarms += sum(one.label == 1 for one in found)
            assert detector.threshold is not None
            plain += int((scores.max(1) > (detector.threshold.value or 0)).sum())
            parts += 50
        assert 0 < alarms / parts <= rate + 0.01
        if shared == 0:
            assert alarms / parts > 0.6 * rate
            assert plain / parts > 2 * rate


def test_too_few_pictures_for_the_views(fitted: Fitted) -> None:
    detector = knowing(fitted("knn"), range(30), 0.05)
    few, single = judge(detector, [*rows_of([1, 99], 1), *rows_of([1], 2)], BY).parts
    assert (few.label, few.threshold, few.rule) == (None, None, "none")
    assert (few.score, few.worst) == (99, "part1_1.png")
    assert (
        "5 % for a part of 2 views is 2.5 % for each: that needs at least 39 normal" in few.reason
    )
    assert "there are 30; or `blemish calibrate --group-by` with 19 good parts" in few.reason
    assert (single.label, single.reason) == (0, "")


def test_thresholds_that_no_rate_of_parts_belongs_to(fitted: Fitted) -> None:
    given = rows_of([1.0, 4.0])
    by_hand = fitted("knn").with_threshold(3.0)
    (one,) = judge(by_hand, given, BY).parts
    assert (one.label, one.threshold, one.rule) == (1, 3.0, "by hand")
    (one,) = judge(by_hand.with_threshold(None), given, BY).parts
    assert (one.label, one.reason) == (None, "the artifact has no threshold")
    missed = replace(
        calibrate(range(20), 0.1, method=SPLIT, required=True), method="labelled defects"
    )
    (one,) = judge(by_hand.with_threshold(missed), given, BY).parts
    assert (one.label, one.threshold, one.rule) == (0, missed.value, "labelled defects")
    none = calibrate([1.0], 0.1, method=SPLIT, required=False)
    (one,) = judge(by_hand.with_threshold(none), given, BY).parts
    assert (one.label, one.reason) == (None, none.reason)


def test_views_of_several_categories(fitted: Fitted) -> None:
    """Each view is judged among the scores of its own category."""
    tens = tuple(float(one) for one in range(10, 50))
    own = {"big": calibrate(tens, 0.1, method=SPLIT, required=True)}
    few = {"few": calibrate([1.0], 0.1, method=SPLIT, required=False)}
    detector = knowing(
        fitted("knn"),
        [one / 100 for one in range(40)],
        0.1,
        categories=("big", "few", "small"),
        thresholds={**own, **few},
        calibration_scores_by_category={"big": tens, "few": (1.0,)},
    )
    for scores, worst, label in (((30, 0.9), 1, 1), ((60, 0.1), 0, 1), ((30, 0.1), 1, 0)):
        for other in ("few", "small"):
            names = [f"part1_{at}" for at in range(2)]
            given = [row(names[0], scores[0], "big"), row(names[1], scores[1], other)]
            (one,) = judge(detector, given, BY).parts
            limits = [naive_threshold(tens, Fraction(1, 20)), 0.38]
            assert (one.worst, one.label) == (names[worst], label)
            assert (one.threshold, one.category) == (limits[worst], "")


# --- Views that failed


def test_a_broken_view_is_no_clean_pass(fitted: Fitted) -> None:
    detector = knowing(fitted("knn"), range(100), 0.1)
    broken = Failure(source="part1_9.png", reason="is empty")
    (good,) = judge(detector, [*rows_of([1, 2]), broken], BY).parts
    assert (good.label, good.score, good.failed) == (None, 2, ("part1_9.png",))
    assert good.reason == "1 of its 3 views could not be scored"
    assert good.threshold == naive_threshold(range(100), Fraction(1, 30))  # of three views
    (bad,) = judge(detector, [broken.to_dict(), *rows_of([1, 1000])], BY).parts
    assert (bad.label, bad.worst, bad.reason) == (1, "part1_1.png", "")
    (lost,) = judge(detector, [broken], BY).parts
    assert (lost.label, lost.score, lost.worst, lost.views) == (None, None, None, ("part1_9.png",))
    assert lost.reason == "none of its views could be scored"


def test_pictures_of_no_part(fitted: Fitted) -> None:
    found = judge(fitted("knn"), [*rows_of([1.0]), row("lid.png", 9.0)], BY)
    assert found.ungrouped == ("lid.png",)
    assert [one.views for one in found.parts] == [("part1_0.png",)]


# --- From whole parts


def test_the_threshold_of_whole_parts_is_the_definition() -> None:
    random = np.random.default_rng(2)
    for parts, rate in ((19, 0.05), (40, 0.1), (57, 0.3)):
        counts = random.integers(1, 5, parts)
        names = [f"part{at}_{view}" for at, n in enumerate(counts) for view in range(n)]
        scores = {name: (float(random.normal()), "") for name in names}
        order = [names[at] for at in random.permutation(len(names))]
        made = part_thresholds(BY, order, order, scores, rate, [])
        highest = [
            max(scores[name][0] for name in names if name.startswith(f"part{at}_"))
            for at in range(parts)
        ]
        assert sorted(made.scores) == sorted(highest)
        assert made.threshold is not None
        assert made.threshold.value == naive_threshold(highest, Fraction(str(rate)))
        assert (made.threshold.n, made.fewest, made.most) == (parts, min(counts), max(counts))
        assert "A new normal part raises a false alarm with" in made.threshold.guarantee
        assert f"{parts} held-out normal parts" in made.threshold.guarantee


def test_what_is_no_evidence_of_whole_parts() -> None:
    paths = [f"part{at}_{view}" for at in range(6) for view in "xy"] + ["lid"]
    contents: list[str | None] = [*"abcdefghijab", "z"]
    contents[2], contents[5] = None, "learned"
    scored = {one: (float(at), "") for at, one in enumerate("abcdefghijz") if one != "learned"}
    made = part_thresholds(BY, paths, contents, scored, 0.5, [])
    assert set(made.scores) == {1.0, 7.0, 9.0}  # of a b, g h, i j; a b comes again
    assert (made.left_out, made.copies, made.ungrouped) == (2, 1, 1)
    with pytest.raises(CalibrationError, match=r"19 normal parts .* there are 3; 2 more are not"):
        part_thresholds(BY, paths, contents, scored, 0.05, [])
    with pytest.raises(DataError, match="none of 6 parts is whole"):
        part_thresholds(BY, paths, contents, {}, 0.5, [])


def test_whole_parts_of_categories() -> None:
    paths = [f"part{at}_{view}" for at in range(30) for view in "xy"]
    scored = {one: (float(at), "nut" if at < 40 else "pin") for at, one in enumerate(paths)}
    scored[paths[-1]] = (99.0, "nut")  # of a part of both
    made = part_thresholds(BY, paths, paths, scored, 0.05, ["nut", "pin"])
    assert made.scores_by_category["nut"] == tuple(float(one) for one in range(1, 40, 2))
    assert len(made.scores_by_category["pin"]) == 9
    own = made.of("nut")
    assert own is not None
    assert (own.value, own.n) == (39.0, 20)
    assert made.of("pin") is made.of("") is made.threshold  # nine are too few


def test_whole_parts_keep_their_rate_where_views_score_alike(fitted: Fitted) -> None:
    """Views of a part have much in common; the threshold of whole parts is then the sharper one."""
    random, rate = np.random.default_rng(3), 0.1
    alarms = of_union = 0
    for _ in range(40):

        def drawn(parts: int) -> np.ndarray:
            return random.normal(size=(parts, 1)) + 0.3 * random.normal(size=(parts, 4))

        good = drawn(40)
        names = [f"part{part}_{view}" for part in range(40) for view in range(4)]
        scored = {name: (float(one), "") for name, one in zip(names, good.ravel(), strict=True)}
        parts = part_thresholds(BY, names, names, scored, rate, [])
        detector = knowing(fitted("knn"), good.ravel(), rate)
        knows = detector.with_record(replace(detector.record, parts=parts))
        given = [one for part, of in enumerate(drawn(50)) for one in rows_of(of, part)]
        found = judge(knows, given, BY).parts
        assert {one.rule for one in found} == {"parts"}
        alarms += sum(one.label == 1 for one in found)
        of_union += sum(one.label == 1 for one in judge(detector, given, BY).parts)
    assert 0.7 * rate < alarms / 2000 < rate + 0.02
    assert of_union < alarms


def test_parts_unlike_those_it_was_calibrated_on(fitted: Fitted) -> None:
    threshold = calibrate(range(20), 0.1, method=SPLIT, required=True, of="part")
    parts = PartThresholds(pattern=BY, threshold=threshold, fewest=2, most=3)
    detector = fitted("knn").with_record(replace(fitted("knn").record, parts=parts))
    given = [one for part in (1, 2, 4) for one in rows_of([1.0] * part, part)]
    fewer, same, more = judge(detector, given, BY).parts
    assert fewer.notes == ("fewer views (1) than the good parts had (2 at least)",)
    assert same.notes == ()
    assert more.notes == ("more views (4) than the good parts had (3 at most)",)
    (adapted,) = judge(detector, [row(f"part1_{at}", 1.0, adapted=True) for at in "xy"], BY).parts
    assert adapted.notes == ("adapted to the pictures, which voids the rate",)


# --- In the artifact


@pytest.fixture
def shots(tmp_path: Path, picture: Part, write: Write) -> Path:
    """Ten good parts of two views each; of an eleventh one view is broken."""
    for seed in range(20):
        write(tmp_path / "shots" / f"part{seed // 2}_{seed % 2}.png", picture(700 + seed))
    write(tmp_path / "shots" / "part10_0.png", picture(800))
    (tmp_path / "shots" / "part10_1.png").write_text("no picture")
    return tmp_path / "shots"


def test_recalibrating_by_parts(
    fitted: Fitted, shots: Path, picture: Part, write: Write, tmp_path: Path
) -> None:
    how: Mapping[str, Any] = {"false_alarm_rate": 0.2, "group_by": BY}
    detector, failures, _ = blemish.recalibrate(fitted("knn"), shots, **how)
    assert [Path(one.source).name for one in failures] == ["part10_1.png"]
    results = list(detector.predict_many(shots))
    scores = {Path(one.source).name: one.score for one in results if not isinstance(one, Failure)}
    highest = [max(scores[f"part{at}_{view}.png"] for view in range(2)) for at in range(10)]
    known = detector.record.parts
    assert known is not None
    assert known.threshold is not None
    assert sorted(known.scores) == pytest.approx(sorted(highest), rel=1e-4)
    assert known.threshold.value == naive_threshold(known.scores, Fraction(1, 5))
    assert (known.pattern, known.left_out, known.threshold.n) == (BY, 1, 10)
    assert detector.threshold is not None
    assert detector.threshold.n == 21  # pictures are judged by all of them
    assert "views of 10 parts, not drawn each by itself" in detector.threshold.guarantee
    again = blemish.load(detector.save(tmp_path / "part.blemish"))
    assert again.record.parts == known
    write(tmp_path / "new" / "part1_x.png", picture(900))
    write(tmp_path / "new" / "part1_y.png", picture(901, defect=True))
    (bad,) = judge(again, again.predict_many(tmp_path / "new"), BY).parts
    assert (bad.label, bad.rule, Path(bad.worst or "").name) == (1, "parts", "part1_y.png")
    assert bad.to_dict()["views"] == [str(tmp_path / "new" / f"part1_{at}.png") for at in "xy"]


def test_what_voids_the_threshold_of_parts(fitted: Fitted, shots: Path) -> None:
    how: Mapping[str, Any] = {"false_alarm_rate": 0.2}
    detector = blemish.recalibrate(fitted("knn"), shots, group_by=BY, **how)[0]
    assert detector.with_region_threshold(1.0).record.parts is detector.record.parts
    assert detector.with_threshold(1.0).record.parts is None
    how = {**how, "group_by": None}
    plain = blemish.recalibrate(detector, shots, **how)[0]
    assert plain.record.parts is None
    assert "parts" not in plain.manifest
    assert plain.threshold is not None
    assert "views of" not in plain.threshold.guarantee


def test_refining_voids_the_threshold_of_parts(picture: Part, small: Any, shots: Path) -> None:
    good = [picture(seed) for seed in range(12)]
    detector = blemish.fit("lda", good, normality="knn", **small)
    how: Mapping[str, Any] = {"false_alarm_rate": 0.2, "group_by": BY}
    detector = blemish.recalibrate(detector, shots, **how)[0]
    assert detector.record.parts is not None
    refined = blemish.refine(detector, good=[picture(950 + seed) for seed in range(3)])
    assert refined.detector.record.parts is None


def test_other_sizes_have_no_threshold_of_parts(fitted: Fitted) -> None:
    threshold = calibrate(range(20), 0.1, method=SPLIT, required=True, of="part")
    parts = PartThresholds(pattern=BY, threshold=threshold)
    one = fitted("guided")
    other = one.with_record(replace(one.record, parts=parts)).with_scales((96,))
    assert other.record.parts is None


def test_patterns_are_refused_before_any_work(
    fitted: Fitted, shots: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Detector, "predict_many", None)
    for pattern in ("(", "(a)(b)", "nut"):
        with pytest.raises(ConfigError, match="group by"):
            blemish.recalibrate(fitted("knn"), shots, group_by=pattern)


def test_parts_of_a_manifest_are_checked(fitted: Fitted) -> None:
    threshold: Threshold = calibrate(range(20), 0.1, method=SPLIT, required=True, of="part")
    parts = PartThresholds(pattern=BY, threshold=threshold)
    manifest = replace(fitted("knn").record, parts=parts).to_dict()
    assert read_manifest("x", manifest).parts == parts
    for wrong in (
        {"pattern": 5},
        {"most": -1},
        {"scores": [math.inf]},
        {"thresholds": {"nut": threshold.to_dict()}},
        {"nonsense": 1},
    ):
        with pytest.raises(ArtifactError, match="parts"):
            read_manifest("x", {**manifest, "parts": {**manifest["parts"], **wrong}})

"""Metrics of a detector on a data set, against the same numbers computed by hand from its
predictions.
"""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray
from parts import Fitted, Part, Write
from sklearn.metrics import average_precision_score, confusion_matrix, f1_score, roc_auc_score

import blemish
from blemish.cli import judge, words
from blemish.data.checking import check
from blemish.detector import evaluate as evaluation
from blemish.detector.predict import Detector
from blemish.errors import DataError
from blemish.types import Evaluation

RESOLUTION = 64
Maps = dict[str, tuple[NDArray[np.float32], NDArray[np.bool_]]]


def drawn_mask(path: Path) -> NDArray[np.uint8]:
    return np.asarray(cv2.imread(str(path), cv2.IMREAD_GRAYSCALE), dtype=np.uint8)


def maps_by_hand(detector: Detector, root: Path, resolution: int = RESOLUTION) -> Maps:
    """Path -> map and mask at resolution² of the test pictures of a set in the MVTec layout."""
    found: Maps = {}
    for path in sorted((root / "test").rglob("*.png")):
        small = detector.predict(path).anomaly_map
        anomaly_map = cv2.resize(small, (resolution, resolution), interpolation=cv2.INTER_LINEAR)
        mask = np.zeros((resolution, resolution), bool)
        if path.parent.name != "good":
            drawn = drawn_mask(root / "ground_truth" / path.parent.name / f"{path.stem}_mask.png")
            rows = (np.arange(resolution) * drawn.shape[0]) // resolution
            columns = (np.arange(resolution) * drawn.shape[1]) // resolution
            mask = drawn[rows][:, columns] > 127
        found[str(path)] = anomaly_map, mask
    return found


def aupro_by_hand(maps: Maps, limit: float = 0.3) -> float:
    """Mean overlap of the regions against false positives, one point per distinct score, straight
    lines between.
    """
    regions, normal = [], []
    for anomaly_map, mask in maps.values():
        count, labels = cv2.connectedComponents(mask.astype(np.uint8), connectivity=8)
        regions += [np.sort(anomaly_map[labels == label]) for label in range(1, count)]
        normal.append(anomaly_map[~mask])
    background = np.sort(np.concatenate(normal))
    levels = np.unique(np.concatenate([*regions, background]))[::-1]

    def share(values: NDArray[np.float32]) -> NDArray[np.float64]:
        return np.append(0.0, (len(values) - np.searchsorted(values, levels)) / len(values))

    x, y = share(background), np.mean([share(region) for region in regions], axis=0)
    inside = x <= limit
    x, y = np.append(x[inside], limit), np.append(y[inside], np.interp(limit, x, y))
    return float(np.sum(np.diff(x) * (y[1:] + y[:-1]) / 2) / limit)


def pixel_auroc_by_hand(maps: Maps) -> float:
    scores = np.concatenate([anomaly_map.ravel() for anomaly_map, _ in maps.values()])
    truth = np.concatenate([mask.ravel() for _, mask in maps.values()])
    return float(roc_auc_score(truth, scores))


def evaluated(detector: Detector, data: Any) -> Evaluation:
    return blemish.evaluate(detector, data, resolution=RESOLUTION)


def check_metrics(values: Any, truth: Any, scores: Any, maps: Maps) -> None:
    """Against scikit-learn, and the pixels by hand."""
    values = values if isinstance(values, Mapping) else vars(values)
    assert values["image_auroc"] == pytest.approx(roc_auc_score(truth, scores))
    assert values["image_ap"] == pytest.approx(average_precision_score(truth, scores))
    assert values["pixel_auroc"] == pytest.approx(pixel_auroc_by_hand(maps), abs=5e-5)  # near ties
    assert values["aupro"] == pytest.approx(aupro_by_hand(maps), abs=5e-5)


def rows_of(
    result: Evaluation, keep: Callable[[Mapping[str, Any]], bool]
) -> tuple[list[int], list[float]]:
    chosen = [row for row in result.rows if keep(row)]
    return [row["truth"] for row in chosen], [row["score"] for row in chosen]


@pytest.mark.parametrize("method", ["knn", "padim"])
def test_the_numbers_are_those_computed_by_hand(method: str, mvtec: Path, fitted: Fitted) -> None:
    # A threshold among the scores, so that every cell of the confusion is used.
    plain = fitted(method)
    middle = float(np.median([plain.predict(p).score for p in (mvtec / "test").rglob("*.png")]))
    detector = plain.with_threshold(middle)
    result = evaluated(detector, mvtec)
    assert dict(result.counts) == {
        "pictures": 13, "normal": 6, "anomalous": 7, "left_out": 0, "failed": 0, "without_mask": 0,
    }  # fmt: skip
    assert len(result.rows) == 13
    for row in result.rows:
        assert row["score"] == pytest.approx(detector.predict(row["path"]).score, rel=1e-4)
        assert row["truth"] == int(row["defect"] != "good")
        assert row["defect"] == Path(row["path"]).parent.name
        assert row["label"] == int(row["score"] > middle)
        assert row["category"] == "part"

    truth, scores = rows_of(result, lambda _row: True)
    maps = maps_by_hand(detector, mvtec)
    check_metrics(result, truth, scores, maps)
    best = max(float(f1_score(truth, [score >= level for score in scores])) for level in scores)
    assert result.best_f1 == pytest.approx(best)
    limit = result.best_f1_threshold
    assert limit is not None
    assert f1_score(truth, [score > limit for score in scores]) == pytest.approx(best)
    assert result.threshold == middle
    (tn, fp), (fn, tp) = confusion_matrix(truth, [score > middle for score in scores]).tolist()
    assert dict(result.confusion or {}) == {
        "true_positive": tp, "false_positive": fp, "true_negative": tn, "false_negative": fn,
    }  # fmt: skip
    anomalous = {path: pair for path, pair in maps.items() if Path(path).parent.name != "good"}
    assert result.pixel_auroc_anomalous == pytest.approx(pixel_auroc_by_hand(anomalous), abs=1e-5)
    assert dict(result.by_group) == {}

    assert set(result.by_defect) == {"square", "dark"}
    for defect, values in result.by_defect.items():
        both = ("good", defect)
        truth, scores = rows_of(result, lambda row, both=both: row["defect"] in both)  # type: ignore[misc]
        some = {path: pair for path, pair in maps.items() if Path(path).parent.name in both}
        check_metrics(values, truth, scores, some)
        assert values["count"] == sum(truth) == {"square": 4, "dark": 3}[defect]

    document = result.to_dict()
    assert json.loads(json.dumps(document, allow_nan=False)) == document


@pytest.fixture
def several(mvtec: Path) -> Path:
    """Two categories: nut is `mvtec`, and bolt the same without one picture of each kind."""
    root = mvtec.parent / "set"
    for name in ("bolt", "nut"):
        shutil.copytree(mvtec, root / name)
    for name in ("good/000.png", "dark/001.png", "square/000.png"):
        (root / "bolt" / "test" / name).unlink()
    return root


def test_every_category_by_itself(several: Path, fitted: Fitted) -> None:
    detector, metrics = fitted("knn"), ("image_auroc", "image_ap", "pixel_auroc", "aupro")
    whole = evaluated(detector, several)
    assert set(whole.by_category) == {"bolt", "nut"}
    assert whole.counts["pictures"] == 23
    assert set(whole.by_defect) == {"bolt/dark", "bolt/square", "nut/dark", "nut/square"}
    for category, count in (("bolt", 10), ("nut", 13)):
        alone, values = evaluated(detector, several / category), whole.by_category[category]
        expected = {"count": count, **{metric: getattr(alone, metric) for metric in metrics}}
        assert dict(values) == pytest.approx(expected, rel=1e-4)
        assert alone.by_category[category] == pytest.approx(expected, rel=1e-4)
        for defect, found in alone.by_defect.items():  # against the good pictures of its own part
            assert whole.by_defect[f"{category}/{defect}"] == pytest.approx(dict(found), rel=1e-4)
        assert alone.category_mean == {}
    for metric in metrics:
        values = [whole.by_category[category][metric] for category in ("bolt", "nut")]
        assert whole.category_mean[metric] == pytest.approx(sum(map(float, values)) / 2)  # type: ignore[arg-type]
    shutil.rmtree(several / "bolt" / "test" / "good")
    for category in ("nut", "bolt"):
        shutil.rmtree(several / category / "ground_truth")
    bare = blemish.evaluate(detector, several)
    # Bolt has no ranking.
    assert bare.category_mean["image_auroc"] == bare.by_category["nut"]["image_auroc"]
    assert bare.category_mean["aupro"] is None


def test_each_picture_is_judged_by_its_category(several: Path, fitted: Fitted) -> None:
    plain = fitted("knn")
    assert plain.threshold is not None
    own = {"bolt": dataclasses.replace(plain.threshold, value=-1.0)}
    record = dataclasses.replace(plain.record, categories=("bolt", "nut"), thresholds=own)
    detector, common = plain.with_record(record), plain.threshold.value
    result = evaluated(detector, several)
    assert result.threshold == common
    found = {(row["category"], row["threshold"]) for row in result.rows}
    assert found == {("bolt", -1.0), ("nut", common)}
    assert all(row["label"] == 1 for row in result.rows if row["category"] == "bolt")
    nut = [row for row in result.rows if row["category"] == "nut"]
    assert [row["label"] for row in nut] == [
        row["label"] for row in evaluated(plain, several).rows if row["category"] == "nut"
    ]
    assert result.confusion is not None
    false = sum(row["label"] == 1 and row["truth"] == 0 for row in nut)
    assert result.confusion["false_positive"] == 5 + false
    assert "At the stored thresholds:" in said(result)
    bolt = evaluated(detector, several / "bolt")
    assert bolt.threshold == -1.0  # the one that judged
    assert "At the stored threshold of -1:" in said(bolt)


def said(result: Evaluation) -> str:
    return "\n".join(map(str, judge.evaluate_lines(result)))


def test_known_pictures_are_left_out_by_content(
    mvtec: Path, picture: Part, write: Write, fitted: Fitted, small: Any
) -> None:
    good = mvtec / "test" / "good"
    before = evaluated(fitted("knn"), mvtec)
    renamed = shutil.copy(mvtec / "train" / "good" / "003.png", good / "another.png")
    other = write(good / "again.bmp", picture(5))
    result = evaluated(fitted("knn"), mvtec)
    assert set(result.left_out) == {str(renamed), str(other)}
    assert result.counts["left_out"] == 2
    assert [row["path"] for row in result.rows] == [row["path"] for row in before.rows]
    for metric in ("image_auroc", "image_ap", "best_f1", "pixel_auroc", "aupro"):
        assert getattr(result, metric) == pytest.approx(getattr(before, metric), rel=1e-4)
    # Those that it was only calibrated on are known to it too.
    parts = [picture(seed) for seed in range(24)]
    padim = blemish.fit("padim", parts, calibration_fraction=0.2, **small)
    for seed, pixels in enumerate(parts):
        write(good / f"train{seed}.png", pixels)
    assert len(padim.manifest["data"]["calibrated"]) == 5
    assert evaluated(padim, mvtec).counts["left_out"] == 24 + 2


def test_masks_of_another_size_are_brought_to_the_map(mvtec: Path, fitted: Fitted) -> None:
    before = evaluated(fitted("knn"), mvtec)
    for path in (mvtec / "ground_truth").rglob("*.png"):
        cv2.imwrite(str(path), drawn_mask(path).repeat(3, axis=0).repeat(2, axis=1))
    after = evaluated(fitted("knn"), mvtec)
    assert (after.pixel_auroc, after.aupro) == (before.pixel_auroc, before.aupro)
    assert not before.mask_faults
    why = "is 192×128 pixels, its picture 64×64; in another shape, it is stretched over it"
    assert {fault.reason for fault in after.mask_faults} == {why}
    assert after.mask_faults == check(mvtec).mask_faults
    told = words.broken([fault.to_dict() for fault in after.mask_faults], "mask at fault")[0]
    assert told in said(after)
    assert len(after.to_dict()["mask_faults"]) == 7


def test_what_the_data_check_says_of_masks_is_said_here_too(mvtec: Path, fitted: Fitted) -> None:
    truth = mvtec / "ground_truth" / "square"
    (truth / "002_mask.png").rename(truth / "other.png")
    cv2.imwrite(str(truth / "001_mask.png"), np.zeros((64, 64), np.uint8))
    (mvtec / "test" / "good" / "more.gif").touch()
    result, found = evaluated(fitted("knn"), mvtec), check(mvtec)
    unread, unused, bare = result.problems
    assert unread.startswith("1 file in formats that are not read left out (1 .gif)")
    assert unused == f"1 mask without a picture: {truth / 'other.png'}"
    assert bare == f"1 anomalous picture without a mask: {mvtec / 'test/square/002.png'}"
    assert set(result.problems) <= set(found.dataset.problems)
    assert result.mask_faults == found.mask_faults
    assert [one.reason for one in found.mask_faults] == ["is empty, but its picture is anomalous"]
    assert all(f"  notice: {problem}\n" in said(result) for problem in result.problems)


@pytest.mark.parametrize("how", ["missing", "text", "unclear", "coarse"])
def test_a_mask_that_cannot_be_used(how: str, mvtec: Path, fitted: Fitted) -> None:
    before, maps = evaluated(fitted("knn"), mvtec), maps_by_hand(fitted("knn"), mvtec)
    mask = mvtec / "ground_truth" / "square" / "002_mask.png"
    drawn = {
        "unclear": drawn_mask(mask) // 3,  # grey: neither class numbers nor marked
        "coarse": np.full((1, 1), 255, np.uint8),
    }
    mask.unlink()
    if how == "text":
        mask.write_text("not a picture")
    elif how in drawn:
        cv2.imwrite(str(mask), drawn[how])
    result = evaluated(fitted("knn"), mvtec)
    assert result.counts["without_mask"] == 1
    broken = [] if how == "missing" else [str(mask)]
    assert [failure.source for failure in result.failures] == broken
    # It still counts as a picture.
    assert (result.image_auroc, result.image_ap) == (before.image_auroc, before.image_ap)
    assert result.by_defect["square"]["count"] == 4
    without = {path: pair for path, pair in maps.items() if not path.endswith("square/002.png")}
    assert result.pixel_auroc == pytest.approx(pixel_auroc_by_hand(without), abs=1e-5)
    assert result.aupro == pytest.approx(aupro_by_hand(without), abs=1e-5)


def test_without_any_mask(mvtec: Path, fitted: Fitted) -> None:
    shutil.rmtree(mvtec / "ground_truth")
    result = blemish.evaluate(fitted("knn"), mvtec)
    assert (result.pixel_auroc, result.pixel_auroc_anomalous, result.aupro) == (None, None, None)
    assert all(values["aupro"] is None for values in result.by_defect.values())


def test_pictures_that_cannot_be_read(mvtec: Path, fitted: Fitted) -> None:
    for name in ("good/004.png", "dark/001.png"):
        (mvtec / "test" / name).write_text("not a picture")
    result = evaluated(fitted("knn"), mvtec)
    assert {Path(failure.source).name for failure in result.failures} == {"004.png", "001.png"}
    assert (result.counts["failed"], result.counts["pictures"]) == (2, 11)
    for failure in result.failures:
        Path(failure.source).unlink()
    maps = maps_by_hand(fitted("knn"), mvtec)
    assert set(maps) == {row["path"] for row in result.rows}
    assert result.aupro == pytest.approx(aupro_by_hand(maps), abs=1e-5)


def test_nothing_to_evaluate(mvtec: Path, good_folder: Path, fitted: Fitted) -> None:
    with pytest.raises(DataError, match="labelled good and defective"):
        blemish.evaluate(fitted("knn"), good_folder)
    shutil.rmtree(mvtec / "test")
    shutil.rmtree(mvtec / "ground_truth")
    shutil.copytree(mvtec / "train" / "good", mvtec / "test" / "good")
    with pytest.raises(DataError, match="no picture is left"):
        blemish.evaluate(fitted("knn"), mvtec)


def test_the_majority_vote_is_judged_too(mvtec: Path, fitted: Fitted) -> None:
    """By hand, where six sizes vote: the share of the votes ranks (ties count half), more than half
    is a verdict.
    """
    given = iter([0, 1 / 3, 2 / 3, 0, 1 / 2, 0, 1, 2 / 3, 1 / 2, 1, 2 / 3, 1 / 2, 1])
    detector = fitted("knn")
    assert evaluated(detector, mvtec).votes is None

    def voting(samples: Any, **how: Any) -> Any:
        for one in detector.predict_many(samples, **how):
            yield dataclasses.replace(one, votes=next(given))

    result = blemish.evaluate(detector, mvtec, predict=voting)
    normal = [row["votes"] for row in result.rows if row["truth"] == 0]
    bad = [row["votes"] for row in result.rows if row["truth"] == 1]
    assert (len(normal), len(bad)) == (6, 7)
    pairs = [(b > n) + (b == n) / 2 for b in bad for n in normal]
    rates = [sum(n <= 0.5 for n in normal) / 6, sum(b > 0.5 for b in bad) / 7]
    expected = {"image_auroc": sum(pairs) / 42, "balanced_accuracy": sum(rates) / 2}
    assert result.votes == pytest.approx(expected)


def test_one_class_alone_has_no_ranking(mvtec: Path, fitted: Fitted) -> None:
    for defect in ("square", "dark"):
        shutil.rmtree(mvtec / "test" / defect)
    result = blemish.evaluate(fitted("knn"), mvtec)
    ranked = (result.image_auroc, result.image_ap, result.best_f1, result.aupro)
    assert ranked == (None,) * 4
    assert (result.counts["normal"], dict(result.by_defect)) == (6, {})
    assert result.confusion is not None  # false alarms can be counted all the same
    without = blemish.evaluate(fitted("padim", 18), mvtec)  # too few for a threshold
    assert (without.threshold, without.confusion) == (None, None)
    assert {row["label"] for row in without.rows} == {None}


def test_the_resolution_of_each_picture(
    mvtec: Path, picture: Part, write: Write, fitted: Fitted
) -> None:
    same = blemish.evaluate(fitted("knn"), mvtec, resolution=None)
    assert same.aupro == evaluated(fitted("knn"), mvtec).aupro  # all are 64 × 64
    wide = picture(210, defect=True, height=48, width=100)
    write(mvtec / "test" / "square" / "wide.png", wide)
    mask = (wide != picture(210, height=48, width=100)).any(axis=2)
    write(mvtec / "ground_truth" / "square" / "wide_mask.png", mask.astype(np.uint8) * 255)
    mixed = blemish.evaluate(fitted("knn"), mvtec, resolution=None)
    assert mixed.counts["without_mask"] == 0
    assert mixed.aupro != evaluated(fitted("knn"), mvtec).aupro


def test_huge_sets_are_measured_in_constant_memory(
    mvtec: Path, fitted: Fitted, monkeypatch: pytest.MonkeyPatch
) -> None:
    exact = evaluated(fitted("knn"), mvtec)
    monkeypatch.setattr(evaluation, "_EXACT_PIXELS", 0)
    streamed = evaluated(fitted("knn"), mvtec)
    for metric in ("image_auroc", "pixel_auroc", "aupro", "pixel_auroc_anomalous"):
        assert getattr(streamed, metric) == pytest.approx(getattr(exact, metric), abs=1e-3)
    assert {values["aupro"] for values in streamed.by_defect.values()} == {None}


# Boxes in pixels of 1024², with the rows and columns of the 64² map that have their centres in
# them.
BOXES = {
    "00000101_000.png": [((128, 640, 192, 192), slice(40, 52), slice(8, 20))],
    "00000102_000.png": [
        ((128, 640, 192, 192), slice(40, 52), slice(8, 20)),
        ((7, 9, 17, 16), slice(1, 2), slice(0, 1)),
    ],
    "00000103_000.png": [
        ((1020, 8, 90, 1), slice(0, 1), slice(63, 64)),
        ((-9, 600, 200, 900), slice(37, 64), slice(0, 12)),
    ],
}


@pytest.fixture
def chest(tmp_path: Path, picture: Part, write: Write) -> Path:
    """In the NIH layout: 24 train normals and 6 in the test, of which 4 are of men; 3 with boxes,
    of which 2 are.
    """
    names = {f"{seed:08d}_000.png": picture(seed) for seed in (*range(24), *range(50, 56))}
    names |= {name: picture(int(name[5:8]), defect=True) for name in BOXES}
    rows = []
    for number, (name, pixels) in enumerate(names.items()):
        write(tmp_path / "images" / name, pixels)
        rows.append(f"{name},{'Mass' if name in BOXES else 'No Finding'},{'FMM'[number % 3]}")
    boxes = [
        f"{name},Mass,{','.join(map(str, box))}" for name, own in BOXES.items() for box, _, _ in own
    ]
    (tmp_path / "labels.csv").write_text(
        "\n".join(["Image Index,Finding Labels,Patient Gender", *rows])
    )
    (tmp_path / "BBox_List_2017.csv").write_text(
        "\n".join(["Image Index,Finding Label,Bbox [x,y,w,h],,,", *boxes])
    )
    return tmp_path


def test_boxes_are_masks_and_every_group_has_its_figures(
    chest: Path, fitted: Fitted, monkeypatch: pytest.MonkeyPatch
) -> None:
    detector = fitted("knn")
    result = evaluated(detector, chest)
    assert (result.counts["normal"], result.counts["anomalous"]) == (6, 3)
    assert (result.counts["left_out"], result.counts["without_mask"]) == (0, 0)
    maps: Maps = {}
    for row in result.rows:
        small = detector.predict(row["path"]).anomaly_map
        mask = np.zeros((RESOLUTION, RESOLUTION), bool)
        for _, rows, columns in BOXES.get(Path(row["path"]).name, []):
            mask[rows, columns] = True
        maps[row["path"]] = cv2.resize(small, mask.shape, interpolation=cv2.INTER_LINEAR), mask

    def boxed(some: Maps) -> Any:
        own = {path: pair for path, pair in some.items() if Path(path).name in BOXES}
        return pytest.approx(pixel_auroc_by_hand(own), abs=5e-5)

    check_metrics(result, *rows_of(result, lambda _row: True), maps)
    assert result.pixel_auroc_anomalous == boxed(maps)
    assert result.pixel_auroc_anomalous != result.pixel_auroc
    counts = {name: values["count"] for name, values in result.by_group.items()}
    assert counts == {"female": 3, "male": 6}
    for group, values in result.by_group.items():
        own = {row["path"] for row in result.rows if row["group"] == group}
        truth, scores = rows_of(result, lambda row, own=own: row["path"] in own)  # type: ignore[misc]
        some = {path: pair for path, pair in maps.items() if path in own}
        assert sum(truth) == {"female": 1, "male": 2}[group]
        check_metrics(values, truth, scores, some)
        assert values["pixel_auroc_anomalous"] == boxed(some)
    numbers = [each["pixel_auroc_anomalous"] for each in (vars(result), *result.by_group.values())]
    whole, female, male = (f"{100 * float(number or 0):.2f} %" for number in numbers)
    assert f": {whole} (female {female}, male {male})" in said(result)

    monkeypatch.setattr(evaluation, "_EXACT_PIXELS", 0)
    for name, values in evaluated(detector, chest).by_group.items():
        assert dict(values) == pytest.approx(dict(result.by_group[name]), abs=1e-3)


def test_pictures_without_a_group_are_in_none(chest: Path, fitted: Fitted) -> None:
    text = (chest / "labels.csv").read_text()
    (chest / "labels.csv").write_text(text.replace(",F\n", ",\n"))
    by_group = evaluated(fitted("knn"), chest).by_group
    assert {name: values["count"] for name, values in by_group.items()} == {"male": 6}


def test_the_caller_sees_every_prediction(mvtec: Path, fitted: Fitted) -> None:
    shutil.copy(mvtec / "train" / "good" / "000.png", mvtec / "test" / "good" / "known.png")
    (mvtec / "test" / "good" / "broken.png").write_text("")
    seen: list[tuple[str, str]] = []
    told: list[tuple[str, int, int]] = []
    result = blemish.evaluate(
        fitted("knn"),
        mvtec,
        on_prediction=lambda sample, found: seen.append((str(sample.path), found.source)),
        progress=lambda *call: told.append(call),
    )
    assert seen == [(row["path"], row["path"]) for row in result.rows]
    assert told == [("scoring", done, 15) for done in range(1, 16)]


def test_the_defects_that_it_learned_from_are_left_out(mvtec: Path, fitted: Fitted) -> None:
    plain = fitted("knn")
    known = [mvtec / "test" / "square" / "001.png", mvtec / "test" / "dark" / "002.png"]
    defects = tuple(plain.predict(path).digest for path in known)
    data = dataclasses.replace(plain.record.data, defects=defects)
    detector = plain.with_record(dataclasses.replace(plain.record, data=data))
    result = blemish.evaluate(detector, mvtec)
    assert sorted(result.left_out) == sorted(map(str, known))
    counts = {name: values["count"] for name, values in result.by_defect.items()}
    assert counts == {"square": 3, "dark": 2}
    assert (result.counts["left_out"], result.counts["anomalous"]) == (2, 5)


def test_labelled_pictures_are_those_of_the_test_split(mvtec: Path) -> None:
    dataset, samples = evaluation.labelled(mvtec)
    assert samples == list(dataset.test())
    table = mvtec / "table.csv"
    table.write_text("path,label\ntest/good/000.png,0\ntest/square/000.png,1\ntest/dark/000.png,\n")
    found = evaluation.labelled(table)[1]  # no splits: all whose label is known
    assert [sample.label for sample in found] == [0, 1]

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
from sklearn.metrics import average_precision_score, confusion_matrix, f1_score, roc_auc_score

import blemish
from blemish.cli import judge, words
from blemish.data import layouts
from blemish.data.checking import check
from blemish.data.tables import write_table
from blemish.detector import evaluate as evaluation
from blemish.detector.predict import Detector
from blemish.detector.thresholds import Threshold
from blemish.errors import DataError
from blemish.types import Evaluation, Prediction, Sample

Part = Callable[..., np.ndarray]
Write = Callable[..., Path]
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


def rows_of(
    result: Evaluation, keep: Callable[[Mapping[str, Any]], bool]
) -> tuple[list[int], list[float]]:
    chosen = [row for row in result.rows if keep(row)]
    return [row["truth"] for row in chosen], [row["score"] for row in chosen]


@pytest.mark.parametrize("method", ["knn", "padim"])
def test_the_numbers_are_those_computed_by_hand(
    method: str, mvtec: Path, fitted: Callable[..., Detector]
) -> None:
    # A threshold among the scores, so that every cell of the confusion is used.
    plain = fitted(method)
    middle = float(np.median([plain.predict(p).score for p in (mvtec / "test").rglob("*.png")]))
    chosen = Threshold(
        value=middle, rate=0.05, n=24, method="split conformal", guarantee="", reason=""
    )
    detector = plain.with_threshold(chosen)
    result = blemish.evaluate(detector, mvtec, resolution=RESOLUTION)

    assert dict(result.counts) == {
        "pictures": 13, "normal": 6, "anomalous": 7, "left_out": 0, "failed": 0, "without_mask": 0,
    }  # fmt: skip
    assert len(result.rows) == 13
    for row in result.rows:
        prediction = detector.predict(row["path"])
        assert row["score"] == pytest.approx(prediction.score, rel=1e-4)
        assert row["truth"] == int(row["defect"] != "good")
        assert row["defect"] == Path(row["path"]).parent.name
        assert row["label"] == int(row["score"] > middle)
        assert row["category"] == "part"

    truth, scores = rows_of(result, lambda _row: True)
    assert result.image_auroc == pytest.approx(roc_auc_score(truth, scores))
    assert result.image_ap == pytest.approx(average_precision_score(truth, scores))
    best = max(float(f1_score(truth, [score >= level for score in scores])) for level in scores)
    assert result.best_f1 == pytest.approx(best)
    assert result.best_f1_threshold is not None
    assert f1_score(truth, [score > result.best_f1_threshold for score in scores]) == pytest.approx(
        best
    )
    assert result.threshold == middle
    assert result.confusion is not None
    (tn, fp), (fn, tp) = confusion_matrix(truth, [score > middle for score in scores]).tolist()
    assert dict(result.confusion) == {
        "true_positive": tp, "false_positive": fp, "true_negative": tn, "false_negative": fn,
    }  # fmt: skip

    maps = maps_by_hand(detector, mvtec)
    assert result.pixel_auroc == pytest.approx(pixel_auroc_by_hand(maps), abs=1e-5)
    assert result.aupro == pytest.approx(aupro_by_hand(maps), abs=1e-5)
    anomalous = {path: pair for path, pair in maps.items() if Path(path).parent.name != "good"}
    assert result.pixel_auroc_anomalous == pytest.approx(pixel_auroc_by_hand(anomalous), abs=1e-5)
    assert dict(result.by_group) == {}

    assert set(result.by_defect) == {"square", "dark"}
    for defect, values in result.by_defect.items():
        truth, scores = rows_of(
            result, lambda row, defect=defect: row["defect"] in ("good", defect)
        )  # type: ignore[misc]
        some = {
            path: pair for path, pair in maps.items() if Path(path).parent.name in ("good", defect)
        }
        assert values["count"] == sum(truth) == {"square": 4, "dark": 3}[defect]
        assert values["image_auroc"] == pytest.approx(roc_auc_score(truth, scores))
        assert values["image_ap"] == pytest.approx(average_precision_score(truth, scores))
        assert values["pixel_auroc"] == pytest.approx(pixel_auroc_by_hand(some), abs=1e-5)
        assert values["aupro"] == pytest.approx(aupro_by_hand(some), abs=1e-5)

    document = result.to_dict()
    assert json.loads(json.dumps(document, allow_nan=False)) == document


def test_a_good_detector_scores_well(mvtec: Path, fitted: Callable[..., Detector]) -> None:
    result = blemish.evaluate(fitted("knn"), mvtec)
    assert result.by_defect["square"]["image_auroc"] == 1.0
    assert result.pixel_auroc is not None
    assert 0.6 < result.pixel_auroc <= 1


def test_every_category_by_itself(
    mvtec: Path, tmp_path: Path, fitted: Callable[..., Detector]
) -> None:
    root = tmp_path / "set"
    mvtec.rename(root.parent / "moved")
    root.mkdir()
    (root.parent / "moved").rename(root / "nut")
    shutil.copytree(root / "nut", root / "bolt")
    for path in [
        root / "bolt/test/good/000.png",
        root / "bolt/test/dark/001.png",
        root / "bolt/test/square/000.png",
    ]:
        path.unlink()
    detector = fitted("knn")
    whole = blemish.evaluate(detector, root, resolution=RESOLUTION)
    assert set(whole.by_category) == {"bolt", "nut"}
    assert whole.counts["pictures"] == 23
    for category, count in (("bolt", 10), ("nut", 13)):
        alone = blemish.evaluate(detector, root / category, resolution=RESOLUTION)
        values = whole.by_category[category]
        assert values["count"] == count == alone.counts["pictures"]
        for metric in ("image_auroc", "image_ap", "pixel_auroc", "aupro"):
            assert values[metric] == pytest.approx(getattr(alone, metric), rel=1e-4)
        assert alone.by_category[category] == pytest.approx(dict(values), rel=1e-4)
        for defect, found in alone.by_defect.items():  # against the good pictures of its own part
            assert whole.by_defect[f"{category}/{defect}"] == pytest.approx(dict(found), rel=1e-4)
    assert set(whole.by_defect) == {"bolt/dark", "bolt/square", "nut/dark", "nut/square"}

    for metric, mean in whole.category_mean.items():
        values = [whole.by_category[category][metric] for category in ("bolt", "nut")]
        assert mean == pytest.approx(sum(float(value or 0) for value in values) / 2)
    assert set(whole.category_mean) == {"image_auroc", "image_ap", "pixel_auroc", "aupro"}
    assert alone.category_mean == {}
    assert whole.to_dict()["category_mean"] == dict(whole.category_mean)
    shutil.rmtree(root / "nut" / "ground_truth")
    shutil.rmtree(root / "bolt" / "test" / "good")
    shutil.rmtree(root / "bolt" / "ground_truth")
    bare = blemish.evaluate(detector, root)
    assert bare.category_mean["aupro"] is None
    assert (
        bare.category_mean["image_auroc"] == bare.by_category["nut"]["image_auroc"]
    )  # bolt has no ranking


def test_each_picture_is_judged_by_its_category(
    mvtec: Path, fitted: Callable[..., Detector]
) -> None:
    plain = fitted("knn")
    assert plain.threshold is not None
    shutil.copytree(mvtec, mvtec.parent / "set" / "nut")
    shutil.copytree(mvtec, mvtec.parent / "set" / "bolt")
    own = {"bolt": dataclasses.replace(plain.threshold, value=-1.0)}
    detector = Detector(
        plain.method, dataclasses.replace(plain.record, categories=("bolt", "nut"), thresholds=own)
    )
    result = blemish.evaluate(detector, mvtec.parent / "set")
    common = plain.threshold.value
    assert result.threshold == common
    assert {(row["category"], row["threshold"]) for row in result.rows} == {
        ("bolt", -1.0),
        ("nut", common),
    }
    assert all(row["label"] == 1 for row in result.rows if row["category"] == "bolt")
    nut = [
        row
        for row in blemish.evaluate(plain, mvtec.parent / "set").rows
        if row["category"] == "nut"
    ]
    assert [row["label"] for row in result.rows if row["category"] == "nut"] == [
        row["label"] for row in nut
    ]
    assert result.confusion is not None
    assert result.confusion["false_positive"] == 6 + sum(
        row["label"] == 1 and row["truth"] == 0 for row in nut
    )
    said = "\n".join(part for part in judge.evaluate_lines(result) if isinstance(part, str))
    assert "At the stored thresholds:" in said
    bolt = blemish.evaluate(detector, mvtec.parent / "set" / "bolt")
    assert bolt.threshold == -1.0  # the one that judged
    assert any("At the stored threshold of -1:" in str(part) for part in judge.evaluate_lines(bolt))


def test_known_pictures_are_left_out_by_content(
    mvtec: Path, picture: Part, write: Write, fitted: Callable[..., Detector], small: dict[str, Any]
) -> None:
    before = blemish.evaluate(fitted("knn"), mvtec, resolution=RESOLUTION)
    renamed = shutil.copy(
        mvtec / "train" / "good" / "003.png", mvtec / "test" / "good" / "another.png"
    )
    others = [
        write(mvtec / "test" / "good" / f"again{suffix}", picture(5))
        for suffix in (".bmp", ".tiff")
    ]
    result = blemish.evaluate(fitted("knn"), mvtec, resolution=RESOLUTION)
    assert set(result.left_out) == {str(renamed), *map(str, others)}
    assert result.counts["left_out"] == 3
    assert [row["path"] for row in result.rows] == [row["path"] for row in before.rows]
    for metric in ("image_auroc", "image_ap", "best_f1", "pixel_auroc", "aupro"):
        assert getattr(result, metric) == pytest.approx(getattr(before, metric), rel=1e-4)
    # Those that it was only calibrated on are known to it too.
    padim = blemish.fit(
        "padim", [picture(seed) for seed in range(24)], calibration_fraction=0.2, **small
    )
    for seed in range(24):
        write(mvtec / "test" / "good" / f"train{seed}.png", picture(seed))
    assert len(padim.manifest["data"]["calibrated"]) == 5
    assert blemish.evaluate(padim, mvtec).counts["left_out"] == 24 + 3


def test_masks_of_another_size_are_brought_to_the_map(
    mvtec: Path, fitted: Callable[..., Detector]
) -> None:
    before = blemish.evaluate(fitted("knn"), mvtec, resolution=RESOLUTION)
    for path in (mvtec / "ground_truth").rglob("*.png"):
        cv2.imwrite(str(path), drawn_mask(path).repeat(3, axis=0).repeat(2, axis=1))
    after = blemish.evaluate(fitted("knn"), mvtec, resolution=RESOLUTION)
    assert (after.pixel_auroc, after.aupro) == (before.pixel_auroc, before.aupro)
    assert not before.mask_faults
    assert {fault.reason for fault in after.mask_faults} == {
        "is 192×128 pixels, its picture 64×64; in another shape, it is stretched over it"
    }
    assert after.mask_faults == check(mvtec).mask_faults
    assert words.broken([fault.to_dict() for fault in after.mask_faults], "mask at fault")[
        0
    ] in "\n".join(str(line) for line in judge.evaluate_lines(after))
    assert len(after.to_dict()["mask_faults"]) == 7


def test_what_the_data_check_says_of_masks_is_said_here_too(
    mvtec: Path, fitted: Callable[..., Detector]
) -> None:
    truth = mvtec / "ground_truth" / "square"
    (truth / "002_mask.png").rename(truth / "other.png")
    cv2.imwrite(str(truth / "001_mask.png"), np.zeros((64, 64), np.uint8))
    (mvtec / "test" / "good" / "more.gif").touch()
    result = blemish.evaluate(fitted("knn"), mvtec, resolution=RESOLUTION)
    found = check(mvtec)
    unread, unused, bare = result.problems
    assert unread.startswith("1 file in formats that are not read left out (1 .gif)")
    assert unused == f"1 mask without a picture: {truth / 'other.png'}"
    assert bare == f"1 anomalous picture without a mask: {mvtec / 'test/square/002.png'}"
    assert set(result.problems) <= set(found.dataset.problems)
    assert [fault.reason for fault in result.mask_faults] == [
        "is empty, but its picture is anomalous"
    ]
    assert result.mask_faults == found.mask_faults
    lines = [str(line) for line in judge.evaluate_lines(result)]
    assert all(f"  notice: {problem}" in lines for problem in result.problems)
    assert result.to_dict()["problems"] == list(result.problems)


def test_masks_may_be_zero_and_one(mvtec: Path, fitted: Callable[..., Detector]) -> None:
    before = blemish.evaluate(fitted("knn"), mvtec, resolution=RESOLUTION)
    for path in (mvtec / "ground_truth").rglob("*.png"):
        cv2.imwrite(str(path), drawn_mask(path) // 255)
    after = blemish.evaluate(fitted("knn"), mvtec, resolution=RESOLUTION)
    assert (after.pixel_auroc, after.aupro) == (before.pixel_auroc, before.aupro)


@pytest.mark.parametrize("how", ["missing", "text", "unclear"])
def test_a_mask_that_cannot_be_used(how: str, mvtec: Path, fitted: Callable[..., Detector]) -> None:
    before = blemish.evaluate(fitted("knn"), mvtec, resolution=RESOLUTION)
    maps = maps_by_hand(fitted("knn"), mvtec)
    mask = mvtec / "ground_truth" / "square" / "002_mask.png"
    if how == "missing":
        mask.unlink()
    elif how == "text":
        mask.write_text("not a picture")
    else:
        cv2.imwrite(str(mask), drawn_mask(mask) // 3)  # grey: neither class numbers nor marked
    result = blemish.evaluate(fitted("knn"), mvtec, resolution=RESOLUTION)
    assert result.counts["without_mask"] == 1
    assert [failure.source for failure in result.failures] == (
        [] if how == "missing" else [str(mask)]
    )
    assert (result.image_auroc, result.image_ap) == (
        before.image_auroc,
        before.image_ap,
    )  # it still counts as a picture
    without = {path: pair for path, pair in maps.items() if not path.endswith("square/002.png")}
    assert result.pixel_auroc == pytest.approx(pixel_auroc_by_hand(without), abs=1e-5)
    assert result.aupro == pytest.approx(aupro_by_hand(without), abs=1e-5)
    assert result.by_defect["square"]["count"] == 4


def test_without_any_mask(mvtec: Path, fitted: Callable[..., Detector]) -> None:
    shutil.rmtree(mvtec / "ground_truth")
    result = blemish.evaluate(fitted("knn"), mvtec)
    assert (result.pixel_auroc, result.pixel_auroc_anomalous, result.aupro) == (None, None, None)
    assert all(values["aupro"] is None for values in result.by_defect.values())
    assert result.image_auroc is not None
    assert result.counts["without_mask"] == 0


def test_pictures_that_cannot_be_read(mvtec: Path, fitted: Callable[..., Detector]) -> None:
    (mvtec / "test" / "good" / "004.png").write_text("not a picture")
    whole = (mvtec / "test" / "dark" / "001.png").read_bytes()
    (mvtec / "test" / "dark" / "001.png").write_bytes(whole[:-30])
    result = blemish.evaluate(fitted("knn"), mvtec, resolution=RESOLUTION)
    assert {Path(failure.source).name for failure in result.failures} == {"004.png", "001.png"}
    assert (result.counts["failed"], result.counts["pictures"]) == (2, 11)
    maps = maps_by_hand_of(fitted("knn"), result, mvtec)
    assert result.aupro == pytest.approx(aupro_by_hand(maps), abs=1e-5)


def maps_by_hand_of(detector: Detector, result: Evaluation, root: Path) -> Maps:
    for failure in result.failures:
        Path(failure.source).unlink()
    maps = maps_by_hand(detector, root)
    assert set(maps) == {row["path"] for row in result.rows}
    return maps


def test_a_link_that_leads_nowhere(mvtec: Path, fitted: Callable[..., Detector]) -> None:
    (mvtec / "test" / "good" / "gone.png").symlink_to(mvtec / "nowhere.png")
    result = blemish.evaluate(fitted("knn"), mvtec)
    assert [Path(failure.source).name for failure in result.failures] == ["gone.png"]
    assert result.counts["pictures"] == 13


def test_a_flat_folder_has_nothing_to_evaluate(
    good_folder: Path, fitted: Callable[..., Detector]
) -> None:
    with pytest.raises(DataError, match="labelled good and defective"):
        blemish.evaluate(fitted("knn"), good_folder)


def test_nothing_but_known_pictures(mvtec: Path, fitted: Callable[..., Detector]) -> None:
    shutil.rmtree(mvtec / "test")
    shutil.rmtree(mvtec / "ground_truth")
    shutil.copytree(mvtec / "train" / "good", mvtec / "test" / "good")
    with pytest.raises(DataError, match="no picture is left"):
        blemish.evaluate(fitted("knn"), mvtec)


def test_the_majority_vote_is_judged_too(mvtec: Path, fitted: Callable[..., Detector]) -> None:
    """By hand, where six sizes vote: the share of the votes ranks (ties count half), more than half
    is a verdict.
    """
    given = iter([0, 1 / 3, 2 / 3, 0, 1 / 2, 0, 1, 2 / 3, 1 / 2, 1, 2 / 3, 1 / 2, 1])
    plain = fitted("knn")
    assert blemish.evaluate(plain, mvtec, resolution=RESOLUTION).votes is None

    class Voting(Detector):
        def predict_many(self, *given_: Any, **named: Any) -> Any:
            for one in super().predict_many(*given_, **named):
                yield dataclasses.replace(one, votes=next(given))

    detector = Voting(plain.method, plain.record)
    result = blemish.evaluate(detector, mvtec, resolution=RESOLUTION)
    normal = [row["votes"] for row in result.rows if row["truth"] == 0]
    bad = [row["votes"] for row in result.rows if row["truth"] == 1]
    assert (len(normal), len(bad)) == (6, 7)
    pairs = [(b > n) + (b == n) / 2 for b in bad for n in normal]
    rates = [sum(n <= 0.5 for n in normal) / 6, sum(b > 0.5 for b in bad) / 7]
    assert result.votes == pytest.approx(
        {"image_auroc": sum(pairs) / 42, "balanced_accuracy": sum(rates) / 2}
    )
    assert result.to_dict()["votes"] == dict(result.votes or {})


def test_one_class_alone_has_no_ranking(mvtec: Path, fitted: Callable[..., Detector]) -> None:
    shutil.rmtree(mvtec / "test" / "square")
    shutil.rmtree(mvtec / "test" / "dark")
    result = blemish.evaluate(fitted("knn"), mvtec)
    assert (result.image_auroc, result.image_ap, result.best_f1, result.aupro) == (
        None,
        None,
        None,
        None,
    )
    assert result.counts["normal"] == 6
    assert result.confusion is not None  # false alarms can be counted all the same
    assert dict(result.by_defect) == {}


def test_without_a_threshold_there_is_no_confusion(
    mvtec: Path, fitted: Callable[..., Detector]
) -> None:
    result = blemish.evaluate(fitted("padim", 18), mvtec)  # too few for one
    assert (result.threshold, result.confusion) == (None, None)
    assert {row["label"] for row in result.rows} == {None}
    assert blemish.evaluate(fitted("knn").with_threshold(None), mvtec).confusion is None


def test_a_folder_without_splits(
    tmp_path: Path, picture: Part, write: Write, fitted: Callable[..., Detector]
) -> None:
    for seed in range(3):
        write(tmp_path / "ok" / f"{seed}.png", picture(500 + seed))
        write(tmp_path / "dent" / f"{seed}.png", picture(600 + seed, defect=True))
    result = blemish.evaluate(fitted("knn"), tmp_path)
    assert (result.counts["normal"], result.counts["anomalous"]) == (3, 3)
    assert result.image_auroc == 1.0
    assert result.pixel_auroc is None


def test_a_table_and_a_dataset(mvtec: Path, fitted: Callable[..., Detector]) -> None:
    dataset = layouts.read(mvtec)
    table = write_table(mvtec / "table.csv", dataset.samples)
    results = [
        blemish.evaluate(fitted("knn"), data) for data in (mvtec, str(mvtec), dataset, table)
    ]
    assert results[0] == results[1] == results[2]
    assert (results[3].aupro, results[3].rows) == (results[0].aupro, results[0].rows)


def test_pictures_of_unknown_label_are_not_used(
    mvtec: Path, fitted: Callable[..., Detector]
) -> None:
    rows = ["path,label", "test/good/000.png,0", "test/good/001.png,", "test/dark/000.png,1"]
    (mvtec / "table.csv").write_text("\n".join(rows))
    result = blemish.evaluate(fitted("knn"), mvtec / "table.csv")
    assert [Path(row["path"]).name for row in result.rows] == ["000.png", "000.png"]


def test_the_resolution_of_each_picture(
    mvtec: Path, picture: Part, write: Write, fitted: Callable[..., Detector]
) -> None:
    same = blemish.evaluate(fitted("knn"), mvtec, resolution=None)
    assert (
        same.aupro == blemish.evaluate(fitted("knn"), mvtec, resolution=64).aupro
    )  # all are 64 × 64
    wide = picture(210, defect=True, height=48, width=100)
    write(mvtec / "test" / "square" / "wide.png", wide)
    mask = (wide != picture(210, height=48, width=100)).any(axis=2)
    write(mvtec / "ground_truth" / "square" / "wide_mask.png", mask.astype(np.uint8) * 255)
    mixed = blemish.evaluate(fitted("knn"), mvtec, resolution=None)
    assert mixed.counts["without_mask"] == 0
    assert mixed.aupro != same.aupro


def test_huge_sets_are_measured_in_constant_memory(
    mvtec: Path, fitted: Callable[..., Detector], monkeypatch: pytest.MonkeyPatch
) -> None:
    exact = blemish.evaluate(fitted("knn"), mvtec, resolution=RESOLUTION)
    monkeypatch.setattr(evaluation, "_EXACT_PIXELS", 0)
    streamed = blemish.evaluate(fitted("knn"), mvtec, resolution=RESOLUTION)
    assert streamed.pixel_auroc == pytest.approx(exact.pixel_auroc, abs=1e-3)
    assert streamed.aupro == pytest.approx(exact.aupro, abs=1e-3)
    assert streamed.pixel_auroc_anomalous == pytest.approx(exact.pixel_auroc_anomalous, abs=1e-3)
    assert streamed.image_auroc == exact.image_auroc


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
    chest: Path, fitted: Callable[..., Detector], monkeypatch: pytest.MonkeyPatch
) -> None:
    detector = fitted("knn")
    result = blemish.evaluate(detector, chest, resolution=RESOLUTION)
    assert dict(result.counts) == {
        "pictures": 9, "normal": 6, "anomalous": 3, "left_out": 0, "failed": 0, "without_mask": 0,
    }  # fmt: skip
    maps: Maps = {}
    for row in result.rows:
        small = detector.predict(row["path"]).anomaly_map
        mask = np.zeros((RESOLUTION, RESOLUTION), bool)
        for _, rows, columns in BOXES.get(Path(row["path"]).name, []):
            mask[rows, columns] = True
        maps[row["path"]] = cv2.resize(small, mask.shape, interpolation=cv2.INTER_LINEAR), mask
    boxed = {path: pair for path, pair in maps.items() if Path(path).name in BOXES}
    assert result.pixel_auroc == pytest.approx(pixel_auroc_by_hand(maps), abs=1e-5)
    assert result.aupro == pytest.approx(aupro_by_hand(maps), abs=1e-5)
    assert result.pixel_auroc_anomalous == pytest.approx(pixel_auroc_by_hand(boxed), abs=1e-5)
    assert result.pixel_auroc_anomalous != result.pixel_auroc

    assert {name: values["count"] for name, values in result.by_group.items()} == {
        "female": 3,
        "male": 6,
    }
    for group, values in result.by_group.items():
        own = {row["path"] for row in result.rows if row["group"] == group}
        truth, scores = rows_of(result, lambda row, own=own: row["path"] in own)  # type: ignore[misc]
        some = {path: pair for path, pair in maps.items() if path in own}
        assert sum(truth) == {"female": 1, "male": 2}[group]
        assert values["image_auroc"] == pytest.approx(roc_auc_score(truth, scores))
        assert values["image_ap"] == pytest.approx(average_precision_score(truth, scores))
        assert values["pixel_auroc"] == pytest.approx(pixel_auroc_by_hand(some), abs=1e-5)
        assert values["aupro"] == pytest.approx(aupro_by_hand(some), abs=1e-5)
        some = {path: pair for path, pair in some.items() if path in boxed}
        assert values["pixel_auroc_anomalous"] == pytest.approx(pixel_auroc_by_hand(some), abs=1e-5)

    document = result.to_dict()
    assert json.loads(json.dumps(document, allow_nan=False)) == document
    assert (
        document["by_group"]["male"]["pixel_auroc_anomalous"]
        == result.by_group["male"]["pixel_auroc_anomalous"]
    )
    said = next(
        part for part in judge.evaluate_lines(result) if "defective pictures alone" in str(part)
    )
    numbers = [
        result.pixel_auroc_anomalous,
        *(it["pixel_auroc_anomalous"] for it in result.by_group.values()),
    ]
    whole, female, male = (f"{100 * float(number or 0):.2f} %" for number in numbers)
    assert str(said).endswith(f": {whole} (female {female}, male {male})")

    monkeypatch.setattr(evaluation, "_EXACT_PIXELS", 0)
    streamed = blemish.evaluate(detector, chest, resolution=RESOLUTION)
    for name, values in streamed.by_group.items():
        assert dict(values) == pytest.approx(dict(result.by_group[name]), abs=1e-3)


def test_pictures_without_a_group_are_in_none(chest: Path, fitted: Callable[..., Detector]) -> None:
    text = (chest / "labels.csv").read_text()
    (chest / "labels.csv").write_text(text.replace(",F\n", ",\n"))
    result = blemish.evaluate(fitted("knn"), chest, resolution=RESOLUTION)
    assert {name: values["count"] for name, values in result.by_group.items()} == {"male": 6}
    assert result.pixel_auroc_anomalous is not None


def test_an_anomalous_picture_without_box_and_mask_has_no_place(
    chest: Path, fitted: Callable[..., Detector]
) -> None:
    dataset = layouts.read(chest)
    samples = [
        dataclasses.replace(s, boxes=()) if s.path.stem.startswith("00000103") else s
        for s in dataset.samples
    ]
    result = blemish.evaluate(fitted("knn"), dataclasses.replace(dataset, samples=tuple(samples)))
    assert result.counts["without_mask"] == 1


def test_fitting_takes_the_normals_of_the_train_split(chest: Path, small: dict[str, Any]) -> None:
    detector = blemish.fit("knn", chest, **small)
    assert detector.manifest["data"]["count"] == 24
    assert detector.manifest["data"]["layout"].startswith(
        "NIH ChestX-ray14 layout: 24 train good, 9 test (6 good, 3 in"
    )
    assert blemish.evaluate(detector, chest, resolution=RESOLUTION).counts["left_out"] == 0


def test_the_caller_sees_every_prediction(mvtec: Path, fitted: Callable[..., Detector]) -> None:
    shutil.copy(mvtec / "train" / "good" / "000.png", mvtec / "test" / "good" / "known.png")
    (mvtec / "test" / "good" / "broken.png").write_text("")
    seen: list[tuple[Sample, Prediction]] = []
    told: list[tuple[str, int, int]] = []
    result = blemish.evaluate(
        fitted("knn"),
        mvtec,
        on_prediction=lambda sample, prediction: seen.append((sample, prediction)),
        progress=lambda *call: told.append(call),
    )
    assert [prediction.source for _, prediction in seen] == [row["path"] for row in result.rows]
    assert all(str(sample.path) == prediction.source for sample, prediction in seen)
    assert told == [("scoring", done, 15) for done in range(1, 16)]


def test_the_defects_that_it_learned_from_are_left_out(
    mvtec: Path, fitted: Callable[..., Detector]
) -> None:
    plain = fitted("knn")
    known = [mvtec / "test" / "square" / "001.png", mvtec / "test" / "dark" / "002.png"]
    data = dataclasses.replace(
        plain.record.data, defects=tuple(plain.predict(path).digest for path in known)
    )
    detector = Detector(plain.method, dataclasses.replace(plain.record, data=data))
    result = blemish.evaluate(detector, mvtec)
    assert sorted(result.left_out) == sorted(map(str, known))
    assert {name: values["count"] for name, values in result.by_defect.items()} == {
        "square": 3,
        "dark": 2,
    }
    assert (result.counts["left_out"], result.counts["anomalous"]) == (2, 5)
    before = Detector(
        plain.method, dataclasses.replace(plain.record, data=dataclasses.replace(data, defects=()))
    )
    assert blemish.evaluate(before, mvtec).counts["left_out"] == 0


def test_labelled_pictures_are_those_of_the_test_split(mvtec: Path, tmp_path: Path) -> None:
    dataset, samples = evaluation.labelled(mvtec)
    assert samples == list(dataset.test())
    assert evaluation.labelled(dataset) == (dataset, samples)
    table = mvtec / "table.csv"
    table.write_text("path,label\ntest/good/000.png,0\ntest/square/000.png,1\ntest/dark/000.png,\n")
    assert [sample.label for sample in evaluation.labelled(table)[1]] == [
        0,
        1,
    ]  # no splits: all whose label is known

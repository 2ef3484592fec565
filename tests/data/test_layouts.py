from __future__ import annotations

from pathlib import Path

import pytest
from trees import GOOD_AND_BAD, lay_out

from blemish.data.layouts import Dataset, read
from blemish.data.pictures import good_pictures
from blemish.errors import DataError


def labels(dataset: Dataset) -> dict[str, int | None]:
    return {str(sample.path.relative_to(dataset.root)): sample.label for sample in dataset.samples}


def test_mvtec(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hole = "test/hole/0.png"
    masks = [f"ground_truth/{name}.png" for name in ("hole/0_mask", "scratch/0_mask", "scratch/1")]
    root = lay_out(tmp_path / "bolt", *GOOD_AND_BAD, hole, *masks)
    dataset = read(root)
    assert dataset.layout == "mvtec"
    assert dataset.description == (
        "MVTec layout: 2 train good, 4 test (1 good, 3 in 2 defect types), masks"
    )
    assert labels(dataset) == {name: int("good" not in name) for name in (*GOOD_AND_BAD, hole)}
    assert [sample.path.parent.name for sample in dataset.train()] == ["good", "good"]
    assert len(dataset.test()) == 4
    assert {(sample.defect, sample.mask) for sample in dataset.normals()} == {("good", None)}
    assert [sample.mask for sample in dataset.anomalies()] == [root / mask for mask in masks]
    assert [sample.defect for sample in dataset.anomalies()] == ["hole", "scratch", "scratch"]
    assert dataset.has_masks
    assert dataset.problems == ()
    monkeypatch.chdir(root)
    assert read(".").categories == dataset.categories == ("bolt",)


def test_mvtec_without_masks_and_in_other_cases(tmp_path: Path) -> None:
    dataset = read(lay_out(tmp_path, "Train/OK/0.PNG", "Test/ok/0.PNG", "Test/Dent/0.PNG"))
    assert dataset.description == (
        "MVTec layout: 1 train good, 2 test (1 good, 1 in 1 defect type), no masks"
    )
    assert dataset.anomalies()[0].defect == "Dent"
    assert (dataset.has_masks, dataset.problems) == (False, ())


def test_mvtec_with_a_test_only(tmp_path: Path) -> None:
    dataset = read(lay_out(tmp_path, "test/good/0.png", "test/scratch/0.png"))
    assert (dataset.layout, dataset.train(), len(dataset.test())) == ("mvtec", (), 2)


def test_mvtec_problems(tmp_path: Path) -> None:
    root = lay_out(
        tmp_path,
        *GOOD_AND_BAD,
        "ground_truth/scratch/0_mask.png",
        "ground_truth/scratch/9_mask.png",
        "ground_truth/good/0_mask.png",
        "train/scratch/5.png",
        "test/scratch/more/6.png",
        "test/loose.png",
        "license.txt",
        "test/scratch/Thumbs.db",
    )
    (root / "test" / "hole").mkdir()
    dataset = read(root)
    assert len(dataset.samples) == 6
    empty, strays, unused, bare = dataset.problems[1:]
    assert dataset.problems[0].startswith("2 files with other suffixes ignored: ")
    assert empty == "test/hole/ holds no pictures"
    assert strays.startswith("2 pictures outside of the layout's folders ignored: ")
    assert all(name in strays for name in ("train/scratch/5.png", "test/loose.png"))
    assert dataset.left_out == (strays,)
    assert unused == f"1 mask without a picture: {root / 'ground_truth/scratch/9_mask.png'}"
    assert bare.startswith("2 anomalous pictures without a mask: ")
    assert dataset.mask_problems == (unused, bare)
    assert next(sample for sample in dataset.anomalies() if sample.path.stem == "1").mask is None


def test_mvtec_to_any_depth(tmp_path: Path) -> None:
    good = ["train/good/left/0.png", "train/good/1.png", "test/good/images/2.png"]
    bad = ["test/dent/x/y/3.png", "test/images/dent/4.png"]
    dataset = read(lay_out(tmp_path, *good, *bad))
    assert labels(dataset) == {**dict.fromkeys(good, 0), **dict.fromkeys(bad, 1)}
    assert {sample.defect for sample in dataset.anomalies()} == {"dent"}
    assert dataset.problems == ()


def test_loose_training_pictures_are_not_dropped(tmp_path: Path) -> None:
    root = lay_out(tmp_path, "train/0.png", "train/1.png", "test/good/0.png", "test/bad/0.png")
    with pytest.raises(
        DataError, match=r"train/ holds 2 pictures, but no good/; .* move them there"
    ):
        read(root)
    dataset = read(lay_out(root, "train/good/2.png"))
    assert [sample.path.name for sample in dataset.train()] == ["2.png"]
    assert dataset.left_out[0].startswith("2 pictures outside of the layout's folders ignored: ")


def test_a_public_set_is_told_by_its_name_and_compared(tmp_path: Path) -> None:
    dataset = read(lay_out(tmp_path / "bottle", *GOOD_AND_BAD, "test/scratch/notes.txt"))
    assert dataset.problems[0].startswith("1 file with other suffixes ignored: ")
    assert dataset.problems[1:] == (
        "bottle: 2 of 209 training pictures",
        "bottle: 1 of 20 good test pictures",
        "bottle: 2 of 63 anomalous test pictures",
        "bottle: no masks",
    )


def test_mvtec_root(tmp_path: Path) -> None:
    names = [f"{category}/{name}" for category in ("nut", "bolt") for name in GOOD_AND_BAD]
    root = lay_out(tmp_path, *names, "nut/ground_truth/scratch/0_mask.png", "notes/page.png")
    (root / "bolt" / "test" / "hole").mkdir()
    dataset = read(root)
    assert dataset.layout == "mvtec-root"
    assert dataset.description == (
        "MVTec layout in 2 categories: 4 train good, 6 test (2 good, 4 in 1 defect type), masks"
    )
    assert dataset.categories == ("bolt", "nut")
    assert {sample.category for sample in dataset.samples if sample.mask} == {"nut"}
    stray = f"1 picture outside of the MVTec folders ignored: {root / 'notes/page.png'}"
    assert {"bolt: test/hole/ holds no pictures", stray} <= set(dataset.problems)


@pytest.mark.parametrize(
    "pair",
    [
        *("normal_dir abnormal_dir", "goods bads", "Passed Failed", "healthy diseased", "OK NOK"),
        *("i.O. n.i.O.", "gut schlecht", "good_images bad_images", "defect_free defective"),
        *("no_defect defect", "images/good images/anomaly"),
    ],
)
def test_usual_names_of_good_and_bad(tmp_path: Path, pair: str) -> None:
    good, bad = pair.split()
    dataset = read(lay_out(tmp_path, f"{good}/0.png", f"{good}/1.png", f"{bad}/0.png"))
    assert dataset.layout == "good-and-defects"
    assert labels(dataset) == {f"{good}/0.png": 0, f"{good}/1.png": 0, f"{bad}/0.png": 1}
    assert {sample.defect for sample in dataset.anomalies()} == {bad.rpartition("/")[2]}
    mvtec = read(lay_out(tmp_path / "part", f"train/{good}/0.png", f"test/{bad}/2.png"))
    assert (mvtec.layout, len(mvtec.train()), len(mvtec.anomalies())) == ("mvtec", 1, 1)


@pytest.mark.parametrize(
    "names",
    [
        *("monday/0.png tuesday/1.png", "2024-05-01/0.png 2024-05-02/1.png", "images/0.png 1.png"),
        *("LineA/0.png LineB/1.png", "left/0.png right/1.png", "SN-12AB7/0.png SN-99XY1/0.png"),
        "cam1/0.png cam2/1.png cam2/night/3.png cam2/day/3.png",
        "bottle/good/0.png screw/good/1.png",
        "ok/monday/0.png ok/alpha/1.png ok/beta/1.png",
        "good/0.png good/1_scratch.png",  # below a folder called good any file is good
    ],
)
def test_parts_of_one_collection_are_all_good(tmp_path: Path, names: str) -> None:
    assert len(read(lay_out(tmp_path, *names.split())).normals()) == len(names.split())


def test_a_folder_that_is_called_good_may_hold_folders_of_any_name(tmp_path: Path) -> None:
    root = lay_out(tmp_path / "good_parts", "alpha/0.png", "beta/0.png", "1_ng.png")
    assert len(read(root).normals()) == 3
    with pytest.raises(DataError, match="bad/ says that not every picture"):
        read(lay_out(root, "bad/0.png"))


@pytest.mark.parametrize(
    ("names", "words"),
    [
        *(
            (f"good/0.png {split}/1.png", f"{split}/ is neither good nor a kind of defect")
            for split in ("val", "training")
        ),
        ("good/0.png good_rotated/3.png", "good_rotated/ may hold good ones or .* defect; rename"),
        ("train/good/1.png train/good/bad/0.png", "is called good and bad"),
        ("good/1.png good/NG/0.png dent/1.png", "is called good and bad"),
        (
            "bolt/good/0.png bolt/bad/0.png nut/good/0.png nut/bad/1.png",
            "bolt/bad/ is beside others, but not at the top; name bolt/ itself",
        ),
    ],
)
def test_folders_that_contradict_each_other(tmp_path: Path, names: str, words: str) -> None:
    with pytest.raises(DataError, match=words):
        read(lay_out(tmp_path, *names.split()))


def test_names_of_splits_and_of_good_ones_in_one(tmp_path: Path) -> None:
    dataset = read(lay_out(tmp_path, "normal/0.png", "normal_test/1.png", "abnormal_test/2.png"))
    assert labels(dataset) == {"normal/0.png": 0, "normal_test/1.png": 0, "abnormal_test/2.png": 1}


def test_good_beside_defects(tmp_path: Path) -> None:
    names = {"OK/a/0.png": 0, "OK/1.png": 0, "scratch/b/0.png": 1, "hole/0.jpg": 1}
    mask = "ground_truth/scratch/b/0_mask.png"
    root = lay_out(tmp_path, *names, "loose.png", mask)
    dataset = read(root)
    assert dataset.layout == "good-and-defects"
    assert dataset.description == (
        "good/ beside defect folders: 4 pictures (2 good, 2 in 2 defect types), masks"
    )
    assert labels(dataset) == names
    assert {(sample.split, sample.defect, sample.mask) for sample in dataset.samples} == {
        ("", "good", None),
        ("", "hole", None),
        ("", "scratch", root / mask),
    }
    assert dataset.problems == (
        f"1 picture outside of the layout's folders ignored: {root / 'loose.png'}",
        f"1 anomalous picture without a mask: {root / 'hole/0.jpg'}",
    )


def test_flat(tmp_path: Path) -> None:
    dataset = read(lay_out(tmp_path / "NG", "monday/0.png", "1.png", "labels.csv"))
    assert dataset.layout == "flat"
    assert dataset.description == (
        "flat layout: 2 pictures, all taken as good, although the folder is called NG"
    )
    assert labels(dataset) == {"1.png": 0, "monday/0.png": 0}
    assert {(sample.split, sample.category, sample.defect) for sample in dataset.samples} == {
        ("", "", "good")
    }
    assert any("manifest only when it is named" in problem for problem in dataset.problems)


@pytest.mark.parametrize(
    "names",
    [
        *("train/0.png", "train/0.png good/0.png", "train/scratch/0.png test/good/0.png"),
        *("test/scratch/0.png", "ground_truth/scratch/0.png 0.png", "0.png Defective/0.png"),
        *("monday/bad/0.png monday/0.png", "yes/0.png no/0.png", "NO/0.png perhaps/0.png"),
        *("bolt/good/0.png bolt/scratch/0.png", "sets/bolt/train/good/0.png"),
        *("0.png scratch/0.png", "0.png mask_dir/0.png", "0.png n.i.O./0.png"),
        *("batch1/test_bad/0.png batch1/1.png", "alpha/0.png beta/0.png"),
        *("part/alpha/0.png part/beta/0.png", "positive/0.png negative/0.png"),
        *("valid/0.png 0.png", "bads/0.png abnormal_dir/0.png", "0/0.png 1/0.png"),
        *("class_0/0.png class_1/0.png", "0_ok.png 0_ng.png", "cam1/0.png cam1/1_scratch.png"),
    ],
)
def test_pictures_that_may_not_all_be_good_are_never_taken_as_good(
    tmp_path: Path, names: str
) -> None:
    unclear = r"which pictures are good(?s:.*)good-and-defects(?s:.*)TABLE\.csv"
    with pytest.raises(DataError, match=unclear):
        read(lay_out(tmp_path, *names.split()))


def test_the_way_out_for_folders_of_unknown_names_works(tmp_path: Path) -> None:
    root = lay_out(tmp_path / "all of it", "steel/0.png", "copper/0.png", "copper/1.png")
    with pytest.raises(
        DataError, match=r'name them by a pattern, in quotes, as in "[^"]*/\*/\*\.png"'
    ) as refused:
        read(root)
    pattern = str(refused.value).split('"')[1]
    found = good_pictures(pattern)
    assert [path.name for path in found.sources] == ["0.png", "1.png", "0.png"]
    assert (found.names, found.layout) == ([], "flat")  # of one kind, not categories
    lay_out(root, "copper/deep/2.jpg")
    with pytest.raises(DataError) as refused:
        read(root)
    assert len(good_pictures(str(refused.value).split('"')[1]).sources) == 4


def test_nothing_to_read(tmp_path: Path) -> None:
    for name in ("absent", "x" * 5000):
        with pytest.raises(DataError, match=f"{name}: no such"):
            read(tmp_path / name)
    (tmp_path / "train" / "good").mkdir(parents=True)
    with pytest.raises(DataError, match=r"no pictures found.*\.png"):
        read(tmp_path)

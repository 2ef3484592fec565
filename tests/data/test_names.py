from __future__ import annotations

import pytest

from blemish.data.names import (
    file_says_bad,
    is_binary,
    is_series,
    mask_owner,
    may_be_good,
    meaning,
    says_bad,
)


@pytest.mark.parametrize(
    ("said", "names"),
    [
        (
            "good",
            [
                "good",
                "GOODS",
                "OK",
                "normal_dir",
                "Normal images",
                "i.O.",
                "pass",
                "test_good",
                "defect-free",
            ],
        ),
        (
            "bad",
            [
                "bad",
                "NG",
                "n_ok",
                "not ok",
                "abnormal_dir",
                "anomalous",
                "N.i.O.",
                "fail",
                "broken",
                "bad_test 2",
            ],
        ),
        (
            "mask",
            [
                "mask",
                "Masks",
                "GT",
                "ground_truth",
                "GroundTruth",
                "labels",
                "mask_dir",
                "NG_mask",
                "SegmentationClass",
            ],
        ),
        ("split", ["train", "Validation", "test_images"]),
        ("images", ["images", "Imgs", "RGB", "data"]),
        ("unclear", ["yes", "no", "positive", "Negatives"]),
        (
            "",
            [
                "pos1",
                "dev 2",
                "scratch",
                "missing_label",
                "color",
                "Monday",
                "001",
                "goodyear",
                "masking",
                "scratch_mask",
                "okra",
            ],
        ),
    ],
)
def test_meaning(said: str, names: list[str]) -> None:
    assert {name: meaning(name) for name in names} == dict.fromkeys(names, said)


def test_whose_masks_a_folder_holds() -> None:
    owners = {
        "masks": "",
        "scratch_mask": "scratch",
        "mask-scratch": "scratch",
        "ground_truth_dent": "dent",
    }
    assert {name: mask_owner(name) for name in owners} == owners
    assert [mask_owner(name) for name in ("scratch", "label_dent", "masked")] == [None] * 3


def test_what_says_bad() -> None:
    for name in ("test_bad", "NG2024", "not_ok", "masks", "scratches", "defects_left"):
        assert says_bad(name), name
    for name in ("no_defects", "good", "not_bad", "monday", "badge", "ungood"):
        assert not says_bad(name), name


def test_parts_of_one_collection() -> None:
    for names in (
        ["cam1", "cam2"],
        ["CamA", "CamB"],
        ["2024-05-01", "2024-06"],
        ["mon", "fri"],
        ["batch_3", "4"],
        ["SN-12AB7", "SN-99XY1"],
        ["inside", "outside"],
        ["top view", "side_view"],
        ["Gehäuse links", "Gehäuse rechts"],
        ["Frühschicht", "Spätschicht"],
        ["red", "blue"],
        ["light_on", "light_off"],
        ["pos1", "pos2"],
    ):
        assert is_series(names), names
    for names in (
        ["scratch", "dent"],
        ["cam1", "lens1"],
        ["monday", "alpha"],
        ["smear_2024", "hair_2024"],
        ["red", "smear"],
    ):
        assert not is_series(names), names


def test_sizes_and_colours_of_something_are_no_parts_of_one_collection() -> None:
    assert not is_series(["small_smear", "large_smear"])


def test_names_that_are_classes() -> None:
    assert all(map(is_binary, (["0", "1"], ["class_1", "class_0"], ["Label 0", "Label 1"])))
    assert not any(
        map(is_binary, (["1", "2"], ["0", "1", "2"], ["cam0", "cam1"], ["0"], ["000", "001"]))
    )


def test_files_that_are_called_as_defects_are() -> None:
    for stem in ("000_NG", "ng-12", "img 3 (broken)", "scratch", "000_mask"):
        assert file_says_bad(stem), stem
    for stem in ("000", "SN12NG7", "no_defect_3", "ok_1", "not_bad"):
        assert not file_says_bad(stem), stem


@pytest.mark.parametrize(
    ("good", "bad", "masks"),
    [
        ("Gutteile", "Schlechtteile", "Masken"),
        ("bueno", "malo", "máscaras"),
        ("bon", "Défaut", "masques"),
        ("conforme", "non_conforme", "masque"),
        ("buoni", "difettosi", "maschere"),
        ("良品", "不良品", "mask"),
        ("合格", "不合格", "mask"),
        ("正常", "异常", "mask"),
    ],
)
def test_other_languages(good: str, bad: str, masks: str) -> None:
    assert [meaning(name) for name in (good, bad, masks)] == ["good", "bad", "mask"]


def test_what_may_be_good() -> None:
    assert [may_be_good(name) for name in ("good_rotated", "ok left")] == [True, True]
    assert not any(may_be_good(name) for name in ("good", "not_ok_left", "abnormal_x", "scratch"))

from __future__ import annotations

from collections.abc import Callable

import pytest

from blemish.data import names
from blemish.data.names import is_binary, is_series, mask_owner, meaning

PARTS = """
cam1|cam2 CamA|CamB 2024-05-01|2024-06 mon|fri batch_3|4 SN-12AB7|SN-99XY1 inside|outside
top-view|side_view Gehäuse-links|Gehäuse-rechts Frühschicht|Spätschicht red|blue
light_on|light_off pos1|pos2
"""
KINDS = """
scratch|dent cam1|lens1 monday|alpha smear_2024|hair_2024 red|smear small_smear|large_smear
"""


@pytest.mark.parametrize(
    ("said", "called"),
    [
        ("good", "good|GOODS|OK|normal_dir|Normal images|i.O.|pass|test_good|defect-free"),
        ("bad", "bad|NG|n_ok|not ok|abnormal_dir|anomalous|N.i.O.|fail|broken|bad_test 2"),
        (
            "mask",
            "mask|Masks|GT|ground_truth|GroundTruth|labels|mask_dir|NG_mask|SegmentationClass",
        ),
        ("split", "train|Validation|test_images"),
        ("images", "images|Imgs|RGB|data"),
        ("unclear", "yes|no|positive|Negatives"),
        (
            "",
            "pos1|dev 2|scratch|missing_label|color|Monday|001|goodyear|masking|scratch_mask|okra",
        ),
        ("good", "Gutteile|bueno|bon|conforme|buoni|良品|合格|正常"),
        ("bad", "Schlechtteile|malo|Défaut|non_conforme|difettosi|不良品|不合格|异常"),
        ("mask", "Masken|máscaras|masques|maschere"),
    ],
)
def test_meaning(said: str, called: str) -> None:
    these = called.split("|")
    assert {name: meaning(name) for name in these} == dict.fromkeys(these, said)


def test_whose_masks_a_folder_holds() -> None:
    owners = {
        **{"masks": "", "scratch_mask": "scratch", "mask-scratch": "scratch"},
        **{"ground_truth_dent": "dent", "scratch": None, "label_dent": None, "masked": None},
    }
    assert {name: mask_owner(name) for name in owners} == owners


@pytest.mark.parametrize(
    ("says", "these", "not_these"),
    [
        (
            names.says_bad,
            "test_bad NG2024 not_ok masks scratches defects_left",
            "no_defects good not_bad monday badge ungood",
        ),
        (
            names.file_says_bad,
            "000_NG ng-12 img(broken) scratch 000_mask",
            "000 SN12NG7 no_defect_3 ok_1 not_bad",
        ),
        (names.may_be_good, "good_rotated ok-left", "good not_ok_left abnormal_x scratch"),
    ],
)
def test_what_names_say(says: Callable[[str], bool], these: str, not_these: str) -> None:
    assert [name for name in f"{these} {not_these}".split() if says(name)] == these.split()


@pytest.mark.parametrize("pair", PARTS.split())
def test_parts_of_one_collection(pair: str) -> None:
    assert is_series(pair.split("|"))


@pytest.mark.parametrize("pair", KINDS.split())
def test_kinds_of_defects_are_no_parts_of_one_collection(pair: str) -> None:
    assert not is_series(pair.split("|"))


def test_names_that_are_classes() -> None:
    assert all(map(is_binary, (["0", "1"], ["class_1", "class_0"], ["Label 0", "Label 1"])))
    others = (["1", "2"], ["0", "1", "2"], ["cam0", "cam1"], ["0"], ["000", "001"])
    assert not any(map(is_binary, others))

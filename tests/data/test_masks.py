"""Masks wherever people keep them: found, paired with their pictures, never taken for pictures."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest
from trees import lay_out

from blemish.data.checking import check
from blemish.data.layouts import Dataset, read
from blemish.data.marks import read_mask
from blemish.data.masks import MaskPlace
from blemish.data.pictures import labelled_defects
from blemish.detector.predict import Detector
from blemish.errors import DataError
from blemish.types import Sample

Draw = Callable[..., np.ndarray]
Write = Callable[[Path, np.ndarray], Path]
Run = Callable[..., tuple[int, str, str]]
GOOD, BAD = 3, 4  # pictures of each in a small tree

# (good pictures, defective ones, masks): a name for each, of the number {}
KEPT = {
    "beside": ("OK/{}.png", "NG/{}.png", "MASK/{}.png"),
    "inside": ("good/{}.png", "bad/{}.png", "bad/masks/{}.png"),
    "two inside": ("good/{}.png", "bad/images/{}.jpg", "bad/masks/{}.png"),
    "by suffix": ("good/{}.png", "bad/{}.png", "bad/{}_mask.png"),
    "by suffix of labels": ("good/{}.png", "bad/{}.jpg", "bad/{}-label.bmp"),
    "by prefix": ("good/{}.png", "bad/{}.png", "bad/mask_{}.png"),
    "both by suffix": ("good/{}.png", "bad/{}_img.png", "bad/{}.gt.png"),
    "by extension": ("good/{}.jpg", "bad/{}.jpg", "bad/{}.png"),
    "mirrored": ("good/{}.png", "scratch/{}.png", "masks/scratch/{}.png"),
    "mirrored with images": ("images/good/{}.png", "images/bad/{}.png", "labels/bad/{}.tif"),
    "ground truth": ("good/{}.png", "scratch/{}.png", "ground_truth/scratch/{}_mask.png"),
    "in upper case": ("GOOD/{}.png", "Scratch/P{}.PNG", "GT/SCRATCH/p{}_Mask.PNG"),
    "called after the defects": ("ok/{}.png", "NG/{}.png", "NG_mask/{}.png"),
    "called after a kind": ("ok/{}.png", "scratch/{}.png", "scratch masks/{}.png"),
    "of another word for bad": ("normal_dir/{}.png", "abnormal_dir/{}.png", "mask_dir/bad/{}.png"),
    "numbered": ("good/{}.png", "bad/{}.png", "masks/bad/{}_1.png"),
    "in a folder of the picture's": ("good/{}.png", "bad/{}.png", "ground_truth/bad/{}/000.png"),
    "in another language": ("Gutteile/{}.png", "Schlechtteile/{}.png", "Masken/{}.png"),
    "deeper": ("good/a/{}.png", "bad/b/{}.png", "bad/masks/b/{}.png"),
    "mvtec": ("train/good/{}.png", "test/bad/{}.png", "ground_truth/bad/{}_mask.png"),
    "mvtec in the test": ("train/good/{}.png", "test/bad/{}.png", "test/ground_truth/bad/{}.png"),
    "mvtec inside": ("train/good/{}.png", "test/bad/images/{}.png", "test/bad/masks/{}.png"),
}


@pytest.fixture
def tree(tmp_path: Path, picture: Draw, write: Write) -> Callable[..., Path]:
    """`tree(good, bad, mask)`: pictures and masks under names such as OK/{}.png; None = none of
    these.
    """

    def make(
        good: str | None, bad: str | None, mask: str | None, *, root: Path | None = None
    ) -> Path:
        root = root or tmp_path / "part"
        for number in range(GOOD if good else 0):
            write(root / str(good).format(number), picture(number))
        for number in range(BAD):
            if bad:
                write(root / bad.format(number), picture(100 + number, defect=True))
            if mask:
                write(root / mask.format(number), square(number))
        return root

    return make


def square(number: int) -> np.ndarray:
    """A mask of the size of a part, another one for each number."""
    mask = np.zeros((64, 64), np.uint8)
    mask[40 : 45 + number, 8:20] = 255
    return mask


def masks_of(dataset: Dataset) -> dict[str, int]:
    """Of each anomalous picture, by its stem, how many pixels its mask marks."""
    return {
        s.path.stem.lower(): int(read_mask(s).sum())
        for s in dataset.anomalies()
        if s.mask is not None
    }


@pytest.mark.parametrize("names", KEPT.values(), ids=KEPT)
def test_masks_are_found_and_are_no_pictures(
    names: tuple[str, str, str], tree: Callable[..., Path]
) -> None:
    dataset = read(tree(*names))
    assert (len(dataset.normals()), len(dataset.anomalies())) == (GOOD, BAD)
    assert len({sample.defect for sample in dataset.anomalies()}) == 1
    assert list(masks_of(dataset).values()) == [
        int((square(number) > 0).sum()) for number in range(BAD)
    ]
    assert dataset.problems == ()
    (place,) = dataset.mask_places
    assert (place.masks, place.paired, place.unpaired) == (BAD, BAD, ())


def test_masks_are_not_scored_as_new_pictures(
    tree: Callable[..., Path], run: Run, tmp_path: Path, fitted: Callable[..., Detector]
) -> None:
    root = tree("good/{}.png", "bad/{}.png", "bad/{}_mask.png")
    tree(None, None, "ground_truth/bad/{}.png", root=root)
    tree(None, None, "ground_truth/seg{}.png", root=root)  # of no picture
    artifact = fitted().save(tmp_path / "part.blemish")
    out = run("predict", artifact, root)[1]
    assert f"{GOOD + BAD} scored: " in out
    assert f"  notice: {3 * BAD} masks left out: {root / 'bad/0_mask.png'}, " in out
    named = (root / "bad").glob("*_mask.png")
    assert f"{BAD} scored: " in run("predict", artifact, *named)[1]
    for command in (("data", "check", root), ("evaluate", artifact, root)):
        assert f"  notice: {BAD} masks without a picture: " in run(*command)[1]


def test_masks_of_good_pictures_are_not_asked_for(tree: Callable[..., Path], write: Write) -> None:
    root = tree("OK/{}.png", "NG/{}.png", "MASK/NG/{}.png")
    for number in range(GOOD):
        write(root / f"MASK/OK/{number}.png", np.zeros((64, 64), np.uint8))
    write(root / "MASK/OK/9.png", np.zeros((64, 64), np.uint8))  # of a picture that is not here
    dataset = read(root)
    assert dataset.mask_places == (
        MaskPlace(place="MASK/", masks=BAD + GOOD + 1, paired=BAD, of_good=GOOD + 1, unpaired=()),
    )
    assert len(dataset.samples) == GOOD + BAD
    assert dataset.problems == ()


def test_several_masks_of_a_picture_count_together(tree: Callable[..., Path], write: Write) -> None:
    root = tree("good/{}.png", "bad/{}.png", "masks/{}_mask_1.png")
    more = np.zeros((64, 64), np.uint8)
    more[:2, :3] = 255
    for number in range(BAD):
        write(root / f"masks/{number}_mask_2.png", more)
    dataset = read(root)
    assert {len(sample.masks) for sample in dataset.anomalies()} == {2}
    assert list(masks_of(dataset).values()) == [
        int((square(number) > 0).sum()) + 6 for number in range(BAD)
    ]
    write(root / "masks/0_mask_2.png", np.zeros((32, 32), np.uint8))
    (fault,) = check(root).mask_faults
    assert fault.source == str(root / "masks/0_mask_2.png")
    assert fault.reason.startswith("is 32×32 pixels, and 0_mask_1.png")


def test_masks_saved_as_jpeg_or_with_soft_edges_are_masks(
    tree: Callable[..., Path], write: Write
) -> None:
    root = tree("good/{}.png", "bad/{}.png", "bad/masks/{}.jpg")
    write(root / "bad/masks/0.jpg", cv2.GaussianBlur(square(0), (3, 3), 0))
    assert len(masks_of(read(root))) == BAD


@pytest.mark.parametrize(
    "masks", ["defect_map", "binary_masks", "bad/pixel labels", "target/bad", "test/target"]
)
@pytest.mark.parametrize("called", ["{}.png", "{}_mask.png"])
def test_masks_under_any_name_are_told_by_their_looks(
    masks: str, called: str, tree: Callable[..., Path]
) -> None:
    good, bad = ("train/good", "test/bad") if masks.startswith("test/") else ("good", "bad")
    dataset = read(tree(f"{good}/{{}}.png", f"{bad}/{{}}.png", f"{masks}/{called}"))
    assert len(masks_of(dataset)) == len(dataset.anomalies()) == BAD
    (place,) = dataset.mask_places
    assert (place.masks, place.paired) == (BAD, BAD)
    assert dataset.problems == (
        f"{place.place} holds black and white pictures, called as the others are: taken for masks "
        "of these",
    )


def test_masks_of_several_kinds_in_a_folder_of_any_name(
    tree: Callable[..., Path], write: Write
) -> None:
    root = tree("good/{}.png", "dent/{}.png", "stuff/dent/{}_mask.png")
    for number in range(BAD):  # with soft edges: their name says what they are
        soft = cv2.GaussianBlur(square(number), (3, 3), 0)
        write(root / f"stuff/dent/{number}_mask.png", soft)
    tree(None, "scratch/{}.png", "stuff/scratch/{}_mask.png", root=root)
    (place,) = read(root).mask_places
    assert (place.place, place.masks, place.paired) == ("stuff/", 2 * BAD, 2 * BAD)
    (root / "dent/0.png").unlink()  # a mask of no picture: nothing tells whose the others are
    (root / "scratch/0.png").unlink()
    dataset = read(root)
    assert {sample.defect for sample in dataset.anomalies()} == {"dent", "scratch"}
    assert dataset.problems[0].startswith(f"{2 * BAD} masks without a picture: ")


def test_defects_that_look_like_masks_stay_pictures(
    tree: Callable[..., Path], write: Write
) -> None:
    root = tree("good/{}.png", "bad/{}.png", None)
    white = np.full((16, 16), 255, np.uint8)
    looks = {
        "covered": np.zeros((32, 32, 3), np.uint8),  # a lens cap
        "overexposed": np.pad(white, 8, constant_values=9),
    }
    for number in range(BAD):
        for kind, pixels in looks.items():
            write(root / kind / f"{number}.png", pixels)
        write(root / f"test chart/x{number}.png", np.pad(white, 8))
    dataset = read(root)
    assert {sample.defect for sample in dataset.anomalies()} == {"bad", "test chart", *looks}
    assert not dataset.has_masks


def test_a_defect_that_is_called_label_stays_one(
    tree: Callable[..., Path], picture: Draw, write: Write
) -> None:
    root = tree("good/{}.png", "scratch/{}.png", None)
    tree(None, "label/{}.png", None, root=root)
    for _ in range(2):
        dataset = read(root)
        assert {sample.defect for sample in dataset.anomalies()} == {"scratch", "label"}
        assert dataset.problems == ("label/ holds pictures, not masks: taken for a kind of defect",)
        assert not dataset.has_masks
        for number in range(BAD):
            pixels = picture(number)
            pixels[:45] = 0  # 70 % of it
            write(root / f"label/{number}.png", pixels)


def test_pictures_of_a_label_beside_those_of_the_part_stay_pictures(
    tree: Callable[..., Path],
) -> None:
    root = tree("good/{}.png", "bad/{}.png", None)
    tree(None, "bad/{}_label.png", None, root=root)
    tree(None, "bad/{}_mask.png", None, root=root)
    tree("good/label/{}.png", None, None, root=root)
    dataset = read(root)
    assert (len(dataset.normals()), len(dataset.anomalies())) == (2 * GOOD, 3 * BAD)


def test_what_may_be_masks_or_pictures_is_refused(
    tree: Callable[..., Path], tmp_path: Path, write: Write
) -> None:
    root = tree("good/{}.png", "scratch/{}.png", None)
    tree(None, "mask/{}.png", None, root=root)
    with pytest.raises(
        DataError, match=r"says masks, but it holds pictures \(as 0\.png\); .*rename"
    ):
        read(root)
    root = tmp_path / "black and white"
    for number in range(3):
        for shift, kind in enumerate(("good", "bad", "labels")):
            write(root / kind / f"{number}.png", square(number + 3 * shift))
    with pytest.raises(
        DataError, match=r"labels: .* either masks or black and white pictures .* called masks/"
    ):
        read(root)
    (root / "labels").rename(root / "masks")
    assert [len(sample.masks) for sample in read(root).anomalies()] == [1, 1, 1]


def test_a_mask_that_may_be_of_two_pictures_is_refused(tree: Callable[..., Path]) -> None:
    root = tree("good/{}.png", "scratch/{}.png", "masks/{}.png")
    tree(None, "scratch/{}.jpg", None, root=root)  # one picture in two formats
    assert [sample.mask for sample in read(root).anomalies()[:2]] == [root / "masks/0.png"] * 2
    tree(None, "dent/{}.png", None, root=root)
    with pytest.raises(
        DataError, match=r"masks/0\.png: may be the mask of .*dent/0\.png, .*scratch/0\.jpg.*; put"
    ):
        read(root)


def test_a_lone_mask_beside_pictures_is_none_of_them(
    tree: Callable[..., Path], write: Write
) -> None:
    root = tree("good/{}.png", "bad/{}.png", None)
    write(root / "bad/of_all_mask.png", square(0))
    dataset = read(root)
    assert len(dataset.anomalies()) == BAD
    assert dataset.problems == (f"1 mask without a picture: {root / 'bad/of_all_mask.png'}",)


def test_a_broken_mask_is_a_mask_by_its_name(tree: Callable[..., Path]) -> None:
    root = tree("good/{}.png", "bad/{}.png", None)
    lay_out(root, *(f"{name}.png" for i in range(BAD) for name in (f"masks/{i}", f"bad/{i}_mask")))
    assert {len(sample.masks) for sample in read(root).anomalies()} == {2}
    assert len(check(root).mask_faults) == BAD


@pytest.mark.parametrize("mask", ["{}_mask.png", "masks/{}.png"])
def test_masks_say_that_not_all_are_good(mask: str, tree: Callable[..., Path]) -> None:
    with pytest.raises(DataError, match=r"good \(there are masks in (\*_mask|masks/), so"):
        read(tree(None, "{}.png", mask))


def test_known_defects_come_with_their_masks(tree: Callable[..., Path]) -> None:
    root = tree(None, "known/scratch/images/{}.png", "known/scratch/masks/{}.png")
    tree(None, "known/dent/{}.png", "known/dent/{}_mask.png", root=root)
    defects = labelled_defects(root / "known")
    assert [sample.defect for sample in defects.samples] == ["dent"] * BAD + ["scratch"] * BAD
    assert all(sample.mask is not None for sample in defects.samples)
    assert defects.note == f"flat layout: {2 * BAD} pictures, all taken as defective, masks"
    alone = labelled_defects(root / "known/scratch")
    assert [sample.defect for sample in alone.samples] == ["scratch"] * BAD
    (single,) = labelled_defects(root / "known/dent/0.png").samples
    assert single == Sample(path=root / "known/dent/0.png", label=1, defect="dent")

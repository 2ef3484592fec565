"""Data sets looked over: every picture and mask decoded, what is wrong told apart from what is only
for notice.
"""

from __future__ import annotations

import json
import time
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from trees import GOOD_AND_BAD, lay_out

from blemish.data.checking import check
from blemish.errors import ImageError


def write(path: Path, *, size: tuple[int, int] = (6, 8), seed: int | None = None) -> Path:
    """A random picture of (H, W); by default another one for every path."""
    path.parent.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(zlib.crc32(str(path).encode()) if seed is None else seed)
    Image.fromarray(rng.integers(0, 256, (*size, 3), dtype=np.uint8)).save(path)
    return path


def write_mask(path: Path, *, size: tuple[int, int] = (6, 8), marked: int = 4) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    mask = np.zeros(size, dtype=np.uint8)
    mask.flat[:marked] = 255
    Image.fromarray(mask).save(path)
    return path


def test_check_of_a_sound_set(tmp_path: Path) -> None:
    for name in GOOD_AND_BAD:
        write(tmp_path / name, size=(6, 8) if "train" in name else (10, 9))
    for stem in "01":
        write_mask(tmp_path / "ground_truth" / "scratch" / f"{stem}_mask.png", size=(10, 9))
    calls: list[tuple[int, int]] = []
    report = check(tmp_path, progress=lambda done, of: calls.append((done, of)))
    assert report.ok
    assert calls == [(done, 5) for done in range(1, 6)]
    document = report.to_dict()
    assert json.loads(json.dumps(document)) == document
    nothing = ("broken", "mask_faults", "duplicates", "leaks", "contradictions", "problems")
    assert document == {
        "path": str(tmp_path),
        "layout": "mvtec",
        "description": "MVTec layout: 2 train good, 3 test (1 good, 2 in 1 defect type), masks",
        "ok": True,
        "pictures": 5,
        "masks": 2,
        "mask_places": [
            {"place": "ground_truth/", "masks": 2, "paired": 2, "of_good": 0, "unpaired": []}
        ],
        "boxes": 0,
        "counts": {
            "split": {"test": 3, "train": 2},
            "label": {"anomalous": 2, "normal": 3},
            "defect": {"good": 3, "scratch": 2},
            "category": {tmp_path.name: 5},
            "group": {"": 5},
        },
        "height": {"min": 6, "median": 10, "max": 10},
        "width": {"min": 8, "median": 9, "max": 9},
        "sizes": [{"height": 10, "width": 9, "count": 3}, {"height": 6, "width": 8, "count": 2}],
        **{key: [] for key in nothing},
    }


def test_check_finds_twins_and_says_what_they_contradict(tmp_path: Path) -> None:
    kinds = {
        "leaks": ("test/good/0.png", "train/good/0.png"),
        "duplicates": ("test/scratch/0.png", "test/scratch/1.png"),
        "contradictions": ("test/scratch/2.png", "train/good/2.png"),
    }
    for seed, names in enumerate(kinds.values()):
        for name in names:
            write(tmp_path / name, seed=seed)
    write(tmp_path / "train/good/1.png")
    report = check(tmp_path)
    for kind, names in kinds.items():
        assert getattr(report, kind) == (tuple(str(tmp_path / name) for name in names),)


@pytest.mark.parametrize("kind", [("train/good", "test/good"), ("train/good", "test/scratch")])
def test_a_leak_or_a_contradiction_alone_is_not_sound(
    tmp_path: Path, kind: tuple[str, str]
) -> None:
    for folder in kind:
        write(tmp_path / folder / "0.png", seed=0)
    assert not check(tmp_path).ok
    write(tmp_path / kind[1] / "0.png", seed=1)
    assert check(tmp_path).ok


def test_check_lists_broken_pictures_with_the_reason(tmp_path: Path) -> None:
    write(tmp_path / "0.png")
    (tmp_path / "1.png").write_text("no picture at all")
    Image.fromarray(np.full((6, 8), np.nan, np.float32)).save(tmp_path / "2.tif")
    report = check(tmp_path)
    first, second = report.broken
    assert (first.source, second.source) == (str(tmp_path / "1.png"), str(tmp_path / "2.tif"))
    assert first.reason
    assert second.reason.startswith("holds NaN")
    assert report.sizes == {(6, 8): 1}
    assert not report.ok
    (tmp_path / "0.png").write_bytes(b"")
    document = check(tmp_path).to_dict()
    assert (document["height"], len(document["broken"])) == (None, 3)


def test_check_finds_faulty_masks(tmp_path: Path) -> None:
    labels = {"fine": 1, "wide": 1, "large": 1, "near": 1, "void": 1, "spoilt": 1, "marked": 0}
    sizes = {"wide": (6, 10), "large": (12, 16), "near": (3, 5)}  # by the rounding of a side
    rows = ["path,label,mask"]
    for stem, label in {**labels, "clear": 0}.items():
        write(tmp_path / f"{stem}.png")
        marked = 0 if stem in ("void", "clear") else 4
        write_mask(tmp_path / f"{stem}_mask.png", size=sizes.get(stem, (6, 8)), marked=marked)
        rows.append(f"{stem}.png,{label},{stem}_mask.png")
    (tmp_path / "spoilt_mask.png").write_bytes(b"")
    (tmp_path / "set.csv").write_text("\n".join(rows))
    report = check(tmp_path / "set.csv")
    reasons = {Path(each.source).stem.removesuffix("_mask"): each for each in report.mask_faults}
    assert reasons.pop("spoilt").reason
    assert {stem: each.reason for stem, each in reasons.items()} == {
        "wide": "is 6×10 pixels, its picture 6×8; in another shape, it is stretched over it",
        "large": "is 12×16 pixels, its picture 6×8",
        "near": "is 3×5 pixels, its picture 6×8",
        "void": "is empty, but its picture is anomalous",
        "marked": "marks something, but its picture is normal",
    }
    assert not report.ok


def test_check_decodes_nothing_more_once_it_is_interrupted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lay_out(tmp_path, *(f"{index}.png" for index in range(300)))
    decoded: list[Path] = []

    def decode_slowly(path: Path) -> None:
        decoded.append(path)
        time.sleep(0.01)
        raise ImageError(path, "is slow")

    def interrupt(done: int, of: int) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("blemish.data.checking.decode", decode_slowly)
    with pytest.raises(KeyboardInterrupt):
        check(tmp_path, progress=interrupt)
    assert 0 < len(decoded) < 150

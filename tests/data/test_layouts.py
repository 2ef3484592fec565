from __future__ import annotations

import dataclasses
import json
import time
import zlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from blemish.data.checking import check
from blemish.data.layouts import Dataset, read
from blemish.data.manifest import write_manifest
from blemish.errors import DataError, ImageError, OutputError
from blemish.types import ANOMALOUS, NORMAL, Sample

GOOD_AND_BAD = ("train/good/0.png", "train/good/1.png", "test/good/0.png", "test/scratch/0.png", "test/scratch/1.png")


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


def lay_out(root: Path, *names: str) -> Path:
    """Empty files: reading a layout decodes nothing."""
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    return root


def labels(dataset: Dataset) -> dict[str, int | None]:
    return {str(sample.path.relative_to(dataset.root)): sample.label for sample in dataset.samples}


def test_mvtec(tmp_path: Path) -> None:
    masks = ["ground_truth/scratch/0_mask.png", "ground_truth/scratch/1.png"]
    root = lay_out(tmp_path / "bolt", *GOOD_AND_BAD, "test/hole/0.png", "ground_truth/hole/0_mask.png", *masks)
    dataset = read(root)
    assert dataset.layout == "mvtec"
    assert dataset.description == "MVTec layout: 2 train good, 4 test (1 good, 3 in 2 defect types), masks"
    assert labels(dataset) == {name: int("good" not in name) for name in (*GOOD_AND_BAD, "test/hole/0.png")}
    assert [sample.path.parent.name for sample in dataset.train()] == ["good", "good"]
    assert len(dataset.test()) == 4
    assert len(dataset.normals()) == 3
    assert {sample.defect for sample in dataset.normals()} == {"good"}
    assert {sample.defect: sample.mask for sample in dataset.anomalies() if sample.path.stem == "0"} == {
        "scratch": root / masks[0],
        "hole": root / "ground_truth/hole/0_mask.png",
    }
    assert dataset.samples[-1].mask is None  # train/good
    assert dataset.anomalies()[-1].mask == root / masks[1]
    assert dataset.categories == ("bolt",)
    assert dataset.has_masks
    assert dataset.problems == ()


def test_mvtec_without_masks_and_in_other_cases(tmp_path: Path) -> None:
    dataset = read(lay_out(tmp_path, "Train/OK/0.PNG", "Test/ok/0.PNG", "Test/Dent/0.PNG"))
    assert dataset.description == "MVTec layout: 1 train good, 2 test (1 good, 1 in 1 defect type), no masks"
    assert not dataset.has_masks
    assert dataset.anomalies()[0].defect == "Dent"
    assert dataset.problems == ()


def test_mvtec_category_of_the_folder_one_is_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(lay_out(tmp_path / "bolt", *GOOD_AND_BAD))
    assert read(".").categories == ("bolt",)


def test_mvtec_with_a_test_only(tmp_path: Path) -> None:
    dataset = read(lay_out(tmp_path, "test/good/0.png", "test/scratch/0.png", "ground_truth/scratch/0_mask.png"))
    assert (dataset.layout, dataset.train(), len(dataset.test())) == ("mvtec", (), 2)
    assert dataset.has_masks


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
    assert len(dataset.samples) == 5
    empty, strays, unused, bare = dataset.problems[1:]
    assert dataset.problems[0].startswith("2 files with other suffixes ignored: ")
    assert empty == "test/hole/ holds no pictures"
    assert strays.startswith("3 pictures outside of the layout's folders ignored: ")
    assert all(name in strays for name in ("train/scratch/5.png", "test/scratch/more/6.png", "test/loose.png"))
    assert unused == f"1 mask without a picture: {root / 'ground_truth/scratch/9_mask.png'}"
    assert bare == f"1 anomalous picture without a mask: {root / 'test/scratch/1.png'}"
    assert next(sample for sample in dataset.anomalies() if sample.path.stem == "1").mask is None


def test_mvtec_with_pictures_a_level_too_deep_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="names no picture"):
        read(lay_out(tmp_path, "train/good/left/0.png", "train/good/right/0.png"))


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
    root = lay_out(tmp_path, *(f"{category}/{name}" for category in ("nut", "bolt") for name in GOOD_AND_BAD))
    lay_out(root, "nut/ground_truth/scratch/0_mask.png", "notes/page.png")
    (root / "bolt" / "test" / "hole").mkdir()
    dataset = read(root)
    assert dataset.layout == "mvtec-root"
    assert dataset.description == (
        "MVTec layout in 2 categories: 4 train good, 6 test (2 good, 4 in 1 defect type), masks"
    )
    assert dataset.categories == ("bolt", "nut")
    assert {sample.category for sample in dataset.samples if sample.mask} == {"nut"}
    assert "bolt: test/hole/ holds no pictures" in dataset.problems
    assert f"1 picture outside of the MVTec folders ignored: {root / 'notes/page.png'}" in dataset.problems


@pytest.mark.parametrize("good", ["good", "OK", "Normal"])
def test_good_beside_defects(tmp_path: Path, good: str) -> None:
    root = lay_out(tmp_path, f"{good}/a/0.png", f"{good}/1.png", "scratch/b/0.png", "hole/0.jpg", "loose.png")
    lay_out(root, "ground_truth/scratch/b/0_mask.png")
    dataset = read(root)
    assert dataset.layout == "good-and-defects"
    assert dataset.description == ("good/ beside defect folders: 4 pictures (2 good, 2 in 2 defect types), masks")
    assert labels(dataset) == {f"{good}/a/0.png": 0, f"{good}/1.png": 0, "scratch/b/0.png": 1, "hole/0.jpg": 1}
    assert {sample.defect: sample.mask for sample in dataset.samples} == {
        "good": None,
        "hole": None,
        "scratch": root / "ground_truth/scratch/b/0_mask.png",
    }
    assert {sample.split for sample in dataset.samples} == {""}
    assert dataset.train() == dataset.test() == ()
    assert dataset.problems == (
        f"1 picture outside of the layout's folders ignored: {root / 'loose.png'}",
        f"1 anomalous picture without a mask: {root / 'hole/0.jpg'}",
    )


def test_flat(tmp_path: Path) -> None:
    dataset = read(lay_out(tmp_path, "monday/0.png", "1.png", "labels.csv"))
    assert dataset.layout == "flat"
    assert dataset.description == "flat layout: 2 pictures, all taken as good"
    assert labels(dataset) == {"1.png": 0, "monday/0.png": 0}
    assert {(sample.split, sample.category, sample.defect) for sample in dataset.samples} == {("", "", "good")}
    assert dataset.categories == ()
    assert any("manifest only when it is named" in problem for problem in dataset.problems)


def test_one_picture(tmp_path: Path) -> None:
    root = lay_out(tmp_path, "part.png")
    dataset = read(root / "part.png")
    assert (dataset.layout, [sample.path for sample in dataset.samples]) == ("flat", [root / "part.png"])


@pytest.mark.parametrize(
    "names",
    [
        ["train/0.png"],
        ["train/0.png", "good/0.png"],
        ["train/scratch/0.png", "test/good/0.png"],
        ["test/scratch/0.png"],
        ["ground_truth/scratch/0.png", "0.png"],
        ["0.png", "Defective/0.png"],
        ["monday/bad/0.png", "monday/0.png"],
        ["yes/0.png", "no/0.png"],
        ["NO/0.png", "perhaps/0.png"],
        ["bolt/good/0.png", "bolt/scratch/0.png"],
        ["sets/bolt/train/good/0.png"],
    ],
)
def test_pictures_that_may_not_all_be_good_are_never_taken_as_good(tmp_path: Path, names: list[str]) -> None:
    with pytest.raises(DataError, match=r"which pictures are good(?s:.*)good-and-defects(?s:.*)TABLE\.csv"):
        read(lay_out(tmp_path, *names))


def test_nothing_to_read(tmp_path: Path) -> None:
    for name in ("absent", "x" * 5000):
        with pytest.raises(DataError, match=f"{name}: no such"):
            read(tmp_path / name)
    (tmp_path / "train" / "good").mkdir(parents=True)
    with pytest.raises(DataError, match=r"no pictures found.*\.png"):
        read(tmp_path)


def manifest(folder: Path, text: str, encoding: str = "utf-8") -> Path:
    path = lay_out(folder, "a.png", "b.png", "c.png", "sub/d.png", "m.png") / "set.csv"
    path.write_bytes(text.encode(encoding))
    return path


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig"])
@pytest.mark.parametrize("newline", ["\n", "\r\n"])
@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
def test_manifest(tmp_path: Path, delimiter: str, newline: str, encoding: str) -> None:
    rows = [
        "Path, label ,mask,split,category,defect",
        "a.png,0,,train,bolt,",
        "b.png,Good,,TEST,bolt,good",
        "c.png,nok,m.png,test,bolt,Kratzer-ß",
        ",,,,,",
        "",
        '"sub/d.png",,,,nut,',
    ]
    path = manifest(tmp_path, newline.join(rows).replace(",", delimiter), encoding)
    dataset = read(path)
    assert dataset.layout == "manifest"
    assert dataset.samples == (
        Sample(path=tmp_path / "a.png", label=0, split="train", category="bolt", defect="good"),
        Sample(path=tmp_path / "b.png", label=0, split="test", category="bolt", defect="good"),
        Sample(
            path=tmp_path / "c.png",
            label=1,
            mask=tmp_path / "m.png",
            split="test",
            category="bolt",
            defect="Kratzer-ß",
        ),
        Sample(path=tmp_path / "sub/d.png", category="nut"),
    )
    assert dataset.description == (
        "manifest: 1 train good, 2 test (1 good, 1 in 1 defect type), 1 picture (1 of unknown label), masks"
    )
    assert dataset.problems == ()


@pytest.mark.parametrize(
    ("words", "label"),
    [
        (["0", "0.0", "normal", "good", "OK"], NORMAL),
        (["1", "1.0", "Anomalous", "bad", "defective", "NOK"], ANOMALOUS),
        (["", " "], None),
    ],
)
def test_manifest_labels(tmp_path: Path, words: list[str], label: int | None) -> None:
    for word in words:
        (sample,) = read(manifest(tmp_path, f"path,label\na.png,{word}\n")).samples
        assert sample.label == label


def test_manifest_with_paths_only_and_unknown_columns(tmp_path: Path) -> None:
    dataset = read(manifest(tmp_path, f"path,camera\n{tmp_path / 'a.png'},3\nb.png\n"))
    assert [sample.path for sample in dataset.samples] == [tmp_path / "a.png", tmp_path / "b.png"]
    assert dataset.problems == ("columns not known and not read: camera",)


def test_manifest_problem_of_missing_masks(tmp_path: Path) -> None:
    dataset = read(manifest(tmp_path, "path,label,mask\na.png,1,m.png\nb.png,1,\n"))
    assert dataset.problems == (f"1 anomalous picture without a mask: {tmp_path / 'b.png'}",)


def test_manifest_rows_that_cannot_be_used_are_listed_together(tmp_path: Path) -> None:
    rows = [
        "a.png,0,,,",
        "absent.png,0,,,",
        "b.png,maybe,,,",
        "c.png,1,absent_mask.png,,",
        "m.png,1,,validation,",
        ",1,,,",
        "a.png,0,,,",
        "b.png,0,,,scratch",
        "c.png,1,,,good",
        "b.png,0,,,good,too much",
    ]
    with pytest.raises(DataError) as caught:
        read(manifest(tmp_path, "\n".join(["path,label,mask,split,defect", *rows])))
    head, *lines = str(caught.value).split("\n  ")
    assert head == f"{tmp_path / 'set.csv'}: 9 rows cannot be used:"
    assert [line.split(":")[0] for line in lines] == [f"line {number}" for number in range(3, 12)]
    words = ["no file", "'maybe'", "no mask file", "'validation'", "path is empty", "already on line 2"]
    words += ["contradict", "contradict", "6 cells under 5 columns"]
    assert all(word in line for word, line in zip(words, lines, strict=True))


def test_manifest_lists_ten_bad_rows_and_counts_the_others(tmp_path: Path) -> None:
    rows = "".join(f"absent{index}.png\n" for index in range(13))
    with pytest.raises(DataError, match=r"13 rows(?s:.*)absent9\.png\n  and 3 more$"):
        read(manifest(tmp_path, f"path\n{rows}"))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "column path"),
        (b"file,label\na.png,0\n", "column path"),
        (b"path,path\na.png,a.png\n", "no column twice"),
        (b"path\n", "names no picture"),
        (b"path\n\xff\xfe.png\n", "UTF-8"),
        (b"path\n" + b"x" * 200_000, "line 2 is not CSV"),
    ],
)
def test_tables_that_are_no_manifest(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "set.csv"
    path.write_bytes(content)
    with pytest.raises(DataError, match=message) as caught:
        read(path)
    assert "set.csv" in str(caught.value)


cells = st.text(st.characters(exclude_categories=["Cc", "Cs"]), max_size=8).map(str.strip)


@settings(max_examples=30, deadline=None, derandomize=True)
@given(
    rows=st.lists(
        st.builds(
            Sample,
            path=st.just(Path("a.png")),
            label=st.sampled_from([ANOMALOUS, None]),
            mask=st.sampled_from([None, Path("m.png")]),
            split=st.sampled_from(["train", "test", ""]),
            category=cells,
            defect=cells.filter(lambda text: text.lower() not in {"good", "ok", "normal"}),
            group=cells,
        ),
        min_size=1,
        max_size=3,
    )
)
def test_a_manifest_is_read_as_it_was_written(tmp_path_factory: pytest.TempPathFactory, rows: list[Sample]) -> None:
    folder = lay_out(tmp_path_factory.mktemp("set"), *(f"{index}, a;b.png" for index in range(len(rows))), "m.png")
    samples = [
        dataclasses.replace(row, path=folder / f"{index}, a;b.png", mask=row.mask and folder / row.mask)
        for index, row in enumerate(rows)
    ]
    assert read(write_manifest(folder / "set.csv", samples)).samples == tuple(samples)


def test_a_manifest_replaces_the_old_one_or_leaves_it(tmp_path: Path) -> None:
    path = manifest(tmp_path, "path\nb.png\n")
    write_manifest(path, [Sample(path=Path("a.png"), label=NORMAL)])
    assert [sample.path.name for sample in read(path).samples] == ["a.png"]
    assert not [entry for entry in tmp_path.iterdir() if entry.name.startswith(".")]
    (tmp_path / "folder.csv").mkdir()
    with pytest.raises(OutputError, match=r"folder\.csv"):
        write_manifest(tmp_path / "folder.csv", [])
    assert not [entry for entry in tmp_path.iterdir() if entry.name.startswith(".")]


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
    assert document == {
        "path": str(tmp_path),
        "layout": "mvtec",
        "description": "MVTec layout: 2 train good, 3 test (1 good, 2 in 1 defect type), masks",
        "ok": True,
        "pictures": 5,
        "masks": 2,
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
        "broken": [],
        "mask_faults": [],
        "duplicates": [],
        "leaks": [],
        "problems": [],
    }


def test_check_finds_twins_within_and_across_the_splits(tmp_path: Path) -> None:
    seeds = {"train/good/0.png": 1, "train/good/1.png": 2, "test/good/0.png": 1, "test/scratch/0.png": 3}
    for name, seed in (seeds | {"test/scratch/1.png": 3}).items():
        write(tmp_path / name, seed=seed)
    report = check(tmp_path)
    assert report.leaks == ((str(tmp_path / "test/good/0.png"), str(tmp_path / "train/good/0.png")),)
    assert report.duplicates == ((str(tmp_path / "test/scratch/0.png"), str(tmp_path / "test/scratch/1.png")),)
    assert not report.ok


def test_check_lists_broken_pictures_with_the_reason(tmp_path: Path) -> None:
    write(tmp_path / "good" / "0.png")
    (tmp_path / "good" / "1.png").write_text("no picture at all")
    report = check(tmp_path)
    (failure,) = report.broken
    assert failure.source == str(tmp_path / "good" / "1.png")
    assert failure.reason
    assert report.sizes == {(6, 8): 1}
    assert not report.ok
    (tmp_path / "good" / "0.png").write_bytes(b"")
    document = check(tmp_path).to_dict()
    assert (document["height"], len(document["broken"])) == (None, 2)


def test_check_finds_faulty_masks(tmp_path: Path) -> None:
    rows = ["path,label,mask"]
    for stem, label in [("fine", 1), ("large", 1), ("void", 1), ("spoilt", 1), ("marked", 0), ("clear", 0)]:
        write(tmp_path / f"{stem}.png")
        marked = 0 if stem in ("void", "clear") else 4
        write_mask(tmp_path / f"{stem}_mask.png", size=(6, 9) if stem == "large" else (6, 8), marked=marked)
        rows.append(f"{stem}.png,{label},{stem}_mask.png")
    (tmp_path / "spoilt_mask.png").write_bytes(b"")
    (tmp_path / "set.csv").write_text("\n".join(rows))
    report = check(tmp_path / "set.csv")
    reasons = {Path(failure.source).stem.removesuffix("_mask"): failure.reason for failure in report.mask_faults}
    assert reasons.pop("spoilt")
    assert reasons == {
        "large": "is 6×9 pixels, its picture 6×8",
        "void": "is empty, but its picture is anomalous",
        "marked": "marks something, but its picture is normal",
    }
    assert not report.ok


def test_check_decodes_nothing_more_once_it_is_interrupted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
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

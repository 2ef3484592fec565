"""Tables of pictures: what is read from them, under which names of columns, and what is refused."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from trees import lay_out

from blemish.data.layouts import read
from blemish.data.names import meaning
from blemish.data.tables import write_table
from blemish.errors import DataError, OutputError
from blemish.types import ANOMALOUS, NORMAL, Sample


def manifest(folder: Path, text: str, encoding: str = "utf-8") -> Path:
    path = lay_out(folder, "a.png", "b.png", "c.png", "sub/d.png", "m.png") / "set.csv"
    path.write_bytes(text.encode(encoding))
    return path


@pytest.mark.parametrize(
    ("delimiter", "newline", "encoding"),
    [(",", "\n", "utf-8"), (";", "\r\n", "utf-8-sig"), ("\t", "\n", "utf-8-sig")],
)
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
    bolt = {"category": "bolt", "split": "test"}
    assert dataset.samples == (
        Sample(path=tmp_path / "a.png", label=0, split="train", category="bolt", defect="good"),
        Sample(path=tmp_path / "b.png", label=0, defect="good", **bolt),
        Sample(
            path=tmp_path / "c.png", label=1, mask=tmp_path / "m.png", defect="Kratzer-ß", **bolt
        ),
        Sample(path=tmp_path / "sub/d.png", category="nut"),
    )
    assert dataset.description == (
        "manifest: 1 train good, 2 test (1 good, 1 in 1 defect type), "
        "1 picture (1 of unknown label), masks"
    )
    assert dataset.problems == ()


@pytest.mark.parametrize(
    ("words", "label"),
    [
        ("0|0.0|false|normal|good|OK|i.O.|pass|healthy", NORMAL),
        ("1|1.0|TRUE|Anomalous|bad|defective|NOK|NG|abnormal|fail", ANOMALOUS),
        ("| ", None),
    ],
)
def test_manifest_labels(tmp_path: Path, words: str, label: int | None) -> None:
    for word in words.split("|"):
        (sample,) = read(manifest(tmp_path, f"path,label\na.png,{word}\n")).samples
        assert sample.label == label


@pytest.mark.parametrize(
    "column",
    ["image_path", "filename", "File", "image", "Image Path", "img-path", "file_name", "filepath"],
)
def test_manifest_columns_by_other_names(tmp_path: Path, column: str) -> None:
    rows = f"{column};is_anomaly;mask_path;camera\n{tmp_path / 'a.png'};1;m.png;3\nb.png;0;;3\n"
    dataset = read(manifest(tmp_path, rows))
    a, b, mask = (tmp_path / name for name in ("a.png", "b.png", "m.png"))
    assert dataset.samples == (
        Sample(path=a, label=ANOMALOUS, mask=mask),
        Sample(path=b, label=NORMAL, defect="good"),
    )
    assert dataset.problems == ("columns not known and not read: camera",)


@pytest.mark.parametrize(
    ("rows", "unread"),
    [("image,path\nnowhere.png,a.png\n", "image"), ("file,image_path\n7,a.png\n", "file")],
)
def test_the_likeliest_column_names_the_pictures(tmp_path: Path, rows: str, unread: str) -> None:
    dataset = read(manifest(tmp_path, rows))
    assert [sample.path.name for sample in dataset.samples] == ["a.png"]
    assert dataset.problems == (f"columns not known and not read: {unread}",)


def test_manifest_of_windows(tmp_path: Path) -> None:
    text = "sep=;\r\npath;label;mask\r\nsub\\d.png;NG;.\\m.png\r\na.png;OK;\r\nnowhere.png;OK;\r\n"
    with pytest.raises(
        DataError, match=r"1 row cannot be used:\n  line 5: there is no file .*nowhere"
    ):
        read(manifest(tmp_path, text, "utf-8-sig"))
    samples = read(manifest(tmp_path, text.replace("nowhere", "b"), "utf-8-sig")).samples
    assert [sample.path for sample in samples] == [
        tmp_path / name for name in ("sub/d.png", "a.png", "b.png")
    ]
    assert samples[0].mask is not None
    assert samples[0].mask.samefile(tmp_path / "m.png")


def test_a_file_with_a_backslash_in_its_name_is_found(tmp_path: Path) -> None:
    lay_out(tmp_path, "sub\\d.png")
    (sample,) = read(manifest(tmp_path, "path\nsub\\d.png\n")).samples
    assert sample.path == tmp_path / "sub\\d.png"


def test_several_masks_of_a_picture(tmp_path: Path) -> None:
    (sample,) = read(manifest(tmp_path, "path,label,mask\na.png,1,m.png|b.png\n")).samples
    assert sample.masks == (tmp_path / "m.png", tmp_path / "b.png")
    assert read(write_table(tmp_path / "again.csv", [sample])).samples == (sample,)
    with pytest.raises(DataError, match=r"no mask file .*nowhere"):
        read(manifest(tmp_path, "path,label,mask\na.png,1,m.png|nowhere.png\n"))


def test_manifest_rows_that_cannot_be_used_are_listed_together(tmp_path: Path) -> None:
    rows = {
        "a.png,0,,,": "",
        "absent.png,0,,,": "no file",
        "b.png,maybe,,,": "'maybe'",
        "c.png,1,absent_mask.png,,": "no mask file",
        "m.png,1,,validation,": "'validation'",
        ",1,,,": "path is empty",
        "./a.png,0,,,": "already on line 2",
        "b.png,0,,,scratch": "contradict",
        "c.png,1,,,good": "contradict",
        "b.png,0,,,good,too much": "6 cells under 5 columns",
    }
    with pytest.raises(DataError) as caught:
        read(manifest(tmp_path, "\n".join(["path,label,mask,split,defect", *rows])))
    head, *lines = str(caught.value).split("\n  ")
    assert head == f"{tmp_path / 'set.csv'}: 9 rows cannot be used:"
    for number, (line, words) in enumerate(zip(lines, list(rows.values())[1:], strict=True), 3):
        assert line.startswith(f"line {number}:")
        assert words in line


def test_manifest_lists_ten_bad_rows_and_counts_the_others(tmp_path: Path) -> None:
    rows = "".join(f"absent{index}.png\n" for index in range(13))
    with pytest.raises(DataError, match=r"13 rows(?s:.*)absent9\.png\n  and 3 more$"):
        read(manifest(tmp_path, f"path\n{rows}"))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "column path"),
        (b"name,label\na.png,0\n", "column path"),
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
            defect=cells.filter(lambda text: meaning(text) != "good"),
            group=cells,
        ),
        min_size=1,
        max_size=3,
    )
)
def test_a_manifest_is_read_as_it_was_written(
    tmp_path_factory: pytest.TempPathFactory, rows: list[Sample]
) -> None:
    names = [f"{index}, a;b.png" for index in range(len(rows))]
    folder = lay_out(tmp_path_factory.mktemp("set"), *names, "m.png")
    samples = tuple(
        dataclasses.replace(row, path=folder / name, mask=row.mask and folder / row.mask)
        for row, name in zip(rows, names, strict=True)
    )
    assert read(write_table(folder / "set.csv", samples)).samples == samples


def test_a_manifest_replaces_the_old_one_or_leaves_it(tmp_path: Path) -> None:
    path = manifest(tmp_path, "path\nb.png\n")
    write_table(path, [Sample(path=Path("a.png"), label=NORMAL)])
    assert [sample.path.name for sample in read(path).samples] == ["a.png"]
    (tmp_path / "folder.csv").mkdir()
    with pytest.raises(OutputError, match=r"folder\.csv"):
        write_table(tmp_path / "folder.csv", [])
    assert not [entry for entry in tmp_path.iterdir() if entry.name.startswith(".")]

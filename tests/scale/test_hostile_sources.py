"""Names, tables and columns that somebody means ill with, or has made in haste: a sentence each."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from parts import part, write_picture

from blemish.errors import BlemishError, DataError
from blemish.scale import sources
from blemish.scale.places import place_of, read_bytes, write_bytes


@pytest.mark.parametrize(
    ("text", "what"),
    [
        (b"id,path,path\na,b,c\n", "has several columns path"),
        (b"path,x,x\na,b,c\n", "has several columns x"),
        (b"id,path,bytes\na,b,c\n", "its column bytes is string, and the content of files is bin"),
        ("path,x\na,\xe9\n".encode("latin-1"), r"is not in UTF-8 \(byte 9\); save it as CSV in U"),
        ("path\na\n".encode("utf-16"), "is not in UTF-8"),
        (b"path,_file\na,b\n", "its column _file is called as one that blemish adds"),
        (b"path,_pixels\na,b\n", "its column _pixels is called as one that blemish adds"),
        (b"id,path\n,b\n", "1 row without an id"),
    ],
)
def test_csv(text: bytes, what: str, tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_bytes(text)
    with pytest.raises(DataError, match=what) as caught:
        sources.found(path)
    assert str(caught.value).startswith(f"{path}: ")


def test_words_of_a_csv_are_no_gaps(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_text("id,path,x\nNA,NA.png,null\nnan,x.png,\n")
    rows = sources.found(path).rows.select(["id", "x"]).to_pylist()
    assert rows == [{"id": "NA", "x": "null"}, {"id": "nan", "x": None}]


@pytest.mark.parametrize(
    ("names", "values", "what"),
    [
        (["id", "path", "path"], [["a"], ["b"], ["c"]], "has several columns path"),
        (["id", "bytes", "bytes"], [["a"], [b"b"], [b"c"]], "has several columns bytes"),
        (["id", "bytes"], [["a"], ["text"]], "its column bytes is string"),
        (["id", "bytes"], [["a"], [10**12]], "its column bytes is int64"),
        (["id", "bytes"], [["a"], [{"bytes": b"b"}]], "its column bytes is struct"),
        (["id", "bytes", "_row"], [["a"], [b"b"], [1]], "its column _row is called as one"),
        (["path", "_digest"], [["a"], ["b"]], "its column _digest is called as one"),
        (["id", "path"], [["", "b"], ["a", "b"]], "1 row without an id"),
    ],
)
def test_parquet(names: list[str], values: list[Any], what: str, tmp_path: Path) -> None:
    path = tmp_path / "t.parquet"
    pq.write_table(pa.Table.from_arrays([pa.array(each) for each in values], names), path)
    with pytest.raises(DataError, match=what) as caught:
        sources.found(path)
    assert str(caught.value).startswith(f"{path}: ")


def test_columns_in_another_order_are_the_same(tmp_path: Path) -> None:
    pq.write_table(pa.table({"path": ["a"], "x": [1]}), tmp_path / "a.parquet")
    pq.write_table(pa.table({"x": [2], "path": ["b"]}), tmp_path / "b.parquet")
    rows = sources.found(tmp_path).rows.select(["id", "x"]).to_pylist()
    assert rows == [{"id": "a", "x": 1}, {"id": "b", "x": 2}]


def test_a_range_that_runs_backwards(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"\[z-a\]\*: is no pattern \(bad character range z-a\)"):
        sources.found(tmp_path / "[z-a]*")


def test_all_of_s3_is_no_source(s3: str) -> None:
    with pytest.raises(DataError, match=r"s3://: cannot be read \("):
        sources.found("s3://")


@pytest.mark.skipif(os.name != "posix", reason="links need no rights there")
def test_links_that_lead_back(tmp_path: Path) -> None:
    # Two in one folder are 2 ** 40 paths to whoever follows them as long as the system does.
    write_picture(tmp_path / "in" / "a.png", part(0))
    for name in ("up", "again"):
        (tmp_path / "in" / name).symlink_to("..")
    assert sources.found(tmp_path).rows.column("id").to_pylist() == ["in/a.png"]
    assert len(sources.found(tmp_path / "in" / "*.png").rows) == 1


def test_names_that_begin_with_a_line_are_pictures_as_in_predict(tmp_path: Path) -> None:
    write_picture(tmp_path / "_a.png", part(0))
    assert sources.found(tmp_path).rows.column("id").to_pylist() == ["_a.png"]


@pytest.mark.skipif(os.name != "posix", reason="names are Unicode there")
def test_a_name_that_is_no_unicode(tmp_path: Path) -> None:
    try:
        Path(os.fsdecode(bytes(tmp_path) + b"/\xff.png")).write_bytes(b"")
    except OSError:
        pytest.skip("this file system has no such names")
    with pytest.raises(DataError, match=r"udcff\.png': this name is not UTF-8.*rename it"):
        sources.found(tmp_path)


def test_whatever_a_file_system_raises() -> None:
    from fsspec.implementations.memory import MemoryFileSystem

    def fails(*given: Any, **named: Any) -> Any:
        raise RuntimeError("the session is closed")

    class Lost(MemoryFileSystem):
        cachable = False
        info = fails

    class Locked(MemoryFileSystem):
        cachable = False
        _open = fails

    place = place_of("memory://odd/a.png")
    write_bytes(place, b"1", error=DataError)
    place = place_of("/odd/a.png", Locked())
    what = r"/odd/a\.png: cannot be (read|written) \(the session is closed\)"
    for begin in (
        lambda: sources.found("/odd/a.png", Lost()),
        lambda: read_bytes(place, limit=1, error=DataError),
        lambda: write_bytes(place, b"", error=DataError),
    ):
        with pytest.raises(BlemishError, match=what):
            begin()

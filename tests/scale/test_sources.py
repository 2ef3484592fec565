"""What is to be scored, from any file system, and what is said of sources that cannot be."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.fs
import pyarrow.parquet as pq
import pytest
from fuzzing.damage import flipped, scribbled

from blemish.errors import BlemishError, ConfigError, DataError
from blemish.scale import sources
from blemish.scale.places import place_of, read_bytes, write_bytes

DAMAGES = (flipped, scribbled, lambda data, random: data[: random.integers(len(data))])


def columns(source: sources.Source) -> dict[str, list[Any]]:
    found: dict[str, list[Any]] = source.rows.to_pydict()
    return found


@pytest.fixture(scope="module")
def bucket(s3: str, pictures: Path) -> str:
    """The pictures, in a bucket."""
    for path in sorted(pictures.rglob("*.png")):
        key = f"{s3}/pics/{path.relative_to(pictures)}"
        write_bytes(place_of(key), path.read_bytes(), error=DataError)
    write_bytes(place_of(f"{s3}/pics/.hidden/x.png"), b"x", error=DataError)
    write_bytes(place_of(f"{s3}/pics/readme.txt"), b"x", error=DataError)
    return f"{s3}/pics"


def test_folders_and_patterns(pictures: Path, bucket: str) -> None:
    here = columns(sources.found(pictures))
    assert here["id"][:2] == ["line 0/00.png", "line 0/03.png"]
    assert here["path"][0] == str(pictures / "line 0" / "00.png")
    there = columns(sources.found(bucket))
    assert there["id"] == here["id"]
    assert there["path"][0] == f"{bucket}/line 0/00.png"
    inside = pyarrow.fs.SubTreeFileSystem(str(pictures), pyarrow.fs.LocalFileSystem())
    own = sources.found("line 1", inside)
    assert columns(own)["id"][0] == "01.png"
    assert columns(own)["path"][0] == "line 1/01.png"
    assert own.filesystem is inside
    for name in (str(pictures), bucket):
        some = columns(sources.found(f"{name}/line ?/0[0-4].png"))
        assert [Path(path).name for path in some["path"]] == [
            *("00.png", "03.png", "01.png", "04.png", "02.png")
        ]
        assert some["id"] == some["path"]
    one = columns(sources.found(pictures / "line 0" / "00.png"))
    assert one["path"] == [str(pictures / "line 0" / "00.png")]


def test_patterns_mean_what_a_shell_means(s3: str) -> None:
    for key in ("globs/a/b/1.png", "globs/a/2.png", "globs/3.png", "globs/x3.jpg"):
        write_bytes(place_of(f"{s3}/{key}"), b"x", error=DataError)

    def hits(pattern: str) -> list[str]:
        found = columns(sources.found(f"{s3}/globs/{pattern}"))["path"]
        return [path.removeprefix(f"{s3}/globs/") for path in found]

    assert hits("**/*.png") == ["3.png", "a/2.png", "a/b/1.png"]
    assert hits("*.png") == ["3.png"]
    assert hits("*/?.png") == ["a/2.png"]
    assert hits("[!a-c]*.png") == ["3.png"]


def test_tables(tmp_path: Path, pictures: Path, s3: str) -> None:
    csv = tmp_path / "t.csv"
    csv.write_text("id;path;line\n7;a.png;x\n8;/pics/b.png;\n9;s3://parts/c.png;z\n")
    found = columns(sources.found(csv))
    assert found["id"] == ["7", "8", "9"]
    assert found["path"] == [str(tmp_path / "a.png"), "/pics/b.png", "s3://parts/c.png"]
    assert found["line"] == ["x", None, "z"]
    write_bytes(place_of(f"{s3}/tables/t.csv"), b"path,n\na.png,1\nb/c.png,2\n", error=DataError)
    there = columns(sources.found(f"{s3}/tables/t.csv"))
    assert there["id"] == ["a.png", "b/c.png"]
    assert there["path"] == [f"{s3}/tables/a.png", f"{s3}/tables/b/c.png"]
    assert there["n"] == [1, 2]
    folder = tmp_path / "parquet"
    folder.mkdir()
    for number in range(2):
        table = pa.table({"path": [f"{number}.png", f"{number}x.png"], "n": [number, number]})
        pq.write_table(table, folder / f"part-{number}.parquet")
    (folder / "_SUCCESS").write_text("")
    joined = columns(sources.found(folder))
    assert joined["id"] == ["0.png", "0x.png", "1.png", "1x.png"]
    assert joined["path"][3] == str(folder / "1x.png")
    assert joined["n"] == [0, 0, 1, 1]


def test_bytes_are_read_where_they_are_decoded(tmp_path: Path) -> None:
    content = [bytes([number]) * 1000 for number in range(10)]
    table = pa.table({"id": range(10), "bytes": content, "n": range(10)})
    pq.write_table(table, tmp_path / "t.parquet", row_group_size=4)
    found = sources.found(tmp_path / "t.parquet")
    assert found.rows.nbytes < 2000
    left = sources.without(found, pa.array(["1", "2", "8"]))
    parts = list(sources.units(left, 2))
    assert [part.column("n").to_pylist() for part in parts] == [[0, 3], [4, 5, 6, 7], [9]]
    read = [one for part in parts for one in sources.contents(part, None, 3)]
    assert [one.column_names for one in read] == [["id", "n", "bytes"]] * len(read)
    rows = [row for one in read for row in one.to_pylist()]
    assert [row["n"] for row in rows] == [0, 3, 4, 5, 6, 7, 9]
    assert all(row["bytes"] == content[row["n"]] for row in rows)
    pq.write_table(table.slice(0, 5), tmp_path / "t.parquet", row_group_size=4)
    with pytest.raises(DataError, match=r"t\.parquet: has changed while it was read"):
        list(sources.contents(parts[1], None, 3))
    (tmp_path / "t.parquet").unlink()
    with pytest.raises(DataError, match=r"t\.parquet: cannot be read"):
        list(sources.contents(parts[0], None, 3))


def test_units_of_pictures(pictures: Path) -> None:
    rows = sources.found(pictures).rows
    assert [len(part) for part in sources.units(rows, 8)] == [8, 8, 8, 6]
    assert len(sources.without(sources.found(pictures), pa.array([], pa.string()))) == 30


def table_of(folder: Path, **given: Any) -> Path:
    pq.write_table(pa.table(given), folder / "t.parquet")
    return folder / "t.parquet"


def test_ids_are_each_of_one_row(tmp_path: Path) -> None:
    for given, what in (
        ({"id": ["a", None], "path": ["x", "y"]}, "1 row without an id"),
        ({"path": [None, None]}, "2 rows without an id"),
        ({"id": ["a", "a", "b"], "path": ["x", "y", "z"]}, r"1 id of more than one row \(a\)"),
        ({"id": [*"aabbccddeeff"], "path": ["x"] * 12}, r"6 ids .* \(a, b, c, d, e, …\)"),
        ({"id": pa.array([], pa.string()), "path": pa.array([], pa.string())}, "has no rows"),
        ({"name": ["x"]}, "needs a column path or bytes, it has name"),
        ({"bytes": [b"x"]}, "needs a column id"),
    ):
        with pytest.raises(DataError, match=f"t.parquet: {what}"):
            sources.found(table_of(tmp_path, **given))


def test_one_source_has_one_schema(tmp_path: Path) -> None:
    pq.write_table(pa.table({"path": ["a"], "n": [1]}), tmp_path / "a.parquet")
    pq.write_table(pa.table({"path": ["b"], "n": ["1"]}), tmp_path / "b.parquet")
    with pytest.raises(
        DataError, match=r"b\.parquet: its column n is string, in .*a\.parquet it is int64"
    ):
        sources.found(tmp_path)
    pq.write_table(pa.table({"path": ["b"]}), tmp_path / "b.parquet")
    with pytest.raises(DataError, match=r"b\.parquet: its column n is missing"):
        sources.found(tmp_path)


def test_what_cannot_be_read(tmp_path: Path, s3: str) -> None:
    (tmp_path / "t.csv").write_text('path,n\n"a.png,1\n')
    (tmp_path / "cut.csv").write_text("path,n\na,1\nb\n")
    (tmp_path / "none.parquet").write_bytes(b"PAR1 no")
    (tmp_path / "empty").mkdir()
    for name, what in (
        (tmp_path / "none", "no such file or folder"),
        (f"{s3}/none", "no such file or folder"),
        ("s3://nobody/x", "no such file or folder"),
        (tmp_path / "*.tif", "nothing matches this pattern"),
        (tmp_path / "empty", "no pictures found"),
        (tmp_path / "cut.csv", "cannot be read as a table"),
        (tmp_path / "none.parquet", "cannot be read as Parquet"),
    ):
        with pytest.raises(DataError, match=what) as caught:
            sources.found(name)
        assert str(caught.value).startswith(str(name))
        assert "\n" not in str(caught.value)


def test_file_systems_that_are_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match=r"nfs4://a: no file system is known by nfs4://"):
        place_of("nfs4://a/b")
    with pytest.raises(ConfigError, match=r"libjvm|libhdfs"):
        place_of("hdfs://nobody:8020/b")

    def missing(*arguments: Any) -> Any:
        raise ImportError("Please install ossfs to access OSS")

    import fsspec

    monkeypatch.setattr(fsspec, "available_protocols", lambda: ["oss"])
    monkeypatch.setattr(fsspec.core, "url_to_fs", missing)
    wanted = "oss://b: Please install ossfs to access OSS, where blemish and its workers run"
    with pytest.raises(ConfigError, match=wanted):
        place_of("oss://b/c")


def test_files_by_fsspec_and_limits() -> None:
    place = place_of("memory://folder/a.bin")
    write_bytes(place, b"12345", error=DataError)
    write_bytes(place, b"123", error=DataError)
    assert read_bytes(place, limit=3, error=DataError) == b"123"
    with pytest.raises(DataError, match=r"memory://folder/a\.bin: is 3 bytes, and at most 2"):
        read_bytes(place, limit=2, error=DataError)
    with pytest.raises(BlemishError, match=r"memory://none: cannot be read"):
        read_bytes(place_of("memory://none"), limit=1, error=DataError)
    listed = io.StringIO()
    print(place.filesystem.get_file_info(pyarrow.fs.FileSelector("folder")), file=listed)
    assert "_unfinished" not in listed.getvalue()


@pytest.mark.parametrize("suffix", ["csv", "parquet"])
def test_damaged_tables_end_in_a_sentence(suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"t.{suffix}"
    table = pa.table({"id": [str(number) for number in range(40)], "path": ["a/b.png"] * 40})
    if suffix == "csv":
        rows = [f"{row['id']},{row['path']}" for row in table.to_pylist()]
        path.write_text("\n".join(["id,path", *rows]))
    else:
        pq.write_table(table, path, row_group_size=16)
    right, random = path.read_bytes(), np.random.default_rng(0)
    said = []
    for _ in range(200):
        path.write_bytes(DAMAGES[random.integers(len(DAMAGES))](right, random))
        try:
            found = sources.found(path)
        except BlemishError as error:
            said.append(str(error))
        else:
            assert len(found.rows) <= 41
    assert len(said) > 20
    assert not [one for one in said if "\n" in one or not one.startswith(str(path))]

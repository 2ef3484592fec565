"""Rows in files of Parquet: each whole, each row once, whoever was killed."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.parquet as pq
import pytest

from blemish.errors import DataError, OutputError
from blemish.scale import output as module
from blemish.scale.claims import claims_in
from blemish.scale.output import Output, check_column
from blemish.scale.places import place_of

SCHEMA = pa.schema(
    [("id", pa.string()), ("score", pa.float64()), ("line", pa.string()), ("error", pa.string())]
)
RUN = {"artifact": "a" * 64, "threshold": None}


def rows(start: int, count: int) -> pa.Table:
    ids = [str(number) for number in range(start, start + count)]
    lines = ["A/B", "=x", None]
    given = {
        **{"id": ids, "score": [1.0] * count, "line": [lines[int(one) % 3] for one in ids]},
        "error": ["damaged" if int(one) % 7 == 5 else None for one in ids],
    }
    return pa.table(given, schema=SCHEMA)


def opened(place: str | Path, **changes: Any) -> Output:
    how: dict[str, Any] = {"resume": False, "rows_per_file": 10, **changes}
    return Output(place, how.pop("run", RUN), how.pop("schema", SCHEMA), **how)


@pytest.fixture(params=["local", "s3", "memory"])
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "local":
        return str(tmp_path / "out")
    if request.param == "s3":
        return f"{request.getfixturevalue('s3')}/{tmp_path.name}"
    return f"memory://{tmp_path.name}"


def test_rows_come_back_and_are_gone_on_from(folder: str) -> None:
    with opened(folder) as output:
        assert len(output.ids) == 0
        for start in range(0, 12, 4):
            output.add(rows(start, 4))
        assert (output.files, output.rows) == (2, 12)  # ten and what was over, when there were ten
    place = place_of(folder)
    with opened(folder, resume=True) as output:
        assert sorted(output.ids.to_pylist(), key=int) == [str(number) for number in range(12)]
        assert output.failed == 1  # the fifth
        output.add(rows(12, 3))
        output.flush()
        output.check(rows(0, 15).column("id"))
        with pytest.raises(OutputError, match="2 pictures without a row"):
            output.check(rows(0, 17).column("id"))
    table = ds.dataset(place.path, filesystem=place.filesystem).to_table()
    assert table.schema == SCHEMA
    assert sorted(table.column("id").to_pylist(), key=int) == [str(one) for one in range(15)]
    told = json.loads(place.filesystem.open_input_file(f"{place.path}/_blemish.json").read())
    assert told["columns"] == {field.name: str(field.type) for field in SCHEMA}


def test_divided_by_a_column(folder: str) -> None:
    with opened(folder, partition_by="line") as output:
        output.add(rows(0, 9))
    place = place_of(folder)
    how: dict[str, Any] = {"filesystem": place.filesystem, "partitioning": "hive"}
    table = ds.dataset(place.path, **how).to_table()
    found = {row["id"]: row["line"] for row in table.to_pylist()}
    assert found == {row["id"]: row["line"] for row in rows(0, 9).to_pylist()}
    with pytest.raises(OutputError, match="another partition by"):
        opened(folder, resume=True)


@pytest.mark.parametrize(
    ("change", "what"),
    [
        ({"run": {**RUN, "artifact": "b" * 64}}, "another artifact .SHA-256 aaaaaaaaaaaa…, not bb"),
        ({"run": {**RUN, "threshold": 1.5}}, r"another threshold \(None, not 1\.5\)"),
        ({"schema": SCHEMA.remove(2)}, r"other columns \(line\)"),
        ({"schema": SCHEMA.set(1, pa.field("score", pa.float32()))}, r"other columns \(score\)"),
        ({"resume": False}, "go on from them with --resume"),
    ],
)
def test_what_is_not_gone_on_from(change: dict[str, Any], what: str, tmp_path: Path) -> None:
    with opened(tmp_path) as output:
        output.add(rows(0, 3))
    before = sorted(path.name for path in tmp_path.iterdir())
    with pytest.raises(OutputError, match=what):
        opened(tmp_path, **{"resume": True, **change})
    assert sorted(path.name for path in tmp_path.iterdir()) == before


def test_what_others_left(tmp_path: Path) -> None:
    with opened(tmp_path) as output:
        output.add(rows(0, 3))
        with pytest.raises(
            OutputError, match=rf"another run writes there .*process {os.getpid()}, "
        ):
            opened(tmp_path, resume=True)
    (part,) = tmp_path.glob("*.parquet")
    whole = part.read_bytes()
    part.write_bytes(whole[:50])
    with pytest.raises(OutputError, match=rf"{part.name}: is damaged .*; remove it"):
        opened(tmp_path, resume=True)
    part.write_bytes(whole)
    (tmp_path / "part-000009-0.parquet").write_bytes(whole)
    with (
        pytest.raises(OutputError, match="3 rows of ids that have another one"),
        opened(tmp_path, resume=True) as output,
    ):
        output.check(rows(0, 3).column("id"))
    (tmp_path / "_blemish.json").write_text("{}")
    with pytest.raises(OutputError, match="does not say what the rows were made with"):
        opened(tmp_path, resume=True)
    (tmp_path / "_blemish.json").unlink()
    with pytest.raises(OutputError, match="holds files that are no rows of blemish"):
        opened(tmp_path, resume=True)


def test_leftovers_are_removed(folder: str) -> None:
    place = place_of(folder)
    with opened(folder) as output:
        output.add(rows(0, 3))
    with place.filesystem.open_output_stream(f"{place.path}/_unfinished-01") as file:
        file.write(b"half")
    with opened(folder, resume=True):
        pass
    assert not place.filesystem.get_file_info(f"{place.path}/_unfinished-01").is_file


def test_two_never_write_into_one_folder(folder: str) -> None:
    """The second is refused while the first writes; where it has taken over, as nothing was heard
    of the first one, that one writes no more."""
    with opened(folder, rows_per_file=2) as first:
        first.add(rows(0, 2))
        with pytest.raises(
            OutputError, match=r"another run writes there .*, process \d+, since 20"
        ):
            opened(folder, resume=True)
        first.add(rows(2, 2))
        place = place_of(folder)
        for claim, _ in claims_in(place):
            place.filesystem.delete_file(claim.path)
        with pytest.raises(OutputError, match="another run has taken over"):
            first.add(rows(4, 2))
    with opened(folder, resume=True) as second:
        assert sorted(second.ids.to_pylist()) == ["0", "1", "2", "3"]


def test_a_local_writer_that_was_killed_leaves_what_is_swept(tmp_path: Path) -> None:
    with opened(tmp_path) as output:
        output.add(rows(0, 3))
    left = tmp_path / ".blemish-0123456789abcdef.tmp"
    left.write_bytes(b"half")
    os.utime(left, (time.time() - 3600,) * 2)
    with opened(tmp_path, resume=True) as output:
        assert len(output.ids) == 3
    assert not left.exists()


def test_rows_do_not_wait_for_ever(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "SECONDS_PER_FILE", 0.0)
    with opened(tmp_path) as output:
        output.add(rows(0, 1))
        assert output.files == 1
    monkeypatch.setattr(module, "SECONDS_PER_FILE", 60.0)
    monkeypatch.setattr(module, "BYTES_PER_FILE", 10)
    with opened(tmp_path, resume=True) as output:
        output.add(rows(1, 1))
        assert output.files == 1


def test_what_came_is_kept_whatever_ends_it(tmp_path: Path) -> None:
    def broken(output: Output) -> None:
        output.add(rows(0, 3))
        raise RuntimeError("lost")

    with pytest.raises(RuntimeError, match="lost"), opened(tmp_path) as output:
        broken(output)
    with opened(tmp_path, resume=True) as output:
        assert len(output.ids) == 3


def test_no_permission(tmp_path: Path, s3: str) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match=r"file.*cannot be"):
        opened(tmp_path / "file" / "out")
    with pytest.raises(OutputError, match=r"s3://no-such-bucket/out.*: cannot be written"):
        opened("s3://no-such-bucket/out")


def test_the_column_to_divide_by() -> None:
    check_column(None, SCHEMA, rows(0, 1))
    check_column("line", SCHEMA, rows(0, 1))
    with pytest.raises(DataError, match=r"--partition-by day: .* there are score, line"):
        check_column("day", SCHEMA, rows(0, 1))


def test_names_say_what_is_in_a_file(tmp_path: Path) -> None:
    names: list[str] = []
    make: Callable[[str], Path] = lambda name: tmp_path / name  # noqa: E731
    for name in ("one", "two"):
        with opened(make(name)) as output:
            output.add(rows(0, 3))
        names += [path.name for path in make(name).glob("*.parquet")]
        table = pq.read_table(make(name))
        assert len(table) == 3
    assert names[0] == names[1]


def test_each_row_goes_to_one_folder(folder: str) -> None:
    values = [float("nan"), 0.0, -0.0, None, 1.5, float("nan")]
    errors = pa.nulls(6, pa.string())
    table = pa.table({"id": [*"abcdef"], "by": pa.array(values, pa.float64()), "error": errors})
    with opened(folder, schema=table.schema, partition_by="by") as output:
        output.add(table)
        output.flush()
        output.check(table.column("id"))
        assert (output.files, output.rows) == (5, 6)
    with opened(folder, schema=table.schema, partition_by="by", resume=True) as output:
        assert sorted(output.ids.to_pylist()) == list("abcdef")


@pytest.mark.parametrize(
    ("name", "what"),
    [
        ("id", "which has no few values; choose of score, line, _day, kind"),
        ("tags", "which has no few values"),
        ("regions", "which has no few values"),
        ("_day", "readers leave out folders called _"),
        ("line", r"no folder can be called line=xxx.*… \(305 bytes\)"),
    ],
)
def test_columns_that_divide_nothing(name: str, what: str) -> None:
    columns = {
        "line": ["x" * 300],
        "_day": ["a"],
        "kind": ["a"],
        "tags": [["a"]],
        "regions": [[{"a": 1}]],
    }
    source = pa.table(columns)
    schema = pa.schema([("id", pa.string()), ("score", pa.float64()), *source.schema])
    with pytest.raises(DataError, match=what):
        check_column(name, schema, source)
    check_column("kind", schema, source)


@pytest.mark.parametrize(
    "content",
    [
        "[" * 100_000,
        '{"version": 1, "artifact": "ARTIFACT", "partition_by": "", "columns": 5}',
        "\xff",
    ],
)
def test_a_damaged_account_of_the_run(content: str, tmp_path: Path) -> None:
    with opened(tmp_path) as output:
        output.add(rows(0, 3))
    told = content.replace("ARTIFACT", RUN["artifact"] or "")
    (tmp_path / "_blemish.json").write_text(told)
    with pytest.raises(OutputError, match=r"does not say what|other columns"):
        opened(tmp_path, resume=True)

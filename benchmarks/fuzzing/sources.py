"""What `predict --engine ray` may be given, without Ray: tables and patterns, and what they say of
pictures, gone through as its workers do."""

from __future__ import annotations

import io
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

from fuzzing.artifacts import Random

SIZE = 4  # pictures at once
NAMES = ("id", "path", "bytes", "score", "error", "category", "_file", "_row", "_pixels", "", "a b")


def scored(artifact: Path, source: str) -> tuple[int, str, str]:
    """Score the pictures of a source, part by part; as a command: status, output, errors."""
    from blemish.errors import BlemishError
    from blemish.scale import predict, sources
    from blemish.scale.scorer import Settings

    try:
        found = sources.found(source)
        predict._schema(found, Settings(threads=1))
        failed = 0
        for unit in sources.units(found.rows, SIZE):
            parts = [unit]
            if sources.FILE in unit.column_names:
                parts = [*sources.contents(unit, None, SIZE)]
            for part in parts:
                rows = _scorer(artifact)(part)
                assert rows.column("id").to_pylist() == part.column("id").to_pylist()
                failed += len(rows) - rows.column("error").null_count
    except BlemishError as error:
        return 2, "", f"blemish: {error}"
    except Exception as error:
        return 2, "", f"blemish: this is a bug in blemish ({type(error).__name__}: {error})"
    return int(failed > 0), "", ""


@cache
def _scorer(artifact: Path) -> Any:
    from blemish.scale.scorer import Scorer

    return Scorer(artifact, threads=1, device="cpu", precision="fp32")


def parquet(**columns: Any) -> bytes:
    """A table as a file of Parquet, in row groups of three."""
    import pyarrow as pa

    return _written(pa.table(columns))


def _written(table: Any) -> bytes:
    from pyarrow import parquet

    file = io.BytesIO()
    parquet.write_table(table, file, row_group_size=3)
    return file.getvalue()


def hostile_parquet(right: bytes, random: Random) -> bytes:
    """A whole file of Parquet, of which one column is another."""
    import pyarrow as pa
    from pyarrow import parquet

    table = parquet.read_table(io.BytesIO(right))
    place = int(random.integers(table.num_columns))
    name, column = table.column_names[place], table.column(place).combine_chunks()
    other = NAMES[int(random.integers(len(NAMES)))]
    some = int(random.integers(len(column)))
    ways: tuple[Callable[[], Any], ...] = (
        lambda: table.drop_columns([name]),
        lambda: table.rename_columns([*table.column_names[:place], other,
                                      *table.column_names[place + 1 :]]),
        lambda: table.append_column(other, column),
        lambda: table.set_column(place, name, pa.nulls(len(column), column.type)),
        lambda: table.set_column(place, name, pa.nulls(len(column))),
        lambda: table.set_column(place, name, column.take(pa.array([some] * len(column)))),
        lambda: table.set_column(place, name, column.dictionary_encode()),
        lambda: table.set_column(place, name, pa.array([[1.5]] * len(column))),
        lambda: table.set_column(place, name, pa.array([{"a": 1}] * len(column))),
        lambda: table.set_column(place, name, pa.array([float("nan")] * len(column))),
        lambda: table.set_column(place, name, pa.array([b"\xff\0"] * len(column))),
        lambda: table.set_column(place, name, pa.array(["x" * 100_000] * len(column))),
        lambda: table.set_column(place, name, pa.array(["../\0\n\x1b[2J"] * len(column))),
        lambda: table.slice(0, 0),
    )  # fmt: skip
    return _written(ways[int(random.integers(len(ways)))]())


def matched(artifact: Path, folder: Path, pattern: Path) -> tuple[int, str, str]:
    """Score what matches the pattern that a file holds, in a folder and not above it."""
    text = pattern.read_bytes().decode("utf-8", "surrogateescape").replace("..", "")
    return scored(artifact, f"{folder}/{text}")

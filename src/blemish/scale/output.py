"""Rows on any file system: files of Parquet, each written whole, gone on from by the ids in them.

    OUTPUT/_blemish.json                     what the rows were made with, and their columns
    OUTPUT/part-000000-3fa9….parquet         rows, in the order in which they came; named by number
                                             and by a hash of their ids
    OUTPUT/line=A/part-…                     the same, where they are divided by a column

One process writes: the one that was started (`claims`). A killed one leaves whole files and at most
some that readers of Parquet leave out, which the next one removes.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Mapping
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any, Self
from urllib.parse import quote

from blemish.errors import DataError, OutputError
from blemish.files import DOCUMENT_BYTES, locked, sweep
from blemish.scale.claims import Claim, claims_in, taken, who_claims
from blemish.scale.places import Place, place_of, read_bytes, told, write_bytes
from blemish.scale.sources import is_unfinished
from blemish.text import pluralize

RUN = "_blemish.json"
ROWS_PER_FILE = 10_000
BYTES_PER_FILE = 256 * 2**20  # maps are large
SECONDS_PER_FILE = 60.0  # what a killed run loses, at most
_NO_VALUE = "__HIVE_DEFAULT_PARTITION__"
_LONGEST = 255  # bytes of a folder's name
_OF_ONE_ROW = ("id", "path", "error", "mask")  # it is by the id that a run goes on


class Output:
    """Where rows go.

    Args:
        output: a folder: a path or a URI.
        run: what they are made with, by name: rows made otherwise are never added to.
        schema: of Arrow, of their columns.
        resume: go on in a folder that has rows already.
        partition_by: a column, by whose values they are divided into folders.
        rows_per_file: at most.
        filesystem: in which `output` is; None = by its URI.
    Attributes: ids: of the rows that were there at first, an array of Arrow. failed: how many of
        these have an error. files, rows: how many have been written by this process.
    Raises: OutputError where nothing can be written, or has rows that are not to be gone on from.
    """

    def __init__(
        self,
        output: str | Path,
        run: Mapping[str, Any],
        schema: Any,
        *,
        resume: bool,
        partition_by: str | None = None,
        rows_per_file: int = ROWS_PER_FILE,
        filesystem: Any = None,
    ) -> None:
        self.place = place_of(output, filesystem)
        self._schema, self._by, self._most = schema, partition_by, rows_per_file
        self._waiting: list[Any] = []
        self._since = time.monotonic()
        self._open = ExitStack()
        self.files = self.rows = 0
        columns = {field.name: str(field.type) for field in schema}
        run = {**run, "partition_by": partition_by or "", "columns": columns}
        with ExitStack() as started:
            if self.place.is_local:
                self._lock(started)
                sweep(Path(self.place.path), again=True)
            self._claim = started.enter_context(closing(Claim(self.place)))
            self._begin(run, resume)
            self._open = started.pop_all()

    def _lock(self, started: ExitStack) -> None:
        """Keep other processes of this machine out, until this one ends in any way."""
        try:
            started.enter_context(locked(Path(self.place.path, RUN)))
        except OutputError as error:
            for place, _ in claims_in(self.place):
                raise taken(self.place, place, who_claims(place)) from error
            raise

    def _begin(self, run: Mapping[str, Any], resume: bool) -> None:
        there = self._parts()
        earlier = self._read_run()
        if earlier is None and there:
            raise OutputError(
                f"{self.place.name}: holds files that are no rows of blemish "
                f"({there[0].name.rpartition('/')[2]}, …); name another folder"
            )
        if earlier is not None and there and not resume:
            raise OutputError(
                f"{self.place.name}: holds predictions already; go on from them with --resume, or "
                "name another folder"
            )
        if earlier is not None and there:
            self._check_same(earlier, run)
        content = json.dumps({"version": 1, **run}, indent=2).encode()
        write_bytes(self.place / RUN, content, error=OutputError)
        self.ids, self.failed = self.written()
        self._number = len(there)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        with self._open:  # what has come is kept, whatever has ended it
            self.flush()

    def _parts(self) -> list[Place]:
        """The files of rows that are there; what a killed writer has left is removed."""
        from pyarrow import fs

        files, found = self.place.filesystem, []
        try:
            chosen = fs.FileSelector(self.place.path, allow_not_found=True, recursive=True)
            for one in files.get_file_info(chosen):
                if one.type != fs.FileType.File:
                    continue
                if is_unfinished(one.path):
                    files.delete_file(one.path)
                elif one.path.endswith(".parquet"):
                    inside = one.path[len(self.place.path) + 1 :]
                    found.append(self.place / inside)
        except Exception as error:  # packages of fsspec raise what they like
            raise told(self.place, error, OutputError, "be written to") from error
        return sorted(found, key=lambda place: place.path)

    def _read_run(self) -> dict[str, Any] | None:
        from pyarrow import fs

        place = self.place / RUN
        try:
            if place.filesystem.get_file_info(place.path).type != fs.FileType.File:
                return None
        except Exception as error:  # packages of fsspec raise what they like
            raise told(place, error, OutputError, "be read") from error
        content = read_bytes(place, limit=DOCUMENT_BYTES, error=OutputError)
        try:
            found = json.loads(content)
        except (ValueError, RecursionError) as error:
            raise self._unknown() from error
        if not isinstance(found, dict) or found.get("version") != 1:
            raise self._unknown()
        return found

    def _unknown(self) -> OutputError:
        return OutputError(
            f"{self.place.name}/{RUN}: does not say what the rows were made with; name another "
            "folder"
        )

    def _check_same(self, earlier: Mapping[str, Any], run: Mapping[str, Any]) -> None:
        """Raises: OutputError where the rows were made otherwise, and how."""
        for name, value in run.items():
            known = earlier.get(name)
            if known == value:
                continue
            if name == "columns":
                known = known if isinstance(known, dict) else {}
                other = sorted(set(value) ^ set(known)) or sorted(
                    one for one in value if value[one] != known.get(one)
                )
                how = f"other columns ({', '.join(other)})"
            elif name == "artifact":
                how = f"another artifact (SHA-256 {str(known)[:12]}…, not {value[:12]}…)"
            else:
                how = f"another {name.replace('_', ' ')} ({known!r}, not {value!r})"
            raise OutputError(
                f"{self.place.name}: the predictions there were made with {how}; resume as they "
                "were made, or name another folder"
            )

    def written(self) -> tuple[Any, int]:
        """The ids of the rows that are there, and how many of these have an error.

        Raises: OutputError for a file that is damaged.
        """
        import pyarrow as pa
        from pyarrow import parquet

        arrays, failed = [], 0
        for part in self._parts():
            try:
                with part.filesystem.open_input_file(part.path) as file:
                    known = parquet.ParquetFile(file).read(columns=["id", "error"])
                arrays += known.column("id").cast(pa.string()).chunks
                failed += len(known) - known.column("error").null_count
            except (OSError, pa.ArrowException, KeyError) as error:
                raise OutputError(
                    f"{part.name}: is damaged or no file of rows ({error}); remove it, and go on "
                    "with --resume"
                ) from error
        return pa.chunked_array(arrays, type=pa.string()).combine_chunks(), failed

    def add(self, rows: Any) -> None:
        """Take rows; they are written when there are enough, or have waited long enough."""
        if not self._waiting:
            self._since = time.monotonic()
        self._waiting.append(rows.select(self._schema.names).cast(self._schema))
        count = sum(len(each) for each in self._waiting)
        size = sum(each.nbytes for each in self._waiting)
        late = time.monotonic() - self._since >= SECONDS_PER_FILE
        if count >= self._most or size >= BYTES_PER_FILE or late:
            self.flush()

    def flush(self) -> None:
        """Write what waits. Raises: OutputError."""
        import pyarrow as pa

        if not self._waiting:
            return
        table, self._waiting = pa.concat_tables(self._waiting), []
        for start in range(0, len(table), self._most):
            for folder, rows in self._divided(table.slice(start, self._most)):
                self._write(folder, rows)

    def _divided(self, table: Any) -> list[tuple[Place, Any]]:
        """Rows by the folder that they go to, each in one."""
        import pyarrow as pa
        import pyarrow.compute as pc

        if self._by is None:
            return [(self.place, table)]
        column = table.column(self._by).combine_chunks()
        if not pa.types.is_dictionary(column.type):
            column = column.dictionary_encode()
        # By name, not by value: NaN equals nothing, and 0.0 equals -0.0.
        names = [_folder_of(self._by, value) for value in column.dictionary]
        names.append(_folder_of(self._by, None))
        places = pc.fill_null(column.indices.cast(pa.int64()), len(names) - 1)
        named = pa.array(names).take(places)
        rest = table.drop_columns([self._by])
        return [
            (self.place / name, rest.filter(pc.equal(named, name)))
            for name in named.unique().to_pylist()
        ]

    def _write(self, folder: Place, rows: Any) -> None:
        import pyarrow as pa
        from pyarrow import parquet

        self._claim.check()
        ids = "\n".join(rows.column("id").to_pylist())
        name = f"part-{self._number:06d}-{hashlib.sha256(ids.encode()).hexdigest()[:16]}.parquet"
        sink = pa.BufferOutputStream()
        parquet.write_table(rows, sink, compression="zstd")
        write_bytes(folder / name, sink.getvalue(), error=OutputError)
        self._number, self.files, self.rows = (
            self._number + 1,
            self.files + 1,
            self.rows + len(rows),
        )

    def check(self, ids: Any) -> None:
        """Make sure that each of these ids has one row. Raises: OutputError."""
        import pyarrow.compute as pc

        there, _ = self.written()
        doubled = len(there) - len(pc.unique(there))
        missing = len(ids) - pc.sum(pc.is_in(ids, value_set=there)).as_py()
        if doubled:
            raise OutputError(
                f"{self.place.name}: {pluralize(doubled, 'row')} of ids that have another one; has "
                "another process written there? Remove the younger files, and go on with --resume"
            )
        if missing:
            raise OutputError(
                f"{self.place.name}: {pluralize(missing, 'picture')} without a row; go on with "
                "--resume"
            )


def _folder_of(column: str, value: Any) -> str:
    """The name of the folder of rows with a value of a column; None, or null, has its own."""
    known = value is not None and value.is_valid
    name = quote(str(value.as_py()), safe="") if known else _NO_VALUE
    return f"{quote(column, safe='')}={name}"


def check_column(name: str | None, schema: Any, rows: Any) -> None:
    """Raises: DataError for a column by which rows cannot be divided.

    Args: schema: of what is written. rows: of the source.
    """
    import pyarrow as pa

    if name is None:
        return
    able = ", ".join(
        field.name
        for field in schema
        if not pa.types.is_nested(field.type) and field.name not in _OF_ONE_ROW
    )
    if name not in schema.names:
        raise DataError(f"--partition-by {name}: there is no such column; there are {able}")
    before = f"--partition-by {name}: rows cannot be divided by this column, "
    if name not in able.split(", "):
        raise DataError(f"{before}which has no few values; choose of {able}")
    if name.startswith(("_", ".")):
        raise DataError(f"{before}as readers leave out folders called {name[0]}…; rename it")
    if name in rows.column_names:
        folders = (_folder_of(name, value) for value in rows.column(name).unique())
        if long := next((each for each in folders if len(each) > _LONGEST), None):
            raise DataError(f"{before}as no folder can be called {long[:40]}… ({len(long)} bytes)")

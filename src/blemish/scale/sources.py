"""What is to be scored: a folder, a pattern or a table on any file system, as rows with ids.

Of each picture its id, its place and the further columns of its table are held, not its bytes: a
table with a column `bytes` is read again, row group by row group, where it is decoded.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

from blemish.data.folder import no_pictures, scan, search
from blemish.errors import BlemishError, DataError
from blemish.files import TABLE_BYTES
from blemish.images import EXTENSIONS
from blemish.scale.places import UNFINISHED, Place, place_of, read_bytes, told
from blemish.text import pluralize

# Of a table with bytes: the file of a row, its row group there, and its place in that.
FILE, GROUP, ROW = "_file", "_group", "_row"
# What a decoded picture is handed on as.
PIXELS = ("_pixels", "_shape", "_raw", "_size", "_digest", "_notes", "_category", "_error")
_TABLES = (".csv", ".tsv")
_SHOWN = 5


@dataclass(frozen=True)
class Source:
    """The pictures to score.

    Attributes:
        name: as its user calls it.
        rows: a table with the columns id and path, or `FILE`, `GROUP` and `ROW` in its place, and
            further ones; sorted as they came.
        filesystem: in which the paths are; None = by their URI, or of this machine.
        left_out: what one could take for pictures there: a sentence each.
    """

    name: str
    rows: Any
    filesystem: Any = None
    left_out: tuple[str, ...] = ()


def found(source: str | Path, filesystem: Any = None) -> Source:
    """The pictures behind a folder, a picture, a pattern, or a table (.csv, .tsv, .parquet, a
    folder or a pattern of .parquet).

    A table has a column `path` (relative to its folder where it is no whole path or URI) or
    `bytes`, and may have an `id`; without it the path is the id. Pictures of a folder are called by
    their path in it. Of a folder of this machine earlier results and masks are left out, as
    `blemish predict` does.

    Args: filesystem: of pyarrow or fsspec, in which `source` is; None = by its URI.
    Raises: DataError for nothing, or what cannot be read; tables of different columns; ids that are
        missing or not different. ConfigError as of `place_of`.
    """
    place = place_of(source, filesystem)
    files = _files(place)
    parquet = [each for each in files if each.path.endswith(".parquet")]
    if parquet and not any(_is_picture(each) for each in files):
        made = _of_parquet(place, sorted(parquet, key=lambda one: one.path), filesystem)
    elif len(files) == 1 and files[0].path.lower().endswith(_TABLES):
        made = _of_csv(files[0], filesystem)
    else:
        made = _of_pictures(place, files, filesystem)
    _check(made)
    return made


def _is_picture(place: Place) -> bool:
    return Path(place.path).suffix.lower() in EXTENSIONS


def _files(place: Place) -> list[Place]:
    """The files that a name stands for, in path order; hidden ones are left out."""
    from pyarrow import fs

    files = place.filesystem
    try:
        info = files.get_file_info(place.path)
        if info.type == fs.FileType.File:
            return [place]
        pattern = None
        folder = place.path
        if info.type == fs.FileType.NotFound:
            if not any(sign in place.path for sign in "*?["):
                raise DataError(f"{place.name}: no such file or folder")
            pattern = _matching(place)
            folder = re.split(r"[*?\[]", place.path, maxsplit=1)[0].rpartition("/")[0]
        paths = _listed(files, folder)
    except BlemishError:
        raise
    except Exception as error:  # packages of fsspec raise what they like
        raise told(place, error, DataError, "be read") from error
    inside = len(folder.rstrip("/")) + 1
    kept = []
    for path in paths:
        if any(part.startswith((".", "_")) for part in path[inside:].split("/")):
            continue
        if pattern is None or pattern.fullmatch(path):
            kept.append(place.at(path))
    if not kept and not place.is_local:  # of a folder here, `search` says what there is
        what = "nothing matches this pattern" if pattern else "no pictures and no tables found"
        raise DataError(f"{place.name}: {what}")
    return kept


def _listed(files: Any, folder: str) -> list[str]:
    """The paths of the files below a folder, in order."""
    from pyarrow import fs

    if isinstance(files, fs.LocalFileSystem):  # pyarrow's would go round in links that lead back
        tree = scan(folder or "/")
        return sorted(map(str, (*tree.pictures, *tree.others)))
    found = files.get_file_info(fs.FileSelector(folder, recursive=True))
    return sorted(one.path for one in found if one.type == fs.FileType.File)


def _matching(place: Place) -> re.Pattern[str]:
    try:
        return re.compile(_translated(place.path))
    except re.error as error:
        raise DataError(f"{place.name}: is no pattern ({error.msg})") from error


def _translated(pattern: str) -> str:
    """A pattern as an expression: `**` any depth, `*` and `?` within a name, `[…]` one of."""
    made, rest = "", pattern
    while rest:
        if found := re.match(r"\*\*/?", rest):
            made, rest = made + "(?:.*)", rest[found.end() :]
        elif found := re.match(r"\[(!?)([^\]]+)\]", rest):
            made += f"[{'^' if found[1] else ''}{re.escape(found[2]).replace(chr(92) + '-', '-')}]"
            rest = rest[found.end() :]
        else:
            known = {"*": "[^/]*", "?": "[^/]"}
            made, rest = made + known.get(rest[0], re.escape(rest[0])), rest[1:]
    return made


def _of_pictures(place: Place, files: list[Place], filesystem: Any) -> Source:
    import pyarrow as pa

    if filesystem is None and place.is_local:
        chosen = search(Path(place.path))
        paths, left_out = [str(path) for path in chosen.pictures], chosen.left_out
    else:
        chosen_files = [each for each in files if _is_picture(each) or len(files) == 1]
        paths, left_out = [each.whole for each in chosen_files], ()
    if not paths:
        raise DataError(no_pictures(place.name, left_out))
    folder = place.whole.rstrip("/") + "/"
    inside = all(path.startswith(folder) for path in paths)
    ids = [path.removeprefix(folder) if inside else path for path in paths]
    try:
        rows = pa.table({"id": ids, "path": paths})
    except UnicodeError as error:
        bad = next(path for path in paths if _is_no_text(path))
        raise DataError(
            f"{bad!a}: this name is not UTF-8, and rows call a picture by its name; rename it"
        ) from error
    return Source(place.name, rows, filesystem, left_out)


def _is_no_text(name: str) -> bool:
    """Whether a name holds bytes that are no UTF-8, as names of files may."""
    return any("\ud800" <= sign <= "\udfff" for sign in name)


def _of_csv(place: Place, filesystem: Any) -> Source:
    import pyarrow as pa
    from pyarrow import csv

    content = read_bytes(place, limit=TABLE_BYTES, error=DataError)
    try:
        first = content.decode("utf-8-sig").partition("\n")[0]
    except UnicodeDecodeError as error:
        raise DataError(
            f"{place.name}: is not in UTF-8 (byte {error.start}); save it as CSV in UTF-8"
        ) from error
    between = max(",;\t", key=first.count)
    text = dict.fromkeys(("id", "path", "category"), pa.string())
    try:
        table = csv.read_csv(
            pa.BufferReader(content),
            parse_options=csv.ParseOptions(delimiter=between, newlines_in_values=True),
            convert_options=csv.ConvertOptions(
                column_types=text, strings_can_be_null=True, null_values=[""]
            ),  # "NA" and "null" are names as good as others
        )
    except (ValueError, pa.ArrowException) as error:
        raise told(place, error, DataError, "be read as a table") from error
    _check_columns(place, table.schema)
    if "bytes" in table.column_names:
        raise DataError(
            f"{place.name}: has a column bytes, and a CSV file holds text; name files by a column "
            "path, or write it as Parquet"
        )
    return _of_table(place, place, table, filesystem)


def _of_parquet(place: Place, files: Sequence[Place], filesystem: Any) -> Source:
    import pyarrow as pa
    from pyarrow import parquet

    tables: list[Any] = []
    first: tuple[Place, Any] | None = None
    for each in files:
        try:
            with each.filesystem.open_input_file(each.path) as file:
                opened = parquet.ParquetFile(file)
                here = opened.schema_arrow.remove_metadata()
                _check_columns(each, here)
                first = first or (each, here)
                _check_same(each, here, first)
                tables.append(_rows_of(each, opened))
        except (OSError, ValueError, pa.ArrowException) as error:  # ValueError: names in no UTF-8
            raise told(each, error, DataError, "be read as Parquet") from error
    names = tables[0].column_names  # they may come in another order
    whole = pa.concat_tables([one.select(names) for one in tables])
    return _of_table(place, files[0], whole, filesystem)


def _rows_of(place: Place, opened: Any) -> Any:
    """The rows of a file of Parquet, without their bytes."""
    import pyarrow as pa

    names = [name for name in opened.schema_arrow.names if name != "bytes"]
    has_bytes = len(names) < len(opened.schema_arrow.names)
    if not has_bytes:
        return opened.read(columns=names)
    groups = []
    for group in range(opened.num_row_groups):
        count = opened.metadata.row_group(group).num_rows
        table = opened.read_row_group(group, columns=names)
        for name, values, kind in (
            (FILE, [place.whole] * count, pa.string()),
            (GROUP, [group] * count, pa.int32()),
            (ROW, range(count), pa.int64()),
        ):
            column = pa.array(values, type=kind)
            table = table.append_column(
                name, column.dictionary_encode() if name == FILE else column
            )
        groups.append(table)
    return pa.concat_tables(groups) if groups else opened.read(columns=names)


def _check_columns(place: Place, schema: Any) -> None:
    """Raises: DataError for two columns of one name, a name that is needed here, and bytes that are
    none."""
    import pyarrow as pa

    doubled = [name for name, count in Counter(schema.names).items() if count > 1]
    if doubled:
        raise DataError(f"{place.name}: has several columns {doubled[0]}; give each its own name")
    for name in (FILE, GROUP, ROW, *PIXELS):
        if name in schema.names:
            raise DataError(
                f"{place.name}: its column {name} is called as one that blemish adds on the way; "
                "call it otherwise"
            )
    if "bytes" in schema.names:
        kind = schema.field("bytes").type
        if kind not in (pa.binary(), pa.large_binary(), pa.binary_view()):
            raise DataError(
                f"{place.name}: its column bytes is {kind}, and the content of files is binary"
            )


def _check_same(place: Place, schema: Any, first: tuple[Place, Any]) -> None:
    """Raises: DataError for a file of other columns than the first of them."""
    known, others = {f.name: f.type for f in first[1]}, {f.name: f.type for f in schema}
    for name in [*known, *others]:
        if known.get(name) != others.get(name):
            here, there = (one.get(name, "missing") for one in (others, known))
            raise DataError(
                f"{place.name}: its column {name} is {here}, in {first[0].name} it is {there}; one "
                "source has one schema: name the files apart, or write them anew"
            )


def _of_table(place: Place, file: Place, table: Any, filesystem: Any) -> Source:
    """Pictures by the rows of a table in a file."""
    import pyarrow as pa
    import pyarrow.compute as pc

    try:
        table.validate(full=True)  # Parquet may hold texts that are none
    except (ValueError, pa.ArrowException) as error:
        raise told(place, error, DataError, "be read as a table") from error
    if FILE not in table.column_names and "path" not in table.column_names:
        there = ", ".join(table.column_names) or "none"
        raise DataError(f"{place.name}: needs a column path or bytes, it has {there}")
    own = "id" if "id" in table.column_names else "path"
    if own not in table.column_names:
        raise DataError(f"{place.name}: needs a column id, as its pictures have no path")
    texts = {}
    for name in {own, "path"} & set(table.column_names):
        try:
            texts[name] = table.column(name).cast(pa.string())
        except (ValueError, pa.ArrowException) as error:
            raise DataError(f"{place.name}: its column {name} is no text ({error})") from error
    columns = {"id": texts[own]}
    if "path" in texts:
        folder, given = file.whole.rpartition("/")[0], texts["path"]
        whole = pc.match_substring_regex(given, r"^(/|[A-Za-z][A-Za-z0-9+.-]+://|[A-Za-z]:[\\/])")
        beside = pc.binary_join_element_wise(pa.scalar(folder or "."), given, "/")
        columns["path"] = pc.if_else(pc.fill_null(whole, True), given, beside)
    for name in table.column_names:
        if name not in columns:
            columns[name] = table.column(name)
    return Source(place.name, pa.table(columns), filesystem)


def _check(source: Source) -> None:
    """Raises: DataError for no rows, and for ids that are missing or not different."""
    import pyarrow.compute as pc

    ids = source.rows.column("id")
    if len(ids) == 0:
        raise DataError(f"{source.name}: has no rows")
    if missing := pc.sum(pc.equal(pc.fill_null(ids, ""), "")).as_py():
        raise DataError(
            f"{source.name}: {pluralize(missing, 'row')} without an id; give every picture "
            "one, as results are told apart by it"
        )
    counted = pc.value_counts(ids)
    several = counted.filter(pc.greater(counted.field("counts"), 1))
    if len(several):
        shown = ", ".join(map(str, several.field("values")[:_SHOWN].to_pylist()))
        more = ", …" if len(several) > _SHOWN else ""
        raise DataError(
            f"{source.name}: {pluralize(len(several), 'id')} of more than one row ({shown}{more}); "
            "give every picture its own"
        )


def without(source: Source, ids: Any) -> Any:
    """The rows of a source of which the ids are not among others."""
    import pyarrow.compute as pc

    if not len(ids):
        return source.rows
    return source.rows.filter(pc.invert(pc.is_in(source.rows.column("id"), value_set=ids)))


def units(rows: Any, size: int) -> Iterable[Any]:
    """The rows in parts: `size` at a time, or all of a row group where they are read by those."""
    if FILE not in rows.column_names:
        yield from (rows.slice(start, size) for start in range(0, len(rows), size))
        return
    pairs = list(zip(rows.column(FILE).to_pylist(), rows.column(GROUP).to_pylist(), strict=True))
    starts = [0, *(at for at, (one, other) in enumerate(pairwise(pairs), 1) if one != other)]
    yield from (rows.slice(start, end - start) for start, end in pairwise([*starts, len(rows)]))


def contents(unit: Any, filesystem: Any, size: int) -> Iterable[Any]:
    """A part of a source with a column `bytes`, `size` rows at a time. Raises: DataError where its
    file is gone or has changed."""
    import pyarrow as pa
    from pyarrow import parquet

    path, group = unit.column(FILE)[0].as_py(), unit.column(GROUP)[0].as_py()
    place = place_of(path, filesystem)
    rest = unit.drop_columns([FILE, GROUP, ROW])
    wanted = unit.column(ROW).to_pylist()
    begin = done = 0
    try:
        with place.filesystem.open_input_file(place.path) as file:
            opened = parquet.ParquetFile(file)
            read = partial(opened.iter_batches, columns=["bytes"], row_groups=[group])
            for batch in read(batch_size=size):
                end = begin + len(batch)
                here = [row - begin for row in wanted[done:] if row < end]
                if here:
                    part = rest.slice(done, len(here))
                    yield part.append_column("bytes", batch.column(0).take(pa.array(here)))
                done, begin = done + len(here), end
    except (OSError, pa.ArrowException, KeyError) as error:
        raise told(place, error, DataError, "be read") from error
    if done < len(wanted):
        raise DataError(f"{path}: has changed while it was read")


def is_unfinished(path: str) -> bool:
    """Whether a file is what a killed writer has left."""
    return path.rpartition("/")[2].startswith(UNFINISHED)

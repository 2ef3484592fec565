"""What is said of each picture: the columns, and batches of rows from numpy, pyarrow and pandas.

A row is a picture. Its columns are those of `SCHEMA`, then whatever further columns it came with.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from blemish.errors import DataError
from blemish.report.heatmap import encode_mask
from blemish.types import ANOMALOUS, NORMAL, Failure, Prediction

if TYPE_CHECKING:
    import pyarrow as pa

VERDICTS = {NORMAL: "normal", ANOMALOUS: "alarm", None: None}
# Column, type as of Arrow, what it says. docs/scale.md has the same table.
COLUMNS: tuple[tuple[str, str, str], ...] = (
    ("id", "string", "of the picture: as given, else its path"),
    ("path", "string", "of the picture; null where its bytes were given"),
    ("score", "double", "raw, unbounded, higher = more anomalous; null with an error"),
    ("p_value", "double", "how likely a normal picture scores as high, in (0, 1]"),
    ("verdict", "string", "normal or alarm; null without a threshold"),
    ("threshold", "double", "a score above it is an alarm"),
    ("category", "string", "that it was judged as; empty where there are none"),
    ("category_assigned", "bool", "whether nobody gave it: the nearest by features"),
    ("region_threshold", "double", "a place of the map above it belongs to a region"),
    ("regions", "regions", "where it stands out, the highest peak first"),
    ("height", "int32", "of the picture, in pixels"),
    ("width", "int32", "of the picture, in pixels"),
    ("digest", "string", "hash of the decoded pixels"),
    ("notes", "list<string>", "what a person should know of it"),
    ("artifact", "string", "SHA-256 of the artifact's file"),
    ("error", "string", "why it could not be scored; null where it was"),
)
# What is added where it is asked for.
OF_MAPS = (
    ("map", "list<float>", "the anomaly map, row by row, in the unit of the score"),
    ("map_height", "int32", "its rows"),
    ("map_width", "int32", "its columns"),
)
OF_MASKS = (("mask", "binary", "PNG, 255 in any region, 0 elsewhere, as large as the picture"),)
GIVEN_BY = ("path", "bytes", "id", "category")
COLUMN_NAMES = tuple(name for name, _, _ in COLUMNS)
REGION = (
    *(("box", "list<int32>"), ("area", "int64"), ("share", "double"), ("centroid", "list<double>")),
    *(("peak", "double"), ("mean", "double"), ("polygon", "list<list<int32>>")),
)

Kind = Literal["numpy", "arrow", "pandas"]
Columns = dict[str, Any]


def names(*, maps: bool, masks: bool) -> list[str]:
    """The columns of an answer, without further ones."""
    return [name for name, _, _ in _columns(maps, masks)]


def _columns(maps: bool, masks: bool) -> tuple[tuple[str, str, str], ...]:
    return COLUMNS + (OF_MAPS if maps else ()) + (OF_MASKS if masks else ())


def schema(*, maps: bool = False, masks: bool = False) -> pa.Schema:
    """The columns of an answer, as Arrow has them."""
    import pyarrow as pa

    return pa.schema([(name, _type(kind)) for name, kind, _ in _columns(maps, masks)])


def _type(kind: str) -> Any:
    import pyarrow as pa

    known = {"string": pa.string(), "double": pa.float64(), "bool": pa.bool_(), "int32": pa.int32()}
    known |= {"int64": pa.int64(), "binary": pa.binary(), "float": pa.float32()}
    if kind == "regions":
        return pa.list_(pa.struct([(name, _type(each)) for name, each in REGION]))
    if kind.startswith("list<"):
        return pa.list_(_type(kind[5:-1]))
    return known[kind]


def spark_schema(*, maps: bool = False, masks: bool = False) -> str:
    """The columns of an answer, as the `schema` of Spark's `mapInPandas` has them.

    Example:
        >>> spark_schema()[:40]
        '`id` string, `path` string, `score` doub'
    """
    told = ((name, _spark(kind)) for name, kind, _ in _columns(maps, masks))
    return ", ".join(f"`{name}` {kind}" for name, kind in told)


def _spark(kind: str) -> str:
    if kind == "regions":
        return f"array<struct<{', '.join(f'{name}: {_spark(each)}' for name, each in REGION)}>>"
    if kind.startswith("list<"):
        return f"array<{_spark(kind[5:-1])}>"
    return {"bool": "boolean", "int32": "int", "int64": "bigint"}.get(kind, kind)


def taken(batch: Any) -> tuple[Kind, Columns, int]:
    """What a batch is, its columns, and how many rows it has.

    Args: batch: a dict of columns (numpy arrays or lists), a table or record batch of pyarrow, or a
        frame of pandas.
    Raises: DataError for anything else, columns of different lengths, or none of path and bytes.
    """
    kind: Kind
    if isinstance(batch, Mapping):
        kind, columns = "numpy", {str(name): values for name, values in batch.items()}
    elif hasattr(batch, "column_names") and hasattr(batch, "column"):
        kind, columns = "arrow", {name: batch.column(name) for name in batch.column_names}
    elif hasattr(batch, "columns") and hasattr(batch, "to_dict"):
        kind, columns = "pandas", {str(name): batch[name] for name in batch.columns}
    elif hasattr(batch, "schema") and hasattr(batch, "column"):  # RecordBatch of older pyarrow
        kind = "arrow"
        columns = {name: batch.column(place) for place, name in enumerate(batch.schema.names)}
    else:
        raise DataError(
            f"a batch of rows is a dict of columns, a table of pyarrow or a frame of pandas, not "
            f"{type(batch).__name__}"
        )
    lengths = {name: len(values) for name, values in columns.items()}
    if len(set(lengths.values())) > 1:
        raise DataError(f"the columns of a batch are of different lengths: {lengths}")
    if "path" not in columns and "bytes" not in columns:
        there = ", ".join(columns) or "none"
        raise DataError(f"a batch needs a column path or bytes, it has {there}")
    return kind, columns, next(iter(lengths.values()))


def further(columns: Columns, *, maps: bool, masks: bool) -> Columns:
    """The columns that are carried through. Raises: DataError for one that is in answers, too."""
    found = {name: values for name, values in columns.items() if name not in GIVEN_BY}
    if both := [name for name in names(maps=maps, masks=masks) if name in found]:
        raise DataError(
            f"the column {both[0]} is one of what is answered ({', '.join(COLUMN_NAMES)}); call it "
            "otherwise"
        )
    return found


def values_of(column: Any) -> list[Any]:
    """The values of a column, None for what is missing."""
    values = column.to_pylist() if hasattr(column, "to_pylist") else list(column)
    # Missing values of pandas are NaN, NaT or NA, and none of them equals itself.
    return [None if value is None or _is_missing(value) else value for value in values]


def _is_missing(value: Any) -> bool:
    if isinstance(value, float):
        return value != value
    return type(value).__name__ in ("NAType", "NaTType")


def answer_of(
    result: Prediction | Failure, *, given: str, path: str | None, artifact: str, maps: bool,
    masks: bool,
) -> dict[str, Any]:  # fmt: skip
    """The row of a picture. Args: given: its id."""
    row: dict[str, Any] = dict.fromkeys(names(maps=maps, masks=masks))
    row |= {"id": given, "path": path, "artifact": artifact}
    if isinstance(result, Failure):
        return {**row, "error": result.reason}
    told = result.to_dict()
    row |= {name: told[name] for name in told if name in row and name != "path"}
    row |= {"verdict": VERDICTS[result.label]}
    if maps:
        height, width = result.anomaly_map.shape
        flat = np.asarray(result.anomaly_map, np.float32).ravel()
        row |= {"map": flat, "map_height": height, "map_width": width}
    if masks and (mask := result.mask) is not None:
        row["mask"] = encode_mask(mask)
    return row


def answered(
    kind: Kind, answers: Sequence[Mapping[str, Any]], further: Columns, *, maps: bool, masks: bool
) -> Any:
    """Rows in the form that the batch had, with its further columns as they were."""
    if kind == "arrow":
        return _arrow(answers, further, maps, masks)
    columns: Columns = {
        name: [row[name] for row in answers] for name in names(maps=maps, masks=masks)
    }
    if kind == "pandas":
        import pandas as pd

        index = next((one.index for one in further.values() if hasattr(one, "index")), None)
        frame = pd.DataFrame({name: _series(values) for name, values in columns.items()})
        if index is not None and len(further):
            frame.index = index
        return frame.assign(**further)
    return {**{name: _array(name, values) for name, values in columns.items()}, **further}


def _series(values: list[Any]) -> Any:
    import pandas as pd

    return pd.Series(values, dtype=object)


_NUMBERS = {"score", "p_value", "threshold", "region_threshold"}


def _array(name: str, values: list[Any]) -> np.ndarray:
    if name in _NUMBERS:
        return np.array([np.nan if value is None else value for value in values], np.float64)
    made = np.empty(len(values), dtype=object)
    made[:] = values if name not in ("regions", "notes", "map") else [None] * len(values)
    for place, value in enumerate(values):
        made[place] = value  # a list stays a list
    return made


def _arrow(
    answers: Sequence[Mapping[str, Any]], further: Columns, maps: bool, masks: bool
) -> pa.Table:
    import pyarrow as pa

    wanted = schema(maps=maps, masks=masks)
    made = {field.name: pa.array([row[field.name] for row in answers], type=field.type)
            for field in wanted}  # fmt: skip
    table = pa.Table.from_arrays(list(made.values()), schema=wanted)
    for name, column in further.items():
        table = table.append_column(name, column)
    return table

"""The rows of predictions.jsonl as they are read back: what anybody may have changed meanwhile is refused."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any

from blemish import config
from blemish.config import Finite, Fraction, Length, Matching, Range
from blemish.errors import BlemishError

_Side = Annotated[int, Range(1, 2**31)]
_File = Annotated[str, Matching(r"(overlays/[\w.-]+)?", "a file in overlays/")]


@dataclass(frozen=True, kw_only=True)
class _Failed:
    """As `types.Failure` writes it."""

    path: str
    error: str
    other: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class _Scored:
    """As `types.Prediction` writes it, and the files beside it. Rows of earlier versions lack some."""

    path: str
    score: Finite
    threshold: Finite | None
    label: Annotated[int, Range(0, 1)] | None
    height: _Side
    width: _Side
    digest: str
    category: str
    category_assigned: bool = False
    adapted: bool = False
    votes: Fraction | None = None
    box: Annotated[tuple[Finite, ...], Length(4, 4)] | None = None
    notes: tuple[str, ...] = ()
    overlay: _File = ""
    saliency: _File = ""
    other: Mapping[str, Any] = field(default_factory=dict)


def read_row(line: bytes) -> dict[str, Any]:
    """A row of predictions.jsonl, as it stands there.

    Raises: ValueError for what is no row, which says what is wrong with it.
    """
    row = config.parse_json(line)
    if not isinstance(row, dict):
        raise ValueError(f"{config.short(row)} is no row")
    try:
        config.from_dict(_Failed if "error" in row else _Scored, row, strict=True)
    except BlemishError as error:
        raise ValueError(str(error)) from error
    return row

"""Frozen dataclasses <-> JSON <-> `--set key=value`.

A config is a frozen, keyword-only dataclass whose fields are bool, int, float, str, tuples of one of these, or
`| None`. `from_dict` and `override` check names and types; ranges are checked by the dataclass's `__post_init__`.
"""

from __future__ import annotations

import dataclasses
import json
import re
import types
import typing
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, TypeVar

from blemish.errors import ConfigError, unknown_name
from blemish.files import DOCUMENT_BYTES, read_whole

C = TypeVar("C")
_SIZE = re.compile(r"(\d+) ?[x×X] ?(\d+)")  # height × width


def to_dict(config: object) -> dict[str, Any]:
    """The config as JSON-ready values (tuples become lists)."""
    values = {f.name: getattr(config, f.name) for f in dataclasses.fields(config)}  # type: ignore[arg-type]
    return {key: list(value) if isinstance(value, tuple) else value for key, value in values.items()}


def from_dict(kind: type[C], values: Mapping[str, Any], *, base: C | None = None) -> C:
    """A config of `kind` from plain values; fields that are not named keep the value of `base` (or the default).

    Raises: ConfigError for an unknown key (the nearest is suggested), a value of the wrong type or out of range.
    """
    hints = typing.get_type_hints(kind)
    names = [f.name for f in dataclasses.fields(kind)]  # type: ignore[arg-type]
    checked: dict[str, Any] = {}
    for key, value in values.items():
        if key not in names:
            raise unknown_name("setting", key, names)
        checked[key] = _coerce(key, value, hints[key])
    return dataclasses.replace(base, **checked) if base is not None else kind(**checked)  # type: ignore[type-var]


def override(config: C, assignments: Iterable[str]) -> C:
    """A copy with `key=value` assignments applied; values are JSON, or bare words for strings.

    Example:
        >>> @dataclasses.dataclass(frozen=True, kw_only=True)
        ... class Demo:
        ...     layers: tuple[int, ...] = (2, 3)
        ...     name: str = "a"
        >>> override(Demo(), ["layers=4,8", "name=b"])
        Demo(layers=(4, 8), name='b')
    """
    return from_dict(type(config), assigned(assignments), base=config)


def assigned(assignments: Iterable[str]) -> dict[str, Any]:
    """The values of `key=value` assignments, unchecked. Raises: ConfigError for one of another form."""
    values: dict[str, Any] = {}
    for assignment in assignments:
        key, sign, text = assignment.partition("=")
        if not sign or not key.strip():
            raise ConfigError(f"{assignment!r} is not of the form key=value")
        values[key.strip()] = _parse(text.strip())
    return values


def read_config_file(path: str | Path) -> dict[str, Any]:
    """The settings of a `--config` file: a JSON object.

    Raises: ConfigError when the file cannot be read or is not a JSON object.
    """
    try:
        document = json.loads(read_whole(path, limit=DOCUMENT_BYTES, error=ConfigError))
    except ValueError as error:
        raise ConfigError(f"{path}: is not valid JSON ({error})") from error
    if not isinstance(document, dict):
        raise ConfigError(f"{path}: holds a JSON {type(document).__name__}; an object of settings is needed")
    return document


def height_width(text: str) -> tuple[int, int] | None:
    """The numbers of a size that is written as height x width; None for any other text.

    Example:
        >>> height_width("224x448"), height_width("448")
        ((224, 448), None)
    """
    written = _SIZE.fullmatch(text.strip())
    return (int(written[1]), int(written[2])) if written else None


def _parse(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        pass
    if "," in text:
        return [_parse(part.strip()) for part in text.split(",") if part.strip()]
    return {"True": True, "False": False, "None": None}.get(text, text)


def _coerce(key: str, value: Any, hint: Any) -> Any:
    """`value` as the type `hint` asks for, or a ConfigError that says what was expected."""
    size = height_width(value) if key.endswith("size") and isinstance(value, str) else None
    options = typing.get_args(hint) if typing.get_origin(hint) in (typing.Union, types.UnionType) else (hint,)
    for option in options:
        if option is type(None):
            if value is None:
                return None
        elif typing.get_origin(option) is typing.Literal:
            if value in typing.get_args(option):
                return value
            if type(None) not in options:
                raise ConfigError(f"{key}: {value!r} is not one of {', '.join(map(str, typing.get_args(option)))}")
        elif typing.get_origin(option) is tuple:
            items = size or ([value] if isinstance(value, (int, float, str)) else value)
            if isinstance(items, (list, tuple)):
                kinds = typing.get_args(option)
                return tuple(_coerce(key, item, kinds[0]) for item in items)
        elif option is bool:
            if isinstance(value, bool):
                return value
        elif option is int:
            if isinstance(value, int) and not isinstance(value, bool):
                return value
            if isinstance(value, float) and value.is_integer():
                return int(value)
        elif option is float:
            if isinstance(value, (int, float)) and not isinstance(value, bool):
                return float(value)
        elif option is str and isinstance(value, (str, int, float)) and not isinstance(value, bool):
            return str(value)
    if size:
        raise ConfigError(f"{key}: {value} is a height and a width; one number is needed")
    if key == "image_size":
        raise ConfigError(f"{key}: {value!r} is no size; 448, or height and width as in 224x448, is needed")
    names = " or ".join("null" if o is type(None) else getattr(o, "__name__", str(o)) for o in options)
    raise ConfigError(f"{key}: {value!r} is not of type {names}")

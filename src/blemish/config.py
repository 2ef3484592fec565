"""Frozen dataclasses <-> JSON <-> `--set key=value`.

A config is a frozen, keyword-only dataclass whose fields are bool, int, float, str, tuples or
mappings of one of these, another such dataclass, or `| None`. What a value may be stands in its
type, as `Annotated[int, Range(1, 64)]`: `from_dict` and `override` check names and types, and
`check`, which a config calls in its `__post_init__`, the rules.
"""

from __future__ import annotations

import dataclasses
import json
import math
import re
import types
import typing
from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Annotated, Any, TypeVar, cast

from blemish.errors import ConfigError, NonFiniteError, unknown_name
from blemish.files import DOCUMENT_BYTES, read_whole

C = TypeVar("C")
LARGEST = 4096 * 4096  # pixels of a picture as a backbone sees it
DEEPEST = 64  # levels of JSON values within each other; ours have seven
_SIZE = re.compile(r"(\d+) ?[x×X] ?(\d+)")  # height × width


@dataclasses.dataclass(frozen=True, slots=True)
class Range:
    """What a number may be, declared in its type. NaN and infinity are in no range.

    Attributes:
        low, high: the least and the greatest; `above`, `below`: whether these themselves are
            excluded.
        odd: whether it must be odd.

    Example:
        >>> 0.5 in Range(0, 1), 0 in Range(0, 1, above=True), float("inf") in Range()
        (True, False, False)
    """

    low: float = -math.inf
    high: float = math.inf
    above: bool = False
    below: bool = False
    odd: bool = False

    def __contains__(self, value: object) -> bool:
        if not isinstance(value, (int, float)) or (
            isinstance(value, float) and not math.isfinite(value)
        ):
            return False
        low = self.low < value if self.above else self.low <= value
        high = value < self.high if self.below else value <= self.high
        return low and high and not (self.odd and value % 2 == 0)

    def needed(self, value: object) -> str:
        """What is needed in place of a value that is not in the range."""
        if self.odd:
            return f"an odd number from {self.low:g} to {self.high:g} is needed"
        if self.high <= 1 and self.low >= 0:
            start, end = "(" if self.above else "[", ")" if self.below else "]"
            return f"a fraction in {start}{self.low:g}, {self.high:g}{end} is needed"
        if isinstance(value, int) and value > self.high:
            return f"at most {self.high:g} is possible"
        if isinstance(value, int) and not self.above and self.low > -math.inf:
            return f"at least {self.low:g} is needed"
        if self.low == 0 and self.above and self.high == math.inf:
            return "a positive finite number is needed"
        start = (
            "" if self.low == -math.inf else f" {'above' if self.above else 'from'} {self.low:g}"
        )
        end = (
            "" if self.high == math.inf else f" {'below' if self.below else 'up to'} {self.high:g}"
        )
        return f"a finite number{start}{end} is needed"


@dataclasses.dataclass(frozen=True, slots=True)
class Length:
    """How many values a tuple may have, declared in its type; `distinct`: none of them twice."""

    least: int = 0
    most: int = 2**31
    distinct: bool = False


@dataclasses.dataclass(frozen=True, slots=True)
class Matching:
    """What a text must look like as a whole, declared in its type: a regular expression, and how to
    say it.
    """

    pattern: str
    needed: str


NEW = "new"  # in a field's metadata: see `is_new`
Side = Annotated[int, Range(1, 8192)]  # of a picture as a backbone sees it, in pixels
Layers = Annotated[tuple[Annotated[int, Range(1, 1024)], ...], Length(most=64, distinct=True)]
Seed = Annotated[int, Range(0, 2**63 - 1)]
Fraction = Annotated[float, Range(0, 1)]
FractionBelow1 = Annotated[float, Range(0, 1, below=True)]
FractionAbove0 = Annotated[float, Range(0, 1, above=True)]
Positive = Annotated[float, Range(0, above=True)]
NotNegative = Annotated[float, Range(0)]
Factor = Annotated[float, Range(0, 1e6)]  # of what adds to a score
Count = Annotated[int, Range(0, 2**53)]
Finite = Annotated[float, Range()]


def check(config: object) -> None:
    """Raises: ConfigError for a value that breaks the rules which its type declares."""
    for key, hint in _hints(cast(Any, type(config))).items():
        _verify(key, getattr(config, key), hint)


@cache
def _hints(kind: Any) -> dict[str, Any]:
    """The types of a dataclass's fields, with the rules in them."""
    hints = typing.get_type_hints(kind, include_extras=True)
    return {field.name: hints[field.name] for field in dataclasses.fields(kind)}


def _verify(key: str, value: Any, hint: Any, instead: str = "") -> None:
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin is Annotated:
        for rule in hint.__metadata__:
            _follow(key, value, rule, instead)
        _verify(key, value, hint.__origin__)
    elif origin in (typing.Union, types.UnionType):
        if value is not None:
            for option in arguments:
                if option is not type(None):
                    _verify(key, value, option, "null or " if type(None) in arguments else "")
    elif origin is tuple:
        if not _all_follow(value, arguments[0]):
            for item in value:
                _verify(key, item, arguments[0])
    elif origin in (Mapping, dict):
        for name, item in value.items():
            _verify(f"{key}.{name}", item, arguments[1])


def _all_follow(values: Sequence[Any], hint: Any) -> bool:
    """Whether many values follow the rules of their type, told at once: an artifact names every
    picture that it knows, and there may be a million. False also where that is not told."""
    if typing.get_origin(hint) is not Annotated or not values:
        return False
    for rule in hint.__metadata__:
        if isinstance(rule, Matching) and hint.__origin__ is str:
            if not all(map(re.compile(rule.pattern).fullmatch, values)):
                return False
        elif isinstance(rule, Range) and hint.__origin__ is float and not rule.odd:
            # Of NaN neither the least nor the greatest would tell.
            if math.isnan(sum(values)) or min(values) not in rule or max(values) not in rule:
                return False
        else:
            return False
    return True


def _follow(key: str, value: Any, rule: object, instead: str) -> None:
    match rule:
        case Range() if value not in rule:
            raise ConfigError(f"{key}: {instead}{rule.needed(value)}, got {short(value)}")
        case Length(least=least, most=most) if not least <= len(value) <= most:
            wanted = f"{least} to {most}" if most < 2**31 else f"at least {least}"
            wanted = f"{least}" if least == most else wanted
            raise ConfigError(f"{key}: {wanted} values are needed, got {len(value)}")
        case Length(distinct=True) if len(set(value)) < len(value):
            twice = next(item for place, item in enumerate(value) if item in value[:place])
            raise ConfigError(f"{key}: {short(twice)} is named twice")
        case Matching(pattern=pattern, needed=needed) if not re.fullmatch(pattern, value):
            raise ConfigError(f"{key}: {needed} is needed, got {short(value)}")


def to_dict(config: object, *, whole: bool = False) -> dict[str, Any]:
    """The config as JSON-ready values (tuples become lists).

    Args: whole: with the defaults that files of earlier versions lack, which a recipe may not have.
    """
    fields = dataclasses.fields(config)  # type: ignore[arg-type]
    values = {
        field.name: _plain(value)
        for field in fields
        if (value := getattr(config, field.name)) != field.default or whole or not is_new(field)
    }
    other = values.pop("other", {})
    return {**values, **other}


def is_new(field: dataclasses.Field[Any]) -> bool:
    """Whether files of earlier versions lack it: it is left out where it is the default."""
    return bool(field.metadata.get(NEW))


def _plain(value: Any) -> Any:
    if dataclasses.is_dataclass(value):
        return to_dict(value)
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, (list, tuple)) else value


def from_dict(
    kind: type[C],
    values: Mapping[str, Any],
    *,
    base: C | None = None,
    within: str = "",
    strict: bool = False,
) -> C:
    """A config of `kind` from plain values; fields that are not named keep the value of `base` (or
    the default).

    Args:
        within: what its fields belong to, which messages put before their names: "threshold" for
            "threshold.rate".
        strict: whether values must be as `to_dict` gives them; else 3 is also the list [3], and a
            number a text.
    A `kind` with a field `other` takes keys that it does not know in there, as files of later
    versions have them.
    Raises: ConfigError for an unknown key (the nearest is suggested) or a missing one, a value of
        the wrong type or out of range; NonFiniteError as `kind`.
    """
    hints = _hints(cast(Any, kind))
    prefix = f"{within}." if within else ""
    if not isinstance(values, Mapping):
        raise ConfigError(f"{within or 'settings'}: {short(values)} is no object of named values")
    checked: dict[str, Any] = {}
    if "other" in hints:
        known = {key: value for key, value in values.items() if key in hints and key != "other"}
        other = {key: value for key, value in values.items() if key not in known}
        values = {**known, "other": other}
    for key, value in values.items():
        if key not in hints:
            wrong = unknown_name("setting", key, hints)
            raise ConfigError(f"{within}: {wrong}" if within else str(wrong))
        checked[key] = _coerce(f"{prefix}{key}", value, hints[key], strict)
        _verify(f"{prefix}{key}", checked[key], hints[key])
    if base is not None:
        return dataclasses.replace(base, **checked)  # type: ignore[type-var]
    for field in dataclasses.fields(kind):  # type: ignore[arg-type]
        missing = field.default is field.default_factory is dataclasses.MISSING
        if missing and field.name not in checked:
            raise ConfigError(f"{prefix}{field.name}: is missing")
    try:
        return kind(**checked)
    except (ConfigError, NonFiniteError) as error:
        raise type(error)(f"{prefix}{error}") from error


def override(config: C, assignments: Iterable[str], *, within: str = "") -> C:
    """A copy with `key=value` assignments applied; values are JSON, or bare words for strings.

    Args: within: as of `from_dict`.

    Example:
        >>> @dataclasses.dataclass(frozen=True, kw_only=True)
        ... class Demo:
        ...     layers: tuple[int, ...] = (2, 3)
        ...     name: str = "a"
        >>> override(Demo(), ["layers=4,8", "name=b"])
        Demo(layers=(4, 8), name='b')
    """
    return from_dict(type(config), assigned(assignments, within), base=config, within=within)


def assigned(assignments: Iterable[str], within: str = "") -> dict[str, Any]:
    """The values of `key=value` assignments, unchecked. Raises: ConfigError for one of another
    form, which names what it is `within`.
    """
    values: dict[str, Any] = {}
    for assignment in assignments:
        key, sign, text = assignment.partition("=")
        if not sign or not key.strip():
            place = f"{within}: " if within else ""
            raise ConfigError(f"{place}{assignment!r} is not of the form key=value")
        values[key.strip()] = _parse(text.strip())
    return values


def read_config_file(path: str | Path) -> dict[str, Any]:
    """The settings of a `--config` file: a JSON object.

    Raises: ConfigError when the file cannot be read or is not a JSON object.
    """
    try:
        document = parse_json(read_whole(path, limit=DOCUMENT_BYTES, error=ConfigError))
    except ValueError as error:
        raise ConfigError(f"{path}: is not valid JSON ({error})") from error
    if not isinstance(document, dict):
        raise ConfigError(
            f"{path}: holds a JSON {type(document).__name__}; an object of settings is needed"
        )
    return document


def parse_json(text: str | bytes) -> Any:
    """The value that a JSON text holds, from a file that anybody may have written.

    Raises: ValueError for what is no JSON, not UTF-8, or more than `DEEPEST` levels deep: whoever
        goes through the value, as to print it, would come to the end of Python's stack.
    """
    try:
        value = json.loads(text)
    except RecursionError as error:
        raise ValueError("too deeply nested") from error
    level: list[Any] = [value]
    for _ in range(DEEPEST):
        within = [each for each in level if isinstance(each, (dict, list))]
        level = [
            one for each in within for one in (each.values() if isinstance(each, dict) else each)
        ]
        if not level:
            return value
    raise ValueError("too deeply nested")


def short(value: object) -> str:
    """A value as a message shows it: on one line, and cut where it is long."""
    try:
        text = repr(value)
    except ValueError:  # an integer of more digits than Python prints
        return "a number of thousands of digits"
    return text if len(text) <= 80 else f"{text[:60]} …"


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
        return parse_json(text)
    except ValueError:
        pass
    if "," in text:
        return [_parse(part.strip()) for part in text.split(",") if part.strip()]
    return {"True": True, "False": False, "None": None}.get(text, text)


def _coerce(key: str, value: Any, hint: Any, strict: bool) -> Any:
    """`value` as the type `hint` asks for, or a ConfigError that says what was expected."""
    name = key.rsplit(".", 1)[-1]
    size = height_width(value) if name.endswith("size") and isinstance(value, str) else None
    options = [_bare(option) for option in _options(hint)]
    for option in options:
        if option is Any or (option is type(None) and value is None):
            return value
        if typing.get_origin(option) is typing.Literal:
            if isinstance(value, str) and value in typing.get_args(option):
                return value
            if type(None) not in options:
                known = ", ".join(map(str, typing.get_args(option)))
                raise ConfigError(f"{key}: {short(value)} is not one of {known}")
        elif typing.get_origin(option) is tuple:
            items = size or (
                [value] if isinstance(value, (int, float, str)) and not strict else value
            )
            if isinstance(items, (list, tuple)):
                kind = _bare(typing.get_args(option)[0])
                if kind in (float, str) and all(type(item) is kind for item in items):
                    return tuple(items)
                return tuple(
                    _coerce(key, item, typing.get_args(option)[0], strict) for item in items
                )
        elif typing.get_origin(option) is Mapping:
            if isinstance(value, Mapping):
                kind = typing.get_args(option)[1]
                return {
                    each: _coerce(f"{key}.{each}", item, kind, strict)
                    for each, item in value.items()
                }
        elif dataclasses.is_dataclass(option):
            if isinstance(value, Mapping):
                return from_dict(typing.cast("type[Any]", option), value, within=key, strict=strict)
        elif (found := _simple(value, option, strict)) is not None:
            return found
    if size:
        raise ConfigError(f"{key}: {value} is a height and a width; one number is needed")
    if name == "image_size":
        raise ConfigError(
            f"{key}: {short(value)} is no size; 448, or height and width as in 224x448, is needed"
        )
    names = " or ".join(_name_of(option) for option in options)
    raise ConfigError(f"{key}: {short(value)} is not of type {names}")


def _simple(value: Any, kind: Any, strict: bool) -> Any:
    """`value` as a bool, int, float or str; None where it is none."""
    if isinstance(value, bool) or kind is bool:
        return value if kind is bool and isinstance(value, bool) else None
    if kind is int and isinstance(value, float) and value.is_integer() and not strict:
        return int(value)
    if kind is float and isinstance(value, (int, float)):
        try:
            return float(value)
        except OverflowError:
            return None
    if kind is str and isinstance(value, (int, float)) and not strict:
        return short(value)
    if kind is str and isinstance(value, str):
        return value
    return value if kind is int and isinstance(value, int) else None


def _options(hint: Any) -> Sequence[Any]:
    """The types of which a value may have one."""
    bare = _bare(hint)
    several = typing.get_origin(bare) in (typing.Union, types.UnionType)
    return typing.get_args(bare) if several else (bare,)


def _bare(hint: Any) -> Any:
    """The type without the rules that it declares."""
    return hint.__origin__ if typing.get_origin(hint) is Annotated else hint


def _name_of(option: Any) -> str:
    if option is type(None):
        return "null"
    if typing.get_origin(option) is tuple:
        return f"list of {_name_of(_bare(typing.get_args(option)[0]))}"
    if typing.get_origin(option) is Mapping or dataclasses.is_dataclass(option):
        return "object"
    return getattr(option, "__name__", str(option))

"""The tree of errors is the one in its docstring, and every message can be shown as it is."""

from __future__ import annotations

import inspect
import pickle
import re

import pytest

from blemish import errors
from blemish.errors import (
    BlemishError,
    ConfigError,
    DataError,
    ImageError,
    InputError,
    MissingExtraError,
    unknown_name,
)

CLASSES = {
    name: kind
    for name, kind in inspect.getmembers(errors, inspect.isclass)
    if issubclass(kind, Exception)
}


def drawn() -> dict[str, str]:
    """Class -> base, as the module's docstring draws them by indentation."""
    parents: dict[str, str] = {}
    stack: list[tuple[int, str]] = []
    for line in (errors.__doc__ or "").splitlines():
        found = re.match(r"^([ │├└─]*)(\w+Error)\b", line)
        if found is None:
            continue
        depth, name = len(found[1]), found[2]
        while stack and stack[-1][0] >= depth:
            stack.pop()
        if stack:
            parents[name] = stack[-1][1]
        stack.append((depth, name))
    return parents


def test_the_tree_is_as_drawn() -> None:
    found = {
        name: kind.__mro__[1].__name__ for name, kind in CLASSES.items() if kind is not BlemishError
    }
    assert found == drawn()
    assert len(CLASSES) == 17
    assert BlemishError.__base__ is Exception


def test_an_image_error_names_the_picture() -> None:
    error = ImageError("a/b.png", "is truncated")
    assert str(error) == "a/b.png: is truncated"
    assert (error.source, error.reason) == ("a/b.png", "is truncated")
    assert isinstance(error, InputError)
    assert isinstance(DataError("x"), InputError)


def test_a_missing_extra_names_the_command() -> None:
    error = MissingExtraError("onnx", extra="offline", purpose="read the weights")
    assert str(error) == "onnx is needed to read the weights: pip install 'blemish[offline]'"


@pytest.mark.parametrize(
    ("name", "known", "message"),
    [
        ("knm", ["knn", "padim"], "unknown thing 'knm'; did you mean 'knn'? Known: knn, padim"),
        ("zzz", ["knn", "padim"], "unknown thing 'zzz'. Known: knn, padim"),
        ("b", [], "unknown thing 'b'. Known: "),
    ],
)
def test_an_unknown_name(name: str, known: list[str], message: str) -> None:
    error = unknown_name("thing", name, iter(known))
    assert type(error) is ConfigError
    assert str(error) == message


@pytest.mark.parametrize(
    "kind", [k for k in CLASSES.values() if k not in (ImageError, MissingExtraError)]
)
def test_errors_carry_their_message(kind: type[BlemishError]) -> None:
    assert str(kind("what, where, what to do")) == "what, where, what to do"
    again = pickle.loads(pickle.dumps(kind("across processes")))
    assert (type(again), str(again)) == (kind, "across processes")

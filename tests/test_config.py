"""Configs to JSON and back; what a user types, checked name by name and type by type."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from blemish import config
from blemish.config import Length, Matching, Range
from blemish.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class Demo:
    flag: bool = False
    count: Annotated[int, Range(0)] = 3
    rate: float = 0.5
    name: str = "a"
    kind: Literal["x", "y"] = "x"
    layers: tuple[int, ...] = (1, 2)
    shares: tuple[float, ...] = ()
    words: tuple[str, ...] = ()
    limit: float | None = None
    window: tuple[float, ...] | None = None
    mode: Literal["fast", "slow"] | None = None

    odd: Annotated[int, Range(1, 99, odd=True)] = 1
    share: Annotated[float, Range(0, 1, above=True, below=True)] = 0.5
    sides: Annotated[tuple[int, ...], Length(1, 3, distinct=True)] = (1,)
    code: Annotated[str, Matching("[a-z]+", "a word")] = "a"


@given(
    st.builds(
        Demo,
        flag=st.booleans(),
        count=st.integers(0, 10**12),
        rate=st.floats(allow_nan=False),
        name=st.text(),
        kind=st.sampled_from(["x", "y"]),
        layers=st.lists(st.integers()).map(tuple),
        shares=st.lists(st.floats(allow_nan=False)).map(tuple),
        words=st.lists(st.text()).map(tuple),
        limit=st.none() | st.floats(allow_nan=False),
        window=st.none() | st.lists(st.floats(allow_nan=False)).map(tuple),
        mode=st.sampled_from(["fast", "slow", None]),
    )
)
@settings(max_examples=25, deadline=None, derandomize=True)
def test_json_and_back_changes_nothing(demo: Demo) -> None:
    assert config.from_dict(Demo, json.loads(json.dumps(config.to_dict(demo)))) == demo


@pytest.mark.parametrize(
    ("assignment", "expected"),
    [
        ("flag=true", {"flag": True}),
        ("flag=False", {"flag": False}),
        ("count=7", {"count": 7}),
        ("count=7.0", {"count": 7}),
        ("count=1e3", {"count": 1000}),
        ("rate=1", {"rate": 1.0}),
        ("rate=1e-3", {"rate": 0.001}),
        ("name=b", {"name": "b"}),
        ("name=12", {"name": "12"}),
        ('name="quoted"', {"name": "quoted"}),
        ("name=a=b", {"name": "a=b"}),
        ("name=", {"name": ""}),
        (" name = spaced ", {"name": "spaced"}),
        ("kind=y", {"kind": "y"}),
        ("layers=4,8", {"layers": (4, 8)}),
        ("layers=4, 8 ,12", {"layers": (4, 8, 12)}),
        ("layers=4,", {"layers": (4,)}),
        ("layers=[4, 8]", {"layers": (4, 8)}),
        ("layers=[]", {"layers": ()}),
        ("shares=0.5,1", {"shares": (0.5, 1.0)}),
        ("words=a,b", {"words": ("a", "b")}),
        ("limit=null", {"limit": None}),
        ("limit=None", {"limit": None}),
        ("limit=2", {"limit": 2.0}),
        ("window=-1000,400", {"window": (-1000.0, 400.0)}),
        ("mode=fast", {"mode": "fast"}),
        ("mode=null", {"mode": None}),
    ],
)
def test_assignments(assignment: str, expected: dict[str, Any]) -> None:
    found = config.override(Demo(), [assignment])
    assert found == Demo(**expected)
    for key, value in expected.items():
        assert type(getattr(found, key)) is type(value)


@pytest.mark.parametrize(
    ("assignment", "says"),
    [
        ("count", "not of the form key=value"),
        ("=3", "not of the form key=value"),
        ("counts=3", "unknown setting 'counts'; did you mean 'count'"),
        ("zzz=3", "unknown setting 'zzz'. Known: code, count"),
        ("count=many", "count: 'many' is not of type int"),
        ("count=1.5", "count: 1.5 is not of type int"),
        ("count=true", "count: True is not of type int"),
        ("count=null", "count: None is not of type int"),
        ("count=-1", "count: at least 0 is needed, got -1"),
        ("odd=2", "odd: an odd number from 1 to 99 is needed"),
        ("share=0", r"share: a fraction in \(0, 1\) is needed"),
        ("share=1", r"share: a fraction in \(0, 1\) is needed"),
        ("sides=[]", "sides: 1 to 3 values are needed, got 0"),
        ("sides=1,2,1", "sides: 1 is named twice"),
        ("code=ab1", "code: a word is needed, got 'ab1'"),
        (f"count={'x' * 99}", "count: 'x{59} … is not of type int"),
        ("rate=true", "rate: True is not of type float"),
        ("rate=x", "rate: 'x' is not of type float"),
        ("flag=1", "flag: 1 is not of type bool"),
        ("name=[1]", "name: .* is not of type str"),
        ("kind=z", "kind: 'z' is not one of x, y"),
        ("mode=medium", "mode: 'medium' is not of type"),
        ("layers=a", "layers: 'a' is not of type int"),
        ("layers=1,x", "layers: 'x' is not of type int"),
        ("layers=", "layers"),
        ("limit=x", "limit: 'x' is not of type float or null"),
    ],
)
def test_assignments_that_are_wrong(assignment: str, says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        config.override(Demo(), [assignment])


def test_later_assignments_win_and_the_rest_stays() -> None:
    base = Demo(name="kept", count=9)
    assert config.override(base, ["rate=0.1", "rate=0.2"]) == Demo(name="kept", count=9, rate=0.2)
    assert config.override(base, []) == base
    assert config.from_dict(Demo, {"rate": 1}, base=base) == Demo(name="kept", count=9, rate=1.0)
    assert config.from_dict(Demo, {}) == Demo()


def test_a_config_file(tmp_path: Path) -> None:
    path = tmp_path / "settings.json"
    path.write_text('{"count": 4, "name": "Prüfling"}', encoding="utf-8")
    assert config.read_config_file(str(path)) == {"count": 4, "name": "Prüfling"}
    deepest = "[" * (config.DEEPEST - 1) + "]" * (config.DEEPEST - 1)
    path.write_text(f'{{"a": {deepest}}}')
    assert config.read_config_file(path)
    for content, says in (
        (b"[1]", "list"),
        (b"{", "not valid JSON"),
        (b"", "not valid JSON"),
        (b"\xff\xfe", "not valid JSON"),
        (f'{{"a": [{deepest}]}}'.encode(), "too deeply nested"),
    ):
        path.write_bytes(content)
        with pytest.raises(ConfigError, match=says) as caught:
            config.read_config_file(path)
        assert str(caught.value).startswith(str(path))
    for path in (tmp_path / "nowhere.json", tmp_path):
        with pytest.raises(ConfigError, match="cannot be read"):
            config.read_config_file(path)


def test_what_an_artifact_holds_is_taken_strictly() -> None:
    for wrong in ({"layers": 3}, {"count": 1.0}, {"name": 3}):
        assert config.from_dict(Demo, wrong)
        with pytest.raises(ConfigError, match="is not of type"):
            config.from_dict(Demo, wrong, strict=True)


@dataclass(frozen=True, kw_only=True)
class Sized:
    image_size: tuple[int, ...] = (448,)
    picture_size: int = 256
    layers: tuple[int, ...] = ()


@pytest.mark.parametrize("text", ["112x224", "112×224", "112 X 224", "112,224", "[112, 224]"])
def test_a_size_is_a_height_and_a_width(text: str) -> None:
    assert config.override(Sized(), [f"image_size={text}"]).image_size == (112, 224)
    assert config.from_dict(Sized, {"image_size": "112x224"}).image_size == (112, 224)


@pytest.mark.parametrize(
    ("assignment", "said"),
    [
        ("image_size=big", "image_size: 'big' is no size; 448, or height and width as in 224x448"),
        ("image_size=112x", "'112x' is no size"),
        ("image_size=1x2x3", "'1x2x3' is no size"),
        ("picture_size=112x224", "112x224 is a height and a width; one number is needed"),
        ("layers=4x8", "layers: '4x8' is not of type int"),
    ],
)
def test_what_is_no_size(assignment: str, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        config.override(Sized(), [assignment])


@dataclass(frozen=True, kw_only=True)
class _Many:
    scores: tuple[Annotated[float, Range(-1, 1)], ...] = ()
    names: tuple[Annotated[str, Matching("[a-f]{2}", "two letters")], ...] = ()
    odd: tuple[Annotated[float, Range(1, 9, odd=True)], ...] = ()


@pytest.mark.parametrize("wrong", [math.nan, math.inf, 1.5, -2, "x", True, None])
def test_one_wrong_number_among_many_is_found(wrong: object) -> None:
    scores = [0.5] * 50
    assert config.from_dict(_Many, {"scores": scores}, strict=True).scores == tuple(scores)
    assert config.from_dict(_Many, {"scores": [0, 1.0]}, strict=True).scores == (0.0, 1.0)
    with pytest.raises(ConfigError, match=r"^scores: "):
        config.from_dict(_Many, {"scores": [*scores, wrong, *scores]}, strict=True)


@pytest.mark.parametrize("wrong", ["ag", "abc", "", "ab\n", 3])
def test_one_wrong_text_among_many_is_found(wrong: object) -> None:
    names = ["ab", "cd"] * 30
    assert config.from_dict(_Many, {"names": names}, strict=True).names == tuple(names)
    with pytest.raises(ConfigError, match=r"^names: "):
        config.from_dict(_Many, {"names": [*names, wrong]}, strict=True)


def test_an_even_number_among_odd_ones_is_found() -> None:
    with pytest.raises(ConfigError, match=r"odd: an odd number from 1 to 9 is needed, got 4\.0"):
        config.from_dict(_Many, {"odd": [1.0, 4.0, 9.0]}, strict=True)

"""What the pages are made of: files of others, colours, templates and scripts."""

from __future__ import annotations

import hashlib
import re
from importlib import resources
from pathlib import Path

import pytest

from blemish.serve.pages.rendering import environment

PLACE = Path(str(resources.files("blemish.serve")))
STATIC = PLACE / "static"
STYLE = (STATIC / "style.css").read_text("utf-8")
THEMES = {
    "light": STYLE[STYLE.index(":root {") :],
    "dark": STYLE[STYLE.index(':root[data-theme="dark"]') :],
}
# What stands on what: letters need 4.5 to 1, the edges of controls and signs 3 to 1 (WCAG 2.2,
# 1.4.3 and 1.4.11).
LETTERS = [
    *(("ink", ground) for ground in ("ground", "panel", "raised")),
    *(("muted", ground) for ground in ("ground", "panel", "raised")),
    *((name, "panel") for name in ("accent", "good", "defect", "unsure")),
    *((name, f"{name}-soft") for name in ("good", "defect", "unsure")),
    *((name, "ground") for name in ("accent", "good", "defect")),
    *(("ink", f"{name}-soft") for name in ("defect", "unsure")),
    *(("on-accent", "accent"), ("on-stage", "stage"), ("stage-muted", "stage")),
    *(("panel", "defect"), ("ground", "ink")),
]
SIGNS = [
    *(("edge", "panel"), ("edge", "ground"), ("focus", "panel"), ("focus", "ground")),
    *(("bar-usual", "panel"), ("bar-alarm", "panel")),
]


def colours(theme: str) -> dict[str, str]:
    block = THEMES[theme].partition("}")[0]
    return dict(re.findall(r"--([a-z-]+): (#[0-9a-f]{6});", block))


def luminance(colour: str) -> float:
    parts = [int(colour[at : at + 2], 16) / 255 for at in (1, 3, 5)]
    linear = [one / 12.92 if one <= 0.04045 else ((one + 0.055) / 1.055) ** 2.4 for one in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(one: str, other: str) -> float:
    dark, light = sorted((luminance(one), luminance(other)))
    return (light + 0.05) / (dark + 0.05)


def test_contrast_is_counted_as_wcag_counts_it() -> None:
    assert contrast("#000000", "#ffffff") == pytest.approx(21)
    assert contrast("#777777", "#ffffff") == pytest.approx(4.48, abs=0.01)


@pytest.mark.parametrize("theme", THEMES)
@pytest.mark.parametrize(("pairs", "least"), [(LETTERS, 4.5), (SIGNS, 3.0)])
def test_the_palette_can_be_read(theme: str, pairs: list[tuple[str, str]], least: float) -> None:
    known = colours(theme)
    found = {pair: contrast(known[pair[0]], known[pair[1]]) for pair in pairs}
    assert not {pair: round(value, 2) for pair, value in found.items() if value < least}


def test_dark_is_the_same_whoever_chose_it() -> None:
    by_system = STYLE[STYLE.index(':root:not([data-theme="light"])') :].partition("}")[0]
    by_hand = THEMES["dark"].partition("}")[0]
    assert re.findall(r"--[a-z-]+: [^;]+;", by_system) == re.findall(r"--[a-z-]+: [^;]+;", by_hand)


def test_fixed_colours_of_the_stage_can_be_read() -> None:
    for letters, ground in (
        ("#e9eeec", "#1b1f1e"),
        ("#e9eeec", "#2a302e"),
        ("#e9eeec", "#39413e"),
        ("#08282c", "#72cdd3"),
        ("#7edab4", "#262a29"),
        ("#ffa48a", "#262a29"),
    ):
        assert letters in STYLE
        assert contrast(letters, ground) >= 4.5


def test_htmx_is_the_file_that_its_table_names() -> None:
    folder = STATIC / "vendor"
    table = (folder / "README.md").read_text("utf-8")
    named = dict(re.findall(r"\| `([\w.]+)` \|.*\| ([0-9a-f]{64}) \|", table))
    found = {
        one.name: hashlib.sha256(one.read_bytes()).hexdigest()
        for one in folder.iterdir()
        if one.suffix == ".js"
    }
    assert named == found
    assert "Zero-Clause BSD" in (folder / "LICENSE.txt").read_text("utf-8")


@pytest.mark.parametrize("name", environment().list_templates())
def test_templates_hold_no_inline_code(name: str) -> None:
    """The policy of the service would refuse it; so it is no part of a page in the first place."""
    text = (PLACE / "templates" / name).read_text("utf-8")
    environment().get_template(name)
    assert not re.search(r"<script(?![^>]*\ssrc=)|<style|\sstyle=|\son\w+=|javascript:", text)
    assert "|safe" not in text.replace(" ", "")
    assert not re.search(r"https?://(?!HOST)", text)


@pytest.mark.parametrize("path", sorted((STATIC / "js").iterdir()), ids=lambda one: one.name)
def test_scripts_make_no_code_of_text(path: Path) -> None:
    text = path.read_text("utf-8")
    assert not re.search(r"\beval\(|new Function|document\.write|https?://(?!www\.w3\.org)", text)
    # Only what the service has rendered is put in as HTML.
    assert text.count("innerHTML") == (1 if path.name == "live.js" else 0)

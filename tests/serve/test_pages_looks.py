"""All pages at all widths and in both themes: nothing is wider than the window, and what is written
can be read (WCAG 2.2, AA: 1.4.3, 1.4.11, 2.4.7)."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import rooms
from live import Live
from parts import Fitted
from playwright.sync_api import Page

WIDTHS = (390, 768, 1280, 1920)
CONTRAST = Path(__file__).with_name("contrast.js").read_text()


@pytest.fixture(scope="module")
def live(
    fitted: Fitted, pictures: list[Path], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Live]:
    with rooms.full(fitted, pictures, tmp_path_factory.mktemp("full")) as one:
        yield one


def settled(page: Page, address: str) -> None:
    """Open a page and wait for what comes by itself."""
    page.goto(address)
    page.wait_for_load_state("load")
    if page.locator("#likeness[hx-get]").count():
        page.locator("#likeness:not([hx-get])").wait_for()


@pytest.mark.parametrize("width", WIDTHS)
def test_no_page_is_wider_than_the_window(live: Live, page: Page, width: int) -> None:
    page.set_viewport_size({"width": width, "height": 844})
    wide = {}
    for path in [*rooms.paths(live), "/docs"]:
        settled(page, live.url + path)
        found = page.evaluate("[document.scrollingElement.scrollWidth, innerWidth]")
        if found[0] > found[1]:
            wide[path] = found
    assert not wide


def test_the_login_fits_a_phone(fitted: Fitted, tmp_path: Path, page: Page) -> None:
    tokens = tmp_path / "tokens"
    tokens.write_text("review Ada token-of-ada-00001\n")
    tokens.chmod(0o600)
    page.set_viewport_size({"width": 320, "height": 568})
    with rooms.full(fitted, [], tmp_path, token_file=tokens) as live:
        page.goto(f"{live.url}/figures")
        assert page.evaluate("document.scrollingElement.scrollWidth") <= 320


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_what_is_written_can_be_read(live: Live, page: Page, scheme: Any) -> None:
    page.emulate_media(color_scheme=scheme)
    weak: dict[str, Any] = {}
    for path in rooms.paths(live):
        settled(page, live.url + path)
        weak |= {f"{path} {where}": ratio for where, ratio in page.evaluate(CONTRAST).items()}
    page.goto(f"{live.url}/models")
    page.keyboard.press("?")
    weak |= page.evaluate(CONTRAST)
    assert not weak


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_whoever_goes_by_tab_sees_where_they_are(live: Live, page: Page, scheme: Any) -> None:
    """Each stop has a name and an outline that stands out from what is beside it."""
    page.emulate_media(color_scheme=scheme)
    for path in rooms.paths(live)[:-1]:
        settled(page, live.url + path)
        names = []
        for _ in range(60):
            page.keyboard.press("Tab")
            found = page.evaluate("focused()") if names else page.evaluate(f"{CONTRAST}; focused()")
            if found is None or found["name"] in names[:1]:
                break
            names.append(found["name"])
            assert found["name"], (path, found)
            assert found["outline"] >= 3, (path, found)
        assert len(names) > 8


def test_who_wants_no_motion_has_none(live: Live, page: Page) -> None:
    page.emulate_media(reduced_motion="reduce")
    for path in rooms.paths(live):
        settled(page, live.url + path)
        moving = page.evaluate(
            """() => [...document.querySelectorAll("*")].filter((one) => {
              const style = getComputedStyle(one);
              return style.animationName !== "none" || parseFloat(style.transitionDuration) > 0
                || style.scrollBehavior === "smooth";
            }).map((one) => one.outerHTML.slice(0, 80))"""
        )
        assert moving == []

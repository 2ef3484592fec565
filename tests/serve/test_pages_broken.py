"""Faults of the pages that were found by hand, in a browser."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from live import Live, serving
from playwright.sync_api import Page, expect

HIDDEN = """hidden => {
  Object.defineProperty(document, "hidden", { configurable: true, get: () => hidden });
  document.dispatchEvent(new Event("visibilitychange"));
}"""


@pytest.fixture
def live(artifact: Path, tmp_path: Path) -> Iterator[Live]:
    with serving(artifact, store_folder=tmp_path / "store") as one:
        yield one


def send(live: Live, pictures: list[Path]) -> None:
    with live.client() as client:
        for path in pictures:
            client.post("/v1/models/part/predict", content=path.read_bytes()).raise_for_status()


def listeners(live: Live, wanted: int) -> bool:
    until = time.monotonic() + 20
    while live.service.events.listeners != wanted and time.monotonic() < until:
        time.sleep(0.02)
    return live.service.events.listeners == wanted


def test_a_tab_that_nobody_looks_at_holds_no_connection(
    live: Live, page: Page, pictures: list[Path]
) -> None:
    page.goto(f"{live.url}/live")
    expect(page.locator("#state")).to_have_text("live")
    assert listeners(live, 1)
    page.evaluate(HIDDEN, True)
    send(live, pictures[:1])  # the service sees that a listener has gone when it speaks to it
    assert listeners(live, 0)
    page.evaluate(HIDDEN, False)
    assert listeners(live, 1)
    expect(page.locator("#feed .shown")).to_be_visible()


def test_a_picture_without_a_source_can_be_followed(
    live: Live, page: Page, pictures: list[Path]
) -> None:
    send(live, pictures[:1])
    page.goto(f"{live.url}/review")
    page.get_by_role("link", name="picture 0").click()
    expect(page).to_have_title("picture 0 · blemish")


def test_the_name_of_a_file_is_shown(live: Live, page: Page, pictures: list[Path]) -> None:
    with live.client() as client:
        client.post(
            "/v1/models/part/predict?source=camera+1",
            files={"picture": ("bolt 7.png", pictures[0].read_bytes())},
        ).raise_for_status()
    for path in ("/live", "/pictures", "/review", "/pictures/1"):
        page.goto(live.url + path)
        expect(page.locator("main")).to_contain_text("bolt 7.png")
    expect(page.locator(".facts")).to_contain_text("camera 1")

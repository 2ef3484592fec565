"""Debian's Chromium for tests, by Playwright, and a folder as a web server gives it out."""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # not needed where other tests run, as on a machine lent for its GPU
    from playwright.sync_api import Browser, Page

CHROMIUM = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), ""
)
PATIENCE = 60.0  # seconds for an answer, on a busy machine
# Every name but the loopback's is unknown to it: what asks for anything else fails.
OPTIONS = (
    "--no-sandbox",
    "--disable-dev-shm-usage",
    "--use-fake-device-for-media-stream",
    "--use-fake-ui-for-media-stream",
    "--host-resolver-rules=MAP * ~NOTFOUND , EXCLUDE 127.0.0.1",
)


@contextmanager
def shown(browser: Browser, address: str) -> Iterator[Page]:
    """A page of its own, closed at the end."""
    page = browser.new_page(viewport={"width": 1280, "height": 900})
    page.set_default_timeout(1000 * PATIENCE)
    try:
        page.goto(address)
        yield page
    finally:
        page.context.close()


def text(page: Page, selector: str) -> str:
    """What a person reads there; "" where it is hidden."""
    place = page.locator(selector).first
    return place.inner_text() if place.is_visible() else ""


def until(page: Page, condition: str) -> None:
    """Until an expression is true. (`wait_for_function` evaluates it where the page forbids to.)"""
    end = time.monotonic() + PATIENCE
    while not page.evaluate(f"Boolean({condition})"):
        assert time.monotonic() < end, f"never true: {condition}"
        page.wait_for_timeout(50)


@contextmanager
def served(folder: Path) -> Iterator[str]:
    """The address of a folder, as `python -m http.server` gives it out on the loopback."""

    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, *_: object) -> None:
            pass

    handler = partial(Quiet, directory=str(folder))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = Thread(target=server.serve_forever, daemon=True)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}/"
        finally:
            server.shutdown()
            thread.join()

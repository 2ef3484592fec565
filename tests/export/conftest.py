from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pages
import pytest
from browser import CHROMIUM, Browser, Page, served

from blemish.detector.manifest import Manifest


@pytest.fixture(scope="session")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    if not CHROMIUM:
        missing = "no Chromium: apt-get install chromium"
        (pytest.fail if os.environ.get("BLEMISH_CI") else pytest.skip)(missing)
    browser = Browser(tmp_path_factory.mktemp("profile"))
    try:
        yield browser
    finally:
        browser.close()


@pytest.fixture(scope="session")
def record() -> Manifest:
    """Of a detector of which the graph is that of `pages.graph`."""
    return pages.calibrated(pages.fitted().record)


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory, record: Manifest) -> Path:
    """Its page."""
    return pages.wrote(tmp_path_factory.mktemp("page") / "page", record)


@pytest.fixture(scope="module")
def opened(browser: Browser, folder: Path) -> Iterator[Page]:
    """The page, ready."""
    with served(folder) as address, browser.page(address) as page:
        page.wait(pages.READY)
        assert page.text("#error") == ""
        yield page

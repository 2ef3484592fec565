from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pages
import pytest
from browser import served, shown, text, until
from playwright.sync_api import Browser, Page

from blemish.detector.manifest import Manifest


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
    with served(folder) as address, shown(browser, address) as page:
        until(page, pages.READY)
        assert text(page, "#error") == ""
        yield page

"""Loads the fixtures, and with them torch, where tests run: the process that hands them out needs
none.
"""

from __future__ import annotations

import asyncio
import os
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")  # for tests that import onnxruntime themselves


# Files with few tests that take long, the longest first. Workers begin with them, so that none is
# busy with one at the end, when the others have no more to do.
LONG = (
    *("scale/test_learning.py", "serve/test_learning_jobs.py", "export/test_exporting.py"),
    *("scale/test_predict_ray.py", "cli/test_watch.py", "serve/test_page_refine.py"),
    *("test_notebooks.py", "serve/test_killed_while_joining.py", "serve/test_refining.py"),
    *("store/test_killed.py", "test_without_torch.py", "test_site.py", "bench/test_pages.py"),
    *("cli/test_compare.py", "scale/test_lost_machines.py", "scale/test_cluster.py"),
)


@pytest.hookimpl(trylast=True)  # without those that are not asked for
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """The order in which files are handed to workers: `LONG`, then those with the most tests, as
    xdist has it without `--no-loadscope-reorder`."""
    if not hasattr(config, "workerinput"):
        return
    long = [Path(__file__).parent / name for name in LONG]
    absent = [str(path) for path in long if not path.is_file()]
    assert not absent, f"LONG in tests/conftest.py names files that are gone: {absent}"
    place = {path: number for number, path in enumerate(long)}
    tests = Counter(item.path for item in items)
    items.sort(key=lambda item: (place.get(item.path, len(place)), -tests[item.path]))


def pytest_configure(config: pytest.Config) -> None:
    if hasattr(config, "workerinput") or not config.getoption("numprocesses", None):
        config.pluginmanager.import_plugin("shared_fixtures")


@pytest.fixture(autouse=True)
def _no_loop_of_a_browser(request: pytest.FixtureRequest) -> Iterator[None]:
    """Playwright leaves an event loop running in its thread, between its tests as well, in which
    others could start none."""
    loop = asyncio._get_running_loop()
    if loop is None or "playwright" in request.fixturenames:  # which those for tests rest on
        yield
        return
    asyncio._set_running_loop(None)
    yield
    asyncio._set_running_loop(loop)

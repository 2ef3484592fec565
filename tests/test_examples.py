"""Every example in a docstring gives what it says."""

from __future__ import annotations

import doctest
import importlib
import re
from pathlib import Path

import pytest

import blemish

ROOT = Path(blemish.__file__).parent
MODULES = sorted(
    ".".join(("blemish", *path.relative_to(ROOT).with_suffix("").parts)).removesuffix(".__init__")
    for path in ROOT.rglob("*.py")
    if path.stem != "__main__" and "migrations" not in path.parts  # these run by Alembic alone
)


@pytest.mark.parametrize("name", MODULES)
def test_examples(name: str) -> None:
    module = importlib.import_module(name)
    runner = doctest.DocTestRunner(verbose=False)
    reports: list[str] = []
    for test in doctest.DocTestFinder(exclude_empty=True).find(module, name):
        runner.run(test, out=reports.append)
    assert not runner.failures, "".join(reports)


def test_there_are_examples() -> None:
    texts = [path.read_text(encoding="utf-8") for path in ROOT.rglob("*.py")]
    shown = [text for text in texts if re.search(r"^ +Example:$", text, re.MULTILINE)]
    assert len(shown) > 10
    assert all(">>>" in text for text in shown)

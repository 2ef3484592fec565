"""What the tests of all methods need."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import pytest

from blemish.methods.heads import ClassHead


@pytest.fixture(autouse=True)
def _own_randomness(seeded: None) -> None:
    """Every test draws the same numbers, whichever ran before it."""


@pytest.fixture(scope="module")
def small_head() -> Iterator[None]:
    """A step through the class head of `guided`, which is 2048 wide, would take too long."""
    with pytest.MonkeyPatch.context() as patch:
        small = partial(ClassHead, hidden=32, bottleneck=16)
        patch.setattr("blemish.methods.guided.ClassHead", small)
        yield

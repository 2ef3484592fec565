"""What the tests of all methods need."""

from __future__ import annotations

import pytest


@pytest.fixture(autouse=True)
def _own_randomness(seeded: None) -> None:
    """Every test draws the same numbers, whichever ran before it."""

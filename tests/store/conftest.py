"""Stores on both databases: every test that takes `url` or `store` runs on each."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from postgres import Server
from store_parts import digest

from blemish.store import Scored, Store


@pytest.fixture(scope="session")
def postgres() -> Iterator[Server]:
    """A running PostgreSQL; do not stop it."""
    server = Server()
    yield server
    server.remove()


@pytest.fixture(params=["sqlite", "postgresql"])
def url(request: pytest.FixtureRequest) -> Iterator[str | None]:
    """Of an empty database: None for SQLite."""
    if request.param == "sqlite":
        yield None
        return
    server: Server = request.getfixturevalue("postgres")
    with server.database() as found:
        yield found


@pytest.fixture
def store(url: str | None, tmp_path: Path) -> Iterator[Store]:
    with Store.open(url, tmp_path / "store") as opened:
        yield opened


@pytest.fixture(scope="session")
def scored() -> Callable[..., Scored]:
    """`scored(3, label=1)`: a prediction of the picture `digest(3)`, changed as asked."""

    def make(number: int = 0, **changes: Any) -> Scored:
        given = {
            **{"picture": digest(number), "model": "part", "version": "1"},
            **{"score": float(number), "height": 8, "width": 8, "threshold": 4.5},
            "label": int(number > 4),
        }
        return Scored(**{**given, **changes})

    return make

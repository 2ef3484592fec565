"""The pages as any client gets them: what they show, whom they let in, what they refuse."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from live import Live, serving

PAGES = ("/live", "/pictures", "/review", "/figures", "/models")


@pytest.fixture
def live(artifact: Path, tmp_path: Path) -> Iterator[Live]:
    with serving(artifact, store_folder=tmp_path / "store") as one:
        yield one


@pytest.mark.parametrize("path", PAGES)
def test_a_page_without_pictures(live: Live, path: str) -> None:
    with live.client() as client:
        answer = client.get(path, headers={"Accept": "text/html"})
        assert answer.status_code == 200, answer.text
        assert "<main" in answer.text


def test_pages_of_a_picture(live: Live, pictures: list[Path]) -> None:
    with live.client() as client:
        for path in pictures:
            files = {"picture": (path.name, path.read_bytes())}
            assert client.post("/v1/models/part/predict", files=files).status_code == 200
        for path in (*PAGES, "/pictures/1", "/live/feed", "/live/summary"):
            answer = client.get(path, headers={"Accept": "text/html"})
            assert answer.status_code == 200, live.log.getvalue()[-3000:]

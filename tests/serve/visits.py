"""What a plain client does with the pages: reads them, sends pictures, fills in the form."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import httpx2 as httpx

PAGES = ("/live", "/pictures", "/review", "/figures", "/models")
HTML = {"Accept": "text/html"}


def page(client: httpx.Client, path: str, status: int = 200) -> str:
    answer = client.get(path, headers=HTML)
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"].startswith("text/html")
    policy = answer.headers["content-security-policy"]
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy
    return answer.text


def csrf_of(text: str) -> dict[str, str]:
    found = re.search(r'<meta name="csrf" content="([^"]+)">', text)
    assert found is not None
    return {"X-CSRF-Token": found[1]}


def sent(client: httpx.Client, pictures: list[Path], **asked: str) -> list[dict[str, Any]]:
    rows = []
    for path in pictures:
        files = {"picture": (path.name, path.read_bytes())}
        answer = client.post("/v1/models/part/predict", files=files, params=asked)
        assert answer.status_code == 200, answer.text
        rows += answer.json()["predictions"]
    return rows


def said(row: dict[str, Any], verdict: str, **more: Any) -> dict[str, Any]:
    """The form of a label."""
    given = {
        "picture": row["digest"],
        "prediction": str(row["id"]),
        "verdict": verdict,
        "then": "next",
        "skipped": "",
        **more,
    }
    return {
        name: (None, value) if isinstance(value, str) else value for name, value in given.items()
    }

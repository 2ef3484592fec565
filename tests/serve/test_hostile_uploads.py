"""Requests that no honest client sends: none fails the service, or learns about its machine."""

from __future__ import annotations

import collections
import re
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from fuzzing import uploads
from live import Live, serving

import blemish

ROOT = Path(blemish.__file__).parents[2]


def judged(live: Live, attempt: uploads.Attempt) -> str:
    """What is wrong with an answer; "" for nothing."""
    place = urlsplit(live.url)
    told = uploads.answered(attempt, str(place.hostname), int(place.port or 0))
    status = re.match(rb"HTTP/1\.1 (\d{3})", told)
    if told and status is None:
        return "is no answer"
    if status is not None and status[1].startswith(b"5") and status[1] != b"504":
        return f"is answered with {status[1].decode()}"
    for secret in (str(ROOT), str(Path.home()), "Traceback", "site-packages", ".py", "/tmp"):
        if secret.encode() in told and secret.encode() not in b"".join(attempt.parts):
            return f"tells {secret}"
    return ""


@pytest.mark.parametrize("count", [pytest.param(153), pytest.param(1000, marks=pytest.mark.slow)])
def test_hostile_uploads(artifact: Path, pictures: list[Path], tmp_path: Path, count: int) -> None:
    models = tmp_path / "models" / "part"
    models.mkdir(parents=True)
    (models / "1.blemish").write_bytes(artifact.read_bytes())
    known = blemish.load(artifact).predict(pictures[0])
    store = tmp_path / "store"
    before = sorted(str(path) for path in (tmp_path / "models").rglob("*"))
    faults: dict[str, str] = {}
    kinds: collections.Counter[str] = collections.Counter()
    how = {"time_limit_s": 2, "largest_upload": 2**20, "store_folder": store}
    with serving(models.parent, **how) as live:
        several = list(uploads.attempts(count, seed=count))
        with ThreadPoolExecutor(16) as pool:
            found = pool.map(lambda one: judged(live, one), several)
            for attempt, fault in zip(several, found, strict=True):
                kinds[attempt.kind.partition(" ")[0]] += 1
                if fault:
                    faults[attempt.kind] = fault
        assert faults == {}
        with live.client() as client:  # it does what it did before
            answer = client.post("/v1/models/part/predict", content=pictures[0].read_bytes())
            assert answer.json()["predictions"][0]["score"] == pytest.approx(known.score, rel=1e-4)
        assert live.service.queued == live.service.held == 0
        errors = [line for line in live.lines if line["level"] == "error"]
        assert errors == []
        assert live.log.getvalue().isascii()
    assert len(kinds) >= 9
    assert sorted(str(path) for path in (tmp_path / "models").rglob("*")) == before
    names = [path.name for path in (store / "media").rglob("*") if path.is_file()]
    assert names  # some damage leaves a picture that can be read
    assert all(re.fullmatch(r"[0-9a-f]{32}(-[0-9a-f]{16})?\.[a-z]{3,4}", name) for name in names)
    outside = {path.name for path in tmp_path.iterdir()}
    assert outside == {"models", "store"}

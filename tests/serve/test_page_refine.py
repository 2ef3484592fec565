"""The page of jobs: what it shows before, while and after, whom it lets in, and in a browser."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from live import Live, serving
from playwright.sync_api import Page, expect
from test_learning_jobs import detector, review  # noqa: F401

import blemish
from blemish.store import Job

HTML = {"Accept": "text/html"}


@pytest.fixture
def live(detector: blemish.Detector, tmp_path: Path) -> Iterator[Live]:  # noqa: F811
    detector.save(tmp_path / "models" / "part" / "1.blemish")
    with serving(
        tmp_path / "models", store_folder=tmp_path / "store", device="cpu", precision="fp32"
    ) as live:
        yield live


def shown(live: Live, path: str = "/refine") -> str:
    with live.client() as client:
        answer = client.get(path, headers=HTML)
        assert answer.status_code == 200, answer.text
        return answer.text


def test_before_anything_is_reviewed(live: Live) -> None:
    page = shown(live)
    assert "Nothing is reviewed that it has not learned from" in page
    assert "/refine/begin" not in page
    assert "None so far" in page


def test_a_detector_that_cannot_learn_says_how(artifact: Path, tmp_path: Path) -> None:
    with serving(artifact, store_folder=tmp_path / "store") as live:
        page = shown(live)
        assert "Set the threshold anew from" in page
        assert "blemish fit lda" in page
    with serving(artifact) as live:
        assert "Nothing is kept" in shown(live)


def test_rates_that_are_none(live: Live, detector: blemish.Detector) -> None:  # noqa: F811
    review(live, detector, good=4, bad=4)
    for rate in ("0", "100", "-3", "many", "nan"):
        with live.client() as client:
            found = re.search('name="csrf" content="([^"]+)"', client.get("/refine").text)
            assert found is not None
            csrf = {"X-CSRF-Token": found[1]}
            refused = client.post("/refine/begin?model=part", data={"rate": rate}, headers=csrf)
            assert refused.status_code == 400, (rate, refused.text)
            assert "between 0 and 100" in refused.text
    assert not live.run(live.service.jobs.jobs())


def test_what_is_told_of_a_job_is_text(live: Live) -> None:
    hostile = '<script>alert(1)</script>{{1234567*7654321}}"'
    job = Job(model="part", kind="refine", who="Ada", state="failed", message=hostile,
              settings={"base": "1", "learn": 3})  # fmt: skip
    live.service.store.add_job(job)
    page = shown(live)
    assert "<script>alert(1)" not in page
    assert "&lt;script&gt;alert(1)" in page
    assert "9449772114007" not in page
    with live.client() as client:
        assert client.get("/refine?job=99", headers=HTML).status_code == 404


def test_who_may_begin_and_promote(detector: blemish.Detector, tmp_path: Path) -> None:  # noqa: F811
    detector.save(tmp_path / "models" / "part" / "1.blemish")
    tokens = tmp_path / "tokens"
    tokens.write_text("review Ada ada-0123456789abc\npredict camera camera-0123456789\n")
    tokens.chmod(0o600)
    how = {"store_folder": tmp_path / "store", "token_file": tokens, "device": "cpu"}
    with serving(tmp_path / "models", **how) as live:
        with live.client() as client:  # a browser that is not logged in is sent to the login
            assert client.get("/refine", headers=HTML).status_code == 303
        with live.client() as client:
            client.post("/login", data={"token": "ada-0123456789abc", "next": "/refine"})
            assert client.get("/refine", headers=HTML).status_code == 200
            forged = client.post("/refine/begin?model=part", data={"rate": ""})
            assert (forged.status_code, "Forged" in forged.text) == (403, True)
            assert client.post("/refine/1/promote?model=part", data={}).status_code == 403


def test_in_a_browser(live: Live, page: Page, detector: blemish.Detector) -> None:  # noqa: F811
    problems: list[str] = []
    page.on("pageerror", lambda error: problems.append(str(error)))
    review(live, detector, good=20, bad=12)
    page.goto(f"{live.url}/refine")
    page.get_by_role("button", name="Learn from").click()
    expect(page.locator("progress")).to_be_visible()
    expect(page.locator("#came")).to_be_visible(timeout=120_000)
    expect(page.locator("#came")).to_contain_text("Version 2 beside version 1")
    assert page.locator(".tile.compared").count() > 4
    page.get_by_role("button", name="Promote version 2").click()
    page.get_by_label("Why").fill("it finds more")
    page.locator("dialog[open]").get_by_role("button", name="Promote", exact=True).click()
    expect(page.locator("#refine .told")).to_have_text("Version 2 is live now.")
    expect(page.locator("header .version")).to_contain_text("2")
    assert live.service.models.live("part").version == "2"
    assert live.service.store.promotions("part")[-1].reason == "it finds more"
    assert not problems

"""The pages of a service that has users: who may do what, and what two reviewers say."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx2 as httpx
import pytest
from live import Live, serving
from parts import Fitted
from visits import HTML, PAGES, csrf_of, page, said, sent

TOKENS = {
    "predict": "predict-token-0001",
    "review": "review-token-00001",
    "admin": "admin-token-000001",
}


@pytest.fixture
def guarded(fitted: Fitted, tmp_path: Path) -> Iterator[Live]:
    """A service with a user of each role, and two versions."""
    folder = tmp_path / "models" / "part"
    folder.mkdir(parents=True)
    for version in ("1", "2"):
        fitted("knn").save(folder / f"{version}.blemish")
    tokens = tmp_path / "tokens"
    tokens.write_text("".join(f"{role} {role}-user {token}\n" for role, token in TOKENS.items()))
    tokens.chmod(0o600)
    with serving(tmp_path / "models", store_folder=tmp_path / "store", token_file=tokens) as one:
        yield one


@contextmanager
def logged_in(live: Live, role: str) -> Iterator[httpx.Client]:
    """A browser of a user of that role; it sends the session's CSRF token."""
    with live.client(follow_redirects=True) as client:
        answer = client.post("/login", data={"token": TOKENS[role], "next": "/models"})
        assert answer.status_code == 200, answer.text
        assert answer.url.path == "/models"
        client.headers |= csrf_of(answer.text)
        yield client


def test_what_two_reviewers_say_is_kept_and_shown(guarded: Live, pictures: list[Path]) -> None:
    with (
        logged_in(guarded, "review") as one,
        logged_in(guarded, "admin") as other,
        guarded.client(TOKENS["predict"]) as program,
    ):
        (row,) = sent(program, pictures[:1])
        one.post("/review/label", files=said(row, "good"))
        other.post("/review/label", files=said(row, "defect", defect="scratch"))
        text = page(one, f"/pictures/{row['id']}")
        assert "Reviewers disagree" in text
        assert "review-user" in text
        assert "admin-user</b> · scratch" in text
        assert f'href="/pictures/{row["id"]}"' in page(one, "/figures")
        assert f'data-id="{row["id"]}"' in page(one, "/pictures?reviewed=disagreed")
        assert f'data-id="{row["id"]}"' not in page(one, "/pictures?reviewed=good")


def test_two_reviewers_look_at_different_pictures(guarded: Live, pictures: list[Path]) -> None:
    with (
        logged_in(guarded, "review") as one,
        logged_in(guarded, "admin") as other,
        guarded.client(TOKENS["predict"]) as program,
    ):
        sent(program, pictures)
        shown = [
            re.search(r'data-picture-id="(\d+)"', page(client, "/review"))[1]  # type: ignore[index]
            for client in (one, other, one)
        ]
    assert shown[0] == shown[2] != shown[1]


def test_roles(guarded: Live) -> None:
    with guarded.client() as nobody:
        for path in PAGES:
            answer = nobody.get(f"{path}?model=part", headers=HTML)
            assert answer.status_code == 303
            assert answer.headers["location"] == f"/login?next=%2F{path[1:]}%3Fmodel%3Dpart"
        assert nobody.get("/media/pictures/" + "0" * 32).status_code == 401
        fragment = nobody.get("/live/feed", headers={**HTML, "HX-Request": "true"})
        assert fragment.headers["hx-redirect"].startswith("/login")
        assert "Nobody has that token" in nobody.post("/login", data={"token": "guess"}).text
    with guarded.client() as predicts:
        predicts.post("/login", data={"token": TOKENS["predict"]})
        for path in PAGES:
            assert "the role review" in page(predicts, path, 403)
    with logged_in(guarded, "review") as reviews:
        assert "Promote…" not in page(reviews, "/models")
        answer = reviews.post("/models/part/promote", data={"version": "1"})
        assert answer.status_code == 403
        assert guarded.service.models.live("part").version == "2"


def test_a_login_leads_to_no_other_site(guarded: Live) -> None:
    with guarded.client() as client:
        for target in (
            "//evil.example",
            "https://evil.example/",
            "/\\evil.example",
            "javascript:1",
        ):
            given = {"token": TOKENS["admin"], "next": target}
            answer = client.post("/login", data=given)
            assert (answer.status_code, answer.headers["location"]) == (303, "/live")


def test_promote_and_roll_back(guarded: Live) -> None:
    with logged_in(guarded, "admin") as client:
        answer = client.post("/models/part/promote", data={"version": "1", "reason": "<b>"})
        assert "Version 1 is live now." in answer.text
        assert "&lt;b&gt;" in answer.text
        assert guarded.service.models.live("part").version == "1"
        answer = client.post("/models/part/promote", data={"version": "9"})
        assert answer.status_code == 404
        answer = client.post("/models/part/roll-back", data={})
        assert "Back to version 2." in answer.text
        out = client.post("/logout")
        assert out.headers["hx-redirect"] == "/login"
        assert client.get("/models", headers=HTML, follow_redirects=False).status_code == 303


@pytest.mark.parametrize(
    "path",
    ["/review/label", "/review/undo", "/models/part/promote", "/models/part/roll-back", "/logout"],
)
def test_changes_need_the_token_of_the_session(guarded: Live, path: str) -> None:
    with logged_in(guarded, "admin") as client:
        right = client.headers.pop("X-CSRF-Token")
        for wrong in ({}, {"X-CSRF-Token": "guess"}):
            answer = client.post(path, data={"version": "1"}, headers=wrong)
            assert answer.status_code == 403
            assert answer.json()["error"]["kind"] == "Forged"
        forged = {
            "X-CSRF-Token": right,
            "Origin": "https://evil.example",
            "Sec-Fetch-Site": "cross-site",
        }
        assert client.post(path, data={"version": "1"}, headers=forged).status_code == 403
    assert guarded.service.models.live("part").version == "2"

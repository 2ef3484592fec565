"""Who may do what, and where from."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from live import Live, serving
from starlette.requests import Request
from starlette.responses import Response

from blemish.errors import ConfigError
from blemish.serve.guard import POLICY
from blemish.serve.security import COOKIE, Gate, User, read_tokens
from blemish.serve.settings import Settings

PREDICT, REVIEW, ADMIN = ("p" * 32, "r" * 32, "a" * 32)
URL = "/v1/models/part/predict"


def token_file(folder: Path, text: str = "", mode: int = 0o600) -> Path:
    path = folder / "tokens"
    lines = f"predict line {PREDICT}\n\n# people\nreview ada {REVIEW}\nadmin root {ADMIN}\n"
    path.write_text(text or lines)
    path.chmod(mode)
    return path


@pytest.fixture(scope="module")
def guarded(artifact: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Live]:
    """A service with tokens."""
    with serving(artifact, token_file=token_file(tmp_path_factory.mktemp("tokens"))) as running:
        yield running


@pytest.fixture(scope="module")
def local(artifact: Path) -> Iterator[Live]:
    """A service without."""
    with serving(artifact, hosts=("inspection.example",)) as running:
        yield running


def test_the_roles(guarded: Live, pictures: list[Path]) -> None:
    content = pictures[0].read_bytes()
    # What each path answers to nobody, predict, review and admin.
    expected = {
        ("GET", "/v2/health/live"): (200, 200, 200, 200),
        ("GET", "/v2/health/ready"): (200, 200, 200, 200),
        ("GET", "/v1/models"): (401, 200, 200, 200),
        ("GET", "/v2"): (401, 200, 200, 200),
        ("GET", "/v2/models/part"): (401, 200, 200, 200),
        ("GET", "/v2/models/part/ready"): (401, 200, 200, 200),
        ("GET", "/metrics"): (401, 200, 200, 200),
        ("GET", "/docs"): (401, 200, 200, 200),
        ("GET", "/openapi.json"): (401, 200, 200, 200),
        ("GET", "/v1/me"): (401, 200, 200, 200),
        ("POST", URL): (401, 200, 200, 200),
        ("POST", "/v2/models/part/infer"): (401, 400, 400, 400),
        ("POST", "/v1/models/part/promote"): (401, 403, 403, 400),
        ("POST", "/v1/models/part/roll-back"): (401, 403, 403, 409),
        ("POST", "/v1/models/part/versions?version=2"): (401, 403, 403, 409),
    }
    for (method, path), statuses in expected.items():
        for token, status in zip(("", PREDICT, REVIEW, ADMIN), statuses, strict=True):
            with guarded.client(token) as client:
                answer = client.request(method, path, content=content if "POST" in method else None)
            assert answer.status_code == status, (method, path, token[:1], answer.text)
            if status == 401:
                assert answer.headers["WWW-Authenticate"] == "Bearer"


def test_every_route_asks_who(guarded: Live) -> None:
    """Also those that are added later, save for what a load balancer, a login and styles need."""
    open_ones = ("/v2/health/", "/login", "/static/", "/docs/manual.css")
    with guarded.client() as client:
        for path, methods in guarded.app.openapi()["paths"].items():
            if path.startswith(open_ones):
                continue
            for method in methods:
                shown = path.replace("{name}", "part").replace("{version}", "1")
                answer = client.request(method, shown)
                assert answer.status_code in (401, 303), (method, path)


def test_events_take_a_reviewer(guarded: Live) -> None:
    with guarded.client(PREDICT) as client:
        assert client.get("/v1/events").status_code == 403


@pytest.mark.parametrize("token", ["~", "x" * 32, PREDICT[:-1], PREDICT + "p", "ü" * 16])
def test_a_token_that_nobody_has(guarded: Live, token: str) -> None:
    with guarded.client() as client:
        header = f"Bearer {token}".encode("latin-1")
        answer = client.get("/v1/me", headers={b"Authorization": header})
    assert answer.status_code == 401


def test_no_token_in_the_log(guarded: Live, pictures: list[Path]) -> None:
    with guarded.client(ADMIN) as client:
        client.get("/v1/me", params={"token": REVIEW})
        client.post(URL, content=pictures[0].read_bytes(), params={"name": "\x1b[2J\n{}"})
    while guarded.lines[-1].get("method") != "POST":  # written once the answer is sent
        time.sleep(0.01)
    written = guarded.log.getvalue()
    assert written.isascii()
    assert "\x1b" not in written
    for token in (PREDICT, REVIEW, ADMIN):
        assert token not in written
    line = guarded.lines[-1]
    assert (line["event"], line["user"], line["status"]) == ("request", "root", 200)
    assert (line["model"], line["pictures"], line["method"]) == ("part", 1, "POST")


@pytest.mark.parametrize(
    ("host", "status"),
    [
        ("localhost", 200),
        ("localhost:8000", 200),
        ("127.0.0.1", 200),
        ("[::1]:80", 200),
        ("192.0.2.7:1", 200),
        ("inspection.example", 200),
        ("INSPECTION.example:443", 200),
        ("evil.example", 421),
        ("localhost.evil.example", 421),
        ("inspection.example.evil", 421),
        ("[::1", 421),
        ("", 421),
    ],
)
def test_the_name_that_it_is_asked_under(local: Live, host: str, status: int) -> None:
    with local.client() as client:
        answer = client.get("/v1/models", headers={"Host": host})
    assert answer.status_code == status


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({}, 200),
        ({"Origin": "http://evil.example"}, 403),
        ({"Origin": "null"}, 403),
        ({"Sec-Fetch-Site": "cross-site"}, 403),
        ({"Sec-Fetch-Site": "same-site"}, 403),
        ({"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "navigate"}, 403),
        # Of the same site, but without the token against forgery.
        ({"Sec-Fetch-Site": "same-origin"}, 403),
        ({"Cookie": "blemish_session=x"}, 403),
    ],
)
def test_where_a_change_comes_from(
    local: Live, pictures: list[Path], headers: dict[str, str], status: int
) -> None:
    with local.client() as client:
        answer = client.post(URL, content=pictures[0].read_bytes(), headers=headers)
    assert answer.status_code == status
    if status == 403:
        assert answer.json()["error"]["kind"] == "Forged"


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "navigate"}, 200),
        ({"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "no-cors"}, 403),
        ({"Sec-Fetch-Site": "none"}, 200),
        ({"Origin": "http://evil.example"}, 403),
    ],
)
def test_where_a_look_comes_from(local: Live, headers: dict[str, str], status: int) -> None:
    with local.client() as client:
        assert client.get("/v1/models", headers=headers).status_code == status


def test_what_every_answer_says_to_a_browser(local: Live) -> None:
    with local.client() as client:
        answers = [client.get("/docs"), client.get("/nothing"), client.get("/v1/models")]
        answers.append(client.get("/docs", headers={"Host": "evil.example"}))
    for answer in answers:
        assert answer.headers["Content-Security-Policy"] == POLICY
        assert answer.headers["X-Content-Type-Options"] == "nosniff"
        assert answer.headers["Referrer-Policy"] == "no-referrer"
        assert answer.headers["Cross-Origin-Resource-Policy"] == "same-origin"
        assert answer.headers["X-Frame-Options"] == "DENY"
        assert "Access-Control-Allow-Origin" not in answer.headers
        assert "server" not in answer.headers
    assert "unsafe" not in POLICY


def request(method: str = "GET", **headers: str) -> Request:
    sent = [
        (name.replace("_", "-").lower().encode(), value.encode()) for name, value in headers.items()
    ]
    return Request(
        {"type": "http", "method": method, "headers": sent, "path": "/", "query_string": b""}
    )


def test_a_session_of_a_browser(tmp_path: Path) -> None:
    gate = Gate(read_tokens(token_file(tmp_path)))
    response = Response()
    with pytest.raises(Exception, match="nobody has that token"):
        gate.log_in(response, "x" * 32)
    session = gate.log_in(response, REVIEW)
    cookie = response.headers["set-cookie"]
    assert "HttpOnly" in cookie
    assert "SameSite=strict" in cookie
    name = cookie.partition(";")[0]
    assert REVIEW not in cookie
    assert gate.known(request(cookie=name)) == User("ada", "review")
    with pytest.raises(Exception, match="X-CSRF-Token"):
        gate.known(request("POST", cookie=name))
    with pytest.raises(Exception, match="X-CSRF-Token"):
        gate.known(request("POST", cookie=name, x_csrf_token="x"))
    changing = request("POST", cookie=name, x_csrf_token=session.csrf)
    assert gate.known(changing) == User("ada", "review")
    gate.log_out(request(cookie=name), response)
    with pytest.raises(Exception, match="a token is needed"):
        gate.known(request(cookie=name))


def test_a_browser_where_there_are_no_tokens() -> None:
    gate, response = Gate(None), Response()
    session = gate.page_session(request(), response)
    assert session is not None
    assert session.user == User("local", "admin")
    name = response.headers["set-cookie"].partition(";")[0]
    assert name.startswith(COOKIE)
    assert gate.page_session(request(cookie=name), Response()) == session
    assert gate.known(request("POST", cookie=name, x_csrf_token=session.csrf)).role == "admin"


def test_a_login_is_needed_for_a_page(tmp_path: Path) -> None:
    gate = Gate(read_tokens(token_file(tmp_path)))
    assert gate.page_session(request(), Response()) is None


def test_sessions_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    gate, response = Gate(None), Response()
    gate.page_session(request(), response)
    name = response.headers["set-cookie"].partition(";")[0]
    assert gate.session(request(cookie=name)) is not None
    monkeypatch.setattr("blemish.serve.sessions.time.time", lambda: 10.0**11)
    assert gate.session(request(cookie=name)) is None


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o644, 0o620])
@pytest.mark.skipif(os.name != "posix", reason="modes of files")
def test_a_token_file_that_others_can_read(tmp_path: Path, mode: int) -> None:
    with pytest.raises(ConfigError, match="others can read the tokens"):
        read_tokens(token_file(tmp_path, mode=mode))


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("# nothing\n", "holds no token"),
        (f"predict line\nadmin root {ADMIN}", "line 1: ROLE NAME TOKEN is needed"),
        (f"owner root {ADMIN}", "one of predict, review, admin"),
        (f"admin root {ADMIN} more", "ROLE NAME TOKEN is needed"),
        ("admin root short", "at least 16 characters"),
        (f"admin root {ADMIN}\nreview root {ADMIN}", "line 2: the token stands there already"),
        (f"admin ro\x1bot {ADMIN}", "the name cannot be shown"),
    ],
)
def test_a_token_file_that_is_wrong(tmp_path: Path, text: str, says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        read_tokens(token_file(tmp_path, text))


@pytest.mark.parametrize("address", ["0.0.0.0", "::", "192.0.2.1", "inspection.example"])
def test_another_address_takes_tokens(artifact: Path, tmp_path: Path, address: str) -> None:
    with pytest.raises(ConfigError, match="--token-file"):
        Settings(models=(artifact,), address=address)
    Settings(models=(artifact,), address=address, token_file=token_file(tmp_path))


@pytest.mark.parametrize("address", ["127.0.0.1", "127.1.2.3", "::1", "localhost"])
def test_this_machine_takes_none(artifact: Path, address: str) -> None:
    assert Settings(models=(artifact,), address=address).is_local

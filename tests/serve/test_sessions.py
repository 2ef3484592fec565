"""Sessions over a restart, behind a proxy with TLS, and who guesses tokens."""

from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import Any

import httpx2 as httpx
import pytest
from live import Live, serving

from blemish.errors import ConfigError
from blemish.serve import attempts, sessions
from blemish.serve.attempts import Attempts
from blemish.serve.refusals import Refusal
from blemish.serve.sessions import FILE, Sessions
from blemish.serve.settings import Settings

ADA, CAMERA = "ada-0123456789abcdef", "camera-0123456789abcdef"


def tokens(folder: Path, text: str = f"admin ada {ADA}\npredict line {CAMERA}\n") -> Path:
    file = folder / "tokens"
    file.write_text(text)
    file.chmod(0o600)
    return file


def csrf_of(page: str) -> str:
    return page.partition('name="csrf" content="')[2].partition('"')[0]


def opened(live: Live, token: str = "", **headers: str) -> tuple[httpx.Response, str]:
    """The answer that has the cookie, and the cookie's name and value."""
    with live.client() as client:
        if token:
            answer = client.post("/login", data={"token": token}, headers=headers)
        else:
            answer = client.get("/live", headers=headers)
    return answer, answer.headers["set-cookie"].partition(";")[0]


def changing(live: Live, cookie: str, csrf: str) -> httpx.Response:
    with live.client() as client:
        headers = {"Cookie": cookie, "X-CSRF-Token": csrf}
        return client.post("/v1/models/part/roll-back", headers=headers)


HEARD = 409  # there is nothing to go back to; who asks was heard


@pytest.mark.parametrize("token", ["", ADA])
def test_a_restart_ends_no_session(artifact: Path, tmp_path: Path, token: str) -> None:
    how: dict[str, Any] = {"store_folder": tmp_path / "store"}
    if token:
        how["token_file"] = tokens(tmp_path)
    with serving(artifact, **how) as live:
        _, cookie = opened(live, token)
        with live.client() as client:
            csrf = csrf_of(client.get("/live", headers={"Cookie": cookie}).text)
    key = tmp_path / "store" / FILE
    if os.name == "posix":
        assert stat.S_IMODE(key.stat().st_mode) == 0o600
    with serving(artifact, **how) as live:
        assert changing(live, cookie, csrf).status_code == HEARD
        with live.client() as client:
            page = client.get("/live", headers={"Cookie": cookie})
            assert (csrf_of(page.text), "set-cookie" in page.headers) == (csrf, False)
        # Of another session it is not taken.
        other = opened(live, token)[1]
        assert changing(live, other, csrf).json()["error"]["kind"] == "Forged"
    # With the key all sessions are gone.
    key.unlink()
    with serving(artifact, **how) as live:
        answer = changing(live, cookie, csrf)
        kind = answer.json()["error"]["kind"]
        assert (answer.status_code, kind) == ((401, "NotKnown") if token else (403, "Forged"))


def test_who_logs_out_is_out_everywhere(artifact: Path, tmp_path: Path) -> None:
    how = {"store_folder": tmp_path / "store", "token_file": tokens(tmp_path)}
    with serving(artifact, **how) as live:
        _, cookie = opened(live, ADA)
        beside = Sessions.kept(tmp_path / "store")  # as of a service that shares the folder
        value = cookie.partition("=")[2]
        assert beside.read(value) is not None
        with live.client() as client:
            csrf = csrf_of(client.get("/live", headers={"Cookie": cookie}).text)
            headers = {"Cookie": cookie, "X-CSRF-Token": csrf}
            client.post("/logout", headers=headers).raise_for_status()
            assert client.get("/v1/me", headers={"Cookie": cookie}).status_code == 401
        assert beside.read(value) is None
    with serving(artifact, **how) as live, live.client() as client:
        assert client.get("/v1/me", headers={"Cookie": cookie}).status_code == 401


def test_whose_token_is_gone_has_no_session(artifact: Path, tmp_path: Path) -> None:
    how = {"store_folder": tmp_path / "store", "token_file": tokens(tmp_path)}
    with serving(artifact, **how) as live:
        _, cookie = opened(live, ADA)
    tokens(tmp_path, f"review ada {ADA}\n")
    with serving(artifact, **how) as live, live.client() as client:
        assert client.get("/v1/me", headers={"Cookie": cookie}).json()["role"] == "review"
    tokens(tmp_path, f"admin ada {ADA}-another\n")
    with serving(artifact, **how) as live, live.client() as client:
        assert client.get("/v1/me", headers={"Cookie": cookie}).status_code == 401


def test_a_cookie_that_was_changed_is_none(tmp_path: Path) -> None:
    made = Sessions()
    cookie = made.open(made.owner(b"token"))
    read = made.read(cookie)
    assert read is not None
    assert read.owner == made.owner(b"token")
    number, owner, ends, signature = cookie.split(".")
    for other in (
        "", ".", "...", "é", cookie[:-1], cookie + "0",
        f"{number}.{made.owner(b'other')}.{ends}.{signature}",
        f"{number}.{owner}.{int(ends) + 1}.{signature}",
        Sessions().open(owner),
    ):  # fmt: skip
        assert made.read(other) is None, other


@pytest.mark.skipif(os.name != "posix", reason="modes of files")
@pytest.mark.parametrize("damage", ["readable", "cut", "empty", "words"])
def test_a_key_that_cannot_be_used_is_made_anew(tmp_path: Path, damage: str) -> None:
    first = Sessions.kept(tmp_path)
    file = tmp_path / FILE
    cookie = first.open("x")
    if damage == "readable":
        file.chmod(0o644)
    else:
        content = {"cut": file.read_bytes()[:20], "empty": b"", "words": b"no key\n"}[damage]
        file.write_bytes(content)
    again = Sessions.kept(tmp_path)
    assert again.read(cookie) is None
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert Sessions.kept(tmp_path).read(again.open("x")) is not None
    assert [path.name for path in tmp_path.iterdir()] == [FILE]


def test_without_a_place_it_lives_as_long_as_the_process(tmp_path: Path) -> None:
    (tmp_path / FILE).mkdir()
    made = Sessions.kept(tmp_path)
    assert made.fault
    assert str(tmp_path) not in made.fault
    assert made.read(made.open("x")) is not None


def test_sessions_that_have_ended_are_forgotten(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = Sessions.kept(tmp_path)
    read = made.read(made.open("x"))
    assert read is not None
    made.end(read)
    assert len(Sessions.kept(tmp_path)._ended) == 1
    monkeypatch.setattr(sessions.time, "time", lambda: float(read.ends + 1))
    assert Sessions.kept(tmp_path)._ended == {}


def test_behind_a_proxy_with_tls(artifact: Path, tmp_path: Path) -> None:
    forwarded = {"X-Forwarded-Proto": "https", "X-Forwarded-For": "192.0.2.7"}
    how = {"token_file": tokens(tmp_path), "hosts": ("inspection.example",)}
    with serving(artifact, **how, proxies=("127.0.0.0/8",)) as live:
        answer, cookie = opened(live, ADA, **forwarded)
        assert "Secure" in answer.headers["set-cookie"]
        # What a proxy passes on as it should: the name under which it is asked.
        own = {"Host": "inspection.example", "Origin": "https://inspection.example", **forwarded}
        with live.client() as client:
            own["Cookie"] = cookie
            page = client.get("/live", headers=own)
            csrf = csrf_of(page.text)
            url = "/v1/models/part/roll-back"
            headers = {**own, "X-CSRF-Token": csrf}
            assert client.post(url, headers=headers).status_code == HEARD
            headers["Origin"] = "https://other.example"
            assert client.post(url, headers=headers).status_code == 403
            headers["Host"] = "other.example"
            assert client.post(url, headers=headers).status_code == 421
            out = client.post("/logout", headers={**own, "X-CSRF-Token": csrf})
            assert "Secure" in out.headers["set-cookie"]
        # Without TLS before the proxy, none is claimed.
        plain = opened(live, ADA, **{"X-Forwarded-Proto": "http"})[0]
        assert "Secure" not in plain.headers["set-cookie"]
    assert "192.0.2.7" in {line.get("client") for line in live.lines}
    with serving(artifact, **how) as live:  # nobody is believed
        assert "Secure" not in opened(live, ADA, **forwarded)[0].headers["set-cookie"]
    assert {line["client"] for line in live.lines} == {"127.0.0.1"}


@pytest.mark.parametrize("proxy", ["*", "proxy.example", "10.0.0.1/8", ""])
def test_a_proxy_is_an_address_or_a_network(artifact: Path, tmp_path: Path, proxy: str) -> None:
    with pytest.raises(ConfigError, match="--proxy"):
        Settings(models=(artifact,), proxies=(proxy,), token_file=tokens(tmp_path))


def test_a_proxy_takes_tokens(artifact: Path) -> None:
    with pytest.raises(ConfigError, match="--token-file"):
        Settings(models=(artifact,), proxies=("127.0.0.1",))


def test_who_guesses_is_shut_out_and_nobody_else(artifact: Path, tmp_path: Path) -> None:
    how = {"token_file": tokens(tmp_path), "proxies": ("127.0.0.1",)}
    with serving(artifact, **how) as live, live.client() as client:

        def asked(address: str, token: str) -> int:
            headers = {"X-Forwarded-For": address, "Authorization": f"Bearer {token}"}
            return client.get("/v1/me", headers=headers).status_code

        def logged_in(address: str, token: str) -> int:
            headers = {"X-Forwarded-For": address}
            return client.post("/login", data={"token": token}, headers=headers).status_code

        assert asked("192.0.2.1", CAMERA) == 200
        wrong = [asked("192.0.2.9", f"guess-number-{n:08}") for n in range(attempts.MOST)]
        assert set(wrong) == {401}
        assert asked("192.0.2.9", "guess-number-99999999") == 429
        assert asked("192.0.2.9", ADA) == 429  # or else a guess would be answered
        assert logged_in("192.0.2.9", ADA) == 429
        assert logged_in("192.0.2.8", ADA) == 303
        # A camera that is set up wrongly does not stop another on its machine.
        for n in range(attempts.MOST + 5):
            asked("192.0.2.1", f"guess-number-{n:08}")
        assert asked("192.0.2.1", CAMERA) == 200
        # Who is no proxy cannot be somebody else: what he adds himself stands further left.
        forged = {"X-Forwarded-For": "192.0.2.1, 192.0.2.9", "Authorization": f"Bearer {ADA}"}
        assert client.get("/v1/me", headers=forged).status_code == 429


def test_attempts_are_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [1000.0]
    monkeypatch.setattr(attempts.time, "monotonic", lambda: now[0])
    made = Attempts()
    for n in range(attempts.MOST):
        made.check("2001:db8::1")
        made.wrong(f"2001:db8::{n:x}")  # one network, many addresses
    with pytest.raises(Refusal) as refused:
        made.check("2001:db8::ffff")
    assert refused.value.status == 429
    assert refused.value.headers == {"Retry-After": "60"}
    made.check("2001:db8:0:1::1")
    made.check(None)
    now[0] += attempts.WITHIN
    made.check("2001:db8::1")
    for n in range(attempts._ADDRESSES + 10):
        made.wrong(str(n))
        made.right(str(n))
    assert len(made._wrong) == len(made._right) == attempts._ADDRESSES

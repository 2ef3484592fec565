"""Who may do what: tokens, roles, sessions of browsers, and requests that somebody else forged.

A program brings its token in every request (`Authorization: Bearer`). A browser brings it once, to
the login, and has a session then: a cookie that no script reads and that goes to no other site.
Whatever a browser wants to change has to carry the session's CSRF token, in the header
`X-CSRF-Token`. Both outlast a restart (`sessions`). A service without tokens, which only this
machine can reach, has one user, "local", who may do everything; the same rules hold for browsers
there.
"""

from __future__ import annotations

import hashlib
import hmac
import os
import stat
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from blemish.errors import ConfigError
from blemish.files import DOCUMENT_BYTES, read_whole
from blemish.serve.attempts import Attempts
from blemish.serve.refusals import Refusal
from blemish.serve.sessions import SECONDS, Sessions

ROLES = ("predict", "review", "admin")
SHORTEST = 16  # characters of a token
COOKIE, CSRF_HEADER = "blemish_session", "X-CSRF-Token"
_SAFE = ("GET", "HEAD", "OPTIONS")


@dataclass(frozen=True, slots=True)
class User:
    """Who asks. role: "predict", "review" or "admin"; each may do what those before it may."""

    name: str
    role: str

    def may(self, role: str) -> bool:
        """Whether they may do what takes this role."""
        return ROLES.index(self.role) >= ROLES.index(role)


LOCAL = User("local", "admin")


@dataclass(frozen=True, slots=True)
class Session:
    """A browser that is logged in.

    Attributes:
        csrf: what has to come with every change that it wants.
        ends: when, in seconds since 1970.
    """

    user: User
    csrf: str
    ends: float


def read_tokens(path: Path) -> dict[bytes, User]:
    """The users of a file of lines ROLE NAME TOKEN, by the SHA-256 of their tokens.

    Raises: ConfigError for a file that others can read, a line of another form, a short token, and
        a token that stands there twice.
    """
    content = read_whole(path, limit=DOCUMENT_BYTES, error=ConfigError)
    if os.name == "posix" and stat.S_IMODE(path.stat().st_mode) & 0o077:
        raise ConfigError(f"{path}: others can read the tokens in it; chmod 600 {path}")
    users: dict[bytes, User] = {}
    for number, line in enumerate(content.decode("utf-8", "replace").splitlines(), 1):
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        words = line.split()
        where = f"{path}: line {number}"
        if len(words) != 3 or words[0] not in ROLES:
            raise ConfigError(f"{where}: ROLE NAME TOKEN is needed, ROLE one of {', '.join(ROLES)}")
        role, name, token = words
        if len(token) < SHORTEST or not token.isascii():
            raise ConfigError(
                f"{where}: a token has at least {SHORTEST} characters of ASCII; make one with: "
                "openssl rand -hex 32"
            )
        if not name.isprintable() or len(name) > 100:
            raise ConfigError(f"{where}: the name cannot be shown, or is longer than 100")
        if (known := _hashed(token)) in users:
            raise ConfigError(f"{where}: the token stands there already; each needs its own")
        users[known] = User(name, role)
    if not users:
        raise ConfigError(f"{path}: holds no token; write lines of ROLE NAME TOKEN")
    return users


class Gate:
    """Knows users by their tokens and sessions.

    Args:
        tokens: as of `read_tokens`; None = local.
        cookie: its name. Browsers give a cookie to every port of a host, so that two services of
            one machine each need their own.

    Attributes: sessions: of browsers.
    """

    def __init__(self, tokens: dict[bytes, User] | None, cookie: str = COOKIE) -> None:
        self._tokens, self._cookie = tokens, cookie
        self.sessions, self._attempts = Sessions(), Attempts()

    @property
    def has_tokens(self) -> bool:
        """Whether one has to log in."""
        return self._tokens is not None

    def user_of(self, token: str, client: str | None = None) -> User | None:
        """Whose token it is; all are compared, in a time that tells nothing.

        Args: client: the address that it comes from. Raises: Refusal for one that guesses.
        """
        self._attempts.check(client)
        given, found = _hashed(token), None
        for known, user in (self._tokens or {}).items():
            if hmac.compare_digest(known, given):
                found = user
        (self._attempts.wrong if found is None else self._attempts.right)(client)
        return found

    def log_in(
        self, response: Response, token: str, *, secure: bool = False, client: str | None = None
    ) -> Session:
        """Open a session for a browser, whose cookie goes with the response.

        Args: token: of a user; anything, where there are none. secure: whether it came by HTTPS.
            client: the address that it comes from.
        Raises: Refusal for a token that nobody has, and for an address that guesses.
        """
        user = self.user_of(token, client) if self.has_tokens else LOCAL
        if user is None:
            raise Refusal(401, "NotKnown", "nobody has that token")
        return self._opened(response, user, _hashed(token) if self.has_tokens else b"", secure)

    def log_out(self, request: Request, response: Response) -> None:
        """Close the session."""
        found = self.sessions.read(request.cookies.get(self._cookie, ""))
        if found is not None:
            self.sessions.end(found)
        secure = request.url.scheme == "https"
        response.delete_cookie(self._cookie, httponly=True, samesite="strict", secure=secure)

    def session(self, request: Request) -> Session | None:
        """That of a browser; None without one, or where its user's token is not there any more."""
        found = self.sessions.read(request.cookies.get(self._cookie, ""))
        if found is None:
            return None
        users = {b"": LOCAL} if self._tokens is None else self._tokens
        for token, user in users.items():
            if self.sessions.owner(token) == found.owner:
                return Session(user, self.sessions.csrf(found), found.ends)
        return None

    def page_session(self, request: Request, response: Response) -> Session | None:
        """For a page: the session, opened where nobody has to log in; None where one has to."""
        found = self.session(request)
        if found is None and not self.has_tokens:
            found = self._opened(response, LOCAL, b"", request.url.scheme == "https")
        return found

    def known(self, request: Request) -> User:
        """Who asks. Raises: Refusal for somebody unknown, or a change that may be forged."""
        scheme, _, token = request.headers.get("authorization", "").partition(" ")
        if scheme.lower() == "bearer" and self.has_tokens:
            user = self.user_of(token.strip(), request.client.host if request.client else None)
            if user is None:
                raise _unknown("nobody has that token")
            return user
        session = self.session(request)
        if session is None and self.has_tokens:
            raise _unknown("a token is needed: Authorization: Bearer TOKEN")
        if request.method not in _SAFE and _by_browser(request):
            csrf = request.headers.get(CSRF_HEADER, "")
            if not csrf:
                told = f"a browser needs the header {CSRF_HEADER}; load the page anew"
                raise Refusal(403, "Forged", told)
            if session is None or not hmac.compare_digest(csrf.encode(), session.csrf.encode()):
                told = f"{CSRF_HEADER} is of a session that has ended; load the page anew"
                raise Refusal(403, "Forged", told)
        return LOCAL if session is None else session.user

    def _opened(self, response: Response, user: User, token: bytes, secure: bool) -> Session:
        cookie = self.sessions.open(self.sessions.owner(token))
        opened = self.sessions.read(cookie)
        assert opened is not None
        response.set_cookie(
            self._cookie, cookie, max_age=SECONDS, httponly=True, samesite="strict", secure=secure
        )
        return Session(user, self.sessions.csrf(opened), opened.ends)


def needs(role: str) -> Callable[[Request], Awaitable[User]]:
    """A dependency of FastAPI: the user who asks, where they have the role.

    It raises a Refusal: 401 for somebody unknown, 403 for one who may not.
    """

    async def user(request: Request) -> User:
        gate: Any = request.app.state.service.gate
        found: User = gate.known(request)
        request.state.user = found.name
        if not found.may(role):
            raise Refusal(403, "NotAllowed", f"this takes the role {role}; yours is {found.role}")
        return found

    return user


def _by_browser(request: Request) -> bool:
    """Whether a browser sends it, as far as that can be seen: they all say where from."""
    return any(name in request.headers for name in ("origin", "sec-fetch-site", "cookie"))


def _unknown(message: str) -> Refusal:
    return Refusal(401, "NotKnown", message, {"WWW-Authenticate": "Bearer"})


def _hashed(token: str) -> bytes:
    return hashlib.sha256(token.encode("utf-8", "surrogateescape")).digest()

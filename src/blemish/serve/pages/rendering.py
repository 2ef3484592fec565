"""Pages as HTML: the templates, who looks at them, and how numbers and times are written."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import cache
from importlib import resources
from typing import Annotated, Any
from urllib.parse import parse_qs, quote, urlencode, urlsplit

import jinja2
from fastapi import Depends, Request
from starlette.responses import HTMLResponse, RedirectResponse, Response

from blemish.serve import uploads
from blemish.serve.refusals import Refusal, bad_request, not_found
from blemish.serve.reviewing import CHANGES
from blemish.serve.security import Session, User
from blemish.serve.service import Service
from blemish.store import Row
from blemish.text import pluralize

THEME = "blemish_theme"  # the cookie by which a person chose light or dark
FORM = 2**16  # bytes of a form without files
_SHOWN_DIGITS = 4

TABS = (
    # name, path, key beside Shift
    ("Live", "/live", "l"),
    ("Pictures", "/pictures", "p"),
    ("Review", "/review", "r"),
    ("Figures", "/figures", "f"),
    ("Refine", "/refine", "e"),
    ("Models", "/models", "m"),
)


@dataclass
class Visit:
    """Somebody looks at a page.

    Attributes:
        service; request; session: of their browser.
        model: the model that the page is about; "" where the service has none.
        opened: a response that holds the cookie of a session that was opened for this visit.
    """

    request: Request
    service: Service
    session: Session
    model: str
    opened: Response = field(repr=False)

    @property
    def user(self) -> User:
        """Who it is."""
        return self.session.user

    @property
    def store(self) -> Any:
        """What was predicted and said. Raises: Refusal where nothing is kept."""
        if self.service.store is None:
            raise Refusal(409, "NothingKept", "this service keeps nothing; start it with a store")
        return self.service.store

    @property
    def version(self) -> str:
        """The live version of the model."""
        return self.service.models.live(self.model).version if self.model else ""

    async def run(self, work: Callable[..., Any], *given: Any) -> Any:
        """What a function gives that takes a while, in a thread of the pages: however long they
        take, pictures are scored meanwhile."""
        pool = self.service.pools.pages
        return await asyncio.get_running_loop().run_in_executor(pool, work, *given)

    def page(self, template: str, status: int = 200, **values: Any) -> Response:
        """The answer: a page, or a part of one for htmx."""
        request = self.request
        known = {
            "user": self.user,
            "csrf": self.session.csrf,
            "model": self.model,
            "models": self.service.models.names if self.service.ready else [],
            "version": self.version,
            "path": request.url.path,
            "base": str(request.base_url),
            "tabs": tabs(request),
            "has_tokens": self.service.gate.has_tokens,
            "theme": chosen(request.cookies.get(THEME), ("light", "dark")),
            "changes": CHANGES,
        }
        html = environment().get_template(template).render({**known, **values})
        return self.with_cookies(HTMLResponse(html, status))

    def with_cookies(self, answer: Response) -> Response:
        """An answer with the cookie of the session that was opened for this visit."""
        for cookie in self.opened.headers.getlist("set-cookie"):
            answer.headers.append("set-cookie", cookie)
        return answer


async def visited(request: Request) -> Visit:
    """A dependency of pages: who looks, which takes the role review.

    Raises: Refusal: 401 for somebody who is not logged in, 403 for one who may not.
    """
    service: Service = request.app.state.service
    opened = Response()
    session = service.gate.page_session(request, opened)
    if session is None:
        raise Refusal(401, "NotKnown", "log in first")
    request.state.user = session.user.name
    if not session.user.may("review"):
        raise Refusal(
            403, "NotAllowed", f"the pages take the role review; yours is {session.user.role}"
        )
    names = service.models.names if service.ready else []
    asked = request.query_params.get("model", "")
    if asked and asked not in names:
        raise not_found("there is no model of that name")
    model = asked or (names[0] if names else "")
    return Visit(request, service, session, model, opened)


Visiting = Annotated[Visit, Depends(visited)]


def tabs(request: Request) -> list[tuple[str, str, str]]:
    """The pages that this service has: name, path and the key that leads there."""
    there = request.app.state.pages
    return [one for one in TABS if one[1] in there]


async def error_page(request: Request, refusal: Refusal) -> Response:
    """What somebody who wants a page sees of an error: the login, where they have to log in."""
    if refusal.status == 401 and request.method == "GET":
        at = urlsplit(str(request.url))
        if "hx-request" in request.headers:  # for a part of the page that the browser shows
            at = urlsplit(request.headers.get("hx-current-url", "/"))
        back = at.path + (f"?{at.query}" if at.query else "")
        target = f"/login?{urlencode({'next': back})}"
        if "hx-request" in request.headers:
            return Response(headers={"HX-Redirect": target})
        return RedirectResponse(target, 303)
    values = {"status": refusal.status, "message": str(refusal), "kind": refusal.kind}
    html = environment().get_template("error.html").render(values)
    return HTMLResponse(html, refusal.status, headers=refusal.headers)


async def form(request: Request) -> dict[str, str]:
    """The fields of a small form. Raises: Refusal for a body that is none, or too long."""
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    body = await uploads.whole(request, FORM, lambda length: None)
    if body and kind != "application/x-www-form-urlencoded":
        raise bad_request("a form was expected")
    try:
        found = parse_qs(body.decode(), keep_blank_values=True, max_num_fields=64)
    except ValueError as error:
        raise bad_request("the form cannot be read; load the page anew") from error
    return {name: values[-1] for name, values in found.items()}


@cache
def environment() -> jinja2.Environment:
    """For the templates of the pages: what is filled in is text; a missing name is an error."""
    made = jinja2.Environment(
        loader=jinja2.PackageLoader("blemish.serve", "templates"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    made.filters |= {
        "score": score,
        "percent": percent,
        "count": count,
        "counted": counted,
        "clock": clock,
        "moment": moment,
        "iso": iso,
        "query": query,
        "named": named,
        "zipped": zipped,
    }
    made.globals |= {"static": static, "verdict_of": verdict_of}
    return made


@cache
def static(name: str) -> str:
    """The address of a file that pages need.

    It has a part that changes with the content of any of them: so browsers may keep each for good,
    and a script finds those that it imports beside it.
    """
    return f"/static/{edition()}/{quote(name)}"


@cache
def edition() -> str:
    """A word that is another one whenever any of the files of the pages is."""
    known = hashlib.sha256()
    waiting = [resources.files("blemish.serve") / "static"]
    while waiting:
        place = waiting.pop()
        if place.is_dir():
            waiting += sorted(place.iterdir(), key=lambda one: one.name)
        else:
            known.update(place.read_bytes())
    return known.hexdigest()[:12]


def score(value: float | None) -> str:
    """A score with four digits.

    Example:
        >>> score(0.123456), score(-12.5), score(None), score(123456.0)
        ('0.1235', '−12.50', '–', '1.235e+05')
    """
    if value is None:
        return "–"
    written = f"{value:#.{_SHOWN_DIGITS}g}".rstrip(".")
    return written.replace("-", "−", 1) if value < 0 else written


def percent(value: float | None) -> str:
    """A share in percent, with as many digits as are told apart.

    Example:
        >>> percent(0.5), percent(0.0123), percent(0.00004), percent(None), percent(1.0)
        ('50 %', '1.2 %', '0.004 %', '–', '100 %')
    """
    if value is None:
        return "–"
    hundreds = 100 * value
    digits = 0 if hundreds >= 10 or not hundreds else 1 if hundreds >= 1 else 2
    digits = 3 if 0 < hundreds < 0.01 else digits
    return f"{hundreds:.{digits}f} %"


def count(value: int) -> str:
    """A whole number with thin spaces between its thousands."""
    return f"{value:,}".replace(",", "\u202f")


def counted(value: int, one: str, many: str = "") -> str:
    """The same with its noun, as of `pluralize`."""
    return pluralize(value, one, many).replace(f"{value}", count(value), 1)


def clock(time: datetime) -> str:
    """A time of today, or of another day, in UTC."""
    own = time.astimezone(UTC)
    today = datetime.now(UTC).date() == own.date()
    return own.strftime("%H:%M:%S" if today else "%d %b %H:%M")


def hour(time: datetime) -> str:
    """The beginning of an hour or a day, in UTC."""
    return time.astimezone(UTC).strftime("%H:%M" if time.hour else "%d %b")


def moment(time: datetime) -> str:
    """A time in full, in UTC."""
    return time.astimezone(UTC).strftime("%Y-%m-%d %H:%M:%S UTC")


def iso(time: datetime) -> str:
    """A time for programs."""
    return time.astimezone(UTC).isoformat(timespec="seconds")


def query(values: Mapping[str, Any], **changed: Any) -> str:
    """A query of the values that say something, some of them changed."""
    given = {**values, **changed}
    return urlencode({name: value for name, value in given.items() if value not in (None, "")})


def named(row: Row) -> str:
    """What people call a picture: its file's name and where it comes from, else its number."""
    return " · ".join(filter(None, (row.name, row.source))) or f"picture {row.id}"


def verdict_of(label: int | None) -> str:
    """The word for a verdict of the detector.

    Example:
        >>> verdict_of(0), verdict_of(1), verdict_of(None)
        ('good', 'defect', 'unjudged')
    """
    return "unjudged" if label is None else ("good", "defect")[label]


def zipped(names: Sequence[str]) -> list[tuple[str, str]]:
    """Names as the values of a choice and what is read of them."""
    return [(name, name) for name in names]


def chosen(value: str | None, known: Sequence[str], otherwise: str = "") -> str:
    """A value of a query, where it is one of those known."""
    return value if value is not None and value in known else otherwise

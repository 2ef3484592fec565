"""All pictures by page, and one picture with everything that is known of it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from fastapi import APIRouter
from starlette.responses import Response

from blemish.errors import ConfigError
from blemish.serve.likeness import likeness
from blemish.serve.pages import words
from blemish.serve.pages.rendering import Visit, Visiting, chosen
from blemish.serve.refusals import Refusal, bad_request, not_found
from blemish.store import Label, OtherScore, Row
from blemish.store.predictions import ORDERS

router = APIRouter()
_PAGE = 60
_TYPES = 12
_LABELS = {"good": 0, "defect": 1}
_NO_NAMES: dict[str, list[str]] = {"source": [], "category": [], "version": []}
_REVIEWED = ("yes", "no", "good", "defect", "unsure", "disagreed")


@dataclass(frozen=True)
class Known:
    """Everything that is known of a prediction.

    Attributes:
        row; labels: all that was said of its picture, the latest first; current: what each reviewer
            says now; others: what other versions say; words: its scores as sentences.
        picture, heatmap: whether these are kept. newer, older: ids of the predictions beside it.
    """

    row: Row
    labels: list[Label]
    current: dict[str, Label]
    others: list[OtherScore]
    words: list[str]
    picture: bool
    heatmap: bool
    newer: int | None = None
    older: int | None = None


@router.get("/pictures")
async def listed(
    visit: Visiting,
    verdict: str = "",
    reviewed: str = "",
    source: str = "",
    name: str = "",
    category: str = "",
    version: str = "",
    order: str = "newest",
    before: int | None = None,
) -> Response:
    """A page of pictures; as htmx asks for more, only those."""
    asked = {
        "verdict": chosen(verdict, tuple(_LABELS)),
        "reviewed": chosen(reviewed, _REVIEWED),
        "source": source[:1024],
        "name": name[:1024],
        "category": category[:200],
        "version": version[:100],
        "order": chosen(order, ORDERS, "newest"),
    }
    if visit.service.store is None or not visit.model:
        values: dict[str, Any] = {"rows": [], "more": None, "counts": None, "names": _NO_NAMES}
    else:
        values = await _page(visit, asked, before)
    part = before is not None and "hx-request" in visit.request.headers
    template = "parts/rows.html" if part else "pictures.html"
    kept = visit.service.store is not None
    return visit.page(template, asked=asked, kept=kept, before=before, **values)


@router.get("/pictures/{id}")
async def shown(visit: Visiting, id: int) -> Response:
    """One picture."""
    known = await of_prediction(visit, id)
    types = await types_of(visit)
    return visit.page(
        "picture.html", known=known, row=known.row, types=types, blind=False, oob=False
    )


@router.get("/pictures/{id}/likeness")
async def alike(visit: Visiting, id: int) -> Response:
    """What it looks most like, as a part of its page."""
    row = await visit.run(visit.store.prediction, id)
    if row is None:
        raise not_found("there is no such picture, or it was deleted since")
    found, reason = None, ""
    try:
        found = await likeness(visit.service, row)
    except Refusal as refusal:
        reason = str(refusal)
    return visit.page("parts/likeness.html", row=row, found=found, reason=reason)


async def of_prediction(visit: Visit, id: int) -> Known:
    """What is known of a prediction. Raises: Refusal where there is none."""
    known: Known | None = await visit.run(_known, visit, id)
    if known is None:
        raise not_found("there is no such picture, or it was deleted since")
    if known.row.model in visit.service.models.names:
        visit.model = known.row.model
    return known


async def types_of(visit: Visit) -> list[str]:
    """The types of defects that were named so far, the latest first."""

    names: list[str] = await visit.run(visit.store.defect_types, visit.model, _TYPES)
    return names


def _known(visit: Visit, id: int) -> Known | None:
    store = visit.store
    row = store.prediction(id)
    if row is None:
        return None
    said = [
        words.verdict(row),
        *filter(None, (words.margin(row), words.rarity(row), words.regions(row))),
    ]
    beside = {"model": row.model, "limit": 1, "regions": False}
    older = store.predictions(before=id, **beside)
    newer = store.predictions(before=id, order="oldest", **beside)
    return Known(
        row=row,
        labels=store.labels(row.picture)[::-1],
        current=store.current(row.picture),
        others=[
            one for one in store.other_scores(row.picture, row.model) if one.version != row.version
        ],
        words=said,
        picture=store.picture(row.picture) is not None,
        heatmap=store.map(row.picture, row.model, row.version) is not None,
        newer=newer[0].id if newer else None,
        older=older[0].id if older else None,
    )


async def _page(visit: Visit, asked: dict[str, str], before: int | None) -> dict[str, Any]:
    store, model = visit.store, visit.model
    filters: dict[str, Any] = {"model": model}
    for name in ("source", "name", "category", "version"):
        if asked[name]:
            filters[name] = asked[name]
    if asked["verdict"]:
        filters["label"] = _LABELS[asked["verdict"]]
    if asked["reviewed"]:
        plain = {"yes": True, "no": False}
        filters["reviewed"] = plain.get(asked["reviewed"], asked["reviewed"])

    def found() -> dict[str, Any]:
        rows = store.predictions(
            before=before, limit=_PAGE + 1, order=asked["order"], regions=False, **filters
        )
        names = {
            by: [str(one.key) for one in store.verdict_rates(by, model=model)][:200]
            for by in ("source", "category", "version")
        }
        more = rows[_PAGE - 1].id if len(rows) > _PAGE else None
        return {
            "rows": rows[:_PAGE],
            "more": more,
            "counts": store.counts(**filters),
            "names": {by: [one for one in each if one] for by, each in names.items()},
        }

    try:
        values: dict[str, Any] = await visit.run(found)
    except ConfigError as error:
        raise bad_request(str(error)) from error
    return values

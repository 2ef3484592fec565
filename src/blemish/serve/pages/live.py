"""The newest pictures and verdicts, as they come."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

from fastapi import APIRouter
from markupsafe import Markup
from starlette.responses import Response

from blemish.serve import following
from blemish.serve.appearance import Appearance
from blemish.serve.pages import charts
from blemish.serve.pages.rendering import Visit, Visiting, chosen
from blemish.serve.reviewing import Drift
from blemish.store import Row
from blemish.store.counting import Counts

router = APIRouter()
_SHOWN = 36
_SHOWS = ("all", "alarms")


@dataclass(frozen=True)
class Summary:
    """Counts and charts of a model. Attributes: day: of the last 24 hours; all: of all time."""

    day: Counts
    all: Counts
    threshold: float | None
    histogram: Markup
    rates: Markup


@router.get("/live")
async def live(visit: Visiting, show: str = "all") -> Response:
    """The page."""
    show = chosen(show, _SHOWS, "all")
    rows = await _rows(visit, show)
    summary = await _summary(visit)
    return visit.page(
        "live.html",
        rows=rows,
        summary=summary,
        show=show,
        drift=await drift_of(visit),
        appearance=await appearance_of(visit),
        kept=visit.service.store is not None,
        categories=_categories(visit),
    )


@router.get("/live/feed")
async def feed(visit: Visiting, show: str = "all") -> Response:
    """The pictures alone, for a page that is open."""
    show = chosen(show, _SHOWS, "all")
    rows = await _rows(visit, show)
    return visit.page("parts/feed.html", rows=rows, show=show)


@router.get("/live/summary")
async def summary(visit: Visiting) -> Response:
    """The counts and charts alone."""
    return visit.page(
        "parts/summary.html",
        summary=await _summary(visit),
        drift=await drift_of(visit),
        appearance=await appearance_of(visit),
    )


async def drift_of(visit: Visit) -> list[Drift]:
    """What is known of a change of the pictures, of all sources together first."""
    if visit.service.store is None or not visit.model:
        return []
    found: list[Drift] = await visit.run(following.drift_of, visit.service, visit.model)
    return found


async def appearance_of(visit: Visit) -> Appearance | None:
    """How the pictures look beside the first ones; None where nothing is kept."""
    if visit.service.store is None or not visit.model:
        return None
    found: Appearance = await visit.run(following.appearance_of, visit.service, visit.model)
    return found


def _categories(visit: Visit) -> tuple[str, ...]:
    if not visit.model:
        return ()
    return tuple(visit.service.models.live(visit.model).detector.categories)


async def _rows(visit: Visit, show: str) -> list[Row]:
    if visit.service.store is None or not visit.model:
        return []
    asked: dict[str, Any] = {"model": visit.model, "limit": _SHOWN, "regions": False}
    if show == "alarms":
        asked["label"] = 1
    found: list[Row] = await visit.run(lambda: visit.store.predictions(**asked))
    return found


async def _summary(visit: Visit) -> Summary | None:
    if visit.service.store is None or not visit.model:
        return None
    store, model, version = visit.store, visit.model, visit.version
    threshold = visit.service.models.live(model).detector.threshold

    def counted() -> Summary:
        since = datetime.now(UTC) - timedelta(days=1)
        value = None if threshold is None else threshold.value
        spread = store.score_histogram(bins=48, model=model, version=version)
        hours = store.verdict_rates("hour", model=model, since=since)
        return Summary(
            day=store.counts(model=model, since=since),
            all=store.counts(model=model),
            threshold=value,
            histogram=charts.histogram(spread, value),
            rates=charts.rates(hours, width=320, height=88),
        )

    found: Summary = await visit.run(counted)
    return found

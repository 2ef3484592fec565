"""What the reviewed pictures say of the verdicts, how often these are alarms, and whether the
pictures have changed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from fastapi import APIRouter
from markupsafe import Markup
from starlette.responses import JSONResponse, Response

from blemish.monitoring.estimates import Curve, Estimate, Sample, by_group, curve, figures
from blemish.serve import following
from blemish.serve.pages import charts, live
from blemish.serve.pages.rendering import Visit, Visiting, chosen
from blemish.serve.population import Judged
from blemish.serve.refusals import bad_request
from blemish.serve.reviewing import ALPHA_CAMERAS
from blemish.store.counting import Rate

router = APIRouter(prefix="/figures")
LEVEL = 0.95
RATES = {
    "false_alarm_rate": ("False alarms", "of good pictures, those with an alarm"),
    "miss_rate": ("Misses", "of defects, those without an alarm"),
    "precision": ("Alarms that are right", "of alarms, those on defects"),
    "defect_share": ("Defects", "of all pictures"),
    "unsure_share": ("Unsure", "of reviewed pictures, those that reviewers could not decide"),
}
GROUPS = {"camera": "Camera", "category": "Category", "day": "Day"}
_SPANS = {"hour": "by hour", "day": "by day"}
_MOST_GROUPS = 60


@dataclass(frozen=True)
class Figures:
    """What is known at a threshold.

    Attributes:
        sample: the reviewed pictures that count; revealed: as of `Judged`. threshold: that of the
        figures; own: the one that the version judges by. estimates: by name. curve: at all
        thresholds, None where nothing was reviewed; chart: of it.
    """

    sample: Sample
    revealed: int
    threshold: float | None
    own: float | None
    estimates: dict[str, Estimate]
    curve: Curve | None
    chart: Markup


@router.get("")
async def shown(
    visit: Visiting,
    version: str = "",
    threshold: float | None = None,
    by: str = "camera",
    span: str = "hour",
) -> Response:
    """The page."""
    asked = {"by": chosen(by, tuple(GROUPS), "camera"), "span": chosen(span, tuple(_SPANS), "hour")}
    values: dict[str, Any] = {
        "found": None,
        "groups": {},
        "rates": [],
        "chart": "",
        "drift": [],
        "appearance": None,
        "versions": [],
        "disagreements": [],
        "tables": {},
        "chosen": "",
    }
    if visit.service.store is not None and visit.model:
        rates = await visit.run(lambda: visit.store.verdict_rates("version", model=visit.model))
        names = [one.key for one in rates]
        wanted = version if version in names else visit.version
        values |= {"versions": names, "chosen": wanted}
        values["found"], values["groups"] = await _found(visit, wanted, threshold, asked["by"])
        values |= await visit.run(_rates, visit, asked["span"])
        values["drift"] = await live.drift_of(visit)
        values["appearance"] = await live.appearance_of(visit)
    return visit.page(
        "figures.html",
        asked=asked,
        kept=visit.service.store is not None,
        rate_names=RATES,
        group_names=GROUPS,
        spans=_SPANS,
        level=LEVEL,
        interval=charts.interval,
        alpha_cameras=ALPHA_CAMERAS,
        **values,
    )


@router.post("/looks")
async def looks_anew(visit: Visiting) -> Response:
    """Compare how pictures look with those that come from now on."""
    visit.service.gate.known(visit.request)
    appearance = await visit.run(following.look_anew, visit.service, visit.model)
    visit.service.log.note("looks anew", model=visit.model, user=visit.user.name)
    return visit.page("parts/looks.html", appearance=appearance)


@router.get("/groups")
async def groups(
    visit: Visiting, version: str = "", threshold: float | None = None, by: str = "camera"
) -> Response:
    """The figures of each camera, category or day alone, at a threshold."""
    by = chosen(by, tuple(GROUPS), "camera")
    found, grouped = await _found(visit, version or visit.version, threshold, by)
    return visit.page(
        "parts/groups.html",
        found=found,
        groups=grouped,
        asked={"by": by, "span": "hour"},
        chosen=version or visit.version,
        group_names=GROUPS,
        interval=charts.interval,
        level=LEVEL,
    )


@router.get("/curve")
async def all_thresholds(visit: Visiting, version: str = "") -> Response:
    """The rates at all thresholds, for the slider."""
    found, _ = await _found(visit, version or visit.version, None, "")
    if found is None or found.curve is None:
        raise bad_request("nothing was reviewed yet")
    return JSONResponse(found.curve.to_dict())


async def _found(
    visit: Visit, version: str, threshold: float | None, by: str
) -> tuple[Figures | None, dict[str, dict[str, Estimate]]]:
    if threshold is not None and not np.isfinite(threshold):
        raise bad_request("a threshold is a finite number")
    served = visit.service.models.loaded(visit.model, version)

    def found() -> tuple[Figures | None, dict[str, dict[str, Estimate]]]:
        judged = following.judged(visit.service, visit.model, version)
        own = _own_threshold(visit, version, served)
        wanted = threshold if threshold is not None else own
        made = _figures(judged, wanted, own)
        grouped: dict[str, dict[str, Estimate]] = {}
        if by and wanted is not None and made is not None:
            grouped = by_group(judged.sample, by, wanted, level=LEVEL, most=_MOST_GROUPS)
        return made, grouped

    answer: tuple[Figures | None, dict[str, dict[str, Estimate]]]
    answer = await visit.run(found)
    return answer


def _own_threshold(visit: Visit, version: str, served: Any) -> float | None:
    if served is not None:
        threshold = served.detector.threshold
        return None if threshold is None else threshold.value
    known = visit.store.version(visit.model, version)
    return None if known is None else known.threshold


def _figures(judged: Judged, threshold: float | None, own: float | None) -> Figures | None:
    sample, pool = judged.sample, judged.pool
    if not len(sample.scores):
        return None
    also = [one for one in (own, threshold) if one is not None]
    known = curve(sample, also=also, level=LEVEL, pool=pool)
    whole = known if len(known.thresholds) else None
    estimates = {} if threshold is None else figures(sample, threshold, level=LEVEL, pool=pool)
    chart = Markup("") if whole is None else charts.curves(whole, threshold)
    return Figures(sample, judged.revealed, threshold, own, estimates, whole, chart)


def _rates(visit: Visit, span: Any) -> dict[str, Any]:
    store, model = visit.store, visit.model
    spans: list[Rate] = store.verdict_rates(span, model=model)
    tables = {
        name: sorted(
            (one for one in store.verdict_rates(by, model=model) if one.key),
            key=lambda one: -one.predictions,
        )[:12]
        for name, by in (("camera", "source"), ("category", "category"), ("version", "version"))
    }
    return {
        "rates": spans,
        "chart": charts.rates(spans[-60:], width=720, height=150),
        "tables": {name: rows for name, rows in tables.items() if rows},
        "disagreements": store.disagreements(model)[:24],
    }

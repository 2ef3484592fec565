"""Refine: what would be learned from the reviewed pictures, how far a job is, what came of it."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from fastapi import APIRouter
from starlette.responses import Response

from blemish.serve.jobs import ENDED, Jobs, Plan
from blemish.serve.models import Served
from blemish.serve.pages.rendering import Visit, Visiting, form
from blemish.serve.refusals import Refusal, bad_request, not_found
from blemish.store import Job, Row

router = APIRouter(prefix="/refine")
_SHOWN = 60  # pictures that were held out, those first about which the versions disagree
_REASON = 500
_PLAN_S = 60.0  # seconds for which what would be learned from is not looked up again


@dataclass(frozen=True)
class Compared:
    """A picture that was held out. row: its prediction; before, after: score, threshold, label."""

    row: Row | None
    picture: str
    defective: bool
    before: Mapping[str, Any]
    after: Mapping[str, Any]

    @property
    def became(self) -> str:
        r""" "better", "worse" or "same": whether the verdict is right now, and was before."""
        right = int(self.defective)
        was, now = (one["label"] == right for one in (self.before, self.after))
        return "same" if was == now else ("better" if now else "worse")


@router.get("")
async def shown(visit: Visiting, job: int | None = None) -> Response:
    """The page, or the part of it that changes: of a job, else of the newest."""
    part = visit.request.headers.get("hx-request") == "true"
    return await _page(visit, "parts/refine.html" if part else "refine.html", job)


@router.post("/begin")
async def begin(visit: Visiting) -> Response:
    """Begin to learn."""
    visit.service.gate.known(visit.request)
    given = await form(visit.request)
    job = await _jobs(visit).begin(visit.model, visit.user.name, rate=_rate(given.get("rate", "")))
    return await _page(visit, "parts/refine.html", job.id)


@router.post("/{id}/cancel")
async def cancel(visit: Visiting, id: int) -> Response:
    """End a job."""
    visit.service.gate.known(visit.request)
    await _jobs(visit).cancel(id)
    return await _page(visit, "parts/refine.html", id)


@router.post("/{id}/promote")
async def promote(visit: Visiting, id: int) -> Response:
    """Make the version live that came of a job."""
    visit.service.gate.known(visit.request)
    if not visit.user.may("admin"):
        raise Refusal(403, "NotAllowed", "this takes the role admin; yours is review")
    job = await _jobs(visit).job(id)
    given = await form(visit.request)
    reason = given.get("reason", "").strip()[:_REASON] or f"refined, job {id}"
    version = str(job.result.get("version", ""))
    served = await visit.service.promote(job.model, version, visit.user.name, reason)
    visit.model = job.model
    done = f"Version {served.version} is live now."
    return await _page(visit, "parts/refine.html", id, done)


async def _page(visit: Visit, template: str, id: int | None, done: str = "") -> Response:
    kept = visit.service.jobs is not None and bool(visit.model)
    if not kept:
        return visit.page(template, kept=False, done="")
    jobs = _jobs(visit)
    several = await jobs.jobs(visit.model)
    job = next((one for one in several if one.id == id), None)
    if id is not None and job is None:
        raise not_found("there is no job of that number of this model")
    job = job or (several[0] if several else None)
    under_way = next((one for one in several if one.state not in ENDED), None)
    # While one is under way what it learns from is shown, and not looked up anew every second.
    plan = Plan(**under_way.settings["plan"]) if under_way else await _plan(visit, jobs)
    compared: Sequence[Compared] = ()
    if job is not None and job.state == "done":
        compared = await visit.service.in_pool(_compared, visit, job)
    return visit.page(
        template,
        kept=True,
        done=done,
        plan=plan,
        job=job,
        jobs=several[:50],
        under_way=under_way,
        compared=compared[:_SHOWN],
        left=max(len(compared) - _SHOWN, 0),
        live=visit.version,
        there=_there(visit, job),
        rate=_rate_of(visit.service.models.live(visit.model)),
        may=visit.user.may("admin"),
    )


def _jobs(visit: Visit) -> Jobs:
    """Raises: Refusal where nothing is kept."""
    if visit.service.jobs is None:
        raise Refusal(409, "NothingKept", "this service keeps nothing; start it with a store")
    return visit.service.jobs


def _rate(text: str) -> float | None:
    """A false-alarm rate from a form, in percent. Raises: Refusal for what is none."""
    if not text.strip():
        return None
    try:
        rate = float(text.replace(",", ".").rstrip(" %")) / 100
    except ValueError:
        rate = -1.0
    if not 0 < rate < 1:
        raise bad_request("the false-alarm rate is a number of percent between 0 and 100")
    return rate


def _rate_of(served: Served) -> float | None:
    threshold = served.detector.threshold
    return None if threshold is None else threshold.rate


def _there(visit: Visit, job: Job | None) -> bool:
    """Whether the version that came of a job is still on disk."""
    versions = [one.version for one in visit.service.models.versions(visit.model)]
    return job is not None and job.result.get("version") in versions


def _compared(visit: Visit, job: Job) -> list[Compared]:
    """What was held out: first what became worse or better, then what is close to a threshold.
    Those that are shown have their predictions."""
    order = {"worse": 0, "better": 1, "same": 2}
    found = [
        Compared(
            row=None,
            picture=one["picture"],
            defective=one["defective"],
            before=one["before"],
            after=one["after"],
        )
        for one in job.result.get("held", {}).get("rows", ())
    ]
    found.sort(key=lambda one: (order[one.became], not one.defective, one.picture))
    for at, one in enumerate(found[:_SHOWN]):
        beside = {"picture": one.picture, "model": visit.model, "limit": 1, "regions": False}
        found[at] = replace(one, row=next(iter(visit.store.predictions(**beside)), None))
    return found


async def _plan(visit: Visit, jobs: Jobs) -> Plan:
    """What would be learned from now: looked up anew where labels or the live version changed, or
    after a while, as pictures may have been deleted."""
    state = (visit.version, await visit.run(visit.store.labels_state))
    known: dict[str, tuple[Any, float, Plan]] = visit.service.__dict__.setdefault("_plans", {})
    found = known.get(visit.model)
    if found is None or found[0] != state or time.monotonic() - found[1] > _PLAN_S:
        found = known[visit.model] = (state, time.monotonic(), await jobs.plan(visit.model))
    return found[2]

"""Routes of the jobs that learn from what was reviewed."""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Query, Request

from blemish.serve.jobs import Jobs
from blemish.serve.refusals import Refusal
from blemish.serve.security import User, needs
from blemish.serve.service import Service
from blemish.store import Job

router = APIRouter(tags=["learning"])
Reviewing = Annotated[User, Depends(needs("review"))]


@router.get("/v1/models/{name}/refine")
async def plan(request: Request, user: Reviewing, name: str) -> dict[str, Any]:
    """What a job would learn from now, and what is missing for one."""
    return asdict(await _jobs(request).plan(name))


@router.post("/v1/models/{name}/refine", status_code=202)
async def begin(
    request: Request,
    user: Reviewing,
    name: str,
    rate: Annotated[
        float | None, Query(gt=0, lt=1, description="false-alarm rate of the new threshold")
    ] = None,
) -> dict[str, Any]:
    """Begin to learn from the reviewed pictures. The new version is live once it is promoted."""
    return told(await _jobs(request).begin(name, user.name, rate=rate))


@router.get("/v1/models/{name}/jobs")
async def several(request: Request, user: Reviewing, name: str) -> dict[str, Any]:
    """The jobs of a model, the newest first, without the rows of their results."""
    service: Service = request.app.state.service
    service.models.live(name)
    jobs = await _jobs(request).jobs(name)
    return {"jobs": [told(job, rows=False) for job in jobs]}


@router.get("/v1/jobs/{id}")
async def one(request: Request, user: Reviewing, id: int) -> dict[str, Any]:
    """A job: how far it is, or what came of it."""
    return told(await _jobs(request).job(id))


@router.delete("/v1/jobs/{id}")
async def cancel(request: Request, user: Reviewing, id: int) -> dict[str, Any]:
    """End a job that waits or runs. Nothing of it stays."""
    jobs = _jobs(request)
    await jobs.cancel(id)
    return told(await jobs.job(id))


def told(job: Job, *, rows: bool = True) -> dict[str, Any]:
    """A job, JSON-ready. Args: rows: whether each picture that was held out is told."""
    result = dict(job.result)
    if not rows and "held" in result:
        result["held"] = {key: one for key, one in result["held"].items() if key != "rows"}
    return {
        "job": job.id,
        "model": job.model,
        "who": job.who,
        "state": job.state,
        "progress": job.progress,
        "message": job.message,
        "made": job.made.isoformat(),
        "changed": job.changed.isoformat(),
        "settings": dict(job.settings),
        "result": result,
    }


def _jobs(request: Request) -> Jobs:
    """Raises: Refusal where the service keeps nothing that could be learned from."""
    service: Service = request.app.state.service
    if service.jobs is None:
        raise Refusal(409, "NothingKept", "this service keeps nothing; start it with --store")
    return service.jobs

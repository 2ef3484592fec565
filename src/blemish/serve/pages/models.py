"""The models: which version is live, what each learned from, promote and roll back."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from fastapi import APIRouter
from starlette.responses import Response

from blemish import artifact
from blemish.detector.manifest import Learned, read_manifest
from blemish.engines.files import is_exported
from blemish.errors import BlemishError
from blemish.serve.files import ModelFile
from blemish.serve.pages.rendering import Visit, Visiting, form
from blemish.serve.refusals import Refusal
from blemish.store import VersionRow

router = APIRouter(prefix="/models")
_REASON = 500


@dataclass(frozen=True)
class Shown:
    """A version of a model.

    Attributes:
        version; live: whether requests go to it; loaded: whether it is in memory; digest: of its
        file, "" before it was read. known: what the store says of it. learned: rows for people.
        predictions, alarms: what it said so far.
    """

    version: str
    live: bool
    loaded: bool
    digest: str
    known: VersionRow | None
    learned: list[tuple[str, str]]
    predictions: int
    alarms: int


@router.get("")
async def listed(visit: Visiting) -> Response:
    """The page."""
    return await _page(visit, "models.html")


@router.post("/{name}/promote")
async def promote(visit: Visiting, name: str) -> Response:
    """Make a version live."""
    _only_admins(visit)
    given = await form(visit.request)
    reason = given.get("reason", "").strip()[:_REASON]
    version = given.get("version", "")
    served = await visit.service.promote(name, version, visit.user.name, reason)
    visit.model = name
    return await _page(visit, "parts/models.html", f"Version {served.version} is live now.")


@router.post("/{name}/roll-back")
async def roll_back(visit: Visiting, name: str) -> Response:
    """Make the version live that was so before."""
    _only_admins(visit)
    served = await visit.service.roll_back(name, visit.user.name)
    visit.model = name
    return await _page(visit, "parts/models.html", f"Back to version {served.version}.")


def _only_admins(visit: Visit) -> None:
    visit.service.gate.known(visit.request)
    if not visit.user.may("admin"):
        raise Refusal(403, "NotAllowed", "this takes the role admin; yours is review")


async def _page(visit: Visit, template: str, done: str = "") -> Response:
    versions: list[Shown] = []
    history: list[Any] = []
    if visit.model:
        versions = await visit.run(_versions, visit)
        told = await visit.run(visit.service.models.promotions.promotions, visit.model)
        history = sorted(told, key=lambda one: one.time, reverse=True)
    back = _before(history, visit.version)
    return visit.page(
        template,
        versions=versions,
        history=history[:50],
        back=back,
        done=done,
        behind=visit.service.models.behind.get(visit.model),
        may=visit.user.may("admin"),
    )


def _before(history: list[Any], live: str) -> str | None:
    """The version that a roll back leads to; None where there is none."""
    pile: list[str] = []
    for one in reversed(history):
        if one.kind == "roll back" and pile:
            pile.pop()
        elif pile[-1:] != [one.version]:
            pile.append(one.version)
    others = [one for one in pile if one != live]
    return others[-1] if others else None


def _versions(visit: Visit) -> list[Shown]:
    service, model = visit.service, visit.model
    known: dict[str, VersionRow] = {}
    rates = {}
    if service.store is not None:
        known = {one.version: one for one in service.store.versions(model)}
        rates = {one.key: one for one in service.store.verdict_rates("version", model=model)}
    found = []
    for file in reversed(service.models.versions(model)):
        served = service.models.loaded(model, file.version)
        row, rate = known.get(file.version), rates.get(file.version)
        found.append(
            Shown(
                version=file.version,
                live=file.version == visit.version,
                loaded=served is not None,
                digest=file.digest or (row.sha256 if row else ""),
                known=row,
                learned=_learned(_data(served, file), row),
                predictions=rate.predictions if rate else 0,
                alarms=rate.alarms if rate else 0,
            )
        )
    return found


def _data(served: Any, file: ModelFile) -> Learned | None:
    """The pictures that a version knows; None where its file does not say so by itself."""
    if served is not None:
        data: Learned = served.detector.record.data
        return data
    try:
        return _read(file.path, file.path.stat().st_mtime_ns)
    except (BlemishError, OSError):
        return None


@lru_cache(maxsize=256)
def _read(path: Path, written: int) -> Learned | None:
    if is_exported(path):
        return None
    return read_manifest(path, artifact.read_manifest(path)).data


def _learned(data: Learned | None, row: VersionRow | None) -> list[tuple[str, str]]:
    """What a version learned from, as far as that is known."""
    found: list[tuple[str, str]] = []
    if data is not None:
        found.append(("Good pictures", str(len(data.fitted))))
        if data.calibrated:
            found.append(("For the threshold alone", str(len(data.calibrated))))
        if data.defects:
            found.append(("Labelled defects", str(len(data.defects))))
    if row is not None:
        if row.base:
            found.append(("Refined from", f"version {row.base}"))
        for name, value in row.learned_from.items():
            if isinstance(value, (str, int, float)):
                found.append((name.replace("_", " ").capitalize(), str(value)[:200]))
            elif isinstance(value, list):
                found.append((name.replace("_", " ").capitalize(), f"{len(value)}"))
    return found

"""The review: the next picture, what a reviewer says of it, and taking that back."""

from __future__ import annotations

from typing import Any

import cv2
import numpy as np
from fastapi import APIRouter, Request
from starlette.responses import Response

from blemish.errors import ConfigError, ImageError
from blemish.images import decode_mask
from blemish.serve import uploads
from blemish.serve.drawing import encoded
from blemish.serve.pages import pictures, words
from blemish.serve.pages.rendering import Visit, Visiting, form
from blemish.serve.refusals import Refusal, bad_request
from blemish.serve.reviewing import MOST_LEFT, Next, Reviewing
from blemish.store import Label, Row, Store
from blemish.store.records import MASK_BYTES

router = APIRouter(prefix="/review")
_AHEAD = 3  # pictures whose files the browser fetches beforehand


@router.get("")
async def queue(visit: Visiting, id: int | None = None, shown: bool = False) -> Response:
    """The next picture of the queue, or one that is named. What the detector says of it is not in
    the page, unless it is asked for: who sees it first is led by it."""
    return await _shown(visit, "review.html", id=id, blind=not shown)


@router.get("/hints")
async def hints(visit: Visiting, id: int) -> Response:
    """What the detector and others say of a picture that is being reviewed."""
    known = await pictures.of_prediction(visit, id)
    draw = await visit.run(visit.store.draw, known.row.picture, known.row.model)
    why = "" if draw is None else words.why(known.row, draw.stratum)
    return visit.page(
        "parts/revealed_hints.html", known=known, row=known.row, why=why, blind=False, oob=False
    )


@router.post("/label")
async def label(request: Request, visit: Visiting) -> Response:
    """Keep what a reviewer says, and show the next picture."""
    visit.service.gate.known(request)
    given = await _given(request)
    if given["verdict"] == "skip":
        passed = [one for one in given["skipped"].split(",") if one][-200:]
        return await _shown(visit, "parts/review.html", skipped=[*passed, given["picture"]])
    try:
        mask = None
        if given["verdict"] == "defect" and given["mask"]:
            mask = await visit.run(_sized, visit.store, given)
        said = Label(
            picture=given["picture"],
            verdict=given["verdict"],
            reviewer=visit.user.name,
            defect=given["defect"].strip() if given["verdict"] == "defect" else "",
            mask=mask or None,
            prediction=int(given["prediction"]) if given["prediction"] else None,
            revealed=given["revealed"] == "1",
        )
        id = await visit.run(_kept, visit.store, said)
    except (ConfigError, ImageError, ValueError) as error:
        raise Refusal(422, "UnusableLabel", str(error)) from error
    told = {"id": id, "picture": said.picture, "verdict": said.verdict, "who": said.reviewer}
    visit.service.events.publish("label", told)
    if given["then"] == "stay" and said.prediction is not None:
        return await _one(visit, said.prediction)
    passed = [one for one in given["skipped"].split(",") if one][-200:]
    return await _shown(visit, "parts/review.html", skipped=passed, said=said)


@router.post("/undo")
async def undo(request: Request, visit: Visiting) -> Response:
    """Take the reviewer's last label back, and show its picture again."""
    visit.service.gate.known(request)
    given = await form(request)
    taken: Label | None = await visit.run(visit.store.undo_label, visit.user.name)
    if taken is not None:
        told = {"id": taken.id, "picture": taken.picture, "verdict": "", "who": taken.reviewer}
        visit.service.events.publish("label", told)
    if given.get("then") == "stay" and given.get("prediction", "").isdecimal():
        return await _one(visit, int(given["prediction"]))
    return await _shown(
        visit,
        "parts/review.html",
        id=None if taken is None else taken.prediction,
        blind=taken is None,
        undone=taken,
        nothing_undone=taken is None,
    )


async def _given(request: Request) -> dict[str, Any]:
    """What a label's form holds. Raises: Refusal."""
    parts = await uploads.parts(
        request, limit=MASK_BYTES + 2**16, most=12, hold=lambda length: None
    )
    found: dict[str, Any] = dict.fromkeys(
        ("picture", "prediction", "verdict", "defect", "skipped", "then", "revealed"), ""
    )
    found["mask"] = None
    for part in parts:
        if part.field == "mask":
            found["mask"] = part.content
        elif part.field in found:
            found[part.field] = part.content.decode("utf-8", "replace")
    if not found["verdict"]:
        raise bad_request("say what the picture is: good, defect or unsure")
    number = found["prediction"]
    if number and not (number.isascii() and number.isdecimal() and len(number) < 20):
        raise bad_request("the number of the prediction is none; load the page anew")
    if found["mask"] and not number:
        raise bad_request("a mask needs the number of the prediction that it was drawn on")
    return found


def _kept(store: Store, said: Label) -> int:
    """Keep a label. One that is sent again, as its answer was lost, is there once."""
    before: Label | None = store.current(said.picture).get(said.reviewer)
    if before is not None and before.id is not None:
        names = ("verdict", "defect", "prediction")
        same = all(getattr(before, name) == getattr(said, name) for name in names)
        if same and _marks(before) == _marks(said):
            return int(before.id)
    id: int = store.add_label(said)
    return id


def _marks(label: Label) -> bytes:
    """The pixels of a mask; none without one."""
    return b"" if label.mask is None else decode_mask(label.mask, name="mask").tobytes()


def _sized(store: Any, given: dict[str, Any]) -> bytes:
    """The mask at the size of its picture: browsers draw that of a large one smaller.

    Raises: ImageError for what is no mask.
    """
    mask: bytes = given["mask"]
    row = store.prediction(int(given["prediction"]))
    marked = decode_mask(mask, name="mask")
    if row is None or marked.shape == (row.height, row.width):
        return mask
    shares = row.height / marked.shape[0], row.width / marked.shape[1]
    if min(shares) < 1 or max(shares) > min(shares) * 1.01:
        raise ImageError("mask", "has another shape than its picture")
    values = marked.view(np.uint8) * 255
    size = (row.width, row.height)
    return encoded(cv2.resize(values, size, interpolation=cv2.INTER_NEAREST))


async def _one(visit: Visit, id: int) -> Response:
    """What was said of one picture, for its page."""
    known = await pictures.of_prediction(visit, id)
    types = await pictures.types_of(visit)
    return visit.page(
        "parts/said.html", known=known, row=known.row, types=types, blind=False, oob=False
    )


async def _shown(
    visit: Visit,
    template: str,
    *,
    id: int | None = None,
    blind: bool = True,
    skipped: list[str] | None = None,
    said: Label | None = None,
    undone: Label | None = None,
    nothing_undone: bool = False,
) -> Response:
    values: dict[str, Any] = {
        **{"known": None, "next": None, "why": ""},
        **{"ahead": [], "left": 0, "types": [], "differs": None},
    }
    passed = list(skipped or [])
    if visit.service.store is not None and visit.model:
        reviewing = Reviewing.of(visit.service, visit.model)
        coming: list[Next] = await visit.run(
            reviewing.coming, visit.user.name, _AHEAD + 1, tuple(passed)
        )
        first = coming[0] if coming else None
        if id is None and first is not None:
            id = first.row.id
        if id is not None:
            values["known"] = await pictures.of_prediction(visit, id)
        shown = next((one for one in coming if one.row.id == id), None)
        values |= {
            "next": shown,
            "why": words.why(shown.row, shown.why) if shown else "",
            "ahead": [one.row for one in coming if one.row.id != id],
            "left": await visit.run(reviewing.left),
            "types": await pictures.types_of(visit),
        }
    if said is not None and said.prediction is not None and not said.revealed:
        values["differs"] = await visit.run(_differs, visit.store, said)
    return visit.page(
        template,
        blind=blind,
        oob=False,
        row=values["known"].row if values["known"] else None,
        kept=visit.service.store is not None,
        skipped=passed,
        said=said,
        undone=undone,
        nothing_undone=nothing_undone,
        most_left=MOST_LEFT,
        **values,
    )


def _differs(store: Store, said: Label) -> Row | None:
    """The prediction that a label contradicts, of somebody who had not seen it; None where it does
    not. A second look is worth while: one of the two has overlooked something."""
    row = None if said.prediction is None else store.prediction(said.prediction)
    verdicts = {"good": 0, "defect": 1}
    if row is None or row.label is None or verdicts.get(said.verdict, row.label) == row.label:
        return None
    return row

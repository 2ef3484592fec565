"""The pictures that pages show: as they were sent, small, as a heatmap, as a mask."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import cv2
import numpy as np
from fastapi import APIRouter
from starlette.responses import Response

from blemish.errors import ConfigError
from blemish.images import LIMITS, decode, sniff
from blemish.serve.drawing import encoded
from blemish.serve.pages.rendering import Visit, Visiting
from blemish.serve.refusals import not_found
from blemish.store import Row

router = APIRouter(prefix="/media")
# Whoever may look may keep it: a digest's content never changes.
_KEPT = {"Cache-Control": "private, max-age=604800, immutable"}
_SHOWN = {"jpeg": "image/jpeg", "png": "image/png", "webp": "image/webp", "bmp": "image/bmp"}
_LARGEST = 256 * 2**20
# Opaque from the middle of the scale on, as in `report.heatmap`; less of a haze below, since here
# a slider makes it stronger.
_STRENGTHS = np.minimum(np.linspace(0.0, 2.0, 256), 1.0) ** 2


@router.get("/pictures/{digest}")
async def picture(visit: Visiting, digest: str) -> Response:
    """A picture in full resolution; what browsers do not show, as PNG."""
    return await _answered(visit, _full, digest)


@router.get("/thumbnails/{digest}")
async def thumbnail(visit: Visiting, digest: str) -> Response:
    """A small version of a picture."""
    return await _answered(visit, _small, digest)


@router.get("/heatmaps/{id}")
async def heatmap(visit: Visiting, id: int) -> Response:
    """The map of a prediction as colours with opacity, to be laid over the picture."""
    row = await visit.run(visit.store.prediction, id)
    if row is None:
        raise not_found("there is no such prediction")
    scale = scale_of(visit, row)
    found = await visit.run(_coloured, visit.store, row, scale)
    if found is None:
        raise not_found("the map of this picture is not kept")
    return Response(found, media_type="image/png", headers=_KEPT)


@router.get("/masks/{id}")
async def mask(visit: Visiting, id: int) -> Response:
    """The mask of a label: 255 = the defect."""
    try:
        label = await visit.run(visit.store.label, id)
    except ConfigError:  # no number that a label can have
        label = None
    if label is None or label.mask is None:
        raise not_found("there is no such mask")
    return Response(label.mask, media_type="image/png", headers=_KEPT)


def scale_of(visit: Visit, row: Row) -> tuple[float, float]:
    """(low, high) of the colours of a prediction's map; where its version is not loaded, from the
    thresholds that it was judged by."""
    service = visit.service
    if row.model in service.models.names:
        served = service.models.loaded(row.model, row.version)
        if served is not None:
            return served.detector.map_scale
    level = row.region_threshold if row.region_threshold is not None else row.threshold
    level = row.score if level is None else level
    return (0.5 * level, 1.5 * level) if level > 0 else (level - 1.0, level + 1.0)


async def _answered(visit: Visit, work: Any, digest: str) -> Response:
    try:
        found = await visit.run(work, visit.store, digest)
    except ConfigError:
        found = None
    if found is None:
        raise not_found("this picture is not kept")
    content, kind = found
    return Response(content, media_type=kind, headers=_KEPT)


def _full(store: Any, digest: str) -> tuple[bytes, str] | None:
    path: Path | None = store.picture(digest)
    if path is None:
        return None
    content = path.read_bytes()
    kind = sniff(content[:132])
    if kind in _SHOWN and not _is_deep(content):
        return content, _SHOWN[kind]
    pixels = decode(content, limits=LIMITS).as_uint8()
    return encoded(np.ascontiguousarray(pixels[..., ::-1])), "image/png"


def _small(store: Any, digest: str) -> tuple[bytes, str] | None:
    path: Path | None = store.thumbnail(digest)
    return None if path is None else (path.read_bytes(), "image/jpeg")


def _is_deep(content: bytes) -> bool:
    """Whether a PNG has 16 bits, which browsers show by rules of their own."""
    return content.startswith(b"\x89PNG") and content[24:25] == b"\x10"


def _coloured(store: Any, row: Row, scale: tuple[float, float]) -> bytes | None:
    values = store.map(row.picture, row.model, row.version)
    if values is None:
        return None
    low, high = scale
    level = np.rint(np.clip((values - low) / (high - low), 0.0, 1.0) * 255).astype(np.uint8)
    side = 512 / max(level.shape)
    if side > 1:  # finer than the map, as browsers interpolate colours and not levels
        size = (round(level.shape[1] * side), round(level.shape[0] * side))
        level = cv2.resize(level, size, interpolation=cv2.INTER_CUBIC)
    colours = cv2.applyColorMap(level, cv2.COLORMAP_PLASMA)
    opacity = np.rint(_STRENGTHS * 255).astype(np.uint8)[level]
    return encoded(np.dstack([colours, opacity]))

"""The Open Inference Protocol, version 2: what clients of KServe and Triton speak."""

from __future__ import annotations

import json
from importlib.metadata import version as version_of
from typing import Annotated, Any

import numpy as np
from fastapi import APIRouter, Depends, Request
from starlette.responses import JSONResponse, Response

from blemish.serve import tensors, uploads
from blemish.serve.api import in_time, note
from blemish.serve.batching import Upload
from blemish.serve.refusals import Refusal, bad_request, not_found
from blemish.serve.security import User, needs
from blemish.serve.service import Answer, Place, Service

router = APIRouter(tags=["Open Inference Protocol V2"])
Predicting = Annotated[User, Depends(needs("predict"))]
_HEADER = "Inference-Header-Content-Length"


@router.get("/v2/health/live")
async def is_live() -> dict[str, bool]:
    """Whether the process answers; asked without a token."""
    return {"live": True}


@router.get("/v2/health/ready")
async def is_ready(request: Request) -> Response:
    """Whether it takes pictures: 503 while it starts and ends; asked without a token."""
    ready = request.app.state.service.ready
    return JSONResponse({"ready": ready}, 200 if ready else 503)


@router.get("/v2")
async def server(user: Predicting) -> dict[str, Any]:
    """What this is."""
    extensions = ["binary_tensor_data"]
    return {"name": "blemish", "version": version_of("blemish"), "extensions": extensions}


@router.get("/v2/models/{name}/ready")
@router.get("/v2/models/{name}/versions/{version}/ready")
async def model_is_ready(
    request: Request, user: Predicting, name: str, version: str | None = None
) -> Response:
    """Whether a version is loaded; the live one always is."""
    service: Service = request.app.state.service
    told = service.models.live(name).version if version is None else version
    ready = service.ready and service.models.loaded(name, told) is not None
    return JSONResponse({"name": name, "ready": ready}, 200 if ready else 503)


@router.get("/v2/models/{name}")
@router.get("/v2/models/{name}/versions/{version}")
async def model(
    request: Request, user: Predicting, name: str, version: str | None = None
) -> dict[str, Any]:
    """What goes in and comes out. Of the two inputs a request has either or both."""
    service: Service = request.app.state.service
    served = service.models.live(name)
    known = [one.version for one in service.models.versions(name)]
    if version is not None and version not in known:
        raise not_found("there is no version of that name of this model")
    shapes = {"map": [-1, -1, -1]}
    return {
        "name": name,
        "versions": known,
        "platform": f"blemish_{served.detector.engine.name}",
        "inputs": [
            {"name": tensors.IMAGES, "datatype": "UINT8", "shape": [-1, -1, -1, 3]},
            {"name": tensors.PICTURES, "datatype": "BYTES", "shape": [-1]},
        ],
        "outputs": [
            {"name": one, "datatype": kind, "shape": shapes.get(one, [-1])}
            for one, kind in tensors.OUTPUTS.items()
        ],
    }


@router.post("/v2/models/{name}/infer")
@router.post("/v2/models/{name}/versions/{version}/infer")
async def infer(
    request: Request, user: Predicting, name: str, version: str | None = None
) -> Response:
    """Score the pictures of a request; one that cannot be scored has NaN, and says why in error.

    Where there are notes, as of a picture that is not kept, `parameters.notes` of the answer is a
    text: as JSON, of each picture in turn a list of sentences, empty where there is none.
    """
    service: Service = request.app.state.service
    settings = service.settings
    service.models.live(name)
    header = request.headers.get(_HEADER)
    if header is not None and not (header.isdecimal() and len(header) < 12):
        raise bad_request(f"{_HEADER} is no length")

    async def read(place: Place) -> tensors.Asked:
        body = await uploads.whole(request, settings.largest_upload, place.hold)
        length = None if header is None else int(header)
        asked: tensors.Asked = await service.in_pool(
            tensors.read, body, length, settings.most_pictures
        )
        place.take(len(asked.pictures))
        return asked

    async def work(asked: tensors.Asked) -> Response:
        served = await service.served(name, version)
        pictures = [
            Upload(content=content, name=f"picture {index}")
            for index, content in enumerate(asked.pictures)
        ]
        answers = await service.score_all(served, pictures)
        note(request, model=served.name, version=served.version, pictures=len(answers))
        head: dict[str, Any] = {"model_name": name, "model_version": served.version}
        head |= {"id": asked.id} if asked.id else {}
        notes = [[] if isinstance(one, Refusal) else one.row["notes"] for one in answers]
        # Of parameters the protocol allows texts, numbers and truth values.
        head |= {"parameters": {"notes": json.dumps(notes)}} if any(notes) else {}
        outputs = _outputs(asked.outputs, answers)
        body, length = await service.in_pool(tensors.written, head, outputs, asked.binary)
        headers = {} if length is None else {_HEADER: str(length)}
        kind = "application/json" if length is None else "application/octet-stream"
        return Response(body, media_type=kind, headers=headers)

    return await in_time(request, read, work)


def _outputs(names: tuple[str, ...], answers: list[Answer | Refusal]) -> list[tuple[str, Any]]:
    """Each output by its name. Raises: Refusal for maps of several sizes."""

    def numbers(key: str) -> np.ndarray:
        told = [None if isinstance(one, Refusal) else one.row[key] for one in answers]
        return np.array([np.nan if one is None else one for one in told], np.float32)

    def labels() -> np.ndarray:
        told = [None if isinstance(one, Refusal) else one.row["label"] for one in answers]
        return np.array([tensors.NO_LABEL if one is None else one for one in told], np.int32)

    def rows() -> list[bytes]:
        told = [one.to_dict() if isinstance(one, Refusal) else one.row for one in answers]
        return [json.dumps(one).encode() for one in told]

    def errors() -> list[bytes]:
        return [str(one).encode() if isinstance(one, Refusal) else b"" for one in answers]

    def maps() -> np.ndarray:
        found = [
            None if isinstance(one, Refusal) else one.prediction.anomaly_map for one in answers
        ]
        shapes = {one.shape for one in found if one is not None}
        if len(shapes) > 1:
            raise bad_request("outputs: the maps are of several sizes; ask for each by itself")
        nothing = np.full(shapes.pop() if shapes else (0, 0), np.nan, np.float32)
        return np.stack([nothing if one is None else one for one in found])

    made = {"label": labels, "prediction": rows, "error": errors, "map": maps}
    return [(one, made[one]() if one in made else numbers(one)) for one in names]

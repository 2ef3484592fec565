"""The page about the API: made of its OpenAPI document, without a script and without a network."""

from __future__ import annotations

import shlex
from importlib import resources
from typing import Annotated, Any

import jinja2
from fastapi import APIRouter, Depends, FastAPI, Request
from fastapi.openapi.utils import get_openapi
from starlette.responses import HTMLResponse, JSONResponse, Response

from blemish.serve.security import User, needs

router = APIRouter(include_in_schema=False)
Predicting = Annotated[User, Depends(needs("predict"))]
_BODIES = {
    "/v1/models/{name}/predict": "multipart/form-data with files, or the bytes of one picture, "
    "which ?name= can call by a name",
    "/v1/models/{name}/versions": "the file, or multipart/form-data: an .xml with its .bin",
    "/v2/models/{name}/infer": "JSON, or JSON and binary tensors",
    "/v2/models/{name}/versions/{version}/infer": "JSON, or JSON and binary tensors",
}
_SENT = {
    "/v1/models/{name}/predict": ["-F", "picture=@part.png"],
    "/v1/models/{name}/versions": ["--data-binary", "@part.blemish"],
    "/v1/models/{name}/promote": ["--json", '{"version": "2", "reason": "fewer misses"}'],
}
_QUERIES = {"/v1/models/{name}/versions": "?version=2"}
_PAGES = jinja2.Environment(
    loader=jinja2.PackageLoader("blemish.serve", package_path="."),
    autoescape=True,
    undefined=jinja2.StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
)


@router.get("/openapi.json")
async def document(request: Request, user: Predicting) -> Response:
    """The OpenAPI document."""
    return JSONResponse(schema_of(request.app))


@router.get("/docs")
async def page(request: Request, user: Predicting) -> Response:
    """The same, to be read."""
    url = str(request.base_url).rstrip("/")
    service = request.app.state.service
    model = next(iter(service.models.names if service.ready else ()), "part")
    found = {"groups": _groups(schema_of(request.app), url, model), "url": url}
    has_tokens = service.gate.has_tokens
    shown = _PAGES.get_template("manual.html.jinja").render(**found, has_tokens=has_tokens)
    return HTMLResponse(shown)


@router.get("/docs/manual.css")
async def style() -> Response:
    """How the page looks."""
    text = resources.files("blemish.serve").joinpath("manual.css").read_text("utf-8")
    return Response(text, media_type="text/css", headers={"Cache-Control": "max-age=3600"})


def schema_of(app: FastAPI) -> dict[str, Any]:
    """The OpenAPI document of an application, with what bodies and errors look like."""
    if app.openapi_schema is None:
        schema = get_openapi(title=app.title, version="1", summary=app.summary, routes=app.routes)
        parts = schema.setdefault("components", {})
        parts["securitySchemes"] = {"token": {"type": "http", "scheme": "bearer"}}
        schema["security"] = [{"token": []}]
        for path, methods in schema["paths"].items():
            for operation in methods.values():
                operation["responses"].pop("422", None)  # FastAPI's own form, which is never sent
                if path in _BODIES and "requestBody" not in operation:
                    operation["requestBody"] = _body(_BODIES[path])
        app.openapi_schema = schema
    return app.openapi_schema


def _body(told: str) -> dict[str, Any]:
    binary = {"schema": {"type": "string", "format": "binary"}}
    files = {"type": "array", "items": {"type": "string", "format": "binary"}}
    form = {"schema": {"type": "object", "properties": {"picture": files}}}
    content = {"multipart/form-data": form, "application/octet-stream": binary}
    return {"description": told, "required": True, "content": content}


def _groups(schema: dict[str, Any], url: str, model: str) -> dict[str, list[dict[str, Any]]]:
    """The operations of a document, by their tags, as the page shows them."""
    groups: dict[str, list[dict[str, Any]]] = {}
    for path, methods in schema["paths"].items():
        for method, told in methods.items():
            body = told.get("requestBody")
            one = {
                "method": method.upper(),
                "path": path,
                "says": " ".join(told.get("description", "").split()),
                "parameters": [
                    {
                        "name": each["name"],
                        "where": each["in"],
                        "needed": each["required"],
                        "says": each.get("description", ""),
                        "choices": _choices(each["schema"]),
                    }
                    for each in told.get("parameters", ())
                ],
                "body": None if body is None else body.get("description") or _fields(schema, body),
                "example": _example(method.upper(), path, url, model),
            }
            groups.setdefault(told.get("tags", ["service"])[0], []).append(one)
    return groups


def _choices(schema: dict[str, Any]) -> list[str]:
    options = [schema, *schema.get("anyOf", ())]
    return [str(choice) for one in options for choice in one.get("enum", ())]


def _fields(schema: dict[str, Any], body: dict[str, Any]) -> str:
    """The fields of a JSON body, in words."""
    reference = body["content"]["application/json"]["schema"]["$ref"].rpartition("/")[2]
    return f"JSON: {', '.join(schema['components']['schemas'][reference]['properties'])}"


def _example(method: str, path: str, url: str, model: str) -> str:
    words = ["curl", *(["-X", method] if method == "POST" and path not in _SENT else [])]
    shown = path.replace("{name}", model).replace("{version}", "2")
    return shlex.join([*words, *_SENT.get(path, ()), f"{url}{shown}{_QUERIES.get(path, '')}"])

"""Why a request is not done: a status, a kind for programs and a sentence for people."""

from __future__ import annotations

import math
from collections.abc import Mapping

from blemish.errors import BlemishError


class Refusal(BlemishError):
    """A request that is answered with an error.

    No message names a path of this machine: it goes to whoever asked.

    Attributes:
        status: of HTTP, 400 to 599. kind: one word for programs ("Busy").
        headers: further ones of the answer.
    """

    def __init__(
        self, status: int, kind: str, message: str, headers: Mapping[str, str] | None = None
    ) -> None:
        self.status, self.kind = status, kind
        self.headers = dict(headers or {})
        super().__init__(message)

    def to_dict(self) -> dict[str, dict[str, str]]:
        """The body of the answer."""
        return {"error": {"kind": self.kind, "message": str(self)}}


def bad_request(message: str) -> Refusal:
    """Of what is not asked as it should be."""
    return Refusal(400, "BadRequest", message)


def not_found(message: str) -> Refusal:
    """Of a model, a version or a page that is not there."""
    return Refusal(404, "NotFound", message)


def too_large(message: str) -> Refusal:
    """Of more bytes or pictures than a request may bring."""
    return Refusal(413, "TooLarge", message, {"Connection": "close"})


def unusable(reason: str) -> Refusal:
    """Of a picture that cannot be scored."""
    return Refusal(422, "UnusablePicture", f"the picture {reason}")


def busy(seconds: float, message: str) -> Refusal:
    """Of what there is no room for now. Args: seconds: after which there may be."""
    wait = str(max(1, min(60, math.ceil(seconds))))
    return Refusal(503, "Busy", message, {"Retry-After": wait})


def too_late(seconds: float) -> Refusal:
    """Of an answer that did not come in time."""
    return Refusal(
        504,
        "TimeUp",
        f"no answer within {seconds:g} s, the time limit; send fewer pictures at once",
    )

"""Who goes through the pictures of a fit: this process, as here, or others (`blemish.scale`)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from blemish.data.stream import Found, Passes, PictureStream, unreadable
from blemish.detector.evidence import Scoring, scored_here
from blemish.errors import ConfigError
from blemish.methods import Method
from blemish.methods.capabilities import Fits
from blemish.methods.in_parts import InParts
from blemish.types import Progress

Learning = Callable[[Method, PictureStream, Progress], Found]


def learned_here(method: Method, stream: PictureStream, progress: Progress) -> Found:
    """Have a method learn, without gradient, from the pictures of a stream; gives what was found
    of them.

    Raises: DataError where too few can be read; what `Fits.fit` raises.
    """
    passes = Passes(stream, method.backbone.device)
    assert isinstance(method, Fits)
    try:
        method.fit(passes, passes.rows, progress)
    except ConfigError:
        # Where too few can be read that is the reason, and it names them.
        check_usable(method, passes.found)
        raise
    check_usable(method, passes.found)
    return passes.found


def check_usable(method: Method, found: Found) -> None:
    """Raises: DataError where too few of the pictures could be decoded, or they are all alike."""
    usable, different = len(found.digests), len(set(found.digests.values()))
    if different < method.minimum_images:
        heading = (
            f"{method.name} needs at least {method.minimum_images} readable training pictures, "
            f"got {usable}"
        )
        if different < usable:
            heading += ", all of the same content"
        raise unreadable(heading, found.failures.values())


@dataclass(frozen=True, kw_only=True)
class Way:
    """How the pictures of a fit are gone through.

    Attributes:
        learn: has a method learn from pictures, without gradient.
        score: scores the pictures that are evidence for the thresholds.
        told: what the artifact is to say of it, once it has learned.
        here: whether it is this process that encodes the pictures, with the very method.
    """

    learn: Learning = learned_here
    score: Scoring = scored_here
    told: Callable[[], InParts | None] = lambda: None
    here: bool = True


HERE = Way()

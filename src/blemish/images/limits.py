"""What a picture may ask for, and the words in which one is refused."""

from __future__ import annotations

from dataclasses import dataclass

from blemish.errors import ConfigError


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What a picture may ask for before it is refused. A picture of more than one frame or page is always refused.

    Attributes:
        max_bytes: size of the file; checked before it is read.
        max_pixels: height × width; checked before a pixel is decoded.
        memory: bytes that all pictures being decoded in this process may hold together; one that
            needs more is refused. None: half of what the machine, its container (cgroup) and
            `ulimit -v` leave free; one that needs more is decoded alone if it fits at all.
    """

    max_bytes: int = 512 * 2**20
    max_pixels: int = 200_000_000
    memory: int | None = None

    def __post_init__(self) -> None:
        if self.max_bytes < 1 or self.max_pixels < 1:
            raise ConfigError(
                f"limits must be at least 1: max_bytes {self.max_bytes}, max_pixels {self.max_pixels}"
            )
        if self.memory is not None and self.memory < 1:
            raise ConfigError(f"limits must be at least 1: memory {self.memory}")


LIMITS = Limits()


class Unusable(ValueError):
    """Why a picture is refused, in words for a user; leaves this module as an ImageError that names the source."""


TRUNCATED = "is truncated: its end is missing"


def too_large(size: int, limits: Limits) -> str:
    return f"is {size:,} bytes; the limit is {limits.max_bytes:,} (Limits.max_bytes)"


def check_size(width: int, height: int, limits: Limits) -> None:
    if width < 1 or height < 1:
        raise Unusable(f"has no pixels ({width} × {height})")
    if width * height > limits.max_pixels:
        raise Unusable(
            f"is {width:,} × {height:,} = {width * height:,} pixels; "
            f"the limit is {limits.max_pixels:,} (Limits.max_pixels)"
        )


def check_frames(frames: int, what: str = "frames") -> None:
    if frames > 1:
        raise Unusable(f"has {frames} {what}; one picture per file is needed: save each on its own")

"""CutPaste: a piece of the picture pasted anywhere else in it.

Li, Sohn, Yoon, Pfister 2021, "CutPaste: Self-Supervised Learning for Anomaly Detection and
Localization". Its numbers are the defaults. Cuts and pastes are drawn evenly from all places where
the piece lies inside the picture.
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from blemish.anomalies.base import Simulator, Synthetic, blank, plain
from blemish.anomalies.patch import (
    check_number,
    check_range,
    free_place,
    jittered,
    lay,
    put,
    window,
)

CUTPASTE = "Li et al. 2021, CutPaste"


@dataclass(frozen=True, kw_only=True)
class CutPaste(Simulator):
    """A rectangle, its colours jittered.

    Attributes:
        area: share of the picture, drawn evenly between the two; in (0, 1].
        aspect: width over height: evenly from below or from above 1, then evenly between 1 and that
            end; [0] <= 1 <= [1]. A side that would leave the picture is as long as the picture's.
        jitter: strength of the colour jitter (brightness, contrast, saturation, and hue as a share
            of the circle); in [0, 0.5].
    Raises: ConfigError for a value out of range.
    """

    name: ClassVar[str] = "cutpaste"
    summary: ClassVar[str] = "cut a rectangle and paste it anywhere"
    source: ClassVar[str] = CUTPASTE

    area: tuple[float, float] = (0.02, 0.15)
    aspect: tuple[float, float] = (0.3, 3.3)
    jitter: float = 0.1

    def __post_init__(self) -> None:
        check_range("area", self.area, 1e-6, 1)
        check_number("aspect[0]", self.aspect[0], 1e-2, 1)
        check_number("aspect[1]", self.aspect[1], 1, 1e2)
        check_number("jitter", self.jitter, 0, 0.5)

    def _attempt(
        self, target: np.ndarray, rng: np.random.Generator, other: np.ndarray, attention: np.ndarray
    ) -> Synthetic:
        height, width = target.shape[:2]
        area = rng.uniform(*self.area) * height * width
        ends = (self.aspect[0], 1.0) if rng.integers(2) else (1.0, self.aspect[1])
        aspect = rng.uniform(*ends)
        extent = (
            min(height, max(1, round(math.sqrt(area / aspect)))),
            min(width, max(1, round(math.sqrt(area * aspect)))),
        )
        return _pasted(target, rng, extent, 0.0, self.jitter)


@dataclass(frozen=True, kw_only=True)
class CutPasteScar(Simulator):
    """A thin rectangle, its colours jittered, rotated.

    Attributes:
        width, length: in pixels of a picture of 256×256, drawn evenly between the two; scaled with
            the shorter side, at least one pixel. The length stands upright before it is rotated.
        angle: rotation drawn evenly within ± this many degrees; in [0, 180].
        jitter: as in `CutPaste`.
    Raises: ConfigError for a value out of range.
    """

    name: ClassVar[str] = "cutpaste-scar"
    summary: ClassVar[str] = "cut a thin strip, turn it and paste it anywhere"
    source: ClassVar[str] = CUTPASTE

    width: tuple[float, float] = (2.0, 16.0)
    length: tuple[float, float] = (10.0, 25.0)
    angle: float = 45.0
    jitter: float = 0.1

    def __post_init__(self) -> None:
        check_range("width", self.width, 1e-6, 256)
        check_range("length", self.length, 1e-6, 256)
        check_number("angle", self.angle, 0, 180)
        check_number("jitter", self.jitter, 0, 0.5)

    def _attempt(
        self, target: np.ndarray, rng: np.random.Generator, other: np.ndarray, attention: np.ndarray
    ) -> Synthetic:
        unit = min(target.shape[:2]) / 256
        extent = (
            max(1, round(unit * rng.uniform(*self.length))),
            max(1, round(unit * rng.uniform(*self.width))),
        )
        return _pasted(target, rng, extent, rng.uniform(-self.angle, self.angle), self.jitter)


@dataclass(frozen=True, kw_only=True)
class CutPaste3Way(Simulator):
    """One of both, evenly: a `patch` is kind 1, a `scar` kind 2; with normal, three classes."""

    name: ClassVar[str] = "cutpaste-3way"
    summary: ClassVar[str] = "a rectangle or a strip, as two classes"
    source: ClassVar[str] = CUTPASTE
    kinds: ClassVar[int] = 2

    patch: CutPaste = CutPaste()
    scar: CutPasteScar = CutPasteScar()

    def _attempt(
        self, target: np.ndarray, rng: np.random.Generator, other: np.ndarray, attention: np.ndarray
    ) -> Synthetic:
        kind = int(rng.integers(1, 3))
        drawn = self.patch if kind == 1 else self.scar
        return dataclasses.replace(drawn._attempt(target, rng, other, attention), kind=kind)


def _pasted(
    target: np.ndarray,
    rng: np.random.Generator,
    extent: tuple[int, int],
    angle: float,
    jitter: float,
) -> Synthetic:
    """A rectangle of `extent` (h, w) cut anywhere, jittered, rotated and pasted anywhere."""
    canvas, mask, size = blank(target)
    cut = target[window(free_place(rng, extent, size), extent, size)]
    piece = jittered(cut, rng, jitter, jitter)
    cos, sin = abs(math.cos(math.radians(angle))), abs(math.sin(math.radians(angle)))
    turned = (
        math.ceil(cos * extent[0] + sin * extent[1]),
        math.ceil(sin * extent[0] + cos * extent[1]),
    )
    lay(canvas, mask, put(piece, free_place(rng, turned, size), size, angle=angle))
    return plain(canvas, mask)

"""Guided cut-and-paste: pieces of what attention looks at, pasted where attention looks.

Bozorgtabar, Mahapatra, Thiran 2022, "Anomaly Detection and Localization Using Attention-Guided
Synthetic Anomaly and Test-Time Adaptation", pastes hard. Bozorgtabar, Mahapatra 2023,
"Attention-Conditioned Augmentations for Self-Supervised Anomaly Detection and Localization", blends
by Poisson editing on chest X-rays.

The papers do not say, and here: one to three patches, the number drawn evenly; rotation within
±45°; resizing by 0.5-2, log-uniform; brightness, contrast and saturation by up to 15 %, hue by up
to a tenth of the circle. Every patch is cut from the original picture, never from one pasted
before.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np

from blemish.anomalies.base import Simulator, Synthetic, blank, draw_places, plain
from blemish.anomalies.patch import check_number, check_range, jittered, lay, pixels_of, put, window
from blemish.anomalies.poisson import melt
from blemish.errors import ConfigError

Blend = Literal["hard", "poisson"]
GUIDED = "Bozorgtabar et al. 2022, Attention-Guided Synthetic Anomaly and Test-Time Adaptation"
CONDITIONED = "Bozorgtabar and Mahapatra 2023, Attention-Conditioned Augmentations"


@dataclass(frozen=True, kw_only=True)
class GuidedCutPaste(Simulator):
    """Cuts around places drawn from the attention and pastes around others, drawn independently
    from the same.

    The mask holds exactly the pasted pixels, after rotation; with "poisson" less those at the
    border of the picture (see `poisson.melt`).

    Attributes:
        sides: a patch's width and height are each this share (drawn evenly between the two) of the
            picture's, before it is rotated and resized; in (0, 1].
        angle: rotation drawn evenly within ± this many degrees; in [0, 180].
        resize: factor drawn log-uniformly between the two; > 0.
        jitter: strength of the colour jitter: of brightness, contrast and saturation, in [0, 1]; of
            the hue, as a share of the colour circle, in [0, 0.5].
        patches: the fewest and the most.
        blend: "hard": the pixels themselves; outside the mask nothing changes. "poisson": their
            gradients; beyond the rectangle around each patch nothing changes.
    Raises: ConfigError for a value out of range.
    """

    name: ClassVar[str] = "guided"
    summary: ClassVar[str] = "cut and paste where attention looks"
    source: ClassVar[str] = GUIDED
    needs_attention: ClassVar[bool] = True

    sides: tuple[float, float] = (0.1, 0.4)
    angle: float = 45.0
    resize: tuple[float, float] = (0.5, 2.0)
    jitter: tuple[float, float] = (0.15, 0.1)
    patches: tuple[int, int] = (1, 3)
    blend: Blend = "hard"

    def __post_init__(self) -> None:
        check_range("sides", self.sides, 1e-6, 1)
        check_number("angle", self.angle, 0, 180)
        check_range("resize", self.resize, 1e-2, 1e2)
        check_number("jitter[0]", self.jitter[0], 0, 1)
        check_number("jitter[1]", self.jitter[1], 0, 0.5)
        check_range("patches", self.patches, 1, math.inf)
        if self.blend not in ("hard", "poisson"):
            raise ConfigError(f"blend: {self.blend!r} is not one of hard, poisson")

    def _attempt(
        self, target: np.ndarray, rng: np.random.Generator, other: np.ndarray, attention: np.ndarray
    ) -> Synthetic:
        canvas, mask, size = blank(target)
        count = int(rng.integers(*self.patches, endpoint=True))
        places = draw_places(attention, size, rng, 2 * count)
        for cut_at, paste_at in zip(places[:count], places[count:], strict=True):
            high, wide = (pixels_of(rng.uniform(*self.sides), side) for side in size)
            extent = (high, wide)
            piece = jittered(target[window(cut_at, extent, size)], rng, *self.jitter)
            angle = rng.uniform(-self.angle, self.angle)
            factor = math.exp(rng.uniform(math.log(self.resize[0]), math.log(self.resize[1])))
            patch = put(piece, paste_at, size, angle=angle, factor=factor)
            if self.blend == "hard":
                lay(canvas, mask, patch)
            else:
                melt(canvas, mask, patch)
        return plain(canvas, mask)


@dataclass(frozen=True, kw_only=True)
class GuidedPoisson(GuidedCutPaste):
    """`GuidedCutPaste` blended by Poisson editing: anomalies without hard edges, as in X-rays."""

    name: ClassVar[str] = "guided-poisson"
    summary: ClassVar[str] = "cut and paste where attention looks, blended seamlessly"
    source: ClassVar[str] = CONDITIONED

    blend: Blend = "poisson"


@dataclass(frozen=True, kw_only=True)
class GuidedFine(GuidedCutPaste):
    """`GuidedCutPaste` with small pieces: most real defects are far smaller than what the papers
    paste.
    """

    name: ClassVar[str] = "guided-fine"
    summary: ClassVar[str] = "cut and paste of small pieces where attention looks"

    sides: tuple[float, float] = (0.02, 0.12)
    resize: tuple[float, float] = (0.7, 1.4)
    patches: tuple[int, int] = (1, 4)

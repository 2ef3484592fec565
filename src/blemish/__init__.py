"""blemish: pictures of good parts go in; a score, a verdict and a heatmap for every new picture
come out.

    import blemish

    detector = blemish.fit("patchcore", "bottle/train/good")
    print(detector.predict("part.png").score)

The public names are imported on first use, so that `import blemish` is instant.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from blemish.backbones import SPECS as BACKBONES
    from blemish.data.frames import frames
    from blemish.detector.calibrate import recalibrate
    from blemish.detector.evaluate import evaluate
    from blemish.detector.fit import configure, fit
    from blemish.detector.loading import load
    from blemish.detector.predict import Detector
    from blemish.detector.pretrain import pretrain
    from blemish.detector.refine import refine
    from blemish.errors import BlemishError
    from blemish.methods import METHODS
    from blemish.types import Evaluation, Failure, Frame, Prediction

__all__ = [
    "BACKBONES",
    "BlemishError",
    "Detector",
    "Evaluation",
    "Failure",
    "Frame",
    "METHODS",
    "Prediction",
    "configure",
    "evaluate",
    "fit",
    "frames",
    "load",
    "pretrain",
    "recalibrate",
    "refine",
]

_HOMES = {
    "BACKBONES": ("blemish.backbones", "SPECS"),
    "BlemishError": ("blemish.errors", "BlemishError"),
    "Detector": ("blemish.detector.predict", "Detector"),
    "Evaluation": ("blemish.types", "Evaluation"),
    "Failure": ("blemish.types", "Failure"),
    "Frame": ("blemish.types", "Frame"),
    "METHODS": ("blemish.methods", "METHODS"),
    "Prediction": ("blemish.types", "Prediction"),
    "configure": ("blemish.detector.fit", "configure"),
    "evaluate": ("blemish.detector.evaluate", "evaluate"),
    "fit": ("blemish.detector.fit", "fit"),
    "frames": ("blemish.data.frames", "frames"),
    "load": ("blemish.detector.loading", "load"),
    "pretrain": ("blemish.detector.pretrain", "pretrain"),
    "recalibrate": ("blemish.detector.calibrate", "recalibrate"),
    "refine": ("blemish.detector.refine", "refine"),
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'blemish' has no attribute {name!r}")
    module, attribute = _HOMES[name]
    try:
        return getattr(importlib.import_module(module), attribute)
    except ModuleNotFoundError as error:
        from blemish.extras import missing

        if (told := missing(error, f"use blemish.{name}")) is None:
            raise
        raise told from error


def __dir__() -> list[str]:
    return sorted(__all__)

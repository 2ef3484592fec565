"""blemish: pictures of good parts go in; a score, a verdict and a heatmap for every new picture come out.

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
    from blemish.calibration import recalibrate
    from blemish.errors import BlemishError
    from blemish.evaluation import evaluate
    from blemish.fitting import configure, fit
    from blemish.methods import METHODS
    from blemish.predictor import Detector, load
    from blemish.pretraining import pretrain
    from blemish.refining import refine
    from blemish.types import Evaluation, Failure, Prediction

__all__ = [
    "BACKBONES",
    "BlemishError",
    "Detector",
    "Evaluation",
    "Failure",
    "METHODS",
    "Prediction",
    "configure",
    "evaluate",
    "fit",
    "load",
    "pretrain",
    "recalibrate",
    "refine",
]

_HOMES = {
    "BACKBONES": ("blemish.backbones", "SPECS"),
    "BlemishError": ("blemish.errors", "BlemishError"),
    "Detector": ("blemish.predictor", "Detector"),
    "Evaluation": ("blemish.types", "Evaluation"),
    "Failure": ("blemish.types", "Failure"),
    "METHODS": ("blemish.methods", "METHODS"),
    "Prediction": ("blemish.types", "Prediction"),
    "configure": ("blemish.fitting", "configure"),
    "evaluate": ("blemish.evaluation", "evaluate"),
    "fit": ("blemish.fitting", "fit"),
    "load": ("blemish.predictor", "load"),
    "pretrain": ("blemish.pretraining", "pretrain"),
    "recalibrate": ("blemish.calibration", "recalibrate"),
    "refine": ("blemish.refining", "refine"),
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'blemish' has no attribute {name!r}")
    module, attribute = _HOMES[name]
    return getattr(importlib.import_module(module), attribute)


def __dir__() -> list[str]:
    return sorted(__all__)

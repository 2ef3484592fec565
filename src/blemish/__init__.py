"""blemish: pictures of good parts go in; a score, a verdict and a heatmap for every new picture
come out.

    import blemish

    detector = blemish.fit("patchcore", "bottle/train/good")
    print(detector.predict("part.png").score)

The public names are imported on first use, so that `import blemish` is instant.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from blemish.lazy import handing_out

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

if not TYPE_CHECKING:
    _HOMES = {
        "BACKBONES": "blemish.backbones.building:SPECS",
        "BlemishError": "blemish.errors",
        "Detector": "blemish.detector.predict",
        "Evaluation": "blemish.types",
        "Failure": "blemish.types",
        "Frame": "blemish.types",
        "METHODS": "blemish.methods.named",
        "Prediction": "blemish.types",
        "configure": "blemish.detector.fit",
        "evaluate": "blemish.detector.evaluate",
        "fit": "blemish.detector.fit",
        "frames": "blemish.data.frames",
        "load": "blemish.detector.loading",
        "pretrain": "blemish.detector.pretrain",
        "recalibrate": "blemish.detector.calibrate",
        "refine": "blemish.detector.refine",
    }
    __getattr__, __dir__ = handing_out(__name__, _HOMES)

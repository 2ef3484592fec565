"""What was found in a picture, as a PNG."""

from __future__ import annotations

from typing import Any, Literal

import cv2
import numpy as np

from blemish.detector.predict import Detector
from blemish.errors import OutputError
from blemish.report.predictions import OVERLAY_SIDE, View
from blemish.types import Prediction

THUMBNAIL = 384  # pixels of the longer side


def png(
    kind: Literal["png", "overlay"], found: Prediction, detector: Detector, source: Any
) -> bytes:
    """The map by itself ("png"), at the picture's size: 8-bit grey, 0 = as on a normal picture,
    255 = the top of the detector's scale; or the picture with the map laid over it and its regions
    outlined ("overlay"), its longer side at most 1,600 pixels.

    Raises: ImageError.
    """
    if kind == "overlay":
        view = View.of(found, detector, OVERLAY_SIDE, source).heatmap
        return encoded(np.ascontiguousarray(view[..., ::-1]))
    low, high = detector.map_scale
    level = np.clip((found.heatmap - low) / (high - low), 0.0, 1.0)
    return encoded(np.rint(level * 255).astype(np.uint8))


def encoded(pixels: np.ndarray) -> bytes:
    """A PNG of uint8 H W, or H W 3 in OpenCV's order."""
    done, content = cv2.imencode(".png", pixels)
    if not done:
        raise OutputError("the picture cannot be written as PNG")
    return content.tobytes()

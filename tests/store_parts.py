"""What the tests of the store and of what is built on it share."""

from __future__ import annotations

import cv2
import numpy as np


def digest(number: int) -> str:
    """As of a picture of that number."""
    return f"{number:032x}"


def png(pixels: np.ndarray) -> bytes:
    """A picture's or a mask's file."""
    done, coded = cv2.imencode(".png", pixels)
    assert done
    return bytes(coded)

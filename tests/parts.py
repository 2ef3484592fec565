"""The parts that tests photograph, and settings that fit a detector in milliseconds."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from fuzzing import artifacts
from torch import Tensor

from blemish.data.transforms import Preprocessing, prepare
from blemish.detector.predict import Detector
from blemish.images import Picture
from blemish.methods import METHODS

# What the fixtures of those names are.
Part = Callable[..., np.ndarray]
Write = Callable[[Path, np.ndarray], Path]
Fitted = Callable[..., Detector]
Run = Callable[..., tuple[int, str, str]]

SIDE = 64
# Nothing here may depend on what the machine has, and the defaults of a method are for real
# backbones.
SMALL: dict[str, Any] = {**artifacts.TINY, "image_size": SIDE}

# The same for `blemish fit`.
FIT = "--backbone test_vit --weights random --image-size 64 --layers 2,4 --precision fp32"

# A short training; those of methods that are not trained have no such settings.
BRIEF: dict[str, Any] = {**artifacts.BRIEF, "min_steps": 12, "train_batch_size": 8}
# A step through the head of guided, which is DINO's and 2048 wide, takes as long as many of the
# others.
BRIEFER: dict[str, dict[str, Any]] = {
    "guided": {"min_steps": 2},
    "atacnet": {"min_steps": 40, "learning_rate": 3e-4},
    # Both sizes, as by default: with one the maps of AHL mark the edges of a defect, each alone.
    "dra": {"min_steps": 40, "learning_rate": 3e-3, "levels": 2},
    "ahl": {"min_steps": 30, "learning_rate": 3e-3, "levels": 2, "clusters": 2, "watched": 8},
    "draem": {"learning_rate": 3e-3, "width": 8, "share": 1.0},
}
# Steps after which they find a defect that stands out; the others do after those above.
LEARNED: dict[str, dict[str, Any]] = {
    # A random CNN gives many places no feature at all, whose distances stand out at first.
    "rd4ad": {"min_steps": 200},
    # As many steps of fewer pictures: it finds as much, in two fifths of the time.
    "draem": {"min_steps": 150, "train_batch_size": 2},
}


def settings_of(method: str) -> dict[str, Any]:
    """Arguments of `blemish.fit` for this method, to fit it in milliseconds."""
    names = set()
    if method in METHODS:
        names = {field.name for field in dataclasses.fields(METHODS[method].Config)}
    return {
        **SMALL,
        **{name: value for name, value in BRIEF.items() if name in names},
        **BRIEFER.get(method, {}),
    }


def part(seed: int, *, defect: bool = False, height: int = SIDE, width: int = SIDE) -> np.ndarray:
    """A striped part with some noise, uint8 H W 3; with a defect: the same picture with a bright
    square in it.
    """
    return _drawn(seed, defect, height, width).copy()


@cache
def _drawn(seed: int, defect: bool, height: int, width: int) -> np.ndarray:
    random = np.random.default_rng(seed)
    rows, columns = np.mgrid[:height, :width] / SIDE
    stripes = 90 + 40 * np.sin(2 * np.pi * 3 * columns + random.uniform(0, 0.2)) + 20 * rows
    pixels = stripes[..., None] + random.normal(0, 4, (height, width, 3))
    if defect:
        top, left = height * 5 // 8, width // 8
        pixels[top : top + height // 5, left : left + width // 5] = 250
    return np.asarray(np.clip(pixels, 0, 255), dtype=np.uint8)


def write_picture(path: Path, pixels: np.ndarray) -> Path:
    """The pixels (RGB or grey) in the lossless format that the suffix names."""
    path.parent.mkdir(parents=True, exist_ok=True)
    assert cv2.imwrite(
        str(path), pixels if pixels.ndim == 2 else np.ascontiguousarray(pixels[..., ::-1])
    )
    return path


def mask_of(row: dict[str, Any]) -> np.ndarray:
    """The regions of a row of predictions as bool H W, read as COCO describes run lengths: pixel by
    pixel down the columns, first outside."""
    mask = np.zeros((row["height"], row["width"]), np.bool_)
    for region in row["regions"]:
        at, inside = 0, False
        for length in map(int, region["runs"].split()):
            for place in range(at, at + length) if inside else ():
                mask[place % row["height"], place // row["height"]] = True
            at, inside = at + length, not inside
    return mask


def rows_of(folder: Path) -> list[dict[str, Any]]:
    """The rows of predictions.jsonl in a folder."""
    return [json.loads(line) for line in (folder / "predictions.jsonl").read_text().splitlines()]


def prepared(picture: Picture, preprocessing: Preprocessing, **how: Any) -> Tensor:
    """A picture as a method takes it: 3 H W."""
    return torch.from_numpy(prepare(picture, preprocessing, **how))

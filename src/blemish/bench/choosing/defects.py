"""Generated defects, small and faint ones among them, in good pictures that were left out.

A simulator of `blemish.anomalies` works on the whole picture, or on a window of a half of its
sides, a quarter or less, where attention draws it, so that what it makes is smaller; what it made
is then laid over the picture with an opacity. Were all of them large and plain, every method would
find them.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch

from blemish.anomalies import Synthetic, simulator
from blemish.anomalies.base import SMALLEST, draw_places
from blemish.backbones import Backbone, VitBackbone
from blemish.data.ahead import load_picture
from blemish.data.transforms import Preprocessing, prepare
from blemish.files import write_whole
from blemish.images import Picture
from blemish.report.heatmap import encode_mask, encode_png
from blemish.types import Failure, Progress, Sample

KINDS = ("guided", "cutpaste", "cutpaste-scar", "nsa")
EACH = 2  # defects made of a picture, of kinds that take turns
SMALLEST_DEFECT = 0.025  # of the picture's sides, about
_PATCH = 0.1  # of a window's sides: the smallest that simulators paste, as a rule
OPACITY = (0.3, 1.0)
FAINTEST = 0.02  # of the picture's contrast: mean change of a defect's pixels
TRIES = 8
LONGEST = 1344  # pixels: larger pictures are made smaller, with a defect and without alike
_GUIDED_SIDE = 224


def seed_of(*parts: object) -> int:
    """A seed that depends on the parts alone."""
    told = "/".join(map(str, parts)).encode()
    return int.from_bytes(hashlib.sha256(told).digest()[:6], "big")


def windows(smallest: float) -> tuple[float, ...]:
    """Shares of the picture's sides in which defects are made: each half of the one before, the
    last one so that they are about as small as asked for.

    Example:
        >>> windows(0.025), windows(0.01)
        ((1.0, 0.5, 0.25), (1.0, 0.5, 0.25, 0.125))
    """
    found = [1.0]
    while _PATCH * found[-1] / 2 >= smallest:
        found.append(found[-1] / 2)
    return tuple(found)


def spoilt(
    pixels: np.ndarray,
    other: np.ndarray,
    kind: str,
    random: np.random.Generator,
    attention: np.ndarray | None = None,
    smallest: float = SMALLEST_DEFECT,
) -> tuple[np.ndarray, np.ndarray] | None:
    """A picture with a generated defect, and its mask; None where eight tries have given none that
    is large and plain enough to be one (as in a black picture).

    Args:
        pixels, other: H W 3 of the same size, uint8 or uint16: the picture, and another good one.
        kind: a name of `blemish.anomalies`.
        attention: h w, where windows lie and a guided simulator looks; None = anywhere.
        smallest: about the sides of the smallest defects, as a share of the picture's.
    Returns: H W 3 of the same type, the same as `pixels` outside the mask, and bool H W, the
        pixels that differ.
    """
    dark, bright = np.percentile(pixels, [1, 99])
    for _ in range(TRIES):
        share = random.choice(windows(smallest))
        result = _tried(pixels, other, kind, random, attention, share)
        mask = (result != pixels).any(2)
        change = np.abs(result[mask].astype(np.float32) - pixels[mask])
        if mask.mean() >= 0.8 * smallest**2 and change.mean() >= FAINTEST * (bright - dark):
            return result, mask
    return None


def _tried(
    pixels: np.ndarray,
    other: np.ndarray,
    kind: str,
    random: np.random.Generator,
    attention: np.ndarray | None,
    share: float,
) -> np.ndarray:
    """One draw of place, defect and opacity, in a window of this share of the sides."""
    height, width = pixels.shape[:2]
    full = np.float32(np.iinfo(pixels.dtype).max)
    tall, wide = (max(min(side, 2 * SMALLEST), round(share * side)) for side in (height, width))
    if attention is None:
        centre = tuple(int(random.integers(side)) for side in (height, width))
    else:  # on the part, as a rule
        (centre,) = draw_places(attention, (height, width), random, 1)
    top, left = (
        min(max(at - size // 2, 0), side - size)
        for at, size, side in zip(centre, (tall, wide), (height, width), strict=True)
    )
    place = slice(top, top + tall), slice(left, left + wide)
    guide = None
    if attention is not None:
        large = cv2.resize(attention.astype(np.float32), (width, height))
        guide = np.maximum(large[place], 0) + 1e-9
    window = pixels[place] / full
    made: Synthetic = simulator(kind)(window, random, other=other[place] / full, attention=guide)
    opacity = np.float32(random.uniform(*OPACITY))
    mixed = window + opacity * (made.image - window)
    result = pixels.copy()
    changed = np.where(made.mask[..., None], np.rint(full * mixed), pixels[place])
    result[place] = np.clip(changed, 0, full).astype(pixels.dtype)
    return result


def made_of(
    samples: Sequence[Sample],
    folder: Path,
    backbone: Backbone,
    *,
    seed: int,
    smallest: float = SMALLEST_DEFECT,
    progress: Progress,
) -> tuple[list[dict[str, Any]], list[Failure]]:
    """Good pictures as they are and with generated defects, as files in a folder.

    Args: smallest: as of `spoilt`.
    Returns: of each file: `path`, `of` (the position of the sample), and with a defect `kind` and
        `mask`; and the pictures that cannot be read.
    """
    rows: list[dict[str, Any]] = []
    failures: list[Failure] = []
    before: dict[str, np.ndarray] = {}  # of each category, the picture before
    guide = _guide(backbone)
    kinds = [kind for kind in KINDS if guide or not simulator(kind).needs_attention]
    for at, pixels in _pictures(samples, failures, progress):
        height, width = pixels.shape[:2]
        category = samples[at].category
        other = cv2.resize(before.get(category, pixels[:, ::-1]), (width, height))
        before[category] = pixels
        clean = write_whole(folder / f"{at:04d}.png", _png(pixels), picture=True)
        rows.append({"path": str(clean), "of": at})
        attention = guide(pixels) if guide else None
        for turn in range(EACH):
            kind = kinds[(EACH * at + turn) % len(kinds)]
            random = np.random.default_rng(seed_of(seed, at, kind))
            found = spoilt(pixels, other, kind, random, attention, smallest)
            if found is None:
                continue
            result, mask = found
            stem = f"{at:04d}_{kind}"
            path = write_whole(folder / f"{stem}.png", _png(result), picture=True)
            marked = write_whole(folder / f"{stem}_mask.png", encode_mask(mask), picture=True)
            rows.append({"path": str(path), "of": at, "kind": kind, "mask": str(marked)})
    return rows, failures


def _pictures(
    samples: Sequence[Sample], failures: list[Failure], progress: Progress
) -> Iterator[tuple[int, np.ndarray]]:
    """The position and the pixels of each that can be read, H W 3 and not larger than needed, uint8
    or of deeper pictures uint16; the others join `failures`."""
    for at, sample in enumerate(samples):
        progress("generating defects", at, len(samples))
        picture = load_picture(sample.path, at, None)
        if isinstance(picture, Failure):
            failures.append(picture)
            continue
        pixels = picture.pixels
        if pixels.dtype != np.uint8:
            pixels = np.rint(65535 * pixels).astype(np.uint16)
        factor = LONGEST / max(picture.size)
        if min(picture.size) < 2 * SMALLEST:
            failures.append(
                Failure(
                    source=str(sample.path),
                    reason=f"{picture.size[1]}×{picture.size[0]} pixels are too few for a defect",
                )
            )
            continue
        if factor < 1:
            pixels = cv2.resize(pixels, None, fx=factor, fy=factor, interpolation=cv2.INTER_AREA)
        yield at, np.ascontiguousarray(pixels)


def _png(pixels: np.ndarray) -> bytes:
    """A PNG file of uint8 or uint16 H W 3."""
    if pixels.dtype == np.uint8:
        return encode_png(pixels)
    encoded, content = cv2.imencode(".png", np.ascontiguousarray(pixels[..., ::-1]))
    assert encoded  # of 16 bits
    return content.tobytes()


def _guide(backbone: Backbone) -> Any:
    """What gives the [CLS] attention h w of H W 3, uint8 or uint16; None where there is none."""
    if not isinstance(backbone, VitBackbone) or backbone.model.cls_token is None:
        return None
    height, width = backbone.round_size(_GUIDED_SIDE, _GUIDED_SIDE)
    looks = Preprocessing(height=height, width=width, mean=backbone.mean, std=backbone.std)

    @torch.inference_mode()
    def look(pixels: np.ndarray) -> np.ndarray:
        if pixels.dtype != np.uint8:
            pixels = pixels / np.float32(65535)
        image = torch.from_numpy(prepare(Picture(pixels=pixels, source=""), looks))
        images = image[None].to(backbone.device)
        seen: np.ndarray = backbone.guidance(images, (backbone.depth,))[0].float().cpu().numpy()
        return seen

    return look

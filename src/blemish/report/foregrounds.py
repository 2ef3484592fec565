"""What a detector takes as the part of good pictures, on one sheet for a person to look at."""

from __future__ import annotations

import textwrap
from pathlib import Path
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont

from blemish.data.pictures import good_pictures
from blemish.data.stream import PictureStream
from blemish.methods.telling import seen_along
from blemish.report.heatmap import Picture, faded, is_signed, save_png, thumbnail

if TYPE_CHECKING:
    from blemish.detector.predict import Detector
    from blemish.methods.foreground import Foreground

_SIGNED = "blemish foreground"
PICTURES = 12  # on a sheet, evenly from all
_COLUMNS = 4
_PAPER = "#e6e6e6"  # pictures are often white at their edges
# In pixels: the longer side of a picture on the sheet, what is left free, and the letters.
_TILE, _GAP, _TEXT = 240, 8, 16
_LETTERS = 110  # of a line


def draw_foreground(detector: Detector, good: Any, path: Path) -> Path | None:
    """Writes the sheet: good pictures as the detector sees them, the background faded; also of a
    foreground that is not used, with the reason.

    Args: good: as of `blemish.fit`.
    Returns: the path; None where nothing was learned that could be shown.
    Raises: OutputError.
    """
    foreground = detector.record.foreground
    if foreground is None or not foreground.learned:
        return None
    pictures = good_pictures(good)
    positions = range(len(pictures.sources))[:: -(-len(pictures.sources) // PICTURES)]
    stream = PictureStream(pictures.sources, detector.preprocessing, PICTURES)
    tiles: list[Picture] = []
    for batch in stream.only(positions).on(detector.method.backbone.device):
        tiles += _tiles(detector, foreground, batch.images)
    return save_png(path, _sheet(tiles, foreground), signed=_SIGNED) if tiles else None


def remove_sheet(path: Path) -> str:
    """Removes the sheet of an earlier fit, of what this one does not do.

    Returns: a sentence on a file of its name that stays, as `draw_foreground` has not written it or
        it cannot be removed; "" where there is none.
    """
    if not path.exists():
        return ""
    why = "was not written by blemish"
    if is_signed(path, _SIGNED):
        try:
            path.unlink()
        except OSError as error:
            why = f"could not be removed ({error.strerror})"
        else:
            return ""
    return f"{path} shows nothing of this artifact; it {why}, and stays"


@torch.inference_mode()
def _tiles(detector: Detector, foreground: Foreground, images: torch.Tensor) -> list[Picture]:
    """Pictures B 3 H W of a batch, in their colours."""
    method, looks = detector.method, detector.preprocessing
    told = foreground.told(
        seen_along(method, method.see(images), foreground.direction).float().cpu().numpy(),
        method.area,
    )
    mean, std = (np.array(values, dtype=np.float32) for values in (looks.mean, looks.std))
    pixels = images.permute(0, 2, 3, 1).float().cpu().numpy() * std + mean
    colours = np.rint(pixels.clip(0, 1) * 255).astype(np.uint8)
    pairs = zip(colours, told, strict=True)
    return [faded(_enlarged(one), places) for one, places in pairs]


def _enlarged(picture: Picture) -> Picture:
    """With a longer side of `_TILE` pixels."""
    factor = max(1, -(-_TILE // max(picture.shape[:2])))
    larger = cv2.resize(picture, None, fx=factor, fy=factor, interpolation=cv2.INTER_NEAREST)
    return thumbnail(np.asarray(larger, dtype=np.uint8), _TILE)


def _sheet(tiles: list[Picture], foreground: Foreground) -> Picture:
    height, width = tiles[0].shape[:2]
    if foreground.abstains:
        heading = f"Not used: {foreground.abstains}. What would have been taken as the part:"
    else:
        share = f"{100 * foreground.share:.3g} % on average"
        heading = f"Taken as the part, {share}; what is faded does not count:"
    columns = min(_COLUMNS, len(tiles))
    wide = _GAP + columns * (width + _GAP)
    letters = max(20, _LETTERS * columns * (width + _GAP) // (_COLUMNS * (_TILE + _GAP)))
    lines = textwrap.wrap(heading, letters)
    top = len(lines) * (_TEXT + _GAP) + 2 * _GAP
    rows = -(-len(tiles) // columns)
    sheet = Image.new("RGB", (wide, top + rows * (height + _GAP)), _PAPER)
    pen, font = ImageDraw.Draw(sheet), ImageFont.load_default(_TEXT)
    for number, line in enumerate(lines):
        pen.text((_GAP, _GAP + number * (_TEXT + _GAP)), line, fill="black", font=font)
    for number, tile in enumerate(tiles):
        row, column = divmod(number, columns)
        place = (_GAP + column * (width + _GAP), top + row * (height + _GAP))
        sheet.paste(Image.fromarray(tile), place)
    return np.asarray(sheet)

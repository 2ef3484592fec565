"""The pictures of a set cut into tiles, to learn from, and whether that is worth while."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from statistics import median
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np

from blemish.data.ahead import failing, map_ahead, name_of
from blemish.data.marks import is_placed, marked
from blemish.data.pictures import Pictures
from blemish.data.tiles import Tile, tiled
from blemish.data.tiling import Tiling
from blemish.data.transforms import Preprocessing
from blemish.errors import ConfigError
from blemish.images import open_windows
from blemish.types import Failure, Progress, Sample

if TYPE_CHECKING:
    import torch

# Pixels of a backbone's input that a defect is to cover: a patch of most ViTs. With fewer it is
# less than half of what any feature sees.
WELL_SEEN = 14
_SIZES = 16  # pictures that are measured


def cut(
    pictures: Pictures, preprocessing: Preprocessing, progress: Progress, *, defects: bool = False
) -> Pictures:
    """The tiles of pictures, in place of them; a picture that cannot be cut is a Failure instead.

    Args:
        preprocessing: of which `tiling` says how they are cut, and `area` where they are looked at.
        defects: whether they are labelled defects: of these the tiles with a marked pixel are kept,
            as it is not known of the others what they show.
    Raises: ConfigError where it is not known of a defect where in the picture it lies.
    """
    if preprocessing.tiling is None or not pictures.sources:
        return pictures
    if defects and (unknown := [one for one in pictures.samples if not is_placed(one)]):
        raise ConfigError(
            f"tile: {len(unknown)} of the labelled defects have no mask and no box (the first is "
            f"{unknown[0].path}), so that it is not known in which of their tiles the defect is; "
            "give masks, or leave tile out"
        )
    sources: list[Any] = []
    samples: list[Sample] = []
    each = partial(_cut, preprocessing, defects)
    items = enumerate(zip(pictures.sources, pictures.samples, strict=True))
    total = len(pictures.sources)
    for done, (sample, found) in enumerate(
        zip(pictures.samples, map_ahead(each, items, ahead=2), strict=True), start=1
    ):
        progress("cutting into tiles", done, total)
        tiles = [found] if isinstance(found, Failure) else found
        sources += tiles
        samples += [sample] * len(tiles)
    return replace(pictures, sources=sources, samples=samples)


def _cut(
    preprocessing: Preprocessing, defects: bool, item: tuple[int, tuple[Any, Sample]]
) -> Sequence[Tile] | Failure:
    """The tiles of one picture, which is closed again."""
    index, (source, sample) = item
    name = name_of(source, index)
    found = failing(lambda: tiled(source, preprocessing, name=name), name)
    if isinstance(found, Failure):
        return found
    found.close()
    if not defects:
        return found.tiles
    mask = failing(lambda: marked(sample, *found.size), name)
    if isinstance(mask, Failure):
        return mask
    assert mask is not None  # of a defect that is placed
    tiles = [
        replace(tile, marks=_shares(mask[tile.window.rows, tile.window.columns], preprocessing))
        for tile in found.tiles
        if mask[tile.window.rows, tile.window.columns].any()
    ]
    if not tiles:
        return Failure(source=name, reason="nothing of the defect is marked where it is looked at")
    return tiles


def _shares(mask: np.ndarray, preprocessing: Preprocessing) -> torch.Tensor:
    """As of `Batch.masks`: h w."""
    import torch  # of labelled defects alone, which are learned from
    from torch.nn import functional as F

    size = preprocessing.height // 4, preprocessing.width // 4
    return F.adaptive_avg_pool2d(torch.from_numpy(mask.astype(np.float32))[None], size)[0]


def chosen(
    pictures: Pictures, defects: Pictures, preprocessing: Preprocessing, overlap: float
) -> tuple[Tiling | None, str]:
    """Whether and how to cut pictures like these, and why.

    From some of the pictures, evenly, and the marks of labelled defects where there are any: tiles
    are as large as lets the smallest defect cover `WELL_SEEN` pixels of the backbone's input, by
    the lower decile of the longer sides of the defects' marks; where none is known tiles have the
    pictures' own resolution, and there are none where the backbone sees the pictures at two thirds
    of it or better.

    Args: preprocessing: the size of the backbone's input, and how pictures are decoded.
    """
    every = max(1, -(-len(pictures.sources) // _SIZES))
    found = [_size(source, preprocessing) for source in pictures.sources[::every]]
    sizes = [one for one in found if not isinstance(one, Failure)]
    side = preprocessing.height
    if not sizes:
        return None, "none of the pictures that were looked at can be read"
    shorter, longer = (round(median(by(one) for one in sizes)) for by in (min, max))
    extents = _extents(defects, preprocessing)
    if extents:
        extent = float(np.quantile(extents, 0.1))
        seen, wanted = extent * side / longer, max(side, round(extent * side / WELL_SEEN))
        what = f"defects of {extent:.0f} pixels cover {seen:.0f} of the backbone's input"
        if seen >= WELL_SEEN:
            return None, f"{what} as it is"
    else:
        wanted = side
        what = f"the pictures are {longer} pixels long, the backbone's input {side}"
        if 3 * side >= 2 * longer:
            return None, what
    if wanted > shorter:
        return None, f"{what}, but the pictures are only {shorter} pixels across"
    return Tiling(side=wanted, overlap=overlap), what


def _extents(defects: Pictures, preprocessing: Preprocessing) -> list[int]:
    """The longer sides, in pixels, of all that is marked in some of the defects."""
    found: list[int] = []
    every = max(1, -(-len(defects.sources) // _SIZES))
    for at in range(0, len(defects.sources), every):
        sample, source = defects.samples[at], defects.sources[at]
        if not is_placed(sample):
            continue
        mask = failing(partial(_mask, sample, source, preprocessing), "")
        if not isinstance(mask, Failure):
            _, _, facts, _ = cv2.connectedComponentsWithStats(mask.view(np.uint8), connectivity=8)
            found += facts[1:, [cv2.CC_STAT_WIDTH, cv2.CC_STAT_HEIGHT]].max(1).tolist()
    return found


def _mask(sample: Sample, source: Any, preprocessing: Preprocessing) -> np.ndarray:
    size = _size(source, preprocessing)
    mask = None if isinstance(size, Failure) else marked(sample, *size)
    return np.zeros((1, 1), dtype=bool) if mask is None else mask


def _size(source: Any, preprocessing: Preprocessing) -> tuple[int, int] | Failure:
    """(H, W) of a picture."""
    window = preprocessing.decode_window()
    return failing(lambda: open_windows(source, window=window).size, "")

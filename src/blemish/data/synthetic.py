"""A generated data set in the layout of MVTec AD, for trials, tests and teaching: nobody's licence.

The part and its defects are drawn by `data/flange.py`.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from blemish.data.flange import DEFECTS, picture
from blemish.errors import ConfigError, OutputError
from blemish.files import cannot_write, taken_back, uri_of, write_whole
from blemish.types import Progress, silent

SMALLEST, LARGEST = 64, 2048  # sides in pixels
MOST = 100_000  # pictures of one part of the set
_TRAIN, _GOOD, _BAD = 0, 1, 2  # parts of the set; each kind of defect has one of its own


@dataclass(frozen=True, kw_only=True)
class Synthetic:
    """What was written.

    Attributes:
        folder: of the data set. seed, size: as given.
        train, good: pictures of good parts to learn from and to test on.
        defects: pictures to test on, by the kind of their defect.
    """

    folder: Path
    seed: int
    size: int
    train: int
    good: int
    defects: dict[str, int]

    def to_dict(self) -> dict[str, Any]:
        """A JSON-ready document."""
        return {**asdict(self), "folder": str(self.folder)}


def write_synthetic(
    folder: str | Path,
    *,
    count: int = 60,
    defects: int = 8,
    seed: int = 0,
    size: int = 256,
    progress: Progress = silent,
) -> Synthetic:
    """Draw a data set of flanges with defects into a folder, as PNG.

    Writes `train/good`, `test/good`, `test/<kind>` for each of `DEFECTS`, and the masks of defects
    as `ground_truth/<kind>/000_mask.png`: 255 exactly where a picture differs from the same part
    without its defect. The same arguments give the same pixels on every machine; a larger set holds
    the pictures of a smaller one.

    Args:
        folder: is made; it must be empty where it exists, and is so again where the drawing was
            interrupted or failed.
        count: good pictures to learn from, 1 to 100000; half as many more are there to test on.
        defects: pictures of each kind of defect, 1 to 100000.
        seed: at least 0. size: of the square pictures, pixels, 64 to 2048.
    Raises: ConfigError; OutputError where something is in the folder, or it cannot be written.
    """
    folder = Path(folder)
    for name, value, least in (("count", count, 1), ("defects", defects, 1), ("seed", seed, 0)):
        if value < least:
            raise ConfigError(f"{name}: at least {least} is needed, got {value}")
    for name, value in (("count", count), ("defects", defects)):
        if value > MOST:
            raise ConfigError(f"{name}: {MOST} at most, got {value}")
    if not SMALLEST <= size <= LARGEST:
        raise ConfigError(f"size: {SMALLEST} to {LARGEST} pixels, got {size}")
    _make_empty(folder)
    wanted = list(_pictures(count, (count + 1) // 2, defects))
    try:
        for done, (part, number, file, kind) in enumerate(wanted):
            progress("drawing", done, len(wanted))
            made = picture(seed, part, number, size, kind)
            if kind:
                mask = folder / "ground_truth" / kind / f"{file.stem}_mask.png"
                write_whole(mask, _png(made.mask.astype(np.uint8) * 255), picture=True)
            write_whole(folder / file, _png(made.pixels), picture=True)
    except BaseException as error:  # half a data set looks like a whole one
        for name in ("train", "test", "ground_truth"):
            shutil.rmtree(folder / name, ignore_errors=True)
        if isinstance(error, OutputError):
            raise taken_back(error, done, len(wanted)) from error
        raise
    progress("drawing", len(wanted), len(wanted))
    return Synthetic(
        folder=folder,
        seed=seed,
        size=size,
        train=count,
        good=(count + 1) // 2,
        defects=dict.fromkeys(DEFECTS, defects),
    )


def _make_empty(folder: Path) -> None:
    """Make the folder, unless it is there and empty. Raises: OutputError."""
    if uri := uri_of(folder):
        raise OutputError(f"{uri}: is on another file system; name a folder of this one")
    try:
        if folder.is_symlink() and not folder.exists():
            raise OutputError(f"{folder}: is a link to nothing; remove it, or name a new folder")
        if folder.exists() and not (folder.is_dir() and not any(folder.iterdir())):
            raise OutputError(f"{folder}: is there already; name a new folder, or an empty one")
        folder.mkdir(parents=True, exist_ok=True)
    except (OSError, ValueError) as error:  # ValueError: a null byte in the name
        raise cannot_write(folder, error) from error


def _pictures(train: int, good: int, defects: int) -> Iterator[tuple[int, int, Path, str]]:
    """Of each picture the part of the set, its number there, its file, and its defect."""
    rows = [(_TRAIN, train, "train", ""), (_GOOD, good, "test", "")]
    rows += [(_BAD + at, defects, "test", kind) for at, kind in enumerate(DEFECTS)]
    for part, count, split, kind in rows:
        for number in range(count):
            yield part, number, Path(split, kind or "good", f"{number:03d}.png"), kind


def _png(pixels: npt.NDArray[np.uint8]) -> bytes:
    held = BytesIO()
    Image.fromarray(pixels).save(held, format="PNG")
    return held.getvalue()

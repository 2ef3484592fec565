"""What blemish has written itself: pictures that are results of an earlier run, none of parts."""

from __future__ import annotations

import os
import re
from collections.abc import Collection
from pathlib import Path

from blemish.config import parse_json
from blemish.errors import DataError
from blemish.files import TABLE_BYTES, read_whole

# Folders of a result, by the files beside them of which one is enough to know them.
_FOLDERS = {
    **dict.fromkeys(("overlays", "masks", "maps"), ("predictions.jsonl", "run.json")),
    "worst": ("evaluation.json",),
    "generated": ("plan.json",),  # good pictures with generated defects, of `blemish compare`
}
_KEYS = ({"artifact", "precision"}, {"counts", "rows"}, {"fingerprint", "division", "generated"})
_FIGURES = (("histogram", "embedding", "gallery"), ("histograms", "embeddings", "comparison"))
_SHEET = "contact-sheet.png"
_FILE = re.compile(r".+-[0-9a-f]{12}(\.saliency)?\.(png|npy|tiff)")


def is_result_folder(folder: Path, name: str, beside: Collection[str]) -> bool:
    """Whether an earlier run wrote all in `folder`/`name`, which has these names beside it."""
    if name not in _FOLDERS:
        simulated = folder / name  # synthetic anomalies of `blemish simulate`
        return os.path.lexists(simulated / _SHEET) and any(simulated.glob("1_*_mask.png"))
    signed = any(_is_ours(folder / sign) for sign in _FOLDERS[name] if sign in beside)
    if name in ("masks", "maps"):  # which a data set may have, too
        return signed and _are_called_so(folder / name)
    return signed or (name == "overlays" and _are_called_so(folder / name))


def is_result(name: str, beside: Collection[str]) -> bool:
    """Whether the picture of this name, with these names beside it, was written by an earlier run.

    Example:
        >>> is_result("part.health.png", ["part.log.jsonl"]), is_result("gallery.png", ["001.png"])
        (True, False)
        >>> is_result("part.foreground.png", ["part.blemish"])
        True
    """
    if not name.endswith(".png"):
        return False
    stem = name.removesuffix(".png")
    if stem.startswith("contact-sheet"):
        return _SHEET in beside and any(other.endswith("_mask.png") for other in beside)
    if stem.endswith(".health"):
        return f"{stem.removesuffix('.health')}.log.jsonl" in beside
    if stem.endswith(".foreground"):
        return f"{stem.removesuffix('.foreground')}.blemish" in beside
    return any(
        stem.partition("-")[0] in figures
        and all(f"{figure}.png" in beside for figure in figures[:2])
        for figures in _FIGURES
    )


def _are_called_so(folder: Path) -> bool:
    """Whether all files are called as those of pictures are; those beside them may have been moved
    away."""
    try:
        names = [entry.name for entry in os.scandir(folder) if not entry.name.startswith(".")]
    except OSError:
        return False
    return bool(names) and all(_FILE.fullmatch(name) for name in names)


def _is_ours(sign: Path) -> bool:
    """Whether a file is blemish's; predictions.jsonl, of any length, is by its name alone."""
    if sign.suffix == ".jsonl":
        return True
    try:
        told = parse_json(read_whole(sign, limit=TABLE_BYTES, error=DataError))
    except (DataError, ValueError):
        return False
    return isinstance(told, dict) and any(keys <= told.keys() for keys in _KEYS)

"""Folders of files for the tests of what reads them."""

from __future__ import annotations

from pathlib import Path

GOOD_AND_BAD = (
    "train/good/0.png",
    "train/good/1.png",
    "test/good/0.png",
    "test/scratch/0.png",
    "test/scratch/1.png",
)


def lay_out(root: Path, *names: str) -> Path:
    """Empty files below the root, which is given back: reading a layout decodes nothing."""
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    return root

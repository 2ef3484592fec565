"""The layout of MVTec 3D-AD, of which the colour pictures are read and the point clouds (xyz/) are not.

Bergmann et al. 2021, "The MVTec 3D-AD Dataset for Unsupervised 3D Anomaly Detection and Localization". The good
pictures of validation/ are in no split.
"""

from __future__ import annotations

from pathlib import Path

from blemish.data.contents import Contents
from blemish.data.folder import is_file, is_folder, scan
from blemish.errors import DataError
from blemish.types import ANOMALOUS, GOOD, NORMAL, Sample

_SIGNS = ("train/good/rgb", "test/good/rgb")


def is_mvtec3d(folder: Path) -> bool:
    """Whether the folder is a category of MVTec 3D-AD or has such in it."""
    return bool(_categories(folder))


def read_mvtec3d(folder: Path) -> Contents:
    """The samples of a category, or of the categories in a folder; the pictures are listed, not decoded.

    Raises: DataError for a folder of pictures or masks that is missing.
    """
    samples = [
        sample
        for name, place in _categories(folder).items()
        for sample in _read_category(place, name)
    ]
    unused = sum(not sample.split for sample in samples)
    return Contents(
        samples=tuple(sorted(samples, key=lambda sample: sample.path)),
        notes=(f"the {unused} of validation/ in no split",) if unused else (),
    )


def _categories(folder: Path) -> dict[str, Path]:
    """Name -> folder: of the category that it is, or of those that it holds."""
    if any(is_folder(folder / sign) for sign in _SIGNS):
        return {folder.resolve().name: folder}
    places = {found.parents[2] for sign in _SIGNS for found in folder.glob(f"*/{sign}")}
    return {place.name: place for place in sorted(places)}


def _read_category(place: Path, category: str) -> list[Sample]:
    samples: list[Sample] = []
    for side in ("train", "validation", "test"):
        for kind in filter(is_folder, sorted((place / side).glob("*"))):
            good = kind.name == GOOD
            if not good and side != "test":
                continue
            for name in ("rgb",) if good else ("rgb", "gt"):
                if not is_folder(kind / name):
                    what = f"read as MVTec 3D-AD, but there is no {name}/ in it"
                    raise DataError(f"{kind}: {what}; copy it here from that set")
            for picture in scan(kind / "rgb").pictures:
                mask = kind / "gt" / picture.name
                samples.append(
                    Sample(
                        path=picture,
                        label=NORMAL if good else ANOMALOUS,
                        mask=mask if not good and is_file(mask) else None,
                        split="" if side == "validation" else side,
                        category=category,
                        defect=kind.name,
                    )
                )
    return samples

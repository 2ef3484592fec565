"""Magnetic tile defects: pictures in .jpg, each with its mask of the same name in .png."""

from __future__ import annotations

from pathlib import Path

from blemish.data.dataset import Found
from blemish.data.folder import is_folder, scan
from blemish.data.layouts.base import Official, counted, divided, sample_of
from blemish.errors import DataError
from blemish.types import Sample

_TEST_FRACTION = 0.2


def is_magnetic_tile(folder: Path) -> bool:
    """Whether there are folders MT_Free, MT_Break, … with an Imgs/ in them."""
    return is_folder(folder / "MT_Free") or any(folder.glob("MT_*/Imgs"))


def read_magnetic_tile(folder: Path) -> Found:
    """The tiles. Raises: DataError for a folder without pictures or, of defects, without masks."""
    samples: list[Sample] = []
    free = folder / "MT_Free"
    for place in dict.fromkeys([free, *filter(is_folder, sorted(folder.glob("MT_*")))]):
        defect = "" if place == free else place.name.removeprefix("MT_").lower()
        files = scan(place / "Imgs").pictures if is_folder(place / "Imgs") else ()
        held = [path for path in files if path.suffix.lower() in (".jpg", ".jpeg")]
        masks = {path.stem: path for path in files if defect and path.suffix.lower() == ".png"}
        if not held or (defect and not masks):
            what = "masks (.png)" if held else "pictures (.jpg)"
            raise DataError(
                f"{folder}: read as magnetic tiles, but {place.name}/Imgs/ has no {what}; "
                "copy them there"
            )
        samples += [sample_of(path, defect, masks.get(path.stem)) for path in held]
    return divided(samples, share=_TEST_FRACTION)


MAGNETIC_TILE = Official(
    name="magnetic_tile",
    title="Magnetic tile defects",
    reference="Huang, Qiu, Yuan 2020",
    source="https://github.com/abin24/Magnetic-tile-defect-datasets.",
    licence="none stated",
    tree="""\
FOLDER/MT_Free/Imgs/*.jpg
FOLDER/MT_<Defect>/Imgs/*.jpg (the mask beside it, as .png)
or the folders of MVTec AD: FOLDER/train/good and so on""",
    folders=(
        "magnetic_tile",
        "magnetic_tile_defect_datasets",
        "magnetic_tile_defect_datasets_master",
    ),
    categories=counted("magnetic_tile 762 190 392"),
    split=(
        "No official one: a fifth of the good pictures, drawn by seed 0, and all defects are for "
        "the test."
    ),
    masks=True,
    fits=is_magnetic_tile,
    read=read_magnetic_tile,
)

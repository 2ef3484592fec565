"""Brain-MRI: slices with a tumour in yes/, without in no/."""

from __future__ import annotations

from pathlib import Path

from blemish.data.dataset import Found
from blemish.data.folder import is_file, is_folder, scan
from blemish.data.layouts.base import (
    QUARTER,
    Official,
    counted,
    divided,
    is_called,
    need,
    sample_of,
)

TITLE = "Brain-MRI"
FOLDERS = ("brain_mri", "brain_tumor_dataset", "brain_mri_images_for_brain_tumor_detection")


def is_brain_mri(folder: Path) -> bool:
    """Whether there is a yes/ or a no/ in a folder of its name, or a yes/ with its first picture.

    Other people's yes/ may hold the good ones.
    """
    return _place(folder) is not None


def read_brain_mri(folder: Path) -> Found:
    """The slices of Brain-MRI. Raises: DataError where yes/ or no/ is missing."""
    place = _place(folder) or folder
    good, bad = (need(place, name, f"{TITLE} (yes/ and no/)") for name in ("no/", "yes/"))
    samples = [sample_of(picture, "") for picture in scan(good).pictures]
    return divided([*samples, *(sample_of(picture, "tumour") for picture in scan(bad).pictures)])


def _place(folder: Path) -> Path | None:
    """Where yes/ and no/ lie, of which the archive has a second copy below."""
    for place in (folder, folder / "brain_tumor_dataset"):
        there = any(is_folder(place / name) for name in ("yes", "no"))
        if there and (is_called(place, FOLDERS) or is_file(place / "yes/Y1.jpg")):
            return place
    return None


BRAIN_MRI = Official(
    name="brain_mri",
    title=TITLE,
    reference="Chakrabarty 2019",
    source="https://www.kaggle.com/datasets/navoneel/brain-mri-images-for-brain-tumor-detection",
    licence="as stated at the source",
    tree="""\
FOLDER/no/*.jpg (or FOLDER/brain_tumor_dataset/no/*.jpg)
FOLDER/yes/*.jpg (beside no/; FOLDER is called as below, or has yes/Y1.jpg)
or the folders of MVTec AD: FOLDER/train/good and so on""",
    folders=FOLDERS,
    categories=counted("brain_mri 73 25 155"),
    split=QUARTER,
    fits=is_brain_mri,
    read=read_brain_mri,
)

"""MVTec 3D-AD, of which the colour pictures are read and the point clouds (xyz/) are not.

Bergmann et al. 2021, "The MVTec 3D-AD Dataset for Unsupervised 3D Anomaly Detection and
Localization". The good pictures of validation/ are in no split.
"""

from __future__ import annotations

from pathlib import Path

from blemish.data.dataset import Found
from blemish.data.folder import is_file, is_folder, scan
from blemish.data.layouts.base import Official, category_folders, counted, need
from blemish.types import ANOMALOUS, GOOD, NORMAL, Sample

TITLE = "MVTec 3D-AD"
_SIGNS = ("train/good/rgb", "test/good/rgb")


def is_mvtec3d(folder: Path) -> bool:
    """Whether the folder is a category of MVTec 3D-AD or has such in it."""
    return bool(category_folders(folder, _SIGNS))


def read_mvtec3d(folder: Path) -> Found:
    """The samples of a category, or of the categories in a folder.

    Raises: DataError for a folder of pictures or masks that is missing.
    """
    samples = [
        sample
        for name, place in category_folders(folder, _SIGNS).items()
        for sample in _read_category(place, name)
    ]
    unused = sum(not sample.split for sample in samples)
    notes = [f"the {unused} of validation/ in no split"] if unused else []
    return Found(samples=sorted(samples, key=lambda sample: sample.path), notes=notes)


def _read_category(place: Path, category: str) -> list[Sample]:
    samples: list[Sample] = []
    for side in ("train", "validation", "test"):
        for kind in filter(is_folder, sorted((place / side).glob("*"))):
            good = kind.name == GOOD
            if not good and side != "test":
                continue
            for name in ("rgb",) if good else ("rgb", "gt"):
                need(kind, f"{name}/", TITLE)
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


MVTEC3D = Official(
    name="mvtec3d",
    title=f"{TITLE} (RGB only)",
    reference="Bergmann, Jin, Sattlegger, Steger 2021",
    source="https://www.mvtec.com/research-teaching/datasets/mvtec-3d-ad",
    licence="CC BY-NC-SA 4.0",
    tree="""\
FOLDER/<category>/train/good/rgb/*.png
FOLDER/<category>/validation/good/rgb/*.png (not used)
FOLDER/<category>/test/good/rgb/*.png
FOLDER/<category>/test/<defect>/rgb/*.png
FOLDER/<category>/test/<defect>/gt/*.png
or its categories in the folders of MVTec AD""",
    folders=("mvtec3d", "mvtec_3d_ad", "mvtec_3d_anomaly_detection"),
    categories=counted("""
        bagel       244  22  88
        cable_gland 223  21  87
        carrot      286  27 132
        cookie      210  28 103
        dowel       288  26 104
        foam        236  20  80
        peach       361  26 106
        potato      300  22  92
        rope        298  32  69
        tire        210  25  87
    """),
    split="The authors', by folders; validation/ is in no split.",
    masks=True,
    fits=is_mvtec3d,
    read=read_mvtec3d,
)

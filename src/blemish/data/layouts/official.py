"""The public data sets of the papers' tables: where to get each, what it holds, and what of it is on this disk.

`layouts.read` reads them. Counts are of normal pictures to train on, and of normal and anomalous ones to test on. Those
of NIH follow from its lists: of 60,361 pictures of "No Finding" 50,500 are in train_val_list.txt and 9,861 in
test_list.txt, and 880 of the test have boxes. A set without an official split is counted as `unsplit` divides it.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from blemish.data.contents import Contents
from blemish.data.folder import is_folder
from blemish.data.layouts import unsplit
from blemish.data.layouts.mvtec3d import is_mvtec3d, read_mvtec3d
from blemish.data.layouts.nih import is_nih, read_nih
from blemish.data.layouts.visa import is_visa, read_visa
from blemish.types import NORMAL, Sample

if TYPE_CHECKING:
    from blemish.data.layouts.recognition import Dataset


@dataclass(frozen=True, kw_only=True)
class Counts:
    """How many pictures a category has: normal ones to train on, normal and anomalous ones to test on."""

    train: int
    test_normal: int
    test_anomalous: int


@dataclass(frozen=True, kw_only=True)
class Official:
    """A public data set as its authors hand it out.

    Attributes:
        name: its key in `OFFICIAL`; the layout's name too, where it has one of its own.
        title: as people call it.
        reference: authors and year.
        source: where to get it.
        licence: in short; what the source says stands.
        tree: the folders and files expected, one line each.
        folders: names under which `find` looks for it; case and the signs between letters make no difference.
        categories: category -> its pictures, in the official order; of a set of one category, its own name.
        split: one sentence: who made the split.
        masks: whether it has a mask for every defective picture.
    """

    name: str
    title: str
    reference: str
    source: str
    licence: str
    tree: str
    folders: tuple[str, ...]
    categories: Mapping[str, Counts]
    split: str
    masks: bool = False

    @property
    def total(self) -> Counts:
        """The pictures of all categories."""
        each = self.categories.values()
        return Counts(
            train=sum(counts.train for counts in each),
            test_normal=sum(counts.test_normal for counts in each),
            test_anomalous=sum(counts.test_anomalous for counts in each),
        )


@dataclass(frozen=True, kw_only=True)
class Reader:
    """How a data set with a layout of its own is told by what lies in its folder, and read."""

    fits: Callable[[Path], bool]
    read: Callable[[Path], Contents]


READERS: Mapping[str, Reader] = {
    "nih": Reader(fits=is_nih, read=read_nih),
    "visa": Reader(fits=is_visa, read=read_visa),
    "mvtec3d": Reader(fits=is_mvtec3d, read=read_mvtec3d),
    "head_ct": Reader(fits=unsplit.is_head_ct, read=unsplit.read_head_ct),
    "elpv": Reader(fits=unsplit.is_elpv, read=unsplit.read_elpv),
    "kolektor_sdd": Reader(fits=unsplit.is_kolektor_sdd, read=unsplit.read_kolektor_sdd),
    "magnetic_tile": Reader(fits=unsplit.is_magnetic_tile, read=unsplit.read_magnetic_tile),
    "brain_mri": Reader(fits=unsplit.is_brain_mri, read=unsplit.read_brain_mri),
}


def _categories(text: str) -> dict[str, Counts]:
    """From lines of a name and three numbers."""
    rows = (line.split() for line in text.strip().splitlines())
    return {
        name: Counts(train=int(train), test_normal=int(normal), test_anomalous=int(anomalous))
        for name, train, normal, anomalous in rows
    }


_MVTEC = """
    bottle      209  20   63
    cable       224  58   92
    capsule     219  23  109
    carpet      280  28   89
    grid        264  21   57
    hazelnut    391  40   70
    leather     245  32   92
    metal_nut   220  22   93
    pill        267  26  141
    screw       320  41  119
    tile        230  33   84
    toothbrush   60  12   30
    transistor  213  60   40
    wood        247  19   60
    zipper      240  32  119
"""
_VISA = """
    candle      900 100 100
    capsules    542  60 100
    cashew      450  50 100
    chewinggum  453  50 100
    fryum       450  50 100
    macaroni1   900 100 100
    macaroni2   900 100 100
    pcb1        904 100 100
    pcb2        901 100 100
    pcb3        905 101 100
    pcb4        904 101 100
    pipe_fryum  450  50 100
"""
_MVTEC3D = """
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
"""
_QUARTER = "No official one: a quarter of the good pictures, drawn by seed 0, and all defects are for the test."
_SETS = (
    Official(
        name="mvtec",
        title="MVTec AD",
        reference="Bergmann, Fauser, Sattlegger, Steger 2019",
        source="https://www.mvtec.com/research-teaching/datasets/mvtec-ad",
        licence="CC BY-NC-SA 4.0",
        tree="""\
FOLDER/<category>/train/good/*.png
FOLDER/<category>/test/good/*.png
FOLDER/<category>/test/<defect>/*.png
FOLDER/<category>/ground_truth/<defect>/*_mask.png""",
        folders=("mvtec", "mvtec_ad", "mvtec_anomaly_detection"),
        categories=_categories(_MVTEC),
        split="The authors', by folders.",
        masks=True,
    ),
    Official(
        name="visa",
        title="VisA",
        reference="Zou, Jeong, Pemula, Zhang, Dabeer 2022",
        source="https://github.com/amazon-science/spot-diff",
        licence="CC BY 4.0",
        tree="""\
FOLDER/split_csv/1cls.csv
FOLDER/<category>/Data/Images/Normal/*.JPG
FOLDER/<category>/Data/Images/Anomaly/*.JPG
FOLDER/<category>/Data/Masks/Anomaly/*.png
or its categories in the folders of MVTec AD""",
        folders=("visa", "visa_20220922"),
        categories=_categories(_VISA),
        split="The authors', for one class, in split_csv/1cls.csv.",
        masks=True,
    ),
    Official(
        name="mvtec3d",
        title="MVTec 3D-AD (RGB only)",
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
        categories=_categories(_MVTEC3D),
        split="The authors', by folders; validation/ is in no split.",
        masks=True,
    ),
    Official(
        name="nih",
        title="NIH ChestX-ray14",
        reference="Wang, Peng, Lu, Lu, Bagheri, Summers 2017",
        source="https://nihcc.app.box.com/v/ChestXray-NIHCC",
        licence="free use; name the NIH Clinical Center, link to the source, cite the paper",
        tree="""\
FOLDER/images/*.png (or FOLDER/images_001/images/*.png and so on)
FOLDER/Data_Entry_2017_v2020.csv (or Data_Entry_2017.csv)
FOLDER/BBox_List_2017.csv
FOLDER/train_val_list.txt
FOLDER/test_list.txt""",
        folders=("nih", "nih_chest_xray", "nih_chest_xrays", "chestxray14", "chestxray_nihcc"),
        categories=_categories("nih 50500 9861 880"),
        split='The authors\', by lists: "No Finding" of the one trains, that of the other and all boxes are the test.',
    ),
    Official(
        name="head_ct",
        title="Head-CT",
        reference="Kitamura 2018",
        source="https://www.kaggle.com/datasets/felipekitamura/head-ct-hemorrhage",
        licence="as stated at the source",
        tree="""\
FOLDER/labels.csv (columns id, hemorrhage)
FOLDER/head_ct/head_ct/*.png (or FOLDER/head_ct/*.png, or FOLDER/*.png)
or the folders of MVTec AD: FOLDER/train/good and so on""",
        folders=("head_ct", "head_ct_hemorrhage"),
        categories=_categories("head_ct 75 25 100"),
        split=_QUARTER,
    ),
    Official(
        name="brain_mri",
        title="Brain-MRI",
        reference="Chakrabarty 2019",
        source="https://www.kaggle.com/datasets/navoneel/brain-mri-images-for-brain-tumor-detection",
        licence="as stated at the source",
        tree="""\
FOLDER/no/*.jpg (or FOLDER/brain_tumor_dataset/no/*.jpg)
FOLDER/yes/*.jpg (beside no/; FOLDER is called as below, or has yes/Y1.jpg)
or the folders of MVTec AD: FOLDER/train/good and so on""",
        folders=("brain_mri", "brain_tumor_dataset", "brain_mri_images_for_brain_tumor_detection"),
        categories=_categories("brain_mri 73 25 155"),
        split=_QUARTER,
    ),
    Official(
        name="elpv",
        title="ELPV",
        reference="Buerhop-Lux et al. 2018; Deitsch et al. 2019",
        source="https://github.com/zae-bayern/elpv-dataset, or the package elpv-dataset: pip install 'blemish[demo]'",
        licence="CC BY-NC-SA 4.0",
        tree="""\
FOLDER/labels.csv (path, probability, type; or in src/elpv_dataset/data/)
FOLDER/images/*.png (beside labels.csv)""",
        folders=("elpv", "elpv_dataset", "elpv_dataset_master"),
        categories=_categories("elpv 1131 377 715"),
        split=f"{_QUARTER} Good are cells of probability 0, defective those of 1; the others are left out.",
    ),
    Official(
        name="kolektor_sdd",
        title="KolektorSDD",
        reference="Tabernik, Šela, Skvarč, Skočaj 2019",
        source="https://www.vicos.si/resources/kolektorsdd/",
        licence="CC BY-NC-SA 4.0",
        tree="""\
FOLDER/kos01/Part0.jpg
FOLDER/kos01/Part0_label.bmp (and so on, to kos50)""",
        folders=("kolektor_sdd", "kolektor"),
        categories=_categories("kolektor_sdd 260 87 52"),
        split=f"{_QUARTER} Defective is what its mask marks.",
        masks=True,
    ),
    Official(
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
        categories=_categories("magnetic_tile 762 190 392"),
        split="No official one: a fifth of the good pictures, drawn by seed 0, and all defects are for the test.",
        masks=True,
    ),
)
OFFICIAL: Mapping[str, Official] = {official.name: official for official in _SETS}


def reader_of(folder: Path) -> str | None:
    """The key of `READERS` that a folder is read by: the first that fits; None where none does."""
    return next((name for name, reader in READERS.items() if reader.fits(folder)), None)


def find(official: Official, root: Path) -> Path | None:
    """The folder of the data set: `root` itself, or a folder in it of one of its names; None where neither is there.

    What holds the set goes before what only has a name of it, whose reading says what is missing.
    """
    names = {_plain(name) for name in official.folders}
    below = [
        path for path in sorted(root.glob("*")) if _plain(path.name) in names and is_folder(path)
    ]
    named = [*([root] if _plain(root.resolve().name) in names and is_folder(root) else []), *below]
    return next(
        (path for path in (root, *below) if _holds(official, path)), next(iter(named), None)
    )


def category_paths(official: Official, folder: Path) -> dict[str, Path]:
    """The categories that are in the folder of a set, in the official order -> paths that `layouts.read` reads alone.

    A set of one category is its folder, whatever is in it.
    """
    if len(official.categories) == 1:
        return dict.fromkeys(official.categories, folder)
    paths = {category: folder / category for category in official.categories}
    return {
        category: path
        for category, path in paths.items()
        if any(is_folder(path / inner) for inner in ("train", "test", "Data"))
    }


def differences(dataset: Dataset) -> tuple[str, ...]:
    """How a data set differs from the official counts, one sentence each; () where it does not, or is no public set.

    A folder in the layout of MVTec AD is taken for a public set when all its categories have names of that set.

    Example:
        >>> from blemish.data.layouts.recognition import Dataset
        >>> some = Sample(path=Path("0.png"), label=0, split="train", category="bottle")
        >>> differences(Dataset(root=Path("bottle"), layout="mvtec", description="", samples=(some,)))[0]
        'bottle: 1 of 209 training pictures'
    """
    official = _official(dataset)
    if official is None:
        return ()
    if len(official.categories) == 1:
        (counts,) = official.categories.values()
        return tuple(_compared(official.title, dataset.samples, counts, masks=official.masks))
    here = [category for category in official.categories if category in dataset.categories]
    if not here:  # somebody's own pictures, in the folders of that set
        return ()
    found: list[str] = []
    if len(here) < len(official.categories) and here != [dataset.root.resolve().name]:
        found.append(f"{official.title}: {len(here)} of {len(official.categories)} categories")
    for category in here:
        samples = [sample for sample in dataset.samples if sample.category == category]
        found += _compared(category, samples, official.categories[category], masks=official.masks)
    return tuple(found)


def _holds(official: Official, folder: Path) -> bool:
    """Whether the set, or a part of it, lies in this very folder; of one category, so that it is read as that set."""
    if len(official.categories) > 1:
        return bool(category_paths(official, folder))
    return reader_of(folder) == official.name


def _official(dataset: Dataset) -> Official | None:
    if dataset.layout in READERS:
        return OFFICIAL[dataset.layout]
    if dataset.layout not in ("mvtec", "mvtec-root"):
        return None
    here = set(dataset.categories)
    names = {_plain(category) for category in here}
    for official in OFFICIAL.values():
        single = len(official.categories) == 1
        if (
            names <= {_plain(name) for name in official.folders}
            if single
            else here <= official.categories.keys()
        ):
            return official
    return None


def _compared(name: str, samples: Sequence[Sample], official: Counts, *, masks: bool) -> list[str]:
    numbers = Counter((sample.split, sample.label == NORMAL) for sample in samples)
    compared = {
        "training pictures": (numbers["train", True], official.train),
        "good test pictures": (numbers["test", True], official.test_normal),
        "anomalous test pictures": (numbers["test", False], official.test_anomalous),
    }
    found = [
        f"{name}: {number} of {full} {what}"
        if number < full
        else f"{name}: {number} {what} instead of {full}"
        for what, (number, full) in compared.items()
        if number != full
    ]
    if masks and numbers["test", False] and not any(sample.mask for sample in samples):
        found.append(f"{name}: no masks")
    return found


def _plain(name: str) -> str:
    """In lower case, without what stands between letters and digits: people write mvtec_ad, MVTec-AD, MVTecAD."""
    return re.sub(r"[\W_]", "", name.lower())

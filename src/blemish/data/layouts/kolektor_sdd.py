"""KolektorSDD: surfaces of commutators, each with a mask beside it."""

from __future__ import annotations

import re
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from blemish.data.dataset import Found
from blemish.data.folder import is_folder, scan
from blemish.data.layouts.base import QUARTER, Official, counted, divided, sample_of, told
from blemish.errors import DataError
from blemish.images import decode_mask


def is_kolektor_sdd(folder: Path) -> bool:
    """Whether there are folders kos01, kos02, … with pictures Part0, Part1, …"""
    return any(any(item.glob("Part*")) for item in _items(folder))


def read_kolektor_sdd(folder: Path) -> Found:
    """The surfaces: anomalous are those whose mask marks something; every mask is decoded.

    Raises: DataError for masks that are missing; ImageError for one that cannot be decoded.
    """
    pairs: list[tuple[Path, Path]] = []
    bare: list[Path] = []
    for item in _items(folder):
        files = scan(item).pictures
        masks = {path.stem.removesuffix("_label"): path for path in files if _is_mask(path)}
        pictures = [path for path in files if not _is_mask(path)]
        pairs += [(path, masks[path.stem]) for path in pictures if path.stem in masks]
        bare += [path for path in pictures if path.stem not in masks]
    for missing in told({"without the mask <stem>_label.bmp beside it": bare}):
        raise DataError(
            f"{folder}: read as KolektorSDD, but {missing}; copy the masks from that set"
        )
    with ThreadPoolExecutor(thread_name_prefix="kolektor") as pool:
        marked = list(pool.map(lambda pair: bool(decode_mask(pair[1]).any()), pairs))
    return divided(
        sample_of(picture, "defect", mask) if defective else sample_of(picture, "")
        for (picture, mask), defective in zip(pairs, marked, strict=True)
    )


def _is_mask(path: Path) -> bool:
    return path.stem.endswith("_label")


def _items(folder: Path) -> list[Path]:
    found = (path for path in sorted(folder.glob("kos*")) if is_folder(path))
    return [path for path in found if re.fullmatch(r"kos\d+", path.name)]


KOLEKTOR_SDD = Official(
    name="kolektor_sdd",
    title="KolektorSDD",
    reference="Tabernik, Šela, Skvarč, Skočaj 2019",
    source="https://www.vicos.si/resources/kolektorsdd/",
    licence="CC BY-NC-SA 4.0",
    tree="""\
FOLDER/kos01/Part0.jpg
FOLDER/kos01/Part0_label.bmp (and so on, to kos50)""",
    folders=("kolektor_sdd", "kolektor"),
    categories=counted("kolektor_sdd 260 87 52"),
    split=f"{QUARTER} Defective is what its mask marks.",
    masks=True,
    fits=is_kolektor_sdd,
    read=read_kolektor_sdd,
)

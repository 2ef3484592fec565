"""A folder or a table -> labelled samples: which layout it is, and what is in it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from blemish.data.dataset import Dataset
from blemish.data.folder import is_file, is_folder, no_pictures, not_there, scan
from blemish.data.layouts.folders import read_folder, read_picture
from blemish.data.layouts.official import differences, recognised
from blemish.data.tables import TABLES, read_table
from blemish.errors import DataError
from blemish.text import listed, pluralize
from blemish.types import NORMAL


def read(path: str | Path, *, unlabelled: int = NORMAL) -> Dataset:
    """The data set at `path`, its layout recognised: the most specific one that fits.

    `path` is a folder, a table (.csv or .tsv) or one picture. Pictures are listed, not decoded
    (except a few of what may be masks): see `blemish.data.checking`. Where a public set is
    recognised, its problems say what differs from the official counts.

    Args:
        unlabelled: NORMAL, or ANOMALOUS where the caller knows it: what the pictures are where no
            name of a folder tells good ones from defective ones.
    Raises: DataError when there is nothing at `path`, no picture in it, no telling which are good,
        for a piece of a layout that is missing, for masks that cannot be told from pictures or from
        each other, or for rows of a table that cannot be used (listed together with their line
        numbers); ImageError for a mask that must be looked at (KolektorSDD) and cannot be decoded.
    """
    dataset = _read(Path(path), unlabelled)
    return replace(dataset, problems=(*dataset.problems, *differences(dataset)))


def _read(root: Path, unlabelled: int) -> Dataset:
    if is_file(root) and root.suffix.lower() in TABLES:
        return read_table(root).described(root, "manifest", "manifest")
    if is_file(root):
        return read_picture(root, unlabelled)
    if not is_folder(root):
        raise not_there(root)
    official = recognised(root)
    if official is not None and official.read is not None:
        return official.read(root).described(root, official.name, f"{official.title} layout")
    tree = scan(root)
    if not tree.pictures:
        raise DataError(no_pictures(root, tree.left_out))
    dataset = read_folder(root, tree, unlabelled)
    problems: list[str] = []
    if tree.others:
        number = pluralize(len(tree.others), "file")
        problems.append(f"{number} with other suffixes ignored: {listed(tree.others)}")
    if tables := [path for path in tree.others if path.suffix.lower() in TABLES]:
        problems.append(
            f"a table is read as a manifest only when it is named itself: {listed(tables)}"
        )
    return replace(
        dataset,
        problems=(*problems, *tree.left_out, *dataset.problems),
        left_out=(*tree.left_out, *dataset.left_out),
    )

"""The demo set: solar cells of the ELPV data set, from the package `elpv-dataset`.

ELPV: 2,624 electroluminescence pictures of solar cells, each with a probability of being defective. Licence: CC
BY-NC-SA 4.0 (not for commercial use). When you publish results, cite

- Buerhop et al. 2018, A Benchmark for Visual Identification of Defective Solar Cells in Electroluminescence
  Imagery (EU PVSEC), and
- Deitsch et al. 2019, Automatic Classification of Defective Photovoltaic Module Cells in Electroluminescence Images
  (Solar Energy 185).
"""

from __future__ import annotations

import importlib.util
from dataclasses import replace
from pathlib import Path

from blemish.data.layouts.unsplit import TEST_FRACTION, elpv_cells
from blemish.data.manifest import write_manifest
from blemish.data.splits import few_shot, hold_out
from blemish.errors import ConfigError, MissingExtraError
from blemish.types import ANOMALOUS, NORMAL


def write_elpv_manifest(path: str | Path, seed: int = 0, cells: int | None = None) -> Path:
    """A manifest of the ELPV solar cells at `path`: functional cells are normal, defective ones anomalous.

    Cells of probability 0 are normal (1,508: 1,131 train and 377 test, drawn by `seed`), those of probability 1
    anomalous (715, all test); the uncertain ones between are left out. Pictures are named by absolute path.

    Args:
        cells: only so many train cells and as many test cells, half of these anomalous, drawn by `seed`; None = all.
    Raises: MissingExtraError without the `demo` extra; DataError when the package's table is not as expected;
        ConfigError for a number of cells that cannot be drawn; OutputError when the manifest cannot be written.
    """
    spec = importlib.util.find_spec(
        "elpv_dataset"
    )  # located, never imported: only its files are of use
    if spec is None or spec.origin is None:
        raise MissingExtraError("elpv-dataset", extra="demo", purpose="read the ELPV solar cells")
    known = elpv_cells(Path(spec.origin).absolute().parent / "data")
    train, good = hold_out([cell for cell in known if cell.label == NORMAL], TEST_FRACTION, seed)
    defective = [cell for cell in known if cell.label == ANOMALOUS]
    if cells is not None:
        most = min(len(train), 2 * len(good), 2 * len(defective))
        if not 2 <= cells <= most:
            raise ConfigError(
                f"cells: 2 to {most} can be drawn, got {cells}; leave it out for all of them"
            )
        train, good = few_shot(train, cells, seed), few_shot(good, cells - cells // 2, seed)
        defective = few_shot(defective, cells // 2, seed)
    rows = [replace(cell, split="train") for cell in train]
    rows += [replace(cell, split="test") for cell in good + defective]
    return write_manifest(path, rows)

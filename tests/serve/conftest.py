"""Files that the services of these tests score with."""

from __future__ import annotations

from pathlib import Path

import pytest
from parts import Fitted, part, write_picture


@pytest.fixture(scope="session")
def artifact(fitted: Fitted, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`part.blemish`: a detector with a threshold and regions."""
    return fitted("knn").save(tmp_path_factory.mktemp("served") / "part.blemish")


@pytest.fixture(scope="session")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Good parts and defective ones, as PNG files."""
    folder = tmp_path_factory.mktemp("pictures")
    return [
        write_picture(folder / f"{seed}.png", part(seed, defect=seed % 2 == 0))
        for seed in range(100, 108)
    ]

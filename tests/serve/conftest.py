"""Files that the services of these tests score with."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import made_graphs as graphs
import pytest
from parts import Fitted, part, write_picture

from blemish.artifact import FORMAT
from blemish.engines import files


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


@pytest.fixture(scope="session")
def made_onnx(fitted: Fitted, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`part.onnx`: a graph of a few operators, with a manifest."""
    record = fitted("knn").record
    preprocessing = replace(record.preprocessing, height=graphs.SIDE, width=graphs.SIDE)
    told = replace(record, preprocessing=preprocessing).to_dict()
    manifest = {**told, "format": FORMAT, "export": graphs.manifest()["export"]}
    place = tmp_path_factory.mktemp("exported") / "part.onnx"
    return files.write(place, "onnx", graphs.onnx_bytes(), manifest)


@pytest.fixture
def browser_context_args() -> dict[str, Any]:
    return {"viewport": {"width": 1280, "height": 800}, "has_touch": True}

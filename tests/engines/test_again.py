"""An exported file is written again with another manifest, its graph as it was."""

from __future__ import annotations

from pathlib import Path

import made_graphs as graphs
import numpy as np
import pytest

from blemish.engines import files
from blemish.engines.chosen import open_engine


@pytest.mark.parametrize("kind", ["onnx", "openvino"])
def test_the_graph_stays(kind: str, tmp_path: Path) -> None:
    if kind == "openvino":
        pytest.importorskip("openvino")
    first = graphs.written(tmp_path, kind)
    engine, manifest = open_engine(first)
    again = engine.save(tmp_path / f"again{first.suffix}", {**manifest, "seed": 12345})
    assert files.read(again).model == files.read(first).model
    other, told = open_engine(again)
    assert told == {**manifest, "seed": 12345}
    images = graphs.batch(3)
    assert (other.run(images).map == engine.run(images).map).all()
    # And back: nothing of the other manifest is left.
    back = other.save(tmp_path / f"back{first.suffix}", manifest)
    assert back.read_bytes() == first.read_bytes()
    assert np.array_equal(open_engine(back)[0].run(images).score, engine.run(images).score)

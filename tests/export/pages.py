"""Pages for tests: a detector, a graph that takes milliseconds to make, and what they must say."""

from __future__ import annotations

import base64
import json
from dataclasses import replace
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnxruntime
from browser import until
from onnx import TensorProto, helper
from parts import SIDE, part, settings_of
from playwright.sync_api import Page

import blemish
from blemish.data.transforms import prepare
from blemish.detector.manifest import Manifest
from blemish.detector.predict import Detector
from blemish.detector.scoring import masked
from blemish.detector.thresholds import calibrate
from blemish.engines.base import Outputs
from blemish.export.web import write_page
from blemish.images import decode
from blemish.regions import region_level
from blemish.types import Prediction

READY = "['ready', 'broken'].includes(document.body.dataset.state)"
EXPORT: dict[str, Any] = {
    "format": 1, "kind": "onnx", "input": "normalised", "precision": "fp32", "opset": 17,
    "outputs": ["score", "map", "votes", "box", "part", "category"], "map_size": [16, 16],
    "top_fraction": 1 / 256, "scores_by_map": True, "offset": 0.125, "source": "0" * 64,
}  # fmt: skip


@cache
def fitted() -> Detector:
    return blemish.fit("knn", [part(seed) for seed in range(25)], **settings_of("knn"))


@cache
def graph() -> bytes:
    """Images to how far colours lie from the mean, in squares of four pixels; the highest of that;
    how bright squares of eight pixels are, as the part; the mean colour, to tell categories by;
    votes, and a crop that is always the same."""

    def pooled(side: int) -> dict[str, Any]:
        return {"kernel_shape": [side, side], "strides": [side, side]}

    quarter = helper.make_tensor("value", TensorProto.FLOAT, [1], [0.25])
    nodes = [
        helper.make_node("Abs", ["images"], ["away"]),
        helper.make_node("AveragePool", ["away"], ["of four"], **pooled(4)),
        helper.make_node("ReduceMean", ["of four"], ["map"], axes=[1], keepdims=0),
        helper.make_node("ReduceMax", ["map"], ["score"], axes=[1, 2], keepdims=0),
        helper.make_node("AveragePool", ["images"], ["of eight"], **pooled(8)),
        helper.make_node("ReduceMean", ["of eight"], ["part"], axes=[1], keepdims=0),
        helper.make_node("ReduceMean", ["images"], ["category"], axes=[2, 3], keepdims=0),
        helper.make_node("Sigmoid", ["score"], ["votes"]),
        helper.make_node("ConstantOfShape", ["shape"], ["box"], value=quarter),
    ]
    sizes: dict[str, list[int | str]] = {
        "score": ["B"], "map": ["B", SIDE // 4, SIDE // 4], "votes": ["B"], "box": [1, 4],
        "part": ["B", SIDE // 8, SIDE // 8], "category": ["B", 3],
    }  # fmt: skip
    kind = TensorProto.FLOAT
    made = helper.make_graph(
        nodes,
        "test",
        [helper.make_tensor_value_info("images", kind, ["B", 3, SIDE, SIDE])],
        [helper.make_tensor_value_info(name, kind, size) for name, size in sizes.items()],
        [helper.make_tensor("shape", TensorProto.INT64, [2], [1, 4])],
    )
    model = helper.make_model(made, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    content: bytes = model.SerializeToString()
    return content


def run(record: Manifest, pixels: Any) -> Outputs:
    """What the graph says of one picture, of the part alone where there is a foreground."""
    images = prepare(decode(pixels), record.preprocessing)[None]
    session = onnxruntime.InferenceSession(graph(), providers=["CPUExecutionProvider"])
    names = EXPORT["outputs"]
    found = Outputs(**dict(zip(names, session.run(names, {"images": images}), strict=True)))
    engine: Any = SimpleNamespace(top_fraction=EXPORT["top_fraction"], offset=EXPORT["offset"])
    return masked(found, record.foreground, record.preprocessing.area, engine)


def calibrated(record: Manifest, **changes: Any) -> Manifest:
    """A record with thresholds of the graph's own scores, of 25 good parts."""
    record = replace(record, **changes)
    good = [run(record, part(seed)) for seed in range(25)]
    scores = tuple(float(one.score[0]) for one in good)
    levels = tuple(region_level(one.map[0]) for one in good)
    assert record.regions is not None
    regions = replace(
        record.regions, levels=levels, thresholds={}, levels_by_category={},
        threshold=calibrate(levels, 0.05, method="split conformal", required=True, of="region"),
    )  # fmt: skip
    return replace(
        record,
        threshold=calibrate(scores, 0.05, method="split conformal", required=True),
        calibration_scores=scores, regions=regions, map_scale=(0.1, 1.0),
    )  # fmt: skip


def wrote(directory: Path, record: Manifest) -> Path:
    return write_page(directory, graph(), {**record.to_dict(), "export": EXPORT})


def predicted(record: Manifest, source: Any) -> Prediction:
    """What `Detector.predict` says where the graph is the method."""
    picture = decode(source)
    found = run(record, source)
    placement = record.preprocessing.placement(picture.size)
    threshold, regions = record.threshold, record.regions
    assert threshold is not None
    assert threshold.value is not None
    assert regions is not None
    assert regions.threshold is not None
    score = float(found.score[0])
    return Prediction(
        source=picture.source, score=score, threshold=threshold.value,
        label=int(score > threshold.value), size=picture.size,
        anomaly_map=placement.to_picture(found.map[0]),
        region_threshold=regions.threshold.value, smallest_region=regions.smallest,
        background=record.map_scale[0], area=record.preprocessing.area, notes=picture.notes,
        foreground=None if found.foreground is None else found.foreground[0],
    )  # fmt: skip


def score(page: Page, *files: Path) -> dict[str, Any] | None:
    """Give files to a page; what it shows of the last, None where that could not be scored."""
    count = page.evaluate("document.querySelectorAll('#list tbody tr').length")
    page.set_input_files("#files", files)
    until(page, f"document.querySelectorAll('#list tbody tr').length === {count + len(files)}")
    until(page, READY)
    found: dict[str, Any] | None = page.evaluate(
        """(({ shown }) => shown && { name: shown.name, score: shown.found.score,
          label: shown.label, notes: shown.found.notes, votes: shown.found.votes,
          box: shown.found.box, height: shown.found.map.height,
          map: [...shown.found.map.values],
          counted: shown.found.counted && [...shown.found.counted],
          regions: shown.regions.map(({ box, area, peak }) => ({ box, area, peak })),
        })(window.blemish)"""
    )
    return found


_PRELUDE = """
const typed = ({ kind, content }) => {
  const bytes = Uint8Array.from(atob(content), (one) => one.charCodeAt(0));
  return kind === "uint8" ? bytes : new Float32Array(bytes.buffer);
};
const plain = (array) => {
  const bytes = new Uint8Array(array.buffer, array.byteOffset, array.byteLength);
  let text = "";
  for (let at = 0; at < bytes.length; at += 32768) {
    text += String.fromCharCode(...bytes.subarray(at, at + 32768));
  }
  return btoa(text);
};
"""


def in_page(page: Page, module: str, body: str, **values: Any) -> Any:
    """What some JavaScript returns, with a module of the page as `it`. In `values` arrays of bytes
    and of floats become typed ones; `plain` makes text of one, for `array`."""
    given = json.dumps(json.dumps({name: _given(value) for name, value in values.items()}))
    revived = f"JSON.parse({given}, (_, value) => (value?.kind ? typed(value) : value))"
    return page.evaluate(
        f"(async () => {{ {_PRELUDE} const values = {revived};"
        f"const it = await import('./{module}'); {body} }})()"
    )


def _given(value: Any) -> Any:
    if isinstance(value, np.ndarray):
        content = base64.b64encode(np.ascontiguousarray(value).tobytes()).decode()
        return {"kind": value.dtype.name, "content": content}
    return [_given(one) for one in value] if isinstance(value, list) else value


def array(content: str, dtype: Any, shape: tuple[int, ...]) -> np.ndarray:
    """What `plain` gave."""
    return np.frombuffer(base64.b64decode(content), dtype).reshape(shape)

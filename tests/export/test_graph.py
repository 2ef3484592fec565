"""The graph of every method says in ONNX Runtime what the method says in PyTorch."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
from numpy.typing import NDArray
from parts import part, settings_of
from parts import prepared as of_picture
from torch import Tensor

import blemish
from blemish.detector.predict import Detector
from blemish.export.graph import OPSET, Graph, opset_of, to_onnx
from blemish.images import decode

Found = dict[str, NDArray[np.float32]]
LIMIT = 1e-4  # of the spread of what is compared
DEFECTS = [part(200 + seed, defect=True) for seed in range(3)]
CNN = {"backbone": "test_resnet", "layers": (1, 2)}
GUIDED = {"map_head": "features", "score": "both", "trainable_blocks": 2}
VOTES = ("epochs=1", "min_steps=2", "train_batch_size=4", "zoom=1.0", "score=both")
AREA = {"roi": [[[0.1, 0.1], [0.7, 0.1], [0.7, 0.9], [0.1, 0.9]]]}
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "patchcore": ("patchcore", {}),
    "knn": ("knn", {}),
    "padim": ("padim", {}),
    "agpnet": ("agpnet", {}),
    "patchcore, a CNN": ("patchcore", CNN),
    "padim, a CNN": ("padim", CNN),
    "agpnet, a CNN": ("agpnet", CNN),
    "agpnet, paper": ("agpnet", {"recipe": "paper", "layers": (1, 2), "score_window": 0.2}),
    "guided": ("guided", {}),
    "guided, sizes": ("guided", {"scales": (64, 48), **GUIDED}),
    "guided, paper": ("guided", {"recipe": "paper", "scales": (64, 48)}),
    "lda": ("lda", {"anomalies": DEFECTS}),
    "lda, a CNN": ("lda", {"anomalies": DEFECTS, **CNN}),
    "lda, votes": (
        "lda",
        {"anomalies": DEFECTS, "normality": "guided", "normality_settings": VOTES},
    ),
    "atacnet": ("atacnet", {"anomalies": DEFECTS}),
    "atacnet, a CNN": ("atacnet", {"anomalies": DEFECTS, **CNN, "layers": ()}),
    "devnet": ("atacnet", {"anomalies": DEFECTS, "recipe": "paper-devnet", **CNN, "layers": ()}),
    "classifier": ("atacnet", {"anomalies": DEFECTS, "recipe": "paper-classifier"}),
    "an area": ("patchcore", AREA),
    "an area, a CNN": ("padim", {**AREA, **CNN}),
    "padding": ("patchcore", {"resize": "pad"}),
    "padding, a CNN": ("patchcore", {"resize": "pad", **CNN}),
    "padding, guided": ("guided", {"resize": "pad", "scales": (64, 48), **GUIDED}),
    "padding and an area, lda": ("lda", {"resize": "fit", "anomalies": DEFECTS, **AREA}),
    "padding, atacnet": ("atacnet", {"resize": "pad", "anomalies": DEFECTS}),
    "padding, agpnet": ("agpnet", {"resize": "pad", "score_window": 0.2}),
}


@dataclass(frozen=True)
class Exported:
    """A detector, its graph in ONNX Runtime, and what this is asked with."""

    detector: Detector
    graph: Graph
    model: bytes
    session: onnxruntime.InferenceSession

    def ask(self, images: Tensor) -> Found:
        found = self.session.run(list(self.graph.outputs), {self.graph.input: images.numpy()})
        return dict(zip(self.graph.outputs, found, strict=True))

    def eager(self, images: Tensor) -> Found:
        with torch.no_grad():
            found = self.graph(images)
        return {name: each.numpy() for name, each in zip(self.graph.outputs, found, strict=True)}


def session_of(model: bytes) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    return onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])


@cache
def exported(case: str) -> Exported:
    method, settings = CASES[case]
    good = [drawn(case, seed) for seed in range(6)]
    detector = blemish.fit(method, good, **{**settings_of(method), **settings})
    model = to_onnx(detector, precision="fp32")
    graph = Graph(detector.method, detector.record, pixels=False)
    return Exported(detector, graph, model, session_of(model))


def drawn(case: str, seed: int, *, defect: bool = False) -> NDArray[np.uint8]:
    """A part; where pictures may be padded, one that is no square."""
    height = 40 + 8 * (seed % 2) if "resize" in CASES[case][1] else 64
    return part(seed, defect=defect, height=height)


def prepared(detector: Detector, *pictures: NDArray[np.uint8]) -> Tensor:
    """Pictures as they come to the method."""
    return torch.stack([of_picture(decode(one), detector.preprocessing) for one in pictures])


def check_same(found: Found, wanted: Found, limit: float = LIMIT) -> None:
    assert found.keys() == wanted.keys()
    for name, values in wanted.items():
        given = found[name]
        assert given.dtype == np.float32
        assert given.shape == values.shape
        of = wanted["map"] if name == "score" else values
        spread = max(float(np.ptp(of)), 1e-6)
        assert np.abs(given - values).max() <= limit * spread, name


@pytest.mark.parametrize("case", CASES)
def test_onnx_says_what_the_method_says_of_any_number_of_pictures(case: str) -> None:
    one = exported(case)
    images = prepared(one.detector, drawn(case, 90), drawn(case, 91, defect=True), drawn(case, 92))
    for count in (1, 3):
        wanted = one.detector.method.score(images[:count])
        found = one.ask(images[:count])
        check_same(found, one.eager(images[:count]))
        assert found["score"] == pytest.approx(wanted.image.numpy(), rel=1e-3)
        assert np.ptp(found["map"]) > 0


@pytest.mark.parametrize("case", CASES)
def test_a_planted_defect_scores_above_its_twin(case: str) -> None:
    one = exported(case)
    good, bad = one.ask(prepared(one.detector, drawn(case, 77), drawn(case, 77, defect=True)))[
        "score"
    ]
    assert bad > good


def test_a_model_says_its_opset_and_nothing_of_the_machine_that_wrote_it() -> None:
    model = exported("patchcore").model
    assert opset_of(model) == OPSET
    assert b".py" not in model
    assert b"site-packages" not in model

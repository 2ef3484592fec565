"""The graph of every method says in ONNX Runtime what the method says in PyTorch."""

from __future__ import annotations

import copy
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import numpy as np
import onnx
import onnx_ir
import onnxruntime
import pytest
import torch
from numpy.typing import NDArray
from parts import LEARNED, part, settings_of
from parts import prepared as of_picture
from torch import Tensor

import blemish
from blemish.backbones.glance import features
from blemish.detector.categories import CategoryFeatures
from blemish.detector.predict import Detector
from blemish.errors import ExportError
from blemish.export.graph import OPSET, Graph, opset_of, to_onnx
from blemish.export.graph import _serialised as serialised
from blemish.images import decode
from blemish.methods.foreground import Foreground

Found = dict[str, NDArray[np.float32]]
LIMIT = 1e-4  # of the spread of what is compared
DEFECTS = {"anomalies": [part(200 + seed, defect=True) for seed in range(3)]}
CNN = {"backbone": "test_resnet"}
SIZES = {"scales": (64, 48), "map_head": "features", "score": "both", "trainable_blocks": 2}
VOTES = ("epochs=1", "min_steps=2", "train_batch_size=4", "zoom=1.0", "score=both")
AREA = {"roi": [[[0.1, 0.1], [0.7, 0.1], [0.7, 0.9], [0.1, 0.9]]]}
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "patchcore": ("patchcore", {}),
    "padim, a CNN": ("padim", CNN),
    "agpnet": ("agpnet", {}),
    "simplenet": ("simplenet", {}),
    "rd4ad": ("rd4ad", {}),
    "spade": ("spade", {"neighbours": 3}),
    "dinomaly": ("dinomaly", {}),
    "vitad": ("vitad", {}),
    "draem": ("draem", LEARNED["draem"]),
    "uniad": ("uniad", {}),
    "efficientad": ("efficientad", {}),
    "guided, sizes": ("guided", SIZES),
    "lda": ("lda", DEFECTS),
    "atacnet, a CNN": ("atacnet", {**DEFECTS, **CNN, "layers": (2,)}),
    "classifier": ("atacnet", {**DEFECTS, "recipe": "paper-classifier"}),
    "dra, a CNN": ("dra", {**DEFECTS, **CNN, "layers": (2,)}),
    "ahl": ("ahl", DEFECTS),
    "lda, two encoders": ("lda", {**DEFECTS, "second": "test_efficientnet"}),
    "an area": ("padim", AREA),
    "padding": ("patchcore", {"resize": "pad"}),
    "two encoders": ("patchcore", {"second": "test_efficientnet"}),
    "two looks": ("patchcore", {"coarse": 32}),
    "two looks, a compressed bank": (
        "patchcore",
        {"image_size": 128, "coarse": 64, "bank_loss": 2.0, "neighbours": 1},
    ),
}
# All that a user can fit beside these.
MORE: dict[str, tuple[str, dict[str, Any]]] = {
    "knn": ("knn", {}),
    "two encoders, padding": ("knn", {"resize": "pad", "second": "test_resnet"}),
    "two encoders, a compressed bank": (
        "patchcore",
        {"second": "test_efficientnet", "bank_loss": 2.0, "neighbours": 1},
    ),
    "two encoders, a CNN": ("patchcore", {"second": "test_vit", **CNN}),
    "knn, two looks": ("knn", {"coarse": 32}),
    "knn, a compressed bank": ("knn", {"bank_loss": 2.0, "neighbours": 1, "resize": "pad"}),
    "padim": ("padim", {}),
    "patchcore, a CNN": ("patchcore", CNN),
    "agpnet, a CNN": ("agpnet", CNN),
    "rd4ad, a CNN": ("rd4ad", {"rectified": True, **CNN}),
    "padding, rd4ad": ("rd4ad", {"resize": "pad"}),
    "spade, a CNN": ("spade", {"recipe": "paper", "gallery_size": 4, **CNN}),
    "padding, spade": ("spade", {"resize": "pad"}),
    "simplenet, a CNN": ("simplenet", {"recipe": "paper", **CNN}),
    "agpnet, paper": ("agpnet", {"recipe": "paper", "score_window": 0.2}),
    "dinomaly, paper": ("dinomaly", {"recipe": "paper", "depth": 2}),
    "draem, paper": ("draem", {"recipe": "paper", "epochs": 1, "width": 8, **CNN}),
    "padding, draem": ("draem", {"resize": "pad", "score_window": 0.2}),
    "uniad, a CNN": ("uniad", {"recipe": "paper", "depth": 2, **CNN}),
    "efficientad, a CNN": ("efficientad", {"autoencoder_width": 4, **CNN}),
    "padding, uniad": ("uniad", {"resize": "pad", "score_window": 0.2}),
    "padding, efficientad": ("efficientad", {"resize": "pad"}),
    "vitad, paper": ("vitad", {"recipe": "paper", "score_window": 0.2}),
    "guided": ("guided", {}),
    "guided, paper": ("guided", {"recipe": "paper-bmvc"}),
    "lda, a CNN": ("lda", {**DEFECTS, **CNN}),
    "lda, two encoders, padding": (
        "lda",
        {**DEFECTS, **CNN, "second": "test_vit", "resize": "pad", "normality": "knn"},
    ),
    "lda, votes": ("lda", {**DEFECTS, "normality": "guided", "normality_settings": VOTES}),
    "lda, no defects": ("lda", {}),
    "atacnet": ("atacnet", DEFECTS),
    "devnet": ("atacnet", {**DEFECTS, "recipe": "paper-devnet", **CNN, "layers": (2,)}),
    "dra": ("dra", DEFECTS),
    "ahl, a CNN": ("ahl", {**DEFECTS, **CNN, "layers": (2,)}),
    "an area, a CNN": ("patchcore", {**AREA, **CNN}),
    "padding, a CNN": ("knn", {"resize": "pad", **CNN}),
    "padding, guided": ("guided", {"resize": "pad", **SIZES}),
    "padding and an area, lda": ("lda", {"resize": "fit", **DEFECTS, **AREA}),
    "padding, atacnet": ("atacnet", {"resize": "pad", **DEFECTS}),
    "padding, dra": ("dra", {"resize": "pad", **DEFECTS, **AREA}),
    "padding, agpnet": ("agpnet", {"resize": "pad", "score_window": 0.2}),
    "padding, vitad": ("vitad", {"resize": "pad", "score_window": 0.2}),
}
EVERY = [*CASES, *(pytest.param(case, marks=pytest.mark.slow) for case in MORE)]


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
    method, settings = (CASES | MORE)[case]
    good = [drawn(case, seed) for seed in range(6)]
    detector = blemish.fit(method, good, **{**settings_of(method), "layers": (1, 2), **settings})
    model = to_onnx(detector, precision="fp32")
    graph = Graph(detector.method, detector.record, pixels=False)
    return Exported(detector, graph, model, session_of(model))


def drawn(case: str, seed: int, *, defect: bool = False) -> NDArray[np.uint8]:
    """A part; where pictures may be padded, one that is no square."""
    height = 40 + 8 * (seed % 2) if "resize" in (CASES | MORE)[case][1] else 64
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


@pytest.mark.parametrize("case", EVERY)
def test_onnx_says_what_the_method_says_of_any_number_of_pictures(case: str) -> None:
    one = exported(case)
    images = prepared(one.detector, drawn(case, 90), drawn(case, 91, defect=True), drawn(case, 92))
    for count in (1, 3):
        wanted = one.detector.method.score(images[:count])
        found = one.ask(images[:count])
        check_same(found, one.eager(images[:count]))
        assert found["score"] == pytest.approx(wanted.image.numpy(), rel=1e-3)
        assert np.ptp(found["map"]) > 0


def test_a_compressed_bank_is_compressed_in_the_file() -> None:
    one = exported("two looks, a compressed bank")
    method = one.detector.method
    assert method.axes.numel()
    assert method.bank.dtype == torch.float16
    kept = onnx.load_from_string(one.model).graph.initializer
    half = {tuple(each.dims) for each in kept if each.data_type == onnx.TensorProto.FLOAT16}
    assert tuple(method.bank.shape) in half
    assert all(tuple(each.dims) != tuple(method.bank.shape) for each in kept if each.data_type == 1)


@pytest.mark.parametrize("case", EVERY)
def test_a_planted_defect_scores_above_its_twin(case: str) -> None:
    one = exported(case)
    good, bad = one.ask(prepared(one.detector, drawn(case, 77), drawn(case, 77, defect=True)))[
        "score"
    ]
    assert bad > good


def test_pixels_are_normalised_in_the_graph() -> None:
    one = exported("patchcore")
    pixels = np.stack([part(80), part(81, defect=True)])
    session = session_of(to_onnx(one.detector, precision="fp32", pixels=True))
    graph = Graph(one.detector.method, one.detector.record, pixels=True)
    (given,) = session.get_inputs()
    assert (given.name, given.type, given.shape[1:]) == ("pixels", "tensor(uint8)", [64, 64, 3])
    assert graph.input == "pixels"
    found = session.run(list(graph.outputs), {"pixels": pixels})
    wanted = one.eager(prepared(one.detector, *pixels))
    check_same(dict(zip(graph.outputs, found, strict=True)), wanted)
    (eager,) = graph(torch.from_numpy(pixels))[:1]
    # Not to the bit: the vectors of other processors add up in another order.
    assert eager.numpy() == pytest.approx(wanted["score"], rel=1e-6)


# How large a file is beside that in fp32, at most: what is made of the features stays as it is.
HALVED = {
    "patchcore": 0.6,
    "two encoders": 0.7,
    "guided, sizes": 0.6,
    "padim, a CNN": 0.99,
    "dra, a CNN": 0.8,
}
SLOW = pytest.param("atacnet", 0.6, marks=pytest.mark.slow)


@pytest.mark.parametrize(("case", "share"), [*HALVED.items(), SLOW])
def test_fp16_halves_the_encoder_and_hardly_changes_what_is_said(case: str, share: float) -> None:
    one = exported(case)
    before = {name: each.clone() for name, each in one.detector.method.state_dict().items()}
    model = to_onnx(one.detector, precision="fp16")
    after = one.detector.method.state_dict()
    assert all(torch.equal(each, after[name]) for name, each in before.items())
    assert len(model) < share * len(one.model)
    images = prepared(one.detector, part(90), part(91, defect=True))
    wanted = one.eager(images)
    found = session_of(model).run(list(one.graph.outputs), {"images": images.numpy()})
    check_same(dict(zip(one.graph.outputs, found, strict=True)), wanted, 5e-3)


def test_the_part_and_the_category_are_told() -> None:
    plain = exported("patchcore").detector
    method, layers = plain.method, plain.method.config.layers
    images = prepared(plain, part(90), 255 - part(91), part(92))
    known = features(method.backbone, layers, images)
    of_two = CategoryFeatures.learned({"dark": known[::2].numpy(), "light": known[1:2].numpy()})
    direction = np.random.default_rng(0).normal(size=64)
    direction /= np.linalg.norm(direction)
    record = replace(
        plain.record,
        categories=("dark", "light"),
        category_features=of_two,
        foreground=Foreground(direction=tuple(direction.tolist())),
    )
    graph = Graph(method, record, pixels=False)
    assert graph.outputs == ("score", "map", "part", "category", "descriptor")
    session = session_of(to_onnx(Detector(plain.engine, record), precision="fp32"))
    values = session.run(list(graph.outputs), {"images": images.numpy()})
    found: Found = dict(zip(graph.outputs, values, strict=True))
    tokens = method.see(images).tokens[-1]
    unit = (tokens / tokens.norm(dim=2, keepdim=True)).reshape(3, 4, 4, 64).numpy()
    wanted: Found = {"part": unit @ direction.astype(np.float32), "category": known.numpy()}
    check_same({name: found[name] for name in wanted}, wanted)
    assert of_two.nearest(found["category"]) == ["dark", "light", "dark"]


def test_a_foreground_that_abstains_is_no_output() -> None:
    one = exported("patchcore")
    record = replace(one.detector.record, foreground=Foreground(abstains="it is all part"))
    assert Graph(one.detector.method, record, pixels=False).outputs == (
        "score",
        "map",
        "descriptor",
    )


def test_what_cannot_be_exported_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    detector = exported("patchcore").detector
    with monkeypatch.context() as patch:
        patch.setattr("blemish.export.graph.LARGEST", 1000)
        with pytest.raises(ExportError, match="GiB, and an ONNX file holds at most 2: choose"):
            serialised(onnx_ir.from_proto(onnx.load_from_string(exported("patchcore").model)))
    framed = replace(detector.record.preprocessing, resize="pad")
    with pytest.raises(ExportError, match="--resize pad"):
        Graph(detector.method, replace(detector.record, preprocessing=framed), pixels=True)
    coarse = Detector(copy.deepcopy(detector.engine), detector.record)
    coarse.method.set_precision(torch.bfloat16)
    with pytest.raises(ExportError, match=r'bf16.*precision="fp32"'):
        to_onnx(coarse, precision="fp32")
    with monkeypatch.context() as patch:
        judge = detector.method.judge
        asking = lambda seen, images: judge(seen, images + float(images.sum()))  # noqa: E731
        patch.setattr(detector.method, "judge", asking)
        with pytest.raises(ExportError, match="patchcore on test_vit"):
            to_onnx(detector, precision="fp32")


def test_what_it_does_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[tuple[str, int, int]] = []
    one = exported("patchcore")
    again = to_onnx(one.detector, precision="fp32", progress=lambda *step: told.append(step))
    assert told[0] == ("tracing the graph", 0, 3)
    assert told[-1] == ("writing it as ONNX", 3, 3)
    assert again == one.model


def test_a_model_says_its_opset_and_nothing_of_the_machine_that_wrote_it() -> None:
    model = exported("patchcore").model
    assert opset_of(model) == OPSET
    assert b".py" not in model
    assert b"site-packages" not in model

"""int8: products of the encoder alone, as many as the limit allows, and the same for both kinds."""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
import onnx
import pytest
from parts import part, settings_of
from parts import prepared as of_picture

import blemish
from blemish.compute import is_held_below_bf16
from blemish.engines import packages
from blemish.engines.record import Kind
from blemish.errors import ExportError
from blemish.export import quantise as room
from blemish.export.graph import to_onnx
from blemish.export.openvino import converted
from blemish.export.quantise import Operation, Quantised, quantise
from blemish.images import decode
from blemish.machine import cpu_flags

pytest.importorskip("nncf")
pytest.importorskip("openvino")


@cache
def model_and_pictures() -> tuple[bytes, Any, float]:
    """The graph of a small detector, good pictures as it takes them, and the spread of scores."""
    detector = blemish.fit("knn", [part(seed) for seed in range(6)], **settings_of("knn"))
    looks = detector.record.preprocessing
    others = [part(seed) for seed in range(10, 22)]  # those of the bank have distance 0 to it
    images = np.stack([np.asarray(of_picture(decode(each), looks)) for each in others])
    spread = float(np.std(detector.record.calibration_scores))
    return to_onnx(detector, precision="fp32"), images, spread


@cache
def everything(kind: Kind) -> Quantised:
    model, images, _ = model_and_pictures()
    return quantise(model, [images[:5], images[5:]], kind=kind, limit=float("inf"))


def said(model: bytes | tuple[bytes, bytes], images: Any) -> dict[str, Any]:
    if isinstance(model, bytes):
        options = packages.onnxruntime().SessionOptions()
        options.intra_op_num_threads = 1
        session = packages.onnxruntime().InferenceSession(
            model, options, providers=["CPUExecutionProvider"]
        )
        found = session.run(["score", "map"], {"images": images})
        return dict(zip(("score", "map"), found, strict=True))
    core = packages.core()
    compiled = core.compile_model(
        core.read_model(*model), "CPU", {"INFERENCE_PRECISION_HINT": "f32"}
    )
    found = compiled(images)
    return {name: np.array(found[name]) for name in ("score", "map")}


@pytest.mark.parametrize("kind", ["onnx", "openvino"])
def test_the_encoder_is_in_int8_and_says_nearly_the_same(
    kind: Kind, capfd: pytest.CaptureFixture[str]
) -> None:
    model, images, spread = model_and_pictures()
    capfd.readouterr()
    found = everything(kind)
    assert capfd.readouterr() == ("", "")  # NNCF draws bars of its own
    assert (found.products, found.quantised) == (17, 16)  # of four blocks; not that of the pixels
    before, after = said(model, images), said(found.model, images)
    assert 0 < np.abs(before["map"] - after["map"]).mean() < 0.05 * before["map"].mean()
    ranks = [each["map"].ravel().argsort().argsort() for each in (before, after)]
    assert np.corrcoef(*ranks)[0, 1] > 0.95
    measured = np.abs(before["score"] - after["score"])[2::3]
    assert found.loss == pytest.approx(measured.max(), rel=0.02)
    assert found.loss > 0.01 * spread


def test_what_is_compared_stays_in_float() -> None:
    import onnx

    found = everything("onnx").model
    assert isinstance(found, bytes)
    graph = onnx.load_from_string(found).graph
    maker = {name: node for node in graph.node for name in node.output}
    in_int8 = [
        node
        for node in graph.node
        if node.op_type in ("MatMul", "Gemm", "Conv")
        and any(name in maker and maker[name].op_type == "DequantizeLinear" for name in node.input)
    ]
    assert len(in_int8) == 16
    small = {each.name for each in graph.initializer if each.data_type == onnx.TensorProto.INT8}
    assert not any("bank" in name for name in small)
    assert len(small & {each.name for each in graph.initializer}) >= 16


@pytest.mark.skipif(
    is_held_below_bf16() or not any("vnni" in flag for flag in cpu_flags()),
    reason="without VNNI OpenVINO adds products in 16 bits, where sums saturate",
)
def test_both_kinds_lose_the_same() -> None:
    assert everything("onnx").loss == pytest.approx(everything("openvino").loss, rel=0.2)


def test_weights_take_a_quarter() -> None:
    model, _, _ = model_and_pictures()
    _, before = converted(model)
    found = everything("openvino").model
    assert isinstance(found, tuple)
    assert len(found[1]) < 0.5 * len(before)
    _, half = converted(model, half=True)
    assert len(half) < 0.55 * len(before)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["onnx", "openvino"])
def test_products_are_given_back_where_scores_move_too_far(
    kind: Kind, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, images, _ = model_and_pictures()
    monkeypatch.setattr(room, "SHARES", (0, 1 / 2))
    monkeypatch.setattr(room, "MEASURED", 1)
    stages: list[str] = []
    whole = everything(kind)
    found = quantise(
        model,
        [images],
        kind=kind,
        limit=0.0,
        progress=lambda stage, done, total: stages.append(stage),
    )
    assert (found.products, found.quantised) == (17, 8)
    assert found.loss < 0.8 * whole.loss
    assert {"quantising", "measuring what int8 costs"} == set(stages)


def test_too_few_pictures() -> None:
    model, images, _ = model_and_pictures()
    with pytest.raises(ExportError, match=r"at least 9 good pictures, got 8; .*--good FOLDER"):
        quantise(model, [images[:8]], kind="openvino", limit=1.0)


def test_a_graph_without_an_encoder() -> None:
    import made_graphs as graphs

    kinds: tuple[Kind, ...] = ("onnx", "openvino")
    for kind in kinds:
        with pytest.raises(ExportError, match="no products with weights"):
            quantise(graphs.onnx_bytes(), [graphs.batch(9)], kind=kind, limit=1.0)
    with pytest.raises(ExportError, match=r"OpenVINO .* does not take the graph .*NoSuchOperator"):
        converted(graphs.onnx_bytes(operator="NoSuchOperator"))


def test_what_nncf_cannot_do() -> None:
    def fails() -> None:
        raise RuntimeError("Exception from src/a.cpp:12:\nno such pattern")

    with pytest.raises(ExportError, match=r"NNCF cannot quantise the graph \(no such pattern\)"):
        room._made(fails)


def of(name: str, kind: str, *inputs: str) -> Operation:
    constants = tuple(each for each in inputs if each.endswith(("weight", "bias", "bank")))
    return Operation(name=name, kind=kind, inputs=inputs, constants=constants)


OPERATIONS = [
    of("scaled", "Mul", "images", "std.weight"),
    of("patches", "Conv", "scaled", "m.backbone.proj.weight"),
    of("norm", "LayerNormalization", "patches", "m.backbone.norm.weight"),
    of("qkv", "MatMul", "norm", "folded.weight"),
    of("added", "Add", "qkv", "m.backbone.qkv.bias"),
    of("attention", "MatMul", "added", "added"),
    of("search", "MatMul", "attention", "bank"),
    of("head", "Conv", "search", "m.head.weight"),
]


def test_the_products_of_the_encoder() -> None:
    # Known by their weights, or by what is added to them, where a transposed weight lost its name.
    assert room._of_encoder(OPERATIONS) == {"patches", "qkv"}
    assert room._first(OPERATIONS) == {"patches"}


def test_a_product_of_no_weight_is_one_that_nncf_takes() -> None:
    """As in the graph of a bank: both factors, and what is added, are computed."""
    node, of_kind = onnx.helper.make_node, onnx.helper.make_tensor_value_info
    weights = {"bank": (8, 3), "mean": (3,), "weight": (3, 5), "bias": (5,)}
    random = np.random.default_rng(0)
    values = {name: random.normal(size=shape) for name, shape in weights.items()}
    graph = onnx.helper.make_graph(
        [
            node("Sub", ["bank", "mean"], ["near"], name="near"),
            node("ReduceSum", ["near", "last"], ["halves"], name="halves", keepdims=0),
            node("Transpose", ["near"], ["turned"], name="turned", perm=[1, 0]),
            node("Gemm", ["images", "turned", "halves"], ["map"], name="search"),
            node("Gemm", ["images", "weight", "bias"], ["score"], name="head"),
        ],
        "search",
        [of_kind("images", onnx.TensorProto.FLOAT, ["B", 3])],
        [of_kind(name, onnx.TensorProto.FLOAT, ["B", None]) for name in ("map", "score")],
        [
            *(onnx.numpy_helper.from_array(np.float32(one), name) for name, one in values.items()),
            onnx.numpy_helper.from_array(np.array([1]), "last"),
        ],
    )
    opsets = [onnx.helper.make_opsetid("", 20)]
    model = onnx.helper.make_model(graph, opset_imports=opsets, ir_version=9)
    images = random.normal(size=(12, 3)).astype(np.float32)
    content = model.SerializeToString()
    before = said(content, images)
    assert room._parted(model.graph) == ["search.sum"]
    kinds = {each.name: each.op_type for each in model.graph.node}
    assert kinds | {"search": "MatMul", "search.sum": "Add", "head": "Gemm"} == kinds
    onnx.checker.check_model(model)
    after = said(model.SerializeToString(), images)
    assert all(np.allclose(before[name], after[name], atol=1e-5) for name in before)
    made = room._ONNX.quantised(content, [images], ["near", "halves", "turned", "search"])
    assert np.allclose(said(made, images)["map"], before["map"], atol=1e-5)

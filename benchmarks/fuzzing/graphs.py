"""Forged graphs in files with a right digest, which an engine's own parser reads, in C++.

What an engine does with them is its own (docs/security.md): it may crash, or take any time and
memory. What blemish owes is that nothing comes of it but one sentence, or the end of the process.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import numpy as np

from fuzzing import artifacts, exported, forks
from fuzzing.artifacts import Random, command
from fuzzing.damage import flipped, scribbled
from fuzzing.tallies import Tally, outcome_of

if TYPE_CHECKING:
    from fuzzing.parts import Plan

OPERATORS = (
    *("Loop", "If", "Scan", "NonZero", "Resize", "Tile", "Expand", "ConstantOfShape", "Range"),
    *("Conv", "Gemm", "MatMul", "Reshape", "Gather", "TopK", "Pad", "Einsum", "LSTM", "Unique"),
    *("Cast", "Identity", "OneHot", "GridSample", "RandomUniform", "SequenceEmpty", "DFT", "None"),
)
SIZES = (0, -1, 1, 2, 7, 2**28, 2**31 - 1, 2**31, 2**40, 2**62, -(2**63))
ENGINES = ("onnxruntime", "openvino")


def forged(model: bytes, random: Random, *, modest: bool = False) -> bytes:
    """An ONNX model with one or two things in its graph that no export has put there.

    Args: modest: only what asks for no more memory and time than the model itself does, about.
    """
    import onnx

    if random.random() < 0.25:
        return (flipped, scribbled)[int(random.integers(2))](model, random)
    opened = onnx.load_from_string(model)
    changes = _MODEST if modest else (*_MODEST, *_IMMODEST)
    for _ in range(int(random.integers(1, 3))):
        changes[int(random.integers(len(changes)))](opened, random)
    content: bytes = opened.SerializeToString()
    if random.random() < 0.15:  # names that are no text
        for name in (b"images", b"score", b"map", b"B"):
            content = content.replace(name, b"\xff" * len(name)) if _coin(random) else content
    return content


def _coin(random: Random) -> bool:
    return bool(random.random() < 0.3)


def _one(things: Any, random: Random) -> Any:
    return things[int(random.integers(len(things)))]


def _operator(model: Any, random: Random) -> None:
    _one(model.graph.node, random).op_type = _one(OPERATORS, random)


def _attribute(model: Any, random: Random) -> None:
    if not (found := _one(model.graph.node, random).attribute):
        return
    one = _one(found, random)
    if one.ints:
        one.ints[int(random.integers(len(one.ints)))] = _one(SIZES, random)
    else:
        one.i = _one(SIZES, random)


def _weights(model: Any, random: Random) -> None:
    one = _one(model.graph.initializer, random)
    if one.dims and _coin(random):
        one.dims[int(random.integers(len(one.dims)))] = _one(SIZES, random)
    elif _coin(random):
        one.data_type = int(random.integers(30))
    else:
        one.ClearField("raw_data")


def _number(model: Any, random: Random) -> None:
    """Another whole number among the weights: an axis, or a size."""
    from onnx import TensorProto, numpy_helper

    whole = [one for one in model.graph.initializer if one.data_type == TensorProto.INT64]
    one = _one(whole or model.graph.initializer, random)
    values = numpy_helper.to_array(one).copy()
    if values.size and values.dtype == np.int64:
        values.reshape(-1)[int(random.integers(values.size))] = _one(SIZES, random)
        one.CopyFrom(numpy_helper.from_array(values, one.name))


def _port(model: Any, random: Random) -> None:
    kind = _one([*model.graph.input, *model.graph.output], random).type.tensor_type
    if _coin(random):
        kind.elem_type = int(random.integers(30))
    elif kind.shape.dim:
        size = _one(kind.shape.dim, random)
        if _coin(random):
            size.dim_param = _one(("", "B", "x" * 100_000), random)
        else:
            size.dim_value = _one(SIZES, random)


def _circle(model: Any, random: Random) -> None:
    node = _one(model.graph.node, random)
    if node.input:
        other = _one(model.graph.node, random).output[0]
        node.input[int(random.integers(len(node.input)))] = other


def _gap(model: Any, random: Random) -> None:
    del model.graph.node[int(random.integers(len(model.graph.node)))]


def _versions(model: Any, random: Random) -> None:
    if _coin(random):
        model.ir_version = _one((0, 1, 3, 99, 2**40), random)
    else:
        model.opset_import[0].version = _one((0, 1, 7, 13, 23, 99, 2**40), random)


def _greed(model: Any, random: Random) -> None:
    """The score needs a tensor of gigabytes."""
    from onnx import helper, numpy_helper

    graph, count = model.graph, np.array([_one((2**28, 2**33, 2**40), random)], np.int64)
    graph.initializer.append(numpy_helper.from_array(count, "count"))
    score = graph.output[0].name
    for node in graph.node:
        for place, name in enumerate(node.output):
            if name == score:
                node.output[place] = "before"
    graph.node.extend(
        [
            helper.make_node("ConstantOfShape", ["count"], ["much"]),
            helper.make_node("ReduceMax", ["much"], ["less"], keepdims=0),
            helper.make_node("Add", ["before", "less"], [score]),
        ]
    )


_Change = Callable[[Any, Random], None]
_MODEST: tuple[_Change, ...] = (_operator, _weights, _port, _circle, _gap, _versions)
_IMMODEST: tuple[_Change, ...] = (_attribute, _number, _greed)


def attempted(index: int, plan: Plan) -> dict[str, Any]:
    """What `predict` makes of the forged file of this number, by "verdict"."""
    from blemish.engines import files

    right = files.read(plan.folder / "part.onnx")
    path = plan.folder / "forged.onnx"
    try:
        files.write(path, "onnx", forged(right.model, plan.random(8, index)), right.manifest)
    except ValueError:
        return {"verdict": "same"}  # no fields to its end: it never gets to an engine
    engine = ENGINES[index % len(ENGINES)]
    line = ("predict", path, plan.folder / "part.png", "--threads", "1", "--engine", engine)
    status, out, err = command(*line)
    said = [row for row in (out + err).splitlines() if row.strip()]
    if any(sign in row for row in said for sign in ("bug in blemish", "Traceback")):
        return {"verdict": "bug", "why": said[-1][:300]}
    return {"verdict": "refused" if status == 2 else "accepted", "why": said[-1][:200]}


def of_graphs(plan: Plan) -> Iterator[Tally]:
    """Forged graphs with a right digest, in both engines."""
    from PIL import Image

    def make() -> int:
        Image.fromarray(artifacts.parts(1, seed=77)[0]).save(plan.folder / "part.png")
        artifacts.write_detectors(plan.folder)
        exported.write(plan.folder, plan.folder / "knn.blemish")
        return 0

    end = forks.attempt(make, limit=120)
    if end.status != 0:
        raise SystemExit(f"the exported file could not be made: {end.err[-2000:]}")
    tallies = [Tally("graphs", engine, "forged", told=False) for engine in ENGINES]
    work = lambda index: attempted(index, plan)  # noqa: E731
    for index, answer in forks.through(work, 10_000_000, limit=20, deadline=plan.deadline):
        outcome, why = outcome_of(answer)
        if outcome == "same":
            continue
        tally = tallies[index % len(ENGINES)]
        own = outcome in ("crash", "hang")
        tally.add("engine" if own else outcome, f"attempt {index}: {why}")
        tally.measured(answer)
        if outcome == "bug" or answer.get("requests"):
            plan.kept(f"graphs-{index}.onnx", (plan.folder / "forged.onnx").read_bytes())
    yield from tallies

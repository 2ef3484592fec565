"""Listening to a backbone: the layers wanted come along, and nobody who asks notices."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from blemish.backbones import Features, build
from blemish.errors import ConfigError


def same(one: Features, other: Features) -> bool:
    pairs = [*zip(one.tokens, other.tokens, strict=True), *zip(one.cls, other.cls, strict=True)]
    return one.grids == other.grids and all(torch.equal(a, b) for a, b in pairs)


@pytest.mark.parametrize("name", ["test_vit", "test_resnet"])
def test_one_inside_another_hears_its_own_layers_of_every_look(name: str) -> None:
    backbone = build(name, weights="random", seed=1)
    looks: list[Tensor] = [torch.randn(2, 3, 64, 64), torch.randn(1, 3, 32, 64)]
    with torch.no_grad():
        alone = {layer: [backbone(images, (layer,)) for images in looks] for layer in (2, 3)}
        usual = [backbone(images, ()) for images in looks]
        with backbone.overheard((3,)) as outer, backbone.overheard((2,)) as inner:
            found = [backbone(looks[0], ()), backbone(looks[1], (2,))]
        after = backbone(looks[0], ())
    assert same(found[0], usual[0])
    assert same(found[1], alone[2][1])
    for heard, layer in ((outer, 3), (inner, 2)):
        assert [shape for shape, _ in heard] == [(2, 3, 64, 64), (1, 3, 32, 64)]
        assert all(same(features, alone[layer][look]) for look, (_, features) in enumerate(heard))
    assert same(after, usual[0])
    assert len(outer) == 2


def test_a_layer_that_does_not_exist_is_refused_before_anything_is_asked() -> None:
    backbone = build("test_vit", weights="random", seed=1)
    with pytest.raises(ConfigError, match="layer 9 does not exist"), backbone.overheard((9,)):
        pass


@pytest.mark.parametrize("name", ["test_vit", "test_resnet"])
def test_however_it_is_called(name: str) -> None:
    """Without layers, with keywords alone, in any order: the caller gets what it would, the listener its layer."""
    backbone = build(name, weights="random", seed=1)
    images = torch.randn(2, 3, 32, 64)
    calls = [
        lambda: backbone(images),
        lambda: backbone(images=images),
        lambda: backbone(layers=(2, 4), images=images),
        lambda: backbone(images, layers=[1]),
        lambda: backbone(images, (1,), attention=(), keep=None),
    ]
    with torch.no_grad():
        alone, third = [call() for call in calls], backbone(images, (3,))
        with backbone.overheard((3,)) as heard:
            found = [call() for call in calls]
    assert all(same(one, other) for one, other in zip(found, alone, strict=True))
    assert [shape for shape, _ in heard] == [(2, 3, 32, 64)] * len(calls)
    assert all(same(features, third) for _, features in heard)


def test_attention_asked_for_meanwhile_comes_too() -> None:
    backbone = build("test_vit", weights="random", seed=1)
    images = torch.randn(1, 3, 32, 64)
    with torch.no_grad():
        alone = backbone(images=images, attention=(4,))
        with backbone.overheard((3,)):
            found = backbone(images=images, attention=(4,))
    assert same(found, alone)
    assert torch.equal(found.attention[4], alone.attention[4])


def test_a_wrong_call_is_as_wrong_as_without_a_listener() -> None:
    backbone = build("test_vit", weights="random", seed=1)
    with backbone.overheard((3,)) as heard:
        with pytest.raises(TypeError, match="images"):
            backbone(layers=(2,))
        with pytest.raises(ConfigError, match="layer 9 does not exist"):
            backbone(images=torch.randn(1, 3, 32, 64), layers=(9,))
        backbone(torch.randn(1, 3, 32, 64))
    assert len(heard) == 1

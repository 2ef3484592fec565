"""The CNN pyramid behind the same surface: levels, strides, and nothing a CNN does not have."""

from __future__ import annotations

from typing import Any

import pytest
import timm
import torch
from torch import Tensor

from blemish.backbones import CnnBackbone, build
from blemish.errors import ConfigError

NAMES = ["test_resnet", "test_efficientnet"]


def backbone_of(name: str) -> CnnBackbone:
    backbone = build(name, weights="random", seed=1)
    assert isinstance(backbone, CnnBackbone)
    return backbone


def images(height: int, width: int) -> Tensor:
    return torch.randn(2, 3, height, width, generator=torch.Generator().manual_seed(3))


@pytest.mark.parametrize("size", [(64, 64), (96, 32)])
@pytest.mark.parametrize("name", NAMES)
def test_levels_are_timms_features(name: str, size: tuple[int, int]) -> None:
    backbone, batch = backbone_of(name), images(*size)
    assert backbone.depth == 4
    reference = timm.create_model(name, features_only=True, pretrained=False).eval()
    state = backbone.model.state_dict()
    reference.load_state_dict({key: state[key] for key in reference.state_dict()})
    with torch.no_grad():
        expected = reference(batch)[1:]  # the first is the stem
    got = backbone(batch, (1, 2, 3, 4))
    assert got.grids == tuple((size[0] // stride, size[1] // stride) for stride in (4, 8, 16, 32))
    assert backbone.dims == tuple(each.shape[1] for each in expected)
    for layout, wanted in zip(got.maps(), expected, strict=True):
        scale = wanted.std()  # random weights let the signal fade from stage to stage
        assert scale > 0
        torch.testing.assert_close(layout / scale, wanted / scale, rtol=1e-3, atol=1e-3)
    assert got.cls == ()
    assert not got.attention


@pytest.mark.parametrize("name", NAMES)
def test_layers_come_in_the_order_asked_for(name: str) -> None:
    backbone, batch = backbone_of(name), images(64, 64)
    forth, back, default = backbone(batch, (2, 3)), backbone(batch, (3, 2)), backbone(batch)
    assert forth.grids == ((8, 8), (4, 4)) == default.grids  # layer2 and layer3 of a ResNet
    assert back.grids == ((4, 4), (8, 8))
    assert torch.equal(forth.tokens[0], back.tokens[1])
    assert torch.equal(forth.tokens[1], default.tokens[1])
    assert torch.equal(backbone.norm(forth.tokens[0]), forth.tokens[0])


@pytest.mark.parametrize("name", NAMES)
def test_stages_after_the_last_one_wanted_are_not_run(name: str) -> None:
    backbone, batch = backbone_of(name), images(64, 64)
    runs: list[int] = []
    model: Any = backbone.model
    stage = model.layer4 if hasattr(model, "layer4") else model.blocks[-1]
    stage.register_forward_pre_hook(lambda _module, _inputs: runs.append(1))
    backbone(batch, (1, 3))
    assert not runs
    backbone(batch, (4,))
    assert runs == [1]


@pytest.mark.parametrize("name", NAMES)
def test_reduced_precision_gives_float32(name: str) -> None:
    backbone, batch = backbone_of(name), images(64, 64)
    exact = backbone(batch)
    rough = backbone.to(torch.bfloat16)(batch)
    for one, other in zip(exact.tokens, rough.tokens, strict=True):
        assert other.dtype == torch.float32
        assert torch.nn.functional.cosine_similarity(one.flatten(), other.flatten(), dim=0) > 0.99


@pytest.mark.parametrize(
    "options", [{"attention": (1,)}, {"full_attention": (1,)}, {"keep": torch.zeros(2, 1).long()}]
)
def test_what_a_cnn_does_not_have(options: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="test_resnet is a CNN"):
        backbone_of("test_resnet")(images(64, 64), **options)


def test_sizes_and_layers_that_do_not_exist() -> None:
    backbone = backbone_of("test_resnet")
    with pytest.raises(ConfigError, match="32 divides; got 64×80"):
        backbone(images(64, 80))
    for layer in (0, 5):
        said = f"layer {layer} does not exist: test_resnet has layers 1 to 4"
        with pytest.raises(ConfigError, match=said):
            backbone(images(64, 64), (layer,))

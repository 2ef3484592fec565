"""What a detector costs, against counts by hand."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.modules import module as modules

import blemish
from blemish.bench import costs as efficiency
from blemish.bench.costs import measure
from blemish.detector.predict import Detector
from blemish.errors import ConfigError, ImageError
from blemish.images import decode
from blemish.methods.guided import Guided
from blemish.methods.guided_config import GuidedConfig
from blemish.methods.memory import Knn
from blemish.training.arithmetic import counting

KEYS = ["learnable_parameters", "parameters", "flops"]
KEYS += ["latency_p50_ms", "latency_p95_ms", "artifact_mib"]
# test_vit: width 64, 192 in the middle of a block, patches of 16², and positions for 100 of them
# beside [CLS].
# Norms, qkv, out, feed-forward in and out.
BLOCK = 4 * 64 + 65 * 192 + 65 * 64 + 65 * 192 + 193 * 64
EMBEDDING = (3 * 16 * 16 + 1) * 64 + 64 + 101 * 64  # patches, [CLS], positions
# Multiply-adds of a block for one token, without attention.
LINEAR = 64 * 192 + 64 * 64 + 64 * 192 + 192 * 64


def test_counts_of_a_memory_bank(
    fitted: Callable[..., Detector], picture: Any, tmp_path: Path
) -> None:
    """Pictures of 64²: 16 patches, 17 tokens; four of six blocks are run; the bank has 16 rows for
    each of 24 parts."""
    detector = fitted("knn")
    assert isinstance(detector.method, Knn)
    assert detector.method.bank.shape == (384, 64)
    costs = measure(detector, picture(7), repeats=3)
    assert list(costs) == KEYS
    assert costs["learnable_parameters"] == 0
    assert costs["parameters"] == EMBEDDING + 4 * BLOCK + 384 * 64
    patches = 16 * (3 * 16 * 16) * 64
    # Attention: queries with keys, and weights with values.
    blocks = 4 * (17 * LINEAR + 2 * 17 * 17 * 64)
    search = 16 * 384 * 64
    smoothing = 2 * 3 * 16 * 16  # three taps along each axis of a map of 16²
    assert costs["flops"] == 2 * (patches + blocks + search + smoothing)
    assert 0 < costs["latency_p50_ms"] <= costs["latency_p95_ms"]
    size = detector.save(tmp_path / "part.blemish").stat().st_size
    assert costs["artifact_mib"] == pytest.approx(size / 2**20, abs=6e-4)


def test_what_is_learned_is_counted_by_what_trains(fitted: Callable[..., Detector]) -> None:
    """The decoder of AGPNet: width 32, one layer with one attention, two targets of 64 on a grid of
    4×4."""
    images = torch.zeros(1, 3, 64, 64)
    layer = 2 * 64 + 33 * 96 + 33 * 32 + 33 * 128 + 129 * 32
    decoder = 65 * 32 + (4 + 4) * 16 + layer + 64 + 33 * 128
    assert efficiency._learnable(fitted("agpnet").method, images) == decoder
    guided = fitted("guided").method
    assert not any(parameter.requires_grad for parameter in guided.parameters())
    assert isinstance(guided, Guided)
    assert guided.segmentation_head is not None
    whole, few = copy.copy(guided), copy.copy(guided)
    whole.config, few.config = GuidedConfig(trainable_blocks=None), GuidedConfig(trainable_blocks=1)
    encoder: Any = guided.backbone.model
    unread = [*encoder.blocks[guided.deepest :], encoder.norm]  # by the map of layers 2 and 4
    assert efficiency._learnable(whole, images) == numbers(guided) - numbers(*unread)
    last = encoder.blocks[guided.deepest - 1]
    assert efficiency._learnable(few, images) == numbers(last, guided.segmentation_head)


def numbers(*modules: nn.Module) -> int:
    return sum(each.numel() for module in modules for each in module.parameters())


def test_a_cnn_and_a_product_with_a_vector(small: dict[str, Any], picture: Any) -> None:
    """Weights that lie channels last are recognised; the discriminant of `lda` is a product with a
    vector."""
    good = [picture(seed) for seed in range(4)]
    small |= {"backbone": "test_resnet", "layers": (1, 2)}
    plain = blemish.fit("knn", good, **small)
    bank = plain.method.bank
    assert isinstance(bank, Tensor)
    model = plain.method.backbone.model
    deep = ("layer3", "layer4")
    used = [each for name, each in model.named_parameters() if not name.startswith(deep)]
    statistics = [each for name, each in model.named_buffers() if not name.startswith(deep)]
    floating = [each for each in statistics if each.is_floating_point()]
    wanted = sum(each.numel() for each in (*used, *floating, bank))
    costs = measure(plain, picture(9), repeats=1)
    assert costs["parameters"] == wanted
    convolutions: list[int] = []
    for each in model.modules():
        if isinstance(each, nn.Conv2d):
            each.register_forward_hook(
                lambda conv, _, maps: convolutions.append(maps.numel() * conv.weight[0].numel())
            )
    with torch.inference_mode():
        _, (height, width) = plain.method.embedded(plain.method.see(torch.zeros(1, 3, 64, 64)))
    search = height * width * bank.numel()
    smoothing = 2 * 3 * 16 * 16
    assert len(convolutions) == sum(each.ndim == 4 for each in used)
    assert costs["flops"] == 2 * (sum(convolutions) + search + smoothing)

    with counting() as counter:
        torch.zeros(5, 7) @ torch.zeros(7)
    assert counter.get_total_flops() == 2 * 5 * 7


@pytest.mark.parametrize("fused", [True, False])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("kernel", [SDPBackend.FLASH_ATTENTION, SDPBackend.MATH])
def test_counts_do_not_depend_on_the_kernel_of_attention(
    kernel: SDPBackend,
    precision: str,
    fused: bool,
    fitted: Callable[..., Detector],
    picture: Any,
    tmp_path: Path,
) -> None:
    """As by hand above, whichever kernel the machine chooses, and where timm does without one."""
    path = fitted("knn").save(tmp_path / "part.blemish")
    timm.layers.set_fused_attn(fused)
    try:
        detector = blemish.load(path, device="cpu", precision=precision)
    finally:
        timm.layers.set_fused_attn(True)
    model: Any = detector.method.backbone.model
    assert model.blocks[0].attn.fused_attn == fused
    with sdpa_kernel(kernel):
        flops = measure(detector, picture(7), repeats=1)["flops"]
    blocks = 4 * (17 * LINEAR + 2 * 17 * 17 * 64)
    search_and_smoothing = 16 * 384 * 64 + 2 * 3 * 16 * 16
    assert flops == 2 * (16 * (3 * 16 * 16) * 64 + blocks + search_and_smoothing)


@pytest.mark.parametrize("method", ["knn", "agpnet", "atacnet"])
def test_nothing_changes(fitted: Callable[..., Detector], method: str, picture: Any) -> None:
    detector = fitted(method)
    before = detector.predict(picture(50, defect=True))
    tensors = {name: tensor.clone() for name, tensor in detector.method.state_dict().items()}
    modes = [(each.training, len(each._forward_hooks)) for each in detector.method.modules()]
    gradients = [each.requires_grad for each in detector.method.parameters()]
    random, watched = torch.get_rng_state(), len(modules._global_forward_pre_hooks)
    measure(detector, decode(picture(50)), repeats=1)
    assert torch.equal(torch.get_rng_state(), random)
    assert len(modules._global_forward_pre_hooks) == watched
    after = [(each.training, len(each._forward_hooks)) for each in detector.method.modules()]
    assert after == modes
    assert [each.requires_grad for each in detector.method.parameters()] == gradients
    for name, tensor in detector.method.state_dict().items():
        assert torch.equal(tensor, tensors[name]), name
    again = detector.predict(picture(50, defect=True))
    assert again.score == before.score
    assert np.array_equal(again.anomaly_map, before.anomaly_map)


def test_latency_is_of_single_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter([0.0, 0.010, 0.030, 0.031])
    monkeypatch.setattr(time, "perf_counter", lambda: next(clock))
    runs: list[int] = []
    found = efficiency._milliseconds(lambda: runs.append(1), 3)
    assert found == pytest.approx([10, 20, 1])
    assert len(runs) == 3 + efficiency._WARM_UP


def test_a_picture_may_be_a_path_and_must_be_one(
    fitted: Callable[..., Detector], good_folder: Path, tmp_path: Path
) -> None:
    assert measure(fitted(), good_folder / "000.png", repeats=1)["flops"] > 0
    with pytest.raises(ConfigError, match="repeats"):
        measure(fitted(), good_folder / "000.png", repeats=0)
    (tmp_path / "none.png").touch()
    with pytest.raises(ImageError, match="empty"):
        measure(fitted(), tmp_path / "none.png")

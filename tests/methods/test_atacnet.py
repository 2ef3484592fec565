"""ATAC-Net's looks and scores against its equations written out in loops, in float64."""

from __future__ import annotations

import math
from typing import Any, cast

import numpy as np
import pytest
import torch
from naive import box_of, f64, upsampled
from small_atacnet import SIZE, atacnet, pictures, shake
from torch import nn
from torch.nn import functional as F

from blemish.methods.atacnet import AtacNet, AttentionAugmentation
from blemish.methods.crops import cropped, merged

# Oracles: float64, one picture and one location at a time


def min_max(values: np.ndarray) -> np.ndarray:
    low, high = values.min(), values.max()
    return np.zeros_like(values) if high == low else (values - low) / (high - low)


def top(values: np.ndarray, share: float) -> float:
    count = max(1, round(share * values.size))
    return float(sum(sorted(values.ravel().tolist(), reverse=True)[:count]) / count)


# σ and the looks


@pytest.mark.parametrize(("width", "keys"), [(16, 2), (4, 1)])
def test_the_attention_module_against_loops(width: int, keys: int) -> None:
    attention = AttentionAugmentation(5, width).eval()
    shake(attention)
    for norm in attention.convolutions:
        if isinstance(norm, nn.BatchNorm2d):
            assert norm.running_mean is not None
            assert norm.running_var is not None
            norm.running_mean.uniform_(-0.5, 0.5)
            norm.running_var.uniform_(0.1, 0.5)
    assert attention.query.out_channels == attention.key.out_channels == keys
    features = torch.randn(2, 5, 3, 4)
    state = {name: f64(tensor) for name, tensor in attention.state_dict().items()}
    expected, flat = np.empty((2, width, 3, 4)), []
    for picture in range(2):
        x = f64(features[picture])
        for conv, after in ((0, 1), (3, 4)):
            weight = state[f"convolutions.{conv}.weight"]
            padded = np.pad(x, ((0, 0), (1, 1), (1, 1)))
            x = np.empty((width, 3, 4))
            for row, column in np.ndindex(3, 4):
                around = padded[:, row : row + 3, column : column + 3]
                x[:, row, column] = [(kernel * around).sum() for kernel in weight]
            mean, variance, scale, shift = (
                state[f"convolutions.{after}.{name}"][:, None, None]
                for name in ("running_mean", "running_var", "weight", "bias")
            )
            x = np.maximum(0, (x - mean) / np.sqrt(variance + 1e-5) * scale + shift)
        places = x.reshape(width, 12).T
        queries, known, values = (
            places @ state[f"{name}.weight"][:, :, 0, 0].T + state[f"{name}.bias"]
            for name in ("query", "key", "value")
        )
        for place in range(12):
            weights = np.array([math.exp(queries[place] @ key) for key in known])
            weights /= weights.sum()
            flat.append(weights.max() * 12)
            mixed = sum(weight * value for weight, value in zip(weights, values, strict=True))
            expected[picture, :, place // 4, place % 4] = places[place] + 0.7 * mixed
    assert max(flat) > 1.2  # attention is not flat, or any would do
    np.testing.assert_allclose(f64(attention(features)), expected, rtol=1e-4, atol=1e-4)


def test_attention_starts_as_the_convolutions_alone() -> None:
    attention = AttentionAugmentation(6, 16)
    features = torch.randn(2, 6, 3, 3)
    assert torch.equal(attention(features), attention.convolutions(features))


@pytest.mark.parametrize(
    ("settings", "grid"),
    [
        ({}, (4, 3)),
        ({"backbone": "test_vit", "active": 0.9}, (8, 6)),
        ({"layers": (2, 3), "active": 0.95, "top_fraction": 0.001}, (16, 12)),
        ({"active": 0.9, "padding": 0.0, "top_fraction": 0.4}, (4, 3)),
    ],
)
def test_the_score_against_loops(settings: dict[str, Any], grid: tuple[int, int]) -> None:
    method = atacnet(**settings)
    config, images = method.config, pictures(4)
    look, scores = method.look(images, method.see(images)), method.score(images)
    assert look.first.shape == (4, *grid)
    assert method.mapper.bias is not None
    weight, bias = f64(method.mapper.weight)[0, :, 0, 0], f64(method.mapper.bias)[0]
    smaller, offset = 0, method.backbone.offset(grid, images)
    assert (offset != 0) == (method.config.backbone == "test_resnet")
    for picture in range(4):
        features, _ = method.glance(method.see(images[picture : picture + 1]))
        attended = f64(features[0])
        first = np.einsum("chw,c->hw", attended, weight) + bias
        saliency = min_max(sum(attended) / len(attended))
        box = box_of(saliency, config.active, config.padding, offset)
        smaller += box[2] * box[3] < 0.9
        crop = cropped(images[picture : picture + 1], torch.tensor([box]))
        closer, _ = method.glance(method.see(crop))
        second = np.einsum("chw,c->hw", f64(closer[0]), weight) + bias
        expected = (top(first, config.top_fraction) + top(second, config.top_fraction)) / 2
        np.testing.assert_allclose(f64(look.first[picture]), first, rtol=1e-3, atol=1e-4)
        assert scores.boxes is not None
        assert scores.saliency is not None
        np.testing.assert_allclose(f64(scores.boxes[picture]), np.array(box), atol=1e-6)
        assert scores.image[picture].item() == pytest.approx(expected, rel=1e-3, abs=1e-3)
        shown = f64(scores.saliency[picture])
        np.testing.assert_allclose(shown, upsampled(saliency, *SIZE, offset), atol=1e-3)
        assert look.second is not None
        map_ = merged(look.first, look.second, torch.tensor([box] * 4), SIZE, offset)[picture]
        np.testing.assert_allclose(f64(scores.maps[picture]), f64(map_), atol=1e-3)
    assert smaller > 0  # something is cropped, or one look would do
    assert scores.image.dtype == scores.maps.dtype == torch.float32
    assert look.score.std() > 0.01


def test_where_nothing_stands_out_the_crop_is_the_picture() -> None:
    method = atacnet()
    assert method.attention is not None
    with torch.no_grad():
        norm = method.attention.convolutions[4]
        assert isinstance(norm, nn.BatchNorm2d)
        norm.weight.zero_()
        norm.bias.uniform_(0.1, 1)
    look = method.look(pictures(), method.see(pictures()))
    assert look.boxes is not None
    assert look.second is not None
    assert look.saliency is not None
    assert look.boxes.tolist() == [[0, 0, 1, 1]] * 2
    assert look.saliency.max() == 0
    torch.testing.assert_close(look.second, look.first)


def test_the_baselines_look_once() -> None:
    for network in ("devnet", "classifier"):
        method = atacnet(network=network)
        assert method.attention is None
        scores = method.score(pictures())
        assert scores.saliency is None
        assert scores.boxes is None
        first = f64(method.look(pictures(), method.see(pictures())).first)
        if network == "devnet":
            expected = [top(each, 0.1) for each in first]
            np.testing.assert_allclose(f64(scores.image), np.array(expected), rtol=1e-4, atol=1e-5)
        offset = method.backbone.offset(first.shape[1:], pictures())
        shown = upsampled(first[1], *SIZE, offset)
        np.testing.assert_allclose(f64(scores.maps[1]), shown, atol=1e-4)


def perceptron(method: AtacNet) -> tuple[nn.Linear, nn.Linear]:
    """The layers of the classifier."""
    hidden, _, last = cast(nn.Sequential, method.mapper)
    return cast(nn.Linear, hidden), cast(nn.Linear, last)


def test_the_classifier_is_a_perceptron_on_the_mean_feature() -> None:
    method = atacnet(network="classifier", attention_dim=12)
    hidden, last = perceptron(method)
    images = pictures(3)
    features = f64(method._extracted(method.see(images)))
    scores, off = f64(method.score(images).image), 0
    for picture in range(3):
        mean = [float(channel.mean()) for channel in features[picture]]
        logit = float(f64(last.bias)[0])
        for unit in range(12):
            found = float(f64(hidden.weight)[unit] @ mean + f64(hidden.bias)[unit])
            off += found <= 0
            logit += float(f64(last.weight)[0, unit]) * max(0.0, found)
        assert scores[picture] == pytest.approx(logit, rel=1e-4, abs=1e-5)
    assert 0 < off < 36  # a linear layer would not do


@pytest.mark.parametrize("backbone", ["test_resnet", "test_vit"])
def test_the_heatmap_of_the_classifier_is_its_grad_cam(backbone: str) -> None:
    method = atacnet(network="classifier", backbone=backbone)
    images = pictures(3)
    with torch.no_grad():
        features = method._extracted(method.see(images))
    features.requires_grad_(True)
    hidden, last = perceptron(method)
    logits = last(F.relu(hidden(F.adaptive_avg_pool2d(features, 1).flatten(1))))
    (gradient,) = torch.autograd.grad(logits.sum(), features)
    weights = gradient.mean(dim=(2, 3), keepdim=True)
    locations = features.shape[2] * features.shape[3]
    expected = locations * F.relu((weights * features).sum(1)).detach()
    assert expected.max() > 0
    with torch.inference_mode():  # as a detector scores
        scores = method.score(images)
    torch.testing.assert_close(scores.image, logits[:, 0].detach(), rtol=1e-4, atol=1e-4)
    for picture in range(3):
        offset = method.backbone.offset((features.shape[2], features.shape[3]), images)
        shown = upsampled(f64(expected[picture]), *SIZE, offset)
        np.testing.assert_allclose(f64(scores.maps[picture]), shown, atol=1e-4)


def test_bf16_is_for_computing_only() -> None:
    method = atacnet()
    exact = method.score(pictures())
    method.set_precision(torch.bfloat16)
    rough = method.score(pictures())
    assert method.precision == torch.bfloat16
    assert {parameter.dtype for parameter in method.parameters()} == {torch.float32}
    assert rough.image.dtype == rough.maps.dtype == torch.float32
    assert not torch.equal(rough.image, exact.image)
    bits = rough.image.view(torch.int32) & 0xFFFF
    assert bits.any()  # the score itself is not rounded


def test_embeddings() -> None:
    for network, width in (("atacnet", 16), ("devnet", None)):
        method = atacnet(network=network)
        features, _ = method.glance(method.see(pictures(3)))
        found = method.embedding(pictures(3))
        assert found.shape == (3, width or features.shape[1])
        expected = f64(features).mean(axis=(2, 3))
        np.testing.assert_allclose(f64(found), expected, rtol=1e-4, atol=1e-5)

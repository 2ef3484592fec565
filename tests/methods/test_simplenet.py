"""SimpleNet against its equations written out in float64, one feature at a time."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from naive import f64, layer_normed
from torch import Tensor

from blemish.area import Area
from blemish.backbones import build
from blemish.methods.learner import TrainingBatch
from blemish.methods.simplenet import SimpleNet, SimpleNetConfig

GRID = (4, 3)
NAMES = ("adaptor", "discriminator.inward", "discriminator.norm", "discriminator.outward")
Weights = dict[str, np.ndarray]


def pictures(count: int = 2, seed: int = 0) -> Tensor:
    return torch.randn(count, 3, 64, 48, generator=torch.Generator().manual_seed(seed))


def simplenet(**settings: Any) -> SimpleNet:
    """The paper's recipe, small, with norms and statistics that are not those of the start."""
    small = {"backbone": "test_vit", "image_size": (64, 48), "layers": (2, 4), "hidden": 10}
    config = replace(SimpleNetConfig.paper(), **{**small, **settings})
    method = SimpleNet(config, build(config.backbone, weights="random", seed=3)).eval()
    norm = method.discriminator.norm
    with torch.no_grad():
        for values in (norm.weight, norm.running_var):
            assert values is not None
            values.copy_(torch.rand(len(values)) + 0.5)
        for values in (norm.bias, norm.running_mean):
            assert values is not None
            values.copy_(torch.randn(len(values)))
    return method


def batch_of(method: SimpleNet, count: int = 2) -> TrainingBatch:
    return TrainingBatch(None, method.encode(pictures(count)))


def weights_of(method: SimpleNet) -> Weights:
    named = {name: f64(each) for name, each in method.state_dict().items()}
    return {name: each for name, each in named.items() if not name.startswith("backbone.")}


def embedded(method: SimpleNet, images: Tensor) -> np.ndarray:
    """Eq. 1-3 on a ViT: the mean of normalised layers, then of the places around: B N D."""
    tokens = [f64(layer) for layer in method.backbone(images, (2, 4)).tokens]
    mean = np.mean([np.apply_along_axis(layer_normed, 2, layer) for layer in tokens], axis=0)
    mean = mean.reshape(len(images), *GRID, -1)
    found = np.empty_like(mean)
    for picture, row, column in np.ndindex(mean.shape[:3]):
        around = [
            mean[picture, y, x]
            for y in range(max(0, row - 1), min(GRID[0], row + 2))
            for x in range(max(0, column - 1), min(GRID[1], column + 2))
        ]
        found[picture, row, column] = sum(around) / len(around)
    return found.reshape(len(images), 12, -1)


def discriminated(
    weights: Weights, features: np.ndarray, mean: np.ndarray, variance: np.ndarray
) -> np.ndarray:
    """D of n D, with these statistics of what goes into the norm."""
    norm = "discriminator.norm."
    found = []
    for feature in features:
        inner = weights["discriminator.inward.weight"] @ feature
        inner = (inner - mean) / np.sqrt(variance + 1e-5)
        inner = inner * weights[norm + "weight"] + weights[norm + "bias"]
        inner = np.array([value if value > 0 else 0.2 * value for value in inner])
        found.append(float(weights["discriminator.outward.weight"][0] @ inner))
    return np.array(found)


def noise_of(shape: tuple[int, ...]) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(5))


def told_apart(method: SimpleNet, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """D of adapted features and of the noisy ones, with the batch's own statistics."""
    weights, settings = weights_of(method), method.config
    adapted = rows @ weights["adaptor.weight"].T
    strength: Any = settings.noise
    if settings.noise_unit == "std":
        centred = adapted - adapted.sum(0) / len(adapted)
        strength = settings.noise * np.sqrt((centred**2).sum(0) / len(adapted))
    noisy = adapted + strength * f64(noise_of(adapted.shape))
    both = np.concatenate([adapted, noisy])
    inner = both @ weights["discriminator.inward.weight"].T
    mean = inner.sum(0) / len(inner)
    variance = ((inner - mean) ** 2).sum(0) / len(inner)
    given = discriminated(weights, both, mean, variance)
    return given[: len(rows)], given[len(rows) :]


@pytest.fixture
def _fixed_noise(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "randn_like", lambda like: noise_of(tuple(like.shape)))


def test_the_map_is_the_negative_of_the_discriminator() -> None:
    method = simplenet()
    method.end_training(1)
    weights = weights_of(method)
    expected = np.empty((3, 12))
    for picture, rows in enumerate(embedded(method, pictures(3))):
        expected[picture] = -discriminated(
            weights,
            rows @ weights["adaptor.weight"].T,
            weights["discriminator.norm.running_mean"],
            weights["discriminator.norm.running_var"],
        )
    got = method.anomaly_map(method.see(pictures(3)), pictures(3))
    assert got.shape == (3, *GRID)
    assert got.dtype == torch.float32
    np.testing.assert_allclose(f64(got).reshape(3, 12), expected, rtol=1e-3, atol=1e-5)
    scores = method.score(pictures(3))
    assert scores.image.tolist() == scores.maps.flatten(1).amax(1).tolist()  # top_fraction 0


@pytest.mark.usefixtures("_fixed_noise")
@pytest.mark.parametrize("margin", [0.5, 2.0])
@pytest.mark.parametrize(("noise", "unit"), [(0.3, "absolute"), (0.4, "std")])
def test_the_loss_is_the_truncated_l1_distance(noise: float, unit: str, margin: float) -> None:
    method = simplenet(noise=noise, noise_unit=unit, margin=margin)
    batch = batch_of(method)
    method.train()
    loss = method.training_step(batch, 0.5).item()
    rows = embedded(method, pictures()).reshape(24, -1)
    normal, noisy = told_apart(method, rows)
    expected = sum(max(0.0, margin - each) for each in normal) / 24
    expected += sum(max(0.0, margin + each) for each in noisy) / 24
    assert loss == pytest.approx(expected, rel=1e-3)
    if margin == 0.5:
        assert min(normal) < margin < max(normal)  # that it is truncated is seen
        assert min(noisy) < -margin < max(noisy)


def gradients_of(method: SimpleNet, rows: np.ndarray) -> Weights:
    """The loss's gradients by hand, the rule of the chain for one layer after the other."""
    weights, margin = weights_of(method), method.config.margin
    inward, outward = (weights[f"discriminator.{each}.weight"] for each in ("inward", "outward"))
    scale, shift = (weights[f"discriminator.norm.{each}"] for each in ("weight", "bias"))
    adapted = rows @ weights["adaptor.weight"].T
    both = np.concatenate([adapted, adapted + method.config.noise * f64(noise_of(adapted.shape))])
    inner = both @ inward.T
    spread = np.sqrt(inner.var(0) + 1e-5)
    normed = (inner - inner.mean(0)) / spread
    bent = normed * scale + shift
    slope = np.where(bent > 0, 1.0, 0.2)
    given = (bent * slope) @ outward[0]
    half = len(rows)
    of_given = np.where(
        np.arange(2 * half) < half, -1.0 * (given < margin), 1.0 * (given > -margin)
    )
    of_given /= half
    of_bent = of_given[:, None] * outward * slope
    of_normed = of_bent * scale
    of_inner = of_normed - of_normed.mean(0) - normed * (of_normed * normed).mean(0)
    of_inner /= spread
    of_both = of_inner @ inward
    return {
        "adaptor.weight": (of_both[:half] + of_both[half:]).T @ rows,
        "discriminator.inward.weight": of_inner.T @ both,
        "discriminator.norm.weight": (of_bent * normed).sum(0),
        "discriminator.norm.bias": of_bent.sum(0),
        "discriminator.outward.weight": (of_given @ (bent * slope))[None],
    }


@pytest.mark.usefixtures("_fixed_noise")
def test_the_parameters_after_one_step() -> None:
    """Adam by hand: at the first step both averages, corrected for their start at 0, are the
    gradient and its square, so that the step is its sign.
    """
    method = simplenet(noise=0.5, learning_rate=2e-3, discriminator_rate=3e-3, weight_decay=0.01)
    batch = batch_of(method)
    rows = embedded(method, pictures()).reshape(24, -1)
    wanted, before = gradients_of(method, rows), weights_of(method)
    inner = np.concatenate([rows, rows]) @ before["adaptor.weight"].T
    inner[24:] += 0.5 * f64(noise_of((24, 64)))
    inner = inner @ before["discriminator.inward.weight"].T
    method.train()
    optimizer = method.optimizer()
    method.training_step(batch, 0.5).backward()
    optimizer.step()
    learned = dict(method.named_parameters())
    held = [each for group in optimizer.param_groups for each in group["params"]]
    assert {id(each) for each in held} == {id(learned[name]) for name in wanted}
    for name, gradient in wanted.items():
        got = learned[name]
        np.testing.assert_allclose(f64(got.grad), gradient, rtol=1e-3, atol=1e-5)  # type: ignore[arg-type]
        rate = 2e-3 if name.startswith("adaptor") else 3e-3
        decayed = gradient + 0.01 * before[name]
        stepped = before[name] - rate * decayed / (np.abs(decayed) + 1e-8)
        certain = np.abs(decayed) > 1e-4  # a sign is not to be told in float32 about 0
        assert certain.mean() > 0.9
        np.testing.assert_allclose(f64(got)[certain], stepped[certain], atol=1e-6)
    norm, after = "discriminator.norm.", weights_of(method)
    mean = 0.9 * before[norm + "running_mean"] + 0.1 * inner.mean(0)
    np.testing.assert_allclose(after[norm + "running_mean"], mean, rtol=1e-4, atol=1e-5)
    variance = 0.9 * before[norm + "running_var"] + 0.1 * inner.var(0, ddof=1)
    np.testing.assert_allclose(after[norm + "running_var"], variance, rtol=1e-4)


def test_growing_the_features_does_not_help_against_noise_in_their_own_unit() -> None:
    apart = {}
    for unit in ("std", "absolute"):
        for factor in (1e2, 1e4):  # beside which the ε of batch norm is nothing
            torch.manual_seed(0)
            method = simplenet(noise_unit=unit, noise=0.2).train()
            batch = batch_of(method)
            with torch.no_grad():
                method.adaptor.weight.mul_(factor)
                normal, noisy = method._told_apart(batch)
            apart[unit, factor] = float((normal - noisy).abs().mean())
    assert apart["std", 1e4] == pytest.approx(apart["std", 1e2], rel=1e-2)
    assert apart["absolute", 1e4] < 0.1 * apart["absolute", 1e2]


def test_the_noise_is_gaussian_and_anew_each_time() -> None:
    method = simplenet(noise=0.25).train()
    seen: list[Tensor] = []
    method.discriminator.register_forward_pre_hook(lambda _module, given: seen.append(given[0]))
    batch = batch_of(method, 32)
    for _ in range(2):
        method._told_apart(batch)
    one, other = ((each[384:] - each[:384]).flatten().detach() / 0.25 for each in seen)
    error = 1 / len(one) ** 0.5
    assert abs(float(one.mean())) < 5 * error
    assert abs(float(one.var()) - 1) < 5 * 2**0.5 * error
    assert abs(float(torch.corrcoef(torch.stack([one, other]))[0, 1])) < 5 * error


def test_nothing_is_learned_from_outside_the_area() -> None:
    method = simplenet(smoothing=0.0)
    mask = np.zeros((1024, 1024), np.bool_)
    mask[:100, :100] = True
    whole = method.encode(pictures())
    assert set(whole) == {"features"}
    method.set_area(Area.of(mask))
    encoded = method.encode(pictures())
    known = encoded["known"].reshape(2, *GRID)
    assert known[:, 0, 0].all()
    assert not known[:, -1, -1].any()
    other = encoded["features"].clone()
    other[~encoded["known"]] = 1e6
    method.train()
    losses = []
    for features in (encoded["features"], other):
        torch.manual_seed(0)
        losses.append(
            method.training_step(TrainingBatch(None, {**encoded, "features": features}), 0.5).item()
        )
    assert losses[0] == losses[1]


def test_processes_agree_on_the_statistics(monkeypatch: pytest.MonkeyPatch) -> None:
    method, norm = simplenet(), "discriminator.norm."
    before = weights_of(method)
    monkeypatch.setattr("blemish.methods.learner.mean_over_processes", lambda each: 2 * each)
    method.after_step(1, 10)
    for name, each in weights_of(method).items():
        factor = 2 if name in (norm + "running_mean", norm + "running_var") else 1
        np.testing.assert_array_equal(each, before[name] * factor)


def test_findings_change_nothing() -> None:
    method = simplenet(noise=3.0).train()
    before = {name: each.clone() for name, each in method.state_dict().items()}
    found = method.findings(batch_of(method, 4))
    assert set(found) == {"normal_told", "noisy_told"}
    assert all(0 <= share <= 1 for share in found.values())
    assert method.training
    assert all(torch.equal(each, before[name]) for name, each in method.state_dict().items())


def test_noise_is_learned_to_be_told_from_normal_features() -> None:
    method = simplenet(
        noise=0.5, noise_unit="std", hidden=64, learning_rate=1e-3, discriminator_rate=1e-2
    ).train()
    batch = batch_of(method, 16)
    method.start_training(batch)
    before = method.findings(batch)
    optimizer = method.optimizer()
    for step in range(1, 151):
        loss = method.training_step(batch, step / 150)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        method.after_step(step, 150)
    after = method.findings(batch)
    assert after["normal_told"] > max(0.8, before["normal_told"])
    assert after["noisy_told"] > max(0.8, before["noisy_told"])


@pytest.mark.parametrize("backbone", ["test_vit", "test_resnet"])
def test_the_paper_recipe(backbone: str) -> None:
    paper = SimpleNetConfig.paper()
    assert (paper.backbone, paper.layers, paper.image_size) == ("wide_resnet50_2", (2, 3), (224,))
    assert (paper.epochs, paper.train_batch_size, paper.hidden) == (160, 4, 1024)
    assert (paper.noise, paper.noise_unit, paper.margin) == (0.015, "absolute", 0.5)
    assert (paper.learning_rate, paper.discriminator_rate) == (1e-4, 2e-4)
    assert paper.weight_decay == 1e-5
    method = simplenet(backbone=backbone, image_size=(64, 96))
    assert math.isinf(method.clip_norm)
    width = 64 if backbone == "test_vit" else 48 + 96
    assert method.adaptor.weight.shape == (width, width)
    # Xavier: the variance is 2 / (in + out).
    assert method.adaptor.weight.var().item() == pytest.approx(1 / width, rel=0.1)

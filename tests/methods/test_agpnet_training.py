"""AGPNet's noise, losses and scores, and two ways in which it goes wrong unnoticed."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from naive import f64, layer_normed, upsampled
from small_agpnet import (
    GRID,
    HEIGHT,
    TINY,
    WIDTH,
    agpnet,
    backbone_of,
    batch_of,
    decoded,
    distances,
    fitted,
    min_max,
    pictures,
    received,
    start,
    train,
)
from torch import Tensor

from blemish.backbones import build
from blemish.methods.agpnet import AGPNet, AGPNetConfig
from blemish.methods.guidance import normalise
from blemish.methods.learner import TrainingBatch

# Eq. 4 and 5: noise on features


def test_the_intensity_rises_as_published() -> None:
    points = [agpnet().intensity(epoch / 500) for epoch in (0, 100, 200, 400, 450, 499)]
    assert points == pytest.approx([0, 0.25, 0.5, 1, 1, 1])
    assert agpnet(noise_until=0.0).intensity(0) == 1
    assert agpnet(noise_low=0.5, noise_high=1.5, noise_until=0.5).intensity(0.25) == 1


def weights_of(method: AGPNet, features: Tensor, guide: Tensor, progress: float) -> np.ndarray:
    """What the noise at each location was multiplied by: B N. Every draw is taken to be 1."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch, "randn_like", torch.ones_like)
        added = f64(method._perturbed(features, guide, progress)) - f64(features)
    assert np.ptp(added, axis=2).max() < 1e-5  # alike in every channel
    return np.asarray(added.mean(axis=2))


@pytest.mark.parametrize("noise_unit", ["std", "absolute"])
@pytest.mark.parametrize("kind", ["random", "attention", "shuffled"])
def test_where_the_noise_goes(kind: str, noise_unit: str) -> None:
    method = agpnet(feature_noise=kind, beta=0.25, noise_unit=noise_unit)
    features = torch.randn(4, 12, 64) * torch.tensor([0.5, 1, 2, 4])[:, None, None] + 1
    guide = torch.ones(4, 12) if kind == "random" else normalise(torch.rand(4, 12))
    got = weights_of(method, features, torch.zeros(4, 12) if kind == "random" else guide, 0.6)
    unit = features.std(dim=(1, 2), keepdim=True)[..., 0] if noise_unit == "std" else 1.0
    expected = f64(unit * (0.75 * guide + 0.25))
    if kind == "shuffled":
        assert not np.isclose(got, expected, rtol=1e-3).all(1).any()
        orders = {
            tuple(row.argsort()[was.argsort()]) for row, was in zip(got, f64(guide), strict=True)
        }
        assert len(orders) == 4  # each picture has its own
        got, expected = np.sort(got), np.sort(expected)
    np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("settings", "progress"),
    [({"feature_noise": "none"}, 0.9), ({}, 0.0), ({"feature_noise": "none", "beta": 0.5}, 0.9)],
)
def test_features_as_they_are_without_noise(settings: dict[str, Any], progress: float) -> None:
    features = torch.randn(2, 12, 64)
    noisy = agpnet(**settings)._perturbed(features, torch.ones(2, 12), progress)
    assert torch.equal(noisy, features)


def test_the_noise_is_gaussian_and_anew_each_time() -> None:
    method = agpnet(feature_noise="random")
    features = torch.randn(8, 48, 64) * 3
    unit, guide = features.std(dim=(1, 2), keepdim=True), torch.zeros(8, 48)
    drawn, again = (
        ((method._perturbed(features, guide, 0.8) - features) / unit).flatten() for _ in range(2)
    )
    error = 1 / len(drawn) ** 0.5
    assert abs(float(drawn.mean())) < 5 * error
    assert abs(float(drawn.var()) - 1) < 5 * 2**0.5 * error
    assert abs(float(drawn.pow(4).mean()) - 3) < 5 * 96**0.5 * error
    assert abs(float(torch.corrcoef(torch.stack([drawn, again]))[0, 1])) < 5 * error


@pytest.mark.parametrize("kind", ["attention", "shuffled"])
def test_the_perturbation_lands_where_attention_is(kind: str) -> None:
    """Against decorative attention: the guide of real encodings, and where F' departs from F."""
    method = agpnet(feature_noise=kind, image_size=(128, 128))
    start(method)
    encoded = method.encode(pictures(16, height=128, width=128))
    guide = method._guide(encoded["targets"], encoded.get("prior"))
    assert guide.std(1).min() > 0.1  # nearly uniform guidance would be a bug
    features = encoded["targets"].sum(1)
    moved = (method._perturbed(features, guide, 0.9) - features).abs().mean(2)
    pairs = zip(moved, guide, strict=True)
    correlations = [float(torch.corrcoef(torch.stack(pair))[0, 1]) for pair in pairs]
    if kind == "attention":
        assert min(correlations) > 0.9
    else:
        assert abs(statistics.mean(correlations)) < 5 / math.sqrt(16 * 63)


# Noise on pictures


def test_the_covered_share_rises_as_published() -> None:
    points = [agpnet().covered(epoch / 500) for epoch in (0, 50, 100, 250, 400, 499)]
    assert points == pytest.approx([0.6, 0.6, 0.6, 0.8, 1, 1])
    at_once = agpnet(image_from=0.5, noise_until=0.5)
    assert [at_once.covered(each) for each in (0.49, 0.5, 0.9)] == pytest.approx([0.6, 1, 1])


@pytest.mark.parametrize(("progress", "share"), [(0.0, 0.6), (0.37, 0.6 + 0.4 * 0.17 / 0.6)])
def test_image_noise_covers_the_most_attended_pixels(progress: float, share: float) -> None:
    method = agpnet(image_noise="attention")
    images, guide = pictures(3), normalise(torch.rand(3, 12))
    moved = f64(method._noisy_images(images, guide, progress)) != f64(images)
    for picture in range(3):
        changed = moved[picture].all(0)
        np.testing.assert_array_equal(changed, moved[picture].any(0))  # all channels, or none
        assert changed.sum() == round(share * HEIGHT * WIDTH)
        attended = upsampled(f64(guide[picture]).reshape(GRID), HEIGHT, WIDTH)
        assert attended[changed].min() >= attended[~changed].max() - 1e-6


def test_image_noise_has_unit_deviation_and_ends_everywhere() -> None:
    images, guide = pictures(4), normalise(torch.rand(4, 12))
    added = agpnet(image_noise="attention")._noisy_images(images, guide, 0.8) - images
    assert int((added == 0).any(1).sum()) == 0
    assert abs(float(added.mean())) < 5 / added.numel() ** 0.5
    assert abs(float(added.var()) - 1) < 5 * (2 / added.numel()) ** 0.5
    assert abs(float((added[:, 0] * added[:, 1]).mean())) < 5 / added[:, 0].numel() ** 0.5


@pytest.mark.parametrize("kind", ["random", "shuffled"])
def test_image_noise_elsewhere(kind: str) -> None:
    images, guide = pictures(16), torch.linspace(0, 1, 12).expand(16, 12)
    noisy = agpnet(image_noise=kind)._noisy_images(images, guide, 0.0)
    changed = (noisy != images).any(1)
    assert changed.flatten(1).sum(1).tolist() == [round(0.6 * HEIGHT * WIDTH)] * 16
    # The guide is the same, the places are not.
    assert len({tuple(row) for row in changed.flatten(1).tolist()}) == 16
    lower_half = changed[:, HEIGHT // 2 :].float().mean()
    assert 0.4 < float(lower_half) < 0.8  # by attention it would be 1


# Eq. 6 and 7: the loss


def fixed_noise(like: Tensor) -> Tensor:
    return torch.randn(like.shape, generator=torch.Generator().manual_seed(like.shape[-1]))


def test_the_loss_is_the_mean_of_its_two_terms(monkeypatch: pytest.MonkeyPatch) -> None:
    method = agpnet()
    images, noisy, progress = pictures(), pictures(seed=5), 0.4
    batch = batch_of(method, images)
    asked: list[Any] = []
    monkeypatch.setattr(torch, "randn_like", fixed_noise)
    monkeypatch.setattr(method, "_noisy_images", lambda *given: asked.extend(given) or noisy)
    start(method)
    loss = method.training_step(batch, progress)

    def summed(of: Tensor) -> np.ndarray:
        tokens = [f64(layer) for layer in method.backbone(of, (2, 4)).tokens]
        return np.sum([np.apply_along_axis(layer_normed, 2, each) for each in tokens], axis=0)

    clean = summed(images)
    parts = f64(batch.features["prior"]), received(decoded(method, clean)[1])
    guide = np.stack([min_max(min_max(a) + min_max(b)) for a, b in zip(*parts, strict=True)])
    noise = f64(fixed_noise(torch.empty(2, 12, 64)))
    terms = []
    for seen in (clean, summed(noisy)):
        unit = seen.std(axis=(1, 2), ddof=1)[:, None, None]
        given = decoded(method, seen + 0.5 * guide[..., None] * unit * noise)[0][:, 0]
        terms.append(np.square(given - clean).sum() / 24)
    assert abs(terms[0] - terms[1]) > 1e-3 * terms[0]  # so that either alone would be seen
    assert loss.item() == pytest.approx((terms[0] + terms[1]) / 2, rel=1e-4)
    assert asked[0] is images
    assert asked[2] == progress
    np.testing.assert_allclose(f64(asked[1]), guide, atol=1e-3)


@pytest.mark.parametrize("noise", [("none", "none"), ("none", "random"), ("random", "none")])
def test_single_terms(noise: tuple[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    method = agpnet(feature_noise=noise[0], image_noise=noise[1])
    assert method.needs_images == (noise[1] != "none")
    monkeypatch.setattr(torch, "randn_like", torch.zeros_like)
    batch = batch_of(method, pictures())
    assert set(batch.features) == {"targets"}
    start(method)
    clean = f64(batch.features["targets"])
    expected = np.square(decoded(method, clean[:, 0])[0] - clean).sum(-1).mean()
    assert method.training_step(batch, 0.9).item() == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("progress", [0.0, 0.05, 0.1, 0.9])
@pytest.mark.parametrize(("loss", "spared"), [("l2", 0.0), ("cosine", 0.0), ("cosine", 0.9)])
def test_the_losses_and_their_gradients(loss: str, spared: float, progress: float) -> None:
    method = agpnet(loss=loss, spared=spared, groups=2)
    given, targets = torch.randn(2, 2, 12, 16, requires_grad=True), torch.randn(2, 2, 12, 16)
    value = method.loss(given, targets, progress)
    value.backward()
    apart = distances(f64(given), f64(targets), loss)
    ordered = np.sort(apart.ravel())
    # 0.45 and 0.9 of 48 distances are 21 and 43 whole ones.
    easy = {0.0: 0, 0.05: 21}.get(progress, 43) if spared else 0
    expected, gradient = 0.0, np.empty(given.shape)
    for place in np.ndindex(2, 2, 12):
        g, t = f64(given)[place], f64(targets)[place]
        if loss == "l2":
            expected += apart[place] ** 2 / 48  # over the places, not the channels
            gradient[place] = 2 * (g - t) / 48
        else:
            weight = 0.1 if easy and apart[place] <= ordered[easy - 1] else 1.0
            expected += weight * apart[place] / 48
            size, cosine = math.sqrt(g @ g), 1 - apart[place]
            gradient[place] = -weight / 48 * (t / math.sqrt(t @ t) - cosine * g / size) / size
    assert value.item() == pytest.approx(expected, rel=1e-5)
    assert given.grad is not None
    np.testing.assert_allclose(f64(given.grad), gradient, rtol=1e-3, atol=1e-7)


def test_the_parameters_after_one_step() -> None:
    """The last projection, linear in its weights: eq. 7's gradient by hand, then AdamW by hand."""
    method = agpnet(feature_noise="none", image_noise="none", learning_rate=3e-3, weight_decay=0.1)
    batch = batch_of(method, pictures())
    targets, last = f64(batch.features["targets"])[:, 0], method.decoder.outward
    given, _, hidden = decoded(method, targets)
    error = 2 * (given[:, 0] - targets) / 24
    gradients = np.einsum("bnd,bnw->dw", error, hidden), error.sum((0, 1))
    before = f64(last.weight), f64(last.bias)
    optimizer = method.optimizer()
    method.training_step(batch, 0.5).backward()
    optimizer.step()
    for got, value, gradient in zip((last.weight, last.bias), before, gradients, strict=True):
        np.testing.assert_allclose(f64(got.grad), gradient, rtol=1e-3, atol=1e-3)
        # At the first step both averages, corrected for their start at 0, are the gradient and its
        # square. So the step is its sign: not to be told in float32 where it is about 0.
        stepped = value * (1 - 3e-3 * 0.1) - 3e-3 * gradient / (np.abs(gradient) + 1e-8)
        certain = np.abs(gradient) > 1e-2
        assert certain.mean() > 0.9
        np.testing.assert_allclose(f64(got)[certain], stepped[certain], atol=1e-6)


@pytest.mark.parametrize(("backbone", "channels"), [("test_vit", 64), ("test_resnet", 48 + 192)])
def test_the_limit_of_the_gradients_grows_with_the_loss(backbone: str, channels: int) -> None:
    """A loss that adds up the channels has gradients so many times as large as a mean has."""
    size: dict[str, Any] = {"backbone": backbone, "image_size": (64, 96), "layers": (2, 3)}
    assert agpnet(**size).clip_norm == channels
    assert agpnet(**size, loss="cosine").clip_norm == 1


# Eq. 8: the map and the score


@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("loss", ["l2", "cosine"])
def test_the_map_is_what_is_not_given_back(loss: str, groups: int) -> None:
    method = fitted(loss=loss, groups=groups)
    got = method.anomaly_map(method.see(pictures(3)), pictures(3))
    targets = f64(method.encode(pictures(3))["targets"])
    expected = distances(decoded(method, targets.sum(1))[0], targets, loss).mean(axis=1)
    assert got.dtype == torch.float32
    np.testing.assert_allclose(f64(got), expected.reshape(3, *GRID), rtol=1e-4)


@pytest.mark.parametrize(("fraction", "sides"), [(0.25, (4, 4)), (0.9, (14, 12)), (0.01, (1, 1))])
def test_the_score_is_the_maximum_of_the_averaged_map(
    fraction: float, sides: tuple[int, int]
) -> None:
    method = fitted(score_window=fraction)
    scores, raw = (
        method.score(pictures()),
        f64(method.anomaly_map(method.see(pictures()), pictures())),
    )
    for picture in range(2):
        plane = upsampled(raw[picture], HEIGHT // 4, WIDTH // 4)
        np.testing.assert_allclose(f64(scores.maps[picture]), plane, rtol=1e-4)
        means = np.lib.stride_tricks.sliding_window_view(plane, sides).mean((2, 3))
        assert scores.image[picture].item() == pytest.approx(means.max(), rel=1e-4)


def test_smoothing_changes_the_map_and_not_the_score_of_a_window() -> None:
    plain = fitted(score_window=0.25).score(pictures())
    smooth = fitted(score_window=0.25, smoothing=0.1).score(pictures())
    assert torch.equal(plain.image, smooth.image)
    assert smooth.maps.std() < 0.9 * plain.maps.std()


def test_low_precision_changes_little() -> None:
    config = replace(AGPNetConfig.paper(), **TINY)
    method = AGPNet(config, build("test_vit", weights="random", seed=3)).eval()
    method.end_training(1)
    exact = method.anomaly_map(method.see(pictures()), pictures())
    method.backbone.to(torch.bfloat16)
    assert method.encode(pictures())["targets"].dtype == torch.bfloat16
    rough = method.anomaly_map(method.see(pictures()), pictures())
    assert rough.dtype == torch.float32
    assert not torch.equal(rough, exact)
    torch.testing.assert_close(rough, exact, rtol=0.05, atol=0)


# The identity shortcut


def test_without_noise_a_defect_is_given_back() -> None:
    """Each place has a look of its own; the defect is a place that looks like another one. What is
    left of a place under noise as strong as this does not tell, so that a decoder has to learn what
    belongs there.
    """
    looks = torch.randn(12, 64)
    normal = looks + 0.1 * torch.randn(8, 12, 64)
    defect = looks + 0.1 * torch.randn(16, 12, 64)
    defect[:, 5] += looks[2] - looks[5]

    def missed(noise: str) -> float:
        """How much of the defect is not given back: 0 = it passes, 1 = all of it shows."""
        settings: dict[str, Any] = {
            "feature_noise": noise,
            "image_noise": "none",
            "noise_low": 4.0,
            "noise_high": 4.0,
        }
        method = agpnet(**settings, depth=1, learning_rate=5e-3, schedule="cosine")
        losses = train(method, TrainingBatch(None, {"targets": normal[:, None]}), 100)
        assert losses[-1] < 0.5 * losses[0]
        with torch.no_grad():
            apart = (method.decoder(defect)[:, 0] - defect)[:, 5].norm(dim=1)
        return float((apart / (looks[2] - looks[5]).norm()).mean())

    assert missed("random") > 1.8 * missed("none")


# Training as a whole


@pytest.mark.parametrize(
    ("backbone", "layers"), [("test_vit", (2, 4)), ("test_resnet", (2, 3))], ids=["vit", "cnn"]
)
@pytest.mark.parametrize("recipe", ["best", "paper"])
def test_every_recipe_learns(
    recipe: str, backbone: str, layers: tuple[int, ...], picture: Callable[..., np.ndarray]
) -> None:
    small = {"backbone": backbone, "layers": layers, "image_size": (64, 96), "learning_rate": 3e-3}
    config = replace(AGPNetConfig.recipes()[recipe](), **{**TINY, **small})
    method = AGPNet(config, backbone_of(backbone)).eval()
    parts = np.stack([picture(seed, height=64, width=96) for seed in range(4)])
    images = torch.from_numpy(parts).permute(0, 3, 1, 2).float() / 127.5 - 1
    before = {name: tensor.clone() for name, tensor in method.state_dict().items()}
    losses = train(method, batch_of(method, images), 15)
    assert np.isfinite(losses).all()
    assert losses[-1] < 0.9 * losses[0]
    for name, tensor in method.state_dict().items():
        assert torch.equal(tensor, before[name]) == name.startswith("backbone."), name
    assert method.score(images).maps.shape == (4, 16, 24)


def test_the_learning_rate() -> None:
    shares = np.arange(1000) / 1000
    stepped = [agpnet(schedule="step").learning_rate_factor(share) for share in shares]
    assert stepped == [1.0] * 400 + [0.1] * 600
    got = [agpnet(schedule="cosine").learning_rate_factor(share) for share in shares]
    falling = 0.1 + 0.45 * (1 + np.cos(np.pi * shares))
    np.testing.assert_allclose(got, falling * np.minimum(1, (shares + 1e-3) / 0.03))

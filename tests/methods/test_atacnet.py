"""ATAC-Net against its equations written out in loops, in float64; the crop where it degenerates;
that it learns.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any, cast

import numpy as np
import pytest
import torch
from naive import box_of, f64, upsampled
from torch import Tensor, nn
from torch.nn import functional as F

import blemish
from blemish.backbones import Backbone, build
from blemish.errors import ArtifactError, ConfigError, NotFittedError
from blemish.losses.deviation import deviation_loss
from blemish.methods import atacnet as module
from blemish.methods.atacnet import AtacNet, AtacNetConfig, AttentionAugmentation
from blemish.methods.crops import cropped, merged
from blemish.methods.learner import TrainingBatch

HEIGHT, WIDTH = 128, 96
SIZE = HEIGHT // 4, WIDTH // 4  # of the maps
NETWORKS = ["atacnet", "devnet", "classifier"]
TINY: dict[str, Any] = {
    "backbone": "test_resnet",
    "image_size": (HEIGHT, WIDTH),
    "attention_dim": 16,
}


@cache
def backbone_of(name: str) -> Backbone:
    return build(name, weights="random", seed=3)


def atacnet(*, fitted: bool = True, **settings: Any) -> AtacNet:
    """The paper's setting, small, with weights and statistics that make attention and saliency far
    from flat.
    """
    config = AtacNetConfig(**(TINY | settings))
    method = AtacNet(config, copy.deepcopy(backbone_of(config.backbone))).eval()
    if method.attention is not None:
        shake(method.attention)
    # Random weights let the signal fade from stage to stage; batch norm brings it back.
    with batch_norms(method, momentum=1.0), torch.no_grad():
        method.train()
        method.glance(method.see(pictures(8, seed=50)))
        method.eval()
    if fitted:
        method.end_training(1)
    return method


@contextmanager
def batch_norms(part: nn.Module, momentum: float) -> Iterator[None]:
    """While open, the statistics of batch norms follow so fast."""
    norms = [each for each in part.modules() if isinstance(each, nn.modules.batchnorm._BatchNorm)]
    before = [norm.momentum for norm in norms]
    for norm in norms:
        norm.momentum = momentum
    yield
    for norm, usual in zip(norms, before, strict=True):
        norm.momentum = usual


@torch.no_grad()
def shake(attention: AttentionAugmentation) -> None:
    """Weights as if it had learned something."""
    generator = torch.Generator().manual_seed(7)
    attention.gain.fill_(0.7)
    for part in (attention.query, attention.key):
        part.weight.normal_(generator=generator)
    for norm in attention.convolutions:
        if isinstance(norm, nn.BatchNorm2d):
            norm.weight.uniform_(-0.5, 1, generator=generator)
            norm.bias.uniform_(-0.5, 1, generator=generator)


def pictures(count: int = 2, seed: int = 0, height: int = HEIGHT, width: int = WIDTH) -> Tensor:
    return torch.randn(count, 3, height, width, generator=torch.Generator().manual_seed(seed))


def batch_of(
    count: int = 8, *, labelled: bool = True, seed: int = 0, side: int = 64
) -> TrainingBatch:
    """Normal pictures are dim; labelled defects, half of the rows and mixed among them, have
    stripes.
    """
    images = pictures(count, seed, side, side) * 0.3
    if not labelled:
        return TrainingBatch(images, {})
    labels = torch.arange(count) % 2
    images[labels == 1] += 2 * (torch.arange(side) * 1.6).sin().sign()
    return TrainingBatch(images, {}, labels)


def train(method: AtacNet, steps: int, batch: Callable[[int], TrainingBatch]) -> list[float]:
    """What the engine does, without anything around it: the losses."""
    method.eval()
    method.start_training(batch(0))
    optimizer = method.optimizer()
    rates = [group["lr"] for group in optimizer.param_groups]
    method.train()
    losses = []
    for step in range(steps):
        for group, rate in zip(optimizer.param_groups, rates, strict=True):
            group["lr"] = rate * method.learning_rate_factor(step / steps)
        torch.manual_seed(1000 + step)
        loss = method.training_step(batch(step), step / steps)
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(method.parameters(), method.clip_norm)
        optimizer.step()
        method.after_step(step + 1, steps)
        losses.append(loss.item())
    method.end_training(steps)
    method.eval()
    return losses


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


# Training


def numbered(values: Tensor, labels: Tensor | None = None) -> TrainingBatch:
    """Every picture is one number."""
    return TrainingBatch(values[:, None, None, None].repeat(1, 3, 32, 32), {}, labels)


@pytest.mark.parametrize("count", [2, 7, 16])
@pytest.mark.parametrize("share", [0.0, 0.5, 1.0])
def test_batches_are_balanced(count: int, share: float) -> None:
    method = atacnet(pseudo=share)
    half = count // 2
    labels = torch.tensor([0] * (count - half) + [1] * half)[torch.randperm(count)]
    # Normal ones are below 100, defects from 100 on.
    values = torch.where(labels == 1, 100.0, 0.0) + torch.arange(count)
    images, found = method.mixed(numbered(values, labels))
    assert images.shape == (count, 3, 32, 32)
    assert found.tolist() == [0] * (count - half) + [1] * half
    kinds = [sorted(set(image.flatten().tolist())) for image in images]
    normal, anomalous = kinds[: count - half], kinds[count - half :]
    assert sorted(value for (value,) in normal) == sorted(values[labels == 0].tolist())
    made = [kind for kind in anomalous if len(kind) == 2]
    assert len(made) in {math.floor(share * half), math.ceil(share * half)}
    assert all(low < 100 <= high for low, high in made)  # a piece of a defect in a normal picture
    assert all(len(kind) == 1 and kind[0] >= 100 for kind in anomalous if kind not in made)


def test_without_labelled_defects_half_of_a_batch_is_made() -> None:
    method = atacnet(pseudo=0.5)
    images, labels = method.mixed(numbered(torch.arange(7.0)))
    assert labels.tolist() == [0] * 4 + [1] * 3
    for index, image in enumerate(images):
        expected = {float(index)} if index < 4 else {float(index - 4), float(index)}
        assert set(image.flatten().tolist()) == expected
    with pytest.raises(ConfigError, match="2 at least for each process"):
        method.mixed(numbered(torch.zeros(1)))


def loss_of(method: AtacNet, batch: TrainingBatch) -> tuple[float, Tensor, Tensor]:
    """The loss of a step, and the scores and labels that it is of."""
    torch.manual_seed(11)
    loss = method.training_step(batch, 0.0)
    torch.manual_seed(11)
    images, labels = method.mixed(batch)
    return loss.item(), method.look(images, method.see(images)).score, labels


@pytest.mark.parametrize("network", ["atacnet", "devnet"])
def test_the_deviation_loss_is_taken(network: str) -> None:
    method = atacnet(network=network, image_size=(64,), margin=6.0)
    loss, scores, labels = loss_of(method, batch_of(7))
    assert loss == pytest.approx(deviation_loss(scores, labels, margin=6.0).item(), rel=1e-5)


def cross_entropy(scores: Tensor, labels: Tensor, weights: dict[int, float]) -> float:
    """The mean of −w log p over pictures."""
    terms = [
        weights[label] * math.log1p(math.exp(-score if label else score))
        for score, label in zip(f64(scores).tolist(), labels.tolist(), strict=True)
    ]
    return sum(terms) / len(terms)


@pytest.mark.parametrize(("normal", "defects"), [(73, 10), (73, 1), (5, 20)])
def test_the_cross_entropy_weighs_both_classes_by_how_many_there_are(
    normal: int, defects: int
) -> None:
    method = atacnet(network="classifier", image_size=(64,))
    method.class_counts = (normal, defects)
    every = normal + defects
    weights = {0: every / (2 * normal), 1: every / (2 * defects)}
    loss, scores, labels = loss_of(method, batch_of(8))
    assert loss == pytest.approx(cross_entropy(scores, labels, weights), rel=1e-4)
    unweighted = cross_entropy(scores, labels, {0: 1.0, 1: 1.0})
    assert abs(loss - unweighted) > 0.05 * loss  # nor is it without effect


def test_the_cross_entropy_where_no_defects_are_labelled() -> None:
    method = atacnet(network="classifier", image_size=(64,))
    method.class_counts = (73, 0)  # half of every batch is made
    loss, scores, labels = loss_of(method, batch_of(8, labelled=False))
    assert labels.sum() == 4
    assert loss == pytest.approx(cross_entropy(scores, labels, {0: 1.0, 1: 1.0}), rel=1e-4)


@pytest.mark.parametrize("defects", [0, 1, 3, 8])
def test_the_classifier_takes_pictures_as_they_come(defects: int) -> None:
    method = atacnet(network="classifier", pseudo=0.5)
    labels = (torch.arange(8) < defects).long()[torch.randperm(8)]
    values = torch.where(labels == 1, 100.0, 0.0) + torch.arange(8)
    batch, made = numbered(values, labels), []
    for _ in range(40):
        images, found = method.mixed(batch)
        assert images.shape == (8, 3, 32, 32)
        assert found.tolist() == [0] * (8 - defects) + [1] * defects
        kinds = [sorted(set(image.flatten().tolist())) for image in images]
        plain = sorted(values[labels == 0].tolist())
        assert sorted(kinds[: 8 - defects]) == [[value] for value in plain]
        assert all(kind[-1] >= 100 for kind in kinds[8 - defects :])
        made.append(sum(len(kind) == 2 for kind in kinds))
    assert 0.3 < np.mean(made) / defects < 0.7 if 0 < defects < 8 else not any(made)


@pytest.mark.parametrize("backbone", ["test_resnet", "test_efficientnet", "test_vit"])
@pytest.mark.parametrize("network", NETWORKS)
def test_everything_that_learns_takes_part(network: str, backbone: str) -> None:
    method = atacnet(network=network, backbone=backbone, image_size=(64,), fitted=False)
    batch = batch_of()
    method.start_training(batch)
    learned = {id(each) for group in method.optimizer().param_groups for each in group["params"]}
    method.train()
    method.training_step(batch, 0.0).backward()  # type: ignore[no-untyped-call]
    for name, each in method.named_parameters():
        assert (id(each) in learned) == (each.grad is not None) == each.requires_grad, name
    frozen = sum(not each.requires_grad for each in method.parameters())
    assert frozen < 0.1 * len(list(method.parameters()))
    # The last norm of a ViT, the convolution before the classes.
    assert (frozen > 0) == (backbone != "test_resnet")
    for part in (method.backbone, method.mapper):
        gradients = [each.grad for each in part.parameters() if each.grad is not None]
        assert any(gradient.abs().max() > 0 for gradient in gradients)


def test_both_looks_carry_gradient_and_the_box_none(monkeypatch: pytest.MonkeyPatch) -> None:
    method = atacnet(image_size=(64,), fitted=False, backbone="test_vit")
    batch = batch_of()
    assert batch.images is not None
    method.start_training(batch)
    parameters = [parameter for parameter in method.parameters() if parameter.requires_grad]

    def gradients(part: Callable[[Any], Tensor]) -> Tensor:
        look = method.look(batch.images, method.see(batch.images))  # type: ignore[arg-type]
        return torch.cat(
            [
                each.flatten()
                for each in torch.autograd.grad(
                    part(look), parameters, allow_unused=True, materialize_grads=True
                )
            ]
        )

    look = method.look(batch.images, method.see(batch.images))
    assert look.boxes is not None
    assert look.saliency is not None
    assert not look.boxes.requires_grad
    assert not look.saliency.requires_grad
    assert look.boxes[:, 2:].prod(1).min() < 0.9
    whole = gradients(lambda each: each.score.sum())
    first, second = (
        gradients(lambda each: each.first.sum()),
        gradients(lambda each: each.second.sum()),
    )
    assert min(first.abs().max(), second.abs().max()) > 0
    assert not torch.allclose(first, second)
    held = look.boxes.clone()
    monkeypatch.setattr(module, "crop_boxes", lambda *_arguments, **_options: held)
    assert torch.equal(gradients(lambda each: each.score.sum()), whole)


def test_the_schedule_of_the_paper() -> None:
    method = atacnet()
    epochs = [method.learning_rate_factor(epoch / 30) for epoch in (0, 9.99, 10, 19.99, 20, 29.99)]
    assert epochs == pytest.approx([1, 1, 0.1, 0.1, 0.01, 0.01])
    other = atacnet(drop_every=0.1, drop=0.5)
    assert [other.learning_rate_factor(tenth / 10) for tenth in range(10)] == pytest.approx(
        [0.5**n for n in range(10)]
    )


def test_the_extractor_has_a_learning_rate_of_its_own() -> None:
    method = atacnet(fitted=False, extractor_rate=0.1)
    method.start_training(batch_of())
    optimizer = method.optimizer()
    assert type(optimizer) is torch.optim.Adam
    own, slow = optimizer.param_groups
    assert (own["lr"], slow["lr"], own["weight_decay"]) == (1e-3, pytest.approx(1e-4), 0)
    extractor = {id(each) for each in method.backbone.parameters()}
    every = {id(each) for each in method.parameters()}
    assert {id(each) for each in slow["params"]} == extractor
    assert {id(each) for each in own["params"]} == every - extractor


@pytest.mark.parametrize("network", NETWORKS)
def test_an_extractor_that_does_not_learn_stays_as_it_is(network: str) -> None:
    pixels = list(np.random.default_rng(0).integers(0, 256, (6, 64, 64, 3), dtype=np.uint8))
    settings = TINY | {"image_size": 64, "network": network, "train_batch_size": 4, "epochs": 1}
    settings |= {"extractor_rate": 0, "weights": "random", "device": "cpu", "precision": "fp32"}
    method = blemish.fit(
        "atacnet", pixels[:4], anomalies=pixels[4:], calibration_fraction=0, **settings
    ).method
    assert isinstance(method.config, AtacNetConfig)
    start = AtacNet(method.config, build("test_resnet", weights="random")).state_dict()
    after = method.state_dict()
    changed = {name.split(".")[0] for name in after if not torch.equal(after[name], start[name])}
    # Nor do the statistics of its batch norms change.
    assert changed == {"mapper", "steps", *(["attention"] if network == "atacnet" else [])}


def test_processes_agree_on_batch_norms_statistics(monkeypatch: pytest.MonkeyPatch) -> None:
    method = atacnet()
    before = {name: tensor.clone() for name, tensor in method.state_dict().items()}
    method.after_step(1, 10)
    assert all(torch.equal(tensor, before[name]) for name, tensor in method.state_dict().items())
    monkeypatch.setattr(module, "mean_over_processes", lambda tensor: 2 * tensor)
    method.after_step(2, 10)
    for name, tensor in method.state_dict().items():
        factor = 2 if name.endswith(("running_mean", "running_var")) else 1
        assert torch.equal(tensor, before[name] * factor), name
    without = atacnet(network="devnet", backbone="test_vit")
    without.after_step(1, 10)


def test_findings_change_nothing() -> None:
    method = atacnet(image_size=(64,), fitted=False).train()
    before = {name: tensor.clone() for name, tensor in method.state_dict().items()}
    with torch.no_grad():
        found = method.findings(batch_of(6))
    assert set(found) == {"normal_score", "anomalous_score", "crop_share"}
    assert all(math.isfinite(value) for value in found.values())
    assert 0 < found["crop_share"] <= 1
    assert method.training
    assert all(torch.equal(tensor, before[name]) for name, tensor in method.state_dict().items())
    assert method.findings(TrainingBatch(pictures(1), {})) == {}
    with torch.no_grad():
        plain = atacnet(network="devnet", image_size=(64,)).findings(batch_of(labelled=False))
    assert set(plain) == {"normal_score", "anomalous_score"}


@pytest.mark.parametrize("network", NETWORKS)
def test_it_learns_what_a_defect_looks_like(network: str) -> None:
    settings = TINY | {"image_size": (64,), "layers": (2,), "learning_rate": 1e-2}
    settings["network"] = network
    method = AtacNet(AtacNetConfig(**settings), copy.deepcopy(backbone_of("test_resnet")))
    # The classifier has a layer more that starts at random.
    losses = train(method, 40 if network == "classifier" else 20, lambda step: batch_of(seed=step))
    assert np.mean(losses[-5:]) < 0.6 * np.mean(losses[:5])
    test = batch_of(20, seed=999)
    assert test.images is not None
    assert test.labels is not None
    scores = method.score(test.images).image
    assert scores[test.labels == 1].min() > 1 + scores[test.labels == 0].max()


def test_the_seed_decides_what_is_learned() -> None:
    def learned(seed: int) -> dict[str, Tensor]:
        settings: dict[str, Any] = {**TINY, "image_size": (64,), "seed": seed}
        method = AtacNet(AtacNetConfig(**settings), copy.deepcopy(backbone_of("test_resnet")))
        train(method, 3, lambda step: batch_of(4, seed=step))
        return method.fitted_state()

    before = torch.get_rng_state()
    AtacNet(AtacNetConfig(**TINY), backbone_of("test_resnet"))
    assert torch.equal(torch.get_rng_state(), before)
    one, same, other = learned(1), learned(1), learned(2)
    assert all(torch.equal(one[name], same[name]) for name in one)
    assert not torch.equal(one["mapper.weight"], other["mapper.weight"])
    start = backbone_of("test_resnet").state_dict()
    for name in ("conv1.weight", "bn1.running_mean"):
        key = next(key for key in start if key.endswith(name))
        # The extractor learns, and its statistics follow.
        assert not torch.equal(one[f"backbone.{key}"], start[key])


@pytest.mark.parametrize("network", NETWORKS)
def test_what_is_fitted_can_be_restored(network: str) -> None:
    method = atacnet(network=network, image_size=(64,), fitted=False)
    train(method, 2, lambda step: batch_of(4, seed=step))
    other = atacnet(network=network, image_size=(64,), fitted=False, seed=9)
    state = method.fitted_state()
    assert state["steps"].tolist() == [2]
    other.restore_state(state)
    one, two = method.score(pictures(2, 0, 64, 64)), other.score(pictures(2, 0, 64, 64))
    assert torch.equal(one.image, two.image)
    assert torch.equal(one.maps, two.maps)
    if network != "atacnet":
        with pytest.raises(ArtifactError, match="do not fit method 'atacnet'"):
            atacnet(image_size=(64,)).restore_state(state)


# Settings


OUT_OF_RANGE: dict[str, Any] = {
    **dict.fromkeys(["margin", "attention_dim", "drop_every", "epochs"], 0),
    **dict.fromkeys(["train_batch_size", "draws", "active"], 1),
    **dict.fromkeys(["pseudo", "drop", "top_fraction"], 1.5),
    **dict.fromkeys(["padding", "extractor_rate"], math.inf),
}


@pytest.mark.parametrize("setting", OUT_OF_RANGE)
def test_settings_out_of_range(setting: str) -> None:
    with pytest.raises(ConfigError, match=f"^{setting}: "):
        AtacNetConfig(**{setting: OUT_OF_RANGE[setting]})


def test_before_fit_it_is_a_named_error() -> None:
    method = atacnet(fitted=False)
    for work in (method.score, method.embedding):
        with pytest.raises(NotFittedError, match="this atacnet detector has not been fitted"):
            work(pictures())

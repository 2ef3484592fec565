"""ATAC-Net learns: its batches, losses, schedule and optimiser; what is refused."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from naive import f64
from small_atacnet import NETWORKS, TINY, atacnet, backbone_of, batch_of, pictures, train
from torch import Tensor

import blemish
from blemish.area import SIDE, Area
from blemish.backbones import build
from blemish.errors import ArtifactError, ConfigError, NotFittedError
from blemish.losses.deviation import deviation_loss
from blemish.methods import atacnet as module
from blemish.methods.atacnet import AtacNet, AtacNetConfig
from blemish.methods.learner import TrainingBatch


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


def test_pieces_are_pasted_in_the_area_only() -> None:
    inside = np.zeros((SIDE, SIDE), dtype=bool)
    inside[: SIDE // 2, : SIDE // 4] = True
    method = atacnet(pseudo=1.0)
    method.set_area(Area.of(inside))
    images, labels = method.mixed(numbered(torch.arange(12.0)))
    changed = (images != images[:, :, -1:, -1:]).any(1)
    assert torch.equal(changed.flatten(1).any(1), labels == 1)
    assert not changed[:, 16:].any()
    assert not changed[:, :, 8:].any()


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
    monkeypatch.setattr("blemish.methods.learner.mean_over_processes", lambda each: 2 * each)
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

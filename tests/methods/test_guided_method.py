"""The guided method: its parts against naive loops in float64, its guidance, its sizes, and its
training end to end.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from naive import upsampled
from torch import Tensor
from torch.nn import functional as F

import blemish
from blemish.anomalies import Synthetic
from blemish.backbones import Backbone, build
from blemish.data.transforms import prepare
from blemish.detector.fit import configure
from blemish.errors import ConfigError, NotFittedError
from blemish.images import decode
from blemish.losses.dice import dice_loss
from blemish.methods.adaptation import EntropyAdapter
from blemish.methods.alignment import Aligner
from blemish.methods.apmask import APMaskConfig
from blemish.methods.augmentation import augmented
from blemish.methods.guided import SUMMARISED, Guided, log_odds, spread
from blemish.methods.guided_config import SIX_SCALES, GuidedConfig
from blemish.methods.heads import ClassHead
from blemish.methods.learner import TrainingBatch
from blemish.types import Batch, Progress, silent

Part = Callable[..., np.ndarray]
SIDE = 32
MEAN, STD = (
    torch.full((3, 1, 1), 0.5),
    torch.full((3, 1, 1), 0.5),
)  # of the test backbone, see the first test
SMALL: dict[str, Any] = {
    "backbone": "test_vit",
    "image_size": (SIDE,),
    "layers": (2, 4),
    "train_batch_size": 4,
}
TINY = {**SMALL, "guide_layers": (6,), "bank_size": 0, "zoom": 1.0}
WHOLE = GuidedConfig(
    map_head="features", score="both", trainable_blocks=4
)  # with every head that there is
FIT: dict[str, Any] = {
    **SMALL,
    "weights": "random",
    "device": "cpu",
    "precision": "fp32",
    "epochs": 1,
    "min_steps": 6,
    "zoom": 1.0,
}


@pytest.fixture(autouse=True, scope="module")
def _small_head() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            "blemish.methods.guided.ClassHead", partial(ClassHead, hidden=32, bottleneck=16)
        )
        yield


def sharp(name: str = "test_vit", **options: Any) -> Backbone:
    """A backbone whose [CLS] token looks at some patches more than at others: with random weights
    it hardly does.
    """
    backbone = build(name, **{"weights": "random", "seed": 3, **options})
    with torch.no_grad():
        for block in backbone.model.blocks:  # type: ignore[union-attr]
            block.attn.qkv.weight[:128] *= 12
    return backbone


def guided(base: GuidedConfig | None = None, **settings: Any) -> Guided:
    """A small one, with heads that say something, and as if it had been fitted without a bank."""
    method = Guided(replace(base or WHOLE, **(TINY | settings)), sharp()).eval()
    method.normal = torch.tensor([[0.0], [1.0]])
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for name, parameter in method.named_parameters():
            if not name.startswith("backbone."):
                parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.3)
    method.prepare_training()
    return method


def pictures(count: int = 2, seed: int = 0, side: int = SIDE) -> Tensor:
    """Normalised noise, dark to bright."""
    generator = torch.Generator().manual_seed(seed)
    pixels = (
        torch.rand(count, 3, side, side, generator=generator)
        * torch.linspace(0.3, 1, count)[:, None, None, None]
    )
    return (pixels - MEAN) / STD


def batch_of(method: Guided, images: Tensor) -> TrainingBatch:
    return TrainingBatch(images, method.encode(images))


def train(method: Guided, batch: TrainingBatch, steps: int) -> list[float]:
    """What the engine does, without anything around it and with the same draws in every step: the
    losses.
    """
    method.start_training(batch)
    optimizer = method.optimizer()
    rates = [group["lr"] for group in optimizer.param_groups]
    method.train()
    losses = []
    for step in range(steps):
        torch.manual_seed(0)
        for group, rate in zip(optimizer.param_groups, rates, strict=True):
            group["lr"] = rate * method.learning_rate_factor(step / steps)
        loss = method.training_step(batch, step / steps)
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        method.after_step(step + 1, steps)
        losses.append(loss.item())
    method.eval()
    method.end_training(steps)
    return losses


# Oracles: float64, one picture, location and head at a time


def f64(tensor: Tensor) -> np.ndarray:
    return tensor.detach().double().numpy()


def layer_normed(
    row: np.ndarray, weight: Any = 1.0, bias: Any = 0.0, epsilon: float = 1e-5
) -> np.ndarray:
    mean = sum(row) / len(row)
    variance = sum((value - mean) ** 2 for value in row) / len(row)
    return np.asarray((row - mean) / math.sqrt(variance + epsilon) * weight + bias)


def gelu(values: np.ndarray) -> np.ndarray:
    return np.array([0.5 * value * (1 + math.erf(value / math.sqrt(2))) for value in values])


def sigmoid(value: float) -> float:
    return 1 / (1 + math.exp(-value))


def attention_of(backbone: Backbone, images: Tensor, layer: int) -> np.ndarray:
    """B L N: the [CLS] row of each head, renormalised over the patches."""
    full = f64(backbone(images, (layer,), full_attention=(layer,)).full_attention[layer])
    rows = np.empty((*full.shape[:2], full.shape[2] - 1))
    for picture, head in np.ndindex(*full.shape[:2]):
        row = full[picture, head, 0, 1:]
        rows[picture, head] = row / sum(row)
    return rows


def looked(method: Guided, images: Tensor) -> tuple[np.ndarray, np.ndarray]:
    """Class logits B K and map logits B h w."""
    depth, norm = method.backbone.depth, method.backbone.model.norm
    seen = method.backbone(images, (*method.map_layers, depth))
    state = {name: f64(tensor) for name, tensor in method.state_dict().items()}

    def linear(name: str, x: np.ndarray) -> np.ndarray:
        return np.asarray(state[f"{name}.weight"] @ x + state[f"{name}.bias"])

    logits, maps = [], []
    attention = attention_of(method.backbone, images, depth)
    for picture, heads in enumerate(attention):
        if method.class_head is not None:
            x = layer_normed(f64(seen.cls[-1][picture]), f64(norm.weight), f64(norm.bias), norm.eps)
            x = linear(
                "class_head.layers.4",
                gelu(linear("class_head.layers.2", gelu(linear("class_head.layers.0", x)))),
            )
            logits.append(linear("class_head.last", x / math.sqrt(x @ x)))
        marks = np.zeros(heads.shape[1])
        for place in range(len(marks)):
            if method.attention_mix is not None:
                marks[place] = state["attention_mix.bias"]
                for head, row in enumerate(heads):
                    marks[place] += state["attention_mix.weights"][head] * len(marks) * row[place]
            if method.segmentation_head is not None:
                features = [
                    layer_normed(f64(tokens[picture, place])) for tokens in seen.tokens[:-1]
                ]
                hidden = gelu(linear("segmentation_head.inward", np.concatenate(features)))
                marks[place] += linear("segmentation_head.outward", hidden)[0]
        maps.append(marks.reshape(seen.grids[0]))
    return np.stack(logits) if logits else np.empty(0), np.stack(maps)


# The parts


def test_what_the_tests_take_for_granted() -> None:
    backbone = sharp()
    assert torch.tensor(backbone.mean).tolist() == MEAN.flatten().tolist()
    assert torch.tensor(backbone.std).tolist() == STD.flatten().tolist()
    peaks = attention_of(backbone, pictures(4), 6).max(-1)
    assert peaks.mean() > 0.35  # of 4 patches, where 0.25 would be flat


@pytest.mark.parametrize("map_head", ["attention", "patches", "features"])
@pytest.mark.parametrize(
    ("simulators", "classes"), [(("cutpaste",), 2), (("guided", "cutpaste-3way"), 3)]
)
def test_logits_of_pictures_and_of_places(
    map_head: str, simulators: tuple[str, ...], classes: int
) -> None:
    method = guided(map_head=map_head, simulators=simulators)
    images = pictures(3, side=48)
    seen = method.read(method.see(images))
    expected_logits, expected_marks = looked(method, images)
    assert seen.logits is not None
    assert seen.logits.shape == (3, classes)
    assert seen.mask_logits.shape == (3, 3, 3)
    np.testing.assert_allclose(f64(seen.logits), expected_logits, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(f64(seen.mask_logits), expected_marks, rtol=1e-4, atol=1e-4)
    assert (seen.attention is None) == (map_head == "patches")
    if seen.attention is not None:
        attention = attention_of(method.backbone, images, 6)
        np.testing.assert_allclose(f64(seen.attention), attention, rtol=1e-4, atol=1e-6)
    assert np.ptp(expected_marks, axis=(1, 2)).min() > 0.05


def test_the_head_is_that_of_dino() -> None:
    shapes = [
        tuple(parameter.shape)
        for parameter in ClassHead(384, 2).parameters()
        if parameter.ndim == 2
    ]
    assert shapes == [(2048, 384), (2048, 2048), (256, 2048), (2, 256)]


@pytest.mark.parametrize("classes", [2, 3])
def test_log_odds(classes: int) -> None:
    logits = torch.randn(5, classes) * 4
    for row, got in zip(f64(logits), log_odds(logits), strict=True):
        shares = [math.exp(value) / sum(map(math.exp, row)) for value in row]
        assert got.item() == pytest.approx(math.log(sum(shares[1:]) / shares[0]), rel=1e-5)


def test_dice() -> None:
    given, wanted = torch.rand(3, 4, 5), (torch.rand(3, 4, 5) > 0.6).float()
    wanted[2] = 0
    losses = []
    for marks, label in zip(f64(given), f64(wanted), strict=True):
        both = sum(p * y for p, y in zip(marks.ravel(), label.ravel(), strict=True))
        losses.append(1 - (2 * both + 1) / (sum(marks.ravel()) + sum(label.ravel()) + 1))
    assert dice_loss(given, wanted).item() == pytest.approx(sum(losses) / 3, rel=1e-5)
    assert dice_loss(wanted, wanted).item() == pytest.approx(0, abs=1e-6)


def test_spread() -> None:
    values = torch.randn(50) * 3 + 5
    mean = sum(f64(values)) / 50
    deviation = math.sqrt(sum((value - mean) ** 2 for value in f64(values)) / 49)
    np.testing.assert_allclose(f64(spread(values)), [mean, deviation], rtol=1e-5)
    assert spread(torch.full((5,), 2.0)).tolist() == [2, 1]


# The loss


@pytest.mark.parametrize(
    ("base", "settings", "kinds"),
    [
        (GuidedConfig.paper_bmvc(), {}, [1, 1]),
        (
            GuidedConfig(),
            {"dice_weight": 0.3, "bce_weight": 0.7, "simulators": ("cutpaste-3way",)},
            [2, 1],
        ),
        (WHOLE, {"dice_weight": 0.3, "bce_weight": 0.7, "simulators": ("cutpaste-3way",)}, [2, 1]),
        (
            WHOLE,
            {"dice_weight": 0.0, "cross_entropy_weight": 0.2, "simulators": ("cutpaste-3way",)},
            [1, 2],
        ),
    ],
)
def test_the_loss_of_a_step(
    base: GuidedConfig, settings: dict[str, Any], kinds: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    method = guided(base, augment=False, **settings)
    images = pictures(2)
    batch = batch_of(method, images)
    labels = np.random.default_rng(0).random((2, SIDE, SIDE), dtype=np.float32)
    asked: list[Any] = []

    def simulate(*given: Any) -> list[Synthetic]:
        asked.extend(given)
        return [
            Synthetic(1 - picture, label > 0, label, kind)
            for picture, label, kind in zip(given[1], labels, kinds, strict=True)
        ]

    monkeypatch.setattr("blemish.methods.guided.simulate_batch", simulate)
    loss = method.training_step(batch, 0.4)
    simulators, pixels, guide, seeds = asked
    assert [each.name for each in simulators] == list(method.config.simulators)
    np.testing.assert_allclose(pixels, f64((images * STD + MEAN).permute(0, 2, 3, 1)), atol=1e-6)
    np.testing.assert_array_equal(guide, batch.features["guide"].numpy())
    assert len(set(seeds)) == 2

    twins = ((1 - (images * STD + MEAN)) - MEAN) / STD
    logits, marks = (
        np.concatenate(pair)
        for pair in zip(looked(method, images), looked(method, twins), strict=True)
    )
    crosses = []
    if method.class_head is not None:
        for row, kind in zip(logits, [0, 0, *kinds], strict=True):
            crosses.append(math.log(sum(map(math.exp, row))) - row[kind])
    maps = [upsampled(each, SIDE, SIDE) for each in marks]
    dices, places = [], []
    for each, label in zip(maps[2:], labels.astype(float), strict=True):
        shares = np.array([sigmoid(value) for value in each.ravel()])
        dices.append(1 - (2 * (shares @ label.ravel()) + 1) / (shares.sum() + label.sum() + 1))
    for each, label in zip(
        maps, [0 * labels[0], 0 * labels[0], *labels.astype(float)], strict=True
    ):
        for value, wanted in zip(each.ravel(), label.ravel(), strict=True):
            share = sigmoid(value)
            places.append(-wanted * math.log(share) - (1 - wanted) * math.log(1 - share))
    config = method.config
    expected = config.cross_entropy_weight * sum(crosses) / 4 + config.dice_weight * sum(dices) / 2
    expected += config.bce_weight * sum(places) / len(places)
    assert loss.item() == pytest.approx(expected, rel=1e-4)
    if base == GuidedConfig.paper_bmvc():
        assert expected == pytest.approx(0.95 * np.mean(crosses) + 0.05 * np.mean(dices))


def test_a_normal_picture_and_its_twin_differ_only_where_something_was_pasted(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Or the two could be told apart without any anomaly, as by values beyond white in one of them
    only.
    """
    method = guided(augment=True)
    images = pictures(8)
    images[::2] = images[::2] * 0.1 + 0.9  # close to white, which augmentation makes brighter still
    batch = batch_of(method, images)
    looks: list[Tensor] = []
    labels: list[Tensor] = []
    see, simulated = method.see, method._simulated

    def simulate(*given: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        made = simulated(*given)
        labels.append(made[1])
        return made

    monkeypatch.setattr(method, "see", lambda given: looks.append(given) or see(given))  # type: ignore[func-returns-value]
    monkeypatch.setattr(method, "_simulated", simulate)
    method.training_step(batch, 0.5)
    normal, twins = looks[0].chunk(2)
    changed = (normal - twins).abs().amax(1)
    assert changed[labels[0] > 0].max() > 0.1
    assert changed[labels[0] == 0].max() < 1e-5


# Guidance


@pytest.mark.parametrize(
    ("given", "layers"),
    [((), (2, 4)), ((6,), (6,)), ((2, 5), (2, 5)), ((-1,), (6,)), ((-6, 3), (1, 3))],
)
def test_the_guide_is_where_the_encoder_as_it_came_looks(
    given: tuple[int, ...], layers: tuple[int, ...]
) -> None:
    method = guided(guide_layers=given)
    images = pictures(3, side=48)
    guide = method.encode(images)["guide"]
    assert guide.shape == (3, 3, 3)
    expected = np.zeros((3, 9))
    for layer in layers:
        full = f64(method.backbone(images, (layer,), full_attention=(layer,)).full_attention[layer])
        for picture, head in np.ndindex(3, 2):
            row = full[picture, head, 0, 1:]
            expected[picture] += row / row.sum() / 2 / len(layers)
    np.testing.assert_allclose(f64(guide).reshape(3, 9), expected, rtol=1e-4)
    assert np.ptp(expected, axis=1).min() > 0.02


def test_the_guide_stays_while_the_encoder_learns() -> None:
    method = guided(learning_rate_start=5e-4)
    images = pictures(4)
    batch = batch_of(method, images)
    before = attention_of(method.backbone, images, 6)
    train(method, batch, 3)
    assert torch.equal(method.encode(images)["guide"], batch.features["guide"])
    assert (
        np.abs(attention_of(method.backbone, images, 6) - before).max() > 1e-4
    )  # which by now looks elsewhere


@pytest.mark.parametrize("guidance", ["attention", "uniform", "shuffled"])
def test_where_the_anomalies_lie(guidance: str) -> None:
    method = guided(guidance=guidance)
    guide = torch.zeros(48, 4, 4)
    guide[:, 0, 0] = 1
    _, labels, _ = method._simulated(pictures(48, side=64), guide)
    share = float(labels[:, :32, :32].sum() / labels.sum())
    assert share > 0.6 if guidance == "attention" else share < 0.45


def test_shuffled_guidance_is_the_same_at_other_places(monkeypatch: pytest.MonkeyPatch) -> None:
    method = guided(guidance="shuffled")
    given: list[np.ndarray] = []

    def simulate(
        _simulators: Any, images: np.ndarray, guide: np.ndarray, _seeds: Any
    ) -> list[Synthetic]:
        given.append(guide)
        mask = np.ones(images.shape[1:3], bool)
        return [Synthetic(image, mask, mask.astype(np.float32)) for image in images]

    monkeypatch.setattr("blemish.methods.guided.simulate_batch", simulate)
    guide = torch.rand(6, 4, 4)
    method._simulated(pictures(6), guide)
    got, original = given[0].reshape(6, 16), guide.reshape(6, 16).numpy()
    np.testing.assert_array_equal(np.sort(got), np.sort(original))
    orders = {
        tuple(row.argsort().argsort()[before.argsort()])
        for row, before in zip(got, original, strict=True)
    }
    assert len(orders) == 6
    assert tuple(range(16)) not in orders


def test_findings_of_flat_and_of_peaked_guidance() -> None:
    method = guided()
    flat, peaked = torch.full((2, 4, 4), 1 / 16), torch.zeros(2, 4, 4)
    peaked[:, 1, 2] = 1
    found = method.findings(TrainingBatch(None, {"guide": flat}))
    assert found == pytest.approx({"guidance_entropy": 1.0, "guidance_peak_to_mean": 1.0})
    found = method.findings(TrainingBatch(None, {"guide": peaked}))
    assert found == pytest.approx(
        {"guidance_entropy": 0.0, "guidance_peak_to_mean": 16.0}, abs=1e-6
    )


# Augmentation


def centres(maps: np.ndarray) -> np.ndarray:
    """Of mass, of each of B h w, as fractions of the sides: B 2."""
    found = []
    for values in maps:
        rows, columns = ((np.arange(side) + 0.5) / side for side in values.shape)
        found.append((values.sum(1) @ rows / values.sum(), values.sum(0) @ columns / values.sum()))
    return np.array(found)


def test_the_guide_is_cropped_along_with_the_picture() -> None:
    images, guide = torch.full((16, 3, 64, 64), -1.0), torch.full((16, 16, 16), 0.0)
    images[:, :, 12:24, 40:52] = 1
    guide[:, 3:6, 10:13] = 1
    cropped, along = augmented(images, guide)
    assert along.shape == guide.shape
    np.testing.assert_allclose(f64(along.sum((1, 2))), 1, rtol=1e-5)
    shown = f64(cropped).mean(1)
    shown -= shown.min((1, 2), keepdims=True)
    moved, followed = centres(shown), centres(f64(along))
    assert np.abs(moved - followed).max() < 1 / 200
    assert moved.std(0).min() > 1 / 128  # half a pixel


def test_crops_brightness_and_contrast_stay_within_their_bounds() -> None:
    ramp = torch.linspace(-1, 1, 64).expand(64, 3, 64, 64).clone()
    ramp[:, 1] = ramp[:, 0].transpose(1, 2)
    given = []
    for images in (torch.zeros_like(ramp), torch.ones_like(ramp), ramp):
        torch.manual_seed(1)
        given.append(f64(augmented(images, torch.ones(64, 4, 4))[0]))
    brightness = given[0][:, 0, 0, 0]
    contrast = given[1][:, 0, 0, 0] - brightness
    shown = (given[2] - brightness[:, None, None, None]) / contrast[:, None, None, None]
    across = (shown[:, 0, 32, 40] - shown[:, 0, 32, 24]) / (16 * 2 / 63)
    down = (shown[:, 1, 40, 32] - shown[:, 1, 24, 32]) / (16 * 2 / 63)
    np.testing.assert_allclose(across, down, atol=1e-4)  # the aspect ratio stays
    areas = across**2
    assert 0.8 - 1e-3 < areas.min() < 0.83
    assert 0.97 < areas.max() < 1 + 1e-3
    assert np.abs(shown).max() < 1 + 1e-4  # nothing from beyond the border
    for values, middle in ((contrast, 1.0), (brightness, 0.0)):
        assert middle - 0.1 - 1e-5 < values.min() < middle - 0.08
        assert middle + 0.08 < values.max() < middle + 0.1 + 1e-5
    places = shown[:, :2, 31:33, 31:33].mean((2, 3))
    assert places.std(0).min() > 0.01  # crops lie anywhere
    assert len(np.unique(areas)) == 64  # each picture has its own


def test_crops_are_as_fine_in_low_precision() -> None:
    images, guide = pictures(4, side=64), torch.rand(4, 4, 4)
    torch.manual_seed(1)
    expected = augmented(images, guide)
    torch.manual_seed(1)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        got = augmented(images, guide)
    for one, other in zip(got, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)


# What learns, and how fast


def test_the_learning_rate_rises_and_falls_as_published() -> None:
    config = replace(GuidedConfig.paper_bmvc(), **TINY)
    method = Guided(config, sharp())
    rates = [
        config.learning_rate * method.learning_rate_factor(progress)
        for progress in np.linspace(0, 0.1, 11)
    ]
    np.testing.assert_allclose(rates, np.linspace(1e-5, 5e-4, 11), rtol=1e-6)
    for progress in np.linspace(0.1, 0.999, 7):
        expected = 5e-4 * (1 + math.cos(math.pi * (progress - 0.1) / 0.9)) / 2
        assert config.learning_rate * method.learning_rate_factor(progress) == pytest.approx(
            expected
        )
    assert guided(warmup=0.0).learning_rate_factor(0.0) == 1


def rates_of(method: Guided) -> dict[str, float]:
    names = {id(parameter): name for name, parameter in method.named_parameters()}
    groups = method.optimizer().param_groups
    for group in groups:
        for parameter in group["params"]:
            assert group["weight_decay"] == (0.05 if parameter.ndim > 1 else 0)
    pairs = [
        (names[id(parameter)], group["lr"]) for group in groups for parameter in group["params"]
    ]
    assert len(dict(pairs)) == len(pairs)
    return dict(pairs)


def test_blocks_learn_the_slower_the_further_they_are_from_the_end() -> None:
    method = guided(learning_rate=1e-3, layer_decay=0.5, ema=True, trainable_blocks=None)
    method.start_training(batch_of(method, pictures()))
    rates = rates_of(method)
    assert set(rates) == {
        name for name, _ in method.named_parameters() if not name.startswith("average.")
    }
    for name, rate in rates.items():
        if name.startswith("backbone.model.blocks."):
            expected = 1e-3 * 0.5 ** (6 - int(name.split(".")[3]))
        elif name.startswith("backbone.") and ".norm." not in name:
            expected = 1e-3 * 0.5**7
        else:
            expected = 1e-3
        assert rate == pytest.approx(expected), name
    alike = guided(GuidedConfig.paper_bmvc())
    alike.start_training(batch_of(alike, pictures()))
    assert set(rates_of(alike).values()) == {5e-4}


@pytest.mark.parametrize("ema", [False, True])
@pytest.mark.parametrize("blocks_learned", [0, 1, 2, 9, None])
def test_what_learns(blocks_learned: int | None, ema: bool) -> None:
    method = guided(trainable_blocks=blocks_learned, ema=ema)
    before = {name: tensor.clone() for name, tensor in method.state_dict().items()}
    train(method, batch_of(method, pictures(4)), 3)
    after = method.state_dict()
    assert before.keys() == after.keys()
    changed = {name for name, tensor in after.items() if not torch.equal(tensor, before[name])}
    parts = {
        ".".join(name.split(".")[:4]) if ".blocks." in name else name.split(".")[0]
        for name in changed
    }
    # With a class head all is read: what learns is counted back from the last of the six blocks.
    first = (
        6 if blocks_learned == 0 else 0 if blocks_learned is None else max(0, 6 - blocks_learned)
    )
    blocks = {f"backbone.model.blocks.{index}" for index in range(first, 6)}
    encoder = (
        {"backbone"} if blocks_learned != 0 else set()
    )  # the last norm, and with None what comes before the blocks
    assert parts == {"class_head", "attention_mix", "segmentation_head", *blocks, *encoder}
    before_blocks = {
        name
        for name in changed
        if any(part in name for part in ("patch_embed", "pos_embed", "cls_token"))
    }
    assert bool(before_blocks) == (blocks_learned is None)
    assert not any(parameter.requires_grad for parameter in method.parameters())


def test_the_average_over_the_last_tenth_is_what_is_kept() -> None:
    method = guided(ema=True)
    method.start_training(batch_of(method, pictures()))
    learned = {
        name: value for name, value in method.named_parameters() if not name.startswith("average.")
    }
    expected = {name: f64(value) for name, value in learned.items()}
    for step in range(1, 6):
        with torch.no_grad():
            for value in learned.values():
                value.add_(torch.randn_like(value) * 0.1)
        method.after_step(step, 100)
        for name, value in learned.items():
            expected[name] = 0.8 * expected[name] + 0.2 * f64(value)
    assert any(name.startswith("average.") for name in method.state_dict())  # a checkpoint needs it
    method.end_training(100)
    for name, value in learned.items():
        np.testing.assert_allclose(f64(value), expected[name], atol=1e-5)
    assert not any(name.startswith("average.") for name in method.fitted_state())


@pytest.mark.parametrize(("ema", "steps"), [(False, 100), (True, 20)])
def test_without_an_average_or_over_a_short_run_the_last_weights_are_kept(
    ema: bool, steps: int
) -> None:
    method = guided(ema=ema)
    method.start_training(batch_of(method, pictures()))
    assert (method.average is None) != ema
    with torch.no_grad():
        method.attention_mix.weights.add_(1)
    last = method.attention_mix.weights.clone()
    method.after_step(1, steps)
    method.end_training(steps)
    torch.testing.assert_close(method.attention_mix.weights, last)


def test_training_lowers_the_loss() -> None:
    method = guided(ema=False, augment=False)
    batch = batch_of(method, pictures(4))
    losses = train(method, batch, 30)
    assert losses[-1] < 0.7 * losses[0]


# Sizes


def summarised(images: Tensor, **settings: Any) -> Guided:
    method = guided(**settings)
    method.summarise(lambda: batches(images), 0, silent)
    return method


def batches(images: Tensor, size: int = 5) -> list[Batch]:
    """Of `size` pictures at most, each its own."""
    parts = torch.split(images, size), torch.split(torch.arange(len(images)), size)
    return [Batch(*pair) for pair in zip(*parts, strict=True)]


def naive_odds(logits: np.ndarray) -> np.ndarray:
    return np.array([math.log(sum(map(math.exp, row[1:]))) - row[0] for row in logits])


@pytest.mark.parametrize("score", ["class", "map", "both"])
def test_what_is_seen_at_several_sizes_is_averaged(score: str) -> None:
    method = guided(scales=(32, 48), score=score, smoothing=0.0, top_fraction=0.1)
    assert method.scales == ((32, 32), (48, 48))
    assert method.scoring_size == (48, 48)
    images = pictures(6, side=48)
    with torch.no_grad():
        if method.class_head is not None:
            seen_odds = method.examine(images).odds
            assert seen_odds is not None
            ordered = seen_odds.flatten().sort().values
            method.class_head.last.bias[0] += (
                ordered[5] + ordered[6]
            ) / 2  # half of the votes each way
        got = method.score(images)
    small = F.interpolate(
        images, size=(32, 32), mode="bilinear", align_corners=False, antialias=True
    )
    seen = [looked(method, each) for each in (small, images)]
    odds = np.zeros((2, 6))
    if score != "map":
        odds = np.stack([naive_odds(logits) for logits, _ in seen])
    maps = np.mean([[upsampled(each, 12, 12) for each in marks] for _, marks in seen], axis=0)
    highest = np.array([np.mean(sorted(each.ravel())[-14:]) for each in maps])
    parts = {"class": odds.mean(0), "map": highest, "both": odds.mean(0) + highest}
    np.testing.assert_allclose(f64(got.image), parts[score], rtol=1e-3, atol=1e-4)
    np.testing.assert_allclose(f64(got.maps), maps, rtol=1e-3, atol=1e-4)
    assert (got.votes is None) == (score == "map")
    if got.votes is None:
        return
    np.testing.assert_array_equal(f64(got.votes), (odds > 0).mean(0))
    assert f64(got.votes).mean() == 0.5


@pytest.mark.parametrize("stride", [1, 2, 4])
def test_maps_are_averaged_at_a_size_of_ones_own(stride: int) -> None:
    """The papers average them at that of the picture: from a size in between they are not the same."""
    method = guided(scales=(32, 48), map_stride=stride, smoothing=0.0)
    images = pictures(3, side=48)
    small = F.interpolate(
        images, size=(32, 32), mode="bilinear", align_corners=False, antialias=True
    )
    marks = [looked(method, each)[1] for each in (small, images)]
    side = 48 // stride
    expected = np.mean([[upsampled(each, side, side) for each in scale] for scale in marks], axis=0)
    np.testing.assert_allclose(f64(method.score(images).maps), expected, rtol=1e-3, atol=1e-4)


def test_the_papers_six_maps_are_averaged_as_fine_as_the_largest_picture() -> None:
    method = guided(
        GuidedConfig.paper_aaai(), map_stride=GuidedConfig.paper_aaai().map_stride, scales=(32, 48)
    )
    assert method.score(pictures(2, side=48)).maps.shape == (2, 48, 48)


def test_without_sizes_there_is_one() -> None:
    method = guided()
    assert method.scales == ((SIDE, SIDE),)
    votes = method.score(pictures(3)).votes
    assert votes is not None
    assert set(votes.tolist()) <= {0.0, 1.0}
    oblong = guided(image_size=(32, 64))
    assert oblong.scales == ((32, 64),)
    assert oblong.score(torch.zeros(1, 3, 32, 64)).maps.shape == (1, 8, 16)


@pytest.mark.parametrize(
    ("image_size", "zoom", "expected"),
    [
        ((32,), 1.0, (32, 32)),
        ((32,), 2.0, (64, 64)),
        ((32, 64), 1.5, (48, 96)),
        ((48,), 0.7, (32, 32)),
    ],
)
def test_pictures_are_scored_larger_than_they_are_learned(
    image_size: tuple[int, ...], zoom: float, expected: tuple[int, int]
) -> None:
    method = guided(image_size=image_size, zoom=zoom)
    assert method.scales == (expected,)
    assert method.scoring_size == expected
    images = torch.zeros(2, 3, *expected)
    assert method.score(images).maps.shape == (2, expected[0] // 4, expected[1] // 4)
    if len(image_size) == 1:
        assert guided(image_size=image_size, zoom=zoom, scales=(48,)).scales == (
            (48, 48),
        )  # which say it all


def test_sizes_are_rounded_to_the_patches_and_count_once() -> None:
    method, rounded = guided(scales=(32, 48)), guided(scales=(30, 33, 47, 32))
    assert rounded.scales == method.scales
    images = pictures(3, side=48)
    one, other = method.score(images), rounded.score(images)
    assert torch.equal(one.image, other.image)
    assert torch.equal(one.maps, other.maps)


def test_other_sizes_with_the_same_weights() -> None:
    method = summarised(pictures(12, side=48), scales=(32, 48))
    other = method.with_scales((48,))
    for (name, one), (same, two) in zip(
        method.named_parameters(), other.named_parameters(), strict=True
    ):
        assert (name, one is two) == (same, True)
    assert (other.scales, method.scales) == (((48, 48),), ((32, 32), (48, 48)))
    assert (other.scoring_size, method.with_scales((32,)).scoring_size) == ((48, 48), (32, 32))
    images = pictures(4, 5, side=48)
    few, both = other.examine(images).odds, method.examine(images).odds
    assert few is not None
    assert both is not None
    np.testing.assert_allclose(f64(few), f64(both[1:]), rtol=1e-4)
    assert not torch.equal(other.score(images).image, method.score(images).image)
    back = other.with_scales((32, 48))
    for field in ("image", "maps", "votes"):
        assert torch.equal(getattr(back.score(images), field), getattr(method.score(images), field))


@pytest.mark.parametrize(
    ("adaptation", "kind"), [("features", Aligner), ("entropies", EntropyAdapter)]
)
def test_statistics_are_kept_for_the_sizes_that_have_them(adaptation: str, kind: type) -> None:
    method = summarised(pictures(12, side=48), scales=(32, 48), adaptation=adaptation)
    entropies = adaptation == "entropies"
    assert method.reference.entropies.shape == ((2, 4, 2, 2) if entropies else (0,))
    for scales, known in [((48,), [1]), ((32,), [0]), ((48, 32), [1, 0]), ((30, 48), [0, 1])]:
        other = method.with_scales(scales)
        assert not entropies or torch.equal(
            other.reference.entropies, method.reference.entropies[:, :, known]
        )
        # By the number of patches, so all of them may stay.
        for name in ("entropy_limit", "pictures", "moments", "drift_limits", "patch_counts"):
            assert torch.equal(getattr(other.reference, name), getattr(method.reference, name))
        assert isinstance(other.adapter("online"), kind)
    for scales in ((64,), (32, 48, 64)):
        with pytest.raises(ConfigError, match=r"no statistics to adapt to.*at other sizes"):
            method.with_scales(scales).adapter("online")
    with pytest.raises(ConfigError, match="scales: at least 1"):
        method.with_scales((0,))
    with pytest.raises(ConfigError, match="square"):
        guided(image_size=(32, 64)).with_scales((32,))


def entropies_of(method: Guided, images: Tensor) -> np.ndarray:
    found = method.examine(images).entropies
    assert found is not None
    return f64(found)


def test_the_statistics_are_those_of_pictures_and_twins_at_every_size(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    method = guided(scales=(32, 48), adaptation="entropies")
    images, twins = pictures(7, side=48), pictures(7, 9, side=48)
    given: list[tuple[Tensor, Tensor]] = []

    def simulated(some: Tensor, guide: Tensor) -> tuple[Tensor, None, None]:
        given.append((some, guide))
        return twins[sum(len(earlier) for earlier, _ in given[:-1]) :][: len(some)], None, None

    monkeypatch.setattr(method, "_simulated", simulated)
    guide = method.encode(
        F.interpolate(images, (SIDE, SIDE), mode="bilinear", align_corners=False, antialias=True)
    )
    method.summarise(lambda: batches(images), 0, silent)
    torch.testing.assert_close(
        torch.cat([each for _, each in given]), guide["guide"], rtol=1e-4, atol=1e-6
    )
    for kind, seen in enumerate((images, twins)):
        entropies = entropies_of(method, seen)
        np.testing.assert_allclose(
            f64(method.reference.entropies[kind, 0]), entropies.mean(1), rtol=1e-4
        )
        np.testing.assert_allclose(
            f64(method.reference.entropies[kind, 1]), entropies.var(1), rtol=1e-3, atol=1e-7
        )
    limit, known = float(method.reference.entropy_limit), float(method.reference.pictures)
    assert limit > 0
    assert known == 7


@pytest.mark.parametrize("bank_size", [0, 10])
def test_the_moments_are_those_of_pictures_and_not_of_twins_at_every_size(bank_size: int) -> None:
    images = pictures(7, side=48)
    method = summarised(images, scales=(32, 48), bank_size=bank_size)
    assert method.reference.patch_counts.tolist() == [4, 9]
    assert method.reference.pictures == 7
    small = F.interpolate(
        images, size=(32, 32), mode="bilinear", align_corners=False, antialias=True
    )
    for size, each in enumerate((small, images)):
        tokens = method.backbone(each, (1, 2, 3, 4, 5, 6)).tokens
        seen = np.stack(
            [[f64(kept).mean(1), np.log(f64(kept).std(1))] for kept in tokens]
        ).transpose(2, 0, 1, 3)
        np.testing.assert_allclose(
            f64(method.reference.moments[size, :, 0]), seen.mean(0), rtol=1e-3, atol=1e-4
        )
        np.testing.assert_allclose(
            f64(method.reference.moments[size, :, 1]), seen.std(0, ddof=1), rtol=1e-3, atol=1e-4
        )
    assert method.reference.drift_limits.shape == (2, 6)
    assert (method.reference.drift_limits > 0).all()


def test_oblong_pictures_are_adapted_to() -> None:
    images = torch.randn(16, 3, 32, 64)
    method = summarised(images, image_size=(32, 64))
    adapter = method.adapter("online")
    assert (method.reference.patch_counts.tolist(), adapter.score(images).adapted) == ([8], False)
    assert adapter.score(images * 3 + 5).adapted


def taken(few: list[Tensor], images: Tensor) -> list[int]:
    """Which of `images` are among `few`."""
    return [
        next(i for i, one in enumerate(images) if torch.equal(one, each))
        for part in few
        for each in part
    ]


@pytest.mark.parametrize("size", [1, 2, 3, 5])
def test_the_statistics_are_of_some_pictures_evenly_from_all(
    size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They may be sorted, as these are, by brightness."""
    monkeypatch.setattr("blemish.methods.guided.SUMMARISED", 12)
    method, images = guided(adaptation="entropies"), pictures(60)
    given: list[Tensor] = []
    simulated = method._simulated

    def watched(some: Tensor, guide: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        given.append(some)
        return simulated(some, guide)

    monkeypatch.setattr(method, "_simulated", watched)
    listed = batches(images, size)
    method.summarise(lambda: listed, len(images), silent)
    chosen = taken(given, images)
    assert 12 <= len(chosen) <= 24
    assert max(np.diff([-1, *chosen, 60])) <= 5 * size  # whole batches
    entropies = entropies_of(method, images)
    np.testing.assert_allclose(
        f64(method.reference.entropies[0, 0]), entropies[:, chosen].mean(1), rtol=1e-4
    )
    np.testing.assert_allclose(
        f64(method.reference.entropies[0, 0]), entropies.mean(1), atol=entropies.std() / 2
    )
    assert method.reference.pictures == len(chosen)


@pytest.mark.parametrize("size", [1, 5, 12, 60])
def test_the_bank_is_judged_by_some_pictures_evenly_from_all(
    size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("blemish.methods.guided.LEFT_OUT", 12)
    method, images = guided(bank_size=1000), pictures(60)
    judged: list[int] = []
    distance = method._distance

    def watched(described: Tensor, left_out: Tensor) -> Tensor:
        (entries,) = torch.nonzero(left_out, as_tuple=True)
        judged.append(int(entries[0]) // 4)
        assert entries.tolist() == list(
            range(4 * judged[-1], 4 * judged[-1] + 4)
        )  # its own, and no others
        return distance(described, left_out)

    monkeypatch.setattr(method, "_distance", watched)
    listed = batches(images, size)
    method.summarise(lambda: listed, len(images), silent)
    assert len(method.bank) == 60 * 4
    assert judged == list(range(0, 60, 5))


@pytest.mark.parametrize("size", [64, 300])
def test_batches_of_any_size_are_summarised(size: int) -> None:
    """Also ones of more pictures than are wanted, and fewer than announced, as where pictures are
    broken.
    """
    method, images = guided(bank_size=20), pictures(size)
    method.summarise(lambda: batches(images, size), len(images) + 10, silent)
    assert method.reference.moments.numel() > 0
    assert torch.isfinite(method.normal).all()


def test_how_many_pictures_are_wanted() -> None:
    assert guided().summarised() == SUMMARISED == 256
    assert guided(bank_size=10).summarised() is None  # a bank is of all


def test_summarising_draws_the_same_each_time_and_leaves_the_generator() -> None:
    one, other = summarised(pictures(12), adaptation="entropies"), guided(adaptation="entropies")
    torch.manual_seed(5)
    state = torch.get_rng_state()
    other.summarise(lambda: batches(pictures(12)), 0, silent)
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(one.reference.entropies, other.reference.entropies)
    again = summarised(pictures(12), seed=1, adaptation="entropies")
    assert torch.equal(again.reference.entropies[0], one.reference.entropies[0])
    assert not torch.equal(again.reference.entropies[1], one.reference.entropies[1])


def test_a_single_picture_says_nothing_of_its_kind() -> None:
    method = summarised(pictures(1))
    assert (
        method.reference.entropies.numel()
        == method.reference.moments.numel()
        == method.reference.patch_counts.numel()
        == 0
    )
    with pytest.raises(ConfigError, match="fitted on a single picture"):
        method.adapter("online")


# What figures show of it


@pytest.mark.parametrize("score", ["class", "both"])
def test_where_the_class_is_read_figures_show_what_the_projection_head_takes(score: str) -> None:
    """The final [CLS] token of the encoder as it was trained, not features that training left
    alone.
    """
    method = guided(scales=(32, 48), score=score)
    images = pictures(3, side=48)
    norm = method.backbone.model.norm
    small = F.interpolate(
        images, size=(32, 32), mode="bilinear", align_corners=False, antialias=True
    )
    tokens = [f64(method.backbone(each, (6,)).cls[0]) for each in (small, images)]
    rows = [
        [layer_normed(row, f64(norm.weight), f64(norm.bias), norm.eps) for row in each]
        for each in tokens
    ]
    shown = f64(method.embedding(images))
    np.testing.assert_allclose(shown, np.mean(rows, axis=0), rtol=1e-4, atol=1e-5)
    taken: list[Tensor] = []
    assert method.class_head is not None
    method.class_head.register_forward_pre_hook(lambda _, given: taken.append(given[0].detach()))
    method.score(images)
    np.testing.assert_allclose(f64(torch.stack(taken).mean(0)), shown, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("bank_size", [0, 50])
def test_where_the_map_is_the_score_figures_show_the_features_where_it_is_high(
    bank_size: int,
) -> None:
    method = summarised(pictures(5, side=48), image_size=(48,), score="map", bank_size=bank_size)
    images = pictures(3, 9, side=48)
    features = described(method, images)
    maps = f64(method.examine(images).maps)[:, 0]
    expected = np.zeros((3, 64))
    for picture in range(3):
        places = maps[picture].reshape(3, 4, 3, 4).mean((1, 3)).ravel()
        weights = np.exp(places - places.max())
        expected[picture] = weights @ features[picture] / weights.sum()
    np.testing.assert_allclose(f64(method.embedding(images)), expected, rtol=1e-3, atol=1e-5)


# The bank


def described(method: Guided, images: Tensor) -> np.ndarray:
    """B N D: the mean of the layers, each normalised, then of the neighbours that there are; of
    unit length.
    """
    seen = method.backbone(images, method.map_layers)
    grid = seen.grids[0]
    result = np.zeros((len(images), *grid, 64))
    for picture, row, column in np.ndindex(*result.shape[:3]):
        near = [
            layer_normed(f64(tokens[picture, y * grid[1] + x]))
            for y, x in np.ndindex(*grid)
            if abs(y - row) <= 1 and abs(x - column) <= 1
            for tokens in seen.tokens
        ]
        result[picture, row, column] = sum(near) / len(near)
        result[picture, row, column] /= math.sqrt(sum(result[picture, row, column] ** 2))
    return result.reshape(len(images), -1, 64)


@pytest.mark.parametrize("weight", [0.0, 0.5, 2.0])
def test_the_learned_map_is_weighed_beside_the_distance_to_the_bank_each_in_its_own_unit(
    weight: float,
) -> None:
    settings: dict[str, Any] = {"image_size": (48,), "smoothing": 0.0, "head_weight": weight}
    images = pictures(5, side=48)
    method = summarised(images, bank_size=1000, **settings)
    features = described(method, images)
    np.testing.assert_allclose(f64(method.bank), features.reshape(-1, 64), atol=1e-5)
    learned = np.stack([upsampled(each, 12, 12) for each in looked(method, images)[1]])
    left_out = []
    for picture, place in np.ndindex(5, 9):
        others = np.delete(features, picture, axis=0).reshape(-1, 64)
        left_out.append(min(math.dist(features[picture, place], other) for other in others))

    new = pictures(3, 9, side=48) * 0.5
    maps = looked(method, new)[1]
    got = method.examine(new).maps
    for picture, rows in enumerate(described(method, new)):
        distances = [
            min(math.dist(row, other) for other in features.reshape(-1, 64)) for row in rows
        ]
        expected = (upsampled(maps[picture], 12, 12) - learned.mean()) / learned.std(ddof=1)
        expected *= weight
        expected += (upsampled(np.reshape(distances, (3, 3)), 12, 12) - np.mean(left_out)) / np.std(
            left_out, ddof=1
        )
        np.testing.assert_allclose(f64(got[picture, 0]), expected, rtol=1e-3, atol=1e-3)


def test_the_bank_is_asked_in_the_size_that_it_is_of() -> None:
    """Whether or not that is one of those that are looked at, whose features then serve twice."""
    images = pictures(6, side=48)
    method = summarised(images, scales=(32, 48), bank_size=1000)
    other = method.with_scales((32,))
    new = pictures(3, 9, side=48)
    seen, other_seen = method._at_scales(new), other._at_scales(new)
    assert (len(seen), len(other_seen)) == (2, 1)
    for one in (method._described(seen, new), other._described(other_seen, new)):
        np.testing.assert_allclose(f64(one).reshape(3, -1, 64), described(method, new), atol=1e-5)


def test_the_bank_has_a_size() -> None:
    method = summarised(pictures(12), bank_size=10)
    assert method.bank.shape == (10, 64)
    assert np.isfinite(f64(method.score(pictures(3)).image)).all()
    assert summarised(pictures(12)).bank.numel() == 0


def test_a_bank_of_one_picture_does_not_drown_the_learned_map() -> None:
    method = summarised(pictures(1), bank_size=100)
    assert method.score(pictures(3, 5)).maps.abs().max() < 1000


@pytest.mark.parametrize("bank_size", [0, 10])
def test_before_it_is_fitted_it_scores_nothing(bank_size: int) -> None:
    method = Guided(GuidedConfig(**(TINY | {"bank_size": bank_size})), sharp()).eval()
    for ask in (method.score, method.examine):
        with pytest.raises(NotFittedError, match="this guided detector has not been fitted"):
            ask(pictures())


# End to end


def good(picture: Part, count: int) -> list[np.ndarray]:
    return [picture(seed) for seed in range(count)]


def same_weights(one: blemish.Detector, other: blemish.Detector) -> bool:
    states = [detector.method.fitted_state() for detector in (one, other)]
    assert states[0].keys() == states[1].keys()
    return all(torch.equal(tensor, states[1][name]) for name, tensor in states[0].items())


def interrupt_after(step: int) -> Progress:
    """Ctrl-C once that many steps are made."""

    def told(stage: str, done: int, total: int) -> None:
        if stage.startswith("training") and done == step:
            raise KeyboardInterrupt

    return told


@pytest.fixture(scope="module")
def whole(picture: Part) -> blemish.Detector:
    return blemish.fit(
        "guided", good(picture, 10), calibration_fraction=0.2, scales=(32, 48), **FIT
    )


def test_it_is_fitted_saved_and_loaded(
    whole: blemish.Detector, picture: Part, tmp_path: Path
) -> None:
    assert whole.manifest["config"]["simulators"] == ["guided", "guided-fine"]
    assert whole.manifest["training"]["steps"] == 6
    assert set(whole.manifest["training"]["findings"]) == {
        "guidance_entropy",
        "guidance_peak_to_mean",
    }
    assert (whole.preprocessing.height, whole.preprocessing.width) == (48, 48)
    path = whole.save(tmp_path / "part.blemish")
    loaded = blemish.load(path, device="cpu", precision="fp32")
    assert same_weights(loaded, whole)
    for seed in range(50, 53):
        one, other = whole.predict(picture(seed)), loaded.predict(picture(seed))
        assert one == other
        assert np.array_equal(one.anomaly_map, other.anomaly_map)
        assert one.votes is None  # its score is the map's
    loaded.method.adapter("episodic")  # its statistics came along


@pytest.mark.parametrize(
    ("bank_size", "expected"),
    [(0, [0, 3, 6, 9]), (50, list(range(11)))],
    ids=["some", "all, for the bank"],
)
def test_it_is_given_the_pictures_that_it_wants(
    bank_size: int, expected: list[int], picture: Part, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("blemish.methods.guided.SUMMARISED", 4)
    given: list[Tensor] = []
    told: list[tuple[str, int, int]] = []
    summarise = Guided.summarise

    def watched(method: Guided, stream: Callable[[], Any], count: int, progress: Progress) -> None:
        given.extend(batch.images for batch in stream())
        assert count == sum(map(len, given))
        summarise(method, stream, count, progress)

    monkeypatch.setattr(Guided, "summarise", watched)
    detector = blemish.fit(
        "guided",
        good(picture, 11),
        calibration_fraction=0,
        batch_size=3,
        progress=lambda *call: told.append(call),
        **(FIT | {"bank_size": bank_size, "min_steps": 1}),
    )
    everything = torch.stack(
        [prepare(decode(each), detector.preprocessing) for each in good(picture, 11)]
    )
    assert taken(given, everything) == expected
    done = np.cumsum([len(images) for images in given]).tolist()
    assert [call for call in told if call[0] == "remembering"] == [
        ("remembering", each, done[-1]) for each in done
    ]


def test_it_learns_in_one_size_and_scores_in_another(
    picture: Part, monkeypatch: pytest.MonkeyPatch
) -> None:
    sides: dict[str, set[int]] = {"learning": set(), "kept": set()}
    step, look = Guided.training_step, Guided._look

    def learning(method: Guided, batch: TrainingBatch, progress: float) -> Tensor:
        assert batch.images is not None
        sides["learning"].add(batch.images.shape[-1])
        return step(method, batch, progress)

    def kept(method: Guided, seen: Any, images: Tensor) -> Any:
        sides["kept"].add(images.shape[-1])
        return look(method, seen, images)

    monkeypatch.setattr(Guided, "training_step", learning)
    monkeypatch.setattr(Guided, "_look", kept)
    options: dict[str, Any] = {**FIT, "min_steps": 1, "zoom": 2.0}
    detector = blemish.fit("guided", good(picture, 5), calibration_fraction=0, **options)
    assert sides == {"learning": {SIDE}, "kept": {2 * SIDE}}
    assert detector.method.config.image_size == (SIDE, SIDE)
    assert (detector.preprocessing.height, detector.preprocessing.width) == (2 * SIDE, 2 * SIDE)
    assert detector.predict(picture(50)).anomaly_map.shape == (SIDE // 2, SIDE // 2)
    assert detector.method.bank.shape == (5 * 16, 64)


def test_turned_pictures_are_in_the_bank(picture: Part) -> None:
    """As every training picture is learned at every angle; or turned ones are far from all that is
    known.
    """
    options: dict[str, Any] = {
        **FIT,
        "min_steps": 1,
        "rotations": 4,
        "head_weight": 0.0,
        "pooling": 1,
    }
    detector = blemish.fit("guided", good(picture, 5), calibration_fraction=0, **options)
    assert detector.method.bank.shape == (5 * 4 * 4, 64)
    upright, sideways = (
        detector.predict(np.rot90(picture(3), turns).copy()).score for turns in (0, 1)
    )
    assert sideways == pytest.approx(upright, abs=0.05)


def test_it_computes_in_bf16_and_keeps_its_weights_in_float32(
    whole: blemish.Detector, picture: Part, tmp_path: Path
) -> None:
    path = whole.save(tmp_path / "part.blemish")
    coarse = blemish.load(path, device="cpu", precision="bf16")
    assert coarse.method.precision == torch.bfloat16
    assert coarse.predict(picture(50)).score != whole.predict(picture(50)).score
    assert coarse.save(tmp_path / "again.blemish").read_bytes() == path.read_bytes()


def test_trained_in_bf16_its_weights_are_float32(picture: Part, tmp_path: Path) -> None:
    options: dict[str, Any] = {**FIT, "precision": "bf16", "bank_size": 0, "score": "both"}
    detector = blemish.fit("guided", good(picture, 6), calibration_fraction=0, **options)
    assert detector.manifest["precision"] == "bf16"
    state = detector.method.fitted_state()
    learned = [tensor for name, tensor in state.items() if name.startswith(("backbone.", "head."))]
    assert {tensor.dtype for tensor in learned} == {torch.float32}
    assert any(not torch.equal(tensor, tensor.bfloat16().float()) for tensor in learned)
    fine = blemish.load(detector.save(tmp_path / "part.blemish"), device="cpu", precision="fp32")
    assert fine.predict(picture(50)).score == pytest.approx(
        detector.predict(picture(50)).score, abs=0.1
    )


def test_scores_are_finer_than_the_precision_that_they_are_computed_in() -> None:
    """Or many pictures would tie: bf16 knows 128 numbers between 1 and 2."""
    method = guided(map_head="attention")
    with torch.autocast("cpu", dtype=torch.bfloat16):
        seen = method.read(method.see(pictures(8)))
    exact = method.read(method.see(pictures(8)))
    for given, wanted in ((seen.logits, exact.logits), (seen.mask_logits, exact.mask_logits)):
        torch.testing.assert_close(
            given, wanted, rtol=0.1, atol=0.2
        )  # the attention itself is of bf16
        assert given.dtype == torch.float32
        assert not torch.equal(given, given.bfloat16().float())


def test_resumed_it_ends_with_the_same_bits(
    whole: blemish.Detector, picture: Part, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("blemish.training.loop.BETWEEN_CHECKPOINTS", 0.0)
    options: dict[str, Any] = {**FIT, "calibration_fraction": 0.2, "scales": (32, 48)}
    place = tmp_path / "x.training"
    with pytest.raises(KeyboardInterrupt):
        blemish.fit(
            "guided", good(picture, 10), checkpoint=place, progress=interrupt_after(4), **options
        )
    resumed = blemish.fit("guided", good(picture, 10), checkpoint=place, resume=True, **options)
    assert resumed.manifest["training"]["resumed_at"] == 4
    assert same_weights(resumed, whole)
    assert resumed.predict(picture(50)) == whole.predict(picture(50))


def test_what_does_not_fit_in_memory_is_guided_alike(
    whole: blemish.Detector, picture: Part
) -> None:
    """The guidance is then computed anew in every epoch, while the encoder learns."""
    options: dict[str, Any] = {
        **FIT,
        "calibration_fraction": 0.2,
        "scales": (32, 48),
        "cache_gib": 0.0,
    }
    detector = blemish.fit("guided", good(picture, 10), **options)
    assert (detector.manifest["training"]["cached"], whole.manifest["training"]["cached"]) == (
        False,
        True,
    )
    assert same_weights(detector, whole)


# Settings


def test_the_poster_and_its_successor() -> None:
    first, second = (configure("guided", recipe=name) for name in ("paper-bmvc", "paper-aaai"))
    assert isinstance(first, GuidedConfig)
    assert (first.backbone, first.height_width, first.scales) == ("dino_vits16", (224, 224), ())
    assert (first.epochs, first.min_steps, first.train_batch_size) == (100, 0, 16)
    assert (first.learning_rate_start, first.learning_rate, first.warmup) == (1e-5, 5e-4, 0.1)
    assert (first.cross_entropy_weight, first.dice_weight, first.bce_weight) == (0.95, 0.05, 0.0)
    assert (GuidedConfig.best().trainable_blocks, GuidedConfig.best().map_head) == (0, "patches")
    assert (first.map_head, first.trainable_blocks, first.layer_decay, first.score) == (
        "attention",
        None,
        1.0,
        "class",
    )
    assert (first.guidance, first.guide_layers, first.ema, first.smoothing) == (
        "attention",
        (-1,),
        False,
        0.0,
    )
    assert (first.bank_size, first.zoom, first.simulators) == (0, 1.0, ("guided",))
    assert SIX_SCALES == (224, 320, 384, 416, 448, 512)
    added: dict[str, Any] = {"blend_x_rays": True, "scales": SIX_SCALES, "map_stride": 1}
    added |= {"pretraining": "published", "pretraining_recipe": "paper"}
    assert second == replace(first, **added)
    assert set(GuidedConfig.recipes()) == {"best", "paper-bmvc", "paper-aaai"}
    assert configure("guided") == GuidedConfig()


def test_the_posters_adaptation_is_always_made_and_at_the_rate_of_published_code() -> None:
    """The rate of ours, and the guard, were found while looking at test pictures: not the paper's."""
    for config in (GuidedConfig.paper_bmvc(), GuidedConfig.paper_aaai()):
        assert (config.adaptation, config.adaptation_guard) == ("entropies", False)
        assert (config.adaptation_rate, config.adaptation_steps) == (1e-3, 1)
    assert GuidedConfig().adaptation_guard
    method = summarised(
        pictures(12), **{**TINY, "adaptation": "entropies", "adaptation_guard": False}
    )
    images = pictures(12)  # those of the training, which the guard would leave as they are
    result = method.adapter("online").score(images)
    assert (result.adapted, result.note) == (True, "")
    assert not torch.equal(result.scores.image, method.score(images).image)


def test_the_pre_training_that_belongs_to_the_settings() -> None:
    assert GuidedConfig().pretraining_config is None
    assert GuidedConfig.paper_bmvc().pretraining_config is None
    paper = replace(GuidedConfig.paper_aaai(), seed=3, backbone="focus_vits14", cache_gib=1.0)
    published = replace(APMaskConfig.paper(), seed=3, backbone="focus_vits14", cache_gib=1.0)
    assert paper.pretraining_config == published
    assert published.epochs == 300
    ours = GuidedConfig(
        pretraining="apmask",
        pretraining_epochs=7,
        masking="random",
        mask_ratio=0.5,
        image_size=(224, 448),
    )
    sizes = {
        "image_size": 317,
        "local_size": 136,
        "picture_size": 724,
    }  # by √2, as the area is twice 224²
    assert ours.pretraining_config == replace(
        APMaskConfig.best(), epochs=7, masking="random", mask_ratio=0.5, **sizes
    )
    dino = replace(GuidedConfig(), pretraining="dino").pretraining_config
    assert dino == APMaskConfig(objective="dino", epochs=300)


def test_what_x_rays_change() -> None:
    best, poster, paper = (
        GuidedConfig.recipes()[name]() for name in ("best", "paper-bmvc", "paper-aaai")
    )
    for config in (best, paper):
        assert config.for_pictures(x_rays=True).simulators == ("guided-poisson",)
        assert config.for_pictures(x_rays=False).simulators == config.simulators
    for x_rays in (True, False):
        assert poster.for_pictures(x_rays=x_rays).simulators == ("guided",)  # hard, everywhere
        chosen = replace(best, simulators=("nsa", "guided"))
        assert chosen.for_pictures(x_rays=x_rays).simulators == ("nsa", "guided")
        for asked in ("apmask", "dino", "none"):  # whoever asks for it by name gets it
            config = replace(paper, pretraining=asked)
            assert config.for_pictures(x_rays=x_rays).pretraining == asked
    assert paper.for_pictures(x_rays=True).pretraining_config is None
    assert paper.for_pictures(x_rays=False).pretraining == "apmask"


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"simulators": ()}, "simulators: at least 1"),
        ({"simulators": ("gided",)}, "did you mean 'guided'"),
        ({"cross_entropy_weight": -0.1}, "cross_entropy_weight: a finite number from 0"),
        ({"dice_weight": math.inf}, "dice_weight: a finite number from 0"),
        ({"bce_weight": math.nan}, "bce_weight: a finite number from 0"),
        ({"head_weight": -0.5}, "head_weight: a finite number from 0"),
        ({"head_weight": math.inf}, "head_weight: a finite number from 0"),
        ({"learning_rate_start": -1e-5}, "learning_rate_start: a finite number from 0"),
        (
            {"cross_entropy_weight": 0, "dice_weight": 0, "bce_weight": 0},
            "one of them must be above 0",
        ),
        (
            {"dice_weight": 0, "bce_weight": 0},
            "another than cross_entropy_weight where score is map",
        ),
        ({"map_stride": 0}, "map_stride: at least 1"),
        ({"layer_decay": 0.0}, r"layer_decay: a fraction in \(0, 1\]"),
        ({"layer_decay": 1.1}, r"layer_decay: a fraction in \(0, 1\]"),
        ({"warmup": 1.0}, r"warmup: a fraction in \[0, 1\)"),
        ({"warmup": -0.1}, r"warmup: a fraction in \[0, 1\)"),
        ({"trainable_blocks": -1}, "trainable_blocks: null or at least 0"),
        ({"bank_size": -1}, "bank_size: at least 0"),
        ({"pooling": 0}, "pooling: an odd number from 1"),
        ({"pooling": 2}, "pooling: an odd number from 1"),
        ({"scales": (224, 0)}, "scales: at least 1"),
        ({"zoom": 0.2}, "zoom: a finite number from 0.25 up to 8"),
        ({"zoom": 8.5}, "zoom: a finite number from 0.25 up to 8"),
        ({"zoom": math.nan}, "zoom: a finite number from 0.25 up to 8"),
        ({"scales": (224,), "image_size": (224, 448)}, "choose a square image_size"),
        ({"adaptation_rate": 0.0}, "adaptation_rate: a positive finite number"),
        ({"adaptation_rate": math.inf}, "adaptation_rate: a positive finite number"),
        ({"adaptation_steps": 0}, "adaptation_steps: at least 1 is needed, got 0"),
        ({"pretraining_epochs": 0}, "pretraining_epochs: at least 1"),
        ({"mask_ratio": 1.0}, r"mask_ratio: a fraction in \[0, 1\)"),
    ],
)
def test_settings_out_of_range(settings: dict[str, Any], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        GuidedConfig(**settings)


@pytest.mark.parametrize(
    "assignment",
    [
        "guidance=nowhere",
        "map_head=places",
        "score=sum",
        "trainable_blocks=some",
        "scales=a",
        "pretraining=msn",
    ],
)
def test_words_that_are_no_choice(assignment: str) -> None:
    with pytest.raises(ConfigError, match=assignment.partition("=")[0]):
        configure("guided", assignments=[assignment])


def test_layers_that_do_not_exist() -> None:
    for settings in (
        {"guide_layers": (7,)},
        {"guide_layers": (0,)},
        {"guide_layers": (-7,)},
        {"layers": (2, 9)},
    ):
        with pytest.raises(
            ConfigError, match=r"does not exist: test_vit has layers 1 to 6|count from 1, or"
        ):
            guided(**settings)


@pytest.mark.parametrize("name", ["test_resnet", "test_vit2"])
def test_a_backbone_without_a_cls_token_is_refused(name: str, picture: Part) -> None:
    settings = {**FIT, "backbone": name, "layers": (1, 2)}
    with pytest.raises(
        ConfigError, match=rf"guided needs a ViT with a \[CLS\] token, which {name} is not"
    ):
        blemish.fit("guided", good(picture, 3), **settings)

"""The guided method: its parts against naive loops in float64, its guidance, sizes and training."""

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
from naive import f64, gelu, layer_normed, upsampled
from torch import Tensor
from torch.nn import functional as F

import blemish
from blemish.anomalies import Synthetic
from blemish.backbones import Backbone, build
from blemish.data.transforms import prepare
from blemish.errors import ConfigError, NotFittedError
from blemish.images import decode
from blemish.methods.adaptation import EntropyAdapter
from blemish.methods.alignment import Aligner
from blemish.methods.apmask import APMaskConfig
from blemish.methods.augmentation import augmented
from blemish.methods.guided import Guided, log_odds, spread
from blemish.methods.guided_config import GuidedConfig
from blemish.methods.heads import ClassHead
from blemish.methods.learner import TrainingBatch
from blemish.types import Batch, Progress, silent

Part = Callable[..., np.ndarray]
SIDE = 32
MEAN = STD = torch.full((3, 1, 1), 0.5)  # of the test backbone
SMALL: dict[str, Any] = {
    "backbone": "test_vit",
    "image_size": (SIDE,),
    "layers": (2, 4),
    "train_batch_size": 4,
}
TINY = {**SMALL, "guide_layers": (6,), "bank_size": 0, "zoom": 1.0}
# With every head that there is.
WHOLE = GuidedConfig(map_head="features", score="both", trainable_blocks=4)
FIT: dict[str, Any] = {
    **SMALL,
    "weights": "random",
    "device": "cpu",
    "precision": "fp32",
    "epochs": 1,
    "min_steps": 6,
    "zoom": 1.0,
}
WITH_SCALES = {**FIT, "calibration_fraction": 0.2, "scales": (32, 48)}


@pytest.fixture(autouse=True, scope="module")
def _small_head() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            "blemish.methods.guided.ClassHead", partial(ClassHead, hidden=32, bottleneck=16)
        )
        yield


def sharp(name: str = "test_vit", **options: Any) -> Backbone:
    """One whose [CLS] token looks at some patches more: with random weights it hardly does."""
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
    bright = torch.linspace(0.3, 1, count)[:, None, None, None]
    pixels = torch.rand(count, 3, side, side, generator=generator) * bright
    return (pixels - MEAN) / STD


def smaller(images: Tensor) -> Tensor:
    return F.interpolate(
        images, size=(SIDE, SIDE), mode="bilinear", align_corners=False, antialias=True
    )


def batch_of(method: Guided, images: Tensor) -> TrainingBatch:
    return TrainingBatch(images, method.encode(images))


def train(method: Guided, batch: TrainingBatch, steps: int) -> list[float]:
    """What the engine does, with the same draws in every step: the losses."""
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


def naive_odds(logits: np.ndarray) -> np.ndarray:
    return np.array([math.log(sum(map(math.exp, row[1:]))) - row[0] for row in logits])


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
            x = gelu(linear("class_head.layers.2", gelu(linear("class_head.layers.0", x))))
            x = linear("class_head.layers.4", x)
            logits.append(linear("class_head.last", x / math.sqrt(x @ x)))
        marks = np.zeros(heads.shape[1])
        for place in range(len(marks)):
            if method.attention_mix is not None:
                marks[place] = state["attention_mix.bias"]
                for head, row in enumerate(heads):
                    marks[place] += state["attention_mix.weights"][head] * len(marks) * row[place]
            if method.segmentation_head is not None:
                tokens = [layer_normed(f64(each[picture, place])) for each in seen.tokens[:-1]]
                hidden = gelu(linear("segmentation_head.inward", np.concatenate(tokens)))
                marks[place] += linear("segmentation_head.outward", hidden)[0]
        maps.append(marks.reshape(seen.grids[0]))
    return np.stack(logits) if logits else np.empty(0), np.stack(maps)


# The parts


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


def test_log_odds_of_any_of_several_classes() -> None:
    logits = torch.randn(5, 3) * 4
    np.testing.assert_allclose(f64(log_odds(logits)), naive_odds(f64(logits)), rtol=1e-5)


def test_what_never_changes_has_a_spread_of_1() -> None:
    assert spread(torch.full((5,), 2.0)).tolist() == [2, 1]


# The loss


@pytest.mark.parametrize(
    ("base", "settings", "kinds"),
    [
        (GuidedConfig.paper_bmvc(), {"simulators": ("guided",)}, [1, 1]),
        (GuidedConfig(), {"dice_weight": 0.3, "bce_weight": 0.7}, [2, 1]),
        (WHOLE, {"dice_weight": 0.0, "cross_entropy_weight": 0.2}, [1, 2]),
    ],
)
def test_the_loss_of_a_step(
    base: GuidedConfig, settings: dict[str, Any], kinds: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    method = guided(base, augment=False, **{"simulators": ("cutpaste-3way",), **settings})
    images = pictures(2)
    batch = batch_of(method, images)
    labels = np.random.default_rng(0).random((2, SIDE, SIDE), dtype=np.float32)
    asked: list[Any] = []

    def simulate(*given: Any) -> list[Synthetic]:
        asked.extend(given)
        parts = zip(given[1], labels, kinds, strict=True)
        return [Synthetic(1 - picture, label > 0, label, kind) for picture, label, kind in parts]

    monkeypatch.setattr("blemish.methods.guided.simulate_batch", simulate)
    loss = method.training_step(batch, 0.4)
    simulators, pixels, guide, seeds = asked
    assert [each.name for each in simulators] == list(method.config.simulators)
    np.testing.assert_allclose(pixels, f64((images * STD + MEAN).permute(0, 2, 3, 1)), atol=1e-6)
    np.testing.assert_array_equal(guide, batch.features["guide"].numpy())
    assert len(set(seeds)) == 2

    twins = ((1 - (images * STD + MEAN)) - MEAN) / STD
    pairs = zip(looked(method, images), looked(method, twins), strict=True)
    logits, marks = (np.concatenate(pair) for pair in pairs)
    crosses, dices, places = [0.0], [], []
    if method.class_head is not None:
        rows = zip(logits, [0, 0, *kinds], strict=True)
        crosses = [math.log(sum(map(math.exp, row))) - row[kind] for row, kind in rows]
    wanted = [0 * labels[0], 0 * labels[0], *labels.astype(float)]
    for number, (each, label) in enumerate(zip(marks, wanted, strict=True)):
        shares = np.array([sigmoid(value) for value in upsampled(each, SIDE, SIDE).ravel()])
        for share, target in zip(shares, label.ravel(), strict=True):
            places.append(-target * math.log(share) - (1 - target) * math.log(1 - share))
        if number >= 2:  # Dice is taken of the twins only
            dices.append(1 - (2 * (shares @ label.ravel()) + 1) / (shares.sum() + label.sum() + 1))
    config = method.config
    expected = config.cross_entropy_weight * np.mean(crosses) + config.dice_weight * np.mean(dices)
    assert loss.item() == pytest.approx(expected + config.bce_weight * np.mean(places), rel=1e-4)


def test_a_normal_picture_and_its_twin_differ_only_where_something_was_pasted(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Or values beyond white in one of them would tell them apart without any anomaly."""
    method = guided(augment=True)
    images = pictures(8)
    images[::2] = images[::2] * 0.1 + 0.9  # close to white, which augmentation makes brighter still
    batch = batch_of(method, images)
    shown: list[Tensor] = []
    labels: list[Tensor] = []
    see, simulated = method.see, method._simulated
    monkeypatch.setattr(method, "see", lambda given: shown.append(given) or see(given))  # type: ignore[func-returns-value]
    monkeypatch.setattr(
        method, "_simulated", lambda *given: labels.append(made := simulated(*given)) or made
    )
    method.training_step(batch, 0.5)
    normal, twins = shown[0].chunk(2)
    changed, pasted = (normal - twins).abs().amax(1), labels[0][1] > 0
    assert changed[pasted].max() > 0.1
    assert changed[~pasted].max() < 1e-5


# Guidance


@pytest.mark.parametrize(
    ("given", "layers"), [((), (2, 4)), ((6,), (6,)), ((-1,), (6,)), ((-6, 3), (1, 3))]
)
def test_the_guide_is_where_the_encoder_as_it_came_looks(
    given: tuple[int, ...], layers: tuple[int, ...]
) -> None:
    method, images = guided(guide_layers=given), pictures(3, side=48)
    rows = [attention_of(method.backbone, images, layer).mean(1) for layer in layers]
    expected = np.mean(rows, axis=0).reshape(3, 3, 3)
    np.testing.assert_allclose(f64(method.encode(images)["guide"]), expected, rtol=1e-4)
    assert np.ptp(expected, axis=(1, 2)).min() > 0.02


def test_the_guide_stays_while_the_encoder_learns() -> None:
    method, images = guided(learning_rate_start=5e-4), pictures(4)
    batch = batch_of(method, images)
    before = attention_of(method.backbone, images, 6)
    train(method, batch, 3)
    assert torch.equal(method.encode(images)["guide"], batch.features["guide"])
    assert np.abs(attention_of(method.backbone, images, 6) - before).max() > 1e-4  # looks elsewhere


@pytest.mark.parametrize("guidance", ["attention", "uniform", "shuffled"])
def test_where_the_anomalies_lie(guidance: str) -> None:
    method = guided(guidance=guidance)
    guide = torch.zeros(48, 4, 4)
    guide[:, 0, 0] = 1
    _, labels, _ = method._simulated(pictures(48, side=64), guide)
    share = float(labels[:, :32, :32].sum() / labels.sum())
    assert share > 0.6 if guidance == "attention" else share < 0.45


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
    shares = np.linspace(0, 0.999, 12)
    falling = 5e-4 * (1 + np.cos(math.pi * (shares - 0.1) / 0.9)) / 2
    expected = np.where(shares < 0.1, 1e-5 + (5e-4 - 1e-5) * shares / 0.1, falling)
    rates = [config.learning_rate * method.learning_rate_factor(share) for share in shares]
    np.testing.assert_allclose(rates, expected, rtol=1e-5)


def rates_of(method: Guided) -> dict[str, float]:
    method.start_training(batch_of(method, pictures()))
    names = {id(parameter): name for name, parameter in method.named_parameters()}
    rates: dict[str, float] = {}
    for group in method.optimizer().param_groups:
        for parameter in group["params"]:
            assert group["weight_decay"] == (0.05 if parameter.ndim > 1 else 0)
            rates[names[id(parameter)]] = group["lr"]
    return rates


def test_blocks_learn_the_slower_the_further_they_are_from_the_end() -> None:
    method = guided(learning_rate=1e-3, layer_decay=0.5, ema=True, trainable_blocks=None)
    rates = rates_of(method)
    learned = {name for name, _ in method.named_parameters() if not name.startswith("average.")}
    assert set(rates) == learned
    for name, rate in rates.items():
        distance = 0
        if name.startswith("backbone.model.blocks."):
            distance = 6 - int(name.split(".")[3])
        elif name.startswith("backbone.") and ".norm." not in name:
            distance = 7
        assert rate == pytest.approx(1e-3 * 0.5**distance), name
    assert set(rates_of(guided(GuidedConfig.paper_bmvc())).values()) == {5e-4}


@pytest.mark.parametrize(("blocks", "first"), [(0, 6), (1, 5), (2, 4), (9, 0), (None, 0)])
def test_what_learns(blocks: int | None, first: int) -> None:
    """With a class head all is read: blocks count back from the last of the six."""
    method = guided(trainable_blocks=blocks)
    before = {name: tensor.clone() for name, tensor in method.state_dict().items()}
    train(method, batch_of(method, pictures(4)), 3)
    after = method.state_dict()
    assert before.keys() == after.keys()
    changed = {name for name, tensor in after.items() if not torch.equal(tensor, before[name])}
    expected = {"class_head", "attention_mix", "segmentation_head"}
    expected |= {f"backbone.model.blocks.{index}" for index in range(first, 6)}
    if blocks != 0:
        expected.add("backbone.model.norm")
    if blocks is None:
        expected |= {f"backbone.model.{name}" for name in ("patch_embed", "pos_embed", "cls_token")}
    heads = {name.split(".")[0] for name in changed if not name.startswith("backbone.")}
    encoder = {".".join(name.split(".")[:3]) for name in changed - heads if "backbone" in name}
    encoder = encoder - {"backbone.model.blocks"} | {
        ".".join(name.split(".")[:4]) for name in changed if ".blocks." in name
    }
    assert heads | encoder == expected
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
    with torch.no_grad():
        method.attention_mix.weights.add_(1)
    last = method.attention_mix.weights.clone()
    method.after_step(1, steps)
    method.end_training(steps)
    torch.testing.assert_close(method.attention_mix.weights, last)


def test_training_lowers_the_loss() -> None:
    method = guided(ema=False, augment=False)
    losses = train(method, batch_of(method, pictures(4)), 30)
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


@pytest.mark.parametrize("score", ["class", "map", "both"])
def test_what_is_seen_at_several_sizes_is_averaged(score: str) -> None:
    method = guided(scales=(32, 48), score=score, smoothing=0.0, top_fraction=0.1)
    assert (method.scales, method.scoring_size) == (((32, 32), (48, 48)), (48, 48))
    images = pictures(6, side=48)
    with torch.no_grad():
        if method.class_head is not None:  # half of the votes each way
            odds_seen = method.examine(images).odds.flatten().sort().values
            method.class_head.last.bias[0] += (odds_seen[5] + odds_seen[6]) / 2
        got = method.score(images)
    seen = [looked(method, each) for each in (smaller(images), images)]
    odds = np.zeros((2, 6))
    if score != "map":
        odds = np.stack([naive_odds(logits) for logits, _ in seen])
    maps = np.mean([[upsampled(each, 12, 12) for each in marks] for _, marks in seen], axis=0)
    highest = np.array([np.mean(sorted(each.ravel())[-14:]) for each in maps])
    parts = {"class": odds.mean(0), "map": highest, "both": odds.mean(0) + highest}
    np.testing.assert_allclose(f64(got.image), parts[score], rtol=1e-3, atol=1e-4)
    np.testing.assert_allclose(f64(got.maps), maps, rtol=1e-3, atol=1e-4)
    if score == "map":
        assert got.votes is None
    else:
        np.testing.assert_array_equal(f64(got.votes), (odds > 0).mean(0))
        assert f64(got.votes).mean() == 0.5


@pytest.mark.parametrize("stride", [1, 2])
def test_maps_are_averaged_at_a_size_of_ones_own(stride: int) -> None:
    """The papers average them at the picture's: from a size in between they are not the same."""
    method = guided(scales=(32, 48), map_stride=stride, smoothing=0.0)
    images = pictures(3, side=48)
    marks = [looked(method, each)[1] for each in (smaller(images), images)]
    side = 48 // stride
    expected = np.mean([[upsampled(each, side, side) for each in scale] for scale in marks], axis=0)
    np.testing.assert_allclose(f64(method.score(images).maps), expected, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({}, [(32, 32)]),
        ({"image_size": (32, 64)}, [(32, 64)]),
        ({"zoom": 2.0}, [(64, 64)]),
        ({"image_size": (32, 64), "zoom": 1.5}, [(48, 96)]),
        ({"image_size": (48,), "zoom": 0.7}, [(32, 32)]),
        ({"zoom": 2.0, "scales": (48,)}, [(48, 48)]),
        ({"scales": (30, 33, 47, 32)}, [(32, 32), (48, 48)]),
    ],
)
def test_sizes_are_multiples_of_the_patches_and_count_once(
    settings: dict[str, Any], expected: list[tuple[int, int]]
) -> None:
    method = guided(**settings)
    assert method.scales == tuple(expected)
    height, width = method.scoring_size
    assert (height, width) == expected[-1]
    scores = method.score(torch.zeros(2, 3, height, width))
    assert scores.maps.shape == (2, height // 4, width // 4)


def test_other_sizes_with_the_same_weights() -> None:
    method = summarised(pictures(12, side=48), scales=(32, 48))
    other = method.with_scales((48,))
    for one, two in zip(method.parameters(), other.parameters(), strict=True):
        assert one is two
    assert (other.scales, method.scales) == (((48, 48),), ((32, 32), (48, 48)))
    assert (other.scoring_size, method.with_scales((32,)).scoring_size) == ((48, 48), (32, 32))
    images = pictures(4, 5, side=48)
    np.testing.assert_allclose(odds_of(other, images), odds_of(method, images)[1:], rtol=1e-4)
    assert not torch.equal(other.score(images).image, method.score(images).image)
    back = other.with_scales((32, 48))
    for field in ("image", "maps", "votes"):
        assert torch.equal(getattr(back.score(images), field), getattr(method.score(images), field))


def odds_of(method: Guided, images: Tensor) -> np.ndarray:
    found = method.examine(images).odds
    assert found is not None
    return f64(found)


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
    given: list[Tensor] = []

    def simulated(some: Tensor, guide: Tensor) -> tuple[Tensor, None, None]:
        given.append(guide)
        end = sum(map(len, given))
        return twins[end - len(some) : end], None, None

    monkeypatch.setattr(method, "_simulated", simulated)
    guide = method.encode(smaller(images))["guide"]
    method.summarise(lambda: batches(images), 0, silent)
    torch.testing.assert_close(torch.cat(given), guide, rtol=1e-4, atol=1e-6)
    reference = method.reference
    for kind, seen in enumerate((images, twins)):
        entropies, (mean, variance, *_) = entropies_of(method, seen), reference.entropies[kind]
        np.testing.assert_allclose(f64(mean), entropies.mean(1), rtol=1e-4)
        np.testing.assert_allclose(f64(variance), entropies.var(1), rtol=1e-3, atol=1e-7)
    assert float(reference.entropy_limit) > 0
    assert float(reference.pictures) == 7


def test_the_moments_are_those_of_pictures_and_not_of_twins_at_every_size() -> None:
    images = pictures(7, side=48)
    method = summarised(images, scales=(32, 48), bank_size=10)
    reference = method.reference
    assert (reference.patch_counts.tolist(), reference.pictures) == ([4, 9], 7)
    for size, each in enumerate((smaller(images), images)):
        tokens = [f64(kept) for kept in method.backbone(each, (1, 2, 3, 4, 5, 6)).tokens]
        seen = np.stack([[kept.mean(1), np.log(kept.std(1))] for kept in tokens], axis=1)
        seen = seen.transpose(2, 1, 0, 3)  # picture, block, moment, channel
        mean, deviation = (f64(reference.moments[size, :, which]) for which in (0, 1))
        np.testing.assert_allclose(mean, seen.mean(0), rtol=1e-3, atol=1e-4)
        np.testing.assert_allclose(deviation, seen.std(0, ddof=1), rtol=1e-3, atol=1e-4)
    assert reference.drift_limits.shape == (2, 6)
    assert (reference.drift_limits > 0).all()


def test_oblong_pictures_are_adapted_to() -> None:
    images = torch.randn(16, 3, 32, 64)
    method = summarised(images, image_size=(32, 64))
    adapter = method.adapter("online")
    assert (method.reference.patch_counts.tolist(), adapter.score(images).adapted) == ([8], False)
    assert adapter.score(images * 3 + 5).adapted


def taken(few: list[Tensor], images: Tensor) -> list[int]:
    """Which of `images` are among `few`."""
    found = [(images == each).flatten(1).all(1).nonzero() for part in few for each in part]
    return [int(each[0]) for each in found]


@pytest.mark.parametrize("size", [1, 5])
def test_the_statistics_are_of_some_pictures_evenly_from_all(
    size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They may be sorted, as these are, by brightness."""
    monkeypatch.setattr("blemish.methods.guided.SUMMARISED", 12)
    method, images = guided(adaptation="entropies"), pictures(60)
    given: list[Tensor] = []
    simulated = method._simulated
    monkeypatch.setattr(
        method, "_simulated", lambda some, guide: given.append(some) or simulated(some, guide)
    )
    listed = batches(images, size)
    method.summarise(lambda: listed, len(images), silent)
    chosen = taken(given, images)
    assert 12 <= len(chosen) <= 24
    assert max(np.diff([-1, *chosen, 60])) <= 5 * size  # whole batches
    kept, entropies = f64(method.reference.entropies[0, 0]), entropies_of(method, images)
    np.testing.assert_allclose(kept, entropies[:, chosen].mean(1), rtol=1e-4)
    assert method.reference.pictures == len(chosen)


@pytest.mark.parametrize("size", [5, 60])
def test_the_bank_is_judged_by_some_pictures_evenly_from_all(
    size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("blemish.methods.guided.LEFT_OUT", 12)
    method, images = guided(bank_size=1000), pictures(60)
    judged: list[int] = []
    distance = method._distance

    def watched(described: Tensor, left_out: Tensor) -> Tensor:
        entries = left_out.nonzero().flatten().tolist()
        judged.append(entries[0] // 4)
        assert entries == list(range(entries[0], entries[0] + 4))  # its own, and no others
        return distance(described, left_out)

    monkeypatch.setattr(method, "_distance", watched)
    listed = batches(images, size)
    method.summarise(lambda: listed, len(images), silent)
    assert len(method.bank) == 60 * 4
    assert judged == list(range(0, 60, 5))


def test_batches_of_any_size_are_summarised() -> None:
    """Also of more pictures than are wanted, and fewer than announced, as where some are broken."""
    method, images = guided(bank_size=20), pictures(300)
    method.summarise(lambda: batches(images, 300), 310, silent)
    assert method.reference.moments.numel() > 0
    assert torch.isfinite(method.normal).all()


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
    for name in ("entropies", "moments", "patch_counts"):
        assert getattr(method.reference, name).numel() == 0
    with pytest.raises(ConfigError, match="fitted on a single picture"):
        method.adapter("online")


# What figures show of it


def test_where_the_class_is_read_figures_show_what_the_projection_head_takes() -> None:
    """The final [CLS] token of the encoder as it was trained, not what training left alone."""
    method, images = guided(scales=(32, 48), score="both"), pictures(3, side=48)
    norm = method.backbone.model.norm
    rows = [
        [layer_normed(row, f64(norm.weight), f64(norm.bias), norm.eps) for row in f64(seen.cls[0])]
        for seen in (method.backbone(each, (6,)) for each in (smaller(images), images))
    ]
    shown = f64(method.embedding(images))
    np.testing.assert_allclose(shown, np.mean(rows, axis=0), rtol=1e-4, atol=1e-5)


def test_where_the_map_is_the_score_figures_show_the_features_where_it_is_high() -> None:
    method = summarised(pictures(5, side=48), image_size=(48,), score="map", bank_size=50)
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
    """B N D of length 1: the mean of the normalised layers and of the neighbours that there are."""
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
        result[picture, row, column] = sum(near) / math.sqrt(sum(sum(near) ** 2))
    return result.reshape(len(images), -1, 64)


def test_the_learned_map_is_weighed_beside_the_distance_to_the_bank_each_in_its_own_unit() -> None:
    images = pictures(5, side=48)
    method = summarised(images, bank_size=1000, image_size=(48,), smoothing=0.0, head_weight=0.5)
    features = described(method, images)
    bank = features.reshape(-1, 64)
    np.testing.assert_allclose(f64(method.bank), bank, atol=1e-5)
    learned = np.stack([upsampled(each, 12, 12) for each in looked(method, images)[1]])
    left_out = []
    for picture, place in np.ndindex(5, 9):
        others = np.delete(features, picture, axis=0).reshape(-1, 64)
        left_out.append(min(math.dist(features[picture, place], other) for other in others))

    new = pictures(3, 9, side=48) * 0.5
    maps, got = looked(method, new)[1], method.examine(new).maps
    for picture, rows in enumerate(described(method, new)):
        nearest = [min(math.dist(row, other) for other in bank) for row in rows]
        far = upsampled(np.reshape(nearest, (3, 3)), 12, 12)
        own = (upsampled(maps[picture], 12, 12) - learned.mean()) / learned.std(ddof=1)
        expected = 0.5 * own + (far - np.mean(left_out)) / np.std(left_out, ddof=1)
        np.testing.assert_allclose(f64(got[picture, 0]), expected, rtol=1e-3, atol=1e-3)


def test_the_bank_is_asked_in_the_size_that_it_is_of() -> None:
    """Whether or not that is one of those that are looked at, whose features then serve twice."""
    method = summarised(pictures(6, side=48), scales=(32, 48), bank_size=1000)
    new = pictures(3, 9, side=48)
    for one, sizes in ((method, 2), (method.with_scales((32,)), 1)):
        seen = one._at_scales(new)
        assert len(seen) == sizes
        got = f64(one._described(seen, new)).reshape(3, -1, 64)
        np.testing.assert_allclose(got, described(method, new), atol=1e-5)


def test_the_bank_has_a_size() -> None:
    method = summarised(pictures(12), bank_size=10)
    assert method.bank.shape == (10, 64)
    assert np.isfinite(f64(method.score(pictures(3)).image)).all()
    assert summarised(pictures(12)).bank.numel() == 0


def test_a_bank_of_one_picture_does_not_drown_the_learned_map() -> None:
    method = summarised(pictures(1), bank_size=100)
    assert method.score(pictures(3, 5)).maps.abs().max() < 1000


def test_before_it_is_fitted_it_scores_nothing() -> None:
    with pytest.raises(NotFittedError, match="this guided detector has not been fitted"):
        Guided(GuidedConfig(**TINY), sharp()).eval().score(pictures())


# End to end


def good(picture: Part, count: int) -> list[np.ndarray]:
    return [picture(seed) for seed in range(count)]


def same_weights(one: blemish.Detector, other: blemish.Detector) -> bool:
    states = [detector.method.fitted_state() for detector in (one, other)]
    assert states[0].keys() == states[1].keys()
    return all(torch.equal(tensor, states[1][name]) for name, tensor in states[0].items())


@pytest.fixture(scope="module")
def whole(picture: Part) -> blemish.Detector:
    return blemish.fit("guided", good(picture, 10), **WITH_SCALES)


def test_it_is_fitted_saved_and_loaded(
    whole: blemish.Detector, picture: Part, tmp_path: Path
) -> None:
    assert whole.manifest["training"]["steps"] == 6
    findings = {"guidance_entropy", "guidance_peak_to_mean"}
    assert set(whole.manifest["training"]["findings"]) == findings
    assert (whole.preprocessing.height, whole.preprocessing.width) == (48, 48)
    path = whole.save(tmp_path / "part.blemish")
    loaded = blemish.load(path, device="cpu", precision="fp32")
    assert same_weights(loaded, whole)
    one, other = whole.predict(picture(50)), loaded.predict(picture(50))
    assert one == other
    assert np.array_equal(one.anomaly_map, other.anomaly_map)
    loaded.method.adapter("episodic")  # its statistics came along
    coarse = blemish.load(path, device="cpu", precision="bf16")
    assert coarse.method.precision == torch.bfloat16
    assert coarse.predict(picture(50)).score != one.score
    assert coarse.save(tmp_path / "again.blemish").read_bytes() == path.read_bytes()


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
    summarise = Guided.summarise

    def watched(method: Guided, stream: Callable[[], Any], count: int, progress: Progress) -> None:
        given.extend(batch.images for batch in stream())
        assert count == sum(map(len, given))
        summarise(method, stream, count, progress)

    monkeypatch.setattr(Guided, "summarise", watched)
    options = {**FIT, "bank_size": bank_size, "min_steps": 1, "batch_size": 3}
    pixels = good(picture, 11)
    detector = blemish.fit("guided", pixels, calibration_fraction=0, **options)
    everything = [prepare(decode(each), detector.preprocessing) for each in pixels]
    assert taken(given, torch.stack(everything)) == expected


def test_it_learns_in_one_size_and_scores_in_another(
    picture: Part, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And turned pictures are in the bank, or they would be far from all that is known."""
    sides: set[int] = set()
    step = Guided.training_step

    def learning(method: Guided, batch: TrainingBatch, progress: float) -> Tensor:
        assert batch.images is not None
        sides.add(batch.images.shape[-1])
        return step(method, batch, progress)

    monkeypatch.setattr(Guided, "training_step", learning)
    options = {**FIT, "min_steps": 1, "zoom": 2.0, "rotations": 4, "head_weight": 0.0, "pooling": 1}
    detector = blemish.fit("guided", good(picture, 5), calibration_fraction=0, **options)
    assert sides == {SIDE}
    assert detector.method.config.image_size == (SIDE, SIDE)
    assert (detector.preprocessing.height, detector.preprocessing.width) == (2 * SIDE, 2 * SIDE)
    assert detector.method.bank.shape == (5 * 4 * 16, 64)
    turned = [np.rot90(picture(3), turns).copy() for turns in (0, 1)]
    upright, sideways = (detector.predict(each).score for each in turned)
    assert sideways == pytest.approx(upright, abs=0.05)


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
    def interrupt(stage: str, done: int, total: int) -> None:
        if stage.startswith("training") and done == 4:
            raise KeyboardInterrupt

    monkeypatch.setattr("blemish.training.loop.BETWEEN_CHECKPOINTS", 0.0)
    pixels, options = good(picture, 10), {**WITH_SCALES, "checkpoint": tmp_path / "x.training"}
    with pytest.raises(KeyboardInterrupt):
        blemish.fit("guided", pixels, progress=interrupt, **options)
    resumed = blemish.fit("guided", pixels, resume=True, **options)
    assert resumed.manifest["training"]["resumed_at"] == 4
    assert same_weights(resumed, whole)


# Settings


def test_the_poster_and_its_successor() -> None:
    published = {
        "epochs": 100,
        "min_steps": 0,
        "train_batch_size": 16,
        "learning_rate_start": 1e-5,
        "learning_rate": 5e-4,
        "warmup": 0.1,
        "weight_decay": 0.05,
        "layer_decay": 1.0,
        "cross_entropy_weight": 0.95,
        "dice_weight": 0.05,
        "bce_weight": 0.0,
        "trainable_blocks": None,
        "map_head": "attention",
        "score": "class",
        "guide_layers": (-1,),
        "simulators": ("guided",),
        "adaptation": "entropies",
        "adaptation_guard": False,  # ours, and found while looking at test pictures
        "adaptation_rate": 1e-3,
        "adaptation_steps": 1,
    }
    first = GuidedConfig.paper_bmvc()
    assert {name: getattr(first, name) for name in published} == published
    assert (first.backbone, first.height_width) == ("dino_vits16", (224, 224))
    assert (first.scales, first.ema, first.smoothing, first.bank_size) == ((), False, 0.0, 0)
    added: dict[str, Any] = {"blend_x_rays": True, "scales": (224, 320, 384, 416, 448, 512)}
    added |= {"map_stride": 1, "pretraining": "published", "pretraining_recipe": "paper"}
    assert GuidedConfig.paper_aaai() == replace(first, **added)


def test_without_the_guard_it_adapts_to_training_pictures_as_well() -> None:
    images = pictures(12)
    method = summarised(images, adaptation="entropies", adaptation_guard=False)
    result = method.adapter("online").score(images)
    assert (result.adapted, result.note) == (True, "")
    assert not torch.equal(result.scores.image, method.score(images).image)


def test_the_pre_training_that_belongs_to_the_settings() -> None:
    assert GuidedConfig().pretraining_config is None
    paper = replace(GuidedConfig.paper_aaai(), seed=3, backbone="focus_vits14", cache_gib=1.0)
    published = replace(APMaskConfig.paper(), seed=3, backbone="focus_vits14", cache_gib=1.0)
    assert paper.pretraining_config == published
    assert published.epochs == 300
    chosen: dict[str, Any] = {"masking": "random", "mask_ratio": 0.5}
    ours = GuidedConfig(pretraining="apmask", pretraining_epochs=7, image_size=(224, 448), **chosen)
    sizes = {"image_size": 317, "local_size": 136, "picture_size": 724}  # by √2: twice the area
    assert ours.pretraining_config == replace(APMaskConfig(), epochs=7, **chosen, **sizes)
    dino = GuidedConfig(pretraining="dino").pretraining_config
    assert dino == APMaskConfig(objective="dino", epochs=300)


def test_what_x_rays_change() -> None:
    best, poster, paper = GuidedConfig(), GuidedConfig.paper_bmvc(), GuidedConfig.paper_aaai()
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
        ({"dice_weight": math.inf}, "dice_weight: a finite number from 0"),
        ({"bce_weight": math.nan}, "bce_weight: a finite number from 0"),
        ({"head_weight": -0.5}, "head_weight: a finite number from 0"),
        (
            {"cross_entropy_weight": 0, "dice_weight": 0, "bce_weight": 0},
            "one of them must be above 0",
        ),
        (
            {"dice_weight": 0, "bce_weight": 0},
            "another than cross_entropy_weight where score is map",
        ),
        ({"map_stride": 0}, "map_stride: at least 1"),
        ({"trainable_blocks": -1}, "trainable_blocks: null or at least 0"),
        ({"bank_size": -1}, "bank_size: at least 0"),
        ({"pooling": 2}, "pooling: an odd number from 1"),
        ({"scales": (224, 0)}, "scales: at least 1"),
        ({"zoom": 0.2}, "zoom: a finite number from 0.25 up to 8"),
        ({"scales": (224,), "image_size": (224, 448)}, "choose a square image_size"),
        ({"adaptation_rate": 0.0}, "adaptation_rate: a positive finite number"),
        ({"mask_ratio": 1.0}, r"mask_ratio: a fraction in \[0, 1\)"),
        ({"guide_layers": (0,)}, "guide_layers: count from 1, or"),
    ],
)
def test_settings_out_of_range(settings: dict[str, Any], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        GuidedConfig(**settings)


@pytest.mark.parametrize("name", ["guide_layers", "layers"])
def test_layers_that_do_not_exist(name: str) -> None:
    with pytest.raises(ConfigError, match="does not exist: test_vit has layers 1 to 6"):
        guided(**{name: (2, 9)})


@pytest.mark.parametrize("name", ["test_resnet", "test_vit2"])
def test_a_backbone_without_a_cls_token_is_refused(name: str) -> None:
    backbone = build(name, weights="random")
    with pytest.raises(
        ConfigError, match=rf"needs a ViT with a \[CLS\] token, which {name} is not"
    ):
        Guided(GuidedConfig(**{**TINY, "layers": (1, 2)}), backbone)

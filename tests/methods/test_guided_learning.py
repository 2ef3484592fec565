"""How the guided method learns: its loss, its guidance, and what of it learns how fast."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from naive import f64, upsampled
from small_guided import (
    HALF,
    SIDE,
    TINY,
    WHOLE,
    attention_of,
    batch_of,
    guided,
    looked,
    naive_odds,
    pictures,
    sharp,
    sigmoid,
    train,
)
from torch import Tensor

from blemish.anomalies import Synthetic
from blemish.area import SIDE as GRID
from blemish.area import Area
from blemish.methods.augmentation import augmented
from blemish.methods.guided import Guided, log_odds, spread
from blemish.methods.guided_config import GuidedConfig

pytestmark = pytest.mark.usefixtures("small_head")


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

    def simulate(*given: Any, areas: None) -> list[Synthetic]:
        asked.extend(given)
        parts = zip(given[1], labels, kinds, strict=True)
        return [Synthetic(1 - picture, label > 0, label, kind) for picture, label, kind in parts]

    monkeypatch.setattr("blemish.methods.augmentation.simulate_batch", simulate)
    loss = method.training_step(batch, 0.4)
    simulators, pixels, guide, seeds = asked
    assert [each.name for each in simulators] == list(method.config.simulators)
    np.testing.assert_allclose(pixels, f64((images * HALF + HALF).permute(0, 2, 3, 1)), atol=1e-6)
    np.testing.assert_array_equal(guide, batch.features["guide"].numpy())
    assert len(set(seeds)) == 2

    twins = ((1 - (images * HALF + HALF)) - HALF) / HALF
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
    _, labels, _ = method._simulated(pictures(48, side=64), guide, None)
    share = float(labels[:, :32, :32].sum() / labels.sum())
    assert share > 0.6 if guidance == "attention" else share < 0.45


@pytest.mark.parametrize("simulators", [("guided", "cutpaste"), ("nsa", "fpi")])
@pytest.mark.parametrize("guidance", ["attention", "uniform", "shuffled"])
@pytest.mark.parametrize("augment", [True, False])
def test_anomalies_keep_to_the_area(
    simulators: tuple[str, ...], guidance: str, augment: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    inside = np.zeros((GRID, GRID), dtype=bool)
    inside[GRID // 2 :, : GRID // 2] = True
    method = guided(guidance=guidance, simulators=simulators, augment=augment)
    method.set_area(Area.of(inside))
    images = pictures(8, side=64)
    images[:, :, :32] = images[:, :, :, 32:] = 0  # as `prepare` paints what lies outside
    seen: list[tuple[Tensor, ...]] = []
    simulated = method._simulated

    def noted(*given: Any) -> tuple[Tensor, ...]:
        seen.append((*given, *(made := simulated(*given))))
        return made

    monkeypatch.setattr(method, "_simulated", noted)
    for _ in range(3):
        method.training_step(batch_of(method, images), 0.5)
    for given, _, area, twins, masks, _ in seen:
        assert area.shape == masks.shape
        assert 0.05 < area.float().mean() < 0.5
        outside = ~area[:, None].expand_as(given)
        torch.testing.assert_close(twins[outside], given[outside])
        assert not masks[~area].any()
        assert (masks.flatten(1).amax(1) > 0).all()


def test_where_pictures_say_what_is_looked_at_or_are_turned() -> None:
    half = np.zeros((GRID, GRID), dtype=bool)
    half[:, : GRID // 2] = True
    images = pictures(2, side=64)
    images[:, :, :, 32:] = 0
    images[1, :, 32:] = 0
    method = guided()
    method.set_area(None)
    assert method._looked_at(images) is None
    method.set_area(None, framed=True)
    assert method._looked_at(images) is None  # padding alone is as before
    method.set_area(Area.of(half), framed=True)
    looked_at = method._looked_at(images)
    assert looked_at is not None
    assert torch.equal(looked_at, (images != 0).any(1))
    turned = guided(flips=True)
    turned.set_area(Area.of(half))
    assert turned._looked_at(images) is None
    turned.set_area(Area.of(half), framed=True)
    assert turned._looked_at(images) is not None


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
    cropped, along, _ = augmented(images, guide)
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
    expected = augmented(images, guide)[:2]
    torch.manual_seed(1)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        got = augmented(images, guide)[:2]
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

"""DRAEM's networks, loss and scores in float64 loops written from its equations; its batches."""

from __future__ import annotations

import copy
import math
import shutil
from functools import cache
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from naive import f64
from parts import Part, settings_of
from torch import Tensor

import blemish
from blemish.area import SIDE, Area
from blemish.backbones import Backbone, build
from blemish.cli import words
from blemish.errors import ConfigError
from blemish.losses.ssim import ssim
from blemish.methods.augmentation import turned
from blemish.methods.convolutions import UShaped, average_early
from blemish.methods.draem import Draem, DraemConfig
from blemish.methods.learner import TrainingBatch

TINY: dict[str, Any] = {"backbone": "test_resnet", "image_size": (64, 96), "width": 2}


@cache
def backbone() -> Backbone:
    return build("test_resnet", weights="random", seed=3)


def shaken(network: torch.nn.Module, seed: int = 5) -> None:
    """With norms and statistics that are not those of the start."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for module in network.modules():
            if isinstance(module, torch.nn.Conv2d):
                module.weight.normal_(0, 0.3, generator=generator)
            if isinstance(module, torch.nn.BatchNorm2d):
                assert module.running_mean is not None
                assert module.running_var is not None
                module.running_mean.normal_(generator=generator)
                module.running_var.uniform_(0.5, 1.5, generator=generator)
                module.bias.uniform_(0, 1, generator=generator)


def draem(**settings: Any) -> Draem:
    method = Draem(DraemConfig(**(TINY | settings)), copy.deepcopy(backbone()))
    method.start_training(TrainingBatch(pictures(), {}))
    return method


def pictures(count: int = 2, height: int = 64, width: int = 96, seed: int = 0) -> Tensor:
    return torch.randn(count, 3, height, width, generator=torch.Generator().manual_seed(seed))


# The oracle: C H W in float64


def convolution(x: np.ndarray, weight: np.ndarray) -> np.ndarray:
    height, width = x.shape[1:]
    padded = np.pad(x, ((0, 0), (1, 1), (1, 1)))
    found = np.zeros((len(weight), height, width))
    for out, inward in np.ndindex(weight.shape[:2]):
        for down, right in np.ndindex(3, 3):
            window = padded[inward, down : down + height, right : right + width]
            found[out] += weight[out, inward, down, right] * window
    return found


def convolutions(x: np.ndarray, state: dict[str, np.ndarray], name: str, count: int) -> np.ndarray:
    """Each with its batch norm, from running statistics, and ReLU."""
    for number in range(count):
        conv, norm = f"{name}.{3 * number}", f"{name}.{3 * number + 1}"
        x = convolution(x, state[f"{conv}.weight"])
        mean, variance, weight, bias = (
            state[f"{norm}.{part}"][:, None, None]
            for part in ("running_mean", "running_var", "weight", "bias")
        )
        x = np.maximum((x - mean) / np.sqrt(variance + 1e-5) * weight + bias, 0)
    return x


def halved(x: np.ndarray) -> np.ndarray:
    height, width = (-(-side // 2) for side in x.shape[1:])
    cells = [
        [x[:, 2 * row : 2 * row + 2, 2 * column : 2 * column + 2] for column in range(width)]
        for row in range(height)
    ]
    return np.stack([np.stack([cell.max((1, 2)) for cell in row], 1) for row in cells], 1)


def enlarged(x: np.ndarray, height: int, width: int) -> np.ndarray:
    """Bilinear, corner pixels onto corner pixels."""
    found = np.empty((len(x), height, width))
    for row, column in np.ndindex(height, width):
        v = row * (x.shape[1] - 1) / (height - 1) if height > 1 else 0.0
        u = column * (x.shape[2] - 1) / (width - 1) if width > 1 else 0.0
        top, left = int(v), int(u)
        bottom, right = min(top + 1, x.shape[1] - 1), min(left + 1, x.shape[2] - 1)
        above = x[:, top, left] + (u - left) * (x[:, top, right] - x[:, top, left])
        below = x[:, bottom, left] + (u - left) * (x[:, bottom, right] - x[:, bottom, left])
        found[:, row, column] = above + (v - top) * (below - above)
    return found


def network(x: np.ndarray, state: dict[str, np.ndarray], blocks: int, *, skips: bool) -> np.ndarray:
    passed = []
    for number in range(blocks):
        x = convolutions(halved(x) if number else x, state, f"down.{number}", 2)
        passed.append(x)
    for number, beside in enumerate(passed[-2::-1]):
        x = convolutions(enlarged(x, *beside.shape[1:]), state, f"up.{number}", 1)
        x = np.concatenate([x, beside]) if skips else x
        x = convolutions(x, state, f"after.{number}", 2)
    return convolution(x, state["out.weight"]) + state["out.bias"][:, None, None]


@pytest.mark.parametrize(("inward", "outward", "blocks", "skips"), [(3, 3, 5, 0), (6, 2, 6, 1)])
def test_the_networks_against_loops(inward: int, outward: int, blocks: int, skips: int) -> None:
    made = UShaped(inward, outward, 2, blocks, skips=bool(skips)).eval()
    shaken(made)
    images = torch.randn(1, inward, 22, 35, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        found = made(images)[0]
    state = {name: f64(each) for name, each in made.state_dict().items()}
    expected = network(f64(images[0]), state, blocks, skips=bool(skips))
    np.testing.assert_allclose(f64(found), expected, rtol=1e-3, atol=1e-3 * expected.std())
    assert expected.std() > 0.01


def test_the_published_networks_have_the_published_size() -> None:
    """97.42 million in AGPNet's table; ours lack the biases before batch norms."""
    method = Draem(DraemConfig.paper(), copy.deepcopy(backbone()))
    own = [each for name, each in method.named_parameters() if not name.startswith("backbone.")]
    before_norms = sum(
        module.num_features
        for module in method.modules()
        if isinstance(module, torch.nn.BatchNorm2d)
    ) - sum(
        module.num_features
        for module in method.backbone.modules()
        if isinstance(module, torch.nn.BatchNorm2d)
    )
    count = sum(each.numel() for each in own) + before_norms
    assert round(count / 1e6, 2) == 97.42


# Training


def test_the_loss_of_a_step_against_loops() -> None:
    method = draem(share=1.0).train()
    batch = TrainingBatch(pictures(), {})
    torch.manual_seed(4)
    loss = method.training_step(batch, 0.0).item()
    other = draem(share=1.0).train()
    torch.manual_seed(4)
    torch.rand(2, 2)  # of the turning, where none is turned
    assert batch.images is not None
    made, masks = other.overlaid(batch.images)
    average_early([other.repair, other.segmentation])
    with torch.no_grad():
        repaired, logits = other(made)
    mean, std = other.backbone.colours(made)
    pixels = f64(batch.images) * f64(std) + f64(mean)
    squares = terms = 0.0
    for b, y, x in np.ndindex(masks.shape):
        for c in range(3):
            squares += (float(repaired[b, c, y, x]) - pixels[b, c, y, x]) ** 2
        row = [math.exp(value) for value in logits[b, :, y, x].double().tolist()]
        p = row[int(masks[b, y, x])] / sum(row)
        terms -= (1 - p) ** 2 * math.log(p)
    expected = squares / repaired.numel() + terms / masks.numel()
    expected += 1 - float(ssim(repaired, torch.from_numpy(pixels).float()))
    assert loss == pytest.approx(expected, rel=1e-4)
    assert 0 < masks.float().mean() < 0.5


def test_everything_that_learns_takes_part() -> None:
    method = draem().train()
    held = {id(each) for group in method.optimizer().param_groups for each in group["params"]}
    method.training_step(TrainingBatch(pictures(), {}), 0.0).backward()  # type: ignore[no-untyped-call]
    for name, each in method.named_parameters():
        assert (id(each) in held) == (each.grad is not None) == each.requires_grad, name


@pytest.mark.parametrize("share", [0.0, 0.5, 1.0])
def test_a_share_of_the_pictures_gets_a_texture(share: float) -> None:
    method, images = draem(share=share), pictures(40)
    mean, std = method.backbone.colours(images)
    images = (torch.rand(images.shape) - mean) / std
    torch.manual_seed(1)
    given = images.clone()
    made, masks = method.overlaid(images)
    assert torch.equal(images, given)
    changed = (made - images).abs().amax(1) > 1e-3
    assert not bool((changed & (masks == 0)).any())
    assert bool((changed.flatten(1).any(1) == masks.flatten(1).any(1)).all())
    count = int(changed.flatten(1).any(1).sum())
    assert count == {0.0: 0, 1.0: 40}.get(share, count)
    assert share != 0.5 or 10 < count < 30


def test_textures_keep_to_the_area() -> None:
    inside = np.zeros((SIDE, SIDE), dtype=bool)
    inside[:, : SIDE // 2] = True
    method = draem(share=1.0, turned=1.0)
    method.set_area(Area.of(inside))
    mean, std = method.backbone.colours(pictures())
    images = (torch.rand(6, 3, 64, 96) - mean) / std
    made, masks = method.overlaid(images)
    assert masks.flatten(1).any(1).all()
    assert not masks[:, :, 48:].any()
    np.testing.assert_allclose(f64(made[..., 48:]), f64(images[..., 48:]), atol=1e-5)


def test_pictures_are_turned_with_corners_of_the_mean_colour(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    images = pictures(2, 32, 32)
    monkeypatch.setattr(torch, "rand", lambda *_: torch.tensor([[0.1, 1.0], [0.9, 0.0]]))
    made = turned(images, share=0.5)
    assert torch.equal(made[1], images[1])
    np.testing.assert_allclose(f64(made[0]), np.rot90(f64(images[0]), -1, axes=(1, 2)), atol=1e-4)
    monkeypatch.setattr(torch, "rand", lambda *_: torch.tensor([[0.1, 0.75], [0.9, 0.0]]))
    wide = turned(1 + 0 * pictures(2, 32, 64), share=0.5)[0, 0]
    assert wide[0, 0] == 0
    # By 45° the middle row is as long as the picture is high, not as it is wide.
    assert wide[16].sum() == pytest.approx(32 * math.sqrt(2), abs=2)


def test_statistics_are_the_mean_of_the_first_batches() -> None:
    made = UShaped(3, 1, 2, 2, skips=True).train()
    norm = made.down[0][1]  # type: ignore[index]
    assert isinstance(norm, torch.nn.BatchNorm2d)
    means = []
    for step in range(3):
        images = pictures(seed=step)
        means.append(made.down[0][0](images).mean((0, 2, 3)))  # type: ignore[index]
        average_early([made])
        made(images)
    assert norm.running_mean is not None
    expected = f64(torch.stack(means)).sum(0) / 3
    np.testing.assert_allclose(f64(norm.running_mean), expected, rtol=1e-3, atol=1e-6)
    assert norm.momentum == pytest.approx(1 / 3)


# Scores


def scored(**settings: Any) -> tuple[Draem, np.ndarray, Any]:
    """A learned one, the probabilities that its loops give, and its scores."""
    method = draem(**settings)
    shaken(method.repair)
    shaken(method.segmentation, 6)
    method.end_training(3)
    method.eval()
    images = pictures(1)
    mean, std = method.backbone.colours(images)
    pixels = f64((images * std + mean)[0])
    states = [
        {name: f64(each) for name, each in part.state_dict().items()}
        for part in (method.repair, method.segmentation)
    ]
    repaired = network(pixels, states[0], 5, skips=False)
    logits = network(np.concatenate([repaired, pixels]), states[1], 6, skips=True)
    scale = 1 / np.abs(logits).max()  # so that no probability is 0 or 1
    logits = logits * scale
    with torch.no_grad():
        for part in method.segmentation.out.parameters():
            part.mul_(scale)
        return method, 1 / (1 + np.exp(logits[0] - logits[1])), method.score(images)


@pytest.mark.parametrize("window", [0.0, 21 / 256])
def test_the_map_and_the_score_against_loops(window: float) -> None:
    method, found, scores = scored(width=4, score_window=window, smoothing=0.0, top_fraction=0.1)
    quarter = np.array(
        [[found[4 * y : 4 * y + 4, 4 * x : 4 * x + 4].mean() for x in range(24)] for y in range(16)]
    )
    np.testing.assert_allclose(f64(scores.maps[0]), quarter, atol=1e-3)
    assert method.scores_by_map == (window == 0)
    if window:
        side = 8  # of 96
        means = [
            found[y : y + side, x : x + side].mean()
            for y in range(64 - side + 1)
            for x in range(96 - side + 1)
        ]
        expected = max(means)
    else:
        expected = sum(sorted(quarter.ravel())[-38:]) / 38
    assert float(scores.image[0]) == pytest.approx(expected, abs=1e-3)
    assert found.std() > 0.01


def test_the_recipes() -> None:
    paper = DraemConfig.paper()
    assert (paper.epochs, paper.train_batch_size, paper.learning_rate) == (700, 8, 1e-4)
    assert (paper.image_size, paper.width, paper.share, paper.turned) == ((256,), 128, 0.5, 0.3)
    factors = [draem().learning_rate_factor(at) for at in (0.0, 0.79, 0.8, 0.95)]
    assert factors == pytest.approx([1, 1, 0.2, 0.04])


# Textures of a folder


def test_a_fit_with_textures_of_a_folder(picture: Part, tmp_path: Path) -> None:
    folder = tmp_path / "textures"
    folder.mkdir()
    for number in range(3):
        noise = np.random.default_rng(number).integers(0, 256, (20, 30, 3), dtype=np.uint8)
        cv2.imwrite(str(folder / f"{number}.png"), noise)
    brief = {**settings_of("draem"), "min_steps": 2, "calibration_fraction": 0}
    good = [picture(seed) for seed in range(4)]
    detector = blemish.fit("draem", good, textures=str(folder), **brief)
    plain = blemish.fit("draem", good, **brief)
    assert not torch.equal(
        detector.method.state_dict()["repair.out.weight"],
        plain.method.state_dict()["repair.out.weight"],
    )
    path = detector.save(tmp_path / "part.blemish")
    shutil.rmtree(folder)
    assert blemish.load(path).predict(good[0]).score == detector.predict(good[0]).score
    told = [words.textures(each.manifest["config"]) for each in (detector, plain)]
    assert told == [
        f"pictures of {folder}",
        "generated, as no folder is named, which is no published setting; name one: "
        "--set textures=FOLDER",
    ]
    assert words.textures({"backbone": "resnet18"}) == ""
    with pytest.raises(ConfigError, match=r"textures: .*textures is no folder; name one"):
        blemish.fit("draem", good, textures=str(folder), **brief)

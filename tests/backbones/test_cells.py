"""Where the cells of a CNN lie: by a spot planted in a picture, and maps laid where they belong."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from blemish.backbones import CnnBackbone, build, restore
from blemish.backbones.cells import averaged, resampled
from blemish.methods.memory import Knn, KnnConfig
from blemish.types import Batch, silent

SIDE = 128
# Padded by half of the kernel, twice; as in TensorFlow; and kernels that do not overlap.
NAMES = ["resnet18", "test_efficientnet", "tf_mobilenetv3_small_minimal_100", "test_convnext"]


def cnn(name: str, seed: int = 1) -> CnnBackbone:
    backbone = build(name, weights="random", seed=seed)
    assert isinstance(backbone, CnnBackbone)
    return backbone


def spots(count: int) -> tuple[Tensor, Tensor]:
    """Noise B 3 H W without and with a small spot at random places near the middle, one after the
    other, and these places, B 2, down and across, in pixels.
    """
    random = torch.Generator().manual_seed(5)
    noise = torch.randn(count, 3, SIDE, SIDE, generator=random)
    places = SIDE * (0.4 + 0.2 * torch.rand(count, 2, generator=random))
    axis = torch.arange(SIDE) + 0.5
    down, across = ((axis - places[:, i, None]).square().div(-8).exp() for i in (0, 1))
    planted = noise + 3 * (down[:, None, :, None] * across[:, None, None, :])
    return torch.cat([noise, planted]), places


def centroids(maps: Tensor) -> Tensor:
    """Down and across, B 2, of B h w that cover the picture evenly, in pixels."""
    axis = (torch.arange(maps.shape[1]) + 0.5) * SIDE / maps.shape[1]
    weights = maps / maps.sum((1, 2), keepdim=True)
    return torch.stack([(weights.sum(2) * axis).sum(1), (weights.sum(1) * axis).sum(1)], dim=1)


def missed(backbone: CnnBackbone, *, corrected: bool = True) -> list[float]:
    """How far right of and below a planted spot the first three layers show it, in cells; the mean
    of many.
    """
    images, places = spots(12)
    with torch.no_grad():
        seen = backbone(images, (1, 2, 3))
    found = []
    for maps, (rows, _), offset in zip(seen.maps(), seen.grids, seen.offsets, strict=True):
        before, after = maps.chunk(2)
        changed = (after - before).square().sum(1, keepdim=True)
        shown = resampled(changed, (SIDE, SIDE), offset=offset if corrected else 0.0)
        found.append(float((centroids(shown[:, 0]) - places).mean()) * rows / SIDE)
    return found


@pytest.mark.parametrize("name", NAMES)
def test_a_planted_spot_is_shown_where_it_is(name: str) -> None:
    assert max(map(abs, missed(cnn(name)))) < 0.1


def test_without_the_offsets_it_is_not() -> None:
    """Half a cell by half-padded strides, as much the other way by TensorFlow's; by kernels that do
    not overlap, none. What lies half a cell further left is shown half a cell further right.
    """
    expected = {"resnet18": -0.47, "test_efficientnet": -0.47, NAMES[2]: 0.47, "test_convnext": 0.0}
    for name, offset in expected.items():
        assert cnn(name).spec.offsets[2] == pytest.approx(offset, abs=0.1)
        assert missed(cnn(name), corrected=False)[2] == pytest.approx(-offset, abs=0.1)


def test_what_training_does_to_the_kernels_counts() -> None:
    """A network that has learned to look at the middle of its cells does so, however it pads."""
    backbone = cnn("test_efficientnet")
    with torch.no_grad():
        for module in backbone.model.modules():
            shape = (getattr(module, "stride", 0), getattr(module, "kernel_size", 0))
            if shape == ((2, 2), (3, 3)):
                module.weight[:, :, 0] = 0  # looks at the four pixels of its cell
                module.weight[:, :, :, 0] = 0
    assert backbone.spec.offsets[2] < -0.4
    backbone.spec = dataclasses.replace(backbone.spec, offsets=backbone.measured_offsets())
    assert abs(backbone.spec.offsets[2]) < 0.1
    assert max(map(abs, missed(backbone))) < 0.1


def test_an_artifact_of_before_stays_as_it_was() -> None:
    """Its backbone has no offsets, so its features and maps are those that its threshold was made
    from.
    """
    new = cnn("test_resnet")
    old = restore(dataclasses.replace(new.spec, offsets=()), new.info)
    images = torch.zeros(1, 3, 64, 64)
    assert old(images, (2, 3)).offsets == (0.0, 0.0)
    assert new(images, (2, 3)).offsets == new.spec.offsets[1:3]
    assert restore(new.spec, new.info)(images, (2, 3)).offsets == new.spec.offsets[1:3]


def test_a_detector_shows_a_defect_where_it_is() -> None:
    backbone = cnn("test_efficientnet")
    settings: dict[str, Any] = {"image_size": (SIDE,), "layers": (2, 3), "smoothing": 0.01}
    detector = Knn(KnnConfig(backbone=backbone.spec.name, **settings), backbone)
    images, places = spots(6)
    good, bad = images.chunk(2)
    detector.fit(lambda: [Batch(good, torch.arange(6))], 1, silent)
    with torch.no_grad():
        raised = (detector.score(bad).maps - detector.score(good).maps).clamp(min=0)
    shown = centroids(raised.where(raised > raised.amax((1, 2), keepdim=True) / 4, 0.0))
    # The finer of the layers has a stride of 8, and is 3.5 off.
    assert float((shown - places).abs().mean()) < 2


@pytest.mark.parametrize("size", [(8, 8), (32, 40), (61, 37), (3, 5)])
@pytest.mark.parametrize(("offset", "onto"), [(0.0, 0.0), (-0.48, 0.0), (0.0, 0.3), (-0.44, -0.47)])
def test_what_knows_its_place_is_laid_there(
    size: tuple[int, int], offset: float, onto: float
) -> None:
    """Maps that hold the places of their own cells say, resampled, where the new cells lie (off the
    border).
    """
    own = [(torch.arange(8, dtype=torch.float32) + 0.5 + offset) / 8] * 2
    maps = torch.stack(torch.meshgrid(*own, indexing="ij"))[None]
    found = resampled(maps, size, offset=offset, onto=onto)
    assert found.shape == (1, 2, *size)
    places = [(np.arange(side) + 0.5 + onto) / side for side in size]
    expected = np.stack(np.meshgrid(*places, indexing="ij"))
    ends = expected.min(0), expected.max(0)
    inside = (ends[0] > 1.5 / 8) & (ends[1] < 1 - 1.5 / 8)
    assert inside.sum() >= 3
    np.testing.assert_allclose(found[0].numpy()[:, inside], expected[:, inside], atol=1e-5)
    assert torch.equal(resampled(maps, (8, 8), offset=offset, onto=offset), maps)


@pytest.mark.parametrize("antialias", [False, True])
@pytest.mark.parametrize("size", [(5, 7), (12, 20), (3, 9), (12, 4), (9, 13)])
@pytest.mark.parametrize(("offset", "onto"), [(0.0, 0.0), (-0.3, 0.0), (0.4, -0.25)])
def test_an_exported_graph_resamples_alike(
    monkeypatch: pytest.MonkeyPatch,
    size: tuple[int, int],
    offset: float,
    onto: float,
    antialias: bool,
) -> None:
    maps = torch.randn(2, 3, 9, 13, generator=torch.Generator().manual_seed(0))
    told = {"offset": offset, "onto": onto, "antialias": antialias}
    expected = resampled(maps, size, **told)
    monkeypatch.setattr("torch.compiler.is_exporting", lambda: True)
    torch.testing.assert_close(resampled(maps, size, **told), expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("grid", [(9, 13), (3, 4), (2, 13), (1, 1)])
def test_an_exported_graph_averages_alike(
    monkeypatch: pytest.MonkeyPatch, grid: tuple[int, int]
) -> None:
    maps = torch.randn(2, 1, 9, 13, generator=torch.Generator().manual_seed(0))
    expected = averaged(maps, grid)
    monkeypatch.setattr("torch.compiler.is_exporting", lambda: True)
    torch.testing.assert_close(averaged(maps, grid), expected, rtol=0, atol=1e-6)

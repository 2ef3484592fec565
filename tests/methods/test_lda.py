"""What labelled defects teach a normality detector: the formulas in float64 loops, and what must
not change.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from naive import upsampled
from torch import Tensor

from blemish.backbones import build
from blemish.methods import METHODS
from blemish.methods.capabilities import LeavesOneOut
from blemish.methods.discriminant import unscattered
from blemish.methods.lda import Lda
from blemish.methods.lda_config import LdaConfig
from blemish.types import Batch, Scores, silent

Part = Callable[..., np.ndarray]
Floats = np.ndarray
# Of the layers that describe, at 64².
GRID = {"test_vit": [(4, 4)] * 2, "test_resnet": [(8, 8), (4, 4)]}
DESCRIBED = {"test_vit": (3, 4), "test_resnet": (2, 3)}
CLOSE: dict[str, Any] = {"rtol": 2e-3, "atol": 2e-4}


def images(count: int = 6, seed: int = 0) -> Tensor:
    return torch.randn(count, 3, 64, 64, generator=torch.Generator().manual_seed(seed))


def masks(count: int) -> Tensor:
    """At a quarter of the sides: a corner, what is not known, nowhere, parts of places; then these
    again.
    """
    kinds = torch.zeros(4, 16, 16)
    kinds[0, :5, 9:] = 1
    kinds[1] = torch.nan
    kinds[3] = torch.rand(16, 16, generator=torch.Generator().manual_seed(1)).square()
    return kinds.repeat(-(-count // 4), 1, 1)[:count]


def taught(
    normality: str = "knn",
    *,
    backbone: str = "test_vit",
    count: int = 6,
    copies: int = 1,
    known: int = 0,
    marked: bool = False,
    **settings: Any,
) -> Lda:
    """Learned from `count` good pictures, each in so many copies, and then from `known` defects."""
    layers = {"test_vit": (2, 4), "test_resnet": (2, 3)}[backbone]
    config = LdaConfig(
        backbone=backbone,
        image_size=(64,),
        layers=layers,
        normality=normality,
        **{"descriptor_layers": DESCRIBED[backbone], **settings},
    )
    method = Lda(config, build(backbone, weights="random", seed=3)).eval()
    good = Batch(images(count * copies), torch.arange(count).repeat_interleave(copies))
    with torch.inference_mode():
        method.learner.fit(lambda: [good], 1, silent)
    method.summarise(lambda: [good], 1, silent)
    if known:
        teach(method, images(known, seed=5), masks(known) if marked else None)
    return method


def teach(method: Lda, *defects: Tensor | None) -> None:
    """Learn from images and their masks, in one batch."""
    shown, given = (*defects, None)[:2]
    assert shown is not None
    method.learn_defects(lambda: [Batch(shown, torch.arange(len(shown)), given)], 1, silent)


def pooled(values: Floats, grid: tuple[int, int], offset: float) -> Floats:
    """The mean around each place of h w values that the grid divides; `offset`: of its places, in
    cells.
    """
    high, wide = values.shape[0] // grid[0], values.shape[1] // grid[1]
    values = upsampled(values, *values.shape, onto=offset * high)
    result = np.empty(grid)
    for y, x in np.ndindex(*grid):
        result[y, x] = values[y * high : (y + 1) * high, x * wide : (x + 1) * wide].mean()
    return result


def attention(
    anomaly_map: Floats, grid: tuple[int, int], offset: float, sharpness: float
) -> Floats:
    values = pooled(anomaly_map, grid, offset).ravel()
    weights = np.exp(sharpness * (values - values.mean()) / values.std())
    return np.asarray(weights / weights.sum())


def levels(method: Lda, shown: Tensor) -> list[list[Floats]]:
    """Picture by picture the unit-length patch features, N D, of each layer that describes."""
    with torch.no_grad():
        tokens = method.backbone(shown, method.config.descriptor_layers).tokens
    wide = [layer.double().numpy() for layer in tokens]
    unit = [layer / np.linalg.norm(layer, axis=2, keepdims=True) for layer in wide]
    return [[layer[row] for layer in unit] for row in range(len(shown))]


def places(method: Lda) -> list[tuple[tuple[int, int], float]]:
    """The grid of each layer that describes, and its offset."""
    return [(grid, method.backbone.offset(grid, images())) for grid in GRID[method.config.backbone]]


def descriptor(
    method: Lda, own: list[Floats], anomaly_map: Floats, mask: Floats | None = None
) -> Floats:
    parts = []
    for look in (0, 1, 3):
        for features, (grid, offset) in zip(own, places(method), strict=True):
            weights = attention(anomaly_map, grid, offset, look * method.config.sharpness)
            if look == 3 and mask is not None and not np.isnan(mask).any() and mask.any():
                weights = weights * pooled(mask, grid, offset).ravel()
                weights = weights / weights.sum()
            parts.append(weights @ features)
    return np.concatenate(parts)


@dataclass
class Oracle:
    """The discriminant from descriptors of good pictures (n D) and defects, in float64."""

    good: Floats
    owners: list[int]
    usual: Floats
    defects: Floats
    unusual: Floats
    config: LdaConfig

    def trust(self) -> float:
        won = sum((a > b) + (a == b) / 2 for a in self.unusual for b in self.usual)
        return max(0.0, float(2 * won / (len(self.unusual) * len(self.usual)) - 1))

    def direction(self, without: int | None = None) -> Floats:
        """Mean and scatter are of the others; the sphere and the count are of all."""
        third = self.good.shape[1] // 3
        worth = np.array([1.0] * 2 * third + [self.trust()] * third)
        good = self.good * worth
        rows = good[[owner != without for owner in self.owners]]
        centre = rows.mean(0)
        scatter = (rows - centre).T @ (rows - centre)
        trace = np.square(good - good.mean(0)).sum() / len(good)
        shrinkage, dim = self.config.shrinkage, good.shape[1]
        matrix = (1 - shrinkage) * scatter / len(good) + shrinkage * trace / dim * np.eye(dim)
        return np.asarray(worth * np.linalg.solve(matrix, worth * self.defects.mean(0) - centre))

    def __post_init__(self) -> None:
        self.without = {owner: self.direction(owner) for owner in set(self.owners)}
        each = zip(self.good, self.owners, strict=True)
        along = np.array([row @ self.without[own] for row, own in each])
        self.middle, self.deviation = along.mean(), along.std()
        self.unit = self.config.weight * math.sqrt(len(self.defects)) * self.usual.std()

    def likeness(self, features: Floats, without: int | None = None) -> float:
        direction = self.direction() if without is None else self.without[without]
        return max(0.0, float((features @ direction - self.middle) / self.deviation))


def described(method: Lda, shown: Tensor, found: Scores, given: Tensor | None = None) -> Floats:
    maps = found.maps.double().numpy()
    masks = [None] * len(shown) if given is None else list(given.double().numpy())
    each = zip(levels(method, shown), maps, masks, strict=True)
    return np.stack([descriptor(method, own, one, mask) for own, one, mask in each])


def left_out(method: Lda, good: Batch) -> Scores:
    """The normality's scores of the good pictures, as they are learned."""
    assert isinstance(method.normality, LeavesOneOut)
    if method.leaves_one_out():
        return method.normality.score_left_out(good)
    return method.normality.score(good.images)


def oracle_of(method: Lda, good: Batch, known: int, marked: bool) -> Oracle:
    found, shown = left_out(method, good), images(known, seed=5)
    seen, given = method.normality.score(shown), masks(known) if marked else None
    defects = described(method, shown, seen, given)
    usual, unusual = found.image.double().numpy(), seen.image.double().numpy()
    learned = described(method, good.images, found)
    return Oracle(learned, good.owners.tolist(), usual, defects, unusual, method.config)


CASES = [
    {"known": 1},
    {"known": 5, "marked": True},
    {"known": 3, "sharpness": 0.0, "shrinkage": 0.3, "weight": 1.5},
    {"known": 2, "sharpness": 2.5, "shrinkage": 1.0},
    {"known": 2, "copies": 3, "shrinkage": 0.5},
    {"known": 2, "normality": "padim", "normality_settings": ("channels=8",)},
    {"known": 4, "backbone": "test_resnet", "marked": True, "normality": "patchcore"},
]


@pytest.mark.parametrize("case", CASES, ids=str)
def test_scores_and_maps_are_the_formulas(case: dict[str, Any]) -> None:
    method, copies = taught(**case), case.get("copies", 1)
    good = Batch(images(6 * copies), torch.arange(6).repeat_interleave(copies))
    oracle = oracle_of(method, good, case["known"], case.get("marked", False))
    for found, expected in (
        (method.descriptors, oracle.good),
        (method.defects, oracle.defects),
        (method.normality_scores, oracle.usual),
        (method.defect_scores, oracle.unusual),
    ):
        np.testing.assert_allclose(found.numpy(), expected, **CLOSE)
    assert method.owners.tolist() == oracle.owners
    shown = images(3, seed=9)
    plain, scores = method.normality.score(shown), method.score(shown)
    maps = plain.maps.double().numpy()
    direction = oracle.direction()
    for row, own in enumerate(levels(method, shown)):
        likeness = oracle.likeness(descriptor(method, own, maps[row]))
        wanted = float(plain.image[row]) + oracle.unit * likeness
        assert float(scores.image[row]) == pytest.approx(wanted, rel=2e-3, abs=2e-3 * oracle.unit)
        along, first = np.zeros((16, 16)), 0
        for _ in range(3):  # a look after the other
            for features, (grid, offset) in zip(own, places(method), strict=True):
                part = direction[first : first + features.shape[1]]
                along += upsampled((features @ part).reshape(grid), 16, 16, offset)
                first += features.shape[1]
        grid, offset = places(method)[0]
        weights = attention(maps[row], grid, offset, method.config.sharpness)
        weights = ((weights / weights.max()) ** oracle.trust()).reshape(grid)
        shown_map = oracle.unit * np.maximum(0, (along - oracle.middle) / oracle.deviation)
        shown_map *= upsampled(weights, 16, 16, offset)
        close = {"rtol": 2e-3, "atol": 2e-3 * np.abs(shown_map).max()}
        np.testing.assert_allclose(scores.maps[row].numpy(), maps[row] + shown_map, **close)


@pytest.mark.parametrize("known", [0, 3])
def test_a_good_picture_scores_as_it_came_and_not_as_it_was_turned(known: int) -> None:
    """Of the copies of a picture the first is the plain one: that is what a new picture is to be
    compared with.
    """
    method = taught(copies=3, known=known)
    plain = Batch(images(6 * 3)[::3], torch.arange(6))
    with torch.inference_mode():
        expected = method.score_left_out(plain).image
    found = method.good_scores()
    assert list(found) == list(range(6))
    torch.testing.assert_close(torch.tensor(list(found.values())), expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("copies", [1, 4])
@pytest.mark.parametrize("shrinkage", [0.2, 0.95])
def test_leaving_out_is_the_discriminant_of_the_others(copies: int, shrinkage: float) -> None:
    method = taught(copies=copies, known=3, shrinkage=shrinkage)
    good = Batch(images(6 * copies), torch.arange(6).repeat_interleave(copies))
    oracle = oracle_of(method, good, 3, marked=False)
    mixed = torch.randperm(len(good.images))  # owners in any order
    found = method.score_left_out(Batch(good.images[mixed], good.owners[mixed]))
    expected = [
        oracle.usual[row]
        + oracle.unit * oracle.likeness(oracle.good[row], without=oracle.owners[row])
        for row in mixed.tolist()
    ]
    np.testing.assert_allclose(found.image.numpy(), expected, rtol=2e-3, atol=2e-3 * oracle.unit)
    plain = method.score(good.images).image[mixed]
    assert not torch.allclose(found.image, plain, rtol=1e-2)


@pytest.mark.parametrize("shape", [(5, 12), (12, 5), (7, 7), (1, 3)])
def test_both_ways_to_the_inverse_are_the_same(shape: tuple[int, int]) -> None:
    rows = torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    inverse = np.linalg.inv(0.3 * rows.numpy().T @ rows.numpy() + 0.7 * np.eye(shape[1]))
    found = unscattered(rows, 0.3, torch.tensor(0.7, dtype=torch.float64))
    np.testing.assert_allclose(found.numpy(), rows.numpy() @ inverse, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize(("rank", "trust"), [(0, 0.0), (6, 0.0), (12, 0.0), (18, 0.5), (24, 1.0)])
def test_the_closest_look_counts_as_much_as_the_normality_tells_defects_apart(
    rank: int, trust: float
) -> None:
    """rank: how many of the 24 good pictures the labelled defects score above."""
    method = taught(count=24, known=3)
    ordered = method.normality_scores.sort().values
    outside = {0: ordered[0] - 1, 24: ordered[-1] + 1}
    method.defect_scores = outside.get(rank, ordered[rank - 1 : rank + 1].mean()).expand(3)
    assert method.discriminant.trust == pytest.approx(trust)
    assert bool(method.discriminant.direction[2 * 128 :].any()) == (trust > 0)


# Without defects


@pytest.mark.parametrize("normality", ["knn", "padim"])
def test_untaught_it_is_the_normality_detector_to_the_bit(normality: str) -> None:
    method = taught(normality)
    alone = METHODS[normality](
        method.normality.config, build("test_vit", weights="random", seed=3)
    ).eval()
    good = Batch(images(), torch.arange(6))
    with torch.inference_mode():
        alone.fit(lambda: [good], 1, silent)
    shown = images(3, seed=9)

    def same(one: Scores, other: Scores) -> bool:
        return torch.equal(one.image, other.image) and torch.equal(one.maps, other.maps)

    assert same(method.score(shown), alone.score(shown))
    assert method.leaves_one_out()
    assert method.minimum_images == alone.minimum_images == (2 if normality == "padim" else 1)
    assert isinstance(alone, LeavesOneOut)
    assert same(method.score_left_out(good), alone.score_left_out(good))
    teach(method, images(2, seed=5))
    assert not same(method.score(shown), alone.score(shown))
    method.forget_defects()
    assert same(method.score(shown), alone.score(shown))
    teach(method, images(2, seed=5))
    assert torch.equal(method.score(shown).image, taught(normality, known=2).score(shown).image)


# Masks


def test_where_the_mask_is_known_the_closest_look_is_at_marked_patches_only() -> None:
    shown = images(1, seed=5)
    method = taught()
    plain = described(method, shown, method.normality.score(shown))
    found = {}
    one = torch.zeros(1, 16, 16)
    one[0, 4:8, 8:12] = 1  # the patch of the second row and third column
    whole = torch.ones(1, 16, 16)
    for name, mask in {
        "one patch": one,
        "all": whole,
        "unknown": torch.nan * whole,
        "nowhere": 0 * whole,
    }.items():
        method.forget_defects()
        teach(method, shown, mask)
        found[name] = method.defects.numpy()
    wide, patch = [], []
    for layer, features in enumerate(levels(method, shown)[0]):
        first = layer * 64  # three looks, the closest one last, of two layers of 64 channels
        wide += [np.arange(first, first + 64), np.arange(first + 128, first + 192)]
        patch.append((slice(first + 256, first + 320), features[4 + 2]))
    for place, expected in patch:
        np.testing.assert_allclose(found["one patch"][0, place], expected, rtol=1e-5, atol=1e-6)
    both = np.concatenate(wide)
    np.testing.assert_allclose(found["one patch"][0, both], plain[0, both], **CLOSE)
    for name in ("all", "unknown", "nowhere"):
        np.testing.assert_allclose(found[name], plain, **CLOSE)
    assert bool(torch.isfinite(method.score(shown).image).all())


# Teaching


def test_teaching_twice_is_teaching_at_once() -> None:
    first, second, shown = images(2, seed=5), images(3, seed=6), images(3, seed=9)
    once, twice = taught(), taught()
    batches = [Batch(first, torch.arange(2), masks(2)), Batch(second, torch.arange(3), masks(3))]
    once.learn_defects(lambda: batches, 2, silent)
    twice.learn_defects(lambda: [], 0, silent)  # nothing could be read
    teach(twice, first, masks(2))
    before = twice.score(shown)
    teach(twice, second, masks(3))
    assert torch.equal(once.defects, twice.defects)
    found, other = once.score(shown), twice.score(shown)
    assert torch.equal(found.image, other.image)
    assert torch.equal(found.maps, other.maps)
    assert not torch.equal(before.image, other.image)
    twice.learn_defects(lambda: [], 0, silent)
    assert torch.equal(twice.score(shown).image, found.image)

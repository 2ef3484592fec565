"""What labelled defects teach a normality detector: the formulas in float64 loops, and what must
not change.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from naive import upsampled
from torch import Tensor

import blemish
from blemish import artifact
from blemish.backbones import build
from blemish.detector.fit import configure
from blemish.detector.predict import Detector
from blemish.errors import ArtifactError, ConfigError, DataError, NotFittedError
from blemish.methods import METHODS
from blemish.methods.lda import Lda, LdaConfig, _unscattered
from blemish.methods.memory import KnnConfig
from blemish.types import Batch, Scores, silent

Part = Callable[..., np.ndarray]
Floats = np.ndarray
GRID = {
    "test_vit": [(4, 4)] * 2,
    "test_resnet": [(8, 8), (4, 4)],
}  # of the layers that describe, at 64²
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
    weights = np.array(
        [math.exp(sharpness * (value - values.mean()) / values.std()) for value in values]
    )
    return np.asarray(weights / weights.sum())


def levels(method: Lda, shown: Tensor) -> list[list[Floats]]:
    """Picture by picture the unit-length patch features, N D, of each layer that describes."""
    with torch.no_grad():
        tokens = method.backbone(shown, method.config.descriptor_layers).tokens
    return [
        [np.array([p / np.linalg.norm(p) for p in t[row].double().numpy()]) for t in tokens]
        for row in range(len(shown))
    ]


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
            parts.append(
                sum(weight * patch for weight, patch in zip(weights, features, strict=True))
            )
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
        along = np.array(
            [row @ self.without[own] for row, own in zip(self.good, self.owners, strict=True)]
        )
        self.middle, self.deviation = along.mean(), along.std()
        self.unit = self.config.weight * math.sqrt(len(self.defects)) * self.usual.std()

    def likeness(self, features: Floats, without: int | None = None) -> float:
        direction = self.direction() if without is None else self.without[without]
        return max(0.0, float((features @ direction - self.middle) / self.deviation))


def described(method: Lda, shown: Tensor, found: Scores, given: Tensor | None = None) -> Floats:
    maps = found.maps.double().numpy()
    rows = enumerate(levels(method, shown))
    return np.stack(
        [
            descriptor(method, own, maps[i], None if given is None else given[i].double().numpy())
            for i, own in rows
        ]
    )


def left_out(method: Lda, good: Batch) -> Scores:
    """The normality's scores of the good pictures, as they are learned."""
    method = method.normality  # type: ignore[assignment]
    return (
        method.judge_left_out(method.see(good.images), good)
        if method.leaves_one_out()
        else method.score(good.images)
    )


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
    {
        "known": 4,
        "backbone": "test_resnet",
        "marked": True,
        "normality": "patchcore",
        "shrinkage": 0.6,
    },
]


@pytest.mark.parametrize(
    "case", CASES, ids=lambda case: " ".join(f"{key}={value}" for key, value in case.items())
)
def test_scores_and_maps_are_the_formulas(case: dict[str, Any]) -> None:
    method, copies = taught(**case), case.get("copies", 1)
    good = Batch(images(6 * copies), torch.arange(6).repeat_interleave(copies))
    oracle = oracle_of(method, good, case["known"], case.get("marked", False))
    np.testing.assert_allclose(method.descriptors.numpy(), oracle.good, **CLOSE)
    np.testing.assert_allclose(method.defects.numpy(), oracle.defects, **CLOSE)
    np.testing.assert_allclose(method.normality_scores.numpy(), oracle.usual, **CLOSE)
    np.testing.assert_allclose(method.defect_scores.numpy(), oracle.unusual, **CLOSE)
    assert method.owners.tolist() == oracle.owners
    shown = images(3, seed=9)
    plain, found = method.normality.score(shown), method.score(shown)
    maps = plain.maps.double().numpy()
    direction = oracle.direction()
    for row, own in enumerate(levels(method, shown)):
        likeness = oracle.likeness(descriptor(method, own, maps[row]))
        expected = float(plain.image[row]) + oracle.unit * likeness
        assert float(found.image[row]) == pytest.approx(expected, rel=2e-3, abs=2e-3 * oracle.unit)
        along, first = np.zeros((16, 16)), 0
        for _ in range(3):  # a look after the other
            for features, (grid, offset) in zip(own, places(method), strict=True):
                part = direction[first : first + features.shape[1]]
                along += upsampled(
                    np.array([patch @ part for patch in features]).reshape(grid), 16, 16, offset
                )
                first += features.shape[1]
        grid, offset = places(method)[0]
        weights = attention(maps[row], grid, offset, method.config.sharpness)
        weights = ((weights / weights.max()) ** oracle.trust()).reshape(grid)
        shares = np.maximum(0, (along - oracle.middle) / oracle.deviation) * upsampled(
            weights, 16, 16, offset
        )
        tolerance = 2e-3 * oracle.unit * np.abs(shares).max()
        np.testing.assert_allclose(
            found.maps[row].numpy(), maps[row] + oracle.unit * shares, rtol=2e-3, atol=tolerance
        )


@pytest.mark.parametrize("known", [0, 3])
def test_a_good_picture_scores_as_it_came_and_not_as_it_was_turned(known: int) -> None:
    """Of the copies of a picture the first is the plain one: that is what a new picture is to be
    compared with.
    """
    method = taught(copies=3, known=known)
    plain = Batch(images(6 * 3)[::3], torch.arange(6))
    with torch.inference_mode():
        expected = method.judge_left_out(method.see(plain.images), plain).image
    found = method.good_scores()
    assert list(found) == list(range(6))
    torch.testing.assert_close(torch.tensor(list(found.values())), expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("normality", ["knn", "patchcore"])
@pytest.mark.parametrize("copies", [1, 4])
@pytest.mark.parametrize("shrinkage", [0.2, 0.95])
def test_leaving_out_is_the_discriminant_of_the_others(
    normality: str, copies: int, shrinkage: float
) -> None:
    method = taught(normality, copies=copies, known=3, shrinkage=shrinkage)
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
    found = _unscattered(rows, 0.3, torch.tensor(0.7, dtype=torch.float64))
    np.testing.assert_allclose(found.numpy(), rows.numpy() @ inverse, rtol=1e-9, atol=1e-12)


def test_with_many_pictures_leaving_out_is_nearly_to_learn_anew_without() -> None:
    """Of the others alone the sphere and the count differ a little too, and of few of them a lot."""
    method = taught(count=24, known=3)
    without = Oracle(
        method.descriptors[1:].double().numpy(),
        list(range(1, 24)),
        method.normality_scores[1:].double().numpy(),
        method.defects.double().numpy(),
        method.defect_scores.double().numpy(),
        method.config,
    )
    direction = method.discriminant._directions[0].numpy()
    anew = without.direction()
    assert direction @ anew / np.linalg.norm(direction) / np.linalg.norm(anew) > 0.9999
    assert np.linalg.norm(direction) == pytest.approx(np.linalg.norm(anew), rel=0.1)


def test_good_pictures_are_no_more_like_the_defects_than_new_ones() -> None:
    """Judged by a discriminant that knows them, they would look like nothing else: D is far above
    n.
    """
    method = taught(count=24, known=3, shrinkage=0.2)
    good, new = Batch(images(24), torch.arange(24)), images(24, seed=11)
    discriminant, scale = method.discriminant, method.discriminant.unit
    kept = (
        method.judge_left_out(method.see(good.images), good).image
        - method.normality.judge_left_out(method.normality.see(good.images), good).image
    ) / scale
    fresh = (method.score(new).image - method.normality.score(new).image) / scale
    flattered = discriminant.likeness(method.descriptors)
    assert 0.25 < (kept > 0).float().mean() < 0.75
    assert 0.5 < fresh.mean() / kept.mean() < 2
    assert flattered.mean() < 0.8 * kept.mean()


def test_not_to_resemble_the_known_defects_takes_nothing_away() -> None:
    method, shown = taught(count=24, known=3), images(24, seed=11)
    plain, found = method.normality.score(shown), method.score(shown)
    assert (found.image >= plain.image).all()
    assert (found.maps >= plain.maps).all()
    assert 0 < (found.image > plain.image).sum() < 24


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


@pytest.mark.parametrize("normality", ["knn", "patchcore", "padim"])
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
    assert alone.leaves_one_out()
    assert method.minimum_images == alone.minimum_images == (2 if normality == "padim" else 1)
    assert same(
        method.judge_left_out(method.see(good.images), good),
        alone.judge_left_out(alone.see(good.images), good),
    )
    teach(method, images(2, seed=5))
    assert not same(method.score(shown), alone.score(shown))
    method.forget_defects()
    assert same(method.score(shown), alone.score(shown))
    teach(method, images(2, seed=5))
    assert torch.equal(method.score(shown).image, taught(normality, known=2).score(shown).image)


TRAINED = {
    "agpnet": ("epochs=1", "min_steps=3", "train_batch_size=4", "width=32", "heads=4", "depth=1"),
    "guided": ("epochs=1", "min_steps=2", "train_batch_size=4", "zoom=1", "bank_size=20"),
}


@pytest.mark.parametrize("normality", ["knn", "patchcore", "padim", *TRAINED])
def test_untaught_it_fits_as_the_normality_detector_does(
    normality: str, picture: Part, small: dict[str, Any]
) -> None:
    good, settings = [picture(seed) for seed in range(10)], TRAINED.get(normality, ())
    method = blemish.fit("lda", good, normality=normality, normality_settings=settings, **small)
    given: dict[str, Any] = {
        key: float(value) for key, value in (setting.split("=") for setting in settings)
    }
    alone = blemish.fit(normality, good, **given, **small)
    for name in ("calibration_scores", "map_scale", "threshold"):
        assert method.manifest.get(name) == alone.manifest.get(name), name
    assert method.threshold == alone.threshold
    assert len(method.manifest["calibration_scores"]) == (2 if normality in TRAINED else 10)
    for seed in (50, 51):
        one, other = (each.predict(picture(seed, defect=seed > 50)) for each in (method, alone))
        assert one.score == other.score
        assert np.array_equal(one.anomaly_map, other.anomaly_map)


# Masks


def test_where_the_mask_is_known_the_closest_look_is_at_marked_patches_only() -> None:
    shown = images(1, seed=5)
    method = taught()
    plain = described(method, shown, method.normality.score(shown))
    found = {}
    for name, mask in {
        "one patch": torch.zeros(1, 16, 16),
        "all": torch.ones(1, 16, 16),
        "unknown": torch.full((1, 16, 16), torch.nan),
        "nowhere": torch.zeros(1, 16, 16),
    }.items():
        if name == "one patch":
            mask[0, 4:8, 8:12] = 1  # the patch of the second row and third column
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
    np.testing.assert_allclose(
        found["one patch"][0, np.concatenate(wide)], plain[0, np.concatenate(wide)], **CLOSE
    )
    for name in ("all", "unknown", "nowhere"):
        np.testing.assert_allclose(found[name], plain, **CLOSE)
    assert bool(torch.isfinite(method.score(shown).image).all())


def test_masks_count_row_by_row() -> None:
    shown, given = images(4, seed=5), masks(4)
    together = taught(known=4, marked=True).defects
    for row in range(4):
        alone = taught()
        teach(alone, shown[[row]], given[[row]])
        torch.testing.assert_close(together[[row]], alone.defects, rtol=1e-4, atol=1e-5)


# Teaching


def test_teaching_twice_is_teaching_at_once() -> None:
    first, second, shown = images(2, seed=5), images(3, seed=6), images(3, seed=9)
    once, twice = taught(), taught()
    batches = [Batch(first, torch.arange(2), masks(2)), Batch(second, torch.arange(3), masks(3))]
    once.learn_defects(lambda: batches, 2, silent)
    teach(twice, first, masks(2))
    before = twice.score(shown)
    teach(twice, second, masks(3))
    assert torch.equal(once.defects, twice.defects)
    found, other = once.score(shown), twice.score(shown)
    assert torch.equal(found.image, other.image)
    assert torch.equal(found.maps, other.maps)
    assert not torch.equal(before.image, other.image)
    twice.learn_defects(lambda: [], 0, silent)  # nothing could be read
    assert torch.equal(twice.score(shown).image, found.image)


def test_the_same_defect_weighs_as_the_root_of_how_many_there_are() -> None:
    shown, gains = images(3, seed=9), []
    for times in (1, 4):
        method = taught()
        teach(method, images(1, seed=5).expand(times, -1, -1, -1))
        gains.append(method.score(shown).image - method.normality.score(shown).image)
    torch.testing.assert_close(gains[1], 2 * gains[0], rtol=1e-3, atol=1e-5)


def test_progress_is_told() -> None:
    method, told = taught(), list[tuple[str, int, int]]()
    good, bad = Batch(images(), torch.arange(6)), Batch(images(2, seed=5), torch.arange(2))
    method.summarise(lambda: [good, good], 12, lambda *call: told.append(call))
    method.learn_defects(lambda: [bad], 2, lambda *call: told.append(call))
    assert told == [("describing", 6, 12), ("describing", 12, 12), ("learning the defects", 2, 2)]


@pytest.mark.parametrize("normality", ["knn", "patchcore", "padim"])
def test_a_defect_like_the_labelled_ones_stands_out_more_than_before(
    normality: str, picture: Part, small: dict[str, Any]
) -> None:
    def faint(seed: int) -> np.ndarray:
        return np.asarray(0.7 * picture(seed) + 0.3 * picture(seed, defect=True), dtype=np.uint8)

    good, known = [picture(seed) for seed in range(16)], [faint(200), faint(201)]
    detector = blemish.fit(
        "lda", good, anomalies=known, normality=normality, calibration_fraction=0, **small
    )
    assert isinstance(detector.method, Lda)
    asked = [picture(50 + seed) for seed in range(12)] + [faint(300 + seed) for seed in range(6)]

    def scores() -> np.ndarray:
        return np.array([detector.predict(one).score for one in asked])

    after, unit = scores(), detector.method.discriminant.unit
    detector.method.forget_defects()
    gain = (after - scores()) / unit  # in deviations of the good pictures
    assert gain[12:].min() > 10 + gain[:12].max()
    assert abs(gain[:12].mean()) < 2  # the new good ones stay where they were


# The artifact


@pytest.fixture
def learned(picture: Part, small: dict[str, Any]) -> Detector:
    good, bad = (
        [picture(seed) for seed in range(8)],
        [picture(200 + seed, defect=True) for seed in range(2)],
    )
    return blemish.fit(
        "lda",
        good,
        anomalies=bad,
        normality="knn",
        normality_settings=("bank_size=50",),
        **small,
    )


def test_saved_and_loaded_it_knows_its_defects(
    learned: Detector, picture: Part, tmp_path: Path
) -> None:
    path = learned.save(tmp_path / "part.blemish")
    loaded = blemish.load(path, device="cpu", precision="fp32")
    assert loaded.manifest == {**learned.manifest, "format": loaded.manifest["format"]}
    assert isinstance(loaded.method, Lda)
    assert loaded.method.config == learned.method.config
    assert loaded.method.config.normality_settings == ("bank_size=50",)
    assert len(loaded.method.defects) == 2
    for seed in (60, 61):
        one, other = (each.predict(picture(seed, defect=seed > 60)) for each in (learned, loaded))
        assert one == other
        assert np.array_equal(one.anomaly_map, other.anomaly_map)
    again = loaded.save(tmp_path / "again.blemish")
    assert again.read_bytes() == path.read_bytes()
    shown = Batch(images(1, seed=5), torch.arange(1))
    for each in (learned, loaded):
        assert isinstance(each.method, Lda)
        each.method.learn_defects(lambda: [shown], 1, silent)
    assert loaded.predict(picture(61)).score == learned.predict(picture(61)).score


def test_the_backbone_is_stored_once(learned: Detector) -> None:
    names = learned.method.fitted_state().keys()
    assert {name for name in names if not name.startswith("backbone.")} == {
        "descriptors", "owners", "normality_scores", "defects", "defect_scores", "normality.bank", "normality.owners",
    }  # fmt: skip
    assert not any(name.startswith("normality.backbone") for name in names)
    assert isinstance(learned.method, Lda)
    assert learned.method.normality.backbone is learned.method.backbone


@pytest.mark.parametrize("missing", ["normality_scores", "defects", "normality.bank"])
def test_an_artifact_that_lacks_a_part_is_refused(
    missing: str, learned: Detector, tmp_path: Path
) -> None:
    state = {
        name: tensor for name, tensor in learned.method.fitted_state().items() if name != missing
    }
    path = artifact.write(tmp_path / "x", state, learned.manifest)
    with pytest.raises(
        ArtifactError,
        match=f"x.*do not fit method 'lda'.*{missing.split('.')[-1]}.*fit it again",
    ):
        blemish.load(path, device="cpu")


# Few pictures


def test_beside_a_single_good_picture_nothing_can_be_learned(
    picture: Part, small: dict[str, Any]
) -> None:
    bad, options = [picture(200, defect=True)], {"normality": "knn", **small}
    with pytest.raises(DataError, match="two good pictures at least"):
        blemish.fit("lda", [picture(0)], anomalies=bad, **options)
    plain = blemish.fit("lda", [picture(0)], **options)
    assert (
        plain.predict(bad[0]).score
        == blemish.fit("knn", [picture(0)], **small).predict(bad[0]).score
    )
    with pytest.raises(
        DataError, match="at least 2 readable training pictures, got 2, all of the same content"
    ):
        blemish.fit(
            "lda", [picture(0), picture(0)], anomalies=bad, **{**options, "normality": "padim"}
        )
    with pytest.raises(DataError, match="two good pictures at least"):  # a copy is no second one
        blemish.fit("lda", [picture(0), picture(0)], anomalies=bad, **options)
    assert np.isfinite(
        blemish.fit("lda", [picture(0), picture(1)], anomalies=bad, **options).predict(bad[0]).score
    )
    with pytest.raises(DataError, match="two good pictures at least"):
        blemish.fit(
            "lda", [picture(0)], anomalies=bad, **{**options, "rotations": 2, "flips": True}
        )


def test_rotations_of_a_picture_are_left_out_together(picture: Part, small: dict[str, Any]) -> None:
    good, bad = [picture(seed) for seed in range(4)], [picture(200, defect=True)]
    options = {**small, "normality": "knn", "rotations": 2, "flips": True}
    detector = blemish.fit("lda", good, anomalies=bad, **options)
    assert isinstance(detector.method, Lda)
    assert detector.method.owners.tolist() == [owner for owner in range(4) for _ in range(4)]
    assert len(detector.method.normality_scores) == 16
    assert len(detector.manifest["calibration_scores"]) == 4


# A normality part that is trained


def test_a_trained_normality_part_takes_a_checkpoint_and_a_time_budget(
    picture: Part, small: dict[str, Any], tmp_path: Path
) -> None:
    good, bad = (
        [picture(seed) for seed in range(10)],
        [picture(200 + seed, defect=True) for seed in range(2)],
    )
    options = {
        **small,
        "anomalies": bad,
        "normality": "agpnet",
        "normality_settings": TRAINED["agpnet"],
    }
    place = tmp_path / "x.training"
    detector = blemish.fit("lda", good, checkpoint=place, **options)
    assert place.exists()
    manifest = detector.manifest
    assert manifest["method"] == "lda"
    assert manifest["training"]["steps"] == 3
    assert (len(manifest["data"]["fitted"]), len(manifest["data"]["calibrated"])) == (8, 2)
    assert len(manifest["data"]["defects"]) == 2
    again = blemish.fit("lda", good, checkpoint=place, resume=True, **options)
    assert again.manifest["training"]["resumed_at"] == 3
    shown = picture(61, defect=True)
    assert again.predict(shown).score == detector.predict(shown).score
    loaded = blemish.load(detector.save(tmp_path / "x.blemish"), device="cpu", precision="fp32")
    assert loaded.predict(shown) == detector.predict(shown)
    short = blemish.fit("lda", good, time_budget=1e-6, **options)
    assert short.manifest["training"]["steps"] == 1
    assert short.predict(shown).score != detector.predict(shown).score


# What is refused


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        (
            {"normality": "lda"},
            "unknown method 'lda'.*that take labelled defects themselves are none",
        ),
        ({"normality": "atacnet"}, "unknown method 'atacnet'"),
        ({"normality": "pachcore"}, "did you mean 'patchcore'"),
        ({"normality": "knn", "normality_settings": ("bank_sise=3",)}, "did you mean 'bank_size'"),
        ({"normality": "knn", "normality_settings": ("bank_size=0",)}, "bank_size: at least 1"),
        ({"normality": "knn", "normality_settings": ("bank_size",)}, "not of the form key=value"),
        ({"normality_settings": ("image_size=32",)}, "normality_settings: image_size"),
        ({"normality_settings": ("seed=3",)}, "normality_settings: seed"),
        ({"sharpness": -0.1}, "sharpness: a finite number from 0"),
        ({"sharpness": math.inf}, "sharpness: a finite number from 0"),
        ({"shrinkage": 0.0}, r"shrinkage: a fraction in \(0, 1\]"),
        ({"shrinkage": 1.1}, r"shrinkage: a fraction in \(0, 1\]"),
        ({"weight": -1.0}, "weight: a finite number from 0"),
        ({"weight": math.nan}, "weight: a finite number from 0"),
        ({"descriptor_layers": (9,)}, "layer 9 does not exist"),
    ],
)
def test_settings_that_make_no_sense(
    settings: dict[str, Any], says: str, picture: Part, small: dict[str, Any]
) -> None:
    with pytest.raises(ConfigError, match=says):
        blemish.fit("lda", [picture(0), picture(1)], **settings, **small)


def test_options_of_training_are_for_a_normality_part_that_is_trained(
    picture: Part, small: dict[str, Any]
) -> None:
    for options, says in (
        ({"time_budget": 1}, "time_budget"),
        ({"checkpoint": "x", "resume": True}, "checkpoint"),
    ):
        with pytest.raises(ConfigError, match=f"{says}.*: lda is not trained step by step"):
            blemish.fit("lda", [picture(0), picture(1)], normality="knn", **options, **small)


def test_before_it_is_fitted_it_teaches_nothing() -> None:
    config = LdaConfig(backbone="test_vit", image_size=(64,), layers=(2,), normality="knn")
    method, shown = (
        Lda(config, build("test_vit", weights="random")),
        Batch(images(1), torch.arange(1)),
    )
    for use in (
        lambda: method.judge_left_out(method.see(shown.images), shown),
        lambda: method.learn_defects(lambda: [shown], 1, silent),
        lambda: method.score(shown.images),
    ):
        with pytest.raises(NotFittedError, match="this lda detector has not been fitted"):
            use()


def test_settings_go_to_the_normality_part() -> None:
    settings = {"normality": "knn", "normality_settings": ["bank_size=10", "pooling=5"]}
    values = {"image_size": 96, "smoothing": 0.1, "rotations": 3, "seed": 4, **settings}
    chosen = configure("lda", values=values, assignments=["weight=0.7"])
    assert isinstance(chosen, LdaConfig)
    inner = configure(
        "knn", values={key: values[key] for key in values if not key.startswith("normality")}
    )
    assert isinstance(inner, KnnConfig)
    assert chosen.normality_config == replace(inner, bank_size=10, pooling=5)
    assert not chosen.learns_by_gradient
    assert configure("lda", values={"normality": "agpnet"}).learns_by_gradient


def test_what_a_layout_asks_of_the_normality_part_is_kept() -> None:
    for layout in ("nih", "mvtec"):
        chosen = configure("lda", values={"normality": "guided"}).for_pictures(
            x_rays=layout == "nih"
        )
        alone = configure("guided").for_pictures(x_rays=layout == "nih")
        assert isinstance(chosen, LdaConfig)
        assert chosen.normality_config.simulators == alone.simulators  # type: ignore[attr-defined]
    pretrained = configure(
        "lda", values={"normality": "guided", "normality_settings": ["pretraining=apmask"]}
    )
    assert pretrained.pretraining_config is not None
    assert configure("lda").pretraining_config is None

"""How the guided method scores: its sizes, what it keeps of training pictures, its bank."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from naive import f64, layer_normed, upsampled
from small_guided import (
    batches,
    described,
    entropies_of,
    guided,
    looked,
    naive_odds,
    odds_of,
    pictures,
    smaller,
    summarised,
    taken,
)
from torch import Tensor

from blemish.errors import ConfigError
from blemish.methods.adaptation import EntropyAdapter
from blemish.methods.alignment import Aligner
from blemish.types import silent

pytestmark = pytest.mark.usefixtures("small_head")


# Sizes


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


def test_the_statistics_are_those_of_pictures_and_twins_at_every_size(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    method = guided(scales=(32, 48), adaptation="entropies")
    images, twins = pictures(7, side=48), pictures(7, 9, side=48)
    given: list[Tensor] = []

    def simulated(some: Tensor, guide: Tensor, _: None) -> tuple[Tensor, None, None]:
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
        method, "_simulated", lambda some, *how: given.append(some) or simulated(some, *how)
    )
    listed = batches(images, size)
    method.summarise(lambda: listed, len(images), silent)
    chosen = taken(given, images)
    assert 12 <= len(chosen) <= 24
    assert max(np.diff([-1, *chosen, 60])) <= 5 * size  # whole batches
    kept, entropies = f64(method.reference.entropies[0, 0]), entropies_of(method, images)
    np.testing.assert_allclose(kept, entropies[:, chosen].mean(1), rtol=1e-4)
    assert method.reference.pictures == len(chosen)


@pytest.mark.parametrize("size", [1, 5, 60])
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

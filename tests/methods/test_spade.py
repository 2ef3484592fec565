"""SPADE against its two distances written out in float64, picture by picture, place by place."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from naive import f64
from torch import Tensor

from blemish.area import Area
from blemish.backbones import build
from blemish.errors import ConfigError
from blemish.methods.coreset import least_squares
from blemish.methods.embedding import join
from blemish.methods.spade import Spade, SpadeConfig
from blemish.types import Batch, Scores, silent

COUNT = 7


def images(count: int = COUNT, seed: int = 0) -> Tensor:
    """Pictures that differ as a whole, too, so that some lie nearer than others."""
    generator = torch.Generator().manual_seed(seed)
    shades = torch.rand(count, 3, 1, 1, generator=generator) * 4
    return torch.randn(count, 3, 64, 64, generator=generator) + shades


def batches(shown: Tensor, size: int, owners: Sequence[int]) -> Iterator[Batch]:
    owned = torch.tensor(owners)
    for start in range(0, len(shown), size):
        yield Batch(shown[start : start + size], owned[start : start + size])


def spade(
    shown: Tensor | None = None,
    *,
    name: str = "test_vit",
    owners: Sequence[int] = (),
    batch: int = 3,
    area: Area | None = None,
    **settings: Any,
) -> Spade:
    layers = (2, 4) if name == "test_vit" else (1, 2)
    small = {"backbone": name, "image_size": (64,), "layers": layers, "smoothing": 0.0}
    config = SpadeConfig(**{**small, "neighbours": 3, **settings})
    method = Spade(config, build(name, weights="random", seed=3)).eval()
    method.set_area(area)
    learned = images() if shown is None else shown
    with torch.no_grad():
        method.fit(
            partial(batches, learned, batch, owners or range(len(learned))), len(learned), silent
        )
    return method


def seen(method: Spade, shown: Tensor) -> tuple[np.ndarray, np.ndarray]:
    """Joined features B N D, and the mean feature of the global layer, B C."""
    config = method.config
    backbone = method.backbone
    joined, _ = join(backbone(shown, config.layers), backbone.spec.kind, pooling=config.pooling)
    whole = backbone(shown, (config.global_layer or config.layers[-1],)).tokens[0]
    return f64(joined), f64(whole).mean(1)


def raw_of(method: Spade, judged: Callable[[], Scores]) -> tuple[np.ndarray, np.ndarray]:
    """The map before it is resized, and the scores."""
    found: list[Tensor] = []
    finish = method._finish
    method._finish = lambda raw, shown: found.append(raw) or finish(raw, shown)  # type: ignore[method-assign,func-returns-value]
    with torch.no_grad():
        scores = judged()
    method._finish = finish  # type: ignore[method-assign]
    return f64(found[0]).reshape(len(found[0]), -1), f64(scores.image)


def naive(
    asked: tuple[np.ndarray, np.ndarray], known: tuple[np.ndarray, np.ndarray], neighbours: int
) -> tuple[list[float], np.ndarray]:
    """Sections 3.2 and 3.3: scores of pictures, and maps B N."""
    scores, maps = [], np.empty(asked[0].shape[:2])
    for picture, (places, mean) in enumerate(zip(*asked, strict=True)):
        apart = [float(((mean - other) ** 2).sum()) for other in known[1]]
        nearest = sorted(range(len(apart)), key=lambda index: apart[index])[:neighbours]
        scores.append(sum(apart[index] for index in nearest) / len(nearest))
        for place, feature in enumerate(places):
            maps[picture, place] = min(
                float(((feature - entry) ** 2).sum())
                for index in nearest
                for entry in known[0][index]
            )
    return scores, maps


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("test_vit", {}),
        ("test_vit", {"global_layer": 5, "pooling": 1, "neighbours": 1}),
        ("test_vit", {"global_layer": 2, "neighbours": 50}),
        ("test_resnet", {"global_layer": 3, "pooling": 1}),
    ],
)
def test_both_distances(name: str, settings: dict[str, Any]) -> None:
    method = spade(name=name, score="pictures", **settings)
    asked = images(3, seed=8)
    features, means = seen(method, images())
    known = features.astype(np.float16).astype(np.float64), means
    scores, maps = naive(seen(method, asked), known, method.config.neighbours)
    got, image = raw_of(method, lambda: method.score(asked))
    assert got.shape == (3, 16 if name == "test_vit" else 256)
    np.testing.assert_allclose(got, maps, rtol=1e-4)
    np.testing.assert_allclose(image, scores, rtol=1e-4)
    assert not method.scores_by_map
    by_map = Spade(replace(method.config, score="map", top_fraction=0.0), method.backbone).eval()
    by_map.restore_state(method.fitted_state())
    assert by_map.scores_by_map
    found = by_map.score(asked)
    assert found.image.tolist() == found.maps.flatten(1).amax(1).tolist()
    assert torch.equal(found.maps, method.score(asked).maps)


def test_only_the_nearest_pictures_are_compared_with() -> None:
    """A dark picture with a bright part, such as all bright pictures have, but none of the dark."""
    dark, bright = torch.zeros(4, 3, 64, 64), torch.ones(4, 3, 64, 64) * 5
    shown = torch.cat([dark, bright]) + images(8) / 10
    asked = shown[:1].clone()
    asked[:, :, 16:32, 16:32] = shown[4, :, 16:32, 16:32]
    # Near-sighted, so that a place says what it shows, and not what lies around it.
    sight = {"name": "test_resnet", "layers": (1,), "global_layer": 3, "pooling": 1}
    few, many = (raw_of(each, lambda each=each: each.score(asked))[0][0] for each in (
        spade(shown, neighbours=4, **sight), spade(shown, neighbours=8, **sight)
    ))  # fmt: skip
    inside = np.zeros((16, 16), np.bool_)
    inside[5:7, 5:7] = True
    assert many[inside.ravel()].max() < 0.5 * few[inside.ravel()].min()
    assert (many <= few).all()


@pytest.mark.parametrize("score", ["map", "pictures"])
@pytest.mark.parametrize("owners", [range(COUNT), [0, 1, 2, 1, 4, 5, 1]])
def test_leaving_out_is_as_if_the_picture_had_never_been_seen(
    owners: Sequence[int], score: str
) -> None:
    method = spade(owners=owners, score=score, neighbours=5)
    assert method.knows_several()
    batch = Batch(images(), torch.tensor(owners))
    with torch.no_grad():
        found = method.score_left_out(batch)
    assert found.image.shape == (COUNT,)
    for row, owner in enumerate(owners):
        others = [other for other in range(COUNT) if owners[other] != owner]
        alone = spade(images()[others], score=score, neighbours=5).score(images()[row : row + 1])
        torch.testing.assert_close(found.image[row], alone.image[0], rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(found.maps[row], alone.maps[0], rtol=1e-4, atol=1e-5)
    assert (found.image > method.score(images()).image).all()


def test_one_picture_alone_is_compared_with_nothing() -> None:
    for method in (spade(images(1)), spade(gallery_size=1), spade(owners=[2] * COUNT)):
        assert not method.knows_several()
        owner = method.owners[:1]
        with pytest.raises(ConfigError, match=r"one training picture only.*raise gallery_size"):
            method.score_left_out(Batch(images(1), owner))


@pytest.mark.parametrize("batch", [1, 3, 10])
def test_no_more_pictures_are_kept_than_asked_for(batch: int) -> None:
    kept = [spade(batch=batch, gallery_size=4, seed=seed).owners.tolist() for seed in range(40)]
    assert kept == [spade(gallery_size=4, seed=seed).owners.tolist() for seed in range(40)]
    assert all(len(each) == 4 and each == sorted(set(each)) for each in kept)
    often = [sum(owner in each for each in kept) for owner in range(COUNT)]
    assert min(often) > 40 * 4 / COUNT / 2  # none is left out for good
    method = spade(gallery_size=4, seed=1)
    whole = spade(gallery_size=COUNT)
    assert whole.owners.tolist() == list(range(COUNT))
    assert torch.equal(method.gallery, whole.gallery[method.owners])
    assert torch.equal(method.means, whole.means[method.owners])


def test_nothing_outside_the_area_is_remembered() -> None:
    mask = np.zeros((1024, 1024), np.bool_)
    mask[:200, :200] = True
    method = spade(area=Area.of(mask), pooling=1)
    known = method._framed(images(), (4, 4)).flatten(1)
    assert 0 < int(known[0].sum()) < 16
    features, _ = join(method.backbone(images(), (2, 4)), "vit")
    for picture, entries in enumerate(method.gallery):
        allowed = {tuple(row) for row in features[picture, known[picture]].half().tolist()}
        assert {tuple(row) for row in entries.tolist()} == allowed
    tokens = method.backbone(images(), (4,)).tokens[0]
    for picture in range(COUNT):
        mean = f64(tokens[picture, known[picture]]).mean(0)
        np.testing.assert_allclose(f64(method.means[picture]), mean, rtol=1e-4, atol=1e-5)


def test_features_that_half_precision_cannot_hold() -> None:
    method = spade(name="test_resnet", pooling=1)
    with torch.no_grad():
        for parameter in method.backbone.parameters():
            parameter.mul_(60.0)
        method.fit(partial(batches, images(), 3, range(COUNT)), COUNT, silent)
    assert float(method.gallery.max()) == 65504


@pytest.mark.parametrize("offset", [0.0, 100.0])
@pytest.mark.parametrize(("exporting", "rounds"), [(False, False), (True, False), (True, True)])
def test_least_squares(
    exporting: bool, rounds: bool, offset: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.compiler, "is_exporting", lambda: exporting)
    queries = torch.randn(2, 5, 8) + offset
    points = (torch.randn(2, 6, 8) + offset).half()
    got = least_squares(queries, points, rounds=rounds)
    for picture, place in np.ndindex(2, 5):
        feature = f64(queries)[picture, place]
        expected = min(float(((feature - point) ** 2).sum()) for point in f64(points)[picture])
        assert float(got[picture, place]) == pytest.approx(expected, rel=1e-4)


def test_the_paper_recipe() -> None:
    paper = SpadeConfig.paper()
    assert (paper.backbone, paper.image_size) == ("wide_resnet50_2", (224,))
    assert (paper.layers, paper.global_layer) == ((1, 2, 3), 4)
    assert (paper.neighbours, paper.pooling, paper.score) == (50, 1, "pictures")
    assert paper.smoothing == 4 / 224
    small = replace(paper, backbone="test_resnet", image_size=(64,), global_layer=4)
    method = Spade(small, build("test_resnet", weights="random")).eval()
    assert method.layers == (1, 2, 3, 4)
    with pytest.raises(ConfigError, match="layer 9 does not exist"):
        spade(global_layer=9)

"""Memory banks: features against a loop, scores against the nearest patch by hand, leave-one-out
against refitting.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
import torch
from naive import upsampled
from numpy.typing import NDArray
from torch import Tensor

from blemish.area import SIDE, Area
from blemish.backbones import Backbone, build
from blemish.errors import ConfigError, NotFittedError
from blemish.methods.coreset import farthest_points
from blemish.methods.embedding import join
from blemish.methods.memory import Knn, KnnConfig, MemoryBank, PatchCore, PatchCoreConfig
from blemish.types import Batch, silent

Floats = NDArray[np.float64]


def images(count: int = 6, height: int = 64, width: int = 64, seed: int = 0) -> Tensor:
    return torch.randn(count, 3, height, width, generator=torch.Generator().manual_seed(seed))


def backbone_of(name: str) -> Backbone:
    return build(name, weights="random", seed=3)


def layers_of(name: str) -> tuple[int, ...]:
    return (2, 4) if name == "test_vit" else (2, 3)


def pooled(level: Floats, side: int) -> Floats:
    """h w D: the mean of the side × side square around each location, as far as it lies inside."""
    out, reach = np.empty_like(level), side // 2
    for y in range(level.shape[0]):
        for x in range(level.shape[1]):
            square = level[max(0, y - reach) : y + reach + 1, max(0, x - reach) : x + reach + 1]
            out[y, x] = square.reshape(-1, level.shape[2]).mean(0)
    return out


def embed_loop(
    backbone: Backbone, batch: Tensor, layers: tuple[int, ...], pooling: int, centre: float = 0
) -> Floats:
    """B N D by the description in `join`, location by location in float64."""
    features = backbone(batch, layers)
    height, width = features.grids[0]  # the finest
    rows = []
    for picture in range(len(batch)):
        levels = []
        for tokens, grid, offset in zip(
            features.tokens, features.grids, features.offsets, strict=True
        ):
            level = tokens[picture].double().numpy().reshape(*grid, -1)
            if backbone.spec.kind == "vit":
                level = np.array(
                    [[(t - t.mean()) / np.sqrt(t.var() + 1e-5) for t in row] for row in level]
                )
            level = (1 - centre) * pooled(level, pooling) + centre * level
            levels.append(upsampled(level, height, width, offset, features.offsets[0]))
        is_vit = backbone.spec.kind == "vit"
        joined = np.mean(levels, axis=0) if is_vit else np.concatenate(levels, axis=2)
        rows.append(joined.reshape(height * width, -1))
    return np.stack(rows)


@pytest.mark.parametrize("size", [(64, 64), (96, 64)])
@pytest.mark.parametrize(("pooling", "centre"), [(1, 0), (5, 0), (3, 0.3), (1, 0.5)])
@pytest.mark.parametrize("name", ["test_vit", "test_resnet"])
def test_join_is_the_loop(name: str, pooling: int, centre: float, size: tuple[int, int]) -> None:
    backbone, batch = backbone_of(name), images(2, *size)
    seen = backbone(batch, layers_of(name))
    got, grid = join(seen, backbone.spec.kind, pooling=pooling, centre=centre)
    stride = 16 if name == "test_vit" else 8
    assert grid == (size[0] // stride, size[1] // stride)
    expected = embed_loop(backbone, batch, layers_of(name), pooling, centre)
    assert got.shape == expected.shape
    assert got.dtype == torch.float32
    np.testing.assert_allclose(got.numpy(), expected, rtol=1e-3, atol=1e-3 * np.abs(expected).max())


def batches(all_images: Tensor, size: int, first: int = 0) -> Iterator[Batch]:
    owners = torch.arange(first, first + len(all_images))
    for start in range(0, len(all_images), size):
        yield Batch(all_images[start : start + size], owners[start : start + size])


def bank_of(
    kind: type[MemoryBank],
    name: str = "test_vit",
    *,
    bank_size: int = 10_000,
    batch: int = 4,
    count: int = 6,
) -> MemoryBank:
    config = kind.Config(
        backbone=name,
        image_size=(64,),
        layers=layers_of(name),
        bank_size=bank_size,  # type: ignore[call-arg]
    )
    method = kind(config, backbone_of(name)).eval()  # type: ignore[arg-type]
    with torch.inference_mode():
        method.fit(lambda: batches(images()[:count], batch), 2, silent)
    return method


def extended(method: MemoryBank, *, first: int, last: int = 6, batch: int = 4) -> MemoryBank:
    """The same, remembering more of `images()`."""
    method.extend(lambda: batches(images()[first:last], batch, first), 1, silent, rows=first)
    return method


def unit(rows: Floats) -> Floats:
    return np.asarray(rows / np.linalg.norm(rows, axis=-1, keepdims=True))


def distances(queries: Floats, bank: Floats) -> Floats:
    return np.array([np.linalg.norm(bank - query, axis=1).min() for query in queries])


@pytest.mark.parametrize("name", ["test_vit", "test_resnet"])
@pytest.mark.parametrize("kind", [Knn, PatchCore])
def test_scores_are_distances_to_the_nearest_normal_patch(
    kind: type[MemoryBank], name: str
) -> None:
    method = bank_of(kind, name)
    pooling = 1 if kind is Knn else 3
    backbone, layers = method.backbone, layers_of(name)
    bank = unit(embed_loop(backbone, images(), layers, pooling)).reshape(-1, method.bank.shape[1])
    assert len(method.bank) == len(bank)  # all of it is under the cap
    assert method.bank.dtype == torch.float32
    queries = images(2, seed=9)
    expected = distances(
        unit(embed_loop(backbone, queries, layers, pooling)).reshape(-1, bank.shape[1]), bank
    )
    got = method.anomaly_map(method.see(queries))
    assert got.shape == (2, 4, 4) if name == "test_vit" else (2, 8, 8)
    np.testing.assert_allclose(got.numpy().ravel(), expected, rtol=2e-3, atol=2e-4)


@pytest.mark.parametrize("kind", [Knn, PatchCore])
def test_the_bank_keeps_to_its_cap_and_its_owners(kind: type[MemoryBank]) -> None:
    method = bank_of(kind, bank_size=20)
    assert method.bank.shape[0] == len(method.owners) == 20
    whole = bank_of(kind)
    places = (method.bank[:, None] - whole.bank[None]).norm(dim=2).argmin(1)
    assert torch.equal(whole.bank[places], method.bank)
    assert torch.equal(whole.owners[places], method.owners)
    assert torch.bincount(whole.owners).tolist() == [16] * 6


@pytest.mark.parametrize("kind", [Knn, PatchCore])
def test_what_was_learned_does_not_depend_on_the_batches(kind: type[MemoryBank]) -> None:
    one, other = bank_of(kind, bank_size=50, batch=6), bank_of(kind, bank_size=50, batch=1)
    assert torch.equal(one.owners, other.owners)
    torch.testing.assert_close(one.bank, other.bank, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("bank_size", [10_000, 40])
@pytest.mark.parametrize("kind", [Knn, PatchCore])
def test_left_out_is_the_search_without_the_pictures_own_patches(
    kind: type[MemoryBank], bank_size: int
) -> None:
    method = bank_of(kind, bank_size=bank_size)
    left_out = method.score_left_out(Batch(images(), torch.arange(6)))
    without = kind(method.config, method.backbone)
    for owner in range(6):
        without.bank, without.owners = (
            method.bank[method.owners != owner],
            method.owners[method.owners != owner],
        )
        alone = without.score(images()[[owner]])
        torch.testing.assert_close(left_out.maps[[owner]], alone.maps, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(left_out.image[[owner]], alone.image, rtol=1e-4, atol=1e-5)
    plain = method.score(images())
    assert (left_out.image >= plain.image - 1e-6).all()
    if bank_size > 96:  # then its own patches are in it, and nearest to a training picture
        assert (left_out.image > plain.image + 0.01).all()


def test_a_whole_bank_left_out_is_refitting_without_the_picture() -> None:
    method = bank_of(Knn)
    left_out = method.score_left_out(Batch(images(), torch.arange(6)))
    for owner in range(6):
        others = [index for index in range(6) if index != owner]
        refitted = Knn(method.config, method.backbone)
        batch = Batch(images()[others], torch.tensor(others))
        refitted.fit(lambda batch=batch: [batch], 1, silent)  # type: ignore[misc]
        alone = refitted.score(images()[[owner]])
        torch.testing.assert_close(left_out.maps[[owner]], alone.maps, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", [Knn, PatchCore])
def test_a_whole_bank_extended_is_that_of_all_pictures(kind: type[MemoryBank]) -> None:
    whole, method = bank_of(kind), bank_of(kind, count=2)
    for first, last in ((2, 3), (3, 6)):
        extended(method, first=first, last=last)
        assert torch.bincount(method.owners).tolist() == [16] * last
    assert torch.equal(method.owners, whole.owners)
    torch.testing.assert_close(method.bank, whole.bank, rtol=1e-4, atol=1e-5)
    for found, expected in (
        (method.score(images(2, seed=9)), whole.score(images(2, seed=9))),
        (
            method.score_left_out(Batch(images(), torch.arange(6))),
            whole.score_left_out(Batch(images(), torch.arange(6))),
        ),
    ):
        torch.testing.assert_close(found.image, expected.image, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(found.maps, expected.maps, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", [Knn, PatchCore])
def test_an_extended_bank_keeps_to_its_cap_and_its_owners(kind: type[MemoryBank]) -> None:
    method = extended(bank_of(kind, bank_size=40, count=4), first=4)
    whole = bank_of(kind)
    assert method.bank.shape[0] == len(method.owners) == 40
    places = (method.bank[:, None] - whole.bank[None]).norm(dim=2).argmin(1)
    torch.testing.assert_close(whole.bank[places], method.bank, rtol=1e-4, atol=1e-5)
    assert len(set(places.tolist())) == 40
    assert torch.equal(whole.owners[places], method.owners)
    assert len(set((method.owners >= 4).tolist())) == 2  # of the old and the new
    again = extended(bank_of(kind, bank_size=40, count=4), first=4, batch=1)
    assert torch.equal(again.owners, method.owners)
    torch.testing.assert_close(again.bank, method.bank, rtol=1e-4, atol=1e-5)


def test_an_extended_coreset_is_selected_from_the_old_one_and_the_new_patches() -> None:
    method = bank_of(PatchCore, bank_size=30, count=5)
    bank, owners = method.bank.clone(), method.owners.clone()
    new = unit(embed_loop(method.backbone, images()[5:], layers_of("test_vit"), 3)).reshape(
        -1, bank.shape[1]
    )
    both = torch.cat([bank, torch.from_numpy(new).float()])
    chosen, _ = farthest_points(both, 30)
    extended(method, first=5)
    torch.testing.assert_close(method.bank, both[chosen], rtol=1e-3, atol=1e-4)
    assert torch.equal(method.owners, torch.cat([owners, torch.full((16,), 5)])[chosen])


@pytest.mark.parametrize("kind", [Knn, PatchCore])
def test_a_bank_knows_whether_it_knows_several(kind: type[MemoryBank]) -> None:
    method = bank_of(kind, count=1)
    assert not method.knows_several()
    assert extended(method, first=1, last=2).knows_several()
    assert not method.bank.requires_grad
    assert not bank_of(kind, bank_size=1).knows_several()


@pytest.mark.parametrize("kind", [Knn, PatchCore])
def test_bfloat16_scores_are_close(kind: type[MemoryBank]) -> None:
    method = bank_of(kind)
    exact = method.score(images(2, seed=9))
    method.backbone.to(torch.bfloat16)
    rough = method.score(images(2, seed=9))
    assert method.bank.dtype == torch.float32
    assert rough.maps.dtype == torch.float32
    torch.testing.assert_close(rough.maps, exact.maps, rtol=0.05, atol=0.02)


@pytest.mark.parametrize("kind", [Knn, PatchCore])
def test_before_fit(kind: type[MemoryBank]) -> None:
    method = kind(
        kind.Config(backbone="test_vit", image_size=(64,), layers=(2,)), backbone_of("test_vit")
    )  # type: ignore[arg-type]
    with pytest.raises(NotFittedError, match=f"this {kind.name} detector has not been fitted"):
        method.score(images(1))
    with pytest.raises(NotFittedError):
        method.score_left_out(Batch(images(1), torch.tensor([0])))
    with pytest.raises(NotFittedError):
        extended(method, first=0)
    assert not method.knows_several()


@pytest.mark.parametrize(("name", "value"), [("bank_size", 0), ("pooling", 0), ("pooling", 2)])
@pytest.mark.parametrize("config", [PatchCoreConfig, KnnConfig])
def test_settings_out_of_range(config: type[KnnConfig], name: str, value: int) -> None:
    with pytest.raises(ConfigError, match=f"{name}: .* is needed, got {value}"):
        config(**{name: value})  # type: ignore[arg-type]


@pytest.mark.parametrize("seed", range(3))
def test_an_extended_sample_holds_old_patches_by_how_many_were_seen(seed: int) -> None:
    """A bank of 64 of 30 pictures' 480 patches, and 6 more pictures: a sixth of it is new, 10.7 ±
    3.
    """
    method = Knn(
        KnnConfig(backbone="test_vit", layers=(2, 4), bank_size=64, seed=seed),
        backbone_of("test_vit"),
    )
    everything = images(36, seed=seed)
    method.fit(lambda: batches(everything[:30], 8), 4, silent)
    method.extend(lambda: batches(everything[30:], 6, 30), 1, silent, rows=30)
    assert len(method.owners) == 64
    assert 2 <= int((method.owners >= 30).sum()) <= 20


@pytest.mark.parametrize("kind", [PatchCore, Knn])
def test_the_only_picture_of_a_bank_cannot_be_left_out(kind: type[MemoryBank]) -> None:
    method = bank_of(kind, bank_size=40, count=1)
    assert not method.knows_several()
    with pytest.raises(ConfigError, match=r"one training picture only.*raise bank_size \(40\)"):
        method.score_left_out(next(batches(images(1), 1)))


def corner() -> Area:
    """The upper left eighth of each side."""
    inside = np.zeros((SIDE, SIDE), dtype=bool)
    inside[: SIDE // 8, : SIDE // 8] = True
    return Area.of(inside)


@pytest.mark.parametrize("name", ["test_vit", "test_resnet"])
def test_far_from_an_area_nothing_is_learned_that_its_scores_need(name: str) -> None:
    backbone, pictures = backbone_of(name).eval(), images(2, 192, 160)
    config = KnnConfig(
        backbone=name, layers=layers_of(name), image_size=(192, 160), bank_size=9999,
        top_fraction=0.0, smoothing=0.02,
    )  # fmt: skip
    method = Knn(config, backbone)
    method.set_area(corner())
    method.fit(lambda: iter([Batch(pictures, torch.arange(2))]), 2, silent)
    _, grid = method.embedded(method.see(pictures))
    near = method._framed(pictures, grid)
    assert near[:, 0, 0].all()
    assert not near[:, -1, -1].any()
    assert 0 < near[0].sum() < near[0].numel() / 2
    assert torch.equal(near[0], near[1])
    assert len(method.bank) == near.sum()
    assert method.owners.bincount().tolist() == [near[0].sum()] * 2
    # What is not in the bank is of no value inside.
    raw = torch.rand(2, *grid, generator=torch.Generator().manual_seed(1))
    wild = torch.where(near, raw, 1e6)
    one, two = (method._finish(values, pictures) for values in (raw, wild))
    assert torch.equal(one.image, two.image)
    assert torch.equal(one.maps, two.maps)
    assert one.maps[0].unique().numel() > 4


def test_turned_pictures_and_those_without_an_area_are_learned_whole() -> None:
    backbone, pictures = backbone_of("test_vit"), images(2, 192, 192)
    for more, area in (({}, None), ({"flips": True}, corner()), ({"rotations": 4}, corner())):
        config = KnnConfig(backbone="test_vit", layers=(2,), image_size=(192,), **more)
        method = Knn(config, backbone)
        method.set_area(area)
        assert method._framed(pictures, (12, 12)).all()

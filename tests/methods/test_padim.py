"""PaDiM against means, covariances and Mahalanobis distances written out in float64."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import pytest
import torch
from torch import Tensor

from blemish.backbones import build
from blemish.errors import ConfigError, NotFittedError
from blemish.methods.embedding import join
from blemish.methods.padim import Padim, PadimConfig
from blemish.types import Batch, silent


def images(count: int, seed: int = 0) -> Tensor:
    return torch.randn(count, 3, 64, 48, generator=torch.Generator().manual_seed(seed))


def batches(all_images: Tensor, size: int, owners: Tensor | None = None) -> Iterator[Batch]:
    owners = torch.arange(len(all_images)) if owners is None else owners
    for start in range(0, len(all_images), size):
        yield Batch(all_images[start : start + size], owners[start : start + size])


def padim(
    count: int = 12,
    batch: int = 5,
    name: str = "test_vit",
    channels: int = 20,
    owners: Tensor | None = None,
    **settings: float,
) -> Padim:
    layers = (2, 4) if name == "test_vit" else (2, 3)
    config = PadimConfig(
        backbone=name, image_size=(64, 48), layers=layers, channels=channels, seed=4, **settings
    )  # type: ignore[arg-type]
    method = Padim(config, build(name, weights="random", seed=3)).eval()
    learned = images(count) if owners is None else images(count)[owners]
    method.fit(lambda: batches(learned, batch, owners), count, silent)
    return method


@pytest.mark.parametrize("epsilon", [0.01, 0.5])
@pytest.mark.parametrize("batch", [1, 5, 12])
def test_the_map_is_the_mahalanobis_distance(batch: int, epsilon: float) -> None:
    method = padim(batch=batch, epsilon=epsilon)
    learned, _ = join(method.backbone(images(12), (2, 4)), "vit")
    queries, grid = join(method.backbone(images(3, seed=8), (2, 4)), "vit")
    assert grid == (4, 3)
    subset = method.subset.numpy()
    normal, asked = learned.double().numpy()[:, :, subset], queries.double().numpy()[:, :, subset]
    expected = np.empty((3, 12))
    for location in range(12):
        at = normal[:, location]
        mean = at.sum(0) / 12
        covariance = np.zeros((20, 20))
        for row in at:
            covariance += np.outer(row - mean, row - mean) / 11
        inverse = np.linalg.inv(covariance + epsilon * np.eye(20))
        for picture in range(3):
            off = asked[picture, location] - mean
            expected[picture, location] = np.sqrt(off @ inverse @ off)
        np.testing.assert_allclose(method.means[location].numpy(), mean, rtol=1e-4, atol=1e-5)
        # The whitener W is the inverse of the Cholesky factor: WᵀW is the inverse covariance.
        whitener = method.whiteners[location].double().numpy()
        np.testing.assert_allclose(
            whitener.T @ whitener, inverse, rtol=1e-2, atol=1e-2 * np.abs(inverse).max()
        )
    got = method.anomaly_map(method.see(images(3, seed=8)))
    assert got.shape == (3, 4, 3)
    assert got.dtype == torch.float32
    np.testing.assert_allclose(got.numpy().reshape(3, 12), expected, rtol=2e-3)


def test_the_subset_is_drawn_from_the_seed() -> None:
    method, same = padim(), padim()
    assert method.subset.tolist() == same.subset.tolist() == sorted(set(method.subset.tolist()))
    assert len(method.subset) == 20
    assert int(method.subset.max()) < 64  # the width of test_vit, whose layers are averaged
    everything = padim(channels=500, epsilon=1.0)
    assert everything.subset.tolist() == list(range(64))
    other = Padim(
        PadimConfig(backbone="test_vit", layers=(2, 4), channels=20, seed=5), method.backbone
    )
    other.fit(lambda: batches(images(4), 2), 2, silent)
    assert other.subset.tolist() != method.subset.tolist()


def test_a_cnn() -> None:
    config = PadimConfig(backbone="test_resnet", image_size=(64,), layers=(1, 2, 3), channels=30)
    method = Padim(config, build("test_resnet", weights="random")).eval()
    square = torch.randn(6, 3, 64, 64, generator=torch.Generator().manual_seed(1))
    method.fit(lambda: batches(square, 4), 2, silent)
    scores = method.score(square)
    assert method.means.shape == (256, 30)
    assert method.anomaly_map(method.see(square)).shape == (6, 16, 16)
    assert torch.isfinite(scores.maps).all()


def test_it_needs_two_pictures() -> None:
    assert Padim.minimum_images == 2
    with pytest.raises(ConfigError, match="at least 2 training pictures, got 1"):
        padim(count=1)
    assert (one := padim(count=2)).anomaly_map(one.see(images(1))).shape == (1, 4, 3)


@pytest.mark.parametrize("channels", [20, 6])  # more, and fewer, than there are pictures
@pytest.mark.parametrize(
    "owners", [range(12), [0, 1, 2, 1, 4, 5, 1, 7, 8, 5, 10, 11], [0] * 9 + [9, 10, 11]]
)
def test_leaving_out_is_the_distance_to_the_gaussians_of_the_others(
    owners: Sequence[int], channels: int
) -> None:
    owned = torch.tensor(owners)
    shown = images(12)[owned]  # copies are of the same content as the picture that owns them
    method = padim(channels=channels, epsilon=0.05, owners=owned)
    found = method.score_left_out(Batch(shown, owned))
    features, _ = join(method.backbone(shown, (2, 4)), "vit")
    normal = features.double().numpy()[:, :, method.subset.numpy()]
    expected = np.empty((12, 12))
    for picture, location in np.ndindex(12, 12):
        others = normal[[row for row in range(12) if owners[row] != owners[picture]], location]
        mean = others.mean(0)
        covariance = (others - mean).T @ (others - mean) / (len(others) - 1) + 0.05 * np.eye(
            channels
        )
        off = normal[picture, location] - mean
        expected[picture, location] = np.sqrt(off @ np.linalg.inv(covariance) @ off)
    raw = torch.from_numpy(expected.reshape(12, 4, 3)).float()
    wanted = method._finish(raw, shown)
    torch.testing.assert_close(found.maps, wanted.maps, rtol=2e-3, atol=1e-3)
    torch.testing.assert_close(found.image, wanted.image, rtol=2e-3, atol=1e-3)
    assert (found.image > method.score(shown).image).all()


def test_leaving_out_takes_three_pictures_and_ends() -> None:
    batch = Batch(images(1), torch.tensor([0]))
    assert padim(count=3).knows_several()
    for method in (
        padim(count=2),
        padim(count=4, owners=torch.tensor([0, 0, 0, 3])),
        padim(rotations=2),
    ):
        assert not method.knows_several()
        with pytest.raises(ConfigError, match="at least 3 pictures without rotations or flips"):
            method.judge_left_out(method.see(batch.images), batch)
    assert not padim(flips=True).leaves_one_out()
    method = padim()
    before = method.judge_left_out(method.see(batch.images), batch).image
    assert torch.equal(method.judge_left_out(method.see(batch.images), batch).image, before)
    method.end_leaving_out()
    assert not method.knows_several()
    with pytest.raises(ConfigError, match="just fitted"):
        method.judge_left_out(method.see(batch.images), batch)


def test_before_fit() -> None:
    config = PadimConfig(backbone="test_vit", image_size=(64, 48), layers=(2,))
    with pytest.raises(NotFittedError, match="this padim detector has not been fitted"):
        Padim(config, build("test_vit", weights="random")).score(images(1))

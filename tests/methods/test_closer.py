"""Two looks: what is chosen against loops, the join, leave-one-out against banks without a picture,
and the promises of every method."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from fuzzing import artifacts
from parts import SMALL, part
from torch import Tensor
from torch.nn import functional as F

import blemish
from blemish import artifact
from blemish.backbones import build
from blemish.backbones.cache import features_kept
from blemish.detector.predict import Detector
from blemish.errors import ArtifactError, ConfigError
from blemish.methods.closer import CoarseLook, shrunk, weights
from blemish.methods.embedding import join
from blemish.methods.memory import Knn, KnnConfig, MemoryBank, PatchCoreConfig
from blemish.types import Batch, silent

SIDE = 256  # of a grid of 16 × 16 patches
TWO: dict[str, Any] = {**SMALL, "image_size": SIDE, "coarse": SIDE // 2}


def scene(seed: int, *, defect: tuple[int, int] | None = None) -> np.ndarray:
    """A small part on a dark, noisy ground; a defect is a bright square at a place (y, x)."""
    random = np.random.default_rng(seed)
    pixels = np.full((SIDE, SIDE, 3), 60.0) + random.normal(0, 3, (SIDE, SIDE, 3))
    pixels[80:176, 80:176] = part(seed, height=96, width=96) + 60.0
    if defect is not None:
        pixels[defect[0] : defect[0] + 32, defect[1] : defect[1] + 32] = 250
    return np.asarray(np.clip(pixels, 0, 255), dtype=np.uint8)


def images(count: int, seed: int = 0, side: int = SIDE) -> Tensor:
    return torch.randn(count, 3, side, side, generator=torch.Generator().manual_seed(seed))


def two_looks(**settings: Any) -> MemoryBank:
    """knn fitted on six pictures of noise."""
    config = KnnConfig(
        backbone="test_vit", image_size=(SIDE,), layers=(2, 4), coarse=SIDE // 2, **settings
    )
    method = Knn(config, build("test_vit", weights="random", seed=3)).eval()
    good = images(6)
    with torch.inference_mode():
        method.fit(
            lambda: [Batch(good[:4], torch.arange(4)), Batch(good[4:], torch.arange(4, 6))],
            6,
            silent,
        )
    return method


@pytest.fixture(scope="module", params=["patchcore", "knn"])
def detector(request: pytest.FixtureRequest) -> Detector:
    return blemish.fit(request.param, [scene(seed) for seed in range(24)], **TWO)


# What is chosen, and how


@pytest.mark.parametrize(("side", "small"), [(12, 4), (12, 8), (14, 9)])
def test_a_smaller_picture_has_the_means_of_areas(side: int, small: int) -> None:
    picture = images(1, side=side)
    fine = picture[0].double().numpy().repeat(small, 1).repeat(small, 2)  # side · small pixels
    expected = fine.reshape(3, small, side, small, side).mean((2, 4))
    np.testing.assert_allclose(shrunk(picture, (small, small))[0], expected, atol=1e-5)


def test_features_of_kept_patches_are_averaged_with_kept_neighbours() -> None:
    backbone = build("test_vit", weights="random", seed=3)
    kept = torch.tensor([[0, 1, 4, 9, 15], [2, 3, 6, 7, 10]])
    seen = backbone(images(2, side=64), (2, 4), keep=kept)
    got, grid = join(seen, "vit", pooling=3)
    assert grid == (4, 4)
    assert got.shape == (2, 5, seen.tokens[0].shape[2])
    levels = [F.layer_norm(each, each.shape[-1:]) for each in seen.tokens]
    joined = (levels[0] + levels[1]) / 2
    for row in range(2):
        for at, place in enumerate(kept[row].tolist()):
            near = [
                other
                for other, its in enumerate(kept[row].tolist())
                if abs(its // 4 - place // 4) <= 1 and abs(its % 4 - place % 4) <= 1
            ]
            torch.testing.assert_close(
                got[row, at], joined[row, near].mean(0), rtol=1e-4, atol=1e-5
            )


def test_all_patches_kept_are_those_of_one_look() -> None:
    backbone = build("test_vit", weights="random", seed=3)
    kept = torch.arange(16).expand(2, 16)
    whole, some = (
        join(backbone(images(2, side=64), (2, 4), keep=keep), "vit", pooling=3)[0]
        for keep in (None, kept)
    )
    torch.testing.assert_close(some, whole, rtol=1e-4, atol=1e-4)


def test_the_part_is_chosen_and_what_stands_out_elsewhere() -> None:
    look = CoarseLook()
    look.direction = torch.tensor([1.0])
    distances = torch.zeros(1, 6, 6)
    distances[0, 5, 0] = 1.0  # far from the part
    distances[0, 2, 2] = 0.5
    of_part = torch.full((1, 36), -0.5)
    of_part[0, [14, 15]] = 0.5
    allowed = torch.ones(1, 36, dtype=torch.bool)

    def chosen(count: int, reserve: int) -> list[int]:
        return look.chosen(of_part, distances, allowed, count, reserve)[0].tolist()

    assert chosen(6, 4) == [14, 15, 24, 25, 30, 31]  # the part; the place and its ring
    allowed[0, [30, 14]] = False
    assert chosen(4, 3) == [15, 24, 25, 31]
    allowed[:] = True
    of_part[:] = distances[:] = 0.0
    assert chosen(6, 4) == [0, 1, 2, 3, 4, 5]  # all alike
    distances[0, 5, 0] = 1.0
    look.direction = torch.zeros(1)  # no part: all by what stands out
    distances[0, 0, 5] = 0.7
    assert chosen(8, 2) == [4, 5, 10, 11, 24, 25, 30, 31]


def test_the_second_look_counts_fully_inside_what_it_saw_only() -> None:
    square = torch.tensor([[row * 6 + column for row in (2, 3, 4) for column in (2, 3, 4)]])
    share = weights(square, (6, 6))[0]
    expected = torch.zeros(6, 6)
    expected[2:5, 2:5] = torch.tensor([[4, 6, 4], [6, 9, 6], [4, 6, 4]]) / 9
    torch.testing.assert_close(share, expected)
    corner = weights(torch.tensor([[0, 1, 6, 7]]), (6, 6))[0]
    assert float(corner[0, 0]) == 1  # the picture's border is none of what was looked at


def test_distances_of_both_looks_mean_the_same() -> None:
    look, random = CoarseLook(), torch.Generator().manual_seed(0)
    coarse = torch.rand(1000, generator=random)
    look.match(coarse, 0.7 * coarse)
    torch.testing.assert_close(look.scaled(coarse), 0.7 * coarse)
    look.match(torch.zeros(9), torch.zeros(9))  # copies of one picture
    assert torch.equal(look.scaled(coarse), coarse)


def test_where_it_did_not_look_the_map_is_that_of_the_first_look() -> None:
    method = two_looks(close_share=0.2, smoothing=0.0)
    asked = images(2, seed=5)
    with torch.inference_mode():
        seen = method.see(asked)
        scores = method.judge(seen, asked)
        first = method.coarse.scaled(method.anomaly_map(seen))[:, None]
        expected = F.interpolate(
            F.interpolate(first, size=(16, 16), mode="bilinear"), size=(64, 64), mode="bilinear"
        )[:, 0]
    assert scores.saliency is not None
    away = F.max_pool2d((scores.saliency > 0).float(), 9, 1, 4) == 0
    assert 0.1 < away.float().mean() < 0.9
    torch.testing.assert_close(scores.maps[away], expected[away], rtol=1e-4, atol=1e-5)
    assert float((scores.maps - expected)[~away].abs().max()) > 1e-3


def test_a_second_look_everywhere_is_one_look() -> None:
    method = two_looks(close_share=1.0, bank_size=10_000)
    one = Knn(dataclasses.replace(method.config, coarse=0, close_share=0.0), method.backbone).eval()
    good, asked = images(6), images(3, seed=8)
    with torch.inference_mode():
        one.fit(lambda: [Batch(good, torch.arange(6))], 6, silent)
        got, expected = method.score(asked), one.score(asked)
    torch.testing.assert_close(got.maps, expected.maps, rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(got.image, expected.image, rtol=1e-3, atol=1e-4)


def test_left_out_is_without_its_own_patches_in_both_banks() -> None:
    method = two_looks()
    good = images(6)
    with torch.inference_mode():
        got = method.score_left_out(Batch(good[2:4], torch.tensor([2, 3])))
        whole = method.score(good[2:3])
        for look in (method, method.coarse):
            others = look.owners != 2
            look.bank, look.owners = look.bank[others], look.owners[others]
        expected = method.score(good[2:3])
    torch.testing.assert_close(got.image[:1], expected.image)
    torch.testing.assert_close(got.maps[:1], expected.maps, rtol=1e-4, atol=1e-5)
    assert float(whole.image) < float(expected.image)


def test_it_is_encoded_once_where_the_same_patches_are_asked_for() -> None:
    backbone = build("test_vit", weights="random", seed=3)
    picture = images(2, side=64)
    rows: list[int] = []
    handle = backbone.model.blocks[0].register_forward_hook(lambda *_: rows.append(1))
    kept = torch.tensor([[0, 3, 5], [1, 2, 9]])
    with torch.inference_mode(), features_kept(backbone, (2,)):
        one = backbone(picture, (2,), keep=kept)
        again = backbone(picture, (2,), keep=kept)
        assert len(rows) == 1
        assert torch.equal(one.tokens[0], again.tokens[0])
        assert again.kept is kept
        assert backbone(picture, (2,)).tokens[0].shape[1] == 16
        backbone(picture, (2,), keep=kept + 1)
        assert len(rows) == 3
    handle.remove()


# The promises of every method


def test_the_same_seed_gives_the_same_detector(detector: Detector) -> None:
    name = detector.method.name
    other = blemish.fit(name, [scene(seed) for seed in range(24)], **TWO)
    state = other.method.fitted_state()
    for key, tensor in detector.method.fitted_state().items():
        assert torch.equal(tensor, state[key]), key
    assert detector.manifest["calibration_scores"] == other.manifest["calibration_scores"]


def test_no_batch_size_changes_a_score(detector: Detector) -> None:
    asked = [scene(seed, defect=(10, 10) if seed % 2 else None) for seed in range(40, 47)]
    one_by_one = [detector.predict(each).score for each in asked]
    for size in (3, 7):
        scores = [each.score for each in detector.predict_many(asked, batch_size=size)]
        assert scores == pytest.approx(one_by_one, rel=1e-4, abs=1e-5)


def test_saved_and_loaded_it_gives_equal_scores(detector: Detector, tmp_path: Path) -> None:
    loaded = blemish.load(detector.save(tmp_path / "a.blemish"), device="cpu", precision="fp32")
    assert loaded.method.config == detector.method.config
    assert 0 < loaded.method.config.close_share < 0.5
    one, other = (each.predict(scene(60, defect=(110, 110))) for each in (detector, loaded))
    assert one == other
    assert np.array_equal(one.anomaly_map, other.anomaly_map)
    assert np.array_equal(one.saliency, other.saliency)


@pytest.mark.parametrize("at", [(4, 4), (4, 216), (216, 120), (120, 120)])
def test_a_defect_is_raised_wherever_it_lies(detector: Detector, at: tuple[int, int]) -> None:
    """On the part, and in the background, which good pictures never show closely."""
    for seed in range(80, 84):
        normal, defective = scene(seed), scene(seed, defect=at)
        one, other = detector.predict(normal), detector.predict(defective)
        assert other.score > one.score
        assert other.score > max(detector.manifest["calibration_scores"])
        inside = (normal != defective).any(axis=2)
        rise = other.heatmap - one.heatmap
        assert rise[inside].mean() > rise[~inside].mean()
        assert cells(other.saliency)[at[0] // 16 + 1, at[1] // 16 + 1]


def cells(saliency: np.ndarray) -> np.ndarray:
    """bool 16 × 16: where it looked closely."""
    return saliency.reshape(16, 4, 16, 4).mean((1, 3)) > 0.2


def test_a_share_of_each_picture_is_looked_at_and_the_part_is_in_it(detector: Detector) -> None:
    share = detector.method.config.close_share
    for seed in range(90, 94):
        looked = detector.predict(scene(seed)).saliency
        assert looked.min() == 0
        assert looked.max() <= 1
        assert looked.mean() <= share
        inner = looked[24:40, 24:40]
        assert inner.mean() > 0.8


@pytest.mark.parametrize(
    "more",
    [
        {"foreground": "auto"},
        {"resize": "pad"},
        {"tile": 128},
        {"roi": [[[0.2, 0.2], [0.8, 0.2], [0.8, 0.8], [0.2, 0.8]]]},
        {"shots": 4, "rotations": 2},
        {"image_size": (SIDE, 192)},
        {"coarse": 96},
    ],
)
def test_it_goes_with_the_other_options(more: dict[str, Any]) -> None:
    good = [scene(seed) for seed in range(10)]
    detector = blemish.fit("patchcore", good, calibration_fraction=None, **{**TWO, **more})
    normal, defective = scene(50), scene(50, defect=(120, 120))
    one, other = detector.predict(normal), detector.predict(defective)
    assert other.score > one.score
    assert other.saliency.shape == other.anomaly_map.shape


def test_lda_knows_what_is_normal_by_two_looks() -> None:
    good = [scene(seed) for seed in range(10)]
    lda = blemish.fit(
        "lda",
        good,
        normality="knn",
        normality_settings=[f"coarse={SIDE // 2}"],
        **{**SMALL, "image_size": SIDE},
    )
    knn = blemish.fit("knn", good, **TWO)
    assert lda.predict(scene(50)).score == pytest.approx(knn.predict(scene(50)).score, rel=1e-4)


def test_refined_both_banks_know_the_new_pictures() -> None:
    method = two_looks()
    more = images(2, seed=9)
    with torch.inference_mode():
        before = method.score(more).image
        method.extend(lambda: [Batch(more, torch.tensor([6, 7]))], 2, silent, rows=6)
        after = method.score(more).image
    assert {6, 7} <= set(method.owners.tolist()) & set(method.coarse.owners.tolist())
    assert (after < before).all()


# What is refused


def test_settings_that_cannot_be() -> None:
    with pytest.raises(ConfigError, match="close_share: is that of a second look; name coarse"):
        PatchCoreConfig(close_share=0.3)
    with pytest.raises(ConfigError, match=r"coarse: a first look at 64×64 is no smaller .* 64×64"):
        blemish.fit("knn", [scene(0)], **{**SMALL, "coarse": 64})
    with pytest.raises(ConfigError, match=r"coarse: .* is for ViTs; test_resnet is a CNN"):
        blemish.fit("knn", [scene(0)], **{**TWO, "backbone": "test_resnet", "layers": (1, 2)})
    with pytest.raises(ConfigError, match="coarse"):
        blemish.fit("padim", [scene(0)], **TWO)


def test_artifacts_of_one_look_say_nothing_of_two(tmp_path: Path) -> None:
    detector = blemish.fit("knn", [scene(0), scene(1)], **SMALL)
    assert not {"coarse", "close_share"} & detector.manifest["config"].keys()
    assert not any(name.startswith("coarse") for name in detector.method.fitted_state())
    loaded = blemish.load(detector.save(tmp_path / "a.blemish"), device="cpu")
    assert loaded.method.config.coarse == 0
    values = {**detector.manifest["config"]}
    del values["bank_size"]
    with pytest.raises(ConfigError, match=r"config.bank_size: is missing"):
        KnnConfig.restored(values)


def test_an_artifact_whose_looks_cannot_be_is_refused(detector: Detector, tmp_path: Path) -> None:
    path = detector.save(tmp_path / "a.blemish")
    tensors, manifest = artifact.read(path)
    forged = [one for one in artifacts.impossible(manifest) if "close_share" in one[0]]
    forged += [one for one in artifacts.impossible(manifest) if "coarse" in one[0]]
    assert len(forged) == 11
    for name, _, values in forged:
        path.write_bytes(artifacts.forge(tensors, values))
        with pytest.raises(ArtifactError, match=name.removeprefix("config.")):
            blemish.load(path)
    for name in ("coarse.bank", "coarse.direction", "coarse.scale", "coarse.cut"):
        others = {key: tensor for key, tensor in tensors.items() if key != name}
        path.write_bytes(artifacts.forge(others, manifest))
        with pytest.raises(ArtifactError, match=f"{name}: is missing"):
            blemish.load(path)

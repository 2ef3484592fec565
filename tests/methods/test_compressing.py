"""Banks that are compressed by measured loss: that the bound holds, against scores of whole banks;
that nothing changes without; what is saved, extended and refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from fuzzing import artifacts
from parts import SMALL, part
from torch import Tensor

import blemish
from blemish import artifact
from blemish.backbones import build
from blemish.detector.manifest import read_manifest
from blemish.detector.predict import Detector
from blemish.detector.refine import refine
from blemish.errors import ArtifactError, ConfigError
from blemish.methods.compressing import spoilt
from blemish.methods.compression import Compression
from blemish.methods.memory import Knn, KnnConfig, MemoryBank, PatchCore, PatchCoreConfig
from blemish.methods.shortlist import shortened
from blemish.types import Batch, silent

GOOD = [part(seed) for seed in range(12)]
BAD = part(99, defect=True)
LOSS = 0.3
COMPRESSED = {"bank_loss": LOSS, "neighbours": 1}
TWO: dict[str, Any] = {"image_size": 256, "coarse": 128}


def fitted(method: str = "patchcore", good: Any = GOOD, **settings: Any) -> Detector:
    return blemish.fit(method, good, **{**SMALL, **COMPRESSED, **settings})


def told(detector: Detector) -> Compression:
    assert detector.record.compression is not None
    return detector.record.compression


def moved(one: Tensor, other: Tensor, unit: float) -> float:
    return float(((one - other) / unit).square().mean().sqrt())


@pytest.mark.parametrize("method", ["patchcore", "knn"])
def test_it_moves_no_further_than_it_says(method: str) -> None:
    small, whole = (fitted(method, bank_loss=loss) for loss in (LOSS, 0))
    record = told(small)
    assert record.abstains == ""
    assert record.dims < record.width
    assert (record.whole, record.pictures) == (len(whole.method.bank), len(GOOD))
    assert 0 < record.loss <= record.asked == LOSS
    wanted, found = (torch.tensor(each.record.calibration_scores) for each in (whole, small))
    assert moved(found, wanted, float(wanted.std())) == pytest.approx(record.good, rel=1e-3)


def test_of_what_holds_the_one_that_costs_least_is_taken() -> None:
    losses = (1e-9, 0.1, 1, 100)
    found = [told(fitted(bank_loss=loss)) for loss in losses]
    costs = [one.entries * one.dims for one in found]
    assert costs == sorted(costs, reverse=True)
    assert found[0].abstains == "every smaller bank moves scores or maps further"
    assert (found[0].entries, found[0].dims, found[0].stored) == (192, 64, "fp32")
    assert (found[-1].entries, found[-1].loss > 0.3) == (24, True)
    assert found[1].entries == 192


@pytest.mark.parametrize("settings", [{}, {"bank_loss": 1e-9}])
def test_where_nothing_is_asked_or_held_scores_are_those_to_the_bit(settings: Any) -> None:
    plain, other = (
        blemish.fit("patchcore", GOOD, **{**SMALL, "neighbours": 1, **more})
        for more in ({}, settings)
    )
    assert plain.record.compression is None
    assert "compression" not in plain.manifest
    names = {name for name in plain.method.fitted_state() if not name.startswith("backbone.")}
    assert names == {"bank", "owners"}
    assert plain.record.calibration_scores == other.record.calibration_scores
    one, same = plain.predict(BAD), other.predict(BAD)
    assert one.score == same.score
    assert np.array_equal(one.anomaly_map, same.anomaly_map)


@pytest.mark.parametrize(
    ("method", "settings"),
    [
        ("patchcore", {}),
        ("knn", {"bank_loss": 100.0}),
        ("patchcore", TWO),
        ("patchcore", {"resize": "pad"}),
        (
            "lda",
            {
                "bank_loss": None,
                "neighbours": None,
                "normality_settings": ("bank_loss=0.3", "neighbours=1"),
            },
        ),
    ],
)
def test_saved_it_is_the_same(method: str, settings: dict[str, Any], tmp_path: Path) -> None:
    settings = {**SMALL, **COMPRESSED, **settings}
    settings = {name: value for name, value in settings.items() if value is not None}
    good = [part(seed, height=80) for seed in range(8)]
    detector = blemish.fit(method, good, **settings)
    assert told(detector).abstains == ""
    saved = detector.save(tmp_path / "part.blemish")
    again = blemish.load(saved, device="cpu")
    assert again.record.compression == detector.record.compression
    assert again.threshold == detector.threshold
    one, same = detector.predict(BAD), again.predict(BAD)
    assert one.score == same.score
    assert np.array_equal(one.anomaly_map, same.anomaly_map)
    assert one.score > max(detector.record.calibration_scores)
    bank = artifact.read(saved)[0]["normality.bank" if method == "lda" else "bank"]
    assert bank.dtype == torch.float16


def test_two_looks_are_measured_as_they_are_joined() -> None:
    small, whole = (fitted(**TWO, bank_loss=loss) for loss in (LOSS, 0))
    record = told(small)
    assert record.dims < record.width
    assert record.whole == len(whole.method.bank)
    assert small.method.coarse.bank.dtype == torch.float32  # that of the first look is small
    wanted, found = (torch.tensor(each.record.calibration_scores) for each in (whole, small))
    # Both looks are brought to one scale again, which was not yet done as it was measured.
    assert moved(found, wanted, float(wanted.std())) <= 2 * LOSS


@pytest.mark.parametrize(("loss", "size"), [(100.0, 100), (LOSS, 150)])
def test_refined_it_stays_compressed(loss: float, size: int) -> None:
    settings = (f"bank_loss={loss}", f"bank_size={size}", "neighbours=1")
    before = blemish.fit("lda", GOOD, **SMALL, normality_settings=settings)
    after = refine(before, good=[part(seed) for seed in range(20, 24)]).detector
    one, other = before.method.normality, after.method.normality
    assert len(one.bank) == len(other.bank) == told(before).entries
    assert told(before).entries < size or loss == LOSS
    assert other.owners.max() > one.owners.max()  # of the new pictures some is kept
    assert other.bank.dtype == torch.float16
    assert torch.equal(other.axes, one.axes)
    assert bool(one.axes.numel()) == (loss == LOSS)
    if loss == LOSS:
        assert torch.equal(other.short, shortened(other.bank.float(), other.axes).half())
    assert after.predict(BAD).score > max(after.record.calibration_scores)


def test_it_abstains_where_nothing_can_be_measured() -> None:
    alone = told(fitted(good=GOOD[:1]))
    assert alone.abstains == "the bank is of one picture, which cannot be left out"
    config = KnnConfig(backbone="test_vit", image_size=(64,), layers=(2, 4), bank_loss=LOSS)
    method = bank_of(Knn, config, torch.zeros(6, 3, 64, 64))
    assert method.compression is not None
    assert method.compression.abstains == "good pictures score alike, so nothing can be compared"
    assert (method.bank.dtype, method.axes.numel()) == (torch.float32, 0)


def bank_of(kind: type[MemoryBank], config: Any, images: Tensor | None = None) -> MemoryBank:
    method = kind(config, build("test_vit", weights="random", seed=3)).eval()
    if images is None:
        images = torch.randn(6, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        method.fit(lambda: [Batch(images, torch.arange(6))], 6, silent)
    return method


def test_the_first_features_of_a_coreset_are_those_farthest_apart() -> None:
    settings: dict[str, Any] = {"backbone": "test_vit", "image_size": (64,), "layers": (2, 4)}
    room = bank_of(PatchCore, PatchCoreConfig(**settings, bank_size=500))
    full = bank_of(PatchCore, PatchCoreConfig(**settings, bank_size=48))
    order = room._order()
    assert order.sort().values.tolist() == list(range(96))
    assert torch.equal(room.bank[order[:48]], full.bank)
    assert full._order().tolist() == list(range(48))
    drawn = bank_of(Knn, KnnConfig(**settings))._order()
    assert drawn.sort().values.tolist() == list(range(96))
    assert drawn.tolist() != list(range(96))


def test_defects_keep_to_what_is_looked_at() -> None:
    method = bank_of(Knn, KnnConfig(backbone="test_vit", image_size=(64,), layers=(2, 4)))
    images = torch.rand(4, 3, 64, 64, generator=torch.Generator().manual_seed(1)) - 0.5
    inside = torch.zeros(4, 64, 64, dtype=torch.bool)
    inside[:, 16:48, 8:40] = True
    images = torch.where(inside[:, None], images, 0)
    found = spoilt(method, images, lambda _: inside, seed=0)
    assert (found != images).any(1).flatten(1).any(1).all()
    assert torch.equal(torch.where(inside[:, None], 0, found), torch.zeros_like(found))
    everywhere = spoilt(method, images, lambda _: None, seed=0)
    assert everywhere.shape == images.shape
    again = spoilt(method, images, lambda _: inside, seed=0)
    assert torch.equal(found, again)


@pytest.mark.parametrize(
    ("name", "change", "says"),
    [
        ("short", lambda tensor: tensor[:, 1:], "short: is not of the entries"),
        ("short", lambda tensor: tensor[:0, :0], "short: is not of the entries"),
        ("short", lambda tensor: tensor.float(), "short: is float32, not float16"),
        ("short", lambda tensor: tensor * 3, "short: holds"),
        ("axes", lambda tensor: tensor[1:], "axes: has the shape"),
        ("axes", lambda tensor: tensor * torch.nan, "axes: holds NaN"),
        ("bank", lambda tensor: tensor.bfloat16(), "bank: is bfloat16"),
        ("most", lambda tensor: tensor * 0, "most: holds 0"),
        ("axes", None, "axes: is missing"),
    ],
)
def test_a_forged_bank_is_an_error(name: str, change: Any, says: str, tmp_path: Path) -> None:
    saved = fitted().save(tmp_path / "part.blemish")
    tensors, manifest = artifact.read(saved)
    if change is None:
        del tensors[name]
    else:
        tensors[name] = change(tensors[name]).contiguous()
    artifact.write(saved, tensors, manifest)
    with pytest.raises(ArtifactError, match=says):
        blemish.load(saved)


def test_a_manifest_says_what_can_be(tmp_path: Path) -> None:
    saved = fitted().save(tmp_path / "part.blemish")
    manifest = artifact.read_manifest(saved)
    assert read_manifest(saved, manifest).compression is not None
    for name, value in (("loss", 1), ("entries", 10**6), ("good", -1.0), ("stored", "fp8")):
        forged = artifacts.with_value(manifest, ["compression", name], value)
        with pytest.raises(ArtifactError, match=r"compression|entries"):
            read_manifest(saved, forged)


@pytest.mark.parametrize("loss", [-0.1, float("nan"), "much"])
def test_a_loss_that_cannot_be_is_an_error(loss: Any) -> None:
    with pytest.raises(ConfigError, match="bank_loss"):
        fitted(bank_loss=loss)

"""`lda` with a second encoder: its formulas in float64 loops, its artifact, and what is refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from naive import upsampled
from test_lda import Oracle, attention, images, left_out, masks, pooled, teach
from torch import Tensor

import blemish
from blemish import artifact
from blemish.backbones import build
from blemish.detector.refine import refine
from blemish.errors import ArtifactError, ConfigError
from blemish.methods.lda import Lda
from blemish.methods.lda_config import LdaConfig
from blemish.methods.memory import MemoryBank
from blemish.types import Batch, Scores, silent

Part = Callable[..., np.ndarray]
Floats = np.ndarray
# Of all layers, at 64².
GRIDS = {
    "test_vit": [(4, 4)] * 4,
    "test_resnet": [(16, 16), (8, 8), (4, 4), (2, 2)],
    "test_efficientnet": [(16, 16), (8, 8), (4, 4), (2, 2)],
}
CLOSE: dict[str, Any] = {"rtol": 3e-3, "atol": 3e-4}


def taught(first: str, second: str, described: tuple[int, ...], known: int = 3) -> Lda:
    config = LdaConfig(
        backbone=first,
        image_size=(64,),
        layers=(2, 3),
        descriptor_layers=(2, 3),
        second=second,
        second_layers=(2,),
        second_descriptor_layers=described,
        normality_settings=("second_share=0.2",),
        shrinkage=0.5,
    )
    method = Lda(config, build(first, weights="random", seed=3)).eval()
    method.take_second(build(second, weights="random", seed=4))
    good = Batch(images(), torch.arange(6))
    with torch.inference_mode():
        method.learner.fit(lambda: [good], 1, silent)
    method.summarise(lambda: [good], 1, silent)
    if known:
        teach(method, images(known, seed=5), masks(known))
    return method


@dataclass
class Encoder:
    """What one of the two gives: of each layer that describes B N D of length 1, and its places."""

    tokens: list[Floats]
    places: list[tuple[tuple[int, int], float]]

    def descriptor(
        self, row: int, anomaly_map: Floats, mask: Floats | None, sharpness: float
    ) -> Floats:
        parts = []
        for look in (0, 1, 3):
            for level, (grid, offset) in zip(self.tokens, self.places, strict=True):
                weights = attention(anomaly_map, grid, offset, look * sharpness)
                if look == 3 and mask is not None and not np.isnan(mask).any() and mask.any():
                    weights = weights * pooled(mask, grid, offset).ravel()
                    weights = weights / weights.sum()
                parts.append(weights @ level[row])
        return np.concatenate(parts)


def encoders(method: Lda, shown: Tensor) -> list[Encoder]:
    assert isinstance(method.normality, MemoryBank)
    assert method.normality.second is not None
    own, other = method.backbone, method.normality.second.encoder
    pixels = shown * torch.tensor(own.std)[:, None, None] + torch.tensor(own.mean)[:, None, None]
    colours = torch.tensor(other.mean)[:, None, None], torch.tensor(other.std)[:, None, None]
    asked = [
        (own, shown, method.config.descriptor_layers),
        (other, (pixels - colours[0]) / colours[1], method.config.second_descriptor_layers),
    ]
    found = []
    for encoder, pictures, layers in asked:
        with torch.no_grad():
            wide = [each.double().numpy() for each in encoder(pictures, layers).tokens]
        grids = [GRIDS[encoder.spec.name][layer - 1] for layer in layers]
        unit = [each / np.linalg.norm(each, axis=2, keepdims=True) for each in wide]
        found.append(Encoder(unit, [(grid, encoder.offset(grid, pictures)) for grid in grids]))
    return found


def described(
    method: Lda, shown: Tensor, found: Scores, given: Tensor | None = None
) -> list[Floats]:
    """Of each encoder the descriptors, B D."""
    maps = found.maps.double().numpy()
    known = [None] * len(shown) if given is None else list(given.double().numpy())
    return [
        np.stack(
            [
                each.descriptor(row, maps[row], known[row], method.config.sharpness)
                for row in range(len(shown))
            ]
        )
        for each in encoders(method, shown)
    ]


@pytest.mark.parametrize(
    ("first", "second", "layers"),
    [
        ("test_vit", "test_resnet", (2, 3)),
        ("test_resnet", "test_vit", (4,)),
        ("test_vit", "test_efficientnet", (3,)),
    ],
)
def test_scores_and_maps_are_the_formulas(first: str, second: str, layers: tuple[int, ...]) -> None:
    """Each encoder's w of its own, divided by the deviation of its w·x; then one scale of both."""
    method = taught(first, second, layers)
    good, bad, config = Batch(images(), torch.arange(6)), images(3, seed=5), method.config
    found, seen = left_out(method, good), method.normality.score(bad)
    usual = found.image.double().numpy()
    np.testing.assert_allclose(method.defect_scores.numpy(), seen.image.numpy(), **CLOSE)
    ordered = method.normality_scores.sort().values  # noise scores as noise: have these stand out
    method.defect_scores = ordered[[2, 4, 5]] + (ordered[1] - ordered[0]) / 100
    unusual = method.defect_scores.double().numpy()
    of_good, of_bad = described(method, good.images, found), described(method, bad, seen, masks(3))
    np.testing.assert_allclose(method.descriptors.numpy(), np.concatenate(of_good, 1), **CLOSE)
    np.testing.assert_allclose(method.defects.numpy(), np.concatenate(of_bad, 1), **CLOSE)
    oracles = [
        Oracle(one, [*range(6)], usual, other, unusual, config)
        for one, other in zip(of_good, of_bad, strict=True)
    ]
    directions = [oracle.direction() / oracle.deviation for oracle in oracles]
    left = [
        sum(oracle.good[row] @ oracle.without[row] / oracle.deviation for oracle in oracles)
        for row in range(6)
    ]
    middle, deviation, unit = np.mean(left), np.std(left), oracles[0].unit
    shown = images(3, seed=9)
    plain, scores = method.normality.score(shown), method.score(shown)
    maps = plain.maps.double().numpy()
    asked = described(method, shown, plain)
    looked = encoders(method, shown)
    trust = oracles[0].trust()
    assert 0 < trust < 1
    for row in range(3):
        along = sum(x[row] @ w for x, w in zip(asked, directions, strict=True))
        wanted = float(plain.image[row]) + unit * max(0.0, (along - middle) / deviation)
        assert float(scores.image[row]) == pytest.approx(wanted, rel=3e-3, abs=3e-3 * unit)
        alike = np.zeros((16, 16))
        for encoder, w in zip(looked, directions, strict=True):
            start = 0
            for _ in range(3):  # a look after the other
                for level, (grid, offset) in zip(encoder.tokens, encoder.places, strict=True):
                    part = w[start : start + level.shape[2]]
                    alike += upsampled((level[row] @ part).reshape(grid), 16, 16, offset)
                    start += level.shape[2]
        grid, offset = max(place for encoder in looked for place in encoder.places)
        weights = attention(maps[row], grid, offset, config.sharpness)
        weights = ((weights / weights.max()) ** trust).reshape(grid)
        taught_map = unit * np.maximum(0, (alike - middle) / deviation)
        taught_map *= upsampled(weights, 16, 16, offset)
        assert taught_map.max() > 0
        close = {"rtol": 3e-3, "atol": 3e-3 * np.abs(taught_map).max()}
        np.testing.assert_allclose(scores.maps[row].numpy(), maps[row] + taught_map, **close)
    kept = method.score_left_out(good)
    for row in range(6):
        expected = usual[row] + unit * max(0.0, (left[row] - middle) / deviation)
        assert float(kept.image[row]) == pytest.approx(expected, rel=3e-3, abs=3e-3 * unit)


def test_untaught_it_is_the_memory_bank_of_both_to_the_bit() -> None:
    method = taught("test_vit", "test_resnet", (3,), known=0)
    alone = type(method.normality)(
        method.normality.config, build("test_vit", weights="random", seed=3)
    )
    assert isinstance(alone, MemoryBank)
    alone.eval().take_second(build("test_resnet", weights="random", seed=4))
    with torch.inference_mode():
        alone.fit(lambda: [Batch(images(), torch.arange(6))], 1, silent)
    shown = images(2, seed=9)
    one, other = method.score(shown), alone.score(shown)
    assert torch.equal(one.image, other.image)
    assert torch.equal(one.maps, other.maps)


@pytest.mark.parametrize("size", [(96, 80), (112, 64)])
def test_a_size_that_the_second_encoder_does_not_take(size: tuple[int, int]) -> None:
    """Its grid then does not divide the map."""
    config = LdaConfig(backbone="test_vit", image_size=size, layers=(2,), second="test_resnet")
    method = Lda(config, build("test_vit", weights="random", seed=3)).eval()
    method.take_second(build("test_resnet", weights="random", seed=4))
    good = Batch(torch.randn(4, 3, *size), torch.arange(4))
    with torch.inference_mode():
        method.learner.fit(lambda: [good], 1, silent)
    method.summarise(lambda: [good], 1, silent)
    teach(method, torch.randn(2, 3, *size))
    found = method.score(torch.randn(2, 3, *size))
    assert found.maps.shape == (2, size[0] // 4, size[1] // 4)
    assert bool(found.image.isfinite().all())


# Whole detectors

_SETTINGS: dict[str, Any] = {
    "backbone": "test_vit",
    "weights": "random",
    "image_size": 64,
    "layers": (2, 4),
    "second": "test_efficientnet",
    "device": "cpu",
    "precision": "fp32",
}


@pytest.fixture(scope="module")
def of_two(picture: Part) -> blemish.Detector:
    good, known = [picture(seed) for seed in range(12)], [picture(200, defect=True)]
    return blemish.fit("lda", good, anomalies=known, **_SETTINGS)


def test_both_encoders_lie_in_the_artifact_once(
    of_two: blemish.Detector, picture: Part, tmp_path: Path
) -> None:
    record, state = of_two.record, of_two.method.fitted_state()
    assert record.second is not None
    assert record.second.spec.name == "test_efficientnet"
    assert record.config["second_layers"] == [2, 3]
    assert record.config["second_descriptor_layers"] == [3]
    assert sum("conv_stem" in name and "weight" in name for name in state) == 1
    path = of_two.save(tmp_path / "two.blemish")
    loaded = blemish.load(path, device="cpu", precision="fp32")
    assert loaded.method.config == of_two.method.config
    asked = picture(50, defect=True)
    assert loaded.predict(asked) == of_two.predict(asked)
    assert loaded.save(tmp_path / "again.blemish").read_bytes() == path.read_bytes()


def test_a_defect_stands_out_as_of_the_bank_and_more(
    of_two: blemish.Detector, picture: Part
) -> None:
    assert isinstance(of_two.method, Lda)
    asked = picture(51, defect=True)
    taught_score = of_two.predict(asked).score
    assert taught_score > 2 * of_two.predict(picture(51)).score


def test_it_is_refined(of_two: blemish.Detector, picture: Part) -> None:
    before = of_two.method.fitted_state()
    good = [picture(seed) for seed in range(30, 33)]
    refined = refine(of_two, good=good, anomalies=[picture(201, defect=True)]).detector
    assert isinstance(refined.method, Lda)
    assert len(refined.method.defects) == 2
    assert len(refined.method.normality_scores) == 15
    after = refined.method.fitted_state()
    assert torch.equal(after["normality.second.mean"], before["normality.second.mean"])
    assert [one for one, _ in refined.method.encoders] == [one for one, _ in of_two.method.encoders]


def _without_record(manifest: dict[str, Any]) -> str:
    del manifest["second"]
    return "config.second: 'test_efficientnet' is not second.spec.name"


def _no_layers(manifest: dict[str, Any]) -> str:
    manifest["config"]["second_layers"] = []
    return "config.second_layers: names no layer"


def _nothing_described(manifest: dict[str, Any]) -> str:
    manifest["config"]["second_descriptor_layers"] = []
    return "config.second_descriptor_layers: names no layer"


def _of_others(manifest: dict[str, Any]) -> str:
    manifest["config"]["second_descriptor_layers"] = [4]
    return "descriptors"


def _of_padim(manifest: dict[str, Any]) -> str:
    manifest["config"]["normality"] = "padim"
    return "second: padim sees with one encoder alone"


@pytest.mark.parametrize(
    "change", [_without_record, _no_layers, _nothing_described, _of_others, _of_padim]
)
def test_a_manifest_that_does_not_go_together_is_refused(
    change: Callable[[dict[str, Any]], str], of_two: blemish.Detector, tmp_path: Path
) -> None:
    tensors, manifest = artifact.read(of_two.save(tmp_path / "two.blemish"))
    manifest = json.loads(json.dumps(manifest))
    reason = change(manifest)
    path = artifact.write(tmp_path / "changed.blemish", tensors, manifest)
    with pytest.raises(ArtifactError, match=reason):
        blemish.load(path)


def test_without_one_an_artifact_says_nothing_of_it(picture: Part, tmp_path: Path) -> None:
    plain = {name: value for name, value in _SETTINGS.items() if name != "second"}
    good, known = [picture(seed) for seed in range(8)], [picture(200, defect=True)]
    path = blemish.fit("lda", good, anomalies=known, **plain).save(tmp_path / "one.blemish")
    tensors, manifest = artifact.read(path)
    assert "second" not in manifest
    assert not any("second" in name for name in (*tensors, *manifest["config"]))


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"normality": "padim"}, "second: padim sees with one encoder alone; choose a memory bank"),
        ({"normality": "guided"}, "second: guided sees with one encoder alone"),
        ({"second": "no_such_net"}, "no_such_net"),
        ({"second_descriptor_layers": (9,)}, "layer 9 does not exist"),
        ({"normality_settings": ("second=test_resnet",)}, "second is the detector's own"),
        ({"normality_settings": ("second_layers=2",)}, "second_layers is the detector's own"),
        ({"normality_settings": ("coarse=32",)}, "closer look .* leave one of them out"),
        ({"student": True}, "second encoder .*student"),
    ],
)
def test_what_a_fit_refuses(settings: dict[str, Any], reason: str, picture: Part) -> None:
    good = [picture(seed) for seed in range(6)]
    with pytest.raises(ConfigError, match=reason):
        blemish.fit("lda", good, anomalies=good[:1], **{**_SETTINGS, **settings})


@pytest.mark.parametrize("name", ["second_layers", "second_descriptor_layers"])
def test_layers_of_no_second_encoder_are_refused(name: str) -> None:
    with pytest.raises(ConfigError, match=f"{name}: .* name second, too"):
        LdaConfig(**{name: (2,)})

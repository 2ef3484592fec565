"""A second encoder: joined distances against a loop, its channels, and what cannot go with it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from naive import upsampled
from numpy.typing import NDArray
from test_memory import backbone_of, batches, embed_loop, images, layers_of, pooled
from torch import Tensor

import blemish
from blemish import artifact
from blemish.errors import ArtifactError, ConfigError, NotFittedError
from blemish.methods.joint import Moments
from blemish.methods.memory import Knn, KnnConfig, MemoryBank, PatchCore, PatchCoreConfig
from blemish.types import silent

Floats = NDArray[np.float64]
CENTRE = 0.5


def bank_of(
    kind: type[MemoryBank] = PatchCore, first: str = "test_vit", second: str = "test_resnet"
) -> MemoryBank:
    config = kind.Config(
        backbone=first,
        image_size=(64,),
        layers=layers_of(first),
        second=second,  # type: ignore[call-arg]
        second_share=0.2,
        second_layers=layers_of(second),
        pooling=3,
        centre=CENTRE,
    )
    method = kind(config, backbone_of(first)).eval()  # type: ignore[arg-type]
    method.take_second(backbone_of(second))
    return method


def fitted(method: MemoryBank, seen: Tensor, batch: int = 4) -> MemoryBank:
    with torch.inference_mode():
        method.fit(lambda: batches(seen, batch), len(seen), silent)
    return method


def beside_loop(method: MemoryBank, batch: Tensor) -> Floats:
    """B N D: the levels of the second encoder at the places of the backbone, in float64."""
    assert method.second is not None
    own, other = method.backbone, method.second.encoder
    pixels = batch * torch.tensor(own.std)[:, None, None] + torch.tensor(own.mean)[:, None, None]
    colours = torch.tensor(other.mean)[:, None, None], torch.tensor(other.std)[:, None, None]
    there = own(batch, method.layers)
    (height, width), onto = there.grids[0], there.offsets[0]
    seen = other((pixels - colours[0]) / colours[1], method.second.layers)
    rows = []
    for picture in range(len(batch)):
        levels = []
        for tokens, grid, offset in zip(seen.tokens, seen.grids, seen.offsets, strict=True):
            level = tokens[picture].double().numpy().reshape(*grid, -1)
            if other.spec.kind == "vit":
                level = np.array(
                    [[(t - t.mean()) / np.sqrt(t.var() + 1e-5) for t in row] for row in level]
                )
            level = (1 - CENTRE) * pooled(level, 3) + CENTRE * level
            levels.append(upsampled(level, height, width, offset, onto))
        is_vit = other.spec.kind == "vit"
        joined = np.mean(levels, axis=0) if is_vit else np.concatenate(levels, axis=2)
        rows.append(joined.reshape(height * width, -1))
    return np.stack(rows)


def long_one(values: Floats) -> Floats:
    unit: Floats = values / np.linalg.norm(values, axis=-1, keepdims=True)
    return unit


@pytest.mark.parametrize(
    ("first", "second"),
    [("test_resnet", "test_resnet"), ("test_resnet", "test_vit"), ("test_vit", "test_vit")],
)
def test_joined_distances_are_the_loop(first: str, second: str) -> None:
    """(1 − s) |u − u'|² + s |v − v'|², and the least of them over the bank."""
    good, asked = images(4), images(2, seed=9)
    method = fitted(bank_of(first=first, second=second), good)
    assert method.second is not None
    known, found = beside_loop(method, good), beside_loop(method, asked)
    flat = known.reshape(-1, known.shape[2])
    mean, deviation = flat.mean(0), flat.std(0)
    deviation = np.maximum(deviation, 1e-3 * deviation.mean())  # some channels are always 0
    np.testing.assert_allclose(method.second.mean.numpy(), mean, rtol=1e-3, atol=1e-4)
    np.testing.assert_allclose(method.second.deviation.numpy(), deviation, rtol=1e-3, atol=1e-4)
    v = long_one((flat - mean) / deviation)
    u = long_one(embed_loop(method.backbone, good, method.layers, 3, CENTRE))
    u = u.reshape(len(v), -1)
    with torch.inference_mode():
        got = method.anomaly_map(method.see(asked)).flatten(1).numpy()
    own = long_one(embed_loop(method.backbone, asked, method.layers, 3, CENTRE))
    other = long_one((found - mean) / deviation)
    for picture in range(len(asked)):
        for place in range(own.shape[1]):
            squares = [
                0.8 * float(((own[picture, place] - a) ** 2).sum())
                + 0.2 * float(((other[picture, place] - b) ** 2).sum())
                for a, b in zip(u, v, strict=True)
            ]
            assert got[picture, place] == pytest.approx(min(squares) ** 0.5, rel=2e-3, abs=2e-3)


def test_a_finer_second_encoder_is_brought_to_the_coarser_grid() -> None:
    """A CNN of stride 8 beside a ViT of stride 16: every other place between four, bilinear."""
    method = fitted(bank_of(), images(4))
    assert method.second is not None
    with torch.inference_mode():
        seen = method.see(images(2))
        embedded, grid = method.embedded(seen)
    assert grid == (4, 4)
    assert seen.beside is not None
    assert seen.beside.grids == ((8, 8), (4, 4))
    width = seen.tokens[0].shape[2] + sum(each.shape[2] for each in seen.beside.tokens)
    assert embedded.shape == (2, 16, width)
    torch.testing.assert_close(embedded.norm(dim=-1), torch.ones(2, 16))
    own = embedded[..., : seen.tokens[0].shape[2]]
    torch.testing.assert_close(own.square().sum(-1), torch.full((2, 16), 0.8))


def test_moments_are_those_of_all_features() -> None:
    values = torch.randn(50, 3, generator=torch.Generator().manual_seed(2)) * 7 + 1000
    values[:, 2] = 5.0  # a channel that never varies
    moments = Moments()
    for part in values.split([20, 1, 29]):
        moments.add(part)
    mean, deviation = moments.told()
    exact = values.double().numpy()
    np.testing.assert_allclose(mean.numpy(), exact.mean(0), rtol=1e-9)
    expected = exact.std(0)
    expected[2] = 1e-3 * expected.mean()
    np.testing.assert_allclose(deviation.numpy(), expected, rtol=1e-6)
    with pytest.raises(ConfigError, match="no training picture"):
        Moments().told()


def test_neither_batches_nor_a_second_fit_change_what_is_learned() -> None:
    one, again, other = (fitted(bank_of(), images(7), size) for size in (4, 4, 1))
    for name, tensor in one.fitted_state().items():
        assert torch.equal(tensor, again.fitted_state()[name]), name
    assert one.second is not None
    assert other.second is not None
    torch.testing.assert_close(other.second.mean, one.second.mean)
    torch.testing.assert_close(other.second.deviation, one.second.deviation)
    torch.testing.assert_close(other.score(images(2)).image, one.score(images(2)).image)


def test_what_is_learned_later_is_measured_as_before() -> None:
    method = fitted(bank_of(Knn), images()[:4])
    assert method.second is not None
    mean, size = method.second.mean.clone(), len(method.bank)
    method.extend(lambda: batches(images()[4:], 2, 4), 2, silent, rows=4)
    assert torch.equal(method.second.mean, mean)
    assert len(method.bank) == size * 6 // 4


def test_a_size_that_the_second_encoder_does_not_take_is_resampled() -> None:
    """96×80 for a ViT of stride 16; a CNN of stride 32 sees 96×64."""
    config = PatchCoreConfig(
        backbone="test_vit", image_size=(96, 80), layers=(2,), second="test_resnet"
    )
    method = PatchCore(config, backbone_of("test_vit")).eval()
    method.take_second(backbone_of("test_resnet"))
    fitted(method, images(3, 96, 80))
    seen = method.see(images(1, 96, 80))
    assert seen.beside is not None
    assert seen.beside.grids[0] == (12, 8)
    assert method.embedded(seen)[1] == (6, 5)
    assert method.score(images(1, 96, 80)).maps.shape == (1, 24, 20)


@pytest.fixture(scope="module")
def of_two(picture: Callable[..., Any]) -> blemish.Detector:
    return blemish.fit(
        "patchcore",
        [picture(seed) for seed in range(12)],
        **_SETTINGS,  # type: ignore[arg-type]
    )


_SETTINGS: dict[str, Any] = {
    "backbone": "test_vit",
    "weights": "random",
    "image_size": 64,
    "layers": (2, 4),
    "second": "test_efficientnet",
    "device": "cpu",
    "precision": "fp32",
}


def test_both_encoders_lie_in_the_artifact(
    of_two: blemish.Detector, picture: Callable[..., Any], tmp_path: Path
) -> None:
    record = of_two.record
    assert record.second is not None
    assert record.second.spec.name == "test_efficientnet"
    assert record.second.weights.source == "random"
    assert record.config["second_layers"] == [2, 3]
    path = of_two.save(tmp_path / "two.blemish")
    loaded = blemish.load(path, device="cpu", precision="fp32")
    asked = picture(50, defect=True)
    assert loaded.predict(asked) == of_two.predict(asked)
    assert loaded.save(tmp_path / "again.blemish").read_bytes() == path.read_bytes()


def test_a_planted_defect_is_found(of_two: blemish.Detector, picture: Callable[..., Any]) -> None:
    assert of_two.predict(picture(51, defect=True)).score > 2 * of_two.predict(picture(51)).score


def _without_record(manifest: dict[str, Any]) -> str:
    del manifest["second"]
    return "config.second: 'test_efficientnet' is not second.spec.name"


def _without_setting(manifest: dict[str, Any]) -> str:
    manifest["config"]["second"] = ""
    return "second_share|second_layers: is that of a second encoder"


def _of_another(manifest: dict[str, Any]) -> str:
    manifest["second"]["spec"]["timm_name"] = "test_resnet"
    return "the tensors do not fit"


def _of_none(manifest: dict[str, Any]) -> str:
    manifest["second"]["spec"]["timm_name"] = "hf-hub:a/b"
    return "timm_name"


def _no_layers(manifest: dict[str, Any]) -> str:
    manifest["config"]["second_layers"] = []
    return "config.second_layers: names no layer"


@pytest.mark.parametrize(
    "change", [_without_record, _without_setting, _of_another, _of_none, _no_layers]
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


@pytest.mark.parametrize("name", ["second.mean", "second.deviation", "second.encoder"])
def test_a_tensor_that_cannot_be_is_refused(
    name: str, of_two: blemish.Detector, tmp_path: Path
) -> None:
    tensors, manifest = artifact.read(of_two.save(tmp_path / "two.blemish"))
    whole = next(each for each in tensors if each.startswith(name))
    tensors[whole] = tensors[whole].reshape(-1)[1:]
    path = artifact.write(tmp_path / "changed.blemish", tensors, manifest)
    with pytest.raises(ArtifactError, match=whole):
        blemish.load(path)


def test_without_one_an_artifact_is_as_of_before(
    picture: Callable[..., Any], tmp_path: Path
) -> None:
    """Neither its settings, its record nor its tensors say anything of a second encoder."""
    plain = {name: value for name, value in _SETTINGS.items() if name != "second"}
    detector = blemish.fit("patchcore", [picture(seed) for seed in range(8)], **plain)
    tensors, manifest = artifact.read(detector.save(tmp_path / "new.blemish"))
    assert "second" not in manifest
    assert not any(name.startswith("second") for name in tensors)
    assert not any(name.startswith("second") for name in manifest["config"])
    old = blemish.load(tmp_path / "new.blemish", device="cpu", precision="fp32")
    assert old.method.config == detector.method.config
    assert old.predict(picture(50)) == detector.predict(picture(50))


def test_without_the_encoder_it_is_a_named_error() -> None:
    config = KnnConfig(backbone="test_vit", image_size=(64,), layers=(2,), second="test_resnet")
    with pytest.raises(ConfigError, match="second: test_resnet was not given to the method"):
        Knn(config, backbone_of("test_vit")).score(images(1))
    method = Knn(config, backbone_of("test_vit"))
    method.take_second(backbone_of("test_resnet"))
    with pytest.raises(NotFittedError):
        method.score(images(1))


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"second": "test_resnet", "coarse": 64}, "closer look .* leave one of them out"),
        ({"second": "test_resnet", "second_share": 0.0}, "above 0 and below 1"),
        ({"second": "test_resnet", "second_share": 1.0}, "above 0 and below 1"),
        ({"second_share": 0.1}, "second_share: .* name second, too"),
        ({"second_layers": (2,)}, "second_layers: .* name second, too"),
    ],
)
def test_settings_that_do_not_go_together(settings: dict[str, Any], reason: str) -> None:
    with pytest.raises(ConfigError, match=reason):
        PatchCoreConfig(**settings)


@pytest.mark.parametrize(
    ("how", "reason"),
    [
        ({"student": "short"}, "second encoder .*student"),
        ({"second": "no_such_net"}, "no_such_net"),
        ({"second_layers": (9,)}, "layer 9 does not exist"),
    ],
)
def test_what_a_fit_refuses(how: dict[str, Any], reason: str, picture: Callable[..., Any]) -> None:
    with pytest.raises(ConfigError, match=reason):
        blemish.fit("patchcore", [picture(seed) for seed in range(12)], **{**_SETTINGS, **how})


def test_a_joined_bank_is_compressed(picture: Callable[..., Any], tmp_path: Path) -> None:
    how = {**_SETTINGS, "bank_loss": 2.0, "neighbours": 1}
    detector = blemish.fit("patchcore", [picture(seed) for seed in range(12)], **how)
    assert detector.record.compression is not None
    assert detector.record.compression.width == detector.method.bank.shape[1]
    assert detector.method.axes.numel()
    loaded = blemish.load(detector.save(tmp_path / "small.blemish"), precision="fp32", device="cpu")
    assert loaded.predict(picture(51, defect=True)) == detector.predict(picture(51, defect=True))


def test_it_is_not_learned_in_parts() -> None:
    config = PatchCoreConfig(second="test_resnet")
    assert config.needs_all.startswith("second, whose channels are measured on all pictures")

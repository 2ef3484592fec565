"""Artifacts of format 1, in which methods, settings and tensors had other names."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import blemish
from blemish import artifact
from blemish.backbones import hollow, restore
from blemish.config import from_dict
from blemish.detector.manifest import read_manifest
from blemish.detector.predict import Detector
from blemish.errors import ArtifactError
from blemish.methods import METHODS, earlier
from blemish.methods.agpnet import AGPNet, AGPNetConfig
from blemish.methods.guidance import normalise
from blemish.methods.guided import Guided

# As they were written: what the headers say, and the tensors beside those of the backbone.
HEADERS: dict[str, Any] = json.loads(
    (Path(__file__).parent / "headers_of_format_1.json").read_text(encoding="utf-8")
)
TODAY = {"agpnet": "agpnet", "guided_ent": "guided", "lda_guided": "lda", "atac_paper": "atacnet"}
RUN: dict[str, Any] = {"device": "cpu", "precision": "fp32"}


@pytest.mark.parametrize("name", HEADERS)
def test_a_header_of_then_describes_a_detector_of_today(name: str) -> None:
    header = HEADERS[name]
    record = read_manifest(name, header["manifest"])
    assert record.method == TODAY[name]
    kind = METHODS[record.method]
    with hollow():
        settings = kind.Config.restored(record.config)
        method = kind(settings, restore(record.backbone.spec, record.backbone.weights))
    own = {
        each: torch.empty(shape, dtype=getattr(torch, dtype))
        for each, (dtype, shape) in header["tensors"].items()
    }
    if "chance" in own:
        own["chance"] = torch.tensor([1.5, 24.0])
    shared = {each for each in method.fitted_state() if each.startswith("backbone.")}
    today = earlier.tensors_of_today(header["manifest"], own)
    assert today.keys() | shared == method.fitted_state().keys()
    if name == "guided_ent":
        kept = today["reference.entropy_limit"], today["reference.pictures"]
        assert tuple(map(float, kept)) == (1.5, 24.0)
    values = header["manifest"]["config"]
    if name == "lda_guided":
        values = dict(each.split("=", 1) for each in values["normality_settings"])
        inner = method.learner.config
        assert (inner.trainable_blocks, inner.cross_entropy_weight) == (2, 0.5)  # type: ignore[attr-defined]
    assert {"pictures_per_step", "tuned", "described"} & set(values)


def as_then(path: Path, monkeypatch: pytest.MonkeyPatch, **config: Any) -> Path:
    """The artifact as format 1 had it, with these settings changed."""
    tensors, manifest = artifact.read(path)
    method = manifest["method"]
    settings = {now: then for then, now in earlier.SETTINGS[method].items() if now}
    begins = {now: then for then, now in earlier.TENSORS.get(method, {}).items()}
    old: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        begin = next((each for each in begins if name.startswith(each)), "")
        old[begins.get(begin, "") + name.removeprefix(begin)] = tensor.clone()
    if method == "guided":
        both = [old.pop(f"reference.{name}") for name in ("entropy_limit", "pictures")]
        old["chance"] = torch.stack(both)
    manifest["config"] = {settings.get(key, key): it for key, it in manifest["config"].items()}
    manifest["config"] = {**manifest["config"], **config}
    absent = {key for key, it in config.items() if it is None}
    manifest["config"] = {key: it for key, it in manifest["config"].items() if key not in absent}
    manifest["method"] = {now: then for then, now in earlier.METHODS.items()}.get(method, method)
    monkeypatch.setattr(artifact, "FORMAT", 1)
    artifact.write(path, old, manifest)
    monkeypatch.undo()
    return path


@pytest.mark.parametrize(
    ("method", "settings", "then"),
    [
        ("guided", {}, {"small_pieces": True}),
        ("guided", {}, {"blend_x_rays": None, "map_stride": None, "adaptation_guard": None}),
        ("agpnet", {"noise_high": 0.5}, {"noise_floor": 0.5, "noise_high": 1.0, "beta": None}),
        ("lda", {"normality": "knn"}, {"flips": None}),
        ("atacnet", {"image_size": 64, "backbone": "test_resnet"}, {"extractor_rate": None}),
    ],
)
def test_an_artifact_of_then_scores_as_it_did(
    method: str,
    settings: dict[str, Any],
    then: dict[str, Any],
    brief: dict[str, Any],
    picture: Callable[..., np.ndarray],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if method == "atacnet":
        del brief["layers"]
    detector = blemish.fit(method, [picture(seed) for seed in range(6)], **{**brief, **settings})
    shown = [picture(seed, defect=seed > 50) for seed in (49, 50, 51)]
    path = as_then(detector.save(tmp_path / "old.blemish"), monkeypatch, **then)
    old = blemish.load(path, **RUN)
    assert old.method.config == detector.method.config
    again = blemish.load(old.save(tmp_path / "again.blemish"), **RUN)

    def scores(one: Detector) -> list[float]:
        return [result.score for result in one.predict_many(shown)]  # type: ignore[union-attr]

    assert scores(old) == scores(again) == scores(detector)


@pytest.mark.usefixtures("small_head")
def test_a_class_head_that_nothing_read_is_left_out(
    brief: dict[str, Any],
    picture: Callable[..., np.ndarray],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    good = [picture(seed) for seed in range(6)]
    settings = {"zoom": 1.0, "score": "both", "map_head": "features"}
    detector = blemish.fit("guided", good, **{**brief, **settings})
    path = as_then(detector.save(tmp_path / "old.blemish"), monkeypatch, score="map")
    assert any(name.startswith("head.") for name in artifact.read(path)[0])
    loaded = blemish.load(path, **RUN).method
    assert isinstance(loaded, Guided)
    assert loaded.class_head is None
    images = torch.randn(2, 3, 64, 64)
    assert isinstance(detector.method, Guided)
    assert torch.equal(loaded.examine(images).maps, detector.method.examine(images).maps)


@pytest.mark.parametrize("config", [None, 7, [["a", 1]], {"normality_settings": 3}])
def test_a_config_of_no_version_is_refused(config: Any) -> None:
    manifest = {**HEADERS["lda_guided"]["manifest"], "config": config}
    with pytest.raises(ArtifactError, match="does not describe a detector"):
        read_manifest("x", manifest)


@pytest.mark.parametrize("kind", ["random", "attention"])
@pytest.mark.parametrize("floor", [0.0, 0.3, 1.0])
def test_noise_with_a_floor_is_the_same_noise_at_the_end(floor: float, kind: str) -> None:
    old = {"width": 32, "depth": 1, "heads": 2, "layers": [2, 4], "feature_noise": kind}
    old |= {"noise_low": 0.2, "noise_high": 1.5, "noise_floor": floor}
    config = from_dict(AGPNetConfig, earlier.settings_of_today("agpnet", old))
    assert old["noise_floor"] == floor  # what was given is left alone
    from blemish.backbones import build

    method = AGPNet(config, build("test_vit", weights="random"))
    features, guide = torch.randn(400, 12, 64), normalise(torch.rand(1, 12)).expand(400, -1)
    strength = (method._perturbed(features, guide, 0.8) - features).std(dim=(0, 2))
    shape = torch.ones(12) if kind == "random" else guide[0]
    expected = 1.5 * (floor + (1 - floor) * shape)
    torch.testing.assert_close(strength, expected, rtol=0.05, atol=0.02)
    part = {"normality": "agpnet", "normality_settings": ["noise_floor=0.25", "width=64"]}
    told = earlier.settings_of_today("lda", part)["normality_settings"]
    assert {"noise_high=0.75", "beta=0.25", "width=64"} <= set(told)

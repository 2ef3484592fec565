"""Whole detectors of `lda`: fitted, saved, loaded; what is refused."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import blemish
from blemish import artifact
from blemish.backbones import build
from blemish.detector.fit import configure
from blemish.detector.predict import Detector
from blemish.errors import ArtifactError, ConfigError, DataError, NotFittedError
from blemish.methods.lda import Lda
from blemish.methods.lda_config import LdaConfig
from blemish.methods.memory import KnnConfig
from blemish.types import Batch, silent

Part = Callable[..., np.ndarray]
TRAINED = {
    "agpnet": ("epochs=1", "min_steps=3", "train_batch_size=4", "width=32", "heads=4", "depth=1"),
    "guided": ("epochs=1", "min_steps=2", "train_batch_size=4", "zoom=1", "bank_size=20"),
}


@pytest.mark.parametrize("normality", ["padim", *TRAINED])
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


def test_a_defect_like_the_labelled_ones_stands_out_more_than_before(
    picture: Part, small: dict[str, Any]
) -> None:
    def faint(seed: int) -> np.ndarray:
        return np.asarray(0.7 * picture(seed) + 0.3 * picture(seed, defect=True), dtype=np.uint8)

    good, known = [picture(seed) for seed in range(16)], [faint(200), faint(201)]
    options = {**small, "normality": "knn", "calibration_fraction": 0}
    detector = blemish.fit("lda", good, anomalies=known, **options)
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
    good = [picture(seed) for seed in range(8)]
    bad = [picture(200 + seed, defect=True) for seed in range(2)]
    settings = {"normality": "knn", "normality_settings": ("bank_size=50",)}
    return blemish.fit("lda", good, anomalies=bad, **settings, **small)


def test_saved_and_loaded_it_knows_its_defects(
    learned: Detector, picture: Part, tmp_path: Path
) -> None:
    path = learned.save(tmp_path / "part.blemish")
    loaded = blemish.load(path, device="cpu", precision="fp32")
    assert loaded.manifest == {**learned.manifest, "format": loaded.manifest["format"]}
    assert isinstance(loaded.method, Lda)
    assert loaded.method.config == learned.method.config
    assert len(loaded.method.defects) == 2
    again = loaded.save(tmp_path / "again.blemish")
    assert again.read_bytes() == path.read_bytes()
    shown = Batch(torch.zeros(1, 3, 64, 64), torch.arange(1))
    for each in (learned, loaded):
        assert isinstance(each.method, Lda)
        each.method.learn_defects(lambda: [shown], 1, silent)
    assert loaded.predict(picture(61)).score == learned.predict(picture(61)).score


def test_the_backbone_is_stored_once(learned: Detector) -> None:
    names = learned.method.fitted_state().keys()
    own = {"descriptors", "owners", "normality_scores", "defects", "defect_scores"}
    inner = {"normality.bank", "normality.owners"}
    assert {name for name in names if not name.startswith("backbone.")} == own | inner
    assert isinstance(learned.method, Lda)
    assert learned.method.normality.backbone is learned.method.backbone


@pytest.mark.parametrize("missing", ["normality_scores", "defects", "normality.bank"])
def test_an_artifact_that_lacks_a_part_is_refused(
    missing: str, learned: Detector, tmp_path: Path
) -> None:
    state = learned.method.fitted_state()
    del state[missing]
    path = artifact.write(tmp_path / "x", state, learned.manifest)
    says = f"x.*do not fit method 'lda'.*{missing.split('.')[-1]}.*fit it again"
    with pytest.raises(ArtifactError, match=says):
        blemish.load(path, device="cpu")


# Few pictures


def test_beside_a_single_good_picture_nothing_can_be_learned(
    picture: Part, small: dict[str, Any]
) -> None:
    bad, options = [picture(200, defect=True)], {"normality": "knn", **small}
    with pytest.raises(DataError, match="two good pictures at least"):
        blemish.fit("lda", [picture(0)], anomalies=bad, **options)
    plain = blemish.fit("lda", [picture(0)], **options).predict(bad[0])
    same = blemish.fit("knn", [picture(0)], **small)
    assert plain.score == same.predict(bad[0]).score
    with pytest.raises(DataError, match="two good pictures at least"):  # a copy is no second one
        blemish.fit("lda", [picture(0), picture(0)], anomalies=bad, **options)
    two = blemish.fit("lda", [picture(0), picture(1)], anomalies=bad, **options)
    assert np.isfinite(two.predict(bad[0]).score)
    with pytest.raises(DataError, match="two good pictures at least"):  # nor is it turned
        blemish.fit("lda", [picture(0)], anomalies=bad, rotations=2, flips=True, **options)


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
    good = [picture(seed) for seed in range(10)]
    bad = [picture(200 + seed, defect=True) for seed in range(2)]
    options = {**small, "anomalies": bad, "normality": "agpnet"}
    options["normality_settings"] = TRAINED["agpnet"]
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
        ({"normality": "lda"}, "'lda' is no method that learns from good pictures alone"),
        ({"normality": "atacnet"}, "'atacnet' is no method that .* is needed: agpnet, .*, vitad$"),
        ({"normality": "pachcore"}, "'pachcore' is no method that .*, patchcore, "),
        ({"normality": "knn", "normality_settings": ("bank_sise=3",)}, "did you mean 'bank_size'"),
        ({"normality": "knn", "normality_settings": ("bank_size=0",)}, "bank_size: at least 1"),
        ({"normality": "knn", "normality_settings": ("bank_size",)}, "not of the form key=value"),
        ({"normality_settings": ("image_size=32",)}, "normality_settings: image_size"),
        ({"normality_settings": ("seed=3",)}, "normality_settings: seed"),
        ({"sharpness": math.inf}, "sharpness: a finite number from 0"),
        ({"shrinkage": 0.0}, r"shrinkage: a fraction in \(0, 1\]"),
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
    with pytest.raises(ConfigError, match=r"time_budget.*: lda is not trained step by step"):
        blemish.fit("lda", [picture(0)], normality="knn", time_budget=1, **small)


def test_before_it_is_fitted_it_teaches_nothing() -> None:
    config = LdaConfig(backbone="test_vit", image_size=(64,), layers=(2,), normality="knn")
    method = Lda(config, build("test_vit", weights="random"))
    shown = Batch(torch.zeros(1, 3, 64, 64), torch.arange(1))
    for use in (
        lambda: method.score_left_out(shown),
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
    shared = {key: it for key, it in values.items() if not key.startswith("normality")}
    inner = configure("knn", values=shared)
    assert isinstance(inner, KnnConfig)
    # As an artifact has it that names no more; what is fitted names what `best` has otherwise.
    assert chosen.normality_config == replace(inner, bank_size=10, pooling=5, neighbours=1)
    fitted = chosen.for_pictures(x_rays=False)
    assert fitted.normality_config == replace(inner, bank_size=10, pooling=5)
    assert fitted.for_pictures(x_rays=True) == fitted
    nearest = replace(chosen, normality_settings=("neighbours=1",)).for_pictures(x_rays=False)
    assert nearest.normality_settings == ("neighbours=1",)
    assert not chosen.learns_by_gradient
    assert configure("lda", values={"normality": "agpnet"}).learns_by_gradient


def test_what_a_layout_asks_of_the_normality_part_is_kept() -> None:
    given = {"normality": "guided", "normality_settings": ["zoom=2"]}
    for x_rays in (True, False):
        chosen = configure("lda", values=given).for_pictures(x_rays=x_rays)
        alone = configure("guided").for_pictures(x_rays=x_rays)
        assert isinstance(chosen, LdaConfig)
        assert chosen.normality_config == replace(alone, zoom=2, image_size=(448,))  # type: ignore[call-arg]
    given["normality_settings"] = ["pretraining=apmask"]
    pretrained = configure("lda", values=given)
    assert pretrained.pretraining_config is not None
    assert configure("lda").pretraining_config is None

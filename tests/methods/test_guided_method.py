"""The guided method from pictures to an artifact, and its settings."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from parts import prepared
from small_guided import FIT, SIDE, TINY, WITH_SCALES, Part, guided, pictures, summarised, taken
from torch import Tensor

import blemish
from blemish.backbones import build
from blemish.errors import ConfigError
from blemish.images import decode
from blemish.methods.apmask import APMaskConfig
from blemish.methods.dino import DINOConfig
from blemish.methods.guided import Guided
from blemish.methods.guided_config import GuidedConfig
from blemish.methods.ibot import IBOTConfig
from blemish.methods.learner import TrainingBatch
from blemish.methods.msn import MSNConfig
from blemish.methods.selfsupervised import SelfSupervisedConfig
from blemish.methods.swav import SwAVConfig
from blemish.types import Progress

pytestmark = pytest.mark.usefixtures("small_head")


# End to end


def good(picture: Part, count: int) -> list[np.ndarray]:
    return [picture(seed) for seed in range(count)]


def same_weights(one: blemish.Detector, other: blemish.Detector) -> bool:
    states = [detector.method.fitted_state() for detector in (one, other)]
    assert states[0].keys() == states[1].keys()
    return all(torch.equal(tensor, states[1][name]) for name, tensor in states[0].items())


@pytest.fixture(scope="module")
def whole(picture: Part, small_head: None) -> blemish.Detector:
    return blemish.fit("guided", good(picture, 10), **WITH_SCALES)


def test_it_is_fitted_saved_and_loaded(
    whole: blemish.Detector, picture: Part, tmp_path: Path
) -> None:
    assert whole.manifest["training"]["steps"] == 6
    findings = {"guidance_entropy", "guidance_peak_to_mean"}
    assert set(whole.manifest["training"]["findings"]) == findings
    assert (whole.preprocessing.height, whole.preprocessing.width) == (48, 48)
    path = whole.save(tmp_path / "part.blemish")
    loaded = blemish.load(path, device="cpu", precision="fp32")
    assert same_weights(loaded, whole)
    one, other = whole.predict(picture(50)), loaded.predict(picture(50))
    assert one == other
    assert np.array_equal(one.anomaly_map, other.anomaly_map)
    loaded.method.adapter("episodic")  # its statistics came along
    coarse = blemish.load(path, device="cpu", precision="bf16")
    assert coarse.method.precision == torch.bfloat16
    assert coarse.predict(picture(50)).score != one.score
    assert coarse.save(tmp_path / "again.blemish").read_bytes() == path.read_bytes()


@pytest.mark.parametrize(
    ("bank_size", "expected"),
    [(0, [0, 3, 6, 9]), (50, list(range(11)))],
    ids=["some", "all, for the bank"],
)
def test_it_is_given_the_pictures_that_it_wants(
    bank_size: int, expected: list[int], picture: Part, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("blemish.methods.guided.SUMMARISED", 4)
    given: list[Tensor] = []
    summarise = Guided.summarise

    def watched(method: Guided, stream: Callable[[], Any], count: int, progress: Progress) -> None:
        given.extend(batch.images for batch in stream())
        assert count == sum(map(len, given))
        summarise(method, stream, count, progress)

    monkeypatch.setattr(Guided, "summarise", watched)
    options = {**FIT, "bank_size": bank_size, "min_steps": 1, "batch_size": 3}
    pixels = good(picture, 11)
    detector = blemish.fit("guided", pixels, calibration_fraction=0, **options)
    everything = [prepared(decode(each), detector.preprocessing) for each in pixels]
    assert taken(given, torch.stack(everything)) == expected


def test_it_learns_in_one_size_and_scores_in_another(
    picture: Part, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And turned pictures are in the bank, or they would be far from all that is known."""
    sides: set[int] = set()
    step = Guided.training_step

    def learning(method: Guided, batch: TrainingBatch, progress: float) -> Tensor:
        assert batch.images is not None
        sides.add(batch.images.shape[-1])
        return step(method, batch, progress)

    monkeypatch.setattr(Guided, "training_step", learning)
    options = {**FIT, "min_steps": 1, "zoom": 2.0, "rotations": 4, "head_weight": 0.0, "pooling": 1}
    detector = blemish.fit("guided", good(picture, 5), calibration_fraction=0, **options)
    assert sides == {SIDE}
    assert detector.method.config.image_size == (SIDE, SIDE)
    assert (detector.preprocessing.height, detector.preprocessing.width) == (2 * SIDE, 2 * SIDE)
    assert detector.method.bank.shape == (5 * 4 * 16, 64)
    turned = [np.rot90(picture(3), turns).copy() for turns in (0, 1)]
    upright, sideways = (detector.predict(each).score for each in turned)
    assert sideways == pytest.approx(upright, abs=0.05)


def test_trained_in_bf16_its_weights_are_float32(picture: Part, tmp_path: Path) -> None:
    options: dict[str, Any] = {**FIT, "precision": "bf16", "bank_size": 0, "score": "both"}
    detector = blemish.fit("guided", good(picture, 6), calibration_fraction=0, **options)
    assert detector.manifest["precision"] == "bf16"
    state = detector.method.fitted_state()
    learned = [tensor for name, tensor in state.items() if name.startswith(("backbone.", "head."))]
    assert {tensor.dtype for tensor in learned} == {torch.float32}
    assert any(not torch.equal(tensor, tensor.bfloat16().float()) for tensor in learned)
    fine = blemish.load(detector.save(tmp_path / "part.blemish"), device="cpu", precision="fp32")
    assert fine.predict(picture(50)).score == pytest.approx(
        detector.predict(picture(50)).score, abs=0.1
    )


def test_scores_are_finer_than_the_precision_that_they_are_computed_in() -> None:
    """Or many pictures would tie: bf16 knows 128 numbers between 1 and 2."""
    method = guided(map_head="attention")
    with torch.autocast("cpu", dtype=torch.bfloat16):
        seen = method.read(method.see(pictures(8)))
    exact = method.read(method.see(pictures(8)))
    for given, wanted in ((seen.logits, exact.logits), (seen.mask_logits, exact.mask_logits)):
        torch.testing.assert_close(
            given, wanted, rtol=0.1, atol=0.2
        )  # the attention itself is of bf16
        assert given.dtype == torch.float32
        assert not torch.equal(given, given.bfloat16().float())


def test_resumed_it_ends_with_the_same_bits(
    whole: blemish.Detector, picture: Part, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(stage: str, done: int, total: int) -> None:
        if stage.startswith("training") and done == 4:
            raise KeyboardInterrupt

    monkeypatch.setattr("blemish.training.loop.BETWEEN_CHECKPOINTS", 0.0)
    pixels, options = good(picture, 10), {**WITH_SCALES, "checkpoint": tmp_path / "x.training"}
    with pytest.raises(KeyboardInterrupt):
        blemish.fit("guided", pixels, progress=interrupt, **options)
    resumed = blemish.fit("guided", pixels, resume=True, **options)
    assert resumed.manifest["training"]["resumed_at"] == 4
    assert same_weights(resumed, whole)


# Settings


def test_the_poster_and_its_successor() -> None:
    published = {
        "epochs": 100,
        "min_steps": 0,
        "train_batch_size": 16,
        "learning_rate_start": 1e-5,
        "learning_rate": 5e-4,
        "warmup": 0.1,
        "weight_decay": 0.05,
        "layer_decay": 1.0,
        "cross_entropy_weight": 0.95,
        "dice_weight": 0.05,
        "bce_weight": 0.0,
        "trainable_blocks": None,
        "map_head": "attention",
        "score": "class",
        "guide_layers": (-1,),
        "simulators": ("guided",),
        "adaptation": "entropies",
        "adaptation_guard": False,  # ours, and found while looking at test pictures
        "adaptation_rate": 1e-3,
        "adaptation_steps": 1,
    }
    first = GuidedConfig.paper_bmvc()
    assert {name: getattr(first, name) for name in published} == published
    assert (first.backbone, first.height_width) == ("dino_vits16", (224, 224))
    assert (first.scales, first.ema, first.smoothing, first.bank_size) == ((), False, 0.0, 0)
    added: dict[str, Any] = {"blend_x_rays": True, "scales": (224, 320, 384, 416, 448, 512)}
    added |= {"map_stride": 1, "pretraining": "published", "pretraining_recipe": "paper"}
    assert GuidedConfig.paper_aaai() == replace(first, **added)


def test_without_the_guard_it_adapts_to_training_pictures_as_well() -> None:
    images = pictures(12)
    method = summarised(images, adaptation="entropies", adaptation_guard=False)
    result = method.adapter("online").score(images)
    assert (result.adapted, result.note) == (True, "")
    assert not torch.equal(result.scores.image, method.score(images).image)


def test_the_pre_training_that_belongs_to_the_settings() -> None:
    assert GuidedConfig().pretraining_config is None
    paper = replace(GuidedConfig.paper_aaai(), seed=3, backbone="focus_vits14", cache_gib=1.0)
    published = replace(APMaskConfig.paper(), seed=3, backbone="focus_vits14", cache_gib=1.0)
    assert paper.pretraining_config == published
    assert published.epochs == 300
    chosen: dict[str, Any] = {"masking": "random", "mask_ratio": 0.5}
    ours = GuidedConfig(pretraining="apmask", pretraining_epochs=7, image_size=(224, 448), **chosen)
    sizes = {"image_size": 317, "local_size": 136, "picture_size": 724}  # by √2: twice the area
    assert ours.pretraining_config == replace(APMaskConfig(), epochs=7, **chosen, **sizes)
    dino = GuidedConfig(pretraining="dino").pretraining_config
    assert dino == DINOConfig(masking="attention", epochs=300)
    kinds: dict[Any, type[SelfSupervisedConfig]] = {
        **{"msn": MSNConfig, "swav": SwAVConfig, "ibot": IBOTConfig}
    }
    for name, kind in kinds.items():  # masks are their own
        made = GuidedConfig(pretraining=name, pretraining_recipe="paper", masking="none")
        expected = replace(kind.paper(), backbone=made.backbone)
        assert made.pretraining_config == expected


def test_what_x_rays_change() -> None:
    best, poster, paper = GuidedConfig(), GuidedConfig.paper_bmvc(), GuidedConfig.paper_aaai()
    for config in (best, paper):
        assert config.for_pictures(x_rays=True).simulators == ("guided-poisson",)
        assert config.for_pictures(x_rays=False).simulators == config.simulators
    for x_rays in (True, False):
        assert poster.for_pictures(x_rays=x_rays).simulators == ("guided",)  # hard, everywhere
        chosen = replace(best, simulators=("nsa", "guided"))
        assert chosen.for_pictures(x_rays=x_rays).simulators == ("nsa", "guided")
        for asked in (
            "apmask",
            "dino",
            "ibot",
            "msn",
            "swav",
            "none",
        ):  # whoever asks for it by name gets it
            config = replace(paper, pretraining=asked)
            assert config.for_pictures(x_rays=x_rays).pretraining == asked
    assert paper.for_pictures(x_rays=True).pretraining_config is None
    assert paper.for_pictures(x_rays=False).pretraining == "apmask"


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"simulators": ()}, "simulators: at least 1"),
        ({"simulators": ("gided",)}, "did you mean 'guided'"),
        ({"dice_weight": math.inf}, "dice_weight: a finite number from 0"),
        ({"bce_weight": math.nan}, "bce_weight: a finite number from 0"),
        ({"head_weight": -0.5}, "head_weight: a finite number from 0"),
        (
            {"cross_entropy_weight": 0, "dice_weight": 0, "bce_weight": 0},
            "one of them must be above 0",
        ),
        (
            {"dice_weight": 0, "bce_weight": 0},
            "another than cross_entropy_weight where score is map",
        ),
        ({"map_stride": 0}, "map_stride: at least 1"),
        ({"trainable_blocks": -1}, "trainable_blocks: null or at least 0"),
        ({"bank_size": -1}, "bank_size: at least 0"),
        ({"pooling": 2}, "pooling: an odd number from 1"),
        ({"scales": (224, 0)}, "scales: at least 1"),
        ({"zoom": 0.2}, "zoom: a finite number from 0.25 up to 8"),
        ({"scales": (224,), "image_size": (224, 448)}, "choose a square image_size"),
        ({"adaptation_rate": 0.0}, "adaptation_rate: a positive finite number"),
        ({"mask_ratio": 1.0}, r"mask_ratio: a fraction in \[0, 1\)"),
        ({"guide_layers": (0,)}, "guide_layers: count from 1, or"),
    ],
)
def test_settings_out_of_range(settings: dict[str, Any], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        GuidedConfig(**settings)


@pytest.mark.parametrize("name", ["guide_layers", "layers"])
def test_layers_that_do_not_exist(name: str) -> None:
    with pytest.raises(ConfigError, match="does not exist: test_vit has layers 1 to 6"):
        guided(**{name: (2, 9)})


@pytest.mark.parametrize("name", ["test_resnet", "test_vit2"])
def test_a_backbone_without_a_cls_token_is_refused(name: str) -> None:
    backbone = build(name, weights="random")
    with pytest.raises(
        ConfigError, match=rf"needs a ViT with a \[CLS\] token, which {name} is not"
    ):
        Guided(GuidedConfig(**{**TINY, "layers": (1, 2)}), backbone)

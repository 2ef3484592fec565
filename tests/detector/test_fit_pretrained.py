"""`fit` and `blemish fit` of a method whose backbone is pre-trained first, on a ViT of toy size."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from parts import Part, Run

import blemish
from blemish.artifact import read
from blemish.backbones import build
from blemish.bench import plan as planning
from blemish.bench import run as benchmark
from blemish.cli import learn
from blemish.cli.status import ERROR, WELL
from blemish.detector import fit as fitting
from blemish.detector.predict import Detector
from blemish.errors import CollapseError, ConfigError, OutputError
from blemish.methods import selfsupervised
from blemish.methods.apmask import APMaskConfig
from blemish.methods.dino import DINOConfig
from blemish.methods.guided_config import GuidedConfig
from blemish.report import figures
from blemish.training import train
from blemish.training.budget import Budget
from blemish.types import Progress

SETTINGS: dict[str, Any] = {
    "backbone": "test_vit",
    "image_size": 32,
    "layers": (2, 4),
    "epochs": 1,
    "min_steps": 2,
    "train_batch_size": 4,
    "bank_size": 50,
    "zoom": 1.0,
    "pretraining": "apmask",
    "pretraining_epochs": 1,
}
TINY: dict[str, Any] = {**SETTINGS, "weights": "random", "device": "cpu", "precision": "fp32"}
SET = [
    f"--set={key}={','.join(map(str, it)) if isinstance(it, tuple) else it}"
    for key, it in SETTINGS.items()
]
OPTIONS = ("--weights", "random", "--device", "cpu", "--precision", "fp32", *SET)
SMALL = {
    "hidden": 16,
    "bottleneck": 8,
    "prototypes": 4,
    "local_views": 1,
    "train_batch_size": 4,
    "min_steps": 5,
}
STEPS = 5


def shrink(patch: pytest.MonkeyPatch) -> None:
    """A pre-training of a few steps, and no time spent on its figure."""
    whole = GuidedConfig.pretraining_config.fget
    assert whole is not None

    def small(config: GuidedConfig) -> APMaskConfig | None:
        made = whole(config)
        return None if made is None else replace(made, **SMALL)

    patch.setattr(GuidedConfig, "pretraining_config", property(small))
    patch.setattr(figures, "health", lambda *_: b"drawn")


@pytest.fixture(autouse=True)
def _small(monkeypatch: pytest.MonkeyPatch) -> None:
    shrink(monkeypatch)


@pytest.fixture
def _every_step_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("blemish.training.loop.BETWEEN_CHECKPOINTS", 0.0)


@pytest.fixture
def folder(tmp_path: Path, picture: Part, write: Callable[[Path, np.ndarray], Path]) -> Path:
    for seed in range(6):
        write(tmp_path / "good" / f"{seed}.png", picture(seed))
    return tmp_path / "good"


def parts(picture: Part) -> list[np.ndarray]:
    return [picture(seed) for seed in range(10)]


def fit(good: list[Any], **options: Any) -> Detector:
    return blemish.fit("guided", good, **{**TINY, **options})


def same(one: Detector, other: Detector) -> bool:
    first, second = one.method.fitted_state(), other.method.fitted_state()
    return first.keys() == second.keys() and all(
        torch.equal(tensor, second[name]) for name, tensor in first.items()
    )


def interrupt_after(step: int, stage: str) -> Progress:
    """Ctrl-C once that many steps are made of the stage."""

    def told(what: str, done: int, total: int) -> None:
        if what.startswith(stage) and done == step:
            raise KeyboardInterrupt

    return told


@pytest.fixture(scope="module")
def whole(picture: Part) -> Iterator[Detector]:
    with pytest.MonkeyPatch.context() as patch:
        shrink(patch)
        yield fit(parts(picture))


def test_it_is_as_if_the_encoder_had_been_made_before(
    whole: Detector, picture: Part, tmp_path: Path
) -> None:
    """And of the same pictures only: those held out for the threshold are not among them."""
    good = parts(picture)
    kept, held = fitting.hold_out_positions(fitting.good_pictures(good), 0.2, 0)
    assert (len(kept), len(held)) == (8, 2)
    config = GuidedConfig(**{**SETTINGS, "image_size": (32,)}).pretraining_config
    assert config is not None
    encoder = blemish.pretrain(
        [good[index] for index in kept],
        config=config,
        weights="random",
        device="cpu",
        precision="fp32",
    )
    detector = fit(good, pretraining="none", weights=encoder.save(tmp_path / "encoder.safetensors"))
    assert same(detector, whole)
    assert detector.predict(good[held[0]]).score == whole.predict(good[held[0]]).score

    told = whole.manifest["pretraining"]
    assert (told["method"], told["config"]["epochs"], told["training"]["steps"]) == (
        "apmask",
        1,
        STEPS,
    )
    assert told["weights"] == build("test_vit", weights="random").info.to_dict()
    assert told["training"]["findings"] == encoder.manifest["training"]["findings"]
    weights = whole.manifest["backbone"]["weights"]
    assert (weights["source"], weights["sha256"]) == (
        "pretrained:apmask on random",
        encoder.backbone.info.sha256,
    )
    assert whole.manifest["training"]["steps"] == 2
    assert "pretraining" not in detector.manifest


def test_a_setting_reaches_the_pre_training(picture: Part, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[DINOConfig] = []

    def noted(_backbone: Any, _stream: Any, config: DINOConfig, **_: Any) -> Any:
        asked.append(config)
        raise KeyboardInterrupt

    monkeypatch.setattr(fitting, "pretrained", noted)
    with pytest.raises(KeyboardInterrupt):
        fit(
            parts(picture),
            pretraining="dino",
            masking="block",
            mask_ratio=0.5,
            pretraining_epochs=9,
            seed=4,
        )
    (config,) = asked
    assert isinstance(config, DINOConfig)
    assert (config.masking, config.mask_ratio, config.epochs) == ("block", 0.5, 9)
    assert (config.seed, config.backbone, config.image_size) == (4, "test_vit", 32)
    with pytest.raises(ConfigError, match="layer 9 does not exist"):  # said before the work
        fit(parts(picture), guide_layers=(9,))
    assert len(asked) == 1


@pytest.mark.usefixtures("_every_step_is_kept")
def test_it_is_resumed_in_either_stage(whole: Detector, picture: Part, tmp_path: Path) -> None:
    place = tmp_path / "x.training"
    first = tmp_path / "x.training.pretraining"
    assert fitting.checkpoints(place) == (place, first)
    good, options = parts(picture), {"checkpoint": place, "log": tmp_path / "x.log.jsonl"}
    with pytest.raises(KeyboardInterrupt):
        fit(good, progress=interrupt_after(3, "encoder: training"), **options)
    assert [path.name for path in sorted(tmp_path.glob("*.training*"))] == [first.name]
    with pytest.raises(OutputError, match=r"x\.training\.pretraining: .*--resume goes on"):
        fit(good, **options)
    with pytest.raises(ConfigError, match=r"another training, it differs in config\.mask_ratio"):
        fit(good, resume=True, mask_ratio=0.5, **options)
    with pytest.raises(KeyboardInterrupt):
        fit(good, resume=True, progress=interrupt_after(1, "training"), **options)
    assert place.exists()
    resumed = fit(good, resume=True, **options)
    assert (
        resumed.manifest["pretraining"]["training"]["resumed_at"] == STEPS
    )  # it had ended: no step is taken again
    assert resumed.manifest["training"]["resumed_at"] == 1
    assert same(resumed, whole)
    findings = whole.manifest["pretraining"]["training"]["findings"]
    assert resumed.manifest["pretraining"]["training"]["findings"] == findings
    assert place.exists()  # until the caller has saved the detector
    assert first.exists()
    rows = [json.loads(line) for line in (tmp_path / "x.log.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows if "loss" in row] == [1, 2, 3, 4, 5]


def test_what_lies_in_the_way_of_the_second_stage_is_said_before_the_first(
    picture: Part, tmp_path: Path
) -> None:
    (tmp_path / "x.training").touch()
    with pytest.raises(OutputError, match=r"x\.training: an interrupted training lies there"):
        fit(
            parts(picture),
            checkpoint=tmp_path / "x.training",
            progress=interrupt_after(0, "encoder: training"),
        )


def test_each_stage_gets_half_of_the_time(picture: Part, monkeypatch: pytest.MonkeyPatch) -> None:
    budgets: list[Budget] = []

    def noted(*arguments: Any, budget: Budget, **options: Any) -> Any:
        budgets.append(budget)
        return train(*arguments, **options)

    for module in ("detector.fit", "detector.pretrain"):
        monkeypatch.setattr(f"blemish.{module}.train", noted)
    fit(parts(picture)[:4], time_budget=3.0)
    fit(parts(picture)[:4], compute_budget=4.0)
    assert budgets == [Budget(minutes=1.5)] * 2 + [Budget(teraflops=2)] * 2


@pytest.mark.usefixtures("_every_step_is_kept")
def test_on_the_command_line(
    run: Run,
    folder: Path,
    tmp_path: Path,
    interrupted_pretraining: Callable[[], AbstractContextManager[None]],
) -> None:
    output, checkpoint = tmp_path / "part.blemish", tmp_path / "part.blemish.training"
    first = tmp_path / "part.blemish.training.pretraining"
    command = ("fit", "guided", folder, "-o", output, *OPTIONS)
    with interrupted_pretraining():
        status, _, err = run(*command)
    assert status == 130
    assert "the same command with --resume goes on" in err
    assert first.exists()
    assert not checkpoint.exists()
    status, out, _ = run("inspect", first)
    assert status == WELL
    for said in ("of apmask, 3 of 5 steps made", "prototypes=4", "goes on from here with --resume"):
        assert said in out
    status, out, _ = run(*command, "--resume", "--json")
    assert status == WELL
    made = json.loads(out)
    assert made["pretraining"]["training"]["resumed_at"] == 3
    assert made["pretraining"] == read(output)[1]["pretraining"]
    beside = {"log": tmp_path / "part.log.jsonl", "figure": tmp_path / "part.health.png"}
    assert {name: made[name] for name in beside} == {
        name: str(path) for name, path in beside.items()
    }
    assert sorted(path for path in tmp_path.iterdir() if path.is_file()) == sorted(
        [output, *beside.values()]
    )
    status, out, _ = run("inspect", output)
    assert status == WELL
    for said in ("guided, recipe", "apmask on random", "pretrained:apmask on random"):
        assert said in out
    status, _, err = run(
        "fit", "knn", folder, "-o", tmp_path / "y", "--backbone", "test_vit", "--weights", output
    )
    assert status == ERROR  # a detector, not an encoder
    assert "is a fitted detector (guided), not an encoder" in err


def test_what_is_said_of_it(whole: Detector) -> None:
    said = "\n".join(learn.fit_lines(whole.manifest))
    assert "Pre-trained: 5 steps" in said
    assert f"\nTrained: {whole.manifest['training']['steps']} steps, " in said
    assert "projection spread" in said
    plain = {key: value for key, value in whole.manifest.items() if key != "pretraining"}
    assert "Pre-trained" not in "\n".join(learn.fit_lines(plain))


def test_a_collapse_on_the_command_line(
    run: Run, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(selfsupervised, "SETTLED", 2)
    monkeypatch.setattr(selfsupervised, "LEAST_USAGE", 100.0)
    command = ("fit", "guided", folder, "-o", tmp_path / "part.blemish", *OPTIONS)
    status, out, err = run(*command)
    assert (status, out) == (ERROR, "")
    assert "collapsed at step 2" in err
    assert f"how it came about: {tmp_path / 'part.health.png'}" in err
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "good",
        "part.health.png",
        "part.log.jsonl",
    ]
    monkeypatch.setenv("RANK", "1")
    assert run(*command) == (WELL, "", "")  # the first process tells
    with pytest.raises(CollapseError):
        fit([folder])


def test_a_row_of_the_benchmark(mvtec: Path) -> None:
    one = planning.Run(
        method="guided", data="part", path=mvtec, settings=SETTINGS, weights="random"
    )
    row = benchmark.measure(one, device="cpu", precision="fp32")
    assert row["weights"]["source"] == "random"  # so that seeds stand in one line of a table
    assert row["pretraining"]["training"]["steps"] == 6
    assert row["schedule"].startswith("pre-training: 1 epochs, 6 steps in ")
    assert "; 1 epochs, 6 steps in " in row["schedule"]

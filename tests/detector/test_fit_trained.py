"""`fit` and `blemish fit` of a method that is trained by gradient: a toy, so that only the way
there is tested.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from parts import Part
from torch import Tensor, nn

import blemish
from blemish import cli
from blemish.artifact import read
from blemish.backbones import Backbone, Features
from blemish.cli.status import ERROR
from blemish.errors import CalibrationError, ConfigError, OutputError
from blemish.methods import METHODS
from blemish.methods.embedding import join
from blemish.methods.learner import TrainingBatch
from blemish.methods.trained import TrainedConfig, TrainedMethod
from blemish.types import Progress, Scores

FIT = (
    "--backbone",
    "test_vit",
    "--weights",
    "random",
    "--image-size",
    "64",
    "--layers",
    "2,4",
    "--precision",
    "fp32",
)
QUICK = {"epochs": 2, "train_batch_size": 4, "learning_rate": 0.1}


class Toy(TrainedMethod):
    """Learns the mean of all patch features; the anomaly is the distance from it."""

    name = "toy"
    summary = "distance from a learned mean"
    source = "this test"
    Config = TrainedConfig
    interrupted_at: int | None = None

    def __init__(self, config: TrainedConfig, backbone: Backbone) -> None:
        super().__init__(config, backbone)
        self.config: TrainedConfig = config
        backbone.requires_grad_(False)
        self.mean = nn.Parameter(torch.zeros(64))

    def encode(self, images: Tensor) -> dict[str, Tensor]:
        return {"patches": join(self.see(images), self.backbone.spec.kind)[0]}

    def start_training(self, sample: TrainingBatch) -> None:
        pass

    def optimizer(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW([self.mean], lr=self.config.learning_rate)

    def training_step(self, batch: TrainingBatch, progress: float) -> Tensor:
        assert not torch.is_inference_mode_enabled()
        return (batch.features["patches"] - self.mean).square().mean()

    def after_step(self, step: int, steps: int) -> None:
        if step == type(self).interrupted_at:
            raise KeyboardInterrupt

    def end_training(self, steps: int) -> None:
        pass

    def judge(self, features: Features, images: Tensor) -> Scores:
        patches, grid = join(features, self.backbone.spec.kind)
        raw = (patches - self.mean).square().mean(-1).reshape(len(images), *grid)
        return self._finish(raw, images)


@pytest.fixture(autouse=True)
def toy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(METHODS, "toy", Toy)
    monkeypatch.setattr(Toy, "interrupted_at", None)


def parts(picture: Part, count: int, first: int = 0) -> list[np.ndarray]:
    return [picture(first + index) for index in range(count)]


def test_it_is_trained_saved_and_loaded(picture: Part, small: Any, tmp_path: Path) -> None:
    detector = blemish.fit("toy", parts(picture, 25), **QUICK, **small)
    data, training = detector.manifest["data"], detector.manifest["training"]
    assert (len(data["fitted"]), len(data["calibrated"])) == (
        20,
        5,
    )  # split conformal, as nothing can be left out
    assert detector.threshold is not None
    assert (detector.threshold.method, detector.threshold.n) == ("split conformal", 5)
    assert training["steps"] == 2 * 20 / 4
    assert torch.count_nonzero(detector.method.mean) > 0  # type: ignore[arg-type]
    loaded = blemish.load(detector.save(tmp_path / "x.blemish"), device="cpu", precision="fp32")
    assert loaded.manifest["training"] == training
    for seed in range(90, 93):
        assert loaded.predict(picture(seed)).score == detector.predict(picture(seed)).score
    assert "training" not in blemish.fit("knn", parts(picture, 3), **small).manifest


def test_the_seed_of_fit_is_that_of_the_training(picture: Part, small: Any) -> None:
    def means(seed: int) -> Tensor:
        detector = blemish.fit(
            "toy", parts(picture, 9), seed=seed, calibration_fraction=0, **QUICK, **small
        )
        return detector.method.mean.detach()  # type: ignore[union-attr,operator,return-value]

    assert torch.equal(means(1), means(1))
    assert not torch.equal(means(1), means(2))


def test_a_rate_out_of_reach_is_said_before_the_training(
    picture: Part, small: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Toy, "interrupted_at", 1)
    with pytest.raises(CalibrationError, match="there are 5"):
        blemish.fit("toy", parts(picture, 25), false_alarm_rate=0.05, **QUICK, **small)
    with pytest.raises(CalibrationError, match="there are 0"):
        blemish.fit("toy", parts(picture, 25), false_alarm_rate=0.05, shots=4, **QUICK, **small)


def test_shots_hold_nothing_out_unless_asked(picture: Part, small: Any) -> None:
    for fraction, fitted, held in [(None, 4, 0), (0.25, 3, 1)]:
        data = blemish.fit(
            "toy", parts(picture, 9), shots=4, calibration_fraction=fraction, **QUICK, **small
        ).manifest
        assert (len(data["data"]["fitted"]), len(data["data"]["calibrated"])) == (fitted, held)
        assert data["training"]["steps"] == 2 * fitted * 32 / 4
    one = blemish.fit("toy", parts(picture, 1), shots=1, **QUICK, **small)
    assert one.threshold is not None
    assert (one.threshold.value, one.threshold.n) == (None, 0)
    assert one.map_scale != (0.0, 1.0)
    assert np.isfinite(one.predict(picture(5)).score)


def test_the_time_budget_reaches_the_training(picture: Part, small: Any) -> None:
    forever = {**QUICK, "epochs": 10_000_000}
    detector = blemish.fit(
        "toy", parts(picture, 5), time_budget=0.005, calibration_fraction=0, **forever, **small
    )
    assert 0 < detector.manifest["training"]["steps"] < 100_000
    assert detector.manifest["seconds"] < 10


@pytest.mark.parametrize("method", ["atacnet", "dra", "ahl", "draem"])
def test_a_time_budget_where_nothing_is_frozen(method: str, picture: Part, small: Any) -> None:
    """There is nothing to encode first, whose time could be told."""
    made = blemish.fit(method, parts(picture, 5), time_budget=0.005, **small).manifest
    assert made["training"]["steps"] > 0


@pytest.mark.parametrize(
    ("method", "options", "says"),
    [
        ("knn", {"time_budget": 1}, "time_budget: knn is not trained"),
        ("knn", {"checkpoint": "x", "resume": True}, "checkpoint and resume: knn is not trained"),
        ("toy", {"time_budget": 0}, "positive number of minutes"),
        ("toy", {"time_budget": float("nan")}, "positive number of minutes"),
        ("toy", {"resume": True}, "name the checkpoint"),
    ],
)
def test_options_of_training_that_make_no_sense(
    method: str, options: dict[str, Any], says: str, picture: Part, small: Any
) -> None:
    with pytest.raises(ConfigError, match=says):
        blemish.fit(method, parts(picture, 3), **options, **small)


def interrupt_after(step: int) -> Progress:
    """Ctrl-C once that many steps are made."""

    def told(stage: str, done: int, total: int) -> None:
        if stage.startswith("training") and done == step:
            raise KeyboardInterrupt

    return told


def test_an_interrupted_training_is_resumed_to_the_same_weights(
    picture: Part, small: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("blemish.training.loop.BETWEEN_CHECKPOINTS", 0.0)
    options: dict[str, Any] = {**QUICK, **small, "calibration_fraction": 0}
    whole = blemish.fit("toy", parts(picture, 9), **options)
    place = tmp_path / "x.training"
    with pytest.raises(KeyboardInterrupt):
        blemish.fit(
            "toy", parts(picture, 9), checkpoint=place, progress=interrupt_after(3), **options
        )
    with pytest.raises(OutputError, match="--resume goes on"):
        blemish.fit("toy", parts(picture, 9), checkpoint=place, **options)
    for change in (
        {"learning_rate": 0.2},
        {"seed": 3},
        {"smoothing": 0.1},
        {"window": (0.0, 100.0)},
    ):
        with pytest.raises(ConfigError, match="another training"):
            blemish.fit(
                "toy", parts(picture, 9), checkpoint=place, resume=True, **{**options, **change}
            )
    resumed = blemish.fit("toy", parts(picture, 9), checkpoint=place, resume=True, **options)
    assert resumed.manifest["training"]["resumed_at"] == 3
    assert torch.equal(resumed.method.mean, whole.method.mean)  # type: ignore[arg-type]
    assert resumed.manifest["data"] == whole.manifest["data"]
    assert place.exists()  # until the caller has saved the detector


def test_on_the_command_line(
    good_folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr("blemish.training.loop.BETWEEN_CHECKPOINTS", 0.0)
    artifact, checkpoint = tmp_path / "part.blemish", tmp_path / "part.blemish.training"
    quick = [f"--set={key}={value}" for key, value in QUICK.items()]
    command = ["fit", "toy", str(good_folder), "-o", str(artifact), *FIT, *quick]
    monkeypatch.setattr(Toy, "interrupted_at", 4)
    assert cli.main(command) == 130
    assert "the same command with --resume goes on" in capsys.readouterr().err
    assert checkpoint.exists()
    assert not artifact.exists()
    monkeypatch.setattr(Toy, "interrupted_at", None)
    assert cli.main(command) == ERROR
    assert "--resume goes on" in capsys.readouterr().err
    assert cli.main([*command, "--resume", "--json"]) == 0
    made = json.loads(capsys.readouterr().out)
    assert made["training"]["resumed_at"] == 3
    assert made["training"] == read(artifact)[1]["training"]
    assert not checkpoint.exists()
    assert cli.main(["inspect", str(artifact)]) == 0
    assert "resumed_at=3" in capsys.readouterr().out
    assert cli.main([*command, "--time-budget", "0"]) == ERROR
    assert "--time-budget 0: a positive finite number" in capsys.readouterr().err


def test_only_the_first_process_writes_and_speaks(
    good_folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("RANK", "1")
    assert cli.main(["fit", "knn", str(good_folder), "-o", str(tmp_path / "x"), *FIT]) == 0
    assert list(tmp_path.glob("x*")) == []
    assert capsys.readouterr() == ("", "")


def test_an_interruption_before_any_checkpoint_promises_nothing(
    good_folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(Toy, "interrupted_at", 1)
    quick = [f"--set={key}={value}" for key, value in QUICK.items()]
    assert (
        cli.main(["fit", "toy", str(good_folder), "-o", str(tmp_path / "x"), *FIT, *quick]) == 130
    )
    assert "--resume" not in capsys.readouterr().err
    assert list(tmp_path.glob("x*")) == []

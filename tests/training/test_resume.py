"""Interrupted trainings: resumed to the same weights; and the checkpoints that must be refused."""

from __future__ import annotations

import itertools
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from test_loop import same
from toy import Toy, ToyConfig, Watched, learned, pictures, run, stream_of

import blemish
from blemish import artifact, interrupts
from blemish.config import to_dict
from blemish.errors import ArtifactError, BlemishError, ConfigError, OutputError
from blemish.methods.learner import TrainingBatch
from blemish.training import checkpoint, loop, train
from blemish.training.budget import Budget


def step_of(path: Path) -> int:
    return int(artifact.read(path)[1]["checkpoint"]["step"]) if path.exists() else 0


def stopped(at: int, config: ToyConfig, path: Path, *numbers: int, **options: Any) -> Watched:
    """A toy that signals interrupt in the middle of step number `at`; its checkpoint is kept."""

    def signals() -> None:
        for number in numbers or (signal.SIGINT,):
            signal.raise_signal(number)

    toy = Watched(config, at, signals)
    how = {"identity": to_dict(config), "checkpoint": path, **options}
    with pytest.raises(KeyboardInterrupt) as told:
        train(toy, stream_of(pictures(10)), seed=7, **how)
    assert interrupts.number_of(told.value) == (numbers or (signal.SIGINT,))[0]
    return toy


@pytest.fixture
def interrupted(tmp_path: Path) -> Path:
    """A checkpoint after the third of five steps."""
    path = tmp_path / "toy.checkpoint"
    stopped(3, ToyConfig(), path)
    assert step_of(path) == 3
    assert list(tmp_path.iterdir()) == [path]
    return path


@pytest.mark.parametrize(
    "config", [ToyConfig(), ToyConfig(rule="sgd", noise=0.0), ToyConfig(looks=True, cache_gib=0)]
)
@pytest.mark.parametrize("at", [1, 4, 5])
def test_ctrl_c_saves_and_resuming_ends_with_the_same_weights(
    tmp_path: Path, config: ToyConfig, at: int
) -> None:
    path = tmp_path / "toy.checkpoint"
    toy = stopped(at, config, path)
    assert step_of(path) == len(toy.seen) == at  # the step was finished first
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    again, done = run(config, checkpoint=path, resume=True)
    whole, plain = run(config)
    assert same(again, whole)
    assert (done.resumed_at, done.steps, done.loss, done.curve) == (at, 5, plain.loss, plain.curve)
    assert path.exists()  # the caller removes it once the result is safe


def test_the_end_is_kept_too_and_resuming_takes_no_step(tmp_path: Path) -> None:
    path = tmp_path / "toy.checkpoint"
    whole, plain = run(ToyConfig(), checkpoint=path)
    assert step_of(path) == plain.steps
    again, done = run(ToyConfig(), checkpoint=path, resume=True)
    assert same(again, whole)
    assert (done.resumed_at, done.loss, done.pictures_per_second) == (plain.steps, plain.loss, 0.0)
    assert (done.findings, done.curve) == (plain.findings, plain.curve)


def test_a_checkpoint_of_an_earlier_version_has_no_curve(interrupted: Path) -> None:
    tensors, manifest = artifact.read(interrupted)
    del manifest["checkpoint"]["curve"]
    interrupted.unlink()
    artifact.write(interrupted, tensors, {"checkpoint": manifest["checkpoint"]})
    result, done = run(ToyConfig(), checkpoint=interrupted, resume=True)
    whole, plain = run(ToyConfig())
    assert same(result, whole)
    assert done.curve == plain.curve[3:]  # of the steps that are known


def test_two_signals_at_once_are_one_and_later_ones_do_not_wait(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, twice = tmp_path / "toy.checkpoint", (signal.SIGINT, signal.SIGINT)
    stopped(2, ToyConfig(), path, *twice)  # a terminal and torchrun both send theirs
    assert step_of(path) == 2
    path.unlink()
    monkeypatch.setattr(interrupts, "_SAME", 0.0)
    stopped(2, ToyConfig(), path, *twice)
    assert not path.exists()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_signal_is_as_ctrl_c_where_it_is_heard(tmp_path: Path, number: signal.Signals) -> None:
    path = tmp_path / "toy.checkpoint"
    before = signal.signal(number, signal.SIG_DFL)  # started by nohup, a process ignores SIGHUP
    try:
        with interrupts.heard():
            stopped(3, ToyConfig(), path, number)
        assert step_of(path) == 3
        assert signal.getsignal(number) is signal.SIG_DFL
    finally:
        signal.signal(number, before)


def test_signals_while_the_checkpoint_is_written_do_not_lose_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(interrupts, "_SAME", 0.0)
    write = artifact.write

    def hurried(place: Path, *parts: Any) -> Path:
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGINT):
            signal.raise_signal(number)
        return write(place, *parts)

    monkeypatch.setattr(artifact, "write", hurried)
    path = tmp_path / "toy.checkpoint"
    with interrupts.heard():
        stopped(2, ToyConfig(), path, signal.SIGTERM)  # the first
    assert step_of(path) == 2


def test_saved_now_and_then(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, steps = tmp_path / "toy.checkpoint", []

    def note(stage: str, done: int, _total: int) -> None:
        if stage.startswith("training"):
            now[0] += 25.0
            steps.append((done, step_of(path)))

    now = [0.0]
    monkeypatch.setattr("blemish.training.loop.time.monotonic", lambda: now[0])
    run(ToyConfig(epochs=1, min_steps=7), checkpoint=path, progress=note)
    # Once a minute, and at the end.
    assert steps == [(0, 0), (1, 0), (2, 0), (3, 3), (4, 3), (5, 3), (6, 6), (7, 7)]


def test_it_holds_no_frozen_backbone_but_one_that_is_learned(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loop, "BETWEEN_CHECKPOINTS", 0.0)
    for frozen in (True, False):
        path = tmp_path / f"{frozen}.checkpoint"
        toy = Toy(ToyConfig())
        toy.backbone.requires_grad_(not frozen)
        train(toy, stream_of(pictures(4)), seed=7, identity={}, checkpoint=path)
        names = artifact.read(path)[0].keys()
        assert {"method.learned.weight", "method.teacher.bias"} <= names
        assert {"optimizer.0.exp_avg", "optimizer.1.step"} <= names
        assert any(name.startswith("method.backbone.") for name in names) != frozen


def test_nothing_to_resume_is_a_start(tmp_path: Path) -> None:
    result, done = run(ToyConfig(), checkpoint=tmp_path / "none", resume=True)
    assert done.resumed_at == 0
    assert same(result, run(ToyConfig())[0])
    with pytest.raises(ConfigError, match="the path of a checkpoint is needed"):
        run(ToyConfig(), resume=True)


def test_a_checkpoint_is_not_written_over(interrupted: Path) -> None:
    content = interrupted.read_bytes()
    words = "an interrupted training lies there; --resume goes on with it"
    with pytest.raises(OutputError, match=words):
        run(ToyConfig(), checkpoint=interrupted)
    assert interrupted.read_bytes() == content


BRIEF = Budget(minutes=0.0015)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"config": ToyConfig(noise=0.25)}, r"differs in noise \(0\.1 there, 0\.25 now\);"),
        ({"seed": 8}, r"differs in seed \(7 there, 8 now\)"),
        ({"budget": Budget(minutes=3)}, r"differs in time budget \(null there, 3 now\)"),
        ({"budget": Budget(teraflops=3)}, r"differs in compute budget \(null there, 3 now\)"),
        ({"identity": {}}, r"differs in backbone \(\"test_vit\" there, null now\), cache_gib"),
        ({"count": 9}, "was made with other training pictures"),
    ],
)
def test_a_checkpoint_of_another_training(
    interrupted: Path, change: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        run(**{"config": ToyConfig(), "checkpoint": interrupted, "resume": True, **change})


def test_differences_are_named_within_parts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loop, "BETWEEN_CHECKPOINTS", 0.0)
    path = tmp_path / "toy.checkpoint"
    there = {"config": {"width": (1, 2), "name": "x" * 99}, "precision": "fp32"}
    run(ToyConfig(), identity=there, checkpoint=path)
    # A tuple comes back as a list: the same.
    run(ToyConfig(), identity=there, checkpoint=path, resume=True)
    now = {"config": {"width": (1, 3), "name": "y"}, "precision": "fp32"}
    words = r"config\.name, config\.width \(\[1, 2\] there, \[1, 3\] now\); train"
    with pytest.raises(ConfigError, match=words):
        run(ToyConfig(), identity=now, checkpoint=path, resume=True)


@pytest.mark.parametrize(
    "damage", ["cut", "flipped", "empty", "foreign", "unfit", "NaN", "half a state", "other steps"]
)
def test_damaged_checkpoints(interrupted: Path, damage: str) -> None:
    content = bytearray(interrupted.read_bytes())
    if damage == "cut":
        interrupted.write_bytes(content[:-100])
    elif damage == "flipped":
        content[-1000] ^= 1
        interrupted.write_bytes(content)
    elif damage == "empty":
        interrupted.write_bytes(b"")
    elif damage == "foreign":
        interrupted.write_bytes(b"PK\x03\x04" + b"0" * 200)
    else:
        tensors, manifest = artifact.read(interrupted)
        if damage == "unfit":
            del tensors["method.learned.bias"]
        elif damage == "NaN":
            tensors["method.learned.bias"] = tensors["method.learned.bias"] * torch.nan
        elif damage == "half a state":
            del tensors["optimizer.0.exp_avg"]
        else:
            manifest["checkpoint"]["step"] = 6  # of 5
        artifact.write(interrupted, tensors, {"checkpoint": manifest["checkpoint"]})
    words = r"toy\.checkpoint: .*; remove it to start anew"
    with pytest.raises(ArtifactError, match=words) as caught:
        run(ToyConfig(), checkpoint=interrupted, resume=True)
    assert str(caught.value).count("toy.checkpoint") == 1


def test_a_detector_is_no_checkpoint(tmp_path: Path, fitted: Callable[..., Any]) -> None:
    path = fitted().save(tmp_path / "part.blemish")
    with pytest.raises(ConfigError, match="is a detector, not the checkpoint of a training"):
        run(ToyConfig(), checkpoint=path, resume=True)


def test_a_checkpoint_is_no_detector(interrupted: Path) -> None:
    with pytest.raises(ArtifactError, match="is an interrupted training, no detector yet"):
        blemish.load(interrupted)


def test_a_resumed_training_keeps_the_steps_of_its_time_budget(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ticks = itertools.count()  # a millisecond each: the number of steps depends on no machine
    clock = "blemish.training.loop.time.perf_counter"
    monkeypatch.setattr(clock, lambda: next(ticks) / 1000)
    path = tmp_path / "toy.checkpoint"
    stopped(25, ToyConfig(), path, identity={}, budget=BRIEF)  # at most 20 are tried
    header = artifact.read(path)[1]["checkpoint"]
    assert 20 < header["step"] < header["steps"] < 100
    again, done = run(ToyConfig(), identity={}, budget=BRIEF, checkpoint=path, resume=True)
    assert (done.resumed_at, done.steps) == (header["step"], header["steps"])
    assert same(again, run(ToyConfig(epochs=1, min_steps=done.steps))[0])


def test_a_place_that_cannot_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loop, "BETWEEN_CHECKPOINTS", 0.0)
    (tmp_path / "file").touch()
    with pytest.raises(BlemishError, match="cannot be written"):
        run(ToyConfig(), checkpoint=tmp_path / "file" / "toy.checkpoint")


def test_the_state_of_any_optimiser_comes_back(tmp_path: Path) -> None:
    class Counting(torch.optim.SGD):
        """Has a number among its state."""

        def step(self, closure: Any = None) -> Any:  # type: ignore[override]
            for group in self.param_groups:
                for parameter in group["params"]:
                    self.state[parameter]["count"] = self.state[parameter].get("count", 0) + 1
            return super().step(closure)

    toy = Toy(ToyConfig())
    toy.start_training(TrainingBatch(None, {"brightness": torch.zeros(1)}))
    optimizer = Counting(toy.learned.parameters(), lr=0.1, momentum=0.9)
    toy.learned(torch.ones(1, 64)).sum().backward()
    optimizer.step()
    path = tmp_path / "x"
    told = {"step": 1, "steps": 2, "loss": 0.5, "seconds": 1.0, "identity": {"a": 1}}
    manifest = checkpoint.CheckpointManifest(**told, pictures="p", scalars={})
    checkpoint.save(path, toy, optimizer, manifest)
    before, momentum = learned(toy), optimizer.state[toy.learned.weight]["momentum_buffer"].clone()
    optimizer.step()
    found = checkpoint.find(path, {"a": 1}, resume=True)
    assert found is not None
    assert {name: getattr(found, name) for name in told} == told
    assert found.pictures == "p"
    fresh = Counting(toy.learned.parameters(), lr=0.1, momentum=0.9)
    found.restore(toy, fresh)
    assert same(learned(toy), before)
    assert fresh.state[toy.learned.weight]["count"] == 1
    assert torch.equal(fresh.state[toy.learned.weight]["momentum_buffer"], momentum)

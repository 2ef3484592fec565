"""Trainings in processes of their own: one that is killed, and two that train together."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import socket
import time
from collections.abc import Callable
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file as read_tensors
from test_loop import same
from test_resume import step_of
from torch import Tensor
from toy import (
    Toy,
    ToyConfig,
    fit_apart,
    fit_defects_apart,
    learned,
    pictures,
    run,
    stream_of,
    train_apart,
)

from blemish import artifact
from blemish.errors import ConfigError
from blemish.images import decode
from blemish.losses.clustering import sinkhorn
from blemish.training import distributed, train
from blemish.training.budget import Budget

# Importing torch takes longer than all that is tested here: done once, in a process that the others
# are forked from.
PROCESSES = multiprocessing.get_context("forkserver")
PROCESSES.set_forkserver_preload(["blemish.detector.fit"])


def start(
    result: Path,
    config: Any,
    *,
    environment: dict[str, str] | None = None,
    pause: float = 0.0,
    target: Callable[..., None] = train_apart,
    **options: Any,
) -> ForkServerProcess:
    told = (result, config, environment or {}, pause, options)
    process = PROCESSES.Process(target=target, args=told)
    process.start()
    return process


def together(
    results: list[Path], config: Any, *, interrupt_at: int | None = None, **options: Any
) -> list[int | None]:
    """The exit statuses of processes that train together, as torchrun would start (and interrupt)
    them.
    """
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        port = one.getsockname()[1]
    common = {"WORLD_SIZE": str(len(results)), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    started = []
    for rank, result in enumerate(results):
        own = {**common, "RANK": str(rank), "LOCAL_RANK": str(rank)}
        started.append(start(result, config, environment=own, **options))
    if interrupt_at is not None:
        while step_of(options["checkpoint"]) < interrupt_at:
            time.sleep(0.001)
        for process in reversed(started):
            os.kill(process.pid or 0, signal.SIGINT)
    for process in started:
        process.join(600)  # a busy machine takes minutes to start them
    return [process.exitcode for process in started]


def read(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    with safe_open(path, framework="pt") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        return tensors, json.loads(file.metadata()["told"])


def test_killed_at_several_moments(tmp_path: Path) -> None:
    path, result = tmp_path / "toy.checkpoint", tmp_path / "result"
    config = ToyConfig(epochs=1, min_steps=60)
    for moment in (1, 20, 40):
        process = start(result, config, pause=0.02, checkpoint=path, resume=True)
        while step_of(path) < moment:
            assert process.is_alive()
            time.sleep(0.001)
        process.kill()
        process.join()
        assert process.exitcode == -signal.SIGKILL
        assert moment <= step_of(path) < 60
    killed_at = step_of(path)
    process = start(result, config, checkpoint=path, resume=True)
    process.join()
    assert process.exitcode == 0
    tensors, told = read(result)
    whole, plain = run(config)
    assert same(tensors, whole)
    assert told["training"]["resumed_at"] == killed_at
    assert told["training"]["loss"] == plain.loss
    assert told["training"]["epochs"] == plain.epochs == 24


def test_two_processes_end_where_one_does(tmp_path: Path) -> None:
    # Ten readable pictures, five of each process, and all of them in every step.
    config = ToyConfig(noise=0.0, train_batch_size=10, epochs=6)
    results = [tmp_path / "0", tmp_path / "1"]
    assert together(results, config) == [0, 0]
    (first, told), (second, told_too) = (read(result) for result in results)
    assert same(first, second)
    alone = Toy(config)
    stream = stream_of([*pictures(2), "nowhere.png", *pictures(10)[2:]])
    training, found = train(alone, stream, seed=7, identity={})
    assert first["sample"][0] == 5  # rank 0's own pictures, for both
    for name, tensor in learned(alone).items():
        if name == "sample":
            continue
        torch.testing.assert_close(first[name], tensor, rtol=1e-5, atol=1e-5)
    for one in (told, told_too):  # each knows all pictures by their place in the whole
        assert one["digests"] == json.loads(json.dumps(sorted(found.digests.items())))
        assert one["failures"] == [[2, "nowhere.png", "does not exist"]]
        assert one["training"]["processes"] == 2
        assert one["training"]["steps"] == training.steps == 6
        assert one["training"]["epochs"] == 6


def test_two_processes_resume_and_keep_a_time_budget(tmp_path: Path) -> None:
    path, config = tmp_path / "toy.checkpoint", ToyConfig(epochs=1, min_steps=6)
    whole, again = [tmp_path / "0", tmp_path / "1"], [tmp_path / "2", tmp_path / "3"]
    for results in (whole, again):
        how = {"checkpoint": path, "resume": results is again, "budget": Budget(minutes=0.002)}
        assert together(results, config, **how) == [0, 0]
    (first, told), (_, other), (tensors, told_again) = map(read, (*whole, again[1]))
    steps = told["training"]["steps"]
    assert told_again["training"]["resumed_at"] == other["training"]["steps"] == steps
    assert same(tensors, first)


def test_two_processes_are_interrupted_between_steps(tmp_path: Path) -> None:
    path, config = tmp_path / "toy.checkpoint", ToyConfig(epochs=1, min_steps=30)
    results = [tmp_path / "0", tmp_path / "1"]
    assert together(results, config, checkpoint=path, pause=0.02, interrupt_at=5) == [130, 130]
    assert together(results, config, checkpoint=path, resume=True) == [0, 0]
    path.unlink()
    (tensors, told), whole = read(results[1]), [tmp_path / "2", tmp_path / "3"]
    assert 5 <= told["training"]["resumed_at"] < 30
    assert together(whole, config) == [0, 0]
    assert same(tensors, read(whole[0])[0])


def test_two_processes_pre_train_and_then_fit(tmp_path: Path) -> None:
    results, steps = [tmp_path / "0", tmp_path / "1"], 3
    assert together(results, {"pretraining": "apmask"}, target=fit_apart, steps=steps) == [0, 0]
    (first, told), (second, told_too) = (artifact.read(result) for result in results)
    assert same(first, second)
    for one in (told, told_too):
        before = one["pretraining"]["training"]
        assert (before["processes"], one["training"]["processes"]) == (2, 2)
        assert before["steps"] == steps
        assert before["findings"] == told["pretraining"]["training"]["findings"]
        assert len(one["data"]["fitted"]) == 8
    # The targets are those of both processes' pictures together.
    own = [read_tensors(f"{result}.balanced") for result in results]
    for step in range(steps):
        scores, targets = (
            torch.cat([each[name][step] for each in own]) for name in ("scores", "targets")
        )
        assert scores.shape == (4, 4)  # two pictures of each
        torch.testing.assert_close(targets, sinkhorn(scores), rtol=1e-4, atol=1e-6)
        assert not torch.allclose(targets[:2], sinkhorn(scores[:2]), atol=1e-3)


def digests_of(count: int) -> list[str]:
    return [decode(picture).digest for picture in pictures(count)]


def halves(labels: Tensor) -> list[list[int]]:
    """The labels of step after step, sorted."""
    return labels.sort(dim=1).values.tolist()


def test_two_processes_learn_from_defects_and_resume(tmp_path: Path) -> None:
    defects, steps, stop_at, path = {"defects": 3}, 5, 2, tmp_path / "x.training"
    whole, again = [tmp_path / "0", tmp_path / "1"], [tmp_path / "2", tmp_path / "3"]
    common: dict[str, Any] = {"target": fit_defects_apart, "min_steps": steps}
    assert together(whole, defects, **common) == [0, 0]
    assert together(again, defects | {"stop_at": stop_at}, checkpoint=path, **common) == [130, 130]
    assert together(again, defects, checkpoint=path, resume=True, **common) == [0, 0]
    fits, digests = [artifact.read(result) for result in (*whole, *again)], digests_of(12)
    for tensors, told in fits:
        assert same(tensors, fits[0][0])
        assert told["training"]["processes"] == 2
        assert (told["data"]["fitted"], told["data"]["defects"]) == (digests[:9], digests[9:])
    assert [told["training"]["resumed_at"] for _, told in fits] == [0, 0, stop_at, stop_at]
    for rank, own in enumerate((1, 2)):  # how many of the three are this process's
        first, rest = (read_tensors(f"{results[rank]}.steps") for results in (whole, again))
        assert halves(first["given"]) == halves(first["learned"]) == [[0, 0, 1, 1]] * steps
        assert len(set(first["brightness"][first["given"] == 1].tolist())) == own
        assert all(
            torch.equal(first[name][stop_at:], rest[name])
            for name in ("brightness", "given", "learned")
        )


@pytest.mark.parametrize("network", ["atacnet", "classifier"])
def test_two_processes_learn_from_one_defect(network: str, tmp_path: Path) -> None:
    results, steps = [tmp_path / "0", tmp_path / "1"], 4
    # Of an early layer: what comes after it takes no part in the loss, and must not be waited for.
    settings: dict[str, Any] = {"network": network, "layers": (3,), "min_steps": steps}
    assert together(results, {"defects": 1}, target=fit_defects_apart, **settings) == [0, 0]
    (first, told), (second, told_too) = (artifact.read(result) for result in results)
    assert same(first, second)
    assert told["data"]["defects"] == told_too["data"]["defects"] == digests_of(10)[9:]
    without, having = (read_tensors(f"{result}.steps") for result in results)
    assert halves(without["given"]) == [[-1] * 4] * steps
    if network == "atacnet":
        assert halves(having["given"]) == [[0, 0, 1, 1]] * steps
        # The other process makes its anomalous half of normal pictures.
        assert halves(without["learned"]) == halves(having["learned"]) == [[0, 0, 1, 1]] * steps
    else:  # as they come: the defect is one of this process's five pictures
        assert not without["learned"].any()
        assert torch.equal(having["given"].sum(1), having["learned"].sum(1))
        assert having["given"].sum() in (3, 4)  # 16 pictures drawn: three times all five, and one


@pytest.fixture
def _no_rank(monkeypatch: pytest.MonkeyPatch) -> None:
    for variable in ("RANK", "WORLD_SIZE", "MASTER_ADDR"):
        monkeypatch.delenv(variable, raising=False)


@pytest.mark.usefixtures("_no_rank")
def test_one_process_is_rank_0_of_1() -> None:
    assert (distributed.rank(), distributed.processes()) == (0, 1)
    assert distributed.share([1, 2, 3]) == [1, 2, 3]
    assert distributed.exchange({"a": 1}) == [{"a": 1}]
    assert distributed.own_device(torch.device("cuda")) == torch.device("cuda")


@pytest.mark.usefixtures("_no_rank")
def test_the_environment_of_torchrun(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("LOCAL_RANK", "1")
    assert (distributed.rank(), distributed.processes()) == (1, 2)
    assert distributed.share("abcde") == ["b", "d"]
    assert distributed.own_device(torch.device("cpu")) == torch.device("cpu")
    assert distributed.own_device(torch.device("cuda", 0)) == torch.device("cuda", 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert distributed.own_device(torch.device("cuda")) == torch.device("cuda", 1)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    with pytest.raises(ConfigError, match="more processes than GPUs"):
        distributed.own_device(torch.device("cuda"))
    with pytest.raises(ConfigError, match="5 cannot be shared evenly by 2 processes"):
        train(Toy(ToyConfig(train_batch_size=5)), stream_of(pictures(4)), seed=7, identity={})
    with pytest.raises(ConfigError, match="start them with torchrun"):
        train(Toy(ToyConfig()), stream_of(pictures(4)), seed=7, identity={})
    monkeypatch.setenv("RANK", "first")
    with pytest.raises(ConfigError, match="RANK is 'first'"):
        distributed.rank()


def test_processes_that_see_different_checkpoints(tmp_path: Path) -> None:
    """As on two machines without a shared drive, of which one alone has the file."""
    config, path = ToyConfig(epochs=1, min_steps=4), tmp_path / "toy.checkpoint"
    assert together([tmp_path / "0", tmp_path / "1"], config, checkpoint=path, resume=True) == [
        0,
        0,
    ]
    assert step_of(path) == 4
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        port = str(one.getsockname()[1])
    started = []
    for rank, at in enumerate((path, tmp_path / "elsewhere" / "toy.checkpoint")):
        own = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
        own |= {"RANK": str(rank), "LOCAL_RANK": "0"}
        how = {"environment": own, "checkpoint": at, "resume": True}
        started.append(start(tmp_path / f"result{rank}", config, **how))
    for each in started:
        each.join(120)
    codes = [each.exitcode for each in started]
    for each in started:
        each.kill()
    assert codes == [1, 1]
    assert not (tmp_path / "result0").exists()

"""fit --engine parts and ray: what is made and told, gone on from, and refused."""

from __future__ import annotations

import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from parts import FIT, SMALL

import blemish
from blemish.scale import jobs, learning

Run = Callable[..., tuple[int, str, str]]
Refused = Callable[..., str]
Answered = Callable[..., Any]
PARTS = "--engine parts --part-pictures 5"


def test_what_is_told_of_a_fit_in_parts(run: Run, good_folder: Path, tmp_path: Path) -> None:
    artifact = tmp_path / "part.blemish"
    fit = ("fit patchcore", good_folder, "-o", artifact, FIT, "--set bank_size=150", PARTS)
    status, out, err = run(*fit)
    assert status == 0
    assert "Learned in parts: 5 parts, merged over 3 levels; features of 24 pictures lie up" in out
    assert "by all selections 0." in out
    assert "learning: 24 of 24" in err
    assert "calibrating: 24 of 24" in err
    assert not (tmp_path / "part.blemish.parts").exists()
    told = blemish.load(artifact).manifest["in_parts"]
    assert (told["parts"], told["levels"], told["measured"]) == (5, 3, 24)


def test_as_the_library_has_it(answered: Answered, good_folder: Path, tmp_path: Path) -> None:
    artifact = tmp_path / "part.blemish"
    made = answered("fit padim", good_folder, "-o", artifact, FIT, PARTS)
    assert made["in_parts"] == {
        "parts": 5, "levels": 3, "bound": None, "farthest": None, "measured": 0
    }  # fmt: skip
    expected = learning.fit("padim", good_folder, part_pictures=5, **{**SMALL, "seed": 0})
    tensors = blemish.load(artifact).method.fitted_state()
    for name, tensor in expected.method.fitted_state().items():
        assert torch.equal(tensor, tensors[name])
    plain = answered("fit padim", good_folder, "-o", artifact, FIT)
    assert plain["in_parts"] is None


def test_interrupted_and_gone_on_with(
    run: Run, good_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    artifact, kept = tmp_path / "part.blemish", tmp_path / "part.blemish.parts"
    fit = ("fit knn", good_folder, "-o", artifact, FIT, PARTS)
    done: list[int] = []

    def learn_part(*given: Any) -> Any:
        if len(done) == 3:
            signal.raise_signal(signal.SIGINT)
        done.append(1)
        return jobs.learn_part(*given)

    monkeypatch.setattr(learning, "learn_part", learn_part)
    status, _, err = run(*fit)
    assert status == 130
    assert "the same command with --resume goes on from here" in err
    assert kept.is_dir()
    assert not artifact.exists()
    status, _, err = run(*fit)
    assert status == 2
    assert "parts of an interrupted fit lie there; --resume goes on with them" in err
    done.append(1)
    assert run(*fit, "--resume")[0] == 0
    assert len(done) == 6  # two parts more
    assert artifact.exists()
    assert not kept.exists()


@pytest.mark.parametrize(
    ("arguments", "what"),
    [
        ("knn --engine cluster", "unknown engine of fit 'cluster'"),
        ("knn --num-workers 2", "--num-workers: is for workers of a cluster; add --engine ray"),
        ("knn --engine parts --address auto", "--address: is for workers of a cluster"),
        ("knn --part-pictures 4", "--part-pictures: is of parts; add --engine parts"),
        ("knn --resume", "resume: knn is not trained step by step"),
        ("agpnet --engine ray", "goes on several machines with torchrun"),
        ("knn --engine parts --tile 32", "tile: pictures are cut"),
        ("knn --engine parts --student", "student: is distilled"),
        (
            "knn --engine ray --set second=test_resnet",
            "go with learning in parts; leave it out, or",
        ),
        ("knn --engine parts --set coarse=32", "coarse, whose two looks are learned one after"),
        ("patchcore --engine ray --set bank_loss=0.1 --set neighbours=1", "bank_loss, which is"),
        ("knn --engine ray --num-workers 0", "'--num-workers'"),
        ("knn --engine ray --address head", "HOST:PORT is needed"),
        ("knn --engine ray --gpus-per-worker -1", "--gpus-per-worker -1"),
    ],
)
def test_what_does_not_go_together(
    refused: Refused, good_folder: Path, tmp_path: Path, arguments: str, what: str
) -> None:
    artifact = tmp_path / "part.blemish"
    said = refused("fit", arguments, good_folder, "-o", artifact, FIT)
    assert what in said
    assert "loading" not in said  # before any work
    assert [*tmp_path.iterdir()] in ([], [good_folder])


@pytest.mark.parametrize(
    ("options", "what"),
    [
        ("--engine ray --adapt online", "--adapt: is of one process"),
        ("--engine ray --output there", "--output: is of one process"),
        ("--engine ray --overlay-size 40", "--overlay-size: is of one process"),
        ("--num-workers 2", "--num-workers: is for workers of a cluster; add --engine ray"),
        ("--engine ray --address head", "HOST:PORT is needed"),
    ],
)
def test_what_an_evaluation_on_ray_has_not(
    refused: Refused, mvtec: Path, tmp_path: Path, options: str, what: str
) -> None:
    assert what in refused("evaluate", tmp_path / "part.blemish", mvtec, options)

"""`pretrain` and `blemish pretrain`: from good pictures to an encoder file, with its log, on a ViT
of toy size.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from parts import Part, Run
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

import blemish
from blemish import artifact
from blemish.backbones import build
from blemish.cli.status import BROKEN_PICTURES, ERROR, WELL
from blemish.detector.pretrain import Encoder, configure
from blemish.errors import (
    ArtifactError,
    CollapseError,
    ConfigError,
    DataError,
    OutputError,
    WeightsError,
)
from blemish.methods import selfsupervised
from blemish.report import figures, health
from blemish.types import Progress

SETTINGS: dict[str, Any] = {
    "backbone": "test_vit",
    "picture_size": 40,
    "image_size": 32,
    "local_size": 16,
    "local_views": 1,
    "hidden": 16,
    "bottleneck": 8,
    "prototypes": 4,
    "train_batch_size": 4,
    "epochs": 1,
    "min_steps": 6,
}
TINY: dict[str, Any] = {**SETTINGS, "weights": "random", "device": "cpu", "precision": "fp32"}
SET = [f"--set={key}={value}" for key, value in SETTINGS.items()]
OPTIONS = ("--weights", "random", "--device", "cpu", "--precision", "fp32", *SET)


HEALTH = figures.health


@pytest.fixture(autouse=True)
def _quick_figures(monkeypatch: pytest.MonkeyPatch) -> None:
    """A digest of what is drawn, in place of the figure, which takes as long as a whole test."""

    def drawn(steps: Any, curves: dict[str, Any], tiles: list[tuple[str, np.ndarray]]) -> bytes:
        said = [
            list(steps),
            {title: list(values) for title, values in curves.items()},
            [name for name, _ in tiles],
        ]
        content = json.dumps(said).encode() + b"".join(pixels.tobytes() for _, pixels in tiles)
        return hashlib.sha256(content).digest()

    monkeypatch.setattr(figures, "health", drawn)


@pytest.fixture
def parts(picture: Part) -> list[np.ndarray]:
    return [picture(seed) for seed in range(9)]


@pytest.fixture(scope="module")
def encoder_file(picture: Part, tmp_path_factory: pytest.TempPathFactory) -> Path:
    encoder = blemish.pretrain([picture(seed) for seed in range(9)], **TINY)
    return encoder.save(tmp_path_factory.mktemp("encoder") / "encoder.safetensors")


def rows(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(
        torch.equal(tensor, other[name]) for name, tensor in one.items()
    )


def interrupt_after(step: int) -> Progress:
    """Ctrl-C once that many steps are made."""

    def told(stage: str, done: int, total: int) -> None:
        if stage.startswith("training") and done == step:
            raise KeyboardInterrupt

    return told


def collapse_at(step: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(selfsupervised, "SETTLED", step)
    monkeypatch.setattr(selfsupervised, "LEAST_USAGE", 100.0)


def not_blank(path: Path) -> bool:
    pixels = np.asarray(Image.open(path).convert("L"))
    return min(pixels.shape) > 300 and float(pixels.std()) > 10


def test_an_encoder_and_its_manifest(parts: list[np.ndarray], tmp_path: Path) -> None:
    broken = tmp_path / "broken.png"
    broken.touch()
    encoder = blemish.pretrain([*parts, broken], seed=3, **TINY)
    manifest = encoder.manifest
    start = build("test_vit", weights="random", seed=3)
    assert manifest["backbone"]["weights"] == start.info.to_dict()
    assert (manifest["pretraining"], manifest["recipe"], manifest["seed"]) == ("apmask", "best", 3)
    assert manifest["config"]["prototypes"] == 4
    assert manifest["training"]["steps"] == 6
    assert manifest["data"]["count"] == 9
    assert [failure["path"] for failure in manifest["data"]["failures"]] == [str(broken)]
    assert set(manifest["training"]["findings"]) == {
        "assignment_entropy",
        "prototype_usage",
        "agreement",
        "feature_spread",
        "projection_spread",
    }
    learned = encoder.backbone.model.state_dict()
    assert not same(learned, start.model.state_dict())
    assert not encoder.backbone.training
    assert not any(parameter.requires_grad for parameter in encoder.backbone.parameters())
    assert encoder.backbone.info.source == "pretrained:apmask on random"
    path = encoder.save(tmp_path / "encoder.safetensors")
    assert same(load_file(path), learned)
    tensors, written = artifact.read(path)  # whole, by its digest
    assert same(tensors, learned)
    assert written == {**manifest, "format": artifact.FORMAT}
    again = blemish.pretrain(parts, seed=3, **TINY)
    assert same(again.backbone.model.state_dict(), learned)
    assert again.backbone.info == encoder.backbone.info
    assert again.manifest["data"]["fingerprint"] == manifest["data"]["fingerprint"]
    other = blemish.pretrain(parts, seed=4, **TINY)
    assert other.backbone.info.sha256 != encoder.backbone.info.sha256


@pytest.mark.parametrize("method", ["knn", "guided"])
def test_any_method_takes_it(
    method: str, encoder_file: Path, small: Any, parts: list[np.ndarray]
) -> None:
    detector = blemish.fit(method, parts, **{**small, "weights": encoder_file})
    info = detector.manifest["backbone"]["weights"]
    assert info["source"] == "file:encoder.safetensors (apmask on random)"
    assert info["licence"] == "none"  # that of what it started from
    assert info["sha256"] == hashlib.sha256(encoder_file.read_bytes()).hexdigest()
    if method == "knn":
        assert same(detector.method.backbone.model.state_dict(), load_file(encoder_file))


def test_an_encoder_is_pre_trained_further(
    encoder_file: Path, parts: list[np.ndarray], tmp_path: Path
) -> None:
    encoder = blemish.pretrain(
        parts, **{**TINY, "weights": encoder_file, "min_steps": 2, "epochs": 1}
    )
    before = "file:encoder.safetensors (apmask on random)"
    assert encoder.manifest["backbone"]["weights"]["source"] == before
    again = encoder.save(tmp_path / "again.safetensors")
    assert (
        build("test_vit", weights=again).info.source
        == f"file:again.safetensors (apmask on {before})"
    )


def test_an_encoder_is_for_its_own_backbone(
    encoder_file: Path, parts: list[np.ndarray], small: Any
) -> None:
    with pytest.raises(
        WeightsError, match=r"encoder\.safetensors: .*pre-trained as test_vit, not test_vit2"
    ):
        blemish.fit("knn", parts, **{**small, "weights": encoder_file, "backbone": "test_vit2"})
    with pytest.raises(ArtifactError, match=r"is a pre-trained encoder, no detector; .* --weights"):
        blemish.load(encoder_file)


@pytest.mark.parametrize(
    ("manifest", "licence"),
    [
        ("{", "unknown"),
        ("[1]", "unknown"),
        ('{"method": "knn"}', "unknown"),
        ('{"pretraining": "apmask"}', None),
    ],
)
def test_what_another_file_says_of_itself(
    manifest: str, licence: str | None, encoder_file: Path
) -> None:
    path = encoder_file.with_name("foreign.safetensors")
    save_file(load_file(encoder_file), path, metadata={"manifest": manifest})
    if licence is None:
        with pytest.raises(
            WeightsError, match=r"foreign\.safetensors: what it says of itself is damaged"
        ):
            build("test_vit", weights=path)
    else:
        assert build("test_vit", weights=path).info.licence == licence


def test_the_log_and_its_figure(
    parts: list[np.ndarray], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn: list[Any] = []
    monkeypatch.setattr(figures, "health", lambda *given: drawn.append(given) or b"drawn")  # type: ignore[func-returns-value]
    log = tmp_path / "new" / "encoder.log.jsonl"
    (tmp_path / "broken.png").touch()
    options = {**TINY, "image_size": 64, "min_steps": 20}
    with health.illustrated(log, note=pytest.fail):
        encoder = blemish.pretrain([tmp_path / "broken.png", *parts], log=log, **options)
    lines = rows(log)
    steps = [row for row in lines if "loss" in row]
    looks = [row for row in lines if "attention" in row]
    assert [row["step"] for row in steps] == list(range(1, 21))
    assert all(row["steps"] == 20 for row in steps)
    readings = encoder.manifest["training"]["findings"]
    assert {name: steps[-1][name] for name in readings} == readings
    assert [row["step"] for row in looks] == [1, 3, 5, 8, 10, 13, 15, 18, 20]
    seen = np.array([row["attention"] for row in looks])
    assert seen.shape == (9, 4, 4)
    np.testing.assert_allclose(seen.sum((1, 2)), 1, atol=1e-4)
    assert not np.array_equal(seen[0], seen[-1])
    curves, attention, shown_picture = health.read_log(log)
    assert shown_picture is not None
    first = cv2.resize(parts[0], (64, 64), interpolation=cv2.INTER_AREA)
    assert np.abs(shown_picture.astype(int) - first).max() <= 1
    assert list(curves["loss"]) == [row["loss"] for row in steps]
    assert np.array_equal(attention[20], seen[-1])
    assert (tmp_path / "new" / "encoder.health.png").read_bytes() == b"drawn"
    ((steps_drawn, shown, tiles),) = drawn
    assert list(steps_drawn) == list(range(1, 21))
    assert [list(values) for values in shown.values()] == [
        list(curves[name]) for name in ("loss", *readings)
    ]
    assert [caption for caption, _ in tiles] == [
        "the picture",
        *(f"step {row['step']}" for row in looks),
    ]
    assert {pixels.shape for _, pixels in tiles} == {(64, 64, 3)}


def test_a_new_run_starts_a_new_log_which_changes_nothing(
    encoder_file: Path, parts: list[np.ndarray], tmp_path: Path
) -> None:
    log = tmp_path / "x.log.jsonl"
    log.write_text('{"step": 1, "steps": 6, "loss": 99.0}\n')
    encoder = blemish.pretrain(parts, log=log, **TINY)
    assert same(encoder.backbone.model.state_dict(), load_file(encoder_file))
    assert len([row for row in rows(log) if "loss" in row]) == 6
    assert rows(log)[0]["loss"] < 99


def test_an_interrupted_training_is_resumed_to_the_same_weights_and_log(
    parts: list[np.ndarray], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("blemish.training.loop.BETWEEN_CHECKPOINTS", 0.0)
    whole = blemish.pretrain(parts, log=tmp_path / "whole.log.jsonl", **TINY)
    log, options = tmp_path / "x.log.jsonl", {**TINY, "checkpoint": tmp_path / "x.training"}
    with pytest.raises(KeyboardInterrupt):
        blemish.pretrain(parts, log=log, progress=interrupt_after(3), **options)
    assert rows(log)[-1]["step"] == 3
    assert not (tmp_path / "x.health.png").exists()
    with log.open(
        "a"
    ) as file:  # as where the process was killed, some steps after its last checkpoint
        file.write('{"step": 4, "steps": 6, "loss": 1.0}\n{"step": 5, "ste')
    with pytest.raises(OutputError, match="--resume goes on"):
        blemish.pretrain(parts, log=log, **options)
    for change in ({"mask_ratio": 0.5}, {"seed": 9}, {"masking": "none"}):
        with pytest.raises(ConfigError, match="another training"):
            blemish.pretrain(parts, resume=True, **{**options, **change})
    resumed = blemish.pretrain(parts, log=log, resume=True, **options)
    assert resumed.manifest["training"]["resumed_at"] == 3
    assert same(resumed.backbone.model.state_dict(), whole.backbone.model.state_dict())
    assert log.read_bytes() == (tmp_path / "whole.log.jsonl").read_bytes()


def test_a_log_that_cannot_be_written(parts: list[np.ndarray], tmp_path: Path) -> None:
    (tmp_path / "x.log.jsonl").mkdir()
    with pytest.raises(OutputError, match=r"x\.log\.jsonl: cannot be written"):
        blemish.pretrain(parts, log=tmp_path / "x.log.jsonl", **TINY)


def test_settings(parts: list[np.ndarray]) -> None:
    assert configure(recipe="paper").epochs == 300
    assert configure(values={"masking": "none"}, assignments=["masking=random"]).masking == "random"
    assert configure(objective="swav", recipe="paper").prototypes == 3000
    with pytest.raises(ConfigError, match="unknown recipe of apmask 'papre'; did you mean 'paper'"):
        configure(recipe="papre")
    for masking in ("none", "random", "block"):
        blemish.pretrain(
            parts, **{**TINY, "masking": masking, "min_steps": 1, "train_batch_size": 9}
        )
    with pytest.raises(ConfigError, match="either a whole config"):
        blemish.pretrain(parts, config=configure(), masking="none")
    with pytest.raises(ConfigError, match="objective msn and a config of apmask"):
        blemish.pretrain(parts, config=configure(), objective="msn")
    with pytest.raises(ConfigError, match="lo < hi"):
        blemish.pretrain(parts, window=(2, 1), **TINY)
    encoder = blemish.pretrain(
        parts, config=configure(values=SETTINGS), weights="random", device="cpu"
    )
    assert isinstance(encoder, Encoder)
    assert encoder.manifest["recipe"] is None


@pytest.mark.parametrize("objective", ["dino", "ibot", "msn", "swav"])
def test_the_other_objectives(
    objective: str, run: Run, good_folder: Path, tmp_path: Path, parts: list[np.ndarray]
) -> None:
    output = tmp_path / "encoder.safetensors"
    status, _, _ = run("pretrain", good_folder, "-o", output, "--objective", objective, *OPTIONS)
    assert status == WELL
    manifest = artifact.read(output)[1]
    assert manifest["pretraining"] == objective
    assert manifest["config"]["prototypes"] == 4
    assert manifest["training"]["findings"]["prototype_usage"] > 1
    assert f"pre-trained by {objective}" in run("inspect", output)[1]
    start = build("test_vit", weights="random", seed=0).model.state_dict()
    assert not same(load_file(output), start)
    whole = configure(objective=objective, values=SETTINGS)
    for how in ({"config": whole}, {"objective": objective, **SETTINGS}):
        made = blemish.pretrain(parts, weights="random", device="cpu", **how)
        assert made.manifest["pretraining"] == objective


def test_no_picture_can_be_read(tmp_path: Path) -> None:
    (tmp_path / "1.png").write_text("not a picture")
    with pytest.raises(DataError, match=r"1\.png"):
        blemish.pretrain(tmp_path, log=tmp_path / "x.log.jsonl", **TINY)
    assert not (tmp_path / "x.log.jsonl").exists()


def test_on_the_command_line(run: Run, good_folder: Path, tmp_path: Path) -> None:
    (good_folder / "broken.png").write_text("not a picture")
    output = tmp_path / "encoder.safetensors"
    status, out, _ = run(
        "pretrain", good_folder, "-o", output, *OPTIONS, "--masking", "block", "--seed", "5"
    )
    assert status == BROKEN_PICTURES
    for said in (
        "24 used, 1 broken",
        "broken.png",
        "Started from: test_vit, random",
        "6 steps",
        "agreement",
    ):
        assert said in out
    places = [output, tmp_path / "encoder.log.jsonl", tmp_path / "encoder.health.png"]
    assert all(f"Written: {place}" in out for place in places)
    assert sorted(path for path in tmp_path.iterdir() if path.is_file()) == sorted(places)
    with safe_open(output, framework="pt") as file:
        config = json.loads(file.metadata()["manifest"])["config"]
    assert (config["masking"], config["seed"]) == ("block", 5)
    status, out, _ = run("inspect", output)
    assert status == 0
    for said in (
        "whole and unaltered",
        "pre-trained by apmask",
        "test_vit",
        "24 learned from",
        'masking="block"',
    ):
        assert said in out
    fit = (
        "fit",
        "knn",
        good_folder,
        "-o",
        tmp_path / "x",
        "--image-size",
        "32",
        "--weights",
        output,
    )
    assert run(*fit, "--backbone", "test_vit")[0] == BROKEN_PICTURES
    status, _, err = run(*fit, "--backbone", "test_vit2")
    assert status == ERROR
    assert "choose --backbone test_vit, or other weights" in err


def test_a_wrong_command(run: Run, good_folder: Path, tmp_path: Path) -> None:
    command = ("pretrain", good_folder, "-o", tmp_path / "x", *OPTIONS)
    for more, says in [
        (("--masking", "attentive"), "masking: 'attentive' is not one of none, random"),
        (("--set", "mask_ration=0.2"), "did you mean 'mask_ratio'"),
        (("--objective", "mns"), "unknown objective 'mns'; did you mean 'msn'"),
        (("--objective", "swav", "--masking", "none"), "masking"),
        (("--objective", "msn", "--recipe", "papre"), "unknown recipe of msn 'papre'"),
        (("--set", "backbone=test_resnet"), "apmask needs a ViT"),
        (("--time-budget", "0"), "--time-budget 0: a positive finite number"),
    ]:
        status, out, err = run(*command, *more)
        assert (status, out) == (ERROR, "")
        assert says in err
    assert "is a folder" in run("pretrain", good_folder, "-o", tmp_path)[2]


def test_interrupted_on_the_command_line(
    run: Run,
    good_folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    interrupted_pretraining: Callable[[], AbstractContextManager[None]],
) -> None:
    monkeypatch.setattr("blemish.training.loop.BETWEEN_CHECKPOINTS", 0.0)
    output, checkpoint = tmp_path / "encoder.safetensors", tmp_path / "encoder.safetensors.training"
    command = ("pretrain", good_folder, "-o", output, *OPTIONS)
    with interrupted_pretraining():
        status, _, err = run(*command)
    assert status == 130
    assert "the same command with --resume goes on" in err
    assert checkpoint.exists()
    assert not output.exists()
    assert run(*command)[0] == ERROR
    status, out, _ = run(*command, "--resume", "--json")
    assert status == WELL
    made = json.loads(out)
    assert made["training"]["resumed_at"] == 3
    assert (made["config"]["prototypes"], made["count"], made["failures"]) == (4, 24, [])
    assert made["backbone"]["weights"]["source"] == "random"
    assert [made[name] for name in ("encoder", "log", "figure")] == [
        str(tmp_path / f"encoder{ending}")
        for ending in (".safetensors", ".log.jsonl", ".health.png")
    ]
    assert not checkpoint.exists()


def test_a_collapse_is_explained(
    run: Run, good_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(figures, "health", HEALTH)
    monkeypatch.setattr("blemish.training.loop.BETWEEN_CHECKPOINTS", 0.0)
    collapse_at(3, monkeypatch)
    status, out, err = run(
        "pretrain", good_folder, "-o", tmp_path / "encoder.safetensors", *OPTIONS
    )
    assert (status, out) == (ERROR, "")
    assert "collapsed at step 3" in err
    assert "learning_rate" in err
    assert f"how it came about: {tmp_path / 'encoder.health.png'}" in err
    assert "Traceback" not in err
    assert not_blank(tmp_path / "encoder.health.png")
    assert [row["step"] for row in rows(tmp_path / "encoder.log.jsonl") if "loss" in row] == [1, 2]
    assert not (
        tmp_path / "encoder.safetensors.training"
    ).exists()  # gone on from it would collapse again
    assert not (tmp_path / "encoder.safetensors").exists()


def test_a_collapse_in_the_first_step_has_no_figure(
    parts: list[np.ndarray], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    collapse_at(1, monkeypatch)
    log = tmp_path / "x.log.jsonl"
    with pytest.raises(CollapseError) as caught, health.illustrated(log, note=pytest.fail):
        blemish.pretrain(parts, log=log, **TINY)
    assert "x.health.png" not in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_only_the_first_process_writes_and_speaks(
    run: Run, good_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (good_folder / "broken.png").write_text("not a picture")  # of which the first process tells
    monkeypatch.setenv("RANK", "1")
    assert run("pretrain", good_folder, "-o", tmp_path / "out" / "x", *OPTIONS) == (0, "", "")
    collapse_at(3, monkeypatch)
    assert run("pretrain", good_folder, "-o", tmp_path / "out" / "x", *OPTIONS) == (0, "", "")
    assert list((tmp_path / "out").iterdir()) == []

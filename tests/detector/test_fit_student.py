"""`fit` and `blemish fit` on a student of the backbone, of toy size."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from fuzzing import artifacts
from parts import FIT, Part, Run, part, settings_of

import blemish
from blemish.artifact import read
from blemish.cli import learn, words
from blemish.cli.status import ERROR, WELL
from blemish.data.pictures import good_pictures, hold_out_positions
from blemish.detector import distil
from blemish.detector import fit as fitting
from blemish.detector.calibrate import recalibrate
from blemish.detector.predict import Detector
from blemish.detector.refine import refine
from blemish.detector.request import Request
from blemish.errors import ArtifactError, CollapseError, ConfigError, DataError, OutputError
from blemish.export.exporting import export
from blemish.methods.student import StudentConfig
from blemish.training import train
from blemish.training.budget import Budget
from blemish.types import Progress

STEPS = 6
BRIEF = StudentConfig(min_steps=STEPS, train_batch_size=4, most_views=16)
METHODS = ("patchcore", "knn", "padim", "lda", "spade")
Refused = Callable[..., str]


def fit(method: str = "knn", count: int = 24, **options: Any) -> Detector:
    good = options.pop("good", None) or [part(seed) for seed in range(count)]
    return blemish.fit(method, good, **{"student": BRIEF, **settings_of(method), **options})


@cache
def whole(method: str = "knn") -> Detector:
    more = {"anomalies": [part(90 + seed, defect=True) for seed in range(3)]}
    return fit(method, **(more if method == "lda" else {}))


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


@pytest.fixture
def brief(monkeypatch: pytest.MonkeyPatch) -> None:
    """On the command line a student is as brief as it is here."""
    asked = Request.distillation.fget
    assert asked is not None
    small = property(lambda self: BRIEF if asked(self) else None)
    monkeypatch.setattr(Request, "distillation", small)
    monkeypatch.setattr("blemish.training.loop.BETWEEN_CHECKPOINTS", 0.0)


@pytest.mark.parametrize("method", METHODS)
def test_a_method_is_fitted_on_it(method: str, tmp_path: Path) -> None:
    detector = whole(method)
    spec = detector.record.backbone.spec
    assert spec.blocks == tuple(sorted({2, 4, *detector.method.layers}))
    assert len(detector.method.backbone.model.blocks) == len(spec.blocks) < 6
    assert (spec.name, spec.about) == (
        "test_vit",
        f"student of {len(spec.blocks)} blocks, of timm model test_vit",
    )
    good, bad = part(60), part(60, defect=True)
    assert detector.predict(bad).score > detector.predict(good).score
    again = blemish.load(detector.save(tmp_path / "a.blemish"), device="cpu")
    assert again.predict(bad).score == detector.predict(bad).score
    assert again.record.backbone == detector.record.backbone


def test_it_is_another_and_smaller_than_its_teacher(tmp_path: Path) -> None:
    teacher = fit(student=False)
    assert "pretraining" not in teacher.manifest
    assert "blocks" not in teacher.manifest["backbone"]["spec"]
    big, small = (it.save(tmp_path / "x").stat().st_size for it in (teacher, whole()))
    assert small < 0.7 * big
    assert teacher.predict(part(60)).score != whole().predict(part(60)).score


@pytest.mark.parametrize("blocks", artifacts.IMPOSSIBLE["backbone.spec.blocks"], ids=repr)
def test_blocks_that_cannot_be_are_refused(blocks: Any, tmp_path: Path) -> None:
    made = whole().save(tmp_path / "a.blemish")
    tensors, manifest = read(made)
    forged = artifacts.with_value(manifest, ["backbone", "spec", "blocks"], blocks)
    (tmp_path / "b.blemish").write_bytes(artifacts.forge(tensors, forged))
    with pytest.raises(ArtifactError):
        blemish.load(tmp_path / "b.blemish")


def test_what_the_artifact_says() -> None:
    told = whole().manifest["pretraining"]
    assert (told["method"], told["training"]["steps"]) == ("student", STEPS)
    assert told["weights"]["source"] == "random"
    found = told["training"]["findings"]
    assert set(found) == {"agreement", "agreement_on_anomalies"}
    assert 0.5 < found["agreement"] <= 1
    weights = whole().manifest["backbone"]["weights"]
    assert weights["source"] == "pretrained:student on random"
    assert len(weights["sha256"]) == 64
    said = "\n".join(learn.fit_lines(whole().manifest))
    assert f"Student: blocks 2, 4 of test_vit (random), taught by it in {STEPS} steps" in said
    assert f"by {found['agreement']:.3f}, on synthetic anomalies" in said
    assert "Pre-trained" not in said


def test_a_seed_decides_it() -> None:
    assert same(whole(), fit())
    other = fit(student=StudentConfig(**{**vars(BRIEF), "seed": 1}))
    assert not same(whole(), other)


def test_the_seed_of_the_method_is_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[StudentConfig] = []

    def noted(_teacher: Any, _layers: Any, _sources: Any, config: StudentConfig, **_: Any) -> Any:
        asked.append(config)
        raise KeyboardInterrupt

    monkeypatch.setattr(fitting, "distilled", noted)
    for options in ({"seed": 7}, {}):
        with pytest.raises(KeyboardInterrupt):
            fit(student=True, **options)
    assert [config.seed for config in asked] == [7, 0]
    assert asked[1] == StudentConfig()


def test_it_learns_from_no_picture_held_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither for the threshold, nor to measure its agreement."""
    good = [part(seed) for seed in range(24)]
    kept, held = hold_out_positions(good_pictures(good), 0.25, 0)
    assert len(held) == 6
    seen: list[list[int]] = []

    def noted(learner: Any, stream: Any, **options: Any) -> Any:
        seen.append([next(at for at, it in enumerate(good) if it is one) for one in stream.sources])
        seen.append([len(learner.held)])
        return train(learner, stream, **options)

    monkeypatch.setattr(distil, "train", noted)
    detector = fit(good=good, calibration_fraction=0.25, student=BRIEF)
    (learned, (measured,)) = seen
    assert set(learned) <= set(kept)
    assert len(learned) == 16  # of 18, two of which it is measured by
    assert measured == 2
    assert detector.threshold is not None
    assert detector.threshold.method == "split conformal"
    assert len(detector.record.data.calibrated) == 6


def test_what_is_measured_by_is_not_learned() -> None:
    sources = [object() for _ in range(40)]
    learned, held = distil._divided(sources, StudentConfig())
    assert (len(learned), len(held)) == (35, 5)
    assert not {id(one) for one in learned} & {id(one) for one in held}
    learned, held = distil._divided(sources * 10 + [object()] * 1, StudentConfig())
    assert len(held) <= 16


def test_leave_one_out_says_that_it_is_approximate() -> None:
    threshold = whole().threshold
    assert threshold is not None
    assert (threshold.method, threshold.value is not None) == ("leave-one-out", True)
    assert "approximate" in threshold.guarantee or "about" in threshold.guarantee


@pytest.mark.parametrize("held", [False, True])
def test_what_the_threshold_comes_from_is_told(held: bool) -> None:
    detector = fit(count=60, calibration_fraction=0.4) if held else whole()
    threshold = detector.threshold
    assert threshold is not None
    assert threshold.value is not None
    said = "\n".join(learn.fit_lines(detector.manifest))
    assert ("distilled on the pictures that the threshold comes from" in said) is not held


def test_it_is_resumed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("blemish.training.loop.BETWEEN_CHECKPOINTS", 0.0)
    place = tmp_path / "x.training"
    with pytest.raises(KeyboardInterrupt):
        fit(checkpoint=place, progress=interrupt_after(3, "student: training"))
    assert [path.name for path in tmp_path.iterdir()] == ["x.training.pretraining"]
    with pytest.raises(OutputError, match="--resume goes on"):
        fit(checkpoint=place)
    other = StudentConfig(**{**vars(BRIEF), "anomalies": 0.1})
    with pytest.raises(ConfigError, match=r"another training, it differs in config\.anomalies"):
        fit(checkpoint=place, resume=True, student=other)
    resumed = fit(checkpoint=place, resume=True)
    assert resumed.manifest["pretraining"]["training"]["resumed_at"] == 3
    assert same(resumed, whole())


def test_it_gets_the_time_budget(monkeypatch: pytest.MonkeyPatch) -> None:
    budgets: list[Budget] = []

    def noted(*arguments: Any, budget: Budget, **options: Any) -> Any:
        budgets.append(budget)
        return train(*arguments, **options)

    monkeypatch.setattr(distil, "train", noted)
    fit(time_budget=3.0)
    assert budgets == [Budget(minutes=3)]


@pytest.mark.parametrize(
    ("method", "options", "said"),
    [
        ("guided", {}, "guided with these settings takes none, as it is trained step by step"),
        ("agpnet", {}, "agpnet with these settings takes none"),
        ("atacnet", {"backbone": "test_resnet", "layers": (1, 2)}, "takes none"),
        ("lda", {"normality": "agpnet"}, "choose patchcore, knn, padim, spade, or lda with"),
        ("knn", {"coarse": 32}, "its two looks .*; leave it out, or that setting$"),
        ("knn", {"backbone": "test_resnet", "layers": (2, 3)}, "test_resnet is a CNN"),
        ("knn", {"layers": (1, 2)}, "no block can be left out"),
    ],
)
def test_what_takes_none_says_so_before_any_work(
    method: str, options: dict[str, Any], said: str
) -> None:
    def no_work(stage: str, _done: int, _total: int) -> None:
        assert stage == "loading the backbone"

    with pytest.raises(ConfigError, match=said):
        fit(method, progress=no_work, **options)


def test_too_few_pictures_are_said_before_any_work() -> None:
    with pytest.raises(DataError, match=r"a student needs at least 8 good pictures .* got 7"):
        fit(count=7)


def test_one_that_does_not_see_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(distil, "LEAST", 0.9999)
    with pytest.raises(CollapseError, match="does not see what its teacher sees: it agrees by 0"):
        fit()


@pytest.mark.parametrize(("agreement", "doubted"), [(0.89, True), (0.91, False)])
def test_one_that_agrees_little_is_told(agreement: float, doubted: bool) -> None:
    manifest = json.loads(json.dumps(whole().manifest))
    found = manifest["pretraining"]["training"]["findings"]
    found |= {"agreement": 0.95, "agreement_on_anomalies": agreement}
    said = "\n".join(learn.fit_lines(manifest))
    assert ("notice: the student agrees by less than 0.9" in said) is doubted
    assert words.AGREES == 0.9


def test_tiles_area_and_other_shapes(picture: Part) -> None:
    big = [picture(seed, height=96, width=128) for seed in range(9)]
    area = [[[0.1, 0.1], [0.9, 0.1], [0.9, 0.9], [0.1, 0.9]]]
    ways: tuple[dict[str, Any], ...] = (
        {"tile": 64},
        {"roi": area, "resize": "pad"},
        {"resize": "fit"},
        {"foreground": "auto"},
    )
    for options in ways:
        detector = fit(good=big, **options)
        assert np.isfinite(detector.predict(big[0]).score)
        assert detector.record.backbone.spec.blocks == (2, 4)


def test_more_is_learned_on_the_same_student(tmp_path: Path) -> None:
    before = blemish.load(whole("lda").save(tmp_path / "a.blemish"), device="cpu")
    refined = refine(before, good=[part(70), part(71)], anomalies=[part(95, defect=True)]).detector
    assert refined.record.backbone == before.record.backbone
    assert refined.record.pretraining == before.record.pretraining
    assert refined.threshold is not None
    assert refined.threshold.n == 26
    again, *_ = recalibrate(before, [part(200 + seed) for seed in range(24)])
    assert again.record.backbone == before.record.backbone


def test_an_export_says_what_it_says(tmp_path: Path) -> None:
    detector = fit("patchcore")
    artifact = detector.save(tmp_path / "part.blemish")
    made = export(artifact, tmp_path / "part.onnx")
    assert 0 <= made.proof.score < 1e-3
    exported = blemish.load(tmp_path / "part.onnx")
    bad = part(61, defect=True)
    assert exported.predict(bad).score == pytest.approx(detector.predict(bad).score, abs=1e-4)
    assert exported.record.backbone.spec.blocks == (2, 4)


@pytest.mark.usefixtures("brief")
def test_on_the_command_line(
    run: Run, good_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    output = tmp_path / "part.blemish"
    command = ("fit knn", good_folder, "-o", output, "--student", FIT)
    step = distil.Student.after_step

    def interrupted(self: Any, number: int, steps: int) -> None:
        if number == 4:
            raise KeyboardInterrupt
        step(self, number, steps)

    with monkeypatch.context() as patch:
        patch.setattr(distil.Student, "after_step", interrupted)
        status, _, err = run(*command)
    assert status == 130
    assert "the same command with --resume goes on" in err
    status, out, _ = run("inspect", tmp_path / "part.blemish.training.pretraining")
    assert (status, "of student, 3 of 6 steps made" in out) == (WELL, True)
    status, out, err = run(*command, "--resume")
    assert status == WELL
    assert "Student: blocks 2, 4 of test_vit (random), taught by it in 6 steps" in out
    assert "student: training" in err
    assert [path.name for path in tmp_path.iterdir() if path.is_file()] == [output.name]
    status, out, _ = run("inspect", output)
    flat = " ".join(out.split())
    for said in (
        "student of 2 blocks, of timm model test_vit",
        "pretrained:student on random",
        "blocks 2, 4 of test_vit (random), taught by it",
        "agrees with its teacher by 0.",
    ):
        assert said in flat
    assert read(output)[1]["backbone"]["spec"]["blocks"] == [2, 4]
    status, out, _ = run("predict", output, good_folder / "000.png", "--json")
    assert status in (WELL, 1)


@pytest.mark.usefixtures("brief")
def test_refused_on_the_command_line(
    run: Run, refused: Refused, good_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    command = (good_folder, "-o", tmp_path / "x", "--student", FIT)
    assert "trained step by step on the encoder itself" in refused("fit guided", *command)
    assert "needs at least 8 good pictures" in refused("fit knn", *command, "--shots 4")
    monkeypatch.setattr(distil, "LEAST", 0.9999)
    status, out, err = run("fit knn", *command)
    assert (status, out) == (ERROR, "")
    assert "does not see what its teacher sees" in err
    assert not [path.name for path in tmp_path.iterdir() if path.is_file()]

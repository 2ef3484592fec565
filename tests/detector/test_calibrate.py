"""What counts as evidence for a threshold; and a fit encodes every picture once, wherever its
features are kept.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from parts import Fitted, Part, Run, Write

import blemish
from blemish.backbones import VitBackbone, cache
from blemish.data.copies import nearly_same, thumbnail
from blemish.detector.calibrate import recalibrate_on_defects
from blemish.detector.predict import Detector
from blemish.errors import CalibrationError, DataError
from blemish.images import decode


def parts(picture: Part, count: int, first: int = 0) -> list[np.ndarray]:
    return [picture(seed) for seed in range(first, first + count)]


def evidence(detector: Detector) -> tuple[int, int, float | None]:
    """How many pictures the threshold is from, how many are copies of others, and its value."""
    assert detector.threshold is not None
    return detector.threshold.n, detector.manifest["data"]["copies"], detector.threshold.value


# --- Copies


@pytest.mark.parametrize("method", ["knn", "patchcore", "padim", "lda", "spade"])
def test_copies_of_training_pictures_are_no_evidence(
    method: str, picture: Part, small: Any
) -> None:
    few = parts(picture, 5)
    if method in ("knn", "patchcore"):  # of whose nearest features copies would be several
        small = {**small, "neighbours": 1}
    plain = blemish.fit(method, few, false_alarm_rate=0.2, **small)
    often = blemish.fit(method, few * 5, **small)
    assert evidence(plain)[:2] == (5, 0)
    assert evidence(often) == (5, 20, None)  # 25 would have been enough for 5 %
    assert often.threshold is not None
    assert "and there are 5; 20 more are copies, which count once" in often.threshold.reason
    with pytest.raises(CalibrationError, match="there are 5; 20 more are copies"):
        blemish.fit(method, few * 5, false_alarm_rate=0.05, **small)
    scores = often.manifest["calibration_scores"]
    assert len(scores) == 5
    if method in (
        "knn",
        "patchcore",
    ):  # their banks hold every patch of the five, and of the copies too
        assert scores == pytest.approx(plain.manifest["calibration_scores"], rel=1e-4)
        assert min(scores) > 0.001


def test_held_out_copies_are_no_evidence(picture: Part, small: Any) -> None:
    options = {"calibration_fraction": 0.5, **small}
    often = blemish.fit("knn", parts(picture, 10) * 4, **options)
    data = often.manifest["data"]
    held = set(data["calibrated"]) - set(
        data["fitted"]
    )  # what was learned from tells nothing either
    assert evidence(often)[:2] == (len(held), 20 - len(held))
    assert len(often.manifest["calibration_scores"]) == len(held) < 10


def test_one_picture_many_times(picture: Part, small: Any) -> None:
    for method in ("knn", "patchcore", "lda"):
        detector = blemish.fit(method, parts(picture, 1) * 4, **small)
        assert evidence(detector) == (0, 3, None)
        assert detector.threshold is not None
        assert detector.threshold.reason.endswith(
            "there are 0; all 4 pictures have the same content"
        )
        assert detector.predict(picture(0)).score == pytest.approx(0, abs=1e-3)
    with pytest.raises(CalibrationError, match="all 4 pictures have the same content"):
        blemish.fit("knn", parts(picture, 1) * 4, false_alarm_rate=0.3, **small)
    with pytest.raises(
        DataError, match="padim needs at least 2 readable training pictures, got 4, all of the same"
    ):
        blemish.fit("padim", parts(picture, 1) * 4, **small)


def test_copies_in_a_category_are_not_its_evidence(
    tmp_path: Path, picture: Part, write: Write, small: Any
) -> None:
    for seed in range(20):
        write(tmp_path / "bolt" / f"{seed:02d}.png", picture(seed))
        write(tmp_path / "nut" / f"{seed:02d}.png", picture(40 + seed % 4))
    (tmp_path / "pin").mkdir()
    for name in ("a", "b"):  # one picture twice is still the only one of its category
        write(tmp_path / "pin" / f"{name}.png", picture(90))
    detector = blemish.fit("knn", [tmp_path / name for name in ("bolt", "nut", "pin")], **small)
    assert {name: own.n for name, own in detector.thresholds.items()} == {
        "bolt": 20,
        "nut": 4,
        "pin": 0,
    }
    assert evidence(detector)[:2] == (24, 17)


def test_recalibrating_on_copies(picture: Part, fitted: Fitted) -> None:
    given = [*parts(picture, 4, 700) * 5, *parts(picture, 2)]
    again, _, left_out = blemish.recalibrate(fitted("knn"), given, false_alarm_rate=0.2)
    assert evidence(again)[:2] == (4, 16)
    assert left_out == 2
    assert len(again.manifest["data"]["calibrated"]) == 4
    with pytest.raises(CalibrationError, match="there are 4; 16 more are copies"):
        blemish.recalibrate(fitted("knn"), given)


def test_too_few_pictures_are_told_before_any_is_scored(
    picture: Part, fitted: Fitted, tmp_path: Path, write: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    for seed in range(12):
        write(tmp_path / "new" / f"{seed}.png", picture(700 + seed))
        write(tmp_path / "new" / f"{seed} again.png", picture(700 + seed))
        write(tmp_path / "old" / f"{seed}.png", picture(seed))
    detector = fitted("knn")
    scored: list[Any] = []

    def predict_many(self: Detector, sources: Any, **_: Any) -> Any:
        scored.extend(sources)
        raise AssertionError

    monkeypatch.setattr(Detector, "predict_many", predict_many)
    with pytest.raises(CalibrationError, match="there are 12; 12 more are copies, which count"):
        blemish.recalibrate(detector, tmp_path / "new")
    with pytest.raises(DataError, match="no picture is left to calibrate on"):
        blemish.recalibrate(detector, tmp_path / "old")
    few = sorted((tmp_path / "new").iterdir())
    more = [write(tmp_path / f"x{seed}" / "x.png", picture(900 + seed)) for seed in range(8)]
    with pytest.raises(CalibrationError, match=r"at least 19 normal parts .* there are 12"):
        blemish.recalibrate(detector, [*few, *more], group_by=r"new/(\d+)")
    with pytest.raises(CalibrationError, match=r"at least 19 labelled defects .* there are 12"):
        recalibrate_on_defects(detector, few, miss_rate=0.05)
    assert scored == []


def test_refining_with_copies(picture: Part, small: Any) -> None:
    detector = blemish.fit("lda", parts(picture, 8) * 2, normality="knn", **small)
    refined = blemish.refine(detector, good=parts(picture, 4, 50) * 3)
    assert (refined.good, refined.known) == (4, 8)
    assert evidence(refined.detector)[:2] == (12, 8)


def test_copies_are_told_on_the_command_line(
    tmp_path: Path, picture: Part, write: Write, run: Run
) -> None:
    for seed in range(24):
        write(tmp_path / "good" / f"{seed:02d}.png", picture(seed % 20))
    paler = np.clip(picture(0).astype(int) + 1, 0, 255).astype(np.uint8)
    write(tmp_path / "good" / "paler.png", paler)
    options = ["--backbone", "test_vit", "--weights", "random", "--image-size", "64"]
    status, out, err = run("fit", "knn", tmp_path / "good", "-o", tmp_path / "a.blemish", *options)
    assert status == 0, err
    assert (
        "Pictures: 25 used, 0 broken\n"
        "  4 are copies of others, which count once for the threshold\n" in out
    )
    assert (
        "  1 looks nearly the same as another: if it shows the same part, the threshold is less"
        in out
    )
    _, out, _ = run("inspect", tmp_path / "a.blemish")
    assert "4 are copies of others" in out
    assert "1 looks nearly the same" in out
    for seed in range(700, 720):
        write(tmp_path / "new" / f"{seed}.png", picture(seed))
        write(tmp_path / "new" / f"{seed}b.png", picture(seed))
    _, out, _ = run(
        "calibrate", tmp_path / "a.blemish", tmp_path / "new", "-o", tmp_path / "b.blemish"
    )
    assert "Pictures: 20 used; 20 copies of these; 0 broken" in out


# --- Nearly the same


def test_pictures_that_are_nearly_the_same() -> None:
    random = np.random.default_rng(0)
    surface = random.integers(0, 255, (8, 8, 3), dtype=np.uint8).repeat(12, 0).repeat(12, 1)
    other = random.integers(0, 255, (8, 8, 3), dtype=np.uint8).repeat(12, 0).repeat(12, 1)
    noisy = np.clip(surface + random.normal(0, 2, surface.shape), 0, 255).astype(np.uint8)
    smaller = surface[::2, ::2]
    even = [
        np.clip(120 + random.normal(0, 2, (96, 96, 3)), 0, 255).astype(np.uint8) for _ in range(3)
    ]
    for given, count in (
        ([], 0),
        ([surface, other], 0),
        ([surface, noisy], 1),
        ([surface, other, smaller, noisy, np.flip(surface, 1)], 2),
        ([surface, surface.astype(np.float32) / 255], 1),
        (even, 0),  # three pictures of an even surface are three pictures
    ):
        assert nearly_same([thumbnail(decode(pixels).pixels) for pixels in given]) == count


def test_nearly_the_same_in_blocks_is_the_loop(monkeypatch: pytest.MonkeyPatch) -> None:
    random = np.random.default_rng(1)
    drawn = [random.uniform(0, 255, (32, 32)).astype(np.float32) for _ in range(7)]
    shown = [
        drawn[random.integers(7)] + random.normal(0, 1.06, (32, 32)).astype(np.float32)
        for _ in range(40)
    ]
    expected = sum(
        any(np.sqrt(np.mean((a - b) ** 2)) < 1.5 for b in shown[:i]) for i, a in enumerate(shown)
    )
    assert 5 < expected < 35
    for block in (1, 7, 40, 1024):
        monkeypatch.setattr("blemish.data.copies._BLOCK", block)
        assert nearly_same(shown) == expected


# --- Each picture is encoded once


@contextmanager
def encoded(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    """How many pictures ViTs have encoded, call by call."""
    rows: list[int] = []
    forward = VitBackbone.forward

    def counting(self: VitBackbone, images: torch.Tensor, *arguments: Any, **named: Any) -> Any:
        rows.append(len(images))
        return forward(self, images, *arguments, **named)

    with monkeypatch.context() as patch:
        patch.setattr(VitBackbone, "forward", counting)
        yield rows


SAME = ("calibration_scores", "map_scale", "threshold")


@pytest.mark.parametrize("in_memory", [2**30, 60_000, 0])
@pytest.mark.parametrize("copies", [{}, {"rotations": 3, "flips": True}])
@pytest.mark.parametrize("method", ["knn", "patchcore", "padim", "lda", "spade"])
def test_a_fit_encodes_each_picture_once(
    method: str,
    copies: dict[str, Any],
    in_memory: int,
    tmp_path: Path,
    picture: Part,
    write: Write,
    small: Any,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for seed in range(9):
        write(tmp_path / "good" / f"{seed}.png", picture(seed))
    (tmp_path / "good" / "4.png").write_text("not a picture")
    bad = {"anomalies": [picture(200, defect=True)]} if method == "lda" else {}
    options = (
        {"descriptor_layers": (3,)} if method == "lda" else {}
    )  # a layer that the bank does not look at
    options |= {"batch_size": 3, **bad, **copies, **small}
    rows_of_one = 6 if copies else 1
    held = 2 if method == "padim" and copies else 0
    if held:
        held = len(blemish.fit(method, tmp_path / "good", **options).manifest["data"]["calibrated"])
    monkeypatch.setattr(cache, "IN_MEMORY", in_memory)
    with encoded(monkeypatch) as rows:
        kept = blemish.fit(method, tmp_path / "good", **options)
    assert sum(rows) == (8 - held) * rows_of_one + held + len(bad)
    monkeypatch.setattr(cache, "IN_MEMORY", 0)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "nowhere"))
    with encoded(monkeypatch) as rows:
        plain = blemish.fit(method, tmp_path / "good", **options)
    if held == 0:
        assert sum(rows) > 8 * rows_of_one + len(bad)  # nothing could be kept
    for name, tensor in plain.method.fitted_state().items():
        assert torch.equal(tensor, kept.method.fitted_state()[name]), name
    for name in SAME:
        if copies:  # in batches of other pictures the last bit may differ
            assert kept.manifest["map_scale"] == pytest.approx(
                plain.manifest["map_scale"], rel=1e-4
            )
        else:
            assert kept.manifest[name] == plain.manifest[name]
    assert kept.manifest["calibration_scores"] == pytest.approx(
        plain.manifest["calibration_scores"], rel=1e-4
    )


def test_refining_encodes_each_picture_once(
    picture: Part, small: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    good, bad = parts(picture, 6, 30), [picture(200 + seed, defect=True) for seed in range(3)]
    detector = blemish.fit(
        "lda", parts(picture, 20), normality="knn", descriptor_layers=(3,), **small
    )
    with encoded(monkeypatch) as rows:
        refined = blemish.refine(detector, good=good, anomalies=bad)
    assert (refined.good, refined.defects) == (6, 3)
    assert sum(rows) == 9

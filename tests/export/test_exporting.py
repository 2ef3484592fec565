"""A file that was exported says what its artifact says, and none is written that does not."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from exports import Altered, traced_once
from parts import part, settings_of, write_picture

import blemish
from blemish.detector.calibrate import recalibrate
from blemish.detector.predict import Detector
from blemish.engines import files
from blemish.engines.base import Engine, Outputs
from blemish.engines.chosen import open_engine
from blemish.errors import BlemishError, ConfigError, DataError, ExportError
from blemish.export import exporting
from blemish.export.exporting import Made, export
from blemish.export.proof import LIMITS
from blemish.types import Failure, Prediction

DEFECTS = {"anomalies": [part(200 + seed, defect=True) for seed in range(3)]}
AREA = {"roi": [[[0.1, 0.1], [0.9, 0.1], [0.9, 0.8], [0.1, 0.8]]]}
DISC = {"image_size": 128, "smoothing": 0.01, "top_fraction": 0.01, "false_alarm_rate": 0.2}
SIZES = {"scales": (64, 48), "map_head": "features", "score": "both", "trainable_blocks": 2}


@dataclass(frozen=True)
class Case:
    """A detector, and how it is exported.

    Attributes: draw: a part by its seed, with a defect or without.
    """

    method: str
    settings: dict[str, Any]
    draw: Callable[..., np.ndarray] = part
    ending: str = ".onnx"
    how: dict[str, Any] | None = None


def disc(seed: int, *, blue: bool = False, defect: bool = False) -> np.ndarray:
    """A dark, woven disc on a light, plain ground, about the middle."""
    random = np.random.default_rng(seed)
    y, x = np.mgrid[:128, :128] / 128
    down, right = 0.5 + random.uniform(-0.05, 0.05, 2)
    pixels = 225 + random.normal(0, 2, (128, 128, 3))
    woven = 70 + 25 * np.sin(40 * x) + 15 * np.cos(35 * y)
    inside = (y - down) ** 2 + (x - right) ** 2 < 0.09
    colours = woven[..., None] + random.normal(0, 4, pixels.shape) + [0, 0, 90 * blue]
    pixels[inside] = colours[inside]
    if defect:
        pixels[60:75, 60:75] = (250, 40, 40)
    return np.asarray(np.clip(pixels, 0, 255), dtype=np.uint8)


CASES = {
    "plain": Case("patchcore", {}),
    "a compressed bank": Case("patchcore", {"bank_loss": 0.3, "neighbours": 1}),
    "two encoders": Case("patchcore", {"second": "test_efficientnet"}),
    "lda, two encoders": Case("lda", {**DEFECTS, "second": "test_efficientnet"}, ending=".xml"),
    "categories and a foreground": Case(
        "knn", {**DISC, "foreground": "auto"}, disc, how={"input": "pixels"}
    ),
    "tiles and an area": Case(
        "patchcore", {**AREA, "tile": 64}, partial(part, height=150, width=100), ".xml"
    ),
    "two looks": Case(
        "atacnet",
        {**DEFECTS, "backbone": "test_resnet", "layers": (2,), "calibration_fraction": 0.8},
    ),
    "votes": Case("guided", {**SIZES, **AREA, "calibration_fraction": 0.8}, ending=".xml"),
}
EVERY = [*[*CASES][:-1], pytest.param("votes", marks=pytest.mark.slow)]


@dataclass(frozen=True)
class Pair:
    """An artifact, as PyTorch runs it in fp32, and the file that was made of it."""

    path: Path
    artifact: Detector
    made: Made
    case: Case

    @property
    def exported(self) -> Detector:
        return self.made.detector


@pytest.fixture(scope="module", autouse=True)
def tracing() -> Iterator[None]:
    with traced_once():
        yield


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Pair]:
    """`pair("plain")`: of that case, the same objects each time."""
    made: dict[str, Pair] = {}

    def get(name: str) -> Pair:
        if name not in made:
            made[name] = _made(CASES[name], tmp_path_factory.mktemp("pair"))
        return made[name]

    return get


def _made(case: Case, folder: Path) -> Pair:
    good: list[Any] = [case.draw(seed) for seed in range(24)]
    if case.draw is disc:
        good = [folder / name for name in ("blue", "grey")]
        for place in good:
            for seed in range(8):
                blue = place.name == "blue"
                write_picture(place / f"{seed}.png", disc(seed + 50 * blue, blue=blue))
    fitted = blemish.fit(case.method, good, **{**settings_of(case.method), **case.settings})
    path = fitted.save(folder / "part.blemish")
    made = export(path, folder / f"part{case.ending}", **(case.how or {}))
    return Pair(path, blemish.load(path, device="cpu", precision="fp32"), made, case)


def check_same(found: Prediction, wanted: Prediction, unit: float) -> None:
    """Both say the same of a picture; scores to a thousandth of `unit`."""
    near = partial(pytest.approx, abs=1e-3 * unit, rel=0)
    assert found.score == near(wanted.score)
    assert np.abs(found.anomaly_map - wanted.anomaly_map).max() <= 1e-3 * unit
    assert np.abs(found.heatmap - wanted.heatmap).max() <= 1e-3 * unit
    for name in ("source", "label", "threshold", "p_value", "votes", "category", "notes", "size"):
        assert getattr(found, name) == getattr(wanted, name), name
    assert found.category_assigned == wanted.category_assigned
    assert (found.area is None) == (wanted.area is None)
    assert found.box == pytest.approx(wanted.box, abs=1e-4)
    for name, most in (("saliency", 1e-4), ("foreground", 0), ("descriptor", 1e-3)):
        one, other = getattr(found, name), getattr(wanted, name)
        assert (one is None) == (other is None), name
        assert one is None or np.abs(one.astype(float) - other).max() <= most, name
    assert found.regions is not None
    assert wanted.regions is not None
    assert [region.box for region in found.regions] == [region.box for region in wanted.regions]
    assert np.array_equal(found.mask, wanted.mask)


@pytest.mark.parametrize("name", EVERY)
def test_the_file_predicts_as_the_artifact(pair: Callable[[str], Pair], name: str) -> None:
    both = pair(name)
    draw = both.case.draw
    pictures = [draw(70), draw(71, defect=True), draw(72), draw(73, defect=True), draw(74)]
    if draw is disc:
        pictures += [disc(75, blue=True), disc(76, blue=True, defect=True)]
    assert both.artifact.threshold is not None
    wanted = list(both.artifact.predict_many(pictures))
    found = list(both.exported.predict_many(pictures, batch_size=3))
    for one, other in zip(found, wanted, strict=True):
        assert isinstance(one, Prediction)
        assert isinstance(other, Prediction)
        check_same(one, other, both.made.proof.deviation)
    # What could be missing in both alike.
    assert {one.label for one in found} >= {1}
    assert found[0].descriptor is not None
    assert both.exported.describes
    assert both.exported.descriptor_space == both.artifact.descriptor_space
    assert any(one.regions for one in found)
    compression = both.exported.record.compression
    assert compression == both.artifact.record.compression
    if name == "a compressed bank":
        assert compression is not None
        assert compression.dims < compression.width
    first = found[0]
    assert (first.votes is not None) == (name == "votes")
    assert (both.exported.engine.input == "pixels") == (draw is disc)
    assert (first.foreground is not None) == (first.category_assigned) == (draw is disc)
    assert (first.saliency is not None) == (first.box is not None) == (name == "two looks")
    if draw is disc:
        assert [one.category for one in found] == ["grey"] * 5 + ["blue"] * 2


def test_what_is_made_is_what_is_loaded(pair: Callable[[str], Pair]) -> None:
    both = pair("plain")
    detector = blemish.load(str(both.made.path))
    record = detector.record.export
    assert record is not None
    assert (detector.engine.name, detector.device, detector.precision) == (
        "onnxruntime",
        "cpu",
        "fp32",
    )
    assert (record.kind, record.precision, record.input) == ("onnx", "fp32", "normalised")
    assert dict(record.proof) == both.made.proof.to_dict()
    assert both.made.recalibrated is False
    assert record.source == hashlib.sha256(both.path.read_bytes()).hexdigest()
    told = detector.record.to_dict()
    assert {**told, "export": None} == {**both.artifact.record.to_dict(), "export": None}
    check_same(
        detector.predict(part(80, defect=True)),
        both.exported.predict(part(80, defect=True)),
        both.made.proof.deviation,
    )


@pytest.mark.parametrize("name", ["plain", "a compressed bank", "two encoders"])
def test_either_engine_runs_an_onnx_file(pair: Callable[[str], Pair], name: str) -> None:
    both = pair(name)
    detector = blemish.load(both.made.path, engine="openvino", threads=1)
    assert detector.engine.name == "openvino"
    for seed in (90, 91):
        picture = part(seed, defect=seed == 91)
        wanted = both.artifact.predict(picture)
        check_same(detector.predict(picture), wanted, both.made.proof.deviation)


def test_it_is_narrowed_as_the_artifact_is(pair: Callable[[str], Pair], tmp_path: Path) -> None:
    both = pair("plain")
    corner = [[[0.0, 0.5], [0.5, 0.5], [0.5, 1.0], [0.0, 1.0]]]
    narrow = both.exported.within(ignore=corner)
    picture = part(60, defect=True)
    seen, wanted = narrow.predict(picture), both.artifact.within(ignore=corner).predict(picture)
    check_same(seen, wanted, both.made.proof.deviation)
    assert seen.score < both.exported.predict(picture).score
    with pytest.raises(ConfigError, match="narrowed"):
        narrow.save(tmp_path / "narrow.onnx")


def test_it_is_evaluated_as_the_artifact_is(pair: Callable[[str], Pair], mvtec: Path) -> None:
    both = pair("plain")
    found, wanted = (blemish.evaluate(one, mvtec) for one in (both.exported, both.artifact))
    assert wanted.image_auroc is not None
    for name in ("counts", "confusion", "image_auroc", "regions"):
        assert getattr(found, name) == getattr(wanted, name), name
    assert found.pixel_auroc == pytest.approx(wanted.pixel_auroc, abs=1e-4)
    assert found.aupro == pytest.approx(wanted.aupro, abs=1e-4)


@pytest.mark.parametrize("name", ["plain", "tiles and an area"])
def test_calibrated_it_is_saved_and_loaded(
    pair: Callable[[str], Pair], name: str, tmp_path: Path
) -> None:
    both = pair(name)
    good = [both.case.draw(seed) for seed in range(20, 44)]
    detector, failures, left_out = recalibrate(both.exported, good, false_alarm_rate=0.2)
    assert (failures, left_out) == ([], 4)  # it has learned from the first four
    saved = detector.save(tmp_path / f"again{both.case.ending}")
    again = blemish.load(saved)
    assert again.record == detector.record
    assert again.threshold is not None
    assert (again.threshold.n, again.threshold.rate) == (20, 0.2)
    scores = sorted(both.artifact.predict(picture).score for picture in good[4:])
    near = partial(pytest.approx, abs=1e-3 * both.made.proof.deviation)
    assert again.threshold.value == near(scores[16])  # ceil(21 · 0.8) = 17, from 1
    assert again.record.export == both.exported.record.export
    assert files.read(saved).model == files.read(both.made.path).model
    assert files.read(saved).weights == files.read(both.made.path).weights


# What is not the same is not written


def shifted(by: float, of: str) -> Callable[[Outputs], Outputs]:
    """One value of an output is another."""

    def change(found: Outputs) -> Outputs:
        values = getattr(found, of).copy()
        values.flat[-1] += by
        return replace(found, **{of: values})

    return change


@pytest.mark.parametrize("of", ["score", "map"])
@pytest.mark.parametrize("by", [1e-2, -1e-2, np.nan, np.inf])
def test_over_the_limit_nothing_is_written(
    pair: Callable[[str], Pair], of: str, by: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    both = pair("plain")
    moved = shifted(by * both.made.proof.deviation, of)
    _alter(monkeypatch, moved)
    (tmp_path / "part.onnx").write_bytes(b"an earlier one")
    what = "scores" if of == "score" else "anomaly maps"
    amount = "nan" if np.isnan(by) else "inf" if np.isinf(by) else "0.01"
    wanted = f"not written: its {what} differ from the detector's by up to {amount}"
    with pytest.raises(ExportError, match=wanted) as told:
        export(both.path, tmp_path / "part.onnx")
    assert "at most 0.001 are allowed in fp32" in str(told.value)
    with pytest.raises(ExportError, match=wanted):
        export(both.path, tmp_path / "other.xml")
    assert [each.name for each in tmp_path.iterdir()] == ["part.onnx"]
    assert (tmp_path / "part.onnx").read_bytes() == b"an earlier one"


def test_below_the_limit_it_is_written(
    pair: Callable[[str], Pair], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    both = pair("plain")
    _alter(monkeypatch, shifted(5e-4 * both.made.proof.deviation, "map"))
    made = export(both.path, tmp_path / "part.onnx")
    assert made.proof.map == pytest.approx(5e-4, rel=0.2)
    assert made.proof.score < 1e-4
    assert made.path.is_file()


def test_a_graph_of_another_form_is_not_written(
    pair: Callable[[str], Pair], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _alter(monkeypatch, lambda found: replace(found, map=found.map[:, :-1]))
    with pytest.raises(ExportError, match="map is not of the form"):
        export(pair("plain").path, tmp_path / "part.onnx")
    assert [*tmp_path.iterdir()] == []


def test_pictures_of_ones_own_are_what_is_compared_by(
    pair: Callable[[str], Pair], tmp_path: Path
) -> None:
    both = pair("plain")
    broken = tmp_path / "broken.png"
    broken.write_bytes(b"no picture")
    made = export(both.path, tmp_path / "a.onnx", pictures=[part(31), broken, part(32)])
    proof = made.proof
    assert (proof.pictures, proof.of, proof.rank_correlation) == (2, "given", None)
    assert made.recalibrated is False
    with pytest.raises(DataError, match="none of the pictures"):
        export(both.path, tmp_path / "b.onnx", pictures=[broken])
    assert not (tmp_path / "b.onnx").exists()
    # Those to set a threshold by are compared, too, and change none that holds.
    made = export(both.path, tmp_path / "c.onnx", good=[part(seed) for seed in range(40, 60)])
    assert (made.proof.pictures, made.proof.of, made.recalibrated) == (20, "given", False)
    assert made.detector.threshold == both.artifact.threshold


def _alter(patch: pytest.MonkeyPatch, change: Callable[[Outputs], Outputs]) -> None:
    """From now on, an exported graph is run by an engine of which the outputs are changed."""

    def altered(path: Path, **how: Any) -> tuple[Engine, dict[str, Any]]:
        engine, manifest = open_engine(path, **how)
        return Altered(engine, change), manifest

    patch.setattr(exporting, "open_engine", altered)


@pytest.fixture
def coarse(pair: Callable[[str], Pair], tmp_path: Path) -> Path:
    """An artifact that was made in bf16."""
    detector = pair("plain").artifact
    return detector.with_record(replace(detector.record, precision="bf16")).save(
        tmp_path / "bf16.blemish"
    )


def test_what_was_made_in_bf16_needs_good_pictures(coarse: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as told:
        export(coarse, tmp_path / "part.onnx")
    said = str(told.value)
    assert "are of scores in bf16, and those in fp32 differ" in said
    assert said.endswith("--good FOLDER; or fit it with --precision fp32")
    assert not (tmp_path / "part.onnx").exists()
    bare = blemish.load(coarse, precision="fp32").with_threshold(None).save(tmp_path / "b.blemish")
    made = export(bare, tmp_path / "bare.onnx")  # has no threshold that could be another's
    assert (made.recalibrated, made.detector.threshold) == (False, None)


@pytest.mark.parametrize(("last", "said"), [(24, "no picture is left"), (30, "and there are 6;")])
def test_too_few_good_pictures_are_told_before_the_graph_is_made(
    coarse: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, last: int, said: str
) -> None:
    good = [write_picture(tmp_path / f"{seed}.png", part(seed)) for seed in range(10, last)]
    monkeypatch.setattr(exporting, "to_onnx", _not_to_be_called)
    with pytest.raises(BlemishError, match=said):  # it has learned from 23 and those before
        export(coarse, tmp_path / "part.onnx", good=good)


@pytest.mark.parametrize("rate", [None, 0.25])
def test_its_thresholds_are_of_the_graphs_scores(
    coarse: Path, tmp_path: Path, rate: float | None
) -> None:
    good = tmp_path / "good"
    for seed in range(18, 44):  # it has learned from the first six
        write_picture(good / f"{seed}.png", part(seed))
    (good / "broken.png").write_bytes(b"no picture")
    made = export(coarse, tmp_path / "part.onnx", good=good, false_alarm_rate=rate)
    assert (made.recalibrated, made.left_out) == (True, 6)
    assert [Path(one.source).name for one in made.failures] == ["broken.png"]
    detector = blemish.load(made.path)
    threshold = detector.threshold
    assert threshold is not None
    assert (threshold.n, threshold.rate, threshold.method) == (20, rate or 0.05, "split conformal")
    assert detector.record.precision == "fp32"
    new = [good / f"{seed}.png" for seed in range(24, 44)]
    found = [one for one in detector.predict_many(new) if not isinstance(one, Failure)]
    scores = [one.score for one in found]
    assert sorted(detector.record.calibration_scores) == pytest.approx(sorted(scores), abs=1e-7)
    place = 20 if rate is None else 16  # ceil(21 · (1 - rate))
    assert threshold.value == pytest.approx(sorted(scores)[place - 1], abs=1e-7)
    assert made.proof.of == "given"
    assert made.proof.pictures == 20  # what it has learned says little of new pictures


def test_openvino_in_bf16(pair: Callable[[str], Pair], tmp_path: Path) -> None:
    good = [part(seed) for seed in range(30, 60)]
    with pytest.MonkeyPatch.context() as patch:
        # The scores of this small detector lie so closely that rounding is large beside them.
        patch.setitem(LIMITS, "bf16", 10.0)
        patch.setattr("blemish.export.proof.LEAST_CORRELATION", 0.5)
        made = export(pair("plain").path, tmp_path / "x.xml", precision="bf16", good=good)
    assert made.recalibrated
    again = blemish.load(made.path)
    assert again.record.export is not None
    assert again.record.export.precision == "bf16"
    assert again.record.precision == again.precision
    assert again.threshold is not None
    assert again.threshold.n == 30
    assert {each.suffix for each in tmp_path.iterdir()} == {".xml", ".bin"}


@pytest.mark.slow
@pytest.mark.parametrize("ending", [".onnx", ".xml"])
def test_int8_from_end_to_end(
    pair: Callable[[str], Pair], ending: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    good = [part(seed) for seed in range(30, 60)]
    monkeypatch.setitem(LIMITS, "int8", 10.0)
    monkeypatch.setattr("blemish.export.proof.LEAST_CORRELATION", 0.5)
    made = export(pair("plain").path, tmp_path / f"x{ending}", precision="int8", good=good)
    assert made.recalibrated
    detector = blemish.load(made.path)
    assert (detector.precision, detector.record.precision) == ("int8", "int8")
    scores = [detector.predict(picture).score for picture in good]
    assert sorted(detector.record.calibration_scores) == pytest.approx(sorted(scores), rel=1e-4)
    assert max(scores) != max(pair("plain").artifact.predict(picture).score for picture in good)
    assert detector.predict(part(99, defect=True)).label == 1


# What does not go together, and what an exported file cannot do


@pytest.mark.parametrize(
    ("name", "how", "said"),
    [
        ("part.onnx", {"precision": "fp8"}, "unknown precision 'fp8'. Known: fp32, bf16, fp16"),
        ("part.onnx", {"precision": "bf16"}, r"bf16 is for OpenVINO \(.xml\)"),
        ("part.blemish", {}, "the name of an exported file ends in .onnx or .xml"),
        ("part", {}, "the name of an exported file ends in"),
        ("part.onnx", {"precision": "int8"}, "int8 moves every score a little.*--good FOLDER$"),
        ("part.xml", {"precision": "bf16"}, "bf16 moves every score a little.*--good FOLDER$"),
        ("part.onnx", {"input": "bytes"}, "normalised or pixels"),
        ("broken.png/part.onnx", {}, "broken.png"),
        (
            "part.onnx",
            {"precision": "int8", "good": ["broken.png"] * 8},
            "int8 needs at least 9 good pictures, got 8",
        ),
        ("part.onnx", {"false_alarm_rate": 0.1, "good": ["broken.png"]}, "rate.*blemish calibrate"),
    ],
)
def test_what_cannot_be_exported_is_known_at_once(
    pair: Callable[[str], Pair],
    name: str,
    how: dict[str, Any],
    said: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    both = pair("plain")
    monkeypatch.setattr(exporting, "to_onnx", _not_to_be_called)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "broken.png").write_bytes(b"no folder")
    with pytest.raises(BlemishError, match=said):
        export(both.path, tmp_path / name, **how)
    assert [each.name for each in tmp_path.iterdir()] == ["broken.png"]


def test_an_exported_file_is_not_exported(
    pair: Callable[[str], Pair], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(exporting, "to_onnx", _not_to_be_called)
    with pytest.raises(BlemishError, match="name the artifact that it was exported from"):
        export(pair("plain").made.path, tmp_path / "again.onnx")


def _not_to_be_called(*arguments: Any, **named: Any) -> bytes:
    raise AssertionError("the graph was traced")


def test_what_needs_the_method_says_so(pair: Callable[[str], Pair]) -> None:
    detector = pair("plain").exported
    for doing in (
        lambda: detector.method,
        lambda: detector.with_scales([64, 48]),
        lambda: [*detector.predict_many([part(1)], adapt="online")],
    ):
        with pytest.raises(ConfigError, match="PyTorch and the artifact that it was exported from"):
            doing()

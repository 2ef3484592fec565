"""What a comparison of a graph with its detector finds, and what it lets pass."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.stats
from exports import traced_once
from parts import Fitted, part, settings_of

import blemish
from blemish.detector.predict import Detector
from blemish.engines.base import Engine, Input, Outputs
from blemish.errors import ExportError
from blemish.export.exporting import export
from blemish.export.proof import LIMITS, Proof, compare


class Saying(Engine):
    """Says scores that were written down, one after the other."""

    name, device, precision = "onnxruntime", "cpu", "fp32"
    top_fraction, scores_by_map = 0.01, True

    def __init__(self, scores: np.ndarray) -> None:
        self._left = list(scores)

    def run(self, images: Input, *, category: bool = False) -> Outputs:
        told = np.array([self._left.pop(0) for _ in images], np.float32)
        return Outputs(score=told, map=np.zeros((len(images), 4, 4), np.float32))

    def save(self, path: Any, manifest: Any) -> Any:
        raise AssertionError("it has no file")


def compared(
    detector: Detector, ours: Any, theirs: Any, precision: str = "int8", rounded: Any = None
) -> Proof:
    """The proof where a detector says these scores, a graph those, and PyTorch others where it
    rounds."""
    saying = Detector(Saying(ours), detector.record)
    pictures = [part(seed) for seed in range(100, 100 + len(ours))]
    own = None if rounded is None else Saying(rounded)
    return compare(
        saying, Saying(theirs), pictures, precision=precision, version="none 1.0", rounded=own
    )


def test_the_order_of_pictures_is_spearmans(fitted: Fitted) -> None:
    detector = fitted("patchcore")
    for seed in range(8):
        random = np.random.default_rng(seed)
        ours = random.normal(size=5 + seed).round(seed % 3)  # with ties
        theirs = (ours + random.normal(size=5 + seed)).round(seed % 2)
        found = compared(detector, ours, theirs)
        expected = scipy.stats.spearmanr(ours, theirs).statistic
        assert found.rank_correlation == pytest.approx(expected, abs=1e-9)
        apart = np.abs(ours.astype(np.float32).astype(float) - theirs.astype(np.float32))
        stored = np.std(detector.record.calibration_scores)
        assert found.deviation == pytest.approx(stored)
        assert found.score == pytest.approx(apart.max() / stored)
        assert found.mean_score == pytest.approx(apart.mean() / stored)
    for constant in (compared(detector, [1, 1, 1], [1, 2, 3]), compared(detector, [1, 2], [1, 2])):
        assert constant.rank_correlation is None


def test_a_graph_that_ranks_otherwise_is_refused(fitted: Fitted) -> None:
    detector = fitted("patchcore")
    step = 0.001 * float(np.std(detector.record.calibration_scores))
    ours = step * np.arange(10)
    proof = compared(detector, ours, ours[::-1])
    assert proof.rank_correlation == pytest.approx(-1)
    assert proof.score <= LIMITS["int8"]
    for precision in ("int8", "bf16"):
        assert "it ranks pictures otherwise than the detector (correlation -1.0000" in proof.fault(
            precision
        )
    assert compared(detector, ours, ours + step / 10).fault("int8") == ""
    unknown = compared(detector, ours[:2], ours[:2])
    assert "correlation unknown" in unknown.fault("int8")
    # What rounds nothing is judged by its differences alone.
    assert compared(detector, ours[:2], ours[:2], "fp32").fault("fp32") == ""


def test_what_pytorch_itself_rounds_may_be_rounded(fitted: Fitted) -> None:
    detector = fitted("patchcore")
    unit = float(np.std(detector.record.calibration_scores))
    ours = unit * np.arange(10.0)
    rounded, within, beyond = ours.copy(), ours.copy(), ours.copy()
    rounded[4] += 0.4 * unit
    within[7] -= 0.59 * unit  # of 0.4 half as much again is 0.6
    beyond[7] -= 0.61 * unit
    found = compared(detector, ours, within, "bf16", rounded)
    assert found.fault("bf16") == ""
    assert found.limit == pytest.approx(0.6, rel=1e-3)
    assert found.map_limit == LIMITS["bf16"]
    assert "0.61 deviations" in compared(detector, ours, beyond, "bf16", rounded).fault("bf16")
    assert "0.59 deviations" in compared(detector, ours, within, "bf16").fault("bf16")
    # The same of the order: it may be half as far from that of the detector again.
    step = 1e-3 * unit
    ours = step * np.arange(10.0)
    rounded, other = ours[[1, 0, 3, 2, *range(4, 10)]], ours[::-1]
    found = compared(detector, ours, rounded, "bf16", rounded)
    away = 1 - scipy.stats.spearmanr(ours, rounded).statistic
    assert found.least_correlation == pytest.approx(1 - 1.5 * away)
    assert found.fault("bf16") == ""
    assert "ranks pictures otherwise" in compared(detector, ours, other, "bf16", rounded).fault(
        "bf16"
    )


def test_without_stored_scores_the_pictures_give_the_unit(fitted: Fitted) -> None:
    detector = fitted("patchcore")
    bare = detector.with_record(replace(detector.record, calibration_scores=()))
    found = compared(bare, [1.0, 2.0, 3.0], [1.0, 2.0, 3.5])
    assert found.unit_of == "compared pictures"
    assert found.deviation == pytest.approx(np.std([1, 2, 3]))
    assert found.score == pytest.approx(0.5 / found.deviation)


def test_a_wrong_engine_is_found_by_generated_pictures(tmp_path: Path) -> None:
    """OpenVINO 2026.4 computes a square product of this network as if it were transposed."""
    good = [part(seed) for seed in range(24)]
    classifier = {"recipe": "paper-classifier", "layers": (1, 2)}
    defects = {"anomalies": [part(200 + seed, defect=True) for seed in range(3)]}
    fitted = blemish.fit("atacnet", good, **{**settings_of("atacnet"), **defects, **classifier})
    path = fitted.save(tmp_path / "part.blemish")
    artifact = blemish.load(path, precision="fp32", device="cpu")
    fault = ""
    with traced_once():
        assert export(path, tmp_path / "part.onnx").proof.of == "generated"
        try:
            found = export(path, tmp_path / "part.xml").detector.predict(part(90)).anomaly_map
        except ExportError as error:
            fault = str(error)
    if fault:
        assert "anomaly maps differ from the detector's by up to" in fault
        assert not (tmp_path / "part.xml").exists()
    else:  # a version that computes it right
        wanted = artifact.predict(part(90)).anomaly_map
        assert np.abs(wanted - found).max() <= 1e-3 * np.std(artifact.record.calibration_scores)

"""What cannot be refined says so."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
from parts import Fitted, Write

import blemish
from blemish.errors import ConfigError, DataError


def test_only_a_detector_that_defects_can_teach(
    fit: Fitted, fitted: Fitted, good: Any, bad: Any
) -> None:
    trained = ("epochs=1", "min_steps=2", "train_batch_size=4", "width=32", "heads=4", "depth=1")
    others = [
        fitted("patchcore"),
        fit(good(6), normality="padim", normality_settings=("channels=8",)),
        fit(good(6), normality="agpnet", normality_settings=trained),
    ]
    for detector in others:
        with pytest.raises(
            ConfigError,
            match=f"a detector of {detector.method.name} cannot be refined, only one of",
        ):
            blemish.refine(detector, good=good(2, 60), anomalies=bad(1))


def test_only_a_detector_for_one_kind_of_part(
    fit: Fitted, good_folder: Path, tmp_path: Path, write: Write, good: Any, bad: Any
) -> None:
    for number, part in enumerate(good(4)):
        write(tmp_path / "negative" / "good" / f"{number}.png", 255 - part)
    shutil.move(good_folder, tmp_path / "part" / "good")
    detector = fit([tmp_path / "part" / "good", tmp_path / "negative" / "good"])
    assert detector.categories == ("negative", "part")
    with pytest.raises(
        ConfigError, match="several categories cannot be refined: fit it again, or one for each"
    ):
        blemish.refine(detector, anomalies=bad(1))


def test_something_must_be_given(fit: Fitted, good: Any) -> None:
    with pytest.raises(ConfigError, match="refine: name good pictures, defects or both"):
        blemish.refine(fit(good(3)))
    with pytest.raises(DataError, match="anomalies: there is no picture of a defect"):
        blemish.refine(fit(good(3)), anomalies=[])

"""Predictions by a detector of several categories: by which threshold, and of which category."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from parts import Fitted, Part, Write

import blemish
from blemish import artifact
from blemish.cli import look
from blemish.detector.predict import Detector
from blemish.errors import ConfigError
from blemish.types import Prediction, Sample


@pytest.fixture
def two(fitted: Fitted) -> Detector:
    """A detector that says it knows nuts and bolts: bolts have a threshold of their own, nuts had
    too few pictures.
    """
    plain = fitted()
    assert plain.threshold is not None
    strict = replace(plain.threshold, value=-1.0)
    none = replace(plain.threshold, value=None, reason="too few")
    thresholds = {"bolt": strict, "nut": none}
    return plain.with_record(
        replace(plain.record, categories=("bolt", "nut"), thresholds=thresholds)
    )


def test_the_category_decides_the_threshold(two: Detector, picture: Part, tmp_path: Path) -> None:
    common = two.threshold.value if two.threshold else None
    loaded = blemish.load(two.save(tmp_path / "x.blemish"), device="cpu", precision="fp32")
    for detector in (two, loaded):
        assert detector.categories == ("bolt", "nut")
        for category, expected in {"": (common, 0), "bolt": (-1.0, 1), "nut": (common, 0)}.items():
            found = detector.predict(picture(1), category)
            assert (found.threshold, found.label, found.category) == (*expected, category)
    assert two.with_threshold(two.threshold).predict(picture(1), "bolt").threshold == common
    assert two.with_threshold(None).predict(picture(1), "bolt").label is None


def test_a_sample_says_its_category_itself(
    two: Detector, picture: Part, write: Write, tmp_path: Path
) -> None:
    path = write(tmp_path / "0.png", picture(1))
    samples = [Sample(path=path, category=category) for category in ("bolt", "nut", "pin", "")]
    folder = Sample(path=tmp_path, category="bolt")

    def judged(sources: list[Any], category: str = "") -> list[tuple[str, int | None]]:
        results = list(two.predict_many(sources, category=category))
        return [(each.category, each.label) for each in results if isinstance(each, Prediction)]

    bolt, nut, none = ("bolt", 1), ("nut", 0), ("", 0)
    assert judged([*samples, path, folder]) == [bolt, nut, none, none, none, bolt]
    assert judged([*samples, path], "bolt") == [bolt, nut, none, bolt, bolt]


def test_a_category_that_it_does_not_know(two: Detector, picture: Part, fitted: Fitted) -> None:
    with pytest.raises(ConfigError, match="unknown category 'bold'; did you mean 'bolt'"):
        list(two.predict_many([], category="bold"))
    for category in ("bolt", "auto"):
        with pytest.raises(ConfigError, match="knows no categories"):
            fitted().predict(picture(1), category)


def test_a_threshold_by_hand_judges_every_category(
    two: Detector, picture: Part, tmp_path: Path
) -> None:
    path = two.with_threshold(-2).save(tmp_path / "x.blemish")
    strict = blemish.load(path, device="cpu", precision="fp32")
    for category in ("", "bolt", "nut"):
        prediction = strict.predict(picture(1), category)
        assert (prediction.threshold, prediction.label) == (-2.0, 1)
    assert "Set by hand" in strict.manifest["threshold"]["guarantee"]
    with pytest.raises(ConfigError, match="a number is needed"):
        two.with_threshold("high")  # type: ignore[arg-type]


def test_an_artifact_that_cannot_tell_categories_says_so(two: Detector, picture: Part) -> None:
    prediction = two.predict(picture(1))
    assert (prediction.category, prediction.category_assigned) == ("", False)
    assert "judged by the common threshold of all categories" in prediction.notes[0]
    assert two.predict(picture(1), "bolt").notes == ()
    with pytest.raises(ConfigError, match="categories were told; name one of bolt, nut"):
        two.predict(picture(1), "auto")


def shown(level: int, seed: int, size: tuple[int, int] = (64, 64)) -> np.ndarray:
    drawn = np.random.default_rng(seed).normal(level, 8, (*size, 3))
    return np.clip(drawn, 0, 255).astype(np.uint8)


@pytest.fixture
def mixed(small: Any, tmp_path: Path, write: Write) -> Detector:
    """A detector of dark and of light pictures."""
    for name, level in {"dark": 40, "light": 200}.items():
        for index in range(22):
            write(tmp_path / name / f"{index}.png", shown(level, level + index))
    return blemish.fit("knn", [tmp_path / "dark", tmp_path / "light"], **small)


@pytest.mark.parametrize("category", ["", "auto"])
def test_a_category_that_nobody_gave_is_told_by_the_features(
    mixed: Detector, category: str, tmp_path: Path, write: Write
) -> None:
    levels = [200, 40, 40, 200, 40]
    pictures = [shown(level, seed, (50, 70)) for seed, level in enumerate(levels)]
    expected = ["light" if level == 200 else "dark" for level in levels]
    loaded = blemish.load(mixed.save(tmp_path / "x.blemish"), device="cpu", precision="fp32")
    for detector in (mixed, loaded, mixed.with_threshold(mixed.threshold)):
        results = detector.predict_many(pictures, category=category, batch_size=2)
        found = [result for result in results if isinstance(result, Prediction)]
        assert [prediction.category for prediction in found] == expected
        assert all(prediction.category_assigned for prediction in found)
        own = [detector.threshold_for(name).value for name in expected]  # type: ignore[union-attr]
        assert [prediction.threshold for prediction in found] == own
    file = write(tmp_path / "0.png", pictures[0])
    said = [Sample(path=file, category=name) for name in ("dark", "pin", "")]
    results = list(mixed.predict_many([*said, file], category=category))
    assert [(r.category, r.category_assigned) for r in results] == [  # type: ignore[union-attr]
        ("dark", False), ("", False), ("light", True), ("light", True)
    ]  # fmt: skip
    named = mixed.predict(pictures[0], "dark")
    assert (named.category, named.category_assigned) == ("dark", False)
    assert named.score == pytest.approx(found[0].score, rel=1e-4)


def test_one_kind_of_part_has_no_category_to_tell(fitted: Fitted, picture: Part) -> None:
    assert "category_features" not in fitted().manifest
    prediction = fitted().predict(picture(1))
    assert (prediction.category, prediction.category_assigned, prediction.notes) == ("", False, ())


def test_an_artifact_from_before_there_were_categories(
    fitted: Fitted, tmp_path: Path, picture: Part
) -> None:
    path = fitted().save(tmp_path / "x.blemish")
    tensors, manifest = artifact.read(path)
    for key in ("categories", "thresholds", "shots"):
        del manifest[key]
    detector = blemish.load(artifact.write(path, tensors, manifest), device="cpu", precision="fp32")
    assert (detector.categories, detector.thresholds) == ((), {})
    assert detector.predict(picture(1)) == fitted().predict(picture(1))
    assert list(look.artifact_facts(artifact.read(path)[1]))


def test_other_sizes_have_no_threshold_of_any_category(fitted: Fitted) -> None:
    one, limit = fitted("guided"), fitted("knn").threshold
    assert limit is not None
    record = replace(one.record, categories=("bolt",), threshold=limit, thresholds={"bolt": limit})
    larger = one.with_record(record).with_scales((96,))
    for category in ("", "bolt"):
        threshold = larger.threshold_for(category)
        assert threshold is not None
        assert threshold.value is None
        assert "other sizes" in threshold.reason

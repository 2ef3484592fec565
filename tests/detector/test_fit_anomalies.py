"""`fit` with labelled defects: which pictures are learned from, what the manifest says of them, and
how they train.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from parts import Part
from torch import Tensor

import blemish
from blemish.data import layouts
from blemish.data.pictures import labelled_defects
from blemish.detector.fit import configure
from blemish.detector.predict import Detector
from blemish.errors import ConfigError, DataError
from blemish.images import decode
from blemish.methods import METHODS
from blemish.methods.atacnet import AtacNet
from blemish.methods.lda import Lda
from blemish.methods.learner import TrainingBatch
from blemish.types import Batch, Progress, Sample

KNN: dict[str, Any] = {"normality": "knn"}
# A training of a second.
PAPER: dict[str, Any] = {
    "recipe": "paper",
    "epochs": 1,
    "min_steps": 6,
    "train_batch_size": 4,
    "attention_dim": 8,
}


def digests_of(sources: list[Any]) -> list[str]:
    return [decode(source).digest for source in sources]


def parts(picture: Part, count: int = 12) -> list[np.ndarray]:
    return [picture(seed) for seed in range(count)]


def squares(picture: Part, count: int = 4) -> list[np.ndarray]:
    """Those of the fixture `mvtec`."""
    return [picture(200 + seed, defect=True) for seed in range(count)]


@pytest.fixture
def quick(small: Any) -> dict[str, Any]:
    return {**small, **KNN}


@pytest.mark.parametrize("form", ["folder", "data set", "arrays", "samples", "paths"])
def test_defects_are_named_in_any_form(form: str, mvtec: Path, picture: Part, quick: Any) -> None:
    paths = sorted((mvtec / "test" / "square").iterdir())
    given: Any = {
        "folder": mvtec / "test" / "square",
        "data set": mvtec,
        "arrays": squares(picture),
        "samples": [Sample(path=path) for path in paths],
        "paths": [str(path) for path in paths],
    }[form]
    kind = "square" if form == "data set" else None
    detector = blemish.fit("lda", parts(picture), anomalies=given, anomaly_type=kind, **quick)
    data = detector.manifest["data"]
    assert data["defects"] == digests_of(squares(picture))
    assert (data["count"], len(data["fitted"]), data["failures"]) == (12, 12, [])
    assert not set(data["defects"]) & set(data["fitted"])
    starts = {
        "folder": "flat layout: 4 pictures",
        "data set": "MVTec layout: ",
        "paths": "flat layout: 1 picture",
    }
    assert data["defects_layout"].startswith(starts.get(form, "4 pictures given one by one"))
    assert isinstance(detector.method, Lda)
    assert len(detector.method.defects) == 4


def test_without_defects_there_are_none(picture: Part, small: Any, quick: Any) -> None:
    nothing: dict[str, Any] = {"anomalies": squares(picture), "anomaly_count": 0}
    for given in ({}, nothing):
        data = blemish.fit("lda", parts(picture), **given, **quick).manifest["data"]
        assert data["defects"] == []
    assert blemish.fit("knn", parts(picture, 3), **small).manifest["data"]["defects"] == []


def test_what_is_good_and_a_defect_at_once_is_told(picture: Part, quick: Any) -> None:
    good, defects = parts(picture), squares(picture)
    data = blemish.fit("lda", good, anomalies=[*defects, *good[:2]], **quick).manifest["data"]
    (said,) = (note for note in data["notes"] if "among the defects" in note)
    assert data["notes"][said] == 2
    data = blemish.fit("lda", good, anomalies=defects, **quick).manifest["data"]
    assert not any("among the defects" in note for note in data["notes"])


def test_the_number_of_defects_does_not_touch_what_is_normal(picture: Part, quick: Any) -> None:
    taught, plain = (
        blemish.fit("lda", parts(picture), anomalies=given, **quick)
        for given in (squares(picture), None)
    )
    for key in ("fitted", "calibrated", "fingerprint", "count"):
        assert taught.manifest["data"][key] == plain.manifest["data"][key]
    before = plain.method.fitted_state()
    after = taught.method.fitted_state()
    assert before.keys() == after.keys()
    assert [name for name in before if not torch.equal(before[name], after[name])] == [
        "defects",
        "defect_scores",
    ]
    assert taught.manifest["calibration_scores"] != plain.manifest["calibration_scores"]


def test_a_draw_follows_the_seed_and_grows_with_the_count(
    mvtec: Path, picture: Part, quick: Any
) -> None:
    def learned(count: int | None, seed: int) -> list[str]:
        detector = blemish.fit(
            "lda", parts(picture, 4), anomalies=mvtec, anomaly_count=count, seed=seed, **quick
        )
        found: list[str] = detector.manifest["data"]["defects"]
        return found

    one, three, other, whole = (learned(*draw) for draw in ((1, 5), (3, 5), (3, 6), (None, 5)))
    assert set(one) < set(three) < set(whole)
    assert three == digests_of(labelled_defects(mvtec, count=3, seed=5).sources)
    assert other == digests_of(labelled_defects(mvtec, count=3, seed=6).sources) != three
    assert len(whole) == 7


def test_masks_are_used_where_they_are_known(mvtec: Path, picture: Part, quick: Any) -> None:
    masked = [sample for sample in layouts.read(mvtec).samples if sample.defect == "square"]

    def defects(given: Any) -> Tensor:
        method = blemish.fit("lda", parts(picture), anomalies=given, **quick).method
        assert isinstance(method, Lda)
        return method.defects

    plain, known = defects(squares(picture)), defects(masked)
    assert not torch.allclose(known, plain)
    half = defects([*squares(picture)[:2], *masked[2:]])
    torch.testing.assert_close(half, torch.cat([plain[:2], known[2:]]), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("count", "kind"), [(None, "square"), (3, None)])
def test_evaluation_leaves_out_exactly_what_was_learned_from(
    count: int | None, kind: str | None, mvtec: Path, quick: Any
) -> None:
    draw = {"anomaly_count": count, "anomaly_type": kind, "seed": 2}
    detector = blemish.fit("lda", mvtec, anomalies=mvtec, **draw, **quick)
    drawn = labelled_defects(mvtec, count=count, kind=kind, seed=2).sources
    result = blemish.evaluate(detector, mvtec)
    assert sorted(result.left_out) == sorted(map(str, drawn))
    assert (result.counts["normal"], result.counts["anomalous"]) == (6, 7 - len(drawn))
    assert not {row["path"] for row in result.rows} & set(result.left_out)


@pytest.mark.parametrize("settings", [KNN, PAPER], ids=["ours", "paper"])
def test_a_broken_defect_is_listed_and_the_others_are_learned_from(
    settings: dict[str, Any], tmp_path: Path, picture: Part, mvtec: Path, small: Any
) -> None:
    shutil.copytree(mvtec / "test" / "square", tmp_path / "defects")
    (tmp_path / "defects" / "001.png").write_text("not a picture")
    (tmp_path / "good.png").write_text("not a picture either")
    good = [*parts(picture), tmp_path / "good.png"]
    options = {**small, **settings, "calibration_fraction": 0}
    method = "atacnet" if settings is PAPER else "lda"
    detector = blemish.fit(method, good, anomalies=tmp_path / "defects", **options)
    data = detector.manifest["data"]
    paths = sorted((tmp_path / "defects").iterdir())
    assert data["defects"] == digests_of([path for path in paths if path.name != "001.png"])
    assert data["fitted"] == digests_of(parts(picture))
    assert [Path(failure["path"]).name for failure in data["failures"]] == ["good.png", "001.png"]


def test_the_only_picture_of_a_category_does_not_calibrate(
    picture: Part, write: Callable[..., Path], quick: Any, tmp_path: Path
) -> None:
    """Left out, it would be judged by pictures of another kind of part."""
    for seed in range(6):
        write(tmp_path / "nut" / "good" / f"{seed}.png", picture(seed))
    write(tmp_path / "bolt" / "good" / "0.png", 255 - picture(9))
    folders = [tmp_path / name / "good" for name in ("nut", "bolt")]
    detector = blemish.fit("lda", folders, anomalies=squares(picture), **quick)
    scores = detector.manifest["calibration_scores_by_category"]
    assert {category: len(own) for category, own in scores.items()} == {"bolt": 0, "nut": 6}
    assert sorted(scores["nut"]) == sorted(detector.manifest["calibration_scores"])


@pytest.mark.parametrize(
    ("fraction", "scored"), [(None, [0, 1, *range(3, 20)]), (0, [0, *range(3, 20, 2)])]
)
def test_a_copy_is_scored_with_its_twin_left_out(
    fraction: float | None,
    scored: list[int],
    picture: Part,
    small: Any,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from blemish.methods.memory import Knn

    asked: list[int] = []
    score = Knn.score_left_out

    def noted(self: Knn, batch: Batch) -> Any:
        asked.extend(batch.owners.tolist())
        return score(self, batch)

    monkeypatch.setattr(Knn, "score_left_out", noted)
    good = parts(picture, 20)
    good[2] = good[1].copy()
    detector = blemish.fit("knn", good, calibration_fraction=fraction, **small)
    assert asked == scored  # the third is a copy of the second, and stands for nothing by itself
    assert detector.method.owners.unique().tolist() == [0, 1, *range(3, 20)]
    assert (detector.method.owners == 1).sum() == 2 * (detector.method.owners == 0).sum()


@pytest.mark.parametrize(
    ("method", "options", "error", "says"),
    [
        (
            "knn",
            {"anomalies": "here"},
            ConfigError,
            r"knn does not learn from labelled defects; .*normality=knn",
        ),
        ("knn", {"anomaly_count": 0}, ConfigError, "knn does not learn from labelled defects"),
        (
            "knn",
            {"anomaly_type": "square"},
            ConfigError,
            "knn does not learn from labelled defects",
        ),
        (
            "lda",
            {"anomaly_count": 2},
            ConfigError,
            "say which of the anomalies to learn from; name those too",
        ),
        (
            "lda",
            {"anomalies": "here", "anomaly_count": 8},
            DataError,
            "8 anomalies were asked for, but .* only 7",
        ),
        ("lda", {"anomalies": "here", "anomaly_count": -1}, ConfigError, "cannot be negative"),
        (
            "lda",
            {"anomalies": "here", "anomaly_type": "sqare"},
            DataError,
            "the types here are dark, square",
        ),
        ("lda", {"anomalies": []}, DataError, "there is no picture of a defect"),
        ("atacnet", {"anomaly_count": 2}, ConfigError, "name those too"),
        ("atacnet", {"anomalies": []}, DataError, "there is no picture of a defect"),
    ],
)
def test_what_cannot_be_learned_from_is_said_before_any_work(
    method: str,
    options: dict[str, Any],
    error: type[Exception],
    says: str,
    mvtec: Path,
    picture: Part,
    small: Any,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def build(*_: object, **__: object) -> None:
        raise AssertionError("it is said before the backbone is loaded")

    monkeypatch.setattr("blemish.detector.built.build", build)
    given = {**options, "anomalies": mvtec} if options.get("anomalies") == "here" else options
    with pytest.raises(error, match=says):
        blemish.fit(method, parts(picture, 3), **given, **small)


def test_a_whole_config_is_taken(picture: Part, small: Any) -> None:
    options = {key: small[key] for key in ("weights", "device", "precision")}
    settings = {key: small[key] for key in ("backbone", "image_size", "layers")}
    for method, recipe, values in (
        ("lda", "best", KNN),
        ("atacnet", "paper-devnet", {**PAPER, "recipe": None}),
    ):
        config = configure(method, recipe=recipe, values={**settings, **values})
        whole = blemish.fit(
            method, parts(picture), config=config, anomalies=squares(picture), **options
        )
        assert type(whole.method) is METHODS[method]
        assert whole.manifest["method"] == method
    other = configure("knn", values=settings)
    with pytest.raises(ConfigError, match="lda takes a LdaConfig, got a KnnConfig"):
        blemish.fit("lda", parts(picture), config=other, **options)
    with pytest.raises(
        ConfigError, match="unknown recipe of atacnet 'paper-devnett'; did you mean 'paper-devnet'"
    ):
        configure("atacnet", recipe="paper-devnett")


@pytest.fixture
def noted(monkeypatch: pytest.MonkeyPatch) -> list[list[int] | None]:
    """The labels of every training step of AtacNet."""
    seen: list[list[int] | None] = []
    step = AtacNet.training_step

    def watched(self: AtacNet, batch: TrainingBatch, progress: float) -> Tensor:
        seen.append(None if batch.labels is None else sorted(batch.labels.tolist()))
        return step(self, batch, progress)

    monkeypatch.setattr(AtacNet, "training_step", watched)
    return seen


@pytest.mark.parametrize("cache_gib", [4.0, 0.0])
def test_training_gets_both_classes_in_every_batch(
    cache_gib: float,
    mvtec: Path,
    picture: Part,
    small: Any,
    noted: list[list[int] | None],
) -> None:
    options = {**small, **PAPER, "cache_gib": cache_gib}
    detector = blemish.fit(
        "atacnet", parts(picture, 20), anomalies=mvtec, anomaly_count=2, seed=1, **options
    )
    assert noted == [[0, 0, 1, 1]] * 8  # 16 good ones, two a step
    manifest = detector.manifest
    assert (manifest["method"], manifest["recipe"]) == ("atacnet", "paper")
    drawn = labelled_defects(mvtec, count=2, seed=1)
    assert manifest["data"]["defects"] == digests_of(drawn.sources)
    assert manifest["data"]["defects_layout"] == drawn.note
    assert (len(manifest["data"]["fitted"]), len(manifest["data"]["calibrated"])) == (16, 4)
    assert set(manifest["data"]["fitted"] + manifest["data"]["calibrated"]) == set(
        digests_of(parts(picture, 20))
    )
    assert sorted(blemish.evaluate(detector, mvtec).left_out) == sorted(map(str, drawn.sources))


def test_the_published_classifier_gets_pictures_as_they_come(
    mvtec: Path, picture: Part, small: Any, noted: list[list[int] | None]
) -> None:
    more = {"recipe": "paper-classifier", "train_batch_size": 6, "calibration_fraction": 0}
    options = {**small, **PAPER, **more}
    blemish.fit("atacnet", parts(picture, 10), anomalies=mvtec, anomaly_count=2, **options)
    # Three passes over twelve pictures, two of which are defects.
    passes = [[*(a or ()), *(b or ())] for a, b in zip(noted[::2], noted[1::2], strict=True)]
    assert [(len(labels), sum(labels)) for labels in passes] == [(12, 2)] * 3


def interrupt_after(step: int) -> Progress:
    """Ctrl-C once that many steps are made."""

    def told(stage: str, done: int, total: int) -> None:
        if stage.startswith("training") and done == step:
            raise KeyboardInterrupt

    return told


def weights_of(detector: Detector) -> dict[str, Tensor]:
    return detector.method.fitted_state()


def test_an_interrupted_training_with_defects_is_resumed_to_the_same_weights(
    picture: Part,
    small: Any,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    noted: list[list[int] | None],
) -> None:
    monkeypatch.setattr("blemish.training.loop.BETWEEN_CHECKPOINTS", 0.0)
    good, bad, place = parts(picture), squares(picture), tmp_path / "x.training"
    options: dict[str, Any] = {**small, **PAPER, "calibration_fraction": 0}
    whole = blemish.fit("atacnet", good, anomalies=bad, **options)
    with pytest.raises(KeyboardInterrupt):
        blemish.fit(
            "atacnet", good, anomalies=bad, checkpoint=place, progress=interrupt_after(3), **options
        )
    resuming: dict[str, Any] = {"checkpoint": place, "resume": True, **options}
    for normal, others in (
        (good, [*bad[:3], picture(210, defect=True)]),
        (good[:-1], [good[-1], *bad]),
    ):
        with pytest.raises(ConfigError, match=r"other training pictures|another training"):
            blemish.fit(
                "atacnet", normal, anomalies=others, **resuming
            )  # the second: the same row of pictures
    noted.clear()
    resumed = blemish.fit("atacnet", good, anomalies=bad, **resuming)
    assert noted == [[0, 0, 1, 1]] * 3
    assert resumed.manifest["training"]["resumed_at"] == 3
    assert resumed.manifest["data"] == whole.manifest["data"]
    for name, tensor in weights_of(whole).items():
        assert torch.equal(tensor, weights_of(resumed)[name]), name


def test_without_defects_all_of_a_batch_are_normal(
    picture: Part, small: Any, noted: list[list[int] | None]
) -> None:
    detector = blemish.fit("atacnet", parts(picture), **{**small, **PAPER})
    assert noted == [None] * 6
    assert detector.manifest["data"]["defects"] == []

"""Detectors that adapt and look at several sizes, from Python and on the command line."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
import torch
from torch import Tensor

import blemish
from blemish.artifact import read
from blemish.backbones import Backbone, build
from blemish.data.transforms import prepare
from blemish.detector.predict import ADAPTED_BATCH_SIZE, Detector
from blemish.errors import ConfigError
from blemish.images import decode
from blemish.methods import adaptation, alignment
from blemish.methods.adaptation import EntropyAdapter, Look, discrepancy
from blemish.methods.guided import Guided
from blemish.methods.heads import ClassHead
from blemish.types import Failure, Prediction, Scores

Part = Callable[..., np.ndarray]
Run = Callable[..., tuple[int, str, str]]
Mode = Literal["online", "episodic"]
GUIDED: dict[str, Any] = {
    "backbone": "test_vit",
    "weights": "random",
    "image_size": 32,
    "layers": (2, 4),
    "epochs": 1,
    "min_steps": 4,
    "train_batch_size": 8,
    "scales": (32, 48),
    "score": "both",
    "map_head": "features",
    "trainable_blocks": 4,
    "device": "cpu",
    "precision": "fp32",
}
TOLD = ("--device", "cpu", "--precision", "fp32")
of_either_kind = pytest.mark.parametrize("kind", ["features", "entropies"], indirect=True)
of_features = pytest.mark.parametrize("kind", ["features"], indirect=True)


@pytest.fixture(autouse=True, scope="module")
def _small_head() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            "blemish.methods.guided.ClassHead", partial(ClassHead, hidden=32, bottleneck=16)
        )
        yield


def sharp(name: str, **options: Any) -> Backbone:
    """A backbone whose attention is not flat, as it is with random weights, so that pictures can
    move it.
    """
    backbone = build(name, **options)
    with torch.no_grad():
        backbone.model.blocks[-1].attn.qkv.weight[:128] *= 12  # type: ignore[union-attr,index]
    return backbone


@dataclass(frozen=True)
class Made:
    detector: Detector
    artifact: Path


@pytest.fixture(scope="module")
def _made(picture: Part, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Made]:
    @cache
    def made(kind: str) -> Made:
        good = [picture(seed) for seed in range(100)]
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("blemish.detector.fit.build", sharp)
            detector = blemish.fit(
                "guided",
                good,
                calibration_fraction=0.3,
                false_alarm_rate=0.05,
                adaptation=kind,
                **GUIDED,
            )
        return Made(detector, detector.save(tmp_path_factory.mktemp("artifact") / "part.blemish"))

    return made


@pytest.fixture
def kind(request: pytest.FixtureRequest) -> str:
    """What is adapted; unless a test asks for another kind, that of the papers."""
    return str(getattr(request, "param", "entropies"))


@pytest.fixture
def detector(kind: str, _made: Callable[[str], Made]) -> Iterator[Detector]:
    """The same for all tests, each of which must leave it as it was."""
    whole = _made(kind).detector
    before = state_of(whole)
    yield whole
    whole.method.requires_grad_(False)
    assert unchanged(whole, before)


@pytest.fixture
def artifact(kind: str, _made: Callable[[str], Made]) -> Path:
    return _made(kind).artifact


def state_of(detector: Detector) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in detector.method.state_dict().items()}


def unchanged(detector: Detector, before: dict[str, Tensor]) -> bool:
    after = detector.method.state_dict()
    return before.keys() == after.keys() and all(
        torch.equal(tensor, before[name]) for name, tensor in after.items()
    )


def guided(detector: Detector) -> Guided:
    assert isinstance(detector.method, Guided)
    return detector.method


def dark(picture: Part, count: int, first: int = 200) -> list[np.ndarray]:
    """New parts, in other light."""
    return [(picture(first + index) * 0.7).astype(np.uint8) for index in range(count)]


def predicted(detector: Detector, sources: list[Any], **options: Any) -> list[Prediction]:
    results = list(detector.predict_many(sources, **options))
    assert all(isinstance(result, Prediction) for result in results)
    return [result for result in results if isinstance(result, Prediction)]


def equal(one: list[Prediction], other: list[Prediction]) -> bool:
    """The same scores and maps, bit for bit."""
    pairs = list(zip(one, other, strict=True))
    return all(
        a.score == b.score and np.array_equal(a.anomaly_map, b.anomaly_map) for a, b in pairs
    )


def tensors(detector: Detector, sources: list[np.ndarray]) -> Tensor:
    return torch.stack([prepare(decode(source), detector.preprocessing) for source in sources])


# Adapting


@of_either_kind
@pytest.mark.parametrize("mode", ["online", "episodic"])
def test_shifted_pictures_are_adapted_to(mode: Mode, detector: Detector, picture: Part) -> None:
    sources = dark(picture, 24)
    plain = predicted(detector, sources, batch_size=12)
    adapted = predicted(detector, sources, batch_size=12, adapt=mode)
    assert [(result.adapted, result.notes) for result in adapted] == [(True, ())] * 24
    assert all(one.score != other.score for one, other in zip(plain, adapted, strict=True))
    assert not any(result.adapted for result in plain)
    for result in adapted:
        row = result.to_dict()
        assert json.loads(json.dumps(row)) == row
        assert (row["adapted"], row["votes"]) == (True, result.votes)
        assert row["votes"] in (0.0, 0.5, 1.0)
    assert equal(predicted(detector, sources, batch_size=12), plain)
    assert not any(parameter.requires_grad for parameter in detector.method.parameters())


def test_norms_and_nothing_else_move_and_the_moments_come_nearer(
    detector: Detector, picture: Part, monkeypatch: pytest.MonkeyPatch
) -> None:
    method, images = guided(detector), tensors(detector, dark(picture, 16))
    source = state_of(detector)
    examine, looks, states = method.examine, [], []

    def watched(given: Tensor) -> Look:
        looks.append(examine(given))
        states.append(state_of(detector))
        return looks[-1]

    monkeypatch.setattr(method, "examine", watched)
    adapter = method.adapter("episodic")
    result = adapter.score(images)
    assert (result.adapted, result.note) == (True, "")
    moved = {name for name, tensor in states[-1].items() if not torch.equal(tensor, source[name])}
    # What comes after the last block's attention has no part in it.
    norms = [
        (block, norm)
        for block in range(6)
        for norm in ("norm1", "norm2")
        if (block, norm) != (5, "norm2")
    ]
    expected = {
        f"backbone.model.blocks.{b}.{norm}.{kind}"
        for b, norm in norms
        for kind in ("weight", "bias")
    }
    assert moved == expected
    anomalous = looks[0].odds.mean(0) > 0
    distances = [
        float(discrepancy(look.entropies, anomalous, method.reference.entropies))
        for look in (looks[0], looks[-1])
    ]
    assert distances[1] < distances[0]
    assert torch.equal(result.scores.image, method.combine(looks[-1]).image)


def test_more_and_longer_steps_bring_the_moments_nearer_still(
    detector: Detector, picture: Part, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So that a step that hardly does anything is not all that there is."""
    method, images = guided(detector), tensors(detector, dark(picture, 16))
    with torch.no_grad():
        look = method.examine(images)
    anomalous = look.odds.mean(0) > 0
    distances = [float(discrepancy(look.entropies, anomalous, method.reference.entropies))]
    combine, reached = method.combine, [look]

    def watched(given: Look) -> Scores:
        reached.append(given)
        return combine(given)

    monkeypatch.setattr(method, "combine", watched)
    for rate, steps in ((1e-3, 1), (1e-3, 5), (1e-2, 15)):
        adapter = EntropyAdapter(method, "episodic", rate=rate, steps=steps, guarded=True)
        assert adapter.score(images).adapted
        distances.append(
            float(discrepancy(reached[-1].entropies, anomalous, method.reference.entropies))
        )
    assert distances == sorted(distances, reverse=True)
    assert distances[-1] < 0.9 * distances[0]


@of_features
def test_features_come_nearer_to_those_of_training_pictures_and_scores_to_those_of_light_ones(
    detector: Detector, picture: Part, monkeypatch: pytest.MonkeyPatch
) -> None:
    method = guided(detector)
    seen: list[dict[int, list[Tensor]]] = []
    score = method.score

    def watched(given: Tensor) -> Scores:
        seen.append({})
        with alignment.recorded(method.backbone, seen[-1]):
            return score(given)

    monkeypatch.setattr(method, "score", watched)
    light, shifted = ([picture(200 + i) for i in range(16)], dark(picture, 16))
    with torch.no_grad():
        wanted, plain = (
            method.score(tensors(detector, sources)).image for sources in (light, shifted)
        )
    result = method.adapter("episodic").score(tensors(detector, shifted))
    assert (result.adapted, result.note) == (True, "")
    for size, tokens in enumerate(method.reference.patch_counts.tolist()):
        before, after = (
            alignment.drift(
                each[tokens][0].mean(0),
                method.reference.moments[size],
                1 / 16 + 1 / float(method.reference.pictures),
            )
            for each in seen[1:]
        )
        assert (before > method.reference.drift_limits[size]).all()
        assert (after < 0.5 * before).all()
    assert (result.scores.image.mean() - wanted.mean()).abs() < 0.5 * (
        plain.mean() - wanted.mean()
    ).abs()


@of_either_kind
def test_unshifted_pictures_are_not_adapted_to(detector: Detector, picture: Part) -> None:
    sources = [picture(seed) for seed in range(300, 316)]
    adapted = predicted(detector, sources, batch_size=16, adapt="online")
    assert {(result.adapted, result.notes) for result in adapted} == {
        (False, ("not adapted: as the training pictures",))
    }
    assert equal(adapted, predicted(detector, sources, batch_size=16))


@of_either_kind
def test_episodes_do_not_depend_on_earlier_batches_and_online_ones_do(
    detector: Detector, picture: Part
) -> None:
    first, second = dark(picture, 10), dark(picture, 10, 400)
    alone = predicted(detector, second, batch_size=10, adapt="episodic")
    episodic = predicted(detector, first + second, batch_size=10, adapt="episodic")
    online = predicted(detector, first + second, batch_size=10, adapt="online")
    assert equal(episodic[10:], alone)
    assert not equal(online[10:], alone)
    assert equal(online[:10], episodic[:10])
    assert all(result.adapted for result in online + episodic + alone)


@of_either_kind
@pytest.mark.parametrize("mode", ["online", "episodic"])
def test_few_pictures_at_the_end_are_not_adapted_to(
    mode: Mode, detector: Detector, picture: Part
) -> None:
    sources = dark(picture, 14)
    results = predicted(detector, sources, batch_size=10, adapt=mode)
    assert [result.adapted for result in results] == [True] * 10 + [False] * 4
    assert {result.notes for result in results[10:]} == {
        ("not adapted: 4 pictures at once, 8 are needed",)
    }
    assert equal(results[10:], predicted(detector, sources[10:], batch_size=10))
    one = predicted(detector, sources[:1], adapt=mode)
    assert (one[0].adapted, len(one[0].notes)) == (False, 1)


@of_either_kind
def test_as_many_as_are_needed_come_at_once_by_themselves(
    detector: Detector, picture: Part
) -> None:
    assert ADAPTED_BATCH_SIZE == 32
    results = predicted(detector, dark(picture, 34), adapt="episodic")
    assert [result.adapted for result in results] == [True] * 32 + [False] * 2
    assert equal(
        results[:32], predicted(detector, dark(picture, 32), batch_size=32, adapt="episodic")
    )


@of_either_kind
def test_a_broken_picture_does_not_make_the_batch_small(
    detector: Detector, picture: Part, tmp_path: Path
) -> None:
    (tmp_path / "broken.png").write_text("not a picture")
    sources: list[Any] = dark(picture, 8)
    expected = predicted(detector, sources, batch_size=8, adapt="episodic")
    sources[5:5] = [tmp_path / "broken.png", np.zeros((4, 4, 7), np.uint8)]
    results = list(detector.predict_many(sources, batch_size=8, adapt="episodic"))
    assert [isinstance(result, Failure) for result in results] == [False] * 5 + [True] * 2 + [
        False
    ] * 3
    whole = [result for result in results if isinstance(result, Prediction)]
    assert all(result.adapted for result in whole)
    assert equal(whole, expected)


@of_either_kind
@pytest.mark.parametrize("how", ["closed", "raised", "interrupted"])
def test_left_early_the_detector_is_as_before(
    how: str, kind: str, detector: Detector, picture: Part, monkeypatch: pytest.MonkeyPatch
) -> None:
    sources = dark(picture, 24)
    plain, before = predicted(detector, sources), state_of(detector)
    results = detector.predict_many(sources, batch_size=8, adapt="online")
    next(results)
    if how == "closed":
        results.close()  # type: ignore[attr-defined]
    else:
        # The first call is before anything is learned, or of the first block.
        of = {"entropies": (adaptation, "discrepancy"), "features": (alignment, "drift")}[kind]
        distance, calls = getattr(*of), iter(range(2))

        def in_the_second_call(*given: Any) -> Tensor:
            if next(calls) == 1:
                raise KeyboardInterrupt
            found: Tensor = distance(*given)
            return found

        def at_once(*_given: Any) -> None:
            raise RuntimeError("no memory")

        with monkeypatch.context() as patch:
            if how == "interrupted":
                patch.setattr(*of, in_the_second_call)
            else:
                patch.setattr(Guided, "combine", at_once)
            with pytest.raises(KeyboardInterrupt if how == "interrupted" else RuntimeError):
                list(results)
    assert unchanged(detector, before)
    assert equal(predicted(detector, sources), plain)


@of_either_kind
def test_what_is_asked_between_batches_is_not_adapted(detector: Detector, picture: Part) -> None:
    sources = dark(picture, 16)
    alone = detector.predict(sources[0])
    results = detector.predict_many(sources, batch_size=8, adapt="online")
    try:
        next(results)
        between = detector.predict(sources[0])
    finally:
        results.close()  # type: ignore[attr-defined]
    assert (between.score, between.adapted) == (alone.score, False)


@of_either_kind
def test_what_cannot_be_adapted(
    detector: Detector, picture: Part, fitted: Callable[..., Detector]
) -> None:
    with pytest.raises(ConfigError, match="knn cannot adapt to the pictures that it scores"):
        list(fitted("knn").predict_many([picture(1)], adapt="online"))
    with pytest.raises(ConfigError, match="adaptation: online or episodic, got 'always'"):
        list(detector.predict_many([picture(1)], adapt="always"))  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="no statistics to adapt to"):
        list(detector.with_scales((64,)).predict_many([picture(1)], adapt="online"))


@of_either_kind
def test_a_loaded_detector_adapts_alike(detector: Detector, artifact: Path, picture: Part) -> None:
    loaded = blemish.load(artifact, device="cpu", precision="fp32")
    asked: dict[str, Any] = {"batch_size": 10, "adapt": "online"}
    results = predicted(loaded, dark(picture, 20), **asked)
    assert equal(results, predicted(detector, dark(picture, 20), **asked))
    assert all(result.adapted for result in results)


@of_either_kind
def test_in_bf16_it_adapts_as_well(artifact: Path, picture: Part) -> None:
    coarse = blemish.load(artifact, device="cpu", precision="bf16")
    before = state_of(coarse)
    results = predicted(coarse, dark(picture, 10), batch_size=10, adapt="online")
    assert {(result.adapted, result.notes) for result in results} == {(True, ())}
    assert unchanged(coarse, before)


@of_either_kind
@pytest.mark.parametrize("mode", ["online", "episodic"])
def test_evaluated_while_adapting(
    mode: Mode, detector: Detector, mvtec: Path, write: Callable[..., Path]
) -> None:
    for path in (mvtec / "test").rglob("*.png"):
        write(path, (decode(path).pixels * 0.7).astype(np.uint8))
    kept: list[Prediction] = []
    result = blemish.evaluate(
        detector, mvtec, adapt=mode, on_prediction=lambda _, prediction: kept.append(prediction)
    )
    assert len(result.rows) == 13
    assert {prediction.adapted for prediction in kept} == {True}
    expected = predicted(detector, [row["path"] for row in result.rows], adapt=mode)
    assert [row["score"] for row in result.rows] == [prediction.score for prediction in expected]
    plain = blemish.evaluate(detector, mvtec)
    assert {row["path"] for row in plain.rows} == {row["path"] for row in result.rows}
    assert [row["path"] for row in plain.rows] != [
        row["path"] for row in result.rows
    ]  # mixed, the same each time
    again = blemish.evaluate(detector, mvtec, adapt=mode)
    assert [row["score"] for row in again.rows] == [row["score"] for row in result.rows]
    unadapted = {row["path"]: row["score"] for row in plain.rows}
    assert [unadapted[row["path"]] for row in result.rows] != [row["score"] for row in result.rows]


# Sizes


def test_other_sizes_have_no_threshold(detector: Detector, picture: Part) -> None:
    assert detector.threshold is not None
    assert detector.threshold.value is not None
    other = detector.with_scales((48,))
    assert (other.preprocessing.height, other.preprocessing.width) == (48, 48)
    assert other.manifest["config"]["scales"] == [48]
    assert other.threshold is not None
    assert (other.threshold.value, other.threshold.guarantee) == (None, "")
    assert (
        other.threshold.reason
        == "calibrated at other sizes; `blemish calibrate --scales` sets a threshold for these"
    )
    assert other.manifest["threshold"] == other.threshold.to_dict()
    assert (other.threshold.n, other.threshold.rate) == (
        detector.threshold.n,
        detector.threshold.rate,
    )
    assert other.thresholds == {}
    result = other.predict(picture(200))
    assert (result.label, result.threshold) == (None, None)
    assert detector.predict(picture(200)).label is not None
    assert detector.with_threshold(None).with_scales((48,)).threshold is None


def test_there_and_back(detector: Detector, picture: Part) -> None:
    sources = [picture(seed) for seed in range(200, 204)]
    plain = predicted(detector, sources)
    for other in ((32,), (64,), (48, 32, 64)):
        moved = detector.with_scales(other)
        assert not equal(predicted(moved, sources), plain)
        assert equal(predicted(moved.with_scales((32, 48)), sources), plain)
    for alike in ((32, 48), (30, 47), (32, 33, 48)):
        assert detector.with_scales(alike) is detector
    assert equal(predicted(detector, sources), plain)


def test_the_score_is_the_mean_over_the_sizes(detector: Detector, picture: Part) -> None:
    """Of the log-odds, with pictures that are as large as the larger size in either case."""
    method, images = (
        guided(detector),
        tensors(detector, [picture(seed) for seed in range(200, 204)]),
    )
    with torch.no_grad():
        looks = [guided(detector.with_scales((side,))).examine(images) for side in (32, 48)]
        odds = torch.stack([each.odds[0] for each in looks if each.odds is not None])
        look = method.examine(images)
    torch.testing.assert_close(look.odds, odds, rtol=1e-4, atol=1e-5)
    scores = method.combine(look)
    assert scores.votes is not None
    assert scores.votes.tolist() == (odds > 0).float().mean(0).tolist()


@of_either_kind
def test_sizes_that_have_statistics_can_be_adapted(detector: Detector, picture: Part) -> None:
    small = detector.with_scales((32,))
    results = predicted(small, dark(picture, 10), batch_size=10, adapt="episodic")
    assert all(result.adapted for result in results)
    assert not equal(results, predicted(small, dark(picture, 10), batch_size=10))
    assert {result.votes for result in results} <= {0.0, 1.0}


def test_other_sizes_are_saved_and_loaded(
    detector: Detector, picture: Part, tmp_path: Path
) -> None:
    for scales in ((32,), (64, 48)):
        other = detector.with_scales(scales)
        loaded = blemish.load(
            other.save(tmp_path / f"{scales[0]}.blemish"), device="cpu", precision="fp32"
        )
        assert loaded.threshold == other.threshold
        sources = [picture(seed) for seed in range(200, 203)]
        assert equal(predicted(loaded, sources), predicted(other, sources))


def test_one_size_only(fitted: Callable[..., Detector], detector: Detector) -> None:
    with pytest.raises(
        ConfigError, match="knn cannot look at pictures in several sizes; guided can"
    ):
        fitted("knn").with_scales((32,))
    with pytest.raises(ConfigError, match="scales: at least 1"):
        detector.with_scales((0,))


# The command line


@dataclass(frozen=True)
class Folders:
    good: Path
    dark: Path


@pytest.fixture(scope="module")
def folders(
    picture: Part, write: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory
) -> Folders:
    root = tmp_path_factory.mktemp("pictures")
    for index in range(10):
        write(root / "good" / f"{index}.png", picture(500 + index))
        write(root / "dark" / f"{index}.png", dark(picture, 1, 600 + index)[0])
    return Folders(root / "good", root / "dark")


@of_either_kind
def test_predict_adapt(
    run: Run, detector: Detector, artifact: Path, folders: Folders, tmp_path: Path
) -> None:
    status, answer, _ = run(
        "predict",
        artifact,
        folders.dark,
        "--adapt",
        "online",
        "--output",
        tmp_path / "out",
        "--json",
        *TOLD,
    )
    assert status == 0
    made = json.loads(answer)["predictions"]
    expected = predicted(detector, [folders.dark], adapt="online")
    assert [(row["score"], row["adapted"], row["votes"]) for row in made] == [
        (result.score, True, result.votes) for result in expected
    ]
    with (tmp_path / "out" / "predictions.csv").open(newline="") as file:
        table = list(csv.DictReader(file))
    assert {line["adapted"] for line in table} == {"True"}
    assert [float(line["votes"]) for line in table] == [result.votes for result in expected]
    _, answer, _ = run(
        "predict", artifact, folders.dark, "--adapt", "online", "--batch-size", "4", "--json", *TOLD
    )
    notes = [row["notes"] for row in json.loads(answer)["predictions"]]
    assert (
        notes
        == [["not adapted: 4 pictures at once, 8 are needed"]] * 8
        + [["not adapted: 2 pictures at once, 8 are needed"]] * 2
    )


def test_resume_refuses_another_way_of_looking(
    run: Run, artifact: Path, folders: Folders, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    command = ["predict", artifact, folders.dark, "--output", out, *TOLD]
    assert run(*command, "--adapt", "online", "--scales", "32")[0] == 0
    rows = (out / "predictions.jsonl").read_bytes()
    for others, says in [
        (["--adapt", "episodic", "--scales", "32"], "made with another --adapt;"),
        (["--scales", "32"], "made with another --adapt;"),
        (["--adapt", "online"], "made with other --scales;"),
        ([], "made with another --adapt and other --scales;"),
    ]:
        status, _, err = run(*command, "--resume", *others)
        assert (status, says in err) == (2, True)
    assert run(*command, "--resume", "--adapt", "online", "--scales", "32")[0] == 0
    assert (out / "predictions.jsonl").read_bytes() == rows


def test_rows_of_before_there_was_adaptation_are_gone_on_from(
    run: Run, artifact: Path, folders: Folders, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    command = ["predict", artifact, folders.dark, "--output", out, *TOLD]
    assert run(*command)[0] == 0
    told = json.loads((out / "run.json").read_text())
    assert (told.pop("adapt"), told.pop("scales")) == ("", "")
    (out / "run.json").write_text(json.dumps(told))
    assert run(*command, "--resume")[0] == 0
    assert run(*command, "--resume", "--adapt", "online")[0] == 2


def test_predict_at_other_sizes(
    run: Run, detector: Detector, artifact: Path, folders: Folders
) -> None:
    status, answer, _ = run(
        "predict", artifact, folders.good, "--scales", Path("48, 64"), "--json", *TOLD
    )
    made = json.loads(answer)
    assert status == 0
    expected = predicted(detector.with_scales((48, 64)), [folders.good])
    assert [row["score"] for row in made["predictions"]] == [result.score for result in expected]
    assert made["threshold"]["value"] is None
    assert "calibrated at other sizes" in made["threshold"]["reason"]
    assert {row["label"] for row in made["predictions"]} == {None}


@of_either_kind
def test_evaluate_adapt_and_scales(
    run: Run, detector: Detector, artifact: Path, mvtec: Path
) -> None:
    status, answer, _ = run(
        "evaluate", artifact, mvtec, "--adapt", "episodic", "--scales", "32", "--json", *TOLD
    )
    assert status == 0
    expected = blemish.evaluate(detector.with_scales((32,)), mvtec, adapt="episodic")
    assert [row["score"] for row in json.loads(answer)["rows"]] == [
        row["score"] for row in expected.rows
    ]


def test_calibrate_at_other_sizes(
    run: Run, artifact: Path, folders: Folders, tmp_path: Path
) -> None:
    made = tmp_path / "small.blemish"
    status, _, _ = run(
        "calibrate",
        artifact,
        folders.good,
        "-o",
        made,
        "--scales",
        "64",
        "--false-alarm-rate",
        "0.2",
        *TOLD,
    )
    assert status == 0
    manifest = read(made)[1]
    assert manifest["config"]["scales"] == [64]
    assert manifest["threshold"]["n"] == 10
    assert (
        manifest["threshold"]["value"] == sorted(manifest["calibration_scores"])[8]
    )  # ceil(11 · 0.8) = 9th
    assert manifest["threshold"]["reason"] == ""
    status, answer, _ = run("predict", made, folders.good, "--json", *TOLD)
    rows = json.loads(answer)["predictions"]
    assert sorted(row["score"] for row in rows) == sorted(manifest["calibration_scores"])
    assert sum(row["label"] for row in rows) == 1
    status, _, err = run("predict", made, folders.dark, "--adapt", "online", *TOLD)
    assert (status, "holds no statistics to adapt to" in err) == (2, True)
    assert "fit it on more, with these sizes as --scales" in err


def test_fit_with_sizes(run: Run, good_folder: Path, tmp_path: Path) -> None:
    made = tmp_path / "part.blemish"
    settings = [
        f"--set={name}={GUIDED[name]}" for name in ("epochs", "min_steps", "train_batch_size")
    ]
    options = [
        "--backbone",
        "test_vit",
        "--weights",
        "random",
        "--image-size",
        "32",
        "--layers",
        "2,4",
        *TOLD,
    ]
    assert (
        run("fit", "guided", good_folder, "-o", made, "--scales", "32,48", *options, *settings)[0]
        == 0
    )
    assert read(made)[1]["config"]["scales"] == [32, 48]
    status, _, err = run("fit", "knn", good_folder, "-o", made, "--scales", "32,48", *options)
    assert (status, "unknown setting 'scales'" in err) == (2, True)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--adapt", "onlin"], "unknown mode of --adapt 'onlin'; did you mean 'online'?"),
        (["--adapt", ""], "unknown mode of --adapt ''"),
        (["--scales", "0"], "--scales 0: sides in pixels are needed, as in 224,320"),
        (["--scales", "32,"], "--scales 32,: sides in pixels"),
        (["--scales", "32,a"], "--scales 32,a: sides in pixels"),
        (["--scales", "-32"], "--scales -32: sides in pixels"),
        (["--scales", "9000"], "--scales 9000: sides in pixels"),
        (["--scales", "64", "--adapt", "online"], "holds no statistics to adapt to"),
    ],
)
def test_values_that_make_no_sense(
    options: list[str], says: str, run: Run, artifact: Path, folders: Folders, mvtec: Path
) -> None:
    for command in (["predict", artifact, folders.dark], ["evaluate", artifact, mvtec]):
        status, _, err = run(*command, *options, *TOLD)
        assert (status, says in err) == (2, True), err
        assert "Traceback" not in err


def test_other_methods_do_neither(
    run: Run, fitted: Callable[..., Detector], folders: Folders, tmp_path: Path
) -> None:
    knn = fitted("knn").save(tmp_path / "knn.blemish")
    status, _, err = run("predict", knn, folders.dark, "--adapt", "online", *TOLD)
    assert (status, "knn cannot adapt to the pictures that it scores; guided can" in err) == (
        2,
        True,
    )
    for command in ("predict", "evaluate"):
        status, _, err = run(command, knn, folders.dark, "--scales", "32", *TOLD)
        assert (status, "knn cannot look at pictures in several sizes" in err) == (2, True)
    status, _, err = run(
        "calibrate", knn, folders.good, "-o", tmp_path / "x", "--scales", "32", *TOLD
    )
    assert (status, "knn cannot look at pictures in several sizes" in err) == (2, True)


@pytest.mark.parametrize("options", [[], ["--scales", "64"], ["--adapt", "onlin"]])
def test_what_cannot_be_adapted_begins_no_folder(
    options: list[str],
    run: Run,
    fitted: Callable[..., Detector],
    artifact: Path,
    folders: Folders,
    tmp_path: Path,
) -> None:
    """Or the corrected command would be refused, as the folder holds predictions already."""
    made = artifact if options else fitted("knn").save(tmp_path / "knn.blemish")
    out = tmp_path / "out"
    command = ["predict", made, folders.dark, "--output", out, *TOLD]
    status, _, err = run(*command, "--adapt", "online", *options)
    assert (status, out.exists()) == (2, False), err
    assert run(*command)[0] == 0

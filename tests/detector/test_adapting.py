"""Detectors that adapt and look at several sizes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
import torch
from parts import Fitted, Part, prepared
from torch import Tensor

import blemish
from blemish.detector.predict import Detector
from blemish.errors import ConfigError
from blemish.images import decode
from blemish.methods import adaptation as entropies
from blemish.methods import alignment
from blemish.methods.adaptation import Look, discrepancy
from blemish.methods.guided import Guided
from blemish.types import Prediction, Scores

Mode = Literal["online", "episodic"]
TOLD = "--device cpu --precision fp32"
of_either_kind = pytest.mark.parametrize("adaptation", ["features", "entropies"], indirect=True)
of_features = pytest.mark.parametrize("adaptation", ["features"], indirect=True)


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
    return torch.stack([prepared(decode(source), detector.preprocessing) for source in sources])


# Adapting


@of_either_kind
@pytest.mark.parametrize("mode", ["online", "episodic"])
def test_shifted_pictures_are_adapted_to(mode: Mode, adapting: Detector, picture: Part) -> None:
    sources = dark(picture, 24)
    plain = predicted(adapting, sources, batch_size=12)
    adapted = predicted(adapting, sources, batch_size=12, adapt=mode)
    assert [(result.adapted, result.notes) for result in adapted] == [(True, ())] * 24
    assert all(one.score != other.score for one, other in zip(plain, adapted, strict=True))
    assert not any(result.adapted for result in plain)
    assert {result.to_dict()["adapted"] for result in adapted} == {True}
    assert {result.to_dict()["votes"] for result in adapted} <= {0.0, 0.5, 1.0}
    assert equal(predicted(adapting, sources, batch_size=12), plain)
    assert not any(parameter.requires_grad for parameter in adapting.method.parameters())


def test_norms_and_nothing_else_move_and_the_moments_come_nearer(
    adapting: Detector, picture: Part, monkeypatch: pytest.MonkeyPatch
) -> None:
    method, images = guided(adapting), tensors(adapting, dark(picture, 16))
    source = state_of(adapting)
    examine, looks, states = method.examine, [], []

    def watched(given: Tensor) -> Look:
        looks.append(examine(given))
        states.append(state_of(adapting))
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


@of_features
def test_features_come_nearer_to_those_of_training_pictures_and_scores_to_those_of_light_ones(
    adapting: Detector, picture: Part, monkeypatch: pytest.MonkeyPatch
) -> None:
    method = guided(adapting)
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
            method.score(tensors(adapting, sources)).image for sources in (light, shifted)
        )
    result = method.adapter("episodic").score(tensors(adapting, shifted))
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
def test_unshifted_pictures_are_not_adapted_to(adapting: Detector, picture: Part) -> None:
    sources = [picture(seed) for seed in range(300, 316)]
    adapted = predicted(adapting, sources, batch_size=16, adapt="online")
    assert {(result.adapted, result.notes) for result in adapted} == {
        (False, ("not adapted: as the training pictures",))
    }
    assert equal(adapted, predicted(adapting, sources, batch_size=16))


@of_either_kind
def test_episodes_do_not_depend_on_earlier_batches_and_online_ones_do(
    adapting: Detector, picture: Part
) -> None:
    first, second = dark(picture, 10), dark(picture, 10, 400)
    alone = predicted(adapting, second, batch_size=10, adapt="episodic")
    episodic = predicted(adapting, first + second, batch_size=10, adapt="episodic")
    online = predicted(adapting, first + second, batch_size=10, adapt="online")
    assert equal(episodic[10:], alone)
    assert not equal(online[10:], alone)
    assert equal(online[:10], episodic[:10])
    assert all(result.adapted for result in online + episodic + alone)


@of_either_kind
@pytest.mark.parametrize("mode", ["online", "episodic"])
def test_few_pictures_at_the_end_are_not_adapted_to(
    mode: Mode, adapting: Detector, picture: Part
) -> None:
    sources = dark(picture, 14)
    results = predicted(adapting, sources, batch_size=10, adapt=mode)
    assert [result.adapted for result in results] == [True] * 10 + [False] * 4
    few = ("not adapted: 4 pictures at once, 8 are needed",)
    assert {result.notes for result in results[10:]} == {few}
    assert equal(results[10:], predicted(adapting, sources[10:], batch_size=10))


@of_either_kind
def test_as_many_as_are_needed_come_at_once_by_themselves(
    adapting: Detector, picture: Part
) -> None:
    results = predicted(adapting, dark(picture, 34), adapt="episodic")
    assert [result.adapted for result in results] == [True] * 32 + [False] * 2
    at_once = predicted(adapting, dark(picture, 32), batch_size=32, adapt="episodic")
    assert equal(results[:32], at_once)


@of_either_kind
@pytest.mark.parametrize("how", ["closed", "raised", "interrupted"])
def test_left_early_the_detector_is_as_before(
    how: str, adaptation: str, adapting: Detector, picture: Part, monkeypatch: pytest.MonkeyPatch
) -> None:
    sources = dark(picture, 24)
    plain, before = predicted(adapting, sources), state_of(adapting)
    results = adapting.predict_many(sources, batch_size=8, adapt="online")
    next(results)
    if how == "closed":
        results.close()  # type: ignore[attr-defined]
    else:
        # The first call is before anything is learned, or of the first block.
        of: tuple[Any, str] = (alignment, "drift")
        if adaptation == "entropies":
            of = (entropies, "discrepancy")
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
    assert unchanged(adapting, before)
    assert equal(predicted(adapting, sources), plain)


@of_either_kind
def test_what_is_asked_between_batches_is_not_adapted(adapting: Detector, picture: Part) -> None:
    sources = dark(picture, 16)
    alone = adapting.predict(sources[0])
    results = adapting.predict_many(sources, batch_size=8, adapt="online")
    try:
        next(results)
        between = adapting.predict(sources[0])
    finally:
        results.close()  # type: ignore[attr-defined]
    assert (between.score, between.adapted) == (alone.score, False)


@of_either_kind
def test_what_cannot_be_adapted(adapting: Detector, picture: Part, fitted: Fitted) -> None:
    with pytest.raises(ConfigError, match="knn cannot adapt to the pictures that it scores"):
        list(fitted("knn").predict_many([picture(1)], adapt="online"))
    with pytest.raises(ConfigError, match="adaptation: online or episodic, got 'always'"):
        list(adapting.predict_many([picture(1)], adapt="always"))  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="no statistics to adapt to"):
        list(adapting.with_scales((64,)).predict_many([picture(1)], adapt="online"))


@of_either_kind
def test_a_loaded_detector_adapts_alike(
    adapting: Detector, adapting_artifact: Path, picture: Part
) -> None:
    loaded = blemish.load(adapting_artifact, device="cpu", precision="fp32")
    asked: dict[str, Any] = {"batch_size": 10, "adapt": "online"}
    results = predicted(loaded, dark(picture, 20), **asked)
    assert equal(results, predicted(adapting, dark(picture, 20), **asked))
    assert all(result.adapted for result in results)


@of_either_kind
def test_in_bf16_it_adapts_as_well(adapting_artifact: Path, picture: Part) -> None:
    coarse = blemish.load(adapting_artifact, device="cpu", precision="bf16")
    before = state_of(coarse)
    results = predicted(coarse, dark(picture, 10), batch_size=10, adapt="online")
    assert {(result.adapted, result.notes) for result in results} == {(True, ())}
    assert unchanged(coarse, before)


@of_either_kind
@pytest.mark.parametrize("mode", ["online", "episodic"])
def test_evaluated_while_adapting(
    mode: Mode, adapting: Detector, mvtec: Path, write: Callable[..., Path]
) -> None:
    for path in (mvtec / "test").rglob("*.png"):
        write(path, (decode(path).pixels * 0.7).astype(np.uint8))

    def rows(**how: Any) -> list[tuple[str, float]]:
        result = blemish.evaluate(adapting, mvtec, **how)
        return [(row["path"], row["score"]) for row in result.rows]

    adapted, plain = rows(adapt=mode), rows()
    expected = predicted(adapting, [path for path, _ in adapted], adapt=mode)
    assert [score for _, score in adapted] == [result.score for result in expected]
    assert all(result.adapted for result in expected)
    assert rows(adapt=mode) == adapted  # mixed, the same each time
    order = [path for path, _ in plain]
    assert sorted(path for path, _ in adapted) == sorted(order) != [path for path, _ in adapted]
    assert dict(plain) != dict(adapted)


# Sizes


def test_other_sizes_have_no_threshold(adapting: Detector, picture: Part) -> None:
    before, other = adapting.threshold, adapting.with_scales((48,))
    after = other.threshold
    assert before is not None
    assert after is not None
    assert (other.preprocessing.height, other.preprocessing.width) == (48, 48)
    assert other.manifest["config"]["scales"] == [48]
    assert (after.value, after.guarantee, other.thresholds) == (None, "", {})
    assert "calibrated at other sizes; `blemish calibrate --scales` sets" in after.reason
    assert (after.n, after.rate) == (before.n, before.rate)
    result = other.predict(picture(200))
    assert (result.label, result.threshold) == (None, None)
    assert adapting.with_threshold(None).with_scales((48,)).threshold is None
    with pytest.raises(ConfigError, match="scales: at least 1"):
        adapting.with_scales((0,))


def test_there_and_back(adapting: Detector, picture: Part, tmp_path: Path) -> None:
    sources = [picture(seed) for seed in range(200, 204)]
    plain = predicted(adapting, sources)
    for other in ((32,), (64, 48)):
        moved = adapting.with_scales(other)
        found = predicted(moved, sources)
        assert not equal(found, plain)
        assert equal(predicted(moved.with_scales((32, 48)), sources), plain)
        path = moved.save(tmp_path / f"{other[0]}.blemish")
        loaded = blemish.load(path, device="cpu", precision="fp32")
        assert loaded.threshold == moved.threshold
        assert equal(predicted(loaded, sources), found)
    for alike in ((32, 48), (30, 47), (32, 33, 48)):
        assert adapting.with_scales(alike) is adapting

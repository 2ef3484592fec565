"""Detectors that look at the part alone, from fit to the artifact to what they show."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from parts import SMALL, mask_of, rows_of, settings_of, write_picture

import blemish
from blemish import artifact
from blemish.data import layouts
from blemish.data.stream import PictureStream
from blemish.detector import scoring
from blemish.detector.predict import Detector
from blemish.engines.base import Outputs
from blemish.engines.pytorch import TorchEngine
from blemish.errors import ArtifactError, ConfigError
from blemish.methods.foreground import Foreground
from blemish.methods.memory import Knn
from blemish.methods.telling import seen_along
from blemish.regions import region_level

SIDE = 128
SETTINGS = {**SMALL, "image_size": SIDE, "smoothing": 0.01, "top_fraction": 0.01}
METHODS = ["knn", "padim", "patchcore"]
COMMAND = "--backbone test_vit --weights random --image-size 128 --layers 2,4 --precision fp32"


def disc(seed: int, *, side: int = SIDE, radius: float = 0.3) -> np.ndarray:
    """A dark, woven disc on a light, plain ground, about the middle."""
    random = np.random.default_rng(seed)
    y, x = np.mgrid[:side, :side] / side
    down, right = 0.5 + random.uniform(-0.05, 0.05, 2)
    pixels = 225 + random.normal(0, 2, (side, side, 3))
    woven = 70 + 25 * np.sin(40 * x) + 15 * np.cos(35 * y)
    inside = (y - down) ** 2 + (x - right) ** 2 < radius**2
    pixels[inside] = (woven[..., None] + random.normal(0, 4, pixels.shape))[inside]
    return np.asarray(np.clip(pixels, 0, 255), dtype=np.uint8)


def texture(seed: int) -> np.ndarray:
    """The same weave all over."""
    return disc(seed, radius=2)


def dirty(seed: int) -> np.ndarray:
    """A disc, and dirt in the corner of its ground."""
    pixels = disc(seed)
    pixels[2:20, 2:20] = (250, 40, 40)
    return pixels


@cache
def fitted(method: str = "knn", foreground: str = "auto", **more: Any) -> Detector:
    good = [disc(seed) for seed in range(12)]
    settings = {**settings_of(method), **SETTINGS, "false_alarm_rate": 0.2, **more}
    return blemish.fit(method, good, foreground=foreground, **settings)


@pytest.mark.parametrize("method", METHODS)
def test_the_part_is_told(method: str) -> None:
    detector = fitted(method)
    record = detector.record.foreground
    assert record is not None
    assert record.abstains == ""
    found = detector.predict(disc(50))
    assert found.foreground is not None
    assert found.foreground.shape == found.anomaly_map.shape == (32, 32)
    y, x = (np.mgrid[:32, :32] + 0.5) / 32 - 0.5
    away = np.hypot(y, x)
    assert found.foreground[away < 0.28].all()
    assert not found.foreground[away > 0.6].any()
    assert not found.notes


@pytest.mark.parametrize("method", METHODS)
def test_dirt_on_the_ground_does_not_count(method: str) -> None:
    whole, detector = fitted(method, "none"), fitted(method)
    clean, soiled = disc(50), dirty(50)
    assert whole.predict(soiled).score > 1.3 * whole.predict(clean).score
    found = detector.predict(soiled)
    assert found.foreground is not None
    assert not found.foreground[:4, :4].any()
    assert found.score == pytest.approx(detector.predict(clean).score, rel=0.1)
    assert (found.anomaly_map[~found.foreground] == found.anomaly_map.min()).all()
    flat = np.ones_like(found.anomaly_map)
    every = replace(found, anomaly_map=flat, region_threshold=0.0, background=0.0)
    assert every.mask is not None
    assert every.mask[SIDE // 2, SIDE // 2]
    assert not every.mask[:16, :16].any()


@pytest.mark.parametrize("method", METHODS)
def test_the_score_is_the_mean_of_as_many_values_as_of_the_whole_picture(method: str) -> None:
    whole, detector = fitted(method, "none"), fitted(method)
    for pixels in (disc(50), dirty(51)):
        one, two = whole.predict(pixels), detector.predict(pixels)
        assert two.foreground is not None
        values = np.sort(one.anomaly_map[two.foreground])[::-1]
        assert two.score == pytest.approx(values[: round(0.01 * 32 * 32)].mean())
        assert two.score <= one.score
        assert (two.anomaly_map[two.foreground] == one.anomaly_map[two.foreground]).all()
        assert (two.anomaly_map[~two.foreground] == values.min()).all()


@pytest.mark.parametrize("method", ["guided", "agpnet", "spade", "simplenet"])
def test_other_methods_that_score_by_their_map(method: str) -> None:
    more = {"guided": {"score": "map"}, "agpnet": {"score_window": 0.0}}.get(method, {})
    detector = fitted(method, calibration_fraction=0.5, **more)
    found = detector.predict(dirty(50))
    assert found.foreground is not None
    values = np.sort(found.anomaly_map[found.foreground])[::-1]
    count = max(1, round(0.01 * found.anomaly_map.size))
    assert found.score == pytest.approx(values[:count].mean())


@pytest.mark.parametrize("where", ["within", "at the border", "beyond the border"])
def test_what_does_not_look_like_the_part_is_not_lost(where: str) -> None:
    detector, pixels = fitted(), disc(50)
    left = {"within": 58, "at the border": 86, "beyond the border": 96}[where]
    mark = np.s_[58:70, left : left + 14]
    for colour in (225, (250, 40, 40)):  # as the ground, which a hole shows; and a foreign body
        pixels[mark] = colour
        found = detector.predict(pixels)
        assert found.foreground is not None
        rows, columns = (slice(one.start // 4 + 1, one.stop // 4 - 1) for one in mark)
        if where != "beyond the border" or colour != 225:
            assert found.foreground[rows, columns].all()
        if where == "within":
            assert found.score > 1.2 * detector.predict(disc(50)).score


def test_the_thresholds_are_of_what_is_scored() -> None:
    good = [dirty(seed) if seed == 4 else disc(seed) for seed in range(12)]
    whole, detector = (
        blemish.fit("knn", good, **SETTINGS, foreground=each) for each in ("none", "auto")
    )
    record, method = detector.record, detector.method
    assert isinstance(method, Knn)
    expected: list[float] = []
    levels: list[float] = []
    for batch in PictureStream(good, record.preprocessing, 4):
        seen = method.see(batch.images)
        found = method.judge_left_out(seen, batch)
        assert record.foreground is not None
        along = seen_along(method, seen, record.foreground.direction).numpy()
        size = (found.maps.shape[1], found.maps.shape[2])
        inside = torch.from_numpy(record.foreground.inside(along, None, size))
        for one, places in zip(found.maps, inside, strict=True):
            expected.append(float(one[places].topk(10).values.mean()))
            shown = torch.where(places, one, one[places].min())
            levels.append(region_level(shown.numpy()))
    assert record.calibration_scores == pytest.approx(expected)
    assert record.regions is not None
    assert record.regions.levels == pytest.approx(levels)
    pairs = list(zip(record.calibration_scores, whole.record.calibration_scores, strict=True))
    assert all(one <= two for one, two in pairs)
    assert any(one < 0.9 * two for one, two in pairs)


def test_held_out_pictures_and_new_ones_are_scored_alike() -> None:
    good = [disc(seed) for seed in range(20)]
    for seed, pixels in enumerate(good):  # dirt of a kind of its own on each
        colour = np.random.default_rng(seed).integers(60, 256, 3)
        pixels[2:20, 2:20] = colour
    settings = {**SETTINGS, "calibration_fraction": 0.5, "foreground": "auto"}
    detector = blemish.fit("knn", good, **settings)
    scored = {round(detector.predict(one).score, 5) for one in good}
    assert {round(score, 5) for score in detector.record.calibration_scores} <= scored
    others = [disc(100 + seed) for seed in range(20)]
    again, _, _ = blemish.recalibrate(detector, others)
    assert again.record.calibration_scores == pytest.approx(
        [detector.predict(one).score for one in others]
    )
    assert again.record.foreground == detector.record.foreground


def test_a_picture_unlike_the_others_is_looked_at_whole() -> None:
    whole, detector = fitted("knn", "none"), fitted()
    empty = np.full((SIDE, SIDE, 3), 225, dtype=np.uint8)
    for pixels in (empty, texture(3)):
        one, two = whole.predict(pixels), detector.predict(pixels)
        assert two.foreground is None
        assert two.notes == (scoring.UNTOLD,)
        assert one.score == two.score
        assert (one.anomaly_map == two.anomaly_map).all()
    results = list(detector.predict_many([disc(50), empty, disc(51)]))
    told = [not isinstance(one, blemish.Failure) and one.foreground is not None for one in results]
    assert told == [True, False, True]


@pytest.mark.parametrize(
    ("good", "why"),
    [
        ([texture(seed) for seed in range(12)], "two kinds of places|no background runs along"),
        (
            [disc(seed, radius=0.05) for seed in range(12)],
            "two halves of the training pictures tell|only .* % of the",
        ),
        ([disc(1)], "one picture alone"),
    ],
    ids=["texture", "tiny", "single"],
)
def test_it_abstains(good: list[np.ndarray], why: str) -> None:
    detector = blemish.fit("knn", good, **SETTINGS, foreground="auto")
    record = detector.record.foreground
    assert record is not None
    assert re.search(why, record.abstains)
    assert detector.foreground is None
    plain = blemish.fit("knn", good, **SETTINGS)
    one, two = plain.predict(good[0]), detector.predict(good[0])
    assert one.score == two.score
    assert two.foreground is None
    assert not two.notes
    assert plain.record.calibration_scores == detector.record.calibration_scores


def test_it_abstains_where_the_encoder_sees_too_few_places() -> None:
    good = [disc(seed) for seed in range(6)]
    detector = blemish.fit("knn", good, **{**SETTINGS, "image_size": 64}, foreground="auto")
    assert detector.record.foreground is not None
    assert "4×4 places" in detector.record.foreground.abstains


def test_it_is_in_the_artifact(tmp_path: Path) -> None:
    detector = fitted()
    again = blemish.load(detector.save(tmp_path / "part.blemish"), precision="fp32")
    assert again.record.foreground == detector.record.foreground
    one, two = detector.predict(dirty(50)), again.predict(dirty(50))
    assert one.score == two.score
    assert one.foreground is not None
    assert two.foreground is not None
    assert (one.foreground == two.foreground).all()


def test_artifacts_without_one_say_nothing_of_it(tmp_path: Path) -> None:
    detector = fitted("knn", "none")
    assert "foreground" not in detector.manifest
    again = blemish.load(detector.save(tmp_path / "part.blemish"))
    assert again.record.foreground is None
    assert again.predict(disc(50)).foreground is None


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("direction", []),
        ("direction", [1.0, 0.0]),
        ("direction", [1e300]),
        ("direction", "x"),
        ("cut", 1e300),
        ("cut", None),
        ("share", 2),
        ("least", 0.9),
        ("abstains", 5),
    ],
)
def test_hostile_artifacts(field: str, value: Any, tmp_path: Path) -> None:
    path = fitted().save(tmp_path / "part.blemish")
    tensors, manifest = artifact.read(path)
    manifest = json.loads(json.dumps(manifest))
    manifest["foreground"][field] = value
    artifact.write(path, tensors, manifest)
    with pytest.raises(ArtifactError, match="foreground"):
        blemish.load(path)


@pytest.mark.parametrize("method", ["lda", "atacnet", "dra", "ahl", "guided", "agpnet"])
def test_a_score_of_the_whole_picture_is_refused(method: str) -> None:
    more = {"guided": {"score": "class"}, "agpnet": {"score_window": 0.1}}.get(method, {})
    with pytest.raises(ConfigError, match=r"foreground: the score of .* is one of the whole"):
        fitted(method, **more)


def test_another_word_is_refused_before_any_work(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="unknown foreground 'atuo'; did you mean 'auto'"):
        blemish.fit("knn", tmp_path / "nowhere", foreground="atuo")


def test_a_part_within_an_area() -> None:
    roi = [[[0.15, 0.0], [1, 0.0], [1, 0.9], [0.15, 0.9]]]
    good = [disc(seed) for seed in range(12)]
    detector = blemish.fit("knn", good, **SETTINGS, foreground="auto", roi=roi)
    record = detector.record.foreground
    assert record is not None
    assert record.abstains == ""
    assert detector.area is not None
    places = detector.area.places(32, 32)
    found = detector.predict(dirty(50))
    assert found.foreground is not None
    assert not found.foreground[~places].any()
    assert found.foreground[14:18, 14:18].all()
    empty = detector.predict(np.full((SIDE, SIDE, 3), 225, dtype=np.uint8))
    assert empty.foreground is None
    assert empty.notes == (scoring.UNTOLD,)
    narrow = fitted().within([[[0.5, 0.0], [1, 0.0], [1, 1], [0.5, 1]]]).predict(disc(50))
    assert narrow.foreground is not None
    assert (narrow.anomaly_map[:, :15] == narrow.anomaly_map.min()).all()
    assert narrow.score <= fitted().predict(disc(50)).score


def test_another_engine_is_cut_to_the_part_too() -> None:
    detector, calls = fitted(), []

    class Counting(TorchEngine):
        def run(self, images: Any, **how: Any) -> Outputs:
            calls.append(len(images))
            return super().run(images, **how)

    engine = Counting(detector.method, detector.foreground)
    (one,) = detector.predict_many([dirty(50)], engine=engine)
    assert isinstance(one, blemish.Prediction)
    assert calls == [1]
    assert one.score == detector.predict(dirty(50)).score


def test_what_adapts_is_cut_to_the_part_too() -> None:
    detector = fitted("guided", calibration_fraction=0.5, score="map", trainable_blocks=4)
    pictures = [dirty(100 + seed) for seed in range(8)]
    plain = [detector.predict(one) for one in pictures]
    found = list(detector.predict_many(pictures, adapt="online", batch_size=8))
    assert len(found) == 8
    for one, two in zip(found, plain, strict=True):
        assert isinstance(one, blemish.Prediction)
        assert one.foreground is not None
        # The part is told by the encoder as it was, not by the one that has followed.
        assert (one.foreground == two.foreground).all()
        assert (one.anomaly_map[~one.foreground] == one.anomaly_map.min()).all()


def test_scoring_looks_once(monkeypatch: pytest.MonkeyPatch) -> None:
    detector = fitted()
    calls, see = [], detector.method.see
    monkeypatch.setattr(detector.method, "see", lambda *args: (calls.append(1), see(*args))[1])
    detector.predict(disc(50))
    assert len(calls) == 1


def test_learned_values_are_of_plain_loops() -> None:
    record, method = fitted().record.foreground, fitted().method
    assert record is not None
    good = [disc(seed) for seed in range(12)]
    (batch,) = PictureStream(good, fitted().record.preprocessing, 12)
    tokens = method.see(batch.images).tokens[1].double().numpy()
    tokens /= np.linalg.norm(tokens, axis=2, keepdims=True)
    scatter = sum(np.cov(one.T, bias=True) for one in tokens)
    first = np.linalg.eigh(scatter)[1][:, -1]
    along = np.array(record.direction)
    assert abs(first @ along) == pytest.approx(1, abs=1e-5)
    values = tokens @ along
    best = max(
        (np.sort(values.ravel())[:-1] + np.sort(values.ravel())[1:]) / 2,
        key=lambda cut: (
            (values > cut).mean()
            * (values <= cut).mean()
            * (values[values > cut].mean() - values[values <= cut].mean()) ** 2
        ),
    )
    assert record.cut == pytest.approx(best, abs=1e-5)
    low, high = values[values <= best], values[values > best]
    within = (low.var() * low.size + high.var() * high.size) / values.size
    assert record.separation == pytest.approx(1 - within / values.var(), abs=1e-5)


def test_the_commands(
    run: Callable[..., tuple[int, str, str]],
    answered: Callable[..., Any],
    tmp_path: Path,
) -> None:
    good, made, out = (tmp_path / name for name in ("good", "part.blemish", "out"))
    for seed in range(12):
        write_picture(good / f"{seed}.png", disc(seed))
    command = f"{COMMAND} --foreground auto --false-alarm-rate 0.2"
    new = write_picture(tmp_path / "new" / "dirty.png", dirty(50))
    status, told, _ = run("fit knn", good, "-o", made, command)
    assert status == 0
    assert "Foreground: the part alone, " in told
    sheet = tmp_path / "part.foreground.png"
    assert f"Written: {sheet}" in told
    assert sheet.stat().st_size > 1000
    assert "the part alone" in run("inspect", made)[1]
    status, _, err = run("predict", made, new, "--output", out, "--save", "overlays,masks")
    assert status in (0, 1), err
    (row,) = rows_of(out)
    assert not mask_of(row)[:16, :16].any()
    document = answered("fit knn", good, "-o", made, command)
    assert document["foreground_picture"] == str(sheet)
    assert document["foreground"]["abstains"] == ""
    assert "direction" not in document["foreground"]
    # Of a later fit without a foreground it would tell what is not so.
    fit = ("fit knn", good, "-o", made, COMMAND, "--false-alarm-rate 0.2")
    assert "notice" not in run(*fit)[2]
    assert not sheet.exists()
    before = write_picture(sheet, disc(0)).read_bytes()
    said = run(*fit)[2]
    assert f"notice: {sheet} shows nothing of this artifact; it was not written by blemish" in said
    assert sheet.read_bytes() == before
    run("fit knn", good, "-o", made, command)
    other = sheet.rename(tmp_path / "other.png")
    sheet.symlink_to(other)
    assert "was not written by blemish, and stays" in run(*fit)[2]
    assert other.exists()
    # A folder with both is read as pictures without the sheet.
    write_picture(tmp_path / "beside" / "1.png", disc(1))
    (tmp_path / "beside" / "part.blemish").touch()
    write_picture(tmp_path / "beside" / "part.foreground.png", disc(2))
    assert len(layouts.read(tmp_path / "beside").samples) == 1


def test_the_commands_say_why_it_abstains(
    run: Callable[..., tuple[int, str, str]], tmp_path: Path
) -> None:
    good, made = tmp_path / "good", tmp_path / "part.blemish"
    for seed in range(8):
        write_picture(good / f"{seed}.png", texture(seed))
    told = run("fit knn", good, "-o", made, COMMAND, "--foreground auto")[1]
    assert "Foreground: whole pictures are looked at, as " in told
    assert (tmp_path / "part.foreground.png").exists()  # what would have been taken
    assert "whole pictures are looked at" in run("inspect", made)[1]


def test_what_is_impossible() -> None:
    with pytest.raises(ConfigError, match="direction: is missing"):
        Foreground()
    with pytest.raises(ConfigError, match="not of length 1"):
        Foreground(direction=(0.5, 0.0))
    with pytest.raises(ConfigError, match="do not rise"):
        Foreground(direction=(1.0, 0.0), share=0.5, least=0.6)

"""What a person sees of a foreground: overlays, the sheet beside the artifact, the report."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from parts import SMALL, part, write_picture

import blemish
from blemish.detector.predict import Detector
from blemish.errors import ConfigError
from blemish.report.foregrounds import draw_foreground
from blemish.report.heatmap import faded
from blemish.report.predictions import Gallery, View

SIDE = 128


def disc(seed: int) -> np.ndarray:
    """A dark, noisy disc in the middle of a light ground."""
    random = np.random.default_rng(seed)
    y, x = np.mgrid[:SIDE, :SIDE] - SIDE / 2 + 0.5
    pixels = 225 + random.normal(0, 2, (SIDE, SIDE, 3))
    inside = np.hypot(y, x) < 38
    pixels[inside] = (70 + random.normal(0, 12, pixels.shape))[inside]
    return np.asarray(np.clip(pixels, 0, 255), dtype=np.uint8)


@cache
def fitted() -> Detector:
    settings = {**SMALL, "image_size": SIDE, "false_alarm_rate": 0.2}
    return blemish.fit("knn", [disc(seed) for seed in range(8)], foreground="auto", **settings)


def test_overlays_show_what_counts(tmp_path: Path) -> None:
    pixels, known = disc(50), fitted()
    # All of the part is far up the scale, so that the lowest of it, which stands for the ground in
    # the map, would be tinted too.
    detector = known.with_record(dataclasses.replace(known.record, map_scale=(-1.0, -0.5)))
    prediction = detector.predict(write_picture(tmp_path / "a.png", pixels))
    assert prediction.foreground is not None
    view = View.of(prediction, detector)
    assert (view.picture == pixels).all()
    corner = np.s_[:20, :20]
    assert not prediction.foreground[:6, :6].any()
    assert (view.heatmap[corner] == faded(pixels, prediction.foreground)[corner]).all()
    assert (view.heatmap[64, 64] != pixels[64, 64]).any()
    small = View.of(prediction, detector, 64).heatmap
    assert small.shape == (64, 64, 3)
    whole = detector.predict(np.full_like(pixels, 225))
    assert whole.foreground is None


def test_faded_draws_a_line_around_the_part() -> None:
    picture = np.full((40, 40, 3), 200, np.uint8)
    places = np.zeros((10, 10), dtype=bool)
    places[3:7, 3:7] = True
    drawn = faded(picture, places)[..., 0]
    assert drawn[20, 20] == 200
    assert drawn[2, 2] == 160
    line = drawn == 128
    assert line.any()
    assert cv2.connectedComponents(line.astype(np.uint8), connectivity=8)[0] == 2  # one ring
    assert line.sum() < 80
    assert (picture == 200).all()
    assert (faded(picture, np.ones((3, 3), dtype=bool)) == 200).all()
    with pytest.raises(ConfigError, match="a picture is uint8"):
        faded(picture[..., 0], places)


def test_a_gallery_keeps_no_batch_alive() -> None:
    (prediction,) = fitted().predict_many([disc(50)])
    assert isinstance(prediction, blemish.Prediction)
    gallery = Gallery(1)
    gallery.add(prediction, rank=0)
    (kept,) = gallery
    assert kept.foreground is not None
    assert prediction.foreground is not None
    assert (kept.foreground == prediction.foreground).all()
    assert kept.foreground.base is None


def test_the_sheet(tmp_path: Path) -> None:
    path, good = tmp_path / "part.foreground.png", [disc(seed) for seed in range(30)]
    assert draw_foreground(fitted(), good, path) == path
    sheet = cv2.imread(str(path))
    assert sheet is not None
    three, one = 3, draw_foreground(fitted(), good[:3], tmp_path / "three.png")
    assert one is not None
    narrow = cv2.imread(str(one))
    assert narrow is not None
    assert narrow.shape[1] == 8 + three * (240 + 8)
    assert sheet.shape[1] == 8 + 4 * (240 + 8)
    assert 3 * 240 < sheet.shape[0] < 3 * 240 + 100
    tile = narrow[-8 - 240 : -8, 8 : 8 + 240]
    assert abs(int(tile[120, 120].mean()) - 70) < 40  # the part as it is
    assert abs(int(tile[5, 5].mean()) - (128 * 5 + 225 * 4) // 9) < 5  # the ground, faded


def test_no_sheet_where_nothing_was_learned(tmp_path: Path) -> None:
    plain = blemish.fit("knn", [part(seed) for seed in range(3)], **SMALL)
    alone = blemish.fit("knn", [part(1)], **SMALL, foreground="auto")
    for detector in (plain, alone):
        path = tmp_path / "none.png"
        assert draw_foreground(detector, [part(2)], path) is None
        assert not path.exists()


def test_report_and_figures(
    run: Callable[..., tuple[int, str, str]], answered: Callable[..., Any], tmp_path: Path
) -> None:
    root, made = tmp_path / "set", fitted().save(tmp_path / "part.blemish")
    for seed in range(4):
        write_picture(root / "train" / "good" / f"{seed}.png", disc(seed))
        write_picture(root / "test" / "good" / f"{seed}.png", disc(20 + seed))
        holed = disc(30 + seed)
        holed[60:72, 60:72] = 225
        write_picture(root / "test" / "hole" / f"{seed}.png", holed)
    report = tmp_path / "report.html"
    status, _, err = run("predict", made, root / "test", "--report", report, "--precision fp32")
    assert status in (0, 1), err
    text = report.read_text()
    assert "was taken as background and does not count" in text
    direction = fitted().record.foreground.direction  # type: ignore[union-attr]
    assert f"{direction[0]:.4g}" not in text
    assert "separation" in text
    figures = tmp_path / "figures"
    assert (
        answered("figures", made, root, "--output", figures, "--precision fp32")["anomalous"] == 4
    )
    one = blemish.load(made, precision="fp32")
    measured = answered("evaluate", made, root, "--precision fp32")
    for row in measured["rows"]:
        assert row["score"] == pytest.approx(one.predict(row["path"]).score, rel=1e-5)

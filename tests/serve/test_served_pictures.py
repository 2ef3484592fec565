"""Pictures in over HTTP, predictions out: those of `Detector.predict`."""

from __future__ import annotations

import base64
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from fuzzing import pictures as made
from live import Live, serving
from parts import Fitted, part, settings_of, write_picture
from prometheus_client.parser import text_string_to_metric_families

import blemish
from blemish.report.predictions import OVERLAY_SIDE, View

URL = "/v1/models/part/predict"


@pytest.fixture(scope="module")
def live(artifact: Path) -> Iterator[Live]:
    with serving(artifact) as running:
        yield running


def assert_same(row: dict[str, Any], known: blemish.Prediction) -> None:
    """The same picture, score and verdict; sums of another batch may differ in the last digits."""
    told = known.to_dict()
    for key in ("digest", "label", "threshold", "height", "width", "category", "notes", "p_value"):
        assert row[key] == told[key], key
    assert row["score"] == pytest.approx(told["score"], rel=1e-4)
    assert len(row["regions"] or ()) == len(told["regions"] or ())


def test_one_picture_as_the_body(live: Live, artifact: Path, pictures: list[Path]) -> None:
    detector = blemish.load(artifact)
    with live.client() as client:
        for path in pictures[:2]:
            answer = client.post(URL, content=path.read_bytes(), params={"name": path.name})
            assert answer.status_code == 200, answer.text
            told = answer.json()
            (row,) = told["predictions"]
            assert row["path"] == path.name
            assert told["version"] == live.service.models.live("part").version
            assert_same(row, detector.predict(path))


def test_many_at_once(live: Live, artifact: Path, pictures: list[Path]) -> None:
    known = {path.name: blemish.load(artifact).predict(path) for path in pictures}

    def ask(path: Path) -> dict[str, Any]:
        with live.client() as client:
            answer = client.post(URL, files={"picture": (path.name, path.read_bytes())})
        assert answer.status_code == 200, answer.text
        (row,) = answer.json()["predictions"]
        return dict(row)

    with ThreadPoolExecutor(16) as pool:
        rows = list(pool.map(ask, pictures * 6))
    for row in rows:
        assert_same(row, known[row["path"]])


def test_one_fault_among_many(live: Live, artifact: Path, pictures: list[Path]) -> None:
    files = [("picture", (path.name, path.read_bytes())) for path in pictures[:2]]
    files.insert(1, ("picture", ("broken.png", pictures[0].read_bytes()[:300])))
    with live.client() as client:
        answer = client.post(URL, files=files)
    assert answer.status_code == 200
    first, broken, last = answer.json()["predictions"]
    assert broken["path"] == "broken.png"
    assert broken["error"]["kind"] == "UnusablePicture"
    assert "truncated" in broken["error"]["message"]
    detector = blemish.load(artifact)
    for row, path in ((first, pictures[0]), (last, pictures[1])):
        assert_same(row, detector.predict(path))


def test_every_kind_of_picture(live: Live, artifact: Path) -> None:
    """16 bits, EXIF, palettes, transparency, DICOM…: through the same decoder, so the same."""
    random = np.random.default_rng(0)
    makers = (made.pngs, made.jpegs, made.webps, made.bmps, made.tiffs, made.pnms, made.dicoms)
    several = {name: content for make in makers for name, content in make(random).items()}
    detector = blemish.load(artifact)
    with live.client() as client:
        for name, content in several.items():
            answer = client.post(URL, content=content, params={"name": name})
            assert answer.status_code == 200, (name, answer.text)
            assert_same(answer.json()["predictions"][0], detector.predict(content))
    assert len(several) > 40


def test_a_picture_in_tiles(fitted: Fitted, tmp_path: Path) -> None:
    good = [part(seed, height=96, width=160) for seed in range(6)]
    settings = {**settings_of("knn"), "image_size": 32, "tile": 64}
    path = blemish.fit("knn", good, **settings).save(tmp_path / "part.blemish")
    content = write_picture(tmp_path / "x.tiff", part(7, defect=True, height=96, width=160))
    detector = blemish.load(path)
    assert detector.preprocessing.tiling is not None
    known = detector.predict(content)
    with serving(path, store_folder=tmp_path / "store") as tiled, tiled.client() as client:
        (row,) = client.post(URL, content=content.read_bytes()).json()["predictions"]
        assert_same(row, known)
        store = tiled.service.store
        assert store is not None
        assert store.thumbnail(row["digest"]) is not None


def test_categories(tmp_path: Path) -> None:
    """Named in the request, or told from the picture."""
    for name, step in (("light", 0), ("dark", 90)):
        for seed in range(6):
            pixels = np.clip(part(seed).astype(int) - step, 0, 255).astype(np.uint8)
            write_picture(tmp_path / "data" / name / "train" / "good" / f"{seed}.png", pixels)
    path = blemish.fit("knn", tmp_path / "data", **settings_of("knn")).save(
        tmp_path / "part.blemish"
    )
    detector, picture = blemish.load(path), tmp_path / "data" / "dark" / "train" / "good" / "1.png"
    assert set(detector.categories) == {"light", "dark"}
    with serving(path) as several, several.client() as client:
        for category in ("", "light", "dark", "auto"):
            answer = client.post(
                URL, content=picture.read_bytes(), params={"category": category}
            ).json()
            known = detector.predict(picture, category=category)
            assert_same(answer["predictions"][0], known)
        answer = client.post(URL, content=picture.read_bytes(), params={"category": "nut"})
        assert answer.status_code == 400
        assert "unknown category 'nut'" in answer.text


def test_heatmaps(live: Live, artifact: Path, pictures: list[Path]) -> None:
    detector = blemish.load(artifact)
    known = detector.predict(pictures[0])
    with live.client() as client:
        for kind, channels in (("png", 1), ("overlay", 3)):
            answer = client.post(
                URL, content=pictures[0].read_bytes(), params={"heatmap": kind}
            ).json()
            told = answer["predictions"][0]["heatmap"]
            assert told["media_type"] == "image/png"
            coded = np.frombuffer(base64.b64decode(told["data"]), np.uint8)
            drawn = cv2.imdecode(coded, cv2.IMREAD_UNCHANGED)
            assert drawn is not None
            assert drawn.shape[:2] == known.size
            assert drawn.ndim == (2 if channels == 1 else 3)
            if channels == 1:
                low, high = detector.map_scale
                level = np.clip((known.heatmap - low) / (high - low), 0, 1) * 255
                assert np.abs(drawn - level).max() <= 1
            else:
                view = View.of(known, detector, OVERLAY_SIDE, pictures[0]).heatmap
                assert np.abs(drawn[..., ::-1].astype(int) - view).max() <= 2
        assert client.post(URL, content=b"x", params={"heatmap": "svg"}).status_code == 400


def test_a_heatmap_alone(live: Live, artifact: Path, pictures: list[Path]) -> None:
    known = blemish.load(artifact).predict(pictures[0])
    with live.client() as client:
        answer = client.post(URL, content=pictures[0].read_bytes(), headers={"Accept": "image/png"})
        assert answer.headers["Content-Type"] == "image/png"
        assert float(answer.headers["X-Blemish-Score"]) == pytest.approx(known.score, rel=1e-4)
        assert answer.headers["X-Blemish-Label"] == str(known.label)
        assert answer.headers["X-Blemish-Version"] == live.service.models.live("part").version
        assert answer.content.startswith(b"\x89PNG")
        broken = client.post(URL, content=b"x", headers={"Accept": "image/png"})
    assert broken.status_code == 422
    assert broken.json()["error"]["kind"] == "UnusablePicture"


@pytest.mark.parametrize(
    ("how", "status", "says"),
    [
        ({"content": b""}, 400, "empty"),
        ({"files": {"other": ("", b"x")}}, 400, "no file"),
        ({"data": {"a": "b"}, "files": {"x": (None, b"c")}}, 400, "no file"),
        ({"content": b"x", "headers": {"Content-Type": "multipart/form-data"}}, 400, "boundary"),
        (
            {"content": b"x", "headers": {"Content-Type": "multipart/mixed; boundary=a"}},
            415,
            "form",
        ),
        ({"content": b"x", "headers": {"Content-Encoding": "gzip"}}, 415, "compressed"),
        ({"content": b"no picture"}, 422, "the picture"),
    ],
)
def test_what_holds_no_picture(live: Live, how: dict[str, Any], status: int, says: str) -> None:
    with live.client() as client:
        answer = client.post(URL, **how)
    assert answer.status_code == status, answer.text
    assert says in answer.json()["error"]["message"]


def test_other_addresses(live: Live) -> None:
    with live.client() as client:
        for method, path, status in (
            ("GET", "/nothing", 404),
            ("GET", URL, 405),
            ("POST", "/v1/models/other/predict", 404),
            ("GET", "/v1/models/other", 404),
        ):
            answer = client.request(method, path)
            assert answer.status_code == status
            assert set(answer.json()["error"]) == {"kind", "message"}


def test_metrics(artifact: Path, pictures: list[Path]) -> None:
    with serving(artifact) as own, own.client() as client:
        for path in pictures[:3]:
            client.post(URL, content=path.read_bytes())
        client.post(URL, content=b"x")
        text = client.get("/metrics").text
        version = own.service.models.live("part").version
    found = {
        (sample.name, *sorted(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }
    which = (("model", "part"), ("version", version))

    def value(name: str, *more: tuple[str, str]) -> float:
        return found[(name, *sorted((*which, *more)))]

    assert value("blemish_predictions_total", ("verdict", "anomalous")) == 2
    assert value("blemish_predictions_total", ("verdict", "normal")) == 1
    assert value("blemish_failures_total") == 1
    assert value("blemish_score_count") == 3
    assert value("blemish_batch_pictures_sum") == 3
    assert found[("blemish_queue_pictures",)] == 0
    assert found[("blemish_stage_seconds_count", ("stage", "compute"))] == 3
    route = ("route", "/v1/models/{name}/predict")
    assert found[("blemish_requests_total", route, ("status", "200"))] == 3
    assert found[("blemish_requests_total", route, ("status", "422"))] == 1

"""The pages as any client gets them: what they show, whom they let in, what they refuse."""

from __future__ import annotations

import re
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from live import Live, serving
from visits import HTML, PAGES, csrf_of, page, said, sent

from blemish.store import Label, Scored, Store

HOSTILE = '"><script>alert(1)</script><img src=x onerror=alert(2)>{{7*7}}\u202e'


@pytest.fixture
def live(artifact: Path, tmp_path: Path) -> Iterator[Live]:
    with serving(artifact, store_folder=tmp_path / "store") as one:
        yield one


@pytest.mark.parametrize("path", PAGES)
def test_pages_without_pictures_say_so(live: Live, path: str) -> None:
    with live.client() as client:
        text = page(client, path)
    expected = {
        "/live": "No picture yet",
        "/pictures": "None is as asked for",
        "/review": "Nothing waits for review",
        "/figures": "No picture that version",
        "/models": "nobody has promoted one yet",
    }
    assert expected[path] in text


@pytest.mark.parametrize("path", PAGES)
def test_pages_without_a_store_say_so(artifact: Path, path: str) -> None:
    with serving(artifact) as live, live.client() as client:
        text = page(client, path)
    assert path == "/models" or re.search("keeps nothing|Nothing is kept", text)


def test_pages_with_pictures(live: Live, pictures: list[Path]) -> None:
    with live.client() as client:
        rows = sent(client, pictures, source="camera 3")
        for path in (*PAGES, "/live/feed", "/live/summary"):
            assert "camera 3" in page(client, path) or path in ("/models", "/live/summary")
        defect = next(row for row in rows if row["label"])
        text = page(client, f"/pictures/{defect['id']}")
        assert "above the threshold of" in text
        assert "Of good pictures, at most" in text
        assert f"/media/heatmaps/{defect['id']}" in text
        assert text.count('<polygon class="over"') >= 1
        page(client, "/pictures/999999", 404)


def test_media_are_what_was_sent(live: Live, pictures: list[Path]) -> None:
    with live.client() as client:
        (row,) = sent(client, pictures[:1])
        full = client.get(f"/media/pictures/{row['digest']}")
        assert (full.content, full.headers["content-type"]) == (
            pictures[0].read_bytes(),
            "image/png",
        )
        assert (
            client.get(f"/media/thumbnails/{row['digest']}").headers["content-type"] == "image/jpeg"
        )
        heat = client.get(f"/media/heatmaps/{row['id']}").content
        drawn = cv2.imdecode(np.frombuffer(heat, np.uint8), cv2.IMREAD_UNCHANGED)
        assert drawn.shape[2] == 4
        assert drawn[..., 3].max() > drawn[..., 3].min()  # opaque only where it stands out
        for path in (f"/media/pictures/{'0' * 32}", "/media/pictures/..%2fx", "/media/heatmaps/99"):
            assert client.get(path).status_code == 404


def test_what_browsers_do_not_show_comes_as_png(live: Live, tmp_path: Path) -> None:
    deep = tmp_path / "deep.tif"
    pixels = np.full((64, 64), 40_000, np.uint16)
    cv2.imwrite(str(deep), pixels)
    with live.client() as client:
        (row,) = sent(client, [deep])
        answer = client.get(f"/media/pictures/{row['digest']}")
        assert answer.headers["content-type"] == "image/png"
        assert answer.content.startswith(b"\x89PNG")


def test_hostile_names_are_text(live: Live, pictures: list[Path]) -> None:
    with live.client() as client:
        content = pictures[0].read_bytes()
        answer = client.post(
            "/v1/models/part/predict",
            files={"picture": ("x.png", content)},
            params={"source": HOSTILE[:150]},
        )
        assert answer.status_code == 200
        (row,) = answer.json()["predictions"]
        client.headers |= csrf_of(page(client, "/review"))
        answer = client.post("/review/label", files=said(row, "defect", defect='"><b onclick=x>'))
        assert answer.status_code == 200
        for path in (
            *PAGES,
            f"/pictures/{row['id']}",
            "/pictures?reviewed=yes&source=%3Cscript%3E",
        ):
            text = page(client, path)
            assert "<script>" not in text
            assert "<img src=x" not in text
            assert "<b onclick" not in text
        assert "&lt;script&gt;" in page(client, f"/pictures/{row['id']}")


def test_a_label_is_kept_shown_and_taken_back(live: Live, pictures: list[Path]) -> None:
    with live.client() as client:
        rows = sent(client, pictures)
        headers = csrf_of(page(client, "/review"))
        answer = client.post("/review/label", files=said(rows[0], "good"), headers=headers)
        assert "Kept: good." in answer.text
        assert rows[0]["digest"] not in answer.text  # the next one
        assert 'class="reviewed good"' in page(client, f"/pictures/{rows[0]['id']}")
        undone = client.post("/review/undo", data={}, headers=headers)
        assert "Taken back: good" in undone.text
        assert rows[0]["digest"] in undone.text
        again = client.post("/review/undo", data={}, headers=headers)
        assert "no label of yours" in again.text
        assert "taken back" in page(client, f"/pictures/{rows[0]['id']}")


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({"verdict": "perhaps"}, "verdict"),
        ({"verdict": ""}, "say what the picture is"),
        ({"picture": "../../etc"}, "no digest"),
        ({"prediction": "12x"}, ""),
        ({"prediction": "999"}, "prediction"),
        ({"defect": "x" * 101, "verdict": "defect"}, "defect"),
        ({"verdict": "defect", "mask": ("mask.png", b"no mask")}, "mask"),
    ],
)
def test_labels_that_cannot_be_are_refused(
    live: Live, pictures: list[Path], given: dict[str, Any], told: str
) -> None:
    with live.client() as client:
        (row,) = sent(client, pictures[:1])
        headers = csrf_of(page(client, "/review"))
        form = said(row, given.pop("verdict", "good"), **given)
        answer = client.post("/review/label", files=form, headers=headers)
        assert answer.status_code in (400, 422), answer.text
        assert told in answer.json()["error"]["message"]
        assert live.service.store is not None
        assert live.service.store.labels(row["digest"]) == []


def test_a_mask_that_was_drawn_smaller_is_enlarged(live: Live, pictures: list[Path]) -> None:
    with live.client() as client:
        (row,) = sent(client, pictures[:1])
        headers = csrf_of(page(client, "/review"))
        small = np.zeros((row["height"] // 2, row["width"] // 2), np.uint8)
        small[2:6, 4:10] = 255
        png = bytes(cv2.imencode(".png", small)[1])
        form = said(row, "defect", mask=("mask.png", png))
        assert client.post("/review/label", files=form, headers=headers).status_code == 200
        text = page(client, f"/pictures/{row['id']}")
        found = re.search(r'data-mask="(/media/masks/\d+)"', text)
        assert found is not None
        mask = cv2.imdecode(
            np.frombuffer(client.get(found[1]).content, np.uint8), cv2.IMREAD_GRAYSCALE
        )
        assert mask.shape == (row["height"], row["width"])
        assert (mask[4:12, 8:20] == 255).all()
        assert (mask > 0).sum() == 8 * 12
        wrong = bytes(cv2.imencode(".png", small[:, :10])[1])
        form = said(row, "defect", mask=("mask.png", wrong))
        assert client.post("/review/label", files=form, headers=headers).status_code == 422


def test_thousands_of_pictures_come_by_the_page(live: Live) -> None:
    store = live.service.store
    assert store is not None
    fill(store, live.service.models.live("part").version, 3000)
    with live.client() as client:
        seen: list[str] = []
        path = "/pictures?order=highest"
        for _ in range(3):
            text = page(client, path)
            ids = re.findall(r'data-id="(\d+)"', text)
            assert len(ids) == 60
            seen += ids
            found = re.search(r'class="more"><a class="button" href="([^"]+)"', text)
            assert found is not None
            path = found[1].replace("&amp;", "&")
        assert len(set(seen)) == 180
        part = client.get(path, headers={**HTML, "HX-Request": "true"}).text
        assert "<html" not in part  # htmx asks for the rows alone
        assert part.count("<li>") == 60
        assert "3\u202f000" in page(client, "/pictures")
        for other in PAGES:
            assert len(page(client, other)) < 200_000


def fill(store: Store, version: str, count: int) -> list[int]:
    """Predictions without pictures, of the last days."""
    now = datetime.now(UTC)
    random = np.random.default_rng(0)
    rows = [
        Scored(
            picture=f"{at:032x}",
            model="part",
            version=version,
            score=float(score),
            threshold=2.0,
            label=int(score > 2),
            height=64,
            width=64,
            source=f"camera {at % 3}",
            time=now - timedelta(minutes=count - at),
        )
        for at, score in enumerate(random.normal(size=count))
    ]
    return store.add_predictions(rows)


def test_figures_say_what_reviewers_found(live: Live) -> None:
    store = live.service.store
    assert store is not None
    version = live.service.models.live("part").version
    fill(store, version, 400)
    with live.client() as client:
        page(client, "/review")  # places them
        placed = store.queue("part", limit=120)
        rows = {row.picture: row for row in store.predictions(model="part", limit=400)}
        for draw in placed:
            verdict = "defect" if rows[draw.picture].score > 1.5 else "good"
            store.add_label(Label(picture=draw.picture, verdict=verdict, reviewer="Ada"))
        text = page(client, "/figures?by=camera&threshold=2")
        assert f"version {version}" in text
        assert "From 120 reviewed pictures" in text
        for camera in ("camera 0", "camera 1", "camera 2"):
            assert camera in text
        curve = client.get("/figures/curve").json()
        alarms = curve["false_alarm_rate"]["value"]
        assert alarms == sorted(alarms, reverse=True)
        misses = [one for one in curve["miss_rate"]["value"] if one is not None]
        assert misses == sorted(misses)
        at = np.searchsorted(curve["thresholds"], 2.0, side="right") - 1
        assert alarms[at] == 0  # every good one scores at most 1.5
        assert misses[at] > 0.3
        assert client.get("/figures?threshold=nan", headers=HTML).status_code == 400


def test_files_of_the_pages_may_be_kept_for_good(live: Live) -> None:
    with live.client() as client:
        found = set(re.findall(r'"(/static/[^"]+)"', page(client, "/review")))
        assert len(found) >= 5
        editions = {path.split("/")[2] for path in found}
        assert len(editions) == 1  # so that scripts import the same ones, and those once
        for path in found:
            answer = client.get(path)
            assert answer.status_code == 200
            assert "immutable" in answer.headers["cache-control"]
        (edition,) = editions
        for path in (
            f"{edition}/../service.py",
            f"{edition}/%2e%2e/service.py",
            "x/style.css",
            "x",
        ):
            assert client.get(f"/static/{path}").status_code == 404


def test_pictures_that_are_not_kept(artifact: Path, tmp_path: Path, pictures: list[Path]) -> None:
    asked = {"store_folder": tmp_path / "store", "keep_pictures": False, "keep_maps": False}
    with serving(artifact, **asked) as live, live.client() as client:
        (row,) = sent(client, pictures[:1])
        text = page(client, f"/pictures/{row['id']}")
        assert "not kept in full" in text
        assert "/media/heatmaps/" not in text
        assert "data-draws" not in text  # a mask needs the picture's own pixels
        told = page(client, f"/pictures/{row['id']}/likeness")
        assert "That cannot be told: the picture is not kept" in told


def test_likeness_shows_good_pictures_alone(live: Live, pictures: list[Path]) -> None:
    with live.client() as client:
        rows = sent(client, pictures)
        headers = csrf_of(page(client, "/review"))
        defects = [row for row in rows if row["label"]]
        good = [row for row in rows if not row["label"]]
        client.post("/review/label", files=said(good[0], "defect"), headers=headers)
        told = page(client, f"/pictures/{defects[0]['id']}/likeness")
        shown = re.findall(r'href="/pictures/(\d+)"', told)
        assert 1 <= len(shown) <= 3
        usable = {str(row["id"]) for row in good[1:]}
        assert set(shown) <= usable  # neither alarms nor what people called a defect
        similar = [float(one) for one in re.findall(r"<figcaption>(\d\.\d+)", told)]
        assert similar == sorted(similar, reverse=True)
        assert f"among {len(usable)} kept here" in told


def test_a_change_is_told_though_nobody_looks(live: Live) -> None:
    store, follower = live.service.store, live.service.follower
    assert store is not None
    assert follower is not None
    served = live.service.models.live("part")
    usual = served.detector.record.calibration_scores
    high = max(usual) * 1.5
    rows = [
        Scored(
            picture=f"{at:032x}",
            model="part",
            version=served.version,
            score=high,
            threshold=2 * high,
            label=0,
            height=64,
            width=64,
            source="camera 1",
        )
        for at in range(400)
    ]
    store.add_predictions(rows)
    live.run(follower.look())
    (told, *_) = [one for one in live.lines if one["event"] == "drift"]
    assert (told["model"], told["version"]) == ("part", served.version)
    with live.client() as client:
        assert "alarming" in page(client, "/live")
        assert "A change was noticed" in page(client, "/figures")
        evidence = re.search(r"blemish_drift\{.*\} (.*)", client.get("/metrics").text)
        assert evidence is not None
        assert float(evidence[1]) > 300
    before = len(live.lines)
    live.run(follower.look())  # an alarm that stands is told once
    assert not [one for one in live.lines[before:] if one["event"] == "drift"]

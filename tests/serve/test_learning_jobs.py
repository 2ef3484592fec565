"""Jobs that learn from what was reviewed, over the API, on real services and processes."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from live import Live, serving
from parts import part, settings_of, write_picture

import blemish
from blemish.serve.joining import next_version
from blemish.serve.refining import is_held
from blemish.store import Draw, Job, Label, Scored, Store

PATIENCE = 120.0


@pytest.fixture(scope="module")
def detector() -> blemish.Detector:
    good = [part(seed) for seed in range(20)]
    return blemish.fit("lda", good, normality="knn", **settings_of("lda"))


@pytest.fixture
def live(detector: blemish.Detector, tmp_path: Path) -> Iterator[Live]:
    """A service with a folder of models and a store."""
    detector.save(tmp_path / "models" / "part" / "1.blemish")
    with serving(
        tmp_path / "models", store_folder=tmp_path / "store", device="cpu", precision="fp32"
    ) as live:
        yield live


def review(live: Live, detector: blemish.Detector, good: int, bad: int, drawn: str = "") -> None:
    """Pictures that were predicted and labelled."""
    store = live.service.store
    for seed in range(400, 400 + good + bad):
        defective = seed >= 400 + good
        pixels = part(seed, defect=defective)
        path = write_picture(store.folder / "one.png", pixels)
        found = detector.predict(path)
        store.put_picture(found.digest, path.read_bytes())
        store.add_predictions([Scored.of(found, model="part", version="1")])
        if drawn:
            store.add_draws(
                [
                    Draw(picture=found.digest, model="part", version="1", stratum=drawn,
                         probability=0.5)
                ]
            )  # fmt: skip
        mask = None
        if defective and seed % 2:
            marked = np.abs(pixels.astype(int) - part(seed)).sum(2) > 0
            mask = cv2.imencode(".png", marked.astype(np.uint8) * 255)[1].tobytes()
        store.add_label(
            Label(
                picture=found.digest,
                verdict="defect" if defective else "good",
                defect="square" if defective else "",
                reviewer="Ada",
                mask=mask,
            )
        )


def ended(live: Live, id: int) -> dict[str, Any]:
    """A job, once it has ended."""
    until = time.monotonic() + PATIENCE
    with live.client() as client:
        while time.monotonic() < until:
            job: dict[str, Any] = client.get(f"/v1/jobs/{id}").json()
            if job["state"] in ("done", "failed", "cancelled"):
                return job
            time.sleep(0.05)
    raise AssertionError(f"job {id} has not ended")


def test_from_labels_to_a_version_that_is_promoted(
    live: Live, detector: blemish.Detector, tmp_path: Path
) -> None:
    review(live, detector, good=20, bad=12)
    with live.client() as client:
        plan = client.get("/v1/models/part/refine").json()
        assert (plan["how"], plan["missing"], plan["unkept"]) == ("refine", "", 0)
        assert plan["good"] + plan["held_good"] == 20
        assert plan["defects"] + plan["held_defects"] == 12
        answer = client.post("/v1/models/part/refine")
        assert answer.status_code == 202
        id = answer.json()["job"]
        assert client.post("/v1/models/part/refine").status_code == 409  # one at a time
        job = ended(live, id)
        assert (job["state"], job["progress"]) == ("done", 1.0), job
        result = job["result"]
        assert result["version"] == "2"
        assert (result["learned"]["good"], result["learned"]["defects"]) == (
            plan["good"], plan["defects"],
        )  # fmt: skip
        held = result["held"]
        assert held["after"]["found"] == held["defects"] == plan["held_defects"]
        assert all(is_held(row["picture"]) for row in held["rows"])
        # None of these was drawn at random, so none is evidence for its regions.
        assert "there are 0" in result["regions"]["after"]["reason"]

        versions = client.get("/v1/models/part").json()["versions"]
        assert [(one["version"], one["live"]) for one in versions] == [("1", True), ("2", False)]
        assert client.post("/v1/models/part/promote", json={"version": "2"}).status_code == 200
        picture = (tmp_path / "store" / "one.png").read_bytes()
        scored = client.post("/v1/models/part/predict", content=picture).json()
        assert scored["version"] == "2"
        # What it learned from is known, and told again by the version's own row.
        store = live.service.store
        row = store.version("part", "2")
        assert (row.base, row.learned_from["defects"]) == ("1", plan["defects"])
        assert len(row.learned_from["pictures"]) == plan["good"] + plan["defects"]
        known = {one.row.picture for one in store.reviewed("part")}
        assert set(row.learned_from["pictures"]) == {one for one in known if not is_held(one)}
        assert {one.version for one in store.other_scores(held["rows"][0]["picture"])} == {"1", "2"}
        # Nothing is left behind, and there is nothing new.
        assert not list((tmp_path / "store" / "jobs").iterdir())
        assert {one.name for one in (tmp_path / "models" / "part").iterdir()} == {
            "1.blemish", "2.blemish",
        }  # fmt: skip
        refused = client.post("/v1/models/part/refine")
        assert (refused.status_code, refused.json()["error"]["kind"]) == (409, "NothingToLearn")
        listed = client.get("/v1/models/part/jobs").json()["jobs"]
        assert [one["job"] for one in listed] == [id]
        assert "rows" not in listed[0]["result"]["held"]


def test_a_service_of_a_file_keeps_its_versions_in_the_store(
    detector: blemish.Detector, tmp_path: Path
) -> None:
    file = detector.save(tmp_path / "part.blemish")
    how = {"store_folder": tmp_path / "store", "device": "cpu", "precision": "fp32"}
    with serving(file, **how) as live:
        review(live, detector, good=4, bad=6)
        with live.client() as client:
            job = ended(live, client.post("/v1/models/part/refine").json()["job"])
            assert job["state"] == "done", job
            version = job["result"]["version"]
            assert client.post("/v1/models/part/promote", json={"version": version}).is_success
    assert (tmp_path / "store" / "models" / "part" / f"{version}.blemish").is_file()
    with serving(file, **how) as live:
        assert live.service.models.live("part").version == version


def test_only_pictures_drawn_at_random_set_a_threshold_anew(
    detector: blemish.Detector, tmp_path: Path
) -> None:
    knn = blemish.fit("knn", [part(seed) for seed in range(20)], **settings_of("knn"))
    knn.save(tmp_path / "models" / "part" / "1.blemish")
    how = {"store_folder": tmp_path / "store", "device": "cpu", "precision": "fp32"}
    with serving(tmp_path / "models", **how) as live, live.client() as client:
        review(live, knn, good=40, bad=0, drawn="threshold")
        plan = client.get("/v1/models/part/refine").json()
        assert (plan["how"], plan["good"]) == ("calibrate", 0)
        assert "blemish fit lda" in plan["because"]
        assert "0 good pictures drawn at random" in plan["missing"]
        for one in live.service.store.reviewed("part"):
            live.service.store.undo_label("Ada")
            assert one.verdict == "good"
        review(live, knn, good=40, bad=0, drawn="random")
        begun = client.post("/v1/models/part/refine?rate=0.2")
        assert begun.status_code == 202, begun.json()
        job = ended(live, begun.json()["job"])
        assert (job["state"], job["result"]["how"]) == ("done", "calibrate"), job
        assert live.service.store.version("part", job["result"]["version"]).rate == 0.2
        assert client.post("/v1/models/part/refine?rate=2").status_code == 400


def test_regions_after_learning_from_defects(
    live: Live, detector: blemish.Detector, tmp_path: Path
) -> None:
    """They come from good pictures that were drawn at random, learned from or held out."""
    review(live, detector, good=30, bad=8, drawn="random")
    with live.client() as client:
        client.post("/v1/models/part/refine?rate=0.1").raise_for_status()
        job = ended(live, 1)
        assert job["state"] == "done", job
        regions, plan = job["result"]["regions"], job["settings"]["plan"]
        assert regions["after"]["pictures"] == plan["good"] + plan["held_good"] == 30
        assert regions["after"]["reason"] == ""
        assert regions["after"]["threshold"] != regions["before"]["threshold"]
        page = client.get("/refine?model=part").text
        assert "Regions are shown from" in page
    after = blemish.load(tmp_path / "models" / "part" / "2.blemish", device="cpu")
    assert after.predict(part(777, defect=True)).regions


def test_a_job_that_is_cancelled_leaves_nothing(
    live: Live, detector: blemish.Detector, tmp_path: Path
) -> None:
    review(live, detector, good=8, bad=6)
    with live.client() as client:
        id = client.post("/v1/models/part/refine").json()["job"]
        while client.get(f"/v1/jobs/{id}").json()["state"] == "waiting":
            time.sleep(0.02)
        answer = client.delete(f"/v1/jobs/{id}")
        assert (answer.status_code, answer.json()["state"]) == (200, "cancelled")
        assert client.delete(f"/v1/jobs/{id}").status_code == 404
        assert client.get("/v1/jobs/999").status_code == 404
        assert [one["version"] for one in client.get("/v1/models/part").json()["versions"]] == ["1"]
    assert not list((tmp_path / "store" / "jobs").iterdir())
    assert [one.name for one in (tmp_path / "models" / "part").iterdir()] == ["1.blemish"]


def test_a_job_that_fails_says_why_without_a_path(
    live: Live, detector: blemish.Detector, tmp_path: Path
) -> None:
    review(live, detector, good=4, bad=4)
    served = live.service.models.versions("part")[0]
    content = served.path.read_bytes()
    served.path.write_bytes(content[:-100])
    with live.client() as client:
        job = ended(live, client.post("/v1/models/part/refine").json()["job"])
    assert job["state"] == "failed"
    assert "1.blemish" in job["message"]
    assert str(tmp_path) not in str(job)


def test_what_a_killed_service_left_is_told_and_swept(
    detector: blemish.Detector, tmp_path: Path
) -> None:
    folder = tmp_path / "models" / "part"
    detector.save(folder / "1.blemish")
    with Store.open(None, tmp_path / "store") as store:
        id = store.add_job(Job(model="part", kind="refine", who="Ada", state="running"))
    left = [folder / f".job-{id}.blemish", tmp_path / "store" / "jobs" / f"{id}"]
    left[0].write_bytes(b"half")
    left[1].mkdir(parents=True)
    later = folder / f".job-{id + 1}.blemish"
    later.write_bytes(b"half")
    with serving(tmp_path / "models", store_folder=tmp_path / "store") as live:
        job = live.run(live.service.jobs.job(id))
        assert (job.state, "ended" in job.message) == ("failed", True)
    assert not any(path.exists() for path in left)
    assert later.exists()  # another service may have begun it just now


def test_who_may(detector: blemish.Detector, tmp_path: Path) -> None:
    detector.save(tmp_path / "models" / "part" / "1.blemish")
    tokens = tmp_path / "tokens"
    tokens.write_text("predict camera camera-0123456789\nreview Ada ada-0123456789abc\n")
    tokens.chmod(0o600)
    how = {"store_folder": tmp_path / "store", "token_file": tokens}
    with serving(tmp_path / "models", **how) as live:
        with live.client("camera-0123456789") as camera:
            assert camera.get("/v1/models/part/refine").status_code == 403
            assert camera.post("/v1/models/part/refine").status_code == 403
        with live.client("ada-0123456789abc") as ada:
            assert ada.get("/v1/models/part/refine").status_code == 200
            assert ada.get("/v1/models/none/refine").status_code == 404


def test_without_a_store(detector: blemish.Detector, tmp_path: Path) -> None:
    file = detector.save(tmp_path / "part.blemish")
    with serving(file) as live, live.client() as client:
        refused = client.post("/v1/models/part/refine")
        assert (refused.status_code, refused.json()["error"]["kind"]) == (409, "NothingKept")


def test_names_of_versions() -> None:
    assert next_version(["1", "2", "10"]) == "11"
    assert next_version(["v1", "12345678"]) == "1"

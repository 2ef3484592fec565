"""What people, crashes and other services do to a service: faults that were found by hand."""

from __future__ import annotations

import asyncio
import errno
import io
import json
import os
import shutil
import threading
from datetime import UTC, datetime
from pathlib import Path

import httpx2 as httpx
import pytest
from live import Live, serving
from parts import Fitted

from blemish.errors import BlemishError, StoreError
from blemish.serve import jobs, joining, running
from blemish.serve.jobs import Plan
from blemish.serve.logs import Log
from blemish.serve.pages import words
from blemish.serve.reviewing import WHY
from blemish.serve.security import COOKIE
from blemish.store import Job, Row, VersionRow


@pytest.fixture
def folder(artifact: Path, tmp_path: Path) -> Path:
    """A folder of models: part, with version 1."""
    own = tmp_path / "models" / "part"
    own.mkdir(parents=True)
    shutil.copy(artifact, own / "1.blemish")
    return own.parent


def live_version(live: Live) -> str:
    return live.service.models.live("part").version


def test_the_pages_lead_to_all_tabs(folder: Path) -> None:
    with serving(folder) as live, live.client() as client:
        page = client.get("/live").text
    for tab in ("live", "pictures", "review", "figures", "refine", "models"):
        assert f'href="/{tab}?' in page


def test_numbers_that_no_row_has(folder: Path, tmp_path: Path) -> None:
    with serving(folder, store_folder=tmp_path / "store") as live, live.client() as client:
        for number in (10**30, 2**63, 0, -5):
            for path in ("/v1/jobs/{}", "/media/masks/{}", "/media/heatmaps/{}", "/pictures/{}"):
                assert client.get(path.format(number)).status_code == 404, (path, number)


def test_what_was_taken_in_is_not_live_after_a_restart(
    folder: Path, tmp_path: Path, fitted: Fitted
) -> None:
    another = fitted("knn").with_threshold(1e9).save(tmp_path / "another.blemish")
    with serving(folder, store_folder=tmp_path / "store") as live, live.client() as client:
        answer = client.post("/v1/models/part/versions?version=2", content=another.read_bytes())
        assert answer.status_code == 201, answer.text
    with serving(folder, store_folder=tmp_path / "store") as live:
        assert live_version(live) == "1"


def test_a_file_that_is_named_is_live_before_what_was_taken_in(
    artifact: Path, tmp_path: Path, fitted: Fitted
) -> None:
    taken_in = tmp_path / "store" / "models" / "part"
    taken_in.mkdir(parents=True)
    fitted("knn").with_threshold(1e9).save(taken_in / "zz.blemish")  # after every digest
    with serving(artifact, store_folder=tmp_path / "store") as live:
        assert live_version(live) == live.service.models.live("part").digest[:8]


def test_a_damaged_version_does_not_stop_the_rest(
    folder: Path, tmp_path: Path, fitted: Fitted
) -> None:
    fitted("knn").with_threshold(1e9).save(folder / "part" / "2.blemish")
    with serving(folder, store_folder=tmp_path / "store") as live, live.client() as client:
        client.post("/v1/models/part/promote", json={"version": "1"}).raise_for_status()
        client.post("/v1/models/part/promote", json={"version": "2"}).raise_for_status()
    shutil.copy(folder / "part" / "2.blemish", folder / "part" / "3.blemish")
    (folder / "part" / "2.blemish").write_bytes(b"damaged")
    (folder / "other").mkdir()
    (folder / "other" / "1.onnx").write_bytes(b"damaged too")
    with serving(folder, store_folder=tmp_path / "store") as live:
        assert live.service.models.names == ["part"]
        assert live_version(live) == "1"  # was live before; 3 never was
        told = [line["reason"] for line in live.lines if line["event"] == "a version is not served"]
        assert len(told) == 4
        assert "part: version 1 is live in place of 2, which was promoted" in told
        with live.client() as client:
            assert client.get("/models").status_code == 200
            assert client.get("/v1/models/other").status_code == 404
    (folder / "part" / "1.blemish").write_bytes(b"damaged")
    with pytest.raises(BlemishError), serving(folder, store_folder=tmp_path / "store"):
        pass


def test_what_was_on_its_way_in_a_crash_is_swept(folder: Path) -> None:
    left = folder / "part" / ".blemish-0011223344556677.onnx"
    coming = folder / "part" / ".blemish-8899aabbccddeeff.onnx"
    for one in (left, coming):
        one.write_bytes(b"half")
    os.utime(left, (0, 0))
    with serving(folder):
        assert not left.exists()
        assert coming.exists()  # another service may be receiving it


def test_two_services_of_one_machine_leave_each_other_their_sessions(
    folder: Path, tmp_path: Path
) -> None:
    """Browsers give one cookie jar to all ports of a host."""
    with serving(folder) as one, serving(folder) as another:
        # As of two ports that were chosen; these services were given any that was free.
        for live, port in ((one, 8000), (another, 8001)):
            live.service.gate._cookie = f"{COOKIE}_{port}"
        jar = httpx.Cookies()
        tokens = []
        for live in (one, another):
            with live.client() as client:
                page = client.get("/live", headers={"Cookie": _of(jar)})
                jar.update(page.cookies)
                tokens.append(page.text.partition('name="csrf" content="')[2].partition('"')[0])
        with one.client() as client:
            headers = {"Cookie": _of(jar), "X-CSRF-Token": tokens[0], "Origin": one.url}
            answer = client.post("/v1/models/part/roll-back", headers=headers)
        assert answer.status_code == 409  # there is nothing to go back to, but it was heard


def _of(jar: httpx.Cookies) -> str:
    return "; ".join(f"{name}={value}" for name, value in jar.items())


def test_the_cookie_is_named_by_the_port(folder: Path, tmp_path: Path) -> None:
    with serving(folder) as live, live.client() as client:
        assert f"{COOKIE}_{live.settings.port}=" in client.get("/live").headers["set-cookie"]


def test_of_two_jobs_at_once_one_is_refused(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = Plan(
        how="refine", because="", good=1, defects=0, held_good=0, held_defects=0, unkept=0,
        unsettled=0, missing="",
    )  # fmt: skip
    ended = threading.Event()

    async def gathered(*given: object) -> tuple[Plan, list[object], list[object]]:
        await asyncio.sleep(0.05)
        return plan, [], []

    async def worked(self: jobs.Jobs, *given: object) -> None:
        while not ended.is_set():
            await asyncio.sleep(0.01)

    monkeypatch.setattr(jobs.Jobs, "_gathered", gathered)
    monkeypatch.setattr(jobs.Jobs, "_worked", worked)
    with serving(folder, store_folder=tmp_path / "store") as live:
        statuses: list[int] = []

        def begin() -> None:
            with live.client() as client:
                statuses.append(client.post("/v1/models/part/refine").status_code)

        threads = [threading.Thread(target=begin) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        ended.set()
        assert sorted(statuses) == [202, 409, 409, 409]
        assert live.service.store is not None
        assert len(live.service.store.jobs("part")) == 1


def test_who_cancels_a_version_that_joins_comes_too_late() -> None:
    done: list[str] = []

    async def join() -> str:
        await asyncio.sleep(0.05)
        done.append("joined")
        return "2"

    async def cancelled() -> str:
        task = asyncio.create_task(jobs._to_its_end(join()))
        await asyncio.sleep(0.01)
        task.cancel()
        return await task

    assert asyncio.run(cancelled()) == "2"
    assert done == ["joined"]


def test_a_store_that_cannot_be_opened_is_told(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "store").write_text("a file, and no folder")
    with pytest.raises(StoreError), serving(folder, store_folder=tmp_path / "store"):
        pass


def test_numbers_of_predictions_that_are_none(folder: Path, tmp_path: Path) -> None:
    with serving(folder, store_folder=tmp_path / "store") as live, live.client() as client:
        page = client.get("/live").text
        csrf = page.partition('name="csrf" content="')[2].partition('"')[0]
        for number, mask in (("²", b""), ("1" * 5000, b""), ("-1", b""), ("", b"mask")):
            told = {"picture": "0" * 32, "verdict": "defect", "prediction": number}
            answer = client.post(
                "/review/label?model=part",
                files={name: (None, value) for name, value in told.items()} | {"mask": mask},
                headers={"X-CSRF-Token": csrf},
            )
            assert answer.status_code == 400
            assert "int" not in answer.json()["error"]["message"]


@pytest.mark.skipif(os.name != "posix", reason="no limit of open files")
def test_as_many_files_as_are_allowed() -> None:
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (256, hard))
        running._have_files()
        now, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
        wanted = running._FILES
        assert now == (wanted if hard == resource.RLIM_INFINITY else min(hard, wanted))
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_connections_for_which_there_are_no_files_are_told_once() -> None:
    written = io.StringIO()
    unheard = running.Unheard(Log("json", written))
    loop = asyncio.new_event_loop()
    try:
        for _ in range(1000):
            error = OSError(errno.EMFILE, "Too many open files")
            unheard(loop, {"message": "socket.accept() out of resources", "exception": error})
        unheard(loop, {"message": "another", "exception": ValueError("a fault")})
        unheard(loop, {"message": "without an exception"})
    finally:
        loop.close()
    events = [json.loads(line)["event"] for line in written.getvalue().splitlines()]
    assert events == ["connections wait", "event loop", "event loop"]


def test_who_may_not_see_the_pages_is_led_to_the_login(folder: Path, tmp_path: Path) -> None:
    tokens = tmp_path / "tokens"
    tokens.write_text("predict line token-of-a-camera-1\n")
    tokens.chmod(0o600)
    with serving(folder, token_file=tokens) as live, live.client(follow_redirects=True) as client:
        given = {"token": "token-of-a-camera-1"}
        answer = client.post("/login", data=given, headers={"Accept": "text/html"})
    assert answer.status_code == 403
    assert 'href="/login"' in answer.text
    assert 'href="/live"' not in answer.text


def test_examples_of_the_manual_name_a_model_that_is_there(folder: Path) -> None:
    (folder / "part").rename(folder / "bottle")
    with serving(folder) as live, live.client() as client:
        text = client.get("/docs").text
    assert "/v1/models/bottle/predict" in text
    assert "/v1/models/part/" not in text


def test_a_name_of_a_version_is_not_given_twice(folder: Path, tmp_path: Path) -> None:
    """Where somebody deleted the file of version 2, predictions of it are still told of."""
    with serving(folder, store_folder=tmp_path / "store") as live:
        store, made = live.service.store, live.service.jobs
        assert store is not None
        assert made is not None
        told = {"sha256": "0" * 64, "method": "knn", "made": datetime.now(UTC)}
        store.add_version(VersionRow(model="part", version="2", **told))
        draft = folder / "part" / ".job-1.blemish"
        shutil.copy(folder / "part" / "1.blemish", draft)
        result = {"how": "refine", "learned": {"good": 1, "defects": 0}, "held": {"rows": []}}
        id = store.add_job(Job(model="part", kind="refine", who="Ada", service=made._owner))
        job = joining.made_of(id, "1", [], result)
        live.run(joining.join(store, live.service.models, "part", draft, job))
        assert job["version"] == "3"
        assert store.job(id).state == "done"
        assert live_version(live) == "1"


def test_why_a_picture_is_shown_is_true_of_it() -> None:
    said = {"picture": "0" * 32, "model": "part", "version": "1", "height": 8, "width": 8, "id": 1}
    for score, label, expected in (
        (0.27, 0, "its turn has come"),
        (0.53, 0, "near the threshold"),
        (0.55, 1, "near the threshold"),
        (0.9, 1, "an alarm"),
    ):
        row = Row(**said, score=score, threshold=0.54, label=label)
        assert words.why(row, "threshold").startswith(expected)
        assert words.why(row, "random") == WHY["random"]

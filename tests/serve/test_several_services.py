"""Several services on one store: on a real PostgreSQL, each pair in one test."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import cv2
import pytest
from live import Live, serving
from parts import Fitted, part
from postgres import Server

from blemish.serve.reviewing import Reviewing
from blemish.store import Job, Label, Store

PATIENCE = 30.0


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    made = Server()
    yield made
    made.remove()


@pytest.fixture
def url(server: Server) -> Iterator[str]:
    with server.database() as found:
        yield found


@pytest.fixture
def models(artifact: Path, fitted: Fitted, tmp_path: Path) -> Path:
    """A folder of models: part, with versions 1 and 2."""
    folder = tmp_path / "models" / "part"
    folder.mkdir(parents=True)
    shutil.copy(artifact, folder / "1.blemish")
    fitted("knn").with_threshold(1e9).save(folder / "2.blemish")
    return folder.parent


def version(live: Live) -> str:
    return live.service.models.live("part").version


def until(what: Callable[[], Any]) -> None:
    end = time.monotonic() + PATIENCE
    while not what():
        assert time.monotonic() < end, "it never came"
        time.sleep(0.05)


def pngs(start: int, count: int) -> list[bytes]:
    made = [part(seed, defect=seed % 3 == 0) for seed in range(start, start + count)]
    return [cv2.imencode(".png", one[..., ::-1])[1].tobytes() for one in made]


def two(stack: ExitStack, url: str, models: Path, tmp_path: Path, **how: Any) -> list[Live]:
    """Services of one database and one folder of media."""
    given = {"store_url": url, "store_folder": tmp_path / "store", "device": "cpu", **how}
    return [stack.enter_context(serving(models, **given)) for _ in range(2)]


def test_what_one_promotes_the_others_serve(
    url: str, models: Path, tmp_path: Path, fitted: Fitted
) -> None:
    with ExitStack() as stack:
        one, other = two(stack, url, models, tmp_path)
        assert (version(one), version(other)) == ("2", "2")
        with one.client() as client, other.client() as client_of_other:
            client.post("/v1/models/part/promote", json={"version": "1"}).raise_for_status()
            assert version(one) == "1"
            until(lambda: version(other) == "1")
            client_of_other.post("/v1/models/part/roll-back").raise_for_status()
            until(lambda: version(one) == "2")
            # A version that is taken in by one is there at the other, and so is a new model.
            content = fitted("knn").with_threshold(1e8).save(tmp_path / "x.blemish").read_bytes()
            added = client.post("/v1/models/part/versions?version=3", content=content)
            assert added.status_code == 201
            client.post("/v1/models/lid/versions?version=1", content=content).raise_for_status()

            def known() -> bool:
                told = client_of_other.get("/v1/models/part").json()["versions"]
                return [entry["version"] for entry in told] == ["1", "2", "3"]

            until(known)
            until(lambda: client_of_other.get("/v1/models/lid").status_code == 200)
            client_of_other.post("/v1/models/part/promote", json={"version": "3"})
            until(lambda: version(one) == "3")
            picture = pngs(1, 1)[0]
            assert client.post("/v1/models/part/predict", content=picture).json()["version"] == "3"
            told = client.get("/v1/models/part").json()["promotions"]
            assert [row["version"] for row in told] == ["3", "2", "1", "2"]
        promoted = [line for line in other.lines if line["event"] == "promoted"]
        assert {line["version"] for line in promoted} == {"1", "2", "3"}


def test_a_version_that_is_not_here_is_told(
    server: Server, models: Path, artifact: Path, fitted: Fitted, tmp_path: Path
) -> None:
    """As on two machines: each has files of its own."""
    own = tmp_path / "own" / "part"
    own.mkdir(parents=True)
    shutil.copy(artifact, own / "1.blemish")
    with server.database() as url, ExitStack() as stack:
        how = {"store_url": url, "device": "cpu"}
        one = stack.enter_context(serving(models, **how, store_folder=tmp_path / "a"))
        other = stack.enter_context(serving(own.parent, **how, store_folder=tmp_path / "b"))
        with one.client() as client, other.client() as client_of_other:
            client.post("/v1/models/part/promote", json={"version": "1"}).raise_for_status()
            client.post("/v1/models/part/promote", json={"version": "2"}).raise_for_status()
            until(lambda: other.service.models.behind)
            assert version(other) == "1"
            behind = client_of_other.get("/v1/models/part").json()["behind"]
            assert behind == {"version": "2", "reason": "its file is not here"}
            until(lambda: 'blemish_behind{model="part",version="2"} 1.0' in
                  client_of_other.get("/metrics").text)  # fmt: skip
            assert "its file is not here" in client_of_other.get("/models?model=part").text
            # Another file of that name is not what was promoted.
            fitted("knn").with_threshold(7.0).save(own / "2.blemish")
            until(lambda: "SHA-256" in client_of_other.get("/v1/models/part").text)
            assert version(other) == "1"
            (own / "2.blemish").unlink()
            shutil.copy(models / "part" / "2.blemish", own / "2.blemish")
            until(lambda: version(other) == "2")
            assert client_of_other.get("/v1/models/part").json()["behind"] is None
            assert 'blemish_behind{model="part"' not in client_of_other.get("/metrics").text
        told = [line["reason"] for line in other.lines if "promoted version" in line["event"]]
        assert len(told) == 2
        assert str(tmp_path) not in str(told)


def test_only_the_jobs_of_who_is_gone_have_failed(url: str, models: Path, tmp_path: Path) -> None:
    with ExitStack() as stack:
        (one,) = two(stack, url, models, tmp_path)[:1]
        store = one.service.store
        mine, theirs, nobodys = (
            store.add_job(Job(model="part", kind="refine", who="Ada", state="running", service=who))
            for who in (one.service.together.id, "0123456789abcdef", "")
        )
        store.lease("service 0123456789abcdef", "elsewhere", 60)
        drafts = [models / "part" / f".job-{id}.blemish" for id in (mine, theirs, nobodys)]
        for draft in drafts:
            draft.write_bytes(b"half")
        three = stack.enter_context(
            serving(models, store_url=url, store_folder=tmp_path / "store", device="cpu")
        )
        states = [store.job(id).state for id in (mine, theirs, nobodys)]
        assert states == ["running", "running", "failed"]
        assert [draft.exists() for draft in drafts] == [True, True, False]
        store.release("service 0123456789abcdef", "elsewhere")  # as when its lease ends
        until(lambda: store.job(theirs).state == "failed")
        until(lambda: not drafts[1].exists())
        assert store.job(mine).state == "running"
        assert drafts[0].exists()
        # What one service does, another may end.
        assert three.run(three.service.jobs.cancel(mine)) is None
        assert store.job(mine).state == "cancelled"


def test_no_picture_is_placed_twice_or_shown_to_two(url: str, models: Path, tmp_path: Path) -> None:
    with ExitStack() as stack:
        lives = two(stack, url, models, tmp_path)
        store = lives[0].service.store
        pictures = pngs(0, 24)

        def send(at: int) -> None:
            with lives[at % 2].client() as client:
                answer = client.post("/v1/models/part/predict", content=pictures[at])
                assert answer.json()["predictions"][0]["id"] is not None

        with ThreadPoolExecutor(8) as pool:
            list(pool.map(send, range(len(pictures))))
        both = [Reviewing.of(live.service, "part") for live in lives]
        until(lambda: len(store.queue("part", limit=1000)) == len(pictures))
        before = {one.picture: one for one in store.queue("part", limit=1000)}
        for reviewing in both:
            reviewing.catch_up()
        assert {one.picture: one for one in store.queue("part", limit=1000)} == before
        assert sorted(one._led for one in both) == [False, True]
        assert both[0]._last == both[1]._last  # both know them all
        shown = [
            reviewing.coming(f"{name} of {at}", 1)[0].row.picture
            for at, reviewing in enumerate(both)
            for name in ("Ada", "Bob", "Eve")
        ]
        assert len(set(shown)) == 6
        assert both[1].coming("Ada of 0", 1)[0].row.picture == shown[0]  # her own, anywhere
        for picture in shown:
            store.add_label(Label(picture=picture, verdict="good", reviewer="Ada"))
        judged = [each.judged("2") for each in both]
        assert repr(judged[0].sample) == repr(judged[1].sample)
        pools = [sorted(zip(one.pool.scores, one.pool.sizes, strict=True)) for one in judged]
        assert pools[0] == pools[1]
        assert len(pools[0]) == len(pictures)
        # Who leads ends: the other goes on where it was.
        leading = next(live for live in lives if Reviewing.of(live.service, "part")._led)
        other = next(live for live in lives if live is not leading)
        last = Reviewing.of(leading.service, "part")
        last.save()
        leading.server.should_exit = True
        leading._thread.join(60)
        after = Reviewing.of(other.service, "part")
        after._lead._asked = -1e9  # at once
        more = pngs(900, 6)
        with other.client() as client:
            for one in more:
                client.post("/v1/models/part/predict", content=one).raise_for_status()
        after.catch_up()
        assert after._led
        with Store.open(url, tmp_path / "store") as store:
            now = {one.picture: one for one in store.queue("part", limit=1000)}
        assert len(now) == len(pictures) + len(more) - len(shown)
        assert all(now[key] == before[key] for key in now if key in before)


def test_who_slept_through_its_lease_writes_nothing(url: str, tmp_path: Path, models: Path) -> None:
    with ExitStack() as stack:
        lives = two(stack, url, models, tmp_path)
        first, second = (Reviewing.of(live.service, "part") for live in lives)
        first.catch_up()
        second.catch_up()
        leads, other = (first, second) if first._led else (second, first)
        # The lease ends while the first one sleeps, and the other takes over.
        leads._store.release(leads._note, leads._lead.held.holder)
        leads._lead._asked = time.monotonic()
        other._lead._asked = -1e9
        with lives[0].client() as client:
            for one in pngs(300, 5):
                client.post("/v1/models/part/predict", content=one).raise_for_status()
        other.catch_up()
        assert other._led
        draws = {one.picture: one for one in other._store.queue("part")}
        assert len(draws) == 5
        leads._last = None
        leads._store.draws = lambda pictures, model: {}  # so that it would place them anew
        leads.catch_up()
        del leads._store.draws
        assert not leads._led
        assert {one.picture: one for one in other._store.queue("part")} == draws
        leads.catch_up()
        assert leads._last == other._last

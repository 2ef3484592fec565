"""A service that is killed while the version of a job joins: it has joined, or never will."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from live import serving
from parts import Fitted

from blemish.serve import joining
from blemish.serve.models import Registry
from blemish.store import Job, Store

# Forks for each line of a folder, a job and N, and tells how the fork ended: it kills itself at the
# N-th of the moments between a job's end and the last row of it.
_DYING = """
import asyncio, json, os, signal, sys
from pathlib import Path
import blemish.detector.restoring, blemish.engines.pytorch  # before it forks: seconds each
from blemish.serve import joining, models
from blemish.serve.batching import Pools
from blemish.serve.settings import Settings
from blemish.store import Store

for line in sys.stdin:
    folder, job, moment = json.loads(line)
    folder = Path(folder)
    if not (child := os.fork()):
        signal.alarm(120)
        break
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
else:
    sys.exit()
reached = 0

def dying(work):
    def done(*given, **more):
        global reached
        result = work(*given, **more)
        reached += 1
        if reached == moment:
            os.kill(os.getpid(), signal.SIGKILL)
        return result
    return done

Store.update_job, Store.add_version, Store.add_scores = map(
    dying, (Store.update_job, Store.add_version, Store.add_scores)
)
Path.replace = dying(Path.replace)

async def main():
    store = Store.open(None, folder / "store")
    settings = Settings(models=(folder / "models",), store_folder=folder / "store", device="cpu")
    registry = models.Registry(settings, Pools(), store)
    await registry.open()
    store.promote("part", "1", "Ada")
    reading = {"how": "refine", "learned": {"good": 3, "defects": 2}}
    after = {"score": 0.5, "threshold": 0.4, "label": 1}
    held = {"good": 1, "rows": [{"picture": "ab" * 16, "after": after}]}
    made = joining.made_of(job, "1", [], {**reading, "held": held})
    draft = next((folder / "models" / "part").glob(f".job-{job}.blemish"))
    await joining.join(store, registry, "part", draft, made)
    (folder / "joined").touch()

asyncio.run(main())
"""

Killed = Callable[[Path, int, int], bool]


@pytest.fixture(scope="module")
def killed() -> Iterator[Killed]:
    """`killed(folder, job, moment)`: whether a job's version was killed at a moment while it
    joined; not where it has no such."""
    process = subprocess.Popen(
        [sys.executable, "-c", _DYING], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdin
    assert process.stdout
    asked, told = process.stdin, process.stdout

    def kill(folder: Path, job: int, moment: int) -> bool:
        asked.write(json.dumps([str(folder), job, moment]) + "\n")
        asked.flush()
        status = int(told.readline() or "1")
        assert status in (0, -signal.SIGKILL)
        assert (folder / "joined").exists() == (status == 0)
        return status != 0

    with process:
        yield kill
        asked.close()
        assert process.wait(timeout=60) == 0


def begun(folder: Path) -> int:
    """A store with a job that runs, of a service that is gone."""
    with Store.open(None, folder / "store") as store:
        job = Job(model="part", kind="refine", who="Ada", state="running", service="0" * 16)
        id: int = store.add_job(job)
    return id


@pytest.mark.skipif(os.name != "posix", reason="signals")
def test_it_has_joined_or_never_will(
    artifact: Path, fitted: Fitted, tmp_path: Path, killed: Killed
) -> None:
    moment, outcomes = 1, []
    while True:
        folder = tmp_path / str(moment)
        own = folder / "models" / "part"
        own.mkdir(parents=True)
        shutil.copy(artifact, own / "1.blemish")
        id = begun(folder)
        fitted("knn").with_threshold(1e9).save(own / f".job-{id}.blemish")
        if not killed(folder, id, moment):
            break
        outcomes.append(_state_after(folder, id))
        moment += 1
    # Written down with its job; renamed; its row; its scores; done.
    assert outcomes == ["failed", "done", "done", "done", "done"]


def _state_after(folder: Path, id: int) -> str:
    own = folder / "models" / "part"
    with serving(folder / "models", store_folder=folder / "store", device="cpu") as live:
        store = live.service.store
        job, row = store.job(id), store.version("part", "2")
        names = {path.name for path in own.iterdir()} - {".versions.lock"}  # free by now
        assert live.service.models.live("part").version == "1"
        if job.state == "done":
            assert names == {"1.blemish", "2.blemish"}
            assert job.result["version"] == "2"
            assert "row" not in job.result
            assert (row.base, row.learned_from["defects"], row.threshold) == ("1", 2, 1e9)
            assert [one.version for one in store.other_scores("ab" * 16)] == ["2"]
            with live.client() as client:
                client.post("/v1/models/part/promote", json={"version": "2"}).raise_for_status()
        else:
            assert names == {"1.blemish"}
            assert row is None
            assert "start it anew" in job.message
        return str(job.state)


def test_weights_without_their_graph_are_swept(artifact: Path, tmp_path: Path) -> None:
    """Of two files, the weights are renamed first."""
    own = tmp_path / "models" / "part"
    own.mkdir(parents=True)
    shutil.copy(artifact, own / "1.blemish")
    (own / "2.bin").write_bytes(b"weights")
    id = begun(tmp_path)
    with Store.open(None, tmp_path / "store") as store:
        made: dict[str, Any] = {"version": "2", "job": id, "row": {"sha256": "0" * 64}}
        store.update_job(id, result=made)
    with serving(tmp_path / "models", store_folder=tmp_path / "store", device="cpu") as live:
        assert live.service.store.job(id).state == "failed"
    assert {path.name for path in own.iterdir()} == {"1.blemish"}


def test_told_as_failed_by_a_service_without_the_file(
    artifact: Path, fitted: Fitted, tmp_path: Path, killed: Killed
) -> None:
    """As on another machine; the one that has the file knows better, and says so."""
    own = tmp_path / "models" / "part"
    own.mkdir(parents=True)
    shutil.copy(artifact, own / "1.blemish")
    id = begun(tmp_path)
    fitted("knn").with_threshold(1e9).save(own / f".job-{id}.blemish")
    assert killed(tmp_path, id, 2)
    with Store.open(None, tmp_path / "store") as store:
        assert store.update_job(id, state="failed", service="0" * 16)
    with serving(tmp_path / "models", store_folder=tmp_path / "store", device="cpu") as live:
        assert live.service.store.job(id).state == "done"
        assert live.service.store.version("part", "2").base == "1"


def test_a_name_that_another_service_took_meanwhile(
    artifact: Path, fitted: Fitted, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = tmp_path / "models" / "part"
    own.mkdir(parents=True)
    shutil.copy(artifact, own / "1.blemish")
    with serving(tmp_path / "models", store_folder=tmp_path / "store", device="cpu") as live:
        service = live.service
        id = service.store.add_job(Job(model="part", kind="refine", who="Ada", state="running"))
        draft = fitted("knn").with_threshold(1e9).save(own / f".job-{id}.blemish")
        rename = Registry._rename

        def late(self: Registry, given: Any, file: Any) -> None:
            if file.version == "2":
                shutil.copy(artifact, own / "2.blemish")
            rename(self, given, file)

        monkeypatch.setattr(Registry, "_rename", late)
        result = {"how": "refine", "learned": {"good": 1, "defects": 0}, "held": {"rows": []}}
        made = joining.made_of(id, "1", [], result)
        live.run(joining.join(service.store, service.models, "part", draft, made))
        assert made["version"] == "3"
        assert service.store.job(id).result["version"] == "3"
        assert (own / "2.blemish").read_bytes() == artifact.read_bytes()

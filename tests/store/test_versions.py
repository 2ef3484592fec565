"""Versions, what is live, and jobs."""

from __future__ import annotations

import threading
from datetime import UTC, datetime
from typing import Any

import pytest

from blemish.errors import ConfigError
from blemish.store import Job, Store, VersionRow

SHA = "ab" * 32


def a_version(version: str = "1", **changes: Any) -> VersionRow:
    given = {"model": "part", "version": version, "sha256": SHA, "method": "knn"}
    return VersionRow(**{**given, **changes})


def test_versions_are_read_as_written(store: Store) -> None:
    full = a_version(
        "2",
        threshold=1.5,
        rate=0.01,
        base="1",
        learned_from={"labels": [1, 2], "counts": {"good": 2}, "\ud800\0": "\0"},
        figures={"recall": 0.5},
        made=datetime(2026, 1, 2, tzinfo=UTC),
    )
    first = a_version("1", made=datetime(2026, 1, 1, tzinfo=UTC))
    for one in (full, first, a_version("1", model="lid")):
        store.add_version(one)
    assert store.versions("part") == [first, full]
    assert store.version("part", "2") == full
    assert store.version("part", "3") is None
    store.add_version(a_version("1", figures={"recall": 1.0}, made=first.made))
    assert [one.figures for one in store.versions("part")] == [{"recall": 1.0}, {"recall": 0.5}]


@pytest.mark.parametrize(
    "changes",
    [{"sha256": "x"}, {"version": ""}, {"version": "a\0"}, {"threshold": float("nan")}],
    ids=str,
)
def test_what_is_no_version(changes: dict[str, Any]) -> None:
    with pytest.raises(ConfigError):
        a_version(**changes)


@pytest.mark.parametrize("figures", [{"a": float("nan")}, {"a": object()}, {"a": "x" * 2**23}])
def test_what_is_no_document(figures: dict[str, Any], store: Store) -> None:
    with pytest.raises(ConfigError, match="figures"):
        store.add_version(a_version(figures=figures))
    assert store.versions("part") == []


def test_what_is_live(store: Store) -> None:
    assert store.promoted("part") is None
    steps = [("1", "1"), ("2", "2"), ("2", "2"), ("3", "3"), (None, "2"), ("4", "4")]
    for version, live in [*steps, (None, "2"), (None, "1")]:
        if version is None:
            done = store.roll_back("part", "Ada", "it was worse")
            assert (done.kind, done.version) == ("roll back", live)
        else:
            store.promote("part", version, "Bob", "better")
        assert store.promoted("part") == live
    with pytest.raises(ConfigError, match="no other version"):
        store.roll_back("part", "Ada")
    assert store.promoted("lid") is None
    history = store.promotions("part")
    assert len(history) == 8
    assert [(one.who, one.reason) for one in history[4:6]] == [
        ("Ada", "it was worse"),
        ("Bob", "better"),
    ]


def test_who_promotes_at_once(store: Store) -> None:
    store.promote("part", "0", "Ada")
    calls = [
        threading.Thread(target=store.promote, args=("part", str(at), "Ada")) for at in range(1, 9)
    ]
    for one in calls:
        one.start()
    for one in calls:
        one.join()
    for _ in range(8):
        store.roll_back("part", "Bob")
    assert store.promoted("part") == "0"


def test_jobs(store: Store) -> None:
    first = store.add_job(Job(model="part", kind="refine", who="Ada", settings={"a": [1]}))
    second = store.add_job(Job(model="lid", kind="refine", who="Bob"))
    job = store.job(first)
    assert job is not None
    assert (job.state, job.progress, job.settings, job.result) == ("waiting", 0.0, {"a": [1]}, {})
    store.update_job(first, state="running", progress=0.5, message="a\0" + "x" * 10_000)
    store.update_job(first, progress=7.0, result={"recall": 1.0})
    job = store.job(first)
    assert job is not None
    assert (job.state, job.progress, job.result) == ("running", 1.0, {"recall": 1.0})
    assert job.message.startswith("a\\x00x")
    assert len(job.message) == 4000
    assert job.changed >= job.made
    assert [one.id for one in store.jobs()] == [second, first]
    assert [one.id for one in store.jobs("part")] == [first]
    assert store.job(second + 1) is None
    with pytest.raises(ConfigError, match="there is none"):
        store.update_job(second + 1, state="done")
    with pytest.raises(ConfigError, match="state"):
        store.update_job(first, state="gone")
    with pytest.raises(ConfigError, match="progress"):
        Job(model="part", kind="refine", who="Ada", progress=2.0)

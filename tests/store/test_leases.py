"""Leases: one holder at a time, whichever connection asks."""

from __future__ import annotations

import threading
import time
from pathlib import Path

import pytest
from store_parts import digest

from blemish.errors import ConfigError
from blemish.store import Draw, Held, Job, LeaseLost, Store


def test_one_holder_at_a_time(store: Store, url: str | None, tmp_path: Path) -> None:
    assert store.lease("queue part", "a", 60)
    with Store.open(url, tmp_path / "store") as other:
        assert not other.lease("queue part", "b", 60)
        assert other.lease("queue lid", "b", 60)
        assert store.lease("queue part", "a", 60)  # anew
        assert other.leased("queue ") == {"queue part": "a", "queue lid": "b"}
        other.release("queue part", "b")  # which is not theirs
        assert store.leased("queue p") == {"queue part": "a"}
        store.release("queue part", "a")
        assert other.lease("queue part", "b", 60)
        store.release_all("b")
        assert store.leased("queue") == {}


def test_one_that_has_ended_is_free(store: Store) -> None:
    assert store.lease("x", "a", 0.15)
    assert not store.lease("x", "b", 0.15)
    time.sleep(0.25)
    assert store.leased("") == {}
    assert store.lease("x", "b", 60)
    assert not store.lease("x", "a", 60)
    store.forget_leases()
    assert store.leased("") == {"x": "b"}


def test_names_are_no_patterns(store: Store) -> None:
    assert store.lease("a_b%", "a", 60)
    assert store.lease("axb", "a", 60)
    assert set(store.leased("a_b%")) == {"a_b%"}
    with pytest.raises(ConfigError):
        store.lease("", "a", 60)
    with pytest.raises(ConfigError):
        store.lease("a", "a", 0)


def test_of_many_at_once_one_has_it(store: Store) -> None:
    had: list[str] = []

    def ask(who: str) -> None:
        if store.lease("x", who, 60):
            had.append(who)

    threads = [threading.Thread(target=ask, args=(f"{n}",)) for n in range(8)]
    for one in threads:
        one.start()
    for one in threads:
        one.join()
    assert len(had) == 1
    assert store.leased("") == {"x": had[0]}


def test_nothing_is_written_without_the_lease(store: Store) -> None:
    mine, theirs = Held("queue", "a"), Held("queue", "b")
    draw = Draw(picture=digest(1), model="part", version="1", stratum="random", probability=0.5)
    with pytest.raises(LeaseLost):
        store.add_draws([draw], mine)
    store.lease("queue", "a", 60)
    store.add_draws([draw], mine)
    store.put_note("state", {"last": 1}, mine)
    with pytest.raises(LeaseLost) as lost:
        store.put_note("state", {"last": 2}, theirs)
    assert lost.value.retryable
    assert store.note("state") == {"last": 1}
    assert set(store.draws([digest(1), digest(2)], "part")) == {digest(1)}
    assert store.draws([digest(1)], "lid") == {}


def test_one_job_of_a_model_at_a_time(store: Store) -> None:
    job = Job(model="part", kind="refine", who="Ada", service="a")
    first = store.add_only_job(job)
    assert first is not None
    assert store.add_only_job(job) is None
    assert store.add_only_job(Job(model="lid", kind="refine", who="Ada")) is not None
    assert not store.update_job(first, state="failed", service="b")  # another's
    assert store.update_job(first, state="failed", service="a")
    assert not store.update_job(first, state="done", service="a")  # it has ended
    assert store.job(first).state == "failed"
    assert store.job(first).service == "a"
    assert store.add_only_job(job) is not None

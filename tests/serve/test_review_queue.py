"""The queue of the review and the monitors of drift, over a store that grows."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from blemish.monitoring import draws
from blemish.monitoring.estimates import figures
from blemish.monitoring.queue import Queue
from blemish.serve.reviewing import ALPHA, Reviewing
from blemish.store import Descriptor, Label, OtherScore, Scored, Store

THRESHOLD = 2.0


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with Store.open(None, tmp_path / "store") as one:
        yield one


def scored(at: int, score: float, **more: Any) -> Scored:
    return Scored(
        **{
            "picture": f"{at:032x}",
            "model": "part",
            "version": "1",
            "score": score,
            "threshold": THRESHOLD,
            "label": int(score > THRESHOLD),
            "height": 8,
            "width": 8,
            "source": f"camera {at % 2}",
            **more,
        }
    )


def grown(store: Store, start: int, count: int, shift: float = 0.0, **more: Any) -> None:
    scores = np.random.default_rng(start).normal(size=count) + shift
    rows = [scored(start + at, float(one), **more) for at, one in enumerate(scores)]
    store.add_predictions(rows)


def label(store: Store, picture: str, verdict: str, reviewer: str = "Ada") -> None:
    store.add_label(Label(picture=picture, verdict=verdict, reviewer=reviewer))


def order(store: Store) -> list[str]:
    return [one.picture for one in store.queue("part", limit=1000)]


def test_a_restart_goes_on_with_the_same_places(store: Store) -> None:
    reviewing = Reviewing(store, "part")
    grown(store, 0, 60)
    reviewing.catch_up()
    first = order(store)
    assert len(first) == 60
    reviewing.save()
    grown(store, 100, 40)
    reviewing.catch_up()
    placed = {one.picture: one for one in store.queue("part", limit=1000)}
    # Killed before its state was written: what it had placed keeps its place.
    again = Reviewing(store, "part")
    again.catch_up()
    assert {one.picture: one for one in store.queue("part", limit=1000)} == placed
    assert [one for one in order(store) if one in set(first)] == first
    grown(store, 200, 10)
    again.catch_up()
    assert len(order(store)) == 110


def test_a_picture_that_comes_again_has_one_place(store: Store) -> None:
    reviewing = Reviewing(store, "part")
    store.add_predictions([scored(1, 0.5), scored(2, 0.1), scored(1, 0.5)])
    reviewing.catch_up()
    assert len(order(store)) == 2
    store.add_predictions([scored(1, 0.7, version="2")])
    before = store.draw(f"{1:032x}", "part")
    reviewing.catch_up()
    assert store.draw(f"{1:032x}", "part") == before


def test_labels_take_pictures_out_and_undoing_puts_them_back(store: Store) -> None:
    reviewing = Reviewing(store, "part")
    grown(store, 0, 20)
    first, second = reviewing.coming("Ada", 2)
    assert [first.row.picture, second.row.picture] == order(store)[:2]
    label(store, first.row.picture, "good")
    assert reviewing.coming("Ada", 1)[0].row == second.row
    assert reviewing.left() == 19
    store.undo_label("Ada")
    assert reviewing.coming("Ada", 1)[0].row.picture == first.row.picture


def test_others_are_shown_something_else(store: Store) -> None:
    reviewing = Reviewing(store, "part")
    grown(store, 0, 20)
    (mine,) = reviewing.coming("Ada", 1)
    (theirs,) = reviewing.coming("Bo", 1)
    assert mine.row.picture != theirs.row.picture
    skipped = reviewing.coming("Ada", 1, [mine.row.picture])
    assert skipped[0].row.picture not in (mine.row.picture, theirs.row.picture)


def test_unsure_and_disagreed_pictures_get_a_second_look_by_others(store: Store) -> None:
    reviewing = Reviewing(store, "part")
    store.add_predictions([scored(at, 0.1 * at) for at in range(3)])
    for at, verdict in enumerate(("unsure", "good", "good")):
        label(store, f"{at:032x}", verdict)
    assert reviewing.coming("Ada", 4) == []
    assert [(one.row.picture, one.why) for one in reviewing.coming("Bo", 4)] == [
        (f"{0:032x}", "second")
    ]
    label(store, f"{1:032x}", "defect", "Cy")
    found = {one.row.picture for one in reviewing.coming("Bo", 4)}
    assert found == {f"{0:032x}", f"{1:032x}"}


def test_versions_that_disagree_bring_a_picture_forward(store: Store) -> None:
    """Over many seeds of the race: its share of the reviewing grows."""
    sizes = {}
    for disagreed in (False, True):
        reviewing = Reviewing(store, f"part {disagreed}")
        rows = [scored(at, -1.0 + 0.01 * at, model=f"part {disagreed}") for at in range(50)]
        store.add_predictions(rows[:-1])
        last = rows[-1]
        other = 9.0 if disagreed else last.score
        store.add_scores(
            [
                OtherScore(
                    picture=last.picture, model=last.model, version="2", score=other, threshold=2.0
                )
            ]
        )
        store.add_predictions([last])
        reviewing.catch_up()
        draw = store.draw(last.picture, last.model)
        assert draw is not None
        sizes[disagreed] = draw.record["size"]
    assert sizes[True] > sizes[False]


def test_figures_of_the_queue_hold_the_truth(store: Store) -> None:
    reviewing = Reviewing(store, "part")
    grown(store, 0, 600)
    rows = {row.picture: row for row in store.predictions(model="part", limit=1000)}
    truth = {key: row.score > 1.5 for key, row in rows.items()}
    for _ in range(150):
        (one,) = reviewing.coming("Ada", 1)
        label(store, one.row.picture, "defect" if truth[one.row.picture] else "good")
    judged = reviewing.judged("1")
    sample, pool = judged.sample, judged.pool
    assert len(sample.scores) == 150
    assert len(pool.scores) == 600
    found = figures(sample, THRESHOLD, pool=pool)
    missed = [key for key, defect in truth.items() if defect and not rows[key].label]
    misses = len(missed) / sum(truth.values())
    assert found["miss_rate"].low <= misses <= found["miss_rate"].high
    assert found["false_alarm_rate"].value == 0
    share = sum(truth.values()) / 600
    assert found["defect_share"].low <= share <= found["defect_share"].high
    # Of another version, which scored none of them, nothing is known.
    assert len(reviewing.judged("2").sample.scores) == 0


def test_a_store_from_when_the_queue_had_turns(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    draw, queue = draws.Draw.to_dict, Queue.to_dict
    with monkeypatch.context() as before:
        before.setattr(draws.Draw, "to_dict", lambda one: {**draw(one), "start": 0.0, "turn": 0})
        before.setattr(Queue, "to_dict", lambda one: {**queue(one), "turns": []})
        reviewing = Reviewing(store, "part")
        grown(store, 0, 60)
        reviewing.catch_up()
        reviewing.save()
    records = store.records([f"{at:032x}" for at in range(60)], "part")
    assert all((one["start"], one["turn"]) == (0, 0) for one in records.values())
    first, again = order(store), Reviewing(store, "part")
    for picture in first[:20]:
        (one,) = again.coming("Ada", 1)
        assert one.row.picture == picture
        label(store, picture, "good")
    counts = again.judged("1").sample.counts
    clock = store.queue("part", limit=1)[0].priority
    sizes = [records[one]["size"] for one in first[:20]]
    assert sorted(counts) == pytest.approx(sorted(draws.weights(sizes, clock)))


def test_pictures_that_a_version_has_seen_say_nothing_of_it(store: Store) -> None:
    reviewing = Reviewing(store, "part")
    grown(store, 0, 60)
    for _ in range(20):
        (one,) = reviewing.coming("Ada", 1)
        label(store, one.row.picture, "good")
    reviewed = [one.row.picture for one in store.reviewed("part")]
    waiting = order(store)
    judged = reviewing.judged("1", {*reviewed[:5], *waiting[:10]})
    sample, pool = judged.sample, judged.pool
    assert (len(sample.scores), len(pool.scores)) == (15, 45)


def test_labels_given_out_of_turn_count_once_it_has_come(store: Store) -> None:
    reviewing = Reviewing(store, "part")
    grown(store, 0, 30)
    reviewing.catch_up()
    last = order(store)[-1]
    label(store, last, "good")
    sample = reviewing.judged("1").sample
    assert len(sample.scores) == 0
    assert sample.left_out["early"] == 1
    for picture in order(store):
        label(store, picture, "good")
    assert len(reviewing.judged("1").sample.scores) == 30


def test_a_shift_of_one_camera_is_noticed(store: Store) -> None:
    reviewing = Reviewing(store, "part")
    known = np.random.default_rng(7).normal(size=300)
    grown(store, 0, 200)
    reviewing.watch("1", known.tolist(), THRESHOLD)
    assert not any(one.alarms for one in reviewing.drift())
    assert [one.source for one in reviewing.drift()] == ["", "camera 0", "camera 1"]
    grown(store, 1000, 300, 1.5, source="camera 1")
    found = {one.source: one for one in reviewing.drift()}
    assert found["camera 1"].alarms
    assert not found["camera 0"].alarms
    assert found[""].monitor.alpha == ALPHA
    assert found[""].monitor.count == 500


def test_monitors_go_on_after_a_restart(store: Store) -> None:
    known = np.random.default_rng(7).normal(size=100).tolist()
    reviewing = Reviewing(store, "part")
    grown(store, 0, 100)
    reviewing.watch("1", known, THRESHOLD)
    reviewing.save()
    grown(store, 500, 50)
    reviewing.catch_up()
    wanted = [(one.source, one.monitor.to_dict()) for one in reviewing.drift()]
    again = Reviewing(store, "part")  # without what came after the state was written
    again.watch("1", known, THRESHOLD)
    assert [(one.source, one.monitor.to_dict()) for one in again.drift()] == wanted
    # Another version is compared with its own calibration, from its first prediction on.
    grown(store, 900, 20, version="2")
    again.watch("2", known, THRESHOLD)
    assert again.drift()[0].monitor.count == 20


SPACE = "ab" * 16


def looking(
    store: Store, start: int, count: int, middle: tuple[float, ...] = (0.0, 0.0), **more: Any
) -> None:
    """Pictures of which only the descriptors differ."""
    random = np.random.default_rng(start)
    rows = [
        scored(
            start + at,
            float(random.normal()),
            **{"descriptor": Descriptor.of(SPACE, random.normal(size=2) + middle), **more},
        )
        for at in range(count)
    ]
    store.add_predictions(rows)


def sizes(store: Store, start: int, count: int) -> list[float]:
    found = [store.draw(f"{start + at:032x}", "part") for at in range(count)]
    return [one.record["size"] for one in found if one is not None]


def test_pictures_unlike_all_that_was_reviewed_come_early(store: Store) -> None:
    reviewing = Reviewing(store, "part")
    looking(store, 0, 300)
    looking(store, 1000, 20, (60.0, 0.0))
    reviewing.catch_up()
    assert np.mean(sizes(store, 1000, 20)) > 2.5 * np.mean(sizes(store, 0, 300))
    coming = reviewing.coming("Ada", 20)
    assert sum(one.why == "unseen" for one in coming) >= 3
    assert sum(one.row.picture >= f"{1000:032x}" for one in coming) >= 3
    reviewing.save()
    # Once one of them is reviewed, also after a restart, others like it come as any do.
    label(store, f"{1003:032x}", "good")
    again = Reviewing(store, "part")
    looking(store, 2000, 20, (60.0, 0.0))
    again.catch_up()
    assert np.mean(sizes(store, 2000, 20)) < np.mean(sizes(store, 1000, 20)) / 2


def test_figures_hold_where_the_unseen_come_early(store: Store) -> None:
    """Reviewed as the queue asks, and placed by what was reviewed: the truth stays in the
    interval, and the mean of the estimates near it."""
    found, truth = [], []
    for season in range(6):
        model = f"part {season}"
        reviewing = Reviewing(store, model)
        defects = {}
        random = np.random.default_rng(season)
        for start in range(0, 500, 50):
            rows = []
            for at in range(10_000 * season + start, 10_000 * season + start + 50):
                odd = random.random() < 0.1
                defects[f"{at:032x}"] = odd
                middle = np.array([30.0, 0.0]) if odd else np.zeros(2)
                near = Descriptor.of(SPACE, random.normal(size=2) + middle)
                rows.append(scored(at, float(random.normal()), model=model, descriptor=near))
            store.add_predictions(rows)
            for one in reviewing.coming("Ada", 10):
                label(store, one.row.picture, "defect" if defects[one.row.picture] else "good")
        judged = reviewing.judged("1")
        share = figures(judged.sample, THRESHOLD, pool=judged.pool)["defect_share"]
        found.append(share)
        truth.append(sum(defects.values()) / 500)
    assert sum(one.low <= each <= one.high for one, each in zip(found, truth, strict=True)) >= 5
    assert np.mean([one.value for one in found]) == pytest.approx(np.mean(truth), abs=0.04)


def test_a_change_that_scores_do_not_show_is_noticed(store: Store) -> None:
    known = np.random.default_rng(7).normal(size=300).tolist()
    reviewing = Reviewing(store, "part")
    looking(store, 0, 350)
    reviewing.watch("1", known, THRESHOLD, SPACE)
    assert "is compared once 5" in reviewing.appearance().words()
    looking(store, 1000, 400)
    calm = reviewing.appearance()
    assert (calm.since, calm.looks.count) == (0, 4)
    assert "look like the first 300" in calm.words()
    reviewing.save()
    looking(store, 2000, 60, (1.0, 0.0))
    looking(store, 2500, 100, (1.0, 0.0), descriptor=None)  # without one they are passed over
    looking(store, 2700, 100, (9.0, 0.0), label=1)  # and alarms are others' business
    assert not reviewing.appearance().since
    looking(store, 3000, 120, (1.0, 0.0))
    found = reviewing.appearance()
    assert found.since > 700
    assert "noticed with picture" in found.words()
    assert "still differ" in found.words()
    assert not any(one.alarms for one in reviewing.drift())
    # The same after a restart without what came after the state was written.
    again = Reviewing(store, "part")
    again.watch("1", known, THRESHOLD, SPACE)
    assert again.appearance().to_dict() == found.to_dict()
    looking(store, 4000, 200)
    assert "look as at first again" in again.appearance().words()
    # Other descriptors begin anew, and so does another version.
    again.save()
    other = Reviewing(store, "part")
    other.watch("1", known, THRESHOLD, "cd" * 16)
    assert other.appearance().looks.pictures == 0
    assert other.drift()[0].monitor.count > 700
    other.watch("2", known, THRESHOLD, SPACE)
    assert other.appearance().looks.pictures == 0
    other.watch("2", known, THRESHOLD, None)
    assert "exported by an earlier blemish" in other.appearance().words()

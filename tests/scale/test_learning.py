"""Fits in parts: the same whoever does the work, as good as from all pictures at once, gone on from
where they were, and what is said where they cannot be.
"""

from __future__ import annotations

import json
import pickle
import random
from collections import deque
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from parts import FIT, part, settings_of, write_picture

import blemish
from blemish.compute import pick_device
from blemish.detector.predict import Detector
from blemish.errors import ClusterError, ConfigError, DataError, OutputError
from blemish.scale import kept, learning
from blemish.scale.hands import Alone, Job
from blemish.scale.jobs import learn_part, merge_parts, score_part

METHODS = ("patchcore", "knn", "padim")
LEARNED = 19  # different ones of the 22 below that can be read


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """23 pictures: one is broken, three are copies, of pictures that lie in other parts."""
    folder = tmp_path_factory.mktemp("good")
    for number in range(22):
        write_picture(folder / f"{number:03d}.png", part(number % LEARNED))
    (folder / "011a.png").write_bytes(b"no picture")
    return folder


def small(method: str) -> dict[str, Any]:
    bank = {} if method == "padim" else {"bank_size": 150}
    return {**settings_of(method), **bank, "seed": 3}


def said(detector: Detector) -> dict[str, Any]:
    """All that it says of itself but when and how fast it was made."""
    return {
        key: detector.manifest[key] for key in detector.manifest.keys() - {"created", "seconds"}
    }


def same(one: Detector, other: Detector) -> bool:
    """To the bit."""
    tensors, others = one.method.fitted_state(), other.method.fitted_state()
    return said(one) == said(other) and all(
        torch.equal(tensor, others[name]) for name, tensor in tensors.items()
    )


class Shuffled:
    """Workers that end their jobs in a random order, each with a copy of what is shared.

    Args: fail: is told how many jobs are done, and may raise.
    """

    here: bool = False
    device: str = ""
    threads: int | None = None

    def __init__(
        self, room: int, seed: int = 0, fail: Callable[[int], None] = lambda done: None
    ) -> None:
        self.room: int = room
        self.done: list[Job] = []
        self._random, self._fail = random.Random(seed), fail
        self._running: deque[tuple[Any, Job, tuple[Any, ...]]] = deque()
        self._shared: Any = None

    def hold(self, shared: Any) -> None:
        self._shared = shared

    def start(self, key: Any, job: Job, *given: Any) -> None:
        self._running.append((key, job, given))
        assert len(self._running) <= self.room

    def next(self) -> tuple[Any, Any]:
        self._fail(len(self.done))
        self._running.rotate(self._random.randrange(len(self._running)))
        key, job, given = self._running.popleft()
        self.done.append(job)
        return key, handed_over(job(self._shared, *given))


def handed_over(value: Any) -> Any:
    """As it comes from another process over Ray: a copy, of which no array can be written to."""
    buffers: list[pickle.PickleBuffer] = []
    content = pickle.dumps(value, protocol=5, buffer_callback=buffers.append)
    return pickle.loads(content, buffers=[bytes(one.raw()) for one in buffers])


@pytest.mark.parametrize("method", METHODS)
def test_the_same_whoever_does_the_work(method: str, good: Path) -> None:
    alone = learning.fit(method, good, part_pictures=4, **small(method))
    told = alone.record.in_parts
    assert told is not None
    assert (told.parts, told.levels) == (6, 3)
    for workers in (1, 2, 7):
        hands = Shuffled(workers, seed=workers)
        other = learning.fit(method, good, part_pictures=4, hands=hands, **small(method))
        assert same(alone, other)
        assert [hands.done.count(job) for job in (learn_part, merge_parts, score_part)] == [6, 5, 5]


@pytest.mark.parametrize("method", METHODS)
def test_as_from_all_pictures_at_once(method: str, good: Path) -> None:
    whole = blemish.fit(method, good, **small(method))
    parts = learning.fit(method, good, part_pictures=4, **small(method))
    assert whole.record.in_parts is None
    for one in (whole, parts):
        assert one.record.data.count == 22
        assert one.record.data.copies == 22 - LEARNED
        assert [each.error for each in one.record.data.failures]
        assert len(one.record.calibration_scores) == LEARNED
    assert parts.record.data == whole.record.data
    if method == "padim":
        torch.testing.assert_close(parts.method.means, whole.method.means, rtol=1e-4, atol=1e-4)
        scores = whole.record.calibration_scores, parts.record.calibration_scores
        np.testing.assert_allclose(*scores, rtol=1e-3)
    defects = [part(200 + seed, defect=True) for seed in range(3)]
    normal = [part(300 + seed) for seed in range(3)]
    for detector in (whole, parts):
        bad, well = (
            [one.score for one in detector.predict_many(each)] for each in (defects, normal)
        )
        assert min(bad) > max(well)


@pytest.mark.parametrize("method", ["patchcore", "knn"])
def test_a_bank_is_the_same_in_parts_and_in_one_go(method: str, tmp_path: Path) -> None:
    for number in range(70):
        write_picture(tmp_path / f"{number:03d}.png", part(number))
    (tmp_path / "011a.png").write_bytes(b"no picture")
    # A batch that is filled up after a broken picture has others in it: bf16 would round otherwise.
    options = {**small(method), "batch_size": 1}
    whole = blemish.fit(method, tmp_path, **options)
    parts = learning.fit(method, tmp_path, hands=Shuffled(2), **options)
    assert parts.record.in_parts is not None
    assert parts.record.in_parts.parts == 2
    tensors = whole.method.fitted_state()
    assert len(tensors["bank"]) == 150  # of far more features
    for name, tensor in parts.method.fitted_state().items():
        assert torch.equal(tensor, tensors[name])
    assert parts.record.calibration_scores == whole.record.calibration_scores


def test_one_part_is_a_whole_fit(good: Path) -> None:
    for method in ("patchcore", "padim"):
        whole = blemish.fit(method, good, **small(method))
        one = learning.fit(method, good, **small(method))  # fewer than 64 are one part
        assert one.record.in_parts is not None
        assert one.record.in_parts.parts == 1
        tensors = whole.method.fitted_state()
        for name, tensor in one.method.fitted_state().items():
            assert torch.equal(tensor, tensors[name])
        assert one.record.calibration_scores == whole.record.calibration_scores
        assert one.record.map_scale == whole.record.map_scale


def test_the_record_bounds_how_far_features_lie(good: Path, tmp_path: Path) -> None:
    detector = learning.fit("patchcore", good, part_pictures=4, **small("patchcore"))
    told = detector.record.in_parts
    assert told is not None
    assert told.farthest is not None
    assert told.bound is not None
    assert 0 < told.farthest <= told.bound + 1e-3
    assert told.measured == 22
    detector.save(tmp_path / "a.blemish")
    again = blemish.load(tmp_path / "a.blemish")
    assert again.record.in_parts == told
    ones = [detector.predict(part(400)).score, again.predict(part(400)).score]
    assert ones[0] == ones[1]
    assert learning.fit("padim", good, **small("padim")).record.in_parts.bound is None  # type: ignore[union-attr]


def test_held_out_pictures_and_several_categories(tmp_path: Path) -> None:
    folders = [tmp_path / name for name in ("nut", "bolt")]
    for offset, folder in enumerate(folders):
        for number in range(15):
            write_picture(folder / f"{number:03d}.png", part(50 * offset + number))
    how = {**small("knn"), "calibration_fraction": 0.4}
    alone = learning.fit("knn", folders, part_pictures=4, **how)
    other = learning.fit("knn", folders, part_pictures=4, hands=Shuffled(3), **how)
    whole = blemish.fit("knn", folders, **how)
    assert same(alone, other)
    assert alone.record.categories == ("bolt", "nut") == whole.record.categories
    assert alone.record.data.calibrated == whole.record.data.calibrated
    assert len(alone.record.calibration_scores) == 12
    assert alone.record.category_features == whole.record.category_features


@pytest.fixture
def interrupted() -> Callable[[int], Callable[[int], None]]:
    """Ctrl-C when so many jobs are done."""

    def after(jobs: int) -> Callable[[int], None]:
        def fail(done: int) -> None:
            if done == jobs:
                raise KeyboardInterrupt

        return fail

    return after


@pytest.mark.parametrize("method", METHODS)
def test_goes_on_from_what_is_kept(
    method: str, good: Path, tmp_path: Path, interrupted: Callable[[int], Callable[[int], None]]
) -> None:
    keep, how = tmp_path / "kept", {"part_pictures": 4, **small(method)}
    plain = learning.fit(method, good, **how)
    jobs = 0
    for moment in (0, 3, 2, 5):  # in the leaves, the merges and the scoring
        hands = Shuffled(2, seed=moment, fail=interrupted(moment))
        with pytest.raises(KeyboardInterrupt):
            learning.fit(method, good, keep=keep, resume=True, hands=hands, **how)
        jobs += len(hands.done)
    last = Shuffled(2, seed=9)
    detector = learning.fit(method, good, keep=keep, resume=True, hands=last, **how)
    assert same(detector, plain)
    assert jobs + len(last.done) <= 6 + 5 + 5 + 4  # what was kept was not done again
    with pytest.raises(OutputError, match="--resume goes on with them"):
        learning.fit(method, good, keep=keep, **how)
    kept.forget(keep)
    assert not keep.exists()


def test_kept_parts_that_are_damaged_are_learned_again(good: Path, tmp_path: Path) -> None:
    keep, how = tmp_path / "kept", {"part_pictures": 4, **small("knn")}
    plain = learning.fit("knn", good, keep=keep, **how)
    pieces = sorted(keep.glob("*.part"))
    assert pieces
    for piece in pieces:
        piece.write_bytes(piece.read_bytes()[: len(piece.name) * 5])
    hands = Shuffled(2)
    assert same(learning.fit("knn", good, keep=keep, resume=True, hands=hands, **how), plain)
    assert len(hands.done) == 16


def test_parts_of_other_pictures_or_settings_are_not_taken(good: Path, tmp_path: Path) -> None:
    keep, how = tmp_path / "kept", {"part_pictures": 4, **small("knn")}
    learning.fit("knn", good, keep=keep, **how)
    for changed, what in (
        ({"seed": 4}, "settings"),
        ({"part_pictures": 5}, "parts"),
        ({"batch_size": 3}, "batch size"),
    ):
        with pytest.raises(ConfigError, match=f"learned otherwise: {what}"):
            learning.fit("knn", good, keep=keep, resume=True, **{**how, **changed})
    picture = good / "003.png"
    content = picture.read_bytes()
    try:
        write_picture(picture, part(77))
        with pytest.raises(ConfigError, match="learned otherwise: pictures"):
            learning.fit("knn", good, keep=keep, resume=True, **how)
    finally:
        picture.write_bytes(content)
    other = tmp_path / "other"
    other.mkdir()
    (other / "letter.txt").write_text("dear")
    for folder, what in ((other, "holds something else"), (other / "letter.txt", "is no folder")):
        with pytest.raises(OutputError, match=what):
            learning.fit("knn", good, keep=folder, resume=True, **how)
    kept.forget(other)
    assert (other / "letter.txt").exists()


@pytest.mark.parametrize(
    ("method", "options", "what"),
    [
        ("agpnet", {}, "agpnet trains by gradient, .* with torchrun"),
        ("lda", {}, "lda learns from all pictures in one process"),
        ("patchcore", {"student": True}, "student: is distilled by gradient"),
        ("patchcore", {"tile": 32}, "tile: pictures are cut"),
        ("patchcore", {"bank_loss": 0.05, "neighbours": 1}, "bank_loss, which is measured"),
        ("patchcore", {"coarse": 32}, "coarse, whose two looks"),
        ("patchcore", {"part_pictures": 0}, "part_pictures: at least 1"),
        ("patchcore", {"time_budget": 1.0}, "time_budget: patchcore is not trained"),
    ],
)
def test_what_cannot_be_learned_in_parts(
    method: str, options: dict[str, Any], what: str, good: Path
) -> None:
    with pytest.raises(ConfigError, match=what):
        learning.fit(method, good, **{**settings_of(method), **options})


def test_too_few_pictures(tmp_path: Path) -> None:
    for number in range(3):
        (tmp_path / f"{number}.png").write_bytes(b"no picture")
    with pytest.raises(DataError, match="needs at least 2 readable training pictures, got 0"):
        learning.fit("padim", tmp_path, part_pictures=1, **small("padim"))


def test_pictures_that_workers_do_not_see(
    good: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    class Elsewhere(Alone):
        """Sees no picture of this machine."""

        def start(self, key: Any, job: Job, *given: Any) -> None:
            gone = {at: Path("/nowhere") / one.name for at, one in given[0].items()}
            super().start(key, job, gone, *given[1:])

        def next(self) -> tuple[Any, Any]:
            key, (state, found) = super().next()
            for at, failure in found.failures.items():
                here = str(good / Path(failure.source).name)
                found.failures[at] = blemish.Failure(source=here, reason=failure.reason)
            return key, (state, found)

    with pytest.raises(DataError, match="is there for this process and not for a worker"):
        learning.fit("knn", good, hands=Elsewhere(), **small("knn"))


@pytest.fixture(scope="module")
def ray_joined() -> Iterator[None]:
    """One Ray for the tests here: to start it takes seconds."""
    pytest.importorskip("ray")
    from blemish.scale.cluster import joined

    with joined(cpus=3):
        yield


@pytest.mark.filterwarnings("ignore")  # Ray's own
def test_on_ray_the_same_to_the_bit(good: Path, ray_joined: None) -> None:
    from blemish.scale.hands import on_ray

    alone = {
        method: learning.fit(method, good, part_pictures=4, threads=1, **small(method))
        for method in METHODS
    }
    for workers, methods in ((1, METHODS[:1]), (3, METHODS)):
        with on_ray(num_workers=workers) as hands:
            for method in methods:
                expected = alone[method]
                made = learning.fit(method, good, part_pictures=4, hands=hands, **small(method))
                assert same(made, expected), (method, workers)


@pytest.mark.filterwarnings("ignore")  # Ray's own
def test_commands_on_ray(run: Any, mvtec: Path, tmp_path: Path, ray_joined: None) -> None:
    artifact, workers = tmp_path / "part.blemish", "--engine ray --num-workers 2"
    fit = ("fit knn", mvtec, "-o", artifact, FIT, "--part-pictures 8")
    status, _, err = run(*fit, workers)
    assert status == 0, err
    made = blemish.load(artifact)
    assert run(*fit, "--engine parts")[0] == 0
    assert same(made, blemish.load(artifact))
    status, out, _ = run("evaluate", artifact, mvtec, workers, "--json")
    assert status == 0
    whole = blemish.evaluate(made, mvtec)
    assert json.loads(out)["image_auroc"] == pytest.approx(whole.image_auroc, abs=1e-6)
    assert json.loads(out)["aupro"] == pytest.approx(whole.aupro, abs=1e-6)


@pytest.mark.filterwarnings("ignore")  # Ray's own
def test_errors_of_workers_are_told_as_they_are(good: Path, ray_joined: None) -> None:
    from blemish.scale.hands import on_ray

    with on_ray(num_workers=2) as hands:
        hands.hold("abacus")
        hands.start(1, pick_device)
        with pytest.raises(ConfigError, match="device 'abacus' is not available here"):
            hands.next()
    with (
        pytest.raises(ClusterError, match=r"no worker has room: .* 99 CPUs"),
        on_ray(threads=99),
    ):
        pass
    with (
        pytest.raises(ClusterError, match="and 2 GPUs, and the cluster has 3 and 0"),
        on_ray(gpus_per_worker=2),
    ):
        pass

"""What training is fed with where some pictures are labelled defects: half of every batch."""

from __future__ import annotations

import signal
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import torch
from toy import Toy, ToyConfig, Watched, pictures, stream_of

from blemish.data.stream import PictureStream
from blemish.methods.learner import TrainingBatch
from blemish.training import feed as feeding
from blemish.training import train
from blemish.training.feed import Feed, read, seed_of
from blemish.types import silent

PLENTY = float("inf")


def feed_of(
    labels: list[int], *, limit: float = PLENTY, looks: bool = False, **settings: Any
) -> Feed:
    """A feed of as many pictures as there are labels."""
    sources = settings.pop("sources", None) or pictures(len(labels))
    stream = stream_of(sources, labels=labels, **settings)
    return read(Toy(ToyConfig(looks=looks)), stream, limit=limit, progress=silent)


def brightness_of(stream: PictureStream) -> list[float]:
    """Of every row; it tells the pictures apart."""
    return [float(image.mean()) for batch in stream for image in batch.images]


def seen(feed: Feed, size: int, count: int, *, seed: int = 7, skip: int = 0) -> list[TrainingBatch]:
    return list(islice(feed.batches(size, seed=seed, skip=skip), count))


def rows_of(batch: TrainingBatch, known: list[float]) -> list[int]:
    """Which rows of the feed a batch holds."""
    near = (batch.features["brightness"][:, None] - torch.tensor(known)).abs()
    assert (near.amin(1) < 1e-5).all()
    return near.argmin(1).tolist()


@pytest.mark.parametrize("limit", [PLENTY, 0])
@pytest.mark.parametrize(("size", "marked"), [(8, 4), (7, 3), (2, 1), (3, 1)])
def test_half_of_every_batch_are_defects(size: int, marked: int, limit: float) -> None:
    labels = [0, 0, 1, 0, 0, 0, 1, 0, 1, 0]
    feed = feed_of(labels, limit=limit)
    assert (feed.kept is None) == (limit == 0)
    known = brightness_of(feed.stream)
    for batch in seen(feed, size, 12):
        assert batch.labels is not None
        assert (batch.labels.dtype, len(batch.labels)) == (torch.int64, size)
        assert batch.labels.sum() == marked
        assert batch.labels.tolist() == [labels[row] for row in rows_of(batch, known)]


def test_each_class_goes_through_epochs_of_its_own() -> None:
    labels = [0] * 6 + [1] * 3
    feed = feed_of(labels)
    known = brightness_of(feed.stream)
    # 18 rows of either class: three epochs of the normal ones and six of the defects.
    drawn = [row for batch in seen(feed, 4, 9) for row in rows_of(batch, known)]
    for kind, count in ((0, 6), (1, 3)):
        own = [row for row in drawn if labels[row] == kind]
        epochs = [own[start : start + count] for start in range(0, 18, count)]
        assert all(sorted(epoch) == sorted(set(own)) for epoch in epochs)
        assert len({tuple(epoch) for epoch in epochs}) > 1
    again, other = (seen(feed, 4, 9, seed=seed) for seed in (7, 8))
    assert [row for batch in again for row in rows_of(batch, known)] == drawn
    assert [row for batch in other for row in rows_of(batch, known)] != drawn


@pytest.mark.parametrize(
    ("normal", "defects", "size", "balanced", "steps"),
    [
        (11, 3, 8, True, 6),  # two passes over 11 by fours: 5.5
        (11, 3, 7, True, 6),  # by fours, too
        (11, 3, 8, False, 4),  # two passes over 14 by eights: 3.5
        (11, 0, 8, True, 3),
        (11, 0, 8, False, 3),
        (1, 5, 4, True, 1),
    ],
)
def test_an_epoch_shows_every_normal_picture_once(
    normal: int,
    defects: int,
    size: int,
    balanced: bool,
    steps: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """What has been drawn is counted, picture by picture, in a training of two epochs."""
    among = (lambda _config, rows: rows // 2) if balanced else (lambda _config, _rows: None)
    monkeypatch.setattr(ToyConfig, "defects_among", among)
    toy = Watched(ToyConfig(epochs=2, train_batch_size=size))
    stream = stream_of(pictures(normal + defects), labels=[0] * normal + [1] * defects)
    done, _ = train(toy, stream, seed=7, identity={})
    assert done.steps == steps
    assert toy.class_counts == (normal, defects)
    near = (torch.tensor(toy.seen).reshape(-1, 1) - torch.tensor(brightness_of(stream))).abs()
    counts = near.argmin(1).bincount(minlength=normal + defects)
    of_an_epoch = counts[:normal] if balanced else counts
    per_step = size - size // 2 if balanced and defects else size
    assert of_an_epoch.sum() == steps * per_step
    # Twice each, and those of the third pass that fill up the last batch.
    assert of_an_epoch.min() == 2
    assert of_an_epoch.max() - of_an_epoch.min() <= (steps * per_step > 2 * len(of_an_epoch))
    assert done.epochs == pytest.approx(steps * per_step / len(of_an_epoch))


def test_few_defects_repeat_within_a_batch() -> None:
    for batch in seen(feed_of([0, 0, 0, 1]), 10, 3):
        assert batch.labels is not None
        assert batch.labels.sum() == 5
        marked = batch.features["mean"][batch.labels == 1]
        assert torch.equal(marked, marked[:1].expand_as(marked))


def same(one: TrainingBatch, other: TrainingBatch) -> bool:
    parts = [(each.labels, each.images, *each.features.values()) for each in (one, other)]
    return all(torch.equal(a, b) for a, b in zip(*parts, strict=True))  # type: ignore[arg-type]


@pytest.mark.parametrize("limit", [PLENTY, 0])
def test_one_can_go_on_after_any_batch(limit: float) -> None:
    feed = feed_of([0] * 5 + [1] * 3, limit=limit, looks=True)
    whole = seen(feed, 5, 8)
    for skip in (1, 4, 7):
        assert all(map(same, seen(feed, 5, 8 - skip, skip=skip), whole[skip:]))


def test_what_is_kept_and_what_is_computed_anew_are_the_same() -> None:
    labels = [0, 1, 0, 0, 1, 0]
    kept, anew = (feed_of(labels, limit=limit, looks=True, rotations=2) for limit in (PLENTY, 0))
    assert all(map(same, seen(kept, 5, 6), seen(anew, 5, 6)))


@pytest.mark.parametrize(("device", "wanted", "there"), [
    ("cuda", 250, "cuda"), ("cuda", 251, "cpu"), ("cpu", 1, "cpu"),
])  # fmt: skip
def test_where_rows_are_kept(
    device: str, wanted: int, there: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _device: (1000, 2000))
    assert feeding._keeper(torch.device(device), wanted) == torch.device(there)


def test_copies_have_the_label_of_their_picture_and_broken_ones_none() -> None:
    whole = pictures(6)
    sources = ["nowhere.png", *whole[1:4], "gone.png", whole[5]]
    feed = feed_of([1, 0, 0, 1, 1, 0], sources=sources, rotations=2)
    assert feed.usable == [1, 2, 3, 5]
    assert feed.labels is not None
    assert feed.labels.tolist() == [0, 0, 0, 0, 1, 1, 0, 0]
    known = brightness_of(feed.stream)
    for batch in seen(feed, 6, 5):
        assert batch.labels is not None
        assert batch.labels.tolist() == feed.labels[rows_of(batch, known)].tolist()
        assert batch.labels.sum() == 3


@pytest.mark.parametrize("limit", [PLENTY, 0])
@pytest.mark.parametrize("labels", [[], [0] * 7])
def test_without_defects_all_is_as_ever(labels: list[int], limit: float) -> None:
    feed = feed_of(labels, sources=pictures(7), limit=limit)
    assert feed.labels is None
    known = brightness_of(feed.stream)
    batches = seen(feed, 3, 7)
    assert all(batch.labels is None for batch in batches)
    order: list[int] = []
    for epoch in range(3):
        shuffle = torch.Generator().manual_seed(seed_of("epoch", 7, epoch))
        order += torch.randperm(7, generator=shuffle).tolist()
    assert [row for batch in batches for row in rows_of(batch, known)] == order


def test_where_no_defect_can_be_read_all_are_normal() -> None:
    feed = feed_of([0, 0, 1], sources=[*pictures(2), "nowhere.png"])
    assert feed.labels is None
    assert all(batch.labels is None for batch in seen(feed, 4, 3))


def test_a_process_that_has_defects_only_still_gets_full_batches() -> None:
    feed = feed_of([1, 1, 1])
    for batch in seen(feed, 4, 3):
        assert batch.labels is not None
        assert batch.labels.tolist() == [1] * 4


def test_training_gets_both_classes_in_every_step_and_in_its_sample() -> None:
    config = ToyConfig(epochs=2, train_batch_size=4)
    toy, plain = Watched(config), Watched(config)
    done, _ = train(toy, stream_of(pictures(10), labels=[0] * 8 + [1] * 2), seed=7, identity={})
    assert done.steps == len(toy.labels) == 8  # two passes over the eight normal ones
    assert [sorted(labels or ()) for labels in toy.labels] == [[0, 0, 1, 1]] * 8
    assert toy.start_labels is not None
    assert (len(toy.start_labels), sum(toy.start_labels)) == (10, 5)
    train(plain, stream_of(pictures(10)), seed=7, identity={})
    assert plain.labels == [None] * 5
    assert plain.start_labels is None


def test_an_interrupted_training_goes_on_with_the_same_rows(tmp_path: Path) -> None:
    def trained(at: int = 0, **options: Any) -> Watched:
        made = Watched(config, at, lambda: signal.raise_signal(signal.SIGINT))
        toys.append(made)
        stream = stream_of(pictures(10), labels=[0] * 7 + [1] * 3)
        train(made, stream, seed=7, identity={}, **options)
        return made

    config, path = ToyConfig(epochs=2, train_batch_size=4), tmp_path / "toy.checkpoint"
    toys: list[Watched] = []
    trained()
    with pytest.raises(KeyboardInterrupt):
        trained(3, checkpoint=path)
    trained(checkpoint=path, resume=True)
    whole, stopped, rest = toys
    assert stopped.seen + rest.seen == whole.seen
    assert stopped.labels + rest.labels == whole.labels
    assert torch.equal(rest.learned.weight, whole.learned.weight)


class Measured(Toy):
    """It notes what it is measured by."""

    def measure_left_out(self, batches: Any) -> None:
        self.measured = [float(one) for batch in batches for one in batch.features["brightness"]]


@dataclass(frozen=True, kw_only=True)
class LeavingOut(ToyConfig):
    @property
    def left_out(self) -> float:
        return 0.25


@pytest.mark.parametrize("limit", [PLENTY, 0])
@pytest.mark.parametrize("labels", [[0] * 8, [0, 0, 1, 0, 0, 0, 1, 0, 0, 0]])
def test_what_is_left_out_is_never_fed(labels: list[int], limit: float) -> None:
    stream = stream_of(pictures(len(labels)), labels=labels, rotations=2)
    feed = read(Toy(LeavingOut()), stream, limit=limit, progress=silent)
    assert feed.left_out == ([0, 1, 8, 9] if sum(labels) == 0 else [0, 1, 10, 11])
    known = brightness_of(stream)
    fed = {row for batch in seen(feed, 4, 40) for row in rows_of(batch, known)}
    assert not fed & {row for row in feed.left_out if known[row] not in known[:row]}
    own = [row for batch in feed.left_out_batches(3) for row in rows_of(batch, known)]
    assert [known[row] for row in own] == [known[row] for row in feed.left_out]


@pytest.mark.parametrize(("count", "fed", "measured"), [(1, 1, 1), (2, 1, 1), (8, 6, 2)])
def test_a_method_is_measured_by_what_is_left_out(count: int, fed: int, measured: int) -> None:
    method = Measured(LeavingOut())
    stream = stream_of(pictures(count))
    train(method, stream, seed=0, identity={})
    assert len(method.measured) == measured
    feed = read(Toy(LeavingOut()), stream, limit=PLENTY, progress=silent)
    assert feed.of_an_epoch(1)[0] == fed

"""The loop: order of the pictures, order of a step, memory or none, precision, budgets."""

from __future__ import annotations

import math
import re
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F
from toy import Toy, ToyConfig, Watched, learned, pictures, run, stream_of

from blemish.errors import ConfigError, DataError, NonFiniteError
from blemish.methods.learner import TrainingBatch
from blemish.text import duration
from blemish.training import train
from blemish.training.budget import Budget
from blemish.training.feed import seed_of


def watch(config: ToyConfig, count: int = 10, **options: Any) -> Watched:
    toy = Watched(config)
    stream = options.pop("stream", None) or stream_of(pictures(count))
    train(toy, stream, **{"seed": 7, "identity": {}, **options})
    return toy


def same(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def test_every_epoch_holds_every_picture_once_and_every_step_is_full() -> None:
    toy = watch(ToyConfig(epochs=3, train_batch_size=4))  # 30 rows: 7.5 steps
    assert [len(step) for step in toy.seen] == [4] * 8
    order = [value for step in toy.seen for value in step]
    epochs = [order[start : start + 10] for start in (0, 10, 20)]
    assert len(set(epochs[0])) == 10
    assert sorted(epochs[0]) == sorted(epochs[1]) == sorted(epochs[2])
    assert epochs[0] != epochs[1] != epochs[2]
    assert watch(ToyConfig(epochs=3)).seen == toy.seen
    assert watch(ToyConfig(epochs=3), seed=8).seen != toy.seen


def test_rows_repeat_where_they_are_fewer_than_a_step_takes() -> None:
    toy = watch(ToyConfig(epochs=1, train_batch_size=5), 2)
    assert [len(step) for step in toy.seen] == [5]
    assert len(set(toy.seen[0][:4])) == 2
    assert toy.seen[0][:2] != toy.seen[0][1:3]


@pytest.mark.parametrize(
    ("epochs", "min_steps", "count", "copies", "steps"),
    [(3, 0, 10, 1, 8), (1, 9, 10, 1, 9), (1, 2, 5, 6, 8)],
)
def test_number_of_steps(epochs: int, min_steps: int, count: int, copies: int, steps: int) -> None:
    toy = Toy(ToyConfig(epochs=epochs, min_steps=min_steps))
    stream = stream_of(pictures(count), rotations=3 if copies == 6 else 1, flips=copies == 6)
    done, _ = train(toy, stream, seed=7, identity={})
    assert done.steps == toy.made.item() == steps
    assert done.epochs == pytest.approx(steps * 4 / (count * copies))
    assert (done.cached, done.processes, done.resumed_at) == (True, 1, 0)
    assert done.to_dict()["steps"] == steps
    assert done.pictures_per_second > 0


def test_a_step_is_what_one_writes_by_hand() -> None:
    config = ToyConfig(epochs=5, train_batch_size=4)
    result, done = run(config)
    hand = Toy(config).eval()
    images = torch.cat([batch.images for batch in stream_of(pictures(10))])
    with torch.no_grad():
        means = torch.cat([hand.encode(part)["mean"] for part in images.split(1)])
    order: list[int] = []
    for epoch in range(6):
        shuffle = torch.Generator().manual_seed(seed_of("epoch", 7, epoch))
        order += torch.randperm(10, generator=shuffle).tolist()
    weight, bias = (part.detach().clone().requires_grad_() for part in hand.learned.parameters())
    followers = [weight.detach().clone(), bias.detach().clone()]
    optimizer = torch.optim.AdamW([weight, bias], lr=1e-2)
    losses: list[float] = []
    for step in range(13):
        optimizer.param_groups[0]["lr"] = 1e-2 * (1 - step / 26)
        mean = means[order[4 * step : 4 * step + 4]]
        torch.manual_seed(seed_of(seed_of("step", 7, 0), step))
        noisy = mean + 0.1 * (1 + step / 13) * torch.randn_like(mean)
        loss = (F.linear(noisy, weight, bias) - mean).square().mean()
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        norm = math.sqrt(sum(float(one.grad.square().sum()) for one in (weight, bias)))
        for one in (weight, bias):
            one.grad *= min(1.0, 1.0 / norm)
        optimizer.step()
        for slow, fast in zip(followers, (weight, bias), strict=True):
            slow += 0.1 * (fast.detach() - slow)
        losses.append(loss.item())
    torch.testing.assert_close(result["learned.weight"], followers[0], rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(result["learned.bias"], followers[1], rtol=1e-4, atol=1e-6)
    assert done.loss == pytest.approx(sum(losses) / 13, rel=1e-4)


@pytest.mark.parametrize("steps", [7, 20, 53])
def test_the_curve_is_the_mean_loss_of_the_steps_since_the_point_before(steps: int) -> None:
    losses: list[float] = []
    config = ToyConfig(epochs=1, min_steps=steps)
    _, done = run(config, watch=lambda _step, _steps, loss: losses.append(loss))
    assert len(losses) == steps
    ends = [int(end) for end, _ in done.curve]
    points = min(20, steps)
    assert ends == [math.ceil(steps * part / points) for part in range(1, points + 1)]
    for start, (end, mean) in zip([0, *ends], done.curve, strict=False):
        own = losses[start : int(end)]
        assert mean == pytest.approx(sum(own) / len(own))
    assert done.to_dict()["curve"] == [list(point) for point in done.curve]


def test_a_method_starts_from_a_sample_of_its_pictures() -> None:
    brightness = torch.cat([batch.images for batch in stream_of(pictures(10))]).mean((1, 2, 3))
    toy = watch(ToyConfig(), 10)
    assert toy.sample[0] == 10  # all of them, where they are few
    assert toy.sample[1].item() == pytest.approx(brightness.double().mean().item(), rel=1e-6)
    many = stream_of(pictures(10), rotations=4, flips=True)
    assert watch(ToyConfig(epochs=1), stream=many).sample[0] == 64


def test_gradients_are_clipped() -> None:
    toy = Toy(ToyConfig(epochs=1, train_batch_size=10, rule="sgd", learning_rate=1.0))
    before = learned(toy)
    toy.clip_norm = 0.01
    train(toy, stream_of(pictures(10)), seed=7, identity={})
    moved = [learned(toy)[name] - before[name] for name in ("learned.weight", "learned.bias")]
    length = math.sqrt(sum(float(part.square().sum()) for part in moved))
    assert length == pytest.approx(0.001, rel=1e-3)  # the teacher follows by 10 %


@pytest.mark.parametrize("looks", [False, True])
def test_what_does_not_fit_in_memory_is_computed_anew_to_the_same_weights(
    tmp_path: Path, looks: bool
) -> None:
    broken = tmp_path / "broken.png"
    broken.write_text("x")
    sources = [*pictures(5), broken, *pictures(7)[5:]]
    results, stages = [], []
    for gib in (1.0, 0.0):
        toy = Toy(ToyConfig(epochs=2, train_batch_size=5, looks=looks, cache_gib=gib))
        stream = stream_of(sources, rotations=2, flips=True)
        stages.append(told := [])
        heard = lambda *one, told=told: told.append(one)  # noqa: E731
        done, found = train(toy, stream, seed=7, identity={}, progress=heard)
        assert done.cached == (gib > 0)
        assert set(found.failures) == {5}
        assert set(found.digests) == {0, 1, 2, 3, 4, 6, 7}
        results.append(learned(toy))
    assert same(*results)
    for told in stages:
        assert told[0] == ("reading the pictures", 0, 32)
        assert ("reading the pictures", 28, 32) in told


def test_the_memory_asked_for_is_the_limit() -> None:
    row = 64 * 4 + 4  # the mean token and the brightness of a picture
    exactly = 10 * row / 2**30
    assert run(ToyConfig(cache_gib=exactly))[1].cached
    assert not run(ToyConfig(cache_gib=exactly * 0.99))[1].cached
    assert not run(ToyConfig(cache_gib=exactly, looks=True))[1].cached


def test_the_callers_random_state_is_left_alone() -> None:
    torch.manual_seed(3)
    expected = torch.rand(1)
    torch.manual_seed(3)
    first, _ = run(ToyConfig())
    assert torch.equal(torch.rand(1), expected)
    assert same(first, run(ToyConfig())[0])  # nor does it matter
    assert not same(first, run(ToyConfig(), seed=8)[0])


def test_modes_and_rates() -> None:
    toy = watch(ToyConfig(epochs=2))
    assert toy.modes == [(True, False, False)] * 5
    assert toy.made_steps == [(step, 5) for step in range(1, 6)]
    assert toy.rates == pytest.approx([1e-2 * (1 - step / 10) for step in range(5)])
    assert not toy.training
    moving = Watched(ToyConfig(epochs=1))
    moving.backbone.requires_grad_(True)
    train(moving, stream_of(pictures(4)), seed=7, identity={})
    assert moving.modes == [(True, True, False)]


def test_bf16_runs_under_autocast_and_fp16_not_at_all() -> None:
    toy = Watched(ToyConfig(epochs=1))
    toy.backbone.to(torch.bfloat16)
    train(toy, stream_of(pictures(4)), seed=7, identity={})
    assert toy.modes == [(True, False, True)]
    assert toy.learned.weight.dtype == torch.float32
    toy.backbone.to(torch.float16)
    with pytest.raises(ConfigError, match="training runs in bf16 or fp32"):
        train(toy, stream_of(pictures(4)), seed=7, identity={})


class Sick(Toy):
    def training_step(self, batch: TrainingBatch, fraction: float) -> Tensor:
        return super().training_step(batch, fraction) * (math.nan if fraction >= 0.4 else 1.0)


def test_a_loss_that_is_not_finite_ends_it() -> None:
    with pytest.raises(NonFiniteError, match="the loss of step 3 is nan"):
        train(Sick(ToyConfig(epochs=2)), stream_of(pictures(10)), seed=7, identity={})


def test_nothing_to_train_on() -> None:
    words = r"no training picture can be read\n  nowhere\.png: does not exist"
    with pytest.raises(DataError, match=words):
        train(Toy(ToyConfig()), stream_of(["nowhere.png"]), seed=7, identity={})


def test_progress() -> None:
    told: list[tuple[str, int, int]] = []
    run(ToyConfig(epochs=1), progress=lambda *one: told.append(one))
    assert told[:5] == [("reading the pictures", done, 10) for done in (0, 3, 6, 9, 10)]
    assert told[5] == ("training", 0, 3)
    assert [(done, total) for _, done, total in told[6:]] == [(1, 3), (2, 3), (3, 3)]
    for stage, _, _ in told[6:]:
        assert re.fullmatch(r"training · loss [\d.]+ · [\d.e+]+ pictures/s · .* left", stage)


class Clockwork(Toy):
    """A picture takes a second to encode, a step two (the first one ten)."""

    now = 0.0
    slow = 10.0

    def encode(self, images: Tensor) -> dict[str, Tensor]:
        self.now += len(images)
        return super().encode(images)

    def training_step(self, batch: TrainingBatch, fraction: float) -> Tensor:
        self.now += self.slow
        self.slow = 2.0
        return super().training_step(batch, fraction)


def test_a_time_budget_sets_the_number_of_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    toy = Clockwork(ToyConfig(epochs=1000))
    with monkeypatch.context() as patched:
        patched.setattr("blemish.training.loop.time.perf_counter", lambda: toy.now)
        done, _ = train(toy, stream_of(pictures(9)), seed=7, identity={}, budget=Budget(minutes=2))
    # 3 rows are encoded twice, to see whether all can be, which takes 9 s; a slow step and two
    # others say that a step takes 2 s; 91 s are left then.
    assert done.steps == toy.made.item() == (120 - 6 - 9 - 14) // 2
    assert done.seconds <= 120
    without, plain = run(ToyConfig(epochs=1, min_steps=done.steps), 9)
    assert plain.steps == done.steps
    assert same(learned(toy), without)  # trying steps has left no trace


def test_a_time_budget_that_reading_has_used_up(monkeypatch: pytest.MonkeyPatch) -> None:
    toy = Clockwork(ToyConfig())
    monkeypatch.setattr("blemish.training.loop.time.perf_counter", lambda: toy.now)
    told: list[str] = []
    how: dict[str, Any] = {"seed": 7, "identity": {}, "budget": Budget(minutes=0.1)}
    heard = lambda stage, *_: told.append(stage)  # noqa: E731
    done, _ = train(toy, stream_of(pictures(9)), progress=heard, **how)
    assert done.steps == 1
    assert "reading the pictures has used up the time budget: one step is made" in told


# test_vit on 32²: 4 patches and [CLS], 2 blocks of width 64 with 192 in the middle.
ENCODED = 2 * (4 * 768 * 64 + 2 * (5 * (64 * 192 + 64 * 64 + 2 * 64 * 192) + 2 * 25 * 64))
STEP = 2 * 2 * 64 * 64  # a row through `learned`, and back to its weights


@pytest.mark.parametrize("looks", [False, True])
def test_a_compute_budget_sets_the_number_of_steps(looks: bool) -> None:
    config = ToyConfig(epochs=1000, looks=looks)
    exactly = (9 * ENCODED + 7 * 4 * STEP) / 1e12
    made, done = run(config, 9, budget=Budget(teraflops=exactly))
    assert done.steps == made["made"].item() == 7
    plain, _ = run(ToyConfig(epochs=1, min_steps=7, looks=looks), 9)
    assert same(made, plain)  # counting steps has left no trace
    assert run(config, 9, budget=Budget(teraflops=exactly * 0.9999))[1].steps == 6


def test_a_compute_budget_pays_for_what_is_encoded_anew() -> None:
    """Of each step of 4 pictures, in batches of 3, which are filled up."""
    exactly = 5 * (6 * ENCODED + 4 * STEP) / 1e12
    done = run(ToyConfig(epochs=1000, cache_gib=0), 9, budget=Budget(teraflops=exactly))[1]
    assert (done.steps, done.cached) == (5, False)


def test_a_budget_that_suffices_for_no_step() -> None:
    told: list[str] = []
    how: dict[str, Any] = {"progress": lambda stage, *_: told.append(stage)}
    assert run(ToyConfig(), 9, budget=Budget(teraflops=1e-9), **how)[1].steps == 1
    assert "the compute budget does not suffice for a step: one is made" in told


@pytest.mark.parametrize("steps", [1, 2, 3, 10])
def test_only_rows_that_come_in_steps_are_charged_for(steps: int) -> None:
    """Else nothing would be left of a budget for a training on many pictures."""
    exactly = (min(13, 4 * steps) * ENCODED + 4 * steps * STEP) / 1e12
    config = ToyConfig(epochs=1000)
    assert run(config, 13, budget=Budget(teraflops=exactly))[1].steps == steps
    assert run(config, 13, budget=Budget(teraflops=exactly * 0.9999))[1].steps == max(1, steps - 1)


def test_a_time_budget_is_not_spent_on_encoding(monkeypatch: pytest.MonkeyPatch) -> None:
    encode = Toy.encode

    def slow(self: Toy, images: Tensor) -> dict[str, Tensor]:
        time.sleep(0.05)
        return encode(self, images)

    monkeypatch.setattr(Toy, "encode", slow)
    # 60 pictures in batches of 3 take a second or more.
    for minutes, cached in ((0.8 / 60, False), (6 / 60, True)):
        done = run(ToyConfig(epochs=1000), 60, budget=Budget(minutes=minutes))[1]
        assert done.cached is cached


def test_a_time_budget_of_what_has_no_frozen_part(monkeypatch: pytest.MonkeyPatch) -> None:
    """As of an encoder that learns by swav: nothing is encoded once, so there is no time to ask
    after."""
    monkeypatch.setattr(Toy, "encode", lambda self, images: {})
    monkeypatch.setattr(Toy, "start_training", lambda self, sample: None)
    monkeypatch.setattr(Toy, "training_step", lambda self, *_: self.learned.bias.square().sum())
    monkeypatch.setattr(Toy, "after_step", lambda self, *_: None)
    monkeypatch.setattr(Toy, "end_training", lambda self, steps: None)
    done = run(ToyConfig(epochs=1000, looks=True), 9, budget=Budget(minutes=0.5 / 60))[1]
    assert done.steps >= 1


@pytest.mark.parametrize("value", [0, -1, math.nan, math.inf])
@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("minutes", "time_budget: a positive number of minutes is needed"),
        ("teraflops", "compute_budget: a positive number of TFLOP is needed"),
    ],
)
def test_a_budget_is_positive(name: str, value: float, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        Budget(**{name: value})


def test_one_budget_and_its_half() -> None:
    with pytest.raises(ConfigError, match="time_budget and compute_budget: give one of them"):
        Budget(minutes=1, teraflops=1)
    assert Budget(teraflops=3).half() == Budget(teraflops=1.5)
    assert Budget(minutes=3).half() == Budget(minutes=1.5)
    assert Budget().half() == Budget()


def test_durations() -> None:
    words = {0.4: "0 s", 89: "89 s", 91: "2 min", 3500: "58 min", 3590: "1 h 0 min"}
    assert {seconds: duration(seconds) for seconds in words} == words

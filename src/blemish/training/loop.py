"""The loop of everything that learns by gradient."""

from __future__ import annotations

import dataclasses
import math
import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import torch

from blemish import config as configs
from blemish import interrupts
from blemish.config import Count, Finite, Length, NotNegative
from blemish.data.stream import Found, PictureStream, name_of, unreadable
from blemish.errors import ConfigError
from blemish.methods.learner import Learner, TrainingBatch, finite
from blemish.text import duration
from blemish.training import checkpoint as checkpoints
from blemish.training import distributed, feed
from blemish.training.checkpoint import Steps
from blemish.training.feed import Feed, seed_of
from blemish.types import Failure, Progress, silent

BETWEEN_CHECKPOINTS = 60.0  # seconds
CURVE = 20  # points of the curve that is kept of the loss, or one a step where there are fewer
SAMPLE = 64  # pictures, or all of them where they are fewer, that a method may start from
STAGE = "training"


@dataclass(frozen=True, kw_only=True)
class Training:
    """How a training went, as a manifest keeps it.

    Attributes:
        steps: optimiser steps, over all runs of a resumed training.
        epochs: passes over the pictures that they make: over the normal ones, where defects fill
            half of every batch.
        seconds: from the call to the end, over all runs.
        pictures_per_second: in the steps of this run, over all processes; 0 where there was none
            left to take.
        loss: the last one, smoothed: the mean of the first 50, then each new one counts 2 %. In
            several processes that of each one's own pictures.
        curve: how the loss fell: pairs of a step's number and the mean loss of the steps since the
            pair before, at most `CURVE` of them. In several processes that of rank 0's own
            pictures.
        cached: whether what the frozen part gives was kept in memory.
        processes: how many have trained together.
        resumed_at: how many steps had been made when this run began; 0 = it began from the start.
        findings: what the method found to say of it, by name; see `Learner.findings`.
        other: what other versions of blemish have added, as it is.
    """

    steps: Steps
    epochs: NotNegative
    seconds: NotNegative
    pictures_per_second: NotNegative
    loss: Finite
    cached: bool
    processes: Steps
    resumed_at: Count
    curve: tuple[Annotated[tuple[Finite, ...], Length(2, 2)], ...] = ()
    findings: Mapping[str, Finite] = field(default_factory=dict)
    other: Mapping[str, Any] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        return configs.to_dict(self)


def train(
    method: Learner,
    stream: PictureStream,
    *,
    seed: int,
    identity: Mapping[str, Any],
    minutes: float | None = None,
    checkpoint: Path | None = None,
    resume: bool = False,
    progress: Progress = silent,
    watch: Callable[[int, int, float], None] | None = None,
) -> tuple[Training, Found]:
    """Train a method (or another learner) on the pictures of a stream; the method can score
    afterwards.

    On a CPU the same seed, pictures, config, number of threads and kernels (of one torch on one
    kind of processor) give the same weights, also when the training is interrupted and resumed, and
    whether or not the frozen part's answers fit in memory. On a GPU the weights are close, not the
    same: for some gradients, as those of resizing, torch has no kernel there that sums in a fixed
    order. torch's own random state is left as it was.

    Under `torchrun` the processes share the pictures and each step; all end with each other's
    weights, and with what was found of all pictures in `stream`. Only rank 0 writes the checkpoint,
    which all of them must see, and reports progress. A CUDA method must be on
    `distributed.own_device`.

    Args:
        method: on the device and in the precision (bf16 or fp32) that it is trained in.
        stream: the pictures; `batch_size` is that of the frozen part.
        seed: of the order of the pictures and of everything random in a step.
        identity: what decides the outcome besides pictures, seed and time budget (config, hash of
            the weights, precision, …), JSON-ready: a checkpoint is resumed only by the training
            with the same identity.
        minutes: a time budget, from the call of this function on: a few steps are tried, then as
            many are made as fit in (one at least), whatever `epochs` and `min_steps` of the config
            say.
        checkpoint: where the state is kept, about once a minute, when interrupted (Ctrl-C) and at
            the end, from where a resumed training takes no step; the caller removes it once the
            result is safe.
        resume: go on from the checkpoint where there is one; else none must be there.
        progress: called with "reading the pictures", then with "training · loss … · … pictures/s ·
            … left".
        watch: called in rank 0 after every step with its number (from 1), how many there are, and
            its loss. It draws nothing from torch's generators.
    Returns: how it went, and what was found of the pictures (without thumbnails).
    Raises: ConfigError for what cannot be trained so, or a checkpoint of another training;
        OutputError where a checkpoint lies in the way or cannot be written; ArtifactError where it
        is damaged; DataError where no picture can be read; NonFiniteError when the loss is no
        longer finite.
    """
    started = time.perf_counter()
    config, backbone = method.config, method.backbone
    device, precision = backbone.device, method.precision
    rank, processes = distributed.rank(), distributed.processes()
    if rank != 0:
        progress = silent
    if precision not in (torch.float32, torch.bfloat16):
        raise ConfigError("training runs in bf16 or fp32: choose one of them as the precision")
    if minutes is not None and not 0 < minutes < math.inf:
        raise ConfigError(f"the time budget must be a positive number of minutes, got {minutes}")
    if config.train_batch_size % processes:
        raise ConfigError(
            f"train_batch_size: {config.train_batch_size} cannot be shared evenly by {processes} processes"
        )
    size = config.train_batch_size // processes
    identity = {**identity, "seed": seed, "time budget": minutes, "processes": processes}
    found = checkpoints.find(checkpoint, identity, resume=resume)

    with (
        distributed.joined(device),
        torch.random.fork_rng([device] if device.type == "cuda" else []),
    ):
        # The frozen part first, once.
        method.eval()
        first = 0 if found is None else found.step
        method.prepare_training()
        rows, pictures = _read(method, stream, progress, size=size, first=first)
        told = distributed.exchange([*rows.of_an_epoch(size), *rows.class_counts])
        epoch, of_it, *counts = (sum(column) for column in zip(*told, strict=True))
        method.class_counts = (counts[0], counts[1])
        fingerprint = checkpoints.fingerprint(pictures)
        if found is not None and found.pictures != fingerprint:
            raise ConfigError(
                f"{checkpoint}: was made with other training pictures; remove it to start anew"
            )

        # Everything that changes, at its start or where the checkpoint has it.
        with closing(
            rows.batches(min(SAMPLE, rows.rows), seed=seed_of("sample", seed), skip=0)
        ) as batches:
            sample = next(batches)
        _set_seed(seed_of("start", seed), device)
        method.start_training(sample)
        method.train()
        if checkpoints.is_frozen(backbone):
            backbone.eval()
        optimizer = _optimizer(method)
        steps = max(config.min_steps, math.ceil(config.epochs * epoch / of_it))
        first, loss, earlier, curve = 0, 0.0, 0.0, _Curve([])
        if found is not None:
            found.restore(method, optimizer)
            first, steps, loss, earlier = found.step, found.steps, found.loss, found.seconds
            curve = _Curve([list(part) for part in found.curve])
        take = _Step(
            method,
            distributed.training_step(method),
            device,
            precision,
            seed_of("step", seed, rank),
        )
        if minutes is not None and found is None:
            optimizer, steps = _fit_to(
                started + 60 * minutes, take, rows, size, seed, optimizer, progress
            )

        # The loop.
        begun, saved = time.perf_counter(), time.monotonic()
        progress(STAGE, first, steps)
        with (
            closing(rows.batches(size, seed=seed, skip=first)) as batches,
            _interrupts_wait(checkpoint is not None) as interrupted,
        ):
            for step, batch in zip(range(first, steps), batches, strict=False):
                latest = take(optimizer, batch, step, steps)
                loss += (latest - loss) * max(1 / (step + 1), 0.02)
                curve.add(step, steps, latest)
                if watch is not None and rank == 0:
                    watch(step + 1, steps, latest)
                stop = bool(interrupted.number) and rank == 0
                due = stop or step + 1 == steps or time.monotonic() - saved >= BETWEEN_CHECKPOINTS
                if checkpoint is not None and rank == 0 and due:
                    with interrupted.whole():
                        checkpoints.save(
                            checkpoint,
                            method,
                            optimizer,
                            step=step + 1,
                            steps=steps,
                            loss=loss,
                            curve=curve.parts,
                            seconds=earlier + time.perf_counter() - started,
                            identity=identity,
                            pictures=fingerprint,
                        )
                    saved, stop = time.monotonic(), bool(interrupted.number)
                if stop:
                    raise interrupts.Interrupted(number=interrupted.number)
                each = (time.perf_counter() - begun) / (step + 1 - first)
                rate, left = config.train_batch_size / each, duration(each * (steps - step - 1))
                progress(
                    f"{STAGE} · loss {loss:.3g} · {rate:.3g} pictures/s · {left} left",
                    step + 1,
                    steps,
                )

        spent = time.perf_counter() - begun
        optimizer.zero_grad(set_to_none=True)
        with torch.no_grad():
            findings = method.findings(sample)
        method.end_training(steps)
        method.eval()
    training = Training(
        steps=steps,
        epochs=steps * of_it / epoch,
        seconds=earlier + time.perf_counter() - started,
        pictures_per_second=(steps - first) * config.train_batch_size / spent,
        loss=loss,
        curve=curve.points(),
        cached=rows.kept is not None,
        processes=processes,
        resumed_at=first,
        findings=findings,
    )
    return training, pictures


@dataclass(frozen=True)
class _Curve:
    """The loss of a run in equal parts: the number of the last step, how many steps, and the mean
    of their losses.
    """

    parts: list[list[float]]

    def add(self, step: int, steps: int, loss: float) -> None:
        """Note the loss of step number `step` (from 0) of `steps`."""
        part = step * min(CURVE, steps) // steps
        while len(self.parts) <= part:
            self.parts.append([0, 0, 0.0])
        own = self.parts[part]
        own[0], own[1] = step + 1, own[1] + 1
        own[2] += (loss - own[2]) / own[1]

    def points(self) -> tuple[tuple[float, float], ...]:
        return tuple((float(last), loss) for last, count, loss in self.parts if count)


@dataclass(frozen=True)
class _Step:
    """One step of the optimiser."""

    method: Learner
    training_step: distributed.TrainingStep
    device: torch.device
    precision: torch.dtype
    seed: int

    def __call__(
        self, optimizer: torch.optim.Optimizer, batch: TrainingBatch, step: int, steps: int
    ) -> float:
        """The loss of step number `step` (from 0) of `steps`. Raises: NonFiniteError."""
        factor = self.method.learning_rate_factor(step / steps)
        for group in optimizer.param_groups:
            group["lr"] = group["initial_lr"] * factor
        _set_seed(
            seed_of(self.seed, step), self.device
        )  # no state of a generator need be kept to resume
        with torch.autocast(
            self.device.type, dtype=torch.bfloat16, enabled=self.precision == torch.bfloat16
        ):
            loss = self.training_step(batch, step / steps)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        learned = [parameter for group in optimizer.param_groups for parameter in group["params"]]
        torch.nn.utils.clip_grad_norm_(learned, self.method.clip_norm)
        optimizer.step()
        self.method.after_step(step + 1, steps)
        return finite(loss.detach(), step + 1).item()  # last, for a GPU is waited for here


def _set_seed(seed: int, device: torch.device) -> None:
    """Seed the generators that a step on the device draws from: in a hundredth of the time of
    `torch.manual_seed`.
    """
    torch.default_generator.manual_seed(seed)
    if device.type == "cuda":
        torch.cuda.default_generators[device.index].manual_seed(seed)
    elif device.type == "mps":
        torch.mps.manual_seed(seed)


def _optimizer(method: Learner) -> torch.optim.Optimizer:
    optimizer = method.optimizer()
    for group in optimizer.param_groups:
        group["initial_lr"] = group["lr"]
    return optimizer


def _read(
    method: Learner, stream: PictureStream, progress: Progress, *, size: int, first: int
) -> tuple[Feed, Found]:
    """This process's share of the stream, read, and what all processes have found of all of it.

    Raises: DataError when there is nothing to train on; ConfigError when the processes begin at
    different steps.
    """
    processes = distributed.processes()
    own = dataclasses.replace(
        stream,
        sources=distributed.share(stream.sources),
        labels=distributed.share(stream.labels),
        # A step must not have to pay for more where nothing is kept.
        batch_size=min(stream.batch_size, size),
    )
    limit = method.config.cache_gib * 2**30 / processes
    rows = feed.read(method, own, limit=limit, progress=progress)
    broken = {position: failure.reason for position, failure in rows.found.failures.items()}
    told = [first, *(list(each.items()) for each in (rows.found.digests, rows.found.notes, broken))]
    everyone = distributed.exchange(told)
    found = Found()
    for number, (_, digests, notes, reasons) in enumerate(everyone):
        for position, digest in digests:
            found.digests[number + processes * position] = digest
        for position, note in notes:
            found.notes[number + processes * position] = tuple(note)
        for position, reason in reasons:
            at = number + processes * position
            found.failures[at] = Failure(source=name_of(stream.sources[at], at), reason=reason)
    # In the order of the pictures, whoever has read them.
    found = Found(*(dict(sorted(each.items())) for each in vars(found).values()))
    if len({begin for begin, *_ in everyone}) > 1:
        raise ConfigError(
            "the processes do not see the same checkpoint: put it where all of them can read it"
        )
    if not all(digests for _, digests, *_ in everyone):
        heading = "no training picture can be read"
        if processes > 1:
            heading = "there is not a readable picture for each process"
        raise unreadable(heading, found.failures.values())
    return rows, found


def _fit_to(
    deadline: float,
    take: _Step,
    rows: Feed,
    size: int,
    seed: int,
    optimizer: torch.optim.Optimizer,
    progress: Progress,
) -> tuple[torch.optim.Optimizer, int]:
    """A fresh optimiser, and how many steps end at the deadline: some are timed, and undone."""
    before = {
        name: tensor.clone() for name, tensor in checkpoints.learned_state(take.method).items()
    }
    seconds: list[float] = []
    with closing(rows.batches(size, seed=seed, skip=0)) as batches:
        enough = False
        while not enough:
            progress("trying a few steps", len(seconds), 0)
            begun = time.perf_counter()
            take(optimizer, next(batches), len(seconds), 100)
            seconds.append(time.perf_counter() - begun)
            # Few of them where they are slow; the first is slower than the others.
            enough = len(seconds) >= 20 or (
                len(seconds) >= 3 and sum(seconds) > 0.02 * (deadline - begun)
            )
            enough = distributed.exchange(enough)[0]
    checkpoints.put_back(take.method, before)
    left = deadline - time.perf_counter()
    if left <= 0:
        progress("reading the pictures has used up the time budget: one step is made", 0, 0)
    steps = max(1, int(left / statistics.median(seconds[1:])))
    return _optimizer(take.method), distributed.exchange(steps)[0]


@contextmanager
def _interrupts_wait(wanted: bool) -> Iterator[interrupts.Waiting]:
    """While open, the first interrupt is only noted, as a step must not be left half made; see
    `interrupts.waiting`.
    """
    with interrupts.waiting(wanted=wanted) as came:
        try:
            yield came
        except RuntimeError as error:  # the other processes lose rank 0, which stops first
            if came.number and distributed.rank() != 0:
                raise interrupts.Interrupted(number=came.number) from error
            raise
    if came.number:  # after the last step
        raise interrupts.Interrupted(number=came.number)

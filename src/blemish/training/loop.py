"""The loop of everything that learns by gradient.

On a CPU the same seed, pictures, config, number of threads and kernels (of one torch on one kind of
processor) give the same weights, also when the training is interrupted and resumed, and whether or
not the frozen part's answers fit in memory. On a GPU the weights are close, not the same: for some
gradients, as those of resizing, torch has no kernel there that sums in a fixed order. torch's own
random state is left as it was.

Under `torchrun` the processes share the pictures and each step; all end with each other's weights,
and with what was found of all pictures. Only rank 0 writes the checkpoint, which all of them must
see, and reports progress.
"""

from __future__ import annotations

import dataclasses
import math
import statistics
import time
from collections.abc import Callable, Generator, Iterator, Mapping
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import torch

from blemish import interrupts
from blemish.data.ahead import name_of
from blemish.data.stream import Found, PictureStream, unreadable
from blemish.errors import ConfigError
from blemish.methods.learner import Learner, TrainingBatch, finite
from blemish.text import duration
from blemish.training import checkpoint as checkpoints
from blemish.training import distributed, feed
from blemish.training.arithmetic import counting
from blemish.training.budget import NO_BUDGET, TERA, Budget
from blemish.training.checkpoint import Checkpoint
from blemish.training.feed import Feed, seed_of
from blemish.training.records import CURVE, CheckpointManifest, Training
from blemish.types import Failure, Progress, silent

BETWEEN_CHECKPOINTS = 60.0  # seconds
SAMPLE = 64  # pictures, or all of them where they are fewer, that a method may start from
STAGE, TRYING = "training", "trying a few steps"
WORDS = "stopping after this step, which is saved; the same once more stops at once"
COUNTED = 3  # steps whose arithmetic is counted: where the shapes of a step are drawn it varies


def train(
    method: Learner,
    stream: PictureStream,
    *,
    seed: int,
    identity: Mapping[str, Any],
    budget: Budget = NO_BUDGET,
    checkpoint: Path | None = None,
    resume: bool = False,
    progress: Progress = silent,
    watch: Callable[[int, int, float], None] | None = None,
) -> tuple[Training, Found]:
    """Train a method (or another learner) on the pictures of a stream; it can score afterwards.

    Args:
        method: on the device (a GPU: `distributed.own_device`) and in the precision (bf16 or fp32)
            that it is trained in.
        stream: the pictures; `batch_size` is that of the frozen part.
        seed: of the order of the pictures and of everything random in a step.
        identity: what decides the outcome besides pictures, seed and budget, JSON-ready: only
            the training with the same identity resumes a checkpoint.
        budget: in place of `epochs` and `min_steps`, minutes from this call on, or arithmetic: a
            few steps are tried, then as many are made as fit in (one at least).
        checkpoint: where the state is kept, about once a minute, when interrupted (Ctrl-C) and at
            the end; the caller removes it once the result is safe.
        resume: go on from the checkpoint where there is one; else none must be there.
        progress: called with "reading the pictures", then with "training · loss … · … pictures/s ·
            … left".
        watch: called after every step with its number (from 1), how many there are, and its loss.
            It draws nothing from torch's generators.
    Returns: how it went, and what was found of the pictures (without thumbnails).
    Raises: ConfigError for what cannot be trained so, or a checkpoint of another training;
        OutputError where one lies in the way or cannot be written; ArtifactError where it is
        damaged; DataError where no picture can be read; NonFiniteError for such a loss.
    """
    started, device = time.perf_counter(), method.backbone.device
    size = _rows_of_a_step(method)
    processes = distributed.processes()
    identity = {**identity, "seed": seed, **budget.to_identity(), "processes": processes}
    found = checkpoints.find(checkpoint, identity, resume=resume)
    if distributed.rank() != 0:
        progress, watch = silent, None
    generators = [device] if device.type == "cuda" else []
    with distributed.joined(device), torch.random.fork_rng(generators):
        first = 0 if found is None else found.step
        _refuse_apart(first, checkpoint)
        rows, pictures = _read(method, stream, budget, progress, size=size, first=first)
        fingerprint = checkpoints.fingerprint(pictures)
        run = _Run(method, rows, size, seed, started, checkpoint, identity, fingerprint, found)
        if budget.minutes is not None and found is None:
            run.fit_to(started + 60 * budget.minutes, progress)
        if budget.teraflops is not None and found is None:
            run.fit_to_arithmetic(TERA * budget.teraflops, progress)
        return run.to_the_end(progress, watch), pictures


def _refuse_apart(first: int, checkpoint: Path | None) -> None:
    """Raises: ConfigError where not all processes go on from the same step: they would wait for
    each other for ever."""
    starts = distributed.exchange(first)
    if len(set(starts)) > 1:
        raise ConfigError(
            f"checkpoint {checkpoint}: the processes would go on from different steps "
            f"({', '.join(map(str, starts))}); put it where all machines see the same file, as on "
            "a shared drive"
        )


def _rows_of_a_step(method: Learner) -> int:
    """In this process. Raises: ConfigError for what cannot be trained so."""
    size, processes = method.config.train_batch_size, distributed.processes()
    if method.precision not in (torch.float32, torch.bfloat16):
        raise ConfigError("training runs in bf16 or fp32: choose one of them as the precision")
    if size % processes:
        raise ConfigError(
            f"train_batch_size: {size} cannot be shared evenly by {processes} processes"
        )
    return size // processes


class _Run:
    """A training on its way: all that changes, from its start or from where a checkpoint has it.

    Attributes:
        size: rows of a step, in this process.
        first, earlier: how many steps earlier runs have made, and in how many seconds.
        steps: how many there are to be.
        loss: smoothed.
        curve: the loss in equal parts of the run: the number of the last step, how many steps, and
            the mean of their losses.
    Raises: ConfigError where the checkpoint was made with other pictures; ArtifactError where it
        does not fit.
    """

    def __init__(
        self,
        method: Learner,
        rows: Feed,
        size: int,
        seed: int,
        started: float,
        checkpoint: Path | None,
        identity: Mapping[str, Any],
        pictures: str,
        found: Checkpoint | None,
    ) -> None:
        self.method, self.rows, self.size, self.seed = method, rows, size, seed
        self.started, self.path = started, checkpoint
        self.identity, self.pictures = identity, pictures
        told = distributed.exchange([*rows.of_an_epoch(size), *rows.class_counts])
        self.of_an_epoch, self.of_a_step, *counts = map(sum, zip(*told, strict=True))
        method.class_counts = (counts[0], counts[1])
        if found is not None and found.pictures != pictures:
            raise ConfigError(
                f"{checkpoint}: was made with other training pictures; remove it to start anew"
            )
        count = min(SAMPLE, rows.rows)
        with closing(rows.batches(count, seed=seed_of("sample", seed), skip=0)) as batches:
            self.sample = next(batches)
        self.device = method.backbone.device
        _set_seed(seed_of("start", seed), self.device)
        method.start_training(self.sample)
        method.train()
        if checkpoints.is_frozen(method.backbone):
            method.backbone.eval()
        self.optimizer = _optimizer(method)
        wanted = math.ceil(method.config.epochs * self.of_an_epoch / self.of_a_step)
        self.steps = max(method.config.min_steps, wanted)
        self.first, self.loss, self.earlier = 0, 0.0, 0.0
        self.curve: list[list[float]] = []
        if found is not None:
            found.restore(method, self.optimizer)
            self.first, self.steps = found.step, found.steps
            self.loss, self.earlier = found.loss, found.seconds
            self.curve = [list(part) for part in found.curve]
        self.training_step = distributed.training_step(method)
        self.step_seed = seed_of("step", seed, distributed.rank())

    def to_the_end(
        self, progress: Progress, watch: Callable[[int, int, float], None] | None
    ) -> Training:
        """Takes the steps that are left. Raises: Interrupted, once the state is saved."""
        begun, saved = time.perf_counter(), time.monotonic()
        speaks, at_once = distributed.rank() == 0, self.method.config.train_batch_size
        progress(STAGE, self.first, self.steps)
        with (
            self._batches(skip=self.first) as batches,
            _interrupts_wait(self.path is not None, WORDS if speaks else "") as interrupted,
        ):
            for step, batch in zip(range(self.first, self.steps), batches, strict=False):
                latest = self.take(batch, step, self.steps)
                self._note(step, latest)
                if watch is not None:
                    watch(step + 1, self.steps, latest)
                stop = bool(interrupted.number) and speaks
                late = time.monotonic() - saved >= BETWEEN_CHECKPOINTS
                if speaks and self.path is not None and (stop or late or step + 1 == self.steps):
                    with interrupted.whole():
                        self._save(self.path, step + 1)
                    saved, stop = time.monotonic(), bool(interrupted.number)
                if stop:
                    raise interrupts.Interrupted(number=interrupted.number)
                each = (time.perf_counter() - begun) / (step + 1 - self.first)
                rate, left = at_once / each, duration(each * (self.steps - step - 1))
                words = f"{STAGE} · loss {self.loss:.3g} · {rate:.3g} pictures/s · {left} left"
                progress(words, step + 1, self.steps)
        spent = time.perf_counter() - begun
        self.optimizer.zero_grad(set_to_none=True)
        with torch.no_grad():
            findings = self.method.findings(self.sample)
            if self.rows.left_out:
                with closing(self.rows.left_out_batches(self.size)) as batches:
                    self.method.measure_left_out(batches)
        self.method.end_training(self.steps)
        self.method.eval()
        return Training(
            steps=self.steps,
            epochs=self.steps * self.of_a_step / self.of_an_epoch,
            seconds=self.earlier + time.perf_counter() - self.started,
            pictures_per_second=(self.steps - self.first) * at_once / spent,
            loss=self.loss,
            curve=tuple((float(last), loss) for last, count, loss in self.curve if count),
            cached=self.rows.kept is not None,
            processes=distributed.processes(),
            resumed_at=self.first,
            findings=findings,
        )

    def take(self, batch: TrainingBatch, step: int, steps: int) -> float:
        """The loss of step number `step` (from 0) of `steps`. Raises: NonFiniteError."""
        method, groups = self.method, self.optimizer.param_groups
        factor = method.learning_rate_factor(step / steps)
        for group in groups:
            group["lr"] = group["initial_lr"] * factor
        # No state of a generator need be kept to resume.
        _set_seed(seed_of(self.step_seed, step), self.device)
        mixed = method.precision == torch.bfloat16
        with torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=mixed):
            loss = self.training_step(batch, step / steps)
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        learned = [parameter for group in groups for parameter in group["params"]]
        torch.nn.utils.clip_grad_norm_(learned, method.clip_norm)
        self.optimizer.step()
        method.after_step(step + 1, steps)
        return finite(loss.detach(), step + 1).item()  # last, for a GPU is waited for here

    def fit_to(self, deadline: float, progress: Progress) -> None:
        """Makes as many steps of it as end at the deadline: some are timed, and undone."""
        seconds: list[float] = []
        with self._tried() as batches:
            enough = False
            while not enough:
                progress(TRYING, len(seconds), 0)
                begun = time.perf_counter()
                self.take(next(batches), len(seconds), 100)
                seconds.append(time.perf_counter() - begun)
                # Few of them where they are slow; the first is slower than the others.
                long = sum(seconds) > 0.02 * (deadline - begun)
                enough = len(seconds) >= 20 or (len(seconds) >= 3 and long)
                enough = distributed.exchange(enough)[0]
        left = deadline - time.perf_counter()
        if left <= 0:
            progress("reading the pictures has used up the time budget: one step is made", 0, 0)
        self.steps = distributed.exchange(max(1, int(left / statistics.median(seconds[1:]))))[0]

    def fit_to_arithmetic(self, allowed: float, progress: Progress) -> None:
        """Makes as many steps of it as `allowed` floating-point operations suffice for, together
        with what the frozen part has taken for the rows that come in them: some steps are counted,
        and undone."""
        counted: list[int] = []
        with self._tried() as batches:
            for number in range(COUNTED):
                progress(TRYING, number, COUNTED)
                with counting() as counter:
                    self.take(next(batches), number, 100)
                counted.append(counter.get_total_flops())
        step = sum(counted) / COUNTED
        told = distributed.exchange([self._flops_of_a_row(), self.rows.rows, step])
        encoding, rows, stepping = (list(each) for each in zip(*told, strict=True))
        row, every, each = max(encoding), sum(rows), max(sum(stepping), 1)
        size = self.method.config.train_batch_size
        new = int(allowed / (each + row * size))  # steps of rows that are encoded for them
        if new == 0:
            progress("the compute budget does not suffice for a step: one is made", 0, 0)
        again = int((allowed - row * every) / each)  # where all have been
        self.steps = max(1, min(new, every // size), again)

    def _flops_of_a_row(self) -> int:
        """Of what the frozen part gives of a row, once; 0 where it is not kept, as each step pays
        for it then."""
        if self.rows.kept is None:
            return 0
        image = self.rows.picture(0)[None].to(self.device)
        with torch.no_grad(), counting() as counter:
            self.method.encode(image)
        return int(counter.get_total_flops())

    @contextmanager
    def _tried(self) -> Iterator[Generator[TrainingBatch]]:
        """Batches for steps that are undone at the end."""
        state = checkpoints.learned_state(self.method)
        before = {name: tensor.clone() for name, tensor in state.items()}
        words = "stopping after this step" if distributed.rank() == 0 else ""
        with self._batches(skip=0) as batches, interrupts.told(words):
            yield batches
        checkpoints.put_back(self.method, before)
        self.optimizer = _optimizer(self.method)

    def _batches(self, *, skip: int) -> closing[Generator[TrainingBatch]]:
        return closing(self.rows.batches(self.size, seed=self.seed, skip=skip))

    def _note(self, step: int, loss: float) -> None:
        """The loss of step number `step` (from 0)."""
        self.loss += (loss - self.loss) * max(1 / (step + 1), 0.02)
        part = step * min(CURVE, self.steps) // self.steps
        while len(self.curve) <= part:  # those of an earlier version have none
            self.curve.append([0, 0, 0.0])
        own = self.curve[part]
        own[0], own[1] = step + 1, own[1] + 1
        own[2] += (loss - own[2]) / own[1]

    def _save(self, path: Path, step: int) -> None:
        manifest = CheckpointManifest(
            step=step,
            steps=self.steps,
            loss=self.loss,
            curve=tuple(map(tuple, self.curve)),
            seconds=self.earlier + time.perf_counter() - self.started,
            identity=self.identity,
            pictures=self.pictures,
            scalars={},
        )
        checkpoints.save(path, self.method, self.optimizer, manifest)


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


def _takes_too_long(method: Learner, stream: PictureStream, minutes: float) -> bool:
    """Whether nearly all of so many minutes would go into what the frozen part gives of all rows:
    more steps are made where each pays for its own rows."""
    with closing(iter(stream)) as reading:
        batch = next(reading, None)
    if batch is None:
        return False
    images, seconds = batch.images.to(method.backbone.device), 0.0
    for _ in range(2):  # the first is slower
        begun = time.perf_counter()
        with torch.no_grad():
            each = next(iter(method.encode(images).values()), None)
            if each is None:  # of a method that learns all of it there is nothing to keep
                return False
            float(each.flatten()[0])  # a GPU is waited for
        seconds = time.perf_counter() - begun
    return stream.rows / len(images) * seconds > 0.9 * 60 * minutes


def _read(
    method: Learner,
    stream: PictureStream,
    budget: Budget,
    progress: Progress,
    *,
    size: int,
    first: int,
) -> tuple[Feed, Found]:
    """The frozen part, first and once: this process's share of the stream, and what all processes
    have found of all of it.

    Raises: DataError when there is nothing to train on; ConfigError when the processes begin at
    different steps.
    """
    method.eval()
    method.prepare_training()
    processes = distributed.processes()
    own = dataclasses.replace(
        stream,
        sources=distributed.share(stream.sources),
        labels=distributed.share(stream.labels),
        # A step must not have to pay for more where nothing is kept.
        batch_size=min(stream.batch_size, size),
    )
    limit = method.config.cache_gib * 2**30 / processes
    if budget.minutes is not None and _takes_too_long(method, own, budget.minutes):
        limit = 0.0
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


@contextmanager
def _interrupts_wait(wanted: bool, words: str) -> Iterator[interrupts.Waiting]:
    """While open, the first interrupt is only noted, as a step must not be left half made; see
    `interrupts.waiting`.
    """
    with interrupts.waiting(wanted=wanted, words=words) as came:
        try:
            yield came
        except RuntimeError as error:  # the other processes lose rank 0, which stops first
            if came.number and distributed.rank() != 0:
                raise interrupts.Interrupted(number=came.number) from error
            raise
    if came.number:  # after the last step
        raise interrupts.Interrupted(number=came.number)

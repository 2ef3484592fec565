"""How long runs will take, roughly: from earlier rows, from the time budget, or from a forward pass tried out."""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch

from blemish.backbones import Backbone, Features, build
from blemish.bench.plan import Run, shared_threads
from blemish.bench.results import OK, Row
from blemish.compute import PRECISIONS, pick_device, pick_precision, precision_name
from blemish.data.layouts import recognition as layouts
from blemish.data.phrases import counted
from blemish.errors import BlemishError, DataError
from blemish.methods import MethodConfig
from blemish.methods.lda import LdaConfig
from blemish.methods.trained import Schedule
from blemish.types import NORMAL

OVERHEAD = 10.0  # seconds of every run: imports, the backbone, metrics
# How many forward passes of the backbone a picture costs, each time it is learned from.
BY_HEART = 2.0  # its features, and the bank or the statistics made of them
FROZEN = 2.0  # what learns over a frozen encoder is smaller than it, and runs forward and backward
LEARNED = 6.0  # forward and backward (twice as long) of the picture, and of its anomalous twin or its other views
_TRIED = 1.0  # seconds for which a forward pass is repeated
_AT_ONCE = {"cuda": 8}  # pictures in it, where one alone would leave the device idle


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """What a run may take.

    Attributes:
        seconds: None where it cannot be told.
        basis: what it is taken from, or why it cannot be told.
    """

    run: Run
    seconds: float | None
    basis: str

    def __str__(self) -> str:
        told = "no telling" if self.seconds is None else f"about {duration(self.seconds)}"
        return f"{self.run}: {told} ({self.basis})"

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready: the run, with `seconds` and `basis`."""
        return {**self.run.to_dict(), "seconds": self.seconds, "basis": self.basis}


def estimate(
    runs: Iterable[Run],
    rows: Sequence[Row] = (),
    *,
    device: str = "auto",
    precision: str = "auto",
    threads: int | None = None,
    jobs: int = 1,
) -> list[Estimate]:
    """What each of the runs may take, in their order; metrics and a machine shared with others are guessed at best.

    A run takes what the most similar earlier runs of its method took (recipe, backbone, size, shots, time budget, kind
    of device and precision being the same): those on the same data, or others, scaled by the number of pictures. Where
    there are none it takes its time budget, or as long as the passes of its recipe over the pictures of its data set
    would, from a forward pass of its backbone with random weights that is tried out here.

    Args:
        rows: as `blemish.bench.results.read_rows` gives them.
        device, precision, threads, jobs: as of `blemish.bench.run.run`.
    Raises: ConfigError for a device, precision or config that is wrong.
    """
    torch_device = pick_device(device)
    name = precision_name(pick_precision(precision, torch_device))
    threads = shared_threads(threads, jobs)
    known = [
        row for row in rows if row["status"] == OK and row["device"]["type"] == torch_device.type
    ]
    known = [row for row in known if row["precision"] == name]
    found: list[Estimate] = []
    for one in runs:
        try:
            seconds, basis = _estimated(one, known, str(torch_device), name, threads)
        except BlemishError as error:  # a dry run tells what it can
            found.append(Estimate(run=one, seconds=None, basis=str(error).partition("\n")[0]))
        else:
            found.append(Estimate(run=one, seconds=round(seconds, 1), basis=basis))
    return found


def total(estimates: Iterable[Estimate], jobs: int = 1) -> float:
    """Seconds until all of them are done with `jobs` at once; those of which nothing can be told count as none."""
    return sum(each.seconds or 0.0 for each in estimates) / jobs


def duration(seconds: float) -> str:
    """A time in the unit that suits it.

    Example:
        >>> duration(12.3), duration(200), duration(12345)
        ('12 s', '3.3 min', '3.4 h')
    """
    if seconds < 60:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.1f} min" if seconds < 3600 else f"{seconds / 3600:.1f} h"


def _estimated(
    one: Run, rows: Iterable[Row], device: str, precision: str, threads: int | None
) -> tuple[float, str]:
    """Seconds, and what they are taken from. Raises: DataError, ConfigError, WeightsError."""
    alike = [row for row in rows if _alike(row, one)]
    if alike:
        nearest = max(_nearness(row, one) for row in alike)
        alike = [row for row in alike if _nearness(row, one) == nearest]
        basis = counted(len(alike), "earlier row")
        if nearest[0]:
            return OVERHEAD + statistics.median(map(_seconds, alike)), basis
        each = statistics.median(
            _seconds(row) / (row["counts"]["fitted"] + row["counts"]["pictures"]) for row in alike
        )
        return OVERHEAD + each * sum(_pictures(one)), f"{basis} on other data, by pictures"
    if one.time_budget is not None:
        return OVERHEAD + 60 * one.time_budget, "its time budget"
    config = one.config
    forward = _forward_seconds(config.backbone, config.height_width, device, precision, threads)
    return OVERHEAD + forward * _forwards(one), "a forward pass tried here"


def _alike(row: Row, one: Run) -> bool:
    """Whether a row's time says something of a run's."""
    changed = row.get("changed", {})
    theirs = (
        row["method"],
        row["recipe"],
        row["settings"].get("backbone"),
        changed.get("image_size"),
    )
    mine = (one.method, one.recipe, one.config.backbone, one.settings.get("image_size"))
    return theirs == mine and (row.get("shots"), row.get("time_budget")) == (
        one.shots,
        one.time_budget,
    )


def _nearness(row: Row, one: Run) -> tuple[bool, bool]:
    return row["data"] == one.data, row.get("changed", {}) == dict(one.settings)


def _seconds(row: Row) -> float:
    """What the run of a row has taken, as far as rows tell."""
    scored: float = row["counts"]["pictures"] / row["images_per_second"]
    return float(row["seconds_to_fit"]) + scored * _passes(row)


def _passes(asked: Mapping[str, Any]) -> int:
    """How often the test pictures are judged."""
    shifts, modes = asked.get("shifts") or (), asked.get("adapt") or ()
    return 1 + ((1 + len(shifts)) * (1 + len(modes)) if shifts or modes else 0)


def _pictures(one: Run) -> tuple[int, int]:
    """How many a run learns from, and how many test it. Raises: DataError."""
    train, test, categories = _counted(one.path)
    if not train or not test:
        raise DataError(f"{one.path}: a benchmark needs a train and a test split")
    return (train if one.shots is None else one.shots * categories), test


@cache
def _counted(path: Path) -> tuple[int, int, int]:
    """Normal training pictures, test pictures, categories (at least 1)."""
    dataset = layouts.read(path)
    train = sum(sample.label == NORMAL for sample in dataset.train())
    return train, len(dataset.test()), max(1, len(dataset.categories))


def _forwards(one: Run) -> float:
    """How many forward passes of the backbone, of a picture in the size that is learned from, a run is worth."""
    config = one.config
    fitted, test = _pictures(one)
    copies = fitted * config.rotations * (1 + config.flips)
    learner = config.normality_config if isinstance(config, LdaConfig) else config
    worth = float(test * _passes(one.to_dict()))
    if isinstance(learner, Schedule):
        worth += (LEARNED if learner.encoder_learns else FROZEN) * _visits(learner, copies)
    else:
        worth += BY_HEART * copies
    return worth + _before(config, copies)


def _before(config: MethodConfig, copies: int) -> float:
    """The same of the pre-training, where there is one."""
    before = config.pretraining_config
    if before is None:
        return 0.0
    height, width = config.height_width
    return LEARNED * _visits(before, copies) * before.image_size**2 / (height * width)


def _visits(schedule: Schedule, copies: int) -> int:
    """How often a training sees a picture, all pictures together."""
    return max(schedule.epochs * copies, schedule.min_steps * schedule.pictures_per_step)


@cache
def _forward_seconds(
    backbone: str, size: tuple[int, int], device: str, precision: str, threads: int | None
) -> float:
    """What one picture takes in a forward pass of the whole backbone, its weights drawn at random: none are needed."""
    model = build(backbone, weights="random").to(device=device, dtype=PRECISIONS[precision])
    kind = torch.device(device).type
    shape = (_AT_ONCE.get(kind, 1), 3, *model.round_size(*size))
    images = torch.zeros(shape, device=device, dtype=PRECISIONS[precision])
    usual = torch.get_num_threads()
    torch.set_num_threads(threads or usual)
    try:
        with torch.inference_mode():
            _tried(model, images)  # the first pass chooses kernels
            tries: list[float] = []
            while sum(tries) < _TRIED:
                tries.append(_tried(model, images))
            return min(tries) / len(images)  # whatever else the machine does can only slow it down
    finally:
        torch.set_num_threads(usual)


def _tried(model: Backbone, images: torch.Tensor) -> float:
    """Seconds of one forward pass."""
    started = time.perf_counter()
    features: Features = model(images, (model.depth,))
    features.tokens[-1].flatten()[0].item()  # a GPU is waited for
    return time.perf_counter() - started

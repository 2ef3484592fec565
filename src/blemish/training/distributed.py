"""The processes that `torchrun` has started: who this one is, and what they say to each other.

Everything here also holds for one process alone, which is rank 0 of 1.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from inspect import signature
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.parallel import DistributedDataParallel

from blemish.errors import ConfigError
from blemish.methods.learner import Learner, TrainingBatch

TrainingStep = Callable[[TrainingBatch, float], Tensor]


def rank() -> int:
    """The number of this process, from 0. Rank 0 writes the files and talks to the user."""
    return _number("RANK", 0)


def processes() -> int:
    """How many processes train together."""
    return _number("WORLD_SIZE", 1)


def own_device(device: torch.device) -> torch.device:
    """`device`, or where that is "cuda" without a number and several processes train together, this
    process's own GPU.

    Raises: ConfigError where there are more processes than GPUs.
    """
    if device != torch.device("cuda") or processes() == 1:
        return device
    local, there = _number("LOCAL_RANK", 0), torch.cuda.device_count()
    if local >= there:
        raise ConfigError(
            f"there are more processes than GPUs: torchrun --nproc-per-node={there}, or "
            "--device cpu"
        )
    return torch.device("cuda", local)


@contextmanager
def joined(device: torch.device) -> Iterator[None]:
    """While open, the processes can talk to each other: NCCL between GPUs, Gloo else. Joins a group
    that there is.
    """
    if processes() == 1 or dist.is_initialized():
        yield
        return
    try:
        if device.type == "cuda":
            torch.cuda.set_device(device)
            dist.init_process_group("nccl", device_id=device)
        else:
            dist.init_process_group("gloo")
    except (ValueError, RuntimeError) as error:
        raise ConfigError(
            f"RANK and WORLD_SIZE are set, but the processes do not find each other ({error}); "
            "start them with torchrun, or unset both to train in one process"
        ) from error
    try:
        yield
    finally:
        dist.destroy_process_group()


def exchange(value: Any) -> list[Any]:
    """`value` (JSON-ready) of every process, by rank. Every process has to call it."""
    if processes() == 1:
        return [value]
    device = torch.device("cuda" if dist.get_backend() == "nccl" else "cpu")
    content = torch.frombuffer(bytearray(json.dumps(value).encode()), dtype=torch.uint8).to(device)
    sizes = [torch.zeros(1, dtype=torch.int64, device=device) for _ in range(processes())]
    dist.all_gather(sizes, torch.tensor([len(content)], device=device))
    widest = max(int(size) for size in sizes)
    parts = [torch.empty(widest, dtype=torch.uint8, device=device) for _ in sizes]
    dist.all_gather(parts, F.pad(content, (0, widest - len(content))))
    return [
        json.loads(part[: int(size)].cpu().numpy().tobytes())
        for part, size in zip(parts, sizes, strict=True)
    ]


def share(items: Sequence[Any]) -> list[Any]:
    """The items that are this process's: every n-th, from its rank on. Item i of rank r is item r +
    n·i of all.
    """
    return list(items[rank() :: processes()])


def training_step(method: Learner) -> TrainingStep:
    """`method.training_step`, the gradients of which are the mean over the processes.

    Every process starts with the parameters and buffers of rank 0, whatever sample it has started
    from itself; every learned parameter has to take part in every loss, unless it is said that
    some do not (`Learner.in_turns`).
    """
    if processes() == 1:
        return method.training_step
    for buffer in method.buffers():
        dist.broadcast(buffer, src=0)
    # Not before every step; torch has renamed the switch.
    renamed = "forward_sync_buffers" in signature(DistributedDataParallel).parameters
    switch: dict[str, Any] = {"forward_sync_buffers" if renamed else "broadcast_buffers": False}
    switch["find_unused_parameters"] = method.in_turns
    return DistributedDataParallel(_Step(method), **switch)


class _Step(nn.Module):
    """A training step as the forward pass of a module: that is where DDP comes in."""

    def __init__(self, method: Learner) -> None:
        super().__init__()
        self.method = method

    def forward(self, batch: TrainingBatch, fraction: float) -> Tensor:
        return self.method.training_step(batch, fraction)


def _number(variable: str, default: int) -> int:
    text = os.environ.get(variable, "")
    if text and not text.isdigit():
        raise ConfigError(
            f"the environment variable {variable} is {text!r}, where torchrun sets a number"
        )
    return int(text or default)

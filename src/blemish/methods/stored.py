"""What the tensors of a fitted method must be: a table each, held against what a file brings."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from blemish.errors import ArtifactError
from blemish.methods.foreground import UNIT as UNIT

# In which weights are kept: as they were computed with.
FLOATS = (torch.float32, torch.bfloat16, torch.float16)


@dataclass(frozen=True, slots=True)
class Free:
    """A side that what was learned decides, the same wherever its name stands in a table."""

    name: str
    least: int
    most: int = 2**31


@dataclass(frozen=True, slots=True, kw_only=True)
class Stored:
    """What a tensor must be.

    Attributes:
        shape: its sides. dtypes: it has one of them.
        low, high: its least and greatest value; `above`: whether `low` itself is excluded. NaN and
            infinity never are in the range.
        absent: whether it may also be empty, of any shape: nothing of this was learned.
    """

    shape: tuple[int | Free, ...]
    dtypes: tuple[torch.dtype, ...] = (torch.float32,)
    low: float = -math.inf
    high: float = math.inf
    above: bool = False
    absent: bool = False


def numbers(*shape: int | Free, low: float = 0, high: float = 2**53) -> Stored:
    """What counts, or names by number: int64."""
    return Stored(shape=shape, dtypes=(torch.int64,), low=low, high=high)


def weight(name: str, tensor: Tensor) -> Stored:
    """What a tensor of a network must be that has the shape and the kind of `tensor`."""
    dtypes = FLOATS if tensor.is_floating_point() else (tensor.dtype,)
    if name.endswith("num_batches_tracked"):
        return numbers(*tensor.shape)
    least = 0 if name.endswith("running_var") else -math.inf
    return Stored(shape=tuple(tensor.shape), dtypes=dtypes, low=least)


def check_tensors(table: Mapping[str, Stored], tensors: Mapping[str, Tensor]) -> None:
    """Raises: ArtifactError that names the tensor which does not hold, and why."""
    absent, foreign = table.keys() - tensors.keys(), tensors.keys() - table.keys()
    for names, wrong in ((absent, "is missing"), (foreign, "is not part of it")):
        if names:
            more = f", and {len(names) - 1} more" if len(names) > 1 else ""
            raise ArtifactError(f"{min(names)}: {wrong}{more}")
    sides: dict[str, int] = {}
    for name, wanted in table.items():  # all shapes before any value, which takes time to look at
        _check_shape(name, wanted, tensors[name], sides)
    for name, wanted in table.items():
        _check_values(name, wanted, tensors[name])


def _check_shape(name: str, wanted: Stored, tensor: Tensor, sides: dict[str, int]) -> None:
    if tensor.dtype not in wanted.dtypes:
        kinds = " or ".join(map(str, wanted.dtypes))
        raise ArtifactError(f"{name}: is {tensor.dtype}, not {kinds}".replace("torch.", ""))
    if wanted.absent and tensor.numel() == 0:
        return
    fits = tensor.ndim == len(wanted.shape)
    for side, found in zip(wanted.shape, tensor.shape, strict=False):
        if isinstance(side, Free):
            known = sides.setdefault(side.name, found)
            fits = fits and side.least <= found <= side.most and found == known
        else:
            fits = fits and found == side
    if not fits:
        shape = [_allowed(side, sides) if isinstance(side, Free) else side for side in wanted.shape]
        got, right = ("×".join(map(str, each)) or "scalar" for each in (tensor.shape, shape))
        raise ArtifactError(f"{name}: has the shape {got} instead of {right}")


def _check_values(name: str, wanted: Stored, tensor: Tensor) -> None:
    if tensor.numel() == 0 or tensor.dtype == torch.bool:
        return
    low, high = (float(bound) for bound in torch.aminmax(tensor))  # NaN where one is
    if not (math.isfinite(low) and math.isfinite(high)):
        raise ArtifactError(f"{name}: holds NaN or infinite values")
    if low < wanted.low or (wanted.above and low == wanted.low):
        least = "more than" if wanted.above else "at least"
        raise ArtifactError(f"{name}: holds {low:g}; {least} {wanted.low:g} is possible")
    if high > wanted.high:
        raise ArtifactError(f"{name}: holds {high:g}; at most {wanted.high:g} is possible")


def _allowed(side: Free, sides: dict[str, int]) -> str:
    found = sides.get(side.name, -1)
    return str(found) if side.least <= found <= side.most else f"({side.least} to {side.most})"

"""Counting the arithmetic of what runs."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode


@contextmanager
def counting() -> Iterator[FlopCounterMode]:
    """While open, a counter of floating-point operations, a multiply-add as 2, in this thread.

    It has no formula for some fused attention kernels, as that of CPUs: none is used meanwhile.
    """
    with (
        sdpa_kernel(SDPBackend.MATH),
        FlopCounterMode(display=False, custom_mapping=_FORMULAS) as counter,
    ):
        yield counter


def _matrix_times_vector(matrix: torch.Size, vector: torch.Size, *_: Any, **__: Any) -> int:
    """The counter knows products of matrices only."""
    rows, columns = matrix
    return 2 * rows * columns


_FORMULAS = {torch.ops.aten.mv: _matrix_times_vector}

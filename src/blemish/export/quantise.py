"""Quantised graphs (NNCF)."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from blemish.engines.base import Input
from blemish.engines.record import Kind
from blemish.errors import ExportError


def quantise(
    model: bytes, batches: Callable[[], Iterable[Input]], *, kind: Kind
) -> bytes | tuple[bytes, bytes]:
    raise ExportError("int8 is being built")

"""The names that earlier versions of blemish have written, and what they are called today.

A name that changes is added here, and nowhere else; what reads a file of an earlier version asks here.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

FORMAT = 1  # of artifacts, in which all has the names of before
METHODS = {"atacnet": "lda", "atacnet-paper": "atacnet"}


def manifest_of_today(values: Mapping[str, Any]) -> Mapping[str, Any]:
    """The manifest of an artifact, under today's names; nothing in it is taken on trust yet."""
    if values.get("format") != FORMAT:
        return values
    method = values.get("method")
    return {**values, "method": METHODS.get(str(method), method)}

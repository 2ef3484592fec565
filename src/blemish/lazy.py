"""Packages that hand out names of their modules on first use, so that importing one costs nothing
and needs no library that the name asked for does not need."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from typing import Any

from blemish.extras import missing


def handing_out(package: str, homes: Mapping[str, str]) -> tuple[Callable[[str], Any], Any]:
    """The `__getattr__` and the `__dir__` of a package.

    Args: homes: of each name the module that has it, and after a colon what it is called there, if
        it is called otherwise.
    """

    def get(name: str) -> Any:
        if name not in homes:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        module, _, own = homes[name].partition(":")
        try:
            return getattr(importlib.import_module(module), own or name)
        except ModuleNotFoundError as error:
            if (told := missing(error, f"use {package}.{name}")) is None:
                raise
            raise told from error

    return get, lambda: sorted(homes)

"""The detection methods, by name."""

from __future__ import annotations

from typing import TYPE_CHECKING

from blemish.lazy import handing_out

if TYPE_CHECKING:
    from blemish.methods.base import Method, MethodConfig
    from blemish.methods.named import METHODS, adapter_of, at_scales, method_class

__all__ = ["METHODS", "Method", "MethodConfig", "adapter_of", "at_scales", "method_class"]

if not TYPE_CHECKING:
    _HOMES = {
        "Method": "blemish.methods.base",
        "MethodConfig": "blemish.methods.base",
        "METHODS": "blemish.methods.named",
        "adapter_of": "blemish.methods.named",
        "at_scales": "blemish.methods.named",
        "method_class": "blemish.methods.named",
    }
    __getattr__, __dir__ = handing_out(__name__, _HOMES)

"""The detection methods by name, and what some of them can do."""

from __future__ import annotations

from collections.abc import Sequence

from blemish.errors import ConfigError, unknown_name
from blemish.methods.adaptation import Adapter
from blemish.methods.ahl import Ahl
from blemish.methods.atacnet import AtacNet
from blemish.methods.base import Method
from blemish.methods.capabilities import Adapts, LooksAtScales
from blemish.methods.dra import Dra
from blemish.methods.lda import Lda
from blemish.methods.unsupervised import UNSUPERVISED
from blemish.types import Mode

METHODS: dict[str, type[Method]] = {
    **UNSUPERVISED,
    "lda": Lda,
    "atacnet": AtacNet,
    "dra": Dra,
    "ahl": Ahl,
}


def method_class(name: str) -> type[Method]:
    """The class of a method. Raises: ConfigError that suggests the nearest name."""
    if name not in METHODS:
        raise unknown_name("method", name, METHODS)
    return METHODS[name]


def adapter_of(method: Method, mode: Mode) -> Adapter:
    """What scores batches with a method while adapting to them. Raises: ConfigError where it
    cannot.
    """
    if isinstance(method, Adapts):
        return method.adapter(mode)
    raise unable(method, Adapts, "adapt to the pictures that it scores")


def at_scales(method: Method, scales: Sequence[int]) -> Method:
    """The same weights, looking at squares of these sides (pixels). Raises: ConfigError where it
    cannot.
    """
    if isinstance(method, LooksAtScales):
        return method.with_scales(scales)
    raise unable(method, LooksAtScales, "look at pictures in several sizes")


def unable(method: Method, capability: type, what: str) -> ConfigError:
    """The error that a method cannot do something, with those that can."""
    able = [name for name, kind in METHODS.items() if issubclass(kind, capability)]
    return ConfigError(f"{method.name} cannot {what}; {' and '.join(able)} can")

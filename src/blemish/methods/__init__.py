"""The detection methods, by name."""

from __future__ import annotations

from blemish.errors import unknown_name
from blemish.methods.agpnet import AGPNet
from blemish.methods.atacnet import AtacNet
from blemish.methods.base import Method, MethodConfig
from blemish.methods.guided import Guided
from blemish.methods.lda import Lda
from blemish.methods.memory import Knn, PatchCore
from blemish.methods.padim import Padim

__all__ = [
    "METHODS",
    "Method",
    "MethodConfig",
    "method_class",
]

METHODS: dict[str, type[Method]] = {
    "agpnet": AGPNet,
    "guided": Guided,
    "lda": Lda,
    "atacnet": AtacNet,
    "patchcore": PatchCore,
    "knn": Knn,
    "padim": Padim,
}


def method_class(name: str) -> type[Method]:
    """The class of a method. Raises: ConfigError that suggests the nearest name."""
    if name not in METHODS:
        raise unknown_name("method", name, METHODS)
    return METHODS[name]

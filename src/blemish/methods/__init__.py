"""The detection methods, by name."""

from __future__ import annotations

from blemish.errors import ConfigError, unknown_name
from blemish.methods.agpnet import AGPNet
from blemish.methods.atacnet import AtacNet
from blemish.methods.base import Method, MethodConfig
from blemish.methods.guided import Guided
from blemish.methods.memory import Knn, PatchCore
from blemish.methods.padim import Padim
from blemish.methods.taught import Taught

__all__ = [
    "METHODS",
    "Method",
    "MethodConfig",
    "method_class",
    "method_of_config",
    "method_of_recipe",
]

METHODS: dict[str, type[Method]] = {
    "agpnet": AGPNet,
    "guided": Guided,
    "atacnet": Taught,
    "atacnet-paper": AtacNet,
    "patchcore": PatchCore,
    "knn": Knn,
    "padim": Padim,
}


def method_class(name: str) -> type[Method]:
    """The class of a method. Raises: ConfigError that suggests the nearest name."""
    if name not in METHODS:
        raise unknown_name("method", name, METHODS)
    return METHODS[name]


def method_of_recipe(name: str, recipe: str) -> type[Method]:
    """The class that a recipe of a method configures: of `atacnet` the published ones are `atacnet-paper`'s.

    Raises: ConfigError as `method_class`.
    """
    kind = method_class(name)
    return METHODS[kind.published] if kind.published and recipe.startswith("paper") else kind


def method_of_config(name: str, config: MethodConfig) -> type[Method]:
    """The class of a method that takes this config. Raises: ConfigError where none does, or as `method_class`."""
    kind = method_class(name)
    for one in (kind, METHODS.get(kind.published, kind)):
        if isinstance(config, one.Config):
            return one
    raise ConfigError(f"{name} takes a {kind.Config.__name__}, got a {type(config).__name__}")

"""The objectives of pre-training by name."""

from __future__ import annotations

from blemish.errors import ConfigError, unknown_name
from blemish.methods.apmask import APMask
from blemish.methods.dino import DINO
from blemish.methods.ibot import IBOT
from blemish.methods.msn import MSN
from blemish.methods.selfsupervised import SelfSupervised, SelfSupervisedConfig
from blemish.methods.swav import SwAV

OBJECTIVES: dict[str, type[SelfSupervised]] = {
    kind.name: kind for kind in (APMask, DINO, IBOT, MSN, SwAV)
}


def objective_class(name: str) -> type[SelfSupervised]:
    """The learner of an objective. Raises: ConfigError that suggests the nearest name."""
    if name not in OBJECTIVES:
        raise unknown_name("objective", name, OBJECTIVES)
    return OBJECTIVES[name]


def objective_of(config: SelfSupervisedConfig) -> type[SelfSupervised]:
    """The learner that has such settings. Raises: ConfigError where none has."""
    for kind in OBJECTIVES.values():
        if type(config) is kind.Config:
            return kind
    raise ConfigError(f"{type(config).__name__} is not the config of an objective of pre-training")

"""A detection method that learns by gradient."""

from __future__ import annotations

from dataclasses import dataclass

from blemish.methods.base import Method, MethodConfig
from blemish.methods.learner import Learner, Schedule


@dataclass(frozen=True, kw_only=True)
class TrainedConfig(MethodConfig, Schedule):
    """Settings that every trained method has."""

    @property
    def learns_by_gradient(self) -> bool:
        return True


class TrainedMethod(Method, Learner):
    """A detection method that `blemish.training.train` trains."""

    config: TrainedConfig

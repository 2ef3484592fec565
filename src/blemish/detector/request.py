"""What `fit` is asked for: the config of a method, and all options, checked before any work."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from blemish import config as configs
from blemish.detector.calibrate import DEFAULT_RATE
from blemish.detector.pretrain import check_window
from blemish.detector.thresholds import pictures_needed
from blemish.errors import ConfigError, unknown_name
from blemish.methods import Method, MethodConfig, method_class
from blemish.types import Progress

FEW_SHOT_ROTATIONS = 16  # each of them also mirrored: 32 copies of every shot


def configure(
    method: str,
    *,
    recipe: str = "best",
    values: Mapping[str, Any] | None = None,
    assignments: Iterable[str] = (),
    shots: int | None = None,
) -> MethodConfig:
    """The config of a method: a recipe, then `values` (None entries are skipped), then key=value
    `assignments`.

    With `shots` the recipe is the one for few pictures: each learned at 16 angles, plain and
    mirrored.

    Raises: ConfigError for an unknown method, recipe or key (the nearest name is suggested) or a
    bad value.
    """
    kind = method_class(method)
    recipes = kind.Config.recipes()
    if recipe not in recipes:
        raise unknown_name(f"recipe of {method}", recipe, recipes)
    base = recipes[recipe]()
    if shots is not None:
        base = dataclasses.replace(base, rotations=FEW_SHOT_ROTATIONS, flips=True)
    given = {key: value for key, value in (values or {}).items() if value is not None}
    return configs.override(configs.from_dict(kind.Config, given, base=base), assignments)


@dataclass(frozen=True, kw_only=True)
class Request:
    """What was asked for: the arguments of `fit`, checked; `seed` is the one that counts.

    Raises: ConfigError for what can be seen to be wrong before any work.
    """

    kind: type[Method]
    config: MethodConfig
    recipe: str | None
    good: Any
    anomalies: Any
    anomaly_count: int | None
    anomaly_type: str | None
    weights: str | Path | None
    seed: int
    shots: int | None
    false_alarm_rate: float | None
    calibration_fraction: float | None
    window: tuple[float, float] | None
    device: str
    precision: str
    batch_size: int
    time_budget: float | None
    checkpoint: str | Path | None
    resume: bool
    log: str | Path | None
    progress: Progress

    def __post_init__(self) -> None:
        fraction, name = self.calibration_fraction, self.kind.name
        if fraction is not None and not 0 <= fraction < 1:
            raise ConfigError(
                f"calibration_fraction: a fraction in [0, 1) is needed, got {fraction}"
            )
        if fraction == 0 and self.false_alarm_rate is not None:
            raise ConfigError(
                "a false-alarm rate needs calibration pictures, and calibration_fraction is 0"
            )
        pictures_needed(self.rate)  # refuses a rate outside (0, 1)
        check_window(self.window)
        given = {
            "time_budget": self.time_budget is not None,
            "checkpoint": self.checkpoint is not None,
            "resume": self.resume,
        }
        if not self.config.learns_by_gradient and any(given.values()):
            names = " and ".join(option for option, is_given in given.items() if is_given)
            raise ConfigError(f"{names}: {name} is not trained step by step; leave it out")
        if self.time_budget is not None and not 0 < self.time_budget < math.inf:
            raise ConfigError(
                f"time_budget: a positive number of minutes is needed, got {self.time_budget}"
            )
        if self.resume and self.checkpoint is None:
            raise ConfigError("resume: name the checkpoint to go on from")
        which = (self.anomaly_count, self.anomaly_type)
        if not self.kind.takes_defects and any(
            option is not None for option in (self.anomalies, *which)
        ):
            raise ConfigError(
                f"{name} does not learn from labelled defects; lda does, with any method to "
                f"know what is normal (--set normality={name})"
            )
        if self.anomalies is None and any(which):
            raise ConfigError(
                "anomaly_count and anomaly_type say which of the anomalies to learn from; name "
                "those too"
            )

    @property
    def rate(self) -> float:
        """The false-alarm rate."""
        return DEFAULT_RATE if self.false_alarm_rate is None else self.false_alarm_rate


def checkpoints(path: str | Path) -> tuple[Path, Path]:
    """Where `fit` keeps a training whose `checkpoint` is `path`, and the pre-training before it.

    Example:
        >>> [place.name for place in checkpoints("part.blemish.training")]
        ['part.blemish.training', 'part.blemish.training.pretraining']
    """
    return Path(path), Path(f"{path}.pretraining")

"""Settings of `lda`."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Self

from blemish import config as configs
from blemish.config import NEW, Factor, FractionAbove0, Layers
from blemish.errors import ConfigError
from blemish.methods.base import EncoderConfig, Method, MethodConfig
from blemish.methods.unsupervised import UNSUPERVISED


@dataclass(frozen=True, kw_only=True)
class LdaConfig(MethodConfig):
    """Settings; those that every method has are the normality detector's too.

    Attributes:
        normality: the method that knows what is normal: any but those that take labelled defects
            themselves. One that trains its encoder (`guided` with `trainable_blocks`) may leave
            features that tell the kinds of defect less well.
        normality_settings: of that method, as "bank_size=8000", in place of its recipe `best`. An
            artifact that does not name `neighbours` and `centre` of a memory bank has 1 and 0.
        descriptor_layers: layers of the backbone whose features describe a picture; empty = the one
            two thirds of the way.
        sharpness: of the attention: 0 = all patches count the same, however often it is looked.
        shrinkage: how far the covariance of the good pictures is drawn towards a sphere, in (0, 1].
        weight: of what one labelled defect teaches, in deviations of the normality's score.
        second, second_layers: as of a memory bank, which the normality detector then has to be; the
            second encoder also describes pictures.
        second_descriptor_layers: as `descriptor_layers`, of the second encoder.
    """

    normality: str = "patchcore"
    normality_settings: tuple[str, ...] = ()
    descriptor_layers: Layers = ()
    sharpness: Factor = 1.0
    shrinkage: FractionAbove0 = 0.9
    weight: Factor = 0.6
    second: str = field(default="", metadata={NEW: True})
    second_layers: Layers = field(default=(), metadata={NEW: True})
    second_descriptor_layers: Layers = field(default=(), metadata={NEW: True})

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("second_layers", "second_descriptor_layers"):
            if getattr(self, name) and not self.second:
                raise ConfigError(f"{name}: is that of a second encoder; name second, too")

    @property
    def normality_class(self) -> type[Method]:
        """Raises: ConfigError for an unknown method, or one that takes labelled defects itself."""
        if self.normality not in UNSUPERVISED:
            raise ConfigError(
                f"normality: {self.normality!r} is no method that learns from good pictures alone; "
                f"one that does is needed: {', '.join(sorted(UNSUPERVISED))}"
            )
        return UNSUPERVISED[self.normality]

    @property
    def normality_config(self) -> MethodConfig:
        """Raises: ConfigError as `normality_class`, or for a wrong setting."""
        best = self.normality_class.Config.within_lda()
        names = [each.name for each in fields(MethodConfig)]
        if self.second:
            if not hasattr(best, "second"):
                raise ConfigError(
                    f"second: {self.normality} sees with one encoder alone; choose a memory bank "
                    "to know what is normal (normality=patchcore or knn), or leave second out"
                )
            names += ["second", "second_layers"]
        shared = {name: getattr(self, name) for name in names}
        for assignment in self.normality_settings:
            key = assignment.partition("=")[0].strip()
            if key in shared or key in ("second", "second_layers"):
                raise ConfigError(f"normality_settings: {key} is the detector's own; set it there")
        base = configs.from_dict(type(best), shared, base=best)
        return configs.override(base, self.normality_settings, within="normality_settings")

    def for_pictures(self, *, x_rays: bool) -> Self:
        """The normality part's settings as its recipe `best` has them, and as the pictures change
        them; those that are named stay."""
        kind = self.normality_class.Config
        named = configs.assigned(self.normality_settings)
        best = _differing(kind.within_lda(), kind.best())
        own = self._naming({key: value for key, value in best.items() if key not in named})
        plain = own.normality_config
        return own._naming(_differing(plain, plain.for_pictures(x_rays=x_rays)))

    def _naming(self, more: Mapping[str, object]) -> Self:
        """These settings, and more of the normality part."""
        told = [f"{key}={json.dumps(value)}" for key, value in more.items()]
        return replace(self, normality_settings=(*self.normality_settings, *told))

    @property
    def pretraining_config(self) -> EncoderConfig | None:
        return self.normality_config.pretraining_config

    @property
    def no_student(self) -> str:
        return self.normality_config.no_student

    @property
    def needs_squares(self) -> bool:
        return self.normality_config.needs_squares

    @property
    def learns_by_gradient(self) -> bool:
        return self.normality_config.learns_by_gradient


def _differing(before: MethodConfig, after: MethodConfig) -> dict[str, object]:
    """The settings of `after` that `before` has otherwise."""
    old = configs.to_dict(before, whole=True)
    now = configs.to_dict(after, whole=True)
    return {key: value for key, value in now.items() if value != old[key]}

"""What is compared: methods, sizes and settings."""

from __future__ import annotations

import dataclasses
import hashlib
import importlib.util
import json
import shlex
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import product
from typing import Any

from blemish import config as configs
from blemish.backbones import SPECS
from blemish.bench.results.rows import words
from blemish.detector.fit import configure
from blemish.errors import ConfigError
from blemish.methods import METHODS, MethodConfig, method_class

RESOLUTIONS = (224, 448)


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """One thing to choose.

    Attributes:
        method: a name of `blemish.METHODS`.
        settings: what differs from its recipe `best`, `backbone` and `image_size` among it.
        varied: those of the settings by which candidates of one method differ, beside the size.
        seed: of everything random in the fit.
    """

    method: str
    settings: Mapping[str, Any]
    varied: tuple[str, ...] = ()
    seed: int = 0

    @cached_property
    def config(self) -> MethodConfig:
        """The whole config. Raises: ConfigError."""
        chosen = configure(self.method, values=self.settings)
        return dataclasses.replace(chosen, seed=self.seed)

    @property
    def learns_by_gradient(self) -> bool:
        """Whether it is trained step by step, and takes as many minutes as it gets."""
        return self.config.learns_by_gradient

    @property
    def label(self) -> str:
        """How people read it: "patchcore 448", with what is varied."""
        varied = words({key: self.settings[key] for key in self.varied})
        return " ".join(filter(None, [self.method, self.size, varied and f"({varied})"]))

    @property
    def size(self) -> str:
        """Of the input: "448", or height and width."""
        height, width = self.config.height_width
        return str(height) if height == width else f"{height}x{width}"

    @property
    def identity(self) -> str:
        """What a row is known by, beside the pictures: all settings."""
        whole = [self.method, configs.to_dict(self.config)]
        return hashlib.sha256(json.dumps(whole, sort_keys=True).encode()).hexdigest()[:16]

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        return dataclasses.asdict(self)

    def command(self, good: Sequence[str], options: Sequence[str] = ()) -> str:
        """The `blemish fit` that learns it from all good pictures, for a shell.

        Args: options: what was asked for beside the candidates.

        Example:
            >>> one = Candidate(method="knn", settings={"image_size": [224], "layers": [4, 8]})
            >>> one.command(["good parts"])
            "blemish fit knn 'good parts' -o part.blemish --image-size 224 --set layers=4,8"
        """
        parts = ["blemish", "fit", self.method, *good, "-o", "part.blemish"]
        named = {"backbone": "--backbone", "image_size": "--image-size"}
        if "backbone" in self.settings:
            parts += ["--backbone", self.settings["backbone"]]
        parts += ["--image-size", self.size]
        for key, value in self.settings.items():
            parts += [] if key in named else ["--set", f"{key}={_text(value, ',')}"]
        parts += ["--seed", str(self.seed)] if self.seed else []
        return shlex.join([*parts, *options])


def _text(value: Any, between: str) -> str:
    """A value as the command line takes it."""
    if isinstance(value, (list, tuple)) and value and not isinstance(value[0], (list, tuple, dict)):
        return between.join(map(str, value))
    return value if isinstance(value, str) else json.dumps(value)


def usual_methods() -> list[str]:
    """Those that learn in passes over the good pictures, without gradient: minutes are enough."""
    return [
        name
        for name, kind in METHODS.items()
        if not kind.takes_defects and not kind.Config.best().learns_by_gradient
    ]


def usual_backbone() -> str:
    """The first that an installed package carries, so that no model hub is needed; else the
    default of the methods."""
    for spec in SPECS.values():
        if spec.source != "hub" and importlib.util.find_spec(spec.source.replace("-", "_")):
            return spec.name
    return MethodConfig().backbone


def candidates(
    methods: Iterable[str],
    sizes: Iterable[Sequence[int]],
    *,
    backbone: str,
    settings: Mapping[str, Any] | None = None,
    varied: Sequence[tuple[str, Any]] = (),
    seed: int = 0,
) -> list[Candidate]:
    """Every method at every size with every combination of what is varied, the quick ones first:
    untrained before trained, small before large.

    Args:
        sizes: height and width, or one number for both, of the input.
        settings: of all of them. varied: pairs of a setting and a value of it.
    Raises: ConfigError for an unknown name, a bad value, or a method that learns from defects.
    """
    values: dict[str, list[Any]] = {}
    for key, value in varied:
        values.setdefault(key, []).append(value)
    found: dict[str, Candidate] = {}
    for method in methods:
        if method_class(method).takes_defects:
            raise ConfigError(
                f"{method} learns from labelled defects, which only judge here: compare methods "
                "that learn from good pictures, then teach the chosen one (blemish fit lda … --set "
                "normality=METHOD --anomalies DEFECTS)"
            )
        for size, combination in product(sizes, product(*values.values())):
            own = dict(zip(values, combination, strict=True))
            one = Candidate(
                method=method,
                settings={"backbone": backbone, "image_size": list(size)} | dict(settings or {})
                | own,
                varied=tuple(values),
                seed=seed,
            )  # fmt: skip
            found.setdefault(one.identity, one)

    def cost(one: Candidate) -> tuple[bool, int]:
        height, width = one.config.height_width
        return one.learns_by_gradient, height * width

    return sorted(found.values(), key=cost)

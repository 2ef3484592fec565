"""Who does the work of a command, this process or a cluster: the options, and what they ask for."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from typer import Option

from blemish.cli.options import in_range
from blemish.config import Range
from blemish.errors import ConfigError, unknown_name

if TYPE_CHECKING:
    from blemish.detector.predict import Detector
    from blemish.scale.hands import OnRay
    from blemish.types import Evaluation

MOST_WORKERS, MOST_GPUS = 10_000, 64  # of a cluster, and of one machine
_ENGINES = ("here", "parts", "ray")

FitEngine = Annotated[
    str,
    Option(
        metavar="here|parts|ray",
        help="parts: learn the pictures in parts that are merged (patchcore, knn, padim); --resume "
        "goes on from those that are done. ray: the same, by workers of a Ray cluster.",
    ),
]
EvaluateEngine = Annotated[
    str,
    Option(
        metavar="NAME",
        help="What computes: torch for an artifact; onnxruntime or openvino for an exported file. "
        "auto = what the file is made for. ray: that, by workers of a Ray cluster.",
    ),
]
Address = Annotated[
    str | None,
    Option(
        metavar="HOST:PORT",
        help="The head of a Ray cluster, or auto on one of its nodes, for --engine ray. [default: "
        "a Ray of this machine alone, for this command]",
    ),
]
NumWorkers = Annotated[
    int | None,
    Option(
        min=1,
        max=MOST_WORKERS,
        metavar="N",
        help="Workers at once, for --engine ray. [default: as many as there is room for; half of "
        "the cores where they score, or as the GPUs allow]",
    ),
]
GpusPerWorker = Annotated[
    float | None,
    Option(
        metavar="G",
        callback=in_range(Range(0, MOST_GPUS)),
        help="GPUs of each worker; 0.5 where two share one. [default: 0]",
    ),
]
PartPictures = Annotated[
    int | None,
    Option(
        min=1,
        metavar="N",
        help="Pictures of a part. [default: 64, or more where there would be over 256 parts]",
    ),
]


@dataclass(frozen=True)
class Asked:
    """What the options ask for. Raises: ConfigError for what does not go together."""

    engine: str
    address: str | None
    num_workers: int | None
    gpus_per_worker: float | None
    part_pictures: int | None

    def __post_init__(self) -> None:
        if self.engine not in _ENGINES:
            raise unknown_name("engine of fit", self.engine, _ENGINES)
        of_ray = {
            "--address": self.address,
            "--num-workers": self.num_workers,
            "--gpus-per-worker": self.gpus_per_worker,
        }
        for option, value in of_ray.items():
            if value is not None and self.engine != "ray":
                raise ConfigError(f"{option}: is for workers of a cluster; add --engine ray")
        if self.part_pictures is not None and not self.in_parts:
            raise ConfigError("--part-pictures: is of parts; add --engine parts, or --engine ray")

    @property
    def in_parts(self) -> bool:
        return self.engine != "here"

    def fit(self, request: Mapping[str, Any], keep: Path) -> Callable[..., Detector]:
        """A fit in parts, that is still to be called. Raises: ConfigError where there is none."""
        from blemish.scale import learning

        learning.check(request["method"], request)
        request = {**request, "keep": keep, "part_pictures": self.part_pictures}

        def fit(**more: Any) -> Detector:
            if self.engine == "parts":
                return learning.fit(**request, **more)
            with self._on_ray() as hands:
                return learning.fit(**request, hands=hands, **more)

        return fit

    def evaluate(self, artifact: Path, data: Path, **how: Any) -> Evaluation:
        """An evaluation by workers of Ray; `how`: as of `scale.evaluating.evaluate`."""
        from blemish.scale import evaluating

        with self._on_ray() as hands:
            return evaluating.evaluate(artifact, data, hands=hands, **how)

    def refuse(self, **options: object) -> None:
        """Raises: ConfigError for an option that was given and is for one process alone."""
        for name, value in options.items():
            if value is not None:
                raise ConfigError(
                    f"--{name.replace('_', '-')}: is of one process; leave it out, or --engine ray"
                )

    def _on_ray(self) -> AbstractContextManager[OnRay]:
        from blemish.scale.hands import on_ray

        gpus = self.gpus_per_worker or 0.0
        return on_ray(self.address, num_workers=self.num_workers, gpus_per_worker=gpus)

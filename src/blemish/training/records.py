"""What files say of a training: how it went, and how far an interrupted one has come."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any

from blemish import config
from blemish.config import Count, Finite, Length, NotNegative, Range
from blemish.errors import ArtifactError, BlemishError, ConfigError

CHECKPOINT = "checkpoint"  # the name of a checkpoint's header in the manifest of its file
CURVE = 20  # points of the curve that is kept of the loss, or one a step where there are fewer
Steps = Annotated[int, Range(1, 2**31)]


@dataclass(frozen=True, kw_only=True)
class Training:
    """How a training went, as a manifest keeps it.

    Attributes:
        steps: optimiser steps, over all runs of a resumed training.
        epochs: passes over the pictures that they make: over the normal ones, where defects fill
            half of every batch.
        seconds: from the call to the end, over all runs.
        pictures_per_second: in the steps of this run, over all processes; 0 where there was none
            left to take.
        loss: the last one, smoothed: the mean of the first 50, then each new one counts 2 %. In
            several processes that of each one's own pictures.
        curve: how the loss fell: pairs of a step's number and the mean loss of the steps since the
            pair before, at most `CURVE` of them. In several processes that of rank 0's own
            pictures.
        cached: whether what the frozen part gives was kept in memory.
        processes: how many have trained together.
        resumed_at: how many steps had been made when this run began; 0 = it began from the start.
        findings: what the method found to say of it, by name; see `Learner.findings`.
        other: what other versions of blemish have added, as it is.
    """

    steps: Steps
    epochs: NotNegative
    seconds: NotNegative
    pictures_per_second: NotNegative
    loss: Finite
    cached: bool
    processes: Steps
    resumed_at: Count
    curve: tuple[Annotated[tuple[Finite, ...], Length(2, 2)], ...] = ()
    findings: Mapping[str, Finite] = field(default_factory=dict)
    other: Mapping[str, Any] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        return config.to_dict(self)


@dataclass(frozen=True, kw_only=True)
class CheckpointManifest:
    """What the header of a checkpoint says.

    Attributes:
        step, steps: steps made, and of how many.
        loss: smoothed. seconds: so far, over all its runs.
        curve: what is kept of the loss so far, part by part; nothing in files of earlier versions.
        identity: what it is the training of, JSON-ready.
        pictures: fingerprint of the training pictures.
        scalars: of the state of the optimiser what is no tensor, by name; `save` puts it in.
        other: what other versions of blemish have added, as it is.
    """

    step: Count
    steps: Steps
    loss: Finite
    seconds: NotNegative
    identity: Mapping[str, Any]
    pictures: str
    scalars: Mapping[str, bool | int | float | None]
    curve: tuple[Annotated[tuple[float, ...], Length(2)], ...] = ()
    other: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.step > self.steps:
            raise ConfigError(
                f"step: at most {self.steps}, the number of all steps, got {self.step}"
            )
        if not isinstance(self.identity.get("config", {}), Mapping):
            raise ConfigError("identity.config: is no object of named values")

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        return config.to_dict(self)


def read_checkpoint_manifest(path: object, values: Mapping[str, Any]) -> CheckpointManifest:
    """What a checkpoint says of itself. Raises: ArtifactError that names the file and the field."""
    try:
        return config.from_dict(
            CheckpointManifest, values[CHECKPOINT], within=CHECKPOINT, strict=True
        )
    except BlemishError as error:
        raise ArtifactError(
            f"{path}: the manifest does not describe a training ({error})"
        ) from error

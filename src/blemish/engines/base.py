"""The one surface of all engines: prepared pictures in, what a method finds out, in numpy."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from blemish.errors import ConfigError
from blemish.types import Mode

Floats = NDArray[np.float32]
Input = NDArray[np.float32 | np.uint8]
Name = Literal["torch", "onnxruntime", "openvino"]
Precision = Literal["fp32", "bf16", "fp16", "int8"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Outputs:
    """What is said of a batch of B pictures, all float32.

    Attributes:
        score: B, raw, unbounded, higher = more anomalous.
        map: B h w in the same unit, over the input.
        votes: B, as `types.Scores.votes`. saliency: B h w in [0, 1]. box: B 4, as
            `types.Scores.boxes`. None for methods without.
        part: B gh gw on the backbone's grid, how much of the part is seen there: what a
            foreground's cut is compared with; None where none is in use.
        category: B D, rows of length 1: what tells categories apart; None where nobody asked.
        descriptor: B D, where each picture lies among others, as `methods.descriptor` has it; None
            of graphs that were exported before there was one, and while a method adapts.
        foreground: bool B h w: the places of the map that count, all of them where a picture is
            looked at whole; None where every one is. A detector adds it.
        adapted: whether test-time adaptation took part; note: why not, where it was asked for.
    """

    score: Floats
    map: Floats
    votes: Floats | None = None
    saliency: Floats | None = None
    box: Floats | None = None
    part: Floats | None = None
    category: Floats | None = None
    descriptor: Floats | None = None
    foreground: NDArray[np.bool_] | None = None
    adapted: bool = False
    note: str = ""


class Engine(ABC):
    """Runs a fitted method.

    Attributes:
        name: "torch", "onnxruntime" or "openvino".
        device: where it computes, as a person would say it ("cpu", "cuda:0").
        precision: what it computes in: "fp32", "bf16", "fp16" or "int8".
        input: "normalised": float32 B 3 H W; "pixels": uint8 B H W 3 RGB of the working size.
        top_fraction: the score is the mean of this fraction of the map's highest values, and no
            more, where it `scores_by_map`.
        offset: of the grid of `Outputs.part`, as of `Backbone.offset`.
        notes: what a person should know of how it computes here, as whole sentences.
    """

    name: Name
    device: str
    precision: Precision
    input: Literal["normalised", "pixels"] = "normalised"
    top_fraction: float
    scores_by_map: bool
    offset: float = 0.0
    notes: tuple[str, ...] = ()

    @abstractmethod
    def run(self, images: Input, *, category: bool = False) -> Outputs:
        """What the method says of a batch.

        Args:
            images: as `input` says, of the size that the detector's preprocessing has.
            category: whether `Outputs.category` is needed.
        Raises: EngineError where the engine fails; MemoryError, or an error that
            `images.ran_out` knows, where memory runs out.
        """

    def adapting(self, mode: Mode) -> Engine:
        """The same, adapting to the pictures that it scores. Raises: ConfigError where it cannot.

        Args: mode: as of `blemish.methods.adaptation`.
        """
        raise ConfigError(
            "adapt: an exported graph cannot adapt; this needs PyTorch and the artifact that it "
            "was exported from"
        )

    def check_name(self, path: str | Path) -> None:  # noqa: B027 — any name, unless it says so
        """Known before any work: whether `save` writes a file of this name.

        Raises: OutputError for one by which the file would be taken for another kind.
        """

    @abstractmethod
    def save(self, path: str | Path, manifest: Mapping[str, Any]) -> Path:
        """Write what it runs to a file, with a manifest, whole or not at all.

        Raises: OutputError.
        """

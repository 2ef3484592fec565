"""The one surface of all engines: prepared pictures in, what a method finds out, in numpy."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]
Name = Literal["torch", "onnxruntime", "openvino"]


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
    """

    score: Floats
    map: Floats
    votes: Floats | None = None
    saliency: Floats | None = None
    box: Floats | None = None
    part: Floats | None = None
    category: Floats | None = None


class Engine(ABC):
    """Runs a fitted method.

    Attributes:
        name: "torch", "onnxruntime" or "openvino".
        device: where it computes, as a person would say it ("cpu", "cuda:0").
        precision: what it computes in: "fp32", "bf16", "fp16" or "int8".
        input: "normalised": float32 B 3 H W; "pixels": uint8 B H W 3 RGB of the working size.
        notes: what a person should know of how it computes here, as whole sentences.
    """

    name: Name
    device: str
    precision: str
    input: Literal["normalised", "pixels"] = "normalised"
    notes: tuple[str, ...] = ()

    @abstractmethod
    def run(self, images: NDArray[np.float32 | np.uint8], *, category: bool = False) -> Outputs:
        """What the method says of a batch.

        Args:
            images: as `input` says, of the size that the detector's preprocessing has.
            category: whether `Outputs.category` is needed.
        Raises: EngineError where the engine fails; MemoryError, or an error that
            `images.ran_out` knows, where memory runs out.
        """

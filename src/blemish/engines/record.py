"""What an exported file says of its graph, as one typed value: the key `export` of its manifest."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

from blemish import config
from blemish.config import Finite, Fraction, Length, Matching, Range, Side
from blemish.engines.base import Precision
from blemish.errors import ArtifactError, BlemishError, ConfigError

FORMAT = 1  # raised when an older blemish could misread the file
EXPORT = "export"  # the key of the manifest
OUTPUTS = ("score", "map", "votes", "saliency", "box", "part", "category", "descriptor")
NEEDED = ("score", "map")  # of every graph

Kind = Literal["onnx", "openvino"]
Fingerprint = Annotated[str, Matching("[0-9a-f]{64}", "a SHA-256 in hexadecimal")]
Opset = Annotated[int, Range(1, 1000)]


@dataclass(frozen=True, kw_only=True)
class Exported:
    """The graph in an exported file.

    Attributes:
        format: of the file; `FORMAT` at most. kind: "onnx" or "openvino".
        precision: what it was proven in, and is computed in.
        input: "normalised": `images`, float32 B 3 H W, as `data.transforms.prepare` gives them;
            "pixels": `pixels`, uint8 B H W 3 RGB of the working size.
        opset: of the ONNX operators that it is made of, or was converted from.
        outputs: their names, of the fields of `engines.base.Outputs`; `score` and `map` always.
        map_size: height and width of `map`, in its values.
        top_fraction: share of the highest values of a map whose mean is its score.
        scores_by_map: whether the score is that mean at all.
        offset: how far right of and below the middle of their cells the values of the grid `part`
            lie, in cells.
        proof: what the comparison with the detector found.
        source: SHA-256 of the artifact. versions: of what exported it.
    """

    format: Annotated[int, Range(1, FORMAT)] = FORMAT
    kind: Kind
    precision: Precision
    input: Literal["normalised", "pixels"] = "normalised"
    opset: Opset
    outputs: Annotated[tuple[str, ...], Length(len(NEEDED), distinct=True)]
    map_size: Annotated[tuple[Side, ...], Length(2, 2)]
    top_fraction: Fraction
    scores_by_map: bool
    offset: Finite = 0.0
    proof: Mapping[str, Any] = field(default_factory=dict)
    source: Fingerprint
    versions: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        config.check(self)
        if strange := next((name for name in self.outputs if name not in OUTPUTS), ""):
            known = ", ".join(OUTPUTS)
            raise ConfigError(f"outputs: {config.short(strange)} is not one of {known}")
        if missing := next((name for name in NEEDED if name not in self.outputs), ""):
            raise ConfigError(f"outputs: {missing!r} is missing, which every graph has")
        if self.precision == "bf16" and self.kind == "onnx":
            raise ConfigError("precision: bf16 is for files of kind openvino")

    @property
    def input_name(self) -> str:
        """The name of the graph's one input."""
        return "images" if self.input == "normalised" else "pixels"

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        return config.to_dict(self)


def read_record(path: object, manifest: Mapping[str, Any]) -> Exported:
    """The record in a manifest, checked.

    Raises: ArtifactError that names the file and the field.
    """
    try:
        if EXPORT not in manifest:
            raise ConfigError(f"{EXPORT}: is missing")
        return config.from_dict(Exported, manifest[EXPORT], within=EXPORT, strict=True)
    except BlemishError as error:
        raise ArtifactError(
            f"{path}: the manifest does not describe an exported graph ({error}); export it again"
        ) from error

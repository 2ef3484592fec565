"""What an artifact, a pre-trained encoder and a checkpoint say of themselves, each as one typed
value.

The header of their file holds it as JSON, which anybody may have written: `read_…` takes nothing on
trust, and says of what does not hold which field it is. `blemish fit`, `calibrate` and `refine`
build the same values.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields
from typing import Annotated, Any

from blemish import config
from blemish.backbones.spec import BackboneSpec, WeightsInfo
from blemish.config import Count, Length, Matching, NotNegative, Range, Seed
from blemish.data.transforms import Preprocessing
from blemish.detector.categories import CategoryFeatures
from blemish.detector.thresholds import PartThresholds, RegionThresholds, Threshold
from blemish.engines.base import Precision
from blemish.engines.record import Exported
from blemish.errors import ArtifactError, BlemishError, ConfigError
from blemish.methods.compression import Compression
from blemish.methods.earlier import manifest_of_today
from blemish.methods.foreground import Foreground
from blemish.methods.in_parts import InParts
from blemish.methods.taught import Taught
from blemish.training.records import (
    CHECKPOINT,
    CheckpointManifest,
    Training,
    read_checkpoint_manifest,
)
from blemish.types import Failure

Digest = Annotated[str, Matching("[0-9a-f]{16,128}", "a hash in hexadecimal")]
Fingerprint = Annotated[str, Matching("[0-9a-f]{64}", "a SHA-256 in hexadecimal")]
Score = Annotated[float, Range(-3.4e38, 3.4e38)]
Few = Annotated[int, Range(1, 2**31)]
# Fields that are left out where there is nothing to say.
_LEFT_OUT = {"pretraining", "training", "category_features", "refined", "regions", "parts"}
_LEFT_OUT |= {"foreground", "export", "compression", "in_parts", "second", "taught"}


@dataclass(frozen=True, kw_only=True)
class BackboneRecord:
    """Which backbone, and whence its weights."""

    spec: BackboneSpec
    weights: WeightsInfo


@dataclass(frozen=True, kw_only=True)
class Broken:
    """A picture that could not be read, and why."""

    path: str
    error: str


def broken(failures: Iterable[Failure]) -> tuple[Broken, ...]:
    """The failures, as a manifest keeps them."""
    return tuple(Broken(path=each.source, error=each.reason) for each in failures)


@dataclass(frozen=True, kw_only=True)
class Learned:
    """The pictures that a detector knows.

    Attributes:
        layout: what they were recognised as. count: how many could be read, without the defects.
        fingerprint: SHA-256 over the sorted hashes of those.
        fitted, calibrated, defects: content hashes of what was learned from, of what the threshold
            alone comes from, and of the labelled defects; `defects_layout` is what these were
            recognised as.
        copies, nearly_same: as of `calibration.Calibration`.
        failures: those that could not be read. notes: how often a reader had to say what of a
            picture. tiles: why they are cut into tiles, or not, where that was chosen.
    """

    layout: str
    count: Count
    fingerprint: Fingerprint
    fitted: tuple[Digest, ...]
    calibrated: tuple[Digest, ...]
    failures: tuple[Broken, ...]
    defects: tuple[Digest, ...] = ()
    defects_layout: str = ""
    copies: Count = 0
    nearly_same: Count = 0
    notes: Mapping[str, Count] = field(default_factory=dict)
    tiles: str = ""
    other: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Pretrained:
    """The pictures that an encoder was pre-trained on; as of `Learned`."""

    layout: str
    count: Count
    fingerprint: Fingerprint
    failures: tuple[Broken, ...]
    other: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Pretraining:
    """How the encoder was pre-trained within `fit`, or distilled as a student; `weights` are those
    before, or of the teacher."""

    method: str
    config: Mapping[str, Any]
    preprocessing: Preprocessing
    weights: WeightsInfo
    precision: Precision
    training: Training


@dataclass(frozen=True, kw_only=True)
class Refinement:
    """That pictures were added later."""

    date: str
    good: Count
    defects: Count


@dataclass(frozen=True, kw_only=True)
class Origin:
    """What every manifest says of how it came about: which blemish made it, when, and with what
    versions.
    """

    blemish: str
    created: str
    versions: Mapping[str, str]


@dataclass(frozen=True, kw_only=True)
class Manifest(Origin):
    """What an artifact says of itself.

    Attributes:
        method: its name. config: its settings, which its class checks. recipe: None where the whole
            config was given.
        preprocessing, backbone: how pictures come to the method.
        second: the encoder beside the backbone; None where there is none.
        categories: of what it was fitted on; none for one kind of part. shots: as of `blemish.fit`.
        map_scale: (low, high) of the heatmaps' colours.
        threshold, thresholds: the common one, and that of each category.
        calibration_scores, calibration_scores_by_category: what the thresholds come from.
        regions: the same of the regions of a map; None in artifacts from before there were any.
        parts: the same of parts of several views; None where it was not calibrated on such.
        foreground: how the part is told from its background; None where that was not asked for.
        compression: how its memory bank was compressed; None where that was not asked for.
        in_parts: how it learned in parts of the pictures; None where it did from all at once.
        taught: how well its labelled defects are told by each other; None where that is not known.
        data: the pictures. pretraining, training: how these went, where there were any.
        refined: what was added later.
        other: what other versions of blemish have added, as it is.
    """

    method: str
    config: Mapping[str, Any]
    preprocessing: Preprocessing
    backbone: BackboneRecord
    recipe: str | None
    seed: Seed
    precision: Precision
    device: str
    seconds: NotNegative
    map_scale: Annotated[tuple[Score, ...], Length(2, 2)]
    threshold: Threshold | None
    data: Learned
    categories: Annotated[tuple[str, ...], Length(distinct=True)] = ()
    shots: Few | None = None
    thresholds: Mapping[str, Threshold] = field(default_factory=dict)
    calibration_scores: tuple[Score, ...] = ()
    calibration_scores_by_category: Mapping[str, tuple[Score, ...]] = field(default_factory=dict)
    regions: RegionThresholds | None = None
    parts: PartThresholds | None = None
    foreground: Foreground | None = None
    compression: Compression | None = None
    in_parts: InParts | None = None
    taught: Taught | None = None
    second: BackboneRecord | None = None
    pretraining: Pretraining | None = None
    training: Training | None = None
    category_features: CategoryFeatures | None = None
    refined: tuple[Refinement, ...] = ()
    export: Exported | None = None
    other: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        low, high = self.map_scale
        if not low < high:
            raise ConfigError(
                "map_scale: two numbers are needed, the lower one first, got "
                f"{list(self.map_scale)}"
            )
        regions = self.regions or RegionThresholds()
        parts = self.parts or PartThresholds(pattern="", threshold=None)
        for name, mapping in (
            ("thresholds", self.thresholds),
            ("calibration_scores_by_category", self.calibration_scores_by_category),
            ("regions.thresholds", regions.thresholds),
            ("regions.levels_by_category", regions.levels_by_category),
            ("parts.thresholds", parts.thresholds),
            ("parts.scores_by_category", parts.scores_by_category),
        ):
            if strange := sorted(set(mapping) - set(self.categories)):
                raise ConfigError(
                    f"{name}.{strange[0]}: is of a category that the artifact does not have"
                )
        features = self.category_features
        if features is not None and set(features.means) != set(self.categories):
            raise ConfigError(
                "category_features.means: is not of the categories that the artifact has"
            )

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        return _to_dict(self)


@dataclass(frozen=True, kw_only=True)
class EncoderManifest(Origin):
    """What the file of `blemish pretrain` says of itself; as of `Manifest`. `pretraining` is the
    method's name.
    """

    pretraining: str
    recipe: str | None
    config: Mapping[str, Any]
    preprocessing: Preprocessing
    backbone: BackboneRecord
    seed: Seed
    precision: Precision
    device: str
    seconds: NotNegative
    training: Training
    data: Pretrained
    other: Mapping[str, Any] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        return _to_dict(self)


def read_manifest(path: object, values: Mapping[str, Any]) -> Manifest:
    """The manifest of an artifact. Raises: ArtifactError that names the file and the field, or says
    what else it is."""
    if other := _other_file(path, values):
        raise ArtifactError(f"{path}: {other}")
    try:
        values = manifest_of_today(values)
        record = config.from_dict(Manifest, values, strict=True)
        # What all versions have written: a default in its place would change scores without a word.
        written: dict[str, tuple[Any, Mapping[str, Any]]] = {
            "preprocessing": (Preprocessing, values["preprocessing"])
        }
        written["backbone.spec"] = (BackboneSpec, values["backbone"]["spec"])
        for place, (kind, given) in written.items():
            for each in fields(kind):
                if each.name not in given and each.name != "offsets" and not config.is_new(each):
                    raise ConfigError(f"{place}.{each.name}: is missing")
        if record.categories and "thresholds" not in values:
            raise ConfigError("thresholds: is missing")
    except BlemishError as error:
        raise undescribed(path, error) from error
    return record


def _other_file(path: object, values: Mapping[str, Any]) -> str:
    """What a file of blemish without a detector is, and what it is for; "" where it has one."""
    if "method" in values:
        return ""
    if CHECKPOINT in values:
        return (
            "is an interrupted training, no detector yet; the command that it is of goes on from "
            "it with --resume"
        )
    if isinstance(values.get("pretraining"), str):
        return (
            "is a pre-trained encoder, no detector; learn one with it: "
            f"blemish fit METHOD GOOD --weights {path} -o part.blemish, and its --backbone"
        )
    return ""


def undescribed(path: object, error: object) -> ArtifactError:
    """The one wording for an artifact of which the manifest, the settings or the backbone do not
    hold.
    """
    return ArtifactError(
        f"{path}: the manifest does not describe a detector that this blemish knows ({error})"
    )


def read_any(
    path: object, values: Mapping[str, Any]
) -> Manifest | EncoderManifest | CheckpointManifest:
    """What an artifact, a pre-trained encoder or the checkpoint of a training says of itself.

    Raises: ArtifactError that names the file and the field.
    """
    if "method" in values:
        return read_manifest(path, values)
    if CHECKPOINT in values:
        return read_checkpoint_manifest(path, values)
    if "pretraining" not in values:
        raise ArtifactError(
            f"{path}: names no method, pretraining or checkpoint; no blemish has written it so"
        )
    try:
        return config.from_dict(EncoderManifest, values, strict=True)
    except BlemishError as error:
        raise ArtifactError(
            f"{path}: the manifest does not describe an encoder ({error})"
        ) from error


def _to_dict(manifest: Manifest | EncoderManifest) -> dict[str, Any]:
    values = config.to_dict(manifest)
    return {key: value for key, value in values.items() if value or key not in _LEFT_OUT}

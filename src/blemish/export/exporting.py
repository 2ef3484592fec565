"""A detector written as a graph for an engine without PyTorch, only where both say the same."""

from __future__ import annotations

import hashlib
import math
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, cast, get_args

import numpy as np

from blemish.artifact import version_of
from blemish.data.ahead import load_picture
from blemish.data.pictures import good_pictures
from blemish.data.transforms import as_pixels, prepare
from blemish.detector.calibrate import DEFAULT_RATE, check_enough, recalibrate
from blemish.detector.loading import load
from blemish.detector.predict import Detector
from blemish.engines import files, packages
from blemish.engines.base import Engine, Input, Precision
from blemish.engines.chosen import open_engine
from blemish.engines.record import Exported, Kind
from blemish.errors import ConfigError
from blemish.export.graph import OPSET, Graph, to_onnx
from blemish.export.proof import LIMITS, ROUNDED, Proof, compare
from blemish.export.web import check_page
from blemish.extras import require
from blemish.files import check_writable, or_elsewhere
from blemish.types import Failure, Progress, silent

InputKind = Literal["normalised", "pixels"]
QUANTISED_ON = 48  # good pictures at most, evenly from all
_BATCH = 4


@dataclass(frozen=True, kw_only=True)
class Made:
    """What was exported.

    Attributes:
        detector: as it is loaded from the file. path: of that. proof: that it says what the
            artifact says. recalibrated: whether its thresholds were set anew, on the graph.
        failures: good pictures that could not be read. left_out: how many of them were learned
            from, and are no evidence.
    """

    detector: Detector
    path: Path
    proof: Proof
    recalibrated: bool
    failures: tuple[Failure, ...] = ()
    left_out: int = 0


def export(
    artifact: str | Path,
    path: str | Path,
    *,
    precision: str = "fp32",
    input: InputKind = "normalised",
    good: Any = None,
    pictures: Sequence[Any] | None = None,
    false_alarm_rate: float | None = None,
    web: bool = False,
    progress: Progress = silent,
) -> Made:
    """Write the detector in an artifact as a graph, with all that a prediction needs.

    Args:
        artifact: what `blemish fit` has written.
        path: of the file: .onnx, or .xml for OpenVINO, which gets a .bin beside it.
        precision: fp32; fp16; bf16 (.xml only); int8, quantised after training on `good`.
        input: "normalised": the graph takes what `data.transforms.prepare` gives; "pixels": uint8
            RGB of the working size, which it normalises itself.
        good: pictures of good parts that it has not learned from, as of `recalibrate`: needed for
            int8, bf16, and an artifact that computes in another precision than the graph, as these
            get thresholds of their own.
        pictures: to compare both by; None = `good`, or generated ones.
        false_alarm_rate: of thresholds that are set anew; None = as it was.
        web: whether it is for a page, which cannot do everything: what it cannot is refused.
    Raises: ExportError where the graph does not say what the detector says, or cannot be made:
        nothing is written then. ConfigError for what does not go together, and where `good` is
        needed; MissingExtraError; as `load` and `recalibrate`.
    """
    path = Path(path)
    kind, chosen = _asked(artifact, path, precision, input)
    check_writable(path)
    _require(kind, chosen)
    detector = load(artifact, device="cpu", precision="fp32")
    if web:
        check_page(detector.record, kind, input)
    anew = chosen in ROUNDED or detector.record.precision != "fp32"
    samples = _good_for(artifact, detector, chosen, good, false_alarm_rate, anew=anew)
    model = _model(detector, kind, chosen, input, samples, progress)
    record = _record(artifact, detector, kind, chosen, input)
    with tempfile.TemporaryDirectory(prefix="blemish-") as folder:
        draft = Path(folder) / f"draft{path.suffix}"
        told = replace(detector.record, precision=chosen, export=record)
        files.write(draft, kind, model, told.to_dict())
        running, _ = open_engine(draft)
        rounded = _rounded(artifact) if chosen == "bf16" else None
        proof = compare(
            detector, running, samples if pictures is None else pictures, precision=chosen,
            version=_of(running), rounded=rounded, progress=progress,
        )  # fmt: skip
        proof.check(path, chosen)
        proven = replace(record, proof=proof.to_dict())
        exported = Detector(running, replace(told, export=proven))
        made = _calibrated(exported, good if anew else None, false_alarm_rate, progress)
        or_elsewhere(path, made.detector.save, f"move all that is there beside {path}")
    return replace(made, path=path, proof=proof, detector=load(path))


def _asked(artifact: str | Path, path: Path, precision: str, input: str) -> tuple[Kind, Precision]:
    """The kind and precision of the file that is asked for. Raises: ConfigError."""
    kind = _kind(path)
    chosen = _precision(precision, kind)
    if input not in get_args(InputKind):
        raise ConfigError(f"input {input!r}: normalised or pixels is needed")
    if files.is_exported(artifact):
        raise ConfigError(
            f"{artifact}: is exported already; name the artifact that it was exported from"
        )
    return kind, chosen


def _kind(path: Path) -> Kind:
    """Raises: ConfigError for a name that says no kind."""
    kind = files.SUFFIXES.get(path.suffix.lower())
    if kind is None:
        known = " or ".join(files.SUFFIXES)
        raise ConfigError(f"{path}: the name of an exported file ends in {known}")
    return kind


def _precision(name: str, kind: Kind) -> Precision:
    """Raises: ConfigError for an unknown one, or one that the kind does not have."""
    if name not in get_args(Precision):
        raise ConfigError(f"unknown precision {name!r}. Known: {', '.join(get_args(Precision))}")
    if name == "bf16" and kind == "onnx":
        raise ConfigError("bf16 is for OpenVINO (.xml); for .onnx choose fp32, fp16 or int8")
    return cast(Precision, name)


def _require(kind: Kind, precision: Precision) -> None:
    """Raises: MissingExtraError for what this export needs and is not installed."""
    require("torch", "timm", "onnx", "onnxscript", purpose="export a detector")
    if kind == "openvino":
        packages.openvino()
    if precision == "int8":
        packages.nncf()


def _good_for(
    artifact: object,
    detector: Detector,
    chosen: Precision,
    good: Any,
    false_alarm_rate: float | None,
    *,
    anew: bool,
) -> Sequence[Any] | None:
    """The good pictures, seen before minutes are spent to be enough; more may prove broken.

    Raises: ConfigError where good pictures are needed and are not there, or a rate is for nothing;
        ExportError, DataError, CalibrationError where they are too few.
    """
    if good is None and (chosen == "int8" or (anew and detector.threshold is not None)):
        raise ConfigError(_needs_good(artifact, detector, chosen))
    if false_alarm_rate is not None and not anew:
        raise ConfigError(
            f"false_alarm_rate: a graph in {chosen} keeps the thresholds of {artifact}; set others "
            "with blemish calibrate, which takes exported files, too"
        )
    pictures = None if good is None else good_pictures(good)
    if chosen == "int8":
        from blemish.export.quantise import check_count

        check_count(0 if pictures is None else len(pictures.sources))
    if anew and pictures is not None:
        check_enough(detector, pictures, _rate(detector, false_alarm_rate))
    return None if pictures is None else pictures.sources


def _needs_good(artifact: object, detector: Detector, precision: Precision) -> str:
    if precision in ROUNDED:
        why = f"{precision} moves every score a little, so that its threshold is set anew"
    else:
        made_in = detector.record.precision
        why = (
            f"the thresholds of {artifact} are of scores in {made_in}, and those in {precision} "
            "differ, so that they are set anew"
        )
    told = f"{why}: name pictures of good parts that it has not learned from, --good FOLDER"
    if precision in ROUNDED:
        return told
    return f"{told}; or fit it with --precision fp32"


def _model(
    detector: Detector,
    kind: Kind,
    precision: Precision,
    input: InputKind,
    good: Sequence[Any] | None,
    progress: Progress,
) -> bytes | tuple[bytes, bytes]:
    """The graph, as `files.write` takes it."""
    half: Literal["fp32", "fp16"] = "fp16" if precision == "fp16" and kind == "onnx" else "fp32"
    how: dict[str, Any] = {"pixels": input == "pixels", "rounds": precision == "bf16"}
    model = to_onnx(detector, precision=half, **how, progress=progress)
    if precision == "int8":
        from blemish.export.quantise import quantise

        assert good is not None
        taken = good[:: -(-len(good) // QUANTISED_ON)]
        batches = list(_prepared(detector, taken, input))
        limit = LIMITS[precision] * _deviation(detector)
        return quantise(model, batches, kind=kind, limit=limit, progress=progress).model
    if kind == "onnx":
        return model
    from blemish.export.openvino import converted

    return converted(model, half=precision == "fp16")


def _deviation(detector: Detector) -> float:
    """That of the stored scores of good pictures; infinite where there are none."""
    stored = detector.record.calibration_scores
    return float(np.std(stored)) if len(stored) > 1 else math.inf


def _record(
    artifact: str | Path, detector: Detector, kind: Kind, precision: Precision, input: InputKind
) -> Exported:
    """What the file says of its graph, before there is a proof."""
    return Exported(
        kind=kind,
        precision=precision,
        input=input,
        opset=OPSET,
        **_form(detector, input),
        top_fraction=detector.engine.top_fraction,
        scores_by_map=detector.engine.scores_by_map,
        offset=detector.engine.offset,
        source=_fingerprint(artifact),
        versions=_versions(kind, precision),
    )


def _form(detector: Detector, input: InputKind) -> dict[str, Any]:
    """What a graph gives, and how large its maps are."""
    graph = Graph(detector.method, detector.record, pixels=input == "pixels")
    return {"outputs": graph.outputs, "map_size": graph.map_size}


def _prepared(detector: Detector, good: Sequence[Any], input: InputKind) -> Iterator[Input]:
    """Batches of good pictures as the graph takes them."""
    window = detector.preprocessing.decode_window()
    take: Callable[..., Any] = as_pixels if input == "pixels" else prepare
    batch: list[Any] = []
    for index, source in enumerate(good):
        picture = load_picture(source, index, window)
        if not isinstance(picture, Failure):
            batch.append(take(picture, detector.preprocessing))
        if len(batch) == _BATCH or (batch and index == len(good) - 1):
            yield np.stack(batch)
            batch = []


def _calibrated(exported: Detector, good: Any, rate: float | None, progress: Progress) -> Made:
    """With thresholds from scores of the graph itself, where there are good pictures for it."""
    proof = Proof(**dict(exported.record.export.proof))  # type: ignore[union-attr]
    told: dict[str, Any] = {"path": Path(), "proof": proof}
    if good is None:
        return Made(detector=exported, recalibrated=False, **told)
    detector, failures, left_out = recalibrate(
        exported, good, false_alarm_rate=_rate(exported, rate), progress=progress
    )
    return Made(
        detector=detector, recalibrated=True, failures=tuple(failures), left_out=left_out, **told
    )


def _rate(detector: Detector, rate: float | None) -> float:
    """The rate of thresholds that are set anew: as asked for, or as it was."""
    known = detector.threshold
    if rate is not None:
        return rate
    return DEFAULT_RATE if known is None or known.rate is None else known.rate


def _rounded(artifact: str | Path) -> Engine:
    """The artifact in bf16 by PyTorch, which is nobody's error but rounding's."""
    return load(artifact, device="cpu", precision="bf16").engine


def _fingerprint(path: str | Path) -> str:
    with Path(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _of(engine: Engine) -> str:
    package = packages.onnxruntime() if engine.name == "onnxruntime" else packages.openvino()
    version, _, _ = package.__version__.partition("-")
    return f"{engine.name} {version}"


def _versions(kind: Kind, precision: Precision) -> dict[str, str]:
    names = ["blemish", "torch", "onnx", "onnxscript"]
    names += ["openvino"] * (kind == "openvino") + ["nncf"] * (precision == "int8")
    return {name: version_of(name) for name in names}

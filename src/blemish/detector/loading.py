"""From a file to a detector: an artifact, which PyTorch runs, or an exported graph."""

from __future__ import annotations

from pathlib import Path

from blemish.artifact import read_manifest as read_whole_manifest
from blemish.detector.manifest import read_manifest
from blemish.detector.predict import Detector
from blemish.engines.chosen import ENGINES, open_engine
from blemish.engines.files import is_exported
from blemish.errors import ArtifactError, ConfigError, MissingExtraError, unknown_name
from blemish.extras import require


def load(
    path: str | Path,
    *,
    engine: str = "auto",
    device: str = "auto",
    precision: str = "auto",
    threads: int | None = None,
) -> Detector:
    """The detector in an artifact, or in a file that `blemish export` has written; nothing is
    fetched, either carries all that it needs.

    Args:
        engine: what runs it: torch for an artifact; onnxruntime or openvino for an exported file.
            auto = what the file is made for.
        device: auto, cpu, cuda, cuda:1; mps (torch), tensorrt (onnxruntime), gpu, npu (openvino).
        precision: of an artifact: auto (that of its fit, or of its last `recalibrate`, where the
            device computes in it, else fp32: `Detector.precision` says which), fp32, bf16, fp16.
            An exported file has the one that it was proven in.
        threads: of a CPU; None = what the engine chooses, at most the cores that there are. Those
            of torch are set for the whole process.
    Raises: ArtifactError for a file that is not a whole, unaltered one of a known format, or of
        which a field or a tensor cannot be: before anything is built, everything is held against
        what a detector of its settings has. MissingExtraError for an engine that is not installed;
        EngineError for one that cannot run the graph; ConfigError for what does not go together.
    """
    if engine not in ENGINES:
        raise unknown_name("engine", engine, ENGINES)
    if is_exported(path):
        return _exported(path, engine, device, precision, threads)
    if engine not in ("auto", "torch"):
        stem = Path(path).with_suffix("")
        raise ConfigError(
            f"{path}: {engine} runs exported files; write one with: blemish export {path} "
            f"-o {stem}.onnx"
        )
    try:
        require("torch", "timm", purpose=f"run {path}, which is not exported")
    except MissingExtraError:
        read_whole_manifest(path)  # what is no artifact needs something else than PyTorch
        raise
    from blemish.compute import use_threads
    from blemish.detector.restoring import restored

    use_threads(threads)
    return restored(path, device=device, precision=precision)


def _exported(
    path: str | Path, engine: str, device: str, precision: str, threads: int | None
) -> Detector:
    """The detector in an exported file."""
    running, values = open_engine(path, engine=engine, device=device, threads=threads)
    if precision not in ("auto", running.precision):
        raise ConfigError(
            f"{path}: computes in {running.precision}, which it was proven in; export it in "
            f"{precision}, or leave --precision out"
        )
    record = read_manifest(path, values)
    looks, size = record.preprocessing, getattr(running, "size", None)
    if size is not None and tuple(size) != (looks.height, looks.width):
        raise ArtifactError(
            f"{path}: its graph takes {size[0]}×{size[1]}, its manifest says "
            f"{looks.height}×{looks.width}; export it again"
        )
    outputs = () if record.export is None else record.export.outputs
    for needed, has in (
        ("part", record.foreground is not None and not record.foreground.abstains),
        ("category", record.category_features is not None),
    ):
        if has and needed not in outputs:
            raise ArtifactError(f"{path}: its graph lacks the output {needed!r}; export it again")
    return Detector(running, record)

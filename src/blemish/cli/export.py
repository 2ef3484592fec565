"""export: a detector as a graph for engines without PyTorch, and how it is told."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from typer import Option

from blemish.cli import console, words
from blemish.cli.options import Artifact, Json
from blemish.cli.status import BROKEN_PICTURES, WELL
from blemish.errors import ConfigError
from blemish.extras import require

if TYPE_CHECKING:
    from blemish.export.exporting import Made

Output = Annotated[
    Path | None,
    Option(
        "--output",
        "-o",
        metavar="FILE",
        help="The file: .onnx, or .xml for OpenVINO, which gets a .bin beside it.",
    ),
]


def export(
    artifact: Artifact,
    output: Output = None,
    precision: Annotated[
        str,
        Option(
            metavar="NAME",
            help="fp32, fp16, bf16 (.xml only) or int8. int8 and bf16 need --good, as their "
            "thresholds are set anew.",
        ),
    ] = "fp32",
    good: Annotated[
        list[Path] | None,
        Option(
            metavar="GOOD",
            help="Pictures of good parts that the artifact has not learned from, for thresholds "
            "of the graph's own; repeatable.",
        ),
    ] = None,
    pictures: Annotated[
        list[Path] | None,
        Option(
            metavar="PICTURES",
            help="Pictures to compare graph and artifact by; repeatable. [default: those of "
            "--good, or generated ones]",
        ),
    ] = None,
    false_alarm_rate: Annotated[
        float | None,
        Option(metavar="RATE", help="Of thresholds that are set anew. [default: as it was]"),
    ] = None,
    input: Annotated[
        str,
        Option(
            metavar="KIND",
            help="normalised, or pixels: the graph takes 8-bit RGB of the working size.",
        ),
    ] = "normalised",
    json: Json = False,
) -> int:
    """Write an artifact as ONNX or for OpenVINO, only where both say the same."""
    if output is None:
        raise ConfigError("export writes a file: name it with --output part.onnx, or part.xml")
    if input not in ("normalised", "pixels"):
        raise ConfigError(f"--input {input}: normalised or pixels is needed")
    if false_alarm_rate is not None and not good:
        raise ConfigError("--false-alarm-rate is of thresholds from good pictures: name --good")
    require("torch", "timm", "onnx", "onnxscript", purpose="export a detector")
    from blemish.data.folder import search
    from blemish.export.exporting import export as write

    found = None if pictures is None else search(pictures).pictures
    with console.progress() as progress:
        made = write(
            artifact,
            output,
            precision=precision,
            input="pixels" if input == "pixels" else "normalised",
            good=good,
            pictures=found,
            false_alarm_rate=false_alarm_rate,
            progress=progress,
        )
    console.answer(_document(made), _lines(made), as_json=json)
    return BROKEN_PICTURES if made.failures else WELL


def _document(made: Made) -> dict[str, object]:
    return {
        "exported": str(made.path),
        "proof": made.proof.to_dict(),
        "recalibrated": made.recalibrated,
        **(words.thresholds_of(made.detector.manifest) if made.recalibrated else {}),
        "left_out": made.left_out,
        "failures": [one.to_dict() for one in made.failures],
    }


def _lines(made: Made) -> list[str]:
    lines = [f"Proof: {words.proof(asdict(made.proof))}."]
    if made.recalibrated:
        lines += words.threshold_lines(made.detector.manifest)
        if made.left_out:
            lines.append(f"Left out: {made.left_out} pictures that it has learned from.")
    else:
        lines.append("Thresholds: those of the artifact.")
    lines += [f"Not read: {one.source}: {one.reason}" for one in made.failures]
    size = sum(one.stat().st_size for one in _files(made.path)) / 2**20
    names = " and ".join(one.name for one in _files(made.path))
    return [*lines, f"Written: {made.path} ({names}, {size:.0f} MiB)"]


def _files(path: Path) -> list[Path]:
    beside = path.with_suffix(".bin")
    return [path, beside] if path.suffix.lower() == ".xml" and beside.exists() else [path]

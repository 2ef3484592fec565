"""export: a detector as a graph for engines without PyTorch, and how it is told."""

from __future__ import annotations

from dataclasses import asdict
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Annotated

from typer import Argument, Option

from blemish.cli import console, options, words
from blemish.cli.options import Json
from blemish.cli.status import BROKEN_PICTURES, WELL
from blemish.cli.writing import Writing
from blemish.errors import ConfigError
from blemish.extras import require
from blemish.text import pluralize

if TYPE_CHECKING:
    from blemish.export.exporting import Made

Source = Annotated[
    Path, Argument(metavar="ARTIFACT", help="A file that `blemish fit` has written.")
]
Output = Annotated[
    Path | None,
    Option(
        "--output",
        "-o",
        metavar="FILE",
        help="The file: .onnx, or .xml for OpenVINO, which gets a .bin beside it.",
    ),
]
ExportPrecision = Annotated[
    str,
    Option(
        metavar="NAME",
        help="fp32, fp16, bf16 (.xml only) or int8. int8 and bf16 need --good, as their "
        "thresholds are set anew.",
    ),
]
NewGood = Annotated[
    list[Path] | None,
    Option(
        metavar="GOOD",
        help="Pictures of good parts that the artifact has not learned from, for thresholds "
        "of the graph's own; repeatable.",
    ),
]
Compared = Annotated[
    list[Path] | None,
    Option(
        metavar="PICTURES",
        help="Pictures to compare graph and artifact by; repeatable. [default: those of "
        "--good, or generated ones]",
    ),
]
NewRate = Annotated[
    float | None,
    Option(
        metavar="RATE",
        callback=options.in_range(options.INNER_SHARE),
        help="Of thresholds that are set anew. [default: as it was]",
    ),
]
InputKind = Annotated[
    str,
    Option(
        metavar="KIND",
        help="normalised, or pixels: the graph takes 8-bit RGB of the working size.",
    ),
]
Page = Annotated[
    Path | None,
    Option(
        metavar="DIR",
        help="A folder for a web page that scores pictures in the browser alone.",
    ),
]


def export(
    artifact: Source,
    output: Output = None,
    precision: ExportPrecision = "fp32",
    good: NewGood = None,
    pictures: Compared = None,
    false_alarm_rate: NewRate = None,
    input: InputKind = "normalised",
    web: Page = None,
    json: Json = False,
) -> int:
    """Write an artifact as ONNX, for OpenVINO or as a web page, only where both say the same."""
    if output is None and web is None:
        raise ConfigError(
            "export writes a file: name it with --output part.onnx, or part.xml; or a page: --web"
        )
    if web is not None and output is not None and output.suffix.lower() != ".onnx":
        raise ConfigError(f"--web takes an .onnx file, and --output names {output}")
    if input not in ("normalised", "pixels"):
        raise ConfigError(f"--input {input}: normalised or pixels is needed")
    if false_alarm_rate is not None and not good:
        raise ConfigError("--false-alarm-rate is of thresholds from good pictures: name --good")
    require("torch", "timm", "onnx", "onnxscript", purpose="export a detector")
    from blemish.data.folder import search
    from blemish.export.exporting import export as write
    from blemish.export.web import check_place, write_page

    if web is not None:
        check_place(web)
    found = None if pictures is None else search(pictures).pictures
    with TemporaryDirectory(prefix="blemish-") as folder, console.progress() as progress:
        made = write(
            artifact,
            output or Path(folder) / "page.onnx",
            web=web is not None,
            precision=precision,
            input="pixels" if input == "pixels" else "normalised",
            good=good,
            pictures=found,
            false_alarm_rate=false_alarm_rate,
            progress=progress,
        )
        model, record, written = made.path.read_bytes(), made.detector.record.to_dict(), Writing()
        page = partial(write_page, model=model, manifest=record)
        web = written.kept(web, page, folder=True)
        document, lines = _document(made, output, web), _lines(made, output, web)
    status = BROKEN_PICTURES if made.failures else WELL
    return written.answer(document, lines, as_json=json, status=status)


def _document(made: Made, output: Path | None, web: Path | None) -> dict[str, object]:
    return {
        "exported": None if output is None else str(output),
        "page": None if web is None else str(web),
        "proof": made.proof.to_dict(),
        "recalibrated": made.recalibrated,
        **(words.thresholds_of(made.detector.manifest) if made.recalibrated else {}),
        "left_out": made.left_out,
        "failures": [one.to_dict() for one in made.failures],
    }


def _lines(made: Made, output: Path | None, web: Path | None) -> list[str]:
    lines = [f"Proof: {words.proof(asdict(made.proof))}."]
    if made.recalibrated:
        lines += words.threshold_lines(made.detector.manifest)
        if made.left_out:
            lines.append(
                f"Left out: {pluralize(made.left_out, 'picture')} that it has learned from."
            )
    else:
        lines.append("Thresholds: those of the artifact.")
    lines += [f"Not read: {one.source}: {one.reason}" for one in made.failures]
    if output is not None:
        size = sum(one.stat().st_size for one in _files(output)) / 2**20
        names = " and ".join(one.name for one in _files(output))
        lines.append(f"Written: {output} ({names}, {size:.0f} MiB)")
    if web is not None:
        lines.append(
            f"Page: {web}. Run python {web / 'serve.py'} and open the address that it prints; "
            "opened as a file it cannot run."
        )
    return lines


def _files(path: Path) -> list[Path]:
    beside = path.with_suffix(".bin")
    return [path, beside] if path.suffix.lower() == ".xml" and beside.exists() else [path]

"""The options that several commands have, and what is read from them."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from blemish.errors import ConfigError, unknown_name

if TYPE_CHECKING:
    from blemish.detector.predict import Detector
    from blemish.methods.adaptation import Mode

Json = Annotated[
    bool, typer.Option("--json", help="One JSON document on standard output, nothing else there.")
]
Artifact = Annotated[
    Path, typer.Argument(metavar="ARTIFACT", help="A file that `blemish fit` has written.")
]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1 or mps.")]
Precision = Annotated[
    str, typer.Option(help="auto (bf16 where the hardware computes in it), fp32, bf16 or fp16.")
]
BatchSize = Annotated[
    int,
    typer.Option(
        min=1, help="Pictures at once; changes speed, memory and the last digit of scores only."
    ),
]
Window = Annotated[
    str | None,
    typer.Option(metavar="LO,HI", help="Range of the pixel values, for 16-bit and DICOM pictures."),
]
TimeBudget = Annotated[
    float | None,
    typer.Option(
        metavar="MINUTES", help="How long training may take; its schedules are shaped to end there."
    ),
]
Scales = Annotated[
    str | None,
    typer.Option(
        metavar="LIST",
        help="Sides of the squares that `guided` looks at a picture in, as in 224,320. The time grows with the sum of "
        "their areas: the six of the APMask paper cost 19 times 224 alone. [default: those of the artifact]",
    ),
]
ImageSize = Annotated[
    str | None,
    typer.Option(
        metavar="SIZE", help="448, or height x width as in 224x448: the height comes first."
    ),
]
OverlaySize = Annotated[
    str | None,
    typer.Option(
        metavar="SIZE",
        help="Pixels of the longer side of the overlays in --output; or full, as large as the pictures; or none. "
        "[default: 1600]",
    ),
]
Adapt = Annotated[
    str | None,
    typer.Option(
        metavar="MODE",
        help="Follow the pictures, where the method can (guided): online, on from batch to batch, or episodic, each "
        "batch by itself. The threshold then guarantees nothing.",
    ),
]
AnomalyCount = Annotated[
    int | None,
    typer.Option(
        min=0, metavar="M", help="Learn from M of the labelled defects, drawn by the seed."
    ),
]
AnomalyType = Annotated[
    str | None, typer.Option(metavar="NAME", help="Learn from defects of this type only.")
]
Rate = Annotated[
    float | None,
    typer.Option(
        help="Share of good pictures that may raise an alarm. [default: 0.05, without a threshold where there are too "
        "few pictures for it]"
    ),
]


def parts(text: str) -> list[str]:
    return [part.strip() for part in text.split(",") if part.strip()]


def integers(option: str, text: str, such_as: str) -> list[int]:
    try:
        return [int(part) for part in parts(text)]
    except ValueError as error:
        raise ConfigError(f"{option} {text}: whole numbers are needed, as in {such_as}") from error


def looking_at(scales: str | None, detector: Detector) -> Detector:
    if scales is None:
        return detector
    sides = scales.split(",")
    if not all(side.strip().isdecimal() and 1 <= int(side) <= 8192 for side in sides):
        raise ConfigError(f"--scales {scales}: sides in pixels are needed, as in 224,320")
    return detector.with_scales([int(side) for side in sides])


def mode(adapt: str | None) -> Mode | None:
    from blemish.methods.adaptation import MODES

    if adapt is None:
        return None
    if adapt not in MODES:
        raise unknown_name("mode of --adapt", adapt, MODES)
    return adapt


def interval(option: str, text: str | None) -> tuple[float, float] | None:
    if text is None:
        return None
    try:
        low, high = (float(part) for part in text.split(","))
    except ValueError:
        low = high = 0.0
    if not low < high:
        raise ConfigError(
            f"{option} {text}: two numbers lo,hi with lo < hi are needed, as in 0,4095"
        )
    return low, high


def overlay_side(text: str | None, output: Path | None) -> int | None:
    """As `outputs.record` takes it. Raises: ConfigError for what is no size, or where nothing is to be drawn."""
    from blemish.report.predictions import OVERLAY_SIDE

    if text is None:
        return OVERLAY_SIDE
    if output is None:
        raise ConfigError(
            "--overlay-size: overlays are drawn into a folder; name it with --output DIR"
        )
    if text in ("full", "none"):
        return None if text == "full" else 0
    if not text.isdecimal() or int(text) < 1:
        raise ConfigError(
            f"--overlay-size {text}: pixels of the longer side (1600), full or none is needed"
        )
    return int(text)

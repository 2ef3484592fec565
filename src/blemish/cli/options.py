"""The options that several commands have, each declared once, and how they are read.

An option with a parser arrives in its command as what the library takes: a tuple, not a text.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from inspect import signature
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

from typer import Argument, CallbackParam, Option

from blemish.cli import console
from blemish.config import Range
from blemish.errors import ConfigError, unknown_name
from blemish.machine import MOST_THREADS
from blemish.types import MODES

if TYPE_CHECKING:
    from blemish.detector.predict import Detector

LARGEST_SIDE = 8192  # pixels of a picture as a backbone sees it
MOST_AT_ONCE = 65_536  # pictures of a batch


def parts(text: str) -> list[str]:
    """What stands between the commas, without blanks."""
    return [part.strip() for part in text.split(",") if part.strip()]


def integers(option: str, text: str, such_as: str) -> list[int]:
    """Whole numbers between commas. Raises: ConfigError."""
    try:
        return [int(part) for part in parts(text)]
    except ValueError as error:
        raise ConfigError(f"{option} {text}: whole numbers are needed, as in {such_as}") from error


def assignments(settings: Sequence[str] | None, **named: object) -> list[str]:
    """KEY=VALUE for each named option that was given, then those of --set, which win."""
    given = [f"{key}={value}" for key, value in named.items() if value is not None]
    return given + list(settings or ())


def one_budget(minutes: float | None, teraflops: float | None) -> None:
    """Raises: ConfigError, before any work, where both budgets are given."""
    if minutes is not None and teraflops is not None:
        raise ConfigError(
            f"--time-budget {minutes:g} --compute-budget {teraflops:g}: give one of them"
        )


def tile(given: str | None) -> int | str | None:
    """What --tile says. Raises: ConfigError for what is neither a number nor auto."""
    if given is None or given == "auto":
        return given
    if not given.isdigit():
        raise ConfigError(f"--tile {given}: a number of pixels, or auto, is needed")
    return int(given)


def taken_by(function: Callable[..., Any], given: Mapping[str, Any]) -> dict[str, Any]:
    """Those of a command's options, its `locals()`, that a function takes by the same name.

    So an option stands once in its command: in the signature.
    """
    wanted = [
        one.name for one in signature(function).parameters.values() if one.kind != one.VAR_KEYWORD
    ]
    return {name: given[name] for name in wanted if name in given}


def loaded(
    artifact: Path,
    *,
    device: str,
    precision: str,
    scales: str | None = None,
    engine: str = "auto",
    threads: int | None = None,
) -> Detector:
    """The detector in an artifact, looking at the sizes of --scales. Raises: ConfigError."""
    from blemish.detector.loading import load

    detector = load(artifact, engine=engine, device=device, precision=precision, threads=threads)
    for note in detector.engine.notes:
        console.complain(f"blemish: notice: {artifact}: {note}")
    if detector.precision != (made_in := detector.record.precision) and precision == "auto":
        console.complain(
            f"blemish: notice: {artifact} computes in {detector.precision} here, not in {made_in} "
            "as it was made: its scores differ a little from those that its thresholds come from"
        )
    if scales is None:
        return detector
    sides = scales.split(",")
    if not all(side.strip().isdecimal() and 1 <= int(side) <= LARGEST_SIDE for side in sides):
        raise ConfigError(f"--scales {scales}: sides in pixels are needed, as in 224,320")
    return detector.with_scales([int(side) for side in sides])


def within(detector: Detector, roi: Path | None, ignore: Path | None) -> tuple[Detector, str]:
    """The detector narrowed to an area, and a text by which the area is known; "" for none.

    Raises: ConfigError, ImageError.
    """
    narrowed = detector.within(roi, ignore)
    told = narrowed.area.digest if narrowed.is_narrowed and narrowed.area else ""
    return narrowed, told


def overlay_side(text: str | None, output: Path | None) -> int | None:
    """The longer side of the overlays, as `predictions.record` takes it.

    Raises: ConfigError for what is no size, or where nothing is to be drawn.
    """
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


class Interval(NamedTuple):
    """The range of the pixel values that --window names."""

    low: float
    high: float


def _interval(text: str) -> Interval:
    try:
        low, high = (float(part) for part in text.split(","))
    except ValueError:
        low = high = 0.0
    if not low < high:
        raise ConfigError(
            f"--window {text}: two numbers lo,hi with lo < hi are needed, as in 0,4095"
        )
    return Interval(low, high)


def _mode(text: str) -> str:
    if text not in MODES:
        raise unknown_name("mode of --adapt", text, MODES)
    return text


def in_range(rule: Range) -> Callable[[CallbackParam, Any], Any]:
    """What an option's `callback` is to be: it refuses a number out of a range before any work.

    Whole numbers have `min` and `max`, which the help shows; these know of no NaN and no open ends.
    """

    def checked(param: CallbackParam, value: float | None) -> float | None:
        if value is not None and value not in rule:
            such_as = " (0.05 for 5 %)" if rule.high <= 1 else ""
            raise ConfigError(f"{param.opts[0]} {value:g}: {rule.needed(value)}{such_as}")
        return value

    return checked


SCORE, SHARE, INNER_SHARE = Range(), Range(0, 1, below=True), Range(0, 1, above=True, below=True)
SECONDS = Range(0)

Json = Annotated[bool, Option("--json", help="One JSON document on standard output, no more.")]
Artifact = Annotated[
    Path, Argument(metavar="ARTIFACT", help="A file that `blemish fit`, or `export`, has written.")
]

Device = Annotated[
    str, Option(help="auto, cpu, cuda, cuda:1 or mps; for exported files tensorrt, gpu, npu.")
]
Engine = Annotated[
    str,
    Option(
        metavar="NAME",
        help="What computes: torch for an artifact; onnxruntime or openvino for an exported file. "
        "auto = what the file is made for.",
    ),
]
Threads = Annotated[
    int | None,
    Option(min=1, max=MOST_THREADS, help="Of the CPU. [default: what the engine chooses]"),
]
Precision = Annotated[
    str,
    Option(
        help="auto (what an artifact was made in; for a new one bf16 where it is faster), fp32, "
        "bf16 or fp16."
    ),
]

Recipe = Annotated[str, Option(help="A recipe of the method, to which other settings are applied.")]
Settings = Annotated[
    list[str] | None,
    Option("--set", metavar="KEY=VALUE", help="Any setting; may be given more than once."),
]
Seed = Annotated[
    int | None, Option(min=0, max=2**63 - 1, help="Of everything random. [default: 0]")
]
Backbone = Annotated[str | None, Option(help="One of `blemish backbones`, or any timm model.")]
Weights = Annotated[str | None, Option(metavar="FILE", help="Weights for the backbone to take.")]
ImageSize = Annotated[
    str | None, Option(metavar="SIZE", help="448, or height x width as in 224x448.")
]
Scales = Annotated[
    str | None,
    Option(
        metavar="LIST",
        help="Sides of the squares that `guided` looks at a picture in, as in 224,320. The time "
        "grows with the sum of their areas: the six of the APMask paper cost 19 times 224 alone. "
        "[default: those of the artifact]",
    ),
]
Adapt = Annotated[
    Any,  # a `types.Mode`
    Option(
        metavar="MODE",
        parser=_mode,
        help="Follow the pictures, where the method can (guided): online, on from batch to batch, "
        "or episodic, each batch by itself. The threshold then guarantees nothing.",
    ),
]
SmallestRegion = Annotated[
    float | None,
    Option(
        metavar="SHARE",
        callback=in_range(SHARE),
        help="The share of the picture that a region of its map has at least, to be shown and "
        "counted; 0.001 for 0.1 %. [default: 0, or as it was]",
    ),
]
Window = Annotated[
    Interval | None,
    Option(
        metavar="LO,HI",
        parser=_interval,
        help="Range of the pixel values, for 16-bit and DICOM pictures.",
    ),
]
Roi = Annotated[
    Path | None,
    Option(
        metavar="FILE",
        help="Look only there: a mask picture (white = the area), or JSON with polygons "
        "[[[x, y], …], …], x and y from 0 to 1.",
    ),
]
Resize = Annotated[
    str,
    Option(
        metavar="HOW",
        help="How pictures that are no squares come into the input: stretch (distorted to fill "
        "it), fit (the input takes their shape), pad (whole, with bars beside it) or crop (the "
        "middle; the rest is not looked at).",
    ),
]
Tile = Annotated[
    str | None,
    Option(
        metavar="PIXELS|auto",
        help="Cut pictures into squares of so many of their own pixels and look at each of them: "
        "for small defects in large pictures. auto: whether and how large, by the pictures and "
        "the masks of known defects; it says what it chose.",
    ),
]
Overlap = Annotated[
    float | None,
    Option(
        callback=in_range(Range(0, 0.9)),
        help="The share of its side that a tile has at least in common with the next. "
        "[default: 0.25]",
    ),
]
Ignore = Annotated[Path | None, Option(metavar="FILE", help="Do not look there; as --roi.")]
OnlyThere = Annotated[
    Path | None,
    Option(
        metavar="FILE",
        help="Score and show only what is there, as of `blemish fit`. The threshold stays that of "
        "the artifact: fewer alarms, never more.",
    ),
]
NotThere = Annotated[
    Path | None, Option(metavar="FILE", help="Score and show nothing there; as --roi.")
]
OverlaySize = Annotated[
    str | None,
    Option(
        metavar="SIZE",
        help="Pixels of the longer side of the overlays in --output; or full, as large as the "
        "pictures; or none. [default: 1600]",
    ),
]

AnomalyCount = Annotated[
    int | None,
    Option(min=0, metavar="M", help="Learn from M of the labelled defects, drawn by the seed."),
]
AnomalyType = Annotated[
    str | None, Option(metavar="NAME", help="Learn from defects of this type only.")
]
Rate = Annotated[
    float | None,
    Option(
        callback=in_range(INNER_SHARE),
        help="Share of good pictures that may raise an alarm. [default: 0.05, without a threshold "
        "where there are too few pictures for it]",
    ),
]
TimeBudget = Annotated[
    float | None,
    Option(
        metavar="MINUTES",
        callback=in_range(Range(0, above=True)),
        help="For training, which is shaped to end there.",
    ),
]
ComputeBudget = Annotated[
    float | None,
    Option(
        metavar="TFLOP",
        callback=in_range(Range(0, above=True)),
        help="In place of --time-budget, so much arithmetic (10^12 operations, a multiply-add as "
        "2): as many steps on every machine.",
    ),
]
Resume = Annotated[bool, Option("--resume", help="Go on with a training that was interrupted.")]

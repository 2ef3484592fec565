"""compare: which method and which resolution to take, for a user's own pictures."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from typer import Argument, Option

from blemish.cli import console, options, words
from blemish.cli.options import Device, Json, Precision, Seed, Settings, Weights
from blemish.cli.status import BROKEN_PICTURES, ERROR, WELL
from blemish.cli.writing import Writing
from blemish.config import Range, assigned, height_width
from blemish.errors import ConfigError
from blemish.extras import require
from blemish.text import pluralize

if TYPE_CHECKING:
    from rich.table import Table

    from blemish.bench.choosing.comparing import Compared
    from blemish.bench.choosing.findings import Findings

GoodOrData = Annotated[
    list[Path],
    Argument(
        metavar="GOOD|DATA",
        help="Pictures of good parts, as of `blemish fit`; or a data set that labels defects, too.",
    ),
]
Defects = Annotated[
    list[Path] | None,
    Option(
        "--anomalies",
        metavar="DEFECTS",
        help="Pictures of known defects: five or more choose, and of ten or more half are held "
        "out, to measure what was chosen. Repeatable.",
    ),
]
Methods = Annotated[
    str,
    Option(
        metavar="LIST",
        help="Methods, as in patchcore,padim. [default: all that learn from good pictures alone "
        "and are not trained step by step]",
    ),
]
Resolutions = Annotated[
    str,
    Option(metavar="LIST", help="Sizes of the input, as in 224,448 or 224x448."),
]
Vary = Annotated[
    list[str] | None,
    Option(
        metavar="KEY=VALUE",
        help="Compare values of a setting, too: give each by a --vary of its own, as in --vary "
        "layers=4,8 --vary layers=6,9. Several settings are combined.",
    ),
]
Minutes = Annotated[
    float,
    Option(
        callback=options.in_range(Range(0, above=True)),
        help="For all of it. Pictures are left out where there are too many for it; what is "
        "trained shares what is left. What does not come to its turn is measured by the same "
        "command again.",
    ),
]
SmallestDefect = Annotated[
    float,
    Option(
        metavar="SHARE",
        callback=options.in_range(Range(0.002, 0.1)),  # as `bench.choosing.comparing` has it
        help="About the size of the smallest defects that matter, as a share of the picture's "
        "sides (0.01 for 1 %): so small some generated ones are.",
    ),
]
Folder = Annotated[
    Path,
    Option(
        *("--output", "-o"),
        metavar="DIR",
        help="For the report, the figure, the rows and the pictures with generated defects. The "
        "same command goes on with what is there.",
    ),
]
Backbone = Annotated[
    str | None,
    Option(
        help="One of `blemish backbones`, or any timm model. [default: the first that an installed "
        "package carries, so that nothing is downloaded]"
    ),
]
Rate = Annotated[
    float | None,
    Option(
        "--false-alarm-rate",
        callback=options.in_range(options.INNER_SHARE),
        help="Share of good pictures that may raise an alarm. [default: 0.05, without a threshold "
        "where there are too few pictures for it]",
    ),
]


def compare(
    good: GoodOrData,
    anomalies: Defects = None,
    methods: Methods = "",
    resolutions: Resolutions = "224,448",
    minutes: Minutes = 10.0,
    output: Folder = Path("comparison"),
    smallest_defect: SmallestDefect = 0.025,
    vary: Vary = None,
    settings: Settings = None,
    backbone: Backbone = None,
    weights: Weights = None,
    false_alarm_rate: Rate = None,
    seed: Seed = None,
    device: Device = "auto",
    precision: Precision = "auto",
    json: Json = False,
) -> int:
    """Compare methods and resolutions on your own pictures, and say which to take: by good pictures
    that are left out and generated defects, and by labelled defects where there are any."""
    require("torch", "timm", purpose="compare methods")
    from blemish.bench.choosing import comparing, reporting
    from blemish.bench.choosing import findings as found_of
    from blemish.bench.choosing.candidates import candidates, usual_backbone, usual_methods

    chosen = backbone or usual_backbone()
    first = 0 if seed is None else seed
    asked = comparing.Asked(
        candidates=candidates(
            _methods(methods) or usual_methods(),
            _sizes(resolutions),
            backbone=chosen,
            settings=assigned(settings or ()),
            varied=[pair for one in vary or () for pair in assigned([one]).items()],
            seed=first,
        ),
        backbone=chosen,
        weights=None if weights is None else str(weights),
        minutes=minutes,
        rate=false_alarm_rate,
        smallest=smallest_defect,
        seed=first,
        device=device,
        precision=precision,
    )
    with console.progress() as progress:
        compared = comparing.compare(
            good, asked, output, anomalies=anomalies or (), progress=progress
        )
    more = [] if weights is None else ["--weights", str(weights)]
    more += [] if false_alarm_rate is None else ["--false-alarm-rate", f"{false_alarm_rate:g}"]
    found = found_of.findings(compared, [str(path) for path in good], more, seed=first)
    written, places = Writing(), dict[str, Path]()
    with written.tried("what was measured is kept: the same command writes it once there is room"):
        places = reporting.write(output, compared, found)
    document = {**found_of.document(compared, found), **{k: str(v) for k, v in places.items()}}
    status = BROKEN_PICTURES if document["failures"] else WELL
    status = status if found.standings else ERROR
    human = _lines(compared, found, document, places)
    return written.answer(document, human, as_json=json, status=status)


def _methods(text: str) -> list[str]:
    """Raises: ConfigError for an option that names none, as `,` does."""
    found = options.parts(text)
    if text and not found:
        raise ConfigError(f"--methods {text}: methods are needed, as in patchcore,padim")
    return found


def _sizes(text: str) -> list[tuple[int, int]]:
    """Raises: ConfigError."""
    found = []
    for part in options.parts(text):
        size = (int(part), int(part)) if part.isdecimal() else height_width(part)
        if size is None or not all(1 <= side <= options.LARGEST_SIDE for side in size):
            raise ConfigError(
                f"--resolutions {text}: sizes of 1 to {options.LARGEST_SIDE} pixels are needed, as "
                "in 224,448 or 224x448"
            )
        found.append(size)
    return found


def _lines(
    compared: Compared,
    found: Findings,
    document: Mapping[str, Any],
    places: Mapping[str, Path],
) -> Iterable[str | Table]:
    from blemish.bench.choosing import findings as found_of
    from blemish.bench.choosing import reporting

    counts = document["counts"]
    yield f"Recognised: {compared.good}"
    labelled = pluralize(counts["labelled"], "labelled defect")
    yield (
        f"Pictures: {counts['learned']} learned from, {counts['left_out']} left out, with "
        f"{counts['generated']} generated defects; {labelled}"
    )
    yield from words.broken(document["failures"])
    if found.standings:
        yield console.table(found_of.HEAD, found_of.table(found), right=found_of.HEAD[2:])
    for one in document["failed"]:
        yield f"Failed: {one['label']}: {one['error']}"
    yield reporting.verdict(found)
    yield from _indented([*document["reasons"], document["sure"], *reporting.checked(found)])
    yield from words.notices(found.notes)
    yield from words.written({name: str(place) for name, place in places.items()})
    if found.command:
        yield f"Next: {found.command}"


def _indented(sentences: Sequence[str]) -> Iterable[str]:
    return (f"  {sentence}" for sentence in sentences if sentence)

"""watch: scores what arrives in a folder or comes from a camera, until it is told to stop."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, cast

from typer import Argument, Option

from blemish import interrupts
from blemish.cli import console, options, words
from blemish.cli.options import Device, Json, OverlaySize, Precision, Scales, SmallestRegion
from blemish.cli.predict import ByHand, Category, RegionByHand, by_hand, check_regions, saved_by
from blemish.cli.status import BROKEN_PICTURES, BY_SIGNAL, WELL
from blemish.cli.writing import Writing
from blemish.config import Range
from blemish.errors import ConfigError, unknown_name

if TYPE_CHECKING:
    from blemish.data.arrivals import Arrivals
    from blemish.data.frames import Stream
    from blemish.detector.predict import Detector
    from blemish.report.ledger import Ledger
    from blemish.report.sorting import Sorter, Way
    from blemish.report.watching import Tally, Watch

_WAYS = ("move", "copy", "link")
_PATIENCE = 10.0  # seconds for a file that cannot be decoded

Source = Annotated[
    str,
    Argument(
        metavar="SOURCE",
        help="A folder that grows; a camera, by its URL (rtsp://…) or number; or a video file.",
        show_default=False,
    ),
]
Detecting = Annotated[
    Path, Argument(metavar="ARTIFACT", help="A file that `blemish fit`, or `export`, has written.")
]
WatchFolder = Annotated[
    Path,
    Option(
        metavar="DIR",
        help="Folder for predictions.jsonl, a row for each picture as it is scored. The same "
        "command goes on from there: nothing is scored twice.",
    ),
]
Sort = Annotated[
    str | None,
    Option(
        metavar="move|copy|link",
        help="Put each picture into good/, defect/ or unsure/ in DIR: moved, copied, or as a "
        "symbolic link. No file is overwritten. Frames of a camera or a video are written as PNG "
        "(copy).",
    ),
]
Kept = Annotated[
    str | None,
    Option(
        metavar="LIST",
        help="What is kept of each picture in DIR, as of `blemish predict`: overlays, masks, maps "
        "(.npy) and tiff, as in masks,overlays. [default: nothing]",
    ),
]
Margin = Annotated[
    float,
    Option(
        metavar="SCORE",
        callback=options.in_range(Range(0)),
        help="Unsure is what scores within so much of the threshold, on both sides, and what "
        "cannot be read.",
    ),
]
Once = Annotated[bool, Option("--once", help="End when nothing is left, rather than wait.")]
Every = Annotated[
    float,
    Option(
        metavar="SECONDS",
        callback=options.in_range(options.SECONDS),
        help="From one frame of a camera to the next, at least.",
    ),
]
Interval = Annotated[
    float,
    Option(
        metavar="SECONDS",
        callback=options.in_range(Range(0, above=True)),
        help="From one look at the folder to the next.",
    ),
]
Settle = Annotated[
    float,
    Option(
        metavar="SECONDS",
        callback=options.in_range(options.SECONDS),
        help="For which a new file must not have changed to be taken.",
    ),
]
Patience = Annotated[
    float | None,
    Option(
        metavar="SECONDS",
        callback=options.in_range(options.SECONDS),
        help="For which a new file that cannot be decoded is tried again, or a camera that is gone "
        "is waited for. [default: 10 for a file, 300 for a camera]",
    ),
]
BatchSize = Annotated[
    int | None,
    Option(min=1, max=options.MOST_AT_ONCE, help="Pictures at once. [default: 8; 1 for a camera]"),
]


def watch(
    source: Source,
    artifact: Detecting,
    output: WatchFolder,
    sort: Sort = None,
    margin: Margin = 0.0,
    save: Kept = None,
    category: Category = "",
    threshold: ByHand = None,
    region_threshold: RegionByHand = None,
    smallest_region: SmallestRegion = None,
    roi: options.OnlyThere = None,
    ignore: options.NotThere = None,
    overlay_size: OverlaySize = None,
    scales: Scales = None,
    once: Once = False,
    every: Every = 0.0,
    interval: Interval = 1.0,
    settle: Settle = 1.0,
    patience: Patience = None,
    device: Device = "auto",
    precision: Precision = "auto",
    engine: options.Engine = "auto",
    threads: options.Threads = None,
    batch_size: BatchSize = None,
    json: Json = False,
) -> int:
    """Score what arrives in a folder, or what a camera gives, until Ctrl-C."""
    from blemish.report.ledger import Ledger
    from blemish.report.watching import Watch

    _check(artifact, sort=sort, margin=margin)
    saved, side = _saved(save, output, overlay_size), options.overlay_side(overlay_size, output)
    coming = _coming(source, output, settle=settle, patience=patience, every=every, once=once)
    sorter = _sorter(coming, sort, output)
    detector = options.loaded(**options.taken_by(options.loaded, locals()))
    detector = by_hand(detector, threshold, region_threshold, smallest_region)
    detector, area = options.within(detector, roi, ignore)
    check_regions(["--save masks"] * ("masks" in saved), detector, artifact, category)
    _check_threshold(detector, category, sort)
    ways = _ways(category=category, adapt=None, scales=scales, threshold=threshold, area=area,
                 region_threshold=region_threshold, smallest_region=smallest_region,
                 watched=coming.identity)  # fmt: skip
    with (
        Ledger(output, artifact=artifact, precision=detector.precision, ways=ways) as ledger,
        console.progress() as progress,
        interrupts.waiting(words="stopping after the pictures at hand") as came,
    ):
        one = Watch(detector, ledger, came, sorter=sorter, margin=margin, progress=progress,
                    saved=saved, side=side, category=category,
                    batch_size=batch_size or coming.batch_size)  # fmt: skip
        progress(f"watching · {coming.name}", 0, 0)
        written = Writing()
        with written.tried("once there is room, the same command goes on from here"):
            if coming.arrivals is not None:
                coming.arrivals.taken = ledger.taken
                one.folder(coming.arrivals, once=once, interval=interval)
            elif coming.stream is not None:
                _look_at(one, coming.stream, every, patience)
    return _tell(one.tally, ledger, artifact, coming, written, came.number, as_json=json)


def _look_at(one: Watch, stream: Stream, every: float, patience: float | None) -> None:
    """Score the frames of a stream, as `blemish.frames` gives them."""
    from blemish.data.frames import PATIENCE, frames_of

    patience = PATIENCE if patience is None else patience
    shown = frames_of(stream, every=every, patience=patience, note=_note, stop=one.stop)
    one.stream(shown, live=stream.live)


def _ways(**given: object) -> dict[str, str]:
    """How pictures are scored, for the ledger: "" for what is not given."""
    return {name: "" if value is None else str(value) for name, value in given.items()}


def _saved(save: str | None, output: Path, overlay_size: str | None) -> tuple[str, ...]:
    """As `saved_by`; nothing where nothing is asked for."""
    saved = saved_by(save, output, overlay_size) if save is not None else ()
    if overlay_size is not None and not saved:
        raise ConfigError("--overlay-size: no overlays are asked for; --save overlays does")
    return saved


@dataclass(frozen=True)
class _Coming:
    """What is watched: a folder or a stream.

    Attributes:
        name: as it is shown. identity: what tells it from another one.
    """

    name: str
    identity: str
    arrivals: Arrivals | None = None
    stream: Stream | None = None

    @property
    def batch_size(self) -> int | None:
        return 1 if self.stream is not None and self.stream.live else None


def _coming(
    source: str,
    output: Path,
    *,
    settle: float,
    patience: float | None,
    every: float,
    once: bool,
) -> _Coming:
    """Raises: DataError, ConfigError."""
    from blemish.data.arrivals import Arrivals, Stamp
    from blemish.data.folder import is_folder, place_of
    from blemish.data.frames import opened

    path = Path(source)
    if is_folder(path):
        if every:
            raise ConfigError("--every is for cameras and videos; --interval is for folders")
        _check_apart(path, output)
        arrivals = Arrivals(
            path,
            leave_out=(output,),
            settle=settle,
            patience=_PATIENCE if patience is None else patience,
            note=_note,
        )
        return _Coming(source, str(arrivals.folder), arrivals=arrivals)
    is_number = source.isdecimal() and not path.exists()
    stream = opened(int(source) if is_number else source)
    if stream.file is None:
        if once and stream.live:
            stream.close()
            raise ConfigError("--once: a camera has no end; leave it out, and end with Ctrl-C")
        return _Coming(stream.name, stream.name, stream=stream)
    place, stamp = place_of(stream.file), Stamp.of(stream.file)
    stream.name = place  # rows name files by their whole path
    return _Coming(source, f"{place} {stamp.size} {stamp.written}", stream=stream)


def _note(message: str) -> None:
    console.complain(f"blemish: {message}")


def _check(artifact: Path, *, sort: str | None, margin: float) -> None:
    """Raises: ConfigError."""
    if artifact.is_dir():
        raise ConfigError(
            f"{artifact}: is a folder; the artifact comes second: blemish watch SOURCE ARTIFACT"
        )
    if sort is not None and sort not in _WAYS:
        raise unknown_name("way of --sort", sort, _WAYS)
    if not 0 <= margin < float("inf"):
        raise ConfigError(f"--margin {margin}: a number >= 0 is needed, in the unit of the score")


def _check_apart(folder: Path, output: Path) -> None:
    """Raises: ConfigError where the results would lie among what is watched, or the reverse."""
    from blemish.report.sorting import VERDICTS

    own = (*VERDICTS, "overlays", "masks", "maps")
    watched, results = folder.resolve(), output.resolve()
    if watched == results:
        raise ConfigError(f"--output {output}: is the folder that is watched; name another one")
    if any(watched.is_relative_to(results / name) for name in own):
        raise ConfigError(
            f"{folder}: lies among the sorted pictures or results of --output {output}; name "
            "another one"
        )


def _sorter(coming: _Coming, sort: str | None, output: Path) -> Sorter | None:
    """Raises: ConfigError."""
    from blemish.report.sorting import Sorter

    if sort is None:
        return None
    if coming.arrivals is None and sort != "copy":
        raise ConfigError(
            f"--sort {sort}: frames are no files; --sort copy writes them as PNG files"
        )
    within = Path() if coming.arrivals is None else coming.arrivals.folder
    return Sorter(output, cast("Way", sort), within)


def _check_threshold(detector: Detector, category: str, sort: str | None) -> None:
    """Raises: ConfigError."""
    limit = detector.threshold_for(category)
    if sort is not None and (limit is None or limit.value is None):
        raise ConfigError(
            "--sort: the artifact has no threshold; `blemish calibrate` sets one, or --threshold "
            "SCORE"
        )


def _tell(
    tally: Tally,
    ledger: Ledger,
    artifact: Path,
    coming: _Coming,
    written: Writing,
    signal: int,
    *,
    as_json: bool,
) -> int:
    """Answer with what came; gives the exit status."""
    places = words.places(output=ledger.folder)
    document = {
        "artifact": str(artifact),
        "source": coming.name,
        **places,
        "earlier": ledger.count,
        "scored": tally.scored,
        "alarms": tally.alarms,
        "failed": tally.failed,
        "verdicts": dict(tally.verdicts),
        "interrupted": bool(signal),
    }
    earlier = f"; {ledger.count} earlier" if ledger.count else ""
    human = [f"{tally}{earlier}", *words.written(places)]
    status = BROKEN_PICTURES if tally.failed else WELL
    status = written.answer(document, human, as_json=as_json, status=status)
    if signal:
        console.complain("blemish: interrupted; the same command goes on from here")
        return BY_SIGNAL + signal
    return status

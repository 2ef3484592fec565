"""--group-by: the verdicts on parts of several views, as `blemish predict` writes and prints
them.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from typer import Option

from blemish.cli import words
from blemish.cli.console import table
from blemish.files import write_whole
from blemish.text import listed, pluralize, printable
from blemish.types import ANOMALOUS, NORMAL, Failure

if TYPE_CHECKING:
    from rich.table import Table

    from blemish.detector.grouping import Grouping
    from blemish.detector.parts import Verdicts
    from blemish.detector.predict import Detector
    from blemish.report.journal import Journal

_SHOWN = 20
_VERDICTS = {NORMAL: "normal", ANOMALOUS: "alarm", None: "–"}
_RULES = {
    "parts": "at the threshold of whole parts",
    "Bonferroni": "at the thresholds of pictures for the rate / views (Bonferroni)",
    "by hand": "at the threshold of pictures, set by hand",
    "labelled defects": "at the threshold of pictures, from labelled defects",
}

GroupBy = Annotated[
    str | None,
    Option(
        "--group-by",
        metavar="HOW",
        help="Judge parts of several views, too: the regular expression that finds a part's name "
        r"in the paths of its pictures, by its one group or as a whole, as in 'part(\d+)_'; or the "
        "column that names it in a table of the pictures, as in views.csv:part.",
    ),
]
GroupGoodBy = Annotated[
    str | None,
    Option(
        "--group-by",
        metavar="HOW",
        help="Set a threshold of parts of several views, too, each of which counts once: the "
        "regular expression that finds a part's name in the paths of its pictures, by its one "
        r"group or as a whole, as in 'part(\d+)_'; or the column that names it in a table of the "
        "pictures, as in views.csv:part.",
    ),
]


@dataclass(frozen=True)
class Told:
    """What a command says of parts; nothing where it was not asked to group.

    Attributes:
        document: for the JSON document. human: the lines.
        at_fault: whether there are pictures of no part.
        worst_first: the verdicts, for a report.
    """

    document: Mapping[str, Any]
    human: Sequence[str | Table]
    at_fault: bool = False
    worst_first: Sequence[Mapping[str, Any]] = ()

    def write(self, folder: Path | None) -> None:
        """The verdicts as parts.jsonl, where there is a folder and were parts.

        Raises: OutputError.
        """
        if folder is not None and "parts" in self.document:
            lines = (json.dumps(row, allow_nan=False).encode() for row in self.document["parts"])
            write_whole(folder / "parts.jsonl", b"".join(line + b"\n" for line in lines))


def check(group_by: str | None, pictures: Iterable[Path]) -> Grouping | None:
    """How parts are told, read before any work. Raises: as `detector.parts.judge`."""
    if group_by is None:
        return None
    from blemish.detector.grouping import checked

    return checked(group_by, [str(picture) for picture in pictures])


def told(
    group_by: Grouping | None, journal: Journal, detector: Detector, pictures: Iterable[Path]
) -> Told:
    """The verdicts on parts.

    Args: pictures: all that were asked for: those not scored yet are views that are missing.
    """
    if group_by is None:
        return Told({}, ())
    from blemish.data.folder import place_of
    from blemish.detector.parts import judge

    done = {place_of(Path(row["path"])) for row in journal.rows}
    waiting = [one for one in pictures if place_of(one) not in done]
    missing = [Failure(source=str(one), reason="not scored yet") for one in waiting]
    verdicts = judge(detector, [*journal.rows, *(one.to_dict() for one in missing)], group_by)
    rows = [one.to_dict() for one in verdicts.parts]
    document = {"parts": rows, "ungrouped": list(verdicts.ungrouped)}
    human = tuple(part_lines(verdicts, detector, group_by))
    worst_first = [one.to_dict() for one in verdicts.worst_first]
    return Told(document, human, bool(verdicts.ungrouped), worst_first)


def part_lines(verdicts: Verdicts, detector: Detector, group_by: Grouping) -> Iterator[str | Table]:
    """Verdicts on parts: alarms first, then those without, the first of many; and how many."""
    parts = verdicts.worst_first
    rows = [
        (
            "–" if one.score is None else f"{one.score:.4f}",
            _VERDICTS[one.label],
            str(len(one.views)),
            printable(one.part),
            printable(one.worst or "–"),
        )
        for one in parts[:_SHOWN]
    ]
    yield table(("score", "verdict", "views", "part", "worst view"), rows, right=("score", "views"))
    if len(parts) > _SHOWN:
        yield f"… the first {_SHOWN} of {len(parts)} parts"
    known = detector.record.parts
    if known is not None and known.pattern != group_by.pattern:
        yield from words.notices(
            [f"parts were calibrated on by another --group-by {known.pattern}"]
        )
    yield from _reasons([one.reason for one in parts if one.reason], "no verdict on")
    yield from _reasons([note for one in parts for note in one.notes], "note on")
    if verdicts.ungrouped:
        number = pluralize(len(verdicts.ungrouped), "picture is", "pictures are")
        which = listed(verdicts.ungrouped)
        yield from words.notices([f"{number} of no part, and judged alone: {which}"])
    rules = sorted({_RULES[one.rule] for one in parts if one.rule in _RULES})
    labels = [one.label for one in parts]
    alarms, normal, none = (labels.count(each) for each in (ANOMALOUS, NORMAL, None))
    without = f"; {none} without a verdict" if none else ""
    at = f" {' and '.join(rules)}" if rules else ""
    judged = f"{pluralize(alarms, 'alarm')}, {normal} normal{at}{without}"
    yield f"{pluralize(len(parts), 'part')}: {judged}"


def _reasons(sentences: Sequence[str], what: str) -> Iterator[str]:
    """A line for each different sentence, the first few, and of how many parts it is."""
    counts = Counter(sentences)
    for sentence, count in counts.most_common(5):
        yield printable(f"  {what} {pluralize(count, 'part')}: {sentence}")
    if len(counts) > 5:
        yield f"  … and {len(counts) - 5} other reasons, all of them listed by --json"

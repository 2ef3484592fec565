"""data check, layouts, elpv, synthetic: what looks at data sets or writes one, and its words."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from typer import Argument, Option, Typer

from blemish.cli import console, words
from blemish.cli.console import facts
from blemish.cli.guarding import guarded
from blemish.cli.options import Json
from blemish.cli.status import BROKEN_PICTURES, EXIT_STATUS, WELL
from blemish.text import pluralize

if TYPE_CHECKING:
    from rich.table import Table

    from blemish.data.checking import Check
    from blemish.data.layouts import Official


def check(
    path: Annotated[Path, Argument(metavar="PATH", help="A folder, a table or a picture.")],
    json: Json = False,
) -> int:
    """Say what a data set is recognised as, and decode every picture to find what is wrong."""
    from blemish.data.checking import check as examine

    with console.progress() as progress:
        found = examine(path, progress=lambda done, total: progress("decoding", done, total))
    console.answer(found.to_dict(), check_lines(found), as_json=json)
    return WELL if found.ok else BROKEN_PICTURES


def check_lines(found: Check) -> Iterable[str]:
    """What `blemish data check` has found."""
    yield found.dataset.description
    sizes = [f"{number} of {height}×{width}" for (height, width), number in found.sizes.items()]
    yield f"Sizes (height×width): {', '.join(sizes[:5]) or 'none'}{', …' if len(sizes) > 5 else ''}"
    for place in found.dataset.mask_places:
        others = {" of good ones": place.of_good, " without a picture": len(place.unpaired)}
        more = "".join(f", {number}{what}" for what, number in others.items() if number)
        yield f"Masks in {place.place}: {place.paired} of defective pictures{more}"
    yield from words.notices(found.dataset.problems)
    for what, groups in (
        ("same pixels", found.duplicates),
        ("same pixels, called good and defective", found.contradictions),
        ("leak, same pixels in train and test", found.leaks),
    ):
        yield from (f"  {what}: {', '.join(group)}" for group in groups)
    yield from words.broken([failure.to_dict() for failure in found.broken])
    yield from words.broken([failure.to_dict() for failure in found.mask_faults], "mask at fault")
    yield "Nothing is wrong." if found.ok else "Something is wrong."


def layouts(json: Json = False) -> int:
    """Say of each public data set where to get it, its licence, its split, and the folders it is
    expected in."""
    from blemish.data.layouts import OFFICIAL, TREES

    sets = list(OFFICIAL.values())
    described = [
        *layouts_lines(sets),
        f"Every layout that is read, for pictures of your own too:\n\n{TREES}",
    ]
    console.answer([one.to_dict() for one in sets], described, as_json=json)
    return WELL


def layouts_lines(sets: Iterable[Official]) -> Iterable[str | Table]:
    """Where to get each public data set, what is in it, and the folders it is expected in."""
    for one in sets:
        yield f"{one.title} ({one.name})"
        each = [
            f"{category} {counts.train}/{counts.test_normal}/{counts.test_anomalous}"
            for category, counts in one.categories.items()
        ]
        total = one.total
        yield facts(
            [
                ("  by", one.reference),
                ("  from", one.source),
                ("  licence", one.licence),
                ("  split", one.split),
                (
                    "  pictures",
                    f"{total.train} train, test {total.test_normal} good and "
                    f"{total.test_anomalous} defective",
                ),
                *([("  categories", ", ".join(each))] if len(each) > 1 else []),
                ("  folders", one.tree),
                ("  found as", ", ".join(f"{folder}/" for folder in one.folders)),
            ]
        )


ElpvTable = Annotated[
    Path, Option("--output", "-o", metavar="FILE.csv", help="The table to write.")
]
Cells = Annotated[
    int | None,
    Option(
        min=1,
        metavar="N",
        help="Only N cells to learn from and N to test on, half of them defective. "
        "[default: 1,131 and 1,092]",
    ),
]


def elpv(
    output: ElpvTable,
    seed: Annotated[int, Option(min=0, max=2**63 - 1, help="Of the draw of the cells.")] = 0,
    cells: Cells = None,
    json: Json = False,
) -> int:
    """Write the table of the demo set: solar cells of ELPV, from the package elpv-dataset
    (CC BY-NC-SA 4.0)."""
    from blemish.data.layouts import read
    from blemish.data.layouts.elpv import write_elpv_table

    written = write_elpv_table(output, seed, cells)
    description = read(written).description
    document = {"manifest": str(written), "description": description, "seed": seed, "cells": cells}
    human = [description]
    if cells is not None:
        times = (1131 + 1092) / (2 * cells)
        human.append(
            f"These are {cells} of the 1,131 cells to learn from and {cells} of the 1,092 to test "
            "on; with all of them (leave --cells out) whatever follows takes about "
            f"{times:.2g} times as long"
        )
    console.answer(document, [*human, f"Written: {written}"], as_json=json)
    return WELL


def synthetic(
    output: Annotated[Path, Argument(metavar="OUT", help="Folder for the data set: a new one.")],
    count: Annotated[
        int,
        Option(
            min=1, max=100_000, help="Good pictures to learn from; half as many more to test on."
        ),
    ] = 60,
    defects: Annotated[
        int, Option(min=1, max=100_000, help="Pictures of each kind of defect.")
    ] = 8,
    seed: Annotated[int, Option(min=0, max=2**63 - 1, help="Of the drawing.")] = 0,
    size: Annotated[
        int, Option(min=64, max=2048, metavar="PIXELS", help="Side of the square pictures.")
    ] = 256,
    json: Json = False,
) -> int:
    """Draw a data set: a turned flange on a belt, good and with five kinds of defects, with exact
    masks. No photograph, nobody's licence; the same seed gives the same pixels everywhere."""
    from blemish.data.synthetic import write_synthetic

    with console.progress() as progress:
        made = write_synthetic(
            output, count=count, defects=defects, seed=seed, size=size, progress=progress
        )
    told = ", ".join(f"{number} {kind}" for kind, number in made.defects.items())
    lines = [
        f"{pluralize(made.train, 'good picture')} to learn from; to test on {made.good} good, "
        f"{told}",
        f"Written: {made.folder}",
    ]
    console.answer(made.to_dict(), lines, as_json=json)
    return WELL


app = Typer(help="Look at data sets, write the demo's table, or draw one.", rich_markup_mode=None)
app.command("check", epilog=EXIT_STATUS)(guarded(check))
app.command("layouts")(guarded(layouts))
app.command("elpv")(guarded(elpv))
app.command("synthetic")(guarded(synthetic))

"""How it compares with other tools."""

from __future__ import annotations

from collections.abc import Sequence

from blemish.bench.results import Sheet
from blemish.bench.results.overview import commits, device
from blemish.bench.results.sheets import figure
from questions.question import NOTHING, Measured, Question, Row, latest, sections

OURS = "blemish"
ABOVE = """\
The same pictures on the same machine, in turns. "equal" has the other's size of bank, "default" is
as it comes. `-unproved` is what no user gets: blemish refuses an export whose scores move too far.
A bottle is easy: this shows speed rather than quality."""


def rivals(measured: Measured) -> list[Row]:
    keys = ("data", "model", "image_size", "by", "variant", "engine", "threads", "batch")
    found = latest(measured.having("by", "model", "engine"), *keys)
    order = ("data", "model", "image_size", "by", "variant", "engine")
    return sorted(found, key=lambda row: tuple(str(row.get(key)) for key in order))


def answer(measured: Measured) -> str:
    rows = [row for row in rivals(measured) if not row["engine"].endswith("-unproved")]
    told: list[str] = []
    for case in dict.fromkeys((row["data"], row["model"], row["image_size"]) for row in rows):
        of = [row for row in rows if (row["data"], row["model"], row["image_size"]) == case]
        ours, theirs = ([row for row in of if (row["by"] == OURS) is own] for own in (True, False))
        if ours and theirs:
            data, model, size = case
            told.append(f"{model} on {data} at {size}²: {best(ours)} against {best(theirs)}")
    if not told:
        return NOTHING
    return f"The fastest of ours against the fastest of theirs: {'; '.join(told)}."


def best(rows: Sequence[Row]) -> str:
    row = max(rows, key=lambda row: row["images_per_second"])
    name = OURS if row["by"] == OURS else f"{row['by']} {row['versions'][row['by']]}"
    return (
        f"{row['images_per_second']:.1f} images/s ({name}, {row['engine']}, image AUROC "
        f"{100 * row['image_auroc']:.1f})"
    )


def parts(measured: Measured) -> list[str]:
    lines = [
        (
            *(row["data"], row["model"], f"{row['image_size']}²"),
            OURS if row["by"] == OURS else f"{row['by']} {row['versions'][row['by']]}",
            *(row.get("variant", "as it comes"), row["engine"], "×".join(map(str, row["bank"]))),
            *(figure([row[key]], digits=1) for key in ("images_per_second", "p50_ms")),
            figure([row["image_auroc"]], 100),
            figure([row["file_mib"]], digits=0),
            *(commits([row]), device(row)),
        )
        for row in rivals(measured)
    ]
    columns = (
        *("Data", "Method", "Size", "By", "Variant", "Engine", "Bank", "Images/s", "p50 (ms)"),
        *("I", "File (MiB)", "Commit", "Device"),
    )
    title = "Side by side (`rivals.py`, `rival_anomalib.py`)"
    sheet = Sheet(title=title, above=ABOVE, columns=columns, lines=tuple(lines))
    return sections(sheet) if lines else []


PEERS = Question("peers", "How does it compare with other tools?", answer, parts)

"""Whether the service keeps up and loses nothing."""

from __future__ import annotations

from blemish.bench.results import Sheet
from blemish.bench.results.overview import commits, device
from blemish.bench.results.sheets import figure
from questions.question import NOTHING, Measured, Question, latest, sections

ANSWERS = """\
Clients send one picture after the other, all at once; every answer is compared with `predict`'s.
Wrong: another digest, verdict or region, or another score. Lost: no answer. Of `predict`:
throughput divided by that of `predict` in turns on the same cores, by the clock and by processor
time. p95: of an answer, divided by the time of a full batch. Memory: of the process, the mean over
the first and the last third, and the most."""
PAGES = """\
From the request to the last byte, in seconds: the first answer after a start (median and longest of
the starts), and later ones."""


def answer(measured: Measured) -> str:
    rows = measured.having("answers", "clients")
    if not rows:
        return NOTHING
    answers, wrong, lost = (sum(row[key] for row in rows) for key in ("answers", "wrong", "lost"))
    kept = [row["processor_ratio"] for row in rows]
    return (
        f"Of {answers:,} answers {wrong} were wrong and {lost} lost, at {min(kept):.2f} to "
        f"{max(kept):.2f} of the throughput of `predict` by processor time."
    )


def parts(measured: Measured) -> list[str]:
    return [*answered(measured), *waited(measured)]


def answered(measured: Measured) -> list[str]:
    """Under load (`serving.py`)."""
    rows = sorted(measured.having("answers", "clients"), key=lambda row: row["date"])
    lines = [
        (
            *(row["method"], row["backbone"], f"{row['image_size']}²", row["data"] or "made"),
            *("yes" if row["store"] else "no", str(row["clients"]), f"{row['seconds']:.0f}"),
            *(f"{row[key]:,}" for key in ("answers", "wrong", "lost")),
            figure([row["images_per_second"]], digits=1),
            *(figure([row[f"{of}_ratio"]], digits=2) for of in ("throughput", "processor", "p95")),
            *(f"{row['memory_mib'][key]:,.0f}" for key in ("first_third", "last_third", "most")),
            *(commits([row]), device(row)),
        )
        for row in rows
    ]
    columns = (
        *("Method", "Backbone", "Size", "Pictures", "With a store", "Clients", "Seconds"),
        *("Answers", "Wrong", "Lost", "Images/s", "Of `predict`", "By processor time", "p95"),
        *("Memory first (MiB)", "Last (MiB)", "Most (MiB)", "Commit", "Device"),
    )
    title = "Under load (`serving.py`)"
    sheet = Sheet(title=title, above=ANSWERS, columns=columns, lines=tuple(lines))
    return sections(sheet) if lines else []


def waited(measured: Measured) -> list[str]:
    """For the pages of a service that has kept much (`review_pages.py`)."""
    rows = latest(measured.having("predictions", "labels", "starts"), "predictions", "labels")
    lines = [
        (
            *(f"{row['predictions']:,}", f"{row['labels']:,}", name),
            *(f"{of[key]:.3f}" for key in ("first", "first_most", "warm", "warm_most")),
            *(commits([row]), device(row)),
        )
        for row in rows
        for name, of in row["seconds"].items()
        if "first" in of
    ]
    columns = (
        *("Predictions kept", "Reviewed", "Page", "First", "Longest first", "Later"),
        *("Longest later", "Commit", "Device"),
    )
    title = "Pages of a service that has kept much (`review_pages.py`)"
    sheet = Sheet(title=title, above=PAGES, columns=columns, lines=tuple(lines))
    return sections(sheet) if lines else []


SERVICE = Question("service", "Does the service keep up, and lose nothing?", answer, parts)

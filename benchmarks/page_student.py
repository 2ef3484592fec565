"""The table of docs/results.md on students of a backbone; `page.py` calls it."""

from __future__ import annotations

from collections.abc import Iterable

from page_regions import Row, newest

from blemish.bench.results import Sheet
from blemish.bench.results.overview import commits, device
from blemish.bench.results.sheets import NONE, figure

STUDENTS = """\
The same method on a backbone, and on a student of it that was distilled on the same good pictures.
Agreement: with its teacher, on good pictures that it has not learned, as they are and with
synthetic anomalies; 1 = the same. Alarms: good test pictures above the threshold, which both set to
5 % by leave-one-out. Processor time of a picture: from files to predictions, and of the encoder
alone; ×: the ratio to the teacher in the same run. Few pictures: no ranking."""


def students(rows: Iterable[Row]) -> Sheet:
    """A student in place of its teacher (`student.py`)."""
    by = ("data", "method", "backbone", "size", "encoder", "precision", "train", "bad")
    found = newest(rows, by)
    found.sort(key=lambda row: (row["data"], row["method"], row["backbone"], row["size"]))
    lines = [
        (
            *(row["data"], f"{row['size']}²", row["encoder"]),
            f"{row['train']}, {row['good']} + {row['pictures'] - row['good']}",
            *(figure([row[key]], 100) for key in ("image_auroc", "pixel_auroc", "aupro")),
            f"{row['alarms_on_good']} of {row['good']}",
            *agreement(row),
            *(figure([row[key]], digits=0) for key in ("cpu_ms", "encoder_cpu_ms")),
            *(figure([row[key]], digits=2) for key in ("speed", "encoder_speed")),
            *(figure([row[key]], digits=1) for key in ("artifact_mib",)),
            figure([row["fit_seconds"]], digits=0),
            *(row["method"], row["backbone"], row["precision"], commits([row]), device(row)),
        )
        for row in found
    ]
    columns = (
        *("Data", "Input", "Encoder", "Learned from, tested on", "I", "P", "AUPRO", "Alarms"),
        *("Agreement", "On anomalies", "Picture (ms)", "Encoder (ms)", "×", "Encoder ×"),
        *("Artifact (MiB)", "Fit (s)", "Method", "Backbone", "Precision", "Commit", "Device"),
    )
    title = "Students in place of their teachers (`student.py`)"
    return Sheet(title=title, above=STUDENTS, columns=columns, lines=tuple(lines))


def agreement(row: Row) -> tuple[str, str]:
    """With its teacher, on good pictures and on anomalies in them."""
    if row["distilling"] is None:
        return NONE, NONE
    found = row["distilling"]["findings"]
    plain, spoilt = (figure([found[key]], digits=3) for key in sorted(found))
    return plain, spoilt

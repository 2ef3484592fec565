"""What a student, a closer second look and a smaller bank save, and what they lose."""

from __future__ import annotations

from blemish.bench.results import Sheet
from blemish.bench.results.overview import commits, device
from blemish.bench.results.sheets import NONE, figure
from questions.question import NOTHING, Measured, Question, Row, latest, sections

STUDENTS = """\
The same method on a backbone, and on a student of it that was distilled on the same good pictures.
Agreement: with its teacher, on good pictures that it has not learned, as they are and with
synthetic anomalies; 1 = the same. Alarms: good test pictures above the threshold, which both set to
5 % by leave-one-out. Processor time of a picture: from files to predictions, and of the encoder
alone; ×: the ratio to the teacher in the same run. Few pictures: no ranking."""
CLOSER = """\
One look at pictures of one size, "448", or a first one at small pictures and a second one at some
patches of large ones, "224+448". GFLOP: of scoring one picture. Images/s: from files to
predictions, in one process, in turn, on a machine that had more to do; ×: the ratio to the first
way. Planted: pieces of the part pasted into the background of good test pictures, squares of three
sizes. Raised: by a standard deviation of the good scores. Lost: raised by the first way, and by
this one neither raised nor looked at closely. Few pictures: no ranking."""
BANKS = """\
The whole bank (loss 0), and one that is searched in fewer dimensions and stored in half precision,
as far as scores and maps move by no more than the loss that was asked for, in standard deviations
of the good scores. ×: the speed beside the whole bank in the same engine, by processor time."""


def answer(measured: Measured) -> str:
    told: list[str] = []
    if distilled := [row for row in students(measured) if row["encoder"] == "student"]:
        told.append(f"a student scores {times(distilled)} as fast")
    looks = [row for row in closer(measured) if row["way"].endswith("+448")]
    if looks:
        told.append(f"two looks, the second at 448², are {times(looks)} as fast as one at 448²")
    if small := [row for row in banks(measured) if row["bank_loss"]]:
        told.append(f"a compressed bank scores {times(small)} as fast")
    if not told:
        return NOTHING
    return f"{'; '.join(told).capitalize()}; what each loses stands beside it."


def times(rows: list[Row]) -> str:
    speeds = [row["speed"] for row in rows]
    return f"{min(speeds):.2f} to {max(speeds):.2f} times"


def students(measured: Measured) -> list[Row]:
    by = ("data", "method", "backbone", "size", "encoder", "precision", "train", "bad")
    found = latest(measured.of("student"), *by)
    return sorted(found, key=lambda row: (row["data"], row["method"], row["backbone"], row["size"]))


def closer(measured: Measured) -> list[Row]:
    by = ("data", "method", "backbone", "way", "precision", "fitted", "pictures")
    found = latest(measured.of("closer"), *by)
    return sorted(
        found, key=lambda row: (row["data"], row["fitted"], row["method"], row["backbone"])
    )


def banks(measured: Measured) -> list[Row]:
    by = ("data", "image_size", "engine", "bank_loss", "method", "backbone")
    found = latest(measured.of("bank"), *by)
    return sorted(found, key=lambda row: tuple(map(row.get, by)))


def parts(measured: Measured) -> list[str]:
    return [*student_table(measured), *closer_table(measured), *bank_table(measured)]


def student_table(measured: Measured) -> list[str]:
    """A student in place of its teacher (`student.py`)."""
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
        for row in students(measured)
    ]
    columns = (
        *("Data", "Input", "Encoder", "Learned from, tested on", "I", "P", "AUPRO", "Alarms"),
        *("Agreement", "On anomalies", "Picture (ms)", "Encoder (ms)", "×", "Encoder ×"),
        *("Artifact (MiB)", "Fit (s)", "Method", "Backbone", "Precision", "Commit", "Device"),
    )
    title = "Students in place of their teachers (`student.py`)"
    sheet = Sheet(title=title, above=STUDENTS, columns=columns, lines=tuple(lines))
    return sections(sheet) if lines else []


def agreement(row: Row) -> tuple[str, str]:
    """With its teacher, on good pictures and on anomalies in them."""
    if row["distilling"] is None:
        return NONE, NONE
    found = row["distilling"]["findings"]
    plain, spoilt = (figure([found[key]], digits=3) for key in sorted(found))
    return plain, spoilt


def closer_table(measured: Measured) -> list[str]:
    """One look and two (`closer.py`)."""
    lines = [
        (
            *(row["data"], row["way"], figure([row["close_share"] or None], 100)),
            f"{row['fitted']}, {row['good']} + {row['pictures'] - row['good']}",
            *(figure([row[key]], 100) for key in ("image_auroc", "pixel_auroc", "aupro")),
            figure([row["flops"] / 1e9], digits=1),
            *(figure([row[key]], digits=2) for key in ("images_per_second", "speed")),
            figure([row["fit_seconds"]], digits=0),
            *(f"{planted(row, key)} of {planted(row, 'defects')}" for key in ("raised", "lost")),
            *(row["method"], row["backbone"], row["precision"], commits([row]), device(row)),
        )
        for row in closer(measured)
    ]
    columns = (
        *("Data", "Looks", "Looked at closely (%)", "Learned from, tested on", "I", "P", "AUPRO"),
        *("GFLOP", "Images/s", "×", "Fit (s)", "Planted: raised", "Planted: lost"),
        *("Method", "Backbone", "Precision", "Commit", "Device"),
    )
    title = "One look and two (`closer.py`)"
    sheet = Sheet(title=title, above=CLOSER, columns=columns, lines=tuple(lines))
    return sections(sheet) if lines else []


def planted(row: Row, key: str) -> int:
    """A count over the defects of all sizes."""
    return sum(of_size[key] for of_size in row["planted"].values())


def bank_table(measured: Measured) -> list[str]:
    """Whole and compressed banks (`bank.py`)."""
    lines = [
        (
            *(row["data"], f"{row['image_size']}²", row["engine"], f"{row['bank_loss']:g}"),
            searched(row),
            f"{row['train']}, {row['good']} + {row['bad']}",
            *(figure([row[key]], 100) for key in ("image_auroc", "pixel_auroc", "aupro")),
            figure([row["speed"]], digits=2),
            *(figure([row[key]], digits=0) for key in ("artifact_mib", "fit_processor_seconds")),
            *(row["method"], row["backbone"], commits([row]), device(row)),
        )
        for row in banks(measured)
    ]
    columns = (
        *("Data", "Size", "Engine", "Loss", "Searched in", "Learned from, tested on", "I", "P"),
        *("AUPRO", "×", "Artifact (MiB)", "Fit (s of the processor)", "Method", "Backbone"),
        *("Commit", "Device"),
    )
    title = "Smaller banks (`bank.py`)"
    sheet = Sheet(title=title, above=BANKS, columns=columns, lines=tuple(lines))
    return sections(sheet) if lines else []


def searched(row: Row) -> str:
    made = row["compression"]
    if made is None:
        return "all dimensions"
    return made["abstains"] or f"{made['dims']} of {made['width']} dimensions, {made['stored']}"


SAVING = Question(
    "saving", "What do a student, a second look and a smaller bank save?", answer, parts
)

"""Settings beside the recipes', and the papers' ablations."""

from __future__ import annotations

from collections.abc import Sequence

from blemish.bench import suites
from blemish.bench.results.sheets import figure
from questions.kinds import of_kind, rows_of
from questions.published import suite_section
from questions.question import NOTHING, Measured, Question, Row

ABOVE = """\
By data set, everything that was measured with other settings than a recipe's. A row with shifted
pictures stands under [another light](shift.md) as well."""
PRETRAINING = "apmask-ablations"


def answer(measured: Measured) -> str:
    noise = {
        way: [row for row in measured.good if row["label"] == f"noise: {way}, 2 epochs"]
        for way in ("attention", "none", "random")
    }
    if not all(noise.values()):
        return NOTHING
    first = noise["attention"][0]
    return (
        f"Noise where the encoder attends gains `agpnet` AUPRO and costs it image AUROC "
        f"({first['data']}, {first['training']['steps']:,} steps; AUPRO and image AUROC in %: "
        f"{'; '.join(f'{way} {both(rows)}' for way, rows in noise.items())}); the tables below "
        "have all settings that were tried beside a recipe."
    )


def both(rows: Sequence[Row]) -> str:
    """AUPRO and image AUROC over the seeds."""
    return " and ".join(
        figure([row[name] for row in rows], 100) for name in ("aupro", "image_auroc")
    )


def parts(measured: Measured) -> list[str]:
    names = [it for it in suites.names() if it.endswith("-ablations") and it != PRETRAINING]
    found = [suite_section(measured, name) for name in names]
    return [*filter(None, [*found, rows_of(measured, of_kind("settings"), "Rows", ABOVE)])]


SETTINGS = Question("settings", "What do other settings change?", answer, parts)

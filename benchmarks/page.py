"""docs/results.md and the table of README.md, from the rows in benchmarks/results.

    python benchmarks/page.py            # write it
    python benchmarks/page.py --check    # only say whether it is that; the tests do so

Rows are told by their form: those of `blemish bench`, of `weak.py`, of `probe.py`, of `regions.py`,
of `tiles.py`, of `student.py`, of `selection.py`, and of `speed.py`, `gpu.py` and
`metrics_speed.py`. Of rows that measure the same thing the newest good one counts. The same rows
give the same bytes, whatever the order of the files. What is said about the figures stands in
docs/findings.md, written by hand.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import re
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from page_closer import closer
from page_readme import with_measured
from page_regions import regions, tiles
from page_selection import selections
from page_student import students
from page_texts import BEYOND, MATRIX, PROBES, READING, WEAK

from blemish.bench import results, suites
from blemish.bench.results import Page, Row, Sheet
from blemish.bench.results.overview import alike, asked, backbone, commits, device, flags, size
from blemish.bench.results.overview import sheet as sheet_of
from blemish.bench.results.rows import departures, likeness, newest
from blemish.bench.results.sheets import NONE, figure

ROOT = Path(__file__).resolve().parents[1]
RESULTS, PAGE = ROOT / "benchmarks" / "results", ROOT / "docs" / "results.md"
README = ROOT / "README.md"
OUR_BACKBONE = "focus_vits14"
GAP = "not measured"
# `what` of rows with tables of their own.
NO_SPEEDS = ("closer", "probe", "regions", "student", "tiles")


@dataclass(frozen=True)
class Line:
    """A line of the coverage matrix: rows of `method` that have all of `settings` ("none" where the
    method has none such) and learned from so many defects."""

    label: str
    method: str
    settings: Mapping[str, str] = field(default_factory=dict)
    defects: int = 0

    def holds(self, row: Row) -> bool:
        if (row["method"], row["anomaly_count"] or 0) != (self.method, self.defects):
            return False
        return all(row["settings"].get(key, "none") == it for key, it in self.settings.items())


NETWORKS = {"ATAC-Net's network": "atacnet", "DevNet": "devnet", "CutMix classifier": "classifier"}
LINES = (
    *(Line(f"`{method}`", method) for method in ("knn", "patchcore", "padim", "spade")),
    Line("`guided`", "guided", {"pretraining": "none"}),
    Line("`guided` after APMask", "guided", {"pretraining": "apmask"}),
    Line("`agpnet`", "agpnet"),
    *(Line(f"`{method}`", method) for method in ("dinomaly", "vitad", "uniad", "efficientad")),
    *(Line(f"`{method}`", method) for method in ("simplenet", "rd4ad")),
    *(Line(f"`lda`, M = {count}", "lda", {}, count) for count in (0, 1, 10)),
    *(
        Line(f"{title}, M = {count}", "atacnet", {"network": network}, count)
        for title, network in NETWORKS.items()
        for count in (1, 10)
    ),
)
# Heading -> what rows may call the data set.
COLUMNS = {
    "bottle": ("bottle",),
    "screw": ("screw",),
    "magnetic tile": ("magnetic_tile",),
    "brain MRI": ("brain_mri",),
    "ELPV": ("elpv",),
    "NIH (part)": ("nih_chest_xray", "nih"),
}
# Heading of a table of speeds -> key of the row.
KEYS = {
    **{"Size": "size", "Precision": "precision", "Seconds": "seconds", "Pictures": "pictures"},
    **{"Method": "method", "Backbone": "backbone", "View": "view", "Batch": "batch"},
    **{"Images/s": "images_per_second", "To the last layer used": "images_per_second"},
    "All layers": "images_per_second_all_layers",
    **{"Leave-one-out calibration": "calibrate", "Bank": "bank", "Peak (MiB)": "peak_memory_mib"},
    **{"Maps": "maps", "Side": "side", "Masked": "mask_ratio", "Patches": "patches"},
    **{"Kept": "kept", "Time": "seconds_ratio", "Memory for the backward pass": "bytes_ratio"},
    **{"Cores used": "cores_used", "p50 (ms)": "latency_p50_ms", "p95 (ms)": "latency_p95_ms"},
    "Peak GPU (MiB)": "peak_gpu_memory_mib",
}


def keys(*headings: str) -> dict[str, str]:
    return {heading: KEYS[heading] for heading in headings}


SIDE = ("Size", "Precision")
DROPPING = ("View", "Precision", "Masked", "Patches", "Kept")
ON_GPU = ("Method", "Backbone", *SIDE)
# What `speed.py`, `gpu.py` and `metrics_speed.py` measure -> title, and heading -> key of the row.
SPEED: Mapping[str, tuple[str, Mapping[str, str]]] = {
    "backbone": (
        "The bare backbone, images/s",
        keys(*SIDE, "To the last layer used", "All layers"),
    ),
    "predict": ("`predict` with heatmaps at full size, images/s", keys(*SIDE, "Images/s")),
    "fit": (
        "Fit of PatchCore on bottle",
        keys("Size", "Leave-one-out calibration", "Pictures", "Bank", "Seconds"),
    ),
    "memory": (
        "Memory of a fit of PatchCore at 224², calibration included",
        {"Pictures": "count", **keys("Seconds", "Peak (MiB)")},
    ),
    "metrics": (
        "Pixel AUROC and AUPRO, exact",
        {**keys("Maps", "Side", "Seconds"), "Peak (MiB)": "peak_rss_mib"},
    ),
    "help": ("`blemish --help`", keys("Seconds")),
    "dropping": (
        "APMask's student forward and backward with patches dropped, as a share of the unmasked "
        "one",
        keys(*DROPPING, "Time", "Memory for the backward pass", "Cores used"),
    ),
    "score": (
        "Scoring on a GPU that does nothing else (`gpu.py`), decoding not included",
        keys(*ON_GPU, "Batch", "Images/s", "p50 (ms)", "p95 (ms)", "Peak GPU (MiB)"),
    ),
    "train": (
        "Training on a GPU that does nothing else (`gpu.py`): 80 steps, the slow first ones "
        "included",
        {**keys(*ON_GPU), "Pictures a step": "batch", "Pictures/s": "images_per_second"},
    ),
    "steps": (
        "A step of AGPNet's training beside its products of matrices alone (`steps.py`), in the "
        "processor's time",
        {
            **keys("Size", "Precision"),
            **{"FLOPs": "flops", "Step (ms)": "processor_ms", "Products (ms)": "products_ms"},
            **{"Share": "share", "Step before (ms)": "beside_processor_ms"},
            **{"Share before": "beside_share", "Before / now": "ratio"},
        },
    ),
    "scaling": (
        "Scoring on a cluster, simulated from measured times (`scaling.py`)",
        {
            **{"Method": "method", "Backbone": "backbone", "Size": "image_size"},
            **{"Workers": "workers", "Pictures/s": "pictures_per_second"},
            **{"Without Ray's own time": "without_ray", "Held up by": "holds_up"},
        },
    ),
    "in_parts": (
        "Learned in parts, and of all pictures at once (`in_parts.py`)",
        {
            **{"Data": "data", "Method": "method", "Learned of": "way", "Seed": "seed"},
            **{"Size": "image_size", "Bank": "bank_size", "Pictures": "train"},
            **{"Image AUROC": "image_auroc", "Pixel AUROC": "pixel_auroc", "AUPRO": "aupro"},
            **{"Processor (s)": "seconds"},
        },
    ),
}
CASE = [
    "what",
    "method",
    "batch",
    "size",
    "precision",
    "calibrate",
    "count",
    "maps",
    "side",
    "view",
    "mask_ratio",
    "views",
]


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--check",
        action="store_true",
        help="write nothing; fail where the page is not what rows make",
    )
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder of the rows")
    parser.add_argument("--output", type=Path, default=PAGE, help="the page")
    options = parser.parse_args(arguments)
    text = page({file.name: read(file) for file in sorted(options.results.glob("*.jsonl"))})
    made = {options.output: text}
    if options.output == PAGE:
        made[README] = with_measured(README.read_text(encoding="utf-8"), text)
    for file, content in made.items():
        if not options.check:
            file.write_text(content, encoding="utf-8")
        elif not file.exists() or file.read_text(encoding="utf-8") != content:
            sys.exit(
                f"{file}: is not what the rows make; write it anew with python benchmarks/page.py"
            )


def read(file: Path) -> list[Row]:
    rows: list[Row] = []
    for number, line in enumerate(file.read_text(encoding="utf-8").splitlines(), start=1):
        try:
            rows.append(json.loads(line))
        except ValueError:
            sys.exit(f"{file}, line {number}: is not a row; mend or remove it")
    return rows


def page(files: Mapping[str, Sequence[Row]]) -> str:
    """The whole page. `files`: name -> rows."""
    bench = {name: [row for row in rows if "schema" in row] for name, rows in sorted(files.items())}
    every = [row for rows in bench.values() for row in rows]
    lines = [row for _, rows in sorted(files.items()) for row in rows]
    others = [row for row in lines if not {"schema", "part"} & row.keys()]
    weak = latest((row for row in others if "draw" in row), lambda row: row["key"])
    probes = [row for row in others if row.get("what") == "probe"]
    marked = [row for row in others if row.get("what") == "regions"]
    tiled = [row for row in others if row.get("what") == "tiles"]
    looks = [row for row in others if row.get("what") == "closer"]
    selected = [row for row in others if "looked" in row]
    distilled = [row for row in others if row.get("what") == "student"]
    speeds = [row for row in others if row.get("what", "probe") not in NO_SPEEDS]
    cells = covered([*newest(every)[0], *weak])
    told, empty = suites_of(every)
    parts = [READING, coverage(cells), *told]
    parts += [
        section(f"Rows of `{name}`", results.page(rows)) for name, rows in bench.items() if rows
    ]
    parts += [
        part(rows) for part, rows in ((labelled, weak), (probed, probes), (timed, speeds)) if rows
    ]
    parts += [sections(regions(marked))] if marked else []
    parts += [sections(tiles(tiled))] if tiled else []
    parts += [sections(closer(looks))] if looks else []
    parts += [sections(students(distilled))] if distilled else []
    parts += [sections(selections(selected))] if selected else []
    if known := [row for row in every if row.get("efficiency")]:
        theirs = suites.read("agpnet").efficiency
        parts.append(section("Costs", results.efficiency_page(known, published=theirs)))
    return "\n\n".join([*parts, gaps(cells, empty)]) + "\n"


def section(title: str, content: Page) -> str:
    """Tables under a heading of their own."""
    text = re.sub("^## ", "### ", results.markdown(content).strip(), flags=re.MULTILINE)
    return f"## {title}\n\n{text}"


def sections(*sheets: Sheet) -> str:
    """Each table as a section."""
    return results.markdown(Page(sheets=sheets)).strip()


def latest(rows: Iterable[Row], what: Callable[[Row], Any]) -> list[Row]:
    """Of rows of the same `what` the last one of the newest."""
    by_date = sorted(rows, key=lambda row: row.get("date", ""))
    return list({what(row): row for row in by_date}.values())


Cells = dict[str, dict[str, list[Row]]]  # label of the line -> column -> rows of one setting


def covered(rows: Sequence[Row]) -> Cells:
    """For every cell of the matrix the rows of the setting nearest to the recipe; of equally near
    ones, of that with our backbone, the most seeds, the most pixels, the most steps."""

    def rank(group: Sequence[Row]) -> tuple[Any, ...]:
        row = group[-1]
        free = {"backbone", "image_size", "pretraining", "network"}
        changes = departures(row, row["recipe"]).keys() - free
        wishes = [row["recipe"] != "best", row["shots"] is not None]
        wishes.append(row["anomaly_type"] is not None)
        wishes.append(row.get("false_alarm_rate") is not None)
        height, width = row["resolution"]
        steps = (row["training"] or {}).get("steps", 0)
        nearest = len(changes) + sum(wishes), row["backbone"] != OUR_BACKBONE
        return (*nearest, -len(group), -height * width, -steps, likeness(row))

    cells: Cells = {line.label: {} for line in LINES}
    for line in LINES:
        for column, names in COLUMNS.items():
            groups: dict[str, list[Row]] = {}
            for row in sorted(rows, key=lambda row: (row["date"], row["seed"])):
                if line.holds(row) and row["data"] in names:
                    groups.setdefault(likeness(row), []).append(row)
            if groups:
                cells[line.label][column] = min(groups.values(), key=rank)
    return cells


def coverage(cells: Cells) -> str:
    """The matrix, and what each of its figures is of."""
    matrix = Sheet(
        title="What is measured",
        above=MATRIX,
        columns=("Method", *COLUMNS),
        lines=tuple(
            (label, *(cell(found.get(column, [])) for column in COLUMNS))
            for label, found in cells.items()
        ),
    )
    heads = ("Resolution", "Backbone", "Commit", "Device")
    lines = [
        (label, column, asked(rows[-1]), *sheet_of("", heads, [rows]).lines[0])
        for label, found in cells.items()
        for column, rows in found.items()
    ]
    title = "What each of these figures is of"
    return sections(
        matrix,
        Sheet(title=title, columns=("Method", "Data", "Settings", *heads), lines=tuple(lines)),
    )


def cell(rows: Sequence[Row]) -> str:
    if not rows:
        return GAP
    figures = [figure([row[name] for row in rows], 100) for name in ("image_auroc", "pixel_auroc")]
    shown = " / ".join(each for each in figures if each != NONE)
    return f"{shown} ({len(rows)}){''.join(flags(rows))}"


def suites_of(rows: Sequence[Row]) -> tuple[list[str], list[str]]:
    """The tables of the suites that hold a figure of ours, and the names of the others."""
    good = [row for row in rows if row["status"] == results.OK]
    # A threshold adds nothing to these tables, and may cost a fifth of the training pictures.
    good = [row for row in good if row.get("false_alarm_rate") is None]
    told: list[str] = []
    empty: list[str] = []
    for name in suites.names():
        suite = suites.read(name)
        sheets: list[Sheet] = []
        for part in suite.tables:
            # The main tables of papers are there without rows, too, but then nothing is said of
            # conditions.
            made = results.suite_page(good, suite.only([part.name])).sheets
            found = [sheet for sheet in made if sheet.footnotes or "Status" not in sheet.columns]
            sheets += found
            empty += [] if found else [f"`{name}` {part.name}"]
        if sheets:
            whole = results.suite_page(good, suite)
            whole = dataclasses.replace(whole, sheets=tuple(sheets), failed=())
            told.append(section(f"Suite `{name}`: {suite.title}", whole))
    return told, empty


def labelled(rows: Sequence[Row]) -> str:
    """Draws of labelled defects (`weak.py`)."""
    scores = ("image_auroc", "pixel_auroc", "aupro")
    ordered = sorted(
        rows, key=lambda row: (row["data"], row["label"], row["anomaly_count"], row["seed"])
    )
    lines = [
        (
            *(found[-1]["data"], size(found[-1]), str(found[-1]["anomaly_count"])),
            *(" ".join([found[-1]["label"] or "best", *flags(found)]), str(len(found))),
            *(figure([row[name] for row in found], 100) for name in scores),
            figure([min(row["image_auroc"] for row in found)], 100),
            *(commits(found), device(found[-1])),
        )
        for found in alike(ordered)
    ]
    columns = (
        *("Data", "Resolution", "M", "Settings", "Draws", "I", "P", "PRO", "Least I"),
        *("Commit", "Device"),
    )
    title = "Labelled defects (`weak.py`)"
    return sections(Sheet(title=title, above=WEAK, columns=columns, lines=tuple(lines)))


def probed(rows: Sequence[Row]) -> str:
    """Probes of frozen encoders (`probe.py`)."""

    def spread(row: Row, name: str) -> str:
        deviation = row[f"{name}_std"]
        mean = figure([row[name]], 100)
        return mean if deviation is None else f"{mean} ± {100 * deviation:.1f}"

    lines = [
        (
            *(row["data"], backbone(row), row["weights"]["source"], size(row)),
            *(figure([row["knn"]], 100), spread(row, "linear"), spread(row, "linear_kind")),
            *(str(row["seeds"]), commits([row])),
        )
        for row in latest(rows, lambda row: (row["data"], backbone(row), size(row)))
    ]
    columns = (
        *("Data", "Backbone", "Weights", "Resolution", "kNN", "Linear", "Kinds", "Folds drawn"),
        "Commit",
    )
    title = "Probes (`probe.py`)"
    return sections(Sheet(title=title, above=PROBES, columns=columns, lines=tuple(lines)))


def timed(rows: Sequence[Row]) -> str:
    """Speed and memory (`speed.py`, `gpu.py`, `metrics_speed.py`)."""
    found = latest(rows, case)
    sheets: list[Sheet] = []
    for what in dict.fromkeys([*SPEED, *(row["what"] for row in rows)]):
        if cases := [row for row in found if row["what"] == what]:
            about = ("what", "commit", "dirty", "device")
            other = {key: key for key in cases[-1] if key not in about}
            title, columns = SPEED.get(what, (what, other))
            lines = [
                (*(plain(row.get(key)) for key in columns.values()), commits([row]), device(row))
                for row in cases
            ]
            ordered = tuple(sorted(lines, key=in_order))
            sheets.append(Sheet(title=title, columns=(*columns, "Commit", "Device"), lines=ordered))
    title = "Speed and memory (`speed.py`, `gpu.py`, `metrics_speed.py`)"
    return section(title, Page(sheets=tuple(sheets)))


def case(row: Row) -> tuple[Any, ...]:
    """What a row measures: of two of the same the newer one counts."""
    own = {"in_parts": ("data", "way", "seed", "bank_size"), "scaling": ("workers",)}
    return (*map(row.get, (*CASE, *own.get(row["what"], ()))), device(row))


def in_order(cells: Sequence[str]) -> list[tuple[float, str]]:
    """By number where there is one."""
    numbers = (cell.replace(",", "") for cell in cells)
    return [(float(cell), "") if re.fullmatch(r"[\d.]+", cell) else (0.0, cell) for cell in numbers]


def gaps(cells: Cells, empty: Sequence[str]) -> str:
    """What is not measured."""
    missing = {
        label: [column for column in COLUMNS if column not in found]
        for label, found in cells.items()
    }
    count, of = sum(map(len, missing.values())), len(LINES) * len(COLUMNS)
    named = [f"- {label}: {', '.join(columns)}" for label, columns in missing.items() if columns]
    tables = f"Tables of the papers without a figure of ours, by suite: {', '.join(empty)}."
    parts = ["## What is not measured"]
    parts += [f"{count} of the {of} cells above:", "\n".join(named)] if named else []
    parts += [tables] if empty else []
    return "\n\n".join([*parts, "And beyond the data at hand:", BEYOND])


def plain(value: Any) -> str:
    if value is None:
        return NONE
    if isinstance(value, bool):
        return "with" if value else "without"
    if isinstance(value, float):
        return f"{value:,.1f}" if value >= 100 else f"{value:.3g}"
    return f"{value:,}" if isinstance(value, int) else str(value)


if __name__ == "__main__":
    main()

"""docs/robustness.md, from the rows of `benchmarks/robustness.py`."""

from __future__ import annotations

import json
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from fuzzing.damage import CHECKS, MUTATIONS
from fuzzing.tallies import FAULTS, MEANING, table

Row = Mapping[str, Any]
PAGE = Path(__file__).parents[2] / "docs" / "robustness.md"
ABOUT: Mapping[str, str] = {
    "pictures": "damaged and forged pictures of every format through the decoder",
    "bombs": "small files that ask for much",
    "memory": "large pictures, and eight of them at once",
    "artifacts": "artifacts of every method with fields and tensors that no fit has written",
    "graphs": "exported files with a forged graph and a right digest, in both engines",
    "texts": "tables, settings, result rows, predictions, checkpoints, encoders, weights, suites",
    "places": "pipes, devices, holes, links and folders as every argument that is a file",
    "names": "pictures with hostile names",
    "kills": "fit, predict, refine and pretrain, killed, then gone on with to the same results",
    "signals": "the same, interrupted by SIGINT (once, twice) and SIGTERM",
    "disks": "the same on a full and on a read-only disk; standard output that takes nothing",
    "together": "the same twice at once with one output",
}
DAMAGE: Mapping[str, str] = {
    "flip": "one bit, anywhere",
    "scribble": "2 to 16 bytes written over, one of them near the start",
    "truncation": "the end is missing, from one byte to nearly all",
    "hole": "zeros in the middle, up to 4 KiB",
    "closed": "cut in the middle and ended as the format ends, or filled up with zeros",
    "enlarged": "the header announces twice the rows, and is right otherwise",
    "shrunk": "the header announces half of the rows",
    "forged": "hostile numbers in the header, checksums put right",
}
INTRODUCTION = """\
<!-- Made by `python benchmarks/robustness.py --page` from the rows in benchmarks/results. -->

# What a stranger hands over

What blemish does with files that are damaged, hostile or no files at all, and what is left when it
is killed. What this means for the one who opens a file: [security.md](security.md). Every figure
here is made from the rows in `benchmarks/results/robustness.jsonl`. The seed decides what is tried,
the minutes how much of it; with `--corpus FOLDER` pictures of your own are damaged in place of
generated ones. A short run is part of the tests (`tests/test_fuzz.py`).
These runs made the rows:
"""


def write(rows: Path, *, check: bool) -> int:
    """Writes the page, or says whether it is what the rows make."""
    text = page([json.loads(line) for line in rows.read_text(encoding="utf-8").splitlines()])
    if not check:
        PAGE.write_text(text, encoding="utf-8")
    elif not PAGE.exists() or PAGE.read_text(encoding="utf-8") != text:
        print(
            f"{PAGE}: is not what the rows make: python benchmarks/robustness.py --page",
            file=sys.stderr,
        )
        return 1
    return 0


def page(rows: Sequence[Row]) -> str:
    """Of the newest run of each part and corpus."""
    newest: dict[tuple[str, ...], Row] = {}
    for row in rows:
        newest[row["part"], row["kind"], row["way"], row["corpus"]] = row
    last = {(row["part"], row["corpus"]): run_of(row) for row in rows}
    kept = [row for row in newest.values() if run_of(row) == last[row["part"], row["corpus"]]]
    pictures = [row for row in kept if row["part"] == "pictures" and not row["corpus"]]
    corpora = [row for row in kept if row["part"] == "pictures" and row["corpus"]]
    parts = [
        introduced(kept),
        "## All of it\n\n" + overview(kept),
        "## What remains\n\n" + remaining(kept),
        "## Damaged pictures\n\n" + damaged(pictures),
        "## Accepted in silence, though wrong\n\n" + silent(pictures),
        *(["## Pictures of others\n\n" + of_corpora(corpora)] if corpora else []),
        "## Memory\n\n" + memory([row for row in kept if row["part"] in ("memory", "bombs")]),
        *(
            f"## {part.capitalize()}\n\n{detailed([row for row in kept if row['part'] == part])}"
            for part in DETAILED
        ),
    ]
    return "\n\n".join(parts) + "\n"


DETAILED = ("artifacts", "texts", "places", "names", "kills", "signals", "disks", "together")


def run_of(row: Row) -> tuple[Any, ...]:
    return row["commit"], row["seed"], row["minutes"]


def introduced(rows: Sequence[Row]) -> str:
    """What the page is, and by which runs, on what machine."""
    runs: dict[tuple[Any, ...], list[str]] = {}
    for row in rows:
        runs.setdefault((*run_of(row), row["corpus"], row["dirty"]), []).append(row["part"])
    lines = []
    for (commit, seed, minutes, corpus, dirty), names in runs.items():
        only = "" if len(set(names)) == len(ABOUT) else f" --only {','.join(dict.fromkeys(names))}"
        more = f" --corpus {corpus}" if corpus else ""
        at = f"# at {commit[:7]}{', changed' if dirty else ''}"
        lines.append(
            f"    python benchmarks/robustness.py{only}{more} --minutes {minutes:g} "
            f"--seed {seed}  {at}"
        )
    device = rows[-1]["device"]
    machine = f"On {device['cpu']}, {device['cores']} cores that were shared with other work."
    return "\n".join([INTRODUCTION, *lines, "", machine])


def number(count: int) -> str:
    return f"{count:,}" if count else "·"


def overview(rows: Sequence[Row]) -> str:
    """A line a part."""
    lines = []
    for part, about in ABOUT.items():
        of = [row for row in rows if row["part"] == part]
        if not of:
            continue
        counts = Counter[str]()
        for row in of:
            counts.update({name: row.get(name, 0) for name in MEANING})
        excused = sum(row.get("wrong", 0) for row in of if not row["told"])
        broken = counts["crash"] + counts["hang"] + counts["bug"] + counts["memory"]
        lines.append(
            [
                *(f"**{part}**: {about}", number(counts["tried"]), number(counts["refused"])),
                *(number(counts["wrong"] - excused), number(excused), number(broken)),
                *(
                    number(counts["lost"]),
                    number(counts["request"] + counts["code"]),
                    number(counts["unclear"]),
                ),
            ]
        )
    head = [
        "part",
        "attempts",
        "refused by name",
        "wrong, though it can be told",
        "wrong, where nothing tells",
    ]
    head += [
        "crashes, hangs, bugs",
        "rows or files lost",
        "requests, programs run",
        "unclear messages",
    ]
    words = "\n".join(
        f"- **{name}**: {meaning}" for name, meaning in MEANING.items() if name in used(rows)
    )
    return f"{table(head, lines)}\n\nThe words of the tables below:\n\n{words}"


def used(rows: Sequence[Row]) -> set[str]:
    return {name for name in MEANING for row in rows if row.get(name)}


def remaining(rows: Sequence[Row]) -> str:
    """What happened that may not, with examples."""
    lines = []
    for row in rows:
        faults = {name: row.get(name, 0) for name in (*FAULTS, *(["wrong"] if row["told"] else []))}
        told = ", ".join(f"{count} {name}" for name, count in faults.items() if count)
        if told:
            where = ", ".join(filter(None, (row["part"], row["kind"], row["way"])))
            example = (
                row["examples"][0].replace("|", "\\|").replace("\n", " ")[:160]
                if row["examples"]
                else ""
            )
            lines.append(f"- {where}: {told}; as `{example.replace('`', chr(39))}`")
    return "\n".join(lines) if lines else "Nothing: no attempt ended as none may."


def damaged(rows: Sequence[Row]) -> str:
    """By format and damage: used in silence though wrong, of how many."""
    forms = [form for form in CHECKS if any(row["kind"] == form for row in rows)]
    cells = {(row["kind"], row["way"]): row for row in rows}

    def cell(form: str, way: str) -> str:
        row = cells.get((form, way))
        if row is None:
            return "–"
        wrong = row.get("wrong", 0)
        return f"{wrong:,} of {row['tried']:,}" + ("" if row["told"] or not wrong else " °")

    lines = [
        [f"**{way}**: {DAMAGE[way]}", *(cell(form, way) for form in forms)] for way in MUTATIONS
    ]
    text = "Accepted without an error or a note though the pixels are others, of all attempts. "
    text += "°: the file cannot tell."
    return f"{text}\n\n{table(['damage', *forms], lines)}"


def silent(rows: Sequence[Row]) -> str:
    """Where wrong accepts remain because the format carries no check."""
    lines = []
    for form, check in CHECKS.items():
        of = [row for row in rows if row["kind"] == form and not row["told"] and row.get("wrong")]
        where = ", ".join(f"{row['way']} {row['wrong']} of {row['tried']}" for row in of) or "none"
        lines.append([form, check, where])
    text = (
        "A format without a checksum cannot tell a changed byte from another picture: blemish "
        "shows what the file "
        "holds. What matters is kept as PNG, or with a checksum of its own beside it."
    )
    return f"{text}\n\n{table(['format', 'what tells damage', 'wrong accepts that remain'], lines)}"


def of_corpora(rows: Sequence[Row]) -> str:
    names = sorted({row["corpus"] for row in rows})
    return "\n\n".join(
        f"`{name}`:\n\n{detailed([row for row in rows if row['corpus'] == name])}" for name in names
    )


def memory(rows: Sequence[Row]) -> str:
    lines = [
        [
            row["kind"],
            row["way"],
            number(row["tried"]),
            f"{row['peak_ratio']:.1f}",
            f"{row['peak_mib']:,.0f}",
        ]
        for row in rows
    ]
    text = "The peak beyond what the process had, also by the size of the decoded picture "
    text += "(at least 16 MiB)."
    return f"{text}\n\n{table(['picture', 'of', 'attempts', 'times the picture', 'MiB'], lines)}"


def detailed(rows: Sequence[Row]) -> str:
    names = [name for name in MEANING if name in used(rows)]
    ways = any(row["way"] for row in rows)
    head = ["of", *(["how"] if ways else []), *names, "slowest, s"]
    more = [name for name in ("remains", "apart") if any(row[name] for row in rows)]
    titles = {"remains": "temporary files left", "apart": "scores apart at most"}
    lines = [
        [
            *(row["kind"], *([row["way"]] if ways else [])),
            *(number(row.get(name, 0)) for name in names),
            f"{row['slowest']:.1f}",
            *(f"{row[name]:.2g}" if row[name] else "·" for name in more),
        ]
        for row in rows
    ]
    return table([*head, *(titles[name] for name in more)], lines)

"""What blemish does with whatever a stranger hands over: attempts by the thousand, from a seed.

    python benchmarks/robustness.py --minutes 15 --results benchmarks/results/robustness.jsonl
    python benchmarks/robustness.py --only pictures,artifacts --minutes 2 --seed 7 --keep found/
    python benchmarks/robustness.py --only pictures --corpus FOLDER
    python benchmarks/robustness.py --page      # writes docs/robustness.md from the rows

The parts: `pictures` (every format, bit depth and compression; damaged, closed, forged; those of
--corpus in place of generated ones), `bombs` (small files that ask for much), `memory` (large
pictures, and several at once), `artifacts` (of every method, with fields and tensors that no fit
has written and a right digest), `texts` (tables, settings, rows, checkpoints, weights), `graphs`
(forged ones in exported files with a right digest), `places` (what is no file, as each argument),
`names` (hostile file names), `kills` (fit, predict, refine, pretrain, watch, export, calibrate: at
random moments, before and within each write), `signals`, `disks` (full, read-only), `together` (two
on one output). The same seed makes the same attempts; how many fit in is up to the minutes.

Exit status 1 where anything happened that may not; the table says what, the rows have examples.
"""

from __future__ import annotations

import argparse
import json
import signal
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from fuzzing import forks, page
from fuzzing.parts import PARTS, Plan
from fuzzing.tallies import Tally, summary

RESULTS = Path(__file__).parent / "results" / "robustness.jsonl"


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--minutes", type=float, default=5.0, help="all parts together, about")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", default=",".join(PARTS), help="parts, as in pictures,kills")
    parser.add_argument(
        "--corpus", type=Path, help="folder of pictures to damage in place of generated ones"
    )
    parser.add_argument(
        "--keep", type=Path, help="folder for the files with which something went wrong"
    )
    parser.add_argument("--results", type=Path, help="JSONL file that gets the rows")
    parser.add_argument(
        "--page", action="store_true", help="write docs/robustness.md from the rows, and leave"
    )
    parser.add_argument(
        "--check", action="store_true", help="with --page: only say whether it is what rows make"
    )
    options = parser.parse_args(arguments)
    if options.page:
        return page.write(options.results or RESULTS, check=options.check)
    chosen = [name for name in options.only.split(",") if name]
    if unknown := sorted(set(chosen) - set(PARTS)):
        parser.error(f"unknown parts: {', '.join(unknown)}; known: {', '.join(PARTS)}")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # which removes the temporary folders
    known = conditions(options)  # at the start: a long run may outlast a commit
    rows = [{**tally.row(), **known} for tally in attempts(chosen, options)]
    print(summary(rows))
    bad = [row for row in rows if row["examples"]]
    for row in bad:
        print(f"\n{row['part']}, {row['kind']}, {row['way']}")
        print("\n".join(f"  {example}" for example in row["examples"]))
    if options.results:
        options.results.parent.mkdir(parents=True, exist_ok=True)
        with options.results.open("a", encoding="utf-8") as file:
            file.writelines(json.dumps(row) + "\n" for row in rows)
    return 1 if bad else 0


def attempts(chosen: Sequence[str], options: argparse.Namespace) -> Iterator[Tally]:
    """The tallies of the parts, each of which has its share of the minutes."""
    forks.warm_up()
    shares = {name: PARTS[name][1] for name in chosen}
    left, end = sum(shares.values()), time.monotonic() + 60 * options.minutes
    for name in chosen:
        begun = time.monotonic()
        deadline = begun + (end - begun) * shares[name] / left if end > begun else begun
        left -= shares[name]
        if options.keep:
            options.keep.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix="blemish-robustness-") as folder:
            plan = Plan(
                folder=Path(folder).resolve(),
                seed=options.seed,
                deadline=deadline,
                corpus=options.corpus,
                keep=options.keep,
            )
            found = list(PARTS[name][0](plan))
        count = sum(tally.tried for tally in found)
        print(
            f"{name}: {count} attempts in {time.monotonic() - begun:.0f} s",
            file=sys.stderr,
            flush=True,
        )
        yield from found


def conditions(options: argparse.Namespace) -> dict[str, Any]:
    """What is in every row."""
    import torch

    from blemish.bench.conditions import checkout, hardware

    commit, dirty = checkout()
    return {
        "seed": options.seed,
        "minutes": options.minutes,
        "corpus": options.corpus.name if options.corpus else "",
        "commit": commit,
        "dirty": dirty,
        "device": hardware(torch.device("cpu")),
    }


if __name__ == "__main__":
    sys.exit(main())

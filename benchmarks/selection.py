"""Settings chosen from good pictures and generated defects alone, and what that costs against a
choice that looks at test labels.

    python benchmarks/selection.py bottle screw magnetic_tile --image-size 168 \\
        --set bank_size=2000 --vary layers=4,6,8 --vary layers=6,8,10 --vary top_fraction=0.001 \\
        --vary top_fraction=0.02 --results benchmarks/results/selection.jsonl

The machinery is that of `blemish compare`: some good training pictures are learned from, others are
left out, and defects are generated in these. The test pictures are scored in the same runs, and
take no part in the choice. A row is one data set: of every candidate the AUROC by generated defects
and by the test's, with intervals of 95 %; which is `chosen` (as `blemish compare` chooses: among
equals by a clearly better AUPRO, then by arithmetic), and which has the highest AUROC by generated
defects (`highest`) or by the test's (`looked`). `cost`: points of test AUROC by which `looked` lies
above `chosen`. Rows that the file holds already are not made again; there is none where a candidate
was not measured, for want of time (`--minutes`) say, and with `--folder` the same command goes on.
"""

from __future__ import annotations

import argparse
import hashlib
import json
from datetime import UTC, datetime
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from blemish.bench.choosing.candidates import Candidate, candidates
from blemish.bench.choosing.comparing import Asked, measure
from blemish.bench.choosing.defects import SMALLEST_DEFECT
from blemish.bench.choosing.findings import Findings, Standing, findings
from blemish.bench.choosing.pictures import Division, divided
from blemish.bench.conditions import checkout
from blemish.bench.plan import data_sets
from blemish.bench.results.rows import append
from blemish.cli.console import complain, progress
from blemish.config import assigned
from blemish.data import layouts
from blemish.data.pictures import good_pictures
from blemish.data.splits import shuffled
from blemish.files import end_last_row
from blemish.types import ANOMALOUS, NORMAL, Sample


def row_of(name: str, path: Path, asked: Asked, options: argparse.Namespace) -> dict[str, Any]:
    """The row of a data set."""
    division = with_test(path, options.test, asked.seed)
    commit, dirty = checkout()
    with TemporaryDirectory(prefix="blemish-selection-") as folder, progress() as told:
        compared = measure(division, asked, options.folder or Path(folder), progress=told)
    found = findings(compared, [str(path)], seed=asked.seed)
    assert found.chosen is not None
    counts = {key: len(samples) for key, samples in vars(compared.plan.division).items()}
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        **{"commit": commit, "dirty": dirty, "data": name, "counts": counts},
        "generated": sum("kind" in one for one in compared.plan.generated),
        "methods": options.methods,
        "backbone": asked.backbone,
        "settings": assigned(options.set),
        "image_size": options.image_size,
        "smallest_defect": options.smallest_defect,
        "device": found.chosen.row["device"],
        "precision": found.chosen.row["precision"],
        "failed": [one.candidate.label for one in (*found.failed,)]
        + [one.label for one in found.missing],
        "candidates": [told_of(one) for one in map(Standing.to_dict, found.standings)],
        **choices(found),
    }


def told_of(one: dict[str, Any]) -> dict[str, Any]:
    """What a row keeps of a candidate."""
    keys = ("label", "settings", "generated", "checking", "aupro", "localisation", "false_alarms")
    costs = ("seconds_to_fit", "peak_memory_mib")
    return {
        **{key: one[key] for key in (*keys, *costs)},
        "latency_p50_ms": one["efficiency"]["latency_p50_ms"],
    }


def choices(found: Findings) -> dict[str, Any]:
    """Which candidate each way of choosing takes, and its AUROC by the test's labels."""
    ours = [one.generated.value if one.generated else 0.0 for one in found.standings]
    test = [one.checking.value if one.checking else 0.0 for one in found.standings]
    maps = [one.row["aupro"] or 0.0 for one in found.standings]
    assert found.advice is not None
    places = {
        "chosen": found.advice.chosen,
        "highest": int(np.argmax(ours)),
        "highest_aupro": int(np.argmax(maps)),
        "looked": int(np.argmax(test)),
    }
    made = {
        way: {"label": found.standings[at].candidate.label, "test_auroc": test[at]}
        for way, at in places.items()
    }
    order = np.argsort(np.argsort(ours)), np.argsort(np.argsort(test))
    return {
        **made,
        "alike": [found.standings[at].candidate.label for at in found.advice.alike],
        "cost": round(100 * (max(test) - test[found.advice.chosen]), 2),
        "median_cost": round(100 * (max(test) - float(np.median(test))), 2),
        "rank_correlation": round(float(np.corrcoef(*order)[0, 1]), 3) if len(test) > 1 else None,
    }


def with_test(path: Path, most: int, seed: int) -> Division:
    """The good training pictures divided as for a comparison, with test pictures that check."""
    division = divided(good_pictures(path).of_one_or_several(), seed=seed)
    test = layouts.read(path).test()

    def some(label: int) -> tuple[Sample, ...]:
        return tuple(shuffled([one for one in test if one.label == label], seed)[:most])

    return Division(
        learned=division.learned,
        good=division.good,
        checking_good=some(NORMAL),
        checking_defects=some(ANOMALOUS),
    )


def key_of(name: str, options: argparse.Namespace, found: list[Candidate]) -> str:
    """What a row is recognised by."""
    told = [name, options.test, options.seed, sorted(one.identity for one in found)]
    told += [] if options.smallest_defect == SMALLEST_DEFECT else [options.smallest_defect]
    return hashlib.sha256(json.dumps(told).encode()).hexdigest()[:16]


def measured(options: argparse.Namespace) -> None:
    """Add the rows that are not there yet."""
    end_last_row(options.results)
    lines = options.results.read_text(encoding="utf-8").splitlines()
    done = {json.loads(line)["key"] for line in lines}
    found = candidates(
        options.methods,
        [(size, size) for size in options.image_size],
        backbone=options.backbone,
        settings=assigned(options.set),
        varied=[pair for one in options.vary for pair in assigned([one]).items()],
        seed=options.seed,
    )
    asked = Asked(
        candidates=found,
        backbone=options.backbone,
        weights=options.weights,
        minutes=options.minutes,
        smallest=options.smallest_defect,
        seed=options.seed,
    )
    with TemporaryDirectory(prefix="blemish-selection-") as scratch:
        sets = data_sets(options.data, root=None, scratch=Path(scratch))
        for name, path in sets.items():
            key = key_of(name, options, found)
            if key in done:
                continue
            row = {"key": key, **row_of(name, path, asked, options)}
            if row["failed"]:
                complain(f"{name}: no row, as these were not measured: {', '.join(row['failed'])}")
                continue
            append(options.results, row)
            complain(f"{name}: {row['chosen']} costs {row['cost']} points")


def parser() -> argparse.ArgumentParser:
    """Of the command line."""
    made = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    made.add_argument("data", nargs="+", help="as of `blemish bench --data`")
    made.add_argument("--methods", nargs="+", default=["patchcore"])
    made.add_argument("--backbone", default="focus_vits14")
    made.add_argument("--weights", help="as of `blemish.fit`")
    made.add_argument("--image-size", type=int, nargs="+", default=[224])
    made.add_argument("--set", action="append", default=[], metavar="KEY=VALUE")
    made.add_argument("--vary", action="append", default=[], metavar="KEY=VALUE")
    made.add_argument("--smallest-defect", type=float, default=SMALLEST_DEFECT)
    made.add_argument("--test", type=int, default=100, help="test pictures of a label, at most")
    made.add_argument("--minutes", type=float, default=20)
    made.add_argument("--seed", type=int, default=0)
    made.add_argument("--folder", type=Path, help="to keep what is measured; of one data set")
    made.add_argument("--results", type=Path, required=True)
    return made


if __name__ == "__main__":
    measured(parser().parse_args())

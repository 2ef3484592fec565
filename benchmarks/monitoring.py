"""How soon `blemish.monitoring` notices a change, and how often its intervals hold; rows of both.

    python benchmarks/monitoring.py            # some minutes: rows to results/monitoring.jsonl
    python benchmarks/monitoring.py --page     # the tables of the newest rows, as Markdown

Everything is made up, so that what is true is known: scores from a normal distribution, whose form
does not matter, as only ranks count. A change is named by how often a picture after it scores
higher than one before it. "usual" compares with the calibration pictures, "steady" with the stream
itself; both as a `Monitor` has them by default (alpha 0.01 for three tests, a notice in a million
pictures, a tolerance of 1 %).
"""

from __future__ import annotations

import argparse
import json
import math
import subprocess
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
from seasons import THRESHOLD, reviewed, truth
from streams import NEVER, first_alarms

from blemish.monitoring.estimates import RATES, figures

ROWS = Path(__file__).parent / "results" / "monitoring.jsonl"
AFTER = 5000  # pictures in which a change may be noticed
TRIALS = 60
CHANGES = {
    "57 % score higher": (0.25, 1.0),
    "64 % score higher": (0.5, 1.0),
    "76 % score higher": (1.0, 1.0),
    "spread × 1.5": (0.0, 1.5),
}
SEASONS = ((200, 20), (500, 60), (3000, 300), (3000, 1000))
TIMES = 200


def delay(against: str, n: int, begins: int, change: str) -> dict[str, Any]:
    shift, spread = CHANGES[change]

    def draw(random: np.random.Generator, step: int, trials: int) -> np.ndarray:
        scores = random.normal(size=trials)
        return scores * spread + shift if step >= begins else scores

    alarms, notices = first_alarms(
        n,
        begins + AFTER,
        TRIALS,
        seed=n + begins,
        against=against,  # type: ignore[arg-type]
        alpha=0.01 / 3,
        run=3e6,
        tolerance=0.01,
        draw=draw,
        stop=True,
    )
    first = np.minimum(alarms, notices)
    found = first[(first >= begins) & (first != NEVER)] - begins + 1
    return {
        "what": "delay",
        "against": against,
        "n": n,
        "begins": begins,
        "change": change,
        "noticed": len(found) / TRIALS,
        "early": float((first < begins).mean()),
        "median": None if 2 * len(found) < TRIALS else float(np.median(with_never(first, begins))),
        "trials": TRIALS,
    }


def false_alarms(against: str, n: int) -> dict[str, Any]:
    alarms, _ = first_alarms(n, 5000, 200, seed=1, against=against)  # type: ignore[arg-type]
    share = float((alarms != NEVER).mean())
    return {"what": "false", "against": against, "n": n, "alpha": 0.05, "share": share}


def with_never(first: np.ndarray, begins: int) -> np.ndarray:
    late = first[first >= begins]
    return np.where(late == NEVER, math.inf, late - begins + 1.0)


def coverage(pictures: int, budget: int) -> list[dict[str, Any]]:
    right = truth(THRESHOLD)
    kept = [reviewed(seed, pictures, budget) for seed in range(TIMES)]
    rows = []
    for way in ("weighted", "random share"):
        for level in (0.9, 0.95):
            found = [
                figures(season, THRESHOLD, level=level, pool=pool)
                if way == "weighted"
                else figures(season.random_share(), THRESHOLD, level=level)
                for season, _, pool in kept
            ]
            for name in RATES:
                each = [one[name] for one in found]
                values = [one.value for one in each if one.value is not None]
                rows.append(
                    {
                        "what": "coverage",
                        **{"pictures": pictures, "budget": budget},
                        **{"way": way, "level": level, "rate": name, "true": right[name]},
                        "mean": float(np.mean(values)),
                        "covered": float(
                            np.mean([one.low <= right[name] <= one.high for one in each])
                        ),
                        "width": float(np.mean([one.high - one.low for one in each])),
                        "times": TIMES,
                    }
                )
    return rows


def page(rows: list[dict[str, Any]]) -> str:
    delays = [row for row in rows if row["what"] == "delay"]
    lines = [
        "| against | calibration pictures | streams with a false alarm at 5 % |",
        "|---|---|---|",
    ]
    for row in rows:
        if row["what"] == "false":
            lines.append(f"| {row['against']} | {row['n']} | {100 * row['share']:.1f} % |")
    lines += [
        "",
        "| against | calibration pictures | pictures before | change | noticed | median delay |",
        "|---|---|---|---|---|---|",
    ]
    for row in delays:
        median = "–" if row["median"] is None else f"{row['median']:.0f}"
        lines.append(
            f"| {row['against']} | {row['n']} | {row['begins']:,} | {row['change']} | "
            f"{100 * row['noticed']:.0f} % | {median} |"
        )
    lines += [
        "",
        "| pictures | reviewed | rate | true | mean | held at 90 % | held at 95 % | width "
        "at 95 % | width by the random share |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    by = {
        (row["pictures"], row["budget"], row["rate"], row["way"], row["level"]): row
        for row in rows
        if row["what"] == "coverage"
    }
    for pictures, budget in SEASONS:
        for name in RATES:
            one, two, other = (
                by[pictures, budget, name, way, level]
                for way, level in (("weighted", 0.9), ("weighted", 0.95), ("random share", 0.95))
            )
            lines.append(
                f"| {pictures} | {budget} | {name} | "
                f"{one['true']:.3f} | {one['mean']:.3f} | {one['covered']:.3f} | "
                f"{two['covered']:.3f} | {two['width']:.3f} | {other['width']:.3f} |"
            )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--page", action="store_true", help="print the tables of the rows")
    if parser.parse_args().page:
        print(page([json.loads(line) for line in ROWS.read_text().splitlines()]))
        return
    commit = subprocess.run(
        ["git", "rev-parse", "HEAD"], capture_output=True, text=True, check=True
    ).stdout.strip()
    cases = [
        (against, n, begins, change)
        for against in ("usual", "steady")
        for n in (40, 200, 1000)
        for begins in (0, 1000, 10000)
        for change in CHANGES
        # Against the stream itself the calibration set says nothing.
        if (begins < 10000 if against == "usual" else n == 200 and begins)
    ]
    ways = ("usual", "steady", "the calibration set alone")
    rows = [false_alarms(against, n) for against in ways for n in (40, 200, 1000)]
    rows += [delay(*case) for case in cases]
    for season in SEASONS:
        rows += coverage(*season)
    more = {"part": "monitoring", "date": datetime.now(UTC).isoformat(), "commit": commit}
    ROWS.write_text("".join(json.dumps({**row, **more}) + "\n" for row in rows))


if __name__ == "__main__":
    main()

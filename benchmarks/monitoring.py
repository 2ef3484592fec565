"""How soon `blemish.monitoring` notices a change, and how often its intervals hold; rows of both.

    python benchmarks/monitoring.py            # some minutes: rows to results/monitoring.jsonl

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


def main() -> None:
    argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    ).parse_args()
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

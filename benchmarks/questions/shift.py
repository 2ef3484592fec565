"""What holds under another light or camera."""

from __future__ import annotations

import statistics

from blemish.bench.results import NEITHER
from questions.kinds import beside
from questions.question import NOTHING, Measured, Question, section


def answer(measured: Measured) -> str:
    gains: dict[str, list[float]] = {}
    for row in measured.good:
        for shift, by_mode in row["shifted"].items():
            if shift != NEITHER and "episodic" in by_mode:
                way = row["settings"].get("adaptation", "entropies")
                before, after = (by_mode[it]["image_auroc"] for it in (NEITHER, "episodic"))
                gains.setdefault(way, []).append(100 * (after - before))
    told = [
        f"{signed(statistics.fmean(of))} points by {way} (over {len(of)} shifted sets, from "
        f"{signed(min(of))} to {signed(max(of))})"
        for way, of in sorted(gains.items(), reverse=True)
    ]
    if not told:
        return NOTHING
    return (
        f"Adapting to the pictures (`--adapt episodic`) changes image AUROC by {'; '.join(told)}."
    )


def signed(value: float) -> str:
    return f"{value:+.1f}".replace("-", "−")


def parts(measured: Measured) -> list[str]:
    found = beside(measured, "shifted test pictures")
    return [*filter(None, [section("Shifted test pictures", found)])]


SHIFT = Question("shift", "What holds under another light or camera?", answer, parts)

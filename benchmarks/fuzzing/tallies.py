"""What is counted of attempts, and the rows and tables that are made of it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

# What an attempt may end in. Those that are never right, in whatever part:
FAULTS = ("crash", "hang", "bug", "memory", "request", "code", "lost", "unclear")
MEANING: Mapping[str, str] = {
    "tried": "attempts",
    "refused": "ended with an error that blemish names",
    "right": "used, with the same pixels, scores or results as ever",
    "changed": "used, with pixels that differ by an honest amount: at most 1 % of them by more "
    "than 8 of 255",
    "noted": "used, with other pixels, which a note says",
    "other": "used, with other scores: a value that may be as it is",
    "accepted": "used; whether rightly is not judged",
    "wrong": "used in silence, though the pixels are others or the value is impossible",
    "engine": "a forged graph with a right digest crashed its engine or took over 20 s, as "
    "security.md says that it can",
    "crash": "the process died",
    "hang": "more than 5 s of computing or of waiting for nothing",
    "bug": "an error that blemish did not expect (`this is a bug`, a traceback)",
    "memory": "said to be out of memory, which it is not for what is asked",
    "request": "a connection or a look-up of a name was tried",
    "code": "a program was started or an object loader called",
    "lost": "rows or results that are missing, double or other in the end, files that are "
    "not whole",
    "unclear": "a message that does not say what is wrong, or a raw control character printed",
}


@dataclass
class Tally:
    """Of a part of the attempts: what came out, with some examples of what should not.

    Attributes:
        part, kind, way: what was tried: "pictures", "JPEG", "hole".
        told: whether the format can tell, so that no wrong accept is excused.
        counts: by outcome. examples: of faults. peak_ratio: memory by that of the decoded picture.
        peak_mib, slowest: the largest amount of memory, and the most seconds, of an attempt.
        remains: temporary files that were left. apart: by how much scores differ at most after
            going on, relatively.
    """

    part: str
    kind: str
    way: str = ""
    told: bool = True
    counts: Counter[str] = field(default_factory=Counter)
    examples: list[str] = field(default_factory=list)
    peak_ratio: float = 0.0
    peak_mib: float = 0.0
    slowest: float = 0.0
    remains: int = 0
    apart: float = 0.0

    def add(self, outcome: str, example: str = "") -> None:
        self.counts[outcome] += 1
        fault = outcome in FAULTS or (outcome == "wrong" and self.told)
        if fault and len(self.examples) < 5:
            self.examples.append(f"{outcome}: {example}"[:300])

    def note(self, fault: str, example: str = "") -> None:
        """A fault beside the outcome of an attempt that is counted already."""
        self.add(fault, example)
        self.counts["beside"] += 1

    def measured(self, answer: Mapping[str, Any]) -> None:
        """Takes over the memory and the seconds of an answer of `forks.through`."""
        self.peak_mib = max(self.peak_mib, round(answer.get("peak", 0) / 2**20, 1))
        self.slowest = max(self.slowest, answer.get("seconds", answer.get("hang", 0.0)))
        for request in answer.get("requests", ()):
            self.note("code" if request.startswith("code") else "request", request)

    @property
    def tried(self) -> int:
        return sum(self.counts.values()) - 2 * self.counts["beside"]

    @property
    def faults(self) -> int:
        """How many attempts ended as none may."""
        wrong = self.counts["wrong"] if self.told else 0
        return wrong + sum(self.counts[name] for name in FAULTS)

    def row(self) -> dict[str, Any]:
        """JSON-ready."""
        counts = {name: count for name, count in sorted(self.counts.items()) if name != "beside"}
        return {
            "part": self.part,
            "kind": self.kind,
            "way": self.way,
            "told": self.told,
            "tried": self.tried,
            **counts,
            "peak_ratio": round(self.peak_ratio, 2),
            "peak_mib": self.peak_mib,
            "slowest": round(self.slowest, 2),
            "remains": self.remains,
            "apart": self.apart,
            "examples": self.examples,
        }


def outcome_of(answer: Mapping[str, Any]) -> tuple[str, str]:
    """(outcome, why) of an answer of `forks.through`."""
    for name in ("hang", "crash"):
        if name in answer:
            return name, f"{name} {answer[name]}"
    if "bug" in answer:
        return "bug", str(answer["bug"]).strip().splitlines()[-1]
    return answer["verdict"], answer.get("why", "")


COLUMNS = ("tried", "refused", "right", "changed", "noted", "other", "accepted", "wrong")
COLUMNS += ("engine", *FAULTS)


def table(head: Sequence[str], lines: Iterable[Sequence[object]]) -> str:
    """A Markdown table."""
    rows = [head, ["---"] * len(head), *lines]
    return "\n".join("| " + " | ".join(str(cell) for cell in row) + " |" for row in rows)


def summary(rows: Sequence[Mapping[str, Any]]) -> str:
    """A line for each part and way, with the counts that are not zero anywhere."""
    used = [name for name in COLUMNS if name == "tried" or any(row.get(name) for row in rows)]
    head = ["part", "kind", "way", *used, "slowest, s"]
    lines = [
        [
            row["part"],
            row["kind"],
            row["way"],
            *(row.get(name) or "·" for name in used),
            f"{row['slowest']:.1f}",
        ]
        for row in rows
    ]
    return table(head, lines)

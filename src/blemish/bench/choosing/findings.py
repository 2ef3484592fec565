"""What the rows of a comparison say: each candidate's figures with their intervals, what to take,
and what a person has to know beside that."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from blemish.bench.choosing.advice import ENOUGH, Advice, Contender, advised
from blemish.bench.choosing.candidates import Candidate
from blemish.bench.choosing.comparing import Compared
from blemish.bench.choosing.evidence import (
    Estimate,
    Evidence,
    Values,
    aupros,
    aurocs,
    estimate,
    share,
)
from blemish.bench.choosing.pictures import FEW_DEFECTS
from blemish.bench.choosing.plan import Plan
from blemish.bench.choosing.trial import GENERATED
from blemish.bench.results.overview import UNSEEN, has_unseen
from blemish.bench.results.rows import FAILED, OK
from blemish.text import duration, pluralize

GENERATED_CAVEAT = (
    "Generated defects are pieces of your own good pictures, cut, moved, blended and made faint: "
    "they tell methods apart, but how many real defects will be found they do not tell."
)
_OF_ROWS = ("scores", "places", "config")  # long, and the rows have them
_ALMOST = 10.0  # % of good pictures that look nearly like another one, from which it is told


@dataclass(frozen=True, kw_only=True)
class Standing:
    """A candidate and its figures.

    Attributes:
        row: as of `trial.measured`; a failed one has its `error`.
        generated, labelled, checking: AUROC by the good pictures beside generated defects, labelled
            ones that choose, and those that do not; None where there are none. localisation: AUPRO
            by generated defects.
        false_alarms: the share of the good pictures that choose, and check, above the threshold;
            found, found_generated: of the labelled defects that check, and of the generated ones.
            None without a threshold.
    """

    candidate: Candidate
    row: Mapping[str, Any]
    generated: Estimate | None = None
    labelled: Estimate | None = None
    checking: Estimate | None = None
    localisation: Estimate | None = None
    false_alarms: Estimate | None = None
    found: Estimate | None = None
    found_generated: Estimate | None = None

    @property
    def seconds(self) -> float:
        """For a picture, decoded already."""
        milliseconds: float = self.row["efficiency"]["latency_p50_ms"]
        return milliseconds / 1000

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready; without the scores, which the rows have."""
        names = (
            *("generated", "labelled", "checking", "localisation"),
            *("false_alarms", "found", "found_generated"),
        )
        estimates = {name: getattr(self, name) for name in names}
        figures = {name: it and it._asdict() for name, it in estimates.items()}
        row = {key: value for key, value in self.row.items() if key not in _OF_ROWS}
        return {**row, "label": self.candidate.label, **figures}


@dataclass(frozen=True, kw_only=True)
class Findings:
    """What was found.

    Attributes:
        standings: of the candidates that were measured, in their order.
        failed: those that were not, with the reason in their row. missing: no time was left.
        advice: None where nothing can be said; `chosen` and `alike` are positions in `standings`.
        notes: what a person has to know, sentences.
        command: that fits the chosen one on all good pictures; "" without one.
    """

    standings: Sequence[Standing]
    failed: Sequence[Standing]
    missing: Sequence[Candidate]
    advice: Advice | None
    notes: Sequence[str]
    command: str = ""

    @property
    def chosen(self) -> Standing | None:
        return None if self.advice is None else self.standings[self.advice.chosen]


def findings(
    compared: Compared, good: Sequence[str], options: Sequence[str] = (), *, seed: int = 0
) -> Findings:
    """What the rows say.

    Args:
        good: what the user called the good pictures, for the command to run; options: others that
            belong into it.
        seed: of the draws of pictures.
    """
    measured = [(one, row) for one, row in compared.rows if row["status"] == OK]
    failed = [
        Standing(candidate=one, row=row) for one, row in compared.rows if row["status"] == FAILED
    ]
    tables = [row["scores"] for _, row in measured]
    parts = [one.known_to(tables) for one in compared.plan.evidence()]
    by_generated, by_labelled, by_checking = (aurocs(one, tables, seed=seed) for one in parts)
    by_places = aupros(parts[0], [row["places"] for _, row in measured], seed=seed)
    standings = [
        _standing(compared.plan, one, row, parts, [
            None if of is None else of[at]
            for of in (by_generated, by_labelled, by_checking, by_places)
        ])
        for at, (one, row) in enumerate(measured)
    ]  # fmt: skip
    contenders = [
        Contender(
            label=one.candidate.label,
            seconds=one.seconds,
            flops=one.row["efficiency"]["flops"],
            generated=None if by_generated is None else by_generated[at],
            labelled=None if by_labelled is None else by_labelled[at],
            places=None if by_places is None else by_places[at],
        )
        for at, one in enumerate(standings)
    ]
    advice = advised(contenders, parts[1].defects)
    command = ""
    if advice is not None:
        command = standings[advice.chosen].candidate.command(good, options)
    found = Findings(
        standings=standings, failed=failed, missing=compared.missing, advice=advice, notes=(),
        command=command,
    )  # fmt: skip
    return replace(found, notes=tuple(_notes(compared, found, parts)))


def _standing(
    plan: Plan,
    one: Candidate,
    row: Mapping[str, Any],
    parts: Sequence[Evidence],
    rows: Sequence[Values | None],
) -> Standing:
    """Args: parts, rows: by generated, labelled and checking defects; of rows the last is AUPRO by
    generated ones."""
    figures: list[Estimate | None] = []
    for part, values in zip((*parts, parts[0]), rows, strict=True):
        units = min(len(part.good), part.defects)
        figures.append(None if values is None else estimate(values, units))
    alarms = _alarms(plan, row)
    good = [*parts[0].good, *parts[2].good]
    checking = [one for group in parts[2].defective for one in group]
    made = [one for group in parts[0].defective for one in group]
    return Standing(
        candidate=one,
        row=row,
        generated=figures[0],
        labelled=figures[1],
        checking=figures[2],
        localisation=figures[3],
        false_alarms=_share(alarms, good),
        found=_share(alarms, checking),
        found_generated=_share(alarms, made),
    )


def _alarms(plan: Plan, row: Mapping[str, Any]) -> dict[str, bool]:
    """Of each picture whether it is above its threshold; empty without one."""
    if row["threshold"] is None:
        return {}
    own = {name: value for name, value in row["thresholds"].items() if value is not None}
    scores = row["scores"]
    return {
        one["id"]: scores[one["id"]] > own.get(one["category"], row["threshold"])
        for one in plan.judged
        if one["id"] in scores
    }


def _share(alarms: Mapping[str, bool], pictures: Sequence[str]) -> Estimate | None:
    counted = [alarms[one] for one in pictures if one in alarms]
    return share(sum(counted), len(counted)) if counted else None


def _notes(compared: Compared, found: Findings, parts: Sequence[Evidence]) -> list[str]:
    """What a person has to know, beside the table."""
    plan, labelled = compared.plan, parts[1].defects
    notes = [GENERATED_CAVEAT] if labelled < ENOUGH else []
    if 0 < labelled < ENOUGH:
        notes.append(
            f"{pluralize(labelled, 'labelled defect')} could choose, and {ENOUGH} at least are "
            "needed for that: they are shown, and generated ones have chosen."
        )
    chose = labelled >= ENOUGH
    if parts[2].defects:
        flatters = (
            f"{pluralize(labelled, 'labelled defect')} took part in the choice, so the chosen "
            "one's figures by them flatter it. "
        )
        others = pluralize(parts[2].defects, "other" if labelled else "labelled defect")
        apart = "did not" if chose else "took no part in the choice"
        notes.append(
            f"{flatters if chose else ''}{others} {apart}, "
            f"nor did {pluralize(len(parts[2].good), 'good picture')}: by these it is measured."
        )
    elif chose:
        notes.append(
            "All labelled defects took part in the choice: figures by them are no test. With "
            f"{FEW_DEFECTS} or more, half of them are held out for one."
        )
    if plan.reduced < 1:
        notes.append(
            f"To save time {100 * plan.reduced:.0f} % of the pictures were used: learned from "
            f"{len(plan.division.learned)}. A busier machine uses fewer, and may advise otherwise; "
            "more --minutes, in another --output, use more."
        )
    notes += _small(found, labelled, plan.smallest)
    notes += _unseen(found.standings)
    notes += _timed(found.standings)
    notes += _flattered(found.standings)
    notes += _alike(found.standings)
    late = [one for one in found.standings if one.false_alarms and one.row["rate"] is not None]
    for one in late:
        if one.false_alarms and one.false_alarms.low > one.row["rate"]:
            notes.append(
                f"{one.candidate.label} raises false alarms at {100 * one.false_alarms.value:.0f} "
                f"% of the good pictures that were left out, more than the "
                f"{100 * one.row['rate']:.3g} % that were asked for."
            )
    if reason := next((one.row["reason"] for one in found.standings if one.row["reason"]), ""):
        notes.append(f"No false alarms are counted where there is no threshold: {reason}.")
    if found.missing:
        labels = ", ".join(one.label for one in found.missing)
        notes.append(f"No time was left for {labels}: the same command measures what is missing.")
    return notes


def _small(found: Findings, labelled: int, smallest: float) -> list[str]:
    """That defects may be smaller than any that was generated, where a larger input was not
    taken."""
    one = found.chosen
    if one is None or labelled >= ENOUGH:
        return []
    areas = [math.prod(each.candidate.config.height_width) for each in found.standings]
    if math.prod(one.candidate.config.height_width) == max(areas):
        return []
    return [
        f"Generated defects are seldom smaller than {100 * smallest:.3g} % of a picture's side. "
        "Where yours are, a larger resolution may be needed than these figures ask for: say how "
        "small with --smallest-defect, or label some."
    ]


def _unseen(standings: Sequence[Standing]) -> list[str]:
    """Candidates that time has left hardly trained."""
    labels = [one.candidate.label for one in standings if has_unseen(one.row)]
    return [
        f"{UNSEEN} {', '.join(labels)}: the training ended before it had seen every picture once, "
        "so these figures say little of what it can do. More --minutes, in another --output, or "
        "fewer candidates let it train longer."
    ] if labels else []  # fmt: skip


def _timed(standings: Sequence[Standing]) -> list[str]:
    """Candidates whose training the minutes have shaped."""
    labels = [one.candidate.label for one in standings if one.row.get("minutes") is not None]
    return [
        f"{', '.join(labels)}: trained for as long as there was time, so a run on another machine, "
        "or on a busier one, may give other figures, and other advice."
    ] if labels else []  # fmt: skip


def _flattered(standings: Sequence[Standing]) -> list[str]:
    """Methods that have learned to find generated defects of the kinds that judge."""
    taught = [
        one.candidate.label for one in standings if getattr(one.candidate.config, "simulators", ())
    ]
    return [
        f"{', '.join(taught)} learned from generated defects of the same kinds as choose here, "
        "which flatters it: let labelled ones decide."
    ] if taught else []  # fmt: skip


def _alike(standings: Sequence[Standing]) -> list[str]:
    """Whether many good pictures are taken twice, so that those left out are easier than new
    ones."""
    most = max((one.row["nearly_same"] / one.row["fitted"] for one in standings), default=0.0)
    return [
        f"{100 * most:.0f} % of the good pictures look nearly the same as another one: those left "
        "out are then easier than new ones will be, for every candidate."
    ] if 100 * most >= _ALMOST else []  # fmt: skip


def document(compared: Compared, found: Findings) -> dict[str, Any]:
    """All of it as JSON."""
    division, advice = compared.plan.division, found.advice
    failures = {
        one["path"]: one
        for one in [
            *compared.plan.failures,
            *(one for standing in found.standings for one in standing.row["failures"]),
        ]
    }
    return {
        "recognised": compared.good,
        "counts": {
            **compared.counts,
            "learned": len(division.learned),
            "left_out": len(division.good),
            "generated": sum("kind" in one for one in compared.plan.generated),
            "labelled_choosing": len(division.defects),
            "checking_good": len(division.checking_good),
            "checking_defects": len(division.checking_defects),
        },
        "candidates": [one.to_dict() for one in found.standings],
        "failed": [
            {"label": one.candidate.label, "error": one.row["error"]} for one in found.failed
        ],
        "missing": [one.label for one in found.missing],
        "chosen": None if found.chosen is None else found.chosen.candidate.label,
        "alike": [found.standings[at].candidate.label for at in advice.alike] if advice else [],
        "by": advice.by if advice else "",
        "reasons": list(advice.reasons) if advice else [],
        "sure": advice.sure if advice else "",
        "notes": list(found.notes),
        "command": found.command,
        "failures": list(failures.values()),
    }


HEAD = (
    *("", "candidate", "AUROC, generated", "AUROC, labelled", "AUPRO, generated", "false alarms"),
    *("GFLOP", "ms a picture", "memory MiB", "size MiB", "fit"),
)


def table(found: Findings) -> list[tuple[str, ...]]:
    """A line for each candidate under `HEAD`, for people; the chosen one is marked."""
    rows: list[tuple[str, ...]] = []
    for at, one in enumerate(found.standings):
        mark = ""
        if found.advice:
            mark = "→" if at == found.advice.chosen else "=" if at in found.advice.alike else ""
        peak = one.row["peak_memory_mib"]
        rows.append(
            (
                mark,
                f"{one.candidate.label} {UNSEEN}" if has_unseen(one.row) else one.candidate.label,
                percent(one.generated),
                percent(one.labelled),
                percent(one.localisation),
                percent(one.false_alarms),
                f"{one.row['efficiency']['flops'] / 1e9:.3g}",
                f"{one.row['efficiency']['latency_p50_ms']:.0f}",
                "–" if peak is None else f"{peak:,.0f}",
                f"{one.row['efficiency']['artifact_mib']:.0f}",
                duration(one.row["seconds_to_fit"]),
            )
        )
    return rows


def percent(one: Estimate | None) -> str:
    """In per cent, with its interval."""
    if one is None:
        return "–"
    return f"{100 * one.value:.1f} ({100 * one.low:.1f}–{100 * one.high:.1f})"


def pictures(plan: Plan) -> list[Mapping[str, Any]]:
    """The generated defects, for somebody to look at."""
    return [one for one in plan.judged if one["role"] == GENERATED]

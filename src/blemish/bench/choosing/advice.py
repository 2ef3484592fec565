"""Which candidate to take, and why, in words.

In four steps, each among what the one before has left:

1. labelled defects that choose, where there are five of them or more;
2. generated defects;
3. where the generated defects are: of several that find as many of them, what shows their places
   clearly worse than the best is left out. Clearly is by more than five points of AUPRO, and
   surely: the 95 % interval of the difference lies above 0;
4. arithmetic: of several that are as good as the best, what needs least of it for a picture; where
   others need less than a fifth more, the best of these. As good is what lies at most half a point
   below the best, or falls short of it in fewer than four of five draws of the pictures. Time does
   not decide: a busy machine changes it, and the same pictures are to give the same advice.

The first two leave the candidate with the highest AUROC, and those that are not told from it: the
95 % interval of the difference, over the same draws of pictures, holds 0, and the difference is not
above two points, which few pictures alone may hide. What is cheaper, not told from the chosen one
and yet probably worse is named, for whom time counts; and what surely shows places better than the
chosen one, by more than two points of AUPRO, for whom these count.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from blemish.bench.choosing.evidence import Estimate, Values, difference
from blemish.text import pluralize

LITTLE = 0.02  # of AUROC: what pictures that cannot tell may hide
NEARLY = 0.005  # of AUROC: what is given up for less arithmetic in any case
CLEARLY = 0.05  # of AUPRO: what the places of defects have to differ by, to choose
ENOUGH = 5  # labelled defects by which to choose
CEILING = 0.995
AS_LITTLE = 1.2  # times the least arithmetic; and times the least time
_SURE, _FAIRLY = 0.95, 0.8  # of the draws


@dataclass(frozen=True, kw_only=True)
class Contender:
    """A candidate that has been measured.

    Attributes:
        label: how people call it. seconds, flops: for a picture, as of `costs.measure`.
        generated, labelled: its row of `evidence.aurocs`; None where there is none.
        places: its row of `evidence.aupros`, by generated defects.
    """

    label: str
    seconds: float
    flops: float
    generated: Values | None
    labelled: Values | None = None
    places: Values | None = None


@dataclass(frozen=True, kw_only=True)
class Advice:
    """What to take.

    Attributes:
        chosen: position of the candidate. alike: positions of those that are not told from it.
        reasons: sentences. sure: how sure that is, a sentence; doubtful: whether it is not.
        by: what decided: so many labelled defects, generated ones, or both.
        by_places: whether some were left out as they show worse where defects are.
    """

    chosen: int
    alike: tuple[int, ...]
    reasons: tuple[str, ...]
    sure: str
    doubtful: bool
    by: str
    by_places: bool = False


def advised(contenders: Sequence[Contender], labelled: int) -> Advice | None:
    """What to take of those measured; None where there is none, or nothing to choose by.

    Args: labelled: how many labelled defects choose.
    """
    left = list(range(len(contenders)))
    reasons: list[str] = []
    judged: list[str] = []
    known: dict[int, Values] = {}
    compared: dict[int, Values] = {}  # by the last step, with what it put aside
    steps: list[tuple[str, Callable[[Contender], Values | None]]] = []
    if labelled >= ENOUGH:
        steps.append((pluralize(labelled, "labelled defect"), lambda one: one.labelled))
    steps.append(("generated defects", lambda one: one.generated))
    for what, row_of in steps:
        if judged and len(left) == 1:
            break
        found = {at: row for at in left if (row := row_of(contenders[at])) is not None}
        if not found:
            continue
        known, compared = found, found
        best, left = _not_told_apart(known, [one.flops for one in contenders])
        judged.append(what)
        reasons += _reasons(what, contenders, known, best, left)
    if not judged:
        return None
    if said := _placed(contenders, left):
        reasons.append(said)
    by_places = bool(said)
    known = {at: known[at] for at in left}
    chosen = _cheapest(contenders, known, _as_good(known))
    if len(left) > 1:
        reasons += _costs(contenders, chosen, known)
    reasons += _shown_better(contenders, chosen)
    within = _within(compared, chosen)
    return Advice(
        chosen=chosen,
        alike=tuple(at for at in left if at != chosen),
        reasons=tuple(reasons),
        sure=_sure(within, judged[-1])
        if len(contenders) > 1
        else "There is nothing that it could be compared with.",
        doubtful=within < _FAIRLY,
        by=" and ".join(judged),
        by_places=by_places,
    )


def _not_told_apart(known: dict[int, Values], flops: Sequence[float]) -> tuple[int, list[int]]:
    """The best of some candidates, of several that are equal the one with the least arithmetic, and
    all that these pictures do not tell from it, itself included."""
    best = max(known, key=lambda at: (known[at][0], -flops[at]))
    left = [best]
    for at, row in known.items():
        apart = difference(known[best], row)
        if at != best and apart.low <= 0 and apart.value <= LITTLE:
            left.append(at)
    return best, sorted(left)


def _placed(contenders: Sequence[Contender], left: list[int]) -> str:
    """Take out of `left` what shows the places of defects clearly worse than the best of it, and
    say so; "" where there is nothing of the kind."""
    rows = {at: row for at in left if (row := contenders[at].places) is not None}
    if len(rows) < len(left) or len(left) == 1:
        return ""
    best = max(rows, key=lambda at: (rows[at][0], -contenders[at].flops))
    apart = {at: difference(rows[best], row) for at, row in rows.items()}
    worse = [at for at in left if apart[at].low > 0 and apart[at].value > CLEARLY]
    if not worse:
        return ""
    left[:] = [at for at in left if at not in worse]
    near = max(worse, key=lambda at: rows[at][0])
    return (
        f"Of these {contenders[best].label} shows best where the generated defects are: "
        f"{_points(apart[near].value)} points of AUPRO above {contenders[near].label} "
        f"({_interval(apart[near])}). Clearly worse at that, and left out for it: "
        f"{_named([contenders[at].label for at in worse])}."
    )


def _shown_better(contenders: Sequence[Contender], chosen: int) -> list[str]:
    """What shows the places of defects better than the chosen one, of all that were measured."""
    mine = contenders[chosen].places
    rows = {at: one.places for at, one in enumerate(contenders) if one.places is not None}
    if mine is None:
        return []
    best = max(rows, key=lambda at: (rows[at][0], -contenders[at].flops))
    apart = difference(rows[best], mine)
    if apart.low <= 0 or apart.value <= LITTLE:
        return []
    one, other = contenders[best], contenders[chosen]
    return [
        f"Where it counts in which place a defect is: {one.label} shows that better, by "
        f"{_points(apart.value)} points of AUPRO on generated defects ({_interval(apart)}); it "
        f"needs {_billions(one)} a picture, {other.label} {_billions(other)}."
    ]


def _as_good(known: dict[int, Values]) -> list[int]:
    """The best, and what is as good: see the head of the module."""
    top = max(known.values(), key=lambda row: float(row[0]))
    return [
        at
        for at, row in known.items()
        if top[0] - row[0] <= NEARLY or (top[1:] > row[1:]).mean() < _FAIRLY
    ]


def _cheapest(
    contenders: Sequence[Contender], known: dict[int, Values], some: Sequence[int]
) -> int:
    """Of some the one with the least arithmetic; of several that need about as much, the best."""
    least = AS_LITTLE * min(contenders[at].flops for at in some)
    cheap = [at for at in some if contenders[at].flops <= least]
    return max(cheap, key=lambda at: (known[at][0], -contenders[at].flops))


def _reasons(
    what: str,
    contenders: Sequence[Contender],
    known: dict[int, Values],
    best: int,
    left: Sequence[int],
) -> list[str]:
    """What a step has found, in words."""
    top = contenders[best].label
    if len(known) == 1:
        return []
    said = []
    if len(left) == 1:
        second = max((at for at in known if at != best), key=lambda at: known[at][0])
        apart = difference(known[best], known[second])
        doubt = "" if apart.low > 0 else ", so this may be chance, but they may differ by much"
        said.append(
            f"By {what} {top} is best: {_points(apart.value)} points of AUROC above "
            f"{contenders[second].label}, the next ({_interval(apart)}){doubt}."
        )
    else:
        others = [at for at in left if at != best]
        farthest = max(others, key=lambda at: known[best][0] - known[at][0])
        apart = difference(known[best], known[farthest])
        names = _named([contenders[at].label for at in sorted(left)])
        shown = (
            f"{top} is {_points(apart.value)} points of AUROC above "
            f"{contenders[farthest].label} ({_interval(apart)})"
        )
        if apart.low == apart.high == 0:
            shown = f"they have the same AUROC, {100 * known[best][0]:.1f} %"
        said.append(
            f"By {what} there is no difference between {names} that these pictures could show: "
            f"{shown}."
        )
    worse = [at for at in known if at not in left]
    if worse and len(left) > 1:
        said.append(f"Worse by {what}: {_named([contenders[at].label for at in worse])}.")
    if known[best][0] >= CEILING and len(left) > 1:
        said.append(f"Nearly all of the {what} are found by each of them: harder ones might tell.")
    return said


def _costs(contenders: Sequence[Contender], chosen: int, known: dict[int, Values]) -> list[str]:
    """Why the chosen one of those that are left, what is cheaper, and what was quicker here."""
    mine, others = contenders[chosen], [contenders[at] for at in known]
    most = max((contenders[at] for at in _as_good(known)), key=lambda one: one.flops)
    said = []
    if most.flops > AS_LITTLE * mine.flops:
        said.append(
            f"{mine.label} needs {_billions(mine)} a picture, {most.label} {_billions(most)}, and "
            "it is not fairly sure that so much more arithmetic finds more."
        )
    low = _cheapest(contenders, known, [*known])
    cheap = contenders[low]
    if AS_LITTLE * cheap.flops < mine.flops:
        said.append(
            f"Where time counts: {cheap.label} needs {_billions(cheap)} a picture, {mine.label} "
            f"{_billions(mine)}, and lies {_points(known[chosen][0] - known[low][0])} points below."
        )
    dear = max(others, key=lambda one: one.flops)
    if not said and dear.flops > AS_LITTLE * mine.flops:
        said.append(
            f"{mine.label} is best of these and needs least, {_billions(mine)} a picture; "
            f"{dear.label} {_billions(dear)}."
        )
    elif not said:
        said.append(f"They need about as much arithmetic; of these {mine.label} is best.")
    quick = min(others, key=lambda one: one.seconds)
    if AS_LITTLE * quick.seconds < mine.seconds and quick is not cheap:
        said.append(
            f"In this run {quick.label} was quicker, {1000 * quick.seconds:.3g} ms a picture, and "
            f"{mine.label} took {1000 * mine.seconds:.3g} ms. Such times change with what else the "
            "machine does, so they do not decide."
        )
    return said


def _billions(one: Contender) -> str:
    return f"{one.flops / 1e9:.3g} GFLOP"


def _within(compared: dict[int, Values], chosen: int) -> float:
    """The share of the draws in which the chosen one is within the margin of the best of those that
    the last step has compared."""
    best = np.stack([*compared.values()]).max(0)
    return float((best - compared[chosen] <= LITTLE)[1:].mean())


def _sure(within: float, what: str) -> str:
    word = "sure" if within >= _SURE else "fairly sure" if within >= _FAIRLY else "not sure"
    return (
        f"This is {word}, as far as {what} go: drawn again from these pictures, it is "
        f"within {100 * LITTLE:g} points of AUROC of the best in {100 * within:.0f} % of the draws."
    )


def _points(value: float) -> str:
    return f"{100 * value:.1f}"


def _interval(apart: Estimate) -> str:
    return f"95 % interval {_points(apart.low)} to {_points(apart.high)}"


def _named(labels: Sequence[str]) -> str:
    return labels[0] if len(labels) == 1 else f"{', '.join(labels[:-1])} and {labels[-1]}"

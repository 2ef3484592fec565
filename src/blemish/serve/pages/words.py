"""What a score means, in words."""

from __future__ import annotations

from blemish.serve.pages.rendering import percent, score
from blemish.serve.reviewing import WHY
from blemish.store import Row


def verdict(row: Row) -> str:
    """One sentence on the verdict.

    It says the score, the threshold and the relation of the two.
    """
    if row.threshold is None or row.label is None:
        return f"Scored {score(row.score)}; without a threshold there is no verdict."
    side = "above" if row.score > row.threshold else "not above"
    return f"Scored {score(row.score)}, {side} the threshold of {score(row.threshold)}."


def rarity(row: Row) -> str:
    """What the p-value says; "" without one."""
    if row.p_value is None:
        return ""
    if row.p_value >= 0.5:
        return "As usual for a good picture: more than half of them score as high or higher."
    share = percent(row.p_value)
    if row.label:
        return f"Of good pictures, at most {share} score as high as this (p = {row.p_value:.3g})."
    return f"Of good pictures, about {share} score as high or higher (p = {row.p_value:.3g})."


def margin(row: Row) -> str:
    """That the verdict is near to the other one; "" where it is not, or there is none."""
    if not row.threshold or abs(row.score - row.threshold) > 0.05 * abs(row.threshold):
        return ""
    return "That is close: a little light or dust could turn the verdict."


def why(row: Row, reason: str) -> str:
    """Why the queue shows a picture. Args: reason: as a key of `WHY`.

    Every picture's turn comes; those near the threshold, and alarms, only come sooner.
    """
    if reason != "threshold" or margin(row):
        return WHY[reason]
    if row.label:
        return "an alarm"
    return "its turn has come; pictures nearer to the threshold come sooner"


def regions(row: Row) -> str:
    """Where it stands out."""
    if row.regions is None:
        return "This detector draws no regions."
    found = len(row.regions)
    if not found:
        return "No place stands out."
    share = percent(sum(float(one["share"]) for one in row.regions))
    places = "One place stands out" if found == 1 else f"{found} places stand out"
    return f"{places}, {share} of the picture."

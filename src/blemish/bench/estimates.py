"""How long runs will take: as long as earlier runs that were like them."""

from __future__ import annotations

import json
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from blemish.bench.plan import Run
from blemish.bench.results.rows import OK, Row
from blemish.compute import pick_device
from blemish.text import duration, pluralize


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """What a run may take: `seconds`, None where no earlier row is like it; `basis`: what they are
    taken from."""

    run: Run
    seconds: float | None
    basis: str

    def __str__(self) -> str:
        told = "no telling" if self.seconds is None else f"about {duration(self.seconds)}"
        return f"{self.run}: {told} ({self.basis})"

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready: the run, with `seconds` and `basis`."""
        return {**self.run.to_dict(), "seconds": self.seconds, "basis": self.basis}


def estimate(
    runs: Iterable[Run], rows: Sequence[Row] = (), *, device: str = "auto"
) -> list[Estimate]:
    """What each of the runs may take, in their order: the median of the rows of the same method,
    data, backbone, size asked for and kind of device.

    Args:
        rows: as `blemish.bench.results.read_rows` gives them.
        device: as of `blemish.bench.run.run`.
    Raises: ConfigError for a device or config that is wrong.
    """
    kind = pick_device(device).type
    took: dict[str, list[float]] = {}
    for row in rows:
        if row["status"] == OK:
            like = _like(row, row["changed"], row["backbone"], row["device"]["type"])
            scoring = row["counts"]["pictures"] / row["images_per_second"]
            took.setdefault(like, []).append(row["seconds_to_fit"] + scoring)
    found: list[Estimate] = []
    for one in runs:
        known = took.get(_like(one.to_dict(), one.settings, one.config.backbone, kind), [])
        seconds = round(statistics.median(known), 1) if known else None
        basis = pluralize(len(known), "earlier row") if known else "no earlier row is like it"
        found.append(Estimate(run=one, seconds=seconds, basis=basis))
    return found


def _like(asked: Mapping[str, Any], changed: Mapping[str, Any], backbone: str, device: str) -> str:
    """What a run and its rows have in common; a recipe with a size asked for stands for one
    resolution."""
    parts = [asked["method"], asked["recipe"], asked["data"], backbone, changed.get("image_size")]
    return json.dumps([*parts, device])


def total(estimates: Iterable[Estimate], jobs: int = 1) -> float:
    """Seconds until all of them are done with `jobs` at once; those of which nothing can be told
    count as none."""
    return sum(each.seconds or 0.0 for each in estimates) / jobs

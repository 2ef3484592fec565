"""Rows against recipes: what a row's settings have that a recipe, as it is today, does not give."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from blemish import config as configs
from blemish.bench.results.rows import as_it_was
from blemish.detector.fit import configure
from blemish.errors import ConfigError

_LEFT_OPEN: tuple[Any, ...] = (
    [],
    "published",
)  # what a fit fills in, by the backbone or the data set


def departures(
    row: Mapping[str, Any], recipe: str, settings: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """The settings of a row that differ from a recipe of its method with `settings`; the seed is none of them.

    Recipes change and rows stay: what counts is what the row was measured with, not what it calls it. What a recipe
    leaves open counts only where the row was asked for it. Of a recipe or setting that there is no more, all that was
    asked for departs.
    """
    changed = row.get("changed", {})
    try:
        asked = configure(row["method"], recipe=recipe, values=settings, shots=row.get("shots"))
    except ConfigError:
        return dict(changed)
    wanted = configs.to_dict(asked)
    held = {**as_it_was(row["settings"]), **changed}
    found = {
        key: held[key]
        for key, value in wanted.items()
        if key != "seed"
        and key in held
        and (key in changed if value in _LEFT_OPEN else held[key] != value)
    }
    return {**found, **{key: value for key, value in changed.items() if key not in wanted}}

"""Every numeric option of every command refuses what it cannot be at once: before anything is
read, loaded or started."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from parts import Run

from blemish.cli.app import command_tree

NOT_NUMBERS = ("nan", "inf", "-inf")
SHARES = ("-0.1", "1", *NOT_NUMBERS)
INNER_SHARES = ("0", *SHARES)
POSITIVE = ("0", "-1", *NOT_NUMBERS)
NOT_NEGATIVE = ("-1", *NOT_NUMBERS)
COUNTS = ("0", "-1")
HUGE = str(10**30)
# What each option refuses, whichever command has it.
REFUSED = {
    "--anomaly-count": ("-1",),
    "--batch-size": (*COUNTS, HUGE),
    "--calibration-fraction": SHARES,
    "--cells": COUNTS,
    "--count": COUNTS,
    "--defects": COUNTS,
    "--every": NOT_NEGATIVE,
    "--false-alarm-rate": INNER_SHARES,
    "--gpus-per-worker": (*NOT_NEGATIVE, "1e9"),
    "--interval": POSITIVE,
    "--jobs": (*COUNTS, "9999", HUGE),
    "--keep-days": (*POSITIVE, "1e9"),
    "--keep-gib": (*POSITIVE, "1e9"),
    "--largest-batch": (*COUNTS, HUGE),
    "--largest-picture": (*COUNTS, HUGE),
    "--largest-upload": (*COUNTS, HUGE),
    "--longest-wait": (*NOT_NEGATIVE, "1e9"),
    "--margin": NOT_NEGATIVE,
    "--minutes": POSITIVE,
    "--miss-rate": INNER_SHARES,
    "--num-workers": (*COUNTS, HUGE),
    "--overlap": ("-0.1", "0.95", *NOT_NUMBERS),
    "--part-pictures": COUNTS,
    "--patience": NOT_NEGATIVE,
    "--port": ("-1", "65536"),
    "--queue": (*COUNTS, HUGE),
    "--region-threshold": NOT_NUMBERS,
    "--seed": ("-1", HUGE),
    "--settle": NOT_NEGATIVE,
    "--shots": COUNTS,
    "--size": ("63", "2049"),
    "--smallest-defect": ("0.001", "0.6", *NOT_NUMBERS),
    "--smallest-region": SHARES,
    "--threads": (*COUNTS, "9999", HUGE),
    "--threshold": NOT_NUMBERS,
    "--time-budget": POSITIVE,
    "--compute-budget": POSITIVE,
    "--time-limit": (*POSITIVE, "1e9"),
}


def numeric(command: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], str, Any]]:
    """Each numeric option: its command, its name, and all of the command's parameters."""
    for name, inner in getattr(command, "commands", {}).items():
        yield from numeric(inner, (*path, name))
    for one in command.params:
        if one.type_descriptor.annotation in (int, float):
            yield path, one.opts[0], command.params


OPTIONS = [*numeric(command_tree())]


def test_the_table_is_of_all_of_them() -> None:
    assert {name for _, name, _ in OPTIONS} == set(REFUSED)
    assert {path[0] for path, _, _ in OPTIONS} >= {"fit", "predict", "bench", "serve", "data"}


@pytest.mark.parametrize(
    ("path", "option", "others"),
    OPTIONS,
    ids=[" ".join((*path, name)) for path, name, _ in OPTIONS],
)
def test_it_is_refused_at_once(path: tuple[str, ...], option: str, others: Any, run: Run) -> None:
    needed: list[str] = []
    for one in others:
        if one.required:  # nothing of it is there: whoever reads it first would say so
            needed += [one.opts[0], "/nowhere"] if one.opts[0].startswith("-") else ["/nowhere"]
    for value in REFUSED[option]:
        status, said, error = run(*path, *needed, f"{option}={value}")
        assert (status, said) == (2, "")
        assert option in error
        assert "/nowhere" not in error
        assert "bug" not in error


@pytest.mark.parametrize("engine", ["--engine ray", "--engine ray --threads 64"])
def test_workers_that_no_machine_has(engine: str, run: Run) -> None:
    """Ray would start a process for each."""
    given = f"{engine} --num-workers 9999"
    for command in (
        f"predict /nowhere /nowhere --output /nowhere {given}",
        f"evaluate /nowhere /nowhere {given.replace('--threads 64', '')}",
        f"fit knn /nowhere -o /tmp/nowhere.blemish {given.replace('--threads 64', '')}",
    ):
        status, said, error = run(*command.split())
        assert (status, said) == (2, "")
        assert "choose fewer" in error or "ask for fewer" in error
        assert "/nowhere" not in error

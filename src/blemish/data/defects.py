"""The labelled defects that a user names to learn from, and draws from them by a seed."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from blemish.data.layouts import recognition as layouts
from blemish.data.splits import draw_anomalies
from blemish.errors import DataError
from blemish.types import ANOMALOUS, Sample


@dataclass(frozen=True)
class Defects:
    """Pictures of defects, what is known of each, and how what named them was recognised."""

    sources: list[Any]
    samples: list[Sample]
    note: str


NONE = Defects([], [], "")


def labelled_defects(
    given: Any, *, count: int | None = None, kind: str | None = None, seed: int = 0
) -> Defects:
    """The pictures of defects that `given` names, or `count` of them drawn by the seed.

    Args:
        given: as of `blemish.fit`. Of a flat folder all pictures count, of a data set those labelled as defective.
        count: M; a smaller one draws a part of what a larger one draws. None = all.
        kind: only defects of this type.
    Raises: DataError where there is none, none of that type, or fewer than `count`; ConfigError for a negative count.
    """
    sources: list[Any] = []
    samples: list[Sample] = []
    notes: list[str] = []
    alone = isinstance(given, (str, Path, np.ndarray)) or not isinstance(given, Iterable)
    for item in [given] if alone else given:
        if isinstance(item, (str, Path)):
            found, note = _read(item)
            sources += [sample.path for sample in found]
            samples += found
            notes.append(note)
        elif isinstance(item, Sample):
            sources.append(item.path)
            samples.append(replace(item, label=ANOMALOUS))
        else:  # drawn by its place in the list
            sources.append(item)
            samples.append(Sample(path=Path(f"{len(samples):09d}"), label=ANOMALOUS))
    chosen = list(range(len(samples)))
    if kind is not None:
        kinds = sorted({sample.defect for sample in samples} - {""})
        chosen = [position for position in chosen if samples[position].defect == kind]
        if not chosen:
            raise DataError(
                f"no defect is of type {kind!r}; the types here are {', '.join(kinds) or 'not known'}"
            )
    if not chosen:
        raise DataError("anomalies: there is no picture of a defect")
    if count is not None:
        stand_ins = {samples[position]: position for position in chosen}
        chosen = [stand_ins[sample] for sample in draw_anomalies(stand_ins, count, seed)[0]]
    note = "; ".join(notes) or f"{len(sources)} pictures given one by one"
    return Defects(
        [sources[position] for position in chosen], [samples[position] for position in chosen], note
    )


def _read(path: str | Path) -> tuple[list[Sample], str]:
    dataset = layouts.read(path, unlabelled=ANOMALOUS)
    found = [sample for sample in dataset.samples if sample.label == ANOMALOUS]
    if not found:
        raise DataError(
            f"{path}: holds no picture that is known to be defective; {dataset.description}"
        )
    return found, "; ".join([dataset.description, *dataset.left_out])

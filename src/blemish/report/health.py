"""How a pre-training went: the figure of its log, which lies beside it."""

from __future__ import annotations

import base64
import json
from array import array
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import cv2
import numpy as np
import numpy.typing as npt

from blemish.errors import CollapseError, DataError, NonFiniteError, OutputError
from blemish.files import ROWS_BYTES, open_regular, write_whole
from blemish.report.heatmap import Picture, attention_overlay

_TITLES = {
    "loss": "loss",
    "assignment_entropy": "entropy of the targets / log K",
    "prototype_usage": "prototypes in use",
    "agreement": "agreement of teacher and student",
    "feature_spread": "spread of the features",
    "projection_spread": "spread of the head's features",
}


def figure_of(log: Path) -> Path:
    """Where the figure of a log lies.

    Example:
        >>> figure_of(Path("encoder.log.jsonl")).name
        'encoder.health.png'
    """
    return log.with_name(log.name.removesuffix(".jsonl").removesuffix(".log") + ".health.png")


@contextmanager
def illustrated(log: Path | None, *, note: Callable[[str], None]) -> Iterator[None]:
    """Draw the figure of a pre-training's log when the block ends, or when its training fails.

    Args: note: called with a sentence where the figure cannot be written: what was learned counts.
    Raises: what the block raises; where its training has failed with the figure's path added.
    """
    before = _stamp(log)
    try:
        yield
    except (CollapseError, NonFiniteError) as error:
        if log is None or _stamp(log) == before:  # it failed before the first step
            raise
        if not _drawn(log, note):
            raise
        raise type(error)(f"{error}\n  how it came about: {figure_of(log)}") from error
    if log is not None and log.exists():
        _drawn(log, note)


def _drawn(log: Path, note: Callable[[str], None]) -> bool:
    try:
        draw(log)
    except OutputError as error:
        note(f"{error}; the figure is drawn from {log}, which is whole")
        return False
    return True


def draw(log: Path) -> Path:
    """Draw the figure of all steps in a log. Returns: its path."""
    from blemish.report import figures  # not for every fit: matplotlib takes time and memory

    curves, attention, picture = read_log(log)
    if picture is None:  # a log whose first lines are lost
        picture = np.full((256, 256, 3), 128, np.uint8)
    tiles = [("the picture", picture)]
    tiles += [
        (f"step {step:,}", attention_overlay(picture, seen)) for step, seen in attention.items()
    ]
    shown = {title: curves[name] for name, title in _TITLES.items() if name in curves}
    figure = figures.health(curves["step"], shown, tiles)
    write_whole(figure_of(log), figure, picture=True)
    return figure_of(log)


def read_log(
    path: Path,
) -> tuple[dict[str, array[float]], dict[int, npt.NDArray[np.float64]], Picture | None]:
    """What a log holds: by name the values of all steps ("step" among them), by step the attention
    h w, and the picture H W 3 that it is of."""
    curves: dict[str, array[float]] = {}
    attention: dict[int, npt.NDArray[np.float64]] = {}
    picture: Picture | None = None
    with open_regular(path, limit=ROWS_BYTES, error=DataError) as file:
        for row in map(json.loads, file):
            if "attention" not in row:
                for name, value in row.items():
                    curves.setdefault(name, array("d")).append(value)
                continue
            attention[row["step"]] = np.array(row["attention"])
            if "picture" in row:
                content = np.frombuffer(base64.b64decode(row["picture"]), dtype=np.uint8)
                decoded = cv2.imdecode(content, cv2.IMREAD_COLOR)
                picture = np.asarray(decoded, np.uint8)[..., ::-1]
    return curves, attention, picture


def _stamp(log: Path | None) -> tuple[int, int] | None:
    if log is None or not log.exists():
        return None
    status = log.stat()
    return status.st_mtime_ns, status.st_size

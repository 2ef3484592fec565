"""The figures of `blemish figures`, and of a pre-training, as PNG or SVG files in memory.

Those of a report are `charts`, which need no matplotlib. These are drawn with its object-oriented
interface, without pyplot and its global list of figures. The same input gives the same bytes: no
date, no random ids. Every figure raises NonFiniteError for a value that is not finite, and
ConfigError for lengths that differ.
"""

from __future__ import annotations

import io
import threading
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Literal

import matplotlib
import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from blemish.errors import ConfigError
from blemish.report.charts import (
    ANOMALOUS_COLOUR,
    FAINT,
    FONTS,
    INK,
    NORMAL_COLOUR,
    UNLABELLED_COLOUR,
    Curve,
    Spread,
    bins,
    checked_curve,
    counts,
    finite,
)
from blemish.text import printable
from blemish.types import ANOMALOUS, NORMAL

Format = Literal["svg", "png"]
Picture = npt.NDArray[np.uint8]

# Of the kinds of defects, the most frequent first. There are more colours than marks, so that
# twenty kinds differ in one or the other.
_KINDS = (ANOMALOUS_COLOUR, "#009e73", "#cc79a7", "#e69f00", "#000000")
_MARKS = ("^", "s", "D", "v")
_NAMED = 11  # kinds of defects with a mark of their own; the others share one
_STYLE: Any = {  # newer matplotlib types the keys one by one; older has no such type
    "axes.edgecolor": FAINT,
    "axes.axisbelow": True,
    "axes.grid": True,
    "axes.labelcolor": INK,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "font.family": ["sans-serif"],
    "font.sans-serif": list(FONTS),  # the last is matplotlib's own
    "font.size": 10.0,
    "grid.color": FAINT,
    "grid.linewidth": 0.6,
    "legend.fontsize": 9.5,
    "legend.frameon": False,
    "svg.fonttype": "none",
    "svg.hashsalt": "blemish",
    "text.color": INK,
    "xtick.color": FAINT,
    "xtick.labelcolor": INK,
    "ytick.color": FAINT,
    "ytick.labelcolor": INK,
}
_LABEL: Any = {"facecolor": "white", "edgecolor": "none", "alpha": 0.85, "pad": 1.5}
_TEXT: Any = {"fontsize": 9.5, "va": "center", "parse_math": False}
# Of t-SNE, as van der Maaten and Hinton (2008) use it; of few points a third of their number.
_PERPLEXITY = 30.0
_NAME_LENGTH, _HEAD_LENGTH = 26, 20  # signs of a line beside a row of pictures, and above one
_BINS = 150  # points of a line over the steps of a training
# matplotlib reads its settings from one place in the process; two threads must not swap them at
# the same time.
_SETTINGS = threading.Lock()


@dataclass(frozen=True, kw_only=True)
class Row:
    """A row of a gallery.

    Attributes:
        caption: a few lines, beside the pictures.
        tiles: title of a column -> uint8 H W 3. labels: title -> words in the picture's corner.
    """

    caption: str
    tiles: Mapping[str, Picture]
    labels: Mapping[str, str] = field(default_factory=dict)


def score_histograms(panels: Mapping[str, Spread], *, format: Format = "svg") -> bytes:
    """How scores are spread, per class, with the threshold as a line; of several detectors side by
    side, each on an axis of its own, as their units differ.

    The classes share bins, which meet at the threshold, so that no bar stands on both sides of it;
    a bin holds its upper edge, as a score equal to the threshold is no alarm.

    Args: panels: name of a detector -> its scores, at least one.
    """
    count = len(panels)
    width, height = (7.6, 3.0) if count == 1 else (5.2 * count, 3.2)
    with _figure(format, width=width, height=height) as (figure, sheet):
        plots = figure.subplots(1, count, squeeze=False)[0]
        for axes, (name, spread) in zip(plots, panels.items(), strict=True):
            _histogram(axes, spread, name)
    return sheet.getvalue()


def _histogram(axes: Axes, spread: Spread, title: str) -> None:
    classes, threshold = spread.classes(), spread.threshold
    edges = bins(np.concatenate(list(classes.values())), threshold)
    for (name, colour), scores in classes.items():
        if scores.size:
            heights = counts(scores, edges)
            axes.stairs(heights, edges, fill=True, color=colour, alpha=0.35)
            label = f"{name} ({scores.size:,})"
            axes.stairs(heights, edges, color=colour, linewidth=1.4, label=label)
    if threshold is not None:
        label = f"threshold {threshold:.4g}"
        axes.axvline(threshold, color=INK, linewidth=1.5, linestyle=(0, (4, 2)), label=label)
    empty = not any(scores.size for scores in classes.values())
    if empty:
        axes.text(0.5, 0.5, "no scores", transform=axes.transAxes, ha="center", va="center")
    axes.set(xlabel="score", ylabel="pictures")
    axes.set_ylim(bottom=0)
    axes.yaxis.set_major_locator(MaxNLocator(nbins=5, steps=[1, 2, 5, 10], integer=True))
    axes.grid(visible=False, axis="x")
    if not empty or threshold is not None:
        legend = axes.legend(
            loc="lower left",
            bbox_to_anchor=(0.0, 1.0),
            ncols=4,
            borderaxespad=0.2,
            columnspacing=1.6,
            title=_shortened(title) or None,
            alignment="left",
        )
        legend.get_title().set_parse_math(False)


def health(
    steps: Curve,
    curves: Mapping[str, Curve],
    tiles: Sequence[tuple[str, Picture]],
    *,
    format: Format = "png",
) -> bytes:
    """How a training went: small plots side by side, and below them pictures in a row.

    Of many steps a plot shows the mean of a few at a time as a line, and behind it their range as a
    band.

    Args:
        steps: N numbers of steps, rising.
        curves: title -> N values, at least one.
        tiles: (caption, uint8 H W 3), at least one.
    """
    with _figure(format, width=2.4 * max(5, len(curves)), height=4.4) as (figure, sheet):
        above, below = figure.subfigures(2, 1, height_ratios=(3, 2), squeeze=False)[:, 0]
        plots = above.subplots(1, len(curves), squeeze=False)[0]
        for axes, (title, values) in zip(plots, curves.items(), strict=True):
            x, y = checked_curve("steps", steps, title, values)
            places = np.linspace(0, x.size, min(x.size, _BINS), endpoint=False)
            starts = np.unique(places.astype(np.int64))
            each = np.diff(np.append(starts, x.size))
            middle, mean = (np.add.reduceat(values, starts) / each for values in (x, y))
            low, high = np.minimum.reduceat(y, starts), np.maximum.reduceat(y, starts)
            axes.fill_between(middle, low, high, color=NORMAL_COLOUR, alpha=0.2, linewidth=0)
            marker = "." if x.size == 1 else ""
            axes.plot(middle, mean, color=NORMAL_COLOUR, linewidth=1.6, marker=marker)
            axes.set_title(title, fontsize=9.5)
            axes.set_xlabel("steps")
            axes.xaxis.set_major_locator(MaxNLocator(nbins=4, integer=True))
        frames = below.subplots(1, len(tiles), squeeze=False)[0]
        for axes, (caption, picture) in zip(frames, tiles, strict=True):
            axes.imshow(picture)
            axes.set_title(caption, fontsize=9.5)
            axes.axis("off")
    return sheet.getvalue()


def embeddings(
    points: Mapping[str, npt.ArrayLike],
    labels: Sequence[int],
    names: Sequence[str] | None = None,
    *,
    format: Format = "svg",
) -> bytes:
    """The features of pictures in the plane; of several detectors side by side. What lies close
    together there is alike; far apart says little.

    t-SNE (van der Maaten and Hinton 2008) from the first two principal components, with one and the
    same seed.

    Args:
        points: name of a detector -> N D, a feature vector per picture, N >= 3, D >= 2; at least
            one.
        labels: N, 0 normal or 1 anomalous.
        names: N kinds of defects, told apart by mark and colour; those of normal pictures are
            ignored, and "" is of no known kind. None: of no known kind, all of them.
    Raises: ConfigError for fewer than 3 points or 2 features.
    """
    truth = np.asarray(labels)
    kinds = np.asarray(["" for _ in truth] if names is None else names, dtype=object)
    placed = {title: _placed(features, truth, kinds) for title, features in points.items()}
    groups = _groups(truth, kinds)
    with _figure(format, width=2.2 + 4.2 * len(placed), height=4.4) as (figure, sheet):
        plots = figure.subplots(1, len(placed), squeeze=False)[0]
        for axes, (title, (places, perplexity)) in zip(plots, placed.items(), strict=True):
            handles = [
                axes.scatter(*places[chosen].T, color=colour, marker=mark, s=26, alpha=0.75, lw=0)
                for _, chosen, colour, mark in groups
            ]
            axes.set_title(_shortened(title), fontsize=9.5, parse_math=False)
            what = f"t-SNE of {len(places):,} pictures, perplexity {perplexity:.3g}"
            axes.set(xticks=[], yticks=[], xlabel=what)
        # The number stands first: matplotlib leaves out a label that begins with an underscore.
        told = [f"{int(chosen.sum()):,} {name}" for name, chosen, _, _ in groups]
        legend = axes.legend(handles, told, loc="upper left", bbox_to_anchor=(1.0, 1.0))
        for text in legend.get_texts():
            text.set_parse_math(False)
    return sheet.getvalue()


def _groups(
    truth: npt.NDArray[Any], kinds: npt.NDArray[Any]
) -> list[tuple[str, npt.NDArray[np.bool_], str, str]]:
    """Good pictures, the most frequent kinds of defects and the other defects, as far as there are
    any: name, N of them or not, colour and mark."""
    defective = truth == ANOMALOUS
    frequent = [name for name, _ in Counter(kinds[defective & (kinds != "")]).most_common(_NAMED)]
    groups = [("good", truth == NORMAL, NORMAL_COLOUR, "o")]
    for place, name in enumerate(frequent):
        looks = _KINDS[place % len(_KINDS)], _MARKS[place % len(_MARKS)]
        groups.append((printable(name), defective & (kinds == name), *looks))
    rest = ("other defects", UNLABELLED_COLOUR) if frequent else ("defective", ANOMALOUS_COLOUR)
    groups.append((rest[0], defective & ~np.isin(kinds, frequent), rest[1], "X"))
    return [group for group in groups if group[1].any()]


def _placed(
    points: npt.ArrayLike, truth: npt.NDArray[Any], kinds: npt.NDArray[Any]
) -> tuple[npt.NDArray[np.float32], float]:
    """Where points N D lie in the plane, N 2, and the perplexity. Raises: as `embeddings`."""
    features = np.asarray(points, dtype=np.float32)
    if features.ndim != 2 or features.shape[0] < 3 or features.shape[1] < 2:
        raise ConfigError(
            "t-SNE needs 3 or more points of 2 or more features; "
            f"these are of shape {features.shape}"
        )
    finite("features", features)
    if not len(features) == len(truth) == len(kinds):
        raise ConfigError(
            f"{len(features)} points, {len(truth)} labels and {len(kinds)} names; "
            "as many are needed"
        )
    perplexity = min(_PERPLEXITY, (len(features) - 1) / 3)
    return _tsne(features, perplexity), perplexity


def gallery(
    rows: Sequence[Row], *, columns: Sequence[str] = (), note: str = "", format: Format = "png"
) -> bytes:
    """Pictures in rows: under each column's title what each row has of it.

    Args:
        rows: at least one. Where one lacks a column's picture, its place stays empty.
        columns: the titles in their order; empty = in the order in which they first come.
        note: lines below all of them.
    Raises: ConfigError without a picture.
    """
    titles = list(columns) or list(dict.fromkeys(title for row in rows for title in row.tiles))
    if not any(title in row.tiles for title in titles for row in rows):
        raise ConfigError("a gallery needs at least one picture")
    wide, high, head = 1.9, 1.7, 0.3  # inches: of a place, and of the line of titles
    foot = head * len(note.splitlines())
    size = wide * (1 + len(titles)), head + high * len(rows) + foot
    # All in one plot, in inches: one for each picture would take seconds to lay out.
    with _figure(format, width=size[0], height=size[1]) as (figure, sheet):
        axes = figure.add_subplot()
        for column, title in enumerate(titles, start=1):
            name = _shortened(title, _HEAD_LENGTH)
            axes.text(wide * (column + 0.5), head / 2, name, ha="center", **_TEXT)
        for number, row in enumerate(rows):
            middle = head + high * (number + 0.5)
            lines = "\n".join(map(_shortened, row.caption.splitlines()))
            axes.text(0.0, middle, lines, **{**_TEXT, "fontsize": 8.5})
            for column, title in enumerate(titles, start=1):
                if title not in row.tiles:
                    continue
                tall, across = row.tiles[title].shape[:2]
                half = 0.5 * min((wide - 0.1) / across, (high - 0.1) / tall)  # of a pixel's side
                centre = wide * (column + 0.5)
                left, right = centre - half * across, centre + half * across
                bottom, top = middle + half * tall, middle - half * tall
                axes.imshow(row.tiles[title], extent=(left, right, bottom, top))
                if title in row.labels:
                    corner: Any = {**_TEXT, "fontsize": 8, "va": "top", "bbox": _LABEL}
                    axes.text(left + 0.04, top + 0.04, row.labels[title], **corner)
        axes.text(size[0] / 2, size[1] - foot / 2, note, ha="center", **_TEXT)
        axes.set(xlim=(0.0, size[0]), ylim=(size[1], 0.0), aspect="equal")
        axes.axis("off")
    return sheet.getvalue()


@contextmanager
def _figure(format: Format, *, width: float, height: float) -> Iterator[tuple[Figure, io.BytesIO]]:
    """A figure, and the file that it fills when the block ends. Sizes in inches."""
    sheet = io.BytesIO()
    with _SETTINGS, matplotlib.rc_context():
        matplotlib.rcdefaults()  # the report looks the same whatever the user's matplotlibrc says
        matplotlib.rcParams.update(_STYLE)
        figure = Figure(figsize=(width, height), layout="constrained", facecolor="white")
        FigureCanvasAgg(figure)
        yield figure, sheet
        metadata = {"Date": None, "Creator": None} if format == "svg" else {"Software": None}
        figure.savefig(sheet, format=format, dpi=144, metadata=metadata)


def _tsne(features: npt.NDArray[np.float32], perplexity: float) -> npt.NDArray[np.float32]:
    """N D in the plane: N 2."""
    from sklearn.manifold import TSNE  # takes a second to come, and this figure alone needs it

    spread = features.astype(np.float64) - features[0]
    if not spread.any():  # alike to the last bit: there are no neighbours to keep
        return np.zeros((len(features), 2), np.float32)
    placed = TSNE(perplexity=perplexity, init="pca", random_state=0).fit_transform(
        (spread / np.abs(spread).max()).astype(np.float32)
    )
    return np.asarray(placed, dtype=np.float32)


def _shortened(line: str, length: int = _NAME_LENGTH) -> str:
    """Its beginning and its end where it is too long; what is unprintable no SVG file can hold."""
    line = printable(line)
    half = (length - 1) // 2
    return line if len(line) <= length else f"{line[:half]}…{line[-half:]}"

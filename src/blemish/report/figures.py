"""The figures of a report as SVG or PNG files in memory.

Drawn with matplotlib's object-oriented interface, without pyplot and its global list of figures. The same input
gives the same bytes: no date, no random ids. Colours are Okabe and Ito's (2008), told apart with any colour vision.
"""

from __future__ import annotations

import io
import math
import threading
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Literal

import matplotlib
import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from blemish.errors import ConfigError, NonFiniteError
from blemish.types import ANOMALOUS, NORMAL

Format = Literal["svg", "png"]
Curve = npt.ArrayLike
Picture = npt.NDArray[np.uint8]

NORMAL_COLOUR, ANOMALOUS_COLOUR, UNLABELLED_COLOUR = "#0072b2", "#d55e00", "#56707f"
_COLOURS = {"good": NORMAL_COLOUR, "defective": ANOMALOUS_COLOUR, "scored": UNLABELLED_COLOUR}
# Of the kinds of defects, the most frequent first; the colours and the shapes of the marks repeat at different lengths.
_KINDS = (ANOMALOUS_COLOUR, "#009e73", "#cc79a7", "#e69f00", "#000000")
_MARKS = ("^", "s", "D", "v")
_NAMED = 11  # kinds of defects with a mark of their own; the others share one
_INK, _FAINT = "#1d2733", "#d5dbe1"
_STYLE: Any = {  # newer matplotlib types the keys one by one; older has no such type
    "axes.edgecolor": _FAINT,
    "axes.axisbelow": True,
    "axes.grid": True,
    "axes.labelcolor": _INK,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "font.family": ["sans-serif"],
    # An SVG names its fonts and the browser takes the first it has; the last is the one that matplotlib brings along.
    "font.sans-serif": ["system-ui", "Segoe UI", "Helvetica Neue", "Arial", "DejaVu Sans"],
    "font.size": 10.0,
    "grid.color": _FAINT,
    "grid.linewidth": 0.6,
    "legend.fontsize": 9.5,
    "legend.frameon": False,
    "svg.fonttype": "none",
    "svg.hashsalt": "blemish",
    "text.color": _INK,
    "xtick.color": _FAINT,
    "xtick.labelcolor": _INK,
    "ytick.color": _FAINT,
    "ytick.labelcolor": _INK,
}
_PERPLEXITY = 30.0  # of t-SNE, as van der Maaten and Hinton (2008) use it; of few points a third of their number
_NAME_LENGTH = 26  # signs of a line beside a row of pictures
_HEAD_LENGTH = 20  # of one above a picture
_LABEL: Any = {
    "facecolor": "white",
    "edgecolor": "none",
    "alpha": 0.85,
    "pad": 1.5,
}  # behind words on a picture
_BINS = 150  # points of a line over the steps of a training
# matplotlib reads its settings from one place in the process; two threads must not swap them at the same time.
_SETTINGS = threading.Lock()


def roc(fpr: Curve, tpr: Curve, auroc: float | None, *, format: Format = "svg") -> bytes:
    """The receiver operating characteristic: defects found against false alarms, over all thresholds.

    Args:
        fpr, tpr: K false- and true-positive rates, 0 to 1, in the order of the thresholds.
        auroc: the area, named in the figure; None where it is not defined.

    Returns: an SVG or PNG file.
    Raises: ConfigError if the lengths differ; NonFiniteError if a rate is not finite.
    """
    x, y = _curve("fpr", fpr, "tpr", tpr)
    with _sheet(format, width=4.2, height=3.6) as (axes, sheet):
        axes.plot(
            [0, 1], [0, 1], color=_INK, linewidth=1.0, linestyle=(0, (2, 3)), label="guessing"
        )
        axes.plot(
            x,
            y,
            color=NORMAL_COLOUR,
            linewidth=2.0,
            label=_area("AUROC", auroc),
            clip_on=False,
            zorder=3,
        )
        axes.fill_between(x, y, color=NORMAL_COLOUR, alpha=0.08, linewidth=0)
        axes.set(xlabel="false alarms / good pictures", ylabel="found / defective pictures")
        _unit_square(axes)
    return sheet.getvalue()


def precision_recall(
    precision: Curve, recall: Curve, ap: float | None, *, format: Format = "svg"
) -> bytes:
    """Precision against recall over all thresholds, as steps (no interpolation between thresholds).

    Args:
        precision, recall: K values, 0 to 1, in the order of the thresholds.
        ap: average precision, named in the figure; None where it is not defined.

    Returns: an SVG or PNG file.
    Raises: ConfigError if the lengths differ; NonFiniteError if a value is not finite.
    """
    y, x = _curve("precision", precision, "recall", recall)
    if x.size and x[0] > x[-1]:  # from the lowest threshold up
        x, y = x[::-1], y[::-1]
    with _sheet(format, width=4.2, height=3.6) as (axes, sheet):
        axes.step(
            x,
            y,
            where="pre",
            color=NORMAL_COLOUR,
            linewidth=2.0,
            label=_area("AP", ap),
            clip_on=False,
            zorder=3,
        )
        axes.fill_between(x, y, step="pre", color=NORMAL_COLOUR, alpha=0.08, linewidth=0)
        axes.set(
            xlabel="recall: found / defective pictures", ylabel="precision: defective / alarms"
        )
        _unit_square(axes)
    return sheet.getvalue()


def score_histogram(
    normal: Curve = (),
    anomalous: Curve | None = None,
    *,
    unlabelled: Curve | None = None,
    threshold: float | None = None,
    format: Format = "svg",
) -> bytes:
    """How the scores are spread, per class, with the threshold as a line.

    Bins are shared by the classes and meet at the threshold, so that no bar stands on both sides of it; a bin holds its
    upper edge, as a score equal to the threshold is no alarm.

    Args:
        normal, anomalous, unlabelled: raw scores of the pictures known good, known defective, and of unknown truth.
        threshold: in the same unit; None where there is none.

    Returns: an SVG or PNG file.
    Raises: NonFiniteError if a score or the threshold is not finite.
    """
    with _sheet(format, width=7.6, height=3.0) as (axes, sheet):
        _histogram(
            axes, [("good", normal), ("defective", anomalous), ("scored", unlabelled)], threshold
        )
    return sheet.getvalue()


def score_histograms(
    panels: Mapping[str, tuple[Curve, Curve, float | None]], *, format: Format = "svg"
) -> bytes:
    """How the scores of several detectors are spread, side by side, each on an axis of its own.

    Scores of different detectors are of different units; what can be compared is how far the classes lie apart.

    Args:
        panels: name of a detector -> scores of the good pictures, of the defective ones, and the threshold or None; at
            least one.

    Returns: an SVG or PNG file.
    Raises: NonFiniteError if a score or a threshold is not finite.
    """
    with _figure(format, width=5.2 * len(panels), height=3.2) as (figure, sheet):
        plots = figure.subplots(1, len(panels), squeeze=False)[0]
        for axes, (name, (normal, anomalous, threshold)) in zip(plots, panels.items(), strict=True):
            _histogram(axes, [("good", normal), ("defective", anomalous)], threshold, title=name)
    return sheet.getvalue()


def _histogram(
    axes: Axes,
    classes: Sequence[tuple[str, Curve | None]],
    threshold: float | None,
    *,
    title: str = "",
) -> None:
    """Scores by the name of their class (None: there is no such class) in bins that meet at the threshold."""
    found = [
        (name, scores)
        for name, values in classes
        if values is not None and (scores := _finite("scores", values)).size
    ]
    if threshold is not None and not math.isfinite(threshold):
        raise NonFiniteError(
            f"the threshold {threshold} cannot be drawn; give a finite score or None"
        )
    edges = _edges(
        np.concatenate([scores for _, scores in found]) if found else np.zeros(0), threshold
    )
    for name, scores in found:
        label, colour = f"{name} ({scores.size:,})", _COLOURS[name]
        counts = np.histogram(-scores, -edges[::-1])[0][::-1]  # negated: (a, b] in place of [a, b)
        axes.stairs(counts, edges, fill=True, color=colour, alpha=0.35)
        axes.stairs(counts, edges, color=colour, linewidth=1.4, label=label)
    if threshold is not None:
        label = f"threshold {threshold:.4g}"
        axes.axvline(threshold, color=_INK, linewidth=1.5, linestyle=(0, (4, 2)), label=label)
    if not found:
        axes.text(0.5, 0.5, "no scores", transform=axes.transAxes, ha="center", va="center")
    axes.set(xlabel="score", ylabel="pictures")
    axes.set_ylim(bottom=0)
    axes.yaxis.set_major_locator(MaxNLocator(nbins=5, steps=[1, 2, 5, 10], integer=True))
    axes.grid(visible=False, axis="x")
    if found or threshold is not None:
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

    Of many steps a plot shows the mean of a few at a time as a line, and behind it their range as a band.

    Args:
        steps: N numbers of steps, rising.
        curves: title -> N values, at least one.
        tiles: (caption, uint8 H W 3), at least one.

    Returns: an SVG or PNG file.
    Raises: ConfigError if the lengths differ; NonFiniteError if a value is not finite.
    """
    with _figure(format, width=2.4 * max(5, len(curves)), height=4.4) as (figure, sheet):
        above, below = figure.subfigures(2, 1, height_ratios=(3, 2), squeeze=False)[:, 0]
        plots = above.subplots(1, len(curves), squeeze=False)[0]
        for axes, (title, values) in zip(plots, curves.items(), strict=True):
            x, y = _curve("steps", steps, title, values)
            starts = np.unique(
                np.linspace(0, x.size, min(x.size, _BINS), endpoint=False).astype(np.int64)
            )
            each = np.diff(np.append(starts, x.size))
            middle = np.add.reduceat(x, starts) / each
            low, high = np.minimum.reduceat(y, starts), np.maximum.reduceat(y, starts)
            axes.fill_between(middle, low, high, color=NORMAL_COLOUR, alpha=0.2, linewidth=0)
            mean = np.add.reduceat(y, starts) / each
            axes.plot(
                middle, mean, color=NORMAL_COLOUR, linewidth=1.6, marker="." if x.size == 1 else ""
            )
            axes.set_title(title, fontsize=9.5)
            axes.set_xlabel("steps")
            axes.xaxis.set_major_locator(MaxNLocator(nbins=4, integer=True))
        for axes, (caption, picture) in zip(
            below.subplots(1, len(tiles), squeeze=False)[0], tiles, strict=True
        ):
            axes.imshow(picture)
            axes.set_title(caption, fontsize=9.5)
            axes.axis("off")
    return sheet.getvalue()


def embedding(
    points: npt.ArrayLike,
    labels: Sequence[int],
    names: Sequence[str] | None = None,
    *,
    format: Format = "svg",
) -> bytes:
    """Features in the plane: what lies close together there is alike; far apart says little.

    t-SNE (van der Maaten and Hinton 2008) from the first two principal components, with one and the same seed.

    Args:
        points: N D, a feature vector per picture, N >= 3, D >= 2.
        labels: N, 0 normal or 1 anomalous.
        names: N kinds of defects, told apart by mark and colour; those of normal pictures are ignored, and "" is of no
            known kind. None: of no known kind, all of them.

    Returns: an SVG or PNG file.
    Raises: ConfigError for fewer than 3 points or 2 features, or lengths that differ; NonFiniteError if a feature is
        not finite.
    """
    return embeddings({"": points}, labels, names, format=format)


def embeddings(
    points: Mapping[str, npt.ArrayLike],
    labels: Sequence[int],
    names: Sequence[str] | None = None,
    *,
    format: Format = "svg",
) -> bytes:
    """The same pictures in the features of several detectors, side by side; otherwise as `embedding`.

    Args:
        points: name of a detector -> N D, at least one; D may differ.
        labels, names: as of `embedding`, of all of them.

    Returns: an SVG or PNG file.
    Raises: as `embedding`.
    """
    truth = np.asarray(labels)
    known = np.asarray(["" for _ in truth] if names is None else names, dtype=object)
    placed = {title: _placed(features, truth, known) for title, features in points.items()}
    groups = [("good", truth == NORMAL, NORMAL_COLOUR, "o")]
    frequent = [
        name for name, _ in Counter(known[(truth == ANOMALOUS) & (known != "")]).most_common(_NAMED)
    ]
    for place, name in enumerate(frequent):
        looks = _KINDS[place % len(_KINDS)], _MARKS[place % len(_MARKS)]
        groups.append((_printable(name), (truth == ANOMALOUS) & (known == name), *looks))
    others = (truth == ANOMALOUS) & ~np.isin(known, frequent)
    rest = ("other defects", UNLABELLED_COLOUR) if frequent else ("defective", ANOMALOUS_COLOUR)
    groups.append((rest[0], others, rest[1], "X"))
    drawn = [group for group in groups if group[1].any()]
    with _figure(format, width=2.2 + 4.2 * len(placed), height=4.4) as (figure, sheet):
        plots = figure.subplots(1, len(placed), squeeze=False)[0]
        for axes, (title, (places, perplexity)) in zip(plots, placed.items(), strict=True):
            handles = [
                axes.scatter(
                    places[chosen, 0],
                    places[chosen, 1],
                    s=26,
                    color=colour,
                    marker=mark,
                    alpha=0.75,
                    linewidths=0,
                )
                for _, chosen, colour, mark in drawn
            ]
            axes.set_title(_shortened(title), fontsize=9.5, parse_math=False)
            axes.set(
                xticks=[],
                yticks=[],
                xlabel=f"t-SNE of {len(places):,} pictures, perplexity {perplexity:.3g}",
            )
        # The number stands first: matplotlib leaves out a label that begins with an underscore.
        legend = axes.legend(
            handles,
            [f"{int(chosen.sum()):,} {name}" for name, chosen, _, _ in drawn],
            loc="upper left",
            bbox_to_anchor=(1.0, 1.0),
        )
        for text in legend.get_texts():
            text.set_parse_math(False)
    return sheet.getvalue()


def _placed(
    points: npt.ArrayLike, truth: npt.NDArray[Any], known: npt.NDArray[Any]
) -> tuple[npt.NDArray[np.float32], float]:
    """Where points N D lie in the plane, N 2, and the perplexity of that. Raises: as `embedding`."""
    features = np.asarray(points, dtype=np.float32)
    if features.ndim != 2 or features.shape[0] < 3 or features.shape[1] < 2:
        raise ConfigError(
            f"t-SNE needs 3 or more points of 2 or more features; these are of shape {features.shape}"
        )
    _finite("features", features)
    if not len(features) == len(truth) == len(known):
        raise ConfigError(
            f"{len(features)} points, {len(truth)} labels and {len(known)} names; as many are needed"
        )
    perplexity = min(_PERPLEXITY, (len(features) - 1) / 3)
    return _tsne(features, perplexity), perplexity


def gallery(
    rows: Sequence[tuple[str, Mapping[str, Picture]]],
    *,
    columns: Sequence[str] = (),
    labels: Sequence[Mapping[str, str]] | None = None,
    note: str = "",
    format: Format = "png",
) -> bytes:
    """Pictures in rows: under each column's title what each row has of it.

    Args:
        rows: (caption of a few lines, title -> uint8 H W 3), at least one. Where a row lacks one, its place stays
            empty.
        columns: the titles in their order; empty = in the order in which they first come.
        labels: for each row title -> words in the corner of that picture; None = no words.
        note: a line below all of them.

    Returns: an SVG or PNG file.
    Raises: ConfigError without a picture, or for labels of more or fewer rows.
    """
    titles = list(columns) or list(dict.fromkeys(title for _, tiles in rows for title in tiles))
    if not any(title in tiles for title in titles for _, tiles in rows):
        raise ConfigError("a gallery needs at least one picture")
    if labels is not None and len(labels) != len(rows):
        raise ConfigError(f"{len(rows)} rows and labels of {len(labels)}; as many are needed")
    wide, high, head = 1.9, 1.7, 0.3  # inches: of a place, and of the line of titles
    size = wide * (1 + len(titles)), head + high * len(rows) + (head if note else 0.0)
    # All in one plot, in inches: one for each picture would take seconds to lay out.
    with _sheet(format, width=size[0], height=size[1]) as (axes, sheet):
        for column, title in enumerate(titles, start=1):
            middle = wide * (column + 0.5)
            axes.text(
                middle,
                head / 2,
                _shortened(title, _HEAD_LENGTH),
                fontsize=9.5,
                ha="center",
                va="center",
                parse_math=False,
            )
        for row, (caption, tiles) in enumerate(rows):
            middle = head + high * (row + 0.5)
            lines = "\n".join(map(_shortened, caption.splitlines()))
            axes.text(0.0, middle, lines, fontsize=8.5, va="center", parse_math=False)
            for column, title in enumerate(titles, start=1):
                if title in tiles:
                    tall, across = tiles[title].shape[:2]
                    inch = 0.5 * min(
                        (wide - 0.1) / across, (high - 0.1) / tall
                    )  # half a pixel's side
                    centre = wide * (column + 0.5)
                    sides = (
                        centre - inch * across,
                        centre + inch * across,
                        middle + inch * tall,
                        middle - inch * tall,
                    )
                    axes.imshow(tiles[title], extent=sides)
                    if labels is not None and title in labels[row]:
                        corner = sides[0] + 0.04, sides[3] + 0.04
                        axes.text(
                            *corner,
                            labels[row][title],
                            fontsize=8,
                            va="top",
                            parse_math=False,
                            bbox=_LABEL,
                        )
        axes.text(
            size[0] / 2,
            size[1] - head / 2,
            note,
            fontsize=9.5,
            ha="center",
            va="center",
            parse_math=False,
        )
        axes.set(xlim=(0.0, size[0]), ylim=(size[1], 0.0), aspect="equal")
        axes.axis("off")
    return sheet.getvalue()


@contextmanager
def _sheet(format: Format, *, width: float, height: float) -> Iterator[tuple[Axes, io.BytesIO]]:
    """Axes to draw on, and the file they fill when the block ends. Sizes in inches."""
    with _figure(format, width=width, height=height) as (figure, sheet):
        yield figure.add_subplot(), sheet


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


def _printable(text: str) -> str:
    """With everything else escaped: an SVG file cannot hold it, and no font has it."""
    return "".join(
        sign if sign.isprintable() else sign.encode("unicode_escape").decode("ascii")
        for sign in text
    )


def _shortened(line: str, length: int = _NAME_LENGTH) -> str:
    """Its beginning and its end where it is too long."""
    line = _printable(line)
    half = (length - 1) // 2
    return line if len(line) <= length else f"{line[:half]}…{line[-half:]}"


def _edges(scores: npt.NDArray[np.float64], threshold: float | None) -> npt.NDArray[np.float64]:
    """Bin edges over all scores; the threshold is one of them."""
    values = scores if threshold is None else np.append(scores, threshold)
    if not values.size:
        return np.array([0.0, 1.0])
    low, high = float(values.min()), float(values.max())
    largest = max(abs(low), abs(high))
    if (
        high - low <= 1e-9 * largest
    ):  # equal scores get a few bins around them, wide enough for readable ticks
        margin = 0.05 * largest or 0.5
        low, high = low - margin, high + margin
    step = (high - low) / min(max(math.ceil(2.0 * math.sqrt(scores.size)), 8), 50)
    anchor = low if threshold is None else threshold
    first, last = math.floor((low - anchor) / step), math.ceil((high - anchor) / step)
    edges = np.array([anchor + step * index for index in range(first, last + 1)])
    edges[0], edges[-1] = (
        min(edges[0], low),
        max(edges[-1], high),
    )  # rounding must not push a score out
    return edges


def _finite(name: str, values: Curve) -> npt.NDArray[np.float64]:
    array = np.asarray(values, dtype=np.float64).ravel()
    if not np.isfinite(array).all():
        raise NonFiniteError(f"{name}: NaN or infinite values cannot be drawn")
    return array


def _curve(
    first_name: str, first: Curve, second_name: str, second: Curve
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    one, other = _finite(first_name, first), _finite(second_name, second)
    if one.size != other.size:
        raise ConfigError(
            f"{first_name} has {one.size} values and {second_name} {other.size}; a curve needs as many"
        )
    return one, other


def _area(name: str, value: float | None) -> str:
    return f"{name} not defined" if value is None else f"{name} {value:.4f}"


def _unit_square(axes: Axes) -> None:
    axes.set(xlim=(0, 1), ylim=(0, 1), aspect="equal")
    axes.set_xticks(np.linspace(0, 1, 6))
    axes.set_yticks(np.linspace(0, 1, 6))
    axes.legend(loc="lower right")

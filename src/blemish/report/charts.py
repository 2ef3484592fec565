"""The charts of scores in a report, as SVG files in memory: the histogram and the two curves.

Written by hand, so that the base install can draw them. The same input gives the same bytes.
Colours are Okabe and Ito's (2008), told apart with any colour vision. Every chart raises
NonFiniteError for a value that is not finite, and ConfigError for lengths that differ.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from html import escape

import numpy as np
import numpy.typing as npt

from blemish.errors import ConfigError, NonFiniteError
from blemish.metrics.ranking import precision_recall_curve, roc_curve
from blemish.report.labelling import Box, label_places
from blemish.types import ANOMALOUS, NORMAL, Evaluation

Curve = npt.ArrayLike
Values = npt.NDArray[np.float64]

NORMAL_COLOUR, ANOMALOUS_COLOUR, UNLABELLED_COLOUR = "#0072b2", "#d55e00", "#56707f"
INK, FAINT = "#1d2733", "#d5dbe1"
# A browser takes the first that it has.
FONTS = ("system-ui", "Segoe UI", "Helvetica Neue", "Arial", "DejaVu Sans")

# In pixels, as all sizes here: the height of the letters, the width of a sign in the widest of the
# fonts, and what is left free between things.
_LETTERS, _SIGN, _GAP = 13.3, 8.2, 8.0
_DOT = 7.0  # the radius of the largest point
_HALO = 'stroke="white" stroke-width="3" stroke-linejoin="round" paint-order="stroke"'
_SWATCH = 26.0  # length of a sample in the key
_STEPS = ((1.0, 0), (2.0, 0), (2.5, 1), (5.0, 0), (10.0, 0))  # of ticks, and decimals of each
_LINE = f'fill="none" stroke="{NORMAL_COLOUR}" stroke-width="2.6" stroke-linejoin="round"'
_GUESSING = f'stroke="{INK}" stroke-width="1.3" stroke-dasharray="2.5 4"'
_THRESHOLD = f'stroke="{INK}" stroke-width="1.9" stroke-dasharray="7 3.5"'


@dataclass(frozen=True, kw_only=True)
class Spread:
    """The raw scores of a detector.

    Attributes:
        good, defective, scored: of pictures known good, known defective, and of unknown truth.
        threshold: in the same unit; None where there is none.
    """

    good: Curve = ()
    defective: Curve = ()
    scored: Curve = ()
    threshold: float | None = None

    def classes(self) -> dict[tuple[str, str], Values]:
        """The scores by the name and the colour of their class. Raises: NonFiniteError, also for
        the threshold."""
        if self.threshold is not None and not math.isfinite(self.threshold):
            raise NonFiniteError(
                f"the threshold {self.threshold} cannot be drawn; give a finite score or None"
            )
        return {
            ("good", NORMAL_COLOUR): finite("scores", self.good),
            ("defective", ANOMALOUS_COLOUR): finite("scores", self.defective),
            ("scored", UNLABELLED_COLOUR): finite("scores", self.scored),
        }


def of_scores(
    pairs: Sequence[tuple[int | None, float]],
    threshold: float | None,
    evaluation: Evaluation | None = None,
) -> dict[str, bytes]:
    """The histogram of scored pictures, and of an evaluation its curves where both classes are
    present: SVG files by name.

    Args: pairs: truth (None = unknown) and score of each picture.
    """
    good, defective, unknown = (
        [score for truth, score in pairs if truth == wanted] for wanted in (NORMAL, ANOMALOUS, None)
    )
    spread = Spread(good=good, defective=defective, scored=unknown, threshold=threshold)
    drawn = {"histogram": histogram(spread)}
    if evaluation is not None:
        truth = [NORMAL] * len(good) + [ANOMALOUS] * len(defective)
        if (curve := roc_curve(good + defective, truth)) is not None:
            drawn["roc"] = roc(*curve, evaluation.image_auroc)
        if (curve := precision_recall_curve(good + defective, truth)) is not None:
            drawn["pr"] = precision_recall(*curve, evaluation.image_ap)
    return drawn


def roc(fpr: Curve, tpr: Curve, auroc: float | None) -> bytes:
    """The receiver operating characteristic: defects found against false alarms, over all
    thresholds.

    Args:
        fpr, tpr: K false- and true-positive rates, 0 to 1, in the order of the thresholds.
        auroc: the area, named in the chart; None where it is not defined.
    """
    x, y = checked_curve("fpr", fpr, "tpr", tpr)
    chart = _unit_square("false alarms / good pictures", "found / defective pictures")
    chart.line([(0.0, 0.0), (1.0, 1.0)], _GUESSING)
    chart.area(list(zip(x.tolist(), y.tolist(), strict=True)), NORMAL_COLOUR, 0.08, _LINE)
    chart.key_inside([("guessing", _GUESSING), (_named("AUROC", auroc), _LINE)])
    return chart.file()


def precision_recall(precision: Curve, recall: Curve, ap: float | None) -> bytes:
    """Precision against recall over all thresholds, as steps: nothing is interpolated.

    Args:
        precision, recall: K values, 0 to 1, in the order of the thresholds.
        ap: average precision, named in the chart; None where it is not defined.
    """
    y, x = checked_curve("precision", precision, "recall", recall)
    if x.size and x[0] > x[-1]:  # from the lowest threshold up
        x, y = x[::-1], y[::-1]
    # Each precision holds from the recall before it up to its own.
    before = np.concatenate([x[:1], x[:-1]])
    steps = np.stack([before, y, x, y], axis=1).reshape(-1, 2)
    chart = _unit_square("recall: found / defective pictures", "precision: defective / alarms")
    chart.area([(across, up) for across, up in steps.tolist()], NORMAL_COLOUR, 0.08, _LINE)
    chart.key_inside([(_named("AP", ap), _LINE)])
    return chart.file()


def histogram(spread: Spread) -> bytes:
    """How scores are spread, per class, with the threshold as a line.

    The classes share bins, which meet at the threshold, so that no bar stands on both sides of it;
    a bin holds its upper edge, as a score equal to the threshold is no alarm.
    """
    classes, threshold = spread.classes(), spread.threshold
    edges = bins(np.concatenate(list(classes.values())), threshold)
    counted = {
        (f"{name} ({scores.size:,})", colour): counts(scores, edges)
        for (name, colour), scores in classes.items()
        if scores.size
    }
    margin = 0.05 * (edges[-1] - edges[0])
    across = (float(edges[0] - margin), float(edges[-1] + margin))
    up = (0.0, 1.05 * max((int(each.max()) for each in counted.values()), default=1))
    chart = _Chart(
        (730.0, 288.0), (across, _apart(*across, 600.0)), (up, ticks(*up, most=5, whole=True)),
        names=("score", "pictures"), grid=(False, True), key=bool(counted) or threshold is not None,
    )  # fmt: skip
    key = []
    for (label, colour), each in counted.items():
        outline = f'fill="none" stroke="{colour}" stroke-width="1.8"'
        sides, heights = np.repeat(edges, 2).tolist(), [0, *np.repeat(each, 2).tolist(), 0]
        chart.area(list(zip(sides, heights, strict=True)), colour, 0.35, outline)
        key.append((label, outline))
    if threshold is not None:
        chart.line([(threshold, 0.0), (threshold, up[1])], _THRESHOLD)
        key.append((f"threshold {threshold:.4g}", _THRESHOLD))
    if not counted:
        chart.text("no scores", *chart.middle)
    chart.key_above(key)
    return chart.file()


@dataclass(frozen=True, kw_only=True)
class Choice:
    """A point of `tradeoff`.

    Attributes:
        label: beside it. cost: > 0, as a time.
        value, low, high: a fraction and its interval.
        chosen: drawn so that it stands out.
    """

    label: str
    cost: float
    value: float
    low: float
    high: float
    chosen: bool = False


def tradeoff(choices: Sequence[Choice], *, names: tuple[str, str]) -> bytes:
    """Accuracy against cost: a point each with its interval, the cost on a logarithmic axis.

    Args: choices: one at least. names: of the cost and of the accuracy.
    """
    costs = finite("costs", [math.log10(one.cost) for one in choices])
    lows = finite("values", [number for one in choices for number in (one.value, one.low)])
    highs = finite("values", [one.high for one in choices])
    apart = max(0.3, float(np.ptp(costs)))
    # Room for the labels, which stand beside the points.
    across = (float(costs.min()) - 0.2 * apart, float(costs.max()) + 0.35 * apart)
    room = max(0.02, float(highs.max() - lows.min()))
    up = (max(0.0, float(lows.min()) - 0.06 * room), float(highs.max()) + 0.06 * room)
    chart = _Chart(
        (730.0, 400.0), (across, _decades(*across)), (up, ticks(*up, most=6)),
        names=names, grid=(True, True), key=False,
    )  # fmt: skip
    for one, cost in zip(choices, costs.tolist(), strict=True):
        colour = ANOMALOUS_COLOUR if one.chosen else NORMAL_COLOUR
        chart.line([(cost, one.low), (cost, one.high)], f'stroke="{colour}" stroke-width="1.6"')
        chart.dot((cost, one.value), colour, _DOT if one.chosen else 5.0)
    chart.labels(
        [
            (((cost, one.value), one.low, one.high), one.label)
            for one, cost in zip(choices, costs.tolist(), strict=True)
        ]
    )
    return chart.file()


def _decades(low: float, high: float) -> list[tuple[float, str]]:
    """Ticks of an axis of decimal logarithms: 1, 2 and 5 of each power of ten, or evenly apart
    where it spans less than one."""
    if high - low < 1:
        return [(math.log10(at), told) for at, told in ticks(10**low, 10**high, most=6) if at > 0]
    found = [
        (math.log10(digit) + power, f"{digit * 10.0**power:g}")
        for power in range(math.floor(low), math.ceil(high) + 1)
        for digit in (1, 2, 5)
    ]
    return [one for one in found if low <= one[0] <= high]


def bins(scores: Values, threshold: float | None) -> Values:
    """The edges of bins over all scores; the threshold is one of them."""
    values = scores if threshold is None else np.append(scores, threshold)
    if not values.size:
        return np.array([0.0, 1.0])
    low, high = float(values.min()), float(values.max())
    largest = max(abs(low), abs(high))
    # Equal scores get a few bins around them, wide enough for readable ticks.
    if high - low <= 1e-9 * largest:
        margin = 0.05 * largest or 0.5
        low, high = low - margin, high + margin
    step = (high - low) / min(max(math.ceil(2.0 * math.sqrt(scores.size)), 8), 50)
    anchor = low if threshold is None else threshold
    first, last = math.floor((low - anchor) / step), math.ceil((high - anchor) / step)
    edges = np.array([anchor + step * index for index in range(first, last + 1)])
    # Rounding must not push a score out.
    edges[0], edges[-1] = min(edges[0], low), max(edges[-1], high)
    return edges


def counts(scores: Values, edges: Values) -> npt.NDArray[np.int64]:
    """How many scores are in each bin, which holds its upper edge and not its lower one."""
    return np.histogram(-scores, -edges[::-1])[0][::-1]


def ticks(low: float, high: float, *, most: int, whole: bool = False) -> list[tuple[float, str]]:
    """Round numbers on an axis, about `most` of them, and how they are written.

    Args: low, high: of the axis, low < high. whole: none but whole numbers.

    Example:
        >>> ticks(-0.26, 0.3, most=4)
        [(-0.2, '−0.2'), (0.0, '0.0'), (0.2, '0.2')]
        >>> ticks(0, 12, most=5, whole=True)
        [(0.0, '0'), (5.0, '5'), (10.0, '10')]
    """
    power = math.floor(math.log10((high - low) / most))
    wanted = (high - low) / most / 10.0**power
    round_ones = (one for one in _STEPS if not (whole and one[1]))
    step, decimals = next(one for one in round_ones if one[0] >= wanted * (1 - 1e-9))
    step, decimals = step * 10.0**power, decimals - power - (step == 10.0)
    if whole and step < 1:
        step, decimals = 1.0, 0
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    places = [index * step for index in range(first, last + 1)]
    largest = max(map(abs, places), default=0.0)
    if 1e-3 <= largest < 1e7:
        written = [f"{place:.{max(decimals, 0)}f}" for place in places]
    else:
        digits = math.floor(math.log10(largest)) + decimals if largest else 0
        written = [f"{place:.{max(digits, 0)}e}" if place else "0" for place in places]
    signs = (text.replace("-", "−") for text in written)
    return list(zip(places, signs, strict=True))


def _apart(low: float, high: float, pixels: float) -> list[tuple[float, str]]:
    """As many ticks on a level axis of so many pixels as leave their labels apart, 10 at most."""
    for most in range(10, 1, -1):
        found = ticks(low, high, most=most)
        if sum(_SIGN * len(label) + 2 * _GAP for _, label in found) <= pixels:
            break
    return found


def finite(name: str, values: Curve) -> Values:
    """The values as one row. Raises: NonFiniteError."""
    array = np.asarray(values, dtype=np.float64).ravel()
    if not np.isfinite(array).all():
        raise NonFiniteError(f"{name}: NaN or infinite values cannot be drawn")
    return array


def checked_curve(
    first_name: str, first: Curve, second_name: str, second: Curve
) -> tuple[Values, Values]:
    """Both rows of values of a curve. Raises: NonFiniteError; ConfigError for other lengths."""
    one, other = finite(first_name, first), finite(second_name, second)
    if one.size != other.size:
        raise ConfigError(
            f"{first_name} has {one.size} values and {second_name} {other.size}; "
            "a curve needs as many"
        )
    return one, other


def _named(name: str, value: float | None) -> str:
    return f"{name} not defined" if value is None else f"{name} {value:.4f}"


Axis = tuple[tuple[float, float], Sequence[tuple[float, str]]]
Places = Sequence[tuple[float, float]]
Key = Sequence[tuple[str, str]]
Span = tuple[tuple[float, float], float, float]


class _Chart:
    """A chart under construction: its axes with their grid, then what is put on them.

    Args:
        size: width and height of the file.
        x, y: (low, high) of each axis, and its ticks. names: what stands at them.
        grid: whether there are lines at the ticks of x, and of y.
        key: whether one is to stand above.
    """

    def __init__(
        self,
        size: tuple[float, float],
        x: Axis,
        y: Axis,
        *,
        names: tuple[str, str],
        grid: tuple[bool, bool],
        key: bool,
    ) -> None:
        self._size, self._x, self._y = size, x[0], y[0]
        self._left = 3 * _GAP + _LETTERS + _SIGN * max(len(label) for _, label in y[1])
        self._right = size[0] - 2 * _GAP
        self._top = 4 * _GAP if key else 2 * _GAP
        self._bottom = size[1] - 2 * _LETTERS - 3 * _GAP
        self._parts: list[str] = []
        self._axes(x[1], y[1], grid)
        self.text(names[0], self.middle[0], size[1] - _GAP)
        turned = f'text-anchor="middle" transform="rotate(-90 {_LETTERS:g} {self.middle[1]:.1f})"'
        self.text(names[1], _LETTERS, self.middle[1], turned)

    @property
    def middle(self) -> tuple[float, float]:
        """Of the plot, in pixels."""
        return (self._left + self._right) / 2, (self._top + self._bottom) / 2

    def _axes(
        self,
        x: Sequence[tuple[float, str]],
        y: Sequence[tuple[float, str]],
        grid: tuple[bool, bool],
    ) -> None:
        (left, bottom), (right, top) = (self._left, self._bottom), (self._right, self._top)
        for place, label in x:
            ((at, _),) = self._pixels([(place, self._y[0])])
            up = top if grid[0] else bottom
            self._path([(at, bottom + 4), (at, up)], f'stroke="{FAINT}" stroke-width="0.8"')
            self.text(label, at, bottom + _LETTERS + _GAP)
        for place, label in y:
            ((_, at),) = self._pixels([(self._x[0], place)])
            across = right if grid[1] else left
            self._path([(left - 4, at), (across, at)], f'stroke="{FAINT}" stroke-width="0.8"')
            self.text(label, left - _GAP, at + 0.35 * _LETTERS, 'text-anchor="end"')
        self._path([(left, top), (left, bottom), (right, bottom)], f'fill="none" stroke="{FAINT}"')

    def area(self, places: Places, colour: str, opacity: float, line: str) -> None:
        """A line, and what is below it in a colour."""
        if not places:
            return
        pixels = self._pixels(places)
        ends = [(pixels[-1][0], self._bottom), (pixels[0][0], self._bottom)]
        self._path([*pixels, *ends], f'fill="{colour}" fill-opacity="{opacity}"')
        self._path(pixels, line)

    def line(self, places: Places, style: str) -> None:
        """A line from place to place."""
        self._path(self._pixels(places), style)

    def dot(self, place: tuple[float, float], colour: str, radius: float) -> None:
        """A filled circle."""
        ((x, y),) = self._pixels([place])
        self._parts.append(
            f'<circle cx="{x:.1f}" cy="{y:.1f}" r="{radius:g}" fill="{colour}" '
            'stroke="white" stroke-width="1"/>'
        )

    def labels(self, entries: Sequence[tuple[Span, str]]) -> None:
        """Words beside points that stand on upright lines; from those that had to move further off
        a thin line leads to their point.

        Args: entries: the place of each, low and high end of its line, and its words.
        """
        points, bars = [], []
        for ((across, up), low, high), _ in entries:
            ((x, y), (_, bottom), (_, top)) = self._pixels(
                [(across, up), (across, low), (across, high)]
            )
            points.append((x, y))
            bars.append(Box(x, top, x, bottom))
        placed = label_places(
            points, [_SIGN * len(words) for _, words in entries], bars, height=1.1 * _LETTERS,
            gap=1.4 * _GAP, radius=_DOT, plot=Box(self._left, self._top, self._right, self._bottom),
        )  # fmt: skip
        for (x, y), box, (_, words) in zip(points, placed, entries, strict=True):
            middle = (box.top + box.bottom) / 2
            rightwards = box.left > x
            if abs(middle - y) > _LETTERS:
                end = (box.left - 2 if rightwards else box.right + 2, middle)
                self._path([(x, y), end], f'stroke="{INK}" stroke-width="0.6"')
            anchor = 'text-anchor="start"' if rightwards else 'text-anchor="end"'
            at = box.left if rightwards else box.right
            self.text(words, at, middle + 0.35 * _LETTERS, f"{anchor} {_HALO}")

    def text(self, words: str, x: float, y: float, more: str = 'text-anchor="middle"') -> None:
        """Words at pixels: above them, in their middle where `more` says nothing else."""
        self._parts.append(f'<text x="{x:.1f}" y="{y:.1f}" {more}>{escape(words)}</text>')

    def key_above(self, entries: Key) -> None:
        """What lines are, side by side."""
        at = self._left
        for label, style in entries:
            self._entry(label, style, at, 2 * _GAP)
            at += _SWATCH + 2.5 * _GAP + _SIGN * len(label)

    def key_inside(self, entries: Key) -> None:
        """What lines are, at the lower right."""
        widest = _SIGN * max(len(label) for label, _ in entries)
        for row, (label, style) in enumerate(reversed(entries)):
            y = self._bottom - 2 * _GAP - 1.6 * _LETTERS * row
            self._entry(label, style, self._right - _SWATCH - 2 * _GAP - widest, y)

    def _entry(self, label: str, style: str, x: float, y: float) -> None:
        self._path([(x, y), (x + _SWATCH, y)], style)
        self.text(label, x + _SWATCH + _GAP, y + 0.35 * _LETTERS, 'text-anchor="start"')

    def _pixels(self, places: Iterable[tuple[float, float]]) -> list[tuple[float, float]]:
        (low, high), (least, most) = self._x, self._y
        across, up = self._right - self._left, self._bottom - self._top
        return [
            (
                self._left + (x - low) / (high - low) * across,
                self._bottom - (y - least) / (most - least) * up,
            )
            for x, y in places
        ]

    def _path(self, pixels: Places, style: str) -> None:
        """To a tenth of a pixel: a curve of a million pictures is no longer than the eye sees."""
        kept: list[tuple[int, int]] = []
        for pixel in pixels:
            new = round(10 * pixel[0]), round(10 * pixel[1])
            while kept and _is_between(kept[-2:], new):
                kept.pop()
            kept.append(new)
        points = " ".join(f"{x / 10:g},{y / 10:g}" for x, y in kept)
        self._parts.append(f'<polyline points="{points}" {style}/>')

    def file(self) -> bytes:
        """It as an SVG file."""
        (width, height), inside = self._size, "\n".join(self._parts)
        fonts = ", ".join(FONTS)
        return (
            f'<svg xmlns="http://www.w3.org/2000/svg" width="{width:g}" height="{height:g}" '
            f'viewBox="0 0 {width:g} {height:g}" font-family="{fonts}, sans-serif" '
            f'font-size="{_LETTERS}" fill="{INK}">\n<rect width="100%" height="100%" '
            f'fill="white"/>\n{inside}\n</svg>\n'
        ).encode()


def _is_between(last: Sequence[tuple[int, int]], new: tuple[int, int]) -> bool:
    """Whether the last of two places need not be there, as it lies on an upright or level line
    from the first to a new one; or is that."""
    first, middle = last[0], last[-1]
    if middle == new:
        return True
    for along, level in ((0, 1), (1, 0)):
        if first[level] == middle[level] == new[level]:
            low, high = sorted((first[along], new[along]))
            return len(last) > 1 and low <= middle[along] <= high
    return False


def _unit_square(x: str, y: str) -> _Chart:
    axis = (0.0, 1.0), [(place / 5, f"{place / 5:.1f}") for place in range(6)]
    return _Chart((385.0, 360.0), axis, axis, names=(x, y), grid=(True, True), key=False)

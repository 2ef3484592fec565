"""Small charts of the pages as SVG, with classes in place of colours: the style sheet has those."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

from markupsafe import Markup, escape

from blemish.monitoring.estimates import Curve
from blemish.report.charts import ticks
from blemish.serve.pages.rendering import count, hour, percent, score
from blemish.store.counting import Histogram, Rate

_LEFT, _RIGHT, _TOP, _BOTTOM = 8.0, 8.0, 16.0, 22.0
_NAME = 52.0  # that the name of an hour or a day takes, and some room


@dataclass(frozen=True)
class Frame:
    """The size of a chart in its own units, and how values lie in it."""

    width: float
    height: float
    low: float
    high: float

    def x(self, value: float) -> float:
        """Where a value lies across."""
        inner = self.width - _LEFT - _RIGHT
        return _LEFT + inner * (value - self.low) / (self.high - self.low)

    @property
    def floor(self) -> float:
        """Where bars begin."""
        return self.height - _BOTTOM


def histogram(found: Histogram, threshold: float | None, *, width: float = 320) -> Markup:
    """How scores are spread; bars of alarms stand out, the threshold is a line with its value."""
    if not found.counts:
        return Markup("")
    ends = [found.edges[0], found.edges[-1], *([] if threshold is None else [threshold])]
    margin = 0.04 * (max(ends) - min(ends)) or 0.5
    frame = Frame(width, 128, min(ends) - margin, max(ends) + margin)
    most = max(found.counts)
    bars = []
    for left, right, number in zip(found.edges[:-1], found.edges[1:], found.counts, strict=True):
        if not number:
            continue
        kind = "alarm" if threshold is not None and (left + right) / 2 > threshold else "usual"
        x, wide = frame.x(left), max(frame.x(right) - frame.x(left) - 1, 1)
        # Square roots: a hundred good pictures must not hide the one that is none.
        tall = max((frame.floor - _TOP) * (number / most) ** 0.5, 2.0)
        bars.append(
            f'<rect class="bar {kind}" x="{x:.1f}" y="{frame.floor - tall:.1f}" '
            f'width="{wide:.1f}" height="{tall:.1f}"><title>{score(left)} to {score(right)}: '
            f"{count(number)}</title></rect>"
        )
    line = "" if threshold is None else _threshold(frame, threshold)
    told = f"{count(sum(found.counts))} scores from {score(found.edges[0])} to " + (
        f"{score(found.edges[-1])}"
        + ("" if threshold is None else f"; threshold {score(threshold)}")
    )
    return _svg(frame, told, "".join(bars) + _axis(frame) + line)


def rates(found: Sequence[Rate], *, width: float = 640, height: float = 132) -> Markup:
    """The share of alarms over time, one bar an hour or a day."""
    if not found:
        return Markup("")
    frame = Frame(width, height, 0, max(len(found), 12))
    most = max(max(one.rate for one in found), 0.02)
    parts = []
    step = max(1, len(found) // 6, math.ceil(_NAME / (frame.x(1) - frame.x(0))))
    for at, one in enumerate(found):
        tall = (frame.floor - _TOP) * one.rate / most
        x, wide = frame.x(at), max(frame.x(at + 1) - frame.x(at) - 2, 1)
        name = hour(one.key) if isinstance(one.key, datetime) else str(one.key)
        said = f"{name}: {percent(one.rate)} of {count(one.predictions)}"
        parts.append(
            f'<rect class="bar alarm" x="{x:.1f}" y="{frame.floor - max(tall, 1):.1f}" '
            f'width="{wide:.1f}" height="{max(tall, 1):.1f}"><title>{escape(said)}</title></rect>'
        )
        if at % step == 0 and x < width - 70:
            parts.append(f'<text class="tick" x="{x:.1f}" y="{height - 6}">{escape(name)}</text>')
    parts.append(
        f'<line class="axis" x1="{_LEFT}" x2="{width - _RIGHT}" y1="{frame.floor}" '
        f'y2="{frame.floor}"/><text class="tick" x="{_LEFT}" y="11">{percent(most)}</text>'
    )
    return _svg(frame, f"share of alarms over {len(found)} spans of time", "".join(parts))


def curves(found: Curve, threshold: float | None, *, width: float = 560) -> Markup:
    """False alarms and misses at every threshold, with their intervals; the threshold as a line,
    which the slider moves."""
    at = found.thresholds.tolist()
    if len(at) < 2:
        return Markup("")
    ends = [at[0], at[-1], *([] if threshold is None else [threshold])]
    frame = Frame(width, 240, min(ends), max(ends))
    parts = []
    for name, kind in (("false_alarm_rate", "good"), ("miss_rate", "defect")):
        low, high = found.low[name].tolist(), found.high[name].tolist()
        value = found.values[name].tolist()
        band = [(x, y) for x, y in zip(at, high, strict=True)]
        band += [(x, y) for x, y in zip(reversed(at), reversed(low), strict=True)]
        line = [(x, y) for x, y in zip(at, value, strict=True) if y == y]
        parts.append(f'<polygon class="band {kind}" points="{_points(frame, band)}"/>')
        parts.append(f'<polyline class="rate {kind}" points="{_points(frame, line)}"/>')
    for share in (0.0, 0.25, 0.5, 0.75, 1.0):
        y = _up(frame, share)
        parts.insert(
            0,
            f'<line class="axis" x1="{_LEFT}" x2="{width - _RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>'
            f'<text class="tick" x="{width - _RIGHT}" y="{y - 3:.1f}" text-anchor="end">'
            f"{percent(share)}</text>",
        )
    if threshold is not None:
        x = frame.x(threshold)
        parts.append(
            f'<line class="threshold" data-line data-left="{frame.x(0) - 0:.4f}" '
            f'data-step="{frame.x(1) - frame.x(0):.6f}" x1="{x:.1f}" x2="{x:.1f}" y1="4" '
            f'y2="{frame.floor}"/>'
        )
    told = "false alarms fall and misses rise with the threshold; the table has their values"
    return _svg(frame, told, "".join(parts) + _axis(frame))


def _points(frame: Frame, points: Sequence[tuple[float, float]]) -> str:
    return " ".join(f"{frame.x(x):.1f},{_up(frame, y):.1f}" for x, y in points)


def _up(frame: Frame, share: float) -> float:
    return frame.floor - (frame.floor - _TOP) * share


def interval(value: float | None, low: float, high: float, *, most: float = 1.0) -> Markup:
    """A rate as a dot with its interval, on a line from 0 to `most`."""
    frame = Frame(180, 20, 0.0, max(most, 1e-9))
    left, right = frame.x(min(low, most)), frame.x(min(high, most))
    parts = (
        f'<line class="axis" x1="{_LEFT}" x2="{frame.width - _RIGHT}" y1="10" y2="10"/>'
        f'<rect class="span" x="{left:.1f}" y="6" width="{max(right - left, 1.5):.1f}" '
        f'height="8" rx="2"/>'
    )
    if value is not None:
        parts += f'<circle class="dot" cx="{frame.x(min(value, most)):.1f}" cy="10" r="4"/>'
    told = f"{percent(value)}, between {percent(low)} and {percent(high)}"
    return _svg(frame, told, parts, kind="interval")


def _threshold(frame: Frame, value: float) -> str:
    x = frame.x(value)
    anchor = "end" if x > frame.width * 0.6 else "start"
    beside = x - 4 if anchor == "end" else x + 4
    return (
        f'<line class="threshold" x1="{x:.1f}" x2="{x:.1f}" y1="4" y2="{frame.floor}"/>'
        f'<text class="tick strong" x="{beside:.1f}" y="12" text-anchor="{anchor}">'
        f"threshold {score(value)}</text>"
    )


def _axis(frame: Frame) -> str:
    marks = ticks(frame.low, frame.high, most=5)
    parts = [
        f'<text class="tick" x="{frame.x(place):.1f}" y="{frame.height - 6}" '
        f'text-anchor="middle">{escape(name)}</text>'
        for place, name in marks
        if frame.x(place) < frame.width - 14 and frame.x(place) > 12
    ]
    parts.append(
        f'<line class="axis" x1="{_LEFT}" x2="{frame.width - _RIGHT}" y1="{frame.floor}" '
        f'y2="{frame.floor}"/>'
    )
    return "".join(parts)


def _svg(frame: Frame, told: str, inside: str, kind: str = "chart") -> Markup:
    return Markup(
        f'<svg class="{kind}" viewBox="0 0 {frame.width:g} {frame.height:g}" role="img" '
        f'aria-label="{escape(told)}">{inside}</svg>'
    )

"""The charts of a report, read back from their SVG files."""

from __future__ import annotations

import re
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from blemish.errors import ConfigError, NonFiniteError
from blemish.report.charts import (
    FAINT,
    NORMAL_COLOUR,
    Spread,
    _Chart,
    bins,
    counts,
    histogram,
    of_scores,
    precision_recall,
    roc,
    ticks,
)

Points = list[tuple[float, float]]


def text(svg: bytes) -> str:
    """All words of an SVG file, which must be well-formed."""
    return " ".join(ElementTree.fromstring(svg).itertext())


def lines(svg: bytes, **wanted: str) -> list[Points]:
    """The points of the lines that have these attributes."""
    found = []
    for one in ElementTree.fromstring(svg).iter("{http://www.w3.org/2000/svg}polyline"):
        told = {name.replace("-", "_"): value for name, value in one.attrib.items()}
        if wanted.items() <= told.items():
            pairs = (point.split(",") for point in one.attrib["points"].split())
            found.append([(float(x), float(y)) for x, y in pairs])
    return found


def drawn(svg: bytes) -> np.ndarray:
    """The points of a curve in a unit square, N 2, back from pixels."""
    (curve,) = (one for one in lines(svg, stroke=NORMAL_COLOUR) if len(one) > 2)
    ((left, top), (_, bottom), (right, _)) = lines(svg, fill="none", stroke=FAINT)[0]
    x, y = np.array(curve).T
    return np.stack([(x - left) / (right - left), (bottom - y) / (bottom - top)], axis=1)


def test_curves_name_their_area() -> None:
    assert "AUROC 0.8750" in text(roc([0, 0, 0.5, 1], [0, 0.5, 1, 1], 0.875))
    assert "AP 0.8333" in text(precision_recall([1, 1, 0.5, 2 / 3], [0, 0.5, 0.5, 1], 0.83333))
    assert "AUROC not defined" in text(roc([], [], None))
    assert "AP not defined" in text(precision_recall([], [], None))


def test_a_histogram_names_its_classes_with_counts_and_the_threshold() -> None:
    pairs = [(0, 1.0), (0, 2.0), (1, 3.0), (None, 4.0), (None, 5.0), (None, 6.0)]
    words = text(of_scores(pairs, 2.5)["histogram"])
    for said in ("good (2)", "defective (1)", "scored (3)", "threshold 2.5"):
        assert said in words
    words = text(of_scores(pairs[3:], None)["histogram"])
    assert not any(word in words for word in ("good", "defective", "threshold"))


def test_curves_are_drawn_where_they_are() -> None:
    points = drawn(roc([0, 0, 0.5, 0.5, 1], [0, 0.25, 0.25, 1, 1], 0.5))
    assert points == pytest.approx(
        np.array([(0, 0), (0, 0.25), (0.5, 0.25), (0.5, 1), (1, 1)]), abs=1e-3
    )
    # Each precision up to its own recall, from the one before it; in whatever order they are given.
    steps = np.array([(0, 0.5), (0, 0.75), (0.5, 0.75), (0.5, 1), (1, 1)])
    for order in (slice(None), slice(None, None, -1)):
        precision, recall = np.array([0.5, 0.75, 1.0])[order], np.array([0, 0.5, 1])[order]
        assert drawn(precision_recall(precision, recall, 0.9)) == pytest.approx(steps, abs=1e-3)


def test_a_long_curve_is_a_short_file_that_looks_the_same() -> None:
    rng = np.random.default_rng(0)
    fpr, tpr = np.sort(rng.random(200_000)), np.sort(rng.random(200_000) ** 1.5)
    svg = roc(fpr, tpr, 0.9)
    assert len(svg) < 150_000  # in place of millions
    x, y = drawn(svg).T
    assert np.interp(fpr, x, y) == pytest.approx(tpr, abs=2e-3)
    there_and_back = [(0.0, 0.0), (0.0, 0.9), (0.0, 0.4), (0.5, 0.4)]
    assert len(drawn(roc(*zip(*there_and_back, strict=True), 0.5))) == 4


def test_bars_are_as_high_as_the_counts_and_meet_the_threshold() -> None:
    svg = histogram(Spread(good=[0.0, 1.0, 2.0, 2.0], threshold=1.0))
    (bars,) = (one for one in lines(svg, stroke=NORMAL_COLOUR) if len(one) > 2)
    (line,) = (one for one in lines(svg, stroke_dasharray="7 3.5") if one[0][0] == one[1][0])
    bottom = max(y for _, y in bars)
    x, y = np.array(bars).T
    heights = (bottom - y) / (bottom - y.min()) * 2  # of two scores, the highest bar
    edges = bins(np.array([0.0, 1.0, 2.0, 2.0]), 1.0)
    at = np.interp(np.repeat(edges, 2), [edges[0], edges[-1]], [x.min(), x.max()])
    assert line[0][0] == pytest.approx(float(np.interp(1.0, edges, at[::2])), abs=0.2)
    before = [height for place, height in zip(x, heights, strict=True) if place <= line[0][0] + 0.2]
    # A score equal to the threshold is no alarm: its bar ends there.
    assert sorted(set(np.round(before, 1))) == [0, 1]
    assert max(heights) == pytest.approx(2)


def test_a_bin_holds_its_upper_edge() -> None:
    assert counts(np.array([0.0, 1.0, 1.0, 2.0]), np.array([-1.0, 0.0, 1.0, 2.0])).tolist() == [
        *(1, 2, 1),
    ]


@pytest.mark.parametrize("threshold", [None, 1.0])
@pytest.mark.parametrize(
    ("good", "defective"),
    [([], []), ([1.0], []), ([0.0], [0.0]), ([7.5] * 9, [7.5]), ([1e30], [-1e30]), ([1e-30], [])],
)
def test_degenerate_scores_are_drawn(
    good: list[float], defective: list[float], threshold: float | None
) -> None:
    words = text(histogram(Spread(good=good, defective=defective, threshold=threshold)))
    assert ("no scores" in words) == (not good and not defective)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    scores=st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=30),
    threshold=st.none() | st.floats(-1e6, 1e6),
    shift=st.sampled_from([0.0, 1e9]),
)
def test_bins_hold_every_score_and_meet_at_the_threshold(
    scores: list[float], threshold: float | None, shift: float
) -> None:
    values = np.array(scores) + shift
    limit = None if threshold is None else threshold + shift
    edges = bins(values, limit)
    assert (np.diff(edges) > 0).all()
    assert edges[0] <= values.min()
    assert values.max() <= edges[-1]
    assert len(edges) <= 60
    assert limit is None or limit in edges


def test_rounding_does_not_push_the_highest_score_out_of_the_bins() -> None:
    low, high = 0.4, 1.8
    assert low + 8 * ((high - low) / 8) < high  # the trap
    assert bins(np.array([low, high]), None)[-1] == high


@settings(max_examples=200, deadline=None, derandomize=True)
@given(
    low=st.floats(-1e9, 1e9),
    width=st.floats(-6, 9).map(lambda power: 10**power),
    most=st.integers(2, 10),
    whole=st.booleans(),
)
def test_ticks_are_round_apart_and_within(low: float, width: float, most: int, whole: bool) -> None:
    width = max(width, 1e-9 * abs(low))  # as that of the bins
    found = ticks(low, low + width, most=most, whole=whole)
    places, labels = [place for place, _ in found], [label for _, label in found]
    few = 1e-6 * width
    assert all(low - few <= place <= low + width + few for place in places)
    assert len(found) <= most + 1
    if not whole:
        assert len(found) >= most // 3
    assert len(set(labels)) == len(labels)
    for place, label in found:
        assert float(label.replace("−", "-")) == pytest.approx(place, abs=few, rel=1e-12)
    if whole:
        assert all(place == round(place) for place in places)


def test_what_stands_at_ticks() -> None:
    def labels(low: float, high: float, **how: Any) -> list[str]:
        return [label for _, label in ticks(low, high, **{"most": 5, **how})]

    assert labels(0, 1) == ["0.0", "0.2", "0.4", "0.6", "0.8", "1.0"]
    assert labels(-0.55, 0.6) == ["−0.50", "−0.25", "0.00", "0.25", "0.50"]
    assert labels(0, 1.05, whole=True) == ["0", "1"]
    assert labels(0, 12.5, whole=True) == ["0", "5", "10"]
    assert labels(0, 2e6, whole=True) == ["0", "500000", "1000000", "1500000", "2000000"]
    assert labels(-1e30, 1e30) == ["−1.0e+30", "−5.0e+29", "0", "5.0e+29", "1.0e+30"]
    assert labels(0, 4e-5, most=2) == ["0", "2e−05", "4e−05"]


def test_labels_of_an_axis_do_not_run_into_each_other() -> None:
    svg = histogram(Spread(good=1e6 + np.arange(9) * 1e-3))
    root = ElementTree.fromstring(svg)
    words = [one for one in root.iter() if (one.text or "").startswith("1000000.0")]
    at = sorted(float(one.attrib["x"]) for one in words)
    assert len(at) >= 3
    assert min(np.diff(at)) > 7.5 * max(len(one.text or "") for one in words)


def test_names_are_escaped_and_the_same_input_gives_the_same_bytes() -> None:
    axis = (0.0, 1.0), [(0.0, "0")]
    chart = _Chart((99, 99), axis, axis, names=("a < b & c", "y"), grid=(True, True), key=False)
    assert "a < b & c" in text(chart.file())
    spread = Spread(good=[1.0, 2.0], defective=[3.0], threshold=2.5)
    assert histogram(spread) == histogram(spread)
    assert not re.search(rb"https?://(?!www\.w3\.org/2000/svg)", histogram(spread))


def test_what_cannot_be_drawn_is_an_error() -> None:
    with pytest.raises(NonFiniteError, match="scores"):
        histogram(Spread(good=[1.0, np.nan]))
    with pytest.raises(NonFiniteError, match="threshold"):
        histogram(Spread(good=[1.0], threshold=np.inf))
    with pytest.raises(NonFiniteError, match="tpr"):
        roc([0, 1], [0, np.nan], 0.5)
    with pytest.raises(ConfigError, match="precision has 2 values and recall 3"):
        precision_recall([1, 1], [0, 0.5, 1], 1.0)

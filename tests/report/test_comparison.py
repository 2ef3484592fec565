from __future__ import annotations

import re
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
from browser import CHROMIUM, OPTIONS, shown
from playwright.sync_api import sync_playwright

from blemish.report.charts import ANOMALOUS_COLOUR, Choice, tradeoff
from blemish.report.comparison import Example, Page, write_comparison
from blemish.report.heatmap import encode_jpeg
from blemish.report.labelling import Box, label_places

NAMES = ("milliseconds a picture", "AUROC")


def choices(*values: tuple[float, float]) -> list[Choice]:
    return [
        Choice(
            label=f"method {at}",
            cost=cost,
            value=value,
            low=value - 0.02,
            high=value + 0.01,
            chosen=at == 1,
        )
        for at, (cost, value) in enumerate(values)
    ]


def circles(svg: bytes) -> list[dict[str, str]]:
    return [
        dict(one.attrib)
        for one in ElementTree.fromstring(svg).iter("{http://www.w3.org/2000/svg}circle")
    ]


def test_points_lie_as_their_costs_and_values_do() -> None:
    drawn = circles(tradeoff(choices((1, 0.9), (10, 0.8), (100, 0.95)), names=NAMES))
    x, y = ([float(one[axis]) for one in drawn] for axis in ("cx", "cy"))
    assert x[1] - x[0] == pytest.approx(x[2] - x[1], abs=0.2)  # logarithmic
    assert y[2] < y[0] < y[1]
    assert [one["fill"] == ANOMALOUS_COLOUR for one in drawn] == [False, True, False]


def covered(svg: bytes) -> tuple[list[Box], list[Box]]:
    """What labels of the widest letters cover, and what the points do."""
    found = re.findall(
        r'x="([\d.]+)" y="([\d.]+)" text-anchor="(start|end)"[^>]*>(m[^<]*)<', svg.decode()
    )
    labels = []
    for x, y, anchor, words in found:
        left = float(x) - (8.2 * len(words) if anchor == "end" else 0)
        labels.append(Box(left, float(y) - 11, left + 8.2 * len(words), float(y) + 2))
    dots = []
    for one in circles(svg):
        x, y, radius = (float(one[name]) for name in ("cx", "cy", "r"))
        dots.append(Box(x - radius, y - radius, x + radius, y + radius))
    return labels, dots


def test_labels_stand_apart() -> None:
    labels, _ = covered(
        tradeoff(choices(*[(10 + 0.01 * at, 0.99) for at in range(6)]), names=NAMES)
    )
    assert len(labels) == 6
    assert not any(a.shared(b) for at, a in enumerate(labels) for b in labels[at + 1 :])


def test_labels_cover_neither_each_other_nor_a_point() -> None:
    # As eight candidates lie: four quick ones close together, four slow ones with equal accuracy.
    quick = [(24.0, 0.85), (25.0, 0.9), (25.0, 0.84), (26.5, 0.86)]
    slow = [(95.0, 0.99), (99.0, 0.985), (104.0, 0.99), (118.0, 0.988)]
    labels, dots = covered(tradeoff(choices(*quick, *slow), names=NAMES))
    assert len(labels) == len(dots) == 8
    pairs = [(a, b) for at, a in enumerate(labels) for b in labels[at + 1 :]]
    assert not any(a.shared(b) for a, b in pairs)
    assert Box(0, 0, 2, 2).shared(Box(1, 1, 3, 4)) == 1
    assert not any(label.shared(dot) for label in labels for dot in dots)


def test_a_label_stands_within_the_plot_beside_its_point() -> None:
    plot = Box(0, 0, 200, 100)
    (right,) = label_places([(50, 50)], [60], [], height=14, gap=10, radius=5, plot=plot)
    assert right == (60, 43, 120, 57)
    (left,) = label_places([(190, 2)], [60], [], height=14, gap=10, radius=5, plot=plot)
    assert left == (120, 0, 180, 14)


@pytest.mark.parametrize("values", [[(5.0, 1.0)], [(5.0, 0.5), (5.0, 0.5)], [(0.01, 0.0)]])
def test_a_single_point_and_equal_ones_can_be_drawn(values: list[tuple[float, float]]) -> None:
    svg = tradeoff(choices(*values), names=NAMES)
    assert len(circles(svg)) == len(values)
    assert b"nan" not in svg


def a_page(label: str = "padim 224", caption: str = "nsa") -> Page:
    picture = encode_jpeg(np.full((40, 60, 3), 90, np.uint8))
    return Page(
        title="Which method",
        verdict=f"Take {label}.",
        reasons=["It is the best."],
        sure="This is sure.",
        checked=["On others: 90 %."],
        notes=["Generated defects are no real ones."],
        facts={"learned from": "100 good pictures"},
        head=("", "candidate", "AUROC"),
        lines=[("→", label, "90.0"), ("", "knn 224", "80.0")],
        failed=[("guided 224", "no memory")],
        chart=tradeoff(choices((1, 0.9), (10, 0.8)), names=NAMES),
        examples=[Example(picture=picture, caption=caption)],
        broken=[("bad.png", "not a picture")],
        command="blemish fit padim 'good parts' -o part.blemish",
    )


def test_a_report_loads_and_runs_nothing(tmp_path: Path) -> None:
    hostile = '<script>alert(1)</script><img src="http://x/">'
    text = write_comparison(tmp_path / "r.html", a_page(hostile, '"><script>')).read_text()
    assert "<script" not in text
    assert "&lt;script&gt;alert(1)" in text
    assert "default-src 'none'" in text
    assert not re.search(r'(src|href)="(?!data:image/)', text)
    for said in ("no memory", "bad.png", "100 good pictures", "good parts", "This is sure."):
        assert said in text
    assert text.count("data:image/jpeg") == 1
    assert text.count('class="chosen"') == 1


@pytest.mark.skipif(not CHROMIUM, reason="needs a Chromium")
def test_nothing_of_the_report_is_cut_off(tmp_path: Path) -> None:
    path = write_comparison(tmp_path / "r.html", a_page())
    with sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=list(OPTIONS))
        with shown(browser, path.as_uri()) as page:
            page.set_viewport_size({"width": 420, "height": 800})
            assert page.evaluate("document.documentElement.scrollWidth") <= 420
            assert page.evaluate("document.querySelector('.chart').naturalWidth") > 0
        browser.close()

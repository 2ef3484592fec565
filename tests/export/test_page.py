"""The whole page in headless Chromium: what it shows, what it refuses, whom it asks."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from browser import served, shown, text, until
from pages import EXPORT, READY, calibrated, fitted, graph, predicted, score, wrote
from parts import part, write_picture
from playwright.sync_api import Browser, Page

from blemish.area import SIDE, Area
from blemish.detector.categories import CategoryFeatures
from blemish.detector.manifest import Manifest
from blemish.detector.thresholds import calibrate, p_value
from blemish.export.graph import to_onnx
from blemish.export.web import write_page
from blemish.methods.foreground import Foreground

SHAPES = ((64, 64), (150, 200), (40, 90))


@pytest.fixture
def pictures(tmp_path: Path) -> list[Path]:
    """A good one and defective ones, of several shapes."""
    made = [write_picture(tmp_path / "good.png", part(3))]
    for height, width in SHAPES:
        pixels = part(4, defect=True, height=height, width=width)
        made.append(write_picture(tmp_path / f"defect {height}.png", pixels))
    return made


def agrees(page: Page, record: Manifest, picture: Path) -> None:
    """The page says what blemish says."""
    found, wanted = score(page, picture), predicted(record, picture)
    assert found is not None, text(page, "#error")
    assert found["name"] == picture.name
    assert found["score"] == pytest.approx(wanted.score, abs=1e-5)
    assert found["label"] == wanted.label
    assert text(page, "#verdict") == ["Good", "Defective"][wanted.label or 0]
    inside = None if wanted.foreground is None else wanted.foreground.ravel().astype(int).tolist()
    assert found["counted"] == (None if inside is None or all(inside) else inside)
    shape = wanted.anomaly_map.shape
    drawn = np.array(found["map"]).reshape(shape)
    np.testing.assert_allclose(drawn, wanted.anomaly_map, atol=1e-5)
    regions = [(list(one.box), one.area) for one in wanted.regions or ()]
    assert [(one["box"], one["area"]) for one in found["regions"]] == regions
    assert text(page, "#regions") == str(len(regions))
    if wanted.label:
        assert regions


def test_it_says_what_blemish_says(opened: Page, record: Manifest, pictures: list[Path]) -> None:
    for picture in pictures:
        agrees(opened, record, picture)
    known = np.sort(record.calibration_scores)
    rarity = p_value(predicted(record, pictures[-1]).score, known)
    assert rarity is not None
    assert text(opened, "#p-value") == f"{100 * rarity:.2g} %"
    assert text(opened, "#caption") == "defect 40.png, 90 × 40 pixels"


def test_an_exported_detector_scores_as_it_predicts(
    browser: Browser, tmp_path: Path, pictures: list[Path]
) -> None:
    detector = fitted()
    model = to_onnx(detector, precision="fp32")
    export = {**EXPORT, "outputs": ["score", "map"]}
    manifest = {**detector.manifest, "export": export}
    page_of = write_page(tmp_path / "page", model, manifest)
    with served(page_of) as address, shown(browser, address) as page:
        until(page, READY)
        for picture in pictures:
            found, wanted = score(page, picture), detector.predict(picture)
            assert found is not None
            assert found["score"] == pytest.approx(wanted.score, abs=1e-3)
            assert found["label"] == wanted.label
            assert len(found["regions"]) == len(wanted.regions or ())


def inside() -> Area:
    rows, columns = np.mgrid[:SIDE, :SIDE]
    return Area.of((rows > 200) & (columns < 800))


@pytest.mark.parametrize("resize", ["stretch", "pad", "crop", "fit"])
def test_with_an_area_and_every_way_to_resize(
    browser: Browser, tmp_path: Path, pictures: list[Path], resize: Any
) -> None:
    preprocessing = replace(fitted().preprocessing, resize=resize, area=inside())
    record = calibrated(fitted().record, preprocessing=preprocessing)
    with served(wrote(tmp_path / "page", record)) as address, shown(browser, address) as page:
        until(page, READY)
        for picture in pictures:
            agrees(page, record, picture)
        assert "grey: outside the area, not looked at" in text(page, "#notes")
        assert (
            page.evaluate("getComputedStyle(document.querySelector('#unseen')).display") != "none"
        )
        # A veil over the upper right, which lies outside, and none over the lower left.
        alpha = "document.querySelector('#unseen').getContext('2d').getImageData({}, 1, 1).data[3]"
        side = page.evaluate("document.querySelector('#unseen').width")
        assert page.evaluate(alpha.format(f"{side - 2}, 1")) > 100
        assert page.evaluate(alpha.format(f"{side * 4 // 10}, {side * 8 // 10}")) == 0


def test_the_part_alone_counts(
    browser: Browser, tmp_path: Path, record: Manifest, pictures: list[Path]
) -> None:
    seen = Foreground(direction=(1.0,), cut=0.0, share=0.5, least=0.2, most=0.6)
    record = replace(record, foreground=seen)
    dark = write_picture(tmp_path / "dark.png", np.full((64, 64, 3), 20, np.uint8))
    with served(wrote(tmp_path / "page", record)) as address, shown(browser, address) as page:
        until(page, READY)
        for picture in pictures:
            agrees(page, record, picture)
            assert "grey: background of the part, not looked at" in text(page, "#notes")
        agrees(page, record, dark)
        assert "no background could be told" in text(page, "#notes")
        assert page.evaluate("document.querySelector('#unseen').hidden")


def test_another_rate_is_another_threshold(
    opened: Page, record: Manifest, pictures: list[Path]
) -> None:
    score(opened, pictures[0])
    names = opened.evaluate("[...document.querySelectorAll('#rate option')].map((one) => one.text)")
    assert names == ["≤ 10 %", "≤ 5 % (calibrated)"]
    assert opened.evaluate("document.querySelector('#rate').selectedIndex") == 1
    choose(opened, "rate", 0)
    scores = record.calibration_scores
    other = calibrate(scores, 0.1, method="split conformal", required=True)
    assert other.value is not None
    assert record.threshold is not None
    assert other.value != record.threshold.value
    assert text(opened, "#threshold") == f"{other.value:.5g}"
    opened.evaluate("document.querySelector('details').open = true")
    assert text(opened, "#guarantee") == other.guarantee
    opened.evaluate("document.querySelector('details').open = false")
    choose(opened, "rate", 1)
    assert text(opened, "#threshold") == f"{record.threshold.value:.5g}"


def choose(page: Page, name: str, value: object) -> None:
    page.evaluate(
        f"(() => {{ const one = document.getElementById({name!r}); one.value = {str(value)!r};"
        " one.dispatchEvent(new Event('change')); })()"
    )


def test_a_category_is_told_or_chosen(
    browser: Browser, tmp_path: Path, record: Manifest, pictures: list[Path]
) -> None:
    known = record.threshold
    assert known is not None
    assert known.value is not None
    features = CategoryFeatures(
        means={"nut": (5.0, 5.0, 5.0), "bolt": (-5.0, -5.0, -5.0)}, spread=(1.0, 1.0, 2.0)
    )
    lenient = replace(known, value=100.0)
    record = replace(
        record, categories=("nut", "bolt"), category_features=features,
        thresholds={"nut": lenient}, calibration_scores_by_category={"nut": tuple(range(25))},
    )  # fmt: skip
    white, black = (
        write_picture(tmp_path / f"{tone}.png", np.full((64, 64, 3), tone, np.uint8))
        for tone in (255, 0)
    )
    with served(wrote(tmp_path / "page", record)) as address, shown(browser, address) as page:
        until(page, READY)
        score(page, white)
        assert text(page, "#threshold") == "100"
        assert "category told by the picture's features: nut" in text(page, "#notes")
        assert text(page, "#verdict") == "Good"
        score(page, black)
        assert "features: bolt" in text(page, "#notes")
        assert text(page, "#verdict") == "Defective"
        choose(page, "category", "nut")
        assert text(page, "#verdict") == "Good"


def test_what_is_no_picture_is_told(opened: Page, tmp_path: Path, pictures: list[Path]) -> None:
    whole = pictures[0].read_bytes()
    cut, wrong, empty = (tmp_path / name for name in ("cut.png", "notes.txt", "empty.png"))
    flipped = bytearray(whole)
    flipped[60:90] = bytes(30)
    cut.write_bytes(whole[:-20])
    wrong.write_text("no picture <b>at all</b>")
    empty.write_bytes(b"")
    damaged = tmp_path / "damaged.png"
    damaged.write_bytes(flipped)
    for path, said in (
        (cut, "cut.png: is a PNG file of which the end is missing"),
        (wrong, "notes.txt: is no PNG, JPEG, WebP or BMP picture"),
        (empty, "empty.png: is empty"),
        (damaged, "damaged.png: is damaged: the browser cannot decode it"),
    ):
        assert score(opened, path) is None
        assert text(opened, "#error") == said
        assert text(opened, "#result") == ""
        assert "not scored" in text(opened, "#list tbody tr:first-child")
    assert score(opened, pictures[0]) is not None
    assert text(opened, "#error") == ""


def test_several_at_once_are_listed_and_shown_again(opened: Page, pictures: list[Path]) -> None:
    score(opened, *pictures)
    rows = opened.evaluate(
        "[...document.querySelectorAll('#list tbody tr')].map((one) => one.innerText)"
    )
    names = [row.split("\t")[0] for row in rows[: len(pictures)]]
    assert names == [path.name for path in reversed(pictures)]
    assert rows[0].split("\t")[2] == "Defective"
    opened.evaluate("document.querySelector('#list tbody tr:nth-child(4) button').click()")
    until(opened, f"document.querySelector('#caption').innerText.startsWith({pictures[0].name!r})")


def test_the_heatmap_lies_over_the_picture(opened: Page, pictures: list[Path]) -> None:
    score(opened, pictures[2])
    places = opened.evaluate(
        "['picture', 'heatmap', 'outlines'].map((id) => {"
        " const box = document.getElementById(id).getBoundingClientRect();"
        " return [box.x, box.y, box.width, box.height]; })"
    )
    assert places[0] == places[1] == places[2]
    assert places[0][2] / places[0][3] == pytest.approx(200 / 150, rel=0.01)
    opened.evaluate(
        "(() => { const one = document.getElementById('opacity'); one.value = 20;"
        " one.dispatchEvent(new Event('input')); })()"
    )
    assert opened.evaluate("getComputedStyle(document.getElementById('heatmap')).opacity") == "0.2"
    drawn = "[...document.getElementById('outlines').getContext('2d').getImageData(0, 0, 200, 150)"
    assert opened.evaluate(f"{drawn}.data].some((value) => value > 0)")
    opened.evaluate("document.getElementById('outlined').click()")
    assert opened.evaluate("document.getElementById('outlines').hidden")
    opened.evaluate("document.getElementById('outlined').click()")


@pytest.mark.parametrize("width", [1280, 390])
def test_nothing_is_wider_than_the_window(
    opened: Page, tmp_path: Path, pictures: list[Path], width: int
) -> None:
    opened.set_viewport_size({"width": width, "height": 800})
    long = pictures[1].rename(tmp_path / f"{'a-very-long-name' * 12}.png")
    score(opened, long)
    assert opened.evaluate("document.documentElement.scrollWidth") <= width
    beside = opened.evaluate(
        "document.querySelector('#facts').getBoundingClientRect().left"
        " > document.querySelector('figure').getBoundingClientRect().right"
    )
    assert beside == (width > 800)
    opened.set_viewport_size({"width": 1280, "height": 900})


def test_it_asks_for_its_own_folder_alone(
    browser: Browser, folder: Path, pictures: list[Path]
) -> None:
    with served(folder) as address, shown(browser, address) as page:
        until(page, READY)
        every: list[str] = []
        page.on("request", lambda one: every.append(one.url))
        page.reload()
        until(page, READY)
        score(page, pictures[1])
        asked = {one for one in every if not one.startswith(("data:", "blob:"))}
        assert asked
        assert all(one.startswith(address) for one in asked)
        # And could not otherwise: the page forbids itself to.
        refused = page.evaluate(
            "new Promise((done) => { addEventListener('securitypolicyviolation',"
            " ({ violatedDirective }) => done(violatedDirective));"
            " fetch('http://127.0.0.1:9/').catch(() => setTimeout(done, 2000, 'unreachable')); })"
        )
        assert refused == "connect-src"


def test_a_camera_is_scored(opened: Page) -> None:
    opened.evaluate("document.getElementById('camera').click()")
    until(opened, "blemish.shown?.name === 'camera' && blemish.shown.found.width > 100")
    opened.evaluate("window.first = blemish.shown.found")
    until(opened, "blemish.shown.found !== first")  # and again
    assert text(opened, "#camera") == "Stop the camera"
    assert text(opened, "#verdict") in ("Good", "Defective")
    opened.evaluate("document.getElementById('camera').click()")
    assert text(opened, "#camera") == "Use a camera"
    assert text(opened, "#error") == ""


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("model.onnx", "model.onnx is not the one that detector.json belongs to"),
        ("detector.json", "The detector cannot be loaded"),
        ("onnxruntime/ort.wasm", "The detector cannot be loaded"),
    ],
)
@pytest.mark.parametrize("how", ["missing", "damaged"])
def test_a_damaged_page_says_so(
    browser: Browser, folder: Path, tmp_path: Path, name: str, said: str, how: str
) -> None:
    copy = shutil.copytree(folder, tmp_path / "page")
    content = (copy / name).read_bytes()
    (copy / name).unlink()
    if how == "damaged":
        (copy / name).write_bytes(content[: len(content) // 2])
    with served(copy) as address, shown(browser, address) as page:
        until(page, READY)
        missing = "The detector cannot be loaded: model.onnx: the server answers 404"
        wanted = missing if (name, how) == ("model.onnx", "missing") else said
        assert wanted in text(page, "#error")
        assert page.evaluate("document.body.dataset.state") == "broken"


def test_as_a_file_it_says_how_to_serve_it(browser: Browser, folder: Path) -> None:
    with shown(browser, (folder / "index.html").as_uri()) as page:
        told = page.locator("#unstarted")
        told.wait_for(state="visible")
        assert "python serve.py" in told.inner_text()


@pytest.fixture
def own_server(folder: Path) -> Iterator[str]:
    """The address that the page's own server prints."""
    command = [sys.executable, str(folder / "serve.py"), "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
        try:
            assert server.stdout is not None
            yield server.stdout.readline().split()[1]
        finally:
            server.terminate()


def test_its_own_server_allows_threads(
    browser: Browser, own_server: str, record: Manifest, pictures: list[Path]
) -> None:
    assert own_server.startswith("http://127.0.0.1:")
    with shown(browser, own_server) as page:
        until(page, READY)
        assert text(page, "#error") == ""
        assert page.evaluate("crossOriginIsolated")
        agrees(page, record, pictures[1])


def test_a_graph_that_cannot_run_is_told(
    browser: Browser, tmp_path: Path, record: Manifest
) -> None:
    foreign = graph().replace(b"AveragePool", b"AveragePoof")
    page_of = write_page(tmp_path / "page", foreign, {**record.to_dict(), "export": EXPORT})
    with served(page_of) as address, shown(browser, address) as page:
        until(page, READY)
        assert "The detector cannot be loaded" in text(page, "#error")
        assert "AveragePoof" in text(page, "#error")

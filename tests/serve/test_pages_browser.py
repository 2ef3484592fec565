"""The pages in Debian's Chromium, driven as a person does: by mouse, keys and touch."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from live import Live, serving
from parts import Fitted, part
from playwright.sync_api import Browser, ConsoleMessage, Page, Route, expect

from blemish.images import decode_mask

HOSTILE = '"><img src=x onerror=alert(1)><script>alert(2)</script>{{7*7}}.png'


@pytest.fixture
def live(fitted: Fitted, tmp_path: Path) -> Iterator[Live]:
    """A service with two versions of one model."""
    folder = tmp_path / "models" / "part"
    folder.mkdir(parents=True)
    for version in ("1", "2"):
        fitted("knn").save(folder / f"{version}.blemish")
    with serving(tmp_path / "models", store_folder=tmp_path / "store") as one:
        yield one


@pytest.fixture
def opened(live: Live, page: Page) -> Iterator[Page]:
    """A page of it, whose scripts may not fail and which asks nobody else."""
    problems: list[str] = []
    page.on("pageerror", lambda error: problems.append(str(error)))
    page.on("dialog", lambda dialog: problems.append(f"a dialog: {dialog.message}"))
    page.on("console", lambda one: problems.append(one.text) if _is_fault(one) else None)
    page.on("request", lambda one: None if _is_own(one.url, live) else problems.append(one.url))
    page.goto(live.url)
    yield page
    assert not problems


def _is_fault(message: ConsoleMessage) -> bool:
    """Whether it is more than an answer that was no success, which browsers note by themselves."""
    own = ("Failed to load resource", "Response Status Error Code")  # the browser's, and htmx's
    return message.type == "error" and not message.text.startswith(own)


def _is_own(url: str, live: Live) -> bool:
    return url.startswith((live.url, "data:", "blob:"))


def sent(live: Live, pictures: list[Path], **asked: str) -> list[dict[str, Any]]:
    """Rows of pictures that a program sent."""
    rows = []
    with live.client() as client:
        for path in pictures:
            files = {"picture": (path.name, path.read_bytes())}
            answer = client.post("/v1/models/part/predict", files=files, params=asked)
            assert answer.status_code == 200, answer.text
            rows += answer.json()["predictions"]
    return rows


def press(page: Page, key: str) -> None:
    """A key on a picture that is there to be judged."""
    page.locator("[data-stage][data-ready]").wait_for()
    page.keyboard.press(key)


def middle(page: Page) -> tuple[float, float]:
    box = page.locator("[data-view]").bounding_box()
    assert box is not None
    return box["x"] + box["width"] / 2, box["y"] + box["height"] / 2


def drawn(live: Live, picture: str) -> np.ndarray:
    """The mask of the only label of a picture."""
    assert live.service.store is not None
    (label,) = live.service.store.current(picture).values()
    assert label.mask is not None
    return decode_mask(label.mask, name="mask")


def test_pictures_are_sent_from_the_page_and_come_in_live(
    live: Live, opened: Page, pictures: list[Path]
) -> None:
    expect(opened.locator("#state")).to_have_text("live")
    expect(opened.locator("#feed")).to_contain_text("No picture yet")
    opened.set_input_files("#files", pictures[:2])
    expect(opened.locator("#feed .newest")).to_be_visible()
    expect(opened.locator("#feed .tile")).to_have_count(1)
    expect(opened.locator("#toasts")).to_contain_text("2 pictures were scored")
    sent(live, pictures[2:5], source="camera 7")  # somebody else sends more
    expect(opened.locator("#feed .tile")).to_have_count(4)
    expect(opened.locator("#feed .says")).to_contain_text("camera 7")
    expect(opened.locator("#summary .counts dd").first).to_have_text("5")


def test_what_is_paused_waits(live: Live, opened: Page, pictures: list[Path]) -> None:
    expect(opened.locator("#state")).to_have_text("live")
    opened.keyboard.press("Space")
    expect(opened.locator("#state")).to_have_text("paused")
    sent(live, pictures[:1])
    opened.wait_for_timeout(600)
    expect(opened.locator("#feed .newest")).to_have_count(0)
    opened.keyboard.press("Space")
    expect(opened.locator("#feed .newest")).to_be_visible()


def test_a_file_that_is_no_picture_is_told(live: Live, opened: Page, tmp_path: Path) -> None:
    broken = tmp_path / "broken.png"
    broken.write_bytes(b"no picture")
    expect(opened.locator("#state")).to_have_text("live")
    with opened.expect_response("**/predict*") as answer:
        opened.set_input_files("#files", [broken])
    assert answer.value.status == 422
    expect(opened.locator(".toast.wrong")).to_contain_text("the picture")


def test_labels_by_keys_and_taken_back(live: Live, opened: Page, pictures: list[Path]) -> None:
    sent(live, pictures)
    opened.goto(f"{live.url}/review")
    review = opened.locator("#review")
    first = review.get_attribute("data-picture-id")
    press(opened, "g")
    expect(opened.locator(".told")).to_have_text("Kept: good.")
    second = review.get_attribute("data-picture-id")
    assert second != first
    opened.keyboard.press("y")
    opened.keyboard.type("scratch")
    opened.keyboard.press("Enter")
    press(opened, "d")
    expect(opened.locator(".told")).to_have_text("Kept: defect, scratch.")
    press(opened, "u")
    expect(opened.locator(".told")).to_have_text("Kept: unsure.")
    for _ in range(2):
        opened.keyboard.press("z")
        expect(opened.locator(".told")).to_contain_text("Taken back")
        opened.wait_for_timeout(100)
    expect(review).to_have_attribute("data-picture-id", str(second))
    expect(opened.locator(".told")).to_contain_text("Taken back: defect")
    store = live.service.store
    assert store is not None
    assert [one.verdict for one in store.labels(_picture(live, first))] == ["good"]
    (undone,) = store.labels(_picture(live, second))
    assert (undone.verdict, undone.defect) == ("defect", "scratch")
    assert undone.undone is not None


def _picture(live: Live, id: str | None) -> str:
    assert live.service.store is not None
    assert id is not None
    row = live.service.store.prediction(int(id))
    assert row is not None
    return row.picture


def test_skipped_pictures_come_last(live: Live, opened: Page, pictures: list[Path]) -> None:
    sent(live, pictures[:3])
    opened.goto(f"{live.url}/review")
    seen = []
    for _ in range(3):
        seen.append(opened.locator("#review").get_attribute("data-picture-id"))
        with opened.expect_response("**/review/label*"):
            press(opened, "s")
        opened.wait_for_timeout(150)
    assert len(set(seen)) == 3
    expect(opened.locator("#review")).to_contain_text("Only skipped pictures are left")


def test_a_brush_stroke_is_the_mask(live: Live, opened: Page, pictures: list[Path]) -> None:
    (row,) = sent(live, pictures[:1])
    opened.goto(f"{live.url}/review")
    opened.keyboard.press("b")
    x, y = middle(opened)
    opened.mouse.move(x - 60, y)
    opened.mouse.down()
    opened.mouse.move(x + 60, y, steps=8)
    opened.mouse.up()
    press(opened, "d")
    expect(opened.locator(".told")).to_contain_text("with its mask")
    mask = drawn(live, row["digest"])
    assert mask.shape == (row["height"], row["width"])
    rows, columns = np.nonzero(mask)
    assert abs(rows.mean() - (row["height"] - 1) / 2) < 1.5
    assert abs(columns.mean() - (row["width"] - 1) / 2) < 1.5
    assert np.ptp(columns) > np.ptp(rows) > 0


def test_a_polygon_is_filled_and_steps_are_undone(
    live: Live, opened: Page, pictures: list[Path]
) -> None:
    (row,) = sent(live, pictures[:1])
    opened.goto(f"{live.url}/review")
    x, y = middle(opened)
    opened.keyboard.press("b")  # a stroke that is taken back
    opened.mouse.click(x + 150, y + 150)
    opened.keyboard.press("Control+z")
    opened.keyboard.press("p")
    for across, down in ((-100, -100), (0, -100), (0, 0), (-100, 0), (200, 200)):
        opened.mouse.click(x + across, y + down)
    opened.keyboard.press("Backspace")  # the last corner
    opened.keyboard.press("Enter")
    press(opened, "d")
    expect(opened.locator(".told")).to_contain_text("with its mask")
    mask = drawn(live, row["digest"])
    height, width = mask.shape
    rows, columns = np.nonzero(mask)
    assert rows.max() <= height / 2
    assert columns.max() <= width / 2
    filled = mask[rows.min() : rows.max() + 1, columns.min() : columns.max() + 1]
    assert filled.mean() > 0.9
    assert abs(np.ptp(rows) - np.ptp(columns)) <= 1


def test_an_eraser_that_leaves_nothing_leaves_no_mask(
    live: Live, opened: Page, pictures: list[Path]
) -> None:
    (row,) = sent(live, pictures[:1])
    opened.goto(f"{live.url}/review")
    x, y = middle(opened)
    opened.keyboard.press("b")
    opened.mouse.click(x, y)
    opened.keyboard.press("e")
    for _ in range(4):
        opened.keyboard.press("]")
    opened.mouse.click(x, y)
    press(opened, "d")
    expect(opened.locator(".told")).to_have_text("Kept: defect.")
    assert live.service.store is not None
    (label,) = live.service.store.current(row["digest"]).values()
    assert label.mask is None


def test_a_picture_is_zoomed_moved_and_drawn_on_where_it_then_lies(
    live: Live, opened: Page, pictures: list[Path]
) -> None:
    (row,) = sent(live, pictures[:1])
    opened.goto(f"{live.url}/pictures/{row['id']}")
    zoomed = opened.locator("[data-zoomed]")
    before = zoomed.inner_text()
    x, y = middle(opened)
    opened.mouse.move(x + 100, y + 100)
    opened.mouse.wheel(0, -400)  # larger, the place under the pointer held
    expect(zoomed).not_to_have_text(before)
    opened.keyboard.press("b")
    opened.mouse.click(x + 100, y + 100)
    press(opened, "d")
    expect(opened.locator("#said .said")).to_contain_text("mask")
    box = opened.locator("[data-layers]").evaluate("(one) => [one.clientWidth, one.clientHeight]")
    side = min(box[0] / row["width"], box[1] / row["height"])
    rows, columns = np.nonzero(drawn(live, row["digest"]))
    assert abs(rows.mean() + 0.5 - row["height"] / 2 - 100 / side) < 1.5
    assert abs(columns.mean() + 0.5 - row["width"] / 2 - 100 / side) < 1.5
    opened.keyboard.press("v")
    opened.keyboard.press("0")
    expect(zoomed).to_have_text(before)


def test_the_heatmap_fades_and_regions_hide(live: Live, opened: Page, pictures: list[Path]) -> None:
    rows = sent(live, pictures)
    row = next(one for one in rows if one["regions"])
    opened.goto(f"{live.url}/pictures/{row['id']}")
    heat, regions = opened.locator("[data-heat]"), opened.locator("[data-regions]")
    opened.locator("[data-opacity]").fill("30")
    expect(heat).to_have_css("opacity", "0.3")
    opened.locator("[data-view]").focus()
    opened.keyboard.press("h")
    expect(heat).to_have_css("opacity", "0")
    opened.keyboard.press("r")
    expect(regions).to_be_hidden()
    opened.keyboard.press("r")
    expect(regions).to_be_visible()
    expect(opened.locator(".side")).to_contain_text("above the threshold")


def test_it_tells_what_a_place_looks_most_like(
    live: Live, opened: Page, pictures: list[Path]
) -> None:
    rows = sent(live, pictures)
    defect = next(one for one in rows if one["label"] == 1)
    opened.goto(f"{live.url}/pictures/{defect['id']}")
    expect(opened.locator("#likeness .alike figure")).to_have_count(4)
    expect(opened.locator("#likeness")).to_contain_text("places of good pictures")


def test_promote_and_roll_back_ask_first(live: Live, opened: Page, pictures: list[Path]) -> None:
    opened.goto(f"{live.url}/models")
    card = opened.locator(".version-card.live")
    expect(card).to_contain_text("Version 2")
    opened.get_by_role("button", name="Promote…").click()
    opened.get_by_role("button", name="Cancel").click()
    assert live.service.models.live("part").version == "2"
    opened.get_by_role("button", name="Promote…").click()
    opened.get_by_label("Why").fill("fewer false alarms")
    opened.get_by_role("dialog").get_by_role("button", name="Promote").click()
    expect(opened.locator("#models > .told")).to_have_text("Version 1 is live now.")
    assert live.service.models.live("part").version == "1"
    expect(card).to_contain_text("Version 1")
    expect(opened.locator("#models table")).to_contain_text("fewer false alarms")
    opened.get_by_role("button", name="Roll back to 2…").click()
    opened.get_by_role("dialog").get_by_role("button", name="Roll back").click()
    expect(opened.locator("#models > .told")).to_have_text("Back to version 2.")
    assert live.service.models.live("part").version == "2"


def test_a_hostile_file_name_is_shown_as_it_is(live: Live, opened: Page) -> None:
    files = {"picture": (HOSTILE, _bytes_of_a_part())}
    with live.client() as client:
        answer = client.post("/v1/models/part/predict", files=files)
    assert answer.status_code == 200
    (row,) = answer.json()["predictions"]
    for path in ("/live", "/pictures", f"/pictures/{row['id']}", "/review", "/figures"):
        opened.goto(f"{live.url}{path}")
        opened.wait_for_timeout(150)
        assert opened.locator("script:not([src])").count() == 0
        assert opened.locator('img[src="x"]').count() == 0
    opened.goto(f"{live.url}/pictures/{row['id']}")
    expect(opened.locator(".facts")).to_contain_text(row["path"])


def _bytes_of_a_part() -> bytes:
    import cv2

    return bytes(cv2.imencode(".png", part(5, defect=True))[1])


def test_the_slider_shows_both_rates(live: Live, opened: Page, pictures: list[Path]) -> None:
    rows = sent(live, pictures, source="camera 1")
    opened.goto(f"{live.url}/review")
    labels = {str(one["id"]): "d" if one["label"] else "g" for one in rows}
    for at in range(len(rows)):
        id = opened.locator("#review").get_attribute("data-picture-id")
        with opened.expect_response("**/review/label*"):
            press(opened, labels[str(id)])
        expect(opened.locator(f'#review[data-picture-id="{id}"]')).to_have_count(0)
        assert at < 20
    held: list[Route] = []
    # The slider is moved before the curve is here.
    opened.route("**/figures/curve*", lambda route: held.append(route))
    opened.goto(f"{live.url}/figures")
    rate = opened.locator('[data-rate="miss_rate"] [data-value]')
    expect(rate).to_have_text("0 %")
    slider = opened.locator("[data-slider]")
    slider.focus()
    with opened.expect_response("**/figures/groups*"):
        opened.keyboard.press("End")  # above every score: all defects are missed
    expect(rate).to_have_text("0 %")
    (curve,) = held
    curve.continue_()
    expect(rate).to_have_text("100 %")
    expect(opened.locator("[data-says]")).to_contain_text("100 % misses")
    expect(opened.locator("#groups")).to_contain_text("camera 1")


def test_help_theme_and_pages_by_keys(live: Live, opened: Page) -> None:
    opened.keyboard.press("?")
    expect(opened.locator("#help")).to_be_visible()
    opened.keyboard.press("Escape")
    expect(opened.locator("#help")).to_be_hidden()
    opened.emulate_media(color_scheme="light")
    opened.keyboard.press("t")
    theme = opened.locator("html").get_attribute("data-theme")
    assert theme == "dark"
    opened.keyboard.press("Shift+M")
    opened.wait_for_url("**/models?*")
    assert opened.locator("html").get_attribute("data-theme") == theme  # of the server, at once


def test_a_finger_draws_and_two_zoom(live: Live, opened: Page, pictures: list[Path]) -> None:
    (row,) = sent(live, pictures[:1])
    opened.goto(f"{live.url}/review")
    x, y = middle(opened)
    opened.locator("[data-tool=brush]").tap()
    before = opened.locator("[data-zoomed]").inner_text()
    touches = opened.context.new_cdp_session(opened)

    def touch(kind: str, *points: tuple[float, float]) -> None:
        given = [{"x": across, "y": down, "id": at} for at, (across, down) in enumerate(points)]
        touches.send("Input.dispatchTouchEvent", {"type": kind, "touchPoints": given})

    touch("touchStart", (x - 40, y))
    touch("touchStart", (x - 40, y), (x + 40, y))
    for apart in (60, 90, 120):
        touch("touchMove", (x - apart, y), (x + apart, y))
    touch("touchEnd")
    expect(opened.locator("[data-zoomed]")).not_to_have_text(before)
    expect(opened.locator("[data-mask-undo]")).to_be_disabled()  # nothing was drawn by it
    opened.locator("[data-zoom=fit]").tap()
    opened.touchscreen.tap(x, y)
    opened.locator('[data-verdict="d"]').tap()
    expect(opened.locator(".told")).to_contain_text("with its mask")
    rows, columns = np.nonzero(drawn(live, row["digest"]))
    assert abs(rows.mean() - (row["height"] - 1) / 2) < 2
    assert abs(columns.mean() - (row["width"] - 1) / 2) < 2


def test_every_control_has_a_name_and_the_focus_is_seen(
    live: Live, opened: Page, pictures: list[Path]
) -> None:
    (row,) = sent(live, pictures[:1])
    for path in ("/live", "/pictures", f"/pictures/{row['id']}", "/review", "/figures", "/models"):
        opened.goto(f"{live.url}{path}")
        unnamed = opened.evaluate(
            """() => [...document.querySelectorAll("button, input:not([type=hidden]), select, a")]
            .filter((one) => !one.matches("datalist *") && !(one.innerText.trim() || one.ariaLabel
              || one.labels?.length || one.title)).map((one) => one.outerHTML)"""
        )
        assert unnamed == []
        opened.keyboard.press("Tab")
        focused = opened.evaluate("getComputedStyle(document.activeElement).outlineStyle")
        assert focused != "none"
        wide = opened.evaluate("document.documentElement.scrollWidth <= innerWidth")
        assert wide, path


def test_arrows_lead_to_the_pictures_beside(live: Live, opened: Page, pictures: list[Path]) -> None:
    rows = sent(live, pictures[:3])
    opened.goto(f"{live.url}/pictures/{rows[1]['id']}")
    opened.keyboard.press("ArrowLeft")
    opened.wait_for_url(f"**/pictures/{rows[2]['id']}")
    opened.go_back()
    opened.keyboard.press("ArrowRight")
    opened.wait_for_url(f"**/pictures/{rows[0]['id']}")


def test_without_scripts_pages_are_useful(
    live: Live, browser: Browser, pictures: list[Path]
) -> None:
    rows = sent(live, pictures)
    context = browser.new_context(java_script_enabled=False)
    try:
        page = context.new_page()
        page.goto(live.url)
        expect(page.locator("#feed .tile")).to_have_count(len(rows) - 1)
        page.locator("#feed .newest a").click()
        expect(page.locator(".side")).to_contain_text("the threshold of")
        box = page.locator("[data-picture]").bounding_box()
        assert box is not None
        assert box["height"] > 300
        page.get_by_role("link", name="Figures").click()
        expect(page.locator("#rates")).to_contain_text("Review some")
    finally:
        context.close()


def test_logging_in_and_out(artifact: Path, tmp_path: Path, page: Page) -> None:
    tokens = tmp_path / "tokens"
    tokens.write_text("review Ada token-of-ada-00001\n")
    tokens.chmod(0o600)
    with serving(artifact, store_folder=tmp_path / "store", token_file=tokens) as live:
        page.goto(f"{live.url}/figures")
        page.get_by_label("Token").fill("token-of-nobody-1")
        page.get_by_role("button", name="Log in").click()
        expect(page.get_by_role("alert")).to_have_text("Nobody has that token.")
        page.get_by_label("Token").fill("token-of-ada-00001")
        page.keyboard.press("Enter")
        page.wait_for_url("**/figures")
        expect(page.locator(".user")).to_have_text("Ada")
        page.get_by_role("button", name="Log out").click()
        page.wait_for_url("**/login")
        page.goto(f"{live.url}/figures")
        page.wait_for_url("**/login?*")

"""What somebody said or drew is never lost, and labels the picture that they saw and no other."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from live import Live, serving
from playwright.sync_api import Page, Route, expect
from test_pages_browser import middle, press, sent

from blemish.serve.sessions import Sessions

TOKENS = "review Ada token-of-ada-00001\n"


@pytest.fixture
def live(artifact: Path, tmp_path: Path) -> Iterator[Live]:
    with serving(artifact, store_folder=tmp_path / "store") as one:
        yield one


def draw(page: Page) -> None:
    """A stroke with the brush, and a type."""
    page.locator("[data-stage][data-ready]").wait_for()
    page.keyboard.press("b")
    x, y = middle(page)
    page.mouse.move(x - 40, y)
    page.mouse.down()
    page.mouse.move(x + 40, y, steps=5)
    page.mouse.up()
    page.get_by_label("Defect type").fill("scratch")
    page.keyboard.press("Enter")


def drawn(page: Page) -> int:
    """How many pixels of the mask are marked."""
    found: int = page.evaluate(
        """() => { const one = document.querySelector("[data-canvas]");
        const { data } = one.getContext("2d").getImageData(0, 0, one.width, one.height);
        return data.filter((value, at) => at % 4 === 3 && value > 127).length; }"""
    )
    return found


def labels(live: Live) -> list[Any]:
    store = live.service.store
    assert store is not None
    return [one for row in store.predictions() for one in store.labels(row.picture)]


def test_a_session_that_is_gone_is_opened_anew(
    live: Live, page: Page, pictures: list[Path]
) -> None:
    """As after a restart of the service."""
    sent(live, pictures[:2])
    page.goto(f"{live.url}/review")
    draw(page)
    live.service.gate.sessions = Sessions()  # with another key
    page.keyboard.press("d")
    expect(page.locator(".told")).to_have_text("Kept: defect, scratch, with its mask.")
    (label,) = labels(live)
    assert label.mask is not None


@pytest.mark.parametrize("how", ["gone", "busy"])
def test_what_cannot_be_sent_is_tried_again(
    live: Live, page: Page, pictures: list[Path], how: str
) -> None:
    sent(live, pictures[:2])
    page.goto(f"{live.url}/review")
    draw(page)
    marked = drawn(page)
    failed = []

    def fail(route: Route) -> None:
        failed.append(route)
        if how == "gone":
            route.abort()
        else:
            body = '{"error": {"kind": "Busy", "message": "the store is away"}}'
            route.fulfill(status=503, body=body, headers={"Retry-After": "1"})

    page.route("**/review/label*", fail)
    page.keyboard.press("d")
    said = "the service cannot be reached" if how == "gone" else "the store is away"
    expect(page.locator(".toast.wrong")).to_contain_text(said)
    expect(page.locator(".toast.wrong")).to_contain_text("what you drew stays here")
    assert drawn(page) == marked > 0
    assert not labels(live)
    page.unroute("**/review/label*")
    expect(page.locator(".told")).to_contain_text("Kept: defect, scratch, with its mask")
    expect(page.locator(".toast.wrong")).to_have_count(0)
    assert len(labels(live)) == 1


def test_an_answer_that_is_lost_leaves_one_label(
    live: Live, page: Page, pictures: list[Path]
) -> None:
    """The service has kept it, and nobody knows."""
    sent(live, pictures[:2])
    page.goto(f"{live.url}/review")
    draw(page)

    def lose(route: Route) -> None:
        route.fetch()
        route.abort()

    page.route("**/review/label*", lose, times=1)
    page.keyboard.press("d")
    page.get_by_role("button", name="Try now").click()
    expect(page.locator(".told")).to_contain_text("Kept: defect")
    assert len(labels(live)) == 1


def test_a_drawing_outlives_a_reload(live: Live, page: Page, pictures: list[Path]) -> None:
    sent(live, pictures[:1])
    page.goto(f"{live.url}/review")
    draw(page)
    marked = drawn(page)
    page.reload()
    expect(page.locator(".toast")).to_contain_text("is back")
    assert drawn(page) == marked
    expect(page.get_by_label("Defect type")).to_have_value("scratch")
    press(page, "d")
    expect(page.get_by_text("Nothing waits for review")).to_be_visible()
    assert not page.evaluate("Object.keys(sessionStorage).filter((one) => one.match('draft'))")
    (label,) = labels(live)
    assert label.mask is not None


def test_a_drawing_outlives_a_login(
    artifact: Path, tmp_path: Path, page: Page, pictures: list[Path]
) -> None:
    tokens = tmp_path / "tokens"
    tokens.write_text(TOKENS + "predict camera token-of-camera-1\n")
    tokens.chmod(0o600)
    with serving(artifact, store_folder=tmp_path / "store", token_file=tokens) as live:
        with live.client("token-of-camera-1") as client:
            for path in pictures[:2]:
                client.post("/v1/models/part/predict", content=path.read_bytes())
        log_in(page, f"{live.url}/review")
        draw(page)
        marked = drawn(page)
        id = page.locator("#review").get_attribute("data-picture-id")
        live.service.gate.sessions = Sessions()  # with another key
        page.keyboard.press("d")
        expect(page.locator(".toast.wrong")).to_contain_text("you are logged out")
        page.get_by_role("button", name="Log in").click()
        log_in(page)
        page.wait_for_url(f"**/review?id={id}")
        assert drawn(page) == marked > 0
        press(page, "d")
        expect(page.locator(".told")).to_contain_text("Kept: defect, scratch, with its mask")
        assert [str(one.prediction) for one in labels(live)] == [id]


def log_in(page: Page, address: str = "") -> None:
    if address:
        page.goto(address)
    page.get_by_label("Token").fill("token-of-ada-00001")
    page.keyboard.press("Enter")
    page.locator("[data-stage]").wait_for()


def test_a_drawing_on_a_skipped_picture_comes_again(
    live: Live, page: Page, pictures: list[Path]
) -> None:
    sent(live, pictures[:1])
    page.goto(f"{live.url}/review")
    draw(page)
    marked = drawn(page)
    press(page, "s")
    page.get_by_role("link", name="Begin with them again").click()
    page.locator("[data-stage][data-ready]").wait_for()
    assert drawn(page) == marked


def test_a_part_of_a_page_leads_to_the_whole_page_after_the_login(
    artifact: Path, tmp_path: Path
) -> None:
    tokens = tmp_path / "tokens"
    tokens.write_text(TOKENS)
    tokens.chmod(0o600)
    with serving(artifact, store_folder=tmp_path / "store", token_file=tokens) as live:
        for part in ("/live/feed?show=all", "/review/hints?id=3"):
            headers = {"Accept": "text/html", "HX-Request": "true"}
            headers["HX-Current-URL"] = f"{live.url}/review?id=3"
            with live.client() as client:
                answer = client.get(part, headers=headers)
            assert answer.headers["HX-Redirect"] == "/login?next=%2Freview%3Fid%3D3"


@pytest.mark.parametrize("how", ["keys", "clicks"])
def test_twice_is_once(live: Live, page: Page, pictures: list[Path], how: str) -> None:
    """While a label is on its way, and right after the next picture has come."""
    sent(live, pictures[:4])
    page.goto(f"{live.url}/review")
    page.locator("[data-stage][data-ready]").wait_for()
    first = page.locator("#review").get_attribute("data-picture-id")
    held: list[Route] = []
    page.route("**/review/label*", lambda route: held.append(route))
    for _ in range(2):
        if how == "keys":
            page.keyboard.press("g")
        else:
            page.locator("[data-verdict=g]").click(force=True)
    page.evaluate("""() => new MutationObserver((_, observer) => {
      observer.disconnect();
      for (const after of [0, 40, 80, 120, 160]) setTimeout(() => {
        document.dispatchEvent(new KeyboardEvent("keydown", {key: "g"}));
        document.querySelector("[data-verdict=g]")?.click();
      }, after);
    }).observe(document.querySelector("main"), {childList: true})""")
    (route,) = held
    route.continue_()
    page.unroute("**/review/label*")
    expect(page.locator(".told")).to_have_text("Kept: good.")
    page.wait_for_timeout(500)
    assert [str(one.prediction) for one in labels(live)] == [first]
    press(page, "g")  # and what is meant is heard
    expect(page.locator(f'#review[data-picture-id="{first}"]')).to_have_count(0)
    page.wait_for_timeout(300)
    assert len(labels(live)) == 2


def test_a_picture_that_has_not_come_is_not_judged(
    live: Live, page: Page, pictures: list[Path]
) -> None:
    sent(live, pictures[:1])
    held: list[Route] = []
    page.route(re.compile("/media/pictures/"), lambda route: held.append(route))
    page.goto(f"{live.url}/review", wait_until="domcontentloaded")
    page.locator(".zooms").wait_for()
    expect(page.locator("[data-zoomed]")).not_to_have_text("100 %")  # the scripts have begun
    page.keyboard.press("g")
    expect(page.locator(".toast")).to_contain_text("still on its way")
    assert not labels(live)
    for route in held:
        route.continue_()
    press(page, "g")
    expect(page.get_by_text("Nothing waits for review")).to_be_visible()


def test_pictures_that_were_not_sent_can_be_sent_again(
    live: Live, page: Page, pictures: list[Path]
) -> None:
    page.goto(f"{live.url}/live")
    expect(page.locator("#state")).to_have_text("live")
    page.route("**/predict*", lambda route: route.abort(), times=1)
    page.set_input_files("#files", pictures[:6])
    expect(page.locator(".toast.wrong")).to_contain_text("4 pictures were not scored")
    live.service.gate.sessions = Sessions()  # with another key
    page.get_by_role("button", name="Send again").click()
    expect(page.locator("#feed .tile")).to_have_count(5)


def test_a_form_in_a_dialog_says_what_went_wrong_and_keeps_what_was_typed(
    fitted: Any, tmp_path: Path, page: Page
) -> None:
    folder = tmp_path / "models" / "part"
    folder.mkdir(parents=True)
    for version in ("1", "2"):
        fitted("knn").save(folder / f"{version}.blemish")
    with serving(tmp_path / "models", store_folder=tmp_path / "store") as live:
        page.goto(f"{live.url}/models")
        page.get_by_role("button", name="Promote…").click()
        page.get_by_label("Why").fill("fewer false alarms")
        promote = page.get_by_role("dialog").get_by_role("button", name="Promote")
        page.route("**/promote*", lambda route: route.abort(), times=1)
        promote.click()
        # In the dialog: what is outside of it cannot be read while it is open.
        expect(page.locator("dialog[open] .toast.wrong")).to_contain_text("cannot be reached")
        expect(page.get_by_label("Why")).to_have_value("fewer false alarms")
        live.service.gate.sessions = Sessions()  # with another key
        promote.click()
        expect(page.locator("#models > .told")).to_have_text("Version 1 is live now.")

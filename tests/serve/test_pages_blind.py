"""The first opinion on a picture is the reviewer's own: what the detector says is not shown before,
unless they ask for it, and then that is known of the label."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from live import Live, serving
from playwright.sync_api import Page, expect
from test_pages_browser import press, sent
from visits import csrf_of
from visits import page as text_of

from blemish.store import Label

HINTS = ("/media/heatmaps/", "data-regions", "The detector says", "the threshold of", "Others say")


@pytest.fixture
def live(artifact: Path, tmp_path: Path) -> Iterator[Live]:
    with serving(artifact, store_folder=tmp_path / "store") as one:
        yield one


def said(live: Live, picture: str) -> list[Label]:
    assert live.service.store is not None
    return live.service.store.labels(picture)


def test_nothing_in_the_page_tells_what_the_detector_says(live: Live, pictures: list[Path]) -> None:
    rows = sent(live, pictures)
    with live.client() as client:
        for row in rows:
            text = text_of(client, f"/review?id={row['id']}")
            assert row["digest"] in text
            assert not [hint for hint in HINTS if hint in text]
            assert f"{row['score']:.3g}"[:4] not in text.split('id="review"')[1]
            shown = text_of(client, f"/review?id={row['id']}&shown=1")
            assert [hint for hint in HINTS if hint in shown] == list(HINTS)


def test_a_second_look_does_not_tell_what_the_first_said(live: Live, pictures: list[Path]) -> None:
    (row,) = sent(live, pictures[:1])
    assert live.service.store is not None
    live.service.store.add_label(Label(picture=row["digest"], verdict="unsure", reviewer="Bogumil"))
    with live.client() as client:
        text = text_of(client, "/review")
    assert row["digest"] in text
    assert "Bogumil" not in text


def test_a_key_shows_it_and_the_label_knows(live: Live, page: Page, pictures: list[Path]) -> None:
    rows = sent(live, pictures)
    one, other = (next(row for row in rows if row["label"] == label) for label in (1, 0))
    page.goto(f"{live.url}/review?id={one['id']}")
    press(page, "u")
    expect(page.locator(".told")).to_contain_text("Kept: unsure")
    assert [label.revealed for label in said(live, one["digest"])] == [False]
    page.goto(f"{live.url}/review?id={other['id']}")
    press(page, "h")
    expect(page.locator("[data-heat]")).to_be_visible()
    expect(page.locator("#hints")).to_contain_text("The detector says")
    expect(page.locator("[data-regions]")).to_have_count(1)
    page.keyboard.press("g")
    expect(page.locator(".told")).to_contain_text("Kept: good")
    assert [label.revealed for label in said(live, other["digest"])] == [True]


def test_a_drawing_stays_when_it_is_shown(live: Live, page: Page, pictures: list[Path]) -> None:
    (row,) = sent(live, pictures[:1])
    page.goto(f"{live.url}/review")
    page.locator("[data-stage][data-ready]").wait_for()
    page.keyboard.press("b")
    page.locator("[data-view]").click()
    page.keyboard.press("h")
    expect(page.locator("#hints")).to_contain_text("The detector says")
    expect(page.locator(".htmx-request, .htmx-swapping, .htmx-settling")).to_have_count(0)
    page.keyboard.press("d")
    expect(page.get_by_text("Nothing waits for review")).to_be_visible()
    (label,) = said(live, row["digest"])
    assert label.mask is not None
    assert label.revealed


def test_who_contradicts_the_detector_is_told_and_may_look_again(
    live: Live, page: Page, pictures: list[Path]
) -> None:
    rows = sent(live, pictures)
    row = next(one for one in rows if one["label"] == 1)
    page.goto(f"{live.url}/review?id={row['id']}")
    press(page, "g")
    expect(page.locator(".notice")).to_contain_text("The detector says defect")
    page.keyboard.press("z")
    expect(page.locator("#review")).to_have_attribute("data-picture-id", str(row["id"]))
    expect(page.locator("[data-heat]")).to_be_visible()
    press(page, "d")
    expect(page.locator(".told")).to_contain_text("Kept: defect")
    expect(page.locator(".notice")).to_have_count(0)
    labels = said(live, row["digest"])
    assert [(one.verdict, one.revealed) for one in labels] == [("good", False), ("defect", True)]
    assert labels[0].undone is not None


def test_heatmap_and_regions_stay_as_they_were_left(
    live: Live, page: Page, pictures: list[Path]
) -> None:
    rows = [row for row in sent(live, pictures) if row["label"]]
    page.goto(f"{live.url}/pictures/{rows[0]['id']}")
    opacity = page.locator("[data-opacity]")
    expect(page.locator("[data-heat]")).to_have_css("opacity", "0.3")  # the defect is seen under it
    opacity.fill("70")
    page.locator("[data-view]").focus()
    page.keyboard.press("r")
    page.goto(f"{live.url}/pictures/{rows[1]['id']}")
    expect(page.locator("[data-heat]")).to_have_css("opacity", "0.7")
    expect(page.locator("[data-regions]")).to_be_hidden()
    page.keyboard.press("h")
    page.goto(f"{live.url}/pictures/{rows[0]['id']}")
    expect(page.locator("[data-heat]")).to_have_css("opacity", "0")
    page.keyboard.press("h")
    expect(page.locator("[data-heat]")).to_have_css("opacity", "0.7")


def test_figures_say_how_many_had_seen_it(live: Live, pictures: list[Path]) -> None:
    rows = sent(live, pictures)
    with live.client() as client:
        client.headers |= csrf_of(text_of(client, "/review"))
        for at, row in enumerate(rows):
            given = {"picture": row["digest"], "prediction": str(row["id"]), "then": "next"}
            given |= {"verdict": "good", "skipped": "", "revealed": "1" if at < 3 else ""}
            files = {name: (None, value) for name, value in given.items()}
            client.post("/review/label", files=files).raise_for_status()
        text = text_of(client, "/figures")
    assert "Of all reviewed, 3 by somebody who had been shown what the detector says." in text

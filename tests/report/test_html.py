from __future__ import annotations

import base64
import dataclasses
import hashlib
import os
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from blemish.errors import NonFiniteError
from blemish.report.heatmap import encode_jpeg
from blemish.report.html import Entry, write_report
from blemish.types import Evaluation, Failure

PICTURE = encode_jpeg(np.full((8, 8, 3), 90, np.uint8))
OVERLAY = encode_jpeg(np.full((8, 8, 3), 200, np.uint8))
MANIFEST: dict[str, Any] = {
    "format": 1,
    "blemish": "0.1.0",
    "method": "patchcore",
    "config": {"layers": [4, 7], "rotations": None, "deep": {"inner_key": 0.25, "aligned": True}},
    "backbone": {"name": "focus_vits14", "sha256": "ab" * 32},
    "threshold": {
        "value": 2.0,
        "rate": 0.05,
        "n": 60,
        "method": "split",
        "guarantee": "At most 5 % of good parts raise an alarm.",
        "reason": "",
    },
    "data": {"count": 60, "fingerprint": "cd" * 32},
    "seed": 17,
}
TRUTHS = {"good/a.png": (1.0, 0), "good/b.png": (2.5, 0)}
TRUTHS |= {"dent/c.png": (3.0, 1), "dent/d.png": (1.5, 1)}
RANKED = ["dent/c.png", "good/b.png", "dent/d.png", "good/a.png"]


class Page(HTMLParser):
    """What a browser would see: tags with attributes, and text by the tag around it."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self.hidden = ""
        self.source = path.read_text(encoding="utf-8")
        self.feed(self.source)
        self.text = " ".join(" ".join(self.words).split())

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attributes)))
        self.hidden = tag if tag in ("script", "style") else self.hidden

    def handle_endtag(self, tag: str) -> None:
        self.hidden = "" if tag == self.hidden else self.hidden

    def handle_data(self, data: str) -> None:
        if not self.hidden:
            self.words.append(data)

    def attributes(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.tags if name == tag]

    def section(self, name: str) -> str:
        return self.source.split(f'<section id="{name}">')[1].split("</section>")[0]


def entries(*, judged: bool = True, known: bool = True, pictured: bool = True) -> list[Entry]:
    return [
        Entry(
            source=f"/parts/{source}",
            score=score,
            verdict=int(score > 2.0) if judged else None,
            truth=truth if known else None,
            defect=source.split("/")[0] if known else "",
            picture=PICTURE if pictured else None,
            overlay=OVERLAY if pictured else None,
        )
        for source, (score, truth) in TRUTHS.items()
    ]


def evaluation(**changes: Any) -> Evaluation:
    values: dict[str, Any] = {
        "counts": {"normal": 2, "anomalous": 2},
        "image_auroc": 0.75,
        "image_ap": 0.8333,
        "best_f1": 0.8,
        "best_f1_threshold": 1.25,
        "pixel_auroc": 0.9012,
        "pixel_auroc_error": 0.0,
        "aupro_error": 0.0,
        "aupro": None,
        "by_defect": {"dent": {"image_auroc": 0.6789, "image_ap": None, "count": 2}},
        "by_category": {},
        "threshold": 2.0,
        "confusion": {
            **{"true_positive": 101, "false_positive": 102},
            **{"true_negative": 103, "false_negative": 104},
        },
        "rows": tuple(
            {"path": p, "score": s, "truth": t, "label": None} for p, (s, t) in TRUTHS.items()
        ),
        "left_out": ("x.png", "y.png", "z.png"),
        "failures": (Failure(source="/parts/broken.png", reason="truncated"),),
    }
    return Evaluation(**{**values, **changes})


def write(path: Path, **changes: Any) -> Page:
    arguments = {
        "title": "Parts",
        "manifest": MANIFEST,
        "entries": entries(),
        "failures": [],
        "scale": (1.0, 4.0),
    }
    return Page(write_report(path / "report.html", **{**arguments, **changes}))


def test_the_file_needs_nothing_else_and_may_load_nothing(
    tmp_path: Path,
) -> None:
    page = write(tmp_path, evaluation=evaluation())
    references = [
        value for _, found in page.tags for key, value in found.items() if key in ("src", "href")
    ]
    assert references
    targets = {attributes.get("id") for _, attributes in page.tags}
    assert {(link["href"] or "")[1:] for link in page.attributes("a")} <= targets
    assert all(image.get("alt") for image in page.attributes("img"))
    assert all(value.startswith(("data:image/", "#")) for value in references if value is not None)
    assert not re.search(r"url\(|@import|https?://", page.source)
    policy = page.attributes("meta")[1]["content"] or ""
    assert "default-src 'none'" in policy
    script = page.source.split("<script>")[1].split("</script>")[0]
    assert (
        f"'sha256-{base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()}'" in policy
    )
    assert len(page.attributes("script")) == 1
    assert list(tmp_path.iterdir()) == [tmp_path / "report.html"]


def test_names_and_texts_are_escaped(tmp_path: Path) -> None:
    evil = "<script>alert(1)</script>\"'&.png"
    texts: dict[str, Any] = {"source": evil, "defect": evil, "category": evil, "notes": (evil,)}
    entry = Entry(**texts, score=1.0, verdict=0, truth=0, picture=PICTURE, overlay=PICTURE)
    page = write(
        tmp_path,
        title=evil,
        entries=[entry],
        failures=[Failure(source=evil, reason=evil)],
        manifest={
            evil: evil,
            "nested": {evil: [evil]},
            "threshold": {"value": None, "reason": evil, evil: evil},
        },
        evaluation=evaluation(by_defect={evil: {}}, by_category={evil: {}}),
    )
    assert len(page.attributes("script")) == 1
    assert "<script>alert" not in page.source
    assert page.text.count(evil) >= 12
    assert all(not key.startswith("on") for _, attributes in page.tags for key in attributes)
    assert page.attributes("img")[-1]["alt"] == f"{evil} with its heatmap"


def test_a_name_that_is_not_utf8_is_written_out(tmp_path: Path) -> None:
    name = os.fsdecode(b"caf\xe9.png")
    entry = Entry(source=name, score=1.0, verdict=None, picture=PICTURE)
    page = write(tmp_path, entries=[entry], failures=[Failure(source=name, reason="\ud800")])
    assert r"caf\udce9.png" in page.section("pictures")
    assert r"\ud800" in page.section("failures")


def test_the_summary_counts_verdicts_failures_and_left_out(tmp_path: Path) -> None:
    page = write(
        tmp_path,
        evaluation=evaluation(),
        failures=[
            Failure(source="/parts/text.png", reason="not a picture"),
            *evaluation().failures,  # named twice, it is listed once
        ],
    )
    assert page.section("failures").count("broken.png") == 1
    assert "2 of 4 pictures raised an alarm. 2 could not be scored." in page.text
    assert "3 known from fitting or calibration were left out of every metric." in page.text
    assert "0.7500 Image AUROC" in page.text
    assert "0.9012 Pixel AUROC" in page.text
    assert "AUPRO share" not in page.text
    for reason in ("not a picture", "truncated"):
        assert reason in page.section("failures")


def test_the_threshold_is_shown_with_its_guarantee_or_its_reason(tmp_path: Path) -> None:
    section = write(tmp_path).section("threshold")
    for shown in ("2", "5 %", "60", "split"):
        assert f"<dd>{shown}</dd>" in section
    assert "At most 5 % of good parts" in section
    assert "No threshold" not in section
    without = {**MANIFEST["threshold"], "value": None, "n": 3, "reason": "19 are needed."}
    page = write(
        tmp_path, manifest={**MANIFEST, "threshold": without}, entries=entries(judged=False)
    )
    assert "No threshold, so no verdicts. 19 are needed." in page.text
    assert "4 pictures were scored, without verdicts." in page.text
    assert "Verdict" not in page.section("pictures")


@pytest.mark.parametrize("manifest", [{}, {"threshold": None}])
def test_a_bare_manifest_is_enough(tmp_path: Path, manifest: dict[str, Any]) -> None:
    assert "No threshold, so no verdicts." in write(tmp_path, manifest=manifest).text
    page = write(
        tmp_path, manifest=manifest, entries=[], failures=[Failure(source="a.png", reason="empty")]
    )
    assert "No picture was scored. 1 could not be scored." in page.text


def test_the_evaluation_shows_curves_confusion_and_tables(tmp_path: Path) -> None:
    page = write(tmp_path, evaluation=evaluation())
    section = page.section("evaluation")
    assert section.count("data:image/svg+xml") == 2
    # found, missed; false alarms, passed
    assert re.findall(r">(10\d)<", section) == ["101", "104", "102", "103"]
    assert re.findall(r">(0\.\d{4}|–)<", section) == ["0.6789", "–", "–", "–"]
    assert "Each category" not in section
    assert (
        "Each category" in write(tmp_path, evaluation=evaluation(by_category={"bottle": {}})).text
    )


def test_an_evaluation_with_one_class_says_why_there_are_no_curves(tmp_path: Path) -> None:
    names = "image_auroc image_ap best_f1 best_f1_threshold confusion threshold"
    one = evaluation(rows=evaluation().rows[:2], **dict.fromkeys(names.split()))
    section = write(tmp_path, evaluation=one).section("evaluation")
    assert "only one kind is here" in section
    assert "svg" not in section


def test_mistakes_come_first_where_the_truth_is_known(tmp_path: Path) -> None:
    missed, alarms = write(tmp_path).section("worst").split("False alarms")
    assert re.findall(r'title="/parts/(.*?)"', missed) == ["dent/d.png"]
    assert re.findall(r'title="/parts/(.*?)"', alarms) == ["good/b.png"]
    assert "1 of 2" in missed
    low, high = (
        write(tmp_path, entries=entries(judged=False))
        .section("worst")
        .split("Good with the highest")
    )
    assert re.findall(r'title="/parts/(.*?)"', low) == ["dent/d.png", "dent/c.png"]
    assert re.findall(r'title="/parts/(.*?)"', high) == ["good/b.png", "good/a.png"]


def test_highest_scores_come_first_where_it_is_not_and_the_number_of_cards_is_bounded(
    tmp_path: Path,
) -> None:
    section = write(tmp_path, entries=entries(known=False)).section("worst")
    assert re.findall(r'title="/parts/(.*?)"', section) == RANKED
    assert section.count("data:image/jpeg") == 8
    section = write(tmp_path, entries=entries(known=False, pictured=False) * 5).section("worst")
    assert section.count("<article") == 8
    assert "The first 8 are shown." in section
    assert "Not embedded" in section


def test_the_colour_bar_carries_the_scale_and_the_threshold(tmp_path: Path) -> None:
    page = write(tmp_path, scale=(1.0, 5.0))
    assert "left:25.00%" in page.section("worst")
    assert "left:" not in write(tmp_path, scale=(2.5, 5.0)).section("worst")


def test_the_legend_explains_the_rectangle_where_there_is_one(tmp_path: Path) -> None:
    plain = entries()
    assert "rectangle" not in write(tmp_path).text
    boxed = [*plain[:-1], dataclasses.replace(plain[-1], box=(0.1, 0.2, 0.3, 0.4))]
    page = write(tmp_path, entries=boxed)
    assert "The rectangle is the crop that the method looked at again" in " ".join(
        page.section("worst").split()
    )


def test_regions_are_told_with_their_number_and_the_largest(tmp_path: Path) -> None:
    plain = entries(known=False)
    told = [dataclasses.replace(one, regions=(at, 0.0125 * at)) for at, one in enumerate(plain[:3])]
    page = write(tmp_path, entries=[*told, plain[3]])
    cards, table = (" ".join(page.section(name).split()) for name in ("worst", "pictures"))
    assert "<span>no region</span>" in cards
    assert "<span>1 region, 1.25 % of the picture</span>" in cards
    assert "<span>2 regions, the largest 2.5 % of the picture</span>" in cards
    assert cards.count("region") == 4  # nothing of the fourth, and the legend
    assert ">Regions</th>" in table
    assert '<td class="s">2</td><td class="s">2.50</td>' in table
    assert '<td class="s"></td><td class="s"></td>' in table
    assert "The outlines are the regions" in page.text
    assert "egion" not in write(tmp_path, entries=plain).text
    assert "The outlines" not in write(tmp_path, entries=told[:1]).text


def test_the_table_ranks_all_pictures_by_score(tmp_path: Path) -> None:
    section = write(tmp_path).section("pictures")
    assert re.findall(r'class="f">([^<]*)<', section) == RANKED
    assert "In /parts/" in section
    # alarm or quiet, wrong or not
    assert re.findall(r'<tr class="(.*?)"', section) == ["a", "a w", "q w", "q"]
    assert section.count("data:image/jpeg") == 8
    assert section.count('loading="lazy"') == 8
    assert "jpeg" not in write(tmp_path, entries=entries(pictured=False)).section("pictures")


def test_ten_thousand_rows_stay_light(tmp_path: Path) -> None:
    many = [
        Entry(source=f"/parts/{n:05}.png", score=float(n % 977), verdict=0) for n in range(10_000)
    ]
    page = write(tmp_path, entries=many)
    assert page.section("pictures").count("<tr") == 10_001
    assert len(page.source) < 2_000_000


def test_the_manifest_is_shown_whole(tmp_path: Path) -> None:
    text = write(tmp_path).text
    said = ("layers 4, 7", "rotations –", "inner key 0.25", "aligned yes", "seed 17")
    for shown in (*said, "ab" * 32, "cd" * 32):
        assert shown in text


@pytest.mark.parametrize("score", [float("nan"), float("inf")])
def test_a_score_that_is_not_finite_is_an_error(tmp_path: Path, score: float) -> None:
    with pytest.raises(NonFiniteError, match=r"a\.png"):
        write(tmp_path, entries=[Entry(source="a.png", score=score, verdict=0)])
    assert not list(tmp_path.iterdir())


def test_several_categories(tmp_path: Path) -> None:
    own = {**MANIFEST["threshold"], "value": 1.75, "n": 21}
    none = {**own, "value": None, "n": 3, "reason": "too few <pictures>"}
    values = {"image_auroc": 0.5, "image_ap": 0.5, "pixel_auroc": None, "aupro": None, "count": 2}
    mean = {"image_auroc": 0.4321, "image_ap": 0.5, "pixel_auroc": None, "aupro": None}
    page = write(
        tmp_path,
        manifest={
            **MANIFEST,
            "categories": ["bolt", "nut"],
            "thresholds": {"bolt": own, "nut": none},
        },
        evaluation=evaluation(by_category={"bolt": values, "nut": values}, category_mean=mean),
    )
    assert "bolt 1.75 21 nut none of its own 3" in page.text
    assert "too few &lt;pictures&gt;" in page.source
    assert "Mean 0.4321 0.5000 – –" in page.text
    assert "Pictures at the stored thresholds " in page.text
    assert "Thresholds of the categories" not in write(tmp_path).text


def test_groups_have_a_table_with_the_figure_over_the_defective_pictures_alone(
    tmp_path: Path,
) -> None:
    values = {"image_auroc": 0.5, "image_ap": 0.25, "pixel_auroc": 0.7654, "aupro": None}
    groups = {
        sex: {**values, "count": 2, "pixel_auroc_anomalous": value}
        for sex, value in (("female", 0.7271), ("male", None))
    }
    page = write(tmp_path, evaluation=evaluation(by_group=groups, pixel_auroc_anomalous=0.7239))
    assert "0.7239 Pixel AUROC, defective pictures alone" in page.text
    assert (
        "AUPRO Pixel AUROC, defective alone female 2 0.5000 0.2500 0.7654 – 0.7271 male 2"
        in page.text
    )
    plain = write(tmp_path, evaluation=evaluation())
    assert "Each group" not in plain.text
    assert "defective pictures alone" not in plain.text


def test_a_warning_stands_above_everything(tmp_path: Path) -> None:
    text = " ".join(write(tmp_path, warning="nobody said <what> it shows").text.split())
    assert "Take care. Nobody said <what> it shows." in text
    assert text.index("Take care.") < text.index("pictures scored")
    assert "Take care." not in write(tmp_path).text

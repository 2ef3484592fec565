"""What a store writes for others is what others read: a table, COCO, a data set."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from parts import FIT, Run, part
from store_parts import png

from blemish.errors import OutputError
from blemish.images import decode
from blemish.store import Label, Scored, Store
from blemish.store.exports import COLUMNS

Make = Callable[..., Scored]


def keep(store: Store, seed: int, *, defect: bool = False) -> str:
    """Predict a part, and keep its picture. Returns: its digest."""
    content = png(part(seed, defect=defect)[..., ::-1])
    picture = decode(content).digest
    given = {"model": "part", "version": "1", "score": float(seed), "height": 64, "width": 64}
    region = {"box": [8, 8, 2, 3], "area": 6, "peak": 3.5, "runs": f"{8 * 64 + 8} 3 61 3 3517"}
    store.add_predictions([Scored(picture=picture, regions=(region,), **given)])  # type: ignore[arg-type]
    store.put_picture(picture, content)
    return picture


def mask_of(seed: int) -> bytes:
    marked = (part(seed, defect=True) != part(seed)).any(axis=2)
    return png(marked.astype(np.uint8) * 255)


def say(store: Store, picture: str, verdict: str, **more: Any) -> None:
    store.add_label(Label(picture=picture, verdict=verdict, **{"reviewer": "Ada", **more}))


@pytest.fixture
def reviewed(store: Store) -> dict[str, str]:
    """Names of the pictures that were reviewed, one of each kind."""
    seeds = {"good": 1, "scratch": 2, "unmasked": 3, "unsure": 4, "both": 5, "unseen": 6}
    found = {
        name: keep(store, seed, defect=name in ("scratch", "unmasked"))
        for name, seed in seeds.items()
    }
    say(store, found["good"], "good")
    say(store, found["scratch"], "defect", defect="Scratch, deep", mask=mask_of(2))
    say(store, found["unmasked"], "defect")
    say(store, found["unsure"], "unsure")
    say(store, found["both"], "good")
    say(store, found["both"], "defect", reviewer="Bob")
    return found


def test_a_table(store: Store, reviewed: dict[str, str], scored: Make, tmp_path: Path) -> None:
    hostile = ["=1+1", 'a,b\n"c"', "\0\udc80", "@x", "-1"]
    store.add_predictions([scored(at, source=text) for at, text in enumerate(hostile)])
    place = store.export_csv(tmp_path / "all.csv")
    with place.open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0]) == list(COLUMNS)
    assert [row["reviewed"] for row in rows[:6]] == [
        *("good", "defect", "defect", "unsure", "disagreed", ""),
    ]
    assert rows[1]["defect"] == "Scratch, deep"
    assert float(rows[1]["score"]) == 2.0
    sources = [row["source"] for row in rows[6:]]
    assert sources == ["'=1+1", 'a,b\\n"c"', "\\x00\\udc80", "'@x", "'-1"]
    few = store.export_csv(tmp_path / "few.csv", reviewed="defect").read_text()
    assert few.count("\n") == 3


def test_a_table_of_many(store: Store, scored: Make, tmp_path: Path) -> None:
    store.add_predictions([scored(number) for number in range(2500)])
    lines = store.export_csv(tmp_path / "all.csv").read_text().splitlines()
    assert len(lines) == 2501
    assert [int(line.split(",")[0]) for line in lines[1:]] == sorted(
        row.id for row in store.each_prediction()
    )


def test_labels_as_coco(store: Store, reviewed: dict[str, str], tmp_path: Path) -> None:
    say(store, reviewed["unseen"], "defect", mask=mask_of(6))
    told = json.loads(store.export_coco(tmp_path / "labels.json").read_text())
    assert [one["name"] for one in told["categories"]] == ["Scratch, deep", "defect"]
    assert [one["file_name"] for one in told["images"]] == [
        f"{reviewed[name]}.png" for name in ("good", "scratch", "unseen")
    ]
    kinds = [(one["image_id"], one["category_id"]) for one in told["annotations"]]
    assert kinds == [(2, 1), (3, 2)]
    marked = (part(2, defect=True) != part(2)).any(axis=2)
    [first, _] = told["annotations"]
    runs = first["segmentation"]["counts"]
    flat = np.repeat(np.arange(len(runs)) % 2 == 1, runs).reshape(64, 64).T
    assert (flat == marked).all()
    assert first["area"] == marked.sum()
    assert "score" not in first


def test_predictions_as_coco(store: Store, reviewed: dict[str, str], tmp_path: Path) -> None:
    place = store.export_coco(tmp_path / "predicted.json", predicted=True)
    told = json.loads(place.read_text())
    assert len(told["images"]) == len(told["annotations"]) == 6
    assert told["annotations"][0]["bbox"] == [8, 8, 2, 3]
    assert told["annotations"][0]["score"] == 3.5
    assert [one["name"] for one in told["categories"]] == ["defect"]


def test_nothing_as_coco(store: Store, tmp_path: Path) -> None:
    told = json.loads(store.export_coco(tmp_path / "none.json").read_text())
    assert told["images"] == told["annotations"] == []


def test_a_folder(store: Store, reviewed: dict[str, str], tmp_path: Path) -> None:
    place = store.picture(reviewed["unmasked"])
    done = store.export_folder(tmp_path / "set")
    assert place is not None
    names = sorted(
        str(one.relative_to(tmp_path / "set")) for one in (tmp_path / "set").rglob("*.png")
    )
    assert names == sorted(
        [
            f"good/{reviewed['good']}.png",
            f"Scratch_deep/{reviewed['scratch']}.png",
            f"ground_truth/Scratch_deep/{reviewed['scratch']}_mask.png",
            f"defect/{reviewed['unmasked']}.png",
        ]
    )
    assert (done.good, done.masks) == (1, 1)
    assert done.defects == {"Scratch, deep": 1, "defect": 1}
    assert done.folders == {"Scratch, deep": "Scratch_deep", "defect": "defect"}
    assert done.left_out == {"unsure": 1, "disagreed": 1}
    with pytest.raises(OutputError, match="holds something"):
        store.export_folder(tmp_path / "set")
    place.unlink()
    again = store.export_folder(tmp_path / "again", label=None)
    assert again.left_out["deleted"] == 1
    assert sorted(one.name for one in tmp_path.iterdir()) == ["again", "set", "store"]


@pytest.mark.parametrize(
    "kind",
    [
        *("good", "OK", "../../up", "/etc/passwd", "ground_truth", "masks", "test", "images", "NG"),
        *("名前", "a" * 100, ".", "con:x", "scratch mask", "not good", "1", "-", "train", "0"),
    ],
)
def test_types_with_any_name(kind: str, store: Store, tmp_path: Path, run: Run) -> None:
    """Whatever reviewers call a defect, its pictures are read as defective, with their mask."""
    for seed in range(3):
        say(store, keep(store, seed), "good")
        say(store, keep(store, seed, defect=True), "defect", defect=kind, mask=mask_of(seed))
    done = store.export_folder(tmp_path / "set")
    assert [*done.folders] == [kind]
    assert {one.name for one in tmp_path.iterdir()} == {"set", "store"}
    status, out, err = run("data check", tmp_path / "set", "--json")
    assert status == 0, err
    told = json.loads(out)
    assert told["ok"]
    assert told["counts"]["label"] == {"anomalous": 3, "normal": 3}
    assert [(place["paired"], place["unpaired"]) for place in told["mask_places"]] == [(3, [])]


def test_what_is_exported_can_be_learned_and_judged(
    store: Store, tmp_path: Path, run: Run, answered: Callable[..., Any]
) -> None:
    for seed in range(24):
        say(store, keep(store, seed), "good")
    for seed in range(100, 104):
        say(store, keep(store, seed, defect=True), "defect", defect="square", mask=mask_of(seed))
    folder = tmp_path / "set"
    store.export_folder(folder)
    status, out, err = run("data check", folder)
    assert status == 0, out + err
    assert "Nothing is wrong." in out
    artifact = tmp_path / "part.blemish"
    status, out, err = run("fit knn", folder, "-o", artifact, FIT)
    assert status == 0, out + err
    judged = answered("evaluate", artifact, folder)
    assert judged["by_defect"]["square"]["count"] == 4
    assert judged["pixel_auroc"] > 0.9
    with_defects = tmp_path / "taught.blemish"
    status, out, err = run("fit lda", folder, "-o", with_defects, FIT)
    assert status == 0, out + err

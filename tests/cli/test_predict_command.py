"""predict: what is judged, written, gone on with and told; what is kept of regions, on request."""

from __future__ import annotations

import csv
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import tifffile
from parts import mask_of, rows_of
from PIL import Image

import blemish
from blemish import artifact
from blemish.artifact import read
from blemish.cli.status import BROKEN_PICTURES
from blemish.images import decode
from blemish.report import predictions as outputs

Run = Callable[..., tuple[int, str, str]]
Refused = Callable[..., str]
Answered = Callable[..., Any]
CPU = "--precision fp32 --device cpu"


@pytest.fixture
def new(tmp_path: Path, picture: Callable[..., np.ndarray], write: Callable[..., Path]) -> Path:
    """Eight new pictures, every second with a defect, in two folders that use the same names."""
    for seed in range(8):
        place = tmp_path / "new" / ("a" if seed < 4 else "b") / f"{seed % 4}.png"
        write(place, picture(500 + seed, defect=seed % 2 == 1, height=40 + seed))
    return tmp_path / "new"


@pytest.fixture
def four(tmp_path: Path, picture: Callable[..., np.ndarray], write: Callable[..., Path]) -> Path:
    """Four new pictures, every second with a defect."""
    for seed in range(4):
        write(
            tmp_path / "four" / f"{seed}.png", picture(500 + seed, defect=seed % 2 == 1, height=50)
        )
    return tmp_path / "four"


@pytest.fixture
def old(part: Path, tmp_path: Path) -> Path:
    """An artifact from before there were thresholds of regions."""
    tensors, manifest = read(part)
    return artifact.write(tmp_path / "old.blemish", tensors, {**manifest, "regions": None})


def files_in(folder: Path) -> dict[str, int]:
    """How many files there are in each folder."""
    return {each.name: len(list(each.iterdir())) for each in folder.iterdir() if each.is_dir()}


def test_predict_prints_the_highest_score_first(
    run: Run, answered: Answered, part: Path, new: Path
) -> None:
    status, out, _ = run("predict", part, new, "--precision fp32")
    head, *lines = [line.split() for line in out.splitlines()]
    assert (status, head) == (0, ["score", "verdict", "path"])
    scores = [float(line[0]) for line in lines[:8]]
    assert scores == sorted(scores, reverse=True)
    assert {line[2] for line in lines[:4]} == {
        str(new / f"{at}.png") for at in ("a/1", "a/3", "b/1", "b/3")
    }
    assert [line[1] for line in lines[:8]] == ["alarm"] * 4 + ["normal"] * 4
    assert "8 scored: 4 alarms, 4 normal" in out
    made = answered("predict", part, new / "*" / "[12].png", "--precision fp32")
    detector = blemish.load(part, precision="fp32")
    asked = [str(new / at) for at in ("a/1.png", "a/2.png", "b/1.png", "b/2.png")]
    assert [row["path"] for row in made["predictions"]] == asked
    for row in made["predictions"]:
        assert row["score"] == pytest.approx(detector.predict(row["path"]).score, rel=1e-5)
    assert (made["scored"], made["alarms"], made["failed"], made["interrupted"]) == (4, 2, 0, False)


def test_predict_of_many_pictures_prints_the_alarms(
    run: Run, answered: Answered, part: Path, new: Path
) -> None:
    first, second, *_ = sorted(
        (row["score"] for row in answered("predict", part, new)["predictions"]), reverse=True
    )
    for copy in range(7):
        shutil.copytree(new / "a", new / f"copy{copy}")
        shutil.copytree(new / "b", new / f"other{copy}")
    for threshold, alarms, said in (
        ((), 20, "the highest 20 alarms of 64 pictures"),
        ((f"--threshold {(first + second) / 2}",), 8, "the highest 8 alarms of 64 pictures"),
        (("--threshold 1e9",), 0, "the highest 20 of 64 pictures"),
    ):
        out = run("predict", part, new, "--batch-size 16", *threshold)[1]
        assert out.count("alarm ") == alarms
        assert said in out


def test_predict_output(
    run: Run, part: Path, new: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (new / "broken.png").write_bytes(b"not a picture")
    out, report = tmp_path / "out", tmp_path / "report.html"
    assert run("predict", part, new, "--output", out, "--report", report)[0] == BROKEN_PICTURES
    rows = rows_of(out)
    assert [row["path"] for row in rows if "error" in row] == [str(new / "broken.png")]
    drawn = [row for row in rows if "overlay" in row]
    assert len(drawn) == len(rows) - 1 == len({row["overlay"] for row in drawn}) == 8
    for row in drawn:  # though the same names occur in two folders
        overlay = decode(out / row["overlay"])
        assert overlay.size == (row["height"], row["width"])
        assert (overlay.pixels != decode(row["path"]).pixels).any() or row["label"] == 0
    with (out / "predictions.csv").open(newline="") as file:
        table = list(csv.DictReader(file))
    assert [line["path"] for line in table] == [row["path"] for row in rows]
    assert [float(line["score"] or 0) for line in table] == pytest.approx(
        [row.get("score", 0) for row in rows]
    )
    assert "broken.png" in report.read_text()

    def embedded(limit: int) -> int:
        monkeypatch.setattr(outputs, "EMBEDDED", limit)
        run("predict", part, new, "--report", report)
        pieces = report.read_text().split("data:image/jpeg;base64,")[1:]
        return len({piece.partition('"')[0] for piece in pieces})

    assert (embedded(2), embedded(8)) == (4, 16)


def test_resume_goes_on_where_a_killed_run_stopped(
    run: Run, refused: Refused, part: Path, new: Path, tmp_path: Path
) -> None:
    whole, out, report = tmp_path / "whole", tmp_path / "out", tmp_path / "report.html"
    (new / "a" / "2.png").write_bytes(b"")
    nothing = "blemish: notice: nothing to resume: no rows in {}; it begins anew"
    assert nothing.format(whole) in run("predict", part, new, "--output", whole, "--resume")[2]
    assert "to resume" not in run("predict", part, new, "--output", out)[2]
    assert "holds predictions already; go on from them with --resume" in refused(
        "predict", part, new, "--output", out
    )
    lines = (out / "predictions.jsonl").read_bytes().splitlines(keepends=True)
    (out / "predictions.jsonl").write_bytes(b"".join(lines[:4]) + lines[4][:30])  # half written
    (out / "predictions.csv").unlink()
    resume = ("predict", part, new, "--output", out, "--resume --report", report)
    for told in (True, False):  # then nothing is left to do
        status, _, err = run(*resume)
        assert (status, "scoring: 1 of 4" in err) == (BROKEN_PICTURES, told)
        assert "to resume" not in err
        assert len(set(report.read_text().split("data:image/jpeg;base64,")[1:])) >= 14
        assert rows_of(out) == rows_of(whole)
        assert (out / "predictions.csv").read_text() == (whole / "predictions.csv").read_text()
        drawn = [{path.name for path in (each / "overlays").iterdir()} for each in (out, whole)]
        assert drawn[0] == drawn[1]


def test_resume_refuses_rows_that_were_made_otherwise(
    run: Run,
    refused: Refused,
    part: Path,
    new: Path,
    tmp_path: Path,
    fitted: Callable[..., blemish.Detector],
) -> None:
    out, rows = tmp_path / "out", tmp_path / "out" / "predictions.jsonl"
    run("predict", part, new, "--output", out, "--precision fp32")
    other = fitted("padim").save(tmp_path / "other.blemish")
    resume = (new, "--output", out, "--resume --precision")
    assert "made with another artifact;" in refused("predict", other, *resume, "fp32")
    assert "made with another precision;" in refused("predict", part, *resume, "bf16")
    lines = rows.read_bytes().splitlines(keepends=True)
    rows.write_bytes(b"".join([lines[0], b"{}\n", *lines[2:]]))
    assert "line 2 is damaged" in refused("predict", part, *resume, "fp32")
    (out / "run.json").write_text("[]")
    said = refused("predict", part, *resume, "fp32")
    assert "does not say what the rows were made with" in said


def test_file_names_cannot_steer_the_terminal_or_escape_the_folder(
    run: Run, part: Path, new: Path, tmp_path: Path
) -> None:
    odd = new / "\x1b[2J ..,[red]\udcff.png"
    (new / "a" / "0.png").rename(odd)
    out = run("predict", part, odd, "--output", tmp_path / "out")[1]
    assert "\x1b" not in out
    assert "\\x1b[2J ..,[red]\\udcff.png" in out
    (overlay,) = (tmp_path / "out" / "overlays").iterdir()
    assert overlay.name.isascii()
    assert [row["path"] for row in rows_of(tmp_path / "out")] == [str(odd)]


@pytest.mark.parametrize(
    ("given", "longer"), [("", 1600), ("--overlay-size 100", 100), ("--overlay-size full", 2000)]
)
def test_overlays_have_a_bounded_size(
    run: Run, part: Path, tmp_path: Path, picture: Any, write: Any, given: str, longer: int
) -> None:
    write(tmp_path / "large" / "a.png", picture(1, height=500, width=2000))
    write(tmp_path / "large" / "b.png", picture(2, height=60, width=70))
    how = ["--output", tmp_path / "out", given]
    assert run("predict", part, tmp_path / "large", *how)[0] == 0
    sizes = {decode(file).size for file in (tmp_path / "out" / "overlays").iterdir()}
    assert sizes == {(longer // 4, longer), (60, 70)}


@pytest.mark.parametrize(
    ("asked", "kinds"),
    [
        ("", ["overlays"]),
        ("--save masks", ["masks"]),
        ("--save maps,", ["maps"]),
        ("--save tiff", ["tiff"]),
        ("--save overlays,maps,masks", ["masks", "maps", "overlays"]),
    ],
)
def test_only_what_is_asked_for_is_kept(
    run: Run,
    part: Path,
    four: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    asked: str,
    kinds: list[str],
) -> None:
    out, drawn = tmp_path / "out", []
    view_of = outputs.View.of

    def counted(*arguments: Any) -> outputs.View:
        drawn.append(arguments)
        return view_of(*arguments)

    monkeypatch.setattr(outputs.View, "of", counted)
    assert run("predict", part, four, "--output", out, asked, CPU)[0] == 0
    folders = ["maps" if kind == "tiff" else kind for kind in kinds]
    assert files_in(out) == dict.fromkeys(folders, 4)
    assert len(drawn) == (4 if "overlays" in kinds else 0)
    named = {"masks": "mask", "maps": "map", "tiff": "tiff", "overlays": "overlay"}
    for row in rows_of(out):
        assert {key for key in named.values() if key in row} == {named[kind] for kind in kinds}
        for kind, folder in zip(kinds, folders, strict=True):
            assert (out / row[named[kind]]).parent == out / folder
            assert (out / row[named[kind]]).is_file()


def test_masks_and_maps_are_those_of_the_predictions(
    run: Run, part: Path, four: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    lower = read(part)[1]["regions"]["threshold"]["value"] * 0.6  # more than one in a picture
    asked = f"--save masks,maps,tiff --batch-size 1 --region-threshold {lower!r}"
    run("predict", part, four, "--output", out, asked, CPU)
    detector = blemish.load(part, precision="fp32", device="cpu").with_region_threshold(lower)
    assert max(len(row["regions"]) for row in rows_of(out)) > 1
    for row in rows_of(out):
        prediction = detector.predict(row["path"])
        with Image.open(out / row["mask"]) as mask:
            assert (mask.format, mask.mode) == ("PNG", "L")
            pixels = np.asarray(mask)
        assert pixels.shape == (row["height"], row["width"])
        assert np.array_equal(pixels, 255 * mask_of(row))
        assert np.array_equal(pixels == 255, prediction.mask)
        kept = np.load(out / row["map"], allow_pickle=False)
        assert kept.dtype == np.float32
        assert np.array_equal(kept, prediction.anomaly_map)
        with Image.open(out / row["tiff"]) as tiff:
            assert (tiff.format, tiff.mode) == ("TIFF", "F")
            assert np.array_equal(np.asarray(tiff), kept)
        by_opencv = cv2.imread(str(out / row["tiff"]), cv2.IMREAD_UNCHANGED)
        assert by_opencv.dtype == np.float32
        assert np.array_equal(by_opencv, kept)
        assert np.array_equal(tifffile.imread(out / row["tiff"]), kept)
    with (out / "predictions.csv").open(newline="") as file:
        table = list(csv.DictReader(file))
    for line, row in zip(table, rows_of(out), strict=True):
        assert int(line["regions"]) == len(row["regions"])
        assert float(line["region_area"]) == pytest.approx(mask_of(row).mean())
        assert float(line["p_value"]) == row["p_value"]
        for name in ("mask", "map", "tiff"):
            assert line[name] == row[name]


def test_what_cannot_be_kept_is_refused(
    refused: Refused, run: Run, part: Path, old: Path, four: Path, tmp_path: Path
) -> None:
    predict = ("predict", part, four)
    out = ("--output", tmp_path / "out")
    said = refused(*predict, *out, "--save masks,overlay")
    assert "unknown part of --save 'overlay'; did you mean 'overlays'?" in said
    assert "Known: maps, masks, overlays, tiff" in said
    assert "known are masks, maps, tiff, overlays" in refused(*predict, *out, "--save ,")
    assert "name it with --output DIR" in refused(*predict, "--save masks")
    for size in ("--save masks --overlay-size 800", "--save overlays --overlay-size none"):
        assert "one asks for overlays" in refused(*predict, *out, size)
    for asked in (("--save masks", *out), ("--coco", tmp_path / "out" / "r.json")):
        said = refused("predict", old, four, *asked)
        assert f"{asked[0]}: {old} has no threshold of regions" in said
        assert "`blemish calibrate`" in said
        assert "--region-threshold SCORE" in said
        assert run("predict", old, four, *asked, "--region-threshold 30")[0] == 0
    assert {row["region_threshold"] for row in rows_of(tmp_path / "out")} == {30.0}


def test_an_artifact_without_regions_gives_none(
    run: Run, old: Path, four: Path, tmp_path: Path
) -> None:
    out, report = tmp_path / "out", tmp_path / "report.html"
    status, said, _ = run("predict", old, four, "--output", out, "--report", report)
    assert status == 0
    assert "region" not in said
    assert {row["regions"] for row in rows_of(out)} == {None}
    with (out / "predictions.csv").open(newline="") as file:
        assert {(line["regions"], line["region_area"]) for line in csv.DictReader(file)} == {
            ("", "")
        }
    assert "<span>no region" not in report.read_text()


def test_thresholds_of_regions_by_hand(
    run: Run,
    answered: Answered,
    refused: Refused,
    part: Path,
    old: Path,
    four: Path,
    tmp_path: Path,
) -> None:
    stored = read(part)[1]["regions"]["threshold"]["value"]
    detector = blemish.load(part, precision="fp32", device="cpu")
    plain = answered("predict", part, four, CPU)
    assert plain["region_threshold"]["value"] == stored
    assert plain["with_regions"] == 2
    assert "2 regions of defects in 2 of 4 pictures, above" in run("predict", part, four, CPU)[1]
    lower = stored * 0.6
    made = answered("predict", part, four, CPU, f"--region-threshold {lower!r}")
    assert (made["region_threshold"]["method"], made["region_threshold"]["value"]) == (
        *("by hand", lower),
    )
    by_hand = detector.with_region_threshold(lower)
    for row in made["predictions"]:
        assert len(row["regions"]) == len(by_hand.predict(row["path"]).regions or ())
        assert row["threshold"] == plain["threshold"]["value"]  # verdicts are another matter
    assert sum(len(row["regions"]) for row in made["predictions"]) > 2
    said = run("predict", part, four, CPU, f"--region-threshold {lower!r}")[1]
    assert f"above {lower:.6g} set by hand" in said
    large = answered(
        "predict", part, four, CPU, f"--region-threshold {lower!r} --smallest-region 0.9"
    )
    assert large["with_regions"] == 0
    alone = answered("predict", part, four, CPU, "--smallest-region 0.9")
    assert alone["with_regions"] == 0
    assert alone["region_threshold"]["value"] == stored
    assert "smallest" in refused("predict", part, four, "--smallest-region 1.5")
    assert "nan" in refused("predict", part, four, "--region-threshold nan")
    said = refused("predict", old, four, "--smallest-region 0.01")
    assert "no threshold of regions; set one" in said
    tensors, manifest = read(part)
    manifest["regions"]["smallest"] = 0.01
    calibrated = artifact.write(tmp_path / "calibrated.blemish", tensors, manifest)
    assert run("predict", calibrated, four, "--smallest-region 0.01")[0] == 0
    said = refused("predict", calibrated, four, "--smallest-region 0.001")
    assert "counts those from 0.01 on; set one for smaller ones" in said


def test_resume_refuses_what_was_kept_or_cut_otherwise(
    run: Run, refused: Refused, part: Path, four: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    predict = ("predict", part, four, "--output", out)
    run(*predict, "--save maps,masks --region-threshold 20 --smallest-region 0.001")
    again = ("--save masks,maps", "--region-threshold 20", "--smallest-region 0.001")
    assert run(*predict, "--resume", *again)[0] == 0  # in whichever order
    for at, (other, what) in enumerate(
        [
            ("--save masks", "another --save;"),
            ("--region-threshold 21", "another --region-threshold;"),
            ("--smallest-region 0.002", "another --smallest-region;"),
        ]
    ):
        said = refused(*predict, "--resume", *again[:at], other, *again[at + 1 :])
        assert f"made with {what}" in said
    said = refused(*predict, "--resume", *again[1:])
    assert "made with another --save;" in said


def test_a_run_of_an_earlier_version_is_gone_on_from_as_it_was(
    run: Run, refused: Refused, old: Path, four: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    predict = ("predict", old, four, "--output", out, "--resume")
    run(*predict)
    whole = rows_of(out)
    later = ("p_value", "region_threshold", "regions")
    rows = [{key: value for key, value in row.items() if key not in later} for row in whole]
    (out / "predictions.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows[:2]))
    told = json.loads((out / "run.json").read_text())
    later = ("save", "region_threshold", "smallest_region")
    earlier = {key: value for key, value in told.items() if key not in later}
    (out / "run.json").write_text(json.dumps(earlier))
    assert "another --save;" in refused(*predict, "--save maps")
    assert run(*predict)[0] == 0
    assert rows_of(out) == [*rows[:2], *whole[2:]]
    assert files_in(out) == {"overlays": 4}


def test_coco_of_a_run_that_was_interrupted_is_that_of_a_whole_one(
    run: Run, answered: Answered, refused: Refused, part: Path, four: Path, tmp_path: Path
) -> None:
    (four / "broken.png").touch()
    out, whole, later = tmp_path / "out", tmp_path / "whole.json", tmp_path / "later.json"
    predict = ("predict", part, four, CPU, "--output", out)
    _, said, _ = run(*predict, "--coco", whole)
    assert f"Written: {whole}" in said
    rows = out / "predictions.jsonl"
    lines = rows.read_bytes().splitlines(keepends=True)
    rows.write_bytes(b"".join(lines[:3]))
    # The first run need not have been asked for it.
    assert run(*predict, "--resume", "--coco", later)[0] == 1
    assert later.read_bytes() == whole.read_bytes()
    made = json.loads(whole.read_text())
    assert [image["file_name"] for image in made["images"]] == [
        str(four / f"{seed}.png") for seed in range(4)
    ]
    assert {one["image_id"] for one in made["annotations"]} == {2, 4}
    # Without a folder, too.
    alone = tmp_path / "alone.json"
    assert run("predict", part, four, CPU, "--coco", alone)[0] == 1
    assert alone.read_bytes() == whole.read_bytes()
    rows.write_bytes(lines[0] + lines[1].replace(b'"runs": "', b'"runs": "1 ') + lines[2])
    said = refused(*predict, "--resume")
    assert "line 2 is damaged (the runs of a region make 3201 of 3200 pixels)" in said
    rows.write_bytes(lines[0] + lines[1].replace(b'"runs": "', b'"runs": "-1 ') + lines[2])
    assert "whole numbers between blanks" in refused(*predict, "--resume")
    for told, limit in (("label", "threshold"), ("regions", "region_threshold")):
        row = json.loads(lines[1])
        assert row[told] is not None
        rows.write_bytes(lines[0] + json.dumps({**row, limit: None}).encode() + b"\n" + lines[2])
        said = refused(*predict, "--resume")
        assert f"line 2 is damaged ({told} without a {limit})" in said
    assert "folder" in refused("predict", part, four, "--coco", tmp_path)


def test_regions_are_outlined_in_overlays_and_told_in_the_report(
    run: Run, part: Path, four: Path, tmp_path: Path
) -> None:
    out, report = tmp_path / "out", tmp_path / "report.html"
    run("predict", part, four, "--output", out, "--report", report, CPU)
    for row in rows_of(out):
        mask = mask_of(row)
        with Image.open(out / row["overlay"]) as image:
            pixels = np.asarray(image)
        near = np.pad(mask, 1)
        around = sum(
            near[y : y + mask.shape[0], x : x + mask.shape[1]] for y in range(3) for x in range(3)
        )
        line = (around > 0) & ~mask
        assert (pixels[line] == 255).all()
        assert line.any() == mask.any() == bool(row["regions"])
    page = report.read_text()
    assert page.count("<span>1 region, ") == 2
    assert page.count("<span>no region</span>") == 2
    assert "The outlines are the regions" in page

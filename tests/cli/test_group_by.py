"""--group-by: parts of several views on the command line."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from parts import rows_of, settings_of

import blemish
from blemish.artifact import read
from blemish.cli.status import BROKEN_PICTURES
from blemish.detector.predict import Detector

Run = Callable[..., tuple[int, str, str]]
Refused = Callable[..., str]
Answered = Callable[..., Any]
BY = ("--group-by", r"part(\d+)_")
RATE = "--false-alarm-rate 0.2"


@pytest.fixture(name="part")
def nearest_part(tmp_path: Path, picture: Any) -> Path:
    """An artifact that compares with the nearest feature, which tells these parts apart."""
    good = [picture(seed) for seed in range(24)]
    made = blemish.fit("knn", good, **{**settings_of("knn"), "neighbours": 1})
    return made.save(tmp_path / "part.blemish")


@pytest.fixture
def shots(tmp_path: Path, picture: Any, write: Any) -> Path:
    """Six parts of two views each, of which 1 and 4 have a defect in one; else pictures that were
    learned, so that no false alarm is among them."""
    for part in range(6):
        for view in range(2):
            pixels = picture(2 * part + view, defect=part % 3 == 1 and view == 1)
            write(tmp_path / "shots" / f"part{part}_{view}.png", pixels)
    return tmp_path / "shots"


@pytest.fixture
def of_parts(run: Run, part: Path, tmp_path: Path, picture: Any, write: Any) -> Path:
    """An artifact that was calibrated on ten parts of two views each."""
    for seed in range(20):
        write(tmp_path / "good" / f"part{seed // 2}_{seed % 2}.png", picture(700 + seed))
    made = tmp_path / "of_parts.blemish"
    assert run("calibrate", part, tmp_path / "good", "-o", made, RATE, *BY)[0] == 0
    return made


def test_calibrate_by_parts(
    run: Run, answered: Answered, part: Path, of_parts: Path, tmp_path: Path
) -> None:
    good = tmp_path / "good"
    (good / "part9_1.png").write_bytes(b"no picture")
    (good / "part8_0.png").rename(good / "lid.png")
    status, said, _ = run("calibrate", part, good, "-o", tmp_path / "b", RATE, *BY)
    assert status == BROKEN_PICTURES
    assert "Parts: 9 used, of 1 to 2 views; 1 not whole, left out; 1 picture of no part" in said
    assert "Parts above: " in said
    assert "; at most 20 % of new normal parts are above it, on average (split conf" in said
    told = answered("calibrate", part, good, "-o", tmp_path / "b", RATE, *BY)["part_thresholds"]
    stored = read(tmp_path / "b")[1]["parts"]
    assert (told["threshold"], told["left_out"]) == (stored["threshold"], 1)
    assert len(stored["scores"]) == 9
    assert "scores" not in told
    out = run("inspect", of_parts)[1]
    assert "parts above" in out
    assert r"parts told by part(\d+)_" in out
    assert "parts above" not in run("inspect", part)[1]


def test_predict_by_parts(
    run: Run, answered: Answered, of_parts: Path, shots: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    status, said, _ = run("predict", of_parts, shots, "--output", out, "--save masks", *BY)
    assert status == 0
    lines = said.splitlines()
    (start,) = [at for at, line in enumerate(lines) if line.split()[-2:] == ["worst", "view"]]
    assert lines[start].split()[:4] == ["score", "verdict", "views", "part"]
    rows = [line.split() for line in lines[start + 1 : start + 7]]
    assert {row[3] for row in rows[:2]} == {"1", "4"}  # the alarms first
    assert [row[1:3] for row in rows] == [["alarm", "2"]] * 2 + [["normal", "2"]] * 4
    assert "6 parts: 2 alarms, 4 normal at the threshold of whole parts" in said
    limit = read(of_parts)[1]["parts"]["threshold"]["value"]
    made = answered("predict", of_parts, shots, *BY)
    assert made["ungrouped"] == []
    assert len(made["predictions"]) == 12
    scores = {row["path"]: row["score"] for row in made["predictions"]}
    for row in made["parts"]:
        assert row["views"] == [str(shots / f"part{row['part']}_{view}.png") for view in range(2)]
        assert row["worst"] == max(row["views"], key=lambda path: scores[path])
        assert (row["score"], row["threshold"]) == (scores[row["worst"]], limit)
        assert row["label"] == (row["part"] in "14")
    written = [json.loads(line) for line in (out / "parts.jsonl").read_text().splitlines()]
    assert [{**row, "score": 0} for row in written] == [
        {**row, "score": 0} for row in made["parts"]
    ]
    assert "parts" not in answered("predict", of_parts, shots)


def test_predict_by_parts_without_a_threshold_of_parts(
    run: Run, answered: Answered, part: Path, shots: Path
) -> None:
    said = run("predict", part, shots, *BY)[1]
    assert "no verdict on 6 parts: a rate of 5 % for a part of 2 views is 2.5 % for each" in said
    assert "needs at least 39 normal pictures to calibrate on, and there are 24" in said
    assert "6 parts: 0 alarms, 0 normal; 6 without a verdict" in said
    scores = sorted(row["score"] for row in answered("predict", part, shots)["predictions"])
    limit = (scores[9] + scores[10]) / 2  # between good pictures and defects
    made = answered("predict", part, shots, f"--threshold {limit}", *BY)
    assert [row["label"] for row in made["parts"]] == [0, 1, 0, 0, 1, 0]
    assert {row["rule"] for row in made["parts"]} == {"by hand"}
    said = run("predict", part, shots, f"--threshold {limit}", *BY)[1]
    assert "2 alarms, 4 normal at the threshold of pictures, set by hand" in said


def test_predict_by_parts_at_the_thresholds_of_pictures(
    run: Run, fitted: Callable[..., Detector], shots: Path, tmp_path: Path, picture: Any
) -> None:
    good = [picture(700 + seed) for seed in range(20)]
    detector, _, _ = blemish.recalibrate(fitted(), good, false_alarm_rate=0.1)
    artifact = detector.save(tmp_path / "b.blemish")
    said = run("predict", artifact, shots, *BY)[1]
    assert "2 alarms, 4 normal at the thresholds of pictures for the rate / views (Bonf" in said


def test_broken_views_and_pictures_of_no_part(
    run: Run, answered: Answered, of_parts: Path, shots: Path
) -> None:
    for name in ("part1_0.png", "part2_0.png"):
        (shots / name).write_bytes(b"no picture")
    assert run("predict", of_parts, shots, *BY)[0] == BROKEN_PICTURES
    made = answered("predict", of_parts, shots, *BY)
    assert [row["label"] for row in made["parts"]] == [0, 1, None, 0, 1, 0]
    assert made["parts"][2]["failed"] == [str(shots / "part2_0.png")]
    for name in ("part1_0.png", "part2_0.png"):
        (shots / name).unlink()
    (shots / "part5_0.png").rename(shots / "lid.png")
    status, said, _ = run("predict", of_parts, shots, *BY)
    assert status == BROKEN_PICTURES  # a picture at fault: its name
    assert f"notice: 1 picture is of no part, and judged alone: {shots / 'lid.png'}" in said
    assert "note on 3 parts: fewer views (1) than the good parts had (2 at least)" in said
    assert answered("predict", of_parts, shots, *BY)["ungrouped"] == [str(shots / "lid.png")]


def test_many_parts_and_another_pattern(
    run: Run, of_parts: Path, tmp_path: Path, picture: Any, write: Any
) -> None:
    for seed in range(23):
        write(tmp_path / "many" / f"x{seed}.png", picture(900 + seed, defect=seed == 20))
    said = run("predict", of_parts, tmp_path / "many", "--group-by", r"x\d+")[1]
    start = next(at for at, line in enumerate(said.splitlines()) if line.endswith("worst view"))
    assert said.splitlines()[start + 1].split()[1:4] == ["alarm", "1", "x20"]
    assert "… the first 20 of 23 parts" in said
    assert r"notice: parts were calibrated on by another --group-by part(\d+)_" in said
    assert "another --group-by" not in run("predict", of_parts, tmp_path / "good", *BY)[1]


def test_an_interrupted_run_passes_no_part_of_which_a_view_is_missing(
    run: Run, of_parts: Path, shots: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    predict = ("predict", of_parts, shots, "--output", tmp_path / "out", "--batch-size 1", *BY)
    many = Detector.predict_many

    def interrupted(self: Detector, *given: Any, **named: Any) -> Any:
        for at, result in enumerate(many(self, *given, **named)):
            if at == 9:
                raise KeyboardInterrupt
            yield result

    with monkeypatch.context() as patch:
        patch.setattr(Detector, "predict_many", interrupted)
        assert run(*predict)[0] == 130
    place = tmp_path / "out" / "parts.jsonl"
    some = [json.loads(line) for line in place.read_text().splitlines()]
    done = {row["path"] for row in rows_of(tmp_path / "out")}
    assert 2 <= len(done) < 10
    assert len(some) == 6
    for row in some:
        assert row["failed"] == [path for path in row["views"] if path not in done]
        assert (row["label"] is None) == bool(row["failed"])
    assert run(*predict, "--resume")[0] == 0
    whole = [json.loads(line) for line in place.read_text().splitlines()]
    assert [row["label"] for row in whole] == [0, 1, 0, 0, 1, 0]


@pytest.mark.parametrize(
    ("pattern", "said"),
    [("part(", "no regular expression"), ("(p)(a)", "has 2 groups"), ("nut", "finds no part")],
)
def test_patterns_that_are_refused(
    pattern: str, said: str, refused: Refused, part: Path, shots: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    assert said in refused("predict", part, shots, "--output", out, "--group-by", pattern)
    assert not out.exists()
    assert said in refused("calibrate", part, shots, "-o", tmp_path / "b", "--group-by", pattern)


def test_calibrating_by_parts_is_refused(
    refused: Refused, part: Path, shots: Path, tmp_path: Path, picture: Any, write: Any
) -> None:
    calibrate = ("calibrate", part, "-o", tmp_path / "b", *BY)
    assert "name them" in refused(*calibrate, "--threshold 3")
    assert "none of 6 parts is whole: of each a picture was learned" in refused(*calibrate, shots)
    for seed in range(12):
        write(tmp_path / "few" / f"part{seed // 2}_{seed % 2}.png", picture(700 + seed))
    few = refused(*calibrate, tmp_path / "few")
    assert "needs at least 19 normal parts to calibrate on, and there are 6; add parts" in few


# By a table


def table_of(place: Path, folder: Path, names: dict[str, str]) -> Path:
    """A table beside or above the pictures of a folder: what each is of."""
    place.parent.mkdir(parents=True, exist_ok=True)
    rows = [f"{(folder / name).relative_to(place.parent)},{part}" for name, part in names.items()]
    place.write_text("\n".join(["path,Part no,label", *(f"{row},0" for row in rows)]) + "\n")
    return place


def test_parts_by_the_column_of_a_table(
    run: Run, answered: Answered, part: Path, shots: Path, tmp_path: Path, picture: Any, write: Any
) -> None:
    for seed in range(20):
        write(tmp_path / "good" / f"{seed:02d}.png", picture(700 + seed))
    good = table_of(
        tmp_path / "good.csv",
        tmp_path / "good",
        {f"{seed:02d}.png": f"nut {seed // 2}" for seed in range(20)},
    )
    made = tmp_path / "of_parts.blemish"
    by = ("--group-by", f"{good}:part_no")
    # The pictures are those of the table itself, or of the folder.
    for given in (good, tmp_path / "good"):
        said = run("calibrate", part, given, "-o", made, RATE, *by)[1]
        assert "Parts: 10 used, of 2 views" in said
    assert read(made)[1]["parts"]["pattern"] == "column part_no"
    assert "parts told by column part_no" in run("inspect", made)[1]
    names = {f"part{one}_{view}.png": f"B{one}" for one in range(6) for view in range(2)}
    names["part0_1.png"] = ""
    new = table_of(tmp_path / "shots" / "views.csv", shots, names)
    by = ("--group-by", f"{new}:part_no")
    found = answered("predict", made, shots, *by)
    assert {row["part"]: row["label"] for row in found["parts"]} == {
        "B0": 0, "B1": 1, "B2": 0, "B3": 0, "B4": 1, "B5": 0
    }  # fmt: skip
    assert found["ungrouped"] == [str(shots / "part0_1.png")]
    said = run("predict", made, shots, *by)[1]
    assert "another --group-by" not in said  # another table with the same column
    assert "another --group-by column part_no" in run("predict", made, shots, *BY)[1]


@pytest.mark.parametrize(
    ("text", "column", "said"),
    [
        ("path,part\na.png,1\n", "side", "views.csv: has no column side; there are path, part"),
        ("path,part\na.png,1\n", "part", "names a part of none of the pictures, as of "),
        ("path,part\n,1\na.png,1\na.png,2\n", "part", "2 rows cannot be used"),
        ("name,part\na.png,1\n", "part", "must name a column path"),
        (None, "part", "views.csv"),
    ],
)
def test_tables_that_are_refused(
    text: str | None,
    column: str,
    said: str,
    refused: Refused,
    part: Path,
    shots: Path,
    tmp_path: Path,
) -> None:
    views, out = tmp_path / "views.csv", tmp_path / "out"
    if text is not None:
        views.write_text(text)
    by = ("--group-by", f"{views}:{column}")
    assert said in refused("predict", part, shots, "--output", out, *by)
    assert not out.exists()
    assert said in refused("calibrate", part, shots, "-o", tmp_path / "b", *by)


def test_a_table_that_is_gone_while_pictures_are_scored(
    answered: Answered, of_parts: Path, shots: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = {f"part{one}_{view}.png": f"B{one}" for one in range(6) for view in range(2)}
    views = table_of(shots / "views.csv", shots, names)
    many = Detector.predict_many

    def then_gone(self: Detector, *given: Any, **named: Any) -> Any:
        views.unlink()
        return many(self, *given, **named)

    monkeypatch.setattr(Detector, "predict_many", then_gone)
    found = answered("predict", of_parts, shots, "--group-by", f"{views}:part_no")
    assert [row["label"] for row in found["parts"]] == [0, 1, 0, 0, 1, 0]


# Reports and evaluation


@pytest.fixture
def labelled(tmp_path: Path, picture: Any, write: Any) -> Path:
    """A data set of six parts of two views, of which 0, 1 and 4 are said to be defective and the
    last two show it; a view of 2 is broken, and one of 5 is called otherwise."""
    folder = tmp_path / "labelled"
    for part in range(6):
        for view in range(2):
            defect = part in (1, 4) and view == 1
            kind = "defective" if defect or (part, view) == (0, 0) else "good"
            name = "lid.png" if (part, view) == (5, 0) else f"part{part}_{view}.png"
            write(folder / kind / name, picture(800 + 2 * part + view, defect=defect))
    (folder / "good" / "part2_0.png").write_bytes(b"no picture")
    return folder


def test_evaluate_by_parts(
    run: Run, answered: Answered, of_parts: Path, labelled: Path, tmp_path: Path, picture: Any,
    write: Any,
) -> None:  # fmt: skip
    write(labelled / "good" / "part6_0.png", picture(700))  # calibrated on
    write(labelled / "good" / "part6_1.png", picture(301))
    write(labelled / "good" / "part7_0.png", picture(302))
    page = tmp_path / "report.html"
    evaluate = ("evaluate", of_parts, labelled, *BY)
    found = answered(*evaluate, "--report", page)["parts"]
    rows = {row["part"]: row for row in found["rows"]}
    assert sorted(rows) == ["0", "1", "3", "4", "5", "7"]  # not 2 and 6, which are not whole
    assert {part for part, row in rows.items() if row["truth"]} == {"0", "1", "4"}
    alarms = {part for part, row in rows.items() if row["label"]}
    assert {"1", "4"} <= alarms
    assert "0" not in alarms  # nothing can be seen
    assert {row["part"] for row in found["rows"][: len(alarms)]} == alarms  # the worst first
    assert (found["defective"], found["found"], found["good"]) == (3, 2, 3)
    assert found["recall"] == pytest.approx(2 / 3)
    assert found["false_alarms"] == len(alarms - {"1", "4"})
    assert found["false_alarm_rate"] == pytest.approx(found["false_alarms"] / 3)
    assert (found["rate"], found["left_out"], found["ungrouped"]) == (0.2, 2, 1)
    assert found["without_verdict"] == 0
    said = run(*evaluate)[1]
    assert "Parts: 2 of 3 defective ones found (66.67 %), " in said
    assert " of 3 good ones (" in said
    assert ", at a rate of 20 %; 2 left out, as not every view was scored; 1 picture of no" in said
    text = page.read_text()
    assert '<section id="parts">' in text
    assert "defective</td>" in text[text.index('id="parts"') : text.index('id="worst"')]
    assert answered("evaluate", of_parts, labelled)["parts"] is None


def test_evaluate_by_parts_without_verdicts(run: Run, part: Path, labelled: Path) -> None:
    said = run("evaluate", part, labelled, *BY)[1]
    assert "Parts: 0 false alarms of 1 good one (0.00 %), at a rate of 5 %; 4 without a" in said


def test_evaluate_refuses_a_bad_pattern(refused: Refused, part: Path, labelled: Path) -> None:
    assert "finds no part in the path" in refused("evaluate", part, labelled, "--group-by", "nut")


def test_the_report_of_predictions_lists_parts(
    run: Run, answered: Answered, of_parts: Path, shots: Path, tmp_path: Path
) -> None:
    (shots / "part2_0.png").write_bytes(b"no picture")
    page = tmp_path / "report.html"
    found = answered("predict", of_parts, shots, "--report", page, *BY)
    text = page.read_text()
    start = text.index('<section id="parts">')
    section = text[start : text.index("</section>", start)]
    assert "2 of 6 raised one" in section
    names = re.findall(r'<th scope="row">(\d)</th>', section)
    assert set(names[:2]) == {"1", "4"}
    assert names[2] == "2"  # without a verdict
    assert "1 of its 2 views could not be scored" in section
    assert 'part2_0.png <span class="quiet">not scored</span>' in section
    links = dict(re.findall(r'<a href="#picture-(\d+)">([^<]+)</a>', section))
    assert len(links) == 11
    ranked = sorted(found["predictions"], key=lambda row: -row.get("score", -1))
    for rank, name in links.items():
        assert ranked[int(rank) - 1]["path"].endswith(name)
        assert text.count(f'id="picture-{rank}"') == 1
    worst = [row["worst"] for row in found["parts"] if row["part"] == "1"]
    assert re.search(rf"<b><a [^>]+>{Path(worst[0]).name}</a></b>", section)
    run("predict", of_parts, shots, "--report", page)
    assert 'id="parts"' not in page.read_text()
    assert 'id="picture-' not in page.read_text()

"""Rows, tables of all of them, and what tables are written as."""

from __future__ import annotations

import errno
import json
import os
import tempfile
from pathlib import Path
from typing import Any

import pytest
from runs import a_row, body, of, suite_of, suite_with, table

from blemish import cli
from blemish import config as configs
from blemish.bench.results import (
    append,
    efficiency_page,
    html,
    markdown,
    page,
    read_rows,
    suite_page,
)
from blemish.bench.results.rows import departures
from blemish.bench.suites import Cost, Efficiency
from blemish.detector.fit import configure
from blemish.errors import DataError, OutputError


def test_damaged_and_newer_rows_are_refused(tmp_path: Path) -> None:
    results = tmp_path / "rows.jsonl"
    whole = json.dumps(a_row())
    for text, said in [
        (f"{whole}\nnot a row\n{whole}\n", "line 2"),
        (json.dumps(a_row(schema=1)) + "\n", "line 1: was written by an older blemish"),
        (json.dumps(a_row(schema=99)) + "\n", "newer blemish"),
    ]:
        results.write_text(text)
        with pytest.raises(DataError, match=said):
            read_rows(results)
    with pytest.raises(DataError, match="cannot be read"):
        read_rows(tmp_path / "none.jsonl")


def test_a_row_with_odd_characters_is_one_line(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    row = a_row(status="failed", error="line\nseparator\u2028 next\x85 half \udcff")
    append(path, row)
    append(path, a_row())
    assert len(path.read_bytes().splitlines()) == 2
    assert read_rows(path)[1] == a_row()


def test_a_row_that_cannot_be_added_is_not_lost(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, kept = tmp_path / "rows.jsonl", tmp_path / "kept"
    kept.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(kept))
    append(path, a_row(seed=1))
    before, sync, full = path.read_bytes(), os.fsync, [path]

    def refuses(number: int) -> None:
        if not full or os.path.samestat(os.fstat(number), full[0].stat()):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        sync(number)

    monkeypatch.setattr(os, "fsync", refuses)
    with pytest.raises(OutputError, match="No space left") as caught:
        append(path, a_row(seed=2))
    assert path.read_bytes() == before  # no half of a row either
    (place,) = kept.glob("*/rows.jsonl")
    told = f"is kept in {place}: once there is room, add this line to rows.jsonl"
    assert told in str(caught.value)
    path.write_bytes(before + place.read_bytes())
    assert read_rows(path) == [a_row(seed=1), a_row(seed=2)]

    full.clear()  # there is no room for temporary files either
    with pytest.raises(OutputError, match="The row is kept nowhere") as caught:
        append(path, a_row(seed=3))
    assert json.loads(str(caught.value).splitlines()[-1]) == a_row(seed=3)
    assert list(kept.iterdir()) == [place.parent]


def test_the_table_has_means_and_deviations_over_seeds() -> None:
    measured = [(0, 0.9, 1.0), (1, 0.92, 2.0), (2, 0.94, 3.0)]
    rows = [
        a_row(
            key=f"k{seed}", seed=seed, settings={"seed": seed}, image_auroc=value, seconds_to_fit=it
        )
        for seed, value, it in measured
    ]
    (line,) = body(table(rows))
    assert line == [
        *("knn", "best", "92.0 ± 2.0", "95.0 ± 0.0", "50.0 ± 0.0", "2.0 ± 1.0", "10.0 ± 0.0"),
        *("512 ± 0", "3", "32×48", "test_vit (feedbeef)", "fp32", "01234567"),
        "CPU X, threads: 2",
    ]
    (line,) = body(table(rows[:1]))
    assert line[2] == "90.0"


def test_shifted_pictures_have_a_table_of_their_own() -> None:
    def shifted(**image_aurocs: tuple[float | None, float | None]) -> dict[str, Any]:
        modes = ("none", "online")
        return {
            shift: {mode: {"image_auroc": value} for mode, value in zip(modes, values, strict=True)}
            for shift, values in image_aurocs.items()
        }

    asked = {"shifts": ["blur", "noise"], "adapt": ["online"]}
    first = shifted(none=(0.9, 0.9), blur=(0.5, 0.6), noise=(0.7, 0.8))
    second = shifted(none=(0.8, 0.9), blur=(0.7, 0.8), noise=(0.7, 1.0))
    plain = {"none": {"none": {"image_auroc": 0.6}}}
    rows = [
        a_row(key="k0", **asked, shifted=first),
        a_row(key="k1", **asked, shifted=second, seed=1),
        a_row(key="k2", method="agpnet", shifts=["blur"], shifted=plain),
        a_row(key="k3"),
    ]
    assert "shifted" not in table(rows[3:])
    main, further = table(rows).split("## widget: shifted test pictures\n")
    assert [line[:2] for line in body(main)] == [
        ["agpnet", "also shifted: blur"],
        ["knn", "also shifted: blur, noise · also adapting: online"],
        ["knn", "best"],
    ]
    assert "| Method | Settings | Shift | not adapting | online | Seeds |" in further
    assert [" ".join(line) for line in body(further)] == [
        "agpnet best none 60.0 – 1",
        "knn best none 85.0 ± 7.1 90.0 ± 0.0 2",
        "knn best blur 60.0 ± 14.1 70.0 ± 14.1 2",
        "knn best noise 70.0 ± 0.0 90.0 ± 14.1 2",
        "knn best mean 65.0 ± 7.1 80.0 ± 14.1 2",
    ]
    second["blur"]["online"]["image_auroc"] = None
    assert ["knn", "best", "mean", "65.0 ± 7.1", "–", "2"] in body(
        table(rows).split("shifted test pictures\n")[1]
    )


def test_the_table_counts_the_newest_good_row_once() -> None:
    old = a_row(image_auroc=0.1)
    new = a_row(image_auroc=0.8, date="2026-02-01T00:00:00+00:00", commit="fedcba9876", dirty=True)
    broken = {**a_row(date="2026-03-01T00:00:00+00:00"), "status": "failed", "error": "out of luck"}
    markdown = table([new, old, broken])
    (line,) = body(markdown)
    assert (line[2], line[8], line[12]) == ("80.0", "1", "fedcba98+")
    assert "out of luck" not in markdown  # the run has a good row


def test_the_table_keeps_unlike_runs_apart_and_names_what_failed() -> None:
    other = {"type": "cuda", "name": "GPU Y", "cpu": "CPU X", "cores": 2, "threads": 2}
    rows = [
        a_row(),
        a_row(key="k1", device=other, peak_gpu_memory_mib=100.0),
        a_row(key="k2", settings={"bank_size": 7}, changed={"bank_size": 7}, label="bank_size=7"),
        a_row(key="k3", recipe="paper", schedule="2 epochs"),
        a_row(key="k4", data="gadget", pixel_auroc=None, aupro=None, commit=None, dirty=None),
        {**a_row(key="k5", seed=4), "status": "failed", "error": "no\nluck"},
    ]
    markdown = table(rows)
    assert markdown.index("## gadget") < markdown.index("## widget")
    lines = body(markdown.split("## widget")[1])
    assert sorted(line[1] for line in lines) == ["bank_size=7", "best", "best", "paper · 2 epochs"]
    assert sorted((line[7], line[13]) for line in lines)[0] == ("100", "GPU Y")
    (gadget,) = body(markdown.split("## widget")[0])
    assert [*gadget[2:5], gadget[12]] == ["90.0", "–", "–", "–"]
    assert "- knn on widget, seed 4: no luck" in markdown


def test_a_training_of_less_than_one_pass_is_marked() -> None:
    def made(epochs: float) -> dict[str, Any]:
        return {"epochs": epochs, "steps": 3, "seconds": 1.0}

    told = "‖ a training ended before it had seen every picture once"
    for short in ({"training": made(0.99)}, {"pretraining": {"training": made(0.1)}}):
        markdown = table([a_row(**short)])
        assert body(markdown)[0][1].endswith(" ‖")
        assert told in markdown
    assert "‖" not in table([a_row(training=made(1), pretraining={"training": made(2)})])
    assert "‖" not in table([a_row(training={"epochs": "few"}, pretraining={"training": 5})])


def test_few_shots_and_budgets_are_lines_of_their_own() -> None:
    few = {"shots": 2, "settings": {"flips": True}, "label": "x=1"}
    trained = {"method": "agpnet", "schedule": "30 epochs"}
    later = {"schedule": "31 epochs", "seed": 1, "date": "2026-01-02T00:00:00+00:00"}
    made: list[dict[str, Any]] = [{}, {**few, "shots": 1, "label": ""}, few, {**few, "seed": 1}]
    made += [trained, {**trained, "time_budget": 15.0}, {**trained, "time_budget": 15.0, **later}]
    lines = body(table(a_row(key=f"k{number}", **each) for number, each in enumerate(made)))
    assert [(line[0], line[1], line[8]) for line in lines] == [
        ("agpnet", "30 epochs", "1"),
        ("agpnet", "budget 15 min · 31 epochs †", "2"),
        ("knn", "1-shot", "1"),
        ("knn", "best", "1"),
        ("knn", "x=1 · 2-shot", "2"),
    ]


def test_one_model_of_other_categories_is_another() -> None:
    """Though its run has the same identity but for the seed: half of a set may have been there when
    it was made."""
    rows = [
        a_row(key=f"k{seed}", data="mvtec", seed=seed, multi_class=True, categories=names)
        for seed, names in enumerate(
            [["bottle", "screw"], ["screw", "bottle"], ["bottle", "cable", "screw"]]
        )
    ]
    assert sorted(line[8] for line in body(table(rows))) == ["1", "2"]
    later = {**rows[2], "key": rows[0]["key"], "seed": 0, "date": "2026-02-01T00:00:00+00:00"}
    assert [line[8] for line in body(table([rows[0], later]))] == ["1", "1"]


def test_what_a_fit_makes_of_a_recipe_is_no_departure() -> None:
    made = {"simulators": ["guided-poisson"], "layers": [4, 6]}
    settings = configs.to_dict(configure("guided")) | made | {"seed": 7}
    row = a_row(method="guided", settings=settings)
    assert departures(row, "best") == {}
    assert departures({**row, "changed": made}, "best") == made
    assert departures({**row, "settings": {**settings, "zoom": 9.0}}, "best") == {"zoom": 9.0}


COSTS = {"learnable_parameters": 4_420_000, "parameters": 26_100_000, "flops": 11_260_000_000}
COSTS |= {"latency_p50_ms": 12.0, "latency_p95_ms": 15.5, "artifact_mib": 88.88}


def test_costs_have_a_table_of_their_own() -> None:
    theirs = Cost(label="Theirs", learnable_parameters=7.48, flops=6.46, images_per_second=286.92)
    costs = Efficiency(source="Table 9", note="On a GPU.", rows=(theirs,))
    rows = [of("bottle", 0.9), {**of("screw", 0.9), "efficiency": COSTS}]
    text = markdown(efficiency_page(rows, published=costs))
    assert [" ".join(line[:13]) for line in body(text)] == [
        "knn best bottle – – – 10.0 – – 512 2.0 – 1",
        "knn best screw 4.42 26.10 11.26 10.0 12.0 15.5 512 2.0 88.9 1",
        "Theirs published – 7.48 – 6.46 286.92 – – – – – –",
    ]
    assert "Published: Table 9. On a GPU." in text
    assert markdown(efficiency_page([])) == "No rows.\n"


def test_html_has_all_that_markdown_has_and_nothing_from_elsewhere() -> None:
    rows = [of("bottle", 0.95, label="x"), of("bottle", 0.97, 1, label="x")]
    failed = of("screw", None, status="failed", error="<script>alert(1)</script>")
    weights = {"source": "pip:x 1", "sha256": "<b>&c", "licence": "MIT"}
    rows[0]["weights"] = rows[1]["weights"] = weights
    text = html(suite_page([*rows, failed], suite_of()), title="A <title>")
    assert "<title>A &lt;title&gt;</title>" in text
    best = '<td class="n">90.0</td><td class="n"><b>96.0 ± 1.4</b></td><td>measured</td>'
    assert f'<th scope="row">bottle</th>{best}' in text
    assert "test_vit (&lt;b&gt;&amp;c)" in text
    assert '<p class="quiet">Noted.</p>' in text
    assert "knn on screw, seed 0: &lt;script&gt;" in text
    assert "<script" not in text
    assert "http" not in text.replace("http-equiv", "")
    assert "No rows of demo" in html(suite_page([], suite_with()), title="x")
    odd = page([a_row(label="<i>a | **b**")])
    assert "&lt;i&gt;a | <b>b</b>" in html(odd, title="x")
    assert r"| <i>a \| **b** |" in markdown(odd)


def test_the_suffix_says_what_is_written(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    results = tmp_path / "rows.jsonl"
    results.write_text(json.dumps({**of("bottle", 0.9), "efficiency": COSTS}) + "\n")

    def made(name: str, *options: str) -> str:
        assert cli.main(["bench", "table", str(results), "-o", str(tmp_path / name), *options]) == 0
        assert f"Written: {tmp_path / name}" in capsys.readouterr().out
        return (tmp_path / name).read_text()

    assert made("a.md").startswith("## bottle\n")
    assert "<h1>Results of blemish bench</h1>" in made("a.html")
    assert "<h1>AGPNet: attention-guided perturbation</h1>" in made("b.HTM", "--suite", "agpnet")
    costs = made("c.md", "--suite", "agpnet", "--efficiency")
    systems = ["knn", "DRAEM", "UniAD", "DeSTSeg", "SimpleNet", "AGPNet"]
    assert [line[0] for line in body(costs)] == systems
    assert len(body(made("d.md", "--efficiency"))) == 1


def test_rows_of_before_there_were_thresholds_are_read_and_stay_apart(tmp_path: Path) -> None:
    regions = {"normal": 6, "normal_with_region": 1, "region_recall": 0.5, "iou": 0.25}
    calibration = {"method": "split conformal", "pictures": 5, "held_out": 5}
    asked: dict[str, Any] = {"key": "k1", "false_alarm_rate": 0.05, "calibration": calibration}
    verdicts = {"false_positive": 1, "true_negative": 5, "false_negative": 3, "true_positive": 4}
    told = {"confusion": verdicts, "regions": {**regions, "f1": 0.4, "false_per_picture": 1.5}}
    rows = [a_row(), a_row(**asked, **told), a_row(key="k2", false_alarm_rate=None)]
    assert "false_alarm_rate" not in rows[0]
    for row in rows:
        append(tmp_path / "rows.jsonl", row)
    assert read_rows(tmp_path / "rows.jsonl") == rows
    main, judged = table(rows).split("## widget: verdicts and regions")
    (plain, calibrated) = body(main)
    assert (plain[1], plain[8]) == ("best", "2")
    assert calibrated[1] == "threshold at 5 % (5 held out)"
    (line,) = body(judged)
    assert line[2:] == ["16.7", "42.9", "16.7", "50.0", "1.50", "40.0", "25.0", "1"]
    without_masks = a_row(**asked, confusion=verdicts, regions=None)
    (line,) = body(table([without_masks]).split("## widget: verdicts and regions")[1])
    assert line[2:] == ["16.7", "42.9", *["–"] * 5, "1"]
    assert "verdicts and regions" not in table(rows[:1])
    append(tmp_path / "rows.jsonl", a_row(calibration=5))
    with pytest.raises(DataError, match=r"line 4: .*calibration"):
        read_rows(tmp_path / "rows.jsonl")

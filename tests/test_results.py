from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from blemish.errors import DataError
from blemish.results import Row, append, as_ever, read_rows, suite_table, table
from blemish.suites import Entry, Suite, Table


def a_row(**changes: Any) -> Row:
    row = {
        "schema": 1,
        "status": "ok",
        "key": "k0",
        "date": "2026-01-01T00:00:00+00:00",
        "commit": "0123456789abcdef",
        "dirty": False,
        "method": "knn",
        "recipe": "best",
        "label": "",
        "settings": {"backbone": "test_vit", "image_size": [32, 48], "seed": 0},
        "data": "widget",
        "seed": 0,
        "backbone": "test_vit",
        "weights": {"source": "pip:x 1", "sha256": "feedbeef00", "licence": "MIT"},
        "resolution": [32, 48],
        "schedule": "",
        "image_auroc": 0.9,
        "image_ap": 0.8,
        "best_f1": 0.7,
        "pixel_auroc": 0.95,
        "aupro": 0.5,
        "seconds_to_fit": 2.0,
        "images_per_second": 10.0,
        "peak_memory_mib": 512.4,
        "peak_gpu_memory_mib": None,
        "device": {"type": "cpu", "name": "CPU X", "cpu": "CPU X", "cores": 2, "threads": 2},
        "precision": "fp32",
    }
    return {**row, **changes}


def body(markdown: str) -> list[list[str]]:
    """The cells of the table's rows, without the header."""
    lines = [line for line in markdown.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line.strip("|").split(" | ")] for line in lines[2:]]


def test_damaged_and_newer_rows_are_refused(tmp_path: Path) -> None:
    results = tmp_path / "rows.jsonl"
    whole = json.dumps(a_row())
    results.write_text(f"{whole}\nnot a row\n{whole}\n")
    with pytest.raises(DataError, match="line 2"):
        read_rows(results)
    results.write_text(json.dumps(a_row(schema=99)) + "\n")
    with pytest.raises(DataError, match="newer blemish"):
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


def test_the_table_has_means_and_deviations_over_seeds() -> None:
    rows = [
        a_row(key=f"k{seed}", seed=seed, settings={"seed": seed}, image_auroc=value, seconds_to_fit=seconds)
        for seed, value, seconds in [(0, 0.9, 1.0), (1, 0.92, 2.0), (2, 0.94, 3.0)]
    ]
    (line,) = body(table(rows))
    assert line == [
        *("knn", "best", "92.0 ± 2.0", "95.0 ± 0.0", "50.0 ± 0.0", "2.0 ± 1.0", "10.0 ± 0.0", "512 ± 0"),
        *("3", "32×48", "test_vit (feedbeef)", "fp32", "01234567", "CPU X, threads: 2"),
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
    rows = [
        a_row(key="k0", **asked, shifted=shifted(none=(0.9, 0.9), blur=(0.5, 0.6), noise=(0.7, 0.8))),
        a_row(key="k1", **asked, shifted=shifted(none=(0.8, 0.9), blur=(0.7, 0.8), noise=(0.7, 1.0)), seed=1),
        a_row(key="k2", method="agpnet", shifts=["blur"], shifted={"none": {"none": {"image_auroc": 0.6}}}),
        a_row(key="k3"),
    ]
    assert "shifted" not in table(rows[3:])
    text = table(rows)
    main, further = text.split("## widget: shifted test pictures\n")
    assert [line[:2] for line in body(main)] == [
        ["agpnet", "also shifted: blur"],
        ["knn", "also shifted: blur, noise · also adapting: online"],
        ["knn", "best"],
    ]
    assert "| Method | Settings | Shift | not adapting | online | Seeds |" in further
    assert body(further) == [
        ["agpnet", "best", "none", "60.0", "–", "1"],
        ["knn", "best", "none", "85.0 ± 7.1", "90.0 ± 0.0", "2"],
        ["knn", "best", "blur", "60.0 ± 14.1", "70.0 ± 14.1", "2"],
        ["knn", "best", "noise", "70.0 ± 0.0", "90.0 ± 14.1", "2"],
        ["knn", "best", "mean", "65.0 ± 7.1", "80.0 ± 14.1", "2"],
    ]
    rows[1]["shifted"]["blur"]["online"]["image_auroc"] = None
    assert ["knn", "best", "mean", "65.0 ± 7.1", "–", "2"] in body(table(rows).split("shifted test pictures\n")[1])


def test_the_table_counts_the_newest_good_row_once() -> None:
    old = a_row(image_auroc=0.1)
    new = a_row(image_auroc=0.8, date="2026-02-01T00:00:00+00:00", commit="fedcba9876", dirty=True)
    broken = {**a_row(date="2026-03-01T00:00:00+00:00"), "status": "failed", "error": "out of luck"}
    markdown = table([new, old, broken])
    (line,) = body(markdown)
    assert line[2] == "80.0"
    assert line[8] == "1"
    assert line[12] == "fedcba98+"
    assert "out of luck" not in markdown  # the run has a good row


def test_the_table_keeps_unlike_runs_apart_and_names_what_failed() -> None:
    other = {"type": "cuda", "name": "GPU Y", "cpu": "CPU X", "cores": 2, "threads": 2}
    rows = [
        a_row(),
        a_row(key="k1", device=other, peak_gpu_memory_mib=100.0),
        a_row(key="k2", settings={"bank_size": 7}, label="bank_size=7"),
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
    assert gadget[2:5] == ["90.0", "–", "–"]
    assert gadget[12] == "–"
    assert "- knn on widget, seed 4: no luck" in markdown


def test_published_figures_stand_beside_the_rows() -> None:
    markdown = table([a_row(label="a|b")], published={"widget": {"A paper": (0.981, None, 0.5)}, "other": {}})
    ours, theirs = body(markdown)
    assert ours[1] == "a\\|b"
    assert theirs[:5] == ["A paper", "published", "98.1", "–", "50.0"]
    assert len(ours) == len(theirs) == 14
    assert table([]) == "No rows.\n"


def test_few_shots_and_budgets_are_lines_of_their_own() -> None:
    trained = {"schedule": "30 epochs, 1,234 steps in 12.3 min", "shots": None, "time_budget": None}
    rows = [
        a_row(),
        a_row(key="k1", shots=1),
        a_row(key="k2", shots=2, label="x=1"),
        a_row(key="k3", shots=2, label="x=1", seed=1),
        a_row(**trained, key="k4", method="agpnet"),
        a_row(**{**trained, "time_budget": 15.0}, key="k5", method="agpnet"),
        a_row(
            **{**trained, "time_budget": 15.0, "schedule": "31 epochs, 1,240 steps in 12.4 min"},
            key="k6",
            method="agpnet",
            seed=1,
            date="2026-01-02T00:00:00+00:00",
        ),
    ]
    lines = body(table(rows))
    assert [(line[0], line[1], line[8]) for line in lines] == [
        ("agpnet", "30 epochs, 1,234 steps in 12.3 min", "1"),
        ("agpnet", "budget 15 min · 31 epochs, 1,240 steps in 12.4 min", "2"),
        ("knn", "1-shot", "1"),
        ("knn", "best", "1"),
        ("knn", "x=1 · 2-shot", "2"),
    ]


# Tables of a suite

SUITE = Suite(
    name="demo",
    title="Demo",
    published_on="another set",
    tables=(
        Table(
            name="noise",
            title="Noise type",
            source="Table 5",
            note="Noted.",
            rows=tuple(
                Entry(method="knn", label=label, settings={"noise": label, "level": 1}, published=published)
                for label, published in [
                    ("none", {"image_auroc": 90.5}),
                    ("guided", {"image_auroc": 98.7}),
                    ("odd", {}),
                ]
            ),
        ),
        Table(
            name="backbone",
            title="Backbone",
            rows=tuple(
                Entry(method="knn", label=name, settings={"backbone": name}) for name in ("test_vit", "test_cnn")
            ),
        ),
    ),
)


def noisy(noise: str, seed: int, image_auroc: float | None, **changes: Any) -> Row:
    settings = {"noise": noise, "level": 1, "backbone": "test_vit", "size": 3, "seed": seed}
    changed = {"noise": noise, "size": 3}
    row = a_row(key=f"{noise}{seed}", seed=seed, settings=settings, changed=changed, image_auroc=image_auroc)
    return {**row, **changes}


def test_a_table_of_a_suite_has_its_lines_beside_what_was_published() -> None:
    rows = [noisy("none", 0, 0.90), noisy("none", 1, 0.92), noisy("guided", 0, 0.95), noisy("guided", 1, 0.93)]
    markdown = suite_table(rows, SUITE)
    assert markdown.startswith("## Noise type: widget\n\nknn · size=3 · 32×48 · test_vit (feedbeef) · fp32 · CPU X")
    assert "|  | I | P | PRO | Seeds | I, published |" in markdown
    assert body(markdown) == [
        ["none", "91.0 ± 1.4", "95.0 ± 0.0", "50.0 ± 0.0", "2", "90.5"],
        ["guided", "**94.0 ± 1.4**", "95.0 ± 0.0", "50.0 ± 0.0", "2", "98.7"],
        ["odd", "–", "–", "–", "0", "–"],
    ]
    assert "Published: Table 5, on another set; no measure for other data. Noted." in markdown
    assert markdown.count("## ") == 1  # one backbone alone is no comparison


@pytest.mark.parametrize(
    ("none", "guided", "bold"),
    [
        ([0.90, 0.92], [0.93, 0.95], True),  # leads by 3.0, spreads are 1.4
        ([0.90, 0.96], [0.94, 0.95], False),  # leads by 1.5, less than the spread of the other
        ([0.92, 0.93], [0.90, 0.98], False),  # less than its own
        ([0.92, 0.92], [0.94, 0.94], True),
        ([0.92, 0.92], [0.92, 0.92], False),
        ([0.90], [0.95], False),  # one seed has no spread
        ([0.90, 0.90], [0.95], False),
        ([0.90, 0.90], [0.95, None], False),
    ],
)
def test_the_best_is_marked_only_beyond_the_spread(none: list[float], guided: list[float], bold: bool) -> None:
    rows = [noisy("none", seed, value) for seed, value in enumerate(none)]
    rows += [noisy("guided", seed, value) for seed, value in enumerate(guided)]
    cells = body(suite_table(rows, SUITE))
    assert [cell[1].startswith("**") for cell in cells] == [False, bold, False]


def test_only_what_is_alike_stands_in_one_table_of_a_suite() -> None:
    other = {"settings": {"noise": "guided", "level": 1, "backbone": "test_vit", "size": 4, "seed": 0}}
    alone = [
        noisy("none", 0, 0.9),
        noisy("guided", 0, 0.9, **other),
        noisy("guided", 1, 0.9, recipe="paper"),
        noisy("guided", 2, 0.9, shots=1),
        noisy("guided", 3, 0.9, time_budget=3.0),
        noisy("guided", 4, 0.9, data="gadget"),
        noisy("guided", 5, 0.9, method="padim"),
    ]
    assert suite_table(alone, SUITE) == "No rows of demo.\n"
    markdown = suite_table([*alone, noisy("none", 6, 0.8, shots=1)], SUITE)
    assert markdown.count("## ") == 1
    assert "knn · size=3 · 1-shot · 32×48" in markdown
    assert [line[1] for line in body(markdown)] == ["80.0", "90.0", "–"]


def test_backbones_stand_in_one_table_though_each_has_its_own_weights_and_resolution() -> None:
    weights = {"source": "random", "sha256": "", "licence": "none"}
    settings = {"backbone": "test_cnn", "image_size": [64, 64], "seed": 0}
    rows = [a_row(), a_row(key="k1", settings=settings, backbone="test_cnn", weights=weights, resolution=[64, 64])]
    markdown = suite_table(rows, SUITE)
    assert "knn · 32×48 · 64×64 · fp32" in markdown
    assert [line[0] for line in body(markdown)] == ["test_vit", "test_cnn"]


def test_settings_that_joined_later_do_not_part_rows() -> None:
    old = {"bank_size": 7, "image_size": [224]}
    joined = {"pretraining": "none", "pretraining_recipe": "best", "pretraining_epochs": 300}
    joined |= {"masking": "attention", "mask_ratio": 0.3, "flips": False}
    assert as_ever({**old, **joined}) == old
    for idle in ({"pretraining_recipe": "paper"}, {"pretraining_epochs": 9}, {"masking": "none"}, {"mask_ratio": 0.5}):
        assert as_ever({**old, **joined, **idle}) == old  # nothing is pre-trained
        asked = {"pretraining": "apmask", **idle}
        assert as_ever({**old, **joined, **asked}) == {**old, **asked}
    assert as_ever({**old, **joined, "pretraining": "apmask"}) == {**old, "pretraining": "apmask"}
    assert as_ever({**old, "flips": True}) == {**old, "flips": True}


def test_the_steps_of_a_pre_training_stand_before_those_of_the_training() -> None:
    made = {"training": {"steps": 7}, "pretraining": {"training": {"steps": 500}}}
    rows = [noisy("none", 0, 0.9, training={"steps": 7}), noisy("guided", 0, 0.9, **made)]
    markdown = suite_table(rows, SUITE)
    assert "| Seeds | Pre-training steps | Steps | I, published |" in markdown
    assert [line[5:7] for line in body(markdown)] == [["–", "7"], ["500", "7"], ["–", "–"]]


def test_the_steps_of_a_training_are_shown_as_a_budget_may_make_them_unequal() -> None:
    rows = [noisy("none", seed, 0.9, training={"steps": 90 + 20 * seed}) for seed in range(2)]
    rows += [noisy("guided", seed, 0.9, training={"steps": 7}) for seed in range(2)]
    markdown = suite_table(rows, SUITE)
    assert "| Seeds | Steps | I, published |" in markdown
    assert [line[5] for line in body(markdown)] == ["100 ± 14", "7 ± 0", "–"]


def test_a_suite_names_the_runs_that_failed() -> None:
    failed = {**noisy("odd", 0, None), "status": "failed", "error": "no luck", "label": "noise=odd", "shots": 2}
    assert "- knn on widget, seed 0 · noise=odd · 2-shot: no luck" in suite_table([failed], SUITE)


def test_without_pre_training_is_a_line_beside_those_with_one() -> None:
    """Also where a recipe says how the encoder is pre-trained, which counts for nothing where it is not."""
    base = {"backbone": "test_vit", "image_size": [64, 64], "seed": 0, "pretraining_recipe": "paper"}
    base |= {"pretraining_epochs": 300, "masking": "attention", "mask_ratio": 0.3}
    entries = [Entry(method="knn", label=kind, settings={"pretraining": kind}) for kind in ("none", "apmask")]
    suite = Suite(name="s", title="S", published_on="-", tables=(Table(name="t", title="T", rows=tuple(entries)),))
    rows = [
        a_row(key=kind, settings={**base, "pretraining": kind}, changed={"pretraining": kind})
        for kind in ("none", "apmask")
    ]
    assert [line[0] for line in body(suite_table(rows, suite))] == ["none", "apmask"]

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
from runs import a_row

from blemish import cli
from blemish import config as configs
from blemish.bench.results import (
    Row,
    append,
    efficiency_page,
    html,
    markdown,
    page,
    read_rows,
    suite_page,
)
from blemish.bench.results.rows import HALF_OFF, departures
from blemish.bench.suites import (
    Comparison,
    Cost,
    Efficiency,
    Entry,
    Figure,
    Published,
    Suite,
    Table,
)
from blemish.detector.fit import configure
from blemish.errors import DataError


def table(rows: Iterable[Row]) -> str:
    return markdown(page(rows))


def suite_table(rows: Iterable[Row], suite: Suite) -> str:
    return markdown(suite_page(rows, suite))


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
    results.write_text(json.dumps(a_row(schema=1)) + "\n")
    with pytest.raises(DataError, match="line 1: was written by an older blemish"):
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
        a_row(
            key=f"k{seed}",
            seed=seed,
            settings={"seed": seed},
            image_auroc=value,
            seconds_to_fit=seconds,
        )
        for seed, value, seconds in [(0, 0.9, 1.0), (1, 0.92, 2.0), (2, 0.94, 3.0)]
    ]
    (line,) = body(table(rows))
    assert line == [
        *(
            "knn",
            "best",
            "92.0 ± 2.0",
            "95.0 ± 0.0",
            "50.0 ± 0.0",
            "2.0 ± 1.0",
            "10.0 ± 0.0",
            "512 ± 0",
        ),
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
        a_row(
            key="k0", **asked, shifted=shifted(none=(0.9, 0.9), blur=(0.5, 0.6), noise=(0.7, 0.8))
        ),
        a_row(
            key="k1",
            **asked,
            shifted=shifted(none=(0.8, 0.9), blur=(0.7, 0.8), noise=(0.7, 1.0)),
            seed=1,
        ),
        a_row(
            key="k2",
            method="agpnet",
            shifts=["blur"],
            shifted={"none": {"none": {"image_auroc": 0.6}}},
        ),
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
    assert ["knn", "best", "mean", "65.0 ± 7.1", "–", "2"] in body(
        table(rows).split("shifted test pictures\n")[1]
    )


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
    assert gadget[2:5] == ["90.0", "–", "–"]
    assert gadget[12] == "–"
    assert "- knn on widget, seed 4: no luck" in markdown


def test_few_shots_and_budgets_are_lines_of_their_own() -> None:
    trained = {"schedule": "30 epochs, 1,234 steps in 12.3 min", "shots": None, "time_budget": None}
    rows = [
        a_row(),
        a_row(key="k1", shots=1, settings={"flips": True}),
        a_row(key="k2", shots=2, settings={"flips": True}, label="x=1"),
        a_row(key="k3", shots=2, settings={"flips": True}, label="x=1", seed=1),
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
        ("agpnet", "budget 15 min · 31 epochs, 1,240 steps in 12.4 min †", "2"),
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
                Entry(
                    method="knn",
                    label=label,
                    settings={"noise": label, "level": 1},
                    published=published,
                )
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
                Entry(method="knn", label=name, settings={"backbone": name})
                for name in ("test_vit", "test_cnn")
            ),
        ),
    ),
)


def noisy(noise: str, seed: int, image_auroc: float | None, **changes: Any) -> Row:
    settings = {"noise": noise, "level": 1, "backbone": "test_vit", "size": 3, "seed": seed}
    changed = {"noise": noise, "size": 3}
    row = a_row(
        key=f"{noise}{seed}", seed=seed, settings=settings, changed=changed, image_auroc=image_auroc
    )
    return {**row, **changes}


def test_a_table_of_a_suite_has_its_lines_beside_what_was_published() -> None:
    rows = [
        noisy("none", 0, 0.90),
        noisy("none", 1, 0.92),
        noisy("guided", 0, 0.95),
        noisy("guided", 1, 0.93),
    ]
    markdown = suite_table(rows, SUITE)
    assert markdown.startswith(
        "## Noise type: widget\n\nknn · size=3 · 32×48 · test_vit (feedbeef) · fp32 · CPU X"
    )
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
def test_the_best_is_marked_only_beyond_the_spread(
    none: list[float], guided: list[float], bold: bool
) -> None:
    rows = [noisy("none", seed, value) for seed, value in enumerate(none)]
    rows += [noisy("guided", seed, value) for seed, value in enumerate(guided)]
    cells = body(suite_table(rows, SUITE))
    assert [cell[1].startswith("**") for cell in cells] == [False, bold, False]


def test_only_what_is_alike_stands_in_one_table_of_a_suite() -> None:
    other = {
        "settings": {"noise": "guided", "level": 1, "backbone": "test_vit", "size": 4, "seed": 0}
    }
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


def test_reduced_schedules_and_parts_of_a_set_are_flagged() -> None:
    rows = [
        noisy("none", 0, 0.90, time_budget=3.0),
        noisy("guided", 0, 0.95, time_budget=3.0, differs=["widget: 1 of 2 training pictures"]),
    ]
    markdown = suite_table(rows, SUITE)
    assert [line[0] for line in body(markdown)] == ["none †", "guided † ‡", "odd"]
    assert "† another schedule than the recipe's" in markdown
    assert "‡ not all of the official pictures" in markdown
    fewer = a_row(changed={"epochs": 2}, differs=[])
    assert "† another" in table([fewer])
    assert "‡" not in table([fewer])
    assert "†" not in table([a_row()])


def test_models_of_categories_are_shown_by_their_means() -> None:
    """Over the categories that all lines have, and the seeds that have them all."""
    part = Table(
        name="noise",
        title="Noise",
        data="mvtec",
        rows=tuple(
            Entry(method="knn", label=it, settings={"noise": it}) for it in ("none", "guided")
        ),
    )
    suite = Suite(name="s", title="S", tables=(part,))

    def of(noise: str, data: str, seed: int, value: float) -> Row:
        made = {"training": {"steps": 10 if data == "bottle" else 30}}
        return noisy(noise, seed, value, data=data, **made) | {"key": f"{noise}{data}{seed}"}

    rows = [of("none", "bottle", 0, 0.8), of("none", "screw", 0, 0.6), of("none", "cable", 0, 0.1)]
    rows += [of("guided", "bottle", 0, 0.9), of("guided", "screw", 0, 0.7)]
    rows += [
        of("guided", "bottle", 1, 0.9),
        of("guided", "screw", 1, 0.8),
        of("guided", "bottle", 2, 0.1),
    ]
    markdown = suite_table(rows, suite)
    assert markdown.startswith("## Noise: MVTec AD, mean of 2 of 15 categories\n")
    assert [(line[1], line[4], line[5]) for line in body(markdown)] == [
        ("70.0", "1", "20"),
        ("82.5 ± 3.5", "2", "20 ± 0"),
    ]
    assert markdown.count("## ") == 1
    alone = suite_table([of("none", "bottle", 0, 0.8), of("guided", "bottle", 0, 0.9)], suite)
    own = [of("none", "widget", 0, 0.8), of("guided", "widget", 0, 0.9)]
    assert "## Noise: widget\n" in suite_table([*rows, *own], suite)  # beside the means
    assert alone.startswith("## Noise: bottle\n")


def test_categories_that_not_all_lines_have_are_shown_one_by_one() -> None:
    names = ("none", "guided", "odd")
    lines = tuple(Entry(method="knn", label=it, settings={"noise": it}) for it in names)
    part = Table(name="noise", title="Noise", data="mvtec", rows=lines)
    had = {"none": ("bottle", "screw"), "guided": ("bottle", "screw"), "odd": ("cable",)}
    rows = [
        noisy(noise, 0, 0.9, data=data, key=noise + data)
        for noise, sets in had.items()
        for data in sets
    ]
    text = suite_table(rows, Suite(name="s", title="S", tables=(part,)))
    assert [line for line in text.splitlines() if line.startswith("## ")] == [
        "## Noise: bottle",
        "## Noise: screw",
    ]


def test_backbones_stand_in_one_table_though_each_has_its_own_weights_and_resolution() -> None:
    weights = {"source": "random", "sha256": "", "licence": "none"}
    settings = {"backbone": "test_cnn", "image_size": [64, 64], "seed": 0}
    rows = [
        a_row(),
        a_row(
            key="k1", settings=settings, backbone="test_cnn", weights=weights, resolution=[64, 64]
        ),
    ]
    markdown = suite_table(rows, SUITE)
    assert "knn · 32×48 · 64×64 · fp32" in markdown
    assert [line[0] for line in body(markdown)] == ["test_vit", "test_cnn"]


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
    failed = {
        **noisy("odd", 0, None),
        "status": "failed",
        "error": "no luck",
        "label": "noise=odd",
        "shots": 2,
    }
    assert "- knn on widget, seed 0 · noise=odd · 2-shot: no luck" in suite_table([failed], SUITE)


def test_without_pre_training_is_a_line_beside_those_with_one() -> None:
    """Also where a recipe says how the encoder is pre-trained, which counts for nothing where it is
    not."""
    base = {
        "backbone": "test_vit",
        "image_size": [64, 64],
        "seed": 0,
        "pretraining_recipe": "paper",
    }
    base |= {"pretraining_epochs": 300, "masking": "attention", "mask_ratio": 0.3}
    entries = [
        Entry(method="knn", label=kind, settings={"pretraining": kind})
        for kind in ("none", "apmask")
    ]
    suite = Suite(
        name="s",
        title="S",
        published_on="-",
        tables=(Table(name="t", title="T", rows=tuple(entries)),),
    )
    rows = [
        a_row(key=kind, settings={**base, "pretraining": kind}, changed={"pretraining": kind})
        for kind in ("none", "apmask")
    ]
    assert [line[0] for line in body(suite_table(rows, suite))] == ["none", "apmask"]
    longer = {
        **rows[1],
        "key": "longer",
        "image_auroc": 0.8,
        "settings": {**rows[1]["settings"], "mask_ratio": 0.5},
    }
    each = suite_table([*rows, longer], suite).split("## ")[
        1:
    ]  # another pre-training is no further seed
    assert [[line[:2] for line in body(text)] for text in each] == [
        [["none", "90.0"], ["apmask", "90.0"]],
        [["none", "90.0"], ["apmask", "80.0"]],
    ]


# Main tables of papers, methods compared, costs, HTML


def published(source: str, mean: float | None, **figures: float | None) -> Published:
    return Published(
        source=source,
        figures={
            line: {} if it is None else {"image_auroc": Figure(it)} for line, it in figures.items()
        },
        mean={} if mean is None else {"image_auroc": Figure(mean)},
    )


def suite_of(**changes: Any) -> Suite:
    values: dict[str, Any] = {
        "name": "main",
        "title": "Main table",
        "source": "Table 1",
        "note": "Noted.",
        "data": "mvtec",
        "lines": ("bottle", "cable", "screw"),
        "metrics": ("image_auroc",),
        "published": (published("Theirs", 90.1, bottle=90.0, cable=80.0, screw=None),),
        "entries": (Entry(method="knn", label="ours"),),
    }
    return Suite(name="demo", title="Demo", tables=(Comparison(**{**values, **changes}),))


def of(data: str, value: float | None, seed: int = 0, **changes: Any) -> Row:
    row = a_row(data=data, seed=seed, image_auroc=value, **{"changed": {}, **changes})
    recipe = configs.to_dict(configure(row["method"], recipe=row["recipe"], shots=row.get("shots")))
    settings = {**recipe, **row["settings"], **row["changed"], "seed": seed}
    return {**row, "settings": settings, "key": "-".join(map(str, [data, seed, *changes.values()]))}


def test_categories_are_lines_and_systems_are_columns() -> None:
    rows = [
        of("bottle", 0.95),
        of("bottle", 0.97, 1),
        of("screw", 0.8),
        of("screw", 0.9, 1),
        of("gadget", 0.1),
    ]
    text = suite_table(rows, suite_of())
    assert text.startswith(
        "## Main table\n\nI. Published: Table 1.\n\n|  | Theirs | ours [1] | Status |"
    )
    assert body(text) == [
        ["bottle", "90.0", "**96.0 ± 1.4**", "measured"],
        ["cable", "80.0", "–", "published"],
        ["screw", "–", "85.0 ± 7.1", "measured"],
        ["Mean", "90.1", "–", "published"],
        ["Mean of the 2 measured", "–", "90.5 ± 4.2", "measured"],
    ]
    assert (
        "\n\nNoted.\n\n- [1] knn · recipe best · test_vit (feedbeef) · 32×48 · fp32 · CPU X · "
        in text
    )
    assert "01234567 · seed 0, 1\n" in text
    assert "Out of reach: in no row" in text
    whole = body(suite_table([*rows, of("cable", 0.7)], suite_of()))
    assert whole[-1] == ["Mean", "90.1", "81.7", "measured"]  # of the seed that has all


def test_what_nobody_has_is_out_of_reach() -> None:
    lines = body(suite_table([], suite_of()))
    assert [line[0] for line in lines if line[-1] == "out of reach"] == ["screw"]


@pytest.mark.parametrize(
    ("first", "second", "theirs", "bold"),
    [
        ([0.95, 0.97], None, Figure(90.0), [False, True]),  # leads by 6, its spread is 1.4
        ([0.90, 0.92], None, Figure(90.0), [False, False]),
        ([0.96], None, Figure(90.0), [False, False]),  # one seed
        ([0.80, 0.80], None, Figure(90.0), [True, False]),
        ([0.95, 0.97], None, Figure(90.0, 7.0), [False, False]),  # less than the published spread
        ([0.95, 0.97], [0.99, 0.99], Figure(90.0), [False, False, True]),
        ([0.95, 0.97], [0.99], Figure(90.0), [False, False, False]),
        (None, None, Figure(90.0), [False]),
    ],
)
def test_the_best_is_marked_only_beyond_what_is_known_of_the_spread(
    first: list[float] | None, second: list[float] | None, theirs: Figure, bold: list[bool]
) -> None:
    suite = suite_of(
        lines=("bottle",),
        published=(
            Published(source="Theirs", figures={"bottle": {"image_auroc": theirs}}, mean={}),
        ),
        entries=(Entry(method="knn", label="a"), Entry(method="padim", label="b")),
    )
    rows = [of("bottle", value, seed) for seed, value in enumerate(first or [])]
    rows += [of("bottle", value, seed, method="padim") for seed, value in enumerate(second or [])]
    (line,) = body(suite_table(rows, suite))
    assert [cell.startswith("**") for cell in line[1:-1]] == bold


def test_what_is_unlike_stands_in_columns_of_its_own() -> None:
    other = {"type": "cuda", "name": "GPU Y", "cpu": "CPU X", "cores": 2, "threads": 2}
    threads = {"type": "cpu", "name": "CPU X", "cpu": "CPU X", "cores": 2, "threads": 1}
    rows = [
        of("bottle", 0.90),
        of("screw", 0.91, device=threads),  # the same but for its threads
        of("bottle", 0.92, device=other),
        of("bottle", 0.93, precision="bf16"),
        {
            **of("bottle", 0.94),
            "key": "size",
            "resolution": [64, 64],
            "changed": {"image_size": [64]},
        },
        {**of("bottle", 0.95), "key": "budget", "time_budget": 3.0},
        {
            **of("bottle", 0.96),
            "key": "part",
            "differs": ["bottle: 1 of 209 training pictures"],
            "precision": "bf16",
        },
        {**of("bottle", 0.1), "key": "ablated", "changed": {"pooling": 5}},
        {**of("bottle", 0.1), "key": "few", "shots": 1},
        {**of("bottle", 0.1), "key": "taught", "anomaly_count": 1},
        {**of("bottle", 0.1), "key": "layers", "changed": {"layers": [2]}},
        of("bottle", 0.1, method="padim"),
        {**of("bottle", 0.1), "key": "paper", "recipe": "paper", "changed": {"pooling": 5}},
    ]
    text = suite_table(rows, suite_of())
    heads = text.splitlines()[4]
    assert (
        heads == "|  | Theirs | ours [1] | ours [2] | ours [3] | ours [4] | ours [5] † | Status |"
    )
    bottle, _, screw, *_ = body(text)
    assert bottle == ["bottle", "90.0", "90.0", "92.0", "96.0 ‡", "94.0", "95.0", "measured"]
    assert screw[2:-1] == ["91.0", "–", "–", "–", "–"]
    assert "- [4] knn · recipe best · test_vit (feedbeef) · 64×64 · fp32" in text
    assert "- [5] knn · recipe best · budget 3 min ·" in text
    layers = {**of("bottle", 0.5), "changed": {"backbone": "test_cnn", "layers": [1]}}
    assert (
        body(suite_table([layers], suite_of()))[0][2] == "50.0"
    )  # those of another backbone are no ablation


def test_what_a_fit_makes_of_a_recipe_is_no_departure() -> None:
    made = {"simulators": ["guided-poisson"], "layers": [4, 6]}
    settings = configs.to_dict(configure("guided")) | made | {"seed": 7}
    row = a_row(method="guided", settings=settings)
    assert departures(row, "best") == {}
    assert departures({**row, "changed": made}, "best") == made
    assert departures({**row, "settings": {**settings, "zoom": 9.0}}, "best") == {"zoom": 9.0}


def test_a_row_belongs_to_the_entry_that_names_most_of_it() -> None:
    entries = (
        Entry(method="knn", label="plain"),
        Entry(method="knn", label="small", settings={"image_size": [64]}),
    )
    text = suite_table([of("bottle", 0.9, changed={"image_size": [64]})], suite_of(entries=entries))
    assert "| Theirs | small [1] | Status |" in text


def test_one_model_of_all_categories_tells_of_each() -> None:
    each = {"bottle": {"image_auroc": 0.9}, "screw": {"image_auroc": 0.7}}
    made = {"multi_class": True, "categories": ["bottle", "screw"], "by_category": each}
    rows = [{**of("mvtec", 0.8), **made, "differs": ["cable is missing"]}, of("bottle", 0.1)]
    lines = body(suite_table(rows, suite_of(multi_class=True)))
    assert [line[2] for line in lines] == ["90.0 ‡", "–", "70.0 ‡", "–", "80.0 ‡"]
    assert "one model of 2 categories" in suite_table(rows, suite_of(multi_class=True))


def test_adapting_has_a_column_of_its_own_from_the_same_run() -> None:
    shifted = {"none": {"none": {"image_auroc": 0.9}, "episodic": {"image_auroc": 0.95}}}
    suite = suite_of(entries=(Entry(method="knn", label="ours", adapt=("episodic",)),))
    adapted = {**of("bottle", 0.9), "adapt": ["episodic"], "shifted": shifted}
    later = {**of("bottle", 0.92), "key": "later", "date": "2026-02-01T00:00:00+00:00"}
    text = suite_table([adapted, later], suite)
    assert "| Theirs | ours [1] | ours [1], adapting: episodic | Status |" in text
    assert body(text)[0] == ["bottle", "90.0", "92.0", "95.0", "measured"]
    assert text.count("- [1]") == 1
    assert "adapting" not in suite_table([later], suite)


def test_sexes_are_lines_of_chest_x_rays() -> None:
    theirs = {sex: {"pixel_auroc_anomalous": Figure(70.0, 0.5)} for sex in ("male", "female")}
    suite = suite_of(
        data="nih",
        by="group",
        lines=("male", "female"),
        metrics=("pixel_auroc_anomalous",),
        published=(Published(source="Theirs", figures=theirs, mean={}),),
        entries=(Entry(method="knn", label="ours", adapt=("episodic",)),),
    )
    groups = {"male": {"pixel_auroc_anomalous": 0.71, "pixel_auroc": 0.1}}
    better = {"male": {"pixel_auroc_anomalous": 0.72}}
    row = {
        **of("nih", 0.1),
        "by_group": groups,
        "shifted": {"none": {"episodic": {"by_group": better}}},
    }
    text = suite_table([row], suite)
    assert "\n\nP. Published: Table 1." in text
    assert body(text) == [
        ["male", "70.0 ± 0.5", "71.0", "72.0", "measured"],
        ["female", "70.0 ± 0.5", "–", "–", "published"],
    ]


def test_the_spread_over_seeds_is_the_papers() -> None:
    """Of 90, 92 and 94 %: a standard deviation of 2, a standard error of 2 / √3."""
    rows = [of("bottle", value, seed) for seed, value in enumerate((0.90, 0.92, 0.94))]
    deviation, error = (
        suite_table(rows, suite_of(spread=it)) for it in ("standard deviation", "standard error")
    )
    assert "| 92.0 ± 2.0 | measured |" in deviation
    assert "| **92.0 ± 1.2** | measured |" in error  # leads 90.0 by more than that
    assert "±: the standard error over the seeds." in error
    assert "standard error" not in deviation


def test_rows_compared_elsewhere_than_in_the_paper_say_so() -> None:
    """Each in a column of its own; those of before masks were read by pixel centres, too."""
    pixels = suite_of(metrics=("image_auroc", "pixel_auroc"), compared_at=None)
    rows = [
        {**of("bottle", 0.8, key="a"), "compared_at": "original"},
        {**of("bottle", 0.7, key="b"), "compared_at": 256},
        {**of("bottle", 0.9, key="c"), "compared_at": HALF_OFF},
    ]
    text = suite_table(rows, pixels)
    assert "| ours [1] | ours [2] ¶ | ours [3] § ¶ | Status |" in text
    assert "Maps and masks are compared at the pictures' own size." in text
    assert text.count("compared at the pictures' own size") == 2  # of the table, and of its one row
    assert "\n¶ maps and masks compared at another size than the paper's.\n" in text
    of_ours = suite_table(rows, suite_of(metrics=("image_auroc", "pixel_auroc")))
    assert "| ours [1] ¶ | ours [2] | ours [3] § | Status |" in of_ours
    assert "§" not in suite_table(rows, suite_of(metrics=("image_auroc",)))
    lines = [line[1] for line in body(table(rows))]
    assert sorted(lines) == ["best", "best §", "compared at the pictures' own size"]


def test_what_a_majority_votes_is_told_beside_the_conditions() -> None:
    votes = {"image_auroc": 0.875, "balanced_accuracy": 0.75}
    assert "by majority vote: image AUROC 87.5, balanced accuracy 75.0" in suite_table(
        [{**of("bottle", 0.9), "votes": votes}], suite_of()
    )
    assert "vote" not in suite_table([of("bottle", 0.9)], suite_of())


def test_latency_stands_beside_the_published_one() -> None:
    theirs = Published(
        source="Theirs", figures={"bottle": {}, "cable": {}, "screw": {}}, mean={}, latency_ms=480
    )
    rows = [of("bottle", 0.9), {**of("screw", 0.9), "efficiency": {"latency_p50_ms": 12.34}}]
    assert body(suite_table(rows[1:], suite_of(published=(theirs,))))[-1] == [
        "Latency (ms)",
        "480",
        "12.3",
        "measured",
    ]
    assert body(suite_table(rows, suite_of(published=(theirs,))))[-1][2] == "–"  # not all tell


FEW = Table(
    name="few",
    title="Few pictures",
    source="Table 10",
    data="mvtec",
    rows=(
        Entry(method="", label="Theirs, 1-shot", published={"image_auroc": 91.5}),
        Entry(method="knn", label="ours, 1-shot", shots=1, published={"image_auroc": 92.5}),
        Entry(method="padim", label="padim, 1-shot", shots=1),
    ),
)


def test_methods_are_lines_with_their_means_over_categories() -> None:
    suite = Suite(name="demo", title="Demo", tables=(FEW,))
    rows = [
        of("bottle", 0.9, shots=1),
        of("cable", 0.8, shots=1),
        of("screw", 0.1, shots=1),
        of("bottle", 0.1),
    ]
    rows += [
        of("bottle", 0.7, shots=1, method="padim"),
        of("cable", 0.8, shots=1, method="padim", time_budget=1.0),
    ]
    rows += [of("cable", 0.6, shots=1, method="padim")]
    text = suite_table(rows[:-2], suite)
    assert text.startswith(
        "## Few pictures: bottle alone\n\n|  | I | P | PRO | Seeds | I, published | Status |"
    )
    assert [line[:2] + line[4:] for line in body(text)] == [
        ["Theirs, 1-shot", "–", "0", "91.5", "published"],
        ["ours, 1-shot [1]", "90.0", "1", "92.5", "measured"],
        ["padim, 1-shot [2]", "70.0", "1", "–", "measured"],
    ]
    text = suite_table([*rows[:-2], rows[-1]], suite)
    assert text.startswith("## Few pictures: mean of 2 of 15 categories\n")
    assert [line[1] for line in body(text)] == ["–", "85.0", "65.0"]
    assert [line[0] for line in body(suite_table(rows[:-1], suite))][-1] == "padim, 1-shot [3] †"
    bare = suite_table([], suite)
    assert bare.startswith("## Few pictures\n\n|  | Seeds | I, published | Status |")
    assert [line[-1] for line in body(bare)] == ["published", "published", "out of reach"]


def test_tables_of_ones_own_need_no_source() -> None:
    main = suite_page(
        [of("bottle", 0.9)], suite_of(source="", note="", metrics=("image_ap",), published=())
    ).sheets[0]
    assert (main.above, main.notes) == ("image_ap.", ())
    assert main.lines[0] == ("bottle", "80.0", "measured")
    own = Table(name="own", title="Own", data="mvtec", rows=(Entry(method="knn", label="ours"),))
    (few,) = suite_page([of("bottle", 0.9)], Suite(name="s", title="S", tables=(own,))).sheets
    assert few.notes == ()


COSTS = {"learnable_parameters": 4_420_000, "parameters": 26_100_000, "flops": 11_260_000_000}
COSTS |= {"latency_p50_ms": 12.0, "latency_p95_ms": 15.5, "artifact_mib": 88.88}


def test_costs_have_a_table_of_their_own() -> None:
    costs = Efficiency(
        source="Table 9",
        note="On a GPU.",
        rows=(
            Cost(label="Theirs", learnable_parameters=7.48, flops=6.46, images_per_second=286.92),
        ),
    )
    rows = [of("bottle", 0.9), {**of("screw", 0.9), "efficiency": COSTS}]
    text = markdown(efficiency_page(rows, published=costs))
    gaps = ["–"] * 3
    assert [line[:13] for line in body(text)] == [
        ["knn", "best", "bottle", *gaps, "10.0", "–", "–", "512", "2.0", "–", "1"],
        [
            "knn",
            "best",
            "screw",
            "4.42",
            "26.10",
            "11.26",
            "10.0",
            "12.0",
            "15.5",
            "512",
            "2.0",
            "88.9",
            "1",
        ],
        ["Theirs", "published", "–", "7.48", "–", "6.46", "286.92", *["–"] * 6],
    ]
    assert "Published: Table 9. On a GPU." in text
    assert markdown(efficiency_page([])) == "No rows.\n"


def test_html_has_all_that_markdown_has_and_nothing_from_elsewhere() -> None:
    rows = [of("bottle", 0.95, label="x"), of("bottle", 0.97, 1, label="x")]
    failed = {**of("screw", None), "status": "failed", "error": "<script>alert(1)</script>"}
    rows[0]["weights"] = rows[1]["weights"] = {
        "source": "pip:x 1",
        "sha256": "<b>&c",
        "licence": "MIT",
    }
    page = html(suite_page([*rows, failed], suite_of()), title="A <title>")
    assert "<title>A &lt;title&gt;</title>" in page
    assert (
        '<th scope="row">bottle</th><td class="n">90.0</td><td class="n"><b>96.0 ± 1.4</b></td>'
        "<td>measured</td>" in page
    )
    assert "test_vit (&lt;b&gt;&amp;c)" in page
    assert '<p class="quiet">Noted.</p>' in page
    assert "knn on screw, seed 0: &lt;script&gt;" in page
    assert "<script" not in page
    assert "http" not in page.replace("http-equiv", "")
    assert "No rows of demo" in html(
        suite_page([], Suite(name="demo", title="Demo", tables=())), title="x"
    )


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
    assert [line[0] for line in body(costs)] == [
        "knn",
        "DRAEM",
        "UniAD",
        "DeSTSeg",
        "SimpleNet",
        "AGPNet",
    ]
    assert len(body(made("d.md", "--efficiency"))) == 1

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


# Tables of a suite


def varied(key: str, *values: str, **changes: Any) -> Table:
    """A table that varies a setting of `knn`."""
    rows = tuple(Entry(method="knn", label=it, settings={key: it}) for it in values)
    return Table(**{"name": key, "title": key.capitalize(), "rows": rows, **changes})


THEIRS = {"none": 90.5, "guided": 98.7}
NOISE = tuple(
    Entry(
        method="knn",
        label=label,
        settings={"noise": label, "level": 1},
        published={"image_auroc": THEIRS[label]} if label in THEIRS else {},
    )
    for label in ("none", "guided", "odd")
)
SUITE = Suite(
    name="demo",
    title="Demo",
    published_on="another set",
    tables=(
        varied("noise", title="Noise type", source="Table 5", note="Noted.", rows=NOISE),
        varied("backbone", "test_vit", "test_cnn"),
    ),
)


def suite_with(*tables: Table | Comparison) -> Suite:
    return Suite(name="demo", title="Demo", tables=tables)


def noisy(noise: str, seed: int, image_auroc: float | None, **changes: Any) -> Row:
    settings = {"noise": noise, "level": 1, "backbone": "test_vit", "size": 3, "seed": seed}
    changed = {"noise": noise, "size": 3}
    row = a_row(
        key=f"{noise}{seed}", seed=seed, settings=settings, changed=changed, image_auroc=image_auroc
    )
    return {**row, **changes}


def test_a_table_of_a_suite_has_its_lines_beside_what_was_published() -> None:
    rows = [noisy("none", seed, value) for seed, value in enumerate((0.90, 0.92))]
    rows += [noisy("guided", seed, value) for seed, value in enumerate((0.95, 0.93))]
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


def test_only_what_is_alike_stands_in_one_table_of_a_suite() -> None:
    other = {"noise": "guided", "level": 1, "backbone": "test_vit", "size": 4, "seed": 0}
    unlike: list[dict[str, Any]] = [{"settings": other}, {"recipe": "paper"}, {"shots": 1}]
    unlike += [{"time_budget": 3.0}, {"data": "gadget"}, {"method": "padim"}]
    alone = [noisy("none", 0, 0.9)]
    alone += [noisy("guided", seed, 0.9, **it) for seed, it in enumerate(unlike)]
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
    suite = suite_with(varied("noise", "none", "guided", data="mvtec"))

    def of(noise: str, data: str, seed: int, value: float) -> Row:
        made = {"training": {"steps": 10 if data == "bottle" else 30}}
        return noisy(noise, seed, value, data=data, **made) | {"key": f"{noise}{data}{seed}"}

    none = [("bottle", 0, 0.8), ("screw", 0, 0.6), ("cable", 0, 0.1)]
    guided = [("bottle", 0, 0.9), ("screw", 0, 0.7), ("bottle", 1, 0.9), ("screw", 1, 0.8)]
    rows = [of("none", *each) for each in none]
    rows += [of("guided", *each) for each in [*guided, ("bottle", 2, 0.1)]]
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
    part = varied("noise", "none", "guided", "odd", data="mvtec")
    had = [("none", "bottle"), ("none", "screw"), ("guided", "bottle"), ("guided", "screw")]
    rows = [
        noisy(noise, 0, 0.9, data=data, key=noise + data)
        for noise, data in [*had, ("odd", "cable")]
    ]
    titles = [it for it in suite_table(rows, suite_with(part)).splitlines() if it[:3] == "## "]
    assert titles == ["## Noise: bottle", "## Noise: screw"]


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


def test_the_steps_of_trainings_are_shown_as_a_budget_may_make_them_unequal() -> None:
    rows = [noisy("none", seed, 0.9, training={"steps": 90 + 20 * seed}) for seed in range(2)]
    rows += [noisy("guided", seed, 0.9, training={"steps": 7}) for seed in range(2)]
    markdown = suite_table(rows, SUITE)
    assert "| Seeds | Steps | I, published |" in markdown
    assert [line[5] for line in body(markdown)] == ["100 ± 14", "7 ± 0", "–"]
    rows[3] = {**rows[3], "pretraining": {"training": {"steps": 500}}}
    markdown = suite_table([rows[0], rows[3]], SUITE)
    assert "| Seeds | Pre-training steps | Steps | I, published |" in markdown
    assert [line[5:7] for line in body(markdown)] == [["–", "90"], ["500", "7"], ["–", "–"]]


def test_a_suite_names_the_runs_that_failed() -> None:
    failed = noisy("odd", 0, None, status="failed", error="no luck", label="noise=odd", shots=2)
    assert "- knn on widget, seed 0 · noise=odd · 2-shot: no luck" in suite_table([failed], SUITE)


def test_without_pre_training_is_a_line_beside_those_with_one() -> None:
    """Also where a recipe says how the encoder is pre-trained, which counts for nothing where it is
    not."""
    base = {"backbone": "test_vit", "image_size": [64, 64], "seed": 0}
    base |= {"pretraining_recipe": "paper", "pretraining_epochs": 300}
    base |= {"masking": "attention", "mask_ratio": 0.3}
    suite = suite_with(varied("pretraining", "none", "apmask"))
    rows = [
        a_row(key=kind, settings={**base, "pretraining": kind}, changed={"pretraining": kind})
        for kind in ("none", "apmask")
    ]
    assert [line[0] for line in body(suite_table(rows, suite))] == ["none", "apmask"]
    other = {**rows[1]["settings"], "mask_ratio": 0.5}
    longer: Row = {**rows[1], "key": "longer", "image_auroc": 0.8, "settings": other}
    # Another pre-training is no further seed.
    each = suite_table([*rows, longer], suite).split("## ")[1:]
    assert [[line[:2] for line in body(text)] for text in each] == [
        [["none", "90.0"], ["apmask", "90.0"]],
        [["none", "90.0"], ["apmask", "80.0"]],
    ]


# Main tables of papers, methods compared, costs, HTML


def published(mean: float, **figures: float | None) -> Published:
    given = {
        line: {} if it is None else {"image_auroc": Figure(it)} for line, it in figures.items()
    }
    return Published(source="Theirs", figures=given, mean={"image_auroc": Figure(mean)})


def suite_of(**changes: Any) -> Suite:
    values: dict[str, Any] = {
        **{"name": "main", "title": "Main table", "source": "Table 1", "note": "Noted."},
        **{"data": "mvtec", "lines": ("bottle", "cable", "screw"), "metrics": ("image_auroc",)},
        "published": (published(90.1, bottle=90.0, cable=80.0, screw=None),),
        "entries": (Entry(method="knn", label="ours"),),
    }
    return suite_with(Comparison(**{**values, **changes}))


def of(data: str, value: float | None, seed: int = 0, **changes: Any) -> Row:
    row = a_row(data=data, seed=seed, image_auroc=value, **{"changed": {}, **changes})
    recipe = configs.to_dict(configure(row["method"], recipe=row["recipe"], shots=row.get("shots")))
    settings = {**recipe, **row["settings"], **row["changed"], "seed": seed}
    return {**row, "settings": settings, "key": "-".join(map(str, [data, seed, *changes.values()]))}


def test_categories_are_lines_and_systems_are_columns() -> None:
    rows = [of("bottle", 0.95), of("bottle", 0.97, 1), of("screw", 0.8), of("screw", 0.9, 1)]
    rows.append(of("gadget", 0.1))
    text = suite_table(rows, suite_of())
    head = "## Main table\n\nI. Published: Table 1.\n\n|  | Theirs | ours [1] | Status |"
    assert text.startswith(head)
    assert body(text) == [
        ["bottle", "90.0", "**96.0 ± 1.4**", "measured"],
        ["cable", "80.0", "–", "published"],
        ["screw", "–", "85.0 ± 7.1", "measured"],
        ["Mean", "90.1", "–", "published"],
        ["Mean of the 2 measured", "–", "90.5 ± 4.2", "measured"],
    ]
    conditions = "knn · recipe best · test_vit (feedbeef) · 32×48 · fp32 · CPU X · "
    assert f"\n\nNoted.\n\n- [1] {conditions}" in text
    assert "01234567 · seed 0, 1\n" in text
    assert "Out of reach: in no row" in text
    whole = body(suite_table([*rows, of("cable", 0.7)], suite_of()))
    assert whole[-1] == ["Mean", "90.1", "81.7", "measured"]  # of the seed that has all
    bare = body(suite_table([], suite_of()))
    assert [line[0] for line in bare if line[-1] == "out of reach"] == ["screw"]


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
        ([0.90, 0.96], [0.94, 0.95], Figure(80.0), [False, False, False]),  # spread of the second
        ([0.90, 0.90], [0.95, None], Figure(80.0), [False, False, False]),  # one seed, again
        (None, None, Figure(90.0), [False]),
    ],
)
def test_the_best_is_marked_only_beyond_what_is_known_of_the_spread(
    first: list[float] | None, second: list[float | None] | None, theirs: Figure, bold: list[bool]
) -> None:
    given = Published(source="Theirs", figures={"bottle": {"image_auroc": theirs}}, mean={})
    ours = (Entry(method="knn", label="a"), Entry(method="padim", label="b"))
    suite = suite_of(lines=("bottle",), published=(given,), entries=ours)
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
        of("bottle", 0.94, resolution=[64, 64], changed={"image_size": [64]}),
        of("bottle", 0.95, time_budget=3.0),
        of("bottle", 0.96, differs=["bottle: 1 of 209 training pictures"], precision="bf16"),
        of("bottle", 0.1, changed={"pooling": 5}),
        of("bottle", 0.1, shots=1),
        of("bottle", 0.1, anomaly_count=1),
        of("bottle", 0.1, changed={"layers": [2]}),
        of("bottle", 0.1, method="padim"),
        {**of("bottle", 0.1, changed={"pooling": 5}), "recipe": "paper"},
    ]
    text = suite_table(rows, suite_of())
    heads = "ours [1] | ours [2] | ours [3] | ours [4] | ours [5] †"
    assert text.splitlines()[4] == f"|  | Theirs | {heads} | Status |"
    bottle, _, screw, *_ = body(text)
    assert bottle == ["bottle", "90.0", "90.0", "92.0", "96.0 ‡", "94.0", "95.0", "measured"]
    assert screw[2:-1] == ["91.0", "–", "–", "–", "–"]
    assert "- [4] knn · recipe best · test_vit (feedbeef) · 64×64 · fp32" in text
    assert "- [5] knn · recipe best · budget 3 min ·" in text
    # Layers of another backbone are no ablation.
    layers = of("bottle", 0.5, changed={"backbone": "test_cnn", "layers": [1]})
    assert body(suite_table([layers], suite_of()))[0][2] == "50.0"


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
    shifted = {"none": {"episodic": {"by_group": better}}}
    text = suite_table([of("nih", 0.1, by_group=groups, shifted=shifted)], suite)
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
    text = suite_table([of("bottle", 0.9, votes=votes)], suite_of())
    assert "by majority vote: image AUROC 87.5, balanced accuracy 75.0" in text
    assert "vote" not in suite_table([of("bottle", 0.9)], suite_of())


def test_latency_stands_beside_the_published_one() -> None:
    figures = dict[str, dict[str, Figure]]({"bottle": {}, "cable": {}, "screw": {}})
    theirs = Published(source="Theirs", figures=figures, mean={}, latency_ms=480)
    suite = suite_of(published=(theirs,))
    rows = [of("bottle", 0.9), of("screw", 0.9, efficiency={"latency_p50_ms": 12.34})]
    line = body(suite_table(rows[1:], suite))[-1]
    assert line == ["Latency (ms)", "480", "12.3", "measured"]
    assert body(suite_table(rows, suite))[-1][2] == "–"  # not all tell


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
    suite = suite_with(FEW)
    rows = [of(data, it, shots=1) for data, it in (("bottle", 0.9), ("cable", 0.8), ("screw", 0.1))]
    rows += [of("bottle", 0.1), of("bottle", 0.7, shots=1, method="padim")]
    rows += [of("cable", 0.8, shots=1, method="padim", time_budget=1.0)]
    rows += [of("cable", 0.6, shots=1, method="padim")]
    text = suite_table(rows[:-2], suite)
    head = "|  | I | P | PRO | Seeds | I, published | Status |"
    assert text.startswith(f"## Few pictures: bottle alone\n\n{head}")
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
    bare = suite_of(source="", note="", metrics=("image_ap",), published=())
    main = suite_page([of("bottle", 0.9)], bare).sheets[0]
    assert (main.above, main.notes) == ("image_ap.", ())
    assert main.lines[0] == ("bottle", "80.0", "measured")
    own = Table(name="own", title="Own", data="mvtec", rows=(Entry(method="knn", label="ours"),))
    (few,) = suite_page([of("bottle", 0.9)], suite_with(own)).sheets
    assert few.notes == ()


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
    assert "No rows of demo" in html(suite_page([], suite_with()), title="x")


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

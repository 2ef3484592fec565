"""Main tables of papers, and methods compared."""

from __future__ import annotations

import pytest
from runs import body, of, suite_of, suite_table, suite_with, table

from blemish.bench.results import suite_page
from blemish.bench.results.rows import HALF_OFF
from blemish.bench.suites import Entry, Figure, Published, Table


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

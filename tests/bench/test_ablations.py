"""Tables of a suite that vary settings."""

from __future__ import annotations

from typing import Any

from runs import a_row, body, suite_table, suite_with, table, varied

from blemish.bench.results import Row
from blemish.bench.suites import Entry, Suite

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

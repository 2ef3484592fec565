"""The pages of docs/: docs/results/ is what the committed rows make, and what the others tell to
type exists."""

from __future__ import annotations

import importlib.util
import json
import re
import sys
from itertools import pairwise
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from questions import QUESTIONS
from questions.kinds import kind_of
from questions.matrix import COLUMNS, LINES
from questions.question import NOTHING, Measured, in_order

from blemish.bench import suites
from blemish.bench.results.overview import alike, asked
from blemish.bench.suites import Comparison
from blemish.cli import app
from blemish.data.layouts import OFFICIAL

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
# Pages of the site that `website/hooks.py` makes.
MADE = {
    *(ROOT / "docs" / name for name in ("CHANGELOG.md", "CONTRIBUTING.md", "SECURITY.md")),
    ROOT / "docs" / "reference" / "methods.md",
}
REPRODUCE = ROOT / "docs" / "reproduce.md"


@pytest.fixture(scope="module")
def script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("page", ROOT / "benchmarks" / "page.py")
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # its dataclasses look themselves up there
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def row(script: ModuleType) -> dict[str, Any]:
    """Of kNN on bottle, one seed."""
    rows = script.read(script.RESULTS / "memory.jsonl")
    return next(row for row in rows if (row["method"], row["data"]) == ("knn", "bottle"))


@pytest.fixture(scope="module")
def draw(script: ModuleType) -> dict[str, Any]:
    """Of ten labelled defects of brain MRI."""
    rows = script.read(script.RESULTS / "weak.jsonl")
    wanted = ("brain_mri", 10, {})
    return next(r for r in rows if (r["data"], r["anomaly_count"], r["changed"]) == wanted)


def like(row: dict[str, Any], key: str, **changes: Any) -> dict[str, Any]:
    return {**row, "key": key, "pixel_auroc": None, "compared_at": 256, **changes}


def matrix(script: ModuleType, rows: list[dict[str, Any]]) -> str:
    text: str = script.pages({"rows.jsonl": rows})["coverage.md"]
    return text


def cells(text: str, line: str) -> list[str]:
    """Of the first table line that starts so, the others."""
    found = next(each for each in text.splitlines() if each.startswith(f"| {line} |"))
    return [cell.strip() for cell in found.split("|")[2:-1]]


def test_the_page_is_what_the_rows_make_and_a_row_that_it_does_not_have_is_noticed(
    script: ModuleType, row: dict[str, Any], tmp_path: Path
) -> None:
    script.main(["--check"])  # the committed pages are what the committed rows make
    pages = tmp_path / "pages"
    # The rest says the same of any rows.
    (tmp_path / "memory.jsonl").write_bytes((script.RESULTS / "memory.jsonl").read_bytes())
    arguments = ["--results", str(tmp_path), "--output", str(pages)]
    with pytest.raises(SystemExit, match="not what the rows make"):
        script.main(["--check", *arguments])
    assert not pages.exists()
    script.main(arguments)
    script.main(["--check", *arguments])
    (pages / "unasked.md").write_text("# Unasked\n")
    with pytest.raises(SystemExit, match=r"unasked\.md: no question has this page"):
        script.main(["--check", *arguments])
    script.main(arguments)
    assert not (pages / "unasked.md").exists()
    with (tmp_path / "memory.jsonl").open("a") as file:
        file.write(json.dumps(like(row, "another", seed=1, image_auroc=0.5)) + "\n")
    with pytest.raises(SystemExit, match=r"\.md: is not what the rows make"):
        script.main(["--check", *arguments])


def test_the_tables_of_the_readme_are_those_of_the_page(script: ModuleType) -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    page = (script.PAGES / "equal.md").read_text(encoding="utf-8")
    assert script.with_measured(readme, page) == readme
    first = "12.3 ± 0.4 / 56.7 ± 0.8 / 9.0 ± 0.1 (3)"
    line = f"| `patchcore` | {first} | {' | '.join(['45.6 (1)'] * 5)} | – | 11 |"
    other = re.sub(r"^\| `patchcore` \|.*$", line, page, count=1, flags=re.M)
    shown = script.with_measured(readme, other).splitlines()
    assert f"| `patchcore` | 12.3 ± 0.4 / 9.0 ± 0.1 (3) | {' | '.join(['45.6 (1)'] * 5)} |" in shown
    with pytest.raises(ValueError, match="could show: ## With 10"):
        script.with_measured(readme, page.replace("## With 10", "## Of 10"))
    with pytest.raises(ValueError, match="no place for the table"):
        script.with_measured("# blemish", page)


def test_every_page_answers_and_the_index_leads_there(script: ModuleType) -> None:
    index = (script.PAGES / "index.md").read_text(encoding="utf-8")
    for question in QUESTIONS:
        text = (script.PAGES / f"{question.name}.md").read_text(encoding="utf-8")
        _, title, answer, *_ = text.split("\n\n")
        assert title == f"# {question.title}"
        assert title.endswith("?")
        assert f"[**{question.title}**]({question.name}.md) {answer}\n" in index
        assert answer != NOTHING
        assert answer.endswith(".")


def test_every_row_of_the_bench_stands_on_the_page_of_its_kind(script: ModuleType) -> None:
    files = {file.name: script.read(file) for file in script.RESULTS.glob("*.jsonl")}
    pages = script.pages(files)
    good = Measured(files).good
    kinds = {kind_of(row) for row in good}
    assert kinds == {"methods", "few", "defects", "pretraining", "settings"}
    for *_, row in alike(good):
        rows = pages[f"{kind_of(row)}.md"].split("\n## Rows")[1]
        assert f"| {row['method']} | {asked(row)}" in rows, row["key"]


def test_labels_pictures_and_settings_decide_what_a_row_answers(row: dict[str, Any]) -> None:
    assert kind_of(row) == "methods"
    assert kind_of({**row, "anomaly_count": 1, "shots": 1}) == "defects"
    assert kind_of({**row, "method": "lda"}) == "defects"
    assert kind_of({**row, "shots": 1}) == "few"
    settings = {**row["settings"], "pretraining": "apmask"}
    assert kind_of({**row, "settings": settings}) == "pretraining"
    settings = {**row["settings"], "top_fraction": 0.5}
    assert kind_of({**row, "settings": settings}) == "settings"


def test_lines_are_sorted_by_their_numbers() -> None:
    assert sorted([("a", "1,000"), ("a", "20"), ("a", "3.5")], key=in_order) == [
        *(("a", "3.5"), ("a", "20"), ("a", "1,000"))
    ]


def test_answers_are_computed_from_the_rows(script: ModuleType, row: dict[str, Any]) -> None:
    best = like(row, "0", image_auroc=0.9)
    other = like(row, "1", image_auroc=0.8, method="padim")
    pages = script.pages({"rows.jsonl": [best, other]})
    assert "is that of `knn` on bottle (90.0); settings" in pages["methods.md"]
    pages = script.pages({"rows.jsonl": [best, {**other, "image_auroc": 0.95}]})
    assert "is that of `padim` on bottle (95.0); settings" in pages["methods.md"]
    told = {"answers": 10, "clients": 2, "date": "2026", "commit": None, "dirty": False}
    told |= {"method": "knn", "backbone": "b", "image_size": 64, "data": None, "store": True}
    told |= {"seconds": 1.0, "wrong": 1, "lost": 2, "images_per_second": 1.0}
    told |= {"throughput_ratio": 0.5, "processor_ratio": 0.25, "p95_ratio": 1.0}
    told |= {"memory_mib": {"first_third": 1, "last_third": 1, "most": 1}, "device": row["device"]}
    pages = script.pages({"serving.jsonl": [told, {**told, "processor_ratio": 0.75}]})
    assert "Of 20 answers 2 were wrong and 4 lost, at 0.25 to 0.75 of the" in pages["service.md"]


def test_a_damaged_row_is_named(script: ModuleType, tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_text('{"what": "help"}\n{"what":\n')
    with pytest.raises(SystemExit, match=r"rows\.jsonl, line 2"):
        script.main(["--results", str(tmp_path), "--output", str(tmp_path / "pages")])


def test_without_rows_all_is_a_gap(script: ModuleType) -> None:
    pages = script.pages({})
    count = len(LINES) * len(COLUMNS)
    assert f"{count} of the {count} cells above" in pages["coverage.md"]
    assert cells(pages["coverage.md"], "`knn`") == ["not measured"] * len(COLUMNS)
    answers = [text.split("\n\n")[2] for name, text in pages.items() if name != "index.md"]

    assert answers[:-1] == [NOTHING] * (len(QUESTIONS) - 1)
    assert answers[-1] == f"0 of the {count} cells of methods and data sets below are measured."


def test_seeds_are_averaged_and_a_reduced_schedule_is_flagged(
    script: ModuleType, row: dict[str, Any]
) -> None:
    rows = [like(row, "0", image_auroc=0.9), like(row, "1", seed=1, image_auroc=0.8)]
    assert cells(matrix(script, rows), "`knn`")[0] == "85.0 ± 7.1 (2)"
    # This one was measured while masks lay half a pixel off.
    assert cells(matrix(script, [row]), "`knn`")[0].endswith("(1)§")
    less = {"time_budget": 3.0, "differs": ["bottle: 200 of 209 training pictures"]}
    part = [{**each, **less} for each in rows]
    assert cells(matrix(script, part), "`knn`")[0] == "85.0 ± 7.1 (2)†‡"


def test_the_setting_nearest_to_the_recipe_stands_in_the_matrix(
    script: ModuleType, row: dict[str, Any]
) -> None:
    plain = like(row, "0", image_auroc=0.8)
    settings = {**row["settings"], "layers": [2]}
    tuned = like(row, "1", image_auroc=0.9, changed={"top_fraction": 0.1}, settings=settings)
    few = like(row, "2", image_auroc=0.7, shots=1)
    failed = like(row, "3", status="failed", error="no memory", image_auroc=1.0)
    pages = script.pages({"rows.jsonl": [few, tuned, plain, failed]})
    assert cells(pages["coverage.md"], "`knn`")[0] == "80.0 (1)"
    assert "no memory" in pages["methods.md"]


def test_of_the_same_runs_the_newest_counts_in_any_order(
    script: ModuleType, row: dict[str, Any]
) -> None:
    rows = [
        like(row, "0", date=f"202{year}-01-01T00:00:00+00:00", image_auroc=year / 10)
        for year in (6, 7)
    ]
    texts = [script.pages({"rows.jsonl": each}) for each in (rows, rows[::-1])]
    assert texts[0] == texts[1]
    assert cells(texts[0]["coverage.md"], "`knn`")[0] == "70.0 (1)"


def test_draws_of_defects_are_a_line_of_the_matrix_and_a_table(
    script: ModuleType, draw: dict[str, Any]
) -> None:
    key = draw["key"].replace("[10, 0]", "[10, 1]")
    other = {**draw, "draw": 1, "key": key, "image_auroc": 0.5}
    pages = script.pages({"weak.jsonl": [{**draw, "image_auroc": 0.9}, other]})
    column = list(COLUMNS).index("brain MRI")
    assert cells(pages["coverage.md"], "`lda`, M = 10")[column] == "70.0 ± 28.3 (2)"
    told = ["224×224", "10", "best", "2", "70.0 ± 28.3", "–", "–", "50.0", draw["commit"][:8]]
    assert cells(pages["defects.md"], "brain_mri")[:9] == told


def test_pictures_whole_and_in_tiles_are_a_table_and_no_speeds(
    script: ModuleType, row: dict[str, Any]
) -> None:
    whole: dict[str, Any] = {
        **{"what": "tiles", "date": "2026-01-01", "data": "plate", "picture_size": [4096, 2048]},
        **{"image_size": 448, "tile": None, "overlap": None, "fitted": 6, "good": 4, "pictures": 9},
        **{"image_auroc": 0.5, "pixel_auroc": None, "found": 1, "defects": 15, "iou": 0.25},
        **{"false_per_picture": 0.5, "rate": 0.2, "seconds_per_picture": 2.0},
        **{"megapixels_per_second": 0.125, "peak_memory_mib": 1000.4, "method": "knn"},
        **{"backbone": "test_vit", **{key: row[key] for key in ("commit", "dirty", "device")}},
    }
    tiled = {**whole, "tile": 512, "overlap": 0.25, "found": 15, "speed": {"ratio": 0.96}}
    older = {**tiled, "date": "2025-01-01", "found": 2}
    pages = script.pages({"tiles.jsonl": [tiled, whole, older]})
    text = pages["large.md"]
    assert "on plate 15 of 15 in tiles and 1 of 15 whole." in text
    lines = [line for line in text.splitlines() if line.startswith("| plate |")]
    first, second = ([cell.strip() for cell in line.split("|")[2:-1]] for line in lines)
    assert first[:6] == ["4096×2048", "whole at 448²", "6, 4 + 5", "50.0", "–", "1 of 15"]
    assert first[6:13] == ["0.50", "25.0", "20 %", "2.00", "0.12", "–", "1000"]
    assert second[1] == "tiles of 512², 25 % in common, at 448²"
    assert (second[5], second[11]) == ("15 of 15", "0.96")
    elsewhere = [it for name, it in pages.items() if name not in ("large.md", "index.md")]
    assert "plate" not in "".join(elsewhere)


def test_every_table_of_every_suite_has_its_command_and_its_hours() -> None:
    text = REPRODUCE.read_text(encoding="utf-8")
    commands = re.findall(r"blemish bench (\S+) --only (\S+) --data ROOT", text)
    hours = re.findall(
        r"^\| `(\S+)` \| `(\S+)` \| (.+?) \| (\d+) \| [\d.]+", text, flags=re.MULTILINE
    )
    tables = {
        (name, table.name): table for name in suites.names() for table in suites.read(name).tables
    }
    assert sorted(commands) == sorted(tables)
    assert sorted(line[:2] for line in hours) == sorted(tables)
    for name, only, title, runs in hours:
        table = tables[name, only]
        official = OFFICIAL[table.data]
        one = table.multi_class or (isinstance(table, Comparison) and table.by == "group")
        assert title in official.title, (name, only)
        models = 1 if one else len(official.categories)
        assert int(runs) == len(table.entries) * models, (name, only)


def test_what_the_pages_tell_to_type_exists() -> None:
    group = app.command_tree()
    seen = 0
    for page in PAGES:
        for line in re.findall(
            r"^    (?:torchrun .* -m )?(blemish .*(?:\\\n.*)*)",
            page.read_text(),
            flags=re.MULTILINE,
        ):
            command: Any = group
            words = line.replace("\\\n", " ").split("#")[0].split()
            for word in words[1:3]:
                command = getattr(command, "commands", {}).get(word, command)
            known = {
                name for each in command.params for name in (*each.opts, *each.secondary_opts)
            } | {"--help"}
            unknown = {word.split("=")[0] for word in words if word.startswith("--")} - known
            assert command is not group, f"{page.name}: {line}"
            assert not unknown, f"{page.name}: {line}"
            for option, value in pairwise(words):
                if option == "--suite":
                    suites.read(value)
            seen += 1
    assert seen > 40


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_between_pages_lead_somewhere(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    linked = [target for target in re.findall(r"\]\(([^)#]+)[^)]*\)", text) if "://" not in target]
    named = re.findall(r"`((?:docs|benchmarks)/[\w./-]+\.(?:md|py|jsonl))`", text)
    places = [(page.parent / target).resolve() for target in linked]
    assert [place for place in places if not place.exists() and place not in MADE] == []
    assert [target for target in named if not (ROOT / target).exists()] == []


def test_the_tests_that_are_named_exist() -> None:
    named = re.findall(
        r"`(tests/[\w/]+\.py)::(\w+)`", (ROOT / "docs" / "security.md").read_text(encoding="utf-8")
    )
    assert len(named) > 10
    for path, name in named:
        assert f"def {name}(" in (ROOT / path).read_text(encoding="utf-8"), (path, name)


def test_the_robustness_page_is_what_the_rows_make() -> None:
    from fuzzing import page

    assert page.write(ROOT / "benchmarks" / "results" / "robustness.jsonl", check=True) == 0


def test_pretraining_is_compared_with_the_same_training_without_it(script: ModuleType) -> None:
    rows = script.read(script.RESULTS / "pretraining.jsonl")

    def told(*more: dict[str, Any]) -> str:
        text: str = script.pages({"rows.jsonl": [*rows, *more]})["pretraining.md"]
        return text.split("\n\n")[2]

    def other(row: dict[str, Any], **changes: Any) -> dict[str, Any]:
        settings = {**row["settings"], **changes.pop("settings", {})}
        key = f"{row['key']}-{len(str(changes))}"
        return {**row, "key": key, "settings": settings, "image_auroc": 0.5, **changes}

    plain = [row for row in rows if row["settings"]["pretraining"] == "none"]
    pretrained = [row for row in rows if row["settings"]["pretraining"] == "apmask"]
    first = told()
    assert first.startswith("3 minutes of APMask before `guided` ")
    for changes in (
        {"data": "bottle"},
        {"time_budget": 12.0},
        {"resolution": [224, 224]},
        {"backbone": "dinov2_vits14"},
        {"weights": {**plain[0]["weights"], "sha256": "0" * 64}},
        {"shots": 4},
    ):
        for kind in (plain, pretrained):  # alone, either has nothing to be compared with
            assert told(*(other(row, **changes) for row in kind)) == first
    one = [other(pretrained[0], data="bottle"), other(plain[0], data="bottle")]
    assert told(*one) == first  # fewer rows
    more = [
        other(row, data="screw", time_budget=minutes, seed=seed)
        for kind, minutes in ((plain, 4.0), (pretrained, 8.0))
        for row in kind
        for seed in range(7)
    ]
    for number, row in enumerate(more):
        row["key"] = f"made-{number}"
    assert told(*more).startswith("4 minutes of APMask before `guided` gain no detection on screw")
    swav = other(pretrained[0], settings={"pretraining": "swav"})
    said = "3 minutes of APMask or `swav` change image AUROC and AUPRO, in %, from "
    assert told(swav).startswith(f"Before `guided` on magnetic_tile {said}")
    assert " to `swav`, masking `attention` 50.0 and " in told(swav)

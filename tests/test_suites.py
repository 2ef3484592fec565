from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import pytest

from blemish import benchmark, cli, suites
from blemish.benchmark import METRICS, Run
from blemish.errors import ConfigError
from blemish.fitting import configure
from blemish.results import Row
from blemish.suites import Entry

OWN = """
title = "Neighbours"
method = "knn"
recipe = "best"

[[table]]
name = "size"
title = "Size of the bank"
rows = [
  { label = "small", settings = { bank_size = 10 } },
  { label = "large", settings = { bank_size = 20 }, published = { image_auroc = 99.1 } },
]

[[table]]
name = "layers"
title = "Layers"
rows = [{ label = "last", settings = { layers = [4] } }, { label = "both", settings = { layers = [2, 4] } }]
"""


@pytest.fixture
def own(tmp_path: Path) -> Path:
    path = tmp_path / "own.toml"
    path.write_text(OWN)
    return path


@pytest.mark.parametrize("name", suites.names())
@pytest.mark.parametrize("recipe", [None, "best"])
def test_every_line_of_every_suite_can_be_measured(name: str, recipe: str | None) -> None:
    suite = suites.read(name)
    for entry in suite.entries(recipe):
        configure(entry.method, recipe=entry.recipe, values=entry.settings)
    for table in suite.tables:
        for row in table.rows:
            assert row.published.keys() <= set(METRICS)
            assert all(50 < figure <= 100 for figure in row.published.values())  # per cent, not fractions
        assert table.source or not any(row.published for row in table.rows), table.name


def test_the_ablations_are_those_of_the_paper() -> None:
    tables = {table.name: table for table in suites.read("agpnet-ablations").tables}
    assert list(tables) == ["noise", "intensity", "attention", "teacher", "layers", "backbone"]
    assert [len(table.rows) for table in tables.values()] == [11, 4, 3, 2, 4, 4]
    for table in tables.values():  # every table of the paper holds its full model, with the same figures
        assert {"image_auroc": 98.7, "pixel_auroc": 98.0} in [row.published for row in table.rows], table.name
    assert [row.label for row in tables["noise"].rows if not row.published] == [
        "none / shuffled",
        "shuffled / shuffled",
    ]


def test_the_ablations_of_pre_training_are_those_of_the_paper() -> None:
    suite = suites.read("apmask-ablations")
    masking, ratio, objective = suite.tables
    assert [table.name for table in suite.tables] == ["masking", "ratio", "objective"]
    figures = {row.label: (row.published.get("image_auroc"), row.published.get("pixel_auroc")) for row in masking.rows}
    assert figures == {
        "without pre-training": (None, None),
        "none": (95.1, 96.2),
        "random": (96.6, 97.1),
        "block": (None, None),
        "attention": (98.3, 98.2),
    }
    assert [row.settings["masking"] for row in masking.rows[1:]] == ["none", "random", "block", "attention"]
    assert {(row.settings["masking"], row.settings["mask_ratio"]) for row in ratio.rows} == {
        (masking, share) for masking in ("attention", "random", "block") for share in (0.15, 0.3, 0.5)
    }
    published = {row.label: row.published["image_auroc"] for row in objective.rows if row.published}
    assert published == {"DINO": 97.0, "iBOT": 97.1, "MSN": 97.9, "APMask": 98.3}
    assert [row.label for row in objective.rows if not row.settings] == ["iBOT", "MSN"]
    assert {entry.label for entry in suite.entries()}.isdisjoint({"iBOT", "MSN"})
    runs = benchmark.plan(suite.entries(), {"part": Path("part")}, [0])
    assert len(runs) == 13  # lines that several tables have are measured once
    asked = [one.config.pretraining_config for one in runs]
    assert [config.objective for config in asked if config] == ["clusters"] * 10 + ["dino"] * 2
    assert asked.count(None) == 1


def test_a_file_of_ones_own(own: Path) -> None:
    suite = suites.read(own)
    assert (suite.name, suite.title) == ("own", "Neighbours")
    assert [table.factors for table in suite.tables] == [{"bank_size"}, {"layers"}]
    small = Entry(method="knn", recipe="best", label="small", settings={"bank_size": 10})
    assert suite.entries()[0] == small
    assert {entry.recipe for entry in suite.entries("paper")} == {"paper"}
    assert [table.name for table in suite.only(["layers"]).tables] == ["layers"]
    with pytest.raises(ConfigError, match="did you mean 'layers'"):
        suite.only(["layer"])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("title = ", "is not a suite"),
        ("title = 'x'", "'method' is missing"),
        (OWN.replace("label", "lable"), "lable"),
        (OWN.replace('"layers"', '"size"'), "the same name"),
        (OWN.replace('"large"', '"small"'), "the same label"),
        (OWN.replace("bank_size = 20", "bank = 20"), "table size: .* the same settings"),
        (OWN.replace("settings = { bank_size = 10 }", "note = 'x'"), "note"),
        (OWN.replace(", settings = { bank_size = 10 }", ""), "table size: a row has neither settings nor published"),
        (
            OWN.replace("settings = { layers = [4] }", "settings = {}").replace(
                "settings = { layers = [2, 4] }", "settings = {}"
            ),
            "table layers: .* the same settings",
        ),
        (OWN.replace("table", "tables"), "'table' is missing"),
    ],
)
def test_a_file_that_is_no_suite_is_said(own: Path, text: str, message: str) -> None:
    own.write_text(text)
    with pytest.raises(ConfigError, match=message):
        suites.read(own)


def test_a_suite_that_is_not_there_is_said(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="did you mean 'agpnet-ablations'"):
        suites.read("agpnet-ablation")
    with pytest.raises(ConfigError, match="cannot be read"):
        suites.read(tmp_path / "none.toml")


# The commands


class Bench:
    """`blemish bench` with runs that answer at once; keeps those that were made."""

    def __init__(self, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
        self.made: list[Run] = []
        self.capsys = capsys
        monkeypatch.setattr(benchmark, "_launch", self.launch)

    def launch(self, one: Run, *_: object) -> Row:
        self.made.append(one)
        settings = benchmark.configs.to_dict(one.config)
        row = {
            **benchmark._heading(one, "ok"),
            **dict.fromkeys(METRICS, 0.9),
            "settings": settings,
            "precision": "fp32",
        }
        row |= {"resolution": [32, 32], "backbone": one.config.backbone, "weights": {"source": "x", "sha256": ""}}
        row |= {"device": {"type": "cpu", "name": "CPU X", "threads": 2}, "schedule": "", "peak_gpu_memory_mib": None}
        return {**row, "seconds_to_fit": 1.0, "images_per_second": 1.0, "peak_memory_mib": 1.0}

    def __call__(self, *arguments: object) -> tuple[int, str, str]:
        status = cli.main(["bench", *map(str, arguments)])
        return (status, *self.capsys.readouterr())


@pytest.fixture
def bench(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Bench:
    return Bench(capsys, monkeypatch)


def of(own: Path, mvtec: Path, tmp_path: Path) -> Sequence[object]:
    here = ("--device", "cpu", "--precision", "fp32")
    return ("--suite", own, "--data", mvtec, "--results", tmp_path / "rows.jsonl", *here)


def test_a_suite_is_measured_and_shown(bench: Bench, own: Path, mvtec: Path, tmp_path: Path) -> None:
    status, out, err = bench(*of(own, mvtec, tmp_path), "--seeds", "0,1", "--backbone", "test_vit", "--shots", "2")
    assert (status, len(bench.made)) == (0, 8)
    assert "## Size of the bank: part\n\nknn · 2-shot · 32×32 · test_vit" in out
    assert "| large | 90.0 ± 0.0 | 90.0 ± 0.0 | 90.0 ± 0.0 | 2 | 99.1 |" in out
    assert "0 of 8: knn on part, seed 0 · bank_size=10 · 2-shot" in err
    assert {one.config.backbone for one in bench.made} == {"test_vit"}
    assert bench("table", tmp_path / "rows.jsonl", "--suite", own)[1] == out
    assert "| knn | bank_size=10 · 2-shot |" in bench("table", tmp_path / "rows.jsonl")[1]


def test_a_line_that_is_only_published_is_only_shown(bench: Bench, own: Path, mvtec: Path, tmp_path: Path) -> None:
    line = '  { label = "elsewhere", published = { image_auroc = 97.5 } },\n'
    own.write_text(OWN.replace('  { label = "large"', f'{line}  {{ label = "large"'))
    status, out, _ = bench(*of(own, mvtec, tmp_path), "--only", "size")
    assert (status, len(bench.made)) == (0, 2)
    assert "| elsewhere | – | – | – | 0 | 97.5 |" in out


def test_a_dry_run_lists_what_is_left(bench: Bench, own: Path, mvtec: Path, tmp_path: Path) -> None:
    bench(*of(own, mvtec, tmp_path), "--only", "size")
    assert len(bench.made) == 2
    status, out, _ = bench(*of(own, mvtec, tmp_path), "--set", "bank_size=10", "--dry-run")
    assert (status, len(bench.made)) == (0, 2)  # the line's own setting wins where a table varies it
    assert out.splitlines() == [
        "knn on part, seed 0 · layers=4 bank_size=10",
        "knn on part, seed 0 · layers=2,4 bank_size=10",
        "2 runs to make, 2 made already",
    ]
    status, out, _ = bench("--suite", own, "--data", mvtec, "--dry-run", "--json")
    assert [values["settings"] for values in json.loads(out)][:2] == [{"bank_size": 10}, {"bank_size": 20}]
    assert len(json.loads(out)) == 4


def test_the_suites_are_listed(bench: Bench) -> None:
    status, out, _ = bench("--list")
    assert status == 0
    assert "agpnet-ablations" in out
    assert "AGPNet, Table 5" in out
    assert json.loads(bench("--list", "--json")[1])[0]["name"] == "agpnet-ablations"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--methods", "knn"], "--data and --results"),
        (["--methods", "knn", "--suite", "agpnet-ablations", "--data", "x", "--dry-run"], "one of them"),
        (["--methods", "knn", "--only", "noise", "--data", "x", "--dry-run"], "there is no --suite"),
        (["--suite", "agpnet-ablations", "--only", "nose", "--data", "x", "--dry-run"], "did you mean 'noise'"),
    ],
)
def test_wrong_usage_is_said(bench: Bench, arguments: list[str], said: str) -> None:
    status, out, err = bench(*arguments)
    assert (status, out) == (2, "")
    assert said in err

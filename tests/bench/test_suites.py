from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean

import pytest
from runs import a_row

from blemish import cli
from blemish.bench import run as benchmark
from blemish.bench import suites
from blemish.bench.plan import Run, plan
from blemish.bench.results import Row
from blemish.bench.run import METRICS
from blemish.bench.suites import Comparison, Entry, Figure, Table
from blemish.data.layouts import OFFICIAL
from blemish.detector.fit import configure
from blemish.errors import ConfigError
from blemish.methods.objectives import objective_class, objective_of

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
rows = [
  { label = "last", settings = { layers = [4] } },
  { label = "both", settings = { layers = [2, 4] } },
]
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
        assert table.data in OFFICIAL
        if isinstance(table, Comparison):
            continue
        for row in table.rows:
            assert row.published.keys() <= set(METRICS)
            assert all(50 < it <= 100 for it in row.published.values())  # per cent, not fractions
        assert table.source or not any(row.published for row in table.rows), table.name


def test_maps_and_masks_are_compared_where_the_paper_does(mvtec: Path) -> None:
    """APMask's paper averages maps "resized to the original test image resolution"; AGPNet's does
    not say."""
    for name in suites.names():
        suite = suites.read(name)
        expected = None if name.startswith(("apmask", "guided")) else 256
        assert {table.compared_at for table in suite.tables} == {expected}, name
        assert {entry.compared_at for entry in suite.entries()} == {expected}, name
    (nih,) = (table for table in suites.read("apmask").tables if table.name == "nih")
    assert isinstance(nih, Comparison)
    assert nih.spread == "standard error"
    entries = [Entry(method="knn", compared_at=None), Entry(method="knn")]
    original, usual = plan(entries, {"part": mvtec}, [0])
    assert (original.compared_at, usual.compared_at) == (None, 256)
    assert original.key != usual.key


COMPARISONS = {
    f"{name} {table.name}": table
    for name in suites.names()
    for table in suites.read(name).tables
    if isinstance(table, Comparison)
}


@pytest.mark.parametrize("comparison", COMPARISONS.values(), ids=list(COMPARISONS))
def test_published_means_are_those_of_the_published_figures(comparison: Comparison) -> None:
    """Or the note says that they are not: a slip in a figure shows."""
    assert comparison.source
    said = comparison.note.partition("The printed mean")[2]
    official = OFFICIAL[comparison.data].categories
    assert comparison.by == "group" or set(comparison.lines) == set(official)
    for system in comparison.published:
        for metric in comparison.metrics:
            given = [system.figures[line].get(metric) for line in comparison.lines]
            known = [figure.value for figure in given if figure]
            assert all(20 < value <= 100 for value in known)
            if len(known) == len(comparison.lines) and metric in system.mean:
                close = abs(fmean(known) - system.mean[metric].value) <= 0.06
                assert close or system.source in said, (system.source, metric, fmean(known))


ALL = ("image_auroc", "pixel_auroc", "aupro")


@pytest.mark.parametrize(
    ("comparison", "source", "line", "figures"),
    [
        ("guided mvtec", "Guided, adapting", "screw", {"image_auroc": 96.5, "pixel_auroc": 99.3}),
        ("guided mvtec", "FPI", "carpet", {"image_auroc": 56.0, "pixel_auroc": 70.8}),
        ("guided nih", "Guided, adapting", "female", {"pixel_auroc_anomalous": (72.7, 0.7)}),
        ("apmask mvtec", "APMask", "zipper", {"image_auroc": 99.7, "pixel_auroc": 98.9}),
        ("apmask mvtec", "RIAD", "cable", {"pixel_auroc": 84.2}),
        ("apmask nih", "PII", "male", {"pixel_auroc_anomalous": (65.2, 0.9)}),
        ("agpnet mvtec", "AGPNet", "bottle", dict(zip(ALL, (100.0, 99.1, 94.6), strict=True))),
        (
            "agpnet visa-multi",
            "UniAD",
            "pipe_fryum",
            dict(zip(ALL, (94.7, 98.9, 91.5), strict=True)),
        ),
        ("agpnet mvtec-multi", "DiAD", "bottle", {"image_auroc": 99.7, "pixel_auroc": 98.4}),
        ("agpnet mvtec", "DeSTSeg", "wood", {"pixel_auroc": 97.7}),
        ("agpnet mvtec3d-multi", "UniAD", "bagel", {}),
        ("atacnet mvtec-10", "ATAC-Net", "metal_nut", {"image_auroc": 100.0}),
        ("atacnet mvtec-1", "DevNet", "screw", {"image_auroc": 39.9}),
        ("atacnet mvtec-unsupervised", "PatchCore", "screw", {"image_auroc": 96.0}),
    ],
)
def test_figures_stand_in_their_columns(
    comparison: str, source: str, line: str, figures: dict[str, float | tuple[float, float]]
) -> None:
    (system,) = (system for system in COMPARISONS[comparison].published if system.source == source)
    wanted = {name: it if isinstance(it, tuple) else (it, None) for name, it in figures.items()}
    assert {name: (it.value, it.spread) for name, it in system.figures[line].items()} == wanted


def test_the_tables_of_the_papers() -> None:
    assert list(COMPARISONS) == [
        *("agpnet mvtec-multi", "agpnet mvtec", "agpnet visa-multi", "agpnet mvtec3d-multi"),
        *("apmask mvtec", "apmask nih", "atacnet mvtec-10", "atacnet mvtec-1"),
        *("atacnet mvtec-unsupervised", "guided mvtec", "guided nih"),
    ]
    several = [name for name, it in COMPARISONS.items() if it.multi_class]
    assert several == [f"agpnet {name}-multi" for name in ("mvtec", "visa", "mvtec3d")]
    assert COMPARISONS["guided mvtec"].entries[0].adapt == ("online",)
    assert {entry.anomaly_count for entry in COMPARISONS["atacnet mvtec-1"].entries} == {1}
    unsupervised = COMPARISONS["atacnet mvtec-unsupervised"].published
    assert {system.source: system.latency_ms for system in unsupervised} == {
        **{"Patch-SVDD": 480, "SPADE": 339, "PaDiM": 319},
        **{"PatchCore": 225, "MemSeg": 32, "ATAC-Net": 29},
    }
    few = suites.read("agpnet").only(["few-shot"]).tables[0]
    assert isinstance(few, Table)
    assert [entry.shots for entry in few.entries] == [1] * 4 + [2] * 5 + [4] * 5
    baselines = [entry for entry in few.entries if entry.method in ("padim", "patchcore")]
    assert [(entry.method, entry.recipe, entry.shots) for entry in baselines] == [
        *(("patchcore", "paper", 1), ("patchcore", "best", 1)),
        *[
            (*named, shots)
            for shots in (2, 4)
            for named in (("padim", "paper"), ("patchcore", "paper"), ("patchcore", "best"))
        ],
    ]
    published = {row.label: row.published for row in few.rows}
    assert published["AGPNet, 4-shot"] == {"image_auroc": 95.2, "pixel_auroc": 97.3}
    assert published["PatchCore, 1-shot"] == {"image_auroc": 83.4, "pixel_auroc": 92.0}
    brain, head = suites.read("atacnet").only(["brain-mri", "head-ct"]).tables
    assert isinstance(brain, Table)
    assert isinstance(head, Table)
    assert (brain.data, head.data) == ("brain_mri", "head_ct")
    assert brain.rows[4].published == {"image_auroc": 97.9}
    assert head.rows[-2].published == {"image_auroc": 86.4}
    costs = suites.read("agpnet").efficiency
    assert costs is not None
    assert [
        (it.label, it.learnable_parameters, it.flops, it.images_per_second) for it in costs.rows
    ][::4] == [("DRAEM", 97.42, 198.15, 95.17), ("AGPNet", 4.42, 5.63, 326.65)]


@pytest.mark.parametrize(
    ("comparison", "simulators"),
    [
        ("guided mvtec", ["cutpaste-3way", "fpi", "pii", "nsa"]),
        ("guided nih", ["cutpaste", "fpi"]),
        ("apmask mvtec", ["cutpaste-3way", "nsa"]),
        ("apmask nih", ["cutpaste", "fpi", "pii"]),
    ],
)
def test_simulators_that_a_table_names_are_measured_in_our_learner(
    comparison: str, simulators: list[str]
) -> None:
    table = COMPARISONS[comparison]
    lines = [entry for entry in table.entries if "simulators" in entry.settings]
    assert [tuple(entry.settings["simulators"]) for entry in lines] == [(it,) for it in simulators]
    (learner, *_) = (it for it in table.entries if it.recipe == lines[0].recipe)
    for entry, run in zip(lines, plan(lines, {"part": Path("part")}, [0]), strict=True):
        assert (entry.method, entry.recipe) == ("guided", learner.recipe)
        assert list(run.config.for_pictures(x_rays=True).simulators) == entry.settings["simulators"]
        assert any(entry.label.endswith(system.source) for system in table.published)


@pytest.mark.parametrize("comparison", COMPARISONS)
def test_patchcore_and_padim_are_measured_by_their_paper_where_they_are_named(
    comparison: str,
) -> None:
    table = COMPARISONS[comparison]
    named = {system.source.lower() for system in table.published} & {"patchcore", "padim"}
    if comparison.endswith(" nih"):
        named |= {"patchcore", "padim"}
    for method in named:
        own = [each for each in table.entries if (each.method, each.recipe) == (method, "paper")]
        assert [each.settings.get("backbone") for each in own] == [None, "focus_vits14"]
        for run in plan(own, {"part": Path("part")}, [0], assignments=["image_size=128"]):
            assert run.config.smoothing == 4 / 224  # the recipe's, on either encoder


MAIN = """
title = "Main"
data = "mvtec"

[[comparison]]
name = "main"
title = "Main table"
metrics = ["image_auroc"]
lines = ["bottle", "screw"]
entries = [{ label = "ours", method = "knn", shots = 2 }]

[[comparison.published]]
source = "Theirs"
image_auroc = [nan, [91.5, 0.5]]
mean = { image_auroc = 91.0 }
"""


def test_a_main_table_of_ones_own(tmp_path: Path) -> None:
    path = tmp_path / "main.toml"
    path.write_text(MAIN)
    (table,) = suites.read(path).tables
    assert isinstance(table, Comparison)
    (theirs,) = table.published
    assert theirs.figures == {"bottle": {}, "screw": {"image_auroc": Figure(91.5, 0.5)}}
    assert theirs.mean == {"image_auroc": Figure(91.0)}
    assert (table.data, table.multi_class, table.entries[0].shots) == ("mvtec", False, 2)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("[nan, [91.5, 0.5]]", "[91.5]", "Theirs, image_auroc: 1 figures for 2 lines"),
        (', method = "knn", shots = 2', "", "needs entries that can be measured"),
        ("lines =", 'by = "sex"\nlines =', "main.by: .sex. is not one of category, group"),
        ("lines =", 'spread = "range"\nlines =', "main.spread: .range. is not one of standard "),
        ("lines =", 'compared_at = "small"\nlines =', 'side in pixels .256. or "original"'),
        ("lines =", "rows =", "'lines' is missing"),
        ("image_auroc = [", "aupro = [", "aupro"),
        ('source = "Theirs"', 'source = "Theirs"\ncolour = 1', "colour"),
        ('"mvtec"', '"mvtek"', "data set of table main 'mvtek'; did you mean 'mvtec'"),
    ],
)
def test_a_main_table_of_another_form_is_said(
    tmp_path: Path, old: str, new: str, message: str
) -> None:
    path = tmp_path / "main.toml"
    path.write_text(MAIN.replace(old, new))
    with pytest.raises(ConfigError, match=message):
        suites.read(path)


def test_the_ablations_are_those_of_the_paper() -> None:
    """Every table of AGPNet's holds its full model, with the same figures."""
    tables = {table.name: table for table in suites.read("agpnet-ablations").tables}
    assert {name: len(table.rows) for name, table in tables.items()} == {
        **{"noise": 11, "intensity": 4, "attention": 3, "teacher": 2, "layers": 4, "backbone": 4},
        **{"beta": 5, "unit": 2},
    }
    for name, table in tables.items():
        known = [row.published for row in table.rows if row.published]
        ours = name in ("beta", "unit")  # of what the paper leaves open
        assert ({"image_auroc": 98.7, "pixel_auroc": 98.0} in known) == bool(known) == (not ours)
    left = [row.label for row in tables["noise"].rows if not row.published]
    assert left == ["none / shuffled", "shuffled / shuffled"]


def test_the_ablations_of_pre_training_are_those_of_the_paper() -> None:
    suite = suites.read("apmask-ablations")
    masking, ratio, objective = suite.tables
    assert {row.label: tuple(row.published.values()) for row in masking.rows} == {
        **{"without pre-training": (), "none": (95.1, 96.2), "random": (96.6, 97.1)},
        **{"block": (), "attention": (98.3, 98.2)},
    }
    kinds = ["none", "random", "block", "attention"]
    assert [row.settings["masking"] for row in masking.rows[1:]] == kinds
    assert {(row.settings["masking"], row.settings["mask_ratio"]) for row in ratio.rows} == {
        (kind, share) for kind in kinds[1:] for share in (0.15, 0.3, 0.5)
    }
    published = {row.label: row.published["image_auroc"] for row in objective.rows if row.published}
    assert published == {"DINO": 97.0, "iBOT": 97.1, "MSN": 97.9, "APMask": 98.3}
    runs = plan(suite.entries(), {"part": Path("part")}, [0])
    assert len(runs) == 16  # lines that several tables have are measured once
    asked = [config for one in runs if (config := one.config.pretraining_config)]
    assert Counter(map(objective_of, asked)) == {
        **{objective_class("apmask"): 10, objective_class("dino"): 2},
        **{objective_class(name): 1 for name in ("ibot", "msn", "swav")},
    }
    assert {config.epochs for config in asked} == {300}
    assert {config.prototypes for config in asked} == {20, 1024, 3000, 8192}


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
        ("title = 'x'", "'table' is missing"),
        (OWN.replace('method = "knn"', ""), "size.rows.method: is missing"),
        (OWN.replace("label", "lable"), "lable"),
        (OWN.replace('"layers"', '"size"'), "the same name"),
        (OWN.replace('"large"', '"small"'), "the same label"),
        (OWN.replace("bank_size = 20", "bank = 20"), "table size: .* the same settings"),
        (OWN.replace("settings = { bank_size = 10 }", "note = 'x'"), "note"),
        (OWN.replace(", settings = { bank_size = 10 }", ""), "has neither settings nor published"),
        (re.sub(r"{ layers = .*? }", "{}", OWN), "table layers: rows without settings need data"),
        (OWN.replace('"small"', "1"), r"size\.rows\.label: 1 is not of type str"),
        (OWN.replace('"Neighbours"', "[1]"), r"title: \[1\] is not of type str"),
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

    def launch(self, order: benchmark.Order, *_: object) -> Row:
        one = order.run
        self.made.append(one)
        heading = benchmark._heading(one)
        figures = {**dict.fromkeys(METRICS, 0.9), "seconds_to_fit": 1.0, "images_per_second": 1.0}
        return a_row(**heading, **figures, backbone=one.config.backbone, resolution=[32, 32])

    def __call__(self, *arguments: object) -> tuple[int, str, str]:
        status = cli.main(["bench", *map(str, arguments)])
        return (status, *self.capsys.readouterr())


@pytest.fixture
def bench(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Bench:
    return Bench(capsys, monkeypatch)


def of(own: Path, mvtec: Path, tmp_path: Path) -> Sequence[object]:
    here = ("--device", "cpu", "--precision", "fp32")
    return ("--suite", own, "--data", mvtec, "--results", tmp_path / "rows.jsonl", *here)


def test_a_suite_is_measured_and_shown(
    bench: Bench, own: Path, mvtec: Path, tmp_path: Path
) -> None:
    status, out, err = bench(
        *of(own, mvtec, tmp_path), "--seeds", "0,1", "--backbone", "test_vit", "--shots", "2"
    )
    assert (status, len(bench.made)) == (0, 8)
    assert "## Size of the bank: part\n\nknn · 2-shot · 32×32 · test_vit" in out
    assert "| large | 90.0 ± 0.0 | 90.0 ± 0.0 | 90.0 ± 0.0 | 2 | 99.1 |" in out
    assert "0 of 8: knn on part, seed 0 · bank_size=10 · 2-shot" in err
    assert {one.config.backbone for one in bench.made} == {"test_vit"}
    assert bench("table", tmp_path / "rows.jsonl", "--suite", own)[1] == out
    assert "| knn | bank_size=10 · 2-shot |" in bench("table", tmp_path / "rows.jsonl")[1]


def test_a_line_that_is_only_published_is_only_shown(
    bench: Bench, own: Path, mvtec: Path, tmp_path: Path
) -> None:
    line = '  { label = "elsewhere", published = { image_auroc = 97.5 } },\n'
    own.write_text(OWN.replace('  { label = "large"', f'{line}  {{ label = "large"'))
    status, out, _ = bench(*of(own, mvtec, tmp_path), "--only", "size")
    assert (status, len(bench.made)) == (0, 2)
    assert "| elsewhere | – | – | – | 0 | 97.5 |" in out
    assert bench("table", tmp_path / "rows.jsonl", "--suite", own, "--only", "size")[1] == out
    assert "there is no --suite" in bench("table", tmp_path / "rows.jsonl", "--only", "size")[2]


def test_a_dry_run_lists_what_is_left(bench: Bench, own: Path, mvtec: Path, tmp_path: Path) -> None:
    bench(*of(own, mvtec, tmp_path), "--only", "size")
    assert len(bench.made) == 2
    # The line's own setting wins where a table varies it.
    status, out, _ = bench(*of(own, mvtec, tmp_path), "--set", "bank_size=10", "--dry-run")
    assert (status, len(bench.made)) == (0, 2)
    assert out.splitlines() == [
        "knn on part, seed 0 · layers=4 bank_size=10: about 14 s (2 earlier rows)",
        "knn on part, seed 0 · layers=2,4 bank_size=10: about 14 s (2 earlier rows)",
        "2 runs to make, 2 made already: about 28 s; rough",
    ]
    here = ("--suite", own, "--data", mvtec, "--backbone", "test_vit", "--dry-run", "--json")
    status, out, _ = bench(*here)
    settings = [values["settings"] for values in json.loads(out)["runs"]]
    assert [values["bank_size"] for values in settings[:2]] == [10, 20]
    assert len(settings) == 4


def test_it_says_how_many_runs_are_made_already(
    bench: Bench, own: Path, mvtec: Path, tmp_path: Path
) -> None:
    once = (*of(own, mvtec, tmp_path), "--only", "size")
    for more, made, told in (((), 2, "0 of 2"), (("--seeds", "0,1"), 4, "2 of 4")):
        lines = bench(*once, *more)[2].splitlines()
        assert lines[0] == f"runs that {tmp_path / 'rows.jsonl'} holds already: {told}"
        assert len(bench.made) == made


def test_the_suites_are_listed(bench: Bench) -> None:
    status, out, _ = bench("--list")
    assert status == 0
    assert "agpnet-ablations" in out
    assert "AGPNet, Table 5" in out
    assert [suite["name"] for suite in json.loads(bench("--list", "--json")[1])] == suites.names()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ("--methods knn", "--data and --results"),
        ("--methods knn --suite agpnet-ablations --data x --dry-run", "one of them"),
        ("--methods knn --only noise --data x --dry-run", "there is no --suite"),
        ("--suite agpnet-ablations --only nose --data x --dry-run", "did you mean 'noise'"),
    ],
)
def test_wrong_usage_is_said(bench: Bench, arguments: str, said: str) -> None:
    status, out, err = bench(*arguments.split())
    assert (status, out) == (2, "")
    assert said in err

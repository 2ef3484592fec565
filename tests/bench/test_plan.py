from __future__ import annotations

import importlib.util
import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from runs import GUIDED, TAUGHT, TINY, a_run

from blemish.bench.plan import Run, data_sets, once, places, plan
from blemish.bench.results import read_rows
from blemish.bench.suites import Entry, Suite, Table
from blemish.data import layouts
from blemish.data.layouts import OFFICIAL
from blemish.errors import ConfigError, DataError
from blemish.methods import METHODS
from blemish.methods.trained import TrainedConfig, TrainedMethod

RESULTS = Path(__file__).parents[2] / "benchmarks" / "results"


@pytest.fixture
def trained(monkeypatch: pytest.MonkeyPatch) -> None:
    """A method "trained" beside the others, known by its class only."""

    class Trained(TrainedMethod):
        name = "trained"
        Config = TrainedConfig

    monkeypatch.setitem(METHODS, "trained", Trained)


def test_the_key_is_what_is_measured(mvtec: Path, tmp_path: Path) -> None:
    one = a_run(mvtec)
    assert len(one.key) == 16
    same = [
        a_run(tmp_path, label="other"),
        Run.from_dict(json.loads(json.dumps(one.to_dict()))),
        a_run(mvtec, settings={**TINY, "image_size": [32]}),
    ]
    assert {other.key for other in same} == {one.key}
    first, second, third = (tmp_path / name for name in "abc")
    for file, content in ((first, b"1"), (second, b"1"), (third, b"2")):
        file.write_bytes(content)
    budgets = [{"time_budget": 1.0}, {"time_budget": 2.0}, {"shots": 1, "time_budget": 1.0}]
    settings = [{**TINY, "bank_size": 60}, {**TINY, "backbone": "test_resnet"}]
    taught = [{}, *({"anomaly_count": count} for count in (0, 1, 2))]
    taught += [{"anomaly_count": 1, "anomaly_type": kind} for kind in ("square", "dark")]
    changes: list[dict[str, Any]] = [
        *({"method": "patchcore"}, {"data": "gadget"}, {"seed": 1}, {"shots": 1}, {"shots": 2}),
        *({"settings": it} for it in settings),
        *({"weights": it} for it in (None, str(first), str(third))),
        *budgets,
        *({"shifts": it} for it in (["blur"], ["blur", "noise"])),
        *({"false_alarm_rate": it} for it in (0.05, 0.1)),
        *({**GUIDED, **it} for it in ({}, {"adapt": ["online"]})),
        {**GUIDED, "adapt": ["online"], "shifts": ["blur"]},
        *({**TAUGHT, **it} for it in taught),
    ]
    others = [a_run(mvtec, **each) for each in changes]
    assert len({one.key, *(other.key for other in others)}) == 1 + len(others)
    assert a_run(mvtec, weights=str(first)).key == a_run(mvtec, weights=str(second)).key
    assert a_run(mvtec, time_budget=1).key == a_run(mvtec, time_budget=1.0).key
    budgets = [{}, {"time_budget": 1}, {"compute_budget": 1}]
    assert len({a_run(mvtec, **one).key for one in budgets}) == 3
    shuffled, ordered = (
        a_run(mvtec, shifts=names) for names in (["noise", "blur", "noise"], ["blur", "noise"])
    )
    assert shuffled.key == ordered.key
    asked = a_run(mvtec, **GUIDED, adapt=["episodic", "online"], shifts=["noise", "blur"])
    assert Run.from_dict(json.loads(json.dumps(asked.to_dict()))) == asked
    asked = a_run(mvtec, **TAUGHT, anomaly_count=2, anomaly_type="square")
    assert Run.from_dict(json.loads(json.dumps(asked.to_dict()))) == asked


def test_committed_rows_are_recognised(tmp_path: Path) -> None:
    keys = {row["key"] for row in read_rows(RESULTS / "memory.jsonl")}
    for method, own in (("patchcore", {"centre": 0}), ("knn", {})):
        settings = {"backbone": "focus_vits14", "neighbours": 1, **own}
        one = Run(method=method, data="bottle", path=tmp_path, settings=settings)
        assert one.key in keys
        assert replace(one, settings={**one.settings, "flips": True}).key not in keys


def test_a_plan_is_the_product(mvtec: Path) -> None:
    layers = Entry(method="knn", settings={"layers": [2, 3]})
    sets, changed = {"a": mvtec, "b": mvtec}, ["bank_size=7", "layers=4"]
    paper = Entry(method="patchcore", recipe="paper")
    runs = plan([layers, paper], sets, [0, 1], assignments=changed, shots=2)
    found = [(one.data, one.method, one.recipe, one.seed, one.settings["layers"]) for one in runs]
    assert found == [
        (data, *entry, seed, layers)
        for data in "ab"
        for entry, layers in [(("knn", "best"), [2, 3]), (("patchcore", "paper"), [4])]
        for seed in (0, 1)
    ]
    assert {one.label for one in runs} == {"layers=2,3 bank_size=7", "layers=4 bank_size=7"}
    assert {one.shots for one in runs} == {2}
    (once,) = plan([layers] * 2, {"a": mvtec}, [0], assignments=["layers=2,3"], label="x")
    assert once.label == "x"


def test_defects_are_for_what_learns_from_them(mvtec: Path, trained: None) -> None:
    entries = [
        Entry(method="knn"),
        Entry(method="lda"),
        Entry(method="atacnet", recipe="paper"),
        Entry(method="atacnet", recipe="paper-devnet"),
        Entry(method="trained"),
    ]
    runs = plan(entries, {"a": mvtec}, [0], anomaly_count=1, anomaly_type="square", time_budget=3)
    counts = [(one.anomaly_count, one.anomaly_type) for one in runs]
    assert counts == [(None, None), *[(1, "square")] * 3, (None, None)]
    assert [one.time_budget for one in runs] == [None, None, 3, 3, 3]
    assert [str(one) for one in runs[:3]] == [
        "knn on a, seed 0",
        "lda on a, seed 0 · 1 defect of type square",
        "atacnet on a, seed 0 · paper · 1 defect of type square · budget 3 min",
    ]
    (learner,) = plan(
        [Entry(method="lda", settings={"normality": "agpnet"})], {"a": mvtec}, [0], time_budget=3
    )
    assert learner.time_budget == 3
    with pytest.raises(ConfigError, match="say how many of that type"):
        plan(entries, {"a": mvtec}, [0], anomaly_type="square")
    for minutes in (0, -1, float("nan")):
        with pytest.raises(ConfigError, match="time_budget: a positive number of minutes"):
            plan(entries, {"a": mvtec}, [0], time_budget=minutes)


@pytest.mark.parametrize(
    ("entry", "changes", "message"),
    [
        (Entry(method="pachcore"), {}, "did you mean 'patchcore'"),
        (Entry(method="knn"), {"assignments": ["bank_sise=3"]}, "bank_size"),
        (Entry(method="knn", settings={"bank_sise": 3}), {}, "bank_size"),
        (Entry(method="knn"), {"assignments": ["seed=3"]}, "--seeds"),
        (Entry(method="knn", recipe="bst"), {}, "best"),
        (Entry(method="knn"), {"shifts": ["blurr"]}, "did you mean 'blur'"),
        (Entry(method="knn"), {"adapt": ["onlin"]}, "mode of adaptation 'onlin'; did you mean"),
        (Entry(method="knn"), {"adapt": ["online"]}, "knn cannot adapt"),
    ],
)
def test_a_wrong_plan_is_said(
    mvtec: Path, entry: Entry, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        plan([entry], {"a": mvtec}, [0], **changes)


def test_data_sets_by_name_and_by_path(
    mvtec: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "mvtec" / "bottle" / "train").mkdir(parents=True)
    other = tmp_path / "gadget.csv"
    other.touch()
    found = data_sets(["bottle", mvtec, other], root=tmp_path, scratch=tmp_path)
    assert found == {"bottle": tmp_path / "mvtec" / "bottle", "part": mvtec, "gadget": other}
    monkeypatch.setenv("BLEMISH_DATA", str(tmp_path))
    both = data_sets(["bottle", "mvtec"], root=None, scratch=tmp_path)
    assert both["mvtec"] == tmp_path / "mvtec"
    with pytest.raises(DataError, match=r"screw.*BLEMISH_DATA.*--data"):
        data_sets(["screw"], root=None, scratch=tmp_path)
    monkeypatch.delenv("BLEMISH_DATA")
    other = tmp_path / "mvtec" / "part"
    other.mkdir()
    for names, root, said in [
        (["bottle"], None, "BLEMISH_DATA"),
        (["botle"], tmp_path, "magnetic_tile"),
        ([mvtec, other], None, "two data sets are called 'part'"),
    ]:
        with pytest.raises(DataError, match=said):
            data_sets(names, root=root, scratch=tmp_path)


@pytest.mark.skipif(
    importlib.util.find_spec("elpv_dataset") is None, reason="needs pip install 'blemish[demo]'"
)
def test_elpv_comes_from_its_package(tmp_path: Path) -> None:
    path = data_sets(["elpv"], root=None, scratch=tmp_path)["elpv"]
    dataset = layouts.read(path)
    assert (len(dataset.train()), len(dataset.test())) == (1131, 377 + 715)


def test_a_line_of_a_table_has_shots_defects_and_modes_of_its_own(mvtec: Path) -> None:
    entries = [Entry(method="lda", shots=2, anomaly_count=1), Entry(method="lda")]
    few, usual = plan(entries, {"a": mvtec}, [0], shots=4, anomaly_count=10)
    guided = Entry(method="guided", adapt=("episodic",), anomaly_count=1)
    (adapting,) = plan([guided], {"a": mvtec}, [0], adapt=["online", "episodic"])
    assert (few.shots, few.anomaly_count) == (2, 1)
    assert (usual.shots, usual.anomaly_count) == (4, 10)
    assert (adapting.adapt, adapting.anomaly_count) == (("online", "episodic"), None)


def test_what_several_tables_have_is_measured_once(mvtec: Path) -> None:
    first, second = a_run(mvtec), a_run(mvtec, seed=1)
    assert once([first, second, replace(first, label="of another table")]) == [first, second]


def test_the_names_are_those_of_the_public_sets_and_their_categories(tmp_path: Path) -> None:
    wanted = {
        **{"mvtec": "MVTec_AD", "bottle": "MVTec_AD/bottle", "visa": "visa", "pcb1": "visa/pcb1"},
        **{"bagel": "mvtec_3d_anomaly_detection/bagel", "head_ct": "Head-CT"},
    }
    inside = {"bottle": "train", "pcb1": "Data", "bagel": "test", "head_ct": ""}
    for name, part in inside.items():
        (tmp_path / wanted[name] / part).mkdir(parents=True)
    found = data_sets(wanted, root=tmp_path, scratch=tmp_path)
    assert {name: str(path.relative_to(tmp_path)) for name, path in found.items()} == wanted
    with pytest.raises(DataError, match=r"'cable': not in .*MVTec_AD"):
        data_sets(["cable"], root=tmp_path, scratch=tmp_path)
    names = [
        name for official in OFFICIAL.values() for name in {official.name, *official.categories}
    ]
    assert len(names) == len(set(names))


def a_table(name: str, data: str = "", **more: Any) -> Table:
    return Table(
        name=name, title=name, rows=(Entry(method="knn"), Entry(method="padim")), data=data, **more
    )


def a_suite(*tables: Table) -> Suite:
    return Suite(name="own", title="Own", tables=tables)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    for folder in ("mvtec/screw/train", "mvtec/bottle/train", "brain_mri"):
        (tmp_path / "root" / folder).mkdir(parents=True)
    return tmp_path / "root"


def test_each_table_of_a_suite_is_measured_on_its_own_data(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    suite = a_suite(
        a_table("each", "mvtec"),
        a_table("all", "mvtec", multi_class=True),
        a_table("scans", "brain_mri"),
        a_table("visa", "visa"),
        a_table("any"),
    )
    monkeypatch.delenv("BLEMISH_DATA", raising=False)
    parts, notes = places(suite, [str(root)], root=None, scratch=tmp_path)
    assert [(tuple(table.name for table in part.tables), sets) for part, sets in parts] == [
        (("each",), {"bottle": root / "mvtec" / "bottle", "screw": root / "mvtec" / "screw"}),
        (("all",), {"mvtec": root / "mvtec"}),
        (("scans",), {"brain_mri": root / "brain_mri"}),
    ]
    absent, learned, left = notes
    assert absent.startswith(
        f"Not in {root}, and out of reach: 13 categories of MVTec AD (cable, capsule, "
    )
    assert absent.endswith("; VisA.")
    assert learned == "Table all: one model learns 2 of the 15 categories of MVTec AD."
    assert left == "Table any is for any data set: name one with --data."
    assert places(suite, [], root=root, scratch=tmp_path) == (parts, notes)
    monkeypatch.setenv("BLEMISH_DATA", str(root))
    assert places(suite, [], root=None, scratch=tmp_path) == (parts, notes)
    of_one = places(
        a_suite(a_table("each", "mvtec")), [str(root / "mvtec")], root=None, scratch=tmp_path
    )
    assert of_one[0][0][1] == parts[0][1]


def test_other_data_stand_in_for_those_of_a_suite(root: Path, mvtec: Path, tmp_path: Path) -> None:
    suite = a_suite(a_table("each", "mvtec"), a_table("any"))
    shutil.copytree(mvtec, root / "mvtec" / "bottle", dirs_exist_ok=True)
    screw, bottle = (root / "mvtec" / name for name in ("screw", "bottle"))
    for given, name, path in [
        ("screw", "screw", screw),
        (str(mvtec), "part", mvtec),
        (str(bottle), "bottle", bottle),
    ]:
        assert places(suite, [given], root=root, scratch=tmp_path) == ([(suite, {name: path})], [])


def test_nothing_to_measure_on_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("BLEMISH_DATA", raising=False)
    suite = a_suite(a_table("each", "mvtec"), a_table("scans", "brain_mri"))
    any_data, elsewhere = a_suite(a_table("any")), tmp_path / "elsewhere"
    elsewhere.mkdir()
    for chosen, data, root, said in [
        (suite, [elsewhere], None, r"elsewhere: there is none of MVTec AD, Brain-MRI in it"),
        (suite, [], tmp_path, r"MVTec AD; Brain-MRI\. There is nothing to measure"),
        (suite, [], None, "no folder to look in for MVTec AD, Brain-MRI"),
        (any_data, [], tmp_path, "for any data set: name"),
        (suite, [tmp_path / "none"], tmp_path, "no such path"),
    ]:
        with pytest.raises(DataError, match=said):
            places(chosen, list(map(str, data)), root=root, scratch=tmp_path)

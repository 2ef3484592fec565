"""compare, end to end on tiny pictures: what is measured, chosen, kept and gone on from."""

from __future__ import annotations

import json
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from runs import answering_here

import blemish
from blemish import cli
from blemish.bench.choosing import comparing, trial
from blemish.bench.choosing.candidates import usual_methods
from blemish.bench.processes import answer_of
from blemish.cli.status import BROKEN_PICTURES, BY_SIGNAL, ERROR
from blemish.methods import METHODS

Run = Callable[..., tuple[int, str, str]]
TINY = "--backbone test_vit --weights random --precision fp32 --set layers=2,4 --resolutions 32,64"
FIRST = ("--methods", "padim,knn", "--minutes", "5")


@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """Processes work in this one, which is quicker; gives their orders."""
    orders: list[dict[str, Any]] = []
    monkeypatch.setattr(comparing, "answer_of", answering_here(orders))
    return orders


def rows_of(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "rows.jsonl").read_text().splitlines()]


def test_from_good_pictures_alone(
    run: Run, good_folder: Path, tmp_path: Path, here: list[dict[str, Any]]
) -> None:
    out = tmp_path / "out"
    status, said, _ = run("compare", good_folder, TINY, *FIRST, "-o", out)
    assert status == 0
    rows = rows_of(out)
    assert [row["label"] for row in rows] == ["padim 32", "knn 32", "padim 64", "knn 64"]
    document = json.loads((out / "comparison.json").read_text())
    assert document["counts"]["good"] == 24
    assert (document["counts"]["learned"], document["counts"]["left_out"]) == (17, 7)
    assert document["chosen"] in [row["label"] for row in rows]
    assert document["by"] == "generated defects"
    for row in rows:
        assert len([one for one in row["scores"] if len(one.split()) == 2]) == 7
        assert row["fitted"] == 17
        assert row["efficiency"]["latency_p50_ms"] > 0
    for one in document["candidates"]:
        figure = one["generated"]
        assert 0 <= figure["low"] <= figure["value"] <= figure["high"] <= 1
        assert one["labelled"] is None
    assert document["command"] in said
    assert "they do not tell" in said  # generated defects are no real ones
    report = (out / "report.html").read_text()
    assert document["chosen"] in report
    assert report.count("data:image/jpeg") == 10
    assert (out / "figure.svg").read_bytes().startswith(b"<svg")
    assert not (out / "features").exists()


def test_the_command_that_it_ends_with_works(
    run: Run, good_folder: Path, tmp_path: Path, here: list[dict[str, Any]], monkeypatch: Any
) -> None:
    monkeypatch.chdir(tmp_path)
    spaced = good_folder.rename(tmp_path / "good parts")
    answer = run("compare", spaced, TINY, *FIRST, "-o", tmp_path / "out", "--json")[1]
    words = shlex.split(json.loads(answer)["command"])
    assert words[:3] == ["blemish", "fit", json.loads(answer)["chosen"].split()[0]]
    assert cli.main([*words[1:], "--precision", "fp32"]) == 0
    config = blemish.load(tmp_path / "part.blemish").manifest["config"]
    assert config["layers"] == [2, 4]
    assert str(config["image_size"][0]) == json.loads(answer)["chosen"].split()[1]


@pytest.mark.parametrize(("labelled", "choose"), [(4, False), (5, True), (9, True)])
def test_few_labelled_defects_all_choose_from_five_on(
    run: Run, good_folder: Path, tmp_path: Path, picture: Any, write: Any, labelled: int,
    choose: bool, here: Any,
) -> None:  # fmt: skip
    for seed in range(labelled):
        write(tmp_path / "bad" / f"{seed}.png", picture(700 + seed, defect=True))
    command = ("compare", good_folder, TINY, "--methods knn", "--anomalies", tmp_path / "bad")
    document = json.loads(run(*command, "-o", tmp_path / "out", "--json")[1])
    assert document["counts"]["labelled_choosing"] == labelled
    assert document["by"].startswith(f"{labelled} labelled defects") == choose
    told = " ".join(document["notes"])
    assert ("All labelled defects took part in the choice" in told) == choose
    assert ("4 labelled defects could choose, and 5 at least are needed" in told) != choose


def test_labelled_defects_choose_and_some_are_held_out(
    run: Run, mvtec: Path, tmp_path: Path, picture: Any, write: Any, here: list[dict[str, Any]]
) -> None:
    for seed in range(6):  # beside the seven of the data set
        write(tmp_path / "bad" / f"{seed}.png", picture(700 + seed, defect=True))
    out = tmp_path / "out"
    command = ("compare", mvtec, TINY, *FIRST, "--anomalies", tmp_path / "bad", "-o", out)
    status, said, _ = run(*command)
    assert status == 0
    document = json.loads((out / "comparison.json").read_text())
    counts = document["counts"]
    used = (counts["labelled"], counts["labelled_choosing"], counts["checking_defects"])
    assert used == (13, 7, 6)
    assert document["by"].startswith("7 labelled defects")
    assert "7 labelled defects took part in the choice, so the chosen one's figures" in said
    assert "6 others did not, nor did " in said
    assert all(one["labelled"] and one["checking"] for one in document["candidates"])
    assert "took no part in the choice" in said
    order = next(one["order"] for one in here if one["work"] == "measure")
    of = {role: {one["path"] for one in order["judged"] if one["role"] == role} for role in
          ("labelled", "checking", "good", "checking good")}  # fmt: skip
    assert not of["labelled"] & of["checking"]
    learned = {path for path, _ in order["learned"]}
    assert not learned & of["checking good"]
    assert all("train" in path for path in learned)


def test_five_labelled_defects_decide(
    run: Run, good_folder: Path, tmp_path: Path, picture: Any, write: Any, here: Any
) -> None:
    for seed in range(10):
        write(tmp_path / "bad" / f"{seed}.png", picture(700 + seed, defect=True))
    out = tmp_path / "out"
    run("compare", good_folder, TINY, *FIRST, "-o", out, "--anomalies", tmp_path / "bad")
    document = json.loads((out / "comparison.json").read_text())
    assert document["by"].startswith("5 labelled defects")
    assert document["counts"]["checking_defects"] == 5
    figure = (out / "figure.svg").read_text()
    assert "AUROC by labelled defects" in figure
    assert "GFLOP a picture" in figure  # by which it is chosen among equals


def test_it_goes_on_and_makes_nothing_twice(
    run: Run, good_folder: Path, tmp_path: Path, here: list[dict[str, Any]], monkeypatch: Any
) -> None:
    out, answer, done = tmp_path / "out", comparing.answer_of, []

    def interrupted(*given: Any, **more: Any) -> Any:
        if len(done) == 3:
            raise KeyboardInterrupt
        done.append(given)
        return answer(*given, **more)

    monkeypatch.setattr(comparing, "answer_of", interrupted)
    status, _, complained = run("compare", good_folder, TINY, *FIRST, "-o", out)
    assert status == BY_SIGNAL + 2
    assert "the same command goes on" in complained
    assert len(rows_of(out)) == 2  # after the preparation
    kept = rows_of(out)
    assert list((out / "features").rglob("*.safetensors"))
    monkeypatch.setattr(comparing, "answer_of", answer)
    here.clear()
    assert run("compare", good_folder, TINY, *FIRST, "-o", out)[0] == 0
    assert [one["work"] for one in here] == ["measure", "measure"]
    assert rows_of(out)[:2] == kept
    here.clear()
    assert run("compare", good_folder, TINY, *FIRST, "-o", out)[0] == 0
    assert here == []
    for one in (out / "generated").glob("000?_*.png"):
        one.unlink()  # they are made again
    more = ("--methods", "padim,knn,patchcore", "--minutes", "5", "--set", "bank_size=50")
    assert run("compare", good_folder, TINY, "--methods patchcore", "-o", out)[0] == 0
    assert [one["work"] for one in here] == ["prepare", "measure", "measure"]
    assert json.loads((out / "comparison.json").read_text())["failures"] == []
    assert "error" in json.loads(run("compare", good_folder, TINY, *more, "-o", out, "--json")[1])


def test_what_was_hardly_trained_is_marked(
    run: Run, good_folder: Path, tmp_path: Path, here: list[dict[str, Any]]
) -> None:
    command = ("compare", good_folder, TINY, *FIRST, "-o", tmp_path / "out")
    assert "‖" not in run(*command)[1]
    rows = rows_of(tmp_path / "out")
    assert {row["training"] for row in rows} == {None}
    rows[0]["training"] = {"epochs": 0.4, "steps": 1}
    lines = "".join(f"{json.dumps(row)}\n" for row in rows)
    (tmp_path / "out" / "rows.jsonl").write_text(lines)
    out = run(*command)[1]
    label = rows[0]["label"]
    note = f"‖ {label}: the training ended before it had seen every picture once"
    assert f" {label} ‖ " in out
    assert f"notice: {note}" in out
    document = json.loads(run(*command, "--json")[1])
    assert any(one.startswith(note) for one in document["notes"])
    assert [one["label"] for one in document["candidates"] if one["training"]] == [label]
    report = (tmp_path / "out" / "report.html").read_text()
    assert f"{label} ‖" in report
    assert note in report


def test_times_do_not_change_what_is_taken(
    run: Run, good_folder: Path, tmp_path: Path, here: list[dict[str, Any]]
) -> None:
    """As of the same pictures on a busy machine: of candidates that these do not tell apart the
    same one is taken, whichever was quicker."""
    out = tmp_path / "out"
    command = ("compare", good_folder, TINY, *FIRST, "-o", out)
    run(*command)
    rows = rows_of(out)
    taken = set()
    for quick in range(len(rows)):
        for at, row in enumerate(rows):
            row["scores"], row["places"] = rows[0]["scores"], rows[0]["places"]
            row["efficiency"]["latency_p50_ms"] = 1.0 if at == quick else 50.0
        lines = "".join(f"{json.dumps(row)}\n" for row in rows)
        (out / "rows.jsonl").write_text(lines)
        document = json.loads(run(*command, "--json")[1])
        assert len(document["alike"]) == len(rows) - 1
        taken.add(document["chosen"])
        named = [one for one in document["reasons"] if "In this run" in one]
        assert len(named) == (rows[quick]["label"] != document["chosen"])
        assert all(one.startswith(f"In this run {rows[quick]['label']} ") for one in named)
    least = min(rows, key=lambda row: row["efficiency"]["flops"])
    assert taken == {least["label"]}
    said = run(*command)[1]
    assert "trained for as long as there was time" not in said
    rows[0]["minutes"] = 0.5
    (out / "rows.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    note = f"notice: {rows[0]['label']}: trained for as long as there was time, so a run on another"
    assert note in run(*command)[1]


def test_of_those_that_find_as_many_what_shows_clearly_worse_where_is_left_out(
    run: Run, good_folder: Path, tmp_path: Path, here: list[dict[str, Any]]
) -> None:
    out = tmp_path / "out"
    command = ("compare", good_folder, TINY, "--methods padim,knn", "-o", out)
    first = json.loads(run(*command, "--json")[1])
    rows = rows_of(out)
    for told, row in zip(first["candidates"], rows, strict=True):
        regions = [one["regions"] for one in row["places"].values()]
        weighed = sum(one["regions"] * one["overlap"] for one in row["places"].values())
        assert row["aupro"] == pytest.approx(weighed / sum(regions))
        assert told["localisation"]["value"] == pytest.approx(row["aupro"])
        assert told["localisation"]["low"] < row["aupro"] < told["localisation"]["high"]
        assert "places" not in told
    dear = max(rows, key=lambda row: row["efficiency"]["flops"])
    for row in rows:  # all find as many; one shows best where
        row["scores"] = rows[0]["scores"]
        for one in row["places"].values():
            one["overlap"] = 0.9 if row is dear else 0.7
    (out / "rows.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    status, said, _ = run(*command)
    assert status == 0
    assert f"Take {dear['label']}: these pictures show none that is better, and of those" in said
    assert "shows best where the generated defects are: 20.0 points of AUPRO above" in said
    report = (out / "report.html").read_text()
    assert "it shows best where they are" in report
    assert "90.0 (90.0–90.0)" in report


def test_features_are_shared_and_change_no_score(
    run: Run, good_folder: Path, tmp_path: Path, here: list[dict[str, Any]], monkeypatch: Any
) -> None:
    one = ("--methods", "padim,knn", "--resolutions", "32")
    tiny = TINY.replace("--resolutions 32,64", "")
    run("compare", good_folder, tiny, *one, "-o", tmp_path / "a")
    monkeypatch.setattr(trial, "FEATURE_BYTES", 0)
    run("compare", good_folder, tiny, *one, "-o", tmp_path / "b")
    for kept, anew in zip(rows_of(tmp_path / "a"), rows_of(tmp_path / "b"), strict=True):
        assert kept["scores"] == anew["scores"]
        assert kept["threshold"] == anew["threshold"]


def test_what_is_varied_is_compared(
    run: Run, good_folder: Path, tmp_path: Path, here: list[dict[str, Any]]
) -> None:
    vary = ("--vary layers=2,4 --vary layers=3 --vary top_fraction=0 --vary top_fraction=0.1",)
    tiny = "--backbone test_vit --weights random --resolutions 32 --methods knn"
    answer = json.loads(run("compare", good_folder, tiny, *vary, "-o", tmp_path / "o", "--json")[1])
    labels = {one["label"] for one in answer["candidates"]}
    assert labels == {
        f"knn 32 (layers={layers} top_fraction={top})" for layers in ("2,4", "3")
        for top in ("0", "0.1")
    }  # fmt: skip
    assert "--set layers=" in answer["command"]


def test_a_broken_picture_and_a_method_that_fails_do_not_end_it(
    run: Run, good_folder: Path, tmp_path: Path, here: list[dict[str, Any]], monkeypatch: Any
) -> None:
    for name in ("003.png", "011.png", "017.png"):
        (good_folder / name).write_bytes(b"\x89PNG no picture")

    def failing(*_: Any, **__: Any) -> None:
        raise blemish.errors.DataError("it cannot be done")

    monkeypatch.setattr(METHODS["padim"], "fit", failing)
    out = tmp_path / "out"
    status, said, _ = run("compare", good_folder, TINY, *FIRST, "-o", out)
    assert status == BROKEN_PICTURES
    assert said.count("broken: ") == 3
    assert "Failed: padim 32: it cannot be done" in said
    assert "Take knn" in said
    assert "it cannot be done" in (out / "report.html").read_text()
    assert [row["status"] for row in rows_of(out)] == ["failed", "ok", "failed", "ok"]


def test_where_all_fail_it_is_an_error(
    run: Run, good_folder: Path, tmp_path: Path, here: list[dict[str, Any]]
) -> None:
    tiny = TINY.replace("layers=2,4", "layers=99")
    status, said, _ = run("compare", good_folder, tiny, *FIRST, "-o", tmp_path / "out")
    assert status == ERROR
    assert "layer 99 does not exist" in said
    assert "no candidate was measured" in said


def test_no_time_is_left(
    run: Run, good_folder: Path, tmp_path: Path, here: list[dict[str, Any]], monkeypatch: Any
) -> None:
    now = [0.0]
    answer = comparing.answer_of

    def slow(*given: Any, **more: Any) -> Any:
        now[0] += 200
        return answer(*given, **more)

    class Clock:
        @staticmethod
        def monotonic() -> float:
            return now[0]

    monkeypatch.setattr(comparing, "answer_of", slow)
    monkeypatch.setattr(comparing, "time", Clock)
    _, said, _ = run("compare", good_folder, TINY, "--methods padim,knn --minutes 8", "-o",
                     tmp_path / "out")  # fmt: skip
    assert [row["label"] for row in rows_of(tmp_path / "out")] == ["padim 32", "knn 32"]
    assert "No time was left for padim 64, knn 64" in said
    assert (tmp_path / "out" / "features").exists()


def test_trained_methods_share_what_is_left(
    run: Run, good_folder: Path, tmp_path: Path, monkeypatch: Any
) -> None:
    asked: list[tuple[str, float]] = []

    def answer(_: str, order: dict[str, Any], **__: Any) -> tuple[dict[str, Any] | None, str]:
        if order["work"] == "prepare":
            rows = [{"path": "x", "of": 0}]
            return {"generated": rows, "failures": [], "seconds": {"32x32": 0.01}}, ""
        asked.append((order["order"]["candidate"]["method"], order["order"]["minutes"]))
        return None, "not now"

    monkeypatch.setattr(comparing, "answer_of", answer)
    trained = [name for name, kind in METHODS.items() if kind.Config.best().learns_by_gradient and
               not kind.takes_defects]  # fmt: skip
    methods = ",".join([*trained, "padim"])
    given = f"--backbone test_vit --weights random --resolutions 32 --methods {methods}"
    run("compare", good_folder, given, "--minutes 60", "-o", tmp_path / "out")
    assert asked[0][0] == "padim"
    minutes = [minutes for method, minutes in asked if method != "padim"]
    assert len(minutes) == len(trained)
    assert minutes[0] == pytest.approx(60 / len(trained), abs=2)


def test_wrong_questions(refused: Any, good_folder: Path, tmp_path: Path, here: Any) -> None:
    out = ("-o", tmp_path / "out")
    assert "did you mean 'patchcore'" in refused("compare", good_folder, "--methods pachcore", *out)
    assert "labelled defects, which only judge" in refused(
        "compare", good_folder, "--methods lda", *out
    )
    for sizes in ("big", "100000", "0"):
        said = refused("compare", good_folder, f"--resolutions {sizes}", *out)
        assert f"--resolutions {sizes}: sizes of 1 to 8192 pixels are needed" in said
    said = refused("compare", good_folder, "--methods ,", *out)
    assert "--methods ,: methods are needed" in said
    assert "key=value" in refused("compare", good_folder, "--vary layers", *out)
    assert "did you mean 'layers'" in refused("compare", good_folder, "--vary lairs=1", *out)
    assert "[0.002, 0.1]" in refused("compare", good_folder, "--smallest-defect 2", *out)
    for name in good_folder.iterdir():
        if int(name.stem) >= 11:
            name.unlink()
    said = refused("compare", good_folder, TINY, *FIRST, *out)
    assert "at least 12 good pictures are needed" in said


def test_other_pictures_need_another_folder(
    run: Run, refused: Any, good_folder: Path, tmp_path: Path, here: Any
) -> None:
    out = tmp_path / "out"
    run("compare", good_folder, TINY, "--methods knn", "-o", out)
    (good_folder / "000.png").unlink()
    said = refused("compare", good_folder, TINY, "--methods knn", "-o", out)
    assert "holds a comparison of other pictures" in said
    (good_folder / "001.png").unlink()
    (out / "rows.jsonl").write_text('{"schema": 2, "status": "ok", "key": "x"}\n{}\n')
    (out / "plan.json").unlink()
    said = refused("compare", good_folder, TINY, "--methods knn", "-o", out)
    assert "rows.jsonl, line 1: is no row of `blemish compare`" in said


def test_what_it_writes_among_the_good_pictures_is_not_taken_for_good(
    run: Run, good_folder: Path, here: list[dict[str, Any]]
) -> None:
    command = ("compare", good_folder, TINY, "--methods knn", "-o", good_folder / "comparison")
    first = json.loads(run(*command, "--json")[1])
    assert [*(good_folder / "comparison" / "generated").glob("*_mask.png")]
    here.clear()
    again = json.loads(run(*command, "--json")[1])
    assert again["counts"] == first["counts"]
    assert here == []  # of the same pictures, so that nothing is measured again
    checked = json.loads(run("data check", good_folder, "--json")[1])
    assert checked["pictures"] == first["counts"]["good"]


def test_usual_methods_are_told_by_what_they_can() -> None:
    usual = usual_methods()
    assert {"patchcore", "knn", "padim"} <= set(usual)
    for name, kind in METHODS.items():
        trained = kind.Config.best().learns_by_gradient
        assert (name in usual) == (not trained and not kind.takes_defects)


def test_in_processes_of_their_own(run: Run, good_folder: Path, tmp_path: Path) -> None:
    tiny = TINY.replace("32,64", "32")
    status, said, _ = run("compare", good_folder, tiny, "--methods knn", "-o", tmp_path / "out")
    assert status == 0, said
    (row,) = rows_of(tmp_path / "out")
    assert row["peak_memory_mib"] is None or row["peak_memory_mib"] > 50
    assert "Only knn 32 was measured." in said


@pytest.mark.parametrize(
    ("module", "seconds", "why"),
    [
        ("this_module_is_nowhere", 60.0, "No module named"),
        ("http.server", 0.5, "for which it had time"),
    ],
)
def test_a_process_that_does_not_answer(module: str, seconds: float, why: str) -> None:
    answer, said = answer_of(module, {"work": "x" * 10}, seconds=seconds)
    assert answer is None
    assert why in said


def test_a_process_tells_how_far_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    code = """if True:
        import sys
        print('{"progress": ["fitting", 1, 2]}')
        print("noise")
        print("[1]")
        print(sys.stdin.read())
    """
    (tmp_path / "spoken.py").write_text(code)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    told: list[tuple[str, int, int]] = []
    answer, _ = answer_of("spoken", {"a": 1}, seconds=60, progress=lambda *one: told.append(one))
    assert answer == {"a": 1}
    assert told == [("fitting", 1, 2)]

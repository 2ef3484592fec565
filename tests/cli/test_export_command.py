"""blemish export, and what the other commands make of an exported file."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from exports import Altered, traced_once
from parts import Run, part, rows_of, settings_of, write_picture

import blemish
from blemish.cli.status import BROKEN_PICTURES
from blemish.engines.chosen import open_engine
from blemish.errors import OutputError
from blemish.export import exporting
from blemish.export.proof import LIMITS

Refused = Callable[..., str]
Answered = Callable[..., Any]
KEPT = "PyTorch and the artifact that it was exported from"


@pytest.fixture(scope="module", autouse=True)
def tracing() -> Iterator[None]:
    with traced_once():
        yield


@pytest.fixture(scope="module")
def files_of(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with part.blemish and what was exported of it, part.onnx and part.xml."""
    folder = tmp_path_factory.mktemp("files")
    good = [part(seed) for seed in range(24)]
    path = blemish.fit("patchcore", good, **settings_of("patchcore")).save(folder / "part.blemish")
    exporting.export(path, folder / "part.onnx")
    exporting.export(path, folder / "part.xml")
    return folder


@pytest.fixture
def fresh(files_of: Path, tmp_path: Path) -> Path:
    """A copy of that folder's artifact, in a folder of its own."""
    (tmp_path / "own").mkdir()
    return Path(shutil.copy(files_of / "part.blemish", tmp_path / "own"))


@pytest.fixture
def new(tmp_path: Path) -> Path:
    """Four new pictures, every second with a defect."""
    for seed in range(4):
        write_picture(tmp_path / "new" / f"{seed}.png", part(500 + seed, defect=seed % 2 == 1))
    return tmp_path / "new"


def test_it_says_what_was_proven_and_written(run: Run, fresh: Path) -> None:
    file = fresh.with_name("line.onnx")
    status, out, _ = run("export", fresh, "-o", file)
    assert status == 0
    proof, thresholds, written = out.splitlines()
    assert re.fullmatch(
        r"Proof: 12 generated pictures in onnxruntime [\d.]+: scores differ by at most \S+, maps "
        r"by \S+ deviations of good scores \(0.001 and 0.001 are allowed\); rank correlation "
        r"1.0000\.",
        proof,
    )
    assert thresholds == "Thresholds: those of the artifact."
    assert re.fullmatch(rf"Written: {re.escape(str(file))} \(line.onnx, \d+ MiB\)", written)
    told = run("inspect", file)[1]
    assert "exported" in told
    assert "12 generated pictures in onnxruntime" in told
    status, out, _ = run("export", fresh, "-o", fresh.with_name("line.xml"))
    assert status == 0
    assert "12 generated pictures in openvino" in out
    assert "(line.xml and line.bin, " in out


def test_it_says_so_in_json(answered: Answered, fresh: Path) -> None:
    file = fresh.with_name("part.onnx")
    said = answered("export", fresh, "-o", file, "--input pixels")
    record = blemish.load(file).record.export
    assert record is not None
    assert record.input == "pixels"
    assert said["exported"] == str(file)
    assert (
        said["proof"]
        == dict(record.proof)
        == answered("inspect", file)["manifest"]["export"]["proof"]
    )
    assert (said["recalibrated"], said["left_out"], said["failures"]) == (False, 0, [])
    assert "thresholds" not in said


def test_good_pictures_give_thresholds_of_the_graphs_own(
    run: Run, answered: Answered, refused: Refused, fresh: Path
) -> None:
    manifest = blemish.load(fresh, precision="fp32", device="cpu")
    coarse = manifest.with_record(exporting.replace(manifest.record, precision="bf16")).save(
        fresh.with_name("coarse.blemish")
    )
    file = fresh.with_name("part.onnx")
    said = refused("export", coarse, "-o", file)
    assert "are of scores in bf16" in said
    assert "--good FOLDER; or fit it with --precision fp32" in said
    assert not file.exists()
    good = fresh.with_name("good")
    for seed in range(20, 50):  # it has learned from the first four
        write_picture(good / f"{seed}.png", part(seed))
    (good / "broken.png").write_bytes(b"no picture")
    line = ("export", coarse, "-o", file, "--good", good, "--false-alarm-rate 0.1")
    status, out, _ = run(*line)
    assert status == BROKEN_PICTURES
    assert "Left out: 4 pictures that it has learned from." in out
    assert "broken.png" in out
    assert "Thresholds: those of the artifact." not in out
    assert "26" in next(line for line in out.splitlines() if line.startswith("Threshold"))
    said = answered(*line)
    assert (said["recalibrated"], said["left_out"]) == (True, 4)
    assert [Path(one["path"]).name for one in said["failures"]] == ["broken.png"]
    assert said["threshold"]["n"] == 26
    assert said["threshold"]["rate"] == 0.1


def test_what_differs_is_not_written(
    refused: Refused, fresh: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def altered(path: Path, **how: Any) -> Any:
        engine, manifest = open_engine(path, **how)
        return Altered(
            engine, lambda found: exporting.replace(found, score=found.score + 1)
        ), manifest

    monkeypatch.setattr(exporting, "open_engine", altered)
    file = fresh.with_name("part.onnx")
    said = refused("export", fresh, "-o", file)
    assert said.startswith(
        f"blemish: {file}: not written: its scores differ from the detector's by"
    )
    assert f"at most {LIMITS['fp32']:g} are allowed in fp32" in said
    assert not file.exists()


def test_a_page_is_written(run: Run, answered: Answered, fresh: Path) -> None:
    page = fresh.with_name("page")
    status, out, _ = run("export", fresh, "--web", page)
    assert status == 0
    assert f"Page: {page}. Run python {page / 'serve.py'}" in out
    assert (page / "index.html").is_file()
    assert "Written:" not in out
    both = fresh.with_name("both")
    said = answered("export", fresh, "-o", fresh.with_name("x.onnx"), "--web", both)
    assert (said["exported"], said["page"]) == (str(fresh.with_name("x.onnx")), str(both))
    assert (both / "index.html").is_file()


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ("", "name it with --output part.onnx, or part.xml"),
        ("-o x.txt", "the name of an exported file ends in .onnx or .xml"),
        ("-o x.onnx --precision int4", "unknown precision 'int4'"),
        ("-o x.onnx --precision bf16", "bf16 is for OpenVINO (.xml)"),
        ("-o x.onnx --precision int8", "--good FOLDER"),
        ("-o x.onnx --input rgb", "--input rgb: normalised or pixels"),
        ("-o x.onnx --false-alarm-rate 0.1", "name --good"),
        ("-o x.xml --web page", "--web takes an .onnx file"),
        ("-o x.onnx --pictures no-such-folder", "no-such-folder"),
    ],
)
def test_what_does_not_go_together(
    refused: Refused, fresh: Path, options: str, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(fresh.parent)
    assert said in refused("export", fresh, *([options] if options else []))
    assert [each.name for each in fresh.parent.iterdir()] == ["part.blemish"]


def test_no_artifact(refused: Refused, files_of: Path, tmp_path: Path) -> None:
    file = tmp_path / "x.onnx"
    assert "is exported already" in refused("export", files_of / "part.onnx", "-o", file)
    assert "no-such.blemish" in refused("export", tmp_path / "no-such.blemish", "-o", file)
    encoder = tmp_path / "part.blemish"
    encoder.write_bytes((files_of / "part.onnx").read_bytes())
    refused("export", encoder, "-o", file)
    assert not file.exists()


@pytest.mark.parametrize("name", ["part.onnx", "part.xml"])
def test_predict_says_what_it_says_of_the_artifact(
    answered: Answered, files_of: Path, new: Path, name: str, tmp_path: Path
) -> None:
    wanted = answered("predict", files_of / "part.blemish", new, "--precision fp32 --device cpu")
    found = answered("predict", files_of / name, new, "--threads 1 --output", tmp_path / "out")
    assert found["scored"] == wanted["scored"] == 4
    unit = 1e-3 * float(blemish.load(files_of / name).record.export.proof["deviation"])
    for one, other in zip(found["predictions"], wanted["predictions"], strict=True):
        assert one["score"] == pytest.approx(other["score"], abs=unit)
        for key in ("path", "label", "threshold", "p_value", "digest", "notes", "category"):
            assert one[key] == other[key], key
        assert [each["runs"] for each in one["regions"]] == [
            each["runs"] for each in other["regions"]
        ]
    assert {row["label"] for row in rows_of(tmp_path / "out")} == {0, 1}


def test_watch_evaluate_and_calibrate_take_it(
    run: Run, answered: Answered, files_of: Path, new: Path, mvtec: Path, tmp_path: Path
) -> None:
    file = files_of / "part.onnx"
    for path in new.iterdir():
        os.utime(path, (1e9, 1e9))
    out = tmp_path / "line"
    once = "--once --interval 0.05 --settle 0.05"
    assert run("watch", new, file, once, "--output", out)[0] == 0
    assert {Path(row["path"]).name: row["label"] for row in rows_of(out)} == {
        **{f"{seed}.png": seed % 2 for seed in range(4)}
    }
    kept = "--precision fp32 --device cpu"
    wanted = answered("evaluate", files_of / "part.blemish", mvtec, kept)
    found = answered("evaluate", file, mvtec, "--engine openvino")
    assert found["image_auroc"] == wanted["image_auroc"]
    assert found["confusion"] == wanted["confusion"]
    anew = tmp_path / "anew.onnx"
    good = tmp_path / "good"
    for seed in range(30, 50):
        write_picture(good / f"{seed}.png", part(seed))
    status, out_, _ = run("calibrate", file, good, "-o", anew, "--false-alarm-rate 0.2")
    assert status == 0, out_
    threshold = answered("inspect", anew)["manifest"]["threshold"]
    assert (threshold["n"], threshold["rate"]) == (20, 0.2)
    assert answered("predict", anew, new)["predictions"][0]["threshold"] == threshold["value"]


@pytest.mark.parametrize(
    ("name", "options", "said"),
    [
        ("part.onnx", "--precision fp16", "computes in fp32, which it was proven in; export it in"),
        ("part.onnx", "--engine torch", "is an exported graph, which torch does not run"),
        ("part.onnx", "--engine tensorflow", "unknown engine 'tensorflow'"),
        ("part.onnx", "--device mps", "unknown device 'mps'. Known: cpu, cuda, tensorrt"),
        ("part.onnx", "--device cpu:1", "there is one cpu"),
        ("part.onnx", "--engine openvino --device cuda", "unknown device 'cuda'. Known: cpu, gpu"),
        ("part.xml", "--engine onnxruntime", "is for OpenVINO; open it with --engine openvino"),
        ("part.xml", "--device tensorrt", "unknown device 'tensorrt'"),
        ("part.blemish", "--engine onnxruntime", "onnxruntime runs exported files; write one with"),
        ("part.blemish", "--engine openvino", "openvino runs exported files; write one with"),
        ("part.blemish", "--device tensorrt", "tensorrt"),
        ("part.onnx", "--adapt online", KEPT[8:]),
        ("part.onnx", "--scales 64,48", KEPT),
    ],
)
def test_what_an_engine_cannot_do(
    refused: Refused, files_of: Path, new: Path, name: str, options: str, said: str
) -> None:
    assert said in refused("predict", files_of / name, new, options)


def test_what_an_exported_file_cannot_do(
    refused: Refused, files_of: Path, new: Path, mvtec: Path, tmp_path: Path
) -> None:
    file, out = files_of / "part.onnx", tmp_path / "out"
    before = file.read_bytes()
    said = refused("figures", files_of / "part.blemish", file, mvtec, "-o", out)
    assert f"{file}: an exported graph can score" in said
    assert KEPT in said
    assert KEPT in refused("refine", file, "--good", new)
    assert KEPT in refused("refine", file, "--good", new, "-o", tmp_path / "x.blemish")
    assert "exported" in refused("evaluate", file, mvtec, "--adapt online")
    assert KEPT in refused("calibrate", file, new, "-o", tmp_path / "x.onnx", "--scales 64")
    assert file.read_bytes() == before
    assert not out.exists()
    # And it keeps its kind, which is known before any picture is looked at.
    assert "a file for onnx is to be named x.onnx" in refused(
        "calibrate", file, mvtec / "train" / "good", "-o", tmp_path / "x.blemish"
    )


def test_an_artifact_is_not_named_as_an_exported_file_is(
    refused: Refused, files_of: Path, good_folder: Path, tmp_path: Path
) -> None:
    artifact, file = files_of / "part.blemish", tmp_path / "x.onnx"
    said = "name the artifact x.blemish, from which blemish export writes x.onnx"
    assert said in refused("fit knn", good_folder, "-o", file, "--backbone test_vit")
    assert said in refused("calibrate", artifact, "--threshold 1", "-o", file)
    assert said in refused("refine", artifact, "--good", good_folder, "-o", file)
    with pytest.raises(OutputError, match=r"name the artifact x\.blemish"):
        blemish.load(artifact).save(file.with_suffix(".xml"))
    assert [each.name for each in tmp_path.iterdir()] == ["good"]

"""Bad input at the command line: one clear message, the right exit status, no traceback, nothing
left half done.
"""

from __future__ import annotations

import errno
import json
import os
import pickle
import re
import signal
import struct
import subprocess
import sys
import tempfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from parts import FIT, rows_of
from PIL import Image

from blemish.artifact import read
from blemish.cli import learn
from blemish.data import ahead
from blemish.errors import OutputError
from blemish.files import cannot_write, write_whole

Run = Callable[..., tuple[int, str, str]]
Refused = Callable[..., str]


def test_a_folder_without_pictures(refused: Refused, part: Path, tmp_path: Path) -> None:
    empty = tmp_path / "empty"
    empty.mkdir()
    for command in (
        ("fit knn", empty, "-o", tmp_path / "x"),
        ("predict", part, empty),
        ("data check", empty),
    ):
        assert f"{empty}: no pictures found" in refused(*command)
    assert "no such file or folder" in refused("predict", part, tmp_path / "nowhere")
    assert "nothing matches this pattern" in refused("predict", part, tmp_path / "*.png")
    assert not (tmp_path / "x").exists()


def test_nothing_is_written_over_a_picture(
    refused: Refused, part: Path, mvtec: Path, tmp_path: Path
) -> None:
    """Whatever the option: what it writes is not named as a picture, which it might replace."""
    (good,) = list(mvtec.glob("train/good/*.png"))[:1]
    rows = tmp_path / "rows.jsonl"
    rows.touch()
    before = good.read_bytes()
    for command in (
        ("fit knn", mvtec, "-o", good, FIT),
        ("pretrain", mvtec, "-o", good, "--backbone test_vit"),
        ("calibrate", part, "--threshold 1 -o", good),
        ("refine", part, "--good", mvtec, "-o", good),
        ("predict", part, mvtec, "--report", good),
        ("predict", part, mvtec, "--coco", good),
        ("evaluate", part, mvtec, "--report", good),
        ("bench --methods knn --backbone test_vit --data", mvtec, "--results", good),
        ("bench table", rows, "-o", good),
        ("export", part, "-o", good),
    ):
        said = refused(*command)
        assert f"{good}: is the name of a picture" in said or "ends in .onnx or .xml" in said
        assert good.read_bytes() == before
    new = tmp_path / "new.TIFF"  # there is none yet, and a folder scan would take it for one
    assert "is the name of a picture" in refused("predict", part, mvtec, "--report", new)
    assert not new.exists()


def test_one_picture(run: Run, refused: Refused, tmp_path: Path, write: Any, picture: Any) -> None:
    one = write(tmp_path / "one" / "a.png", picture(0))
    fit = (one.parent, "-o", tmp_path / "x", FIT)
    assert "padim needs at least 2 training pictures, got 1" in refused("fit padim", *fit)
    out = run("fit knn", *fit)[1]
    assert "Threshold: none: a false-alarm rate of 5 % needs at least 19 normal pictures" in out
    assert "no verdict, as the artifact has no threshold" in run("predict", tmp_path / "x", one)[1]
    asked_for = refused("fit knn", *fit, "--false-alarm-rate 0.05")  # and so must be kept
    assert "needs at least 19 normal pictures" in asked_for


def bomb() -> bytes:
    """A valid PNG of 30,000 × 30,000 black pixels, 1 bit each: 110 kB."""
    packer = zlib.compressobj(9)
    row = bytes(1 + 30_000 // 8)
    body = b"".join(packer.compress(row * 1000) for _ in range(30)) + packer.flush()
    chunks = [
        (b"IHDR", struct.pack(">IIBBBBB", 30_000, 30_000, 1, 0, 0, 0, 0)),
        (b"IDAT", body),
        (b"IEND", b""),
    ]
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        for kind, data in chunks
    )


def spoil(folder: Path, pixels: np.ndarray) -> dict[str, str]:
    """Writes broken pictures and gives their names with what must be said of them."""
    folder.mkdir(parents=True, exist_ok=True)
    image = Image.fromarray(pixels)
    (folder / "text.png").write_text("This is no picture.\n")
    image.save(folder / "whole.jpg", quality=95)
    content = (folder / "whole.jpg").read_bytes()
    (folder / "whole.jpg").unlink()
    (folder / "truncated.jpg").write_bytes(content[: len(content) // 2])
    (folder / "bomb.png").write_bytes(bomb())
    second = Image.fromarray(255 - pixels)
    image.save(folder / "animated.webp", save_all=True, append_images=[second])
    image.save(folder / "animated.png", save_all=True, append_images=[second])
    image.save(folder / "pages.tif", save_all=True, append_images=[second])
    (folder / "empty.bmp").touch()
    (folder / "dangling.png").symlink_to(folder / "nowhere.png")
    return {
        "text.png": "",
        "truncated.jpg": "truncated|ends",
        "bomb.png": "900,000,000 pixels",
        "animated.webp": "2 frames",
        "animated.png": "2 frames",
        "pages.tif": "2 pages",
        "empty.bmp": "0 bytes",
        "dangling.png": "does not exist",
    }


def test_broken_pictures_are_listed_and_the_rest_is_used(
    run: Run, part: Path, good_folder: Path, tmp_path: Path, picture: Callable[..., np.ndarray]
) -> None:
    reasons = spoil(good_folder, picture(0))
    predict = ("predict", part, good_folder, "--output", tmp_path / "out")
    for command in (
        predict,
        ("fit knn", good_folder, "-o", tmp_path / "x", FIT),
        ("data check", good_folder),
    ):
        status, out, err = run(*command)
        assert (status, "Traceback" in err) == (1, False)
        for name, reason in reasons.items():
            assert re.search(rf"{re.escape(name)}: .*({reason})", out), (name, out)
    assert len(read(tmp_path / "x")[1]["data"]["fitted"]) == 24
    rows = rows_of(tmp_path / "out")
    assert {Path(row["path"]).name for row in rows if "error" in row} == set(reasons)
    made = json.loads(run(*predict, "--resume --json")[1])
    assert (made["predictions"], made["scored"], made["failed"]) == (rows, 24, len(reasons))


def test_a_picture_that_may_not_be_read(
    run: Run, part: Path, good_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    open_file = os.open

    def guarded(path: Any, *arguments: Any, **options: Any) -> Any:
        if str(path).endswith("003.png"):  # a mode of 000 would not stop root
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return open_file(path, *arguments, **options)

    monkeypatch.setattr(os, "open", guarded)
    status, out, _ = run("predict", part, good_folder)
    assert status == 1
    assert "003.png: cannot be read (Permission denied)" in out
    assert "23 scored" in out


def test_only_broken_pictures(run: Run, refused: Refused, part: Path, tmp_path: Path) -> None:
    folder, report = tmp_path / "bad", tmp_path / "r.html"
    folder.mkdir()
    (folder / "a.png").touch()
    status, out, _ = run("predict", part, folder, "--report", report, "--output", tmp_path / "out")
    assert status == 1
    assert "no picture was scored; 1 could not be read" in out
    assert "a.png" in report.read_text()
    assert "is empty (0 bytes)" in refused("fit knn", folder, "-o", tmp_path / "x", FIT)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ("--backbone dinov2_vits15", "did you mean 'dinov2_vits14'?"),
        ("--set bank_sise=3", "unknown setting 'bank_sise'; did you mean 'bank_size'?"),
        ("--set bank_size", "'bank_size' is not of the form key=value"),
        ("--set textures=x", "knn has no setting 'textures', which only draem has; leave it out"),
        ("--time-budget 4 --compute-budget 4", "--compute-budget 4: give one of them"),
        ("--recipe bets", "unknown recipe of knn 'bets'; did you mean 'best'?"),
        ("--layers 99", "layer 99 does not exist"),
        ("--image-size big", "--image-size: 'big' is no size; 448, or height and width"),
        (
            "--false-alarm-rate 5",
            "--false-alarm-rate 5: a fraction in (0, 1) is needed (0.05 for 5 %)",
        ),
        ("--window 12", "two numbers lo,hi"),
        ("--device gpu", "device 'gpu' is not available here"),
        ("--precision fp8", "unknown precision 'fp8'"),
        ("--config nowhere.json", "nowhere.json: cannot be read"),
        ("--weights nowhere.pt", "nowhere.pt: there is no such weight file"),
    ],
)
def test_settings_that_cannot_be(
    refused: Refused, good_folder: Path, tmp_path: Path, options: str, said: str
) -> None:
    assert said in refused("fit knn", good_folder, "-o", tmp_path / "x", FIT, options)
    assert not (tmp_path / "x").exists()


def test_settings_of_the_normality_detector_are_named_as_such(
    refused: Refused, good_folder: Path, tmp_path: Path
) -> None:
    said = refused("fit lda", good_folder, "-o", tmp_path / "x", FIT, "--set neighbours=3")
    assert "lda has no setting 'neighbours', which only patchcore, knn, " in said
    assert "is given as normality_settings=neighbours=VALUE, others are left out" in said
    assert " image_size, " in said[said.index("Settings of lda: ") :]


def test_options_of_a_pretraining_that_cannot_be(
    refused: Refused, good_folder: Path, tmp_path: Path
) -> None:
    pretrain = ("pretrain", good_folder, "-o", tmp_path / "x", "--backbone test_vit")
    said = refused(*pretrain, "--objective swav --masking block")
    assert "swav has no setting 'masking', which only apmask, dino, msn have" in said
    said = refused(*pretrain, "--time-budget 4 --compute-budget 4")
    assert "--compute-budget 4: give one of them" in said
    assert not (tmp_path / "x").exists()


def test_names_that_are_unknown(refused: Refused, good_folder: Path, tmp_path: Path) -> None:
    fit = refused("fit pachcore", good_folder, "-o", tmp_path / "x")
    for said in (fit, refused("methods pachcore")):
        assert "unknown method 'pachcore'; did you mean 'patchcore'?" in said


def test_weights_out_of_reach(
    refused: Refused, good_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    fit = ("fit knn", good_folder, "-o", tmp_path / "x", "--backbone dinov2_vits14")
    message = refused(*fit)
    assert "the weights of dinov2_vits14 are out of reach" in message
    assert "--weights FILE" in message
    assert "--backbone focus_vits14" in message


def altered_threshold(path: Path) -> None:
    """Raises the threshold in the manifest, with the lengths put right: a forgery by hand."""
    content = path.read_bytes()
    length = int.from_bytes(content[:8], "little")
    table = json.loads(content[8 : 8 + length])
    manifest = json.loads(table["__metadata__"]["manifest"])
    manifest["threshold"]["value"] += 10.0
    table["__metadata__"]["manifest"] = json.dumps(manifest)
    header = json.dumps(table).encode()
    header += b" " * (-len(header) % 8)
    path.write_bytes(len(header).to_bytes(8, "little") + header + content[8 + length :])


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lambda path: path.write_bytes(path.read_bytes()[:-100]), "is cut short"),
        (altered_threshold, "was altered or damaged"),
        (lambda path: path.write_bytes(pickle.dumps({"a": 1})), "can run code when loaded"),
        (lambda path: path.unlink(), "cannot be read"),
    ],
    ids=["cut", "threshold", "pickle", "missing"],
)
def test_artifacts_that_cannot_be_trusted(
    refused: Refused, part: Path, good_folder: Path, damage: Callable[[Path], Any], said: str
) -> None:
    damage(part)
    for command in (("inspect", part), ("predict", part, good_folder)):
        message = refused(*command)
        assert str(part) in message
        assert said in message


def test_an_output_that_cannot_be_written_is_refused_before_the_work(
    refused: Refused,
    part: Path,
    good_folder: Path,
    mvtec: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def never(*_: Any, **__: Any) -> None:
        raise AssertionError("work was begun")

    for work in (
        "blemish.detector.built.build",
        "blemish.detector.predict.Detector.predict_many",
        "blemish.detector.calibrate.recalibrate",
    ):
        monkeypatch.setattr(work, never)
    (tmp_path / "file").touch()
    inside = tmp_path / "file" / "x"  # a folder cannot be made where a file is
    for command in (
        ("fit knn", good_folder, FIT, "-o"),
        ("predict", part, good_folder, "--output"),
        ("predict", part, good_folder, "--report"),
        ("evaluate", part, mvtec, "--output"),
        ("evaluate", part, mvtec, "--report"),
        ("calibrate", part, good_folder, "-o"),
    ):
        assert "cannot be written" in refused(*command, inside)
    assert "is a folder" in refused("fit knn", good_folder, "-o", good_folder, FIT)


def test_a_full_disk(
    refused: Refused, part: Path, good_folder: Path, mvtec: Path, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    out = tmp_path / "out"
    out.mkdir()
    for command in (
        ("fit knn", good_folder, FIT, "-o", out / "x"),
        ("predict", part, good_folder, "--report", out / "r.html"),
        ("evaluate", part, mvtec, "--output", out),
    ):
        assert "No space left on device" in refused(*command)
    assert list(out.rglob("*")) == []  # nothing half written


def test_what_was_learned_is_kept_where_its_disk_has_filled_up(
    refused: Refused, run: Run, good_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept, there = tmp_path / "kept", tmp_path / "out" / "x.blemish"
    kept.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(kept))

    def full(path: Path, content: Any) -> Path:
        if not path.is_relative_to(kept):
            raise cannot_write(path, OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)))
        return write_whole(path, content)

    monkeypatch.setattr("blemish.artifact.write_whole", full)
    said = refused("fit knn", good_folder, FIT, "-o", there)
    (made,) = kept.glob("*/x.blemish")
    assert "No space left on device" in said
    assert f"What was made is kept in {made}: move it to {there}" in said
    assert not there.exists()
    assert run("predict", made, good_folder)[0] == 0


def test_a_trained_one_can_be_made_again_from_its_checkpoint(tmp_path: Path) -> None:
    def fails(path: Path) -> None:
        raise OutputError(f"{path}: full")

    checkpoint = tmp_path / "x.training"
    for told, exists in (("x: full", False), ("x: full; or the same command with --resume", True)):
        if exists:
            checkpoint.touch()
        with pytest.raises(OutputError, match=told) as caught:
            learn._save(SimpleNamespace(save=fails), tmp_path / "x", [checkpoint])
        assert ("--resume" in str(caught.value)) == exists


def test_a_disk_that_fills_up_while_predicting(
    run: Run, part: Path, good_folder: Path, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    saved: list[Path] = []

    def save(path: Path, pixels: np.ndarray) -> None:
        if len(saved) == 5:
            raise OSError(errno.ENOSPC, "No space left on device", str(path))
        saved.append(path)

    predict = ("predict", part, good_folder, "--output", tmp_path / "out")
    with monkeypatch.context() as patch:
        patch.setattr("blemish.report.predictions.save_png", save)
        status, _, said = run(*predict)
    assert status == 2
    assert "out/overlays" in said
    assert "cannot be written (No space left on device)" in said
    assert "once there is room, the same command with --resume goes on from here" in said
    assert 0 < len(rows_of(tmp_path / "out")) <= 5
    assert run(*predict, "--resume")[0] == 0
    assert len(rows_of(tmp_path / "out")) == 24


def interrupt_at(name: str, work: Callable[..., Any]) -> Callable[..., Any]:
    """`work`, which presses Ctrl-C when the picture of that name comes: in a pool's thread, the
    main one at work.
    """

    def pressed(source: Any, *arguments: Any, **options: Any) -> Any:
        if Path(source).name == name:
            os.kill(os.getpid(), signal.SIGINT)
        return work(source, *arguments, **options)

    return pressed


@pytest.fixture
def ctrl_c() -> Iterator[None]:
    """SIGINT as a terminal's user gets it: a shell may have started the tests with the signal
    ignored.
    """
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.skipif(os.name != "posix", reason="signals of POSIX")
@pytest.mark.usefixtures("ctrl_c")
def test_ctrl_c_in_fit_leaves_nothing(
    run: Run, good_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("blemish.data.ahead.decode", interrupt_at("008.png", ahead.decode))
    target = tmp_path / "made" / "part.blemish"
    status, out, err = run("fit knn", good_folder, "-o", target, "--batch-size 1", FIT)
    assert (status, out) == (130, "")
    assert err.splitlines()[-1] == "blemish: interrupted; no file was left half written"
    assert list(target.parent.iterdir()) == []


@pytest.mark.skipif(os.name != "posix", reason="signals of POSIX")
@pytest.mark.usefixtures("ctrl_c")
def test_ctrl_c_in_predict_keeps_rows_and_resume_completes_them(
    run: Run, part: Path, good_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (good_folder / "002.png").write_bytes(b"")
    predict = ("predict", part, good_folder, "--batch-size 1 --precision fp32 --output")
    report = tmp_path / "report.html"
    with monkeypatch.context() as patch:
        patch.setattr("blemish.data.ahead.decode", interrupt_at("015.png", ahead.decode))
        status, out, err = run(*predict, tmp_path / "out", "--report", report, "--json")
    made = json.loads(out)
    done = len(made["predictions"])
    assert (status, made["interrupted"], made["failed"]) == (130, True, 1)
    assert f"after {done} of 24 pictures; the same command with --resume goes on from here" in err
    assert "002.png" in report.read_text()
    completed(run, *predict, out=tmp_path / "out", whole=tmp_path / "whole")


def completed(run: Run, *predict: object, out: Path, whole: Path) -> None:
    """What an interrupted run has left in `out` is sound, and --resume makes of it what `whole` is
    in one go.
    """
    before = rows_of(out)
    assert len((out / "predictions.csv").read_text().splitlines()) == 1 + len(before)
    assert run(*predict, out, "--resume")[0] == run(*predict, whole)[0]
    after, expected = rows_of(out), rows_of(whole)
    assert 0 < len(before) < len(after)
    assert after[: len(before)] == before
    for row, other in zip(after, expected, strict=True):
        assert row.get("score", 0) == pytest.approx(other.get("score", 0), rel=1e-5)
        assert {**row, "score": 0} == {**other, "score": 0}
    drawn = [{path.name for path in (folder / "overlays").iterdir()} for folder in (out, whole)]
    assert drawn[0] == drawn[1]


def start(*arguments: str | Path, **environment: str) -> subprocess.Popen[str]:
    """The program in a process of its own."""
    code = "import signal, sys; signal.signal(signal.SIGINT, signal.default_int_handler)\n"
    code += "from blemish.cli import main; sys.exit(main())"
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", **environment}
    command = [sys.executable, "-c", code, *map(str, arguments)]
    pipe = subprocess.PIPE
    return subprocess.Popen(command, stdout=pipe, stderr=pipe, text=True, env=environment)


@pytest.mark.slow
def test_ctrl_c_in_the_process_of_a_predict(
    run: Run, part: Path, tmp_path: Path, picture: Any, write: Any
) -> None:
    large, new = write(tmp_path / "large.png", picture(0, height=500, width=500)), tmp_path / "new"
    new.mkdir()
    for number in range(24):
        (new / f"{number:03d}.png").symlink_to(large)
    predict = ("predict", part, new, "--batch-size", "1", "--precision", "fp32", "--output")
    process = start(*predict, tmp_path / "out")
    assert process.stderr is not None
    assert any(line.startswith("scoring") for line in process.stderr)
    process.send_signal(signal.SIGINT)
    said, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "goes on from here" in err
    assert "Traceback" not in err
    assert "scored" in said
    completed(run, *predict, out=tmp_path / "out", whole=tmp_path / "whole")


@pytest.mark.slow
def test_weights_out_of_reach_bring_no_chatter(good_folder: Path, tmp_path: Path) -> None:
    process = start("fit", "knn", good_folder, "-o", tmp_path / "x", HF_HOME=str(tmp_path / "hub"))
    out, err = process.communicate(timeout=120)
    assert (process.returncode, out) == (2, "")
    told = [line.partition(":")[0] for line in err.splitlines()]
    assert told == ["loading the backbone", "blemish"]

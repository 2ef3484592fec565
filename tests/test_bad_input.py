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
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import blemish
from blemish import artifact as artifacts
from blemish import cli
from blemish.artifact import FORMAT, read
from blemish.data import stream

Run = Callable[..., tuple[int, str]]
FIT = (
    "--backbone",
    "test_vit",
    "--weights",
    "random",
    "--image-size",
    "64",
    "--layers",
    "2,4",
    "--precision",
    "fp32",
)


@pytest.fixture
def refused(capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """`refused("fit", …)`: the message of a command that must end with status 2, having printed
    nothing else.
    """

    def execute(*arguments: str | Path) -> str:
        capsys.readouterr()
        status = cli.main([str(argument) for argument in arguments])
        out, err = capsys.readouterr()
        assert (status, out) == (2, "")
        assert "Traceback" not in err
        assert "bug in blemish" not in err
        return err[err.index("blemish") :]

    return execute


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    """`run("fit", …)`: (exit status, standard output)."""

    def execute(*arguments: str | Path) -> tuple[int, str]:
        capsys.readouterr()
        status = cli.main([str(argument) for argument in arguments])
        out, err = capsys.readouterr()
        assert "Traceback" not in out + err
        assert "bug in blemish" not in out + err
        return status, out

    return execute


@pytest.fixture
def part(tmp_path: Path, fitted: Callable[..., blemish.Detector]) -> Path:
    return fitted().save(tmp_path / "part.blemish")


def test_a_folder_without_pictures(refused: Callable[..., str], part: Path, tmp_path: Path) -> None:
    empty = tmp_path / "empty"
    empty.mkdir()
    for arguments in (
        ["fit", "knn", empty, "-o", tmp_path / "x"],
        ["predict", part, empty],
        ["data", "check", empty],
    ):
        assert f"{empty}: no pictures found" in refused(*arguments)
    assert "no such file or folder" in refused("predict", part, tmp_path / "nowhere")
    assert "nothing matches this pattern" in refused("predict", part, tmp_path / "*.png")
    assert not (tmp_path / "x").exists()


def test_one_picture_is_too_few_for_padim(
    refused: Callable[..., str], tmp_path: Path, write: Any, picture: Any
) -> None:
    write(tmp_path / "one" / "a.png", picture(0))
    message = refused("fit", "padim", tmp_path / "one", "-o", tmp_path / "x", *FIT)
    assert "padim needs at least 2 training pictures, got 1" in message


@pytest.mark.parametrize("method", ["patchcore", "knn"])
def test_one_picture_makes_a_memory_bank_without_a_threshold(
    run: Run, refused: Callable[..., str], tmp_path: Path, write: Any, picture: Any, method: str
) -> None:
    one = write(tmp_path / "one" / "a.png", picture(0))
    status, out = run("fit", method, one.parent, "-o", tmp_path / "x", *FIT)
    assert status == 0
    assert "Threshold: none: a false-alarm rate of 5 % needs at least 19 normal pictures" in out
    status, out = run("predict", tmp_path / "x", one)
    assert status == 0
    assert "no verdict, as the artifact has no threshold" in out
    message = refused(
        "fit", method, one.parent, "-o", tmp_path / "y", *FIT, "--false-alarm-rate", "0.05"
    )
    assert (
        "needs at least 19 normal pictures" in message
    )  # a rate that is asked for by name must be kept


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
    for arguments in (
        ["predict", part, good_folder],
        ["fit", "knn", good_folder, "-o", tmp_path / "x", *FIT],
        ["data", "check", good_folder],
    ):
        status, out = run(*arguments)
        assert status == 1
        for name, reason in reasons.items():
            assert re.search(rf"{re.escape(name)}: .*({reason})", out), (name, out)
    assert len(read(tmp_path / "x")[1]["data"]["fitted"]) == 24


def test_a_picture_that_may_not_be_read(
    run: Run, part: Path, good_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    open_file = os.open

    def guarded(path: Any, *arguments: Any, **options: Any) -> Any:
        if str(path).endswith("003.png"):  # a mode of 000 would not stop root
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return open_file(path, *arguments, **options)

    monkeypatch.setattr(os, "open", guarded)
    status, out = run("predict", part, good_folder)
    assert status == 1
    assert "003.png: cannot be read (Permission denied)" in out
    assert "23 scored" in out


def test_three_broken_of_thirty(
    run: Run, part: Path, tmp_path: Path, picture: Any, write: Any
) -> None:
    folder = tmp_path / "batch"
    for seed in range(30):
        write(folder / f"{seed:02d}.png", picture(400 + seed))
    for name in ("03.png", "11.png", "29.png"):
        (folder / name).write_bytes((folder / name).read_bytes()[:200])
    status, out = run("predict", part, folder, "--output", tmp_path / "out", "--json")
    made = json.loads(out)
    assert (status, made["scored"], made["failed"]) == (1, 27, 3)
    rows = [
        json.loads(line)
        for line in (tmp_path / "out" / "predictions.jsonl").read_text().splitlines()
    ]
    assert rows == made["predictions"]
    assert [Path(row["path"]).name for row in rows if "error" in row] == [
        "03.png",
        "11.png",
        "29.png",
    ]
    assert [Path(row["path"]).name for row in rows] == [f"{seed:02d}.png" for seed in range(30)]


def test_only_broken_pictures(
    run: Run, refused: Callable[..., str], part: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "bad"
    folder.mkdir()
    for name in ("a.png", "b.png"):
        (folder / name).touch()
    status, out = run(
        "predict", part, folder, "--report", tmp_path / "r.html", "--output", tmp_path / "out"
    )
    assert status == 1
    assert "no picture was scored; 2 could not be read" in out
    assert "a.png" in (tmp_path / "r.html").read_text()
    message = refused("fit", "knn", folder, "-o", tmp_path / "x", *FIT)
    assert "is empty (0 bytes)" in message or "no training picture" in message


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["pachcore", "GOOD"], "unknown method 'pachcore'; did you mean 'patchcore'?"),
        (
            ["knn", "GOOD", "--backbone", "dinov2_vits15"],
            "unknown backbone 'dinov2_vits15'; did you mean 'dinov2_vits14'?",
        ),
        (
            ["knn", "GOOD", *FIT, "--set", "bank_sise=3"],
            "unknown setting 'bank_sise'; did you mean 'bank_size'?",
        ),
        (["knn", "GOOD", *FIT, "--set", "bank_size"], "'bank_size' is not of the form key=value"),
        (["knn", "GOOD", *FIT, "--set", "bank_size=many"], "bank_size: 'many' is not of type int"),
        (
            ["knn", "GOOD", *FIT, "--recipe", "bets"],
            "unknown recipe of knn 'bets'; did you mean 'best'?",
        ),
        (["knn", "GOOD", *FIT, "--layers", "99"], "layer 99 does not exist"),
        (
            ["knn", "GOOD", *FIT, "--image-size", "big"],
            "image_size: 'big' is no size; 448, or height and width",
        ),
        (["knn", "GOOD", *FIT, "--false-alarm-rate", "5"], "5.0 is not between 0 and 1"),
        (["knn", "GOOD", *FIT, "--window", "12"], "two numbers lo,hi"),
        (["knn", "GOOD", *FIT, "--device", "gpu"], "device 'gpu' is not available here"),
        (["knn", "GOOD", *FIT, "--precision", "fp8"], "unknown precision 'fp8'"),
        (["knn", "GOOD", *FIT, "--config", "nowhere.json"], "nowhere.json: cannot be read"),
        (
            ["knn", "GOOD", "--backbone", "test_vit", "--weights", "nowhere.pt"],
            "nowhere.pt: there is no such weight file",
        ),
    ],
)
def test_settings_that_cannot_be(
    refused: Callable[..., str], good_folder: Path, tmp_path: Path, arguments: list[str], said: str
) -> None:
    given = [str(good_folder) if argument == "GOOD" else argument for argument in arguments]
    assert said in refused("fit", *given, "-o", tmp_path / "x")
    assert not (tmp_path / "x").exists()


def test_weights_out_of_reach(
    refused: Callable[..., str], good_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    message = refused(
        "fit", "knn", good_folder, "-o", tmp_path / "x", "--backbone", "dinov2_vits14"
    )
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


def flipped_bit(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-1000] ^= 1
    path.write_bytes(content)


def newer_format(path: Path) -> None:
    tensors, manifest = read(path)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(artifacts, "FORMAT", FORMAT + 1)
        artifacts.write(path, tensors, manifest)


def foreign_safetensors(path: Path) -> None:
    import safetensors.torch

    safetensors.torch.save_file({"a": torch.zeros(3)}, path)


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lambda path: path.write_bytes(path.read_bytes()[:-100]), "is cut short"),
        (lambda path: path.write_bytes(path.read_bytes()[:500]), "is cut short"),
        (lambda path: path.write_bytes(b""), "is not an artifact (0 bytes)"),
        (flipped_bit, "was altered or damaged"),
        (altered_threshold, "was altered or damaged"),
        (newer_format, f"has format {FORMAT + 1}"),
        (foreign_safetensors, "not one that blemish fit has written"),
        (
            lambda path: path.write_bytes(pickle.dumps({"a": 1})),
            "can run code when loaded; not opened",
        ),
        (
            lambda path: torch.save({"a": torch.zeros(2)}, path),
            "can run code when loaded; not opened",
        ),
        (lambda path: path.write_bytes(b"\x89PNG" + bytes(500)), "is not an artifact"),
        (lambda path: path.unlink(), "cannot be read"),
    ],
    ids=[
        "cut",
        "cut-header",
        "empty",
        "bit",
        "threshold",
        "newer",
        "safetensors",
        "pickle",
        "torch",
        "png",
        "missing",
    ],
)
def test_artifacts_that_cannot_be_trusted(
    refused: Callable[..., str],
    part: Path,
    good_folder: Path,
    damage: Callable[[Path], Any],
    said: str,
) -> None:
    damage(part)
    for arguments in (["inspect", part], ["predict", part, good_folder]):
        message = refused(*arguments)
        assert str(part) in message
        assert said in message


def test_an_output_that_cannot_be_written_is_refused_before_the_work(
    refused: Callable[..., str],
    part: Path,
    good_folder: Path,
    mvtec: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def never(*_: Any, **__: Any) -> None:
        raise AssertionError("work was begun")

    for work in (
        "blemish.detector.fit.build",
        "blemish.detector.predict.Detector.predict_many",
        "blemish.detector.calibrate.recalibrate",
    ):
        monkeypatch.setattr(work, never)
    (tmp_path / "file").touch()
    inside = tmp_path / "file" / "x"  # a folder cannot be made where a file is
    for arguments in (
        ["fit", "knn", good_folder, "-o", inside, *FIT],
        ["predict", part, good_folder, "--output", inside],
        ["predict", part, good_folder, "--report", inside],
        ["evaluate", part, mvtec, "--output", inside],
        ["evaluate", part, mvtec, "--report", inside],
        ["calibrate", part, good_folder, "-o", inside],
    ):
        assert "cannot be written" in refused(*arguments)
    assert "is a folder" in refused("fit", "knn", good_folder, "-o", good_folder, *FIT)


def test_a_full_disk(
    refused: Callable[..., str],
    part: Path,
    good_folder: Path,
    mvtec: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    (tmp_path / "out").mkdir()
    for arguments in (
        ["fit", "knn", good_folder, "-o", tmp_path / "out" / "x", *FIT],
        ["predict", part, good_folder, "--report", tmp_path / "out" / "r.html"],
        ["evaluate", part, mvtec, "--output", tmp_path / "out"],
    ):
        assert "No space left on device" in refused(*arguments)
    assert list((tmp_path / "out").rglob("*")) == []  # nothing half written


def test_a_disk_that_fills_up_while_predicting(
    refused: Callable[..., str],
    run: Run,
    part: Path,
    good_folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    saved: list[Path] = []

    def save(path: Path, pixels: np.ndarray) -> None:
        if len(saved) == 5:
            raise OSError(errno.ENOSPC, "No space left on device", str(path))
        saved.append(path)

    with monkeypatch.context() as patch:
        patch.setattr("blemish.report.predictions.save_png", save)
        assert "the disk is full" in refused(
            "predict", part, good_folder, "--output", tmp_path / "out"
        )
    rows = (tmp_path / "out" / "predictions.jsonl").read_text().splitlines()
    assert 0 < len(rows) <= 5
    assert run("predict", part, good_folder, "--output", tmp_path / "out", "--resume")[0] == 0
    assert len((tmp_path / "out" / "predictions.jsonl").read_text().splitlines()) == 24


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
    good_folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr("blemish.data.stream.decode", interrupt_at("008.png", stream.decode))
    target = tmp_path / "made" / "part.blemish"
    assert (
        cli.main(["fit", "knn", str(good_folder), "-o", str(target), "--batch-size", "1", *FIT])
        == 130
    )
    out, err = capsys.readouterr()
    assert out == ""
    assert err.splitlines()[-1] == "blemish: interrupted; no file was left half written"
    assert list(target.parent.iterdir()) == []


@pytest.mark.skipif(os.name != "posix", reason="signals of POSIX")
@pytest.mark.usefixtures("ctrl_c")
def test_ctrl_c_in_predict_keeps_rows_and_resume_completes_them(
    run: Run,
    part: Path,
    good_folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    options = ["--batch-size", "1", "--precision", "fp32"]
    (good_folder / "002.png").write_bytes(b"")
    out, whole = tmp_path / "out", tmp_path / "whole"
    with monkeypatch.context() as patch:
        patch.setattr("blemish.data.stream.decode", interrupt_at("015.png", stream.decode))
        status = cli.main(["predict", str(part), str(good_folder), "--output", str(out), *options])
    said, err = capsys.readouterr()
    assert status == 130
    assert "the same command with --resume goes on from here" in err
    assert "002.png: is empty" in said
    completed(run, part, good_folder, out, whole, options)


def completed(run: Run, part: Path, new: Path, out: Path, whole: Path, options: list[str]) -> None:
    """What an interrupted run has left in `out` is sound, and --resume makes of it what `whole` is
    in one go.
    """

    def rows(folder: Path) -> list[dict[str, Any]]:
        return [
            json.loads(line) for line in (folder / "predictions.jsonl").read_text().splitlines()
        ]

    before = rows(out)
    assert len((out / "predictions.csv").read_text().splitlines()) == 1 + len(before)
    status, _ = run("predict", part, new, "--output", out, "--resume", *options)
    assert run("predict", part, new, "--output", whole, *options)[0] == status
    after, expected = rows(out), rows(whole)
    assert 0 < len(before) < len(after)
    assert after[: len(before)] == before
    for row, other in zip(after, expected, strict=True):
        assert row.get("score", 0) == pytest.approx(other.get("score", 0), rel=1e-5)
        assert {**row, "score": 0} == {**other, "score": 0}
    drawn, wanted = (
        {path.name for path in (folder / "overlays").iterdir()} for folder in (out, whole)
    )
    assert drawn == wanted


def start(*arguments: str | Path, **environment: str) -> subprocess.Popen[str]:
    """The program in a process of its own."""
    code = "import signal, sys; signal.signal(signal.SIGINT, signal.default_int_handler)\n"
    command = [
        sys.executable,
        "-c",
        code + "from blemish.cli import main; sys.exit(main())",
        *map(str, arguments),
    ]
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", **environment}
    return subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment
    )


def interrupted(stage: str, *arguments: str | Path) -> tuple[int, str, str]:
    """The command, stopped by Ctrl-C when its progress tells of `stage`: (exit status, output,
    messages).
    """
    process = start(*arguments)
    assert process.stderr is not None
    assert any(line.startswith(stage) for line in process.stderr)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    return process.returncode, out, err


def links(folder: Path, target: Path, count: int) -> Path:
    """Many pictures that take a while, from one file."""
    folder.mkdir()
    for number in range(count):
        (folder / f"{number:03d}.png").symlink_to(target)
    return folder


@pytest.mark.slow
def test_ctrl_c_in_the_process_of_a_fit(tmp_path: Path, picture: Any, write: Any) -> None:
    large = write(tmp_path / "large.png", picture(0, height=1000, width=1000))
    target = tmp_path / "made" / "part.blemish"
    good = links(tmp_path / "good", large, 300)
    status, out, err = interrupted("remembering", "fit", "knn", good, "-o", target, *FIT)
    assert (status, out) == (130, "")
    assert err.splitlines()[-1] == "blemish: interrupted; no file was left half written"
    assert list(target.parent.iterdir()) == []


@pytest.mark.slow
def test_ctrl_c_in_the_process_of_a_predict(
    run: Run, part: Path, tmp_path: Path, picture: Any, write: Any
) -> None:
    large = write(tmp_path / "large.png", picture(0, height=500, width=500))
    new = links(tmp_path / "new", large, 24)
    options = ["--batch-size", "1", "--precision", "fp32"]
    status, said, err = interrupted(
        "scoring", "predict", part, new, "--output", tmp_path / "out", *options
    )
    assert status == 130
    assert "goes on from here" in err
    assert "Traceback" not in err
    assert "scored" in said
    completed(run, part, new, tmp_path / "out", tmp_path / "whole", options)


@pytest.mark.slow
def test_weights_out_of_reach_bring_no_chatter(good_folder: Path, tmp_path: Path) -> None:
    process = start("fit", "knn", good_folder, "-o", tmp_path / "x", HF_HOME=str(tmp_path / "hub"))
    out, err = process.communicate(timeout=120)
    assert (process.returncode, out) == (2, "")
    assert [line.partition(":")[0] for line in err.splitlines()] == [
        "loading the backbone",
        "blemish",
    ]

"""What a path can name that is no file to read, and names of files that mislead."""

from __future__ import annotations

import csv
import json
import os
import socket
from collections.abc import Sequence
from pathlib import Path

from fuzzing.commands import DEVICE
from fuzzing.texts import APMASK, BRIEF, FIT

Lines = dict[str, Sequence[str | Path]]


def special_files(folder: Path) -> dict[str, Path]:
    """Things that a path can name and that are no file to read, by what they are."""
    folder.mkdir(parents=True, exist_ok=True)
    found = {
        "device": Path("/dev/zero"),
        "null": Path("/dev/null"),
        "missing": folder / "nowhere",
        "folder": folder,
    }
    os.mkfifo(folder / "fifo")
    found["fifo"] = folder / "fifo"
    with (folder / "holes").open("wb") as file:
        file.truncate(2**40)
    found["terabyte of holes"] = folder / "holes"
    (folder / "loop").symlink_to(folder / "loop")
    found["link to itself"] = folder / "loop"
    (folder / "link").symlink_to(folder / "fifo")
    found["link to a fifo"] = folder / "link"
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(folder / "socket"))
    found["socket"] = folder / "socket"
    found["long name"] = folder / ("x" * 300)
    (folder / "empty").touch()
    found["empty file"] = folder / "empty"
    found["memory"] = Path("/proc/self/mem")
    return found


def reading_lines(inputs: Path, bad: Path, out: Path) -> Lines:
    """Command lines that read `bad` as each of the files that a command takes, by name."""
    good, knn, lda = inputs / "good", inputs / "knn.blemish", inputs / "lda.blemish"
    fit = ("fit", "knn", good, "-o", out / "x.blemish", "--backbone", "test_vit", *FIT[4:])
    taught = ("fit", "lda", good, "-o", out / "x.blemish", *FIT)
    return {
        "inspect ARTIFACT": ("inspect", bad),
        "predict ARTIFACT": ("predict", bad, good, *DEVICE),
        "predict PATH": ("predict", knn, bad, *DEVICE),
        "evaluate ARTIFACT": ("evaluate", bad, good, *DEVICE),
        "evaluate DATA": ("evaluate", knn, bad, *DEVICE),
        "calibrate ARTIFACT": ("calibrate", bad, good, "-o", out / "y.blemish", *DEVICE),
        "refine ARTIFACT": ("refine", bad, "--good", good, "-o", out / "z.blemish", *DEVICE),
        "refine --good": ("refine", lda, "--good", bad, "-o", out / "z.blemish", *DEVICE),
        "export ARTIFACT": ("export", bad, "-o", out / "part.onnx"),
        "export --good": ("export", knn, "-o", out / "part.onnx", "--good", bad),
        "export --pictures": ("export", knn, "-o", out / "part.onnx", "--pictures", bad),
        "figures ARTIFACT": ("figures", bad, good, "-o", out / "figures", *DEVICE),
        "fit GOOD": ("fit", "knn", bad, "-o", out / "x.blemish", *FIT),
        "fit --weights": (*fit, "--weights", bad),
        "fit --config": (*fit, "--weights", "random", "--config", bad),
        "fit --anomalies": (*taught, "--anomalies", bad),
        "pretrain GOOD": ("pretrain", bad, "-o", out / "e.safetensors", *APMASK),
        "simulate GOOD": ("simulate", bad, "-o", out / "made", *FIT[:4]),
        "data check": ("data", "check", bad),
        "bench table": ("bench", "table", bad),
        "bench --suite": ("bench", "--suite", bad, "--dry-run"),
    }


def writing_lines(inputs: Path, out: Path) -> Lines:
    """Command lines that write to `out`, by name."""
    good, new, knn = inputs / "good", inputs / "new", inputs / "knn.blemish"
    rows = Path(__file__).parents[1] / "results" / "memory.jsonl"
    return {
        "fit -o": ("fit", "knn", good, "-o", out, *FIT),
        "predict --output": ("predict", knn, new, "--output", out, *DEVICE),
        "predict --report": ("predict", knn, new, "--report", out, *DEVICE),
        "evaluate --report": ("evaluate", knn, inputs, "--report", out, *DEVICE),
        "calibrate -o": ("calibrate", knn, new, "-o", out, "--false-alarm-rate", "0.2", *DEVICE),
        "export -o": ("export", knn, "-o", out),
        "export --web": ("export", knn, "--web", out),
        "refine -o": ("refine", inputs / "lda.blemish", "--good", new, "-o", out, *DEVICE),
        "pretrain -o": ("pretrain", good, "-o", out, *APMASK, *BRIEF),
        "simulate -o": ("simulate", good, "-o", out, *FIT[:4], "--count", "1"),
        "data elpv -o": ("data", "elpv", "-o", out, "--cells", "2"),
        "data synthetic": ("data", "synthetic", out, "--count", "1", "--size", "64"),
        "bench table -o": ("bench", "table", rows, "-o", out),
    }


NAMES = (
    *("=1+1.png", "+1.png", "-1.png", "@SUM(A1).png", "a,b.png", 'a"b.png', "a;b.png"),
    *("a\tb.png", "a\nb.png", "a\rb.png", "\x1b[31mred.png", "é.png", "%s%n.png", "$(true).png"),
    *("<b>.png", "x" * 200 + ".png", "\u202egnp.exe.png", "a\udc80b.png", " .png"),
    *("\x07bell.png", "tab|le.png"),
)


def table_faults(folder: Path, pictures: int) -> list[str]:
    """What is wrong with predictions.csv and .jsonl of pictures with hostile names."""
    found = []
    rows = [json.loads(line) for line in (folder / "predictions.jsonl").read_text().splitlines()]
    if len(rows) != pictures:
        found.append(f"{len(rows)} JSON rows of {pictures} pictures")
    with (folder / "predictions.csv").open(newline="", encoding="utf-8") as file:
        text = file.read()
    cells = list(csv.DictReader(text.splitlines(keepends=True)))
    if len(cells) != pictures:
        found.append(f"{len(cells)} CSV rows of {pictures} pictures")
    for row in cells:
        if (row["path"] or "x")[0] in "=+-@\t\r":
            found.append(f"a formula in a cell: {row['path'][:30]!r}")
    lines = text.splitlines()
    if len(lines) != pictures + 1:
        found.append(f"{len(lines) - 1} lines of CSV for {pictures} pictures")
    return found

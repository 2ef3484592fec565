"""blemish watch: each picture scored once, whatever happens in between."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
import tracemalloc
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from parts import mask_of, rows_of, write_picture
from parts import part as part_of

from blemish import interrupts
from blemish.data import frames
from blemish.data.arrivals import Arrivals
from blemish.detector.predict import Detector
from blemish.images import decode
from blemish.report.ledger import Ledger
from blemish.report.sorting import VERDICTS
from blemish.report.watching import Watch
from blemish.types import Failure, Prediction, silent

Run = Callable[..., tuple[int, str, str]]
Refused = Callable[..., str]
Answered = Callable[..., Any]
ONCE = "--once --precision fp32 --device cpu --interval 0.05 --settle 0.05"


@pytest.fixture
def line(tmp_path: Path) -> Path:
    """A folder with four good and two defective parts, and a broken file, written long ago."""
    folder = tmp_path / "in"
    for seed in range(4):
        write_picture(folder / f"good-{seed}.png", part_of(seed))
    for seed in range(2):
        write_picture(folder / "b" / f"bad-{seed}.png", part_of(seed, defect=True))
    (folder / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    for path in folder.rglob("*.png"):
        os.utime(path, (1e9, 1e9))
    return folder


def names(folder: Path) -> list[str]:
    return sorted(str(one.relative_to(folder)) for one in folder.rglob("*") if not one.is_dir())


def times(out: Path) -> Counter[str]:
    """How many rows there are of each picture."""
    return Counter(Path(row["path"]).name for row in rows_of(out))


def test_what_lies_there_then_what_comes(run: Run, part: Path, line: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    watch = ("watch", line, part, "--output", out, ONCE)
    status, said, _ = run(*watch)
    assert status == 1  # one is broken
    assert "6 scored, 2 alarms, 1 not readable" in said
    rows = {Path(row["path"]).name: row for row in rows_of(out)}
    assert list(rows) == [
        *("bad-0.png", "bad-1.png", "broken.png"),
        *(f"good-{seed}.png" for seed in range(4)),
    ]
    one = rows["bad-0.png"]
    assert (one["label"], one["verdict"], one["sorted"]) == (1, "defect", "")
    assert mask_of(one).any()  # its regions, whole
    assert (one["path"], one["time"]) == (
        str(line / "b" / "bad-0.png"),
        "2001-09-09T01:46:40.000000Z",
    )
    assert one["scored_at"] > "2026"
    assert rows["broken.png"]["error"]
    assert rows["broken.png"]["verdict"] == "unsure"
    assert rows["good-0.png"]["verdict"] == "good"
    shutil.copy(line / "good-0.png", line / "new.png")
    answer = json.loads(run(*watch, "--json")[1])
    assert (answer["scored"], answer["earlier"], answer["failed"]) == (1, 7, 0)
    assert set(times(out).values()) == {1}
    assert len(times(out)) == 8
    assert run(*watch)[0] == 0


@pytest.mark.parametrize("way", ["move", "copy", "link"])
def test_sorted_by_verdict(run: Run, part: Path, line: Path, tmp_path: Path, way: str) -> None:
    before, out = names(line), tmp_path / "out"
    (out / "good").mkdir(parents=True)
    (out / "good" / "good-1.png").write_bytes(b"another")
    run("watch", line, part, "--output", out, ONCE, "--sort", way)
    assert names(out / "defect") == ["b/bad-0.png", "b/bad-1.png"]
    assert names(out / "unsure") == ["broken.png"]
    assert "good-1-2.png" in names(out / "good")
    assert (out / "good" / "good-1.png").read_bytes() == b"another"
    assert names(line) == ([] if way == "move" else before)
    for row in rows_of(out):
        assert (out / row["sorted"]).is_file()
        assert row["sorted"].startswith(row["verdict"])


def test_unsure_is_what_lies_near_the_threshold(
    run: Run, part: Path, line: Path, tmp_path: Path
) -> None:
    run("watch", line, part, "--output", tmp_path / "one", ONCE)
    rows = [row for row in rows_of(tmp_path / "one") if "error" not in row]
    distances = sorted(abs(row["score"] - row["threshold"]) for row in rows)
    margin = distances[2]
    near = sum(one <= margin for one in distances)
    run("watch", line, part, "--output", tmp_path / "two", ONCE, "--margin", str(margin))
    verdicts = Counter(row["verdict"] for row in rows_of(tmp_path / "two"))
    assert 3 <= near < 6
    assert verdicts["unsure"] == near + 1


def test_a_half_written_file_is_waited_for(
    run: Run, part: Path, line: Path, tmp_path: Path
) -> None:
    content = (line / "good-0.png").read_bytes()
    slow, never = line / "slow.png", line / "never.png"
    never.write_bytes(content[:100])

    def write() -> None:
        with slow.open("wb") as file:
            for start in range(0, len(content), len(content) // 4):
                file.write(content[start : start + len(content) // 4])
                file.flush()
                time.sleep(0.3)  # longer than it takes to settle: it is tried, and tried again

    writer = threading.Thread(target=write)
    writer.start()
    time.sleep(0.1)
    out = tmp_path / "out"
    run("watch", line, part, "--output", out, ONCE, "--patience 1")
    writer.join()
    rows = {Path(row["path"]).name: row for row in rows_of(out)}
    assert "error" not in rows["slow.png"]
    assert "truncated" in rows["never.png"]["error"]
    assert set(times(out).values()) == {1}


def test_signals_end_it_cleanly_and_it_goes_on(
    run: Run, part: Path, line: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    add, out = Ledger.add, tmp_path / "out"

    def ended(ledger: Ledger, row: dict[str, Any]) -> None:
        add(ledger, row)
        if Path(row["path"]).name == "broken.png":
            os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(Ledger, "add", ended)
    watch = ("watch", line, part, "--output", out, "--sort move", ONCE)
    status, said, err = run(*watch)
    assert (status, len(rows_of(out))) == (143, 3)
    assert "2 scored" in said
    assert "the same command goes on from here" in err
    assert names(out / "unsure") == ["broken.png"]  # its move was not left half done
    assert not (line / "broken.png").exists()
    assert run(*watch)[0] == 0
    assert set(times(out).values()) == {1}
    assert names(line) == []


def test_ctrl_c_ends_it_while_it_waits(part: Path, line: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    command = ["watch", str(line), str(part), "--output", str(out), "--device", "cpu"]
    process = subprocess.Popen(
        [sys.executable, "-m", "blemish", *command], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    rows = out / "predictions.jsonl"
    deadline = time.monotonic() + 90
    while not rows.exists() or rows.read_bytes().count(b"\n") < 7:
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    said, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert b"6 scored" in said
    assert b"Traceback" not in err


def seen(folder: Path) -> list[str]:
    """Without what a killed one has left half written, whose names begin with a dot."""
    return [name for name in names(folder) if not Path(name).name.startswith(".")]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="forks")
@pytest.mark.parametrize(
    ("way", "saved", "every"), [("move", "", 3), ("copy", "", 3), ("move", "masks,overlays", 7)]
)
def test_killed_at_any_step_nothing_is_lost_or_scored_twice(
    part: Path, line: Path, tmp_path: Path, way: str, saved: str, every: int
) -> None:
    from fuzzing import commands, forks

    command = ["watch", line, part, "--output", None, *ONCE.split(), "--sort", way]
    command += ["--save", saved] if saved else []
    work = tmp_path / "work"
    kills = 0
    for step in range(1, 20 * every, every):
        shutil.rmtree(work, ignore_errors=True)
        shutil.copytree(line, work / "in")
        command[1], command[4] = work / "in", work / "out"
        end = forks.attempt(
            lambda: commands.run(*command), prepare=commands.killed_at(work, step), limit=60
        )
        kills += end.signal == signal.SIGKILL
        forks.attempt(lambda: commands.run(*command), limit=60)
        counted = times(work / "out")
        assert len(counted) == 7
        assert set(counted.values()) == {1}, step
        out = work / "out"
        kept = [one for verdict in VERDICTS for one in seen(out / verdict)]
        assert len(kept) == 7, (step, kept)
        for row, kind in ((row, kind) for row in rows_of(out) for kind in saved.split(",") if kind):
            if "error" not in row:
                decode(out / row[kind.removesuffix("s")])  # whole
        for kind in saved.split(",") if saved else ():
            assert len(seen(out / kind)) == 6, (step, kind)
        assert names(work / "in") == ([] if way == "move" else names(line)), step
        if not end.signal:
            break  # it takes fewer steps than that
    assert kills >= 10


class Fast:
    """Stands for a detector: scores by the length of the name, and looks at no pixel."""

    def predict_many(self, sources: Iterable[Any], **_: Any) -> Iterator[Prediction | Failure]:
        empty = np.empty((0, 0), np.float32)
        for one in sources:
            yield Prediction(
                source=one.name, score=1.0, threshold=2.0, label=0, size=(1, 1), anomaly_map=empty
            )


def watched(folder: Path, out: Path, artifact: Path) -> tuple[int, int]:
    """A watch by `Fast` until nothing is left: (pictures scored, peak of memory in bytes)."""
    tracemalloc.start()
    ways = {"watched": str(folder)}
    with (
        Ledger(out, artifact=artifact, precision="fp32", ways=ways) as ledger,
        interrupts.waiting() as came,
    ):
        detector: Any = Fast()
        watch = Watch(detector, ledger, came, sorter=None, margin=0.0, progress=silent)
        watch.folder(Arrivals(folder, taken=ledger.taken), once=True, interval=0.01)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return watch.tally.scored, peak


def grown(folder: Path, out: Path, part: Path) -> float:
    """Bytes of the peak for each of 4,000 more files."""
    peaks = []
    for count in (1000, 5000):
        for index in range(count):
            path = folder / f"a-picture-of-a-part-{index:06d}.png"
            path.parent.mkdir(exist_ok=True)
            if not path.exists():
                path.touch()
                os.utime(path, (1e9, 1e9))
        scored, peak = watched(folder, out, part)
        assert scored == count - (1000 if peaks else 0)
        peaks.append(peak)
    return (peaks[1] - peaks[0]) / 4000


def test_thousands_of_files_in_bounded_memory(part: Path, tmp_path: Path) -> None:
    """A row in memory would be some 1,500 bytes; a name in the listing of a folder and a hash are
    300. 100,000 files in one folder are then 30 MB."""
    tries = ((tmp_path / f"in{each}", tmp_path / f"out{each}") for each in range(3))
    # What threads of earlier tests do in this process meanwhile counts as well, and only adds.
    folder, out = next((one for one in tries if grown(*one, part) < 300), (None, None))
    assert folder is not None
    assert out is not None
    assert watched(folder, out, part)[0] == 0  # none twice, also after a restart
    assert len(rows_of(out)) == 5000


def test_a_video_is_scored_once_and_its_frames_are_sorted(
    run: Run, answered: Answered, part: Path, tmp_path: Path
) -> None:
    path, out = tmp_path / "line.avi", tmp_path / "out"
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*"MJPG"), 10.0, (64, 64))
    for seed in range(4):
        writer.write(np.random.default_rng(seed).integers(0, 255, (64, 64, 3), np.uint8))
    writer.release()
    path.write_bytes(path.read_bytes()[:-2000])
    watch = ("watch", path, part, "--output", out, "--sort copy --save overlays --device cpu")
    status, said, _ = run(*watch)
    assert (status, "1 not readable" in said) == (1, True)
    rows = rows_of(out)
    assert [row["path"] for row in rows] == [f"{path}#{index:06d}" for index in range(len(rows))]
    assert rows[1]["time"] == pytest.approx(0.1)
    assert "cut off in this frame" in rows[-1]["error"]
    assert names(out / "defect") == [f"line.avi#{index:06d}.png" for index in range(len(rows) - 1)]
    for row in rows[:-1]:
        assert decode(out / row["overlay"]).size == (64, 64)
    assert answered(*watch)["scored"] == 0
    path.write_bytes(path.read_bytes() + b"0")
    assert "another folder or camera" in run(*watch)[2]


def test_a_camera_that_disappears(
    run: Run, refused: Refused, part: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scripts = [[True, True, False], [True, False]]

    class Camera:
        def __init__(self, _: object) -> None:
            self.script = scripts.pop(0) if scripts else []

        def isOpened(self) -> bool:
            return bool(self.script)

        def get(self, _: int) -> float:
            return 0.0

        def read(self) -> tuple[bool, Any]:
            came = bool(self.script) and self.script.pop(0)
            return came, np.zeros((64, 64, 3), np.uint8) if came else None

        def release(self) -> None:
            pass

    monkeypatch.setattr(frames.cv2, "VideoCapture", Camera)
    monkeypatch.setattr(frames, "_FIRST_PAUSE", 0.01)
    out = tmp_path / "out"
    url = "rtsp://me:secret@10.0.0.7/live"
    watch = ("watch", url, part, "--output", out, "--patience 0.1 --sort copy --device cpu")
    status, _, err = run(*watch)
    assert status == 2
    assert "rtsp://10.0.0.7/live: gives no picture any more; it is opened again" in err
    assert "rtsp://10.0.0.7/live: back after" in err
    assert "gone, and not back after" in err
    rows = rows_of(out)
    assert len(rows) == len(names(out / "defect")) == 3  # what came before is not lost
    assert rows[0]["path"] == f"rtsp://10.0.0.7/live {rows[0]['time']}"
    assert "secret" not in err + (out / "predictions.jsonl").read_text()
    assert "secret" not in (out / "run.json").read_text()
    assert "rtsp://10.0.0.7/live: cannot be opened" in refused(*watch)
    scripts.append([True])
    assert "a camera has no end" in refused(*watch, "--once")


def test_what_is_asked_for_is_kept_and_nothing_else(
    run: Run, answered: Answered, part: Path, line: Path, tmp_path: Path
) -> None:
    plain, out, judged = tmp_path / "plain", tmp_path / "out", tmp_path / "judged"
    run("watch", line, part, "--output", plain, ONCE)
    assert not {path.name for path in plain.iterdir()} & {"overlays", "masks", "maps"}
    watch = ("watch", line, part, "--output", out, ONCE, "--save masks,overlays,tiff --sort move")
    shutil.copytree(line, tmp_path / "same")
    assert run(*watch)[0] == 1
    run(
        "predict",
        part,
        line.with_name("same"),
        "--output",
        judged,
        "--save masks,overlays --precision fp32 --device cpu",
    )
    same = {Path(row["path"]).name: row for row in rows_of(judged)}
    for row in rows_of(out):
        if "error" in row:
            assert "mask" not in row
            continue
        other = same[Path(row["path"]).name]
        boxes = [[region["box"] for region in one["regions"]] for one in (row, other)]
        assert boxes[0] == boxes[1]
        assert (decode(out / row["mask"]).pixels[..., 0] == 255 * mask_of(row)).all()
        assert (out / row["tiff"]).is_file()
        one, two = (
            decode(at / each["overlay"]).pixels for at, each in ((out, row), (judged, other))
        )
        assert np.abs(one.astype(int) - two).max() <= 3  # batches of another size
    # The same name once more is another picture, whose files lie beside those of the first.
    write_picture(line / "good-0.png", part_of(0, defect=True))
    assert run(*watch)[0] == 0
    first, second = (row for row in rows_of(out) if row["path"].endswith("good-0.png"))
    assert first["mask"] != second["mask"]
    assert not decode(out / first["mask"]).pixels.any()
    assert decode(out / second["mask"]).pixels.any()


def test_only_a_part_is_watched(run: Run, part: Path, line: Path, tmp_path: Path) -> None:
    out, nowhere = tmp_path / "out", tmp_path / "roi.json"
    nowhere.write_text("[[[0, 0], [0.1, 0], [0, 0.1]]]")
    watch = ("watch", line, part, "--output", out, ONCE)
    assert "6 scored, 0 alarms" in run(*watch, "--roi", nowhere)[1]
    assert {len(row["regions"]) for row in rows_of(out) if "error" not in row} == {0}
    assert "another --roi or --ignore" in run(*watch)[2]
    assert "another --region-threshold" in run(*watch, "--roi", nowhere, "--region-threshold 1")[2]


def test_what_cannot_be(refused: Refused, run: Run, part: Path, line: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    watch = ("watch", line, part)
    assert "is the folder that is watched" in refused(*watch, "--output", line)
    among = ("watch", tmp_path / "out" / "good", part)
    (out / "good").mkdir(parents=True)
    assert "lies among the sorted pictures or results" in refused(*among, "--output", out)
    assert "the artifact comes second" in refused("watch", part, line, "--output", out)
    assert "did you mean 'move'?" in refused(*watch, "--output", out, "--sort mov")
    assert "--margin -1" in refused(*watch, "--output", out, "--margin -1")
    assert "settle -1" in refused(*watch, "--output", out, "--settle -1")
    assert "no overlays are asked for" in refused(*watch, "--output", out, "--overlay-size 9")
    assert "unknown part of --save" in refused(*watch, "--output", out, "--save mask")
    among = ("watch", tmp_path / "out" / "masks", part)
    (out / "masks").mkdir()
    assert "or results of" in refused(*among, "--output", out)
    assert "--every is for cameras" in refused(*watch, "--output", out, "--every 1")
    assert "no such file or folder" in refused("watch", tmp_path / "x", part, "--output", out)
    assert run(*watch, "--output", out, ONCE)[0] == 1
    other = tmp_path / "other"
    shutil.copytree(line, other)
    assert "another folder or camera" in refused("watch", other, part, "--output", out)
    assert "another --threshold" in refused(*watch, "--output", out, "--threshold 3")
    with (out / "predictions.jsonl").open("a") as file:
        file.write('{"path": 3}\n')
    assert "line 8 is damaged" in refused(*watch, "--output", out, ONCE)


def test_without_a_threshold_nothing_is_sorted(
    refused: Refused, fitted: Callable[..., Detector], line: Path, tmp_path: Path
) -> None:
    bare = fitted().with_threshold(None).save(tmp_path / "bare.blemish")
    said = refused("watch", line, bare, "--output", tmp_path / "out", "--sort copy")
    assert "the artifact has no threshold" in said


def test_results_within_the_watched_folder_are_not_watched(
    run: Run, part: Path, line: Path
) -> None:
    watch = ("watch", line, part, "--output", line / "out", "--sort copy", ONCE)
    assert run(*watch)[0] == 1
    assert run(*watch)[0] == 0
    assert set(times(line / "out").values()) == {1}
    assert len(times(line / "out")) == 7

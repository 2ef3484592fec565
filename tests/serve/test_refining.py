"""The work of a job that learns from reviewed pictures."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from parts import Fitted, part, settings_of, write_picture

import blemish
from blemish.errors import CalibrationError, DataError
from blemish.serve.refining import HELD, Item, Task, Tell, is_held, main, way_of, work


@pytest.fixture(scope="module")
def lda(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A detector that can be taught."""
    good = [part(seed) for seed in range(20)]
    taught = blemish.fit("lda", good, normality="knn", **settings_of("lda"))
    return taught.save(tmp_path_factory.mktemp("taught") / "1.blemish")


@pytest.fixture(scope="module")
def reviewed(tmp_path_factory: pytest.TempPathFactory) -> list[Item]:
    """24 good parts and 12 defects, of which the last have masks."""
    folder = tmp_path_factory.mktemp("reviewed")
    items = []
    for seed in range(300, 336):
        defective = seed >= 324
        pixels = part(seed, defect=defective)
        path = write_picture(folder / f"{seed}.png", pixels)
        mask = ""
        if seed >= 330:
            marked = np.abs(pixels.astype(int) - part(seed)).sum(2) > 0
            mask = str(write_picture(folder / f"{seed}_mask.png", marked.astype(np.uint8) * 255))
        items.append(
            Item(
                digest=f"{seed:032x}",
                path=str(path),
                defective=defective,
                defect="square" if defective else "",
                mask=mask,
                drawn=True,
            )
        )
    return items


def task_of(artifact: Path, draft: Path, items: list[Item], **more: object) -> Task:
    learn = [one for one in items if not is_held(one.digest)]
    held = [one for one in items if is_held(one.digest)]
    values = {"how": "refine", "device": "cpu", "precision": "fp32", **more}
    return Task(
        artifact=str(artifact), draft=str(draft), learn=tuple(learn), held=tuple(held), **values
    )


def test_what_is_held_out_is_a_share_that_content_decides() -> None:
    digests = [f"{n * 2654435761 % 2**64:032x}" for n in range(4000)]
    share = sum(map(is_held, digests)) / len(digests)
    assert abs(share - 1 / HELD) < 0.03


def test_a_taught_detector_learns(lda: Path, reviewed: list[Item], tmp_path: Path) -> None:
    draft = tmp_path / "draft.blemish"
    steps: list[str] = []
    found = work(task_of(lda, draft, reviewed), lambda stage, done, total: steps.append(stage))
    assert (found["how"], found["learned"]["good"], found["learned"]["defects"]) == (
        "refine",
        18,
        9,
    )
    held = found["held"]
    assert (held["good"], held["defects"], len(held["rows"])) == (6, 3, 9)
    assert held["after"]["found"] == 3
    assert "comparing" in steps
    after = blemish.load(draft, device="cpu", precision="fp32")
    before = blemish.load(lda, device="cpu", precision="fp32")
    assert found["thresholds"] == {
        "before": before.threshold.value,
        "after": after.threshold.value,
    }
    for row in held["rows"]:
        path = next(one.path for one in reviewed if one.digest == row["picture"])
        assert row["after"]["score"] == pytest.approx(after.predict(path).score, abs=1e-5)
        assert row["before"]["score"] == pytest.approx(before.predict(path).score, abs=1e-5)


def test_another_detector_has_its_threshold_set_by_random_pictures_alone(
    fitted: Fitted, reviewed: list[Item], tmp_path: Path
) -> None:
    knn = fitted("knn").save(tmp_path / "1.blemish")
    good = [one for one in reviewed if not one.defective]
    chosen = [replace(one, drawn=int(one.digest, 16) % 2 == 0) for one in good]
    task = task_of(knn, tmp_path / "2.blemish", chosen, how="calibrate", rate=0.2)
    drawn = [one for one in task.learn if one.drawn]
    assert 0 < len(drawn) < len(task.learn)
    work(task, Tell())
    after = blemish.load(tmp_path / "2.blemish", device="cpu", precision="fp32")
    scores = sorted(after.predict(one.path).score for one in drawn)
    assert after.threshold.n == len(drawn)
    assert after.threshold.value == pytest.approx(scores[int(np.ceil((len(drawn) + 1) * 0.8)) - 1])
    with pytest.raises(CalibrationError, match="normal pictures"):
        work(replace(task, rate=0.01), Tell())


def test_a_picture_that_it_knows_does_not_judge(
    lda: Path, reviewed: list[Item], tmp_path: Path
) -> None:
    first = work(task_of(lda, tmp_path / "2.blemish", reviewed), Tell())
    assert first["held"]["known"] == 0
    known = blemish.load(tmp_path / "2.blemish", device="cpu").learned
    learned = [one for one in reviewed if not is_held(one.digest)][:4]
    real = [replace(one, digest=blemish.load(lda).predict(one.path).digest) for one in learned]
    assert {one.digest for one in real} <= known
    task = task_of(tmp_path / "2.blemish", tmp_path / "3.blemish", [])
    new = write_picture(tmp_path / "new.png", part(900))
    extra = Item(digest="f" * 32, path=str(new), defective=False, drawn=True)
    again = work(replace(task, learn=(extra,), held=tuple(real)), Tell())
    assert (again["held"]["known"], again["held"]["rows"]) == (4, [])
    with pytest.raises(DataError, match="nothing is new"):
        work(replace(task, learn=tuple(real)), Tell())


def test_a_broken_picture_is_told_by_its_digest(
    lda: Path, reviewed: list[Item], tmp_path: Path
) -> None:
    broken = tmp_path / "secret" / "broken.png"
    broken.parent.mkdir()
    broken.write_bytes(b"\x89PNG\r\n\x1a\n nothing")
    item = Item(digest="1" * 32, path=str(broken), defective=False)
    found = work(task_of(lda, tmp_path / "2.blemish", [*reviewed, item]), Tell())
    (failure,) = found["learned"]["failures"]
    assert failure["picture"] == item.digest
    assert "secret" not in json.dumps(found)


def test_who_can_be_taught(fitted: Fitted, lda: Path) -> None:
    assert way_of(blemish.load(lda)) == ("refine", "")
    how, why = way_of(fitted("padim"))
    assert how == "calibrate"
    assert "blemish fit lda" in why


def test_as_a_process(lda: Path, reviewed: list[Item], tmp_path: Path) -> None:
    task = task_of(lda, tmp_path / "2.blemish", reviewed)
    (tmp_path / "task.json").write_text(json.dumps(task.to_dict()))
    assert Task.from_dict(json.loads((tmp_path / "task.json").read_text())) == task
    done = subprocess.run(
        [sys.executable, "-m", "blemish.serve.refining", str(tmp_path / "task.json")],
        capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"}, check=True,
    )  # fmt: skip
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    assert all(set(line) == {"stage", "done", "total"} for line in lines[:-1])
    assert len(lines) < 40
    assert lines[-1]["result"]["held"]["good"] == 6


def test_what_goes_wrong_is_its_last_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "nice", lambda by: 0)
    (tmp_path / "1.blemish").write_bytes(b"nothing")
    task = task_of(tmp_path / "1.blemish", tmp_path / "2.blemish", [])
    (tmp_path / "task.json").write_text(json.dumps(task.to_dict()))
    assert main([str(tmp_path / "task.json")]) == 1
    assert json.loads(capsys.readouterr().out)["error"]["kind"] == "ArtifactError"

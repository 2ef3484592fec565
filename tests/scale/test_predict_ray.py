"""A million pictures in small: scored by Ray on this machine, each row once."""

from __future__ import annotations

import io
import json
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from parts import Run

import blemish
from blemish.errors import ClusterError, ConfigError, DataError, OutputError
from blemish.scale import predict as scale
from blemish.scale.cluster import joined
from blemish.scale.places import place_of
from blemish.types import Failure, Prediction

COUNT = 30
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning:ray.*")  # of its own defaults


@pytest.fixture(scope="module", autouse=True)
def ray(s3: str) -> Iterator[None]:
    """One Ray for all of them; it knows of the S3 server by its environment."""
    before = signal.getsignal(signal.SIGTERM)
    with joined(cpus=4):
        assert signal.getsignal(signal.SIGTERM) is before
        yield


def rows_of(output: str | Path) -> dict[str, dict[str, Any]]:
    place = place_of(output)
    table = pq.read_table(place.path, filesystem=place.filesystem)
    rows = {row["id"]: row for row in table.to_pylist()}
    assert len(rows) == len(table)
    return rows


def expected(exported: Path, folder: Path) -> dict[str, Prediction | Failure]:
    found = blemish.load(exported, threads=1).predict_many([folder])
    return {str(Path(one.source).relative_to(folder)): one for one in found}


def test_a_folder_from_the_command_line(
    run: Run, exported: Path, pictures: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    command = ("predict", exported, pictures, "--engine ray:onnxruntime --num-workers 2")
    status, said, progress = run(*command, "--output", out, "--save maps,masks")
    assert status == 1  # one of them is broken
    assert said.splitlines()[0].startswith("29 scored: ")
    assert said.splitlines()[0].endswith("; 1 could not be read: their rows have an error")
    assert progress.splitlines()[-1].startswith(f"scoring: {COUNT} of {COUNT}")
    assert all(line.startswith(("joining", "scoring")) for line in progress.splitlines())
    rows = rows_of(out)
    for name, one in expected(exported, pictures).items():
        row = rows.pop(name)
        assert row["path"] == str(pictures / name)
        if isinstance(one, Failure):
            assert row["error"] == one.reason
            continue
        # Batches are made up otherwise, but each picture of this graph is computed by itself.
        assert row["score"] == pytest.approx(one.score, rel=1e-6)
        assert row["p_value"] == one.p_value
        assert row["threshold"] == one.threshold
        assert row["verdict"] == ("alarm" if one.label else "normal")
        assert len(row["map"]) == row["map_height"] * row["map_width"]
        assert row["mask"].startswith(b"\x89PNG")
        assert len(row["regions"]) == len(one.regions or ())
    assert not rows
    status, _, error = run(*command, "--output", out, "--save maps,masks")
    assert (status, "go on from them with --resume" in error) == (2, True)
    status, said, _ = run(*command, "--output", out, "--save maps,masks --resume --json")
    told = json.loads(said)
    assert status == 1  # as the first one
    assert (told["earlier"], told["scored"], told["files"]) == (COUNT, 0, 0)
    assert (told["earlier_failed"], told["failed"]) == (1, 0)


def test_a_table_with_bytes_on_s3(exported: Path, pictures: Path, s3: str) -> None:
    paths = sorted(pictures.rglob("*.png"))
    table = pa.table(
        {
            "id": list(range(COUNT)),
            "bytes": [path.read_bytes() for path in paths],
            "line": [path.parent.name for path in paths],
        }
    )
    content = io.BytesIO()
    pq.write_table(table, content, row_group_size=7)
    files = place_of(s3).filesystem
    for key, data in (("in/t.parquet", content.getvalue()), ("m.onnx", exported.read_bytes())):
        with files.open_output_stream(f"parts/{key}") as file:
            file.write(data)
    how: dict[str, Any] = {"num_workers": 1, "partition_by": "line", "rows_per_file": 8}
    done = scale.predict(f"{s3}/m.onnx", f"{s3}/in/*.parquet", f"{s3}/out", **how)
    assert (done.pictures, done.scored, done.failed) == (COUNT, COUNT - 1, 1)
    rows = rows_of(f"{s3}/out")
    assert sorted(rows) == sorted(map(str, range(COUNT)))
    by_name = expected(exported, pictures)
    for number, path in enumerate(paths):
        one, row = by_name[str(path.relative_to(pictures))], rows[str(number)]
        assert row["line"] == path.parent.name
        assert row["path"] is None
        if isinstance(one, Prediction):
            assert row["score"] == pytest.approx(one.score, rel=1e-6)


def test_goes_on_from_what_is_there(
    exported: Path, pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def told(stage: str, done: int, total: int) -> None:
        if stage == "scoring":
            raise KeyboardInterrupt

    out = tmp_path / "out"
    how: dict[str, Any] = {"num_workers": 1, "batch_size": 4}
    monkeypatch.setattr(scale, "LARGEST_UNIT", 8)
    first = scale.predict(exported, pictures, out, progress=told, **how)
    assert first.interrupted is not None
    there = rows_of(out)
    assert 0 < len(there) < COUNT
    (out / "_unfinished-0123").write_bytes(b"half a file")
    other = blemish.load(exported).with_threshold(0.5).save(tmp_path / "other.onnx")
    with pytest.raises(OutputError, match=r"another artifact \(SHA-256 "):
        scale.predict(other, pictures, out, resume=True, **how)
    with pytest.raises(OutputError, match="another threshold"):
        scale.predict(exported, pictures, out, resume=True, threshold=1.0, **how)
    second = scale.predict(exported, pictures, out, resume=True, **how)
    assert second.earlier == len(there)
    assert second.earlier + second.scored + second.failed == COUNT
    rows = rows_of(out)
    assert len(rows) == COUNT
    assert all(rows[name] == row for name, row in there.items())
    assert not (out / "_unfinished-0123").exists()


def test_what_cannot_be_done(exported: Path, pictures: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    with pytest.raises(
        ClusterError, match="--num-workers 9 with 1 threads each: the cluster has 4"
    ):
        scale.predict(exported, pictures, out, num_workers=9)
    with pytest.raises(
        ClusterError, match="--gpus-per-worker 1: the cluster has 4 CPUs and 0 GPUs"
    ):
        scale.predict(exported, pictures, out, gpus_per_worker=1)
    with pytest.raises(ConfigError, match="this process has joined "):
        scale.predict(exported, pictures, out, address="127.0.0.1:1")
    with pytest.raises(DataError, match="--partition-by line: there is no such column"):
        scale.predict(exported, pictures, out, partition_by="line")


def test_a_worker_that_cannot_load_says_why(
    exported: Path, pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from blemish.scale.artifacts import Shipped

    def damaged(artifact: Path) -> Shipped:
        found = whole(artifact)
        return Shipped(found.name, found.digest, ((found.files[0][0], b"damaged"),))

    whole = scale.shipped
    monkeypatch.setattr(scale, "shipped", damaged)
    monkeypatch.setattr(
        scale, "Scorer", lambda artifact, **how: blemish.scale.Scorer(exported, **how)
    )
    with pytest.raises(blemish.BlemishError, match=r"part\.onnx.* on the worker "):
        scale.predict(exported, pictures, tmp_path / "out", num_workers=1)

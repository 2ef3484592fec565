"""`predict --engine ray`: what is said before any cluster is needed."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from parts import Run

from blemish.cli import predict_cluster

RAY = "--engine ray"


@pytest.mark.parametrize(
    ("given", "what"),
    [
        (f"{RAY} --output OUT --report r.html", "--report: not with --engine ray"),
        (f"{RAY} --output OUT --scales 224", "--scales: not with --engine ray"),
        (f"{RAY} --output OUT --roi m.png", "--roi: not with --engine ray"),
        (f"{RAY} --output OUT --save overlays", "unknown part of --save with --engine ray"),
        (f"{RAY}:onxruntime --output OUT", "did you mean 'onnxruntime'"),
        (RAY, "rows need a place; name it with --output FOLDER"),
        (f"{RAY} --output OUT more.png", "takes one folder, table or pattern, got 2"),
        (f"{RAY} --output OUT --smallest-region 0.1", "set it together with --region-threshold"),
        (f"{RAY} --output OUT --category bolt", "the artifact knows no categories"),
        (f"{RAY} --output OUT --partition-by day", "--partition-by day: there is no such column"),
        (f"{RAY} --output nfs4://a/b", "no file system is known by nfs4://"),
        (f"{RAY} --output OUT --address 127.0.0.1:1", "127.0.0.1:1: no cluster answers there"),
        (f"{RAY} --output OUT --address head", "HOST:PORT is needed"),
        ("--address auto", "--address: is for --engine ray"),
        ("--num-workers 2", "--num-workers: is for --engine ray"),
        ("--gpus-per-worker 0.5", "--gpus-per-worker: is for --engine ray"),
        ("--partition-by line", "--partition-by: is for --engine ray"),
        ("--output s3://b/x", "s3://b/x: is on another file system, which --engine ray works with"),
    ],
)
def test_what_does_not_go_together(
    given: str, what: str, run: Run, exported: Path, pictures: Path, tmp_path: Path
) -> None:
    words = [word.replace("OUT", str(tmp_path / "out")) for word in given.split()]
    status, said, error = run("predict", exported, pictures, *words)
    assert (status, said) == (2, "")
    assert what in error.splitlines()[-1]
    assert "Traceback" not in error
    assert "bug" not in error
    assert not list(tmp_path.rglob("*.parquet"))


def test_sources_that_cannot_be(run: Run, exported: Path, tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("id,path\n1,a.png\n1,b.png\n")
    where = ("--engine ray --output", tmp_path / "out")
    for source, what in (
        (tmp_path / "none", "no such file or folder"),
        (tmp_path / "t.csv", "1 id of more than one row (1)"),
    ):
        status, _, error = run("predict", exported, source, *where)
        assert status == 2
        assert what in error
    status, _, error = run("predict", tmp_path / "none.onnx", tmp_path / "t.csv", *where)
    assert status == 2


def test_without_ray(
    run: Run, exported: Path, pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    status, _, error = run("predict", exported, pictures, RAY, "--output", tmp_path)
    wanted = "blemish: Ray is needed to predict with --engine ray: pip install 'blemish[ray]'\n"
    assert (status, error) == (2, wanted)


def test_paths_and_uris() -> None:
    assert predict_cluster.place("a/b") == Path("a/b")
    assert predict_cluster.place("s3://a/b") == "s3://a/b"
    assert predict_cluster.place("s3:/a") == Path("s3:/a")

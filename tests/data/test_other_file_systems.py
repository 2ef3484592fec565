"""URIs where paths are needed: said to be so, and no folder called s3: comes to be."""

from __future__ import annotations

from pathlib import Path

import pytest
from parts import Run

READS = ": is on another file system, from which `predict --engine ray` alone reads; mount it"
WRITES = ": is on another file system, where `predict --engine ray` alone writes; name a path"


@pytest.mark.parametrize(
    ("command", "what"),
    [
        ("fit knn s3://b/good -o x.blemish --engine ray", f"s3://b/good{READS}"),
        ("fit knn s3://b/good -o x.blemish --engine parts", f"s3://b/good{READS}"),
        ("fit knn gs://b/*.png -o x.blemish", f"gs://b/*.png{READS}"),
        ("fit padim abfs://b/t.csv -o x.blemish", f"abfs://b/t.csv{READS}"),
        ("data check hdfs://h/mvtec", f"hdfs://h/mvtec{READS}"),
        ("fit knn good -o s3://b/x.blemish", f"s3://b/x.blemish{WRITES}"),
        ("predict PART good --report s3://b/r.html", f"s3://b/r.html{WRITES}"),
        ("data elpv -o s3://b/t.csv", f"s3://b/t.csv{WRITES}"),
    ],
)
def test_uris_are_refused(
    command: str, what: str, run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "good").mkdir()
    status, said, error = run(*command.split())
    assert (status, said) == (2, "")
    assert what in error
    assert [path.name for path in tmp_path.iterdir()] == ["good"]


def test_a_folder_of_that_name_is_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from blemish.files import uri_of

    monkeypatch.chdir(tmp_path)
    assert uri_of("s3:/a") == "s3://a"
    (tmp_path / "s3:").mkdir()
    assert uri_of("s3:/a") == ""
    assert uri_of(Path("C:/a")) == ""

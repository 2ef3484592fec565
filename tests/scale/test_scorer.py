"""One scorer for any engine: rows in, rows out, the scores of `predict`."""

from __future__ import annotations

import hashlib
import pickle
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.fs
import pytest
from exports import traced_once
from parts import Fitted, part, write_picture

import blemish
from blemish.errors import ArtifactError, BlemishError, ConfigError, DataError
from blemish.export.exporting import export
from blemish.scale import Scorer, rows
from blemish.scale.artifacts import shipped
from blemish.types import Failure, Prediction

COUNT = 11


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("pictures")
    made = [
        write_picture(folder / f"{n:02d}.png", part(n, defect=n % 3 == 0)) for n in range(COUNT)
    ]
    made[4].write_bytes(made[4].read_bytes()[:300])
    return [*made, folder / "none.png"]


@pytest.fixture(scope="module")
def artifact(fitted: Fitted, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return fitted("knn").save(tmp_path_factory.mktemp("artifact") / "part.blemish")


def batch_of(pictures: list[Path]) -> dict[str, Any]:
    return {"path": [str(path) for path in pictures], "line": list(range(len(pictures)))}


def told(pictures: list[Path], artifact: Path) -> list[Prediction | Failure]:
    return [*blemish.load(artifact).predict_many(iter(pictures))]


def test_to_the_bit_as_predict(pictures: list[Path], artifact: Path) -> None:
    answer = Scorer(artifact, maps=True)(batch_of(pictures))
    expected = told(pictures, artifact)
    digest = hashlib.sha256(artifact.read_bytes()).hexdigest()
    assert set(answer["artifact"]) == {digest}
    assert list(answer["line"]) == list(range(COUNT + 1))
    assert list(answer["id"]) == list(answer["path"]) == [str(path) for path in pictures]
    for place, one in enumerate(expected):
        row = {name: values[place] for name, values in answer.items()}
        if isinstance(one, Failure):
            wanted = "does not exist" if place == COUNT else one.reason
            assert row["error"] == wanted
            assert np.isnan(row["score"])
            continue
        assert row["error"] is None
        assert (row["score"], row["p_value"]) == (one.score, one.p_value)
        assert row["threshold"] == one.threshold
        assert row["verdict"] == {0: "normal", 1: "alarm"}[one.label or 0]
        assert row["regions"] == one.to_dict()["regions"]
        assert (row["height"], row["width"], row["digest"]) == (*one.size, one.digest)
        shape = (row["map_height"], row["map_width"])
        assert np.array_equal(row["map"].reshape(shape), one.anomaly_map)
    assert sum(isinstance(one, Failure) for one in expected) == 2
    assert {"normal", "alarm"} <= set(answer["verdict"])


def test_other_batches_differ_in_the_last_digits_alone(
    pictures: list[Path], artifact: Path
) -> None:
    whole = Scorer(artifact)(batch_of(pictures))["score"]
    singly = Scorer(artifact, batch_size=1)(batch_of(pictures))["score"]
    assert np.allclose(whole, singly, rtol=1e-6, atol=1e-6, equal_nan=True)


def test_every_kind_of_batch_gets_its_own_kind(pictures: list[Path], artifact: Path) -> None:
    scorer = Scorer(artifact, masks=True)
    batch = batch_of(pictures)
    plain = scorer(batch)
    frame = scorer(pd.DataFrame(batch, index=range(100, 100 + COUNT + 1)))
    table = scorer(pa.table(batch))
    columns = [*rows.schema(masks=True).names, "line"]
    assert list(plain) == list(frame.columns) == table.column_names == columns
    assert list(frame.index) == list(range(100, 100 + COUNT + 1))
    assert table.schema.remove(len(columns) - 1) == rows.schema(masks=True)
    for name in columns:
        ours = rows.values_of(plain[name])
        assert rows.values_of(frame[name]) == ours
        if name not in ("score", "p_value"):
            assert table.column(name).to_pylist() == ours
    assert table.column("score").null_count == 2  # null, not NaN, of what could not be scored
    expected = told(pictures, artifact)[0]
    assert isinstance(expected, Prediction)
    assert expected.mask is not None
    shown = cv2.imdecode(np.frombuffer(plain["mask"][0], np.uint8), cv2.IMREAD_UNCHANGED)
    assert np.array_equal(shown > 0, expected.mask)
    # As Spark makes rows of a frame.
    spark = pa.Table.from_pandas(frame[rows.schema(masks=True).names], rows.schema(masks=True))
    assert spark.replace_schema_metadata() == table.drop_columns(["line"])
    record = scorer(pa.RecordBatch.from_pydict(batch))
    assert record.equals(table)


def test_bytes_and_other_file_systems(pictures: list[Path], artifact: Path) -> None:
    scored = Scorer(artifact)(batch_of(pictures[:3]))
    content = [path.read_bytes() for path in pictures[:3]]
    given = Scorer(artifact)({"id": [7, 8, 9], "bytes": content})
    assert list(given["id"]) == ["7", "8", "9"]
    assert list(given["path"]) == [None] * 3
    assert np.array_equal(given["score"], scored["score"])
    assert list(given["digest"]) == list(scored["digest"])
    inside = pyarrow.fs.SubTreeFileSystem(str(pictures[0].parent), pyarrow.fs.LocalFileSystem())
    there = Scorer(artifact, filesystem=inside)({"path": ["00.png", "01.png", "none.png"]})
    assert np.array_equal(there["score"][:2], scored["score"][:2])
    assert "cannot be read" in there["error"][2]
    uri = Scorer(artifact)({"path": [f"file://{pictures[0]}", "memory://none/x.png"]})
    assert uri["score"][0] == pytest.approx(scored["score"][0], abs=1e-6)
    assert "cannot be read" in uri["error"][1]


def test_it_travels(pictures: list[Path], artifact: Path, tmp_path: Path) -> None:
    scorer = Scorer(artifact, batch_size=4, maps=True)
    content = pickle.dumps(scorer)
    assert len(content) < 2000
    again = pickle.loads(content)
    assert again.settings == scorer.settings
    batch = batch_of(pictures)
    assert np.array_equal(again(batch)["score"], scorer(batch)["score"], equal_nan=True)
    lost = Scorer(artifact.rename(tmp_path / "moved.blemish"))
    gone = pickle.dumps(lost)
    (tmp_path / "moved.blemish").rename(artifact)
    with pytest.raises(ArtifactError, match=r"moved\.blemish: cannot be read .* on the worker "):
        pickle.loads(gone)


def test_an_exported_file(pictures: list[Path], artifact: Path, tmp_path: Path) -> None:
    with traced_once():
        export(artifact, tmp_path / "part.onnx")
    batch = batch_of(pictures)
    answer = Scorer(tmp_path / "part.onnx", threads=1)(batch)
    expected = [
        one.score if isinstance(one, Prediction) else np.nan
        for one in blemish.load(tmp_path / "part.onnx", threads=1).predict_many(iter(pictures))
    ]
    assert np.array_equal(answer["score"], expected, equal_nan=True)


def test_thresholds_by_hand(pictures: list[Path], artifact: Path) -> None:
    low = Scorer(artifact, threshold=-1.0, region_threshold=1e6)(batch_of(pictures[:3]))
    assert list(low["verdict"]) == ["alarm"] * 3
    assert list(low["regions"]) == [[]] * 3
    with pytest.raises(ConfigError, match="smallest_region: set it together"):
        Scorer(artifact, smallest_region=0.1)
    with pytest.raises(ConfigError, match="the artifact knows no categories"):
        Scorer(artifact, category="bolt")
    with pytest.raises(ConfigError, match="batch_size: at least 1"):
        Scorer(artifact, batch_size=0)
    with pytest.raises(TypeError, match="Scorer has no setting 'batchsize'"):
        Scorer(artifact, batchsize=2)


def test_what_is_no_batch(artifact: Path) -> None:
    scorer = Scorer(artifact)
    for batch, what in (
        ([1, 2], "a batch of rows is a dict of columns"),
        ({"name": ["a"]}, "a batch needs a column path or bytes, it has name"),
        ({"path": ["a", "b"], "line": [1]}, "of different lengths"),
        ({"path": ["a"], "score": [1]}, "the column score is one of what is answered"),
        ({"path": [None]}, "row 0 of a batch has neither id nor path"),
    ):
        with pytest.raises(DataError, match=what):
            scorer(batch)
    empty = scorer({"id": ["a"], "path": [None]})
    assert empty["error"][0] == "the row has no path and no bytes"


def test_the_schema_is_said_for_spark_too() -> None:
    told = rows.spark_schema(maps=True, masks=True)
    assert told.startswith("`id` string, `path` string, `score` double")
    assert "`regions` array<struct<box: array<int>, area: bigint" in told
    assert told.endswith("`map_height` int, `map_width` int, `mask` binary")
    assert told.startswith(rows.spark_schema())


def test_what_is_wrong_with_an_artifact_is_told_by_its_own_name(
    fitted: Fitted, tmp_path: Path
) -> None:
    path = fitted("knn").save(tmp_path / "mine.blemish")
    for engine, what in (
        ("onnxruntime", f"blemish export {path} -o {tmp_path / 'mine.onnx'}"),
        ("nonesuch", "unknown engine 'nonesuch'"),
    ):
        with pytest.raises(BlemishError) as caught:
            Scorer(shipped(path), engine=engine)
        assert what in str(caught.value)
        assert "/blemish-" not in str(caught.value)

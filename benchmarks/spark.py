"""Whether Spark's `mapInPandas` with a `Scorer` says what `predict` says, picture by picture.

    python benchmarks/spark.py --results benchmarks/results/scale.jsonl

Needs PySpark and Java, which blemish does not bring. Pictures are made here, one of them damaged;
rows are compared as those of `scale.py`: `missing`, `doubled` and `wrong` by what
`Detector.predict_many` says, and the largest difference of scores. It ends with 1 where any is.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from datetime import UTC, datetime
from pathlib import Path

import pyarrow.parquet as pq
import pyspark
import torch
from pyspark.sql import SparkSession
from scale import fitted, made

import blemish
from blemish.bench.conditions import checkout, hardware
from blemish.scale import Scorer
from blemish.scale.rows import spark_schema
from blemish.types import Failure


def scored(artifact: Path, folder: Path, output: Path) -> None:
    """As docs/scale.md has it, on a Spark of this machine alone."""

    def score(frames):
        scorer = Scorer(str(artifact), threads=1)
        for frame in frames:
            yield scorer(frame)

    loopback = {"spark.driver.bindAddress": "127.0.0.1", "spark.driver.host": "127.0.0.1"}
    builder = SparkSession.builder.master("local[2]").config("spark.ui.enabled", "false")
    spark = builder.config(map=loopback).getOrCreate()
    found = spark.read.format("binaryFile").option("recursiveFileLookup", "true").load(str(folder))
    pictures = found.selectExpr("path AS id", "content AS bytes")
    pictures.mapInPandas(score, schema=spark_schema()).write.parquet(str(output))
    spark.stop()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--count", type=int, default=300)
    parser.add_argument("--results", type=Path)
    options = parser.parse_args()
    how = ("padim", "efficientnet_lite0", 128)
    with tempfile.TemporaryDirectory(prefix="spark-") as name:
        artifact, folder = fitted(Path(name), *how), Path(name, "pictures")
        made(folder, options.count)
        (folder / "damaged.png").write_bytes(b"no picture")
        scored(artifact, folder, Path(name, "rows"))
        rows = pq.read_table(Path(name, "rows")).to_pylist()
        files = sorted(one for one in folder.rglob("*") if one.is_file())
        detector = blemish.load(artifact, device="cpu", threads=1)
        known = dict(zip(files, detector.predict_many(files), strict=True))
    by_id = {Path(row["id"].removeprefix("file:")): row for row in rows}
    apart = [
        abs(said.score - by_id[file]["score"])
        for file, said in known.items()
        if not isinstance(said, Failure) and by_id[file]["score"] is not None
    ]
    broken = sum(row["error"] is not None for row in rows)
    commit, dirty = checkout()
    row = {
        **{"date": datetime.now(UTC).isoformat(timespec="seconds"), "commit": commit},
        **{"dirty": dirty, "device": hardware(torch.device("cpu")), "case": "spark"},
        **{"pyspark": pyspark.__version__, "method": how[0], "backbone": how[1]},
        **{"image_size": how[2], "pictures": len(files), "rows": len(rows), "failed": broken},
        **{"missing": len(files) - len(by_id), "doubled": len(rows) - len(by_id)},
        **{"wrong": len(files) - len(apart) - 1, "largest_difference": max(apart)},
    }
    print(json.dumps(row, indent=2))
    if options.results:
        with options.results.open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")
    return int(bool(row["missing"] or row["doubled"] or row["wrong"]))


if __name__ == "__main__":
    sys.exit(main())

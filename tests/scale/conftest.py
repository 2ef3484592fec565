"""Pictures, a detector that loads in no time, and an S3 server of this machine."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import made_graphs as graphs
import pytest
from parts import Fitted, part, write_picture

from blemish import artifact
from blemish.engines import files

COUNT = 30


@pytest.fixture(scope="package")
def exported(fitted: Fitted, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A detector of a graph of a few operators, as a file: no worker loads PyTorch."""
    record = fitted("knn").record
    preprocessing = replace(record.preprocessing, height=graphs.SIDE, width=graphs.SIDE)
    told = replace(record, preprocessing=preprocessing).to_dict()
    manifest = {**told, "format": artifact.FORMAT, "export": graphs.manifest()["export"]}
    path = tmp_path_factory.mktemp("exported") / "part.onnx"
    return files.write(path, "onnx", graphs.onnx_bytes(), manifest)


@pytest.fixture(scope="package")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of 30 pictures in three folders, of which one is damaged."""
    folder = tmp_path_factory.mktemp("pictures")
    for number in range(COUNT):
        path = folder / f"line {number % 3}" / f"{number:02d}.png"
        write_picture(path, part(number, defect=number % 5 == 0))
    (folder / "line 1" / "04.png").write_bytes(b"no picture")
    return folder


@pytest.fixture(scope="package")
def s3() -> Iterator[str]:
    """The URI of a bucket on a server of this machine, which pyarrow finds by the environment."""
    import boto3
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    told = {
        "AWS_ENDPOINT_URL": f"http://{host}:{port}",
        **{"AWS_ACCESS_KEY_ID": "somebody", "AWS_SECRET_ACCESS_KEY": "nothing"},
        **{"AWS_DEFAULT_REGION": "us-east-1", "AWS_EC2_METADATA_DISABLED": "true"},
    }
    before = {name: os.environ.get(name) for name in told}
    os.environ.update(told)
    client = boto3.client("s3")
    client.create_bucket(Bucket="parts")
    client.close()
    yield "s3://parts"
    server.stop()
    for name, value in before.items():
        os.environ.pop(name) if value is None else os.environ.__setitem__(name, value)

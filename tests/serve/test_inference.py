"""The Open Inference Protocol, asked by Triton's own client."""

from __future__ import annotations

import base64
import json
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from live import Live, serving
from parts import part

import blemish

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    from tritonclient import http as triton
    from tritonclient.utils import InferenceServerException


@pytest.fixture(scope="module")
def live(artifact: Path) -> Iterator[Live]:
    with serving(artifact, most_pictures=8) as running:
        yield running


@pytest.fixture
def client(live: Live) -> Iterator[Any]:
    with triton.InferenceServerClient(live.url.removeprefix("http://")) as connected:
        yield connected


def tensor(name: str, values: np.ndarray, kind: str, *, binary: bool) -> Any:
    one = triton.InferInput(name, list(values.shape), kind)
    one.set_data_from_numpy(values, binary_data=binary)
    return one


def test_what_is_told_of_it(client: Any, live: Live) -> None:
    assert client.is_server_live()
    assert client.is_server_ready()
    assert client.is_model_ready("part")
    assert not client.is_model_ready("part", "nothing")
    assert client.get_server_metadata()["extensions"] == ["binary_tensor_data"]
    told = client.get_model_metadata("part")
    assert told["versions"] == [live.service.models.live("part").version]
    assert {one["name"] for one in told["inputs"]} == {"images", "pictures"}
    with pytest.raises(InferenceServerException, match="no model of that name"):
        client.get_model_metadata("other")


@pytest.mark.parametrize("binary", [True, False])
def test_pixels(client: Any, artifact: Path, binary: bool) -> None:
    pixels = np.stack([part(seed, defect=seed == 101) for seed in range(100, 103)])
    detector = blemish.load(artifact)
    known = [detector.predict(one) for one in pixels]
    wanted = [
        triton.InferRequestedOutput(name, binary_data=binary)
        for name in ("score", "label", "map", "prediction", "p_value")
    ]
    found = client.infer(
        "part",
        [tensor("images", pixels, "UINT8", binary=binary)],
        outputs=wanted,
        request_id="seven",
    )
    assert found.get_response()["id"] == "seven"
    assert found.as_numpy("label").tolist() == [one.label for one in known] == [0, 1, 0]
    assert found.as_numpy("score") == pytest.approx([one.score for one in known], rel=1e-4)
    assert found.as_numpy("p_value") == pytest.approx([one.p_value for one in known])
    maps = np.stack([one.anomaly_map for one in known])
    assert found.as_numpy("map") == pytest.approx(maps, rel=1e-3, abs=1e-5)
    rows = [json.loads(one) for one in found.as_numpy("prediction").tolist()]
    assert [one["digest"] for one in rows] == [one.digest for one in known]


def test_files_of_which_one_is_broken(client: Any, artifact: Path, pictures: list[Path]) -> None:
    content = [path.read_bytes() for path in pictures[:3]]
    content[1] = content[1][:200]
    found = client.infer(
        "part", [tensor("pictures", np.array(content, np.object_), "BYTES", binary=True)]
    )
    detector = blemish.load(artifact)
    known = [detector.predict(path) for path in pictures[:3]]
    score = found.as_numpy("score")
    assert score[[0, 2]] == pytest.approx([known[0].score, known[2].score], rel=1e-4)
    assert np.isnan(score[1])
    assert found.as_numpy("label").tolist() == [known[0].label, -1, known[2].label]
    assert b"truncated" in found.as_numpy("error")[1]
    assert found.as_numpy("error")[0] == b""


def test_files_in_json(live: Live, pictures: list[Path]) -> None:
    text = base64.b64encode(pictures[0].read_bytes()).decode()
    told = {"name": "pictures", "datatype": "BYTES", "shape": [1], "data": [text]}
    with live.client() as client:
        answer = client.post("/v2/models/part/infer", json={"inputs": [told]})
    assert answer.status_code == 200
    outputs = {one["name"]: one["data"] for one in answer.json()["outputs"]}
    assert outputs["label"] == [1]


def request_of(**changed: Any) -> dict[str, Any]:
    tensor = {"name": "images", "datatype": "UINT8", "shape": [1, 1, 1, 3], "data": [1, 2, 3]}
    return {"inputs": [{**tensor, **changed}]}


@pytest.mark.parametrize(
    ("body", "says"),
    [
        ({}, "no list of inputs"),
        ({"inputs": []}, "no picture"),
        ({"inputs": [3]}, "each is an object"),
        (request_of(shape=[1, 2, 2, 3]), "as many numbers"),
        (request_of(shape=[-1, 1, 1, 3]), "whole numbers"),
        (request_of(shape=[1, 1, 1, 4]), "is UINT8 of shape"),
        (request_of(data=[1, 2, 300]), "from 0 to 255"),
        (request_of(data=[1, 2, "x"]), "from 0 to 255"),
        (request_of(data=[[1], [2, 3]]), "from 0 to 255"),
        (request_of(datatype="FP32"), "is UINT8 of shape"),
        (request_of(parameters={"binary_data_size": 3}), "more bytes are announced"),
        (request_of(parameters={"binary_data_size": -3}), "no length"),
        (request_of(datatype="BYTES", shape=[1], data=["$"]), "base64"),
        (request_of(datatype="BYTES", shape=[10**9], data=["$"]), "at most 8 pictures"),
        (request_of(datatype="BYTES", shape=[2], data=["aaaa"]), "as many texts"),
        ({**request_of(), "outputs": [{"name": "other"}]}, "there are score, label"),
        ({**request_of(), "outputs": 3}, "there are score, label"),
    ],
)
def test_what_is_no_request(live: Live, body: Any, says: str) -> None:
    with live.client() as client:
        answer = client.post("/v2/models/part/infer", json=body)
    assert answer.status_code in (400, 413)
    assert says in answer.json()["error"]


@pytest.mark.parametrize("header", ["0", "x", "-1", "99999", "9" * 30])
def test_a_length_that_is_none(live: Live, header: str) -> None:
    with live.client() as client:
        answer = client.post(
            "/v2/models/part/infer",
            content=json.dumps(request_of()),
            headers={"Inference-Header-Content-Length": header},
        )
    assert answer.status_code == 400


def test_json_without_end_or_bottom(live: Live) -> None:
    with live.client() as client:
        for body in (b"[" * 100_000, b'{"inputs":', b"\xff\xfe", b'{"a":1' + b"0" * 100_000 + b"}"):
            assert client.post("/v2/models/part/infer", content=body).status_code == 400

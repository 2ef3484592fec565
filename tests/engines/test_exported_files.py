"""Exported files: out and back, and whatever is not exactly what was written is refused by name."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import pickle
import random
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import made_graphs as graphs
import onnx
import pytest
import safetensors.numpy

import blemish.files
from blemish import artifact, load
from blemish.engines import files, ir, packages, protobuf
from blemish.errors import ArtifactError, OutputError

KINDS = ("onnx", "openvino")


def refused(path: Path, content: bytes | None = None) -> str:
    """The message with which the file (with this content) is refused."""
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ArtifactError) as caught:
        files.read(path)
    assert str(caught.value).startswith(str(path.parent))
    return str(caught.value)


def signed(model: bytes, manifest: Any, *, digest: str = "") -> bytes:
    """A file with a right digest, whatever is in it."""
    text = manifest if isinstance(manifest, str) else json.dumps(manifest)
    content = model + protobuf.entry(files.MANIFEST, text)
    digest = digest or hashlib.sha256(content).hexdigest()
    return content + protobuf.entry(files.DIGEST, digest)


@pytest.mark.parametrize("kind", KINDS)
def test_out_and_back(kind: str, tmp_path: Path) -> None:
    path = graphs.written(tmp_path, kind)
    found = files.read(path)
    assert found.manifest == graphs.manifest(kind=kind)
    assert found.record.kind == kind
    assert found.record.map_size == (graphs.SIDE, graphs.SIDE)
    assert found.record.to_dict() == found.manifest["export"]
    assert files.is_exported(path)
    assert not files.is_exported(tmp_path / "part.blemish")


def test_an_onnx_file_is_one_for_everybody(tmp_path: Path) -> None:
    model = onnx.load(graphs.written(tmp_path))
    onnx.checker.check_model(model)
    notes = {each.key: each.value for each in model.metadata_props}
    assert json.loads(notes["blemish_manifest"]) == graphs.manifest()
    content = (tmp_path / "part.onnx").read_bytes()
    whole = hashlib.sha256(content[:-84]).hexdigest()
    assert notes["blemish_digest"] == whole
    assert content.endswith(whole.encode())


def test_an_xml_file_is_one_for_everybody(tmp_path: Path) -> None:
    pytest.importorskip("openvino")
    path = graphs.written(tmp_path, "openvino")
    model = packages.core().read_model(path)
    note = model.get_rt_info(["blemish_manifest"]).astype(str)
    assert json.loads(note) == graphs.manifest(kind="openvino")


@pytest.mark.parametrize(
    "model", [b"<net></net>", b"<net><layers></layers>\n<rt_info><a value='1'/></rt_info></net>"]
)
def test_the_notes_of_older_models(model: bytes, tmp_path: Path) -> None:
    said = graphs.manifest(kind="openvino")
    path = files.write(tmp_path / "p.xml", "openvino", (model, b"12"), said)
    assert files.read(path).manifest == said
    assert files.read(path).weights == b"12"


@pytest.mark.parametrize("kind", KINDS)
def test_the_same_content_is_the_same_file(kind: str, tmp_path: Path) -> None:
    first = graphs.written(tmp_path, kind).read_bytes()
    assert graphs.written(tmp_path, kind).read_bytes() == first


@pytest.mark.parametrize("kind", KINDS)
def test_one_changed_byte_anywhere(kind: str, tmp_path: Path) -> None:
    path = graphs.written(tmp_path, kind)
    draw = random.Random(1)
    parts = [path] if kind == "onnx" else [path, path.with_suffix(".bin")]
    for part in parts:
        content = part.read_bytes()
        ends = {0, 1, len(content) - 1, len(content) - 70, len(content) - 84}
        places = ends | {draw.randrange(len(content)) for _ in range(200)}
        for place in sorted(places & set(range(len(content)))):
            changed = bytearray(content)
            changed[place] ^= draw.choice((1, 0x20, 0x80, 0xFF))
            part.write_bytes(bytes(changed))
            refused(path)
        part.write_bytes(content)
        files.read(path)


@pytest.mark.parametrize("kind", KINDS)
def test_cut_short_anywhere(kind: str, tmp_path: Path) -> None:
    path = graphs.written(tmp_path, kind)
    parts = [path] if kind == "onnx" else [path, path.with_suffix(".bin")]
    for part in parts:
        content = part.read_bytes()
        step = max(1, len(content) // 50)
        for length in {*range(0, len(content), step), len(content) - 1, len(content) - 84}:
            part.write_bytes(content[: max(0, length)])
            refused(path)
        for more in (b"\0", b" x", b"\x72\x00"):  # bytes behind the end
            part.write_bytes(content + more)
            refused(path)
        part.write_bytes(content)


def test_without_our_manifest(tmp_path: Path) -> None:
    message = refused(tmp_path / "m.onnx", graphs.onnx_bytes())
    for part in ("is an ONNX model, but not one that blemish export has written", "-o m.onnx"):
        assert part in message
    # An encoding is not looked up among Python's, which has some that are none of texts.
    model = b"<?xml version='1.0' encoding='none'?><net><layers></layers></net>"
    message = refused(tmp_path / "m.xml", model)
    assert "is a model of OpenVINO, but not one that blemish export has written" in message


def test_a_digest_but_no_end_of_it(tmp_path: Path) -> None:
    twice = signed(graphs.onnx_bytes(), graphs.manifest()) + protobuf.entry("more", "x")
    assert "altered" in refused(tmp_path / "m.onnx", twice)
    model = graphs.onnx_bytes() + protobuf.entry(files.MANIFEST, "{}")
    refused(tmp_path / "m.onnx", signed(model, graphs.manifest()))


@pytest.mark.parametrize("kind", KINDS)
def test_a_newer_format(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = graphs.written(tmp_path, kind)
    monkeypatch.setattr(files, "FORMAT", 0)
    message = refused(path)
    for part in ("has format 1", "blemish 9.9", "up to 0", "pip install --upgrade blemish"):
        assert part in message


@pytest.mark.parametrize(
    ("text", "why"),
    [
        *((text, "damaged") for text in ("", "{", "[]", "7", "null", "[" * 5000, '{"export": 1}')),
        *((text, "damaged") for text in ('{"a": 1}', '{"export": {"format": "1"}}')),
        ('{"export": {"format": 0}}', "format"),
    ],
)
def test_a_manifest_that_is_none(text: str, why: str, tmp_path: Path) -> None:
    assert why in refused(tmp_path / "m.onnx", signed(graphs.onnx_bytes(), text))


@pytest.mark.parametrize(
    ("field", "value"),
    [
        *(("kind", "torch"), ("kind", "openvino"), ("precision", "fp64"), ("precision", "bf16")),
        *(("input", "raw"), ("opset", 0), ("opset", 20.0), ("outputs", ["score"])),
        *(("outputs", ["score", "map", "map"]), ("outputs", ["score", "map", "more"])),
        *(("map_size", [8]), ("map_size", [8, 8, 8]), ("map_size", [0, 8]), ("top_fraction", -0.1)),
        *(("top_fraction", 1.5), ("scores_by_map", 1), ("offset", "left"), ("source", "abc")),
        *(("versions", {"a": 1}), ("proof", []), ("unheard", 1)),
    ],
)
def test_a_record_of_which_something_does_not_hold(
    field: str, value: object, tmp_path: Path
) -> None:
    said = graphs.manifest(**{field: value})
    message = refused(tmp_path / "m.onnx", signed(graphs.onnx_bytes(), said))
    assert field in message or "is for openvino" in message
    with pytest.raises(ArtifactError):
        files.write(tmp_path / "n.onnx", "onnx", graphs.onnx_bytes(), said)
    assert not (tmp_path / "n.onnx").exists()


def test_what_is_no_number_is_not_written(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="JSON"):
        files.write(
            tmp_path / "n.onnx", "onnx", graphs.onnx_bytes(), graphs.manifest(proof={"a": 1e999})
        )


@pytest.mark.parametrize("field", ["kind", "precision", "opset", "outputs", "map_size", "source"])
def test_a_record_that_lacks_something(field: str, tmp_path: Path) -> None:
    said = graphs.manifest()
    del said["export"][field]
    assert field in refused(tmp_path / "m.onnx", signed(graphs.onnx_bytes(), said))


def test_other_files(tmp_path: Path) -> None:
    assert "a folder" in refused(tmp_path)
    assert "cannot be read" in refused(tmp_path / "none.onnx")
    assert "is empty" in refused(tmp_path / "m.onnx", b"")
    assert "object file" in refused(tmp_path / "m.onnx", pickle.dumps({"a": 1}))
    with zipfile.ZipFile(tmp_path / "m.zip", "w") as archive:
        archive.writestr("data.pkl", b"x")
    assert "object file" in refused(tmp_path / "m.zip")
    artifact = safetensors.numpy.save({"a": graphs.WEIGHTS}, metadata={"manifest": "{}"})
    assert "blemish export" in refused(tmp_path / "m.blemish", artifact)
    assert "no file that blemish export" in refused(tmp_path / "m.txt", b"Hello, world\n")
    assert "cut short or damaged" in refused(tmp_path / "m.onnx", b"Hello, world\n")
    assert "name the .xml" in refused(tmp_path / "m.bin", b"weights")


def test_a_file_of_holes_is_not_read(tmp_path: Path) -> None:
    with (tmp_path / "m.onnx").open("wb") as file:
        file.truncate(files.ONNX_BYTES + 1)
    assert "at most" in refused(tmp_path / "m.onnx")
    path = graphs.written(tmp_path, "openvino")
    with path.with_suffix(".bin").open("r+b") as file:
        file.truncate(blemish.files.ARTIFACT_BYTES + 1)
    assert "at most" in refused(path)


def test_an_xml_of_which_much_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = graphs.written(tmp_path, "openvino")
    monkeypatch.setattr(files, "XML_BYTES", 100)
    assert "of XML, and at most 100 are read" in refused(path)


def test_an_xml_without_its_weights(tmp_path: Path) -> None:
    path = graphs.written(tmp_path, "openvino")
    path.with_suffix(".bin").unlink()
    message = refused(path)
    assert "part.bin" in message
    assert "copy both files" in message


def test_the_weights_of_another_export(tmp_path: Path) -> None:
    path = graphs.written(tmp_path, "openvino")
    path.with_suffix(".bin").write_bytes(b"others")
    assert "of different exports" in refused(path)


BOMB = (
    b'<!DOCTYPE net [<!ENTITY a "aaaaaaaaaa"><!ENTITY b "&a;&a;&a;&a;&a;&a;&a;&a;&a;&a;">'
    b'<!ENTITY c "&b;&b;&b;&b;&b;&b;&b;&b;&b;&b;">]>'
)


@pytest.mark.parametrize(
    "text",
    [
        *(BOMB + b"<net><rt_info>&c;</rt_info></net>", b"<!DOCTYPE net SYSTEM 'x'><net></net>"),
        *(b"<html></html>", b"<net>", b"<", b"<net a='&b;'></net>", b"<net/><net/>"),
        *(b"<" + b"a><" * 1000, b"<?xml version='1.0' encoding='utf-16'?><net>\xff</net>"),
        b"<net><rt_info><info name='a' value='1'/><info name='a' value='2'/></rt_info></net>",
    ],
)
def test_hostile_xml(text: bytes, tmp_path: Path) -> None:
    assert "cut short or damaged" in refused(tmp_path / "m.xml", text)


def test_a_deep_xml_is_read_without_a_tree() -> None:
    deep = b"<net>" + b"<a>" * 50_000 + b"</a>" * 50_000 + b"</net>"
    assert ir.Document(deep).notes == {}


def test_weights_in_another_file(tmp_path: Path) -> None:
    model = graphs.onnx_model()
    tensor = model.graph.initializer[0]
    tensor.ClearField("raw_data")
    tensor.data_location = onnx.TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value="../../secret")
    content = signed(model.SerializeToString(), graphs.manifest())
    assert "weights in another file" in refused(tmp_path / "m.onnx", content)


@pytest.mark.parametrize("depth", [1, 3])
def test_what_hides_in_a_graph_within_a_graph(depth: int, tmp_path: Path) -> None:
    graph = onnx.helper.make_graph([onnx.helper.make_node("EPContext", [], ["a"])], "g", [], [])
    for _ in range(depth):
        node = onnx.helper.make_node("If", ["a"], ["b"], then_branch=graph)
        graph = onnx.helper.make_graph([node], "g", [], [])
    model = onnx.helper.make_model(graph).SerializeToString()
    content = signed(model, graphs.manifest())
    assert "a compiled program" in refused(tmp_path / "m.onnx", content)


def test_graphs_within_each_other_without_end(tmp_path: Path) -> None:
    inner = b""
    for _ in range(40):  # attribute.g, node.attribute, graph.node
        for tag in (6, 5, 1):
            inner = bytes([tag << 3 | 2]) + protobuf._varint(len(inner)) + inner
    model = b"\x3a" + protobuf._varint(len(inner)) + inner
    assert "too deeply nested" in refused(tmp_path / "m.onnx", signed(model, graphs.manifest()))


def test_a_graph_that_is_no_graph(tmp_path: Path) -> None:
    model = b"\x3a\x02\x0a\x7f"
    assert "damaged" in refused(tmp_path / "m.onnx", signed(model, graphs.manifest()))


def test_names_that_do_not_fit(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match=r"to be named part\.onnx"):
        files.write(tmp_path / "part.xml", "onnx", graphs.onnx_bytes(), graphs.manifest())
    with pytest.raises(ArtifactError, match="is 'onnx', and 'openvino' is written"):
        files.write(tmp_path / "a.xml", "openvino", (b"<net></net>", b""), graphs.manifest())
    assert list(tmp_path.iterdir()) == []


def test_a_model_with_a_manifest_is_not_given_another(tmp_path: Path) -> None:
    content = graphs.written(tmp_path).read_bytes()
    with pytest.raises(OutputError, match="already"):
        files.write(tmp_path / "b.onnx", "onnx", content, graphs.manifest())
    path = graphs.written(tmp_path, "openvino")
    pair = path.read_bytes(), b""
    said = graphs.manifest(kind="openvino")
    with pytest.raises(ValueError, match="two notes"):
        files.write(tmp_path / "b.xml", "openvino", pair, said)


def test_more_than_the_format_can_have(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "ONNX_BYTES", 500)
    with pytest.raises(OutputError, match=r"precision fp16, or for OpenVINO \(-o part\.xml\)"):
        graphs.written(tmp_path)
    monkeypatch.setattr(files, "XML_BYTES", 500)
    with pytest.raises(OutputError, match="at most 500"):
        graphs.written(tmp_path, "openvino")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("before", [True, False])
@pytest.mark.parametrize("fails", [".bin", ".xml"])
def test_a_pair_is_written_whole_or_not_at_all(
    before: bool, fails: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if before:
        graphs.written(tmp_path, "openvino")
    old = {each.name: each.read_bytes() for each in tmp_path.iterdir()}

    def full(path: Path, content: bytes) -> Path:
        if Path(path).suffix == fails:
            raise blemish.files.cannot_write(path, OSError(errno.ENOSPC, "No space left"))
        return blemish.files.write_whole(path, content)

    monkeypatch.setattr(files, "write_whole", full)
    said = graphs.manifest(kind="openvino")
    with pytest.raises(OutputError, match="No space left"):
        files.write(tmp_path / "part.xml", "openvino", (b"<net></net>", b"other"), said)
    assert {each.name: each.read_bytes() for each in tmp_path.iterdir()} == old


def test_a_process_that_is_killed_between_the_two_files(tmp_path: Path) -> None:
    path = graphs.written(tmp_path, "openvino")
    code = f"""
import os, signal
from blemish.engines import files, packages
whole = files.write_whole
def killed(path, content):
    whole(path, content)
    os.kill(os.getpid(), signal.SIGKILL)
files.write_whole = killed
import made_graphs as graphs
files.write({str(path)!r}, "openvino", (b"<net></net>", b"other"), graphs.manifest(kind="openvino"))
"""
    paths = [str(Path(each)) for each in sys.path if each]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths)}
    ended = subprocess.run([sys.executable, "-c", code], env=environment, check=False)
    assert ended.returncode == -9
    assert path.with_suffix(".bin").read_bytes() == b"other"
    assert "of different exports" in refused(path)
    graphs.written(tmp_path, "openvino")  # and writes over it
    files.read(path)


def test_weights_beside_an_xml_are_no_artifact(tmp_path: Path) -> None:
    weights = graphs.written(tmp_path, "openvino").with_suffix(files.WEIGHTS)
    assert files.is_exported(weights)
    with pytest.raises(ArtifactError, match=r"name the \.xml beside it"):
        load(weights)
    with pytest.raises(OutputError, match="name of an exported file"):
        files.check_name(weights, None)
    assert not files.is_exported(tmp_path / "other.bin")
    assert artifact._EXPORTED.decode() == files.MANIFEST

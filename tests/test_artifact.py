"""The artifact: bit-exact out and back, and whatever is not exactly what was written is refused by
name.
"""

from __future__ import annotations

import errno
import io
import json
import os
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from torch import Tensor

from blemish import artifact
from blemish.errors import ArtifactError, OutputError

MANIFEST: dict[str, Any] = {
    "method": "knn",
    "note": 'Prüfling "7"\n✓',
    "scale": [0.1, 2.5e-8],
    "threshold": None,
    "nested": {"a": [1, {"b": True}]},
}
DTYPES = [
    torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.float8_e4m3fn,
    torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8, torch.bool,
]  # fmt: skip


def bits(tensor: Tensor) -> bytes:
    return bytes(tensor.contiguous().reshape(-1).view(torch.uint8).tolist())


def tensors() -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(1)
    return {
        "bank": torch.randn(7, 5, generator=generator),
        "owners": torch.arange(7),
        "scalar": torch.tensor(2.5),
    }


@pytest.fixture
def written(tmp_path: Path) -> Path:
    return artifact.write(tmp_path / "part.blemish", tensors(), MANIFEST)


def header_of(content: bytes) -> tuple[dict[str, Any], bytes]:
    length = int.from_bytes(content[:8], "little")
    return json.loads(content[8 : 8 + length]), content[8 + length :]


def with_header(table: dict[str, Any], data: bytes) -> bytes:
    header = json.dumps(table).encode()
    return len(header).to_bytes(8, "little") + header + data


def refused(path: Path, content: bytes | None = None) -> str:
    """The message with which the file (with this content) is refused."""
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ArtifactError) as caught:
        artifact.read(path)
    assert str(caught.value).startswith(str(path))
    with pytest.raises(ArtifactError) as alone:
        artifact.read_manifest(path)
    assert str(alone.value) == str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(), (0,), (3, 0, 2), (1,), (5, 4), (2, 3, 4)])
def test_tensors_come_back_bit_by_bit(
    dtype: torch.dtype, shape: tuple[int, ...], tmp_path: Path
) -> None:
    raw = torch.randint(
        0, 256, (*shape, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(3)
    )
    size = torch.empty(0, dtype=dtype).element_size()
    original = raw[..., 0] > 127
    if dtype != torch.bool:
        original = raw[..., :size].contiguous().view(dtype).reshape(shape)
    found, _ = artifact.read(artifact.write(tmp_path / "x", {"t": original}, {}))
    assert found["t"].dtype == dtype
    assert found["t"].shape == shape
    assert bits(found["t"]) == bits(original)  # NaN payloads and signed zeros too
    assert artifact.read_manifest(tmp_path / "x") == {"format": artifact.FORMAT}


def test_the_manifest_comes_back(written: Path) -> None:
    found, manifest = artifact.read(written)
    assert manifest == {**MANIFEST, "format": artifact.FORMAT}
    assert set(found) == set(tensors())
    for name, tensor in tensors().items():
        assert torch.equal(found[name], tensor)


def test_it_is_a_safetensors_file(written: Path) -> None:
    with safetensors.safe_open(written, framework="pt") as file:
        assert set(file.keys()) == set(tensors())
        assert json.loads(file.metadata()["manifest"])["note"] == MANIFEST["note"]


def test_the_same_content_is_the_same_file(written: Path, tmp_path: Path) -> None:
    found, manifest = artifact.read(written)
    again = artifact.write(tmp_path / "again", dict(reversed(list(found.items()))), manifest)
    assert again.read_bytes() == written.read_bytes()


def test_no_tensors_at_all(tmp_path: Path) -> None:
    assert artifact.read(artifact.write(tmp_path / "x", {}, {"a": 1})) == (
        {},
        {"a": 1, "format": artifact.FORMAT},
    )


def test_a_manifest_that_was_loaded_is_written_in_the_present_format(tmp_path: Path) -> None:
    # An artifact of an older format that is saved again is in the new one, and must say so.
    _, manifest = artifact.read(artifact.write(tmp_path / "x", {}, {"format": artifact.FORMAT - 1}))
    assert manifest["format"] == artifact.FORMAT


@pytest.mark.parametrize("length", [0x180, 0x280, 0x380, 0x4B50])
def test_a_header_whose_length_begins_like_a_foreign_file(length: int, tmp_path: Path) -> None:
    # The file starts with the header's length in little-endian order: 0x180 is the first byte of a
    # pickle, 0x4B50 "PK".
    def header_length(note: str) -> int:
        content = artifact.write(tmp_path / "x", tensors(), {"note": note}).read_bytes()
        return int.from_bytes(content[:8], "little")

    short = header_length("")
    note = "n" * (length - short) if length >= short else ""
    while header_length(note) < length:
        note += "n"
    assert header_length(note) == max(length, short)
    assert artifact.read(tmp_path / "x")[1]["note"] == note


def test_cut_short_anywhere(written: Path) -> None:
    content = written.read_bytes()
    for length in [*range(24), *range(24, len(content), 37), len(content) - 2, len(content) - 1]:
        refused(written, content[:length])
    for more in (b"\0", b" ", b"x"):  # bytes behind the last tensor
        assert "cut short or damaged" in refused(written, content + more)


@pytest.mark.parametrize("flip", [0x01, 0x20, 0xFF])
def test_one_changed_byte_anywhere(flip: int, written: Path) -> None:
    content = written.read_bytes()
    for position in [*range(16), *range(16, len(content), 3)]:
        changed = bytearray(content)
        changed[position] ^= flip
        refused(written, bytes(changed))
    written.write_bytes(content)
    artifact.read(written)


@pytest.mark.parametrize(
    "edit",
    [
        lambda text: text.replace("knn", "kNN"),
        lambda text: text.replace(f'"format": {artifact.FORMAT}', '"format": 0'),
        lambda text: text + " ",
    ],
)
def test_an_edited_manifest(edit: Callable[[str], str], written: Path) -> None:
    table, data = header_of(written.read_bytes())
    table["__metadata__"]["manifest"] = edit(table["__metadata__"]["manifest"])
    assert "altered" in refused(written, with_header(table, data))


@pytest.mark.parametrize(
    "manifest",
    [
        *("", "{", "[]", "7", '"text"', "null", '{"method": "knn"}', '{"format": "1"}'),
        *('{"format": null}', '{"format": [1]}', "[" * 5000),
    ],
)
def test_a_manifest_that_is_none(manifest: str, written: Path) -> None:
    table, data = header_of(written.read_bytes())
    table["__metadata__"]["manifest"] = manifest
    refused(written, with_header(table, data))


def test_swapped_tensors(written: Path) -> None:
    table, data = header_of(written.read_bytes())
    table["bank"], table["other"] = table.pop("scalar"), table.pop("bank")
    assert "altered" in refused(written, with_header(table, data))


def test_a_newer_format(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    newer = artifact.FORMAT + 1
    with monkeypatch.context() as patch:
        patch.setattr(artifact, "FORMAT", newer)
        path = artifact.write(tmp_path / "new", tensors(), {"blemish": "9.9"})
    message = refused(path)
    update = "pip install --upgrade blemish"
    for part in (f"format {newer},", "blemish 9.9", f"up to {newer - 1}:", update):
        assert part in message


@pytest.mark.parametrize("width", range(1, 10))
def test_the_tensors_are_aligned_as_safetensors_asks(width: int, tmp_path: Path) -> None:
    path = artifact.write(tmp_path / "part.blemish", tensors(), {"note": "x" * width})
    assert int.from_bytes(path.read_bytes()[:8], "little") % 8 == 0


def test_a_manifest_that_json_cannot_say_is_not_written(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="JSON compliant"):
        artifact.write(tmp_path / "part.blemish", tensors(), {"scale": [float("nan"), 1.0]})
    assert not list(tmp_path.iterdir())


class Bomb:
    def __reduce__(self) -> tuple[Any, ...]:
        return (os._exit, (13,))


def zipped() -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as file:
        file.writestr("data.pkl", pickle.dumps(Bomb()))
    return buffer.getvalue()


def torch_file() -> bytes:
    buffer = io.BytesIO()
    torch.save(tensors(), buffer)
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (lambda: pickle.dumps(Bomb()), "can run code"),
        (zipped, "can run code"),
        (torch_file, "can run code"),
        (lambda: safetensors.torch.save(tensors()), "not one that blemish fit has written"),
        (
            lambda: safetensors.torch.save(tensors(), {"manifest": "{}"}),
            "not one that blemish fit has written",
        ),
        (lambda: b"path,label\na.png,0\n", "not an artifact"),
        (lambda: b'{"json": true}', "not an artifact"),
        (lambda: b"\x89PNG\r\n\x1a\n" + bytes(100), "not an artifact"),
        (lambda: b"", "0 bytes"),
        (lambda: bytes(64), "not an artifact"),
        (lambda: b"\xff" * 64, "not an artifact"),
        (lambda: (2).to_bytes(8, "little") + b"{}", "not one that blemish fit has written"),
        (lambda: (2).to_bytes(8, "little") + b"[]", "not an artifact"),
        (lambda: with_header({"t": {"dtype": "F32"}}, b""), "not an artifact"),
        (lambda: with_header({"t": 1}, b""), "not an artifact"),
        (
            lambda: with_header(
                {"t": {"data_offsets": [0, "4"]}, "u": {"data_offsets": [0, 4]}}, b"abcd"
            ),
            "",
        ),
        (lambda: with_header({"__metadata__": 5}, b""), "not one that blemish fit has written"),
        (lambda: (100_000).to_bytes(8, "little") + b"[" * 100_000, ""),
        (lambda: (100_000).to_bytes(8, "little") + b'{"a":' * 20_000, ""),
    ],
)
def test_other_files(content: Callable[[], bytes], says: str, tmp_path: Path) -> None:
    assert says in refused(tmp_path / "part.blemish", content())


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    assert "cannot be read" in refused(tmp_path / "missing.blemish")
    assert "cannot be read" in refused(tmp_path)


@pytest.mark.parametrize(
    "entry",
    [
        {"dtype": "F32", "shape": [2], "data_offsets": [0, 4]},
        {"dtype": "F99", "shape": [1], "data_offsets": [0, 4]},
        {"dtype": "F32", "shape": [-1], "data_offsets": [0, 4]},
        {"dtype": "F32", "data_offsets": [0, 4]},
    ],
)
def test_a_table_made_to_confuse(entry: dict[str, Any], tmp_path: Path) -> None:
    # Its digest is right, so that only the reader of the tensors can object.
    manifest = json.dumps({"format": artifact.FORMAT})
    digest = artifact._digest(manifest, {"t": entry}, bytes(4))
    content = with_header(
        {"__metadata__": {"manifest": manifest, "digest": digest}, "t": entry}, bytes(4)
    )
    refused(tmp_path / "x", content)


@pytest.mark.parametrize(
    ("failure", "told"),
    [
        (OSError(errno.ENOSPC, "No space left"), OutputError),
        (KeyboardInterrupt(), KeyboardInterrupt),
    ],
)
def test_a_failed_write_leaves_nothing_and_the_old_file(
    failure: BaseException,
    told: type[BaseException],
    written: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    before = written.read_bytes()

    def fail(_descriptor: int) -> None:
        raise failure

    monkeypatch.setattr(os, "fsync", fail)
    for path in (written, written.parent / "other"):
        with pytest.raises(told) as caught:
            artifact.write(path, {"bank": torch.zeros(1000)}, {})
        assert told is not OutputError or str(path) in str(caught.value)
    assert [file.name for file in written.parent.iterdir()] == [written.name]
    assert written.read_bytes() == before


def test_a_write_that_is_interrupted_leaves_nothing(
    written: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(_descriptor: int) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "fsync", interrupt)
    with pytest.raises(KeyboardInterrupt):
        artifact.write(written.parent / "other", {}, {})
    assert [file.name for file in written.parent.iterdir()] == [written.name]


def test_places_that_cannot_be_written(written: Path, tmp_path: Path) -> None:
    for path in (written / "below", tmp_path):
        with pytest.raises(OutputError, match="cannot be written"):
            artifact.write(path, {}, {})
    assert artifact.write(tmp_path / "new" / "folder" / "x", {}, {}).exists()
    assert sorted(file.name for file in tmp_path.iterdir()) == ["new", "part.blemish"]

"""The reader of weight files gives what was saved, runs nothing, and fails in one way only."""

from __future__ import annotations

import argparse
import io
import os
import pickle
import random
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from torch import Tensor, nn

from blemish.backbones.checkpoint import read_tensors
from blemish.errors import WeightsError


def save_zip(content: Any, path: Path) -> None:
    torch.save(content, path)


def save_legacy(content: Any, path: Path) -> None:
    torch.save(content, path, _use_new_zipfile_serialization=False)


def save_new_protocol(content: Any, path: Path) -> None:
    torch.save(content, path, pickle_protocol=4)


Save = Callable[[Any, Path], None]
SAVES: dict[str, Save] = {
    "zip": save_zip,
    "legacy": save_legacy,
    "safetensors": safetensors.torch.save_file,
}
every_format = pytest.mark.parametrize("save", [save_zip, save_legacy, save_new_protocol])


def assert_same(read: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert list(read) == list(expected)
    for name, tensor in expected.items():
        assert read[name].dtype == tensor.dtype
        assert read[name].shape == tensor.shape
        assert torch.equal(read[name], tensor.detach()), name


def read_back(save: Save, content: Any, folder: Path) -> dict[str, Tensor]:
    save(content, folder / "weights.bin")  # the content counts, not the name
    return read_tensors(folder / "weights.bin")


@every_format
def test_every_dtype_and_layout_comes_back(save: Save, tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(0)
    base = torch.randn(6, 8, generator=generator)
    state: dict[str, Tensor] = {
        f"of.{dtype}": (torch.randn(3, 5, generator=generator) * 50).to(torch.int8).to(dtype)
        for dtype in (
            *(torch.float32, torch.float16, torch.bfloat16, torch.float64, torch.bool),
            *(torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8),
        )
    }
    state |= {
        "base": base,
        "transposed": base.T,
        "inner": base[2:5, 1::3],
        "row": base[4],
        "scalar": torch.tensor(7),
        "none": torch.empty(0, 3),
        "parameter": nn.Parameter(torch.randn(4, generator=generator)),
    }
    assert_same(read_back(save, state, tmp_path), state)
    state = nn.BatchNorm2d(4).state_dict()  # carries _metadata
    assert_same(read_back(save, state, tmp_path), state)


@every_format
def test_a_dino_training_checkpoint_gives_the_teacher_without_its_head(
    save: Save, tmp_path: Path
) -> None:
    def network(offset: int, prefix: str) -> OrderedDict[str, Tensor]:
        body = ["backbone.cls_token", "backbone.blocks.0.norm.weight"]
        names = [*body, "head.mlp.0.weight", "head.last_layer.weight"]
        return OrderedDict(
            (prefix + name, torch.full((2,), float(offset + i))) for i, name in enumerate(names)
        )

    parameter = nn.Parameter(torch.ones(3))
    optimizer = torch.optim.AdamW([parameter])
    parameter.sum().backward()
    optimizer.step()
    checkpoint = {
        "student": network(10, "module."),
        "teacher": network(20, ""),
        "optimizer": optimizer.state_dict(),
        "epoch": 100,
        "loss": np.float64(0.5),
        "args": argparse.Namespace(lr=0.1, scales=(0.4, 1.0), seen={1, 2}, path=Path("x")),
        "flags": [True, False, None, 1.5, b"bytes", 2**70, frozenset([1]), 1 + 2j, slice(1, 2)],
    }
    expected = {"cls_token": torch.full((2,), 20.0), "blocks.0.norm.weight": torch.full((2,), 21.0)}
    assert_same(read_back(save, checkpoint, tmp_path), expected)


@pytest.mark.parametrize("key", ["state_dict", "model", "teacher", "student", "net", "ema"])
def test_the_state_dict_is_found_beside_other_things(key: str, tmp_path: Path) -> None:
    content = {"epoch": torch.tensor(3), key: {"a": torch.ones(1), "epoch": 4}}
    assert_same(read_back(save_zip, content, tmp_path), {"a": torch.ones(1)})


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (["module.a", "module.head.b"], ["a", "head.b"]),
        (["module.backbone.a", "module.backbone.c.d", "module.head.b"], ["a", "c.d"]),
        (["backbone.encoder.a", "backbone.encoder.head.b", "fc.x", "mask_token"], ["a", "head.b"]),
        (["encoder.a", "decoder.b"], ["encoder.a", "decoder.b"]),
        (["head.a", "fc.b"], ["head.a", "fc.b"]),
    ],
)
def test_prefixes_that_all_names_carry_are_stripped(
    names: list[str], expected: list[str], tmp_path: Path
) -> None:
    state = {name: torch.zeros(1) for name in names}
    assert sorted(read_back(safetensors.torch.save_file, state, tmp_path)) == sorted(expected)


class Attack:
    """Runs a shell command when it is loaded the usual way."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (f"touch {self.marker}",)


@every_format
def test_a_hostile_file_runs_nothing(save: Save, tmp_path: Path) -> None:
    marker = tmp_path / "ran"
    found = read_back(save, {"a": torch.ones(2), "b": Attack(marker)}, tmp_path)
    assert_same(found, {"a": torch.ones(2)})
    with pytest.raises(WeightsError, match=r"weights\.bin"):
        read_back(save, Attack(marker), tmp_path)
    assert not marker.exists()
    # The test can fail: loading it the usual way does run the command.
    pickle.loads(pickle.dumps(Attack(marker)))
    assert marker.exists()


STATE = {"a.weight": torch.ones(7, 2), "b.bias": torch.ones(3, dtype=torch.float16)}


@pytest.mark.parametrize("kind", SAVES)
def test_a_truncated_file_is_an_error_wherever_it_ends(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "weights"
    SAVES[kind](STATE, path)
    whole = path.read_bytes()
    for length in [*range(0, len(whole), 13), len(whole) - 1]:
        path.write_bytes(whole[:length])
        with pytest.raises(WeightsError, match=str(path)):
            read_tensors(path)


@pytest.mark.parametrize("kind", SAVES)
def test_a_damaged_file_is_an_error_or_reads(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "weights"
    SAVES[kind](STATE, path)
    whole = path.read_bytes()
    chance = random.Random(0)
    failures = 0
    for _ in range(400):
        damaged = bytearray(whole)
        for _ in range(chance.randint(1, 3)):
            damaged[chance.randrange(len(damaged))] = chance.randrange(256)
        path.write_bytes(damaged)
        try:
            read = read_tensors(path)
        except WeightsError:
            failures += 1
        else:
            assert sum(tensor.numel() for tensor in read.values()) <= len(whole)
    assert failures > 50


class Claim:
    """Saved as a tensor of any shape over a storage of 12 numbers."""

    def __init__(self, offset: Any, size: Any, stride: Any) -> None:
        self.place = (offset, size, stride)

    def __reduce__(self) -> tuple[Any, ...]:
        storage = torch.arange(12.0)._typed_storage()
        return torch._utils._rebuild_tensor_v2, (storage, *self.place, False, OrderedDict())


@pytest.mark.parametrize(
    ("claim", "said"),
    [
        (Claim(0, (13,), (1,)), "beyond its storage"),
        (Claim(0, (3, 4), (5, 1)), "beyond its storage"),
        (Claim(1, (12,), (1,)), "beyond its storage"),
        (Claim(0, (10**12,), (0,)), "beyond its storage"),
        (Claim(-1, (2,), (1,)), "impossible shape"),
        (Claim(11, (2,), (-1,)), "impossible shape"),
        (Claim(0, (2, 3), (1,)), "impossible shape"),
        (Claim(0, ("2",), (1,)), "impossible shape"),
        (Claim(0, 5, 1), "damaged"),
    ],
)
@every_format
def test_a_tensor_beyond_its_storage_is_an_error(
    save: Save, claim: Claim, said: str, tmp_path: Path
) -> None:
    good = read_back(save, {"a": Claim(2, (2, 3), (4, 1))}, tmp_path)
    assert good["a"].tolist() == [[2, 3, 4], [6, 7, 8]]
    with pytest.raises(WeightsError, match=rf"damaged.*{said}" if said != "damaged" else said):
        read_back(save, {"a": claim}, tmp_path)


def rewrite(
    path: Path, change: Callable[[str, bytes], bytes], compression: int = zipfile.ZIP_STORED
) -> None:
    with zipfile.ZipFile(path) as archive:
        content = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, data in content.items():
            archive.writestr(name, change(name, data))


def test_big_endian_storages_are_swapped(tmp_path: Path) -> None:
    state = {"a": torch.tensor([1.5, -2.25, 3e9]), "b": torch.tensor([258, -3])}
    path = tmp_path / "weights.pth"
    save_zip(state, path)

    def swap(name: str, data: bytes) -> bytes:
        if name.endswith("byteorder"):
            return b"big"
        size = {"data/0": 4, "data/1": 8}.get(name[-6:], len(data))
        if size == len(data):
            return data
        return b"".join(data[i : i + size][::-1] for i in range(0, len(data), size))

    rewrite(path, swap)
    assert_same(read_tensors(path), state)


def test_a_storage_of_another_length_and_a_compressed_archive_are_errors(tmp_path: Path) -> None:
    path = tmp_path / "weights.pth"
    save_zip({"a": torch.ones(4)}, path)
    rewrite(path, lambda name, data: data + b"\0" if name.endswith("data/0") else data)
    with pytest.raises(WeightsError, match="17 bytes, not 16"):
        read_tensors(path)
    rewrite(path, lambda _, data: data, zipfile.ZIP_DEFLATED)
    with pytest.raises(WeightsError, match="compressed"):
        read_tensors(path)


def test_a_storage_within_another_is_found_in_very_old_files(tmp_path: Path) -> None:
    class Reference:
        def __init__(self, *identity: Any) -> None:
            self.identity = identity

    class Rebuild:
        def __reduce__(self) -> tuple[Any, ...]:
            reference = Reference("storage", torch.FloatStorage, "7", "cpu", 10, ("8", 4, 6))
            return torch._utils._rebuild_tensor_v2, (reference, 1, (2,), (2,), False, OrderedDict())

    class Pickler(pickle.Pickler):
        def persistent_id(self, item: Any) -> Any:
            return item.identity if isinstance(item, Reference) else None

    path = tmp_path / "weights.pth"
    with path.open("wb") as file:
        for item in (0x1950A86A20F9469CFC6C, 1001, {"little_endian": True}):
            pickle.dump(item, file, protocol=2)
        buffer = io.BytesIO()
        Pickler(buffer, protocol=2).dump({"a": Rebuild()})
        file.write(buffer.getvalue())
        pickle.dump(["7"], file, protocol=2)
        file.write((10).to_bytes(8, "little") + np.arange(10, dtype="<f4").tobytes())
    assert read_tensors(path)["a"].tolist() == [5, 7]


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "empty"),
        (b"some text", "unknown format"),
        (b"<!DOCTYPE html><html></html>", "web page"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "Git LFS"),
        (b"\x08\x07\x12\x07pytorch\x1a\x052.0.0", "ONNX"),
        (b"\x89HDF\r\n\x1a\n" + bytes(64), "HDF5"),
        (pickle.dumps({"a": 1}, protocol=2), "Python objects"),
        (pickle.dumps({"a": 1}, protocol=5), "Python objects"),
    ],
)
def test_another_kind_of_file_is_named(content: bytes, said: str, tmp_path: Path) -> None:
    (tmp_path / "weights.pth").write_bytes(content)
    with pytest.raises(WeightsError, match=rf"weights\.pth.*{said}"):
        read_tensors(tmp_path / "weights.pth")


@pytest.mark.parametrize(
    "content", [nn.Linear(2, 2), {"epoch": 3, "args": argparse.Namespace()}, torch.ones(3)]
)
@every_format
def test_a_checkpoint_without_a_state_dict_is_named(
    save: Save, content: Any, tmp_path: Path
) -> None:
    with pytest.raises(WeightsError, match="state_dict"):
        read_back(save, content, tmp_path)


def test_other_archives_are_named(tmp_path: Path) -> None:
    np.savez(tmp_path / "arrays.npz", a=np.ones(3))
    with pytest.raises(WeightsError, match="without a PyTorch checkpoint"):
        read_tensors(tmp_path / "arrays.npz")
    with zipfile.ZipFile(tmp_path / "script.pt", "w") as archive:
        archive.writestr("script/data.pkl", b"")
        archive.writestr("script/code/__torch__.py", b"")
    with pytest.raises(WeightsError, match="TorchScript"):
        read_tensors(tmp_path / "script.pt")


def test_numbers_of_an_unknown_kind_are_named(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match="numbers of the unknown kind ComplexFloatStorage"):
        read_back(save_zip, {"a": torch.ones(2, dtype=torch.complex64)}, tmp_path)


def test_no_file_is_an_error(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "absent.pth"):
        with pytest.raises(WeightsError, match="no such weight file"):
            read_tensors(path)

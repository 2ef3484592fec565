"""Features that are kept: no picture is encoded twice, and every bit is as it was."""

from __future__ import annotations

import errno
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from blemish.backbones import Backbone, Features, build, cache
from blemish.backbones.cache import features_kept

ENOUGH = 2**30


def images(count: int, seed: int = 0) -> Tensor:
    return torch.randn(count, 3, 64, 64, generator=torch.Generator().manual_seed(seed))


@pytest.fixture
def backbone() -> Backbone:
    return build("test_vit", weights="random", seed=1)


def same(one: Features, other: Features) -> bool:
    pairs = [*zip(one.tokens, other.tokens, strict=True), *zip(one.cls, other.cls, strict=True)]
    equal = all(a.dtype == b.dtype and torch.equal(a, b) for a, b in pairs)
    return equal and one.grids == other.grids and one.offsets == other.offsets


@contextmanager
def counted(backbone: Backbone, layers: Sequence[int] = (1, 2, 3, 4)) -> Iterator[list[int]]:
    """While features are kept: how many pictures the network itself has encoded, call by call."""
    rows: list[int] = []
    modules = backbone.model.modules()
    first = next(module for module in modules if isinstance(module, torch.nn.Conv2d))
    handle = first.register_forward_pre_hook(lambda _module, given: rows.append(len(given[0])))
    with features_kept(backbone, layers):
        yield rows
    handle.remove()


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder for temporary files."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    return tmp_path


@pytest.mark.parametrize("name", ["test_vit", "test_resnet"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("in_memory", [ENOUGH, 100_000, 0])
def test_the_second_time_nothing_is_encoded_and_no_bit_differs(
    name: str, dtype: torch.dtype, in_memory: int, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cache, "IN_MEMORY", in_memory)
    backbone = build(name, weights="random", seed=1).to(dtype)
    looks = [images(4), images(3, seed=1)]
    with torch.inference_mode():
        plain = [backbone(look, (2, 3)) for look in looks]
        with counted(backbone) as rows:
            first = [backbone(look, (2, 3)) for look in looks]
            assert rows == [4, 3]
            again = [backbone(look, (2, 3)) for look in looks]
            (one,) = backbone(looks[0][[2]], (3,)).tokens  # in other company, of one layer only
            assert rows == [4, 3]
            assert list(folder.iterdir()) == []  # the file has no name
        assert same(backbone(looks[0], (2, 3)), plain[0])  # and afterwards it is as before
    assert all(same(a, b) for a, b in zip(first + again, plain + plain, strict=True))
    assert torch.equal(one, plain[0].tokens[1][[2]])
    assert "forward" not in vars(backbone)


def test_what_was_not_asked_for_before_is_encoded(backbone: Backbone) -> None:
    look = images(2)
    with torch.no_grad(), counted(backbone) as rows:
        backbone(look, (2,))
        backbone(look + 1e-6, (2,))  # another picture
        backbone(look[:, :, :32], (2,))  # another size
        backbone(look.reshape(2, 3, 32, 128), (2,))  # the same content in another shape
        assert rows == [2] * 4
        backbone(torch.cat([look, images(1, seed=5)]), (2,))  # a batch that is known in part only
        backbone(look, (2,), attention=(2,))  # more than layers
        assert rows[4:] == [3, 2]
        backbone(look, (3, 2))
        assert len(rows) == 6
    look.requires_grad_()
    with counted(backbone) as rows:
        assert all(backbone(look, (2,)).tokens[0].requires_grad for _ in range(2))
        assert rows == [2, 2]


@pytest.mark.parametrize("name", ["test_vit", "test_resnet"])
def test_shapes_can_be_asked_for_meanwhile(name: str) -> None:
    """As of a compressed bank, while it learns: pictures without storage have no content."""
    backbone = build(name, weights="random", seed=1)
    expected = backbone.shapes(64, 64, (2,)).grids
    with features_kept(backbone, (2,)):
        assert backbone.shapes(64, 64, (2,)).grids == expected


def test_all_layers_that_will_be_asked_for_are_kept_at_once(backbone: Backbone) -> None:
    with torch.no_grad(), counted(backbone, (2, 4, 3, 2)) as rows:
        first = backbone(images(2), (4, 2))
        later = backbone(images(2), (3,))
        assert rows == [2]
        backbone(images(2), (5,))  # which nobody had said
        assert rows == [2, 2]
    with torch.no_grad():
        assert same(first, backbone(images(2), (4, 2)))
        assert same(later, backbone(images(2), (3,)))


def refuse(*_: object, **__: object) -> Any:
    raise PermissionError(errno.EACCES, "no")


@pytest.mark.parametrize("fault", ["no folder", "no right", "no room", "full", "cut"])
def test_a_disk_that_takes_nothing_costs_time_and_no_bit(
    fault: str, backbone: Backbone, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cache, "IN_MEMORY", 0)
    opened = tempfile.TemporaryFile
    if fault == "no folder":
        monkeypatch.setattr(tempfile, "tempdir", str(folder / "nowhere"))
    elif fault == "no right":
        monkeypatch.setattr(tempfile, "TemporaryFile", refuse)
    elif fault == "no room":
        usage = shutil.disk_usage(folder)
        monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=1000))
    else:

        def faulty(**options: Any) -> Any:
            file = opened(**options)
            if fault == "cut":
                monkeypatch.setattr(cache._Store, "get", refuse)
                return file
            return Full(file)

        monkeypatch.setattr(tempfile, "TemporaryFile", faulty)
    with torch.no_grad():
        plain = backbone(images(3), (2, 3))
        with counted(backbone) as rows:
            assert all(same(backbone(images(3), (2, 3)), plain) for _ in range(3))
            assert rows == [3, 3, 3]


class Full:
    """A file on a disk that has room for a few bytes only."""

    def __init__(self, file: Any) -> None:
        self.seek, self.close, self.readinto = file.seek, file.close, file.readinto

    def write(self, content: memoryview) -> int:
        return min(len(content), 100)


def test_an_interruption_leaves_nothing_behind(
    backbone: Backbone, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cache, "IN_MEMORY", 0)

    def interrupted() -> None:
        with torch.no_grad(), features_kept(backbone, (2,)):
            backbone(images(2), (2,))
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert list(folder.iterdir()) == []
    assert "forward" not in vars(backbone)

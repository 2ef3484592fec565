"""Features that are kept in a folder, for the next process: to the bit, or not at all."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from blemish.backbones import Backbone, Features, build
from blemish.backbones.cache import FeatureFolder, features_kept

ENOUGH = 2**30


def images(count: int, seed: int = 0) -> Tensor:
    return torch.randn(count, 3, 64, 64, generator=torch.Generator().manual_seed(seed))


def seen(backbone: Backbone, folder: FeatureFolder, given: Tensor) -> tuple[Features, int]:
    """What is given of pictures, and how many of them the network itself has encoded."""
    rows: list[int] = []
    first = next(one for one in backbone.model.modules() if isinstance(one, torch.nn.Conv2d))
    handle = first.register_forward_pre_hook(lambda _, inputs: rows.append(len(inputs[0])))
    with torch.inference_mode(), features_kept(backbone, (1, 2), folder):
        found = backbone(given, (1, 2))
    handle.remove()
    return found, sum(rows)


@pytest.mark.parametrize("name", ["test_vit", "test_resnet"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_another_process_gets_the_same_bits(name: str, dtype: torch.dtype, tmp_path: Path) -> None:
    backbone = build(name, weights="random", seed=1).to(dtype)
    first, encoded = seen(backbone, FeatureFolder(tmp_path, ENOUGH), images(3))
    assert encoded == 3
    folder = FeatureFolder(tmp_path, ENOUGH)
    second, encoded = seen(backbone, folder, images(3))
    assert encoded == 0
    assert len(folder.found) == 3
    for one, other in zip(first.tokens, second.tokens, strict=True):
        assert one.dtype == other.dtype
        assert torch.equal(one, other)
    for one, other in zip(first.cls, second.cls, strict=True):
        assert torch.equal(one, other)
    assert (first.grids, first.offsets) == (second.grids, second.offsets)


@pytest.fixture
def backbone() -> Backbone:
    return build("test_vit", weights="random", seed=1)


def test_what_this_process_encoded_is_not_found(backbone: Backbone, tmp_path: Path) -> None:
    folder = FeatureFolder(tmp_path, ENOUGH)
    assert seen(backbone, folder, images(2))[1] == 2
    assert seen(backbone, folder, images(2))[1] == 0
    assert folder.found == set()


def test_no_more_is_kept_than_there_is_room_for(backbone: Backbone, tmp_path: Path) -> None:
    one = 2 * 17 * 64 * 4  # layers, tokens, numbers, bytes: less than a picture has
    assert seen(backbone, FeatureFolder(tmp_path, one // 4), images(3))[1] == 3
    assert list(tmp_path.iterdir()) == []
    assert seen(backbone, FeatureFolder(tmp_path, ENOUGH), images(3))[1] == 3
    size = sum(file.stat().st_size for file in tmp_path.iterdir())
    # What is there already counts.
    assert seen(backbone, FeatureFolder(tmp_path, size + 10), images(2, seed=5))[1] == 2
    assert sum(file.stat().st_size for file in tmp_path.iterdir()) == size


def test_a_damaged_file_is_encoded_again(backbone: Backbone, tmp_path: Path) -> None:
    first, _ = seen(backbone, FeatureFolder(tmp_path, ENOUGH), images(2))
    for file in tmp_path.iterdir():
        file.write_bytes(file.read_bytes()[:40])
    second, encoded = seen(backbone, FeatureFolder(tmp_path, ENOUGH), images(2))
    assert encoded == 2
    assert torch.equal(first.tokens[0], second.tokens[0])


def test_a_folder_that_cannot_be_made_keeps_nothing(backbone: Backbone, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    assert seen(backbone, FeatureFolder(tmp_path / "file" / "under", ENOUGH), images(2))[1] == 2

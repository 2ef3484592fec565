from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch

from blemish.backbones import build
from blemish.errors import ConfigError, DataError, OutputError
from blemish.images import decode
from blemish.methods.guided import Guided
from blemish.methods.guided_config import GuidedConfig
from blemish.report import simulation
from blemish.report.simulation import Simulation, simulate

TINY: dict[str, Any] = {
    "backbone": "test_vit",
    "weights": "random",
    "image_size": (64,),
    "device": "cpu",
    "precision": "fp32",
}


@pytest.fixture
def no_backbone(monkeypatch: pytest.MonkeyPatch) -> None:
    def build(*_: object, **__: object) -> None:
        raise AssertionError("a backbone was loaded")

    monkeypatch.setattr(simulation, "build", build)


def stored(path: Path) -> np.ndarray:
    return np.asarray(cv2.imread(str(path), cv2.IMREAD_UNCHANGED))


def test_results_masks_and_sheets_are_written(
    good_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    heads: list[str] = []
    drawn = simulation._contact_sheet

    def watched(names: list[str], *rest: Any) -> Any:
        heads.extend(names)
        return drawn(names, *rest)

    monkeypatch.setattr(simulation, "_contact_sheet", watched)
    made = simulate([good_folder], tmp_path / "new" / "out", **TINY, count=10)
    folder = tmp_path / "new" / "out"
    assert set(made.files) == set(folder.iterdir())
    assert len(made.files) == 10 * 2 + 2
    assert (made.failures, made.simulator) == ((), "guided")
    results = sorted(
        path for path in made.files if path.name[0].isdigit() and not path.stem.endswith("_mask")
    )
    assert {int(path.name.split("_")[0]) for path in results} == set(range(1, 11))
    for path in results:
        original = decode(good_folder / path.name.split("_", 1)[1]).pixels
        result = decode(path).pixels
        mask = stored(path.with_name(f"{path.stem}_mask.png"))
        assert mask.shape == (64, 64)
        assert set(np.unique(mask)) == {0, 255}
        assert (result == original)[mask == 0].all()
        assert (result != original)[mask > 0].any()
    first, second = stored(folder / "contact-sheet.png"), stored(folder / "contact-sheet-2.png")
    assert first.shape[1] - second.shape[1] in range(-20, 20)  # the second has two-digit numbers
    assert first.shape[0] - second.shape[0] == 6 * (320 + 12)  # 8 rows and 2
    assert len(heads) == 2 * 4
    assert all(name.isascii() for name in heads)  # the font has no other letters


def test_attention_is_that_of_the_method(picture: Callable[..., np.ndarray]) -> None:
    images = (
        torch.from_numpy(np.stack([picture(seed) for seed in range(3)])).permute(0, 3, 1, 2) / 255
    )
    guide = simulation._Guide("test_vit", "random", (2, 4), 5, "cpu", "fp32")
    backbone = build("test_vit", weights="random", seed=5)
    method = Guided(
        GuidedConfig(backbone="test_vit", image_size=(64,), guide_layers=(2, 4)), backbone
    ).eval()
    method.prepare_training()
    mean, std = (torch.tensor(values)[:, None, None] for values in (backbone.mean, backbone.std))
    with torch.inference_mode():
        wanted = method.encode((images - mean) / std)["guide"]
    given = guide(images)
    assert torch.allclose(given, wanted, atol=1e-7)
    last = simulation._Guide("test_vit", "random", (), 5, "cpu", "fp32")
    assert last.layers == (backbone.depth,)
    assert not torch.allclose(last(images), given, atol=1e-7)


def test_the_entropy_is_the_mean_in_units_of_log_n(
    good_folder: Path, tmp_path: Path, monkeypatch: Any
) -> None:
    def half(self: object, images: torch.Tensor) -> torch.Tensor:
        """Even over half of the 16 patches: log 8 / log 16."""
        maps = torch.zeros(len(images), 4, 4)
        maps[:, :2] = 1 / 8
        return maps

    monkeypatch.setattr(simulation._Guide, "__call__", half)
    made = simulate([good_folder], tmp_path / "out", **TINY, count=9)
    assert made.entropy == pytest.approx(0.75)
    assert not made.guides_nothing
    assert Simulation(simulator="guided", files=(), entropy=0.991, failures=()).guides_nothing
    assert not Simulation(simulator="nsa", files=(), entropy=None, failures=()).guides_nothing


def test_what_needs_no_attention_loads_no_backbone_and_no_folder_is_written_to_twice(
    good_folder: Path, tmp_path: Path, no_backbone: None
) -> None:
    made = simulate([good_folder], tmp_path / "out", name="nsa", count=2, image_size=(40, 60))
    assert made.entropy is None
    assert stored(made.files[0]).shape == (40, 60, 3)
    assert stored(tmp_path / "out" / "contact-sheet.png").shape[1] < 4 * 320  # a column less
    with pytest.raises(OutputError, match="holds a contact sheet already"):
        simulate([good_folder], tmp_path / "out", name="cutpaste")


def test_the_seed_draws_pictures_and_anomalies(
    good_folder: Path, tmp_path: Path, no_backbone: None
) -> None:
    def contents(folder: str, seed: int, good: Path = good_folder) -> dict[str, bytes]:
        of: dict[str, Any] = {"name": "cutpaste", "count": 3, "image_size": (32,), "seed": seed}
        made = simulate([good], tmp_path / folder, **of)
        return {path.name: path.read_bytes() for path in made.files}

    assert contents("a", 1) == contents("b", 1)
    assert contents("c", 2).keys() != contents("d", 1).keys()
    one = good_folder / "000.png"
    assert contents("e", 1, one)["1_000.png"] != contents("f", 2, one)["1_000.png"]


def test_grey_deep_and_broken_pictures(
    tmp_path: Path,
    picture: Callable[..., np.ndarray],
    write: Callable[..., Path],
    no_backbone: None,
) -> None:
    grey = picture(1)[..., 0]
    write(tmp_path / "good" / "grey.png", grey)
    # of 4,080: nearly black without a window
    write(tmp_path / "good" / "part no. 2.png", grey.astype(np.uint16) * 16)
    (tmp_path / "good" / "broken.png").touch()
    of: dict[str, Any] = {"name": "fpi", "image_size": (64,), "window": (0.0, 4080.0)}
    made = simulate(tmp_path / "good", tmp_path / "out", **of, count=16)
    (failure,) = made.failures
    assert failure.source.endswith("broken.png")
    assert "empty" in failure.reason
    stems = ["2_grey", "2_grey_mask", "3_part_no._2", "3_part_no._2_mask", "contact-sheet"]
    assert [path.stem for path in made.files] == stems
    deep, mask = stored(made.files[2]), stored(made.files[3])
    assert np.abs(deep[..., 0].astype(int) - grey)[mask == 0].max() <= 1
    assert made.to_dict()["failures"] == [failure.to_dict()]
    assert made.to_dict()["files"] == list(map(str, made.files))
    for path in (tmp_path / "good").iterdir():
        path.write_bytes(b"")
    none = r"none of the 3 pictures drawn can be read\n.*broken\.png: is empty"
    with pytest.raises(DataError, match=none):
        simulate(tmp_path / "good", tmp_path / "other", name="cutpaste")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"name": "gided"}, "did you mean 'guided'"),
        ({"count": 0}, "at least 1 picture"),
        ({"seed": -1}, "cannot be negative"),
        ({"backbone": "test_resnet"}, r"a ViT with a \[CLS\] token, or cutpaste"),
        ({"image_size": (16,)}, "one patch"),
        ({"guide_layers": (99,)}, "layer 99 does not exist"),
        ({"name": "cutpaste", "image_size": (4,)}, "from 8 up"),
    ],
)
def test_wrong_arguments(
    good_folder: Path, tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        simulate([good_folder], tmp_path / "out", **{**TINY, **changes})


def test_a_contact_sheet_names_its_columns_and_rows() -> None:
    blue, red = (50, 100, 150), (200, 100, 50)  # letters are grey at their edges
    tiles = [np.broadcast_to(np.array(colour, np.uint8), (30, 60, 3)) for colour in (blue, red)]
    sheet = simulation._contact_sheet(["left", "right"], [7, 12], [tiles, tiles[::-1]])
    (rows,) = np.nonzero((sheet == blue).all(2).any(1))
    columns = np.nonzero((sheet[rows[0]] == red).all(1))[0]
    assert sheet.shape[0] >= 2 * 160
    assert len(columns) == 320  # the longer side of a tile
    assert (sheet[rows[-1], columns] == blue).all()
    head = sheet[: rows[0]] < 100
    for left in (0, columns[0] - 330):
        assert head[:, left : left + 330].any()
    assert head[:, columns].any()
    beside = (sheet[:, :30] < 100).any(axis=(1, 2))
    assert beside[rows[0] : rows[0] + 30].any()
    assert beside[rows[-1] - 160 : rows[-1]].any()

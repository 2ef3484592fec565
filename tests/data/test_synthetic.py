"""The drawn data set: the same everywhere, masks that say exactly what differs, and of use."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import blemish
from blemish.data.checking import check
from blemish.data.flange import DEFECTS, Draws, noise, picture
from blemish.data.synthetic import write_synthetic
from blemish.errors import ConfigError, OutputError
from blemish.files import write_whole

# Of what was drawn on x86-64 with AVX-512, numpy 2.4: what differs there on another machine or
# with another release is a fault of the drawing, not of the test.
DIGEST = "f0f575b6182ddf9ea28b6a3feddac66cba29d30ecefe3ee1ab84bf2909a4fe7a"


def pixels(path: Path) -> np.ndarray:
    return np.asarray(Image.open(path))


def test_the_pixels_are_the_same_on_every_machine() -> None:
    digest = hashlib.sha256()
    for defect in ("", *DEFECTS):
        made = picture(7, 3, 1, 64, defect)
        digest.update(made.pixels.tobytes() + made.mask.tobytes())
    assert digest.hexdigest() == DIGEST


@pytest.mark.parametrize("defect", DEFECTS)
@pytest.mark.parametrize("side", [64, 150, 256])
def test_a_mask_is_exactly_what_differs(defect: str, side: int) -> None:
    shares = []
    for number in range(4):
        good, bad = picture(1, 9, number, side), picture(1, 9, number, side, defect)
        assert not good.mask.any()
        assert ((good.pixels != bad.pixels).any(axis=2) == bad.mask).all()
        shares.append(bad.mask.mean())
        change = np.abs(good.pixels.astype(int) - bad.pixels)[bad.mask].max(axis=1)
        assert change.max() > 20  # it can be seen
    assert min(shares) > 0.0005
    assert max(shares) < 0.06


def test_a_larger_set_holds_the_smaller_and_a_seed_gives_the_same_files(tmp_path: Path) -> None:
    small, large, other = tmp_path / "small", tmp_path / "large", tmp_path / "other"
    write_synthetic(small, count=2, defects=1, size=64)
    write_synthetic(large, count=4, defects=2, size=64)
    write_synthetic(other, count=2, defects=1, size=64, seed=1)
    names = sorted(path.relative_to(small) for path in small.rglob("*.png"))
    assert len(names) == 2 + 1 + 2 * len(DEFECTS)
    for name in names:
        content = (small / name).read_bytes()
        assert (large / name).read_bytes() == content
        if "ground_truth" not in name.parts:
            assert (other / name).read_bytes() != content
    drawn = {path.read_bytes() for path in large.glob("t*/*/*.png")}
    assert len(drawn) == 4 + 2 + 2 * len(DEFECTS)  # no picture twice, in no split


def test_it_is_a_data_set_that_is_recognised_whole(tmp_path: Path) -> None:
    made = write_synthetic(tmp_path / "flange", count=3, defects=2, size=64)
    found = check(made.folder)
    assert found.ok, found.to_dict()
    assert not found.dataset.problems
    masks = {place.place: place.paired for place in found.dataset.mask_places}
    assert sum(masks.values()) == 2 * len(DEFECTS)
    assert made.to_dict()["good"] == 2


def test_a_detector_learns_from_it_and_is_judged_by_its_masks(
    tmp_path: Path, small: dict[str, Any], run: Callable[..., tuple[int, str, str]]
) -> None:
    folder = tmp_path / "flange"
    status, out, _ = run("data synthetic", folder, "--count 20 --defects 1 --size 64 --seed 3")
    assert status == 0
    assert "20 good pictures to learn from; to test on 10 good, 1 scratch, 1 dent" in out
    found = blemish.evaluate(blemish.fit("knn", folder, **small), folder)
    assert (found.counts["normal"], found.counts["anomalous"]) == (10, len(DEFECTS))
    assert found.counts["without_mask"] == 0
    assert found.pixel_auroc is not None


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"count": 0}, "count: at least 1"),
        ({"defects": 0}, "defects: at least 1"),
        ({"count": 100_001}, "count: 100000 at most"),
        ({"defects": 10**22}, "defects: 100000 at most"),
        ({"seed": -1}, "seed: at least 0"),
        ({"size": 63}, "size: 64 to 2048 pixels"),
        ({"size": 2049}, "size: 64 to 2048 pixels"),
    ],
)
def test_what_cannot_be_drawn_is_said(wrong: dict[str, int], said: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=said):
        write_synthetic(tmp_path / "new", **wrong)
    assert not (tmp_path / "new").exists()


def test_nothing_is_drawn_over_what_is_there(tmp_path: Path, refused: Callable[..., str]) -> None:
    there = tmp_path / "there"
    there.mkdir()
    (there / "mine.txt").write_text("mine")
    for place in (there, there / "mine.txt"):
        with pytest.raises(OutputError, match="is there already; name a new folder"):
            write_synthetic(place)
    assert "name a new folder" in refused("data synthetic", there)
    (tmp_path / "link").symlink_to(tmp_path / "gone")
    said = refused("data synthetic", tmp_path / "link")
    assert f"{tmp_path / 'link'}: is a link to nothing" in said
    said = refused("data synthetic", there / "mine.txt" / "parts")
    assert f"{there / 'mine.txt' / 'parts'}: cannot be written" in said
    assert [path.name for path in there.iterdir()] == ["mine.txt"]


@pytest.mark.parametrize("problem", [OSError(28, "No space left on device"), KeyboardInterrupt()])
def test_no_half_of_a_set_stays(
    problem: BaseException, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    writes: list[Path] = []

    def fails_later(path: Path, content: bytes, *, picture: bool) -> Path:
        writes.append(path)
        if len(writes) == 9:
            raise problem
        return write_whole(path, content, picture=picture)

    monkeypatch.setattr("blemish.data.synthetic.write_whole", fails_later)
    with pytest.raises(type(problem)):
        write_synthetic(tmp_path / "set", count=3, defects=1, size=64)
    assert writes[0].parent.name == "good"
    assert list((tmp_path / "set").iterdir()) == []
    write_synthetic(tmp_path / "set", count=3, defects=1, size=64)  # so the same call works again


def test_noise_is_that_of_its_formula() -> None:
    """Against a loop over places: corners blended by 3t² - 2t³ down, then across."""
    side, down, across = 17, 3, 5
    drawn = noise(Draws(4), side, down, across)
    corners = Draws(4).plane(down + 1, across + 1)

    def between(place: int, cells: int) -> tuple[int, float]:
        at = (place + 0.5) * cells / side
        t = at - int(at)
        return int(at), 3 * t**2 - 2 * t**3

    for row in range(side):
        for column in range(side):
            (i, a), (j, b) = between(row, down), between(column, across)
            edge = [(1 - a) * corners[i, j + k] + a * corners[i + 1, j + k] for k in (0, 1)]
            assert drawn[row, column] == pytest.approx((1 - b) * edge[0] + b * edge[1], abs=1e-12)

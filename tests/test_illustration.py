"""`blemish figures` end to end: what is drawn, of which pictures, and what is set aside."""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import blemish
from blemish import illustration
from blemish.errors import DataError, OutputError
from blemish.predictor import Detector
from blemish.report import figures
from blemish.types import Scores

Run = Callable[..., tuple[int, str, str]]
FILES = ["histogram.png", "embedding.png", "gallery.png"]


@pytest.fixture
def part(tmp_path: Path, fitted: Callable[..., Detector]) -> Path:
    return fitted().save(tmp_path / "part.blemish")


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> dict[str, tuple[Any, ...]]:
    """The arguments that each figure was drawn from, by its name."""
    calls: dict[str, tuple[Any, ...]] = {}

    def watch(name: str) -> None:
        draw = getattr(figures, name)

        def watched(*arguments: Any, **options: Any) -> bytes:
            calls[name] = (*arguments, options)
            picture: bytes = draw(*arguments, **options)
            return picture

        monkeypatch.setattr(figures, name, watched)

    for name in ("score_histogram", "embedding", "gallery"):
        watch(name)
    return calls


Rows = Sequence[tuple[str, Mapping[str, np.ndarray]]]


def test_figures(run: Run, part: Path, mvtec: Path, tmp_path: Path, drawn: dict[str, Any]) -> None:
    out = tmp_path / "out"
    status, said, err = run("figures", part, mvtec, "-o", out, "--precision", "fp32", "--count", "2")
    assert status == 0
    assert "Pictures: 6 good, 7 defective; 0 broken" in said
    assert "scoring: 1 of 13" in err
    assert {path.name for path in out.iterdir()} == set(FILES)
    for name in FILES:
        assert f"Written: {out / name}" in said
        with Image.open(out / name) as picture:
            assert picture.format == "PNG"
            assert np.asarray(picture.convert("L")).std() > 5
    detector = blemish.load(part, precision="fp32")
    rows = blemish.evaluate(detector, mvtec).rows
    scores = {label: [row["score"] for row in rows if row["truth"] == label] for label in (0, 1)}
    good, defective, options = drawn["score_histogram"]
    assert good == pytest.approx(scores[0], rel=1e-5)
    assert defective == pytest.approx(scores[1], rel=1e-5)
    assert detector.threshold is not None
    assert options["threshold"] == detector.threshold.value
    points, labels, names, _ = drawn["embedding"]
    assert labels == [row["truth"] for row in rows]
    assert names == [row["defect"] if row["truth"] else "" for row in rows]
    assert (points.ndim, len(points)) == (2, 13)
    shown, options = drawn["gallery"]
    ranked = [row["path"] for row in sorted(rows, key=lambda row: -row["score"]) if row["truth"] == 1]
    highest = [row["path"] for row in sorted(rows, key=lambda row: -row["score"]) if row["truth"] == 0]
    assert titles(shown) == [
        *(("defect, high score", Path(path).name) for path in ranked[:2]),
        *(("defect, low score", Path(path).name) for path in ranked[:-3:-1]),
        *(("good, high score", Path(path).name) for path in highest[:2]),
    ]
    assert [list(tiles) for _, tiles in shown] == [["picture", "mask", "heatmap"]] * 4 + [["picture", "heatmap"]] * 2
    assert options["note"] == ""
    status, _, err = run("figures", part, mvtec, "-o", out)
    assert (status, "holds figures already" in err) == (2, True)


def titles(rows: Rows) -> list[tuple[str, str]]:
    """The first line of each caption, and the file's name."""
    return [
        (caption.split("\n")[0], next(line for line in caption.split("\n") if ".png" in line)) for caption, _ in rows
    ]


def test_features_belong_to_their_pictures(
    fitted: Callable[..., Detector], mvtec: Path, tmp_path: Path, drawn: dict[str, Any], picture: Any, write: Any
) -> None:
    """Broken pictures and those known to the detector come between the others, and have no point."""
    (mvtec / "test" / "dark" / "0005.png").touch()
    write(mvtec / "test" / "good" / "0005.png", picture(3))
    made = illustration.illustrate(fitted(), mvtec, tmp_path / "out")
    assert (made.normal, made.anomalous) == (6, 7)
    assert [Path(path).name for path in made.left_out] == ["0005.png"]
    assert [Path(failure.source).name for failure in made.failures] == ["0005.png"]
    points, labels, _, _ = drawn["embedding"]
    method = fitted().method
    paths = [Path(row["path"]) for row in blemish.evaluate(fitted(), mvtec).rows]
    assert labels == [int(path.parent.name != "good") for path in paths]
    for point, path in zip(points, paths, strict=True):
        with torch.inference_mode():
            alone = method.embedding(fitted()._load((0, path, "")).tensor[None])[0]  # type: ignore[union-attr]
        assert np.allclose(point, alone, atol=1e-4)
    assert np.ptp(points, axis=0).max() > 1e-2
    shown, _ = drawn["gallery"]
    names = titles(shown)
    assert len(names) == len(set(names)) == 4 + 3 + 4  # no defect is shown both as found and as missed


def test_broken_pictures_and_masks_are_listed(run: Run, part: Path, mvtec: Path, tmp_path: Path) -> None:
    (mvtec / "test" / "good" / "empty.png").touch()
    (mvtec / "ground_truth" / "square" / "002_mask.png").write_bytes(b"no mask")
    status, said, _ = run("figures", part, mvtec, "-o", tmp_path / "out", "--json")
    assert status == 1
    made = json.loads(said)
    assert (made["normal"], made["anomalous"], made["left_out"]) == (6, 7, [])
    assert [Path(failure["path"]).name for failure in made["failures"]] == ["empty.png", "002_mask.png"]
    assert made["failures"][0]["error"] == "is empty (0 bytes)"
    assert made["files"] == [str(tmp_path / "out" / name) for name in FILES]


def test_saliency_and_crop_are_in_the_gallery(
    fitted: Callable[..., Detector], mvtec: Path, tmp_path: Path, drawn: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    detector = fitted()
    score = detector.method.score

    def looking(images: torch.Tensor) -> Scores:
        scores, box = score(images), torch.tensor([0.25, 0.25, 0.5, 0.5])
        return Scores(
            scores.image, scores.maps, saliency=torch.ones(len(images), 2, 2), boxes=box.expand(len(images), 4)
        )

    monkeypatch.setattr(detector.method, "score", looking)
    illustration.illustrate(detector, mvtec, tmp_path / "out", count=1)
    shown, options = drawn["gallery"]
    assert "rectangle is the crop" in options["note"]
    for _, tiles in shown:
        assert "saliency" in tiles
        for name in ("heatmap", "saliency"):
            assert (tiles[name][16, 17:47] == 255).all()  # the rectangle's light line
        assert (tiles["saliency"] != tiles["picture"]).any(2).all()


def test_several_categories_are_named(
    fitted: Callable[..., Detector], mvtec: Path, tmp_path: Path, drawn: dict[str, Any]
) -> None:
    root = tmp_path / "set"
    root.mkdir()
    mvtec.rename(root / "bolt")
    for file in sorted(path for path in (root / "bolt").rglob("*.png")):
        copy = root / "nut" / file.relative_to(root / "bolt")
        copy.parent.mkdir(parents=True, exist_ok=True)
        copy.write_bytes(file.read_bytes())
    made = illustration.illustrate(fitted(), root, tmp_path / "out", count=1)
    assert (made.normal, made.anomalous) == (12, 14)
    assert set(drawn["embedding"][2]) == {"", "bolt/square", "bolt/dark", "nut/square", "nut/dark"}


def test_data_that_cannot_be_drawn(
    run: Run, part: Path, mvtec: Path, good_folder: Path, tmp_path: Path, fitted: Callable[..., Detector]
) -> None:
    status, _, err = run("figures", part, good_folder, "-o", tmp_path / "out")
    assert (status, "labelled good and defective" in err) == (2, True)
    for path in list((mvtec / "test").rglob("*.png"))[2:]:
        path.write_bytes(b"")
    with pytest.raises(DataError, match=r"2 pictures are left, .* figures need 3"):
        illustration.illustrate(fitted(), mvtec, tmp_path / "out")
    assert not any((tmp_path / "out" / name).exists() for name in FILES)
    (tmp_path / "file").touch()
    with pytest.raises(OutputError):
        illustration.illustrate(fitted(), mvtec, tmp_path / "file")


def test_pictures_that_have_gone_meanwhile_are_listed(
    fitted: Callable[..., Detector], mvtec: Path, tmp_path: Path, drawn: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    draw = figures.embedding

    def slow(*arguments: Any, **options: Any) -> bytes:
        (mvtec / "test" / "square" / "001.png").unlink()
        return draw(*arguments, **options)

    monkeypatch.setattr(figures, "embedding", slow)
    made = illustration.illustrate(fitted(), mvtec, tmp_path / "out", count=7)
    assert [Path(failure.source).name for failure in made.failures] == ["001.png"]
    assert len(drawn["gallery"][0]) == 6 + 6
    assert Image.open(io.BytesIO(made.files[2].read_bytes())).format == "PNG"

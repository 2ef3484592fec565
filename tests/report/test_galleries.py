"""`blemish figures` end to end: what is drawn, of which pictures, and what is set aside."""

from __future__ import annotations

import io
import json
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from parts import prepared
from PIL import Image

import blemish
from blemish.backbones import Features
from blemish.detector.predict import Detector
from blemish.errors import ConfigError, DataError, OutputError
from blemish.images import decode
from blemish.report import figures
from blemish.report import galleries as illustration
from blemish.types import Scores

Run = Callable[..., tuple[int, str, str]]
FILES = ["histogram.png", "embedding.png", "gallery.png"]


@pytest.fixture
def part(tmp_path: Path, fitted: Callable[..., Detector]) -> Path:
    return fitted().save(tmp_path / "part.blemish")


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> dict[str, tuple[Any, ...]]:
    """The arguments that each figure was drawn from, by its name; of several "embedding",
    "embeddings 2", …
    """
    calls: dict[str, tuple[Any, ...]] = {}

    def watch(name: str) -> None:
        draw = getattr(figures, name)

        def watched(*arguments: Any, **options: Any) -> bytes:
            number = sum(key.split()[0] == name for key in calls) + 1
            calls[name if number == 1 else f"{name} {number}"] = (*arguments, options)
            picture: bytes = draw(*arguments, **options)
            return picture

        monkeypatch.setattr(figures, name, watched)

    for name in ("score_histograms", "embeddings", "gallery"):
        watch(name)
    return calls


def test_figures(run: Run, part: Path, mvtec: Path, tmp_path: Path, drawn: dict[str, Any]) -> None:
    out = tmp_path / "out"
    status, said, err = run("figures", part, mvtec, "-o", out, "--precision fp32 --count 2")
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
    spread = drawn["score_histograms"][0][""]
    assert spread.good == pytest.approx(scores[0], rel=1e-5)
    assert spread.defective == pytest.approx(scores[1], rel=1e-5)
    assert detector.threshold is not None
    assert spread.threshold == detector.threshold.value
    every, labels, names, _ = drawn["embeddings"]
    points = every[""]
    assert labels == [row["truth"] for row in rows]
    assert names == [row["defect"] if row["truth"] else "" for row in rows]
    assert (points.ndim, len(points)) == (2, 13)
    shown, options = drawn["gallery"]
    good, bad = (
        [Path(row["path"]).name for row in ranked(rows) if row["truth"] == truth]
        for truth in (0, 1)
    )
    assert titles(shown) == [
        *(("defect, high score", name) for name in bad[:2]),
        *(("defect, low score", name) for name in bad[:-3:-1]),
        *(("good, high score", name) for name in good[:2]),
    ]
    tiles = [["picture", "mask", "heatmap"]] * 4 + [["picture", "heatmap"]] * 2
    assert [list(row.tiles) for row in shown] == tiles
    assert options["note"] == "The outlines are the regions of defects that were found."
    status, _, err = run("figures", part, mvtec, "-o", out)
    assert (status, "holds figures already" in err) == (2, True)


def ranked(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Of an evaluation, the highest score first."""
    return sorted(rows, key=lambda row: -row["score"])


def titles(rows: Sequence[figures.Row]) -> list[tuple[str, str]]:
    """The first line of each caption, and the file's name."""
    captions = [row.caption.split("\n") for row in rows]
    return [(lines[0], next(line for line in lines if ".png" in line)) for lines in captions]


@pytest.mark.parametrize(("method", "passes"), [("knn", 2), ("lda", 2), ("atacnet", 4)])
def test_one_pass_scores_and_describes_each_picture_that_is_new(
    fitted: Callable[..., Detector],
    mvtec: Path,
    tmp_path: Path,
    drawn: dict[str, Any],
    picture: Any,
    write: Any,
    method: str,
    passes: int,
) -> None:
    """14 pictures are two batches, and ATAC-Net looks twice. A broken picture and a known one come
    between the others, and have no point."""
    (mvtec / "test" / "dark" / "0005.png").touch()
    write(mvtec / "test" / "good" / "0005.png", picture(3))
    (mvtec / "ground_truth" / "square" / "002_mask.png").write_bytes(b"no mask")
    detector, looks = fitted(method), list[int]()
    count = detector.method.backbone.register_forward_hook(lambda *_: looks.append(1))
    try:
        made = illustration.illustrate({"part": detector}, mvtec, tmp_path / "out")
    finally:
        count.remove()
    assert len(looks) == passes
    assert (made.normal, made.anomalous) == (6, 7)
    assert [Path(path).name for path in made.left_out] == ["0005.png"]
    failures = [Path(failure.source).name for failure in made.failures]
    assert failures == ["0005.png", "002_mask.png"]
    every, labels, _, _ = drawn["embeddings"]
    paths = [Path(row["path"]) for row in blemish.evaluate(detector, mvtec).rows]
    assert labels == [int(path.parent.name != "good") for path in paths]
    tensors = [prepared(decode(path), detector.preprocessing) for path in paths]
    with torch.inference_mode():
        alone = detector.method.embedding(torch.stack(tensors))
    assert np.allclose(every[""], alone, atol=1e-4)
    pictures = [row.caption.split("\n", 1)[1] for row in drawn["gallery"][0]]
    assert len(pictures) == len(set(pictures)) == 4 + 3 + 4  # no defect is found and missed


def test_regions_are_outlined_where_there_is_a_threshold_of_them(
    fitted: Callable[..., Detector], mvtec: Path, tmp_path: Path, drawn: dict[str, Any]
) -> None:
    detector = fitted()
    bare = detector.with_region_threshold(None)
    for name, one in (("with", detector), ("without", bare)):
        illustration.illustrate({"part": one}, mvtec, tmp_path / name, count=2)
    (outlined, noted), (plain, silent) = drawn["gallery"], drawn["gallery 2"]
    assert ("outlines" in noted["note"], silent["note"]) == (True, "")
    changed = 0
    for one, other in zip(outlined, plain, strict=True):
        _, *kind, file, _ = one.caption.split("\n")
        found = detector.predict(mvtec.joinpath("test", *(kind or ["good"]), file))
        assert found.mask is not None
        differs = (one.tiles["heatmap"] != other.tiles["heatmap"]).any(axis=2)
        assert differs.any() == found.mask.any()
        inner = np.s_[2:-2, 2:-2]  # at the picture's border the line moves inwards
        assert not differs[inner][found.mask[inner]].any()  # it is around them
        changed += differs.any()
    assert changed >= 4


def test_saliency_and_crop_are_in_the_gallery(
    fitted: Callable[..., Detector],
    mvtec: Path,
    tmp_path: Path,
    drawn: dict[str, Any],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    detector = fitted()
    judge = detector.method.judge

    def looking(features: Features, images: torch.Tensor) -> Scores:
        scores, box = judge(features, images), torch.tensor([0.25, 0.25, 0.5, 0.5])
        return Scores(
            scores.image,
            scores.maps,
            saliency=torch.ones(len(images), 2, 2),
            boxes=box.expand(len(images), 4),
        )

    monkeypatch.setattr(detector.method, "judge", looking)
    illustration.illustrate({"part": detector}, mvtec, tmp_path / "out", count=1)
    shown, options = drawn["gallery"]
    assert "rectangle is the crop" in options["note"]
    for tiles in (row.tiles for row in shown):
        assert "saliency" in tiles
        for name in ("heatmap", "saliency"):
            assert (tiles[name][16, 17:47] == 255).all()  # the rectangle's light line
        assert (tiles["saliency"] != tiles["picture"]).any(2).all()


def test_several_categories_are_named(
    fitted: Callable[..., Detector],
    mvtec: Path,
    tmp_path: Path,
    drawn: dict[str, Any],
    picture: Any,
    write: Any,
) -> None:
    root = tmp_path / "set"
    for name in ("bolt", "nut"):
        shutil.copytree(mvtec, root / name)
    few = root / "nut.v2"
    write(few / "train" / "good" / "000.png", picture(0))
    for seed in range(2):  # too few for an embedding of their own
        write(few / "test" / "dent" / f"{seed:03d}.png", picture(400 + seed, defect=True))
    made = illustration.illustrate({"part": fitted()}, root, tmp_path / "out", count=1)
    assert (made.normal, made.anomalous) == (12, 16)
    kinds = {f"{name}/{kind}" for name in ("bolt", "nut") for kind in ("square", "dark")}
    assert set(drawn["embeddings"][2]) == {"", *kinds, "nut.v2/dent"}
    high, low, _ = (row.caption.split("\n") for row in drawn["gallery"][0])
    assert {high[1], low[1]} <= {*kinds, "nut.v2/dent"}
    names = ["histogram", "embedding", "embedding-bolt", "embedding-nut", "gallery"]
    assert made.files == tuple(tmp_path / "out" / f"{name}.png" for name in names)
    for key, start in (("embeddings 2", 0), ("embeddings 3", 13)):
        points, labels, kinds, _ = drawn[key]
        assert np.array_equal(points[""], drawn["embeddings"][0][""][start : start + 13])
        assert (sum(labels), set(kinds)) == (7, {"", "square", "dark"})


def test_data_that_cannot_be_drawn(
    run: Run,
    part: Path,
    mvtec: Path,
    good_folder: Path,
    tmp_path: Path,
    fitted: Callable[..., Detector],
) -> None:
    status, _, err = run("figures", part, good_folder, "-o", tmp_path / "out")
    assert (status, "labelled good and defective" in err) == (2, True)
    for path in list((mvtec / "test").rglob("*.png"))[2:]:
        path.write_bytes(b"")
    with pytest.raises(DataError, match=r"2 pictures are left, .* figures need 3"):
        illustration.illustrate({"part": fitted()}, mvtec, tmp_path / "out")
    assert not any((tmp_path / "out" / name).exists() for name in FILES)
    (tmp_path / "file").touch()
    with pytest.raises(OutputError):
        illustration.illustrate({"part": fitted()}, mvtec, tmp_path / "file")


@pytest.mark.parametrize(
    ("names", "gone", "shown"),
    [
        (["knn"], ["001.png"], ["high"] * 6 + ["good"] * 6),
        (["knn", "padim"], None, ["high", "low", "good"]),
    ],
)
def test_pictures_that_go_before_they_are_drawn_are_listed(
    fitted: Callable[..., Detector],
    mvtec: Path,
    tmp_path: Path,
    drawn: dict[str, Any],
    monkeypatch: pytest.MonkeyPatch,
    names: list[str],
    gone: list[str] | None,
    shown: list[str],
) -> None:
    """Of a comparison those with a square, the highest and the lowest of which were to be shown."""
    draw = figures.embeddings

    def slow(*arguments: Any, **options: Any) -> bytes:
        for file in (mvtec / "test" / "square").iterdir():
            if gone is None or file.name in gone:
                file.unlink()
        return draw(*arguments, **options)

    monkeypatch.setattr(figures, "embeddings", slow)
    detectors = {name: fitted(name) for name in names}
    count = 7 if gone else None
    made = illustration.illustrate(detectors, mvtec, tmp_path / "out", count=count)
    assert len(made.failures) == (1 if gone else 2)
    found = [
        "good" if title.startswith("good") else title.split()[1]
        for title, _ in titles(drawn["gallery"][0])
    ]
    assert found == shown
    assert Image.open(io.BytesIO(made.files[2].read_bytes())).format == "PNG"


def check_compared(
    shown: Sequence[figures.Row],
    options: dict[str, Any],
    rows: dict[str, Any],
    mvtec: Path,
) -> None:
    """The gallery shows the pictures at both ends of the first detector's scores, as both see them.

    Args: rows: of the evaluations of "part" and "padim $x$".
    """
    of = {
        kind: [Path(row["path"]).name for row in ranked(rows["part"]) if row["defect"] == kind]
        for kind in ("dark", "square", "good")
    }
    ends = [of["dark"][0], of["dark"][-1], of["square"][0], of["square"][-1]]
    heads = ["defect, high score", "defect, low score"] * 2
    assert titles(shown) == [
        *zip(heads, ends, strict=True),
        ("good, high score", of["good"][0]),
    ]
    assert options["columns"] == ["picture", "mask", "by part", "by padim $x$"]
    assert [len(row.tiles) for row in shown] == [4, 4, 4, 4, 3]
    scores = {(name, row["path"]): row for name, own in rows.items() for row in own}
    for one, (_, file) in zip(shown, titles(shown), strict=True):
        lines = one.caption.split("\n")
        kind = next((kind for kind in ("dark", "square") if kind in lines), "good")
        tiles, words = one.tiles, one.labels
        assert (tiles["by part"] != tiles["by padim $x$"]).any()
        for name in rows:
            row = scores[name, str(mvtec / "test" / kind / file)]
            score, _, alarm = words[f"by {name}"].partition(", ")
            assert float(score) == pytest.approx(row["score"], rel=2e-3)
            assert alarm == ("alarm" if row["label"] else "")
    assert options["note"].splitlines() == [
        "High and low are the scores by part.",
        "The outlines are the regions of defects that were found.",
    ]


def test_several_detectors_are_compared_on_the_same_pictures(
    run: Run,
    part: Path,
    fitted: Callable[..., Detector],
    mvtec: Path,
    tmp_path: Path,
    drawn: dict[str, Any],
) -> None:
    other = fitted("padim").save(tmp_path / "padim $x$.blemish")
    out = tmp_path / "out"
    status, said, err = run("figures", part, other, mvtec, "-o", out, "--precision fp32 --json")
    assert status == 0, err
    made = json.loads(said)
    names = ["histograms.png", "embeddings.png", "comparison.png"]
    assert made["artifacts"] == [str(part), str(other)]
    assert made["files"] == [str(out / name) for name in names]
    assert {path.name for path in out.iterdir()} == set(names)
    assert (made["normal"], made["anomalous"], made["failures"]) == (6, 7, [])
    assert "scoring with part: 1 of 13" in err
    assert "scoring with padim $x$: 1 of 13" in err
    rows = {
        name: blemish.evaluate(blemish.load(path, precision="fp32"), mvtec).rows
        for name, path in zip(["part", "padim $x$"], [part, other], strict=True)
    }
    panels, _ = drawn["score_histograms"]
    assert list(panels) == list(rows)
    for name, spread in panels.items():
        for truth, scores in enumerate((spread.good, spread.defective)):
            wanted = [row["score"] for row in rows[name] if row["truth"] == truth]
            assert scores == pytest.approx(wanted, rel=1e-4)
        assert spread.threshold == rows[name][0]["threshold"]
    assert [each.shape[0] for each in drawn["embeddings"][0].values()] == [13, 13]
    shown, options = drawn["gallery"]
    check_compared(shown, options, rows, mvtec)
    status, _, err = run("figures", part, part, mvtec, "-o", tmp_path / "twice")
    assert (status, "named twice" in err) == (2, True)


def test_artifacts_of_one_name_are_called_by_their_paths(
    run: Run,
    part: Path,
    fitted: Callable[..., Detector],
    mvtec: Path,
    tmp_path: Path,
    drawn: dict[str, Any],
) -> None:
    (tmp_path / "more").mkdir()
    other = fitted("padim").save(tmp_path / "more" / "part.blemish")
    (mvtec / "test" / "good" / "empty.png").touch()
    status, said, _ = run("figures", part, other, mvtec, "-o", tmp_path / "out", "--count 2 --json")
    assert status == 1
    (failure,) = json.loads(said)["failures"]
    assert (Path(failure["path"]).name, failure["error"]) == ("empty.png", "is empty (0 bytes)")
    assert list(drawn["score_histograms"][0]) == [str(part), str(other)]
    assert len(drawn["gallery"][0]) == 3 + 4 + 2  # of three dark ones none is shown twice


def test_what_any_detector_knows_is_in_no_comparison(
    fitted: Callable[..., Detector],
    mvtec: Path,
    tmp_path: Path,
    drawn: dict[str, Any],
    picture: Any,
    write: Any,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Several categories have a comparison each; what cannot be read or is known to one is left out
    for all.
    """
    root = tmp_path / "set"
    root.mkdir()
    mvtec.rename(root / "bolt")
    for seed in range(2):
        write(root / "nut" / "train" / "good" / f"{seed:03d}.png", picture(seed))
        write(root / "nut" / "test" / "good" / f"{seed:03d}.png", picture(500 + seed))
    write(root / "nut" / "test" / "good" / "known.png", picture(23))
    (root / "nut" / "test" / "good" / "empty.png").touch()
    write(root / "nut" / "test" / "dent" / "000.png", picture(600, defect=True))
    write(root / "clip" / "train" / "good" / "000.png", picture(0))
    write(root / "clip" / "test" / "good" / "known.png", picture(22))
    few, many = fitted("knn", count=4), fitted("padim")
    made = illustration.illustrate({"few": few, "many": many}, root, tmp_path / "out")
    assert [Path(source).parent.parent.parent.name for source in made.left_out] == ["clip", "nut"]
    assert [Path(failure.source).name for failure in made.failures] == ["empty.png"]
    assert (made.normal, made.anomalous) == (8, 8)
    parts = [f"{name}-{kind}" for name in ("embeddings", "comparison") for kind in ("bolt", "nut")]
    assert [file.stem for file in made.files] == ["histograms", "embeddings", *parts]
    assert all(file.exists() for file in made.files)
    assert set(drawn["embeddings"][2]) == {"", "bolt/square", "bolt/dark", "nut/dent"}
    assert set(drawn["embeddings 3"][2]) == {"", "dent"}
    rows, options = drawn["gallery 2"]
    assert titles(rows) == [
        ("defect, high score", "000.png"),
        ("good, high score", rows[1].caption.split("\n")[-1]),
    ]
    assert options["columns"] == ["picture", "by few", "by many"]  # no mask is known
    monkeypatch.setattr(illustration, "_MOST_ROWS", 8)  # of bolt 3 dark, 4 with a square, 2 good
    with pytest.raises(ConfigError, match="comparison of 9 rows, and 8 fit"):
        illustration.illustrate({"few": few, "many": many}, root, tmp_path / "long", count=2)

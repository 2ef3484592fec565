"""Detectors of tiles: what they say of a picture is put together from its tiles."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from parts import FIT, Run, Write, part, prepared, rows_of, settings_of

import blemish
from blemish.data.areas import read_area
from blemish.data.tiles import TiledPicture, tiled
from blemish.data.tiling import Tiling
from blemish.detector.calibrate import recalibrate
from blemish.detector.predict import Detector
from blemish.detector.stitching import Found, Stitching
from blemish.engines.base import Input, Outputs
from blemish.engines.pytorch import TorchEngine
from blemish.errors import ConfigError, DataError, ImageError
from blemish.report.galleries import _Embedding
from blemish.types import Failure, Prediction, Sample

METHODS = ["patchcore", "knn", "padim", "spade", "agpnet", "dinomaly", "vitad", "simplenet"]
METHODS += ["uniad", "efficientad", "atacnet", "dra", "ahl", "draem", "lda", "guided"]
HEIGHT, WIDTH = 150, 200
TILE = {"tile": 64, "overlap": 0.25}


def large(seed: int, *, dot: tuple[int, int] | None = None) -> np.ndarray:
    pixels = part(seed, height=HEIGHT, width=WIDTH)
    if dot is not None:
        y, x = dot
        pixels[y - 4 : y + 4, x - 4 : x + 4] = 250
    return pixels


def fitted(method: str = "patchcore", **more: Any) -> Detector:
    good = [large(seed) for seed in range(6)]
    chosen = {**settings_of(method), "false_alarm_rate": 0.4, "smoothing": 0.0, **TILE, **more}
    return blemish.fit(method, good, **chosen)


# How tiles are put together


def picture_of(height: int, width: int, tiling: Tiling, **more: Any) -> TiledPicture:
    return TiledPicture(np.zeros((height, width, 3), np.uint8), tiling, name="x", **more)


def stitched(picture: TiledPicture, values: Any, stitching: Stitching, places: int = 16) -> Found:
    """What comes of tiles of which each place says a function of where it lies (pixels)."""
    whole = None
    for tile in picture.tiles:
        side = picture.tiling.side
        at = (np.arange(places) + 0.5) * side / places
        rows, columns = tile.window.rows.start + at, tile.window.columns.start + at
        anomaly_map = values(rows[:, None], columns[None, :]).astype(np.float32)
        assert whole is None
        whole = stitching.add(tile, Found(score=float(anomaly_map.max()), anomaly_map=anomaly_map))
    assert whole is not None
    return whole


@pytest.mark.parametrize(("height", "width"), [(64, 64), (64, 160), (151, 200), (113, 97)])
@pytest.mark.parametrize("overlap", [0.0, 0.25, 0.6])
def test_what_is_even_stays_even(height: int, width: int, overlap: float) -> None:
    """A plane over the picture: no seam, and every place where it lies."""
    picture = picture_of(height, width, Tiling(side=64, overlap=overlap))
    found = stitched(picture, lambda y, x: 2 * y + 3 * x + 5, Stitching(None, 0.0))
    h, w = found.anomaly_map.shape
    assert (h, w) == (round(height / 4), round(width / 4))
    y, x = (np.arange(h) + 0.5) * height / h, (np.arange(w) + 0.5) * width / w
    expected = 2 * y[:, None] + 3 * x + 5
    # A place at a tile's border may lie half a place beyond the last one of the tile.
    assert np.abs(found.anomaly_map - expected).max() <= 5 * 4 / 2 + 1e-3
    assert np.abs(found.anomaly_map - expected)[2:-2, 2:-2].mean() < 1.0
    assert found.score == pytest.approx(found.anomaly_map.max())


def test_aligned_tiles_are_put_side_by_side_to_the_bit() -> None:
    picture = picture_of(128, 192, Tiling(side=64, overlap=0.0))
    random = np.random.default_rng(0).normal(size=(128, 192)).astype(np.float32)
    found = stitched(
        picture, lambda y, x: random[y.astype(int), x.astype(int)], Stitching(None, 0.0)
    )
    assert np.array_equal(found.anomaly_map, random[2::4, 2::4])


def test_neighbours_count_less_near_their_border() -> None:
    """Two tiles that say 0 and 1: between them it rises evenly; near their borders one counts."""
    picture = picture_of(64, 96, Tiling(side=64, overlap=0.5))
    stitching, found = Stitching(None, 0.0), None
    for number, tile in enumerate(picture.tiles):
        found = stitching.add(
            tile, Found(score=0.0, anomaly_map=np.full((16, 16), number, np.float32))
        )
    assert found is not None
    row = found.anomaly_map[5]
    assert np.array_equal(found.anomaly_map, np.tile(row, (16, 1)))
    assert (row[:8] == 0).all()
    assert (row[16:] == 1).all()
    assert np.allclose(row[8:16], [0, 0, 0.125, 0.375, 0.625, 0.875, 1, 1], atol=1e-5)


def test_the_score_is_that_of_the_worst_tile() -> None:
    """However large the picture: not of so many of all its places."""
    tiling = Tiling(side=64, overlap=0.0)
    for side in (64, 640):
        picture = picture_of(side, side, tiling)
        spot = stitched(
            picture, lambda y, x: 9.0 * ((y < 16) & (x < 16)), Stitching(None, 16 / 256)
        )
        assert spot.score == pytest.approx(9.0)
        half = stitched(picture, lambda y, x: 9.0 * ((y < 8) & (x < 16)), Stitching(None, 16 / 256))
        assert half.score == pytest.approx(4.5)


def test_a_score_that_is_not_that_of_the_map_is_the_highest() -> None:
    picture = picture_of(64, 128, Tiling(side=64, overlap=0.0))
    stitching, flat = Stitching(None, None), np.zeros((16, 16), np.float32)
    first, second = picture.tiles
    box = (0.25, 0.5, 0.5, 0.25)
    assert stitching.add(first, Found(score=1.0, anomaly_map=flat, votes=0.5)) is None
    found = stitching.add(
        second, Found(score=3.0, anomaly_map=flat, votes=0.25, saliency=flat + 1, box=box)
    )
    assert found is not None
    assert (found.score, found.votes) == (3.0, 0.5)
    assert found.box == pytest.approx((0.5 + 0.25 / 2, 0.5, 0.25, 0.25))


def test_only_the_area_counts() -> None:
    area = read_area([[[0, 0], [0.5, 0], [0.5, 1], [0, 1]]])
    picture = picture_of(64, 128, Tiling(side=64, overlap=0.5), area=area)
    assert len(picture.tiles) == 2  # of three
    found = stitched(picture, lambda y, x: x + 0 * y, Stitching(area, 0.0))
    assert found.score == pytest.approx(62, abs=2)
    assert (found.anomaly_map[:, 16:] == found.anomaly_map[:, :16].min()).all()


def test_a_picture_that_was_given_up_is_passed_over() -> None:
    tiling, flat = Tiling(side=64, overlap=0.0), Found(score=0.0, anomaly_map=np.zeros((16, 16)))
    one, two = picture_of(64, 192, tiling), picture_of(64, 128, tiling)
    stitching = Stitching(None, 0.0)
    assert stitching.add(one.tiles[0], flat) is None
    assert stitching.drop(one.tiles[1])
    assert not stitching.drop(one.tiles[2])
    assert stitching.add(one.tiles[2], flat) is None
    assert stitching.drop(two.tiles[0])
    assert stitching.add(two.tiles[1], flat) is None


# Detectors


class Bright(TorchEngine):
    """Scores a batch by how bright it is, place by place."""

    def run(self, images: Input, *, category: bool = False) -> Outputs:
        maps = torch.nn.functional.avg_pool2d(torch.from_numpy(images).mean(1), 4)
        return Outputs(score=maps.flatten(1).amax(1).numpy(), map=maps.numpy())


@pytest.fixture(scope="module")
def detector() -> Detector:
    return fitted()


@pytest.mark.parametrize("batch_size", [1, 3, 64])
def test_the_map_lies_where_the_picture_does(detector: Detector, batch_size: int) -> None:
    sources = [large(7, dot=(120, 33)), large(8, dot=(20, 180))]
    found = [*detector.predict_many(sources, engine=Bright(detector.method), batch_size=batch_size)]
    for one, (y, x) in zip(found, [(120, 33), (20, 180)], strict=True):
        assert isinstance(one, Prediction)
        assert one.size == (HEIGHT, WIDTH)
        assert one.anomaly_map.shape == (38, 50)
        top, left = np.unravel_index(one.anomaly_map.argmax(), one.anomaly_map.shape)
        assert abs((top + 0.5) * HEIGHT / 38 - y) <= 5
        assert abs((left + 0.5) * WIDTH / 50 - x) <= 5


def test_scores_do_not_depend_on_the_company(detector: Detector) -> None:
    sources = [large(seed) for seed in range(10, 13)]
    together = [*detector.predict_many(sources, batch_size=5)]
    for source, one in zip(sources, together, strict=True):
        alone = detector.predict(source)
        assert isinstance(one, Prediction)
        assert alone.score == pytest.approx(one.score, rel=1e-4)
        assert np.allclose(alone.anomaly_map, one.anomaly_map, atol=1e-4)


def test_one_tile_is_the_whole_picture() -> None:
    """A picture as large as a tile is scored as by a detector without tiles, to the bit."""
    good = [part(seed) for seed in range(6)]
    plain = blemish.fit("patchcore", good, **settings_of("patchcore"))
    cut = blemish.fit("patchcore", good, tile=64, **settings_of("patchcore"))
    one, two = plain.predict(part(9, defect=True)), cut.predict(part(9, defect=True))
    assert one.score == two.score
    assert np.array_equal(one.anomaly_map, two.anomaly_map)
    assert one.region_threshold == two.region_threshold
    assert one.threshold == two.threshold


def test_what_it_says_of_itself(detector: Detector, tmp_path: Path) -> None:
    data = detector.record.data
    assert (data.count, len(data.fitted), data.copies) == (6, 6, 0)
    assert len(detector.record.calibration_scores) == 6
    assert detector.preprocessing.tiling == Tiling(side=64)
    again = blemish.load(detector.save(tmp_path / "a.blemish"), device="cpu", precision="fp32")
    assert again.preprocessing == detector.preprocessing
    picture = large(20, dot=(70, 70))
    assert again.predict(picture).score == detector.predict(picture).score


def test_the_threshold_is_of_whole_pictures() -> None:
    """Each left out with all of its tiles, and copies count once."""
    good = [large(seed) for seed in range(5)]
    settings = {**settings_of("knn"), **TILE, "false_alarm_rate": 0.4}
    found = blemish.fit("knn", [*good, good[0]], **settings)
    assert len(found.record.calibration_scores) == 5
    assert (found.record.data.count, found.record.data.copies) == (6, 1)
    # What a picture scores is about what it would had it never been seen.
    others = blemish.fit("knn", good[1:], **settings)
    left_out, unseen = found.record.calibration_scores[0], others.predict(good[0]).score
    assert left_out == pytest.approx(unseen, rel=0.05)
    assert left_out > 2 * found.predict(good[0]).score


def test_held_out_pictures() -> None:
    good = [large(seed) for seed in range(10)]
    found = blemish.fit(
        "knn",
        good,
        calibration_fraction=0.5,
        **{**settings_of("knn"), **TILE},
        false_alarm_rate=0.2,
    )
    assert len(found.record.calibration_scores) == len(found.record.data.calibrated) == 5
    assert len(found.record.data.fitted) == 5
    scores = [one.score for one in found.predict_many(good) if isinstance(one, Prediction)]
    held = {found.predict(each).digest: found.predict(each).score for each in good}
    expected = sorted(held[digest] for digest in found.record.data.calibrated)
    assert sorted(found.record.calibration_scores) == pytest.approx(expected, rel=1e-4)
    assert len(scores) == 10


def plain(seed: int) -> np.ndarray:
    """A large grey sheet with grain."""
    grain = np.random.default_rng(seed).normal(120, 6, (600, 800, 1))
    return np.repeat(np.clip(grain, 0, 255).astype(np.uint8), 3, axis=2)


@pytest.mark.parametrize(("settings", "is_found"), [({"tile": 64}, True), ({}, False)])
def test_a_small_dot_in_a_large_picture(settings: dict[str, Any], is_found: bool) -> None:
    """12 pixels of another grain: lost when the picture is resized to what the backbone takes."""
    own = {**settings_of("patchcore"), "layers": (1,), "smoothing": 0.0, "false_alarm_rate": 0.2}
    detector = blemish.fit("patchcore", [plain(seed) for seed in range(6)], **own, **settings)
    bad = plain(30)
    bad[400:412, 650:662] = 60 + 120 * (np.indices((12, 12)).sum(0) // 2 % 2)[..., None]
    one, other = detector.predict(bad), detector.predict(plain(31))
    assert (one.label, other.label) == (int(is_found), 0)
    assert bool(one.regions) == is_found
    for region in one.regions or ():
        x, y, width, height = region.box
        assert x - 8 <= 656 <= x + width + 8
        assert y - 8 <= 406 <= y + height + 8
        assert width * height < 40 * 40


@pytest.mark.parametrize("method", [it for it in METHODS if it not in {"atacnet", "dra", "ahl"}])
def test_every_method(method: str) -> None:
    settings = settings_of(method)
    good = [large(seed) for seed in range(6)]
    found = blemish.fit(method, good, **settings, **TILE)
    one, two = found.predict_many([large(40, dot=(75, 100)), large(41)])
    for each in (one, two):
        assert isinstance(each, Prediction)
        assert np.isfinite(each.anomaly_map).all()
        assert each.anomaly_map.shape == (38, 50)
        if found.method.scores_by_map:
            assert each.score <= each.anomaly_map.max() + 1e-6
    assert found.record.data.count == 6


@pytest.fixture
def defects(tmp_path: Path, write: Write) -> Path:
    for number in range(3):
        name = f"{number:03d}"
        mask = np.zeros((HEIGHT, WIDTH), np.uint8)
        mask[66:74, 96:104] = 255
        write(tmp_path / "set/test/dot" / f"{name}.png", large(50 + number, dot=(70, 100)))
        write(tmp_path / "set/ground_truth/dot" / f"{name}_mask.png", mask)
        write(tmp_path / "set/test/good" / f"{name}.png", large(60 + number))
        write(tmp_path / "set/train/good" / f"{name}.png", large(number))
    return tmp_path / "set"


@pytest.mark.parametrize("method", ["lda", "atacnet", "dra", "ahl"])
def test_known_defects_are_learned_where_they_are(method: str, defects: Path) -> None:
    good = [large(seed) for seed in range(6)]
    found = blemish.fit(method, good, anomalies=defects, **settings_of(method), **TILE)
    assert len(found.record.data.defects) == 3
    one = found.predict(large(70, dot=(70, 100)))
    assert np.isfinite(one.score)
    if one.box is not None:
        x, y, width, height = one.box
        assert 0 <= x <= x + width <= 1 + 1e-6
        assert 0 <= y <= y + height <= 1 + 1e-6
    result = blemish.evaluate(found, defects)
    assert len(result.left_out) == 3
    assert result.counts["normal"] == 3


def test_defects_without_a_place_are_refused() -> None:
    good = [large(seed) for seed in range(6)]
    with pytest.raises(ConfigError, match=r"no mask and no box"):
        blemish.fit("lda", good, anomalies=[large(9)], **settings_of("lda"), **TILE)


def test_broken_and_small_ones_among_good_ones(detector: Detector, tmp_path: Path) -> None:
    broken = tmp_path / "broken.png"
    broken.write_bytes(b"nothing")
    sources: list[Any] = [large(1), broken, part(2, height=60, width=300), large(3), broken]
    found = [*detector.predict_many(sources, batch_size=7)]
    assert [type(one) for one in found] == [Prediction, Failure, Failure, Prediction, Failure]
    assert isinstance(found[2], Failure)
    assert "is 300 × 60 pixels, smaller than a tile of 64 × 64" in found[2].reason
    with pytest.raises(ImageError, match=r"smaller than a tile"):
        detector.predict(sources[2])


def test_small_ones_among_training_pictures() -> None:
    good: list[Any] = [large(seed) for seed in range(5)]
    small = part(9, height=60, width=300)
    found = blemish.fit("knn", [small, *good], **settings_of("knn"), **TILE)
    assert [each.path for each in found.record.data.failures] == ["array 0"]
    assert found.record.data.count == 5
    with pytest.raises(DataError, match=r"array 0: is 300 × 60 pixels, smaller than a tile"):
        blemish.fit("knn", [small], **settings_of("knn"), **TILE)


def test_memory_that_runs_out_fails_one_picture_once(
    detector: Detector,
) -> None:
    class Greedy(Bright):
        def run(self, images: Input, *, category: bool = False) -> Outputs:
            if (images.mean((1, 2, 3)) > 0.9).any():
                raise MemoryError
            return super().run(images, category=category)

    white = np.full((HEIGHT, WIDTH, 3), 255, np.uint8)
    sources, greedy = [large(1), white, large(2)], Greedy(detector.method)
    found = [*detector.predict_many(sources, engine=greedy, batch_size=5)]
    assert [type(one) for one in found] == [Prediction, Failure, Prediction]


def test_an_iterator_is_taken_only_as_far_as_needed(detector: Detector) -> None:
    taken: list[int] = []

    def camera() -> Iterator[np.ndarray]:
        for number in range(100):
            taken.append(number)
            yield large(number)

    coming = detector.predict_many(camera(), batch_size=1)
    next(coming)
    assert len(taken) <= 2
    coming.close()
    assert len(taken) <= 2


def test_narrowed_it_never_scores_higher(detector: Detector) -> None:
    sources = [large(seed, dot=(75, 30)) for seed in range(3)]
    right = [[[0.5, 0], [1, 0], [1, 1], [0.5, 1]]]
    narrow = detector.within(right)
    for one, two in zip(detector.predict_many(sources), narrow.predict_many(sources), strict=True):
        assert isinstance(one, Prediction)
        assert isinstance(two, Prediction)
        assert two.score < one.score
        assert (two.anomaly_map[:, :24] == two.anomaly_map[:, 26:].min()).all()


def test_outside_the_area_nothing_counts() -> None:
    """Whatever lies there, to the bit."""
    right = [[[0.5, 0], [1, 0], [1, 1], [0.5, 1]]]
    found = fitted(roi=right)
    assert found.method.area is None
    one, two = large(80), large(80)
    two[:, : WIDTH // 2 - 1] = np.random.default_rng(0).integers(
        0, 255, (HEIGHT, WIDTH // 2 - 1, 3), dtype=np.uint8
    )
    first, second = found.predict_many([one, two])
    assert isinstance(first, Prediction)
    assert isinstance(second, Prediction)
    assert first.score == second.score
    assert np.array_equal(first.anomaly_map, second.anomaly_map)


def test_categories_are_told_by_all_tiles(tmp_path: Path, write: Write) -> None:
    kinds = {"plain": large, "dark": lambda seed: 255 - large(seed)}
    samples = [
        Sample(path=write(tmp_path / f"{name}{seed}.png", draw(seed)), label=0, category=name)
        for name, draw in kinds.items()
        for seed in range(4)
    ]
    found = blemish.fit("knn", samples, **settings_of("knn"), **TILE)
    assert found.categories == ("dark", "plain")
    for name, draw in kinds.items():
        one = found.predict(draw(9))
        assert (one.category, one.category_assigned) == (name, True)


def test_it_calibrates_anew_on_whole_pictures(detector: Detector) -> None:
    again, failures, left_out = recalibrate(
        detector, [large(seed) for seed in (0, *range(100, 106))], false_alarm_rate=0.3
    )
    assert (len(failures), left_out) == (0, 1)
    assert len(again.record.calibration_scores) == 6


def test_it_cannot_be_refined() -> None:
    found = fitted("lda")
    with pytest.raises(ConfigError, match=r"a detector of tiles cannot be refined"):
        blemish.refine(found, good=[large(90)])


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"tile": 8}, "side"),
        ({"tile": 64, "overlap": 1.0}, "overlap"),
        ({"overlap": 0.5}, "overlap: is that of tiles"),
        ({"tile": "large"}, "a number of pixels or 'auto'"),
        ({"tile": 64, "image_size": (64, 32)}, "tiles are squares"),
        ({"tile": 64, "resize": "pad"}, "leave `resize` pad out"),
        ({"tile": 64, "foreground": "auto"}, "foreground: is told in whole pictures"),
    ],
)
def test_what_cannot_be_asked_for(settings: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        blemish.fit("knn", [large(0)], **{**settings_of("knn"), **settings})


def test_auto_says_what_it_chose() -> None:
    good = [large(seed) for seed in range(4)]
    found = blemish.fit("knn", good, tile="auto", **settings_of("knn"))
    assert found.preprocessing.tiling == Tiling(side=64)
    assert "200 pixels long, the backbone's input 64" in found.record.data.tiles
    whole = blemish.fit("knn", [part(seed) for seed in range(4)], tile="auto", **settings_of("knn"))
    assert whole.preprocessing.tiling is None
    assert "64 pixels long" in whole.record.data.tiles


def test_a_gallery_knows_each_picture_by_all_its_tiles(detector: Detector) -> None:
    found = _Embedding(detector)
    sources: list[Any] = [large(1), part(2, height=50), large(3)]  # the second is too small
    features = []
    for result in detector.predict_many(sources, engine=found, batch_size=5):
        features.append(found.taken(result))
    assert [each is None for each in features] == [False, True, False]
    tiles = tiled(large(3), detector.preprocessing, name="x").tiles
    tensors = [prepared(one.cut(), detector.preprocessing, window=one.window) for one in tiles]
    with torch.inference_mode():
        expected = detector.method.embedding(torch.stack(tensors)).mean(0).numpy()
    assert np.allclose(features[2], expected, atol=1e-4)


# The command line


def test_on_the_command_line(tmp_path: Path, run: Run, write: Write) -> None:
    for seed in range(5):
        write(tmp_path / "good" / f"{seed}.png", large(seed))
    write(tmp_path / "new/dot.png", large(9, dot=(75, 100)))
    write(tmp_path / "new/small.png", part(9))
    artifact, out = tmp_path / "a.blemish", tmp_path / "out"
    command = f"fit knn {tmp_path / 'good'} -o {artifact} {FIT} --false-alarm-rate 0.4"
    status, said, errors = run(f"{command} --tile 80 --overlap 0.5")
    assert status == 0, errors
    assert "Tiles: 80×80 pixels, which overlap by 50 % at least" in said
    status, said, _ = run(f"inspect {artifact}")
    assert "80×80 pixels, which overlap by 50 % at least" in said
    status, said, errors = run(f"predict {artifact} {tmp_path / 'new'} --output {out} --save masks")
    rows = rows_of(out)
    assert [bool(row.get("error")) for row in rows] == [False, True]
    assert "smaller than a tile" in rows[1]["error"]
    assert rows[0]["regions"] is not None
    status, said, errors = run(f"{command} --tile auto")
    assert "Tiles: 64×64 pixels" in said
    assert "200 pixels long" in said
    status, _, errors = run(f"{command} --tile wide")
    assert status == 2
    assert "--tile wide: a number of pixels, or auto, is needed" in errors

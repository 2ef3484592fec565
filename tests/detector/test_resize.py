"""Pictures that are no squares, in each way of bringing them into the input, by every method."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from parts import FIT, LEARNED, Run, Write, part, prepared, rows_of, settings_of

import blemish
from blemish import artifact
from blemish.data.dataset import Dataset
from blemish.data.geometry import CUT, RESIZES, Placement
from blemish.data.transforms import Preprocessing
from blemish.detector.predict import Detector
from blemish.errors import ArtifactError, ConfigError, DataError, ImageError
from blemish.images import decode
from blemish.methods import frames
from blemish.methods.apmask import APMaskConfig
from blemish.regions import region_level
from blemish.types import Failure, Prediction, Sample

METHODS = ["patchcore", "knn", "padim", "spade", "agpnet", "dinomaly", "vitad", "simplenet"]
METHODS += ["uniad", "efficientad", "atacnet", "dra", "ahl", "draem", "lda", "guided"]
KEPT = ["fit", "pad", "crop"]
SLOW = ("efficientad", "draem")  # some 15 s of training each; padding is what they may learn
FOUND = [(m, resize) for m in METHODS for resize in (["pad"] if m in SLOW else RESIZES)]
HEIGHT, WIDTH = 64, 128
# Upper left corners as shares of the picture, in the half that `crop` shows.
PLACES = [(0.5625, 0.625), (0.3, 0.1)]
ACROSS, DOWN = 0.1, 0.2
# Those of defects that are three places of the map wide; a place lies on four pixels of the input.
SPOTS = [*PLACES, (0.45, 0.4), (0.6, 0.2), (0.35, 0.55)]
# A patch of a ViT is four places wide, and is to be filled by some; AGPNet sees no smaller ones.
WIDE_BY = {"guided": 6, "dinomaly": 6, "vitad": 6, "agpnet": 6}
# Of random weights, these say what lies where; some methods need a ViT.
NEAR_SIGHTED: dict[str, Any] = {"layers": (1,), "image_size": 128, "smoothing": 0.0}
BY_PLACE: dict[str, Any] = {**NEAR_SIGHTED, "backbone": "test_resnet", "layers": (1, 2)}
RIGHT = [[[0.5, 0], [1, 0], [1, 1], [0.5, 1]]]
ASIDE = [[[0, 0], [0.1, 0], [0.1, 1], [0, 1]]]


def wide(
    seed: int,
    place: tuple[float, float] | None = None,
    *,
    height: int = HEIGHT,
    width: int = WIDTH,
) -> np.ndarray:
    """A part, with a bright rectangle at a place if asked for."""
    pixels = part(seed, height=height, width=width)
    if place is not None:
        x, y = place
        rows = slice(round(y * height), round((y + DOWN) * height))
        pixels[rows, round(x * width) : round((x + ACROSS) * width)] = 250
    return pixels


def fitted(method: str, resize: str, **more: Any) -> Detector:
    """One that a test may change."""
    settings = {**settings_of(method), "false_alarm_rate": 0.5, "resize": resize, **more}
    return blemish.fit(method, [wide(seed) for seed in range(8)], **settings)


@cache
def shared(method: str, resize: str) -> Detector:
    """One that looks at small places, the same for all tests."""
    special = {
        "guided": NEAR_SIGHTED,
        "dinomaly": {**NEAR_SIGHTED, "min_steps": 60},
        "vitad": {**NEAR_SIGHTED, "min_steps": 60},
        "uniad": {**NEAR_SIGHTED, "min_steps": 100, "learning_rate": 3e-3},
        "efficientad": {**BY_PLACE, "min_steps": 60, "teacher_steps": 60, "train_batch_size": 2},
        "atacnet": {**BY_PLACE, "min_steps": 20},
        "draem": {**BY_PLACE, **LEARNED["draem"]},
    }
    return fitted(method, resize, **special.get(method, BY_PLACE))


def highest(found: Prediction) -> tuple[float, float]:
    """x and y of the map's maximum, as shares of the picture."""
    row, column = np.unravel_index(found.anomaly_map.argmax(), found.anomaly_map.shape)
    height, width = found.anomaly_map.shape
    return float(column + 0.5) / width, float(row + 0.5) / height


@dataclass(frozen=True)
class Spot:
    """A picture with a bright rectangle `wide` places of a map across and down; its `left` and
    `top` pixel and its size `across` and `down` in pixels."""

    pixels: np.ndarray
    left: int
    top: int
    across: int
    down: int

    def apart(self, box: tuple[int, int, int, int]) -> tuple[int, int]:
        """Pixels between it and a box, in x and in y; below 0 where they overlap."""
        left, top, across, down = box
        x = max(left - self.left - self.across, self.left - left - across)
        return x, max(top - self.top - self.down, self.top - top - down)

    def aside(self, anomaly_map: np.ndarray) -> np.ndarray:
        """How far what stands out lies to its right and below it, in places of the map: the mean
        place above half the map's height, each weighted by how much it is above.

        The maximum says less: it may lie at any of its edges.
        """
        values = anomaly_map.astype(np.float64)
        above = np.clip(values - (np.median(values) + values.max()) / 2, 0, None)
        rows, columns = np.indices(values.shape) + 0.5
        middle = np.array([(above * columns).sum(), (above * rows).sum()]) / above.sum()
        height, width = values.shape
        x = (self.left + self.across / 2) * width / WIDTH
        y = (self.top + self.down / 2) * height / HEIGHT
        return np.asarray(middle - [x, y])


def spots(shape: tuple[int, int], wide_by: int) -> Iterator[Spot]:
    """Spots `wide_by` places of a map of that shape in size, at several of its places."""
    across, down = (round(wide_by * WIDTH / shape[1]), round(wide_by * HEIGHT / shape[0]))
    for x, y in SPOTS:
        left, top, pixels = round(x * WIDTH), round(y * HEIGHT), wide(20)
        pixels[top : top + down, left : left + across] = 250
        yield Spot(pixels, left, top, across, down)


@pytest.mark.parametrize(("method", "resize"), FOUND)
def test_a_defect_is_found_where_it_is(method: str, resize: str) -> None:
    """Over several defects, the middle of what stands out is that of the defect, to half of one of
    three places, as a random network may see one of its edges alone, or to half a patch."""
    detector = shared(method, resize)
    good = detector.predict(wide(20))
    shape, wide_by = good.anomaly_map.shape, WIDE_BY.get(method, 3)
    # DRAEM's deep networks, so briefly trained, answer broadly, on each processor elsewhere.
    most, beside = (6, 4) if method == "draem" else (min(wide_by / 2, 2), 1)
    assert resize == "stretch" or shape[1] == 2 * shape[0]
    aside = []
    for spot in spots(shape, wide_by):
        found = detector.predict(spot.pixels)
        assert found.score > good.score
        aside.append(spot.aside(found.anomaly_map))
        assert found.regions
        x, y = spot.apart(found.regions[0].box)  # at most a place of the map aside
        assert x <= beside * WIDTH / shape[1]
        assert y <= beside * HEIGHT / shape[0]
        # The patches of a ViT attend to each other, so that more of them stand out.
        assert found.regions[0].share < (0.2 if wide_by == 3 and beside == 1 else 0.5)
        assert found.mask is not None
        assert found.mask.shape == found.heatmap.shape == (HEIGHT, WIDTH)
        assert (CUT in found.notes) == (resize == "crop")
        if found.box is not None:
            assert found.saliency is not None
            assert found.saliency.shape == found.anomaly_map.shape
            assert found.box[0] >= (0.25 if resize == "crop" else 0)
    assert (np.abs(np.mean(aside, axis=0)) < most).all(), np.mean(aside, axis=0)


@pytest.mark.parametrize("resize", RESIZES)
def test_a_map_two_places_aside_would_be_seen(resize: str) -> None:
    detector = shared("knn", resize)
    shape = detector.predict(wide(20)).anomaly_map.shape
    # No spot lies so near to the sides that it would come in again on the other one.
    moved = [
        spot.aside(np.roll(detector.predict(spot.pixels).anomaly_map, 2, axis=1))
        for spot in spots(shape, 3)
    ]
    assert np.mean(moved, axis=0)[0] > 3 / 2


@pytest.mark.parametrize("method", ["patchcore", "guided"])
def test_pictures_of_other_shapes_join_a_batch(method: str) -> None:
    detector = shared(method, "pad")
    pictures = [wide(20, PLACES[0]), wide(21, height=128, width=64), wide(22, height=90, width=90)]
    together = list(detector.predict_many(pictures))
    for pixels, found in zip(pictures, together, strict=True):
        assert isinstance(found, Prediction)
        alone = detector.predict(pixels)
        assert found.score == pytest.approx(alone.score, rel=1e-4)
        np.testing.assert_allclose(found.anomaly_map, alone.anomaly_map, rtol=1e-3, atol=1e-4)
        ratio = found.anomaly_map.shape[0] / found.anomaly_map.shape[1]
        assert ratio == pytest.approx(pixels.shape[0] / pixels.shape[1], rel=0.05)


@pytest.mark.parametrize("method", ["patchcore", "knn"])
def test_padding_is_not_remembered(method: str) -> None:
    """A padded picture is to a bank what it is where there is no padding around it."""
    detector = fitted(method, "pad", backbone="test_resnet", layers=(1,), bank_size=5000)
    bank = detector.method.bank
    # Half of the input is padding; 8 pictures of 16 × 16 places.
    assert len(bank) <= 8 * 16 * 16 * 0.6
    stretched = fitted(method, "stretch", backbone="test_resnet", layers=(1,), bank_size=5000)
    assert method == "patchcore" or len(stretched.method.bank) == 8 * 16 * 16
    assert method == "patchcore" or len(bank) >= 8 * 16 * 16 * 0.5


@pytest.mark.parametrize("method", ["patchcore", "padim", "agpnet", "lda", "simplenet"])
def test_padding_never_raises_a_score(method: str) -> None:
    """Whatever the method says of the padding: neither score nor map heed it."""
    detector = fitted(method, "pad", **{**BY_PLACE, "smoothing": 0.05})
    inner: Any = detector.method.learner
    plain, pixels = inner.anomaly_map, wide(20, PLACES[0])
    before = detector.predict(pixels)

    def loud(*given: Any) -> torch.Tensor:
        values = plain(*given).clone()
        rows = values.shape[1]
        values[:, : rows // 4] = values[:, rows - rows // 4 :] = 1e3
        return values

    inner.anomaly_map = loud
    after = detector.predict(pixels)
    assert after.score == before.score
    assert (after.anomaly_map == before.anomaly_map).all()
    inner.framed = False  # which it would heed otherwise
    assert detector.predict(pixels).score > 10 * before.score


def test_atacnet_does_not_look_at_padding() -> None:
    detector = fitted("atacnet", "pad", **BY_PLACE, min_steps=4)
    method: Any = detector.method
    glance, looks = method.glance, []

    def loud(seen: Any) -> Any:
        features, values = glance(seen)
        looks.append(len(looks))
        values = values.clone()
        if len(looks) % 2:  # the first look; the crop lies elsewhere
            values[:, :8] = values[:, -8:] = 1e3
        return features, values

    pixels = wide(20, PLACES[0])
    before = detector.predict(pixels)
    method.glance = loud
    after = detector.predict(pixels)
    assert after.score == pytest.approx(before.score, rel=1e-5)
    np.testing.assert_allclose(after.anomaly_map, before.anomaly_map, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("method", ["patchcore", "padim", "guided", "atacnet", "lda"])
@pytest.mark.parametrize("resize", KEPT)
def test_areas_are_of_the_whole_picture(method: str, resize: str) -> None:
    detector = fitted(method, resize, roi=RIGHT)
    area = detector.area
    assert area is not None
    for shape in ({}, {"height": 100, "width": 90}):
        pixels = wide(20, PLACES[0], **shape)
        other, left = pixels.copy(), ~area.mask(*pixels.shape[:2])
        other[left] = np.random.default_rng(0).integers(0, 256, (left.sum(), 3), np.uint8)
        one, two = detector.predict(pixels), detector.predict(other)
        assert one.score == two.score
        assert (one.anomaly_map == two.anomaly_map).all()
        assert one.anomaly_map.max() > one.anomaly_map.min()
        # The border falls between two places.
        aside = one.anomaly_map.shape[1] * 3 // 8
        assert (one.anomaly_map[:, :aside] == one.anomaly_map.min()).all()
        assert one.mask is not None
        assert not one.mask[left].any()


@pytest.mark.parametrize("resize", KEPT)
def test_within_is_of_the_whole_picture(resize: str) -> None:
    detector = shared("knn", resize)
    narrow = detector.within(RIGHT)
    inside, outside = narrow.predict(wide(20, PLACES[0])), narrow.predict(wide(20, PLACES[1]))
    assert inside.score == pytest.approx(detector.predict(wide(20, PLACES[0])).score, rel=0.05)
    assert outside.score < 0.8 * detector.predict(wide(20, PLACES[1])).score
    assert highest(inside)[0] > 0.5
    aside = outside.anomaly_map.shape[1] * 3 // 8
    assert (outside.anomaly_map[:, :aside] == outside.anomaly_map.min()).all()


def test_an_area_that_is_cut_off_is_said(tmp_path: Path, write: Write) -> None:
    narrow = [wide(seed, height=64, width=64) for seed in range(6)]
    detector = blemish.fit("knn", narrow, roi=ASIDE, resize="crop", **settings_of("knn"))
    path = write(tmp_path / "wide.png", wide(20))
    said = r"wide\.png: nothing of the area .* lies in the part"
    with pytest.raises(ImageError, match=said):
        detector.predict(path)
    plain = blemish.fit("knn", narrow, resize="crop", **settings_of("knn"))
    assert plain.within(ASIDE).predict(narrow[0]).score > 0
    with pytest.raises(ImageError, match=said):
        plain.within(ASIDE).predict(path)
    results = list(detector.predict_many([narrow[0], path]))
    assert [isinstance(one, Failure) for one in results] == [False, True]


def test_fit_takes_the_shape_of_the_pictures() -> None:
    detector = shared("knn", "fit")
    seen = detector.preprocessing
    assert (seen.height, seen.width) == (96, 192)
    assert detector.method.config.image_size == (96, 192)
    assert seen.placement((HEIGHT, WIDTH)).is_whole
    assert seen.placement((50, 100)).is_whole
    tall = seen.placement((WIDTH, HEIGHT))
    assert not tall.is_whole
    assert not tall.is_cut


def test_fit_counts_the_pictures_that_can_be_read(tmp_path: Path, write: Write) -> None:
    paths = [write(tmp_path / f"{seed}.png", wide(seed)) for seed in range(5)]
    broken = tmp_path / "odd.png"
    broken.write_bytes(b"no picture")
    detector = blemish.fit("knn", [broken, *paths], resize="fit", **settings_of("knn"))
    assert detector.preprocessing.width == 2 * detector.preprocessing.height
    with pytest.raises(DataError, match=r"none of the good pictures can be read\n.*odd"):
        blemish.fit("knn", [broken], resize="fit", **settings_of("knn"))


@pytest.mark.parametrize("method", ["knn", "padim", "agpnet", "guided", "atacnet", "lda"])
@pytest.mark.parametrize("resize", KEPT)
def test_it_is_in_the_artifact(method: str, resize: str, tmp_path: Path) -> None:
    detector = shared(method, resize)
    again = blemish.load(detector.save(tmp_path / "part.blemish"), precision="fp32")
    assert again.preprocessing == detector.preprocessing
    assert again.manifest["preprocessing"]["resize"] == resize
    one, two = detector.predict(wide(20, PLACES[0])), again.predict(wide(20, PLACES[0]))
    assert one.score == two.score
    assert (one.anomaly_map == two.anomaly_map).all()


def test_artifacts_without_it_stretch(tmp_path: Path) -> None:
    path = fitted("knn", "stretch").save(tmp_path / "part.blemish")
    _, manifest = artifact.read(path)
    assert "resize" not in manifest["preprocessing"]  # as those of before there was a choice
    assert blemish.load(path).preprocessing.resize == "stretch"


@pytest.mark.parametrize("value", ["padd", 1, None, ["pad"]])
def test_hostile_artifacts(value: Any, tmp_path: Path) -> None:
    path = fitted("knn", "pad").save(tmp_path / "part.blemish")
    tensors, manifest = artifact.read(path)
    manifest = json.loads(json.dumps(manifest))
    manifest["preprocessing"]["resize"] = value
    artifact.write(path, tensors, manifest)
    with pytest.raises(ArtifactError, match=r"preprocessing\.resize"):
        blemish.load(path)


def test_what_cannot_be_is_refused() -> None:
    with pytest.raises(ConfigError, match="unknown resize 'sretch'; did you mean 'stretch'"):
        fitted("knn", "sretch")
    with pytest.raises(ConfigError, match="resize fit: `scales` are sides of squares"):
        fitted("guided", "fit", scales=(64,))
    with pytest.raises(ConfigError, match="resize fit: `pretraining` looks at squares"):
        fitted("guided", "fit", pretraining="apmask")
    squares = [f"{key}={value}" for key, value in (("scales", "[64]"),)]
    with pytest.raises(ConfigError, match="resize fit: `scales` are sides of squares"):
        fitted("lda", "fit", normality="guided", normality_settings=squares)


def test_scales_look_at_padded_squares() -> None:
    detector = fitted("guided", "pad", scales=(32, 64))
    found = detector.predict(wide(20, PLACES[0]))
    assert found.anomaly_map.shape == (8, 16)
    assert detector.with_scales([64]).predict(wide(20)).anomaly_map.shape == (8, 16)


@pytest.mark.parametrize("resize", KEPT)
def test_thresholds_are_of_what_predictions_show(resize: str) -> None:
    """Held out or left out: the levels of the regions are those of the maps that are given."""
    good = [wide(seed) for seed in range(8)]
    settings = {**settings_of("padim"), **BY_PLACE, "resize": resize}
    detector = blemish.fit("padim", good, calibration_fraction=0.5, smallest_region=0.1, **settings)
    regions = detector.record.regions
    assert regions is not None
    held = set(detector.record.data.calibrated)
    found = [one for one in map(detector.predict, good) if one.digest in held]
    # A tenth of the picture is another number of places than a tenth of the input.
    levels = [region_level(one.anomaly_map, 0.1) for one in found]
    assert sorted(regions.levels) == pytest.approx(sorted(levels))
    assert sorted(detector.record.calibration_scores) == pytest.approx(
        sorted(one.score for one in found)
    )


@pytest.mark.parametrize("resize", KEPT)
def test_marks_of_defects_go_where_their_pictures_go(
    resize: str, tmp_path: Path, write: Write
) -> None:
    from blemish.data.stream import PictureStream

    pixels, mask = wide(0), np.zeros((HEIGHT, WIDTH), np.uint8)
    mask[16:32, 64:96] = 255
    pixels[mask > 0] = 255
    sample = Sample(
        path=write(tmp_path / "a.png", pixels), mask=write(tmp_path / "mask.png", mask), label=1
    )
    seen = Preprocessing(height=96, width=80, mean=(0.5,) * 3, std=(0.1,) * 3, resize=resize)
    (batch,) = PictureStream([sample.path], seen, 1, marks=[sample])
    bright = (batch.images[0].mean(0) > 4.5).float()[None]
    assert batch.masks is not None
    assert bright.sum() > 50
    share = torch.nn.functional.adaptive_avg_pool2d(bright, (24, 20))[0]
    assert (share - batch.masks[0]).abs().mean() < 0.02
    assert batch.sizes == ((HEIGHT, WIDTH),)


@pytest.mark.parametrize("resize", KEPT)
@pytest.mark.parametrize("kind", ["uint8", "float"])
def test_tensors_say_what_is_looked_at(resize: str, kind: str) -> None:
    mean = (0.5, 0.25, 0.0)
    seen = Preprocessing(height=64, width=64, mean=mean, std=(0.1,) * 3, resize=resize)
    grey = np.broadcast_to(np.array(mean, np.float32), (32, 64, 3))  # as the padding is
    pixels = grey if kind == "float" else np.rint(grey * 255).astype(np.uint8)
    picture = decode(np.ascontiguousarray(pixels))
    placement = seen.placement(picture.size)
    for angle, flip in ((0.0, False), (90.0, True), (20.0, False)):
        image = prepared(picture, seen, angle=angle, flip=flip)
        looked_at = frames.places(image[None], (64, 64))[0]
        wanted = torch.zeros(64, 64, dtype=torch.bool)
        wanted[placement.filled] = True
        assert torch.equal(looked_at, wanted)
        assert image.abs().max() < 0.05


def test_turned_copies_stay_in_their_place() -> None:
    seen = Preprocessing(height=64, width=64, mean=(0.5,) * 3, std=(0.1,) * 3, resize="pad")
    plain = prepared(decode(wide(0)), seen)
    mirrored = prepared(decode(wide(0)), seen, flip=True)
    turned = prepared(decode(wide(0)), seen, angle=180, flip=False)
    assert torch.equal(mirrored, plain.flip(2))
    torch.testing.assert_close(turned, plain.flip(1, 2), atol=0.2, rtol=0)


def test_evaluation_meets_the_masks(tmp_path: Path, write: Write) -> None:
    samples = []
    for seed in range(4):
        mask = np.zeros((HEIGHT, WIDTH), np.uint8)
        mask[40:52, 72:84] = 255
        bad = write(tmp_path / f"bad{seed}.png", wide(30 + seed, PLACES[0]))
        masked = write(tmp_path / f"mask{seed}.png", mask)
        samples.append(Sample(path=bad, mask=masked, label=1, defect="spot"))
        good = write(tmp_path / f"good{seed}.png", wide(40 + seed))
        samples.append(Sample(path=good, label=0, defect="good"))
    data = Dataset(root=tmp_path, layout="folders", description="", samples=tuple(samples))
    for resize in RESIZES:
        result = blemish.evaluate(shared("padim", resize), data)
        assert result.image_auroc == 1
        assert result.pixel_auroc is not None
        assert result.pixel_auroc > 0.95


def test_pretraining_goes_the_same_way(monkeypatch: pytest.MonkeyPatch) -> None:
    brief = APMaskConfig(
        hidden=16, bottleneck=8, prototypes=4, local_views=1, train_batch_size=4, min_steps=3
    )
    monkeypatch.setattr(APMaskConfig, "recipes", lambda: {"best": lambda: brief})
    detector = fitted("guided", "pad", pretraining="apmask", pretraining_epochs=1)
    assert detector.record.pretraining is not None
    assert detector.record.pretraining.preprocessing.resize == "pad"
    assert np.isfinite(detector.predict(wide(20)).score)


def test_refining_goes_the_same_way() -> None:
    detector = shared("lda", "pad")
    refined = blemish.refine(detector, good=[wide(50)], anomalies=[wide(51, PLACES[0])]).detector
    assert refined.preprocessing == detector.preprocessing
    found = refined.predict(wide(20, PLACES[0]))
    assert found.score > refined.predict(wide(20)).score
    assert abs(highest(found)[0] - PLACES[0][0] - ACROSS / 2) < 0.15


def test_the_command_line(tmp_path: Path, write: Write, run: Run) -> None:
    for seed in range(5):
        write(tmp_path / "good" / f"{seed}.png", wide(seed))
    write(tmp_path / "new" / "bad.png", wide(20, PLACES[0]))
    made, out = tmp_path / "part.blemish", tmp_path / "out"
    line = f"fit knn {tmp_path / 'good'} -o {made} {FIT} --resize"
    status, text, _ = run(f"{line} crop")
    assert status == 0
    assert "Input: 64×64 (height×width), pictures are cropped, their aspect ratio kept" in text
    assert f"note on 5 of them: {CUT}" in text
    status, text, _ = run(f"inspect {made}")
    assert status == 0
    assert "pictures are cropped, their aspect ratio kept" in text
    status, text, told = run(f"predict {made} {tmp_path / 'new'} --output {out} --precision fp32")
    assert status in (0, 1), told
    assert f"note on 1 of them: {CUT}" in text
    assert CUT in rows_of(out)[0]["notes"]
    status, _, told = run(f"{line} croped")
    assert status != 0
    assert "unknown resize 'croped'; did you mean 'crop'?" in told
    assert "Traceback" not in told


def test_a_placement_is_that_of_the_picture_s_own_size() -> None:
    seen = Preprocessing(height=64, width=64, mean=(0.5,) * 3, std=(0.1,) * 3)
    assert seen.placement((10, 20)).is_whole
    assert replace(seen, resize="pad").placement((10, 20)) == Placement.of(
        (10, 20), (64, 64), "pad"
    )

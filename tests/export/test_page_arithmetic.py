"""What the page computes in JavaScript is what blemish computes in Python."""

from __future__ import annotations

import io
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import cv2
import numpy as np
import pytest
from pages import array, fitted, in_page
from parts import part
from PIL import Image, PngImagePlugin
from playwright.sync_api import Page

from blemish.area import SIDE, Area
from blemish.data.geometry import RESIZES, Placement
from blemish.data.transforms import Preprocessing, prepare
from blemish.detector.scoring import masked
from blemish.detector.thresholds import verdict
from blemish.engines.base import Outputs
from blemish.images import decode
from blemish.methods.foreground import Foreground, filled
from blemish.regions import find_regions

# Pictures and what they become: shrinking, growing, either, whole factors, near ones, the least.
SIZES = (
    ((224, 224), (112, 112)), ((300, 400), (224, 224)), ((100, 50), (224, 224)),
    ((30, 200), (64, 64)), ((96, 60), (32, 20)), ((60, 40), (20, 40)), ((225, 224), (224, 224)),
    ((10, 7), (3, 7)), ((33, 57), (224, 230)), ((1, 1), (5, 5)), ((2, 3), (8, 2)),
    ((37, 37), (74, 74)), ((300, 331), (56, 42)), ((3, 9), (1, 4)), ((120, 120), (40, 30)),
    ((5, 224), (10, 100)), ((64, 64), (64, 64)),
)  # fmt: skip
SHAPES = ((64, 64), (90, 70), (50, 200), (33, 64), (200, 40), (7, 5))


def corner() -> Area:
    """Not all of a picture, and not even: most of it but its upper right."""
    rows, columns = np.mgrid[:SIDE, :SIDE]
    return Area.of(rows * 2 > columns - 300)


def described(preprocessing: Preprocessing) -> dict[str, Any]:
    names = ("height", "width", "resize", "mean", "std")
    return {name: getattr(preprocessing, name) for name in names}


def test_pictures_are_resized_to_the_bit(opened: Page) -> None:
    rng = np.random.default_rng(0)
    sizes = [*SIZES, *(tuple(map(tuple, rng.integers(1, 200, (2, 2)).tolist())) for _ in range(40))]
    pictures = [rng.integers(0, 256, (*size, 3), dtype=np.uint8) for size, _ in sizes]
    found = in_page(
        opened,
        "resize.js",
        "return values.sizes.map(([from, to], at) =>"
        " plain(it.resize(values.pictures[at], ...from, ...to)));",
        sizes=[[list(own), list(to)] for own, to in sizes],
        pictures=pictures,
    )
    for (own, to), picture, one in zip(sizes, pictures, found, strict=True):
        shrinks = own[0] >= to[0] and own[1] >= to[1]
        how = cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR
        wanted = picture if own == to else cv2.resize(picture, to[::-1], interpolation=how)
        np.testing.assert_array_equal(array(one, np.uint8, wanted.shape), wanted, f"{own} {to}")


@pytest.mark.parametrize("resize", RESIZES)
@pytest.mark.parametrize("area", [None, corner()], ids=["all", "area"])
def test_pictures_are_prepared_alike(opened: Page, resize: Any, area: Area | None) -> None:
    preprocessing = replace(
        fitted().preprocessing,
        resize=resize,
        area=area,
        height=48,
        width=64,
        std=(0.2, 0.3, 0.25),
        mean=(0.2, 0.4, 0.6),
    )
    pictures = [part(at, height=h, width=w) for at, (h, w) in enumerate(SHAPES)]
    pictures[0][:20] = 0
    pictures[1][:40] = np.rint(np.array(preprocessing.mean) * 255)  # is 0 once it is normalised
    found = in_page(
        opened,
        "prepare.js",
        """const { Area } = await import("./area.js");
        const area = values.runs && new Area(values.runs);
        return values.sizes.map(([height, width], at) => {
          const picture = { height, width, pixels: values.pictures[at] };
          return plain(it.prepare(picture, values.preprocessing, area, false).values);
        });""",
        runs=None if area is None else list(area.runs),
        sizes=[list(one.shape[:2]) for one in pictures],
        pictures=pictures,
        preprocessing=described(preprocessing),
    )
    for picture, one in zip(pictures, found, strict=True):
        wanted = prepare(decode(picture), preprocessing)
        np.testing.assert_array_equal(array(one, np.float32, wanted.shape), wanted)


def test_a_tiny_area_still_marks_a_pixel(opened: Page) -> None:
    grid = np.zeros((SIDE, SIDE), np.bool_)
    grid[501, 733] = True
    area = Area.of(grid)
    body = """const { Area } = await import("./area.js");
      const placement = new it.Placement(90, 200, values.preprocessing);
      return plain(placement.inside(new Area(values.runs)));"""
    preprocessing = replace(fitted().preprocessing, resize="pad")
    found = in_page(
        opened, "geometry.js", body, runs=list(area.runs), preprocessing=described(preprocessing)
    )
    wanted = preprocessing.placement((90, 200)).inside(area)
    assert wanted.sum() == 1
    np.testing.assert_array_equal(array(found, np.uint8, wanted.shape), wanted)


def test_pixels_are_handed_over_as_they_are_resized(opened: Page) -> None:
    picture = part(1, height=100, width=80)
    found = in_page(
        opened,
        "prepare.js",
        """const picture = { height: 100, width: 80, pixels: values.picture };
        const { values: made, shape } = it.prepare(picture, values.preprocessing, null, true);
        return [plain(made), shape];""",
        picture=picture,
        preprocessing=described(fitted().preprocessing),
    )
    assert found[1] == [1, 64, 64, 3]
    wanted = cv2.resize(picture, (64, 64), interpolation=cv2.INTER_AREA)
    np.testing.assert_array_equal(array(found[0], np.uint8, wanted.shape), wanted)


@pytest.mark.parametrize("resize", RESIZES)
def test_maps_and_crops_come_back_to_the_picture(opened: Page, resize: Any) -> None:
    values = np.random.default_rng(1).normal(size=(12, 16)).astype(np.float32)
    box = (0.2, 0.3, 0.4, 0.6)
    found = in_page(
        opened,
        "geometry.js",
        """return values.sizes.map(([height, width]) => {
          const placement = new it.Placement(height, width, values.preprocessing);
          const map = placement.toPicture({ height: 12, width: 16, values: values.map });
          const box = placement.boxToPicture(values.box);
          return { height: map.height, width: map.width, map: plain(map.values), box };
        });""",
        sizes=[list(one) for one in SHAPES],
        map=values,
        box=list(box),
        preprocessing=described(fitted().preprocessing) | {"resize": resize},
    )
    for size, one in zip(SHAPES, found, strict=True):
        placement = Placement.of(size, (64, 64), resize)
        got = array(one["map"], np.float32, (one["height"], one["width"]))
        wanted = placement.to_picture(values)
        assert got.shape == wanted.shape
        np.testing.assert_allclose(got, wanted, atol=1e-6)  # the order of two interpolations
        np.testing.assert_allclose(one["box"], placement.box_to_picture(box), atol=1e-12)


@pytest.mark.parametrize("area", [None, corner()], ids=["all", "area"])
def test_regions_are_found_alike(opened: Page, area: Area | None) -> None:
    rng = np.random.default_rng(2)
    maps = [cv2.GaussianBlur(rng.normal(size=(24, 20)), (0, 0), 1.2).astype(np.float32) * 3
            for _ in SHAPES]  # fmt: skip
    settings = {"background": -0.5, "smallest": 0.01}
    found = in_page(
        opened,
        "regions.js",
        """const { Area } = await import("./area.js");
        const area = values.runs && new Area(values.runs);
        return values.sizes.map(([height, width], at) => it.findRegions(
          { height: 24, width: 20, values: values.maps[at] }, 0.7, { height, width },
          { ...values.settings, area },
        ).map((one) => ({ ...one, mask: plain(one.mask) })));""",
        runs=None if area is None else list(area.runs),
        sizes=[list(one) for one in SHAPES],
        maps=maps,
        settings=settings,
    )
    for size, values, regions in zip(SHAPES, maps, found, strict=True):
        wanted = find_regions(values, 0.7, size, area=area, **settings)
        assert wanted
        assert [one["box"] for one in regions] == [list(one.box) for one in wanted]
        assert [one["area"] for one in regions] == [one.area for one in wanted]
        for one, region in zip(regions, wanted, strict=True):
            x, y, width, height = region.box
            mask = array(one["mask"], np.uint8, (height, width))
            np.testing.assert_array_equal(mask, region.mask[y : y + height, x : x + width])
            assert one["peak"] == pytest.approx(region.peak, abs=1e-6)


def test_a_score_at_the_threshold_is_good(opened: Page) -> None:
    found = in_page(
        opened,
        "verdict.js",
        "return [1.5, 1.6].map((score) => it.verdict(score, { value: 1.5 }))"
        ".concat(it.verdict(2, null), it.verdict(2, { value: null }));",
    )
    assert found == [verdict(1.5, 1.5), verdict(1.6, 1.5), None, None] == [0, 1, None, None]


def masks(rng: np.random.Generator) -> list[np.ndarray]:
    """Specks, blots and triangles, of several sizes."""
    made = []
    for each in range(90):
        height, width = rng.integers(6, 40, 2)
        mask = rng.random((height, width)) < 0.2
        if each % 3 == 1:
            mask = cv2.GaussianBlur(rng.normal(size=(height, width)), (0, 0), 1.5) > 0.1
        elif each % 3 == 2:
            corners = np.stack([rng.integers(0, width, 3), rng.integers(0, height, 3)], axis=1)
            drawn = np.zeros((height, width), np.uint8)
            mask = cv2.fillPoly(drawn, [corners.astype(np.int32)], 1) > 0
        made.append(mask.astype(np.uint8))
    return made


def test_the_part_is_filled_alike(opened: Page) -> None:
    given = masks(np.random.default_rng(4))
    found = in_page(
        opened,
        "foreground.js",
        "return values.masks.map((mask, at) => plain(it.filled(mask, ...values.sizes[at])));",
        masks=given,
        sizes=[list(one.shape) for one in given],
    )
    for mask, one in zip(given, found, strict=True):
        np.testing.assert_array_equal(array(one, np.uint8, mask.shape), filled(mask > 0))


@pytest.mark.parametrize("area", [None, corner()], ids=["all", "area"])
@pytest.mark.parametrize("offset", [0.0, 0.25])  # without any, places lie half in the part
def test_the_part_counts_alike(opened: Page, area: Area | None, offset: float) -> None:
    rng = np.random.default_rng(5)
    blots = [cv2.GaussianBlur(rng.normal(size=(10, 12)), (0, 0), 2) * 4 for _ in range(8)]
    parts = np.stack([np.zeros((10, 12)), *blots]).astype(np.float32)  # of the first, nothing
    maps = rng.normal(size=(len(parts), 35, 42)).astype(np.float32)
    foreground = Foreground(direction=(1.0,), cut=0.3, share=0.5, least=0.4, most=0.7)
    settings = {"cut": 0.3, "least": 0.4, "most": 0.7}
    engine: Any = SimpleNamespace(top_fraction=0.01, offset=offset)
    scores = maps.max((1, 2)) + 1
    scores[3] = -9.0  # a score is never raised
    wanted = masked(Outputs(score=scores, map=maps, part=parts), foreground, area, engine)
    found = in_page(
        opened,
        "foreground.js",
        """const { Area } = await import("./area.js");
        const area = values.runs && new Area(values.runs);
        const detector = { foreground: values.settings, top_fraction: 0.01, offset: values.offset };
        return values.maps.map((map, at) => {
          const part = { height: 10, width: 12, values: values.parts[at] };
          const whole = { height: 35, width: 42, values: map };
          const made = it.masked(values.scores[at], whole, part, detector, area);
          return [made.score, plain(made.map.values), made.counted && plain(made.counted)];
        });""",
        runs=None if area is None else list(area.runs),
        settings=settings,
        offset=offset,
        maps=list(maps),
        parts=list(parts),
        scores=scores.tolist(),
    )
    assert wanted.foreground is not None
    told = 0
    for at, (score, values, counted) in enumerate(found):
        assert score == pytest.approx(float(wanted.score[at]), abs=1e-6)
        np.testing.assert_array_equal(array(values, np.float32, (35, 42)), wanted.map[at])
        inside = wanted.foreground[at]
        told += counted is not None
        assert (counted is None) == inside.all()
        if counted is not None:
            np.testing.assert_array_equal(array(counted, np.uint8, (35, 42)), inside)
    assert 0 < told < len(parts)


def saved(picture: Image.Image, kind: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, kind, **options)
    return buffer.getvalue()


def files() -> dict[str, bytes]:
    """Pictures of every kind that the page takes, in which nothing is lost."""
    rng = np.random.default_rng(3)
    pixels = rng.integers(0, 256, (30, 50, 3), dtype=np.uint8)
    picture = Image.fromarray(pixels)
    alpha = Image.fromarray(np.dstack([pixels, rng.integers(0, 256, (30, 50), dtype=np.uint8)]))
    turned = Image.Exif()
    turned[0x112] = 6
    linear = PngImagePlugin.PngInfo()
    linear.add(b"gAMA", (100_000).to_bytes(4, "big"))
    return {
        "rgb.png": saved(picture, "PNG"),
        "grey.png": saved(picture.convert("L"), "PNG"),
        "palette.png": saved(picture.convert("P"), "PNG"),
        "gamma.png": saved(picture, "PNG", pnginfo=linear),
        "alpha.png": saved(alpha, "PNG"),
        "turned.jpg": saved(picture, "JPEG", quality=95, subsampling=0, exif=turned),
        "halved.jpg": saved(picture, "JPEG", quality=85, progressive=True),
        "lossless.webp": saved(picture, "WEBP", lossless=True),
        "rgb.bmp": saved(picture, "BMP"),
    }


@pytest.mark.parametrize("name", files())
def test_files_are_read_alike(opened: Page, name: str) -> None:
    content = files()[name]
    found = in_page(
        opened,
        "decode.js",
        """const read = await it.decode(new Blob([values.content]));
        return [read.height, read.width, plain(read.pixels), read.notes];""",
        content=np.frombuffer(content, np.uint8),
    )
    wanted = decode(content)
    assert tuple(found[:2]) == wanted.size
    assert tuple(found[3]) == wanted.notes
    # Browsers keep colours times alpha, in bytes, and decode JPEG by a library of their own.
    most = 1 if name.endswith(("jpg", "alpha.png")) else 0
    away = array(found[2], np.uint8, wanted.pixels.shape).astype(int) - wanted.pixels
    assert abs(away).max() <= most


def test_16_bits_are_told(opened: Page) -> None:
    values = np.arange(1200, dtype=np.uint16).reshape(30, 40) * 50
    _, content = cv2.imencode(".png", values)
    found = in_page(
        opened,
        "decode.js",
        "const read = await it.decode(new Blob([values.content]));"
        "return [plain(read.pixels), read.notes];",
        content=content,
    )
    assert found[1] == [
        "16 bits a channel, of which the browser reads 8: the score may differ a little from that "
        "of blemish predict"
    ]
    away = array(found[0], np.uint8, (30, 40, 3))[..., 0] - values / 257
    assert abs(away).max() <= 1

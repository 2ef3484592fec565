"""What every simulator keeps to, and batches of them."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from blemish.anomalies import SIMULATORS, Simulator, Synthetic, simulate_batch, simulator
from blemish.anomalies.base import VISIBLE
from blemish.anomalies.blending import FPI, NSA, PII
from blemish.anomalies.cutpaste import CutPaste, CutPasteScar
from blemish.anomalies.guided import GuidedCutPaste
from blemish.errors import ConfigError

HARD = ["guided", "guided-fine", "cutpaste", "cutpaste-scar", "cutpaste-3way", "fpi"]
every = pytest.mark.parametrize("name", SIMULATORS)


def picture(seed: int, height: int = 40, width: int = 33, channels: int = 3) -> np.ndarray:
    return np.random.default_rng(seed).random((height, width, channels), dtype=np.float32)


def made(name: str, image: np.ndarray, seed: int = 0) -> Synthetic:
    other = np.ascontiguousarray(image[::-1, ::-1]) * np.float32(0.7)
    attention = np.random.default_rng(seed).random((5, 4))
    return simulator(name)(image, np.random.default_rng(seed), other=other, attention=attention)


def same(a: Synthetic, b: Synthetic) -> bool:
    arrays = zip((a.image, a.mask, a.label), (b.image, b.mask, b.label), strict=True)
    return a.kind == b.kind and all(np.array_equal(x, y) for x, y in arrays)


@every
@settings(max_examples=8, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    height=st.integers(8, 50),
    width=st.integers(8, 50),
    channels=st.sampled_from([1, 2, 3, 4, 5, 9]),
)
def test_contract(name: str, seed: int, height: int, width: int, channels: int) -> None:
    image = picture(seed, height, width, channels)
    before = image.copy()
    result = made(name, image, seed)
    assert np.array_equal(image, before)
    assert (result.image.shape, result.image.dtype) == (image.shape, np.float32)
    assert (result.mask.shape, result.mask.dtype) == ((height, width), np.bool_)
    assert (result.label.shape, result.label.dtype) == ((height, width), np.float32)
    assert 0 <= result.image.min() <= result.image.max() <= 1
    assert (np.abs(result.image - image).max(2) > VISIBLE)[result.mask].any()
    assert (result.label[~result.mask] == 0).all()
    assert (result.label[result.mask] > 0).all()
    assert result.label.max() <= 1
    assert 1 <= result.kind <= simulator(name).kinds
    if name in HARD:
        assert np.array_equal(result.image[~result.mask], image[~result.mask])


@every
def test_the_generator_is_all_that_is_random(name: str) -> None:
    image = picture(3)
    assert same(made(name, image, 5), made(name, image, 5))
    assert not same(made(name, image, 5), made(name, image, 6))


@every
@pytest.mark.parametrize("value", [0.0, 0.5, 1.0])
def test_a_constant_picture_changes_too(name: str, value: float) -> None:
    image, even = np.full((24, 30, 3), value, dtype=np.float32), np.ones((3, 3))
    result = simulator(name)(image, np.random.default_rng(1), other=image, attention=even)
    change = np.abs(result.image - image).max(2)
    assert change[result.mask].max() > VISIBLE
    assert change[~result.mask].max() == 0
    assert 0 <= result.image.min() <= result.image.max() <= 1


def test_the_brightness_of_a_constant_picture_changes_where_attention_looks() -> None:
    image = np.zeros((40, 40, 1), dtype=np.float32)
    attention = np.zeros((40, 40))
    attention[30, 8] = 1
    for seed in range(20):
        result = simulator("guided")(image, np.random.default_rng(seed), attention=attention)
        assert result.mask[30, 8]
        assert 4 * 4 <= result.mask.sum() <= 16 * 16
        changed = result.image[result.mask]
        assert (changed == changed[0]).all()
        assert 0.2 <= changed[0] <= 0.5


def test_values_out_of_range_are_clipped() -> None:
    image = 3 * picture(4) - 1
    result = made("cutpaste", image)
    assert np.array_equal(result.image[~result.mask], np.clip(image, 0, 1)[~result.mask])


def test_float64_and_mirrored_pictures_are_fine() -> None:
    image = picture(5)
    assert same(made("guided", image.astype(np.float64)), made("guided", image))
    assert same(made("nsa", image[:, ::-1]), made("nsa", np.ascontiguousarray(image[:, ::-1])))


def test_names_are_the_keys_and_an_unknown_one_suggests_the_nearest() -> None:
    assert all(name == kind.name for name, kind in SIMULATORS.items())
    with pytest.raises(ConfigError, match="did you mean 'guided'"):
        simulator("giuded")


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (np.zeros((9, 9), np.float32), "H W C"),
        (np.zeros((7, 9, 3), np.float32), "from 8 up"),
        (np.zeros((9, 9, 0), np.float32), "H W C"),
        (np.zeros((9, 9, 3), np.uint8), "uint8 given"),
    ],
)
def test_pictures_that_cannot_be_used(image: np.ndarray, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        simulator("cutpaste")(image, np.random.default_rng(0))


@pytest.mark.parametrize("name", ["fpi", "pii", "nsa"])
def test_a_second_picture_is_needed_of_the_same_shape(name: str) -> None:
    with pytest.raises(ConfigError, match="pass other="):
        simulator(name)(picture(0), np.random.default_rng(0))
    with pytest.raises(ConfigError, match="other: shape"):
        simulator(name)(picture(0), np.random.default_rng(0), other=picture(0, 41))


@pytest.mark.parametrize(
    ("attention", "message"),
    [
        (None, "pass attention="),
        (np.ones(4), "shape"),
        (np.ones((0, 4)), "shape"),
        (np.zeros((2, 2)), "not all zero"),
        (np.array([[1.0, -1e-3]]), "none negative"),
        (np.array([[1.0, np.nan]]), "finite"),
        (np.array([[1.0, np.inf]]), "finite"),
    ],
)
def test_attention_that_cannot_guide(attention: np.ndarray | None, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        simulator("guided")(picture(0), np.random.default_rng(0), attention=attention)


@pytest.mark.parametrize(
    ("kind", "settings"),
    [
        (FPI, {"sides": (0.5, 0.1)}),
        (PII, {"factor": (0.1, 1.2)}),
        (NSA, {"bounds": (0.0, 0.8)}),
        (NSA, {"gamma": (0.0, 0.1, 0.06)}),
        (NSA, {"resize": (0.0, 1.3)}),
        (NSA, {"patches": 0}),
        (NSA, {"logistic": (0.0, 7.0)}),
        (CutPaste, {"area": (0.2, 0.1)}),
        (CutPaste, {"aspect": (1.2, 3.0)}),
        (CutPaste, {"aspect": (0.5, 0.8)}),
        (CutPaste, {"jitter": 0.7}),
        (CutPasteScar, {"width": (0.0, 3.0)}),
        (CutPasteScar, {"length": (10.0, 300.0)}),
        (CutPasteScar, {"angle": 181.0}),
        (CutPasteScar, {"jitter": -0.1}),
        (GuidedCutPaste, {"sides": (0.1, 1.1)}),
        (GuidedCutPaste, {"angle": -1.0}),
        (GuidedCutPaste, {"resize": (0.0, 1.0)}),
        (GuidedCutPaste, {"jitter": (0.1, 0.6)}),
        (GuidedCutPaste, {"jitter": (1.5, 0.1)}),
        (GuidedCutPaste, {"patches": (0, 3)}),
        (GuidedCutPaste, {"blend": "soft"}),
    ],
)
def test_settings_out_of_range(kind: Any, settings: dict[str, object]) -> None:
    with pytest.raises(ConfigError, match=next(iter(settings))):
        kind(**settings)


@every
def test_in_an_area_only(name: str) -> None:
    area = np.zeros((40, 33), dtype=bool)
    area[4:20, 10:25] = True
    one = np.zeros_like(area)
    one[39, 0] = True
    marked = np.zeros(area.shape)
    for seed in range(40):
        image = picture(seed)
        how: dict[str, Any] = {"other": image[::-1], "attention": np.ones((5, 4))}
        for inside in (area, one):
            result = simulator(name)(image, np.random.default_rng(seed), area=inside, **how)
            assert np.array_equal(result.image[~inside], image[~inside])
            assert not result.mask[~inside].any()
            assert not result.label[~inside].any()
            assert (np.abs(result.image - image).max(2) > VISIBLE)[result.mask].any()
            assert (result.image.dtype, result.label.dtype) == (np.float32, np.float32)
            marked += result.mask
    assert (marked[area] > 0).mean() > 0.7
    if not simulator(name).needs_attention:
        every_place = np.ones_like(area)
        result = simulator(name)(image, np.random.default_rng(9), area=every_place, **how)
        assert same(result, simulator(name)(image, np.random.default_rng(9), **how))


def test_attention_and_the_area_go_together() -> None:
    attention, area = np.zeros((40, 33)), np.zeros((40, 33), dtype=bool)
    attention[:20] = 1
    area[:, :16] = True
    cut = GuidedCutPaste(sides=(0.01, 0.01), resize=(1, 1), angle=0.0)
    for looks, both in ((attention, area & (attention > 0)), (1.0 * ~area, area)):
        found = np.zeros_like(area)
        for seed in range(60):
            rng = np.random.default_rng(seed)
            found |= cut(picture(seed), rng, attention=looks, area=area).mask
        assert not found[~both].any()
        assert found[both].mean() > 0.1


@pytest.mark.parametrize(
    "area",
    [np.ones((40, 33)), np.ones((33, 40), dtype=bool), np.zeros((40, 33), dtype=bool)],
)
def test_areas_that_do_not_fit(area: np.ndarray) -> None:
    with pytest.raises(ConfigError, match="area: "):
        simulator("cutpaste")(picture(0), np.random.default_rng(0), area=area)
    with pytest.raises(ConfigError, match="areas: shape"):
        simulate_batch([simulator("cutpaste")], picture(0)[None], None, [0], areas=area)


class TestBatch:
    images = np.stack([picture(seed) for seed in range(7)])
    attention = np.random.default_rng(0).random((7, 3, 3))
    all_of_them: tuple[Simulator, ...] = tuple(simulator(name) for name in SIMULATORS)

    def run(self, **options: int) -> list[Synthetic]:
        seeds = range(100, 107)
        return simulate_batch(self.all_of_them, self.images, self.attention, seeds, **options)

    def test_does_not_depend_on_the_number_of_threads(self) -> None:
        alone = self.run(threads=1)
        assert all(same(a, b) for a, b in zip(alone, self.run(threads=5), strict=True))

    def test_each_keeps_to_its_own_area(self) -> None:
        areas = np.zeros(self.images.shape[:3], dtype=bool)
        for index, area in enumerate(areas):
            area[5 * index : 5 * index + 5] = True
        seeds = range(7)
        made = simulate_batch(self.all_of_them, self.images, self.attention, seeds, areas=areas)
        for result, area in zip(made, areas, strict=True):
            assert result.mask.any()
            assert not result.mask[~area].any()

    def test_simulators_are_drawn_evenly(self) -> None:
        two = (simulator("cutpaste-3way"), simulator("fpi"))
        images = self.images[0] * np.linspace(0.5, 1, 300, dtype=np.float32)[:, None, None, None]
        results = simulate_batch(two, images, None, range(300), threads=1)
        soft = sum(result.label.max() < 1 for result in results)  # only FPI's
        assert abs(soft - 150) < 4 * np.sqrt(75)

    def test_the_other_picture_is_any_but_the_same(self) -> None:
        values = np.array([0.0, 0.3, 0.6, 1.0], dtype=np.float32)
        constant = np.ones((4, 12, 12, 1), np.float32) * values[:, None, None, None]
        seen = set()
        for seed in range(40):
            result = simulate_batch([simulator("fpi")], constant, None, [seed] * 4)[1]
            factor = result.label.max()
            pasted = result.image[result.mask][0, 0]
            seen.add(round(float((pasted - 0.3 * (1 - factor)) / factor), 3))
        assert seen == {0.0, 0.6, 1.0}

    def test_the_only_picture_is_mirrored(self) -> None:
        ramp = np.tile(np.linspace(0, 1, 16, dtype=np.float32)[:, None], (16, 1, 1))
        (result,) = simulate_batch([simulator("fpi")], ramp[None], None, [3])
        factor = result.label.max()
        expected = (1 - factor) * ramp + factor * ramp[:, ::-1]
        np.testing.assert_allclose(result.image[result.mask], expected[result.mask], atol=1e-6)

    def test_what_does_not_fit_together(self) -> None:
        cut = [simulator("cutpaste")]
        with pytest.raises(ConfigError, match="at least one simulator"):
            simulate_batch([], self.images, None, range(7))
        with pytest.raises(ConfigError, match="B H W C"):
            simulate_batch(cut, self.images[0], None, range(40))
        with pytest.raises(ConfigError, match="7 pictures, but 6 seeds"):
            simulate_batch(cut, self.images, None, range(6))
        with pytest.raises(ConfigError, match="attention for 2"):
            simulate_batch(cut, self.images, self.attention[:2], range(7))
        with pytest.raises(ConfigError, match="pass attention="):
            simulate_batch([simulator("guided")], self.images, None, range(7))
        assert simulate_batch(cut, self.images[:0], None, []) == []

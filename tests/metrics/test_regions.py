from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy import ndimage

from blemish.errors import ConfigError, NonFiniteError
from blemish.metrics.regions import PixelMetrics, PixelResult, StreamingPixelMetrics

Maps = list[NDArray[np.float32]]
Masks = list[NDArray[np.bool_] | None]
LIMITS = [0.05, 0.3, 1.0]


def naive(maps: Maps, masks: Masks, limit: float) -> tuple[float, float]:
    """(pixel AUROC, AUPRO) from the definition: both curves at every distinct threshold, then the
    trapezoid rule.
    """
    filled = whole(maps, masks)
    regions = []
    for scores, mask in zip(maps, filled, strict=True):
        labels, count = ndimage.label(mask, structure=np.ones((3, 3)))
        regions += [scores[labels == region] for region in range(1, count + 1)]
    pixels = np.concatenate([m.ravel() for m in maps]).astype(np.float64)
    truth = np.concatenate([mask.ravel() for mask in filled])
    fpr, tpr, pro = [0.0], [0.0], [0.0]
    for threshold in sorted(set(pixels.tolist()), reverse=True):
        fpr.append(float(np.mean(pixels[~truth] >= threshold)))
        tpr.append(float(np.mean(pixels[truth] >= threshold)))
        pro.append(float(np.mean([np.mean(region >= threshold) for region in regions])))
    return trapezoid(fpr, tpr, 1.0), trapezoid(fpr, pro, limit) / limit


def whole(maps: Maps, masks: Masks) -> list[NDArray[np.bool_]]:
    """The masks, empty ones where there are none."""
    pairs = zip(maps, masks, strict=True)
    return [np.zeros(m.shape, dtype=bool) if mask is None else mask for m, mask in pairs]


def trapezoid(x: list[float], y: list[float], limit: float) -> float:
    area = 0.0
    for x0, x1, y0, y1 in zip(x, x[1:], y, y[1:], strict=False):
        if x1 > limit:
            if x0 < limit:
                at_limit = y0 + (y1 - y0) * (limit - x0) / (x1 - x0)
                area += (limit - x0) * (y0 + at_limit) / 2
            break
        area += (x1 - x0) * (y0 + y1) / 2
    return area


Metrics = PixelMetrics | StreamingPixelMetrics


def added(metrics: Metrics, maps: Maps, masks: Masks, limit: float = 0.3) -> PixelResult:
    for anomaly_map, mask in zip(maps, masks, strict=True):
        metrics.add(anomaly_map, mask)
    return metrics.compute(limit)


def exact(maps: Maps, masks: Masks, limit: float = 0.3) -> PixelResult:
    return added(PixelMetrics(), maps, masks, limit)


def f32(values: object) -> NDArray[np.float32]:
    return np.asarray(values, dtype=np.float32)


def mask_of(*rows: str) -> NDArray[np.bool_]:
    return np.array([[pixel == "#" for pixel in row] for row in rows])


def random_case(seed: int, levels: int) -> tuple[Maps, Masks]:
    """Pictures of several sizes with several regions each; `levels` distinct scores."""
    rng = np.random.default_rng(seed)
    maps: Maps = []
    masks: Masks = []
    for shape in [(12, 9), (7, 16), (12, 9)]:
        mask = rng.random(shape) < 0.15
        maps.append(f32(rng.integers(0, levels, shape) / levels + 0.3 * mask))
        masks.append(mask)
    maps.append(f32(rng.integers(0, levels, (5, 5)) / levels))
    masks.append(None)
    return maps, masks


def adversarial() -> dict[str, tuple[Maps, Masks]]:
    rng = np.random.default_rng(7)
    spots = mask_of("#..#.", "..#..", ".....", "###..", "..#.#")
    ramp = f32(np.arange(25).reshape(5, 5))
    noise = f32(rng.random((5, 5)))
    corners = mask_of("#....", ".#...", "..#..", "...#.", "#...#")
    single = mask_of("#.#.#", ".....", "#.#.#", ".....", "#.#.#")
    zeros = f32(np.where(rng.random((5, 5)) < 0.5, -0.0, 0.0))
    denormals = f32(rng.integers(-2, 3, (5, 5)) * np.float32(1.4e-45))
    large = f32(rng.choice([-3.4e38, -1e38, 3.4e38], (5, 5)))
    neighbours = np.nextafter(f32(np.ones((5, 5))), f32(2 * (noise > 0.5)))
    return {
        "constant map": ([f32(np.full((5, 5), 0.5))], [spots]),
        "two values, each class has both": ([f32(noise > 0.5)], [spots]),
        "perfect": ([f32(spots) + noise / 2], [spots]),
        "inverted": ([noise / 2 - f32(spots)], [spots]),
        "perfect and two-valued": ([f32(spots)], [spots]),
        "inverted and two-valued": ([1 - f32(spots)], [spots]),
        "single-pixel regions": ([noise], [single]),
        "regions that touch at corners": ([noise], [corners]),
        "a region that covers its picture": ([noise, noise[::-1]], [f32(ramp) >= 0, None]),
        "one pixel a picture": (
            [f32([[x]]) for x in (0.4, 0.4, 0.3)],
            [ramp[:1, :1] == 0, None, None],
        ),
        "negative and positive zero": ([zeros], [spots]),
        "zeros among denormals": ([denormals], [spots]),
        "very large": ([large], [spots]),
        "neighbouring floats": ([neighbours], [spots]),
        "rank": ([ramp], [spots]),
        "rank, reversed": ([-ramp], [spots]),
        "tied high, limit inside the tie": ([np.minimum(ramp, 8)], [spots]),
        "tied low, limit inside the tie": ([np.maximum(-ramp, -4)], [spots]),
    }


ADVERSARIAL = adversarial()


CASES = ADVERSARIAL | {
    f"random {seed}, {levels} levels": random_case(seed, levels)
    for seed in (0, 1)
    for levels in (1, 2, 3, 20, 100_000)
}


@pytest.mark.parametrize("limit", LIMITS)
@pytest.mark.parametrize("name", CASES)
def test_exact_equals_the_definition(name: str, limit: float) -> None:
    result = exact(*CASES[name], limit)
    expected = naive(*CASES[name], limit)
    assert (result.pixel_auroc, result.aupro) == pytest.approx(expected, abs=1e-12)
    assert (result.auroc_error, result.aupro_error) == (0.0, 0.0)


@pytest.mark.parametrize("limit", LIMITS)
@pytest.mark.parametrize("name", [*CASES])
def test_aupro_is_the_mean_over_regions_of_what_each_adds(name: str, limit: float) -> None:
    maps, masks = CASES[name]
    metrics = PixelMetrics()
    whole_result, found = added(metrics, maps, masks, limit), metrics.overlaps(limit)
    marked = [at for at, mask in enumerate(masks) if mask is not None and mask.any()]
    if whole_result.aupro is None:
        assert found == []
        return
    normal = np.concatenate([m[~x] for m, x in zip(maps, whole(maps, masks), strict=True)])
    levels = sorted({float(value) for m in maps for value in m.ravel()}, reverse=True)
    fpr = [0.0, *(float(np.mean(normal >= level)) for level in levels)]
    for at, (regions, mean) in zip(marked, found, strict=True):
        labels, count = ndimage.label(masks[at], structure=np.ones((3, 3)))
        areas = []
        for region in range(1, count + 1):
            own = maps[at][labels == region]
            overlap = [0.0, *(float(np.mean(own >= level)) for level in levels)]
            areas.append(trapezoid(fpr, overlap, limit) / limit)
        assert regions == count
        assert mean == pytest.approx(float(np.mean(areas)), abs=1e-9)
    weights = np.array([regions for regions, _ in found])
    means = np.array([mean for _, mean in found])
    assert weights @ means / weights.sum() == pytest.approx(whole_result.aupro, abs=1e-9)


def test_values_that_can_be_worked_out_by_hand() -> None:
    spots = ADVERSARIAL["perfect"][1]
    assert exact(*ADVERSARIAL["perfect"]) == PixelResult(1.0, 1.0)
    assert exact(*ADVERSARIAL["inverted"]) == PixelResult(0.0, 0.0)
    # One tie of everything: the diagonal from (0, 0) to (1, 1), whose mean up to the limit is half
    # the limit.
    constant = exact([f32(np.zeros((5, 5)))], spots)
    assert (constant.pixel_auroc, constant.aupro) == (0.5, pytest.approx(0.15, abs=1e-15))


def test_the_limit_exactly_at_a_curve_point() -> None:
    # By falling score: a normal, the whole one-pixel defect, three normals. FPR is 1/4 when the
    # overlap jumps to 1.
    scores, mask = f32([[5, 4, 3, 2, 1]]), mask_of(".#...")
    assert exact([scores], [mask], 0.25).aupro == 0.0
    assert exact([scores], [mask], 0.5).aupro == pytest.approx(0.5, abs=1e-15)


def test_corners_join_a_region() -> None:
    # Joined: one region of which half is found at once. Parted, the lone pixels would average to
    # the same, so that the third, separate one tells them apart: (1/2 + 0) / 2 against (1 + 0 + 0)
    # / 3 before the first normal pixel.
    scores, mask = f32([[9, 5, 5, 5], [5, 1, 5, 1]]), mask_of("#...", ".#.#")
    assert exact([scores], [mask], 0.3).aupro == pytest.approx(0.25, abs=1e-15)


def test_small_regions_weigh_as_much_as_large_ones() -> None:
    scores, mask = f32([[9, 9, 9, 5, 1, 5]]), mask_of("###.#.")
    result = exact([scores], [mask], 1.0)
    assert (result.pixel_auroc, result.aupro) == (0.75, pytest.approx(0.5, abs=1e-15))


@pytest.mark.parametrize("transform", [lambda m: 4 * m - 2, lambda m: np.exp(m), lambda m: m**3])
def test_only_the_order_of_the_scores_counts(
    transform: Callable[[NDArray[np.float32]], NDArray[np.float32]],
) -> None:
    maps, masks = random_case(5, 64)  # few levels: the transforms keep them distinct in float32
    assert exact([f32(transform(m)) for m in maps], masks) == exact(maps, masks)


def test_the_order_and_the_memory_layout_of_pictures_do_not_count() -> None:
    maps, masks = random_case(6, 10)
    expected = exact(maps, masks)
    for change in (lambda one: one.T, lambda one: one[::-1, ::-1]):
        changed = [None if mask is None else change(mask) for mask in masks]
        result = exact([change(m) for m in maps][::-1], changed[::-1])
        assert result.pixel_auroc == expected.pixel_auroc
        assert result.aupro == pytest.approx(expected.aupro, abs=1e-14)


def test_an_empty_mask_is_no_mask() -> None:
    maps, masks = random_case(8, 10)
    assert exact(maps, whole(maps, masks)) == exact(maps, masks)


def test_more_can_be_added_after_computing() -> None:
    maps, masks = random_case(9, 10)
    metrics = PixelMetrics()
    for anomaly_map, mask in zip(maps, masks, strict=True):
        metrics.add(anomaly_map, mask)
        metrics.compute()
    assert metrics.compute() == metrics.compute() == exact(maps, masks)


def test_the_map_is_copied() -> None:
    metrics, scores = PixelMetrics(), f32([[1, 2, 3]])
    metrics.add(scores, mask_of("..#"))
    scores[:] = 0
    assert metrics.compute() == PixelResult(1.0, 1.0)


@pytest.mark.parametrize("bins", [1, 3, 1000])
@pytest.mark.parametrize("limit", LIMITS)
@pytest.mark.parametrize("name", CASES)
def test_streaming_is_within_its_bound_of_exact(name: str, limit: float, bins: int) -> None:
    assert_within_bound(*CASES[name], limit, StreamingPixelMetrics(-1.0, 2.0, bins=bins))


def assert_within_bound(
    maps: Maps, masks: Masks, limit: float, metrics: StreamingPixelMetrics
) -> PixelResult:
    result, truth = added(metrics, maps, masks, limit), exact(maps, masks, limit)
    assert abs(result.pixel_auroc - truth.pixel_auroc) <= result.auroc_error + 1e-12
    assert abs(result.aupro - truth.aupro) <= result.aupro_error + 1e-12
    return result


@pytest.mark.parametrize("worst", [1, -1])
def test_the_bound_is_attained_by_the_worst_order_in_a_bin(worst: int) -> None:
    scores, mask = f32([[0.5 + worst * 0.01, 0.5, 0.5, 0.5, 0.5]]), mask_of("#....")
    result = added(StreamingPixelMetrics(0.0, 1.0, bins=3), [scores], [mask])
    truth = exact([scores], [mask])
    assert abs(truth.pixel_auroc - result.pixel_auroc) == pytest.approx(0.5, abs=1e-15)
    assert result.auroc_error == 0.5
    # The diagonal gives 0.15 up to a limit of 0.3: one order raises it to 1, the other to 0.
    assert result.aupro_error == pytest.approx(0.85, abs=1e-12)
    assert abs(truth.aupro - result.aupro) == pytest.approx(0.85 if worst == 1 else 0.15, abs=1e-12)


def test_many_bins_make_the_bound_small() -> None:
    rng = np.random.default_rng(4)
    scores = f32(rng.normal(size=(200, 200)))
    mask = np.zeros((200, 200), dtype=bool)
    mask[20:40, 20:40] = mask[100:110, 100:150] = True
    scores += mask
    result = assert_within_bound([scores], [mask], 0.3, StreamingPixelMetrics(-6.0, 6.0))
    assert result.auroc_error < 3e-5
    assert result.aupro_error < 1e-4


@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    st.lists(st.tuples(st.integers(-4, 4), st.booleans()), min_size=6, max_size=40),
    st.floats(0.01, 1.0),
    st.integers(1, 9),
)
def test_exact_and_streaming_on_anything_small(
    rows: list[tuple[int, bool]], limit: float, bins: int
) -> None:
    width = len(rows) // 2
    scores = f32([row[0] for row in rows[: 2 * width]]).reshape(2, width)
    mask = np.array([row[1] for row in rows[: 2 * width]]).reshape(2, width)
    if mask.all() or not mask.any():
        assert exact([scores], [mask], limit) == PixelResult(None, None)
        return
    result, expected = exact([scores], [mask], limit), naive([scores], [mask], limit)
    assert (result.pixel_auroc, result.aupro) == pytest.approx(expected, abs=1e-12)
    assert_within_bound([scores], [mask], limit, StreamingPixelMetrics(-3.0, 3.0, bins=bins))


@pytest.fixture(params=["exact", "streaming"])
def metrics(request: pytest.FixtureRequest) -> Metrics:
    return PixelMetrics() if request.param == "exact" else StreamingPixelMetrics(0.0, 1.0)


def test_nothing_is_defined_without_both_kinds_of_pixel(metrics: Metrics) -> None:
    assert metrics.compute() == PixelResult(None, None)
    metrics.add(f32(np.ones((3, 3))), np.ones((3, 3), dtype=bool))
    assert metrics.compute() == PixelResult(None, None)
    metrics.add(f32(np.zeros((3, 3))), None)
    assert metrics.compute().aupro == 1.0


def test_normal_pictures_alone_define_nothing(metrics: Metrics) -> None:
    for mask in (None, np.zeros((3, 3), dtype=bool)):
        metrics.add(f32(np.zeros((3, 3))), mask)
    assert metrics.compute() == PixelResult(None, None)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf, 1e39])
def test_a_score_that_is_not_finite_is_an_error(metrics: Metrics, bad: float) -> None:
    with pytest.raises(NonFiniteError, match="NaN or infinite"):
        metrics.add(np.array([[0.0, bad]]), None)
    assert metrics.compute() == PixelResult(None, None)


def test_shapes_that_do_not_fit_are_errors(metrics: Metrics) -> None:
    with pytest.raises(ConfigError, match=r"\(2, 3\) does not fit its anomaly map of \(3, 2\)"):
        metrics.add(f32(np.zeros((3, 2))), np.zeros((2, 3), dtype=bool))
    with pytest.raises(ConfigError, match="H×W"):
        metrics.add(f32(np.zeros((1, 3, 2))), None)
    with pytest.raises(ConfigError, match="uint8; bool"):
        metrics.add(f32(np.zeros((3, 2))), np.full((3, 2), 255, dtype=np.uint8))


@pytest.mark.parametrize("limit", [0.0, -0.1, 1.1, float("nan")])
def test_a_limit_out_of_range_is_an_error(metrics: Metrics, limit: float) -> None:
    with pytest.raises(ConfigError, match="fpr_limit"):
        metrics.compute(limit)


@pytest.mark.parametrize(
    ("low", "high", "bins"),
    [
        (1, 1, 8),
        (2, 1, 8),
        (0, np.inf, 8),
        (np.nan, 1, 8),
        (-1.7e308, 1.7e308, 8),
        (0, 5e-324, 8),
        (0, 1, 0),
    ],
)
def test_a_range_that_cannot_be_binned_is_an_error(low: float, high: float, bins: int) -> None:
    with pytest.raises(ConfigError, match=r"bins|range of scores"):
        StreamingPixelMetrics(low, high, bins=bins)


@pytest.mark.parametrize("kind", [PixelMetrics, lambda: StreamingPixelMetrics(0, 1, bins=1 << 16)])
def test_pixels_outside_do_not_count(kind: Any) -> None:
    random = np.random.default_rng(5)
    cut, all_of_it = kind(), kind()
    for number in range(3):
        scores, mask = random.random((8, 9)), random.random((8, 9)) > 0.7
        inside = np.zeros((8, 9), dtype=bool)
        inside[2:7, 1:6] = True
        truth = None if number == 2 else mask
        cut.add(scores, truth, inside)
        all_of_it.add(scores[2:7, 1:6], None if truth is None else truth[2:7, 1:6])
    assert cut.compute() == all_of_it.compute()

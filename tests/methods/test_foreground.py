"""What is taken as the part of planted features, and when it is not."""

from __future__ import annotations

from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from blemish.area import SIDE, Area
from blemish.backbones import Features
from blemish.methods.foreground import Foreground, otsu
from blemish.methods.telling import foreground_of, seen_along
from blemish.types import Batch, silent

GRID = (16, 16)
Y, X = np.mgrid[:16, :16]
DISC = (Y - 7.5) ** 2 + (X - 7.5) ** 2 < 5**2


class Planted:
    """A method that sees features planted for pictures, which are their numbers: B 1 1 1."""

    def __init__(self, parts: Any, *, spread: float = 0.3, area: Area | None = None) -> None:
        random = torch.Generator().manual_seed(0)
        self.config, self.area = SimpleNamespace(layers=(4,)), area
        self.backbone = SimpleNamespace(offset=lambda grid, images: 0.0)
        parts = torch.from_numpy(np.stack(parts)).flatten(1).float()
        along, ground = torch.eye(12)[0], torch.eye(12)[1]
        noise = spread * torch.randn(*parts.shape, 12, generator=random) / 12**0.5
        self.tokens = parts[..., None] * along + (1 - parts[..., None]) * ground + noise

    def see(self, images: torch.Tensor) -> Features:
        chosen = self.tokens[images.flatten(1)[:, 0].long()]
        return Features(tokens=(chosen, chosen[:, :4]), grids=(GRID, (2, 2)), offsets=(0.0, 0.0))

    def batches(self) -> Iterator[Batch]:
        every = torch.arange(len(self.tokens))
        for some in every.split(3):
            yield Batch(some[:, None, None, None].expand(-1, 3, 64, 64).float(), some)

    def learned(self) -> Foreground:
        return foreground_of(self, self.batches, len(self.tokens), silent)  # type: ignore[arg-type]

    def along(self, foreground: Foreground) -> np.ndarray:
        features = Features(tokens=(self.tokens,), grids=(GRID,), offsets=(0.0,))
        return seen_along(self, features, foreground.direction).numpy()  # type: ignore[arg-type]

    def told(self, foreground: Foreground) -> np.ndarray:
        return foreground.told(self.along(foreground), self.area)

    def inside(self, foreground: Foreground) -> np.ndarray:
        return foreground.inside(self.along(foreground), self.area, (16, 16))


@pytest.fixture(scope="module")
def known() -> Foreground:
    return Planted([DISC] * 8).learned()


def test_the_part_and_one_place_around_it_is_taken(known: Foreground) -> None:
    assert known.abstains == ""
    assert known.border == 1
    assert known.agreement == 1
    (told,) = Planted([DISC]).told(known)
    away = np.hypot(Y - 7.5, X - 7.5)
    assert told[away < 5.5].all()
    assert not told[away > 6.8].any()
    assert known.least == known.share == known.most == pytest.approx(told.mean())


def test_either_sign_of_the_component_leads_to_the_same_side() -> None:
    for parts in ([DISC] * 8, [DISC] * 5 + [DISC.T] * 3):
        method = Planted(parts)
        # What the eigenvector's sign is, is chance: the ground takes the part's place.
        method.tokens = method.tokens.flip(2)
        assert method.learned().abstains == ""
        assert method.told(method.learned())[:, 7, 7].all()


def test_holes_and_bites_stay_inside(known: Foreground) -> None:
    bitten = DISC & ~((Y > 5) & (Y < 9) & (X > 9))  # open to the ground
    pierced = DISC & ~((Y > 5) & (Y < 9) & (X > 5) & (X < 9))
    for part in (bitten, pierced):
        (told,) = Planted([part]).told(known)
        assert told[DISC & (X < 12)].all()
        assert not told[0, 0]


def test_parts_stay_apart(known: Foreground) -> None:
    pair = (np.abs(Y - 7.5) < 3) & (np.abs(np.abs(X - 7.5) - 5.5) < 1.5)
    (told,) = Planted([pair]).told(known)
    assert told[7, 1]
    assert told[7, 14]
    assert not told[7, 7]  # hulls are of each part, not around all of them


def test_the_corners_of_the_picture_are_not_filled(known: Foreground) -> None:
    wide = (Y - 7.5) ** 2 + (X - 7.5) ** 2 < 7.6**2
    (told,) = Planted([wide]).told(known)
    assert told[7, 0]
    assert not told[0, 0]


@pytest.mark.parametrize(
    ("part", "plausible"),
    [
        (DISC, True),
        (np.zeros(GRID, dtype=bool), False),
        (np.ones(GRID, dtype=bool), False),
        ((Y == 2) & (X == 2), False),
        ((Y - 7.5) ** 2 + (X - 7.5) ** 2 < 4**2, True),
        ((Y - 7.5) ** 2 + (X - 7.5) ** 2 < 9**2, False),
    ],
    ids=["as ever", "none", "all", "a speck", "smaller", "much larger"],
)
def test_an_implausible_part_is_the_whole_picture(
    part: np.ndarray, plausible: bool, known: Foreground
) -> None:
    method = Planted([part])
    told = method.told(known)
    assert known.plausible(told, method.area).tolist() == [plausible]
    inside = method.inside(known)
    assert inside.shape == (1, 16, 16)
    assert bool(inside.all()) == (not plausible)


def test_pictures_of_a_batch_are_judged_each_by_itself(known: Foreground) -> None:
    whole = np.ones(GRID, dtype=bool)
    inside = Planted([DISC, whole, DISC]).inside(known)
    assert [bool(one.all()) for one in inside] == [False, True, False]


@pytest.mark.parametrize(
    ("parts", "why"),
    [
        ([(X + 3 * number) % 16 < 8 for number in range(8)], "no background runs along the border"),
        ([DISC], "one picture alone"),
        ([(Y > 0) & (Y < 15) & (X > 0) & (X < 15)] * 8, "fills 98 % of the training pictures"),
        ([(Y == 7) & (X == 7)] * 8, "only 2.0 % of the training pictures"),
    ],
    ids=["stripes", "one picture", "filled", "a speck"],
)
def test_it_abstains(parts: list[np.ndarray], why: str) -> None:
    assert why in Planted(parts, spread=0.1).learned().abstains


def test_it_abstains_where_places_are_of_one_kind() -> None:
    learned = Planted([np.zeros(GRID, dtype=bool)] * 8, spread=1).learned()
    assert learned.separation < 0.7
    assert "no two kinds of places" in learned.abstains


def test_it_abstains_where_two_halves_disagree() -> None:
    ring = DISC & (np.hypot(Y - 7.5, X - 7.5) > 3)
    method = Planted([DISC, ring] * 6, spread=0.05)
    # In every other picture the part has other features, of which the first half knows nothing.
    method.tokens[1::2, :, [0, 2]] = method.tokens[1::2, :, [2, 0]] * 0.8
    learned = method.learned()
    assert learned.agreement < 0.8
    assert "two halves of the training pictures" in learned.abstains


def test_light_and_batches_do_not_matter(known: Foreground) -> None:
    method = Planted([DISC] * 8)
    brighter = Planted([DISC] * 8)
    brighter.tokens = brighter.tokens * torch.linspace(0.5, 3, 8)[:, None, None]
    one, two = method.learned(), brighter.learned()
    assert one.direction == pytest.approx(known.direction)
    assert two.direction == pytest.approx(one.direction, abs=1e-5)
    assert (method.told(one) == brighter.told(two)).all()


def test_only_places_of_the_area_are_learned_from_and_taken() -> None:
    grid = np.zeros((SIDE, SIDE), dtype=bool)
    grid[:, : SIDE * 3 // 4] = True
    area = Area.of(grid)
    outside = X >= 12
    # Outside there is what would be the background, were it looked at.
    method = Planted([DISC | outside] * 8, area=area)
    method.tokens[:, outside.ravel()] = 5 * torch.eye(12)[5]
    learned = method.learned()
    assert learned.abstains == ""
    told = method.told(learned)
    assert told[:, 7, 7].all()
    assert not told[:, outside].any()
    inner = told[0][:, :12]
    assert learned.share == pytest.approx(inner.mean())


def test_otsu_is_the_best_of_all_cuts() -> None:
    random = np.random.default_rng(0)
    values = np.concatenate([random.normal(0, 1, 60), random.normal(4, 1, 30)]).astype(np.float32)
    ordered = np.sort(values).astype(np.float64)
    shares = {}
    for cut in (ordered[:-1] + ordered[1:]) / 2:
        low, high = ordered[ordered <= cut], ordered[ordered > cut]
        shares[cut] = 1 - (low.var() * low.size + high.var() * high.size) / (
            ordered.var() * ordered.size
        )
    best = max(shares, key=lambda cut: shares[cut])
    assert otsu(values) == pytest.approx((best, shares[best]), rel=1e-5)
    assert otsu(np.full(5, 2, dtype=np.float32)) == (2.0, 0.0)

"""What AHL's base models learn from, against loops: clusters, halves, sides, steps."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from naive import f64
from torch import Tensor, nn

from blemish.errors import ConfigError
from blemish.methods.tasks import (
    KINDS,
    LABELLED,
    Known,
    Task,
    adapted,
    clustered,
    halves,
    kinds_drawn,
    sides_of,
    tasks_of,
    watched_of,
)


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_a_task_for_every_ordered_pair_of_clusters_with_two_kinds() -> None:
    tasks = tasks_of(3, 0)
    assert [task.clusters for task in tasks] == [(0, 1), (0, 2), (1, 0), (1, 2), (2, 0), (2, 1)]
    kinds = {task.kinds for seed in range(20) for task in tasks_of(3, seed)}
    assert kinds == {(1, 2), (1, 3), (2, 1), (2, 3), (3, 1), (3, 2)}
    assert tasks_of(3, 0) == tasks
    assert len(tasks_of(4, 0)) == 12


@pytest.mark.parametrize("seed", range(4))
def test_clusters_are_fixed_points_of_loops(seed: int) -> None:
    """Each centre is the mean of the points that are nearest to it, and they tell what is apart."""
    middles = 6 * drawn(3, 5, seed=90 + seed)
    points = (middles[torch.arange(30) % 3] + 0.4 * drawn(30, 5, seed=seed)).double()
    centres = f64(clustered(points, 3))
    own = [
        min(range(3), key=lambda c, point=point: float(((point - centres[c]) ** 2).sum()))  # type: ignore[misc]
        for point in f64(points)
    ]
    for number in range(3):
        members = [point for point, of in zip(f64(points), own, strict=True) if of == number]
        np.testing.assert_allclose(centres[number], sum(members) / len(members), atol=1e-5)
    assert own == [own[number % 3] for number in range(30)]  # as they were drawn
    assert len(set(own)) == 3


def test_clusters_of_fewer_points_than_clusters() -> None:
    points = torch.tensor([[1.0, 2.0], [1.0, 2.0]])
    assert torch.equal(clustered(points, 3), torch.tensor([[1.0, 2.0]] * 3))


@pytest.mark.parametrize("distinct", [1, 2, 5, 10])
def test_half_of_the_defects_are_learned_from(distinct: int) -> None:
    sides = [sides_of(distinct, [0, number]) for number in range(8)]
    assert {int(side.sum()) for side in sides} == {(distinct + 1) // 2}
    assert distinct < 5 or len({tuple(side.tolist()) for side in sides}) > 2


@pytest.mark.parametrize("plain", [2, 5])
def test_the_sets_of_a_task_against_loops(plain: int) -> None:
    kinds = torch.tensor([0] * plain + [1, 1, 2, 3, 3] + [LABELLED] * 3)
    distances = drawn(plain, 3).abs()
    learned, held = torch.tensor([True, False, True]), torch.tensor([False, True, True])
    task = Task((2, 0), (3, 1))
    support, query = halves(distances, kinds, task, learned, held)
    ranked = sorted(range(plain), key=lambda row: float(distances[row, 2] - distances[row, 0]))
    wanted = ranked[: plain // 2], ranked[plain // 2 :]
    for half, rows, kind, side in zip(
        (support, query), wanted, task.kinds, (learned, held), strict=True
    ):
        made = [row for row in range(len(kinds)) if kinds[row] == kind]
        known = [plain + 5 + number for number in range(3) if side[number]]
        assert half.rows.tolist() == [*rows, *made, *known]
        assert (half.plain, half.normal) == (len(rows), len(rows) + len(made))
    both = drawn(13, 2, 2)[: len(kinds)]
    flat = torch.ones(2, 2)
    taken = support.of([both, flat, None])
    assert torch.equal(taken[0], both[support.rows])  # type: ignore[arg-type]
    assert (taken[1], taken[2]) == (flat, None)


def test_kinds_are_about_as_many_of_each() -> None:
    seen = set()
    for seed in range(20):
        torch.manual_seed(seed)
        kinds = kinds_drawn(4).tolist()
        counts = [kinds.count(kind) for kind in range(1, KINDS + 1)]
        assert kinds == sorted(kinds)
        assert sorted(counts) == [1, 1, 2]
        seen.add(tuple(counts))
    assert len(seen) == 3  # none comes first always


def test_what_is_watched() -> None:
    images = torch.arange(6.0)[:, None, None, None].expand(-1, 3, 2, 2)
    labels = torch.tensor([0, 1, 0, 0, 1, 0])
    found, plain, normal = watched_of(images, labels, 12)
    assert (plain, normal) == (6, 9)
    assert found[:, 0, 0, 0].tolist() == [0, 2, 3, 5, 0, 2, 0, 2, 3, 1, 4, 1]
    found, plain, normal = watched_of(images, None, 8)
    assert (plain, normal, len(found)) == (6, 8, 8)
    assert found[:, 0, 0, 0].tolist() == [0, 1, 2, 3, 4, 5, 0, 1]


def known(defects: list[int], *, single: bool = False, **more: Any) -> Known:
    """Of four normal pictures in two clusters, one made anomaly of each kind, and defects by
    number, of which the features are."""
    features = drawn(7 + len(defects), 3, 2, 2)
    features[:4] = torch.tensor([0.0, 9, 0, 9])[:, None, None, None] + 0.1 * features[:4]
    features[7:] = torch.tensor(defects, dtype=torch.float32)[:, None, None, None]
    kinds = torch.tensor([0, 0, 0, 0, 1, 2, 3, *[LABELLED] * len(defects)])
    return Known(tasks_of(2, 0), single, 5, features, kinds, [features], [], [], **more)


def test_who_counts_how_much_for_whom() -> None:
    """c of eq. 6, and that a defect watched twice is on one side."""
    found, tasks = known([1, 2, 3, 1, 4]), tasks_of(2, 0)
    assert found.labels.tolist() == [0] * 4 + [1] * 8
    assert torch.equal(found.held, ~found.learned)
    assert torch.equal(found.learned[:, 0], found.learned[:, 3])
    for number, task in enumerate(tasks):
        assert int(found.learned[number, [0, 1, 2, 4]].sum()) == 2
        near = [found.distances(torch.full((1, 3, 2, 2), at)).argmin() for at in (0.0, 9.0)]
        for row in range(4):
            own = int(near[row % 2]) == task.clusters[0]
            assert found.factors[row, number] == (0 if own else 0.5)
        for kind in range(1, 4):
            assert found.factors[3 + kind, number] == (0.5 if kind == task.kinds[0] else 1)
        for row in range(5):
            learns = bool(found.learned[number, row])
            assert found.factors[7 + row, number] == (0.5 if learns else 1)
    like = torch.tensor([2.9, 0.2, 4.4])[:, None, None, None].expand(-1, 3, 2, 2)
    assert found.resembled(like).tolist() == [2, 0, 4]


@pytest.mark.parametrize(("defects", "single"), [([3], False), ([3, 3], False), ([1, 2], True)])
def test_a_single_defect_is_in_both_sets(defects: list[int], single: bool) -> None:
    found = known(defects, single=single)
    assert found.learned.all()
    assert found.held.all()
    assert (found.factors[7:] == 0.5).all()


def test_without_defects() -> None:
    found = known([])
    assert found.learned.shape == found.held.shape == (2, 0)
    assert len(found.resembled(drawn(0, 3, 2, 2))) == 0
    assert len(found.resembled(drawn(2, 3, 2, 2))) == 0


def test_one_location_is_too_few() -> None:
    features = drawn(7, 3, 1, 1)
    kinds = torch.tensor([0, 0, 0, 0, 1, 2, 3])
    with pytest.raises(ConfigError, match=r"^image_size: .* fewer levels"):
        Known(tasks_of(2, 0), True, 5, features, kinds, [features], [], [])


class Cubic(nn.Module):
    """Σ a x³ of its parameters, whose derivatives can be written down."""

    def __init__(self) -> None:
        super().__init__()
        self.one = nn.Parameter(torch.tensor([0.7, -1.2], dtype=torch.float64))
        self.other = nn.Parameter(torch.tensor([0.4], dtype=torch.float64))

    def forward(self, a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
        return (a * self.one**3).sum(), (b * self.other**3).sum()


@pytest.mark.parametrize("steps", [1, 3])
def test_steps_and_their_gradient_against_the_derivatives(steps: int) -> None:
    """Eq. 1 and 2: θ' = θ − ρ 3a θ² in each step; of the first one dθ'/dθ = 1 − ρ 6a θ, of the
    others 1; the outer loss q θ'³ has the gradient 3 q θ'² dθ'/dθ.
    """
    module, rate = Cubic(), 0.1
    a, b = (
        torch.tensor([0.5, 2.0], dtype=torch.float64),
        torch.tensor([1.5], dtype=torch.float64),
    )

    def support(model: Any) -> Tensor:
        one, other = model(a, b)
        return one + other  # type: ignore[no-any-return]

    model = adapted(module, support, steps, rate)
    q = torch.tensor([3.0, -1.0], dtype=torch.float64), torch.tensor([2.0], dtype=torch.float64)
    sum(model(*q)).backward()  # type: ignore[union-attr]
    for parameter, weights, outer in ((module.one, a, q[0]), (module.other, b, q[1])):
        assert parameter.grad is not None
        for number, start in enumerate(parameter.detach().tolist()):
            slope = float(weights[number])
            theta = start
            for _ in range(steps):
                theta -= rate * 3 * slope * theta**2
            through = 1 - rate * 6 * slope * start
            wanted = 3 * float(outer[number]) * theta**2 * through
            assert float(parameter.grad[number]) == pytest.approx(wanted, rel=1e-12)
            assert float(parameter.detach()[number]) == start  # the module itself stays

"""What `lda` says of its labelled defects, each left out in turn."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from test_lda import images, masks, taught, teach
from torch import Tensor

import blemish
from blemish.methods.lda import Lda
from blemish.types import Batch


def defects(count: int) -> Tensor:
    """Pictures with a corner that is brighter; their scores lie among those of the good ones."""
    shown = images(count, seed=77)
    shown[:, :, :20, :20] += 1.5
    return shown


def share_below(good: Tensor, defect: float) -> float:
    won = sum((one < defect) + 0.5 * (one == defect) for one in good.tolist())
    return won / len(good)


def expected(groups: list[list[int]], shown: Tensor, given: Tensor | None, **made: Any) -> float:
    """The mean over the defects of the share of good pictures below, by a detector for each group
    that has learned all the others."""
    total = 0.0
    for group in groups:
        others = [at for at in range(len(shown)) if at not in group]
        method = taught(**made)
        teach(method, shown[others], None if given is None else given[others])
        count = made.get("count", 6)
        with torch.inference_mode():
            good = method.score_left_out(Batch(images(count), torch.arange(count))).image
            scores = method.score(shown[group]).image
        total += sum(share_below(good, score) for score in scores.tolist())
    return total / len(shown)


def told(method: Lda) -> tuple[int, float, float]:
    found = method.taught()
    assert found is not None
    return found.defects, found.auroc, found.normality_auroc


@pytest.mark.parametrize("marked", [False, True])
@pytest.mark.parametrize("weight", [0.6, 5.0])
def test_each_defect_is_judged_by_a_detector_that_has_not_learned_it(
    weight: float, marked: bool
) -> None:
    made: dict[str, Any] = {"count": 12, "weight": weight}
    shown, given = defects(5), masks(5) if marked else None
    method = taught(**made)
    teach(method, shown, given)
    count, auroc, normality = told(method)
    assert count == 5
    assert auroc == pytest.approx(expected([[at] for at in range(5)], shown, given, **made))
    untaught = taught(**made)
    with torch.inference_mode():
        good = untaught.score_left_out(Batch(images(12), torch.arange(12))).image
        scores = untaught.score(shown).image.tolist()
    assert normality == pytest.approx(sum(share_below(good, one) for one in scores) / 5)
    assert 0 < auroc < 1  # so that another answer would be seen


def test_of_more_than_ten_defects_some_are_left_out_together() -> None:
    shown = defects(12)
    method = taught(count=12)
    teach(method, shown)
    groups = [[0, 10], [1, 11], *([at] for at in range(2, 10))]
    assert told(method)[1] == pytest.approx(expected(groups, shown, None, count=12))


def test_copies_of_a_defect_are_left_out_together() -> None:
    """Beside its copy a defect is known, not found."""
    few = images(3, seed=77)  # which have nothing in common
    shown = few[[0, 1, 2, 0]]
    method = taught(count=12, weight=20.0)
    teach(method, shown)
    right = expected([[0, 3], [1], [2]], shown, None, count=12, weight=20.0)
    wrong = expected([[0], [1], [2], [3]], shown, None, count=12, weight=20.0)
    assert told(method)[1] == pytest.approx(right)
    assert right != pytest.approx(wrong)


def test_where_it_is_not_known_nothing_is_said() -> None:
    method = taught()
    assert method.taught() is None
    teach(method, images(1, seed=5))
    assert method.taught() is None  # nothing is left to learn from
    teach(method, images(1, seed=6))
    assert told(method)[0] == 2
    method.forget_defects()
    assert method.taught() is None
    teach(method, images(2, seed=5)[[0, 0]])
    assert method.taught() is None  # one defect, twice


def test_a_file_keeps_it_and_what_is_taught_later_drops_it(
    picture: Any, small: dict[str, Any], tmp_path: Path
) -> None:
    """Of old defects an artifact does not know how they look without their masks."""
    good, defects = ([picture(seed, defect=seed > 99) for seed in seeds]
                     for seeds in (range(12), range(200, 203)))  # fmt: skip
    detector = blemish.fit("lda", good, anomalies=defects, normality="knn", **small)
    known = detector.record.taught
    assert known is not None
    assert known.defects == 3
    detector.save(tmp_path / "a.blemish")
    loaded = blemish.load(tmp_path / "a.blemish")
    assert loaded.record.taught == known
    assert blemish.refine(detector, anomalies=[picture(300, defect=True)]).detector.record.taught
    refined = blemish.refine(loaded, anomalies=[picture(300, defect=True)])
    assert refined.detector.record.taught is None
    plain = blemish.fit("lda", good, normality="knn", **small)
    plain.save(tmp_path / "b.blemish")
    later = blemish.refine(blemish.load(tmp_path / "b.blemish"), anomalies=defects)
    assert later.detector.record.taught == known

"""Scores of a batch as a detector gives them: what its method says, and where there is a foreground
only of that.

One place for prediction and for calibration: a threshold holds for what was scored as it was.
"""

from __future__ import annotations

import torch
from torch import Tensor

from blemish.backbones import Features
from blemish.errors import ConfigError
from blemish.methods import Method
from blemish.methods.base import foremost, inside_of
from blemish.methods.capabilities import LearnsDefects, LeavesOneOut
from blemish.methods.foreground import Foreground
from blemish.types import Batch, Scores

UNTOLD = "no background could be told from the part as on the training pictures: looked at whole"


def scored(
    method: Method, foreground: Foreground | None, images: Tensor, *, left_out: Batch | None = None
) -> Scores:
    """Scores of B 3 H W.

    Args:
        foreground: what is looked at; None = whole pictures.
        left_out: the batch that they are, of training pictures, each to be scored without what it
            has taught; only for what leaves one out.
    """
    if foreground is None:
        if left_out is None:
            return method.score(images)
        assert isinstance(method, LeavesOneOut)
        return method.score_left_out(left_out)
    seen = method.see(images)
    if left_out is None:
        found = method.judge(seen, images)
    else:
        assert isinstance(method, LeavesOneOut)
        found = method.judge_left_out(seen, left_out)
    return masked(method, foreground, found, images, seen)


@torch.inference_mode()
def masked(
    method: Method,
    foreground: Foreground | None,
    scores: Scores,
    images: Tensor,
    seen: Features | None = None,
) -> Scores:
    """What is left of scores of B 3 H W where the foreground alone counts.

    The image score is the mean of as many highest values as of the whole picture, but of the
    foreground: never above that of the whole picture.

    Args: seen: what `method.see` gave of the pictures; None = it is asked.
    """
    if foreground is None or scores.foreground is not None:  # there is none, or it was left so
        return scores
    inside = foreground.inside(method, method.see(images) if seen is None else seen, images)
    area = inside_of(method.area, (inside.shape[1], inside.shape[2]), inside.device)
    if area is not None:
        of_both = inside & area
        # Where they have nothing in common, all of the area.
        inside = torch.where(of_both.any(2).any(1)[:, None, None], of_both, area)
    return foremost(scores, inside, area, method.config.top_fraction)


def in_use(foreground: Foreground | None) -> Foreground | None:
    """The foreground that is looked at; None where it abstains, or there is none."""
    return None if foreground is None or foreground.abstains else foreground


def check_foreground(method: Method) -> None:
    """Raises: ConfigError for a method whose score no foreground can narrow."""
    if method.scores_by_map and not isinstance(method, LearnsDefects):
        return
    raise ConfigError(
        f"foreground: the score of {method.name} with these settings is one of the whole picture, "
        "not of its map alone; patchcore, knn and padim can leave the background out"
    )

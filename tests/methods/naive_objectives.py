"""The oracles of MSN, SwAV and iBOT: float64, from the equations, a picture and view at a time."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from naive_apmask import (
    Weights,
    encoded,
    log_shares,
    projected,
    readings,
    sinkhorn,
    softmax,
    tokens_of,
)
from torch import Tensor

from blemish.methods.ibot import IBOTConfig
from blemish.methods.msn import MSNConfig
from blemish.methods.swav import SwAVConfig

Found = tuple[Tensor, dict[str, float]]
Views = tuple[Tensor, Tensor, Tensor]


def cross_entropy(target: Sequence[float], predicted: Tensor) -> Tensor:
    total = torch.zeros((), dtype=torch.float64)
    for share, value in zip(target, predicted, strict=True):
        total = total - share * value
    return total


def scores_of(weights: Weights, features: Sequence[Tensor]) -> np.ndarray:
    with torch.no_grad():
        return np.array([(weights["head.prototypes"] @ each).tolist() for each in features])


def msn(
    student: Weights, teacher: Weights, views: Views, config: MSNConfig, kept: list[list[int]]
) -> Found:
    """`kept`: which patches of each picture's global view the student sees."""
    whole, wide, narrow = views
    count = len(whole)
    seen = [encoded(teacher, picture)[0] for picture in whole]
    shown = [projected(teacher, cls) for cls in seen]
    plain = softmax(scores_of(student, shown) / 0.1)
    sharp = plain ** (1 / 0.25)
    sharp /= sharp.sum(1, keepdims=True)
    targets = sinkhorn(np.log(sharp), epsilon=1.0)
    total, mean, agreement = torch.zeros((), dtype=torch.float64), 0.0, 0.0
    number_of_views = 1 + config.local_views
    for number, picture in enumerate([*wide, *narrow]):
        keep = kept[number] if number < count else None
        z = projected(student, encoded(student, picture, keep)[0])
        predicted = log_shares(student["head.prototypes"] @ z, 0.1)
        total = total + cross_entropy(targets[number % count], predicted) / (
            count * number_of_views
        )
        mean = mean + torch.exp(predicted) / (count * number_of_views)
        if number < count:
            agreement += float(z.detach() @ shown[number]) / count
    entropy = -sum(share * torch.log(share) for share in mean)
    total = total + config.mean_entropy_weight * (math.log(config.prototypes) - entropy)
    return total, readings(targets, agreement, seen, shown)


def swav(
    student: Weights, views: Views, config: SwAVConfig, queue: np.ndarray | None = None
) -> Found:
    """`queue`: 2 Q D, earlier features of both global views."""
    first, second, narrow = views
    count = len(first)
    seen = [encoded(student, picture)[0] for picture in [*first, *second, *narrow]]
    features = [projected(student, cls) for cls in seen]
    by_view = [features[start : start + count] for start in range(0, len(features), count)]
    targets = []
    for number in range(2):
        earlier = [] if queue is None else list(torch.from_numpy(queue[number]))
        balanced = sinkhorn(scores_of(student, [*earlier, *by_view[number]]))
        targets.append(balanced[len(earlier) :])
    total = torch.zeros((), dtype=torch.float64)
    for number in range(2):
        part = torch.zeros((), dtype=torch.float64)
        for other, rows in enumerate(by_view):
            if other == number:
                continue
            for target, z in zip(targets[number], rows, strict=True):
                predicted = log_shares(student["head.prototypes"] @ z, 0.1)
                part = part + cross_entropy(target, predicted) / count
        total = total + part / (len(by_view) - 1) / 2
    own, others = ([each.detach() for each in by_view[number]] for number in range(2))
    agreement = sum(float(one @ other) for one, other in zip(own, others, strict=True)) / count
    cls = [each.detach() for each in seen[:count]]
    return total, readings(targets[0], agreement, cls, own)


def ibot(
    student: Weights,
    teacher: Weights,
    views: Views,
    config: IBOTConfig,
    hidden: list[list[int]],
    centres: tuple[np.ndarray, np.ndarray],
) -> Found:
    """`hidden`: patches of each picture of the first, then of the second global view that the
    student does not see. `centres`: running means of the teacher's scores of [CLS], of patches."""
    first, second, narrow = views
    count = len(first)
    whole = [tokens_of(teacher, picture)[0] for picture in [*first, *second]]
    shown = [[projected(teacher, token) for token in each] for each in whole]
    of_cls = softmax((scores_of(teacher, [each[0] for each in shown]) - centres[0]) / 0.04)
    total, of_patches = torch.zeros((), dtype=torch.float64), torch.zeros((), dtype=torch.float64)
    predictions, agreement = [], 0.0
    for number, picture in enumerate([*first, *second, *narrow]):
        masked = hidden[number] if number < 2 * count else []
        tokens = tokens_of(student, picture, None, masked)[0]
        z = projected(student, tokens[0])
        predictions.append(log_shares(student["head.prototypes"] @ z, 0.1))
        if count <= number < 2 * count:
            agreement += float(z.detach() @ shown[number - count][0]) / count
        for place in masked:
            target = scores_of(teacher, [shown[number][1 + place]]) - centres[1]
            own = projected(student, tokens[1 + place])
            predicted = log_shares(student["head.prototypes"] @ own, 0.1)
            part = cross_entropy(softmax(target / 0.04)[0], predicted)
            of_patches = of_patches + part / len(masked) / (2 * count)
    pairs = 0
    for target_view in range(2):
        for view in range(2 + config.local_views):
            if view == target_view:
                continue
            pairs += 1
            for index in range(count):
                target = of_cls[target_view * count + index]
                total = total + cross_entropy(target, predictions[view * count + index]) / count
    total = total / pairs + config.patch_weight * of_patches
    seen = [each[0] for each in whole[:count]]
    return total, readings(of_cls[:count], agreement, seen, [each[0] for each in shown[:count]])

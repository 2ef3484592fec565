"""Categories are told apart by the nearest mean of their features, in units of the spread within
them.
"""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from blemish.backbones import build
from blemish.backbones.glance import features
from blemish.config import from_dict, to_dict
from blemish.detector.categories import CategoryFeatures


def drawn(centre: list[float], spread: list[float], seed: int) -> np.ndarray:
    noise = np.random.default_rng(seed).standard_normal((200, len(centre)))
    return np.array(centre) + np.array(spread) * noise


def test_distances_count_in_units_of_the_spread_within() -> None:
    spread = [0.01, 1.0]  # the second feature varies in every category, the first tells them apart
    groups = [drawn([0.0, 0.0], spread, 0), drawn([0.1, 0.0], spread, 1)]
    teller = CategoryFeatures.learned(dict(zip("ab", groups, strict=True)))
    new = np.array([[0.0, 2.5], [0.1, -2.5], [0.02, 0.0], [0.08, 1.0]])
    assert teller.nearest(new) == ["a", "b", "a", "b"]
    within = np.concatenate([group - group.mean(0) for group in groups])
    assert np.allclose(teller.spread, np.sqrt((within**2).mean(0)), rtol=1e-4)


def test_it_comes_back_from_json() -> None:
    known = CategoryFeatures.learned(
        {"b": drawn([0.3, 1.0], [0.1, 0.1], 0), "a": drawn([2.0, 1.0], [0.1, 0.1], 1)}
    )
    back = from_dict(CategoryFeatures, json.loads(json.dumps(to_dict(known))), strict=True)
    assert back == known
    assert list(back.means) == ["b", "a"]


def test_one_picture_of_each_is_enough() -> None:
    teller = CategoryFeatures.learned({"a": np.array([[1.0, 0.0]]), "b": np.array([[0.0, 1.0]])})
    assert teller.nearest(np.array([[0.9, 0.1], [0.2, 0.9]])) == ["a", "b"]


@pytest.mark.parametrize("name", ["test_vit", "test_resnet"])
def test_features_are_of_unit_length_and_one_small_look(name: str) -> None:
    backbone = build(name, weights="random", seed=0).eval()
    seen: list[torch.Size] = []
    backbone.register_forward_pre_hook(lambda _, given: seen.append(given[0].shape))
    images = torch.randn(3, 3, 320, 256, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        found = features(backbone, (), images)
        again = features(backbone, (), images[1:2])
    assert torch.allclose(found.norm(dim=1), torch.ones(3), atol=1e-5)
    assert torch.allclose(found[1:2], again, atol=1e-4)
    assert all(max(shape[2:]) <= 128 for shape in seen)

"""Descriptors: every method hands one out with a prediction, and it says which it compares with."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
import torch
from parts import Fitted, Part

import blemish
from blemish.data.tiling import Tiling
from blemish.methods import METHODS
from blemish.methods.descriptor import SIZE, descriptor, signs
from blemish.types import Prediction


def descriptors(detector: Any, pictures: list[np.ndarray], **how: Any) -> np.ndarray:
    found = []
    for one in detector.predict_many(pictures, **how):
        assert isinstance(one, Prediction)
        assert one.descriptor is not None
        found.append(one.descriptor)
    return np.stack(found)


@pytest.mark.parametrize("method", METHODS)
def test_every_method_describes_pictures(method: str, picture: Part, fitted: Fitted) -> None:
    detector = fitted(method)
    pictures = [picture(seed) for seed in range(50, 54)] + [255 - picture(50)]
    found = descriptors(detector, pictures)
    assert detector.describes
    assert found.shape == (5, SIZE)
    assert found.dtype == np.float32
    assert found == pytest.approx(descriptors(detector, pictures, batch_size=2), abs=1e-4)
    apart = np.linalg.norm(found[:, None] - found, axis=2)
    assert apart[4, :4].min() > apart[:4, :4].max()  # what looks otherwise lies elsewhere


def test_it_is_what_its_page_says(picture: Part, fitted: Fitted) -> None:
    """The mean of patch features of length 1, through a matrix that keeps lengths."""
    detector = fitted("knn")
    with torch.inference_mode():
        features = detector.method.see(torch.rand(3, 3, 64, 64))
        found = descriptor(detector.method, features).numpy()
    tokens = features.tokens[len(detector.method.config.layers) - 1].double().numpy()
    matrix = signs(tokens.shape[2])
    for one, row in zip(tokens, found, strict=True):
        mean = sum(token / np.linalg.norm(token) for token in one) / len(one)
        assert row == pytest.approx(mean @ matrix, abs=1e-5)
    assert np.abs(matrix) == pytest.approx(1 / np.sqrt(SIZE))
    assert abs(matrix.mean()) < 0.01
    # Written down, as stores hold descriptors made with it.
    assert "".join("+" if each > 0 else "-" for each in signs(384)[0]) == FIRST


FIRST = "-+++--+-+++-++----+-+--++++++-++"


def test_while_a_method_adapts_there_is_none(picture: Part, fitted: Fitted) -> None:
    found = [*fitted("guided").predict_many([picture(1), picture(2)], adapt="online")]
    assert [one.descriptor for one in found if isinstance(one, Prediction)] == [None, None]


def test_of_tiles_it_is_the_mean(picture: Part, small: dict[str, Any]) -> None:
    good = [picture(seed, height=128, width=128) for seed in range(4)]
    detector = blemish.fit("knn", good, tile=64, **small)
    assert isinstance(detector.preprocessing.tiling, Tiling)
    (whole,) = descriptors(detector, [good[0]])
    side = detector.preprocessing.tiling.side
    starts = detector.preprocessing.tiling.starts(128)
    tiles = [good[0][y : y + side, x : x + side] for y in starts for x in starts]
    parts = descriptors(detector, [np.ascontiguousarray(one) for one in tiles])
    assert whole == pytest.approx(parts.mean(0), abs=1e-4)


def test_the_name_of_what_can_be_compared(picture: Part, fitted: Fitted, small: Any) -> None:
    detector = fitted("lda")
    space = detector.descriptor_space
    assert len(space) == 32
    assert detector.with_threshold(3.0).descriptor_space == space
    refined = blemish.refine(detector, anomalies=[picture(70, defect=True)])
    assert refined.detector.descriptor_space == space
    assert descriptors(refined.detector, [picture(1)]) == pytest.approx(
        descriptors(detector, [picture(1)]), abs=1e-5
    )
    record = detector.record
    looks = dataclasses.replace(record.preprocessing, resize="fit")
    weights = dataclasses.replace(record.backbone.weights, sha256="0" * 64)
    others = [
        dataclasses.replace(record, created="2001-01-01"),  # its weights are random
        dataclasses.replace(record, preprocessing=looks),
        dataclasses.replace(record, backbone=dataclasses.replace(record.backbone, weights=weights)),
        dataclasses.replace(record, method="knn"),
    ]
    names = {space, *(blemish.Detector(detector.engine, one).descriptor_space for one in others)}
    assert len(names) == 5
    known = dataclasses.replace(
        record, backbone=dataclasses.replace(record.backbone, weights=weights)
    )
    again = dataclasses.replace(known, created="2001-01-01", seconds=1.0)
    both = {blemish.Detector(detector.engine, one).descriptor_space for one in (known, again)}
    assert len(both) == 1

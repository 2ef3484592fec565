"""A detector that adapts, for the tests of that from Python and on the command line; and what is
refined.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from parts import Fitted, Part

import blemish
from blemish.backbones import Backbone, build
from blemish.detector.predict import Detector
from blemish.methods.heads import ClassHead

GUIDED: dict[str, Any] = {
    **{"backbone": "test_vit", "weights": "random", "image_size": 32, "layers": (2, 4)},
    **{"epochs": 1, "min_steps": 4, "train_batch_size": 8, "trainable_blocks": 4},
    **{"scales": (32, 48), "score": "both", "map_head": "features"},
    **{"device": "cpu", "precision": "fp32"},
}
Made = tuple[Detector, Path]


def _sharp(name: str, **options: Any) -> Backbone:
    """A backbone whose attention is not flat, as it is with random weights, so that pictures can
    move it.
    """
    backbone = build(name, **options)
    with torch.no_grad():
        backbone.model.blocks[-1].attn.qkv.weight[:128] *= 12  # type: ignore[union-attr,index]
    return backbone


def _shrink(patch: pytest.MonkeyPatch) -> None:
    small = partial(ClassHead, hidden=32, bottleneck=16)
    patch.setattr("blemish.methods.guided.ClassHead", small)


@pytest.fixture(scope="session")
def _made(picture: Part, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Made]:
    @cache
    def made(kind: str) -> Made:
        good = [picture(seed) for seed in range(100)]
        asked = {"calibration_fraction": 0.3, "false_alarm_rate": 0.05, "adaptation": kind}
        with pytest.MonkeyPatch.context() as patch:
            _shrink(patch)
            patch.setattr("blemish.detector.built.build", _sharp)
            detector = blemish.fit("guided", good, **asked, **GUIDED)
        return detector, detector.save(tmp_path_factory.mktemp("artifact") / "part.blemish")

    return made


@pytest.fixture
def adaptation(request: pytest.FixtureRequest) -> str:
    """What is adapted; unless a test asks for another kind, that of the papers."""
    return str(getattr(request, "param", "entropies"))


@pytest.fixture
def adapting(
    adaptation: str, _made: Callable[[str], Made], monkeypatch: pytest.MonkeyPatch
) -> Iterator[Detector]:
    """The same for all tests, each of which must leave it as it was."""
    _shrink(monkeypatch)
    method = _made(adaptation)[0].method
    before = {name: tensor.clone() for name, tensor in method.state_dict().items()}
    yield _made(adaptation)[0]
    method.requires_grad_(False)
    after = method.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(tensor, before[name]) for name, tensor in after.items())


@pytest.fixture
def adapting_artifact(
    adaptation: str, _made: Callable[[str], Made], monkeypatch: pytest.MonkeyPatch
) -> Path:
    """The file of the same detector."""
    _shrink(monkeypatch)
    return _made(adaptation)[1]


@pytest.fixture
def good(picture: Part) -> Callable[..., list[np.ndarray]]:
    """`good(4, 24)`: four parts, from this seed on."""
    return lambda count, first=0: [picture(first + seed) for seed in range(count)]


@pytest.fixture
def bad(picture: Part) -> Callable[..., list[np.ndarray]]:
    """The same with a square each, of other parts; those of the fixture `mvtec` come first."""
    return lambda count, first=0: [
        picture(200 + first + seed, defect=True) for seed in range(count)
    ]


@pytest.fixture
def fit(small: dict[str, Any]) -> Fitted:
    """`fit(good, defects)`: an `lda` whose bank, of `knn` unless told otherwise, holds every
    patch.
    """

    def fitted(good: Any, defects: Any = None, **settings: Any) -> Detector:
        return blemish.fit(
            "lda", good, anomalies=defects, **{**small, "normality": "knn", **settings}
        )

    return fitted

"""Evaluation in parts: what merges says what one process says, within its bound."""

from __future__ import annotations

import json
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_learning import Shuffled

import blemish
from blemish.detector import evaluate as evaluating
from blemish.errors import ConfigError, DataError
from blemish.metrics.detections import DetectionMetrics
from blemish.metrics.regions import PixelMetrics, StreamingPixelMetrics
from blemish.scale import evaluating as in_parts


def told(result: blemish.Evaluation) -> Any:
    return json.loads(json.dumps(result.to_dict()))


@pytest.fixture(scope="module")
def artifact(fitted: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("made") / "part.blemish"
    fitted("knn").save(path)
    return path


@pytest.mark.parametrize("workers", [1, 3])
def test_in_parts_as_in_one_process(artifact: Path, mvtec: Path, workers: int) -> None:
    whole = blemish.evaluate(blemish.load(artifact), mvtec)
    assert whole.aupro is not None
    assert whole.regions is not None
    hands = Shuffled(workers, seed=workers)
    # Parts of as many pictures as a batch: then batches are the same, and so are all figures.
    parts = in_parts.evaluate(artifact, mvtec, hands=hands, part_pictures=8)
    assert told(parts) == told(whole)
    assert len(hands.done) == 2
    other = in_parts.evaluate(artifact, mvtec, part_pictures=3)
    assert other.image_auroc == pytest.approx(whole.image_auroc, abs=1e-6)
    assert other.aupro == pytest.approx(whole.aupro, abs=1e-6)


def test_within_the_bound_in_constant_memory(
    artifact: Path, mvtec: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    exact = in_parts.evaluate(artifact, mvtec, part_pictures=8)
    monkeypatch.setattr(evaluating, "_EXACT_PIXELS", 0)
    whole = blemish.evaluate(blemish.load(artifact), mvtec)
    parts = in_parts.evaluate(artifact, mvtec, hands=Shuffled(2), part_pictures=8)
    assert told(parts) == told(whole)
    for name in ("pixel_auroc", "aupro"):
        bound = getattr(parts, f"{name.removeprefix('pixel_')}_error", None)
        bound = getattr(parts, f"{name}_error") if bound is None else bound
        assert 0 < bound < 1e-3
        assert abs(getattr(parts, name) - getattr(exact, name)) <= bound


def test_broken_and_known_pictures(artifact: Path, mvtec: Path) -> None:
    test = mvtec / "test"
    known = (mvtec / "train" / "good" / "003.png").read_bytes()
    (test / "good" / "known.png").write_bytes(known)
    (test / "square" / "odd.png").write_bytes(b"no picture")
    whole = blemish.evaluate(blemish.load(artifact), mvtec)
    parts = in_parts.evaluate(artifact, mvtec, hands=Shuffled(3), part_pictures=8)
    assert [Path(one).name for one in parts.left_out] == ["known.png"]
    assert [Path(one.source).name for one in parts.failures] == ["odd.png"]
    assert told(parts)["counts"] == told(whole)["counts"]
    for picture in test.rglob("*.png"):
        picture.write_bytes(b"no picture")
    with pytest.raises(DataError, match="no picture is left to evaluate"):
        in_parts.evaluate(artifact, mvtec, part_pictures=4)


@settings(deadline=None)
@given(
    st.lists(
        st.tuples(st.lists(st.integers(0, 6), min_size=4, max_size=4), st.integers(0, 15)),
        min_size=1,
        max_size=8,
    ),
    st.data(),
)
def test_metrics_merge_as_if_all_were_added(
    pictures: list[tuple[list[int], int]], data: st.DataObject
) -> None:
    at = data.draw(st.integers(0, len(pictures)))
    for make in (PixelMetrics, lambda: StreamingPixelMetrics(0.0, 6.5, bins=5)):
        whole, left, right = make(), make(), make()
        for number, (values, bits) in enumerate(pictures):
            scores = np.array(values, dtype=np.float32).reshape(2, 2)
            mask = np.array([bits >> bit & 1 for bit in range(4)], dtype=bool).reshape(2, 2)
            for one in (whole, left if number < at else right):
                one.add(scores, mask)
        left.merge(pickle.loads(pickle.dumps(right)))  # type: ignore[arg-type]
        made, expected = left.compute(), whole.compute()
        assert made.pixel_auroc == expected.pixel_auroc
        assert made.aupro == pytest.approx(expected.aupro, abs=1e-12)
        assert made.auroc_error == expected.auroc_error


def test_other_bins_do_not_merge() -> None:
    one = StreamingPixelMetrics(0.0, 1.0, bins=4)
    for other in (StreamingPixelMetrics(0.0, 1.0, bins=5), StreamingPixelMetrics(0.0, 2.0, bins=4)):
        with pytest.raises(ConfigError, match="do not merge with 4 from"):
            one.merge(other)


def test_what_is_handed_on_is_small() -> None:
    metrics = StreamingPixelMetrics(0.0, 1.0, bins=1 << 20)
    metrics.add(np.full((4, 4), 0.5), np.eye(4, dtype=bool))
    assert len(pickle.dumps(metrics)) < 2000


def test_regions_merge() -> None:
    truth = np.zeros((4, 4), dtype=bool)
    truth[0, :2] = True
    whole, left, right = (DetectionMetrics([0.5, 2.0]) for _ in range(3))
    for part, mask in ((left, truth), (right, None), (right, truth)):
        for one in (whole, part):
            one.add(truth.astype(np.float32), mask, [np.roll(truth, 1, axis=1)])
    left.merge(right)
    assert left.compute() == whole.compute()
    assert left.compute().pictures == 3

"""A detector of a fitted method, which PyTorch runs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch

from blemish import config as configs
from blemish.data.transforms import Preprocessing
from blemish.detector.manifest import BackboneRecord, Manifest
from blemish.detector.predict import Detector
from blemish.detector.scoring import in_use
from blemish.engines.pytorch import TorchEngine
from blemish.errors import ConfigError
from blemish.methods import Method, at_scales
from blemish.methods.capabilities import LearnsDefects


def detector_of(method: Method, record: Manifest) -> Detector:
    """The detector that a fitted method is, as the record says."""
    looks = record.preprocessing
    method.set_area(looks.area_of_input, framed=looks.is_framed)
    return Detector(TorchEngine(method, in_use(record.foreground)), record)


def with_scales(detector: Detector, fitted: Method, scales: Sequence[int]) -> Detector:
    """As of `Detector.with_scales`; `fitted`: its method."""
    method = at_scales(fitted, scales)
    if method is fitted:
        return detector
    height, width = method.scoring_size
    threshold = detector.threshold
    if threshold is not None:
        reason = (
            "calibrated at other sizes; `blemish calibrate --scales` sets a threshold for these"
        )
        threshold = replace(threshold, value=None, guarantee="", reason=reason)
    record = replace(
        detector.record,
        **describe(method, replace(detector.preprocessing, height=height, width=width)),
        threshold=threshold,
        thresholds={},
        calibration_scores=(),
        calibration_scores_by_category={},
        regions=None,
        parts=None,
    )
    other = detector_of(method, record)
    other.area = detector.area
    return other


def check_foreground(method: Method) -> None:
    """Raises: ConfigError for a method whose score no foreground can narrow."""
    if method.scores_by_map and not isinstance(method, LearnsDefects):
        return
    raise ConfigError(
        f"foreground: the score of {method.name} with these settings is one of the whole picture, "
        "not of its map alone; methods that learn from good pictures alone can leave the "
        "background out, by their recipe `best`"
    )


def place(method: Method, device: torch.device, dtype: torch.dtype) -> None:
    """Move a method to a device, to compute in `dtype` there."""
    method.to(device).eval()
    method.set_precision(dtype)


def describe(method: Method, preprocessing: Preprocessing) -> dict[str, Any]:
    """The fields of the manifest that `load` rebuilds a method from."""
    own, *others = (
        BackboneRecord(spec=each.spec, weights=each.info) for each, _ in method.encoders
    )
    return {
        "method": method.name,
        "config": configs.to_dict(method.config),
        "preprocessing": preprocessing,
        "backbone": own,
        "second": others[0] if others else None,
    }

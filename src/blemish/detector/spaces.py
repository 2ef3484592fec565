"""Whether descriptors of two detectors can be compared: the name of how one makes them."""

from __future__ import annotations

import hashlib
import json

from blemish import config
from blemish.detector.manifest import Manifest
from blemish.engines.base import Precision

_KIND = 1  # raised when `methods.descriptor` makes others


def space_of(record: Manifest, precision: Precision) -> str:
    """32 hexadecimal digits of all that a descriptor depends on: encoder, settings, how pictures
    come to it, and what it computes in. Not of thresholds, nor of what was added to a bank since.
    """
    told: list[object] = [_KIND, record.method, dict(record.config), precision]
    told += [config.to_dict(one) for one in (record.preprocessing, record.backbone)]
    # Weights that no hash tells: random ones, and those that the fit itself has changed.
    if record.training or record.pretraining or not record.backbone.weights.sha256:
        told.append([record.created, record.seed])
    if precision == "int8" and record.export is not None:  # of its own ranges
        told.append([record.export.source, record.export.kind, dict(record.export.proof)])
    text = json.dumps(told, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:32]

"""What the page must know of a detector beside its graph: `detector.json`.

Nothing is computed there that can be computed here: thresholds of every rate that a person may
choose come from `blemish.detector.thresholds`, with what they promise.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Literal

import cv2
import numpy as np

from blemish import config
from blemish.detector.manifest import Manifest
from blemish.detector.thresholds import Of, RegionThresholds, Threshold, calibrate
from blemish.engines.record import Exported, Kind
from blemish.errors import ExportError
from blemish.text import pluralize

FORMAT = 1
_PART = ("cut", "least", "most")  # of a `methods.foreground.Foreground`
RATES = (0.1, 0.05, 0.02, 0.01, 0.005, 0.001)  # of false alarms, that a person may choose
_CALIBRATED = ("split conformal", "leave-one-out")
_WANTED = ("score", "map", "votes", "box", "part", "category")  # of a graph's outputs


def check_page(record: Manifest, kind: Kind, input: Literal["normalised", "pixels"]) -> None:
    """Make sure, before any work, that a page can score as a detector does.

    Args: kind, input: as of `blemish.engines.record.Exported`.
    Raises: ExportError for one that it would not score as `blemish predict`.
    """
    preprocessing = record.preprocessing
    cannot = ""
    if kind != "onnx":
        cannot = "it runs an .onnx file; export to one"
    elif preprocessing.tiling is not None:
        cannot = "it does not cut pictures into tiles; fit without --tile, or use blemish predict"
    elif preprocessing.window is not None:
        cannot = (
            "browsers read 8 bits of a picture, and the detector was fitted with --window, for "
            "pictures of more; use blemish predict"
        )
    elif input == "pixels" and preprocessing.is_framed:
        cannot = (
            "a graph from pixels cannot say which of them are padding; export with --input "
            "normalised"
        )
    if cannot:
        raise ExportError(f"--web: a page cannot score as this detector does: {cannot}")


def described(record: Manifest, export: Exported, model_sha256: str) -> dict[str, Any]:
    """JSON-ready. Args: model_sha256: of the file that is written beside it."""
    encoders = [each for each in (record.backbone, record.second) if each is not None]
    preprocessing = record.preprocessing
    outputs = [name for name in _WANTED if name in export.outputs]
    tells = record.category_features is not None and "category" in outputs
    regions = record.regions or RegionThresholds()
    part = record.foreground
    if part is not None and part.abstains:
        part = None
    return {
        "page": FORMAT,
        "title": f"blemish: {', '.join(record.categories) or record.method}",
        "about": (
            f"{record.method} on {' and '.join(each.spec.name for each in encoders)} at "
            f"{preprocessing.height} × {preprocessing.width}, "
            f"learned from {pluralize(record.data.count, 'picture')} on {record.created[:10]}"
        ),
        "imprint": (
            f"Written by blemish {record.blemish}. "
            + " ".join(
                f"Encoder {each.weights.source}, licence: {each.weights.licence}."
                for each in encoders
            )
        ),
        "method": record.method,
        "backbone": config.to_dict(record.backbone),
        "preprocessing": {
            "height": preprocessing.height,
            "width": preprocessing.width,
            "mean": list(preprocessing.mean),
            "std": list(preprocessing.std),
            "resize": preprocessing.resize,
            "area": None if preprocessing.area is None else config.to_dict(preprocessing.area),
        },
        "categories": list(record.categories),
        "tells_categories": tells,
        "category_features": config.to_dict(record.category_features) if tells else None,
        "rates": rates(record),
        "scores": sorted(record.calibration_scores),
        "scores_by_category": {
            name: sorted(scores) for name, scores in record.calibration_scores_by_category.items()
        },
        "smallest_region": regions.smallest,
        "foreground": None if part is None else {name: getattr(part, name) for name in _PART},
        "top_fraction": export.top_fraction,
        "offset": export.offset,
        "map_scale": list(record.map_scale),
        "colours": _colours(),
        "outputs": outputs,
        "export": export.to_dict(),
        "model_sha256": model_sha256,
    }


def rates(record: Manifest) -> list[dict[str, Any]]:
    """The thresholds that a person may choose among, each with its name: those that are stored
    (`is_stored`) and, where they were calibrated, those of other rates that the good pictures
    support."""
    threshold = record.threshold
    stored = _choice(record, _named(threshold), is_stored=True)
    if threshold is None or threshold.rate is None or threshold.method not in _CALIBRATED:
        return [stored]
    made = [(threshold.rate, stored)]
    for rate in RATES:
        if rate == threshold.rate:
            continue
        other = _at(record, rate)
        if other.threshold is not None and other.threshold.value is not None:
            made.append((rate, _choice(other, _percent(rate), is_stored=False)))
    made.sort(key=lambda one: -one[0])
    return [choice for _, choice in made]


def _choice(record: Manifest, name: str, *, is_stored: bool) -> dict[str, Any]:
    regions = record.regions
    return {
        "name": name,
        "is_stored": is_stored,
        "threshold": _plain(record.threshold),
        "thresholds": {name: _plain(one) for name, one in record.thresholds.items()},
        "regions": None
        if regions is None
        else {
            "threshold": _plain(regions.threshold),
            "thresholds": {name: _plain(one) for name, one in regions.thresholds.items()},
        },
    }


def _plain(threshold: Threshold | None) -> dict[str, Any] | None:
    return None if threshold is None else threshold.to_dict()


def _named(threshold: Threshold | None) -> str:
    if threshold is None:
        return "no threshold"
    if threshold.rate is None:
        return "threshold set by hand"
    if threshold.method == "labelled defects":
        return f"{_percent(threshold.rate)} of defects missed"
    return f"{_percent(threshold.rate)} (calibrated)"


def _percent(rate: float) -> str:
    return f"≤ {100 * rate:.4g} %"


def _at(record: Manifest, rate: float) -> Manifest:
    """With the thresholds of another rate, from the same scores."""

    def again(known: Threshold | None, scores: tuple[float, ...], of: Of) -> Threshold | None:
        if known is None or known.method not in _CALIBRATED:
            return known
        return calibrate(scores, rate, method=known.method, required=False, of=of)

    by_category = record.calibration_scores_by_category
    thresholds = {
        name: again(one, by_category.get(name, ()), "alarm")
        for name, one in record.thresholds.items()
    }
    regions = record.regions
    if regions is not None:
        levels = regions.levels_by_category
        regions = replace(
            regions,
            threshold=again(regions.threshold, regions.levels, "region"),
            thresholds={
                name: made
                for name, one in regions.thresholds.items()
                if (made := again(one, levels.get(name, ()), "region")) is not None
            },
        )
    return replace(
        record,
        threshold=again(record.threshold, record.calibration_scores, "alarm"),
        thresholds={name: one for name, one in thresholds.items() if one is not None},
        regions=regions,
    )


def _colours() -> str:
    """The colours of the heatmap, plasma as in every picture of blemish: 256 of RGB in hexadecimal
    digits."""
    values = np.arange(256, dtype=np.uint8)[:, None]
    coloured = cv2.applyColorMap(values, cv2.COLORMAP_PLASMA).reshape(256, 3)[:, ::-1]
    return bytes(coloured.tobytes()).hex()

"""What artifacts of format 1 hold under other names, and how it is called today: one table of each.

A name that changes is added here, and nowhere else; nothing that a file says is taken on trust yet.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from blemish import config
from blemish.errors import ConfigError

if TYPE_CHECKING:
    from torch import Tensor

NORMALITY = "normality."  # how the names of a part's tensors begin
FORMAT = 1  # of artifacts, in which all has the names of before
METHODS = {"atacnet": "lda", "atacnet-paper": "atacnet"}
_TRAINED = {"pictures_per_step": "train_batch_size"}
# Of each method, by the name that it has today. "" = there is no such setting any more.
SETTINGS: dict[str, dict[str, str]] = {
    "agpnet": _TRAINED,
    "apmask": _TRAINED,
    "atacnet": _TRAINED,
    "guided": {
        **_TRAINED,
        "tuned": "trainable_blocks",
        "detection": "cross_entropy_weight",
        "segmentation": "dice_weight",
        "marking": "bce_weight",
        "learned": "head_weight",
        "small_pieces": "",
    },
    "lda": {"described": "descriptor_layers"},
}
# Settings that came when there were artifacts already, and the value at which all is as before.
ADDED: dict[str, dict[str, Any]] = {
    "atacnet": {"extractor_rate": 1.0},
    "guided": {"blend_x_rays": True, "map_stride": 4, "adaptation_guard": True},
}
# How the names of tensors begin.
TENSORS = {
    "guided": {
        "marker.": "segmentation_head.",
        "mix.": "attention_mix.",
        "head.": "class_head.",
        "usual": "reference.moments",
        "limits": "reference.drift_limits",
        "tokens": "reference.patch_counts",
        "statistics": "reference.entropies",
    },
    "lda": {"usual": "normality_scores", "unusual": "defect_scores"},
}


def manifest_of_today(values: Mapping[str, Any]) -> Mapping[str, Any]:
    """The manifest of an artifact, under today's names. Raises: ConfigError."""
    if values.get("format") != FORMAT:
        return values
    method = METHODS.get(str(values.get("method")), values.get("method"))
    try:
        settings = settings_of_today(str(method), {"flips": False, **values["config"]})
    except (TypeError, ValueError, AttributeError, KeyError) as error:  # older forms are presumed
        raise ConfigError(f"config: is not as any version has written it ({error})") from error
    return {**values, "method": method, "config": settings}


def settings_of_today(method: str, values: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of a method, under their names and in the meaning of today."""
    names = SETTINGS.get(method, {})
    today = {names.get(key, key): value for key, value in values.items() if names.get(key, key)}
    if "noise_floor" in today:
        today = _without_floor(today)
    if "normality_settings" in today:
        normality = today.get("normality", "patchcore")
        inner = settings_of_today(normality, config.assigned(today["normality_settings"]))
        added = (
            ADDED.get(normality, {}).keys() - config.assigned(today["normality_settings"]).keys()
        )
        today["normality_settings"] = [
            f"{key}={json.dumps(value)}" for key, value in inner.items() if key not in added
        ]
    return {**ADDED.get(method, {}), **today}


def _without_floor(values: dict[str, Any]) -> dict[str, Any]:
    """AGPNet's noise was α(t) · (floor + (1 - floor) · N(A)), in standard deviations of F. What it
    becomes has the same noise from `noise_until` on."""
    floor = values.pop("noise_floor")
    low, high = values.get("noise_low", 0.0), values.get("noise_high", 1.0)
    values |= {"noise_low": (1 - floor) * low, "noise_high": (1 - floor) * high}
    return {**values, "beta": floor * high, "noise_unit": "std"}


def tensors_of_today(values: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors of an artifact under today's names. `values`: its manifest as it was read."""
    if values.get("format") != FORMAT:
        return dict(tensors)
    today = manifest_of_today(values)
    method, settings = today["method"], today["config"]
    if method != "lda":
        return _renamed(method, tensors, settings)
    own: dict[str, Tensor] = {}
    inner: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        of = inner if name.startswith(NORMALITY) else own
        of[name.removeprefix(NORMALITY)] = tensor
    inner_settings = config.assigned(settings.get("normality_settings", ()))
    inner = _renamed(settings.get("normality", ""), inner, inner_settings)
    return {
        **_renamed("lda", own, settings),
        **{NORMALITY + name: tensor for name, tensor in inner.items()},
    }


def _renamed(
    method: str, tensors: Mapping[str, Tensor], settings: Mapping[str, Any]
) -> dict[str, Tensor]:
    names, found = TENSORS.get(method, {}), {}
    for name, tensor in tensors.items():
        begins = next((begin for begin in names if name.startswith(begin)), "")
        found[names.get(begins, "") + name.removeprefix(begins)] = tensor
    if method == "guided":
        if (both := found.pop("chance", None)) is not None and both.numel() == 2:
            found["reference.entropy_limit"], found["reference.pictures"] = both.clone().unbind()
        if settings.get("score", "map") == "map" and settings.get("adaptation") != "entropies":
            # A head that nothing reads, in the first of them.
            found = {
                name: each for name, each in found.items() if not name.startswith("class_head.")
            }
    return found

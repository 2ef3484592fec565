"""From an artifact to a detector of PyTorch: all that it says is held against what can be."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from blemish import artifact
from blemish.backbones import Backbone, hollow, restore
from blemish.compute import pick_device, pick_precision, precision_like
from blemish.config import short
from blemish.detector.learned import check_foreground, detector_of, place
from blemish.detector.manifest import BackboneRecord, Manifest, read_manifest, undescribed
from blemish.detector.predict import Detector
from blemish.errors import ArtifactError, BlemishError, ConfigError
from blemish.methods import Method, MethodConfig, method_class
from blemish.methods.capabilities import TakesSecond
from blemish.methods.earlier import tensors_of_today


def restored(path: str | Path, *, device: str, precision: str) -> Detector:
    """As of `loading.load`, of an artifact."""
    tensors, values = artifact.read(path)
    record = read_manifest(path, values)
    try:
        kind = method_class(record.method)
        settings = kind.Config.restored(record.config)
        with hollow():
            empty = _method(kind, settings, record)
        _check(empty, record)
    except BlemishError as error:
        raise undescribed(path, error) from error
    try:
        tensors = tensors_of_today(values, tensors)
        empty.check_state(tensors)
        method = _method(kind, settings, record)
        method.restore_state(tensors)
    except ArtifactError as error:
        raise ArtifactError(
            f"{path}: {error}; another state of blemish has written it: fit it again"
        ) from error
    chosen = pick_device(device)
    if precision == "auto":
        dtype = precision_like(record.precision, chosen)
    else:
        dtype = pick_precision(precision, chosen)
    place(method, chosen, dtype)
    return detector_of(method, record)


def _method(kind: type[Method], settings: MethodConfig, record: Manifest) -> Method:
    """The one that an artifact holds, with its encoders, of unset weights. Raises: ConfigError."""
    method, second = kind(settings, _encoder("backbone", record.backbone)), record.second
    wanted = method.wants_second if isinstance(method, TakesSecond) else ""
    if wanted != ("" if second is None else second.spec.name):
        raise ConfigError(f"config.second: {short(wanted)} is not second.spec.name")
    if second is None:
        return method
    if not isinstance(method, TakesSecond):
        raise ConfigError(f"second: {method.name} has no second encoder")
    before = method.config
    method.take_second(_encoder("second", second))
    for each in dataclasses.fields(before):
        if getattr(before, each.name) != getattr(method.config, each.name):
            raise ConfigError(f"config.{each.name}: names no layer")
    return method


def _encoder(field: str, record: BackboneRecord) -> Backbone:
    """The one that a field of an artifact names. Raises: ConfigError."""
    try:
        return restore(record.spec, record.weights)
    except BlemishError as error:
        raise ConfigError(f"{field}.spec.{error}") from error
    except Exception as error:  # of timm's thousand models not every one is as blemish takes it
        name = record.spec.timm_name
        raise ConfigError(
            f"{field}.spec.timm_name: {name} cannot be built here ({error})"
        ) from error


def _check(method: Method, record: Manifest) -> None:
    """Whether what an artifact says of its parts goes together. `method`: without storage.

    Raises: ConfigError.
    """
    height, width = method.scoring_size
    preprocessing, backbone = record.preprocessing, method.backbone
    if method.config.backbone != backbone.spec.name:
        raise ConfigError(
            f"config.backbone: {short(method.config.backbone)} is not backbone.spec.name"
        )
    if (preprocessing.height, preprocessing.width) != (height, width):
        raise ConfigError(
            "preprocessing.height, preprocessing.width: "
            f"{preprocessing.height}×{preprocessing.width} is not the size that the settings give "
            f"(image_size, scales, zoom), {height}×{width}"
        )
    try:
        seen = backbone.shapes(height, width, method.config.layers)
    except ConfigError:
        raise
    except Exception as error:  # as in `_backbone`
        name = backbone.spec.timm_name
        raise ConfigError(
            f"backbone.spec.timm_name: {name} cannot be used here ({error})"
        ) from error
    foreground, dim = record.foreground, seen.tokens[-1].shape[2]
    if foreground is not None:
        check_foreground(method)
        if foreground.learned and len(foreground.direction) != dim:
            raise ConfigError(
                f"foreground.direction: {dim} numbers are needed, got {len(foreground.direction)}"
            )
    known = record.category_features
    if known is not None and len(known.spread) != dim:
        raise ConfigError(
            f"category_features.spread: {dim} numbers are needed, got {len(known.spread)}"
        )

"""A fitted detector: files or arrays in, predictions out."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from blemish import artifact, config
from blemish.backbones import BackboneSpec, WeightsInfo, restore
from blemish.compute import pick_device, pick_precision
from blemish.data.folder import find_pictures
from blemish.data.stream import load_picture, map_ahead
from blemish.data.transforms import Preprocessing, prepare
from blemish.errors import (
    ArtifactError,
    BlemishError,
    ConfigError,
    DataError,
    ImageError,
    NonFiniteError,
    unknown_name,
)
from blemish.images import Picture
from blemish.methods import Method, method_class
from blemish.thresholds import Threshold, verdict
from blemish.types import Failure, Prediction, Sample

BATCH_SIZE = 8


class Detector:
    """A fitted method with its preprocessing, threshold and manifest.

    Made by `blemish.fit` or `blemish.load`; not by hand.

    Attributes:
        method: the fitted network. preprocessing: how pictures reach it.
        threshold: with the false-alarm rate and its guarantee; its `value` is None where n was too small for the
            rate; None altogether where nothing was held out for it.
        categories: the names of what it was fitted on; empty for one kind of part.
        thresholds: of each category, its own; without a value where its pictures were too few.
        manifest: everything that the artifact says of itself (JSON-ready).
        map_scale: (low, high) of the heatmaps' colours: the median of normal maps, and twice their 99.9 % point
            above it.
    """

    def __init__(
        self,
        method: Method,
        preprocessing: Preprocessing,
        threshold: Threshold | None,
        manifest: Mapping[str, Any],
    ) -> None:
        self.method = method
        self.preprocessing = preprocessing
        self.threshold = threshold
        self.manifest = {**manifest, "threshold": None if threshold is None else threshold.to_dict()}
        self.categories = tuple(manifest.get("categories", ()))
        self.thresholds = {name: Threshold.from_dict(values) for name, values in manifest.get("thresholds", {}).items()}
        low, high = manifest["map_scale"]
        self.map_scale = (float(low), float(high))

    @property
    def device(self) -> torch.device:
        return next(self.method.backbone.parameters()).device

    def threshold_for(self, category: str = "") -> Threshold | None:
        """The threshold by which a picture of this category is judged: its own, or else the common one.

        Raises: ConfigError for a category that it was not fitted on, with the nearest name.
        """
        if category and category not in self.categories:
            if not self.categories:
                raise ConfigError(f"category {category!r}: the artifact knows no categories; leave it out")
            raise unknown_name("category", category, self.categories)
        own = self.thresholds.get(category)
        return self.threshold if own is None or own.value is None else own

    def predict(self, source: Any, category: str = "") -> Prediction:
        """Score, verdict and heatmap of one picture.

        Args:
            source: a path, a PIL image, a `Sample`, or an array (H W, H W 1, H W 3 or H W 4; uint8, uint16, bool, or
                float in [0, 1]).
            category: as of `predict_many`.
        Raises: ImageError when it cannot be decoded; ConfigError for an unknown category.

        Example:
            >>> import blemish, numpy as np
            >>> good = [np.full((32, 32, 3), 90 + i, dtype=np.uint8) for i in range(3)]
            >>> detector = blemish.fit("knn", good, backbone="test_vit", weights="random", image_size=32)
            >>> detector.predict(good[0]).heatmap.shape
            (32, 32)
        """
        found = _expand([source])
        if len(found) > 1:
            raise DataError(f"{source}: stands for {len(found)} pictures; predict_many takes more than one")
        (result,) = self.predict_many(found, category=category)
        if isinstance(result, Failure):
            raise ImageError(result.source, result.reason)
        return result

    def predict_many(
        self, sources: Iterable[Any], *, category: str = "", batch_size: int = BATCH_SIZE
    ) -> Iterator[Prediction | Failure]:
        """Predictions in the order of `sources`, computed as they are asked for; a Failure for each broken picture.

        Args:
            sources: paths (files, folders, globs), PIL images, arrays, `Sample`s, in any mixture.
            category: of all of them, one of `categories`: its threshold judges. "" = not known: the common threshold
                does. A `Sample` that says its own category is judged as that, where it is known here.
            batch_size: pictures at once.
        Raises: ConfigError for an unknown category; DataError for a path that does not exist; NonFiniteError when a
            score is not finite.
        """
        self.threshold_for(category)  # refuses an unknown one before any work
        items = [(index, source, category) for index, source in enumerate(_expand(sources))]
        loaded = map_ahead(self._load, items, ahead=2 * batch_size)
        chunk: list[_Loaded | Failure] = []
        for one in loaded:
            chunk.append(one)
            if len(chunk) == batch_size:
                yield from self._score(chunk)
                chunk = []
        yield from self._score(chunk)

    def _load(self, item: tuple[int, Any, str]) -> _Loaded | Failure:
        index, source, category = item
        if isinstance(source, Sample):
            if source.category:
                category = source.category if source.category in self.categories else ""
            source = source.path
        picture = load_picture(source, index, self.preprocessing.decode_window())
        if isinstance(picture, Failure):
            return picture
        picture.digest  # noqa: B018 — computed here, in the pool, instead of on the main thread
        return _Loaded(picture, prepare(picture, self.preprocessing), category)

    def _score(self, chunk: Sequence[_Loaded | Failure]) -> Iterator[Prediction | Failure]:
        loaded = [one for one in chunk if not isinstance(one, Failure)]
        results: Iterator[Prediction] = iter(())
        if loaded:
            with torch.inference_mode():
                scores = self.method.score(torch.stack([one.tensor for one in loaded]).to(self.device))
            results = map(
                self._prediction,
                loaded,
                scores.image.float().cpu().tolist(),
                scores.maps.float().cpu().numpy(),
            )
        for one in chunk:
            yield one if isinstance(one, Failure) else next(results)

    def _prediction(self, one: _Loaded, score: float, anomaly_map: np.ndarray) -> Prediction:
        picture = one.picture
        if not (np.isfinite(score) and np.isfinite(anomaly_map).all()):
            raise NonFiniteError(f"{picture.source}: the score is not finite; the detector or the picture is damaged")
        threshold = self.threshold_for(one.category)
        limit = None if threshold is None else threshold.value
        return Prediction(
            source=picture.source,
            score=score,
            threshold=limit,
            label=verdict(score, limit),
            size=picture.size,
            anomaly_map=anomaly_map,
            digest=picture.digest,
            notes=picture.notes,
            category=one.category,
        )

    def save(self, path: str | Path) -> Path:
        """Write the artifact, whole or not at all. Raises: OutputError."""
        state = {name: tensor.detach().cpu() for name, tensor in self.method.fitted_state().items()}
        return artifact.write(path, state, self.manifest)

    def with_threshold(self, threshold: Threshold | None) -> Detector:
        """The same detector with another threshold, for every category."""
        return Detector(self.method, self.preprocessing, threshold, {**self.manifest, "thresholds": {}})


@dataclass(frozen=True, slots=True)
class _Loaded:
    """A decoded picture, as the method takes it (3 H W), and the category it is to be judged as."""

    picture: Picture
    tensor: torch.Tensor
    category: str


def load(path: str | Path, *, device: str = "auto", precision: str = "auto") -> Detector:
    """The detector in an artifact; nothing is fetched, the artifact carries its backbone.

    Args:
        device: auto, cpu, cuda, cuda:1, mps.
        precision: auto (bf16 where the hardware computes in it), fp32, bf16, fp16.
    Raises: ArtifactError for a file that is not a whole, unaltered artifact of a known format.
    """
    tensors, manifest = artifact.read(path)
    try:
        kind = method_class(manifest["method"])
        settings = config.from_dict(kind.Config, manifest["config"])
        spec = config.from_dict(BackboneSpec, manifest["backbone"]["spec"])
        info = WeightsInfo.from_dict(manifest["backbone"]["weights"])
        preprocessing = config.from_dict(Preprocessing, manifest["preprocessing"])
        threshold = None if manifest["threshold"] is None else Threshold.from_dict(manifest["threshold"])
        method = kind(settings, restore(spec, info))
        detector = Detector(method, preprocessing, threshold, manifest)
    except (KeyError, TypeError, ValueError, AttributeError, BlemishError) as error:
        raise ArtifactError(
            f"{path}: the manifest does not describe a detector that this blemish knows ({error})"
        ) from error
    method.restore_state(tensors)
    chosen = pick_device(device)
    place(method, chosen, pick_precision(precision, chosen))
    return detector


def place(method: Method, device: torch.device, dtype: torch.dtype) -> None:
    """Move a method to a device, its backbone in `dtype` (what it has learned keeps its own precision)."""
    method.to(device).eval()
    method.backbone.to(dtype)


def describe(method: Method, preprocessing: Preprocessing) -> dict[str, Any]:
    """The part of the manifest that `load` rebuilds a method from."""
    return {
        "method": method.name,
        "config": config.to_dict(method.config),
        "preprocessing": config.to_dict(preprocessing),
        "backbone": {"spec": config.to_dict(method.backbone.spec), "weights": method.backbone.info.to_dict()},
    }


def _expand(sources: Iterable[Any]) -> list[Any]:
    """Paths opened up to the pictures they stand for; everything else as it is."""
    expanded: list[Any] = []
    for source in sources:
        # A link that leads nowhere is a broken picture among others, as in a folder.
        path = source.path if isinstance(source, Sample) else source
        if not isinstance(path, (str, Path)) or _dangles(Path(path)):
            expanded.append(source)
        elif isinstance(source, Sample):
            expanded.extend(replace(source, path=found) for found in find_pictures(source.path))
        else:
            expanded.extend(find_pictures(source))
    return expanded


def _dangles(path: Path) -> bool:
    return path.is_symlink() and not path.exists()

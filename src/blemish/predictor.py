"""A fitted detector: files or arrays in, predictions out."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import partial
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
from blemish.errors import ArtifactError, BlemishError, DataError, ImageError, NonFiniteError
from blemish.images import Picture
from blemish.methods import Method, method_class
from blemish.thresholds import Threshold, verdict
from blemish.types import Failure, Prediction

BATCH_SIZE = 8


class Detector:
    """A fitted method with its preprocessing, threshold and manifest.

    Made by `blemish.fit` or `blemish.load`; not by hand.

    Attributes:
        method: the fitted network. preprocessing: how pictures reach it.
        threshold: with the false-alarm rate and its guarantee; its `value` is None where n was too small for the
            rate; None altogether where nothing was held out for it.
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
        low, high = manifest["map_scale"]
        self.map_scale = (float(low), float(high))

    @property
    def device(self) -> torch.device:
        return next(self.method.backbone.parameters()).device

    def predict(self, source: Any) -> Prediction:
        """Score, verdict and heatmap of one picture.

        Args: source: a path, a PIL image, or an array (H W, H W 1, H W 3 or H W 4; uint8, uint16, bool, or float in
            [0, 1]).
        Raises: ImageError when it cannot be decoded.

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
        (result,) = self.predict_many(found)
        if isinstance(result, Failure):
            raise ImageError(result.source, result.reason)
        return result

    def predict_many(self, sources: Iterable[Any], *, batch_size: int = BATCH_SIZE) -> Iterator[Prediction | Failure]:
        """Predictions in the order of `sources`, computed as they are asked for; a Failure for each broken picture.

        Args: sources: paths (files, folders, globs), PIL images, arrays, in any mixture. batch_size: pictures at once.
        Raises: DataError for a path that does not exist; NonFiniteError when a score is not finite.
        """
        items = list(enumerate(_expand(sources)))
        loaded = map_ahead(self._load, items, ahead=2 * batch_size)
        chunk: list[tuple[Picture, torch.Tensor] | Failure] = []
        for one in loaded:
            chunk.append(one)
            if len(chunk) == batch_size:
                yield from self._score(chunk)
                chunk = []
        yield from self._score(chunk)

    def _load(self, item: tuple[int, Any]) -> tuple[Picture, torch.Tensor] | Failure:
        index, source = item
        picture = load_picture(source, index, self.preprocessing.decode_window())
        if isinstance(picture, Failure):
            return picture
        picture.digest  # noqa: B018 — computed here, in the pool, instead of on the main thread
        return picture, prepare(picture, self.preprocessing)

    def _score(self, chunk: Sequence[tuple[Picture, torch.Tensor] | Failure]) -> Iterator[Prediction | Failure]:
        pictures = [one for one in chunk if not isinstance(one, Failure)]
        results: Iterator[Prediction] = iter(())
        if pictures:
            with torch.inference_mode():
                scores = self.method.score(torch.stack([tensor for _, tensor in pictures]).to(self.device))
            results = map(
                partial(_prediction, self.threshold),
                [picture for picture, _ in pictures],
                scores.image.float().cpu().tolist(),
                scores.maps.float().cpu().numpy(),
            )
        for one in chunk:
            yield one if isinstance(one, Failure) else next(results)

    def save(self, path: str | Path) -> Path:
        """Write the artifact, whole or not at all. Raises: OutputError."""
        state = {name: tensor.detach().cpu() for name, tensor in self.method.fitted_state().items()}
        return artifact.write(path, state, self.manifest)

    def with_threshold(self, threshold: Threshold | None) -> Detector:
        """The same detector with another threshold."""
        return Detector(self.method, self.preprocessing, threshold, self.manifest)


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
        whole = not isinstance(source, (str, Path)) or _dangles(Path(source))
        expanded.extend([source] if whole else find_pictures(source))
    return expanded


def _dangles(path: Path) -> bool:
    return path.is_symlink() and not path.exists()


def _prediction(threshold: Threshold | None, picture: Picture, score: float, anomaly_map: np.ndarray) -> Prediction:
    if not (np.isfinite(score) and np.isfinite(anomaly_map).all()):
        raise NonFiniteError(f"{picture.source}: the score is not finite; the detector or the picture is damaged")
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
    )

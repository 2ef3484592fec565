"""A fitted detector: files or arrays in, predictions out."""

from __future__ import annotations

from collections.abc import Generator, Iterable, Iterator, Sequence
from contextlib import closing, nullcontext
from dataclasses import dataclass, replace
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from blemish import artifact
from blemish import config as configs
from blemish.backbones import Backbone, hollow, restore
from blemish.compute import pick_device, pick_precision
from blemish.config import short
from blemish.data.folder import find_pictures
from blemish.data.stream import map_ahead, name_of, of_picture
from blemish.data.transforms import Preprocessing, prepare
from blemish.detector.categories import NearestCategory, features
from blemish.detector.manifest import BackboneRecord, Manifest, read_manifest, undescribed
from blemish.detector.thresholds import Threshold, by_hand, verdict
from blemish.errors import (
    ArtifactError,
    BlemishError,
    ConfigError,
    DataError,
    ImageError,
    NonFiniteError,
    unknown_name,
)
from blemish.images import Picture, ran_out
from blemish.methods import Method, adapter_of, at_scales, method_class
from blemish.methods.adaptation import Adapted, Adapter, Mode
from blemish.methods.earlier import tensors_of_today
from blemish.types import Failure, Prediction, Sample, Scores

BATCH_SIZE = 8
AUTO = "auto"  # in place of a category's name
COMMON = "category not known: judged by the common threshold of all categories"
_NO_ROOM = "could not be scored: there was not enough memory for it alone; free some, or fit at a smaller --image-size"
ADAPTED_BATCH_SIZE = 32  # moments of fewer pictures say less


class Detector:
    """A fitted method with its preprocessing, threshold and manifest.

    Made by `blemish.fit` or `blemish.load`; not by hand.

    Attributes:
        method: the fitted network. preprocessing: how pictures reach it.
        threshold: with the false-alarm rate and its guarantee; its `value` is None where n was too small for the
            rate; None altogether where nothing was held out for it.
        categories: the names of what it was fitted on; empty for one kind of part.
        thresholds: of each category, its own; without a value where its pictures were too few.
        nearest: tells the categories apart where nobody says which it is; None for one kind of part, and in artifacts
            from before there was this.
        record: everything that the artifact says of itself; manifest: the same, JSON-ready.
        map_scale: (low, high) of the heatmaps' colours: the median of normal maps, and twice their 99.9 % point
            above it.
    """

    def __init__(self, method: Method, record: Manifest) -> None:
        self.method = method
        self.record = record
        self.manifest = record.to_dict()
        self.preprocessing = record.preprocessing
        self.threshold = record.threshold
        self.categories = record.categories
        self.thresholds = dict(record.thresholds)
        known = record.category_features
        self.nearest = None if known is None else NearestCategory.from_dict(configs.to_dict(known))
        low, high = record.map_scale
        self.map_scale = (low, high)

    @property
    def device(self) -> torch.device:
        return next(self.method.backbone.parameters()).device

    def threshold_for(self, category: str = "") -> Threshold | None:
        """The threshold by which a picture of this category is judged: its own, or else the common one, as where it is
        not known yet ("" or "auto").

        Raises: ConfigError for a category that it was not fitted on, with the nearest name; and for "auto" where it
            cannot tell categories apart.
        """
        if category == AUTO and self.categories and AUTO not in self.categories:
            if self.nearest is None:
                raise ConfigError(
                    f"category {AUTO!r}: the artifact is from before categories were told; name one of "
                    f"{', '.join(self.categories)}, or fit it again"
                )
            return self.threshold
        if category and category not in self.categories:
            if not self.categories:
                raise ConfigError(
                    f"category {category!r}: the artifact knows no categories; leave it out"
                )
            raise unknown_name("category", category, self.categories)
        own = self.thresholds.get(category)
        return self.threshold if own is None or own.value is None else own

    @property
    def learned(self) -> set[str]:
        """The digests of the pictures that it has learned from, good ones and labelled defects."""
        return {*self.record.data.fitted, *self.record.data.defects}

    def predict(self, source: Any, category: str = "") -> Prediction:
        """Score, verdict and heatmap of one picture.

        Args:
            source: a path, a file opened in binary mode or the bytes of one, a PIL image, a `Sample`, an array (H W,
                H W 1, H W 3 or H W 4; uint8, uint16, bool, or float in [0, 1]), or a tensor on any device (the same,
                or 1 H W, 3 H W or 4 H W; where both could be meant, the channels come first).
            category: as of `predict_many`.
        Raises: ImageError when it cannot be decoded; ConfigError for an unknown category.

        Example:
            >>> import blemish, numpy as np
            >>> good = [np.full((32, 32, 3), 90 + i, dtype=np.uint8) for i in range(3)]
            >>> detector = blemish.fit("knn", good, backbone="test_vit", weights="random", image_size=32)
            >>> detector.predict(good[0]).heatmap.shape
            (32, 32)
        """
        found = _opened(source)
        if len(found) > 1:
            raise DataError(
                f"{source}: stands for {len(found)} pictures; predict_many takes more than one"
            )
        (result,) = self.predict_many([*found], category=category)
        if isinstance(result, Failure):
            raise ImageError(result.source, result.reason)
        return result

    def predict_many(
        self,
        sources: Iterable[Any],
        *,
        category: str = "",
        batch_size: int | None = None,
        adapt: Mode | None = None,
    ) -> Iterator[Prediction | Failure]:
        """Predictions in the order of `sources`, computed as they are asked for; a Failure for each broken picture.

        An iterator, as one over the frames of a camera, is consumed only as far as needed: the first prediction has
        taken at most 2 × `batch_size` - 1 pictures from it, so one with a `batch_size` of 1, and no prediction waits
        for more than `batch_size` - 1 pictures beyond its batch. Of a list up to 2 × `batch_size` pictures are decoded
        ahead. No more than that is ever held. Ended early (`close`), it closes a generator that it was given.

        Args:
            sources: what `predict` takes, and folders and globs, in any mixture. Of a list every path is looked up
                before any work; of an iterator when it is reached.
            category: of all of them, one of `categories`: its threshold judges. "" = not known: where there are several
                each picture is assigned to the nearest by its features, which the prediction says, or in artifacts
                from before there was this judged by the common threshold, with a note; "auto" = the same, or an error
                there. A `Sample` that says its own category is judged as that, where it is known here.
            batch_size: pictures at once; None = 8, or 32 where the detector adapts to them.
            adapt: "online" or "episodic": follow the pictures, batch by batch, where the method can; see
                `blemish.methods.adaptation`. The scores then depend on the batch, and the threshold's guarantee is
                void: such predictions say `adapted`. Afterwards the detector is as before.
        Raises: ConfigError for an unknown category, or a method that cannot adapt; DataError for a path in a list that
            does not exist (from an iterator it is a Failure, for those before it are not to be lost); NonFiniteError
            when a score is not finite.
        """
        self.threshold_for(category)  # refuses an unknown one before any work
        adapter = None if adapt is None else adapter_of(self.method, adapt)
        size = batch_size or (BATCH_SIZE if adapter is None else ADAPTED_BATCH_SIZE)
        given = _several(sources)
        listed = isinstance(given, (list, tuple))
        found = [one for source in given for one in _opened(source)] if listed else _expanded(given)
        items = ((index, source, category) for index, source in enumerate(found))
        loads = map_ahead(self._load, items, ahead=2 * size if listed else size - 1)
        with closing(given) if isinstance(given, Generator) else nullcontext(), closing(loads):
            for chunk in _chunks(loads, size):
                yield from self._score(chunk, adapter)

    def _load(self, item: tuple[int, Any, str]) -> _Loaded | Failure:
        index, source, category = item
        if isinstance(source, Failure):
            return source
        known: str | None = category
        if category in ("", AUTO) and category not in self.categories:
            known = None if self.categories else ""
        if isinstance(source, Sample):
            if source.category:
                known = source.category if source.category in self.categories else ""
            source = source.path

        def needed(picture: Picture) -> _Loaded:
            return _Loaded(
                picture.source,
                picture.size,
                picture.digest,
                picture.notes,
                self._prepare(picture),
                known,
            )

        # All that is needed of it is computed here, in the pool: its pixels would fill the memory.
        return of_picture(needed, source, index, self.preprocessing.decode_window())

    def _prepare(self, picture: Picture) -> torch.Tensor:
        """The picture as the method takes it: 3 H W."""
        return prepare(picture, self.preprocessing)

    def _score(
        self, chunk: Sequence[_Loaded | Failure], adapter: Adapter | None
    ) -> Iterator[Prediction | Failure]:
        results = iter(
            self._predictions([one for one in chunk if isinstance(one, _Loaded)], adapter)
        )
        for one in chunk:
            yield one if isinstance(one, Failure) else next(results)

    def _predictions(
        self, loaded: list[_Loaded], adapter: Adapter | None
    ) -> Iterator[Prediction | Failure]:
        """Of a batch. Where memory runs out for it, of its halves; a single picture then fails.

        Not where the detector adapts: what it makes of a picture depends on the whole batch.
        """
        if not loaded:
            return iter(())
        try:
            return self._of_a_batch(loaded, adapter)
        except Exception as error:
            if adapter is not None or not ran_out(error):
                raise
        # Outside the handler: what the batch had taken is let go with the error's frames.
        if len(loaded) == 1:
            return iter((Failure(source=loaded[0].source, reason=_NO_ROOM),))
        middle = len(loaded) // 2
        return chain(
            self._predictions(loaded[:middle], None), self._predictions(loaded[middle:], None)
        )

    def _of_a_batch(self, loaded: list[_Loaded], adapter: Adapter | None) -> Iterator[Prediction]:
        images = torch.stack([one.tensor for one in loaded]).to(self.device)
        if adapter is None:
            with torch.inference_mode():
                found = Adapted(self._judged(images), adapted=False)
        else:
            found = adapter.score(images)
        loaded = self._assigned(loaded, images)
        scores = found.scores
        without = [None] * len(loaded)  # of what a method does not tell
        return map(
            partial(self._prediction, found=found),
            loaded,
            scores.image.float().cpu().tolist(),
            scores.maps.float().cpu().numpy(),
            without if scores.votes is None else scores.votes.cpu().tolist(),
            without if scores.saliency is None else scores.saliency.float().cpu().numpy(),
            without if scores.boxes is None else map(tuple, scores.boxes.float().cpu().tolist()),
        )

    def _judged(self, images: torch.Tensor) -> Scores:
        return self.method.score(images)

    def _assigned(self, loaded: list[_Loaded], images: torch.Tensor) -> list[_Loaded]:
        """The same, each with the category that it is judged as. `images`: theirs, B 3 H W."""
        unsaid = [place for place, one in enumerate(loaded) if one.category is None]
        if self.nearest is None:
            for place in unsaid:
                loaded[place] = replace(
                    loaded[place], category="", notes=(*loaded[place].notes, COMMON)
                )
        elif unsaid:
            with torch.inference_mode():
                found = features(self.method.backbone, self.method.config.layers, images[unsaid])
            for place, name in zip(unsaid, self.nearest.of(found), strict=True):
                loaded[place] = replace(loaded[place], category=name, assigned=True)
        return loaded

    def _prediction(
        self,
        one: _Loaded,
        score: float,
        anomaly_map: np.ndarray,
        votes: float | None,
        saliency: np.ndarray | None,
        box: tuple[float, float, float, float] | None,
        *,
        found: Adapted,
    ) -> Prediction:
        found_in_it: dict[str, Any] = {
            "score": score,
            "map": anomaly_map,
            "saliency": saliency,
            "crop": box,
        }
        for what, value in found_in_it.items():
            if value is not None and not np.isfinite(value).all():
                raise NonFiniteError(
                    f"{one.source}: the {what} is not finite; the detector or the picture is damaged"
                )
        threshold = self.threshold_for(one.category or "")
        limit = None if threshold is None else threshold.value
        return Prediction(
            source=one.source,
            score=score,
            threshold=limit,
            label=verdict(score, limit),
            size=one.size,
            anomaly_map=anomaly_map,
            digest=one.digest,
            notes=(*one.notes, found.note) if found.note else one.notes,
            category=one.category or "",
            category_assigned=one.assigned,
            adapted=found.adapted,
            votes=votes,
            saliency=saliency,
            box=box,
        )

    def save(self, path: str | Path) -> Path:
        """Write the artifact, whole or not at all. Raises: OutputError."""
        state = {name: tensor.detach().cpu() for name, tensor in self.method.fitted_state().items()}
        return artifact.write(path, state, self.manifest)

    def with_threshold(self, threshold: Threshold | float | None) -> Detector:
        """The same detector with another threshold, for every category: a number is one that was set by hand.

        Raises: NonFiniteError for a number that is NaN or infinite; ConfigError for what is no threshold.
        """
        if threshold is not None and not isinstance(threshold, Threshold):
            threshold = by_hand(threshold)
        return Detector(self.method, replace(self.record, threshold=threshold, thresholds={}))

    def with_scales(self, scales: Sequence[int]) -> Detector:
        """The same detector, looking at pictures in other sizes, each the side of a square in pixels.

        Scores of other sizes are other scores: it has no threshold until it is calibrated anew.

        Raises: ConfigError for a method that looks at one size only.
        """
        method = at_scales(self.method, scales)
        if method is self.method:
            return self
        height, width = method.scoring_size
        preprocessing = replace(self.preprocessing, height=height, width=width)
        threshold = self.threshold
        if threshold is not None:
            reason = (
                "calibrated at other sizes; `blemish calibrate --scales` sets a threshold for these"
            )
            threshold = replace(threshold, value=None, guarantee="", reason=reason)
        return Detector(
            method,
            replace(
                self.record, **describe(method, preprocessing), threshold=threshold, thresholds={}
            ),
        )


@dataclass(frozen=True, slots=True)
class _Loaded:
    """What is kept of a decoded picture: as the method takes it (3 H W), and the category it is to be judged as: None =
    still to be assigned, which `assigned` then says."""

    source: str
    size: tuple[int, int]
    digest: str
    notes: tuple[str, ...]
    tensor: torch.Tensor
    category: str | None
    assigned: bool = False


def load(path: str | Path, *, device: str = "auto", precision: str = "auto") -> Detector:
    """The detector in an artifact; nothing is fetched, the artifact carries its backbone.

    Args:
        device: auto, cpu, cuda, cuda:1, mps.
        precision: auto (bf16 where the hardware computes in it), fp32, bf16, fp16.
    Raises: ArtifactError for a file that is not a whole, unaltered artifact of a known format, or of which a field or
        a tensor cannot be: before anything is built, everything is held against what a detector of its settings has.
    """
    tensors, values = artifact.read(path)
    record = read_manifest(path, values)
    try:
        kind = method_class(record.method)
        settings = kind.Config.restored(record.config)
        with hollow():
            empty = kind(settings, _backbone(record))
        _check(empty, record)
    except BlemishError as error:
        raise undescribed(path, error) from error
    try:
        tensors = tensors_of_today(values, tensors)
        empty.check_state(tensors)
        method = kind(settings, _backbone(record))
        method.restore_state(tensors)
    except ArtifactError as error:
        raise ArtifactError(
            f"{path}: {error}; another state of blemish has written it: fit it again"
        ) from error
    chosen = pick_device(device)
    place(method, chosen, pick_precision(precision, chosen))
    return Detector(method, record)


def _backbone(record: Manifest) -> Backbone:
    """The backbone that an artifact names, with unset weights. Raises: ConfigError."""
    spec = record.backbone.spec
    try:
        return restore(spec, record.backbone.weights)
    except BlemishError as error:
        raise ConfigError(f"backbone.spec.{error}") from error
    except (
        Exception
    ) as error:  # timm has a thousand models, and not every one is what blemish takes it for
        raise ConfigError(
            f"backbone.spec.timm_name: {spec.timm_name} cannot be built here ({error})"
        ) from error


def _check(method: Method, record: Manifest) -> None:
    """Whether what an artifact says of its parts goes together. `method`: without storage. Raises: ConfigError."""
    height, width = method.scoring_size
    preprocessing, backbone = record.preprocessing, method.backbone
    if method.config.backbone != backbone.spec.name:
        raise ConfigError(
            f"config.backbone: {short(method.config.backbone)} is not backbone.spec.name"
        )
    if (preprocessing.height, preprocessing.width) != (height, width):
        raise ConfigError(
            f"preprocessing.height, preprocessing.width: {preprocessing.height}×{preprocessing.width} is not the size "
            f"that the settings give (image_size, scales, zoom), {height}×{width}"
        )
    try:
        seen = backbone.shapes(height, width, method.config.layers)
    except ConfigError:
        raise
    except Exception as error:  # as of `_backbone`
        name = backbone.spec.timm_name
        raise ConfigError(
            f"backbone.spec.timm_name: {name} cannot be used here ({error})"
        ) from error
    known = record.category_features
    if known is not None and len(known.spread) != seen.tokens[-1].shape[2]:
        raise ConfigError(
            f"category_features.spread: {seen.tokens[-1].shape[2]} numbers are needed, got {len(known.spread)}"
        )


def place(method: Method, device: torch.device, dtype: torch.dtype) -> None:
    """Move a method to a device, to compute in `dtype` there."""
    method.to(device).eval()
    method.set_precision(dtype)


def describe(method: Method, preprocessing: Preprocessing) -> dict[str, Any]:
    """The fields of the manifest that `load` rebuilds a method from."""
    return {
        "method": method.name,
        "config": configs.to_dict(method.config),
        "preprocessing": preprocessing,
        "backbone": BackboneRecord(spec=method.backbone.spec, weights=method.backbone.info),
    }


def _several(sources: Any) -> Iterable[Any]:
    """What `predict_many` was given as what to go through: a single picture is a list of one."""
    shape = tuple(getattr(sources, "shape", ()))
    channels = (shape[:1] if isinstance(sources, torch.Tensor) else ()) + shape[2:]
    one = isinstance(sources, (str, Path, bytes, Sample, Image.Image)) or hasattr(sources, "read")
    if one or len(shape) == 2 or (len(shape) == 3 and not {1, 3, 4}.isdisjoint(channels)):
        return [sources]
    given: Iterable[Any] = sources
    return given


def _expanded(sources: Iterable[Any]) -> Iterator[Any]:
    """What the sources stand for, as it is asked for; a Failure in the place of a path that leads nowhere."""
    for index, source in enumerate(sources):
        try:
            found = _opened(source)
        except DataError as error:
            name = name_of(source.path if isinstance(source, Sample) else source, index)
            found = [Failure(source=name, reason=str(error).removeprefix(f"{name}: "))]
        yield from found


def _opened(source: Any) -> Sequence[Any]:
    """The pictures that a source stands for: itself, where it is no path. Raises: DataError."""
    path = source.path if isinstance(source, Sample) else source
    # A link that leads nowhere is a broken picture among others, as in a folder.
    if not isinstance(path, (str, Path)) or _dangles(Path(path)):
        return [source]
    if isinstance(source, Sample):
        return [replace(source, path=found) for found in find_pictures(source.path)]
    return find_pictures(source)


def _is_full(pictures: int, readable: int, size: int) -> bool:
    """Whether a batch of so many pictures, `readable` of them, takes no more."""
    return readable in (0, size) or pictures == 4 * size


def batch_begun(readable: Iterable[bool], size: int) -> int:
    """How many of the latest pictures are in a batch that is not full, by whether each was readable.

    Scores of other batches differ in the last digit, as sums are taken in another order: who goes on from here to the
    same scores begins so many pictures earlier.
    """
    pictures = good = 0
    for one in readable:
        pictures, good = pictures + 1, good + one
        if _is_full(pictures, good, size):
            pictures = good = 0
    return pictures


def _chunks(loads: Iterable[_Loaded | Failure], size: int) -> Iterator[list[_Loaded | Failure]]:
    """In order, `size` pictures at a time with the broken ones among them; a broken one waits for no good one."""
    chunk: list[_Loaded | Failure] = []
    readable = 0
    try:
        for one in loads:
            chunk.append(one)
            readable += isinstance(one, _Loaded)
            if _is_full(len(chunk), readable, size):
                yield chunk
                chunk, readable = [], 0
    except Exception:  # of the iterator that they come from: what it gave before is not lost
        yield chunk
        raise
    yield chunk


def _dangles(path: Path) -> bool:
    return path.is_symlink() and not path.exists()

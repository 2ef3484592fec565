"""A fitted detector: files or arrays in, predictions out."""

from __future__ import annotations

import copy
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import closing, nullcontext
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from blemish import config as configs
from blemish.data.areas import read_area
from blemish.detector import scoring
from blemish.detector.manifest import Manifest
from blemish.detector.reading import AUTO, BrokenTile, Loaded, Reading
from blemish.detector.sources import chunks, expanded, opened, several
from blemish.detector.spaces import space_of
from blemish.detector.stitching import Found, Stitching, rows_of
from blemish.detector.thresholds import RegionThresholds, Threshold, by_hand, p_value, verdict
from blemish.engines.base import Engine, Precision
from blemish.errors import ConfigError, DataError, ImageError, unknown_name
from blemish.images import LIMITS, Limits, ran_out
from blemish.machine import FREE_MEMORY
from blemish.types import Failure, Mode, Prediction, Progress, silent

if TYPE_CHECKING:
    from blemish.methods import Method

BATCH_SIZE = 8
ADAPTED_BATCH_SIZE = 32  # moments of fewer pictures say less
COMMON = "category not known: judged by the common threshold of all categories"
NARROWED = (
    "only a part of it counts: the threshold is that of whole pictures, so that at most as many "
    "good ones raise an alarm as it promises"
)
_NO_ROOM = (
    "could not be scored: there was not enough memory for it alone; free some, or fit at a smaller "
    "--image-size"
)


class Detector:
    """A fitted method with its preprocessing, threshold and manifest.

    Made by `blemish.fit` or `blemish.load`; not by hand.

    Attributes:
        engine: what runs the fitted method.
        record: everything that the artifact says of itself; manifest: the same, JSON-ready.
        preprocessing: how pictures reach the method.
        area: where it looks, and shows what it found; None = everywhere. See `within`.
        foreground: how it tells the part, of which alone it shows what it found; None = it does
            not, as `record.foreground` says where it was asked to.
        threshold: with the false-alarm rate and its guarantee; its `value` is None where n was too
            small for the rate; None altogether where nothing was held out for it.
        categories: the names of what it was fitted on; empty for one kind of part.
        thresholds: of each category, its own; without a value where its pictures were too few.
        map_scale: (low, high) of the heatmaps' colours: the median of normal maps, and twice their
            99.9 % point above it.
    """

    def __init__(self, engine: Engine, record: Manifest) -> None:
        self.engine = engine
        self.record = record
        self.manifest = record.to_dict()
        self.preprocessing = record.preprocessing
        self.area = record.preprocessing.area
        self.foreground = scoring.in_use(record.foreground)
        self.threshold = record.threshold
        self.categories = record.categories
        self.thresholds = dict(record.thresholds)
        self.map_scale = (record.map_scale[0], record.map_scale[1])
        self._calibration_scores = np.sort(np.array(record.calibration_scores, dtype=np.float64))

    @property
    def method(self) -> Method:
        """The fitted network. Raises: ConfigError where it is an exported graph, which has none."""
        method: Method | None = getattr(self.engine, "method", None)
        if method is None:
            path = getattr(self.engine, "path", "")
            raise ConfigError(
                f"{path}: an exported graph can score and be calibrated, and no more; this needs "
                "PyTorch and the artifact that it was exported from"
            )
        return method

    @property
    def device(self) -> str:
        """Where it computes."""
        return self.engine.device

    @property
    def precision(self) -> Precision:
        """What it computes in, which is not always what its thresholds come from:
        `record.precision`."""
        return self.engine.precision

    @cached_property
    def descriptor_space(self) -> str:
        """A name of 32 hexadecimal digits for how it makes descriptors: those of two detectors can
        be compared where it is the same. It stays where only thresholds, or what was learned beside
        the encoder, have changed.
        """
        return space_of(self.record, self.precision)

    @property
    def describes(self) -> bool:
        """Whether its predictions have descriptors; those of a graph that was exported before
        there were any have none."""
        exported = self.record.export
        return exported is None or "descriptor" in exported.outputs

    @property
    def learned(self) -> set[str]:
        """The digests of the pictures that it has learned from, good ones and labelled defects."""
        return {*self.record.data.fitted, *self.record.data.defects}

    def threshold_for(self, category: str = "") -> Threshold | None:
        """The threshold by which a picture of this category is judged: its own, or else the common
        one, which also judges where the category is not known yet ("" or "auto").

        Raises: ConfigError for a category that it was not fitted on, with the nearest name; and for
            "auto" where it cannot tell categories apart.
        """
        if category == AUTO and self.categories and AUTO not in self.categories:
            if self.record.category_features is None:
                raise ConfigError(
                    f"category {AUTO!r}: the artifact is from before categories were told; name "
                    f"one of {', '.join(self.categories)}, or fit it again"
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

    def region_threshold_for(self, category: str = "") -> Threshold | None:
        """The score of the map above which regions of a picture of this category lie; None in
        artifacts from before there were regions, and where nothing was held out for it.

        Raises: ConfigError as `threshold_for`.
        """
        self.threshold_for(category)
        return None if self.record.regions is None else self.record.regions.of(category)

    @property
    def smallest_region(self) -> float:
        """The share of a picture that a region has at least."""
        return 0.0 if self.record.regions is None else self.record.regions.smallest

    def _scores_of(self, category: str) -> np.ndarray:
        """The calibration scores that a picture of this category is compared with, rising."""
        record, own = self.record, self.thresholds.get(category)
        if own is None or own.value is None:
            return self._calibration_scores
        return np.sort(record.calibration_scores_by_category.get(category, ()))

    def predict(self, source: Any, category: str = "") -> Prediction:
        """Score, verdict and heatmap of one picture.

        Args:
            source: a path, a file opened in binary mode or the bytes of one, a PIL image, a
                `Sample`, a `Frame`, an array (H W, H W 1, H W 3 or H W 4; uint8, uint16, bool, or
                float in [0, 1]), or a tensor on any device (the same, or 1 H W, 3 H W or 4 H W;
                where both could be meant, the channels come first).
            category: as of `predict_many`.
        Raises: ImageError when it cannot be decoded; ConfigError for an unknown category.

        Example:
            >>> import blemish, numpy as np
            >>> good = [np.full((32, 32, 3), 90 + i, dtype=np.uint8) for i in range(3)]
            >>> tiny = {"backbone": "test_vit", "weights": "random", "image_size": 32}
            >>> detector = blemish.fit("knn", good, **tiny)
            >>> detector.predict(good[0]).heatmap.shape
            (32, 32)
        """
        found = opened(source)
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
        engine: Engine | None = None,
        alter: Callable[[np.ndarray], np.ndarray] | None = None,
        limits: Limits = LIMITS,
        progress: Progress = silent,
    ) -> Iterator[Prediction | Failure]:
        """Predictions in the order of `sources`, computed as they are asked for; a Failure for each
        broken picture.

        An iterator, as one over the frames of a camera, is consumed only as far as needed: the
        first prediction has taken at most 2 × `batch_size` - 1 pictures from it, so one with a
        `batch_size` of 1, and no prediction waits for more than `batch_size` - 1 pictures beyond
        its batch. Of a list up to 2 × `batch_size` pictures are decoded ahead. No more than that is
        ever held. Ended early (`close`), it closes a generator that it was given.

        Args:
            sources: what `predict` takes, and folders and globs, in any mixture. Of a list every
                path is looked up before any work; of an iterator when it is reached.
            category: of all of them, one of `categories`: its threshold judges. "" = not known:
                where there are several each picture is assigned to the nearest by its features,
                which the prediction says, or in artifacts from before there was this judged by the
                common threshold, with a note; "auto" = the same, or an error there. A `Sample` that
                says its own category is judged as that, where it is known here.
            batch_size: pictures at once; None = 8, or 32 where the detector adapts to them.
            adapt: "online" or "episodic": follow the pictures, batch by batch, where the method
                can; see `blemish.methods.adaptation`. The scores then depend on the batch, and the
                threshold's guarantee is void: such predictions say `adapted`. Afterwards the
                detector is as before.
            engine: what scores in place of its own; not with `adapt`.
            alter: what is done to the pixels (H W 3) of each picture before anything else.
            limits: what each picture may ask for.
            progress: called with (picture, done, total) after each batch of tiles, but its last.
        Raises: ConfigError for an unknown category, or a method that cannot adapt; DataError for a
            path in a list that does not exist (from an iterator it is a Failure, for those before
            it are not to be lost); NonFiniteError when a score is not finite.
        """
        self.threshold_for(category)  # refuses an unknown one before any work
        engine = engine or (self.engine if adapt is None else self.engine.adapting(adapt))
        size = batch_size or (BATCH_SIZE if adapt is None else ADAPTED_BATCH_SIZE)
        given = several(sources)
        listed = isinstance(given, (list, tuple))
        found = [one for source in given for one in opened(source)] if listed else expanded(given)
        reading = self.reading(category, limits)
        reading = replace(reading, alter=alter, raw=engine.input == "pixels")
        loads = reading.loads(found, ahead=2 * size if listed else size - 1)
        stitching = Stitching.of(engine, self.area)
        with closing(given) if isinstance(given, Generator) else nullcontext(), closing(loads):
            # Batches end with the tiles of a picture: its scores then depend on no other.
            for chunk in chunks(loads, size, lambda one: one.ends_picture):
                yield from self._score(chunk, engine, stitching, whole=adapt is not None)
                if stitching.under_way is not None:
                    progress(*stitching.under_way)

    def reading(self, category: str = "", limits: Limits = LIMITS) -> Reading:
        """How it reads pictures: for who decodes them elsewhere than `predict_many` does.

        Args: category: as of `predict_many`. limits: what a picture may ask for.
        Raises: ConfigError for an unknown category.
        """
        self.threshold_for(category)
        return Reading(
            preprocessing=self.preprocessing, area=self.area, categories=self.categories,
            category=category, alter=None, raw=self.engine.input == "pixels", limits=limits,
        )  # fmt: skip

    def predict_loaded(self, loaded: Sequence[Loaded]) -> list[Prediction | Failure]:
        """Predictions of whole pictures that its `reading` has loaded, as one batch, in order.

        Raises: NonFiniteError when a score of any is not finite; EngineError.
        """
        return [*self._score(loaded, self.engine, Stitching.of(self.engine, None), whole=False)]

    def _score(
        self,
        chunk: Sequence[Loaded | Failure],
        engine: Engine,
        stitching: Stitching,
        *,
        whole: bool,
    ) -> Iterator[Prediction | Failure]:
        loaded = [one for one in chunk if isinstance(one, Loaded)]
        results = iter(self._judged(loaded, engine, whole=whole))
        for one in chunk:
            result = one if isinstance(one, Failure) else next(results)
            tile = one.tile if isinstance(one, (Loaded, BrokenTile)) else None
            if tile is not None and isinstance(result, Failure):
                if stitching.drop(tile):
                    yield Failure(source=result.source, reason=result.reason)
            elif isinstance(result, Failure):
                yield result
            elif tile is None:
                yield self._prediction(result)
            elif (found := stitching.add(tile, result.found)) is not None:
                yield self._prediction(replace(result, found=found))

    def _judged(
        self, loaded: list[Loaded], engine: Engine, *, whole: bool
    ) -> Iterator[_Judged | Failure]:
        """What is found of a batch. Where memory runs out for it, of its halves; a single picture
        then fails.

        Not where it must stay `whole`: what a detector that adapts makes of a picture depends on
        the whole batch.
        """
        if not loaded:
            return iter(())
        try:
            return iter(self._of_a_batch(loaded, engine))
        except Exception as error:
            if whole or not ran_out(error):
                raise
        # Outside the handler: what the batch had taken is let go with the error's frames.
        if len(loaded) == 1:
            return iter((Failure(source=loaded[0].source, reason=_NO_ROOM),))
        middle = len(loaded) // 2
        halves = (loaded[:middle], loaded[middle:])
        return chain(*(self._judged(half, engine, whole=False) for half in halves))

    def _of_a_batch(self, loaded: list[Loaded], engine: Engine) -> list[_Judged]:
        FREE_MEMORY.give_back()  # of the batches before: a service scores for months
        unsaid = any(one.category is None for one in loaded)
        category = unsaid and self.record.category_features is not None
        images: Any = np.stack([one.pixels for one in loaded])
        found = engine.run(images, category=category)
        looks = self.preprocessing
        within = None if looks.is_framed else looks.area_of_input
        found = scoring.masked(found, self.foreground, within, engine)
        placements = [looks.placement(one.shown) for one in loaded]
        if self.area is not None and self.is_narrowed and looks.tiling is None:
            size = (found.map.shape[1], found.map.shape[2])
            inside = scoring.places_in(self.area, placements, size)
            found = scoring.narrowed(found, inside, engine.top_fraction)
        rows = rows_of(found, placements)
        for one, row in zip(loaded, rows, strict=True):
            row.check(one.source)
        return [
            _Judged(one, row, found.adapted, found.note)
            for one, row in zip(loaded, rows, strict=True)
        ]

    def _prediction(self, judged: _Judged) -> Prediction:
        one, found = judged.loaded, judged.found
        said = [judged.note, NARROWED if self.is_narrowed else ""]
        if found.is_untold:
            said.append(scoring.UNTOLD)
        category, notes = one.category, one.notes
        if category is None and found.features is not None and self.record.category_features:
            (category,) = self.record.category_features.nearest(found.features[None])
        elif category is None:
            category, notes = "", (*notes, COMMON)
        threshold = self.threshold_for(category)
        limit = None if threshold is None else threshold.value
        region = self.region_threshold_for(category)
        known = self._scores_of(category)
        return Prediction(
            source=one.source,
            score=found.score,
            anomaly_map=found.anomaly_map,
            votes=found.votes,
            saliency=found.saliency,
            foreground=found.foreground,
            box=found.box,
            threshold=limit,
            p_value=None if judged.adapted else p_value(found.score, known),
            region_threshold=None if region is None else region.value,
            smallest_region=self.smallest_region,
            background=self.map_scale[0],
            label=verdict(found.score, limit),
            size=one.size,
            digest=one.digest,
            notes=(*notes, *filter(None, said)),
            category=category,
            category_assigned=one.category is None and found.features is not None,
            adapted=judged.adapted,
            time=one.time,
            area=self.area,
            descriptor=found.descriptor,
        )

    def save(self, path: str | Path) -> Path:
        """Write the artifact, or the exported file, whole or not at all.

        Raises: OutputError; ConfigError if narrowed.
        """
        self.check_whole("save")
        return self.engine.save(path, self.manifest)

    def with_threshold(self, threshold: Threshold | float | None) -> Detector:
        """The same detector with another threshold, for every category and for parts of several
        views: a number is one that was set by hand.

        Raises: NonFiniteError for a number that is NaN or infinite; ConfigError for what is no
            threshold.
        """
        if threshold is not None and not isinstance(threshold, Threshold):
            threshold = by_hand(threshold)
        return self.with_record(
            replace(self.record, threshold=threshold, thresholds={}, parts=None)
        )

    def with_region_threshold(
        self, threshold: Threshold | float | None, *, smallest: float | None = None
    ) -> Detector:
        """The same detector with another threshold of its regions, for every category: a number is
        one that was set by hand.

        Args: smallest: the share of the picture that a region has at least, in [0, 1); None = as
            it was.
        Raises: as `with_threshold`; ConfigError for a share out of range.
        """
        if threshold is not None and not isinstance(threshold, Threshold):
            threshold = by_hand(threshold)
        known = self.record.regions or RegionThresholds()
        share = known.smallest if smallest is None else smallest
        regions = replace(known, threshold=threshold, thresholds={}, smallest=share)
        configs.check(regions)
        return self.with_record(replace(self.record, regions=regions))

    def within(self, roi: Any = None, ignore: Any = None) -> Detector:
        """The same detector, which scores and shows only a part of each picture.

        It looks at whole pictures as before, and the threshold stays: it raises an alarm only where
        it did before, which every prediction notes. It can be neither saved nor calibrated.

        Args: roi, ignore: as of `blemish.fit`, within the area that it was fitted with.
        Raises: as `blemish.data.areas.read_area`; ConfigError for a method whose score is not that
            of the map, and where nothing is left.
        """
        area = read_area(roi, ignore)
        if area is None:
            return self
        if not self.engine.scores_by_map:
            raise ConfigError(
                f"roi, ignore: the score of {self.record.method} with these settings is one of the "
                "whole picture, which cannot be narrowed afterwards; name them at fit"
            )
        other = copy.copy(self)
        other.area = area.within(self.area)
        return other

    @property
    def is_narrowed(self) -> bool:
        """Whether it shows less than it looks at: made by `within`."""
        return self.area is not self.preprocessing.area

    def check_whole(self, what: str) -> None:
        """Raises: ConfigError for a detector that was narrowed, which cannot do this."""
        if self.is_narrowed:
            raise ConfigError(
                f"{what}: the detector was narrowed by `within`; {what} the one before, or fit one "
                "with roi and ignore"
            )

    def with_scales(self, scales: Sequence[int]) -> Detector:
        """The same detector, looking at pictures in other sizes, each the side of a square.

        Scores of other sizes are other scores: it has no threshold until it is calibrated anew.

        Raises: ConfigError for a method that looks at one size only.
        """
        method = self.method  # which an exported graph has not
        from blemish.detector.learned import with_scales

        return with_scales(self, method, scales)

    def with_record(self, record: Manifest) -> Detector:
        """The same detector, which says something else of itself."""
        other = Detector(self.engine, record)
        other.area = self.area
        return other


@dataclass(frozen=True, slots=True)
class _Judged:
    """What was found of a picture or a tile; adapted, note: as of `Adapted`."""

    loaded: Loaded
    found: Found
    adapted: bool
    note: str

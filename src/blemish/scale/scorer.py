"""A detector as a function from rows to rows, for engines that hand out batches of them.

Ray Data's `map_batches` and Spark's `mapInPandas` take it as it is; both keep one for each of their
workers, which loads the artifact once.
"""

from __future__ import annotations

import socket
from collections.abc import Iterable, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any, Self

from blemish.data.ahead import map_ahead
from blemish.detector.loading import load
from blemish.detector.predict import BATCH_SIZE, Detector
from blemish.detector.reading import Loaded, Reading
from blemish.detector.sources import chunks
from blemish.errors import (
    ArtifactError,
    BlemishError,
    ConfigError,
    DataError,
    ImageError,
    InputError,
    NonFiniteError,
)
from blemish.images import LIMITS, Limits
from blemish.scale import rows
from blemish.scale.artifacts import Shipped, at_hand
from blemish.scale.places import place_of, read_bytes, scheme_of
from blemish.types import Failure, Frame, Prediction

Result = Prediction | Failure
Artifact = str | Path | Shipped
# What is wrong with anything else is wrong for every picture.
_OF_ONE_PICTURE = (InputError, NonFiniteError)


@dataclass(frozen=True, kw_only=True)
class Settings:
    """How rows are scored; as of `Scorer`."""

    engine: str = "auto"
    device: str = "auto"
    precision: str = "auto"
    threads: int | None = None
    category: str = ""
    batch_size: int = BATCH_SIZE
    threshold: float | None = None
    region_threshold: float | None = None
    smallest_region: float | None = None
    maps: bool = False
    masks: bool = False
    limits: Limits = LIMITS
    filesystem: Any = None

    def __post_init__(self) -> None:
        if self.batch_size < 1:
            raise ConfigError(f"batch_size: at least 1 is needed, got {self.batch_size}")

    def detector(self, path: Path) -> Detector:
        """The detector in a file. Raises: as `blemish.load`, `with_threshold`, `threshold_for`."""
        how = {name: getattr(self, name) for name in ("engine", "device", "precision", "threads")}
        found = load(path, **how)
        if self.threshold is not None:
            found = found.with_threshold(self.threshold)
        if self.region_threshold is not None:
            found = found.with_region_threshold(
                self.region_threshold, smallest=self.smallest_region
            )
        elif self.smallest_region is not None:
            raise ConfigError("smallest_region: set it together with region_threshold")
        found.threshold_for(self.category)
        return found


@dataclass(frozen=True, slots=True)
class Given:
    """A picture as a row has it: `path` or `content`; category: "" = as of the settings."""

    name: str
    path: str | None
    content: bytes | None
    category: str = ""


class Loader:
    """Fetches and decodes rows as a detector takes them, wherever that is done.

    Args: reading: of the detector. filesystem: in which paths are; None = by their URI.
    """

    def __init__(self, reading: Reading, filesystem: Any = None) -> None:
        self._reading, self._filesystem = reading, filesystem
        self.in_tiles = reading.preprocessing.tiling is not None

    def load(self, one: Given) -> Loaded | Failure:
        """A decoded picture, or why it cannot be."""
        source = self.fetched(one)
        if isinstance(source, Failure):
            return source
        return self._of(one.category).load(source)

    def category_of(self, one: Given) -> str:
        """That it is judged as: its own, where the detector knows it."""
        return self._of(one.category).category

    def _of(self, category: str) -> Reading:
        if category and category in self._reading.categories:
            return replace(self._reading, category=category)
        return self._reading

    def fetched(self, one: Given) -> Path | Frame | Failure:
        """What is decoded of a row: a file of this machine, or the bytes of one."""
        if one.content is not None:
            return Frame(source=one.content, name=one.name, time=0.0)  # type: ignore[arg-type]
        if not one.path:
            return Failure(source=one.name, reason="the row has no path and no bytes")
        if self._filesystem is None and not scheme_of(one.path):
            return Path(one.path)
        try:
            place = place_of(one.path, self._filesystem)
            if place.is_local:
                return Path(place.path)
            limit = self._reading.limits.max_bytes
            content = read_bytes(place, limit=limit, error=DataError)
        except BlemishError as error:
            return Failure(source=one.name, reason=str(error).removeprefix(f"{one.path}: "))
        return Frame(source=content, name=one.name, time=0.0)  # type: ignore[arg-type]


class Scorer:
    """Scores batches of rows with the detector in an artifact, which it loads once.

    A batch has the columns `path` (a file of this machine, or a URI as s3://bucket/key) or `bytes`
    (the content of a file), `id` (else the path is it), `category` where it is known, and any
    further ones, which are carried through. It is a dict of columns, a table of pyarrow or a frame
    of pandas, and so is the answer, a row for each: see `blemish.scale.rows`. A picture that cannot
    be scored is a row with an `error`.

    Scores are those of `Detector.predict_many`: the same to the bit where batches are made up of
    the same pictures. It can be pickled, and loads the artifact anew where it is unpickled.

    Args:
        artifact: what `blemish fit` or `blemish export` has written: a path or a URI. Exported
            files need no PyTorch.
        engine, device, precision, threads: as of `blemish.load`.
        category, batch_size, limits: as of `Detector.predict_many`.
        threshold, region_threshold, smallest_region: set by hand, in place of the artifact's.
        maps, masks: whether answers have the columns `map`, `map_height`, `map_width`, and `mask`.
        filesystem: of pyarrow or fsspec, in which paths are; None = by their URI.
    Raises: as `blemish.load`; ArtifactError; ConfigError.

    Example:
        >>> import blemish, numpy as np, pathlib
        >>> good = [np.full((32, 32, 3), 90 + i, dtype=np.uint8) for i in range(3)]
        >>> tiny = {"backbone": "test_vit", "weights": "random", "image_size": 32}
        >>> path = blemish.fit("knn", good, **tiny).save(getfixture("tmp_path") / "part.blemish")
        >>> Scorer(path)({"path": ["missing.png"]})["error"][0]
        'does not exist'
    """

    def __init__(self, artifact: Artifact, **settings: Any) -> None:
        known = {each.name for each in fields(Settings)}
        if strange := sorted(set(settings) - known):
            raise TypeError(
                f"Scorer has no setting {strange[0]!r}; it has {', '.join(sorted(known))}"
            )
        self._open(artifact, Settings(**settings))

    def _open(self, artifact: Artifact, settings: Settings) -> None:
        self._artifact, self.settings = artifact, settings
        with at_hand(artifact) as (path, self.digest):
            self.detector = settings.detector(path)
        reading = self.detector.reading(settings.category, settings.limits)
        self.loader = Loader(reading, settings.filesystem)

    @classmethod
    def of(cls, artifact: Artifact, settings: Settings) -> Self:
        """One of settings that are known already, on a worker. Raises: as the class does."""
        made = cls.__new__(cls)
        try:
            made._open(artifact, settings)
        except ArtifactError as error:
            where = f"on the worker {socket.gethostname()}, which must reach it as well"
            raise ArtifactError(f"{error}; {where}") from error
        return made

    def __reduce__(self) -> tuple[Any, ...]:
        return Scorer.of, (self._artifact, self.settings)

    def __call__(self, batch: Any) -> Any:
        """The rows of a batch. Raises: DataError for what is no batch of pictures; EngineError."""
        kind, columns, _ = rows.taken(batch)
        given, ids = pictures_of(columns)
        if self.loader.in_tiles:
            results = self.tiled(given)
        else:
            ahead = 2 * self.settings.batch_size
            with closing(map_ahead(self.loader.load, given, ahead=ahead)) as loads:
                results = self.scored(loads)
        return self.answer(kind, columns, given, ids, results)

    def answer(
        self, kind: rows.Kind, columns: rows.Columns, given: Sequence[Given], ids: Sequence[str],
        results: Iterable[Result],
    ) -> Any:  # fmt: skip
        """Results as rows, in the form of the batch. Raises: DataError for further columns of the
        same names."""
        shown = {"maps": self.settings.maps, "masks": self.settings.masks}
        answers = [
            rows.answer_of(result, given=one, path=each.path, artifact=self.digest, **shown)
            for one, each, result in zip(ids, given, results, strict=True)
        ]
        return rows.answered(kind, answers, rows.further(columns, **shown), **shown)

    def scored(self, loads: Iterable[Loaded | Failure]) -> list[Result]:
        """Results of decoded pictures, in their order, batch by batch."""
        return [
            result
            for chunk in chunks(loads, self.settings.batch_size, lambda one: False)
            for result in self._of_chunk(chunk)
        ]

    def _of_chunk(self, chunk: Sequence[Loaded | Failure]) -> Iterable[Result]:
        found = iter(self._predicted([one for one in chunk if isinstance(one, Loaded)]))
        return [one if isinstance(one, Failure) else next(found) for one in chunk]

    def _predicted(self, loaded: Sequence[Loaded]) -> list[Result]:
        if not loaded:
            return []
        try:
            return self.detector.predict_loaded(loaded)
        except _OF_ONE_PICTURE as error:
            if len(loaded) == 1:
                return [_failed(loaded[0].source, error)]
        # What is wrong with one of them is not to harm the others.
        return [result for one in loaded for result in self._predicted([one])]

    def tiled(self, given: Iterable[Given]) -> list[Result]:
        """Results of pictures that are cut into tiles: decoded as they are computed."""
        return [self._tiled(one) for one in given]

    def _tiled(self, one: Given) -> Result:
        source = self.loader.fetched(one)
        if isinstance(source, Failure):
            return source
        how = {"batch_size": self.settings.batch_size, "limits": self.settings.limits}
        try:
            category = self.loader.category_of(one)
            (found,) = self.detector.predict_many(iter([source]), category=category, **how)  # type: ignore[arg-type]
        except _OF_ONE_PICTURE as error:
            return _failed(one.name, error)
        return found


def _failed(name: str, error: BlemishError) -> Failure:
    reason = error.reason if isinstance(error, ImageError) else str(error).removeprefix(f"{name}: ")
    return Failure(source=name, reason=reason)


def pictures_of(columns: rows.Columns) -> tuple[list[Given], list[str]]:
    """The pictures of a batch's columns, and their ids. Raises: DataError for one without any."""
    count = len(next(iter(columns.values())))
    paths, contents, ids, categories = (
        rows.values_of(columns[name]) if name in columns else [None] * count
        for name in rows.GIVEN_BY
    )
    given, named = [], []
    for place, (path, content, own, category) in enumerate(
        zip(paths, contents, ids, categories, strict=True)
    ):
        own = path if own is None else own
        if own is None:
            raise DataError(f"row {place} of a batch has neither id nor path: nothing names it")
        path = None if path is None else str(path)
        named.append(str(own))
        content = None if content is None else bytes(content)
        given.append(Given(path or str(own), path, content, str(category or "")))
    return given, named


def settings_told(settings: Settings) -> dict[str, Any]:
    """What of settings changes results, JSON-ready."""
    told = asdict(replace(settings, filesystem=None, limits=LIMITS))
    for name in ("engine", "device", "threads", "filesystem", "limits"):
        del told[name]
    return told

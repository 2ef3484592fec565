"""The life of a detector: newly confirmed good pictures and defects are added to it, without starting over."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any, cast

import numpy as np
import torch

from blemish import artifact
from blemish.backbones.cache import features_kept
from blemish.data.defects import NONE, Defects, labelled_defects
from blemish.data.good import good_pictures
from blemish.data.stream import PictureStream, map_ahead, of_picture
from blemish.detector.calibrate import DEFAULT_RATE
from blemish.detector.manifest import Broken, Refinement
from blemish.detector.predict import BATCH_SIZE, Detector
from blemish.detector.thresholds import calibrate, pictures_needed
from blemish.errors import ConfigError, DataError
from blemish.methods.lda import Lda
from blemish.methods.memory import MemoryBank
from blemish.types import Batch, Failure, Prediction, Progress, silent


@dataclass(frozen=True, kw_only=True)
class Refined:
    """A refined detector, and what has changed.

    Attributes:
        good, defects: how many pictures were added.
        known: how many of those given it had learned from before, or came twice; they are not added.
        failures: pictures that could not be read.
        before, after: the threshold; None where there is none.
        alarms_before, alarms_after: how many of the good pictures that it knew, each left out, score above it.
        calibrated: how many those are.
        mean_change: of their scores, in their unit.
        found_before, found_after: how many of the added defects score above the threshold before and after learning
            from them; None without a threshold.
    """

    detector: Detector
    good: int
    defects: int
    known: int
    failures: tuple[Failure, ...]
    before: float | None
    after: float | None
    alarms_before: int | None
    alarms_after: int | None
    calibrated: int
    mean_change: float
    found_before: int | None
    found_after: int | None

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready, without the detector."""
        values = {
            field.name: getattr(self, field.name)
            for field in dataclasses.fields(self)
            if field.name != "detector"
        }
        return {**values, "failures": [failure.to_dict() for failure in self.failures]}


def refine(
    detector: Detector,
    *,
    good: Any = None,
    anomalies: Any = None,
    false_alarm_rate: float | None = None,
    progress: Progress = silent,
) -> Refined:
    """The detector, having learned from more good pictures and more defects, with a new threshold.

    The bank takes the new good pictures in, within its size; the defects join those it knows. The threshold comes from
    all good pictures, old and new, each left out in turn; what an old one scores for its normality stays as it was
    measured: at most too high while the bank has room, and a little too low where a full one lets old patches go. The
    detector given is changed by this and is not to be used any more.

    Args:
        detector: of `lda`, the normality part of which is a memory bank (patchcore, knn), of one category.
        good, anomalies: as of `blemish.fit`; one of them at least.
        false_alarm_rate: of the new threshold; None = that of the old one, where there is one.
    Raises: ConfigError for another detector; DataError where nothing new can be read; CalibrationError as `fit`.
    """
    method = detector.method
    if not isinstance(method, Lda) or not isinstance(method.normality, MemoryBank):
        raise ConfigError(
            f"a detector of {method.name} cannot be refined, only one of lda with a memory bank to know what is "
            "normal: `blemish fit lda GOOD` (without defects it is that bank; --set normality=knn for knn)"
        )
    if detector.categories:
        raise ConfigError(
            "a detector for several categories cannot be refined: fit it again, or one for each category"
        )
    if good is None and anomalies is None:
        raise ConfigError("refine: name good pictures, defects or both")
    if false_alarm_rate is not None:
        pictures_needed(false_alarm_rate)  # refuses a rate outside (0, 1) before any work
    known = detector.learned
    skipped: list[str] = []
    window = detector.preprocessing.decode_window()
    failures: list[Failure] = []

    def unknown(sources: list[Any]) -> Iterator[int]:
        def look(numbered: tuple[int, Any]) -> Failure | tuple[str, str]:
            index, source = numbered
            return of_picture(
                lambda picture: (picture.source, picture.digest), source, index, window
            )

        for position, seen in enumerate(map_ahead(look, enumerate(sources), ahead=2 * BATCH_SIZE)):
            progress("looking for what is new", position + 1, len(sources))
            if isinstance(seen, Failure):
                failures.append(seen)
                continue
            source, digest = seen
            if digest in known:
                skipped.append(source)
            else:
                known.add(digest)
                yield position

    new = [] if good is None else good_pictures(good).sources
    new = [new[position] for position in unknown(new)]
    defects = NONE if anomalies is None else labelled_defects(anomalies)
    chosen = list(unknown(defects.sources))
    if not new and not chosen:
        raise DataError(
            "nothing is new: all pictures given are known to the detector or cannot be read"
        )

    if new and not method.normality.knows_several:
        raise ConfigError(
            "the detector was fitted on a single picture; fit it again together with the new ones"
        )
    with features_kept(method.backbone):  # of the defects, which are looked at three times, too
        defects = Defects(
            [defects.sources[position] for position in chosen],
            [defects.samples[position] for position in chosen],
            defects.note,
        )
        return _taught(
            detector, method, new, defects, failures, len(skipped), false_alarm_rate, progress
        )


def _taught(
    detector: Detector,
    method: Lda,
    new: list[Any],
    defects: Defects,
    failures: list[Failure],
    skipped: int,
    false_alarm_rate: float | None,
    progress: Progress,
) -> Refined:
    """The detector, whose method is `method`, having learned from the new good pictures and defects."""
    record, data = detector.record, detector.record.data
    settings, preprocessing = method.config, detector.preprocessing
    old, unseen = method.good_scores(), defects.sources
    before = detector.threshold.value if detector.threshold else None
    found_before = _alarms(detector, unseen)
    offset = int(max(method.owners.max(), cast(MemoryBank, method.normality).owners.max())) + 1
    stream = PictureStream(
        new, preprocessing, BATCH_SIZE, rotations=settings.rotations, flips=settings.flips
    )
    shown = PictureStream(unseen, preprocessing, BATCH_SIZE, marks=defects.samples)
    if new:
        passes = partial(_numbered, stream, detector.device, offset)
        method.extend(passes, stream.rows, progress)
        method.summarise(passes, stream.rows, progress)
    if unseen:
        method.learn_defects(partial(shown.on, detector.device), shown.rows, progress)
    failures += [*stream.failures.values(), *shown.failures.values()]  # of masks
    scores = method.good_scores()
    threshold = None
    if detector.threshold is not None or false_alarm_rate is not None:
        rate = false_alarm_rate or (detector.threshold and detector.threshold.rate) or DEFAULT_RATE
        required = false_alarm_rate is not None
        threshold = calibrate(
            list(scores.values()), rate, method="leave-one-out", required=required
        )
    calibrated = [digest for digest in data.calibrated if digest not in stream.digests.values()]
    fitted = [*data.fitted, *(stream.digests[i] for i in sorted(stream.digests))]
    now = artifact.provenance()
    event = Refinement(date=now["created"], good=len(stream.digests), defects=len(shown.digests))
    known = dataclasses.replace(
        data,
        count=len(fitted) + len(calibrated),
        fingerprint=hashlib.sha256("".join(sorted([*fitted, *calibrated])).encode()).hexdigest(),
        fitted=tuple(fitted),
        calibrated=tuple(calibrated),
        defects=(*data.defects, *(shown.digests[i] for i in sorted(shown.digests))),
        defects_layout="; ".join(filter(None, [data.defects_layout, defects.note])),
        failures=(
            *data.failures,
            *(Broken(path=each.source, error=each.reason) for each in failures),
        ),
    )
    record = dataclasses.replace(
        record,
        blemish=now["blemish"],
        versions=now["versions"],
        threshold=threshold,
        thresholds={},
        calibration_scores=tuple(scores.values()),
        data=known,
        refined=(*record.refined, event),
    )
    refined = Detector(method, record)
    after = threshold.value if threshold else None
    later = [scores[owner] for owner in old]
    return Refined(
        detector=refined,
        good=len(stream.digests),
        defects=len(shown.digests),
        known=skipped,
        failures=tuple(failures),
        before=before,
        after=after,
        alarms_before=None if before is None else sum(score > before for score in old.values()),
        alarms_after=None if after is None else sum(score > after for score in later),
        calibrated=len(old),
        mean_change=float(np.mean(later) - np.mean(list(old.values()))),
        found_before=found_before,
        found_after=_alarms(refined, unseen),
    )


def _alarms(detector: Detector, sources: list[Any]) -> int | None:
    """How many of the pictures are called anomalous; None without a threshold."""
    if detector.threshold is None or detector.threshold.value is None:
        return None
    results = detector.predict_many(sources)
    return sum(result.label == 1 for result in results if isinstance(result, Prediction))


def _numbered(stream: PictureStream, device: torch.device, offset: int) -> Iterator[Batch]:
    """A pass over pictures that are numbered from `offset`."""
    for batch in stream.on(device):
        yield dataclasses.replace(batch, owners=batch.owners + offset)

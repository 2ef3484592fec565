"""The life of a detector: newly confirmed good pictures and defects are added to it, without
starting over.
"""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Collection, Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from blemish import artifact
from blemish.backbones.cache import features_kept
from blemish.data.ahead import name_of
from blemish.data.pictures import NO_PICTURES, good_pictures, labelled_defects
from blemish.data.stream import Found, Passes, PictureStream, fingerprint
from blemish.detector.calibrate import DEFAULT_RATE, new_scores
from blemish.detector.evidence import levels_left_out
from blemish.detector.learned import detector_of
from blemish.detector.manifest import Manifest, Refinement, broken
from blemish.detector.predict import BATCH_SIZE, Detector
from blemish.detector.thresholds import Method as CalibrationMethod
from blemish.detector.thresholds import (
    RegionThresholds,
    Threshold,
    calibrate,
    pictures_needed,
    verdict,
)
from blemish.errors import ConfigError, DataError
from blemish.methods import Method
from blemish.methods.base import reported
from blemish.methods.capabilities import LeavesOneOut, Refines
from blemish.text import pluralize
from blemish.types import ANOMALOUS, Failure, Progress, Sample, silent

_SHOWN = 3  # names of pictures in a sentence


@dataclass(frozen=True, kw_only=True)
class Refined:
    """A refined detector, and what has changed.

    Attributes:
        good, defects: how many pictures were added.
        known: how many of those given it had learned from before, or came twice; they are not
            added.
        contradictions: those of them, by name, that it knows as the opposite, good ones named as
            defects or defects as good ones, or that were named as both: they stay what it knows
            them as, or good.
        failures: pictures that could not be read.
        before, after: the threshold; None where there is none.
        alarms_before, alarms_after: how many of the good pictures that it knew, each left out,
            score above it.
        calibrated: how many those are.
        mean_change: of their scores, in their unit.
        found_before, found_after: how many of the added defects score above the threshold before
            and after learning from them; None without a threshold.
    """

    detector: Detector
    good: int
    defects: int
    known: int
    contradictions: tuple[str, ...]
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
        values = {key: value for key, value in vars(self).items() if key != "detector"}
        return {**values, "failures": [failure.to_dict() for failure in self.failures]}


def refine(
    detector: Detector,
    *,
    good: Any = None,
    anomalies: Any = None,
    held: Any = None,
    drawn: Collection[str] | None = None,
    false_alarm_rate: float | None = None,
    progress: Progress = silent,
) -> Refined:
    """A detector that has learned from more good pictures and more defects, with a new threshold.

    The bank takes new good pictures in, within its size; defects join those it knows. Nothing that
    was learned is taken back: what is known as the opposite stays so (`contradictions`). The
    threshold comes from all good pictures, old and new, each left out in turn; what an old one
    scores for its normality stays as it was measured: too high, as a rule, while the bank has room
    (of one neighbour, never too low), and a little too low where a full one lets old patches go.

    Defects change the maps: the thresholds of regions come from good pictures that can be looked at
    again, the new ones, each left out, and those held out; where they are too few it says so.

    Args:
        detector: of `lda`, the normality part of which is a memory bank (patchcore, knn), of
            one category. It stays as it is; the refined one shares its encoders.
        good, anomalies: as of `blemish.fit`; one of them at least.
        held: good pictures that are not learned from, as evidence for the regions. drawn: paths of
            new ones that are such too (None = all): those chosen for their scores are not.
        false_alarm_rate: of the new threshold; None = that of the old one, where there is one.
    Raises: ConfigError for another detector; DataError where nothing new can be read;
        CalibrationError as `fit`.
    """
    _check_asked(good, anomalies, false_alarm_rate)
    check_refinable(detector)
    method = detector.method
    assert isinstance(method, Refines)
    added = _added(detector, method, good, anomalies, progress)
    # The encoders are shared: they do not learn.
    method = copy.deepcopy(method, {id(each): each for each, _ in method.encoders})
    with ExitStack() as keeping:
        for encoder, layers in method.encoders:  # defects are looked at three times
            keeping.enter_context(features_kept(encoder, layers))
        before, old = _alarms(detector, added.defects), method.good_scores()
        found = _learn(method, added, progress)
        scores = method.good_scores()
        refined = _with_threshold(detector, method, added, found, scores, false_alarm_rate)
        refined = _with_regions(refined, detector, added, found, held, drawn, progress)
        after = _alarms(refined, added.defects)
    was, now = list(old.values()), [scores[owner] for owner in old]
    return Refined(
        detector=refined,
        good=len(found[0].digests),
        defects=len(found[1].digests),
        known=added.known,
        contradictions=added.contradictions,
        failures=_failures(added, found),
        before=_value(detector),
        after=_value(refined),
        alarms_before=_above(was, _value(detector)),
        alarms_after=_above(now, _value(refined)),
        calibrated=len(old),
        mean_change=float(np.mean(now) - np.mean(was)),
        found_before=before,
        found_after=after,
    )


def _with_threshold(
    detector: Detector,
    method: Refines,
    added: _Added,
    found: tuple[Found, Found],
    scores: Mapping[int, float],
    rate: float | None,
) -> Detector:
    """The detector of a method that has learned, and what it says of itself."""
    assert isinstance(method, Method)
    threshold = _threshold(detector, scores, rate)
    record = _record(detector.record, found, added.note, _failures(added, found))
    given, taught = tuple(scores.values()), method.taught()
    record = dataclasses.replace(
        record, threshold=threshold, calibration_scores=given, taught=taught
    )
    return detector_of(method, record)


def _check_asked(good: Any, anomalies: Any, rate: float | None) -> None:
    """Before any work. Raises: ConfigError for no pictures, or a rate outside (0, 1)."""
    if good is None and anomalies is None:
        raise ConfigError("refine: name good pictures, defects or both")
    if rate is not None:
        pictures_needed(rate)


def _failures(added: _Added, found: tuple[Found, Found]) -> tuple[Failure, ...]:
    """The pictures that could not be read, and those whose masks could not."""
    of_masks = [failure for each in found for failure in each.failures.values()]
    return (*added.failures, *of_masks)


def check_refinable(detector: Detector) -> None:
    """Raises: ConfigError for a detector that cannot be refined."""
    detector.check_whole("refine")
    method = detector.method
    if not isinstance(method, Refines) or not method.refinable():
        raise ConfigError(
            f"a detector of {method.name} cannot be refined, only one of lda with a memory "
            "bank to know what is normal: `blemish fit lda GOOD` (without defects it is that "
            "bank; --set normality=knn for knn)"
        )
    if detector.preprocessing.tiling is not None:
        raise ConfigError("a detector of tiles cannot be refined: fit it again with all pictures")
    if detector.categories:
        raise ConfigError(
            "a detector for several categories cannot be refined: fit it again, or one for each "
            "category"
        )


@dataclass(frozen=True, kw_only=True)
class _Added:
    """The pictures that are new to a detector.

    Attributes:
        good, defects: as they are learned; the defects without their `marks`.
        first_owner: the number of the first good one.
        note: what the defects were recognised as.
        failures: those given that cannot be read. known: how many are known, or come twice;
            contradictions: as of `Refined`.
    """

    good: PictureStream
    first_owner: int
    defects: PictureStream
    marks: Sequence[Sample]
    note: str
    failures: Sequence[Failure]
    known: int
    contradictions: tuple[str, ...]


def _added(
    detector: Detector, method: Refines, good: Any, anomalies: Any, progress: Progress
) -> _Added:
    """What is new of the pictures given. Raises: DataError, ConfigError as `refine`."""
    known = detector.learned
    sources = [] if good is None else good_pictures(good).sources
    defects = NO_PICTURES if anomalies is None else labelled_defects(anomalies)
    plain = PictureStream(sources, detector.preprocessing, BATCH_SIZE)
    new, of_good = _unknown(plain, known, progress)
    marked = dataclasses.replace(plain, sources=defects.sources)
    unseen, of_defects = _unknown(marked, known, progress)
    data, new_good = detector.record.data, {of_good.digests[at] for at in new}
    learned = {*data.fitted, *data.calibrated}
    contradictions = (
        *_known_as(sources, of_good, set(data.defects) - learned),
        *_known_as(defects.sources, of_defects, (learned | new_good) - set(data.defects)),
    )
    if not new and not unseen:
        raise DataError(
            "nothing is new: all pictures given are known to the detector or cannot be read"
            + "".join(f"; {told}" for told in contradicted(contradictions))
        )
    if new and not method.knows_several():
        raise ConfigError(
            "the detector was fitted on a single picture; fit it again together with the new ones"
        )
    return _Added(
        good=dataclasses.replace(
            plain,
            sources=[sources[at] for at in new],
            rotations=detector.method.config.rotations,
            flips=detector.method.config.flips,
        ),
        first_owner=method.next_owner(),
        defects=dataclasses.replace(plain, sources=[defects.sources[at] for at in unseen]),
        marks=[defects.samples[at] for at in unseen],
        note=defects.note,
        failures=[*of_good.failures.values(), *of_defects.failures.values()],
        known=len(of_good.digests) + len(of_defects.digests) - len(new) - len(unseen),
        contradictions=contradictions,
    )


def _known_as(sources: Sequence[Any], found: Found, digests: set[str]) -> list[str]:
    """The names of those with such a digest."""
    return [name_of(sources[at], at) for at, digest in found.digests.items() if digest in digests]


def contradicted(names: Sequence[str]) -> list[str]:
    """What a person has to know of `Refined.contradictions`; nothing where there are none."""
    if not names:
        return []
    shown = ", ".join(names[:_SHOWN]) + " …" * (len(names) > _SHOWN)
    return [
        f"{pluralize(len(names), 'picture')} named as the opposite of what the detector has "
        f"learned, or as both good and defective ({shown}): what was learned is not taken back; "
        "to change that, fit again with each picture in its right place"
    ]


def _unknown(stream: PictureStream, known: set[str], progress: Progress) -> tuple[list[int], Found]:
    """The positions of pictures that are not known, whose digests join `known`; and what was found
    of all."""
    reading = iter(stream)
    for _ in reported(reading, "looking for what is new", stream.rows, progress):
        pass
    new = []
    for position, digest in reading.found.digests.items():
        if digest not in known:
            known.add(digest)
            new.append(position)
    return new, reading.found


def _learn(method: Method, added: _Added, progress: Progress) -> tuple[Found, Found]:
    """Have the method learn from what is new; what was found of the good ones and the defects."""
    assert isinstance(method, Refines)
    good = Passes(added.good, method.backbone.device, first_owner=added.first_owner)
    marked = dataclasses.replace(added.defects, marks=added.marks)
    defects = Passes(marked, method.backbone.device)
    if added.good.sources:
        method.learn_more(good, good.rows, progress)
    if marked.sources:
        method.learn_defects(defects, defects.rows, progress)
    return good.found, defects.found


def _threshold(
    detector: Detector, scores: Mapping[int, float], rate: float | None
) -> Threshold | None:
    """The new threshold; None where there was none and none is asked for."""
    if detector.threshold is None and rate is None:
        return None
    chosen = rate or (detector.threshold and detector.threshold.rate) or DEFAULT_RATE
    return calibrate(
        list(scores.values()), chosen, method="leave-one-out", required=rate is not None
    )


def _record(
    record: Manifest, found: tuple[Found, Found], note: str, failures: Sequence[Failure]
) -> Manifest:
    """What the artifact says of its pictures, with those that were added."""
    good, defects = (tuple(each.digests.values()) for each in found)
    data, now = record.data, artifact.provenance()
    fitted = (*data.fitted, *good)
    calibrated = tuple(digest for digest in data.calibrated if digest not in good)
    return dataclasses.replace(
        record,
        blemish=now["blemish"],
        versions=now["versions"],
        thresholds={},
        parts=None,
        data=dataclasses.replace(
            data,
            count=len(fitted) + len(calibrated),
            fingerprint=fingerprint([*fitted, *calibrated]),
            fitted=fitted,
            calibrated=calibrated,
            defects=(*data.defects, *defects),
            defects_layout="; ".join(filter(None, [data.defects_layout, note])),
            failures=(*data.failures, *broken(failures)),
        ),
        refined=(
            *record.refined,
            Refinement(date=now["created"], good=len(good), defects=len(defects)),
        ),
    )


def _with_regions(
    refined: Detector,
    before: Detector,
    added: _Added,
    found: tuple[Found, Found],
    held: Any,
    drawn: Collection[str] | None,
    progress: Progress,
) -> Detector:
    """With thresholds of the regions: as they were measured, as a rule too high, while the map is
    that of a bank that has grown; from pictures that can be looked at again where defects have
    changed the map, now or before."""
    known = before.record.regions
    if known is None or known.threshold is None:
        return refined
    if known.threshold.value is not None and not found[1].digests:
        return refined
    levels = _levels(refined, added, found[0], drawn, known.smallest, progress)
    way: CalibrationMethod = "leave-one-out" if levels else "split conformal"
    if held is not None:
        pictures = good_pictures(held)
        none = [""] * len(pictures.sources)
        more = new_scores(refined, pictures.sources, none, known.smallest, progress)
        levels += [level for _, level, _ in more.counted.values()]
    rate = known.threshold.rate or DEFAULT_RATE
    if refined.threshold is not None and refined.threshold.rate is not None:
        rate = refined.threshold.rate
    threshold = calibrate(levels, rate, method=way, required=False, of="region")
    if threshold.value is None:
        reason = (
            "defects have changed the maps since the old ones were measured, and "
            f"{threshold.reason}; hold more good pictures out, or set it by `blemish calibrate`"
        )
        threshold = dataclasses.replace(threshold, reason=reason)
    regions = RegionThresholds(
        smallest=known.smallest, threshold=threshold, levels=tuple(map(float, levels))
    )
    return refined.with_record(dataclasses.replace(refined.record, regions=regions))


def _levels(
    refined: Detector,
    added: _Added,
    found: Found,
    drawn: Collection[str] | None,
    smallest: float,
    progress: Progress,
) -> list[float]:
    """The levels of the regions of the new good pictures that are evidence, each left out."""
    sources = added.good.sources
    chosen = [
        at
        for at in found.digests
        if drawn is None or str(getattr(sources[at], "path", sources[at])) in drawn
    ]
    method = refined.method
    if not chosen or not isinstance(method, LeavesOneOut) or not method.leaves_one_out():
        return []
    plain = PictureStream(sources, refined.preprocessing, BATCH_SIZE).only(chosen)
    levels = levels_left_out(
        method,
        getattr(refined.engine, "foreground", None),
        plain,
        added.first_owner,
        progress,
        smallest_region=smallest,
    )
    return list(levels.values())


def _value(detector: Detector) -> float | None:
    return None if detector.threshold is None else detector.threshold.value


def _above(scores: Iterable[float], threshold: float | None) -> int | None:
    """How many scores are alarms; None without a threshold."""
    if threshold is None:
        return None
    return sum(verdict(score, threshold) == ANOMALOUS for score in scores)


def _alarms(detector: Detector, stream: PictureStream) -> int | None:
    """How many of the pictures are called anomalous; None without a threshold."""
    if (value := _value(detector)) is None:
        return None
    with torch.inference_mode():
        found = [
            detector.method.score(batch.images).image
            for batch in stream.on(detector.method.backbone.device)
        ]
    return _above([score for image in found for score in image.tolist()], value)

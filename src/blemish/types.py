"""The values that travel between the rooms of blemish: plain, frozen, typed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol, get_args

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor

    from blemish.area import Area
    from blemish.regions import Region

NORMAL, ANOMALOUS = 0, 1
GOOD = "good"  # the defect type of a normal picture
RESOLUTION = 256  # side of the square at which maps and masks meet, where nothing else is said
ORIGINAL = "original"  # at the pictures' own size instead
Mode = Literal["online", "episodic"]  # how a detector adapts to the pictures that it scores
MODES: tuple[Mode, ...] = get_args(Mode)


class Progress(Protocol):
    """Called as work goes on: what is being done, how much of it is done, how much there is (0 =
    unknown).
    """

    def __call__(self, stage: str, done: int, total: int) -> None: ...


def silent(stage: str, done: int, total: int) -> None:
    """Progress that says nothing."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """One picture of a data set and what is known about it.

    Attributes:
        path: the picture file.
        label: 0 normal, 1 anomalous, None unknown.
        mask: file with the defect's pixels (> half of full scale = anomalous); None where there is
            none. A normal picture in a set with masks has an all-zero mask and needs no file.
        more_masks: further files of the same kind, where a picture has one for each of its defects.
        split: "train", "test" or "" where the data set does not say.
        category: what the picture shows (bottle, screw, …); "" where there is one category only.
        defect: "good" or the kind of defect; "" where unknown.
        boxes: rectangles around the defects, each (x, y, width, height) with x and y its upper left
            corner, all as fractions of the picture's width and height; () where there are none.
        group: whom or what the picture is of, to compare how well a detector does on each ("male",
            "female"); "" where the data set does not say.
    """

    path: Path
    label: int | None = None
    mask: Path | None = None
    split: str = ""
    category: str = ""
    defect: str = ""
    boxes: tuple[tuple[float, float, float, float], ...] = ()
    group: str = ""
    more_masks: tuple[Path, ...] = ()

    @property
    def masks(self) -> tuple[Path, ...]:
        """All files that mark its defects."""
        return () if self.mask is None else (self.mask, *self.more_masks)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Frame:
    """A picture of a stream: what `blemish.frames` yields and `Detector.predict_many` takes.

    Attributes:
        source: its pixels, RGB uint8 H W 3 as a rule; or the file, of a folder that is watched.
        name: how predictions and messages call it: the file, "line.avi#000012" for the thirteenth
            frame of a video, "camera 0 2026-01-31T12:00:00.250000Z" for one of a camera.
        time: in seconds: since the start of a video; since 1970 (UTC) when a camera gave it, or
            when the file was last written.
    """

    source: Path | np.ndarray = field(repr=False)
    name: str
    time: float


@dataclass(frozen=True, slots=True)
class Batch:
    """Pictures as a method sees them.

    Attributes:
        images: float32 B 3 H W, normalised with the backbone's mean and standard deviation.
        owners: int64 B: which source picture each row came from. Augmented copies share the owner
            of their original, and pictures of the same content that of the first.
        masks: float32 B h w at a quarter of the images' sides, of labelled defects: the share of
            each place that is marked, NaN where no mask is known; None for other pictures.
        positions: of each row, that of the source that it came from; () where they are not told.
        sizes: (H, W) of the pictures in pixels, as they were; () where nobody asks.
    """

    images: Tensor
    owners: Tensor
    masks: Tensor | None = None
    positions: tuple[int, ...] = ()
    sizes: tuple[tuple[int, int], ...] = ()


@dataclass(frozen=True, slots=True)
class Scores:
    """What a method says of a batch.

    Attributes:
        image: float32 B: raw, unbounded, higher = more anomalous.
        maps: float32 B h w in the same unit, at the method's working resolution.
        votes: float32 B: the share of the sizes looked at in which a picture is called anomalous;
            None for methods that do not vote.
        saliency: float32 B h w in [0, 1]: where the method looked, beside what it found; None for
            methods without.
        boxes: float32 B 4: x, y, width, height of the crop that was looked at again, as fractions
            of the picture's width and height, the upper left corner first; None for methods that do
            not crop.
        foreground: bool B h w: the places of the map that count, all of them where a picture is
            looked at whole; None where every one is.
    """

    image: Tensor
    maps: Tensor
    votes: Tensor | None = None
    saliency: Tensor | None = None
    boxes: Tensor | None = None
    foreground: Tensor | None = None


@dataclass(frozen=True, kw_only=True)
class Prediction:
    """Score, verdict and heatmap of one picture.

    Attributes:
        source: the path or the file's name; "array 3" or "file 3" for the fourth of a call, where
            it has none.
        score: raw, unbounded, higher = more anomalous.
        threshold: a score above it is an alarm; None where the artifact has none.
        label: the verdict: 0 normal, 1 anomalous; None without a threshold.
        p_value: how likely a normal picture scores as high, in (0, 1], from the normal pictures
            that the threshold comes from (conformal); None where there are none, or it was adapted.
        region_threshold: a place of the map above it belongs to a region; None where the artifact
            has none.
        smallest_region: the share of the picture that a region has at least, in [0, 1).
        area: where it was looked at; None = everywhere.
        background: what the map of a normal picture shows at a usual place.
        size: (H, W) of the original picture in pixels.
        anomaly_map: float32 h×w, unit of the score, at the method's working resolution; it lies
            evenly over the whole picture.
        digest: content hash of the decoded pixels (hex).
        notes: what the decoder did that a person should know ("alpha composed over white").
        category: the category it was judged as; "" where that was not given or the artifact does
            not know it.
        category_assigned: whether nobody gave it, and it is the nearest by the picture's features.
        adapted: whether test-time adaptation took part in this score (which voids the guarantee).
        votes: the share of the sizes looked at that call it anomalous, in [0, 1]; None for methods
            that do not vote.
        saliency: float32 h×w in [0, 1], where the method looked, at its working resolution; None
            for methods without.
        box: x, y, width, height of the crop that was looked at again, as fractions of the picture's
            width and height; None for methods that do not crop.
        time: of a frame of a stream, as `Frame.time`; None for any other picture.
        foreground: bool h×w as the anomaly map is, the places that count: the part without its
            background; None where the picture was looked at whole.
        descriptor: float32 D, where the picture lies among others as the encoder sees it; only
            compared with those of the same `Detector.descriptor_space`. None where there is none.
    """

    source: str
    score: float
    threshold: float | None
    label: int | None
    size: tuple[int, int]
    anomaly_map: np.ndarray = field(repr=False, compare=False)
    digest: str = ""
    notes: tuple[str, ...] = ()
    category: str = ""
    category_assigned: bool = False
    adapted: bool = False
    votes: float | None = None
    saliency: np.ndarray | None = field(default=None, repr=False, compare=False)
    box: tuple[float, float, float, float] | None = None
    time: float | None = None
    p_value: float | None = None
    region_threshold: float | None = None
    smallest_region: float = 0.0
    background: float = 0.0
    area: Area | None = field(default=None, repr=False)
    foreground: np.ndarray | None = field(default=None, repr=False, compare=False)
    descriptor: np.ndarray | None = field(default=None, repr=False, compare=False)

    @cached_property
    def regions(self) -> tuple[Region, ...] | None:
        """Where it stands out: the regions of the map above `region_threshold`, the highest peak
        first; None without such a threshold. They do not depend on the verdict."""
        from blemish.regions import find_regions

        if self.region_threshold is None:
            return None
        return find_regions(
            self.anomaly_map,
            self.region_threshold,
            self.size,
            background=self.background,
            smallest=self.smallest_region,
            area=self.area,
            places=self.foreground,
        )

    @property
    def mask(self) -> np.ndarray | None:
        """bool H×W at the original size, True in any region; None without a region threshold."""
        import numpy as np

        if self.regions is None:
            return None
        height, width = self.size
        mask = np.zeros((height, width), dtype=np.bool_)
        for region in self.regions:
            left, across = region.box[0], region.box[2]
            columns = np.zeros(across * height, dtype=np.bool_)  # one after the other
            ends = (np.cumsum(region.runs) - left * height).tolist()
            for start, end in zip(ends[::2], ends[1::2], strict=False):
                columns[start:end] = True
            mask[:, left : left + across] |= columns.reshape(across, height).T
        return mask

    @cached_property
    def heatmap(self) -> np.ndarray:
        """float32 H×W in the unit of the score, at the original size (bilinear)."""
        import cv2
        import numpy as np

        height, width = self.size
        resized = cv2.resize(self.anomaly_map, (width, height), interpolation=cv2.INTER_LINEAR)
        if self.area is not None:
            resized = np.where(self.area.mask(height, width), resized, self.anomaly_map.min())
        return np.ascontiguousarray(resized, dtype=np.float32)

    def to_dict(self) -> dict[str, Any]:
        """A JSON-ready row without the map."""
        return {
            "path": self.source,
            "score": self.score,
            "threshold": self.threshold,
            "label": self.label,
            "p_value": self.p_value,
            "region_threshold": self.region_threshold,
            "regions": None if self.regions is None else [one.to_dict() for one in self.regions],
            "height": self.size[0],
            "width": self.size[1],
            "digest": self.digest,
            "category": self.category,
            "category_assigned": self.category_assigned,
            "adapted": self.adapted,
            "votes": self.votes,
            "box": None if self.box is None else list(self.box),
            "notes": list(self.notes),
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class Failure:
    """A picture that could not be scored, and why."""

    source: str
    reason: str

    def to_dict(self) -> dict[str, Any]:
        return {"path": self.source, "error": self.reason}


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """How good a detector is on labelled pictures. Every metric is a fraction between 0 and 1, or
    None.

    Attributes:
        image_auroc, image_ap: None unless both classes are present.
        best_f1: the best F1 over all thresholds (an oracle: it looks at the labels), with its
            threshold.
        pixel_auroc, aupro: None where the set has no masks and no boxes. AUPRO is integrated to a
            false-positive rate of 0.3.
        pixel_auroc_error, aupro_error: how far off they may be: 0 = exact; a set too large for that
            is measured in constant memory.
        pixel_auroc_anomalous: pixel AUROC over the anomalous pictures alone, as published for sets
            with boxes: it asks for the place only, as no normal picture helps or harms.
        by_defect: per defect type the same metrics, each against all normal pictures of its
            category, and `count`; with several categories it is called category/defect.
        by_category: per category the same metrics.
        by_group: per group the same metrics of its normal and anomalous pictures, and
            `pixel_auroc_anomalous`; empty where no picture has a group.
        category_mean: image_auroc, image_ap, pixel_auroc and aupro, each the mean over the
            categories that have it (None where none has); empty for fewer than two categories.
        threshold: the stored one; pictures of a category that has one of its own are judged by
            that.
        confusion: true/false positives/negatives of the verdicts; None without a threshold.
        votes: of a method that votes, with both classes present: `image_auroc` of the share of the
            votes for a defect, and `balanced_accuracy` of the majority verdict (more than half),
            the mean of how much of either class it gets right; otherwise None.
        regions: how well the regions meet the masks at the pictures' own size, as
            `blemish.metrics.detections.Detections` has it, with `region_recall` and
            `false_per_picture`; None without masks or without a threshold of the regions.
        parts: where parts of several views were told: how many `defective` ones there were and were
            `found`, how many `good` ones and `false_alarms`, each with its share, `recall` and
            `false_alarm_rate`, beside the `rate` that was chosen; how many parts have no verdict
            or, for a view that was not scored, are `left_out`, how many pictures are of no part;
            and `rows`, one for each part, the worst first: the verdict and its `truth`.
        rows: one dict per picture: path, score, threshold, truth, label, defect, category, group,
            votes; and the category that it was judged as, whether that was assigned by its
            features.
        left_out: pictures that the artifact was fitted or calibrated on, not in any metric.
        failures: pictures that could not be scored, and masks that could not be read.
        mask_faults: masks that took part and that a person should look at, as `blemish data check`
            finds them.
        problems: what the data set says of its masks and of files that are not in it, one sentence
            each.
    """

    counts: Mapping[str, int]
    image_auroc: float | None
    image_ap: float | None
    best_f1: float | None
    best_f1_threshold: float | None
    pixel_auroc: float | None
    aupro: float | None
    pixel_auroc_error: float
    aupro_error: float
    by_defect: Mapping[str, Mapping[str, float | int | None]]
    by_category: Mapping[str, Mapping[str, float | int | None]]
    threshold: float | None
    confusion: Mapping[str, int] | None
    rows: tuple[Mapping[str, Any], ...] = field(repr=False)
    category_mean: Mapping[str, float | None] = field(default_factory=dict)
    pixel_auroc_anomalous: float | None = None
    by_group: Mapping[str, Mapping[str, float | int | None]] = field(default_factory=dict)
    votes: Mapping[str, float] | None = None
    regions: Mapping[str, Any] | None = None
    parts: Mapping[str, Any] | None = None
    left_out: tuple[str, ...] = ()
    failures: tuple[Failure, ...] = ()
    mask_faults: tuple[Failure, ...] = ()
    problems: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """A JSON-ready document."""
        listed = {
            "left_out": list(self.left_out),
            "failures": [failure.to_dict() for failure in self.failures],
            "mask_faults": [fault.to_dict() for fault in self.mask_faults],
            "problems": list(self.problems),
            "rows": [dict(row) for row in self.rows],
        }
        others = [one.name for one in fields(self) if one.name not in listed]
        return {**{name: getattr(self, name) for name in others}, **listed}

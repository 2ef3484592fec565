"""How well marked regions meet the defects of a mask: recall, false regions, overlap.

A defect is an 8-connected part of a mask; it is found where a region shares a pixel with it. A
region is false where it shares none with any defect. Precision, recall and F1 of the pixels
("SegF1", Heckler-Kram et al. 2025, "The MVTec AD 2 Dataset") and their intersection over union are
of the pixels of all pictures together.

The recall at a given number of false regions a picture is that of the free-response ROC (Bunch et
al. 1978): the regions are cut at other levels than the threshold, at the places of the map.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import ArrayLike, NDArray

FALSE_REGIONS = (0.1, 0.5, 1.0)  # a picture, at which the recall is told

Mask = NDArray[np.bool_]


@dataclass(frozen=True, kw_only=True)
class Detections:
    """What marked regions are worth. Counts, and fractions between 0 and 1.

    Attributes:
        pictures, normal: how many were compared, and how many of them show no defect.
        defects, found: parts of the masks, and how many of them a region meets.
        regions, false_regions: marked, and how many of them meet no defect.
        normal_with_region: how many normal pictures show any region.
        precision, recall, f1, iou: of the pixels; None where there are none to divide by.
        recall_at: by the false regions a picture: the highest share of defects that is found at any
            level with no more of them; empty without defects.
    """

    pictures: int
    normal: int
    defects: int
    found: int
    regions: int
    false_regions: int
    normal_with_region: int
    precision: float | None
    recall: float | None
    f1: float | None
    iou: float | None
    recall_at: dict[str, float]

    @property
    def region_recall(self) -> float | None:
        """The share of the defects that is found; None without defects."""
        return self.found / self.defects if self.defects else None


class DetectionMetrics:
    """Counts the regions of the pictures added so far, in constant memory.

    Args: levels: K scores of the map at which the free-response curve is measured.

    Example:
        >>> truth = np.zeros((4, 4), dtype=bool)
        >>> truth[0, :2] = True
        >>> hit, miss = truth.copy(), np.roll(truth, 3, axis=0)
        >>> hit[0, 1] = False
        >>> metrics = DetectionMetrics([0.5])
        >>> metrics.add(truth.astype(np.float32), truth, [hit, miss])
        >>> made = metrics.compute()
        >>> made.found, made.false_regions, made.iou, made.recall_at["0.1"]
        (1, 1, 0.25, 1.0)
    """

    def __init__(self, levels: ArrayLike) -> None:
        self._levels = np.asarray(levels, dtype=np.float64)
        self._found_at = np.zeros(len(self._levels), dtype=np.int64)
        self._false_at = np.zeros(len(self._levels), dtype=np.int64)
        self._pictures = self._normal = self._normal_with_region = 0
        self._defects = self._found = self._regions = self._false = 0
        self._both = self._marked = self._true = 0

    def add(
        self,
        anomaly_map: NDArray[np.float32],
        mask: Mask | None,
        regions: Sequence[Mask],
        *,
        smallest: float = 0.0,
    ) -> None:
        """Adds one picture.

        Args:
            anomaly_map: float32 h w, for the curve alone.
            mask: bool H W, True on defects; None, or without any True, for a normal picture.
            regions: bool H W, one for each marked region.
            smallest: the share of the picture that a region of the curve has at least.
        """
        self._pictures += 1
        self._regions += len(regions)
        marked = np.logical_or.reduce(regions) if regions else None
        self._marked += 0 if marked is None else int(marked.sum())
        if mask is None or not mask.any():
            self._normal += 1
            self._normal_with_region += bool(regions)
            self._false += len(regions)
            mask = None
        else:
            count, labels = cv2.connectedComponents(mask.view(np.uint8), connectivity=8)
            self._defects += count - 1
            self._true += int(mask.sum())
            self._false += sum(not mask[region].any() for region in regions)
            if marked is not None:
                self._both += int((marked & mask).sum())
                self._found += len(np.unique(labels[marked & mask]))
        self._add_curve(anomaly_map, mask, smallest)

    def _add_curve(
        self, anomaly_map: NDArray[np.float32], mask: Mask | None, smallest: float
    ) -> None:
        height, width = anomaly_map.shape
        needed = smallest * anomaly_map.size
        owners: NDArray[np.int32] | None = None
        if mask is not None:
            _, labels = cv2.connectedComponents(mask.view(np.uint8), connectivity=8)
            owners = _shrunk(labels, height, width)
        for place, level in enumerate(self._levels):
            above = anomaly_map > level
            if not above.any():
                break
            _, labels, facts, _ = cv2.connectedComponentsWithStats(
                above.view(np.uint8), connectivity=8, ltype=cv2.CV_32S
            )
            large = facts[:, cv2.CC_STAT_AREA] >= needed
            large[0] = False
            if owners is None:
                self._false_at[place] += int(large.sum())
                continue
            shown = large[labels]
            hit = np.unique(labels[shown & (owners > 0)])
            self._false_at[place] += int(large.sum()) - len(hit)
            self._found_at[place] += len(np.unique(owners[shown & (owners > 0)]))

    def merge(self, other: DetectionMetrics) -> None:
        """Adds all that `other` has, of the same levels."""
        assert np.array_equal(self._levels, other._levels)
        for name, value in vars(other).items():
            if name != "_levels":
                setattr(self, name, getattr(self, name) + value)

    def compute(self) -> Detections:
        """The metrics of everything added; more may be added afterwards."""
        either = self._marked + self._true - self._both
        recall_at: dict[str, float] = {}
        if self._defects:
            for most in FALSE_REGIONS:
                kept = self._found_at[self._false_at <= most * self._pictures]
                recall_at[f"{most:g}"] = float(kept.max(initial=0)) / self._defects
        return Detections(
            pictures=self._pictures,
            normal=self._normal,
            defects=self._defects,
            found=self._found,
            regions=self._regions,
            false_regions=self._false,
            normal_with_region=self._normal_with_region,
            precision=self._both / self._marked if self._marked else None,
            recall=self._both / self._true if self._true else None,
            f1=2 * self._both / (self._marked + self._true) if self._true else None,
            iou=self._both / either if self._true else None,
            recall_at=recall_at,
        )


def _shrunk(labels: NDArray[np.int32], height: int, width: int) -> NDArray[np.int32]:
    """Labels H W at h w, where a place has the label of any part in it: none is lost."""
    small = np.zeros((height, width), dtype=np.int32)
    rows, columns = np.nonzero(labels)
    down, across = rows * height // labels.shape[0], columns * width // labels.shape[1]
    # The smallest parts last, so that they stay where they share a place with larger ones.
    sizes = np.bincount(labels.ravel())
    order = np.argsort(-sizes[labels[rows, columns]], kind="stable")
    small[down[order], across[order]] = labels[rows[order], columns[order]]
    return small

"""Pre-training by views that miss patches: what APMask, DINO and MSN have in common.

The teacher sees one global view whole and says what the student should predict from each of its own
views, of which patches are absent: they never enter block 1.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from blemish.config import FractionBelow1
from blemish.losses.clustering import multi_view
from blemish.methods.selfsupervised import SelfSupervised, SelfSupervisedConfig, look
from blemish.methods.views import far_from_a_place, most

Masking = Literal["none", "random", "block", "attention"]


@dataclass(frozen=True, kw_only=True)
class MaskedConfig(SelfSupervisedConfig):
    """Settings of what masks by leaving patches out; see `SelfSupervisedConfig` for the others.

    Attributes:
        masking: which patches the student's views lose: "none"; "random"; "block" (they lie
            together); "attention" (those that the teacher attends to least).
        mask_ratio: the share of the patches that a view loses, in [0, 1).
    """

    masking: Masking = "attention"
    mask_ratio: FractionBelow1 = 0.3


class Masked(SelfSupervised):
    """One view for the teacher, all others for the student.

    Attributes: masks_local: whether local views lose patches as well.
    """

    config: MaskedConfig
    masks_local = True
    other_remedy = ", or another masking (--masking none),"

    def loss_of(self, views: tuple[Tensor, Tensor, Tensor], fraction: float) -> Tensor:
        assert self.teacher is not None
        whole, wide, narrow = views
        with torch.no_grad():
            seen, shown = look(self.teacher.backbone, self.teacher.head, whole)
            targets = self.targets(shown)
        found = look(self.backbone, self.head, wide, self.kept(wide))[1]
        features = [found]
        if len(narrow):
            keep = self.kept(narrow) if self.masks_local else None
            local = look(self.backbone, self.head, narrow, keep)[1]
            features += local.split(len(wide))  # type: ignore[no-untyped-call]
        predictions = self.log_shares(features)
        self._note(targets, predictions[0], (shown * found).sum(1), seen, shown)
        return self.loss(targets, predictions)

    @abstractmethod
    def targets(self, shown: Tensor) -> Tensor:
        """What the student should predict, B K, from the teacher's features B D of length 1."""

    def loss(self, targets: Tensor, predictions: Sequence[Tensor]) -> Tensor:
        """The loss of targets B K and the log-predictions of each view, each B K."""
        return multi_view(targets, predictions)

    def kept(self, views: Tensor) -> Tensor | None:
        """Which patches of views B 3 H W the student is shown: int64 B K, ascending; None = all."""
        masking, ratio = self.config.masking, self.config.mask_ratio
        if masking == "none" or ratio == 0:
            return None
        stride = self.backbone.stride
        grid = views.shape[2] // stride, views.shape[3] // stride
        if masking == "attention":
            worth = self._watched(views).flatten(1)
        elif masking == "block":  # drawn on the host, so that every device draws the same
            worth = far_from_a_place(len(views), grid)
        else:
            worth = torch.rand(len(views), grid[0] * grid[1])
        return most(worth, ratio).to(views.device)

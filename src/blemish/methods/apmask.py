"""APMask: pre-train an encoder on good pictures, hiding from the student what the teacher does not
look at.

"Attention-Conditioned Augmentations for Self-Supervised Anomaly Detection and Localization" (the
APMask paper). A student sees one global and several local views of a picture, each without the ⌊rN⌋
patches that the [CLS] token attends to least (eq. 2-4); a teacher, the student's average over time,
sees another global view whole. Of the teacher's features a balanced soft clustering is made, which
the student has to predict from each of its views (eq. 1). The patches are not blanked but absent:
they never enter block 1.

The paper does not say, and here: the attention is the teacher's, in its last block, of the very
view that is masked; the targets are balanced in 3 iterations with ε = 0.05, by the student's own
prototypes; weight decay is DINO's first value, 0.04, throughout. What is kept in the end is the
teacher, as DINO does. The views are DINO's (`views.py`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from torch import Tensor

from blemish.config import Positive, Range
from blemish.losses.clustering import sinkhorn
from blemish.methods.masked import Masked, MaskedConfig
from blemish.methods.views import DINO_GLOBAL, DINO_LOCAL


@dataclass(frozen=True, kw_only=True)
class APMaskConfig(MaskedConfig):
    """Settings of APMask; see `MaskedConfig` for the others. `paper` is the published setting.

    Attributes: epsilon, iterations: of the balancing, see `losses.clustering.sinkhorn`.
    """

    epsilon: Positive = 0.05
    iterations: Annotated[int, Range(1, 1000)] = 3


class APMask(Masked):
    """Predicts a balanced clustering of the teacher's features."""

    name = "apmask"
    Config = APMaskConfig
    config: APMaskConfig
    global_views, local_view = DINO_GLOBAL, DINO_LOCAL

    def targets(self, shown: Tensor) -> Tensor:
        config, scores = self.config, self.head.scores(shown)
        return sinkhorn(scores, epsilon=config.epsilon, iterations=config.iterations)

"""AHL: DRA's heads, taught so that what they learn of some anomalies holds for others.

Zhu, Ding, Tian & Pang 2024, "Anomaly Heterogeneity Learning for Open-set Supervised Anomaly
Detection", around DRA. An extractor is trained as `dra` trains it, and stays as it is from then on.
T base models start from one unified model g in every step; base model i takes gradient steps on its
support set (eq. 1); the loss of all on their query sets is that of g (eq. 2-4), differentiated
through the first of these steps. Normal pictures, known defects and kinds of made anomalies of the
two sets differ (`tasks`); how much a base model counts is learned from how its scores go on
(`importance`, eq. 5-7). T = C (C − 1), one for each ordered pair of C clusters. g alone is kept:
its network, score and heatmap are DRA's.

After the authors' code: the deviation losses are means, not sums, over a set; g starts anew, not
from the heads that the extractor was trained with; only the first step of a base model is
differentiated; made anomalies are CutMix, CutPaste and DRAEM's; gradients are clipped at 1.

Deviates: a step is one on a batch, where the authors' has 20 of each set; so normal pictures of a
batch are divided by which of the two clusters they lie nearer to, those of a third one, too. The
clusters, and what ψ sees, are of `watched` pictures of the sample; a known defect is on the side of
the watched one that it resembles most. Pictures are turned in both stages; a third of a batch has
anomalies made; DRAEM's textures are generated. Batch norm has running statistics (in the code
none). The weights of eq. 7 count as printed, in the code with 0.5 + 0.5 w; until ψ has seen K steps
they are 1/T. Weight decay does not act on ψ, whose rate drops as that of g. In the code clusters
are filled with other pictures than their members, and the residual head has a scale of 0 before a
ReLU, so that it never learns: not here. A run too short for a step of g is DRA.

`best` is for encoders at hand, which stay as they are, so that there is no first stage; batches are
those of `dra`, pictures are not turned, a base model takes one step. The rest is the paper's.
"""

from __future__ import annotations

from functools import partial
from typing import Any, cast

import torch
from torch import Tensor

from blemish.anomalies.perlin import PerlinTexture
from blemish.backbones import Backbone
from blemish.methods.ahl_config import AhlConfig
from blemish.methods.augmentation import simulated
from blemish.methods.dra import Dra, divided
from blemish.methods.importance import Importance
from blemish.methods.learner import TrainingBatch
from blemish.methods.openset import Heads
from blemish.methods.tasks import (
    LABELLED,
    PLAIN,
    Half,
    Known,
    Model,
    adapted,
    halves,
    kinds_drawn,
    tasks_of,
    watched_of,
)


class Ahl(Dra):
    """DRA's network; while it is trained also the heads of the first stage, and ψ.

    Attributes:
        pictures, kinds: the watched ones P 3 H W, and what they are, int64 P; see `tasks`.
    """

    name = "ahl"
    summary = "the heads of dra, taught on parts of the pictures and held against others"
    source = "Zhu et al. 2024, Anomaly Heterogeneity Learning"
    Config = AhlConfig
    training_only = ("base.", "importance.")
    in_turns = True
    config: AhlConfig
    base: Heads | None
    importance: Importance | None
    pictures: Tensor
    kinds: Tensor

    def __init__(self, config: AhlConfig, backbone: Backbone) -> None:
        super().__init__(config, backbone)
        self.tasks = tasks_of(config.clusters, config.seed)
        self.base = self.importance = None
        self._known: Known | None = None
        self.register_buffer("pictures", torch.empty(0), persistent=False)
        self.register_buffer("kinds", torch.empty(0, dtype=torch.int64), persistent=False)

    def start_training(self, sample: TrainingBatch) -> None:
        super().start_training(sample)
        images, count = sample.images, self.config.watched
        assert images is not None
        self.pictures, kinds = self.made(*watched_of(images, sample.labels, count))
        self.kinds = kinds.to(images.device)
        if self.config.base_share:
            self.base = Heads(self._width(), self.config.hidden).to(images.device)
        self.importance = Importance(count, self.config.history, len(self.tasks)).to(images.device)

    def made(self, images: Tensor, plain: int, normal: int) -> tuple[Tensor, Tensor]:
        """Pictures B 3 H W, of which those from `plain` to `normal` have got anomalies of the three
        kinds, about as many of each; and what all are, int64 B on the CPU.
        """
        kinds = torch.full((len(images),), LABELLED)
        kinds[:plain], kinds[plain:normal] = PLAIN, kinds_drawn(normal - plain)
        one, two, three, end = (int((kinds < kind).sum()) for kind in range(1, LABELLED + 1))
        images = self.pasted(images, one, two, other=True)
        images = self.pasted(images, two, three)
        whole, seeds = images[three:end], torch.randint(2**62, (end - three,)).tolist()
        if seeds:
            how = self.backbone.colours(whole), None, seeds, self._looked_at(whole)
            whole = simulated([PerlinTexture()], whole, *how)[0]
        return torch.cat([images[:three], whole, images[end:]]), kinds

    def groups(self) -> list[dict[str, Any]]:
        self._known = None  # of another run, of which steps are undone
        assert self.importance is not None
        learned, decay = [*self.importance.parameters()], self.config.base_decay
        groups: list[dict[str, Any]] = [{"params": learned, "weight_decay": 0.0}]
        groups.append({"params": [*self.heads.parameters()]})
        if self.base is not None:
            groups.append({"params": [*self.base.parameters()], "weight_decay": decay})
            rate = self.config.learning_rate * self.config.extractor_rate
            own = {"params": self.of_the_extractor(), "lr": rate, "weight_decay": decay}
            groups.append(own)
        return groups

    def learning_rate_factor(self, fraction: float) -> float:
        """Each of the two stages steps down in its own thirds."""
        share = self.config.base_share
        if fraction < share:
            ratio = self.config.base_rate / self.config.learning_rate
            return ratio * super().learning_rate_factor(fraction / share)
        return super().learning_rate_factor((fraction - share) / (1 - share))

    def training_step(self, batch: TrainingBatch, fraction: float) -> Tensor:
        """DRA's loss in the first stage; in the second eq. 4, and eq. 5 for ψ."""
        if self.base is not None and fraction < self.config.base_share:
            self._known = None
            self.backbone.train()
            return self.end_to_end(self.base, *self.mixed(batch))
        with torch.autocast(self.backbone.device.type, enabled=False):
            return self.collaborative(batch)

    def collaborative(self, batch: TrainingBatch) -> Tensor:
        """The loss of a step of the unified model, and that of ψ."""
        self.backbone.eval()
        known = self.known()
        images, plain, normal = divided(batch, least=4)
        images, kinds = self.made(images, plain, normal)
        with torch.no_grad():
            features = self.extracted(images, self.see(images))
        near = known.distances(features[0][:plain])
        like = known.resembled(features[0][normal:])
        insides, losses, scores = self.insides(images), [], []
        for task, *sides in zip(self.tasks, known.learned, known.held, strict=True):
            support, query = (
                partial(self._loss, half, features, insides)
                for half in halves(near, kinds, task, *(side[like] for side in sides))
            )
            model = adapted(self.heads, support, self.config.inner_steps, self.config.inner_rate)
            losses.append(query(model))
            scores.append(self._known_scores(model))
        assert self.importance is not None
        told = torch.stack(losses), torch.stack(scores, dim=1), known.labels, known.factors
        return cast(Tensor, self.importance(*told))

    def _loss(
        self, half: Half, features: list[Tensor], insides: list[Tensor | None], model: Model
    ) -> Tensor:
        """The loss of a model on some rows of a batch."""
        own, inside = half.of(features), half.of(insides)
        look = self.scored(model, own, self.known().reference, inside)
        return self.losses(look, half.plain, half.normal)

    @torch.no_grad()
    def _known_scores(self, model: Model) -> Tensor:
        """The anomaly scores of the watched pictures, P."""
        known = self.known()
        self.heads.eval()
        scores = self.scored(model, known.features, known.reference, known.insides).anomaly
        self.heads.train()
        return scores

    @torch.no_grad()
    def known(self) -> Known:
        """What is known of the watched pictures, once the extractor stays as it is."""
        if self._known is None:
            images, count = torch.cat([self.examples, self.pictures]), len(self.examples)
            features = self.extracted(images, self.see(images))
            reference = [each[:count].mean(0) for each in features]
            own = [each[count:] for each in features], reference, self.insides(self.pictures)
            single = self.class_counts[1] <= self.config.rotations * (1 + self.config.flips)
            drawn = self.tasks, single, self.config.seed
            self._known = Known(*drawn, self.pictures, self.kinds, *own)
        return self._known

    def end_training(self, steps: int) -> None:
        if self.base is not None and self.importance is not None and not self.importance.filled:
            self.heads.load_state_dict(self.base.state_dict())
        self.base = self.importance = self._known = None
        self.pictures, self.kinds = self.pictures[:0], self.kinds[:0]
        super().end_training(steps)

"""What all objectives of pre-training share: an encoder that learns from good pictures, without
labels, by telling what views of the same picture have in common.

A student, a teacher that is its average over time, a head with prototypes on both, the views of
each picture, and the signs of health by which a collapse is noticed. An objective says which views
there are, what the student is shown of them, what it should predict, and the loss; each is one file
beside this one, read beside its paper: `apmask`, `dino`, `ibot`, `msn`, `swav`.

Table 3 of the APMask paper alters the objective alone. So the schedule, the optimiser, the head
(DINO's three layers, without batch norm) and the weights that are started from are those of APMask
for all of them, and so differ from the objectives' own papers: no batches of 1,024 pictures, no
LARS, no drop path, prototypes of length 1, gradients clipped to 1, weight decay 0.04 throughout.
"""

from __future__ import annotations

import copy
import math
from abc import abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Annotated, ClassVar, Self

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from blemish.backbones import Backbone
from blemish.backbones.vit import VitBackbone
from blemish.config import Fraction, NotNegative, Positive, Range, Seed, Side
from blemish.errors import CollapseError, ConfigError
from blemish.losses.clustering import mean_over_processes
from blemish.methods.heads import initialise, projection
from blemish.methods.learner import FineTuned, FineTuning, TrainingBatch, follow
from blemish.methods.views import Augmentation, view

# Steps over which a reading is averaged that one batch says little of; from then on it is judged.
SETTLED = 50
LEAST_USAGE = 2.0  # prototypes
LEAST_SPREAD = 1e-3  # of the encoder's features
# Spread of the head's features, below which ε = 0.05 balances all pictures to the same targets.
LEAST_TOLD_APART = 1e-2


@dataclass(frozen=True, kw_only=True)
class SelfSupervisedConfig(FineTuning):
    """Settings that every objective has; the defaults are `best`.

    Attributes:
        backbone: an alias of `blemish backbones`, or any timm model name: a ViT with a [CLS] token.
        image_size: side of the global views, in pixels; `local_size`: of the local ones. Rounded to
            what the backbone divides.
        local_views: how many local views of a picture the student sees, beside the global ones.
        picture_size: side of the square that a picture is decoded to, out of which its views are
            cropped; so large that no view is enlarged (APMask's smallest crops are 0.55, global,
            and 0.19, local, of its side). Kept between epochs it takes 3 MiB a picture at 512, see
            `cache_gib`, four times what 256 takes.
        prototypes: how many clusters there are.
        hidden, bottleneck: widths of the projection head.
        temperature: of the student's predictions.
        momentum: how much of the teacher stays in a step at the start; it rises to 1 as a cosine.
            DINO's; a teacher that follows sooner makes short runs collapse.
        centred: whether the head's first layer starts from [CLS] tokens of mean 0 and variance 1
            over some of the pictures. Those of good parts differ little, and a head drawn at random
            tells them apart hardly at all.
        seed: of the head's and the prototypes' first weights, and of the run.
    """

    epochs: Annotated[int, Range(1, 2**31)] = 100
    min_steps: Annotated[int, Range(0, 2**31)] = 500
    train_batch_size: Annotated[int, Range(2, 2**20)] = 16  # to tell apart
    learning_rate: Positive = 1e-4
    weight_decay: NotNegative = 0.04
    backbone: str = "dinov2_vits14"
    image_size: Side = 224
    local_size: Side = 96
    local_views: Annotated[int, Range(0, 1024)] = 8
    picture_size: Side = 512
    prototypes: Annotated[int, Range(3, 2**16)] = 20
    hidden: Annotated[int, Range(1, 2**16)] = 2048
    bottleneck: Annotated[int, Range(1, 2**16)] = 256
    temperature: Positive = 0.1
    momentum: Fraction = 0.996
    centred: bool = True
    learning_rate_start: NotNegative = 1e-6
    seed: Seed = 0

    @classmethod
    def best(cls) -> Self:
        """Ours, for short runs from a good encoder, which is to be refined and not undone: a lower
        learning rate, the lower the earlier the block. Tried for APMask; the others have the same.
        """
        return cls()

    @classmethod
    def paper(cls) -> Self:
        """The schedule of the APMask paper: DINO ViT-S/16, 300 epochs of batches of 16."""
        return cls(
            backbone="dino_vits16",
            epochs=300,
            min_steps=0,
            learning_rate=5e-4,
            learning_rate_start=1e-5,
            warmup=10 / 300,
            layer_decay=1.0,
            centred=False,
        )

    @classmethod
    def recipes(cls) -> dict[str, Callable[[], Self]]:
        """Name -> constructor."""
        return {"best": cls.best, "paper": cls.paper}


class SelfSupervised(FineTuned):
    """Student and, while training, its teacher.

    Attributes:
        Config: the class of its settings.
        global_views, local_view: how the two global views and each local one are made.
        other_remedy: what else than a lower learning rate and more pictures may help against a
            collapse.
    """

    Config: ClassVar[type[SelfSupervisedConfig]]
    training_only: ClassVar[tuple[str, ...]] = ("head.",)
    global_views: ClassVar[tuple[Augmentation, Augmentation]]
    local_view: ClassVar[Augmentation]
    other_remedy: ClassVar[str] = ""
    config: SelfSupervisedConfig
    backbone: VitBackbone
    needs_images = True
    recent: Tensor  # 1 + K, over recent steps: spread of the head's features, mean prediction
    latest: Tensor  # the readings
    _noted: Tensor  # what they are made of

    def __init__(self, config: SelfSupervisedConfig, backbone: Backbone) -> None:
        super().__init__()
        if not isinstance(backbone, VitBackbone) or backbone.model.cls_token is None:
            raise ConfigError(
                f"{self.name} needs a ViT with a [CLS] token, which {backbone.spec.name} is not"
            )
        self.config = config
        self.backbone = backbone
        self.global_size = backbone.round_size(config.image_size, config.image_size)
        self.local_size = backbone.round_size(config.local_size, config.local_size)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(config.seed)
            self.head = Head(backbone.dim, config.prototypes, config.hidden, config.bottleneck)
        self.register_buffer("recent", torch.zeros(1 + config.prototypes))
        self.register_buffer("latest", torch.zeros(5))
        self.teacher: Teacher | None = None

    def train(self, mode: bool = True) -> Self:
        super().train(mode)
        if self.teacher is not None:
            self.teacher.eval()
        return self

    # Training

    def start_training(self, sample: TrainingBatch) -> None:
        if self.config.centred:
            assert sample.images is not None
            with torch.no_grad():
                self.head.centre(look(self.backbone, self.head, self.views(sample.images)[0])[0])
        self.teacher = Teacher(self.backbone, self.head)
        self.backbone.requires_grad_(True)

    def training_step(self, batch: TrainingBatch, fraction: float) -> Tensor:
        assert batch.images is not None
        return self.loss_of(self.views(batch.images), fraction)

    @abstractmethod
    def loss_of(self, views: tuple[Tensor, Tensor, Tensor], fraction: float) -> Tensor:
        """The loss (a scalar) of the views of a batch, as `views` gives them, at `fraction` of the
        run. It has to call `_note`."""

    def views(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Of normalised pictures B 3 H W, normalised: two global views, each B 3 h w, and the local
        ones V·B 3 h w, view by view.
        """
        mean, std = self.backbone.colours(images)
        # bf16 places a crop to a fifth of a pixel
        with torch.autocast(images.device.type, enabled=False):
            pixels = (images.float() * std + mean).clamp(0, 1)
            made = [view(pixels, self.global_size, how) for how in self.global_views]
            for _ in range(self.config.local_views):
                made.append(view(pixels, self.local_size, self.local_view))
            first, second, *narrow = ((each - mean) / std for each in made)
        return first, second, torch.cat(narrow) if narrow else second[:0]

    def log_shares(self, features: Sequence[Tensor], *, frozen: bool = False) -> list[Tensor]:
        """What the student predicts: for each view the logarithms of softmax(z·C / τ), B K.

        Args: features: of each view, of length 1, B D. frozen: the prototypes get no gradient.
        """
        scores = (self.head.scores(each, frozen=frozen) for each in features)
        return [(each / self.config.temperature).log_softmax(1) for each in scores]

    @torch.no_grad()
    def _note(
        self, targets: Tensor, predictions: Tensor, agreements: Tensor, seen: Tensor, shown: Tensor
    ) -> None:
        """Keep what `after_step` judges by, over all processes.

        Args: targets, log-predictions of a global view: B K. agreements: B. seen: the teacher's
            [CLS], B D. shown: what its head makes of them, of length 1.
        """
        uncertainty = torch.special.entr(targets).sum(1) / math.log(self.config.prototypes)
        apart = [scattered(F.normalize(seen, dim=1)), scattered(shown)]
        rows = torch.stack([uncertainty, agreements, *apart], dim=1).mean(0)
        noted = mean_over_processes(torch.cat([rows, predictions.exp().mean(0)]))
        noted[2:4].sqrt_()
        self._noted = noted

    def after_step(self, step: int, steps: int) -> None:
        """The prototypes get length 1 again, and the teacher follows. Raises: CollapseError."""
        assert self.teacher is not None
        self.head.normalise()
        momentum = self.momentum(step, steps)
        follow(self.teacher.backbone, self.backbone, momentum)
        follow(self.teacher.head, self.head, momentum)
        self.teacher.head.normalise()
        with torch.no_grad():
            uncertainty, agreement, spread = self._noted[:3]
            self.recent.lerp_(self._noted[3:], max(1 / step, 1 / SETTLED))
            usage = torch.special.entr(self.recent[1:]).sum().exp()
            self.latest.copy_(torch.stack([uncertainty, usage, agreement, spread, self.recent[0]]))
        self._check(step)

    def momentum(self, step: int, steps: int) -> float:
        """How much of the teacher stays in step number `step` (from 1)."""
        return 1 - (1 - self.config.momentum) * 0.5 * (1 + math.cos(math.pi * (step - 1) / steps))

    @property
    def readings(self) -> dict[str, float]:
        """The signs of health of the last step, over all processes.

        assignment_entropy: of the targets, in units of log K; 1 = no cluster is told from another.
        prototype_usage: exp of the entropy of the mean prediction for global views over the last 50
        steps or so: how many prototypes are in use, 1 to K. agreement: mean cosine of the teacher's
        and the student's features of a picture. feature_spread: standard deviation of the teacher's
        [CLS] tokens, of length 1, about their mean, in [0, 1]. projection_spread: the same of what
        its head makes of them, over recent steps like the usage.
        """
        names = (
            "assignment_entropy",
            "prototype_usage",
            "agreement",
            "feature_spread",
            "projection_spread",
        )
        return dict(zip(names, self.latest.tolist(), strict=True))

    def _check(self, step: int) -> None:
        _, usage, _, spread, told_apart = self.latest.tolist()
        same = "features of all pictures are the same (they spread by"
        if step >= SETTLED and usage < LEAST_USAGE:
            seen = (
                f"all pictures fall on {usage:.2f} of {self.config.prototypes} prototypes "
                f"(over {SETTLED} steps)"
            )
        elif spread < LEAST_SPREAD:
            seen = f"the encoder's {same} {spread:.1g})"
        elif step >= SETTLED and told_apart < LEAST_TOLD_APART:
            seen = f"the head's {same} {told_apart:.1g})"
        else:
            return
        raise CollapseError(
            f"the pre-training collapsed at step {step}: {seen}; a lower learning rate "
            "(--set learning_rate=…) or more pictures a step (--set train_batch_size=…)"
            f"{self.other_remedy} may help"
        )

    def findings(self, sample: TrainingBatch) -> dict[str, float]:
        """The last readings."""
        return self.readings

    def end_training(self, steps: int) -> None:
        """The encoder is the teacher's from here on, the better one (Caron et al. 2021)."""
        assert self.teacher is not None
        self.backbone.load_state_dict(self.teacher.backbone.state_dict())
        self.head.load_state_dict(self.teacher.head.state_dict())
        self.teacher = None
        self.requires_grad_(False)

    # What it gives

    @torch.no_grad()
    def attention(self, images: Tensor) -> Tensor:
        """Where the teacher looks in normalised pictures B 3 H W, at `image_size`: float32 B h w,
        sum 1.
        """
        if tuple(images.shape[-2:]) != self.global_size:
            images = F.interpolate(
                images, self.global_size, mode="bilinear", align_corners=False, antialias=True
            )
        return self._watched(images)

    @torch.no_grad()
    def _watched(self, images: Tensor) -> Tensor:
        backbone = self.backbone if self.teacher is None else self.teacher.backbone
        return backbone.guidance(images, (backbone.depth,))


class Head(nn.Module):
    """DINO's projection head, and prototypes of length 1."""

    def __init__(self, dim: int, prototypes: int, hidden: int, bottleneck: int) -> None:
        super().__init__()
        self.layers = projection(dim, hidden, bottleneck)
        initialise(self)
        self.prototypes = nn.Parameter(torch.randn(prototypes, bottleneck))
        self.normalise()

    def forward(self, tokens: Tensor) -> Tensor:
        """Features of length 1, float32 … bottleneck, of tokens … D."""
        return F.normalize(self.layers(tokens).float(), dim=-1)

    def scores(self, features: Tensor, *, frozen: bool = False) -> Tensor:
        """Cosines … K of features with the prototypes, not rounded to bf16. `frozen`: the
        prototypes' gradient is 0, and not none, which several processes would wait for."""
        with torch.autocast(features.device.type, enabled=False):
            if frozen:
                return features @ (self.prototypes.detach() + 0 * self.prototypes).T
            return features @ self.prototypes.T

    @torch.no_grad()
    def centre(self, cls: Tensor) -> None:
        """Let the first layer see [CLS] tokens that are spread as these, B D, with mean 0 and
        variance 1.
        """
        first = self.layers[0]
        assert isinstance(first, nn.Linear)
        std, mean = torch.std_mean(cls.float(), dim=0, correction=0)
        first.weight.div_(std.clamp(min=1e-6))
        first.bias.sub_(first.weight @ mean)

    @torch.no_grad()
    def normalise(self) -> None:
        """Give the prototypes length 1."""
        self.prototypes.copy_(F.normalize(self.prototypes, dim=1))


class Teacher(nn.Module):
    """The average of a student over time."""

    def __init__(self, backbone: VitBackbone, head: Head) -> None:
        super().__init__()
        self.backbone = copy.deepcopy(backbone)
        self.head = copy.deepcopy(head)
        self.requires_grad_(False).eval()


def look(
    backbone: VitBackbone, head: Head, views: Tensor, keep: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """The final [CLS] tokens B D of views B 3 H W of which the patches `keep` are shown, and their
    features.
    """
    cls = backbone.norm(backbone(views, (backbone.depth,), keep=keep).cls[-1])
    features: Tensor = head(cls)
    return cls, features


def scattered(rows: Tensor) -> Tensor:
    """Squared distances B of rows B D from their mean, which is that over all processes."""
    return (rows - mean_over_processes(rows.mean(0))).square().sum(1)

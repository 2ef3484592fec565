"""The settings of `guided`: ours, and those of the two papers."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Annotated, Any, Literal, Self

from blemish.anomalies import simulator
from blemish.config import Factor, FractionBelow1, Length, NotNegative, Positive, Range, Side
from blemish.errors import ConfigError
from blemish.methods.base import LARGEST_BANK, Pooling
from blemish.methods.learner import FineTuning
from blemish.methods.masked import Masking
from blemish.methods.objectives import objective_class
from blemish.methods.selfsupervised import SelfSupervisedConfig
from blemish.methods.trained import TrainedConfig

Pretraining = Literal["none", "apmask", "dino", "ibot", "msn", "swav", "published"]
SIX_SCALES = (224, 320, 384, 416, 448, 512)


@dataclass(frozen=True, kw_only=True)
class GuidedConfig(TrainedConfig, FineTuning):
    """Settings of `guided`; the defaults are `best`.

    Attributes:
        simulators: names of `blemish.anomalies`; one of them, drawn evenly, makes each twin. Those
            of `best` cut and paste large pieces and small ones, hard.
        blend_x_rays: whether guided pieces are blended (Poisson) into X-rays, as the second paper
            does and the first does not: nothing in an X-ray has hard edges, so a hard edge would be
            what is learned.
        guidance: where guided simulators cut and paste: "attention", or as controls "uniform" and
            "shuffled" (attention at the wrong places).
        guide_layers: the layers whose [CLS] attention guides, averaged; -1 = the last one, empty =
            `layers`.
        augment: whether normal pictures are cropped, and made brighter or darker, first.
        map_head: what the learned map is made of: "attention" (a mix of the last block's heads, as
            published), "patches" (the features of every patch in `layers`), or "features" (both).
        trainable_blocks: how many blocks of the encoder learn, counted back from the deepest one
            that is read; 0 = none, None = all and the patch embedding. What nothing reads does not
            learn.
        cross_entropy_weight, dice_weight, bce_weight: weights of the losses: cross-entropy of the
            picture's class (only where the score, or the adaptation by entropies, reads the class),
            Dice of the map, and binary cross-entropy of every location of the map (the paper has
            none).
        score: the image score: "class" (log-odds of the picture's class), "map" (mean of the map's
            `top_fraction`) or "both" (their sum).
        bank_size: how many features of normal patches are kept once training has ended. The
            distance to the nearest is then part of the map. 0 = none, the map is the learned one.
        head_weight: weight of the learned map beside that distance, both in units of their spread
            over normal pictures.
        pooling: side of the square of neighbouring patches that are averaged to a feature of the
            bank; odd.
        ema: whether the average of the weights over the last tenth of the run is kept, in place of
            the last ones.
        adaptation: what is brought back to the training pictures' at test time: "features" (their
            moments, in closed form) or "entropies" (of the last block's attention, as published).
        adaptation_rate, adaptation_steps: of SGD, and its steps a batch, for "entropies". The rate
            of 0.1 was chosen while looking at test labels of magnetic tile; the papers' recipes
            have that of the nearest published code, 0.001, as the poster gives none.
        adaptation_guard: whether, for "entropies", batches that lie where training pictures do are
            left as they are, and steps that do not help undone. The papers' recipes always adapt.
        scales: sides of the squares that a picture is looked at in when it is scored. The time
            grows with the sum of their areas: the six of the paper cost 19 times 224² alone.
        map_stride: pixels of the scored picture, along each side, to a place of the map. The maps
            of all `scales` are averaged at that size; 1 = at that of the scored picture.
        zoom: where there are no `scales`, a picture is scored in this multiple of `image_size`, in
            which it is trained.
        pretraining: how the encoder is trained further on the same pictures before all this:
            "none"; an objective, "apmask", "dino" (on APMask's views), "ibot", "msn" or "swav"; or
            "published": "apmask", but "none" on chest X-rays, as in the second paper.
        pretraining_recipe, pretraining_epochs: the recipe of its objective that it follows, and its
            length, though not below the recipe's `min_steps`; a time budget decides instead of
            both.
        masking, mask_ratio: for "apmask" and "dino", which patches the student does not see, and
            what share of them; see `masked.MaskedConfig`. The others mask as their papers do.
    """

    image_size: Annotated[tuple[Side, ...], Length(1, 2)] = (224,)
    epochs: Annotated[int, Range(1, 2**31)] = 20
    min_steps: Annotated[int, Range(0, 2**31)] = 400
    train_batch_size: Annotated[int, Range(1, 2**20)] = 8
    learning_rate: Positive = 5e-4
    weight_decay: NotNegative = 0.05
    simulators: Annotated[tuple[str, ...], Length(1)] = ("guided", "guided-fine")
    blend_x_rays: bool = True
    guidance: Literal["attention", "uniform", "shuffled"] = "attention"
    guide_layers: Annotated[tuple[Annotated[int, Range(-1024, 1024)], ...], Length(most=64)] = ()
    augment: bool = True
    map_head: Literal["attention", "patches", "features"] = "patches"
    trainable_blocks: Annotated[int, Range(0, 1024)] | None = 0
    cross_entropy_weight: NotNegative = 0.95
    dice_weight: NotNegative = 0.05
    bce_weight: NotNegative = 1.0
    score: Literal["class", "map", "both"] = "map"
    bank_size: Annotated[int, Range(0, LARGEST_BANK)] = 16_000
    head_weight: Factor = 0.25
    pooling: Pooling = 3
    ema: bool = True
    adaptation: Literal["features", "entropies"] = "features"
    adaptation_rate: Positive = 0.1
    adaptation_steps: Annotated[int, Range(1, 1000)] = 1
    adaptation_guard: bool = True
    map_stride: Annotated[int, Range(1, 1024)] = 4
    scales: Annotated[tuple[Side, ...], Length(most=64)] = ()
    zoom: Annotated[float, Range(0.25, 8)] = 2.0
    pretraining: Pretraining = "none"
    pretraining_recipe: Literal["best", "paper"] = "best"
    pretraining_epochs: Annotated[int, Range(1, 2**31)] = 300
    masking: Masking = "attention"
    mask_ratio: FractionBelow1 = 0.3

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in self.simulators:
            simulator(name)  # refuses an unknown one
        if 0 in self.guide_layers:
            raise ConfigError("guide_layers: count from 1, or back from -1, the last; got 0")
        read = self.cross_entropy_weight if self.reads_class else 0
        if not self.dice_weight + self.bce_weight + read:
            raise ConfigError(
                "cross_entropy_weight, dice_weight, bce_weight: one of them must be above 0, and "
                "another than cross_entropy_weight where score is map"
            )
        if self.scales and self.height_width[0] != self.height_width[1]:
            raise ConfigError("scales: are sides of squares; choose a square image_size, or none")

    @classmethod
    def paper_bmvc(cls) -> Self:
        """The poster's setting: hard pasting, on X-rays too; one size. Adaptation is asked for at
        prediction (`adapt="online"`), and is then always made."""
        return cls(
            backbone="dino_vits16",
            epochs=100,
            min_steps=0,
            train_batch_size=16,
            smoothing=0.0,
            simulators=("guided",),
            blend_x_rays=False,
            guide_layers=(-1,),
            map_head="attention",
            trainable_blocks=None,
            layer_decay=1.0,
            bce_weight=0.0,
            score="class",
            bank_size=0,
            ema=False,
            adaptation="entropies",
            adaptation_rate=1e-3,
            adaptation_guard=False,
            zoom=1.0,
        )

    @classmethod
    def paper_aaai(cls) -> Self:
        """The second paper's setting: 300 epochs of APMask, then as the first, blended on X-rays,
        with six sizes whose maps are averaged at the largest of them.
        """
        return replace(
            cls.paper_bmvc(),
            blend_x_rays=True,
            scales=SIX_SCALES,
            map_stride=1,
            pretraining="published",
            pretraining_recipe="paper",
        )

    def for_pictures(self, *, x_rays: bool) -> Self:
        """X-rays are blended where `blend_x_rays` says so, and "published" is no pre-training on
        them: the second paper's row for NIH is without.
        """
        simulators, pretraining = self.simulators, self.pretraining
        if x_rays and self.blend_x_rays and set(simulators) <= {"guided", "guided-fine"}:
            simulators = ("guided-poisson",)
        if pretraining == "published":
            pretraining = "none" if x_rays else "apmask"
        return replace(self, simulators=simulators, pretraining=pretraining)

    @property
    def encoder_learns(self) -> bool:
        return self.trainable_blocks != 0

    @property
    def needs_squares(self) -> bool:
        return bool(self.scales)

    @property
    def reads_class(self) -> bool:
        """Whether there is a class head: the score reads it, or adaptation by entropies."""
        return self.score != "map" or self.adaptation == "entropies"

    @property
    def pretraining_config(self) -> SelfSupervisedConfig | None:
        """The recipe's views are for pictures of 224²; these are in proportion to `image_size`."""
        if self.pretraining == "none":
            return None
        name = "apmask" if self.pretraining == "published" else self.pretraining
        recipe = objective_class(name).Config.recipes()[self.pretraining_recipe]()
        masks: dict[str, Any] = {}
        if name in ("apmask", "dino"):
            masks = {"masking": self.masking, "mask_ratio": self.mask_ratio}
        height, width = self.height_width
        enlarged = math.sqrt(height * width) / recipe.image_size
        return replace(
            recipe,
            backbone=self.backbone,
            seed=self.seed,
            epochs=self.pretraining_epochs,
            cache_gib=self.cache_gib,
            image_size=round(enlarged * recipe.image_size),
            local_size=round(enlarged * recipe.local_size),
            picture_size=round(enlarged * recipe.picture_size),
            **masks,
        )

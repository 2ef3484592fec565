"""A normality detector that is taught by a few known defects. Ours: it goes beyond ATAC-Net, whose task it has.

Any unsupervised detector says where a picture differs from the good ones. Here that is where to look, three times: at
the whole picture, around what differs, and closely at it. Its map, as attention of three sharpnesses, pools the patch
features of a picture to one descriptor, and Fisher's discriminant (Fisher 1936) between the descriptors of the good
pictures and those of the labelled defects says how much a picture resembles the defects.

    α(t) = softmax(t · standardised map)      x = joined over t = 0, sharpness, 3 · sharpness: Σ α_p(t) f_p
    w = ((1 − s) Σ + s (tr Σ / D) I)⁻¹ (mean of the defects − μ)      μ, Σ: of the good pictures; s: `shrinkage`
    score = normality + weight · √M · σ · max(0, (w·x − m) / v)

where m and v are the mean and deviation of w·x over the good pictures, σ that of their normality's score. The closest
look is worth what the normality detector is: its part of x is multiplied by 2 A − 1, at least 0, where A is the AUROC
of the normality's score between the labelled defects and the good pictures. To resemble the known defects adds to a
score; not to resemble them takes nothing away, as a defect of another kind does not. M labelled defects know their mean
√M times better than one of them, and count so much more; without any the score is that of the normality detector, to
the bit. Nothing is learned by gradient: a defect is taught in the time that it takes to look at it. Where the mask of a
labelled defect is known, the closest look is at the patches in it only; in the wider ones the good pictures, which have
no masks, would be compared with something else.

A place of the heatmap adds what a picture that were all like it would, times (α_p(sharpness) / max α)^(2 A − 1).

The features are asked of the backbone while the normality detector looks: no second pass is needed.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from functools import partial
from typing import TYPE_CHECKING, Any, Self

import torch
from torch import Tensor
from torch.nn import functional as F

from blemish import config as configs
from blemish.backbones import Backbone
from blemish.backbones.base import Features
from blemish.backbones.cells import resampled
from blemish.config import Factor, FractionAbove0, Layers
from blemish.errors import ArtifactError, ConfigError, DataError
from blemish.methods.base import Batches, Method, MethodConfig, reported
from blemish.methods.memory import MemoryBank
from blemish.methods.stored import UNIT, Free, Stored, numbers
from blemish.types import Batch, Progress, Scores

if TYPE_CHECKING:
    from blemish.methods.apmask import APMaskConfig

Level = tuple[
    Tensor, tuple[int, int], float
]  # patch features B N D, their grid, its offset (`Backbone.offset`)
LOOKS = (
    0.0,
    1.0,
    3.0,
)  # at the whole picture, around what differs, closely at it; in units of the sharpness

_NORMALITY = "normality."  # how the names of the normality detector's tensors begin


@dataclass(frozen=True, kw_only=True)
class LdaConfig(MethodConfig):
    """Settings; those that every method has are the normality detector's too.

    Attributes:
        normality: the method that knows what is normal: any but those that take labelled defects themselves. One that
            trains its encoder (`guided` with `tuned`) may leave features that tell the kinds of defect less well.
        normality_settings: of that method, as "bank_size=8000", in place of its recipe `best`.
        described: layers of the backbone whose features describe a picture; empty = the one two thirds of the way.
        sharpness: of the attention: 0 = all patches count the same, however often it is looked.
        shrinkage: how far the covariance of the good pictures is drawn towards a sphere, in (0, 1].
        weight: of what one labelled defect teaches, in standard deviations of the normality's score.
    """

    normality: str = "patchcore"
    normality_settings: tuple[str, ...] = ()
    described: Layers = ()
    sharpness: Factor = 1.0
    shrinkage: FractionAbove0 = 0.9
    weight: Factor = 0.6

    @classmethod
    def migrate(cls, values: Mapping[str, Any]) -> dict[str, Any]:
        """As of the normality method's own settings."""
        values = dict(values)
        try:
            earlier = configs.assigned(values.get("normality_settings", ()))
        except ConfigError as error:
            raise ConfigError(f"normality_settings: {error}") from error
        if earlier:
            kind = _class_of(values.get("normality", cls.normality))
            if (today := kind.Config.migrate(earlier)) != earlier:
                values["normality_settings"] = [
                    f"{key}={json.dumps(it)}" for key, it in today.items()
                ]
        return values

    @property
    def normality_class(self) -> type[Method]:
        """Raises: ConfigError for an unknown method, or one that takes labelled defects itself."""
        kind = _class_of(self.normality)
        if kind.takes_defects:
            raise ConfigError(
                f"normality: {self.normality} learns from labelled defects itself; name another method"
            )
        return kind

    @property
    def normality_config(self) -> MethodConfig:
        """Raises: ConfigError as `normality_class`, or for a wrong setting."""
        shared = {field.name: getattr(self, field.name) for field in fields(MethodConfig)}
        for assignment in self.normality_settings:
            if (key := assignment.partition("=")[0].strip()) in shared:
                raise ConfigError(f"normality_settings: {key} is the detector's own; set it there")
        best = self.normality_class.Config.best()
        return configs.override(
            configs.from_dict(type(best), shared, base=best), self.normality_settings
        )

    def for_layout(self, layout: str) -> Self:
        """What the layout changes in the normality part's settings."""
        plain = self.normality_config
        suited = plain.for_layout(layout)
        changed = [
            f"{key}={json.dumps(value)}"
            for key, value in configs.to_dict(suited).items()
            if value != configs.to_dict(plain)[key]
        ]
        return replace(self, normality_settings=(*self.normality_settings, *changed))

    @property
    def pretraining_config(self) -> APMaskConfig | None:
        return self.normality_config.pretraining_config

    @property
    def learns_by_gradient(self) -> bool:
        return self.normality_config.learns_by_gradient


class Lda(Method):
    """A normality detector and what some defects have taught it."""

    name = "lda"
    summary = "any other detector, taught by a few known defects with a linear discriminant"
    source = "ours; the task is that of ATAC-Net"
    Config = LdaConfig
    config: LdaConfig
    takes_defects = True
    descriptors: Tensor  # n D, of the good pictures
    owners: Tensor  # int64 n, the picture that each is of
    usual: Tensor  # n, the normality's scores of them
    defects: Tensor  # M D, of the labelled defects
    unusual: Tensor  # M, the normality's scores of them

    def __init__(self, config: LdaConfig, backbone: Backbone) -> None:
        super().__init__(config, backbone)
        self.normality: Method = config.normality_class(config.normality_config, backbone)
        usual = max(1, round(2 / 3 * backbone.depth))
        self.config = replace(config, described=backbone.check_layers(config.described or (usual,)))
        self.leaves_one_out = self.normality.leaves_one_out
        self.minimum_images = self.normality.minimum_images
        self.register_buffer("descriptors", torch.empty(0, 0))
        self.register_buffer("owners", torch.empty(0, dtype=torch.int64))
        self.register_buffer("usual", torch.empty(0))
        self.register_buffer("defects", torch.empty(0, 0))
        self.register_buffer("unusual", torch.empty(0))
        self._lesson: Lesson | None = None

    @property
    def precision(self) -> torch.dtype:
        return self.normality.precision

    def set_precision(self, dtype: torch.dtype) -> None:
        self.normality.set_precision(dtype)

    @property
    def scoring_size(self) -> tuple[int, int]:
        return self.normality.scoring_size

    @property
    def learner(self) -> Method:
        return self.normality

    # Learning

    def fit(self, batches: Batches, count: int, progress: Progress) -> None:
        self.normality.fit(partial(self._listening, batches), count, progress)

    def extend(self, batches: Batches, count: int, progress: Progress) -> None:
        """Have the memory bank that knows what is normal remember more pictures; see `MemoryBank.extend`."""
        assert isinstance(self.normality, MemoryBank)
        self.normality.extend(
            partial(self._listening, batches), count, progress, rows=len(self.usual)
        )

    def _listening(self, batches: Batches) -> Iterator[Batch]:
        """A pass. Who keeps features (`backbones.cache`) keeps those that `summarise` is to describe as well."""
        with self.backbone.overheard(self.config.described) as heard:
            for batch in batches():
                yield batch
                heard.clear()

    @property
    def summarised(self) -> int | None:
        return None

    @torch.no_grad()
    def summarise(self, batches: Batches, count: int, progress: Progress) -> None:
        """Describe the good pictures, each judged without what it itself has taught where the normality part can, and
        remember them beside those that are known."""
        found = [
            self._described(batch) for batch in reported(batches(), "describing", count, progress)
        ]
        self.descriptors, self.usual, self.owners = _joined(
            (self.descriptors, self.usual, self.owners), found
        )
        self._lesson = None

    @torch.no_grad()
    def learn_defects(self, batches: Batches, count: int, progress: Progress) -> None:
        """Describe the labelled defects, and remember them beside those that are known.

        Raises: DataError where there is a single good picture.
        """
        if len(self.owners) and bool((self.owners == self.owners[0]).all()):
            raise DataError(
                "labelled defects can be learned from beside two good pictures at least, got one"
            )
        found = []
        for batch in reported(batches(), "learning the defects", count, progress):
            scores, features = self.look(batch.images)
            found.append(
                (self._pooled(_levels(features), scores.maps, batch.masks), scores.image.float())
            )
        if found:
            self.defects, self.unusual = _joined((self.defects, self.unusual), found)
            self._lesson = None

    def forget_defects(self) -> None:
        """Be the normality detector again."""
        self.defects, self.unusual = self.defects[:0], self.unusual[:0]
        self._lesson = None

    def _described(self, batch: Batch) -> tuple[Tensor, Tensor, Tensor]:
        with self.backbone.overheard(self.config.described) as heard:
            if self.normality.knows_several:
                scores = self.normality.score_left_out(batch)
            else:
                scores = self.normality.score(batch.images)
        _, features = heard[-1]
        return (
            self._pooled(_levels(features), scores.maps, None),
            scores.image.float(),
            batch.owners.to(scores.image.device),
        )

    def _pooled(self, levels: Sequence[Level], maps: Tensor, masks: Tensor | None) -> Tensor:
        """Descriptors, float32 B D, of what maps B h w and masks B h w (NaN = not known) attend to: look by look, and
        in each layer by layer."""
        parts = []
        for tokens, grid, offset in levels:
            share = self._attention(maps, grid, offset)
            if masks is not None:
                marked = _gathered(masks.to(share.device), grid, offset)
                inside = share[:, -1] * marked
                known = inside.sum(1, keepdim=True) > 0  # false for NaN and for an empty mask
                closest = torch.where(known, inside / inside.sum(1, keepdim=True), share[:, -1])
                share = torch.cat([share[:, :-1], closest[:, None]], dim=1)
            parts.append(share @ tokens)
        return torch.cat(parts, dim=2).flatten(1)

    def _attention(self, maps: Tensor, grid: tuple[int, int], offset: float) -> Tensor:
        """How much each place of the grid counts in each look: B 3 N, rows sum to 1."""
        own = _gathered(maps.float(), grid, offset)[:, None]
        std, mean = torch.std_mean(own, dim=2, keepdim=True, correction=0)
        apart = self.config.sharpness * (own - mean) / std.clamp(min=1e-12)
        return torch.cat([look * apart for look in LOOKS], dim=1).softmax(2)

    # Scoring

    def anomaly_map(self, images: Tensor) -> Tensor:
        return self.normality.anomaly_map(images)

    def score(self, images: Tensor) -> Scores:
        return self.finished(*self.look(images))

    def look(self, images: Tensor) -> tuple[Scores, Features]:
        """What the normality part finds in B 3 H W, and the features that it has looked at."""
        self._require(self.usual)
        with self.backbone.overheard(self.config.described) as heard:
            found = self.normality.score(images)
        return found, heard[-1][1]

    @property
    def knows_several(self) -> bool:
        return self.normality.knows_several

    def end_leaving_out(self) -> None:
        self.normality.end_leaving_out()

    def score_left_out(self, batch: Batch) -> Scores:
        self._require(self.usual)
        with self.backbone.overheard(self.config.described) as heard:
            found = self.normality.score_left_out(batch)
        return self.finished(found, heard[-1][1], batch.owners.tolist())

    def finished(
        self, found: Scores, features: Features, owners: list[int] | None = None
    ) -> Scores:
        """What the normality part found, with what was taught; owners: of good pictures that count as not learned."""
        if not len(self.defects):
            return found
        lesson, levels = self.lesson, _levels(features)
        pooled = self._pooled(levels, found.maps, None)
        likeness = (
            lesson.likeness(pooled) if owners is None else lesson.likeness_left_out(pooled, owners)
        )
        shown = lesson.unit * self._likeness_map(levels, found.maps)
        return Scores(found.image + lesson.unit * likeness, found.maps + shown, found.votes)

    def _likeness_map(self, levels: Sequence[Level], maps: Tensor) -> Tensor:
        """The likeness of a picture that were all like each place, B h w as the maps are, the less the less the second
        look attends to the place, as far as the normality detector is to be trusted."""
        size = (maps.shape[1], maps.shape[2])
        of_all_looks = self.lesson.direction.reshape(len(LOOKS), -1).sum(0)
        directions = torch.split(of_all_looks, [tokens.shape[2] for tokens, *_ in levels])
        alike = torch.zeros_like(maps, dtype=torch.float32)
        for (tokens, grid, offset), direction in zip(levels, directions, strict=True):
            level = (tokens @ direction).reshape(len(tokens), 1, *grid)
            alike += resampled(level, size, offset=offset)[:, 0]
        grid, offset = max((grid, offset) for _, grid, offset in levels)
        share = self._attention(maps, grid, offset)[:, 1]
        share = (
            (share / share.amax(1, keepdim=True))
            .pow(self.lesson.trust)
            .reshape(len(maps), 1, *grid)
        )
        return self.lesson.scaled(alike) * resampled(share, size, offset=offset)[:, 0]

    @property
    def lesson(self) -> Lesson:
        """What the labelled defects teach."""
        if self._lesson is None:
            self._lesson = Lesson(self)
        return self._lesson

    def good_scores(self) -> dict[int, float]:
        first: dict[int, int] = {}
        for row, owner in enumerate(self.owners.tolist()):
            first.setdefault(owner, row)
        rows = list(first.values())
        scores = self.usual[rows]
        if len(self.defects):
            scores = scores + self.lesson.unit * self.lesson.likeness_left_out(
                self.descriptors[rows], list(first)
            )
        return dict(zip(first, scores.tolist(), strict=True))

    # The artifact

    def fitted_state(self) -> dict[str, Tensor]:
        """As of every method; the backbone, which both have, once."""
        return {
            name: tensor for name, tensor in super().fitted_state().items() if not _is_shared(name)
        }

    def learned_tensors(self) -> dict[str, Stored]:
        probe = self.backbone.shapes(*self.scoring_size, self.config.described)
        width = len(LOOKS) * sum(tokens.shape[2] for tokens in probe.tokens)
        good, known = Free("n", 1), Free("M", 0)
        own = {
            "descriptors": Stored(shape=(good, width), low=-UNIT, high=UNIT),
            "owners": numbers(good),
            "usual": Stored(shape=(good,)),
            "defects": Stored(shape=(known, width), low=-UNIT, high=UNIT, absent=True),
            "unusual": Stored(shape=(known,), absent=True),
        }
        return {
            **{
                f"normality.{name}": each for name, each in self.normality.learned_tensors().items()
            },
            **own,
        }

    def check_learned(self, tensors: Mapping[str, Tensor]) -> None:
        if len(tensors["defects"]) != len(tensors["unusual"]):
            raise ArtifactError("unusual: has not one score for each of `defects`")
        try:
            self.normality.check_learned(
                {
                    name.removeprefix(_NORMALITY): each
                    for name, each in tensors.items()
                    if name.startswith(_NORMALITY)
                }
            )
        except ArtifactError as error:
            raise ArtifactError(f"normality.{error}") from error

    def restore_state(self, tensors: dict[str, Tensor]) -> None:
        own = {name for name, _ in self.named_buffers(recurse=False)}
        rest = {
            name.removeprefix("normality."): each
            for name, each in tensors.items()
            if name not in own
        }
        try:
            self.normality.restore_state(rest)
            for name in own:
                setattr(self, name, tensors[name].to(getattr(self, name).device))
        except (ArtifactError, KeyError) as error:
            raise ArtifactError(f"the tensors do not fit method {self.name!r}: {error}") from error
        self._lesson = None


class Lesson:
    """Fisher's discriminant between good pictures and labelled defects, and its scale.

    Attributes:
        direction: D, along which descriptors tell defects from good pictures.
        unit: what one deviation of the likeness adds to a score.
        trust: in the normality detector, [0, 1]: 2 AUROC − 1, at least 0, of its scores between the labelled defects
            and the good pictures. Too high where it has to judge these by what they have taught it.
    """

    def __init__(self, method: Lda) -> None:
        config, device = method.config, method.usual.device
        descriptors = method.descriptors.double().cpu()
        self._count, dim = descriptors.shape
        self.trust = max(0.0, torch.sign(method.unusual[:, None] - method.usual).mean().item())
        looks = torch.ones(len(LOOKS), dtype=torch.float64)
        looks[-1] = self.trust
        self._worth = looks.repeat_interleave(dim // len(LOOKS))
        good, towards = (
            self._worth * descriptors,
            self._worth * method.defects.double().cpu().mean(0),
        )
        mean = good.mean(0)
        self._apart = good - mean
        sphere = (
            config.shrinkage * self._apart.square().sum().clamp(min=1e-12) / (self._count * dim)
        )
        self._share = (1 - config.shrinkage) / self._count
        self._sides = _unscattered(self._apart, self._share, sphere)
        self._direction = (
            towards - mean - self._share * self._sides.T @ (self._apart @ (towards - mean))
        ) / sphere
        # Each good picture as it would be judged had it not been there: the others' scale is not to flatter it.
        rows: dict[int, list[int]] = {}
        for row, owner in enumerate(method.owners.tolist()):
            rows.setdefault(owner, []).append(row)
        self._directions = {owner: self._without(own) for owner, own in rows.items()}
        along = torch.cat(
            [descriptors[own] @ self._directions[owner] for owner, own in rows.items()]
        )
        deviation, middle = torch.std_mean(along, correction=0)
        spread = method.usual.double().std(correction=0).item()
        self.unit = config.weight * math.sqrt(len(method.defects)) * spread
        self.direction = (self._worth * self._direction).float().to(device)
        self._middle, self._deviation = float(middle), max(float(deviation), 1e-12)

    def _without(self, rows: list[int]) -> Tensor:
        """The discriminant that the good pictures give without some of them (Woodbury's identity).

        Mean and scatter are the others'; the sphere and the count that the scatter is divided by stay those of all.
        """
        left = self._count - len(rows)
        lost, side = (
            torch.cat([part, len(rows) / math.sqrt(left) * part.mean(0, keepdim=True)])
            for part in (self._apart[rows], self._sides[rows])
        )
        wanted = self._direction + self._sides[rows].sum(0) / left
        small = torch.eye(len(lost), dtype=torch.float64) - self._share * lost @ side.T
        found: Tensor = wanted + self._share * side.T @ torch.linalg.solve(small, lost @ wanted)
        return self._worth * found

    def likeness(self, features: Tensor) -> Tensor:
        """How much features … D resemble the defects, in deviations of the good pictures: …."""
        return self.scaled(features @ self.direction)

    def scaled(self, along: Tensor) -> Tensor:
        """In deviations of the good pictures, from their mean; 0 below it."""
        return ((along - self._middle) / self._deviation).clamp(min=0)

    def likeness_left_out(self, descriptors: Tensor, owners: list[int]) -> Tensor:
        """The same of good pictures B D, each as if it had not been learned."""
        directions = torch.stack([self._directions[owner] for owner in owners])
        return (
            self.scaled((descriptors.double().cpu() * directions).sum(1))
            .float()
            .to(descriptors.device)
        )


def _class_of(normality: str) -> type[Method]:
    """Raises: ConfigError for an unknown method."""
    from blemish.methods import method_class  # which lists this one too

    try:
        return method_class(normality)
    except ConfigError as error:
        raise ConfigError(f"normality: {error}") from error


def _unscattered(rows: Tensor, share: float, sphere: Tensor) -> Tensor:
    """A (share · AᵀA + sphere · I)⁻¹ for the rows A, n D, by way of the smaller of AAᵀ and AᵀA."""
    few = len(rows) < rows.shape[1]
    square = share * (rows @ rows.T if few else rows.T @ rows)
    square.diagonal().add_(sphere)
    found: Tensor = torch.linalg.solve(square, rows, left=few)
    return found


def _levels(features: Features) -> list[Level]:
    """The patch features of each layer, of length 1, float32 B N D, and where they lie."""
    each = zip(features.tokens, features.grids, features.offsets, strict=True)
    return [(F.normalize(tokens.float(), dim=-1), grid, offset) for tokens, grid, offset in each]


def _gathered(maps: Tensor, grid: tuple[int, int], offset: float) -> Tensor:
    """The mean of maps B H W around each place of a grid: B N."""
    cell = maps.shape[1] / grid[0]
    moved = resampled(maps[:, None], (maps.shape[1], maps.shape[2]), onto=offset * cell)
    return F.adaptive_avg_pool2d(moved, grid).flatten(1)


def _joined(known: tuple[Tensor, ...], found: Sequence[tuple[Tensor, ...]]) -> Iterator[Tensor]:
    """Each of the known tensors, then what every batch adds to it; with nothing known they have no width yet."""
    return map(torch.cat, zip(*((known, *found) if len(known[0]) else found), strict=True))


def _is_shared(name: str) -> bool:
    return name.startswith("normality.backbone.")

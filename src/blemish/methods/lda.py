"""A normality detector that is taught by a few known defects: ours, for the task of ATAC-Net.

Any unsupervised detector says where a picture differs from the good ones. Here that is where to
look, three times: at the whole picture, around what differs, and closely at it. Its map, as
attention of three sharpnesses, pools the patch features of a picture to one descriptor, and
Fisher's discriminant (Fisher 1936) between the descriptors of the good pictures and those of the
labelled defects says how much a picture resembles the defects.

    α(t) = softmax(t · standardised map)
    x = joined over t = 0, sharpness, 3 · sharpness: Σ α_p(t) f_p
    w = ((1 − s) Σ + s (tr Σ / D) I)⁻¹ (mean of the defects − μ)
    μ, Σ: of the good pictures; s: `shrinkage`
    score = normality + weight · √M · σ · max(0, (w·x − m) / v)

where m and v are the mean and deviation of w·x over the good pictures, σ that of their normality's
score. The closest look is worth what the normality detector is: its part of x is multiplied by 2 A
− 1, at least 0, where A is the AUROC of the normality's score between the labelled defects and the
good pictures. To resemble the known defects adds to a score; not to resemble them takes nothing
away, as a defect of another kind does not. M labelled defects know their mean √M times better than
one of them, and count so much more; without any the score is the normality's, to the bit. Where the
mask of a labelled defect is known, the closest look is at the patches in it only; in the wider ones
the good pictures, which have no masks, would be compared with something else.

A place of the heatmap adds what a picture that were all like it would, times (α_p(sharpness) / max
α)^(2 A − 1).
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Self

import torch
from torch import Tensor
from torch.nn import functional as F

from blemish import config as configs
from blemish.area import Area
from blemish.backbones import Backbone, Features
from blemish.backbones.cells import averaged, resampled
from blemish.config import Factor, FractionAbove0, Layers
from blemish.errors import ArtifactError, ConfigError, DataError, unknown_name
from blemish.methods.base import EncoderConfig, Method, MethodConfig, map_size, reported, shown
from blemish.methods.capabilities import Batches, Extends, Fits, LeavesOneOut, Refines, Summarises
from blemish.methods.stored import UNIT, Free, Stored, numbers
from blemish.methods.unsupervised import UNSUPERVISED
from blemish.types import Batch, Progress, Scores

# Patch features B N D, their grid, and its offset (`Backbone.offset`).
Level = tuple[Tensor, tuple[int, int], float]
# At the whole picture, around what differs, closely at it; in units of the sharpness.
LOOKS = (0.0, 1.0, 3.0)
NORMALITY = "normality."  # how the names of the normality detector's tensors begin
SHARED = "normality.backbone."  # those of the backbone, which both have and a file holds once


@dataclass(frozen=True, kw_only=True)
class LdaConfig(MethodConfig):
    """Settings; those that every method has are the normality detector's too.

    Attributes:
        normality: the method that knows what is normal: any but those that take labelled defects
            themselves. One that trains its encoder (`guided` with `trainable_blocks`) may leave
            features that tell the kinds of defect less well.
        normality_settings: of that method, as "bank_size=8000", in place of its recipe `best`, but
            that a memory bank has `neighbours=1` here unless they say otherwise.
        descriptor_layers: layers of the backbone whose features describe a picture; empty = the one
            two thirds of the way.
        sharpness: of the attention: 0 = all patches count the same, however often it is looked.
        shrinkage: how far the covariance of the good pictures is drawn towards a sphere, in (0, 1].
        weight: of what one labelled defect teaches, in deviations of the normality's score.
    """

    normality: str = "patchcore"
    normality_settings: tuple[str, ...] = ()
    descriptor_layers: Layers = ()
    sharpness: Factor = 1.0
    shrinkage: FractionAbove0 = 0.9
    weight: Factor = 0.6

    @property
    def normality_class(self) -> type[Method]:
        """Raises: ConfigError for an unknown method, or one that takes labelled defects itself."""
        if self.normality not in UNSUPERVISED:
            unknown = unknown_name("method", self.normality, UNSUPERVISED)
            raise ConfigError(f"normality: {unknown}; those that take defects themselves are none")
        return UNSUPERVISED[self.normality]

    @property
    def normality_config(self) -> MethodConfig:
        """Raises: ConfigError as `normality_class`, or for a wrong setting."""
        shared = {field.name: getattr(self, field.name) for field in fields(MethodConfig)}
        for assignment in self.normality_settings:
            if (key := assignment.partition("=")[0].strip()) in shared:
                raise ConfigError(f"normality_settings: {key} is the detector's own; set it there")
        best = self.normality_class.Config.within_lda()
        base = configs.from_dict(type(best), shared, base=best)
        return configs.override(base, self.normality_settings, within="normality_settings")

    def for_pictures(self, *, x_rays: bool) -> Self:
        """What the pictures change in the normality part's settings."""
        plain = self.normality_config
        before = configs.to_dict(plain)
        suited = configs.to_dict(plain.for_pictures(x_rays=x_rays))
        changed = [f"{key}={json.dumps(it)}" for key, it in suited.items() if it != before[key]]
        return replace(self, normality_settings=(*self.normality_settings, *changed))

    @property
    def pretraining_config(self) -> EncoderConfig | None:
        return self.normality_config.pretraining_config

    @property
    def no_student(self) -> str:
        return self.normality_config.no_student

    @property
    def needs_squares(self) -> bool:
        return self.normality_config.needs_squares

    @property
    def learns_by_gradient(self) -> bool:
        return self.normality_config.learns_by_gradient


class Lda(Method, Fits, Summarises, LeavesOneOut, Refines):
    """A normality detector, and what some defects have taught it.

    It reads the layers of the normality detector, then those of the descriptors.
    """

    name = "lda"
    summary = "any other detector, taught by a few known defects with a linear discriminant"
    source = "ours; the task is that of ATAC-Net"
    Config = LdaConfig
    config: LdaConfig
    takes_defects = True
    descriptors: Tensor  # n D, of the good pictures
    owners: Tensor  # int64 n, the picture that each is of
    normality_scores: Tensor  # n, the normality's scores of them
    defects: Tensor  # M D, descriptors of the labelled defects
    defect_scores: Tensor  # M, the normality's scores of them

    def __init__(self, config: LdaConfig, backbone: Backbone) -> None:
        super().__init__(config, backbone)
        self.normality = config.normality_class(config.normality_config, backbone)
        two_thirds = max(1, round(2 / 3 * backbone.depth))
        described = backbone.check_layers(config.descriptor_layers or (two_thirds,))
        self.config = replace(config, descriptor_layers=described)
        self.layers = (*self.normality.layers, *described)
        self.minimum_images = self.normality.minimum_images
        self.register_buffer("descriptors", torch.empty(0, 0))
        self.register_buffer("owners", torch.empty(0, dtype=torch.int64))
        self.register_buffer("normality_scores", torch.empty(0))
        self.register_buffer("defects", torch.empty(0, 0))
        self.register_buffer("defect_scores", torch.empty(0))
        self._discriminant: Discriminant | None = None

    @property
    def precision(self) -> torch.dtype:
        return self.normality.precision

    def set_precision(self, dtype: torch.dtype) -> None:
        self.normality.set_precision(dtype)

    def set_area(self, area: Area | None, *, framed: bool = False) -> None:
        super().set_area(area, framed=framed)
        self.normality.set_area(area, framed=framed)

    @property
    def scoring_size(self) -> tuple[int, int]:
        return self.normality.scoring_size

    @property
    def learner(self) -> Method:
        return self.normality

    # Learning

    def fit(self, batches: Batches, count: int, progress: Progress) -> None:
        assert isinstance(self.normality, Fits)
        self.normality.fit(batches, count, progress)

    def refinable(self) -> bool:
        return isinstance(self.normality, Extends)

    def learn_more(self, batches: Batches, count: int, progress: Progress) -> None:
        """Have the normality detector learn more pictures, and describe them."""
        assert isinstance(self.normality, Extends)
        self.normality.extend(batches, count, progress, rows=len(self.normality_scores))
        self.summarise(batches, count, progress)

    def next_owner(self) -> int:
        assert isinstance(self.normality, Extends)
        return max(int(self.owners.max()) + 1, self.normality.next_owner())

    def summarised(self) -> int | None:
        return None

    @torch.no_grad()
    def summarise(self, batches: Batches, count: int, progress: Progress) -> None:
        """Describe the good pictures, each judged without what it itself has taught where the
        normality detector can, and remember them beside those that are known.
        """
        found = []
        for batch in reported(batches(), "describing", count, progress):
            seen = self.see(batch.images)
            scores = self._normality_left_out(seen, batch)
            pooled = self._pooled(self._levels(seen), scores.maps, None)
            owners = batch.owners.to(pooled.device)
            found.append((pooled, scores.image.float(), owners))
        known = (self.descriptors, self.normality_scores, self.owners)
        self.descriptors, self.normality_scores, self.owners = _joined(known, found)
        self._discriminant = None

    @torch.no_grad()
    def learn_defects(self, batches: Batches, count: int, progress: Progress) -> None:
        """Describe the labelled defects, and remember them beside those that are known.

        Raises: DataError where there is a single good picture.
        """
        self._require(self.normality_scores)
        if bool((self.owners == self.owners[0]).all()):
            raise DataError(
                "labelled defects can be learned from beside two good pictures at least, got one"
            )
        found = []
        for batch in reported(batches(), "learning the defects", count, progress):
            seen = self.see(batch.images)
            scores = self.normality.judge(seen, batch.images)
            pooled = self._pooled(self._levels(seen), scores.maps, batch.masks)
            found.append((pooled, scores.image.float()))
        if found:
            self.defects, self.defect_scores = _joined((self.defects, self.defect_scores), found)
            self._discriminant = None

    def forget_defects(self) -> None:
        """Be the normality detector again."""
        self.defects, self.defect_scores = self.defects[:0], self.defect_scores[:0]
        self._discriminant = None

    def _levels(self, features: Features) -> list[Level]:
        """The patch features of each descriptor layer, of length 1, float32 B N D, and where they
        lie.
        """
        first = len(self.normality.layers)
        own = features.layers(slice(first, first + len(self.config.descriptor_layers)))
        tokens = [F.normalize(each.float(), dim=-1) for each in own.tokens]
        return list(zip(tokens, own.grids, own.offsets, strict=True))

    def _pooled(self, levels: Sequence[Level], maps: Tensor, masks: Tensor | None) -> Tensor:
        """Descriptors, float32 B D, of what maps B h w and masks B h w (NaN = not known) attend to:
        look by look, and in each layer by layer.
        """
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

    def see(self, images: Tensor, also: Sequence[int] = ()) -> Features:
        return self.normality.see(images, (*self.config.descriptor_layers, *also))

    @property
    def scores_by_map(self) -> bool:
        return not len(self.defects) and self.normality.scores_by_map

    def judge(self, features: Features, images: Tensor) -> Scores:
        self._require(self.normality_scores)
        return self.finished(self.normality.judge(features, images), features, images)

    def judge_left_out(self, features: Features, batch: Batch) -> Scores:
        self._require(self.normality_scores)
        found = self._normality_left_out(features, batch)
        return self.finished(found, features, batch.images, batch.owners.tolist())

    def _normality_left_out(self, features: Features, batch: Batch) -> Scores:
        if self.knows_several():
            assert isinstance(self.normality, LeavesOneOut)
            return self.normality.judge_left_out(features, batch)
        return self.normality.judge(features, batch.images)

    def leaves_one_out(self) -> bool:
        return isinstance(self.normality, LeavesOneOut) and self.normality.leaves_one_out()

    def knows_several(self) -> bool:
        return isinstance(self.normality, LeavesOneOut) and self.normality.knows_several()

    def end_leaving_out(self) -> None:
        if isinstance(self.normality, LeavesOneOut):
            self.normality.end_leaving_out()

    def finished(
        self, found: Scores, features: Features, images: Tensor, owners: list[int] | None = None
    ) -> Scores:
        """What the normality detector found in B 3 H W, and what the defects have taught beside it;
        `owners`: of good pictures, each of which is to count as not learned.
        """
        if not len(self.defects):
            return found
        discriminant, levels = self.discriminant, self._levels(features)
        pooled = self._pooled(levels, found.maps, None)
        if owners is None:
            likeness, direction = discriminant.likeness(pooled), discriminant.direction
        else:
            likeness = discriminant.likeness_left_out(pooled, owners)
            direction = discriminant.left_out(owners).float().to(pooled.device)
        taught = discriminant.unit * self._likeness_map(levels, found.maps, direction)
        maps = shown(found.maps + taught, self._inside(images, map_size(images)))
        return Scores(found.image + discriminant.unit * likeness, maps, found.votes)

    def _likeness_map(self, levels: Sequence[Level], maps: Tensor, direction: Tensor) -> Tensor:
        """The likeness of each place, B h w as the maps are, as if the whole picture were like it.

        `direction` is the discriminant, D, or one for each picture, B D. It fades where the second
        look attends less, as far as the normality detector is to be trusted.
        """
        size = (maps.shape[1], maps.shape[2])
        looks = direction.reshape(*direction.shape[:-1], len(LOOKS), -1).sum(-2)
        parts = torch.split(looks, [tokens.shape[2] for tokens, *_ in levels], dim=-1)
        alike = torch.zeros_like(maps, dtype=torch.float32)
        for (tokens, grid, offset), part in zip(levels, parts, strict=True):
            along = tokens @ (part if part.ndim == 1 else part[..., None])
            level = along.reshape(tokens.shape[0], 1, *grid)
            alike += resampled(level, size, offset=offset)[:, 0]
        grid, offset = max((grid, offset) for _, grid, offset in levels)
        share = self._attention(maps, grid, offset)[:, 1]
        share = (share / share.amax(1, keepdim=True)).pow(self.discriminant.trust)
        share = resampled(share.reshape(maps.shape[0], 1, *grid), size, offset=offset)[:, 0]
        return self.discriminant.scaled(alike) * share

    @property
    def discriminant(self) -> Discriminant:
        """What the labelled defects teach."""
        if self._discriminant is None:
            self._discriminant = Discriminant(self)
        return self._discriminant

    def good_scores(self) -> dict[int, float]:
        first: dict[int, int] = {}
        for row, owner in enumerate(self.owners.tolist()):
            first.setdefault(owner, row)
        rows = list(first.values())
        scores = self.normality_scores[rows]
        if len(self.defects):
            taught = self.discriminant
            likeness = taught.likeness_left_out(self.descriptors[rows], list(first))
            scores = scores + taught.unit * likeness
        return dict(zip(first, scores.tolist(), strict=True))

    # The artifact

    def fitted_state(self) -> dict[str, Tensor]:
        state = super().fitted_state().items()
        return {name: tensor for name, tensor in state if not name.startswith(SHARED)}

    def learned_tensors(self) -> dict[str, Stored]:
        probe = self.backbone.shapes(*self.scoring_size, self.config.descriptor_layers)
        width = len(LOOKS) * sum(tokens.shape[2] for tokens in probe.tokens)
        good, known = Free("n", 1), Free("M", 0)
        return {
            **{NORMALITY + name: it for name, it in self.normality.learned_tensors().items()},
            "descriptors": Stored(shape=(good, width), low=-UNIT, high=UNIT),
            "owners": numbers(good),
            "normality_scores": Stored(shape=(good,)),
            "defects": Stored(shape=(known, width), low=-UNIT, high=UNIT, absent=True),
            "defect_scores": Stored(shape=(known,), absent=True),
        }

    def check_learned(self, tensors: Mapping[str, Tensor]) -> None:
        if len(tensors["defects"]) != len(tensors["defect_scores"]):
            raise ArtifactError("defect_scores: has not one score for each of `defects`")
        begins = len(NORMALITY)
        own = {name[begins:]: it for name, it in tensors.items() if name.startswith(NORMALITY)}
        try:
            self.normality.check_learned(own)
        except ArtifactError as error:
            raise ArtifactError(f"{NORMALITY}{error}") from error

    def restore_state(self, tensors: dict[str, Tensor]) -> None:
        own = {name: it for name, it in tensors.items() if name.startswith("backbone.")}
        shared = {NORMALITY + name: it for name, it in own.items()}
        super().restore_state({**tensors, **shared})
        self._discriminant = None


class Discriminant:
    """Fisher's discriminant between good pictures and labelled defects, and its scale.

    Attributes:
        direction: D, along which descriptors tell defects from good pictures.
        unit: what one deviation of the likeness adds to a score.
        trust: in the normality detector, [0, 1]: 2 AUROC − 1, at least 0, of its scores between the
            labelled defects and the good pictures. Too high where it has to judge these by what
            they have taught it.
    """

    def __init__(self, method: Lda) -> None:
        config, device = method.config, method.normality_scores.device
        descriptors = method.descriptors.double().cpu()
        self._count, dim = descriptors.shape
        won = torch.sign(method.defect_scores[:, None] - method.normality_scores).mean()
        self.trust = max(0.0, won.item())
        looks = torch.ones(len(LOOKS), dtype=torch.float64)
        looks[-1] = self.trust
        self._worth = looks.repeat_interleave(dim // len(LOOKS))
        good = self._worth * descriptors
        mean = good.mean(0)
        towards = self._worth * method.defects.double().cpu().mean(0) - mean
        self._apart = good - mean
        trace = self._apart.square().sum().clamp(min=1e-12)
        sphere = config.shrinkage * trace / (self._count * dim)
        self._share = (1 - config.shrinkage) / self._count
        self._sides = _unscattered(self._apart, self._share, sphere)
        scattered = self._share * self._sides.T @ (self._apart @ towards)
        self._direction = (towards - scattered) / sphere
        # Each good picture as it would be judged had it not been there: the others' scale is not to
        # flatter it.
        rows: dict[int, list[int]] = {}
        for row, owner in enumerate(method.owners.tolist()):
            rows.setdefault(owner, []).append(row)
        self._directions = {owner: self._without(own) for owner, own in rows.items()}
        along = torch.cat([descriptors[rows[owner]] @ w for owner, w in self._directions.items()])
        deviation, middle = torch.std_mean(along, correction=0)
        spread = method.normality_scores.double().std(correction=0).item()
        self.unit = config.weight * math.sqrt(len(method.defects)) * spread
        self.direction = (self._worth * self._direction).float().to(device)
        self._middle, self._deviation = float(middle), max(float(deviation), 1e-12)

    def _without(self, rows: list[int]) -> Tensor:
        """The discriminant that the good pictures give without some of them (Woodbury's identity).

        Mean and scatter are the others'; the sphere and the count that the scatter is divided by
        stay those of all.
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

    def left_out(self, owners: list[int]) -> Tensor:
        """The discriminants, float64 B D, that the good pictures give each without one of them."""
        return torch.stack([self._directions[owner] for owner in owners])

    def likeness_left_out(self, descriptors: Tensor, owners: list[int]) -> Tensor:
        """The same of good pictures B D, each as if it had not been learned."""
        along = (descriptors.double().cpu() * self.left_out(owners)).sum(1)
        return self.scaled(along).float().to(descriptors.device)


def _unscattered(rows: Tensor, share: float, sphere: Tensor) -> Tensor:
    """A (share · AᵀA + sphere · I)⁻¹ for the rows A, n D, by way of the smaller of AAᵀ and AᵀA."""
    few = len(rows) < rows.shape[1]
    square = share * (rows @ rows.T if few else rows.T @ rows)
    square.diagonal().add_(sphere)
    found: Tensor = torch.linalg.solve(square, rows, left=few)
    return found


def _gathered(maps: Tensor, grid: tuple[int, int], offset: float) -> Tensor:
    """The mean of maps B H W around each place of a grid: B N."""
    cell = maps.shape[1] / grid[0]
    moved = resampled(maps[:, None], (maps.shape[1], maps.shape[2]), onto=offset * cell)
    return averaged(moved, grid).flatten(1)


def _joined(known: tuple[Tensor, ...], found: Sequence[tuple[Tensor, ...]]) -> Iterator[Tensor]:
    """Each of the known tensors, then what every batch adds; what is not known has no width yet."""
    return map(torch.cat, zip(*((known, *found) if len(known[0]) else found), strict=True))

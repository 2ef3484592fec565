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

With `second` an encoder beside the backbone (`joint.py`) is part of the normality detector, and
describes the picture in the same three looks. Each encoder has a w of its own, divided by the
deviation of its w·x; joined they are the w of the joined x (`discriminant.py`).

A place of the heatmap adds what a picture that were all like it would, times (α_p(sharpness) / max
α)^(2 A − 1).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor
from torch.nn import functional as F

from blemish.area import Area
from blemish.backbones import Backbone, Features
from blemish.backbones.cells import averaged, resampled
from blemish.errors import ArtifactError, DataError
from blemish.methods.base import Method, map_size, reported, shown
from blemish.methods.capabilities import (
    Batches,
    Extends,
    Fits,
    LeavesOneOut,
    Refines,
    Summarises,
    TakesSecond,
)
from blemish.methods.discriminant import LOOKS, Described, Discriminant
from blemish.methods.joint import Joint
from blemish.methods.lda_config import LdaConfig
from blemish.methods.stored import UNIT, Free, Stored, numbers
from blemish.methods.taught import Taught
from blemish.types import Batch, Progress, Scores

# Patch features B N D, their grid, and its offset (`Backbone.offset`).
Level = tuple[Tensor, tuple[int, int], float]
NORMALITY = "normality."  # how the names of the normality detector's tensors begin
_GROUPS = 10  # in which defects are left out in turn, at most
SHARED = "normality.backbone."  # those of the backbone, which both have and a file holds once


class Lda(Method, Fits, Summarises, LeavesOneOut, Refines, TakesSecond):
    """A normality detector, and what some defects have taught it.

    Of each encoder it reads the layers of the normality detector, then those of the descriptors.
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
        described = _describing(backbone, config.descriptor_layers)
        self.config = replace(config, descriptor_layers=described)
        self.layers = (*self.normality.layers, *described)
        self.minimum_images = self.normality.minimum_images
        self.register_buffer("descriptors", torch.empty(0, 0))
        self.register_buffer("owners", torch.empty(0, dtype=torch.int64))
        self.register_buffer("normality_scores", torch.empty(0))
        self.register_buffer("defects", torch.empty(0, 0))
        self.register_buffer("defect_scores", torch.empty(0))
        self._discriminant: Discriminant | None = None
        # The descriptors of defects learned since this was made, as if no mask were known.
        self._unmarked: list[Tensor] = []

    @property
    def wants_second(self) -> str:
        return self.config.second

    def take_second(self, encoder: Backbone, also: Sequence[int] = ()) -> None:
        assert isinstance(self.normality, Joint)
        described = _describing(encoder, self.config.second_descriptor_layers)
        self.normality.take_second(encoder, (*described, *also))
        layers = self.normality.config.second_layers
        self.config = replace(self.config, second_layers=layers, second_descriptor_layers=described)

    @property
    def encoders(self) -> list[tuple[Backbone, tuple[int, ...]]]:
        return [(self.backbone, self.layers), *self.normality.encoders[1:]]

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
            levels = self._levels(seen)
            pooled = self._pooled(levels, scores.maps, batch.masks)
            found.append((pooled, scores.image.float()))
            self._unmarked += self._pooled(levels, scores.maps, None)
        if found:
            self.defects, self.defect_scores = _joined((self.defects, self.defect_scores), found)
            self._discriminant = None

    def forget_defects(self) -> None:
        """Be the normality detector again."""
        self.defects, self.defect_scores = self.defects[:0], self.defect_scores[:0]
        self._unmarked.clear()
        self._discriminant = None

    def _levels(self, features: Features) -> list[list[Level]]:
        """The patch features of each descriptor layer of each encoder, of length 1, float32 B N D,
        and where they lie.
        """
        first = len(self.normality.layers)
        seen = [features.layers(slice(first, first + len(self.config.descriptor_layers)))]
        if features.beside is not None:
            seen.append(features.beside.layers(slice(len(self.config.second_layers), None)))
        levels = []
        for own in seen:
            tokens = [F.normalize(each.float(), dim=-1) for each in own.tokens]
            levels.append(list(zip(tokens, own.grids, own.offsets, strict=True)))
        return levels

    def _pooled(self, levels: Sequence[list[Level]], maps: Tensor, masks: Tensor | None) -> Tensor:
        """Descriptors, float32 B D, of what maps B h w and masks B h w (NaN = not known) attend to:
        encoder by encoder, of each look by look, and in each layer by layer.
        """
        return torch.cat([self._pooled_of(own, maps, masks) for own in levels], dim=1)

    def _pooled_of(self, levels: Sequence[Level], maps: Tensor, masks: Tensor | None) -> Tensor:
        """The same of one encoder's levels."""
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

    def _likeness_map(
        self, levels: Sequence[list[Level]], maps: Tensor, direction: Tensor
    ) -> Tensor:
        """The likeness of each place, B h w as the maps are, as if the whole picture were like it.

        `direction` is the discriminant, D, or one for each picture, B D. It fades where the second
        look attends less, as far as the normality detector is to be trusted.
        """
        size = (maps.shape[1], maps.shape[2])
        alike = torch.zeros_like(maps, dtype=torch.float32)
        directions = torch.split(direction, [*map(_width, levels)], dim=-1)
        for own, joined in zip(levels, directions, strict=True):
            looks = joined.reshape(*joined.shape[:-1], len(LOOKS), -1).sum(-2)
            parts = torch.split(looks, [tokens.shape[2] for tokens, *_ in own], dim=-1)
            for (tokens, grid, offset), part in zip(own, parts, strict=True):
                along = tokens @ (part if part.ndim == 1 else part[..., None])
                level = along.reshape(tokens.shape[0], 1, *grid)
                alike += resampled(level, size, offset=offset)[:, 0]
        grid, offset = max((grid, offset) for own in levels for _, grid, offset in own)
        share = self._attention(maps, grid, offset)[:, 1]
        share = (share / share.amax(1, keepdim=True)).pow(self.discriminant.trust)
        share = resampled(share.reshape(maps.shape[0], 1, *grid), size, offset=offset)[:, 0]
        return self.discriminant.scaled(alike) * share

    @property
    def discriminant(self) -> Discriminant:
        """What the labelled defects teach."""
        if self._discriminant is None:
            self._discriminant = self._discriminant_of(range(len(self.defects)))
        return self._discriminant

    def _discriminant_of(self, defects: Sequence[int]) -> Discriminant:
        """What some of the labelled defects teach."""
        some = list(defects)
        return Discriminant(
            Described(descriptors=self.descriptors, scores=self.normality_scores),
            self.owners,
            Described(descriptors=self.defects[some], scores=self.defect_scores[some]),
            self._widths(),
            shrinkage=self.config.shrinkage,
            weight=self.config.weight,
        )

    def good_scores(self) -> dict[int, float]:
        return self._good_scores(self.discriminant if len(self.defects) else None)

    def _good_scores(self, taught: Discriminant | None) -> dict[int, float]:
        """As of `good_scores`, by what some defects have taught."""
        first: dict[int, int] = {}
        for row, owner in enumerate(self.owners.tolist()):
            first.setdefault(owner, row)
        rows = list(first.values())
        scores = self.normality_scores[rows]
        if taught is not None:
            likeness = taught.likeness_left_out(self.descriptors[rows], list(first))
            scores = scores + taught.unit * likeness
        return dict(zip(first, scores.tolist(), strict=True))

    def taught(self) -> Taught | None:
        """As of `Refines`. None of fewer than two different defects; where good pictures are not
        judged each left out; and of an artifact that was loaded, which does not know how its
        defects look without their masks.
        """
        if len(self._unmarked) != len(self.defects) or not self.leaves_one_out():
            return None
        copies: dict[bytes, list[int]] = {}
        for at, each in enumerate(self._unmarked):
            copies.setdefault(each.float().cpu().numpy().tobytes(), []).append(at)
        if len(copies) < 2:
            return None
        groups: list[list[int]] = [[] for _ in range(min(len(copies), _GROUPS))]
        for number, same in enumerate(copies.values()):
            groups[number % len(groups)] += same
        plain = torch.tensor(list(self._good_scores(None).values()))
        below, below_plain = 0.0, 0.0
        for left_out in groups:
            others = self._discriminant_of([*({*range(len(self.defects))} - {*left_out})])
            good = torch.tensor(list(self._good_scores(others).values()))
            normality = self.defect_scores[left_out].cpu()
            shown = torch.stack([self._unmarked[at] for at in left_out])
            scores = normality + others.unit * others.likeness(shown).cpu()
            below += _share_below(good, scores)
            below_plain += _share_below(plain, normality)
        count = len(self.defects)
        return Taught(defects=count, auroc=below / count, normality_auroc=below_plain / count)

    def _widths(self) -> list[int]:
        """Of each encoder's part of a descriptor."""
        height, across = self.scoring_size
        seen = [self.backbone.shapes(height, across, self.config.descriptor_layers)]
        for encoder, _ in self.encoders[1:]:
            size = encoder.round_size(height, across)
            seen.append(encoder.shapes(*size, self.config.second_descriptor_layers))
        return [len(LOOKS) * sum(each.shape[2] for each in one.tokens) for one in seen]

    # The artifact

    def fitted_state(self) -> dict[str, Tensor]:
        state = super().fitted_state().items()
        return {name: tensor for name, tensor in state if not name.startswith(SHARED)}

    def learned_tensors(self) -> dict[str, Stored]:
        width = sum(self._widths())
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


def _share_below(good: Tensor, defective: Tensor) -> float:
    """The shares of good scores below each defective one, ties as half, added up."""
    return float((0.5 * (torch.sign(defective[:, None] - good).double() + 1)).mean(1).sum())


def _describing(encoder: Backbone, layers: Sequence[int]) -> tuple[int, ...]:
    """The layers that describe a picture: those named, or the one two thirds of the way."""
    return encoder.check_layers(layers or (max(1, round(2 / 3 * encoder.depth)),))


def _width(levels: Sequence[Level]) -> int:
    """Of the descriptors of one encoder's levels."""
    return len(LOOKS) * sum(tokens.shape[2] for tokens, *_ in levels)


def _gathered(maps: Tensor, grid: tuple[int, int], offset: float) -> Tensor:
    """The mean of maps B H W around each place of a grid: B N."""
    cell = maps.shape[1] / grid[0]
    moved = resampled(maps[:, None], (maps.shape[1], maps.shape[2]), onto=offset * cell)
    return averaged(moved, grid).flatten(1)


def _joined(known: tuple[Tensor, ...], found: Sequence[tuple[Tensor, ...]]) -> Iterator[Tensor]:
    """Each of the known tensors, then what every batch adds; what is not known has no width yet."""
    return map(torch.cat, zip(*((known, *found) if len(known[0]) else found), strict=True))

"""What every detection method is: a config, a network with a frozen backbone, `fit`, `score`."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Annotated, Any, ClassVar, Self

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from blemish import config as configs
from blemish.area import Area
from blemish.backbones import Backbone, Features
from blemish.backbones.cells import resampled
from blemish.config import Fraction, Layers, Length, Range, Seed, Side
from blemish.errors import ArtifactError, ConfigError, NotFittedError
from blemish.methods import frames
from blemish.methods.compression import Compression
from blemish.methods.embedding import join
from blemish.methods.selfsupervised import SelfSupervisedConfig
from blemish.methods.stored import Stored, check_tensors, weight
from blemish.methods.student import Distillation
from blemish.types import Batch, Progress, Scores

LARGEST_BANK = 2**24  # features of a memory bank
EncoderConfig = SelfSupervisedConfig | Distillation
Pooling = Annotated[int, Range(1, 255, odd=True)]


@dataclass(frozen=True, kw_only=True)
class MethodConfig:
    """Settings that every method has.

    Attributes:
        backbone: an alias of `blemish backbones`, or any timm model name.
        image_size: one number for a square, or height and width, in pixels; rounded to what the
            backbone divides.
        layers: backbone layers whose features are used, from 1; empty = the backbone's default.
        rotations: each training picture is learned at so many angles, evenly over 360°; 1 = as is.
        flips: every training picture, at each angle, is also learned mirrored left to right.
        smoothing: standard deviation of the Gaussian over the anomaly map, as a fraction of the
            map's longer side.
        top_fraction: the image score is the mean of this fraction of the map's highest values;
            at least one value counts, so 0 means the maximum.
        seed: of everything random in the method.
    """

    backbone: str = "dinov2_vits14"
    image_size: Annotated[tuple[Side, ...], Length(1, 2)] = (448,)
    layers: Layers = ()
    rotations: Annotated[int, Range(1, 4096)] = 1
    flips: bool = False
    smoothing: Annotated[float, Range(0, 0.5, below=True)] = 0.015
    top_fraction: Fraction = 0.001
    seed: Seed = 0

    def __post_init__(self) -> None:
        configs.check(self)

    @classmethod
    def best(cls) -> Self:
        """The settings that we find to work best: the defaults."""
        return cls()

    @classmethod
    def within_lda(cls) -> Self:
        """What an artifact of `lda` has of the method as its normality part, where it names nothing
        else: `best`, as a rule; what `best` has otherwise is named when it is fitted."""
        return cls.best()

    def for_pictures(self, *, x_rays: bool) -> Self:
        """These settings as they suit the pictures, where they depend on them."""
        return self

    @property
    def pretraining_config(self) -> EncoderConfig | None:
        """How the backbone is trained further on the same pictures, or a smaller encoder distilled
        from it, before the method is built."""
        return None

    @property
    def logs_pretraining(self) -> bool:
        """Whether the backbone is trained further, a run that keeps a log."""
        return isinstance(self.pretraining_config, SelfSupervisedConfig)

    @property
    def needs_squares(self) -> bool:
        """Whether it looks at squares only."""
        return False

    @property
    def learns_by_gradient(self) -> bool:
        """Whether it is trained step by step, for which time budgets and checkpoints are."""
        return False

    @property
    def needs_all(self) -> str:
        """Which of the settings needs all pictures in one place; "" where none does. Asked of what
        learns in parts (`capabilities.LearnsInParts`)."""
        return ""

    @property
    def no_student(self) -> str:
        """Why no student (`methods.student`) can stand in for its encoder; "" where one can."""
        return "it is trained step by step on the encoder itself" if self.learns_by_gradient else ""

    @classmethod
    def restored(cls, values: Mapping[str, Any]) -> Self:
        """The settings that an artifact carries: all of them, as a detector has them.

        Raises: ConfigError for one that is missing, unknown, of the wrong type or out of range.
        """
        needed = [field.name for field in fields(cls) if not configs.is_new(field)]
        if missing := [name for name in needed if name not in values]:
            raise ConfigError(f"config.{missing[0]}: is missing")
        config = configs.from_dict(cls, values, within="config", strict=True)
        if not config.layers:
            raise ConfigError("config.layers: names no layer")
        return config

    @classmethod
    def recipes(cls) -> dict[str, Callable[[], Self]]:
        """Name -> constructor: `best`, and every published setting as `paper…`."""
        names = [name for name in dir(cls) if name == "best" or name.startswith("paper")]
        return {name.replace("_", "-"): getattr(cls, name) for name in names}

    @property
    def height_width(self) -> tuple[int, int]:
        return self.image_size[0], self.image_size[-1]


class Method(nn.Module):
    """A detection method that has, or gets by learning, what it knows as tensors.

    What only some methods can do stands in `capabilities`.

    Attributes:
        name, summary, source: for `blemish methods`; `source` is the paper.
        Config: its config class.
        takes_defects: whether labelled defects can be learned from.
        minimum_images: fewest training pictures that it can be fitted on.
        layers: those of the backbone that `judge` reads, the config's first.
        attended: those whose [CLS] attention it reads, too.
        area: where it looks; None = everywhere. Pictures have the mean colour outside it.
        bounded: whether there is an area, also where pictures say it themselves.
        framed: whether each picture says itself what of it is looked at; see `methods.frames`.
        compression: how its memory bank was compressed in this fit; None where it was not asked.
    """

    name: ClassVar[str]
    summary: ClassVar[str]
    source: ClassVar[str]
    Config: ClassVar[type[MethodConfig]]
    takes_defects: ClassVar[bool] = False
    minimum_images: int = 1
    layers: tuple[int, ...]
    attended: tuple[int, ...] = ()
    area: Area | None = None
    bounded: bool = False
    framed: bool = False
    compression: Compression | None = None

    def __init__(self, config: MethodConfig, backbone: Backbone) -> None:
        super().__init__()
        self.config = config
        self.backbone = backbone
        self.layers = backbone.check_layers(config.layers or self.usual_layers(backbone))

    @property
    def encoders(self) -> list[tuple[Backbone, tuple[int, ...]]]:
        """Those by which pictures are seen, and the layers that are read of each."""
        return [(self.backbone, self.layers)]

    @property
    def precision(self) -> torch.dtype:
        """What it computes in."""
        return self.backbone.dtype

    def set_precision(self, dtype: torch.dtype) -> None:
        """Compute in `dtype` from now on. What it has learned keeps its own precision."""
        self.backbone.to(dtype)

    @property
    def scores_by_map(self) -> bool:
        """Whether the image score is the mean of the highest values of the map, and no more."""
        return True

    def set_area(self, area: Area | None, *, framed: bool = False) -> None:
        """Look only there from now on; None = everywhere.

        Args: framed: the pictures themselves say where, the area included, which is then not
            needed here: in the input it lies elsewhere for pictures of another shape.
        """
        self.area, self.framed = None if framed else area, framed
        self.bounded = area is not None

    @property
    def scoring_size(self) -> tuple[int, int]:
        """(H, W) of the pictures that are scored; it learns from those of the config's size."""
        return self.config.height_width

    @classmethod
    def usual_layers(cls, backbone: Backbone) -> tuple[int, ...]:
        """The layers that are used where the config names none."""
        return backbone.check_layers(())

    @property
    def learner(self) -> Method:
        """The part that learns from the good pictures: itself, or the method that it holds."""
        return self

    def see(self, images: Tensor, also: Sequence[int] = ()) -> Features:
        """What the backbone gives of B 3 H W: `layers`, then those that others ask for, `also`."""
        asked = {"attention": self.attended} if self.attended else {}
        features: Features = self.backbone(images, (*self.layers, *also), **asked)
        return features

    @abstractmethod
    def judge(self, features: Features, images: Tensor) -> Scores:
        """Scores and smoothed maps (at a quarter of the sides) of B 3 H W, from what `see` gave."""

    def score(self, images: Tensor) -> Scores:
        """Scores and smoothed maps of a batch B 3 H W."""
        return self.judge(self.see(images), images)

    def describe(self, features: Features, images: Tensor) -> Tensor:
        """One vector for each of B 3 H W, to see how pictures lie, from what `see` gave: float32
        B D. The mean feature of the config's last layer, where a method has no better one.
        """
        return features.tokens[len(self.config.layers) - 1].float().mean(1)

    def embedding(self, images: Tensor) -> Tensor:
        """As `describe`, of pictures B 3 H W."""
        return self.describe(self.see(images), images)

    def _finish(self, raw: Tensor, images: Tensor) -> Scores:
        size = map_size(images)
        raw = self._extended(raw, images)
        maps = smooth(self._spread(raw, images, size), self.config.smoothing)[:, 0]
        inside = self._inside(images, size)
        return Scores(self._highest(maps, inside), shown(maps, inside))

    def _highest(self, maps: Tensor, inside: Tensor | None) -> Tensor:
        """Mean of the highest fraction of each of the maps B h w, of its places inside: B."""
        return highest(maps, inside, self.config.top_fraction)

    def _inside(self, images: Tensor, size: tuple[int, int]) -> Tensor | None:
        """The places of maps of B 3 H W in which any of what is looked at lies: bool h w, or B h w
        where the pictures say it; None where all are.
        """
        if self.framed:
            return frames.places(images, size)
        return inside_of(self.area, size, images.device)

    def _framed(self, images: Tensor, grid: tuple[int, int]) -> Tensor:
        """The places of a grid over B 3 H W from which is learned: bool B h w.

        Of an area, all of which a value of the map inside is made, by resampling and smoothing.
        Where training pictures are turned or mirrored it lies elsewhere in each: then all places.
        """
        if self.framed:
            return frames.framed(images, grid)
        everywhere = torch.ones(images.shape[0], *grid, dtype=torch.bool, device=images.device)
        turned = self.config.rotations > 1 or self.config.flips
        inside = None if turned else inside_of(self.area, grid, images.device)
        if inside is None:
            return everywhere
        size = map_size(images)
        smoothed = round(3 * self.config.smoothing * max(size)) + 1  # pixels of the map
        cells = max(smoothed * cells / side for cells, side in zip(grid, size, strict=True))
        reach = math.ceil(cells + abs(self.backbone.offset(grid, images)) + 1)
        near = F.max_pool2d(inside[None].float(), 2 * reach + 1, stride=1, padding=reach) > 0
        return everywhere & near

    def _looked_at(self, images: Tensor) -> Tensor | None:
        """bool B H W: the pixels of training pictures B 3 H W that lie in the area, to which
        synthetic anomalies keep; None where all do, or where the area lies is not known, as of
        pictures that are turned or mirrored and do not say it."""
        size = (images.shape[-2], images.shape[-1])
        if not self.bounded:
            return None
        if self.framed:
            return frames.places(images, size)
        turned = self.config.rotations > 1 or self.config.flips
        inside = None if turned else inside_of(self.area, size, images.device)
        return None if inside is None else inside.expand(len(images), *size)

    def _extended(self, values: Tensor, images: Tensor) -> Tensor:
        """Values B h w on a grid over B 3 H W, that go on outside the pictures' frames."""
        return frames.extended(values, images) if self.framed else values

    def _spread(self, raw: Tensor, images: Tensor, size: tuple[int, int]) -> Tensor:
        """Values B h w on the backbone's grid for B 3 H W, evenly as B 1 H W of another size."""
        offset = self.backbone.offset((raw.shape[-2], raw.shape[-1]), images)
        return resampled(raw[:, None], size, offset=offset)

    def fitted_state(self) -> dict[str, Tensor]:
        """Every tensor that an artifact must carry, backbone included."""
        return {name: tensor.contiguous() for name, tensor in self.state_dict().items()}

    def _joined_shape(self) -> tuple[int, int]:
        """N and D of the features that `embedding.embed` gives of a picture."""
        probe = self.backbone.shapes(*self.scoring_size, self.config.layers)
        _, places, width = join(probe, self.backbone.spec.kind)[0].shape
        return places, width

    def learned_tensors(self) -> dict[str, Stored]:
        """What the tensors must be of which the sizes are known only once it has learned."""
        return {}

    def check_learned(self, tensors: Mapping[str, Tensor]) -> None:
        """Look at what `Stored` cannot say. Raises: ArtifactError that names the tensor."""

    def check_state(self, tensors: Mapping[str, Tensor]) -> None:
        """Hold the tensors of an artifact against what a fitted method of these settings has.

        Called on one without storage (of the device "meta"): nothing is allocated before all fits.
        Raises: ArtifactError that names the tensor.
        """
        weights = {name: weight(name, tensor) for name, tensor in self.fitted_state().items()}
        try:
            check_tensors({**weights, **self.learned_tensors()}, tensors)
            self.check_learned(tensors)
        except ArtifactError as error:
            raise ArtifactError(f"the tensors do not fit method {self.name!r}: {error}") from error

    def restore_state(self, tensors: dict[str, Tensor]) -> None:
        """Take back what `fitted_state` gave. Raises: ArtifactError when it does not fit."""
        for name in self.learned_tensors().keys() & tensors.keys():
            owner, _, own = name.rpartition(".")  # its size is known only now
            empty = self.get_buffer(name).new_empty(tensors[name].shape, dtype=tensors[name].dtype)
            setattr(self.get_submodule(owner), own, empty)
        try:
            self.load_state_dict(tensors)
        except RuntimeError as error:
            reason = " ".join(str(error).split())  # torch's has several lines
            raise ArtifactError(f"the tensors do not fit method {self.name!r}: {reason}") from error

    def _require(self, learned: Tensor) -> None:
        if learned.numel() == 0:
            raise NotFittedError(f"this {self.name} detector has not been fitted; call fit first")


def reported(
    batches: Iterable[Batch], stage: str, count: int, progress: Progress
) -> Iterator[Batch]:
    """The batches; after each of them it is told how many pictures of `count` are done.

    Broken pictures never come: then the number that did is told as the last one.
    """
    done = 0
    for batch in batches:
        yield batch
        done += len(batch.images)
        progress(stage, done, max(done, count))
    if 0 < done < count:
        progress(stage, done, done)


def some_of(batches: Iterable[Batch], count: int, number: int) -> Iterator[Batch]:
    """Of batches of `count` pictures about `number`, evenly from all; all of fewer."""
    every, seen = -(-count // number), 0
    for batch in batches:
        rows = slice(-seen % every, None, every)
        seen += len(batch.images)
        if len(batch.images[rows]):
            yield Batch(batch.images[rows], batch.owners[rows])


def map_size(images: Tensor) -> tuple[int, int]:
    """(h, w) of the maps of pictures B 3 H W: a quarter of their sides."""
    return images.shape[-2] // 4, images.shape[-1] // 4


def smooth(maps: Tensor, fraction: float) -> Tensor:
    """B 1 h w under a Gaussian of `fraction` of the longer side; borders are mirrored."""
    sigma = fraction * max(maps.shape[-2:])
    radius = min(round(3 * sigma), maps.shape[-2] - 1, maps.shape[-1] - 1)
    if radius < 1:
        return maps
    offsets = torch.arange(-radius, radius + 1, dtype=maps.dtype, device=maps.device)
    kernel = torch.exp(-0.5 * (offsets / sigma) ** 2)
    kernel = (kernel / kernel.sum())[None, None, None]
    maps = F.conv2d(F.pad(maps, (radius, radius, 0, 0), mode="reflect"), kernel)
    return F.conv2d(F.pad(maps, (0, 0, radius, radius), mode="reflect"), kernel.mT)


def highest(maps: Tensor, inside: Tensor | None, fraction: float) -> Tensor:
    """Mean of the highest `fraction` of each of the maps B h w, of its places inside: B.

    Args: inside: bool h w, or B h w, one place at least in each; None = everywhere.
    """
    if inside is not None and torch.compiler.is_exporting():
        return _highest_inside(maps, inside, fraction)
    if inside is not None and inside.ndim == 3:
        pairs = zip(maps, inside, strict=True)
        return torch.cat([top_mean(one[own][None], fraction) for one, own in pairs])
    return top_mean(maps.flatten(1) if inside is None else maps[:, inside], fraction)


def _highest_inside(maps: Tensor, inside: Tensor, fraction: float) -> Tensor:
    """As `highest`, in shapes that do not depend on what is inside."""
    counts = [max(1, round(fraction * size)) for size in range(maps[0].numel() + 1)]
    values = maps.masked_fill(~inside, -math.inf).flatten(1).topk(counts[-1], dim=1).values
    count = torch.tensor(counts, device=maps.device)[inside.flatten(-2).sum(-1)][..., None]
    taken = torch.arange(counts[-1], device=maps.device) < count
    return (torch.where(taken, values, 0) / count).sum(1)


def shown(maps: Tensor, inside: Tensor | None) -> Tensor:
    """Maps B h w, each with its lowest value of the places inside, as of `highest`, outside."""
    if inside is None:
        return maps
    lowest = torch.where(inside, maps, torch.inf).flatten(1).amin(1)
    return torch.where(inside, maps, lowest[:, None, None])


def inside_of(area: Area | None, size: tuple[int, int], device: torch.device) -> Tensor | None:
    """bool h w, the places in which any of an area lies; None where all are."""
    if area is None:
        return None
    places = area.places(*size)
    return None if places.all() else torch.from_numpy(places).to(device)


def top_mean(values: Tensor, fraction: float) -> Tensor:
    """Mean of the highest `fraction` of each row of B N (at least one value): B."""
    count = max(1, round(fraction * values.shape[1]))
    return values.topk(count, dim=1).values.mean(1)

"""What every detection method is: a config, a network with a frozen backbone, `fit`, `score`."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Self

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from blemish import config as configs
from blemish.backbones import Backbone
from blemish.backbones.cells import resampled
from blemish.config import Fraction, Layers, Length, Range, Seed, Side
from blemish.errors import ArtifactError, ConfigError, NotFittedError
from blemish.methods.adaptation import Adapter, Mode
from blemish.methods.embedding import join
from blemish.methods.stored import Stored, check_tensors, weight
from blemish.types import Batch, Progress, Scores

if TYPE_CHECKING:
    from blemish.methods.apmask import APMaskConfig

LARGEST_BANK = 2**24  # features of a memory bank
Pooling = Annotated[int, Range(1, 255, odd=True)]
Batches = Callable[[], Iterable[Batch]]


@dataclass(frozen=True, kw_only=True)
class MethodConfig:
    """Settings that every method has.

    Attributes:
        backbone: an alias of `blemish backbones`, or any timm model name.
        image_size: one number for a square, or height and width, in pixels; rounded to what the backbone divides.
        layers: backbone layers whose features are used, from 1; empty = the backbone's default.
        rotations: every training picture is learned at this many angles, evenly over 360°. 1 = as it is.
        flips: every training picture, at each angle, is also learned mirrored left to right.
        smoothing: standard deviation of the Gaussian over the anomaly map, as a fraction of the map's longer side.
        top_fraction: the image score is the mean of this fraction of the map's highest values, in (0, 1]; at least
            one value counts, so 0 means the maximum.
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

    def for_layout(self, layout: str) -> Self:
        """These settings as they suit a data set of that layout, where they depend on it."""
        return self

    @property
    def pretraining_config(self) -> APMaskConfig | None:
        """How the backbone is to be trained further, on the same pictures, before the method is built; None = not."""
        return None

    @property
    def learns_by_gradient(self) -> bool:
        """Whether the method is trained step by step, for which time budgets and checkpoints are."""
        return False

    @classmethod
    def migrate(cls, values: Mapping[str, Any]) -> dict[str, Any]:
        """The settings that an artifact of an older version carries, under their names and in the meaning of today."""
        return dict(values)

    @classmethod
    def joined(cls) -> dict[str, Any]:
        """Settings that came when there were artifacts already, and the value at which all is as it was before."""
        return {"flips": False}

    @classmethod
    def restored(cls, values: Mapping[str, Any]) -> Self:
        """The settings that an artifact carries: all of them, as a detector has them.

        Raises: ConfigError for one that is missing, unknown, of the wrong type or out of range.
        """
        try:
            today = {**cls.joined(), **cls.migrate(values)}
        except (
            TypeError,
            ValueError,
            AttributeError,
        ) as error:  # older forms are taken for granted there
            raise ConfigError(f"config: is not as any version has written it ({error})") from error
        if missing := [field.name for field in fields(cls) if field.name not in today]:
            raise ConfigError(f"config.{missing[0]}: is missing")
        config = configs.from_dict(cls, today, within="config", strict=True)
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
    """A detection method that has (or gets, by `fit`) what it knows as tensors.

    Attributes:
        name, summary, source: for `blemish methods`; `source` is the paper.
        Config: its config class.
        takes_defects: whether labelled defects can be learned from.
        minimum_images: fewest training pictures that it can be fitted on.
        leaves_one_out: whether `score_left_out` exists, so that no picture need be held out for calibration. It needs
            one picture more than `minimum_images`.
    """

    name: ClassVar[str]
    summary: ClassVar[str]
    source: ClassVar[str]
    Config: ClassVar[type[MethodConfig]]
    takes_defects: ClassVar[bool] = False
    minimum_images: int = 1
    leaves_one_out: bool = False

    def __init__(self, config: MethodConfig, backbone: Backbone) -> None:
        super().__init__()
        self.config = config
        self.backbone = backbone

    @property
    def precision(self) -> torch.dtype:
        """What it computes in."""
        return self.backbone.dtype

    def set_precision(self, dtype: torch.dtype) -> None:
        """Compute in `dtype` from now on. What it has learned keeps its own precision."""
        self.backbone.to(dtype)

    @property
    def scoring_size(self) -> tuple[int, int]:
        """(H, W) of the pictures that `score` takes; those that it learns from have the config's size."""
        return self.config.height_width

    @classmethod
    def usual_layers(cls, backbone: Backbone) -> tuple[int, ...]:
        """The layers that are used where the config names none."""
        return backbone.check_layers(())

    @property
    def learner(self) -> Method:
        """The part of it that learns from the good pictures batch by batch: itself, where it is not made of others."""
        return self

    @abstractmethod
    def fit(self, batches: Batches, count: int, progress: Progress) -> None:
        """Learn what normal looks like.

        Args:
            batches: each call starts a new pass over the training pictures.
            count: number of pictures in a pass (each copy counts), for progress.
        """

    @abstractmethod
    def anomaly_map(self, images: Tensor) -> Tensor:
        """Raw anomaly per location: float32 B h w on the method's own grid, for images B 3 H W."""

    def score(self, images: Tensor) -> Scores:
        """Scores and smoothed maps (at a quarter of the input's sides) of a batch B 3 H W."""
        return self._finish(self.anomaly_map(images), images)

    @property
    def summarised(self) -> int | None:
        """How many training pictures `summarise` wants, evenly from all; None = all."""
        return 0

    def summarise(self, batches: Batches, count: int, progress: Progress) -> None:
        """Keep what is needed at prediction of the training pictures, which come as they are scored. Called once, after
        learning; arguments as of `fit`."""

    def learn_defects(self, batches: Batches, count: int, progress: Progress) -> None:
        """Learn from labelled defects, which come as they are scored, with `Batch.masks`. Called last.

        Only where `takes_defects` and the method is not trained step by step: training brings them itself.
        """
        raise NotImplementedError(f"{self.name} does not learn from labelled defects")

    def embedding(self, images: Tensor) -> Tensor:
        """One vector for each of B 3 H W, to see how pictures lie: float32 B D, the mean feature of the last layer."""
        features: Tensor = self.backbone(images, self.config.layers).tokens[-1]
        return features.float().mean(1)

    def with_scales(self, scales: Sequence[int]) -> Method:
        """The same weights, looking at squares of these sides (pixels). Raises: ConfigError where it cannot."""
        raise ConfigError(
            f"scales: {self.name} looks at pictures in one size only; guided in several"
        )

    def adapter(self, mode: Mode) -> Adapter:
        """What scores batches while adapting to them; see `adaptation`. Raises: ConfigError where it cannot."""
        raise ConfigError(f"{self.name} cannot adapt to the pictures that it scores; guided can")

    def score_left_out(self, batch: Batch) -> Scores:
        """As `score`, each training picture judged without what it itself has taught; see `leaves_one_out`."""
        raise NotImplementedError(f"{self.name} has no leave-one-out score")

    @property
    def knows_several(self) -> bool:
        """Whether `score_left_out` has something to compare a picture with, now."""
        return False

    def end_leaving_out(self) -> None:
        """Drop what only `score_left_out` needs. Called once, when all that is to be scored so has been."""

    def good_scores(self) -> dict[int, float] | None:
        """What each picture that it learned from scores as by `score_left_out`, by owner; None where it is not kept."""
        return None

    def _finish(self, raw: Tensor, images: Tensor) -> Scores:
        size = (images.shape[-2] // 4, images.shape[-1] // 4)
        maps = smooth(self._spread(raw, images, size), self.config.smoothing)
        return Scores(top_mean(maps.flatten(1), self.config.top_fraction), maps[:, 0])

    def _spread(self, raw: Tensor, images: Tensor, size: tuple[int, int]) -> Tensor:
        """Values B h w at the places of the backbone's grid, for B 3 H W, as B 1 H W of another size: evenly."""
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
        """Hold the tensors of an artifact against what a fitted method of these settings has. Called on one without
        storage (of the device "meta"), so that nothing is allocated before it is known to fit.

        Raises: ArtifactError that names the tensor.
        """
        weights = {name: weight(name, tensor) for name, tensor in self.fitted_state().items()}
        try:
            check_tensors({**weights, **self.learned_tensors()}, tensors)
            self.check_learned(tensors)
        except ArtifactError as error:
            raise ArtifactError(f"the tensors do not fit method {self.name!r}: {error}") from error

    def of_today(self, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        """The tensors that an artifact of an older version carries, as today's has them."""
        return tensors

    def restore_state(self, tensors: dict[str, Tensor]) -> None:
        """Take back what `fitted_state` gave. Raises: ArtifactError when the tensors do not fit the method."""
        tensors = self.of_today(tensors)
        for name, buffer in list(self.named_buffers(recurse=False)):
            if name in tensors:  # sizes of what was learned are known only now
                setattr(
                    self, name, buffer.new_empty(tensors[name].shape, dtype=tensors[name].dtype)
                )
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


def smooth(maps: Tensor, fraction: float) -> Tensor:
    """Gaussian smoothing of B 1 h w; standard deviation = `fraction` of the longer side; borders mirrored."""
    sigma = fraction * max(maps.shape[-2:])
    radius = min(round(3 * sigma), maps.shape[-2] - 1, maps.shape[-1] - 1)
    if radius < 1:
        return maps
    offsets = torch.arange(-radius, radius + 1, dtype=maps.dtype, device=maps.device)
    kernel = torch.exp(-0.5 * (offsets / sigma) ** 2)
    kernel = kernel / kernel.sum()
    maps = F.conv2d(
        F.pad(maps, (radius, radius, 0, 0), mode="reflect"), kernel[None, None, None, :]
    )
    return F.conv2d(
        F.pad(maps, (0, 0, radius, radius), mode="reflect"), kernel[None, None, :, None]
    )


def top_mean(values: Tensor, fraction: float) -> Tensor:
    """Mean of the highest `fraction` of each row of B N (at least one value): B."""
    count = max(1, round(fraction * values.shape[1]))
    return values.topk(count, dim=1).values.mean(1)

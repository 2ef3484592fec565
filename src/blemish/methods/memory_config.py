"""The settings of memory banks."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Self

from blemish.config import NEW, Fraction, Layers, Range
from blemish.errors import ConfigError
from blemish.methods.base import LARGEST_BANK, MethodConfig, Pooling

# By generated defects (docs/log.md). Artifacts leave it out: another one belongs into `best`.
SECOND_SHARE = 0.03


@dataclass(frozen=True, kw_only=True)
class MemoryConfig(MethodConfig):
    """Settings of a memory bank.

    Attributes:
        bank_size: hard cap on the number of patch features remembered. It bounds memory at fit and
            time at prediction.
        pooling: side of the square of neighbouring patches that are averaged into one feature; odd,
            1 = none.
        coarse: longer side, in pixels, of the picture of a first, coarse look, which tells the
            patches of `image_size` that are worth a second one (`methods.closer`); ViTs only.
            0 = one look, everywhere.
        close_share: the share of the patches that gets the second look; 0 = as the good pictures
            tell, by how much of them is the part.
        bank_loss: how far a smaller bank, which is searched in less time, may move scores and maps,
            as measured on good pictures and on generated defects in them, in standard deviations
            of the scores of good pictures; 0.05 is little. 0 = the whole bank is searched.
        neighbours: how many of the nearest features of the bank make what a patch is compared with,
            their weighted mean (`methods.neighbours`); 1 = the nearest alone. Not with `bank_loss`,
            whose search finds one.
        centre: share of a patch's own feature beside the average over the square of `pooling`; 0 =
            the average alone.
        second: a second encoder, as `backbone`, whose features join those of the backbone
            (`methods.joint`); "" = none.
        second_share: the share of the second encoder in squared distances, above 0 and below 1.
        second_layers: those of the second encoder; empty = its default.
    """

    bank_size: Annotated[int, Range(1, LARGEST_BANK)] = 16_000
    pooling: Pooling = 3
    coarse: Annotated[int, Range(0, 8192)] = field(default=0, metadata={NEW: True})
    close_share: Fraction = field(default=0.0, metadata={NEW: True})
    bank_loss: Annotated[float, Range(0, 100)] = field(default=0.0, metadata={NEW: True})
    neighbours: Annotated[int, Range(1, 64)] = field(default=1, metadata={NEW: True})
    centre: Fraction = field(default=0.0, metadata={NEW: True})
    second: str = field(default="", metadata={NEW: True})
    second_share: Fraction = field(default=SECOND_SHARE, metadata={NEW: True})
    second_layers: Layers = field(default=(), metadata={NEW: True})

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.close_share and not self.coarse:
            raise ConfigError("close_share: is that of a second look; name coarse, too")
        if self.bank_loss and self.neighbours > 1:
            raise ConfigError(
                "bank_loss: a compressed bank is searched for the nearest feature alone; set "
                "neighbours=1, too"
            )
        self._check_second()

    def _check_second(self) -> None:
        if not self.second:
            for name, given in (
                ("second_share", self.second_share != SECOND_SHARE),
                ("second_layers", bool(self.second_layers)),
            ):
                if given:
                    raise ConfigError(f"{name}: is that of a second encoder; name second, too")
        elif self.coarse:
            raise ConfigError(
                "second: a second encoder sees whole pictures, and a closer look at some patches "
                "(coarse) does not; leave one of them out"
            )
        elif not 0 < self.second_share < 1:
            raise ConfigError(
                f"second_share: is above 0 and below 1, as 0.03, got {self.second_share:g}; for no "
                "second encoder leave second out"
            )

    @classmethod
    def within_lda(cls) -> Self:
        """The defaults, which were those of `lda` before `best` had others."""
        return cls()

    @property
    def needs_all(self) -> str:
        if self.coarse:
            return "coarse, whose two looks are learned one after the other"
        if self.second:
            return "second, whose channels are measured on all pictures before any is remembered"
        return "bank_loss, which is measured as the bank is made" if self.bank_loss else ""

    @property
    def no_student(self) -> str:
        if self.second:
            return "it has a second encoder (second), for which a student does not stand in"
        return "its two looks (coarse) see pictures that a student has not" if self.coarse else ""


@dataclass(frozen=True, kw_only=True)
class PatchCoreConfig(MemoryConfig):
    """PatchCore's settings; `paper` is the published one (WideResNet-50-2, layer2 and layer3,
    224²).
    """

    @classmethod
    def best(cls) -> Self:
        """Seven neighbours, and half of a patch's own feature; else the defaults. Chosen by
        generated defects (docs/log.md)."""
        return cls(neighbours=7, centre=0.5)

    @classmethod
    def paper(cls) -> Self:
        """WideResNet-50-2, layers 2 and 3, 224², maximum of the map smoothed with σ = 4 pixels.

        The paper keeps 1 %, 10 % or 25 % of all features; the cap of 16,000 is 10 % of those of 209
        pictures at 28×28.
        """
        return cls(
            backbone="wide_resnet50_2",
            image_size=(224,),
            layers=(2, 3),
            smoothing=4 / 224,
            top_fraction=0.0,
        )


@dataclass(frozen=True, kw_only=True)
class KnnConfig(MemoryConfig):
    """Settings of the plain nearest neighbour on patches."""

    pooling: Pooling = 1

    @classmethod
    def best(cls) -> Self:
        """Four neighbours; else the defaults. Chosen by generated defects (docs/log.md)."""
        return cls(neighbours=4)

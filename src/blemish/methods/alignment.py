"""Test-time adaptation in closed form: bring the features of new pictures back to those of the
training pictures.

Another light, sensor or codec moves and scales what the channels of an encoder hold, in all
pictures alike; a defect changes some places of some pictures. So of every block of a ViT the mean
and the (logarithmic) standard deviation of each channel over the patches, mean over the training
pictures, are kept. In a shifted batch the channels of every block are moved and scaled back to
them, before the next block, as batch normalisation with the statistics of the test batch does (Li
et al. 2018, AdaBN). Beyond the papers: nothing is learned, no class is predicted, no weight
changes.

How far they are brought back is James and Stein's shrinkage: a block whose moments lie where those
of training pictures do by chance is left as it is, bit for bit; one that lies far off is brought
back nearly all the way. And only if one of the first third of the blocks is off: that is where
light, sensor and codec show, while what later blocks hold also moves with what is in the pictures.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Protocol

import torch
from torch import Tensor

from blemish.backbones import VitBackbone
from blemish.methods.adaptation import (
    AS_USUAL,
    CHANCE,
    DRAWN,
    DRAWS,
    LEAST,
    TOO_FEW,
    Adapted,
    Mode,
    check_adaptable,
)
from blemish.types import Scores

REMEMBERED = 64  # pictures: "online" goes by about so many


class MomentReference(Protocol):
    """`moments` and `drift_limits`: of `summary`, for each of T sizes: T L 2 2 D and T L.
    `patch_counts`: T, the patches of a size. `pictures`: of how many training pictures they are."""

    moments: Tensor
    drift_limits: Tensor
    patch_counts: Tensor
    pictures: Tensor


class Alignable(Protocol):
    """What can be aligned."""

    backbone: VitBackbone

    @property
    def reference(self) -> MomentReference: ...
    def score(self, images: Tensor) -> Scores: ...


@contextmanager
def between_blocks(
    backbone: VitBackbone, change: Callable[[int, Tensor], Tensor | None]
) -> Iterator[None]:
    """While open, `change(block, patches)` gets the patch tokens B N D (float32) that every block
    (from 0) puts out. What it gives goes on to the next block in their place; None = they go on as
    they are.
    """

    def hook_of(block: int) -> Callable[[object, object, Tensor], Tensor | None]:
        def hook(_module: object, _inputs: object, output: Tensor) -> Tensor | None:
            changed = change(block, output[:, backbone.prefix :].float())
            if changed is None:
                return None
            return torch.cat([output[:, : backbone.prefix], changed.to(output.dtype)], dim=1)

        return hook

    handles = [
        block.register_forward_hook(hook_of(number))
        for number, block in enumerate(backbone.model.blocks)
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def recorded(
    backbone: VitBackbone, into: dict[int, list[Tensor]], *, blocks: int | None = None
) -> Iterator[None]:
    """While open, every forward pass adds to `into`, by the number of its patches, the `moments` of
    B pictures after each of L blocks: B L 2 D. `blocks`: how many are run; None = all.
    """
    seen: list[Tensor] = []

    def note(block: int, patches: Tensor) -> None:
        seen.append(moments(patches))
        if len(seen) == (blocks or backbone.depth):
            into.setdefault(patches.shape[1], []).append(torch.stack(seen, dim=1))
            seen.clear()

    with between_blocks(backbone, note):
        yield


def moments(patches: Tensor) -> Tensor:
    """Mean and natural logarithm of the standard deviation of each channel over the patches: B N D
    to B 2 D.
    """
    return torch.stack([patches.mean(1), patches.std(1, correction=0).clamp_min(1e-6).log()], dim=1)


def summary(seen: Tensor) -> tuple[Tensor, Tensor]:
    """What is kept of training pictures.

    Args: seen: `moments` of at least 2 pictures after each of L blocks, B L 2 D.
    Returns: means and standard deviations over the pictures, L 2 2 D (mean or deviation; which
        moment; channel); and how far, as `drift` measures it, batches of training pictures lie from
        them by chance, for each block: L.
    """
    values = seen.double()
    usual = torch.stack([values.mean(0), values.std(0).clamp_min(1e-6)], dim=1)
    generator = torch.Generator().manual_seed(0)
    drifts = []
    for _ in range(DRAWS):
        chosen = torch.randint(len(values), (DRAWN,), generator=generator).to(values.device)
        drifts.append(drift(values[chosen].mean(0), usual, 1 / DRAWN))
    return usual.float(), torch.stack(drifts).quantile(CHANCE, dim=0).float()


def drift(found: Tensor, usual: Tensor, error: float) -> Tensor:
    """How far mean moments … 2 D lie from the usual ones … 2 2 D: squared distance in units of the
    squared standard error, which is `error` times the variance; mean over moments and channels;
    about 1 without a shift.
    """
    mean, deviation = usual.unbind(-3)
    return ((found - mean) / deviation).square().mean((-2, -1)) / error


class Aligner:
    """Scores batches with features brought back to those of the training pictures.

    Args:
        model: a fitted method.
        mode: "episodic": by the moments of each batch alone; "online": by those of about the last
            64 pictures.
        sizes: by how many patches, those that it scores in.
    Raises: ConfigError for another mode, or a model without statistics for the sizes that it scores
    in.
    """

    def __init__(self, model: Alignable, mode: Mode, sizes: set[int]) -> None:
        check_adaptable(mode, known=sizes <= set(model.reference.patch_counts.tolist()))
        self.model = model
        self.mode = mode
        self._seen: dict[
            tuple[int, int], tuple[Tensor, float]
        ] = {}  # by size and block: moments, of how many pictures

    @torch.no_grad()
    def score(self, images: Tensor) -> Adapted:
        """Scores of a batch B 3 H W, aligned if it is shifted."""
        if len(images) < LEAST:
            return Adapted(self.model.score(images), False, TOO_FEW.format(len(images)))
        if self.mode == "episodic":
            self.restore()
        depth, shifted, aligned = self.model.backbone.depth, False, False

        def align(block: int, patches: Tensor) -> Tensor | None:
            nonlocal shifted, aligned
            shifted = shifted and block > 0  # each size for itself
            if 3 * block >= depth and not shifted:
                return None
            changed = self._align(block, patches)
            shifted = shifted or changed is not None
            aligned = aligned or shifted
            return changed

        with between_blocks(self.model.backbone, align):
            scores = self.model.score(images)
        return Adapted(scores, aligned, "" if aligned else AS_USUAL)

    def restore(self) -> None:
        """Forget the pictures seen so far."""
        self._seen.clear()

    def _align(self, block: int, patches: Tensor) -> Tensor | None:
        reference = self.model.reference
        size = reference.patch_counts.tolist().index(patches.shape[1])
        wanted_moments = reference.moments[size, block]
        found, count = moments(patches).mean(0), float(len(patches))
        if (size, block) in self._seen:
            earlier, weight = self._seen[size, block]
            weight = min(weight, REMEMBERED)
            found, count = found.lerp(earlier, weight / (weight + count)), weight + count
        self._seen[size, block] = found, count
        away = drift(found, wanted_moments, 1 / count + 1 / float(reference.pictures))
        share = float(1 - reference.drift_limits[size, block] / away)
        if not share > 0:
            return None
        (mean, log_deviation), (wanted, log_wanted) = found, wanted_moments[0]
        aligned: Tensor = (patches - mean) * (
            share * (log_wanted - log_deviation)
        ).exp() + mean.lerp(wanted, share)
        return aligned

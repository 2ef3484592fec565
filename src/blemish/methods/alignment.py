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
from functools import partial

import torch
from torch import Tensor

from blemish.backbones import VitBackbone
from blemish.methods.adaptation import (
    AS_USUAL,
    DRAWN,
    Adaptable,
    Adapted,
    Adapter,
    drift_limit,
)
from blemish.types import Mode

REMEMBERED = 64  # pictures: "online" goes by about so many


@contextmanager
def between_blocks(
    backbone: VitBackbone, change: Callable[[int, Tensor], Tensor | None]
) -> Iterator[None]:
    """While open, `change(block, patches)` gets the patch tokens B N D (float32) that every block
    (from 0) puts out. What it gives goes on to the next block in their place; None = they go on as
    they are.
    """

    def hook(block: int, _module: object, _inputs: object, output: Tensor) -> Tensor | None:
        changed = change(block, output[:, backbone.prefix :].float())
        if changed is None:
            return None
        return torch.cat([output[:, : backbone.prefix], changed.to(output.dtype)], dim=1)

    handles = [
        block.register_forward_hook(partial(hook, number))
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
    """Mean and log standard deviation of each channel over the patches: B N D to B 2 D."""
    return torch.stack([patches.mean(1), patches.std(1, correction=0).clamp_min(1e-6).log()], dim=1)


def summary(seen: Tensor) -> tuple[Tensor, Tensor]:
    """What is kept of training pictures.

    Args: seen: `moments` of at least 2 pictures after each of L blocks, B L 2 D.
    Returns: means and standard deviations over the pictures, L 2 2 D (mean or deviation; which
        moment; channel); and the limit of `drift` for each block: L.
    """
    values = seen.double()
    usual = torch.stack([values.mean(0), values.std(0).clamp_min(1e-6)], dim=1)
    limits = drift_limit(len(values), lambda some: drift(values[some].mean(0), usual, 1 / DRAWN))
    return usual.float(), limits


def drift(found: Tensor, usual: Tensor, error: float) -> Tensor:
    """How far mean moments … 2 D lie from the usual ones … 2 2 D: squared distance in units of the
    squared standard error, which is `error` times the variance; mean over moments and channels;
    about 1 without a shift.
    """
    mean, deviation = usual.unbind(-3)
    return ((found - mean) / deviation).square().mean((-2, -1)) / error


class Aligner(Adapter):
    """Scores batches with features brought back to those of the training pictures.

    Args:
        model, mode: as of `Adapter`; "episodic": by the moments of each batch alone; "online": by
            those of about the last 64 pictures.
        sizes: by how many patches, those that it scores in.
    """

    def __init__(self, model: Adaptable, mode: Mode, sizes: set[int]) -> None:
        super().__init__(model, mode, known=sizes <= set(model.reference.patch_counts.tolist()))
        # By size and block: moments, and of how many pictures.
        self._seen: dict[tuple[int, int], tuple[Tensor, float]] = {}

    def restore(self) -> None:
        self._seen.clear()

    def _follow(self, images: Tensor) -> Adapted:
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
        scale = (share * (log_wanted - log_deviation)).exp()
        aligned: Tensor = (patches - mean) * scale + mean.lerp(wanted, share)
        return aligned

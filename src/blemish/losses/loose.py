"""The cosine loss that is loose with what is reconstructed already.

Guo et al. 2025, "Dinomaly: The Less Is More Philosophy in Multi-Class Unsupervised Anomaly
Detection", and before it Guo et al. 2023 (ReContrast).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from blemish.losses.cosine import cosine_distance

_EASY = 0.1  # what an easy place weighs


def hard_weights(distance: Tensor, easy: float) -> Tensor:
    """What each distance weighs: 0.1 where it is below the ⌊easy · n⌋ + 1st smallest of all n,
    else 1.

    Args: distance: any shape. easy: in [0, 1).
    """
    known = distance.detach().flatten()
    limit = known.kthvalue(math.floor(easy * known.numel()) + 1).values
    return torch.where(distance.detach() < limit, _EASY, 1.0)


def loose_cosine(given: Tensor, wanted: Tensor, *, easy: float) -> Tensor:
    """The distance of whole feature maps, a scalar:

        mean over pictures and groups of 1 − cos(all N · D values given, all that are wanted)

    On its way to `given` the gradient of a place is multiplied by 0.1 where it is among the `easy`
    share of its group's places, of all pictures, that have the smallest cosine distance. The value
    itself stays as it is.

    Args: given: B G N D, float32 or bf16. wanted: B G N D, float32, which gets no gradient. easy:
        in [0, 1).
    """
    own = given.view_as(given)  # what else `given` goes into keeps its gradient
    if easy > 0 and own.requires_grad:
        with torch.no_grad():
            apart = cosine_distance(given, wanted).unbind(1)
            weights = torch.stack([hard_weights(group, easy) for group in apart], 1)[..., None]
        own.register_hook(  # type: ignore[no-untyped-call]
            lambda gradient: gradient * weights.to(gradient.dtype)
        )
    return cosine_distance(own.flatten(2), wanted.flatten(2)).mean()

"""Learns from good pictures how the part is told from its background.

As AnomalyDINO (Damm et al. 2025, section 3.1) masks the patches of few-shot detectors: the first
principal component of the patch features, a cut, the side of it that reaches the picture's border
is the background, and what is left is dilated and closed. Its authors choose by hand which data
sets are masked: objects, no textures. Deviates: the component and the cut are learned once, from
good pictures (features of unit length; the spread within each picture, which no lighting adds to;
the cut by Otsu 1979), and whether they are used is decided by what these pictures show. The limits
below were chosen on good training pictures of five sets alone (docs/log.md), never on defects or
labels.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from blemish.backbones import Features
from blemish.methods.base import Method
from blemish.methods.capabilities import Batches
from blemish.methods.foreground import Foreground, Mask, edge_of, filled, otsu, places_of
from blemish.types import Progress

PICTURES = 32  # at most, that it is learned from
SEPARATION = 0.75  # of values that are spread evenly; of two values it is 1, of a Gaussian 0.64
CLEARNESS = 0.7  # separation times the share of the border that is background
AGREEMENT = 0.8
LEAST_SHARE, MOST_SHARE = 0.1, 0.9
_LEAST_GRID = 6  # places of a side: on fewer, a dilated place is a third of the picture


def foreground_of(method: Method, batches: Batches, count: int, progress: Progress) -> Foreground:
    """What good pictures, as they are scored, tell; it may abstain.

    Args: batches: each of two calls starts a pass over them. count: how many they are.
    """
    with torch.inference_mode():
        scatter, seen = _scatter(method, batches, count, progress)
        if seen < 2:
            return Foreground(abstains="one picture alone does not tell what all have in common")
        directions = _directions(scatter)
        values = _values(method, batches, directions)
    if min(values.grid) < _LEAST_GRID:
        height, width = values.grid
        reason = f"the encoder sees {height}×{width} places, too few to tell a part by"
        return Foreground(abstains=f"{reason}; a larger --image-size has more")
    return _judged(directions[0], values)


def seen_along(method: Method, features: Features, direction: Sequence[float]) -> Tensor:
    """How much each place goes along a direction, D numbers: B h w on the backbone's grid.

    Args: features: what `method.see` gave.
    """
    tokens, grid = _layer(method, features)
    turned = tokens @ torch.tensor(direction, dtype=torch.float32, device=tokens.device)
    return turned.reshape(tokens.shape[0], *grid)


def _judged(direction: NDArray[np.float32], values: _Values) -> Foreground:
    """From the values of the pictures along three directions: of all, and of each half."""
    sides = [values.divided(which) for which in range(3)]
    cut, separation, sign = sides[0][:3]
    taken = [filled(raw) & values.inside for raw in sides[0][3]]
    shares = [float(one.sum() / values.inside.sum()) for one in taken]
    edge = edge_of(values.inside)
    outside = float(np.mean([1 - raw[edge].mean() for raw in sides[0][3]]))
    pairs = zip(sides[1][3], sides[2][3], strict=True)
    agreement = float(np.mean([(a & b).sum() / max(1, (a | b).sum()) for a, b in pairs]))
    measured = {
        # Of shares that are all alike the mean may be off by its last bit.
        "share": min(max(float(np.mean(shares)), min(shares)), max(shares)),
        "separation": min(separation, 1.0),
        "border": outside,
        "agreement": agreement,
    }
    return Foreground(
        abstains=_reason(**measured),
        direction=tuple(float(f"{sign * number:.8g}") for number in direction.tolist()),
        cut=float(f"{sign * cut:.8g}"),
        least=min(shares),
        most=max(shares),
        **measured,
    )


def _reason(*, share: float, separation: float, border: float, agreement: float) -> str:
    """Why what was measured is not to be trusted; "" where it is."""
    if separation < SEPARATION:
        return (
            "the encoder sees no two kinds of places, a part and a background, in the training "
            f"pictures (separation {separation:.2f}, {SEPARATION:g} is needed)"
        )
    if separation * border < CLEARNESS:
        return (
            "no background runs along the border of the training pictures "
            f"({100 * border:.0f} % of it; {100 * CLEARNESS / separation:.0f} % are needed)"
        )
    if agreement < AGREEMENT:
        return (
            "two halves of the training pictures tell different parts (agreement "
            f"{agreement:.2f}, {AGREEMENT:g} is needed)"
        )
    if share > MOST_SHARE:
        return f"the part fills {100 * share:.0f} % of the training pictures, which leaves little"
    if share < LEAST_SHARE:
        return (
            f"only {100 * share:.1f} % of the training pictures would be looked at "
            f"({100 * LEAST_SHARE:g} % are needed)"
        )
    return ""


@dataclass(frozen=True)
class _Values:
    """Of some pictures the values along three directions.

    Attributes: along: 3 B h w. grid: (h, w). inside: bool h w, the places that are looked at.
    """

    along: NDArray[np.float32]
    grid: tuple[int, int]
    inside: Mask

    def divided(self, which: int) -> tuple[float, float, int, Mask]:
        """Of one direction the cut, the separation, the sign that turns it towards the part, and
        the places of the part, bool B h w. The halves get their cuts from their own pictures."""
        values = self.along[which]
        own = values if which == 0 else values[which - 1 :: 2]
        cut, separation = otsu(own[:, self.inside])
        above, edge = values > cut, edge_of(self.inside)
        # The side that is rarer along the border than elsewhere is the part.
        sign = -1 if above[:, edge].mean() > above[:, self.inside].mean() else 1
        part = (above if sign == 1 else values < cut) & self.inside
        return cut, separation, sign, part


def _layer(method: Method, features: Features) -> tuple[Tensor, tuple[int, int]]:
    """Features of unit length of the config's last layer, float32 B N D, and their grid."""
    last = len(method.config.layers) - 1
    return F.normalize(features.tokens[last].float(), dim=-1), features.grids[last]


def _seen(method: Method, batches: Batches) -> Iterator[tuple[Tensor, tuple[int, int], Tensor]]:
    """Batch by batch: features B N D, their grid, and bool N, the places looked at."""
    for batch in batches():
        tokens, grid = _layer(method, method.see(batch.images))
        inside = torch.from_numpy(places_of(method.area, grid).ravel()).to(tokens.device)
        yield tokens, grid, inside


def _scatter(
    method: Method, batches: Batches, count: int, progress: Progress
) -> tuple[Tensor, int]:
    """Scatter about each picture's own mean, float64 2 D D: of the first, third, … picture and of
    the others; and how many pictures there were."""
    seen, scatter = 0, torch.zeros(2, 0, 0, dtype=torch.float64)
    for tokens, _, inside in _seen(method, batches):
        if seen == 0:
            scatter = scatter.new_zeros(2, tokens.shape[2], tokens.shape[2])
        for one in tokens[:, inside]:
            centred = one - one.mean(0)
            scatter[seen % 2] += (centred.T @ centred).cpu()  # not every device has float64
            seen += 1
        progress("telling part from background", seen, max(seen, count))
    return scatter, seen


def _directions(scatter: Tensor) -> NDArray[np.float32]:
    """The first principal components, 3 D: of all pictures, and of each half of them."""
    every = torch.stack([scatter.sum(0), *scatter])
    found: NDArray[np.float32] = torch.linalg.eigh(every).eigenvectors[:, :, -1].float().numpy()
    return found


def _values(method: Method, batches: Batches, directions: NDArray[np.float32]) -> _Values:
    along, grid = [], (0, 0)
    for tokens, grid, _ in _seen(method, batches):  # noqa: B007 — all batches have one grid
        turned = tokens @ torch.from_numpy(directions).to(tokens.device).T
        along.append(turned.permute(2, 0, 1).cpu().numpy())
    values = np.concatenate(along, axis=1)
    return _Values(values.reshape(3, -1, *grid), grid, places_of(method.area, grid))

"""Fisher's discriminant (Fisher 1936) between good pictures and labelled defects, with shrinkage
and a scale, as `lda` has it; each good picture is judged by what the others say.

Of the descriptors of one encoder

    w = ((1 − s) Σ + s (tr Σ / D) I)⁻¹ (mean of the defects − μ)
    μ, Σ: of the good pictures; s: the shrinkage

Of several encoders each has such a w of its own, divided by the deviation of its w·x over the good
pictures, each left out, so that none counts more for its unit; joined they are the discriminant of
the joined descriptors.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

# At the whole picture, around what differs, closely at it; in units of the sharpness.
LOOKS = (0.0, 1.0, 3.0)
_SMALLEST = 1e-12  # of a deviation or variance that is divided by


@dataclass(frozen=True, kw_only=True)
class Described:
    """What is known of good pictures, or of labelled defects.

    Attributes: descriptors: float32 n D. scores: float32 n, the normality's scores of them.
    """

    descriptors: Tensor
    scores: Tensor


class Discriminant:
    """The direction that tells defects from good pictures, and its scale.

    Attributes:
        direction: float32 D, along which descriptors tell defects from good pictures.
        unit: what one deviation of the likeness adds to a score.
        trust: in the normality detector, [0, 1]: 2 AUROC − 1, at least 0, of its scores between the
            labelled defects and the good pictures. Too high where it has to judge these by what
            they have taught it. The closest look is worth so much.
    """

    def __init__(
        self,
        good: Described,
        owners: Tensor,
        defects: Described,
        widths: Sequence[int],
        *,
        shrinkage: float,
        weight: float,
    ) -> None:
        """Args:
        owners: int64 n, the picture that each good descriptor is of.
        widths: of each encoder's part of a descriptor, look by look.
        shrinkage, weight: as of `lda`.
        """
        device = good.scores.device
        won = torch.sign(defects.scores[:, None] - good.scores).mean()
        self.trust = max(0.0, won.item())
        descriptors = good.descriptors.double().cpu()
        known = defects.descriptors.double().cpu()
        # Each good picture as it would be judged had it not been there: the others' scale is not to
        # flatter it.
        rows: dict[int, list[int]] = {}
        for row, owner in enumerate(owners.tolist()):
            rows.setdefault(owner, []).append(row)
        parts, alone = [], []
        each = (torch.split(one, [*widths], dim=1) for one in (descriptors, known))
        columns = zip(*each, strict=True)
        for of_good, of_defects in columns:
            fisher = _Fisher(of_good, of_defects, self.trust, shrinkage)
            left_out = {owner: fisher.without(own) for owner, own in rows.items()}
            counts = 1.0
            if len(widths) > 1:
                counts = 1 / _scale(of_good, left_out, rows)[1]
            parts.append(counts * fisher.direction)
            alone.append({owner: counts * each for owner, each in left_out.items()})
        self._directions = {owner: torch.cat([part[owner] for part in alone]) for owner in rows}
        self._middle, self._deviation = _scale(descriptors, self._directions, rows)
        spread = good.scores.double().std(correction=0).item()
        self.unit = weight * math.sqrt(len(defects.scores)) * spread
        self.direction = torch.cat(parts).float().to(device)

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


class _Fisher:
    """The discriminant of one encoder's descriptors, look by look: good n D, defects M D, float64.

    Attributes: direction: float64 D.
    """

    def __init__(
        self, descriptors: Tensor, defects: Tensor, trust: float, shrinkage: float
    ) -> None:
        self._count, dim = descriptors.shape
        looks = torch.ones(len(LOOKS), dtype=torch.float64)
        looks[-1] = trust
        self._worth = looks.repeat_interleave(dim // len(LOOKS))
        good = self._worth * descriptors
        mean = good.mean(0)
        towards = self._worth * defects.mean(0) - mean
        self._apart = good - mean
        trace = self._apart.square().sum().clamp(min=_SMALLEST)
        sphere = shrinkage * trace / (self._count * dim)
        self._share = (1 - shrinkage) / self._count
        self._sides = unscattered(self._apart, self._share, sphere)
        scattered = self._share * self._sides.T @ (self._apart @ towards)
        self._direction = (towards - scattered) / sphere
        self.direction = self._worth * self._direction

    def without(self, rows: list[int]) -> Tensor:
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


def _scale(
    descriptors: Tensor, left_out: dict[int, Tensor], rows: dict[int, list[int]]
) -> tuple[float, float]:
    """Mean and deviation of the good pictures n D, each along what the others give."""
    along = torch.cat([descriptors[rows[owner]] @ w for owner, w in left_out.items()])
    deviation, middle = torch.std_mean(along, correction=0)
    return float(middle), max(float(deviation), _SMALLEST)


def unscattered(rows: Tensor, share: float, sphere: Tensor) -> Tensor:
    """A (share · AᵀA + sphere · I)⁻¹ for the rows A, n D, by way of the smaller of AAᵀ and AᵀA."""
    few = len(rows) < rows.shape[1]
    square = share * (rows @ rows.T if few else rows.T @ rows)
    square.diagonal().add_(sphere)
    found: Tensor = torch.linalg.solve(square, rows, left=few)
    return found

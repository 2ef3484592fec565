"""What a manifest says of labelled defects that were left out in turn."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from blemish.config import Fraction, Range


@dataclass(frozen=True, kw_only=True)
class Taught:
    """How well labelled defects are told from the good pictures by what the others teach: in at
    most ten groups each is left out in turn (of ten or fewer each by itself, with its copies), and
    so is each good picture.

    It is of pictures that were learned from: not of a test, but good for telling settings apart.

    Attributes:
        defects: how many there are.
        auroc: image AUROC, [0, 1]: the mean over the defects of the share of good pictures that
            score below (as high: half).
        normality_auroc: the same by the normality's score alone.
    """

    defects: Annotated[int, Range(2)]
    auroc: Fraction
    normality_auroc: Fraction

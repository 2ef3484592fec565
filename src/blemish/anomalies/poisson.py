"""Seamless cloning: blend a patch by its gradients instead of its colours.

Pérez, Gangnet, Blake 2003, "Poisson Image Editing". Solved on the rectangle around the patch: its
gradients inside the patch's shape, the picture's own elsewhere, the picture on the rectangle's rim.
So the light of the patch adapts to its surroundings, its shape leaves no edge, and beyond the
rectangle nothing changes. OpenCV's `seamlessClone` follows the same scheme for three channels of 8
bits; here it is any number of channels in floating point.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from blemish.anomalies.patch import Patch

# From the differences between neighbours in the picture and in the patch to those that the result
# should have.
Guidance = Callable[[np.ndarray, np.ndarray], np.ndarray]


def imported(target: np.ndarray, source: np.ndarray) -> np.ndarray:
    """The patch's gradients."""
    return source


def mixed(target: np.ndarray, source: np.ndarray) -> np.ndarray:
    """Whichever gradient is larger, per channel: the picture's structure shows through where the
    patch is flat.
    """
    return np.where(np.abs(source) > np.abs(target), source, target)


def solve(
    target: np.ndarray, source: np.ndarray, inside: np.ndarray, guidance: Guidance = imported
) -> np.ndarray:
    """The picture whose gradients come closest to the wanted ones, in least squares, and whose rim
    is the target's.

    Wanted between two neighbouring pixels is what `guidance` says where both are `inside`, else the
    target's own difference. The change f − target is zero on the rim, so the discrete sine
    transform (type I) diagonalises its five-point Laplacian.

    Args:
        target, source: float32 h w C.
        inside: bool h w.
    Returns: float32 h w C, not clipped. Equal to the target where h or w < 3, as all of it is rim.
    """
    from scipy.fft import dstn, idstn  # here, as the base install has no SciPy

    height, width = target.shape[:2]
    if height < 3 or width < 3:
        return target.copy()
    down, across = (_excess(target, source, inside, guidance, axis) for axis in (0, 1))
    wanted = down[1:, 1:-1] - down[:-1, 1:-1] + across[1:-1, 1:] - across[1:-1, :-1]
    wanted = np.ascontiguousarray(wanted.transpose(2, 0, 1))  # C h-2 w-2
    spectrum = dstn(wanted, type=1, axes=(1, 2))
    spectrum /= _eigenvalues(height)[:, None] + _eigenvalues(width)
    change = idstn(spectrum, type=1, axes=(1, 2), overwrite_x=True)
    result = target.copy()
    result[1:-1, 1:-1] += change.transpose(1, 2, 0)
    return result


def melt(canvas: np.ndarray, mask: np.ndarray, patch: Patch, guidance: Guidance = imported) -> None:
    """Blend a patch into `canvas` H W C, clipped to [0, 1], and mark its pixels in `mask` H W (both
    changed).

    The rectangle is that of the patch and one pixel around. At the border of the picture there is
    none around: there the patch's outermost pixels are the rim, keep the picture's colours and are
    not marked.
    """
    height, width = canvas.shape[:2]
    top, left = max(patch.rows.start - 1, 0), max(patch.columns.start - 1, 0)
    whole = (
        slice(top, min(patch.rows.stop + 1, height)),
        slice(left, min(patch.columns.stop + 1, width)),
    )
    within = (
        slice(patch.rows.start - top, patch.rows.stop - top),
        slice(patch.columns.start - left, patch.columns.stop - left),
    )
    target = canvas[whole]
    source = np.zeros_like(target)
    source[within] = patch.pixels
    inside = np.zeros(target.shape[:2], dtype=bool)
    inside[within] = patch.inside
    inside[[0, -1]] = False
    inside[:, [0, -1]] = False
    np.clip(solve(target, source, inside, guidance), 0, 1, out=canvas[whole])
    mask[whole] |= inside


def _excess(
    target: np.ndarray, source: np.ndarray, inside: np.ndarray, guidance: Guidance, axis: int
) -> np.ndarray:
    """By how much the wanted differences along an axis exceed the target's."""
    present = np.diff(target, axis=axis)
    both = inside[1:] & inside[:-1] if axis == 0 else inside[:, 1:] & inside[:, :-1]
    excess: np.ndarray = (guidance(present, np.diff(source, axis=axis)) - present) * both[..., None]
    return excess


def _eigenvalues(side: int) -> np.ndarray:
    """Of the second difference on the `side` − 2 places within a rim of zeros."""
    return (2 * np.cos(np.pi * np.arange(1, side - 1) / (side - 1)) - 2).astype(np.float32)

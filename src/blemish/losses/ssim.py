"""How alike pictures are in structure."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

_DEVIATION = 1.5  # of the window, in pixels
_C1, _C2 = 0.01**2, 0.03**2  # of values that go from 0 to 1


def ssim(one: Tensor, other: Tensor, *, window: int = 11) -> Tensor:
    """The structural similarity (Wang et al. 2004) of pictures B C H W in [0, 1]: a scalar, the
    mean over pixels, channels and pictures; 1 = the same.

        (2 μx μy + C₁)(2 σxy + C₂) / ((μx² + μy² + C₁)(σx² + σy² + C₂)), C₁ = 0.01², C₂ = 0.03²

    with the means, variances and the covariance of a pixel's neighbours, weighted by a Gaussian of
    σ = 1.5 pixels in a window of `window`² pixels; beyond the border there are zeros. In float32.

    Example:
        >>> picture = torch.rand(1, 3, 32, 32, generator=torch.Generator().manual_seed(0))
        >>> ssim(picture, picture).item(), ssim(picture, 1 - picture).item() < 0
        (1.0, True)
    """
    with torch.autocast(one.device.type, enabled=False):
        x, y = one.float(), other.float()
        offsets = torch.arange(window, dtype=x.dtype, device=x.device) - window // 2
        row = torch.exp(-(offsets**2) / (2 * _DEVIATION**2))
        row = (row / row.sum()).expand(5 * x.shape[1], 1, 1, -1)
        # One after the other along both sides: in less than half of the time.
        stacked = torch.cat([x, y, x * x, y * y, x * y], dim=1)
        groups, half = stacked.shape[1], window // 2
        across = F.conv2d(stacked, row, padding=(0, half), groups=groups)
        means = F.conv2d(across, row.mT, padding=(half, 0), groups=groups)
        mean_x, mean_y, xx, yy, xy = means.chunk(5, dim=1)
        both = mean_x * mean_y
        squares = mean_x**2 + mean_y**2
        alike = (2 * both + _C1) * (2 * (xy - both) + _C2)
        return (alike / ((squares + _C1) * (xx + yy - squares + _C2))).mean()

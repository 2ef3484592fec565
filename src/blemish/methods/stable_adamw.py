"""AdamW with clipped updates.

StableAdamW of Wortsman et al. 2023, "Stable and low-precision training for large-scale
vision-language models", with the maximum of the second moments over time (AMSGrad, Reddi et al.
2018), as Dinomaly (Guo et al. 2025) learns with it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor


class StableAdamW(torch.optim.AdamW):
    """For each tensor θ of n values with gradient g, at step t:

    m ← β₁m + (1 − β₁)g, v ← β₂v + (1 − β₂)g², u ← max(u, v), d = √u / √(1 − β₂ᵗ) + ε,
    r = max(1, √(Σ (g/d)² / n)), θ ← (1 − ηλ)θ − η / (r(1 − β₁ᵗ)) · m / d

    with the learning rate η, the weight decay λ, β = (0.9, 0.999). Without r, which keeps a step
    small where the gradient is suddenly larger than it was, this is AdamW. Deviates from Wortsman
    et al., whose second moments have no maximum and whose decay is divided by r, too.
    """

    def __init__(
        self, parameters: Iterable[Tensor], *, lr: float, weight_decay: float, eps: float = 1e-10
    ) -> None:
        super().__init__(parameters, lr=lr, weight_decay=weight_decay, eps=eps, amsgrad=True)

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """One step; `closure` is for torch's sake and must be None."""
        assert closure is None
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    self._update(parameter, parameter.grad, group, self.state[parameter])

    def _update(
        self, parameter: Tensor, gradient: Tensor, group: dict[str, Any], state: dict[str, Any]
    ) -> None:
        if not state:
            state["step"] = torch.tensor(0.0)
            for name in ("exp_avg", "exp_avg_sq", "max_exp_avg_sq"):
                state[name] = torch.zeros_like(parameter)
        state["step"] += 1
        step, rate, (first, second) = float(state["step"]), group["lr"], group["betas"]
        mean, square, most = (state[name] for name in ("exp_avg", "exp_avg_sq", "max_exp_avg_sq"))
        mean.lerp_(gradient, 1 - first)
        square.mul_(second).addcmul_(gradient, gradient, value=1 - second)
        torch.maximum(most, square, out=most)
        usual = most.sqrt().div_(math.sqrt(1 - second**step)).add_(group["eps"])
        ratio = (gradient / usual).norm() / math.sqrt(gradient.numel())
        size = rate / (1 - first**step) / ratio.clamp_min(1)
        parameter.mul_(1 - rate * group["weight_decay"]).sub_((mean / usual).mul_(size))

"""StableAdamW against its equations, number by number in float64, over several steps."""

from __future__ import annotations

import math

import numpy as np
import torch

from blemish.methods.stable_adamw import StableAdamW

RATE, DECAY = 3e-3, 0.1


def naive(values: np.ndarray, gradients: list[np.ndarray], rates: list[float]) -> np.ndarray:
    """One tensor after as many steps as there are gradients."""
    x = values.astype(np.float64).ravel()
    m, v, u = (np.zeros(len(x)) for _ in range(3))
    for t, (gradient, rate) in enumerate(zip(gradients, rates, strict=True), 1):
        g, d = gradient.ravel(), np.empty(len(x))
        for i in range(len(x)):
            m[i] = 0.9 * m[i] + 0.1 * g[i]
            v[i] = 0.999 * v[i] + 0.001 * g[i] ** 2
            u[i] = max(u[i], v[i])
            d[i] = math.sqrt(u[i]) / math.sqrt(1 - 0.999**t) + 1e-10
        r = max(1.0, math.sqrt(sum((g / d) ** 2) / len(x)))
        for i in range(len(x)):
            x[i] = (1 - rate * DECAY) * x[i] - rate / (r * (1 - 0.9**t)) * m[i] / d[i]
    return x.reshape(values.shape)


def test_the_parameters_after_each_of_several_steps(seeded: None) -> None:
    start = [torch.randn(4, 3, dtype=torch.float64), torch.randn(5, dtype=torch.float64)]
    parameters = [each.clone().requires_grad_() for each in start]
    optimizer = StableAdamW(parameters, lr=RATE, weight_decay=DECAY)
    scales = [1.0, 0.01, 30.0, 1.0]  # the third is clipped, the second and fourth meet a maximum
    rates = [RATE, RATE / 2, RATE, RATE]
    given: list[list[np.ndarray]] = [[], []]
    for step, (scale, rate) in enumerate(zip(scales, rates, strict=True), 1):
        for parameter, seen in zip(parameters, given, strict=True):
            parameter.grad = scale * torch.randn_like(parameter)
            seen.append(parameter.grad.numpy().copy())
        optimizer.param_groups[0]["lr"] = rate
        optimizer.step()
        for parameter, before, seen in zip(parameters, start, given, strict=True):
            expected = naive(before.numpy(), seen, rates[:step])
            np.testing.assert_allclose(parameter.detach().numpy(), expected, rtol=1e-10)


def test_a_sudden_gradient_moves_it_less_than_adamw(seeded: None) -> None:
    one, other = (torch.zeros(50, requires_grad=True) for _ in range(2))
    stable = StableAdamW([one], lr=0.1, weight_decay=0.0)
    plain = torch.optim.AdamW([other], lr=0.1, weight_decay=0.0, amsgrad=True, eps=1e-10)
    for scale in (*[1.0] * 20, 100.0):
        before = one.detach().clone(), other.detach().clone()
        for parameter, optimizer in ((one, stable), (other, plain)):
            parameter.grad = torch.full((50,), scale)
            optimizer.step()
        if scale == 1.0:
            torch.testing.assert_close(one, other)
    assert (one - before[0]).norm() < 0.25 * (other - before[1]).norm()


def test_its_state_can_be_kept_and_what_has_no_gradient_stays(seeded: None) -> None:
    gradients = torch.randn(4, 6)
    whole, halves = (torch.ones(6, requires_grad=True) for _ in range(2))
    idle = torch.ones(2, requires_grad=True)

    def steps(parameter: torch.Tensor, rows: torch.Tensor, optimizer: StableAdamW) -> None:
        for row in rows:
            parameter.grad = row.clone()
            optimizer.step()

    steps(whole, gradients, StableAdamW([whole, idle], lr=0.1, weight_decay=DECAY))
    first = StableAdamW([halves, idle], lr=0.1, weight_decay=DECAY)
    steps(halves, gradients[:2], first)
    second = StableAdamW([halves, idle], lr=0.1, weight_decay=DECAY)
    second.load_state_dict(first.state_dict())
    steps(halves, gradients[2:], second)
    assert torch.equal(whole, halves)
    assert torch.equal(idle, torch.ones(2))
    assert idle not in second.state

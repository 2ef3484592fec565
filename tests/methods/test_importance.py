"""ψ of AHL, its loss and its weights, against loops in float64."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from naive import f64
from torch import Tensor

from blemish.methods.importance import Importance, importances, prediction_loss


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def sigmoid(values: np.ndarray) -> np.ndarray:
    return np.asarray(1 / (1 + np.exp(-values)))


def lstm(states: dict[str, np.ndarray], series: np.ndarray, suffix: str) -> list[np.ndarray]:
    """A layer in one direction over K T, step by step."""
    hidden = cell = np.zeros(6)
    outputs = []
    for value in series[::-1] if suffix.endswith("reverse") else series:
        gates = (
            states[f"weight_ih_{suffix}"] @ value
            + states[f"bias_ih_{suffix}"]
            + states[f"weight_hh_{suffix}"] @ hidden
            + states[f"bias_hh_{suffix}"]
        )
        inward, forget, new, out = np.split(gates, 4)
        cell = sigmoid(forget) * cell + sigmoid(inward) * np.tanh(new)
        hidden = sigmoid(out) * np.tanh(cell)
        outputs.append(hidden)
    return outputs[::-1] if suffix.endswith("reverse") else outputs


def test_a_prediction_against_loops() -> None:
    torch.manual_seed(3)
    psi = Importance(4, 5, 2).eval()
    for step in range(7):
        psi.note(drawn(4, 2, seed=step))
    states = {name: f64(each) for name, each in psi.sequence.named_parameters()}
    with torch.no_grad():
        found = f64(psi.predicted())
    for picture in range(4):
        series = np.stack([f64(drawn(4, 2, seed=step))[picture] for step in range(2, 7)])
        for layer in range(2):
            both = [lstm(states, series, f"l{layer}{end}") for end in ("", "_reverse")]
            series = np.concatenate([np.stack(each) for each in both], axis=1)
        wanted = f64(psi.last.weight) @ series[-1] + f64(psi.last.bias)
        np.testing.assert_allclose(found[picture], wanted, rtol=1e-4, atol=1e-6)


def test_weights_and_loss_against_loops() -> None:
    predicted, scores = drawn(6, 3), drawn(6, 3, seed=1)
    labels = torch.tensor([0, 0, 0, 1, 1, 1])
    factors = torch.tensor([0, 0.5, 0.5, 0.5, 1, 1])[:, None].repeat(1, 3)
    factors[1, 1], factors[0, 1] = 0, 0.5
    errors = []
    for model in range(3):
        terms = [
            float(factors[row, model]) * (float(predicted[row, model]) - int(labels[row])) ** 2
            for row in range(6)
            if factors[row, model]
        ]
        assert len(terms) == 5
        errors.append(sum(terms) / len(terms))
    whole = sum(math.exp(-error) for error in errors)
    wanted = [math.exp(-error) / whole for error in errors]
    assert importances(predicted, labels, factors).tolist() == pytest.approx(wanted, rel=1e-5)
    squares = [
        (float(one) - float(other)) ** 2
        for one, other in zip(predicted.flatten(), scores.flatten(), strict=True)
    ]
    assert float(prediction_loss(predicted, scores)) == pytest.approx(sum(squares) / 18, rel=1e-5)


def test_all_count_alike_until_as_many_scores_are_noted() -> None:
    psi = Importance(4, 2, 3).eval()
    labels, factors = torch.tensor([0, 0, 1, 1]), torch.ones(4, 3)
    losses = torch.tensor([1.0, 2.0, 6.0], requires_grad=True)
    for step in range(4):
        scores = drawn(4, 3, seed=step)
        with torch.no_grad():
            predicted = psi.predicted()
        loss = psi(losses, scores, labels, factors)
        if step < 2:
            assert loss.item() == 3
            continue
        weights = importances(predicted, labels, factors)
        wanted = float(weights @ losses.detach()) + 1e-3 * float(
            (predicted - scores).square().mean()
        )
        assert loss.item() == pytest.approx(wanted, rel=1e-5)
        gradients = torch.autograd.grad(loss, [losses, psi.last.weight])
        # Of the losses the weights alone: ψ is not taught to prefer what is easy.
        assert torch.allclose(gradients[0], weights)
        own = torch.autograd.grad(1e-3 * prediction_loss_of(psi, step), [psi.last.weight])
        assert torch.allclose(gradients[1], own[0], atol=1e-8)
    assert psi.filled.tolist() == [4]
    wanted_history = torch.stack([drawn(4, 3, seed=step) for step in (2, 3)], dim=1)
    assert torch.equal(psi.history, wanted_history)


def prediction_loss_of(psi: Importance, step: int) -> Tensor:
    """That of a step, from the scores of the two before it."""
    with torch.no_grad():
        now = psi.history.clone()
        psi.history.copy_(torch.stack([drawn(4, 3, seed=n) for n in (step - 2, step - 1)], dim=1))
    loss = prediction_loss(psi.predicted(), drawn(4, 3, seed=step))
    with torch.no_grad():
        psi.history.copy_(now)
    return loss

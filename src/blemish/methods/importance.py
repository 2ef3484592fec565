"""How much each of several models counts, by what their scores have been: ψ of AHL.

Zhu, Ding, Tian & Pang 2024, "Anomaly Heterogeneity Learning for Open-set Supervised Anomaly
Detection", section 3.3. In every step T models score the same P pictures. A sequence model ψ (an
LSTM in two layers and both directions, hidden dimension 6, dropout 0.5, then a linear layer) learns
to predict their next scores from those of the last K steps (eq. 5). Its predictions, not the
scores, are held against the labels: that gives the errors r of the models (eq. 6) and their
weights, softmax(−r) (eq. 7).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from blemish.losses import mean_over_processes

_HIDDEN = 6
_DROPOUT = 0.5
_SMALL = 1e-3  # what ψ's loss counts: clipping acts on the sum, and Adam does not mind


class Importance(nn.Module):
    """ψ, and the scores that it predicts from.

    Attributes:
        history: the scores of the last steps, P K T, the newest last.
        filled: int64 1, how many steps have been noted.
    """

    history: Tensor
    filled: Tensor

    def __init__(self, pictures: int, length: int, models: int) -> None:
        super().__init__()
        self.sequence = nn.LSTM(
            models, _HIDDEN, 2, batch_first=True, bidirectional=True, dropout=_DROPOUT
        )
        self.last = nn.Linear(2 * _HIDDEN, models)
        self.register_buffer("history", torch.zeros(pictures, length, models))
        self.register_buffer("filled", torch.zeros(1, dtype=torch.int64))

    def forward(self, losses: Tensor, scores: Tensor, labels: Tensor, factors: Tensor) -> Tensor:
        """The weighted losses T of the models (eq. 4), and the loss of ψ; the scores P T are noted.

        Until K steps are noted all count alike, and there is no loss of ψ. Labels and factors: as
        of `importances`.
        """
        scores, loss = mean_over_processes(scores), losses.mean()
        if int(self.filled) >= self.history.shape[1]:
            predicted = self.predicted()
            weights = importances(predicted.detach(), labels, factors)
            loss = weights @ losses + _SMALL * prediction_loss(predicted, scores)
        self.note(scores)
        return loss

    def predicted(self) -> Tensor:
        """The next scores, P T."""
        found, _ = self.sequence(self.history.clone())
        predicted: Tensor = self.last(found[:, -1])
        return predicted

    @torch.no_grad()
    def note(self, scores: Tensor) -> None:
        """Add the scores of a step, P T."""
        self.history.copy_(torch.cat([self.history[:, 1:], scores[:, None]], dim=1))
        self.filled += 1


def prediction_loss(predicted: Tensor, scores: Tensor) -> Tensor:
    """Eq. 5, as the mean over the P pictures and T models of P T, not the sum."""
    return F.mse_loss(predicted, scores)


def importances(predicted: Tensor, labels: Tensor, factors: Tensor) -> Tensor:
    """The weights T of the models, which sum to 1 (eq. 6 and 7).

    r of a model is the mean of c (ŝ − y)² over the pictures that count for it.

    Args: predicted: ŝ, P T. labels: y, P, 0 or 1. factors: c, P T; 0 where a picture does not count
        for a model, for each of which one does.

    Example:
        >>> predicted, labels = torch.tensor([[0.0, 1.0], [1.0, 0.0]]), torch.tensor([0, 1])
        >>> importances(predicted, labels, torch.ones(2, 2))  # the second is wrong by 1 each time
        tensor([0.7311, 0.2689])
    """
    squares = factors * (predicted - labels[:, None]).square()
    return (-squares.sum(0) / (factors > 0).sum(0)).softmax(0)

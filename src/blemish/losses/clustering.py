"""Learning by agreement on soft clusters: the targets that a teacher sets, and how far views are
from them.

B features, K prototypes; everything is computed in float32, whatever autocast says. Where several
processes train together, B is a process's own share, and what is balanced or averaged is so over
all of them.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.distributed as dist
from torch import Tensor

from blemish.errors import ConfigError


@torch.no_grad()
def sinkhorn(scores: Tensor, *, epsilon: float = 0.05, iterations: int = 3) -> Tensor:
    """Balanced soft assignments of B features to K prototypes, B K, without gradient.

    Sinkhorn-Knopp as in Asano et al. 2019 and Caron et al. 2020 (SwAV), but on logarithms, so that
    no score is too large. Of exp(scores / epsilon) the columns, then the rows are scaled to their
    sums, again and again.

    Args:
        scores: cosine similarities B K; any finite values.
        epsilon: the smaller, the harder the assignments.
        iterations: at least 1.
    Returns: rows that sum to 1; columns that sum to B/K (B over all processes), the nearer the more
    iterations.
    Raises: ConfigError for an epsilon that is not above 0, or no iterations.

    Example:
        >>> scores = torch.tensor([[0.9, 0.8], [0.9, 0.1]])
        >>> sinkhorn(scores, epsilon=0.1, iterations=50).round(decimals=2)
        tensor([[0.0300, 0.9700],
                [0.9700, 0.0300]])
    """
    if not epsilon > 0 or iterations < 1:
        raise ConfigError(
            "sinkhorn: epsilon above 0 and at least 1 iteration are needed, got "
            f"{epsilon} and {iterations}"
        )
    logs = scores.float() / epsilon
    for _ in range(iterations):
        logs = logs - _sums_of_columns(logs)
        logs = logs - logs.logsumexp(1, keepdim=True)
    return logs.exp()


def centred(scores: Tensor, centre: Tensor, *, temperature: float = 0.04) -> Tensor:
    """DINO's targets (Caron et al. 2021): softmax((scores − centre) / temperature), B K, without
    gradient.

    Args: scores: B K. centre: K, a running mean of them. temperature: below that of the
    predictions, it sharpens.
    """
    return torch.softmax((scores.detach().float() - centre) / temperature, dim=1)


def multi_view(targets: Tensor, predictions: Sequence[Tensor]) -> Tensor:
    """Eq. 1 of the APMask paper: 1/(V·B) Σ H(y, p) over V views and B pictures, H being the
    cross-entropy.

    Args: targets: B K, rows sum to 1. predictions: of each view the log-probabilities B K.

    Example:
        >>> sure, unsure = torch.tensor([[0.0, -100.0]]), torch.tensor([[0.5, 0.5]]).log()
        >>> loss = multi_view(torch.tensor([[1.0, 0.0]]), [sure, unsure])
        >>> loss.exp().round(decimals=3)  # the root of 1 · 2
        tensor(1.4140)
    """
    return -(targets * torch.stack(list(predictions)).float()).sum(-1).mean()


def swapped(targets: Sequence[Tensor], predictions: Sequence[Tensor]) -> Tensor:
    """The loss of SwAV and of iBOT's [CLS]: the mean over the target views u, and all views v but
    the same, of 1/B Σ H(y_u, p_v).

    Args: targets: of the first views B K, rows sum to 1. predictions: of all views, in the same
    order, the log-probabilities B K; more than one.

    Example:
        >>> sure = torch.tensor([[1.0, 0.0]])
        >>> swapped([sure], [torch.tensor([[-9.0, 0.0]]), torch.tensor([[-0.5, -0.9]])])
        tensor(0.5000)
    """
    parts = [
        multi_view(target, [each for other, each in enumerate(predictions) if other != number])
        for number, target in enumerate(targets)
    ]
    return torch.stack(parts).mean()


def entropy_missing(predictions: Sequence[Tensor]) -> Tensor:
    """The regularisation of MSN: log K − H(p̄), p̄ being the mean prediction over all views, pictures
    and processes; 0 where all prototypes are predicted equally often.

    Args: predictions: of each view the log-probabilities B K.

    Example:
        >>> first, second = torch.tensor([[0.0, -100.0]]), torch.tensor([[-100.0, 0.0]])
        >>> entropy_missing([first, second]).abs().round(decimals=3)
        tensor(0.)
    """
    own = torch.cat(list(predictions)).float().exp().mean(0)
    # The value is that of all processes; the gradient becomes so, as the mean over them is taken.
    mean = own + (mean_over_processes(own) - own.detach())
    entropy: Tensor = torch.special.entr(mean).sum()
    return math.log(len(mean)) - entropy


def masked_prediction(targets: Tensor, predictions: Tensor, hidden: Tensor) -> Tensor:
    """The loss of iBOT's patches: the mean over pictures of the mean over their hidden patches of
    H(y, p); a picture of which none is hidden counts as 0.

    Args:
        targets, predictions: M K, what should be predicted, and log-probabilities, of the hidden
            patches, picture by picture.
        hidden: bool B N, of which M are true.
    """
    weights = (1 / hidden.sum(1, keepdim=True).clamp(min=1)).expand(hidden.shape)[hidden]
    return -(weights * (targets * predictions.float()).sum(-1)).sum() / len(hidden)


@torch.no_grad()
def gathered(rows: Tensor) -> Tensor:
    """The rows B D of all processes, W·B D, the same in each; B is alike in all of them."""
    if not _several():
        return rows.detach()
    parts = [torch.empty_like(rows) for _ in range(dist.get_world_size())]
    dist.all_gather(parts, rows.detach().contiguous())
    return torch.cat(parts)


def own_share(rows: Tensor) -> Tensor:
    """Those of the rows, which every process has, that this one has to account for."""
    return rows[dist.get_rank() :: dist.get_world_size()] if _several() else rows


@torch.no_grad()
def mean_over_processes(value: Tensor) -> Tensor:
    """The mean of a tensor, alike in shape everywhere, over the processes that train together."""
    if not _several():
        return value.detach()
    total = value.detach().clone()
    dist.all_reduce(total)
    return total / dist.get_world_size()


def _sums_of_columns(logs: Tensor) -> Tensor:
    """Logarithm of the sums of exp over the rows of all processes: 1 K."""
    largest = logs.amax(0, keepdim=True)
    if _several():
        dist.all_reduce(largest, op=dist.ReduceOp.MAX)
    sums = (logs - largest).exp().sum(0, keepdim=True)
    if _several():
        dist.all_reduce(sums)
    return largest + sums.log()


def _several() -> bool:
    return dist.is_available() and dist.is_initialized()

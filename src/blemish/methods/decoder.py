"""What features are reconstructed with: plain transformer layers, and AGPNet's light decoder."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Literal, cast

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

if TYPE_CHECKING:
    from blemish.methods.agpnet import AGPNetConfig

_FLOOR = 0.01  # of φ = relu + 0.01: what is orthogonal to everything is looked at evenly
# Of attention: a softmax, or linear in the number of patches with φ = relu + 0.01 or elu + 1.
Kernel = Literal["softmax", "relu", "elu"]


class Decoder(nn.Module):
    """A plain transformer from features B N D to reconstructions B G N D."""

    def __init__(self, config: AGPNetConfig, dim: int, groups: int, grid: tuple[int, int]) -> None:
        super().__init__()
        width = config.width
        self.groups = groups
        self.dropout = Dropout(config.dropout)
        self.inward = nn.Linear(dim, width)
        self.rows = nn.Parameter(0.02 * torch.randn(grid[0], width // 2))
        self.columns = nn.Parameter(0.02 * torch.randn(grid[1], width // 2))
        kernel: Kernel = "softmax" if config.softmax else "relu"
        self.layers = nn.ModuleList(
            DecoderLayer(width, config.heads, kernel, attentions=config.attentions)
            for _ in range(config.depth)
        )
        self.norm = nn.LayerNorm(width)
        self.outward = nn.Linear(width, groups * dim)

    def forward(self, features: Tensor) -> Tensor:
        x = self._enter(features)
        for layer in self.layers:
            x, _ = layer(x)
        given = self.outward(self.norm(x))
        return cast(Tensor, given.unflatten(-1, (self.groups, -1)).transpose(1, 2))

    @torch.no_grad()
    def start_linear(self, targets: Tensor) -> None:
        """Make the decoder the linear autoencoder that is the best of its width on targets B G N D.

        In: the principal directions of their sum. Out: least squares, from behind the norm. The
        layers add nothing yet.
        """
        features = targets.sum(1).flatten(0, 1).double()
        power, directions = torch.linalg.eigh(features.T @ features / len(features))
        kept = min(self.inward.out_features, features.shape[1])
        scale = (power[-kept:].sum() / kept).rsqrt()
        self.inward.weight.zero_()[:kept] = (directions[:, -kept:] * scale).T.to(self.inward.weight)
        self.inward.bias.zero_()
        for module in self.layers.modules():
            if isinstance(module, (DecoderLayer, SelfAttention)):
                module.out.weight.zero_()
                module.out.bias.zero_()
        inner = self.norm(self.inward(features.float())).double()
        inner = torch.cat([inner, torch.ones_like(inner[:, :1])], 1)
        wanted = targets.transpose(1, 2).flatten(2).flatten(0, 1).double()
        gram = inner.T @ inner
        gram.diagonal().add_(1e-6 * gram.diagonal().mean())
        solution = torch.linalg.solve(gram, inner.T @ wanted)
        self.outward.weight.copy_(solution[:-1].T)
        self.outward.bias.copy_(solution[-1])

    def attention_received(self, features: Tensor) -> Tensor:
        """How much each location is looked at: B N, mean over queries, heads and attentions."""
        x = self._enter(features)
        received: list[Tensor] = []
        for layer in self.layers:
            x, looked = layer(x, watch=True)
            received += looked
        return torch.stack(received).mean(0)

    def _enter(self, features: Tensor) -> Tensor:
        rows = self.rows[:, None].expand(-1, len(self.columns), -1)
        columns = self.columns[None].expand(len(self.rows), -1, -1)
        places = torch.cat([rows, columns], dim=2)
        return cast(Tensor, self.inward(self.dropout(features)) + places.flatten(0, 1))


class DecoderLayer(nn.Module):
    """Self-attentions, then a feed-forward part, each behind a norm and beside a residual.

    Args: epsilon: of the norms. activation: of the feed-forward part, four times as wide.
    """

    def __init__(
        self,
        width: int,
        heads: int,
        kernel: Kernel,
        *,
        attentions: int = 1,
        activation: Callable[[Tensor], Tensor] = F.relu,
        epsilon: float = 1e-5,
    ) -> None:
        super().__init__()
        self.activation = activation
        self.norms = nn.ModuleList(nn.LayerNorm(width, epsilon) for _ in range(attentions + 1))
        self.attentions = nn.ModuleList(
            SelfAttention(width, heads, kernel) for _ in range(attentions)
        )
        self.hidden = nn.Linear(width, 4 * width)
        self.out = nn.Linear(4 * width, width)

    def forward(self, x: Tensor, *, watch: bool = False) -> tuple[Tensor, list[Tensor]]:
        received: list[Tensor] = []
        for norm, attention in zip(self.norms, self.attentions, strict=False):
            given, looked = attention(norm(x), watch=watch)
            x = x + given
            received += looked
        return x + self.out(self.activation(self.hidden(self.norms[-1](x)))), received


class SelfAttention(nn.Module):
    """Attention of B N W: softmax, or linear (Katharopoulos et al. 2020, whose φ is elu + 1)."""

    def __init__(self, width: int, heads: int, kernel: Kernel) -> None:
        super().__init__()
        self.heads = heads
        self.kernel = kernel
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)

    def forward(self, x: Tensor, *, watch: bool = False) -> tuple[Tensor, list[Tensor]]:
        """The result, and with `watch` the attention that each location receives (B N), mean over
        queries and heads.
        """
        received: list[Tensor] = []
        joined = self.qkv(x)
        if self.training and not (self.kernel == "softmax" or watch):
            mixed = _LinearAttention.apply(joined, self.heads, self.kernel == "elu")
            return self.out(mixed), received
        split = joined.unflatten(-1, (3, self.heads, -1))
        q, k, v = split.permute(2, 0, 3, 1, 4)  # each B L N d
        if self.kernel == "softmax":
            mixed = F.scaled_dot_product_attention(q, k, v)
            if watch:
                logits = q.float() @ k.float().transpose(2, 3) * q.shape[-1] ** -0.5
                received.append(logits.softmax(-1).mean(dim=(1, 2)))
        else:
            q, k = (_elu_plus_1(x) if self.kernel == "elu" else F.relu(x) + _FLOOR for x in (q, k))
            total = q @ k.sum(2)[..., None]  # B L N 1
            mixed = (q @ (k.transpose(2, 3) @ v)) / total
            if watch:
                received.append((k @ (q / total).mean(2)[..., None]).mean(1)[..., 0].float())
        return self.out(mixed.transpose(1, 2).flatten(2)), received


def _elu_plus_1(x: Tensor) -> Tensor:
    """x + 1 from 0 on, and eˣ below it, which does not round to 0 as elu(x) + 1 does."""
    return F.relu(x) + x.clamp(max=0).exp()


class _LinearAttention(torch.autograd.Function):
    """The linear attention of `SelfAttention` for training: queries, keys and values side by side,
    B N 3W, to B N W.

    Autograd goes over numbers that lie apart in memory, again and again; here they are copied
    together once, and the gradient, written by hand, comes back as one tensor. With the queries q,
    keys k and values v of a head (N d each, φ applied), S = kᵀv and t = q Σk, the result is qS / t.
    """

    @staticmethod
    def forward(ctx: Any, joined: Tensor, heads: int, elu: bool) -> Tensor:
        B, N, _ = joined.shape
        apart = joined.view(B, N, 3, heads, -1).permute(2, 0, 3, 1, 4)  # 3 B L N d
        split = apart.clone(memory_format=torch.contiguous_format).flatten(1, 2)  # 3 BL N d
        if elu:
            split[:2] = _elu_plus_1(split[:2])
        else:
            split[:2].relu_().add_(_FLOOR)
        ctx.elu = elu
        q, k, v = split
        total = q @ k.sum(1)[..., None]  # BL N 1
        states = k.transpose(1, 2) @ v  # BL d d
        mixed = (q @ states).div_(total)
        ctx.save_for_backward(split, states, total, mixed)
        result: Tensor = mixed.view(B, heads, N, -1).transpose(1, 2).flatten(2)
        return result

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        split, states, total, mixed = ctx.saved_tensors
        (q, k, v), (B, N, _) = split, gradient.shape
        apart = gradient.reshape(B, N, -1, q.shape[-1]).transpose(1, 2)  # B L N d
        of_mixed = apart.flatten(0, 1) / total  # BL N d: the gradient of qS
        of_total = (of_mixed * mixed).sum(-1, keepdim=True).neg_()
        of_states = q.transpose(1, 2) @ of_mixed
        given = torch.empty_like(split)
        torch.bmm(of_mixed, states.transpose(1, 2), out=given[0])
        given[0].addcmul_(of_total, k.sum(1, keepdim=True))
        torch.bmm(v, of_states.transpose(1, 2), out=given[1])
        given[1].add_(of_total.transpose(1, 2) @ q)
        torch.bmm(k, of_states, out=given[2])
        if ctx.elu:  # the slope of φ is 1 from 0 on, where φ is at least 1, and below it φ itself
            given[:2].mul_(split[:2].clamp(max=1))
        else:
            floor = float(split.new_tensor(_FLOOR))  # in this precision: what φ makes of nothing
            given[:2] = torch.ops.aten.threshold_backward(given[:2], split[:2], floor)
        together: Tensor = given.view(3, *apart.shape).permute(1, 3, 0, 2, 4).flatten(2)
        return together, None, None


class Dropout(nn.Module):
    """Dropout from a random byte an element: torch's own takes a third of a step on a CPU."""

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.dropped = min(255, round(256 * rate))  # of 256 values of a byte

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or self.dropped == 0:
            return x
        words = torch.empty((x.numel() + 7) // 8, dtype=torch.int64, device=x.device)
        words.random_(-(2**63), 2**63 - 1)
        kept = words.view(torch.uint8)[: x.numel()].view(x.shape) >= self.dropped
        return x * (kept.to(x.dtype) * (256 / (256 - self.dropped)))

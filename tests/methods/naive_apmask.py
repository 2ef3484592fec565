"""APMask's oracle: float64, one picture and head at a time; only its derivative is torch's."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from blemish.methods.dino import DINOConfig
from blemish.methods.masked import MaskedConfig

PATCH = 16
Weights = dict[str, Tensor]


def weights_of(module: torch.nn.Module) -> Weights:
    """In float64, by name."""
    return {name: tensor.detach().double() for name, tensor in module.state_dict().items()}


def normed(x: Tensor, weights: Weights, name: str) -> Tensor:
    """The rows of … D with mean 0 and variance 1, then as it was learned."""
    apart = x - x.mean(-1, keepdim=True)
    scaled = apart / torch.sqrt(apart.square().mean(-1, keepdim=True) + 1e-6)
    return scaled * weights[f"{name}.weight"] + weights[f"{name}.bias"]


def linear(x: Tensor, weights: Weights, name: str) -> Tensor:
    return x @ weights[f"{name}.weight"].T + weights[f"{name}.bias"]


def gelu(x: Tensor) -> Tensor:
    return 0.5 * x * (1 + torch.erf(x / math.sqrt(2)))


def unit(x: Tensor) -> Tensor:
    return x / torch.sqrt(sum(x * x))


def encoded(
    weights: Weights, picture: Tensor, kept: list[int] | None = None
) -> tuple[Tensor, list[float]]:
    """The final [CLS] token D of a picture 3 H W, and the last block's attention to each patch, of
    sum 1 in each of 2 heads, whose mean it is.
    """
    found, attention = tokens_of(weights, picture, kept)
    return found[0], attention


def tokens_of(
    weights: Weights,
    picture: Tensor,
    kept: list[int] | None = None,
    masked: list[int] | None = None,
) -> tuple[Tensor, list[float]]:
    """The final tokens, [CLS] first, of a picture of which only the patches `kept` are shown, and
    for those `masked` the mask token; and the attention as of `encoded`.
    """
    side, name = picture.shape[1] // PATCH, "backbone.model"
    table = weights[f"{name}.pos_embed"][0]
    square = table[1:].T.reshape(1, -1, 10, 10)
    places = F.interpolate(square, (side, side), mode="bicubic", antialias=True)[0].flatten(1).T
    kernel = weights[f"{name}.patch_embed.proj.weight"]
    tokens = [weights[f"{name}.cls_token"][0, 0] + table[0]]
    for place, (row, column) in enumerate(np.ndindex(side, side)):
        top, left = row * PATCH, column * PATCH
        patch = picture[:, top : top + PATCH, left : left + PATCH].double()
        value = (kernel * patch).sum((1, 2, 3)) + weights[f"{name}.patch_embed.proj.bias"]
        if place in (masked or []):
            value = weights["mask_token"]
        if kept is None or place in kept:
            tokens.append(value + places[place])
    x = torch.stack(tokens)  # N D
    for number in range(6):
        block = f"{name}.blocks.{number}"
        joint = linear(normed(x, weights, f"{block}.norm1"), weights, f"{block}.attn.qkv")
        mixed, looked = [], []
        for head in range(2):
            q, k, v = (joint[:, 64 * part + 32 * head :][:, :32] for part in range(3))
            powers = torch.exp(q @ k.T / math.sqrt(32))
            shares = powers / powers.sum(1, keepdim=True)
            mixed.append(shares @ v)
            looked.append(shares[0, 1:].detach())
        x = x + linear(torch.cat(mixed, dim=1), weights, f"{block}.attn.proj")
        wide = gelu(linear(normed(x, weights, f"{block}.norm2"), weights, f"{block}.mlp.fc1"))
        x = x + linear(wide, weights, f"{block}.mlp.fc2")
    over_patches = torch.stack([row / row.sum() for row in looked])  # each head counts alike
    final = torch.stack([normed(row, weights, f"{name}.norm") for row in x])
    return final, over_patches.mean(0).tolist()


def projected(weights: Weights, cls: Tensor) -> Tensor:
    hidden = gelu(linear(gelu(linear(cls, weights, "head.layers.0")), weights, "head.layers.2"))
    return unit(linear(hidden, weights, "head.layers.4"))


def most_attended(attention: list[float]) -> list[int]:
    """All but ⌊0.3 N⌋, by putting them in order."""
    ascending = sorted(range(len(attention)), key=lambda place: attention[place])
    return sorted(ascending[int(0.3 * len(attention)) :])


def log_shares(scores: Tensor, temperature: float) -> Tensor:
    return scores / temperature - torch.log(torch.exp(scores / temperature).sum())


def softmax(scores: np.ndarray) -> np.ndarray:
    powers = np.exp(scores)
    return np.asarray(powers / powers.sum(1, keepdims=True))


def sinkhorn(scores: np.ndarray, epsilon: float = 0.05) -> np.ndarray:
    shares = np.exp(scores / epsilon)
    for _ in range(3):
        shares /= shares.sum(0) * shares.shape[1]
        shares /= shares.sum(1, keepdims=True) * shares.shape[0]
    return np.asarray(shares * shares.shape[0])


def expected_loss(
    student: Weights,
    teacher: Weights,
    views: tuple[Tensor, Tensor, Tensor],
    config: MaskedConfig,
    centre: np.ndarray,
) -> tuple[Tensor, dict[str, float]]:
    """Eq. 1, and the readings but for the usage, of the first step; of APMask or DINO."""
    whole, wide, narrow = views
    count = len(whole)
    seen = [encoded(teacher, picture)[0] for picture in whole]
    shown = [projected(teacher, cls) for cls in seen]
    dino = isinstance(config, DINOConfig)
    judge = teacher if dino else student
    scores = np.array([(judge["head.prototypes"] @ z).tolist() for z in shown])
    targets = softmax((scores - centre) / 0.04) if dino else sinkhorn(scores)
    total, agreement = torch.zeros((), dtype=torch.float64), 0.0
    for number, picture in enumerate([*wide, *narrow]):
        kept = None
        if config.masking == "attention":
            kept = most_attended(encoded(teacher, picture)[1])
        z = projected(student, encoded(student, picture, kept)[0])
        predicted = log_shares(student["head.prototypes"] @ z, 0.1)
        wanted = targets[number % count]
        for share, value in zip(wanted, predicted, strict=True):
            total = total - share * value / (count * (1 + config.local_views))
        if number < count:
            agreement += float(z.detach() @ shown[number]) / count
    return total, readings(targets, agreement, seen, shown)


def readings(
    targets: np.ndarray, agreement: float, seen: list[Tensor], shown: list[Tensor]
) -> dict[str, float]:
    """The signs of health of a step, but for the usage, of [CLS] tokens and their features."""
    entropies = [-sum(share * math.log(share) for share in row if share > 0) for row in targets]

    def spread(rows: list[Tensor]) -> float:
        values = np.array([row.tolist() for row in rows])
        return math.sqrt(sum(sum((row - values.mean(0)) ** 2) for row in values) / len(rows))

    return {
        "assignment_entropy": sum(entropies) / len(targets) / math.log(targets.shape[1]),
        "agreement": agreement,
        "feature_spread": spread([unit(cls) for cls in seen]),
        "projection_spread": spread(shown),
    }

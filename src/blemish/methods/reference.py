"""What `guided` keeps of its training pictures, for shifted pictures to be brought back to."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor, nn

from blemish.errors import ArtifactError
from blemish.methods import adaptation, alignment
from blemish.methods.stored import Free, Stored, numbers

PREFIX = "reference."  # of its tensors among those of a method


@dataclass
class Noted:
    """What is noted of some training pictures, batch by batch.

    Attributes:
        maps: learned maps, each B 1 H W.
        owners: whose they are.
        entropies: of the pictures and of their twins, each T B L.
        moments: by number of patches, as `alignment.recorded` notes them.
    """

    maps: list[Tensor] = field(default_factory=list)
    owners: set[int] = field(default_factory=set)
    entropies: tuple[list[Tensor], list[Tensor]] = field(default_factory=lambda: ([], []))
    moments: dict[int, list[Tensor]] = field(default_factory=dict)


class Reference(nn.Module):
    """Reference moments and drift limits, of the features or of the attention entropies.

    Attributes:
        moments, drift_limits: of `alignment.summary`, for each of T sizes: T L 2 2 D and T L.
        patch_counts: int64 T, the patches of a size.
        entropies, entropy_limit: of `adaptation.summary`: 2 4 T L, and a number.
        pictures: of how many training pictures they are; 0 = nothing is known.
    """

    moments: Tensor
    drift_limits: Tensor
    patch_counts: Tensor
    entropies: Tensor
    entropy_limit: Tensor
    pictures: Tensor

    def __init__(self) -> None:
        super().__init__()
        for name in ("moments", "drift_limits", "entropies"):
            self.register_buffer(name, torch.empty(0))
        self.register_buffer("patch_counts", torch.empty(0, dtype=torch.int64))
        self.register_buffer("entropy_limit", torch.zeros(()))
        self.register_buffer("pictures", torch.zeros(()))

    def keep(self, noted: Noted) -> None:
        """Keep what was noted of two pictures at least: copies of one tell of no spread."""
        if len(noted.owners) < 2:
            return
        self.pictures = self.pictures.new_tensor(float(len(noted.owners)))
        if noted.moments:
            found = [alignment.summary(torch.cat(seen)) for seen in noted.moments.values()]
            self.moments, self.drift_limits = (
                torch.stack(parts) for parts in zip(*found, strict=True)
            )
            self.patch_counts = torch.tensor(list(noted.moments), device=self.moments.device)
        else:
            rows = [torch.cat(each, dim=1) for each in noted.entropies]
            self.entropies, self.entropy_limit = adaptation.summary(rows)

    def of_sizes(self, known: Sequence[int] | None) -> Reference:
        """The same, with the entropies of the sizes at these places only; None = without any."""
        other = Reference()
        other._buffers = dict(self._buffers)
        complete = known is not None and self.entropies.numel() > 0
        other.entropies = self.entropies[:, :, known] if complete else torch.empty(0)
        return other

    def stored(self, *, blocks: int, width: int, scales: int, heads: int) -> dict[str, Stored]:
        """What its tensors must be, by their names in the method."""
        sizes = Free("T", 1, 64)
        table = {
            "moments": Stored(shape=(sizes, blocks, 2, 2, width), absent=True),
            "drift_limits": Stored(shape=(sizes, blocks), low=0, absent=True),
            "patch_counts": replace(numbers(sizes, low=1), absent=True),
            "entropies": Stored(shape=(2, 4, scales, heads), absent=True),
            "entropy_limit": Stored(shape=(), low=0),
            "pictures": Stored(shape=(), low=0),
        }
        return {PREFIX + name: stored for name, stored in table.items()}


def check_reference(tensors: Mapping[str, Tensor]) -> None:
    """Raises: ArtifactError where its tensors, by the names of `stored`, do not go together."""
    parts = ("moments", "drift_limits", "patch_counts")
    counts = tensors[f"{PREFIX}patch_counts"].tolist()
    empty = {tensors[PREFIX + name].numel() == 0 for name in parts}
    if len(empty) > 1 or len(set(counts)) < len(counts):
        raise ArtifactError(f"{PREFIX}patch_counts: are not the sizes of the moments, each once")
    check_spreads(tensors, f"{PREFIX}moments", axis=2, first=1)
    check_spreads(tensors, f"{PREFIX}entropies", axis=1, first=2)


def check_spreads(tensors: Mapping[str, Tensor], name: str, *, axis: int, first: int) -> None:
    """Raises: ArtifactError unless what stands from `first` on along an axis is positive."""
    tensor = tensors[name]
    if tensor.numel() and not bool((tensor.narrow(axis, first, first) > 0).all()):
        raise ArtifactError(f"{name}: holds a spread that is not positive")

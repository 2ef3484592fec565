"""A memory bank made smaller, and its search shorter, as far as measured scores and maps allow.

Some training pictures, each left out in turn, and a generated defect in each of them are scored by
the whole bank and by smaller ones. A smaller one keeps the first entries in the order in which they
matter, is searched in fewer dimensions (`shortlist`), and keeps its features in half precision. The
one that costs least is taken of those by which no score and no map moves further than allowed.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, partial
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from blemish.anomalies import simulator
from blemish.errors import ArtifactError
from blemish.methods.augmentation import simulated
from blemish.methods.base import Method, some_of
from blemish.methods.capabilities import Batches
from blemish.methods.compression import Compression
from blemish.methods.coreset import nearest
from blemish.methods.shortlist import MEASURED, ROWS, principal_axes, shortened, shortlisted
from blemish.methods.stored import UNIT, Free, Stored, numbers
from blemish.types import Progress, Scores

if TYPE_CHECKING:
    from blemish.methods.memory import MemoryBank

PICTURES = 32  # good ones, about, that it is measured on
MEMORY = 2**29  # bytes that what is seen of them may take
SHARES = (1 / 2, 1 / 4, 1 / 8)  # of the entries
DIMS = (32, 48, 64, 96, 128, 192, 256)
_SIMULATORS = ("cutpaste", "cutpaste-scar", "nsa")
_LEAST = 1e-6  # of a deviation of scores: below it there is nothing to compare with
_WORTH = 0.9  # of the cost: what saves less is not worth it

Search = Callable[..., Tensor]  # (features n D, excluded=bool k) -> distances n


@dataclass(frozen=True)
class Look:
    """What is seen of a training picture, or of a defect in it.

    Attributes:
        owner: the picture, which is left out. embedded: its features, 1 n D.
        finish: gives the scores and maps of distances 1 n.
    """

    owner: int
    embedded: Tensor
    finish: Callable[[Tensor], Scores]


@dataclass(frozen=True)
class Short:
    """A bank that is smaller: features k D in half precision, their owners, and in place of D the
    axes D d and the entries along them, k (d + 1), both empty where all of D is searched."""

    bank: Tensor
    owners: Tensor
    axes: Tensor
    short: Tensor

    def search(self, dtype: torch.dtype) -> Search:
        """How it is searched, with products of `dtype`."""
        if not self.axes.numel():
            return searched_whole(self.bank.to(dtype))
        return partial(shortlisted, bank=self.bank, axes=self.axes, short=self.short, dtype=dtype)


def searched_whole(bank: Tensor) -> Search:
    """The search of all dimensions, in the precision of the bank."""
    return lambda queries, excluded=None: nearest(queries, bank, excluded=excluded)[0]


def shrink(bank: Tensor, owners: Tensor, dims: int) -> Short:
    """A bank k D and its owners, kept in half precision and searched in `dims` of D dimensions."""
    whole = dims >= bank.shape[1]
    axes = bank.new_empty(0, 0) if whole else principal_axes(bank.half(), dims)
    return shrunk_along(bank, owners, axes)


def shrunk_along(bank: Tensor, owners: Tensor, axes: Tensor) -> Short:
    """The same along known axes D d; none of them, 0 0, where all of D is searched."""
    kept = bank.half()
    short = shortened(kept.float(), axes) if axes.numel() else axes
    return Short(kept, owners, axes, short.half())


def stored_short(free: str, size: int, width: int) -> dict[str, Stored]:
    """What the tensors of a compressed bank of at most `size` features of `width` must be, beside
    itself. `free`: what the number of its features is called."""
    dims, more = Free("dims", 1, width - 1), Free("dims + 1", 2, width)
    kept, half = Free(free, 1, size), (torch.float16,)
    return {
        "axes": Stored(shape=(width, dims), low=-UNIT, high=UNIT, absent=True),
        "short": Stored(shape=(kept, more), dtypes=half, low=-UNIT, high=UNIT, absent=True),
        "most": numbers(low=1, high=size),
    }


def check_short(tensors: Mapping[str, Tensor]) -> None:
    """Raises: ArtifactError where the tensors of a compressed bank do not go together."""
    axes, short, bank = (tensors[name] for name in ("axes", "short", "bank"))
    if not axes.numel() and not short.numel():
        return
    if not axes.numel() or tuple(short.shape) != (len(bank), axes.shape[1] + 1):
        raise ArtifactError("short: is not of the entries of `bank` along `axes`")


def looks_of(
    method: MemoryBank,
    batches: Batches,
    count: int,
    progress: Progress,
    *,
    places: int,
    inside: Callable[[Tensor], Tensor | None],
) -> list[tuple[Look, Look]]:
    """At some training pictures, evenly from all, and at a generated defect in each.

    Args:
        method: whose bank is learned. batches, count: as of `Fits.fit`.
        places: features of a picture. inside: gives of B 3 H W where it looks: bool B H W, or None.
    """
    height, across = method.config.height_width
    room = MEMORY // (8 * (places * method.bank.shape[1] + 3 * height * across))
    some, found = max(2, min(PICTURES, room)), list[tuple[Look, Look]]()
    for batch in some_of(batches(), count, some):
        spoiled = spoilt(method, batch.images, inside, seed=method.config.seed + len(found))
        for row, owner in enumerate(batch.owners[:, None]):
            good, bad = (
                Look(int(owner), *method.looked(method.see(image), image, owner))
                for image in (batch.images[row : row + 1], spoiled[row : row + 1])
            )
            found.append((good, bad))
            progress("generating defects", len(found), max(len(found), min(some, count)))
    return found


def spoilt(
    method: Method, images: Tensor, looked_at: Callable[[Tensor], Tensor | None], *, seed: int
) -> Tensor:
    """Pictures B 3 H W as a method takes them, each with a generated defect where it looks."""
    chosen = [simulator(name) for name in _SIMULATORS]
    exact, inside = images.float(), looked_at(images)
    colours, seeds = method.backbone.colours(exact), range(seed, seed + len(images))
    changed = simulated(chosen, exact, colours, None, seeds, inside)[0].to(images.dtype)
    # A pixel of exactly 0 says that it is not looked at.
    return changed if inside is None else torch.where(inside[:, None], changed, images)


class Measure:
    """How far a search moves scores and maps from those by a whole bank.

    Args:
        good, defects: what is seen of the pictures. search: of the whole bank.
        owners: of the bank's features.
    """

    def __init__(
        self, good: Sequence[Look], defects: Sequence[Look], search: Search, owners: Tensor
    ) -> None:
        self._looks = (good, defects)
        self._scores = [
            [self._judged(look, search, owners) for look in each] for each in self._looks
        ]
        scores = torch.stack([found.image for found in self._scores[0]])
        self.unit = float(scores.std()) if len(scores) > 1 else 0.0
        self._floor = float(scores.min())

    def losses(
        self, search: Search, owners: Tensor, told: Callable[[int, int], None]
    ) -> tuple[float, float, float]:
        """Of the scores of good pictures, of those of defects, and of the maps of both.

        Args: told: called with how many pictures are done, and of how many.
        """
        moves: list[list[Tensor]] = [[], [], []]
        total, done = sum(map(len, self._looks)), 0
        for kind, looks in enumerate(self._looks):
            for look, known in zip(looks, self._scores[kind], strict=True):
                found = self._judged(look, search, owners)
                moves[kind].append(found.image - known.image)
                before, after = (each.maps.clamp_min(self._floor) for each in (known, found))
                counts = torch.maximum(before, after) > self._floor
                moves[2].append((after - before)[counts])
                told(done := done + 1, total)
        good, defects, maps = (torch.cat(each).double() / self.unit for each in moves)
        return (
            float(good.square().mean().sqrt()),
            float(defects.square().mean().sqrt()),
            float(maps.square().mean().sqrt()) if len(maps) else 0.0,
        )

    @staticmethod
    def _judged(look: Look, search: Search, owners: Tensor) -> Scores:
        return look.finish(search(look.embedded[0], excluded=owners == look.owner)[None])


def compressed(
    bank: Tensor,
    owners: Tensor,
    order: Callable[[], Tensor],
    looks: Sequence[tuple[Look, Look]],
    *,
    allowed: float,
    dtype: torch.dtype,
    progress: Progress,
) -> tuple[Short | None, Compression]:
    """The cheapest bank by which neither scores nor maps move further than `allowed`, in standard
    deviations of the scores of good pictures; None where there is none, and what was measured.

    Args:
        bank: float32 k D. owners: int64 k.
        order: gives the order in which its features matter, int64 k.
        looks: at good pictures, and at a defect in each.
        dtype: in which it is searched.
    """
    size, width = bank.shape
    record = partial(Compression, asked=allowed, whole=size, width=width, pictures=len(looks))
    untouched = partial(record, entries=size, dims=width)
    if not bool((owners != owners[:1]).any()):
        return None, untouched(abstains="the bank is of one picture, which cannot be left out")
    progress("measuring the whole bank", 0, 0)
    whole = bank.to(dtype)
    good, defects = ([pair[at] for pair in looks] for at in (0, 1))
    measure = Measure(good, defects, searched_whole(whole), owners)
    if measure.unit < _LEAST:
        return None, untouched(abstains="good pictures score alike, so nothing can be compared")

    def losses(short: Short) -> tuple[float, float, float]:
        dims = short.axes.shape[1] or width
        stage = f"trying {len(short.bank)} features in {dims} dimensions"
        told = partial(progress, stage)
        return measure.losses(short.search(dtype), short.owners, told)

    def first(entries: int, dims: int) -> Short:
        rows = ordered()[:entries] if entries < size else slice(None)
        return shrink(bank[rows], owners[rows], dims)

    ordered, sizes = cache(order), [size]
    for entries in (round(share * size) for share in SHARES):
        short = first(entries, width) if entries >= ROWS else None
        if short is None or bool((short.owners == short.owners[:1]).all()):
            break
        if max(losses(short)) > allowed:
            break
        sizes.append(entries)
    for entries, dims in _plans(sizes, width):
        found = losses(short := first(entries, dims))
        if max(found) <= allowed:
            good_loss, defect_loss, map_loss = found
            moved = partial(record, good=good_loss, defects=defect_loss, maps=map_loss)
            return short, moved(entries=entries, dims=dims, stored="fp16")
    return None, untouched(abstains="every smaller bank moves scores or maps further")


def _plans(sizes: Sequence[int], width: int) -> list[tuple[int, int]]:
    """Entries and dimensions, those of which the search costs least first; at last the whole."""
    exact = ROWS * MEASURED * width
    cost = {
        (size, dims): size * (dims + 1) + exact for size, dims in itertools.product(sizes, DIMS)
    }
    cost |= {(size, width): size * width for size in sizes}
    worth = [plan for plan in cost if plan[1] == width or cost[plan] < _WORTH * plan[0] * width]
    return sorted(worth, key=lambda plan: cost[plan])

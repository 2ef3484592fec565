"""What parts have given, as pieces that are kept (`kept.Kept`) and read again."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import torch

from blemish.data.stream import Found
from blemish.detector.evidence import Scored
from blemish.methods.merging import Node
from blemish.scale.kept import Held, Kept
from blemish.types import Failure

_DAMAGED = (KeyError, ValueError, TypeError, IndexError, AttributeError, RuntimeError)


def name_of(node: Node) -> str:
    """Of what a node of the tree has learned."""
    return f"learned-{node[0]:02d}-{node[1]:04d}"


def keep_found(kept: Kept, number: int, found: Found) -> None:
    """Keep what was found of the pictures of a part."""
    kept.put(f"found-{number:04d}", *_of_found(found))


def found_of(kept: Kept, number: int) -> Found | None:
    """The same, where it is there and whole."""
    held = kept.get(f"found-{number:04d}")
    try:
        return None if held is None else _to_found(held)
    except _DAMAGED:
        return None


def keep_scored(kept: Kept, number: int, how: str, scored: Scored) -> None:
    """Keep what the pictures of a part score; `how`: of which pictures, and how."""
    tensors, notes = _of_found(scored.found)
    values = [values for _, values in scored.samples]
    tensors |= {
        "positions": torch.tensor([*scored.scored], dtype=torch.int64),
        "scored": torch.tensor([*scored.scored.values()], dtype=torch.float64).reshape(-1, 2),
        "sampled": torch.tensor([at for at, _ in scored.samples], dtype=torch.int64),
        "lengths": torch.tensor([len(each) for each in values], dtype=torch.int64),
        "samples": torch.from_numpy(np.concatenate(values) if values else np.empty(0, np.float32)),
    }
    kept.put(f"scored-{number:04d}", tensors, {**notes, "how": how})


def scored_of(kept: Kept, number: int, how: str) -> Scored | None:
    """The same, where it is there, whole and of the same pictures."""
    held = kept.get(f"scored-{number:04d}")
    if held is None or held[1].get("how") != how:
        return None
    tensors = held[0]
    try:
        rows = tensors["scored"].tolist()
        lengths = tensors["lengths"].tolist()
        parts = [each.numpy() for each in torch.split(tensors["samples"], lengths)]
        return Scored(
            {
                at: (score, level)
                for at, (score, level) in zip(tensors["positions"].tolist(), rows, strict=True)
            },
            list(zip(tensors["sampled"].tolist(), parts, strict=True)),
            _to_found(held),
        )
    except _DAMAGED:
        return None


def _of_found(found: Found) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    seen = sorted(found.thumbnails)
    small = [torch.tensor(found.thumbnails[at]) for at in seen]
    notes = {
        "digests": sorted(found.digests.items()),
        "failures": [[at, one.source, one.reason] for at, one in sorted(found.failures.items())],
        "notes": sorted(found.notes.items()),
        "seen": seen,
    }
    return ({"thumbnails": torch.stack(small)} if small else {}), notes


def _to_found(held: Held) -> Found:
    tensors, notes = held
    small = zip(notes["seen"], tensors.get("thumbnails", ()), strict=True)
    return Found(
        digests={int(at): str(digest) for at, digest in notes["digests"]},
        failures={
            int(at): Failure(source=source, reason=reason)
            for at, source, reason in notes["failures"]
        },
        notes={int(at): tuple(those) for at, those in notes["notes"]},
        thumbnails={int(at): each.numpy() for at, each in small},
    )


def joined(founds: Iterable[Found]) -> Found:
    """What was found of all parts."""
    whole = Found()
    for one in founds:
        whole.digests.update(one.digests)
        whole.failures.update(one.failures)
        whole.notes.update(one.notes)
        whole.thumbnails.update(one.thumbnails)
    return whole


def thinned(found: Found, alike: set[int]) -> Found:
    """The same, with the thumbnails of some pictures alone."""
    small = {at: each for at, each in found.thumbnails.items() if at in alike}
    return Found(found.digests, found.failures, found.notes, small)


def evenly(order: Sequence[int], most: int) -> list[int]:
    """Of some positions at most so many, evenly from all."""
    return list(order[:: max(1, -(-len(order) // most))])

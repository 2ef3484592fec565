"""Which good pictures a place of a picture looks most like: nearest by the patch tokens by which
the detector itself compares."""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from blemish.detector.predict import Detector
from blemish.errors import BlemishError
from blemish.serve.models import Served
from blemish.serve.refusals import Refusal
from blemish.store import Row, Store
from blemish.types import Failure, Frame

if TYPE_CHECKING:
    from blemish.serve.service import Service

_CANDIDATES = 24  # good pictures that are compared with
_SHOWN = 3
_AT_ONCE = 4  # pictures between which others are scored
_SIDE = 3  # how many patches wide the part is that is shown
_REMEMBERED = 128


@dataclass(frozen=True)
class Alike:
    """A part of a picture.

    Attributes:
        row: the prediction of the picture. box: x, y, width, height of the part, in its pixels.
        similarity: to the part that was asked about, a cosine in [-1, 1].
        learned: whether the detector has learned from it. reviewed: whether a person called it
            good; otherwise the detector alone did.
    """

    row: Row
    box: tuple[float, float, float, float]
    similarity: float
    learned: bool
    reviewed: bool


@dataclass(frozen=True)
class Likeness:
    """Attributes: own: the part that is asked about; found: the most similar ones of good pictures,
    one a picture; compared: how many pictures that was among."""

    own: Alike
    found: list[Alike]
    compared: int


@dataclass(frozen=True)
class _Seen:
    """Patch tokens of a picture: h w D, of length 1; and what places of the grid show of it."""

    tokens: np.ndarray
    placement: Any
    input: tuple[int, int]

    def box(self, at: tuple[int, int]) -> tuple[float, float, float, float]:
        """The part of the picture around a place of the grid, in pixels."""
        found = []
        spans = (self.placement.down, self.placement.across)
        for place, count, span, side in zip(at, self.tokens.shape, spans, self.input, strict=False):
            step = side / count
            start = float(span.to_picture((place + 0.5 - _SIDE / 2) * step))
            end = float(span.to_picture((place + 0.5 + _SIDE / 2) * step))
            found.append((start, end - start))
        (y, height), (x, width) = found
        return x, y, width, height


class Memory:
    """Tokens of pictures that were compared lately, by version and digest."""

    def __init__(self) -> None:
        self._known: OrderedDict[tuple[str, str, str], _Seen] = OrderedDict()

    def get(self, key: tuple[str, str, str]) -> _Seen | None:
        """Those of a picture."""
        found = self._known.get(key)
        if found is not None:
            self._known.move_to_end(key)
        return found

    def put(self, key: tuple[str, str, str], seen: _Seen) -> None:
        """Keep those of a picture."""
        self._known[key] = seen
        while len(self._known) > _REMEMBERED:
            self._known.popitem(last=False)


async def likeness(service: Service, row: Row) -> Likeness:
    """What the place of a picture that stands out most looks like among good pictures.

    Raises: Refusal, with the reason, where that cannot be told.
    """
    store = service.store
    assert store is not None
    served = await service.served(row.model, row.version)
    _check(served.detector)
    if store.picture(row.picture) is None:
        raise _unable("the picture is not kept")
    good = await service.in_pool(_good, store, row)
    if not good:
        raise _unable("no good picture is kept to compare with")
    memory: Memory = service.__dict__.setdefault("_likeness", Memory())
    seen = await _seen(service, served, [row, *good], memory)
    own = seen.pop(row.picture, None)
    if own is None or not seen:
        raise _unable("the picture cannot be read any more")
    values = await service.in_pool(store.map, row.picture, row.model, row.version)
    return _compared(row, own, seen, {one.picture: one for one in good}, values, served.detector)


def _check(detector: Detector) -> None:
    if getattr(detector.engine, "method", None) is None:
        raise _unable("this detector runs as an exported graph, which gives no patch tokens")
    if detector.preprocessing.tiling is not None:
        raise _unable("this detector looks at pictures in tiles")


def _good(store: Store, row: Row) -> list[Row]:
    """Good pictures: those that people called so, then those that the detector did."""
    asked: dict[str, Any] = {"model": row.model, "limit": _CANDIDATES * 2, "regions": False}
    if row.category:
        asked["category"] = row.category
    called = store.predictions(reviewed="good", **asked)
    usual = store.predictions(reviewed=False, label=0, **asked)
    found = {one.picture: one for one in (*called, *usual) if one.picture != row.picture}
    return [one for one in found.values() if store.picture(one.picture) is not None][:_CANDIDATES]


async def _seen(
    service: Service, served: Served, rows: list[Row], memory: Memory
) -> dict[str, _Seen]:
    found: dict[str, _Seen] = {}
    missing: list[Row] = []
    for row in rows:
        known = memory.get((served.name, served.version, row.picture))
        if known is None:
            missing.append(row)
        else:
            found[row.picture] = known
    assert service.store is not None
    for start in range(0, len(missing), _AT_ONCE):
        some = missing[start : start + _AT_ONCE]
        paths = {one.picture: service.store.picture(one.picture) for one in some}
        async with service.pools.computing:
            seen = await asyncio.get_running_loop().run_in_executor(
                service.pools.compute, _tokens, served.detector, paths
            )
        for picture, one in seen.items():
            memory.put((served.name, served.version, picture), one)
        found |= seen
    return found


def _tokens(detector: Detector, paths: dict[str, Path | None]) -> dict[str, _Seen]:
    """In the thread that computes: the tokens of some pictures; those that cannot be read are left
    out."""
    import torch

    from blemish.methods.memory import MemoryBank

    method: Any = detector.method
    reading = detector.reading()
    found: dict[str, _Seen] = {}
    for picture, path in paths.items():
        try:
            loaded = (
                None if path is None else reading.load(Frame(source=path, name=picture, time=0.0))
            )
        except BlemishError:
            continue
        if loaded is None or isinstance(loaded, Failure):
            continue
        with torch.inference_mode():
            images = torch.from_numpy(loaded.pixels[None]).to(method.backbone.device)
            features = method.see(images)
            if isinstance(method, MemoryBank):
                tokens, (height, width) = method.embedded(features)
            else:
                last = len(method.layers) - 1
                tokens, (height, width) = features.tokens[last], features.grids[last]
            tokens = torch.nn.functional.normalize(tokens[0].float(), dim=-1)
        found[picture] = _Seen(
            tokens=tokens.reshape(height, width, -1).half().cpu().numpy(),
            placement=detector.preprocessing.placement(loaded.size),
            input=(int(images.shape[2]), int(images.shape[3])),
        )
    return found


def _compared(
    row: Row,
    own: _Seen,
    seen: dict[str, _Seen],
    rows: dict[str, Row],
    values: np.ndarray | None,
    detector: Detector,
) -> Likeness:
    at = _peak(row, own, values)
    wanted = own.tokens[at].astype(np.float32)
    learned = detector.learned
    found = []
    for picture, one in seen.items():
        similar = one.tokens.astype(np.float32) @ wanted
        place = np.unravel_index(int(similar.argmax()), similar.shape)
        best = (int(place[0]), int(place[1]))
        found.append(
            Alike(
                row=rows[picture],
                box=one.box(best),
                similarity=float(similar[best]),
                learned=picture in learned,
                reviewed=rows[picture].reviewed == "good",
            )
        )
    found.sort(key=lambda one: -one.similarity)
    part = Alike(row=row, box=own.box(at), similarity=1.0, learned=False, reviewed=False)
    return Likeness(own=part, found=found[:_SHOWN], compared=len(found))


def _peak(row: Row, own: _Seen, values: np.ndarray | None) -> tuple[int, int]:
    """The place of the grid where the map is highest; the middle where no map is kept."""
    height, width = own.tokens.shape[:2]
    if values is None:
        return height // 2, width // 2
    y, x = np.unravel_index(int(values.argmax()), values.shape)
    spans = (own.placement.down, own.placement.across)
    found = []
    pairs = zip((y, x), values.shape, (row.height, row.width), (height, width), strict=True)
    for (place, count, side, grid), span, taken in zip(pairs, spans, own.input, strict=True):
        across = float(span.to_input((place + 0.5) * side / count)) / taken
        found.append(min(max(int(across * grid), 0), grid - 1))
    return found[0], found[1]


def _unable(reason: str) -> Refusal:
    return Refusal(409, "CannotTell", reason)

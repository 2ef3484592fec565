"""What tasks of Ray do with parts of a source: fetch and decode, and get what they made as columns
to those who score.

Ray tries a part again, for ever, whose process died. Where a picture is what kills, as a decoder in
C may be brought down, the third try notes each picture before it begins with it; one at which a
process died twice is a row with an error, and the others go on.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

import numpy as np

from blemish.data.ahead import map_ahead
from blemish.detector.reading import Loaded, Reading
from blemish.scale.scorer import Given, Loader, pictures_of
from blemish.scale.sources import FILE, PIXELS, contents
from blemish.types import Failure

_BEFORE_CARE = 2  # tries of a part that may end without a word
_DEATHS = 2  # at a picture, before it is left out
DEADLY = "brought down the process that decoded it, twice: it is damaged, or takes too much memory"


class Watch:
    """Knows how often a part was begun, and at which picture its process was when it died."""

    def __init__(self) -> None:
        self._tries: Counter[str] = Counter()
        self._at: dict[str, int] = {}
        self._deaths: Counter[tuple[str, int]] = Counter()

    def begin(self, part: str) -> tuple[bool, list[int]]:
        """Whether care is to be taken with a part, and which of its pictures are left out."""
        self._tries[part] += 1
        if (place := self._at.pop(part, None)) is not None:
            self._deaths[part, place] += 1
        deadly = [at for (of, at), count in self._deaths.items() if of == part and count >= _DEATHS]
        return self._tries[part] > _BEFORE_CARE, deadly

    def at(self, part: str, place: int | None) -> None:
        """Note that a picture is begun with; None = with none."""
        if place is None:
            self._at.pop(part, None)
        else:
            self._at[part] = place


def watching() -> Any:
    """A `Watch` in a process of its own, where the driver is."""
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    here = ray.get_runtime_context().get_node_id()
    strategy = NodeAffinitySchedulingStrategy(here, soft=True)
    kept = {"num_cpus": 0, "max_restarts": -1, "max_task_retries": -1}
    return ray.remote(Watch).options(scheduling_strategy=strategy, **kept).remote()


class Decoding:
    """What a task does with its part of the source.

    Args: watch: as of `watching`. Others: as of `Loader`, and `size` of `sources.contents`.
    """

    def __init__(self, reading: Reading, filesystem: Any, size: int, watch: Any) -> None:
        self._reading, self._filesystem, self._size = reading, filesystem, size
        self._watch = watch

    def __call__(self, unit: Any) -> Iterator[Any]:
        """Tables of decoded pictures. Args: unit: a table of rows."""
        loader = Loader(self._reading, self._filesystem)
        parts = [unit]
        if FILE in unit.column_names:
            parts = contents(unit, self._filesystem, self._size)  # type: ignore[assignment]
        for part in parts:
            yield self._decoded(part, loader)

    def _decoded(self, part: Any, loader: Loader) -> Any:
        """Rows with what was made of their pictures in place of the bytes; those that are cut into
        tiles are decoded where they are scored."""
        if loader.in_tiles:
            return part
        given, ids = pictures_of({name: part.column(name) for name in part.column_names})
        careful, deadly = self._asked("begin", ids[0]) or (False, [])
        if careful:
            loads = [
                self._carefully(loader, one, place, ids[0], deadly)
                for place, one in enumerate(given)
            ]
        else:
            loads = list(map_ahead(loader.load, given, ahead=2 * len(given)))
        if "bytes" in part.column_names:
            part = part.drop_columns(["bytes"])
        return packed(part, loads)

    def _carefully(
        self, loader: Loader, one: Given, place: int, part: str, deadly: list[int]
    ) -> Loaded | Failure:
        if place in deadly:
            return Failure(source=one.name, reason=DEADLY)
        self._asked("at", part, place)
        found = loader.load(one)
        self._asked("at", part, None)
        return found

    def _asked(self, what: str, *given: Any) -> Any:
        """What the watch says; None where it has just gone itself."""
        import ray

        with suppress(ray.exceptions.RayError):
            return ray.get(getattr(self._watch, what).remote(*given))
        return None


def packed(part: Any, loads: list[Loaded | Failure]) -> Any:
    """Rows with columns of decoded pictures."""
    import pyarrow as pa

    made: dict[str, list[Any]] = {name: [] for name in PIXELS}
    for one in loads:
        good = one if isinstance(one, Loaded) else None
        error = one.reason if isinstance(one, Failure) else None
        values = (
            good and np.ascontiguousarray(good.pixels).tobytes(),
            good and list(good.pixels.shape),
            good and good.pixels.dtype == np.uint8,
            good and list(good.size),
            good and good.digest,
            good and list(good.notes),
            good and good.category,
            error,
        )
        for name, value in zip(PIXELS, values, strict=True):
            made[name].append(value)
    kinds = (
        *(pa.large_binary(), pa.list_(pa.int32()), pa.bool_(), pa.list_(pa.int32()), pa.string()),
        *(pa.list_(pa.string()), pa.string(), pa.string()),
    )
    for name, kind in zip(PIXELS, kinds, strict=True):
        part = part.append_column(name, pa.array(made[name], type=kind))
    return part


def unpacked(part: Any, given: list[Given]) -> list[Loaded | Failure]:
    """What `packed` was given."""
    columns = {name: part.column(name) for name in PIXELS}
    loads: list[Loaded | Failure] = []
    for place, one in enumerate(given):
        row = {name: column[place] for name, column in columns.items()}
        if row["_error"].is_valid:
            loads.append(Failure(source=one.name, reason=row["_error"].as_py()))
            continue
        kind = np.uint8 if row["_raw"].as_py() else np.float32
        pixels = np.frombuffer(row["_pixels"].as_buffer(), dtype=kind)
        height, width = row["_size"].as_py()
        loads.append(
            Loaded(
                one.name,
                (height, width),
                row["_digest"].as_py(),
                tuple(row["_notes"].as_py()),
                pixels.reshape(row["_shape"].as_py()),
                row["_category"].as_py(),
            )
        )
    return loads

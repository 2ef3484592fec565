"""What a backbone has given of a picture, kept, so that no picture is encoded twice."""

from __future__ import annotations

import hashlib
import os
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from io import FileIO
from pathlib import Path
from typing import Any, Protocol, cast

import safetensors
import torch
from safetensors.torch import save_file
from torch import Tensor

from blemish.backbones.base import Backbone, Features

IN_MEMORY = 2 * 2**30  # bytes of features that stay in main memory; a file takes the others
Key = tuple[bytes, int]  # a picture by its content, and the layer


class Store(Protocol):
    """Where features are kept."""

    def knows(self, key: Key) -> bool: ...
    def get(self, key: Key) -> _Kept: ...
    def put(self, key: Key, kept: _Kept) -> None: ...
    def close(self) -> None: ...


@contextmanager
def features_kept(
    backbone: Backbone, layers: Sequence[int], folder: FeatureFolder | None = None
) -> Iterator[None]:
    """While open, a picture that comes again gets the features of the first time, to the bit.

    A picture is known by its content. Of each those of all `layers` are kept, whichever are asked
    for first. Features stay in main memory up to `IN_MEMORY` bytes; beyond them a file in the
    folder for temporary files takes them, up to half of what is free there. What fits in neither is
    encoded again, as where that folder cannot be written. The file has no name, so nothing of it is
    left, however the process ends.

    Only calls without gradient for some of the `layers` are kept, of whole pictures or of some of
    their patches (`keep`; then a picture is known by these as well), none that ask for more. The
    backbone's weights and precision must not change meanwhile. On a GPU nothing is kept: a picture
    is encoded there in about the time that its features take to come back.

    Args: folder: keeps them instead, also for processes to come.
    """
    if backbone.device.type != "cpu":
        yield
        return
    kept = tuple(dict.fromkeys(layers))
    store: Store = _Store(IN_MEMORY) if folder is None else folder
    encode = backbone.forward

    def forward(images: Tensor, layers: Sequence[int] = (), **more: Any) -> Features:
        wanted, keep = backbone.check_layers(layers), more.get("keep")
        other = more.keys() - {"keep"} or not set(wanted) <= set(kept)
        if other or torch.is_grad_enabled() or images.is_meta:  # as of `Backbone.shapes`
            return cast(Features, encode(images, layers, **more))
        names = [_name_of(image) for image in images]
        if keep is not None:  # the same patches of the same picture
            names = [one + _name_of(row) for one, row in zip(names, keep, strict=True)]
        # A batch that is not known as a whole is encoded as a whole: kernels are chosen by shape,
        # and in a smaller batch a picture might get other last bits.
        if names and all(store.knows((name, layer)) for name in names for layer in wanted):
            try:
                rows = [[store.get((name, layer)) for name in names] for layer in wanted]
                return replace(_joined(rows), kept=keep)
            except OSError:  # the file cannot be read back
                store.close()
        features: Features = encode(images, kept, **more)
        for index, layer in enumerate(kept):
            for row, name in enumerate(names):
                if not store.knows((name, layer)):
                    store.put((name, layer), _Kept.of(features, index, row, backbone.dtype))
        return features.only([kept.index(layer) for layer in wanted])

    backbone.forward = forward
    try:
        yield
    finally:
        del backbone.forward
        if folder is None:
            store.close()


@dataclass(frozen=True, slots=True)
class _Kept:
    """One layer of one picture: [CLS] where there is one, then the patches, T D; and where they
    lie.
    """

    tokens: Tensor
    grid: tuple[int, int]
    offset: float
    cls: bool

    @classmethod
    def of(cls, features: Features, index: int, row: int, dtype: torch.dtype) -> _Kept:
        parts = [features.cls[index][row][None]] if features.cls else []
        tokens = torch.cat([*parts, features.tokens[index][row]])
        narrow = tokens.to(dtype)  # what was computed in half precision takes half the room
        exact = dtype != tokens.dtype and torch.equal(narrow.to(tokens.dtype), tokens)
        return cls(
            narrow if exact else tokens, features.grids[index], features.offsets[index], bool(parts)
        )


def _joined(layers: Sequence[Sequence[_Kept]]) -> Features:
    """The features of a batch, of all its pictures in every layer."""
    whole = [torch.stack([one.tokens.float() for one in rows]) for rows in layers]
    heads = [rows[0].cls for rows in layers]
    return Features(
        tokens=tuple(each[:, int(head) :] for each, head in zip(whole, heads, strict=True)),
        grids=tuple(rows[0].grid for rows in layers),
        offsets=tuple(rows[0].offset for rows in layers),
        cls=tuple(each[:, 0] for each, head in zip(whole, heads, strict=True) if head),
    )


def _name_of(image: Tensor) -> bytes:
    """By which a picture 3 H W is known: its content."""
    content = hashlib.blake2b(_bytes_of(image), digest_size=16)
    content.update(repr((image.dtype, tuple(image.shape))).encode())
    return content.digest()


def _bytes_of(tensor: Tensor) -> memoryview:
    """Its memory, where it is contiguous; a copy of it otherwise."""
    return tensor.contiguous().view(-1).view(torch.uint8).numpy().data


class _Store:
    """Features by picture and layer: the first in main memory, the next in a file, then none."""

    def __init__(self, in_memory: int) -> None:
        self._room = in_memory
        self._near: dict[Key, _Kept] = {}
        self._far: dict[Key, tuple[int, _Kept]] = {}  # place in the file; no content
        self._file: FileIO | None = None
        self._end = self._limit = 0
        self._full = False

    def knows(self, key: Key) -> bool:
        return key in self._near or key in self._far

    def get(self, key: Key) -> _Kept:
        """Raises: OSError where the file cannot be read back."""
        if key in self._near:
            return self._near[key]
        place, empty = self._far[key]
        kept = replace(empty, tokens=torch.empty_like(empty.tokens, device="cpu"))
        assert self._file is not None
        self._file.seek(place)
        if self._file.readinto(_bytes_of(kept.tokens)) != kept.tokens.nbytes:
            raise OSError("the file of features has been cut")
        return kept

    def put(self, key: Key, kept: _Kept) -> None:
        size = kept.tokens.nbytes
        if size <= self._room:
            self._room -= size
            self._near[key] = kept
            return
        self._room = 0
        try:
            if self._file is None and not self._full:
                self._limit = shutil.disk_usage(tempfile.gettempdir()).free // 2
                self._file = tempfile.TemporaryFile(prefix="blemish-", buffering=0)  # noqa: SIM115 — see close
            self._full = self._full or self._end + size > self._limit
            if self._full or self._file is None:
                return
            self._file.seek(self._end)
            self._full = self._file.write(_bytes_of(kept.tokens)) != size
        except OSError:  # no such folder, no right to write there, no room
            self._full = True
        if not self._full:
            self._far[key] = self._end, replace(kept, tokens=kept.tokens.to("meta"))
            self._end += size

    def close(self) -> None:
        """Forget all of it, and keep nothing more."""
        if self._file is not None:
            self._file.close()
        self._near, self._far, self._room, self._full = {}, {}, 0, True


class FeatureFolder:
    """Features by picture and layer, a file each in a folder, for one backbone in one precision.

    A file that a killed process has left half written is never read: each gets its name once it is
    whole. What cannot be written, for want of room or of leave, is not kept.

    Attributes:
        found: the pictures whose features were there before this process, of those asked for.
    """

    def __init__(self, folder: str | Path, most: int) -> None:
        """Args: most: bytes that all files in it may have; half of what the disk has free is never
        exceeded."""
        self.found: set[bytes] = set()
        self._folder = Path(folder)
        self._made: set[Key] = set()
        self._room, self._open = 0, True
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            taken = sum(one.stat().st_size for one in self._folder.iterdir() if one.is_file())
            self._room = min(most - taken, shutil.disk_usage(self._folder).free // 2)
        except OSError:
            self._open = False

    def _place(self, key: Key) -> Path:
        return self._folder / f"{key[0].hex()}-{key[1]}.safetensors"

    def knows(self, key: Key) -> bool:
        return self._open and (key in self._made or self._place(key).is_file())

    def get(self, key: Key) -> _Kept:
        """Raises: OSError where the file cannot be read back."""
        try:
            with safetensors.safe_open(self._place(key), framework="pt") as file:
                told, tokens = file.metadata(), file.get_tensor("tokens")
            height, width = map(int, told["grid"].split(","))
            kept = _Kept(tokens, (height, width), float(told["offset"]), told["cls"] == "1")
        except (safetensors.SafetensorError, KeyError, TypeError, ValueError) as error:
            raise OSError(f"{self._place(key)}: holds no features") from error
        if key not in self._made:
            self.found.add(key[0])
        return kept

    def put(self, key: Key, kept: _Kept) -> None:
        if not self._open or kept.tokens.nbytes > self._room:
            return
        place = self._place(key)
        begun = place.with_name(f"{place.name}.{os.getpid()}.tmp")
        told = {
            "grid": ",".join(map(str, kept.grid)),
            "offset": repr(kept.offset),
            "cls": str(int(kept.cls)),
        }
        try:
            save_file({"tokens": kept.tokens.contiguous()}, begun, metadata=told)
            begun.replace(place)
        except (OSError, safetensors.SafetensorError):  # no room, no right to write there
            begun.unlink(missing_ok=True)
            self._room = 0
            return
        self._room -= kept.tokens.nbytes
        self._made.add(key)

    def close(self) -> None:
        """Give nothing back from here on: what is there cannot be trusted."""
        self._open = False

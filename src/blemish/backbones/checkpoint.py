"""Weight files as tensors, without ever running what a file says.

A PyTorch checkpoint is a program for Python's object loader, and a hostile one runs whatever it
likes. Here its instructions are only *read* (`pickletools.genops`) and followed by a small machine
that knows containers, numbers, strings and tensors. Every other object (an `argparse.Namespace`, a
numpy scalar, a call to `os.system`) becomes an inert placeholder that is never imported or called.
"""

from __future__ import annotations

import io
import math
import mmap
import pickletools
import sys
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

import safetensors.torch
import torch
from torch import Tensor

from blemish.errors import WeightsError
from blemish.files import WEIGHTS_BYTES, open_regular

HEADS = (
    "head.", "heads.", "head_dist.", "fc.", "classifier.", "dino_head.", "ibot_head.", "lm_head.",
    "projection_head.", "prototypes.", "mask_token",
)  # fmt: skip
"""How the names of classifier and pretraining parts begin: parts that no backbone needs."""

# The teacher before the student: DINO evaluates the teacher.
_WRAPPERS = ("state_dict", "model", "teacher", "student", "net", "ema")
_PREFIXES = ("module.", "backbone.", "encoder.")

_DTYPES = {
    "FloatStorage": torch.float32,
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "DoubleStorage": torch.float64,
    "LongStorage": torch.int64,
    "IntStorage": torch.int32,
    "ShortStorage": torch.int16,
    "CharStorage": torch.int8,
    "ByteStorage": torch.uint8,
    "BoolStorage": torch.bool,
}
_LEGACY_MAGIC, _LEGACY_VERSION = 0x1950A86A20F9469CFC6C, 1001

_FOREIGN = (
    (b"version https://git-lfs", "a Git LFS pointer; fetch the file that it points to"),
    (b"<", "a web page, not the file that it was to download"),
    (b"\x89HDF\r\n", "an HDF5 file (Keras)"),
    (b"\x08", "probably an ONNX model"),
)


def read_tensors(path: str | Path) -> dict[str, Tensor]:
    """The state dict in a weight file, by name; which format it has is decided by its content.

    Reads safetensors files and PyTorch checkpoints (the zip format and the older one). From a
    training checkpoint the model's state dict is picked ("state_dict", "model", "teacher",
    "student", "net" or "ema", in this order), and "module.", "backbone." and "encoder." are
    stripped where all names but those of heads carry them; heads beside a stripped "backbone." are
    left out. What is not a tensor is left out.

    Returns: tensors in the dtypes of the file; tensors that share a storage in the file may share
    memory.
    Raises: WeightsError if the file cannot be read, is truncated or damaged, or is not a weight
    file.
    """
    path = Path(path)
    try:
        if not path.exists() or path.is_dir():
            raise WeightsError(f"{path}: there is no such weight file")
        with open_regular(path, limit=WEIGHTS_BYTES, error=WeightsError) as file:
            start = file.read(32)
            if start[8:9] == b"{":
                return _without_prefixes(_state_dict(safetensors.torch.load_file(path)))
            if start[:4] == b"PK\x03\x04":
                root, read = _open_zip(file)
            elif start[:1] == b"\x80":
                root, read = _open_legacy(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
            else:
                kinds = (kind for magic, kind in _FOREIGN if start.startswith(magic))
                raise _Unfit(f"it is {next(kinds, 'of an unknown format') if start else 'empty'}")
            storage = cache(read)
            return {
                name: view.tensor(storage(view.storage))
                for name, view in _without_prefixes(_state_dict(root)).items()
            }
    except WeightsError:
        raise
    except _Unfit as error:
        raise WeightsError(
            f"{path}: is not a weight file that blemish reads ({error}); it reads safetensors and "
            "PyTorch state dicts"
        ) from error
    except OSError as error:
        raise WeightsError(f"{path}: cannot be read ({error.strerror or error})") from error
    except Exception as error:  # a damaged or hostile file may break the parsing in any way
        raise WeightsError(
            f"{path}: is truncated or damaged ({type(error).__name__}: {error})"
        ) from error


class _Unfit(Exception):
    """The file is whole, as far as one can tell, but holds something else than a state dict."""


@dataclass(frozen=True, slots=True)
class _Global:
    """A name that the file asks to import; it never is."""

    module: str
    name: str


_OPAQUE = object()  # stands for any object that a state dict has no need of


@dataclass(frozen=True, slots=True)
class _Storage:
    """A run of `numel` numbers, stored under `key`."""

    kind: str
    key: str
    numel: int

    @property
    def dtype(self) -> torch.dtype:
        if self.kind not in _DTYPES:
            raise _Unfit(f"it holds numbers of the unknown kind {self.kind}")
        return _DTYPES[self.kind]

    @property
    def nbytes(self) -> int:
        return self.numel * self.dtype.itemsize

    def decode(self, data: bytes | memoryview, byteorder: str) -> Tensor:
        if len(data) != self.nbytes:
            raise ValueError(f"storage {self.key} has {len(data)} bytes, not {self.nbytes}")
        if not data:
            return torch.empty(0, dtype=self.dtype)
        # Of a copy: the tensor must outlive the file, and be writable.
        octets = torch.frombuffer(bytearray(data), dtype=torch.uint8)
        if byteorder != sys.byteorder:
            octets = octets.view(-1, self.dtype.itemsize).flip(1).flatten()
        return octets.view(self.dtype)


@dataclass(frozen=True, slots=True)
class _View:
    """A tensor: a strided view of a storage."""

    storage: _Storage
    offset: int
    size: tuple[int, ...]
    stride: tuple[int, ...]

    def tensor(self, storage: Tensor) -> Tensor:
        numbers = (self.offset, *self.size, *self.stride)
        fitting = len(self.size) == len(self.stride)
        if not fitting or not all(isinstance(n, int) and n >= 0 for n in numbers):
            # Unprinted: the numbers of a hostile file may be endless.
            raise ValueError("a tensor has an impossible shape")
        numel = math.prod(self.size)
        if not numel:
            return torch.empty(self.size, dtype=storage.dtype)
        steps = zip(self.size, self.stride, strict=True)
        last = self.offset + sum((n - 1) * step for n, step in steps)
        # A tensor larger than its storage (a stride of 0) could claim any amount of memory once it
        # is copied.
        if last >= storage.numel() or numel > storage.numel():
            raise ValueError(
                f"a tensor of shape {self.size} reaches beyond its storage of {storage.numel()} "
                "numbers"
            )
        return storage.as_strided(self.size, self.stride, self.offset).contiguous()


Leaf = TypeVar("Leaf")
_Read = Callable[[_Storage], Tensor]


def _open_zip(file: BinaryIO) -> tuple[Any, _Read]:
    """The checkpoint in a zip archive (PyTorch >= 1.6): NAME/data.pkl and one NAME/data/KEY per
    storage.
    """
    archive = zipfile.ZipFile(file)
    names = set(archive.namelist())
    roots = [name.removesuffix("data.pkl") for name in names if Path(name).name == "data.pkl"]
    if len(roots) != 1:
        raise _Unfit("it is a zip archive without a PyTorch checkpoint")
    (root,) = roots
    if any(name.startswith(f"{root}code/") for name in names):
        raise _Unfit("it is a TorchScript program; save its state_dict() instead")

    def stored(name: str) -> bytes:
        # PyTorch never compresses; refusing to inflate bounds memory by the size of the file.
        if archive.getinfo(name).compress_type != zipfile.ZIP_STORED:
            raise ValueError(f"{name} is compressed")
        return archive.read(name)

    order = f"{root}byteorder"
    byteorder = stored(order).decode("ascii") if order in names else "little"
    if byteorder not in ("little", "big"):
        raise ValueError(f"unknown byte order {byteorder!r}")
    content = _interpret(io.BytesIO(stored(f"{root}data.pkl")))
    return content, lambda storage: storage.decode(stored(f"{root}data/{storage.key}"), byteorder)


def _open_legacy(data: mmap.mmap) -> tuple[Any, _Read]:
    """The checkpoint in the older format: five objects in a row, then the storages (int64 count,
    data).
    """
    if _interpret(data) != _LEGACY_MAGIC:
        raise _Unfit("it holds Python objects, but no PyTorch checkpoint")
    if _interpret(data) != _LEGACY_VERSION:
        raise _Unfit("it is a PyTorch checkpoint of an unknown version")
    _interpret(data)  # the writer's machine; the storages are little-endian whatever it says
    storages: dict[str, _Storage] = {}
    content = _interpret(data, storages)
    position = {}
    keys = _interpret(data)
    place = data.tell()
    for key in keys:
        if int.from_bytes(data[place : place + 8], "little") != storages[key].numel:
            raise ValueError(f"storage {key} has another length than its tensors say")
        position[key] = place + 8
        place += 8 + storages[key].nbytes
    if place > len(data):
        raise EOFError("the file ends within its tensors")

    def read(storage: _Storage) -> Tensor:
        start = position[storage.key]
        return storage.decode(data[start : start + storage.nbytes], "little")

    return content, read


def _interpret(stream: BinaryIO | mmap.mmap, storages: dict[str, _Storage] | None = None) -> Any:
    """The next object in `stream`, built by hand; `storages` collects the storages that it
    mentions.

    Gives dicts, lists, tuples, numbers, strings, `_View` for tensors, and `_OPAQUE` for everything
    else.
    """
    stack: list[Any] = []
    marks: list[int] = []
    memo: dict[int, Any] = {}
    argument: Any
    for opcode, argument, _ in pickletools.genops(stream):  # type: ignore[arg-type]
        if opcode.name in _MAKERS:
            marked, count, make = _MAKERS[opcode.name]
            start = (marks.pop() if marked else len(stack)) - count
            if start < 0:
                raise IndexError("an instruction lacks its operands")
            stack[start:] = [make(*stack[start:])]
            continue
        match opcode.name:
            case "PROTO" | "FRAME":
                pass
            case "STOP":
                return stack.pop()
            case "MARK":
                marks.append(len(stack))
            case "POP":
                stack.pop()
            case "POP_MARK":
                del stack[marks.pop() :]
            case "DUP":
                stack.append(stack[-1])
            case "PUT" | "BINPUT" | "LONG_BINPUT":
                memo[argument] = stack[-1]
            case "MEMOIZE":
                memo[len(memo)] = stack[-1]
            case "GET" | "BINGET" | "LONG_BINGET":
                stack.append(memo[argument])
            case "GLOBAL":
                stack.append(_Global(*argument.split(" ", 1)))
            case "BINPERSID":
                stack.append(_persistent(stack.pop(), storages))
            case _ if opcode.arg is not None and opcode.stack_before == []:  # a literal
                stack.append(argument)
            case _:
                raise ValueError(f"unknown instruction {opcode.name}")
    raise EOFError("the object does not end")


def _opaque(*_: Any) -> Any:
    return _OPAQUE


def _row(*items: Any) -> tuple[Any, ...]:
    return items


def _unchanged(target: Any, *_: Any) -> Any:
    return target


def _extended(target: Any, *items: Any) -> Any:
    if isinstance(target, list):
        target.extend(items)
    return target


def _updated(target: Any, *items: Any) -> Any:
    """`target` with these keys and values, in turns, whose key is a name or a number; other keys
    have no place in a state dict.
    """
    if isinstance(target, dict):
        pairs = zip(items[::2], items[1::2], strict=True)
        target.update({key: value for key, value in pairs if isinstance(key, (str, int))})
    return target


def _called(function: Any, arguments: Any) -> Any:
    """What calling `function` would give, for the three functions that state dicts call."""
    match function:
        case _Global("collections", "OrderedDict"):
            pairs = arguments[0] if arguments else ()
            return _updated({}, *(each for pair in pairs for each in pair))
        case _Global("torch._utils", "_rebuild_tensor_v2"):
            place, offset, size, stride = arguments[:4]
            if not isinstance(place, tuple):
                return _OPAQUE
            storage, start = place
            return _View(storage, start + offset, size, stride)
        case _Global("torch._utils", "_rebuild_parameter"):
            return arguments[0]
    return _OPAQUE


# Instructions that make one thing of the last things on the stack: whether they take all since the
# last mark, how many they take (before the mark, where there is one), and what they make.
_MAKERS: dict[str, tuple[bool, int, Callable[..., Any]]] = {
    "NONE": (False, 0, lambda: None),
    "NEWTRUE": (False, 0, lambda: True),
    "NEWFALSE": (False, 0, lambda: False),
    "EMPTY_TUPLE": (False, 0, _row),
    "TUPLE1": (False, 1, _row),
    "TUPLE2": (False, 2, _row),
    "TUPLE3": (False, 3, _row),
    "TUPLE": (True, 0, _row),
    "EMPTY_LIST": (False, 0, list),
    "LIST": (True, 0, lambda *items: list(items)),
    "APPEND": (False, 2, _extended),
    "APPENDS": (True, 1, _extended),
    "EMPTY_DICT": (False, 0, dict),
    "DICT": (True, 0, lambda *items: _updated({}, *items)),
    "SETITEM": (False, 3, _updated),
    "SETITEMS": (True, 1, _updated),
    "EMPTY_SET": (False, 0, _opaque),
    "ADDITEMS": (True, 1, _unchanged),
    "FROZENSET": (True, 0, _opaque),
    "STACK_GLOBAL": (False, 2, _Global),
    "REDUCE": (False, 2, _called),
    "NEWOBJ": (False, 2, _opaque),
    "NEWOBJ_EX": (False, 3, _opaque),
    "OBJ": (True, 0, _opaque),
    "INST": (True, 0, _opaque),
    "BUILD": (False, 2, _unchanged),  # attributes, such as the _metadata of a state dict
}


def _persistent(identity: Any, storages: dict[str, _Storage] | None) -> Any:
    """The storage that a persistent id names, and where in it the tensors' storage begins."""
    if identity[0] == "module":  # the source of a class, in older files that hold a whole model
        return _OPAQUE
    tag, kind, key, _, numel, *rest = identity
    if tag != "storage" or not isinstance(kind, _Global) or not isinstance(kind.name, str):
        raise ValueError("unknown reference to a storage")
    if not isinstance(key, str) or not isinstance(numel, int) or numel < 0:
        raise ValueError("a storage without a name or a length")
    storage = _Storage(kind.name, key, numel)
    if storages is not None and storages.setdefault(storage.key, storage) != storage:
        raise ValueError(f"storage {key} is described twice")
    # In very old files a storage may lie within another: (key, offset, numel).
    view = rest[0] if rest else None
    return storage, view[1] if view else 0


def _state_dict(root: Any) -> dict[str, Any]:
    """The tensors of the state dict in a checkpoint's content."""
    if isinstance(root, dict):
        nested = [root[key] for key in _WRAPPERS if isinstance(root.get(key), dict)]
        for candidate in (*nested, root):
            leaves = {
                name: leaf
                for name, leaf in candidate.items()
                if isinstance(name, str) and isinstance(leaf, (_View, Tensor))
            }
            if leaves:
                return leaves
    raise _Unfit("it holds no dictionary of tensors; save the model's state_dict()")


def _without_prefixes(leaves: dict[str, Any]) -> dict[str, Any]:
    """The same tensors without what wrappers put before their names; heads beside a wrapped
    backbone are left out.
    """
    body = [name for name in leaves if not name.startswith(HEADS)]
    for prefix in _PREFIXES:
        if body and all(name.startswith(prefix) for name in body):
            return _without_prefixes(beneath(prefix, leaves))
    return leaves


def beneath(prefix: str, leaves: Mapping[str, Leaf]) -> dict[str, Leaf]:
    """What has a name that begins with `prefix`, by the rest of its name."""
    return {
        name.removeprefix(prefix): leaf for name, leaf in leaves.items() if name.startswith(prefix)
    }

"""Which device and which precision a computation runs in."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Literal, cast

from blemish.errors import ConfigError
from blemish.machine import MOST_THREADS, cpu_flags

if TYPE_CHECKING:  # imported where it is used: the base install has no PyTorch
    import torch

# What oneDNN, which computes torch's products in bf16 on a CPU, can be held down to without them.
_WITHOUT_BF16 = {
    *("SSE41", "AVX", "AVX2", "AVX2_VNNI", "AVX2_VNNI_2", "AVX512_CORE", "AVX512_CORE_VNNI"),
}
_BF16 = {"amx_bf16", "avx512_bf16"}
Precision = Literal["fp32", "bf16", "fp16"]
_DTYPES = {"fp32": "float32", "bf16": "bfloat16", "fp16": "float16"}  # what torch calls them


def pick_device(name: str = "auto") -> torch.device:
    """The device by name; "auto" is CUDA, else MPS, else the CPU. Raises: ConfigError for one that
    is not there.
    """
    import torch

    if name == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda")
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise ConfigError(f"device {name!r} is not available here; choose cpu, or auto") from error
    return device


def use_threads(count: int | None) -> None:
    """How many threads torch computes with, in this process, from now on; None = as it is.

    Raises: ConfigError for a number that no machine has.
    """
    import torch

    if count is None:
        return
    if not 1 <= count <= MOST_THREADS:
        raise ConfigError(f"threads: 1 to {MOST_THREADS} are possible, got {count}")
    torch.set_num_threads(count)


def pick_precision(name: str, device: torch.device) -> torch.dtype:
    """The precision by name; "auto" is bf16 where the hardware computes in it, else fp32.

    Where it does not, torch converts back and forth: a ViT takes five times as long as in fp32.

    Raises: ConfigError for an unknown name, or fp16 on a CPU (too narrow and slow there).
    """
    import torch

    if name == "auto":
        if device.type == "cuda":
            fast = torch.cuda.is_bf16_supported(including_emulation=False)
        else:
            fast = device.type == "cpu" and _cpu_computes_in_bf16()
        return torch.bfloat16 if fast else torch.float32
    if name not in _DTYPES:
        raise ConfigError(f"unknown precision {name!r}. Known: auto, {', '.join(_DTYPES)}")
    if name == "fp16" and device.type == "cpu":
        raise ConfigError("fp16 is for GPUs; on a CPU choose bf16 or fp32")
    found: torch.dtype = getattr(torch, _DTYPES[name])
    return found


def precision_like(made_in: str, device: torch.device) -> torch.dtype:
    """The precision that an artifact's thresholds come from, where the device computes in it, for
    scores in another differ from them by up to some per cent; else fp32.
    """
    import torch

    if made_in == "bf16":
        return pick_precision("auto", device)
    return torch.float16 if made_in == "fp16" and device.type != "cpu" else torch.float32


def precision_name(dtype: torch.dtype) -> Precision:
    called = str(dtype).removeprefix("torch.")
    return cast(Precision, next(name for name, known in _DTYPES.items() if known == called))


def _cpu_computes_in_bf16() -> bool:
    import torch

    if not torch.backends.mkldnn.is_available():  # type: ignore[no-untyped-call]
        return False
    return not is_held_below_bf16() and not cpu_flags().isdisjoint(_BF16)


def is_held_below_bf16() -> bool:
    """Whether the environment holds oneDNN, which torch and OpenVINO compute with on a CPU, to
    instructions without bf16."""
    names = ("ONEDNN_MAX_CPU_ISA", "DNNL_MAX_CPU_ISA")
    limit = next((os.environ[name] for name in names if name in os.environ), "")
    return limit.upper() in _WITHOUT_BF16

"""Devices and precisions by name, with a machine that has whatever the test says it has."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from blemish import compute
from blemish.compute import (
    pick_device,
    pick_precision,
    precision_like,
    precision_name,
    use_threads,
)
from blemish.detector.predict import Detector
from blemish.engines.graph import threads_of
from blemish.errors import ConfigError
from blemish.methods.trained import TrainedMethod

CPU, CUDA = torch.device("cpu"), torch.device("cuda")


@pytest.mark.parametrize(
    ("cuda", "mps", "expected"),
    [(True, True, "cuda"), (True, False, "cuda"), (False, True, "mps"), (False, False, "cpu")],
)
def test_auto_takes_the_fastest_device(
    cuda: bool, mps: bool, expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: cuda)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: mps)
    assert pick_device() == pick_device("auto") == torch.device(expected)


@pytest.mark.parametrize("name", ["nowhere", "", "cpu:x", "cuda:99", "tpu"])
def test_a_device_that_is_not_there(name: str) -> None:
    with pytest.raises(ConfigError, match=f"device '{name}' is not available here"):
        pick_device(name)


@pytest.mark.parametrize("variable", ["ONEDNN_MAX_CPU_ISA", "DNNL_MAX_CPU_ISA"])
@pytest.mark.parametrize(
    ("flags", "limit", "expected"),
    [
        ({"avx2"}, None, torch.float32),
        ({"avx2", "avx512_bf16"}, None, torch.bfloat16),
        ({"amx_bf16", "amx_tile"}, None, torch.bfloat16),
        ({"amx_bf16"}, "AVX2", torch.float32),
        ({"amx_bf16"}, "avx512_core_vnni", torch.float32),
        ({"amx_bf16"}, "AVX512_CORE_BF16", torch.bfloat16),
        ({"avx512_bf16"}, "DEFAULT", torch.bfloat16),
    ],
)
def test_auto_is_bf16_where_the_cpu_computes_in_it_and_onednn_may(
    variable: str, flags: set[str], limit: str | None, expected: torch.dtype,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setattr(compute, "cpu_flags", lambda: flags)
    for each in ("ONEDNN_MAX_CPU_ISA", "DNNL_MAX_CPU_ISA"):
        monkeypatch.delenv(each, raising=False)
    if limit:
        monkeypatch.setenv(variable, limit)
    assert pick_precision("auto", CPU) == expected


def test_auto_is_fp32_in_a_torch_without_onednn(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compute, "cpu_flags", lambda: {"amx_bf16"})
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: False)
    assert pick_precision("auto", CPU) == torch.float32


@pytest.mark.parametrize("supported", [True, False])
def test_auto_on_a_gpu(supported: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """A GPU that only emulates bf16, as torch counts by default, is slower in it than in fp32."""

    def answer(including_emulation: bool = True) -> bool:
        return including_emulation or supported

    monkeypatch.setattr(torch.cuda, "is_bf16_supported", answer)
    assert pick_precision("auto", CUDA) == (torch.bfloat16 if supported else torch.float32)
    assert pick_precision("auto", torch.device("mps")) == torch.float32


@pytest.mark.parametrize("computes", [True, False])
def test_as_an_artifact_was_made(computes: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compute, "_cpu_computes_in_bf16", lambda: computes)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda **_: computes)
    for device in (CPU, CUDA):
        assert precision_like("fp32", device) == torch.float32
        assert precision_like("bf16", device) == (torch.bfloat16 if computes else torch.float32)
    assert precision_like("fp16", CUDA) == torch.float16
    assert precision_like("fp16", CPU) == torch.float32


def test_precisions_by_name() -> None:
    for name, dtype in (("fp32", torch.float32), ("bf16", torch.bfloat16), ("fp16", torch.float16)):
        assert pick_precision(name, CUDA) == dtype
        assert precision_name(dtype) == name


@pytest.mark.parametrize(
    ("name", "says"), [("fp16", "for GPUs"), ("fp8", "unknown precision 'fp8'"), ("", "unknown")]
)
def test_a_precision_that_does_not_go(name: str, says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        pick_precision(name, CPU)


def test_the_flags_of_this_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    assert all(" " not in flag for flag in compute.cpu_flags())
    for text, flags in (
        ("fpu: yes\nflags\t\t: fpu amx_bf16\n", {"fpu", "amx_bf16"}),
        ("processor : 0\nFeatures : neon\n", set()),
        (None, set()),
    ):

        def read(_path: Path, told: str | None = text) -> str:
            if told is None:
                raise PermissionError("no")
            return told

        monkeypatch.setattr(Path, "read_text", read)
        assert compute.cpu_flags() == flags


@pytest.mark.parametrize(
    "method",
    [
        "agpnet",
        "guided",
        "atacnet",
        "simplenet",
        "rd4ad",
        "dinomaly",
        "vitad",
        "uniad",
        "efficientad",
        "dra",
        "ahl",
        "draem",
    ],
)
def test_a_training_ends_on_the_device_it_was_on(
    method: str, fitted: Callable[..., Detector]
) -> None:
    trained = copy.deepcopy(fitted(method).method).to("meta")
    assert isinstance(trained, TrainedMethod)
    trained.end_training(3)
    assert {tensor.device.type for tensor in trained.state_dict().values()} == {"meta"}


@pytest.mark.parametrize("count", [0, -1, 1025, 10**12])
def test_threads_that_no_machine_has(count: int) -> None:
    for use in (use_threads, threads_of):
        with pytest.raises(ConfigError, match=f"threads: 1 to 1024 are possible, got {count}"):
            use(count)

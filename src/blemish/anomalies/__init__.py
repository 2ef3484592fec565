"""Synthetic anomalies in normal pictures, by name.

    guided, guided-fine, guided-poisson       cut and paste where attention looks
    cutpaste, cutpaste-scar, cutpaste-3way    cut and paste anywhere
    fpi, pii, nsa                             patches of a second picture, blended in
    draem                                     textures where Perlin noise is high

Pictures are float32 H W C in [0, 1], of any number of channels.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from blemish.anomalies.base import Simulator, Synthetic
from blemish.anomalies.blending import FPI, NSA, PII
from blemish.anomalies.cutpaste import CutPaste, CutPaste3Way, CutPasteScar
from blemish.anomalies.guided import GuidedCutPaste, GuidedFine, GuidedPoisson
from blemish.anomalies.perlin import PerlinTexture
from blemish.errors import ConfigError, unknown_name

__all__ = ["SIMULATORS", "Simulator", "Synthetic", "simulate_batch", "simulator"]

SIMULATORS: dict[str, type[Simulator]] = {
    kind.name: kind
    for kind in (
        *(GuidedCutPaste, GuidedFine, GuidedPoisson),
        *(CutPaste, CutPasteScar, CutPaste3Way),
        *(FPI, PII, NSA, PerlinTexture),
    )
}


def simulator(name: str) -> Simulator:
    """A simulator with its default settings. Raises: ConfigError that suggests the nearest name.

    Example:
        >>> picture = np.linspace(0, 1, 32 * 32 * 3, dtype=np.float32).reshape(32, 32, 3)
        >>> made = simulator("cutpaste")(picture, np.random.default_rng(0))
        >>> bool(made.mask.any()), bool((made.image == picture)[~made.mask].all())
        (True, True)
    """
    if name not in SIMULATORS:
        raise unknown_name("simulator", name, SIMULATORS)
    return SIMULATORS[name]()


def simulate_batch(
    simulators: Sequence[Simulator],
    images: np.ndarray,
    attention: np.ndarray | None,
    seeds: Sequence[int],
    *,
    areas: np.ndarray | None = None,
    threads: int | None = None,
) -> list[Synthetic]:
    """An anomaly in every picture of a batch.

    Picture i is worked on with `np.random.default_rng(seeds[i])`, from which come first one of the
    simulators, evenly, then the second picture: another of the batch, or the picture itself
    mirrored left to right where it is the only one. So the result depends on the batch and the
    seeds, but not on the number of threads.

    Args:
        images: float B H W C in [0, 1]; not changed.
        attention: B h w on any grid, or None where no simulator needs it.
        seeds: B integers >= 0.
        areas: bool B H W: where alone there are to be any; None = everywhere.
        threads: how many work at once; None = one for each core, at most 8.
    Raises: ConfigError for arrays that do not fit together or that a simulator cannot use.
    """
    count = len(images)
    if not simulators:
        raise ConfigError("at least one simulator is needed")
    if images.ndim != 4:
        raise ConfigError(f"images: shape {images.shape} given; B H W C is needed")
    if areas is not None and areas.shape != images.shape[:3]:
        raise ConfigError(f"areas: shape {areas.shape} given; {images.shape[:3]} is needed")
    if len(seeds) != count or (attention is not None and len(attention) != count):
        guides = "" if attention is None else f" and attention for {len(attention)}"
        raise ConfigError(
            f"{count} pictures, but {len(seeds)} seeds{guides}: one of each for every picture is "
            "needed"
        )

    def work(index: int) -> Synthetic:
        rng = np.random.default_rng(seeds[index])
        drawn = simulators[int(rng.integers(len(simulators)))]
        if count == 1:
            other = images[0][:, ::-1]
        else:
            other = images[(index + int(rng.integers(1, count))) % count]
        guide = None if attention is None else attention[index]
        area = None if areas is None else areas[index]
        return drawn(images[index], rng, other=other, attention=guide, area=area)

    workers = min(count, threads or min(os.cpu_count() or 1, 8))
    if workers <= 1:
        return [work(index) for index in range(count)]
    with ThreadPoolExecutor(workers, thread_name_prefix="blemish-anomalies") as pool:
        return list(pool.map(work, range(count)))

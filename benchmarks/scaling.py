"""How scoring on a cluster scales from 1 to 64 workers, by simulation from measured times.

    python benchmarks/scaling.py part.blemish PICTURES --results benchmarks/results/scaling.jsonl

First it measures on this machine, in processor time of one core: what a picture costs to decode and
to score (`Scorer`), and what Ray itself costs a block of pictures (`overheads`: a pipeline of the
same stages that does nothing, so that all its time is Ray's), on the driver, which is one process
however large the cluster is, and in the workers. Then blocks go through a model of the cluster
(SimPy): driver, storage, decoding and scoring, each with its places and a queue, and as much in
flight as back-pressure lets in. One row for each number of workers: pictures/s, the share of the
time in which each part was busy, and which of them holds the others up.

A worker is a scoring process on `--cores` cores of its machine, with one more core that decodes.
Times vary from block to block as the measured ones did (log-normal). What it leaves out: nodes that
fail, other users of the storage, and networks between the nodes (blocks are scored where they were
decoded, as Ray prefers).
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Callable, Generator, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import simpy

PARTS = ("driver", "storage", "decoding", "scoring")
WORKERS = (1, 2, 4, 8, 16, 32, 64)


@dataclass(frozen=True, kw_only=True)
class Times:
    """What is known of a picture, a block and the machines.

    Attributes:
        decode, score: seconds of a picture, on the core that decodes and on those that score.
        worker, driver: seconds of Ray's own for each block, in the workers and on the driver.
        spread: standard deviation of a block's decoding and scoring, as a share of its mean.
        block: pictures. megabytes: of a picture as it is stored.
        bandwidth: megabytes/s that the storage gives, to all together. latency: seconds until a
            file's first byte. reading: files that one decoding process reads at a time.
    """

    decode: float
    score: float
    worker: float
    driver: float
    spread: float = 0.1
    block: int = 64
    megabytes: float = 0.05
    bandwidth: float = 1000.0
    latency: float = 0.0
    reading: int = 16

    def bounds(self, workers: int) -> dict[str, float]:
        """Pictures/s that each part can do at most, if the others were without limits."""
        each = {
            "driver": self.driver / self.block,
            "storage": self.megabytes / self.bandwidth,
            "decoding": self._decoding(self.block) / self.block / workers,
            "scoring": (self.score + self.worker / self.block) / workers,
        }
        return {part: 1 / seconds if seconds else math.inf for part, seconds in each.items()}

    def _decoding(self, pictures: int) -> float:
        return pictures * (self.decode + self.latency / self.reading)


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """Attributes: workers. pictures_per_second: from the first block to the last. busy: the share
    of that time in which each part was, of all its places. holds_up: the busiest part."""

    workers: int
    pictures_per_second: float
    busy: dict[str, float]
    holds_up: str


def simulate(times: Times, workers: int, *, blocks: int = 0, seed: int = 0) -> Outcome:
    """A job's way through a cluster.

    Args: blocks: of the job; 0 = 60 for each worker, at least 400.
    """
    blocks = blocks or max(400, 60 * workers)
    random = np.random.default_rng([seed, workers])
    env = simpy.Environment()
    places = {"driver": 1, "storage": 1, "decoding": workers, "scoring": workers}
    parts = {name: simpy.Resource(env, count) for name, count in places.items()}
    flight = simpy.Resource(env, 4 * workers)  # back-pressure: blocks between source and output
    used = dict.fromkeys(PARTS, 0.0)

    def varied(seconds: float) -> float:
        if not times.spread:
            return seconds
        sigma = math.sqrt(math.log1p(times.spread**2))
        return seconds * float(random.lognormal(-(sigma**2) / 2, sigma))

    def through(part: str, seconds: float) -> Generator[Any, Any, None]:
        with parts[part].request() as place:
            yield place
            used[part] += seconds
            yield env.timeout(seconds)

    def block() -> Generator[Any, Any, None]:
        with flight.request() as place:
            yield place
            yield from through("driver", times.driver / 2)
            yield from through("storage", times.block * times.megabytes / times.bandwidth)
            yield from through("decoding", varied(times._decoding(times.block)))
            yield from through("driver", times.driver / 2)
            yield from through("scoring", times.worker + varied(times.block * times.score))

    for _ in range(blocks):
        env.process(block())
    env.run()
    busy = {name: used[name] / places[name] / env.now for name in PARTS}
    return Outcome(
        workers=workers,
        pictures_per_second=blocks * times.block / env.now,
        busy=busy,
        holds_up=max(busy, key=busy.__getitem__),
    )

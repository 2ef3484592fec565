"""How scoring on a cluster scales from 1 to 64 workers, by simulation from measured times.

    python benchmarks/scaling.py --results benchmarks/results/scaling.jsonl

First it measures on this machine, in processor time of one core: what a picture costs to decode and
to score, by the very code of the workers, and what Ray itself costs a block of pictures, by a
pipeline of the same stages that does nothing, so that all its time is Ray's: on the driver (the
command and Ray's control service, one each however large the cluster is) and in the workers (with
the daemon of their machine), for each of the sizes that blocks have by the number of workers. Then
blocks go through a model of the cluster (SimPy): driver,
storage, decoding and scoring, each with its places and a queue, and as much in flight as
back-pressure lets in. One row for each number of workers: pictures/s, the share of the time in
which each part was busy, and which of them holds the others up.

A worker is a scoring process on a core, with one more core that decodes. Times vary from block to
block as the measured ones did (log-normal). What it leaves out: nodes that fail, other users of the
storage, and networks between the nodes (blocks are scored where they were decoded, as Ray prefers).
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import tempfile
import time
from collections.abc import Generator, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pyarrow as pa
import simpy
import torch
from scale import fitted, made

from blemish.bench.conditions import checkout, hardware
from blemish.scale import predict as scale
from blemish.scale.artifacts import shipped
from blemish.scale.cluster import joined
from blemish.scale.decoding import Decoding, watching
from blemish.scale.scorer import Scorer, Settings
from blemish.scale.sources import found, units

PARTS = ("driver", "storage", "decoding", "scoring")
WORKERS = (1, 2, 4, 8, 16, 32, 64)
MANY = 1_000_000  # pictures of the job that is simulated
OVERHEADS = 7200  # pictures of the pipeline that does nothing, for each size of its blocks


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


def service(artifact: Path, folder: Path) -> dict[str, Any]:
    """What a picture costs to decode and to score here, in seconds of a core; and of how many
    `blocks` are by the number of workers."""
    brought = shipped(artifact)
    how = Settings(threads=1)
    here = Scorer(brought, threads=1)
    rows = found(folder, None).rows
    size = _pictures_of_a_block(here, how, 1)
    parts = [part.combine_chunks() for part in units(rows, size)]
    decode = Decoding(here.loader.reading, None, size, watching())
    score = scale._Actor(brought, how)
    times: dict[str, list[float]] = {"decode": [], "score": []}
    for number, part in enumerate(parts):
        began = time.process_time()
        blocks = list(decode(part))
        decoded = time.process_time()
        for block in blocks:
            score(block)
        if number and len(part) == size:  # the first one warms up
            times["decode"].append((decoded - began) / size)
            times["score"].append((time.process_time() - decoded) / size)
    spread = max(float(np.std(each) / np.mean(each)) for each in times.values())
    bytes_ = [one.stat().st_size for one in folder.iterdir()]
    return {
        "spread": spread,
        "megabytes": float(np.mean(bytes_)) / 1e6,
        **{name: float(np.mean(each)) for name, each in times.items()},
        "decoded_bytes": blocks[0].nbytes // max(len(blocks[0]), 1),
        "blocks": {workers: _pictures_of_a_block(here, how, workers) for workers in WORKERS},
    }


def _pictures_of_a_block(scorer: Scorer, how: Settings, workers: int) -> int:
    return scale.unit_size(scorer.loader.reading, how.batch_size, MANY, workers)


class _Idle:
    """In the place of who scores."""

    def __call__(self, block: Any) -> Any:
        return block.select(["id"])


def overheads(blocks: int, pictures: int, each: int) -> dict[str, float]:
    """What Ray costs a block, in seconds of a core. Args: each: bytes of a decoded picture."""
    import ray
    import ray.data

    content = pa.array([b"\0" * each] * pictures)

    def idle(block: Any) -> Any:
        return block.append_column("pixels", content)

    ids = pa.table({"id": [str(number) for number in range(pictures)]})
    how = {"batch_format": "pyarrow", "batch_size": None}
    dataset = (
        ray.data.from_arrow([ids] * blocks)
        .map_batches(idle, num_cpus=1, memory=scale.decoding_bytes(1), **how)
        .map_batches(_Idle, compute=ray.data.ActorPoolStrategy(size=2), num_cpus=1, **how)
    )
    marks = []
    for number, _ in enumerate(dataset.iter_batches(batch_size=None, batch_format="pyarrow")):
        if number in (blocks // 5, blocks - 1):
            marks.append((number, _spent()))
    (first, before), (last, after) = marks
    found = {"driver": 0.0, "worker": 0.0}
    for process, (kind, seconds) in after.items():  # not what has ended: Ray ends who is idle
        found[kind] += (seconds - before.get(process, (kind, 0.0))[1]) / (last - first)
    return found


def _spent() -> dict[int, tuple[str, float]]:
    """Of each process: where it counts, and its seconds so far."""
    here = psutil.Process()
    found = {here.pid: ("driver", sum(here.cpu_times()[:2]))}
    for one in here.children(recursive=True):
        try:
            name, times = one.name(), one.cpu_times()
        except psutil.NoSuchProcess:
            continue
        found[one.pid] = ("driver" if "gcs" in name else "worker", times.user + times.system)
    return found


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--artifact", type=Path, help="[default: one that is fitted here]")
    parser.add_argument("--pictures", type=Path, help="a folder [default: small ones, made here]")
    parser.add_argument("--method", default="padim")
    parser.add_argument("--backbone", default="efficientnet_lite0")
    parser.add_argument("--side", type=int, default=224)
    parser.add_argument(
        "--bandwidth", type=float, default=1000.0, help="megabytes/s of the storage"
    )
    parser.add_argument("--latency", type=float, default=0.02, help="seconds to open a file")
    parser.add_argument("--results", type=Path)
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as scratch, joined():
        folder = options.pictures or made(Path(scratch) / "pictures", 1200)
        artifact = options.artifact or fitted(
            Path(scratch), options.method, options.backbone, options.side
        )
        told = service(artifact, folder)
        each, blocks = told.pop("decoded_bytes"), told.pop("blocks")
        rays = {size: overheads(OVERHEADS // size, size, each) for size in {*blocks.values()}}
        times = {
            workers: Times(
                **told,
                **{**rays[size], "block": size},
                **{"bandwidth": options.bandwidth, "latency": options.latency},
            )
            for workers, size in blocks.items()
        }
    commit, dirty = checkout()
    conditions = {
        **{"what": "scaling", "date": datetime.now(UTC).isoformat(timespec="seconds")},
        **{"commit": commit, "dirty": dirty, "device": hardware(torch.device("cpu"))},
        **{"method": options.method, "backbone": options.backbone, "image_size": options.side},
    }
    for workers in WORKERS:
        known = times[workers]
        outcome = simulate(known, workers)
        row = {**conditions, "times": asdict(known), **asdict(outcome)}
        without = simulate(replace(known, worker=0.0, driver=0.0), workers)
        row["without_ray"] = without.pictures_per_second
        print(json.dumps(row), flush=True)
        if options.results:
            with options.results.open("a", encoding="utf-8") as file:
                file.write(json.dumps(row) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())

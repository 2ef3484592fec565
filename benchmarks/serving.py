"""What the service sustains: many clients, for minutes, every answer compared with `predict`'s.

    python benchmarks/serving.py --clients 64 --minutes 10 --data screw \\
        --results benchmarks/results/serving.jsonl

A detector is fitted, `blemish serve` runs in a process of its own, and so many clients send one
picture after the other, each over its own connection. Between rounds the same pictures go through
`Detector.predict_many` in another process, with batches of the same size and as many threads, on
the same cores: what else these do then hits both. Without `--data` the pictures are made here.

A row has `throughput_ratio`, pictures a second of the service over those of predict, where the
clients take their share of the cores too; `processor_ratio`, the same by the processor time of the
two processes, which other work on the machine hardly moves; latencies in seconds, and `p95_ratio`,
the 95th percentile over the time that predict takes for a batch of the largest size; `wrong`:
answers that differ in digest, verdict or regions, or by more than `--tolerance` in the score, of
which `score_difference` is the most; `lost`: requests that ended in anything but an answer; and
the memory of the service over time. It ends with 1 where an answer was wrong or lost.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import json
import multiprocessing
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

import blemish
from blemish.bench.conditions import checkout, hardware
from blemish.bench.plan import data_sets
from blemish.cli.console import complain
from blemish.data import layouts
from blemish.types import NORMAL, Failure

_TICKS = os.sysconf("SC_CLK_TCK")
_EVERY = 2.0  # seconds from one look at the memory to the next


@dataclass
class Found:
    """What the clients got. Attributes: seconds: of each answer."""

    seconds: list[float] = field(default_factory=list)
    wrong: int = 0
    lost: int = 0
    difference: float = 0.0  # the largest of a score, relative


def made(count: int, side: int, seed: int) -> list[np.ndarray]:
    """Pictures of noise and shapes, each another."""
    random = np.random.default_rng(seed)
    found = []
    for _ in range(count):
        pixels = random.normal(128, 12, (side, side, 3))
        top, left = random.integers(0, side * 3 // 4, 2)
        pixels[top : top + side // 8, left : left + side // 5] += random.uniform(-90, 90)
        found.append(np.clip(pixels, 0, 255).astype(np.uint8))
    return found


def inputs(options: argparse.Namespace, folder: Path) -> tuple[list[Any], list[Path]]:
    """Good pictures to fit, and files to score."""
    if options.data:
        data = data_sets([options.data], root=None, scratch=folder)[options.data]
        samples = layouts.read(data)
        good = [one.path for one in samples.train() if one.label == NORMAL]
        return good[: options.train], [one.path for one in samples.test()][: options.pictures]
    paths = []
    for index, pixels in enumerate(made(options.pictures, options.side, 1)):
        paths.append(folder / f"{index:04d}.png")
        Image.fromarray(pixels).save(paths[-1])
    return made(options.train, options.side, 0), paths


def until(ends: float, contents: Sequence[bytes]) -> Iterator[bytes]:
    """Pictures over and over, until a time."""
    for content in itertools.cycle(contents):
        if time.perf_counter() > ends:
            return
        yield content


def predicting(pipe: Any, artifact: Path, paths: Sequence[Path], options: Any) -> None:
    """In a process of its own: told how many seconds, tells (pictures, seconds, CPU seconds)."""
    torch.set_num_threads(options.threads)
    detector = blemish.load(artifact, threads=options.threads)
    list(detector.predict_many(paths[:8]))
    contents = [path.read_bytes() for path in paths]
    while (wanted := pipe.recv()) > 0:
        began, cpu, count = time.perf_counter(), time.process_time(), 0
        going = until(began + wanted, contents)
        for one in detector.predict_many(going, batch_size=options.largest_batch):
            one.to_dict()  # with its regions, as a row of predict has them
            count += 1
        pipe.send((count, time.perf_counter() - began, time.process_time() - cpu))


@contextmanager
def service(artifact: Path, folder: Path, options: Any) -> Iterator[tuple[int, str, int]]:
    """A running `blemish serve`: its process, host and port."""
    command = [
        *(sys.executable, "-m", "blemish", "serve", str(artifact), "--port", "0", "--log", "json"),
        *("--threads", str(options.threads), "--largest-batch", str(options.largest_batch)),
        *("--queue", str(max(256, 4 * options.clients))),
        *("--store", str(folder / "store") if options.store else "none"),
    ]
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(command, stderr=log)
    try:
        while b'"event": "serving"' not in (text := (folder / "log").read_bytes()):
            if process.poll() is not None:
                raise RuntimeError(text.decode())
            time.sleep(0.1)
        told = next(json.loads(line) for line in text.splitlines() if b'"serving"' in line)
        host, _, port = told["url"].removeprefix("http://").rpartition(":")
        yield process.pid, host, int(port)
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 128 + signal.SIGTERM
    finally:
        process.kill()
        process.wait()


class Client:
    """Sends pictures over a connection, and compares what is answered."""

    def __init__(self, found: Found, known: Sequence[dict[str, Any]], tolerance: float) -> None:
        self._found, self._known, self._tolerance = found, known, tolerance

    async def run(
        self, host: str, port: int, bodies: Sequence[bytes], start: int, ends: float
    ) -> None:
        reader, writer = await asyncio.open_connection(host, port)
        index = start
        while time.perf_counter() < ends:
            body = bodies[index % len(bodies)]
            began = time.perf_counter()
            writer.write(
                b"POST /v1/models/part/predict HTTP/1.1\r\nHost: localhost\r\n"
                b"Content-Type: application/octet-stream\r\n"
                b"Content-Length: %d\r\n\r\n" % len(body) + body
            )
            try:
                head = await reader.readuntil(b"\r\n\r\n")
                fields = [line.partition(b":") for line in head.lower().split(b"\r\n")]
                length = next(int(value) for name, _, value in fields if name == b"content-length")
                answer = await reader.readexactly(length)
            except (OSError, EOFError):
                self._found.lost += 1
                return
            self._found.seconds.append(time.perf_counter() - began)
            if not head.startswith(b"HTTP/1.1 200"):
                self._found.lost += 1
            else:
                self._judge(json.loads(answer)["predictions"][0], index % len(bodies))
            index += 7
        writer.close()

    def _judge(self, row: dict[str, Any], index: int) -> None:
        known = self._known[index]
        difference = abs(row["score"] - known["score"]) / max(abs(known["score"]), 1e-9)
        self._found.difference = max(self._found.difference, difference)
        same = all(row[key] == known[key] for key in ("digest", "label", "height", "width"))
        same = same and len(row["regions"] or ()) == len(known["regions"] or ())
        self._found.wrong += not (same and difference <= self._tolerance)


async def asked(
    host: str, port: int, bodies: Sequence[bytes], clients: Sequence[Client], seconds: float
) -> None:
    ends = time.perf_counter() + seconds
    await asyncio.gather(
        *(one.run(host, port, bodies, at * 3, ends) for at, one in enumerate(clients))
    )


def memory_mib(pid: int) -> float:
    """What a process holds of main memory."""
    text = Path(f"/proc/{pid}/status").read_text()
    return int(text.partition("VmRSS:")[2].split()[0]) / 1024


def processor_seconds(pid: int) -> float:
    """What a process has computed so far."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / _TICKS


async def round_of(
    place: tuple[int, str, int], bodies: Sequence[bytes], clients: Sequence[Client], seconds: float,
    memory: list[float],
) -> tuple[float, float]:  # fmt: skip
    """Clients ask for a while; gives seconds, and processor seconds of the service."""
    pid, host, port = place
    began, cpu = time.perf_counter(), processor_seconds(pid)
    asking = asyncio.create_task(asked(host, port, bodies, clients, seconds))
    while not asking.done():
        await asyncio.wait((asking,), timeout=_EVERY)
        memory.append(memory_mib(pid))
    await asking
    return time.perf_counter() - began, processor_seconds(pid) - cpu


def measured(options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """The row, without its conditions."""
    good, paths = inputs(options, folder)
    settings = {"backbone": options.backbone, "image_size": options.image_size}
    detector = blemish.fit(options.method, good, precision="fp32", **settings)
    artifact = detector.save(folder / "part.blemish")
    found = [*detector.predict_many(paths)]
    assert not any(isinstance(one, Failure) for one in found)
    known, bodies = [one.to_dict() for one in found], [path.read_bytes() for path in paths]
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    given = (theirs, artifact, paths, options)
    predictor = context.Process(target=predicting, args=given, daemon=True)
    predictor.start()
    total, memory = Found(), []
    clients = [Client(total, known, options.tolerance) for _ in range(options.clients)]
    predicted, served = np.zeros(3), np.zeros(3)
    rounds = max(1, round(options.minutes * 60 / (options.round * 1.5)))
    ratios = []
    with service(artifact, folder, options) as place:
        asyncio.run(asked(*place[1:], bodies, clients, 3.0))  # not counted
        total.seconds.clear()
        for number in range(rounds):
            ours.send(options.round / 2)
            one = np.array(ours.recv())
            count = len(total.seconds)
            took = asyncio.run(round_of(place, bodies, clients, options.round, memory))
            two = np.array([len(total.seconds) - count, *took])
            predicted, served = predicted + one, served + two
            ratios.append(float((two[0] / two[1]) / (one[0] / one[1])))
            complain(f"round {number + 1} of {rounds}: {ratios[-1]:.3f} of predict's throughput")
        ours.send(0)
    predictor.join(30)
    batch = options.largest_batch * predicted[1] / predicted[0]
    p50, p95 = np.percentile(total.seconds, [50, 95])
    third = max(1, len(memory) // 3)
    return {
        **{"method": options.method, **settings, "data": options.data, "store": options.store},
        **{"clients": options.clients, "largest_batch": options.largest_batch},
        **{"threads": options.threads, "answers": len(total.seconds), "seconds": served[1]},
        **{"wrong": total.wrong, "lost": total.lost, "score_difference": total.difference},
        "images_per_second": served[0] / served[1],
        "predict_images_per_second": predicted[0] / predicted[1],
        "throughput_ratio": (served[0] / served[1]) / (predicted[0] / predicted[1]),
        "throughput_ratios": ratios,
        "processor_ratio": (predicted[2] / predicted[0]) / (served[2] / served[0]),
        **{"p50_seconds": p50, "p95_seconds": p95, "batch_seconds": batch},
        "p95_ratio": p95 / batch,
        "memory_mib": {
            "first_third": float(np.mean(memory[:third])),
            "last_third": float(np.mean(memory[-third:])),
            "most": max(memory),
            "over_time": [round(one) for one in memory[:: max(1, len(memory) // 40)]],
        },
    }


def parsed(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--method", default="patchcore")
    parser.add_argument("--backbone", default="focus_vits14")
    parser.add_argument("--image-size", type=int, default=224)
    parser.add_argument("--data", default=None, help="a data set, as `blemish bench` names it")
    parser.add_argument("--train", type=int, default=24)
    parser.add_argument("--pictures", type=int, default=64)
    parser.add_argument("--side", type=int, default=512, help="of pictures that are made")
    parser.add_argument("--clients", type=int, default=64)
    parser.add_argument("--largest-batch", type=int, default=32)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--round", type=float, default=20, help="seconds")
    parser.add_argument("--tolerance", type=float, default=1e-4, help="of a score, relative")
    parser.add_argument("--store", action="store_true", help="everything is kept, too")
    parser.add_argument("--results", type=Path, required=True)
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> int:
    options = parsed(arguments)
    torch.set_num_threads(options.threads)
    commit, dirty = checkout()
    with tempfile.TemporaryDirectory() as folder:
        row = measured(options, Path(folder))
    conditions = {
        **{"date": datetime.now(UTC).isoformat(timespec="seconds"), "commit": commit},
        **{"dirty": dirty, "device": hardware(torch.device("cpu"))},
    }
    options.results.parent.mkdir(parents=True, exist_ok=True)
    with options.results.open("a", encoding="utf-8") as file:
        file.write(json.dumps({**conditions, **row}) + "\n")
    print(json.dumps(row, indent=2))
    return 1 if row["wrong"] or row["lost"] else 0


if __name__ == "__main__":
    sys.exit(main())

"""Steps a second of a training, and how near they come to their products of matrices alone.

    python benchmarks/steps.py --sizes 224 448 --precisions bf16 fp32 --threads 1 2 \\
        [--beside CHECKOUT] --output steps.jsonl

AGPNet learns pictures of noise, from features that are kept, as `fit` does it. One JSON line a
case. `flops` are those of the products of one step, forward and backward (a multiply-add counts 2).
`products_ms` is what these take alone, each in its own shapes, precision and layout, warm, the best
of several: no step is faster with these kernels. `share` is that divided by a step's time.

Times are of the processor, all threads together, so other work on the machine shows little;
`steps_per_second` is by the clock. With `--beside` two checkouts take turns of a few steps, each
in a process of its own, and `ratio` is the median of their times' ratios, above 1 where this one is
faster. Needs the offline extra and the CPU alone.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from itertools import product
from pathlib import Path
from typing import Any

HERE = Path(__file__).parents[1]
BACKBONE, PICTURES = "focus_vits14", 8
WARM_UP, LOOKED_AT = 3, 4  # steps that are not timed; the one whose products are noted
ROUNDS, BEST_OF = 12, 7
TURN = 3  # steps of a turn; the first, which finds nothing in the processor's caches, is not timed
PRODUCTS = ("mm", "addmm", "bmm", "baddbmm")


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--sizes", type=int, nargs="+", default=[224, 448])
    parser.add_argument("--precisions", nargs="+", default=["bf16", "fp32"])
    parser.add_argument("--threads", type=int, nargs="+", default=[1])
    parser.add_argument("--rounds", type=int, default=ROUNDS, help="turns that are timed")
    parser.add_argument("--backbone", default=BACKBONE)
    parser.add_argument("--weights", help="of the backbone, as `fit` takes them")
    parser.add_argument("--beside", type=Path, help="another checkout of blemish")
    parser.add_argument("--output", type=Path)
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.worker:
        work(json.loads(options.worker))
        return
    for size, precision, threads in product(options.sizes, options.precisions, options.threads):
        case = {"size": size, "precision": precision, "threads": threads}
        case |= {"backbone": options.backbone, "weights": options.weights}
        row = measured(case, options.beside, options.rounds)
        print(json.dumps(row), flush=True)
        if options.output:
            options.output.parent.mkdir(parents=True, exist_ok=True)
            with options.output.open("a", encoding="utf-8") as file:
                file.write(json.dumps(row) + "\n")


def measured(case: dict[str, Any], beside: Path | None, rounds: int) -> dict[str, Any]:
    """The row of one case."""
    places = [HERE, *([beside] if beside else [])]
    workers = [Worker(place, {**case, "rounds": rounds}) for place in places]
    try:
        about = [worker.read() for worker in workers]
        times = list(
            zip(*([worker.turn() for worker in workers] for _ in range(rounds)), strict=True)
        )
        for worker in workers:
            worker.end()
    finally:
        for worker in workers:
            worker.stop()
    of_processor = [statistics.median(one for one, _ in own) for own in times]
    own, middle = about[0], of_processor[0]
    row = {
        "what": "steps", "method": "agpnet", "backbone": case["backbone"],
        "size": f"{case['size']}×{case['size']}", "precision": case["precision"],
        "batch": own["batch"], "flops": own["flops"],
        "steps_per_second": round(1 / statistics.median(clock for _, clock in times[0]), 3),
        "processor_ms": round(1000 * middle, 2),
        "products_ms": round(1000 * own["products"], 2),
        "share": round(own["products"] / middle, 3),
        "gflops_per_second": round(own["flops"] / middle / 1e9, 1),
    }  # fmt: skip
    if beside:
        ratios = [other / this for (this, _), (other, _) in zip(*times, strict=True)]
        row |= {
            "ratio": round(statistics.median(ratios), 3),
            "beside_commit": about[1]["commit"],
            "beside_dirty": about[1]["dirty"],
            "beside_processor_ms": round(1000 * of_processor[1], 2),
            "beside_share": round(own["products"] / of_processor[1], 3),
        }
    return row | {key: own[key] for key in ("commit", "dirty", "device")}


class Worker:
    """A training in a process of its own, which takes its turns when it is told to."""

    def __init__(self, place: Path, case: dict[str, Any]) -> None:
        environment = {**os.environ, "PYTHONPATH": str(place / "src")}
        environment["OMP_NUM_THREADS"] = str(case["threads"])
        self.process = subprocess.Popen(
            [sys.executable, __file__, "--worker", json.dumps(case)],
            env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )  # fmt: skip

    def read(self) -> Any:
        assert self.process.stdout
        line = self.process.stdout.readline()
        if not line:
            sys.exit(f"{self.process.args!r}: ended early")
        return json.loads(line)

    def turn(self) -> tuple[float, float]:
        """Seconds of a step, of the processor and of the clock."""
        assert self.process.stdin
        print(file=self.process.stdin, flush=True)
        processor, clock = self.read()
        return processor, clock

    def end(self) -> None:
        """Lets it finish. Ends the script where it failed."""
        assert self.process.stdin
        self.process.stdin.close()
        if self.process.wait():
            sys.exit(f"{self.process.args!r}: failed")

    def stop(self) -> None:
        """Whatever it is doing."""
        self.process.kill()
        with self.process:  # which closes its pipes
            pass


def work(case: dict[str, Any]) -> None:
    """One training: says what a step's products are, then waits for a line before each turn."""
    import numpy as np
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    import blemish
    from blemish.bench import conditions
    from blemish.methods.agpnet import AGPNetConfig

    torch.set_num_threads(case["threads"])
    noise, size = np.random.default_rng(0), case["size"]
    pictures = [noise.integers(0, 256, (size, size, 3), dtype=np.uint8) for _ in range(PICTURES)]
    counter, noted = FlopCounterMode(display=False), recorder()
    begun = [0.0, 0.0]

    def turn(stage: str, done: int, total: int) -> None:
        if not stage.startswith("training") or not done:
            return
        spent = [time.process_time() - begun[0], time.perf_counter() - begun[1]]
        if done == WARM_UP:
            counter.__enter__(), noted.__enter__()
        elif done == LOOKED_AT:
            noted.__exit__(None, None, None), counter.__exit__(None, None, None)
            commit, dirty = conditions.checkout()
            about = {"flops": int(counter.get_total_flops()), "products": alone(noted.products)}
            about |= {"commit": commit, "dirty": dirty, "batch": AGPNetConfig().train_batch_size}
            print(
                json.dumps({**about, "device": conditions.hardware(torch.device("cpu"))}),
                flush=True,
            )
        step = (done - LOOKED_AT) % TURN  # of a turn; 0: its last
        if done > LOOKED_AT and step == 0:
            print(json.dumps([each / (TURN - 1) for each in spent]), flush=True)
        if LOOKED_AT <= done < total and step == 0:
            sys.stdin.readline()
        if done <= LOOKED_AT or step == 1:
            begun[:] = time.process_time(), time.perf_counter()

    more = {"weights": case["weights"]} if case["weights"] else {}
    blemish.fit(
        "agpnet", pictures, backbone=case["backbone"], image_size=size, precision=case["precision"],
        device="cpu", epochs=1, min_steps=LOOKED_AT + TURN * case["rounds"], calibration_fraction=0,
        progress=turn, **more,
    )  # fmt: skip


def recorder() -> Any:
    """A dispatch mode that counts the products of matrices that are computed while it is open."""
    import torch
    from torch.utils._python_dispatch import TorchDispatchMode

    class Recorder(TorchDispatchMode):
        def __init__(self) -> None:
            super().__init__()
            self.products: Counter[Any] = Counter()

        def __torch_dispatch__(
            self, func: Any, types: Any, args: Any = (), kwargs: Any = None
        ) -> Any:
            if func.overloadpacket.__name__ in PRODUCTS:
                tensors = [each for each in args if isinstance(each, torch.Tensor)]
                forms = ((tuple(t.shape), t.stride(), t.dtype) for t in tensors)
                self.products[func.overloadpacket, tuple(forms)] += 1
            return func(*args, **(kwargs or {}))

    return Recorder()


def alone(products: Counter[Any]) -> float:
    """Seconds of the processor that they take, one after the other, with nothing between."""
    import torch

    total = 0.0
    for (operation, forms), count in products.items():
        given = [torch.empty_strided(*form[:2], dtype=form[2]).normal_() for form in forms]
        total += count * best(lambda: operation(*given))  # noqa: B023  # it is called at once
    return total


def best(call: Callable[[], object]) -> float:
    call()
    seconds = []
    for _ in range(BEST_OF):
        begun = time.process_time()
        for _ in range(3):
            call()
        seconds.append((time.process_time() - begun) / 3)
    return min(seconds)


if __name__ == "__main__":
    main()

"""Methods × data sets × seeds -> one row of measurements a run, appended to a JSONL file.

Each run has a process of its own (`python -m blemish.bench.run --run JSON`), so that peak memory is its own and a
crash ends only it; several may run at once. A row is written when its run is done; a stopped bench goes on from there.

How it is measured: a detector is fitted on all normal training pictures (no threshold, so nothing is held out) and
judged on the test split; maps and masks are compared at 256×256, or at the pictures' own size where a suite says so of
its paper (`compared_at`). `seconds_to_fit` includes loading the backbone. `images_per_second` is over one pass of all
test pictures, decoding included and metrics excluded; `cores_used` is processor time by wall time of that pass, and
shows whether the machine was shared. Peak memory is that of the process up to the last prediction; metrics, which need
more on large sets, are excluded here too. On data with several categories one detector learns them all, and the row's
metrics are the means over the categories, each measured by itself; only the best F1 is that of all pictures together.
`efficiency` (see `blemish.bench.costs`) is taken last; `differs` says where the pictures are not the published ones.

Where shifts or adaptation are asked for, the same detector then judges the test pictures once more under every shift
(`blemish.data.shifts`) and as they are, without adapting and in every mode. The row's `shifted` holds shift -> mode ->
metrics, each "none" first, and `adapted`: the share of pictures in whose scores adaptation took part.
"""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
import time
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import closing, suppress
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch

from blemish import config as configs
from blemish.bench import costs as efficiency
from blemish.bench.plan import Run, categories, cores, shared_threads
from blemish.bench.results import (
    FAILED,
    NEITHER,
    OK,
    SCHEMA,
    Row,
    append,
    identity,
    parse,
    read_rows,
    ready,
)
from blemish.compute import pick_device, pick_precision, precision_name
from blemish.data.folder import is_file
from blemish.data.layouts import official
from blemish.data.layouts import recognition as layouts
from blemish.data.shifts import SHIFTS
from blemish.data.stream import load_picture
from blemish.detector.evaluate import evaluate
from blemish.detector.fit import fit
from blemish.detector.predict import Detector
from blemish.errors import BlemishError, ConfigError, DataError
from blemish.files import cannot_write, locked
from blemish.images import Picture
from blemish.methods.adaptation import Mode
from blemish.types import ANOMALOUS, NORMAL, ORIGINAL, Failure, Prediction, Progress, Sample, silent

METRICS = ("image_auroc", "image_ap", "best_f1", "pixel_auroc", "aupro")
SHIFTED_METRICS = ("image_auroc", "pixel_auroc", "aupro")


def run(
    runs: Iterable[Run],
    results: str | Path,
    *,
    device: str = "auto",
    precision: str = "auto",
    threads: int | None = None,
    jobs: int = 1,
    keep: str | Path | None = None,
    progress: Progress = silent,
) -> list[Row]:
    """Measure what `results` does not hold yet, on this kind of device in this precision; one row a run is appended.

    A run that fails leaves a row with `status` "failed" and its `error`, does not keep the others from running, and is
    tried again next time. After Ctrl-C the rows so far are there, and no run is at work any more.

    Args:
        results: a JSONL file; made, with its folder, where there is none.
        threads: of torch on the CPU; None = torch's choice, or an even share of the cores where there are several
            jobs. On a CPU they change scores in the last digits; the same number gives the same metrics again.
        jobs: how many runs are at work at once. Several GPUs are shared out among them where `device` does not name
            one by number.
        keep: a folder that gets the artifact of each run that is made now, called METHOD-DATA-KEY.blemish (eight signs
            of its key); made where there is none; None = they are thrown away.
        progress: called with (what begins, runs done, runs in all).
    Returns: a row for each run, new or from the file, in their order.
    Raises: ConfigError for a run whose config is wrong, before any run, or for less than one job; DataError as
        `read_rows`; OutputError when the file or the folder cannot be written.
    """
    runs, results = list(runs), Path(results)
    if jobs < 1:
        raise ConfigError(f"jobs: at least 1 is needed, got {jobs}")
    machine = _machine(device, precision)
    wanted = {one.key: one for one in runs}  # a wrong config ends the bench here, not after hours
    with locked(results):
        rows = _done(wanted, results, machine)
        ready(results)  # only now: another file than one of results stays as it is
        if keep is not None:
            try:
                Path(keep).mkdir(parents=True, exist_ok=True)
            except OSError as error:
                raise cannot_write(keep, error) from error
        todo = [one for key, one in wanted.items() if key not in rows]
        threads = shared_threads(threads, jobs)
        gpus = _gpus(device) if jobs > 1 else []

        def launch(one: Run, slot: int, children: set[subprocess.Popen[str]]) -> Row:
            order = {
                "device": device,
                "precision": precision,
                "threads": threads,
                "artifact": _artifact(one, keep),
            }
            return _launch(one, order, gpus[slot % len(gpus)] if gpus else None, children)

        def begin(one: Run) -> None:
            progress(str(one), len(rows), len(wanted))

        with closing(_at_once(todo, jobs, launch, begin)) as measured:
            for one, row in measured:
                append(results, row)
                rows[one.key] = row
    progress("done", len(wanted), len(wanted))
    return [rows[one.key] for one in runs]


def _artifact(one: Run, keep: str | Path | None) -> str | None:
    return (
        None if keep is None else str(Path(keep) / f"{one.method}-{one.data}-{one.key[:8]}.blemish")
    )


def _at_once(
    todo: Iterable[Run],
    jobs: int,
    launch: Callable[[Run, int, set[subprocess.Popen[str]]], Row],
    begin: Callable[[Run], None],
) -> Generator[tuple[Run, Row], None, None]:
    """The runs with their rows as they come, `jobs` at a time; when it is closed, the processes at work are ended.

    Args:
        launch: gives the row of a run in one of the slots 0 … jobs - 1, and keeps its process among those given.
        begin: called before a run is launched.
    """
    waiting, free = deque(todo), list(reversed(range(jobs)))
    working: dict[Future[Row], tuple[Run, int]] = {}
    children: set[subprocess.Popen[str]] = set()
    with ThreadPoolExecutor(jobs) as pool:
        try:
            while waiting or working:
                while waiting and free:
                    one, slot = waiting.popleft(), free.pop()
                    begin(one)
                    working[pool.submit(launch, one, slot, children)] = one, slot
                for future in wait(working, return_when=FIRST_COMPLETED).done:
                    one, slot = working.pop(future)
                    free.append(slot)
                    yield one, future.result()
        finally:
            while (
                working and wait(working, timeout=0.05).not_done
            ):  # again: a process may just be starting
                for child in list(children):
                    child.kill()


def _gpus(device: str) -> list[str]:
    """What CUDA_VISIBLE_DEVICES calls the GPUs that jobs are shared out to; empty where there is nothing to share."""
    count = torch.cuda.device_count()
    if str(pick_device(device)) != "cuda" or count < 2:
        return []
    named = [name for name in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if name]
    return (named or list(map(str, range(count))))[:count]


def missing(
    runs: Iterable[Run], results: str | Path, *, device: str = "auto", precision: str = "auto"
) -> list[Run]:
    """Those that `run` would measure, as `results` (which need not exist) does not hold them. Raises: as `run`."""
    wanted = {one.key: one for one in runs}
    done = _done(wanted, Path(results), _machine(device, precision))
    return [one for key, one in wanted.items() if key not in done]


def _machine(device: str, precision: str) -> tuple[str, str]:
    torch_device = pick_device(device)
    return torch_device.type, precision_name(pick_precision(precision, torch_device))


def _done(wanted: Mapping[str, Run], results: Path, machine: tuple[str, str]) -> dict[str, Row]:
    """Key -> the newest good row of the run that was measured on such a machine."""
    rows = read_rows(results) if is_file(results) else []
    good = [row for row in rows if row["status"] == OK and row["key"] in wanted]
    return {
        row["key"]: row
        for row in good
        if identity(row)[1:] == machine and _of(wanted[row["key"]], row)
    }


def _of(one: Run, row: Row) -> bool:
    """Whether the row is of the categories that are there now: one model of some of a set is not one of all."""
    there = categories(one)
    return not there or sorted(row.get("categories", there)) == sorted(there)


def measure(
    one: Run,
    *,
    device: str = "auto",
    precision: str = "auto",
    threads: int | None = None,
    artifact: str | Path | None = None,
) -> Row:
    """The row of a run, made in this process. Metrics are fractions between 0 and 1.

    Args: artifact: where the detector is kept; None = nowhere.
    Raises: DataError for a data set without both splits, or a public one with others in its folder; whatever
        `blemish.fit` and `blemish.evaluate` raise.
    """
    heading = _heading(one, OK)  # before the work, during which the checkout may move on
    if threads is not None:
        torch.set_num_threads(threads)
    dataset = layouts.read(one.path)
    train = [sample for sample in dataset.train() if sample.label == NORMAL]
    test = dataset.test()
    if not train or not test:
        raise DataError(
            f"{one.path}: a benchmark needs a train and a test split; {dataset.description}"
        )
    if (there := categories(one)) and set(dataset.categories) != set(there):
        raise DataError(
            f"{one.path}: holds {', '.join(there)} of {one.data}, but is read as {', '.join(dataset.categories)}; "
            "let that set alone lie there, each category as `blemish data layouts` shows it"
        )
    detector = fit(
        one.method,
        one.path,
        config=one.config,
        weights=one.weights,
        shots=one.shots,
        anomalies=None if one.anomaly_count is None else one.path,
        anomaly_count=one.anomaly_count,
        anomaly_type=one.anomaly_type,
        time_budget=one.time_budget,
        seed=one.seed,
        calibration_fraction=0,
        device=device,
        precision=precision,
    )
    if artifact is not None:
        detector.save(artifact)
    scorer = _Stopwatch(detector)
    evaluation = evaluate(detector, dataset, resolution=one.compared_at, predict=scorer)
    costs = _efficiency(detector, test)
    manifest = detector.manifest
    pretraining, training = manifest.get("pretraining"), manifest.get("training")
    return {
        **heading,
        "blemish": manifest["blemish"],
        "settings": manifest["config"],
        "category": ", ".join(dataset.categories),
        "categories": list(dataset.categories),
        "multi_class": bool(evaluation.category_mean),
        "split": {
            "train": len(train),
            "test_normal": sum(sample.label == NORMAL for sample in test),
            "test_anomalous": sum(sample.label == ANOMALOUS for sample in test),
        },
        "counts": {"fitted": len(manifest["data"]["fitted"]), **evaluation.counts},
        "differs": list(official.differences(dataset)),
        "fingerprint": manifest["data"]["fingerprint"],
        "backbone": manifest["config"]["backbone"],
        "weights": (pretraining or manifest["backbone"])[
            "weights"
        ],  # what was there before; each seed makes others
        "resolution": [detector.preprocessing.height, detector.preprocessing.width],
        "schedule": _schedule(pretraining, training),
        **({} if pretraining is None else {"pretraining": pretraining}),
        "training": training,
        **{name: getattr(evaluation, name) for name in METRICS},
        **evaluation.category_mean,
        "votes": evaluation.votes,
        "by_defect": {name: dict(values) for name, values in evaluation.by_defect.items()},
        "pixel_auroc_anomalous": evaluation.pixel_auroc_anomalous,
        "by_group": {name: dict(values) for name, values in evaluation.by_group.items()},
        "by_category": {name: dict(values) for name, values in evaluation.by_category.items()},
        "seconds_to_fit": manifest["seconds"],
        "images_per_second": round(scorer.scored / scorer.seconds, 3),
        "cores_used": round(scorer.cores_used, 2),
        "peak_memory_mib": scorer.peak_memory_mib,
        "peak_gpu_memory_mib": scorer.peak_gpu_memory_mib,
        "efficiency": costs,
        "device": hardware(detector.device),
        "precision": manifest["precision"],
        "torch": manifest["versions"]["torch"],
        "python": manifest["versions"]["python"],
        **({"shifted": _under_shifts(one, detector, dataset)} if one.shifts or one.adapt else {}),
    }


def _efficiency(detector: Detector, samples: Iterable[Sample]) -> dict[str, Any]:
    """Of the first picture that can be read. Where it cannot be measured the row says why, and loses nothing else."""
    window = detector.preprocessing.decode_window()
    pictures = (load_picture(sample.path, index, window) for index, sample in enumerate(samples))
    picture = next((picture for picture in pictures if isinstance(picture, Picture)), None)
    if picture is None:
        return {"error": "none of the test pictures can be read"}
    try:
        return dict(efficiency.measure(detector, picture))
    except (
        Exception
    ) as error:  # out of memory, an operation that is not supported, whatever counters fail on
        return {"error": f"{type(error).__name__}: {error}"}


def _under_shifts(
    one: Run, detector: Detector, dataset: layouts.Dataset
) -> dict[str, dict[str, dict[str, Any]]]:
    """Shift -> mode -> metrics."""
    modes = [None, *(cast("Mode", mode) for mode in one.adapt)]
    return {
        shift: {
            mode or NEITHER: _shifted_metrics(detector, dataset, alter, mode, one.compared_at)
            for mode in modes
        }
        for shift, alter in [(NEITHER, None), *((name, SHIFTS[name]) for name in one.shifts)]
    }


def _shifted_metrics(
    detector: Detector,
    dataset: layouts.Dataset,
    alter: Callable[[np.ndarray], np.ndarray] | None,
    mode: Mode | None,
    compared_at: int | None,
) -> dict[str, Any]:
    adapted: list[bool] = []
    evaluation = evaluate(
        detector,
        dataset,
        resolution=compared_at,
        adapt=mode,
        predict=partial(detector.predict_many, alter=alter),
        on_prediction=lambda _, prediction: adapted.append(prediction.adapted),
    )
    metrics = {
        name: evaluation.category_mean.get(name, getattr(evaluation, name))
        for name in SHIFTED_METRICS
    }
    by_group = {name: dict(values) for name, values in evaluation.by_group.items()}
    return {**metrics, "by_group": by_group, "adapted": sum(adapted) / len(adapted)}


def _schedule(pretraining: Mapping[str, Any] | None, training: Mapping[str, Any] | None) -> str:
    parts = [
        *([] if pretraining is None else [("pre-training: ", pretraining["training"])]),
        *([] if training is None else [("", training)]),
    ]
    return "; ".join(
        f"{name}{made['epochs']:.4g} epochs, {made['steps']:,} steps in {made['seconds'] / 60:.1f} min"
        for name, made in parts
    )


class _Stopwatch:
    """Predicts as a detector does; it scores all before it hands out anything, and keeps time and memory.

    So neither includes metrics, and no picture is decoded unobserved while a metric is computed. All maps are held for
    that: 50 kB each at 448².
    """

    def __init__(self, detector: Detector) -> None:
        self._detector = detector

    def __call__(
        self, samples: Sequence[Sample], *, adapt: Mode | None
    ) -> Iterator[Prediction | Failure]:
        started, worked = time.perf_counter(), time.process_time()
        results = list(self._detector.predict_many(samples, adapt=adapt))
        self.seconds = time.perf_counter() - started
        self.cores_used = (time.process_time() - worked) / self.seconds
        self.scored = sum(isinstance(result, Prediction) for result in results)
        self.peak_memory_mib = peak_memory_mib()
        device = self._detector.device
        self.peak_gpu_memory_mib = (
            round(torch.cuda.max_memory_allocated(device) / 2**20, 1)
            if device.type == "cuda"
            else None
        )
        return iter(results)


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


def hardware(device: torch.device) -> dict[str, Any]:
    cpu = _cpu_model()
    return {
        "type": device.type,
        "name": torch.cuda.get_device_name(device) if device.type == "cuda" else cpu,
        "cpu": cpu,
        "cores": cores(),
        "threads": torch.get_num_threads(),
    }


def _cpu_model() -> str:
    with suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


def _heading(one: Run, status: str) -> Row:
    """What every row has, of a failed run too."""
    commit, dirty = checkout()
    return {
        "schema": SCHEMA,
        "status": status,
        "key": one.key,
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "commit": commit,
        "dirty": dirty,
        "method": one.method,
        "recipe": one.recipe,
        "label": one.label,
        "settings": configs.to_dict(one.config),
        "changed": dict(one.settings),
        "shots": one.shots,
        "anomaly_count": one.anomaly_count,
        "anomaly_type": one.anomaly_type,
        "time_budget": one.time_budget,
        "shifts": list(one.shifts),
        "adapt": list(one.adapt),
        "compared_at": one.compared_at or ORIGINAL,
        "data": one.data,
        "seed": one.seed,
    }


def checkout() -> tuple[str | None, bool | None]:
    """The commit of the checkout that blemish runs from, and whether the package differs from it; None outside one."""
    package = Path(__file__).parents[1]

    def git(*arguments: str) -> str:
        command = ["git", "--no-optional-locks", "-C", str(package), *arguments]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()

    try:
        git(
            "ls-files", "--error-unmatch", "__init__.py"
        )  # fails where blemish is installed inside another's checkout
        return git("rev-parse", "HEAD"), bool(git("status", "--porcelain", "--", "."))
    except (OSError, subprocess.CalledProcessError):
        return None, None


def _launch(
    one: Run,
    order: Mapping[str, Any],
    gpu: str | None,
    children: set[subprocess.Popen[str]],
) -> Row:
    """The row of a run in a process of its own, whatever becomes of that.

    Args:
        order: what `measure` gets besides.
        gpu: the only one that it may see; None = all.
        children: holds the process as long as it is at work.
    """
    order = {"run": one.to_dict(), **order}
    environment = {**os.environ, **({} if gpu is None else {"CUDA_VISIBLE_DEVICES": gpu})}
    start = partial(
        subprocess.Popen,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        errors="replace",
    )
    try:
        with start(_command(json.dumps(order)), env=environment) as child:
            children.add(child)
            try:
                printed, said = child.communicate()
            finally:
                children.remove(child)
    except OSError as error:
        return {
            **_heading(one, FAILED),
            "error": f"its process could not be started ({error.strerror or error})",
        }
    row = parse((printed.splitlines() or [""])[-1])  # libraries may have printed before it
    return row or {**_heading(one, FAILED), "error": _lastwords(child.returncode, said)}


def _command(order: str) -> list[str]:
    return [sys.executable, "-m", "blemish.bench.run", "--run", order]


def _lastwords(code: int, stderr: str) -> str:
    if code < 0:
        return f"the process was ended by signal {-code}" + (
            " (out of memory?)" if code == -9 else ""
        )
    return f"the process ended with status {code}: {(stderr.strip().splitlines() or ['it said nothing'])[-1]}"


def _worker(arguments: Sequence[str]) -> None:
    """`--run JSON`: measure one run and print its row as the last line."""
    _, order = arguments
    values = json.loads(order)
    one = Run.from_dict(values.pop("run"))
    try:
        row = measure(one, **values)
    except BlemishError as error:
        row = {**_heading(one, FAILED), "error": str(error)}
    except Exception as error:
        row = {**_heading(one, FAILED), "error": f"{type(error).__name__}: {error}"}
    print(json.dumps(row, allow_nan=False))


if __name__ == "__main__":
    _worker(sys.argv[1:])

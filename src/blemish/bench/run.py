"""Methods × data sets × seeds -> one row of measurements a run, appended to a JSONL file.

Each run has a process of its own (`python -m blemish.bench.run --run JSON`), so that peak memory is
its own and a crash ends only it; several may run at once. A row is written when its run is done; a
stopped bench goes on from there.

How it is measured: a detector is fitted on all normal training pictures (no threshold, so nothing
is held out, unless a rate of false alarms was asked for: `calibration` of a row) and judged on the
test split; maps and masks are compared at 256×256, or at the pictures' own size where a suite says
so of its paper (`compared_at`). `seconds_to_fit` includes loading the backbone and calibrating.
`images_per_second` is over one pass of all test pictures, decoding included and metrics excluded;
`cores_used` is processor time by wall time of that pass, and shows whether the machine was shared.
Peak memory is that of the process up to the last prediction. On data with
several categories one detector learns them all, and the row's metrics are the means over the
categories, each measured by itself; only the best F1 is that of all pictures together.

Where shifts or adaptation are asked for, the same detector then judges the test pictures once more
under every shift (`blemish.data.shifts`) and as they are, without adapting and in every mode. The
row's `shifted` holds shift -> mode -> metrics, each "none" first, and `adapted`: the share of
pictures in whose scores adaptation took part.
"""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
import time
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import closing
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch

from blemish import config as configs
from blemish.bench import costs
from blemish.bench.conditions import (
    calibration,
    checkout,
    hardware,
    peak_memory_mib,
    shared_threads,
)
from blemish.bench.plan import Run, categories
from blemish.bench.processes import ending
from blemish.bench.results.rows import (
    FAILED,
    NEITHER,
    OK,
    SCHEMA,
    Row,
    append,
    identity,
    parse,
    read_rows,
)
from blemish.compute import pick_device, pick_precision, precision_name
from blemish.data import layouts
from blemish.data.ahead import load_picture
from blemish.data.folder import is_file
from blemish.data.shifts import SHIFTS
from blemish.detector.evaluate import evaluate
from blemish.detector.fit import fit
from blemish.detector.predict import Detector
from blemish.errors import BlemishError, ConfigError, DataError
from blemish.files import cannot_write, check_writable, end_last_row, locked
from blemish.images import Picture
from blemish.types import ANOMALOUS, NORMAL, ORIGINAL, Failure, Mode, Prediction, Sample, silent
from blemish.types import Progress as Progress

METRICS = ("image_auroc", "image_ap", "best_f1", "pixel_auroc", "aupro")
SHIFTED_METRICS = ("image_auroc", "pixel_auroc", "aupro")
_OF_EVALUATION = (
    "counts",
    *METRICS,
    "votes",
    "confusion",
    "regions",
    "pixel_auroc_anomalous",
    "by_defect",
    "by_category",
    "by_group",
)


@dataclasses.dataclass(frozen=True)
class Order:
    """What the process of a run is told: the run, and as of `measure`."""

    run: Run
    device: str
    precision: str
    threads: int | None
    keep: str | None


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
    """Measure what `results` does not hold yet, on this kind of device in this precision; one row a
    run is appended.

    A run that fails leaves a row with `status` "failed" and its `error`, and is tried again next
    time. After Ctrl-C the rows so far are there, and no run is at work any more.

    Args:
        results: a JSONL file; made, with its folder, where there is none.
        threads: of torch on the CPU; None = torch's choice, or an even share of the cores where
            there are several jobs. Their number changes scores in the last digits.
        jobs: how many runs are at work at once. Several GPUs are shared out among them where
            `device` does not name one by number.
        keep: a folder, made where there is none, for the artifacts of the runs made now, each
            called METHOD-DATA-KEY.blemish (eight signs of its key); None = they are thrown away.
        progress: called with (what begins, runs done, runs in all).
    Returns: a row for each run, new or from the file, in their order.
    Raises: ConfigError for a run whose config is wrong, before any run, or for less than one job;
        DataError as `read_rows`; OutputError when the file or the folder cannot be written.
    """
    runs, results = list(runs), Path(results)
    if jobs < 1:
        raise ConfigError(f"jobs: at least 1 is needed, got {jobs}")
    machine = _machine(device, precision)
    wanted = {one.key: one for one in runs}  # a wrong config ends the bench here, not after hours
    check_writable(results)
    with locked(results):
        rows = _done(wanted, results, machine)
        end_last_row(results)  # only now: another file than one of results stays as it is
        try:
            if keep is not None:
                Path(keep).mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise cannot_write(str(keep), error) from error
        how = (
            device,
            precision,
            shared_threads(threads, jobs),
            None if keep is None else str(keep),
        )
        orders = [Order(one, *how) for key, one in wanted.items() if key not in rows]

        def begin(one: Run) -> None:
            progress(str(one), len(rows), len(wanted))

        with closing(_at_once(orders, jobs, _gpus(device) if jobs > 1 else [], begin)) as measured:
            for one, row in measured:
                append(results, row)
                rows[one.key] = row
    progress("done", len(wanted), len(wanted))
    return [rows[one.key] for one in runs]


def _at_once(
    orders: Iterable[Order], jobs: int, gpus: Sequence[str], begin: Callable[[Run], None]
) -> Generator[tuple[Run, Row], None, None]:
    """The runs with their rows as they come, `jobs` at a time; when it is closed, the processes at
    work are ended.

    Args:
        gpus: shared out among the jobs; none = each may see all.
        begin: called before a run is launched.
    """
    waiting, free = deque(orders), list(reversed(range(jobs)))
    working: dict[Future[Row], tuple[Run, int]] = {}
    children: set[subprocess.Popen[str]] = set()
    with ThreadPoolExecutor(jobs) as pool:
        try:
            while waiting or working:
                while waiting and free:
                    order, slot = waiting.popleft(), free.pop()
                    begin(order.run)
                    gpu = gpus[slot % len(gpus)] if gpus else None
                    working[pool.submit(_launch, order, gpu, children)] = order.run, slot
                for future in wait(working, return_when=FIRST_COMPLETED).done:
                    one, slot = working.pop(future)
                    free.append(slot)
                    yield one, future.result()
        finally:
            # Again and again: a process may just be starting.
            while working and wait(working, timeout=0.05).not_done:
                for child in list(children):
                    child.kill()


def _gpus(device: str) -> list[str]:
    """What CUDA_VISIBLE_DEVICES calls the GPUs that jobs are shared out to; empty where there is
    nothing to share."""
    count = torch.cuda.device_count()
    if str(pick_device(device)) != "cuda" or count < 2:
        return []
    named = [name for name in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if name]
    return (named or list(map(str, range(count))))[:count]


def missing(
    runs: Iterable[Run], results: str | Path, *, device: str = "auto", precision: str = "auto"
) -> list[Run]:
    """Those that `run` would measure, as `results` (which need not exist) does not hold them.
    Raises: as `run`."""
    wanted = {one.key: one for one in runs}
    done = _done(wanted, Path(results), _machine(device, precision))
    return [one for key, one in wanted.items() if key not in done]


def _machine(device: str, precision: str) -> tuple[str, str]:
    torch_device = pick_device(device)
    return torch_device.type, precision_name(pick_precision(precision, torch_device))


def _done(wanted: Mapping[str, Run], results: Path, machine: tuple[str, str]) -> dict[str, Row]:
    """Key -> the newest good row of the run that was measured on such a machine."""
    found: dict[str, Row] = {}
    for row in read_rows(results) if is_file(results) else []:
        if row["status"] == OK and row["key"] in wanted and identity(row)[1:] == machine:
            # One model of some of the categories of a set is not one of those that are there now.
            there = categories(wanted[row["key"]])
            if not there or sorted(row["categories"]) == sorted(there):
                found[row["key"]] = row
    return found


def measure(
    one: Run,
    *,
    device: str = "auto",
    precision: str = "auto",
    threads: int | None = None,
    keep: str | Path | None = None,
) -> Row:
    """The row of a run, made in this process. Metrics are fractions between 0 and 1.

    Args: keep: as of `run`, a folder that is there.
    Raises: DataError for a data set without both splits, or a public one with others in its folder;
        whatever `blemish.fit` and `blemish.evaluate` raise.
    """
    heading = _heading(one)  # before the work, during which the checkout may move on
    if threads is not None:
        torch.set_num_threads(threads)
    dataset = _data(one)
    test = dataset.test()
    detector = _fitted(one, device, precision)
    if keep is not None:
        detector.save(Path(keep, f"{one.method}-{one.data}-{one.key[:8]}.blemish"))
    scorer = _Stopwatch(detector)
    evaluation = evaluate(detector, dataset, resolution=one.compared_at, predict=scorer)
    told = evaluation.to_dict()
    row = {
        **heading,
        **_of_detector(detector),
        "category": ", ".join(dataset.categories),
        "categories": tuple(dataset.categories),
        "multi_class": bool(evaluation.category_mean),
        "split": {
            "train": sum(sample.label == NORMAL for sample in dataset.train()),
            "test_normal": sum(sample.label == NORMAL for sample in test),
            "test_anomalous": sum(sample.label == ANOMALOUS for sample in test),
        },
        "differs": tuple(layouts.differences(dataset)),
        **{name: told[name] for name in _OF_EVALUATION},
        **evaluation.category_mean,
        "counts": {"fitted": len(detector.record.data.fitted), **evaluation.counts},
        "images_per_second": round(scorer.scored / scorer.seconds, 3),
        "cores_used": round(scorer.cores_used, 2),
        "peak_memory_mib": scorer.peak_memory_mib,
        "peak_gpu_memory_mib": scorer.peak_gpu_memory_mib,
        "efficiency": _costs(detector, test),
        "shifted": _shifted(one, detector, dataset) if one.shifts or one.adapt else {},
    }
    return cast(Row, row)


def _data(one: Run) -> layouts.Dataset:
    """Raises: DataError."""
    dataset = layouts.read(one.path)
    if not dataset.test() or not any(sample.label == NORMAL for sample in dataset.train()):
        raise DataError(
            f"{one.path}: a benchmark needs a train and a test split; {dataset.description}"
        )
    if (there := categories(one)) and set(dataset.categories) != set(there):
        raise DataError(
            f"{one.path}: holds {', '.join(there)} of {one.data}, but is read as "
            f"{', '.join(dataset.categories)}; "
            "let that set alone lie there, each category as `blemish data layouts` shows it"
        )
    return dataset


def _fitted(one: Run, device: str, precision: str) -> Detector:
    return fit(
        one.method,
        one.path,
        config=one.config,
        weights=one.weights,
        shots=one.shots,
        anomalies=None if one.anomaly_count is None else one.path,
        anomaly_count=one.anomaly_count,
        anomaly_type=one.anomaly_type,
        time_budget=one.time_budget,
        compute_budget=one.compute_budget,
        seed=one.seed,
        false_alarm_rate=one.false_alarm_rate,
        calibration_fraction=0 if one.false_alarm_rate is None else None,
        device=device,
        precision=precision,
    )


def _of_detector(detector: Detector) -> dict[str, Any]:
    """What a row has of the detector itself."""
    manifest = detector.manifest
    pretraining, training = manifest.get("pretraining"), manifest.get("training")
    steps = {"pre-training: ": pretraining and pretraining["training"], "": training}
    return {
        "blemish": manifest["blemish"],
        "settings": manifest["config"],
        "fingerprint": manifest["data"]["fingerprint"],
        "backbone": manifest["config"]["backbone"],
        # Those of before a pre-training: each seed makes others of them.
        "weights": (pretraining or manifest["backbone"])["weights"],
        "second_weights": (manifest.get("second") or {}).get("weights"),
        "resolution": (detector.preprocessing.height, detector.preprocessing.width),
        "schedule": "; ".join(
            f"{name}{made['epochs']:.4g} epochs, {made['steps']:,} steps "
            f"in {made['seconds'] / 60:.1f} min"
            for name, made in steps.items()
            if made
        ),
        "training": training,
        "pretraining": pretraining,
        "calibration": calibration(detector),
        "seconds_to_fit": manifest["seconds"],
        "device": hardware(detector.method.backbone.device),
        "precision": manifest["precision"],
        "torch": manifest["versions"]["torch"],
        "python": manifest["versions"]["python"],
    }


def _costs(detector: Detector, samples: Iterable[Sample]) -> dict[str, Any]:
    """Of the first picture that can be read. Where it cannot be measured the row says why, and
    loses nothing else."""
    window = detector.preprocessing.decode_window()
    pictures = (load_picture(sample.path, index, window) for index, sample in enumerate(samples))
    picture = next((picture for picture in pictures if isinstance(picture, Picture)), None)
    if picture is None:
        return {"error": "none of the test pictures can be read"}
    try:
        return dict(costs.measure(detector, picture))
    except Exception as error:  # no memory, an unsupported operation, whatever counters fail on
        return {"error": f"{type(error).__name__}: {error}"}


def _shifted(one: Run, detector: Detector, dataset: layouts.Dataset) -> dict[str, dict[str, Any]]:
    """Shift -> mode -> metrics."""
    shifts = {NEITHER: None, **{name: SHIFTS[name] for name in one.shifts}}
    modes = {NEITHER: None, **{mode: cast("Mode", mode) for mode in one.adapt}}
    return {
        shift: {
            name: _adapted(detector, dataset, alter, mode, one.compared_at)
            for name, mode in modes.items()
        }
        for shift, alter in shifts.items()
    }


def _adapted(
    detector: Detector,
    dataset: layouts.Dataset,
    alter: Callable[[np.ndarray], np.ndarray] | None,
    mode: Mode | None,
    compared_at: int | None,
) -> dict[str, Any]:
    """The metrics of a detector that adapts to the test pictures, and how many of these had a part
    in that."""
    adapted: list[bool] = []
    evaluation = evaluate(
        detector,
        dataset,
        resolution=compared_at,
        adapt=mode,
        predict=partial(detector.predict_many, alter=alter),
        on_prediction=lambda _, prediction: adapted.append(prediction.adapted),
    )
    metrics = {name: getattr(evaluation, name) for name in (*SHIFTED_METRICS, "by_group")}
    means = {name: it for name, it in evaluation.category_mean.items() if name in SHIFTED_METRICS}
    return {**metrics, **means, "adapted": sum(adapted) / len(adapted)}


class _Stopwatch:
    """Predicts as a detector does; it scores all before it hands out anything, and keeps time and
    memory.

    So neither includes metrics, and no picture is decoded unobserved while a metric is computed.
    All maps are held for that: 50 kB each at 448².
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
        device = self._detector.method.backbone.device
        self.peak_gpu_memory_mib = (
            round(torch.cuda.max_memory_allocated(device) / 2**20, 1)
            if device.type == "cuda"
            else None
        )
        return iter(results)


def _heading(one: Run) -> dict[str, Any]:
    """What every row has, of a failed run too."""
    commit, dirty = checkout()
    asked = one.to_dict()
    del asked["path"], asked["weights"]
    return {
        "schema": SCHEMA,
        "status": OK,
        "key": one.key,
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "commit": commit,
        "dirty": dirty,
        **asked,
        "settings": configs.to_dict(one.config),
        "changed": asked["settings"],
        "compared_at": one.compared_at or ORIGINAL,
    }


def _failed(one: Run, error: str) -> Row:
    return cast(Row, {**_heading(one), "status": FAILED, "error": error})


def _launch(order: Order, gpu: str | None, children: set[subprocess.Popen[str]]) -> Row:
    """The row of a run in a process of its own, whatever becomes of that.

    Args: gpu: the only one that it may see; None = all. children: hold the process while it works.
    """
    told = json.dumps({**dataclasses.asdict(order), "run": order.run.to_dict()})
    environment = {**os.environ, **({} if gpu is None else {"CUDA_VISIBLE_DEVICES": gpu})}
    pipe = subprocess.PIPE
    try:
        with subprocess.Popen(
            _command(told), stdout=pipe, stderr=pipe, text=True, errors="replace", env=environment
        ) as child:
            children.add(child)
            try:
                printed, said = child.communicate()
            finally:
                children.remove(child)
    except OSError as error:
        return _failed(order.run, f"its process could not be started ({error.strerror or error})")
    row = parse((printed.splitlines() or [""])[-1])  # libraries may have printed before it
    if row is not None:
        return row
    return _failed(order.run, ending(child.returncode, said))


def _command(order: str) -> list[str]:
    return [sys.executable, "-m", "blemish.bench.run", "--run", order]


def _worker(arguments: Sequence[str]) -> None:
    """`--run JSON`: measure one run and print its row as the last line."""
    _, order = arguments
    values = json.loads(order)
    one = Run.from_dict(values.pop("run"))
    try:
        row = measure(one, **values)
    except BlemishError as error:
        row = _failed(one, str(error))
    except Exception as error:
        row = _failed(one, f"{type(error).__name__}: {error}")
    print(json.dumps(row, allow_nan=False))


if __name__ == "__main__":
    _worker(sys.argv[1:])

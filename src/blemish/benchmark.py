"""Methods × data sets × seeds -> one row of measurements a run, appended to a JSONL file.

Each run has a Python process of its own (`python -m blemish.benchmark --run JSON`), so that its peak memory is its own
and a crash ends only it. A row is written as soon as its run is done; a bench that was stopped goes on from there.

How it is measured: a detector is fitted on all normal training pictures (no threshold, so nothing is held out) and
judged on the test split; maps and masks are compared at 256×256. `seconds_to_fit` includes loading the backbone.
`images_per_second` is over one pass of all test pictures, decoding included and metrics excluded; `cores_used` is
processor time by wall time of that pass, and shows whether the machine was shared. Peak memory is that of the process
up to the last prediction; metrics, which need more on large sets, are excluded here too. On data with several
categories one detector learns them all, and the row's metrics are the means over the categories, each measured by
itself; only the best F1 is that of all pictures together, at one threshold.

Where shifts or adaptation are asked for, the same detector then judges the test pictures once more under every shift
(`blemish.data.shifts`) and as they are, without adapting and in every mode. The row's `shifted` holds shift -> mode ->
metrics, each "none" first, and `adapted`: the share of the pictures in whose scores adaptation took part.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import cached_property
from itertools import product
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch

from blemish import config as configs
from blemish.compute import pick_device, pick_precision, precision_name
from blemish.data import layouts
from blemish.data.shifts import SHIFTS
from blemish.data.solar import write_elpv_manifest
from blemish.data.transforms import prepare
from blemish.errors import BlemishError, ConfigError, DataError, unknown_name
from blemish.evaluation import evaluate
from blemish.fitting import configure, fit
from blemish.methods import Method, MethodConfig, method_class, method_of_config
from blemish.methods.adaptation import MODES, Mode
from blemish.predictor import Detector
from blemish.results import (
    FAILED,
    NEITHER,
    OK,
    SCHEMA,
    Row,
    append,
    as_ever,
    asked_for,
    identity,
    parse,
    read_rows,
    ready,
    words,
)
from blemish.suites import Entry
from blemish.types import ANOMALOUS, NORMAL, Failure, Prediction, Progress, silent

METRICS = ("image_auroc", "image_ap", "best_f1", "pixel_auroc", "aupro")
SHIFTED_METRICS = ("image_auroc", "pixel_auroc", "aupro")

ROOT_VARIABLE = "BLEMISH_DATA"
FOLDERS: Mapping[str, str] = {
    "bottle": "mvtec/bottle",
    "screw": "mvtec/screw",
    "mvtec": "mvtec",  # both at once
    "magnetic_tile": "magnetic_tile",
    "brain_mri": "brain_mri",
}
ELPV = "elpv"  # comes from a PyPI package instead of a folder


@dataclass(frozen=True, kw_only=True)
class Run:
    """One thing to measure.

    Attributes:
        method: a name of `blemish.METHODS`.
        data: name of the data set, as rows and tables call it.
        path: where it is; not part of the run's identity.
        seed: of everything random in the fit.
        settings: what differs from the recipe.
        recipe: a recipe of the method.
        weights, shots: as of `blemish.fit`.
        anomaly_count, anomaly_type: as of `blemish.fit`, of the data set's own defects, which then do not test; None =
            no defect is learned from.
        time_budget: as of `blemish.fit`; None for a method that is not trained.
        shifts: names of `blemish.data.shifts.SHIFTS`; each once, in the order there.
        adapt: modes of `blemish.methods.adaptation`, in the order there.
        label: how tables call these settings; not part of the run's identity.
    """

    method: str
    data: str
    path: Path
    seed: int = 0
    settings: Mapping[str, Any] = field(default_factory=dict)
    recipe: str = "best"
    weights: str | None = None
    shots: int | None = None
    anomaly_count: int | None = None
    anomaly_type: str | None = None
    time_budget: float | None = None
    shifts: Sequence[str] = ()
    adapt: Sequence[str] = ()
    label: str = ""

    def __post_init__(self) -> None:
        """Raises: ConfigError for an unknown shift or mode, a method that cannot adapt, or a type without a count."""
        if self.anomaly_type is not None and self.anomaly_count is None:
            raise ConfigError("anomaly_type: say how many of that type to learn from, too (anomaly_count)")
        for field_name, kind, known in (("shifts", "shift", tuple(SHIFTS)), ("adapt", "mode of adaptation", MODES)):
            asked = getattr(self, field_name)
            for name in asked:
                if name not in known:
                    raise unknown_name(kind, name, known)
            object.__setattr__(self, field_name, tuple(name for name in known if name in asked))
        if self.adapt and method_class(self.method).adapter is Method.adapter:
            raise ConfigError(f"{self.method} cannot adapt to the pictures that it scores; bench it without --adapt")

    @cached_property
    def config(self) -> MethodConfig:
        """The whole config. Raises: ConfigError for an unknown method, recipe or key, or a bad value."""
        chosen = configure(self.method, recipe=self.recipe, values=self.settings, shots=self.shots)
        return dataclasses.replace(chosen, seed=self.seed)

    @cached_property
    def key(self) -> str:
        """Identity of what is measured: method, data set, seed, recipe, whole config (backbone included), weights,
        shots, anomalies, time budget, shifts and modes of adaptation.

        Weights count by their content. Raises: ConfigError as `config`.
        """
        weights = self.weights
        if weights is not None and Path(weights).is_file():
            with Path(weights).open("rb") as file:
                weights = hashlib.file_digest(file, "sha256").hexdigest()
        parts = [self.method, self.data, self.seed, self.recipe, as_ever(configs.to_dict(self.config)), weights]
        if self.shots is not None or self.time_budget is not None:  # rows older than these keep their keys
            parts.append([self.shots, None if self.time_budget is None else float(self.time_budget)])
        if self.anomaly_count is not None:
            parts.append({"anomalies": [self.anomaly_count, self.anomaly_type]})
        if self.shifts or self.adapt:
            parts.append({"shifts": self.shifts, "adapt": self.adapt})
        return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:16]

    def __str__(self) -> str:
        return " · ".join([f"{self.method} on {self.data}, seed {self.seed}", *asked_for(self.to_dict())])

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        return {**dataclasses.asdict(self), "path": str(self.path)}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Run:
        """The inverse of `to_dict`."""
        return cls(**{**values, "path": Path(values["path"])})


def plan(
    entries: Iterable[Entry],
    data: Mapping[str, Path],
    seeds: Sequence[int],
    *,
    assignments: Sequence[str] = (),
    weights: str | None = None,
    shots: int | None = None,
    anomaly_count: int | None = None,
    anomaly_type: str | None = None,
    time_budget: float | None = None,
    shifts: Sequence[str] = (),
    adapt: Sequence[str] = (),
    label: str | None = None,
) -> list[Run]:
    """The runs of every entry on every data set with every seed, each once.

    Args:
        entries: methods, or the lines of a suite's tables: a line's own settings win over `assignments`.
        data: name -> path, as `data_sets` gives them.
        assignments: "key=value", what differs from the recipes.
        anomaly_count, anomaly_type: of methods that learn from defects; the others do without.
        time_budget: of trained methods; the others do without.
        shifts, adapt: as of `Run`.
        label: how tables call these settings; None = the settings themselves.
    Raises: ConfigError for an unknown method, recipe, key, shift or mode, a bad value, or a method that cannot adapt.
    """
    runs: dict[str, Run] = {}
    for (name, path), entry in product(data.items(), entries):
        changed = _changed(entry, assignments)
        config = configure(entry.method, recipe=entry.recipe, values=changed)
        taught = method_of_config(entry.method, config).takes_defects
        for seed in seeds:
            one = Run(
                method=entry.method,
                data=name,
                path=path,
                seed=seed,
                settings=changed,
                recipe=entry.recipe,
                weights=weights,
                shots=shots,
                anomaly_count=anomaly_count if taught else None,
                anomaly_type=anomaly_type if taught else None,
                time_budget=time_budget if config.learns_by_gradient else None,
                shifts=shifts,
                adapt=adapt,
                label=words(changed) if label is None else label,
            )
            runs.setdefault(one.key, one)
    return list(runs.values())


def data_sets(names: Iterable[str | Path], *, root: str | Path | None, scratch: Path) -> dict[str, Path]:
    """Name -> path of data sets given by name or by path; one given by path is called as its folder.

    ELPV comes from its package: 1,131 normal cells to train on, 377 normal and 715 defective ones to test on, drawn by
    seed 0 whatever the seed of a run; its table is written to `scratch`.

    Args: root: the folder of the sets known by name; None = the environment variable BLEMISH_DATA.
    Raises: DataError when one is not there or two have the same name; MissingExtraError for elpv without `demo`.
    """
    folder = root or os.environ.get(ROOT_VARIABLE)
    found: dict[str, Path] = {}
    for given in map(str, names):
        if given == ELPV:
            name, path = ELPV, write_elpv_manifest(scratch / "elpv.csv", seed=0)
        elif given in FOLDERS:
            name, path = given, Path(folder or "", FOLDERS[given])
            if not folder or not path.is_dir():
                where = f"no {FOLDERS[given]} in {folder}" if folder else "no folder to look in"
                raise DataError(
                    f"data set {given!r}: {where}; set {ROOT_VARIABLE} (or --root) to the folder with the data sets, "
                    "or name the data set's own path with --data"
                )
        else:
            path = Path(given)
            name = path.stem if path.is_file() else path.resolve().name
            if not path.exists():
                known = ", ".join(sorted([*FOLDERS, ELPV]))
                raise DataError(f"data set {given!r}: no such path, and not one of the names {known}; mend --data")
        if found.setdefault(name, path) != path:
            raise DataError(f"two data sets are called {name!r}: {found[name]} and {path}; rename a folder")
    return found


def run(
    runs: Iterable[Run],
    results: str | Path,
    *,
    device: str = "auto",
    precision: str = "auto",
    threads: int | None = None,
    progress: Progress = silent,
) -> list[Row]:
    """Measure what `results` does not hold yet, on this kind of device in this precision; one row a run is appended.

    A run that fails leaves a row with `status` "failed" and its `error`, does not keep the others from running, and is
    tried again next time. After Ctrl-C the rows so far are there.

    Args:
        results: a JSONL file; made, with its folder, where there is none.
        threads: of torch on the CPU; None = torch's choice.
        progress: called with (what runs, runs done, runs in all).
    Returns: a row for each run, new or from the file, in their order.
    Raises: ConfigError for a run whose config is wrong, before any run; DataError as `read_rows`; OutputError when
        the file cannot be written.
    """
    runs, results = list(runs), Path(results)
    machine = _machine(device, precision)
    keys = [one.key for one in runs]  # a wrong config ends the bench here, not after hours
    ready(results)
    done = _done(results)
    rows: list[Row] = []
    for number, (one, key) in enumerate(zip(runs, keys, strict=True)):
        progress(str(one), number, len(runs))
        row = done.get((key, *machine))
        if row is None:
            row = _launch(one, device, precision, threads)
            append(results, row)
            if row["status"] == OK:
                done[identity(row)] = row
        rows.append(row)
    progress("done", len(runs), len(runs))
    return rows


def missing(runs: Iterable[Run], results: str | Path, *, device: str = "auto", precision: str = "auto") -> list[Run]:
    """Those that `run` would measure, as `results` (which need not exist) does not hold them. Raises: as `run`."""
    machine = _machine(device, precision)
    done = _done(Path(results)) if Path(results).exists() else {}
    return [one for one in runs if (one.key, *machine) not in done]


def _machine(device: str, precision: str) -> tuple[str, str]:
    torch_device = pick_device(device)
    return torch_device.type, precision_name(pick_precision(precision, torch_device))


def _done(results: Path) -> dict[tuple[str, str, str], Row]:
    return {identity(row): row for row in read_rows(results) if row["status"] == OK}


def measure(one: Run, *, device: str = "auto", precision: str = "auto", threads: int | None = None) -> Row:
    """The row of a run, made in this process. Metrics are fractions between 0 and 1.

    Raises: DataError for a data set without both splits; whatever `blemish.fit` and `blemish.evaluate` raise.
    """
    heading = _heading(one, OK)  # before the work, during which the checkout may move on
    if threads is not None:
        torch.set_num_threads(threads)
    dataset = layouts.read(one.path)
    train = [sample for sample in dataset.train() if sample.label == NORMAL]
    test = dataset.test()
    if not train or not test:
        raise DataError(f"{one.path}: a benchmark needs a train and a test split; {dataset.description}")
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
    scorer = _Stopwatch(detector)
    evaluation = evaluate(scorer, dataset)
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
        "fingerprint": manifest["data"]["fingerprint"],
        "backbone": manifest["config"]["backbone"],
        "weights": (pretraining or manifest["backbone"])["weights"],  # what was there before; each seed makes others
        "resolution": [detector.preprocessing.height, detector.preprocessing.width],
        "schedule": _schedule(pretraining, training),
        **({} if pretraining is None else {"pretraining": pretraining}),
        "training": training,
        **{name: getattr(evaluation, name) for name in METRICS},
        **evaluation.category_mean,
        "by_defect": {name: dict(values) for name, values in evaluation.by_defect.items()},
        "pixel_auroc_anomalous": evaluation.pixel_auroc_anomalous,
        "by_group": {name: dict(values) for name, values in evaluation.by_group.items()},
        "by_category": {name: dict(values) for name, values in evaluation.by_category.items()},
        "seconds_to_fit": manifest["seconds"],
        "images_per_second": round(scorer.scored / scorer.seconds, 3),
        "cores_used": round(scorer.cores_used, 2),
        "peak_memory_mib": scorer.peak_memory_mib,
        "peak_gpu_memory_mib": scorer.peak_gpu_memory_mib,
        "device": hardware(detector.device),
        "precision": manifest["precision"],
        "torch": manifest["versions"]["torch"],
        "python": manifest["versions"]["python"],
        **({"shifted": _under_shifts(one, detector, dataset)} if one.shifts or one.adapt else {}),
    }


def _under_shifts(one: Run, detector: Detector, dataset: layouts.Dataset) -> dict[str, dict[str, dict[str, Any]]]:
    """Shift -> mode -> metrics."""
    modes = [None, *(cast("Mode", mode) for mode in one.adapt)]
    return {
        shift: {mode or NEITHER: _shifted_metrics(seen, dataset, mode) for mode in modes}
        for shift, seen in [(NEITHER, detector), *((name, _Shifted(detector, SHIFTS[name])) for name in one.shifts)]
    }


def _shifted_metrics(detector: Detector, dataset: layouts.Dataset, mode: Mode | None) -> dict[str, Any]:
    adapted: list[bool] = []
    evaluation = evaluate(
        detector, dataset, adapt=mode, on_prediction=lambda _, prediction: adapted.append(prediction.adapted)
    )
    metrics = {name: evaluation.category_mean.get(name, getattr(evaluation, name)) for name in SHIFTED_METRICS}
    return {**metrics, "adapted": sum(adapted) / len(adapted)}


def _schedule(pretraining: Mapping[str, Any] | None, training: Mapping[str, Any] | None) -> str:
    parts = [
        *([] if pretraining is None else [("pre-training: ", pretraining["training"])]),
        *([] if training is None else [("", training)]),
    ]
    return "; ".join(
        f"{name}{made['epochs']:.4g} epochs, {made['steps']:,} steps in {made['seconds'] / 60:.1f} min"
        for name, made in parts
    )


class _Stopwatch(Detector):
    """The same detector; it scores all it is asked for before it hands out anything, and keeps time and memory.

    So neither includes metrics, and no picture is decoded unobserved while a metric is computed. All maps are held for
    that: 50 kB each at 448².
    """

    def __init__(self, detector: Detector) -> None:
        super().__init__(detector.method, detector.preprocessing, detector.threshold, detector.manifest)

    def predict_many(
        self, sources: Iterable[Any], *, category: str = "", batch_size: int | None = None, adapt: Mode | None = None
    ) -> Iterator[Prediction | Failure]:
        started, worked = time.perf_counter(), time.process_time()
        results = list(super().predict_many(sources, category=category, batch_size=batch_size, adapt=adapt))
        self.seconds = time.perf_counter() - started
        self.cores_used = (time.process_time() - worked) / self.seconds
        self.scored = sum(isinstance(result, Prediction) for result in results)
        self.peak_memory_mib = peak_memory_mib()
        self.peak_gpu_memory_mib = (
            round(torch.cuda.max_memory_allocated(self.device) / 2**20, 1) if self.device.type == "cuda" else None
        )
        return iter(results)


class _Shifted(Detector):
    """The same detector; it sees every picture shifted, and knows it by the original's content."""

    def __init__(self, detector: Detector, shift: Callable[[np.ndarray], np.ndarray]) -> None:
        super().__init__(detector.method, detector.preprocessing, detector.threshold, detector.manifest)
        self._shift = shift

    def _load(self, item: tuple[int, Any, str]) -> Any:
        loaded = super()._load(item)
        if isinstance(loaded, Failure):
            return loaded
        shifted = dataclasses.replace(loaded.picture, pixels=self._shift(loaded.picture.pixels))
        return dataclasses.replace(loaded, tensor=prepare(shifted, self.preprocessing))


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
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    cpu = _cpu_model()
    return {
        "type": device.type,
        "name": torch.cuda.get_device_name(device) if device.type == "cuda" else cpu,
        "cpu": cpu,
        "cores": cores,
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
        "data": one.data,
        "seed": one.seed,
    }


def checkout() -> tuple[str | None, bool | None]:
    """The commit of the checkout that blemish runs from, and whether the package differs from it; None outside one."""
    package = Path(__file__).parent

    def git(*arguments: str) -> str:
        command = ["git", "--no-optional-locks", "-C", str(package), *arguments]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()

    try:
        git("ls-files", "--error-unmatch", "__init__.py")  # fails where blemish is installed inside another's checkout
        return git("rev-parse", "HEAD"), bool(git("status", "--porcelain", "--", "."))
    except (OSError, subprocess.CalledProcessError):
        return None, None


def _launch(one: Run, device: str, precision: str, threads: int | None) -> Row:
    """The row of a run in a process of its own, whatever becomes of that."""
    order = {"run": one.to_dict(), "device": device, "precision": precision, "threads": threads}
    done = subprocess.run(_command(json.dumps(order)), capture_output=True, text=True, errors="replace")
    printed = done.stdout.splitlines() or [""]
    row = parse(printed[-1])  # libraries may have printed before it
    return row or {**_heading(one, FAILED), "error": _lastwords(done.returncode, done.stderr)}


def _command(order: str) -> list[str]:
    return [sys.executable, "-m", "blemish.benchmark", "--run", order]


def _lastwords(code: int, stderr: str) -> str:
    if code < 0:
        return f"the process was ended by signal {-code}" + (" (out of memory?)" if code == -9 else "")
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


def _changed(entry: Entry, assignments: Sequence[str]) -> dict[str, Any]:
    """What differs from the recipe, once all is checked and applied. Raises: ConfigError."""
    plain = configs.to_dict(configure(entry.method, recipe=entry.recipe))
    asked = configure(entry.method, recipe=entry.recipe, assignments=assignments)
    wanted = configs.to_dict(configs.from_dict(type(asked), entry.settings, base=asked))
    changed = {key: value for key, value in wanted.items() if value != plain[key]}
    if "seed" in changed:
        raise ConfigError("seed: a bench takes its seeds apart from the settings; name them with --seeds")
    return changed


if __name__ == "__main__":
    _worker(sys.argv[1:])

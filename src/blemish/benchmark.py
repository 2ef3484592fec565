"""Methods × data sets × seeds -> one row of measurements a run, appended to a JSONL file -> a Markdown table.

Each run has a Python process of its own (`python -m blemish.benchmark --run JSON`), so that its peak memory is its own
and a crash ends only it. A row is written as soon as its run is done; a bench that was stopped goes on from there.

How it is measured: a detector is fitted on all normal training pictures (no threshold, so nothing is held out) and
judged on the test split; maps and masks are compared at 256×256. `seconds_to_fit` includes loading the backbone.
`images_per_second` is over one pass of all test pictures, decoding included and metrics excluded; `cores_used` is
processor time by wall time of that pass, and shows whether the machine was shared. Peak memory is that of the process
up to the last prediction; metrics, which need more on large sets, are excluded here too.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import cached_property
from itertools import product
from pathlib import Path
from typing import Any

import torch

from blemish import config as configs
from blemish.compute import pick_device, pick_precision, precision_name
from blemish.data import layouts
from blemish.data.solar import write_elpv_manifest
from blemish.errors import BlemishError, ConfigError, DataError
from blemish.evaluation import evaluate
from blemish.files import cannot_write
from blemish.fitting import configure, fit
from blemish.methods import MethodConfig
from blemish.predictor import BATCH_SIZE, Detector
from blemish.types import ANOMALOUS, NORMAL, Failure, Prediction, Progress, silent

SCHEMA = 1  # of a row; raised when an older blemish could misread it
OK, FAILED = "ok", "failed"
METRICS = ("image_auroc", "image_ap", "best_f1", "pixel_auroc", "aupro")

ROOT_VARIABLE = "BLEMISH_DATA"
FOLDERS: Mapping[str, str] = {
    "bottle": "mvtec/bottle",
    "screw": "mvtec/screw",
    "magnetic_tile": "magnetic_tile",
    "brain_mri": "brain_mri",
}
ELPV = "elpv"  # comes from a PyPI package instead of a folder

Row = dict[str, Any]


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
        weights: as of `blemish.fit`.
        label: how tables call these settings; not part of the run's identity.
    """

    method: str
    data: str
    path: Path
    seed: int = 0
    settings: Mapping[str, Any] = field(default_factory=dict)
    recipe: str = "best"
    weights: str | None = None
    label: str = ""

    @cached_property
    def config(self) -> MethodConfig:
        """The whole config. Raises: ConfigError for an unknown method, recipe or key, or a bad value."""
        return dataclasses.replace(configure(self.method, recipe=self.recipe, values=self.settings), seed=self.seed)

    @cached_property
    def key(self) -> str:
        """Identity of what is measured: method, data set, seed, recipe, whole config (backbone included), weights.

        Weights count by their content. Raises: ConfigError as `config`.
        """
        weights = self.weights
        if weights is not None and Path(weights).is_file():
            with Path(weights).open("rb") as file:
                weights = hashlib.file_digest(file, "sha256").hexdigest()
        identity = [self.method, self.data, self.seed, self.recipe, configs.to_dict(self.config), weights]
        return hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:16]

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        return {**dataclasses.asdict(self), "path": str(self.path)}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Run:
        """The inverse of `to_dict`."""
        return cls(**{**values, "path": Path(values["path"])})


def bench(
    methods: Sequence[str],
    data: Sequence[str | Path],
    seeds: Sequence[int],
    results: str | Path,
    *,
    recipe: str = "best",
    settings: Mapping[str, Any] | None = None,
    assignments: Sequence[str] = (),
    weights: str | None = None,
    label: str | None = None,
    root: str | Path | None = None,
    device: str = "auto",
    precision: str = "auto",
    threads: int | None = None,
    progress: Progress = silent,
) -> list[Row]:
    """Rows of every method on every data set with every seed; those that `results` holds already are not run again.

    Args:
        data: names (bottle, screw, magnetic_tile, brain_mri, elpv) or paths in any layout with a train and test split.
        settings, assignments: what differs from the recipe, as values and as "key=value".
        label: how tables call these settings; None = the settings themselves.
        root: the folder in which data sets are looked for by name; None = the environment variable BLEMISH_DATA.
    Returns and raises: as `run`; ConfigError and DataError for what is wrong with the arguments, before any run.
    """
    with tempfile.TemporaryDirectory(prefix="blemish-bench-") as scratch:
        places = data_sets(data, root=root, scratch=Path(scratch))
        runs: list[Run] = []
        for (name, path), method in product(places.items(), methods):
            changed = _changed(method, recipe, settings or {}, assignments)
            runs += [
                Run(
                    method=method,
                    data=name,
                    path=path,
                    seed=seed,
                    settings=changed,
                    recipe=recipe,
                    weights=weights,
                    label=_words(changed) if label is None else label,
                )
                for seed in seeds
            ]
        return run(runs, Path(results), device=device, precision=precision, threads=threads, progress=progress)


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
    torch_device = pick_device(device)
    machine = (torch_device.type, precision_name(pick_precision(precision, torch_device)))
    keys = [one.key for one in runs]  # a wrong config ends the bench here, not after hours
    _ready(results)
    done = {_identity(row): row for row in read_rows(results) if row["status"] == OK}
    rows: list[Row] = []
    for number, (one, key) in enumerate(zip(runs, keys, strict=True)):
        progress(f"{one.method} on {one.data}, seed {one.seed}", number, len(runs))
        row = done.get((key, *machine))
        if row is None:
            row = _launch(one, device, precision, threads)
            _append(results, row)
            if row["status"] == OK:
                done[_identity(row)] = row
        rows.append(row)
    progress("done", len(runs), len(runs))
    return rows


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
        seed=one.seed,
        calibration_fraction=0,
        device=device,
        precision=precision,
    )
    scorer = _Stopwatch(detector)
    evaluation = evaluate(scorer, dataset)
    manifest = detector.manifest
    return {
        **heading,
        "blemish": manifest["blemish"],
        "settings": manifest["config"],
        "category": ", ".join(dataset.categories),
        "split": {
            "train": len(train),
            "test_normal": sum(sample.label == NORMAL for sample in test),
            "test_anomalous": sum(sample.label == ANOMALOUS for sample in test),
        },
        "counts": {"fitted": len(manifest["data"]["fitted"]), **evaluation.counts},
        "fingerprint": manifest["data"]["fingerprint"],
        "backbone": manifest["config"]["backbone"],
        "weights": manifest["backbone"]["weights"],
        "resolution": [detector.preprocessing.height, detector.preprocessing.width],
        "schedule": "",  # methods that train will say theirs
        **{name: getattr(evaluation, name) for name in METRICS},
        "by_defect": {name: dict(values) for name, values in evaluation.by_defect.items()},
        "seconds_to_fit": manifest["seconds"],
        "images_per_second": round(scorer.scored / scorer.seconds, 3),
        "cores_used": round(scorer.cores_used, 2),
        "peak_memory_mib": scorer.peak_memory_mib,
        "peak_gpu_memory_mib": scorer.peak_gpu_memory_mib,
        "device": hardware(detector.device),
        "precision": manifest["precision"],
        "torch": manifest["versions"]["torch"],
        "python": manifest["versions"]["python"],
    }


class _Stopwatch(Detector):
    """The same detector; it scores all it is asked for before it hands out anything, and keeps time and memory.

    So neither includes metrics, and no picture is decoded unobserved while a metric is computed. All maps are held for
    that: 50 kB each at 448².
    """

    def __init__(self, detector: Detector) -> None:
        super().__init__(detector.method, detector.preprocessing, detector.threshold, detector.manifest)

    def predict_many(self, sources: Iterable[Any], *, batch_size: int = BATCH_SIZE) -> Iterator[Prediction | Failure]:
        started, worked = time.perf_counter(), time.process_time()
        results = list(super().predict_many(sources, batch_size=batch_size))
        self.seconds = time.perf_counter() - started
        self.cores_used = (time.process_time() - worked) / self.seconds
        self.scored = sum(isinstance(result, Prediction) for result in results)
        self.peak_memory_mib = peak_memory_mib()
        self.peak_gpu_memory_mib = (
            round(torch.cuda.max_memory_allocated(self.device) / 2**20, 1) if self.device.type == "cuda" else None
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
    row = _parse(printed[-1])  # libraries may have printed before it
    return row or {**_heading(one, FAILED), "error": _last_words(done.returncode, done.stderr)}


def _command(order: str) -> list[str]:
    return [sys.executable, "-m", "blemish.benchmark", "--run", order]


def _last_words(code: int, stderr: str) -> str:
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


def read_rows(path: str | Path) -> list[Row]:
    """The rows of a results file, in order. A last line that was cut short is passed over: its run will be repeated.

    Raises: DataError when the file cannot be read, another line is damaged, or a row was written by a newer blemish.
    """
    try:
        lines = Path(path).read_text(encoding="utf-8", errors="replace").split("\n")
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror or error})") from error
    rows: list[Row] = []
    for number, line in enumerate(lines, start=1):
        row = _parse(line)
        if row is not None:
            if row["schema"] > SCHEMA:
                raise DataError(f"{path}, line {number}: was written by a newer blemish: pip install --upgrade blemish")
            rows.append(row)
        elif line.strip() and number < len(lines):
            raise DataError(f"{path}, line {number}: is not a row of blemish bench; mend or remove it")
    return rows


def _append(path: str | Path, row: Row) -> None:
    """Add one line, on the disk when this returns. Raises: OutputError."""
    line = json.dumps(row, ensure_ascii=False, allow_nan=False) + "\n"
    try:
        with Path(path).open("ab") as file:
            file.write(line.encode("utf-8", "backslashreplace"))
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        raise cannot_write(path, error) from error


def _ready(path: Path) -> None:
    """Make the results file, or end its last line: a row cut short by a crash is removed. Raises: OutputError."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("a+b") as file:
            file.seek(0)
            content = file.read()
            end = content.rfind(b"\n") + 1
            if _parse(content[end:].decode("utf-8", "replace")) is not None:
                file.write(b"\n")
            else:
                file.truncate(end)
    except OSError as error:
        raise cannot_write(path, error) from error


def _parse(line: str) -> Row | None:
    try:
        row = json.loads(line)
    except ValueError:
        return None
    return row if isinstance(row, dict) and {"schema", "status", "key"} <= row.keys() else None


def _identity(row: Mapping[str, Any]) -> tuple[str, str, str]:
    """What counts once: a run on a kind of device in a precision (both change scores and times)."""
    return row["key"], row["device"]["type"], row["precision"]


_LEGEND = """\
I, P, PRO: image AUROC, pixel AUROC and AUPRO up to a false-positive rate of 0.3, in %, maps and masks at 256×256; mean
± standard deviation over the seeds. Fit: seconds, loading the backbone included. Images/s: scoring, decoding included.
Memory: peak of the process (on a GPU: of the GPU's memory) up to the last prediction. Commit: + marks local changes."""
_COLUMNS = (
    *("Method", "Settings", "I", "P", "PRO", "Fit (s)", "Images/s", "Memory (MiB)"),
    *("Seeds", "Resolution", "Backbone", "Precision", "Commit", "Device"),
)
_NONE = "–"
Published = Mapping[str, Mapping[str, Sequence[float | None]]]


def table(rows: Iterable[Row], *, published: Published | None = None) -> str:
    """The rows as Markdown: a table for each data set, a line for each method with its settings.

    Of rows with the same identity the newest good one counts. Runs on different devices are never averaged; runs that
    have only failed are listed below.

    Args: published: data set -> source -> (image AUROC, pixel AUROC, AUPRO), fractions or None, set beside the rows.
    """
    latest: dict[tuple[str, str, str], Row] = {}
    failed: dict[str, Row] = {}
    for row in sorted(rows, key=lambda row: row["date"]):
        if row["status"] == OK:
            latest[_identity(row)] = row
        else:
            failed[row["key"]] = row
    groups: dict[str, dict[str, list[Row]]] = {}
    for row in latest.values():
        groups.setdefault(row["data"], {}).setdefault(_group(row), []).append(row)
    parts: list[str] = []
    for data, group in sorted(groups.items()):
        lines = [f"## {data}", "", _line(_COLUMNS), _line(["---"] * len(_COLUMNS))]
        lines += sorted(_line(_cells(members)) for members in group.values())
        for source, (image, pixel, regions) in (published or {}).get(data, {}).items():
            figures = [_figure([value], 100) for value in (image, pixel, regions)]
            lines.append(_line([source, "published", *figures, *[_NONE] * (len(_COLUMNS) - 5)]))
        parts.append("\n".join(lines))
    if parts:
        parts.append(_LEGEND)
    good = {key for key, _, _ in latest}
    left = [row for key, row in failed.items() if key not in good]
    if left:
        names = [
            f"- {row['method']} on {row['data']}, seed {row['seed']}: {' '.join(row['error'].split())}" for row in left
        ]
        parts.append("\n".join(["Failed:", "", *names]))
    return "\n\n".join(parts or ["No rows."]) + "\n"


def _group(row: Mapping[str, Any]) -> str:
    """Rows that differ only in seed, date and commit have the same."""
    settings = {key: value for key, value in row["settings"].items() if key != "seed"}
    names = ("method", "recipe", "resolution", "schedule", "precision", "weights", "device")
    return json.dumps([settings, *(row[name] for name in names)], sort_keys=True)


def _cells(rows: Sequence[Row]) -> list[str]:
    newest = rows[-1]
    recipe = "" if newest["recipe"] == "best" else newest["recipe"]
    on_gpu = newest["peak_gpu_memory_mib"] is not None
    device, weights = newest["device"], newest["weights"]
    commits = {_NONE if row["commit"] is None else row["commit"][:8] + "+" * row["dirty"] for row in rows}

    def figure(name: str, scale: float = 1, digits: int = 1) -> str:
        return _figure([row[name] for row in rows], scale, digits)

    return [
        newest["method"],
        " · ".join(filter(None, [recipe, newest["label"], newest["schedule"]])) or "best",
        figure("image_auroc", 100),
        figure("pixel_auroc", 100),
        figure("aupro", 100),
        figure("seconds_to_fit"),
        figure("images_per_second"),
        figure("peak_gpu_memory_mib" if on_gpu else "peak_memory_mib", digits=0),
        str(len(rows)),
        "×".join(map(str, newest["resolution"])),
        f"{newest['backbone']} ({weights['sha256'][:8] or weights['source']})",
        newest["precision"],
        ", ".join(sorted(commits)),
        device["name"] if device["type"] == "cuda" else f"{device['name']}, threads: {device['threads']}",
    ]


def _figure(values: Sequence[float | None], scale: float = 1, digits: int = 1) -> str:
    """Mean ± sample standard deviation (with more than one value); – where any value is missing."""
    known = [scale * value for value in values if value is not None]
    if not known or len(known) < len(values):
        return _NONE
    mean = f"{statistics.fmean(known):.{digits}f}"
    return f"{mean} ± {statistics.stdev(known):.{digits}f}" if len(known) > 1 else mean


def _line(cells: Iterable[str]) -> str:
    return f"| {' | '.join(' '.join(cell.replace('|', chr(92) + '|').split()) for cell in cells)} |"


def _changed(method: str, recipe: str, values: Mapping[str, Any], assignments: Sequence[str]) -> dict[str, Any]:
    """What differs from the recipe, once values and assignments are checked and applied. Raises: ConfigError."""
    plain = configs.to_dict(configure(method, recipe=recipe))
    wanted = configs.to_dict(configure(method, recipe=recipe, values=values, assignments=assignments))
    changed = {key: value for key, value in wanted.items() if value != plain[key]}
    if "seed" in changed:
        raise ConfigError("seed: a bench takes its seeds apart from the settings; name them with --seeds")
    return changed


def _words(settings: Mapping[str, Any]) -> str:
    """Settings for a table, without those that have a column of their own."""
    shown = {key: value for key, value in settings.items() if key not in ("backbone", "image_size")}
    return " ".join(f"{key}={','.join(map(str, v)) if isinstance(v, list) else v}" for key, v in shown.items())


if __name__ == "__main__":
    _worker(sys.argv[1:])

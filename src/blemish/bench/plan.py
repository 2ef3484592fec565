"""What a bench measures: runs, of methods or of the tables of a suite, and the data sets that they
are made on."""

from __future__ import annotations

import dataclasses
import hashlib
import importlib.util
import json
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import product
from pathlib import Path
from typing import Any

from blemish import config as configs
from blemish.bench.results.rows import asked_for, words
from blemish.bench.suites import Entry, Suite
from blemish.data import layouts
from blemish.data.layouts import OFFICIAL, Official, category_paths, find
from blemish.data.layouts.elpv import write_elpv_table
from blemish.data.shifts import SHIFTS
from blemish.detector.fit import configure
from blemish.errors import ConfigError, DataError, WeightsError, unknown_name
from blemish.files import WEIGHTS_BYTES, open_regular
from blemish.methods import MethodConfig, method_class
from blemish.methods.capabilities import Adapts
from blemish.text import pluralize
from blemish.training.budget import Budget
from blemish.types import MODES, RESOLUTION

ROOT_VARIABLE = "BLEMISH_DATA"
ELPV = "elpv"  # where its folder is not there, it comes from a PyPI package


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
        anomaly_count, anomaly_type: as of `blemish.fit`, of the data set's own defects, which then
            do not test; None = no defect is learned from.
        time_budget, compute_budget: as of `blemish.fit`; None for a method that is not trained.
        false_alarm_rate: as of `blemish.fit`, for a threshold that comes about in the method's
            usual way: from the training pictures each left out in turn, or from a fifth of them,
            which is then not learned from. None = no threshold, and all are learned from.
        shifts: names of `blemish.data.shifts.SHIFTS`; each once, in the order there.
        adapt: modes of `blemish.methods.adaptation`, in the order there.
        compared_at: side of the square at which maps and masks are compared; None = each picture's
            own size.
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
    compute_budget: float | None = None
    false_alarm_rate: float | None = None
    shifts: Sequence[str] = ()
    adapt: Sequence[str] = ()
    compared_at: int | None = RESOLUTION
    label: str = ""

    def __post_init__(self) -> None:
        """Raises: ConfigError for an unknown shift or mode, a method that cannot adapt, a type
        without a count, or a time budget or rate that is none."""
        if self.anomaly_type is not None and self.anomaly_count is None:
            raise ConfigError(
                "anomaly_type: say how many of that type to learn from, too (anomaly_count)"
            )
        _ = Budget(minutes=self.time_budget, teraflops=self.compute_budget)  # refuses what is none
        for name in ("time_budget", "compute_budget"):
            if (value := getattr(self, name)) is not None:
                object.__setattr__(self, name, float(value))
        if self.false_alarm_rate is not None and not 0 < self.false_alarm_rate < 1:
            raise ConfigError(
                f"false_alarm_rate: {self.false_alarm_rate:g} is not between 0 and 1 (0.05 for 5 %)"
            )
        for field_name, kind, known in (
            ("shifts", "shift", tuple(SHIFTS)),
            ("adapt", "mode of adaptation", MODES),
        ):
            asked = getattr(self, field_name)
            for name in asked:
                if name not in known:
                    raise unknown_name(kind, name, known)
            object.__setattr__(self, field_name, tuple(name for name in known if name in asked))
        if self.adapt and not issubclass(method_class(self.method), Adapts):
            raise ConfigError(
                f"{self.method} cannot adapt to the pictures that it scores; bench it without "
                "--adapt"
            )

    @cached_property
    def config(self) -> MethodConfig:
        """The whole config. Raises: ConfigError for an unknown method, recipe or key, or a bad
        value."""
        chosen = configure(self.method, recipe=self.recipe, values=self.settings, shots=self.shots)
        return dataclasses.replace(chosen, seed=self.seed)

    @cached_property
    def key(self) -> str:
        """Identity of what is measured: everything but where the data are and how tables call it,
        the whole config in place of what was changed of it, and weights by their content. Raises:
        ConfigError as `config`."""
        parts = {**self.to_dict(), "settings": configs.to_dict(self.config)}
        del parts["path"], parts["label"]
        for name in ("false_alarm_rate", "compute_budget"):
            if parts[name] is None:  # rows of before there was one keep their key
                del parts[name]
        if self.weights is not None and Path(self.weights).is_file():
            with open_regular(self.weights, limit=WEIGHTS_BYTES, error=WeightsError) as file:
                parts["weights"] = hashlib.file_digest(file, "sha256").hexdigest()
        return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:16]

    def __str__(self) -> str:
        return " · ".join(
            [f"{self.method} on {self.data}, seed {self.seed}", *asked_for(self.to_dict())]
        )

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
    compute_budget: float | None = None,
    false_alarm_rate: float | None = None,
    shifts: Sequence[str] = (),
    adapt: Sequence[str] = (),
    label: str | None = None,
) -> list[Run]:
    """The runs of every entry on every data set with every seed, each once.

    Args:
        entries: methods, or the lines of a suite's tables. A line's own settings win over
            `assignments`, and its own numbers over `shots` and `anomaly_count`; its modes of
            adaptation are added to `adapt`.
        data: name -> path, as `data_sets` and `places` give them.
        assignments: "key=value", what differs from the recipes.
        anomaly_count, anomaly_type: of methods that learn from defects; the others do without.
        time_budget, compute_budget: of trained methods; the others do without.
        false_alarm_rate, shifts, adapt: as of `Run`.
        label: how tables call these settings; None = the settings themselves.
    Raises: ConfigError for an unknown method, recipe, key, shift or mode, a bad value, or a method
        that cannot adapt.
    """
    runs: list[Run] = []
    for (name, path), entry in product(data.items(), entries):
        changed = _changed(entry, assignments)
        config = configure(entry.method, recipe=entry.recipe, values=changed)
        taught = method_class(entry.method).takes_defects
        count = anomaly_count if entry.anomaly_count is None else entry.anomaly_count
        runs += [
            Run(
                method=entry.method,
                data=name,
                path=path,
                seed=seed,
                settings=changed,
                recipe=entry.recipe,
                weights=weights,
                shots=shots if entry.shots is None else entry.shots,
                anomaly_count=count if taught else None,
                anomaly_type=anomaly_type if taught else None,
                time_budget=time_budget if config.learns_by_gradient else None,
                compute_budget=compute_budget if config.learns_by_gradient else None,
                false_alarm_rate=false_alarm_rate,
                shifts=shifts,
                adapt=(*entry.adapt, *adapt),
                compared_at=entry.compared_at,
                label=words(changed) if label is None else label,
            )
            for seed in seeds
        ]
    return once(runs)


def once(runs: Iterable[Run]) -> list[Run]:
    """The runs in their order, each of them (by its key) once. Raises: ConfigError as `Run.key`."""
    found: dict[str, Run] = {}
    for one in runs:
        found.setdefault(one.key, one)
    return list(found.values())


def data_sets(
    names: Iterable[str | Path], *, root: str | Path | None, scratch: Path
) -> dict[str, Path]:
    """Name -> path of data sets given by name or by path; one given by path is called as its
    folder.

    Names are those of `blemish.data.layouts` and of their categories: "mvtec" is all
    categories at once, "bottle" one of them. Where there is no folder of ELPV it comes from its
    package: 1,131 normal cells to train on, 377 normal and 715 defective ones to test on, drawn by
    seed 0 whatever the seed of a run; its table is written to `scratch`.

    Args: root: the folder of the sets known by name; None = the environment variable BLEMISH_DATA.
    Raises: DataError when one is not there or two have the same name; MissingExtraError for elpv
        without `demo`.
    """
    known = {name: it for it in OFFICIAL.values() for name in (*it.categories, it.name)}
    found: dict[str, Path] = {}
    for given in map(str, names):
        if given in known:
            name, path = given, _named(given, known[given], _root(root), scratch)
        else:
            path = Path(given)
            name = path.stem if path.is_file() else path.resolve().name
            if not path.exists():
                raise DataError(
                    f"data set {given!r}: no such path, and not one of the names "
                    f"{', '.join(sorted(known))}; mend --data"
                )
        if found.setdefault(name, path) != path:
            raise DataError(
                f"two data sets are called {name!r}: {found[name]} and {path}; rename a folder"
            )
    return found


def places(
    suite: Suite, data: Sequence[str], *, root: str | Path | None, scratch: Path
) -> tuple[list[tuple[Suite, dict[str, Path]]], list[str]]:
    """Which tables of a suite are measured on what.

    Without `data`, or where it is one folder that is or holds a data set of the suite, each table
    is measured on the data set that it names: on every category by itself, or on all at once where
    one model learns them together. Any other `data` are measured in their place, by all tables.

    Args: data, root, scratch: as of `data_sets`; `data` may be the folder of the suite's data sets.
    Returns: pairs of (a part of the suite, name -> path of its data); what is missing, in words.
    Raises: DataError when there is nothing to measure on, or as `data_sets`.
    """
    wanted = {table.data: OFFICIAL[table.data] for table in suite.tables if table.data}
    titles = ", ".join(official.title for official in wanted.values())
    folder = _root(root)
    if data:
        given = Path(data[0]) if len(data) == 1 and Path(data[0]).is_dir() else None
        if given is None or not any(find(official, given) for official in wanted.values()):
            if given and wanted and not _has_splits(given):
                raise DataError(
                    f"{given}: there is none of {titles} in it, and it is no data set with a train "
                    "and a test split itself; `blemish data layouts` shows what is looked for"
                )
            return [(suite, data_sets(data, root=root, scratch=scratch))], []
        folder = given
    if not wanted:
        raise DataError(
            f"suite {suite.name} is for any data set: name those to measure on with --data"
        )
    if folder is None:
        raise DataError(
            f"suite {suite.name}: no folder to look in for {titles}; name it with --data, or set "
            f"{ROOT_VARIABLE}"
        )
    there = {name: _categories(official, folder, scratch) for name, official in wanted.items()}
    parts: list[tuple[Suite, dict[str, Path]]] = []
    notes: list[str] = []
    for table in suite.tables:
        if not table.data:
            notes.append(f"Table {table.name} is for any data set: name one with --data.")
        elif found := there[table.data]:
            official = wanted[table.data]
            if table.multi_class and len(found) < len(official.categories):
                notes.append(
                    f"Table {table.name}: one model learns {len(found)} of the "
                    f"{len(official.categories)} categories of {official.title}."
                )
            whole = {table.data: _named(table.data, official, folder, scratch)}
            parts.append((suite.only([table.name]), whole if table.multi_class else found))
    if absent := [it for name in wanted if (it := _absent(wanted[name], there[name]))]:
        notes.insert(0, f"Not in {folder}, and out of reach: {'; '.join(absent)}.")
    if not parts:
        raise DataError(
            f"{notes[0]} There is nothing to measure: `blemish data layouts` shows what is looked "
            "for"
        )
    return parts, notes


def categories(one: Run) -> tuple[str, ...]:
    """What of an official set of several categories is there for a run on all of them at once; else
    ()."""
    official = OFFICIAL.get(one.data)
    if official is None or len(official.categories) == 1 or not one.path.is_dir():
        return ()
    return tuple(category_paths(official, one.path))


def _has_splits(path: Path) -> bool:
    try:
        dataset = layouts.read(path)
    except DataError:
        return False
    return bool(dataset.train() and dataset.test())


def _root(given: str | Path | None) -> Path | None:
    folder = given or os.environ.get(ROOT_VARIABLE)
    return Path(folder) if folder else None


def _named(name: str, official: Official, root: Path | None, scratch: Path) -> Path:
    """The path of an official set, or of a category of one. Raises: DataError when it is not
    there."""
    folder = root and find(official, root)
    if folder:
        paths = {**category_paths(official, folder), official.name: folder}
        if name in paths:
            return paths[name]
    elif official.name == ELPV:
        return write_elpv_table(scratch / "elpv.csv", seed=0)
    where = f"no {official.title} in {root}" if root else "no folder to look in"
    raise DataError(
        f"data set {name!r}: {f'not in {folder}' if folder else where}; set {ROOT_VARIABLE} (or "
        "--root) to the folder with the data sets, or name the data set's own path with --data"
    )


def _categories(official: Official, root: Path, scratch: Path) -> dict[str, Path]:
    """The categories of an official set that are there: name -> path; those of ELPV's package where
    that is there."""
    if (folder := find(official, root)) is not None:
        return category_paths(official, folder)
    if official.name == ELPV and importlib.util.find_spec("elpv_dataset") is not None:
        return {ELPV: write_elpv_table(scratch / "elpv.csv", seed=0)}
    return {}


def _absent(official: Official, there: Mapping[str, Path]) -> str:
    """What of an official set is not there, in words; "" where all of it is."""
    missing = [name for name in official.categories if name not in there]
    if not there or not missing:
        return official.title if missing else ""
    several = pluralize(len(missing), "category", "categories")
    return f"{several} of {official.title} ({', '.join(missing)})"


def _changed(entry: Entry, assignments: Sequence[str]) -> dict[str, Any]:
    """What differs from the recipe, once all is checked and applied. Raises: ConfigError."""
    plain = configs.to_dict(configure(entry.method, recipe=entry.recipe), whole=True)
    asked = configure(entry.method, recipe=entry.recipe, assignments=assignments)
    chosen = configs.from_dict(type(asked), entry.settings, base=asked)
    wanted = configs.to_dict(chosen, whole=True)
    changed = {key: value for key, value in wanted.items() if value != plain[key]}
    if "seed" in changed:
        raise ConfigError(
            "seed: a bench takes its seeds apart from the settings; name them with --seeds"
        )
    return changed

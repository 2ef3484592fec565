"""bench: measure methods on data sets, and show what was measured."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Annotated, Any

from typer import Argument, Context, Option, Typer
from typer.core import TyperGroup

from blemish import interrupts
from blemish.cli import console, options
from blemish.cli.guarding import guarded
from blemish.cli.options import (
    AnomalyCount,
    AnomalyType,
    Backbone,
    ComputeBudget,
    Device,
    ImageSize,
    Json,
    Precision,
    Settings,
    TimeBudget,
    Weights,
)
from blemish.cli.status import BY_SIGNAL, ERROR, EXIT_STATUS, WELL
from blemish.errors import ConfigError, unknown_name
from blemish.extras import require
from blemish.files import check_writable, or_elsewhere, write_whole
from blemish.machine import MOST_THREADS
from blemish.text import duration, pluralize

if TYPE_CHECKING:
    from blemish.bench.plan import Run
    from blemish.bench.suites import Suite

FULL, REDUCED = SCHEDULES = ("full", "reduced")
REDUCED_MINUTES = 15.0


class _BenchGroup(TyperGroup):
    """What stands first, where it is no command, is the suite: `bench X` is `bench --suite X`."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        _, rest, _ = self.make_parser(ctx).parse_args(args=list(args))
        if rest and rest[0] not in self.commands:
            args = [*args[: len(args) - len(rest)], "--suite", *rest]
        return super().parse_args(ctx, args)

    def collect_usage_pieces(self, ctx: Any) -> list[str]:
        return ["[SUITE] [OPTIONS]", "[COMMAND [ARGS]...]"]


Methods = Annotated[str, Option(metavar="LIST", help="Methods, as in patchcore,knn.")]
SuiteName = Annotated[
    str,
    Option(
        metavar="NAME",
        help="In place of methods: the tables of a suite of --list, or of a TOML file. Its name "
        "may also stand first, as in `blemish bench agpnet`. What it varies stays, whatever --set "
        "says.",
    ),
]
Only = Annotated[str, Option(metavar="LIST", help="Tables of the suite. [default: all]")]
DataSets = Annotated[
    str,
    Option(
        metavar="LIST",
        help="Data sets: names of `blemish data layouts` (mvtec: all categories at once; bottle: "
        "one of them), or paths. With a suite: the folder that holds the data sets of its tables, "
        "as --root, or others to measure in their place.",
    ),
]
Seeds = Annotated[
    str, Option(metavar="N", help="How many seeds: 3 = 0, 1 and 2. Or which, with a comma: 0,1,2.")
]
Results = Annotated[
    Path | None,
    Option(
        metavar="FILE",
        help="JSONL file that gets a row a run; runs it holds are skipped. "
        "[default with a suite: SUITE.jsonl]",
    ),
]
Recipe = Annotated[
    str | None,
    Option(
        help="A recipe of the methods, to which other settings are applied. "
        "[default: best, or the suite's]"
    ),
]
Shots = Annotated[
    int | None,
    Option(min=1, metavar="K", help="Learn from K pictures a category, drawn by the seed."),
]
Schedule = Annotated[
    str | None,
    Option(
        metavar="NAME",
        help="full, as the recipe has it; or reduced to --time-budget or --compute-budget, else to "
        "15 minutes. [default: full, without these]",
    ),
]
FalseAlarmRate = Annotated[
    float | None,
    Option(
        metavar="SHARE",
        callback=options.in_range(options.INNER_SHARE),
        help="Fit with a threshold for this share of false alarms (0.05 for 5 %), and measure the "
        "verdicts and the regions of defects too. It is set in the method's usual way: from the "
        "training pictures each left out in turn, or from a fifth of them, which is then not "
        "learned from. [default: no threshold]",
    ),
]
Shifts = Annotated[
    str,
    Option(
        metavar="LIST",
        help="Judge the test pictures also shifted: any of brightness, brighter, contrast, blur, "
        "noise, jpeg, or all.",
    ),
]
Adapt = Annotated[
    str,
    Option(
        metavar="LIST",
        help="Judge them also while adapting to them, where the method can: online, episodic.",
    ),
]
Label = Annotated[
    str | None, Option(help="Name of this setting in the table. [default: the settings]")
]
Root = Annotated[
    Path | None,
    Option(metavar="DIR", help="Folder of the named data sets. [default: $BLEMISH_DATA]"),
]
Threads = Annotated[
    int | None,
    Option(
        min=1,
        max=MOST_THREADS,
        help="Of torch, in each run. [default: torch's choice; cores by --jobs]",
    ),
]
Jobs = Annotated[
    int,
    Option(
        min=1,
        max=MOST_THREADS,
        metavar="N",
        help="Runs at once; several GPUs are shared out among them.",
    ),
]
Keep = Annotated[
    Path | None,
    Option(metavar="DIR", help="Keep the artifacts of the runs, as for `blemish figures`."),
]
ListSuites = Annotated[bool, Option("--list", help="List the suites and their tables, and leave.")]
DryRun = Annotated[
    bool,
    Option("--dry-run", help="List the runs and what time they may take, and leave."),
]


def bench(
    context: Context,
    methods: Methods = "",
    suite: SuiteName = "",
    only: Only = "",
    data: DataSets = "",
    seeds: Seeds = "1",
    results: Results = None,
    settings: Settings = None,
    recipe: Recipe = None,
    backbone: Backbone = None,
    weights: Weights = None,
    image_size: ImageSize = None,
    shots: Shots = None,
    anomaly_count: AnomalyCount = None,
    anomaly_type: AnomalyType = None,
    schedule: Schedule = None,
    time_budget: TimeBudget = None,
    compute_budget: ComputeBudget = None,
    false_alarm_rate: FalseAlarmRate = None,
    shifts: Shifts = "",
    adapt: Adapt = "",
    label: Label = None,
    root: Root = None,
    device: Device = "auto",
    precision: Precision = "auto",
    threads: Threads = None,
    jobs: Jobs = 1,
    keep: Keep = None,
    list_suites: ListSuites = False,
    dry_run: DryRun = False,
    json: Json = False,
) -> int:
    """Measure methods on data sets, each run in a process of its own; `bench table` shows what was
    measured."""
    if context.invoked_subcommand is not None:
        return WELL
    if list_suites:
        return _list_suites(as_json=json)
    if bool(methods) == bool(suite) or (methods and not (data and (results or dry_run))):
        raise ConfigError("a bench needs a suite, or --methods (one of them), --data and --results")
    chosen = _suite(suite, only)
    varied = {
        "seeds": _seeds(seeds),
        "assignments": options.assignments(settings, backbone=backbone, image_size=image_size),
        **{"weights": weights, "shots": shots, "label": label},
        **{"anomaly_count": anomaly_count, "anomaly_type": anomaly_type},
        "time_budget": _minutes(schedule, time_budget, compute_budget),
        "compute_budget": compute_budget,
        "false_alarm_rate": false_alarm_rate,
        **{"shifts": options.parts(shifts), "adapt": options.parts(adapt)},
    }
    how = {"device": device, "precision": precision, "threads": threads, "jobs": jobs}
    with TemporaryDirectory(prefix="blemish-bench-") as scratch:
        sets = {"names": options.parts(data), "root": root, "scratch": Path(scratch)}
        runs, notes = _planned(chosen, options.parts(methods), recipe, sets, varied)
        if chosen and results is None:
            results = Path(f"{chosen.name}.jsonl")
            notes.append(f"Rows are kept in {results}.")
        if dry_run or results is None:
            return _estimate(runs, results, notes, as_json=json, **how)
        return _measure(runs, results, notes, chosen, keep=keep, as_json=json, **how)


def _planned(
    suite: Suite | None,
    methods: Sequence[str],
    recipe: str | None,
    data: Mapping[str, Any],
    varied: Mapping[str, Any],
) -> tuple[list[Run], list[str]]:
    """The runs of a suite or of methods, and what is missing for them.

    Args: data: arguments of `plan.data_sets`. varied: keyword arguments of `plan.plan`.
    """
    require("torch", "timm", purpose="measure methods")
    from blemish.bench import plan as planning
    from blemish.bench.suites import Entry
    from blemish.data.shifts import SHIFTS

    shifts = list(SHIFTS) if varied["shifts"] == ["all"] else varied["shifts"]

    def plan(entries: Iterable[Entry], places: Mapping[str, Path]) -> list[Run]:
        return planning.plan(entries, places, **{**varied, "shifts": shifts})

    if suite is None:
        entries = [Entry(method=method, recipe=recipe or "best") for method in methods]
        return plan(entries, planning.data_sets(**data)), []
    parts, notes = planning.places(suite, data["names"], root=data["root"], scratch=data["scratch"])
    runs = planning.once(
        run for part, places in parts for run in plan(part.entries(recipe), places)
    )
    return runs, notes


def _measure(
    runs: Sequence[Run],
    results: Path,
    notes: Sequence[str],
    suite: Suite | None,
    *,
    as_json: bool,
    **how: Any,
) -> int:
    """Measure what is missing and show all; `how`: keyword arguments of `run.run`."""
    from blemish.bench import results as measured
    from blemish.bench import run as benchmark

    for note in notes:
        console.complain(note)

    def progress(stage: str, done: int, total: int) -> None:
        console.complain(f"{done} of {total}: {stage}")

    check_writable(results)
    on = {name: how[name] for name in ("device", "precision")}
    there = f"{len(runs) - len(benchmark.missing(runs, results, **on))} of {len(runs)}"
    console.complain(f"runs that {results} holds already: {there}")
    try:
        rows = benchmark.run(runs, results, progress=progress, **how)
    except KeyboardInterrupt as error:
        console.complain(
            f"blemish: interrupted; the same command goes on from the rows in {results}"
        )
        return BY_SIGNAL + interrupts.number_of(error)
    page = measured.suite_page(rows, suite) if suite else measured.page(rows)
    console.answer(rows, [measured.markdown(page)], as_json=as_json)
    return ERROR if any(row["status"] != measured.OK for row in rows) else WELL


def _estimate(
    runs: Sequence[Run], results: Path | None, notes: Sequence[str], *, as_json: bool, **how: Any
) -> int:
    """What is left to be measured, and how long it may take; `how`: of `run.run`."""
    from blemish.bench import estimates
    from blemish.bench import run as benchmark
    from blemish.bench.results import read_rows

    rows, left = [], list(runs)
    if results:
        rows = read_rows(results) if results.exists() else []
        on = {name: how[name] for name in ("device", "precision")}
        left = benchmark.missing(runs, results, **on)
    found = estimates.estimate(left, rows, device=how["device"])
    seconds, made = estimates.total(found, how["jobs"]), len(runs) - len(left)
    document = {
        "runs": [each.to_dict() for each in found],
        "made": made,
        "jobs": how["jobs"],
        "seconds": round(seconds, 1),
        "notes": list(notes),
    }
    unknown = sum(each.seconds is None for each in found)
    told = f"about {duration(seconds)}; rough"
    if unknown:
        told += f", without {unknown} of them"
    human = [
        *map(str, found),
        *notes,
        f"{pluralize(len(left), 'run')} to make, {made} made already: {told}",
    ]
    console.answer(document, human, as_json=as_json)
    return WELL


def _list_suites(*, as_json: bool) -> int:
    from dataclasses import asdict

    from blemish.bench import suites

    known = [suites.read(name) for name in suites.names()]
    rows = [
        (
            *(suite.name, table.name, table.title, table.source, table.data or "any"),
            len(table.rows if isinstance(table, suites.Table) else table.lines),
        )
        for suite in known
        for table in suite.tables
    ]
    head = ("suite", "table", "what it compares", "published in", "data", "lines")
    table = console.table(head, rows, right=("lines",))
    console.answer([asdict(suite) for suite in known], [table], as_json=as_json)
    return WELL


Files = Annotated[list[Path], Argument(metavar="FILE...", help="Results of `blemish bench`.")]
ShownSuite = Annotated[
    str, Option(metavar="NAME", help="Show the tables of this suite, with their published figures.")
]
Efficiency = Annotated[
    bool,
    Option("--efficiency", help="Show costs instead: parameters, FLOPs, times, memory."),
]
Page = Annotated[
    Path | None,
    Option("--output", "-o", metavar="FILE.md|FILE.html", help="Markdown or HTML to write."),
]


def bench_table(
    files: Files,
    suite: ShownSuite = "",
    only: Only = "",
    efficiency: Efficiency = False,
    output: Page = None,
    json: Json = False,
) -> int:
    """Show results as Markdown or HTML tables."""
    require("torch", "timm", purpose="read what was measured")
    from blemish.bench import results

    chosen = _suite(suite, only)
    rows = [row for file in files for row in results.read_rows(file)]
    if efficiency:
        page = results.efficiency_page(rows, published=chosen.efficiency if chosen else None)
    else:
        page = results.suite_page(rows, chosen) if chosen else results.page(rows)
    text = results.markdown(page)
    if output:
        title = chosen.title if chosen else "Results of blemish bench"
        as_html = output.suffix.lower() in {".html", ".htm"}
        written = results.html(page, title=title) if as_html else text
        content = written.encode("utf-8", "backslashreplace")
        or_elsewhere(output, lambda path: write_whole(path, content), f"move it to {output}")
    console.answer(rows, [f"Written: {output}" if output else text], as_json=json)
    return WELL


def _suite(name: str, only: str) -> Suite | None:
    """Raises: ConfigError for an unknown suite or table, or for tables without a suite."""
    from blemish.bench import suites

    if only and not name:
        raise ConfigError(f"--only {only}: names tables of a suite, and there is no --suite")
    chosen = suites.read(name) if name else None
    return chosen.only(options.parts(only)) if chosen and only else chosen


def _seeds(text: str) -> list[int]:
    """3 = 0, 1 and 2; 3,4 and 3, are lists."""
    given = options.integers("--seeds", text, "3, or 0,1,2")
    if "," in text and given:
        return given
    if len(given) != 1 or given[0] < 1:
        raise ConfigError(
            f"--seeds {text}: how many is needed, at least 1; "
            "which, with a comma, as in 0,1,2 or 4,"
        )
    return list(range(given[0]))


def _minutes(schedule: str | None, minutes: float | None, teraflops: float | None) -> float | None:
    """The time budget of a schedule by name.

    Raises: ConfigError for one that is unknown, or contradicts the budget.
    """
    if schedule is not None and schedule not in SCHEDULES:
        raise unknown_name("--schedule", schedule, SCHEDULES)
    for option, value in (("--time-budget", minutes), ("--compute-budget", teraflops)):
        if schedule == FULL and value is not None:
            raise ConfigError(
                f"--schedule full {option} {value:g}: a budget reduces it; leave one of them out"
            )
    options.one_budget(minutes, teraflops)
    given = minutes is not None or teraflops is not None
    return REDUCED_MINUTES if schedule == REDUCED and not given else minutes


app = Typer(
    cls=_BenchGroup,
    help="Measure methods on data sets, or show what was measured.",
    rich_markup_mode=None,
)

app.callback(invoke_without_command=True, epilog=EXIT_STATUS)(guarded(bench))
app.command("table")(guarded(bench_table))

"""bench: measure methods on data sets, and show what was measured."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperGroup

from blemish import interrupts
from blemish.cli import console, options
from blemish.cli.options import (
    AnomalyCount,
    AnomalyType,
    Device,
    ImageSize,
    Json,
    Precision,
)
from blemish.cli.status import BY_SIGNAL, ERROR, EXIT_STATUS, WELL
from blemish.errors import ConfigError, unknown_name

if TYPE_CHECKING:
    from blemish.bench.plan import Run
    from blemish.bench.suites import Suite

FULL, REDUCED = SCHEDULES = ("full", "reduced")  # of a bench
REDUCED_MINUTES = 15.0


class _BenchGroup(TyperGroup):
    """What stands first, where it is no command, is the suite: `bench agpnet …` is `bench --suite
    agpnet …`."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        _, rest, _ = self.make_parser(ctx).parse_args(args=list(args))
        if rest and rest[0] not in self.commands:
            args = [*args[: len(args) - len(rest)], "--suite", *rest]
        return super().parse_args(ctx, args)

    def collect_usage_pieces(self, ctx: Any) -> list[str]:
        return ["[SUITE] [OPTIONS]", "[COMMAND [ARGS]...]"]


def bench(
    context: typer.Context,
    methods: Annotated[
        str, typer.Option(metavar="LIST", help="Methods, as in patchcore,knn.")
    ] = "",
    suite: Annotated[
        str,
        typer.Option(
            metavar="NAME",
            help="In place of methods: the tables of a suite of --list, or of a TOML file. Its "
            "name may also stand first, as in `blemish bench agpnet`.",
        ),
    ] = "",
    only: Annotated[
        str, typer.Option(metavar="LIST", help="Tables of the suite. [default: all]")
    ] = "",
    data: Annotated[
        str,
        typer.Option(
            metavar="LIST",
            help="Data sets: names of `blemish data layouts` (mvtec: all categories at once; "
            "bottle: one of them), or paths. With a suite: the folder that holds the data "
            "sets of its tables, as --root, or others to measure in their place.",
        ),
    ] = "",
    seeds: Annotated[
        str,
        typer.Option(
            metavar="N", help="How many seeds: 3 = 0, 1 and 2. Or which, with a comma: 0,1,2."
        ),
    ] = "1",
    results: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="JSONL file that gets a row a run; runs it holds are skipped. [default with a "
            "suite: SUITE.jsonl]",
        ),
    ] = None,
    settings: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            metavar="KEY=VALUE",
            help="Any setting; may be given more than once. What a suite varies stays.",
        ),
    ] = None,
    recipe: Annotated[
        str | None,
        typer.Option(
            help="A recipe of the methods, to which other settings are applied. [default: best, "
            "or the suite's]",
        ),
    ] = None,
    backbone: Annotated[
        str | None, typer.Option(help="One of `blemish backbones`, or any timm model.")
    ] = None,
    weights: Annotated[
        str | None,
        typer.Option(metavar="FILE", help="Weights of the backbone, in place of its own source."),
    ] = None,
    image_size: ImageSize = None,
    shots: Annotated[
        int | None,
        typer.Option(
            min=1, metavar="K", help="Learn from K pictures a category, drawn by the seed."
        ),
    ] = None,
    anomaly_count: AnomalyCount = None,
    anomaly_type: AnomalyType = None,
    schedule: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="full, as the recipe has it; or reduced to --time-budget, else to 15 minutes. "
            "[default: full, without --time-budget]",
        ),
    ] = None,
    time_budget: Annotated[
        float | None,
        typer.Option(
            metavar="MINUTES", help="Of each training; methods that do not train ignore it."
        ),
    ] = None,
    shifts: Annotated[
        str,
        typer.Option(
            metavar="LIST",
            help="Judge the test pictures also shifted: any of brightness, brighter, contrast, "
            "blur, noise, jpeg, or all.",
        ),
    ] = "",
    adapt: Annotated[
        str,
        typer.Option(
            metavar="LIST",
            help="Judge them also while adapting to them, where the method can: online, episodic.",
        ),
    ] = "",
    label: Annotated[
        str | None, typer.Option(help="Name of this setting in the table. [default: the settings]")
    ] = None,
    root: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Folder of the named data sets. [default: $BLEMISH_DATA]"),
    ] = None,
    device: Device = "auto",
    precision: Precision = "auto",
    threads: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Of torch on the CPU, in each run. [default: torch's choice; cores by --jobs]",
        ),
    ] = None,
    jobs: Annotated[
        int,
        typer.Option(
            min=1, metavar="N", help="Runs at once; several GPUs are shared out among them."
        ),
    ] = 1,
    keep: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR", help="Keep the artifacts of the runs made now, as for `blemish figures`."
        ),
    ] = None,
    list_suites: Annotated[
        bool, typer.Option("--list", help="List the suites and their tables, and leave.")
    ] = False,
    dry_run: Annotated[
        bool,
        typer.Option(
            "--dry-run", help="List the runs to be made and what time they may take, and leave."
        ),
    ] = False,
    json: Json = False,
) -> int:
    """Measure methods on data sets, each run in a process of its own; `bench table` shows what was
    measured."""
    if context.invoked_subcommand is not None:
        return WELL
    if list_suites:
        return _list_suites(as_json=json)
    if bool(methods) == bool(suite) or (
        methods and (not data or (results is None and not dry_run))
    ):
        raise ConfigError("a bench needs a suite, or --methods (one of them), --data and --results")
    time_budget = _budget(schedule, time_budget)
    from functools import partial
    from tempfile import TemporaryDirectory

    from blemish.bench import plan as planning
    from blemish.bench import results as measured
    from blemish.bench import run as benchmark
    from blemish.bench import suites
    from blemish.data.shifts import SHIFTS

    chosen = _suite(suite, only)
    named = {"backbone": backbone, "image_size": image_size}
    planned = partial(
        planning.plan,
        seeds=_seeds(seeds),
        assignments=[f"{key}={value}" for key, value in named.items() if value is not None]
        + (settings or []),
        weights=weights,
        shots=shots,
        anomaly_count=anomaly_count,
        anomaly_type=anomaly_type,
        time_budget=time_budget,
        shifts=list(SHIFTS) if shifts == "all" else options.parts(shifts),
        adapt=options.parts(adapt),
        label=label,
    )
    where = {"device": device, "precision": precision}
    with TemporaryDirectory(prefix="blemish-bench-") as scratch:
        notes: list[str] = []
        if chosen:
            parts, notes = planning.places(
                chosen, options.parts(data), root=root, scratch=Path(scratch)
            )
            if results is None:
                results = Path(f"{chosen.name}.jsonl")
                notes.append(f"Rows are kept in {results}.")
            runs = planning.once(
                one for part, sets in parts for one in planned(part.entries(recipe), sets)
            )
        else:
            entries = [
                suites.Entry(method=method, recipe=recipe or "best")
                for method in options.parts(methods)
            ]
            runs = planned(
                entries, planning.data_sets(options.parts(data), root=root, scratch=Path(scratch))
            )
        if dry_run or results is None:
            return _estimate(
                runs, results, notes, threads=threads, jobs=jobs, as_json=json, **where
            )
        for note in notes:
            console.complain(note)
        try:
            rows = benchmark.run(
                runs,
                results,
                threads=threads,
                jobs=jobs,
                keep=keep,
                progress=lambda what, done, total: console.complain(f"{done} of {total}: {what}"),
                **where,
            )
        except KeyboardInterrupt as error:
            console.complain(
                f"blemish: interrupted; the same command goes on from the rows in {results}"
            )
            return BY_SIGNAL + interrupts.number_of(error)
    text = measured.markdown(measured.suite_page(rows, chosen) if chosen else measured.page(rows))
    console.answer(rows, [text], as_json=json)
    return ERROR if any(row["status"] != measured.OK for row in rows) else WELL


def _estimate(
    runs: Sequence[Run],
    results: Path | None,
    notes: Sequence[str],
    *,
    device: str,
    precision: str,
    threads: int | None,
    jobs: int,
    as_json: bool,
) -> int:
    """What is left to be measured, and how long it may take."""
    from blemish.bench import estimates
    from blemish.bench import run as benchmark
    from blemish.bench.results import read_rows

    rows = read_rows(results) if results and results.exists() else []
    left = (
        benchmark.missing(runs, results, device=device, precision=precision)
        if results
        else list(runs)
    )
    found = estimates.estimate(left, rows, device=device)
    seconds, made = estimates.total(found, jobs), len(runs) - len(left)
    document = {
        "runs": [each.to_dict() for each in found],
        "made": made,
        "jobs": jobs,
        "seconds": round(seconds, 1),
        "notes": list(notes),
    }
    untold = sum(each.seconds is None for each in found)
    told = f"about {estimates.duration(seconds)}; rough" + (
        f", without {untold} of them" if untold else ""
    )
    human = [*map(str, found), *notes, f"{len(left)} runs to make, {made} made already: {told}"]
    console.answer(document, human, as_json=as_json)
    return WELL


def _list_suites(*, as_json: bool) -> int:
    from dataclasses import asdict

    from blemish.bench import suites

    known = [suites.read(name) for name in suites.names()]
    rows = [
        (
            suite.name,
            table.name,
            table.title,
            table.source,
            table.data or "any",
            len(table.rows if isinstance(table, suites.Table) else table.lines),
        )
        for suite in known
        for table in suite.tables
    ]
    head = ("suite", "table", "what it compares", "published in", "data", "lines")
    console.answer(
        [asdict(suite) for suite in known],
        [console.table(head, rows, right=("lines",))],
        as_json=as_json,
    )
    return WELL


def bench_table(
    files: Annotated[
        list[Path], typer.Argument(metavar="FILE...", help="Results of `blemish bench`.")
    ],
    suite: Annotated[
        str,
        typer.Option(
            metavar="NAME", help="Show the tables of this suite, with their published figures."
        ),
    ] = "",
    only: Annotated[
        str, typer.Option(metavar="LIST", help="Tables of the suite. [default: all]")
    ] = "",
    efficiency: Annotated[
        bool,
        typer.Option(
            "--efficiency",
            help="Show what the methods cost instead: parameters, FLOPs, times, memory.",
        ),
    ] = False,
    output: Annotated[
        Path | None,
        typer.Option(
            "--output",
            "-o",
            metavar="FILE.md|FILE.html",
            help="Markdown or, by its suffix, HTML to write.",
        ),
    ] = None,
    json: Json = False,
) -> int:
    """Show results as Markdown or HTML tables."""
    from blemish.bench import results
    from blemish.files import write_whole

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
        write_whole(
            output,
            (results.html(page, title=title) if as_html else text).encode(
                "utf-8", "backslashreplace"
            ),
        )
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
            f"--seeds {text}: how many is needed, at least 1; which, with a comma, as in 0,1,2 or "
            "4,"
        )
    return list(range(given[0]))


def _budget(schedule: str | None, minutes: float | None) -> float | None:
    """The time budget of a schedule by name. Raises: ConfigError for one that is unknown, or
    contradicts the budget."""
    if schedule is not None and schedule not in SCHEDULES:
        raise unknown_name("--schedule", schedule, SCHEDULES)
    if schedule == FULL and minutes is not None:
        raise ConfigError(
            f"--schedule full --time-budget {minutes:g}: a time budget reduces it; leave one of "
            "them out"
        )
    return REDUCED_MINUTES if schedule == REDUCED and minutes is None else minutes


app = typer.Typer(
    cls=_BenchGroup,
    help="Measure methods on data sets, or show what was measured.",
    rich_markup_mode=None,
)

app.callback(invoke_without_command=True, epilog=EXIT_STATUS)(bench)
app.command("table")(bench_table)

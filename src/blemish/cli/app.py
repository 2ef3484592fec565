"""The command line: parse, call, print.

Everything heavy is imported inside the commands, so that `blemish --help` is instant.
"""

from __future__ import annotations

import errno
import os
import sys
import traceback
import warnings
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import cache
from typing import Annotated, Any

import typer

from blemish import interrupts
from blemish.cli import (
    bench,
    calibrate,
    compare,
    console,
    data,
    doctor,
    export,
    judge,
    learn,
    look,
    predict,
    refine,
    serve,
    watch,
)
from blemish.cli.guarding import guarded
from blemish.cli.status import BY_SIGNAL, CLOSED_PIPE, ERROR, EXIT_STATUS
from blemish.errors import BlemishError, ConfigError, OutputError
from blemish.extras import missing

# Click's in older releases of typer, its own in newer ones.
_UsageError = typer.BadParameter.__mro__[1]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command line (default: the process's) and give its exit status.

    Never raises, save for SystemExit.
    """
    given = list(sys.argv[1:] if arguments is None else arguments)
    as_json = "--json" in given[: given.index("--")] if "--" in given else "--json" in given
    for stream in (sys.stdout, sys.stderr):
        with suppress(AttributeError):  # what stands in for a stream in a test or a notebook
            stream.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]
    with interrupts.heard(aloud=True):
        try:
            with warnings.catch_warnings():
                if not _debugging():
                    warnings.simplefilter("ignore")
                status = _run(given or ["--help"])
        except BrokenPipeError:
            status = CLOSED_PIPE
        except (Exception, KeyboardInterrupt) as error:
            with interrupts.ignored():
                status = _report(error, as_json=as_json)
        return _flushed(status)


def _flushed(status: int) -> int:
    """The exit status, once what was printed has arrived; Python would end with a traceback."""
    try:
        if sys.stdout is not None:  # it was closed before the start
            sys.stdout.flush()
    except BrokenPipeError:
        _forget_output()
        return CLOSED_PIPE
    except (OSError, ValueError) as error:
        _forget_output()
        reason = getattr(error, "strerror", None) or error
        console.complain(
            f"blemish: standard output cannot be written ({reason}); the answer is lost"
        )
        return ERROR
    return status


@cache
def command_tree() -> Any:
    """All commands; they take a tenth of a second to build: once a process."""
    app = typer.Typer(
        name="blemish",
        help="Visual anomaly detection: learn from pictures of good parts, "
        "then score, judge and map new ones.",
        epilog=EXIT_STATUS,
        add_completion=False,
        rich_markup_mode=None,  # rich's help takes half a second longer to come
    )
    app.callback()(_root)
    working: tuple[Callable[..., int], ...] = (
        *(learn.fit, learn.pretrain, predict.predict, watch.watch, judge.evaluate, judge.figures),
        *(serve.serve, export.export),
        *(calibrate.calibrate, refine.refine, look.simulate, compare.compare),
    )
    for command in working:
        app.command(epilog=EXIT_STATUS)(guarded(command))
    for command in (look.inspect, look.backbones, look.methods, doctor.doctor):
        app.command()(guarded(command))
    app.add_typer(data.app, name="data")
    app.add_typer(bench.app, name="bench")
    return typer.main.get_command(app)


def _run(arguments: list[str]) -> int:
    _refuse_empty(arguments)
    command = command_tree()
    try:
        with command.make_context("blemish", arguments) as context:
            status: int = command.invoke(context)
            return status
    except typer.Exit as end:  # --help, --version
        return end.exit_code


def _refuse_empty(arguments: Sequence[str]) -> None:
    """As a path an empty word would be the current folder, which nobody has named.

    Raises: ConfigError.
    """
    for number, word in enumerate(arguments, start=1):
        if not word or (word.startswith("--") and word.endswith("=")):
            after = f", after {arguments[number - 2]}" if number > 1 and not word else ""
            raise ConfigError(
                f"word {number} of the command is empty{after}; is a variable of the shell not "
                "set? Leave it out, or name what it stands for (. is the current folder)"
            )


def _report(error: BaseException, *, as_json: bool) -> int:
    """Say what went wrong, in one message and without a traceback."""
    kind, message, status = _explained(error)
    if _debugging():
        traceback.print_exception(error)
    if as_json:
        with suppress(OSError):  # told when the output is flushed
            console.answer({"error": {"kind": kind, "message": message}}, [], as_json=True)
    else:
        console.complain(message)
    return status


def _explained(error: BaseException) -> tuple[str, str, int]:
    """(kind, message, exit status)."""
    kind = type(error).__name__
    if isinstance(error, _UsageError):
        context = getattr(error, "ctx", None)
        name = context.command_path if context else "blemish"
        what = error.format_message()  # type: ignore[attr-defined]
        return "UsageError", f"{name}: {what}\nTry '{name} --help'.", ERROR
    match error:
        case KeyboardInterrupt():
            what = str(error) or "no file was left half written"
            status = BY_SIGNAL + interrupts.number_of(error)
            return "Interrupted", f"blemish: interrupted; {what}", status
        case ImportError() if (told := missing(error)) is not None:
            return type(told).__name__, f"blemish: {told}", ERROR
        case BlemishError():
            return kind, f"blemish: {error}", ERROR
        case OSError(errno=errno.ENOSPC):
            place = f" ({error.filename})" if error.filename else ""
            full = f"blemish: the disk is full{place}; make room or choose another place"
            return OutputError.__name__, full, ERROR
        case OSError():
            reason = f"{error.filename or 'the system'}: {error.strerror or error}"
            return kind, f"blemish: {reason}", ERROR
    from blemish.images import ran_out

    if ran_out(error):
        smaller = "--batch-size, --image-size, bank_size or train_batch_size"
        return "MemoryError", f"blemish: out of memory; choose a smaller {smaller}", ERROR
    bug = f"blemish: this is a bug in blemish ({kind}: {error})"
    return kind, f"{bug}; BLEMISH_DEBUG=1 shows where it comes from", ERROR


def _debugging() -> bool:
    return os.environ.get("BLEMISH_DEBUG", "") not in ("", "0")


def _forget_output() -> None:
    """Send what is still to come nowhere: the reader of our output has gone."""
    with suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.stdout.flush()


def _show_version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version

        print(f"blemish {version('blemish')}")
        raise typer.Exit


def _root(
    version: Annotated[
        bool,
        typer.Option(
            "--version", callback=_show_version, is_eager=True, help="Show the version and leave."
        ),
    ] = False,
) -> None:
    pass

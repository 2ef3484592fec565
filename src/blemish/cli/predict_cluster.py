"""--engine ray: what `predict` does on a cluster, its options, and what is printed of it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from typer import Option

from blemish import interrupts
from blemish.cli import console, options, words
from blemish.cli.status import BROKEN_PICTURES, BY_SIGNAL, WELL
from blemish.errors import ConfigError, unknown_name
from blemish.text import pluralize

if TYPE_CHECKING:
    from blemish.scale.predict import Done

_ENGINES = ("auto", "torch", "onnxruntime", "openvino")
_ITS_OWN = ("address", "num_workers", "gpus_per_worker", "partition_by")  # no use without a cluster
_NOT_THERE = (  # what is of one process
    *("coco", "report", "scales", "adapt", "group_by", "roi", "ignore", "overlay_size"),
)
_SAVED = ("masks", "maps")

Engine = Annotated[
    str,
    Option(
        metavar="NAME",
        help="What computes: torch for an artifact; onnxruntime or openvino for an exported file. "
        "auto = what the file is made for. ray, or ray:NAME = the same on a cluster, of any number "
        "of pictures: PATH is then one folder, pattern or table (.csv, .parquet), and it, ARTIFACT "
        "and --output may be on other file systems (s3://, gs://, abfs://, hdfs://).",
    ),
]
PartitionBy = Annotated[
    str | None,
    Option(
        metavar="COLUMN",
        help="Divide what --engine ray writes into folders by the values of a column.",
    ),
]


def place(text: str) -> Path | str:
    """A path, or as it is what names another file system."""
    from blemish.scale.places import scheme_of

    return text if scheme_of(text) else Path(text)


def is_meant(given: Mapping[str, Any]) -> bool:
    """Whether `predict` is to work on a cluster.

    Raises: ConfigError for what it would need one for, without.
    """
    if given["engine"].partition(":")[0] == "ray":
        return True
    for name in _ITS_OWN:
        if given[name] is not None:
            raise ConfigError(f"{_option(name)}: is for --engine ray")
    for one in (given["artifact"], *given["paths"], given["output"]):
        if isinstance(one, str):
            raise ConfigError(f"{one}: is on another file system, which --engine ray works with")
    return False


def predict(given: Mapping[str, Any]) -> int:
    """Score pictures on a cluster; gives the exit status. Args: given: as `predict` takes it."""
    from blemish.scale.predict import predict as scored

    _, _, engine = given["engine"].partition(":")
    if engine and engine not in _ENGINES:
        raise unknown_name("engine of --engine ray:NAME", engine, _ENGINES)
    for name in _NOT_THERE:
        if given[name] is not None:
            raise ConfigError(f"{_option(name)}: not with --engine ray; score those pictures here")
    if given["output"] is None:
        raise ConfigError("--engine ray: rows need a place; name it with --output FOLDER")
    if len(given["paths"]) != 1:
        raise ConfigError(
            f"--engine ray: takes one folder, table or pattern, got {len(given['paths'])}; put a "
            "pattern into quotes"
        )
    saved = options.parts(given["save"] or "")
    for name in saved:
        if name not in _SAVED:
            raise unknown_name("part of --save with --engine ray", name, _SAVED)
    how = {name: given[name] for name in ("category", "threshold", "region_threshold")}
    how |= {name: given[name] for name in ("device", "precision", "smallest_region", "resume")}
    how |= {name: given[name] for name in ("address", "num_workers", "partition_by")}
    how |= {name: given[name] for name in ("threads", "batch_size") if given[name] is not None}
    with console.progress() as progress:
        done = scored(
            given["artifact"],
            given["paths"][0],
            given["output"],
            engine=engine or "auto",
            maps="maps" in saved,
            masks="masks" in saved,
            gpus_per_worker=given["gpus_per_worker"] or 0.0,
            progress=progress,
            **how,
        )
    if given["resume"] and not done.earlier:
        console.complain(
            f"blemish: notice: nothing to resume: no rows were in {done.output}; it has begun anew"
        )
    return _tell(done, str(given["artifact"]), as_json=given["json"])


def _option(name: str) -> str:
    return f"--{name.replace('_', '-')}"


def _tell(done: Done, artifact: str, *, as_json: bool) -> int:
    document = {
        **{"artifact": artifact, "output": done.output, "pictures": done.pictures},
        **{"earlier": done.earlier, "earlier_failed": done.earlier_failed},
        **{"scored": done.scored, "alarms": done.alarms, "failed": done.failed},
        **{"files": done.files, "workers": done.workers},
        **{"interrupted": done.interrupted is not None, "left_out": list(done.left_out)},
    }
    console.answer(document, _lines(done), as_json=as_json)
    if done.interrupted is None:
        return BROKEN_PICTURES if done.failed or done.earlier_failed else WELL
    rows = done.earlier + done.scored + done.failed
    console.complain(
        f"blemish: interrupted after {rows} of {pluralize(done.pictures, 'picture')}; the same "
        "command with --resume goes on from here"
    )
    return BY_SIGNAL + interrupts.number_of(done.interrupted)


def _lines(done: Done) -> Iterable[str]:
    yield from words.notices(done.left_out)
    if done.earlier:
        errors = f", {done.earlier_failed} of them with an error" if done.earlier_failed else ""
        yield f"{pluralize(done.earlier, 'picture')} had a row already{errors}"
    failed = f"; {done.failed} could not be read: their rows have an error" if done.failed else ""
    yield f"{done.scored} scored: {pluralize(done.alarms, 'alarm')}{failed}"
    yield f"rows: {done.output} ({pluralize(done.files, 'file')} of Parquet written)"

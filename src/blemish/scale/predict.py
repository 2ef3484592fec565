"""Pictures by the million, scored on a cluster by Ray Data: fetched and decoded on its CPUs, scored
by actors that hold the detector, written down here.

A part of the source is one task of decoding, and what it makes one block of the object store. Ray
holds decoding back while blocks wait: memory does not grow with the number of pictures. Rows come
back in any order. What is lost with a worker or a machine is computed again from its part.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from blemish.detector.reading import Reading
from blemish.errors import BlemishError, ClusterError, ConfigError
from blemish.extras import require
from blemish.scale import rows
from blemish.scale.artifacts import Shipped, shipped
from blemish.scale.cluster import Cluster, cpus_here, explained, joined
from blemish.scale.decoding import Decoding, unpacked, watching
from blemish.scale.output import ROWS_PER_FILE, Output, check_column
from blemish.scale.scorer import Scorer, Settings, pictures_of, settings_told
from blemish.scale.sources import FILE, GROUP, PIXELS, ROW, Source, found, units, without
from blemish.types import Progress, silent

# Bytes of decoded pictures that are handed on at once, about. The one process that hands them out
# takes as long for a block whatever is in it, so blocks grow with the number of workers, up to what
# some of them may take of the memory beside each worker.
BLOCK_BYTES, MOST_BLOCK_BYTES = 16 * 2**20, 64 * 2**20
_BYTES_PER_WORKER = 2 * 2**20
_DECODING = 8  # times a block's bytes: what a task of decoding takes, with its decoders
LARGEST_UNIT = 256  # pictures: what is lost with a worker is a few of these


@dataclass(frozen=True, kw_only=True)
class Done:
    """What a run came to.

    Attributes: pictures: in the source. earlier: rows that were there before, `earlier_failed` of
        them with an error. scored, alarms, failed: of this run. files: written by it. workers: that
        scored. left_out: as of `Source`.
    """

    pictures: int
    earlier: int
    earlier_failed: int
    scored: int
    alarms: int
    failed: int
    files: int
    workers: int
    output: str
    left_out: tuple[str, ...]
    interrupted: KeyboardInterrupt | None = None


def predict(
    artifact: str | Path,
    source: str | Path,
    output: str | Path,
    *,
    address: str | None = None,
    num_workers: int | None = None,
    gpus_per_worker: float = 0.0,
    resume: bool = False,
    partition_by: str | None = None,
    rows_per_file: int = ROWS_PER_FILE,
    filesystem: Any = None,
    progress: Progress = silent,
    **settings: Any,
) -> Done:
    """Score the pictures of a source on a cluster, and write a row for each, none twice.

    Args:
        artifact: a path or a URI; the workers are handed its bytes.
        source: as of `blemish.scale.sources.found`. output: as of `blemish.scale.output.Output`.
        address: as of `blemish.scale.cluster.joined`.
        num_workers: actors that score; None = a core each here, half of the cores of a cluster, or
            as many as it has GPUs for. gpus_per_worker: of each, parts allowed.
        resume, partition_by, rows_per_file: as of `Output`.
        filesystem: in which source and output are; None = by their URI.
        settings: as of `Scorer`; `threads` is 1 where it is not said.
    Raises: MissingExtraError, DataError, ConfigError, OutputError, ArtifactError, and ClusterError
        for a cluster that is out of reach, has no room, or is lost.
    """
    require("ray", "pyarrow", purpose="predict with --engine ray")
    _check_travels(filesystem)
    how = Settings(**{"threads": 1, **settings, "filesystem": filesystem})
    _check_workers(num_workers, gpus_per_worker, how.threads or 1, address)
    pictures = found(source, filesystem)
    brought = shipped(artifact)
    here = Scorer(brought, **vars_of(how))
    schema = _schema(pictures, how)
    check_column(partition_by, schema, pictures.rows)
    run = {"artifact": here.digest, **settings_told(how)}
    kept = {"partition_by": partition_by, "rows_per_file": rows_per_file, "filesystem": filesystem}
    with Output(output, run, schema, resume=resume, **kept) as target:
        todo = without(pictures, target.ids)
        counts = {"scored": 0, "alarms": 0, "failed": 0}
        earlier, workers, stopped = len(pictures.rows) - len(todo), 0, None
        if len(todo):
            progress("joining the cluster", 0, 0)
            with joined(address) as cluster, explained():
                workers = _workers(cluster, num_workers, gpus_per_worker, how.threads or 1)
                asked = _Asked(pictures, todo, brought, how, here, workers, gpus_per_worker)
                stopped = _kept(asked, target, counts, progress)
        target.flush()
        if stopped is None:
            target.check(pictures.rows.column("id"))
        return Done(
            pictures=len(pictures.rows), earlier=earlier, earlier_failed=target.failed,
            files=target.files, workers=workers,
            output=target.place.name, left_out=pictures.left_out, interrupted=stopped, **counts,
        )  # fmt: skip


def _kept(
    asked: _Asked, target: Output, counts: dict[str, int], progress: Progress
) -> KeyboardInterrupt | None:
    """Hand rows to where they are kept as they come, and count them; gives what interrupted it."""
    total = len(asked.source.rows)
    done = total - len(asked.todo)
    try:
        for table in _scored(asked):
            target.add(table)
            _count(counts, table)
            done += len(table)
            progress("scoring", done, total)
    except KeyboardInterrupt as error:
        return error
    return None


def _check_travels(filesystem: Any) -> None:
    """Raises: ConfigError for a file system that no worker can be handed."""
    from ray import cloudpickle

    try:
        cloudpickle.dumps(filesystem)
    except Exception as error:
        raise ConfigError(
            f"filesystem: {type(filesystem).__name__} cannot be pickled, and so be handed to the "
            f"workers ({error}); define it in a module that they can import"
        ) from error


def vars_of(settings: Settings) -> dict[str, Any]:
    """The settings by name."""
    return {name: getattr(settings, name) for name in settings.__dataclass_fields__}


@dataclass(frozen=True)
class _Asked:
    source: Source
    todo: Any
    artifact: Shipped
    settings: Settings
    here: Scorer
    workers: int
    gpus: float


def _schema(source: Source, how: Settings) -> Any:
    """Of the rows that are written: those of an answer, then the further columns of the source."""
    names = source.rows.column_names
    further = rows.further(
        {name: source.rows.schema.field(name) for name in names if name not in (FILE, GROUP, ROW)},
        maps=how.maps, masks=how.masks,
    )  # fmt: skip
    made = rows.schema(maps=how.maps, masks=how.masks)
    for column in further.values():
        made = made.append(column)
    return made


def _workers(cluster: Cluster, wanted: int | None, gpus: float, threads: int) -> int:
    """How many actors score. Raises: ClusterError where the cluster has no room for them."""
    by_cpu = max(1, int(cluster.cpus / 2 // threads))
    if wanted is None:
        wanted = min(by_cpu, int(cluster.gpus // gpus)) if gpus else by_cpu
    what = f"the cluster has {cluster.cpus:g} CPUs and {cluster.gpus:g} GPUs"
    if wanted < 1 or wanted * gpus > cluster.gpus + 1e-9:
        raise ClusterError(
            f"--gpus-per-worker {gpus:g}: {what}, too few for {max(wanted, 1)} workers"
        )
    _check_room(wanted, threads, cluster.cpus, what)
    return wanted


def _check_room(workers: int, threads: int, cpus: float, what: str) -> None:
    """Raises: ClusterError where so many CPUs are too few. Args: what: there is, in words."""
    if workers * threads + 1 > cpus:
        raise ClusterError(
            f"--num-workers {workers} with {threads} threads each: {what}, and one must be left to "
            "decode; choose fewer"
        )


def _check_workers(wanted: int | None, gpus: float, threads: int, address: str | None) -> None:
    """Raises: ConfigError for workers that there cannot be; ClusterError where this machine has no
    room for them. Before any work."""
    import ray

    if (wanted is not None and wanted < 1) or gpus < 0:
        raise ConfigError("--num-workers: at least 1 is needed; --gpus-per-worker: 0 or more")
    if gpus and not _is_share(gpus):
        raise ConfigError(f"--gpus-per-worker {gpus:g}: a whole number, or 0.001 to 1, is needed")
    if address is None and not ray.is_initialized():
        here = f"Ray of this machine counts {cpus_here()} CPUs"
        _check_room(wanted or 1, threads, cpus_here(), here)


def _is_share(gpus: float) -> bool:
    """Whether Ray hands out so many GPUs to one: whole ones, or a part of one."""
    return 0.001 <= gpus <= 1 or (gpus > 1 and gpus == int(min(gpus, 2**31)))


def _scored(asked: _Asked) -> Iterator[Any]:
    """Tables of rows, in the order in which they come."""
    import ray
    import ray.data
    from ray.data import DataContext

    context = DataContext.get_current()
    context.target_max_block_size = 2 * block_bytes(asked.workers)
    reading, batch = asked.here.loader.reading, asked.settings.batch_size
    size = unit_size(reading, batch, len(asked.todo), asked.workers)
    parts = [part.combine_chunks() for part in units(asked.todo, size)]
    artifact = ray.put(asked.artifact)
    decode = Decoding(reading, asked.source.filesystem, size, watching())
    how = {"batch_format": "pyarrow", "batch_size": None}
    dataset = (
        ray.data.from_arrow(parts)
        .map_batches(decode, num_cpus=1, memory=decoding_bytes(asked.workers), **how)
        .map_batches(
            _Actor,
            fn_constructor_args=(artifact, asked.settings),
            compute=ray.data.ActorPoolStrategy(size=asked.workers),
            num_cpus=asked.settings.threads or 1,
            num_gpus=asked.gpus or None,
            **how,
        )
    )
    yield from dataset.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=1)


def block_bytes(workers: int) -> int:
    """About how many bytes of decoded pictures are handed on at once.

    Example:
        >>> [block_bytes(workers) // 2**20 for workers in (1, 8, 16, 32, 64)]
        [16, 16, 32, 64, 64]
    """
    return min(max(BLOCK_BYTES, workers * _BYTES_PER_WORKER), MOST_BLOCK_BYTES)


def decoding_bytes(workers: int) -> int:
    """What Ray counts for a task of decoding. Stages that ask for the same are run as one, and then
    one waits for the other: the actors ask for no memory."""
    return _DECODING * block_bytes(workers)


def unit_size(reading: Reading, batch: int, count: int, workers: int) -> int:
    """How many pictures are one task: whole batches, about `block_bytes` when decoded; fewer where
    there would be less than four for each of the workers."""
    looks = reading.preprocessing
    if looks.tiling is not None:
        return 1
    each = 3 * looks.height * looks.width * (1 if reading.raw else 4)
    most = min(LARGEST_UNIT, block_bytes(workers) // each, -(-count // (4 * workers)))
    return max(batch, most // batch * batch)


class _Actor:
    """Scores blocks of decoded pictures; holds the detector.

    What keeps it from loading is raised with its first block: what ends an actor as it begins is
    told by Ray as text alone, and tried again.
    """

    def __init__(self, artifact: Any, settings: Settings) -> None:
        import ray

        self._failed: BlemishError | ImportError | None = None
        try:
            brought = ray.get(artifact) if isinstance(artifact, ray.ObjectRef) else artifact
            self._scorer = Scorer.of(brought, settings)
        except (BlemishError, ImportError) as error:
            self._failed = error

    def __call__(self, block: Any) -> Any:
        if self._failed is not None:
            raise self._failed
        scorer = self._scorer
        columns = {name: block.column(name) for name in block.column_names if name not in PIXELS}
        given, ids = pictures_of(columns)
        if scorer.loader.in_tiles:
            results = scorer.tiled(given)
        else:
            results = scorer.scored(unpacked(block, given))
        return scorer.answer("arrow", columns, given, ids, results)


def _count(counts: dict[str, int], table: Any) -> None:
    import pyarrow.compute as pc

    failed = len(table) - table.column("error").null_count
    counts["failed"] += failed
    counts["scored"] += len(table) - failed
    counts["alarms"] += pc.sum(pc.equal(table.column("verdict"), "alarm")).as_py() or 0

"""Learning from what was reviewed, as jobs in the background: one at a time, scoring goes first.

A job works in a process of its own (`refining`), on a copy of what was said when it began. Its new
version joins the others (`joining`) and is never live by itself: somebody promotes it. Of several
services that share a store each does those that it began. What one leaves behind when it is killed
is told as failed by another, or at its next start, and swept; a version that had joined stays.
"""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import sys
from collections import deque
from collections.abc import Collection, Coroutine, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from blemish.detector.thresholds import pictures_needed
from blemish.errors import BlemishError, ConfigError
from blemish.files import write_whole
from blemish.monitoring.draws import RANDOM
from blemish.serve.joining import join, made_of, settle
from blemish.serve.models import Served
from blemish.serve.refining import How, Item, Task, is_held, way_of
from blemish.serve.refusals import Refusal, not_found
from blemish.store import Job, Reviewed, Store
from blemish.text import pluralize

if TYPE_CHECKING:
    from blemish.serve.service import Service

T = TypeVar("T")
KIND = "refine"
FOLDER = "jobs"  # of the store
_BETWEEN = 0.5  # seconds between two notes of progress
_LAST_WORDS = 2000  # bytes of what a process that failed wrote last
ENDED = ("done", "failed", "cancelled")


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What a job would learn from now.

    Attributes:
        how: "refine": it learns; "calibrate": it sets its threshold anew.
        because: why it cannot learn; "" where it can.
        good, defects: pictures to learn from. held_good, held_defects: to be judged by.
        unkept: reviewed pictures whose files are not kept. unsettled: unsure or disagreed ones.
        missing: what is missing for a job; "" where it can begin.
    """

    how: How
    because: str
    good: int
    defects: int
    held_good: int
    held_defects: int
    unkept: int
    unsettled: int
    missing: str


class Jobs:
    """The jobs of a service that has a store."""

    def __init__(self, service: Service, store: Store, owner: str) -> None:
        self._service, self._store, self._owner = service, store, owner
        self._turn, self._beginning = asyncio.Lock(), asyncio.Lock()
        self._tasks: dict[int, asyncio.Task[None]] = {}

    async def look_after(self, alive: Collection[str]) -> None:
        """Tell of the jobs that services left behind which are gone, and sweep what is nobody's;
        end those of this service that others have ended.

        Args: alive: the services that share the store, this one among them.
        Raises: StoreError.
        """
        models, going, newest = self._service.models, set(), 0
        for job in await self.jobs():
            assert job.id is not None
            newest = max(newest, job.id)
            is_own = job.service == self._owner
            if job.state in ENDED:
                if is_own and job.id in self._tasks and job.state != "done":
                    self._tasks[job.id].cancel()
                if job.state != "failed" or not job.result.get("row"):
                    continue
            elif is_own or job.service in alive:
                going.add(job.id)
                continue
            if await self._in_pool(settle, self._store, models, job):
                state = await self._in_pool(self._store.job, job.id)
                self._tell(job.id, job.model, state.state)
        await asyncio.to_thread(self._sweep_all, going, newest)

    def _sweep_all(self, going: Collection[int], newest: int) -> None:
        """Delete what belongs to a job that is not under way any more. Args: newest: the last one
        that is known: a later one may have begun just now, here or in another service."""

        def is_left(number: str) -> bool:
            return number.isdecimal() and int(number) <= newest and int(number) not in going

        for folder in self._folder.glob("*"):
            if is_left(folder.name):
                shutil.rmtree(folder, ignore_errors=True)
        for name in self._service.models.names:
            with suppress(Refusal):  # where no version can be added there are no drafts
                for left in self._service.models.folder_of(name).glob(".job-*.*"):
                    if is_left(left.name.split(".")[1].removeprefix("job-")):
                        left.unlink(missing_ok=True)

    async def close(self) -> None:
        """Cancel what is under way."""
        for task in list(self._tasks.values()):
            task.cancel()
        await asyncio.gather(*self._tasks.values(), return_exceptions=True)

    async def plan(self, name: str) -> Plan:
        """What a job would learn from now. Raises: Refusal for an unknown model."""
        served = self._service.models.live(name)
        return (await self._gathered(served))[0]

    async def begin(self, name: str, who: str, *, rate: float | None = None) -> Job:
        """Begin a job, or put it in line.

        Args: rate: false-alarm rate of the new threshold, in (0, 1); None = as it was.
        Raises: Refusal where there is nothing to learn from, one is under way, or there is no place
            for a new version.
        """
        served = self._service.models.live(name)
        self._service.models.folder_of(name)
        async with self._beginning:  # of two at once, the second sees the first
            return await self._begun(served, who, rate)

    async def _begun(self, served: Served, who: str, rate: float | None) -> Job:
        name = served.name
        plan, learn, held = await self._gathered(served, rate)
        if plan.missing:
            raise Refusal(409, "NothingToLearn", plan.missing)
        told: dict[str, Any] = {"base": served.version, "rate": rate, "plan": asdict(plan)}
        told |= {"learn": len(learn), "held": len(held)}
        message = "waits for its turn"
        job = Job(
            model=name, kind=KIND, who=who, settings=told, message=message, service=self._owner
        )
        id = await self._in_pool(self._store.add_only_job, job)
        if id is None:
            raise Refusal(409, "Conflict", "a job of this model is under way; wait for it")
        work = self._worked(id, name, served, plan.how, learn, held, rate)
        self._tasks[id] = asyncio.create_task(work)
        self._tasks[id].add_done_callback(lambda task: self._tasks.pop(id, None))
        self._tell(id, name, "waiting")
        return replace(job, id=id)

    async def cancel(self, id: int) -> None:
        """End a job. Raises: Refusal where there is none of that id under way."""
        task = self._tasks.get(id)
        if task is None:
            job = await self.job(id)
            told = {"state": "cancelled", "message": "was cancelled", "service": job.service}
            if not await self._in_pool(partial(self._store.update_job, id, **told)):
                raise not_found("no job of that number is under way")
            return  # another service does it, and ends it when it looks
        task.cancel()
        with suppress(asyncio.CancelledError):
            await asyncio.wait([task])

    async def jobs(self, name: str | None = None) -> list[Job]:
        """The jobs of a model, or of all, the newest first."""
        found: list[Job] = await self._in_pool(self._store.jobs, name)
        return [job for job in found if job.kind == KIND]

    async def job(self, id: int) -> Job:
        """One job. Raises: Refusal where there is none."""
        try:
            found: Job | None = await self._in_pool(self._store.job, id)
        except ConfigError:  # no number that a job can have
            found = None
        if found is None or found.kind != KIND:
            raise not_found("there is no job of that number")
        return found

    @property
    def _folder(self) -> Path:
        folder: Path = self._store.folder
        return folder / FOLDER

    async def _in_pool(self, work: Any, *given: Any) -> Any:
        return await self._service.in_pool(work, *given)

    async def _gathered(
        self, served: Served, rate: float | None = None
    ) -> tuple[Plan, list[Item], list[Item]]:
        """What would be done, with which pictures."""
        how, because = way_of(served.detector)
        found = await self._in_pool(self._store.reviewed, served.name)
        settled = [one for one in found if one.verdict in ("good", "defect")]
        items = await self._in_pool(self._items, settled)
        held = [one for one in items if is_held(one.digest)]
        learn = [one for one in items if not is_held(one.digest)]
        good, bad = _sorted(learn)
        if how == "calibrate":
            good, bad = [one for one in good if one.drawn], []
        held_good, held_bad = _sorted(held)
        plan = Plan(
            how=how,
            because=because,
            good=len(good),
            defects=len(bad),
            held_good=len(held_good),
            held_defects=len(held_bad),
            unkept=len(settled) - len(items),
            unsettled=len(found) - len(settled),
            missing=_missing(served, how, good, bad, rate),
        )
        return plan, [*good, *bad], held

    def _items(self, settled: Sequence[Reviewed]) -> list[Item]:
        """Those whose pictures are kept."""
        items = []
        for one in settled:
            path = self._store.picture(one.row.picture)
            if path is not None:
                items.append(
                    Item(
                        digest=one.row.picture,
                        path=str(path),
                        defective=one.verdict == "defect",
                        defect=one.defect,
                        mask="later" if one.masked else "",
                        drawn=one.draw is not None and one.draw.stratum == RANDOM,
                    )
                )
        return items

    def _with_masks(self, items: Sequence[Item], folder: Path) -> list[Item]:
        """The items with their masks as files: of the reviewer who drew one last."""
        found = self._store.current_of([one.digest for one in items if one.mask])
        made = []
        for one in items:
            drawn = [label.mask for label in found.get(one.digest, {}).values() if label.mask]
            path = folder / f"{one.digest}.png"
            if drawn:
                write_whole(path, drawn[-1], picture=True)
            made.append(replace(one, mask=str(path) if drawn else ""))
        return made

    async def _worked(
        self,
        id: int,
        name: str,
        served: Served,
        how: How,
        learn: Sequence[Item],
        held: Sequence[Item],
        rate: float | None,
    ) -> None:
        """A job from its turn to its end, which is written down whatever comes."""
        folder = self._folder / str(id)
        try:
            async with self._turn:
                await asyncio.to_thread(folder.mkdir, parents=True, exist_ok=True)
                masked = await self._in_pool(self._with_masks, learn, folder)
                task = self._task(id, served, how, masked, held, rate)
                result = await self._learned(id, name, task, folder)
                made = made_of(id, served.version, learn, result)
                draft = Path(task.draft)
                await _to_its_end(join(self._store, self._service.models, name, draft, made))
            self._service.events.publish("version", {"model": name, "version": made["version"]})
            self._tell(id, name, "done")
        except asyncio.CancelledError:
            await self._note(id, state="cancelled", message="was cancelled")
            self._tell(id, name, "cancelled")
        except BlemishError as error:
            await self._failed(id, name, str(error))
        except Exception as error:
            self._service.log.fail("job", error, job=id, model=name)
            await self._failed(id, name, "a fault of blemish; the log of the service says which")
        finally:
            shutil.rmtree(folder, ignore_errors=True)
            self._sweep(name, str(id))

    def _task(
        self,
        id: int,
        served: Served,
        how: How,
        learn: Sequence[Item],
        held: Sequence[Item],
        rate: float | None,
    ) -> Task:
        models, settings = self._service.models, self._service.settings
        file = next(one for one in models.versions(served.name) if one.version == served.version)
        place = models.folder_of(served.name)
        place.mkdir(parents=True, exist_ok=True)
        return Task(
            artifact=str(file.path),
            draft=str(place / f".job-{id}{file.path.suffix}"),
            how=how,
            learn=tuple(learn),
            held=tuple(held),
            rate=rate,
            engine=settings.engine,
            device=settings.device,
            precision=settings.precision,
            threads=settings.threads,
        )

    async def _learned(self, id: int, name: str, task: Task, folder: Path) -> dict[str, Any]:
        """What the process of a job says in the end. Raises: Refusal for what it could not do."""
        place = write_whole(folder / "task.json", json.dumps(task.to_dict()).encode())
        await self._note(id, state="running", message="starts")
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "blemish.serve.refining", str(place),
            stdin=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE, limit=2**26, env=dict(os.environ),
        )  # fmt: skip
        assert process.stdout is not None
        assert process.stderr is not None
        words: deque[bytes] = deque(maxlen=20)
        listening = asyncio.create_task(_kept(process.stderr, words))
        last: Mapping[str, Any] = {}
        noted = 0.0
        try:
            async for line in process.stdout:
                last = json.loads(line)
                now = asyncio.get_running_loop().time()
                if "stage" in last and (now - noted >= _BETWEEN or last["done"] >= last["total"]):
                    noted = now
                    await self._note(id, progress=_share(last), message=_words(last))
                    self._tell(id, name, "running", progress=_share(last), message=_words(last))
            await process.wait()
        finally:
            await _ended(process)
            await listening
        if "result" in last:
            result: dict[str, Any] = last["result"]
            return result
        if "error" in last:
            raise Refusal(422, last["error"]["kind"], self._without_paths(last["error"], task))
        tail = b"".join(words)[-_LAST_WORDS:].decode("utf-8", "replace")
        self._service.log.warn("job ended", job=id, status=process.returncode, said=tail)
        raise Refusal(500, "Ended", f"its process ended with status {process.returncode}")

    def _without_paths(self, error: Mapping[str, str], task: Task) -> str:
        """What went wrong, without telling where files lie."""
        told = error["message"]
        for item in (*task.learn, *task.held):
            told = told.replace(item.path, item.digest[:12])
        for path in (task.artifact, task.draft, str(self._folder)):
            told = told.replace(path, Path(path).name)
        return told

    def _sweep(self, name: str, which: str) -> None:
        """Delete drafts of a model that nobody finishes."""
        with suppress(Refusal):  # where no version can be added there are none
            for left in self._service.models.folder_of(name).glob(f".job-{which}.*"):
                left.unlink(missing_ok=True)

    async def _failed(self, id: int, name: str, message: str) -> None:
        await self._note(id, state="failed", message=message)
        self._tell(id, name, "failed", message=message)

    async def _note(self, id: int, **changes: Any) -> None:
        """Write down how far a job is. A store that is out of reach does not end it."""
        changes["service"] = self._owner  # what another has ended stays so
        try:
            await asyncio.to_thread(lambda: self._store.update_job(id, **changes))
        except BlemishError as error:
            self._service.log.warn("job not noted", job=id, reason=str(error))

    def _tell(self, id: int, name: str, state: str, **more: Any) -> None:
        self._service.events.publish("job", {"job": id, "model": name, "state": state, **more})


def _sorted(items: Sequence[Item]) -> tuple[list[Item], list[Item]]:
    """The good ones, and the defects."""
    return [one for one in items if not one.defective], [one for one in items if one.defective]


def _missing(
    served: Served, how: How, good: Sequence[Item], bad: Sequence[Item], rate: float | None
) -> str:
    """What is missing for a job; "" where it can begin."""
    known = served.detector.learned
    new = [one for one in (*good, *bad) if one.digest not in known]
    if how == "refine":
        return "" if new else "nothing is reviewed that it has not learned from; label some first"
    threshold = served.detector.threshold
    wanted = rate or (threshold.rate if threshold else None) or 0.05
    try:
        needed = pictures_needed(wanted)
    except ConfigError as error:
        return str(error)
    if len(new) >= needed:
        return ""
    return (
        f"{pluralize(len(new), 'good picture')} drawn at random reviewed so far, and a threshold "
        f"at a false-alarm rate of {100 * wanted:g} % takes {needed}; review more"
    )


def _share(line: Mapping[str, Any]) -> float:
    """About how much of a job is done."""
    of_stage: float = line["done"] / max(line["total"], 1)
    if line["stage"] == "comparing":
        return 0.7 + 0.3 * of_stage
    return 0.1 * of_stage if line["stage"] == "looking for what is new" else 0.1 + 0.6 * of_stage


def _words(line: Mapping[str, Any]) -> str:
    if not line["total"]:  # nobody knows how much it is
        return str(line["stage"])
    return f"{line['stage']}: {line['done']} of {line['total']}"


async def _kept(stream: asyncio.StreamReader, words: deque[bytes]) -> None:
    async for line in stream:
        words.append(line[-_LAST_WORDS:])


async def _to_its_end(work: Coroutine[Any, Any, T]) -> T:
    """What comes of work that is not left half done: who cancels it comes too late."""
    task = asyncio.create_task(work)
    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError:
        return await task


async def _ended(process: asyncio.subprocess.Process) -> None:
    """End a process that still runs."""
    if process.returncode is not None:
        return
    with suppress(ProcessLookupError):
        process.terminate()
    try:
        await asyncio.wait_for(process.wait(), 10)
    except TimeoutError:
        with suppress(ProcessLookupError):
            process.kill()
        await process.wait()

"""The detectors that are served, by name and version, and which version of each is live."""

from __future__ import annotations

import asyncio
import time
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from blemish.detector.loading import load
from blemish.detector.predict import Detector
from blemish.errors import BlemishError
from blemish.files import locked
from blemish.serve import files
from blemish.serve.batching import Batcher, Pools, Upload
from blemish.serve.files import ModelFile, check_name
from blemish.serve.promotions import Promotions, Remembered
from blemish.serve.refusals import Refusal, not_found, unusable
from blemish.serve.settings import Settings
from blemish.store.records import pile_of
from blemish.types import Failure, Prediction

Observe = Callable[[str, str, int, float], None]
Joining = Callable[[ModelFile, Detector], Awaitable[None]]
_ABANDONED = 600.0  # seconds without a byte after which nobody brings a version any more
_PATIENCE = 30.0  # for a service that gives another version its name


class Served:
    """A version of a detector that is loaded, and scores in batches.

    Attributes:
        file; name, version: as it is asked for. digest: SHA-256 of its file.
        users: requests that hold it.
    """

    def __init__(self, file: ModelFile, detector: Detector, batcher: Batcher) -> None:
        self.detector, self._batcher, self.file = detector, batcher, file
        self.name, self.version, self.digest = file.name, file.version, file.digest
        self.users = 0

    async def predict(self, upload: Upload) -> Prediction:
        """The prediction of a picture, computed together with those of others.

        Raises: Refusal of a picture that cannot be scored; ConfigError for an unknown category.
        """
        self.users += 1
        try:
            result = await self._batcher.score(upload)
        finally:
            self.users -= 1
        if isinstance(result, Failure):
            raise unusable(result.reason)
        return result

    async def drain(self) -> None:
        """Wait until nobody uses it."""
        while self.users:
            await asyncio.sleep(0.01)


@dataclass(frozen=True, kw_only=True)
class Behind:
    """A version that was promoted and is not live here.

    Attributes:
        version; reason: why not, without a path of this machine.
        state: of its file when that was tried: nothing is tried again before it is another.
    """

    version: str
    reason: str
    state: tuple[int, int] | None


class Registry:
    """The versions of all models: what there is on disk, what is loaded and what is live.

    Attributes:
        complaints: what could not be served at the start, for the log.
        behind: by model, what should be live by the history of promotions, and is not here.
    """

    def __init__(
        self,
        settings: Settings,
        pools: Pools,
        promotions: Promotions | None = None,
        observe: Observe = lambda name, version, count, seconds: None,
    ) -> None:
        self._settings, self._pools, self._observe = settings, pools, observe
        self.promotions: Promotions = promotions or Remembered()
        self._files: dict[str, dict[str, ModelFile]] = {}
        self._live: dict[str, Served] = {}
        self._spare: OrderedDict[tuple[str, str], Served] = OrderedDict()
        self._changing = asyncio.Lock()
        self.complaints: list[str] = []
        self.behind: dict[str, Behind] = {}

    async def open(self) -> None:
        """Load the live version of each model: that which was promoted last, else the newest.

        One that is not there or cannot be loaded is not served, but what was live before it, or the
        next newest; `complaints` say so.

        Raises: BlemishError where no model has a version that can be loaded.
        """
        self._files = await self.in_thread(files.found, self._settings.sources)
        problem: BlemishError | None = None
        for name in self._files:
            problem = await self._open(name) or problem
        if not self._live and problem is not None:
            raise problem
        await self.in_thread(self._sweep)

    async def _open(self, name: str) -> BlemishError | None:
        """Load the live version of a model; the last problem with those that may be so."""
        versions, problem = self._files[name], None
        pile = pile_of(await self.in_thread(self.promotions.promotions, name))
        for version in _candidates(pile, versions, self._settings.models):
            try:
                self._live[name] = await self._loaded(versions[version])
                break
            except BlemishError as error:
                problem = error
                self.complaints.append(f"{name}/{version} cannot be served: {error}")
        if name not in self._live:
            self.complaints.append(f"{name}: no version of it can be served")
        elif pile and self._live[name].version != pile[-1]:
            served = self._live[name].version
            self.complaints.append(
                f"{name}: version {served} is live in place of {pile[-1]}, which was promoted"
            )
            reason = "it could not be loaded when this service started"
            if pile[-1] not in versions:
                reason = "its file is not here"
            state = _state_of(versions.get(pile[-1]))
            self.behind[name] = Behind(version=pile[-1], reason=reason, state=state)
        return problem

    async def look_again(self) -> list[ModelFile]:
        """The versions that have come into the folders of models since, also of models that are not
        served yet. Those of served models are among the others from now on."""
        seen = await self.in_thread(lambda: list(files.in_folders(self._settings.sources)))
        new = []
        for file in seen:
            versions = self._files.setdefault(file.name, {})
            if file.version not in versions:
                versions[file.version] = file
                new.append(file)
        for name in {file.name for file in new}:
            self._files[name] = _in_order(self._files[name])
        return new

    async def begin(self, name: str) -> bool:
        """Serve a model that is new, as at a start; whether it can be."""
        async with self._changing:
            if name not in self._live:
                await self._open(name)
            return name in self._live

    async def follow(
        self, name: str, digest_of: Callable[[str, str], str]
    ) -> tuple[Served, Any] | None:
        """Make the version live that was promoted last, maybe by another service. Where that cannot
        be, `behind` says why, and what was live stays so.

        Args: digest_of: SHA-256 that the file of a version is to have; "" where it is not known.
        Returns: what was live before, and the last promotion; None where nothing changed.
        """
        async with self._changing:
            before = self.live(name)
            history = await self.in_thread(self.promotions.promotions, name)
            version = (pile_of(history) or [before.version])[-1]
            if before.version == version:
                self.behind.pop(name, None)
                return None
            known, state = self.behind.get(name), _state_of(self._files[name].get(version))
            if known is not None and (known.version, known.state) == (version, state):
                return None
            try:
                digest = await self.in_thread(digest_of, name, version)
                spare = self._spare.get((name, version))
                if spare is not None and digest not in ("", spare.digest):
                    del self._spare[(name, version)]  # its file was another one, or still is
                after = self.loaded(name, version) or await self._load_spare(name, version)
                if digest and after.digest != digest:
                    reason = "the file of that version here is another one (by its SHA-256)"
                    raise Refusal(409, "Conflict", reason)
            except BlemishError as error:
                reason = str(error)
                if version not in self._files[name]:
                    reason = "its file is not here"
                state = _state_of(self._files[name].get(version))
                self.behind[name] = Behind(version=version, reason=reason, state=state)
                return None
            await self._exchange(before, after)
            return before, history[-1]

    @property
    def names(self) -> list[str]:
        """Of all models."""
        return list(self._live)

    @property
    def unserved(self) -> list[str]:
        """The models that have files, of which none is live."""
        return [name for name in self._files if name not in self._live]

    def live(self, name: str) -> Served:
        """The version that is live. Raises: Refusal for an unknown model."""
        served = self._live.get(name)
        if served is None:
            raise not_found("there is no model of that name; GET /v1/models lists them")
        return served

    def loaded(self, name: str, version: str) -> Served | None:
        """A version, where it is loaded."""
        live = self.live(name)
        return live if live.version == version else self._spare.get((name, version))

    def versions(self, name: str) -> list[ModelFile]:
        """All versions of a model on disk, the oldest first. Raises: Refusal for no model."""
        self.live(name)
        return list(self._files[name].values())

    async def load(self, name: str, version: str) -> Served:
        """A version, loaded beside the live one where it is another. Raises: Refusal."""
        found = self.loaded(name, version)
        if found is not None:
            if (name, version) in self._spare:
                self._spare.move_to_end((name, version))
            return found
        async with self._changing:
            return self.loaded(name, version) or await self._load_spare(name, version)

    async def promote(self, name: str, version: str, who: str, reason: str = "") -> Served:
        """Make a version live: it is loaded and warm before the first request comes to it, and
        the one before ends what it has. No request is lost.

        Raises: Refusal for an unknown version, or one that cannot be loaded: nothing changes then.
        """
        async with self._changing:
            before = self.live(name).version
            promoted = await self.in_thread(self.promotions.promoted, name)
            is_known = promoted == before and name not in self.behind
            if before == version and (is_known or promoted is None):
                raise Refusal(409, "Conflict", "that version is live already")
            after = self.loaded(name, version) or await self._load_spare(name, version)
            # What was live without being promoted is to be gone back to, too.
            if before != version and (promoted is None or name in self.behind):
                await self.in_thread(
                    self.promotions.promote, name, before, "blemish", "was live before"
                )
            await self.in_thread(self.promotions.promote, name, version, who, reason)
            return await self._exchange(self.live(name), after)

    async def roll_back(self, name: str, who: str) -> Served:
        """Make the version live that was so before the latest promotion. Raises: Refusal."""
        self.live(name)
        async with self._changing:
            pile = pile_of(await self.in_thread(self.promotions.promotions, name))
            if len(pile) < 2:
                raise Refusal(409, "Conflict", "no other version of this model was ever live")
            version = pile[-2]
            after = self.loaded(name, version) or await self._load_spare(name, version)
            await self.in_thread(self.promotions.roll_back, name, who)
            return await self._exchange(self.live(name), after)

    async def add(
        self, name: str, version: str, given: Sequence[Path], joining: Joining | None = None
    ) -> ModelFile:
        """Take a new version in: model files (and an `.xml`'s `.bin`) that lie in `folder_of`,
        renamed to what they will be called. They are loaded first: what cannot be is refused.

        Args: joining: told of the file, as it will be, and of its detector before it is renamed.
        Raises: Refusal, and nothing changes.
        """
        async with self._changing:
            place = self._free_place(name, version, given[0].suffix)
            draft = ModelFile(name=name, version=version, path=given[0])
            with _refusing(draft.path):
                detector, digest = await self._read(draft)
            live = self._live.get(name)
            if live is not None and not await self.in_thread(self.promotions.promotions, name):
                # Or else the new version, as the newest, would be live after the next start.
                told = (name, live.version, "blemish", "was live before")
                await self.in_thread(self.promotions.promote, *told)
            file = ModelFile(name=name, version=version, path=place, digest=digest)
            if joining is not None:
                await joining(file, detector)
            await self.in_thread(self._rename, given, file)
            self._files[name] = _in_order({**self._files.get(name, {}), version: file})
            if name not in self._live:
                with _refusing(place):
                    self._live[name] = await self._loaded(file)
            return file

    def folder_of(self, name: str) -> Path:
        """Where the versions of a model lie. Raises: Refusal where nothing can be added."""
        folder = self._settings.new_models
        if folder is None:
            told = (
                "this service was started with files, and keeps nothing; to take versions in it "
                "needs a folder of models or a store"
            )
            raise Refusal(409, "Conflict", told)
        return folder / check_name("name", name)

    async def close(self) -> None:
        """Once everything that was accepted is done."""
        for served in (*self._live.values(), *self._spare.values()):
            await served.drain()

    def _sweep(self) -> None:
        """Delete what was on its way when a service was killed: nothing has come for a while."""
        folder = self._settings.new_models
        for left in () if folder is None else folder.glob(f"*/{files.COMING}*"):
            with suppress(OSError):
                if time.time() - left.stat().st_mtime > _ABANDONED:
                    left.unlink()

    def _rename(self, given: Sequence[Path], file: ModelFile) -> None:
        """Give model files their names, of which another service takes none meanwhile."""
        with locked(file.path.with_name("versions"), wait=_PATIENCE):
            self._free_place(file.name, file.version, file.path.suffix)
            for path in reversed(given):  # the weights first: an .xml without them is no model
                path.replace(file.path.with_suffix(path.suffix))

    def _free_place(self, name: str, version: str, suffix: str) -> Path:
        folder = self.folder_of(name)
        check_name("version", version)
        if version in self._files.get(name, {}) or any(
            (folder / f"{version}{one}").exists() for one in files.SUFFIXES
        ):
            raise Refusal(409, "Conflict", "there is a version of that name; give it another")
        return folder / f"{version}{suffix}"

    async def _exchange(self, before: Served, after: Served) -> Served:
        """Have requests go to another version from now on; the one before ends what it has."""
        self.behind.pop(before.name, None)
        if after is not before:
            self._spare.pop((after.name, after.version), None)
            self._live[after.name] = after
            self._keep(before)
            await before.drain()
        return after

    async def _load_spare(self, name: str, version: str) -> Served:
        self.live(name)
        if version not in self._files[name]:
            self._files |= await self.in_thread(files.found, self._settings.sources)
        file = self._files[name].get(version)
        if file is None:
            raise not_found("there is no version of that name of this model")
        with _refusing(file.path):
            served = await self._loaded(file)
        self._keep(served)
        return served

    def _keep(self, served: Served) -> None:
        """Among the spare ones, of which the one that was used longest ago goes."""
        self._spare[(served.name, served.version)] = served
        while len(self._spare) > self._settings.spare_versions:
            self._spare.popitem(last=False)  # who holds it ends what it has with it

    async def _loaded(self, file: ModelFile) -> Served:
        """A version, loaded and warm. Raises: BlemishError."""
        detector, digest = await self._read(file)
        file = replace(file, digest=digest)
        self._files[file.name][file.version] = file
        settings = self._settings
        batcher = Batcher(
            detector,
            self._pools,
            largest=settings.largest_batch,
            longest_wait=settings.longest_wait_ms / 1000,
            limits=settings.limits,
            observe=partial(self._observe, file.name, file.version),
        )
        return Served(file, detector, batcher)

    async def _read(self, file: ModelFile) -> tuple[Detector, str]:
        """A detector that has scored once, and the digest of its file. Raises: BlemishError."""

        def read() -> tuple[Detector, str]:
            settings = self._settings
            detector = load(
                file.path,
                engine=settings.engine,
                device=settings.device,
                precision=settings.precision,
                threads=settings.threads,
            )
            return detector, files.digest_of(file)

        detector, digest = await self.in_thread(read)
        async with self._pools.computing:
            await asyncio.get_running_loop().run_in_executor(self._pools.compute, warm, detector)
        return detector, digest

    async def in_thread(self, work: Callable[..., Any], *given: Any) -> Any:
        """What a function gives that takes a while, in the thread that loads versions."""
        return await asyncio.get_running_loop().run_in_executor(self._pools.load, work, *given)


def _state_of(file: ModelFile | None) -> tuple[int, int] | None:
    """What tells whether a file is another than it was: its time and size; None without one."""
    with suppress(OSError):
        if file is not None:
            found = file.path.stat()
            return found.st_mtime_ns, found.st_size
    return None


def _in_order(versions: Mapping[str, ModelFile]) -> dict[str, ModelFile]:
    return dict(sorted(versions.items(), key=lambda item: files.natural(item[0])))


def _candidates(
    pile: Sequence[str], versions: Mapping[str, ModelFile], named: Sequence[Path]
) -> list[str]:
    """The versions that may be live at a start, the best first: as they were promoted, what was
    live before; where nothing was, the newest, those first that were named by themselves."""
    newest = list(versions)[::-1]
    promoted = [one for one in reversed(pile) if one in versions]
    if not promoted:
        newest.sort(key=lambda one: versions[one].path not in named)
        return newest
    return list(dict.fromkeys(promoted))


@contextmanager
def _refusing(path: Path) -> Iterator[None]:
    """Inside, what is wrong with a model is told whoever asked, without its path."""
    try:
        yield
    except Refusal:
        raise
    except BlemishError as error:
        told = str(error).removeprefix(f"{path}: ").replace(str(path), path.name)
        raise Refusal(422, "UnusableModel", f"the model cannot be used: {told}") from error


def warm(detector: Detector) -> None:
    """Score a picture of nothing, so that the first one does not wait for what is made then.

    Raises: EngineError, NonFiniteError.
    """
    looks = detector.preprocessing
    side = max(looks.height, looks.width, looks.tiling.side if looks.tiling else 0)
    grey = np.full((side, side, 3), 128, np.uint8)
    for _ in detector.predict_many([grey]):  # one that does not fit its area fails, and is no fault
        pass

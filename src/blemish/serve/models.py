"""The detectors that are served, by name and version, and which version of each is live."""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from blemish.detector.loading import load
from blemish.detector.predict import Detector
from blemish.errors import BlemishError
from blemish.serve import files
from blemish.serve.batching import Batcher, Pools, Upload
from blemish.serve.files import ModelFile, check_name
from blemish.serve.refusals import Refusal, not_found, unusable
from blemish.serve.settings import Settings
from blemish.types import Failure, Prediction

Observe = Callable[[str, str, int, float], None]


@dataclass(frozen=True, kw_only=True)
class Promotion:
    """A version that was made live: which, when, by whom and why."""

    model: str
    version: str
    who: str
    reason: str = ""
    kind: str = "promote"
    time: datetime = field(default_factory=lambda: datetime.now(UTC))


class Promotions(Protocol):
    """Where it is written down which version is live: the store, or this process's memory."""

    def promote(self, model: str, version: str, who: str, reason: str = "") -> Any: ...
    def promoted(self, model: str) -> str | None: ...
    def promotions(self, model: str) -> Sequence[Any]: ...
    def roll_back(self, model: str, who: str, reason: str = "") -> Any: ...


class Remembered:
    """Promotions that end with the process; as of `Store`."""

    def __init__(self) -> None:
        self._told: dict[str, list[Promotion]] = {}

    def promote(self, model: str, version: str, who: str, reason: str = "") -> Promotion:
        """Note that a version is live from now on."""
        return self._note(Promotion(model=model, version=version, who=who, reason=reason))

    def promoted(self, model: str) -> str | None:
        """The version that is live; None where nobody has promoted one."""
        pile = pile_of(self.promotions(model))
        return pile[-1] if pile else None

    def promotions(self, model: str) -> list[Promotion]:
        """All, the oldest first."""
        return list(self._told.get(model, ()))

    def roll_back(self, model: str, who: str, reason: str = "") -> Promotion:
        """Note that the version before the live one is live again."""
        version = pile_of(self.promotions(model))[-2]
        told = Promotion(model=model, version=version, who=who, reason=reason, kind="roll back")
        return self._note(told)

    def _note(self, one: Promotion) -> Promotion:
        self._told.setdefault(one.model, []).append(one)
        return one


def pile_of(history: Sequence[Any]) -> list[str]:
    """The versions that were live and can be gone back to, the live one last."""
    pile: list[str] = []
    for one in history:
        if one.kind == "roll back":
            pile.pop()
        elif pile[-1:] != [one.version]:
            pile.append(one.version)
    return pile


class Served:
    """A version of a detector that is loaded, and scores in batches.

    Attributes:
        name, version: as it is asked for. digest: SHA-256 of its file.
        users: requests that hold it.
    """

    def __init__(self, file: ModelFile, detector: Detector, batcher: Batcher) -> None:
        self.detector, self._batcher = detector, batcher
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


class Registry:
    """The versions of all models: what there is on disk, what is loaded and what is live.

    Attributes: complaints: what could not be served at the start, for the log.
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

    async def open(self) -> None:
        """Load the live version of each model: that which was promoted last, else the newest.

        One that is not there or cannot be loaded is not served, but what was live before it, or the
        next newest; `complaints` say so.

        Raises: BlemishError where no model has a version that can be loaded.
        """
        self._files = await self._in_thread(files.found, self._settings.sources)
        problem: BlemishError | None = None
        for name, versions in self._files.items():
            pile = pile_of(await self._in_thread(self.promotions.promotions, name))
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
                told = (
                    f"{name}: version {served} is live in place of {pile[-1]}, which was promoted"
                )
                self.complaints.append(told)
        if not self._live and problem is not None:
            raise problem
        await self._in_thread(self._sweep)

    @property
    def names(self) -> list[str]:
        """Of all models."""
        return list(self._live)

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
            return await self._swap(
                name, version, partial(self.promotions.promote, name, version, who, reason)
            )

    async def roll_back(self, name: str, who: str) -> Served:
        """Make the version live that was so before the latest promotion. Raises: Refusal."""
        self.live(name)
        async with self._changing:
            pile = pile_of(await self._in_thread(self.promotions.promotions, name))
            if pile[-1:] == [self._live[name].version]:
                pile.pop()
            if not pile:
                raise Refusal(409, "Conflict", "no other version of this model was ever live")
            return await self._swap(name, pile[-1], partial(self.promotions.roll_back, name, who))

    async def add(self, name: str, version: str, given: Sequence[Path]) -> ModelFile:
        """Take a new version in: model files (and an `.xml`'s `.bin`) that lie in `folder_of`,
        renamed to what they will be called. They are loaded first: what cannot be is refused.

        Raises: Refusal, and nothing changes.
        """
        async with self._changing:
            place = self._free_place(name, version, given[0].suffix)
            draft = ModelFile(name=name, version=version, path=given[0])
            with _refusing(draft.path):
                await self._read(draft)
            live = self._live.get(name)
            if live is not None and not await self._in_thread(self.promotions.promotions, name):
                # Or else the new version, as the newest, would be live after the next start.
                told = (name, live.version, "blemish", "was live before")
                await self._in_thread(self.promotions.promote, *told)
            for path in reversed(given):  # the weights first: an .xml without them is no model
                path.replace(place.with_suffix(path.suffix))
            digest = await self._in_thread(files.digest_of, replace(draft, path=place))
            file = ModelFile(name=name, version=version, path=place, digest=digest)
            known = {**self._files.get(name, {}), version: file}
            self._files[name] = dict(sorted(known.items(), key=lambda x: files.natural(x[0])))
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
        """Delete what was on its way when the service before was killed."""
        folder = self._settings.new_models
        for left in () if folder is None else folder.glob(f"*/{files.COMING}*"):
            left.unlink(missing_ok=True)

    def _free_place(self, name: str, version: str, suffix: str) -> Path:
        folder = self.folder_of(name)
        check_name("version", version)
        if version in self._files.get(name, {}) or any(
            (folder / f"{version}{one}").exists() for one in files.SUFFIXES
        ):
            raise Refusal(409, "Conflict", "there is a version of that name; give it another")
        return folder / f"{version}{suffix}"

    async def _swap(self, name: str, version: str, note: Callable[[], Any]) -> Served:
        before = self.live(name)
        if before.version == version:
            raise Refusal(409, "Conflict", "that version is live already")
        after = self.loaded(name, version) or await self._load_spare(name, version)
        # What was live without being promoted is to be gone back to, too.
        if await self._in_thread(self.promotions.promoted, name) != before.version:
            told = (name, before.version, "blemish", "was live before")
            await self._in_thread(self.promotions.promote, *told)
        await self._in_thread(note)
        del self._spare[(name, version)]
        self._live[name] = after
        self._keep(before)
        await before.drain()
        return after

    async def _load_spare(self, name: str, version: str) -> Served:
        self.live(name)
        if version not in self._files[name]:
            self._files |= await self._in_thread(files.found, self._settings.sources)
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

        detector, digest = await self._in_thread(read)
        async with self._pools.computing:
            await asyncio.get_running_loop().run_in_executor(self._pools.compute, warm, detector)
        return detector, digest

    async def _in_thread(self, work: Callable[..., Any], *given: Any) -> Any:
        return await asyncio.get_running_loop().run_in_executor(self._pools.load, work, *given)


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

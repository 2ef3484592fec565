"""The parts of `benchmarks/robustness.py`: each goes through its attempts and gives tallies."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from fuzzing import artifacts, bombs, commands, damage, endings, forks, graphs, pictures, texts
from fuzzing.tallies import Tally, outcome_of

MANY = 10_000_000  # attempts: the time ends them


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What a part is given.

    Attributes:
        folder: an empty one of its own. seed: of everything random.
        deadline: of `time.monotonic()`. corpus: pictures of others. keep: for files that did harm.
    """

    folder: Path
    seed: int
    deadline: float
    corpus: Path | None = None
    keep: Path | None = None

    def random(self, *numbers: int) -> np.random.Generator:
        return np.random.default_rng([self.seed, *numbers])

    def kept(self, name: str, content: bytes) -> None:
        if self.keep is not None:
            (self.keep / name).write_bytes(content)

    def before(self, share: float) -> float:
        """When a share of the time that is left is over."""
        now = time.monotonic()
        return now + max(0.0, self.deadline - now) * share


@dataclass(frozen=True)
class Original:
    """A picture that is whole: its format, kind, bytes, pixels (uint8) and the decoder's notes."""

    form: str
    kind: str
    data: bytes
    pixels: pictures.Pixels
    notes: tuple[str, ...]


def _originals(plan: Plan) -> tuple[list[Original], Tally]:
    """Generated ones, or those of a corpus; and how those went as they are."""
    from blemish.errors import BlemishError
    from blemish.images import EXTENSIONS, decode

    tally = Tally("pictures", "of the corpus" if plan.corpus else "generated", "as they are")
    given: Iterable[tuple[str, bytes]]
    if plan.corpus:
        files = sorted(path for path in plan.corpus.rglob("*") if path.suffix.lower() in EXTENSIONS)
        order = plan.random().permutation(len(files))[:400]
        given = ((files[place].name, files[place].read_bytes()) for place in order)
    else:
        makers = pictures.MAKERS.values()
        given = [item for maker in makers for item in maker(plan.random()).items()]
    found = []
    for name, data in given:
        form = pictures.format_of(data)
        try:
            picture = decode(data)
        except BlemishError as error:
            tally.add("refused" if plan.corpus else "wrong", f"{name}: {error}")
            continue
        tally.add("right")
        if form is not None and picture.pixels.nbytes < 2**26:
            found.append(Original(form, name, data, picture.as_uint8(), picture.notes))
    return found, tally


def of_pictures(plan: Plan) -> Iterator[Tally]:
    """Damaged and forged pictures through the decoder."""
    originals, as_they_are = _originals(plan)
    yield as_they_are
    ways = list(damage.MUTATIONS)

    def made(index: int) -> tuple[Original, str, bytes]:
        random = plan.random(1, index)
        one, way = originals[index // len(ways) % len(originals)], ways[index % len(ways)]
        return one, way, damage.MUTATIONS[way](one.data, random)

    def work(index: int) -> dict[str, Any]:
        one, _way, data = made(index)
        if data == one.data:
            return {"verdict": "same"}
        return damage.tried(data, one.pixels, one.notes)

    tallies: dict[tuple[str, str], Tally] = {}
    for index, answer in forks.through(work, MANY, deadline=plan.deadline):
        one, way, data = made(index)
        outcome, why = outcome_of(answer)
        if outcome == "same":
            continue
        form = damage.checked_as(one.form, one.kind)
        told = form in damage.TOLD.get(way, ())
        tally = tallies.setdefault((form, way), Tally("pictures", form, way, told))
        tally.add(outcome, f"{one.kind}: {why} (attempt {index})")
        tally.measured(answer)
        if size := answer.get("size", 0):
            tally.peak_ratio = max(tally.peak_ratio, answer["peak"] / max(size, 2**24))
        if tally.faults and (outcome in ("crash", "hang", "bug") or (outcome == "wrong" and told)):
            plan.kept(f"{one.form}-{way}-{index}", data)
    yield from (tallies[key] for key in sorted(tallies))


def of_bombs(plan: Plan) -> Iterator[Tally]:
    """Small files that ask for much: each is refused, or decoded within its means."""
    made = bombs.bombs()

    def work(index: int) -> dict[str, Any]:
        return damage.tried(made[index][1], np.zeros((1, 1, 3), np.uint8))

    tally = Tally(
        "bombs", "all", f"at most {max(len(data) for _, data in made) // 1024} KiB", told=False
    )
    for index, answer in forks.through(work, len(made), limit=30, deadline=plan.deadline + 60):
        outcome, why = outcome_of(answer)
        if answer.get("seconds", 0) > max(
            forks.LIMIT, answer.get("size", 0) * bombs.SECONDS_PER_BYTE
        ):
            outcome, why = "hang", f"{answer['seconds']} s, {why}"
        # A large picture of one colour is one: it has no original to differ from.
        outcome = "right" if outcome in ("wrong", "noted", "changed") else outcome
        tally.add(outcome, f"{made[index][0]}: {why}")
        tally.measured(answer)
        if size := answer.get("size", 0):
            tally.peak_ratio = max(tally.peak_ratio, answer["peak"] / max(size, 2**24))
    yield tally


def of_memory(plan: Plan) -> Iterator[Tally]:
    """Large pictures of every kind: the peak by the bytes of the decoded picture, at most 3."""
    path = plan.folder / "large"
    for name, maker in bombs.large().items():
        if time.monotonic() > plan.deadline:
            break
        forks.attempt(lambda maker=maker: path.write_bytes(maker()) and 0, limit=120)  # type: ignore[misc]
        tally = Tally("memory", name, f"{bombs.MEGAPIXELS} megapixels")

        def work(_: int) -> dict[str, Any]:
            from blemish.images import decode

            picture = decode(path)
            return {"verdict": "right", "size": picture.pixels.nbytes}

        for _, answer in forks.through(work, 1, limit=30):
            outcome, why = outcome_of(answer)
            ratio = answer.get("peak", 0) / max(answer.get("size", 0), 2**24)
            tally.peak_ratio = ratio
            over = outcome == "right" and ratio > bombs.PEAK
            tally.add(
                "memory" if over else outcome, why or f"{ratio:.1f} times the decoded picture"
            )
            tally.measured(answer)
        yield tally
    yield from bombs.several_at_once(plan.folder)


def of_artifacts(plan: Plan) -> Iterator[Tally]:
    """Artifacts of every method that no fit has written, through `inspect` and `predict`."""
    from PIL import Image

    from blemish import artifact

    picture = plan.folder / "part.png"
    Image.fromarray(artifacts.parts(1, seed=77)[0]).save(picture)
    forks.attempt(lambda: artifacts.write_detectors(plan.folder) and 0, limit=120)
    paths = {path.stem: path for path in sorted(plan.folder.glob("*.blemish"))}
    found = {name: artifact.read(path) for name, path in paths.items()}
    known = _known_scores(paths, picture)
    listed = [
        (name, *case) for name, (state, told) in found.items() for case in _listed(state, told)
    ]
    order = plan.random(2).permutation(len(listed))
    names = list(found)

    def made(index: int) -> tuple[str, str, str, bytes]:
        """(method, way, what, content): those that are listed first, in a random order."""
        if index < len(listed):
            name, way, what, content = listed[order[index]]
            return name, way, what, content()
        random = plan.random(3, index)
        name = names[index % len(names)]
        state, told = found[name]
        if random.random() < 0.1:
            bad = artifacts.bad_table(artifacts.table_of(paths[name].read_bytes()), random)
            return name, "table of tensors", "", artifacts.forge(state, told, table=bad)
        field, value, manifest = artifacts.altered(told, random)
        shown = "left out" if value is artifacts.DELETED else repr(value)[:60]
        return name, "any field", f"{field} = {shown}", artifacts.forge(state, manifest)

    def work(index: int) -> dict[str, Any]:
        name, _, _, content = made(index)
        path = plan.folder / "forged"
        path.write_bytes(content)
        return artifacts.judged(path, picture, known[name])

    yield from _judged(plan, "artifacts", made, work)


def _known_scores(paths: Mapping[str, Path], picture: Path) -> dict[str, artifacts.Scores]:
    def scored(index: int) -> dict[str, Any]:
        line = ("predict", list(paths.values())[index], picture, "--json", *commands.DEVICE)
        score, label, more = artifacts.scores_of(artifacts.command(*line)[1])
        return {"verdict": "right", "score": score, "label": label, "more": more}

    answers = dict(forks.through(scored, len(paths)))
    return {
        name: (answers[place]["score"], answers[place]["label"], tuple(answers[place]["more"]))
        for place, name in enumerate(paths)
    }


Case = tuple[str, str, Callable[[], bytes]]


def _listed(state: artifacts.State, told: artifacts.Manifest) -> Iterator[Case]:
    """(way, what, content) of all that must be refused, by itself."""
    for field, value, manifest in artifacts.impossible(told):
        shown = "left out" if value is artifacts.DELETED else repr(value)[:60]
        yield (
            "impossible value",
            f"{field} = {shown}",
            lambda manifest=manifest: artifacts.forge(state, manifest),  # type: ignore[misc]
        )
    backbone = [name for name in state if name.startswith("backbone.")]
    for name in [name for name in state if name not in backbone] + backbone[:2]:
        for how in artifacts.BAD_TENSORS:
            changed = artifacts.damaged(state, name, how)
            if changed is not None:
                yield (
                    "impossible tensor",
                    f"{name} {how}",
                    lambda changed=changed: artifacts.forge(changed, told),  # type: ignore[misc]
                )
    yield "impossible value", "deep nesting", lambda: artifacts.forge(state, artifacts.nested())


def _judged(
    plan: Plan,
    part: str,
    made: Callable[[int], tuple[str, str, str, bytes]],
    work: Callable[[int], dict[str, Any]],
) -> Iterator[Tally]:
    tallies: dict[tuple[str, str], Tally] = {}
    for index, answer in forks.through(work, MANY, deadline=plan.deadline):
        name, way, what, content = made(index)
        outcome, why = outcome_of(answer)
        if way.startswith("impossible") and outcome in ("right", "other", "accepted"):
            outcome = "wrong"
        tally = tallies.setdefault((name, way), Tally(part, name, way))
        tally.add(outcome, f"{what}: {why}")
        tally.measured(answer)
        if outcome in ("crash", "hang", "bug", "memory", "wrong") or answer.get("requests"):
            plan.kept(f"{part}-{name}-{index}".replace(" ", "_").replace("/", "_"), content)
    yield from (tallies[key] for key in sorted(tallies))


def of_texts(plan: Plan) -> Iterator[Tally]:
    """Tables, settings, rows, predictions, checkpoints, encoders, weights and suites."""
    made: list[texts.Reader] = []

    def readers() -> list[texts.Reader]:
        """Made in each fork anew, as they are fitted detectors among others."""
        if not made:
            folder = plan.folder / f"made-{os.getpid()}"
            folder.mkdir()
            made.extend(texts.readers(folder))
        return made

    def named(_: int) -> dict[str, Any]:
        return {"verdict": "right", "names": [[each.name, each.form] for each in readers()]}

    (_, answer), *_ = forks.through(named, 1, limit=60)
    if "names" not in answer:
        raise SystemExit(f"the texts could not be made: {answer}")
    names = answer["names"]

    def work(index: int) -> dict[str, Any]:
        reader = readers()[index % len(names)]
        content = texts.hostile(reader.right, reader.form, plan.random(4, index))
        (plan.folder / "last").write_bytes(content)
        return reader.attempt(content)

    tallies: dict[str, Tally] = {}
    for index, answer in forks.through(work, MANY, deadline=plan.deadline):
        name, form = names[index % len(names)]
        tally = tallies.setdefault(name, Tally("texts", name, form))
        outcome, why = outcome_of(answer)
        tally.add(outcome, f"attempt {index}: {why}")
        tally.measured(answer)
        if outcome in ("crash", "hang", "bug", "memory") or answer.get("requests"):
            plan.kept(
                f"texts-{name}-{index}".replace(" ", "_"), (plan.folder / "last").read_bytes()
            )
    yield from tallies.values()


PARTS: Mapping[str, tuple[Callable[[Plan], Iterator[Tally]], float]] = {
    "pictures": (of_pictures, 1.5),
    "bombs": (of_bombs, 0.3),
    "memory": (of_memory, 1.5),
    "artifacts": (of_artifacts, 2.0),
    "texts": (of_texts, 2.0),
    "graphs": (graphs.of_graphs, 1.0),
    "places": (endings.of_places, 0.8),
    "names": (endings.of_names, 0.2),
    "kills": (endings.of_kills, 7.0),
    "signals": (endings.of_signals, 1.0),
    "disks": (endings.of_disks, 1.0),
    "together": (endings.of_together, 0.5),
}
"""Part -> what goes through it, and its share of the time."""

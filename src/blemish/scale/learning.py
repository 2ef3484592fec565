"""Learning in parts: the pictures are divided, each part is learned by itself, and what the parts
taught is merged in a tree (`methods.merging`).

The parts follow from the pictures alone, in the order in which they are named, and so does the
tree: one process, and any number of workers on any number of machines, make the same artifact, to
the bit where they compute with as many threads, the same kernels and the same libraries. What the
good pictures score (held out, or each left out in turn) is measured in the same parts and put
together without loss. The few pictures that a foreground, the categories and the record look at
are read by this process.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from hashlib import sha256
from pathlib import Path
from typing import Any

import torch

from blemish import artifact
from blemish import config as configs
from blemish.compute import precision_name, use_threads
from blemish.data.stream import Found, PictureStream
from blemish.detector import fit as fitting
from blemish.detector.evidence import Scored
from blemish.detector.predict import Detector
from blemish.detector.ways import Way, check_usable
from blemish.errors import ConfigError, DataError
from blemish.methods import METHODS, Method, method_class
from blemish.methods.capabilities import LearnsInParts
from blemish.methods.foreground import Foreground
from blemish.methods.in_parts import InParts
from blemish.methods.merging import Node, Reduction, State, divided
from blemish.scale import pieces
from blemish.scale.hands import Alone, Hands
from blemish.scale.jobs import Shared, Work, learn_part, merge_parts, score_part, work
from blemish.scale.kept import Kept, check_free, identity_of
from blemish.types import Progress

MEASURED = 64  # pictures, at most, that tell how far their features lie from the bank
_OF_SCALE = 4096  # pictures, at most, whose maps set the scale of the heatmaps
_ALIKE = 16384  # pictures, at most, among which those that look nearly the same are counted


def fit(
    method: str,
    good: Any,
    *,
    hands: Hands | None = None,
    part_pictures: int | None = None,
    threads: int | None = None,
    keep: Path | None = None,
    resume: bool = False,
    **options: Any,
) -> Detector:
    """A detector as of `blemish.fit`, learned in parts: patchcore, knn and padim.

    Args:
        hands: who does the work, as `hands.on_ray` gives them; None = this process.
        part_pictures: of a part; None = 64, or more where there would be more than 256 parts. The
            result depends on it, a little.
        threads: of this process meanwhile; None = as many as each of the hands, or as it is.
        keep: a folder in which what the parts gave is kept, so that it can be gone on from. It
            stays when all is done: whoever has saved the detector removes it (`kept.forget`).
        resume: go on from what lies there.
        options: as of `blemish.fit`; not those of methods that are trained, and no tiles.
    Raises: as `blemish.fit`; ConfigError for what does not learn in parts; ClusterError;
        OutputError as `kept.Kept`.
    """
    check(method, options)
    if part_pictures is not None and part_pictures < 1:
        raise ConfigError(f"part_pictures: at least 1 is needed, got {part_pictures}")
    if keep is not None:
        check_free(keep, resume=resume)
    by: Hands = Alone() if hands is None else hands
    if by.device == "cuda" and options.get("device", "auto") not in ("auto", "cuda"):
        raise ConfigError("device: the workers are to compute on GPUs; leave it out")
    if by.device == "cpu":
        options = {**options, "device": "cpu"}
    way = _InParts(by, part_pictures, keep, resume).way
    with _computing_with(by.threads if threads is None else threads):
        return fitting.fit(method, good, way=way, **options)


def check(method: str, options: Mapping[str, Any]) -> None:
    """Raises: ConfigError where this does not learn in parts, with what to do instead."""
    kind = method_class(method)
    if not issubclass(kind, LearnsInParts):
        able = [name for name, one in METHODS.items() if issubclass(one, LearnsInParts)]
        instead = "learns from all pictures in one process"
        if kind.Config().learns_by_gradient:
            instead = "trains by gradient, which goes on several machines with torchrun"
        raise ConfigError(
            f"{method} {instead} (docs/scale.md, Learning in parts); {', '.join(able)} learn in "
            "parts"
        )
    if options.get("student"):
        raise ConfigError(
            "student: is distilled by gradient, in one process; leave it out, or fit without parts"
        )
    if options.get("tile") is not None:
        raise ConfigError(
            "tile: pictures are cut by the process that names them, one by one; leave it out, or "
            "fit without parts"
        )
    chosen = options.get("config")
    if chosen is None:
        own = {field.name for field in dataclasses.fields(kind.Config)}
        chosen = fitting.configure(
            method,
            recipe=options.get("recipe", "best"),
            values={key: value for key, value in options.items() if key in own},
        )
    if needed := chosen.needs_all:
        raise ConfigError(
            f"{needed}, does not go with learning in parts; leave it out, or fit without parts"
        )


@contextmanager
def _computing_with(threads: int | None) -> Iterator[None]:
    before = torch.get_num_threads()
    use_threads(threads)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@dataclass
class _InParts:
    """A fit in parts: what it is that `detector.ways.Way` asks for."""

    hands: Hands
    part_pictures: int | None
    keep: Path | None
    resume: bool
    kept: Kept | None = None
    told: InParts | None = None

    @property
    def way(self) -> Way:
        return Way(learn=self.learn, score=self.score, told=lambda: self.told, here=self.hands.here)

    def learn(self, method: Method, stream: PictureStream, progress: Progress) -> Found:
        assert isinstance(method, LearnsInParts)
        parts = divided(len(stream.order), self.part_pictures)
        plan = {} if self.keep is None else _plan(method, stream, parts)
        self.kept = Kept(self.keep, plan, resume=self.resume)
        self._share(method, stream)
        learning = _Learning(self.hands, self.kept, stream, parts, progress)
        found, state = learning.run()
        check_usable(method, found)
        progress("taking in what was learned", 0, 0)
        originals = {at: first for at, first in found.originals.items() if at != first}
        with torch.inference_mode():
            bound = method.take(state, originals)
            farthest, measured = _farthest(method, stream, found)
        self.told = InParts(
            parts=len(parts),
            levels=Reduction[Node](len(parts)).levels,
            bound=bound,
            farthest=farthest,
            measured=measured,
        )
        return found

    def score(
        self,
        method: Method,
        foreground: Foreground | None,
        stream: PictureStream,
        progress: Progress,
        smallest_region: float,
        left_out: bool,
    ) -> Scored:
        """As of `evidence.scored_here`."""
        assert self.kept is not None
        kept, order = self.kept, stream.order
        self._share(method, stream)
        how = json.dumps([smallest_region, left_out, foreground and configs.to_dict(foreground)])
        of_scale, alike = (set(pieces.evenly(order, most)) for most in (_OF_SCALE, _ALIKE))
        told: dict[int, str] = {}
        scored: dict[int, Scored] = {}

        def keep(number: int, result: Scored) -> Iterable[Work]:
            _refuse_unseen(result.found)
            samples = [(at, values) for at, values in result.samples if at in of_scale]
            one = Scored(result.scored, samples, pieces.thinned(result.found, alike))
            pieces.keep_scored(kept, number, told[number], one)
            scored[number] = one
            progress("calibrating", sum(len(each.scored) for each in scored.values()), len(order))
            return ()

        jobs: list[Work] = []
        for number, part in enumerate(divided(len(order), self.part_pictures)):
            sources = {order[at]: stream.sources[order[at]] for at in part}
            told[number] = sha256(f"{how} {list(sources)}".encode()).hexdigest()
            before = pieces.scored_of(kept, number, told[number])
            if before is None:
                given = (sources, foreground, smallest_region, left_out)
                jobs.append(Work(number, score_part, partial(tuple, given)))
            else:
                scored[number] = before
        work(self.hands, jobs, keep)
        in_order = [scored[number] for number in sorted(scored)]
        return Scored(
            {at: one for each in in_order for at, one in each.scored.items()},
            [sample for each in in_order for sample in each.samples],
            pieces.joined(each.found for each in in_order),
        )

    def _share(self, method: Method, stream: PictureStream) -> None:
        bare = replace(stream, sources=(), positions=())
        self.hands.hold(Shared(method=method, stream=bare, device=self.hands.device))


@dataclass
class _Learning:
    """The first half of a fit in parts: every part learned, everything merged."""

    hands: Hands
    kept: Kept
    stream: PictureStream
    parts: Sequence[range]
    progress: Progress

    def __post_init__(self) -> None:
        self._alike = set(pieces.evenly(self.stream.order, _ALIKE))
        # Of a node of the tree the piece that is its result: its own, or that of a lone child.
        self._tree = Reduction[Node](len(self.parts))
        self._below: dict[Node, tuple[Node, Node]] = {}
        self._found: dict[int, Found] = {}

    def run(self) -> tuple[Found, State]:
        """What was found of all pictures, and what they teach."""
        jobs = [job for node in self._known() for job in self._taken(node)]
        order = self.stream.order
        for number in range(len(self.parts)):
            if number not in self._found:
                sources = {order[at]: self.stream.sources[order[at]] for at in self.parts[number]}
                jobs.append(Work((0, number), learn_part, partial(tuple, (sources,))))
        work(self.hands, jobs, self._then)
        assert self._tree.result is not None
        state = self._state(self._tree.result)
        return pieces.joined(self._found[number] for number in sorted(self._found)), state

    def _known(self) -> list[Node]:
        """What an earlier run has learned and kept, the highest of each branch of the tree."""
        count, known = len(self.parts), list[Node]()
        for level in range(self._tree.levels, -1, -1):
            for number in range(-(-count // 2**level)):
                below = range(number * 2**level, min((number + 1) * 2**level, count))
                if (
                    below[0] in self._found
                    or self.kept.get(pieces.name_of((level, number))) is None
                ):
                    continue
                found = [pieces.found_of(self.kept, part) for part in below]
                whole = [one for one in found if one is not None]
                if len(whole) == len(found):
                    self._found.update(zip(below, whole, strict=True))
                    known.append((level, number))
        return known

    def _then(self, node: Node, result: Any) -> Iterable[Work]:
        """Keep what a job gave; gives the one that can be done now."""
        level, number = node
        if level == 0:
            state, found = result
            _refuse_unseen(found)
            self._found[number] = pieces.thinned(found, self._alike)
            pieces.keep_found(self.kept, number, self._found[number])
        else:
            state = result
        self.kept.put(pieces.name_of(node), state, {})
        for below in self._below.pop(node, ()):
            self.kept.drop(pieces.name_of(below))
        learned = sum(len(self.parts[part]) for part in self._found)
        if learned < len(self.stream.order) or level == 0:
            self.progress("learning", learned, len(self.stream.order))
        else:
            self.progress("merging what was learned", 0, 0)
        return self._taken(node)

    def _taken(self, node: Node) -> Iterable[Work]:
        """The merge that can be done now that the result of a node is kept."""
        due = self._tree.add(node, node)
        if due is None:
            return []
        above, left, right = due
        self._below[above] = left, right
        return [Work(above, merge_parts, lambda: (self._state(left), self._state(right)))]

    def _state(self, node: Node) -> State:
        held = self.kept.get(pieces.name_of(node))
        if held is None:
            raise DataError(
                f"{pieces.name_of(node)}: a part that was kept is gone, or damaged; start anew"
            )
        return held[0]


def _plan(method: Method, stream: PictureStream, parts: Sequence[range]) -> dict[str, Any]:
    """All that what the parts teach depends on; see `Kept`."""
    names = ("blemish", "torch", "timm", "opencv-python-headless", "pillow", "simplejpeg")
    return {
        "pictures": identity_of([stream.sources[at] for at in stream.order]),
        "parts": [len(part) for part in parts],
        "settings": [method.name, configs.to_dict(method.config)],
        "preprocessing": configs.to_dict(stream.preprocessing),
        "weights": method.backbone.info.sha256,
        "precision": precision_name(method.precision),
        "threads": torch.get_num_threads(),
        "batch size": stream.batch_size,
        "versions": {name: artifact.version_of(name) for name in names},
    }


def _farthest(
    method: LearnsInParts, stream: PictureStream, found: Found
) -> tuple[float | None, int]:
    """How far features of some pictures lie from the bank, at most, and of how many pictures."""
    assert isinstance(method, Method)
    some = pieces.evenly(sorted(found.digests), MEASURED)
    reached: list[float] = []
    for batch in stream.only(some).on(method.backbone.device):
        reach = method.farthest(batch)
        if reach is None:
            return None, 0
        reached.append(reach)
    return (max(reached), len(some)) if reached else (None, 0)


def _refuse_unseen(found: Found) -> None:
    """Raises: DataError where a worker cannot see a picture that is there for this process."""
    for one in found.failures.values():
        if "does not exist" in one.reason and Path(one.source).exists():
            raise DataError(
                f"{one.source}: is there for this process and not for a worker; put the pictures "
                "where all machines see them under the same name, as on a shared drive"
            )

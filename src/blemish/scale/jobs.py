"""The jobs of a fit in parts, as functions that any process can call, handed out."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch

from blemish.data.stream import Found, Passes, PictureStream
from blemish.detector.evidence import Scored, scored_here
from blemish.methods import Method
from blemish.methods.capabilities import LearnsInParts
from blemish.methods.foreground import Foreground
from blemish.methods.merging import State
from blemish.scale.hands import Hands, Job
from blemish.types import silent


@dataclass(frozen=True)
class Some(Sequence[Any]):
    """Of the sources of a stream some, by their positions among all."""

    sources: Mapping[int, Any]

    def __getitem__(self, position: Any) -> Any:
        return self.sources[position]

    def __len__(self) -> int:
        return len(self.sources)


@dataclass(frozen=True, kw_only=True)
class Shared:
    """What jobs share: a method, and how pictures come to it.

    Attributes: stream: without sources. device: that the method is to compute on; "" = where it is.
    """

    method: Method
    stream: PictureStream
    device: str = ""

    def of(self, sources: Mapping[int, Any]) -> PictureStream:
        """The pictures of a job, the method being where it computes."""
        if self.device:
            self.method.to(self.device)
        return replace(self.stream, sources=Some(sources), positions=tuple(sources))


@torch.inference_mode()
def learn_part(shared: Shared, sources: Mapping[int, Any]) -> tuple[State, Found]:
    """A job: what some pictures, by position, teach, and what was found of them."""
    stream, method = shared.of(sources), shared.method
    assert isinstance(method, LearnsInParts)
    passes = Passes(stream, method.backbone.device)
    state = method.learn_part(passes, passes.rows, silent)
    return {name: tensor.cpu() for name, tensor in state.items()}, passes.found


@torch.inference_mode()
def merge_parts(shared: Shared, left: State, right: State) -> State:
    """A job: what two parts teach together."""
    assert isinstance(shared.method, LearnsInParts)
    return shared.method.merged(left, right)


@torch.inference_mode()
def score_part(
    shared: Shared,
    sources: Mapping[int, Any],
    foreground: Foreground | None,
    smallest_region: float,
    left_out: bool,
) -> Scored:
    """A job: what some pictures, by position, score; as of `evidence.scored_here`."""
    stream = shared.of(sources)
    return scored_here(shared.method, foreground, stream, silent, smallest_region, left_out)


class Work(NamedTuple):
    """A job to be done: `given` makes its arguments when it begins."""

    key: Any
    job: Job
    given: Callable[[], tuple[Any, ...]]


def work(hands: Hands, jobs: Iterable[Work], then: Callable[[Any, Any], Iterable[Work]]) -> None:
    """Have jobs done, as many at once as the hands take. `then`: called with the key and the result
    of each; the jobs that it gives go before the others.

    Raises: what a job raises; ClusterError.
    """
    waiting, running = deque(jobs), 0
    while waiting or running:
        while waiting and running < hands.room:
            one = waiting.popleft()
            hands.start(one.key, one.job, *one.given())
            running += 1
        key, result = hands.next()
        running -= 1
        waiting.extendleft(then(key, result))

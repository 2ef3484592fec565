"""What some methods can do beside scoring: a small protocol each, which such a method inherits.

Ask with `isinstance(method, Adapts)`, or of a class with `issubclass`; `methods.unable` says who.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Protocol, runtime_checkable

from torch import Tensor

from blemish.backbones import Backbone, Features
from blemish.errors import ConfigError
from blemish.types import Batch, Mode, Progress, Scores

if TYPE_CHECKING:
    from blemish.methods.adaptation import Adapter
    from blemish.methods.base import Method
    from blemish.methods.merging import State
    from blemish.methods.taught import Taught

Batches = Callable[[], Iterable[Batch]]


@runtime_checkable
class Fits(Protocol):
    """It learns in passes over the good pictures, without gradient."""

    def fit(self, batches: Batches, count: int, progress: Progress) -> None:
        """Learn what normal looks like.

        Args:
            batches: each call starts a new pass over the training pictures.
            count: number of pictures in a pass (each copy counts), for progress.
        """


@runtime_checkable
class LearnsInParts(Fits, Protocol):
    """What parts of the pictures teach it can be merged: see `methods.merging`."""

    def learn_part(self, batches: Batches, count: int, progress: Progress) -> State:
        """What some of the pictures teach; as `Fits.fit`, but nothing of it is kept here. The
        batches say the pictures' `positions`. Gives no tensor where there is no picture."""

    def merged(self, left: State, right: State) -> State:
        """What two parts teach together, of which `left` comes first."""

    def take(self, state: State, originals: Mapping[int, int]) -> float | None:
        """Have learned what a state says.

        Args: originals: of each picture the first one of the same content, by position, where it
            is another one.
        Returns: how far any feature of any of the pictures can lie from what was learned, at most;
            None where nothing says that.
        """

    def farthest(self, batch: Batch) -> float | None:
        """How far a feature of these pictures lies from what was learned, at most; None where
        nothing of the pictures was left out."""
        return None


@runtime_checkable
class Summarises(Protocol):
    """Once it has learned, it keeps something of the training pictures as they will be scored."""

    def summarised(self) -> int | None:
        """How many training pictures `summarise` wants, evenly from all; None = all."""

    def summarise(self, batches: Batches, count: int, progress: Progress) -> None:
        """Keep what prediction needs of the training pictures. Called once; as `Fits.fit`."""


@runtime_checkable
class LeavesOneOut(Protocol):
    """It can judge a training picture without what it learned from it: none need be held out.

    It needs one picture more than `minimum_images`.
    """

    def leaves_one_out(self) -> bool:
        """Whether it can with these settings."""
        return True

    def knows_several(self) -> bool:
        """Whether it has something to compare a picture with, now."""

    def see(self, images: Tensor) -> Features:
        """As of `Method`."""

    def judge_left_out(self, features: Features, batch: Batch) -> Scores:
        """As `Method.judge`, each training picture without what it itself has taught."""

    def score_left_out(self, batch: Batch) -> Scores:
        """The same, as `Method.score`."""
        return self.judge_left_out(self.see(batch.images), batch)

    def end_leaving_out(self) -> None:
        """Drop what only this needs. Called once, when all that is to be scored so has been."""
        return

    def good_scores(self) -> dict[int, float] | None:
        """What each picture that it learned from scores so, by owner; None where it is not kept."""
        return None


def nothing_left(what: str, setting: str, size: int) -> ConfigError:
    """Of a memory of `size` that knows one picture, and is asked to leave it out."""
    return ConfigError(
        f"{what} of one training picture only, which leaves none to compare it with; raise "
        f"{setting} ({size})"
    )


@runtime_checkable
class LearnsDefects(Protocol):
    """It learns from labelled defects once it knows what is normal.

    What is trained step by step finds them in its batches instead (`TrainingBatch.labels`).
    """

    def learn_defects(self, batches: Batches, count: int, progress: Progress) -> None:
        """Learn from labelled defects, which come as they are scored, with `Batch.masks`."""


@runtime_checkable
class Refines(LearnsDefects, Protocol):
    """More good pictures and defects can be added to what it knows, one after the other."""

    def refinable(self) -> bool:
        """Whether it can with these settings."""

    def knows_several(self) -> bool:
        """As of `LeavesOneOut`."""

    def learn_more(self, batches: Batches, count: int, progress: Progress) -> None:
        """Learn more good pictures, with owners of their own numbers; as `Fits.fit`."""

    def next_owner(self) -> int:
        """A number above those of all pictures that it knows."""

    def good_scores(self) -> dict[int, float]:
        """As of `LeavesOneOut`."""

    def taught(self) -> Taught | None:
        """How well the defects are told by each other; None where that is not known."""


@runtime_checkable
class Extends(Protocol):
    """It can learn more good pictures beside those that it knows."""

    def extend(self, batches: Batches, count: int, progress: Progress, *, rows: int) -> None:
        """Learn more pictures, with owners of their own numbers; as `Fits.fit`.

        Args: rows: how many pictures (each copy counts) it has learned from so far.
        """

    def next_owner(self) -> int:
        """A number above those of all pictures that it knows."""


@runtime_checkable
class Adapts(Protocol):
    """It can follow the pictures that it scores."""

    def adapter(self, mode: Mode) -> Adapter:
        """What scores batches while adapting to them. Raises: ConfigError where it cannot."""


@runtime_checkable
class LooksAtScales(Protocol):
    """It looks at a picture in several sizes."""

    def with_scales(self, scales: Sequence[int]) -> Method:
        """The same weights, looking at squares of these sides (pixels)."""


@runtime_checkable
class TakesSecond(Protocol):
    """It can see pictures with a second encoder, beside the backbone: see `joint`."""

    @property
    def wants_second(self) -> str:
        """The one that its settings name; "" = none."""

    def take_second(self, encoder: Backbone, also: Sequence[int] = ()) -> None:
        """Have the second encoder that the settings name, and the layers of it that are read.

        Args: also: more layers of it, for others than the method itself; last in what it gives.
        """

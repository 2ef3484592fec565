"""Which version of a model is live, as it was promoted and rolled back: in the store, or, where
nothing is kept, in this process's memory."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Protocol

from blemish.store.records import pile_of


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

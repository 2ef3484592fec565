"""Of several services that share a store, one places pictures in the review queue of a model and
watches for change; the others read what it wrote down."""

from __future__ import annotations

import time

from blemish.store import Held, Store

LEASE = 30.0  # seconds without a word after which another takes over
_ANEW = 5.0  # seconds after which the lease is had anew


class Lead:
    """Whether it is this service that leads.

    Args: owner: its instance id; None where there are no others, and it always leads.

    Attributes: held: under what is to be written; None without others.
    """

    def __init__(self, store: Store, name: str, owner: str | None) -> None:
        self._store = store
        self.held = None if owner is None else Held(name, owner)
        self._leads = owner is None
        self._asked = -LEASE

    def has(self) -> bool:
        """Have the lead, or go on having it, where no other has. Raises: StoreError."""
        now = time.monotonic()
        if self.held is not None and now - self._asked >= _ANEW:
            self._leads = self._store.lease(self.held.name, self.held.holder, LEASE)
            self._asked = now
        return self._leads

    def lose(self) -> None:
        """Take note that another has the lead by now."""
        self._leads, self._asked = False, time.monotonic()

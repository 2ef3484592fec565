"""Tokens that nobody has, counted by the address that they come from: who guesses has few attempts.

An address from which a right token came lately is not shut out, so that a program that is set up
wrongly stops no other on its machine. Behind a proxy all come from one address, unless the service
is told which proxy to believe (`--proxy`).
"""

from __future__ import annotations

import time
from collections import OrderedDict
from ipaddress import IPv6Address, ip_address

from blemish.serve.refusals import Refusal

MOST = 20  # wrong tokens of one address
WITHIN = 60.0  # seconds
_GOOD = 3600.0  # seconds for which an address counts as known after a right token
_ADDRESSES = 10_000  # that are remembered


class Attempts:
    """Wrong tokens of the last minute. Only its event loop uses one."""

    def __init__(self) -> None:
        self._wrong: OrderedDict[str, list[float]] = OrderedDict()
        self._right: OrderedDict[str, float] = OrderedDict()

    def check(self, client: str | None) -> None:
        """Raises: Refusal where too many wrong tokens came from an address."""
        address, now = _network(client), time.monotonic()
        lately = [one for one in self._wrong.get(address, ()) if now - one < WITHIN]
        if len(lately) < MOST or now - self._right.get(address, -_GOOD) < _GOOD:
            return
        seconds = max(1, round(WITHIN - (now - lately[0])))
        raise Refusal(
            429,
            "TooManyAttempts",
            f"too many tokens that nobody has came from this address; try again in {seconds} s",
            {"Retry-After": str(seconds)},
        )

    def wrong(self, client: str | None) -> None:
        """Count a token that nobody has."""
        address, now = _network(client), time.monotonic()
        lately = [one for one in self._wrong.pop(address, ()) if now - one < WITHIN]
        self._wrong[address] = [*lately, now][-MOST:]
        while len(self._wrong) > _ADDRESSES:
            self._wrong.popitem(last=False)

    def right(self, client: str | None) -> None:
        """Know an address from which a right token came."""
        address = _network(client)
        self._right[address] = time.monotonic()
        self._right.move_to_end(address)
        while len(self._right) > _ADDRESSES:
            self._right.popitem(last=False)


def _network(client: str | None) -> str:
    """An address as it is counted: of IPv6 the network, in which one machine has many."""
    try:
        address = ip_address(client or "")
    except ValueError:
        return client or ""
    if isinstance(address, IPv6Address):
        mapped = address.ipv4_mapped
        return str(mapped) if mapped is not None else str(int(address) >> 64)
    return str(address)

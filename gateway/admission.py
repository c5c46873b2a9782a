"""Admission: which upgrade requests are accepted. Without I/O; the only state is the count of connections by address.

Bound: an address is counted while it has a connection here.
"""

from __future__ import annotations

from collections import Counter

from gateway.delivery.session import Session
from router.contract import origins
from router.contract.settings import Settings


class Refusal(Exception):
    """The upgrade is refused with this HTTP status."""

    def __init__(self, status: int, why: str, result: str) -> None:
        super().__init__(why)
        self.status = status
        self.why = why
        self.result = result


class Admission:
    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._origins = origins.parse(settings.origins)
        self._by_address: Counter[str] = Counter()

    def origin_allowed(self, sent: list[str], host: str) -> bool:
        """Return whether a page of the origin may connect.

        Browsers always send an origin. A client that sends none is no browser, and has no cookies or network position
        that a page could abuse. Origins are compared whole and never parsed, so no parser can be misled.
        """
        if not sent or origins.ANY in self._origins:
            return True
        allowed = self._origins or origins.own(host)
        return all(origin.lower().rstrip("/") in allowed for origin in sent)

    def admit(self, address: str, connections: int) -> None:
        """Count a connection of the address, or raise `Refusal`."""
        if connections >= self._settings.max_connections:
            raise Refusal(503, "this gateway is full", "full")
        if self._by_address[address] >= self._settings.max_connections_per_address:
            raise Refusal(429, "too many connections from your address", "address_limit")
        self._by_address[address] += 1

    def ended(self, session: Session) -> None:
        """Release the connection of a session that has ended."""
        self.release(session.address)

    def release(self, address: str) -> None:
        """Stop counting a connection of the address."""
        self._by_address[address] -= 1
        if self._by_address[address] <= 0:
            del self._by_address[address]

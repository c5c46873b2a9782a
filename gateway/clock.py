"""One timer for all sessions of the node: each turn calls heartbeats, audits, outages, deadlines, marks, the lease.

Invariant: a part or a session that raises costs only its own turn, because the timer is armed before any part runs.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from gateway.commands.marks import Marks
from gateway.delivery.deadlines import Deadlines
from gateway.delivery.heartbeats import Heartbeats
from gateway.presence.departures import Departures
from gateway.presence.lease import Lease
from gateway.presence.watches import Watches
from gateway.reconcile.audits import Audits
from gateway.reconcile.outages import Outages
from router.process.isolate import attempt
from router.process.loop import Meter


class Clock:
    """The timer. It turns once a second, or more often if heartbeats are shorter than that."""

    def __init__(
        self,
        heartbeats: Heartbeats,
        audits: Audits,
        outages: Outages,
        watches: Watches,
        deadlines: Deadlines,
        marks: Marks,
        departures: Departures,
        lease: Lease,
        meter: Meter,
        loop: asyncio.AbstractEventLoop,
    ) -> None:
        self._heartbeats = heartbeats
        self._audits = audits
        self._outages = outages
        self._watches = watches
        self._deadlines = deadlines
        self._marks = marks
        self._departures = departures
        self._lease = lease
        self._meter = meter
        self._time = loop.time
        self._call_at: Callable[[float, Callable[[], None]], asyncio.TimerHandle] = loop.call_at
        self._due = loop.time() + heartbeats.turn_s
        self._timer = loop.call_at(self._due, self._turn)

    def stop(self) -> None:
        self._timer.cancel()

    def _turn(self) -> None:
        now = self._time()
        self._meter.late(max(0.0, now - self._due))
        self._due = max(self._due + self._heartbeats.turn_s, now)
        self._timer = self._call_at(self._due, self._turn)
        audited = self._heartbeats.turn(now)
        if self._heartbeats.round_begins:
            attempt("audits", self._audits.hubs)
            attempt("watches", self._watches.touch_all)
        attempt("audits", lambda: self._audits.sessions(audited))
        attempt("audits", lambda: self._audits.new_sessions(now))
        attempt("outages", lambda: self._outages.turn(now))
        attempt("deadlines", lambda: self._deadlines.turn(now))
        attempt("marks", self._marks.turn)
        attempt("away", self._departures.turn)
        attempt("lease", self._lease.turn)

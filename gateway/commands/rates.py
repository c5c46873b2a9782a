"""The rate of one connection's commands (GCRA): `session.tat` is the time at which all commands so far would have been
due.
"""

from __future__ import annotations

from collections.abc import Callable

from gateway.delivery.session import Session
from router.contract.errors import RateLimited


class Rates:
    """The rates of commands. `cost_s` is the cost of one send, `burst_s` that of the commands that may come at once."""

    def __init__(self, sends_per_s: float, send_burst: int, time: Callable[[], float]) -> None:
        self.cost_s = 1 / sends_per_s
        self.burst_s = send_burst * self.cost_s
        self._time = time

    def charge(self, session: Session, cost_s: float) -> float:
        """Charge a cost; return by how many seconds the session is over its burst."""
        now, tat = self._time(), session.tat
        session.tat = tat = max(now, tat) + cost_s
        return tat - now - self.burst_s

    def spend(self, session: Session, cost_s: float) -> None:
        """Charge a cost; raise if the session is then over its burst."""
        now, tat = self._time(), session.tat  # as `charge`, without its call
        session.tat = tat = max(now, tat) + cost_s
        wait = tat - now - self.burst_s
        if wait > 0:
            raise RateLimited("too many commands on this connection", max(0.001, round(wait, 3)))

    def over_s(self, session: Session) -> float:
        """Return by how many seconds the session is over its burst now."""
        return session.tat - self._time() - self.burst_s

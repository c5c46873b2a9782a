"""Devices whose session has ended: their rows are marked away after a grace.

Within the grace the device can reconnect to any gateway without a visible change of presence. If Redis does not take a
mark, it is repeated until Redis does: the row names a gateway that is alive, so only the mark or the device's return
changes the presence.

Bound: two ended sessions for every connection that this gateway accepts, MARKS_PER_TURN of them in a turn.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from functools import partial
from typing import Final

from gateway.delivery.session import Session
from router.contract import metrics
from router.contract.errors import LinnetError, Unavailable
from router.process.isolate import each
from router.store.users import Users

AWAY_GRACE_S: Final = 3.0
MARKS_PER_TURN: Final = 1000  # a load balancer may drop all sessions at once, and commands need room among these calls

Ended = tuple[str, str, str]  # user, device, session


class Departures:
    def __init__(self, users: Users, time: Callable[[], float], max_connections: int) -> None:
        self._users = users
        self._time = time
        self._most = 2 * max_connections
        self._waiting: deque[tuple[float, Ended]] = deque()  # with the time of the mark, in that order

    def __len__(self) -> int:
        return len(self._waiting)

    def add(self, session: Session) -> None:
        """Mark the device of an ended session away after the grace. A session that never registered has no row."""
        if session.user_hub is not None:
            self._later((session.user, session.device, session.id))

    def _later(self, ended: Ended) -> None:
        """Queue a mark. If the queue is full, the latest session is not marked, and its user looks online until the
        device reconnects or this gateway ends. The latest is dropped because sessions that come and go while Redis is
        unavailable have rarely registered."""
        if len(self._waiting) < self._most:
            self._waiting.append((self._time() + AWAY_GRACE_S, ended))
        else:
            metrics.AWAYS_DROPPED.inc()

    def turn(self) -> None:
        now = self._time()
        for _ in range(MARKS_PER_TURN):
            if not self._waiting or self._waiting[0][0] > now:
                break
            _, ended = self._waiting.popleft()
            each("away", self._mark, (ended,))

    def _mark(self, ended: Ended) -> None:
        self._users.mark_away(*ended, partial(self._marked, ended))

    def _marked(self, ended: Ended, answer: bool | LinnetError) -> None:
        if isinstance(answer, Unavailable):
            self._later(ended)

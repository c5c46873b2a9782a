"""Rounds of timers: sweeps, wheels, audits. An entry that raises costs itself only, never the round or its timer.

What lives here: the loop over a round's entries, with a count and a log line for each entry that raised. What never
does: when a round takes place, and what it does with an entry.

Invariants
- `each` and `attempt` raise no `Exception`, so a timer that calls nothing else outside them is always armed again.
- Every fault is counted; of each part one trace a minute is logged, however many entries raise.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable
from time import monotonic
from typing import Final, TypeVar

from router.contract.metrics import ROUND_ERRORS

QUIET_S: Final = 60.0

T = TypeVar("T")

log = logging.getLogger("linnet.isolate")
_logged: dict[str, float] = {}  # part → when its last trace was logged


def each(part: str, act: Callable[[T], object], entries: Iterable[T]) -> None:
    """Call `act` with every entry, whatever it raises for some of them."""
    for entry in entries:
        try:
            act(entry)
        except Exception as error:  # noqa: BLE001 - whatever one entry raises, the others have their turn
            fault(part, error)


def attempt(part: str, act: Callable[[], object]) -> bool:
    """Call `act`, one step of a round; return whether it came through without raising."""
    try:
        act()
    except Exception as error:  # noqa: BLE001 - as above: the steps after it have their turn
        fault(part, error)
        return False
    return True


def fault(part: str, error: Exception) -> None:
    """Count an entry that raised, and log its trace if this part has logged none for a while."""
    ROUND_ERRORS.labels(part).inc()
    now = monotonic()
    if now >= _logged.get(part, now - QUIET_S) + QUIET_S:
        _logged[part] = now
        log.error("%s: an entry raised; the others go on", part, exc_info=error)

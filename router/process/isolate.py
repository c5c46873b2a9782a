"""Rounds of timers (sweeps, wheels, audits): if one entry raises, the round and its timer go on.

Invariants
- `each` and `attempt` raise no `Exception`, so a timer whose callback does all its work in them is always armed again.
- Every exception is counted; each part logs one traceback a minute, however many entries raise.
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
    """Call `act` with every entry, also if it raises for some of them."""
    for entry in entries:
        try:
            act(entry)
        except Exception as error:  # noqa: BLE001 - after any error the other entries must be processed
            fault(part, error)


def attempt(part: str, act: Callable[[], object]) -> bool:
    """Call `act`, one step of a round; return whether it did not raise."""
    try:
        act()
    except Exception as error:  # noqa: BLE001 - after any error the later steps must run
        fault(part, error)
        return False
    return True


def fault(part: str, error: Exception) -> None:
    """Count an entry that raised, and log its traceback if this part has logged none for QUIET_S."""
    ROUND_ERRORS.labels(part).inc()
    now = monotonic()
    if now >= _logged.get(part, now - QUIET_S) + QUIET_S:
        _logged[part] = now
        log.error("%s: an entry raised, the others go on", part, exc_info=error)

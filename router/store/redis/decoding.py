"""Values of Redis that cannot be decoded: they are counted and logged, and the caller still gets an answer.

Only Linnet's functions write rows, but a server can lose some of its keys, an operator can change keys by hand, and a
later version can have another format. In all these cases every caller must get exactly one answer.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from time import monotonic
from typing import Any, Final

from router.contract.errors import Internal
from router.contract.metrics import REDIS_ERRORS

UNREADABLE: Final = REDIS_ERRORS.labels("undecodable")

QUIET_S: Final = 60.0

log = logging.getLogger("linnet.redis")
_logged: dict[str, float] = {}  # kind of error → when the last one was logged


def answer(reply: Callable[[Any], None], read: Callable[[Any], object], value: object) -> None:
    """Call `reply` once, with the result of `read(value)`, or with `Internal` if that raises."""
    try:
        found = read(value)
    except Exception as error:  # noqa: BLE001 - for any value in Redis the caller must get an answer
        found = unreadable(error)
    reply(found)


def unreadable(error: Exception) -> Internal:
    """Count a value of Redis that cannot be decoded, such as a damaged row; return the caller's error.

    Of each kind of error the first of a minute is logged, because clients may cause many.
    """
    UNREADABLE.inc()
    now, kind = monotonic(), type(error).__name__
    if now >= _logged.get(kind, now - QUIET_S) + QUIET_S:
        _logged[kind] = now
        log.error("a value in Redis cannot be decoded: %s", kind, exc_info=error)
    return Internal()

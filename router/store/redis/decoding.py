"""Values of Redis that cannot be decoded: they are counted and logged, and the caller still gets an answer.

Only Linnet's functions write rows, but a server can lose some of its keys, an operator can change keys by hand, and a
later version can have another format. In all these cases every caller must get exactly one answer.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any, Final

from router.contract.errors import Internal
from router.contract.metrics import REDIS_ERRORS

UNREADABLE: Final = REDIS_ERRORS.labels("undecodable")

log = logging.getLogger("linnet.redis")


def answer(reply: Callable[[Any], None], read: Callable[[Any], object], value: object) -> None:
    """Call `reply` once, with the result of `read(value)`, or with `Internal` if that raises."""
    try:
        found = read(value)
    except Exception as error:  # noqa: BLE001 - for any value in Redis the caller must get an answer
        found = unreadable(error)
    reply(found)


def unreadable(error: Exception) -> Internal:
    """Count and log a value of Redis that cannot be decoded, such as a damaged row; return the caller's error."""
    UNREADABLE.inc()
    log.error("a value in Redis cannot be decoded: %s", type(error).__name__, exc_info=error)
    return Internal()

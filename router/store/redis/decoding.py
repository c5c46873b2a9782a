"""What a value of Redis that cannot be read does: it is counted and logged, and its caller gets an answer.

Rows are written by our functions alone, but a server can lose some of its keys, an operator can write by hand, and a
later version can have another format. None of that may leave a caller that waits, or cost others their answer.
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
    """Give `reply` what `read` makes of a value, or `Internal` if the value cannot be read: exactly one answer."""
    try:
        found = read(value)
    except Exception as error:  # noqa: BLE001 - whatever Redis holds, the caller must not wait for ever
        found = unreadable(error)
    reply(found)


def unreadable(error: Exception) -> Internal:
    """Count and log a value of Redis that cannot be read (a damaged row, say); what its caller is told."""
    UNREADABLE.inc()
    log.error("a value in Redis cannot be read: %s", type(error).__name__, exc_info=error)
    return Internal()

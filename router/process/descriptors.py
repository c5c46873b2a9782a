"""File descriptors: one for each connection, and a reserve that public connections do not use.

At start the soft limit is raised to the hard one. While only the reserve is left, new public connections are reset and
counted, so the admin port can still answer /livez and /metrics, and a lost connection to Redis can be dialed again.

The kernel gives out the lowest free number. If a connection gets a number at the ceiling, all lower numbers are in use,
so the check is one comparison per connection, without a counter.
"""

from __future__ import annotations

import asyncio
import logging
import resource
import sys
from typing import Final

from router.contract import metrics
from router.process.bounded import BoundedHttp

RESERVE: Final = 128  # for the admin port, Redis, logs, and the files of a start

log = logging.getLogger("linnet.descriptors")


def raise_limit() -> int:
    """Raise the soft limit to the hard one; return the new limit."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    return hard


def ceiling() -> int:
    """The lowest number that a public connection must not have."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY:
        return sys.maxsize
    return soft - min(RESERVE, soft // 4)


def check(max_connections: int) -> None:
    """Log a warning if the limit is too low for the connections that the settings allow."""
    if ceiling() < max_connections:
        log.warning(
            "the file descriptor limit (%d) is below LINNET_MAX_CONNECTIONS (%d) and a reserve of %d: connections"
            " beyond %d are refused; raise `ulimit -n` or the container runtime's nofile",
            resource.getrlimit(resource.RLIMIT_NOFILE)[0], max_connections, RESERVE, ceiling(),
        )  # fmt: skip


class PublicHttp(BoundedHttp):
    """A connection of a public port, which is reset if its descriptor is in the reserve."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # streams only
        sock = transport.get_extra_info("socket")
        if sock is not None and sock.fileno() >= ceiling():
            metrics.HTTP_REFUSED.labels("descriptors").inc()
            self.transport = transport
            transport.abort()
            return
        super().connection_made(transport)

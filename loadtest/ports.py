"""Free ports, for processes that get the port on which they listen from their parent."""

from __future__ import annotations

import atexit
import random
import socket
from collections import deque

REMEMBERED = 256  # of the ports that were given last: until then their processes have bound them

_given: deque[socket.socket] = deque()


@atexit.register
def _give_back() -> None:
    while _given:
        _given.popleft().close()


def free_ports(count: int) -> list[int]:
    """Return ports that are free now and that the kernel gives to no client: they are below its ephemeral range.

    Two processes that ask at the same time get different ports: each port is claimed by an abstract Unix socket, which
    ends with the process that asked.
    """
    found: list[int] = []
    while len(found) < count:
        port = random.randrange(10_000, 32_000)
        claim = socket.socket(socket.AF_UNIX)
        try:
            claim.bind(f"\0linnet-port-{port}")
            with socket.socket() as probe:
                probe.bind(("127.0.0.1", port))
        except OSError:
            claim.close()
            continue
        found.append(port)
        _given.append(claim)
        if len(_given) > REMEMBERED:
            _given.popleft().close()
    return found

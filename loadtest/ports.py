"""Free ports, for processes that get the port on which they listen from their parent."""

from __future__ import annotations

import atexit
import random
import socket
from collections import deque

RANGE = 10_000, 32_000
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
        port = random.randrange(*RANGE)
        if _claimed(port):
            found.append(port)
    return found


def free_ports_in_a_row(count: int) -> int:
    """Return the first of so many such ports that follow each other."""
    while True:
        first = random.randrange(*RANGE)
        if all(map(_claimed, range(first, first + count))):
            return first


def _claimed(port: int) -> bool:
    """Claim a port; False if it is in use or another process has claimed it."""
    claim = socket.socket(socket.AF_UNIX)
    try:
        claim.bind(f"\0linnet-port-{port}")
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", port))
    except OSError:
        claim.close()
        return False
    _given.append(claim)
    if len(_given) > REMEMBERED:
        _given.popleft().close()
    return True

"""Free ports for processes that restart on the same port."""

from __future__ import annotations

import random
import socket


def free_ports(count: int) -> list[int]:
    """Return ports that are free now and that the kernel gives to no client: they are below its ephemeral range."""
    found: list[int] = []
    while len(found) < count:
        port = random.randrange(10_000, 32_000)
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
        if port not in found:
            found.append(port)
    return found

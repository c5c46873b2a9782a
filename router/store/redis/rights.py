"""What Linnet's user on the server must be allowed, as the one line that gives it.

What lives here: the commands, keys and channels that Linnet uses. The commands of the functions are read from their
source, so that a new one cannot be forgotten; a test compares the others with the store's source, and the page with
the line. `Client.probe` asks the server before a process becomes ready.
"""

from __future__ import annotations

import re
from typing import Final

USER: Final = "linnet"
# What connections run themselves, beside what functions run.
OWN: Final = (
    "ping", "select", "role", "info", "time", "wait", "config|get", "fcall", "function|load", "function|list",
    "ssubscribe", "sunsubscribe", "spublish", "get", "set", "hget", "hset", "hmget", "hgetall", "hdel", "hexists",
    "hsetnx", "hscan", "scan", "zadd", "zcard", "zcount", "zrange",
)  # fmt: skip
KEYS: Final = ("~{c*}:*", "~{u*}:*", "~linnet:*")
CHANNELS: Final = ("&*{c*}:*", "&*{u*}:*")

_CALL: Final = re.compile(r"redis\.p?call\('([A-Z]+)'")


def commands(source: str) -> frozenset[str]:
    """The commands that functions of this source run."""
    return frozenset(name.lower() for name in _CALL.findall(source))


def acl_line(source: str) -> str:
    """The `ACL SETUSER` line for a library of this source."""
    rights = sorted({*OWN, *commands(source)})
    granted = " ".join(f"+{right}" for right in rights)
    return f"ACL SETUSER {USER} on >PASSWORD {' '.join(KEYS)} resetchannels {' '.join(CHANNELS)} -@all {granted}"

"""The rights that Linnet's user on the server needs, as the one ACL line that gives them.

They are the commands, keys and channels that Linnet uses. The commands of the functions are read from their source, so
no new one can be forgotten. A test compares the other commands with the store's source, and the line with the
documentation. `Client.probe` tries the rights on the server before a process becomes ready.
"""

from __future__ import annotations

import re
from typing import Final

USER: Final = "linnet"
# Commands that connections send themselves, in addition to the commands of functions. `hsetnx` and `hvals` are for the
# functions of the previous release, which run beside these in a rolling upgrade.
OWN: Final = (
    "asking", "cluster|info", "cluster|myid", "cluster|slots",
    "ping", "select", "role", "info", "time", "wait", "config|get", "fcall", "fcall_ro", "function|load",
    "function|list", "ssubscribe", "sunsubscribe", "spublish", "get", "set", "hget", "hset", "hmget", "hgetall",
    "hdel", "hexists", "hkeys", "hsetnx", "hscan", "scan", "zadd", "zcard", "zcount", "zrange", "zrem", "zscore",
    "exists", "hvals", "xrange", "zrangebyscore",
)  # fmt: skip
KEYS: Final = ("~{c*}:*", "~{u*}:*", "~{f*}:*", "~linnet:*")
CHANNELS: Final = ("&*{c*}:*", "&*{u*}:*")

_CALL: Final = re.compile(r"redis\.p?call\('([A-Z]+)'")


def commands(source: str) -> frozenset[str]:
    """The commands that the functions of this source call."""
    return frozenset(name.lower() for name in _CALL.findall(source))


def acl_line(source: str) -> str:
    """The `ACL SETUSER` line for a library of this source."""
    rights = sorted({*OWN, *commands(source)})
    granted = " ".join(f"+{right}" for right in rights)
    return f"ACL SETUSER {USER} on >PASSWORD {' '.join(KEYS)} resetchannels {' '.join(CHANNELS)} -@all {granted}"

"""A walk over all keys of one pattern, on all servers: never on the hot path."""

from __future__ import annotations

from router.store.redis.client import Client


async def scan(client: Client, pattern: str, place: str, count: int) -> tuple[list[bytes], str]:
    """Some hashes with such keys, from about `count` keys, and the place of the next call: "" at first and at last.

    On a cluster, servers follow each other by their addresses. A server that does not answer is left out, and a key
    that moves to another server meanwhile may be. A key may come twice.
    """
    at, _, cursor = place.rpartition(" ")
    named = {"" if client.one_server else str(one.address): one for one in client.servers}
    names = sorted(name for name in named if name >= at)
    if not names:
        return [], ""
    first, *others = names
    following, found = await named[first].fetch(
        "SCAN", cursor if first == at and cursor else 0, "MATCH", pattern, "COUNT", count, "TYPE", "hash"
    )
    return found, f"{first} {int(following)}" if int(following) else f"{others[0]} 0" if others else ""

"""What a message costs on one server, in commands and bytes, counted at the server: the cluster mode adds nothing.

BEFORE is what it cost in the last version without cluster mode. Sentinels only name the server: the client is the same.
"""

from __future__ import annotations

from collections import Counter
from typing import Final

import pytest

from deploy.embedded import EmbeddedValkey
from router.contract import keys
from router.contract.tags import NUMBERED, SPREAD
from router.store.redis import choose
from router.store.redis.client import Client
from tests.store.calling import Store, store

# The commands of one message, the bytes sent for it, and how many names of keys and channels are among them.
BEFORE: Final = {
    keys.GROUP: (["HMGET", "TIME", "XADD", "HSET", "SPUBLISH"], 419, 4),
    keys.DIRECT: (["HMGET", "TIME", "XADD", "HSET", "HGET", *["ZRANGE", "HSET", "ZADD", "SPUBLISH"] * 2], 519, 11),
}
MORE: Final = 1.02
TENURE: Final = {"cmdstat_zscore", "cmdstat_zrangebyscore"}  # which only a cluster's partitions have


async def conversation(s: Store, kind: str) -> str:
    """A conversation in which Ann has written before."""
    conv = keys.direct("ann", "bob") if kind == keys.DIRECT else keys.new_conversation(kind)
    assert await s.conversations.create(conv, kind, "", {"ann": "m", "bob": "m"}, 1, 1_000_000)
    for n in range(1, 4):
        await s.send(conv, "ann", n, done=n - 1)
    return conv


async def cost(valkey: EmbeddedValkey, s: Store, conv: str, n: int = 4) -> tuple[list[str], int]:
    """The commands that one more message makes functions run, and the bytes that are sent for it. Not counted are those
    that come now and then: INFO at most 50 times a second, and XLEN with every 64th seq."""
    before = s.client.statistics().hot
    seen: list[str] = []
    with valkey.client() as watching, watching.monitor() as monitor:
        await s.send(conv, "ann", n, done=n - 1)
        with valkey.client() as other:
            other.echo("the end")
        for one in monitor.listen():
            if "the end" in one["command"]:
                break
            if one["client_type"] == "lua":
                seen.append(one["command"].split()[0])
    after = s.client.statistics().hot
    assert after.calls == before.calls + 1
    return [name for name in seen if name not in ("INFO", "XLEN")], after.written_bytes - before.written_bytes


@pytest.mark.parametrize("kind", [keys.GROUP, keys.DIRECT])
async def test_message_on_one_server_costs_what_it_did_before_there_were_clusters(
    valkey: EmbeddedValkey, kind: str
) -> None:
    """One call, with no other command and no byte more. Tags of new deployments are longer, by at most six bytes."""
    commands, size, names = BEFORE[kind]
    with valkey.client() as client:
        client.config_resetstat()
    for tags in (NUMBERED, SPREAD):
        keys.use_tags(tags)
        async with store(valkey.url) as s:
            its, sent = await cost(valkey, s, await conversation(s, kind))
        assert not Counter(its) - Counter(commands), (tags, its)
        assert sent <= MORE * size + (0 if tags == NUMBERED else 6 * names)
    with valkey.client() as client:
        assert not TENURE & client.info("commandstats").keys(), "not even now and then"


async def test_message_of_an_active_direct_conversation_raises_no_row(valkey: EmbeddedValkey) -> None:
    """Six commands in place of eleven; the rows are raised when they are read (store/test_lagging_rows.py)."""
    async with store(valkey.url) as s:
        conv = keys.direct("ann", "bob")
        assert await s.conversations.create(conv, keys.DIRECT, "", {"ann": "m", "bob": "m"}, 1, 1_000_000)
        n = 1
        while not await s.client.fetch("HEXISTS", keys.conversation(conv), "lagging"):
            await s.send(conv, "ann", n, done=n - 1)
            n += 1
        its, sent = await cost(valkey, s, conv, n)
        assert its == ["HMGET", "TIME", "XADD", "HSET", "SPUBLISH", "SPUBLISH"]
        assert sent <= MORE * BEFORE[keys.DIRECT][1] + 6 * 11


async def test_sentinels_add_nothing_to_a_call() -> None:
    """Calls go through the same code: nothing of `Client` is replaced."""
    assert type(choose.client("redis://127.0.0.1:1/0", "standalone")) is Client
    assert type(choose.client("redis+sentinel://127.0.0.1:1/main", "sentinel")) is Client

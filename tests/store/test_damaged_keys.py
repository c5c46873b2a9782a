"""Functions that are repeated read what they need before they write: if a key has the wrong type, nothing has changed.

So a repeated call does not find half of its work, which it would take for all of it.
"""

from typing import Final

import pytest
import redis

from deploy.embedded import EmbeddedValkey
from router.store.redis.client import Client
from tests.store.function_calls import CASES, PartsClient, World

# The functions that another process repeats until they succeed.
REPEATED: Final = (
    *("ack", "append", "claim", "claim_push", "clear_pushes", "deliver", "join", "kick", "leave", "mark_away"),
    *("read", "retry_push", "schedule_push", "set_starts", "sync"),
)


@pytest.mark.parametrize("function", REPEATED)
async def test_function_that_cannot_use_a_key_changes_nothing(valkey: EmbeddedValkey, function: str) -> None:
    client = await PartsClient.connect(valkey.url)
    assert isinstance(client, PartsClient)
    try:
        number, count, found = 0, 1, set()
        while number < count:
            damaged, count, changed = await _with_damage(client, valkey, function, number)
            if changed:
                found.add(damaged.partition("}:")[2].split(":")[0])
            number += 1
        assert not found
    finally:
        await client.close()


async def _with_damage(
    client: PartsClient, valkey: EmbeddedValkey, function: str, number: int
) -> tuple[str, int, bool]:
    """Call a function one of whose keys has another type; whether it failed after a change."""
    await client.fetch("FLUSHALL")
    world, case = World(client, number), CASES[function]
    await case.prepare(world)
    caught = await world.caught(lambda: case.call(world))
    damaged = caught.keys[number]
    kind = await client.fetch("TYPE", damaged)
    await client.fetch("DEL", damaged)
    await client.fetch(*(("RPUSH", damaged, "x") if kind == b"string" else ("SET", damaged, "x")))
    before = await _everything(client)
    failed = False
    with valkey.client() as at:
        try:
            at.execute_command(*caught.command)
        except redis.ResponseError:
            failed = True
    return damaged, len(caught.keys), failed and await _everything(client) != before


async def _everything(client: Client) -> dict[bytes, bytes]:
    return {key: await client.fetch("DUMP", key) for key in await client.fetch("KEYS", "*")}

"""Tasks end with their node."""

from __future__ import annotations

import asyncio

from deploy.embedded import EmbeddedValkey
from tests.gateway.world import world


async def test_closed_node_cancels_its_tasks(valkey: EmbeddedValkey) -> None:
    async with world(valkey) as of:
        never: asyncio.Future[None] = asyncio.get_running_loop().create_future()

        async def wait() -> None:
            await never

        of.node.tasks.spawn(wait())
        await asyncio.sleep(0)
    assert never.cancelled()
    assert not of.node.tasks._running

"""A process that sends, to be killed: `python -m tests.sdk.python.sender API USER STORE GATEWAY TO COUNT`.

It prints a line for each message whose `stored` has resolved, and goes on until it is killed. GATEWAY `-`: those that
the API names.
"""

from __future__ import annotations

import asyncio
import itertools
import sys

from linnet_client import Client

from tests.flow.client import token


async def main(api: str, user: str, store: str, gateway: str, to: str, count: str) -> None:
    gateways = None if gateway == "-" else [gateway]
    async with Client(api, user, token(user), store=store, gateways=gateways) as client:
        life = client.device + str(len(client.outbox))
        for i in itertools.count() if count == "-" else range(int(count)):
            handle = client.conversation(to).send(f"{life}/{i}/{sys.argv[-1]}")
            await handle.stored
            print(handle.entry.body if handle.entry else "", flush=True)
        await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:7]))

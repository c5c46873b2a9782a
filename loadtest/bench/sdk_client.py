"""Clients on the Python SDK in one process, to be measured: `python sdk_client.py STORES API GATEWAY USER TOKEN …`.

It prints `ready` when all are connected, and a line for each number of events on standard input once its applications
have been given that many more. STORES `-`: in memory.
"""

from __future__ import annotations

import asyncio
import sys
from contextlib import AsyncExitStack
from pathlib import Path

from linnet_client import Client, Event, Logged, Status


async def main(stores: str, api: str, gateway: str, *users_and_tokens: str) -> None:
    given = asyncio.Semaphore(0)

    async def handle(event: Event) -> None:
        if isinstance(event, Logged):
            given.release()

    async with AsyncExitStack() as stack:
        clients = [
            Client(api, user, token, store=Path(stores) / user if stores != "-" else None, gateways=[gateway])
            for user, token in zip(users_and_tokens[::2], users_and_tokens[1::2], strict=True)
        ]
        for client in clients:
            await stack.enter_async_context(client)
        listening = [asyncio.create_task(client.listen(handle)) for client in clients]
        for client in clients:
            await client.until(Status.LIVE)
        print("ready", flush=True)
        while line := await asyncio.to_thread(sys.stdin.readline):
            for _ in range(int(line)):
                await given.acquire()
            print("given", flush=True)
        for task in listening:
            task.cancel()


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))

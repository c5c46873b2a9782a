"""The bare protocol, as the measure of the SDKs: `python sdk_bare.py - API GATEWAY USER TOKEN …`.

As `sdk_client.py`, but each client is a connection that decodes its events, counts them and acks nothing.
"""

from __future__ import annotations

import asyncio
import sys
from typing import Any

from loadtest.websocket import WebSocket


async def main(_stores: str, _api: str, gateway: str, *users_and_tokens: str) -> None:
    given, welcomed = asyncio.Semaphore(0), asyncio.Semaphore(0)

    def received(event: dict[str, Any]) -> None:
        if event["type"] == "welcome":
            welcomed.release()
        elif "seq" in event and "prev" in event:
            given.release()

    sockets = []
    for token in users_and_tokens[1::2]:
        opened = asyncio.Event()
        socket = WebSocket("json", opened.set, received, lambda _code, _reason: None)
        await socket.connect(gateway)
        await opened.wait()
        socket.send_command("hello", token=token, device="bare")
        sockets.append(socket)
    for _ in sockets:
        await welcomed.acquire()
    print("ready", flush=True)
    while line := await asyncio.to_thread(sys.stdin.readline):
        for _ in range(int(line)):
            await given.acquire()
        print("given", flush=True)


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))

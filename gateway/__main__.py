"""`python -m gateway`: one gateway process, configured by LINNET_* variables.

What can be wrong at the start stops it with one line. SIGTERM or Ctrl-C drains and exits 0; a second one hurries.
"""

from __future__ import annotations

import asyncio
import os
import platform
import signal
import socket
import sys

import uvicorn
import uvloop
from starlette.applications import Starlette

from gateway.app import create_app
from gateway.node import Node
from gateway.wsprotocol import WebSocketConnection
from router.contract import metrics, wire
from router.contract.errors import StartupError
from router.contract.settings import VERSION, Settings, load
from router.process import logs, serving
from router.process.admin import Readiness, create_admin
from router.store.accounts import Accounts
from router.store.client import Client

CONNECT_S = 10.0


def public_config(app: Starlette, settings: Settings) -> uvicorn.Config:
    return serving.public_config(app, settings, ws=WebSocketConnection, ws_max_size=wire.MAX_FRAME_BYTES)


class Gateway:
    """The process: two servers on one loop, around one node."""

    def __init__(self, node: Node) -> None:
        self._node = node
        self._public = uvicorn.Server(public_config(create_app(node), node.settings))
        self._admin = uvicorn.Server(serving.config(create_admin(self.readiness, node.observe)))
        self._stopping = asyncio.Event()

    def readiness(self) -> Readiness:
        """Ready once the lease is written. A Redis that fails later unreadies nobody: all would go at once."""
        if self._node.draining:
            return Readiness(False, "draining")
        if not self._node.lease.held:
            return Readiness(False, "no lease yet")
        return Readiness(True, "ok")

    def stop(self) -> None:
        """The first signal drains, the second hurries."""
        if self._stopping.is_set():
            self._node.drain.hurry()
        self._stopping.set()

    async def run(self, public: socket.socket, admin: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        for signum in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(signum, self.stop)
        # `_serve` is `serve` without uvicorn's own signal handlers, which would close all sockets at once.
        serving = [
            asyncio.create_task(self._admin._serve([admin])),
            asyncio.create_task(self._public._serve([public])),
        ]
        await self._stopping.wait()
        await self._node.drain.run(self._stop_accepting)
        self._public.should_exit = self._admin.should_exit = True
        await asyncio.gather(*serving)

    def _stop_accepting(self) -> None:
        for listener in self._public.servers:
            listener.close()


async def serve(settings: Settings) -> None:
    public, admin = serving.listening(settings.listen), serving.listening(settings.admin_listen)
    client = await Client.connect(settings.redis_url, settings.redis_mode, within_s=CONNECT_S)
    try:
        await client.check_server(settings.durability, settings.replicas)
        await Accounts(client).deployment_check()
        node = Node(settings, client)
        metrics.BUILD_INFO.labels("gateway", VERSION, platform.python_version(), node.name).set(1)
        try:
            await node.bus.connect(CONNECT_S)
            await node.durability.connect(CONNECT_S)
            await Gateway(node).run(public, admin)
        finally:
            await node.close()
    finally:
        await client.close()


def main() -> None:
    try:
        settings = load(os.environ)
        logs.set_up(settings)
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(serve(settings))
    except StartupError as error:
        sys.exit(f"linnet gateway: {error}")


if __name__ == "__main__":
    main()

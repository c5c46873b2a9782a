"""`python -m gateway`: one gateway process, configured by environment variables that start with `LINNET_`.

`process/run.py` has the steps of starting. SIGTERM or Ctrl-C drains and exits 0; a second one closes everything at
once.
"""

from __future__ import annotations

import asyncio
import logging
import platform
import signal

from gateway.app import create_app
from gateway.drain import FINISH_S
from gateway.node import Node
from gateway.websocket.connection import WebSocketConnection
from router.contract import metrics, wire
from router.contract.settings import VERSION
from router.process import descriptors, logs, serving
from router.process.admin import Readiness
from router.process.forwarded import Proxies
from router.process.run import FOREVER_S, Process, main, patiently
from router.store.presence import LEASE_S
from router.store.redis.client import Client

log = logging.getLogger("linnet.gateway")


class Gateway:
    """One node behind its public port."""

    def __init__(self, node: Node) -> None:
        self._node = node
        its = node.settings
        self._joins_by = node.loop.time() + its.drain_accept_s + its.drain_window_s + FINISH_S + LEASE_S
        self._joined = False
        frames = {"ws": WebSocketConnection, "ws_max_size": wire.MAX_FRAME_BYTES}
        app = create_app(node.admission, Proxies(node.settings), node.sessions, node.session_ports)
        self.config = serving.public_config(app, node.settings, **frames)
        self._server = serving.Server(self.config)

    def readiness(self) -> Readiness:
        """Return whether this gateway is ready: once its lease is written. If Redis fails later, the gateway stays
        ready, because otherwise all gateways would be taken out of service at once.

        The gateway joins once no other one drains, or after the time that a drain takes, and stays joined.
        """
        if self._node.drain.draining:
            return Readiness(False, "draining")
        if not self._node.lease.held:
            return Readiness(False, "no lease yet")
        self._joined = self._joined or self._node.lease.joins() or self._node.loop.time() >= self._joins_by
        return Readiness(True, "ok" if self._joined else "ok, joins when no other gateway drains", self._joined)

    async def run(self, process: Process) -> None:
        """Serve until the process is to stop, then drain. If the server ends by itself, end the process: it would look
        ready although it accepts no connections."""
        serving_it = asyncio.create_task(self._server._serve([process.public]))
        stopping = asyncio.create_task(process.stop.wait())
        self._node.tasks.spawn(self._say_ready())
        await asyncio.wait((serving_it, stopping), return_when=asyncio.FIRST_COMPLETED)
        stopping.cancel()
        if not process.stop.is_set():
            serving_it.result()
            raise RuntimeError("the server has ended without a signal to stop")
        for signum in (signal.SIGTERM, signal.SIGINT):
            self._node.loop.add_signal_handler(signum, self._node.drain.hurry)
        began, sessions = self._node.loop.time(), len(self._node.sessions)
        its = self._node.settings
        logs.life(
            log, "draining", "draining: %d sessions, within %g s", sessions, its.drain_accept_s + its.drain_window_s,
            sessions=sessions,
        )  # fmt: skip
        await self._node.drain.run(self._stop_accepting)
        self._server.should_exit = True
        await serving_it
        took, left = self._node.loop.time() - began, len(self._node.sessions)
        logs.life(
            log, "drained", "drained in %.1f s, %d sessions left, %d commands unanswered", took, left,
            self._node.sends.in_flight, seconds=round(took, 3), sessions=left, commands=self._node.sends.in_flight,
        )  # fmt: skip

    async def _say_ready(self) -> None:
        """Log one line once clients can be sent here."""
        await self._node.lease.acquired.wait()
        its, name, url = self._node.settings, self._node.name, self._node.url
        logs.life(
            log, "ready", "ready: WebSocket on %s, admin on %s, node %s, clients connect to %s",
            its.listen, its.admin_listen, name, url,
            listen=its.listen, admin_listen=its.admin_listen, node=name, url=url,
        )  # fmt: skip

    def _stop_accepting(self) -> None:
        for listener in getattr(self._server, "servers", ()):  # it has none yet if it is stopped as it starts
            listener.close()


async def work(process: Process, client: Client) -> None:
    """Run one gateway until it is drained."""
    descriptors.check(process.settings.max_connections)
    node = Node(process.settings, client)
    metrics.BUILD_INFO.labels("gateway", VERSION, platform.python_version(), node.name).set(1)
    try:
        await process.unless_stopped(_begin(node))
        if not process.stop.is_set():
            gateway = Gateway(node)
            process.serves(gateway.config)
            process.readiness, process.observe = gateway.readiness, node.observe
            await gateway.run(process)
    finally:
        await node.close()


async def _begin(node: Node) -> None:
    await node.bus.connect(FOREVER_S)
    await node.bus.probe(node.client.channels.probes())
    await node.durability.connect(FOREVER_S)
    await patiently(node.lease.set_clock)


if __name__ == "__main__":
    main("gateway", work)

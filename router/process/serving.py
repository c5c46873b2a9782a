"""Sockets and uvicorn, as both processes use them.

Servers run on the process's loop and sockets with `Server._serve`: that is `serve` without uvicorn's own signal
handlers, which would close all connections at once. The process decides when to stop.
"""

from __future__ import annotations

import asyncio
import logging
import socket
from typing import Any, Final

import uvicorn

from router.contract.errors import StartupError
from router.contract.settings import Settings, host_port
from router.process.bounded import BoundedHttp
from router.process.descriptors import PublicHttp

BACKLOG: Final = 4096
TICK_S: Final = 1.0

log = logging.getLogger("linnet.serving")


def listening(address: str) -> socket.socket:
    """A bound socket; `StartupError` if that fails. `[::]` serves IPv4 too, else a warning is logged."""
    host, port = host_port(address)
    if port > 65_535:
        raise StartupError(f"cannot listen on {address}: expected a port of at most 65535")
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    both = host == "::" and socket.has_dualstack_ipv6()
    if host == "::" and not both:
        log.warning("%s serves IPv6 only: this machine has no sockets for both families", address)
    try:
        return socket.create_server((host, port), family=family, backlog=BACKLOG, dualstack_ipv6=both)
    except OSError as error:
        raise StartupError(f"cannot listen on {address}: {error}") from None


class Server(uvicorn.Server):
    """uvicorn's server, which wakes up once a second for the `Date` of answers, not ten times to look for its end.

    It ends as soon as `should_exit` is set.
    """

    def __init__(self, made: uvicorn.Config) -> None:
        self._ending = asyncio.Event()
        super().__init__(made)

    @property
    def should_exit(self) -> bool:
        return self._ending.is_set()

    @should_exit.setter
    def should_exit(self, ends: bool) -> None:
        if ends:
            self._ending.set()

    async def main_loop(self) -> None:
        while not await self.on_tick(0):
            try:
                async with asyncio.timeout(TICK_S):
                    await self._ending.wait()
            except TimeoutError:
                pass


def config(app: Any, **more: Any) -> uvicorn.Config:
    """The configuration of a server; without `more`, of an admin port."""
    plain = {"http": BoundedHttp, "ws": "none", "lifespan": "off", "backlog": BACKLOG}
    quiet = {"log_config": None, "access_log": False, "server_header": False, "proxy_headers": False}
    return uvicorn.Config(app, **{**plain, **quiet, **more})


def public_config(app: Any, settings: Settings, **more: Any) -> uvicorn.Config:
    """The configuration of a server for clients, with TLS if it is set; `StartupError` if the certificate is wrong."""
    tls = {"ssl_certfile": settings.tls_cert or None, "ssl_keyfile": settings.tls_key or None}
    made = config(app, **{"http": PublicHttp, **tls, **more})
    try:
        made.load()
    except OSError as error:  # ssl.SSLError is one
        raise StartupError(f"LINNET_TLS_CERT and LINNET_TLS_KEY cannot be used: {error}") from None
    return made

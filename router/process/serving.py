"""Sockets and uvicorn, as both processes use them.

Servers run on our loop and our sockets, under `Server._serve`: that is `serve` without uvicorn's own signal handlers,
which would close all connections at once; when to stop is the process's business.
"""

from __future__ import annotations

import logging
import socket
from typing import Any, Final

import uvicorn
from starlette.applications import Starlette

from router.contract.errors import StartupError
from router.contract.settings import Settings, host_port
from router.process.bounded import BoundedHttp
from router.process.descriptors import PublicHttp

BACKLOG: Final = 4096

log = logging.getLogger("linnet.serving")


def listening(address: str) -> socket.socket:
    """A bound socket; `StartupError` says why not. `[::]` serves IPv4 too, or says that this machine cannot."""
    host, port = host_port(address)
    if port > 65_535:
        raise StartupError(f"cannot listen on {address}: there is no such port")
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    both = host == "::" and socket.has_dualstack_ipv6()
    if host == "::" and not both:
        log.warning("%s serves IPv6 only: this machine has no sockets for both families", address)
    try:
        return socket.create_server((host, port), family=family, backlog=BACKLOG, dualstack_ipv6=both)
    except OSError as error:
        raise StartupError(f"cannot listen on {address}: {error}") from None


def config(app: Starlette, **more: Any) -> uvicorn.Config:
    """A server of ours; without `more`, for an admin port."""
    plain = {"http": BoundedHttp, "ws": "none", "lifespan": "off", "backlog": BACKLOG}
    quiet = {"log_config": None, "access_log": False, "server_header": False, "proxy_headers": False}
    return uvicorn.Config(app, **{**plain, **quiet, **more})


def public_config(app: Starlette, settings: Settings, **more: Any) -> uvicorn.Config:
    """A server for clients, with TLS if it is set; `StartupError` if the certificate cannot be used."""
    tls = {"ssl_certfile": settings.tls_cert or None, "ssl_keyfile": settings.tls_key or None}
    made = config(app, **{"http": PublicHttp, **tls, **more})
    try:
        made.load()
    except OSError as error:  # ssl.SSLError is one
        raise StartupError(f"LINNET_TLS_CERT and LINNET_TLS_KEY cannot be used: {error}") from None
    return made

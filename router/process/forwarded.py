"""Whose connection it is: the peer, or whoever the proxies of LINNET_TRUSTED_PROXIES say it is.

What lives here: reading `X-Forwarded-For`, for both processes alike, so that one client counts as one address on
either. What never does: what follows from an address (limits are the gateway's and the API's own).

Invariants
- A header counts only as far as trusted proxies have written it: hops are read from the end, one for each that a proxy
  of ours bears. What a client puts before them is never believed.
- One address has one name: an IPv4 address mapped into IPv6 (`::ffff:10.0.0.1`, as dual-stack sockets and proxies write
  it) is the IPv4 address, in the setting too; a port behind it (as some proxies write) is none of it.
"""

from __future__ import annotations

from collections.abc import Iterable
from ipaddress import IPv4Address, IPv6Address, ip_address
from typing import Any

from router.contract.settings import Settings, proxies


class Proxies:
    """The proxies that are believed."""

    def __init__(self, settings: Settings) -> None:
        self._networks = proxies(settings)

    def client(self, peer: str, forwarded: Iterable[str]) -> str:
        """The client's address: the last one in the header's lines that no proxy of ours bears."""
        hops = [hop.strip() for line in forwarded for hop in line.split(",") if hop.strip()]
        while True:
            ip = _ip(peer)
            if ip is None:
                return peer
            if not hops or not any(ip in network for network in self._networks):
                return str(ip)
            peer = hops.pop()


class Forwarded:
    """ASGI middleware: `scope["client"]` is the client, not the proxy."""

    def __init__(self, app: Any, proxies: Proxies) -> None:
        self._app = app
        self._proxies = proxies

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "http" and scope["client"]:
            lines = [value.decode("latin-1") for name, value in scope["headers"] if name == b"x-forwarded-for"]
            scope["client"] = (self._proxies.client(scope["client"][0], lines), 0)
        await self._app(scope, receive, send)


def _ip(text: str) -> IPv4Address | IPv6Address | None:
    """An address in any of its forms, without its port; None for what is no address."""
    if text.startswith("["):
        text = text[1:].partition("]")[0]
    elif text.count(":") == 1:
        text = text.partition(":")[0]
    try:
        ip = ip_address(text)
    except ValueError:
        return None
    return (ip.ipv4_mapped or ip) if isinstance(ip, IPv6Address) else ip

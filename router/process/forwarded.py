"""The address of a client: the peer of its connection, or the address that trusted proxies report.

`X-Forwarded-For` is read here for both processes, so one client has the same address on either. The gateway and the API
apply their own limits to addresses.

Invariants
- Only the part of the header that trusted proxies (LINNET_TRUSTED_PROXIES) have written is used: hops are read from the
  end, one for each hop with the address of a trusted proxy. Hops that a client adds before them are ignored.
- An address has one form: an IPv4-mapped IPv6 address (`::ffff:10.0.0.1`, as dual-stack sockets and proxies write it)
  is the IPv4 address, in the setting too, and a port behind it (as some proxies write) is removed.
- The addresses of the last KNOWN texts are kept, and none of them is long: a client may write any text.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import lru_cache
from ipaddress import IPv4Address, IPv6Address, ip_address
from typing import Any, Final, NamedTuple

from router.contract.settings import Settings, proxies

KNOWN: Final = 1024
LONGEST: Final = 80  # characters of an address, with the name of an interface and a port


class Address(NamedTuple):
    ip: IPv4Address | IPv6Address
    text: str  # its one form, which all sessions of the address share


class Proxies:
    """The trusted proxies."""

    def __init__(self, settings: Settings) -> None:
        self._networks = proxies(settings)

    def client(self, peer: str, forwarded: Iterable[str]) -> str:
        """The client's address: the last one in the header's lines that is not a trusted proxy's."""
        hops = [hop.strip() for line in forwarded for hop in line.split(",") if hop.strip()]
        while True:
            address = _address(peer) if len(peer) <= LONGEST else None
            if address is None:
                return peer
            if not hops or not any(address.ip in network for network in self._networks):
                return address.text
            peer = hops.pop()


class Forwarded:
    """ASGI middleware that sets `scope["client"]` to the client instead of the proxy."""

    def __init__(self, app: Any, proxies: Proxies) -> None:
        self._app = app
        self._proxies = proxies

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "http" and scope["client"]:
            lines = [value.decode("latin-1") for name, value in scope["headers"] if name == b"x-forwarded-for"]
            scope["client"] = (self._proxies.client(scope["client"][0], lines), 0)
        await self._app(scope, receive, send)


@lru_cache(KNOWN)
def _address(text: str) -> Address | None:
    """An address in any of its forms, without its port; None if the text is no address."""
    if text.startswith("["):
        text = text[1:].partition("]")[0]
    elif text.count(":") == 1:
        text = text.partition(":")[0]
    try:
        ip = ip_address(text)
    except ValueError:
        return None
    ip = (ip.ipv4_mapped or ip) if isinstance(ip, IPv6Address) else ip
    return Address(ip, str(ip))

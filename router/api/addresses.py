"""Addresses of gateways as a caller can dial them.

A gateway without LINNET_GATEWAY_URL announces the address that it listens on. If that is all addresses (`0.0.0.0`,
`[::]`), only the caller knows a host that leads there: the one that the call was sent to.
"""

from __future__ import annotations

import re
from ipaddress import ip_address
from typing import Final
from urllib.parse import urlsplit

_HOST: Final = re.compile(r"([A-Za-z0-9._-]+|\[[0-9A-Fa-f:.]+\])(:[0-9]{1,5})?")


def dialable(url: str, host: str) -> str:
    """The URL with the caller's host where it names all addresses; empty if the caller used no host either.

    `host` is the caller's `Host` header: it shapes this caller's answer only.
    """
    parts = urlsplit(url)
    if not _unspecified(parts.hostname or ""):
        return url
    used = _HOST.fullmatch(host)
    if used is None or _unspecified(used[1].strip("[]")):
        return ""
    port = f":{parts.port}" if parts.port else ""
    return parts._replace(netloc=f"{used[1]}{port}").geturl()


def _unspecified(host: str) -> bool:
    try:
        return ip_address(host).is_unspecified
    except ValueError:  # a name
        return False

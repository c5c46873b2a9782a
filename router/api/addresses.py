"""Addresses of gateways that a caller can dial.

A gateway without LINNET_GATEWAY_URL announces the address that it listens on. If that is the wildcard (`0.0.0.0`,
`[::]`), it is replaced by the host to which the caller sent this call.
"""

from __future__ import annotations

import re
from ipaddress import ip_address
from typing import Final
from urllib.parse import urlsplit

_HOST: Final = re.compile(r"([A-Za-z0-9._-]+|\[[0-9A-Fa-f:.]+\])(:[0-9]{1,5})?")


def dialable(url: str, host: str) -> str:
    """The URL, with the caller's host instead of a wildcard; empty if the caller's `Host` header has no usable host.

    The header only affects the answer to this caller.
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
    except ValueError:  # a host name
        return False

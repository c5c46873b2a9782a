"""router/process/serving.py: ports that cannot be had are said in one line."""

import asyncio
import socket

import pytest

from router.contract.errors import StartupError
from router.process import serving


@pytest.mark.parametrize("address", ["127.0.0.1:99999", "256.0.0.1:80", "nowhere.invalid:80"])
def test_addresses_that_cannot_be_listened_on_are_refused(address: str) -> None:
    """Whatever is wrong with it, the line names the address."""
    with pytest.raises(StartupError, match=address):
        serving.listening(address)


def test_ipv6_addresses_are_listened_on() -> None:
    """A bracketed address is an IPv6 one."""
    with serving.listening("[::1]:0") as listener:
        assert listener.family == socket.AF_INET6


async def test_all_ipv6_addresses_serve_both_families() -> None:
    """A client that knows the IPv4 address only gets through."""
    with serving.listening("[::]:0") as listener:
        for host in ("127.0.0.1", "::1"):
            _, writer = await asyncio.open_connection(host, listener.getsockname()[1])
            writer.close()

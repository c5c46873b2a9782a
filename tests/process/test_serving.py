"""router/process/serving.py: a port that cannot be used is reported in one line."""

import asyncio
import socket

import pytest

from router.contract.errors import StartupError
from router.process import serving


@pytest.mark.parametrize("address", ["127.0.0.1:99999", "256.0.0.1:80", "nowhere.invalid:80"])
def test_unusable_addresses_are_refused(address: str) -> None:
    """The line names the address."""
    with pytest.raises(StartupError, match=address):
        serving.listening(address)


def test_bracketed_address_is_ipv6() -> None:
    """The socket is of the family IPv6."""
    with serving.listening("[::1]:0") as listener:
        assert listener.family == socket.AF_INET6


async def test_all_ipv6_addresses_serve_both_families() -> None:
    """A client that only knows the IPv4 address is served."""
    with serving.listening("[::]:0") as listener:
        for host in ("127.0.0.1", "::1"):
            _, writer = await asyncio.open_connection(host, listener.getsockname()[1])
            writer.close()

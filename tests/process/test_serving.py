"""router/process/serving.py: a port that cannot be used is reported in one line."""

import asyncio
import socket
from functools import partial

import pytest

from router.contract.errors import StartupError
from router.process import serving
from tests.support import eventually


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


async def app(_scope: object, _receive: object, _send: object) -> None:
    """No request comes."""


async def test_server_ends_as_soon_as_it_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """Though nothing else wakes it up; if it is told before its start, it does not serve at all."""
    monkeypatch.setattr(serving, "TICK_S", 3600.0)
    for early in (False, True):
        with serving.listening("127.0.0.1:0") as listener:
            server = serving.Server(serving.config(app))
            server.should_exit = early
            ending = asyncio.create_task(server._serve([listener]))
            await eventually(partial(getattr, server, "started"))
            server.should_exit = True
            await asyncio.wait_for(ending, 60)


async def test_date_of_answers_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(serving, "TICK_S", 0.01)
    with serving.listening("127.0.0.1:0") as listener:
        server = serving.Server(serving.config(app))
        ending = asyncio.create_task(server._serve([listener]))
        await eventually(lambda: server.started)
        for _ in range(3):
            server.server_state.default_headers = []
            await eventually(lambda: bool(server.server_state.default_headers))
        server.should_exit = True
        await ending

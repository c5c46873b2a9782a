"""router/process/forwarded.py: the client's address, and the proxies that may report it."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from router.process.forwarded import Forwarded, Proxies
from tests.gateway.world import settings

TRUSTED = "10.0.0.0/8, fd00::/8, ::ffff:192.168.0.0/112"


@pytest.mark.parametrize(
    ("peer", "forwarded", "address"),
    [
        ("203.0.113.9", [], "203.0.113.9"),
        ("203.0.113.9", ["198.51.100.1"], "203.0.113.9"),  # the peer is no trusted proxy
        ("10.1.1.1", ["198.51.100.1"], "198.51.100.1"),
        ("10.1.1.1", ["1.1.1.1, 198.51.100.1"], "198.51.100.1"),  # a client writes hops before the proxy's own
        ("10.1.1.1", ["1.1.1.1", "198.51.100.1"], "198.51.100.1"),  # and on a line of its own
        ("10.1.1.1", ["1.1.1.1, 198.51.100.1, 10.2.2.2 "], "198.51.100.1"),
        ("10.1.1.1", ["10.3.3.3,10.2.2.2"], "10.3.3.3"),
        ("10.1.1.1", [], "10.1.1.1"),
        ("10.1.1.1", [" , ,"], "10.1.1.1"),
        ("10.1.1.1", ["nonsense"], "nonsense"),
        ("10.1.1.1", ["198.51.100.1, nonsense"], "nonsense"),
        ("fd00::1", ["2001:db8::1"], "2001:db8::1"),
        ("", ["198.51.100.1"], ""),
        # IPv4 addresses as dual-stack sockets and proxies write them
        ("::ffff:10.0.0.1", ["198.51.100.1"], "198.51.100.1"),
        ("::ffff:a00:1", ["198.51.100.1"], "198.51.100.1"),
        ("10.1.1.1", ["198.51.100.1, ::ffff:10.2.2.2"], "198.51.100.1"),
        ("10.1.1.1", ["::ffff:198.51.100.1"], "198.51.100.1"),
        ("::ffff:203.0.113.9", ["198.51.100.1"], "203.0.113.9"),
        ("192.168.3.4", ["198.51.100.1"], "198.51.100.1"),
        ("192.169.3.4", ["198.51.100.1"], "192.169.3.4"),
        # with a port, and in another spelling
        ("10.1.1.1", ["198.51.100.1:5000"], "198.51.100.1"),
        ("10.1.1.1", ["[2001:DB8::1]:5000"], "2001:db8::1"),
        ("10.1.1.1", ["2001:db8:0::1"], "2001:db8::1"),
    ],
)
def test_address_is_the_last_one_of_no_trusted_proxy(peer: str, forwarded: list[str], address: str) -> None:
    """Each address has one form, in whichever form a proxy wrote it."""
    assert Proxies(settings(trusted_proxies=TRUSTED)).client(peer, forwarded) == address


@given(st.lists(st.text()), st.text())
def test_no_header_raises(forwarded: list[str], peer: str) -> None:
    """For any text of a client."""
    proxies = Proxies(settings(trusted_proxies=TRUSTED))
    proxies.client("10.1.1.1", forwarded)
    assert proxies.client(peer, []) is not None


def test_without_trusted_proxies_headers_are_ignored() -> None:
    assert Proxies(settings()).client("10.1.1.1", ["198.51.100.1"]) == "10.1.1.1"


async def test_application_behind_it_sees_the_client() -> None:
    """All lines of the header count; a scope without a peer, or of another type, is passed unchanged."""
    seen: list[Any] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        seen.append(scope["client"])

    forwarded = Forwarded(app, Proxies(settings(trusted_proxies=TRUSTED)))
    headers = [(b"x-forwarded-for", b"1.1.1.1"), (b"x-forwarded-for", b"198.51.100.1")]
    for kind, peer in (("http", ("10.1.1.1", 5)), ("http", None), ("lifespan", ("10.1.1.1", 5))):
        await forwarded({"type": kind, "client": peer, "headers": headers}, None, None)
    assert seen == [("198.51.100.1", 0), None, ("10.1.1.1", 5)]

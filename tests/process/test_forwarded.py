"""router/process/forwarded.py: whose connection it is, and who may say so."""

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
        ("203.0.113.9", ["198.51.100.1"], "203.0.113.9"),  # a stranger may say anything
        ("10.1.1.1", ["198.51.100.1"], "198.51.100.1"),
        ("10.1.1.1", ["1.1.1.1, 198.51.100.1"], "198.51.100.1"),  # what a client puts before our proxy's own
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
        # with a port, and in another spelling of the same
        ("10.1.1.1", ["198.51.100.1:5000"], "198.51.100.1"),
        ("10.1.1.1", ["[2001:DB8::1]:5000"], "2001:db8::1"),
        ("10.1.1.1", ["2001:db8:0::1"], "2001:db8::1"),
    ],
)
def test_the_address_is_the_last_that_no_proxy_of_ours_bears(peer: str, forwarded: list[str], address: str) -> None:
    """In one form for each address, whoever wrote it how."""
    assert Proxies(settings(trusted_proxies=TRUSTED)).client(peer, forwarded) == address


@given(st.lists(st.text()), st.text())
def test_no_header_breaks_it(forwarded: list[str], peer: str) -> None:
    """Whatever a client sends there."""
    proxies = Proxies(settings(trusted_proxies=TRUSTED))
    proxies.client("10.1.1.1", forwarded)
    assert proxies.client(peer, []) is not None


def test_without_trusted_proxies_nobody_is_believed() -> None:
    assert Proxies(settings()).client("10.1.1.1", ["198.51.100.1"]) == "10.1.1.1"


async def test_the_application_behind_it_sees_the_client() -> None:
    """All lines of the header count; a scope without a peer, or of another kind, passes as it is."""
    seen: list[Any] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        seen.append(scope["client"])

    forwarded = Forwarded(app, Proxies(settings(trusted_proxies=TRUSTED)))
    headers = [(b"x-forwarded-for", b"1.1.1.1"), (b"x-forwarded-for", b"198.51.100.1")]
    for kind, peer in (("http", ("10.1.1.1", 5)), ("http", None), ("lifespan", ("10.1.1.1", 5))):
        await forwarded({"type": kind, "client": peer, "headers": headers}, None, None)
    assert seen == [("198.51.100.1", 0), None, ("10.1.1.1", 5)]

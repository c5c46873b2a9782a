"""router/api/addresses.py: every address that a caller gets can be dialed."""

from __future__ import annotations

import pytest

from router.api.addresses import dialable


@pytest.mark.parametrize(
    ("url", "host", "dialed"),
    [
        ("wss://g1.example/ws", "api.example", "wss://g1.example/ws"),
        ("ws://10.0.0.1:8001/ws", "api.example", "ws://10.0.0.1:8001/ws"),
        ("ws://0.0.0.0:8001/ws", "api.example:8000", "ws://api.example:8001/ws"),
        ("ws://0.0.0.0:8001/ws", "192.0.2.7:8000", "ws://192.0.2.7:8001/ws"),
        ("wss://[::]:8001/ws", "[2001:db8::1]:8000", "wss://[2001:db8::1]:8001/ws"),
        ("ws://[::]:8001/ws", "api.example", "ws://api.example:8001/ws"),
        ("ws://0.0.0.0:8001/ws", "", ""),
        ("ws://0.0.0.0:8001/ws", "0.0.0.0:8000", ""),
        ("ws://0.0.0.0:8001/ws", "evil.example/path", ""),
        ("ws://0.0.0.0:8001/ws", "user@evil.example", ""),
    ],
)
def test_wildcard_address_becomes_the_host_that_the_caller_used(url: str, host: str, dialed: str) -> None:
    """Other URLs are unchanged; if the caller's host cannot be dialed, there is no URL."""
    assert dialable(url, host) == dialed

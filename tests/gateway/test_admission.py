"""Admission: limits by address and in all, and the origins that may connect."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.admission import Admission, Refusal
from tests.gateway.world import settings


def test_connections_are_limited_by_address_and_in_all() -> None:
    """A connection that has ended makes room, and an address without connections is not kept."""
    door = Admission(settings(max_connections=5, max_connections_per_address=2))
    door.admit("a", 0)
    door.admit("a", 1)
    with pytest.raises(Refusal) as by_address:
        door.admit("a", 2)
    door.admit("b", 2)
    with pytest.raises(Refusal) as full:
        door.admit("c", 5)
    assert [(caught.value.status, caught.value.result) for caught in (by_address, full)] == [
        (429, "address_limit"), (503, "full"),
    ]  # fmt: skip
    door.release("a")
    door.admit("a", 2)
    for address in ("a", "a", "b"):
        door.release(address)
    assert not door._by_address


NAMED = "https://chat.example, https://Other.Example:8443/"


@pytest.mark.parametrize(
    ("origins", "origin", "allowed"),
    [
        ("", None, True),  # no browser
        ("", "https://chat.example", True),
        ("", "http://CHAT.example", True),
        ("", "https://evil.example", False),
        ("", "https://chat.example/chat.example", False),
        ("", "ftp://chat.example", False),
        ("", "chat.example", False),
        ("", "//chat.example", False),
        ("", "https://chat.example:443", False),  # no browser names a port that the scheme implies
        ("*", "https://evil.example", True),
        (NAMED, "https://chat.example", True),
        (NAMED, "HTTPS://Chat.Example/", True),
        (NAMED, "https://other.example:8443", True),
        (NAMED, "https://other.example", False),
        (NAMED, "http://chat.example", False),
        (NAMED, "https://chat.example:8443", False),
        (NAMED, None, True),
        ("HTTPS://Chat.Example:443", "https://chat.example", True),
        ("https://app.example", "https://chat.example", False),  # the same host, but it was not named
    ],
)
def test_browser_connects_only_from_allowed_origins(origins: str, origin: str | None, allowed: bool) -> None:
    door = Admission(settings(origins=origins))
    assert door.origin_allowed([] if origin is None else [origin], "chat.example") == allowed


def test_host_with_the_port_that_https_implies_is_the_same_host() -> None:
    door = Admission(settings())
    assert door.origin_allowed(["https://chat.example"], "chat.example:443")
    assert not door.origin_allowed(["https://chat.example"], "chat.example:8443")


# Origins that checks for cross-site WebSocket hijacking try against a service on https://chat.example. Each can belong
# to another site, or is sent by a browser for a page without an origin, and passes a careless comparison.
FOREIGN = (
    "https://evil.example", "null", "", "file://", "about:blank", "data:", "*",
    "https://chat.example.evil.example", "https://chat.exampleevil.example", "https://evilchat.example",
    "https://evil.chat.example", "https://chat-example", "https://chatxexample", "https://chat.example.",
    "https://.chat.example", "https://chat.example_.evil.example", "https://_chat.example",
    "https://chat.example@evil.example", "https://evil.example@chat.example", "https://chat.example:443@evil.example",
    "https://evil.example/https://chat.example", "https://evil.example?https://chat.example",
    "https://evil.example#https://chat.example", "https://evil.example\\.chat.example",
    *(f"https://chat.example{sign}.evil.example" for sign in "!\"#$%&'()*+,-/:;<=>?@[\\]^_`{|}~"),
    "https://chat.example, https://evil.example", "https://evil.example https://chat.example",
    "https://[chat.example", "https://[::1", "https://chat.example]", "https://chat.example%00.evil.example",
    "https://chat.example:", "https://chat.example:1", "https://chat.example:0443", "javascript://chat.example",
    "https:chat.example", "https:/chat.example", "https:///chat.example", "wss://chat.example",
    "https://xn--cht-5na.example", "https://ch\xe1t.example",
)  # fmt: skip


@pytest.mark.parametrize("origins", ["", NAMED])
def test_foreign_origin_is_refused(origins: str) -> None:
    """By default and with a list, also beside an allowed one, and whatever the Host header contains."""
    door = Admission(settings(origins=origins))
    for origin in FOREIGN:
        for sent in ([origin], ["https://chat.example", origin], [origin, "https://chat.example"]):
            assert not door.origin_allowed(sent, "chat.example"), sent
    for host in ("", "/", "null"):
        for origin in ("null", "http://", "https://", "http:", "https:///", ""):
            assert not door.origin_allowed([origin], host), (host, origin)


@given(st.text(), st.text())
def test_any_text_is_accepted_as_input(origin: str, host: str) -> None:
    """Origin and host are compared without an exception."""
    assert Admission(settings()).origin_allowed([origin], host) in (True, False)

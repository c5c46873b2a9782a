"""A gateway that serves `wss://` by itself, without anything in front."""

from __future__ import annotations

import ssl
from pathlib import Path

import pytest

from deploy.prepare import own_certificate
from tests.flow.client import ChatClient
from tests.flow.conftest import Start


async def test_chat_over_the_gateways_own_tls(start: Start, tmp_path: Path) -> None:
    """With a certificate two people chat over TLS, and who does not trust it does not connect."""
    pem = str(own_certificate(tmp_path / "linnet.pem", "127.0.0.1"))
    system = await start(gateways=1, router=False, LINNET_TLS_CERT=pem, LINNET_TLS_KEY=pem)
    url = system.urls[0].replace("ws://", "wss://")
    trust = ssl.create_default_context(cafile=pem)
    alice, bob = ChatClient("alice"), ChatClient("bob", codec="msgpack")
    for client in (alice, bob):
        await client.open(url, ssl=trust)
        await client.hello()
    ack = await alice.sent("@bob", "over TLS")
    assert (await bob.event("message", conversation=ack["conversation"]))["body"] == "over TLS"
    with pytest.raises(ssl.SSLCertVerificationError):
        await ChatClient("mallory").open(url)

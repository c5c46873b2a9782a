"""A gateway that serves `wss://` itself, without a proxy in front."""

from __future__ import annotations

import signal
import ssl
from pathlib import Path

import pytest

from deploy.prepare import own_certificate
from tests.flow.client import ChatClient
from tests.flow.conftest import Start
from tests.support import eventually


async def test_clients_chat_over_tls_of_the_gateway(start: Start, tmp_path: Path) -> None:
    """A client that does not trust the certificate does not connect."""
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


async def test_renewed_certificate_is_used_without_a_restart(start: Start, tmp_path: Path) -> None:
    """The files are replaced and the process gets SIGHUP: it and its connections go on, and new ones get the new
    certificate."""
    pem, renewed = own_certificate(tmp_path / "linnet.pem", "127.0.0.1"), tmp_path / "renewed.pem"
    old = ssl.create_default_context(cafile=str(pem))
    system = await start(gateways=1, router=False, LINNET_TLS_CERT=str(pem), LINNET_TLS_KEY=str(pem))
    url = system.urls[0].replace("ws://", "wss://")
    alice = ChatClient("alice")
    await alice.open(url, ssl=old)
    await alice.hello()
    own_certificate(renewed, "127.0.0.1")
    new = ssl.create_default_context(cafile=str(renewed))
    renewed.replace(pem)
    system.gateways[0].send(signal.SIGHUP)
    await eventually(lambda: "were loaded" in system.gateways[0].log)
    bob = ChatClient("bob")
    await bob.open(url, ssl=new)
    await bob.hello()
    await alice.sent("@bob", "over the old connection")
    assert (await bob.event("message"))["body"] == "over the old connection"
    with pytest.raises(ssl.SSLCertVerificationError):
        await ChatClient("mallory").open(url, ssl=old)

"""People chat across gateways."""

from __future__ import annotations

from tests.conftest import StartProcess
from tests.flow.client import ChatClient
from deploy.embedded import EmbeddedValkey


async def test_direct_messages_cross_gateways_in_both_codecs(valkey: EmbeddedValkey, process: StartProcess) -> None:
    """A direct message reaches both users on different gateways, whatever codec each speaks."""
    one, two = process("gateway", LINNET_REDIS_URL=valkey.url), process("gateway", LINNET_REDIS_URL=valkey.url)
    await one.ready()
    await two.ready()
    alice, bob = ChatClient("alice"), ChatClient("bob", codec="msgpack")
    await bob.connect(two.url)
    print(await alice.connect(one.url))
    print(await alice.send("@bob", "hello"))
    print(await bob.event("message"))
    print(await alice.event("message"))
    print(await bob.send("@alice", {"a": b"x"}))
    print(await alice.event("message", **{"from": "bob"}))
    await alice.disconnect()
    await bob.disconnect()

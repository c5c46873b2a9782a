"""The metrics of the delivery promise count direct conversations, too."""

from __future__ import annotations

from tests.flow.client import ChatClient
from tests.flow.conftest import Start


async def test_direct_deliveries_are_timed(start: Start) -> None:
    """Each delivery is counted with its bytes, and one in eight is timed."""
    system = await start(gateways=1, router=False)
    alice, bob = ChatClient("alice"), ChatClient("bob")
    for client in (alice, bob):
        await client.connect(system.urls[0])
    for number in range(24):
        ack = await alice.sent("@bob", f"message {number}")
    await bob.has(ack["conversation"], 24)
    delivered = await system.metric('linnet_gateway_deliveries_total{path="live"}')
    assert delivered >= 24
    assert await system.metric("linnet_gateway_written_bytes_total") > 24 * len("message 0")
    assert 0 < await system.metric("linnet_gateway_delivery_seconds_count") < delivered

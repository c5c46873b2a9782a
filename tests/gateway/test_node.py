"""The node: its gauges, its URL, its limits, and sessions that raise."""

from __future__ import annotations

from deploy.embedded import EmbeddedValkey
from router.contract import keys, metrics
from tests.gateway.world import world


async def test_gauges_are_set_at_a_scrape(valkey: EmbeddedValkey) -> None:
    async with world(valkey) as of:
        await of.group("ann", "bob")
        await of.client("ann").connected()
        of.node.observe()
        assert (metrics.HUBS._value.get(), metrics.IN_FLIGHT._value.get(), metrics.REDIS_UP._value.get()) == (1, 0, 1)
        calls = metrics.REDIS_CALLS.labels("sync")._value.get()
        of.node.observe()
        assert metrics.REDIS_CALLS.labels("sync")._value.get() == calls


async def test_url_of_a_gateway_is_the_setting(valkey: EmbeddedValkey) -> None:
    """Without the setting it is the address that the gateway listens on."""
    for changes, url in (
        ({"gateway_url": "wss://a.example/ws"}, "wss://a.example/ws"),
        ({"listen": "10.0.0.1:81"}, "ws://10.0.0.1:81/ws"),
        ({"listen": "10.0.0.1:81", "tls_cert": "c", "tls_key": "k"}, "wss://10.0.0.1:81/ws"),
        ({"listen": "[::1]:81"}, "ws://[::1]:81/ws"),
    ):
        async with world(valkey, **changes) as of:
            assert of.node.url == url


async def test_log_that_no_router_trims_is_cut_at_twice_the_retention(valkey: EmbeddedValkey) -> None:
    """By the same setting as on routers."""
    async with world(valkey, retention_events=100) as of:
        group = await of.group("ann")
        for i in range(300):
            await of.say("ann", group, i)
        kept = await of.redis.fetch("XLEN", keys.log(group))
        assert 200 <= kept < 200 + 64


async def test_session_that_raises_costs_no_other_session_an_event(valkey: EmbeddedValkey) -> None:
    """In the fan-out of a hub, among the sessions of a user, and in the flush at the end of a turn."""
    async with world(valkey) as of:
        group, direct = await of.group("ann", "bob", "cid"), await of.direct("ann", "bob")
        broken, phone, other = (
            await of.client("bob", "tablet").connected(),
            await of.client("bob").connected(),
            await of.client("cid").connected(),
        )

        def raising(*_: object) -> None:
            raise RuntimeError("broken")

        broken.connection.write = raising  # type: ignore[method-assign,assignment]
        await of.say("ann", group, "to all")
        await of.say("ann", direct, "to one")
        await other.event("message", body="to all")
        await phone.event("message", body="to all")
        await phone.event("message", body="to one")
        of.node.sessions.flush_later(broken.session)
        of.node.sessions.flush_later(other.session)
        broken.session.out, other.session.out = [b"x"], [b"\x81\x0f" + b'{"type": "end"}']
        await other.event("end")
        broken.end()

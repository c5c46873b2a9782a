"""The session of a device: one at a time, how long it lasts, and how it ends by tokens, kicks and age."""

from __future__ import annotations

import time
from typing import Any

import pytest
from websockets.exceptions import ConnectionClosed, InvalidStatus

from tests.flow.client import ChatClient, token
from tests.flow.conftest import Names, Start, System


@pytest.mark.parametrize("places", [(0, 0), (0, 1)], ids=["same gateway", "other gateway"])
@pytest.mark.parametrize("other", ["b", "", None], ids=["other instance", "empty", "no instance"])
async def test_second_connection_of_a_device_replaces_the_first(
    chat: System, names: Names, places: tuple[int, int], other: str | None
) -> None:
    """The earlier session ends with 4409 and must not reconnect, the later one goes on."""
    alice_, bob_ = names("alice", "bob")
    first, second, bob = ChatClient(alice_), ChatClient(alice_), ChatClient(bob_)
    await bob.connect(chat.urls[0])
    await first.connect(chat.urls[places[0]], instance=None if other is None else "a")
    await second.connect(chat.urls[places[1]], instance=other)
    assert (await first.gone())[0] == 4409
    conversation = (await bob.sent(f"@{alice_}", "hi"))["conversation"]
    await second.has(conversation, 1)
    assert second.closed is None


@pytest.mark.parametrize("places", [(0, 0), (0, 1)], ids=["same gateway", "other gateway"])
async def test_reconnect_of_the_same_instance_closes_the_first_with_4000(
    chat: System, names: Names, places: tuple[int, int]
) -> None:
    """The same client process connects again, because its network changed."""
    (alice_,) = names("alice")
    first, second = ChatClient(alice_), ChatClient(alice_)
    await first.connect(chat.urls[places[0]], instance="a")
    await second.connect(chat.urls[places[1]], instance="a")
    code, reason = await first.gone()
    assert code == 4000
    assert reason.startswith("retry_after=")
    await second.ask("ping")


async def test_devices_of_a_user_do_not_replace_each_other(chat: System, names: Names) -> None:
    """Another device is no replacement."""
    (alice_,) = names("alice")
    devices = [ChatClient(alice_, f"device-{i}") for i in range(5)]
    for i, device in enumerate(devices):
        await device.connect(chat.urls[i % 2])
    ack = await devices[0].sent(f"@{alice_}", "note to all")
    for device in devices:
        await device.has(ack["conversation"], 1)
        assert device.closed is None


async def test_expired_token_ends_a_live_session(chat: System, names: Names) -> None:
    """With 4501, at most a moment after its expiry."""
    (alice_,) = names("alice")
    alice = ChatClient(alice_)
    welcome = await alice.connect(chat.urls[0], token=token(alice_, 8.0))
    code, _ = await alice.gone()
    assert code == 4501
    late_ms = time.time() * 1000 - welcome["expires_at"]
    assert 0 <= late_ms < 15_000


async def test_auth_extends_a_session_beyond_its_first_token(chat: System, names: Names) -> None:
    """A new token in time; a token of another user is refused."""
    alice_, eve_ = names("alice", "eve")
    alice, short = ChatClient(alice_), ChatClient(alice_, "tablet")
    await alice.connect(chat.urls[0], token=token(alice_, 9.0))
    await short.connect(chat.urls[0], token=token(alice_, 10.0))
    assert (await alice.ask("auth", token=token(eve_)))["code"] == "unauthorized"
    assert (await alice.ask("auth", token="x.y.z"))["code"] == "unauthorized"
    assert (await alice.ask("auth", token=token(alice_, -1)))["code"] == "token_expired"
    assert (await alice.ask("auth", token=token(alice_, 600)))["type"] == "ok"
    assert (await short.gone())[0] == 4501  # the other one's end: the time of the old token is over
    assert (await alice.ask("ping"))["type"] == "pong"


REFUSED: list[tuple[str, Any, int]] = [
    ("unauthorized", "garbage", 4500),
    ("unauthorized", "eyJhbGciOiJub25lIn0.eyJzdWIiOiJhbGljZSIsImV4cCI6OTk5OTk5OTk5OX0.", 4500),
    ("unauthorized", token("a:b"), 4500),
    ("unauthorized", token("alice")[:-2] + "xx", 4500),
    ("token_expired", token("alice", -5), 4501),
]


@pytest.mark.parametrize(("code", "bad", "close"), REFUSED)
async def test_hello_with_an_invalid_token_is_refused(chat: System, code: str, bad: str, close: int) -> None:
    """Forged, unsigned, without a name or expired: an error with the reason, and the connection ends."""
    alice = ChatClient("alice")
    answer = await alice.connect(chat.urls[0], token=bad)
    assert (answer["type"], answer["code"]) == ("error", code)
    assert (await alice.gone())[0] == close


async def test_hello_without_a_token_is_refused(chat: System) -> None:
    """`unauthorized`, 4500."""
    alice = ChatClient("alice")
    await alice.open(chat.urls[0])
    assert (await alice.ask("hello", device="phone"))["code"] == "unauthorized"
    assert (await alice.gone())[0] == 4500


@pytest.mark.parametrize("which", ["device", "user"])
async def test_kicked_sessions_end_and_may_reconnect(chat: System, names: Names, which: str) -> None:
    """A backend disconnects one device or all devices of a user, on any gateway, and no other user's."""
    alice_, bob_ = names("alice", "bob")
    phone, tablet, bob = ChatClient(alice_), ChatClient(alice_, "tablet"), ChatClient(bob_)
    await phone.connect(chat.urls[0])
    await tablet.connect(chat.urls[1])
    await bob.connect(chat.urls[0])
    await chat.api("DELETE", f"/v1/sessions/{alice_}" + ("/phone" if which == "device" else ""))
    assert await phone.gone() == (4504, "ended")
    if which == "user":
        assert await tablet.gone() == (4504, "ended")
    else:
        await tablet.ask("ping")
    await bob.ask("ping")
    assert (await phone.connect(chat.urls[1]))["type"] == "welcome"


async def test_oldest_connections_are_rotated(start: Start) -> None:
    """A connection of the maximum age gets `drain`, and is closed with 4003."""
    system = await start(gateways=1, router=False, LINNET_MAX_AGE_S="2")
    alice = ChatClient("alice")
    await alice.connect(system.urls[0])
    code, reason = await alice.gone()
    assert code == 4003
    drain = await alice.event("drain")
    assert reason == f"retry_after={drain['retry_after']:.3g}"
    assert (await alice.connect(system.urls[0]))["type"] == "welcome"


async def test_full_gateway_refuses_with_an_http_status(start: Start) -> None:
    """Beyond the limit, of all or of one address; connections within it are not affected."""
    system = await start(gateways=1, router=False, LINNET_MAX_CONNECTIONS="2")
    per_address = {"LINNET_MAX_CONNECTIONS": "100", "LINNET_MAX_CONNECTIONS_PER_ADDRESS": "2"}
    system.gateways.append(await system.gateway(**per_address).ready())
    for url, status in zip(system.urls, (503, 429), strict=True):
        clients = [ChatClient("alice", f"device-{i}") for i in range(3)]
        for client in clients[:2]:
            await client.connect(url)
        with pytest.raises(InvalidStatus) as refused:
            await clients[2].connect(url)
        assert refused.value.response.status_code == status
        await clients[0].disconnect()
        await clients[1].ask("ping")
        assert (await clients[2].connect(url))["type"] == "welcome"


async def test_message_of_a_sender_lost_before_the_ack_is_delivered(chat: System, names: Names) -> None:
    """A client that vanishes right after sending has sent."""
    alice_, bob_ = names("alice", "bob")
    alice, bob = ChatClient(alice_), ChatClient(bob_)
    await bob.connect(chat.urls[1])
    await alice.connect(chat.urls[0])
    conversation = (await alice.sent(f"@{bob_}", "one"))["conversation"]
    await alice.say("send", to=conversation, n=alice.next_n(), body="two")
    await alice.disconnect()
    with pytest.raises(ConnectionClosed):
        await alice.ask("ping")
    assert await bob.has(conversation, 2) == ["one", "two"]


async def test_deleted_user_is_disconnected_and_refused(chat: System, names: Names) -> None:
    """The sessions end, and no token of the user is accepted again."""
    alice_, bob_ = names("alice", "bob")
    phone, tablet, bob = ChatClient(alice_), ChatClient(alice_, "tablet"), ChatClient(bob_)
    for client, url in ((phone, 0), (tablet, 1), (bob, 0)):
        await client.connect(chat.urls[url])
    await chat.api("DELETE", f"/v1/accounts/{alice_}")
    for client in (phone, tablet):
        assert (await client.gone())[0] == 4502
        answer = await client.connect(chat.urls[0])
        assert (answer["type"], answer["code"]) == ("error", "blocked")
        assert (await client.gone())[0] == 4502
    assert (await bob.send(f"@{alice_}", "still there?"))["code"] == "not_found"

"""G8, presence is right within a bounded time after any crash."""

from __future__ import annotations

import asyncio
import time

from gateway.presence.departures import AWAY_GRACE_S
from tests import support
from tests.flow.client import ChatClient, Event
from tests.flow.conftest import Names, Start, System


async def tells(
    watcher: ChatClient, user: str, online: bool, since: int = 0, deadline_s: float = support.DEADLINE_S
) -> Event:
    """The next news of a user that says so."""

    def find() -> Event | None:
        news = (event["users"][user] for event in watcher.events[since:] if user in event.get("users", ()))
        return next((state for state in news if state["online"] is online), None)

    state: Event = await watcher.until(find, deadline_s)
    return state


async def test_watcher_receives_each_change_once(chat: System, names: Names) -> None:
    """Online at once, offline after the grace. A user who asked without `watch` receives nothing more."""
    ann_, ben_, cem_ = names("ann", "ben", "cem")
    watcher, curious, ben = ChatClient(ann_), ChatClient(cem_, codec="msgpack"), ChatClient(ben_)
    await watcher.connect(chat.urls[0])
    await curious.connect(chat.urls[0])
    answer = await watcher.ask("presence", users=[ben_, ann_, f"{ben_}-nobody"], watch=True)
    assert answer["type"] == "presence"
    assert answer["users"][ben_] == {"online": False, "last_seen": None}
    assert answer["users"][f"{ben_}-nobody"] == {"online": False, "last_seen": None}
    assert answer["users"][ann_]["online"] is True
    assert (await curious.ask("presence", users=[ben_]))["users"][ben_]["online"] is False
    here = watcher.here
    began = int(time.time() * 1000)
    await ben.connect(chat.urls[1])
    await tells(watcher, ben_, True, here)
    assert (await curious.ask("presence", users=[ben_]))["users"][ben_]["online"] is True
    await ben.disconnect()
    gone = await tells(watcher, ben_, False, here)
    assert began - 1000 <= gone["last_seen"] <= int(time.time() * 1000) + 1000
    assert (await curious.ask("presence", users=[ben_]))["users"][ben_] == gone
    news = [event["users"][ben_]["online"] for event in watcher.events[here:] if ben_ in event.get("users", ())]
    assert news == [True, False]
    assert len([event for event in curious.events if event["type"] == "presence"]) == 3


async def test_g8_reconnect_does_not_flicker(chat: System, names: Names) -> None:
    """A device that reconnects within three seconds, to this or another gateway, stays online."""
    ann_, ben_ = names("ann", "ben")
    watcher, ben = ChatClient(ann_), ChatClient(ben_)
    await watcher.connect(chat.urls[0])
    await ben.connect(chat.urls[0])
    await watcher.ask("presence", users=[ben_], watch=True)
    here = watcher.here
    for i in range(4):
        if i % 2:
            await ben.disconnect()
        else:
            ben.abort()
            await ben.gone()
        await ben.connect(chat.urls[(i + 1) % 2])
    left = time.monotonic()
    await ben.disconnect()
    await tells(watcher, ben_, False, here)
    assert time.monotonic() - left > 2.5, "the grace"
    news = [event["users"][ben_]["online"] for event in watcher.events[here:] if ben_ in event.get("users", ())]
    assert news == [False]


async def test_user_is_online_while_one_device_is(chat: System, names: Names) -> None:
    """The user goes offline with the last device."""
    ann_, ben_ = names("ann", "ben")
    watcher, phone, tablet = ChatClient(ann_), ChatClient(ben_), ChatClient(ben_, "tablet")
    await watcher.connect(chat.urls[0])
    await phone.connect(chat.urls[0])
    await tablet.connect(chat.urls[1])
    await watcher.ask("presence", users=[ben_], watch=True)
    here = watcher.here
    await phone.disconnect()
    left = time.monotonic()
    await tablet.disconnect()
    await tells(watcher, ben_, False, here)
    assert time.monotonic() - left > 2.5


async def test_g8_killed_gateway_takes_its_users_offline(start: Start) -> None:
    """Within 15 s after `kill -9`, one event each, with the time at which they were last seen."""
    system = await start()
    watcher, late = ChatClient("ann"), ChatClient("cem")
    users = [ChatClient(f"user-{i}") for i in range(5)]
    await watcher.connect(system.urls[0])
    for user in users:
        await user.connect(system.urls[1])
    await users[0].connect(system.urls[1])  # a second session of the same device
    await watcher.ask("presence", users=[user.user for user in users], watch=True)
    here = watcher.here
    killed = time.time()
    system.gateways[1].kill()
    await asyncio.gather(*(user.gone() for user in users))
    back = ChatClient("user-4")
    await back.connect(system.urls[0])
    for user in users[:4]:
        state = await tells(watcher, user.user, False, here, 30.0)
        assert abs(state["last_seen"] / 1000 - killed) < 15
    assert time.time() - killed < 15 * support.PATIENCE
    await late.connect(system.urls[0])
    states = (await late.ask("presence", users=[user.user for user in users]))["users"]
    assert [states[user.user]["online"] for user in users] == [False] * 4 + [True]
    assert all(state["last_seen"] for state in states.values())
    news = [(user, state) for event in watcher.events[here:] for user, state in event.get("users", {}).items()]
    assert len(news) == 4, "one event each; a user who reconnected in time was never offline"


async def test_g8_user_who_left_during_a_redis_outage_goes_offline_afterwards(start: Start) -> None:
    """The gateway could not mark the device away at the end of the grace; it lives, so only it can do so later."""
    system = await start(gateways=1, router=False)
    watcher, ben = ChatClient("ann"), ChatClient("ben")
    await watcher.connect(system.urls[0])
    await ben.connect(system.urls[0])
    await watcher.ask("presence", users=["ben"], watch=True)
    here = watcher.here
    system.valkey.kill()
    await ben.disconnect()
    left = time.monotonic()
    await support.eventually(lambda: time.monotonic() - left > AWAY_GRACE_S + 2)  # the grace itself is waited for
    system.valkey.start()
    await tells(watcher, "ben", False, here, 30.0)


async def test_users_of_a_drained_gateway_stay_online(start: Start) -> None:
    """Users who reconnect at once stay online for their watchers."""
    system = await start()
    watcher, ben = ChatClient("ann"), ChatClient("ben")
    await watcher.connect(system.urls[0])
    await ben.connect(system.urls[1])
    await watcher.ask("presence", users=["ben"], watch=True)
    here = watcher.here
    system.gateways[1].popen.terminate()
    await ben.gone()
    await ben.connect(system.urls[0])
    assert await system.gateways[1].ended() == 0
    left = time.monotonic()
    await ben.disconnect()
    await tells(watcher, "ben", False, here)
    assert time.monotonic() - left > 2.5
    assert len([event for event in watcher.events[here:] if event["type"] == "presence"]) == 1

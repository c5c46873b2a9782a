"""Sharded pub/sub of a cluster: one connection (an *ear*) for each primary, and subscriptions that follow their slots.

An ear is a `Bus` for one server, whose requests have channels of one slot only. `ClusterBus` has the interface of a
`Bus`. It knows which channels are wanted and which ear has each of them.

If a slot moves, the old server unsubscribes its channels by itself. Each of them is requested again, at the owner by
the map or by the MOVED in the answer, and is reported by `on_channels_restored` once it is confirmed, because messages
may have been missed meanwhile. So are the channels of a connection that was lost, and of a slot that the map has given
to another server although the old one says nothing: a server that is cut off does not know that it was replaced.

Invariants
- A channel that was confirmed and is not any more is reported when it is confirmed again, exactly once for each time.
- `ready(True)` is called when all channels of a call are confirmed, which may be long after the call if a server is
  down; `ready(False)` if one of them is unsubscribed before.
- `MOVED` answers the oldest open request only if that is of the same slot. Else it is the late answer to an
  unsubscription that the server itself has done before.
- Every ear proves by its own echoes that it receives what is published at its server.
"""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import Callable, Iterable
from functools import partial
from typing import Final

import msgspec

from router.contract import keys
from router.contract.errors import StartupError
from router.contract.keys import renamed
from router.store.redis.client import Client
from router.store.redis.cluster_client import ClusterClient
from router.store.redis.pubsub import PROBE_S, Bus, BusStatistics, Messages, Ready, Request, chunks
from router.store.redis.routing import Line
from router.store.redis.slots import slot_of

AGAIN_S: Final = 0.005  # after which a channel that was taken away is requested again
REFUSED_S: Final = 0.1  # the same if no other server is known for its slot
GATHER_S: Final = 0.01  # in which restored channels are reported together

log = logging.getLogger("linnet.redis")


class Ear(Bus):
    """The subscriptions at one server."""

    def __init__(self, owner: ClusterBus, line: Line, server: Client, on_messages: Callable[[Messages], None]) -> None:
        self.line = line
        self._owner = owner
        self._left: Counter[bytes] = Counter()  # channels of open unsubscriptions
        super().__init__(server, owner.echo_of(line), on_messages, partial(owner.lost, self), _nothing, _ignore)
        self.expected_id = line.expected_id

    @property
    def denied(self) -> str:
        """The server's text if its ACL refused a subscription."""
        return self._denied

    def again(self, channels: Iterable[bytes]) -> None:
        """Request channels that are wanted here and were not confirmed, or not any more."""
        if self.up:
            self._adding |= self._wanted.intersection(channels)
            self._flush_soon()

    def opened(self) -> None:
        self._choose_echo()
        super().opened()

    def _choose_echo(self) -> None:
        self._wanted.discard(self._echo)
        self._echo = self._owner.echo_of(self.line).encode()
        self._wanted.add(self._echo)

    def keep_echo(self) -> None:
        """Choose another channel for the echo if the slot of the present one is not at this server any more."""
        if self._owner.is_at(self.line, self._echo) or not self._owner.is_at(self.line, self._owner.echo_of(self.line)):
            return  # or the server has no slots now
        self._choose_echo()
        self.again((self._echo,))

    def _chunks(self, verb: bytes, channels: Iterable[bytes]) -> list[Request]:
        by_slot: dict[int, list[bytes]] = {}
        for channel in channels:
            by_slot.setdefault(slot_of(channel), []).append(channel)
            if verb == b"sunsubscribe":
                self._left[channel] += 1
        return [request for some in by_slot.values() for request in chunks(verb, some)]

    def _confirmed(self, verb: bytes, channel: bytes) -> None:
        super()._confirmed(verb, channel)
        if verb == b"sunsubscribe":
            self._unsubscribed(channel)
        elif channel not in self._left:  # else the server will unsubscribe it again, and then the last request counts
            self._owner.confirmed(self, channel)

    def _unsubscribed(self, channel: bytes) -> None:
        self._left[channel] -= 1
        if self._left[channel] <= 0:
            del self._left[channel]

    def closed(self, why: str) -> None:
        self._left.clear()
        super().closed(why)

    def _taken_away(self, channel: bytes) -> None:
        if channel == self._echo:
            self._choose_echo()
            self.again((self._echo,))
        elif channel in self._wanted:
            self.taken_away += 1
            self._owner.taken(self, channel)

    def _refused(self, text: str) -> None:
        kind, _, rest = text.partition(" ")
        slot, _, where = rest.partition(" ")
        if kind != "MOVED" or not slot.isdecimal():
            super()._refused(text)
            return
        first = self._requests[0] if self._requests else None
        if first is None or slot_of(first.channels[0]) != int(slot):
            return
        self._requests.popleft()
        self._answer(first.waiters, False)
        if first.verb == b"sunsubscribe":
            for channel in first.channels[first.confirmed :]:
                self._unsubscribed(channel)
        self._owner.moved(self, int(slot), where, first.channels if first.verb == b"ssubscribe" else ())


class _Waiter:
    """A callback that waits for channels."""

    __slots__ = ("left", "ready")

    def __init__(self, ready: Ready, left: set[bytes]) -> None:
        self.ready = ready
        self.left = left


class ClusterBus:
    """The subscriptions of a gateway on a cluster."""

    def __init__(
        self,
        client: ClusterClient,
        node: str,
        on_messages: Callable[[Messages], None],
        on_lost: Callable[[], None],
        on_channels_restored: Callable[[list[bytes]], None],
    ) -> None:
        self._client = client
        self._routing = client.routing
        self._node = node
        self._bus, also = client.channels.bus.encode(), client.channels.also
        self._also = None if also is None else also.encode()
        self._on_messages = on_messages
        self._on_lost = on_lost
        self._on_channels_restored = on_channels_restored
        self._loop = asyncio.get_running_loop()
        self._ears: dict[Line, Ear] = {}
        self._wanted: dict[int, set[bytes]] = {}  # by slot
        self._placed: dict[int, Ear] = {}  # the ear that is to have a slot's channels
        self._have: dict[bytes, Ear] = {}  # confirmed
        self._missed: set[bytes] = set()  # confirmed once, and not any more
        self._restored: list[bytes] = []  # to be reported
        self._waiting: dict[bytes, list[_Waiter]] = {}
        self._placing = self._closed = False
        self._past = _NONE  # of ears that are closed
        self.callback_errors = 0
        self._routing.changed.append(self._place_soon)

    # -- calls

    async def connect(self, within_s: float) -> None:
        """Connect to all servers that answer; `StartupError` if none has after `within_s`."""
        began = self._loop.time()
        while not any(ear.up for ear in self._ears.values()):
            for line in self._routing.serving:
                self._ear(line)
            if self._loop.time() - began > within_s:
                raise StartupError(f"Redis at {self._client.address}: no server takes subscriptions")
            await asyncio.sleep(0.02)

    async def probe(self, channels: Iterable[str]) -> None:
        """Wait until every server that answers has confirmed a subscription; `StartupError` if an ACL refuses one."""
        wanted = {line: self._echo_at(line, "probe") for line in self._routing.serving}
        self.subscribe(wanted.values())
        while True:
            serving = set(self._routing.serving)
            if all(name.encode() in self._have for line, name in wanted.items() if line in serving):
                break
            denied = next((ear.denied for ear in self._ears.values() if ear.denied), "")
            if denied:
                raise StartupError(
                    f"Redis at {self._client.address} refuses subscriptions ({denied}): give its user the rights in"
                    " deploy/README.md"
                )
            await asyncio.sleep(PROBE_S / 10)
        self.unsubscribe(wanted.values())

    async def close(self) -> None:
        self._closed = True
        await asyncio.gather(*(ear.close() for ear in self._ears.values()))

    def subscribe(self, channels: Iterable[bytes | str], ready: Ready | None = None) -> None:
        """Subscribe to these channels and keep them subscribed; a channel that is wanted already costs nothing."""
        names = self._named(channels)
        for name in names:
            slot = slot_of(name)
            at = self._wanted.setdefault(slot, set())
            if name not in at:
                at.add(name)
                ear = self._placed.get(slot) or self._place(slot)
                if ear is not None:
                    ear.subscribe((name,))
        if ready is None:
            return
        left = {name for name in names if name not in self._have}
        if not left:
            self._loop.call_soon(self._guard, partial(ready, True))
            return
        waiter = _Waiter(ready, left)
        for name in left:
            self._waiting.setdefault(name, []).append(waiter)

    def unsubscribe(self, channels: Iterable[bytes | str]) -> None:
        for name in self._named(channels):
            slot = slot_of(name)
            at = self._wanted.get(slot)
            if at is None or name not in at:
                continue
            at.discard(name)
            ear = self._placed.get(slot)
            if ear is not None:
                ear.unsubscribe((name,))
            if not at:
                del self._wanted[slot]
                self._placed.pop(slot, None)
            self._have.pop(name, None)
            self._missed.discard(name)
            for waiter in self._waiting.pop(name, ()):
                if waiter.left:  # the other channels of the call are not waited for any more
                    waiter.left = set()
                    self._loop.call_soon(self._guard, partial(waiter.ready, False))

    def reaches(self, channel: bytes | str) -> bool:
        """Whether the server of this channel can be reached now, for calls and for subscriptions."""
        owner = self._routing.owner(slot_of(channel))
        ear = None if owner is None else self._ears.get(owner)
        return owner is not None and owner.serves and (ear is None or ear.up)

    def statistics(self) -> BusStatistics:
        ears = [ear.statistics() for ear in self._ears.values()]
        channels = sum(map(len, self._wanted.values()))
        counts = _counts([self._past, *ears])
        return BusStatistics(
            up=any(ear.up for ear in ears),
            restored=len(self._have) == channels and not self._placing,
            channels=channels,
            requests_in_flight=sum(ear.requests_in_flight for ear in ears),
            **{**counts, "callback_errors": counts["callback_errors"] + self.callback_errors},
        )

    # -- what ears report

    def echo_of(self, line: Line) -> str:
        """The channel on which the ear of this server proves that it receives."""
        return self._echo_at(line, self._node)

    def is_at(self, line: Line, channel: str | bytes) -> bool:
        """Whether the map has this channel at this server."""
        return self._routing.owner(slot_of(channel)) is line

    def confirmed(self, ear: Ear, channel: bytes) -> None:
        slot = slot_of(channel)
        if self._placed.get(slot) is not ear or channel not in self._wanted.get(slot, ()):
            return
        self._have[channel] = ear
        if channel in self._missed:
            self._missed.discard(channel)
            if not self._restored:
                self._loop.call_later(GATHER_S, self._report)
            self._restored.append(channel)
        for waiter in self._waiting.pop(channel, ()):
            if waiter.left:
                waiter.left.discard(channel)
                if not waiter.left:
                    self._guard(partial(waiter.ready, True))

    def taken(self, ear: Ear, channel: bytes) -> None:
        """Request a channel again that the server has unsubscribed by itself, where its slot is now."""
        if self._have.get(channel) is ear:
            del self._have[channel]
            self._missed.add(channel)
            self._client.doubt()
            self._loop.call_later(AGAIN_S, self._again, ear, (channel,))

    def lost(self, ear: Ear) -> None:
        for channel in [channel for channel, its in self._have.items() if its is ear]:
            del self._have[channel]
            self._missed.add(channel)
        if not self._closed:
            self._guard(self._on_lost)

    def moved(self, ear: Ear, slot: int, where: str, channels: tuple[bytes, ...]) -> None:
        """Follow a MOVED: the channels that were requested are at another server."""
        found = self._client.cluster.named(where, ear.address)
        if found is not None:
            self._routing.moved(slot, found)
        if channels:
            self._loop.call_later(REFUSED_S, self._again, ear, channels)

    def _again(self, ear: Ear, channels: Iterable[bytes]) -> None:
        """Request channels again at this ear if they are still to be there."""
        ear.again([name for name in channels if name not in self._have and self._placed.get(slot_of(name)) is ear])

    def _report(self) -> None:
        restored, self._restored = self._restored, []
        names = [name if self._also is None else renamed(name, self._bus) for name in restored]
        self._guard(partial(self._on_channels_restored, list(dict.fromkeys(names))))

    # -- places

    def _place_soon(self) -> None:
        if not self._placing and not self._closed:
            self._placing = True
            self._loop.call_soon(self._place_all)

    def _place_all(self) -> None:
        """Move the channels of all slots whose owner has changed, and close the ears of servers that are gone."""
        self._placing = False
        if self._closed:
            return
        for slot in list(self._wanted):
            self._place(slot)
        for line, ear in list(self._ears.items()):
            ear.keep_echo()
            if self._routing.lines.get(line.address) is not line:
                del self._ears[line]
                self._past = msgspec.structs.replace(_NONE, **_counts([self._past, ear.statistics()]))
                self._client.later(ear.close())

    def _place(self, slot: int) -> Ear | None:
        """The ear of the slot's owner, after the slot's channels were moved to it."""
        owner, before = self._routing.owner(slot), self._placed.get(slot)
        if owner is None or (before is not None and before.line is owner):
            return before
        ear = self._placed[slot] = self._ear(owner)
        channels = self._wanted[slot]
        for channel in channels:
            if self._have.pop(channel, None) is not None:
                self._missed.add(channel)
        if before is not None:
            before.unsubscribe(channels)
        ear.subscribe(channels)
        return ear

    def _ear(self, line: Line) -> Ear:
        ear = self._ears.get(line)
        if ear is None:
            server = self._client.server(line)
            ear = self._ears[line] = Ear(self, line, server, self._on_messages)
            ear.start()
        return ear

    def _echo_at(self, line: Line, name: str) -> str:
        """A channel in a slot of this server."""
        tags = (tag for family in "cu" for tag in keys.tags(family) if self.is_at(line, tag))
        return self._client.channels.echo_at(next(tags, "{c0}"), name)

    def _named(self, channels: Iterable[bytes | str]) -> set[bytes]:
        """All names of these channels on which this deployment publishes."""
        names = {channel.encode() if isinstance(channel, str) else channel for channel in channels}
        return names if self._also is None else names | {renamed(name, self._also) for name in names}

    def _guard(self, callback: Callable[[], None]) -> None:
        """Call a callback and catch its exceptions, so that the other callbacks are called, too."""
        try:
            callback()
        except Exception as error:
            self.callback_errors += 1
            if self.callback_errors == 1:
                log.error("a bus callback raised; further ones are only counted", exc_info=error)


_COUNTS: Final = ("messages", "batches", "read_bytes", "reconnects", "deaf", "mute", "taken_away", "callback_errors")
_NONE: Final = BusStatistics(
    up=False, restored=False, channels=0, requests_in_flight=0, **dict.fromkeys(_COUNTS, 0)
)  # fmt: skip


def _counts(parts: Iterable[BusStatistics]) -> dict[str, int]:
    """The sums of the counts of several ears."""
    all_parts = list(parts)
    return {count: sum(getattr(part, count) for part in all_parts) for count in _COUNTS}


def _nothing() -> None:
    """Do nothing: restored channels are reported one by one."""


def _ignore(channels: list[bytes]) -> None:
    """Do nothing, for the same reason."""

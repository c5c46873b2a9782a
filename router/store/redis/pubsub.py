"""Sharded pub/sub: one connection whose subscriptions are restored after every loss.

It sends SSUBSCRIBE and SUNSUBSCRIBE, awaits their confirmations, passes on messages in batches, and proves with echoes
that messages arrive. Callers count their references to channels and decode messages.

Invariants
- `on_messages` receives the messages of one read, in order and at most `BATCH` at a time, before later replies of the
  server take effect (`ready`, `on_lost`): a caller whose `ready` is called has all messages that came before.
- `ready(True)` is called after the server has confirmed every channel of the call, `ready(False)` if the connection was
  down or was lost before that. In both cases the channels stay wanted, and the restore subscribes to them.
- `on_lost` and `on_restored` alternate; between them messages may be missed. `on_restored` is called when all wanted
  channels are confirmed again. A channel that the server unsubscribes by itself (its slot moved) is subscribed again
  and reported by `on_channels_restored`.
- Requests are sent once per tick; each channel is in the request for its last wanted state, and a request for the
  present state is harmless. Confirmations arrive in the order of requests, so a waiter is attached to the last request
  in flight and not to channels.
- A deaf connection (up, but without messages: a cut-off server, a lost subscription) is dropped: the command connection
  publishes to `echo` every second, and the bus is deaf if `DEAF_ECHOES` in a row do not arrive. Only echoes that Redis
  has confirmed count, and no time does, so neither a stalled loop nor a stalled Redis makes the bus deaf. If the next
  connection is deaf too, commands and subscriptions may be on two servers (an address that moved): then all connections
  are dialed again.
- A mute connection (echoes arrive, confirmations do not) is dropped: if the oldest request makes no progress while
  `MUTE_ECHOES` echoes arrive.
- Callers use one name of a channel. While a deployment is moved (`keys.Channels.also`), the bus subscribes to both
  names and passes on messages of both under the caller's name.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from itertools import islice
from typing import Final

import hiredis
import msgspec

from router.contract.errors import LinnetError, StartupError
from router.contract.keys import renamed
from router.store.redis.client import Client
from router.store.redis.connection import NOTHING, Link, pack

Messages = list[tuple[bytes, bytes]]
Ready = Callable[[bool], None]

BATCH: Final = 1000  # messages between two turns of the loop
CHUNK: Final = 500  # channels in one request
MAX_REQUESTS: Final = 10_000  # unconfirmed; with more the connection is dropped, and the restore subscribes again
ECHO_S: Final = 1.0
PROBE_S: Final = 0.5
DEAF_ECHOES: Final = 3
MUTE_ECHOES: Final = 5

log = logging.getLogger("linnet.redis")


class BusStatistics(msgspec.Struct, frozen=True):
    up: bool
    restored: bool
    channels: int
    requests_in_flight: int
    messages: int
    batches: int
    read_bytes: int
    reconnects: int
    deaf: int
    mute: int
    taken_away: int
    callback_errors: int


class Request:
    """One SSUBSCRIBE or SUNSUBSCRIBE, which the server confirms channel by channel."""

    __slots__ = ("channels", "confirmed", "verb", "waiters")

    def __init__(self, verb: bytes, channels: tuple[bytes, ...]) -> None:
        self.verb = verb  # in the spelling of confirmations
        self.channels = channels
        self.confirmed = 0
        self.waiters: list[Ready] = []


class Bus(Link):
    """The pub/sub connection of a gateway; `echo` is the gateway's own channel."""

    NAME = "bus"

    def __init__(
        self,
        client: Client,
        echo: str | bytes,
        on_messages: Callable[[Messages], None],
        on_lost: Callable[[], None],
        on_restored: Callable[[], None],
        on_channels_restored: Callable[[list[bytes]], None],
    ) -> None:
        super().__init__(client.topology)
        client.links.append(self)
        self._client = client
        self._echo = _bytes(echo)
        # Prefixes of channel names: the callers' one and, while a deployment is moved, that of the other format.
        self._bus, also = client.channels.bus.encode(), client.channels.also
        self._also = None if also is None else also.encode()
        self._on_messages = on_messages
        self._on_lost = on_lost
        self._on_restored = on_restored
        self._on_channels_restored = on_channels_restored
        self._loop = asyncio.get_running_loop()
        self._wanted: set[bytes] = {self._echo}
        self._adding: set[bytes] = set()  # to subscribe in this tick
        self._leaving: set[bytes] = set()  # to unsubscribe in this tick
        self._waiting: list[Ready] = []  # callbacks of this tick's requests
        self._requests: deque[Request] = deque()
        self._flushing = self._paused = False
        self._was_lost = False
        self._denied = ""  # the server's text if its ACL refused a subscription
        self._published = self._received = 0  # the number of the last echo that was published and received
        self._missing = 0  # echoes that Redis has confirmed since the last one received
        self._deaf_dials = 0  # connections in a row that were dropped as deaf
        self._awaited: tuple[Request, int] | None = None  # the oldest request and its progress, at the last echo
        self._mute = 0  # echoes received without progress of that request
        self._timer: asyncio.TimerHandle | None = None
        self.restored = False
        self.messages = self.batches = self.deaf = self.mute = self.taken_away = self.callback_errors = 0

    # -- calls

    async def probe(self, channels: Iterable[str]) -> None:
        """Wait until the server has confirmed a subscription to these; `StartupError` if its ACL refuses that."""
        probed = tuple(channels)
        while True:
            confirmed: asyncio.Future[bool] = self._loop.create_future()
            self.subscribe(probed, partial(_settle, confirmed))
            if await confirmed:
                self.unsubscribe(probed)
                return
            if self._denied:
                raise StartupError(
                    f"Redis at {self.address} refuses subscriptions ({self._denied}): give its user the rights in"
                    " deploy/README.md"
                )
            await asyncio.sleep(PROBE_S)

    def subscribe(self, channels: Iterable[bytes | str], ready: Ready | None = None) -> None:
        """Subscribe to these channels and keep them subscribed; a channel that is wanted already costs nothing."""
        new = self._named(channels) - self._wanted
        self._wanted |= new
        if not self.up:
            if ready is not None:
                self._loop.call_soon(self._guard, partial(ready, False))
            return
        self._adding |= new
        self._leaving -= new
        if ready is not None:
            self._waiting.append(ready)
        self._flush_soon()

    def unsubscribe(self, channels: Iterable[bytes | str]) -> None:
        gone = self._named(channels) & self._wanted
        gone.discard(self._echo)
        self._wanted -= gone
        if self.up:
            self._leaving |= gone
            self._adding -= gone
            self._flush_soon()

    def reaches(self, channel: bytes | str) -> bool:
        """Whether the server of this channel can be reached now."""
        return self.up

    def _named(self, channels: Iterable[bytes | str]) -> set[bytes]:
        """All names of these channels on which this deployment publishes."""
        names = {_bytes(channel) for channel in channels}
        return names if self._also is None else names | {renamed(name, self._also) for name in names}

    def statistics(self) -> BusStatistics:
        return BusStatistics(
            up=self.up,
            restored=self.restored,
            channels=len(self._wanted),
            requests_in_flight=len(self._requests),
            messages=self.messages,
            batches=self.batches,
            read_bytes=self.read_bytes,
            reconnects=self.reconnects,
            deaf=self.deaf,
            mute=self.mute,
            taken_away=self.taken_away,
            callback_errors=self.callback_errors,
        )

    # -- requests

    def _flush_soon(self) -> None:
        if not self._flushing:
            self._flushing = True
            self._loop.call_soon(self._flush)

    def _flush(self) -> None:
        """Send this tick's requests; its callbacks wait for the last request that is in flight then."""
        self._flushing = False
        if not self.up or self._transport is None or self._transport.is_closing():
            return
        adding, self._adding = self._adding, set()
        leaving, self._leaving = self._leaving, set()
        requests = [*self._chunks(b"sunsubscribe", leaving), *self._chunks(b"ssubscribe", adding)]
        if requests:
            self._requests += requests
            if len(self._requests) > MAX_REQUESTS:
                self.drop("it does not confirm subscriptions")
                return
            self._transport.write(b"".join(pack((request.verb, *request.channels)) for request in requests))
        waiting, self._waiting = self._waiting, []
        if self._requests:
            self._requests[-1].waiters += waiting
        else:
            self._answer(waiting, True)

    def _chunks(self, verb: bytes, channels: Iterable[bytes]) -> list[Request]:
        """Divide channels into requests."""
        return chunks(verb, channels)

    def _confirmed(self, verb: bytes, channel: bytes) -> None:
        """Process a confirmation, or an unsubscription by the server itself."""
        request = self._requests[0] if self._requests else None
        if request is None or verb != request.verb or channel != request.channels[request.confirmed]:
            if verb == b"sunsubscribe":
                self._taken_away(channel)
                return
            raise hiredis.ProtocolError("a confirmation without a request")
        request.confirmed += 1
        if request.confirmed == len(request.channels):
            self._requests.popleft()
            self._answer(request.waiters, True)

    def _taken_away(self, channel: bytes) -> None:
        if channel in self._wanted:
            self.taken_away += 1
            self._adding.add(channel)
            self._waiting.append(partial(self._channel_restored, channel))
            self._flush_soon()

    def _channel_restored(self, channel: bytes, good: bool) -> None:
        if good:  # else the restore of all channels includes it
            self._on_channels_restored([channel if self._also is None else renamed(channel, self._bus)])

    def _answer(self, waiters: Sequence[Ready], good: bool) -> None:
        for ready in waiters:
            self._guard(partial(ready, good))

    def _guard(self, callback: Callable[[], None]) -> None:
        """Call a callback and catch its exceptions, so that the other callbacks are called, too."""
        try:
            callback()
        except Exception as error:  # noqa: BLE001 - after any error the other callbacks are called
            self._callback_failed(error)

    def _callback_failed(self, error: Exception) -> None:
        self.callback_errors += 1
        if self.callback_errors == 1:
            log.error("a bus callback raised; further ones are only counted", exc_info=error)

    # -- in

    def received(self) -> None:
        """Pass on messages, one batch per turn of the loop; reading is paused while there are more."""
        if self._paused or not self._take_batch():
            return
        self._paused = True
        if self._transport is not None:
            self._transport.pause_reading()
        self._loop.call_soon(self._take_more)

    def _take_more(self) -> None:
        self._paused = False
        if not self.up or self._transport is None or self._transport.is_closing():
            return
        self._transport.resume_reading()
        try:
            self.received()
        except hiredis.ProtocolError as error:
            self.drop(str(error))

    def _take_batch(self) -> bool:
        """Pass on at most a batch of messages; return whether there may be more."""
        gets, echo = self._reader.gets, self._echo
        batch: Messages = []
        append = batch.append
        while len(batch) < BATCH:
            reply = gets()
            if reply is NOTHING:
                self._deliver(batch)
                return False
            try:
                verb, channel, payload = reply
            except (TypeError, ValueError):  # an error reply, or no reply of pub/sub
                self._deliver(batch)
                batch = []
                append = batch.append
                self._refused(str(reply))
                continue
            if verb != b"smessage":
                self._deliver(batch)
                batch = []
                append = batch.append
                self._confirmed(verb, channel)
            elif channel == echo:
                self._echo_received(payload)
            else:
                append((channel, payload))
        self._deliver(batch)
        return True

    def _refused(self, text: str) -> None:
        """Process an error reply: it ends this connection."""
        if text.startswith("NOPERM"):
            self._denied = text[:200]
        raise hiredis.ProtocolError(f"refused: {text:.200}")

    def _deliver(self, batch: Messages) -> None:
        if batch:
            self.messages += len(batch)
            self.batches += 1
            if self._also is not None:
                batch = [(renamed(channel, self._bus), payload) for channel, payload in batch]
            try:
                self._on_messages(batch)
            except Exception as error:  # noqa: BLE001 - a bug in the caller must not end the connection
                self._callback_failed(error)

    # -- echoes

    def _tick(self) -> None:
        if self._missing >= DEAF_ECHOES:
            self.deaf += 1
            self._deaf_dials += 1
            self.drop("it is up but receives no messages")
            if self._deaf_dials > 1:
                self._deaf_dials = 0
                for link in self._client.links:
                    link.drop("subscriptions do not receive published messages: they may be on another server")
            return
        if self._client.available:
            self._published += 1
            number = self._published
            self._client.command("SPUBLISH", self._echo, number, reply=partial(self._echo_published, number))
        self._timer = self._loop.call_later(ECHO_S, self._tick)

    def _echo_published(self, number: int, reply: object) -> None:
        if number > self._received and not isinstance(reply, LinnetError):
            self._missing += 1

    def _echo_received(self, payload: bytes) -> None:
        try:
            self._received = int(payload)
        except ValueError:  # not published by this bus
            return
        self._missing = self._deaf_dials = 0
        oldest = self._requests[0] if self._requests else None
        awaited = None if oldest is None else (oldest, oldest.confirmed)
        self._mute = self._mute + 1 if awaited is not None and awaited == self._awaited else 0
        self._awaited = awaited
        if self._mute >= MUTE_ECHOES:
            self._mute = 0
            self.mute += 1
            self.drop("it does not confirm what we ask for")

    # -- up and down

    def opened(self) -> None:
        self._received, self._missing = self._published, 0
        self._awaited, self._mute = None, 0
        self._adding = set(self._wanted)
        self._waiting.append(self._all_confirmed)
        self._flush()
        self._tick()

    def _all_confirmed(self, good: bool) -> None:
        if good:
            self.restored = True
            if self._was_lost:
                self._was_lost = False
                self._on_restored()

    def closed(self, why: str) -> None:
        if self._timer is not None:
            self._timer.cancel()
        waiting = [ready for request in self._requests for ready in request.waiters] + self._waiting
        self._requests, self._waiting = deque(), []
        self._adding, self._leaving = set(), set()
        self._paused = False
        self.restored = False
        if not self._was_lost and not self._finished:
            self._was_lost = True
            self._guard(self._on_lost)
        self._answer(waiting, False)


def _bytes(channel: bytes | str) -> bytes:
    return channel.encode() if isinstance(channel, str) else channel


def chunks(verb: bytes, channels: Iterable[bytes]) -> list[Request]:
    """Requests of at most CHUNK channels."""
    rest = iter(channels)
    return [Request(verb, chunk) for chunk in iter(lambda: tuple(islice(rest, CHUNK)), ())]


def _settle(future: asyncio.Future[bool], confirmed: bool) -> None:
    if not future.done():  # else the caller was cancelled
        future.set_result(confirmed)

"""Finishes what gateways began: whatever `append` wrote reaches every user's slot, though the gateway died after it.

Each conversation that moved stands in its partition's `dirty` set. A claim is worked from `routed` to the head it
read, page by page:

direct           the last event (and each user's own last) is delivered again to both users
group, channel   `member` events: join and leave again; titles and messages need nothing, their heads stand with them
new, or trimmed  what no page can say (founders; changes older than the log): every present member joins again
removed          every member leaves, then what is left of it goes
messages         push deadlines for who did not write them: the other party, groups of at most PUSH_MEMBERS, mentions

then `done` says how far that was, which also trims the log.

Invariants
- Every action may run twice, late, or beside another router's: deliver and push only raise, join and leave carry the
  seq of the change they stand for and lose to a later one.
- `done` is said after the actions, never before: who dies between them leaves a claim that runs out.
- What a member listing says holds as of a head read before it, so its joins bear that head's seq.
- `plan` decides and does nothing; `apply` does and decides nothing.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable, Sequence
from contextlib import suppress
from time import monotonic
from typing import Final, TypeAlias

from msgspec import Struct

from router.contract import keys, metrics, stamp
from router.contract.errors import NotFound
from router.contract.settings import Settings
from router.jobs.rounds import Rounds, every
from router.store.answers import reply_of
from router.store.conversations import Conversations
from router.store.dirty import Dirty
from router.store.pushes import Pushes
from router.store.users import Users

LEASE_MS: Final = 10_000
LIMIT: Final = 8
EVERY_S: Final = 0.5
MEASURE_S: Final = 5.0
PAGE: Final = 200
WRITES: Final = 512
PUSH_MEMBERS: Final = 256
MAX_MENTIONS: Final = 256
GRACE_S: Final = 10.0


class Deliver(Struct, frozen=True):
    user: str
    other: str
    seq: int
    count: int
    event: bytes
    marks: bool
    target: int


class Join(Struct, frozen=True):
    user: str
    changed: int
    read: int
    read_count: int


class Leave(Struct, frozen=True):
    user: str
    changed: int


class Arm(Struct, frozen=True):
    user: str
    seq: int
    due_ms: int


Action: TypeAlias = Deliver | Join | Leave | Arm


Audience: TypeAlias = frozenset[str]
NOBODY: Final[Audience] = frozenset()


def plan(conv: str, events: Sequence[bytes], audiences: Sequence[Audience], push_after_ms: int) -> list[Action]:
    """What a page of events asks for. `audiences`: for each event, who is to get a push if she does not get it."""
    own = deliveries(conv, events) if conv[0] == keys.DIRECT else memberships(events)
    return [*own, *pushes(events, audiences, push_after_ms)]


def deliveries(conv: str, events: Sequence[bytes]) -> list[Action]:
    """The last event for both, before it each one's own last message, which marks as read, and deletions."""
    parties = keys.parties(conv)
    authors = [stamp.author(event) for event in events]
    last = len(events) - 1
    actions: list[Action] = []
    for user in sorted(set(parties)):
        own = max((i for i, author in enumerate(authors) if author.from_ == user and author.marks), default=last)
        deletions = (i for i, author in enumerate(authors) if author.deletes)
        for i in sorted({own, last, *deletions} if events else ()):
            marks = authors[i].from_ == user and authors[i].marks
            seq, _, count, _ = stamp.slots(events[i])
            other = keys.other_party(conv, user)
            actions.append(Deliver(user, other, seq, count, events[i], marks, authors[i].deletes))
    return actions


def memberships(events: Iterable[bytes]) -> list[Action]:
    """The last change of each user that these events tell of."""
    changes: dict[str, Action] = {}
    for event in filter(stamp.is_member, events):
        about = stamp.author(event)
        seq, _, count, _ = stamp.slots(event)
        if about.action == "add":
            changes[about.user] = Join(about.user, seq, seq, count)
        elif about.action == "remove":
            changes[about.user] = Leave(about.user, seq)
    return list(changes.values())


def pushes(events: Sequence[bytes], audiences: Sequence[Audience], push_after_ms: int) -> list[Action]:
    """One deadline per user: due for the first event of another that concerns her, up to the last one."""
    first = _earliest(zip(events, audiences, strict=True))
    last = _earliest(zip(reversed(events), reversed(audiences), strict=True))
    return [
        Arm(user, stamp.slots(last[user])[0], stamp.slots(event)[3] + push_after_ms) for user, event in first.items()
    ]


def _earliest(pairs: Iterable[tuple[bytes, Audience]]) -> dict[str, bytes]:
    """For each user the first of these events that concerns her and is not her own."""
    found: dict[str, bytes] = {}
    for event, audience in pairs:
        for user in audience - found.keys():
            if user != stamp.author(event).from_:
                found[user] = event
    return found


def mentions(event: bytes) -> list[str]:
    """The users a message names in its body's `mentions`; whatever else stands there names nobody."""
    body = stamp.decode(event).get("body")
    named = body.get("mentions") if isinstance(body, dict) else None
    if not isinstance(named, list):
        return []
    return [name for name in named[:MAX_MENTIONS] if isinstance(name, str)]


def push_after_ms(settings: Settings) -> int:
    """How long a device has to get a message before it counts as missed."""
    return round((settings.heartbeat_s + GRACE_S) * 1000)


class Finisher:
    """Claims, plans, applies; `round` once through all partitions, `run` until told to stop."""

    def __init__(
        self, settings: Settings, conversations: Conversations, users: Users, pushes: Pushes, dirty: Dirty
    ) -> None:
        self._conversations = conversations
        self._users = users
        self._dirty = dirty
        self._pushes = pushes
        self._push = bool(settings.webhook_url)
        self._push_after_ms = push_after_ms(settings)
        self._retention = settings.retention_events, round(settings.retention_days * 86_400_000)
        self._writes = asyncio.Semaphore(WRITES)
        self._rounds = Rounds(
            "finisher", dirty.claims, self.finish, metrics.FINISHED.labels("failed"), limit=LIMIT, lease_ms=LEASE_MS
        )
        self.round = self._rounds.round

    async def run(self, stop: asyncio.Event) -> None:
        await asyncio.gather(self._rounds.run(stop, EVERY_S), every(stop, MEASURE_S, self.measure))

    async def measure(self) -> None:
        """How much is due in all partitions; every router says the same."""
        backlog = await self._dirty.backlog(range(keys.PARTITIONS))
        metrics.DIRTY.set(backlog.count)
        metrics.DIRTY_AGE_SECONDS.set(backlog.overdue_ms / 1000)
        metrics.TRIMMING_HELD.set(backlog.held)

    async def finish(self, conv: str) -> None:
        """Work a claimed conversation from `routed` towards its head, for as long as the claim safely is ours."""
        try:
            result = await self._finish(conv)
        except NotFound:
            result = await self._remove(conv)
        metrics.FINISHED.labels(result).inc()

    async def _finish(self, conv: str) -> str:
        until = monotonic() + LEASE_MS / 2000
        (head,) = await reply_of(self._conversations.heads, [conv])
        if head is None:
            raise NotFound
        position = head.routed
        unsaid = position == 0  # whether there are members of whom no page tells
        while position < head.seq and monotonic() < until:
            page = await reply_of(self._conversations.range, conv, None, position, head.seq, PAGE)
            unsaid = unsaid or position < page.floor
            audiences = await self._audiences(conv, page.events) if self._push else [NOBODY] * len(page.events)
            await self._apply(conv, head.title, plan(conv, page.events, audiences, self._push_after_ms))
            position = page.position
        if unsaid and conv[0] != keys.DIRECT:
            async for users in self._members(conv):
                await self._apply(conv, head.title, [Join(user, head.seq, 0, 0) for user in users])
        done = await self._dirty.done(conv, position, *self._retention)
        metrics.TRIMMED_EVENTS.inc(done.trimmed)
        return "finished" if done.routed == done.head else "partly"

    async def _remove(self, conv: str) -> str:
        """Everybody leaves a removed conversation, then it is forgotten. One that Redis lost is only unmarked."""
        if not (changed := await self._conversations.gone(conv)):
            with suppress(NotFound):
                await self._dirty.done(conv, 0, *self._retention)
            return "lost"
        async for users in self._members(conv):
            await self._apply(conv, "", [Leave(user, changed) for user in users])
        await self._dirty.forget(conv)
        return "removed"

    async def _members(self, conv: str) -> AsyncIterator[list[str]]:
        """Pages of the present members."""
        cursor = 0
        while True:
            members = await self._conversations.members(conv, None, cursor)
            yield list(members.roles)
            cursor = members.cursor
            if not cursor:
                return

    async def _audiences(self, conv: str, events: Sequence[bytes]) -> list[Audience]:
        """For each event, who is to get a push if she does not get it."""
        everybody = await self._everybody(conv) if any(map(stamp.is_message, events)) else NOBODY
        if everybody is not None:
            return [everybody if stamp.is_message(event) else NOBODY for event in events]
        named = [mentions(event) if stamp.is_message(event) else [] for event in events]
        asked = sorted({user for users in named for user in users})
        roles = await reply_of(self._conversations.roles, conv, asked) if asked else []
        present = frozenset(user for user, role in zip(asked, roles, strict=True) if role)
        return [present.intersection(users) for users in named]

    async def _everybody(self, conv: str) -> Audience | None:
        """All members, where all get pushes; None where only mentions do."""
        if conv[0] == keys.DIRECT:
            return frozenset(keys.parties(conv))
        if conv[0] == keys.CHANNEL or (await self._conversations.describe(conv, None)).size > PUSH_MEMBERS:
            return None
        return frozenset([user async for users in self._members(conv) for user in users])

    async def _apply(self, conv: str, title: str, actions: Iterable[Action]) -> None:
        await asyncio.gather(*(self._write(conv, title, action) for action in actions))

    async def _write(self, conv: str, title: str, action: Action) -> None:
        """One action; counted if it changed something, that is, if nobody had done it before."""
        async with self._writes:
            match action:
                case Deliver(user, other, seq, count, event, marks, target):
                    changed = await reply_of(self._users.deliver, user, conv, other, seq, count, event, marks, target)
                case Join(user, at, read, read_count):
                    changed = await self._users.join(user, conv, title, at, read, read_count)
                case Leave(user, at):
                    changed = await self._users.leave(user, conv, at)
                case Arm(user, seq, due_ms):
                    changed = await self._pushes.arm(user, conv, seq, due_ms)
        if changed:
            _WRITES[type(action)].inc()


_WRITES: Final = {
    kind: metrics.SLOT_WRITES.labels(name)
    for kind, name in ((Deliver, "deliver"), (Join, "join"), (Leave, "leave"), (Arm, "arm"))
}

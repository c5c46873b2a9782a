"""Finishes conversations: every appended event reaches all users' slots, also if the gateway died after the append.

Each conversation with a new event is in its partition's `dirty` set. A claimed one is processed from `routed` to the
head, page by page:

direct           the last event (and each user's own last) is delivered again to both users
group, channel   joins, roles and leaves of `member` events are repeated; titles and messages need no work
new, or trimmed  every present member joins again, because no page contains founders and changes older than the log
removed          every member leaves, its files are released, then its remaining keys are deleted
user             what follows from a changed profile is settled (`@<user>`), former avatars are looked at
deleted          files that the last message has left are looked at (jobs/sweeper.py)
moderated        acts that were noted in the conversation are moved to the audit
pair             the copies of a pair's record in both users' slots are written again (`=<conversation>`)
messages         push deadlines for all but the author: the other user, groups of at most PUSH_MEMBERS, mentions

Then `mark_routed` records the progress, and trims the log.

Invariants
- Every action may run twice, late, or beside another router's: deliver and push only raise values; join and leave have
  the seq of their change, and a later change wins.
- `mark_routed` is called after the actions: if a router dies before it, its claim runs out and another router repeats
  them.
- A member listing is valid as of a head that was read before it, so its joins have that head's seq.
- `plan` decides and has no effects; `_apply` has effects and decides nothing.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable, Sequence
from contextlib import suppress
from time import monotonic
from typing import Final, TypeAlias

from msgspec import Struct

from router.contract import keys, metrics, stamp
from router.contract.errors import NotFound, Unavailable
from router.contract.settings import Settings
from router.jobs.freeing import free, free_all, free_avatars
from router.jobs.rounds import Rounds, every
from router.store import pairs, profiles
from router.store.answers import reply_of
from router.store.audit import Audit
from router.store.contacts import Contacts
from router.store.conversations import ROLES, Conversations
from router.store.dirty import Dirty
from router.store.files import Files
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
    role: str


class Leave(Struct, frozen=True):
    user: str
    changed: int


class SchedulePush(Struct, frozen=True):
    user: str
    seq: int
    due_ms: int  # by the clock of the conversation's server, as the times of its events


Action: TypeAlias = Deliver | Join | Leave | SchedulePush


Audience: TypeAlias = frozenset[str]
NO_USERS: Final[Audience] = frozenset()


def plan(conv: str, events: Sequence[bytes], audiences: Sequence[Audience], push_after_ms: int) -> list[Action]:
    """The actions for a page of events. `audiences`: for each event, the users who get a push if they miss it."""
    own = deliveries(conv, events) if conv[0] == keys.DIRECT else memberships(events)
    return [*own, *pushes(events, audiences, push_after_ms)]


def deliveries(conv: str, events: Sequence[bytes]) -> list[Action]:
    """The last event for both users, and before it each user's own last message, which marks as read, and deletions."""
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
    """The last change of each user in these events. A user who was added has read what was before, whatever follows."""
    changes: dict[str, Action] = {}
    for event in filter(stamp.is_member, events):
        about = stamp.author(event)
        seq, _, count, _ = stamp.slots(event)
        role = ROLES.get(about.role or "", "m")
        if about.action == "add":
            changes[about.user] = Join(about.user, seq, seq, count, role)
        elif about.action == "role":
            before = changes.get(about.user)
            read = (before.read, before.read_count) if isinstance(before, Join) else (0, 0)
            changes[about.user] = Join(about.user, seq, *read, role)
        elif about.action == "remove":
            changes[about.user] = Leave(about.user, seq)
    return list(changes.values())


def pushes(events: Sequence[bytes], audiences: Sequence[Audience], push_after_ms: int) -> list[Action]:
    """One deadline per user: due for the first event of others that concerns the user, up to the last one."""
    first = _earliest(zip(events, audiences, strict=True))
    last = _earliest(zip(reversed(events), reversed(audiences), strict=True))
    return [
        SchedulePush(user, stamp.slots(last[user])[0], stamp.slots(event)[3] + push_after_ms)
        for user, event in first.items()
    ]


def _earliest(pairs: Iterable[tuple[bytes, Audience]]) -> dict[str, bytes]:
    """For each user the first of these events that concerns the user and is not their own."""
    found: dict[str, bytes] = {}
    for event, audience in pairs:
        for user in audience - found.keys():
            if user != stamp.author(event).from_:
                found[user] = event
    return found


def mentions(event: bytes) -> list[str]:
    """The users whom a message names in its body's `mentions`; elements of another type are ignored."""
    body = stamp.decode(event).get("body")
    named = body.get("mentions") if isinstance(body, dict) else None
    if not isinstance(named, list):
        return []
    return [name for name in named[:MAX_MENTIONS] if isinstance(name, str)]


def push_after_ms(settings: Settings) -> int:
    """The time in which a device must receive a message before it counts as missed."""
    return round((settings.heartbeat_s + GRACE_S) * 1000)


class Finisher:
    """Claims conversations and finishes them; `round`: all partitions once, `run`: until the process stops."""

    def __init__(
        self,
        settings: Settings,
        conversations: Conversations,
        users: Users,
        pushes: Pushes,
        dirty: Dirty,
        contacts: Contacts,
        files: Files,
        audit: Audit,
    ) -> None:
        self._audit = audit
        self._files = files
        self._conversations = conversations
        self._contacts = contacts
        self._users = users
        self._dirty = dirty
        self._pushes = pushes
        self._push = bool(settings.webhook_url)
        self._push_after_ms = push_after_ms(settings)
        self._retention = settings.retention_events, round(settings.retention_days * 86_400_000)
        self._writes = asyncio.Semaphore(WRITES)
        self._rounds = Rounds(
            "finisher",
            dirty.claims,
            self.finish,
            metrics.FINISHED.labels("failed"),
            limit=LIMIT,
            lease_ms=LEASE_MS,
            due=dirty.due,
        )
        self.round = self._rounds.round

    async def run(self, stop: asyncio.Event) -> None:
        await asyncio.gather(
            self._rounds.run(stop, EVERY_S),
            every(stop, MEASURE_S, self.measure),
            every(stop, EVERY_S, self.hold_tenures),
        )

    async def hold_tenures(self) -> None:
        """Begin the tenures of servers in users' partitions, unless claims of pushes do that."""
        if not self._push:
            await self._pushes.hold_tenures(range(keys.PARTITIONS))

    async def measure(self) -> None:
        """Measure the due conversations of all partitions; every router reports the same figures."""
        backlog = await self._dirty.backlog(range(keys.PARTITIONS))
        metrics.DIRTY.set(backlog.count)
        metrics.DIRTY_AGE_SECONDS.set(backlog.overdue_ms / 1000)
        metrics.TRIMMING_HELD.set(backlog.held)

    async def finish(self, conv: str) -> None:
        """Process a claimed conversation from `routed` towards its head, for a safe part of the claim's lease."""
        try:
            match conv[0]:
                case pairs.MARK:
                    result = await self._repeat(conv[1:])
                case profiles.MARK:
                    result = await self._settle(conv[1:])
                case _:
                    result = await self._finish(conv)
        except NotFound:
            result = await self._remove(conv)
        metrics.FINISHED.labels(result).inc()

    async def _repeat(self, conv: str) -> str:
        await self._contacts.repeat(conv)
        return "copied"

    async def _settle(self, user: str) -> str:
        await free_avatars(self._files, user)
        await self._contacts.settle(user)
        return "settled"

    async def _finish(self, conv: str) -> str:
        until = monotonic() + LEASE_MS / 2000
        head = await self._conversations.head(conv)
        if head is None:
            raise NotFound
        later: Unavailable | None = None
        try:
            if head.acts:
                await self._audit.move(conv)
            if head.freed:
                await free(self._files, conv, head.freed)
        except Unavailable as error:  # a server is away or full: `done` keeps the mark, and the events need not wait
            later = error
        position = head.routed
        unlogged = position == 0  # whether there may be members whose `member` event is in no page
        while position < head.seq and monotonic() < until:
            page = await reply_of(self._conversations.range, conv, None, position, head.seq, PAGE)
            unlogged = unlogged or position < page.floor
            audiences = [NO_USERS] * len(page.events)
            if self._push:
                audiences = await self._without_blocks(conv, page.events, await self._audiences(conv, page.events))
            await self._apply(conv, head.title, plan(conv, page.events, audiences, self._push_after_ms))
            position = page.position
        if unlogged and conv[0] != keys.DIRECT:
            async for members in self._members(conv):
                joins = [Join(user, head.seq, 0, 0, role) for user, role in members.items()]
                await self._apply(conv, head.title, joins)
        done = await self._dirty.mark_routed(conv, position, *self._retention)
        metrics.TRIMMED_EVENTS.inc(done.trimmed)
        if later is not None:
            raise later
        return "finished" if done.routed == done.head else "partly"

    async def _remove(self, conv: str) -> str:
        """Remove a deleted conversation from all members, then delete its keys; only unmark one that Redis lost."""
        if not (changed := await self._conversations.gone(conv)):
            with suppress(NotFound):
                await self._dirty.mark_routed(conv, 0, *self._retention)
            return "lost"
        async for users in self._members(conv):
            await self._apply(conv, "", [Leave(user, changed) for user in users])
        await self._audit.move(conv)
        await free_all(self._files, conv)
        await self._dirty.forget_conversation(conv)
        return "removed"

    async def _members(self, conv: str) -> AsyncIterator[dict[str, str]]:
        """Pages of the present members, with their role chars."""
        cursor = 0
        while True:
            members = await self._conversations.members.page(conv, None, cursor)
            yield members.roles
            cursor = members.cursor
            if not cursor:
                return

    async def _audiences(self, conv: str, events: Sequence[bytes]) -> list[Audience]:
        """For each event, the users who get a push if they miss it."""
        members = await self._small_audience(conv) if any(map(stamp.is_message, events)) else NO_USERS
        if members is not None:
            return [members if stamp.is_message(event) else NO_USERS for event in events]
        named = [mentions(event) if stamp.is_message(event) else [] for event in events]
        candidates = sorted({user for users in named for user in users})
        roles = await reply_of(self._conversations.roles, conv, candidates) if candidates else []
        present = frozenset(user for user, role in zip(candidates, roles, strict=True) if role)
        return [present.intersection(users) for users in named]

    async def _without_blocks(self, conv: str, events: Sequence[bytes], audiences: list[Audience]) -> list[Audience]:
        """The audiences without users who block the author of a group's message, or are blocked by them."""
        if conv[0] == keys.DIRECT:
            return audiences
        authors = [
            stamp.author(event).from_ if audience else "" for event, audience in zip(events, audiences, strict=True)
        ]
        hidden = await self._contacts.hidden_from(sorted(set(authors) - {""}), frozenset[str]().union(*audiences))
        return [audience - hidden.get(author, NO_USERS) for author, audience in zip(authors, audiences, strict=True)]

    async def _small_audience(self, conv: str) -> Audience | None:
        """All members if all get pushes; None if only mentioned users do, because the conversation is large."""
        if conv[0] == keys.DIRECT:
            return frozenset(keys.parties(conv))
        if conv[0] == keys.CHANNEL or (await self._conversations.describe(conv, None)).size > PUSH_MEMBERS:
            return None
        return frozenset([user async for users in self._members(conv) for user in users])

    async def _apply(self, conv: str, title: str, actions: Iterable[Action]) -> None:
        actions = list(actions)
        pushes = any(isinstance(action, SchedulePush) for action in actions)
        now_ms = await self._conversations.clock_ms(conv) if pushes else 0
        await asyncio.gather(*(self._write(conv, title, action, now_ms) for action in actions))

    async def _write(self, conv: str, title: str, action: Action, now_ms: int) -> None:
        """Run one action; it is counted if it changed something, that is, if it had not been done before."""
        async with self._writes:
            match action:
                case Deliver(user, other, seq, count, event, marks, target):
                    changed = await reply_of(self._users.deliver, user, conv, other, seq, count, event, marks, target)
                case Join(user, at, read, read_count, role):
                    changed = await self._users.join(user, conv, title, at, read, read_count, role)
                case Leave(user, at):
                    changed = await self._users.leave(user, conv, at)
                case SchedulePush(user, seq, due_ms):
                    changed = await self._pushes.schedule(user, conv, seq, due_ms - now_ms)
        if changed:
            _WRITES[type(action)].inc()


_WRITES: Final = {
    kind: metrics.SLOT_WRITES.labels(name)
    for kind, name in ((Deliver, "deliver"), (Join, "join"), (Leave, "leave"), (SchedulePush, "arm"))
}

"""Posts pushes to the operator's backend, for users whose devices did not get a message in time.

The finisher sets a deadline with the message. At the deadline a message is missed if no device's cursor and no read
mark of the user has passed it within a heartbeat and ten seconds, independent of presence, so a phone that is online
but no longer receives loses no push. One POST contains everything that a user has missed:

    {"id", "at", "user", "conversations": [{"conversation", "kind", "seq", "unread"}]}
signed with LINNET_WEBHOOK_SECRET (`process/poster.py`).

2xx clears it. After 408, 429, 5xx, another status except 4xx, or no answer, the post is tried again with growing
delays, up to MAX_ATTEMPTS times, and not before the answer's Retry-After. After any other 4xx it is dropped. An answer
only affects its own post: the posts of other users go on.

Invariants
- Waiting events and the number of attempts are stored in Redis, so a router that dies loses none of them. A post may be
  made twice; its `id` is the same while it contains the same messages.
- A post contains no content of messages; the backend reads it through the API, with its own rights.
- Conversations that the user has silenced (the key `notify/<conversation>` of their state) are in no post. Their missed
  events are cleared with the others, so they are not posted later either.
- A post clears the events up to the seqs in it, so a message that arrives meanwhile gets its own post.
"""

from __future__ import annotations

import asyncio
import hashlib
import random
from collections.abc import Mapping
from itertools import islice
from time import perf_counter
from typing import Final, Literal, TypeAlias

import msgspec
from msgspec import Struct

from router.contract import keys, metrics, stamp
from router.contract.errors import LinnetError, NotFound
from router.contract.packing import MAX_INTEGER, pack
from router.contract.settings import Settings
from router.contract.state import NOTIFY, is_silent
from router.jobs.finisher import push_after_ms
from router.jobs.rounds import Rounds, every
from router.process.http_client import Answer, NoAnswer
from router.process.poster import Poster
from router.store.answers import each_answer, reply_of
from router.store.conversations import Conversations
from router.store.heads import Head
from router.store.pushes import Pushes, Waiting
from router.store.state import State
from router.store.users import Users

LEASE_MS: Final = 30_000
LIMIT: Final = 2
EVERY_S: Final = 1.0
MEASURE_S: Final = 5.0
TIMEOUT_S: Final = 10.0
CONVERSATIONS: Final = 100
MAX_ATTEMPTS: Final = 12
BACKOFF_S: Final = (5.0, 3600.0)  # the longest is MOST_PUSH_MS of the functions
SKEW_MS: Final = 10_000  # the most by which clocks that follow each other differ

Verdict: TypeAlias = Literal["sent", "retried", "dropped"]


class Missed(Struct, frozen=True):
    conversation: str
    kind: str
    seq: int
    unread: int


class Notice(Struct, frozen=True):
    """The body of a post."""

    id: str
    at: int
    user: str
    conversations: list[Missed]


class Plan(Struct, frozen=True):
    """`had`: seqs that a device has; `missed`: seqs to post. All others have time left, the first `later_ms`."""

    had: dict[str, int]
    missed: dict[str, int]
    later_ms: int | None = None


def unseen(waiting: Waiting) -> dict[str, int]:
    """Conversations with waiting events that no device has: conversation → the seq up to which a device has all."""
    seen = {conv: max(waiting.cursors[conv], wait.read) for conv, wait in waiting.waits.items()}
    return {conv: seq for conv, seq in seen.items() if seq < waiting.waits[conv].seq}


def plan(waiting: Waiting, ages_ms: Mapping[str, int | None], push_after: int) -> Plan:
    """Decide on each waiting conversation. `ages_ms`: of its first event that no device has; None if there is none.

    The deadline is that of the first waiting message. If a device has received that one meanwhile and is behind by less
    than the window, it is alive and has the rest of the window. An event with a time in the future was stamped by
    another clock and counts as missed.
    """
    left = {conv: push_after - age for conv, age in ages_ms.items() if age is not None}
    had = {conv: wait.seq for conv, wait in waiting.waits.items() if conv not in left}
    has_time = {conv for conv, time in left.items() if 0 < time <= push_after + SKEW_MS}
    missed = {conv: waiting.waits[conv].seq for conv in sorted(left.keys() - has_time)}
    later = min((left[conv] for conv in has_time), default=None)
    return Plan(had, dict(islice(missed.items(), CONVERSATIONS)), later)


def verdict(status: int | None, attempts: int) -> Verdict:
    """The verdict on a post by the status of its answer (None: no answer), after `attempts` failed ones."""
    if status is not None and 200 <= status < 300:
        return "sent"
    refused = status is not None and 400 <= status < 500 and status not in (408, 429)
    return "dropped" if refused or attempts + 1 >= MAX_ATTEMPTS else "retried"


def backoff_s(attempts: int, jitter: float) -> float:
    """Seconds before the next attempt after `attempts` failed ones; `jitter` in [0, 1) reduces them by up to half."""
    first, most = BACKOFF_S
    return float(min(most, first * 2.0**attempts)) * (1 - jitter / 2)


def identity(user: str, missed: Mapping[str, int]) -> str:
    return hashlib.blake2b(pack([user, sorted(missed.items())]), digest_size=16).hexdigest()


class Webhooks:
    """Claims users whose deadline has passed, and posts. `round`: all partitions once; `run`: until a stop."""

    def __init__(
        self,
        settings: Settings,
        conversations: Conversations,
        users: Users,
        pushes: Pushes,
        state: State,
        timeout_s: float = TIMEOUT_S,
    ) -> None:
        self._conversations = conversations
        self._users = users
        self._pushes = pushes
        self._state = state
        self._push_after_ms = push_after_ms(settings)
        self._poster = Poster(
            "LINNET_WEBHOOK_URL", settings.webhook_url, settings.webhook_secret, timeout_s, "webhook posts"
        )
        self._rounds = Rounds(
            "webhooks",
            pushes.claims,
            self.push,
            metrics.WEBHOOKS.labels("failed"),
            limit=LIMIT,
            lease_ms=LEASE_MS,
            due=pushes.due,
        )
        self.round = self._rounds.round

    async def run(self, stop: asyncio.Event) -> None:
        try:
            await asyncio.gather(self._rounds.run(stop, EVERY_S), every(stop, MEASURE_S, self.measure))
        finally:
            self.close()

    def close(self) -> None:
        self._poster.close()

    async def measure(self) -> None:
        """Measure the waiting users of all partitions; every router reports the same figure."""
        found = await each_answer(map(self._pushes.users, range(keys.PARTITIONS)))
        metrics.PUSH_BACKLOG.set(sum(users for users in found if not isinstance(users, LinnetError)))

    async def push(self, user: str, now_ms: int | None = None) -> None:
        """Clear the events that a claimed user has, post the missed ones, and postpone those that have time left.

        `now_ms` replaces the clocks of the servers.
        """
        waiting = await self._pushes.waiting(user)
        seen = unseen(waiting)
        found = await each_answer(self._age_ms(user, conv, seq, now_ms) for conv, seq in seen.items())
        ages: dict[str, int | None] = {}
        for conv, age in zip(seen, found, strict=True):
            if isinstance(age, LinnetError):  # its server does not answer, so it goes on waiting
                del waiting.waits[conv]
            else:
                ages[conv] = age
        begun = perf_counter()
        todo = plan(waiting, ages, self._push_after_ms)
        if todo.missed:
            now_ms = await self._pushes.clock_ms() if now_ms is None else now_ms
            missed = await self._audible(user, todo.missed, now_ms)
            if missed and await self._attempt(user, missed, waiting.attempts, now_ms) == "retried":
                return
        later_ms = todo.later_ms
        if later_ms is not None:
            later_ms -= round(1000 * (perf_counter() - begun))
        if len(ages) < len(seen):
            later_ms = LEASE_MS if later_ms is None else min(later_ms, LEASE_MS)
        if len(todo.missed) == CONVERSATIONS:
            later_ms = None  # what found no room is due already
        await self._pushes.clear(user, {**todo.had, **todo.missed}, later_ms)

    async def _audible(self, user: str, missed: dict[str, int], now_ms: int) -> dict[str, int]:
        """The missed conversations without those whose pushes the user has silenced."""
        values = await self._state.values(user, [f"{NOTIFY}{conv}" for conv in missed])
        return {
            conv: seq for (conv, seq), value in zip(missed.items(), values, strict=True) if not is_silent(value, now_ms)
        }

    async def _age_ms(self, user: str, conv: str, seq: int, now_ms: int | None) -> int | None:
        """The age of the first event above `seq` that the user may see; None if there is none."""
        try:
            page = await reply_of(self._conversations.range, conv, user, seq, MAX_INTEGER, 1)
        except NotFound:
            return None
        if not page.events:
            return None
        now_ms = await self._conversations.clock_ms(conv) if now_ms is None else now_ms
        return now_ms - stamp.slots(page.events[0])[3]

    async def _attempt(self, user: str, missed: dict[str, int], attempts: int, now_ms: int) -> Verdict:
        """Make one post; schedule the next attempt if the verdict is `retried`."""
        notice = Notice(identity(user, missed), now_ms, user, await self._describe(user, missed))
        begun = perf_counter()
        answer = await self._post(msgspec.json.encode(notice), now_ms // 1000)
        metrics.WEBHOOK_SECONDS.observe(perf_counter() - begun)
        result = verdict(answer.status if answer else None, attempts)
        metrics.WEBHOOKS.labels(result).inc()
        if result == "retried":
            wait_s = backoff_s(attempts, random.random())
            if answer is not None and answer.retry_after_s:
                wait_s = max(wait_s, answer.retry_after_s)
            await self._pushes.retry(user, round(1000 * wait_s))
        return result

    async def _describe(self, user: str, missed: Mapping[str, int]) -> list[Missed]:
        heads = await reply_of(self._conversations.heads, list(missed))
        for head in heads:
            if isinstance(head, LinnetError):
                raise head
        rows = await asyncio.gather(*(self._users.row(user, conv) for conv in missed))
        return [
            Missed(conv, keys.KIND_NAMES[conv[0]], seq, row.unread(head.count, head.deleted) if row else head.count)
            for (conv, seq), head, row in zip(missed.items(), heads, rows, strict=True)
            if isinstance(head, Head)
        ]

    async def _post(self, body: bytes, at_s: int) -> Answer | None:
        """Post and return the answer; None if there is none."""
        try:
            answer = await self._poster.post(body, at_s)
        except NoAnswer as error:
            self._poster.report(str(error))
            return None
        self._poster.report("" if 200 <= answer.status < 300 else f"status {answer.status}")
        return answer

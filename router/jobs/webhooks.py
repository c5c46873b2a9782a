"""Tells the operator's backend of users whose devices did not get a message in time.

A deadline was armed with the message (`finisher`). When it comes, a message has been missed if no device's cursor and
no read mark of the user has passed it within a heartbeat and ten seconds, whatever presence says: a phone that is
"online but dead" loses nothing. One POST tells of everything that a user has missed:

    {"id", "at", "user", "conversations": [{"conversation", "kind", "seq", "unread"}]}
    Linnet-Signature: t=<unix seconds>,v1=<hex of HMAC-SHA256 over "<t>.<body>" with LINNET_WEBHOOK_SECRET>

2xx settles it. 408, 429, 5xx, any other answer but a 4xx, and no answer are tried again, later and later, MAX_ATTEMPTS
times, and not before the answer's Retry-After; any 4xx else says that it never will be taken, and drops it. An answer
decides about its own post alone: the posts of other users go on.

Invariants
- What waits and how often it was tried stands in Redis: a router that dies loses none of it. So a post may be made
  twice; its `id` is the same as long as it tells of the same messages.
- No content of a message leaves here; the backend reads it through the API, with its own rights.
- What is posted is settled up to the seq that was told, so a message that came meanwhile has its own post.
"""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import logging
import random
from collections.abc import Mapping
from itertools import islice
from time import perf_counter
from typing import Final, Literal, TypeAlias

import msgspec
from msgspec import Struct

from router.contract import keys, metrics, stamp
from router.contract.errors import NotFound
from router.contract.packing import MAX_INTEGER, pack
from router.contract.settings import Settings
from router.jobs.finisher import push_after_ms
from router.jobs.rounds import Rounds, every
from router.process.http_client import Answer, HttpClient, NoAnswer
from router.store.answers import reply_of
from router.store.conversations import Conversations, Head
from router.store.pushes import Pushes, Waiting
from router.store.users import Users

LEASE_MS: Final = 30_000
LIMIT: Final = 2
EVERY_S: Final = 1.0
MEASURE_S: Final = 5.0
TIMEOUT_S: Final = 10.0
CONVERSATIONS: Final = 100
MAX_ATTEMPTS: Final = 12
BACKOFF_S: Final = (5.0, 3600.0)  # the longest is MOST_PUSH_MS of the functions
SKEW_MS: Final = 10_000  # by which clocks that follow each other may differ

Verdict: TypeAlias = Literal["sent", "retried", "dropped"]

log = logging.getLogger("linnet.webhooks")


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
    """`had`: a device got it; `missed`: tell. What is in neither has time left, the first of it until `later`."""

    had: dict[str, int]
    missed: dict[str, int]
    later: int | None = None


def unseen(waiting: Waiting) -> dict[str, int]:
    """Conversations in which something waits that no device has: conversation → up to where one has everything."""
    places = {conv: max(waiting.cursors[conv], wait.read) for conv, wait in waiting.waits.items()}
    return {conv: place for conv, place in places.items() if place < waiting.waits[conv].seq}


def plan(waiting: Waiting, firsts: Mapping[str, int | None], now_ms: int, push_after: int) -> Plan:
    """`firsts`: when the first event came that no device has; None if there is none to be had any more.

    The deadline was that of the first message armed. A device that has since got it, and is behind by less than the
    window, is alive: it has the rest of the window. An event that seems to come from the future was stamped by another
    clock: it counts as missed.
    """
    due = {conv: at + push_after for conv, at in firsts.items() if at is not None}
    had = {conv: wait.seq for conv, wait in waiting.waits.items() if conv not in due}
    has_time = {conv for conv, at in due.items() if now_ms < at <= now_ms + push_after + SKEW_MS}
    missed = {conv: waiting.waits[conv].seq for conv in sorted(due.keys() - has_time)}
    later = min((due[conv] for conv in has_time), default=None)
    return Plan(had, dict(islice(missed.items(), CONVERSATIONS)), later)


def verdict(status: int | None, attempts: int) -> Verdict:
    """What an answer (None: there was none) means after `attempts` failed ones."""
    if status is not None and 200 <= status < 300:
        return "sent"
    refused = status is not None and 400 <= status < 500 and status not in (408, 429)
    return "dropped" if refused or attempts + 1 >= MAX_ATTEMPTS else "retried"


def backoff_s(attempts: int, jitter: float) -> float:
    """Seconds before the next attempt after `attempts` failed ones; `jitter` in [0, 1) takes up to half off."""
    first, most = BACKOFF_S
    return float(min(most, first * 2.0**attempts)) * (1 - jitter / 2)


def identity(user: str, missed: Mapping[str, int]) -> str:
    return hashlib.blake2b(pack([user, sorted(missed.items())]), digest_size=16).hexdigest()


def signature(secret: str, at_s: int, body: bytes) -> str:
    mac = hmac.new(secret.encode(), b"%d.%s" % (at_s, body), hashlib.sha256)
    return f"t={at_s},v1={mac.hexdigest()}"


class Webhooks:
    """Claims users whose deadline has come, and posts. `round`: all partitions once; `run`: until told to stop."""

    def __init__(
        self,
        settings: Settings,
        conversations: Conversations,
        users: Users,
        pushes: Pushes,
        timeout_s: float = TIMEOUT_S,
    ) -> None:
        self._conversations = conversations
        self._users = users
        self._pushes = pushes
        self._secret = settings.webhook_secret
        self._push_after_ms = push_after_ms(settings)
        self._http = HttpClient("LINNET_WEBHOOK_URL", settings.webhook_url, timeout_s)
        self._rounds = Rounds(
            "webhooks", pushes.claims, self.push, metrics.WEBHOOKS.labels("failed"), limit=LIMIT, lease_ms=LEASE_MS
        )
        self.round = self._rounds.round
        self._failing = False

    async def run(self, stop: asyncio.Event) -> None:
        try:
            await asyncio.gather(self._rounds.run(stop, EVERY_S), every(stop, MEASURE_S, self.measure))
        finally:
            self.close()

    def close(self) -> None:
        self._http.close()

    async def measure(self) -> None:
        """How many users wait in all partitions; every router says the same."""
        found = await asyncio.gather(*map(self._pushes.backlog, range(keys.PARTITIONS)))
        metrics.PUSH_BACKLOG.set(sum(count for count, _ in found))

    async def push(self, user: str, now_ms: int | None = None) -> None:
        """Settle what a claimed user has, post what she missed, put off what has time left."""
        now_ms = await self._pushes.clock_ms() if now_ms is None else now_ms
        waiting = await self._pushes.waiting(user)
        places = unseen(waiting)
        firsts = await asyncio.gather(*(self._first(user, conv, place) for conv, place in places.items()))
        todo = plan(waiting, dict(zip(places, firsts, strict=True)), now_ms, self._push_after_ms)
        if todo.missed and await self._tell(user, todo, waiting.attempts, now_ms) == "retried":
            return
        await self._pushes.settled(user, {**todo.had, **todo.missed})
        if todo.later is not None and len(todo.missed) < CONVERSATIONS:
            await self._pushes.postpone(user, todo.later)

    async def _first(self, user: str, conv: str, place: int) -> int | None:
        """When the first event above `place` came that the user may see; None if there is none."""
        try:
            page = await reply_of(self._conversations.range, conv, user, place, MAX_INTEGER, 1)
        except NotFound:
            return None
        return stamp.slots(page.events[0])[3] if page.events else None

    async def _tell(self, user: str, todo: Plan, attempts: int, now_ms: int) -> Verdict:
        """One post, and when to try again if that is to be."""
        notice = Notice(identity(user, todo.missed), now_ms, user, await self._describe(user, todo.missed))
        begun = perf_counter()
        answer = await self._post(msgspec.json.encode(notice), now_ms // 1000)
        spent_s = perf_counter() - begun
        metrics.WEBHOOK_SECONDS.observe(spent_s)
        result = verdict(answer.status if answer else None, attempts)
        metrics.WEBHOOKS.labels(result).inc()
        if result == "retried":
            wait_s = backoff_s(attempts, random.random())
            if answer is not None and answer.retry_after_s:
                wait_s = max(wait_s, spent_s + answer.retry_after_s)
            await self._pushes.retry(user, now_ms + round(1000 * wait_s))
        return result

    async def _describe(self, user: str, missed: Mapping[str, int]) -> list[Missed]:
        heads: list[Head | None] = await reply_of(self._conversations.heads, list(missed))
        rows = await asyncio.gather(*(self._users.row(user, conv) for conv in missed))
        return [
            Missed(conv, keys.KIND_NAMES[conv[0]], seq, row.unread(head.count, head.deleted) if row else head.count)
            for (conv, seq), head, row in zip(missed.items(), heads, rows, strict=True)
            if head is not None
        ]

    async def _post(self, body: bytes, at_s: int) -> Answer | None:
        """The answer, None if there was none."""
        headers = [("Content-Type", "application/json"), ("Linnet-Signature", signature(self._secret, at_s, body))]
        try:
            answer = await self._http.post(headers, body)
        except NoAnswer as error:
            self._told(str(error))
            return None
        self._told("" if 200 <= answer.status < 300 else f"status {answer.status}")
        return answer

    def _told(self, fault: str) -> None:
        """Log when posts begin to fail and when they get through again, not each."""
        if fault and not self._failing:
            log.warning("webhook posts fail: %s", fault)
        elif self._failing and not fault:
            log.info("webhook posts get through again")
        self._failing = bool(fault)

"""Keeps the index of this router's partitions up to date with the logs.

Every EVERY_S the indexer asks each server which conversations have moved since it asked last, reads what is new of them
from their logs, and writes that into the files. A partition is *whole* if its file has all that the logs have but for
the last seconds. One that was just taken over, or whose file is older than what `moved` remembers, is built by a walk
over all conversations; until then answers say that they are incomplete.

Invariants
- Where a conversation's index ends is in the file, in the transaction with its words. So it does no harm to look at a
  conversation twice, and the indexer may always look at too many.
- A partition is asked again about the whole time since the last question whose conversations were all read. So a server
  that is away for a while loses nothing, and delays only its own partitions.
- A partition becomes whole by a walk, and the question after it, only if its server answered all the while.
- A conversation or an event that cannot be read costs itself alone: it is counted, and the others go on.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from math import inf
from time import monotonic, time
from typing import Final, TypeVar

import msgspec

from router.contract import keys, metrics
from router.contract.errors import LinnetError, NotFound, Unavailable
from router.contract.packing import MAX_INTEGER
from router.jobs.rounds import every
from router.process.isolate import fault
from router.search.documents import Indexed, edited, indexed
from router.search.index import Events, Index, Known
from router.search.owners import Owners
from router.search.shelf import Damaged, Shelf
from router.store.answers import reply_of
from router.store.conversations import Conversations, Page
from router.store.moved import KEEP_MS, Moved

EVERY_S: Final = 1.0
TIDY_S: Final = 300.0
MARGIN_S: Final = 2.0  # by which each question goes back further than the last one
TOGETHER_S: Final = 30.0  # partitions behind by less are asked about in one call
REMEMBERED_S: Final = KEEP_MS / 1000 - 3600
PAGE: Final = 200
AT_ONCE: Final = 32  # conversations that are read at the same time
WALK_KEYS: Final = 200
WALK_PAUSE_S: Final = 0.01
FORGET_S: Final = 3600.0  # after which the file of a partition that is another router's is deleted
ERASE_S: Final = 86_400.0
WHOLE_AT: Final = "whole_at"  # the fact of a file: the Unix time (s) up to which it has everything

T = TypeVar("T")

log = logging.getLogger("linnet.router")


class Part:
    """A partition that this router keeps. `asked_at`: the start of the last question whose conversations were all read.
    `failed_at`: the last time that its server gave no answer; `walked_at`: the start of the last walk that ended."""

    __slots__ = ("asked_at", "failed_at", "walked_at", "whole")

    def __init__(self, asked_at: float, whole: bool) -> None:
        self.asked_at = asked_at
        self.whole = whole
        self.failed_at = self.walked_at = -inf


class Indexer:
    def __init__(
        self, shelf: Shelf, owners: Owners, moved: Moved, conversations: Conversations, erase_s: float = ERASE_S
    ) -> None:
        """`erase_s`: until the words of deleted messages are out of the files."""
        self._shelf = shelf
        self._owners = owners
        self._moved = moved
        self._conversations = conversations
        self._erase_s = erase_s
        self.parts: dict[int, Part] = {}

    async def run(self, stop: asyncio.Event) -> None:
        """Follow the logs until the process stops; then note how far each file is."""
        async with asyncio.TaskGroup() as group:
            for every_s, work in ((EVERY_S, self.step), (EVERY_S, self.walk), (TIDY_S, self.tidy)):
                group.create_task(every(stop, every_s, work))
        for number, part in list(self.parts.items()):
            await self._note(number, part)

    async def step(self) -> None:
        """Take the partitions that are this router's, and index what has moved."""
        if await self._owners.follow():
            await self._settle(self._owners.own)
        together: list[int] = []
        late: list[int] = []
        now = monotonic()
        for number, part in self.parts.items():
            (together if now - part.asked_at < TOGETHER_S else late).append(number)
        for some in (together, *([number] for number in late)):
            if some:
                await self._look(some)
        self._observe()

    def _observe(self) -> None:
        whole = sum(part.whole for part in self.parts.values())
        metrics.SEARCH_PARTITIONS.labels("whole").set(whole)
        metrics.SEARCH_PARTITIONS.labels("building").set(len(self.parts) - whole)
        oldest = min((part.asked_at for part in self.parts.values()), default=monotonic())
        metrics.SEARCH_BEHIND_SECONDS.set(monotonic() - oldest)

    async def tidy(self) -> None:
        """Delete files of partitions that belong to others now, and take words of deleted messages out of the files."""
        await self._shelf.forget(frozenset(self.parts), FORGET_S)
        for number in list(self.parts):
            await self.use(number, self._erased)
        metrics.SEARCH_INDEX_BYTES.set(self._shelf.size())

    def _erased(self, index: Index) -> None:
        if (since := index.deleted_since()) is not None and time() - since > self._erase_s / 2:
            index.erase()

    async def _settle(self, own: frozenset[int]) -> None:
        """Take the partitions that belong to this router now, and leave the others."""
        for number in self.parts.keys() - own:
            del self.parts[number]
        for number in sorted(own - self.parts.keys()):
            whole_at = await self.use(number, lambda index: index.fact(WHOLE_AT)) or 0
            age_s = max(0.0, time() - whole_at)
            whole = age_s < REMEMBERED_S
            self.parts[number] = Part(monotonic() - (age_s if whole else 0.0), whole)

    async def _look(self, numbers: Sequence[int]) -> None:
        """Index what has moved in these partitions since they were asked about last."""
        now = monotonic()
        within_ms = round((now - min(self.parts[number].asked_at for number in numbers) + MARGIN_S) * 1000)
        finished = await self._moved.finished(numbers, min(within_ms, KEEP_MS))
        marked = await self._moved.marked(numbers, min(within_ms, KEEP_MS))
        for number, *found in zip(numbers, finished, marked, strict=True):
            part = self.parts[number]
            names: set[str] = set()
            for some in found:
                if isinstance(some, LinnetError):
                    part.failed_at = now
                else:
                    names.update(some)
            if not await self._indexed(number, names):
                part.failed_at = now
            if part.failed_at < now:
                part.asked_at = now
                part.whole = part.whole or part.failed_at < part.walked_at
                if names:
                    await self._note(number, part)

    async def _note(self, number: int, part: Part) -> None:
        """Note in the file of a whole partition up to when it has everything."""
        whole_at = round(time() - (monotonic() - part.asked_at))
        if part.whole and self.parts.get(number) is part:
            try:
                await self.use(number, lambda index: index.add((), [(WHOLE_AT, whole_at)]))
            except Exception as error:  # noqa: BLE001 - the file is read from an earlier point if this one is lost
                fault("search", error)

    async def use(self, number: int, work: Callable[[Index], T]) -> T:
        """What `work` returns for the index of a partition; `Damaged` if its file is of no use: it is built again."""
        try:
            return await self._shelf.use(number, work)
        except Damaged:
            log.warning("search: the index of partition %d was damaged, it is built again", number)
            if number in self.parts:
                self.parts[number] = Part(monotonic(), whole=False)
            raise

    # -- reading

    async def _indexed(self, number: int, names: Iterable[str]) -> bool:
        """Index what is new of these conversations; False if not all could be read or written."""
        try:
            return await self._index(number, names)
        except Damaged:
            pass
        except Exception as error:  # noqa: BLE001 - after any error (a full disk) the other partitions are indexed
            fault("search", error)
        return False

    async def _index(self, number: int, names: Iterable[str]) -> bool:
        """Index what is new of these conversations; False if a server gave no answer."""
        rest, answered = list(names), True
        while rest:
            some, rest = rest[:AT_ONCE], rest[AT_ONCE:]
            known = await self.use(number, partial(Index.known, conversations=some))
            found = await asyncio.gather(*map(self._new, some, known))
            changes = [one for one in found if isinstance(one, Events)]
            rest += [change.conversation for change in changes if change.more]
            answered = answered and not any(isinstance(one, Unavailable) for one in found)
            if changes:
                await self.use(number, partial(Index.add, changes=changes))
                metrics.SEARCH_INDEXED.inc(sum(len(change.events) for change in changes))
        return answered

    async def _new(self, conv: str, known: Known) -> Events | Exception | None:
        """A page of what is new of a conversation, None if nothing is, or why it cannot be read."""
        try:
            return await self._read(conv, known)
        except Unavailable as error:
            return error
        except Exception as error:  # noqa: BLE001 - after any error the other conversations are read
            fault("search", error)
            return error

    async def _read(self, conv: str, known: Known) -> Events | None:
        try:
            page = await reply_of(self._conversations.range, conv, None, known.upto, MAX_INTEGER, PAGE)
        except NotFound:
            return Events(conv, (), known.upto, gone=True) if known.upto else None
        if page.position <= known.upto and page.floor <= known.floor:
            return None
        events: dict[int, Indexed] = {}
        for packed in page.events:
            try:
                event = indexed(packed)
            except msgspec.ValidationError as error:
                fault("search", error)
                continue
            if event.type == "edit":
                target = events.get(event.target) or await self._event(conv, event.target)
                if target is None:
                    continue
                event = edited(target, event)
            events[event.seq] = event
        return Events(conv, list(events.values()), page.position, page.floor, more=page.more)

    async def _event(self, conv: str, seq: int) -> Indexed | None:
        page: Page = await reply_of(self._conversations.range, conv, None, seq - 1, seq, 1)
        return indexed(page.events[0]) if page.events else None

    # -- the walk

    async def walk(self) -> None:
        """Build the partitions that are not whole, in one walk over all conversations."""
        began, place = monotonic(), ""
        wanted = {number for number, part in self.parts.items() if not part.whole}
        if not wanted:
            return
        while True:
            found, place = await self._conversations.scan(place, WALK_KEYS)
            of: dict[int, list[str]] = {}
            for conv in found:
                if keys.is_conversation(conv):
                    of.setdefault(keys.partition(conv), []).append(conv)
            for number in wanted & of.keys():
                part = self.parts.get(number)
                if part is not None and not await self._indexed(number, of[number]):
                    part.failed_at = monotonic()
            if not place:
                break
            await asyncio.sleep(WALK_PAUSE_S)
        for number in wanted & self.parts.keys():
            self.parts[number].walked_at = began

"""Copies of pairs' records and of profiles: the sequences of calls that API and finisher both need.

A call changes the record first (`pairs`) and then writes the copies. If the process dies in between, a router finds the
pair's mark in `dirty` and calls `repeat`. Copies carry the record's number, so any number of processes may write them
at once and in any order.

A failover of one of the three servers may take back the record or a copy. So a router compares them again some time
after each change (`check`, by the marks beside the copies; `repeat`, by the mark beside the record). Copies of a change
that the record has lost are replaced by copies of the record. Every copy carries the number of the whole record,
whatever its last change was. So a change that follows a lost one replaces all that the lost one has left.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from contextlib import suppress
from typing import Final

from msgspec import to_builtins

from router.contract import keys, metrics
from router.contract.errors import Conflict, Unavailable
from router.contract.packing import pack
from router.contract.state import BLOCK, CONTACT, ME
from router.store.answers import reply_of
from router.store.pairs import Change, Entry, PairAction, Pairs, Record
from router.store.people import Ahead, People, Person, Related
from router.store.profiles import Profile, Profiles
from router.store.state import State
from router.store.users import Users

NO_RECORD: Final = Person(0, "-", False, False, 0, 0)  # what is copied if a pair has no record
_KINDS: Final = {"contact": "c", "outgoing": "o", "incoming": "i"}


class Contacts:
    def __init__(self, pairs: Pairs, people: People, profiles: Profiles, users: Users, state: State) -> None:
        self._pairs = pairs
        self._people = people
        self._profiles = profiles
        self._users = users
        self._state = state

    async def change(self, user: str, other: str, action: PairAction, argument: str = "", number: int = 0) -> Change:
        """Change the record, and write its copies.

        The pair stays marked: a router writes the copies once more, later than a process that has an older record.
        """
        change = await reply_of(self._pairs.change, user, other, action, argument, number)
        return await self.copy(user, other, change) if change.copies_outdated else change

    async def end(self, user: str, other: str) -> None:
        """Let the record know that the user's account ends. If there is no memory for copies now, a router writes them
        later: accounts must be able to end."""
        change = await reply_of(self._pairs.change, user, other, "ended", "", 0)
        if change.copies_outdated:
            with suppress(Unavailable):
                await self.copy(user, other, change)

    async def repeat(self, conv: str, *, checks: bool = False) -> None:
        """Write the copies of a marked pair again, and unmark it."""
        user, other = keys.parties(conv)
        change = await reply_of(self._pairs.change, user, other, "look", "", 0)
        change = await self.copy(user, other, change, checks=checks)
        await self._pairs.copied(conv, change.record)

    async def check(self, conv: str) -> None:
        """Compare the copies of a pair with its record, and end the marks beside the copies."""
        await self.repeat(conv, checks=True)

    async def settle(self, user: str) -> None:
        """Settle what follows from the profile of a marked user, and unmark them.

        That is the key `me` of their state, and in the records of their direct conversations whether they take messages
        from contacts only.
        """
        profile = await self._profiles.read(user)
        if profile is not None:
            if profile.number:
                await self.put_me(user, profile)
            if profile.messages_n:
                await self._spread(user, profile)
        await self._profiles.settled(user)

    async def hidden_from(self, authors: Iterable[str], users: frozenset[str]) -> dict[str, frozenset[str]]:
        """For each author who is hidden from somebody by a block, those of `users` from whom."""
        hiding = await self._people.hiding(authors)
        found = await asyncio.gather(*(self._people.among(author, users) for author in hiding))
        return {
            author: frozenset(user for user, person in people.items() if person.hidden)
            for author, people in zip(hiding, found, strict=True)
        }

    async def put_me(self, user: str, profile: Profile) -> None:
        """Write the key `me` of the user's state."""
        await reply_of(self._state.put, user, ME, pack(me(profile)), profile.number)

    async def _spread(self, user: str, profile: Profile) -> None:
        only = "1" if profile.privacy.messages == "contacts" else "0"
        cursor, more = 0, True
        while more:
            found, cursor = await self._users.direct(user, cursor)
            others = {keys.other_party(conv, user) for conv in found} - {user}
            changes = (reply_of(self._pairs.change, user, other, "only", only, profile.messages_n) for other in others)
            await asyncio.gather(*changes)
            more = cursor != 0

    async def copy(self, user: str, other: str, change: Change, *, checks: bool = False) -> Change:
        """Write the copies of a record, and return the change that was copied in the end.

        A request that finds no room in the other's list is no longer shown. If an account has ended meanwhile, that is
        entered in the record, too. If a copy is of a later change, another process has changed the record, or a
        failover took that change back: then the record gets a higher number than the copies, and is copied again.
        """
        record = change.record
        related = await asyncio.gather(
            self._relate(user, other, change, checks), self._relate(other, user, change, checks)
        )
        if number := max((found.number for found in related if isinstance(found, Ahead)), default=0):
            return await self.copy(user, other, await self._latest(user, other, number))
        if record is None:
            return change
        for owner, person, found in ((user, other, related[0]), (other, user, related[1])):
            if found == "gone" and not record.of[owner].ended:
                return await self.change(owner, person, "ended")
            if found == "crowded":
                metrics.PEOPLE_CROWDED.inc()
            if found == "full":
                return await self.change(person, owner, "unseen")
        await asyncio.gather(
            self._put_state(user, other, record, change.now), self._put_state(other, user, record, change.now)
        )
        return change

    async def _latest(self, user: str, other: str, number: int) -> Change:
        """Give the record a higher number than `number`, that of the latest copy, and return it as a change."""
        try:
            latest = await reply_of(self._pairs.change, user, other, "ahead", "", number)
        except Conflict:  # no change is lost: the record has this number by now
            return await reply_of(self._pairs.change, user, other, "look", "", 0)
        metrics.PAIRS_TAKEN_BACK.inc()
        return latest

    async def _relate(self, owner: str, person: str, change: Change, checks: bool) -> Related:
        record, entry = change.record, change.entry(owner, person)
        if record is None:
            return await self._people.set_relation(owner, person, NO_RECORD, checks=checks)
        kind, at, until, message = "-", record.of[owner].blocked, 0, ""
        if entry is not None:
            kind, at, until, message = _KINDS[entry.state], entry.at, entry.until, entry.message
        blocks = bool(record.of[owner].blocked)
        copied = Person(record.n, kind, blocks, record.hidden, at, until, message)
        return await self._people.set_relation(owner, person, copied, checks=checks)

    async def _put_state(self, owner: str, person: str, record: Record, now: int) -> None:
        """Write the owner's keys. What never was anything for the owner gets no key.

        A key that the record knows nothing of is of a change that the record has lost, so it is removed.
        """
        mine = record.of[owner]
        if mine.ended:
            return
        contact, block = f"{CONTACT}{person}", f"{BLOCK}{person}"
        has_contact, has_block = await self._state.values(owner, (contact, block))
        if mine.contact_n or has_contact:
            entry = record.entry(owner, person, now)
            value = pack(shown(entry)) if entry else None
            await reply_of(self._state.put, owner, contact, value, record.n)
        if mine.block_n or has_block:
            value = pack({"at": mine.blocked}) if mine.blocked else None
            await reply_of(self._state.put, owner, block, value, record.n)


def me(profile: Profile) -> dict[str, object]:
    """The value of the key `me`: the profile as its user sees it."""
    return {
        "name": profile.name,
        "about": profile.about,
        "avatar": profile.avatar,
        "status": profile.status,
        "extra": profile.extra,
        "privacy": to_builtins(profile.privacy),
    }


def shown(entry: Entry) -> dict[str, object]:
    """The value of a contact's key."""
    return {"state": entry.state, "message": entry.message or None, "at": entry.at, "until": entry.until or None}

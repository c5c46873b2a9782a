"""Restores rows of users that a server has lost, from the members of their conversations.

A conversation has its members; a user's list has a row for each of their conversations. The functions keep both
consistent, and the finisher repeats the unfinished work of gateways. Neither reads a quiet conversation, so a lost row
(keys deleted by hand, a partial restore) would stay lost. This walk visits every conversation in turn. It also moves
acts to the audit, which a router of an earlier release leaves behind when it finishes the conversation.

Invariants
- A conversation is checked only if the finisher has finished it; before that, the finisher writes missing rows.
- A row of format 1 is written in format 2 on the way, once all processes read it.
- Rows are written by `deliver` and `join`, which only raise values and never override a later change, so a walk may run
  beside another router's, beside a removal and beside a deletion. Values that only the row had (the read mark) are 0.
- A step scans about KEYS_PER_STEP keys, and steps are EVERY_S apart; after a whole walk it rests for REST_S. So it
  takes less than a hundredth of a server's core.
"""

from __future__ import annotations

import asyncio
import logging
from time import monotonic
from typing import Final

from router.contract import keys, metrics, stamp
from router.contract.errors import NotFound, Unavailable
from router.jobs.rounds import every
from router.process.isolate import fault
from router.store.answers import reply_of
from router.store.audit import Audit
from router.store.conversations import Conversations
from router.store.heads import Head
from router.store.rows import Row
from router.store.users import Users

EVERY_S: Final = 1.0
REST_S: Final = 600.0
KEYS_PER_STEP: Final = 200
ROWS: Final = 100  # read at the same time
RESTORED: Final = metrics.SLOT_WRITES.labels("audit")

log = logging.getLogger("linnet.router")


class RowAudit:
    def __init__(self, conversations: Conversations, users: Users, acts: Audit) -> None:
        self._acts = acts
        self._conversations = conversations
        self._users = users
        self._place = ""
        self._rests_until = 0.0

    async def run(self, stop: asyncio.Event) -> None:
        await every(stop, EVERY_S, self.step)

    async def step(self) -> None:
        """Make the next step of the walk, unless it rests."""
        if monotonic() < self._rests_until:
            return
        found, place = await self._conversations.scan(self._place, KEYS_PER_STEP)
        restored = [await self._guarded(conv) for conv in found]
        if any(restored):
            log.warning("rows of conversations' members were lost and are restored: %d", sum(restored))
        self._place = place
        if not place:
            self._rests_until = monotonic() + REST_S

    async def _guarded(self, conv: str) -> int:
        try:
            restored = await self.audit(conv)
        except NotFound:  # the conversation was removed meanwhile
            return 0
        except Unavailable:
            raise
        except Exception as error:  # noqa: BLE001 - after any error the other conversations must be checked
            fault("row audit", error)
            return 0
        RESTORED.inc(restored)
        return restored

    async def audit(self, conv: str) -> int:
        """Compare one conversation with its members' rows; return how many rows were restored."""
        head = await self._conversations.head(conv)
        if head is None or head.routed < head.seq:
            return 0
        if head.acts:
            await self._acts.move(conv)
        return await (self._direct if conv[0] == keys.DIRECT else self._group)(conv, head)

    async def _direct(self, conv: str, head: Head) -> int:
        restored = 0
        for user in sorted(set(keys.parties(conv))):
            row = await self._users.row(user, conv)
            if row is not None:
                await self._renew(user, row, "m")
                continue
            page = await reply_of(self._conversations.range_before, conv, None, head.seq + 1, 1)
            for event in page.events:
                seq, _, count, _ = stamp.slots(event)
                about, other = stamp.author(event), keys.other_party(conv, user)
                marks = about.from_ == user and about.marks
                deliver = self._users.deliver
                restored += await reply_of(deliver, user, conv, other, seq, count, event, marks, about.deletes)
        return restored

    async def _renew(self, user: str, row: Row, role: str) -> None:
        if row.role is None and self._users.writes_roles:
            await self._users.renew_row(user, row, role)

    async def _group(self, conv: str, head: Head) -> int:
        """Restore rows of a group; a join has the seq of a head that was read before the members, so removals win."""
        restored, cursor = 0, 0
        while True:
            members = await self._conversations.members.page(conv, None, cursor)
            present = list(members.roles)
            for start in range(0, len(present), ROWS):
                users = present[start : start + ROWS]
                rows = await asyncio.gather(*(self._users.row(user, conv) for user in users))
                lost: list[str] = []
                for user, row in zip(users, rows, strict=True):
                    if row is None or row.left or row.role not in (None, members.roles[user]):
                        lost.append(user)
                    else:
                        await self._renew(user, row, members.roles[user])
                joins = (self._users.join(user, conv, head.title, head.seq, 0, 0, members.roles[user]) for user in lost)
                restored += sum(await asyncio.gather(*joins))
            cursor = members.cursor
            if not cursor:
                return restored

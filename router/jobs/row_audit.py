"""Makes the rows of users anew from what the conversations say, where a server has lost them.

A conversation names its members; a user's list has a row for each of their conversations. Functions keep the two in
step, and the finisher repeats what a gateway left undone. Neither looks at a conversation that is quiet, so a row that
was lost (keys deleted by hand, a partial restore) would stay lost. This walk looks at every conversation in turn.

Invariants
- Only a conversation that the finisher is through with is looked at: before that, a missing row is its to write.
- Rows are written by `deliver` and `join`, which only raise and lose to later changes, so that a walk may run beside
  another router's, beside a removal and beside a deletion. What the row alone knew (the read mark) begins at 0.
- A step looks at about STEP keys and steps are EVERY_S apart; after a whole walk it rests for REST_S. So it takes less
  than a hundredth of a server's core.
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
from router.store.conversations import Conversations, Head
from router.store.users import Users

EVERY_S: Final = 1.0
REST_S: Final = 600.0
STEP: Final = 200
ROWS: Final = 100  # asked for together
REMADE: Final = metrics.SLOT_WRITES.labels("audit")

log = logging.getLogger("linnet.router")


class RowAudit:
    def __init__(self, conversations: Conversations, users: Users) -> None:
        self._conversations = conversations
        self._users = users
        self._cursor = 0
        self._rests_until = 0.0

    async def run(self, stop: asyncio.Event) -> None:
        await every(stop, EVERY_S, self.look)

    async def look(self) -> None:
        """The next step of the walk, unless it rests."""
        if monotonic() < self._rests_until:
            return
        found, cursor = await self._conversations.scan(self._cursor, STEP)
        for conv in found:
            await self._guarded(conv)
        self._cursor = cursor
        if cursor == 0:
            self._rests_until = monotonic() + REST_S

    async def _guarded(self, conv: str) -> None:
        try:
            remade = await self.audit(conv)
        except NotFound:  # removed meanwhile
            return
        except Unavailable:
            raise
        except Exception as error:  # noqa: BLE001 - one damaged conversation must not keep the others
            fault("row audit", error)
            return
        if remade:
            REMADE.inc(remade)
            log.warning("%d rows of members of one conversation were lost and are made anew", remade)

    async def audit(self, conv: str) -> int:
        """Compare one conversation with its members' rows; how many rows were made anew."""
        (head,) = await reply_of(self._conversations.heads, [conv])
        if head is None or head.routed < head.seq:
            return 0
        return await (self._direct if conv[0] == keys.DIRECT else self._group)(conv, head)

    async def _direct(self, conv: str, head: Head) -> int:
        remade = 0
        for user in sorted(set(keys.parties(conv))):
            row = await self._users.row(user, conv)
            if row is not None:
                continue
            page = await reply_of(self._conversations.before, conv, None, head.seq + 1, 1)
            for event in page.events:
                seq, _, count, _ = stamp.slots(event)
                about, other = stamp.author(event), keys.other_party(conv, user)
                marks = about.from_ == user and about.marks
                deliver = self._users.deliver
                remade += await reply_of(deliver, user, conv, other, seq, count, event, marks, about.deletes)
        return remade

    async def _group(self, conv: str, head: Head) -> int:
        """A join bears the seq of a head that was read before the members, so a later removal wins."""
        remade, cursor = 0, 0
        while True:
            members = await self._conversations.members(conv, None, cursor)
            present = list(members.roles)
            for start in range(0, len(present), ROWS):
                users = present[start : start + ROWS]
                rows = await asyncio.gather(*(self._users.row(user, conv) for user in users))
                lost = [user for user, row in zip(users, rows, strict=True) if row is None or row.left]
                joins = (self._users.join(user, conv, head.title, head.seq, 0, 0) for user in lost)
                remade += sum(await asyncio.gather(*joins))
            cursor = members.cursor
            if not cursor:
                return remade

"""Compares the copies of pairs' records with the records, some time after each change.

A pair whose copy changed in a user's slot is marked there (`<conversation>` in `copied`). If a failover has taken the
record back meanwhile, its mark in `dirty` is gone, too, and only this check finds that the users' lists differ from the
record. The opposite, a copy that was taken back, is found by the finisher.

Invariants
- A check may run twice, late, or beside another router's: the record decides, and the higher number wins.
- The step that compares a copy removes its mark. It marks a copy again that it replaces, or that is of a later change.
"""

from __future__ import annotations

import asyncio
from typing import Final

from router.contract import metrics
from router.jobs.rounds import Rounds
from router.store.contacts import Contacts
from router.store.people import People

LEASE_MS: Final = 10_000
LIMIT: Final = 4
EVERY_S: Final = 2.0


class PairChecks:
    """Claims pairs and checks them; `round`: all partitions once, `run`: until the process stops."""

    def __init__(self, people: People, contacts: Contacts) -> None:
        self._rounds = Rounds(
            "pairs",
            people.claims,
            contacts.check,
            metrics.PAIR_CHECKS_FAILED,
            limit=LIMIT,
            lease_ms=LEASE_MS,
            due=people.due,
        )
        self.round = self._rounds.round

    async def run(self, stop: asyncio.Event) -> None:
        await self._rounds.run(stop, EVERY_S)

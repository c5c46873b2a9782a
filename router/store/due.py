"""Due lists of partitions: which of them have items that are due.

Nearly always none has, so routers look before they claim: one call for all lists instead of a claim of every few.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from msgspec import Struct

from router.contract.errors import LinnetError
from router.store.redis.client import Client


class Overdue(Struct, frozen=True):
    """The number of due items of a list, and for how long the oldest of them has been due (ms; 0 if there is none)."""

    count: int = 0
    ms: int = 0


NOTHING_DUE: Final = Overdue()


async def look_due(client: Client, lists: Sequence[str]) -> list[Overdue | LinnetError]:
    """What is due in each list, by the clock of its server; the error of a list whose server does not answer.

    Raise the error if no server answers.
    """
    found = await client.fcall_each("look_due", lists, ())
    if found and all(isinstance(one, LinnetError) for one in found):
        raise found[0]
    return [_overdue(one) for one in found]


def _overdue(answer: object) -> Overdue | LinnetError:
    if isinstance(answer, LinnetError):
        return answer
    return Overdue(*answer) if isinstance(answer, list) else NOTHING_DUE


async def parts_due(client: Client, lists: Sequence[str]) -> Sequence[int]:
    """The indices of the lists from which a claim would get something, or whose server does not answer.

    If the lists are on several servers, that is all of them: there the first claim also begins a server's tenure.
    """
    if not client.one_server:
        return range(len(lists))
    return [part for part, found in enumerate(await look_due(client, lists)) if found is not NOTHING_DUE]

"""Searching the messages that a user may see.

The index names candidates (`router/search`). Whether one is a hit is decided here, from the log: the user must see the
message and its last edit now, and the text as it is now must have what was asked for.

Invariant: an answer says nothing of candidates that are no hits, not even that there are some. So `more` means another
hit, and the cursor is the place of a hit.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Final, cast

from router.api.call import Call
from router.api.types.search import Found, Hit, SearchQuery
from router.contract import keys
from router.contract.errors import BadCommand, NotFound
from router.contract.packing import MAX_INTEGER
from router.search import documents
from router.search.documents import Indexed, indexed
from router.search.index import MAX_ORDER, Candidate, Question, order_of
from router.search.query import Phrase, found, phrases_of
from router.store.answers import reply_of
from router.store.rows import Row

if TYPE_CHECKING:
    from router.search.parts import Search

MAX_CONVERSATIONS: Final = 10_000  # of a user that are searched, those that moved last
MAX_CANDIDATES: Final = 300  # about which one answer asks the log
FIRST: Final = (MAX_ORDER, 0)
_CURSOR: Final = re.compile(r"([0-9]{1,19})\.([0-9]{1,3})\Z", re.ASCII)

Place = tuple[int, int]  # order and partition of a candidate: answers go on behind it


async def search(call: Call, given: SearchQuery) -> Found:
    """Search the messages that the user may see, the newest first."""
    phrases, place = phrases_of(given.q), _place(given.cursor)
    await reply_of(call.services.users.spend_query, call.user)
    of, incomplete = await _conversations(call, given)
    at_once = given.limit + 1
    asked = cast("Search", call.services.search).ask  # the table has this call only where there is search
    hits: list[tuple[Place, Hit]] = []
    looked, rest = 0, bool(of)
    while rest and len(hits) < at_once and looked < MAX_CANDIDATES:
        answers = await asked(_questions(given, phrases, of, place, at_once))
        incomplete = incomplete or answers.incomplete
        merged = sorted(_places(answers.candidates), key=_behind)
        rest = len(merged) > at_once or any(len(some) == at_once for some in answers.candidates.values())
        checked = await asyncio.gather(*(_checked(call, given, phrases, one) for _, one in merged[:at_once]))
        seen = zip(merged, checked, strict=False)
        hits += [((one.order, part), hit) for (part, one), hit in seen if hit is not None]
        if merged:
            part, last = merged[:at_once][-1]
            place = last.order, part
        looked += at_once
    if len(hits) < at_once:
        return Found([hit for _, hit in hits], False, "", incomplete or rest)
    (order, part), _ = hits[given.limit - 1]
    return Found([hit for _, hit in hits[: given.limit]], True, f"{order}.{part}", incomplete)


def _place(cursor: str) -> Place:
    """The place at which an answer goes on."""
    if not cursor:
        return FIRST
    match = _CURSOR.match(cursor)
    if match is None or int(match[1]) > MAX_ORDER or int(match[2]) >= keys.PARTITIONS:
        raise BadCommand("`cursor` is not that of an answer")
    return int(match[1]), int(match[2])


def _places(candidates: Mapping[int, Sequence[Candidate]]) -> Iterator[tuple[int, Candidate]]:
    return ((part, one) for part, some in candidates.items() for one in some)


def _behind(place: tuple[int, Candidate]) -> Place:
    """The order of answers: the newest first, and of one order by partition."""
    return -place[1].order, place[0]


async def _conversations(call: Call, given: SearchQuery) -> tuple[dict[int, dict[str, int]], bool]:
    """The conversations that are searched, by partition, each up to a seq; and whether there are too many of them."""
    users = call.services.users
    rows: list[Row] = []
    below, more = None, True
    if given.in_ is not None:
        conv, more = call.known(given.in_, call.user), False
        row = await users.row(call.user, conv)
        if row is None:
            raise NotFound
        rows = [row]
    while more and len(rows) < MAX_CONVERSATIONS:
        page = await users.conversations(call.user, below)
        rows += page.rows
        below, more = page.below, page.more
    of: dict[int, dict[str, int]] = {}
    for row in rows:
        of.setdefault(keys.partition(row.conversation), {})[row.conversation] = row.changed if row.left else MAX_INTEGER
    return of, more


def _questions(
    given: SearchQuery, phrases: tuple[Phrase, ...], of: Mapping[int, dict[str, int]], place: Place, limit: int
) -> dict[int, Question]:
    """What each partition is asked: for candidates behind a place."""
    tags = (*((documents.by(given.from_),) if given.from_ else ()), *((documents.has(given.has),) if given.has else ()))
    below = MAX_ORDER if given.before is None else order_of(given.before)
    above = 0 if given.after is None else order_of(given.after + 1) - 1
    order, last = place
    return {
        part: Question(phrases, convs, tags, min(below, order + (part > last)), above, limit)
        for part, convs in of.items()
    }


async def _checked(call: Call, given: SearchQuery, phrases: tuple[Phrase, ...], candidate: Candidate) -> Hit | None:
    """The hit of a candidate, if the user sees it and its text, as it is now, has what was asked for."""
    message = await _visible(call, candidate.conversation, candidate.seq)
    if message is None or message.type != "message" or given.from_ not in (None, message.from_):
        return None
    if candidate.edit:
        edit = await _visible(call, candidate.conversation, candidate.edit)
        if edit is None:
            return None
        message = documents.edited(message, edit)
    snippet = found(phrases, documents.searched(message))
    if snippet is None or (given.has is not None and given.has not in documents.contents(message)):
        return None
    return Hit(candidate.conversation, candidate.seq, message.at, message.from_, snippet.text, snippet.marks)


async def _visible(call: Call, conv: str, seq: int) -> Indexed | None:
    """An event, if the user sees it."""
    try:
        page = await reply_of(call.services.conversations.range, conv, call.user, seq - 1, seq, 1)
    except NotFound:
        return None
    return indexed(page.events[0]) if page.events else None

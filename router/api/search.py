"""Searching the messages that a user may see.

The index names candidates (`router/search`). Whether one is a hit is decided here, from the log: the user must see the
message and its last edit now, and the text as it is now must have what was asked for.
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
from router.search import documents
from router.search.documents import Indexed, indexed
from router.search.index import MAX_ORDER, Candidate, Question, order_of
from router.search.query import Phrase, found, phrases_of
from router.store.answers import reply_of

if TYPE_CHECKING:
    from router.search.parts import Search

MAX_CONVERSATIONS: Final = 10_000  # of a user that are searched, those that moved last
ROUNDS: Final = 5  # of questions for one answer, if the log refuses candidates
FIRST: Final = (MAX_ORDER, 0)
_CURSOR: Final = re.compile(r"([0-9]{1,19})\.([0-9]{1,3})\Z", re.ASCII)

Place = tuple[int, int]  # order and partition of a candidate: answers go on behind it


async def search(call: Call, given: SearchQuery) -> Found:
    """Search the messages that the user may see, the newest first."""
    phrases, place = phrases_of(given.q), _place(given.cursor)
    await reply_of(call.services.users.spend_query, call.user)
    of, incomplete = await _conversations(call, given)
    asked = cast("Search", call.services.search).ask  # the table has this call only where there is search
    hits: list[Hit] = []
    more = bool(of)
    for _ in range(ROUNDS):
        if not more or len(hits) == given.limit:
            break
        wanted = given.limit - len(hits)
        answers = await asked(_questions(given, phrases, of, place))
        incomplete = incomplete or answers.incomplete
        merged = sorted(_places(answers.candidates), key=_behind)
        more = len(merged) > wanted or any(len(some) == given.limit for some in answers.candidates.values())
        checked = await asyncio.gather(*(_checked(call, given, phrases, one) for _, one in merged[:wanted]))
        hits += [hit for hit in checked if hit is not None]
        if merged:
            part, last = merged[:wanted][-1]
            place = last.order, part
    return Found(hits, more, f"{place[0]}.{place[1]}" if more else "", incomplete)


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


async def _conversations(call: Call, given: SearchQuery) -> tuple[dict[int, list[str]], bool]:
    """The conversations that are searched, by partition, and whether there are too many to search all of them."""
    if given.in_ is not None:
        conv = call.known(given.in_, call.user)
        return {keys.partition(conv): [conv]}, False
    of: dict[int, list[str]] = {}
    count, below, more = 0, None, True
    while more and count < MAX_CONVERSATIONS:
        page = await call.services.users.conversations(call.user, below)
        for row in page.rows:
            of.setdefault(keys.partition(row.conversation), []).append(row.conversation)
        count, below, more = count + len(page.rows), page.below, page.more
    return of, more


def _questions(
    given: SearchQuery, phrases: tuple[Phrase, ...], of: Mapping[int, list[str]], place: Place
) -> dict[int, Question]:
    """What each partition is asked: for candidates behind a place."""
    tags = (*((documents.by(given.from_),) if given.from_ else ()), *((documents.has(given.has),) if given.has else ()))
    below = MAX_ORDER if given.before is None else order_of(given.before)
    above = 0 if given.after is None else order_of(given.after + 1) - 1
    order, last = place
    return {
        part: Question(phrases, convs, tags, min(below, order + (part > last)), above, given.limit)
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

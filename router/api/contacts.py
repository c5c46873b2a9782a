"""Contacts and blocks.

The record of the two users decides (`store/pairs.py`). A call never shows what the other user did about it: a request
that was declined, met a block or found no room gets the answers of one that waits.
"""

from __future__ import annotations

from router.api.call import Call
from router.api.review import review_contact
from router.api.types.contacts import (
    Block,
    Blocks,
    Contact,
    ContactAnswer,
    ContactRequest,
    Contacts,
    ContactsQuery,
    PageQuery,
)
from router.contract import keys, metrics
from router.contract.errors import BadCommand, Conflict, NotFound, Quota
from router.store.answers import reply_of
from router.store.pairs import Change, PairAction
from router.store.people import Counts, Person

MAX_CONTACTS = 5000
MAX_BLOCKS = 5000
MAX_OUTGOING = 100
MAX_INCOMING = 500  # as set_relation.lua has it

_STATES = {"c": "contact", "i": "incoming", "o": "outgoing"}


async def list_contacts(call: Call, given: ContactsQuery) -> Contacts:
    """List the user's contacts and requests, ordered by name."""
    now = await call.services.presence.clock_ms()
    people = await call.services.people.everybody(call.user)
    states = {user: _STATES[person.kind] for user, person in people.items() if person.counts(now)}
    names = sorted(
        user for user, state in states.items() if user > given.after and given.state in (None, state)
    )  # fmt: skip
    listed = [_contact(user, people[user], states[user]) for user in names[: given.limit]]
    return Contacts(listed, len(names) > given.limit)


def _contact(user: str, person: Person, state: str) -> Contact:
    return Contact(user, state, person.message or None, person.at, person.until or None)


async def get_contact(call: Call, _: None) -> Contact:
    """Get one contact or request."""
    other = call.path["user"]
    now = await call.services.presence.clock_ms()
    record = await reply_of(call.services.pairs.read, call.user, other) if other != call.user else None
    entry = record.entry(call.user, other, now) if record else None
    if entry is None:
        raise NotFound("no such contact")
    return Contact(other, entry.state, entry.message or None, entry.at, entry.until or None)


async def put_contact(call: Call, given: ContactRequest) -> ContactAnswer:
    """Ask a user to be a contact, or accept their request. A request lasts 30 days.

    While the request is open, another one changes nothing. If the other user declined it, it is shown to them again
    by a call a day later at the earliest.
    """
    user, other = call.user, await _other(call)
    services = call.services
    before = await reply_of(services.pairs.change, user, other, "look", "", 0)
    if before.record is not None and before.record.of[user].blocked:
        raise Conflict("you block this user: unblock them first")
    entry = before.entry(user, other)
    if entry is None or entry.state == "incoming":
        counts = await services.people.counts(user)
        _require_room(counts)
        if entry is None:
            if counts.outgoing >= MAX_OUTGOING:
                raise Quota(f"at most {MAX_OUTGOING} requests may be open: cancel some, or wait for answers")
            await review_contact(call, other, given.message or "")
            await reply_of(services.users.spend_request, user)
    profile = await services.profiles.read(other)
    welcome = profile is not None and profile.privacy.requests == "everyone"
    reaches = (await services.people.counts(other)).incoming < MAX_INCOMING and welcome
    change = await _change(call, other, "ask", given.message or "", int(reaches))
    made = change.entry(user, other)
    return ContactAnswer(other, made.state if made is not None else "outgoing")


async def accept_contact(call: Call, _: None) -> ContactAnswer:
    """Accept a user's request."""
    user, other = call.user, await _other(call)
    record = await reply_of(call.services.pairs.read, user, other)
    if record is None or not record.contact:
        _require_room(await call.services.people.counts(user))
    change = await _change(call, other, "accept")
    made = change.entry(user, other)
    return ContactAnswer(other, made.state if made is not None else "contact")


async def delete_contact(call: Call, _: None) -> None:
    """End a contact, cancel one's own request, or decline a user's request. The asker is not told of a decline."""
    if call.path["user"] != call.user:
        await _change(call, call.path["user"], "remove")


async def list_blocks(call: Call, given: PageQuery) -> Blocks:
    """List the users whom the user blocks, ordered by name."""
    people = await call.services.people.everybody(call.user)
    names = sorted(user for user, person in people.items() if person.blocks and user > given.after)
    return Blocks([Block(user, people[user].at) for user in names[: given.limit]], len(names) > given.limit)


async def put_block(call: Call, _: None) -> None:
    """Block a user: neither can write to the other directly from now on, and a contact ends.

    The other user is not told; they see what a stranger sees of somebody who takes messages from contacts only.
    """
    user, other = call.user, await _other(call)
    record = await reply_of(call.services.pairs.read, user, other)
    blocks = record is not None and bool(record.of[user].blocked)
    if not blocks and (await call.services.people.counts(user)).blocks >= MAX_BLOCKS:
        raise Quota(f"at most {MAX_BLOCKS} users may be blocked: unblock some first")
    await _change(call, other, "block")


async def delete_block(call: Call, _: None) -> None:
    """Unblock a user. What was refused meanwhile does not come, and a contact that ended does not come back."""
    if call.path["user"] != call.user:
        await _change(call, call.path["user"], "unblock")


async def _other(call: Call) -> str:
    """The user in the path, who exists and is another one."""
    other = call.path["user"]
    if other == call.user:
        raise BadCommand("name another user")
    if not await reply_of(call.services.users.exists, other):
        raise NotFound("no such user")
    return other


def _require_room(counts: Counts) -> None:
    if counts.contacts >= MAX_CONTACTS:
        raise Quota(f"at most {MAX_CONTACTS} contacts: remove some first")


async def _change(call: Call, other: str, action: PairAction, argument: str = "", number: int = 0) -> Change:
    change = await call.services.contacts.change(call.user, other, action, argument, number)
    metrics.PAIR_CHANGES.labels(action).inc()
    kept = call.services.durability.at_conversation(keys.direct(call.user, other)).when_kept
    await reply_of(kept, change.replid)
    return change

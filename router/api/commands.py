"""Commands of the client protocol as HTTP calls.

`POST /v1/commands` accepts `delete` and `state`; other commands have calls of their own, or need a socket. The device
is `api/<Linnet-Device>`, which has its own numbers `n`. A server key deletes any message, as the server: the event
names no author. So does a moderator where their own role does not allow it, unless the author has a role in the
deployment that is not lower.
"""

from __future__ import annotations

from hashlib import blake2b
from typing import Final

from msgspec import Raw

from router.api.call import Call
from router.api.moderation import spend_act
from router.api.state import write_key
from router.api.types.commands import CommandAnswer
from router.contract import keys, stamp, wire
from router.contract.addressing import visible
from router.contract.errors import BadCommand, NotFound, ReadOnly
from router.contract.packing import json_of_value, pack
from router.contract.state import NULL, check_key, pack_value
from router.store.accounts import rank_of
from router.store.answers import reply_of
from router.store.appends import Append, Appended

DEVICE_HEADER: Final = "linnet-device"


async def run_command(call: Call, given: wire.Delete | wire.State) -> CommandAnswer:
    """Run one command of the client protocol, and return the event that answers it.

    `delete`: one's own message; as owner or admin any there; as moderator those of users of a lower rank anywhere; with
    a server key any. `state`: a key of the user's state.
    """
    device = call.request.headers.get(DEVICE_HEADER, "default")
    if not wire.is_name(device):
        raise BadCommand("Linnet-Device must be the name of a device: 1-64 of A-Z a-z 0-9 . _ -")
    if isinstance(given, wire.Delete):
        return CommandAnswer(await _delete(call, given, device))
    value = pack_value(given.value)
    written = await write_key(call, check_key(given.key), value, given.expect)
    shown = Raw(json_of_value(value or NULL))
    return CommandAnswer(
        wire.StateEvent(id=given.id, key=given.key, value=shown, version=written.version, prev=written.prev)
    )


async def _delete(call: Call, given: wire.Delete, device: str) -> wire.AckEvent:
    user = call.actor or ""
    conv = visible(None, given.conversation) if call.caller.rank else call.known(given.conversation)
    call.services.durability.at_conversation(conv).require_fit()
    append = _append(call, given, conv, user, f"api/{device}")
    try:
        answer = await reply_of(call.services.appends.append, append)
    except (NotFound, ReadOnly):
        if not user or not call.caller.rank or not await _outranks(call, conv, given.seq):
            raise
        await spend_act(call)
        # As the server, whose events name no author; so the device, which others see, does not name the moderator.
        hidden = blake2b(f"{user}/{device}".encode(), digest_size=16).hexdigest()
        append = _append(call, given, conv, "", f"api/{hidden}")
        answer = await reply_of(call.services.conversations.append_moderation, append, user)
    if answer.written and conv[0] == keys.DIRECT and not call.services.conversations.delivers:
        _deliver(call, append, answer)
    await reply_of(call.services.durability.at_conversation(conv).when_kept, answer.replid)
    return wire.AckEvent(
        id=given.id, n=given.n, conversation=conv, seq=answer.seq, at=answer.at, duplicate=answer.duplicate
    )


async def _outranks(call: Call, conv: str, seq: int) -> bool:
    """Whether a moderator may delete this message: their own, or of a user whose rank is lower. True if it is gone."""
    page = await reply_of(call.services.conversations.range, conv, None, seq - 1, seq, 1)
    author = stamp.author(page.events[0]).from_ if page.events else ""
    if author in ("", call.actor):
        return True
    return rank_of(await call.services.accounts.roles(author) or ()) < call.caller.rank


def _append(call: Call, given: wire.Delete, conv: str, user: str, device: str) -> Append:
    fields = {"target": pack(given.seq)}
    return Append(
        conversation=conv,
        user=user,
        device=device,
        n=given.n,
        done=given.done,
        fingerprint=stamp.fingerprint(pack("delete"), *fields.values()),
        tail=stamp.tail("delete", conv, user, device, given.n, fields),
        action="delete",
        target=given.seq,
        server=not user,
    )


def _deliver(call: Call, append: Append, answer: Appended) -> None:
    """Deliver to both users. A router repeats a delivery that is lost here."""
    conv, deliver = append.conversation, call.services.users.deliver
    event = stamp.fill(append.tail, stamp.Slots(answer.seq, answer.prev, answer.count, answer.at))
    for user in {*keys.parties(conv)}:
        other = keys.other_party(conv, user)
        deliver(user, conv, other, answer.seq, answer.count, event, False, append.target, _ignore)


def _ignore(_: object) -> None:
    """Ignore a failed delivery, which a router repeats."""

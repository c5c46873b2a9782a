"""Sending and reading messages as HTTP calls.

A resent message takes effect once if its sender identifies it: by the `n` of a device, as on a socket, or by an
`Idempotency-Key`. The value of a key is first the device and `n` that this process chose for it, so that a resend on
another router is the same send in the log; after the send it is the answer.

Devices of this API are `api/<name>`; no client can have such a name.
"""

from __future__ import annotations

from functools import partial
from hashlib import blake2b
from typing import Any, Final, cast

import msgspec
from msgspec import Struct

from router.api.call import Call
from router.api.types.messages import Events, EventsQuery, LoggedEvent, NewMessage, Sent
from router.contract import files, keys, packing, stamp
from router.contract.addressing import target_of
from router.contract.errors import BadCommand, Blocked, Conflict, Forbidden, NotFound
from router.store.answers import reply_of
from router.store.appends import Append, Appended
from router.store.attaching import REFUSED

KEY_CHARACTERS: Final = 255


class KeyedSend(Struct, frozen=True):
    """The send that an Idempotency-Key identifies: its content's fingerprint, device and n, and its result once known.

    Redis stores it as JSON, whose field names older routers read.
    """

    content: str = msgspec.field(name="print")
    device: str
    n: int
    seq: int = 0
    at: int = 0


class Message(Struct, frozen=True):
    """A message to send, with its packed fields."""

    conversation: str
    user: str
    target: int
    fields: dict[str, bytes]
    files: tuple[files.SharedFile, ...]

    @property
    def content(self) -> tuple[bytes, ...]:
        """The fields in which a resend must equal the first send."""
        return (*self.fields.values(), *files.content(self.files))


_decode_keyed = msgspec.json.Decoder(KeyedSend).decode
_TRUE: Final = packing.pack(True)


async def send_message(call: Call, given: NewMessage) -> Sent:
    """Send a message; the first direct one (`@user`) creates the conversation."""
    user = await _sender(call, given)
    conv = target_of(user, given.to)
    fields = {"media": packing.pack(given.media), "body": packing.pack_body(given.body)}
    if given.reply_to is not None:
        fields["reply_to"] = packing.pack(given.reply_to)
    message = Message(conv, user, given.reply_to or 0, fields, files.shared(given.files))
    send = partial(_send, call, message)
    if given.n is not None:
        return await send(f"api/{given.device or 'default'}", given.n, given.done)
    if given.device is not None:
        raise BadCommand("`device` needs `n`")
    if key := call.request.headers.get("idempotency-key"):
        return await _send_once(call, message, key)
    # A backend's message needs no row, because it cannot be sent again. A user's gets one, because it has their rate.
    numbers = call.services.event_numbers
    return await send(numbers.device, numbers.next(), 0, row=not call.caller.server)


async def _sender(call: Call, given: NewMessage) -> str:
    if not call.caller.server:
        if given.from_ not in (None, call.caller.user):
            raise Forbidden("`from` must be the user of the token")
        return call.user
    user = given.from_ or call.user
    await call.services.accounts.ensure(user)
    return user


async def _send_once(call: Call, message: Message, key: str) -> Sent:
    """Send the message of an Idempotency-Key, or return the answer of the first send within a day."""
    if len(key) > KEY_CHARACTERS:
        raise BadCommand(f"an Idempotency-Key must have at most {KEY_CHARACTERS} characters")
    key_hash = blake2b(key.encode(), digest_size=16).hexdigest()
    user, conv = message.user, message.conversation
    content = stamp.fingerprint(packing.pack(conv), *message.content).hex()
    numbers = call.services.event_numbers
    keyed = KeyedSend(content, numbers.keyed_device, numbers.next())
    found = await call.services.pushes.claim_idempotency_key(user, key_hash, msgspec.json.encode(keyed).decode())
    if found is not None:
        keyed = _decode_keyed(found)
        if keyed.content != content:
            raise Conflict("this Idempotency-Key was used for another message: use a new one")
        if keyed.seq:
            return Sent(conv, keyed.seq, keyed.at, keyed.device, keyed.n, True)
    sent = await _send(call, message, keyed.device, keyed.n, 0)
    answered = msgspec.structs.replace(keyed, seq=sent.seq, at=sent.at)
    await call.services.pushes.set_idempotency_answer(user, key_hash, msgspec.json.encode(answered).decode())
    return sent


async def _send(call: Call, message: Message, device: str, n: int, done: int, row: bool = True) -> Sent:
    server, conv, user, fields = call.caller.server, message.conversation, message.user, message.fields
    call.services.durability.at_conversation(conv).require_fit()
    attached = await reply_of(call.services.files.attach, user, conv, message.files) if message.files else None
    if attached is not None and attached.infos:
        fields = fields | {"files": packing.pack(attached.infos)}
    append = Append(
        conversation=conv,
        user=user,
        device=device,
        n=n if row else 0,
        done=done,
        fingerprint=stamp.fingerprint(packing.pack("message"), *message.content),
        tail=stamp.tail("message", conv, user, device, n, fields | {"server": _TRUE} if server else fields),
        server=server,
        target=message.target,
        files=None if attached is None else attached.pins,
    )
    appends = call.services.appends
    try:
        answer = await reply_of(appends.append, append)
    except NotFound:
        if conv[0] != keys.DIRECT or attached is REFUSED:
            raise
        other = keys.other_party(conv, user)
        await reply_of(call.services.direct.create, user, other, not call.caller.server)
        answer = await reply_of(appends.append, append)
    except Blocked as blocked:
        if conv[0] != keys.DIRECT:
            raise
        await reply_of(call.services.direct.refused, user, conv, blocked)
        answer = await reply_of(appends.append, append)
    if answer.written:
        _deliver(call, append, answer)
    await reply_of(call.services.durability.at_conversation(conv).when_kept, answer.replid)
    return Sent(conv, answer.seq, answer.at, device, n, answer.duplicate)


def _deliver(call: Call, append: Append, answer: Appended) -> None:
    """Deliver a direct event to both users, and raise the author's read mark. A router repeats lost deliveries."""
    users, conv, author = call.services.users, append.conversation, append.user
    if conv[0] != keys.DIRECT:
        if not append.server:
            users.read(author, conv, answer.seq, answer.count, _ignore)
        return
    if call.services.conversations.delivers:
        return
    event = stamp.fill(answer.tail or append.tail, stamp.Slots(answer.seq, answer.prev, answer.count, answer.at))
    other = keys.other_party(conv, author)
    if other != author:
        users.deliver(other, conv, author, answer.seq, answer.count, event, False, 0, _ignore)
    users.deliver(author, conv, other, answer.seq, answer.count, event, not append.server, 0, _ignore)


def _ignore(_: object) -> None:
    """Ignore a failed delivery, which a router repeats."""


async def get_events(call: Call, given: EventsQuery) -> Events:
    """Get the events of a conversation's log that the user may see."""
    return await read_log(call, call.conversation, call.actor, given)


async def read_log(call: Call, conv: str, user: str | None, given: EventsQuery) -> Events:
    """The events that the user sees; None sees all."""
    store = call.services.conversations
    if isinstance(given.after, int):
        page = await reply_of(store.range, conv, user, given.after, packing.MAX_INTEGER, given.limit)
    else:
        before = given.before if isinstance(given.before, int) else packing.MAX_INTEGER
        page = await reply_of(store.range_before, conv, user, before, given.limit)
    events = [msgspec.Raw(packing.json_of_packed(event)) for event in page.events]
    return Events(conv, cast("list[LoggedEvent]", cast("Any", events)), page.more, page.floor)

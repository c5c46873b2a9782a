"""Conversations in their slot: appending events, reading the log, membership, titles, signals.

What lives here: keys, arguments and replies of the functions that touch `{c<p>}`, and nothing they decide. What never
does: a user's own view (`users`), what routers still have to finish (`dirty`), retries.

Invariants
- A function is the only writer of its keys and is atomic; so no method here reads in order to write.
- Hot methods take `reply`, which gets the value or a `LinnetError`, once, later; they never raise. Cold ones are
  coroutines and raise.
- Whoever may not see a conversation gets `NotFound`, the same as for one that does not exist.

A user sees the events whose seq is in [joined, left]: joined = 0 for founders and in channels, else the seq of the
`member` event that let her in; left = the seq of the one that put her out.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache, partial
from struct import Struct as Packing
from struct import unpack as struct_unpack
from typing import Any, Final, Literal, TypeAlias, TypeVar

import msgspec

from router.contract import keys
from router.contract.errors import BadCommand, LinnetError, NotFound, from_function
from router.contract.keys import Channels
from router.contract.packing import pack
from router.contract.stamp import Tail, tail
from router.store.redis.client import Client, RedisArg
from router.store.redis.connection import CommandTemplate
from router.store.redis.decoding import answer, unreadable

T = TypeVar("T")
Reply: TypeAlias = Callable[[T | LinnetError], None]

Action = Literal["message", "edit", "delete", "react"]
MemberAction = Literal["put", "remove", "join"]
Reacting = Literal["all", "members"]

CONVERSATIONS_PER_CALL: Final = 50  # the server does nothing else for about as many µs
ROLES: Final = {"owner": "o", "admin": "a", "member": "m", "reader": "r"}
ROLE_NAMES: Final = {char: name for name, char in ROLES.items()}
MAX_MEMBERS: Final = 100_000
CREATE_LIMIT: Final = 1000
PAGE_BYTES: Final = 1 << 20
MEMBERS_STEP: Final = 1000
CACHED_TEMPLATES: Final = 1 << 13  # of a kilobyte
_META: Final = Packing(">QQII16sQ")
_FACTS: Final = Packing(">QQQQ8s?c")  # as append.lua reads them
_ANSWER: Final = Packing(">QQQQB16s")
_RATE_MAX: Final = 2**32 - 1  # µs, as `m` holds them


class Append(msgspec.Struct, frozen=True):
    """One event to append. `n` = 0: no row that would tell a resend, and no rate; `server`: no rate."""

    conversation: str
    user: str
    device: str
    n: int
    done: int
    fingerprint: bytes
    tail: Tail
    action: Action = "message"
    target: int = 0
    seen: int = 0
    server: bool = False


class Appended(msgspec.Struct, frozen=True):
    """What became of it. `prev` and `count` are 0 if nothing was written, that is, for a duplicate and for a reaction
    that was there already; so is `at` if the event has left the log. `how` as append.lua says it.
    """

    seq: int
    prev: int
    count: int
    at: int
    how: int
    replid: bytes

    @property
    def written(self) -> bool:
        return self.how == 0

    @property
    def duplicate(self) -> bool:
        return self.how == 1


class Change(msgspec.Struct, frozen=True):
    """What a membership call did; for `none` the slots are 0 but `seq`, the seq of the user's last change."""

    action: Literal["add", "role", "remove", "none"]
    seq: int
    role: str
    prev: int
    count: int
    at: int


class Head(msgspec.Struct, frozen=True):
    """Where a conversation stands. `at`: of the last event (of its making before the first).

    `deleted`: seqs of the messages that were deleted last, the newest deletion last. `server`: the replication id of
    the server that wrote last.
    """

    seq: int
    count: int
    at: int
    version: int
    floor: int
    routed: int
    kind: str
    title: str
    size: int = 0
    deleted: tuple[int, ...] = ()
    server: bytes = b""


class Page(msgspec.Struct, frozen=True):
    """Events of a log, ascending. `position`: the reader has now everything up to there (backwards: from there on)."""

    events: list[bytes]
    position: int
    floor: int
    more: bool


class ReadPosition(msgspec.Struct, frozen=True):
    """A seq clamped to what the user sees, how many messages there were up to it, and how many above it are deleted."""

    seq: int
    count: int
    size: int
    kind: str
    deleted_above: int = 0


class Members(msgspec.Struct, frozen=True):
    """Some of the present members and their roles; `cursor` = 0 after the last page."""

    roles: dict[str, str]
    cursor: int


class Description(msgspec.Struct, frozen=True):
    """A conversation for the API; `role` is that of the user who asked ("" for the server)."""

    conversation: str
    kind: str
    title: str
    head: int
    count: int
    at: int
    made: int
    size: int
    version: int
    role: str
    reacting: Reacting


class Conversations:
    """`cap`: events a log may have at worst, when no router trims it."""

    def __init__(self, client: Client, cap: int) -> None:
        self._client = client
        self._cap = cap
        self._channels = client.channels
        self._template = lru_cache(maxsize=CACHED_TEMPLATES)(self._append_template)

    # -- writing

    @property
    def delivers(self) -> bool:
        """Whether `append` brings direct events to their users itself. Else that is its caller's: `users.deliver`."""
        return self._client.one_server

    def append(self, a: Append, reply: Reply[Appended]) -> None:
        """Append an event, once for its (user, device, n)."""
        event = a.tail
        facts = _FACTS.pack(a.n, a.done, a.seen, a.target, a.fingerprint, not a.server, event.first)
        template = self._template(a.conversation, a.user, a.device, a.action)
        self._client.call_template("append", template, (facts, event.rest), partial(_appended_to, reply))

    def _append_template(self, conv: str, user: str, device: str, action: Action) -> CommandTemplate:
        """What all events of one device in one conversation tell `append` alike."""
        where, channel = _keys_and_channel(self._channels, conv)
        parties = _parties(self._channels, conv, user) if not channel and self.delivers else ()
        first = (conv, channel, self._cap, user, f"{user}/{device}", action)
        return self._client.template("append", where, first, 2, parties)

    async def create(
        self, conv: str, kind: str, title: str, members: Mapping[str, str], cost_us: int, burst_us: int
    ) -> bool:
        """Make a conversation with its founders (user → role char); False if it is there already."""
        if len(members) > CREATE_LIMIT:
            raise BadCommand(f"name {CREATE_LIMIT} members at a time")
        args = _creation(conv, kind, title, members, cost_us, burst_us)
        return bool(await self._fcall("create", (keys.conversation(conv),), args))

    def create_direct(self, user: str, other: str, cost_us: int, burst_us: int, reply: Reply[bool]) -> None:
        """Make the direct conversation of two users; False if it is there already."""
        conv = keys.direct(user, other)
        args = _creation(conv, keys.DIRECT, "", {user: "m", other: "m"}, cost_us, burst_us)
        self._client.call("create", (keys.conversation(conv),), args, partial(_answer, reply, bool))

    async def member(
        self,
        conv: str,
        actor: str | None,
        user: str,
        action: MemberAction,
        role: str | None = "m",
        *,
        device: str = "",
        n: int = 0,
        max_members: int = MAX_MEMBERS,
    ) -> Change:
        """Put, remove or join; `actor` None is the server, who may do anything. (device, n): the event's own.

        `role` None: a member keeps the role, anybody else becomes a member. Of the last member of a group who leaves
        the slots are 0: the group has ended.
        """
        by = actor or ""
        if action == "join":
            role = "r"
        once = _member_tail(conv, by, device, n, user, "remove" if action == "remove" else "add", role or "m")
        again = _member_tail(conv, by, device, n, user, "role", role or "m")
        where, channel = _keys_and_channel(self._channels, conv)
        args = (conv, channel, self._cap, by, user, action, role or "", max_members)
        event = (once.first, once.rest, again.first, again.rest)
        change, role_now, *slots = await self._fcall("member", where, (*args, *event))
        return Change(change.decode(), slots[0], role_now.decode(), *slots[1:])

    async def title(
        self,
        conv: str,
        actor: str | None,
        title: str | None,
        *,
        reacting: Reacting | None = None,
        device: str = "",
        n: int = 0,
    ) -> Appended:
        """Change the title of a group or channel, or who may react there; None leaves it as it is."""
        by = actor or ""
        changed = {"reacting": pack(reacting)} if reacting else {}
        event = tail("title", conv, by, device, n, {**changed, "title": b""})  # the function ends it with the title
        where, channel = _keys_and_channel(self._channels, conv)
        change = (int(title is not None), title or "")
        args = (conv, channel, self._cap, by, *change, event.first, event.rest, reacting or "")
        return _appended(await self._fcall("title", where, args))

    async def block(self, conv: str, user: str, blocked: bool) -> bool:
        """Whether `user` may write in this direct conversation; True if that is new."""
        return bool(await self._fcall("block", (keys.conversation(conv),), (user, int(blocked))))

    async def remove_conversation(self, conv: str, actor: str | None) -> int:
        """Take the conversation out of the world; answers the seq of that change. Every call is `NotFound` then."""
        seq: int = await self._fcall("remove_conversation", _keys(conv), (conv, actor or ""))
        return seq

    async def gone(self, conv: str) -> int:
        """The seq at which the conversation was removed; 0 if it was not."""
        return int(await self._client.fetch("HGET", keys.conversation(conv), "gone") or 0)

    def whisper(self, conv: str, user: str, payload: bytes, reply: Reply[int] | None = None) -> None:
        """Publish a signal on the conversation's channel for a present member; answers the conversation's size."""
        args = (self._channels.conversation(conv), user, payload)
        then = _ignore if reply is None else partial(_answer, reply, int)
        self._client.call("whisper_group", (keys.conversation(conv),), args, then)

    # -- reading

    def heads(self, convs: Sequence[str], reply: Reply[list[Head | None]]) -> None:
        """Heads in the order asked for; None for what does not exist (any more)."""
        _Heads(self._client, convs, reply)

    def range(self, conv: str, user: str | None, after: int, upto: int, limit: int, reply: Reply[Page]) -> None:
        """Events in (after, upto], as `user` sees them; None sees all."""
        args = (user or "", after, upto, limit, PAGE_BYTES)
        self._client.call("range", _keys(conv)[:2], args, partial(_answer, reply, _page))

    def before(self, conv: str, user: str | None, before: int, limit: int, reply: Reply[Page]) -> None:
        """The last events below `before`."""
        args = (user or "", before, limit, PAGE_BYTES)
        self._client.call("before", _keys(conv)[:2], args, partial(_answer, reply, _page))

    def read_position(self, conv: str, user: str, seq: int, reply: Reply[ReadPosition]) -> None:
        """Where a read mark of the user lands."""
        self._client.call("place", _keys(conv)[:2], (user, seq), partial(_answer, reply, _read_position))

    def start(self, conv: str, user: str, read: int, reply: Reply[int]) -> None:
        """The cursor at which a device new to the server starts."""
        self._client.call("start", _keys(conv)[:2], (user, read, PAGE_BYTES), partial(_answer, reply, int))

    def roles(self, conv: str, users: Sequence[str], reply: Reply[list[str]]) -> None:
        """The role char of each user, "" for who is no present member."""
        fields = [f"u:{user}" for user in users]
        self._client.command(
            "HMGET", keys.conversation(conv), "m", *fields, reply=partial(_answer, reply, _present_roles)
        )

    def own_roles(self, convs: Sequence[str], user: str, reply: Reply[list[str]]) -> None:
        """Return the role char of one user in each conversation, "" where the user is no present member.

        At most `max_per_call` conversations: a function that reads many keys holds up the server meanwhile.
        """
        self._client.call(
            "own_roles", [keys.conversation(conv) for conv in convs], (user,), partial(_answer, reply, _own_roles)
        )

    @property
    def max_per_call(self) -> int:
        """How many conversations' slots a call may touch."""
        return CONVERSATIONS_PER_CALL if self._client.one_server else 1

    async def members(self, conv: str, user: str | None = None, cursor: int = 0) -> Members:
        """A page of the present members, of a removed conversation too if the server asks (`user` None)."""
        key = keys.conversation(conv)
        if user is not None and not _present_roles(await self._client.fetch("HMGET", key, "m", f"u:{user}"))[0]:
            raise NotFound
        following, found = await self._client.fetch("HSCAN", key, cursor, "MATCH", "u:*", "COUNT", MEMBERS_STEP)
        rows = zip(found[::2], found[1::2], strict=True)
        return Members({name[2:].decode(): chr(row[0]) for name, row in rows if row[:1] != b"-"}, int(following))

    async def heir(self, conv: str, leaving: str) -> str:
        """The user who is to own the conversation after `leaving`; "" for none.

        An admin, else a member, each time the one who was added first; then a reader of a group. Readers of a channel
        may have joined by themselves, so none of them.
        """
        ranks = "am" if conv[0] == keys.CHANNEL else "amr"
        candidates: dict[str, tuple[int, int]] = {}
        added: dict[str, int] = {}
        cursor = -1
        while cursor:
            following, found = await self._client.fetch(
                "HSCAN", keys.conversation(conv), max(cursor, 0), "MATCH", "[ua]:*", "COUNT", MEMBERS_STEP
            )
            cursor = int(following)
            for field, value in zip(found[::2], found[1::2], strict=True):
                user = field[2:].decode()
                if field[:1] == b"a":
                    added[user] = int(value)
                elif user != leaving and (rank := ranks.find(chr(value[0]))) >= 0:
                    candidates[user] = rank, int(value.split()[1])
        order = [(rank, added.get(user, joined), user) for user, (rank, joined) in candidates.items()]
        return min(order)[2] if order else ""

    async def scan(self, cursor: int, count: int) -> tuple[list[str], int]:
        """Some of all conversations, and the cursor of the next call, 0 after the last; about `count` keys are read."""
        following, found = await self._client.fetch(
            "SCAN", cursor, "MATCH", keys.EVERY_CONVERSATION, "COUNT", count, "TYPE", "hash"
        )
        return [keys.conversation_of(key) for key in found], int(following)

    async def describe(self, conv: str, user: str | None) -> Description:
        """All about a conversation, for a present member or the server."""
        fields = ("m", f"u:{user or ''}", "kind", "title", "made", "size", "ver", "reacting")
        m, row, kind, title, made, size, version, reacting = await self._client.fetch(
            "HMGET", keys.conversation(conv), *fields
        )
        role = _present_roles([m, row])[0]
        if m is None or (user is not None and not role):
            raise NotFound
        seq, count, _, _, _, at = _META.unpack(m)
        return Description(
            conv,
            kind.decode(),
            title.decode(),
            seq,
            count,
            at,
            int(made),
            int(size),
            int(version),
            role,
            "members" if reacting == b"members" else "all",
        )

    async def _fcall(self, function: str, where: Sequence[str], args: Sequence[RedisArg]) -> Any:
        try:
            return await self._client.fcall(function, where, args)
        except LinnetError as error:
            raise from_function(error) from None


class _Heads:
    """The pipelined reads of one `heads` call, and its one answer."""

    __slots__ = ("_heads", "_missing", "_reply")

    def __init__(self, client: Client, convs: Sequence[str], reply: Reply[list[Head | None]]) -> None:
        self._reply = reply
        self._missing = len(convs)
        self._heads: list[Head | None] = [None] * len(convs)
        if not convs:
            asyncio.get_running_loop().call_soon(reply, self._heads)
        for at, conv in enumerate(convs):
            client.command("HMGET", keys.conversation(conv), *_HEAD_FIELDS, reply=partial(self._take, at))

    def _take(self, at: int, value: Any) -> None:
        if self._missing <= 0:
            return  # an error has been answered
        if isinstance(value, Exception):
            self._missing = 0
            self._reply(from_function(value))
            return
        try:
            self._heads[at] = _head(value)
        except Exception as error:  # noqa: BLE001 - one damaged conversation must not cost the others their answer
            unreadable(error)
        self._missing -= 1
        if not self._missing:
            self._reply(self._heads)


_HEAD_FIELDS: Final = ("m", "ver", "floor", "routed", "kind", "title", "size", "deleted")


@lru_cache(maxsize=1 << 14)
def _keys(conv: str) -> tuple[str, str, str]:
    """The keys of a conversation: its hash, its log, and the marks for routers of its partition."""
    return keys.conversation(conv), keys.log(conv), keys.dirty(keys.partition(conv))


def _keys_and_channel(channels: Channels, conv: str) -> tuple[tuple[str, str, str], str]:
    """The keys of a conversation, and the channel of its events: none for a direct one (`users.deliver` has those)."""
    return _keys(conv), "" if conv.startswith(keys.DIRECT) else channels.conversation(conv)


def _parties(channels: Channels, conv: str, author: str) -> tuple[str, ...]:
    """Both users of a direct conversation as `append` brings an event to them: the author, whose own it is, last."""
    first, second = keys.parties(conv)
    users = dict.fromkeys((second, first) if first == author else (first, second))
    return tuple(part for user in users for part in _party(channels, user, keys.other_party(conv, user)))


def _party(channels: Channels, user: str, other: str) -> tuple[str, ...]:
    return keys.user(user), keys.convs(user), keys.recent(user), channels.user(user), other


def _creation(
    conv: str, kind: str, title: str, members: Mapping[str, str], cost_us: int, burst_us: int
) -> tuple[RedisArg, ...]:
    founders = (part for founder in members.items() for part in founder)
    rate = (min(cost_us, _RATE_MAX), min(burst_us, _RATE_MAX))
    return (conv, keys.log(conv), keys.dirty(keys.partition(conv)), kind, title, *rate, *founders)


def _member_tail(conv: str, by: str, device: str, n: int, user: str, action: str, role: str) -> Tail:
    named = None if action == "remove" else ROLE_NAMES[role]
    return tail("member", conv, by, device, n, {"user": pack(user), "action": pack(action), "role": pack(named)})


def _answer(reply: Reply[T], read: Callable[[Any], T], value: Any) -> None:
    answer(reply, lambda value: from_function(value) if isinstance(value, Exception) else read(value), value)


def _ignore(value: object) -> None:
    """A signal may be lost."""


def _appended_to(reply: Reply[Appended], value: Any) -> None:
    try:
        found = _appended(value) if type(value) is bytes else from_function(value)
    except Exception as error:  # noqa: BLE001 - as `answer`, without its call
        found = unreadable(error)
    reply(found)


def _appended(value: Any) -> Appended:
    return Appended(*_ANSWER.unpack(value))


def _page(value: Any) -> Page:
    position, floor, more, events = value
    return Page(events, position, floor, more == 1)


def _read_position(value: Any) -> ReadPosition:
    seq, count, size, kind, gone = value
    return ReadPosition(seq, count, size, kind.decode(), gone)


def _head(value: Any) -> Head | None:
    m, version, floor, routed, kind, title, size, deleted = value
    if m is None:
        return None
    seq, count, _, _, server, at = _META.unpack(m)
    where = seq, count, at, int(version), int(floor or 0), int(routed or 0)
    gone = struct_unpack(f">{len(deleted) // 8}Q", deleted) if deleted else ()
    return Head(*where, kind.decode(), title.decode(), int(size or 0), gone, server)


def _own_roles(value: Any) -> list[str]:
    return ["" if role == "-" else role for role in value.decode()]


def _present_roles(value: Any) -> list[str]:
    """Role chars from (m, member row …)."""
    m, *rows = value
    return ["" if m is None or row is None or row[:1] == b"-" else chr(row[0]) for row in rows]

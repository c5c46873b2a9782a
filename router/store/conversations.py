"""Conversations in their slot: appending events, reading the log, membership, titles, signals.

This module builds keys and arguments of the functions that use `{c<p>}` and decodes their replies; the functions
decide. A user's own rows are in `users`, the marks for routers in `dirty`.

Invariants
- Only the functions write these keys, each of them atomically, so no method here reads a value in order to write it.
- Hot methods take a callback `reply`, which later receives the value or a `LinnetError`, once; they never raise. Cold
  methods are coroutines and raise.
- If a user must not see a conversation, the error is the same `NotFound` as for one that does not exist.

A user sees the events whose seq is in [joined, left]. `joined` is 0 for founders and in channels, else the seq of the
`member` event that added the user; `left` is the seq of the event that removed them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache, partial
from typing import Any, Final, Literal, TypeVar

import msgspec

from router.contract import keys
from router.contract.errors import BadCommand, LinnetError, NotFound, from_function
from router.contract.keys import Channels
from router.contract.packing import pack
from router.contract.stamp import Tail, tail
from router.store.answers import Reply, reply_of
from router.store.appends import FACTS, RATED, ROWS_OF_FORMAT_2, Append, Appended, appended
from router.store.heads import META, Head, HeadsRead
from router.store.members import Members, present_roles
from router.store.openings import Opening, OpeningsRead, Wanted
from router.store.redis.client import Client, RedisArg
from router.store.redis.connection import CommandTemplate
from router.store.redis.decoding import answer, unreadable
from router.store.redis.scans import scan
from router.store.rules import DEFAULTS, NO_CHANGE, Rules, RulesChange, rules_of

T = TypeVar("T")

MemberAction = Literal["put", "remove", "join"]
Reacting = Literal["all", "members"]

ROLES: Final = {"owner": "o", "admin": "a", "member": "m", "reader": "r"}
CLOSED_ROLES: Final = ("b", "c")  # of a direct conversation: its user may not write to the other (prelude_pair.lua)
ROLE_NAMES: Final = {char: name for name, char in ROLES.items()}
MAX_MEMBERS: Final = 100_000
CREATE_LIMIT: Final = 1000
PAGE_BYTES: Final = 1 << 20
CACHED_TEMPLATES: Final = 1 << 13  # of a kilobyte
_RATE_MAX: Final = 2**32 - 1  # µs, as `m` holds them


class Change(msgspec.Struct, frozen=True):
    """The result of a membership call. For `none`, `seq` is of the user's last change and the other slots are 0."""

    action: Literal["add", "role", "remove", "none"]
    seq: int
    role: str
    prev: int
    count: int
    at: int


class Page(msgspec.Struct, frozen=True):
    """Events of a log, ascending. With them the reader has all events up to `position` (backwards: from it on)."""

    events: list[bytes]
    position: int
    floor: int
    more: bool


class ReadPosition(msgspec.Struct, frozen=True):
    """A seq clamped to the events that the user sees, the number of messages up to it, and of deleted ones above it.

    `open`: not a direct conversation in which one of the two may not write to the other.
    """

    seq: int
    count: int
    size: int
    kind: str
    deleted_above: int = 0
    open: bool = True


class Avatar(msgspec.Struct, frozen=True):
    """A new avatar of a conversation: its file, and the file's pin there (`store/files.py`); None and b"" for none."""

    sha256: str | None
    pins: bytes


class Description(msgspec.Struct, frozen=True):
    """A conversation for the API; `role` is that of the calling user ("" for the server)."""

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
    avatar: str | None = None
    rules: Rules = DEFAULTS
    mutes_until: int = 0  # as in `Head`


class Conversations:
    """Conversations of one Redis; `cap` is the greatest number of events in a log, reached if no router trims it."""

    def __init__(self, client: Client, cap: int) -> None:
        self._client = client
        self._cap = cap
        self.members = Members(client)
        self._channels = client.channels
        self._template = lru_cache(maxsize=CACHED_TEMPLATES)(self._append_template)

    # -- writing

    @property
    def delivers(self) -> bool:
        """Whether `append` delivers direct events to their users itself. Else its caller calls `users.deliver`."""
        return self._client.one_server

    def append(self, a: Append, reply: Reply[Appended]) -> None:
        """Append an event, once for its (user, device, n)."""
        action, given = self._given(a)
        template = self._template(a.conversation, a.user, a.device, action)
        self._client.call_template("append", template, given, partial(_appended_to, reply))

    def may_append(self, a: Append, reply: Reply[bool]) -> None:
        """Ask whether `append` would accept the event now: True, False if its `n` was accepted before, or its error."""
        action, given = self._given(a)
        where, first, parties = self._around(a.conversation, a.user, a.device, action)
        self._client.read("may_append", where, (*first, *given, *parties), partial(_answer, reply, bool))

    def append_moderation(self, a: Append, moderator: str, reply: Reply[Appended]) -> None:
        """Append a delete as the server, which `moderator` decided; "" is a server key. The audit names them."""
        flags = ROWS_OF_FORMAT_2 if self._client.row_format == 2 else 0
        facts = FACTS.pack(a.n, a.done, a.seen, a.target, a.fingerprint, flags, a.tail.first)
        template = self._template(a.conversation, a.user, a.device, "moderate")
        given = facts, a.tail.rest, moderator.encode()
        self._client.call_template("append", template, given, partial(_appended_to, reply))

    def _given(self, a: Append) -> tuple[str, tuple[bytes, ...]]:
        """The action as append.lua has it, and the arguments that no other event has."""
        flags = (0 if a.server else RATED) | (ROWS_OF_FORMAT_2 if self._client.row_format == 2 else 0)
        facts = FACTS.pack(a.n, a.done, a.seen, a.target, a.fingerprint, flags, a.tail.first)
        if a.files is not None:
            return "files", (facts, a.tail.rest, a.files)
        return a.action, (facts, a.tail.rest)

    def _around(
        self, conv: str, user: str, device: str, action: str
    ) -> tuple[tuple[str, str, str], tuple[RedisArg, ...], tuple[str, ...]]:
        """The keys, and the arguments before and behind the given ones, of a device's appends in a conversation."""
        where, channel = _keys_and_channel(self._channels, conv)
        parties = _parties(self._channels, conv, user) if not channel and self.delivers else ()
        return where, (conv, channel, self._cap, user, f"{user}/{device}", action), parties

    def _append_template(self, conv: str, user: str, device: str, action: str) -> CommandTemplate:
        where, first, parties = self._around(conv, user, device, action)
        return self._client.template("append", where, first, 3 if action in ("files", "moderate") else 2, parties)

    async def create(
        self, conv: str, kind: str, title: str, members: Mapping[str, str], cost_us: int, burst_us: int
    ) -> bool:
        """Create a conversation with its founders (user → role char); False if it exists already."""
        if len(members) > CREATE_LIMIT:
            raise BadCommand(f"name at most {CREATE_LIMIT} members at a time")
        args = _creation(self._channels, conv, kind, title, members, (cost_us, burst_us))
        return bool(await self._fcall("create", keys.of_conversation(conv), args))

    def create_direct(self, user: str, other: str, cost_us: int, burst_us: int, reply: Reply[bool]) -> None:
        """Create the direct conversation of two users; False if it exists already."""
        conv = keys.direct(user, other)
        args = _creation(self._channels, conv, keys.DIRECT, "", {user: "m", other: "m"}, (cost_us, burst_us))
        self._client.call("create", keys.of_conversation(conv), args, partial(_answer, reply, bool))

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
        """Put, remove or join a member; `actor` None is the server, which may do all. (device, n) are the event's own.

        If `role` is None, a present member keeps their role, and another user becomes a member. If the last member of a
        group leaves, the group ends and the slots of the result are 0.
        """
        by = actor or ""
        if action == "join":
            role = "r"
        once = _member_tail(conv, by, device, n, user, "remove" if action == "remove" else "add", role or "m")
        again = _member_tail(conv, by, device, n, user, "role", role or "m")
        where, channel = _keys_and_channel(self._channels, conv)
        args = (conv, channel, self._cap, by, user, action, role or "", max_members)
        event = (once.first, once.rest, again.first, again.rest, 0, "", "")
        change, role_now, *slots = await self._fcall("member", where, (*args, *event))
        return Change(change.decode(), slots[0], role_now.decode(), *slots[1:])

    async def title(
        self,
        conv: str,
        actor: str | None,
        title: str | None,
        *,
        reacting: Reacting | None = None,
        avatar: Avatar | None = None,
        rules: RulesChange = NO_CHANGE,
        device: str = "",
        n: int = 0,
    ) -> Appended:
        """Change the title, avatar or rules of a group or channel, or who may react there; None leaves it as it is."""
        by, ruled = actor or "", rules.named()
        changed = {"reacting": pack(reacting)} if reacting else {}
        changed |= {name: pack(value) for name, value in ruled.items()}
        if avatar is not None:
            changed["avatar"] = pack(avatar.sha256)
        event = tail("title", conv, by, device, n, {**changed, "title": b""})  # the function appends the title
        where, channel = _keys_and_channel(self._channels, conv)
        change = (int(title is not None), title or "")
        pins = b"" if avatar is None else avatar.pins or b"-"
        set_rules = (ruled.get(name, "") for name in ("posting", "adding", "slow_s"))
        args = (conv, channel, self._cap, by, *change, event.first, event.rest, reacting or "", pins, *set_rules)
        return appended(await self._fcall("title", where, args))

    async def remove_conversation(self, conv: str, actor: str | None) -> int:
        """Remove the conversation; return the seq of that change. All other calls are `NotFound` afterwards."""
        seq: int = await self._fcall("remove_conversation", keys.of_conversation(conv), (conv, actor or ""))
        return seq

    async def gone(self, conv: str) -> int:
        """The seq at which the conversation was removed; 0 if it was not."""
        return int(await self._client.fetch("HGET", keys.conversation(conv), "gone") or 0)

    def whisper(
        self, conv: str, user: str, payload: bytes, reply: Reply[int] | None = None, *, types: bool = False
    ) -> None:
        """Publish a signal on the conversation's channel for a present member; the reply is the conversation's size.

        `types`: it is typing, which is `ReadOnly` for a muted user.
        """
        args = (self._channels.conversation(conv), user, payload, int(types))
        then = _ignore if reply is None else partial(_answer, reply, int)
        self._client.call("whisper_group", (keys.conversation(conv),), args, then)

    # -- reading

    async def clock_ms(self, conv: str) -> int:
        """The clock of the conversation's server, by which the times of its events are."""
        return await self._client.clock_ms(keys.conversation(conv))

    def heads(self, convs: Sequence[str], reply: Reply[list[Head | LinnetError | None]]) -> None:
        """Read heads in the order of `convs`; None for a conversation that does not exist or is removed.

        A conversation whose server does not answer has the error in its place. If none has an answer, the reply is the
        error.
        """
        HeadsRead(self._client, convs, reply)

    async def head(self, conv: str) -> Head | None:
        """Read one head."""
        (head,) = await reply_of(self.heads, [conv])
        if isinstance(head, LinnetError):
            raise head
        return head

    def range(self, conv: str, user: str | None, after: int, upto: int, limit: int, reply: Reply[Page]) -> None:
        """Read the events in (after, upto] that `user` sees; None sees all."""
        args = (user or "", after, upto, limit, PAGE_BYTES)
        self._client.call("range", keys.of_conversation(conv)[:2], args, partial(_answer, reply, _page))

    def range_before(self, conv: str, user: str | None, before: int, limit: int, reply: Reply[Page]) -> None:
        """Read the last events below `before`."""
        args = (user or "", before, limit, PAGE_BYTES)
        self._client.call("range_before", keys.of_conversation(conv)[:2], args, partial(_answer, reply, _page))

    def read_position(self, conv: str, user: str, seq: int, reply: Reply[ReadPosition]) -> None:
        """Clamp a read mark to the events that the user sees."""
        other = keys.other_party(conv, user) if conv[0] == keys.DIRECT else ""
        args = (user, seq, other)
        self._client.call(
            "locate_read_mark", keys.of_conversation(conv)[:2], args, partial(_answer, reply, _read_position)
        )

    def roles(self, conv: str, users: Sequence[str], reply: Reply[list[str]]) -> None:
        """Read the role char of each user, "" if the user is no present member."""
        fields = [f"u:{user}" for user in users]
        self._client.command(
            "HMGET", keys.conversation(conv), "m", *fields, reply=partial(_answer, reply, present_roles)
        )

    def openings(self, user: str, wanted: Sequence[Wanted], reply: Reply[list[Opening | None]]) -> None:
        """Read a user's role in many conversations, and where asked the cursor at which a new device begins.

        The answer has the order of `wanted`, which is not empty; None for a conversation whose server gave no answer.
        """
        OpeningsRead(self._client, user, wanted, reply)

    async def scan(self, place: str, count: int) -> tuple[list[str], str]:
        """Some of all conversations from about `count` keys, and the place of the next call: "" at first and at last.

        It is a walk as `scan` of redis/scans.py makes it.
        """
        found, following = await scan(self._client, keys.EVERY_CONVERSATION, place, count)
        return [keys.conversation_of(key) for key in found], following

    async def describe(self, conv: str, user: str | None) -> Description:
        """The description of a conversation, for a present member or the server."""
        fields = (
            "m",
            f"u:{user or ''}",
            "kind",
            "title",
            "made",
            "size",
            "ver",
            "reacting",
            "avatar",
            "rules",
            "mutes",
        )
        m, row, kind, title, made, size, version, reacting, avatar, rules, mutes = await self._client.fetch(
            "HMGET", keys.conversation(conv), *fields
        )
        role = present_roles([m, row])[0]
        if user is not None and role == "r":
            role = (await self.members.unmuted(keys.conversation(conv), {user: role}))[user]
        if m is None or (user is not None and not role):
            raise NotFound
        seq, count, _, _, _, at = META.unpack(m)
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
            avatar.hex() if avatar else None,
            rules_of(rules),
            int(mutes or 0),
        )

    async def _fcall(self, function: str, where: Sequence[str], args: Sequence[RedisArg]) -> Any:
        try:
            return await self._client.fcall(function, where, args)
        except LinnetError as error:
            raise from_function(error) from None


def _keys_and_channel(channels: Channels, conv: str) -> tuple[tuple[str, str, str], str]:
    """The keys of a conversation and the channel of its events, "" if it is direct: `users.deliver` publishes those."""
    return keys.of_conversation(conv), "" if conv.startswith(keys.DIRECT) else channels.conversation(conv)


def _parties(channels: Channels, conv: str, author: str) -> tuple[str, ...]:
    """The arguments with which `append` delivers an event to both users of a direct conversation, its author last."""
    first, second = keys.parties(conv)
    users = dict.fromkeys((second, first) if first == author else (first, second))
    return tuple(part for user in users for part in _party(channels, user, keys.other_party(conv, user)))


def _party(channels: Channels, user: str, other: str) -> tuple[str, ...]:
    return keys.user(user), keys.convs(user), keys.recent(user), channels.user(user), other


def _creation(
    channels: Channels, conv: str, kind: str, title: str, members: Mapping[str, str], rate_us: tuple[int, int]
) -> tuple[RedisArg, ...]:
    founders = (part for founder in members.items() for part in founder)
    cost, burst = (min(time, _RATE_MAX) for time in rate_us)
    return conv, kind, title, cost, burst, int(channels.moved), *founders


def _member_tail(conv: str, by: str, device: str, n: int, user: str, action: str, role: str) -> Tail:
    named = None if action == "remove" else ROLE_NAMES[role]
    return tail("member", conv, by, device, n, {"user": pack(user), "action": pack(action), "role": pack(named)})


def _answer(reply: Reply[T], read: Callable[[Any], T], value: Any) -> None:
    answer(reply, lambda value: from_function(value) if isinstance(value, Exception) else read(value), value)


def _ignore(value: object) -> None:
    """Ignore the reply of a signal, which may be lost."""


def _appended_to(reply: Reply[Appended], value: Any) -> None:
    try:
        found = appended(value) if type(value) is bytes else from_function(value)
    except Exception as error:  # noqa: BLE001 - as `answer`, without its call
        found = unreadable(error)
    reply(found)


def _page(value: Any) -> Page:
    position, floor, more, events = value
    return Page(events, position, floor, more == 1)


def _read_position(value: Any) -> ReadPosition:
    seq, count, size, kind, gone, is_open = value
    return ReadPosition(seq, count, size, kind.decode(), gone, is_open == 1)

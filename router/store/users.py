"""A user's slot: the rows of their conversations, the cursors of their devices, their read marks and sessions.

`sync` is one function with one set of rules for registering a session, auditing it, ending a time of being behind and
delivering kicks. Logs and members are in `conversations`, presence in `presence`.

Invariants
- `recent` only grows at its top: a row is raised to max(now, top + 1), and scores are unique. So a reader of all rows
  above a score, ascending, misses no row that is raised meanwhile.
- Heads, cursors, read marks and membership changes only rise, also if they are written late and by another process. The
  one exception are the cursors that a device itself gives in `hello.cursors`.
- A conversation that a user has left keeps its row, with a mark. No row is removed while the user exists, so a late
  write cannot restore one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import partial
from itertools import chain
from typing import Any, Final, Literal, cast

from router.contract import keys, signals
from router.contract.errors import FunctionError, LinnetError, RateLimited, from_function
from router.store.answers import reply_of
from router.store.redis.client import Client
from router.store.redis.connection import RedisArg
from router.store.redis.decoding import answer
from router.store.rows import PAGE, Page, Row, page_of, rows_of
from router.store.sync import Sync, Synced, pack_for_lua, session_args, synced

USERS_PER_CALL: Final = 50  # the server does nothing else for about as many µs
CONNECT_COST_US, CONNECT_BURST_US = 1_000_000, 30_000_000
OPEN_COST_US, OPEN_BURST_US = 2_000_000, 120_000_000
SEARCH_COST_US, SEARCH_BURST_US = 200_000, 1_000_000
QUERY_COST_US, QUERY_BURST_US = 200_000, 4_000_000  # 5 a second, 20 at once
ASK_COST_US, ASK_BURST_US = 180_000_000, 3_600_000_000  # 20 an hour
REPORT_COST_US, REPORT_BURST_US = 180_000_000, 3_600_000_000  # 20 an hour
ACT_COST_US, ACT_BURST_US = 1_000_000, 120_000_000


class Users:
    def __init__(self, client: Client) -> None:
        self._client = client
        self._channels = client.channels

    def sync(self, s: Sync, reply: Callable[[Synced | LinnetError], None]) -> None:
        """Register or audit a session and read the rows that have changed.

        `replaced`, `kicked` and `evicted` (by another device of the user) end the session. `crowded`: the user has the
        greatest number of devices; register again with `living` and `devices`. Registering may be refused with
        `RateLimited`, or with `Blocked` for a deleted user. `Unauthorized`: the session's token was ended.
        """
        user = s.user
        rest = (
            self._channels.user(user),
            self._channels.presence(user),
            signals.encode(signals.Taken(s.device, s.session, s.instance)),
            signals.encode(signals.Touched(user)),
            CONNECT_COST_US,
            CONNECT_BURST_US,
            [part for conv, seq in (s.cursors or {}).items() for part in (conv, str(seq))],
            s.devices,
            s.living,
            "" if s.token.generation is None else s.token.generation,
            s.token.issued_s,
        )
        where = (
            keys.user(user),
            keys.devices(user),
            keys.recent(user),
            keys.convs(user),
            keys.groups(user),
            keys.cursor(user, s.device),
            *(keys.cursor(user, device) for device in s.devices),
        )
        args = (*session_args(s), s.limit, int(s.register), pack_for_lua(rest))
        self._client.call("sync", where, args, partial(_synced, s, reply))

    def sessions_to_sync(self, audited: Sequence[Sync], reply: Callable[[list[int] | LinnetError], None]) -> None:
        """Find the sessions, by their index, for which `sync` would return a change or an end; at most `max_per_call`.

        Most audits of idle sessions find no change, so this call makes them cheap.
        """
        names: list[str] = []
        args: list[RedisArg] = []
        for s in audited:
            names += (keys.devices(s.user), keys.recent(s.user))
            args += session_args(s)
        self._client.call("sessions_to_sync", names, args, cast("Callable[[object], None]", reply))

    @property
    def max_per_call(self) -> int:
        """The greatest number of users' slots in one call."""
        return USERS_PER_CALL if self._client.one_server else 1

    def page(
        self, user: str, device: str, below: int, reply: Callable[[Page | LinnetError], None], limit: int = PAGE
    ) -> None:
        """Read rows that changed before `below`, newest first, without the groups that registering has returned."""
        self._client.call(
            "page",
            (keys.recent(user), keys.convs(user), keys.cursor(user, device)),
            (below, limit),
            partial(_paged, reply),
        )

    def deliver(
        self,
        user: str,
        conv: str,
        other: str,
        seq: int,
        count: int,
        event: bytes,
        marks: bool,
        target: int,
        reply: Callable[[bool | LinnetError], None],
    ) -> None:
        """Raise a direct conversation to `seq` and publish the event; False if that was already done.

        `other` is the other user of the conversation; `marks`: the event is the user's own message, so it moves their
        read mark. `target`: the seq of the message that the event deletes, else 0.
        """
        self._client.call(
            "deliver",
            (keys.user(user), keys.convs(user), keys.recent(user)),
            (
                self._channels.user(user),
                conv,
                other,
                seq,
                count,
                event,
                int(marks),
                target,
                self._client.row_format,
            ),
            partial(_truth, reply),
        )

    async def join(self, user: str, conv: str, title: str, changed: int, read: int, read_count: int, role: str) -> bool:
        """Mark the user as present in a group or channel, with this role char, as of the change `changed`.

        False if the row has a later change, or if the user does not exist.
        """
        what = (conv, changed, title, read, read_count, role, self._client.row_format)
        return await self._change_membership("join", user, what)

    async def leave(self, user: str, conv: str, changed: int) -> bool:
        """Mark the user as no longer present as of the change `changed`; False as for `join`."""
        return await self._change_membership("leave", user, (conv, changed))

    async def _change_membership(
        self, function: Literal["join", "leave"], user: str, what: tuple[str | int, ...]
    ) -> bool:
        moved = signals.encode(signals.Moved(str(what[0])))
        where = (keys.user(user), keys.convs(user), keys.recent(user), keys.groups(user))
        return bool(await self._fcall(function, where, (self._channels.user(user), moved, *what)))

    @property
    def writes_roles(self) -> bool:
        """Whether rows are written in format 2, which has the user's role."""
        return self._client.row_format == keys.ROWS_2

    async def renew_row(self, user: str, row: Row, role: str) -> bool:
        """Write a row of format 1 in format 2, with this role char; False if the row has changed since it was read."""
        changed = "" if row.kind == keys.DIRECT else row.changed
        return bool(await self._fcall("renew_row", (keys.convs(user),), (row.conversation, changed, role)))

    def ack(
        self,
        user: str,
        device: str,
        session: str,
        cursors: dict[str, int],
        reply: Callable[[bool | LinnetError], None],
    ) -> None:
        """Raise the device's cursors to these seqs; False if the session is no longer the device's."""
        self._ack(user, device, session, cursors, False, reply)

    def lower(
        self,
        user: str,
        device: str,
        session: str,
        cursors: dict[str, int],
        reply: Callable[[bool | LinnetError], None],
    ) -> None:
        """Lower the cursors of a device that claimed seqs beyond the head."""
        self._ack(user, device, session, cursors, True, reply)

    def _ack(
        self,
        user: str,
        device: str,
        session: str,
        cursors: dict[str, int],
        lower: bool,
        reply: Callable[[bool | LinnetError], None],
    ) -> None:
        where = (keys.devices(user), keys.cursor(user, device))
        self._client.call("ack", where, (device, session, pack_for_lua(cursors), int(lower)), partial(_truth, reply))

    def set_starts(
        self,
        user: str,
        device: str,
        session: str,
        starts: dict[str, int],
        known: bool,
        reply: Callable[[bool | LinnetError], None],
    ) -> None:
        """Set cursors in conversations in which the device has none; `known`: it is no longer a new device."""
        pairs: Iterable[str | int] = chain.from_iterable(starts.items())
        self._client.call(
            "set_starts",
            (keys.devices(user), keys.cursor(user, device)),
            (device, session, int(known), *pairs),
            partial(_truth, reply),
        )

    def cursor(self, user: str, device: str, conv: str, reply: Callable[[int | LinnetError], None]) -> None:
        """Read the device's cursor in a conversation; 0 if it has none."""
        self._client.command("HGET", keys.cursor(user, device), conv, reply=partial(_number, reply))

    def read(
        self,
        user: str,
        conv: str,
        seq: int,
        count: int,
        reply: Callable[[bool | LinnetError], None],
        deleted_above: int = 0,
    ) -> None:
        """Raise the user's read mark to `seq`, below which there are `count` messages; False if it was there already.

        `deleted_above`: deleted messages above `seq`.
        """
        receipt = signals.encode(signals.Receipt(conv, user, seq))
        self._client.call(
            "read",
            (keys.convs(user), keys.recent(user)),
            (self._channels.user(user), receipt, conv, seq, count, deleted_above),
            partial(_truth, reply),
        )

    def may_take(self, user: str, rate: Literal["opens", "asks"], reply: Callable[[LinnetError | None], None]) -> None:
        """Ask whether `spend_opening` or `spend_request` would count another one now: None, or `RateLimited`."""
        cost, burst = (OPEN_COST_US, OPEN_BURST_US) if rate == "opens" else (ASK_COST_US, ASK_BURST_US)
        read = partial(answer, reply, lambda value: refusal(value) if isinstance(value, LinnetError) else None)
        self._client.read("may_take", (keys.user(user),), (rate, cost, burst), read)

    def spend_opening(self, user: str, reply: Callable[[LinnetError | None], None]) -> None:
        """Count the opening of another direct conversation against the user's rate: None, or `RateLimited`."""
        self._take_from_rate(user, "opens", OPEN_COST_US, OPEN_BURST_US, reply)

    def spend_request(self, user: str, reply: Callable[[LinnetError | None], None]) -> None:
        """Count a contact request against the user's rate: None, or `RateLimited`."""
        self._take_from_rate(user, "asks", ASK_COST_US, ASK_BURST_US, reply)

    def spend_report(self, user: str, reply: Callable[[LinnetError | None], None]) -> None:
        """Count a report against the user's rate: None, or `RateLimited`."""
        self._take_from_rate(user, "reports", REPORT_COST_US, REPORT_BURST_US, reply)

    def spend_act(self, user: str, reply: Callable[[LinnetError | None], None]) -> None:
        """Count an act of moderation against the rate of the user who acts: None, or `RateLimited`."""
        self._take_from_rate(user, "acts", ACT_COST_US, ACT_BURST_US, reply)

    def spend_search(self, user: str, reply: Callable[[LinnetError | None], None]) -> None:
        """Count a search for users against the user's rate: None, or `RateLimited`."""
        self._take_from_rate(user, "searches", SEARCH_COST_US, SEARCH_BURST_US, reply)

    def spend_query(self, user: str, reply: Callable[[LinnetError | None], None]) -> None:
        """Count a search for messages against the user's rate: None, or `RateLimited`."""
        self._take_from_rate(user, "queries", QUERY_COST_US, QUERY_BURST_US, reply)

    def _take_from_rate(
        self, user: str, field: str, cost_us: int, burst_us: int, reply: Callable[[LinnetError | None], None]
    ) -> None:
        self._client.call(
            "take_from_rate",
            (keys.user(user),),
            (field, cost_us, burst_us),
            partial(answer, reply, lambda value: refusal(value) if isinstance(value, LinnetError) else None),
        )

    def exists(self, user: str, reply: Callable[[bool | LinnetError], None]) -> None:
        """Read whether the user was created and is not deleted."""
        self._client.command("HEXISTS", keys.user(user), "created", reply=partial(_truth, reply))

    def whisper(
        self, to: str, conv: str, payload: bytes, reply: Callable[[bool | LinnetError], None] | None = None
    ) -> None:
        """Publish a signal on the channel of the user `to`; False if they do not have that conversation."""
        self._client.call(
            "whisper_user",
            (keys.convs(to),),
            (self._channels.user(to), conv, payload),
            partial(_truth, reply or _ignore),
        )

    async def row(self, user: str, conv: str) -> Row | None:
        """The user's row of one conversation, without a device's cursor; its score is 0. None for a damaged row too."""
        packed = await reply_of(partial(_read_row, self._client), user, conv)
        rows = [] if packed is None else rows_of([conv.encode(), packed, b"0", None])
        return rows[0] if rows else None

    async def clock_ms(self, user: str) -> int:
        """The clock of the user's server, by which sessions' starts and kicks are compared."""
        return await self._client.clock_ms(keys.user(user))

    def device_row(self, user: str, device: str, conv: str, reply: Callable[[Row | LinnetError | None], None]) -> None:
        """The user's row of one conversation, with the device's cursor; its score is 0. None for a damaged row too."""
        _DeviceRow(self._client, user, device, conv, reply)

    async def conversations(self, user: str, below: int | None = None, limit: int = PAGE) -> Page:
        """A page of all rows, newest first; the first page is below None."""
        above = "+inf" if below is None else below
        value = await self._fcall("page", (keys.recent(user), keys.convs(user)), (above, limit))
        return page_of(value)

    async def direct(self, user: str, cursor: int = 0) -> tuple[list[str], int]:
        """Some of the user's direct conversations, and the cursor of the next call, 0 after the last.

        They have no order, so a conversation that changes meanwhile is not skipped.
        """
        following, found = await self._client.fetch(
            "HSCAN", keys.convs(user), cursor, "MATCH", f"{keys.DIRECT}:*", "COUNT", PAGE
        )
        return [name.decode() for name in found[::2]], int(following)

    async def kick(self, user: str, device: str | None = None, by: str | None = None) -> None:
        """End the sessions of a device, or of all devices, that started before now, registered yet or not.

        `by`: None if the user does it; else the audit has it. It is an admin, whose call is `Forbidden` for a user with
        a role in the deployment, or "", a server key.
        """
        kicked = signals.encode(signals.Kick(device or ""))
        where = keys.user(user), keys.devices(user), keys.audit_of_users(keys.partition(user))
        await self._fcall(
            "kick", where, (self._channels.user(user), device or "", kicked, user, int(by is not None), by or "")
        )

    def mark_away(self, user: str, device: str, session: str, reply: Callable[[bool | LinnetError], None]) -> None:
        """Record that the session has ended; False if it is no longer the device's."""
        touched = signals.encode(signals.Touched(user))
        self._client.call(
            "mark_away",
            (keys.devices(user),),
            (device, session, self._channels.presence(user), touched),
            partial(_truth, reply),
        )

    async def _fcall(self, function: str, names: tuple[str, ...], args: tuple[Any, ...]) -> Any:
        try:
            return await self._client.fcall(function, names, args)
        except FunctionError as error:
            raise refusal(error) from None


class _DeviceRow:
    """The two reads of one `device_row`, and its one reply."""

    __slots__ = ("_conv", "_found", "_reply")

    def __init__(
        self, client: Client, user: str, device: str, conv: str, reply: Callable[[Row | LinnetError | None], None]
    ) -> None:
        self._conv = conv
        self._reply = reply
        self._found: list[object] = []
        _read_row(client, user, conv, partial(self._received, True))
        client.command("HGET", keys.cursor(user, device), conv, reply=partial(self._received, False))

    def _received(self, first: bool, value: object) -> None:
        self._found.insert(0 if first else 1, value)
        if len(self._found) == 2:
            answer(self._reply, self._row, self._found)

    def _row(self, found: Any) -> Row | LinnetError | None:
        for value in found:
            if isinstance(value, LinnetError):
                return refusal(value)
        packed, cursor = found
        rows = [] if packed is None else rows_of([self._conv.encode(), packed, b"0", cursor])
        return rows[0] if rows else None


def _read_row(client: Client, user: str, conv: str, reply: Callable[[Any], None]) -> None:
    """Read the user's row of one conversation as it is stored. Only rows of direct conversations may lag."""
    if conv.startswith(keys.DIRECT):
        client.call("row", (keys.convs(user), keys.recent(user)), (conv,), reply)
    else:
        client.command("HGET", keys.convs(user), conv, reply=reply)


def refusal(error: LinnetError) -> LinnetError:
    """The client's error for the error of a user-slot function."""
    if isinstance(error, FunctionError) and error.reply_code == "RATE":
        return RateLimited("too many of these calls for one user", max(0.001, round(int(error.detail) / 1e6, 3)))
    return from_function(error)


def _ignore(_: object) -> None:
    """Ignore the reply of a signal, which may be lost."""


def _truth(reply: Callable[[bool | LinnetError], None], value: object) -> None:
    answer(reply, lambda value: refusal(value) if isinstance(value, LinnetError) else bool(value), value)


def _number(reply: Callable[[int | LinnetError], None], value: object) -> None:
    answer(reply, lambda value: refusal(value) if isinstance(value, LinnetError) else int(value or 0), value)


def _synced(s: Sync, reply: Callable[[Synced | LinnetError], None], value: object) -> None:
    answer(reply, lambda value: refusal(value) if isinstance(value, LinnetError) else synced(s, value), value)


def _paged(reply: Callable[[Page | LinnetError], None], value: object) -> None:
    answer(reply, lambda value: refusal(value) if isinstance(value, LinnetError) else page_of(value), value)

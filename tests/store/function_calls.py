"""One call of each function of the library, with all keys that it uses in place.

A call is built by the method of the store that production uses, and caught before it is sent.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any, Final, NamedTuple, cast

import hiredis

from router.contract import keys
from router.contract.files import FileInfo
from router.contract.settings import Settings
from router.store.accounts import SERVER_RANK, Accounts, GuessSource
from router.store.audit import Audit
from router.store.conversations import Conversations
from router.store.deployment import RowFormats, deployment_check
from router.store.dirty import Dirty
from router.store.due import look_due
from router.store.file_records import Record
from router.store.files import Files, UploadRate
from router.store.moderation import Act, Moderation
from router.store.moved import Moved
from router.store.openings import Wanted
from router.store.pairs import Pairs
from router.store.people import People, Person
from router.store.profiles import Profiles
from router.store.pushes import Pushes
from router.store.redis.client import Client
from router.store.redis.connection import RedisArg
from router.store.redis.pipeline import HotConnection
from router.store.reports import Reports
from router.store.resumable import Resumables
from router.store.rows import Row
from router.store.state import State
from router.store.sync import Sync
from router.store.users import Users
from tests.store.calling import BURST_US, COST_US, called, event

Command = tuple[bytes, ...]


class Caught(Exception):
    def __init__(self, command: Command) -> None:
        super().__init__(command)
        self.command = command

    @property
    def keys(self) -> list[str]:
        """The declared keys."""
        return [key.decode() for key in self.command[3 : 3 + int(self.command[2])]]


class _Catching:
    """In place of a connection: every call of a function ends here."""

    def __init__(self, connection: HotConnection) -> None:
        self._connection = connection

    def call(self, parts: tuple[RedisArg, ...], reply: Callable[[object], None]) -> None:
        if parts[0] not in ("FCALL", "FCALL_RO"):
            self._connection.call(parts, reply)
        else:
            self.call_packed(hiredis.pack_command(cast("Any", tuple(parts))), reply)

    def call_packed(self, packed: bytes, _: Callable[[object], None]) -> None:
        reader = hiredis.Reader()
        reader.feed(packed)
        raise Caught(tuple(reader.gets()))


class PartsClient(Client):
    """A client that sees a server for each partition, as on a cluster, and can catch a call."""

    catching = False

    @property
    def one_server(self) -> bool:
        return False

    def _shard_of(self, keys: Any) -> Any:
        return _Catching(self._hot) if self.catching else self._hot


class World:
    """The users and conversations of one call; each world has names of its own, all with `tag` in them."""

    def __init__(self, client: PartsClient, number: int) -> None:
        self.client = client
        self.tag = f"{number:022d}"
        self.ann, self.bob = f"ann-{self.tag}", f"bob-{self.tag}"
        self.group, self.direct = f"g:{self.tag}", keys.direct(self.ann, self.bob)
        self.conversations, self.users = Conversations(client, 20_000), Users(client)
        self.accounts, self.pushes, self.dirty = Accounts(client), Pushes(client), Dirty(client)
        self.state = State(client, (COST_US, BURST_US))
        self.pairs, self.people, self.profiles = Pairs(client), People(client), Profiles(client)
        self.files, self.sha = Files(client), "ab" + self.tag.zfill(30) + "0" * 32
        self.resumables = Resumables(client)
        self.part = keys.partition(self.ann)
        self.dirty_part = keys.partition(self.group)
        self.reports, self.report = Reports(client), ""
        self.moderation, self.audit = Moderation(client, 20_000), Audit(client)

    async def caught(self, call: Callable[[], Awaitable[object] | None]) -> Caught:
        """The command of a call, which is not sent."""
        self.client.catching = True
        try:
            waiting = call()
            if waiting is not None:
                await waiting
        except Caught as caught:
            return caught
        finally:
            self.client.catching = False
        raise AssertionError("the store called no function")

    async def with_group(self, kind: str = keys.GROUP) -> None:
        members = {self.ann: "o", self.bob: "m"}
        assert await self.conversations.create(self.group, kind, "title", members, COST_US, BURST_US)
        await self.append(1)

    async def append(self, n: int) -> None:
        await called(self.conversations.append, event(self.group, self.ann, n))

    async def with_user(self) -> None:
        """Ann exists, has a session, a direct conversation, a group, a cursor, and a push that waits."""
        await self.accounts.create(self.ann, "password", "Ann")
        await self.users.join(self.ann, self.group, "title", 1, 0, 0, "m")
        await self.deliver(1)
        await called(self.users.sync, self.session(register=True))
        await called(self.users.ack, self.ann, "phone", "s1", {self.direct: 1})
        assert await self.pushes.schedule(self.ann, self.direct, 1, 1)

    def session(self, **more: Any) -> Sync:
        return Sync(user=self.ann, device="phone", session="s1", node="n1", started=1, **more)

    async def deliver(self, seq: int) -> None:
        await called(self.users.deliver, self.ann, self.direct, self.bob, seq, seq, b"event", False, 0)

    async def with_file(self) -> None:
        """Ann exists and has uploaded a file, which the group is about to refer to; its partition's claims began."""
        await self.accounts.create(self.ann, "password", "Ann")
        await self.files.begin(self.ann, "u", 1, 1, _RATE)
        record = await self.files.intent(self.sha, "AAAAAAAA")
        await self.files.stored(self.sha, Record(True, record.gen, 1, ()), self.ann)
        await self.files.own(self.ann, _info(self), 10)
        await self.files._file("file_pin", self.sha, (keys.file_name(self.sha), self.group, 1))
        await self.files.claims([keys.file_partition(self.sha)], 1, 1)
        await self.client.fetch("ZADD", keys.file_due(keys.file_partition(self.sha)), 1, "!left")

    async def with_tus(self) -> None:
        await self.resumables.create(self.sha[:32], self.ann, 2, b"")
        await self.resumables.lock(self.sha[:32], self.ann, "t", 60_000)

    async def with_group_file(self) -> None:
        await self.with_group()
        await self.client.fetch("HSET", keys.conversation(self.group), b"f:" + bytes.fromhex(self.sha), b"\0" * 8)
        await self.client.fetch("HSET", keys.conversation(self.group), "freed", b"x" * 32)


def _info(w: World) -> FileInfo:
    return FileInfo(sha256=w.sha, type="text/plain", kind="file", size=1)


_RATE: Final = UploadRate(3, 60, 10)


class Case(NamedTuple):
    prepare: Callable[[World], Awaitable[None]]
    call: Callable[[World], Awaitable[object] | None]


def _ignored(_: object) -> None:
    """A reply that never comes."""


async def _nothing(_: World) -> None:
    """Nothing has to be there."""


async def _beside_another(w: World) -> None:
    """The partition has a conversation, so its set of due ones is there."""
    await w.with_group()
    first = w.group
    w.group = next(
        group
        for number in range(10**9, 2 * 10**9)
        if keys.partition(group := f"g:{number:022d}") == keys.partition(first)
    )
    await w.client.fetch("XADD", keys.log(w.group), "0-1", "e", "")
    await w.client.fetch("HSET", keys.conversation(w.group), "left", "over")


async def _removed(w: World) -> None:
    await w.with_group()
    await w.conversations.remove_conversation(w.group, None)


async def _asked(w: World) -> None:
    """Ann has asked Bob, and they have a conversation."""
    await called(w.conversations.create_direct, w.ann, w.bob, COST_US, BURST_US)
    await called(w.pairs.change, w.ann, w.bob, "ask", "", 1)


async def _related(w: World) -> None:
    """Ann has a request to Bob, and one that is over."""
    await w.with_user()
    for other, until in ((w.bob, 1 << 52), ("somebody", 1)):
        await w.people.set_relation(w.ann, other, Person(2, "o", False, False, 1, until))


async def _claimed(w: World) -> None:
    await w.client.fetch("SET", keys.names(w.ann), f"{w.ann} 1")


async def _with_state(w: World) -> None:
    """A key that is there, and one that was removed."""
    await w.with_user()
    for key, value in (("a", b"\x01"), ("b", b"\x01"), ("b", None)):
        await called(w.state.write, w.ann, key, value, None)


def _act(w: World) -> Act:
    return Act(conversation=w.group, actor=w.ann, by=w.ann, user=w.bob)


async def _reported(w: World) -> None:
    """Two messages are reported, and one report was closed and opened again, so the partition has all keys."""
    await w.with_group()
    await w.append(2)
    w.report, _ = await w.reports.report_message(w.bob, w.group, 1, "spam")
    other, _ = await w.reports.report_message(w.bob, w.group, 2, "spam")
    await w.reports.decide(other, "dismissed", None, "mod")


async def _closed(w: World) -> None:
    await _reported(w)
    await w.reports.decide(w.report, "resolved", None, "mod")


async def _with_acts(w: World) -> None:
    """Bob was muted, and the partition's audit has entries already."""
    await w.with_group()
    await w.moderation.restrain(_act(w), "mute")
    await w.audit.move(w.group)
    await w.moderation.restrain(_act(w), "unmute")


_GROUP, _USER = World.with_group, World.with_user
_GROUP, _USER, _FILE = World.with_group, World.with_user, World.with_file
_MEMBER: Final = "a-new-member"

CASES: Final[dict[str, Case]] = {
    "ack": Case(_USER, lambda w: w.users.ack(w.ann, "phone", "s1", {w.direct: 2}, _ignored)),
    "append": Case(_GROUP, lambda w: w.conversations.append(event(w.group, w.ann, 2), _ignored)),
    "claim": Case(_GROUP, lambda w: w.dirty.claims([w.dirty_part], 8, 1000)),
    "claim_name": Case(_claimed, lambda w: w.accounts._claim_name(w.ann)),
    "claim_push": Case(_USER, lambda w: w.pushes.claims([w.part], 8, 1000)),
    "clear_freed": Case(World.with_group_file, lambda w: w.files.clear_freed(w.group, b"x" * 32)),
    "clear_pushes": Case(_USER, lambda w: w.pushes.clear(w.ann, {w.direct: 0})),
    "confirm_guess": Case(_USER, lambda w: w.accounts.confirm_guess(w.ann, GuessSource("a" * 16))),
    "count_relations": Case(_related, lambda w: w.people.counts(w.ann)),
    "create": Case(
        _beside_another, lambda w: w.conversations.create(w.group, "g", "title", {w.ann: "o"}, COST_US, BURST_US)
    ),
    "create_account": Case(_nothing, lambda w: w.accounts._fcall("create_account", (keys.user(w.ann),), ("p", "Ann"))),
    "delete_account": Case(_USER, lambda w: w.accounts.delete(w.ann)),
    "decide_report": Case(_reported, lambda w: w.reports.decide(w.report, "resolved", "done", "mod")),
    "deliver": Case(_USER, lambda w: w.users.deliver(w.ann, w.direct, w.bob, 2, 2, b"event", False, 0, _ignored)),
    "deployment": Case(_nothing, lambda w: deployment_check(w.client, Settings(deployment="ours"))),
    "end_tokens": Case(_USER, lambda w: w.accounts.end_all_tokens(w.ann, "", ["phone"])),
    "ensure_user": Case(_USER, lambda w: w.accounts.ensure(w.ann)),
    "erase_reports": Case(_closed, lambda w: w.reports.erase(-1000)),
    "file_ban": Case(_FILE, lambda w: w.files.ban(w.sha, "x")),
    "file_claim": Case(_FILE, lambda w: w.files.claims([keys.file_partition(w.sha)], 8, 1000)),
    "file_intent": Case(_FILE, lambda w: w.files.intent(w.sha, "BBBBBBBB")),
    "file_pin": Case(_FILE, lambda w: w.files._file("file_pin", w.sha, (keys.file_name(w.sha), w.group, 600))),
    "file_settle": Case(_FILE, lambda w: w.files.settle(w.sha, w.group, "no")),
    "file_stored": Case(_FILE, lambda w: w.files.stored(w.sha, Record(True, "AAAAAAAA", 1, ()), w.bob)),
    "file_sweep": Case(_FILE, lambda w: w.files.sweep(w.sha, "x")),
    "find_file": Case(World.with_group_file, lambda w: w.files.shown(w.group, w.ann, w.sha)),
    "forget_conversation": Case(_removed, lambda w: w.dirty.forget_conversation(w.group)),
    "hidden_from": Case(_related, lambda w: w.people.hidden_from(w.ann, [w.bob], _ignored)),
    "join": Case(_USER, lambda w: w.users.join(w.ann, w.group, "title", 2, 1, 1, "m")),
    "kick": Case(_USER, lambda w: w.users.kick(w.ann)),
    "leave": Case(_USER, lambda w: w.users.leave(w.ann, w.group, 2)),
    "locate_read_mark": Case(_GROUP, lambda w: w.conversations.read_position(w.group, w.ann, 1, _ignored)),
    "look_due": Case(_GROUP, lambda w: look_due(w.client, [keys.dirty(w.dirty_part)])),
    "mark_away": Case(_USER, lambda w: w.users.mark_away(w.ann, "phone", "s1", _ignored)),
    "mark_pair_copied": Case(_asked, lambda w: w.pairs.copied(w.direct, None)),
    "mark_routed": Case(_GROUP, lambda w: w.dirty.mark_routed(w.group, 1 << 52, 10, 1000)),
    "mark_user": Case(_asked, lambda w: w.profiles._mark(w.ann, settled=False)),
    "may_append": Case(_GROUP, lambda w: w.conversations.may_append(event(w.group, w.ann, 2), _ignored)),
    "may_open": Case(_asked, lambda w: w.pairs.may_open(w.ann, w.bob, False, _ignored)),
    "may_take": Case(_USER, lambda w: w.users.may_take(w.ann, "opens", _ignored)),
    "member": Case(_GROUP, lambda w: w.conversations.member(w.group, w.ann, _MEMBER, "put")),
    "moderate": Case(_GROUP, lambda w: w.moderation.restrain(_act(w), "mute")),
    "note_reading": Case(_nothing, lambda w: w.audit.note_reading(w.group, w.ann, "why")),
    "moved": Case(_GROUP, lambda w: Moved(w.client).finished([w.dirty_part], 1000)),
    "move_acts": Case(_with_acts, lambda w: w.audit.move(w.group)),
    "move_format": Case(_nothing, lambda w: RowFormats(w.client).write_newest()),
    "offer_reset": Case(_USER, lambda w: w.accounts.offer_reset(w.ann, "digest")),
    "page": Case(_USER, lambda w: w.users.page(w.ann, "phone", 1 << 53, _ignored)),
    "pair": Case(_asked, lambda w: w.pairs.change(w.ann, w.bob, "block", "", 0, _ignored)),
    "probe": Case(_nothing, lambda w: w.client.fcall("probe", ("{u0}:probe",), ("{u0}:probe",))),
    "profile": Case(_USER, lambda w: w.profiles._change(w.ann, {"about": "x"})),
    "range": Case(_GROUP, lambda w: w.conversations.range(w.group, w.ann, 0, 1 << 52, 10, _ignored)),
    "range_before": Case(_GROUP, lambda w: w.conversations.range_before(w.group, w.ann, 1 << 52, 10, _ignored)),
    "read": Case(_USER, lambda w: w.users.read(w.ann, w.direct, 1, 1, _ignored)),
    "remove_conversation": Case(_GROUP, lambda w: w.conversations.remove_conversation(w.group, w.ann)),
    "renew_row": Case(
        _USER, lambda w: w.users.renew_row(w.ann, Row(w.group, "g", "", False, 0, 0, 0, 0, None, 0, changed=1), "m")
    ),
    "report": Case(_GROUP, lambda w: w.reports.report_message(w.bob, w.group, 1, "spam")),
    "retry_push": Case(_USER, lambda w: w.pushes.retry(w.ann, 1)),
    "row": Case(_USER, lambda w: w.users.row(w.ann, w.direct)),
    "schedule_push": Case(_USER, lambda w: w.pushes.schedule(w.ann, w.direct, 2, 1)),
    "sessions_to_sync": Case(_USER, lambda w: w.users.sessions_to_sync([w.session(since=b"0" * 16 + b"(0")], _ignored)),
    "set_roles": Case(_USER, lambda w: w.accounts.set_roles(w.ann, ["moderator"])),
    "set_relation": Case(_related, lambda w: w.people.set_relation(w.ann, w.bob, Person(3, "-", True, True, 1, 0))),
    "set_starts": Case(_USER, lambda w: w.users.set_starts(w.ann, "phone", "s1", {w.group: 1}, True, _ignored)),
    "starts": Case(_GROUP, lambda w: w.conversations.openings(w.ann, [Wanted(w.group, 0)], _ignored)),
    "state_after": Case(_with_state, lambda w: w.state.entries(w.ann, 0, "", 10)),
    "suspend": Case(_USER, lambda w: w.accounts.suspend(w.ann, SERVER_RANK, "", 0, "spam")),
    "sync": Case(_USER, lambda w: w.users.sync(w.session(register=True, cursors={w.direct: 2}), _ignored)),
    "take_from_rate": Case(_USER, lambda w: w.users.spend_opening(w.ann, _ignored)),
    "take_guess": Case(_USER, lambda w: w.accounts.take_guess(w.ann, GuessSource("a" * 16))),
    "title": Case(_GROUP, lambda w: w.conversations.title(w.group, w.ann, "another")),
    "tus_advance": Case(World.with_tus, lambda w: w.resumables.advance(w.sha[:32], "t", 0, 1, "x", 1000)),
    "tus_create": Case(World.with_tus, lambda w: w.resumables.create(w.sha[:32], w.ann, 2, b"")),
    "tus_end": Case(World.with_tus, lambda w: w.resumables.end(w.sha[:32], w.ann)),
    "tus_finish": Case(World.with_tus, lambda w: w.resumables.finish(w.sha[:32], b"{}")),
    "tus_lock": Case(World.with_tus, lambda w: w.resumables.lock(w.sha[:32], w.ann, "t", 1000)),
    "upload_begin": Case(_FILE, lambda w: w.files.begin(w.ann, "v", 1, 1000, _RATE)),
    "upload_forget": Case(
        _FILE, lambda w: w.files._fcall("upload_forget", (keys.uploads(w.ann),), (bytes.fromhex(w.sha), 0))
    ),
    "upload_own": Case(_FILE, lambda w: w.files.own(w.ann, _info(w), 10)),
    "upload_rows": Case(_FILE, lambda w: w.files.upload(w.ann, w.sha)),
    "waiting_pushes": Case(_USER, lambda w: w.pushes.waiting(w.ann)),
    "whisper_group": Case(_GROUP, lambda w: w.conversations.whisper(w.group, w.ann, b"signal")),
    "whisper_user": Case(_USER, lambda w: w.users.whisper(w.ann, w.direct, b"signal")),
    "write_state": Case(_with_state, lambda w: w.state.write(w.ann, "a", b"\x02", None, _ignored)),
    "write_tick": Case(_nothing, lambda w: w.client.fcall("write_tick", (keys.TICK,), ())),
}

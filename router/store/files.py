"""Files in their slots: records of stored files, users' uploads, and who may use a file in which conversation.

The bytes are in an object store that only routers know (`router/media/objects.py`); this module has what Redis says of
them. A reference of a message is in the conversation's own slot and is written with the message in one step
(`append.lua`). The file's slot names every conversation that may have one, so a file is never removed under a message.

Invariants
- A file is pinned for a conversation before a message with it is appended; the pin is taken back only after the
  conversation's slot was asked.
- An object is named in Redis before it is put into the store, and until it is deleted.
- If a user must not see a file, the error is the same `NotFound` as for one that does not exist.
"""

from __future__ import annotations

from asyncio import gather
from collections.abc import Callable, Sequence
from functools import partial
from struct import Struct as Packing
from typing import Any, Final, Literal, TypeAlias, TypeVar

import msgspec
from msgspec import Struct

from router.contract import keys
from router.contract.addressing import visible
from router.contract.errors import FunctionError, LinnetError, NotFound, RateLimited, Rejected, from_function
from router.contract.files import FileInfo, Kind, SharedFile
from router.contract.packing import pack
from router.store.answers import each_answer
from router.store.redis.client import Client
from router.store.redis.decoding import answer

T = TypeVar("T")
Found = Literal["refers", "no", "lost", "removed"]  # of a conversation that may refer to a file
Reply: TypeAlias = Callable[[T | LinnetError], None]

SENDABLE_MS: Final = 86_400_000  # how old an upload may be that is sent
PIN_S: Final = 600
UPLOAD_S: Final = 3600
KEEP_S: Final = 86_400
HOLD_S: Final = 3600
OLD_S: Final = 600
UPLOADERS_STEP: Final = 500
USER: Final = "@"  # before the user's name, where a file may be their avatar
COUNT: Final = "?"  # the item of the due list that has unknown objects counted

_ROW: Final = Packing(">QQ")
_PINNED: Final = Packing(">I")
_BITS: Final = {320: 1, 1600: 2}
_PICTURES: Final = ("", "image/jpeg", "image/png", "image/webp", "image/gif")  # by their number in a record


class _Row(Struct, frozen=True, array_like=True, omit_defaults=True):
    """What a user said of a file, without its hash and size, which are beside it."""

    type: str
    kind: Kind
    name: str
    previews: list[int]
    width: int | None = None
    height: int | None = None
    duration: int | None = None
    waveform: list[int] | None = None


_row = msgspec.msgpack.Decoder(_Row).decode


class _Event(Struct, frozen=True):
    files: list[FileInfo] = []


_event = msgspec.msgpack.Decoder(_Event).decode


class Record(Struct, frozen=True):
    """A file as the store has it. `gen` is the generation of its objects; `stored` is false while bytes are coming."""

    stored: bool
    gen: str
    size: int
    previews: tuple[int, ...]
    picture: str = ""  # the type of a picture, "" for anything else


class Upload(Struct, frozen=True):
    """A file as its uploader described it, and when (ms)."""

    at: int
    info: FileInfo


class Attached(Struct, frozen=True):
    """The files of a message to append: `infos` for its event, `pins` for the function."""

    infos: list[FileInfo]
    pins: bytes


REFUSED: Final = Attached([], b"")  # the sender may not use one of the files; only an accepted `n` is acked with it


class Times(Struct, frozen=True):
    """How long (s) files are kept in which state."""

    pin_s: int = PIN_S
    upload_s: int = UPLOAD_S
    keep_s: int = KEEP_S
    hold_s: int = HOLD_S
    old_s: int = OLD_S


class UploadRate(Struct, frozen=True):
    """What one user may upload: uploads at once and in a minute, and bytes in all."""

    at_once: int
    per_minute: int
    quota: int


class Files:
    def __init__(self, client: Client, times: Times | None = None) -> None:
        self._client = client
        self._times = times or Times()

    # -- uploading

    async def begin(self, user: str, upload: str, size: int, lease_ms: int, rate: UploadRate, new: bool = True) -> None:
        """Take a place among the user's uploads; Quota, or RateLimited. One that is not `new` was counted before."""
        where = (keys.uploads(user), keys.uploading(user), keys.user(user))
        cost = round(60e6 / rate.per_minute) if new else 0
        try:
            await self._fcall(
                "upload_begin", where, (upload, lease_ms, rate.at_once, rate.quota, size, cost, 60_000_000)
            )
        except RateLimited as error:
            raise RateLimited("too many uploads", error.retry_after) from None

    async def prolong(self, user: str, upload: str, lease_ms: int) -> None:
        """Keep the place of an upload that goes on."""
        until = await self._client.clock_ms() + lease_ms
        await self._client.fetch("ZADD", keys.uploading(user), "XX", until, upload)

    async def end(self, user: str, upload: str) -> None:
        """Give the place of an upload back."""
        await self._client.fetch("ZREM", keys.uploading(user), upload)

    async def intent(self, sha256: str, gen: str) -> Record:
        """Name the objects of a file that are about to be put; `gen` counts if the file is new. Or Rejected."""
        name = keys.file_name(sha256)
        state, had, size, previews = await self._file("file_intent", sha256, (name, gen, self._times.upload_s))
        return Record(state == b"s", had.decode(), size, _edges(previews))

    async def stored(self, sha256: str, record: Record, user: str) -> bool:
        """Say that a file's bytes are in the store; False if they were there before."""
        bits, picture = sum(_BITS[edge] for edge in record.previews), _PICTURES.index(record.picture)
        args = (keys.file_name(sha256), record.gen, record.size, bits, picture, user, self._times.keep_s)
        return bool(await self._file("file_stored", sha256, args))

    async def own(self, user: str, info: FileInfo, quota: int) -> None:
        """Enter an upload among those of the user; Quota if that is too much, NotFound if the account was deleted."""
        row = _Row(
            info.type, info.kind, info.name, info.previews, info.width, info.height, info.duration, info.waveform
        )
        args = (bytes.fromhex(info.sha256), info.size, pack(row), quota)
        await self._fcall("upload_own", (keys.uploads(user), keys.user(user)), args)

    async def allowed(self, sha256: str) -> None:
        """Rejected if a file of these bytes was removed everywhere."""
        packed = await self._client.fetch("HGET", keys.file(sha256), "m")
        if packed is not None and packed[:1] == b"x":
            raise Rejected("this file was removed")

    # -- reading

    async def record(self, sha256: str) -> Record:
        """The record of a stored file."""
        packed = await self._client.fetch("HGET", keys.file(sha256), "m")
        record = _record(packed)
        if record is None or not record.stored:
            raise NotFound
        return record

    async def upload(self, user: str, sha256: str) -> Upload:
        """The user's own upload."""
        (row,) = await self._fcall("upload_rows", (keys.uploads(user),), (0, bytes.fromhex(sha256)))
        if row is None:
            raise NotFound
        return _upload(sha256, row)

    async def shown(self, conv: str, user: str | None, sha256: str) -> FileInfo | None:
        """The file as the newest message has it that the user may see; None if it is the avatar."""
        where = (keys.conversation(conv), keys.log(conv))
        return _shown(sha256, await self._fcall("find_file", where, (user or "", bytes.fromhex(sha256))))

    def attach(self, user: str, conv: str, given: Sequence[SharedFile], reply: Reply[Attached]) -> None:
        """Look up the files of a message, or an avatar, and pin them for its conversation or `@user`.

        REFUSED if the user may not use one.
        """
        _Lookup(self._client, user, conv, given, self._times.pin_s, reply)

    # -- removing

    async def claims(self, parts: Sequence[int], limit: int, lease_ms: int) -> list[list[str] | LinnetError]:
        """Claim up to `limit` due items of each partition for `lease_ms`.

        A partition whose server does not answer has the error in its place; if all have none, the error is raised.
        """
        args = (limit, lease_ms, self._times.hold_s, self._times.old_s, self._times.keep_s)
        groups = [tuple(parts)] if self._client.one_server else [(part,) for part in parts]
        found = await each_answer(self._claim(group, args) for group in groups)
        claimed: list[list[str] | LinnetError] = []
        for answers in found:
            if isinstance(answers, LinnetError):
                claimed.append(answers)
            else:
                claimed += [[item.decode() for item in items] for items in answers]
        return claimed

    async def _claim(self, parts: Sequence[int], args: tuple[int, ...]) -> list[list[bytes]]:
        where = [key for part in parts for key in (keys.file_due(part), keys.file_held(part))]
        return list(await self._fcall("file_claim", where, args))

    async def refers(self, sha256: str, conv: str) -> Found:
        """Whether a conversation has a message with the file, or has it as its avatar; also for a user's avatar."""
        raw = bytes.fromhex(sha256)
        if conv[0] == USER:
            fields = ("avatar", "created", "deleted")
            avatar, created, deleted = await self._client.fetch("HMGET", keys.user(conv[1:]), *fields)
            if avatar == raw:
                return "refers"
            return "no" if created is not None else "removed" if deleted is not None else "lost"
        found, exists, removed = await self._client.fetch("HMGET", keys.conversation(conv), b"f:" + raw, "m", "gone")
        if found is not None and exists is not None:
            return "refers"
        return "no" if exists is not None else "removed" if removed is not None else "lost"

    async def settle(self, sha256: str, conv: str, found: Found) -> int:
        """Enter what was found out about a pin; the references left, -1 if a message refers to a file that is lost."""
        args = (keys.file_name(sha256), conv, found, self._times.pin_s, self._times.keep_s)
        left: int = await self._file("file_settle", sha256, args)
        return left

    async def recheck(self, sha256: str, conv: str) -> None:
        """Have a reference looked at, because the last message with it has left the conversation."""
        await self._client.fetch("ZADD", keys.file_due(keys.file_partition(sha256)), 0, _pair(sha256, conv))

    async def clear_freed(self, conv: str, hashes: bytes) -> None:
        """Take these from the files that the conversation, or the user, has noted as `freed`."""
        where = keys.user(conv[1:]) if conv[0] == USER else keys.conversation(conv)
        await self._fcall("clear_freed", (where,), (hashes,))

    async def former_avatars(self, user: str) -> bytes:
        """The hashes that the user has noted as `freed`: former avatars whose files do not know it yet."""
        return bytes(await self._client.fetch("HGET", keys.user(user), "freed") or b"")

    async def referred(self, conv: str, cursor: int) -> tuple[list[str], int]:
        """Some of the files that a conversation refers to, and the cursor of the next call, 0 after the last."""
        following, found = await self._client.fetch(
            "HSCAN", keys.conversation(conv), cursor, "MATCH", "f:*", "COUNT", UPLOADERS_STEP
        )
        return [field[2:].hex() for field in found[::2] if len(field) == 34], int(following)

    async def forget_uploads(self, sha256: str, age_s: int | None = None) -> None:
        """Take a file from the uploads of all users who uploaded it, unless they did so just now."""
        age_ms, cursor = 1000 * (self._times.keep_s if age_s is None else age_s), -1
        while cursor:
            following, found = await self._client.fetch(
                "HSCAN", keys.file(sha256), max(cursor, 0), "MATCH", "u:*", "COUNT", UPLOADERS_STEP
            )
            cursor = int(following)
            for field in found[::2]:
                where = (keys.uploads(field[2:].decode()),)
                await self._fcall("upload_forget", where, (bytes.fromhex(sha256), age_ms))

    async def sweep(self, sha256: str, objects: str) -> bool:
        """Forget a file to which nothing has referred for long enough; its objects are due to be deleted then."""
        args = (keys.file_name(sha256), objects, self._times.keep_s, self._times.upload_s)
        return bool(await self._file("file_sweep", sha256, args))

    async def ban(self, sha256: str, objects: str) -> bool:
        """Remove a file everywhere and refuse its bytes from now on; False if there was none."""
        return bool(await self._file("file_ban", sha256, (keys.file_name(sha256), objects)))

    async def deleted(self, part: int, item: str) -> None:
        """Take an item from the due list: its object is deleted."""
        await self._client.fetch("ZREM", keys.file_due(part), item)

    async def count_later(self, delay_ms: int | None = None) -> None:
        """Have the unknown objects counted after a time; without one, now if no count is due."""
        at = await self._client.clock_ms() + (delay_ms or 0)
        await self._client.fetch("ZADD", keys.file_due(0), *(("NX",) if delay_ms is None else ()), at, COUNT)

    async def named(self, sha256: str, gen: str, item: str) -> bool:
        """Whether Redis knows this object: it belongs to the file's record, or is due to be deleted."""
        packed, due = await gather(
            self._client.fetch("HGET", keys.file(sha256), "m"),
            self._client.fetch("ZSCORE", keys.file_due(keys.file_partition(sha256)), item),
        )
        record = _record(packed)
        return due is not None or (record is not None and record.gen == gen)

    async def _file(self, function: str, sha256: str, args: Sequence[Any]) -> Any:
        return await self._fcall(function, (keys.file(sha256), keys.file_due(keys.file_partition(sha256))), args)

    async def _fcall(self, function: str, where: Sequence[str], args: Sequence[Any]) -> Any:
        try:
            return await self._client.fcall(function, where, args)
        except FunctionError as error:
            raise from_function(error) from None


class _Lookup:
    """The calls of one `attach` and its one reply: first what the user may use, then a pin for each file."""

    __slots__ = ("_client", "_conv", "_given", "_infos", "_missing", "_pin_s", "_pinned", "_reply", "_user")

    def __init__(
        self,
        client: Client,
        user: str,
        conv: str,
        given: Sequence[SharedFile],
        pin_s: int,
        reply: Reply[Attached],
    ) -> None:
        self._client = client
        self._user = user
        self._conv = conv
        self._given = given
        self._pin_s = pin_s
        self._reply: Reply[Attached] | None = reply
        self._infos: list[FileInfo | None] = [None] * len(given)
        self._pinned = 1 << 32
        own = [at for at, one in enumerate(given) if one.in_ is None]
        self._missing = bool(own) + len(given) - len(own)
        if own:
            hashes = [bytes.fromhex(given[at].sha256) for at in own]
            client.call("upload_rows", (keys.uploads(user),), (SENDABLE_MS, *hashes), self._then(self._uploads, own))
        for at, one in enumerate(given):
            if one.in_ is not None:
                self._find(at, one.sha256, one.in_)

    def _find(self, at: int, sha256: str, where: str) -> None:
        try:
            conv = visible(self._user, where)
        except NotFound:
            self._end(REFUSED)
            return
        names = (keys.conversation(conv), keys.log(conv))
        self._client.call("find_file", names, (self._user, bytes.fromhex(sha256)), self._then(self._found, at))

    def _then(self, read: Callable[[Any, Any], None], at: Any) -> Callable[[Any], None]:
        """What to do with a reply: `read` it, unless the lookup has ended; NotFound ends it as REFUSED."""

        def received(value: Any) -> None:
            if isinstance(value, Exception):
                error = from_function(value)
                self._end(REFUSED if isinstance(error, NotFound) else error)
            elif self._reply is not None:
                answer(self._failed, partial(read, at), value)

        return received

    def _failed(self, value: Any) -> None:
        if isinstance(value, LinnetError):
            self._end(value)

    def _end(self, value: Attached | LinnetError) -> None:
        reply, self._reply = self._reply, None
        if reply is not None:
            reply(value)

    def _uploads(self, own: list[int], rows: Any) -> None:
        for at, row in zip(own, rows, strict=True):
            if row is None:
                self._end(REFUSED)
                return
            self._infos[at] = _upload(self._given[at].sha256, row).info
        self._received()

    def _found(self, at: int, event: Any) -> None:
        info = _shown(self._given[at].sha256, event)
        if info is None:  # an avatar cannot be sent from where it is one: it has no message
            self._end(REFUSED)
            return
        self._infos[at] = info
        self._received()

    def _received(self) -> None:
        self._missing -= 1
        if self._missing or self._reply is None:
            return
        hashes = list(dict.fromkeys(one.sha256 for one in self._given))
        self._missing = len(hashes)
        for sha256 in hashes:
            where = (keys.file(sha256), keys.file_due(keys.file_partition(sha256)))
            args = (keys.file_name(sha256), self._conv, self._pin_s)
            self._client.call("file_pin", where, args, self._then(self._pin, None))

    def _pin(self, _: None, at_s: Any) -> None:
        self._pinned = min(self._pinned, at_s)
        self._missing -= 1
        if not self._missing:
            hashes = dict.fromkeys(bytes.fromhex(one.sha256) for one in self._given)
            infos = [info for info in self._infos if info is not None]
            self._end(Attached(infos, _PINNED.pack(self._pinned) + b"".join(hashes)))


def _pair(sha256: str, conv: str) -> str:
    return f"{keys.file_name(sha256)} {conv}"


def _edges(bits: int) -> tuple[int, ...]:
    return tuple(edge for edge, bit in _BITS.items() if bits & bit)


_RECORD: Final = Packing(">cI8sQIBB")


def _record(packed: bytes | None) -> Record | None:
    if packed is None:
        return None
    state, _, gen, size, _, previews, picture = _RECORD.unpack(packed)
    return Record(state == b"s", gen.decode(), size, _edges(previews), _PICTURES[picture])


def _upload(sha256: str, row: bytes) -> Upload:
    at, size = _ROW.unpack_from(row)
    said = _row(row[_ROW.size :])
    info = FileInfo(
        sha256=sha256,
        type=said.type,
        kind=said.kind,
        size=size,
        name=said.name,
        width=said.width,
        height=said.height,
        duration=said.duration,
        waveform=said.waveform,
        previews=said.previews,
    )
    return Upload(at, info)


def _shown(sha256: str, event: bytes) -> FileInfo | None:
    """The file in the bytes of an event, None for an avatar."""
    if not event:
        return None
    for info in _event(event).files:
        if info.sha256 == sha256:
            return info
    raise NotFound

"""Files in their slots: records of stored files, users' uploads, and who may use a file in which conversation.

The bytes are in an object store that only routers know (`router/store/objects.py`); this module has what Redis says of
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
from collections.abc import Sequence
from typing import Any, Final, Literal

from msgspec import Struct

from router.contract import keys
from router.contract.errors import FunctionError, LinnetError, NotFound, RateLimited, Rejected, from_function
from router.contract.files import FileInfo, SharedFile
from router.store.answers import Reply, each_answer
from router.store.attaching import SENDABLE_MS, Attached, FileKept, Lookup, kept_at_once
from router.store.file_records import (
    BITS,
    PICTURES,
    Record,
    Upload,
    edges_of,
    packed_info,
    record_of,
    shown_in,
    upload_of,
)
from router.store.redis.client import Client

Found = Literal["refers", "no", "lost", "removed"]  # of a conversation that may refer to a file

PIN_S: Final = 600
UPLOAD_S: Final = 3600
KEEP_S: Final = 86_400
HOLD_S: Final = 3600
UNFINISHED: Final = 100  # resumable uploads of a user
HELD_MS: Final = 2 * 86_400_000  # longer than a resumable upload is kept after its last byte
OLD_S: Final = 600
UPLOADERS_STEP: Final = 500
USER: Final = "@"  # before the user's name, where a file may be their avatar
COUNT: Final = "?"  # the item of the due list that has unknown objects counted


class Times(Struct, frozen=True):
    """How long (s) files are kept in which state."""

    pin_s: int = PIN_S
    upload_s: int = UPLOAD_S
    keep_s: int = KEEP_S
    hold_s: int = HOLD_S
    old_s: int = OLD_S


class UploadRate(Struct, frozen=True):
    """The bounds of one user's uploads: at once, in a minute, and bytes in all."""

    at_once: int
    per_minute: int
    quota: int


class Files:
    def __init__(self, client: Client, times: Times | None = None, kept: FileKept = kept_at_once) -> None:
        self._client = client
        self._times = times or Times()
        self._kept = kept

    # -- uploading

    async def begin(
        self,
        user: str,
        upload: str,
        size: int,
        lease_ms: int,
        rate: UploadRate,
        *,
        new: bool = True,
        resumable: str = "",
    ) -> None:
        """Take a place among the user's uploads; Quota, or RateLimited. One that is not `new` was counted before.

        `resumable` names an upload whose length counts against the quota until `release`.
        """
        where = (keys.uploads(user), keys.uploading(user), keys.user(user), keys.unfinished(user))
        cost = round(60e6 / rate.per_minute) if new else 0
        args = (upload, lease_ms, rate.at_once, rate.quota, size, cost, 60_000_000, resumable, HELD_MS, UNFINISHED)
        try:
            await self._fcall("upload_begin", where, args)
        except RateLimited as error:
            raise RateLimited("too many uploads", error.retry_after) from None

    async def prolong(self, user: str, upload: str, lease_ms: int) -> None:
        """Keep the place of an upload that goes on."""
        until = await self._client.clock_ms() + lease_ms
        await self._client.fetch("ZADD", keys.uploading(user), "XX", until, upload)

    async def end(self, user: str, upload: str) -> None:
        """Give the place of an upload back."""
        await self._client.fetch("ZREM", keys.uploading(user), upload)

    async def release(self, user: str, resumable: str) -> None:
        """Count a resumable upload no more: it is a file, or was removed."""
        await self._client.fetch("HDEL", keys.unfinished(user), resumable)

    async def intent(self, sha256: str, gen: str) -> Record:
        """Name the objects of a file that are about to be put; `gen` counts if the file is new. Or Rejected."""
        name = keys.file_name(sha256)
        state, had, size, previews = await self._file("file_intent", sha256, (name, gen, self._times.upload_s))
        return Record(state == b"s", had.decode(), size, edges_of(previews))

    async def stored(self, sha256: str, record: Record, user: str) -> bool:
        """Say that a file's bytes are in the store; False if they were there before."""
        bits, picture = sum(BITS[edge] for edge in record.previews), PICTURES.index(record.picture)
        args = (keys.file_name(sha256), record.gen, record.size, bits, picture, user, self._times.keep_s)
        return bool(await self._file("file_stored", sha256, args))

    async def own(self, user: str, info: FileInfo, quota: int) -> None:
        """Enter an upload among those of the user; Quota if that is too much, NotFound if the account was deleted."""
        args = (bytes.fromhex(info.sha256), info.size, packed_info(info), quota)
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
        record = record_of(packed)
        if record is None or not record.stored:
            raise NotFound
        return record

    async def upload(self, user: str, sha256: str) -> Upload:
        """The user's own upload."""
        row, _ = await self._fcall("upload_rows", (keys.uploads(user),), (0, bytes.fromhex(sha256)))
        if row is None:
            raise NotFound
        return upload_of(sha256, row)

    async def shown(self, conv: str, user: str | None, sha256: str) -> FileInfo | None:
        """The file as the newest message has it that the user may see; None if it is the avatar."""
        where = (keys.conversation(conv), keys.log(conv))
        return shown_in(sha256, await self._fcall("find_file", where, (user or "", bytes.fromhex(sha256))))

    async def opened(self, user: str, conv: str, hashes: Sequence[str]) -> None:
        """Note that the user has opened files in a conversation: they can be sent for a day without naming it."""
        seconds = SENDABLE_MS // 1000
        await gather(*(self._client.fetch("SET", keys.opened(user, sha), conv, "EX", seconds) for sha in hashes))

    def attach(self, user: str, conv: str, given: Sequence[SharedFile], reply: Reply[Attached]) -> None:
        """Look up the files of a message, or an avatar, and pin them for its conversation or `@user`.

        REFUSED if the user may not use one.
        """
        Lookup(self._client, user, conv, given, self._times.pin_s, self._kept, reply)

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
        record = record_of(packed)
        return due is not None or (record is not None and record.gen == gen)

    async def _file(self, function: str, sha256: str, args: Sequence[Any]) -> Any:
        return await self._fcall(function, (keys.file(sha256), keys.file_due(keys.file_partition(sha256))), args)

    async def _fcall(self, function: str, where: Sequence[str], args: Sequence[Any]) -> Any:
        try:
            return await self._client.fcall(function, where, args)
        except FunctionError as error:
            raise from_function(error) from None


def _pair(sha256: str, conv: str) -> str:
    return f"{keys.file_name(sha256)} {conv}"

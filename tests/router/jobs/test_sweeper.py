"""Files are removed when nothing refers to them, and only those that Redis names."""

from __future__ import annotations

import asyncio
import os
import shutil
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from functools import partial
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace

from deploy.embedded import EmbeddedValkey
from router.contract import keys, metrics, stamp
from router.contract.errors import NotFound, StartupError, Unavailable
from router.contract.files import SharedFile
from router.contract.packing import pack
from router.jobs.finisher import Finisher
from router.jobs.sweeper import LIMIT, Sweeper
from router.media.receiving import Spool
from router.media.types import Received
from router.media.uploads import Limits, Uploads, as_it_is
from router.store.answers import reply_of
from router.store.appends import Append, Appended
from router.store.deployment import mark_media, media_marked
from router.store.files import COUNT, Files, Times
from router.store.objects import MARKER, Objects
from router.store.resumable import Resumables
from tests.router.world import World, settings, world

PAST = Times(pin_s=0, upload_s=0, keep_s=0, hold_s=3600)  # everything is old
SIZES = Limits(10**6, 10**6, 10**6, 10**6)


class Store:
    """A folder as the store of one deployment, and the parts of a router that use it."""

    def __init__(self, w: World, folder: Path, deployment: str = "ours") -> None:
        self.w = w
        self.folder = folder / "store"
        self.objects = Objects(f"file://{self.folder}", deployment)
        self.files = Files(w.client)
        self.uploads = Uploads(self.files, self.objects, as_it_is, SIZES, 10**9)
        self.spool = Spool(str(folder))

    def sweeper(self, times: Times = PAST, ident: str = "ours", deployment: str = "ours") -> Sweeper:
        async def found() -> str:
            return ident

        client = self.w.client
        return Sweeper(
            Files(client, times), Resumables(client), self.objects, self.spool, found, partial(media_marked, client),
            partial(mark_media, client), deployment,
        )  # fmt: skip

    async def upload(self, user: str, content: str) -> str:
        async with self.spool.folder() as folder:
            path = folder / "received"
            path.write_text(content)
            sha = sha256(content.encode()).hexdigest()
            received = Received(path, len(content), sha, "text/plain", None, content)
            return (await self.uploads.accept(user, received)).sha256

    async def send(self, user: str, conv: str, *shas: str) -> Appended:
        attached = await reply_of(self.files.attach, user, conv, tuple(map(SharedFile, shas)))
        fields = {"media": pack("text"), "body": pack("hi"), "files": pack(attached.infos)}
        tail = stamp.tail("message", conv, user, "phone", 0, fields)
        return await reply_of(
            self.w.conversations.append, Append(conv, user, "phone", 0, 0, b"x" * 8, tail, files=attached.pins)
        )

    async def delete(self, user: str, conv: str, seq: int) -> None:
        tail = stamp.tail("delete", conv, user, "phone", 0, {"target": pack(seq)})
        await reply_of(
            self.w.conversations.append, Append(conv, user, "phone", 0, 0, b"y" * 8, tail, "delete", target=seq)
        )

    async def finish(self, conv: str) -> None:
        w = self.w
        await Finisher(settings(), w.conversations, w.users, w.pushes, w.dirty, w.contacts, self.files, w.audit).finish(
            conv
        )

    def due_now(self) -> None:
        """Make all items due, as if their time had come."""
        with self.w.valkey.client() as redis:
            for key in redis.scan_iter("{f*}:due"):
                for item in redis.zrange(key, 0, -1):
                    redis.zadd(key, {item: 1})

    @property
    def names(self) -> set[str]:
        """The hashes of the files that the store has."""
        return {path.name.partition(".")[0] for path in self.folder.rglob("files/*/*")}


@asynccontextmanager
async def a_store(valkey: EmbeddedValkey, folder: Path) -> AsyncIterator[Store]:
    async with world(valkey) as w:
        yield Store(w, folder)


async def sweep(store: Store, ident: str = "ours") -> None:
    """As many rounds as an item can take, each when its time has come."""
    sweeper = store.sweeper(ident=ident)
    for _ in range(3):
        store.due_now()
        await sweeper.sweep()


async def set_avatar(store: Store, user: str, sha: str) -> None:
    pins = (await reply_of(store.files.attach, user, f"@{user}", (SharedFile(sha),))).pins
    await store.w.profiles.change(user, {"avatar": pins})


async def test_avatar_of_a_user_stays_until_it_is_replaced(valkey: EmbeddedValkey, tmp_path: Path) -> None:
    """Or the account ends; a router that finds the user's mark lets the sweeper know."""
    async with a_store(valkey, tmp_path) as store:
        await store.sweeper().start()
        await store.w.accounts.ensure("ann")
        first, second = await store.upload("ann", "first"), await store.upload("ann", "second")
        await set_avatar(store, "ann", first)
        await sweep(store)
        assert store.names == {first}
        second = await store.upload("ann", "second")
        for name in ("first again", "second"):
            await set_avatar(store, "ann", await store.upload("ann", name))
        await sweep(store)
        assert first in store.names, "the file does not know yet"
        await store.finish("@ann")
        await sweep(store)
        assert store.names == {second}
        assert await store.files.former_avatars("ann") == b""
        await store.w.profiles.change("ann", {"avatar": None})
        await set_avatar(store, "ann", await store.upload("ann", "last"))
        for _ in range(2):
            await store.w.accounts.delete("ann")
        await store.finish("@ann")
        await sweep(store)
        assert store.names == set()


async def test_pin_of_an_avatar_that_never_came_is_taken_back(valkey: EmbeddedValkey, tmp_path: Path) -> None:
    """As after the death of a router between the pin and the profile; a pin that is too old is refused."""
    async with a_store(valkey, tmp_path) as store:
        await store.sweeper().start()
        await store.w.accounts.ensure("ann")
        sha = await store.upload("ann", "a")
        attached = await reply_of(store.files.attach, "ann", "@ann", (SharedFile(sha),))
        await sweep(store)
        assert store.names == set()
        old = (int.from_bytes(attached.pins[:4]) - 600).to_bytes(4) + attached.pins[4:]
        with pytest.raises(Unavailable):
            await store.w.profiles.change("ann", {"avatar": old})
        profile = await store.w.profiles.read("ann")
        assert profile is not None
        assert profile.avatar is None


async def test_unreferenced_file_is_removed_and_a_referenced_one_stays(valkey: EmbeddedValkey, tmp_path: Path) -> None:
    """Until its message is deleted; then its uploader's quota is free again."""
    async with a_store(valkey, tmp_path) as store:
        await store.sweeper().start()
        conv = await store.w.group("ann", "bob")
        unsent, sent = await store.upload("ann", "unsent"), await store.upload("ann", "sent")
        message = await store.send("ann", conv, sent)
        assert store.names == {unsent, sent}
        await sweep(store)
        assert store.names == {sent}
        await store.delete("ann", conv, message.seq)
        await store.finish(conv)
        await sweep(store)
        assert store.names == set()
        assert await store.w.client.fetch("EXISTS", keys.uploads("ann"), keys.file(sent)) == 0


async def test_file_is_kept_for_a_day(valkey: EmbeddedValkey, tmp_path: Path) -> None:
    """By Redis's clock; a claim that comes early changes nothing."""
    async with a_store(valkey, tmp_path) as store:
        await store.sweeper().start()
        sha = await store.upload("ann", "unsent")
        sweeper = store.sweeper(Times())
        store.due_now()
        await sweeper.sweep()
        assert store.names == {sha}
        due = await store.w.client.fetch("ZSCORE", keys.file_due(keys.file_partition(sha)), keys.file_name(sha))
        assert 86_390_000 < float(due) - await store.w.client.clock_ms() <= 86_400_000


async def test_removed_conversation_releases_its_files(valkey: EmbeddedValkey, tmp_path: Path) -> None:
    async with a_store(valkey, tmp_path) as store:
        await store.sweeper().start()
        conv = await store.w.group("ann", "bob")
        shas = {await store.upload("ann", str(i)) for i in range(5)}
        await store.send("ann", conv, *shas)
        await store.w.conversations.remove_conversation(conv, "ann")
        await store.finish(conv)
        assert await store.w.client.fetch("EXISTS", keys.conversation(conv)) == 0
        await sweep(store)
        assert store.names == set()


async def test_reference_is_kept_if_redis_has_lost_its_conversation(valkey: EmbeddedValkey, tmp_path: Path) -> None:
    """Silence is no reason to delete."""
    async with a_store(valkey, tmp_path) as store:
        await store.sweeper().start()
        conv = await store.w.group("ann", "bob")
        sha = await store.upload("ann", "sent")
        await store.send("ann", conv, sha)
        await sweep(store)
        await store.w.client.fetch("DEL", keys.conversation(conv))
        await store.files.recheck(sha, conv)
        await sweep(store)
        assert store.names == {sha}


async def test_failed_message_leaves_no_reference(valkey: EmbeddedValkey, tmp_path: Path) -> None:
    """Its pin ends, also if its conversation never came into being."""
    async with a_store(valkey, tmp_path) as store:
        await store.sweeper().start()
        sha = await store.upload("ann", "sent")
        for conv in (await store.w.group("ann", "bob"), "d:ann:nobody"):
            await reply_of(store.files.attach, "ann", conv, (SharedFile(sha),))
        await sweep(store)
        assert store.names == set()


async def test_broken_upload_is_removed(valkey: EmbeddedValkey, tmp_path: Path) -> None:
    """Whether the router died before or after the object was put."""
    async with a_store(valkey, tmp_path) as store:
        await store.sweeper().start()
        for content in ("before", "after"):
            record = await store.files.intent(sha256(content.encode()).hexdigest(), "AAAAAAAA")
            if content == "after":
                path = tmp_path / "bytes"
                path.write_text(content)
                sha = sha256(content.encode()).hexdigest()
                await store.objects.put(f"files/{sha[:2]}/{sha}.{record.gen}", path, 5)
        assert len(store.names) == 1
        await sweep(store)
        assert store.names == set()
        assert store.w.valkey.client().keys("{f*}:file:*") == []


def emptied(store: Store) -> None:
    with store.w.valkey.client() as redis:
        redis.flushall()


def lost_its_files(store: Store) -> None:
    with store.w.valkey.client() as redis:
        for key in redis.scan_iter("{f*}:file:*"):
            redis.delete(key)


def restored(store: Store) -> None:
    """The data of an hour ago, at which time the file was not sent yet, on another server."""
    with store.w.valkey.client() as redis:
        for key in redis.scan_iter("{c*}:conv:*"):
            redis.delete(key)
        hour_ago = redis.time()[0] - 3600
        for key in redis.scan_iter("{f*}:held"):
            redis.hset(key, mapping={"id": "f" * 16, "at": hour_ago})
        for key in redis.scan_iter("{f*}:file:*"):
            for field in redis.hkeys(key):
                if field.startswith(b"c:"):
                    redis.hdel(key, field)


@pytest.mark.parametrize("what", [emptied, lost_its_files, restored])
async def test_wrong_redis_deletes_nothing(
    valkey: EmbeddedValkey, tmp_path: Path, what: Callable[[Store], None]
) -> None:
    """Neither a Redis that was emptied, nor one that has lost some keys, nor a restored backup."""
    async with a_store(valkey, tmp_path) as store:
        times = replace(PAST, keep_s=86_400, upload_s=0)
        await store.sweeper().start()
        conv = await store.w.group("ann", "bob")
        sent, unsent = await store.upload("ann", "sent"), await store.upload("ann", "unsent")
        await store.send("ann", conv, sent)
        sweeper = store.sweeper(times)
        for _ in range(3):  # so that each partition knows its server
            store.due_now()
            await sweeper.sweep()
        assert store.names == {sent, unsent}
        what(store)
        sweeper = store.sweeper(
            replace(PAST, hold_s=0, keep_s=86_400) if what is not restored else replace(PAST, old_s=10**9)
        )
        for _ in range(3):
            store.due_now()
            await sweeper.sweep()
        assert store.names == {sent, unsent}


async def test_redis_restored_from_a_backup_deletes_nothing(own_valkey: EmbeddedValkey, tmp_path: Path) -> None:
    """Its files are put back as they were: what was uploaded and referred to since is unknown to it, and is kept."""
    async with a_store(own_valkey, tmp_path) as store:
        await store.sweeper().start()
        conv = await store.w.group("ann", "bob")
        sent, unsent = await store.upload("ann", "sent"), await store.upload("ann", "unsent")
        await store.send("ann", conv, sent)
        for _ in range(3):  # so that each partition knows its server
            store.due_now()
            await store.sweeper(replace(PAST, upload_s=0, keep_s=86_400)).sweep()
    own_valkey.stop()
    shutil.copytree(own_valkey.folder, tmp_path / "backup")
    own_valkey.start()
    async with a_store(own_valkey, tmp_path) as store:
        await store.sweeper().start()
        late = await store.upload("ann", "late")
        await store.send("ann", conv, late, unsent)
    own_valkey.stop()
    shutil.rmtree(own_valkey.folder)
    (tmp_path / "backup").rename(own_valkey.folder)
    own_valkey.start()
    async with a_store(own_valkey, tmp_path) as store:
        sweeper = store.sweeper()
        await sweeper.start()
        for _ in range(3):
            store.due_now()
            await sweeper.sweep()
        assert store.names == {sent, unsent, late}


async def test_store_and_redis_of_two_deployments_are_told_apart(valkey: EmbeddedValkey, tmp_path: Path) -> None:
    """At the start, and when Redis is exchanged later; a store without its marker is not marked again."""
    async with a_store(valkey, tmp_path) as store:
        await store.sweeper().start()
        sha = await store.upload("ann", "unsent")
        await sweep(store, ident="theirs")
        assert store.names == {sha}
        theirs = Store(store.w, tmp_path, "theirs")
        with pytest.raises(StartupError, match="another deployment"):
            await theirs.sweeper(deployment="theirs").start()
        (store.folder / MARKER).unlink()
        with pytest.raises(StartupError, match="no object"):
            await Store(store.w, tmp_path).sweeper().start()
        assert not (store.folder / MARKER).exists()


async def test_unknown_objects_are_counted_and_kept(valkey: EmbeddedValkey, tmp_path: Path) -> None:
    """Files and parts of uploads; a count that does not end is begun again after an hour, not by the next router."""
    async with a_store(valkey, tmp_path) as store:
        await store.sweeper().start()
        sha = await store.upload("ann", "unsent")
        strangers = [
            store.folder / "files" / sha[:2] / f"{sha}.ANOTHER1",
            store.folder / "files" / "readme",
            store.folder / "uploads" / ("e" * 32) / "part1",
        ]
        for stranger in strangers:
            stranger.parent.mkdir(parents=True, exist_ok=True)
            stranger.write_text("x")
        resumables, upload = Resumables(store.w.client), "f" * 32
        await resumables.create(upload, "ann", 2, b"")
        await resumables.lock(upload, "ann", "t", 60_000)
        for number, name in enumerate((f"uploads/{upload}/t1", f"uploads/{upload}/t2")):
            await resumables.name(upload, name)
            (store.folder / name).parent.mkdir(exist_ok=True)
            (store.folder / name).write_text("x")
            if not number:
                await resumables.advance(upload, "t", 0, 1, name, 60_000)
        sweeper = store.sweeper(Times())
        listed: list[float] = []
        names = store.objects.names

        async def listing(prefix: str) -> AsyncIterator[str]:
            listed.append(float(await store.w.client.fetch("ZSCORE", keys.file_due(0), "?")))
            async for name in names(prefix):
                yield name

        store.objects.names = listing  # type: ignore[method-assign]
        await sweeper.sweep()
        assert metrics.MEDIA_UNKNOWN_OBJECTS._value.get() == len(strangers)
        assert all(stranger.exists() for stranger in strangers)
        now = await store.w.client.clock_ms()
        assert listed
        assert min(listed) > now + 3_000_000
        again = await store.w.client.fetch("ZSCORE", keys.file_due(0), "?")
        assert float(again) > now + 80_000_000


async def test_store_that_is_away_is_not_asked_for_every_due_object(
    valkey: EmbeddedValkey, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A sweep ends with the round in which something failed, and the next one tries again."""
    async with a_store(valkey, tmp_path) as store:
        sweeper = store.sweeper(Times())
        await sweeper.start()
        for number in range(3 * LIMIT):
            await store.w.client.fetch("ZADD", keys.file_due(7), 1, f"!files/{number}")
        asked: list[str] = []

        async def away(name: str) -> None:
            asked.append(name)
            raise Unavailable

        monkeypatch.setattr(store.objects, "delete", away)
        await sweeper.sweep()
        assert len(asked) == LIMIT


async def test_sweep_that_ends_at_any_step_is_finished_by_the_next_one(
    valkey: EmbeddedValkey, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A sweep ends so if its router dies. The next one removes all objects without a reference, and no others."""
    async with a_store(valkey, tmp_path) as store:
        await store.sweeper().start()
        conv = await store.w.group("ann", "bob")
        sent, steps, reached = await store.upload("ann", "sent"), 0, False
        await store.send("ann", conv, sent)
        while not reached:
            await store.upload("bob", f"unsent {steps}")
            deleted = await store.upload("bob", f"deleted {steps}")
            await store.delete("bob", conv, (await store.send("bob", conv, deleted)).seq)
            await store.finish(conv)
            store.due_now()
            with monkeypatch.context() as patch:
                calls = dies_after(patch, store, steps)
                for _ in range(2):
                    with suppress(Unavailable):
                        await store.sweeper().sweep()
                reached = calls[0] <= steps
            await sweep(store)
            assert store.names == {sent}, steps
            with store.w.valkey.client() as redis:
                assert [key.decode() for key in redis.scan_iter("{f*}:file:*")] == [keys.file(sent)]
                due = [item for key in redis.scan_iter("{f*}:due") for item in redis.zrange(key, 0, -1)]
            assert due == [COUNT.encode()], steps
            assert await store.w.client.fetch("EXISTS", keys.uploads("bob")) == 0
            steps += 1
        assert steps > 10


def dies_after(patch: pytest.MonkeyPatch, store: Store, steps: int) -> list[int]:
    """Let the store and Redis answer only so many calls; return the number of calls so far, in a list."""
    calls = [0]

    def counted(real: Callable[..., Awaitable[Any]]) -> Callable[..., Awaitable[Any]]:
        async def call(*args: Any) -> Any:
            calls[0] += 1
            if calls[0] > steps:
                raise Unavailable
            return await real(*args)

        return call

    for part, name in ((store.w.client, "fetch"), (store.w.client, "fcall"), (store.objects, "delete")):
        patch.setattr(part, name, counted(getattr(part, name)))
    return calls


async def test_what_killed_processes_left_is_removed(valkey: EmbeddedValkey, tmp_path: Path) -> None:
    """Drafts of puts and folders of uploads, if they are old; not that of an upload that has gone on for hours."""
    async with a_store(valkey, tmp_path) as store:
        await store.sweeper().start()
        left = [store.folder / "files#1", *(tmp_path / f"linnet-upload-{name}" for name in ("left", "new", "long"))]
        left[0].write_text("x")
        for folder in left[1:]:
            folder.mkdir()
            (folder / "received").write_text("x")
        for old in (left[0], left[1] / "received", left[1], left[3]):
            os.utime(old, (1, 1))
        await store.sweeper().tidy()
        assert [path.exists() for path in left] == [False, False, True, True]


async def test_uploads_and_sweeps_at_once_leave_no_reference_without_its_object(
    valkey: EmbeddedValkey, tmp_path: Path
) -> None:
    """While everything is swept at once, files are uploaded and sent again and again."""
    async with a_store(valkey, tmp_path) as store:
        await store.sweeper().start()
        conv = await store.w.group("ann", "bob")
        kept: set[str] = set()
        sweeper, done = store.sweeper(replace(PAST, pin_s=600)), asyncio.Event()

        async def sweeping() -> None:
            while not done.is_set():
                store.due_now()
                await sweeper.sweep()

        async def sending(number: int) -> None:
            for i in range(8):
                sha = await store.upload("ann", f"content {(number + i) % 5}")
                try:
                    await store.send("ann", conv, sha)
                except NotFound:  # swept since
                    continue
                kept.add(sha)

        running = asyncio.create_task(sweeping())
        await asyncio.gather(*(sending(number) for number in range(4)))
        done.set()
        await running
        assert kept
        assert kept <= store.names

"""Files in their slots: who may use one where, what a message refers to, and what may be removed when."""

from __future__ import annotations

from hashlib import sha256
from typing import Any

import pytest
from msgspec.structs import replace

from deploy.embedded import EmbeddedValkey
from router.contract import keys, stamp
from router.contract.errors import LinnetError, NotFound, Quota, RateLimited, Rejected, Unavailable
from router.contract.files import FileInfo, SharedFile
from router.contract.packing import pack
from router.store.accounts import Accounts
from router.store.appends import Append, Appended
from router.store.attaching import REFUSED, Attached
from router.store.file_records import Record
from router.store.files import Files, Times, UploadRate
from router.store.redis.client import Client
from tests.store.calling import Store, called, event, store

RATE = UploadRate(at_once=3, per_minute=60, quota=1000)
GEN, OTHER_GEN = "AAAAAAAA", "BBBBBBBB"
PAST = Times(pin_s=0, upload_s=0, keep_s=0)  # everything is old


def hashed(text: str) -> str:
    return sha256(text.encode()).hexdigest()


def info_of(name: str, size: int = 10) -> FileInfo:
    return FileInfo(sha256=hashed(name), type="text/plain", kind="file", size=size, name=name)


def video_of(name: str) -> FileInfo:
    return replace(info_of(name), type="video/mp4", kind="video")


def picture_of(name: str) -> FileInfo:
    return replace(info_of(name), type="image/png", kind="image", width=40, height=30, previews=[320])


async def uploaded(files: Files, user: str, name: str, size: int = 10) -> str:
    """A file that this user has uploaded."""
    return await uploaded_as(files, user, info_of(name, size))


async def uploaded_as(files: Files, user: str, info: FileInfo) -> str:
    record = await files.intent(info.sha256, GEN)
    await files.stored(info.sha256, replace(record, size=info.size), user)
    await files.own(user, info, RATE.quota)
    return info.sha256


async def attach(files: Files, user: str, conv: str, *given: SharedFile) -> Attached:
    attached: Attached = await called(files.attach, user, conv, given)
    return attached


def with_files(a: Append, attached: Attached) -> Append:
    """The message with these files, as both processes build it."""
    fields = {"media": pack("text"), "body": pack("hello")}
    if attached.infos:
        fields["files"] = pack(attached.infos)
    return replace(a, tail=stamp.tail("message", a.conversation, a.user, a.device, a.n, fields), files=attached.pins)


async def send(s: Store, files: Files, conv: str, user: str, *given: SharedFile, n: int = 0) -> Appended:
    attached = await attach(files, user, conv, *given)
    appended: Appended = await called(s.conversations.append, with_files(event(conv, user, n), attached))
    return appended


async def due(s: Store, sha: str) -> list[str]:
    """The items of the due list of this file's partition."""
    return [item.decode() for item in await s.client.fetch("ZRANGE", keys.file_due(keys.file_partition(sha)), 0, -1)]


async def settle(files: Files, sha: str, conv: str) -> int:
    return await files.settle(sha, conv, await files.refers(sha, conv))


# -- sending


async def test_file_of_a_message_is_seen_by_members_within_their_range(valkey: EmbeddedValkey) -> None:
    """Not by who came later, not by who is no member, and not by who was removed."""
    async with store(valkey.url) as s:
        files = Files(s.client)
        sha = await uploaded(files, "ann", "a")
        conv = await s.group(ann="o", bob="m")
        sent = await send(s, files, conv, "ann", SharedFile(sha), n=1)
        assert [one.sha256 for one in (await s.log(conv))[-1]["files"] and [info_of("a")]] == [sha]
        assert (await s.log(conv))[-1]["seq"] == sent.seq
        for user in ("ann", "bob", None):
            shown = await files.shown(conv, user, sha)
            assert shown == info_of("a")
        await s.conversations.member(conv, "ann", "cid", "put")
        for user in ("cid", "dan"):
            with pytest.raises(NotFound):
                await files.shown(conv, user, sha)
        await s.conversations.member(conv, "ann", "bob", "remove")
        with pytest.raises(NotFound):
            await files.shown(conv, "bob", sha)
        await s.conversations.member(conv, "ann", "bob", "put")
        assert await files.shown(conv, "bob", sha) == info_of("a")  # sent in an earlier membership
        await send(s, files, conv, "ann", SharedFile(sha), n=2)
        assert await files.shown(conv, "cid", sha) == info_of("a")


async def test_deleted_message_takes_its_references(valkey: EmbeddedValkey) -> None:
    """The file stays as long as another message has it."""
    async with store(valkey.url) as s:
        files = Files(s.client)
        sha = await uploaded(files, "ann", "a")
        conv = await s.group(ann="o", bob="m")
        first = await send(s, files, conv, "ann", SharedFile(sha), SharedFile(sha), n=1)
        second = await send(s, files, conv, "ann", SharedFile(sha), n=2)
        await s.send(conv, "ann", 3, action="delete", target=first.seq)
        assert await files.shown(conv, "bob", sha) == info_of("a")
        (head,) = await called(s.conversations.heads, [conv])
        assert head.freed == b""
        await s.send(conv, "ann", 4, action="delete", target=second.seq)
        with pytest.raises(NotFound):
            await files.shown(conv, "bob", sha)
        (head,) = await called(s.conversations.heads, [conv])
        assert head.freed == bytes.fromhex(sha)


async def test_message_with_files_and_any_body_can_be_deleted(valkey: EmbeddedValkey) -> None:
    """Its body has byte strings, extensions, all kinds of numbers, and what looks like the files. So for trimming."""
    odd: list[object] = [b"raw", b"x" * 300, b"y" * 40_000, 1.5, -1, -200, -70_000, 2**31]
    odd += [2**63, 300, 70_000, None, True, "s" * 40, "t" * 300, list(range(20)), {str(i): i for i in range(20)}]
    async with store(valkey.url) as s:
        files = Files(s.client)
        bodies = [pack(body) for body in (b"bytes", {"files": [b"\xa5files", {"sha256": "no"}]}, odd)]
        for body in (*bodies, b"\x92\xd6\x05abcd\xc7\x03\x05abc"):
            sha = await uploaded(files, "ann", "a")
            conv = await s.group(ann="o")
            sent = []
            for n in (1, 2):
                attached = await attach(files, "ann", conv, SharedFile(sha))
                fields = {"media": pack("text"), "body": body, "files": pack(attached.infos)}
                tail = stamp.tail("message", conv, "ann", "phone", n, fields)
                append = replace(event(conv, "ann", n), tail=tail, files=attached.pins)
                sent.append((await called(s.conversations.append, append)).seq)
            await s.send(conv, "ann", 3, action="delete", target=sent[1])
            head = await s.send(conv, "ann", 4)
            assert (await s.dirty.mark_routed(conv, head.seq, 1, 10**12)).trimmed
            (found,) = await called(s.conversations.heads, [conv])
            assert found.freed == bytes.fromhex(sha)


async def test_trimmed_message_takes_its_references(valkey: EmbeddedValkey) -> None:
    """By retention and by the safety cap; the conversation stays marked until the file's slot knows."""
    async with store(valkey.url, cap=10) as s:
        files = Files(s.client)
        shas = [await uploaded(files, "ann", name) for name in "ab"]
        for n, sha in enumerate(shas):
            conv = await s.group(ann="o")
            await send(s, files, conv, "ann", SharedFile(sha), n=1)
            head = await s.send(conv, "ann", 2, body="files")
            for _ in range(130 if n else 0):
                head = await s.send(conv, "ann")
            done = await s.dirty.mark_routed(conv, head.seq, 1 if not n else 100, 10**12)
            assert done.trimmed or n
            with pytest.raises(NotFound):
                await files.shown(conv, "ann", sha)
            (found,) = await called(s.conversations.heads, [conv])
            assert found.freed == bytes.fromhex(sha)
            assert await s.client.fetch("ZSCORE", keys.dirty(keys.partition(conv)), conv) is not None
            await files.clear_freed(conv, found.freed)
            await s.dirty.mark_routed(conv, head.seq, 100, 10**12)
            assert await s.client.fetch("ZSCORE", keys.dirty(keys.partition(conv)), conv) is None


async def test_resend_is_acked_whatever_became_of_its_file(valkey: EmbeddedValkey) -> None:
    """A refusal comes after n: accepted before means acked again; a new n is refused."""
    async with store(valkey.url) as s:
        files = Files(s.client)
        sha = await uploaded(files, "ann", "a")
        conv = await s.group(ann="o")
        sent = await send(s, files, conv, "ann", SharedFile(sha), n=1)
        again = await called(s.conversations.append, with_files(event(conv, "ann", 1), REFUSED))
        assert (again.seq, again.duplicate) == (sent.seq, True)
        with pytest.raises(NotFound):
            await called(s.conversations.append, with_files(event(conv, "ann", 2), REFUSED))
        assert len(await s.log(conv)) == 1


@pytest.mark.parametrize("why", ["unknown", "of another user", "old", "not stored", "in a place unseen", "bad place"])
async def test_file_that_the_sender_may_not_use_is_refused(valkey: EmbeddedValkey, why: str) -> None:
    async with store(valkey.url) as s:
        files = Files(s.client)
        conv, other = await s.group(ann="o"), await s.group(bob="o")
        sha = await uploaded(files, "bob" if why == "of another user" else "ann", "a")
        given = SharedFile(sha)
        if why == "unknown":
            given = SharedFile(hashed("b"))
        elif why == "old":
            row = await s.client.fetch("HGET", keys.uploads("ann"), bytes.fromhex(sha))
            await s.client.fetch("HSET", keys.uploads("ann"), bytes.fromhex(sha), b"\0" * 8 + row[8:])
        elif why == "not stored":
            await s.client.fetch("DEL", keys.file(sha))
            await files.intent(sha, GEN)
        elif why == "in a place unseen":
            await send(s, files, other, "bob", SharedFile(await uploaded(files, "bob", "a")))
            given = SharedFile(sha, other)
        elif why == "bad place":
            given = SharedFile(sha, "nowhere")
        assert await attach(files, "ann", conv, given) == REFUSED


async def test_file_seen_in_a_conversation_can_be_forwarded(valkey: EmbeddedValkey) -> None:
    """With the name that it has there."""
    async with store(valkey.url) as s:
        files = Files(s.client)
        here, there = await s.group(ann="o", bob="m"), await s.group(bob="o", cid="m")
        sha = await uploaded(files, "ann", "a")
        await send(s, files, here, "ann", SharedFile(sha))
        await send(s, files, there, "bob", SharedFile(sha, here))
        assert await files.shown(there, "cid", sha) == info_of("a")


async def test_poster_is_a_file_of_its_message(valkey: EmbeddedValkey) -> None:
    """It is seen, forwarded, pinned and released with its video; the event has its size and previews."""
    async with store(valkey.url) as s:
        files = Files(s.client)
        here, there = await s.group(ann="o", bob="m"), await s.group(bob="o", cid="m")
        video, still = [await uploaded_as(files, "ann", info) for info in (video_of("v"), picture_of("p"))]
        sent = await send(s, files, here, "ann", SharedFile(video, poster=still), n=1)
        poster = {"sha256": still, "type": "image/png", "size": 10, "width": 40, "height": 30, "previews": [320]}
        assert [one["poster"] for one in (await s.log(here))[-1]["files"]] == [poster]
        assert await files.shown(here, "bob", still) == replace(picture_of("p"), name="")
        await send(s, files, there, "bob", SharedFile(video, here), n=1)
        assert [one["poster"] for one in (await s.log(there))[-1]["files"]] == [poster]
        assert [await settle(files, still, conv) for conv in (here, there)] == [2, 2]
        again = await send(s, files, here, "ann", SharedFile(video), n=2)
        assert "poster" not in (await s.log(here))[-1]["files"][0]
        await s.send(here, "ann", 3, action="delete", target=sent.seq)
        with pytest.raises(NotFound):
            await files.shown(here, "bob", still)
        assert await files.shown(here, "bob", video) == video_of("v")
        (head,) = await called(s.conversations.heads, [here])
        assert head.freed == bytes.fromhex(still)
        await s.send(here, "ann", 4, action="delete", target=again.seq)
        (head,) = await called(s.conversations.heads, [here])
        assert head.freed == bytes.fromhex(still) + bytes.fromhex(video)
        assert (await files.shown(there, "cid", still)) is not None


async def test_poster_is_a_picture_of_the_sender_for_a_video(valkey: EmbeddedValkey) -> None:
    """Any other poster is refused. A picture that is also a file of the message is shown as that file."""
    async with store(valkey.url) as s:
        files = Files(s.client)
        conv, other = await s.group(ann="o", bob="m"), await s.group(bob="o")
        video, still = [await uploaded_as(files, "ann", info) for info in (video_of("v"), picture_of("p"))]
        his = await uploaded_as(files, "bob", picture_of("his"))
        plain = await uploaded(files, "ann", "plain")
        for given in (
            SharedFile(video, poster=his),
            SharedFile(video, poster=plain),
            SharedFile(video, poster=hashed("unknown")),
            SharedFile(still, poster=still),
            SharedFile(plain, poster=still),
            SharedFile(plain, conv, poster=still),
        ):
            assert await attach(files, "ann", conv, SharedFile(plain), given) == REFUSED
        await send(s, files, conv, "ann", SharedFile(still), SharedFile(video, poster=still))
        assert await files.shown(conv, "bob", still) == picture_of("p")
        forwarded = await attach(files, "bob", other, SharedFile(video, conv, his), SharedFile(still, conv))
        assert [info.poster and info.poster.sha256 for info in forwarded.infos] == [his, None]
        assert len(forwarded.pins) == 4 + 3 * 32


async def test_message_is_refused_if_its_pins_are_old(valkey: EmbeddedValkey) -> None:
    """A sender that was stopped for minutes looks its files up again."""
    async with store(valkey.url) as s:
        files = Files(s.client)
        sha = await uploaded(files, "ann", "a")
        conv = await s.group(ann="o")
        attached = await attach(files, "ann", conv, SharedFile(sha))
        late = Attached(attached.infos, b"\0\0\0\1" + attached.pins[4:])
        with pytest.raises(Unavailable):
            await called(s.conversations.append, with_files(event(conv, "ann", 1), late))
        assert await s.log(conv) == []


async def test_message_without_files_runs_no_more_commands_than_before(valkey: EmbeddedValkey) -> None:
    """Counted by the server, in the send with the fewest: the checks of the server run beside."""

    async def commands(s: Store) -> dict[str, int]:
        found = await s.client.fetch("INFO", "commandstats")
        rows = (line.split(":") for line in found.decode().split("\r\n") if line.startswith("cmdstat_"))
        return {name: int(row.split(",")[0].removeprefix("calls=")) for name, row in rows}

    async with store(valkey.url) as s:
        conv, direct = await s.group(ann="o", bob="m"), keys.direct("ann", "bob")
        for user in ("ann", "bob"):
            await Accounts(s.client).ensure(user)
        await called(s.conversations.create_direct, "ann", "bob", 1, 1_000_000)
        await s.send(conv, "ann", 1)
        await s.send(direct, "ann", 1)
        for where, most in ((conv, 5), (direct, 13)):
            least = 1000
            for n in range(2, 7):
                before = await commands(s)
                await s.send(where, "ann", n)
                after = await commands(s)
                used = {name: calls - before.get(name, 0) for name, calls in after.items()}
                least = min(least, sum(used.values()) - used["cmdstat_fcall"] - used["cmdstat_info"])
            assert least <= most


# -- uploading


async def test_uploads_of_a_user_are_bounded(valkey: EmbeddedValkey) -> None:
    """At once, in a minute, and in bytes; a refused one does not count, and one that ended frees its place."""
    async with store(valkey.url) as s:
        files = Files(s.client)
        await Accounts(s.client).ensure("ann")
        for upload in "abc":
            await files.begin("ann", upload, 1, 60_000, RATE)
        for _ in range(100):
            with pytest.raises(RateLimited):
                await files.begin("ann", "d", 1, 60_000, RATE)
        await files.end("ann", "a")
        accepted = 0
        while accepted < 500:  # the rate goes on meanwhile
            try:
                await files.begin("ann", "d", 1, 60_000, RATE)
            except RateLimited:
                break
            await files.end("ann", "d")
            accepted += 1
        assert 57 <= accepted < 500
        with pytest.raises(Quota):
            await files.begin("ann", "e", 1001, 60_000, RATE)


async def test_partition_of_files_that_does_not_answer_costs_only_its_own_claim(
    valkey: EmbeddedValkey, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the others have claimed is worked on, instead of waiting for the end of its lease."""
    monkeypatch.setattr(Client, "one_server", property(lambda _: False))
    async with store(valkey.url) as s:
        for part in (7, 9):
            await s.client.fetch("ZADD", keys.file_due(part), 1, f"item of {part}")
        await s.client.fetch("SET", keys.file_due(8), "no set")
        seven, eight, nine = await Files(s.client).claims((7, 8, 9), 5, 60_000)
        assert (seven, nine) == (["item of 7"], ["item of 9"])
        assert isinstance(eight, LinnetError)


async def test_place_of_a_dead_upload_is_freed(valkey: EmbeddedValkey) -> None:
    async with store(valkey.url) as s:
        files = Files(s.client)
        await Accounts(s.client).ensure("ann")
        for upload in "abc":
            await files.begin("ann", upload, 1, -1, RATE)
        await files.begin("ann", "d", 1, 60_000, RATE)


async def test_quota_counts_each_file_once(valkey: EmbeddedValkey) -> None:
    async with store(valkey.url) as s:
        files = Files(s.client)
        for _ in range(3):
            await uploaded(files, "ann", "a", 600)
        with pytest.raises(Quota):
            await uploaded(files, "ann", "b", 401)
        sha = await uploaded(files, "ann", "c", 400)
        await files.forget_uploads(sha, 0)
        await uploaded(files, "ann", "b", 399)


# -- removing


async def test_unreferenced_file_is_swept_and_its_objects_are_named(valkey: EmbeddedValkey) -> None:
    async with store(valkey.url) as s:
        sha = await uploaded(Files(s.client), "ann", "a")
        assert not await Files(s.client).sweep(sha, "files/x.")  # not a day old
        assert await Files(s.client, PAST).sweep(sha, "files/x.")
        assert await due(s, sha) == [f"!files/x.{GEN}{end}" for end in ("", ".1600", ".320")]
        with pytest.raises(NotFound):
            await Files(s.client).record(sha)
        assert (await Files(s.client).intent(sha, OTHER_GEN)).gen == OTHER_GEN


async def test_file_of_a_message_or_with_a_pin_is_never_swept(valkey: EmbeddedValkey) -> None:
    """A pin holds until its conversation was asked; a message holds as long as it is there."""
    async with store(valkey.url) as s:
        files, old = Files(s.client), Files(s.client, PAST)
        sha, conv = await uploaded(files, "ann", "a"), await s.group(ann="o")
        attached = await attach(files, "ann", conv, SharedFile(sha))
        assert not await old.sweep(sha, "x")
        assert await settle(files, sha, conv) == 1  # the pin is young: its message may be on its way
        sent = await called(s.conversations.append, with_files(event(conv, "ann", 1), attached))
        assert await settle(old, sha, conv) == 1
        assert not await old.sweep(sha, "x")
        await s.send(conv, "ann", 2, action="delete", target=sent.seq)
        assert await settle(files, sha, conv) == 1
        assert await settle(old, sha, conv) == 0
        assert await due(s, sha) == [keys.file_name(sha)]
        assert await old.sweep(sha, "x")


async def test_reference_that_the_file_has_lost_is_entered_again(valkey: EmbeddedValkey) -> None:
    """After a failover that lost the pin and kept the message."""
    async with store(valkey.url) as s:
        files = Files(s.client)
        sha, conv = await uploaded(files, "ann", "a"), await s.group(ann="o")
        await send(s, files, conv, "ann", SharedFile(sha))
        await s.client.fetch("HDEL", keys.file(sha), f"c:{conv}")
        assert await settle(files, sha, conv) >= 1
        assert await s.client.fetch("HEXISTS", keys.file(sha), f"c:{conv}")
        await s.client.fetch("DEL", keys.file(sha))
        assert await settle(files, sha, conv) == -1


async def test_upload_that_took_too_long_is_told(valkey: EmbeddedValkey) -> None:
    """Its objects were swept meanwhile, or are those of another generation."""
    async with store(valkey.url) as s:
        files, sha = Files(s.client), hashed("a")
        assert not (await files.intent(sha, GEN)).stored
        assert await Files(s.client, PAST).sweep(sha, "x")
        with pytest.raises(Unavailable):
            await files.stored(sha, Record(True, GEN, 1, ()), "ann")
        await files.intent(sha, OTHER_GEN)
        with pytest.raises(Unavailable):
            await files.stored(sha, Record(True, GEN, 1, ()), "ann")
        assert await files.stored(sha, Record(True, OTHER_GEN, 1, (320,), "image/png"), "ann")
        assert not await files.stored(sha, Record(True, OTHER_GEN, 1, (320,), "image/png"), "bob")
        assert await files.record(sha) == Record(True, OTHER_GEN, 1, (320,), "image/png")


async def test_banned_file_is_refused_for_ever(valkey: EmbeddedValkey) -> None:
    async with store(valkey.url) as s:
        files, sha = Files(s.client), await uploaded(Files(s.client), "ann", "a")
        assert await files.ban(sha, "x")
        assert not await files.ban(sha, "x")
        with pytest.raises(Rejected):
            await files.intent(sha, OTHER_GEN)
        assert await attach(files, "ann", await s.group(ann="o"), SharedFile(sha)) == REFUSED
        assert not await Files(s.client, PAST).sweep(sha, "x")
        assert await files.ban(hashed("never seen"), "x") is False
        with pytest.raises(Rejected):
            await files.intent(hashed("never seen"), GEN)


async def due_now(s: Store, sha: str) -> None:
    await s.client.fetch("ZADD", keys.file_due(keys.file_partition(sha)), 0, keys.file_name(sha))


async def another_server(s: Store, sha: str, age_s: int) -> None:
    """Make the data that of another server, whose last claim was this long ago."""
    at = await s.client.clock_ms() // 1000 - age_s
    await s.client.fetch("HSET", keys.file_held(keys.file_partition(sha)), "id", "f" * 16, "at", at)


@pytest.mark.parametrize(
    ("age_s", "hold_s", "keep_s", "claimed"),
    [(1, 0, 99, True), (1, 99, 0, False), (3600, 0, 99, False), (3600, 99, 0, True)],
)
async def test_server_that_is_new_to_a_partition_holds_its_claims(
    valkey: EmbeddedValkey, age_s: int, hold_s: int, keep_s: int, claimed: bool
) -> None:
    """For a time after a restart, and for longer if its data is old, as that of a restored backup is."""
    async with store(valkey.url) as s:
        files = Files(s.client, Times(hold_s=hold_s, keep_s=keep_s))
        sha = await uploaded(files, "ann", "a")
        await due_now(s, sha)
        part = keys.file_partition(sha)
        assert await files.claims([part], 10, 60_000) == [[keys.file_name(sha)]]
        assert await files.claims([part], 10, 60_000) == [[]]
        await due_now(s, sha)
        await another_server(s, sha, age_s)
        for _ in range(2):
            assert await files.claims([part], 10, 0) == [[keys.file_name(sha)] if claimed else []]


async def test_due_items_of_all_partitions_are_claimed(valkey: EmbeddedValkey) -> None:
    """And those whose time is of another clock are due now."""
    async with store(valkey.url) as s:
        files = Files(s.client)
        sha = await uploaded(files, "ann", "a")
        far = await s.client.clock_ms() + 10**9
        await s.client.fetch("ZADD", keys.file_due(keys.file_partition(sha)), far, keys.file_name(sha))
        found: list[Any] = await files.claims(range(keys.PARTITIONS), 10, 1000)
        assert [item for items in found for item in items] == [keys.file_name(sha)]

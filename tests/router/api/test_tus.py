"""Resumable uploads by tus 1.0, on two routers, with a folder as their store."""

from __future__ import annotations

import asyncio
import json
from base64 import b64decode, b64encode
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from hashlib import sha256
from pathlib import Path
from typing import Any

import httpx
import pytest

from deploy.embedded import EmbeddedValkey
from router.api import tus
from router.contract import keys
from router.contract.errors import Unavailable
from router.jobs.sweeper import Sweeper
from router.store import files
from router.store.files import Files, Times
from router.store.resumable import Resumables
from tests.router.api.serving import SERVER, Api, by, refusal, serve
from tests.router.api.test_uploads import stored
from tests.support import eventually

ANN, BOB = by("ann"), by("bob")
TUS = ANN | {"Tus-Resumable": "1.0.0"}
DATA = bytes(range(256)) * 200
SHA = sha256(DATA).hexdigest()


def described(**values: str) -> dict[str, str]:
    return {
        "Upload-Metadata": ",".join(f"{name} {b64encode(value.encode()).decode()}" for name, value in values.items())
    }


async def create(api: Api, length: int = len(DATA), **values: str) -> str:
    headers = TUS | {"Upload-Length": str(length)} | described(**values)
    answer = await api.post("/v1/uploads/tus", headers=headers)
    assert answer.status_code == 201, answer.text
    assert answer.headers["tus-resumable"] == "1.0.0"
    return str(answer.headers["location"])


async def patch(api: Api, where: str, offset: int, data: Any, **more: str) -> httpx.Response:
    headers = TUS | {"Upload-Offset": str(offset), "Content-Type": "application/offset+octet-stream"} | more
    return await api.patch(where, headers=headers, content=data)


def result(answer: httpx.Response) -> Any:
    return json.loads(b64decode(answer.headers["linnet-upload"]))


@asynccontextmanager
async def routers(valkey: EmbeddedValkey, folder: Path, **more: Any) -> AsyncIterator[tuple[Api, Api]]:
    more["media_url"] = f"file://{folder}"
    async with serve(valkey, **more) as one, serve(valkey, **more) as other:
        yield one, other


async def test_upload_goes_on_at_another_router(valkey: EmbeddedValkey, tmp_path: Path) -> None:
    """Its last answer has the file, and so has a HEAD afterwards; its parts are due to be deleted."""
    async with routers(valkey, tmp_path) as (one, other):
        where = await create(one, name="a ä.txt", type="text/plain")
        first = await patch(one, where, 0, DATA[:20_000])
        assert (first.status_code, first.headers["upload-offset"]) == (204, "20000")
        assert "linnet-upload" not in first.headers
        head = await other.head(where, headers=TUS)
        assert (head.headers["upload-offset"], head.headers["upload-length"]) == ("20000", str(len(DATA)))
        last = await patch(other, where, 20_000, DATA[20_000:])
        made = result(last)
        assert (made["sha256"], made["name"], made["type"], made["size"]) == (SHA, "a ä.txt", "text/plain", len(DATA))
        assert result(await one.head(where, headers=TUS)) == made
        assert (await one.get(f"/v1/uploads/{SHA}", headers=ANN)).content == DATA
        again = await patch(one, where, len(DATA), b"")
        assert result(again) == made
        upload = where.rpartition("/")[2]
        due = await one.store.fetch("ZRANGE", keys.file_due(keys.file_partition(upload)), 0, -1)
        assert len([item for item in due if item.startswith(f"!uploads/{upload}/".encode())]) == 2


async def test_requests_at_once_are_bounded_by_user(valkey: EmbeddedValkey, tmp_path: Path) -> None:
    """While three requests of a user send bytes, at any router, a fourth one is refused, and another user's is not.
    They are not counted among the uploads of a minute."""
    async with routers(valkey, tmp_path, media_uploads_per_min=4) as (one, other):
        hold = asyncio.Event()

        async def slow() -> Any:
            yield b"x"
            await hold.wait()

        wheres = [await create(one, 9) for _ in range(4)]
        running = [
            asyncio.create_task(patch(api, where, 0, slow()))
            for api, where in zip((one, other, one), wheres, strict=False)
        ]
        await eventually(lambda: len(running_of("ann", valkey)) == 3)
        assert refusal(await patch(other, wheres[3], 0, b"x" * 9)) == (429, "rate_limited")
        his = await one.post("/v1/uploads/tus", headers=TUS | BOB | {"Upload-Length": "1"})
        assert (await patch(one, his.headers["location"], 0, b"x", **BOB)).status_code == 204
        hold.set()
        assert [answer.status_code for answer in await asyncio.gather(*running)] == [204] * 3
        assert (await patch(other, wheres[3], 0, b"x" * 9)).status_code == 204


def running_of(user: str, valkey: EmbeddedValkey) -> list[Any]:
    with valkey.client() as redis:
        return list(redis.zrange(keys.uploading(user), 0, -1))


async def test_protocol_is_kept(valkey: EmbeddedValkey, tmp_path: Path) -> None:
    """Versions, offsets, lengths, types; every call but OPTIONS is the owner's."""
    async with routers(valkey, tmp_path, media_file_mb=0.1, media_video_mb=0.1, media_image_mb=0.1,
                       media_voice_mb=0.1) as (api, _):  # fmt: skip
        options = await api.options("/v1/uploads/tus")
        assert options.status_code == 204
        assert {name: options.headers[name] for name in ("tus-version", "tus-extension", "tus-max-size")} == {
            "tus-version": "1.0.0", "tus-extension": "creation,termination", "tus-max-size": "100000",
        }  # fmt: skip
        where = await create(api)
        old = await api.head(where, headers=ANN)
        assert (old.status_code, old.headers["tus-version"]) == (412, "1.0.0")
        for length, code in (("100001", 413), ("x", 400), ("-1", 400), ("0", 422)):
            assert (await api.post("/v1/uploads/tus", headers=TUS | {"Upload-Length": length})).status_code == code
        for wrong in ({"Upload-Metadata": "name !"}, described(kind="nonsense"), described(name="a/b"),
                      described(waveform="300")):  # fmt: skip
            answer = await api.post("/v1/uploads/tus", headers=TUS | {"Upload-Length": "1"} | wrong)
            assert refusal(answer) == (422, "bad_command")
        assert refusal(await patch(api, where, 5, b"x")) == (409, "conflict")
        assert refusal(await patch(api, where, 0, b"x", **{"Content-Type": "text/plain"}))[0] == 415

        async def too_many() -> Any:
            yield DATA
            yield b"x"

        for body in (DATA + b"x", too_many()):
            refused = await patch(api, where, 0, body)
            assert refusal(refused) == (413, "too_large")
            assert refused.headers["tus-resumable"] == "1.0.0"
        assert (await api.head(where, headers=TUS)).headers["upload-offset"] == "0"
        his = TUS | BOB
        assert (await api.head(where, headers=his)).status_code == 404
        assert (await api.delete(where, headers=his)).status_code == 404
        assert (await api.delete(where, headers=TUS)).status_code == 204
        assert (await api.head(where, headers=TUS)).status_code == 404
        assert (await api.head(where + "x", headers=TUS)).status_code == 422


async def test_bytes_before_a_broken_connection_are_kept(valkey: EmbeddedValkey, tmp_path: Path) -> None:
    """The client goes on where the server got to; meanwhile no other request may write. Bytes that the router had not
    read yet are lost with the connection."""
    spool = tmp_path / "spool"
    spool.mkdir()
    async with routers(valkey, tmp_path / "store", media_spool=str(spool)) as (one, other):
        where = await create(one)
        reader, writer = await asyncio.open_connection("127.0.0.1", one.port)
        head = [
            f"PATCH {where} HTTP/1.1",
            "Host: x",
            f"Authorization: {ANN['Authorization']}",
            "Tus-Resumable: 1.0.0",
            "Upload-Offset: 0",
            "Content-Type: application/offset+octet-stream",
            f"Content-Length: {len(DATA)}",
        ]
        writer.write("\r\n".join([*head, "", ""]).encode() + DATA[:30_000])
        await writer.drain()

        async def locked() -> Any:
            return await other.store.fetch("HGET", keys.tus(where.rpartition("/")[2]), "lock")

        await eventually(locked)
        assert refusal(await patch(other, where, 0, b"")) == (423, "locked")
        await eventually(lambda: sum(path.stat().st_size for path in spool.rglob("*") if path.is_file()) >= 10_000)
        writer.close()
        del reader

        async def kept() -> int:
            head = await other.head(where, headers=TUS)
            return int(head.headers["upload-offset"])

        offset = await eventually(kept)
        assert 10_000 <= offset <= 30_000

        async def goes_on() -> httpx.Response | None:
            answer = await patch(other, where, offset, DATA[offset:])
            return None if answer.status_code == 423 else answer

        last = await eventually(goes_on)
        assert last is not None
        assert result(last)["sha256"] == SHA


async def test_lock_of_a_dead_router_is_freed(valkey: EmbeddedValkey, tmp_path: Path) -> None:
    """When its lease ends, which takes less than ten seconds."""
    assert tus.LEASE_MS < 10_000
    async with routers(valkey, tmp_path) as (api, _):
        where = await create(api)
        upload = where.rpartition("/")[2]
        await Resumables(api.store).lock(upload, "ann", "of a dead router", 9_000)
        assert (await patch(api, where, 0, DATA)).status_code == 423
        await Resumables(api.store).lock(upload, "ann", "of a dead router", 1)

        async def freed() -> bool:
            return (await patch(api, where, 0, DATA)).status_code == 204

        await eventually(freed)


async def test_last_answer_that_failed_is_made_by_a_head(
    valkey: EmbeddedValkey, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A client takes a HEAD with all bytes as success, so the file must be there then."""
    async with routers(valkey, tmp_path) as (api, other):
        where = await create(api)
        assert api.services.media is not None

        async def down(*_: object) -> Any:
            raise Unavailable("down", 1.0)

        monkeypatch.setattr(api.services.media.uploads, "accept", down)
        assert (await patch(api, where, 0, DATA)).status_code == 503
        assert result(await other.head(where, headers=TUS))["sha256"] == SHA
        assert (await api.get(f"/v1/uploads/{SHA}", headers=ANN)).content == DATA


async def test_upload_that_can_never_become_a_file_is_removed(valkey: EmbeddedValkey, tmp_path: Path) -> None:
    """As one of a file that was removed everywhere meanwhile."""
    async with routers(valkey, tmp_path) as (api, _):
        where = await create(api)
        his = await api.post("/v1/uploads", headers=BOB, content=DATA)
        assert (await api.delete(his.json()["url"], headers=SERVER)).status_code == 204
        assert refusal(await patch(api, where, 0, DATA)) == (422, "rejected")
        assert (await api.head(where, headers=TUS)).status_code == 404
        assert await counted(api) == 0


async def counted(api: Api) -> int:
    """How many unfinished uploads of Ann count against her quota."""
    return int(await api.store.fetch("HLEN", keys.unfinished("ann")))


async def test_unfinished_uploads_count_against_the_quota(valkey: EmbeddedValkey, tmp_path: Path) -> None:
    """By their length, from the beginning until they are files or were ended."""
    async with routers(valkey, tmp_path, media_quota_mb=0.11) as (one, other):
        wheres = [await create(one), await create(other)]
        headers = TUS | {"Upload-Length": str(len(DATA))}
        for _ in range(2):
            assert refusal(await one.post("/v1/uploads/tus", headers=headers)) == (403, "quota")
        assert refusal(await other.post("/v1/uploads", headers=ANN, content=DATA)) == (403, "quota")
        assert (await one.post("/v1/uploads/tus", headers=headers | BOB)).status_code == 201
        assert (await patch(one, wheres[0], 0, DATA[:10])).status_code == 204  # it may go on
        assert (await patch(other, wheres[0], 10, DATA[10:])).status_code == 204
        assert await counted(one) == 1  # the file counts now
        assert refusal(await one.post("/v1/uploads/tus", headers=headers)) == (403, "quota")
        assert (await one.delete(wheres[1], headers=TUS)).status_code == 204
        await create(other)
        await one.services.accounts.delete("ann")
        assert await counted(one) == 0


async def test_unfinished_uploads_of_a_user_are_bounded(
    valkey: EmbeddedValkey, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(files, "UNFINISHED", 3)
    async with routers(valkey, tmp_path) as (api, _):
        for _ in range(3):
            await create(api, 1)
        assert refusal(await api.post("/v1/uploads/tus", headers=TUS | {"Upload-Length": "1"})) == (403, "quota")


async def test_upload_that_was_left_is_removed_after_a_day(valkey: EmbeddedValkey, tmp_path: Path) -> None:
    """With its parts; also those that never became parts, because their router died."""
    async with routers(valkey, tmp_path) as (api, _):
        where = await create(api)
        await patch(api, where, 0, DATA[:100])
        assert api.services.media is not None
        parts, upload = api.services.media, where.rpartition("/")[2]
        (tmp_path / "x").write_text("x")
        await parts.resumables.name(upload, f"uploads/{upload}/orphan")
        await parts.objects.put(f"uploads/{upload}/orphan", tmp_path / "x", 1)
        (tmp_path / "x").unlink()
        due = keys.file_due(keys.file_partition(upload))

        async def true() -> bool:
            return True

        async def ours() -> str:
            return "test"

        async def nothing() -> None:
            """Nothing has to be marked."""

        times = Times(pin_s=0, upload_s=0, keep_s=0)
        sweeper = Sweeper(
            Files(api.store, times), parts.resumables, parts.objects, parts.spool, ours, true, nothing, "test"
        )
        await sweeper.start()

        async def sweep() -> list[str]:
            for item in await api.store.fetch("ZRANGE", due, 0, -1):
                await api.store.fetch("ZADD", due, 1, item)
            await sweeper.sweep()
            return [name for name in stored(tmp_path) if name.startswith("uploads/")]

        assert len(await sweep()) == 1  # the orphan is gone; the upload has not ended
        await api.store.fetch("HSET", keys.tus(upload), "ends", 1)
        assert await counted(api) == 1
        await sweep()
        assert await counted(api) == 0
        assert await sweep() == []
        assert (await api.head(where, headers=TUS)).status_code == 404

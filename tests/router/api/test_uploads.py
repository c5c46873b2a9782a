"""Uploading and fetching files over HTTP, with a folder as the store."""

from __future__ import annotations

import asyncio
from hashlib import sha256
from pathlib import Path
from typing import Any

import httpx
import pytest
from msgspec.structs import replace

from deploy.embedded import EmbeddedValkey
from router.api import uploads
from router.contract import keys, metrics
from router.contract.files import FileInfo, Kind
from router.contract.packing import unpack
from router.media.names import object_of
from router.media.types import Prepared, Preview, Received
from router.media.uploads import Uploads
from router.store.answers import reply_of
from router.store.attaching import SENDABLE_MS
from router.store.heads import Head
from tests.router.api.serving import SERVER, Api, by, refusal, serve
from tests.router.media.servers import moto
from tests.support import eventually

ANN, BOB, CID = by("ann"), by("bob"), by("cid")
DATA = b"some bytes of a file\n" * 100
SHA = sha256(DATA).hexdigest()


def stored(folder: Path) -> list[str]:
    """The names of the objects in a folder."""
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


async def upload(api: Api, headers: dict[str, str], data: bytes = DATA, *, name: str = "") -> Any:
    described = {"Content-Type": "text/plain"} | ({"Linnet-Name": name} if name else {})
    answer = await api.post("/v1/uploads", headers=headers | described, content=data)
    assert answer.status_code == 201, answer.text
    return answer.json()


async def group(api: Api, *members: str) -> str:
    for member in members:
        await api.services.accounts.ensure(member)
    made = await api.ok("POST", "/v1/conversations", ANN, {"kind": "group", "members": list(members)})
    return str(made["conversation"])


async def get(api: Api, headers: dict[str, str], sha: str = SHA, **more: str) -> httpx.Response:
    where = more.pop("where", None)
    return await api.get(f"/v1/uploads/{sha}", headers=headers | more, params={"in": where} if where else {})


async def test_upload_is_stored_once_and_served_to_its_owner(valkey: EmbeddedValkey, tmp_path: Path) -> None:
    """As an attachment that runs nothing; to nobody else."""
    async with serve(valkey, media_url=f"file://{tmp_path}") as api:
        made = await upload(api, ANN, name="a%20b%C3%A4.txt")
        assert made == {
            "sha256": SHA, "url": f"/v1/uploads/{SHA}", "size": len(DATA), "type": "text/plain", "kind": "file",
            "name": "a bä.txt", "width": None, "height": None, "duration": None, "waveform": None, "previews": [],
            "poster": None,
        }  # fmt: skip
        await upload(api, BOB)
        assert len(stored(tmp_path)) == 2  # with the marker
        got = await get(api, ANN)
        assert (got.status_code, got.content) == (200, DATA)
        wanted = {
            "content-type": "text/plain", "content-length": str(len(DATA)), "x-content-type-options": "nosniff",
            "content-disposition": "attachment; filename*=UTF-8''a%20b%C3%A4.txt", "accept-ranges": "bytes",
            "content-security-policy": "sandbox; default-src 'none'; frame-ancestors 'none'", "etag": f'"{SHA}"',
            "cross-origin-resource-policy": "cross-origin", "cache-control": "private, no-cache",
        }  # fmt: skip
        assert {name: value for name, value in got.headers.items() if name in wanted} == wanted
        assert refusal(await get(api, CID)) == (404, "not_found")
        assert refusal(await get(api, ANN, "0" * 64)) == (404, "not_found")
        assert refusal(await get(api, ANN, "nonsense"))[0] == 422
        head = await api.head(f"/v1/uploads/{SHA}", headers=ANN)
        assert (head.status_code, head.content, head.headers["content-length"]) == (200, b"", str(len(DATA)))


@pytest.mark.parametrize(
    ("given", "status", "part"),
    [("bytes=0-9", 206, slice(0, 10)), ("bytes=10-", 206, slice(10, None)), ("bytes=-10", 206, slice(-10, None)),
     ("bytes=0-99999", 206, slice(None)), (f"bytes={len(DATA)}-", 416, None), ("bytes=-0", 416, None),
     ("bytes=0-1,3-4", 200, slice(None)), ("lines=1-2", 200, slice(None)), ("bytes=a-b", 200, slice(None)),
     ("bytes=9-1", 200, slice(None)), ("bytes=" + "9" * 5000 + "-", 416, None)],
)  # fmt: skip
async def test_one_range_is_served(
    valkey: EmbeddedValkey, tmp_path: Path, given: str, status: int, part: slice | None
) -> None:
    """What is no range is ignored."""
    async with serve(valkey, media_url=f"file://{tmp_path}") as api:
        await upload(api, ANN)
        got = await get(api, ANN, Range=given)
        assert got.status_code == status
        if part is None:
            assert got.headers["content-range"] == f"bytes */{len(DATA)}"
        else:
            assert got.content == DATA[part]
            first = part.indices(len(DATA))[0]
            last = first + len(got.content) - 1
            assert got.headers.get("content-range") == (f"bytes {first}-{last}/{len(DATA)}" if status == 206 else None)


async def test_conditions_are_honoured(valkey: EmbeddedValkey, tmp_path: Path) -> None:
    """If-None-Match spares the bytes, If-Range asks for a part of the same version only."""
    async with serve(valkey, media_url=f"file://{tmp_path}") as api:
        await upload(api, ANN)
        for given in (f'"{SHA}"', f'W/"{SHA}"', f'"other", "{SHA}"', "*"):
            got = await get(api, ANN, **{"If-None-Match": given})
            assert (got.status_code, got.content) == (304, b"")
        assert (await get(api, ANN, **{"If-None-Match": '"other"'})).status_code == 200
        for given, status in ((f'"{SHA}"', 206), ('"other"', 200), ("Fri, 27 Nov 2026 00:00:00 GMT", 200)):
            assert (await get(api, ANN, Range="bytes=0-9", **{"If-Range": given})).status_code == status


@pytest.mark.parametrize(
    ("headers", "query", "expected"),
    [
        ({"Linnet-Name": "a%2Fb"}, "", (422, "bad_command")),
        ({"Linnet-Name": "a\\b"}, "", (422, "bad_command")),
        ({"Linnet-Name": "%E2%80%AEtxt.exe"}, "", (422, "bad_command")),
        ({"Linnet-Name": "%0A"}, "", (422, "bad_command")),
        ({"Linnet-Name": "%FF"}, "", (422, "bad_command")),
        ({"Linnet-Name": "a" * 256}, "", (422, "bad_command")),
        ({}, "?kind=nonsense", (422, "bad_command")),
        ({}, "?waveform=256", (422, "bad_command")),
        ({}, "?waveform=1," + "2," * 99 + "3", (422, "bad_command")),
        ({}, "?duration=-1", (422, "bad_command")),
    ],
)
async def test_wrong_description_is_refused(
    valkey: EmbeddedValkey, tmp_path: Path, headers: dict[str, str], query: str, expected: tuple[int, str]
) -> None:
    async with serve(valkey, media_url=f"file://{tmp_path}") as api:
        answer = await api.post(f"/v1/uploads{query}", headers=ANN | headers, content=DATA)
        assert refusal(answer) == expected
        assert len(stored(tmp_path)) == 1


async def test_upload_is_bounded(valkey: EmbeddedValkey, tmp_path: Path) -> None:
    """In bytes, announced or not, by kind, and by the user's quota; nothing of a refused one is kept."""
    spool = tmp_path / "spool"
    spool.mkdir()
    settings: dict[str, Any] = {"media_file_mb": 0.001, "media_video_mb": 0.01, "media_quota_mb": 0.0015}
    settings |= {"media_url": f"file://{tmp_path}/store", "media_spool": str(spool)}
    async with serve(valkey, **settings) as api:
        small = DATA[:1000]

        async def unannounced() -> Any:
            for _ in range(20):
                yield DATA

        bodies: tuple[tuple[str, Any], ...] = (
            ("?kind=file", DATA),
            ("?kind=file", unannounced()),
            ("", unannounced()),
            ("", DATA),
        )
        for query, body in bodies:
            answer = await api.post(f"/v1/uploads{query}", headers=ANN, content=body)
            assert refusal(answer) in ((413, "too_large"), (403, "quota"))
        assert refusal(await api.post("/v1/uploads", headers=ANN, content=b"")) == (422, "bad_command")
        await upload(api, ANN, small)
        answer = await api.post("/v1/uploads", headers=ANN, content=small[:999])
        assert refusal(answer) == (403, "quota")
        await upload(api, BOB, small[:999])
        await eventually(lambda: list(spool.iterdir()) == [])


async def test_uploads_at_once_are_bounded(valkey: EmbeddedValkey, tmp_path: Path) -> None:
    """A fourth one is refused while three run; one that breaks off frees its place and leaves nothing."""
    spool = tmp_path / "spool"
    spool.mkdir()
    async with serve(valkey, media_url=f"file://{tmp_path}/store", media_spool=str(spool)) as api:
        hold = asyncio.Event()

        async def slow() -> Any:
            yield DATA
            await hold.wait()

        running = [asyncio.create_task(api.post("/v1/uploads", headers=ANN, content=slow())) for _ in range(3)]
        await eventually(lambda: len(list(spool.iterdir())) == 3)
        assert refusal(await api.post("/v1/uploads", headers=ANN, content=DATA)) == (429, "rate_limited")
        await upload(api, BOB)
        for task in running:
            task.cancel()
        await asyncio.gather(*running, return_exceptions=True)
        await eventually(lambda: list(spool.iterdir()) == [])
        await upload(api, ANN)


async def test_upload_whose_bytes_stop_is_ended(
    valkey: EmbeddedValkey, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(uploads, "IDLE_S", 0.1)
    async with serve(valkey, media_url=f"file://{tmp_path}") as api:
        reader, writer = await asyncio.open_connection("127.0.0.1", api.port)
        head = ["POST /v1/uploads HTTP/1.1", "Host: x", "Content-Length: 999", f"Authorization: {ANN['Authorization']}"]
        writer.write("\r\n".join([*head, "", "some"]).encode())
        answer = await reader.read()  # to its end: the connection is closed
        assert answer.startswith(b"HTTP/1.1 400 ")
        assert b'"bad_frame"' in answer
        writer.close()


async def test_members_fetch_files_of_messages(valkey: EmbeddedValkey, tmp_path: Path) -> None:
    """From the ack on, until the message is deleted or they are removed."""
    async with serve(valkey, media_url=f"file://{tmp_path}") as api:
        await upload(api, ANN)
        conv = await group(api, "bob")
        assert refusal(await get(api, ANN, where=conv)) == (404, "not_found")
        body: dict[str, Any] = {"to": conv, "body": "see", "files": [SHA]}
        sent = await api.ok("POST", "/v1/messages", ANN | {"Idempotency-Key": "k"}, body)
        again = await api.ok("POST", "/v1/messages", ANN | {"Idempotency-Key": "k"}, body)
        assert (again["seq"], again["duplicate"]) == (sent["seq"], True)
        for user in (ANN, BOB):
            assert (await get(api, user, where=conv)).content == DATA
        assert refusal(await get(api, BOB)) == (404, "not_found")
        assert refusal(await get(api, CID, where=conv)) == (404, "not_found")
        assert refusal(await get(api, BOB, where="g:" + "x" * 22)) == (404, "not_found")
        events = (await api.ok("GET", f"/v1/conversations/{conv}/events", BOB))["events"]
        assert events[-1]["files"] == [
            {"sha256": SHA, "type": "text/plain", "kind": "file", "size": len(DATA)}
        ]  # fmt: skip
        body = {"to": "@ann", "body": "back", "files": [{"sha256": SHA, "in": conv}]}
        await api.ok("POST", "/v1/messages", BOB, body)
        await api.ok("DELETE", f"/v1/conversations/{conv}/members/bob", ANN)
        assert refusal(await get(api, BOB, where=conv)) == (404, "not_found")
        assert (await get(api, BOB, where="d:ann:bob")).content == DATA
        delete = {"type": "delete", "conversation": conv, "seq": sent["seq"], "n": 1}
        await api.ok("POST", "/v1/commands", ANN, delete)
        assert refusal(await get(api, ANN, where=conv)) == (404, "not_found")


async def test_picture_keeps_type_and_previews_if_its_bytes_are_also_sent_as_a_file(
    valkey: EmbeddedValkey, tmp_path: Path
) -> None:
    """Whichever is first."""
    async with serve(valkey, media_url=f"file://{tmp_path / 'store'}") as api:
        parts = api.services.media
        assert parts is not None
        (tmp_path / "small").write_bytes(b"a preview")
        preview = Preview(320, tmp_path / "small", 1, 1, 9)
        orders: list[tuple[Kind, Kind]] = [("file", "image"), ("image", "file")]
        for number, order in enumerate(orders):
            data = b"bytes %d" % number
            sha = sha256(data).hexdigest()
            (tmp_path / "bytes").write_bytes(data)

            async def prepare(received: Received) -> Prepared:
                picture = received.declared_kind == "image"
                return Prepared("image" if picture else "file", "image/png", received.size,
                                previews=(preview,) if picture else ())  # fmt: skip

            uploading = Uploads(parts.files, parts.objects, prepare, parts.uploads.limits, 1 << 30)
            for kind in order:
                received = Received(tmp_path / "bytes", len(data), sha, "image/png", kind, "")
                made = await uploading.accept("ann", received)
                if kind == "image":
                    assert made.previews == [320]
            record = await parts.files.record(sha)
            assert (record.picture, record.previews) == ("image/png", (320,))
            assert len([name for name in stored(tmp_path / "store") if sha in name]) == 2


async def test_file_that_was_opened_within_a_day_is_sent_without_naming_where(
    valkey: EmbeddedValkey, tmp_path: Path
) -> None:
    """By a fetch or by a link; not once it may not be seen there any more."""
    async with serve(valkey, media_url=f"file://{tmp_path}") as api:
        await upload(api, ANN)
        conv = await group(api, "bob", "cid")
        sent = await api.ok("POST", "/v1/messages", ANN, {"to": conv, "body": "see", "files": [SHA]})
        body = {"to": "@ann", "body": "back", "files": [SHA]}
        assert await api.refused("POST", "/v1/messages", BOB, body) == (404, "not_found")
        assert (await get(api, BOB, where=conv)).content == DATA
        await api.ok("POST", "/v1/uploads/links", CID, {"in": conv, "files": [SHA, "0" * 64]})
        for user in (BOB, CID):
            await api.ok("POST", "/v1/messages", user, body)
        assert (await get(api, ANN, where="d:ann:cid")).content == DATA
        noted = keys.opened("cid", SHA)
        with valkey.client() as redis:
            assert 0 < redis.pttl(noted) <= SENDABLE_MS
            redis.delete(noted)
        assert await api.refused("POST", "/v1/messages", CID, body) == (404, "not_found")
        delete = {"type": "delete", "conversation": conv, "seq": sent["seq"], "n": 1}
        await api.ok("POST", "/v1/commands", ANN, delete)
        assert await api.refused("POST", "/v1/messages", BOB, body) == (404, "not_found")


async def test_poster_of_a_video_is_fetched_like_the_video(valkey: EmbeddedValkey, tmp_path: Path) -> None:
    """By members, also by a link, until the message is deleted; a user cannot send another's picture as one."""
    async with serve(valkey, media_url=f"file://{tmp_path}") as api:
        still = await picture(api, "ann", "still")
        headers = ANN | {"Content-Type": "video/mp4"}
        answer = await api.post("/v1/uploads?kind=video&duration=9", headers=headers, content=DATA)
        assert answer.status_code == 201, answer.text
        conv = await group(api, "bob")
        body = {"to": conv, "body": "see", "files": [{"sha256": SHA, "poster": still}]}
        sent = await api.ok("POST", "/v1/messages", ANN, body)
        assert await api.refused("POST", "/v1/messages", BOB, body) == (404, "not_found")
        events = (await api.ok("GET", f"/v1/conversations/{conv}/events", BOB))["events"]
        poster = {"sha256": still, "type": "image/png", "size": 3, "width": 4, "height": 2}
        assert events[-1]["files"] == [
            {"sha256": SHA, "type": "video/mp4", "kind": "video", "size": len(DATA), "duration": 9, "poster": poster}
        ]
        got = await get(api, BOB, still, where=conv)
        assert (got.content, got.headers["content-type"], got.headers["content-disposition"]) == (
            b"png", "image/png", "inline",
        )  # fmt: skip
        links = (await api.ok("POST", "/v1/uploads/links", BOB, {"in": conv, "files": [SHA, still]}))["links"]
        assert (await api.get(links[still]["url"])).content == b"png"
        delete = {"type": "delete", "conversation": conv, "seq": sent["seq"], "n": 1}
        await api.ok("POST", "/v1/commands", ANN, delete)
        assert refusal(await get(api, BOB, still, where=conv)) == (404, "not_found")


async def test_backend_sends_files_of_the_user_it_acts_for(valkey: EmbeddedValkey, tmp_path: Path) -> None:
    async with serve(valkey, media_url=f"file://{tmp_path}") as api:
        conv = await group(api, "bob")
        await upload(api, SERVER | {"Linnet-User": "bob"})
        body = {"to": conv, "body": "see", "files": [SHA]}
        assert await api.refused("POST", "/v1/messages", ANN, body) == (404, "not_found")
        await api.ok("POST", "/v1/messages", SERVER, body | {"from": "bob"})
        assert (await get(api, SERVER, where=conv)).content == DATA


async def test_links_need_no_token(valkey: EmbeddedValkey, tmp_path: Path) -> None:
    """What the caller may not see is left out; a changed link serves nothing."""
    async with serve(valkey, media_url=f"file://{tmp_path}") as api:
        await upload(api, ANN)
        conv = await group(api, "bob")
        await api.ok("POST", "/v1/messages", ANN, {"to": conv, "body": "see", "files": [SHA]})
        wanted = {"in": conv, "files": [SHA, "0" * 64, SHA]}
        made = await api.ok("POST", "/v1/uploads/links", BOB, wanted)
        assert made["links"].keys() == {SHA}
        url = made["links"][SHA]["url"]
        got = await api.get(url)
        assert (got.status_code, got.content) == (200, DATA)
        assert got.headers["cache-control"] == "private, max-age=3600"
        assert (await api.get(url, headers={"Range": "bytes=-5"})).content == DATA[-5:]
        assert (await api.ok("POST", "/v1/uploads/links", CID, wanted))["links"] == {}
        assert (await api.ok("POST", "/v1/uploads/links", BOB, {"files": [SHA]}))["links"] == {}
        assert url.split("&")[-1].startswith("sig=")
        for changed in (url[:-1] + ("0" if url[-1] != "0" else "1"), url.replace("ends=", "ends=9"),
                        url.replace(SHA, "0" * 64), url.replace("d=", "d=A")):  # fmt: skip
            assert refusal(await api.get(changed)) == (404, "not_found")


async def test_preview_that_is_missing_costs_its_own_link(valkey: EmbeddedValkey, tmp_path: Path) -> None:
    """The other previews and files are linked to all the same."""
    async with serve(valkey, media_url=f"file://{tmp_path}") as api:
        await upload(api, ANN)
        record = await api.services.media.files.record(SHA)  # type: ignore[union-attr]
        made = replace(record, previews=(320, 1600))
        await api.store.fetch("HDEL", keys.file(SHA), "m")
        assert api.services.media is not None
        await api.services.media.files.intent(SHA, record.gen)
        await api.services.media.files.stored(SHA, made, "ann")
        (tmp_path / object_of(SHA, record.gen, 320)).write_bytes(b"a preview")
        other = await upload(api, ANN, b"another file")
        asked = {"files": [SHA, other["sha256"]]}
        links = (await api.ok("POST", "/v1/uploads/links", ANN, asked))["links"]
        assert {sha: list(link["previews"]) for sha, link in links.items()} == {SHA: ["320"], other["sha256"]: []}


async def test_origin_of_its_own_is_linked_to(valkey: EmbeddedValkey, tmp_path: Path) -> None:
    async with serve(valkey, media_url=f"file://{tmp_path}", media_origin="https://files.example/") as api:
        await upload(api, ANN)
        got = await get(api, ANN)
        assert got.status_code == 307
        origin, path = got.headers["location"].split("/v1/")
        assert origin == "https://files.example"
        assert (await api.get(f"/v1/{path}")).content == DATA


async def test_links_lead_to_the_store_if_clients_reach_it(
    valkey: EmbeddedValkey, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Those to recordings do; a document needs a router's headers. A link counts for GET alone, so HEAD is answered."""
    with moto() as server:
        bucket, public = server.new_bucket(monkeypatch), server.endpoint.replace("127.0.0.1", "localhost")
        async with serve(valkey, media_url=bucket, media_public_url=public) as api, httpx.AsyncClient() as http:
            described = ANN | {"Content-Type": "audio/ogg"}
            voice = await api.post("/v1/uploads?kind=voice", headers=described, content=b"a voice")
            spoken, written = voice.json()["sha256"], (await upload(api, ANN))["sha256"]
            made = await api.ok("POST", "/v1/uploads/links", ANN, {"files": [spoken, written]})
            url = made["links"][spoken]["url"]
            assert url.startswith(f"{public}/")
            got = await http.get(url)
            assert (got.content, got.headers["content-type"]) == (b"a voice", "audio/ogg")
            assert got.headers["content-disposition"] == "inline"
            assert made["links"][written]["url"].startswith("/v1/files/")
            followed = await get(api, ANN, spoken)
            assert (followed.status_code, followed.headers["location"]) == (307, url)
            assert (await get(api, ANN, written)).content == DATA
            head = await api.head(f"/v1/uploads/{spoken}", headers=ANN)
            assert (head.status_code, head.headers["content-length"]) == (200, "7")


async def test_removed_file_is_gone_everywhere(valkey: EmbeddedValkey, tmp_path: Path) -> None:
    """Its bytes are refused from then on."""
    async with serve(valkey, media_url=f"file://{tmp_path}") as api:
        await upload(api, ANN)
        conv = await group(api, "bob")
        await api.ok("POST", "/v1/messages", ANN, {"to": conv, "body": "see", "files": [SHA]})
        assert await api.refused("DELETE", f"/v1/uploads/{SHA}", ANN) == (403, "forbidden")
        await api.ok("DELETE", f"/v1/uploads/{SHA}", SERVER)
        assert refusal(await get(api, BOB, where=conv)) == (404, "not_found")
        assert refusal(await api.post("/v1/uploads", headers=BOB, content=DATA)) == (422, "rejected")


async def test_link_to_a_file_that_was_removed_is_not_found(valkey: EmbeddedValkey, tmp_path: Path) -> None:
    """It is not counted among the lost files, for which operators are called; an object that Redis names is."""
    async with serve(valkey, media_url=f"file://{tmp_path}") as api:
        await upload(api, ANN)
        url = (await api.ok("POST", "/v1/uploads/links", ANN, {"files": [SHA]}))["links"][SHA]["url"]
        (name,) = (name for name in stored(tmp_path) if name.startswith("files/"))
        (tmp_path / name).unlink()
        before = metrics.MEDIA_OBJECTS_MISSING._value.get()
        assert refusal(await api.get(url)) == (503, "unavailable")
        assert metrics.MEDIA_OBJECTS_MISSING._value.get() == before + 1
        await api.ok("DELETE", f"/v1/uploads/{SHA}", SERVER)
        assert refusal(await api.get(url)) == (404, "not_found")
        assert metrics.MEDIA_OBJECTS_MISSING._value.get() == before + 1


async def test_store_that_is_down_stops_no_chat(valkey: EmbeddedValkey, tmp_path: Path) -> None:
    """Uploads and downloads are unavailable until it is back; a folder that is gone is not made again."""
    folder, away = tmp_path / "store", tmp_path / "away"
    async with serve(valkey, media_url=f"file://{folder}") as api:
        await upload(api, ANN)
        conv = await group(api, "bob")
        folder.rename(away)
        answer = await api.post("/v1/uploads", headers=ANN, content=b"other")
        assert refusal(answer) == (503, "unavailable")
        assert refusal(await get(api, ANN)) == (503, "unavailable")
        await api.ok("POST", "/v1/messages", ANN, {"to": conv, "body": "see", "files": [SHA]})
        assert not folder.exists()
        away.rename(folder)
        assert (await get(api, BOB, where=conv)).content == DATA


@pytest.mark.processes  # none, but it takes too long for the quick check
async def test_many_uploads_of_the_same_files_are_stored_once(valkey: EmbeddedValkey, tmp_path: Path) -> None:
    """A thousand uploads of ten files by fifty users, all at the same time as far as they may."""
    async with serve(valkey, media_url=f"file://{tmp_path}") as api:
        contents = [f"file {i}".encode() * 500 for i in range(10)]

        async def uploading(user: int) -> None:
            for i in range(20):
                await upload(api, by(f"u{user}"), contents[(user + i) % 10])

        await asyncio.gather(*(uploading(user) for user in range(50)))
        assert len(stored(tmp_path)) == 10 + 1


async def picture(api: Api, user: str, name: str) -> str:
    """A picture that this user has uploaded, as it is recorded."""
    info = FileInfo(sha256=sha256(name.encode()).hexdigest(), type="image/png", kind="image", size=3, width=4, height=2)
    record = await api.services.files.intent(info.sha256, "AAAAAAAA")
    await api.services.files.stored(info.sha256, replace(record, size=3, picture="image/png"), user)
    await api.services.files.own(user, info, 1000)
    folder = Path(api.services.settings.media_url.removeprefix("file://"))
    (folder / "draft").write_text("png")
    assert api.services.media is not None
    await api.services.media.objects.put(object_of(info.sha256, record.gen), folder / "draft", 3)
    return info.sha256


async def test_avatar_of_a_user_is_seen_by_all(valkey: EmbeddedValkey, tmp_path: Path) -> None:
    """As the profile, also across a block, until it is replaced or the account ends; accepted are own pictures."""
    async with serve(valkey, media_url=f"file://{tmp_path}") as api:
        for user in ("ann", "bob", "cid"):
            await api.services.accounts.ensure(user)
        first, second, his = [
            await picture(api, user, name) for user, name in (("ann", "1"), ("ann", "2"), ("bob", "3"))
        ]
        await upload(api, ANN)
        for wrong in (his, SHA, "0" * 64):
            assert await api.refused("PATCH", "/v1/me", ANN, {"avatar": wrong}) == (404, "not_found")
        assert (await api.ok("PATCH", "/v1/me", ANN, {"avatar": first}))["avatar"] == first
        await api.ok("PUT", "/v1/blocks/cid", ANN)
        for caller in (ANN, BOB, CID, SERVER):
            got = await get(api, caller, first, where="@ann")
            assert (got.content, got.headers["content-type"], got.headers["content-disposition"]) == (
                b"png", "image/png", "inline",
            )  # fmt: skip
        for sha, where in ((second, "@ann"), (his, "@bob"), (first, "@nobody"), (first, "@")):
            assert refusal(await get(api, BOB, sha, where=where)) == (404, "not_found")
        assert refusal(await get(api, {}, first, where="@ann")) == (401, "unauthorized")
        links = await api.ok("POST", "/v1/uploads/links", BOB, {"in": "@ann", "files": [first, second]})
        assert (await api.get(links["links"].pop(first)["url"])).content == b"png"
        assert links["links"] == {}
        entry = await api.services.state.read("ann", "me")
        assert entry is not None
        assert entry.value is not None
        assert unpack(entry.value)["avatar"] == first == (await api.ok("GET", "/v1/users/ann", BOB))["avatar"]
        # one that is the avatar already needs no upload any more
        await api.services.files.forget_uploads(first, -1)
        assert (await api.ok("PATCH", "/v1/me", ANN, {"avatar": first, "name": "Ann"}))["avatar"] == first
        await api.ok("PATCH", "/v1/me", ANN, {"avatar": second})
        assert refusal(await get(api, BOB, first, where="@ann")) == (404, "not_found")
        assert await api.refused("PATCH", "/v1/me", ANN, {"avatar": first}) == (404, "not_found")
        await api.ok("DELETE", "/v1/accounts/ann", ANN)
        assert refusal(await get(api, BOB, second, where="@ann")) == (404, "not_found")


async def test_avatar_of_a_group_is_seen_by_its_members(valkey: EmbeddedValkey, tmp_path: Path) -> None:
    """It is a reference to its file: the old one is released when it is replaced or removed."""
    async with serve(valkey, media_url=f"file://{tmp_path}") as api:
        conv = await group(api, "bob")
        path = f"/v1/conversations/{conv}"
        first, second, his = [
            await picture(api, user, name) for user, name in (("ann", "1"), ("ann", "2"), ("bob", "3"))
        ]
        await upload(api, ANN)
        for wrong in (his, SHA, "0" * 64):
            assert await api.refused("PATCH", path, ANN, {"avatar": wrong}) == (404, "not_found")
        assert await api.refused("PATCH", path, BOB, {"avatar": his}) == (403, "read_only")
        assert (await api.ok("PATCH", path, ANN, {"avatar": first}))["avatar"] == first
        got = await get(api, BOB, first, where=conv)
        assert (got.content, got.headers["content-type"], got.headers["content-disposition"]) == (
            b"png", "image/png", "inline",
        )  # fmt: skip
        assert refusal(await get(api, CID, first, where=conv)) == (404, "not_found")
        assert (await api.ok("PATCH", path, ANN, {"avatar": first, "title": "t"}))["avatar"] == first
        await api.ok("POST", "/v1/messages", ANN, {"to": conv, "body": "see", "files": [second]})
        await api.ok("PATCH", path, ANN, {"avatar": second})
        assert refusal(await get(api, BOB, first, where=conv)) == (404, "not_found")
        assert await api.ok("PATCH", path, ANN, {"avatar": None}) | {"avatar": None} == await api.ok("GET", path, ANN)
        assert (await get(api, BOB, second, where=conv)).content == b"png"  # of the message
        events = (await api.ok("GET", f"{path}/events", BOB))["events"]
        assert [event.get("avatar", "-") for event in events if event["type"] == "title"] == [first, "-", second, None]
        (head,) = await reply_of(api.services.conversations.heads, [conv])
        assert isinstance(head, Head)
        assert head.freed == bytes.fromhex(first)

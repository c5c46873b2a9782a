"""Resumable uploads by tus 1.0: core, creation, termination. Any router goes on where another one ended.

The bytes of each PATCH are stored in parts of about PART_BYTES, also those before a connection broke. The last
PATCH makes the file. If that fails because something is down, a HEAD of the upload does it, since a client takes a HEAD
with all bytes as success.
"""

from __future__ import annotations

import asyncio
from base64 import b64decode, b64encode
from binascii import Error as NotBase64
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from email.utils import formatdate
from pathlib import Path
from secrets import token_hex
from typing import Final

import msgspec
from msgspec import Struct
from starlette.requests import ClientDisconnect
from starlette.responses import Response

from router.api.call import Call
from router.api.types.uploads import UploadQuery
from router.api.uploads import IncompleteUpload, checked_name, declared_type, media, timely, uploaded
from router.contract.errors import (
    BadCommand,
    BadFrame,
    Conflict,
    LinnetError,
    TooLarge,
    Unavailable,
    UnsupportedMediaType,
)
from router.media.parts import Media
from router.media.places import Progress
from router.media.receiving import hash_of, opened
from router.media.types import Received
from router.store.resumable import Resumable

VERSION: Final = "1.0.0"
ALWAYS: Final = {"Tus-Resumable": VERSION}
BODY: Final = "application/offset+octet-stream"
PART_BYTES: Final = 8 << 20
PARTS: Final = 2000
LEASE_MS: Final = 8000
RENEW_S: Final = 2.0
MAX_META: Final = 4096


class Described(Struct, frozen=True):
    """The values in `Upload-Metadata`."""

    name: str
    type: str
    query: UploadQuery


async def get_tus_options(call: Call, _: None) -> Response:
    """Get what this server knows of tus."""
    limit = media(call).uploads.limits.bytes_of(None)
    known = {"Tus-Version": VERSION, "Tus-Extension": "creation,termination", "Tus-Max-Size": str(limit)}
    return Response(status_code=204, headers=known)


async def create_tus(call: Call, _: None) -> Response:
    """Begin a resumable upload; `Upload-Metadata` has name, type, kind, duration and waveform."""
    if wrong := _wrong_version(call):
        return wrong
    parts, user = media(call), call.user
    length = _number(call, "upload-length")
    described = _described(call.request.headers.get("upload-metadata", ""))
    limit = parts.uploads.limits.bytes_of(described.query.kind)
    if length > limit:
        raise TooLarge(f"a file of this kind must have at most {limit} bytes")
    if not length:
        raise BadCommand("the file is empty")
    upload = token_hex(16)
    async with parts.places.taken(user, length, resumable=upload):
        ends = await parts.resumables.create(upload, user, length, msgspec.msgpack.encode(described))
    return Response(status_code=201, headers={"Location": f"/v1/uploads/tus/{upload}", "Upload-Expires": _date(ends)})


async def head_tus(call: Call, _: None) -> Response:
    """Get how far a resumable upload is; of a finished one also the file, in `Linnet-Upload`."""
    if wrong := _wrong_version(call):
        return wrong
    parts, upload, user = media(call), _upload(call), call.user
    state = await parts.resumables.read(upload, user)
    if state.complete and not state.result:
        async with _locked(parts, upload, user) as (state, _token):
            state = await _finished(parts, upload, user, state)
    headers = _progress(state.offset, state.ends, state.result) | {"Upload-Length": str(state.length)}
    return Response(status_code=200, headers=headers | {"Cache-Control": "no-store"})


async def patch_tus(call: Call, _: None) -> Response:
    """Send bytes of a resumable upload, beginning at `Upload-Offset`."""
    if wrong := _wrong_version(call):
        return wrong
    parts, upload, user = media(call), _upload(call), call.user
    if declared_type(call.request.headers.get("content-type", "")) != BODY:
        raise UnsupportedMediaType(f"the body must be {BODY}")
    offset = _number(call, "upload-offset")
    place = parts.places.taken(user, 0, new=False, resumable=upload)
    # The lock comes first: while an earlier request of this upload still ends, clients get 423, which they repeat, and
    # never 429, with which they give up.
    async with _locked(parts, upload, user) as (state, token), place as keep:
        if offset != state.offset:
            raise Conflict(f"the upload is at {state.offset}")
        length = call.request.headers.get("content-length", "0")
        if offset + (int(length) if length.isdigit() else 0) > state.length:
            raise TooLarge("these are more bytes than the upload has")
        offset, ends = await _write(call, parts, upload, token, state, keep)
        state = msgspec.structs.replace(state, offset=offset, ends=ends)
        if state.complete and not state.result:
            state = await _finished(parts, upload, user, await parts.resumables.read(upload, user))
    return Response(status_code=204, headers=_progress(state.offset, state.ends, state.result))


async def delete_tus(call: Call, _: None) -> Response:
    """End a resumable upload and remove its bytes."""
    if wrong := _wrong_version(call):
        return wrong
    await _ended(media(call), _upload(call), call.user)
    return Response(status_code=204)


async def _write(
    call: Call, parts: Media, upload: str, token: str, state: Resumable, keep: Progress
) -> tuple[int, int]:
    """Store the bytes of the body in parts; those before a connection broke, too. Return the offset and the end."""
    offset, ends, count = state.offset, state.ends, len(state.parts)
    stream, broken = timely(call.request.stream()), None
    async with parts.spool.folder() as folder:
        path = folder / "part"
        while broken is None:
            size, more, broken = await _part(stream, path, state.length - offset, keep)
            if size:
                count += 1
                if count > PARTS:
                    raise TooLarge("the upload has too many parts: send more bytes at a time")
                name = f"uploads/{upload}/{token}{count}"
                await parts.resumables.name(upload, name)
                await parts.objects.put(name, path, size)
                offset, ends = await parts.resumables.advance(upload, token, offset, size, name, LEASE_MS)
                await asyncio.to_thread(path.unlink)
            if not more:
                break
    if broken is not None:
        raise broken
    return offset, ends


async def _part(
    stream: AsyncIterator[bytes], path: Path, room: int, keep: Progress
) -> tuple[int, bool, ClientDisconnect | IncompleteUpload | None]:
    """Write at most about PART_BYTES to the file: their number, whether more may come, and why none come any more."""
    size = 0
    async with opened(path, "wb") as file:
        try:
            async for piece in stream:
                size += len(piece)
                if size > room:
                    raise TooLarge("these are more bytes than the upload has")
                await asyncio.to_thread(file.write, piece)
                await keep()
                if size >= PART_BYTES:
                    return size, True, None
        except (ClientDisconnect, IncompleteUpload) as error:
            return size, False, error
    return size, False, None


async def _finished(parts: Media, upload: str, user: str, state: Resumable) -> Resumable:
    """Make the file of an upload that has all bytes; one that can never become a file is removed."""
    if state.result:
        return state
    described = msgspec.msgpack.decode(state.meta, type=Described)
    async with parts.spool.folder() as folder:
        path = folder / "received"
        await _assemble(parts, state, path)
        received = Received(
            path=path,
            size=state.length,
            sha256=await asyncio.to_thread(hash_of, path),
            declared_type=described.type,
            declared_kind=described.query.kind,
            name=described.name,
            duration_ms=described.query.duration,
            waveform=described.query.levels,
            user=user,
        )
        try:
            answer = uploaded(await parts.uploads.accept(user, received))
        except LinnetError as error:
            if error.retry_after is None and not isinstance(error, Unavailable):
                await _ended(parts, upload, user)
            raise
    result = msgspec.json.encode(answer)
    await parts.resumables.finish(upload, result)
    await parts.files.release(user, upload)
    return msgspec.structs.replace(state, result=result)


async def _ended(parts: Media, upload: str, user: str) -> None:
    await parts.resumables.end(upload, user)
    await parts.files.release(user, upload)


async def _assemble(parts: Media, state: Resumable, path: Path) -> None:
    async with opened(path, "xb") as file:
        for name in state.parts:
            size = await parts.objects.size(name)
            if size is None:
                raise Unavailable("a part of the upload cannot be read now", 5.0)
            async for piece in await parts.objects.read(name, 0, size):
                await asyncio.to_thread(file.write, piece)


@asynccontextmanager
async def _locked(parts: Media, upload: str, user: str) -> AsyncIterator[tuple[Resumable, str]]:
    """The lock of an upload; it is kept while the block runs, and free within seconds if this router dies."""
    token = token_hex(6)
    state = await parts.resumables.lock(upload, user, token, LEASE_MS)
    keeping = asyncio.create_task(_keep(parts, upload, user, token))
    try:
        yield state, token
    finally:
        keeping.cancel()
        await asyncio.wait((keeping,))
        with suppress(LinnetError):
            await asyncio.shield(parts.resumables.unlock(upload, user, token))


async def _keep(parts: Media, upload: str, user: str, token: str) -> None:
    while True:
        await asyncio.sleep(RENEW_S)
        with suppress(LinnetError):
            await parts.resumables.lock(upload, user, token, LEASE_MS)


def _progress(offset: int, ends: int, result: bytes) -> dict[str, str]:
    headers = {"Upload-Offset": str(offset), "Upload-Expires": _date(ends)}
    return headers | ({"Linnet-Upload": b64encode(result).decode()} if result else {})


def _date(ms: int) -> str:
    return formatdate(ms // 1000, usegmt=True)


def _upload(call: Call) -> str:
    return call.path["upload"]


def _wrong_version(call: Call) -> Response | None:
    if call.request.headers.get("tus-resumable") == VERSION:
        return None
    return Response(status_code=412, headers={"Tus-Version": VERSION})


def _number(call: Call, header: str) -> int:
    value = call.request.headers.get(header, "")
    if not (value.isascii() and value.isdigit() and len(value) < 16):
        raise BadFrame(f"{header} must be a number of bytes")
    return int(value)


def _described(header: str) -> Described:
    """Read `Upload-Metadata`: comma-separated pairs of a name and a base64 value."""
    if len(header) > MAX_META:
        raise BadCommand(f"Upload-Metadata must have at most {MAX_META} characters")
    found: dict[str, str] = {}
    for pair in filter(None, (part.strip() for part in header.split(","))):
        name, _, value = pair.partition(" ")
        try:
            found[name] = b64decode(value.strip(), validate=True).decode()
        except (NotBase64, ValueError):
            raise BadCommand("Upload-Metadata must have base64 values of UTF-8") from None
    query = {name: found[name] for name in ("kind", "duration", "waveform") if found.get(name)}
    try:
        checked = msgspec.convert(query, UploadQuery, strict=False)
    except msgspec.ValidationError as error:
        raise BadCommand(str(error)) from None
    kind = found.get("type") or found.get("filetype", "")
    return Described(checked_name(found.get("name") or found.get("filename", "")), declared_type(kind), checked)

"""Uploading files, and fetching them.

A file may be fetched by its uploader, and through a conversation by each member who may read a message there that has
it. The avatar of a user may be fetched by all who may read the profile: every caller. What a caller may not see is
`not_found`, as what does not exist.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import suppress
from typing import Final
from urllib.parse import unquote_to_bytes

from starlette.requests import Request
from starlette.responses import RedirectResponse, Response, StreamingResponse

from router.api.call import Call, now_ms
from router.api.types.uploads import FileQuery, LinkQuery, LinkRequest, LinksMade, MadeLink, Uploaded, UploadQuery
from router.contract import metrics, text
from router.contract.errors import BadCommand, BadFrame, LinnetError, NotFound, TooLarge
from router.contract.files import MAX_NAME_BYTES, FileInfo, SharedFile
from router.media import names
from router.media.links import Linked
from router.media.parts import Media
from router.media.receiving import receive
from router.media.serving import SAFE, chosen, etag, served, unchanged
from router.media.types import Received
from router.store.answers import reply_of
from router.store.file_records import Record
from router.store.files import USER
from router.store.objects import Missing

IDLE_S: Final = 30.0


def media(call: Call) -> Media:
    found = call.services.media
    if found is None:
        raise NotFound("this deployment stores no files")
    return found


class IncompleteUpload(BadFrame):
    """The bytes stopped coming; the connection is closed, because the rest is not read."""


async def upload_file(call: Call, given: UploadQuery) -> Uploaded:
    """Upload a file. The body is its bytes; `Content-Type` and `Linnet-Name` (percent-encoded UTF-8) describe it."""
    parts = media(call)
    user, kind = call.user, given.kind
    limit = parts.uploads.limits.bytes_of(kind)
    length = _content_length(call.request)
    if length > limit:
        raise TooLarge(f"a file of this kind must have at most {limit} bytes")
    name = _name(call.request.headers.get("linnet-name", ""))
    async with parts.places.taken(user, length) as progress, parts.spool.folder() as folder:
        path = folder / "received"
        got = await receive(timely(call.request.stream()), path, limit, progress)
        if not got.size:
            raise BadCommand("the file is empty")
        received = Received(
            path=path,
            size=got.size,
            sha256=got.sha256,
            declared_type=declared_type(call.request.headers.get("content-type", "")),
            declared_kind=kind,
            name=name,
            duration_ms=given.duration,
            waveform=given.levels,
            user=user,
        )
        return uploaded(await parts.uploads.accept(user, received))


async def timely(stream: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    """The stream; IncompleteUpload if nothing comes for IDLE_S."""
    while True:
        try:
            async with asyncio.timeout(IDLE_S):
                part = await anext(stream)
        except StopAsyncIteration:
            return
        except TimeoutError:
            raise IncompleteUpload(f"no bytes came for {IDLE_S:g} s") from None
        yield part


def uploaded(info: FileInfo) -> Uploaded:
    return Uploaded(
        sha256=info.sha256,
        url=f"/v1/uploads/{info.sha256}",
        size=info.size,
        type=info.type,
        kind=info.kind,
        name=info.name,
        width=info.width,
        height=info.height,
        duration=info.duration,
        waveform=info.waveform,
        previews=info.previews,
    )


def declared_type(header: str) -> str:
    return header.partition(";")[0].strip().lower()[:128]


def _content_length(request: Request) -> int:
    length = request.headers.get("content-length", "0")
    return int(length) if length.isascii() and length.isdigit() else 0


def _name(header: str) -> str:
    """The file's name; BadCommand if it could be taken for a path, or look like another one."""
    try:
        raw = unquote_to_bytes(header.strip())
        name = raw.decode()
    except UnicodeDecodeError:
        raise BadCommand("Linnet-Name must be percent-encoded UTF-8") from None
    return checked_name(name)


def checked_name(name: str) -> str:
    if len(name.encode(errors="surrogatepass")) > MAX_NAME_BYTES:
        raise BadCommand(f"the name must have at most {MAX_NAME_BYTES} bytes")
    if "/" in name or "\\" in name or name in (".", ".."):
        raise BadCommand("the name must have no path characters")
    try:
        text.check("name", name)
    except ValueError as error:
        raise BadCommand(str(error)) from None
    return name


async def get_file(call: Call, given: FileQuery) -> Response:
    """Get a file: your own upload, or with `in` one that you may see there.

    One range is served; `ETag`, `If-None-Match` and `If-Range` work. The answer may be a link to follow (307).
    """
    parts, sha256 = media(call), call.path["sha256"]
    info = await _seen(call, parts, sha256, given.in_)
    if info is not None:
        await _note_opened(call, parts, given.in_, [sha256])
    record = await parts.files.record(sha256)
    if given.preview is not None and given.preview not in record.previews:
        raise NotFound("this file has no such preview")
    linked = await _linked(parts, sha256, record, info, given.preview)
    # A signed link counts for GET alone.
    signed = None if call.request.method == "HEAD" else await parts.signed.make(linked, now_ms())
    if signed or parts.links.origin:
        url, _ = signed or parts.links.make(linked, now_ms())
        return RedirectResponse(url, 307, {"Cache-Control": "no-store"})
    return await _serve(call.request, parts, linked, "private, no-cache")


async def _seen(call: Call, parts: Media, sha256: str, where: str | None) -> FileInfo | None:
    """The file as the caller may see it; None for an avatar."""
    if where is None:
        return (await parts.files.upload(call.user, sha256)).info
    if where[0] == USER:
        profile = await call.services.profiles.read(where[1:])
        if profile is None or profile.avatar != sha256:
            raise NotFound
        return None
    return await parts.files.shown(call.known(where), call.actor, sha256)


async def _note_opened(call: Call, parts: Media, where: str | None, hashes: Sequence[str]) -> None:
    """Note that the caller has opened these files in a conversation, from where they may be sent for a day."""
    if where is not None and hashes and call.actor is not None:
        with suppress(LinnetError):  # it is shown all the same
            await parts.files.opened(call.actor, call.known(where), hashes)


async def _linked(parts: Media, sha256: str, record: Record, info: FileInfo | None, preview: int | None) -> Linked:
    headers = served(info, preview, record.picture)
    size = record.size
    if preview is not None:
        name = names.object_of(sha256, record.gen, preview)
        found = await parts.objects.size(name)
        if found is None:
            parts.objects.lost(name)
            raise Missing("the file cannot be read now", 5.0)
        size = found
    return Linked(sha256, record.gen, preview or 0, size, headers.type, headers.disposition)


async def _serve(request: Request, parts: Media, linked: Linked, caching: str) -> Response:
    """The bytes of a file, or the part of them that is asked for."""
    tag = etag(linked.sha256, linked.preview)
    headers = {**SAFE, "ETag": tag, "Cache-Control": caching, "Content-Disposition": linked.disposition}
    if unchanged(request.headers.get("if-none-match"), tag):
        return Response(status_code=304, headers={"ETag": tag, "Cache-Control": caching})
    given, version = request.headers.get("range"), request.headers.get("if-range")
    part = chosen(given, version, tag, linked.size)
    if part is None:
        headers = {**SAFE, "Content-Range": f"bytes */{linked.size}", "Cache-Control": "no-store"}
        return Response(status_code=416, headers=headers)
    headers["Content-Length"] = str(part.end - part.start)
    if not part.whole:
        headers["Content-Range"] = f"bytes {part.start}-{part.end - 1}/{linked.size}"
    status = 200 if part.whole else 206
    if request.method == "HEAD" or part.start == part.end:
        return _typed(Response(status_code=status), headers, linked.type)
    name = names.object_of(linked.sha256, linked.gen, linked.preview)
    try:
        pieces = await parts.objects.read(name, part.start, part.end)
    except Missing:
        if (await parts.files.record(linked.sha256)).gen != linked.gen:
            raise NotFound from None  # the file was removed, and uploaded again, since the link was made
        parts.objects.lost(name)
        raise
    return _typed(StreamingResponse(_counted(pieces), status), headers, linked.type)


def _typed(response: Response, headers: Mapping[str, str], kind: str) -> Response:
    """The response with exactly these headers: Starlette would add a charset to types of text."""
    response.raw_headers = [
        (name.lower().encode(), value.encode("latin-1")) for name, value in {**headers, "Content-Type": kind}.items()
    ]
    return response


async def _counted(pieces: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    async for piece in pieces:
        metrics.MEDIA_BYTES.labels("served").inc(len(piece))
        yield piece


async def pinned_picture(call: Call, holder: str, sha256: str) -> bytes:
    """Pin a picture as the avatar of a conversation, or of `@user`; NotFound unless the caller has uploaded it."""
    attached = await reply_of(call.services.files.attach, call.user, holder, (SharedFile(sha256),))
    if not attached.infos or attached.infos[0].kind != "image":
        raise NotFound("no such picture of yours")
    return attached.pins


async def make_links(call: Call, given: LinkRequest) -> LinksMade:
    """Make links to files that need no token and end within an hour. What you may not see is left out."""
    parts = media(call)
    found = await asyncio.gather(*(_links_of(call, parts, sha256, given.in_) for sha256 in dict.fromkeys(given.files)))
    links = {sha256: link for sha256, link, _ in found if link is not None}
    if given.in_ is not None and given.in_[0] != USER:
        await _note_opened(call, parts, given.in_, list(links))
    ends = min((ends for _, link, ends in found if link is not None), default=now_ms())
    return LinksMade(links, ends)


async def _links_of(call: Call, parts: Media, sha256: str, where: str | None) -> tuple[str, MadeLink | None, int]:
    try:
        info = await _seen(call, parts, sha256, where)
        record = await parts.files.record(sha256)
        url, ends = await _link(parts, await _linked(parts, sha256, record, info, None))
        previews: dict[str, str] = {}
        for edge in record.previews:
            with suppress(Missing):  # one link less
                linked = await _linked(parts, sha256, record, info, edge)
                previews[str(edge)], its_end = await _link(parts, linked)
                ends = min(ends, its_end)
    except NotFound:
        return sha256, None, 0
    return sha256, MadeLink(url, previews), ends


async def _link(parts: Media, linked: Linked) -> tuple[str, int]:
    """A link to the store, else to a router, and when it ends (ms)."""
    now = now_ms()
    return await parts.signed.make(linked, now) or parts.links.make(linked, now)


async def get_linked_file(call: Call, given: LinkQuery) -> Response:
    """Get a file by a link, which needs no token."""
    parts = media(call)
    linked = parts.links.check(call.path["sha256"], given.d, given.ends, given.sig, now_ms())
    if linked is None:
        raise NotFound("this link has ended, or is none")
    return await _serve(call.request, parts, linked, "private, max-age=3600")


async def delete_file(call: Call, _: None) -> None:
    """Remove a file everywhere; its bytes are refused from then on."""
    parts, sha256 = media(call), call.path["sha256"]
    await parts.files.forget_uploads(sha256, -1)
    await parts.files.ban(sha256, names.stem(sha256))

"""Files: uploading them, links to them, and their bytes.

A file is named by the hash of its bytes, and stored once. Send it within a day:
`conversation.send(body, files=[file["sha256"]])`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final, Literal
from urllib.parse import quote, urlencode

from linnet_client.errors import Refused, Unreachable
from linnet_client.http import TRANSFER_S, UserApi
from linnet_client.uploading import Progress, Upload, counted
from linnet_client.wire import FileInfo

Kind = Literal["image", "voice", "video", "file"]
DEFAULT_TYPE: Final = "application/octet-stream"
AT_ONCE: Final = 1 << 20  # bytes that go in one request, unless that is cut


class Media:
    """The files of one user."""

    def __init__(self, calls: UserApi) -> None:
        self._calls = calls

    async def upload(
        self,
        data: bytes | Path,
        *,
        name: str = "",
        mime: str = DEFAULT_TYPE,
        kind: Kind | None = None,
        duration: int | None = None,
        waveform: list[int] | None = None,
        progress: Progress | None = None,
        begun: Callable[[str], None] | None = None,
        upload: str = "",
    ) -> FileInfo:
        """Upload bytes or a file, and return what the server knows of it: `sha256`, `type`, `kind`, `size`, ….

        `kind`: if it is not to be found out; `duration` (ms) and `waveform` (levels of 0 to 255): of voice and video.
        `progress` is called with the bytes that were sent so far and the size.

        An upload that is cut goes on where it was; without any progress for 15 minutes it fails. To go on in another
        process, keep the name that `begun` is given, and pass it as `upload` with the same bytes. If the task is
        cancelled, nothing more is sent and `progress` is not called again; what the server has stays there for a day.
        """
        given = {"kind": kind, "duration": duration, "waveform": waveform and ",".join(map(str, waveform))}
        query = {field: str(value) for field, value in given.items() if value is not None}
        named = name or (data.name if isinstance(data, Path) else "")
        size = await asyncio.to_thread(lambda: data.stat().st_size) if isinstance(data, Path) else len(data)
        if size <= AT_ONCE and not upload and begun is None:
            content = await asyncio.to_thread(data.read_bytes) if isinstance(data, Path) else data
            try:
                return await self._at_once(content, query, mime, named, progress)
            except (Unreachable, Refused) as error:
                if isinstance(error, Refused) and error.code != "unavailable":
                    raise
        described = {"type": mime, **query} | ({"name": named} if named else {})
        resumable = Upload(self._calls, data, size, described, progress, begun, upload)
        return await resumable.run()

    async def _at_once(
        self, data: bytes, query: dict[str, str], mime: str, name: str, progress: Progress | None
    ) -> FileInfo:
        headers = {"Content-Type": mime, "Content-Length": str(len(data))}
        if name:
            headers["Linnet-Name"] = quote(name, safe="")
        path = f"/v1/uploads?{urlencode(query)}"
        with counted(data, 0, len(data), progress) as body:
            answer = await self._calls.transfer("POST", path, body, headers, TRANSFER_S)
        made: FileInfo = self._calls.api.json(answer)
        return made

    async def links(self, files: list[str], conversation: str | None = None) -> dict[str, Any]:
        """Return links by file, which need no token and end within an hour: {sha256: {`url`, `previews`}}.

        `conversation`: where the files were seen; without it they are own uploads. What may not be seen is left out.
        """
        asked = {"files": files} if conversation is None else {"files": files, "in": conversation}
        found: dict[str, Any] = (await self._calls.call("POST", "/v1/uploads/links", asked))["links"]
        return {
            file: {
                "url": self._calls.api.url_of(link["url"]),
                "previews": {edge: self._calls.api.url_of(url) for edge, url in link["previews"].items()},
            }
            for file, link in found.items()
        }

    async def bytes(self, file: str, conversation: str | None = None, *, preview: int | None = None) -> bytes:
        """Return the bytes of a file, or of a smaller picture of it (`preview`: 320 or 1600)."""
        given = {"in": conversation, "preview": preview}
        query = urlencode({field: value for field, value in given.items() if value is not None})
        return await self._calls.fetch(f"/v1/uploads/{quote(file)}?{query}")

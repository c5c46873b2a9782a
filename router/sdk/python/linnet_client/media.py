"""Files: uploading them, links to them, and their bytes.

A file is named by the hash of its bytes, so an upload that was cut can be made again: it is stored once. Send it within
a day: `conversation.send(body, files=[file["sha256"]])`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from io import BytesIO
from pathlib import Path
from typing import Any, BinaryIO, Final, Literal, Protocol
from urllib.parse import quote, urlencode

from linnet_client.http import Api
from linnet_client.wire import FileInfo

Kind = Literal["image", "voice", "video", "file"]
Progress = Callable[[int, int], None]
DEFAULT_TYPE: Final = "application/octet-stream"


class Caller(Protocol):
    """The client, as its media need it."""

    async def call(self, method: str, path: str, body: Any = None) -> Any: ...


class _Counted:
    """A file whose reading is reported to the loop, in bytes so far and of all."""

    def __init__(self, file: BinaryIO, size: int, progress: Progress | None) -> None:
        self._file = file
        self._size = size
        self._progress = progress
        self._loop = asyncio.get_running_loop()
        self._done = 0

    def read(self, size: int = -1) -> bytes:
        part = self._file.read(size)
        self._done += len(part)
        if self._progress is not None and part:
            self._loop.call_soon_threadsafe(self._progress, self._done, self._size)
        return part


class Media:
    """The files of one user."""

    def __init__(self, api: Api, token: Callable[[], Awaitable[str]], caller: Caller) -> None:
        self._api = api
        self._token = token
        self._caller = caller

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
    ) -> FileInfo:
        """Upload bytes or a file, and return what the server knows of it: `sha256`, `type`, `kind`, `size`, ….

        `kind`: if it is not to be found out; `duration` (ms) and `waveform` (levels of 0 to 255): of voice and video.
        `progress` is called with the bytes that were sent so far and the size.
        """
        given = {"kind": kind, "duration": duration, "waveform": waveform and ",".join(map(str, waveform))}
        query = urlencode({field: value for field, value in given.items() if value is not None})
        headers = {"Content-Type": mime}
        if name or isinstance(data, Path):
            headers["Linnet-Name"] = quote(name or Path(str(data)).name, safe="")
        size = await asyncio.to_thread(lambda: data.stat().st_size) if isinstance(data, Path) else len(data)
        opened: BinaryIO = await asyncio.to_thread(data.open, "rb") if isinstance(data, Path) else BytesIO(data)
        with opened as file:
            body = _Counted(file, size, progress)
            headers["Content-Length"] = str(size)
            made: FileInfo = await self._api.send(f"/v1/uploads?{query}", body, headers, await self._token())
        return made

    async def links(self, files: list[str], conversation: str | None = None) -> dict[str, Any]:
        """Return links by file, which need no token and end within an hour: {sha256: {`url`, `previews`}}.

        `conversation`: where the files were seen; without it they are own uploads. What may not be seen is left out.
        """
        asked = {"files": files} if conversation is None else {"files": files, "in": conversation}
        found: dict[str, Any] = (await self._caller.call("POST", "/v1/uploads/links", asked))["links"]
        return found

    async def bytes(self, file: str, conversation: str | None = None, *, preview: int | None = None) -> bytes:
        """Return the bytes of a file, or of a smaller picture of it (`preview`: 320 or 1600)."""
        given = {"in": conversation, "preview": preview}
        query = urlencode({field: value for field, value in given.items() if value is not None})
        return await self._api.fetch(f"/v1/uploads/{quote(file)}?{query}", await self._token())

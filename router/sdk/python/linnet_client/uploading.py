"""A file on its way by tus: after a break it goes on where the server got to, also at another router.

Invariants
- Only what the server says counts: after each break it is asked how far it is, so no byte is missing or doubled.
- The last answer may be lost: a finished upload answers a HEAD with its file.
- Without any progress for PATIENCE_S the upload fails. What the server has stays there for a day.
"""

from __future__ import annotations

import asyncio
import json
import time
from base64 import b64decode, b64encode
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path
from typing import Final

from linnet_client.errors import ClientError, Refused, Unreachable
from linnet_client.http import TRANSFER_S, Answer, UserApi
from linnet_client.machine import backoff_s
from linnet_client.wire import FileInfo

CHUNK: Final = 8 << 20  # bytes of one request
PATIENCE_S: Final = 900.0  # a scan may take ten minutes
PASSING: Final = frozenset({"unavailable", "rate_limited", "locked", "conflict"})
TUS: Final = {"Tus-Resumable": "1.0.0"}
BODY: Final = {"Content-Type": "application/offset+octet-stream"}

Progress = Callable[[int, int], None]


class Counted:
    """Bytes whose reading in a thread is reported to the loop, in bytes so far and of all, until it is closed."""

    def __init__(self, data: bytes, before: int, size: int, progress: Progress | None) -> None:
        self._data = BytesIO(data)
        self._done = before
        self._size = size
        self._progress = progress
        self._closed = False
        self._loop = asyncio.get_running_loop()

    def read(self, size: int = -1) -> bytes:
        if self._closed:
            raise OSError("the upload was cancelled")
        part = self._data.read(size)
        self._done += len(part)
        if self._progress is not None and part:
            self._loop.call_soon_threadsafe(self._report, self._done)
        return part

    def _report(self, done: int) -> None:
        if self._progress is not None and not self._closed:
            self._progress(done, self._size)

    def close(self) -> None:
        self._closed = True


@contextmanager
def counted(data: bytes, before: int, size: int, progress: Progress | None) -> Iterator[Callable[[], Counted]]:
    """Make the same bytes as often as they are asked for; if this is left by an exception, none is read any more."""
    made = list[Counted]()

    def begin() -> Counted:
        made.append(Counted(data, before, size, progress))
        return made[-1]

    try:
        yield begin
    except BaseException:
        for body in made:
            body.close()
        raise


class Upload:
    """One upload of bytes or a file. `upload` names one of an earlier life that goes on, `begun` is given the name."""

    def __init__(
        self,
        calls: UserApi,
        data: bytes | Path,
        size: int,
        described: dict[str, str],
        progress: Progress | None,
        begun: Callable[[str], None] | None,
        upload: str,
    ) -> None:
        self._calls = calls
        self._data = data
        self._size = size
        self._described = described
        self._progress = progress
        self._begun = begun
        self._upload = upload
        self._earlier = bool(upload)
        self._offset: int | None = None  # None: the server is asked

    async def run(self) -> FileInfo:
        """Upload; return what the server knows of the file."""
        failures, moved, most = 0, time.monotonic(), 0
        while True:
            try:
                file = await self._step()
            except (Unreachable, Refused) as error:
                if isinstance(error, Refused) and error.code == "not_found" and self._earlier:
                    self._upload, self._offset, self._earlier = "", None, False  # it ended, a day after its last byte
                    continue
                wait_s = max(_wait_s(error), backoff_s(failures))
                failures += 1
                if not _passes(error) or time.monotonic() + wait_s > moved + PATIENCE_S:
                    raise
                self._offset = None
                await asyncio.sleep(wait_s)
            else:
                if file is not None:
                    return file
                if self._offset is not None and self._offset > most:
                    failures, moved, most = 0, time.monotonic(), self._offset

    async def _step(self) -> FileInfo | None:
        """Begin the upload, ask how far it is, or send its next bytes; return the file, if it is one now."""
        if not self._upload:
            await self._begin()
        if self._offset is None:
            answer = await self._ask("HEAD", self._upload, {}, lambda: None)
            if answer.headers["Upload-Length"] != str(self._size):
                raise Refused("not_found", "this is the upload of another file", status=404)
        else:
            data = await asyncio.to_thread(self._chunk, self._offset)
            headers = {**BODY, "Upload-Offset": str(self._offset), "Content-Length": str(len(data))}
            with counted(data, self._offset, self._size, self._progress) as body:
                answer = await self._ask("PATCH", self._upload, headers, body)
        made = answer.headers["Linnet-Upload"]
        if made is not None:
            file: FileInfo = json.loads(b64decode(made))
            return file
        self._offset = int(answer.headers["Upload-Offset"] or 0)
        return None

    async def _begin(self) -> None:
        known = (f"{name} {b64encode(value.encode()).decode()}" for name, value in self._described.items())
        headers = {"Upload-Length": str(self._size), "Upload-Metadata": ",".join(known)}
        answer = await self._ask("POST", "/v1/uploads/tus", headers, lambda: None)
        self._upload, self._offset = str(answer.headers["Location"]), 0
        if self._begun is not None:
            self._begun(self._upload)

    async def _ask(self, method: str, path: str, headers: dict[str, str], body: Callable[[], Counted | None]) -> Answer:
        return await self._calls.transfer(method, path, body, {**TUS, **headers}, TRANSFER_S)

    def _chunk(self, offset: int) -> bytes:
        if isinstance(self._data, bytes):
            return self._data[offset : offset + CHUNK]
        with self._data.open("rb") as file:
            file.seek(offset)
            data = file.read(min(CHUNK, self._size - offset))
        if offset + len(data) < self._size and len(data) < CHUNK:
            raise ClientError(f"{self._data} has become shorter")
        return data


def _passes(error: Unreachable | Refused) -> bool:
    return isinstance(error, Unreachable) or error.code in PASSING


def _wait_s(error: Unreachable | Refused) -> float:
    return error.wait_s or 0.0 if isinstance(error, Refused) else 0.0

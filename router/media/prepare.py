"""From the received bytes of an upload to what is stored: type, scan, then the worker.

Order and reasons
1. The type comes from the first bytes, and the client's declaration is checked against it: no work for a refused type.
2. The scanner gets the bytes as they were sent, before a decoder does.
3. Pictures are encoded anew in a worker. Voice and video are kept as they are; if PyAV is installed, a worker reads
   whether the file has sound or pictures and how long it is, and that replaces what the client says. Other files are
   kept as they are.

Invariants
- No byte of a file is decoded in this process; only its first HEAD_BYTES are compared.
- A user whose files hit the worker's bounds of memory or CPU KILLS times within KILLS_S gets `RateLimited` for pictures
  and recordings, on this router, so that nobody can occupy the workers. At most USERS users are remembered.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from time import monotonic
from typing import Final

from router.contract.errors import RateLimited, Unavailable
from router.contract.settings import Settings
from router.media import scan
from router.media.signatures import HEAD_BYTES, by_signature, decide
from router.media.turns import RETRY_S
from router.media.types import Kind, Prepared, Preview, Received, UnsupportedType
from router.media.worker.job import PREVIEW_EDGES, Picture, PictureJob, PictureType, Recording, RecordingJob
from router.media.workers import Killed, Workers

KILLS: Final = 3
KILLS_S: Final = 3600.0
USERS: Final = 10_000


class Kills:
    """The times at which files of a user hit the worker's bounds."""

    def __init__(self, clock: Callable[[], float] = monotonic) -> None:
        self._clock = clock
        self._times: dict[str, list[float]] = {}  # the user with the oldest last time first

    def check(self, user: str) -> None:
        """`RateLimited` if the user has KILLS within the last KILLS_S."""
        since = self._clock() - KILLS_S
        times = [time for time in self._times.get(user, ()) if time > since]
        if len(times) >= KILLS:
            raise RateLimited("too many of your files were too expensive to read", round(times[-KILLS] - since, 3))

    def add(self, user: str) -> None:
        self._times[user] = [*self._times.pop(user, ())[1 - KILLS :], self._clock()]
        if len(self._times) > USERS:
            del self._times[next(iter(self._times))]


class Preparer:
    """Calling it prepares an upload; `close` it at the end."""

    def __init__(self, workers: Workers, scans: scan.Scans | None, *, probes: bool) -> None:
        self._workers = workers
        self._scans = scans
        self._probes = probes
        self._kills = Kills()

    @classmethod
    def make(cls, settings: Settings) -> Preparer:
        return cls(Workers(settings.media_workers), scan.make(settings), probes=find_spec("av") is not None)

    async def __call__(self, received: Received) -> Prepared:
        """Check and prepare an upload; it raises what `Prepare` in `types` lists."""
        head = await asyncio.to_thread(_head, received.path)
        name, kind = decide(by_signature(head), received.declared_type, received.declared_kind)
        if kind != "file":
            self._kills.check(received.user)
        if self._scans is not None:
            await self._scans.check(received)
        if kind == "file":
            return Prepared(kind, name, received.size)
        with self._counted(received.user):
            if kind == "image":
                return await self._picture(received, name)  # type: ignore[arg-type]  # a type of kind image
            return await self._recording(received, name, kind)

    async def close(self) -> None:
        await self._workers.close()

    @contextmanager
    def _counted(self, user: str) -> Iterator[None]:
        try:
            yield
        except Killed:
            self._kills.add(user)
            raise

    async def _picture(self, received: Received, name: PictureType) -> Prepared:
        outs = [_beside(received.path, what) for what in ("main", *map(str, PREVIEW_EDGES))]
        with _opened(received.path, outs) as files:
            answer = await self._workers.do(PictureJob(name), files)
        main, *others = outs
        sizes = [out.stat().st_size for out in outs]
        if not isinstance(answer, Picture) or not all(sizes[:1]):
            raise Unavailable("the worker for pictures did not do its work: try again", RETRY_S)
        previews = []
        for edge, path, size in zip(PREVIEW_EDGES, others, sizes[1:], strict=True):
            if size and edge in answer.previews:
                previews.append(Preview(edge, path, *answer.previews[edge], size))
            else:
                path.unlink()
        return Prepared("image", name, sizes[0], answer.width, answer.height, main=main, previews=tuple(previews))

    async def _recording(self, received: Received, name: str, kind: Kind) -> Prepared:
        duration_ms = received.duration_ms
        if self._probes:
            with _opened(received.path, []) as files:
                found = await self._workers.do(RecordingJob(), files)
            if not isinstance(found, Recording):
                raise Unavailable("the worker for recordings did not do its work: try again", RETRY_S)
            if kind == "video" and not found.video and found.audio and received.declared_kind is None:
                name, kind = decide(name, "", "voice")
            if not (found.video if kind == "video" else found.audio):
                raise UnsupportedType(
                    f"the file is not of kind {kind}: it has no {'pictures' if kind == 'video' else 'sound'}"
                )
            duration_ms = duration_ms if found.duration_ms is None else found.duration_ms
        waveform = received.waveform if kind == "voice" else None
        return Prepared(kind, name, received.size, duration_ms=duration_ms, waveform=waveform)


def _head(path: Path) -> bytes:
    with path.open("rb") as file:
        return file.read(HEAD_BYTES)


def _beside(path: Path, what: str) -> Path:
    return path.with_name(f"{path.name}.{what}")


@contextmanager
def _opened(path: Path, outs: list[Path]) -> Iterator[list[int]]:
    """The descriptors of the input and of outputs that are created; closed at the end."""
    files: list[int] = []
    try:
        files.append(os.open(path, os.O_RDONLY | os.O_CLOEXEC))
        files.extend(os.open(out, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600) for out in outs)
        yield files
    finally:
        for file in files:
            os.close(file)

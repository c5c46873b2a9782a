"""The bytes of an upload on their way into a file."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from functools import partial
from hashlib import sha256
from pathlib import Path

import pytest

from router.contract.errors import StartupError
from router.media import receiving
from router.media.receiving import Bytes, Spool, receive
from tests.support import eventually

OPEN_FILES = Path("/proc/self/fd")


def test_spool_that_cannot_be_written_to_is_refused_at_the_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The setting's folder, and the one of temporary files where there is none, as on a read-only file system."""
    with pytest.raises(StartupError, match="LINNET_MEDIA_SPOOL must be a folder"):
        Spool(str(tmp_path / "absent"))

    def none() -> str:
        raise FileNotFoundError("No usable temporary directory found")

    monkeypatch.setattr(receiving, "gettempdir", none)
    with pytest.raises(StartupError, match="No usable temporary directory"):
        Spool()
    Spool(str(tmp_path))
    assert list(tmp_path.iterdir()) == []


async def test_progress_is_called_for_few_bytes_too(tmp_path: Path) -> None:
    """It keeps the upload's place, so a client that sends slowly has one as long as it sends."""
    calls = 0

    async def progress() -> None:
        nonlocal calls
        calls += 1

    async def trickle() -> AsyncIterator[bytes]:
        for i in range(3):
            assert calls == i
            yield b"x"

    assert await receive(trickle(), tmp_path / "received", 3, progress) == Bytes(3, sha256(b"xxx").hexdigest())
    assert calls == 3


def closed(path: Path) -> bool:
    return str(path) not in {str(one.resolve()) for one in OPEN_FILES.iterdir()}


async def test_upload_that_is_cancelled_leaves_no_open_file(tmp_path: Path) -> None:
    """At the first steps of the event loop; a file that stays open is also a ResourceWarning."""

    async def progress() -> None: ...

    async def two() -> AsyncIterator[bytes]:
        yield b"x"
        yield b"x"

    for steps in range(30):
        path = tmp_path / f"received-{steps}"
        running = asyncio.ensure_future(receive(two(), path, 2, progress))
        for _ in range(steps):
            await asyncio.sleep(0)
        running.cancel()
        await asyncio.wait((running,))
        await eventually(partial(closed, path))

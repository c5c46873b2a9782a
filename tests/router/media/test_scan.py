"""Scans of uploads: by a real clamd with a signature of the test's own, and by an HTTP service."""

from __future__ import annotations

import asyncio
import json
import shutil
import subprocess
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Literal

import pytest
from prometheus_client import REGISTRY

from deploy.embedded import tied
from router.contract.errors import Unavailable
from router.contract.settings import Settings
from router.media import scan
from router.media.prepare import Preparer
from router.media.scan import Scans
from router.media.types import OCTETS, Rejected
from router.media.workers import Workers
from tests import support
from tests.router.media.pictures import encoded, painted, received

CLAMD = shutil.which("clamd")
NEEDS_CLAMD = pytest.mark.skipif(CLAMD is None, reason="clamd is not installed (clamav-daemon)")
FOUND = b"the-content-of-this-file-has-a-signature"
STREAM_MAX_BYTES = 1 << 20


@pytest.fixture(scope="module")
def clamd(starts_processes: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """Start clamd with one signature; return its URLs."""
    assert CLAMD is not None
    folder = tmp_path_factory.mktemp("clamd")
    (port,) = support.free_ports(1)
    (folder / "db").mkdir()
    (folder / "db" / "own.ndb").write_text(f"Linnet.Test:0:*:{FOUND.hex()}\n")
    (folder / "clamd.conf").write_text(
        f"Foreground yes\nLogFile {folder}/log\nDatabaseDirectory {folder}/db\nTemporaryDirectory {folder}\n"
        f"LocalSocket {folder}/socket\nTCPSocket {port}\nTCPAddr 127.0.0.1\nStreamMaxLength {STREAM_MAX_BYTES}\n"
    )
    command = tied(CLAMD, "--config-file", folder / "clamd.conf")
    server = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    urls = {"port": f"clamd://127.0.0.1:{port}", "socket": f"clamd://{folder}/socket"}

    async def answers() -> bool:
        assert server.poll() is None, (folder / "log").read_text()
        try:
            await scan.Clamd("", 0, f"{folder}/socket").version()
        except scan.NoVerdict:
            return False
        return True

    support.run(support.eventually(answers, 60.0))
    yield urls
    server.kill()
    server.wait()


def scans(url: str, on_failure: Literal["open", "closed"] = "closed", timeout_s: float = 30.0) -> Scans:
    made = scan.make(Settings(media_scan_url=url, media_scan_on_failure=on_failure, media_scan_timeout_s=timeout_s))
    assert made is not None
    return made


def counted(result: str) -> float:
    return REGISTRY.get_sample_value("linnet_router_media_scans_total", {"result": result}) or 0.0


@NEEDS_CLAMD
@pytest.mark.parametrize("way", ["port", "socket"])
async def test_clamd_finds_the_signature_anywhere_in_a_file(clamd: dict[str, str], way: str, tmp_path: Path) -> None:
    before = counted("found"), counted("clean")
    scanner = scans(clamd[way])
    for data in (b"harmless", b"", bytes(900_000), encoded(painted(200, 100), "PNG")):
        await scanner.check(received(tmp_path, data))
    for data in (FOUND, bytes(600_000) + FOUND + bytes(7), encoded(painted(40, 30), "JPEG") + FOUND):
        with pytest.raises(Rejected):
            await scanner.check(received(tmp_path, data))
    assert (counted("found"), counted("clean")) == (before[0] + 3, before[1] + 4)


@NEEDS_CLAMD
async def test_file_that_is_too_large_for_clamd_has_no_verdict(clamd: dict[str, str], tmp_path: Path) -> None:
    """Closed: 503; open: kept."""
    large = received(tmp_path, bytes(3 * STREAM_MAX_BYTES))
    with pytest.raises(Unavailable):
        await scans(clamd["port"]).check(large)
    await scans(clamd["port"], "open").check(large)


@NEEDS_CLAMD
async def test_picture_is_scanned_as_it_was_sent_and_before_a_worker_gets_it(
    clamd: dict[str, str], tmp_path: Path
) -> None:
    """Re-encoding would remove the finding; a rejected file never starts a worker."""
    preparer = Preparer(workers := Workers(1), scans(clamd["socket"]), probes=False)
    try:
        upload = received(tmp_path, encoded(painted(40, 30), "JPEG", comment=FOUND))
        with pytest.raises(Rejected):
            await preparer(upload)
        assert not workers._idle
        assert [path.name for path in upload.path.parent.iterdir()] == ["bytes"]
        assert (await preparer(received(tmp_path, b"text"))).type == OCTETS
    finally:
        await preparer.close()


async def test_scanner_that_is_down_refuses_or_accepts_as_it_is_set(tmp_path: Path) -> None:
    (port,) = support.free_ports(1)
    upload = received(tmp_path, b"harmless")
    for url in (f"clamd://127.0.0.1:{port}", f"clamd://{tmp_path}/no-socket", f"http://127.0.0.1:{port}/scan"):
        before = counted("failed")
        with pytest.raises(Unavailable) as refused:
            await scans(url).check(upload)
        assert refused.value.retry_after
        await scans(url, "open").check(upload)
        assert counted("failed") == before + 2


@asynccontextmanager
async def listening(
    handle: Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]],
) -> AsyncIterator[int]:
    """The port of a server that passes each connection to `handle`."""
    tasks: set[asyncio.Task[None]] = set()

    async def connection(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await handle(reader, writer)
        except (OSError, asyncio.IncompleteReadError):
            pass
        finally:
            writer.close()

    server = await asyncio.start_server(
        lambda *streams: tasks.add(asyncio.create_task(connection(*streams))), "127.0.0.1", 0
    )
    try:
        yield server.sockets[0].getsockname()[1]
    finally:
        server.close()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def test_scanner_that_never_answers_is_given_up(tmp_path: Path) -> None:
    """An infected file could be one that the scanner hangs on, so `closed` refuses it."""

    async def silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await asyncio.Event().wait()

    async with listening(silent) as port:
        for url in (f"clamd://127.0.0.1:{port}", f"http://127.0.0.1:{port}/scan"):
            with pytest.raises(Unavailable):
                await scans(url, timeout_s=0.2).check(received(tmp_path, b"harmless"))


@pytest.mark.parametrize(
    "reply", [b"", b"stream: OK", b"OK\0", b"stream: FOUND\0", b"x" * 100_000, b"UNKNOWN COMMAND\0"]
)
async def test_malformed_reply_is_no_verdict(reply: bytes, tmp_path: Path) -> None:
    async def answering(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        command = await reader.readuntil(b"\0")
        writer.write(b"ClamAV 1.4.6\0" if command == b"zVERSION\0" else reply)
        await writer.drain()

    async with listening(answering) as port:
        with pytest.raises(Unavailable):
            await scans(f"clamd://127.0.0.1:{port}").check(received(tmp_path, b"harmless"))


async def test_bytes_are_scanned_again_when_the_signatures_change(tmp_path: Path) -> None:
    """While they are the same, a verdict holds for the same bytes; a finding is never remembered."""
    version, scanned = "ClamAV 1.4.6/1/Mon", 0

    async def answering(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal scanned
        if await reader.readuntil(b"\0") == b"zVERSION\0":
            writer.write(version.encode() + b"\0")
            return
        data = b""
        while length := int.from_bytes(await reader.readexactly(4), "big"):
            data += await reader.readexactly(length)
        scanned += 1
        writer.write(b"stream: OK\0" if FOUND not in data else b"stream: Linnet.Test FOUND\0")

    async with listening(answering) as port:
        scanner = scans(f"clamd://127.0.0.1:{port}")
        for _ in range(3):
            await scanner.check(received(tmp_path, b"harmless"))
        assert scanned == 1
        version = "ClamAV 1.4.6/2/Tue"
        await scanner.check(received(tmp_path, b"harmless"))
        assert scanned == 2
        for _ in range(2):
            with pytest.raises(Rejected):
                await scanner.check(received(tmp_path, FOUND))
        assert scanned == 4


@pytest.mark.parametrize(
    ("status", "answer", "error"),
    [
        (200, {"verdict": "accept"}, None),
        (200, {"verdict": "reject", "reason": "a virus"}, Rejected),
        (200, {"verdict": "unknown"}, Unavailable),
        (200, [], Unavailable),
        (500, {"verdict": "accept"}, Unavailable),
        (302, {"verdict": "accept"}, Unavailable),
    ],
)
async def test_http_scanner_gets_the_bytes_and_decides(
    status: int, answer: Any, error: type[Exception] | None, tmp_path: Path
) -> None:
    upload = received(tmp_path, bytes(range(256)) * 3000)
    bodies = []

    async def answering(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = (await reader.readuntil(b"\r\n\r\n")).decode().lower()
        assert f"linnet-sha256: {upload.sha256}" in head
        assert f"content-length: {upload.size}\r\n" in head
        bodies.append(await reader.readexactly(upload.size))
        body = json.dumps(answer).encode()
        writer.write(f"HTTP/1.1 {status} X\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body)

    async with listening(answering) as port:
        checked = scans(f"http://127.0.0.1:{port}/scan").check(upload)
        if error is None:
            await checked
        else:
            with pytest.raises(error):
                await checked
    assert bodies == [upload.path.read_bytes()]

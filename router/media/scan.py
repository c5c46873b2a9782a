"""The scanner of uploads: clamd's INSTREAM command, or a POST to an HTTP service of the operator.

Invariants
- A file is scanned as it was sent, before a worker or a store gets it, and the upload is answered after the verdict. So
  nothing is served before its verdict.
- Found: `Rejected`. No verdict (the scanner is down, slow, or does not take a file of this size): `Unavailable` if the
  setting is `closed`; accepted, and counted, if it is `open`.
- Bytes without a finding are not scanned again by this process while the scanner has the same signatures; at most
  KNOWN such verdicts are kept. An HTTP service, and a clamd without ClamAV's own signatures, has no version, so there
  every upload is scanned.
- A scan ends within the time limit; at most SCANS run at once, and a bounded number of callers waits.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator
from contextlib import aclosing
from pathlib import Path
from time import monotonic
from typing import Final, Literal, Protocol
from urllib.parse import urlsplit

from msgspec import DecodeError, Struct
from msgspec.json import Decoder

from router.contract import metrics
from router.contract.errors import Unavailable
from router.contract.settings import Settings, clamd_address
from router.media.turns import RETRY_S, Turns
from router.media.types import Received, Rejected
from router.process.http_client import HttpClient, NoAnswer

SCANS: Final = 4
KNOWN: Final = 10_000
CHUNK_BYTES: Final = 256 * 1024
REPLY_BYTES: Final = 4096

log = logging.getLogger("linnet.media")


class NoVerdict(Exception):
    """The scanner did not say whether it found something; the text is for the operator's log."""


class Scanner(Protocol):
    async def version(self) -> str:
        """Return the version of the signatures, empty if the scanner has none."""

    async def clean(self, received: Received) -> bool:
        """Return whether the scanner finds nothing in the file; `NoVerdict` if it does not say."""


class Scans:
    """Scans every upload before anything else is done with it."""

    def __init__(self, scanner: Scanner, on_failure: Literal["open", "closed"], timeout_s: float) -> None:
        self._scanner = scanner
        self._open = on_failure == "open"
        self._timeout_s = timeout_s
        self._turns = Turns(SCANS, metrics.MEDIA_WAITING.labels("scan"))
        self._known: dict[str, str] = {}  # sha256 of a file without a finding → version; oldest first
        self._failing = False

    async def check(self, received: Received) -> None:
        """Return if the file may be kept; raise `Rejected` or `Unavailable` if not."""
        async with self._turns.turn():
            start = monotonic()
            result = "failed"
            try:
                async with asyncio.timeout(self._timeout_s):
                    result = await self._verdict(received)
            except (NoVerdict, TimeoutError) as error:
                self._note(str(error) or f"no verdict within {self._timeout_s:g} s")
            else:
                self._note("")
            finally:
                metrics.MEDIA_SCANS.labels(result).inc()
                metrics.MEDIA_SCAN_SECONDS.observe(monotonic() - start)
        if result == "found":
            raise Rejected("the scanner rejects this file")
        if result == "failed" and not self._open:
            raise Unavailable("this file cannot be scanned now: try again", RETRY_S)

    async def _verdict(self, received: Received) -> Literal["clean", "known", "found"]:
        version = await self._scanner.version()
        if version and self._known.get(received.sha256) == version:
            return "known"
        if not await self._scanner.clean(received):
            self._known.pop(received.sha256, None)
            return "found"
        if version:
            self._known.pop(received.sha256, None)
            self._known[received.sha256] = version
            if len(self._known) > KNOWN:
                del self._known[next(iter(self._known))]
        return "clean"

    def _note(self, why: str) -> None:
        """Log the first failure, and the first verdict after it."""
        if bool(why) != self._failing:
            self._failing = bool(why)
            if why:
                log.warning(
                    "the scanner gives no verdict, uploads are %s: %s", "kept" if self._open else "refused", why
                )
            else:
                log.info("the scanner gives verdicts again")


class Clamd:
    """ClamAV's daemon at a host and port, or at the path of a Unix socket."""

    def __init__(self, host: str, port: int, path: str) -> None:
        self._host, self._port, self._path = host, port, path

    async def version(self) -> str:
        version = await self._ask(b"zVERSION\0", None)  # ClamAV 1.4.6/27500/date; the numbers of its own signatures
        return version if "/" in version else ""

    async def clean(self, received: Received) -> bool:
        reply = await self._ask(b"zINSTREAM\0", received.path)
        if reply == "stream: OK":
            return True
        if reply.startswith("stream: ") and reply.endswith(" FOUND"):
            return False
        raise NoVerdict(f"clamd answered {reply[:200]!r}")

    async def _ask(self, command: bytes, path: Path | None) -> str:
        """Send a command, and a file as chunks with their length before them; return the reply without its end."""
        try:
            reader, writer = await self._connect()
        except OSError as error:
            raise NoVerdict(f"clamd cannot be reached: {error}") from None
        try:
            writer.write(command)
            if path is not None:
                await _send(writer, path)
            return (await reader.readuntil(b"\0"))[:-1].decode(errors="replace")
        except (OSError, asyncio.IncompleteReadError, asyncio.LimitOverrunError) as error:
            raise NoVerdict(f"clamd ended the connection: {error}") from None
        finally:
            writer.transport.abort()

    async def _connect(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        if self._path:
            return await asyncio.open_unix_connection(self._path, limit=REPLY_BYTES)
        return await asyncio.open_connection(self._host, self._port, limit=REPLY_BYTES)


async def _send(writer: asyncio.StreamWriter, path: Path) -> None:
    async with aclosing(chunks(path)) as parts:
        async for part in parts:
            await _write(writer, len(part).to_bytes(4, "big") + part)
    await _write(writer, bytes(4))


async def _write(writer: asyncio.StreamWriter, data: bytes) -> None:
    if writer.is_closing():
        raise ConnectionResetError("it was closed")  # uvloop would raise a RuntimeError
    writer.write(data)
    await writer.drain()


async def chunks(path: Path) -> AsyncGenerator[bytes]:
    """The bytes of a file; they are read in a thread, because the disk may be slow. It is opened here: if opening it in
    a thread is cancelled, no caller has the file that is to be closed."""
    with path.open("rb") as file:
        while chunk := await asyncio.to_thread(file.read, CHUNK_BYTES):
            yield chunk


class _Verdict(Struct, frozen=True):
    verdict: Literal["accept", "reject"]


_decode = Decoder(_Verdict).decode


class HttpScanner:
    """An HTTP service: the file is the body of a POST; the answer is 200 with {"verdict": "accept" | "reject"}."""

    def __init__(self, client: HttpClient) -> None:
        self._client = client

    async def version(self) -> str:
        return ""

    async def clean(self, received: Received) -> bool:
        headers = [("Content-Type", "application/octet-stream"), ("Linnet-Sha256", received.sha256)]
        try:
            async with aclosing(chunks(received.path)) as body:
                answer = await self._client.stream(headers, received.size, body)
        except NoAnswer as error:
            raise NoVerdict(f"the scanner did not answer: {error}") from None
        if answer.status != 200 or not answer.whole:
            raise NoVerdict(f"the scanner answered {answer.status}")
        try:
            return _decode(answer.body).verdict == "accept"
        except (DecodeError, UnicodeDecodeError):
            raise NoVerdict("the scanner's answer is not a verdict") from None


def make(settings: Settings) -> Scans | None:
    """Return the scanner that the settings name; None if they name none."""
    url, timeout_s = settings.media_scan_url, settings.media_scan_timeout_s
    if not url:
        return None
    scanner: Scanner
    if urlsplit(url).scheme == "clamd":
        scanner = Clamd(*clamd_address(url))
    else:
        scanner = HttpScanner(HttpClient("LINNET_MEDIA_SCAN_URL", url, timeout_s))
    return Scans(scanner, settings.media_scan_on_failure, timeout_s)

"""The object store of files: a folder, S3, Google Cloud Storage or Azure, by its URL. Only this module knows obstore.

An object is written once, under a name that nobody else ever gives to other bytes, and read in pieces. The marker is an
object with the deployment's id: a store of another deployment, or a folder that is not mounted, is never written to.

Invariants
- `put` never replaces an object, and returns only when a crash of the machine cannot take the object back: a folder's
  files and directories are synced.
- An object is never in memory as a whole.
- Every error of the store is `Unavailable`; only a missing object is `Missing`.
"""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from datetime import timedelta
from pathlib import Path
from time import monotonic, perf_counter, time
from typing import Any, Final
from urllib.parse import unquote, urlsplit

import obstore
from obstore.exceptions import AlreadyExistsError
from obstore.store import LocalStore, S3Store, from_url

from router.contract import metrics
from router.contract.errors import LinnetError, Unavailable

MARKER: Final = "linnet-deployment"
CONNECT_S: Final = 3.0
CALL_S: Final = 20.0
CHUNK_S: Final = 30.0
SLOWEST_BYTES_S: Final = 250_000  # of a put; slower ones are given up
PART_BYTES: Final = 5 << 20
PARTS_AT_ONCE: Final = 2
CHUNK_BYTES: Final = 1 << 18
RETRY_S: Final = 5.0
STAGED_S: Final = 3600.0
SIGN_S: Final = 3.0
CACHING: Final = "private, max-age=3600"  # of an object that is fetched from the store itself
_RETRIES: Final[Any] = {"max_retries": 2, "retry_timeout": timedelta(seconds=8)}

log = logging.getLogger("linnet.media")


class Missing(LinnetError):
    """The store does not have an object that was asked for."""

    code = "unavailable"
    status = 503


class Foreign(Exception):
    """The store belongs to another deployment; the message says what to do."""


def _store_at(url: str, endpoint: str, **options: Any) -> Any:
    """The store with another endpoint than its variables say, to sign for: the host is signed, too."""
    parts = urlsplit(url)
    if parts.scheme == "s3":  # this option alone is stronger than all variables, and `from_url` does not know it
        config: Any = {"aws_endpoint_url_s3": endpoint}
        return S3Store(parts.netloc, prefix=unquote(parts.path).strip("/") or None, config=config, **options)
    config = {"base_url" if parts.scheme == "gs" else "endpoint": endpoint}
    return from_url(url, config=config, **options)


class Objects:
    """A store; `claim` must succeed before anything is written or deleted.

    `public_url`: where clients reach the store; without it no address of an object is signed.
    """

    def __init__(self, url: str, deployment: str, public_url: str = "") -> None:
        self._url = url
        self._public_url = public_url.rstrip("/")
        self._signer: Any = None
        self._deployment = deployment.encode()
        self._folder = Path(unquote(urlsplit(url).path)) if url.startswith("file:") else None
        self._store: Any = None
        self._claimed = False
        self._known_before = False
        self.trouble = ""

    # -- whose store it is

    async def claim(self, known_before: bool) -> None:
        """Find out whose store this is, and mark an empty one as ours; Foreign, or Unavailable.

        `known_before`: this deployment has marked a store already, so one without its marker is the wrong one.
        """
        self._known_before = known_before
        async with self._timed("claim", CALL_S):
            self._open(make=not known_before)
            found = await self._marker()
            if found is None:
                if known_before:
                    raise Foreign(
                        f"the store at LINNET_MEDIA_URL has no object `{MARKER}`, and this deployment has marked one"
                        " before: mount the right folder, or name the right bucket (deploy/README.md, Files)"
                    )
                with suppress(AlreadyExistsError):
                    await obstore.put_async(self._store, MARKER, self._deployment, mode="create")
                await asyncio.to_thread(self._sync, MARKER)
                found = await self._marker()
        if found != self._deployment:
            raise Foreign(
                f"the store at LINNET_MEDIA_URL belongs to another deployment (its object `{MARKER}` has another id):"
                " name another bucket or folder"
            )
        self._claimed = True

    async def _marker(self) -> bytes | None:
        try:
            found = await obstore.get_async(self._store, MARKER)
            return bytes(await found.bytes_async())
        except FileNotFoundError:
            return None

    def _open(self, *, make: bool) -> None:
        if self._folder is not None:
            if make:
                self._folder.mkdir(parents=True, exist_ok=True)
            self._store = LocalStore(prefix=self._folder)
        elif self._store is None:
            options: Any = {"connect_timeout": f"{CONNECT_S:g}s", "timeout": "3600s", "allow_http": True}
            if self._public_url:
                self._signer = _store_at(self._url, self._public_url, client_options=options, retry_config=_RETRIES)
            self._store = from_url(self._url, client_options=options, retry_config=_RETRIES)

    def _ready(self) -> Any:
        """The store, if it is ours and there. A folder that is gone is not made again behind our back."""
        if not self._claimed:
            raise Unavailable("the store of files is not ready", RETRY_S)
        if self._folder is not None and not (self._folder / MARKER).exists():
            raise OSError("the folder is gone, or is not mounted")
        return self._store

    # -- objects

    async def put(self, name: str, path: Path, size: int, kind: str = "", disposition: str = "attachment") -> bool:
        """Write an object from a file; False if it was there. `kind`: the type that the store itself serves it with."""
        async with self._timed("put", CALL_S + size / SLOWEST_BYTES_S):
            store = self._ready()
            given: Any = None
            if kind and not self._folder:
                given = {"Content-Type": kind, "Content-Disposition": disposition, "Cache-Control": CACHING}
            try:
                await obstore.put_async(
                    store,
                    name,
                    path,
                    mode="create",
                    attributes=given,
                    chunk_size=PART_BYTES,
                    max_concurrency=PARTS_AT_ONCE,
                )
            except AlreadyExistsError:
                return False
            finally:
                await asyncio.to_thread(self._sync, name)
        return True

    async def size(self, name: str) -> int | None:
        """The size of an object, None if there is none."""
        async with self._timed("head", CALL_S):
            try:
                return int((await obstore.head_async(self._ready(), name))["size"])
            except FileNotFoundError:
                return None

    async def read(self, name: str, start: int, end: int) -> AsyncIterator[bytes]:
        """The bytes [start, end) of an object, in pieces; Missing or Unavailable before the first one."""
        async with self._timed("get", CALL_S):
            try:
                found = await obstore.get_async(self._ready(), name, options={"range": (start, end)})
            except FileNotFoundError:
                raise Missing("the file cannot be read now", RETRY_S) from None
        return self._pieces(found)

    async def signed(self, name: str, for_s: int) -> str | None:
        """The address of an object that needs no credentials for `for_s`; None if the store does not sign now.

        With keys this only computes. With credentials of a cloud's machine, the cloud is asked.
        """
        if self._signer is None:
            return None
        try:
            async with asyncio.timeout(SIGN_S):
                return str(await obstore.sign_async(self._signer, "GET", name, timedelta(seconds=for_s)))
        except Exception as error:  # noqa: BLE001 - whatever obstore raises, the store cannot do it
            metrics.MEDIA_STORE_ERRORS.labels("sign").inc()
            self._report("sign", error)
            return None

    def lost(self, name: str) -> None:
        """Count and log a missing object that Redis names."""
        metrics.MEDIA_OBJECTS_MISSING.inc()
        log.error("the store lacks an object that Redis names: %s", name)

    async def _pieces(self, found: Any) -> AsyncIterator[bytes]:
        pieces = found.stream(min_chunk_size=CHUNK_BYTES).__aiter__()
        while True:
            try:
                async with asyncio.timeout(CHUNK_S):
                    piece = await pieces.__anext__()
            except StopAsyncIteration:
                return
            yield bytes(piece)

    async def delete(self, name: str) -> None:
        """Delete an object, if it is there."""
        async with self._timed("delete", CALL_S):
            store = self._ready()
            with suppress(FileNotFoundError):
                await obstore.delete_async(store, name)

    async def names(self, prefix: str) -> AsyncIterator[str]:
        """The names of all objects below a prefix."""
        pages = obstore.list(self._ready(), prefix=prefix, chunk_size=1000).__aiter__()
        while True:
            async with self._timed("list", CALL_S):
                try:
                    page = await pages.__anext__()
                except StopAsyncIteration:
                    return
            for meta in page:
                yield str(meta["path"])

    # -- a folder

    def _sync(self, name: str) -> None:
        """Sync a file and its directories up to the folder; obstore does not."""
        if self._folder is None:
            return
        path = self._folder / name
        while True:
            try:
                descriptor = os.open(path, os.O_RDONLY)
            except FileNotFoundError:
                return  # the put has failed
            try:
                os.fsync(descriptor)
            finally:
                os.close(descriptor)
            if path == self._folder:
                return
            path = path.parent

    def sweep_staged(self) -> int:
        """Remove the drafts (`x#1`) that puts left in a folder when their process died; no other call sees them."""
        if self._folder is None or not self._claimed:
            return 0
        removed, before = 0, time() - STAGED_S
        for draft in self._folder.rglob("*#*"):
            with suppress(OSError):
                if draft.stat().st_mtime < before:
                    draft.unlink()
                    removed += 1
        return removed

    @asynccontextmanager
    async def _timed(self, operation: str, within_s: float) -> AsyncIterator[None]:
        """Time a call, and translate its errors."""
        began = perf_counter()
        try:
            async with asyncio.timeout(within_s):
                yield
        except (LinnetError, Foreign):
            raise
        except StopAsyncIteration:
            raise
        except Exception as error:  # noqa: BLE001 - whatever obstore raises, the store cannot do it
            metrics.MEDIA_STORE_ERRORS.labels(operation).inc()
            self.trouble = self._report(operation, error)
            raise Unavailable("the store of files cannot do it now", RETRY_S) from None
        metrics.MEDIA_STORE_SECONDS.labels(operation).observe(perf_counter() - began)
        if self.trouble:
            self.trouble = ""
            log.warning("the store of files answers again")

    _reported = -60.0

    def _report(self, operation: str, error: Exception) -> str:
        """Log the first error of a minute: while the store is down, every call has one."""
        why = f"{operation}: {type(error).__name__}: {str(error).partition(chr(10))[0][:300]}"
        if monotonic() > self._reported + 60:
            self._reported = monotonic()
            log.error("the store of files fails: %s", why)
        return why

"""The files of a message to append: what its sender may use is looked up, then pinned for the conversation.

Invariants
- Every pin is kept (`store/durability.py`) before the message is appended, so a failover that keeps the message keeps
  its files.
- The poster of a video is a file of the message, too. Its sender has uploaded it, or forwards a video with it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from struct import Struct as Packing
from typing import Any, Final, TypeAlias

from msgspec import Struct
from msgspec.structs import replace

from router.contract import keys
from router.contract.addressing import visible
from router.contract.errors import LinnetError, NotFound, from_function
from router.contract.files import FileInfo, Poster, SharedFile
from router.store.answers import Reply
from router.store.file_records import poster_of, shown_in, upload_of
from router.store.redis.client import Client
from router.store.redis.decoding import answer

SENDABLE_MS: Final = 86_400_000  # how long ago a file that is sent may have been uploaded or opened
_PINNED: Final = Packing(">I")


class Attached(Struct, frozen=True):
    """The files of a message to append: `infos` for its event, `pins` for the function."""

    infos: list[FileInfo]
    pins: bytes


REFUSED: Final = Attached([], b"")  # the sender may not use one of the files; only an accepted `n` is acked with it


# Takes the hash of a file and the replid that a write in its slot returned. Calls back once the write is kept (None) or
# may be lost (an error).
FileKept: TypeAlias = Callable[[str, bytes, Callable[[LinnetError | None], None]], None]


def kept_at_once(sha256: str, replid: bytes, reply: Callable[[LinnetError | None], None]) -> None:
    """Count every write as kept: for callers that append no message."""
    reply(None)


class Lookup:
    """The calls of one `attach` and its one reply: first what the user may use, then a pin for each file."""

    __slots__ = ("_client", "_conv", "_given", "_infos", "_kept", "_missing", "_pin_s", "_pinned", "_posters",
                 "_reply", "_user")  # fmt: skip

    def __init__(
        self,
        client: Client,
        user: str,
        conv: str,
        given: Sequence[SharedFile],
        pin_s: int,
        kept: FileKept,
        reply: Reply[Attached],
    ) -> None:
        self._client = client
        self._user = user
        self._conv = conv
        self._given = given
        self._pin_s = pin_s
        self._kept = kept
        self._reply: Reply[Attached] | None = reply
        self._infos: list[FileInfo | None] = [None] * len(given)
        self._pinned = 1 << 32
        self._posters: dict[int, Poster] = {}
        own = [at for at, one in enumerate(given) if one.in_ is None]
        posters = [(at, one.poster) for at, one in enumerate(given) if one.poster is not None]
        self._missing = bool(own or posters) + len(given) - len(own)
        if own or posters:
            where = (keys.uploads(user), *(keys.opened(user, given[at].sha256) for at in own))
            asked = (*(given[at].sha256 for at in own), *(poster for _, poster in posters))
            hashes = [bytes.fromhex(sha256) for sha256 in asked]
            client.call("upload_rows", where, (SENDABLE_MS, *hashes), self._then(self._uploads, (own, posters)))
        for at, one in enumerate(given):
            if one.in_ is not None:
                self._find(at, one.sha256, one.in_)

    def _find(self, at: int, sha256: str, where: str) -> None:
        try:
            conv = visible(self._user, where)
        except NotFound:
            self._end(REFUSED)
            return
        self._find_in(at, sha256, conv)

    def _find_in(self, at: int, sha256: str, conv: str) -> None:
        names = (keys.conversation(conv), keys.log(conv))
        self._client.call("find_file", names, (self._user, bytes.fromhex(sha256)), self._then(self._found, at))

    def _then(self, read: Callable[[Any, Any], None], at: Any) -> Callable[[Any], None]:
        """Return a callback that lets `read` take the reply unless the lookup is over; NotFound ends it as REFUSED."""

        def received(value: Any) -> None:
            if isinstance(value, Exception):
                error = from_function(value)
                self._end(REFUSED if isinstance(error, NotFound) else error)
            elif self._reply is not None:
                answer(self._failed, partial(read, at), value)

        return received

    def _failed(self, value: Any) -> None:
        if isinstance(value, LinnetError):
            self._end(value)

    def _end(self, value: Attached | LinnetError) -> None:
        reply, self._reply = self._reply, None
        if reply is not None:
            reply(value)

    def _uploads(self, asked: tuple[list[int], list[tuple[int, str]]], rows: Any) -> None:
        """Take the rows of own uploads, then of posters; a file that was only opened is looked up where that was."""
        own, posters = asked
        for at, row, conv in zip(own, rows[::2], rows[1::2], strict=False):
            if row is not None:
                self._infos[at] = upload_of(self._given[at].sha256, row).info
            elif conv is not None:
                self._missing += 1
                self._find_in(at, self._given[at].sha256, conv.decode())
            else:
                self._end(REFUSED)
                return
        for (at, sha256), row in zip(posters, rows[2 * len(own) :: 2], strict=True):
            poster = None if row is None else poster_of(upload_of(sha256, row).info)
            if poster is None:
                self._end(REFUSED)
                return
            self._posters[at] = poster
        self._received()

    def _found(self, at: int, event: Any) -> None:
        info = shown_in(self._given[at].sha256, event)
        if info is None:  # an avatar cannot be sent from where it is one: it has no message
            self._end(REFUSED)
            return
        self._infos[at] = info
        self._received()

    def _received(self) -> None:
        self._missing -= 1
        if self._missing or self._reply is None:
            return
        for at, poster in self._posters.items():
            info = self._infos[at]
            if info is None or info.kind != "video":
                self._end(REFUSED)
                return
            self._infos[at] = replace(info, poster=poster)
        hashes = self._hashes()
        self._missing = len(hashes)
        for sha256 in hashes:
            where = (keys.file(sha256), keys.file_due(keys.file_partition(sha256)))
            args = (keys.file_name(sha256), self._conv, self._pin_s)
            self._client.call("file_pin", where, args, self._then(self._pin, sha256))

    def _hashes(self) -> dict[str, None]:
        """The files and their posters, each once."""
        infos = [info for info in self._infos if info is not None]
        return dict.fromkeys(one.sha256 for info in infos for one in (info, info.poster) if one is not None)

    def _pin(self, sha256: str, pinned: Any) -> None:
        at_s, replid = pinned
        self._pinned = min(self._pinned, at_s)
        self._kept(sha256, replid, self._pin_kept)

    def _pin_kept(self, error: LinnetError | None) -> None:
        if error is not None:
            self._end(error)
            return
        self._missing -= 1
        if not self._missing:
            infos = [info for info in self._infos if info is not None]
            self._end(Attached(infos, _PINNED.pack(self._pinned) + b"".join(map(bytes.fromhex, self._hashes()))))

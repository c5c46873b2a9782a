"""People who send pictures and files through the API during a run (`--pictures`), to groups of their own.

An upload or a message that fails is repeated, as clients do: the message with its `Idempotency-Key`. At the end each
member fetches every file of every acked message, and what they get is written down for the checker (`proof/files.py`).
Groups get fewer messages than the log keeps, so that no file is trimmed.
"""

from __future__ import annotations

import asyncio
import io
import random
import time
import urllib.error
import urllib.request
from hashlib import sha256
from http.client import HTTPException
from pathlib import Path
from typing import Any, Final

import msgspec
from PIL import Image

from loadtest.api import Api
from loadtest.chaos.cluster import Cluster
from loadtest.chaos.proof.evidence import FetchedFile, SentFile, append
from loadtest.chaos.proof.history import now_ms

PEOPLE: Final = 6
MEMBERS: Final = 3
EVERY_S: Final = 3.0  # mean time between two messages of a person
MESSAGES: Final = 75  # of a group, about
TIMEOUT_S: Final = 30.0
PAUSE_S: Final = 0.5
FETCH_S: Final = 180.0
AT_ONCE: Final = 6


class PictureSenders:
    def __init__(self, cluster: Cluster, folder: Path, seed: int) -> None:
        self._cluster = cluster
        self._path = folder / "files.jsonl"
        self._rng = random.Random(f"pictures {seed}")
        self._people = [f"picture{number}" for number in range(PEOPLE)]
        self._groups: list[tuple[str, list[str]]] = []
        self._sent: list[SentFile] = []

    async def gather(self, seconds: float) -> None:
        """Make the groups."""
        for _ in range(1 + int(seconds / EVERY_S) * PEOPLE // MESSAGES):
            members = self._rng.sample(self._people, MEMBERS)
            self._groups.append((await asyncio.to_thread(self._api().group, members), members))

    async def run(self, seconds: float) -> None:
        """Let all send for so many seconds."""
        until = time.monotonic() + seconds
        await asyncio.gather(*(self._live(user, random.Random(self._rng.random()), until) for user in self._people))

    async def _live(self, user: str, rng: random.Random, until: float) -> None:
        number = 0
        groups = [(group, members) for group, members in self._groups if user in members]
        while groups:
            await asyncio.sleep(rng.expovariate(1 / EVERY_S))
            if time.monotonic() > until:
                return
            number += 1
            group, members = groups[number % len(groups)]
            await self._send(user, number, group, members, *_content(rng))

    async def _send(self, user: str, number: int, group: str, members: list[str], kind: str, data: bytes) -> None:
        made = await self._repeated(f"/uploads?kind={kind}", user, data)
        # A picture is encoded anew, so only the answer tells the hash of the stored bytes.
        given = sha256(data).hexdigest() if kind == "file" else made["sha256"]
        body = msgspec.json.encode({"to": group, "body": number, "files": [given]})
        sent = await self._repeated("/messages", user, body, {"Idempotency-Key": f"{user}-{number}",
                                                              "Content-Type": "application/json"})  # fmt: skip
        self._sent.append(SentFile(now_ms(), group, sent["seq"], given, members))
        append(self._path, self._sent[-1])

    async def _repeated(self, path: str, user: str, data: bytes, headers: dict[str, str] | None = None) -> Any:
        while True:
            status, body = await asyncio.to_thread(self._call, "POST", path, user, data, headers or {})
            if 200 <= status < 300:
                return msgspec.json.decode(body)
            if 400 <= status < 500 and status != 429:
                raise RuntimeError(f"POST {path} of {user}: {status} {body[:200]!r}")
            await asyncio.sleep(PAUSE_S)

    def _call(
        self, method: str, path: str, user: str, data: bytes | None, headers: dict[str, str]
    ) -> tuple[int, bytes]:
        """A call at some router: status and body; status 0 if there was no answer."""
        router = random.choice(self._cluster.routers)  # not the seeded generator: when calls come is not seeded
        headers = {"Authorization": f"Bearer {self._api().token(user)}"} | headers
        request = urllib.request.Request(f"{router.url}/v1{path}", data, headers, method=method)
        try:
            with urllib.request.urlopen(request, timeout=TIMEOUT_S) as answer:
                return answer.status, answer.read()
        except urllib.error.HTTPError as error:
            return error.code, error.read()
        except (OSError, HTTPException):
            return 0, b""

    def _api(self) -> Api:
        return Api(self._cluster.routers[0].url, self._cluster.server_key, self._cluster.jwt_secret)

    async def settle(self) -> None:
        """Let each member fetch every file that was acked."""
        wanted = [(one, user) for one in self._sent for user in one.members]
        turns, until = asyncio.Semaphore(AT_ONCE), time.monotonic() + FETCH_S

        async def fetch(one: SentFile, user: str) -> FetchedFile:
            async with turns:
                while True:
                    path = f"/uploads/{one.sha256}?in={one.conversation}"
                    status, body = await asyncio.to_thread(self._call, "GET", path, user, None, {})
                    if status not in (0, 429, 503) or time.monotonic() > until:
                        found = sha256(body).hexdigest()
                        return FetchedFile(now_ms(), one.conversation, one.seq, one.sha256, user, status, found)
                    await asyncio.sleep(PAUSE_S)

        append(self._path, *await asyncio.gather(*(fetch(one, user) for one, user in wanted)))


def _content(rng: random.Random) -> tuple[str, bytes]:
    """A picture or a file; some are sent again and again, by everybody."""
    content = random.Random(rng.randrange(20)) if rng.random() < 0.3 else rng
    if content.random() < 0.3:
        return "file", content.randbytes(content.choice((10, 10_000, 300_000)))
    width, height = content.choice(((30, 20), (200, 150), (400, 300)))
    made = io.BytesIO()
    Image.frombytes("RGB", (width, height), content.randbytes(3 * width * height)).save(made, "PNG")
    return "image", made.getvalue()

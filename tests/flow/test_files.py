"""If routers and Redis are killed at any moment, the files of acked messages remain, and in the end no other files do.

`make kills` kills at fifty points.
"""

from __future__ import annotations

import asyncio
import io
import json
import os
import random
import time
from base64 import b64decode
from functools import partial
from hashlib import sha256
from pathlib import Path
from typing import Literal

import httpx
import redis
from PIL import Image

from deploy.embedded import EmbeddedValkey
from router.contract import keys
from router.contract.errors import NotFound
from router.jobs.sweeper import Sweeper
from router.media import names
from router.media.receiving import Spool
from router.store.deployment import ident, mark_media, media_marked
from router.store.files import COUNT, Files, Times
from router.store.objects import MARKER, Objects
from router.store.redis.client import Client
from router.store.resumable import Resumables
from tests.conftest import StartProcess
from tests.flow.client import token
from tests.support import SERVER_KEY, Process, eventually

POINTS = int(os.environ.get("KILLS", "4"))
PEOPLE = 6
SEED = 20261127
QUIET_S = 60.0  # without a command to Redis, at the most
STEP_S = 180.0  # until a step comes, at the most
AFTER = 6  # commands after a step
EVERYTHING_IS_OLD = Times(pin_s=0, upload_s=0, keep_s=0, hold_s=0)
# The steps of an upload and of a send, as functions after which a router is killed; those of every send are last.
STEPS = ("file_intent", "tus_advance", "file_pin", "upload_begin", "tus_create", "file_stored", "tus_lock",
         "upload_own", "tus_finish", "upload_rows", "append")  # fmt: skip
TUS = {"Tus-Resumable": "1.0.0"}
KIND = b"kind ZmlsZQ=="

How = Literal["file", "image", "tus"]


class People:
    """Users who upload files and send them to one group, again and again; what was acked is remembered."""

    def __init__(self) -> None:
        self.router: Process | None = None
        self.group = ""
        self.acked: set[str] = set()
        self.stopping = False
        self.calls = 0
        self.up = asyncio.Event()
        self.up.set()

    async def live(self, user: str, seed: int) -> None:
        choice, number = random.Random(seed), 0
        headers = {"Authorization": f"Bearer {token(user)}"}
        ways: tuple[How, ...] = ("file", "file", "tus", "tus", "image")
        async with httpx.AsyncClient(trust_env=False, timeout=60) as http:
            while not self.stopping:
                number += 1
                how = choice.choice(ways)
                data = f"{user} {number % 7} ".encode() * choice.choice((1, 1000, 20_000))
                try:
                    sha = await self._upload(http, headers, picture(number % 5) if how == "image" else data, how)
                    if choice.random() < 0.7:  # the others are never sent
                        key = {"Idempotency-Key": f"{user}-{number}"}
                        body = {"to": self.group, "body": number, "files": [sha]}
                        sent = await http.post(self._url("/v1/messages"), headers=headers | key, json=body)
                        if sent.is_success:
                            self.acked.add(sha)
                except (httpx.HTTPError, OSError, RuntimeError, AttributeError):  # the last one is anyio's, of a
                    await self.up.wait()  # connection that broke at once: the router is dead, and is started again

    async def _upload(self, http: httpx.AsyncClient, headers: dict[str, str], data: bytes, how: How) -> str:
        if how != "tus":
            answer = await http.post(self._url(f"/v1/uploads?kind={how}"), headers=headers, content=data)
            return str(succeeded(answer).json()["sha256"])
        begun = {"Upload-Length": str(len(data)), "Upload-Metadata": KIND.decode()}
        answer = succeeded(await http.post(self._url("/v1/uploads/tus"), headers=headers | TUS | begun))
        where, half = answer.headers["location"], len(data) // 2
        for offset, part in ((0, data[:half]), (half, data[half:])):
            more = {"Upload-Offset": str(offset), "Content-Type": "application/offset+octet-stream"}
            answer = succeeded(await http.patch(self._url(where), headers=headers | TUS | more, content=part))
        return str(json.loads(b64decode(answer.headers["linnet-upload"]))["sha256"])

    def has_called(self, times: int) -> bool:
        return self.calls >= times

    def _url(self, path: str) -> str:
        assert self.router is not None
        self.calls += 1
        return f"{self.router.url}{path}"


def succeeded(answer: httpx.Response) -> httpx.Response:
    if not answer.is_success:
        raise RuntimeError(answer.text)
    return answer


def picture(number: int) -> bytes:
    """A picture with one preview."""
    made = io.BytesIO()
    Image.new("RGB", (400, 10), (number, 0, 0)).save(made, "PNG")
    return made.getvalue()


def kill_at(valkey: EmbeddedValkey, router: Process, step: str, after: int) -> None:
    """Kill a router once Redis has run the function `step` and then `after` more commands."""
    with redis.Redis.from_url(valkey.url, socket_timeout=QUIET_S, retry=None) as client, client.monitor() as monitor:
        reached, until = False, time.monotonic() + STEP_S
        for one in monitor.listen():
            assert time.monotonic() < until, f"no call of {step} within {STEP_S:g} s"
            if one["client_type"] == "lua":
                continue
            reached = reached or f" {step}_" in one["command"]
            after -= reached
            if after < 0:
                router.kill()
                return


async def sweep_everything(valkey: EmbeddedValkey, client: Client, folder: Path) -> None:
    """Let the sweeper work as if everything were old, until it finds nothing more to do."""
    deployment = await ident(client)
    objects = Objects(f"file://{folder}", deployment)
    sweeper = Sweeper(
        Files(client, EVERYTHING_IS_OLD), Resumables(client), objects, Spool(str(folder.parent)),
        partial(ident, client), partial(media_marked, client), partial(mark_media, client), deployment,
    )  # fmt: skip
    await sweeper.start()
    for _ in range(4):
        with valkey.client() as redis:
            for key in redis.scan_iter("{f*}:held"):  # of a router that has noticed an empty Redis
                redis.delete(key)
            for key in redis.scan_iter("{f*}:tus:*"):
                redis.hset(key, "ends", 0)
            for key in redis.scan_iter("{f*}:due"):
                for item in redis.zrange(key, 0, -1):
                    redis.zadd(key, {item: 1})
        await sweeper.sweep()


def objects_of(folder: Path) -> dict[str, int]:
    """Return the sizes of the store's objects by name, without drafts of puts."""
    paths = (path for path in folder.rglob("*") if path.is_file() and "#" not in path.name and path.name != MARKER)
    return {str(path.relative_to(folder)): path.stat().st_size for path in paths}


def referred(valkey: EmbeddedValkey, group: str) -> set[str]:
    """The files of the messages of a conversation."""
    with valkey.client() as redis:
        return {field[2:].hex() for field in redis.hkeys(keys.conversation(group)) if field[:2] == b"f:"}


async def check_references(valkey: EmbeddedValkey, folder: Path, group: str) -> set[str]:
    """Prove that each file of a message, and each that is recorded, has its objects, and that Redis names every object.

    Return the objects of the files of messages. No router may be running.
    """
    objects, used = objects_of(folder), set[str]()
    with valkey.client() as redis:
        recorded = [key.decode().rpartition(":")[2] for key in redis.scan_iter("{f*}:file:*")]
    client = await Client.connect(valkey.url)
    try:
        files, resumables, sent = Files(client), Resumables(client), referred(valkey, group)
        assert sent <= {keys.sha256_of(name) for name in recorded}
        for sha in map(keys.sha256_of, recorded):
            try:
                record = await files.record(sha)
            except NotFound:  # its bytes are still being uploaded
                continue
            whole = names.object_of(sha, record.gen)
            own = {whole, *(names.object_of(sha, record.gen, edge) for edge in record.previews)}
            assert own <= objects.keys()
            assert objects[whole] == record.size
            if sha in sent:
                assert await client.fetch("HEXISTS", keys.file(sha), f"c:{group}")
                used |= own
        for name in objects:
            if upload := names.upload_of(name):
                assert await resumables.named(upload, name)
            else:
                file = names.file_of(name)
                assert file is not None
                assert await files.named(*file, f"!{name}")
    finally:
        await client.close()
    return used


async def test_killed_routers_and_a_killed_redis_lose_no_file_of_an_acked_message(
    own_valkey: EmbeddedValkey, process: StartProcess, tmp_path: Path
) -> None:
    """Each one can be fetched, byte for byte; in the end exactly the files of messages are in the store.

    A router is killed after each step of an upload and a send, or somewhat later; sometimes Redis is killed with it, or
    under a router that goes on.
    """
    folder, choice = tmp_path / "store", random.Random(SEED)
    environ = {"LINNET_REDIS_URL": own_valkey.url, "LINNET_MEDIA_URL": f"file://{folder}",
               "LINNET_MEDIA_UPLOADS_PER_MIN": "100000", "LINNET_MEDIA_SPOOL": str(tmp_path),
               "LINNET_MEDIA_UPLOADS_AT_ONCE": "1000"}  # fmt: skip
    people = People()
    people.router = await process("router", **environ).ready()
    users = [f"user{i}" for i in range(PEOPLE)]
    server = {"Authorization": f"Bearer {SERVER_KEY}"}
    async with httpx.AsyncClient(trust_env=False, timeout=30, base_url=people.router.url) as http:
        for user in users:
            (await http.post("/v1/tokens", headers=server, json={"user": user})).raise_for_status()
        made = {"kind": "group", "members": users}
        answer = await http.post("/v1/conversations", headers=server | {"Linnet-User": users[0]}, json=made)
        people.group = answer.raise_for_status().json()["conversation"]
    living = [asyncio.create_task(people.live(user, SEED + i)) for i, user in enumerate(users)]
    for point in range(POINTS):
        step, after = STEPS[point % len(STEPS)], choice.randrange(AFTER)
        await asyncio.to_thread(kill_at, own_valkey, people.router, step, after)
        people.up.clear()  # only now: users that are refused before this go on
        if point % 3 == 2:
            own_valkey.kill()
            own_valkey.start()
        await check_references(own_valkey, folder, people.group)
        people.router = await process("router", **environ).ready()
        people.up.set()
        if point % 3 == 0:
            moment = people.calls + PEOPLE + choice.randrange(3 * PEOPLE)
            await eventually(partial(people.has_called, moment), every_s=0.001)
            own_valkey.kill()  # under a router that goes on
            own_valkey.start()
    people.stopping = True
    await asyncio.gather(*living)
    member = {"Authorization": f"Bearer {token(users[-1])}"}
    async with httpx.AsyncClient(trust_env=False, timeout=30, base_url=people.router.url) as http:

        async def fetched(sha: str) -> httpx.Response | None:  # the router may not have its connections again
            got = await http.get(f"/v1/uploads/{sha}", headers=member, params={"in": people.group})
            return None if got.status_code == 503 else got

        for sha in people.acked:
            got = await eventually(partial(fetched, sha), 60.0)
            assert got is not None
            assert (got.status_code, sha256(got.content).hexdigest()) == (200, sha), got.text
    assert people.acked <= referred(own_valkey, people.group)
    people.router.kill()
    used = await check_references(own_valkey, folder, people.group)
    client = await Client.connect(own_valkey.url)
    try:
        await sweep_everything(own_valkey, client, folder)
    finally:
        await client.close()
    assert objects_of(folder).keys() == used == await check_references(own_valkey, folder, people.group)
    with own_valkey.client() as redis:
        due = [item for key in redis.scan_iter("{f*}:due") for item in redis.zrange(key, 0, -1)]
        assert [item for item in due if item != COUNT.encode()] == []

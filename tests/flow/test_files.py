"""Files of acked messages survive routers and a Redis that are killed at any moment, and nothing else stays."""

from __future__ import annotations

import asyncio
import random
from functools import partial
from hashlib import sha256
from pathlib import Path

import httpx

from deploy.embedded import EmbeddedValkey
from router.contract import keys
from router.jobs.sweeper import Sweeper
from router.media.receiving import Spool
from router.store.deployment import ident, mark_media, media_marked
from router.store.files import Files, Times
from router.store.objects import Objects
from router.store.redis.client import Client
from router.store.resumable import Resumables
from tests.conftest import StartProcess
from tests.flow.client import token
from tests.support import SERVER_KEY, Process, eventually

KILLS = 3
PEOPLE = 6
SEED = 20261127
EVERYTHING_IS_OLD = Times(pin_s=0, upload_s=0, keep_s=0, hold_s=0)


class People:
    """Users who upload files and send them to one group, again and again; what was acked is remembered."""

    def __init__(self) -> None:
        self.router: Process | None = None
        self.group = ""
        self.acked: dict[str, bytes] = {}  # by hash
        self.stopping = False
        self.calls = 0
        self.up = asyncio.Event()
        self.up.set()

    async def live(self, user: str, seed: int) -> None:
        choice, number = random.Random(seed), 0
        headers = {"Authorization": f"Bearer {token(user)}"}
        async with httpx.AsyncClient(trust_env=False, timeout=60) as http:
            while not self.stopping:
                number += 1
                data = f"{user} {number % 7} ".encode() * choice.choice((1, 1000, 20_000))
                try:
                    sha = await self._upload(http, headers, data)
                    if choice.random() < 0.7:  # the others are never sent
                        key = {"Idempotency-Key": f"{user}-{number}"}
                        body = {"to": self.group, "body": number, "files": [sha]}
                        sent = await http.post(self._url("/v1/messages"), headers=headers | key, json=body)
                        if sent.is_success:
                            self.acked[sha] = data
                except (httpx.HTTPError, OSError, RuntimeError, AttributeError):  # the last one is anyio's, of a
                    await self.up.wait()  # connection that broke at once: the router is dead, and is started again

    async def _upload(self, http: httpx.AsyncClient, headers: dict[str, str], data: bytes) -> str:
        answer = await http.post(self._url("/v1/uploads?kind=file"), headers=headers, content=data)
        if not answer.is_success:
            raise RuntimeError(answer.text)
        return str(answer.json()["sha256"])

    def has_called(self, times: int) -> bool:
        return self.calls >= times

    def _url(self, path: str) -> str:
        assert self.router is not None
        self.calls += 1
        return f"{self.router.url}{path}"


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
            for key in redis.scan_iter("{f*}:due"):
                for item in redis.zrange(key, 0, -1):
                    redis.zadd(key, {item: 1})
        await sweeper.sweep()


def objects_of(folder: Path) -> set[str]:
    return {path.name.partition(".")[0] for path in folder.rglob("files/*/*") if "#" not in path.name}


def referred(valkey: EmbeddedValkey, group: str) -> set[str]:
    """The files of the messages of a conversation."""
    with valkey.client() as redis:
        return {field[2:].hex() for field in redis.hkeys(keys.conversation(group)) if field[:2] == b"f:"}


async def test_killed_routers_and_a_killed_redis_lose_no_file_of_an_acked_message(
    own_valkey: EmbeddedValkey, process: StartProcess, tmp_path: Path
) -> None:
    """Every one can be fetched, byte for byte; in the end exactly the files of messages are in the store."""
    folder, choice = tmp_path / "store", random.Random(SEED)
    environ = {"LINNET_REDIS_URL": own_valkey.url, "LINNET_MEDIA_URL": f"file://{folder}",
               "LINNET_MEDIA_UPLOADS_PER_MIN": "100000", "LINNET_MEDIA_SPOOL": str(tmp_path)}  # fmt: skip
    people = People()
    people.router = await process("router", **environ).ready()
    names = [f"user{i}" for i in range(PEOPLE)]
    server = {"Authorization": f"Bearer {SERVER_KEY}"}
    async with httpx.AsyncClient(trust_env=False, timeout=30, base_url=people.router.url) as http:
        for name in names:
            (await http.post("/v1/tokens", headers=server, json={"user": name})).raise_for_status()
        made = {"kind": "group", "members": names}
        answer = await http.post("/v1/conversations", headers=server | {"Linnet-User": names[0]}, json=made)
        people.group = answer.raise_for_status().json()["conversation"]
    living = [asyncio.create_task(people.live(name, SEED + i)) for i, name in enumerate(names)]
    for _ in range(KILLS):
        moment = people.calls + PEOPLE + choice.randrange(3 * PEOPLE)
        await eventually(partial(people.has_called, moment), every_s=0.001)
        people.up.clear()
        people.router.kill()
        own_valkey.kill()
        own_valkey.start()
        people.router = await process("router", **environ).ready()
        people.up.set()
        moment = people.calls + PEOPLE + choice.randrange(3 * PEOPLE)
        await eventually(partial(people.has_called, moment), every_s=0.001)
        own_valkey.kill()  # under a router that goes on
        own_valkey.start()
    people.stopping = True
    await asyncio.gather(*living)
    member = {"Authorization": f"Bearer {token(names[-1])}"}
    async with httpx.AsyncClient(trust_env=False, timeout=30, base_url=people.router.url) as http:
        client = await Client.connect(own_valkey.url)

        async def only_files_of_messages_are_left() -> bool:  # the router sweeps, too, and may be half way
            await sweep_everything(own_valkey, client, folder)
            return objects_of(folder) == referred(own_valkey, people.group)

        try:
            await eventually(only_files_of_messages_are_left, 60.0)
        finally:
            await client.close()

        async def fetched(sha: str) -> httpx.Response | None:  # the router may not have its connections again
            got = await http.get(f"/v1/uploads/{sha}", headers=member, params={"in": people.group})
            return None if got.status_code == 503 else got

        for sha, data in people.acked.items():
            got = await eventually(partial(fetched, sha), 60.0)
            assert got is not None
            assert (got.status_code, got.content) == (200, data), got.text
            assert sha == sha256(data).hexdigest()
    assert people.acked.keys() <= referred(own_valkey, people.group)

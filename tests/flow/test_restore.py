"""The backup of deploy/RUNBOOKS.md is restored: Redis is copied first, then the store, while people go on."""

from __future__ import annotations

import shutil
from collections.abc import Awaitable, Callable
from hashlib import sha256
from pathlib import Path

import httpx

from deploy.embedded import EmbeddedValkey
from tests.conftest import StartProcess
from tests.flow.client import token
from tests.router.api.serving import SERVER
from tests.router.media.servers import weed
from tests.support import eventually, http_get

ANN, BOB = ({"Authorization": f"Bearer {token(name)}"} for name in ("ann", "bob"))


def copy_of_redis(valkey: EmbeddedValkey, to: Path) -> None:
    """Copy the append-only file of a server that goes on, as Redis's documentation says."""
    with valkey.client() as redis:
        redis.config_set("auto-aof-rewrite-percentage", 0)
        assert redis.info("persistence")["aof_rewrite_in_progress"] == 0
        shutil.copytree(valkey.folder / "appendonlydir", to)
        redis.config_set("auto-aof-rewrite-percentage", 100)


async def asked(call: Callable[[], Awaitable[httpx.Response]]) -> httpx.Response:
    """The answer, once it is another than 503: after a restart a router may not have its connections yet."""

    async def answered() -> httpx.Response | None:
        answer = await call()
        return None if answer.status_code == 503 else answer

    answer = await eventually(answered, 60.0)
    assert answer is not None
    return answer


async def test_backup_of_redis_and_then_of_the_store_has_every_file(
    own_valkey: EmbeddedValkey, process: StartProcess, tmp_path: Path
) -> None:
    """Each file of a message in the restored Redis can be fetched, and what was stored since is not deleted."""
    with weed(tmp_path / "weed") as server:
        s3 = server.client
        s3.create_bucket(Bucket="files")
        environ = server.environ() | {"LINNET_REDIS_URL": own_valkey.url, "LINNET_MEDIA_URL": "s3://files/prefix",
                                      "LINNET_MEDIA_SPOOL": str(tmp_path)}  # fmt: skip

        def objects() -> dict[str, bytes]:
            found = s3.list_objects_v2(Bucket="files").get("Contents", [])
            return {one["Key"]: s3.get_object(Bucket="files", Key=one["Key"])["Body"].read() for one in found}

        async def send(http: httpx.AsyncClient, data: bytes) -> str:
            made = await asked(lambda: http.post("/v1/uploads?kind=file", headers=ANN, content=data))
            sha = str(made.raise_for_status().json()["sha256"])
            body = {"to": group, "body": "see", "files": [sha]}
            (await asked(lambda: http.post("/v1/messages", headers=ANN, json=body))).raise_for_status()
            return sha

        async def fetch(http: httpx.AsyncClient, sha: str) -> httpx.Response:
            return await asked(lambda: http.get(f"/v1/uploads/{sha}", headers=BOB, params={"in": group}))

        router = await process("router", **environ).ready()
        async with httpx.AsyncClient(trust_env=False, timeout=60, base_url=router.url) as http:
            for user in ("ann", "bob"):
                (await http.post("/v1/tokens", headers=SERVER, json={"user": user})).raise_for_status()
            given = {"kind": "group", "members": ["bob"]}
            made = await http.post("/v1/conversations", headers=ANN, json=given)
            group = made.raise_for_status().json()["conversation"]
            before = {await send(http, b"before %d" % i * 1000) for i in range(3)}
            copy_of_redis(own_valkey, tmp_path / "backup")
            between = await send(http, b"between the two copies")
            bucket = objects()
            after = await send(http, b"after both copies")
        router.kill()
        own_valkey.kill()

        shutil.rmtree(own_valkey.folder / "appendonlydir")
        (tmp_path / "backup").rename(own_valkey.folder / "appendonlydir")
        for name in objects():
            s3.delete_object(Bucket="files", Key=name)
        for name, data in bucket.items():
            s3.put_object(Bucket="files", Key=name, Body=data)
        own_valkey.start()
        router = await process("router", **environ).ready()
        async with httpx.AsyncClient(trust_env=False, timeout=60, base_url=router.url) as http:
            for sha in before:
                got = await fetch(http, sha)
                assert (got.status_code, sha256(got.content).hexdigest()) == (200, sha), got.text
            for sha in (between, after):
                assert (await fetch(http, sha)).status_code == 404
            assert await send(http, b"after both copies") == after
            assert (await fetch(http, after)).content == b"after both copies"
        assert objects().items() >= bucket.items()
        exported = (await http_get(router.admin_port, "/metrics"))[1]
        assert "linnet_router_media_missing_objects_total 0.0" in exported

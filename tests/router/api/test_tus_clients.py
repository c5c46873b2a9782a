"""Resumable uploads by clients of tus that are not ours, cut twenty times each, through two routers."""

from __future__ import annotations

import asyncio
import json
import os
import random
from base64 import b64decode
from collections.abc import Awaitable, Callable
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest
from tusclient.client import TusClient

from deploy import sdk
from deploy.embedded import EmbeddedValkey, tied
from tests.cutting import ANSWER, Cutting
from tests.router.api.serving import by
from tests.router.api.test_tus import routers

HERE = Path(__file__).parent
CUTS = 20
SIZE = 2_000_000
SEED = 20261128
TRIES = 500
WITHIN_S = 240.0
NAME = "a ä.bin"


async def with_tus_js_client(api: str, path: Path) -> Any:
    command = tied(sdk.NODE, HERE / "tus_client.mjs", sdk.MODULES, api, by("ann")["Authorization"], path)
    pipe = asyncio.subprocess.PIPE
    client = await asyncio.create_subprocess_exec(*command, stdout=pipe, stderr=pipe)
    out, err = await client.communicate()
    assert client.returncode == 0, err.decode()
    return json.loads(out)


async def with_tuspy(api: str, path: Path) -> Any:
    def upload() -> Any:
        client = TusClient(f"{api}/v1/uploads/tus", headers=by("ann"))
        with path.open("rb") as file:
            uploader = client.uploader(file_stream=file, metadata={"filename": NAME}, retries=TRIES, retry_delay=0.05)
            uploader.upload()
        last: Any = uploader.request
        return json.loads(b64decode(last.response_headers["linnet-upload"]))

    return await asyncio.to_thread(upload)


@pytest.mark.parametrize("client", [with_tus_js_client, with_tuspy])
async def test_upload_of_a_foreign_client_survives_twenty_cuts(
    client: Callable[[str, Path], Awaitable[Any]], valkey: EmbeddedValkey, tmp_path: Path
) -> None:
    """Nineteen requests are cut somewhere, and the last answer is lost. Both routers get some of the bytes."""
    if client is with_tus_js_client and not (sdk.MODULES / "tus-js-client").exists():
        pytest.skip("`make test` installs tus-js-client")
    data, path, choice = os.urandom(SIZE), tmp_path / "data", random.Random(SEED)
    path.write_bytes(data)
    cuts = [choice.randrange(400, SIZE // CUTS) for _ in range(CUTS - 1)] + [ANSWER]
    async with (
        routers(valkey, tmp_path / "store") as (one, other),
        Cutting([f"http://127.0.0.1:{api.port}" for api in (one, other)], [*cuts]) as proxy,
        asyncio.timeout(WITHIN_S),
    ):
        made = await client(proxy.url, path)
        assert (made["sha256"], made["name"]) == (sha256(data).hexdigest(), NAME)
        assert (proxy.done, len(set(proxy.ways))) == (cuts, 2)
        assert (await one.get(made["url"], headers=by("ann"))).content == data

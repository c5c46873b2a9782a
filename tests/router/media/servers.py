"""Object stores for tests, on loopback: servers that speak S3, and an emulator of Azure's."""

from __future__ import annotations

import hmac
import itertools
import os
import subprocess
import time
from base64 import b64decode, b64encode
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from email.utils import formatdate
from pathlib import Path
from typing import Any, Final

import boto3  # type: ignore[import-untyped]  # it has no types
import httpx
import pytest

from deploy.embedded import tied
from deploy.sdk import NODE
from loadtest.chaos.objects import KEY, REGION, SECRET, SeaweedFS
from tests.support import free_ports

AZURITE: Final = Path(".venv/azurite/node_modules/azurite/dist/src/blob/main.js").absolute()
NEEDS_AZURITE: Final = pytest.mark.skipif(not AZURITE.exists(), reason="no azurite here: make stores")
ACCOUNT: Final = "account"
ACCOUNT_KEY: Final = b64encode(b"k" * 32).decode()
WITHIN_S: Final = 120.0

_buckets = itertools.count(1)


class S3:
    """A running server."""

    def __init__(self, endpoint: str) -> None:
        self.endpoint = endpoint

    def variables(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Set the variables by which a router finds the server."""
        for name, value in self.environ().items():
            monkeypatch.setenv(name, value)

    def environ(self) -> dict[str, str]:
        return {"AWS_ENDPOINT_URL": self.endpoint, "AWS_ACCESS_KEY_ID": KEY, "AWS_SECRET_ACCESS_KEY": SECRET,
                "AWS_REGION": REGION, "AWS_ALLOW_HTTP": "true"}  # fmt: skip

    @property
    def client(self) -> Any:
        return boto3.client("s3", endpoint_url=self.endpoint, region_name=REGION, aws_access_key_id=KEY,
                            aws_secret_access_key=SECRET)  # fmt: skip

    def new_bucket(self, monkeypatch: pytest.MonkeyPatch) -> str:
        """Make an empty bucket; return the URL of a prefix in it."""
        self.variables(monkeypatch)
        name = f"bucket-{next(_buckets)}"
        self.client.create_bucket(Bucket=name)
        return f"s3://{name}/some/prefix"


@contextmanager
def moto() -> Iterator[S3]:
    """A simulation of S3 in this process."""
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer("127.0.0.1", free_ports(1)[0], verbose=False)
    server.start()
    try:
        yield S3(f"http://127.0.0.1:{server._port}")
    finally:
        server.stop()


@contextmanager
def weed(folder: Path) -> Iterator[S3]:
    """SeaweedFS, a real object store."""
    server = SeaweedFS(folder)
    try:
        server.start()
        yield S3(server.endpoint)
    finally:
        server.kill()


class Azure:
    """A running emulator."""

    def __init__(self, port: int) -> None:
        self.endpoint = f"http://127.0.0.1:{port}/{ACCOUNT}"

    def new_bucket(self, monkeypatch: pytest.MonkeyPatch) -> str:
        """Make an empty container, and set the variables of a router; return the URL of a prefix in it."""
        variables = {"AZURE_STORAGE_ACCOUNT_NAME": ACCOUNT, "AZURE_STORAGE_ACCOUNT_KEY": ACCOUNT_KEY,
                     "AZURE_STORAGE_ENDPOINT": self.endpoint}  # fmt: skip
        for name, value in variables.items():
            monkeypatch.setenv(name, value)
        name = f"bucket-{next(_buckets)}"
        headers = {"x-ms-date": formatdate(usegmt=True), "x-ms-version": "2021-12-02"}
        told = "".join(f"{header}:{value}\n" for header, value in headers.items())
        text = f"PUT{12 * chr(10)}{told}/{ACCOUNT}/{ACCOUNT}/{name}\nrestype:container"
        mac = b64encode(hmac.digest(b64decode(ACCOUNT_KEY), text.encode(), "sha256")).decode()
        headers["Authorization"] = f"SharedKey {ACCOUNT}:{mac}"
        httpx.put(f"{self.endpoint}/{name}?restype=container", headers=headers, trust_env=False).raise_for_status()
        return f"az://{name}/some/prefix"


@contextmanager
def azurite(folder: Path) -> Iterator[Azure]:
    """Azure's own emulator of its store."""
    (port,) = free_ports(1)
    command = tied(
        NODE, AZURITE, f"--blobPort={port}", "--skipApiVersionCheck", "--disableTelemetry", "--inMemoryPersistence"
    )
    env = {**os.environ, "AZURITE_ACCOUNTS": f"{ACCOUNT}:{ACCOUNT_KEY}"}
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log, env=env, cwd=folder)
    try:
        until = time.monotonic() + WITHIN_S
        while True:
            with suppress(httpx.TransportError):
                httpx.get(f"http://127.0.0.1:{port}/", trust_env=False)
                break
            if process.poll() is not None or time.monotonic() > until:
                raise RuntimeError(f"azurite does not work: {(folder / 'log').read_text()[-2000:]}")
            time.sleep(0.05)
        yield Azure(port)
    finally:
        process.kill()
        process.wait()

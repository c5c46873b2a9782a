"""S3-speaking servers for tests, on loopback."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import boto3  # type: ignore[import-untyped]  # it has no types
import pytest

from loadtest.chaos.objects import KEY, REGION, SECRET, SeaweedFS
from tests.support import free_ports

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

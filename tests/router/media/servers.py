"""S3-speaking servers for tests, on loopback."""

from __future__ import annotations

import itertools
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import boto3  # type: ignore[import-untyped]  # it has no types
import httpx
import pytest

from tests.support import free_ports

KEY, SECRET = "a-key", "a-secret"
REGION: Final = "us-east-1"
WITHIN_S: Final = 60.0
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
    master, volume, filer, s3, *grpc = free_ports(8)
    config = folder / "s3.json"
    credentials = [{"accessKey": KEY, "secretKey": SECRET}]
    rights = ["Admin", "Read", "Write", "List", "Tagging"]
    config.write_text(json.dumps({"identities": [{"name": "linnet", "credentials": credentials, "actions": rights}]}))
    ports = {"master.port": master, "volume.port": volume, "filer.port": filer, "s3.port": s3}
    ports |= dict(zip((f"{name}.grpc" for name in list(ports)), grpc, strict=True))
    command = [str(Path(sys.executable).parent / "weed"), "-logtostderr=true", "server", "-s3", f"-dir={folder}"]
    command += ["-ip=127.0.0.1", "-ip.bind=127.0.0.1", "-volume.max=50", f"-s3.config={config}"]
    command += ["-master.telemetry=false", "-s3.port.iceberg=0", "-s3.port.lance=0", "-s3.iam=false"]
    command += [f"-{name}={port}" for name, port in ports.items()]
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log, env={**os.environ, "HOME": str(folder)})
    try:
        server = S3(f"http://127.0.0.1:{s3}")
        until = time.monotonic() + WITHIN_S
        while True:
            try:
                httpx.get(server.endpoint, trust_env=False)
                server.client.create_bucket(Bucket="first")
                break
            except Exception:
                if process.poll() is not None or time.monotonic() > until:
                    print((folder / "log").read_text()[-2000:])
                    raise
                time.sleep(0.1)
        yield server
    finally:
        process.kill()
        process.wait()

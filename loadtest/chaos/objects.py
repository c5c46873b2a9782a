"""SeaweedFS, an object store that speaks S3, as one process on loopback that can be killed and started again."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, Final

from deploy.embedded import tied
from loadtest.ports import free_ports

KEY, SECRET = "a-key", "a-secret"
REGION: Final = "us-east-1"
BUCKET: Final = "first"
WITHIN_S: Final = 120.0
TRY_S: Final = 0.1


class SeaweedFS:
    """A server with the data in `folder`; it keeps its ports over all its restarts."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(exist_ok=True)
        self._log = folder / "log"
        master, volume, filer, s3, *grpc = free_ports(8)
        self.endpoint = f"http://127.0.0.1:{s3}"
        config = folder / "s3.json"
        rights = ["Admin", "Read", "Write", "List", "Tagging"]
        credentials = [{"accessKey": KEY, "secretKey": SECRET}]
        config.write_text(
            json.dumps({"identities": [{"name": "linnet", "credentials": credentials, "actions": rights}]})
        )
        ports = {"master.port": master, "volume.port": volume, "filer.port": filer, "s3.port": s3}
        ports |= dict(zip((f"{name}.grpc" for name in list(ports)), grpc, strict=True))
        self._command = tied(
            *(Path(sys.executable).parent / "weed", "-logtostderr=true", "server", "-s3", f"-dir={folder}"),
            *("-ip=127.0.0.1", "-ip.bind=127.0.0.1", "-volume.max=50", f"-s3.config={config}"),
            *(
                "-master.telemetry=false",
                "-master.electionTimeout=1s",
                "-s3.port.iceberg=0",
                "-s3.port.lance=0",
                "-s3.iam=false",
            ),
            *(f"-{name}={port}" for name, port in ports.items()),
        )
        self._env = {**os.environ, "HOME": str(folder)}
        self.process: subprocess.Popen[bytes] | None = None

    def environ(self) -> dict[str, str]:
        """The variables by which a router finds the server."""
        return {"AWS_ENDPOINT_URL": self.endpoint, "AWS_ACCESS_KEY_ID": KEY, "AWS_SECRET_ACCESS_KEY": SECRET,
                "AWS_REGION": REGION, "AWS_ALLOW_HTTP": "true"}  # fmt: skip

    def client(self) -> Any:
        import boto3  # type: ignore[import-untyped]  # it has no types; imported here: it takes a second

        return boto3.client("s3", endpoint_url=self.endpoint, region_name=REGION, aws_access_key_id=KEY,
                            aws_secret_access_key=SECRET)  # fmt: skip

    def start(self) -> None:
        """Start the server and wait until it accepts objects."""
        with self._log.open("ab") as log:
            self.process = subprocess.Popen(self._command, stdout=log, stderr=log, env=self._env)
        until = time.monotonic() + WITHIN_S
        while True:
            try:
                client = self.client()
                if BUCKET not in [one["Name"] for one in client.list_buckets()["Buckets"]]:
                    client.create_bucket(Bucket=BUCKET)
                client.put_object(Bucket=BUCKET, Key="started", Body=b"")
                return
            except Exception as error:  # boto3 raises many types while the server starts
                if self.process.poll() is not None or time.monotonic() > until:
                    raise RuntimeError(f"SeaweedFS does not work: {self._log.read_text()[-2000:]}") from error
                time.sleep(TRY_S)

    def signal(self, signum: signal.Signals) -> None:
        if self.process is not None:
            self.process.send_signal(signum)

    def kill(self) -> None:
        if self.process is not None:
            self.process.kill()
            self.process.wait()

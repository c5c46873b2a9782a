"""A pre-send hook as a process of its own, to be killed: `python -m tests.flow.hook_process PORT`.

It rejects what begins with `banned`, and writes `****` in the place of `rude`.
"""

from __future__ import annotations

import json
import subprocess
import sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from deploy.embedded import tied
from tests import support
from tests.support import ROOT


def verdict(body: Any) -> dict[str, Any]:
    if isinstance(body, str) and body.startswith("banned"):
        return {"verdict": "reject", "reason": "be nice"}
    if isinstance(body, str) and "rude" in body:
        return {"verdict": "replace", "body": body.replace("rude", "****")}
    return {"verdict": "accept"}


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        question = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        said = json.dumps(verdict(question["body"])).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(said)))
        self.end_headers()
        self.wfile.write(said)

    def log_message(self, *_: object) -> None:
        """Log nothing."""


class HookProcess:
    """A hook on one port that may be killed and started again."""

    def __init__(self) -> None:
        (self.port,) = support.free_ports(1)
        self.url = f"http://127.0.0.1:{self.port}/ask"
        self._popen: subprocess.Popen[bytes] | None = None

    async def start(self) -> None:
        self._popen = subprocess.Popen(
            tied(sys.executable, "-m", "tests.flow.hook_process", str(self.port)), cwd=ROOT, stdin=subprocess.DEVNULL
        )
        await support.eventually(self._answers)

    async def _answers(self) -> bool:
        try:
            return bool((await support.http_get(self.port, "/"))[0])
        except OSError:
            return False

    def kill(self) -> None:
        if self._popen is not None:
            self._popen.kill()
            self._popen.wait()


if __name__ == "__main__":
    ThreadingHTTPServer(("127.0.0.1", int(sys.argv[1])), Handler).serve_forever()

"""Users who upload hostile pictures, as a process of its own, whose number another process decides.

`python -m loadtest.bench.upload_process URL CONTROL`, with LINNET_JWT_SECRET. A line on CONTROL is the number of users
who upload from then on, and how many processes of low priority compute; the answer counts the statuses
that the users before got. Each line begins with new users, so the rate of each has recovered. A user uploads AT_ONCE
files at once and obeys `Retry-After`.

This process stands for other machines, so it has a lower priority than the servers.
"""

from __future__ import annotations

import io
import os
import random
import socketserver
import struct
import sys
import urllib.error
import urllib.request
import zlib
from collections import Counter
from http.client import HTTPException
from itertools import count
from subprocess import Popen
from threading import Event, Thread
from typing import Final

from PIL import Image

from deploy.embedded import tied
from loadtest.api import Api

AT_ONCE: Final = 3
NICE: Final = 19
UNANSWERED: Final = 0  # as a status


def corpus() -> list[bytes]:
    """Return pictures that lie, explode, take long, or are none; some are accepted."""
    noise = random.Random(1).randbytes(1 << 20).translate(bytes(level & 3 for level in range(256)))
    photo = Image.radial_gradient("L").resize((3000, 2000)).convert("RGB")
    still = Image.linear_gradient("L").resize((1500, 1000)).convert("RGB")
    jpeg, frames = _encoded(still, "JPEG"), [Image.new("P", (400, 400), level) for level in range(60)]
    return [
        _png(30_000, 30_000, zlib.compress(bytes(10 << 20))),
        _png(2000, 2000, zlib.compress(noise * 12, 1)),  # a second to compress
        _png(4000, 4000, zlib.compress(bytes(100))),
        _encoded(photo, "JPEG", progressive=True),
        _encoded(photo, "WEBP", method=0),
        jpeg,
        jpeg[: len(jpeg) // 2],
        b"\xff\xd8" + b"\xff" * 1_000_000,
        _encoded(frames[0], "GIF", save_all=True, append_images=frames[1:]),
        b"GIF89a\x01\0\x01\0\0\0\0" + b"\x2c\0\0\0\0\x01\0\x01\0\0\x02\x02\x44\x01\0" * 10_000 + b"\x3b",
        b"GIF89a\x01\0\x01\0\0\0\0\x21\xfe" + b"\x01x" * 1_000_000,
        b'<svg xmlns="http://www.w3.org/2000/svg"><script>alert(1)</script></svg>',
    ]


def _encoded(image: Image.Image, form: str, **how: object) -> bytes:
    out = io.BytesIO()
    image.save(out, form, **how)
    return out.getvalue()


def _png(width: int, height: int, pixels: bytes) -> bytes:
    parts = ((b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)), (b"IDAT", pixels), (b"IEND", b""))
    chunks = (struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
              for name, data in parts)  # fmt: skip
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunks)


class Uploaders:
    """The users who upload now."""

    def __init__(self, url: str, api: Api) -> None:
        self._url = f"{url}/v1/uploads?kind=image"
        self._api = api
        self._corpus = corpus()
        self._names = count()
        self._running: list[Thread] = []
        self._computing: list[Popen[bytes]] = []
        self._stopping = Event()
        self._statuses: Counter[int] = Counter()

    def start(self, users: int, processes: int) -> None:
        self._stopping, self._statuses = Event(), Counter()
        tokens = [self._api.token(f"uploader-{next(self._names)}") for _ in range(users)]
        self._running = [
            Thread(target=self._upload, args=(token, random.Random(f"{number} {turn}")), daemon=True)
            for number, token in enumerate(tokens)
            for turn in range(AT_ONCE)
        ]
        for thread in self._running:
            thread.start()
        self._computing = [_computing() for _ in range(processes)]

    def stop(self) -> Counter[int]:
        """Let the uploads that run end; return how often each status was answered."""
        self._stopping.set()
        for thread in self._running:
            thread.join()
        for process in self._computing:
            process.kill()
            process.wait()
        return self._statuses

    def _upload(self, token: str, rng: random.Random) -> None:
        while not self._stopping.is_set():
            request = urllib.request.Request(self._url, rng.choice(self._corpus), method="POST")
            request.add_header("Authorization", f"Bearer {token}")
            wait_s = 0.0
            try:
                with urllib.request.urlopen(request, timeout=300) as answer:
                    status = answer.status
            except urllib.error.HTTPError as error:
                status, wait_s = error.code, float(error.headers.get("Retry-After", 0))
                error.close()
            except (OSError, HTTPException):
                status = UNANSWERED
            self._statuses[status] += 1
            self._stopping.wait(wait_s)


def _computing() -> Popen[bytes]:
    """Start a process that, like a picture worker, has a low priority, and computes until it is killed."""
    code = "from router.media.worker import sandbox\nsandbox.yield_cpu()\nwhile True: pass"
    return Popen(tied(sys.executable, "-c", code), start_new_session=True)


class _Control(socketserver.StreamRequestHandler):
    uploaders: Uploaders

    def handle(self) -> None:
        users, processes = map(int, self.rfile.readline().split())
        statuses = self.uploaders.stop()
        self.uploaders.start(users, processes)
        self.wfile.write(" ".join(f"{status}={times}" for status, times in statuses.items()).encode() + b"\n")


def main() -> None:
    url, port = sys.argv[1], int(sys.argv[2])
    os.nice(NICE)
    _Control.uploaders = Uploaders(url, Api(url, "", os.environ["LINNET_JWT_SECRET"]))
    with socketserver.TCPServer(("127.0.0.1", port), _Control) as server:
        server.serve_forever()


if __name__ == "__main__":
    main()

"""Calls of the HTTP API, against a server that answers as a test says."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from threading import Thread

from linnet_client.http import Api


@contextmanager
def server(location: str, seen: list[str | None]) -> Iterator[str]:
    """Its origin. It redirects to `location`, or answers; `seen` has the `Authorization` of each request."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            seen.append(self.headers["Authorization"])
            self.send_response(307 if location else 200)
            if location:
                self.send_header("Location", location)
            self.end_headers()
            if not location:
                self.wfile.write(b"bytes")

        def log_message(self, *_: object) -> None:
            """Say nothing."""

    made = HTTPServer(("127.0.0.1", 0), Handler)
    thread = Thread(target=made.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield f"http://127.0.0.1:{made.server_port}"
    finally:
        made.shutdown()
        thread.join()
        made.server_close()


async def test_link_to_a_file_gets_no_token() -> None:
    """A file may be at another origin, which the user's token does not concern."""
    seen: list[str | None] = []
    with server("", seen) as files, server(f"{files}/v1/files/x?sig=y", seen) as api:
        assert await Api(api).fetch("/v1/uploads/x", "secret") == b"bytes"
    assert seen == ["Bearer secret", None]

"""Ranges of a file, compared with nginx that serves the same bytes."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from deploy.embedded import EmbeddedValkey, tied
from tests import support
from tests.router.api.serving import by, serve

NGINX = shutil.which("nginx", path="/usr/sbin:/usr/bin:/usr/local/bin")
DATA = bytes(range(256)) * 1000
SIZE = len(DATA)
CONFIG = """
daemon off; master_process off; pid {folder}/pid; error_log stderr;
events {{ }}
http {{
  access_log off; default_type application/octet-stream;
  client_body_temp_path {folder}/body; proxy_temp_path {folder}/proxy;
  fastcgi_temp_path {folder}/fastcgi; uwsgi_temp_path {folder}/uwsgi; scgi_temp_path {folder}/scgi;
  server {{ listen 127.0.0.1:{port}; root {folder}/root; }}
}}
"""
RANGES = [
    "bytes=0-0", "bytes=0-9", "bytes=10-", "bytes=-10", f"bytes=-{SIZE}", f"bytes=-{SIZE + 1}", f"bytes=0-{SIZE - 1}",
    f"bytes=0-{SIZE}", "bytes=0-999999999999", f"bytes={SIZE - 1}-", f"bytes={SIZE}-", f"bytes={SIZE + 5}-{SIZE + 9}",
    "bytes=-0", "bytes=100000-199999", "bytes= 5-6", "BYTES=5-6", "bytes=255999-255999",
]  # fmt: skip


@pytest.fixture
def nginx(starts_processes: None, tmp_path: Path) -> Iterator[str]:
    """Serve DATA as `/data`; its URL."""
    assert NGINX is not None
    (port,) = support.free_ports(1)
    (tmp_path / "root").mkdir()
    (tmp_path / "root" / "data").write_bytes(DATA)
    (tmp_path / "nginx.conf").write_text(CONFIG.format(folder=tmp_path, port=port))
    with (tmp_path / "log").open("wb") as log:
        server = subprocess.Popen(tied(NGINX, "-e", "stderr", "-c", tmp_path / "nginx.conf"), stdout=log, stderr=log)

    async def answers() -> bool:
        assert server.poll() is None, (tmp_path / "log").read_text()
        async with httpx.AsyncClient(trust_env=False) as http:
            try:
                return (await http.get(f"http://127.0.0.1:{port}/data")).is_success
            except httpx.HTTPError:
                return False

    support.run(support.eventually(answers, 60.0))
    yield f"http://127.0.0.1:{port}/data"
    server.kill()
    server.wait()


@pytest.mark.skipif(NGINX is None, reason="nginx is not installed (nginx-light)")
async def test_one_range_is_answered_as_nginx_does(valkey: EmbeddedValkey, nginx: str, tmp_path: Path) -> None:
    """Status, `Content-Range`, length and bytes; also with `If-Range` of this version and of another."""
    async with (
        serve(valkey, media_url=f"file://{tmp_path / 'store'}") as api,
        httpx.AsyncClient(trust_env=False) as http,
    ):
        ann = by("ann")
        made = await api.post("/v1/uploads", headers=ann, content=DATA)
        url = made.json()["url"]
        tags = [(await api.get(url, headers=ann)).headers["etag"], (await http.get(nginx)).headers["etag"]]
        for asked in RANGES:
            for versions in ((), tags, ('"another"', '"another"')):
                ours, theirs = ({"Range": asked} | ({"If-Range": versions[at]} if versions else {}) for at in range(2))
                for method in ("GET", "HEAD"):
                    mine = await api.request(method, url, headers=ann | ours)
                    wanted = await http.request(method, nginx, headers=theirs)
                    assert answer(mine) == answer(wanted), (asked, versions, method)


def answer(got: httpx.Response) -> tuple[int, str | None, bytes, str | None]:
    """What must be equal; of an error only its status and the size."""
    if got.status_code == 416:
        return 416, got.headers.get("content-range"), b"", None
    return got.status_code, got.headers.get("content-range"), got.content, got.headers["content-length"]

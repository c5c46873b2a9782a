"""Pictures through a real router: stored upright without metadata, and hostile ones refused while it goes on."""

from __future__ import annotations

from io import BytesIO
from pathlib import Path

import httpx
from PIL import Image

from deploy.embedded import EmbeddedValkey
from tests.conftest import StartProcess
from tests.router.api.serving import by
from tests.router.media.pictures import HTML, SECRET, SVG, painted, tagged
from tests.router.media.test_prepare import hostile
from tests.support import http_get

ANN = by("ann")


async def test_pictures_are_stored_upright_and_hostile_ones_are_refused(
    valkey: EmbeddedValkey, process: StartProcess, tmp_path: Path
) -> None:
    """Every answer is 201, 413, 415 or 422, never 500, and nothing of a refused file is stored."""
    (tmp_path / "store").mkdir()
    (tmp_path / "spool").mkdir()
    router = process(
        "router",
        LINNET_REDIS_URL=valkey.url,
        LINNET_MEDIA_URL=f"file://{tmp_path}/store",
        LINNET_MEDIA_SPOOL=f"{tmp_path}/spool",
        LINNET_MEDIA_UPLOADS_PER_MIN="1000",
    )
    await router.ready()
    async with httpx.AsyncClient(base_url=router.url, timeout=60, trust_env=False) as client:

        async def upload(data: bytes, declared: str, **query: str) -> httpx.Response:
            return await client.post(
                "/v1/uploads", content=data, headers=ANN | {"Content-Type": declared}, params=query
            )

        sent = tagged(painted(2000, 1000).transpose(Image.Transpose.ROTATE_90), "JPEG", 6)
        made = (await upload(sent, "image/jpeg")).json()
        assert (made["kind"], made["type"], made["width"], made["height"]) == ("image", "image/jpeg", 2000, 1000)
        assert made["previews"] == [320, 1600]
        for preview, size in (("", (2000, 1000)), ("320", (320, 160)), ("1600", (1600, 800))):
            got = await client.get(made["url"], headers=ANN, params={"preview": preview} if preview else {})
            assert got.status_code == 200
            assert Image.open(BytesIO(got.content)).size == size
            assert SECRET not in got.content
        objects = sorted(path for path in (tmp_path / "store").rglob("*") if path.is_file())

        statuses = set()
        for name, (data, _) in hostile().items():
            answer = await upload(data, "image/png", kind="image")
            assert answer.status_code in (413, 415, 422) or "more rows" in name, (name, answer.status_code, answer.text)
            statuses.add(answer.status_code)
        for data in (SVG, HTML):
            for declared in ("image/png", "image/svg+xml", "text/html"):
                statuses.add((await upload(data, declared, kind="image")).status_code)
        assert statuses >= {413, 415, 422}
        assert 500 not in statuses
        kept = sorted(path for path in (tmp_path / "store").rglob("*") if path.is_file())
        assert len(kept) <= len(objects) + 3  # the JPEG with fewer rows, which decoders fill, and its previews
        assert not [path for path in (tmp_path / "spool").rglob("*") if path.is_file()]

        markup = (await upload(SVG, "image/svg+xml")).json()
        assert (markup["kind"], markup["type"]) == ("file", "application/octet-stream")
        served = await client.get(markup["url"], headers=ANN)
        assert served.headers["content-disposition"].startswith("attachment")
        assert served.headers["x-content-type-options"] == "nosniff"
    metrics = (await http_get(router.admin_port, "/metrics"))[1]
    assert 'linnet_router_media_work_seconds_count{result="ok",work="picture"} 2.0' in metrics
    router.popen.terminate()
    assert router.popen.wait(60) == 0
    assert "Traceback" not in router.log

"""The page as a router serves it, in front of the API."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import httpx
from msgspec.structs import replace
from starlette.responses import PlainTextResponse

from router.contract.errors import Unavailable
from router.contract.settings import Settings
from router.web.serve import with_admin_page, with_web
from tests.support import JWT_SECRET

SETTINGS = Settings(jwt_secret=JWT_SECRET)


@asynccontextmanager
async def served(gateways: list[str] | None = None, **changed: Any) -> AsyncIterator[httpx.AsyncClient]:
    """A client of the page around an API that says so; `gateways` None: Redis cannot be asked."""

    async def asked(_host: str) -> list[str]:
        if gateways is None:
            raise Unavailable("no Redis")
        return gateways

    app = with_web(PlainTextResponse("the API", 404), replace(SETTINGS, **changed), asked)
    transport = httpx.ASGITransport(app)
    async with httpx.AsyncClient(transport=transport, base_url="http://chat.example", trust_env=False) as http:
        yield http


async def test_page_and_its_files_are_served_with_their_policy() -> None:
    async with served(["ws://10.1.1.1:8001/ws"]) as http:
        page = await http.get("/")
        assert page.status_code == 200
        assert page.headers["cache-control"] == "no-cache"
        assert "connect-src 'self' ws://10.1.1.1:*;" in page.headers["content-security-policy"]
        script = page.text.partition('type="module" src="')[2].partition('"')[0]
        found = await http.get(script)
        assert found.status_code == 200
        assert found.headers["cache-control"] == "public, max-age=31536000, immutable"
        assert found.headers["content-type"].startswith("text/javascript")
        assert found.headers["content-encoding"] == "gzip"
        assert (await http.get(script, headers={"Accept-Encoding": "identity"})).text == found.text


async def test_file_of_another_version_is_gone() -> None:
    """Also a path that leaves the page's folder."""
    async with served([]) as http:
        for path in ("/web/0123456789abcdef/main.js", "/web/", "/web/../settings.py", "/web/%2e%2e/headers.py"):
            gone = await http.get(path)
            assert gone.status_code == 404, path
            assert gone.headers["x-frame-options"] == "DENY"
            assert gone.text == "no such file in this version\n" or gone.text == "the API"


async def test_everything_else_is_the_apis() -> None:
    async with served([]) as http:
        assert (await http.get("/v1/gateways")).text == "the API"
        assert (await http.post("/")).text == "the API"
        assert (await http.get("/v1/gateways")).headers["x-content-type-options"] == "nosniff"


async def test_admin_page_is_in_no_frame_and_connects_to_its_own_origin_alone() -> None:
    """The public listener does not have it."""
    async with served([]) as http:
        assert (await http.get("/admin")).text == "the API"
    for web in (True, False):
        app = with_admin_page(PlainTextResponse("the API", 404), replace(SETTINGS, web=web))
        transport = httpx.ASGITransport(app)
        async with httpx.AsyncClient(transport=transport, base_url="http://admin.example", trust_env=False) as http:
            page = await http.get("/admin")
            assert page.headers["x-frame-options"] == "DENY"
            assert (await http.get("/v1/me")).text == "the API"
            assert (await http.post("/admin")).text == "the API"
            if not web:
                assert page.text == "the API"
                continue
            assert (page.status_code, page.headers["cache-control"]) == (200, "no-cache")
            policy = page.headers["content-security-policy"].split("; ")
            assert {"default-src 'none'", "connect-src 'self'", "frame-ancestors 'none'"} <= set(policy)
            script = page.text.partition('type="module" src="')[2].partition('"')[0]
            found = await http.get(script)
            assert (found.status_code, found.headers["cache-control"]) == (200, "public, max-age=31536000, immutable")
            for path in ("/", "/admin/", "/admin/main.js", script.replace("main.js", "..%2fserve.py")):
                gone = await http.get(path)
                assert (gone.status_code, gone.headers["cache-control"]) == (404, "no-store"), path


async def test_page_that_is_switched_off_leaves_a_worker_that_removes_itself() -> None:
    async with served([], web=False) as http:
        assert (await http.get("/")).text == "the API"
        assert (await http.get("/web/boot.js")).text == "the API"
        worker = await http.get("/sw.js")
        assert worker.status_code == 200
        assert "registration.unregister()" in worker.text
        assert "fetch" not in worker.text


async def test_page_is_served_without_redis() -> None:
    """But it is not kept, as an installed page would have its policy again and again."""
    async with served(None) as http:
        page = await http.get("/")
        assert page.status_code == 200
        assert page.headers["cache-control"] == "no-store"
        assert "connect-src 'self';" in page.headers["content-security-policy"]
    async with served([]) as http:
        assert (await http.get("/")).headers["cache-control"] == "no-store"


async def test_gateways_found_for_another_host_are_not_named() -> None:
    """Gateways that listen on all addresses are named by the `Host` of a request, which a stranger may have sent."""
    up = True

    async def asked(host: str) -> list[str]:
        if not up:
            raise Unavailable("no Redis")
        return [f"ws://{host}:8001/ws"]

    transport = httpx.ASGITransport(with_web(PlainTextResponse("the API", 404), SETTINGS, asked))
    async with httpx.AsyncClient(transport=transport, base_url="http://chat.example", trust_env=False) as http:

        async def policy(host: str) -> str:
            return str((await http.get("/", headers={"Host": host})).headers["content-security-policy"])

        assert "connect-src 'self' ws://evil.example:*;" in await policy("evil.example")
        up = False
        assert "connect-src 'self';" in await policy("chat.example")
        up = True
        await policy("chat.example")
        up = False
        assert "connect-src 'self' ws://chat.example:*;" in await policy("chat.example")


async def test_setting_replaces_the_gateways_addresses() -> None:
    async with served(["ws://10.1.1.1:8001/ws"], web_connect="wss://a.example, wss://b.example") as http:
        policy = (await http.get("/")).headers["content-security-policy"]
        assert "connect-src 'self' wss://a.example wss://b.example;" in policy


async def test_files_may_come_from_their_own_origin() -> None:
    store, routers = "https://store.example", "https://files.example:444"
    async with served([], media_public_url=f"{store}/account/", media_origin=routers) as http:
        policy = (await http.get("/")).headers["content-security-policy"]
        assert f"img-src 'self' blob: {store} {routers};" in policy
        assert f"media-src 'self' blob: {store} {routers};" in policy

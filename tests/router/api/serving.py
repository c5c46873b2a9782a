"""The API on a real socket, in the test's own loop, against a real server."""

import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import httpx
import uvicorn
from msgspec.structs import replace

from deploy.embedded import EmbeddedValkey
from router.api.app import create_admin_api, create_app
from router.api.call import Services, now_ms
from router.contract.settings import Settings
from router.contract.tokens import issue
from router.media.parts import Media
from router.store.files import Files
from router.store.objects import Objects
from router.store.redis.client import Client
from router.store.resumable import Resumables
from router.web.serve import with_admin_page
from tests.support import JWT_SECRET, SERVER_KEY, eventually

SETTINGS = Settings(jwt_secret=JWT_SECRET, server_key=SERVER_KEY)
SERVER = {"Authorization": f"Bearer {SERVER_KEY}"}


def by(user: str) -> dict[str, str]:
    """Headers of a user's call."""
    return {"Authorization": f"Bearer {issue(user, SETTINGS, now_ms())[0]}"}


def as_admin(user: str) -> dict[str, str]:
    """Headers of a user's call with a token of the admin view."""
    return {"Authorization": f"Bearer {issue(user, SETTINGS, now_ms(), admin=True)[0]}"}


ADA, BOB, CY, DAN = (by(user) for user in ("ada", "bob", "cy", "dan"))


class Api(httpx.AsyncClient):
    """A client of the running API; `services` are the server's own."""

    def __init__(self, port: int, services: Services, client: Client) -> None:
        super().__init__(base_url=f"http://127.0.0.1:{port}", timeout=60, trust_env=False)
        self.port = port
        self.services = services
        self.store = client

    async def ok(self, method: str, path: str, headers: dict[str, str], body: Any = None) -> Any:
        """The answer of a call that must succeed."""
        answer = await self.request(method, path, headers=headers, **({} if body is None else {"json": body}))
        assert answer.status_code < 300, (answer.status_code, answer.text)
        return answer.json() if answer.content else None

    async def refused(self, method: str, path: str, headers: dict[str, str], body: Any = None) -> tuple[int, str]:
        """Status and code of a call that must be refused, in the shape of all errors."""
        answer = await self.request(method, path, headers=headers, **({} if body is None else {"json": body}))
        return refusal(answer)


def refusal(answer: httpx.Response) -> tuple[int, str]:
    assert answer.headers["content-type"] == "application/json"
    error = answer.json()["error"]
    assert answer.json().keys() == {"error"}
    assert {"code", "message"} <= error.keys() <= {"code", "message", "reason", "next", "version"}
    assert error["message"]
    assert (answer.status_code in (429, 503)) == ("retry-after" in answer.headers)
    return answer.status_code, error["code"]


@asynccontextmanager
async def serve(valkey: EmbeddedValkey, *, admin_view: bool = False, **changed: Any) -> AsyncIterator[Api]:
    """The API with these settings changed, or what the listener of the admin view serves; it is stopped at the end."""
    store = await Client.connect(valkey.url)
    settings = replace(SETTINGS, **changed)
    media = None
    if settings.media_url:
        objects = Objects(settings.media_url, "test", settings.media_public_url)
        await objects.claim(False)
        media = Media.make(settings, Files(store), Resumables(store), objects)
    services = Services.make(settings, store, "r1", None, media)
    listening = socket.create_server(("127.0.0.1", 0))
    app = with_admin_page(create_admin_api(services), settings) if admin_view else create_app(services)
    config = uvicorn.Config(
        app, log_level="warning", proxy_headers=False, access_log=False, lifespan="off" if admin_view else "on"
    )
    server = uvicorn.Server(config)
    task = asyncio.create_task(server.serve([listening]))
    try:
        await eventually(lambda: server.started)
        async with Api(listening.getsockname()[1], services, store) as api:
            yield api
    finally:
        server.should_exit = True
        await task
        services.passwords.close()
        await services.close()
        await store.close()


async def make_users(api: Api, *users: str) -> None:
    for user in users or ("ada", "bob", "cy"):
        await api.ok("POST", "/v1/tokens", SERVER, {"user": user})


async def make_group(api: Api, *members: str, kind: str = "group") -> str:
    """A conversation of ada with these members."""
    made = await api.ok("POST", "/v1/conversations", ADA, {"kind": kind, "title": "T", "members": list(members)})
    conversation: str = made["conversation"]
    return conversation

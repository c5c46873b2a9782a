"""The application: unknown paths and methods, browsers of other origins."""

from deploy.embedded import EmbeddedValkey
from tests.router.api.serving import ADA, refusal, serve


async def test_unknown_paths_and_methods_are_refused_in_the_same_shape(valkey: EmbeddedValkey) -> None:
    """404 and 405 (with the allowed methods) have the shape of all errors, for every method."""
    async with serve(valkey) as api:
        for path in ("/", "/v1", "/v1/nonsense", "/v1/login/", "/v1/conversations/a%2Fb", "/docs"):
            assert await api.refused("GET", path, ADA) == (404, "not_found"), path
        answer = await api.request("TRACE", "/v1/conversations")
        assert refusal(answer) == (405, "method_not_allowed")
        assert answer.headers["allow"] == "GET, HEAD, POST"
        assert (await api.head("/v1/conversations", headers=ADA)).status_code == 200


async def test_browsers_of_listed_origins_may_call(valkey: EmbeddedValkey) -> None:
    """CORS for the configured origins only; none if none is configured."""
    ask_for = {"Origin": "https://chat.example", "Access-Control-Request-Method": "PUT"}
    async with serve(valkey, origins="https://chat.example, https://b.example/") as api:
        preflight = await api.options("/v1/messages", headers=ask_for)
        assert preflight.headers["access-control-allow-origin"] == "https://chat.example"
        for header in ("Linnet-User", "Linnet-Name", "Tus-Resumable", "Upload-Offset", "Upload-Metadata"):
            asked = await api.options("/v1/messages", headers=ask_for | {"Access-Control-Request-Headers": header})
            assert asked.status_code == 200, header
        called = await api.get("/v1/conversations", headers={"Origin": "https://b.example"})
        exposed = called.headers["access-control-expose-headers"].split(", ")
        assert {"Linnet-Upload", "Location", "Upload-Offset", "Upload-Length", "Retry-After"} <= set(exposed)
        assert called.status_code == 401
        assert called.headers["access-control-allow-origin"] == "https://b.example"
        other = await api.get("/v1/conversations", headers=ADA | {"Origin": "https://evil.example"})
        assert "access-control-allow-origin" not in other.headers
    async with serve(valkey) as api:
        assert (await api.options("/v1/messages", headers=ask_for)).status_code == 405

"""A user's state over HTTP: the calls, their refusals, and pages."""

from __future__ import annotations

from urllib.parse import quote

from deploy.embedded import EmbeddedValkey
from router.contract import keys
from router.contract.packing import pack
from router.store.answers import reply_of
from router.store.state import State
from tests.router.api.serving import SERVER, by, serve

ANN, BOB = by("ann"), by("bob")


async def test_key_is_written_read_and_removed(valkey: EmbeddedValkey) -> None:
    """Its slashes may be encoded or not; bytes have their JSON form."""
    async with serve(valkey) as api:
        value = {"text": "hi", "bytes": {"$b64": "AP8="}}
        first = await api.ok("PUT", "/v1/state/draft/d:ann:bob", ANN, {"value": value})
        assert first["key"] == "draft/d:ann:bob"
        for path in ("draft/d:ann:bob", quote("draft/d:ann:bob", safe="")):
            assert await api.ok("GET", f"/v1/state/{path}", ANN) == {**first, "value": value}
        assert await api.refused("GET", "/v1/state/draft/d:ann:bob", BOB) == (404, "not_found")
        listed = await api.ok("GET", "/v1/state", ANN)
        assert listed == {"entries": [{**first, "value": value}], "version": first["version"], "more": False,
                          "reset": False, "cursor": ""}  # fmt: skip
        await api.ok("DELETE", "/v1/state/draft/d:ann:bob", ANN)
        assert await api.refused("GET", "/v1/state/draft/d:ann:bob", ANN) == (404, "not_found")
        changes = await api.ok("GET", f"/v1/state?after={first['version']}", ANN)
        assert [(one["key"], one["value"]) for one in changes["entries"]] == [("draft/d:ann:bob", None)]
        assert changes["version"] == changes["entries"][0]["version"] > first["version"]


async def test_expected_version_is_compared(valkey: EmbeddedValkey) -> None:
    """A conflict has the version of the key, 0 if it is absent."""
    async with serve(valkey) as api:
        written = await api.ok("PUT", "/v1/state/a", ANN, {"value": 1, "expect": 0})
        answer = await api.put("/v1/state/a", headers=ANN, json={"value": 2, "expect": 0})
        assert (answer.status_code, answer.json()["error"]["version"]) == (409, written["version"])
        answer = await api.delete("/v1/state/b?expect=7", headers=ANN)
        assert (answer.status_code, answer.json()["error"]["version"]) == (409, 0)
        await api.ok("DELETE", f"/v1/state/a?expect={written['version']}", ANN)


async def test_wrong_input_is_refused(valkey: EmbeddedValkey) -> None:
    """Keys of the server, for the server key too; keys that a path could change; values that are too large."""
    async with serve(valkey) as api:
        for headers in (ANN, {**SERVER, "Linnet-User": "ann"}):
            for key in ("me", "contact/bob", "block/bob"):
                assert await api.refused("PUT", f"/v1/state/{key}", headers, {"value": 1}) == (403, "read_only")
                assert await api.refused("DELETE", f"/v1/state/{key}", headers) == (403, "read_only")
        for key in ("", "a//b", "a%2F%2Fb", "a%20b", "x" * 129, "a%0A"):
            assert await api.refused("PUT", f"/v1/state/{key}", ANN, {"value": 1}) == (422, "bad_command"), key
        assert await api.refused("PUT", "/v1/state/a", ANN, {"value": "x" * 4096}) == (413, "too_large")
        assert await api.refused("PUT", "/v1/state/a", ANN, {}) == (422, "bad_command")
        assert await api.refused("PUT", "/v1/state/a", ANN, {"value": 1, "expect": -1}) == (422, "bad_command")
        for query in ("limit=0", "limit=1001", "after=-1", "cursor=x", "prefix=%20", "after=1&after=2"):
            assert await api.refused("GET", f"/v1/state?{query}", ANN) == (422, "bad_command"), query
        assert await api.refused("GET", "/v1/state", SERVER) == (422, "bad_command")
        assert (await api.ok("GET", "/v1/state", ANN))["entries"] == []


async def test_pages_are_read_by_their_cursor(valkey: EmbeddedValkey) -> None:
    """Keys of the server are in them, and a prefix chooses."""
    async with serve(valkey) as api:
        for i in range(5):
            await api.ok("PUT", f"/v1/state/k/{i}", ANN, {"value": i})
        await reply_of(State(api.store, (1, 1)).put, "ann", "contact/bob", pack("x"), 1)
        keys_, cursor = [], ""
        while True:
            page = await api.ok("GET", f"/v1/state?limit=2&cursor={cursor}", ANN)
            keys_ += [one["key"] for one in page["entries"]]
            cursor = page["cursor"]
            assert page["more"] == bool(cursor)
            if not page["more"]:
                break
        assert keys_ == ["k/0", "k/1", "k/2", "k/3", "k/4", "contact/bob"]
        found = await api.ok("GET", "/v1/state?prefix=contact/", ANN)
        assert [one["key"] for one in found["entries"]] == ["contact/bob"]
        for_ann = await api.ok("GET", "/v1/state?limit=1000", {**SERVER, "Linnet-User": "ann"})
        assert len(for_ann["entries"]) == 6


async def test_lost_version_is_answered_with_everything(valkey: EmbeddedValkey) -> None:
    async with serve(valkey) as api:
        written = await api.ok("PUT", "/v1/state/a", ANN, {"value": 1})
        for after in (written["version"] + 1, written["version"] - 1, 1):
            page = await api.ok("GET", f"/v1/state?after={after}", ANN)
            assert (page["reset"], len(page["entries"])) == (True, 1)
        page = await api.ok("GET", f"/v1/state?after={written['version']}", ANN)
        assert (page["reset"], page["entries"]) == (False, [])


async def test_rate_is_shared_by_sockets_and_calls(valkey: EmbeddedValkey) -> None:
    async with serve(valkey, sends_per_s=1.0, send_burst=2) as api:
        await api.ok("PUT", "/v1/state/a", ANN, {"value": 1})
        await reply_of(api.services.state.write, "ann", "a", b"\x02", None)
        assert await api.refused("PUT", "/v1/state/a", ANN, {"value": 3}) == (429, "rate_limited")
        await api.ok("PUT", "/v1/state/a", BOB, {"value": 1})


async def test_erased_user_has_no_state_left(valkey: EmbeddedValkey) -> None:
    async with serve(valkey) as api:
        await api.ok("PUT", "/v1/state/a", ANN, {"value": 1})
        await api.ok("DELETE", "/v1/accounts/ann", ANN)
        assert await api.store.fetch("HGETALL", keys.state("ann")) == []
        assert await api.store.fetch("ZCARD", keys.versions("ann")) == 0

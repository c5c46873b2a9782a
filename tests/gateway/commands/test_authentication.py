"""Tokens: a new one extends a session of the same user."""

from __future__ import annotations

from typing import Any

import pytest

from deploy.embedded import EmbeddedValkey
from router.contract import errors, metrics
from router.contract.errors import Unavailable
from router.contract.tokens import UnknownKey
from tests.gateway.world import token, world


async def test_auth_extends_only_a_session_of_the_same_user(valkey: EmbeddedValkey) -> None:
    async with world(valkey) as of:
        bob = await of.client("bob").connected()
        was = bob.session.expires_at
        fresh = await bob.ask("auth", "ok", token=token(of.node, "bob", ttl_s=7200))
        assert fresh["expires_at"] == bob.session.expires_at > was
        accepted, refused = (metrics.COMMANDS.labels("auth", result)._value for result in ("ok", "unauthorized"))
        before = accepted.get(), refused.get()
        for bad, code in ((token(of.node, "ann"), "unauthorized"), ("nonsense", "unauthorized")):
            assert (await bob.ask("auth", "error", token=bad))["code"] == code
        assert (accepted.get(), refused.get()) == (before[0], before[1] + 2)
        assert (bob.session.expires_at, bob.connection.closed) == (fresh["expires_at"], None)


async def test_unknown_key_is_fetched_from_the_provider(
    valkey: EmbeddedValkey, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Only such a `hello` waits for the provider, and the provider's answer decides."""
    async with world(valkey) as of:
        verifier = of.node.authentication.verifier
        check = verifier.check

        def unknown(*_: Any) -> Any:
            raise UnknownKey

        async def late(given: str, now_ms: int) -> Any:
            return check(given, now_ms)

        async def never(given: str, now_ms: int) -> Any:
            raise Unavailable("the identity provider cannot be reached", 5.0)

        monkeypatch.setattr(verifier, "check", unknown)
        monkeypatch.setattr(verifier, "identity", late)
        await of.client("bob").connected()
        monkeypatch.setattr(verifier, "identity", never)
        cid = of.client("cid")
        cid.say("hello", token=token(of.node, "cid"))
        assert await cid.closed() == (4000, "retry_after=5")
        gone = of.client("dan")
        gone.say("hello", token=token(of.node, "dan"))
        gone.end()
        await of.settled()
        assert gone.events == []


async def test_token_whose_check_raises_is_answered_internal(
    valkey: EmbeddedValkey, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A session goes on with its old token, a `hello` ends."""

    def unknown(*_: Any) -> Any:
        raise UnknownKey

    async def fails(given: str, now_ms: int) -> Any:
        raise RuntimeError("a bug")

    async with world(valkey) as of:
        verifier = of.node.authentication.verifier
        bob = await of.client("bob").connected()
        monkeypatch.setattr(verifier, "check", unknown)
        monkeypatch.setattr(verifier, "identity", fails)
        assert (await bob.ask("auth", "error", token="t"))["code"] == "internal"
        assert bob.connection.closed is None
        cid = of.client("cid")
        cid.say("hello", token="t")
        assert (await cid.closed())[0] == errors.CLOSE_INTERNAL

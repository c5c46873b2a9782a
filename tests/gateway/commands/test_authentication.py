"""Tokens: a new one extends a session of the same user."""

from __future__ import annotations

from typing import Any, Final

import pytest

from deploy.embedded import EmbeddedValkey
from gateway.node import now_ms
from router.contract import errors, metrics
from router.contract.errors import Unavailable
from router.contract.tokens import UnknownKey, issue
from tests.gateway.world import token, world

FOREVER_S: Final = 2**40


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


async def test_token_of_the_admin_view_opens_and_extends_no_session(valkey: EmbeddedValkey) -> None:
    """The session goes on with its old token."""
    async with world(valkey) as of:
        admin = issue("bob", of.node.settings, now_ms(), admin=True)[0]
        bob = await of.client("bob").connected()
        assert (await bob.ask("auth", "error", token=admin))["code"] == "unauthorized"
        assert bob.connection.closed is None
        other = of.client("bob", "tablet")
        other.say("hello", token=admin)
        assert await other.closed() == (4500, "unauthorized")


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


async def test_ended_token_connects_nowhere(valkey: EmbeddedValkey) -> None:
    """Another token of the user does."""
    async with world(valkey) as of:
        await of.accounts.ensure("bob")
        given = token(of.node, "bob")
        await of.accounts.end_token("bob", of.node.authentication.verifier.check(given, now_ms()).token, FOREVER_S, ())
        bob = of.client("bob")
        bob.say("hello", token=given)
        assert (await bob.event("error"))["code"] == "unauthorized"
        assert await bob.closed() == (4500, "unauthorized")
        await of.client("bob").connected()


@pytest.mark.parametrize("heard", [True, False], ids=["at once", "by the audit"])
async def test_session_of_an_ended_token_is_closed(valkey: EmbeddedValkey, heard: bool) -> None:
    """At once, or by the next audit if the signal is lost; sessions with other tokens go on."""
    async with world(valkey) as of:
        phone = await of.client("bob").connected()
        laptop = await of.client("bob", "laptop").connected()
        of.node.audits.sessions([phone.session, laptop.session])
        await of.settled()
        if heard:
            await of.accounts.end_token("bob", phone.session.token_id, FOREVER_S, ())
        else:
            with of.deaf():
                await of.accounts.end_token("bob", phone.session.token_id, FOREVER_S, ("phone",))
                await of.settled()
            assert phone.connection.closed is None
            of.node.audits.sessions([phone.session, laptop.session])
        assert await phone.closed() == (4500, "unauthorized")
        await laptop.ask("ping", "pong")
        await of.settled()
        assert laptop.connection.closed is None


async def test_session_belongs_to_the_token_of_the_last_auth(valkey: EmbeddedValkey) -> None:
    """An ended token is refused there, and the session goes on with the old one."""
    async with world(valkey) as of:
        bob = await of.client("bob").connected()
        first = bob.session.token_id
        ended, fresh = token(of.node, "bob"), token(of.node, "bob")
        verifier = of.node.authentication.verifier
        await of.accounts.end_token("bob", verifier.check(ended, now_ms()).token, FOREVER_S, ())
        assert (await bob.ask("auth", "error", token=ended))["code"] == "unauthorized"
        assert bob.session.token_id == first
        await bob.ask("auth", "ok", token=fresh)
        await of.accounts.end_token("bob", first, FOREVER_S, ())
        await bob.ask("ping", "pong")
        of.node.audits.sessions([bob.session])
        await of.settled()
        assert bob.connection.closed is None
        await of.accounts.end_all_tokens("bob", "", ())
        assert await bob.closed() == (4500, "unauthorized")

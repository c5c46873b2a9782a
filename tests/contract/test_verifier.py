"""When a process fetches the provider's keys, and what it says of tokens with keys that it does not know."""

import asyncio
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import ec

from router.contract import verifier
from router.contract.errors import Unauthorized, Unavailable
from router.contract.settings import Settings
from router.contract.tokens import UnknownKey
from router.contract.verifier import Verifier
from tests.contract.signing import EC, ED, GOOD, NOW, RSA, document, jwk, sign
from tests.support import eventually


class Provider:
    """An identity provider: `fetch` returns `document` or raises `error`; `asked` counts the fetches."""

    def __init__(self, answer: bytes) -> None:
        self.answer: bytes | OSError = answer
        self.asked = 0

    async def fetch(self) -> bytes:
        self.asked += 1
        await asyncio.sleep(0)
        if isinstance(self.answer, OSError):
            raise self.answer
        return self.answer


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def verifier_of(provider: Provider, clock: Clock) -> Verifier:
    return Verifier(Settings(jwks_url="http://127.0.0.1/jwks"), provider.fetch, clock)


async def test_simultaneous_tokens_start_one_fetch() -> None:
    """A reconnect storm at a fresh process fetches the key set once."""
    provider = Provider(document(jwk(EC, "e")))
    clock = Clock()
    keys = verifier_of(provider, clock)
    token = sign(GOOD, EC, "ES256", kid="e")
    found = await asyncio.gather(*(keys.identity(token, NOW) for _ in range(50)))
    assert {one.user for one in found} == {"ada"}
    assert provider.asked == 1


async def test_new_key_within_a_fetch_interval_is_unavailable_and_then_accepted() -> None:
    """A token with a new key that arrives just after a fetch is not refused: the next fetch begins by itself, and a
    client that waits `retry_after` is accepted. Other tokens do not make fetches more frequent."""
    provider = Provider(document(jwk(EC, "e")))
    clock = Clock()
    keys = verifier_of(provider, clock)
    await keys.identity(sign(GOOD, EC, "ES256", kid="e"), NOW)
    provider.answer = document(jwk(EC, "e"), jwk(RSA, "r"))
    clock.now += verifier.REFRESH_S - 0.05
    rotated = sign(GOOD, RSA, "RS256", kid="r")
    for i in range(20):
        with pytest.raises(Unavailable) as refusal:
            await keys.identity(rotated if i % 2 else sign(GOOD, RSA, "RS256", kid=f"junk{i}"), NOW)
        assert 0 < (refusal.value.retry_after or 0) < verifier.REFRESH_S
    assert provider.asked == 1
    clock.now += 0.1
    await eventually(lambda: provider.asked == 2)
    await eventually(lambda: keys._fetching is None)
    assert keys.check(rotated, NOW).user == "ada"


async def test_forged_key_is_refused_once_a_later_fetch_succeeded() -> None:
    """Also if it arrives again within the interval; forged tokens never fetch more often than the interval."""
    provider = Provider(document(jwk(EC, "e")))
    clock = Clock()
    keys = verifier_of(provider, clock)
    await keys.identity(sign(GOOD, EC, "ES256", kid="e"), NOW)
    forged = sign(GOOD, RSA, "RS256", kid="r")
    clock.now += 1
    with pytest.raises(Unavailable):
        await keys.identity(forged, NOW)
    clock.now += verifier.REFRESH_S
    with pytest.raises(UnknownKey):
        await keys.identity(sign(GOOD, RSA, "RS256", kid="other"), NOW)
    clock.now += 1
    with pytest.raises(UnknownKey):
        await keys.identity(forged, NOW)
    assert provider.asked == 2


async def test_fetch_that_began_before_a_token_arrived_refuses_nothing() -> None:
    """Its document may have been made before the new key was."""
    provider, clock, answered = Provider(document(jwk(EC, "e"))), Clock(), asyncio.Event()

    async def fetch() -> bytes:
        document = await provider.fetch()
        await answered.wait()
        return document

    keys = Verifier(Settings(jwks_url="http://127.0.0.1/jwks"), fetch, clock)
    first = asyncio.create_task(keys.identity(sign(GOOD, EC, "ES256", kid="e"), NOW))
    await eventually(lambda: provider.asked == 1)
    clock.now += 1
    late = asyncio.create_task(keys.identity(sign(GOOD, RSA, "RS256", kid="r"), NOW))
    await asyncio.sleep(0)
    answered.set()
    assert (await first).user == "ada"
    with pytest.raises(Unavailable):
        await late


async def test_new_key_during_an_outage_of_the_provider_is_unavailable() -> None:
    """However long the outage lasts; after the first successful fetch the token is accepted."""
    provider = Provider(document(jwk(EC, "e")))
    clock = Clock()
    keys = verifier_of(provider, clock)
    await keys.identity(sign(GOOD, EC, "ES256", kid="e"), NOW)
    provider.answer = OSError("down")
    rotated = sign(GOOD, RSA, "RS256", kid="r")
    for _ in range(3):
        clock.now += verifier.REFRESH_S
        with pytest.raises(Unavailable):
            await keys.identity(rotated, NOW)
    assert provider.asked == 4
    provider.answer = document(jwk(RSA, "r"))
    clock.now += verifier.REFRESH_S
    assert (await keys.identity(rotated, NOW)).user == "ada"


async def test_new_key_without_a_kid_is_fetched() -> None:
    """Also from a provider that names no keys; a wrong signature of a named, known key is refused at once."""
    provider = Provider(document(jwk(EC)))
    clock = Clock()
    keys = verifier_of(provider, clock)
    await keys.identity(sign(GOOD, EC, "ES256"), NOW)
    renewed = ec.generate_private_key(ec.SECP256R1())
    provider.answer = document(jwk(renewed, "new"))
    clock.now += verifier.REFRESH_S
    assert (await keys.identity(sign(GOOD, renewed, "ES256"), NOW)).user == "ada"
    for forged in (sign(GOOD, EC, "ES256", kid="new"), sign(GOOD), sign(GOOD, "x" * 48, "HS384", kid="new")):
        with pytest.raises(Unauthorized):
            await keys.identity(forged, NOW)
    assert provider.asked == 2


async def test_pending_tokens_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """A flood of forged tokens evicts the oldest."""
    monkeypatch.setattr(verifier, "MAX_PENDING", 8)
    provider = Provider(document(jwk(EC, "e")))
    keys = verifier_of(provider, Clock())
    provider.answer = OSError("down")
    for i in range(40):
        with pytest.raises(Unavailable):
            await keys.identity(sign(GOOD, EC, "ES256", kid=f"junk{i}"), NOW)
    assert len(keys._pending) == 8
    assert provider.asked == 1


async def test_keys_outlive_an_outage_of_the_provider() -> None:
    """Known keys stay valid while an aged set cannot be fetched; it is fetched when the provider is back."""
    provider = Provider(document(jwk(EC, "e")))
    clock = Clock()
    keys = verifier_of(provider, clock)
    token = sign(GOOD, EC, "ES256", kid="e")
    await keys.identity(token, NOW)
    provider.answer = OSError("down")
    clock.now += verifier.MAX_AGE_S + 1
    assert keys.check(token, NOW).user == "ada"
    await eventually(lambda: provider.asked == 2)
    assert (await keys.identity(token, NOW)).user == "ada"
    provider.answer = document(jwk(ED, "d"))
    clock.now += verifier.REFRESH_S
    assert keys.check(token, NOW).user == "ada"
    await eventually(lambda: keys._fetching is None)
    clock.now += verifier.REFRESH_S
    with pytest.raises(UnknownKey):
        await keys.identity(token, NOW)


@pytest.mark.parametrize("answer", [OSError("down"), b"<html>", b'{"keys": []}'])
async def test_token_is_unavailable_before_the_first_key_set(answer: Any) -> None:
    """A process that starts during an outage of the provider answers `unavailable`, so that no user is logged out."""
    provider = Provider(b"")
    provider.answer = answer
    with pytest.raises(Unavailable) as refusal:
        await verifier_of(provider, Clock()).identity(sign(GOOD, EC, "ES256", kid="e"), NOW)
    assert refusal.value.retry_after

"""Tokens: the accepted ones, the error of each refused one, and the life of the provider's keys."""

import asyncio
import hashlib
import hmac
import json
from base64 import urlsafe_b64encode
from typing import Any

import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from hypothesis import given
from hypothesis import strategies as st
from jwt.algorithms import ECAlgorithm, OKPAlgorithm, RSAAlgorithm

from router.contract import tokens, wire
from router.contract.clocks import Clocks
from router.contract.errors import TokenExpired, Unauthorized, Unavailable
from router.contract.settings import Settings
from router.contract.tokens import Key, Rules, UnknownKey, Verifier, issue, key_set, secret_key, verify
from tests.support import JWT_SECRET, eventually

NOW = 1_700_000_000_000
S = NOW // 1000
SETTINGS = Settings(jwt_secret=JWT_SECRET)
OWN = (secret_key(JWT_SECRET),)

RSA = rsa.generate_private_key(65537, 2048)
EC = ec.generate_private_key(ec.SECP256R1())
ED = ed25519.Ed25519PrivateKey.generate()


def jwk(private: Any, kid: str = "", **more: Any) -> dict[str, Any]:
    algorithm = {rsa.RSAPrivateKey: RSAAlgorithm, ec.EllipticCurvePrivateKey: ECAlgorithm}
    kind: Any = next((a for t, a in algorithm.items() if isinstance(private, t)), OKPAlgorithm)
    made: dict[str, Any] = kind.to_jwk(private.public_key(), as_dict=True)
    made.pop("key_ops", None)
    return made | ({"kid": kid} if kid else {}) | more


def document(*jwks: dict[str, Any]) -> bytes:
    return json.dumps({"keys": jwks}).encode()


def sign(claims: Any, key: Any = JWT_SECRET, algorithm: str = "HS256", **headers: Any) -> str:
    return jwt.encode(claims, key, algorithm=algorithm, headers=headers or None)


def b64(data: bytes) -> str:
    return urlsafe_b64encode(data).decode().rstrip("=")


PROVIDER = key_set(document(jwk(RSA, "r"), jwk(EC, "e"), jwk(ED, "d")))
GOOD = {"sub": "ada", "exp": S + 60}


def test_issued_token_names_its_user_until_it_expires() -> None:
    """`verify` accepts a token of `issue` until the very millisecond of its expiry."""
    token, expires_at = issue("ada", SETTINGS, NOW)
    assert expires_at == NOW + 86_400_000
    assert (found := verify(token, OWN, Rules(), NOW)).user == "ada"
    assert found.expires_at == expires_at
    assert verify(token, OWN, Rules(), expires_at - 1).user == "ada"
    with pytest.raises(TokenExpired):
        verify(token, OWN, Rules(), expires_at)


def test_issued_token_contains_the_configured_audience_and_issuer() -> None:
    """It passes the rules of its own deployment and of no other."""
    settings = Settings(jwt_secret=JWT_SECRET, jwt_audience="chat", jwt_issuer="us")
    token, _ = issue("ada", settings, NOW)
    assert verify(token, OWN, Rules("chat", "us"), NOW).user == "ada"
    for rules in (Rules("mail", "us"), Rules("chat", "them")):
        with pytest.raises(Unauthorized):
            verify(token, OWN, rules, NOW)


@pytest.mark.parametrize(("key", "algorithm", "kid"), [(RSA, "RS256", "r"), (EC, "ES256", "e"), (ED, "EdDSA", "d")])
def test_algorithms_of_providers_are_accepted(key: Any, algorithm: str, kid: str) -> None:
    """RS256, ES256 and EdDSA, with and without a `kid` in the header."""
    assert verify(sign(GOOD, key, algorithm, kid=kid), PROVIDER, Rules(), NOW).user == "ada"
    assert verify(sign(GOOD, key, algorithm), OWN + PROVIDER, Rules(), NOW).user == "ada"


@pytest.mark.parametrize(
    "claims",
    [
        {"sub": "ada"},
        {"exp": S + 60},
        {"sub": "ada", "exp": None},
        {"sub": "ada", "exp": str(S + 60)},
        {"sub": "ada", "exp": True},
        {"sub": "ada", "exp": [S + 60]},
        {"sub": "ada", "exp": -1},
        {"sub": "ada", "exp": 10**30},
        {"sub": "ada", "exp": 1e300},
        {"sub": 7, "exp": S + 60},
        {"sub": "", "exp": S + 60},
        {"sub": "a d a", "exp": S + 60},
        {"sub": "ada\n", "exp": S + 60},
        {"sub": "a" * 65, "exp": S + 60},
        {"sub": "{u1}", "exp": S + 60},
        {"sub": "ada", "exp": S + 60, "nbf": S + 2},
        {"sub": "ada", "exp": S + 60, "nbf": "0"},
    ],
)
def test_token_with_a_wrong_claim_is_unauthorized(claims: dict[str, Any]) -> None:
    """A valid signature is not enough: user and expiry must be there, of the right type, and the user a valid name."""
    token = jwt.api_jws.PyJWS().encode(json.dumps(claims).encode(), JWT_SECRET, "HS256")
    with pytest.raises(Unauthorized) as refusal:
        verify(token, OWN, Rules(), NOW)
    assert not isinstance(refusal.value, TokenExpired)


@pytest.mark.parametrize(
    ("subject", "user"),
    [
        ("ada", "ada"),
        ("A-d_a.7", "A-d_a.7"),
        ("auth0|5f7c8ec7c33c6c004bbafe82", "ext--41aa487887e3c45c19b2448b2f036552f00b2c78"),
        ("ada@example.com", ""),
        ("\u00e9", ""),
        ("a" * 65, ""),
        ("{u1}", ""),
        (" ada", ""),
        ("ada\n", ""),
        ("\0", ""),
    ],
)
@pytest.mark.parametrize("claim", ["sub", "https://example.com/user"])
def test_subject_of_the_provider_that_is_no_name_is_mapped(subject: str, user: str, claim: str) -> None:
    """A backend can compute the hash; a Linnet name is kept, and equal claims give one user."""
    token = sign({claim: subject, "exp": S + 60} | ({} if claim == "sub" else {"sub": "other"}), EC, "ES256", kid="e")
    found = verify(token, OWN + PROVIDER, Rules(user_claim=claim), NOW).user
    assert found == (user or f"ext--{hashlib.sha256(subject.encode()).hexdigest()[:40]}")
    assert wire.is_name(found)


@pytest.mark.parametrize("subject", [None, "", 7, True, ["ada"], {"a": 1}, "ext--", "EXT--x", tokens.mapped("a|b")])
@pytest.mark.parametrize("claim", ["sub", "user_id"])
def test_claim_that_names_no_user_is_unauthorized(subject: Any, claim: str) -> None:
    """It is absent, of another type, or begins with the prefix of mapped names."""
    token = jwt.api_jws.PyJWS().encode(json.dumps({claim: subject, "exp": S + 60}).encode(), EC, "ES256")
    with pytest.raises(Unauthorized, match=claim):
        verify(token, OWN + PROVIDER, Rules(user_claim=claim), NOW)


def test_own_tokens_name_their_user_in_sub() -> None:
    """Independent of the provider's claim; a backend may also have one issued for a user of the provider."""
    settings = Settings(jwt_secret=JWT_SECRET, jwt_user_claim="user_id")
    for user in ("ada", tokens.mapped("auth0|1")):
        token, _ = issue(user, settings, NOW)
        assert Verifier(settings).check(token, NOW).user == user


@pytest.mark.parametrize("exp", [S, S - 1, 0, 1.5])
def test_expired_token_is_token_expired(exp: float) -> None:
    """An expiry has no leeway."""
    with pytest.raises(TokenExpired):
        verify(sign({"sub": "ada", "exp": exp}), OWN, Rules(), NOW)


def test_fraction_of_a_second_counts() -> None:
    """`exp` is a NumericDate and may have a fraction."""
    assert verify(sign({"sub": "ada", "exp": S + 0.5}), OWN, Rules(), NOW).expires_at == NOW + 500


def test_token_valid_by_one_clock_only_is_unavailable() -> None:
    """If this node's clock and Redis's agree, their result counts; otherwise it is not known which clock is right."""
    clocks = Clocks(lambda: 0.0)
    verifier = Verifier(SETTINGS, clocks=clocks)
    day = 86_400
    early, late = sign({"sub": "ada", "exp": S + 60}), sign({"sub": "ada", "exp": S + 2 * day})
    future, past = sign({"sub": "ada", "exp": S + 2 * day, "nbf": S + 3600}), sign({"sub": "ada", "exp": S - 2 * day})
    for redis_ms in (NOW + day * 1000, NOW - day * 1000):
        clocks.received(redis_ms, 0.0, 0.0)
        assert verifier.check(late, NOW).user == "ada"
        with pytest.raises(TokenExpired):
            verifier.check(past, NOW)
    with pytest.raises(Unauthorized, match="not valid yet"):
        verifier.check(future, NOW)
    clocks.received(NOW + day * 1000, 0.0, 0.0)
    for token in (early, future):
        with pytest.raises(Unavailable) as refusal:
            verifier.check(token, NOW)
        assert refusal.value.retry_after


def test_audience_may_be_one_of_a_list() -> None:
    """`aud` is a string or a list of strings."""
    assert verify(sign(GOOD | {"aud": ["mail", "chat"]}), OWN, Rules("chat"), NOW).user == "ada"
    with pytest.raises(Unauthorized):
        verify(sign(GOOD), OWN, Rules("chat"), NOW)


def test_public_key_never_checks_an_hmac() -> None:
    """The known attack: HS256 with the provider's public key (PEM, DER or JWK bytes) as the secret."""
    public = RSA.public_key()
    body = f"{b64(json.dumps({'alg': 'HS256', 'kid': 'r'}).encode())}.{b64(json.dumps(GOOD).encode())}"
    secrets = [public.public_bytes(e, PublicFormat.SubjectPublicKeyInfo) for e in (Encoding.PEM, Encoding.DER)]
    for secret in [*secrets, json.dumps(jwk(RSA, "r")).encode()]:
        forged = f"{body}.{b64(hmac.digest(secret, body.encode(), 'sha256'))}"
        for keys in (PROVIDER, OWN + PROVIDER):
            with pytest.raises(Unauthorized):
                verify(forged, keys, Rules(), NOW)


@pytest.mark.parametrize("algorithm", ["none", "None", "NONE", "", "HS384", "RS512", "PS256"])
def test_other_algorithms_are_refused(algorithm: str) -> None:
    """Unsigned tokens, and tokens that name an algorithm of no key."""
    head = b64(json.dumps({"alg": algorithm}).encode())
    for signature in ("", b64(b"x" * 32)):
        with pytest.raises(Unauthorized):
            verify(f"{head}.{b64(json.dumps(GOOD).encode())}.{signature}", OWN + PROVIDER, Rules(), NOW)


def test_token_signed_with_another_key_than_it_names_is_refused() -> None:
    """The header names one key, the signature is of the other."""
    other = rsa.generate_private_key(65537, 2048)
    with pytest.raises(Unauthorized):
        verify(sign(GOOD, other, "RS256", kid="r"), PROVIDER, Rules(), NOW)
    with pytest.raises(UnknownKey):
        verify(sign(GOOD, other, "RS256", kid="new"), PROVIDER, Rules(), NOW)


def test_critical_extension_is_refused() -> None:
    """A verifier must understand every extension that a token declares critical; this one understands none."""
    with pytest.raises(Unauthorized):
        verify(sign(GOOD, crit=["b64"], b64=True), OWN, Rules(), NOW)


@given(st.text(max_size=200) | st.binary(max_size=200).map(lambda b: f"{b64(b)}.{b64(b)}.{b64(b)}"))
def test_text_that_is_no_token_is_unauthorized(token: str) -> None:
    """For any text of a client the result is a refusal and no other error."""
    with pytest.raises(Unauthorized):
        verify(token, OWN + PROVIDER, Rules(), NOW)


@given(st.integers(0, 400), st.integers(1, 255))
def test_token_with_a_changed_byte_is_unauthorized(at: int, flip: int) -> None:
    """No byte of a token can change."""
    token = bytearray(sign(GOOD).encode())
    at %= len(token)
    token[at] ^= flip
    with pytest.raises(Unauthorized):
        verify(token.decode("latin-1"), OWN, Rules(), NOW)


def test_only_trustworthy_keys_are_taken_from_a_set() -> None:
    """Symmetric, private, short, unsupported and malformed members are skipped; the valid key beside them counts."""
    small = rsa.generate_private_key(65537, 1024)  # noqa: S505  # a key that is to be refused
    bad: list[dict[str, Any]] = [
        {"kty": "oct", "k": b64(b"x" * 32), "kid": "o"},
        {**jwk(ED), "d": b64(b"x" * 32)},
        jwk(small, "small"),
        jwk(RSA, "enc", use="enc"),
        jwk(RSA, "ps", alg="PS256"),
        jwk(RSA) | {"n": 7},
        jwk(EC) | {"x": "!!"},
        jwk(ec.generate_private_key(ec.SECP384R1()), "384"),
        {"kty": ["RSA"]},
        {"kty": "RSA"},
        {},
    ]
    assert [(key.kid, key.algorithm) for key in key_set(document(*bad, jwk(EC, "e")))] == [("e", "ES256")]
    for nothing in (document(*bad), b"{}", b"[]", b'{"keys": 7}', b"\xff", b""):
        with pytest.raises(ValueError, match="key"):
            key_set(nothing)


def test_key_set_is_bounded() -> None:
    """A provider cannot make a token cost thousands of signature checks."""
    assert len(key_set(document(*[jwk(ED, f"k{i}") for i in range(100)]))) == tokens.MAX_KEYS


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


def verifier(provider: Provider, clock: Clock) -> Verifier:
    return Verifier(Settings(jwks_url="http://127.0.0.1/jwks"), provider.fetch, clock)


async def test_simultaneous_tokens_start_one_fetch() -> None:
    """A reconnect storm at a fresh process fetches the key set once."""
    provider = Provider(document(jwk(EC, "e")))
    clock = Clock()
    keys = verifier(provider, clock)
    token = sign(GOOD, EC, "ES256", kid="e")
    found = await asyncio.gather(*(keys.identity(token, NOW) for _ in range(50)))
    assert {one.user for one in found} == {"ada"}
    assert provider.asked == 1


async def test_new_key_within_a_fetch_interval_is_unavailable_and_then_accepted() -> None:
    """A token with a new key that arrives just after a fetch is not refused: the next fetch begins by itself, and a
    client that waits `retry_after` is accepted. Other tokens do not make fetches more frequent."""
    provider = Provider(document(jwk(EC, "e")))
    clock = Clock()
    keys = verifier(provider, clock)
    await keys.identity(sign(GOOD, EC, "ES256", kid="e"), NOW)
    provider.answer = document(jwk(EC, "e"), jwk(RSA, "r"))
    clock.now += tokens.REFRESH_S - 0.05
    rotated = sign(GOOD, RSA, "RS256", kid="r")
    for i in range(20):
        with pytest.raises(Unavailable) as refusal:
            await keys.identity(rotated if i % 2 else sign(GOOD, RSA, "RS256", kid=f"junk{i}"), NOW)
        assert 0 < (refusal.value.retry_after or 0) < tokens.REFRESH_S
    assert provider.asked == 1
    clock.now += 0.1
    await eventually(lambda: provider.asked == 2)
    await eventually(lambda: keys._fetching is None)
    assert keys.check(rotated, NOW).user == "ada"


async def test_forged_key_is_refused_once_a_later_fetch_succeeded() -> None:
    """Also if it arrives again within the interval; forged tokens never fetch more often than the interval."""
    provider = Provider(document(jwk(EC, "e")))
    clock = Clock()
    keys = verifier(provider, clock)
    await keys.identity(sign(GOOD, EC, "ES256", kid="e"), NOW)
    forged = sign(GOOD, RSA, "RS256", kid="r")
    clock.now += 1
    with pytest.raises(Unavailable):
        await keys.identity(forged, NOW)
    clock.now += tokens.REFRESH_S
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
    keys = verifier(provider, clock)
    await keys.identity(sign(GOOD, EC, "ES256", kid="e"), NOW)
    provider.answer = OSError("down")
    rotated = sign(GOOD, RSA, "RS256", kid="r")
    for _ in range(3):
        clock.now += tokens.REFRESH_S
        with pytest.raises(Unavailable):
            await keys.identity(rotated, NOW)
    assert provider.asked == 4
    provider.answer = document(jwk(RSA, "r"))
    clock.now += tokens.REFRESH_S
    assert (await keys.identity(rotated, NOW)).user == "ada"


async def test_new_key_without_a_kid_is_fetched() -> None:
    """Also from a provider that names no keys; a wrong signature of a named, known key is refused at once."""
    provider = Provider(document(jwk(EC)))
    clock = Clock()
    keys = verifier(provider, clock)
    await keys.identity(sign(GOOD, EC, "ES256"), NOW)
    renewed = ec.generate_private_key(ec.SECP256R1())
    provider.answer = document(jwk(renewed, "new"))
    clock.now += tokens.REFRESH_S
    assert (await keys.identity(sign(GOOD, renewed, "ES256"), NOW)).user == "ada"
    for forged in (sign(GOOD, EC, "ES256", kid="new"), sign(GOOD), sign(GOOD, "x" * 48, "HS384", kid="new")):
        with pytest.raises(Unauthorized):
            await keys.identity(forged, NOW)
    assert provider.asked == 2


async def test_pending_tokens_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """A flood of forged tokens evicts the oldest."""
    monkeypatch.setattr(tokens, "MAX_PENDING", 8)
    provider = Provider(document(jwk(EC, "e")))
    keys = verifier(provider, Clock())
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
    keys = verifier(provider, clock)
    token = sign(GOOD, EC, "ES256", kid="e")
    await keys.identity(token, NOW)
    provider.answer = OSError("down")
    clock.now += tokens.MAX_AGE_S + 1
    assert keys.check(token, NOW).user == "ada"
    await eventually(lambda: provider.asked == 2)
    assert (await keys.identity(token, NOW)).user == "ada"
    provider.answer = document(jwk(ED, "d"))
    clock.now += tokens.REFRESH_S
    assert keys.check(token, NOW).user == "ada"
    await eventually(lambda: keys._fetching is None)
    clock.now += tokens.REFRESH_S
    with pytest.raises(UnknownKey):
        await keys.identity(token, NOW)


@pytest.mark.parametrize("answer", [OSError("down"), b"<html>", b'{"keys": []}'])
async def test_token_is_unavailable_before_the_first_key_set(answer: Any) -> None:
    """A process that starts during an outage of the provider answers `unavailable`, so that no user is logged out."""
    provider = Provider(b"")
    provider.answer = answer
    with pytest.raises(Unavailable) as refusal:
        await verifier(provider, Clock()).identity(sign(GOOD, EC, "ES256", kid="e"), NOW)
    assert refusal.value.retry_after


def test_key_keeps_its_algorithm() -> None:
    """The algorithm belongs to the key; the header only selects a key."""
    assert {(key.kid, key.algorithm) for key in PROVIDER} == {("r", "RS256"), ("e", "ES256"), ("d", "EdDSA")}
    assert all(isinstance(key, Key) for key in PROVIDER)

"""Tokens: the accepted ones, and the error of each refused one."""

import hashlib
import hmac
import json
from typing import Any

import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from hypothesis import given
from hypothesis import strategies as st

from router.contract import tokens, wire
from router.contract.clocks import Clocks
from router.contract.errors import StartupError, TokenExpired, Unauthorized, Unavailable
from router.contract.settings import Settings
from router.contract.tokens import Key, Rules, UnknownKey, issue, key_set, verify
from router.contract.verifier import Verifier
from tests.contract.signing import EC, ED, GOOD, NOW, OWN, PROVIDER, RSA, SETTINGS, S, b64, document, jwk, sign
from tests.support import JWT_SECRET


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


def signed_text(header: bytes, claims: str, pad: str = "", head: str = "") -> str:
    """A token of these two parts, signed with the secret of `OWN`; `head` is sent in place of the header's base64."""
    text = f"{head or b64(header)}.{claims}"
    return f"{text}.{b64(hmac.digest(JWT_SECRET.encode(), text.encode(), 'sha256'))}{pad}"


def ending(text: str, rest: int) -> bytes:
    """The text with spaces at its end, so that the last group of its base64 is of `rest` bytes."""
    return text.encode() + b" " * ((rest - len(text)) % 3)


def with_unused_bits(part: str) -> str:
    """Another form of base64 for the same bytes, whose last group is of one byte or two."""
    return part[:-1] + chr(ord(part[-1]) + 1)


HS256, CLAIMS = b'{"alg":"HS256"}', b64(json.dumps(GOOD).encode())
ONE, TWO = [b64(ending(json.dumps(GOOD), rest)) for rest in (1, 2)]


@pytest.mark.parametrize(
    ("token", "accepted"),
    [
        (signed_text(HS256, CLAIMS), True),
        (signed_text(HS256, CLAIMS, "="), True),
        (signed_text(HS256, CLAIMS, "=="), False),
        (signed_text(HS256, CLAIMS)[:-1], False),
        (signed_text(HS256, ONE), True),
        (signed_text(HS256, ONE + "=="), True),
        (signed_text(HS256, ONE + "="), False),
        (signed_text(HS256, ONE + "==="), False),
        (signed_text(HS256, ONE + "======"), False),
        (signed_text(HS256, TWO + "="), True),
        (signed_text(HS256, TWO + "=="), False),
        (signed_text(HS256, with_unused_bits(ONE)), False),
        (signed_text(HS256, with_unused_bits(TWO) + "="), False),
        (signed_text(HS256, CLAIMS[:-1] + "+"), False),
        (signed_text(HS256, CLAIMS[:8] + "!" + CLAIMS[8:]), False),
        (signed_text(HS256, "." + CLAIMS), False),
        (signed_text(b'{"alg":"HS256","b64":false}', CLAIMS), False),
        (signed_text(b'{"alg":"HS256","b64":true}', CLAIMS), True),
        (signed_text(b'{"alg":"HS256","b64":0}', CLAIMS), True),
        (signed_text(b'{"alg":"HS256","crit":null}', CLAIMS), False),
        (signed_text(b'{"alg":"HS256","kid":null}', CLAIMS), False),
        (signed_text(HS256, CLAIMS, head=b64(HS256) + "="), False),
        (signed_text(HS256, CLAIMS, head="!" + b64(HS256)), False),
        (signed_text(HS256, CLAIMS, head=with_unused_bits(b64(ending('{"alg":"HS256"}', 1)))), False),
    ],
)
def test_token_of_our_secret_is_accepted_exactly_where_pyjwt_accepts_it(token: str, accepted: bool) -> None:
    """The check of HS256 is our own; PyJWT is what it is measured against."""
    try:
        assert verify(token, OWN, Rules(), NOW).user == "ada"
    except Unauthorized:
        assert not accepted
    else:
        assert accepted
    try:
        jwt.api_jws.PyJWS().decode(token, JWT_SECRET, ["HS256"])
    except jwt.PyJWTError:
        assert not accepted
    else:
        assert accepted


@pytest.mark.parametrize("made", [RSA.public_key(), EC.public_key()])
@pytest.mark.parametrize(
    ("encoding", "form"),
    [(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo), (Encoding.OpenSSH, PublicFormat.OpenSSH)],
)
def test_public_key_is_no_secret(made: Any, encoding: Encoding, form: PublicFormat) -> None:
    """A process with a provider's public key in place of its secret does not start: any user could sign tokens."""
    with pytest.raises(StartupError, match="LINNET_JWT_SECRET"):
        Verifier(Settings(jwt_secret=made.public_bytes(encoding, form).decode()))


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


def test_key_keeps_its_algorithm() -> None:
    """The algorithm belongs to the key; the header only selects a key."""
    assert {(key.kid, key.algorithm) for key in PROVIDER} == {("r", "RS256"), ("e", "ES256"), ("d", "EdDSA")}
    assert all(isinstance(key, Key) for key in PROVIDER)

"""Tokens: the check of a token against keys, and the tokens that Linnet issues itself.

A token is a JWT: `sub` names the user, `exp` is required. A provider's token may name the user in another claim
(`LINNET_JWT_USER_CLAIM`), by any text. If the text is no Linnet name, the user's name is `MAPPED` and a hash of the
text. No plain claim may begin with `MAPPED`, so two claims never name the same user. A token that is signed with
`LINNET_JWT_SECRET` has a Linnet name in `sub`.

Invariants
- The key decides the algorithm: the token's header only selects a key, and a key is used only with its own algorithm.
  So `none` is never accepted, and no HMAC is checked with a public key. Keys come from `LINNET_JWT_SECRET` (HS256) and
  the provider's key set (`LINNET_JWKS_URL`: RS256, ES256, EdDSA; symmetric, private and short keys are skipped).
- The time is passed in; this module knows no clock, and fetches nothing (`verifier.py` does).
"""

from __future__ import annotations

import binascii
import hmac
from base64 import urlsafe_b64decode, urlsafe_b64encode
from hashlib import sha256
from secrets import token_urlsafe
from typing import Annotated, Any, Final

import msgspec
from jwt import PyJWK
from jwt.algorithms import HMACAlgorithm
from jwt.api_jws import PyJWS
from jwt.exceptions import InvalidKeyError, PyJWTError
from msgspec import UNSET, Meta, Struct

from router.contract.errors import StartupError, TokenExpired, Unauthorized, Unavailable
from router.contract.packing import MAX_INTEGER
from router.contract.settings import Settings
from router.contract.wire import MAPPED, is_name

MAX_TOKEN: Final = 8192
TOKEN_CHARACTERS: Final = 12
SIGNATURE: Final = 43  # characters of HS256 in base64, without the padding
ADMIN: Final = "admin"  # the claim `scope` of a token for the admin view; in tokens of our own alone
ADMIN_S: Final = 900  # such a token cannot be renewed
LOGIN: Final = "login"  # claim: when (s since the epoch) the user logged in; in tokens of our own alone
MAPPED_DIGITS: Final = 40  # of SHA-256, in hexadecimal
MAX_KEYS: Final = 32
MIN_RSA_BITS: Final = 2048
CLOCKS_RETRY_S: Final = 5.0  # after this time the client may reach another node, or the clocks agree
LEEWAY_MS: Final = 1000  # for `nbf` only, because the issuer's clock may be ahead; `exp` has no leeway

_ALGORITHMS: Final = {("RSA", None): "RS256", ("EC", "P-256"): "ES256", ("OKP", "Ed25519"): "EdDSA"}
_PROVIDERS: Final = frozenset(_ALGORITHMS.values())


class TokenId(Struct, frozen=True, gc=False):
    """The parts of a token that show the store whether it was ended (`prelude_user.lua`, `is_ended`).

    `id`: TOKEN_CHARACTERS made of the claim `jti`, else of the signed part of the token. `generation`: the claim `gen`
    of a token of our own; None if it was signed elsewhere, then `issued_s` (the claim `iat`, 0 if absent) decides.
    """

    id: str = ""
    generation: int | None = None
    issued_s: int = 0


class Identity(Struct, frozen=True):
    """The user of a token, its expiry (ms since the epoch), and what ends it before.

    `admin`: it is a token for the admin view, with which the user's roles in the deployment count.
    """

    user: str
    expires_at: int
    token: TokenId = TokenId()
    admin: bool = False


class Key(Struct, frozen=True):
    """A key that checks signatures of one algorithm; `kid` is empty if the key set gave it none."""

    kid: str
    algorithm: str
    jwk: PyJWK


class Rules(Struct, frozen=True):
    """The claims that a token must contain beside its expiry; an empty audience or issuer is not checked."""

    audience: str = ""
    issuer: str = ""
    user_claim: str = "sub"  # in the provider's tokens


class UnknownKey(Unauthorized):
    """No known key fits the token's header: it is forged, or signed with a key that the provider has just added."""


class _Header(Struct, frozen=True):
    alg: str
    kid: str = ""
    crit: Any = UNSET
    b64: Any = None


class _Claims(Struct, frozen=True):
    exp: Annotated[int, Meta(ge=0, le=MAX_INTEGER)] | Annotated[float, Meta(ge=0, le=MAX_INTEGER)]
    nbf: int | float = 0
    aud: str | list[str] = []
    iss: str = ""
    sub: Any = None
    iat: Any = None
    jti: Any = None
    gen: Any = None
    scope: Any = None


class _Set(Struct, frozen=True):
    keys: list[dict[str, Any]]


_jws = PyJWS()
_header = msgspec.json.Decoder(_Header).decode
_claims = msgspec.json.Decoder(_Claims).decode
read_object = msgspec.json.Decoder(dict[str, Any]).decode
_set = msgspec.json.Decoder(_Set).decode


def secret_key(secret: str) -> Key:
    """The HS256 key of `LINNET_JWT_SECRET`; `StartupError` if it is no secret."""
    try:
        HMACAlgorithm(HMACAlgorithm.SHA256).prepare_key(secret)
    except InvalidKeyError:
        raise StartupError(
            "LINNET_JWT_SECRET: a key or certificate of another algorithm may be public; expected a random secret."
            " Keys of an identity provider come from LINNET_JWKS_URL"
        ) from None
    encoded = urlsafe_b64encode(secret.encode()).decode()
    return Key("", "HS256", PyJWK({"kty": "oct", "k": encoded}, "HS256"))


def key_set(document: bytes) -> tuple[Key, ...]:
    """The usable keys of a JWKS; ValueError if the document is not a JWKS or has no usable key."""
    try:
        found = _set(document).keys
    except msgspec.DecodeError as error:
        raise ValueError(f"not a key set: {error}") from None
    keys = tuple(key for jwk in found[:MAX_KEYS] if (key := _public_key(jwk)) is not None)
    if not keys:
        raise ValueError("the key set has no key for RS256, ES256 or EdDSA")
    return keys


def _public_key(jwk: dict[str, Any]) -> Key | None:
    kind = jwk.get("kty")
    algorithm = _ALGORITHMS.get((kind, None if kind == "RSA" else jwk.get("crv"))) if isinstance(kind, str) else None
    if algorithm is None or "d" in jwk or jwk.get("use", "sig") != "sig" or jwk.get("alg", algorithm) != algorithm:
        return None
    kid = jwk.get("kid", "")
    try:
        made = PyJWK(jwk, algorithm)
    except (PyJWTError, ValueError, TypeError, KeyError, AttributeError):  # PyJWT raises all of these for bad members
        return None
    if not isinstance(kid, str) or (kind == "RSA" and made.key.key_size < MIN_RSA_BITS):
        return None
    return Key(kid, algorithm, made)


def verify(token: str, keys: tuple[Key, ...], rules: Rules, *moments_ms: int) -> Identity:
    """The identity of a token that is valid at these moments; else `Unauthorized`, `TokenExpired` or `UnknownKey`.

    `Unavailable` if it is valid at only one of them, because it is not known which of them is the present time.
    """
    user, claims, own = authentic(token, keys, rules)
    expires_at = int(claims.exp * 1000)
    refusals = [refusal for now_ms in moments_ms if (refusal := _refused_at(now_ms, claims, expires_at)) is not None]
    if not refusals:
        return Identity(
            user, min(expires_at, MAX_INTEGER), _token_id(token, claims, own), own and claims.scope == ADMIN
        )
    if len(refusals) < len(moments_ms):
        raise Unavailable(
            "the token is valid by only one of the clocks of this node and of Redis: try again", CLOCKS_RETRY_S
        )
    raise refusals[0]


def _refused_at(now_ms: int, claims: _Claims, expires_at: int) -> Unauthorized | None:
    if claims.nbf * 1000 > now_ms + LEEWAY_MS:
        return Unauthorized("the token is not valid yet")
    return TokenExpired("the token has expired") if expires_at <= now_ms else None


def _token_id(token: str, claims: _Claims, own: bool) -> TokenId:
    """`own`: it is signed with `LINNET_JWT_SECRET`, so its claim `gen` counts. Without `jti`, its signed part names it,
    because a signature can have several forms."""
    name = f"jti {claims.jti}" if isinstance(claims.jti, str) and claims.jti else token.rpartition(".")[0]
    digest = urlsafe_b64encode(sha256(name.encode("utf-8", "surrogatepass")).digest()).decode()[:TOKEN_CHARACTERS]
    issued = claims.iat if type(claims.iat) in (int, float) else 0
    return TokenId(
        digest,
        claims.gen if own and type(claims.gen) is int and 0 <= claims.gen <= MAX_INTEGER else None,
        int(issued) if 0 <= issued <= MAX_INTEGER else 0,
    )


def authentic(token: str, keys: tuple[Key, ...], rules: Rules) -> tuple[str, _Claims, bool]:
    """User and claims of a token that was issued for this deployment, and whether our own secret has signed it. Its
    times are not checked."""
    payload, key = signed(token, keys)
    claims = _read_claims(payload)
    if rules.issuer and claims.iss != rules.issuer:
        raise Unauthorized("the token is from another issuer")
    if rules.audience and rules.audience not in ([claims.aud] if isinstance(claims.aud, str) else claims.aud):
        raise Unauthorized("the token is for another audience")
    if key.algorithm in _PROVIDERS:
        subject = claims.sub if rules.user_claim == "sub" else read_object(payload).get(rules.user_claim)
        return _user_of(subject, rules.user_claim), claims, False
    if not (isinstance(claims.sub, str) and is_name(claims.sub)):
        raise Unauthorized("the token's claims: `sub` must be a user name")
    return claims.sub, claims, True


def _user_of(subject: Any, claim: str) -> str:
    """The user that a claim of the provider names."""
    if not isinstance(subject, str) or not subject:
        raise Unauthorized(f"the token's claims: `{claim}` must be a text that names the user")
    if subject.lower().startswith(MAPPED):
        raise Unauthorized(f"the token's claims: `{claim}` must not begin with the reserved {MAPPED}")
    return subject if is_name(subject) else mapped(subject)


def mapped(subject: str) -> str:
    """The name of a user whose claim is no Linnet name."""
    return MAPPED + sha256(subject.encode()).hexdigest()[:MAPPED_DIGITS]


def signed(token: str, keys: tuple[Key, ...]) -> tuple[bytes, Key]:
    """The payload, and the key that fits the header and has confirmed the signature."""
    header = _read_header(token)
    fitting = [k for k in keys if k.algorithm == header.alg and (not k.kid or not header.kid or k.kid == header.kid)]
    for key in fitting:
        payload = _payload_by_hmac(token, key.jwk.key) if key.algorithm == "HS256" else _payload_by_pyjwt(token, key)
        if payload is not None:
            return payload, key
    # If the key that the header names is known, the signature is wrong. Else the provider may have a new key.
    if header.alg in _PROVIDERS and not any(key.kid == header.kid != "" for key in fitting):
        raise UnknownKey("the token must be signed with a known key")
    raise Unauthorized("the token's signature is wrong")


def _payload_by_pyjwt(token: str, key: Key) -> bytes | None:
    try:
        payload: bytes = _jws.decode(token, key.jwk, algorithms=[key.algorithm])
    except PyJWTError:
        return None
    return payload


def _payload_by_hmac(token: str, secret: bytes) -> bytes | None:
    """The payload if the secret has signed the token. PyJWT would examine the secret anew for each token, at ten times
    the cost. Padding of base64 may be there or not."""
    signed_part, _, signature = token.rpartition(".")
    expected = urlsafe_b64encode(hmac.digest(secret, signed_part.encode(), "sha256"))
    if not hmac.compare_digest(signature.encode(), expected[: SIGNATURE if len(signature) == SIGNATURE else None]):
        return None
    return _decoded(signed_part.partition(".")[2])


def _decoded(part: str) -> bytes | None:
    """Decode a part of a token; None if it is not exactly what an encoder writes, with or without padding."""
    try:
        decoded = urlsafe_b64decode(part + "=" * (-len(part) % 4))
    except binascii.Error:
        return None
    encoded = urlsafe_b64encode(decoded).decode()
    return decoded if part in (encoded, encoded.rstrip("=")) else None


def _read_header(token: str) -> _Header:
    if len(token) > MAX_TOKEN or not token.isascii():
        raise Unauthorized("not a JWT")
    try:
        header = _header(_decoded(token.partition(".")[0]) or b"")
    except (msgspec.DecodeError, ValueError, RecursionError):
        raise Unauthorized("not a JWT") from None
    if header.crit is not UNSET or header.b64 is False:
        raise Unauthorized("the token has a critical extension")
    return header


def _read_claims(payload: bytes) -> _Claims:
    try:
        return _claims(payload)
    except msgspec.ValidationError as error:
        raise Unauthorized(f"the token's claims: {error}") from None
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        raise Unauthorized("the token's claims are not JSON") from None


def issue(
    user: str, settings: Settings, now_ms: int, login_s: int | None = None, generation: int = 0, *, admin: bool = False
) -> tuple[str, int]:
    """Issue a token for the user, signed with `LINNET_JWT_SECRET`; return it and its expiry (ms).

    `generation`: the user's when the caller was found to be entitled to a token. A later one ends the token.
    `login_s`: when (s) the user logged in, not longer ago than `session_ttl_s`. The token can be renewed; neither
    it nor its renewals are valid beyond `session_ttl_s` after the login. `admin`: for the admin view, for `ADMIN_S`.
    """
    issued = now_ms // 1000
    claims: dict[str, Any] = {
        "sub": user,
        "iat": issued,
        "exp": issued + max(1, round(settings.token_ttl_s)),
        "jti": token_urlsafe(12),
        "gen": generation,
    }
    if login_s is not None:
        claims[LOGIN] = login_s
        claims["exp"] = min(claims["exp"], login_end_s(login_s, settings))
    if admin:
        claims |= {"scope": ADMIN, "exp": issued + ADMIN_S}
    if settings.jwt_audience:
        claims["aud"] = settings.jwt_audience
    if settings.jwt_issuer:
        claims["iss"] = settings.jwt_issuer
    token = _jws.encode(msgspec.json.encode(claims), settings.jwt_secret, algorithm="HS256")
    return token, claims["exp"] * 1000


def login_end_s(login_s: int, settings: Settings) -> int:
    """Return when (s since the epoch) the last token of a login expires."""
    return login_s + max(1, round(settings.session_ttl_s))

"""Who a token speaks for: the keys of a process, and the one function that checks a token against them.

A token is a JWT: `sub` names the user, `exp` is required. A token of the provider may name the user in another claim
(`LINNET_JWT_USER_CLAIM`), by any text: what is no Linnet name becomes `MAPPED` and a hash of it, and no plain claim may
begin like that, so no two claims are one user. A token of our own secret has a Linnet name in `sub`.

The key decides the algorithm, never the token's header: a header only picks among keys, and a key is used with its own
algorithm alone. So there is no `none`, and no way to have an HMAC checked with a public key. Keys come from
`LINNET_JWT_SECRET` (HS256) and from the provider's key set (`LINNET_JWKS_URL`: RS256, ES256, EdDSA; symmetric, private
and short keys in it are skipped).

Pure: the time is passed in, and so is what fetches the key set. `Verifier` holds a process's keys and decides when to
ask for the set again: when a token names a key it lacks, or the set is old, but never twice in `REFRESH_S`, whatever
tokens are thrown at it. A provider that is down changes nothing for keys already here. A token whose key is not here is
refused only after a fetch that began after the token came has succeeded; until then it may be signed with a key that
the provider has just begun to use, and is `Unavailable` (a refusal would log its user out). When tokens came is kept
for the last `MAX_PENDING` of them; one that a flood pushes out is `Unavailable` once more.
"""

from __future__ import annotations

import asyncio
import binascii
import logging
from base64 import urlsafe_b64decode, urlsafe_b64encode
from collections.abc import Awaitable, Callable
from hashlib import sha256
from time import monotonic
from typing import Annotated, Any, Final

import msgspec
from jwt import PyJWK
from jwt.api_jws import PyJWS
from jwt.exceptions import PyJWTError
from msgspec import Meta, Struct

from router.contract import metrics
from router.contract.clocks import Clocks
from router.contract.errors import TokenExpired, Unauthorized, Unavailable
from router.contract.packing import MAX_INTEGER
from router.contract.settings import Settings
from router.contract.wire import MAPPED, is_name

MAX_TOKEN: Final = 8192
MAPPED_DIGITS: Final = 40  # of SHA-256, in hexadecimal
MAX_KEYS: Final = 32
MIN_RSA_BITS: Final = 2048
REFRESH_S: Final = 5.0
MAX_AGE_S: Final = 600.0
MAX_PENDING: Final = 1024
TICK_S: Final = 0.01  # by which a timer may be early
AFTER_S: Final = 0.5  # what a client waits beyond the moment at which the next fetch may begin
NEVER: Final = float("-inf")
CLOCKS_RETRY_S: Final = 5.0  # by then another node may be asked, or the clocks agree
LEEWAY_MS: Final = 1000  # for `nbf` alone: the issuer's clock may be ahead; an expiry that has passed has passed

_ALGORITHMS: Final = {("RSA", None): "RS256", ("EC", "P-256"): "ES256", ("OKP", "Ed25519"): "EdDSA"}
_PROVIDERS: Final = frozenset(_ALGORITHMS.values())

log = logging.getLogger("linnet.tokens")


class Identity(Struct, frozen=True):
    """A user, and until when (ms since the epoch) this is vouched for."""

    user: str
    expires_at: int


class Key(Struct, frozen=True):
    """A key that checks signatures of one algorithm; `kid` is empty when its origin gave it none."""

    kid: str
    algorithm: str
    jwk: PyJWK


class Rules(Struct, frozen=True):
    """What a token must contain beside user and expiry; an empty audience or issuer is not checked."""

    audience: str = ""
    issuer: str = ""
    user_claim: str = "sub"  # of the provider's tokens


class UnknownKey(Unauthorized):
    """No key here fits the token's header: forged, or signed with a key the provider has just begun to use."""


class _Header(Struct, frozen=True):
    alg: str
    kid: str = ""
    crit: Any = None


class _Claims(Struct, frozen=True):
    exp: Annotated[int, Meta(ge=0, le=MAX_INTEGER)] | Annotated[float, Meta(ge=0, le=MAX_INTEGER)]
    nbf: int | float = 0
    aud: str | list[str] = []
    iss: str = ""
    sub: Any = None


class _Set(Struct, frozen=True):
    keys: list[dict[str, Any]]


_jws = PyJWS()
_header = msgspec.json.Decoder(_Header).decode
_claims = msgspec.json.Decoder(_Claims).decode
_object = msgspec.json.Decoder(dict[str, Any]).decode
_set = msgspec.json.Decoder(_Set).decode


def secret_key(secret: str) -> Key:
    """The HS256 key of `LINNET_JWT_SECRET`."""
    encoded = urlsafe_b64encode(secret.encode()).decode()
    return Key("", "HS256", PyJWK({"kty": "oct", "k": encoded}, "HS256"))


def key_set(document: bytes) -> tuple[Key, ...]:
    """The usable keys of a JWKS; ValueError when it is none, or has none."""
    try:
        found = _set(document).keys
    except msgspec.DecodeError as error:
        raise ValueError(f"not a key set: {error}") from None
    keys = tuple(key for jwk in found[:MAX_KEYS] if (key := _public_key(jwk)) is not None)
    if not keys:
        raise ValueError("a key set without a key for RS256, ES256 or EdDSA")
    return keys


def _public_key(jwk: dict[str, Any]) -> Key | None:
    kind = jwk.get("kty")
    algorithm = _ALGORITHMS.get((kind, None if kind == "RSA" else jwk.get("crv"))) if isinstance(kind, str) else None
    if algorithm is None or "d" in jwk or jwk.get("use", "sig") != "sig" or jwk.get("alg", algorithm) != algorithm:
        return None
    kid = jwk.get("kid", "")
    try:
        made = PyJWK(jwk, algorithm)
    except (PyJWTError, ValueError, TypeError, KeyError, AttributeError):  # whatever a malformed member makes of it
        return None
    if not isinstance(kid, str) or (kind == "RSA" and made.key.key_size < MIN_RSA_BITS):
        return None
    return Key(kid, algorithm, made)


def verify(token: str, keys: tuple[Key, ...], rules: Rules, *moments_ms: int) -> Identity:
    """Who the token speaks for at these moments; else `Unauthorized`, `TokenExpired` or `UnknownKey`.

    `Unavailable` if it is valid at some of them only: which of them is now is not known.
    """
    user, claims = _authentic(token, keys, rules)
    expires_at = int(claims.exp * 1000)
    refusals = [refusal for now_ms in moments_ms if (refusal := _refused_at(now_ms, claims, expires_at)) is not None]
    if not refusals:
        return Identity(user, min(expires_at, MAX_INTEGER))
    if len(refusals) < len(moments_ms):
        raise Unavailable(
            "the clocks of this node and of Redis do not agree whether the token is valid", CLOCKS_RETRY_S
        )
    raise refusals[0]


def _refused_at(now_ms: int, claims: _Claims, expires_at: int) -> Unauthorized | None:
    if claims.nbf * 1000 > now_ms + LEEWAY_MS:
        return Unauthorized("the token is not valid yet")
    return TokenExpired("the token has expired") if expires_at <= now_ms else None


def _authentic(token: str, keys: tuple[Key, ...], rules: Rules) -> tuple[str, _Claims]:
    """User and claims of a token that was issued for this deployment, whatever the time."""
    payload, key = _signed(token, keys)
    claims = _read_claims(payload)
    if rules.issuer and claims.iss != rules.issuer:
        raise Unauthorized("the token is from another issuer")
    if rules.audience and rules.audience not in ([claims.aud] if isinstance(claims.aud, str) else claims.aud):
        raise Unauthorized("the token is for another audience")
    if key.algorithm in _PROVIDERS:
        subject = claims.sub if rules.user_claim == "sub" else _object(payload).get(rules.user_claim)
        return _user_of(subject, rules.user_claim), claims
    if not (isinstance(claims.sub, str) and is_name(claims.sub)):
        raise Unauthorized("the token's claims: `sub` must be the name of a user")
    return claims.sub, claims


def _user_of(subject: Any, claim: str) -> str:
    """The user that a claim of the provider names."""
    if not isinstance(subject, str) or not subject:
        raise Unauthorized(f"the token's claims: `{claim}` must be a text that names the user")
    if subject.lower().startswith(MAPPED):
        raise Unauthorized(f"the token's claims: `{claim}` must not begin with the reserved {MAPPED}")
    return subject if is_name(subject) else mapped(subject)


def mapped(subject: str) -> str:
    """The name of the user whose claim is no Linnet name."""
    return MAPPED + sha256(subject.encode()).hexdigest()[:MAPPED_DIGITS]


def _signed(token: str, keys: tuple[Key, ...]) -> tuple[bytes, Key]:
    """The payload and its key, once a key that fits the header has confirmed the signature."""
    header = _read_header(token)
    fitting = [k for k in keys if k.algorithm == header.alg and (not k.kid or not header.kid or k.kid == header.kid)]
    for key in fitting:
        try:
            payload: bytes = _jws.decode(token, key.jwk, algorithms=[key.algorithm])
        except PyJWTError:
            continue
        return payload, key
    # A new key of the provider may have confirmed it, unless the key that the header names is here.
    if header.alg in _PROVIDERS and not any(key.kid == header.kid != "" for key in fitting):
        raise UnknownKey("the token is not signed with a key that is known here")
    raise Unauthorized("the token's signature is wrong")


def _read_header(token: str) -> _Header:
    if len(token) > MAX_TOKEN or not token.isascii():
        raise Unauthorized("not a JWT")
    first = token.partition(".")[0]
    try:
        header = _header(urlsafe_b64decode(first + "=" * (-len(first) % 4)))
    except (msgspec.DecodeError, binascii.Error, ValueError, RecursionError):
        raise Unauthorized("not a JWT") from None
    if header.crit is not None:
        raise Unauthorized("the token has a critical extension")
    return header


def _read_claims(payload: bytes) -> _Claims:
    try:
        return _claims(payload)
    except msgspec.ValidationError as error:
        raise Unauthorized(f"the token's claims: {error}") from None
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        raise Unauthorized("the token's claims are not JSON") from None


def issue(user: str, settings: Settings, now_ms: int) -> tuple[str, int]:
    """A token of our own for the user, and when (ms) it expires."""
    issued = now_ms // 1000
    claims: dict[str, Any] = {"sub": user, "iat": issued, "exp": issued + max(1, round(settings.token_ttl_s))}
    if settings.jwt_audience:
        claims["aud"] = settings.jwt_audience
    if settings.jwt_issuer:
        claims["iss"] = settings.jwt_issuer
    token = _jws.encode(msgspec.json.encode(claims), settings.jwt_secret, algorithm="HS256")
    return token, claims["exp"] * 1000


Fetch = Callable[[], Awaitable[bytes]]


class Verifier:
    """A process's keys. `fetch` gets the provider's key set, within a time and size of its own; it raises OSError."""

    def __init__(
        self,
        settings: Settings,
        fetch: Fetch | None = None,
        clock: Callable[[], float] = monotonic,
        clocks: Clocks | None = None,
    ) -> None:
        self.clocks = clocks or Clocks()
        self._own = (secret_key(settings.jwt_secret),) if settings.jwt_secret else ()
        self._keys = self._own
        self._rules = Rules(settings.jwt_audience, settings.jwt_issuer, settings.jwt_user_claim)
        self._fetch = fetch if settings.jwks_url else None
        self._clock = clock
        self._asked_at = self._fetched_at = NEVER
        self._current_from = NEVER  # when the fetch began that brought the keys here
        self._asking: asyncio.Task[None] | None = None
        self._again: asyncio.TimerHandle | None = None
        self._pending: dict[bytes, float] = {}  # when a token of an unknown key came first, by its digest; oldest first

    def check(self, token: str, now_ms: int) -> Identity:
        """At once, with the keys that are here. `UnknownKey` means that `identity` may know more."""
        if self._fetch is not None and self._clock() - self._fetched_at > MAX_AGE_S:
            self._ask(self._fetch)
        return verify(token, self._keys, self._rules, *self.clocks.moments(now_ms))

    def once_issued_to(self, token: str) -> str | None:
        """The user that a token was issued to, even if it has expired; None if it is not authentic by the keys here.

        This proves that its holder was that user once, and gives no rights."""
        try:
            return _authentic(token, self._keys, self._rules)[0]
        except Unauthorized:
            return None

    async def identity(self, token: str, now_ms: int) -> Identity:
        """As `check`, after asking the provider where that may help."""
        try:
            return self.check(token, now_ms)
        except UnknownKey:
            if (fetch := self._fetch) is None:
                raise
        digest = sha256(token.encode()).digest()
        came_at = self._pending.pop(digest, self._clock())
        if came_at > self._current_from and (asking := self._ask(fetch)) is not None:
            await asyncio.wait({asking})
        try:
            return self.check(token, now_ms)
        except UnknownKey:
            if came_at <= self._current_from:
                raise
        self._pending[digest] = came_at
        if len(self._pending) > MAX_PENDING:
            del self._pending[next(iter(self._pending))]
        raise Unavailable(
            "the key of this token is not known yet; the identity provider is asked", self._ask_again(fetch)
        )

    def _ask_again(self, fetch: Fetch) -> float:
        """In how many seconds the answer of a fetch that has yet to begin may be here; it begins by itself."""
        wait_s = max(0.0, self._asked_at + REFRESH_S - self._clock())
        if self._again is None:
            self._again = asyncio.get_running_loop().call_later(wait_s + TICK_S, self._begin_again, fetch)
        return round(wait_s + AFTER_S, 3)

    def _begin_again(self, fetch: Fetch) -> None:
        self._again = None
        if self._pending:
            self._ask(fetch)

    def _ask(self, fetch: Fetch) -> asyncio.Task[None] | None:
        """The fetch of the key set that is running; None if there is none and the last began within `REFRESH_S`."""
        if self._asking is None and self._clock() - self._asked_at >= REFRESH_S:
            self._asked_at = self._clock()
            self._asking = asyncio.create_task(self._fetch_keys(fetch))
        return self._asking

    async def _fetch_keys(self, fetch: Fetch) -> None:
        """Replace the provider's keys; on any failure keep those that are here."""
        began = self._clock()
        try:
            self._keys = (*self._own, *key_set(await fetch()))
            self._current_from, self._fetched_at = began, self._clock()
            metrics.JWKS_FETCHES.labels("ok").inc()
        except (OSError, ValueError) as error:
            metrics.JWKS_FETCHES.labels("failed").inc()
            log.warning("the identity provider's key set: %s: %s", type(error).__name__, error)
        finally:
            self._asking = None

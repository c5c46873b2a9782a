"""Tokens signed with keys of Linnet and of an identity provider."""

import json
from base64 import urlsafe_b64encode
from typing import Any

import jwt
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from jwt.algorithms import ECAlgorithm, OKPAlgorithm, RSAAlgorithm

from router.contract.settings import Settings
from router.contract.tokens import key_set, secret_key
from tests.support import JWT_SECRET

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

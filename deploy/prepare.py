"""Secrets for a set-up without any, and a certificate for trying `wss://`.

`python -m deploy.prepare FOLDER [OWNER]` makes the missing files there and keeps existing ones, for the user with that
number. The compose file runs it once; the stack uses its functions. These files are not for deployments with real
users, where secrets come from a vault and certificates from an authority.

Invariant: a file is complete or absent (see `own_secret`); a certificate is made again before it expires.
"""

from __future__ import annotations

import ipaddress
import os
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from deploy.plan import own_secret

VALID = timedelta(days=365)
RENEW_BEFORE = timedelta(days=30)


def own_certificate(path: Path, *names: str) -> Path:
    """A self-signed chain and its key in one PEM, for `localhost` and these names and addresses."""
    if path.exists():
        kept = x509.load_pem_x509_certificate(path.read_bytes())
        if kept.not_valid_after_utc > datetime.now(UTC) + RENEW_BEFORE:
            return path.resolve()
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "linnet.localhost")])
    now = datetime.now(UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(hours=1))
        .not_valid_after(now + VALID)
        .add_extension(x509.SubjectAlternativeName([_name(name) for name in ("localhost", *names)]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .sign(key, hashes.SHA256())
    )
    plain = serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    draft = path.with_suffix(".new")
    draft.touch(mode=0o600)
    draft.write_bytes(
        certificate.public_bytes(serialization.Encoding.PEM) + key.private_bytes(serialization.Encoding.PEM, *plain)
    )
    draft.replace(path)
    return path.resolve()


def _name(name: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(name))
    except ValueError:
        return x509.DNSName(name)


def main(folder: Path, owner: int | None = None) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    made = [own_secret(folder / name) for name in ("jwt-secret", "server-key")]
    for path in (*made, own_certificate(folder / "linnet.pem")):
        if owner is not None:
            os.chown(path, owner, owner)


if __name__ == "__main__":
    if len(sys.argv) not in (2, 3):
        sys.exit("usage: python -m deploy.prepare FOLDER [OWNER]")
    main(Path(sys.argv[1]), *map(int, sys.argv[2:]))

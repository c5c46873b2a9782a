"""router/tls.py: files that are replaced under a running process."""

import logging
import os
import shutil
import ssl
from pathlib import Path

import pytest

from deploy.prepare import own_certificate
from router.store.redis.connection import address
from router.tls import Certificate, Trust


def shown(server: ssl.SSLContext, trusted: Path) -> bool:
    """Whether a client that trusts only this certificate completes a handshake."""
    to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
    trust = ssl.create_default_context(cafile=str(trusted))
    client = trust.wrap_bio(to_client, to_server, server_hostname="127.0.0.1")
    other = server.wrap_bio(to_server, to_client, server_side=True)
    for _ in range(4):
        for side in (client, other):
            try:
                side.do_handshake()
            except ssl.SSLWantReadError:
                continue
            except ssl.SSLError:
                return False
    return True


def replace(file: Path, by: Path) -> None:
    """Replace a file as cert-manager and certbot do: another file gets its name."""
    shutil.copy(by, file.with_suffix(".new"))
    os.replace(file.with_suffix(".new"), file)


def test_replaced_certificate_is_shown_from_the_next_handshake_on(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """One that cannot be used changes nothing and is logged once; a good one after it counts."""
    caplog.set_level(logging.INFO, "linnet.tls")
    first, second = (own_certificate(tmp_path / f"{name}.pem", "127.0.0.1") for name in ("first", "second"))
    current, broken = tmp_path / "current.pem", tmp_path / "broken.pem"
    replace(current, first)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(current)
    certificate = Certificate(context, str(current), str(current))
    certificate.reload()
    assert caplog.messages == []
    broken.write_text(second.read_text()[:200])
    replace(current, broken)
    for _ in range(3):
        certificate.reload()
    current.unlink()
    certificate.reload()
    assert shown(context, first)
    assert len(caplog.messages) == 2
    replace(current, second)
    certificate.reload()
    assert shown(context, second)
    assert not shown(context, first)
    assert "were loaded" in caplog.messages[-1]


def test_trust_is_loaded_again_when_its_files_change(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The bundle that OpenSSL reads by default, under any of its names; a broken one leaves the old trust."""
    bundle = own_certificate(tmp_path / "bundle.pem", "a")
    monkeypatch.setenv("SSL_CERT_FILE", str(bundle))
    trust = Trust()
    before = trust.context()
    assert trust.context() is before
    replace(bundle, own_certificate(tmp_path / "other.pem", "b"))
    after = trust.context()
    assert after is not before
    assert [cert["serialNumber"] for cert in after.get_ca_certs()] != [
        cert["serialNumber"] for cert in before.get_ca_certs()
    ]


def test_files_of_the_redis_url_are_read_at_the_next_dial(tmp_path: Path) -> None:
    """The CA bundle of `ssl_ca_certs`: new trust without a restart, and the old one while it is broken."""
    bundle, broken = own_certificate(tmp_path / "ca.pem", "a"), tmp_path / "broken.pem"
    where = address(f"rediss://127.0.0.1/0?ssl_ca_certs={bundle}")
    assert where.tls is not None
    before = where.tls.context()
    broken.write_text("nothing")
    replace(bundle, broken)
    assert where.tls.context() is before
    replace(bundle, own_certificate(tmp_path / "other.pem", "b"))
    assert where.tls.context() is not before

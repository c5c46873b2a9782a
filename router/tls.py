"""TLS files that are loaded again when they change, as cert-manager or certbot replaces them under a running process.

If the new files cannot be used, the old ones stay in use and the log has the reason. Open connections keep the files
with which they began.
"""

from __future__ import annotations

import logging
import os
import ssl
from collections.abc import Callable
from typing import Final

CHECK_S: Final = 10.0

Signature = tuple[tuple[int, ...] | None, ...]

log = logging.getLogger("linnet.tls")


def signature(*files: str) -> Signature:
    """A value that changes if one of the files is replaced or written; a link counts as its target."""
    return tuple(_state(file) for file in files)


def _state(file: str) -> tuple[int, ...] | None:
    try:
        found = os.stat(file)
    except OSError:
        return None
    return found.st_dev, found.st_ino, found.st_mtime_ns, found.st_size


class Certificate:
    """The certificate and key of a server; call `reload` every CHECK_S, and at SIGHUP."""

    def __init__(self, context: ssl.SSLContext, cert: str, key: str) -> None:
        self._context = context
        self._cert = cert
        self._key = key
        self._read = signature(cert, key)

    def reload(self) -> None:
        """If the files have changed and fit together, use them from the next handshake on."""
        found = signature(self._cert, self._key)
        if found == self._read:
            return
        self._read = found
        try:
            for context in (ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER), self._context):  # a trial first
                context.load_cert_chain(self._cert, self._key, password=lambda: "")
        except OSError as error:  # ssl.SSLError is one
            log.error("LINNET_TLS_CERT and LINNET_TLS_KEY have changed and cannot be used: %s", error)
        else:
            log.info("LINNET_TLS_CERT and LINNET_TLS_KEY have changed and were loaded")


class Trust:
    """The context of outgoing connections; a new one is made if the CA bundle or another of its files has changed."""

    def __init__(
        self, make: Callable[[], ssl.SSLContext] = ssl.create_default_context, files: tuple[str, ...] = ()
    ) -> None:
        paths = ssl.get_default_verify_paths()
        self._files = (*files, *(path for path in (paths.cafile, paths.capath) if path))
        self._make = make
        self._read = signature(*self._files)
        self._context = make()

    def context(self) -> ssl.SSLContext:
        found = signature(*self._files)
        if found != self._read:
            self._read = found
            try:
                self._context = self._make()
            except OSError as error:
                log.error("TLS files have changed and cannot be used: %s", error)
        return self._context

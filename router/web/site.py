"""All files of the web client, read once at the start, compressed, and named by one digest of all of them.

Invariants
- A file is served at `/web/<digest>/<name>`. The digest covers every file, so a page never mixes files of two versions.
- The text of a path is only compared with the names that were read at the start. No request opens a file.
- The page itself is made once per setting: its import map is inline, and `script-src` names the map's hash.
"""

from __future__ import annotations

import gzip
import html
import json
import posixpath
import re
from base64 import b64encode
from collections.abc import Iterable, Mapping
from hashlib import sha256
from pathlib import Path
from typing import Final
from urllib.parse import urlencode

from msgspec import Struct

HERE: Final = Path(__file__).parent
PAGE: Final = HERE / "page"
ADMIN: Final = HERE / "admin"
SDK: Final = HERE.parent / "sdk/js/src"

TYPES: Final = {
    ".js": "text/javascript; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".svg": "image/svg+xml",
    ".png": "image/png",
    ".json": "application/json",
    ".html": "text/html; charset=utf-8",
    ".webmanifest": "application/manifest+json",
}
ROOT: Final = ("index.html", "sw.js", "manifest.webmanifest", "boot.js")  # served at paths without a digest
NOT_SERVED: Final = ("sdk/store_sqlite.js", "sdk/types.js", "sdk/wire.js")  # Node's store; types alone
FIRST: Final = (  # what shows the first screen, and the list; the SDK asks for the last when it knows where it runs
    "main.js",
    "login.js",
    "session.js",
    "shell.js",
    "sdk/store_indexeddb.js",
)
MIN_COMPRESSED: Final = 512


class File(Struct, frozen=True):
    """A body as it is sent."""

    kind: str
    body: bytes
    compressed: bytes | None  # with gzip, where that is smaller

    @classmethod
    def of(cls, name: str, body: bytes) -> File:
        compressed = gzip.compress(body, 9, mtime=0) if len(body) >= MIN_COMPRESSED else body
        return cls(TYPES[Path(name).suffix], body, compressed if len(compressed) < len(body) * 0.9 else None)


class Site(Struct, frozen=True):
    """The files of one version."""

    digest: str
    files: Mapping[str, File]
    index: File
    worker: File
    manifest: File
    boot: File
    import_map_hash: str

    @classmethod
    def load(cls, options: Mapping[str, str]) -> Site:
        """Read the files. `options` is what the page knows of its deployment before it asks anything."""
        sources = {name: path.read_bytes() for name, path in _paths().items()}
        text = {name: sources.pop(name).decode() for name in ROOT}
        digest = sha256(b"".join(_framed(name, body) for name, body in sorted({**sources, **_bytes(text)}.items())))
        version = digest.hexdigest()[:16]
        base = f"/web/{version}"
        imports = json.dumps({"imports": {"preact": f"{base}/vendor/preact.js"}}, separators=(",", ":"))
        filled = {
            "DIGEST": version,
            "IMPORTS": imports,
            "PRELOAD": "\n".join(
                f'<link rel="modulepreload" href="{base}/{name}">' for name in imported(FIRST, sources)
            ),
            "OPTIONS": html.escape(urlencode(dict(options))),
            "FILES": json.dumps([f"{base}/{name}" for name in sorted(sources)]),
        }
        made = {name: File.of(name, _filled(body, filled).encode()) for name, body in text.items()}
        return cls(
            digest=version,
            files={name: File.of(name, body) for name, body in sources.items()},
            index=made["index.html"],
            worker=made["sw.js"],
            manifest=made["manifest.webmanifest"],
            boot=made["boot.js"],
            import_map_hash=b64encode(sha256(imports.encode()).digest()).decode(),
        )


class AdminSite(Struct, frozen=True):
    """The files of the admin view, by path. Of the chat's page it has what others wrote."""

    files: Mapping[str, File]
    index: File
    import_map_hash: str

    @classmethod
    def load(cls, accounts: bool) -> AdminSite:
        """Read the files; `accounts`: whether users log in here."""
        shared = ("vendor/preact.js", "vendor/hooks.js", "vendor/htm.js", "icon.svg")
        sources = {f"admin/{path.name}": path.read_bytes() for path in ADMIN.iterdir() if path.suffix in TYPES}
        sources |= {f"page/{name}": (PAGE / name).read_bytes() for name in shared}
        index = sources.pop("admin/index.html").decode()
        digest = sha256(b"".join(_framed(name, body) for name, body in sorted({**sources, "": index.encode()}.items())))
        base = f"/admin/{digest.hexdigest()[:16]}"
        imports = json.dumps({"imports": {"preact": f"{base}/page/vendor/preact.js"}}, separators=(",", ":"))
        page = _filled(index, {"BASE": base, "IMPORTS": imports, "ACCOUNTS": "yes" if accounts else ""})
        return cls(
            files={f"{base}/{name}": File.of(name, body) for name, body in sources.items()},
            index=File.of("index.html", page.encode()),
            import_map_hash=b64encode(sha256(imports.encode()).digest()).decode(),
        )


GONE_WORKER: Final = File.of(
    "sw.js",
    b"""// The page is switched off here: the worker of an earlier version removes itself and its files.
self.addEventListener("install", () => self.skipWaiting());
self.addEventListener("activate", (event) => event.waitUntil((async () => {
  for (const name of await caches.keys()) if (name.startsWith("linnet-")) await caches.delete(name);
  await self.registration.unregister();
})()));
""",
)


def _paths() -> dict[str, Path]:
    """Each file by the name under which it is served."""
    own = {path.relative_to(PAGE).as_posix(): path for path in PAGE.rglob("*") if path.suffix in TYPES}
    sdk = {f"sdk/{path.name}": path for path in SDK.glob("*.js")}
    return {name: path for name, path in {**own, **sdk}.items() if name not in NOT_SERVED}


_IMPORT: Final = re.compile(rb"""^(?:import|export)\b[^;]*?from\s*"([^"]+)";""", re.MULTILINE)
_COMMENT: Final = re.compile(rb"/\*.*?\*/", re.DOTALL)


def imported(roots: Iterable[str], sources: Mapping[str, bytes]) -> list[str]:
    """These modules, each followed by all that it imports at its top, so that a browser finds none of them late."""
    found: list[str] = []
    for root in roots:
        waiting = [root]
        for name in waiting:
            if name in found:
                continue
            found.append(name)
            for other in _IMPORT.findall(_COMMENT.sub(b"", sources[name])):
                known = "vendor/preact.js" if other == b"preact" else posixpath.normpath(f"{name}/../{other.decode()}")
                waiting.append(known)
    return found


def _framed(name: str, body: bytes) -> bytes:
    return f"{name}\0{len(body)}\0".encode() + body


def _bytes(text: Mapping[str, str]) -> dict[str, bytes]:
    return {name: body.encode() for name, body in text.items()}


def _filled(text: str, values: Mapping[str, str]) -> str:
    for name, value in values.items():
        text = text.replace(f"%{name}%", value)
    return text

"""All files of the web client, read once at the start, compressed, and named by one digest of all of them.

The modules that are always loaded together are joined to one file (joined.py): those of the first screen, of the SDK,
of the session, and of the list. A joined file has the name of the module that imports the others. The import map
gives this file for the address of each of its modules.

Invariants
- A file is served at `/web/<digest>/<name>`. The digest covers every file, so a page never mixes files of two versions.
- The text of a path is only compared with the names that were read at the start. No request opens a file.
- The page itself is made once per setting: its import map is inline, and `script-src` names the map's hash.
"""

from __future__ import annotations

import gzip
import html
import json
from base64 import b64encode
from collections.abc import Mapping
from hashlib import sha256
from pathlib import Path
from typing import Final
from urllib.parse import urlencode

from msgspec import Struct

from router.web import joined

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
NOT_SERVED: Final = frozenset({"sdk/store_sqlite.js", "sdk/types.js", "sdk/wire.js"})  # Node's store; types alone
JOINED: Final = {  # file -> its modules; what they import is in it, too, unless a file above has it
    "main.js": ("login.js", "main.js"),
    "sdk/index.js": ("sdk/index.js", "sdk/store_indexeddb.js"),
    "session.js": ("session.js",),
    "shell.js": ("shell.js",),
}
APART: Final = ("vendor/", "lang/")  # never joined: vendored modules; languages, of which a page loads two at most
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
    moved: Mapping[str, str]  # module that was joined to others -> their file
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
        moved = _join(sources)
        digest = sha256(b"".join(_framed(name, body) for name, body in sorted({**sources, **_bytes(text)}.items())))
        version = digest.hexdigest()[:16]
        base = f"/web/{version}"
        addresses = {"preact": f"{base}/vendor/preact.js"}
        addresses |= {f"{base}/{name}": f"{base}/{to}" for name, to in moved.items()}
        imports = json.dumps({"imports": addresses}, separators=(",", ":"))
        filled = {
            "DIGEST": version,
            "IMPORTS": imports,
            "PRELOAD": "\n".join(f'<link rel="modulepreload" href="{base}/{name}">' for name in _first(sources, moved)),
            "OPTIONS": html.escape(urlencode(dict(options))),
            "FILES": json.dumps([f"{base}/{name}" for name in sorted(sources)]),
        }
        made = {name: File.of(name, _filled(body, filled).encode()) for name, body in text.items()}
        return cls(
            digest=version,
            files={name: File.of(name, body) for name, body in sources.items()},
            moved=moved,
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


def _join(sources: dict[str, bytes]) -> dict[str, str]:
    """Replace modules in `sources` by the files that they are joined to; return `moved`."""
    text = {name: body.decode() for name, body in sources.items() if name.endswith(".js")}
    into: dict[str, str] = {}
    for file, roots in JOINED.items():
        found = [name for root in roots for name in joined.with_imports(root, text)]
        names = [name for name in dict.fromkeys(found) if name not in into and not name.startswith(APART)]
        into |= dict.fromkeys(names, file)
        sources[file] = joined.join(names, text).encode()
    moved = {name: file for name, file in into.items() if name != file}
    for name in moved:
        del sources[name]
    return moved


def _first(sources: Mapping[str, bytes], moved: Mapping[str, str]) -> list[str]:
    """The files that the first screen and the list need: a browser that finds one of them late waits a round trip."""
    found: dict[str, None] = {}
    for file in JOINED:
        imports = joined.imports_of(file, sources[file].decode())
        found |= dict.fromkeys((file, *(moved.get(name, name) for name in imports)))
    return list(found)


def _framed(name: str, body: bytes) -> bytes:
    return f"{name}\0{len(body)}\0".encode() + body


def _bytes(text: Mapping[str, str]) -> dict[str, bytes]:
    return {name: body.encode() for name, body in text.items()}


def _filled(text: str, values: Mapping[str, str]) -> str:
    for name, value in values.items():
        text = text.replace(f"%{name}%", value)
    return text

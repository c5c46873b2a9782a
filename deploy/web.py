"""`make web`: the files of the web page that are others' work, from npm packages that are locked with hashes.

`page/vendor/` has modules of preact, htm and qrcode-generator, byte for byte. `page/emoji/` has, for each language of
the page, emoji with their names and search words, from emojibase-data. A test compares both with what is made here.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Final

ROOT: Final = Path(__file__).parent.parent
PAGE: Final = ROOT / "router/web/page"
MODULES: Final = ROOT / ".venv/web/node_modules"

VENDORED: Final = {
    "preact.js": "preact/dist/preact.mjs",
    "hooks.js": "preact/hooks/dist/hooks.mjs",
    "htm.js": "htm/dist/htm.module.js",
    "qrcode.js": "qrcode-generator/dist/qrcode.mjs",
}
LANGUAGES: Final = ("en", "de", "zh")
PARTS_OF_EMOJI: Final = 2  # the group of hair and skin tones, which are no emoji by themselves


def emoji(language: str) -> str:
    """The emoji of a language, in their order: `[emoji, name, search words, group]`, a row each."""
    rows = json.loads((MODULES / f"emojibase-data/{language}/compact.json").read_text())
    rows = [row for row in rows if row.get("group", PARTS_OF_EMOJI) != PARTS_OF_EMOJI]
    rows.sort(key=lambda row: row.get("order", len(rows)))
    made = [[row["unicode"], row["label"], " ".join(row.get("tags", [])), row["group"]] for row in rows]
    lines = ",\n".join(json.dumps(row, ensure_ascii=False, separators=(",", ":")) for row in made)
    return f"[\n{lines}\n]\n"


def files() -> dict[str, bytes]:
    """Every file that is made, by its path below the page."""
    copies = {f"vendor/{name}": (MODULES / source).read_bytes() for name, source in VENDORED.items()}
    return {**copies, **{f"emoji/{language}.json": emoji(language).encode() for language in LANGUAGES}}


def main() -> None:
    for name, body in files().items():
        (PAGE / name).write_bytes(body)


if __name__ == "__main__":
    main()

"""Tables of the pages that are made from the code: each is between two comments that name the target that makes it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Final

ROOT: Final = Path(__file__).parent.parent


def replace(text: str, target: str, table: str) -> str:
    """Return the text of a page with this table between its two comments."""
    begin = f"<!-- made by `make {target}` from the code; change it there -->\n"
    end = f"<!-- end of `make {target}` -->\n"
    head, found, rest = text.partition(begin)
    _, closed, tail = rest.partition(end)
    if not found or not closed:
        raise LookupError(f"the page has no place for the table of `make {target}`")
    return head + begin + table + end + tail


def write(page: str, with_table: Callable[[str, str], str]) -> None:
    path = ROOT / page
    path.write_text(with_table(page, path.read_text()))

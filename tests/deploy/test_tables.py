"""Tables of the pages that are made from the code."""

from __future__ import annotations

import pytest

from deploy import tables

PAGE = """Before.

<!-- made by `make limits` from the code; change it there -->
| old |
<!-- end of `make limits` -->
<!-- made by `make settings` from the code; change it there -->
| other |
<!-- end of `make settings` -->
After.
"""


def test_table_replaces_the_one_of_its_target_alone() -> None:
    made = tables.replace(PAGE, "limits", "| new |\n")
    assert made == PAGE.replace("| old |", "| new |")
    assert tables.replace(made, "limits", "| new |\n") == made


@pytest.mark.parametrize("comment", ["<!-- made by `make limits` from the code; change it there -->\n",
                                     "<!-- end of `make limits` -->\n"])  # fmt: skip
def test_page_without_a_comment_is_refused(comment: str) -> None:
    """Half of the page would be lost with the end of its table."""
    with pytest.raises(LookupError, match="make limits"):
        tables.replace(PAGE.replace(comment, ""), "limits", "| new |\n")

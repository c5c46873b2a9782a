"""The table of calls."""

from router.api import table


def test_every_handler_has_a_docstring() -> None:
    """The document contains the docstrings of the handlers."""
    rows = table.ACCOUNTS + table.TOKENS + table.ALWAYS + table.MEDIA + table.DOCUMENTS
    assert all(row.handler.__doc__ for row in rows)
    assert len({(row.method, row.path) for row in rows}) == len(rows)

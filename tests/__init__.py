"""Tests, in folders that mirror the tree; `flow/` runs the real processes. Shared means: conftest.py and support.py."""

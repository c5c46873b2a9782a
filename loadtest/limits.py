"""Limits of the operating system that a load test needs higher than a shell sets them."""

from __future__ import annotations

import resource
from typing import Final

FILES: Final = 65_536


def raise_file_limit() -> None:
    """Allow this process thousands of sockets: up to `FILES` open files, or as many as the hard limit permits."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = FILES if hard == resource.RLIM_INFINITY else min(FILES, hard)
    if soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))

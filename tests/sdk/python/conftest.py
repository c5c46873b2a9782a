"""Fixtures of the flow tests, for the tests of the client against real processes."""

from tests.flow.conftest import _chat, chat, names, start

__all__ = ["_chat", "chat", "names", "start"]

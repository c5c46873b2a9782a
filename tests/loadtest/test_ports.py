"""Free ports."""

from __future__ import annotations

import random
import socket

import pytest

from loadtest import ports


def test_port_that_was_given_is_not_given_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """Before a process has bound its port, another caller that draws the same number gets another port."""
    drawn, other = ports.free_ports(2)
    ports._given.pop().close()  # of `other`
    numbers = iter([drawn, drawn, other])
    monkeypatch.setattr(random, "randrange", lambda *_: next(numbers))
    assert ports.free_ports(1) == [other]


def test_port_in_use_is_not_given(monkeypatch: pytest.MonkeyPatch) -> None:
    free = ports.free_ports(1)[0]
    ports._given.pop().close()
    with socket.create_server(("127.0.0.1", 0)) as server:
        numbers = iter([server.getsockname()[1], free])
        monkeypatch.setattr(random, "randrange", lambda *_: next(numbers))
        assert ports.free_ports(1) == [free]


def test_ports_in_a_row_are_all_claimed(monkeypatch: pytest.MonkeyPatch) -> None:
    """No other caller is given one of them, and none of them was given to another."""
    first = ports.free_ports_in_a_row(18)
    for _ in range(6):
        ports._given.pop().close()
    numbers = iter([first - 5, first + 11, first + 12])
    monkeypatch.setattr(random, "randrange", lambda *_: next(numbers))
    assert ports.free_ports_in_a_row(6) == first + 12


def test_claims_of_ports_are_bounded() -> None:
    for _ in range(3):
        ports.free_ports(100)
    assert len(ports._given) == ports.REMEMBERED

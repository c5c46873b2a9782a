"""The stack's name server, with a resolver's queries."""

from __future__ import annotations

import struct

from hypothesis import given
from hypothesis import strategies as st

from deploy.names import NameServer

TABLE = {"gateway": ["127.1.2.3", "127.1.2.4"], "router": []}


def question(name: str, kind: int = 1, flags: int = 0x0100) -> bytes:
    labels = b"".join(bytes([len(label)]) + label.encode() for label in name.split("."))
    return struct.pack("!6H", 7, flags, 1, 0, 0, 1) + labels + b"\0" + struct.pack("!HH", kind, 1) + b"\0" * 11


def test_name_has_its_addresses() -> None:
    """All addresses of a name, in upper or lower case, and those that were added later."""
    table = {"gateway": ["127.1.2.3"]}
    server = NameServer(table)
    table["gateway"].append("127.1.2.4")
    answer = server.answer(question("GateWay"))
    ident, flags, questions, found = struct.unpack_from("!4H", answer)
    assert (ident, flags & 0xF, questions, found) == (7, 0, 1, 2)
    assert answer.endswith(bytes([127, 1, 2, 4]))


def test_unknown_name_and_an_unknown_type_differ() -> None:
    """An unknown name does not exist; an unknown type has no record, so a resolver that asks for IPv6 goes on to
    IPv4."""
    assert struct.unpack_from("!4H", NameServer(TABLE).answer(question("nobody")))[1:] == (0x8403, 1, 0)
    assert struct.unpack_from("!4H", NameServer(TABLE).answer(question("gateway", 28)))[1:] == (0x8400, 1, 0)
    assert struct.unpack_from("!4H", NameServer(TABLE).answer(question("router")))[1:] == (0x8400, 1, 0)


@given(st.binary(max_size=64))
def test_garbage_is_dropped(data: bytes) -> None:
    """No datagram makes it fail."""
    assert isinstance(NameServer(TABLE).answer(data), bytes)


def test_answer_is_not_answered() -> None:
    """Otherwise two name servers would answer each other for ever."""
    assert NameServer(TABLE).answer(question("gateway", flags=0x8180)) == b""

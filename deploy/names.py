"""A name server for one loopback network: for the stack, it replaces the DNS of Docker or a cluster.

It answers A queries from a table that may change while it runs; every other query gets an empty answer or "no such
name". It has no recursion, zone file or TCP; an answer of 200 addresses still fits into a datagram.

Invariant: a datagram that is not a query is dropped; it is never answered and raises nothing.
"""

from __future__ import annotations

import asyncio
import ipaddress
import struct
from collections.abc import Iterator, Mapping, Sequence
from typing import cast

A, IN = 1, 1
TTL_S = 1
RESPONSE, NO_SUCH_NAME = 0x8400, 0x8403


class NameServer(asyncio.DatagramProtocol):
    """`table` maps a name to its addresses; a change holds from the next query on."""

    def __init__(self, table: Mapping[str, Sequence[str]]) -> None:
        self.table = table
        self._transport: asyncio.DatagramTransport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.DatagramTransport, transport)

    def datagram_received(self, data: bytes, addr: tuple[str, int]) -> None:
        if self._transport is not None and (answer := self.answer(data)):
            self._transport.sendto(answer, addr)

    def answer(self, query: bytes) -> bytes:
        """Return the response to a query; empty for any other datagram."""
        try:
            ident, flags, questions = struct.unpack_from("!HHH", query)
            labels = list(_labels(query))
            end = 12 + sum(len(label) + 1 for label in labels) + 1
            kind, klass = struct.unpack_from("!HH", query, end)
        except (struct.error, IndexError):
            return b""
        if flags & 0x8000 or questions != 1 or klass != IN:
            return b""
        addresses = self.table.get(b".".join(labels).decode("ascii", "replace").lower())
        found = list(addresses or ()) if kind == A else []
        header = struct.pack("!6H", ident, NO_SUCH_NAME if addresses is None else RESPONSE, 1, len(found), 0, 0)
        record = struct.pack("!HHHIH", 0xC00C, A, IN, TTL_S, 4)  # 0xC00C: the name asked for
        return header + query[12 : end + 4] + b"".join(record + ipaddress.IPv4Address(one).packed for one in found)


def _labels(query: bytes) -> Iterator[bytes]:
    at = 12
    while length := query[at]:
        yield query[at + 1 : at + 1 + length]
        at += 1 + length


async def serve_names(host: str, port: int, table: Mapping[str, Sequence[str]]) -> asyncio.DatagramTransport:
    """Answer on this address until the transport is closed."""
    transport, _ = await asyncio.get_running_loop().create_datagram_endpoint(
        lambda: NameServer(table), local_addr=(host, port)
    )
    return transport

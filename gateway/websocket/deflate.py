"""permessage-deflate (RFC 7692): the agreement with a client, and compressed frames.

Both sides always agree on no_context_takeover, so a compressed frame depends on no earlier frame, and the same frame
can be sent to all clients.
"""

import zlib
from typing import Final, NamedTuple

from gateway.websocket.frames import DEFLATE_TAIL, FIN, RSV1, header

# On chat messages a window smaller than zlib's 15 loses next to nothing, and clients that ask for a small one take it.
DEFLATE_WINDOW_BITS: Final = 12
_DEFLATE_MEM_LEVEL: Final = 5
_WINDOW_BITS = frozenset(map(str, range(8, 16)))


class Deflate(NamedTuple):
    """permessage-deflate as agreed with one client."""

    answer: str  # the value of the Sec-WebSocket-Extensions header
    window_bits: int  # the largest window that the client can inflate

    @property
    def shared_frames(self) -> bool:
        """Whether the client can read shared compressed frames. A client with a smaller window is sent plain frames."""
        return self.window_bits >= DEFLATE_WINDOW_BITS


def negotiate_deflate(offers: str) -> Deflate | None:
    """Choose from a Sec-WebSocket-Extensions header: the first permessage-deflate offer that is well-formed."""
    for offer in offers.split(","):
        name, *parameters = (part.strip() for part in offer.split(";"))
        if name == "permessage-deflate" and (deflate := _accept_offer(parameters)) is not None:
            return deflate
    return None


def _accept_offer(parameters: list[str]) -> Deflate | None:
    """Accept one offer; decline it if a parameter is unknown, repeated or has an invalid value (RFC 7692, 7.1)."""
    answer = "permessage-deflate; server_no_context_takeover; client_no_context_takeover"
    window_bits = zlib.MAX_WBITS
    seen = set[str]()
    for parameter in parameters:
        name, given, value = (part.strip() for part in parameter.partition("="))
        value = value.removeprefix('"').removesuffix('"')
        bits = int(value) if value in _WINDOW_BITS else None
        valued = {
            "server_no_context_takeover": not given,
            "client_no_context_takeover": not given,
            "client_max_window_bits": not given or bits is not None,
            "server_max_window_bits": bits is not None,
        }
        if name in seen or not valued.get(name, False):
            return None
        seen.add(name)
        if name == "server_max_window_bits" and bits is not None:
            window_bits = bits
            answer += f"; server_max_window_bits={bits}"
    return Deflate(answer, window_bits)


def deflated_frame(payload: bytes, opcode: int) -> bytes:
    """Return one whole compressed frame, for connections whose `deflate` is true."""
    deflater = zlib.compressobj(zlib.Z_DEFAULT_COMPRESSION, zlib.DEFLATED, -DEFLATE_WINDOW_BITS, _DEFLATE_MEM_LEVEL)
    deflated = (deflater.compress(payload) + deflater.flush(zlib.Z_SYNC_FLUSH))[: -len(DEFLATE_TAIL)]
    return header(FIN | RSV1 | opcode, len(deflated)) + deflated

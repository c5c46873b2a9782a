"""permessage-deflate (RFC 7692): what is agreed with a client, and compressed frames for it.

Both sides agree on no_context_takeover, so a compressed frame needs no other frame, and one serves all clients.
"""

import zlib
from typing import Final, NamedTuple

from gateway.websocket.frames import DEFLATE_TAIL, FIN, RSV1, header

# A smaller window than zlib's 15 loses next to nothing on chat messages and serves clients that ask for a small one.
DEFLATE_WINDOW_BITS: Final = 12
_DEFLATE_MEM_LEVEL: Final = 5
_WINDOW_BITS = frozenset(map(str, range(8, 16)))


class Deflate(NamedTuple):
    """permessage-deflate as agreed with one client."""

    answer: str  # what the Sec-WebSocket-Extensions header says
    window_bits: int  # the largest window the client wants to inflate with

    @property
    def shared_frames(self) -> bool:
        """Whether the frames made once for all may go to this client. One with less memory is sent plain frames."""
        return self.window_bits >= DEFLATE_WINDOW_BITS


def negotiate_deflate(offers: str) -> Deflate | None:
    """Choose from a Sec-WebSocket-Extensions header: the first permessage-deflate offer that is well-formed."""
    for offer in offers.split(","):
        name, *parameters = (part.strip() for part in offer.split(";"))
        if name == "permessage-deflate" and (deflate := _accept_offer(parameters)) is not None:
            return deflate
    return None


def _accept_offer(parameters: list[str]) -> Deflate | None:
    """RFC 7692, 7.1: an offer with an unknown, repeated or ill-valued parameter is declined, not repaired."""
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
    """The same, compressed, for connections whose `deflate` was agreed on."""
    deflater = zlib.compressobj(zlib.Z_DEFAULT_COMPRESSION, zlib.DEFLATED, -DEFLATE_WINDOW_BITS, _DEFLATE_MEM_LEVEL)
    deflated = (deflater.compress(payload) + deflater.flush(zlib.Z_SYNC_FLUSH))[: -len(DEFLATE_TAIL)]
    return header(FIN | RSV1 | opcode, len(deflated)) + deflated

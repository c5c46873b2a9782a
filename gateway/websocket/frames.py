"""RFC 6455 frames, server side, without I/O: bytes become messages, pings, pongs and closes; payloads become frames.

`FrameParser.feed` calls the sink as soon as a message or control frame is complete. If the peer violates the protocol,
it raises `FrameError` with the close code at the first wrong byte, not at the end of the message. After an error the
parser must not be fed again. Compressed messages are inflated here; deflate.py makes compressed frames.

Invariants
- The parser never holds more than one message of `max_message_bytes` and one frame header, whatever the peer sends.
- Between messages the parser holds no buffer and no zlib state, because no_context_takeover is always agreed. So
  permessage-deflate costs an idle connection nothing.
- A frame that arrives in one piece, as nearly all do, is never copied into a buffer.
"""

import codecs
import struct
import zlib
from typing import Final, Protocol

TEXT: Final = 0x1
BINARY: Final = 0x2
CLOSE: Final = 0x8
PING: Final = 0x9
PONG: Final = 0xA

NORMAL: Final = 1000
PROTOCOL_ERROR: Final = 1002
NO_CODE: Final = 1005  # the close frame had no code; never sent
ABNORMAL: Final = 1006  # there was no close frame; never sent
INVALID_DATA: Final = 1007
POLICY: Final = 1008
TOO_BIG: Final = 1009
INTERNAL: Final = 1011
RESTART: Final = 1012

MAX_CONTROL_BYTES: Final = 125

DEFLATE_TAIL: Final = b"\x00\x00\xff\xff"  # ends every sync flush; left out on the wire (RFC 7692, 7.2.1)

RSV1 = 0x40
FIN = 0x80
_MASKED = 0x80
_PLAIN_OPENINGS = frozenset((0x00, 0x01, 0x02, 0x80, 0x81, 0x82, 0x88, 0x89, 0x8A))  # FIN and opcode, no reserved bit
_DEFLATE_OPENINGS = _PLAIN_OPENINGS | {0x41, 0x42, 0xC1, 0xC2}  # and RSV1 where a message begins
_WIRE_CODES = frozenset((1000, 1001, 1002, 1003, 1007, 1008, 1009, 1010, 1011, 1012, 1013, 1014))

_MIDDLE = struct.Struct(">BBH")  # the header of a frame whose payload has 126 to 65535 bytes

# For short payloads an XOR of two big integers is fastest, from this length on a table lookup per byte.
_LONG_PAYLOAD = 4096
_XOR_TABLES = tuple(bytes(byte ^ key for byte in range(256)) for key in range(256))


class FrameError(Exception):
    """The peer violated the protocol or a limit; the connection is to be closed with this code."""

    def __init__(self, code: int, reason: str) -> None:
        super().__init__(code, reason)
        self.code = code
        self.reason = reason


class Sink(Protocol):
    """The receiver of the parser's results, called in order from within `feed`. Text has been checked to be UTF-8."""

    def message_received(self, data: bytes, text: bool) -> None: ...
    def ping_received(self, payload: bytes) -> None: ...
    def pong_received(self, payload: bytes) -> None: ...
    def close_received(self, code: int, reason: str) -> None: ...


class _Message:
    """An incomplete message and its incomplete frame. A message that arrives whole, in one frame, needs none."""

    __slots__ = (
        "_announced",
        "_characters",
        "_data",
        "_final",
        "_fragments",
        "_inflater",
        "_left",
        "_mask",
        "_max_bytes",
        "text",
    )

    def __init__(self, text: bool, deflated: bool, max_bytes: int) -> None:
        self.text = text
        self._max_bytes = max_bytes
        self._data = bytearray()
        self._characters = b""  # the last bytes, at most 3, if they are the beginning of a character
        self._fragments = 64 + max_bytes // 64  # frames that may still come; without it empty frames would be unbounded
        # Payload bytes that headers may still announce. Incompressible payload grows a little when it is deflated.
        self._announced = max_bytes + (max_bytes // 1024 + 64 if deflated else 0)
        self._inflater = zlib.decompressobj(-zlib.MAX_WBITS) if deflated else None
        self._left = 0  # payload bytes of this frame that are still to come, and the mask from there on
        self._mask = b""
        self._final = False

    @property
    def under_way(self) -> int:
        """Payload bytes still to come of the frame under way."""
        return self._left

    @property
    def complete(self) -> bool:
        return self._final and not self._left

    def begin_frame(self, length: int, mask: bytes, final: bool) -> None:
        self._left, self._mask, self._final = length, mask, final
        self._fragments -= 1
        self._announced -= length
        if self._announced < 0:
            raise FrameError(TOO_BIG, "message too big")
        if self._fragments < 0:
            raise FrameError(POLICY, "too many fragments")

    def take(self, data: bytes, at: int) -> int:
        """Add the part of the frame that is in `data` from `at` on; return the offset at which it ends."""
        piece = data[at : at + self._left]
        self._add(unmask(piece, self._mask))
        self._left -= len(piece)
        turn = len(piece) % 4
        self._mask = self._mask[turn:] + self._mask[:turn]
        return at + len(piece)

    def finish(self) -> bytes:
        if self._inflater is not None:
            self._add(DEFLATE_TAIL)
        if self._characters:
            raise FrameError(INVALID_DATA, "text ends within a character")
        return bytes(self._data)

    def _add(self, piece: bytes) -> None:
        if self._inflater is not None:
            piece = self._inflate(self._inflater, piece)
        if self.text and (self._characters or not piece.isascii()):
            self._characters = _check_utf8(self._characters + piece)
        self._data += piece

    def _inflate(self, inflater: "zlib._Decompress", piece: bytes) -> bytes:
        """Inflate at most one byte more than the message may still grow, so that a bomb is not inflated further."""
        if inflater.eof:
            return b""
        room = self._max_bytes - len(self._data)
        try:
            inflated = inflater.decompress(piece, room + 1)
        except zlib.error:
            raise FrameError(PROTOCOL_ERROR, "invalid deflate data") from None
        if len(inflated) > room:
            raise FrameError(TOO_BIG, "message too big")
        return inflated


class FrameParser:
    """The parser of one client's frames, fed with the bytes of the socket in pieces of any size."""

    __slots__ = ("_max_bytes", "_message", "_openings", "_rest")

    def __init__(self, max_message_bytes: int, deflate: bool) -> None:
        self._max_bytes = max_message_bytes
        self._openings = _DEFLATE_OPENINGS if deflate else _PLAIN_OPENINGS
        self._rest = b""  # an incomplete header or control frame
        self._message: _Message | None = None

    def feed(self, data: bytes, sink: Sink) -> None:
        """Parse bytes of the peer. After a close frame or an error the parser must not be fed again."""
        if self._rest:
            data, self._rest = self._rest + data, b""
        at, size = 0, len(data)
        if self._message is not None and self._message.under_way:
            at = self._take(self._message, data, 0, sink)
        while size - at > 1:
            first = data[at]
            length = data[at + 1] - _MASKED
            start = at + 6
            if first not in self._openings:
                raise FrameError(PROTOCOL_ERROR, "reserved bit, unknown opcode or fragmented control frame")
            if length < 0 or length > MAX_CONTROL_BYTES:
                start, length = _long_length(data, at)
            end = start + length
            if start > size or (end > size and first & CLOSE):  # wait for the whole header, or the whole control frame
                break
            mask = data[start - 4 : start]
            if end <= size and (first == 0x81 or first == 0x82) and self._message is None and length <= self._max_bytes:
                payload = unmask(data[start:end], mask)
                if first == 0x81 and not payload.isascii() and _check_utf8(payload):
                    raise FrameError(INVALID_DATA, "text ends within a character")
                at = end
                sink.message_received(payload, first == 0x81)
            elif first & CLOSE:
                at = end
                if _control_received(first & 0x0F, unmask(data[start:end], mask), sink):
                    return
            else:
                message = self._message_of(first)
                message.begin_frame(length, mask, first >= FIN)
                at = self._take(message, data, start, sink)
        if at < size:
            self._rest = data[at:]

    def _message_of(self, first: int) -> _Message:
        """Return the message that a data frame begins or continues."""
        message = self._message
        if first & 0x0F:
            if message is not None:
                raise FrameError(PROTOCOL_ERROR, "new message within a message: expected a continuation frame")
            message = self._message = _Message(first & 0x0F == TEXT, bool(first & RSV1), self._max_bytes)
        elif message is None:
            raise FrameError(PROTOCOL_ERROR, "continuation frame without a message: expected text or binary")
        return message

    def _take(self, message: _Message, data: bytes, at: int, sink: Sink) -> int:
        at = message.take(data, at)
        if message.complete:
            self._message = None
            sink.message_received(message.finish(), message.text)
        return at


def _long_length(data: bytes, at: int) -> tuple[int, int]:
    """Return start and length of a payload whose length is not in the second byte.

    If the length has not arrived yet, the start is beyond the data.
    """
    first, second = data[at], data[at + 1]
    if second < _MASKED:
        raise FrameError(PROTOCOL_ERROR, "frame not masked: a client must mask every frame")
    if first & CLOSE:
        raise FrameError(PROTOCOL_ERROR, "control frame too long: at most 125 bytes")
    width, least = (2, 126) if second == _MASKED + 126 else (8, 65536)
    field = at + 2
    start = field + width + 4
    if len(data) < field + width:
        return start, 0
    length = int.from_bytes(data[field : field + width], "big")
    if length < least or length >= 1 << 63:
        raise FrameError(PROTOCOL_ERROR, "invalid length: expected the shortest form, below 2^63")
    return start, length


def _control_received(opcode: int, payload: bytes, sink: Sink) -> bool:
    """Pass a control frame to the sink; return whether it was a close frame."""
    if opcode == PING:
        sink.ping_received(payload)
    elif opcode == PONG:
        sink.pong_received(payload)
    else:
        sink.close_received(*_close_payload(payload))
    return opcode == CLOSE


def _close_payload(payload: bytes) -> tuple[int, str]:
    if not payload:
        return NO_CODE, ""
    if len(payload) == 1:
        raise FrameError(PROTOCOL_ERROR, "close payload of one byte: expected none, or a code of two bytes")
    try:
        reason = payload[2:].decode()
    except UnicodeDecodeError:
        raise FrameError(INVALID_DATA, "close reason is not UTF-8") from None
    code = int.from_bytes(payload[:2], "big")
    if code not in _WIRE_CODES and not 3000 <= code <= 4999:
        raise FrameError(
            PROTOCOL_ERROR, "invalid close code: expected 1000 to 1014 without reserved ones, or 3000 to 4999"
        )
    return code, reason


def _check_utf8(data: bytes) -> bytes:
    """Check UTF-8; return the bytes at the end that are the beginning of a character."""
    try:
        _, valid = codecs.utf_8_decode(data, "strict", False)
    except UnicodeDecodeError:
        raise FrameError(INVALID_DATA, "text is not UTF-8") from None
    return data[valid:]


def unmask(payload: bytes, mask: bytes) -> bytes:
    """Return the payload XORed with the mask."""
    length = len(payload)
    if length < _LONG_PAYLOAD:
        key = (mask * (length // 4 + 1))[:length]
        return (int.from_bytes(payload, "little") ^ int.from_bytes(key, "little")).to_bytes(length, "little")
    out = bytearray(length)
    for lane in range(4):
        out[lane::4] = payload[lane::4].translate(_XOR_TABLES[mask[lane]])
    return bytes(out)


def frame(payload: bytes, opcode: int) -> bytes:
    """Return one whole frame of a server. It can be written to any number of connections."""
    length = len(payload)
    if 126 <= length < 65536:  # `header` without the call: most frames of a chat
        return _MIDDLE.pack(FIN | opcode, 126, length) + payload
    return header(FIN | opcode, length) + payload


def close_frame(code: int, reason: str = "") -> bytes:
    """Return a close frame; a reason that is too long is cut between characters."""
    if code == NO_CODE:
        return frame(b"", CLOSE)
    text = reason.encode()[: MAX_CONTROL_BYTES - 2].decode(errors="ignore")
    return frame(code.to_bytes(2, "big") + text.encode(), CLOSE)


def header(first: int, length: int) -> bytes:
    """Return the header of a server's frame, from its first byte and the length of its payload."""
    if length < 126:
        return bytes((first, length))
    if length < 65536:
        return bytes((first, 126)) + length.to_bytes(2, "big")
    return bytes((first, 127)) + length.to_bytes(8, "big")

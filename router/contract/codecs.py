"""The two encodings of the client protocol, and its JSON Schema."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final, cast

import msgspec

from router.contract.errors import BadCommand, BadFrame
from router.contract.files import FileInfo, SharedFile
from router.contract.integers import decode_again
from router.contract.packing import (
    MAX_DEPTH,
    from_json,
    json_of_packed,
    json_of_value,
    pack,
    to_json,
    unpack,
)
from router.contract.wire import Commands, Event, Events


class Codec:
    """One encoding of the protocol: its name, subprotocol, kind of frame, decoder and encoders.

    `encode` returns the payload of an event struct, `logged` that of a logged event's msgpack bytes, `value` that of a
    canonical value's msgpack bytes. `strict` decodes what nearly all clients send; if it raises, `decode` decides.
    """

    __slots__ = ("_plain", "encode", "logged", "name", "strict", "subprotocol", "text", "value")

    def __init__(
        self,
        name: str,
        text: bool,
        strict: Callable[[bytes], Commands],
        plain: Callable[[bytes], Any],
        encode: Callable[[Event], bytes],
        logged: Callable[[bytes], bytes],
        value: Callable[[bytes], bytes],
    ) -> None:
        self.name = name
        self.subprotocol = f"linnet.v1.{name}"
        self.text = text
        self.strict = strict
        self._plain = plain
        self.encode = encode
        self.logged = logged
        self.value = value

    def decode(self, data: bytes) -> Commands:
        """The command; `BadFrame` if the data is not one value of this encoding, `BadCommand` if it is no command."""
        try:
            try:
                return self.strict(data)
            except msgspec.ValidationError as refusal:
                return cast("Commands", decode_again(data, refusal, self._plain, Commands))
        except msgspec.ValidationError as error:
            raise BadCommand(str(error)) from None
        except (msgspec.DecodeError, UnicodeDecodeError):
            raise BadFrame(f"a frame must contain exactly one {self.name} value") from None
        except RecursionError:
            raise BadCommand(f"values must be at most {MAX_DEPTH} deep") from None


def _identity(packed: bytes) -> bytes:
    return packed


JSON: Final = Codec(
    "json", True, msgspec.json.Decoder(Commands).decode, from_json, to_json, json_of_packed, json_of_value
)
MSGPACK: Final = Codec("msgpack", False, msgspec.msgpack.Decoder(Commands).decode, unpack, pack, _identity, _identity)
CODECS: Final[dict[str, Codec]] = {codec.subprotocol: codec for codec in (JSON, MSGPACK)}


def schema() -> dict[str, Any]:
    """JSON Schema of all commands and events, generated from the structs above."""
    (_, _, commands, events), components = msgspec.json.schema_components(
        (FileInfo, SharedFile, Commands, Events),  # parts before what has them
        ref_template="#/$defs/{name}",
    )
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "Linnet wire, version 1",
        "type": "object",
        "properties": {"command": commands, "event": events},
        "$defs": components,
    }

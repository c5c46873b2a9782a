"""Both codecs as a client in another language would use them."""

from __future__ import annotations

import base64
import json
from typing import Any

import msgpack
import pytest

from router.contract import codecs, packing
from router.contract.errors import LinnetError

GROUP = "g:0123456789012345678901"

both = pytest.mark.parametrize("codec", codecs.CODECS.values(), ids=lambda codec: codec.subprotocol)


def as_json(value: Any) -> Any:
    """A canonical value as a JSON client writes it."""
    match value:
        case bytes():
            return {"$b64": base64.b64encode(value).decode()}
        case list():
            return [as_json(item) for item in value]
        case dict():
            return {key: as_json(item) for key, item in value.items()}
    return value


def encoded(codec: codecs.Codec, value: Any) -> bytes:
    """Bytes as a client in another language would write them, made without Linnet's encoders."""
    packed: bytes = json.dumps(as_json(value)).encode() if codec.text else msgpack.packb(value)
    return packed


def decoded(codec: codecs.Codec, **command: Any) -> Any:
    return codec.decode(encoded(codec, command))


def refused(codec: codecs.Codec, data: bytes) -> str:
    """The code with which a frame, or the body of the command in it, is refused."""
    with pytest.raises(LinnetError) as caught:
        packing.pack_body(getattr(codec.decode(data), "body", None))
    return caught.value.code


def packed_body(body: bytes) -> bytes:
    """A send whose body is these bytes of msgpack."""
    return b"\x84\xa4type\xa4send\xa2to\xa4@bob\xa1n\x01\xa4body" + body

"""Integers that arrive as floats.

JavaScript has one type of number, and some of its encoders write every integer above 2³² as a float64 (`msgpackr`,
`msgpack-lite`), or as `1.8e15` in JSON. If a struct has an integer field, a float with an integral value within
±(2⁵³-1) is accepted as that integer. Free values (`Any`) keep their floats: there the client's own type counts.

A value is converted only after strict decoding has refused it, so clients that send integers pay nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any, TypeVar

import msgspec
from msgspec import inspect

from router.contract.packing import MAX_INTEGER

T = TypeVar("T")

_type_info = cache(inspect.type_info)


def tolerant(strict: Callable[[bytes], T], plain: Callable[[bytes], Any], kind: Any) -> Callable[[bytes], T]:
    """Make a decoder of `kind` from `strict` that also accepts integers as floats; `plain` decodes without types."""

    def decode(data: bytes) -> T:
        try:
            return strict(data)
        except msgspec.ValidationError as refusal:
            found: T = decode_again(data, refusal, plain, kind)
            return found

    return decode


def decode_again(data: bytes, refusal: msgspec.ValidationError, plain: Callable[[bytes], Any], kind: Any) -> Any:
    """Decode data that strict decoding refused: with its integers repaired, or the refusal is raised again."""
    try:
        value = plain(data)
    except msgspec.DecodeError:
        value = None
    if not isinstance(value, dict) or not repair(value, kind):
        raise refusal
    return msgspec.convert(value, kind)


def repair(value: dict[Any, Any], kind: Any) -> bool:
    """Turn integral floats into integers where `kind`, a struct or a tagged union of structs, has integer fields.

    The map is changed in place. Return whether anything changed.
    """
    return _struct(value, _type_info(kind))


def as_integer(value: Any) -> Any:
    """The integer that an integral float represents; any other value unchanged."""
    if type(value) is float and value.is_integer() and -MAX_INTEGER <= value <= MAX_INTEGER:
        return int(value)
    return value


def is_integer_field(kind: inspect.Type) -> bool:
    """Whether a field of this type accepts integers and no floats."""
    kinds = [_plain(option) for option in kind.types] if isinstance(kind, inspect.UnionType) else [_plain(kind)]
    return any(isinstance(option, inspect.IntType) for option in kinds) and not any(
        isinstance(option, inspect.FloatType | inspect.AnyType) for option in kinds
    )


def _plain(kind: inspect.Type) -> inspect.Type:
    return _plain(kind.type) if isinstance(kind, inspect.Metadata) else kind


def _struct(value: dict[Any, Any], kind: inspect.Type) -> bool:
    kind = _plain(kind)
    if isinstance(kind, inspect.UnionType):
        structs = [option for option in map(_plain, kind.types) if isinstance(option, inspect.StructType)]
        tagged = [option for option in structs if option.tag is None or value.get(option.tag_field) == option.tag]
        return any(_struct(value, option) for option in tagged)
    if not isinstance(kind, inspect.StructType):
        return False
    changed = False
    for field in kind.fields:
        if (given := value.get(field.encode_name)) is not None:
            found = _value(given, field.type)
            if found is not given:
                value[field.encode_name] = found
                changed = True
    return changed


def _value(value: Any, kind: inspect.Type) -> Any:
    """The value with its integers repaired: a new object if anything changed, else the same one."""
    if type(value) is float:
        return as_integer(value) if is_integer_field(kind) else value
    if type(value) is not dict and type(value) is not list:
        return value
    options = kind.types if isinstance(kind, inspect.UnionType) else (kind,)
    for option in map(_plain, options):
        if type(value) is dict:
            if isinstance(option, inspect.DictType):
                items = {key: _value(item, option.value_type) for key, item in value.items()}
                if any(items[key] is not item for key, item in value.items()):
                    return items
            elif _struct(value, option):
                return dict(value)
        elif isinstance(option, inspect.ListType):
            found = [_value(item, option.item_type) for item in value]
            if any(new is not old for new, old in zip(found, value, strict=True)):
                return found
    return value

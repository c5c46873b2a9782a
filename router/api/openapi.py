"""The OpenAPI 3.1 document, generated from the table of the API and the structs of its rows.

An operation's summary and description are its handler's docstring; its schemas are those with which msgspec decodes.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterable
from http import HTTPStatus
from types import UnionType
from typing import Any, Final, get_type_hints

import msgspec

from router.api.call import CALLER, OPEN, Endpoint
from router.api.types.common import Error, PathParameters
from router.contract import wire

SECURITY: Final = {
    "user": {"type": "http", "scheme": "bearer", "bearerFormat": "JWT", "description": "A user's token."},
    "server": {"type": "http", "scheme": "bearer", "description": "The server key, for backends."},
}
HEADERS: Final[dict[str, dict[str, Any]]] = {
    "Idempotency-Key": {
        "name": "Idempotency-Key", "in": "header", "schema": {"type": "string", "maxLength": 255},
        "description": "A message sent again with the same key within a day counts once.",
    },
    "Linnet-Device": {
        "name": "Linnet-Device", "in": "header", "schema": msgspec.json.schema(wire.Name),
        "description": "The device of the command: `api/` and this name, which has its own numbers `n`.",
    },
    "Tus-Resumable": {
        "name": "Tus-Resumable", "in": "header", "schema": {"type": "string", "const": "1.0.0"},
        "description": "The version of tus.",
    },
    "Upload-Length": {
        "name": "Upload-Length", "in": "header", "schema": {"type": "integer", "minimum": 1},
        "description": "The bytes of the whole upload.",
    },
    "Upload-Metadata": {
        "name": "Upload-Metadata", "in": "header", "schema": {"type": "string"},
        "description": "Pairs of a name and a base64 value: name, type, kind, duration, waveform.",
    },
    "Linnet-Name": {
        "name": "Linnet-Name", "in": "header", "schema": {"type": "string", "maxLength": 765},
        "description": "The file's name, as percent-encoded UTF-8 of at most 255 bytes.",
    },
    "Linnet-Reason": {
        "name": "Linnet-Reason", "in": "header", "required": True, "schema": {"type": "string"},
        "description": "Why the log is read, as percent-encoded UTF-8 of 1-500 characters; the audit has it.",
    },
    "Linnet-User": {
        "name": "Linnet-User", "in": "header", "schema": msgspec.json.schema(wire.Name),
        "description": "With the server key: the user for whom it acts.",
    },
}  # fmt: skip


_BYTES: Final = {"*/*": {"schema": {"type": "string", "format": "binary"}}}


def document(endpoints: Iterable[Endpoint]) -> dict[str, Any]:
    """The document for these rows of the table."""
    rows = list(endpoints)
    shapes = [shape for row in rows for shape in (row.body, row.answer) if shape is not None] + [Error]
    found, components = msgspec.json.schema_components(shapes, ref_template="#/components/schemas/{name}")
    schemas = dict(zip(map(str, shapes), found, strict=True))
    paths: dict[str, dict[str, Any]] = {}
    for row in rows:
        paths.setdefault(row.path, {})[row.method.lower()] = _operation(row, schemas)
    return {
        "openapi": "3.1.0",
        "info": {"title": "Linnet", "version": "1", "description": "The HTTP API of a Linnet deployment."},
        "paths": paths,
        "components": {"schemas": components, "securitySchemes": SECURITY},
    }


def _operation(row: Endpoint, schemas: dict[str, Any]) -> dict[str, Any]:
    summary, *more = re.split(r"\.\s+", inspect.cleandoc(row.handler.__doc__ or ""), maxsplit=1)
    operation: dict[str, Any] = {
        "operationId": row.handler.__name__.strip("_") + ("_device" if "{device}" in row.path else ""),
        "summary": " ".join(summary.rstrip(".").split()),
        "parameters": _parameters(row),
        "security": _security(row),
        "responses": _responses(row, schemas),
    }
    if more:
        operation["description"] = more[0]
    if row.body is not None:
        # A union is of commands, which have a `type`.
        required = isinstance(row.body, UnionType) or any(one.required for one in msgspec.structs.fields(row.body))
        operation["requestBody"] = {"required": required, "content": _content(schemas[str(row.body)])}
    if row.raw_body:
        operation["requestBody"] = {"required": True, "content": _BYTES}
    return operation


def _parameters(row: Endpoint) -> list[dict[str, Any]]:
    hints = get_type_hints(PathParameters, include_extras=True)
    found = [
        {"name": name, "in": "path", "required": True, "schema": msgspec.json.schema(hints[name])}
        for name in re.findall(r"{(\w+)}", row.path)
    ]
    if row.query is not None:
        found += [
            {"name": name, "in": "query", "required": field.required, "schema": msgspec.json.schema(field.type)}
            for field in msgspec.structs.fields(row.query)
            for name in (field.encode_name,)
        ]
    named = row.headers if row.auth == OPEN else (*row.headers, "Linnet-User")
    return found + [HEADERS[name] for name in named]


def _security(row: Endpoint) -> list[dict[str, Any]]:
    if row.auth == OPEN:
        return []
    return ([{"user": []}] if row.auth == CALLER else []) + [{"server": []}]


def _responses(row: Endpoint, schemas: dict[str, Any]) -> dict[str, Any]:
    """The answer, and every status that follows from the row's fields or is in its list."""
    answer: dict[str, Any] = {"description": HTTPStatus(row.status).phrase}
    if row.answer is not None:
        answer["content"] = _content(schemas[str(row.answer)])
    if row.raw_answer:
        answer["content"] = _BYTES
    refused = {500, 503, *row.refusals}
    if row.auth != OPEN:
        refused |= {401, 403, 422}
    if row.body is not None:
        refused |= {400, 413, 415, 422}
    if row.query is not None or "{" in row.path:
        refused |= {422}
    error = _content(schemas[str(Error)])
    responses = {str(row.status): answer}
    for status in row.raw_answer:
        responses[str(status)] = {"description": HTTPStatus(status).phrase}
        if status == HTTPStatus.PARTIAL_CONTENT:
            responses[str(status)]["content"] = _BYTES
    for status in sorted(refused):
        responses[str(status)] = {"description": HTTPStatus(status).phrase, "content": error}
        if status in (429, 503):
            responses[str(status)]["headers"] = {"Retry-After": {"schema": {"type": "integer", "minimum": 1}}}
    return responses


def _content(schema: Any) -> dict[str, Any]:
    return {"application/json": {"schema": schema}}

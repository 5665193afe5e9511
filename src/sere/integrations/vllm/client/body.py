"""Read a request's body: JSON of a bounded size, and nothing else."""

from __future__ import annotations

import json
from typing import Any

from sere.integrations.vllm.client.refusal import RequestRefused

MOST_BYTES = 1 << 18
"""Largest body in bytes: every expert of 100 layers of 512 can be named in it."""

_WANTED = 'expected a JSON object of settings, such as {"threshold": 0.3}'


async def read_object(request: Any) -> dict[str, Any]:
    """Return the JSON object in a request's body.

    Args:
        request: Starlette's ``Request``.

    Raises:
        RequestRefused: Its media type is another (415), it is too large (413), it broke off, or it is not a
            JSON object (400).
    """
    given = request.headers.get("content-type", "")
    if given.partition(";")[0].strip().lower() != "application/json":
        raise RequestRefused(
            f"{_WANTED}, with the header Content-Type: application/json, got {given or 'no such header'!r}",
            415,
        )
    return parse_object(await read_body(request))


async def read_body(request: Any) -> bytes:
    """Return a request's body.

    Raises:
        RequestRefused: It is larger than ``MOST_BYTES`` (413), or it broke off (400).
    """
    from starlette.requests import ClientDisconnect

    body = bytearray()
    try:
        async for chunk in request.stream():
            body += chunk
            if len(body) > MOST_BYTES:
                raise RequestRefused(f"expected a body of at most {MOST_BYTES} bytes, got more", 413)
    except ClientDisconnect:
        raise RequestRefused("expected a complete body, but the connection was closed") from None
    return bytes(body)


def parse_object(body: bytes) -> dict[str, Any]:
    """Return the JSON object that a body holds.

    Raises:
        RequestRefused: It is not JSON, or not an object.
    """
    try:
        value = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise RequestRefused(f"{_WANTED}, got something that is not JSON ({error})") from None
    if not isinstance(value, dict):
        raise RequestRefused(f"{_WANTED}, got {type(value).__name__}")
    return value

"""Who may change settings over HTTP: whoever has the key that only the operator gives out."""

from __future__ import annotations

import os
import secrets
from typing import Any

from sere.integrations.vllm.client.refusal import RequestRefused

ADMIN_KEY = "SERE_ADMIN_KEY"
"""The variable of the server's environment that holds the key. Without it nobody can change anything."""

HEADER = "X-Sere-Admin-Key"
"""The header of a request that carries the key; ``Authorization`` is for the server's own."""


def why_nobody_may() -> str | None:
    """Return why nobody may change anything over HTTP, or None if whoever has the key may."""
    if os.environ.get(ADMIN_KEY):
        return None
    return (
        f"changes over HTTP are off: start the server with {ADMIN_KEY} in its environment, and send that "
        f"key in the header {HEADER}"
    )


def check_admin(request: Any) -> None:
    """Refuse a request that does not carry the operator's key.

    Args:
        request: Starlette's ``Request``.

    Raises:
        RequestRefused: The server has no such key, so that nobody may (403), or the request has another or
            none (401).
    """
    if (reason := why_nobody_may()) is not None:
        raise RequestRefused(reason, 403)
    # The bytes that came, because texts that are not ASCII cannot be compared in constant time.
    given = request.headers.get(HEADER, "").encode("latin-1")
    if not secrets.compare_digest(given, os.fsencode(os.environ[ADMIN_KEY])):
        raise RequestRefused(f"expected the key of {ADMIN_KEY} in the header {HEADER}", 401)

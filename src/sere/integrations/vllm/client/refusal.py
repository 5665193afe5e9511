"""What a client of the routes did wrong, and the answers that say so."""

from __future__ import annotations

import json
from typing import Any

from sere.errors import SereError

# Characters of an error that an answer repeats: its beginning and its end.
_HEAD, _TAIL = 600, 200


class RequestRefused(SereError):
    """A request to one of the routes is refused because of what the client sent.

    Attributes:
        status: The HTTP status, 400 to 499.
    """

    def __init__(self, text: str, status: int = 400) -> None:
        super().__init__(text)
        self.status = status


def json_answer(value: Any, status: int = 200) -> Any:
    """Return an answer in JSON, in ASCII, so that no text of a client can fail to be encoded.

    Args:
        value: JSON-ready, or a text that is JSON already.
        status: The HTTP status.
    """
    from starlette.responses import Response

    text = value if isinstance(value, str) else json.dumps(value, allow_nan=False)
    return Response(text, status_code=status, media_type="application/json")


def error_answer(error: Exception, status: int) -> Any:
    """Return an error as JSON; of a long one, which repeats what the client sent, the middle is left out."""
    text = str(error)
    if len(text) > _HEAD + _TAIL:
        text = f"{text[:_HEAD]} ... {text[-_TAIL:]}"
    return json_answer({"error": text}, status)
